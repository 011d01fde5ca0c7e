"""Rows and examples that stay on disk are the same as those in memory."""

import json
import random

import pytest

from dqlib.study.corpora.rows import Rows
from dqlib.study.corpora.tokenizer import train_tokenizer
from dqlib.study.params import settings as S
from dqlib.study.training import examples as E
from dqlib.study.training.batches import bucketed, encode, steps, windows
from dqlib.study.training.examples import StoredExamples, example_lengths, stored_examples

CORPUS = S.Corpus("mine", "hub", 300, 24, 8, dataset="d", languages=["ro", "de"], language="to")


@pytest.fixture
def rows():
    order = random.Random(0)
    return [
        {
            "source": "wind \u2028 " + "stone " * order.randrange(1, 30),
            "target": "river " * order.randrange(1, 12),
            "language": order.choice(["ro", "de"]),
        }
        for _ in range(95)
    ]


@pytest.fixture
def made(rows, tmp_path, monkeypatch):
    """What makes examples of rows, in parts of 40 and batches of 7; and how often it was called."""
    monkeypatch.setattr(E, "PART", 40)
    monkeypatch.setattr(E, "BATCH", 7)
    tokenizer = train_tokenizer([row["source"] + row["target"] for row in rows], 300, 32, ["ro", "de"])
    calls = []

    def make(some):
        calls.append(len(some))
        return encode(some, tokenizer, CORPUS)

    return make, calls, tokenizer


def test_rows_of_a_file_are_those_that_were_written(rows, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    read = Rows(path)
    assert len(read) == 95
    assert read == rows
    assert rows == list(read)
    assert [read[i] for i in (0, 50, -1)] == [rows[i] for i in (0, 50, -1)]
    assert read[10:20] == rows[10:20]
    assert read[10:20][2:4] == rows[12:14]
    assert read[:None] == rows
    assert read[::-3] == rows[::-3]
    assert read != rows[1:]


def test_stored_examples_are_those_of_memory_in_the_same_order_of_batches(rows, made, tmp_path):
    make, calls, tokenizer = made
    ours, theirs = stored_examples(tmp_path / "tokens", rows, make), encode(rows, tokenizer, CORPUS)
    assert max(calls) == 7
    assert list(ours) == theirs
    assert (ours[-1], ours[3:5], len(ours)) == (theirs[-1], theirs[3:5], 95)
    assert all(type(each) is int for each in (*ours[0].source, *ours[0].target, ours[0].start))
    assert [list(each) for each in example_lengths(ours)] == [list(each) for each in example_lengths(theirs)]
    for orders in ((None, None), (random.Random(1), random.Random(1))):
        assert bucketed(ours, 90, orders[0]) == bucketed(theirs, 90, orders[1])
    training = S.Training(steps=1, learning_rate=1.0, batch_tokens=120)
    streams = [steps(each, training) for each in (ours, theirs)]
    assert all(next(streams[0]) == next(streams[1]) for _ in range(40))
    with pytest.raises(IndexError):
        ours[95]


def test_windows_may_be_more_or_fewer_than_rows(rows, made, tmp_path):
    *_, tokenizer = made
    rows[0:20] = [{"source": "", "target": ""}] * 20  # two batches without any
    ours = stored_examples(tmp_path / "tokens", rows, lambda some: windows(some, tokenizer, 8))
    assert list(ours) == windows(rows, tokenizer, 8)
    assert list(stored_examples(tmp_path / "none", rows[:20], lambda some: windows(some, tokenizer, 8))) == []


def test_a_stopped_tokenization_goes_on_and_a_damaged_part_is_made_anew(rows, made, tmp_path):
    make, calls, tokenizer = made
    folder = tmp_path / "tokens"

    def stopped(some):
        if len(calls) == 8:  # in the second part
            raise KeyboardInterrupt
        return make(some)

    with pytest.raises(KeyboardInterrupt):
        stored_examples(folder, rows, stopped)
    assert [path.name for path in folder.iterdir()] == ["00000.arrow"]
    calls.clear()
    whole = list(stored_examples(folder, rows, make))
    assert sum(calls) == 55
    assert whole == encode(rows, tokenizer, CORPUS)
    (folder / "00001.arrow").write_bytes((folder / "00001.arrow").read_bytes()[:-100])
    calls.clear()
    assert list(stored_examples(folder, rows, make)) == whole
    assert sum(calls) == 40
    calls.clear()
    assert isinstance(stored_examples(folder, rows, make), StoredExamples)
    assert calls == []
