"""The tables of the main README, filled from ``results/``: ``python -m dqlib.study.readme``.

A table stands between ``<!-- NAME -->`` and ``<!-- end -->``; the text around it is written by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas

from dqlib.study.bench import bench_summary, summary_for_reading
from dqlib.study.methods import bench_of
from dqlib.study.paths import project_root, write_text
from dqlib.study.pipeline import Study
from dqlib.study.report import markdown_table, overview_table


def blocks(results: Path) -> dict[str, str]:
    """Every table of the README by its name, as Markdown."""
    bench = pandas.read_csv(results / "methods.csv")
    summary = bench_summary(bench[~bench.method.isin(bench_of(Study("params.yaml")).ablations)])
    return {
        "overview": markdown_table(overview_table(pandas.read_csv(results / "metrics.csv"))),
        "claims": markdown_table(pandas.read_csv(results / "claims.csv")),
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
