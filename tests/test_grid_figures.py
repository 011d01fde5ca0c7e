import pandas
import pytest

from dqlib.study import grid_figures as g
from tests import grid


def texts(figure):
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    return found + [text.get_text() for legend in legends for text in legend.get_texts()]


def test_the_tradeoff_shows_every_model_of_every_task():
    metrics = grid.metrics()
    figure = g.tradeoffs(metrics)
    assert [axes.get_title() for axes in figure.axes] == list(grid.DEPTHS)
    for axes, (task, rows) in zip(figure.axes, metrics.groupby("task", sort=False), strict=True):
        students = rows[rows.role == "student"]
        drawn = sorted((line[0].get_xdata()[0], line[0].get_ydata()[0]) for line in axes.containers)
        assert drawn == sorted(zip(students.compression, students.score, strict=True)), task
    assert {"8-8-8", "2-2-8", "all layers", "one and one", "hollow: quantization alone"} <= set(texts(figure))


def test_the_map_shows_what_is_left_and_says_what_was_not_run():
    shown = texts(g.heat_map(grid.metrics(eli5={("2-2-8", "full"): 0.5})))
    assert "50.0" in shown
    assert "100.0" in shown
    assert "not run" in shown
    assert "70.0" not in shown  # quantization alone is not a point of the grid


def test_quality_along_the_output_has_a_panel_a_task_and_way():
    metrics = grid.metrics()
    lengths = grid.positions(metrics, "longest", (5, 9, 20, 40))
    figure = g.accumulation(grid.positions(metrics), lengths, metrics)
    assert len(figure.axes) == 6
    assert all(len(axes.lines) == len(grid.KEPT) + 1 for axes in figure.axes)  # the students and the teacher


def test_sizes_add_up_to_the_student():
    rows = [
        {"task": "eli5", "config": config, "part": part, "bytes": size}
        for config in ("2-2-8 2-4", "1-1-8 2-4", "32-32-32 2-2")
        for part, size in (("weights", 3e6), ("rest", 1e6))
    ]
    (axes,) = g.sizes(pandas.DataFrame(rows)).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["2-2-8 2-4", "1-1-8 2-4"]
    assert max(patch.get_x() + patch.get_width() for patch in axes.patches) == pytest.approx(4.0)
