"""The committed results agree with each other and with the README, whatever a user has made since."""

import pandas
import pytest
import yaml

from dqlib.study.evaluation.records import columns_of
from dqlib.study.params.paths import FIGURES, TABLES
from dqlib.study.params.settings import load_settings
from dqlib.study.pipeline.benchmark import benchmark_of
from dqlib.study.pipeline.study import Study
from dqlib.study.report.benchmark import COMPARED
from dqlib.study.report.pages import METRICS_JSON, TASK_PAGES, markdown_table, short_table
from dqlib.study.report.readme import blocks, filled, pages
from dqlib.study.report.reproduction import MEASURED
from dqlib.study.report.scores import SCORES
from dqlib.study.report.tables import Collected
from tests.helpers import grid
from tests.helpers.projects import committed

ROOT = committed()
STUDY = str(ROOT / "profiles" / "study.yaml")


@pytest.fixture(
    params=[("results", "study"), *((f"results/{name}", name) for name in ("laptop", "gpt2", "bert", "real"))],
    ids=lambda each: each[1],
)
def study(request):
    """A folder of results, the parameters that they were made with, and its scores."""
    folder, profile = request.param
    metrics = pandas.read_csv(ROOT / folder / "tables" / "metrics.csv")
    return ROOT / folder, load_settings(ROOT / "profiles" / f"{profile}.yaml"), metrics


def test_the_columns_are_the_documented_ones_tell_of_no_run_and_follow_from_each_other(study):
    *_, metrics = study
    assert set(metrics.columns) - {"seeds"} == {name for task in metrics.task for name in columns_of(task)}
    assert not any(word in column for column in metrics for word in ("time", "date", "path", "second"))
    assert (metrics.compression - metrics.teacher_size_bytes / metrics.size_bytes).abs().max() < 0.006
    for row in metrics.to_dict("records"):
        assert row["score"] == row[row["headline"]]


def test_there_is_a_row_for_each_student_of_the_parameters_and_one_for_each_of_its_seeds(study):
    folder, settings, metrics = study
    every = pandas.read_csv(folder / "tables" / "seeds.csv") if "seeds" in metrics else None
    for name, rows in metrics[metrics.role == "student"].groupby("task"):
        task = settings.tasks[name]
        assert list(zip(rows.config, rows.preset, strict=True)) == [(str(c), preset) for c, preset in task.students()]
        assert set(rows.train_steps) == {task.distill.steps}
        if every is not None:  # which folders lack that were made before there were several
            of = every[(every.role == "student") & (every.task == name)]
            seeded = [(str(config), preset, seed) for config, preset, seed in task.seeded_students()]
            assert list(zip(of.config, of.preset, of.seed, strict=True)) == seeded
            assert list(rows.seeds) == of.groupby(["config", "preset"], sort=False).size().tolist()


def test_the_page_shows_the_tables(study):
    folder, _, metrics = study
    page = "".join(each.read_text() for each in (folder / "README.md", *folder.glob("tasks/*.md")))
    for _, rows in metrics.groupby("task", sort=False):
        assert markdown_table(short_table(rows)) in page
    assert markdown_table(pandas.read_csv(folder / "tables" / "claims.csv")) in page


def test_the_readme_the_documentation_and_the_page_of_the_benchmark_show_the_tables():
    texts, tables = [page.read_text() for page in pages(ROOT)], blocks(ROOT)
    assert [filled(text, tables) for text in texts] == texts
    assert all(any(f"<!-- {name} -->\n{table}" in text for text in texts) for name, table in tables.items())
    assert tables["bench"] in (ROOT / "results" / "methods" / "README.md").read_text()


def test_the_pipeline_lists_all_that_the_report_writes():
    metrics = grid.metrics()
    decided = {
        name: getattr(grid, name)(metrics) for name in ("comparisons", "retention", "accumulation", "similarity")
    }
    others = ("seeds", "training", "details", "positions", "lengths", "sizes", "sensitivity", "scores")
    tables = Collected(metrics=metrics, **decided, **dict.fromkeys(others, metrics[:0])).files()
    written = {*(f"{TABLES}/{name}" for name in tables), SCORES, f"{MEASURED}/${{profile}}.json", METRICS_JSON}
    written |= {"README.md", TASK_PAGES, FIGURES}
    outs = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["compare"]["outs"]
    listed = [path for out in outs for path in ([out] if isinstance(out, str) else out)]
    prefix = "${results}/"
    assert sorted(path.removeprefix(prefix) for path in listed if path.startswith(prefix)) == sorted(written)


def test_the_benchmark_has_a_row_per_run_of_the_committed_parameters_or_names_what_is_missing():
    benchmark_rows = pandas.read_csv(ROOT / "results" / "tables" / "methods.csv")
    runs = benchmark_of(Study(STUDY)).runs_of_equal_steps()
    rows = set(zip(benchmark_rows.preset, benchmark_rows.config, benchmark_rows.seed, strict=True))
    assert {*columns_of("summarization"), *COMPARED} <= set(benchmark_rows.columns)
    assert len(rows) == len(benchmark_rows)
    missing = {run.preset for run in runs if (run.preset, str(run.config), run.seed) not in rows}
    page = (ROOT / "results" / "methods" / "README.md").read_text()
    assert all(f"`{name}`" in page.partition("Not run yet:")[2] for name in missing)
    assert rows <= {(run.preset, str(run.config), run.seed) for run in runs}
    assert benchmark_rows.train_steps.nunique() == benchmark_rows.n_test.nunique() == 1
    others = benchmark_rows[benchmark_rows.preset != "dqlib"]
    assert (others.baseline == "dqlib").all()
    assert others.p_value.between(0, 1).all()
