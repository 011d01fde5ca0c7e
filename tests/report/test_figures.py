from itertools import combinations

import numpy as np
import pandas
import pytest
from matplotlib import colors

from dqlib.study.params.settings import load_settings
from dqlib.study.report import figures, style
from dqlib.study.report.benchmark_figures import presets_figure
from tests.helpers import grid


def texts(figure):
    parts = [*figure.axes, *figure.legends]
    return [text.get_text() for part in parts for text in part.texts]


def across(panel):
    return [label.get_text() for label in panel.get_xticklabels()]


def down(panel):
    return [label.get_text() for label in panel.get_yticklabels()]


def test_the_tradeoff_shows_every_model_of_every_task():
    metrics = grid.metrics()
    figure = figures.tradeoffs(metrics)
    assert [axes.get_title() for axes in figure.axes] == list(grid.DEPTHS)
    for axes, (task, rows) in zip(figure.axes, metrics.groupby("task", sort=False), strict=True):
        students = rows[rows.role == "student"]
        drawn = sorted((line[0].get_xdata()[0], line[0].get_ydata()[0]) for line in axes.containers)
        assert drawn == sorted(zip(students.compression, students.score, strict=True)), task
        assert [text.get_text() for text in axes.texts] == ["16.5x in BART", "27.7x in BART"]  # the papers' shapes
    assert {"8-8-8", "2-2-8", "all layers", "one and one", "hollow: quantization alone"} <= set(texts(figure))


def test_all_tasks_are_drawn_in_rows_of_three_and_up_is_better_in_each():
    metrics = pandas.concat([grid.metrics(), grid.of_readers(topics={"1-1-8 3-0": 0.9, "1-1-8 1-0": 0.8})])
    figure = figures.tradeoffs(metrics)
    assert [axes.get_title() for axes in figure.axes] == list(dict.fromkeys(metrics.task))
    assert len({round(axes.get_position().y0, 2) for axes in figure.axes}) == 2
    turned = [axes.get_title() for axes in figure.axes if axes.yaxis_inverted()]
    assert turned == ["language"]
    assert {"half the decoder", "half the layers", "one layer"} <= set(texts(figure))
    heat = figures.heat_map(metrics)
    named = [any(label.get_text() for label in axes.get_yticklabels()) for axes in heat.axes]
    assert named == [True, False, False] * 2
    lengths = grid.positions(grid.metrics(), "longest", (5, 9, 20, 40))
    assert len(figures.accumulation(grid.positions(grid.metrics()), lengths, metrics).axes) == 6  # of tasks that write


def test_the_map_shows_what_is_left_and_says_what_was_not_run():
    shown = texts(figures.heat_map(grid.metrics(eli5={("2-2-8", "full"): 0.5})))
    assert {"50.0", "100.0", "not run"} <= set(shown)
    assert "70.0" not in shown  # quantization alone is not a point of the grid


def test_quality_along_the_output_has_one_panel_per_task_and_view_and_a_place_for_each_group_of_lengths():
    metrics = grid.metrics()
    lengths = grid.positions(metrics, "longest", (3, 4, 4, 13))
    panels = figures.accumulation(grid.positions(metrics), lengths, metrics).axes
    assert len(panels) == 6
    assert all(len(axes.lines) == len(grid.RETENTION) + 1 for axes in panels)  # the students and the teacher
    for axes in panels[3:]:
        assert across(axes) == ["≤3", "3-4", "4", "4-13"]
        assert all(list(line.get_xdata()) == [1, 2, 3, 4] for line in axes.lines)


def test_a_name_that_is_not_built_in_has_a_colour_of_its_own_whatever_else_is_shown():
    names = [f"{kind}-{number}" for kind in ("mine", "3-3", "squared") for number in range(8)]
    colours = [style.colour_of(name) for name in names]
    style.colour_of.cache_clear()
    assert [style.colour_of(name) for name in reversed(names)] == colours[::-1]
    known = {*style.NAMED_COLOURS.values(), style.TEACHER_COLOUR}
    assert len(set(colours)) == len(names)
    assert all(np.subtract(colors.to_rgb(a), colors.to_rgb(b)).any() for a, b in combinations([*colours, *known], 2))


def test_bits_that_are_not_built_in_are_drawn_and_named_in_every_figure():
    metrics = grid.metrics(**{task: {("3-5-8", "full"): 0.93} for task in grid.DEPTHS})
    colour = style.colour_of("3-5-8")
    lengths = grid.positions(metrics, "longest", (5, 9, 20, 40))
    for figure in (figures.tradeoffs(metrics), figures.accumulation(grid.positions(metrics), lengths, metrics)):
        assert "3-5-8" in texts(figure)
        assert all(colour in [line.get_color() for line in axes.lines] for axes in figure.axes)
    heat = figures.heat_map(metrics)
    assert down(heat.axes[0]) == ["8-8-8", "3-5-8", "2-2-8"]
    assert "93.0" in texts(heat)


def test_presets_that_are_not_built_in_are_drawn_apart_in_the_figure_of_the_benchmark():
    bench = load_settings("tutorial").task("summarization").methods
    names = ["dqlib", "mine", "yours"]
    object.__setattr__(bench, "presets", names)
    rows = [grid.row("summarization", "2-2-8 2-2", preset=name) for name in names]
    (axes,) = presets_figure(pandas.DataFrame(rows), bench, "summarization").axes
    drawn = {line.get_label(): line.get_color() for line in axes.lines if line.get_label() in names}
    assert drawn == {name: style.colour_of(name) for name in names}
    assert len({*drawn.values(), style.TEACHER_COLOUR}) == len(names) + 1


def test_training_curves_show_every_row_of_the_log_and_name_what_they_measure():
    steps = range(1, 9)
    log = {"logits": [4.8, 2.0, 1.0, *[0.4] * 5], "step": steps, "model": "2-2-8 1-1"}
    small = {"logits": [0.0003, *[0.01] * 7], "step": steps, "model": "8-8-8 2-4"}
    curves = pandas.concat([pandas.DataFrame(log), pandas.DataFrame(small)]).assign(
        preset="dqlib", task_name="summarization"
    )
    (axes,) = figures.training_curves(curves).axes
    low, high = axes.get_ylim()
    assert low < 0.0003
    assert high > 4.8
    assert axes.get_ylabel() == "divergence from the teacher (nats per token)"
    (axes,) = figures.training_curves(curves.assign(preset="dq-bart")).axes
    assert "nats" not in axes.get_ylabel()  # its logits are compared by squared difference


def test_sizes_add_up_to_the_student():
    rows = [
        {"task": "eli5", "config": config, "part": part, "bytes": size}
        for config in ("2-2-8 2-4", "1-1-8 2-4", "32-32-32 2-2")
        for part, size in (("weights", 3e6), ("rest", 1e6))
    ]
    (axes,) = figures.sizes(pandas.DataFrame(rows)).axes
    assert down(axes) == ["2-2-8 2-4", "1-1-8 2-4"]
    assert max(patch.get_x() + patch.get_width() for patch in axes.patches) == pytest.approx(4.0)


def test_layers_that_are_not_built_in_and_narrow_students_have_columns_of_the_map_and_a_marker():
    shapes = (("1-3", 0.87), ("2-4 h2 f256", 0.86), ("2-4 f64", 0.85))
    metrics = pandas.concat(
        [grid.metrics(), *(pandas.DataFrame([grid.row("eli5", f"2-2-8 {s}", part=p)]) for s, p in shapes)]
    )
    heat, figure = figures.heat_map(metrics).axes[1], figures.tradeoffs(metrics)
    assert across(heat) == ["2-4", "2-4\nf64", "2-4\nh2 f256", "2-2", "1-3", "1-1"]
    assert {"87.0", "86.0", "85.0"} <= {text.get_text() for text in heat.texts}
    assert "fewer heads or neurons" in texts(figure)
    assert sum(line[0].get_marker() == "v" for line in figure.axes[1].containers) == 2


def test_sensitivities_are_a_map_of_layers_and_modules_per_task_and_number_of_bits():
    layers = ("encoder.layers.0", "encoder.layers.1", "decoder.layers.0")
    modules = ["model.shared", *(f"model.{layer}.{name}" for layer in layers for name in ("self_attn.q_proj", "fc1"))]
    table = pandas.DataFrame(
        {"task": task, "module": module, "bits": bits, "loss_increase": (i + 1) / 10**bits}
        for task in ("eli5", "translation")
        for bits in (1, 4)
        for i, module in enumerate(modules)
    )
    *panels, bar = figures.sensitivity(table).axes
    assert [axes.get_title() for axes in panels] == ["eli5", "translation", "", ""]
    assert [axes.get_ylabel() for axes in panels] == ["1 bit", "", "4 bits", ""]
    names = ["shared", "encoder 0", "encoder 1", "decoder 0"]
    assert down(panels[0]) == names
    assert across(panels[2]) == ["self.q", "fc1"]
    drawn = np.asarray(panels[0].images[0].get_array())
    assert np.allclose(drawn, [[0.1, 0.1], [0.2, 0.3], [0.4, 0.5], [0.6, 0.7]])  # a table fills its row
    assert "nats" in bar.get_ylabel()
    alone = {"topics": ("bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.0.output.dense"),
             "language": ("transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_fc")}  # fmt: skip
    measured = [(task, module, 1, 0.1) for task, modules in alone.items() for module in modules]
    *panels, _ = figures.sensitivity(pandas.DataFrame(measured, columns=list(table))).axes
    assert down(panels[0]) == ["encoder 0"]
    assert [across(axes) for axes in panels] == [["self.query", "output"], ["attn.c_attn", "mlp.c_fc"]]
