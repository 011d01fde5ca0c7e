"""Fixtures that the tests share: a tiny teacher, a batch, a study that is made once."""

from __future__ import annotations

import os
import shutil

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the study does; read when torch is imported

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, MBartConfig, MBartForConditionalGeneration

from dqlib.study.training.batches import Batch, Example, collate
from tests.helpers.models import TINY
from tests.helpers.projects import write_small_study

if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core: more threads each would only be in each other's way
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start

#: Files whose tests take minutes. Several processes begin with them, so that at the end none is left to one alone.
SLOW = ("test_pipeline", "test_paper", "test_resume", "test_benchmarks", "test_benchmark", "test_faults")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; all else stays in order."""
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))


@pytest.fixture
def teacher(request):
    """A random encoder-decoder with 4 encoder and 3 decoder layers: mBART, or as the test is marked."""
    torch.manual_seed(0)
    config, model = {
        "mbart": (MBartConfig, MBartForConditionalGeneration),
        "bart": (BartConfig, BartForConditionalGeneration),
    }[getattr(request, "param", "mbart")]
    return model(config(**TINY, encoder_layers=4, decoder_layers=3)).eval()


@pytest.fixture
def batch() -> Batch:
    """Three examples of different lengths."""
    return collate(
        [
            Example([10, 11, 12, 13, 14, 15, 2], [20, 21, 22, 2]),
            Example([30, 31, 32, 2], [33, 2]),
            Example([40, 41, 42, 43, 44, 2], [45, 46, 47, 48, 49, 2]),
        ]
    )


@pytest.fixture(scope="session", autouse=True)
def _fewer_steps_of_simpler_methods():
    """Logistic regression on words in few of its steps, which are enough for texts like these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dqlib.study.evaluation.words.STEPS", 80)
        yield


@pytest.fixture(scope="session")
def _made_study(tmp_path_factory):
    from dqlib.study.pipeline.study import Study

    folder = tmp_path_factory.mktemp("study")
    write_small_study(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Study("small.yaml").teacher()
    return folder


@pytest.fixture
def made_study(_made_study, tmp_path, monkeypatch):
    """A folder of its own with corpus and teacher of that study, which is the current one."""
    folder = tmp_path / "study"
    shutil.copytree(_made_study, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def study_in_a_copy(made_study):
    """The study of that folder."""
    from dqlib.study.pipeline.study import Study

    return Study("small.yaml")
