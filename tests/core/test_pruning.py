"""Fewer heads and neurons: what is left computes as before, what is left out matters least, readers make the shape."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from dqlib.architectures import architecture_of, submodule
from dqlib.config import Config, WeightQuantization
from dqlib.errors import InputError
from dqlib.loss_weights import LossWeights
from dqlib.presets import get_preset
from dqlib.pruning import importance, narrow, norms, prune, units
from dqlib.storage.account import account
from dqlib.storage.footprint import fp32_size_bytes, size_bytes
from dqlib.storage.manifest import MANIFEST
from dqlib.storage.plain import plain_model
from dqlib.storage.students import load_student, save_student
from dqlib.student import make_student, round_for_storage, supervision_maps
from dqlib.terms import distillation_terms
from tests.helpers.folders import reseal
from tests.helpers.models import CASES, EVERY, WANTED, calibration_of, data_of, make_teacher
from tests.helpers.packed import kept, logits


def narrow_student(name, bits="2-2-8", layers=None, widths="h1 f10", preset="dqlib"):
    config = Config.parse(f"{bits} {layers or CASES[name].layers} {widths}")
    return make_student(make_teacher(name), config, preset, calibration_of(name))


def all_units(model):
    return {each.path: each for side in architecture_of(model.config).stacks for each in units(model, side)}


def silenced(teacher, kept):
    """The teacher, in which only some units of each path say anything."""
    for each in all_units(teacher).values():
        mask = torch.zeros(each.count)
        mask[kept[each.path]] = 1
        mask = mask.repeat_interleave(each.size).double()
        each.reader.register_forward_pre_hook(lambda _, inputs, mask=mask: (inputs[0] * mask,))
    return teacher


# --- what is left


@EVERY
def test_what_is_left_computes_as_the_teacher_whose_other_heads_and_neurons_are_silent(name):
    teacher, inputs = make_teacher(name).double(), data_of(name).inputs
    heads, neurons = [1], [0, 3, 4, 7, 23]
    scores = {}
    for path, each in all_units(teacher).items():
        scores[path] = torch.zeros(each.count)
        scores[path][heads if each.attention is not None else neurons] = 1.0
    config = Config.parse(f"32-32-32 {CASES[name].depths} h1 f5")
    student = make_student(teacher, replace(config, heads=None, ffn=None))
    origins = {side: range(getattr(config, f"{side}_layers")) for side in architecture_of(teacher.config).stacks}
    prune(student.eval(), config, scores, origins)
    assert {len(each) for part in student.dqlib_kept_heads.values() for each in part} == {1}
    kept = {path: torch.nonzero(score).flatten().tolist() for path, score in scores.items()}
    with torch.no_grad():
        ours, theirs = student(**inputs).logits, silenced(teacher, kept)(**inputs).logits
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    assert {each.count for each in all_units(student).values()} == {1, 5}


@EVERY
def test_all_heads_and_neurons_are_the_teacher(name):
    teacher, inputs = make_teacher(name), data_of(name).inputs
    heads, neurons = architecture_of(teacher.config).widths(teacher.config)
    whole, widest = (
        make_student(teacher, Config.parse(f"2-2-8 {CASES[name].layers}{widths}"), "dqlib").eval()
        for widths in ("", f" h{heads} f{neurons}")
    )
    with torch.no_grad():
        assert torch.equal(whole(**inputs).logits, widest(**inputs).logits)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), widest.state_dict().values(), strict=True)
    )


def test_layers_that_share_biases_by_head_keep_the_same_heads():
    student = narrow_student("t5", "32-32-32", "3-2")
    assert len(set(map(tuple, student.dqlib_kept_heads["encoder"]))) == 1
    kept = student.dqlib_kept_heads["encoder"][0]
    ours, theirs = (
        model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias for model in (student, make_teacher("t5"))
    )
    assert torch.equal(ours.weight, theirs.weight[:, kept])


def test_a_copied_layer_keeps_what_matters_in_the_layer_that_it_is_a_copy_of():
    teacher = make_teacher("bart")
    scores = importance(teacher, calibration_of("bart"))
    student = narrow_student("bart", "32-32-32", "2-1", "h1 f3")
    for ours, theirs in ((0, 0), (1, 2)):  # layers of the encoder
        best = scores[f"model.encoder.layers.{theirs}.fc2"].argsort(descending=True)[:3].sort().values
        path = "model.encoder.layers.{}.fc1.weight"
        state, of_teacher = student.state_dict(), teacher.state_dict()
        assert torch.equal(state[path.format(ours)], of_teacher[path.format(theirs)][best])
        head = int(scores[f"model.encoder.layers.{theirs}.self_attn.out_proj"].argmax())
        assert student.dqlib_kept_heads["encoder"][ours] == [head]


# --- importance


@EVERY
def test_importance_is_the_derivative_of_the_loss_by_a_gate(name):
    teacher, data = make_teacher(name).double(), data_of(name)
    one = {key: value[:1] for key, value in data.inputs.items()} | {"labels": data.labels[:1]}
    counted = int((one["labels"] >= 0).sum())
    scores = importance(teacher, [one])
    assert scores.keys() == all_units(teacher).keys()
    coarse = name.startswith(("t5", "gpt2"))  # which compute a norm, or the loss, in fp32 whatever the rest is in
    step, error = (1e-2, {"rel": 2e-2, "abs": 2e-3}) if coarse else (1e-6, {"rel": 1e-4, "abs": 1e-7})
    for path, each in list(all_units(teacher).items())[::2]:
        for unit in range(2):
            losses = []
            for sign in (1, -1):
                gate = torch.ones(each.count, dtype=torch.double)
                gate[unit] += sign * step
                gate = gate.repeat_interleave(each.size)
                hook = each.reader.register_forward_pre_hook(lambda _, inputs, gate=gate: (inputs[0] * gate,))
                losses.append(float(teacher(**one).loss.detach()) * counted)
                hook.remove()
            expected = abs(losses[0] - losses[1]) / (2 * step)
            assert float(scores[path][unit]) == pytest.approx(expected, **error)


def test_importance_is_a_mean_over_examples_however_they_are_batched():
    teacher, data = make_teacher("bart").double(), data_of("bart")
    whole = importance(teacher, calibration_of("bart"))
    rows = [{key: value[i : i + 1] for key, value in data.inputs.items()} | {"labels": data.labels[i : i + 1]}
            for i in range(3)]  # fmt: skip
    for path, score in importance(teacher, rows).items():
        torch.testing.assert_close(score, whole[path])
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(each.reader._forward_pre_hooks for each in all_units(teacher).values())


@EVERY
def test_without_a_calibration_set_the_smallest_weights_are_left_out(name):
    teacher = make_teacher(name)
    with torch.no_grad():
        for each in all_units(teacher).values():
            weight = each.reader.weight if type(each.reader).__name__ == "Conv1D" else each.reader.weight.T
            weight[: each.size] *= 1e-3  # of the first head or neuron
    assert all(int(score.argmin()) == 0 for score in norms(teacher).values())
    student = make_student(teacher, Config.parse(f"2-2-8 {CASES[name].layers} h1 f23"), "dqlib")
    assert all(kept == [1] for part in student.dqlib_kept_heads.values() for kept in part)


# --- training


@pytest.mark.parametrize(("name", "reduction"), [*((name, "tokens") for name in CASES), ("bart", "reference")])
def test_a_narrow_student_learns_from_the_attention_maps_of_the_heads_that_it_kept(name, reduction):
    teacher, data = make_teacher(name), data_of(name)
    student = narrow_student(name, "32-32-32", widths="h1")
    maps = supervision_maps(student.dqlib_config, teacher, student)
    ours, theirs = student(**data.inputs, **WANTED), teacher(**data.inputs, **WANTED)
    weights = LossWeights(logits_loss="mse", reduction=reduction)
    terms = distillation_terms(ours, theirs, data.labels, data.source_mask, maps, weights)
    # the first layer of the first stack reads what the teacher's reads, so its head gives the same map
    first = next(part for part in ("encoder", "decoder") if part in maps.heads)
    field = next(f for f in (f"{first}_attentions", "attentions") if f in ours)
    head = maps.heads[first][0][0]
    torch.testing.assert_close(getattr(ours, field)[0][:, 0], getattr(theirs, field)[0][:, head])
    assert {term for term in terms if term.endswith("attention")} == {f"{part}_attention" for part in maps.heads}
    assert all(torch.isfinite(value) for value in terms.values())
    sum(terms.values()).backward()
    assert all(each.reader.weight.grad.abs().sum() > 0 for each in all_units(student).values())


def test_maps_need_the_student_where_heads_are_left_out():
    teacher = make_teacher("bart")
    config = Config.parse("2-2-8 2-1 h1")
    with pytest.raises(InputError, match=r"^student: None .* which heads '2-2-8 2-1 h1' has"):
        supervision_maps(config, teacher)
    assert not supervision_maps(Config.parse("2-2-8 2-1 f8"), teacher).heads


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.generates])
def test_a_narrow_student_generates_with_its_cache_as_without(name):
    student, inputs = narrow_student(name, "32-32-32").eval(), data_of(name).inputs
    inputs = {key: value[:1] for key, value in inputs.items() if key != "decoder_input_ids"}
    with torch.no_grad():
        written = [
            student.generate(**inputs, max_new_tokens=6, do_sample=False, use_cache=cache) for cache in (True, False)
        ]
    assert torch.equal(*written)


# --- storage


@pytest.mark.parametrize(("name", "widths"), [*((name, "h1 f10") for name in CASES), ("bart", "h1"), ("gpt2", "f10")])
def test_a_narrow_student_is_saved_packed_and_read_again_bit_for_bit_in_the_bytes_of_its_shape(name, widths, tmp_path):
    student = narrow_student(name, widths=widths)
    whole = make_student(make_teacher(name), Config.parse(f"2-2-8 {CASES[name].layers}"), "dqlib")
    removed = fp32_size_bytes(whole) - fp32_size_bytes(student)
    assert 0 < removed == account(whole).total.fp32_bytes - account(student).total.fp32_bytes
    round_for_storage(student.eval())
    again, packed = kept(student, name, tmp_path)
    assert size_bytes(student) < size_bytes(whole)
    registered = type(student).from_pretrained(tmp_path / "packed", attn_implementation="dqlib").eval()
    assert torch.equal(logits(registered, name), logits(student, name))
    assert getattr(again, "dqlib_kept_heads", None) == getattr(student, "dqlib_kept_heads", None)
    plain = plain_model(student)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in packed.state_dict().items()}


def test_bits_are_chosen_for_narrow_layers_too(tmp_path):
    teacher = make_teacher("bart")
    config = Config.parse("auto:0.005MB 2-1 h1 f10")
    student = make_student(teacher, config, "dqlib", calibration_of("bart"))
    assert size_bytes(student) <= 5000
    assert student.dqlib_config.modules
    assert {each.count for each in all_units(student).values()} == {1, 10}
    save_student(student, tmp_path)
    assert str(load_student(tmp_path).dqlib_config) == str(config)


def test_a_manifest_that_tells_of_another_shape_is_refused(tmp_path):
    save_student(narrow_student("bart"), tmp_path)
    about = json.loads((tmp_path / MANIFEST).read_text())["about"]
    cross = {"cross": [[0]]}
    heads = (
        None,
        {"encoder": [[0], [0]], "decoder": [[0]]},
        {"encoder": [[0], [2]], "decoder": [[0]]} | cross,
        {"encoder": [[0], [0, 1]], "decoder": [[0]]} | cross,
        {"encoder": 3, "decoder": [[0]]} | cross,
    )
    for changes, message in (
        ({"config": "2-2-8 2-1 h2 f10"}, r"weight: .* is not allowed; it must be of the shape"),
        ({"config": "2-2-8 2-1 f10"}, r"weight: .* is not allowed; it must be of the shape"),
        ({"config": "2-2-8 2-1 h3 f10"}, r"heads: 3 .* at most 2"),
        ({"config": "2-2-8 2-1 h1 f11"}, r"^config: '2-2-8 2-1 h1 f11' .* one of f10, as config.json has it"),
        *(({"kept_heads": each}, r"^kept_heads: .* 1 of the teacher's heads") for each in heads),
    ):
        reseal(tmp_path, about=about | changes)
        with pytest.raises(InputError, match=message) as caught:
            load_student(tmp_path)
        assert "\n" not in str(caught.value)


# --- refusing


def test_bad_input_is_refused_in_one_sentence():
    ids, calibration, teacher = torch.tensor([[3]]), calibration_of("bart"), make_teacher("bart")
    groups = replace(get_preset("dqlib"), name="groups", weights=WeightQuantization(linear="per_group_16"))
    for widths, preset, batches, message in (
        ("h3", "dqlib", calibration, r"^config '2-2-8 2-1 h3', heads: 3 .* at most 2, as many as the teacher has"),
        ("f25", "dqlib", calibration, r"^config '2-2-8 2-1 f25', ffn: 25 .* at most 24, as many as the teacher has"),
        ("h1", "dqlib", [], r"^calibration: 'no batches' .* one batch at least"),
        ("h1", "dqlib", [{"input_ids": ids}], r"^calibration: \['input_ids'\] .* with labels"),
        ("h1", "dqlib", ["a text"], r"^calibration: 'str' .* with labels"),
        ("h1", "dqlib", [{"input_ids": ids, "labels": torch.tensor([[-100]])}], r"^calibration: nan .* finite"),
        ("h1 f20", groups, None, r"heads: .* the groups of 16 weights of 'groups' divide"),  # divide the widths
        ("h2 f20", groups, None, r"ffn: .* the groups of 16 weights of 'groups' divide"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            make_student(teacher, Config.parse(f"2-2-8 2-1 {widths}"), preset, batches)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"^heads: 3 .* at most 2"):  # nothing is made wider
        narrow(make_teacher("gpt2"), 3)
    assert submodule(narrow(make_teacher("gpt2"), 1), "transformer.h.0.attn").num_heads == 1
