"""The committed results agree with each other and with the README."""

import pandas
import pytest

from dqlib.study.bench import BENCH_COLUMNS, bench_summary, summary_for_reading
from dqlib.study.methods import bench_of
from dqlib.study.paths import project_root
from dqlib.study.pipeline import Study
from dqlib.study.report import markdown_table, short_table
from dqlib.study.results import COLUMNS

ROOT = project_root()


@pytest.fixture
def metrics():
    return pandas.read_csv(ROOT / "results" / "metrics.csv")


def test_the_columns_are_the_documented_ones_and_tell_of_no_run(metrics):
    assert tuple(metrics.columns) == COLUMNS
    assert not any(word in column for column in COLUMNS for word in ("time", "date", "path", "second"))


def test_numbers_follow_from_each_other(metrics):
    teacher = metrics[metrics.role == "teacher"].iloc[0]
    assert (metrics.retention - metrics.score / teacher.score).abs().max() < 1e-4
    assert (metrics.compression - metrics.teacher_size_bytes / metrics.size_bytes).abs().max() < 0.006
    assert (metrics.score == metrics.rougeL).all()
    assert (metrics.role == "student").sum() >= 5


def test_the_readmes_show_the_table_of_the_metrics(metrics):
    table = markdown_table(short_table(metrics))
    assert table in (ROOT / "README.md").read_text()
    assert table in (ROOT / "results" / "README.md").read_text()


def test_the_results_come_from_the_committed_parameters(metrics):
    import yaml

    from dqlib.config import Configuration

    params = yaml.safe_load((ROOT / "params.yaml").read_text())["summarization"]
    students = metrics[metrics.role == "student"]
    assert students.config.tolist() == [str(Configuration.parse(config)) for config in params["configs"]]
    assert set(students.train_steps) == {params["distill"]["steps"]}


@pytest.fixture
def bench_rows():
    return pandas.read_csv(ROOT / "results" / "methods.csv")


def test_the_bench_has_a_row_a_run_of_the_committed_parameters(bench_rows):
    cells = bench_of(Study("params.yaml")).cells()
    rows = set(zip(bench_rows.method, bench_rows.config, bench_rows.seed, strict=True))
    assert tuple(bench_rows.columns) == BENCH_COLUMNS
    assert len(rows) == len(bench_rows)
    assert rows == {(name, str(configuration), seed) for name, configuration, seed in cells}
    assert bench_rows.train_steps.nunique() == 1
    assert bench_rows.n_test.nunique() == 1


def test_the_bench_compares_with_the_reference_and_at_one_bit_with_xtc(bench_rows):
    ours = bench_rows[bench_rows.method == "dqlib"]
    expected = ours.w_bits.map(lambda bits: "xtc" if bits == 1 else "dq-bart-faithful")
    assert (ours.baseline == expected).all()
    assert ours.p_value.between(0, 1).all()


def test_the_readmes_show_the_bench(bench_rows):
    bench = bench_of(Study("params.yaml"))
    summary = summary_for_reading(bench_summary(bench_rows[~bench_rows.method.isin(bench.ablations)]))
    assert markdown_table(summary) in (ROOT / "README.md").read_text()
    assert markdown_table(summary) in (ROOT / "results" / "methods" / "README.md").read_text()
