"""Small tables and pictures of models and corpora."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from transformers import PreTrainedModel

from dqlib.config import Config
from dqlib.engines.torch_engine import TorchEngine
from dqlib.errors import InputError
from dqlib.storage.reading import read_tokenizer
from dqlib.storage.students import load_student
from dqlib.study.corpora.corpus import LoadedCorpus
from dqlib.study.evaluation.perplexity import perplexity_of
from dqlib.study.evaluation.records import method_of, metrics_table, read_details, read_record
from dqlib.study.params import settings as S
from dqlib.study.params.paths import LOG, PREDICTIONS, RECORD
from dqlib.study.params.tasks import kind_of
from dqlib.study.pipeline.study import Study
from dqlib.study.report.figures import joint, scores_axis
from dqlib.study.report.names import METRIC_NAMES, bits_of, quantity_of, with_interval
from dqlib.study.report.pages import short_table
from dqlib.study.report.style import COLOURS, DASHES, line_styles, subplots
from dqlib.study.training.language_modelling import stream


def config_of(study: Study, config: str | Config) -> Config:
    """The configuration of a student; of a budget of bytes, with the layers and the bits that its training chose."""
    asked = Config.parse(str(config))
    return load_student(study.student(asked)).dqlib_config if asked.is_open else asked


def lengths(corpus: LoadedCorpus, spec: S.Corpus) -> Figure:
    """Histograms of the lengths of sources and, where they are texts, targets in tokens, and what the model reads.

    A bar has texts that are read whole or texts that are longer, not both; the last one has all that are longer still.
    Two texts that are read together are one source.
    """
    rows = corpus.splits["validation"]
    columns = {"source": ("source", "second")} | ({"target": ("target",)} if spec.target_tokens else {})
    with subplots(1, len(columns), figsize=(6.4, 2.6), squeeze=False) as (figure, panels):
        for axes, (column, names) in zip(panels[0], columns.items(), strict=True):
            texts = [[row[name] for row in rows] for name in names if name in rows[0]]
            counts = [len(ids) for ids in corpus.tokenizer(*texts, verbose=False)["input_ids"]]
            most = getattr(spec, f"{column}_tokens")
            width = -(-most // 10)
            edges = np.arange((most + 1) % width - width, 4 * most + 2 * width, width)
            axes.hist(np.minimum(counts, edges[-1] - 1), bins=edges, color=COLOURS[0], alpha=0.7)
            axes.axvline(most + 1, color="#CC0000", linewidth=1.2)
            axes.set_xlabel(f"tokens of a {column} (red: {most})")
            axes.set_ylabel("pairs" if spec.target_tokens else "texts")
            axes.yaxis.get_major_locator().set_params(integer=True)
    return figure


def curves(folder: Path, columns: list[str]) -> Figure:
    """Those columns of a training log that it has, over the steps: one panel per quantity, named with its unit."""
    log = pandas.read_csv(folder / LOG)
    record = read_record(folder) if (folder / RECORD).is_file() else None
    preset, unit = (record.preset, kind_of(record.task).unit) if record else ("", "token")
    panel_of = {name: quantity_of(name, preset, unit) for name in columns if name in log}
    quantities = list(dict.fromkeys(panel_of.values()))
    rows = max(1, len(quantities))  # a teacher that was not trained here has an empty log
    size = 6.4, 2.2 * rows + 0.6
    with subplots(rows, 1, figsize=size, sharex=True, squeeze=False) as (figure, panels):
        for i, (name, quantity) in enumerate(panel_of.items()):
            axes, points = panels[quantities.index(quantity), 0], log.dropna(subset=[name])
            marker = "o" if len(points) < 10 else None
            axes.plot(points.step, points[name], DASHES[i], color=COLOURS[i], marker=marker, label=_readable(name))
            axes.set_ylabel(quantity.replace(" (", "\n("), fontsize=9)
            axes.legend(fontsize=8)
        panels[-1, 0].set_xlabel("training step")
    return figure


def loss_terms(folder: Path) -> Figure:
    """Every loss term of a distillation, relative to its first value."""
    log = pandas.read_csv(folder / LOG)
    terms = log.columns.drop(["step", "learning_rate", "loss", "validation_loss"], errors="ignore")
    with subplots(figsize=(6.4, 3.2)) as (figure, axes):
        for i, term in enumerate(terms):
            part = log[term] / log[term].iloc[0]
            axes.plot(log.step, part, linestyle=DASHES[i], color=COLOURS[i], label=_readable(term))
        axes.set_ylim(bottom=0)
        axes.set(xlabel="training step", ylabel="term, relative to its first value")
        figure.legend(fontsize=8, ncols=4, loc="outside upper center")
    return figure


def scores(*folders: Path) -> pandas.DataFrame:
    """Scores and sizes of trained models."""
    return short_table(metrics_table([read_record(folder) for folder in folders]))


def by_depth(metrics: pandas.DataFrame) -> Figure:
    """The headline score over the layers that are left, one line per number of bits, with 95% intervals.

    ``metrics`` are the rows of ``metrics.csv`` of one task, the teacher first.
    """
    teacher, students = metrics.iloc[0], joint(metrics)
    students = students.assign(layers=students.encoder_layers + students.decoder_layers)
    bits = students.apply(bits_of, axis=1)
    styles = line_styles(list(bits.unique()))
    with subplots(figsize=(5.2, 3.2)) as (figure, axes):
        scores_axis(axes, teacher, "teacher, fp32")
        for name, style in styles.items():
            rows = students[bits == name].sort_values("layers")
            reach = [rows.score - rows.score_low, rows.score_high - rows.score]
            axes.errorbar(rows.layers, rows.score, yerr=reach, marker="o", capsize=2, label=name, **style)
        axes.set_xticks(sorted({*students.layers, teacher.encoder_layers + teacher.decoder_layers}))
        axes.set_xlabel("layers")
        axes.legend(fontsize=8)
    return figure


def predictions(folders: dict[str, Path], count: int = 5) -> None:
    """Print test documents, spread over the test split, with what each model makes of them.

    That is the text or the class that it gives, under the reference, or its perplexity.
    """
    read = {
        name: [json.loads(line) for line in (folder / PREDICTIONS).read_bytes().splitlines()]
        for name, folder in folders.items()
    }
    first = next(iter(read.values()))
    for i in range(0, len(first), max(1, len(first) // count))[:count]:
        source = first[i]["source"]
        print("source:    ", source[:300] + (" ..." if len(source) > 300 else ""))
        if "second" in first[i]:
            print("and:       ", first[i]["second"])
        if "reference" in first[i]:
            print("reference:", first[i]["reference"], f"({first[i]['language']})" if "language" in first[i] else "")
        for name, lines in read.items():
            print(f"{name + ':':<10}", _answer(lines[i]))
        print()


def _answer(line: Mapping[str, Any]) -> str:
    if "prediction" not in line:
        return f"perplexity {perplexity_of(line):.1f} of {line['tokens']} tokens"
    return line["prediction"] + (f" ({100 * line['probability']:.0f}%)" if "probability" in line else "")


def baselines(folder: Path) -> pandas.DataFrame:
    """What simpler methods reach on the test of a teacher: one row per method, with 95% intervals."""
    rows = [
        {"method": method, "metric": name, "text": with_interval(each)}
        for each in read_details(folder)
        for metric, name in METRIC_NAMES.items()
        if (method := method_of(each.metric, metric))
    ]
    return _by_metric(rows, ["method"])


def details(folders: dict[str, Path], metrics: Sequence[str]) -> pandas.DataFrame:
    """Metrics of ``details.json`` with their 95% intervals: one row per test set, language and model, by the name to
    show, one column per metric.
    """
    rows = [
        {"test set": each.test_set, "language": each.language or "", "model": name, "metric": each.metric,
         "text": with_interval(each)}
        for name, folder in folders.items()
        for each in read_details(folder)
        if each.metric in metrics
    ]  # fmt: skip
    table = _by_metric(rows, ["test set", "language", "model"])
    return table[[metric for metric in metrics if metric in table]]


def _by_metric(rows: Sequence[Mapping[str, str]], index: list[str]) -> pandas.DataFrame:
    """One column per metric."""
    table = pandas.DataFrame(rows).pivot_table("text", index, "metric", aggfunc="first", sort=False)
    return table.rename_axis(columns=None)


def answer(
    model: PreTrainedModel,
    folder: Path,
    text: str,
    beams: int = 4,
    max_new_tokens: int = 40,
    language: str | None = None,
) -> str:
    """What a model writes for one text, or how a language model goes on with it.

    The folder is that of its tokenizer. What is longer than the model reads is cut, at the beginning of a text that is
    gone on with. A translation is into the first language, where none is given.

    Raises:
        InputError: the text is empty, or the language has no token.
    """
    if not text.strip():
        raise InputError("text", text, "text that is not empty")
    tokenizer = read_tokenizer(folder)
    assert tokenizer
    engine = TorchEngine(model, tokenizer)
    if engine.continues:
        ids = stream(text, tokenizer)[:-1][max_new_tokens - model.config.n_positions :]
    else:
        (ids,) = engine.encode([text])
    starts = engine.starts(language, 1)
    (written,) = engine.generate_ids([ids], num_beams=beams, max_new_tokens=max_new_tokens, starts=starts)
    return tokenizer.decode(written, skip_special_tokens=True).strip()


def side_by_side(
    models: Mapping[str, tuple[PreTrainedModel, Path]],
    text: str,
    max_new_tokens: int = 40,
    language: str | None = None,
    beams: int = 4,
) -> Styler:
    """What each model, by the name to show, writes for one text, with its size and the time that it took.

    All else is as :func:`answer` has it.
    """
    rows = []
    for name, (model, folder) in models.items():
        answer(model, folder, text, beams, 1, language)  # the first call of all is slower
        began = time.perf_counter()
        written = answer(model, folder, text, beams, max_new_tokens, language)
        took = time.perf_counter() - began
        size = f"{read_record(folder).size_bytes / 1e6:.2f}"
        rows.append({"": name, "answer": written, "size (MB)": size, "time (ms)": f"{1000 * took:.0f}"})
    return texts_table(rows)


def texts_table(rows: Sequence[Mapping[str, str]] | pandas.DataFrame) -> Styler:
    """A table of texts as a page shows it: whole, on the left, and ``<`` as itself, not as the beginning of a tag."""
    table = pandas.DataFrame(rows).style.hide(axis="index").format(escape="html")
    return table.set_properties(**{"text-align": "left"})


def _readable(column: str) -> str:
    return column.replace("_", " ")
