"""Pictures of a matrix: its grid, its values at each precision, its rows, and error against bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dqlib.quantizers import Quantized, initial_learned
from dqlib.schemes import Scheme
from dqlib.study.notebooks.errors import error_at, quantized, relative_error
from dqlib.study.report.names import in_bits
from dqlib.study.report.style import COLOURS, GREY, colour_of, marker_of, plain_log_scale, subplots


def grids(weight: Tensor, which: Sequence[tuple[int, str]]) -> Figure:
    """Histogram of a matrix with the grid of each scheme drawn through it (one scale for the matrix).

    ``which`` are bits and scheme of each panel, three panels per line.
    """
    w, lines = weight.flatten().numpy(), -(-len(which) // 3)
    made = [quantized(weight, bits, scheme) for bits, scheme in which]
    lattices = [_grid(codes, Scheme.parse(scheme)) for codes, (_, scheme) in zip(made, which, strict=True)]
    reach = 1.08 * max(np.abs(w).max(), *(abs(point) for points in lattices for point in points))
    size = 6.6, 2.1 * lines + 0.5
    with subplots(lines, 3, figsize=size, sharex=True, sharey=True, squeeze=False) as (figure, panels):
        for axes, (bits, scheme), codes, points in zip(panels.flat, which, made, lattices, strict=False):
            values, counts = codes.dequantize().unique(return_counts=True)
            axes.hist(w, bins=60, range=(-reach, reach), color=GREY)
            axes.set_xlim(-reach, reach)
            for point in points:
                axes.axvline(point, color=COLOURS[0], linewidth=0.25 if bits > 5 else 1.1, alpha=0.8)
            if bits <= 5:
                share = (counts / counts.sum() * axes.get_ylim()[1]).numpy()
                axes.plot(values.numpy(), share, "o", color=COLOURS[1], markersize=4.5, zorder=3)
            error = 100 * relative_error(weight, codes)
            axes.set_title(f"{in_bits(bits)}, {scheme}\nerror {error:.2g}%", fontsize=9)
            axes.grid(visible=False)
        for axes in panels.flat[len(which) :]:
            axes.set_visible(False)
        for axes in panels[-1]:
            axes.set_xlabel("weight")
        for axes in panels[:, 0]:
            axes.set_ylabel("weights")
        panels[0, 0].hist([], color=GREY, label="weights")
        panels[0, 0].plot([], [], color=COLOURS[0], label="grid")
        panels[0, 0].plot([], [], "o", color=COLOURS[1], label="share of weights there (top edge: all)")
        figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure


def _grid(codes: Quantized, scheme: Scheme) -> list[float]:
    """Every value that the scheme can give with this one scale."""
    zero = 0.0 if codes.zero_point is None else float(codes.zero_point)
    return [(q - zero) * float(codes.scale) for q in scheme.grid(codes.bits)]


def mosaic(weight: Tensor) -> Figure:
    """A corner of a matrix as a picture, and what is left of it at each precision (one scale per row)."""
    reach = 2.5 * float(weight.std())
    pictures = {"full precision": weight}
    pictures |= {in_bits(bits): quantized(weight, bits, None, "per_row").dequantize() for bits in (8, 4, 3, 2, 1)}
    with subplots(2, 3, figsize=(6.6, 3.7), style={"axes.grid": False}) as (figure, panels):
        for axes, (name, picture) in zip(panels.flat, pictures.items(), strict=True):
            image = axes.imshow(picture[:24, :32].numpy(), cmap="PuOr", vmin=-reach, vmax=reach, aspect="auto")
            axes.set_title(name, fontsize=9)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for axes in panels[:, 0]:
            axes.set_ylabel("row (output)", fontsize=9)
        for axes in panels[-1]:
            axes.set_xlabel("column (input)", fontsize=9)
        figure.colorbar(image, ax=panels, location="right", aspect=30, label="weight")
    return figure


def scale_sweep(weight: Tensor, bits: Sequence[int] = (2, 3, 4, 5)) -> Figure:
    """Error against where the grid ends, in units of mean|w|, with the clip that each scheme would choose.

    The curve is dynamic scaling (QuantGPT, arXiv:2203.10705, section 3.2) at every gamma; the marks are at the same
    grid's end by other rules: the largest weight, LSQ's start, the gamma of least error.
    """
    marks = {"o": "least error (dynamic scaling starts here)", "s": "LSQ starts here"}
    marks |= {"^": "the largest weight (symmetric)"}
    mean = weight.abs().mean()
    largest = float(weight.abs().max() / mean)
    levels = {b: max(1, 2 ** (b - 1) - 1) for b in bits}
    starts = {b: float(initial_learned(weight, b, "per_tensor", "lsq") * levels[b] / mean) for b in bits}
    gammas = torch.arange(0.5, 1.05 * max(*starts.values(), largest), 0.05)
    with subplots(figsize=(6.6, 3.9)) as (figure, axes):
        for i, b in enumerate(bits):
            points = [error_at(weight, b, float(gamma)) for gamma in gammas]
            axes.plot(gammas, points, color=COLOURS[i])
            end = float(gammas[-1]), points[-1]
            near = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(f"{b} bits", end, color=COLOURS[i], fontsize=9, **near)
            least = float(initial_learned(weight, b, "per_tensor", "dynamic"))
            for marker, gamma in zip(marks, (least, starts[b], largest), strict=True):
                axes.plot(gamma, error_at(weight, b, gamma), marker, color=COLOURS[i], markersize=7)
        for marker, label in marks.items():
            axes.plot([], [], marker, color=GREY, label=label)
        plain_log_scale(axes)
        axes.set(xlabel=r"where the grid ends: clip / mean$|w|$  ($\gamma$)", ylabel="relative squared error (%)")
        figure.legend(loc="outside upper center", ncols=3, fontsize=8, handletextpad=0.2, columnspacing=1.0)
    return figure


def row_sizes(weight: Tensor) -> Figure:
    """Largest and mean ``|w|`` of each row, sorted, beside those of the whole matrix."""
    size = weight.abs()
    largest, order = size.amax(dim=1).sort()
    mean = size.mean(dim=1)[order]
    lines = (("max", largest, size.max(), "--"), ("mean", mean, size.mean(), ":"))
    with subplots(figsize=(6.6, 2.9)) as (figure, axes):
        for i, (name, of_rows, of_all, dash) in enumerate(lines):
            axes.plot(of_rows.numpy(), "o", markersize=3, color=COLOURS[i], label=f"{name} |w| of a row")
            axes.axhline(float(of_all), color=COLOURS[i], linestyle=dash, label=f"{name} |w| of the matrix")
        axes.set_ylim(bottom=0)
        axes.set(xlabel="row, from the smallest maximum to the largest", ylabel="|w|")
        figure.legend(loc="outside right center", fontsize=8)
    return figure


def error_by_bits(table: pandas.DataFrame) -> Figure:
    """Error against bits per weight, scales counted, up to 6.2 bits: colours are schemes, markers granularities.

    ``table`` is what :func:`dqlib.study.notebooks.errors.errors` gave.
    """
    table = table[table["bits per weight"] <= 6.2]
    with subplots(figsize=(6.6, 3.8)) as (figure, axes):
        for (scheme, granularity), rows in table.groupby(["scheme", "granularity"], sort=False, observed=True):
            size, fill = (8, "none") if len(rows) == 1 else (4.5, "full")
            axes.plot(
                rows["bits per weight"], rows["error (%)"], color=colour_of(scheme), linewidth=1,
                marker=marker_of(granularity), markersize=size, fillstyle=fill,
            )  # fmt: skip
        for scheme in table.scheme.unique():
            axes.plot([], [], color=colour_of(scheme), linewidth=3, label=scheme)
        for granularity in table.granularity.cat.categories:
            axes.plot([], [], marker_of(granularity), color=GREY, label=granularity.replace("_", " "))
        plain_log_scale(axes)
        axes.set(xlabel="bits per weight, scales counted", ylabel="relative squared error (%)")
        figure.legend(loc="outside right center", fontsize=8)
    return figure
