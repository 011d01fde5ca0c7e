"""The gradient through rounding: straight-through, and the trained step of LSQ.

Derivatives are what autograd gives for :class:`dqlib.fake_quantize.WeightFakeQuantizer`, not a second
copy of a formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dqlib.config import WeightQuantization
from dqlib.fake_quantize import WeightFakeQuantizer
from dqlib.study.notebooks.errors import error_at
from dqlib.study.report.style import COLOURS, DASHES, GREY, TEACHER_COLOUR, subplots

LSQ = WeightQuantization(more_bits="lsq", two_bits="lsq")


@dataclass(frozen=True, slots=True)
class Staircase:
    """A quantizer seen from one weight: value and derivatives over a range of weights, the step being 1."""

    weight: Tensor  # (points,)
    value: Tensor  # (points,)
    to_weight: Tensor  # (points,), d value / d w as autograd gives it
    to_step: Tensor  # (points,), d value / d s as autograd gives it


def staircase(bits: int) -> Staircase:
    """Send a range of weights, 1.7 times the grid's, through LSQ with a step of 1, and a gradient of 1 back.

    Each weight is a row of its own with a step of its own, so the gradient of its step is its own, too. LSQ's
    gradient scale (arXiv:1902.08153, section 2.2) is divided out.
    """
    top = 2 ** (bits - 1) - 1
    w = torch.linspace(-1.7 * top, 1.7 * top, 2001).unsqueeze(1).requires_grad_()  # (points, 1)
    quantizer = WeightFakeQuantizer(w, bits, "per_row", LSQ)
    quantizer.load_state_dict({"learned": torch.ones_like(w)})
    value = quantizer(w)
    value.sum().backward()
    (step,) = quantizer.parameters()
    return Staircase(*(x.squeeze(1) for x in (w.detach(), value.detach(), w.grad, step.grad * top**0.5)))


def straight_through(bits: int = 3) -> Figure:
    """The staircase, its true derivative with the straight-through one, and the gradient of LSQ's step."""
    stairs = staircase(bits)
    top = 2 ** (bits - 1) - 1
    with subplots(3, 1, figsize=(6.6, 6.2), sharex=True, height_ratios=(1.5, 0.8, 1.1)) as (figure, panels):
        for axes in panels:
            axes.axvspan(-top, top, color=COLOURS[4], alpha=0.13, linewidth=0)
        value, to_weight, to_step = panels
        value.plot(stairs.weight, stairs.weight, "--", color=GREY, label=r"$w$")
        value.plot(stairs.weight, stairs.value, color=COLOURS[0], label=r"$\hat w$, what the layer uses")
        value.set_ylabel(r"$\hat w\,/\,s$")
        to_weight.plot(stairs.weight, stairs.to_weight, color=COLOURS[1], label="straight-through")
        to_weight.axhline(0, color=COLOURS[0], linestyle=":", label="true: 0, none at a jump")
        for k in range(-top, top):  # where the true derivative has no value
            to_weight.plot(k + 0.5, 0, "o", color=COLOURS[0], markersize=4, fillstyle="none")
        to_weight.set(ylim=(-0.15, 1.25), ylabel=r"$\partial\hat w/\partial w$")
        to_step.plot(stairs.weight, stairs.to_step, color=COLOURS[2], label=r"$q - w/s$ inside, $q$ outside")
        to_step.axhline(0, color=GREY, linewidth=0.8)
        shaded = r"weight, in steps: $w/s$   (shaded: inside the grid)"
        to_step.set(ylabel=r"$\partial\hat w/\partial s$", xlabel=shaded)
        for axes in panels:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return figure


def learn_step(weight: Tensor, bits: int, start: float) -> pandas.DataFrame:
    """Train LSQ's step of a whole matrix, and nothing else, to make the relative squared error small.

    The first step is ``start`` times LSQ's own start. Columns ``iteration``, ``step`` and ``error (%)``.
    """
    quantizer = WeightFakeQuantizer(weight, bits, "per_tensor", LSQ)
    (step,) = quantizer.parameters()
    with torch.no_grad():
        step.mul_(start)
    optimizer = torch.optim.Adam([step], lr=0.03 * float(step.detach()))
    rows = []
    for iteration in range(151):
        error = (quantizer(weight) - weight).square().sum() / weight.square().sum()
        rows.append({"iteration": iteration, "step": float(step.detach()), "error (%)": 100 * error.item()})
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    return pandas.DataFrame(rows)


def learned_steps(weight: Tensor, bits: int = 3, starts: Sequence[float] = (0.4, 1.0, 2.0)) -> Figure:
    """LSQ's step and the error of the matrix while the step is trained, from several starts."""
    mean = weight.abs().mean()
    gammas = torch.arange(0.5, float(weight.abs().max() / mean), 0.05)
    least = min(error_at(weight, bits, float(gamma)) for gamma in gammas)
    with subplots(1, 2, figsize=(6.6, 3.0)) as (figure, (left, right)):
        for i, start in enumerate(starts):
            log, look = learn_step(weight, bits, start), {"linestyle": DASHES[i], "color": COLOURS[i]}
            name = "LSQ's start" if start == 1 else f"{start:g} x LSQ's start"
            left.plot(log.iteration, log.step, label=name, **look)
            right.plot(log.iteration, log["error (%)"], **look)
        right.axhline(least, color=TEACHER_COLOUR, linewidth=0.9, linestyle=":", label="least error of the sweep")
        for axes, name in ((left, r"step $s$"), (right, "relative squared error (%)")):
            axes.set_ylim(bottom=0)
            axes.set(xlabel="iteration", ylabel=name)
        figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    return figure
