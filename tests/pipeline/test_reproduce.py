"""One command runs any profile: by DVC where its stages are for it, part by part elsewhere."""

import pytest
import yaml

from dqlib.study.__main__ import main
from dqlib.study.params.settings import load_settings, profile_path
from dqlib.study.pipeline import notebook, reproduce, students
from dqlib.study.pipeline.study import Study
from dqlib.study.process.exit_codes import INTERRUPTED
from dqlib.study.report import pages


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of its own with the profile smoke, and ``one``, which has one task."""
    smoke = yaml.safe_load(profile_path("smoke").read_text())
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "profiles").mkdir()
    one = {key: smoke[key] for key in ("results", "compute", "translation")} | {"profile": "one"}
    for name, profile in (("smoke", smoke), ("one", one)):
        (tmp_path / "profiles" / f"{name}.yaml").write_text(yaml.safe_dump(profile))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_profile_that_the_pipeline_has_no_stages_for_runs_without_it(project, monkeypatch):
    done = []
    monkeypatch.setattr(Study, "corpus", lambda study: done.append(f"corpus {study.name}"))
    monkeypatch.setattr(
        notebook, "run_notebook", lambda name, params, task=None: done.append(f"{name} {params} {task}")
    )
    monkeypatch.setattr(students, "run_students", lambda study: done.append(f"students {study.name}"))
    monkeypatch.setattr(pages, "print_summary", lambda params: done.append(f"summary {params}"))
    assert main(["profile", "one", "--run"]) == 0
    assert done == [
        "corpus translation",
        "teacher one translation",
        "students translation",
        "translation one translation",
        "compare one None",
        "summary one",
    ]
    assert not (project / "params.yaml").exists()

    def interrupted(study):
        raise KeyboardInterrupt

    monkeypatch.setattr(students, "run_students", interrupted)
    assert main(["profile", "one", "--run"]) == INTERRUPTED


def test_a_profile_of_the_pipeline_is_run_by_dvc(project, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(reproduce.subprocess, "call", lambda command: called.append(command) or 0)
    monkeypatch.setattr(pages, "print_summary", lambda params: print("tables of", params))
    assert main(["profile", "smoke", "--run"]) == 0
    assert called == [["dvc", "repro", "compare"]]
    assert load_settings("params.yaml").profile == "smoke"
    assert capsys.readouterr().out.endswith("tables of params.yaml\n")
    monkeypatch.setattr(reproduce.subprocess, "call", lambda command: 1)
    assert main(["profile", "smoke", "--run"]) == 2
