"""Batches: examples of like length together, the same order for the same seed, whoever trains."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dqlib.languages import language_id
from dqlib.losses import IGNORED_LABEL
from dqlib.study.corpora.rows import Row
from dqlib.study.corpora.tokenizer import LONGEST_TEXT, MASK_ID, PAD_ID, source_ids, target_ids
from dqlib.study.params import settings as S
from dqlib.study.training.examples import BATCH, Example, example_lengths
from dqlib.study.training.mixture import Mixture

#: Examples that are sorted by length together; large enough for little padding, small enough to mix.
BUCKET = 2048

#: Tokens that a window has at least; what is left of a text when it is cut may be shorter, and is not trained on.
SHORTEST = 8


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded tensors of one forward pass: of an encoder-decoder, or of a model that reads one text at a time."""

    input_ids: Tensor  # (batch, source)
    attention_mask: Tensor  # (batch, source)
    labels: Tensor  # (batch, target), or (batch, source) of one text, -100 where no label counts; (batch,) of classes
    decoder_input_ids: Tensor | None = None  # (batch, target)
    token_type_ids: Tensor | None = None  # (batch, source), 1 in the second text of a pair

    def inputs(self) -> dict[str, Tensor]:
        """What a model's forward takes (labels stay out: losses are computed outside the model)."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "labels"}
        return {name: value for name, value in values.items() if value is not None}

    def with_labels(self) -> dict[str, Tensor]:
        """The same with ``labels`` from which the model's own loss is computed: a decoder's shifts its input itself."""
        labels = self.labels
        if labels.dim() > 1 and self.decoder_input_ids is None and self.token_type_ids is None:
            labels = self.input_ids.masked_fill(self.attention_mask == 0, IGNORED_LABEL)
        return self.inputs() | {"labels": labels}

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with a change of every tensor."""
        values = (getattr(self, name) for name in self.__slots__)
        return Batch(*(None if value is None else change(value) for value in values))

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return self.each(lambda tensor: tensor.to(device))


def encode(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, corpus: S.Corpus) -> list[Example]:
    """Rows as token ids, cut to the corpus's lengths (what ends a text stays).

    A target starts from the token that the corpus names (``start``), or else from that of the row's ``language``, or
    where it has none, from ``</s>``.

    Raises:
        InputError: a language has no token.
    """
    examples: list[Example] = []
    of_language = cache(partial(language_id, tokenizer))
    plain = tokenizer.eos_token_id if corpus.start is None else corpus.start
    for first in range(0, len(rows), BATCH):  # a tokenizer needs a hundred bytes per token while it works
        batch = list(rows[first : first + BATCH])
        sources = source_ids(tokenizer, [row["source"] for row in batch], corpus.source_tokens)
        targets = target_ids(tokenizer, [row["target"] for row in batch], corpus.target_tokens)
        for row, source, target in zip(batch, sources, targets, strict=True):
            code = row.get("language") if corpus.start is None else None
            examples.append(Example(source, target, plain if code is None else of_language(code)))
    return examples


def collate(examples: Sequence[Example], pad: int = PAD_ID) -> Batch:
    """Pad examples to a batch with the id ``pad``; the decoder of each starts from its example's own token."""
    input_ids = padded([example.source for example in examples], pad)
    labels = padded([example.target for example in examples], IGNORED_LABEL)
    decoder_input_ids = padded([[example.start, *example.target[:-1]] for example in examples], pad)
    return Batch(input_ids, (input_ids != pad).long(), labels, decoder_input_ids)


def collate_texts(examples: Sequence[Example], pad: int, separator: int | None = None, classes: bool = True) -> Batch:
    """Pad examples of one text each to a batch; a target is as long as its source, or one class (``classes``).

    Models that are given which text of a pair a token is of have a ``separator``, the id that ends each text.
    """
    input_ids = padded([example.source for example in examples], pad)
    mask = padded([[1] * len(example.source) for example in examples], 0)  # a source may hold the id of padding
    labels = padded([example.target for example in examples], IGNORED_LABEL)
    if classes and labels.size(1) == 1:
        labels = labels[:, 0]
    if separator is None:
        return Batch(input_ids, mask, labels)
    ends = (input_ids == separator).long() * mask
    types = ((ends.cumsum(dim=1) - ends) > 0).long() * mask
    return Batch(input_ids, mask, labels, token_type_ids=types)


def bucketed(examples: Sequence[Example], batch_tokens: int, order: random.Random | None = None) -> list[list[int]]:
    """Indices of the examples in batches of about ``batch_tokens`` source and target tokens.

    A batch is as large as its number of examples times the tokens of its longest example, source and target together.
    Sources and targets are padded each to their own longest, so the padded tokens can be more than that.

    ``order`` shuffles the examples before they are put into buckets; None keeps them sorted by length.
    """
    sources, targets = example_lengths(examples)
    indices = array("q", range(len(examples)))
    if order is not None:
        order.shuffle(indices)
    bucket = BUCKET if order is not None else max(len(indices), 1)
    batches: list[list[int]] = []
    for start in range(0, len(indices), bucket):
        chunk = sorted(indices[start : start + bucket], key=lambda i: (sources[i], targets[i]))
        batch: list[int] = []
        longest = 0
        for i in chunk:
            size = max(longest, sources[i] + targets[i])
            if batch and size * (len(batch) + 1) > batch_tokens:
                batches.append(batch)
                batch, size = [], sources[i] + targets[i]
            batch.append(i)
            longest = size
        if batch:
            batches.append(batch)
    return batches


def steps(
    examples: Sequence[Example] | Mixture,
    training: S.Training,
    noise: Callable[[Example, random.Random], Example] | None = None,
) -> Iterator[list[list[Example]]]:
    """Endless training steps, each of ``micro_batches`` batches of like length.

    The order depends on the seed and the epoch alone, not on how many processes share a step.

    ``noise`` changes each example anew in every epoch (text infilling).
    """
    epoch = 0
    while True:
        order = random.Random(f"{training.seed} {epoch}")
        chosen = examples.of_pass(training.seed, epoch) if isinstance(examples, Mixture) else examples
        batches = bucketed(chosen, training.batch_tokens // training.micro_batches, order)
        group = min(training.micro_batches, len(batches))
        groups = [batches[i : i + group] for i in range(0, len(batches) - group + 1, group)]
        order.shuffle(groups)
        for step in groups:
            picked = [[chosen[i] for i in batch] for batch in step]
            if noise is not None:
                picked = [[noise(example, order) for example in batch] for batch in picked]
            yield picked
        epoch += 1


def windows(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, length: int) -> list[Example]:
    """Texts for pre-training: source and target in one, cut into windows of at most ``length`` tokens."""
    texts = [f"{row['source']} {row['target']}"[:LONGEST_TEXT] for row in rows]
    cut, end = [], tokenizer.eos_token_id
    for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
        cut += [ids[start : start + length] for start in range(0, len(ids), length)]
    shortest = min(SHORTEST, length)
    return [Example([*window, end], [*window, end]) for window in cut if len(window) >= shortest]


def infill(example: Example, order: random.Random, pretraining: S.Pretraining, mask: int = MASK_ID) -> Example:
    """Text infilling (BART, arXiv:1910.13461, section 2.2): each masked span becomes one ``<mask>``.

    Span lengths are geometric with mean ``mean_span`` (BART draws them from a Poisson distribution), until
    ``mask_ratio`` of the tokens is covered. The target is the whole text. ``mask`` is the id of ``<mask>``.
    """
    tokens = example.source[:-1]
    masked = [False] * len(tokens)
    wanted = pretraining.mask_ratio * len(tokens)
    covered = 0
    while covered < wanted:
        length = min(1 + int(order.expovariate(1 / max(pretraining.mean_span - 0.5, 0.5))), len(tokens))
        start = order.randrange(len(tokens) - length + 1)
        for i in range(start, start + length):
            covered += not masked[i]
            masked[i] = True
    source = [
        mask if masked[i] else token for i, token in enumerate(tokens) if not (masked[i] and i > 0 and masked[i - 1])
    ]
    return Example([*source, example.source[-1]], example.target, example.start)


def padded(rows: Sequence[list[int]], value: int) -> Tensor:
    """Rows of ids as one tensor, (rows, longest), with ``value`` behind those that are shorter."""
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])
