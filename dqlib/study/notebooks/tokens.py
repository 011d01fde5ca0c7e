"""Similarity of tokens in pictures and words."""

from __future__ import annotations

from collections.abc import Mapping

import pandas
import torch
from matplotlib.figure import Figure
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from dqlib.losses import IGNORED_LABEL
from dqlib.study.report.style import TEACHER_COLOUR, colour_of, subplots
from dqlib.study.training.batches import Batch


@torch.no_grad()
def similarity_maps(models: Mapping[str, PreTrainedModel], batch: Batch) -> Figure:
    """Cosine similarity of every two tokens of the first summary after the last decoder layer."""
    one = batch.each(lambda tensor: tensor[:1])
    length = int((one.labels != IGNORED_LABEL).sum())
    size, style = (6.6, 2.5), {"axes.grid": False}
    with subplots(1, len(models), figsize=size, sharey=True, squeeze=False, style=style) as (figure, panels):
        for axes, (name, model) in zip(panels.flat, models.items(), strict=True):
            states = model.eval()(**one.inputs(), output_hidden_states=True).decoder_hidden_states[-1][0, :length]
            unit = normalize(states, dim=-1)
            image = axes.imshow((unit @ unit.T).numpy(), cmap="PuOr", vmin=-1, vmax=1)
            axes.set_title(name, fontsize=9)
            axes.set_xlabel("token", fontsize=9)
            axes.tick_params(labelsize=8)
        panels[0, 0].set_ylabel("token of the summary", fontsize=9)
        bar = figure.colorbar(image, ax=panels, location="bottom", shrink=0.6, aspect=40, label="cosine similarity")
        bar.set_ticks([-1, -0.5, 0, 0.5, 1])
    return figure


def similarity_points(table: pandas.DataFrame) -> Figure:
    """How much more alike tokens are than the teacher's (95% interval over texts), beside the divergence.

    ``table`` is what :func:`dqlib.study.evaluation.similarity.similarity_table` gave.
    """
    places = range(len(table))
    with subplots(1, 2, figsize=(6.6, 0.45 * len(table) + 1.1), sharey=True) as (figure, (left, right)):
        reach = [table.more_alike - table.low, table.high - table.more_alike]
        left.errorbar(table.more_alike, places, xerr=reach, fmt="o", color=colour_of("quantgpt"), capsize=3)
        left.axvline(0, color=TEACHER_COLOUR, linestyle="--", linewidth=1)
        left.set_yticks(places, table.index)
        left.invert_yaxis()
        left.set_xlabel("cosine of different tokens,\nless the teacher's (95% interval)")
        right.plot(table.divergence, places, "s", color=colour_of("quantgpt"))
        right.set_xlim(left=-0.03 * max(table.divergence.max(), 0.01))
        right.set_xlabel("divergence from the teacher's\nnext token (nats)")
        left.margins(y=0.15)
    return figure


def in_words(table: pandas.DataFrame) -> str:
    """What the intervals of a table of similarity say, one sentence per model, so that prose need not guess."""
    sentences = []
    for name, row in table[(table.low != 0) | (table.high != 0)].iterrows():
        verdict = "more alike than" if row.low > 0 else "less alike than" if row.high < 0 else "about as alike as"
        sentences.append(
            f"{name}: tokens are {verdict} the teacher's ({row.more_alike:+.3f}, 95% {row.low:+.3f} to "
            f"{row.high:+.3f}); divergence {row.divergence:.3f} nats."
        )
    return "\n".join(sentences)
