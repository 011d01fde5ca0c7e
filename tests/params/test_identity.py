"""One rule of what is stale: the core, corpora, training and evaluation decide a number, and nothing else does."""

import shutil

import pytest
import yaml

from dqlib.study.params.identity import PACKAGE, code_hash, core_hash
from tests.helpers.rooms import ARROWS, DECIDING, room_of

STAGES = yaml.safe_load((PACKAGE.parent / "dvc.yaml").read_text())["stages"]

#: The room that a stage runs which makes a corpus or a model; all others make pages.
MAKERS = {
    "corpus": "corpora",
    "corpus-eli5": "corpora",
    "pretrain": "training",
    "teacher": "evaluation",
    "teacher-translation": "evaluation",
    "pseudo-labels": "evaluation",
    "students": "evaluation",
    "corpus-texts": "corpora",
    "pretrain-classifier": "training",
    "teacher-classifier": "evaluation",
    "teacher-language": "evaluation",
    "students-texts": "evaluation",
    "benchmark": "evaluation",
}

#: What a stage depends on, so that it is stale after a change of a room.
DEPENDENCIES = {room: f"dqlib/study/{room}" for room in DECIDING} | {"core": "runs/core.sha256"}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the code."""
    return shutil.copytree(PACKAGE, tmp_path_factory.mktemp("code") / "dqlib", ignore=shutil.ignore_patterns("*.pyc"))


def test_code_has_another_hash_after_a_change_of_what_decides_a_number_and_of_nothing_else(package):
    hash_of_code = code_hash.__wrapped__
    code, core = hash_of_code(package), core_hash(package)
    for file in sorted(package.rglob("*.py")):
        text, room = file.read_bytes(), room_of(file.relative_to(package))
        file.write_bytes(text + b"# other\n")
        assert (hash_of_code(package) != code) == (room in DECIDING), file
        assert (core_hash(package) != core) == (room == "core"), file
        file.write_bytes(text)
    assert hash_of_code(package) == code


def test_a_module_that_moves_is_other_code(package):
    core = core_hash(package)
    shutil.move(package / "languages.py", package / "storage" / "languages.py")
    assert core_hash(package) != core
    shutil.move(package / "storage" / "languages.py", package / "languages.py")


@pytest.mark.parametrize("stage", MAKERS)
def test_what_makes_a_model_depends_on_the_rooms_that_it_imports_and_on_no_other_code(stage):
    found, wanted = {MAKERS[stage]}, set()
    while found - wanted:
        wanted |= found
        found = {room for each in wanted for room in ARROWS[each]} & DECIDING
    code = {path for path in STAGES[stage]["deps"] if path.startswith(("dqlib", "runs/core"))}
    assert code == {DEPENDENCIES[room] for room in wanted}


def test_every_other_stage_depends_on_all_code():
    assert all("dqlib" in stage["deps"] for name, stage in STAGES.items() if name not in MAKERS)
    assert STAGES["core"]["outs"] == [DEPENDENCIES["core"]]
