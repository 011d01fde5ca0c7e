"""Names that pages, tables and figures share: of tasks, metrics, shapes of students, quantities; percentages."""

from __future__ import annotations

from typing import Any

import pandas

from dqlib.config import Config
from dqlib.presets import PRESETS, QUANTIZATION_ONLY, VARIANTS
from dqlib.study.evaluation.records import FALLING
from dqlib.study.params.tasks import TASKS

#: Columns that name a model in every table.
MODEL_COLUMNS = ["task", "config", "preset"]
#: Titles of the tasks.
TITLES = {name: kind.title for name, kind in TASKS.items()}
METRIC_NAMES = {
    "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum", "bleu": "BLEU",
    "chrf": "chrF", "accuracy": "accuracy", "f1": "macro-F1", "mcc": "MCC", "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
}  # fmt: skip
#: What a student's layers are called.
SHAPES = {
    "full": "all layers", "half": "half the decoder", "one": "one and one", "half_stack": "half the layers",
    "one_layer": "one layer", "other": "other layers", "narrow": "fewer heads or neurons",
}  # fmt: skip
QUANTIZATION_ALONE = QUANTIZATION_ONLY.name

#: A result that the test documents do not decide.
UNDECIDED = "not decided"


def percent(part: float | None) -> str:
    """A part of the teacher's score, or that there is none."""
    return UNDECIDED if part is None or pandas.isna(part) else f"{100 * part:.1f}%"


def written(number: Any, form: str = "{:.2f}") -> str:
    """A number of a table as a page has it; nothing where there is none."""
    return "" if pandas.isna(number) else form.format(number)


def interval_text(low: float, high: float) -> str:
    """A 95% interval of a score."""
    return f"{low:.2f} to {high:.2f}"


def with_interval(measured: Any) -> str:
    """The value of a detail with its 95% interval."""
    return f"{measured.value:.2f} ({interval_text(measured.low, measured.high)})"


def teachers_of(metrics: pandas.DataFrame) -> dict[str, Any]:
    """The row of each task's teacher."""
    return {row.task: row for row in metrics[metrics.role == "teacher"].itertuples()}


def key_of(model: Any) -> tuple[str, str, str]:
    """:data:`MODEL_COLUMNS` of a row, or of whatever else has them."""
    return model.task, model.config, model.preset


def is_model(table: pandas.DataFrame, model: Any) -> pandas.Series:
    """Which rows of a table are of the model of a row."""
    return (table[MODEL_COLUMNS] == list(key_of(model))).all(axis=1)


def axis_name(headline: str) -> str:
    """The name of a metric on the axis of a figure, whose upper end is that of better models."""
    name = METRIC_NAMES[headline]
    return f"{name} (axis turned: up is better)" if headline in FALLING else f"{name} (%)"


def named_shapes(teacher: Any) -> dict[str, tuple[int, int]]:
    """Encoder and decoder layers of the shapes that have a name, for students of a teacher of that row."""
    encoder, decoder = int(teacher.encoder_layers), int(teacher.decoder_layers)
    if encoder and decoder:
        return {"full": (encoder, decoder), "half": (encoder, decoder // 2), "one": (1, 1)}
    one = (1, 0) if encoder else (0, 1)
    return {"full": (encoder, decoder), "half_stack": (encoder // 2, decoder // 2), "one_layer": one}


def named_shape(row: Any, teacher: Any) -> str:
    """Which of :data:`SHAPES` a student has, from its configuration and the layers in its and its teacher's row."""
    if Config.parse(row.config).narrow:
        return "narrow"
    layers = row.encoder_layers, row.decoder_layers
    return next((name for name, each in named_shapes(teacher).items() if each == layers), "other")


def layers_of(row: Any) -> str:
    """``e-d`` of a row, with heads and neurons after it where they are fewer."""
    return row.config.partition(" ")[2]


def bits_of(row: Any) -> str:
    """``W-E-A`` of a row."""
    return row.config.partition(" ")[0]


def in_bits(bits: int) -> str:
    """A number of bits in words."""
    return f"{bits} bit{'s' * (bits > 1)}"


def quantity_of(term: str, preset: str, unit: str) -> str:
    """What a column of a training log measures, with its unit, for an axis.

    The preset decides how logits are compared, and is empty where it is not known; losses are means over the unit.
    """
    known = PRESETS | VARIANTS
    logits = known[preset].loss.logits_loss if preset in known else ""
    if term in ("task", "validation_loss"):
        return f"loss (nats per {unit})"
    if term == "logits" and logits in ("kl", "tsld"):
        return f"divergence from the teacher (nats per {unit})"
    if term == "logits" and logits == "mse":
        return "squared difference from the teacher's logits"
    return "weighted sum of all terms" if term == "loss" else term.replace("_", " ")
