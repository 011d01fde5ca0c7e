"""Metrics of classes, and what simpler methods reach."""

import random
import tracemalloc

import numpy as np
import pytest
from nltk.metrics import ConfusionMatrix, accuracy

from dqlib.study.evaluation.classification import class_details, class_scores, metrics
from dqlib.study.evaluation.words import by_overlap, by_words, overlap


def confusion(truth, predicted, classes):
    table = np.zeros((1, classes, classes))
    for pair in zip(truth, predicted, strict=True):
        table[0][pair] += 1
    return table


@pytest.mark.parametrize("seed", range(3))
def test_accuracy_and_f1_are_those_of_nltk(seed):
    order = np.random.default_rng(seed)
    truth, predicted = order.integers(0, 4, (2, 200))
    found = metrics(confusion(truth, predicted, 5))  # one class never occurs
    table = ConfusionMatrix(truth.tolist(), predicted.tolist())
    assert found["accuracy"][0] == pytest.approx(100 * accuracy(truth.tolist(), predicted.tolist()))
    assert found["f1"][0] == pytest.approx(100 * np.mean([table.f_measure(value) for value in range(4)]))


def test_the_correlation_is_that_of_indicators_for_two_classes():
    order = np.random.default_rng(0)
    truth = order.integers(0, 2, 300)
    predicted = np.where(order.random(300) < 0.7, truth, 1 - truth)
    assert metrics(confusion(truth, predicted, 2))["mcc"][0] == pytest.approx(100 * np.corrcoef(truth, predicted)[0, 1])


def test_one_class_for_all_texts_has_no_correlation():
    found = metrics(confusion([0, 0, 1, 0], [0, 0, 0, 0], 2))
    assert found["accuracy"][0] == 75
    assert found["mcc"][0] == 0
    assert found["f1"][0] == pytest.approx(100 * (6 / 7 + 0) / 2)


def test_the_interval_is_that_of_resampled_texts():
    truth = np.zeros(400, dtype=int)
    predicted = np.array([0] * 300 + [1] * 100)
    accuracy_ = class_details(truth, predicted, ["0", "1"], 2000)[0]
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5 * 100
    assert (accuracy_.value, accuracy_.metric) == (75, "accuracy")
    assert accuracy_.low == pytest.approx(75 - half, abs=0.5)
    assert accuracy_.high == pytest.approx(75 + half, abs=0.5)


def test_the_memory_for_many_classes_is_that_of_the_cells_that_texts_are_in():
    truth, predicted = np.random.default_rng(0).integers(0, 100, (2, 50))
    tracemalloc.start()
    found = class_details(truth, predicted, [str(i) for i in range(100)], 20)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**25  # a square of 100 x 100 cells by as many has 800 MB
    expected = metrics(confusion(truth, predicted, 100))
    assert {each.metric: each.value for each in found} == {name: values[0] for name, values in expected.items()}


def test_each_text_has_a_line_whose_mean_is_the_headline():
    rows = [{"source": "a", "second": "b", "target": label, "test_set": "test"} for label in ("no", "yes", "no")]
    rows.append({"source": "c", "target": "yes", "test_set": "test_unseen"})
    chances = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.1, 0.9]])
    scores, lines = class_scores(rows, chances, ["no", "yes"], 100)
    judged = [line["accuracy"] for line in lines if "test_set" not in line]
    assert scores.means["accuracy"] == pytest.approx(np.mean(judged)) == pytest.approx(200 / 3)
    assert scores.n_test == 3
    assert lines[1] == {
        "source": "a", "second": "b", "reference": "yes", "prediction": "no", "probability": 0.8, "accuracy": 0.0
    }  # fmt: skip
    assert {each.test_set for each in scores.details} == {"test", "test_unseen"}


def pairs(count, seed):
    """Pairs that match where they share most of their words."""
    order = random.Random(seed)
    rows = []
    for number in range(count):
        one = [f"w{order.randrange(40)}" for _ in range(6)]
        other = [*one[:5], f"w{order.randrange(40)}"] if number % 2 else [f"w{order.randrange(40)}" for _ in range(6)]
        rows.append({"source": " ".join(one), "second": " ".join(other), "target": str(number % 2)})
    return rows


def test_words_in_common_tell_pairs_apart():
    train, test = pairs(400, 0), pairs(100, 1)
    truth = {"train": np.arange(400) % 2, "test": np.arange(100) % 2, "validation": np.arange(100) % 2}
    assert overlap([{"source": "a b", "second": "B c"}]).tolist() == [0.5]
    assert (by_overlap(train, truth["train"], test) == truth["test"]).mean() > 0.9
    rows = {"train": train, "validation": pairs(100, 2), "test": test}
    found = by_words(rows, truth, 2)
    assert (found == truth["test"]).mean() > 0.9
    assert (by_words(rows, truth, 2) == found).all()


def test_a_word_that_a_class_alone_has_tells_it():
    rows = [{"source": f"the text {i % 9} of {'abc'[i % 3]}{i % 2}", "target": "abc"[i % 3]} for i in range(300)]
    truth = np.arange(300) % 3
    truths = dict.fromkeys(("train", "validation"), truth)
    found = by_words(dict.fromkeys(("train", "validation", "test"), rows), truths, 3)
    assert (found == truth).mean() > 0.95
