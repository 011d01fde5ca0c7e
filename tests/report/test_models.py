"""Models that live in git: written from what was trained, and taken instead of training the same again."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from dqlib.cli import main as dqlib_main
from dqlib.errors import InputError
from dqlib.storage.manifest import verify
from dqlib.storage.packed import load_packed
from dqlib.storage.reading import read_model
from dqlib.storage.students import load_student
from dqlib.study.__main__ import main
from dqlib.study.params.settings import load_settings
from dqlib.study.pipeline.committed import committed_teacher
from dqlib.study.pipeline.study import Study
from dqlib.study.report import models
from tests.helpers.folders import contents
from tests.helpers.projects import committed, set_task


@pytest.fixture(scope="module")
def _written(_made_study, tmp_path_factory):
    folder = shutil.copytree(_made_study, tmp_path_factory.mktemp("models") / "study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        set_task(distill={"steps": 1}, configs=["2-2-8 1-1"], evaluate={"documents": 4}, methods=None)
        student = Study("small.yaml").student("2-2-8 1-1")
        assert main(["models", "--params", "small.yaml"]) == 0
    return folder, student.relative_to(folder)


@pytest.fixture
def written(_written, tmp_path, monkeypatch):
    """The folder of a study with its models, of which only that of summarization has a student."""
    shutil.copytree(_written[0], tmp_path / "study")
    monkeypatch.chdir(tmp_path / "study")
    return tmp_path / "study", tmp_path / "study" / _written[1]


def test_they_are_the_models_of_the_study_each_with_a_card_and_a_digest(written, capsys):
    folder, student = written
    assert sorted(path.name for path in (folder / "models").iterdir()) == [
        "README.md", "manifest.json", "summarization", "summarization-teacher"
    ]  # fmt: skip
    listed = json.loads((folder / "models" / "manifest.json").read_text())
    for name, about in listed.items():
        files = {path.name for path in (folder / "models" / name).iterdir()}
        assert set(about["files"]) == files >= {"README.md", "tokenizer.json"}
        assert not verify(folder / "models" / name)
    ours, theirs = load_packed(folder / "models" / "summarization"), load_student(student)
    ids = torch.arange(5, 15).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(*(each(input_ids=ids, decoder_input_ids=ids).logits for each in (ours, theirs)))
    (folder / "text").write_text("Return the sum of a list.\n")
    capsys.readouterr()
    assert dqlib_main(["generate", "models/summarization", "--input", "text"]) == 0
    assert json.loads(capsys.readouterr().out)["input"] == "Return the sum of a list."


def test_the_committed_teacher_is_taken_where_it_is_the_one_that_is_asked_for(written, capsys):
    study = Study("small.yaml")
    before = contents(study.folders.teacher)
    for made in (study.folders.teacher, study.folders.pretrained):
        shutil.rmtree(made)
    study.teacher()
    after = contents(study.folders.teacher)
    assert all(after[Path(name)] == before[Path(name)] for name in ("model.safetensors", "record.json"))
    assert not study.folders.pretrained.exists()  # nothing was trained
    assert "models/summarization-teacher" in capsys.readouterr().out

    set_task(finetune={"steps": 5})  # one more
    assert committed_teacher(load_settings("small.yaml"), "summarization") is None


def test_what_is_not_there_or_too_much_for_git_is_named_and_what_was_committed_stays(written, monkeypatch):
    folder, student = written
    before = contents(folder / "models")
    shutil.rmtree(student)
    assert models.write_models("small.yaml")[1] == ["summarization", "eli5", "translation", "topics", "language"]
    assert contents(folder / "models") == before
    monkeypatch.setattr(models, "MOST", 1000)
    with pytest.raises(InputError, match="at most 1,000"):
        models.write_models("small.yaml")
    assert contents(folder / "models") == before


def test_what_is_of_other_parameters_is_named_and_not_written(written, capsys):
    folder, student = written
    before = contents(folder / "models")
    set_task(distill={"steps": 2})
    assert main(["models", "--params", "small.yaml"]) == 0
    assert "students of other code or parameters are here of summarization" in capsys.readouterr().out
    assert contents(folder / "models") == before
    runs = contents(student.parents[1])
    set_task(finetune={"steps": 5})
    assert main(["models", "--params", "small.yaml"]) == 2
    assert "teacher' is not allowed; it must be one that is trained and tested with these" in capsys.readouterr().err
    assert contents(folder / "models") == before
    assert contents(student.parents[1]) == runs  # nothing was made


def test_the_committed_models_are_whole_and_small():
    folder = committed() / "models"
    if not folder.is_dir():
        pytest.skip("no models are committed yet")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= models.MOST
    listed = json.loads((folder / "manifest.json").read_text())
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(listed)
    for name, about in listed.items():
        assert not verify(folder / name)
        assert about["role"] in ("teacher", "student")
    assert read_model(folder / "summarization-teacher").dtype == torch.float16
