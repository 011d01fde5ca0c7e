"""One rule of what is stale: the core, corpora, training and evaluation decide a number, and nothing else does."""

import shutil

import pytest
import yaml

from dqlib.study.params import identity
from dqlib.study.params import settings as S
from dqlib.study.params.identity import LABELLING, PACKAGE, ROOMS, code_hash, write_hashes
from tests.helpers import rooms
from tests.helpers.rooms import ARROWS, DECIDING, room_of

STAGES = {
    name: stage.get("do", stage)
    for name, stage in yaml.safe_load((PACKAGE.parent / "dvc.yaml").read_text())["stages"].items()
}

#: The room that a stage runs which makes a corpus or a model; all others make pages.
MAKERS = {
    "corpus": "corpora",
    "corpus-shared": "corpora",
    "pretrain": "training",
    "teacher": "evaluation",
    "pseudo-labels": "labelling",
    "students": "evaluation",
    "benchmark": "evaluation",
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the code."""
    return shutil.copytree(PACKAGE, tmp_path_factory.mktemp("code") / "dqlib", ignore=shutil.ignore_patterns("*.pyc"))


def before(room):
    """The rooms that decide a number of what a room makes, by the arrows between rooms."""
    deciding = DECIDING | rooms.LABELLING if room == LABELLING else DECIDING
    new, found = {room}, set()
    while new - found:
        found |= new
        new = {other for each in found for other in ARROWS[each]} & deciding
    return found


def test_code_has_another_hash_after_a_change_of_what_decides_a_number_and_of_nothing_else(package):
    hash_of_code = code_hash.__wrapped__
    hashes = {room: hash_of_code(package, room) for room in (*ROOMS, LABELLING)}
    assert hashes["evaluation"] == hash_of_code(package)
    one_of_each_folder = {file.parent: file for file in sorted(package.rglob("*.py"))}
    for file in one_of_each_folder.values():
        text, changed = file.read_bytes(), room_of(file.relative_to(package))
        file.write_bytes(text + b"# other\n")
        for room, code in hashes.items():
            assert (hash_of_code(package, room) != code) == (changed in before(room)), (file, room)
        file.write_bytes(text)
    assert {room: hash_of_code(package, room) for room in hashes} == hashes
    assert before(ROOMS[-1]) == DECIDING
    assert before(LABELLING) == DECIDING | rooms.LABELLING


def test_a_module_that_moves_is_other_code(package):
    code = code_hash.__wrapped__(package, "corpora")
    shutil.move(package / "languages.py", package / "storage" / "languages.py")
    assert code_hash.__wrapped__(package, "corpora") != code
    shutil.move(package / "storage" / "languages.py", package / "languages.py")


def test_what_makes_a_model_depends_on_the_room_that_it_runs_and_every_other_stage_on_all_code():
    for name, stage in STAGES.items():
        code = [path for path in stage["deps"] if path.startswith(("dqlib", "runs/code"))]
        assert code == [f"runs/code/{MAKERS[name]}.sha256"] if name in MAKERS else "dqlib" in code, name
    assert STAGES["code"]["outs"] == [f"runs/code/{room}.sha256" for room in (*ROOMS, LABELLING)]


def test_stages_depend_on_the_code_of_their_room_and_on_values_that_parameters_leave_out(tmp_path, monkeypatch):
    def written():
        write_hashes(tmp_path)
        return {path.stem: path.read_text() for path in tmp_path.iterdir()}

    monkeypatch.setattr(identity, "code_hash", lambda package, room: f"code up to {room}")
    hashes = written()
    assert set(hashes) == {*ROOMS, LABELLING}
    assert len(set(hashes.values())) == len(hashes)
    assert written() == hashes
    monkeypatch.setattr(S.Finetuning.__dataclass_fields__["label_smoothing"], "default", 0.2)
    assert all(written()[room] != hashes[room] for room in hashes)
