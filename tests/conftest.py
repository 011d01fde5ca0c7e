"""Tiny models and corpora that the tests share."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the study does; read when torch is imported

import pytest
import torch
import yaml
from transformers import BartConfig, BartForConditionalGeneration, MBartConfig, MBartForConditionalGeneration

from dqlib.study.training.batches import Batch, Example, collate

if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core: more threads each would only be in each other's way
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start

TINY = {
    "vocab_size": 96, "d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40, "init_std": 0.2, "dropout": 0.0,
    "scale_embedding": True, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}  # fmt: skip


#: Files whose tests take minutes. Several processes begin with them, so that at the end none is left to one alone.
SLOW = ("test_pipeline", "test_paper", "test_resume", "test_benchmarks", "test_benchmark", "test_faults")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; all else stays in order."""
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))


@cache
def committed(project: Path = Path(__file__).parent.parent) -> Path:
    """A copy of the project as it is in git's index, without what a user's runs, profiles and notebooks have changed.

    The project itself where it is in no repository.
    """
    folder = Path(tempfile.mkdtemp(prefix="dqlib-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    subprocess.run(["git", "checkout-index", "--all", f"--prefix={folder}/"], check=False, cwd=project)
    return folder if (folder / "dvc.yaml").is_file() else project


#: For a test that the place of norms matters to: mBART's come before the layers' parts, BART's after them.
BOTH = pytest.mark.parametrize("teacher", ["mbart", "bart"], indirect=True)


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


def write_small_study(folder: Path) -> None:
    """Make a folder a project of its own: the tutorial study with a shrunken corpus and trainings of a few steps."""
    from dqlib.study.params.paths import project_root

    root = project_root()
    (folder / "dvc.yaml").touch()
    (folder / "profiles").mkdir()
    params = yaml.safe_load((root / "profiles" / "tutorial.yaml").read_text())
    task = params["summarization"]
    task["corpus"] |= {"packages": ["datasets", "huggingface_hub"], "limit": 800}  # the standard library takes seconds
    task["pretrain"]["steps"] = task["finetune"]["steps"] = 4
    task["methods"]["distill"]["steps"], task["methods"]["longer_steps"] = 3, [5]
    task["methods"]["evaluate"]["documents"] = 12  # fewer than the teacher's
    task["methods"] |= {"presets": ["dq-bart-faithful", "dqlib"], "ablations": ["dqlib-fixed-scales"]}
    (folder / "small.yaml").write_text(yaml.safe_dump(params))


@pytest.fixture(scope="session", autouse=True)
def _fewer_steps_of_simpler_methods():
    """Logistic regression on words in a tenth of its steps, which are enough for texts like these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dqlib.study.evaluation.words.STEPS", 200)
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
