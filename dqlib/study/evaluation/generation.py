"""Test documents shared by the processes, and beam search over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dqlib.generation import OneSourceCache
from dqlib.study.params import settings as S
from dqlib.study.process.progress import report
from dqlib.study.training.batches import Batch, Example, collate


@torch.no_grad()
def answers(
    model: PreTrainedModel,
    examples: Sequence[Example],
    collate: Callable[[Sequence[Example]], Batch],
    batch_size: int,
    accelerator: Accelerator,
    name: str,
    answer: Callable[[list[int], Batch], Sequence[Any]],
) -> list[Any]:
    """What a model answers to each example, in their order; shared by the processes, all of them get the whole list.

    Sources of about one length are in one batch. ``answer`` is given the numbers of the examples of a batch, and it.
    """
    model.eval()
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].source))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    own = batches[accelerator.process_index :: accelerator.num_processes]
    found: list[tuple[int, Any]] = []
    for number, indices in enumerate(own, start=1):
        batch = collate([examples[i] for i in indices]).to(accelerator.device)
        found += zip(indices, answer(indices, batch), strict=True)
        if accelerator.is_main_process:
            report(name, number, len(own))
    return [each for _, each in sorted(gather_object(found), key=itemgetter(0))]


def generate(
    model: PreTrainedModel,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerFast,
    evaluation: S.Evaluation,
    max_tokens: int,
    accelerator: Accelerator,
    name: str,
) -> list[str]:
    """Text for each example by beam search.

    Each text starts from its example's own token, so one batch may hold several languages.
    """

    def written(indices: list[int], batch: Batch) -> list[str]:
        output = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            decoder_start_token_id=[examples[i].start for i in indices],
            past_key_values=OneSourceCache(),
            num_beams=evaluation.beams,
            max_new_tokens=max_tokens,
            do_sample=False,
        )
        return [text.strip() for text in tokenizer.batch_decode(output, skip_special_tokens=True)]

    of_pairs = partial(collate, pad=tokenizer.pad_token_id)
    return answers(model, examples, of_pairs, evaluation.batch_size, accelerator, name, written)
