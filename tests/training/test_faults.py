"""A stage that fails, is stopped, or finds the disk full: one sentence, and all that was there before stays."""

import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from datasets.exceptions import DatasetGenerationError

from dqlib.files import DiskFullError, atomic_folder, write_text
from dqlib.study.__main__ import main
from dqlib.study.corpora import hub
from dqlib.study.params.kinds import KINDS, SEQ2SEQ
from dqlib.study.params.paths import PROVENANCE, project_root
from dqlib.study.params.settings import Corpus, load_settings
from dqlib.study.pipeline import students
from dqlib.study.training.examples import Example, stored_examples
from tests.helpers.folders import contents, hidden
from tests.helpers.processes import in_this_process
from tests.helpers.projects import set_task, write_small_study

resource = pytest.importorskip("resource", reason="limits of file sizes are those of POSIX")

ROOT = project_root()
CONFIG = "2-2-8 2-1"
PYTHON = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}}
STOPPED = "stopped; the same command goes on from here"


def environment():
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PYTHONPATH": str(ROOT), "PATH": path}


def project_of(folder, name, *sources):
    """A project with one notebook, whose cells after the parameters are these."""
    (folder / "notebooks").mkdir()
    (folder / "profiles").symlink_to(ROOT / "profiles")
    (folder / "dvc.yaml").touch()
    cells = [nbformat.v4.new_code_cell('params = "tutorial"', metadata={"tags": ["parameters"]})]
    notebook = nbformat.v4.new_notebook(cells=[*cells, *map(nbformat.v4.new_code_cell, sources)], metadata=PYTHON)
    nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")


def error_of(capsys):
    """The one line about an error among those that a command writes on standard error."""
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    return error


def without_git(folder):
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    analytics = false\n    no_scm = true\n")


# --- a notebook that fails


def test_a_notebook_that_fails_fails_its_stage_and_is_kept_with_its_error(tmp_path):
    sources = ["print('begun')", "raise ValueError('no such column')", "open('results.csv', 'w').write('new')"]
    project_of(tmp_path, "broken", *sources)
    without_git(tmp_path)
    executed = "runs/tutorial/notebooks/broken"
    stage = {
        "cmd": "python -m dqlib.study notebook broken --params tutorial",
        "deps": ["notebooks/broken.ipynb"],
        "outs": [f"{executed}.ipynb", f"{executed}.html", {"results.csv": {"cache": False, "persist": True}}],
    }
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"broken": stage}}))
    (tmp_path / "results.csv").write_text("old")
    done = subprocess.run(
        ["dvc", "repro"], check=False, capture_output=True, text=True, cwd=tmp_path, env=environment()
    )
    assert done.returncode != 0
    assert "error: broken: ValueError: no such column" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert f"with the whole traceback: {tmp_path / executed}.ipynb" in done.stderr
    kept = nbformat.read(tmp_path / f"{executed}.ipynb", 4)
    outputs = [output for cell in kept.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("begun" in output.get("text", "") for output in outputs)
    assert any("no such column" in output.get("evalue", "") for output in outputs)
    assert (tmp_path / "results.csv").read_text() == "old"
    assert not (tmp_path / "dvc.lock").exists()  # a stage that failed counts as not run


# --- what another command makes


def test_a_job_without_its_inputs_names_the_command_that_makes_them(tmp_path, monkeypatch, capsys):
    write_small_study(tmp_path)
    monkeypatch.chdir(tmp_path)

    def refusal(*command):
        assert main([*command, "--params", "small.yaml"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    jobs = [("pretrain", "corpus"), ("finetune", "corpus"), ("distill", "corpus"), ("finetune", "pretrained"),
            ("distill", "teacher")]  # fmt: skip
    for job, part in jobs:
        if part != "corpus":
            write_text(load_settings("small.yaml").folders("summarization").corpus / "corpus.json", "{}")
        error = refusal("job", job, *(("--config", CONFIG) if job == "distill" else ()))
        assert error.startswith(f"error: {part}: ")
        assert f"`python -m dqlib.study make {part} --params small.yaml --task summarization` makes it" in error
    error = refusal("report")  # before there are results
    assert error.startswith("error: results: ")
    assert "`dvc repro compare`" in error


STAGES = yaml.safe_dump({"stages": {
    "corpus": {"cmd": "true", "outs": ["runs/tutorial/summarization/corpus"]},
    "students": {"matrix": {"task": ["summarization"]}, "cmd": "true", "outs": ["runs/tutorial/${item.task}/students"]},
    "bench": {"cmd": "true", "outs": ["runs/tutorial/summarization/methods"]},
}})  # fmt: skip


@pytest.fixture
def under_dvc(made_study, monkeypatch):
    """The small study with stages, and what starts a command as a stage."""
    without_git(made_study)
    (made_study / "dvc.yaml").write_text(STAGES)
    monkeypatch.setattr(students, "run_all", in_this_process)

    def run(stage, *arguments):
        monkeypatch.setenv("DVC_STAGE", stage)
        return main(["make", *arguments, "--params", "small.yaml"])

    return run


@pytest.mark.parametrize(
    ("stage", "command", "owner"),
    [
        ("students@summarization", ["teacher"], "corpus"),
        ("../dvc.yaml:compare", ["students"], "students@summarization"),  # as DVC names it to who stands in a subfolder
        ("bench", ["student", "--config", CONFIG], "students@summarization"),
        ("compare", ["benchmark"], "bench"),
    ],
)
def test_under_dvc_a_stage_makes_nothing_that_another_owns(under_dvc, capsys, stage, command, owner):
    folder = Path("runs", "tutorial", "summarization")
    if owner == "corpus":
        (folder / "corpus" / PROVENANCE).unlink()
    before = contents(folder)
    assert under_dvc(stage, *command) == 2
    error = error_of(capsys)
    assert "runs/tutorial/summarization/" in error
    assert error.endswith(f"`dvc repro --force --single-item {owner}` makes it")
    assert contents(folder) == before
    if owner == "corpus":
        assert under_dvc("corpus", "corpus") == 0


# --- Ctrl-C


def interrupt(command, until, timeout=300.0):
    """What a command writes in a group of its own that is sent SIGINT, as a terminal does, once ``until`` is true."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dqlib.study", *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    end = time.monotonic() + timeout
    while not until():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=timeout)
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in errors
    return errors.splitlines()


@pytest.fixture
def one_thread():
    """As workers compute: sums of more threads are other sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_after_ctrl_c_nothing_is_half_written_and_a_second_start_ends_with_the_same_weights(made_study, monkeypatch):
    set_task(distill={"steps": 30, "checkpoint_steps": 3}, configs=["2-2-8_2-1"])
    folder, make = made_study / "runs" / "tutorial" / "summarization", ["make", "students", "--params", "small.yaml"]

    def training():
        return any((folder / "checkpoints" / "students-2-2-8_2-1").glob("step*"))

    assert interrupt(make, training) == [STOPPED]
    assert not list((folder / "students").glob("*"))
    assert not hidden(folder / "students")

    monkeypatch.setattr(students, "run_all", in_this_process)
    assert main(make) == 0  # no process of the first is left that holds a lock
    after = contents(folder / "students")
    for path in (folder / "students").iterdir():
        (path / PROVENANCE).unlink()
    assert main(make) == 0
    assert contents(folder / "students") == after


def test_ctrl_c_stops_a_stage_with_its_notebook(tmp_path, monkeypatch):
    project_of(tmp_path, "long", "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)")
    monkeypatch.chdir(tmp_path)
    pid = Path("pid")
    errors = interrupt(["notebook", "long", "--params", "tutorial"], lambda: pid.is_file() and pid.read_text())
    assert errors[-1] == STOPPED
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


# --- a full disk


@contextmanager
def no_room(size):
    """Files of more than ``size`` bytes cannot be written: as on a full disk, in the middle of a write.

    It ends within the test: a runner whose output goes to a file could not write that it passed.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_full_while_a_model_is_saved_names_the_folder_and_keeps_the_old_one(made_study, capsys):
    folder = made_study / "runs" / "tutorial" / "summarization"
    set_task(distill={"steps": 2})
    student = ["make", "student", "--params", "small.yaml", "--config", CONFIG]
    assert main(student) == 0
    for part, target, change in (
        (student, folder / "students" / "2-2-8_2-1", {"distill": {"steps": 3}}),
        (["make", "teacher", "--params", "small.yaml"], folder / "teacher", {"finetune": {"steps": 3}}),
    ):
        before = contents(target)
        set_task(**change)
        with no_room(100_000):  # less than the weights, more than all else
            assert main(part) == 2
        assert error_of(capsys) == (
            f"error: {target}: File too large; what was there before is unchanged, so make room and start the same "
            "command again."
        )
        assert contents(target) == before
        assert not hidden(target.parent)
    assert main(student) == 0  # makes the teacher again, too


@pytest.mark.usefixtures("made_study")
def test_a_disk_full_in_a_worker_is_told_as_one_sentence(capsys):
    set_task(distill={"steps": 2}, configs=["2-2-8_2-1"])
    with no_room(300_000):  # the worker has the limit of us: enough for tokens, too little for a checkpoint
        assert main(["make", "students", "--params", "small.yaml"]) == 2
    assert "students/2-2-8_2-1: File too large; what was there before is unchanged" in error_of(capsys)


def test_a_disk_full_while_examples_or_results_are_written_is_told_as_one_sentence_and_leaves_no_half(tmp_path):
    def make(rows):
        return [Example([7] * 50, [8] * 50) for _ in rows]

    tokens, results = tmp_path / "tokens", tmp_path / "results"
    write_text(results / "metrics.csv", "old")
    for folder, write in (
        (tokens, lambda: stored_examples(tokens, range(1000), make)),
        (results, lambda: write_text(results / "metrics.csv", 10_000 * "new")),
    ):
        with pytest.raises(DiskFullError) as caught, no_room(10_000):
            write()
        assert str(caught.value).startswith(f"{folder}: File too large; what was there before is unchanged")
    assert contents(tmp_path) == {Path("results/metrics.csv"): b"old"}
    assert len(stored_examples(tokens, range(1000), make)) == 1000


def test_a_disk_full_while_a_data_set_is_fetched_is_told_as_one_sentence(monkeypatch):
    def load_dataset(*_, **__):
        raise DatasetGenerationError("while generating the dataset") from OSError(28, "No space left on device")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    corpus = Corpus("mine", "hub", 300, 8, 8, dataset=".")
    with pytest.raises(DiskFullError, match="No space left on device; what was there"):
        next(hub.hub_rows(corpus, KINDS[SEQ2SEQ], "train"))


def test_no_space_is_known_by_number_and_by_what_safetensors_says(tmp_path):
    for error in (
        OSError(28, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ):
        with pytest.raises(DiskFullError, match="teacher: No space left on device; what was there"), \
                atomic_folder(tmp_path / "teacher"):  # fmt: skip
            raise error
    with pytest.raises(OSError, match="other"), atomic_folder(tmp_path / "teacher"):
        raise OSError(5, "other")
    with pytest.raises(DiskFullError, match="teacher: ") as caught, atomic_folder(tmp_path / "teacher") as scratch:
        raise DiskFullError(scratch / "deeper")  # of a file in what is being written
    assert list(tmp_path.iterdir()) == []
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
