"""Measurements of the notebook ``quantization`` agree with the quantizers, and with what is known."""

import pandas
import pytest
import torch

from dqlib.config import Config, WeightQuantization
from dqlib.fake_quantize import WeightFakeQuantizer
from dqlib.schemes import SCHEMES
from dqlib.storage.footprint import footprint
from dqlib.student import make_student, quantized_modules
from dqlib.study.evaluation.similarity import similarity_table
from dqlib.study.notebooks import activations, errors, gradients, matrices, tokens
from dqlib.study.report.style import colour_of


@pytest.fixture
def weight():
    return torch.randn(12, 32, generator=torch.Generator().manual_seed(0)) / 8


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=str)
def test_every_value_lies_on_the_grid_that_is_drawn(weight, scheme):
    for bits in scheme.bits:
        codes = errors.quantized(weight, bits, scheme)
        values = codes.dequantize().unique()
        grid = torch.tensor(matrices._grid(codes, scheme))
        assert len(grid) >= len(values)
        assert (values.unsqueeze(1) - grid).abs().amin(dim=1).max() < 1e-6


def test_bits_per_weight_are_those_of_the_footprint(teacher):
    student = make_student(teacher, Config.parse("2-4-8 1-1"))
    entries = {entry.name: entry for entry in footprint(student)}
    for name, module in quantized_modules(student).items():
        entry = entries.get(f"{name}.weight")
        if entry is not None:
            counted = errors.bits_per_weight(module.quantized()) * entry.numel / 8
            assert counted == pytest.approx(entry.size_bytes, abs=1)  # bytes are whole


def test_the_error_table_leaves_out_groups_that_do_not_fit(weight):
    table = errors.errors(weight[:, :20], ("per_tensor", "per_row", "per_group_32"))
    assert set(table.granularity) == {"per_tensor", "per_row"}
    by_bits = table[(table.scheme == "symmetric") & (table.granularity == "per_row")].sort_values("bits")
    assert by_bits["error (%)"].is_monotonic_decreasing


def test_the_staircase_has_the_derivatives_of_the_papers():
    stairs = gradients.staircase(bits=3)
    inside = stairs.weight.abs() <= 3
    torch.testing.assert_close(stairs.value, stairs.weight.round().clamp(-3, 3))
    torch.testing.assert_close(stairs.to_weight, inside.float())
    torch.testing.assert_close(stairs.to_step, torch.where(inside, stairs.value - stairs.weight, stairs.value))


@pytest.mark.parametrize("start", [0.4, 20.0])
def test_a_learned_step_comes_near_the_least_error(weight, start):
    log = gradients.learn_step(weight, 3, start)
    least = min(errors.error_at(weight, 3, gamma / 20) for gamma in range(20, 100))
    assert log["error (%)"].iloc[-1] < 1.1 * least


def test_words_follow_the_intervals(teacher, batch):
    table = similarity_table({"teacher": teacher}, teacher, batch, resamples=10)
    assert tokens.in_words(table) == ""
    table.loc["a student"] = table.loc["teacher"]
    table.loc["a student", ["more_alike", "low", "high"]] = 0.2, 0.1, 0.3
    assert "more alike than the teacher's" in tokens.in_words(table)


def test_hidden_state_finds_the_token_that_stands_out(teacher, batch):
    hidden = activations.hidden_state(teacher, batch)
    assert hidden.layer.startswith("encoder.layers.")
    assert hidden.states.shape[:2] == batch.input_ids.shape
    one = hidden.states[0][hidden.mask[0]]
    a_token = activations.token_errors(one, 4, per_tensor=False)
    assert a_token.mean() < activations.token_errors(one, 4, per_tensor=True).mean()


def test_every_figure_is_drawn_and_names_its_axes(weight, teacher, batch):
    table = similarity_table({"teacher": teacher}, teacher, batch, resamples=10)
    for figure in (
        matrices.grids(weight, [(8, "symmetric"), (1, "binary")]),
        matrices.mosaic(weight),
        matrices.scale_sweep(weight, (2, 3)),
        matrices.row_sizes(weight),
        matrices.error_by_bits(errors.errors(weight)),
        gradients.straight_through(),
        gradients.learned_steps(weight, 2, (1.0,)),
        tokens.similarity_maps({"teacher": teacher}, batch),
        tokens.similarity_points(table),
    ):
        assert any(axes.get_xlabel() for axes in figure.axes)
        assert any(axes.get_ylabel() or len(axes.get_yticklabels()) for axes in figure.axes)


def test_every_scheme_of_the_table_is_drawn_in_a_colour_of_its_own(weight):
    table = errors.errors(weight, ("per_tensor", "per_row"))
    mine = table[table.scheme == "lsq"].assign(scheme="mine")
    figure = matrices.error_by_bits(pandas.concat([table, mine]))
    (axes,) = figure.axes
    colours = {line.get_label(): line.get_color() for line in axes.lines if not line.get_label().startswith("_")}
    schemes = [*SCHEMES, "mine"]
    assert [colours[scheme] for scheme in schemes] == [colour_of(scheme) for scheme in schemes]
    assert len({colours[scheme] for scheme in schemes}) == len(schemes)
    drawn = [line.get_color() for line in axes.lines if len(line.get_xdata())]
    assert all(drawn.count(colour_of(scheme)) == 2 for scheme in schemes)  # one line per granularity


def test_a_trained_scale_is_shown_where_its_training_starts(weight):
    quantizer = WeightFakeQuantizer(weight, 2, "per_tensor", WeightQuantization(two_bits="dynamic"))
    torch.testing.assert_close(errors.quantized(weight, 2, "dynamic").dequantize(), quantizer(weight).detach())
