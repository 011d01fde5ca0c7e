"""The stages of models with one stack: BERT, which classifies, and GPT-2, which continues a text.

A part of ``benchmarks/inference.py``, which says how it measures. ``reading`` is one text of 128 tokens, and sixteen,
to classes; ``continuation`` is 64 tokens after a text of 64, greedily, of one text and of eight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from bench import Bench, Made
from tables import Row
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from dqlib.storage.footprint import fp32_size_bytes

#: Presets whose files are measured: two bits in three levels, which take 1.6 bits of a file, and in four.
PRESETS = ("dqlib-ternary", "dqlib")


class OneStack(Bench):
    """The stages of a model of one stack."""

    @property
    def stages(self) -> list[Callable[[], Iterator[Row]]]:
        """What is measured, in this order."""
        return [self.generation, self.sizes, self.memory]

    @property
    def reads(self) -> bool:
        """Whether the model classifies."""
        return self.shape.kind == "bert"

    def sizes(self) -> Iterator[Row]:
        """Bytes of packed files."""
        teacher_bytes = fp32_size_bytes(self.teacher)
        yield self.row("size", self.teacher_config, "transformers fp32", "size", teacher_bytes, "bytes")
        for config in self.shape.configs:
            for preset in PRESETS if config.startswith("2-2") else PRESETS[1:]:
                name = "packed, three levels" if preset == PRESETS[0] else "packed"
                yield self.packed(config, teacher_bytes, name, preset)

    def generation(self) -> Iterator[Row]:
        """One text and several, by each engine."""
        name, many = ("reading", 16) if self.reads else ("continuation", 8)
        engines = self._engines()
        for texts, metric in ((1, "latency"), (many, "throughput")):
            seconds = self.in_turn(engines, texts=texts, beams=1)
            yield from self.compared(name, seconds, metric, texts, 1)

    def memory(self) -> Iterator[Row]:
        """Resident memory and seconds to load, each in a process of its own."""
        yield from self.memory_of(self._engines())

    def _engines(self) -> dict[str, Made]:
        made = {f"{self.teacher_config} transformers fp32": self.transformers()}
        encoder = "int8" if self.reads else None
        for config in (self.shape.fast, self.shape.configs[0]):
            made[f"{config} ctranslate2 int8"] = self.ctranslate2(config)
            made[f"{config} onnxruntime"] = self.onnx(config, encoder)
        return made

    @cached_property
    def teacher(self) -> PreTrainedModel:
        """A random model of full depth."""
        s = self.shape
        torch.manual_seed(0)
        if self.reads:
            config = BertConfig(
                vocab_size=s.vocabulary, hidden_size=s.features, num_hidden_layers=s.layers,
                num_attention_heads=s.heads, intermediate_size=s.inner,
            )  # fmt: skip
            return BertForSequenceClassification(config).eval()
        config = GPT2Config(
            vocab_size=s.vocabulary, n_embd=s.features, n_layer=s.layers, n_head=s.heads, n_inner=s.inner,
            bos_token_id=0, eos_token_id=2, pad_token_id=1,
        )  # fmt: skip
        return GPT2LMHeadModel(config).eval()
