import os

import nbformat
import numpy as np
import pandas
import pytest
import torch

from dqlib.pruning import importance
from dqlib.storage.footprint import footprint, size_bytes
from dqlib.storage.reading import read_model
from dqlib.storage.students import load_student
from dqlib.study.__main__ import main
from dqlib.study.corpora.corpus import load_corpus
from dqlib.study.evaluation.records import read_record
from dqlib.study.pipeline import students
from dqlib.study.pipeline.students import run_students
from dqlib.study.pipeline.study import Study
from dqlib.study.process import workers
from dqlib.study.process.exit_codes import JobError
from dqlib.study.process.workers import Job, run_all
from dqlib.study.report import figures, tables
from dqlib.study.report.recompute import comparisons_table
from dqlib.study.report.scores import RESAMPLES, Resampled, joined
from dqlib.study.training import task as task_training
from dqlib.study.training.task import calibration_batches
from tests.helpers.processes import fail, in_this_process, write_environment
from tests.helpers.projects import committed, set_task


def test_each_accelerator_has_one_work_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(workers, "available_cores", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (workers.devices(), workers.at_a_time()) == (["0", "1"], 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    asked = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    run_all("test", [Job(str(i), write_environment, (tmp_path / str(i), *asked)) for i in range(2)])
    assert {(tmp_path / str(i)).read_text().partition(" ")[2] for i in range(2)} <= {"3 4", "5 4"}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert (workers.devices(), workers.at_a_time()) == ([], 8)


def test_work_is_done_in_other_processes_of_one_thread_and_a_failure_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "available_cores", lambda: 1)
    jobs = [Job(str(i), write_environment, (tmp_path / str(i), "OMP_NUM_THREADS")) for i in range(2)]
    with pytest.raises(JobError, match="test, third: no memory"):
        run_all("test", [*jobs, Job("third", fail, ("no memory",))])
    found = [(tmp_path / str(i)).read_text().split() for i in range(2)]  # what was made stays
    assert str(os.getpid()) not in {process for process, _ in found}
    assert {threads for _, threads in found} == {"1"}


def changed(distill=None, **task):
    """The small study, with other parameters of its task and of what students are trained with."""
    set_task(distill={"steps": 2} | (distill or {}), **task)
    return Study("small.yaml")


@pytest.mark.usefixtures("made_study")
def test_all_students_are_made_once_and_anew_when_their_training_changes(monkeypatch, capsys):
    monkeypatch.setattr(students, "run_all", in_this_process)
    again = {"configs": ["2-2-8 2-1"], "seeds": [3]}
    study = changed(configs=["8-8-8_2-2", "2-2-8_2-1"], controls=["2-2-8_2-1"], repeats=again)
    folder = run_students(study)
    twice = ["2-2-8_2-1", "2-2-8_2-1_quantization-only"]
    names = ["2-2-8_2-1", "2-2-8_2-1_quantization-only", "2-2-8_2-1_quantization-only_seed3", "2-2-8_2-1_seed3",
             "8-8-8_2-2"]  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == names
    rows = {name: read_record(folder / name) for name in names}
    assert rows["2-2-8_2-1"].preset == "dqlib"
    assert rows["2-2-8_2-1_quantization-only"].preset == "quantization-only"
    assert "logits" not in pandas.read_csv(folder / "2-2-8_2-1_quantization-only" / "log.csv")
    assert [rows[f"{name}_seed3"].seed for name in twice] == [3, 3]
    assert all((folder / name / "log.csv").read_text() != (folder / f"{name}_seed3" / "log.csv").read_text()
               for name in twice)  # fmt: skip

    times = {name: (folder / name / "record.json").stat().st_mtime_ns for name in names}
    assert main(["make", "students", "--params", "small.yaml", "--task", "poetry"]) == 2
    assert capsys.readouterr().err.startswith("error: task: 'poetry'")
    assert main(["make", "students", "--params", "small.yaml"]) == 0
    assert times == {name: (folder / name / "record.json").stat().st_mtime_ns for name in names}

    models = tables.trained(study)
    assert [model.record.role for model in models] == ["teacher", *5 * ["student"]]
    compared = comparisons_table(Resampled(joined(model.scores() for model in models)))
    assert compared.config.tolist() == ["2-2-8 2-1"]
    assert compared.baseline.tolist() == ["quantization-only"]
    kept, means = tables.collect_retention([study]), tables.collect_metrics([study])
    assert list(zip(kept.config, kept.preset, strict=True)) == [(str(c), preset) for c, preset in study.task.students()]
    assert means.seeds.tolist() == [1, 1, 2, 2]
    assert kept.retention.tolist() == pytest.approx(means.retention[1:].tolist(), abs=0.01, nan_ok=True)
    for name, row in zip(twice, means[2:].itertuples(), strict=True):
        both = [rows[name].score, rows[f"{name}_seed3"].score]
        assert row.score == pytest.approx(np.mean(both), abs=1e-4)
        assert row.score_low <= row.score <= row.score_high
    assert not (kept.low > kept.high).any()  # nor an interval where so short a training leaves a teacher of zero
    for model in models:
        assert model.resampled.shape == (RESAMPLES,)
        assert model.resampled.mean() == pytest.approx(model.record.score, abs=0.1)
    sizes = tables.collect_sizes([study])
    for (config, preset), parts in sizes.groupby(["config", "preset"]):
        (row,) = [row for row in rows.values() if (row.config, row.preset, row.seed) == (config, preset, 28)]
        assert parts.bytes.sum() == row.size_bytes

    for steps, made in ((3, False), (2, True)):
        other = changed({"steps": steps})
        assert [other.has_student(*student) for student in study.task.seeded_students()] == 5 * [made]


def test_a_seed_that_is_none_is_refused_before_anything_is_made(monkeypatch, capsys):
    monkeypatch.setattr(Study, "teacher", lambda self: pytest.fail("made the teacher"))
    assert main(["make", "student", "--params", "tutorial", "--seed", "-1"]) == 2
    assert capsys.readouterr().err.startswith("error: seed: -1 is not allowed")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("make corpus --config foo", "--config: 'foo' is not allowed; it must be left out with the part corpus"),
        ("make students --seed 0", "--seed: 0 is not allowed; it must be left out with the part students"),
        ("make student --if-asked", "--if-asked: True is not allowed; it must be left out with the part student;"),
        ("job pretrain --config foo", "--config: 'foo' is not allowed; it must be left out with the job pretrain;"),
    ],
)
def test_an_option_that_a_part_or_a_job_does_not_take_is_refused(call, said, monkeypatch, capsys):
    for name in ("corpus", "teacher"):
        monkeypatch.setattr(Study, name, lambda self: pytest.fail("made something"))
    assert main([*call.split(), "--params", "tutorial"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


@pytest.mark.usefixtures("made_study")
def test_a_student_of_a_budget_is_made_and_shown_like_any_other(monkeypatch):
    monkeypatch.setattr(students, "run_all", in_this_process)
    monkeypatch.setattr(task_training, "CALIBRATION", 8)  # pairs, whose losses are computed for each module and bits
    study = changed(configs=["2-2-8 2-1", "auto:70kB 2-1"], controls=[])
    folder = run_students(study)
    assert sorted(path.name for path in folder.iterdir()) == ["2-2-8_2-1", "auto-0.07MB_2-1"]
    record, student = read_record(folder / "auto-0.07MB_2-1"), load_student(folder / "auto-0.07MB_2-1")
    assert record.config == "auto:0.07MB 2-1"
    assert (record.encoder_layers, record.decoder_layers) == (2, 1)
    assert record.size_bytes == size_bytes(student) <= 70_000
    assert len({bits for _, bits in student.dqlib_config.modules}) > 1
    assert record.w_bits == student.dqlib_config.w_bits
    assert [model.record.config for model in tables.trained(study)][1:] == ["2-2-8 2-1", "auto:0.07MB 2-1"]
    legend = figures.tradeoffs(tables.collect_metrics([study])).legends[0]
    assert [text.get_text() for text in legend.get_texts()][1:3] == ["2-2-8", "auto:0.07MB"]

    shown = {"params": "small.yaml", "config": "auto:70kB 2-1", "display": print}
    for cell in nbformat.read(committed() / "notebooks" / "summarization.ipynb", 4).cells[2:15]:
        if cell.cell_type == "code":
            exec(cell.source, shown)
    assert (size_bytes(shown["student"]), shown["config"]) == (record.size_bytes, student.dqlib_config)
    for others, chosen in ((["2-2-8 2-2"], "2-2-8 2-2"), (["2-2-8 2-1_h2"], "2-2-8 2-1 h2"), ([], "auto:0.07MB")):
        assert str(changed(configs=["auto:70kB", *others], controls=[], repeats={}).task.headline) == chosen

    table = tables.collect_sensitivity([study])
    assert set(table.bits) == {1, 2, 4, 8}
    uniform = load_student(folder / "2-2-8_2-1")
    sizes = {name: entry.size_bytes for entry in footprint(uniform) for name in entry.names}
    for row in table[(table.bits == 2) & ~table.module.str.contains("decoder.layers.1")].itertuples():
        assert row.size_bytes == sizes[f"{row.module}.weight"]


@pytest.mark.usefixtures("made_study")
def test_a_narrow_student_of_a_task_keeps_what_matters_on_its_training_pairs():
    study = changed(configs=["2-2-8_2-2_h1_f32", "2-2-8_2-2"])
    folder = study.student("2-2-8 2-2 h1 f32")
    assert folder.name == "2-2-8_2-2_h1_f32"
    record, student = read_record(folder), load_student(folder)
    assert (record.config, record.size_bytes) == ("2-2-8 2-2 h1 f32", size_bytes(student))
    assert study.task.headline.slug == "2-2-8_2-2"
    log = pandas.read_csv(folder / "log.csv")
    assert log.cross_attention.notna().any()  # maps of one head and of four
    corpus = load_corpus(study.folders.corpus)
    batches = calibration_batches(corpus, study.task)
    assert sum(len(batch["labels"]) for batch in batches) == 128
    scores = importance(read_model(study.folders.teacher), batches)
    best = [[int(scores[f"model.encoder.layers.{i}.self_attn.out_proj"].argmax())] for i in range(2)]
    assert student.dqlib_kept_heads["encoder"] == best
