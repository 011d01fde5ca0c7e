"""Every layer of a student learns alone, from what entered the teacher's layers that it stands for."""

from __future__ import annotations

import pytest
import torch

from dqlib.architectures import architecture_of
from dqlib.config import Config
from dqlib.layerwise import LayerStates, layerwise_states, layerwise_terms, relative_mse, stretches
from dqlib.losses import logits_kl
from dqlib.student import make_student, supervision_maps
from tests.helpers.models import CASES, EVERY, data_of, make_teacher, student_of


def terms_of(student, teacher, data):
    states = layerwise_states(student, teacher, data.inputs, supervision_maps(student.dqlib_config, teacher))
    return layerwise_terms(*states, data.labels, data.source_mask)


def test_the_stretches_of_all_layers_are_those_of_the_teacher_without_a_gap():
    assert stretches([0, 1, 2]) == [(0, 0), (1, 1), (2, 2)]
    assert stretches([0, 3]) == [(0, 0), (1, 3)]
    assert stretches([3]) == [(0, 3)]
    assert stretches([]) == []


@EVERY
def test_a_student_that_is_its_teacher_has_nothing_to_learn(name):
    teacher = make_teacher(name)
    student = make_student(teacher, Config.parse(f"32-32-32 {CASES[name].depths}")).eval()
    terms = terms_of(student, teacher, data_of(name))
    sides = {side for side in ("encoder", "decoder") if getattr(architecture_of(teacher.config), side) is not None}
    assert set(terms) == {"logits"} | {f"{side}_{what}" for side in sides for what in ("embeddings", "layers")}
    assert all(abs(value) < 1e-9 for value in terms.values())


@EVERY
def test_all_that_a_student_trains_learns_and_no_hook_is_left(name):
    teacher, data = make_teacher(name), data_of(name)
    student = student_of(teacher, name)
    before = student(**data.inputs).logits
    terms = terms_of(student, teacher, data)
    assert all(torch.isfinite(value) and value > 0 for value in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    without = [key for key, p in student.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []  # processes that share a step would wait for it
    matrices = {key: p.grad for key, p in student.named_parameters() if p.dim() > 1 and p.requires_grad}
    assert all(torch.isfinite(gradient).all() for gradient in matrices.values())
    assert [key for key, gradient in matrices.items() if not gradient.any() and "token_type" not in key] == []
    assert all(p.grad is None for p in teacher.parameters())
    assert torch.equal(student(**data.inputs).logits, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*student.modules(), *teacher.modules()])


@EVERY
def test_each_layer_gets_what_entered_the_teachers_stretch(name):
    # By hand: each layer is called once more, with the teacher's state and the other arguments that it had.
    teacher, data = make_teacher(name), data_of(name)
    student = student_of(teacher, name).eval()
    for module in student.modules():  # a cache would be longer at the second call
        if hasattr(module, "config"):
            module.config.use_cache = False
    maps = supervision_maps(student.dqlib_config, teacher)
    with torch.no_grad():
        ours, theirs = layerwise_states(student, teacher, data.inputs, maps)
        states = teacher(**data.inputs, output_hidden_states=True)
    calls = {}

    def keep(layer, args, kwargs):
        calls[layer] = args, kwargs

    for side, stack in architecture_of(teacher.config).stacks.items():
        layers = student.get_submodule(stack.layers)
        hidden = getattr(states, f"{side}_hidden_states", None) or states.hidden_states
        supervisors = getattr(maps, side)
        handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
        with torch.no_grad():
            # The encoder's output is the teacher's, as long as the final normalization of the student's is a copy.
            has_encoder = hasattr(states, "encoder_last_hidden_state")
            encoded = (
                {"encoder_outputs": (states.encoder_last_hidden_state,)} if side == "decoder" and has_encoder else {}
            )
            student(**data.inputs | encoded)
        for handle in handles:
            handle.remove()
        for i, layer in enumerate(layers):
            enters = hidden[supervisors[i - 1] + 1 if i else 0]
            torch.testing.assert_close(theirs.entering[side][i], enters)
            args, kwargs = calls[layer]
            with torch.no_grad():
                output = layer(enters, *args[1:], **kwargs) if args else layer(**kwargs | {"hidden_states": enters})
            output = output if isinstance(output, torch.Tensor) else output[0]
            torch.testing.assert_close(ours.leaving[side][i], output)
        for i, last in enumerate(supervisors[:-1]):
            torch.testing.assert_close(theirs.leaving[side][i], hidden[last + 1])


def test_a_layer_that_errs_harms_no_other():
    teacher, data = make_teacher("mbart"), data_of("mbart")
    student = make_student(teacher, Config.parse("32-32-32 3-2")).eval()
    with torch.no_grad():
        student.model.encoder.layers[0].fc2.weight.normal_()
        ours, theirs = layerwise_states(student, teacher, data.inputs, supervision_maps(student.dqlib_config, teacher))
    for side, expected in {"encoder": [False, True, True], "decoder": [True, True]}.items():
        pairs = zip(ours.leaving[side], theirs.leaving[side], strict=True)
        assert [torch.allclose(*pair, atol=1e-5) for pair in pairs] == expected
    torch.testing.assert_close(ours.logits, theirs.logits)


def test_terms_follow_the_formula_and_padding_does_not_count():
    def states(layers):
        made = {"encoder": 4, "decoder": 3}
        sides = {side: [torch.randn(2, n, 5, dtype=torch.float64) for _ in range(layers)] for side, n in made.items()}
        leaving = {side: [torch.randn_like(x) * 3 for x in each] for side, each in sides.items()}
        return LayerStates(sides, leaving, torch.randn(2, 3, 7, dtype=torch.float64))

    ours, theirs = states(2), states(2)
    labels = torch.tensor([[1, 2, -100], [3, -100, -100]])
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    found = layerwise_terms(ours, theirs, labels, mask)

    def by_hand(student, teacher, mask):
        total = 0.0
        for b, i in mask.nonzero().tolist():
            total += float((student[b, i] - teacher[b, i]).square().sum() / teacher[b, i].square().sum())
        return total / int(mask.sum())

    for side, counts in (("encoder", mask), ("decoder", labels > 0)):
        pairs = zip(ours.leaving[side], theirs.leaving[side], strict=True)
        layers = [by_hand(*pair, counts) for pair in pairs]
        assert found[f"{side}_layers"].item() == pytest.approx(sum(layers) / 2)
        first = by_hand(ours.entering[side][0], theirs.entering[side][0], counts)
        assert found[f"{side}_embeddings"].item() == pytest.approx(first)
    torch.testing.assert_close(found["logits"], logits_kl(ours.logits, theirs.logits, labels > 0))
    split = layerwise_terms(ours, theirs, labels, mask, (10.0, 20.0))
    torch.testing.assert_close(split["encoder_layers"] * 10, found["encoder_layers"] * 5)
    torch.testing.assert_close(split["logits"] * 20, found["logits"] * 3)


def test_a_state_of_zeros_divides_by_nothing():
    student = torch.ones(1, 2, 3, requires_grad=True)
    loss = relative_mse(student * 0, torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert torch.isfinite(student.grad).all()
