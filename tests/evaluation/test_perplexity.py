"""Perplexity with a stride, and the 5-gram beside it."""

import math
import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from nltk.lm import KneserNeyInterpolated
from nltk.lm.preprocessing import padded_everygram_pipeline
from nltk.lm.vocabulary import Vocabulary

from dqlib.study.corpora.tokenizer import train_tokenizer
from dqlib.study.evaluation.ngrams import KneserNey
from dqlib.study.evaluation.perplexity import document_losses, metrics, perplexity_scores, windows
from dqlib.study.params.model import Model
from dqlib.study.training.language_modelling import new_model, stream

TEXTS = ["a garden has many plants and a pump", "plants of the garden are watered", "the pump", "a"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 3, 300, 64)


@pytest.mark.parametrize(("length", "stride"), [(8, 4), (8, 8), (6, 3), (64, 32), (5, 2)])
def test_each_token_counts_once_after_at_least_a_stride_of_text(tokenizer, length, stride):
    rows = [{"source": text} for text in TEXTS]
    found = windows(rows, tokenizer, length, stride)
    for number, row in enumerate(rows):
        text = tokenizer(row["source"], add_special_tokens=False)["input_ids"]
        counted = [t for w in found if w.document == number for t in w.example.target[-w.new :]]
        assert counted == text
        for window in [w for w in found if w.document == number][1:]:
            assert len(window.example.source) - window.new >= length - stride - (length - len(window.example.source))
            assert len(window.example.source) <= length
    assert all(w.example.source[1:] == w.example.target[:-1] for w in found)
    assert found[0].example.source[0] == tokenizer.eos_token_id


def test_perplexity_of_one_window_is_that_of_the_model(tokenizer):
    torch.manual_seed(0)
    model = new_model(Model(16, 0, 1, 2, 24, 64, init_std=0.2), len(tokenizer)).eval()
    ids = torch.tensor([stream(TEXTS[0], tokenizer)[:-1]])
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
    (window,) = windows([{"source": TEXTS[0]}], tokenizer, 64, 32)
    with torch.no_grad():
        logits = model(torch.tensor([window.example.source])).logits[0]
    nats = torch.nn.functional.cross_entropy(logits, torch.tensor(window.example.target), reduction="sum").item()
    found = metrics(np.array([[nats, window.new, len(TEXTS[0].encode())]]))
    assert found["perplexity"][0] == pytest.approx(math.exp(loss), rel=1e-5)
    assert found["bits_per_byte"][0] == pytest.approx(nats / math.log(2) / len(TEXTS[0]))


@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_document_of_one_token_is_measured_alone_as_among_others(tokenizer, size):
    torch.manual_seed(0)
    model = new_model(Model(16, 0, 1, 2, 24, 64, init_std=0.2), len(tokenizer))
    rows = [{"source": text} for text in ("a", "a", TEXTS[0])]
    found = document_losses(model, rows, tokenizer, 64, size, Accelerator(cpu=True), "")
    assert found[:2, 1].tolist() == [1, 1]
    with torch.no_grad():
        start, token = stream("a", tokenizer)[:-1]
        nats = -model(torch.tensor([[start]])).logits[0, 0].log_softmax(-1)[token].item()
    assert found[:2, 0] == pytest.approx([nats, nats], rel=1e-5)


def test_documents_count_by_their_tokens():
    rows = [{"source": "x", "name": str(i), "test_set": "test"} for i in range(6)]
    measured = np.array([[2.0 * n, n, 4 * n] for n in (1, 2, 3, 4, 5, 100)], dtype=float)
    scores, lines = perplexity_scores(rows, measured, 500, "stated")
    assert scores.means["perplexity"] == pytest.approx(math.exp(2))
    assert scores.means["bits_per_byte"] == pytest.approx(0.5 / math.log(2))
    assert scores.low == pytest.approx(scores.high) == pytest.approx(math.exp(2))  # all documents are alike
    assert lines[5]["tokens"] == 100


def sentences(count, seed):
    """Token ids from 1 to 9 that follow each other by a simple rule, more or less."""
    order = random.Random(seed)
    made = []
    for _ in range(count):
        ids = [order.randrange(1, 10)]
        while len(ids) < 12:
            ids.append(1 + (ids[-1] * 2 + order.choice((0, 0, 0, 1, order.randrange(9)))) % 9)
        made.append(ids)
    return made


@pytest.mark.parametrize("order", [2, 3, 4])
def test_kneser_ney_is_that_of_nltk(order):
    train, (tested,) = sentences(60, 0), sentences(1, 1)
    # nltk interpolates unigrams with nothing, and has one discount for all orders above
    ours = KneserNey.of(([0] * (order - 1) + ids for ids in train), order, 10, discounts=[0.0] + [0.1] * (order - 1))
    theirs = KneserNeyInterpolated(order, discount=0.1, vocabulary=Vocabulary(map(str, range(10)), unk_cutoff=1))
    grams, _ = padded_everygram_pipeline(order, [list(map(str, ids)) for ids in train])
    theirs.fit([(each for each in sentence if "</s>" not in each) for sentence in grams])
    found = ours.probabilities(np.array(tested))
    expected = [
        theirs.score(str(tested[i]), [str(token) for token in tested[i - order + 1 : i]])
        for i in range(order - 1, len(tested))
    ]
    assert found == pytest.approx(expected, rel=1e-6)


def test_probabilities_of_all_next_tokens_sum_to_one():
    model = KneserNey.of(([0, 0, 0, 0, *ids] for ids in sentences(40, 0)), 5, 12)
    for context in ([1, 2, 3, 4], [0, 0, 0, 0], [11, 11, 11, 11], [5, 11, 3, 7]):
        total = sum(model.probabilities(np.array([*context, token]))[0] for token in range(12))
        assert total == pytest.approx(1)
    assert all(0 < order.discount < 1 for order in model.orders)


def test_longer_contexts_predict_better_what_has_them():
    train, test = sentences(300, 0), sentences(40, 1)
    nats = {}
    for order in (1, 2):
        model = KneserNey.of(([0] * (order - 1) + ids for ids in train), order, 10)
        nats[order] = -np.mean([np.log(model.probabilities(np.array([0] * (order - 1) + ids))).mean() for ids in test])
    assert nats[2] < nats[1] - 0.2
