"""What the teacher wrote beside references: shares are exact, and the seed alone decides who gets what."""

import itertools
from array import array
from collections import Counter

import pytest

from dqlib.errors import InputError
from dqlib.presets import Recipe
from dqlib.study.params import settings as S
from dqlib.study.training.batches import bucketed, steps
from dqlib.study.training.examples import Example, Picked, example_lengths
from dqlib.study.training.mixture import Mixture

REFERENCE, TEACHER, TEXT = 50, 60, 70
TRAINING = S.Training(steps=10, learning_rate=1e-3, batch_tokens=120, seed=3)


def examples(kind, count):
    """As many, each with a source of its own and a target that says its kind."""
    return [Example([5 + i, *[9] * (i % 7), 2], [kind] * (1 + i % 3) + [2]) for i in range(count)]


def mixture(pairs=40, labelled=40, texts=30, **shares):
    return Mixture(examples(REFERENCE, pairs), examples(TEACHER, labelled), examples(TEXT, texts), Recipe(**shares))


def kinds(picked):
    return Counter(example.target[0] for example in picked)


def test_picked_examples_are_read_as_a_list_is():
    parts = examples(REFERENCE, 5), [], examples(TEXT, 4)
    picked = Picked(parts, array("q", [8, 0, 4, 5]))
    wanted = [parts[2][3], parts[0][0], parts[0][4], parts[2][0]]
    assert list(picked) == wanted == picked[:]
    assert picked[-1] == wanted[-1]
    assert [list(each) for each in example_lengths(picked)] == [list(each) for each in example_lengths(wanted)]
    assert bucketed(picked, 30) == bucketed(wanted, 30)


def test_the_teacher_s_targets_are_drawn_anew_in_every_pass():
    mixed = mixture(teacher_targets=0.5)
    passes = [list(mixed.of_pass(1, number)) for number in range(3)]
    assert [kinds(each) for each in passes] == 3 * [{REFERENCE: 20, TEACHER: 20}]
    assert all([example.source for example in each] == [e.source for e in mixed.references] for each in passes)
    assert passes[0] != passes[1] != passes[2]
    assert list(mixed.of_pass(1, 2)) == passes[2]  # asked for alone, as after a resume
    assert list(mixed.of_pass(2, 0)) != passes[0]


def test_texts_are_their_share_and_each_is_taken_before_one_is_taken_again():
    mixed = mixture(labelled_text=0.2)
    passes = [list(mixed.of_pass(1, number)) for number in range(6)]
    assert [kinds(each) for each in passes] == 6 * [{REFERENCE: 40, TEXT: 10}]
    texts = [tuple(e.source) for each in passes for e in each if e.target[0] == TEXT]
    assert len(set(texts[:30])) == len(set(texts[30:])) == 30
    assert texts[:30] != texts[30:]


@pytest.mark.parametrize(
    ("parts", "shares", "found"),
    [
        ({}, {"teacher_targets": 1.0}, {TEACHER: 40}),
        ({}, {"labelled_text": 1.0, "teacher_targets": 1.0}, {TEXT: 30}),  # nothing but texts
        # the texts all once, and ten of them again
        ({"labelled": 30}, {"labelled_text": 0.5, "teacher_targets": 0.25}, {REFERENCE: 30, TEACHER: 10, TEXT: 40}),
    ],
)
def test_shares_go_together(parts, shares, found):
    assert kinds(mixture(**parts, **shares).of_pass(1, 0)) == found


def test_fewer_labels_than_are_asked_for_are_refused():
    with pytest.raises(InputError, match=r"teacher_targets: 0\.8 .* at most 0\.7500, the share of pairs"):
        mixture(labelled=30, teacher_targets=0.8)
    with pytest.raises(InputError, match=r"labelled_text: 0\.5 .* 0, since"):
        mixture(texts=0, labelled_text=0.5)


def test_steps_of_a_mixture_are_the_same_whoever_takes_them_up_and_of_references_alone_those_of_a_list():
    def taken(data, *places):
        return list(itertools.islice(steps(data, TRAINING), *places))

    shares = {"teacher_targets": 0.5, "labelled_text": 0.5}
    assert taken(mixture(**shares), 40) == taken(mixture(**shares), 40)
    assert taken(mixture(**shares), 40)[25:] == taken(mixture(**shares), 25, 40)
    assert len(kinds(example for step in taken(mixture(**shares), 40) for batch in step for example in batch)) == 3
    assert taken(mixture(), 30) == taken(examples(REFERENCE, 40), 30)
