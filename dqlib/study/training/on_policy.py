"""On-policy steps: a student is judged on what it writes itself (GKD, Agarwal et al. 2024, arXiv:2306.13649).

Trained on references alone, a student never sees its own mistakes before the next token, as it does when it generates.
In a share of the steps the targets are therefore drawn from its own distribution, and the teacher's distributions over
the same tokens are what it learns from; no gradient goes through the drawing (algorithm 1 there).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from dqlib.generation import OneSourceCache
from dqlib.study.training.batches import collate
from dqlib.study.training.examples import Example


@dataclass(frozen=True)
class OnPolicy:
    """Which steps are on-policy, and the student's own targets in them.

    They are a ``share`` of the steps, spread evenly; a target has at ``most`` so many tokens, the end among them.
    """

    share: float
    most: int
    seed: int

    def is_step(self, step: int) -> bool:
        """Whether a step, counted from 1, is on-policy: known of each step alone, so that it holds after a resume."""
        return math.floor(step * self.share) > math.floor((step - 1) * self.share)

    def targets(self, student: PreTrainedModel, examples: Sequence[Example], step: int, number: int) -> list[Example]:
        """Examples with targets that the student draws, token by token, in evaluation mode.

        The student is an encoder-decoder, and left in the mode that it was in. The seed, the step and the number of the
        micro-batch in it decide what is drawn; the examples' own targets are not looked at.
        """
        generator = torch.Generator(student.device)
        generator.manual_seed(random.Random(f"{self.seed} {step} {number} on-policy").getrandbits(63))
        training = student.training
        student.eval()
        try:
            drawn = _drawn(student, examples, self.most, generator)
        finally:
            student.train(training)
        return [replace(example, target=target) for example, target in zip(examples, drawn, strict=True)]


@torch.no_grad()
def _drawn(
    student: PreTrainedModel, examples: Sequence[Example], most: int, generator: torch.Generator
) -> list[list[int]]:
    """Token ids that a student draws for the sources of examples, each up to its end."""
    batch, end = collate(examples, student.config.pad_token_id).to(student.device), student.config.eos_token_id
    read: BaseModelOutput = student.get_encoder()(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    tokens, cache, columns = batch.inputs()["decoder_input_ids"][:, :1], OneSourceCache(), list[Tensor]()
    ended = torch.zeros_like(tokens, dtype=torch.bool)
    while len(columns) < most and not ended.all():
        output = student(
            encoder_outputs=read, attention_mask=batch.attention_mask, decoder_input_ids=tokens,
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        tokens = torch.multinomial(output.logits[:, -1].float().softmax(dim=-1), 1, generator=generator)
        columns.append(tokens)
        ended |= tokens == end
    rows = torch.cat(columns, dim=1).tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]
