"""Tiny checkpoints of every architecture, as others have them, with a tokenizer; and pairs to distil them on."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pandas
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.helpers.models import CASES

TEXT = "the of and plants water green river old stone house wind over under light keeps grows near small"
WORDS = TEXT.split()
CLASSES = ("dry", "wet")

#: Special tokens in the order of their ids, and how texts are marked.
SPECIAL = {
    "bart": (("<s>", "<pad>", "</s>", "<unk>"), "<s> $A </s>"),
    "mbart": (("<s>", "<pad>", "</s>", "<unk>", "<ro>"), "$A </s>"),
    "marian": (("</s>", "<unk>"), "$A </s>"),  # and padding last
    "t5": (("<pad>", "</s>", "<unk>"), "$A </s>"),
    "bert": (("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), "[CLS] $A [SEP]"),
    "gpt2": (("<end>",), "$A"),
}
_ROLES = {
    "<s>": "bos_token", "<pad>": "pad_token", "</s>": "eos_token", "<unk>": "unk_token", "[PAD]": "pad_token",
    "[UNK]": "unk_token", "[CLS]": "cls_token", "[SEP]": "sep_token", "[MASK]": "mask_token", "<end>": "eos_token",
}  # fmt: skip


def tokenizer_of(name: str, longest: int | None = 24) -> PreTrainedTokenizerFast:
    special, template = SPECIAL[name]
    tokens = [*special, *WORDS, *(["<pad>"] if name == "marian" else [])]
    roles = {_ROLES[token]: token for token in tokens if token in _ROLES}
    inner = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token=roles.get("unk_token", "<end>")))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(list(special))
    marks = [(token, tokens.index(token)) for token in special if token in template]
    pair = f"{template} $B:1 {template.split()[-1]}:1" if name == "bert" else None
    inner.post_processor = processors.TemplateProcessing(single=template, pair=pair, special_tokens=marks)
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=longest, **roles)


def save_checkpoint(name: str, folder: Path, longest: int | None = 24, **fields: object) -> Path:
    """A model of an architecture with random weights, three layers on each of its sides, and its tokenizer.

    ``longest`` is what the tokenizer knows of the longest text, and ``fields`` are of the configuration.
    """
    tokenizer, case = tokenizer_of(name, longest), CASES["bert-classifier" if name == "bert" else name]
    start = {"mbart": 4, "marian": tokenizer.pad_token_id, "t5": 0}.get(name, tokenizer.eos_token_id)
    changes = {
        **dict.fromkeys(("vocab_size", "decoder_vocab_size"), len(tokenizer)),
        **dict.fromkeys(("decoder_layers", "num_decoder_layers"), 3),
        **{"bos_token_id": 0, "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id},
        **{"decoder_start_token_id": start, "initializer_factor": 2.0, "id2label": dict(enumerate(CLASSES))},
        "label2id": {label: number for number, label in enumerate(CLASSES)},
        **fields,
    }
    known = case.config.to_dict()
    torch.manual_seed(0)
    model = case.model(type(case.config)(**known | {key: value for key, value in changes.items() if key in known}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_pairs(path: Path, count: int = 160, seed: int = 0) -> Path:
    """Pairs of texts, with a class each, in a file of the kind that its name says."""
    order = random.Random(seed)
    rows = []
    for _ in range(count):
        source = " ".join(order.choices(WORDS, k=order.randrange(8, 14)))
        rows.append({"read": source, "write": " ".join(source.split()[:4]), "kind": CLASSES["water" in source.split()]})
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix == ".jsonl":
        plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        frame = pandas.DataFrame(rows)
        frame.to_csv(plain, index=False) if plain.suffix == ".csv" else frame.to_parquet(plain)
    if plain != path:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path
