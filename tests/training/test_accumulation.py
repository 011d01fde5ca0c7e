"""A step that is split into micro-batches has the gradients of the step as a whole, whatever the loss term."""

import pytest
import torch

from dqlib.config import Config
from dqlib.loss_weights import LossWeights
from dqlib.presets import Recipe, get_preset
from dqlib.student import make_student, set_attention_maps, supervision_maps
from dqlib.study.training.batches import Example, collate
from dqlib.study.training.loop import token_counts
from dqlib.study.training.objectives import DistillationObjective, TaskObjective
from tests.helpers.examples import copying
from tests.helpers.training import small_model

NONE = {"task": 0.0, "logits": 0.0, "attention": 0.0, "hidden": 0.0}
TERMS = {
    "task": LossWeights(**NONE | {"task": 1.0}),
    "logits-kl": LossWeights(**NONE | {"logits": 1.0}, temperature=2.0),
    "logits-mse": LossWeights(**NONE | {"logits": 1.0}, logits_loss="mse"),
    "logits-tsld": LossWeights(**NONE | {"logits": 1.0}, logits_loss="tsld", token_temperature=1.0),
    "attention": LossWeights(**NONE | {"attention": 1.0}),
    "attention-scores": LossWeights(**NONE | {"attention": 1.0}, attention_maps="scores"),
    "attention-relations": LossWeights(**NONE | {"attention": 1.0}, attention_maps="relations"),
    "hidden": LossWeights(**NONE | {"hidden": 1.0}),
    "last": LossWeights(layers="last"),
    "contrastive": LossWeights(**NONE, contrastive=1.0, momentum=0.0),
    "dqlib": get_preset("dqlib").loss,
    "layerwise": LossWeights(),
}
#: Of terms that a recipe asks for.
RECIPES = {"layerwise": Recipe(layerwise=0.5)}
CONFIGS = ["32-32-32 2-1", "2-2-8 2-1"]


def models(config):
    teacher = small_model().double()
    student = make_student(teacher, Config.parse(config))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))  # else its first layers are the teacher's
    return teacher, student


def gradients(config, examples, parts, weights, steps=1, recipe=Recipe()):  # noqa: B008 (frozen)
    """Loss and gradients of the last of some steps, each split into so many micro-batches, as the loop takes them."""
    teacher, student = models(config)
    for model in (teacher, student):
        set_attention_maps(model, weights.attention_maps)
    maps = supervision_maps(Config.parse(config), teacher)
    distillation = DistillationObjective(teacher, maps, weights, recipe=recipe)
    objective = distillation if weights.of_teacher else TaskObjective()
    size = -(-len(examples) // parts)
    micro_batches = [examples[i : i + size] for i in range(0, len(examples), size)]
    assert len(micro_batches) == parts
    for _ in range(steps):
        objective.begin(1, 2)
        student.zero_grad()
        loss = 0.0
        for each in micro_batches:
            terms = objective.terms(student, collate(each), token_counts(micro_batches))
            total = sum(objective.weight(term) * value for term, value in terms.items())
            total.backward()
            loss += total.item()
    return loss, {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


def difference(ones, others):
    assert ones.keys() == others.keys()
    return max((value - others[name]).abs().max().item() for name, value in ones.items())


@pytest.mark.parametrize(
    ("term", "config"),
    [*((term, CONFIGS[0]) for term in TERMS), *((term, CONFIGS[1]) for term in ("dqlib", "layerwise"))],
)
def test_micro_batches_leave_loss_and_gradients_as_they_are(term, config):
    examples = copying(8, 3)  # of different lengths, so that each split pads in its own way
    recipe = RECIPES.get(term, Recipe())
    loss, whole = gradients(config, examples, 1, TERMS[term], recipe=recipe)
    assert max(value.abs().max() for value in whole.values()) > 1e-4
    for parts in (2, 4):
        split_loss, split = gradients(config, examples, parts, TERMS[term], recipe=recipe)
        assert split_loss == pytest.approx(loss, rel=1e-6)
        assert difference(whole, split) < 1e-6


def distinct(count):
    """Examples whose targets have no token in common, not even the last."""
    return [Example([10 + i, 20 + i, 30 + i, 2], [40 + 5 * i, 41 + 5 * i, 42 + 5 * i]) for i in range(count)]


WITH_BANK = LossWeights(**NONE, contrastive=1.0, momentum=0.5)


def test_a_memory_bank_sees_micro_batches_one_after_another():
    # The bank mixes a token with what it kept of that token, and takes in each micro-batch before the next. So the
    # contrast does depend on the split, but only by tokens that several micro-batches of a step have in common.
    examples = distinct(8)
    _, whole = gradients(CONFIGS[0], examples, 1, WITH_BANK, steps=2)
    for parts in (2, 4):
        _, split = gradients(CONFIGS[0], examples, parts, WITH_BANK, steps=2)
        assert difference(whole, split) < 1e-6

    shared = copying(8, 3)
    _, whole = gradients(CONFIGS[0], shared, 1, WITH_BANK)
    _, split = gradients(CONFIGS[0], shared, 4, WITH_BANK)
    assert difference(whole, split) > 1e-6


def test_the_reduction_of_the_published_code_grows_with_the_number_of_micro_batches():
    # It takes means over each micro-batch, and a step is their sum: use it with one micro-batch, as the benchmark does.
    weights = get_preset("dq-bart-faithful").loss
    examples = [Example([10 + i, 20 + i, 2], [30 + i, 40 + i, 2]) for i in range(8)]  # of one length: no padding
    loss, _ = gradients(CONFIGS[0], examples, 1, weights)
    split_loss, _ = gradients(CONFIGS[0], examples, 2, weights)
    assert split_loss > 1.3 * loss
