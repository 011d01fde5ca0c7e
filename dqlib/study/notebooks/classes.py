"""A classifier as a notebook shows it: which classes it takes for which, and how sure it is of a text of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas
import torch
from matplotlib.figure import Figure
from transformers import AutoTokenizer, PreTrainedModel

from dqlib.errors import InputError
from dqlib.study.evaluation.records import read_predictions
from dqlib.study.report.style import subplots


def confusion(folder: Path, labels: Sequence[str]) -> np.ndarray:
    """Test texts by class (rows) and prediction (columns) of a tested model, (classes, classes)."""
    lines = pandas.DataFrame(read_predictions(folder))
    counts = pandas.crosstab(lines.reference, lines.prediction)
    return counts.reindex(index=labels, columns=labels, fill_value=0).to_numpy()


def confusions(folders: Mapping[str, Path], labels: Sequence[str]) -> Figure:
    """Of the test texts of each class, the share that a model takes for each class: one panel per model.

    Args:
        folders: of tested models, by the name to show.
        labels: of the classes, in the order of the logits.
    """
    large = len(labels) > 6
    size, style = (3.7 * len(folders), 3.9), {"font.size": 7 if large else 9}
    with subplots(1, len(folders), figsize=size, squeeze=False, style=style) as (figure, panels):
        for axes, (name, folder) in zip(panels[0], folders.items(), strict=True):
            counts = confusion(folder, labels)
            shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
            axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
            for (i, j), share in np.ndenumerate(shares):
                colour = "white" if share < 0.6 else "black"
                axes.text(j, i, f"{100 * share:.0f}", ha="center", va="center", color=colour)
            axes.set_xticks(range(len(labels)), labels, rotation=90 if large else 30, ha="center" if large else "right")
            axes.set_yticks(range(len(labels)), labels if axes is panels[0, 0] else [])
            axes.set_xlabel("prediction")
            axes.set_title(f"{name}: {100 * np.trace(counts) / counts.sum():.1f}% right")
            axes.grid(False)
        panels[0, 0].set_ylabel("class (a row: % of its texts)")
    return figure


@torch.no_grad()
def chances(models: Mapping[str, tuple[PreTrainedModel, Path]], *texts: str) -> pandas.DataFrame:
    """Probability of each class for a text, or for a pair of texts: one row per model, one column per class.

    Args:
        models: model and folder of its tokenizer, by the name to show.
        texts: one, or two for a model that reads pairs; what is longer than the model reads is cut.

    Raises:
        InputError: a text is empty.
    """
    for text in texts:
        if not text.strip():
            raise InputError("text", text, "text that is not empty")
    rows = {}
    for name, (model, folder) in models.items():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        most = model.config.max_position_embeddings
        encoded = tokenizer(*texts, truncation=True, max_length=most, return_tensors="pt")
        logits = model.eval()(**encoded).logits[0]
        rows[name] = dict(zip(model.config.id2label.values(), torch.softmax(logits, dim=-1).tolist(), strict=True))
    return pandas.DataFrame.from_dict(rows, orient="index").round(3)
