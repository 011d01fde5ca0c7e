"""The tables of README.md and docs/, filled from ``results/``: ``python -m dqlib.study readme``.

A table stands between ``<!-- NAME -->`` and ``<!-- end -->``; the text around it is written by hand.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas

from dqlib.errors import InputError
from dqlib.files import write_text
from dqlib.study.params.paths import project_root
from dqlib.study.params.tasks import TASKS, benchmark_file
from dqlib.study.pipeline.benchmark import benchmark_of
from dqlib.study.pipeline.ledger import LONGER, METHODS, PARTS
from dqlib.study.pipeline.study import Study
from dqlib.study.report.benchmark import benchmark_summary, gap_table
from dqlib.study.report.benchmark_page import gaps_for_reading, summary_for_reading, with_losses
from dqlib.study.report.names import METRIC_NAMES, SHAPES, is_model, percent, written
from dqlib.study.report.pages import METRICS_CSV, markdown_table, overview_table, short_table
from dqlib.study.report.verdicts import Tables


def aims_table(metrics: pandas.DataFrame, longer: pandas.DataFrame, retention: pandas.DataFrame) -> pandas.DataFrame:
    """Each aim with what was measured, and by a student that was trained for longer where there is one.

    Args:
        metrics: of the default study.
        longer: runs of the benchmark in the same columns, of the same teachers; those of more steps than a student of
            the default study count.
        retention: the intervals of what is left, in the columns of ``retention.csv``.

    Returns:
        Columns ``aim``, ``measured``, ``trained longer`` (where a student was), ``reached``.
    """
    empty = pandas.DataFrame()
    tables, rows = Tables(metrics, empty, retention, empty, empty), []
    for task, known in TASKS.items():
        if known.teacher_aim is not None:
            teacher, _ = tables.models(task)
            aim = f"{task}: teacher, {METRIC_NAMES[teacher.headline]} of at least {known.teacher_aim:g}"
            rows.append((aim, f"{teacher.score:.2f}", "", "yes" if teacher.score >= known.teacher_aim else "no"))
    for task, (bits, shape, least) in ((name, aim) for name, known in TASKS.items() for aim in known.aims):
        student = tables.shape(task, bits, shape)
        if student is None:
            raise InputError("metrics", task, f"a table with the student `{bits}`, {SHAPES[shape]}")
        runs = longer[is_model(longer, student) & (longer.train_steps > student.train_steps)]
        means = runs.groupby("train_steps").retention.agg(average="mean", seeds="count")
        more = [f"{percent(row.average)} ({row.Index:,} steps, {_seeds(row.seeds)})" for row in means.itertuples()]
        reached = "trained longer" if (means.average >= least).any() else "no"
        reached = "yes" if student.retention >= least else reached
        aim = f"{task}: `{bits}`, {SHAPES[shape]}, at least {100 * least:.0f}% of the teacher"
        rows.append((aim, str(tables.retention_in(student)), ", ".join(more), reached))
    table = pandas.DataFrame(rows, columns=["aim", "measured", "trained longer", "reached"])
    return table if table["trained longer"].any() else table.drop(columns="trained longer")


def _seeds(count: int) -> str:
    return f"{count} seeds" if count > 1 else "one seed"


def _of_the_teacher(runs: pandas.DataFrame, parts: pandas.DataFrame, training: pandas.DataFrame) -> pandas.DataFrame:
    """Runs of the benchmark of summarization whose teacher is the default study's: its validation loss tells."""
    ours = training[(training.task_name == "summarization") & (training.model == "teacher")].validation_loss.min()
    same = parts[(parts.teacher_loss - ours).abs() < 5e-5]
    return with_losses(runs, same).drop(columns="validation_loss")


#: Columns of :func:`engines_table`: heading, ``metric`` and format in ``benchmark.csv``.
ENGINE_METRICS = (
    *((what, f"latency, {what}", "{:,.0f} ms") for what in ("1 text, greedy", "4 texts, greedy", "16 texts, greedy")),
    ("1 text, 4 beams", "latency, 1 text, 4 beams", "{:,.0f} ms"),
    ("8 texts, 4 beams", "throughput, 8 texts, 4 beams", "{:.1f} texts/s"),
    *((f"{n} texts at once", f"throughput, {n} texts, greedy", "{:.1f} texts/s") for n in (8, 16)),
    ("memory", "memory", "{:,.0f} MB"),
)
#: Rows of ``benchmark.csv`` from which :func:`engines_table` is made.
NAMES_OF_SPEED = ("generation", "reading", "continuation", "low-bit", "memory")
#: Shape of the models that the tables of engines list.
LISTED = "BART-base"


def engines_table(speed: pandas.DataFrame, shape: str = LISTED) -> pandas.DataFrame:
    """How fast each engine is and what memory it takes: one row per model and engine, a column for what was measured.

    ``speed`` is what ``benchmarks/inference.py`` wrote, and ``shape`` that of the models that are listed.
    """
    rows = speed[(speed["shape"] == shape) & speed.name.isin(NAMES_OF_SPEED)]
    rows = rows.assign(model="`" + rows.config + "`").drop_duplicates(["model", "engine", "metric"])
    rows = rows.set_index(["model", "engine"])
    wide = rows.pivot(columns="metric", values="value").reindex(rows.index.unique())
    known = [(name, metric, form) for name, metric, form in ENGINE_METRICS if metric in wide]
    shown = {name: wide[metric].map(partial(written, form=form)) for name, metric, form in known}
    return pandas.DataFrame(shown).reset_index()


def long_tables(speed: pandas.DataFrame, shape: str = LISTED) -> str:
    """How long each engine takes to write more and more tokens, and which parts of it take how long, as Markdown.

    Two tables, of one row per model and engine, and of one row per number of tokens, from what
    ``benchmarks/inference.py`` wrote; nothing where it has no rows of it.
    """
    rows = speed[(speed["shape"] == shape) & (speed.name == "long")].drop_duplicates(["config", "engine", "metric"])
    if rows.empty:
        return ""
    words = rows.metric.str.removesuffix(", 1 text, greedy").str.partition(" of ")
    rows = rows.assign(model="`" + rows.config + "`", what=words[0], of=words[2])
    digits = rows.of.str.startswith("a token").astype(int)
    rows["shown"] = [f"{value:,.{few}f} ms" for value, few in zip(rows.value, digits, strict=True)]
    whole, parts = rows[rows.what == "latency"], rows[rows.what != "latency"]
    of_engines = whole.pivot_table("shown", ["model", "engine"], "of", aggfunc="first", sort=False)
    of_parts = parts.pivot_table("shown", "of", "what", aggfunc="first", sort=False).rename_axis("onnxruntime")
    return "\n".join(markdown_table(table.reset_index()) for table in (of_engines, of_parts))


def blocks(project: Path) -> dict[str, str]:
    """Every table of the pages by its name, as Markdown: of the default study, of GPT-2 and of BERT, in a project."""
    tables = project / "results" / "tables"
    names = (METHODS, LONGER, PARTS, METRICS_CSV, "training.csv", "benchmark.csv", "retention.csv")
    methods, longer, parts, metrics, training, speed, retention = (pandas.read_csv(tables / name) for name in names)
    runs = with_losses(methods, parts)
    presets = benchmark_of(Study(str(project / "profiles" / "study.yaml"))).presets
    summary = benchmark_summary(runs[runs.preset.isin(presets)])
    further = pandas.concat([methods, longer[longer.train_steps > methods.train_steps.max()]])
    language, of_language = (
        pandas.read_csv(project / "results" / "gpt2" / "tables" / name)
        for name in (METRICS_CSV, benchmark_file(PARTS, "language"))
    )
    classes = pandas.read_csv(project / "results" / "bert" / "tables" / METRICS_CSV)
    return {
        "topics": markdown_table(short_table(classes[classes.task == "topics"])),
        "pairs": markdown_table(short_table(classes[classes.task == "matching"])),
        "language": markdown_table(short_table(language)),
        "language-gaps": markdown_table(gaps_for_reading(gap_table(of_language))),
        "overview": markdown_table(overview_table(metrics)),
        "aims": markdown_table(aims_table(metrics, _of_the_teacher(further, parts, training), retention)),
        "bench": markdown_table(summary_for_reading(summary)),
        "gaps": markdown_table(gaps_for_reading(gap_table(parts[parts.part.isin(presets)]))),
        "engines": markdown_table(engines_table(speed)),
        "bert": markdown_table(engines_table(speed, "BERT-base")),
        "gpt2": markdown_table(engines_table(speed, "GPT-2")),
        "long": long_tables(speed),
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
