"""The tables of the main README, filled from ``results/``: ``python -m dqlib.study.readme``.

A table stands between ``<!-- NAME -->`` and ``<!-- end -->``; the text around it is written by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas

from dqlib.study.bench import bench_summary, summary_for_reading
from dqlib.study.claims import Tables
from dqlib.study.figures import METRIC_NAMES
from dqlib.study.grid_figures import SHAPES
from dqlib.study.methods import bench_of
from dqlib.study.paths import project_root, write_text
from dqlib.study.pipeline import Study
from dqlib.study.report import markdown_table, overview_table

#: What was aimed at: task, bits, shape, and the least retention.
AIMS = (
    ("summarization", "8-8-8", "full", 0.99),
    ("summarization", "4-4-8", "full", 0.99),
    ("summarization", "2-2-8", "full", 0.96),
    ("summarization", "2-2-8", "half", 0.95),
    ("summarization", "1-1-8", "full", 0.90),
    ("translation", "8-8-8", "full", 0.99),
    ("translation", "2-2-8", "full", 0.95),
)
#: And the least score of a teacher.
TEACHER_AIMS = (("summarization", 25.0), ("translation", 90.0))


def aims_table(metrics: pandas.DataFrame) -> pandas.DataFrame:
    """Each aim with what was measured; columns ``aim``, ``measured``, ``reached``."""
    empty = pandas.DataFrame()
    tables = Tables(metrics, empty, empty, empty)
    rows = []
    for task, least in TEACHER_AIMS:
        teacher = metrics[(metrics.task == task) & (metrics.role == "teacher")].iloc[0]
        aim = f"{task}: teacher, {METRIC_NAMES[teacher.headline]} of at least {least:g}"
        rows.append((aim, f"{teacher.score:.2f}", teacher.score >= least))
    for task, bits, shape, least in AIMS:
        student = tables.shape(task, bits, shape)
        aim = f"{task}: `{bits}`, {SHAPES[shape][2]}, at least {100 * least:.0f}% of the teacher"
        rows.append((aim, f"{100 * student.retention:.1f}%", student.retention >= least))
    return pandas.DataFrame(
        [(aim, measured, "yes" if reached else "no") for aim, measured, reached in rows],
        columns=["aim", "measured", "reached"],
    )


def blocks(results: Path) -> dict[str, str]:
    """Every table of the README by its name, as Markdown."""
    bench = pandas.read_csv(results / "methods.csv")
    summary = bench_summary(bench[bench.method.isin(bench_of(Study("params.yaml")).presets)])
    metrics = pandas.read_csv(results / "metrics.csv")
    return {
        "overview": markdown_table(overview_table(metrics)),
        "aims": markdown_table(aims_table(metrics)),
        "bench": markdown_table(summary_for_reading(summary)),
    }


def filled(text: str, tables: dict[str, str]) -> str:
    """The text with every table between its marks replaced."""
    for name, table in tables.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, t=table: m[1] + t + m[2], text, count=1, flags=re.DOTALL
        )
    return text


def main() -> None:
    """Fill the README."""
    path = project_root() / "README.md"
    write_text(path, filled(path.read_text(encoding="utf-8"), blocks(project_root() / "results")))


if __name__ == "__main__":
    main()
