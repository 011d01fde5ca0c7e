"""The pipeline as a user runs it: `dvc repro` from a clone, at the smoke profile with trainings of a few steps."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pandas
import pytest
import yaml

from dqlib.study.evaluation.records import columns_of
from dqlib.study.params.paths import project_root

pytestmark = pytest.mark.slow

TASKS = ["summarization", "eli5", "translation", "matching", "topics", "language"]

#: What a stage reads of the project.
TRACKED = (
    *("dqlib", "notebooks", "presets", "profiles", ".dvc"),
    *(".dvcignore", "dvc.yaml", "dvc.lock", "requirements.lock", ".gitignore"),
)


def call(clone: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(clone), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("OMP_NUM_THREADS", None)  # as many as made what is pulled: sums of other threads are not the same
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=clone, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def git(clone: Path, *command: str) -> str:
    return call(clone, "git", "-c", "user.name=test", "-c", "user.email=test@example.org", *command)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A repository with the project as it is here, after the default study at the smoke profile.

    What the project itself has made of it is not made again.
    """
    target = tmp_path_factory.mktemp("clone")
    for name in TRACKED:
        source = project_root() / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", "cache", "tmp"))
        else:
            shutil.copy(source, target / name)
    shutil.copy(target / "profiles" / "smoke.yaml", target / "params.yaml")
    git(target, "init", "-q")
    cache = project_root() / ".dvc" / "cache"
    call(target, "dvc", "remote", "add", "-q", "--local", "--default", "project", str(cache))
    with suppress(AssertionError):  # the project has none
        call(target, "dvc", "pull", "-q")
    call(target, "dvc", "repro", "-q", "compare")
    git(target, "add", "-A")
    git(target, "commit", "-qm", "first")
    return target


def test_every_model_of_every_task_has_a_row_with_the_documented_columns(clone):
    metrics = pandas.read_csv(clone / "runs" / "smoke" / "results" / "tables" / "metrics.csv")
    assert set(metrics.columns) == {"seeds", *(name for task in TASKS for name in columns_of(task))}
    assert metrics.task.drop_duplicates().tolist() == TASKS
    first = metrics[metrics.task == "summarization"]
    assert first.role.tolist() == ["teacher", "student", "student", "student"]
    assert first.config.tolist() == ["32-32-32 2-2", "8-8-8 2-2", "2-2-8 2-1", "2-2-8 2-1"]
    assert first.preset.tolist() == ["fine-tuning", "dqlib", "dqlib", "quantization-only"]
    assert first.compression.is_monotonic_increasing
    assert first.bleu.isna().all()
    assert metrics[metrics.task == "translation"].bleu.notna().all()
    assert (metrics.score_low <= metrics.score).all()
    assert (metrics.score <= metrics.score_high).all()


def test_figures_report_and_executed_notebooks_are_there(clone):
    results = clone / "runs" / "smoke" / "results"
    training = [f"training_{task}" for task in TASKS]
    for name in ("tradeoff", "retention", "accumulation", "sizes", "sensitivity", *training):
        assert (results / "figures" / f"{name}.svg").read_text().count("<svg") == 1
        assert (results / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"figures/{name}.svg" in "".join(page.read_text() for page in results.rglob("*.md"))
    assert {page.stem for page in (results / "tasks").iterdir()} == set(TASKS)
    claims = pandas.read_csv(results / "tables" / "claims.csv")
    decided = claims[claims.verdict != "not run"]
    assert {claim[:3] for claim in decided.claim} == {"(a)", "(b)", "(d)"}  # for the others the grid is too small
    assert {claim[1] for claim in claims.claim} >= set("ghijkl")
    notebooks = clone / "runs" / "smoke" / "notebooks"
    wanted = {*(f"teacher-{task}" for task in TASKS), *(f"tasks/{task}" for task in TASKS), "compare"}
    found = {str(path.relative_to(notebooks)) for path in notebooks.rglob("*.ipynb")}
    assert found == {f"{name}.ipynb" for name in wanted}
    assert all("<html" in (notebooks / f"{name}.html").read_text() for name in wanted)


def drawn(page: Path) -> list[str]:
    """Pictures of a page of DVC's, which needs nothing from elsewhere."""
    html = page.read_text()
    assert "http" not in html
    assert "<script" not in html
    found = re.findall('<img src="(.*?)"', html)
    assert all((page.parent / name).read_text().count("<svg") == 1 for name in found)
    return [name.rpartition("/")[2].removesuffix(".svg") for name in found]


def test_plots_are_drawn_without_a_network(clone, tmp_path):
    call(clone, "dvc", "plots", "show", "--out", str(tmp_path))
    names = ("tradeoff", "training_eli5", "training_summarization", "training_translation")
    assert drawn(tmp_path / "index.html") == [f"workspace_runs_smoke_results_figures_{name}" for name in names]


def test_a_second_run_runs_nothing(clone):
    printed = call(clone, "dvc", "repro", "compare")
    assert "Running stage" not in printed
    assert "up to date" in printed


def test_a_change_that_decides_no_number_makes_no_training_stale(clone):
    module = clone / "dqlib" / "study" / "report" / "pages.py"
    text = module.read_text()
    module.write_text(f"{text}# other\n")
    stale = set(json.loads(call(clone, "dvc", "status", "--json", "--with-deps", "compare")))
    module.write_text(text)
    assert stale == {"code", "compare", *(f"experiment@{task}" for task in TASKS)}


def test_a_second_clone_pulls_what_the_first_pushed_and_runs_nothing(clone, tmp_path):
    remote, second, stage = str(tmp_path / "remote"), tmp_path / "second", "corpus@translation"
    call(clone, "dvc", "remote", "add", "--local", "shared", remote)
    call(clone, "dvc", "push", "-q", "--remote", "shared", "code", stage)
    subprocess.run(["git", "clone", "-q", str(clone), str(second)], check=True)
    corpus = Path("runs") / "smoke" / "translation" / "corpus"
    assert not (second / corpus).exists()
    call(second, "dvc", "remote", "add", "--local", "--default", "shared", remote)
    call(second, "dvc", "pull", "-q", "code", stage)
    files = sorted(path.relative_to(clone / corpus) for path in (clone / corpus).rglob("*") if path.is_file())
    assert files
    assert all((second / corpus / name).read_bytes() == (clone / corpus / name).read_bytes() for name in files)
    printed = call(second, "dvc", "repro", stage)
    assert "Running stage" not in printed
    assert "up to date" in printed


def test_experiments_are_queued_with_their_parameters(clone):
    change = "summarization.distill.steps=900"
    call(clone, "dvc", "exp", "run", "--queue", "--name", "long", "-S", change, "corpus@translation")
    queued = call(clone, "dvc", "queue", "status")
    assert "Queued" in queued
    assert "long" in queued
    assert "900" in json.dumps(json.loads(call(clone, "dvc", "exp", "show", "--json")))
    call(clone, "dvc", "queue", "remove", "--queued")


def test_one_changed_configuration_trains_that_student_alone(clone):
    params = yaml.safe_load((clone / "params.yaml").read_text())
    metrics = clone / "runs" / "smoke" / "results" / "tables" / "metrics.csv"
    before = metrics.read_text().splitlines()
    params["summarization"]["configs"][1] = "1-1-8_1-1"
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    would = json.loads(call(clone, "dvc", "status", "--json", "--with-deps", "compare"))
    # pseudo-labels asks whether a preset of the task wants them, and makes nothing; compare reads what these leave
    assert set(would) == {f"{stage}@summarization" for stage in ("pseudo-labels", "students", "experiment")}
    students = clone / "runs" / "smoke" / "summarization" / "students"
    times = {path: path.stat().st_mtime_ns for path in students.glob("*/record.json")}
    call(clone, "dvc", "repro", "-q", "compare")
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())  # no other was trained again
    after = metrics.read_text().splitlines()
    assert [*after[:3], *after[4:]] == [*before[:3], *before[4:]]
    assert after[3].split(",")[3] == "1-1-8 1-1"
    difference = json.loads(call(clone, "dvc", "metrics", "diff", "--json"))
    assert "1-1-8 1-1 dqlib" in json.dumps(difference)


def test_the_same_commit_gives_the_same_bytes(clone):
    results = clone / "runs" / "smoke" / "results"
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    shutil.rmtree(clone / "runs" / "smoke" / "summarization" / "students" / "8-8-8_2-2")
    call(clone, "dvc", "repro", "-q", "--force", "--single-item", "students@summarization", "compare")
    after = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    assert before == after


def test_the_benchmark_is_a_group_of_its_own(clone):
    results = clone / "runs" / "smoke" / "results"
    assert not (results / "tables" / "methods.csv").exists()  # the default study did not run it
    call(clone, "dvc", "repro", "-q", "methods")
    table = pandas.read_csv(results / "tables" / "methods.csv")
    assert tuple(table.columns) == (*columns_of("summarization"), "baseline", "p_value", "provenance", "code")
    assert table.preset.tolist() == ["dq-bart-faithful", "dqlib"]
    assert (results / "methods" / "methods.svg").read_text().count("<svg") == 1
    assert "dq-bart-faithful" in (results / "methods" / "README.md").read_text()
    assert "up to date" in call(clone, "dvc", "repro", "methods")
