"""What a plan says is what a model that is there has."""

import copy
import json
import math
import socket

import pytest
import torch
import yaml
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import BartConfig, BartForConditionalGeneration

from dqlib.config import Config
from dqlib.presets import get_preset
from dqlib.storage.footprint import fp32_size_bytes, size_bytes
from dqlib.student import make_student, supervision_maps
from dqlib.study.params.paths import project_root
from dqlib.study.params.settings import TASKS, load_settings
from dqlib.study.pipeline import plan as planning
from dqlib.study.pipeline import students
from dqlib.study.pipeline.jobs import new_model
from dqlib.study.pipeline.plan import main, plan
from dqlib.study.process.workers import at_a_time
from dqlib.study.training.batches import Batch
from dqlib.study.training.checkpoints import Checkpoints
from dqlib.study.training.loop import DistillationObjective, TaskObjective
from tests.conftest import committed

#: How far a plan's memory may be from what is measured.
FACTOR = 1.3

PROFILES = sorted(path.stem for path in (committed() / "profiles").glob("*.yaml"))


def small(tmp_path, **of_task):
    """A profile with one task, of a model that is made in a moment."""
    params = yaml.safe_load((project_root() / "profiles" / "tutorial.yaml").read_text())
    task = params["summarization"]
    task["model"] |= {"encoder_layers": 3, "decoder_layers": 2}
    task |= {"configs": ["8-8-8_3-2", "2-2-8_3-1", "1-1-8_1-1", "32-32-32_2-2"], "controls": ["2-2-8_3-1"], **of_task}
    params = {key: params[key] for key in ("profile", "results", "compute")} | {"summarization": task}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(params))
    return load_settings(tmp_path / "small.yaml")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_is_planned_and_nothing_is_made(name, no_network, monkeypatch, tmp_path):
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "profiles").symlink_to(project_root() / "profiles")
    monkeypatch.chdir(tmp_path)
    settings = load_settings(name)
    told = plan(settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dvc.yaml", "profiles"]
    wanted = sum(len(settings.task(task).students()) for task in settings.tasks)
    assert sum(each.stage.startswith("students@") for each in told.trainings) == wanted
    for each in told.trainings:
        assert each.all_tokens == each.steps * each.tokens
        assert all(map(math.isfinite, (each.operations, each.hours)))
        assert min(each.operations, each.memory.total, each.parameters, each.checkpoint_bytes) > 0
        bits = Config.parse(each.config).w_bits
        assert each.compression is None or bits == 32 or each.compression > 2
    assert {each.stage for each in told.trainings} <= {stage.name for stage in told.stages}
    assert str(told).count("\n") > len(told.trainings)
    again = json.loads(json.dumps(told.as_json()))
    assert again["total"]["hours"] == pytest.approx(told.hours)


def test_the_stages_of_a_whole_profile_are_those_of_the_pipeline_in_an_order_that_serves_it():
    stages = yaml.safe_load((project_root() / "dvc.yaml").read_text())["stages"]
    names = [
        f"{name}@{item}" if "matrix" in stage else name
        for name, stage in stages.items()
        for item in (stage.get("matrix", {"task": [None]})["task"])
    ]
    told = [stage.name for stage in plan(load_settings("smoke")).stages]
    assert sorted(told) == sorted(names)
    parts = {"corpus": "corpus-{}", "teacher": "teacher-{}", "students": "students@{}"}
    makers = {f"runs/${{profile}}/{task}/{part}": stage.format(task) for task in TASKS for part, stage in parts.items()}
    for name in told:
        base, _, item = name.partition("@")
        for dependency in stages[base]["deps"]:
            maker = makers.get(dependency.replace("${item.task}", item))
            assert maker is None or told.index(maker) < told.index(name), (name, dependency)


def test_sizes_and_parameters_are_those_of_models_that_are_there(tmp_path, monkeypatch):
    presets = ["dq-bart-faithful", "dq-bart", "xtc", "quantgpt", "dqlib"]
    settings = small(tmp_path)
    task = settings.tasks["summarization"]
    torch.manual_seed(0)
    teacher = new_model(task.model, task.corpus.vocab_size)
    for each in plan(settings).trainings:
        if each.size_bytes is None:
            assert each.parameters == sum(parameter.numel() for parameter in teacher.parameters())
            continue
        config, preset = each.name.rsplit(" ", 1) if "bench" not in each.name else (each.config, each.name.split()[-1])
        student = make_student(teacher, Config.parse(config), preset)
        assert each.size_bytes == size_bytes(student), each.name
        assert each.compression == fp32_size_bytes(teacher) / size_bytes(student)
        assert each.model_bytes == 4 * sum(parameter.numel() for parameter in student.parameters())

    m = task.model
    sides = {"encoder_layers": 3, "decoder_layers": 2, "encoder_ffn_dim": m.ffn_dim, "decoder_ffn_dim": m.ffn_dim}
    sides |= {"encoder_attention_heads": m.heads, "decoder_attention_heads": m.heads}
    bart = BartForConditionalGeneration(
        BartConfig(vocab_size=700, d_model=m.d_model, max_position_embeddings=m.max_positions, **sides)
    )
    assert fp32_size_bytes(planning.empty_teacher(m, 700, "bart")) == fp32_size_bytes(bart)
    monkeypatch.setattr(planning, "SMALL", 0)  # as a large model, without memory
    planning.empty_teacher.cache_clear()
    planning._stored_size.cache_clear()
    assert planning.empty_teacher(m, 700, "bart").device.type == "meta"
    for preset in presets:
        student = make_student(bart, Config.parse("2-2-8 3-1"), preset)
        assert planning.student_size(m, 700, "bart", "2-2-8 3-1", preset)[0] == size_bytes(student), preset


def texts(vocabulary, batch, source, target):
    ids, labels = torch.randint(5, vocabulary, (batch, source)), torch.randint(5, vocabulary, (batch, target))
    return Batch(ids, torch.ones_like(ids), labels, labels)


def step_of(settings, name):
    """The training of that name in a plan, its model, teacher, and a step of it as large as its profile allows."""
    spec = settings.tasks["summarization"]
    (told,) = [each for each in plan(settings).trainings if each.name == name]
    torch.manual_seed(0)
    teacher = model = new_model(spec.model, spec.corpus.vocab_size)
    objective, loop = TaskObjective(0.1), spec.finetune
    if name != "teacher":
        config, preset = Config.parse(told.config), get_preset(name.split()[-1])
        model, loop = make_student(teacher, config, preset), spec.distill
        if preset.loss.of_teacher:
            objective = DistillationObjective(teacher, supervision_maps(config, teacher), preset.loss)
    lengths = spec.corpus.source_tokens, spec.corpus.target_tokens
    count = loop.batch_tokens // loop.micro_batches // sum(lengths)
    batch = texts(spec.corpus.vocab_size, count, *lengths)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        terms = objective.terms(model.train(), batch, tuple(float(count * length) for length in lengths))
        sum(objective.weight(term) * value for term, value in terms.items()).backward()

    return told, model, teacher, optimizer, step


def allocator_peak(run):
    """The most bytes that were allocated at a time beyond those that were there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize(
    ("name", "model", "corpus"),
    [
        ("teacher", {}, {}),
        ("8-8-8 3-2 dqlib", {"heads": 8}, {"source_tokens": 96}),
        ("2-2-8 3-1 dqlib", {"ffn_dim": 512, "d_model": 96}, {"vocab_size": 400}),
        ("2-2-8 3-1 dqlib", {}, {"vocab_size": 4000, "target_tokens": 48}),
        ("2-2-8 3-1 quantization-only", {}, {}),
    ],
)
def test_memory_is_within_a_factor_of_what_the_allocator_gives(name, model, corpus, tmp_path):
    base = yaml.safe_load((project_root() / "profiles" / "tutorial.yaml").read_text())["summarization"]
    shape = {"encoder_layers": 3, "decoder_layers": 2}
    settings = small(tmp_path, model=base["model"] | shape | model, corpus=base["corpus"] | corpus)
    told, model, teacher, optimizer, step = step_of(settings, name)
    step()
    optimizer.step()
    optimizer.zero_grad()
    moments = sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value.dim())
    assert moments == told.memory.moments
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert weights == told.memory.weights
    of_teacher = 0 if teacher is model else sum(parameter.nbytes for parameter in teacher.parameters())
    assert of_teacher == told.memory.teacher
    measured = weights + moments + told.memory.best + of_teacher + allocator_peak(step)
    assert measured / FACTOR < told.memory.total < measured * FACTOR
    assert told.memory.activations > 0.3 * told.memory.total  # so that they are what was tested


@pytest.mark.parametrize("name", ["teacher", "2-2-8 3-1 dqlib", "2-2-8 3-1 quantization-only"])
def test_operations_are_those_that_a_step_counts(name, tmp_path):
    settings = small(tmp_path)
    told, model, teacher, _, step = step_of(settings, name)
    for each in (model, teacher):  # the products of the fused attention are not counted on a CPU
        if each.config._attn_implementation == "sdpa":
            each.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        step()
    spec = settings.tasks["summarization"]
    loop, lengths = spec.finetune if name == "teacher" else spec.distill, sum(
        (spec.corpus.source_tokens, spec.corpus.target_tokens))  # fmt: skip
    tokens = loop.batch_tokens // loop.micro_batches // lengths * lengths
    assert told.operations / told.all_tokens * tokens == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_a_checkpoint_is_as_large_as_told(tmp_path):
    settings = small(tmp_path)
    told, model, _, optimizer, step = step_of(settings, "2-2-8 3-1 dqlib")
    step()
    optimizer.step()
    weights = model.state_dict()
    state = {"model": weights, "best_weights": copy.deepcopy(weights), "optimizer": optimizer.state_dict()}
    checkpoints = Checkpoints(tmp_path / "c", "a")
    for number in range(4):
        checkpoints.save(number, state)
    each = {path.name: sum(file.stat().st_size for file in path.iterdir()) for path in (tmp_path / "c").glob("step*")}
    assert (len(each) + 1) * max(each.values()) == pytest.approx(told.checkpoint_bytes, rel=0.1)


def test_totals_count_students_that_are_trained_at_a_time(tmp_path):
    settings = small(tmp_path)
    told = plan(settings, tflops=2.0)
    students_ = [each for each in told.trainings if each.size_bytes is not None]
    assert told.at_a_time == min(at_a_time(), 5)
    assert plan(settings, devices=1).at_a_time == 1
    assert plan(settings, devices=1).memory_bytes < plan(settings, devices=2).memory_bytes
    assert told.memory_bytes >= told.at_a_time * max(each.memory.total for each in students_)
    assert told.hours == pytest.approx(plan(settings, tflops=4.0).hours * 2)
    assert told.hours == pytest.approx(sum(each.runs * each.operations for each in told.trainings) / 2e12 / 3600)


def test_the_command_prints_a_table_or_json_and_errors_as_a_sentence(capsys, tmp_path):
    small(tmp_path)
    assert main(["--params", str(tmp_path / "small.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "summarization: 2-2-8 3-1 dqlib" in printed
    assert "TFLOP/s (--tflops)" in printed
    assert main(["--params", str(tmp_path / "small.yaml"), "--json", "--tflops", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["tflops"] == 1.0
    assert students.main(["--params", str(tmp_path / "small.yaml"), "--dry-run"]) == 0
    assert capsys.readouterr().out == printed
    for wrong, said in (
        (["--params", "nothing"], "error: profile: 'nothing'"),
        (["--params", "smoke", "--tflops", "0"], "error: tflops: 0.0"),
        (["--params", "smoke", "--devices", "0"], "error: devices: 0"),
        (["--params", "smoke", "--task", "poetry"], "error: task: 'poetry'"),
    ):
        assert main(wrong) == 2
        assert capsys.readouterr().err.startswith(said)
