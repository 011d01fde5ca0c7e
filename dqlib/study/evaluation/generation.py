"""Test documents shared by the processes, and beam search over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dqlib.generation import OneSourceCache
from dqlib.study.params import settings as S
from dqlib.study.process.progress import report
from dqlib.study.training.batches import Example, collate


def own_batches(
    examples: Sequence[Example], batch_size: int, accelerator: Accelerator, name: str
) -> Iterator[list[int]]:
    """Numbers of the examples of each batch of this process, sources of about one length together.

    Each batch is reported as done when the next one is asked for.
    """
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].source))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    own = batches[accelerator.process_index :: accelerator.num_processes]
    for number, indices in enumerate(own, start=1):
        yield indices
        if accelerator.is_main_process:
            report(name, number, len(own))


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerFast,
    evaluation: S.Evaluation,
    max_tokens: int,
    accelerator: Accelerator,
    name: str,
) -> list[str]:
    """Text for each example by beam search, shared by the processes; all of them get the whole list.

    Each text starts from its example's own token, so one batch may hold several languages.
    """
    model.eval()
    produced: list[tuple[int, str]] = []
    for indices in own_batches(examples, evaluation.batch_size, accelerator, name):
        batch = collate([examples[i] for i in indices], tokenizer.pad_token_id).to(accelerator.device)
        output = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            decoder_start_token_id=[examples[i].start for i in indices],
            past_key_values=OneSourceCache(),
            num_beams=evaluation.beams,
            max_new_tokens=max_tokens,
            do_sample=False,
        )
        produced += zip(indices, tokenizer.batch_decode(output, skip_special_tokens=True), strict=True)
    return [text.strip() for _, text in sorted(gather_object(produced))]
