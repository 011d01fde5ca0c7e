import random
from dataclasses import replace

import pytest
import torch

from dqlib.errors import InputError
from dqlib.study.corpora.tokenizer import EOS_ID, MASK_ID, train_tokenizer
from dqlib.study.params import settings as S
from dqlib.study.training.batches import Example, bucketed, collate, encode, infill, steps

TRAINING = S.Training(steps=10, learning_rate=1e-3, batch_tokens=120)
PRETRAINING = S.Pretraining(steps=1, learning_rate=1e-3, batch_tokens=100)


def examples(count=200):
    order = random.Random(3)
    return [
        Example([*range(5, 5 + order.randrange(3, 30)), EOS_ID], [7] * order.randrange(1, 8) + [EOS_ID])
        for _ in range(count)
    ]


def test_every_example_is_in_one_batch_and_no_batch_is_too_large():
    data = examples()
    batches = bucketed(data, 120, random.Random(0))
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    for batch in batches:
        longest = max(len(data[i].source) + len(data[i].target) for i in batch)
        assert len(batch) * longest <= 120 or len(batch) == 1


def test_a_step_has_its_micro_batches_and_the_seed_decides_the_order():
    data = examples()

    def first(seed):
        stream = steps(data, replace(TRAINING, seed=seed))
        return [next(stream) for _ in range(30)]  # more than an epoch

    assert first(1) == first(1) != first(2)
    assert all(len(step) == TRAINING.micro_batches for step in first(1))


def test_a_corpus_smaller_than_a_step_still_trains():
    stream = steps(examples(1), TRAINING)
    assert len(next(stream)) == 1
    assert len(next(stream)) == 1


def test_padding_is_masked_and_the_decoder_starts_from_the_end_token():
    batch = collate([Example([5, 6, 2], [8, 2]), Example([5, 2], [8, 9, 2])])
    assert batch.input_ids.tolist() == [[5, 6, 2], [5, 2, 1]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.labels.tolist() == [[8, 2, -100], [8, 9, 2]]
    assert batch.decoder_input_ids.tolist() == [[2, 8, 1], [2, 8, 9]]
    assert torch.equal(batch.to(torch.device("cpu")).labels, batch.labels)


def test_infilling_hides_spans_and_keeps_the_rest_in_order():
    text = [*range(100, 160), EOS_ID]
    order = random.Random(0)
    for _ in range(50):
        masked = infill(Example(text, text), order, PRETRAINING)
        kept = [token for token in masked.source if token != MASK_ID]
        assert masked.target == text
        assert kept == [token for token in text if token in set(kept)]
        assert 0.25 * 60 <= 61 - len(kept) <= 0.6 * 60  # at least mask_ratio is hidden
        assert not any(a == b == MASK_ID for a, b in zip(masked.source, masked.source[1:], strict=False))


def test_a_decoder_starts_from_the_token_of_its_language():
    tokenizer = train_tokenizer(["one two three"], 300, 16, ["ro", "de"])
    corpus = S.Corpus("mine", "hub", 300, 8, 8, dataset="d", languages=["ro", "de"], language="to")
    rows = [{"source": "one", "target": "two", "language": code} for code in ("de", "ro")]
    encoded = encode(rows, tokenizer, corpus)
    batch = collate(encoded)
    assert batch.decoder_input_ids[:, 0].tolist() == [6, 5]
    assert batch.input_ids[:, -1].tolist() == [EOS_ID, EOS_ID]
    assert infill(Example([*range(20, 40), EOS_ID], [9], 6), random.Random(0), PRETRAINING).start == 6
    without = encode([{"source": "one", "target": "two"}], tokenizer, corpus)
    assert without == [Example(encoded[0].source, encoded[0].target)]
    assert collate(without).decoder_input_ids[0, 0] == EOS_ID
    with pytest.raises(InputError, match=r"language: 'fr' .* <fr>"):
        encode([{"source": "one", "target": "two", "language": "fr"}], tokenizer, corpus)
