"""What a profile would take is measured: two steps of every training, multiplied."""

import time
from dataclasses import replace

import pytest
import torch
import yaml

from dqlib.config import Config
from dqlib.storage.footprint import fp32_size_bytes, size_bytes
from dqlib.student import make_student
from dqlib.study.__main__ import main
from dqlib.study.corpora.corpus import build_corpus
from dqlib.study.params.settings import load_settings
from dqlib.study.pipeline.plan import Plan, Planned, plan, planned_model
from dqlib.study.training.on_policy import OnPolicy
from tests.helpers.examples import write_splits
from tests.helpers.projects import set_task, write_small_study


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """The small study, with steps and documents of different numbers."""
    write_small_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    params = yaml.safe_load((tmp_path / "small.yaml").read_text())
    task = params["summarization"]
    task |= {"configs": ["8-8-8_2-2", "2-2-8_2-1"], "controls": ["2-2-8_2-1"]}
    task["evaluate"]["documents"] = task["methods"]["evaluate"]["documents"] = 6
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(params))
    return load_settings("small.yaml")


def test_every_training_is_planned_at_its_steps_and_size_and_nothing_is_made(settings, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    threads = torch.get_num_threads()
    planned = plan(settings, "summarization", devices=2)
    assert sorted(tmp_path.rglob("*")) == before
    assert torch.get_num_threads() == threads
    spec = settings.tasks["summarization"]
    students = [f"summarization: {config} {preset}" for config, preset in spec.students()]
    names = [each.name for each in planned.trainings]
    assert names[: 2 + len(students)] == ["summarization: pre-training", "summarization: teacher", *students]
    assert sum(each.runs for each in planned.trainings[2 + len(students) :]) == len(spec.methods.runs())
    by_name = {each.name: each for each in planned.trainings}
    assert by_name[students[0]].steps == spec.distill.steps
    longer = {run.steps or spec.methods.distill.steps for run in spec.methods.runs()}
    assert {each.steps for each in planned.trainings[2 + len(students) :]} == longer
    teacher = planned_model(spec)
    assert by_name["summarization: teacher"].size_bytes == fp32_size_bytes(teacher)
    student = make_student(teacher, Config.parse("2-2-8 2-1"), "dqlib")
    assert by_name["summarization: 2-2-8 2-1 dqlib"].size_bytes == size_bytes(student)
    assert all(each.seconds > 0 and each.test_seconds >= 0 for each in planned.trainings)
    assert planned.seconds < sum(each.total_seconds for each in planned.trainings)
    ten = Planned("three of ten steps", 3, 10, seconds=2.0, test_seconds=4.0, size_bytes=1, together=2)
    assert ten.total_seconds == 3 * 24 / 2


def test_what_shares_accelerators_is_counted_at_the_same_time_and_stages_one_after_another():
    def planned(stage, steps, runs=1, together=4):
        return Planned("", runs, steps, 1.0, None, 1, together, stage)

    teacher, students = planned("", 100, together=1), [planned("a", steps, runs) for steps, runs in ((8, 3), (4, 3))]
    assert Plan("", (teacher, teacher)).seconds == 200
    assert Plan("", (teacher, *students)).seconds == 100 + (3 * 8 + 3 * 4) / 4
    assert Plan("", (teacher, *students, planned("b", 10), planned("b", 2))).seconds == 100 + 9 + 10  # the longest


@pytest.mark.usefixtures("settings")
def test_the_command_prints_a_table_and_errors_as_a_sentence(capsys):
    set_task(configs=["2-2-8_2-1"], methods=None)
    assert main(["plan", "--params", "small.yaml", "--task", "summarization"]) == 0
    printed = capsys.readouterr().out
    assert "summarization: 2-2-8 2-1 quantization-only" in printed
    assert "on this machine, corpora and notebooks not counted" in printed
    for wrong, error in (
        (["--params", "nothing"], "error: profile: 'nothing'"),
        (["--params", "small.yaml", "--devices", "0"], "error: devices: 0"),
        (["--params", "small.yaml", "--task", "poetry"], "error: task: 'poetry'"),
    ):
        assert main(["plan", *wrong]) == 2
        assert capsys.readouterr().err.startswith(error)


@pytest.mark.usefixtures("settings")
def test_what_the_teacher_writes_and_a_student_draws_is_counted(monkeypatch):
    draw = OnPolicy.targets
    monkeypatch.setattr(OnPolicy, "targets", lambda *given: (time.sleep(2), draw(*given))[1])
    set_task(configs=["2-2-8_2-1"], controls=[], methods=None, pseudo_labels={"pairs": 30, "texts": 40})

    def planned(preset):
        set_task(distill={"preset": preset})
        return plan(load_settings("small.yaml"), "summarization").trainings

    *_, student = planned("dqlib-on-policy")
    *_, labels, _ = planned("dqlib-labelled-text")
    assert (labels.name, labels.steps) == ("summarization: pseudo-labels, at most", 0)
    assert labels.total_seconds == labels.test_seconds > 0
    assert student.seconds > 2 * 2 / 4  # every fourth step draws, for each of two micro-batches


def test_a_classifier_is_planned_with_the_classes_of_its_corpus(settings, tmp_path):
    rows = [{"text": f"text {number}", "label": f"class {number % 5}"} for number in range(40)]
    files = write_splits(tmp_path, train=rows, validation=rows[:10], test=rows[:10])
    columns = {"source": "text", "target": "label"}
    params = yaml.safe_load((tmp_path / "small.yaml").read_text())
    params["topics"] |= {"configs": ["8-8-8_2-0"], "methods": None}
    params["topics"]["pretrain"]["window"] = 16  # as many tokens as a text of the second round has
    params["topics"]["corpus"] = {"name": "mine", "origin": "files", "vocab_size": 300, "source_tokens": 16}
    params["topics"]["corpus"] |= files | columns
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(params))
    settings = load_settings("small.yaml")
    unknown = plan(settings, "topics").trainings
    build_corpus(settings.task("topics").corpus, settings.folders("topics").corpus, kind="classification")
    known = plan(settings, "topics").trainings
    assert [each.name for each in known] == [each.name for each in unknown]
    width = settings.task("topics").model.d_model
    assert known[1].size_bytes == unknown[1].size_bytes + 3 * (width + 1) * 4  # of five classes, not two


@pytest.mark.usefixtures("settings")
def test_a_tokenizer_of_more_tokens_than_the_parameters_say_is_planned_with():
    set_task(configs=["2-2-8_2-1"], controls=[], methods=None)
    settings = load_settings("small.yaml")
    more = replace(settings.task("summarization").corpus, vocab_size=1800)
    build_corpus(more, settings.folders("summarization").corpus)
    teacher = plan(settings, "summarization").trainings[1]
    spec = replace(settings.task("summarization"), corpus=more)
    assert teacher.size_bytes == fp32_size_bytes(planned_model(spec))
