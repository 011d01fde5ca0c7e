from dataclasses import replace
from itertools import islice

import pytest
import torch
from accelerate import Accelerator
from transformers import MBartConfig, MBartForConditionalGeneration

from dqlib.config import Config
from dqlib.errors import InputError
from dqlib.loss_weights import LossWeights
from dqlib.presets import Recipe
from dqlib.student import make_student, quantized_modules
from dqlib.study.corpora.corpus import load_corpus
from dqlib.study.pipeline.study import Study
from dqlib.study.training.loop import TrainingError, make_accelerator, validation_loss
from dqlib.study.training.objectives import DistillationObjective, TaskObjective
from dqlib.study.training.task import TaskTraining, training_by
from dqlib.terms import LayerMaps
from tests.helpers.models import TINY
from tests.helpers.training import log_of, small_model, train


@pytest.fixture
def small():
    return small_model()


def test_training_lowers_the_validation_loss_and_logs_every_term(small, tmp_path):
    before, after = train(small, TaskObjective(), tmp_path)
    assert after < 0.7 * before
    log = log_of(tmp_path)
    assert set(log[0]) == {"step", "learning_rate", "loss", "task", "validation_loss"}
    assert int(log[-1]["step"]) == 60
    assert sum(row["validation_loss"] != "" for row in log) == 3


class ChangingObjective(TaskObjective):
    """Learns for 30 micro-batches; then the loss is multiplied by a factor."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.calls = factor, 0

    def terms(self, model, batch, denominators):
        self.calls += 1
        terms = super().terms(model, batch, denominators)
        return terms if self.calls <= 30 else {"task": self.factor * terms["task"]}


def test_the_weights_of_the_best_validation_are_kept(small, tmp_path):
    unlearns, options = ChangingObjective(-1.0), {"schedule": "constant_with_warmup", "validations": 8}
    _, after = train(small, unlearns, tmp_path, steps=40, **options)
    logged = [float(row["validation_loss"]) for row in log_of(tmp_path) if row["validation_loss"]]
    assert min(logged) < logged[-1]  # it did end worse than it once was
    assert after == pytest.approx(min(logged), rel=1e-4)


def test_a_training_that_fails_gives_back_its_best_weights_and_names_the_term(small, tmp_path):
    with pytest.raises(TrainingError, match=r"the loss term task is not a finite number at step \d+") as caught:
        train(small, ChangingObjective(float("nan")), tmp_path, steps=16, validations=8)
    assert caught.value.restored
    assert all(torch.isfinite(parameter).all() for parameter in small.parameters())


def test_too_little_memory_says_what_to_change(small, tmp_path, monkeypatch):
    def greedy(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(TaskObjective, "terms", greedy)
    message = r"micro-batch of 300 tokens at step 1; set micro_batches to 4.*or batch_tokens"
    with pytest.raises(TrainingError, match=message):
        train(small, TaskObjective(), tmp_path)


def test_a_weight_that_is_not_finite_is_named(small, tmp_path):
    with torch.no_grad():
        small.model.decoder.layers[0].fc1.weight[0, 0] = float("inf")
    with pytest.raises(TrainingError, match=r"the weight model\.decoder\.layers\.0\.fc1\.weight"):
        train(small, TaskObjective(), tmp_path, steps=4)


def test_training_twice_gives_the_same_bits(tmp_path):
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        shape = TINY | {"dropout": 0.1, "encoder_layers": 1, "decoder_layers": 1}
        model = MBartForConditionalGeneration(MBartConfig(**shape))
        train(model, TaskObjective(0.1), tmp_path, steps=8)
        weights.append(model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def distil(teacher, folder, recipe=Recipe(), **changes):  # noqa: B008 (frozen)
    """A small student, its validation losses before and after a training of some steps, and the rows of the log."""
    student = make_student(teacher, Config.parse("2-2-8 2-1"))
    objective = DistillationObjective(teacher, LayerMaps([0, 1], [1]), LossWeights(), recipe=recipe)
    options = {"learning_rate": 1e-3, "batch_tokens": 200, "micro_batches": 1, "validations": 1} | changes
    losses = train(student, objective, folder, parts={"recipe": recipe}, **options)
    return student, losses, log_of(folder)


def test_a_distilled_student_comes_closer_to_its_teacher(small, tmp_path):
    train(small, TaskObjective(), tmp_path, steps=20)
    _, (before, after), log = distil(small, tmp_path, steps=40)
    assert after < before
    for term in ("task", "logits", "encoder_attention", "cross_attention", "encoder_hidden", "decoder_hidden"):
        assert float(log[-1][term]) < float(log[0][term])


def blends(model):
    return {module.weight_quantizer.blend for module in quantized_modules(model).values()}


class WatchedObjective(TaskObjective):
    """Remembers how much of the quantized weights each micro-batch saw."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def terms(self, model, batch, denominators):
        self.seen.append(blends(model))
        return super().terms(model, batch, denominators)


def test_a_progressive_training_is_validated_on_the_quantized_weights_that_it_keeps(small, tmp_path, monkeypatch):
    student, objective, validated = make_student(small, Config.parse("2-2-8 2-1")), WatchedObjective(), []

    def watched(model, *rest):
        validated.append(blends(model))
        return validation_loss(model, *rest)

    monkeypatch.setattr("dqlib.study.training.loop.validation_loss", watched)
    options = {"steps": 8, "batch_tokens": 200, "micro_batches": 1, "validations": 4}
    train(student, objective, tmp_path, parts={"recipe": Recipe(progressive=0.75)}, **options)
    assert validated == [{1.0}] * 4
    assert [blend for (blend,) in objective.seen] == pytest.approx([min(1.0, step / 6) for step in range(1, 9)])


def test_a_layerwise_part_is_counted_and_has_a_rate_of_its_own(small, tmp_path):
    recipe = Recipe(layerwise=0.4, layerwise_rate=0.5)
    *_, rows = distil(small, tmp_path, recipe, steps=20, validations=2, warmup=0.25)
    assert [int(row["step"]) for row in rows] == list(range(1, 21))
    rates = [1e3 * float(row["learning_rate"]) for row in rows]
    alone = [0, 1 / 2, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    together = [0, 1 / 3, 2 / 3, *(i / 9 for i in range(9, 0, -1))]
    assert rates == pytest.approx([0.5 * rate for rate in alone] + together, abs=1e-5)
    layers = [row["decoder_layers"] for row in rows]
    assert all(layers[:8])
    assert not any(layers[8:])
    assert [bool(row["decoder_hidden"]) for row in rows] == [False] * 8 + [True] * 12
    assert float(layers[7]) < float(layers[1])


def test_losses_of_layers_fade_and_then_cost_nothing(small, tmp_path):
    *_, rows = distil(small, tmp_path, Recipe(layer_losses_until=0.5), steps=8)
    names = ("encoder_attention", "decoder_attention", "cross_attention", "encoder_hidden", "decoder_hidden")
    for row, weight in zip(rows, (1, 0.75, 0.5, 0.25, 0, 0, 0, 0), strict=True):
        terms = [row[name] for name in names]
        assert all(terms) if weight else not any(terms)
        layers = weight * sum(map(float, filter(None, terms)))
        assert float(row["loss"]) == pytest.approx(float(row["task"]) + float(row["logits"]) + layers, rel=1e-4)


def test_the_mean_of_the_last_weights_is_validated_and_kept(small, tmp_path, monkeypatch):
    step, taken, validated = torch.optim.AdamW.step, [], []

    def watched(self, *args, **options):
        result = step(self, *args, **options)
        taken.append({p: p.detach().clone() for group in self.param_groups for p in group["params"]})
        return result

    def watched_validation(model, *rest):
        validated.append(validation_loss(model, *rest))
        return validated[-1]

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    monkeypatch.setattr("dqlib.study.training.loop.validation_loss", watched_validation)
    constant = {"schedule": "constant_with_warmup"}
    student, (_, after), _ = distil(small, tmp_path, Recipe(average=0.4), steps=10, **constant)
    assert len(taken) == 10
    for kept in student.parameters():
        torch.testing.assert_close(kept.detach(), torch.stack([each[kept] for each in taken[6:]]).mean(dim=0))
    assert validated == [after]  # a student that went on with what it made of other weights would not have this loss


def test_validation_of_a_mean_leaves_the_training_as_it_is(small, tmp_path):
    losses = []
    for validations in (1, 6):
        *_, rows = distil(small, tmp_path, Recipe(average=0.5), steps=6, validations=validations)
        losses.append([row["loss"] for row in rows])
    assert losses[0] == losses[1]


def test_a_step_with_too_few_micro_batches_for_all_processes_is_refused(small, tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    before = {name: value.clone() for name, value in small.state_dict().items()}
    with pytest.raises(InputError, match=r"compute\.processes: 3 .* at most 2: .* 'test'"):
        train(small, TaskObjective(), tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


def test_short_sources_come_first_and_more_of_them_in_a_step(made_study):
    study = Study("small.yaml")
    spec = study.task
    training = training_by(Recipe(), replace(spec.distill, steps=8, batch_tokens=256, micro_batches=1))
    corpus = load_corpus(study.folders.corpus)
    task = TaskTraining(study.name, spec, study.folders, corpus, make_accelerator(0))

    def longest(recipe):
        taken = [batch for (batch,) in islice(task.batches(training, recipe), 8)]
        return [max(len(e.source) for e in batch) for batch in taken], [len(batch) for batch in taken]

    whole, counts = longest(Recipe())
    short, more = longest(Recipe(short_sources=0.75, short_length=0.25))
    limit = max(8, round(0.25 * spec.corpus.source_tokens))
    assert max(short[:6]) <= limit < max(whole)
    assert sum(more[:6]) > sum(counts[:6])
    assert (short[6:], more[6:]) == (whole[:2], counts[:2])  # the whole sources begin as they would have alone
    assert longest(Recipe(short_sources=0.0)) == (whole, counts)
