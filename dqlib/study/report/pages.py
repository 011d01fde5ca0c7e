"""Pages that a reader opens: ``results/README.md``, one page per task, their tables as CSV and their figures."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
from matplotlib.figure import Figure

from dqlib.errors import InputError
from dqlib.files import write_text
from dqlib.presets import get_preset
from dqlib.study.corpora.corpus import load_info
from dqlib.study.evaluation.records import FALLING, method_of
from dqlib.study.params.paths import FIGURES, TABLES, project_root
from dqlib.study.params.settings import TASKS, load_settings
from dqlib.study.pipeline.study import Study
from dqlib.study.report import figures
from dqlib.study.report.findings import findings
from dqlib.study.report.names import (
    METRIC_NAMES,
    QUANTIZATION_ALONE,
    SHAPES,
    TITLES,
    bits_of,
    interval_text,
    layers_of,
    named_shape,
    percent,
    teachers_of,
    with_interval,
    written,
)
from dqlib.study.report.reproduction import comparison, measured_on, write_measured
from dqlib.study.report.scores import SCORES, write_scores
from dqlib.study.report.style import save
from dqlib.study.report.tables import Collected, read_collected
from dqlib.study.report.verdicts import SIGNIFICANT

#: Files of the results, and the folder of the pages of the tasks.
METRICS_CSV, METRICS_JSON, TASK_PAGES = "metrics.csv", "metrics.json", "tasks"


def studies_of(params: str) -> list[Study]:
    """The tasks of a parameter file that are compared with each other."""
    settings = load_settings(params)
    return [Study(params, name, settings) for name in settings.tasks if TASKS[name].compared]


def draw(collected: Collected) -> dict[str, Figure]:
    """Every figure of the results by its name, the trade-off first."""
    drawn = {"tradeoff": figures.tradeoffs(collected.metrics), "retention": figures.heat_map(collected.metrics)}
    drawn["sensitivity"] = figures.sensitivity(collected.sensitivity)
    if len(figures.drawn_sizes(collected.sizes)):
        drawn["sizes"] = figures.sizes(collected.sizes)
    if len(collected.positions):
        drawn["accumulation"] = figures.accumulation(collected.positions, collected.lengths, collected.metrics)
    rows = collected.training
    joint = rows[~rows.model.isin(["pre-training", "teacher"]) & (rows.preset != QUANTIZATION_ALONE)]
    for task, curves in joint.groupby("task_name", sort=False):
        drawn[f"training_{task}"] = figures.training_curves(curves)
    return drawn


def short_table(metrics: pandas.DataFrame) -> pandas.DataFrame:
    """The columns that fit on a screen, with readable numbers; metrics that no row has are left out."""
    shown = [name for name in METRIC_NAMES if name in metrics and metrics[name].notna().any() and name != "rougeLsum"]
    seeds = {"seeds": metrics.seeds} if "seeds" in metrics and (metrics.seeds > 1).any() else {}
    return pandas.DataFrame(
        {
            "model": [_named(row) for row in metrics.itertuples()],
            "config": metrics.config,
            **seeds,
            **{METRIC_NAMES[name]: metrics[name].map(written) for name in shown},
            "95% interval": list(map(interval_text, metrics.score_low, metrics.score_high)),
            "of teacher": metrics.retention.map(percent),
            "size (MB)": (metrics.size_bytes / 1e6).map("{:.2f}".format),
            "smaller": metrics.compression.map("{:.1f}x".format),
        }
    )


def overview_table(metrics: pandas.DataFrame) -> pandas.DataFrame:
    """One row per kind of model, one column per task: the headline score and, in brackets, the retention."""
    teachers, cells = teachers_of(metrics), []
    for row in metrics.itertuples():
        name, kept = _named(row), ""
        if row.role == "student":
            shape = named_shape(row, teachers[row.task])
            shape = f"`{layers_of(row)}`" if shape in ("narrow", "other") else SHAPES[shape]
            name = f"`{bits_of(row)}`, {shape}" + ("" if name == "student" else f", {name}")
            kept = f" ({percent(row.retention)})"
        column = f"{row.task}, {METRIC_NAMES[row.headline]}"
        cells.append((name, column, f"{row.score:.2f}{kept}", row.compression))
    rows = pandas.DataFrame(cells, columns=["model", "column", "text", "smaller"])
    table = rows.pivot_table("text", "model", "column", aggfunc="last", sort=False).fillna("")
    table = table.rename_axis(columns=None).reset_index()
    spans = rows.groupby("model", sort=False).smaller.agg(["min", "max"]).itertuples(index=False)
    ends = [dict.fromkeys((f"{a:.1f}x", f"{b:.1f}x")) for a, b in spans]
    table.insert(1, "smaller", list(map(" to ".join, ends)))
    return table


def _named(row: Any) -> str:
    if row.role == "teacher":
        return "teacher"
    if row.preset == QUANTIZATION_ALONE:
        return "quantization alone"
    return "distillation alone" if row.w_bits == row.a_bits == 32 else "student"


def markdown_table(table: pandas.DataFrame) -> str:
    """A table as Markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "".join("| " + " | ".join(map(str, row)) + " |\n" for row in rows)


def redraw(params: str) -> Path:
    """Draw the finished results of a profile again, from their rows and scores, and return their folder.

    What follows from scores is computed again, so a change of a page, a figure or a statistic needs no model; corpora
    are built where they are missing.

    Raises:
        InputError: there are no scores.
        OSError: a table is missing.
    """
    studies = studies_of(params)
    for study in studies:
        study.corpus()
    folder = project_root() / studies[0].settings.results
    return write_results(studies, read_collected(folder), measured_on(folder, studies[0].settings.profile))


def write_results(studies: Sequence[Study], collected: Collected, where: Mapping[str, Any] | None = None) -> Path:
    """Write everything under the profile's ``results`` folder, and return that folder.

    ``where`` it was measured is this machine, when None.
    """
    folder = project_root() / studies[0].settings.results
    for name, table in collected.files().items():
        write_text(folder / TABLES / name, table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    write_scores(collected.scores, folder / SCORES)
    write_measured(collected.metrics, collected.retention, folder, studies[0].settings.profile, where)
    write_text(folder / METRICS_JSON, _metrics_json(collected.metrics))
    drawn = draw(collected)
    for name, figure in drawn.items():
        save(figure, folder / FIGURES, name)
    for study in studies:
        write_text(folder / TASK_PAGES / f"{study.name}.md", f"{_task(study, collected)}\n{_corpus(study)}")
    _remove_others(folder, {study.name for study in studies}, drawn.keys())
    opening = _opening(studies[0], findings(collected))
    claims = _claims(collected, studies[0].settings.profile)
    page = [opening, _all_models(studies, collected), claims, _across(drawn), _CLOSING]
    write_text(folder / "README.md", "\n".join(page))
    return folder


def _remove_others(folder: Path, tasks: set[str], drawn: Collection[str]) -> None:
    """Remove pages and figures of other tasks, which an earlier run has left and no page links to."""
    others = TASKS.keys() - tasks
    names = {"accumulation", *(f"training_{task}" for task in others)} - set(drawn)
    stale = [f"{TASK_PAGES}/{task}.md" for task in others] + [f"{FIGURES}/{name}.*" for name in names]
    for path in [path for pattern in stale for path in folder.glob(pattern)]:
        path.unlink()


def _metrics_json(metrics: pandas.DataFrame) -> str:
    """The main numbers as nested JSON, which `dvc metrics diff` compares."""
    tree: dict[str, dict[str, dict[str, float]]] = {}
    numbers = metrics[["score", "retention", "compression"]]
    for row in metrics.itertuples():
        tree.setdefault(row.task, {})[f"{row.config} {row.preset}"] = numbers.loc[row.Index].dropna().to_dict()
    return json.dumps(tree, indent=2) + "\n"


def _opening(study: Study, found: Sequence[str]) -> str:
    note = f"{study.settings.note.strip()}\n\n" if study.settings.note.strip() else ""
    numbered = "".join(f"{number}. {text}\n" for number, text in enumerate(found, start=1))
    return f"""# Results

{note}{numbered}
Generated by the notebook `compare` (profile `{study.settings.profile}`); do not edit. Every number is read
from a table in `{TABLES}/`, or from the corpora; the main table is [`{METRICS_CSV}`]({TABLES}/{METRICS_CSV}),
one row per model, mean over its seeds; [`seeds.csv`]({TABLES}/seeds.csv) has them one by one.

![Quality against size]({FIGURES}/tradeoff.svg)

A config `W-E-A e-d` gives the bits of weights, embeddings and activations, then encoder and decoder
layers; `auto:0.45MB e-d` gives bytes, and bits are chosen per module. The line is the teacher, its band and the bars
are 95% bootstrap intervals over the test documents, and over seeds where there are several. *Smaller* is the teacher's
size in full precision over the student's. Rings mark two of the papers' shapes at 2 bits, where they were run: half of
the decoder (16.5x in BART) and one layer on each side (27.7x).
"""


def _all_models(studies: Sequence[Study], collected: Collected) -> str:
    linked = ", ".join(f"[{TITLES[study.name].lower()}]({TASK_PAGES}/{study.name}.md)" for study in studies)
    return f"""## All models

{markdown_table(overview_table(collected.metrics))}
The headline score, and in brackets the part of the teacher's that is left. All scores with their intervals, lengths of
texts, training curves and the corpus of each task: {linked}.
"""


def _claims(collected: Collected, profile: str) -> str:
    return f"""## The papers' claims, and what was measured here

{markdown_table(collected.claims())}
*Agrees* and *does not agree* are what the test documents decide: a difference with p < {SIGNIFICANT}, or a 95% interval
on one side of the bar. All else is *not decided*, with the numbers of documents and of seeds that would decide it
together if what was measured stays: intervals narrow with the root of both. p-values and intervals are those
of the paired bootstrap over test documents, and over seeds where there are several, of the headline score (three seeds
say little of how seeds spread, so these are as rough as that); a translation's are of its first language. A gap is of
validation losses, and its p-value is Welch's over the seeds of the benchmark. The p-values of one claim over all of its
rows are corrected by Holm's method. [`{SCORES}`]({SCORES}) has the scores of every document:
`python -m dqlib.study claims --params {profile}` computes all of this again from it in seconds. The
shapes of 16.5x and 27.7x are named by the papers' count of BART: all encoder layers with half the decoder's, and one of
each.

The teachers here are small models, so a claim that does not hold here may hold for
large ones, and the other way round. Tables: [`comparisons.csv`](tables/comparisons.csv) (a),
[`retention.csv`](tables/retention.csv) (b to d), [`accumulation.csv`](tables/accumulation.csv) (e),
[`similarity.csv`](tables/similarity.csv) (f).
"""


def _task(study: Study, collected: Collected) -> str:
    metrics = collected.metrics[collected.metrics.task == study.name]
    teacher = metrics.iloc[0]
    beams = f", {study.task.evaluate.beams} beams" if study.task.form.writes else ""
    of = ", lower is better: of the teacher's is the inverse" if teacher.headline in FALLING else ""
    measured = collected.details[collected.details.task == study.name]
    details = _details(measured, study) if study.task.form.writes else _beside(measured, teacher)
    return f"""# {TITLES[study.name]} on `{teacher.corpus}`

Generated by the notebook `compare` (profile `{study.settings.profile}`); do not edit. [All tasks](../README.md).

{markdown_table(short_table(metrics))}
{teacher.n_test} test documents{beams}. The interval, and "of teacher", are of {METRIC_NAMES[teacher.headline]}{of}.

{details}![Training curves](../{FIGURES}/training_{study.name}.svg)
"""


#: Of the further measures, those that the page shows; all are in ``details.csv``.
SHOWN = {"words": "words", "reference_words": "words of the reference", "length_ratio": "ratio of lengths",
         "bleu": "BLEU", "exact": "exact (%)"}  # fmt: skip


def _details(details: pandas.DataFrame, study: Study) -> str:
    """What was measured of each model beyond the headline: lengths of texts; other languages and a second test set."""
    rows = details[details.metric.isin(SHOWN)]
    if rows.empty:
        return ""
    rows = rows[rows.language.notna() == rows.metric.isin(["bleu", "exact"])]  # of translations, not how long they are
    languages, second = (" " + rows.language).fillna(""), rows.test_set != "test"
    measures = rows.metric.map(SHOWN) + languages + second.map({True: " unseen", False: ""})
    rows = rows.assign(measure=measures, model=rows.config + " (" + rows.preset + ")")
    table = rows.pivot_table("value", "model", "measure", sort=False).map(written).reset_index()
    file = study.task.corpus.test_unseen
    about = f"the file `{file}`" if file else "sentences with names that no training pair has"
    unseen = f"*Unseen* is a second test set: {about}.\n\n" if second.any() else ""
    signatures = details[details.metric.isin(METRIC_NAMES)].drop_duplicates("signature")
    listed = "".join(f"- {METRIC_NAMES[row.metric]}: `{row.signature}`\n" for row in signatures.itertuples())
    return f"{markdown_table(table)}\n{unseen}Signatures of the metrics:\n\n{listed}\n"


def _beside(details: pandas.DataFrame, teacher: Any) -> str:
    """What simpler methods than the teacher reach on the same test."""
    rows = details[details.preset == teacher.preset].itertuples()
    named = [(name, row) for row in rows if (name := method_of(row.metric, teacher.headline))]
    listed = ", ".join(f"{name} {with_interval(row)}" for name, row in named)
    return f"Beside the teacher, on the same test: {listed}.\n\n" if listed else ""


#: What a page says of each figure over all tasks, and its title.
_ACROSS = {
    "retention": ("What is left of the teacher's score, over bits and layers", "Retention"),
    "accumulation": ("""\
Where in an output quality is lost. Recall of the reference's words (those on a longest common subsequence,
as in ROUGE-L), along the reference and by its length ([`positions.csv`](tables/positions.csv),
[`lengths.csv`](tables/lengths.csv))""", "Error accumulation"),
    "sizes": ("Where the bytes are ([`sizes.csv`](tables/sizes.csv))", "Size by module"),
    "sensitivity": ("""\
Which modules need their bits: the loss that each adds when it alone has few, before any training, on
32 examples of train ([`sensitivity.csv`](tables/sensitivity.csv)). A config `auto:0.45MB` chooses bits by the same loss
on more examples""", "Sensitivity of modules"),
}  # fmt: skip


def _across(drawn: Collection[str]) -> str:
    known = [(name, text, title) for name, (text, title) in _ACROSS.items() if name in drawn]
    shown = [f"{text}:\n\n![{title}]({FIGURES}/{name}.svg)\n" for name, text, title in known]
    return "## Over all tasks\n\n" + "\n".join(shown)


def _corpus(study: Study) -> str:
    info, spec = load_info(study.folders.corpus), study.task.corpus
    sizes, truncated = info["sizes"], info["truncated"].get("test", {})
    counted = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
    rows = {"pairs" if study.task.form.writes else "texts": counted, "SHA-256 of the splits": f"`{info['sha256']}`"}
    if "sources" in truncated:
        rows[f"test sources cut to {spec.source_tokens} tokens"] = f"{truncated['sources']:,} of {sizes['test']:,}"
    if "targets" in truncated:
        rows[f"test references longer than {spec.target_tokens} tokens"] = f"{truncated['targets']:,}"
    if "balance" in info:
        counts = info["balance"]["test"].items()
        rows["classes of the test"] = ", ".join(f"{100 * n / sizes['test']:.1f}% {label}" for label, n in counts)
    named = {"source": "sources that share half of their 8-word runs with train", "second": "second texts that do",
             "target": "references that do"}  # fmt: skip
    shared = {f"test {name}": f"{column}_overlap" for column, name in named.items()}
    rows |= {name: percent(info[column]) for name, column in shared.items() if column in info}
    lines = "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    return f"## Corpus `{info['name']}`\n\n| | |\n| --- | --- |\n{lines}"


_CLOSING = f"""A corpus of another SHA-256 (another version of Python, say) gives other numbers.

The size counts each code at its bits, scales, biases and LayerNorms at 16, positions at
{get_preset("dqlib").position_bits}, and the tied embedding and output head once, quantized: what is counted is what
computes the logits. A student that is not quantized counts at 16 bits per number and the teacher at 32, so half of what
*distillation alone* saves is that. Headers and the manifest of a packed file come on top. Training curves come from
[`training.csv`](tables/training.csv), further measures from [`details.csv`](tables/details.csv).
"""


def print_summary(params: str) -> None:
    """Print the short tables of finished results, where to read on, and whether they are what is committed.

    Raises:
        InputError: there are no results yet.
    """
    settings = load_settings(params)
    folder = project_root() / settings.results
    metrics_path = folder / TABLES / METRICS_CSV
    if not metrics_path.is_file():
        raise InputError("results", settings.results, f"a folder with {METRICS_CSV}, which `dvc repro compare` writes")
    metrics = pandas.read_csv(metrics_path)
    for task in metrics.task.unique():
        print(f"{TITLES[task]}\n{short_table(metrics[metrics.task == task]).to_string(index=False)}\n")
    shown = folder.relative_to(project_root())
    print(f"Read on in {shown}/README.md; figures are in {shown}/{FIGURES}/, executed notebooks in")
    print(f"{(settings.runs / 'notebooks').relative_to(project_root())}/.\n")
    print(comparison(folder, settings.profile))
