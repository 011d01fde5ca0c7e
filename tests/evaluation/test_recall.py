import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqlib.study.evaluation.recall import Recall, by_length, by_position, read_recall, recalled, words

texts = st.lists(st.sampled_from("abcd"), max_size=9)


def longest(a, b):
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return longest(a[:-1], b[:-1]) + 1
    return max(longest(a[:-1], b), longest(a, b[:-1]))


def is_subsequence(some, whole):
    rest = iter(whole)
    return all(word in rest for word in some)


@settings(deadline=None, max_examples=60)
@given(texts, texts)
def test_the_words_recalled_are_a_longest_common_subsequence(reference, prediction):
    on_it = recalled(reference, prediction)
    picked = [word for word, here in zip(reference, on_it, strict=True) if here]
    assert len(picked) == longest(tuple(reference), tuple(prediction))
    assert is_subsequence(picked, prediction)


def test_a_text_is_its_words_in_lower_case():
    assert words("It's 5 o'clock.") == ["it", "s", "5", "o", "clock"]


def write(folder, pairs):
    folder.mkdir()
    lines = [json.dumps({"reference": r, "prediction": p}) for r, p in pairs]
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    return read_recall(folder)


def test_what_is_lost_at_the_end_shows_there(tmp_path):
    reference = "a b c d e f g h i j"
    teacher = write(tmp_path / "teacher", [(reference, reference)] * 20)
    student = write(tmp_path / "student", [(reference, "a b c d e f")] * 10 + [(reference, "a b c d e f g")] * 10)
    table = by_position(student, teacher)
    assert table.recall.tolist() == [100, 100, 100, 25, 0]
    assert (table.recall_of_teacher == 100).all()
    assert (teacher.halves - student.halves).mean(axis=0).tolist() == [0, 0.875]


def test_a_short_reference_counts_where_it_has_words(tmp_path):
    both = write(tmp_path / "a", [("a", "a"), ("a b c d e", "a b c d x")])
    assert both.sizes.sum() == 6
    assert np.isnan(both.halves[0]).any()
    assert by_position(both, both).words.tolist() == [2, 1, 1, 1, 1]


def test_a_second_test_set_is_left_out_and_one_language_is_read_or_all(tmp_path):
    kinds = [("ro", "test"), ("de", "test"), ("ro", "test_unseen"), ("ro", "test"), ("fr", "test")]
    lines = [{"reference": "a b", "prediction": "a", "language": code, "test_set": name} for code, name in kinds]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(read_recall(tmp_path, "ro").sizes) == 2
    assert len(read_recall(tmp_path).sizes) == 4


def test_references_are_grouped_by_length(tmp_path):
    pairs = [(" ".join("a" * n), " ".join("a" * min(n, 4))) for n in range(1, 9)]
    table = by_length(*[write(tmp_path / "a", pairs)] * 2)
    assert table.longest.tolist() == [2, 4, 6, 8]
    assert table.recall.tolist() == pytest.approx([100, 100, 800 / 11, 800 / 15])
    assert isinstance(read_recall(tmp_path / "a"), Recall)
    assert by_length(*[write(tmp_path / "b", pairs[:3])] * 2).longest.tolist() == [1, 2, 3]
