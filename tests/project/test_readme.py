from types import SimpleNamespace

import pandas
import pytest

from dqlib.study.__main__ import main
from dqlib.study.params.tasks import TASKS
from dqlib.study.report import read
from dqlib.study.report.pages import overview_table
from dqlib.study.report.readme import aims_table, filled
from tests.helpers import grid


def test_a_table_is_put_between_its_marks_and_nothing_else_changes():
    text = "a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\n<!-- end -->\nc\n"
    once = filled(text, {"one": "| 1 |\n", "two": "| \\2 |\n"})
    assert once == "a\n<!-- one -->\n| 1 |\n<!-- end -->\nb\n<!-- two -->\n| \\2 |\n<!-- end -->\nc\n"
    assert filled(once, {"one": "| 1 |\n", "two": "| \\2 |\n"}) == once


def test_the_overview_has_one_row_per_kind_of_model_and_one_column_per_task():
    table = overview_table(grid.metrics(eli5={("2-2-8", "one"): 0.25}))
    assert table.columns.tolist()[2:] == ["summarization, ROUGE-L", "eli5, ROUGE-L", "translation, BLEU"]
    by_model = table.set_index("model")
    assert by_model.loc["`2-2-8`, one and one", "eli5, ROUGE-L"] == "7.75 (25.0%)"
    assert by_model.loc["`2-2-8`, all layers, quantization alone", "translation, BLEU"] == "63.70 (70.0%)"
    assert by_model.loc["teacher", "summarization, ROUGE-L"] == "26.00"


def test_an_aim_is_reached_or_not_by_the_numbers():
    extra = {("4-4-8", "full"): 0.99, ("1-1-8", "full"): 0.8}
    metrics = grid.metrics(summarization=extra)
    table = aims_table(metrics, metrics[:0], grid.retention(metrics)).set_index("aim")
    assert len(table) == sum(len(known.aims) + (known.teacher_aim is not None) for known in TASKS.values())
    assert table.reached["summarization: `4-4-8`, all layers, at least 99% of the teacher"] == "yes"
    assert table.reached["summarization: `1-1-8`, all layers, at least 90% of the teacher"] == "no"
    assert table.measured["translation: teacher, BLEU of at least 90"] == "91.00"


def test_an_aim_may_be_reached_by_longer_training_and_then_says_so():
    parts = {("4-4-8", "full"): 0.99, ("2-2-8", "full"): 0.7, ("1-1-8", "full"): 0.8}
    metrics = grid.metrics(summarization=parts)
    short = metrics[(metrics.task == "summarization") & metrics.config.isin(["1-1-8 2-4", "2-2-8 2-4"])]
    short = short[short.preset == "dqlib"]
    longer = short.assign(train_steps=short.train_steps + 1500)
    longer["retention"] = longer.config.map({"1-1-8 2-4": 0.91, "2-2-8 2-4": 0.8})
    table = aims_table(metrics, pandas.concat([short, longer]), grid.retention(metrics)).set_index("aim")
    one_bit = table.loc["summarization: `1-1-8`, all layers, at least 90% of the teacher"]
    assert (one_bit.measured, one_bit.reached) == ("80.0% (79.6 to 80.4)", "trained longer")
    steps = int(longer.train_steps.iloc[0])
    assert one_bit["trained longer"] == f"91.0% ({steps:,} steps, one seed)"
    assert table.reached["summarization: `2-2-8`, all layers, at least 96% of the teacher"] == "no"


@pytest.fixture
def pages(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(read, "project_root", lambda: tmp_path)
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr(read, "load_settings", lambda params: SimpleNamespace(runs=tmp_path / "runs" / params))
    return tmp_path / "runs" / "laptop" / "notebooks", opened


def test_the_comparison_is_opened_unless_another_page_is_asked_for(pages, capsys):
    folder, opened = pages
    folder.mkdir(parents=True)
    for name in ("teacher-eli5", "compare", "eli5"):
        (folder / f"{name}.html").write_text("<html></html>")
    assert main(["read", "--params", "laptop"]) == 0
    assert main(["read", "eli5", "--params", "laptop"]) == 0
    assert [address.rpartition("/")[2] for address in opened] == ["compare.html", "eli5.html"]
    assert capsys.readouterr().out.splitlines()[:3] == [
        f"runs/laptop/notebooks/{name}.html" for name in ("compare", "eli5", "teacher-eli5")
    ]


@pytest.mark.parametrize("arguments", [[], ["nowhere"]])
def test_a_page_that_is_not_there_is_an_error_of_one_sentence(pages, capsys, arguments):
    folder, opened = pages
    if arguments:
        folder.mkdir(parents=True)
        (folder / "compare.html").write_text("<html></html>")
    assert main(["read", *arguments, "--params", "laptop"]) == 2
    message = capsys.readouterr().err
    assert (message[:7], message.count("\n"), opened) == ("error: ", 1, [])
