"""The tables of README.md and docs/, filled from ``results/``: ``python -m dqlib.study readme``.

A table stands between ``<!-- NAME -->`` and ``<!-- end -->``; the text around it is written by hand.
"""

from __future__ import annotations

from pathlib import Path

import pandas

from dqlib.errors import InputError
from dqlib.files import write_text
from dqlib.study.params.paths import project_root
from dqlib.study.params.tasks import TASKS
from dqlib.study.pipeline.benchmark import benchmark_of
from dqlib.study.pipeline.ledger import LONGER, METHODS, PARTS
from dqlib.study.pipeline.study import Study
from dqlib.study.report.benchmark import benchmark_summary
from dqlib.study.report.benchmark_page import summary_for_reading, with_losses
from dqlib.study.report.names import METRIC_NAMES, SHAPES
from dqlib.study.report.pages import METRICS, markdown_table, overview_table
from dqlib.study.report.verdicts import Tables


def aims_table(
    metrics: pandas.DataFrame, longer: pandas.DataFrame | None = None, retention: pandas.DataFrame | None = None
) -> pandas.DataFrame:
    """Each aim with what was measured, and by a student that was trained for longer where there is one.

    Args:
        metrics: of the default study.
        retention: the intervals of what is left, in the columns of ``retention.csv``.
        longer: longer runs of summarization's students in the same columns; those of another teacher are left out.

    Returns:
        Columns ``aim``, ``measured``, ``trained longer``, ``reached``.
    """
    empty = pandas.DataFrame()
    tables = Tables(metrics, empty, empty if retention is None else retention, empty, empty)
    rows = []
    teachers = {name: known.teacher_aim for name, known in TASKS.items() if known.teacher_aim is not None}
    for task, least in teachers.items():
        teacher = metrics[(metrics.task == task) & (metrics.role == "teacher")].iloc[0]
        aim = f"{task}: teacher, {METRIC_NAMES[teacher.headline]} of at least {least:g}"
        rows.append((aim, f"{teacher.score:.2f}", "", "yes" if teacher.score >= least else "no"))
    for task, (bits, shape, least) in ((name, aim) for name, known in TASKS.items() for aim in known.aims):
        student = tables.shape(task, bits, shape)
        if student is None:
            raise InputError("metrics", task, f"a table with the student `{bits}`, {SHAPES[shape]}")
        aim = f"{task}: `{bits}`, {SHAPES[shape]}, at least {100 * least:.0f}% of the teacher"
        more, reached = "", "yes" if student.retention >= least else "no"
        if longer is not None:
            same_teacher = (longer.score / longer.retention - student.score / student.retention).abs() < 0.05
            runs = longer[
                (longer.task == task)
                & (longer.config == student.config)
                & (longer.train_steps > student.train_steps)
                & same_teacher
            ]
            more = ", ".join(f"{100 * run.retention:.1f}% ({run.train_steps:,} steps)" for run in runs.itertuples())
            if reached == "no" and (runs.retention >= least).any():
                reached = "trained longer"
        measured = (
            f"{100 * student.retention:.1f}%" if retention is None else str(tables.retention_of(task, bits, shape))
        )
        rows.append((aim, measured, more, reached))
    table = pandas.DataFrame(rows, columns=["aim", "measured", "trained longer", "reached"])
    return table if table["trained longer"].any() else table.drop(columns="trained longer")


#: Columns of :func:`engines_table`: heading, ``metric`` and format in ``benchmark.csv``.
ENGINE_METRICS = (
    ("1 text, greedy", "latency, 1 text, greedy", "{:,.0f} ms"),
    ("4 texts, greedy", "latency, 4 texts, greedy", "{:,.0f} ms"),
    ("16 texts, greedy", "latency, 16 texts, greedy", "{:,.0f} ms"),
    ("1 text, 4 beams", "latency, 1 text, 4 beams", "{:,.0f} ms"),
    ("8 texts, 4 beams", "throughput, 8 texts, 4 beams", "{:.1f} texts/s"),
    ("memory", "memory", "{:,.0f} MB"),
)


def engines_table(speed: pandas.DataFrame, shape: str = "BART-base") -> pandas.DataFrame:
    """How fast each engine is and what memory it takes: one row per model and engine.

    Args:
        speed: what ``benchmarks/inference.py`` wrote.
        shape: of the models that are listed.
    """
    rows = speed[(speed["shape"] == shape) & speed.name.isin(["generation", "low-bit", "memory"])]
    rows = rows.drop_duplicates(["config", "engine", "metric"])
    table = []
    for (config, engine), some in rows.groupby(["config", "engine"], sort=False):
        values = some.set_index("metric").value
        shown = {name: form.format(values[metric]) if metric in values else "" for name, metric, form in ENGINE_METRICS}
        table.append({"model": f"`{config}`", "engine": engine, **shown})
    return pandas.DataFrame(table)


def blocks(project: Path) -> dict[str, str]:
    """Every table of the pages by its name, as Markdown: those of the default study in a project's folder."""
    tables, default = project / "results" / "tables", project / "profiles" / "laptop.yaml"
    runs = with_losses(pandas.read_csv(tables / METHODS), pandas.read_csv(tables / PARTS))
    summary = benchmark_summary(runs[runs.preset.isin(benchmark_of(Study(str(default))).presets)])
    metrics = pandas.read_csv(tables / METRICS)
    speed = pandas.read_csv(tables / "benchmark.csv")
    longer, retention = tables / LONGER, pandas.read_csv(tables / "retention.csv")
    further = pandas.read_csv(longer) if longer.is_file() else None
    return {
        "overview": markdown_table(overview_table(metrics)),
        "aims": markdown_table(aims_table(metrics, further, retention)),
        "bench": markdown_table(summary_for_reading(summary)),
        "engines": markdown_table(engines_table(speed)),
    }


def filled(text: str, tables: dict[str, str]) -> str:
    """The text with every table between its marks replaced."""
    for name, table in tables.items():
        start, mark, rest = text.partition(f"<!-- {name} -->\n")
        end = rest.find("<!-- end -->")
        text = start + mark + table + rest[end:] if mark and end >= 0 else text
    return text


def pages(project: Path) -> list[Path]:
    """The Markdown files that may show tables: the README and the pages of ``docs/``."""
    return [project / "README.md", *sorted((project / "docs").glob("*.md"))]


def fill_readme() -> None:
    """Fill the README and the pages of ``docs/``."""
    tables = blocks(project_root())
    for path in pages(project_root()):
        text = path.read_text(encoding="utf-8")
        if filled(text, tables) != text:
            write_text(path, filled(text, tables))
