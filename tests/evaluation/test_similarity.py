"""Similarity of tokens: known answers, and no influence of padding."""

import pytest
import torch

from dqlib.study.evaluation.similarity import _mean_cosine, similarity
from dqlib.study.training.batches import Example, collate


def test_the_teacher_is_like_itself_and_padding_changes_nothing(teacher, batch):
    measured = similarity(teacher, teacher, batch)
    assert measured.matched.tolist() == [1, 1, 1]
    assert measured.divergence == pytest.approx(0, abs=1e-5)
    alone = similarity(teacher, teacher, collate([Example([30, 31, 32, 2], [33, 2])]))
    assert alone.decoder[0] == pytest.approx(measured.decoder[1], abs=1e-5)
    assert alone.encoder[0] == pytest.approx(measured.encoder[1], abs=1e-5)


def test_similarity_leaves_out_equal_tokens_and_padding():
    states = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    ids, mask = torch.tensor([[5, 5, 6, 0]]), torch.tensor([[True, True, True, False]])
    assert _mean_cosine(states, ids, mask).tolist() == [0.0]
