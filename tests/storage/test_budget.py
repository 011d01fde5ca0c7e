"""Bits of each module under a budget: the exact optimum, within the bytes, and a student like any other."""

from dataclasses import replace
from functools import cache, partial
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BartConfig

from dqlib.config import FULL_PRECISION, Config, in_megabytes
from dqlib.errors import InputError
from dqlib.losses import logits_kl
from dqlib.presets import get_preset
from dqlib.sensitivity import sensitivities
from dqlib.storage.budget import choose_bits, knapsack
from dqlib.storage.footprint import size_bytes
from dqlib.student import make_student, module_quantizers, quantize_model, quantized_modules, round_for_storage
from tests.helpers.models import CASES, calibration_of, data_of, make_teacher
from tests.helpers.packed import kept, logits

#: Tied, untied, without a decoder, and with weights that lie the other way round.
KINDS = pytest.mark.parametrize("name", ["mbart", "t5-untied", "bert", "gpt2"])


@cache
def extremes(name):
    """Bytes of the smallest and the largest student that a budget may become."""
    students = (make_student(make_teacher(name), Config.parse(f"{b}-{b}-8 {CASES[name].layers}")) for b in (1, 8))
    return tuple(map(size_bytes, students))


@cache
def measured(name):
    """What each module of a teacher, which stays as it is, loses; it takes a second."""
    teacher = make_teacher(name)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    found = sensitivities(teacher, calibration_of(name))
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert not teacher.training
    return found


def chosen(name, budget):
    config = Config.parse(f"auto:{in_megabytes(budget)} {CASES[name].layers}")
    return choose_bits(make_teacher(name), config, measured=measured(name))


def mixed(name="mbart"):
    """A student with half of the bytes between the smallest and the largest."""
    return make_student(make_teacher(name), chosen(name, sum(extremes(name)) // 2)).eval()


# --- the knapsack

number = st.one_of(st.integers(0, 3).map(float), st.floats(-1, 10, allow_nan=False))
group = st.lists(st.tuples(st.integers(0, 40), number), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(st.lists(group, min_size=1, max_size=6), st.floats(0, 1.1))
def test_the_knapsack_is_as_good_as_trying_all(groups, part):
    sizes, losses = ([[pair[i] for pair in of] for of in groups] for i in (0, 1))
    smallest, largest = sum(map(min, sizes)), sum(map(max, sizes))
    capacity = int(smallest + part * (largest - smallest))
    places = knapsack(sizes, losses, capacity)
    assert sum(of[place] for of, place in zip(sizes, places, strict=True)) <= capacity
    every = product(*(range(len(of)) for of in sizes))
    fitting = [each for each in every if sum(of[i] for of, i in zip(sizes, each, strict=True)) <= capacity]
    best = min(sum(of[i] for of, i in zip(losses, each, strict=True)) for each in fitting)
    assert sum(of[place] for of, place in zip(losses, places, strict=True)) == pytest.approx(best, abs=1e-8)


# --- what a module loses


def shallow_teacher():
    """BART with a layer on each side."""
    torch.manual_seed(0)
    config = CASES["bart"].config.to_dict() | {"encoder_layers": 1, "decoder_layers": 1}
    return CASES["bart"].model(BartConfig.from_dict(config)).eval()


def test_a_sensitivity_is_the_loss_of_a_teacher_with_that_one_weight_replaced():
    teacher, (batch,) = shallow_teacher(), calibration_of("bart")
    found = sensitivities(teacher, [batch], activation_bits=FULL_PRECISION)
    inputs, counts = data_of("bart").inputs, batch["labels"] >= 0
    for bits in (1, 2):
        student = make_student(teacher, Config.parse(f"{bits}-{bits}-32 1-1"))
        for path in ("model.shared", "model.decoder.layers.0.fc2"):
            other = shallow_teacher()
            other.get_submodule(path).weight.data.copy_(student.get_submodule(path).quantized().dequantize())
            with torch.no_grad():
                lost = logits_kl(other(**inputs).logits, teacher(**inputs).logits, counts)
            assert found[path][bits] == pytest.approx(float(lost), abs=1e-5)
            assert found[path][bits] > found[path][8]


@KINDS
def test_every_quantized_weight_has_a_sensitivity_at_each_number_of_bits(name):
    found = measured(name)
    student = make_student(make_teacher(name), Config.parse(f"2-2-8 {CASES[name].depths}"))
    positions = {id(each) for path, each in quantized_modules(student).items() if each.weight_quantizer.bits == 8}
    weights = {id(each.weight) for each in quantized_modules(student).values() if id(each) not in positions}
    assert {id(student.get_submodule(path).weight) for path in found} == weights
    assert len(found) == len(weights)
    assert all(set(by_bits) == {1, 2, 4, 8} for by_bits in found.values())


def test_a_method_without_a_grid_at_one_bit_has_no_sensitivity_there():
    found = sensitivities(shallow_teacher(), calibration_of("bart"), "dq-bart-faithful")
    assert all(set(by_bits) == {2, 4, 8} for by_bits in found.values())


# --- bits within a budget


@KINDS
def test_a_student_of_a_budget_has_no_more_bytes_and_the_best_bits_that_fit(name):
    teacher, sums = make_teacher(name), []
    smallest, largest = extremes(name)
    middle = (smallest + largest) // 2
    for budget in (smallest, middle, largest - 1, largest):
        bits_of = chosen(name, budget)
        student = make_student(teacher, bits_of)
        assert size_bytes(student) <= budget
        assert {path: each.bits for path, each in module_quantizers(student).items()} == dict(bits_of.modules)
        sums.append(sum(bits for _, bits in bits_of.modules))
        if budget == middle and name == "mbart":
            config = Config.parse(f"auto:{in_megabytes(budget)} {CASES[name].layers}")
            assert make_student(teacher, config, calibration=calibration_of(name)).dqlib_config == bits_of
    assert sums[0] < sums[1] < sums[2] < sums[3]


def test_a_budget_for_everything_gives_all_the_most_bits_and_the_smallest_one_the_fewest():
    teacher = make_teacher("bart")
    for budget, bits in zip(extremes("bart"), (1, 8), strict=True):
        student = make_student(teacher, chosen("bart", budget))
        uniform = make_student(teacher, Config.parse(f"{bits}-{bits}-8 2-1"))
        assert {b for _, b in student.dqlib_config.modules} == {bits}
        assert (student.dqlib_config.w_bits, student.dqlib_config.e_bits) == (bits, bits)
        assert torch.equal(logits(student.eval(), "bart"), logits(uniform.eval(), "bart"))


def test_a_layer_that_was_copied_has_the_sensitivity_of_the_one_it_came_from():
    teacher = make_teacher("bart")  # of three encoder layers a student with two has the first and the last
    losses = {path: dict.fromkeys((1, 2, 4, 8), 0.0) for path in measured("bart")}
    losses["model.encoder.layers.2.fc1"] = {1: 1.0, 2: 0.5, 4: 0.2, 8: 0.0}
    config = Config.parse(f"auto:{in_megabytes(sum(extremes('bart')) // 2)} 2-1")
    bits = dict(choose_bits(teacher, config, measured=losses).modules)
    assert bits.pop("model.encoder.layers.1.fc1") == 8
    assert set(bits.values()) == {1}
    # as rounding of activations may have it; more bits are never taken to be worse
    losses = {path: {1: 1.0, 2: 0.5, 4: 0.1, 8: 0.1 + 1e-9} for path in losses}
    config = Config.parse(f"auto:{in_megabytes(extremes('bart')[1])} 2-1")
    assert {b for _, b in choose_bits(teacher, config, measured=losses).modules} == {8}
    # layers that a text does not name are the teacher's
    config = choose_bits(teacher, Config.parse("auto:0.01MB"), measured=losses)
    assert (config.encoder_layers, config.decoder_layers, str(config)) == (3, 2, "auto:0.01MB")


# --- a student like any other


@KINDS
def test_a_student_of_mixed_bits_is_the_same_saved_and_packed_in_the_bytes_that_are_counted(name, tmp_path):
    student = mixed(name)
    assert len({bits for _, bits in student.dqlib_config.modules}) > 1
    round_for_storage(student)
    kept(student, name, tmp_path)
    assert size_bytes(student) <= student.dqlib_config.budget


def test_every_parameter_of_a_student_of_mixed_bits_learns():
    student, data = mixed("mbart").train(), data_of("mbart")
    output = student(**data.inputs).logits
    torch.nn.functional.cross_entropy(output.flatten(0, 1), data.labels.flatten()).backward()
    without = [name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in without if "k_proj.bias" not in name] == []  # a softmax does not see these


# --- what is refused


def test_a_budget_that_no_student_has_is_refused():
    teacher, calibration = make_teacher("bart"), calibration_of("bart")
    smallest, _ = extremes("bart")
    no_grid = replace(get_preset("dqlib"), weight_bits=(3, 5, FULL_PRECISION), by_bits={})
    nothing = [batch | {"labels": torch.full_like(batch["labels"], -100)} for batch in calibration]
    allowed = rf"budget of 'auto:0.0001MB 2-1': '0.0001MB' .* at least {in_megabytes(smallest)}"
    for budget, preset, batches, message in (
        ("0.1kB 2-1", "dqlib", calibration, allowed),
        (f"{in_megabytes(smallest - 1)} 2-1", "dqlib", calibration, "smallest"),
        ("0.008MB 2-1", "dqlib", None, r"calibration: .* at least one batch"),
        ("0.008MB 2-1", "dqlib", [], r"calibration: .* at least one batch"),
        ("0.008MB 2-1", "dqlib", nothing, "none of which counts"),
        ("1MB", no_grid, calibration, "1, 2, 4 and 8"),
    ):
        with pytest.raises(InputError, match=message):
            make_student(teacher, Config.parse(f"auto:{budget}"), preset, batches)


def test_modules_without_bits_of_their_own_and_bits_of_no_module_quantize_nothing():
    chosen = partial(replace, Config.parse("auto:0.008MB 3-2"), w_bits=2, e_bits=2)
    for config, message in (
        (Config.parse("auto:0.008MB"), "one whose bits are chosen"),
        (chosen(modules=(("model.shared", 2),)), r"bits of model\..*fc1|bits of model\..*proj"),
        (chosen(modules=(("model.nowhere", 2),)), "modules: 'model.nowhere'"),
    ):
        with pytest.raises(InputError, match=message):
            quantize_model(make_teacher("bart"), config)
