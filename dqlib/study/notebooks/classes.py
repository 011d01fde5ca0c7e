"""A classifier as a notebook shows it: which classes it takes for which, and how sure it is of a text of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas
from matplotlib import pyplot
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from dqlib.engines.torch_engine import TorchClassifier
from dqlib.storage.reading import read_tokenizer
from dqlib.study.evaluation.records import read_predictions
from dqlib.study.report.style import heat_map, subplots


def confusion(folder: Path, labels: Sequence[str]) -> np.ndarray:
    """Test texts by class (rows) and prediction (columns) of a tested model, (classes, classes)."""
    lines = pandas.DataFrame(read_predictions(folder))
    counts = pandas.crosstab(lines.reference, lines.prediction)
    return counts.reindex(index=labels, columns=labels, fill_value=0).to_numpy()


def confusions(folders: Mapping[str, Path], labels: Sequence[str]) -> Figure:
    """Of the test texts of each class, the share that a model takes for each class: one panel per model.

    ``folders`` are those of tested models, by the name to show; ``labels`` are in the order of the logits.
    """
    large = len(labels) > 6
    size, style = (3.7 * len(folders), 3.9), {"font.size": 7 if large else 9}
    with subplots(1, len(folders), figsize=size, squeeze=False, style=style) as (figure, panels):
        for axes, (name, folder) in zip(panels[0], folders.items(), strict=True):
            counts = confusion(folder, labels)
            shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
            cells = [[f"{100 * share:.0f}" for share in row] for row in shares]
            rows = labels if axes is panels[0, 0] else []
            heat_map(axes, shares, rows, labels, cells, light_from=0.6, vmin=0, vmax=1)
            pyplot.setp(axes.get_xticklabels(), rotation=90 if large else 30, ha="center" if large else "right")
            axes.set_xlabel("prediction")
            axes.set_title(f"{name}: {100 * np.trace(counts) / counts.sum():.1f}% right")
        panels[0, 0].set_ylabel("class (a row: % of its texts)")
    return figure


def chances(models: Mapping[str, tuple[PreTrainedModel, Path]], *texts: str) -> pandas.DataFrame:
    """Probability of each class for a text, or for a pair of texts: one row per model, one column per class.

    Args:
        models: model and folder of its tokenizer, by the name to show.
        texts: one, or two for a model that reads pairs; what is longer than the model reads is cut.

    Raises:
        InputError: a text has no words.
    """
    rows = {}
    for name, (model, folder) in models.items():
        (classified,) = TorchClassifier(model, read_tokenizer(folder)).classify(*([text] for text in texts))
        rows[name] = classified.probabilities
    return pandas.DataFrame.from_dict(rows, orient="index").round(3)
