"""What one clone has made, another has by a DVC remote, and makes it no second time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .test_pipeline import call, cloned, git

STAGE = "corpus-translation"


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A clone in which the stage has run."""
    target = cloned(tmp_path_factory.mktemp("first"))
    git(target, "add", "-A")
    git(target, "commit", "-qm", "code")
    call(target, "dvc", "repro", "-q", STAGE)
    return target


def test_a_second_clone_pulls_what_the_first_pushed_and_runs_nothing(first, tmp_path):
    remote, second = tmp_path / "remote", tmp_path / "second"
    call(first, "dvc", "remote", "add", "--default", "shared", str(remote))
    call(first, "dvc", "push", "-q", STAGE)
    git(first, "add", "-A")
    git(first, "commit", "-qm", "corpus")
    subprocess.run(["git", "clone", "-q", str(first), str(second)], check=True)
    corpus = Path("runs") / "smoke" / "translation" / "corpus"
    assert not (second / corpus).exists()
    call(second, "dvc", "pull", "-q", STAGE)
    files = sorted(path.relative_to(first / corpus) for path in (first / corpus).rglob("*") if path.is_file())
    assert files
    assert all((second / corpus / name).read_bytes() == (first / corpus / name).read_bytes() for name in files)
    said = call(second, "dvc", "repro", STAGE)
    assert "Running stage" not in said
    assert "up to date" in said


def test_experiments_are_queued_with_their_parameters(first):
    call(first, "dvc", "exp", "run", "--queue", "--name", "long", "-S", "summarization.distill.steps=900", STAGE)
    told = call(first, "dvc", "queue", "status")
    assert "Queued" in told
    assert "long" in told
    shown = call(first, "dvc", "exp", "show", "--json")
    assert "900" in json.dumps(json.loads(shown))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["dvc", "queue", "remove", "--queued"], check=True, cwd=first, env=environment)
