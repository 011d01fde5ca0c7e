"""What the notebook ``quantization`` measures and draws: one matrix, one hidden state, a few small students.

Every value that is drawn comes from the quantizers that students are made of, derivatives included: they are what
autograd gives for :class:`dqlib.fake_quantize.WeightFakeQuantizer`, not a second copy of a formula.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dqlib.config import Config, Granularity, WeightQuantization
from dqlib.fake_quantize import WeightFakeQuantizer
from dqlib.losses import IGNORED_LABEL, cross_entropy, logits_kl
from dqlib.presets import Preset, get_preset
from dqlib.quantizers import Quantized, fake_quantize_activation, initial_learned, quantize
from dqlib.schemes import SCHEMES, Scheme
from dqlib.storage.footprint import FP16_BYTES
from dqlib.storage.packing import TRITS
from dqlib.storage.reading import read_model
from dqlib.storage.stored import whole
from dqlib.student import make_student, supervision_maps
from dqlib.study.corpora.corpus import load_corpus
from dqlib.study.evaluation.generation import bootstrap_interval
from dqlib.study.params import settings as S
from dqlib.study.params.paths import LOG
from dqlib.study.pipeline.jobs import quiet
from dqlib.study.pipeline.study import Study
from dqlib.study.report.figures import COLOURS, STYLE, TEACHER_COLOUR, colour_of, marker_of, plain_log_scale
from dqlib.study.training.batches import Batch, Example, collate, encode
from dqlib.study.training.batches import steps as take_steps
from dqlib.study.training.loop import Trainer, make_accelerator
from dqlib.study.training.objectives import DistillationObjective

#: Held-out documents that likeness is measured on.
HELD_OUT = 64
GRANULARITIES = ("per_tensor", "per_row", "per_group_32", "per_group_16")
GREY = "#999999"


@dataclass(frozen=True, slots=True)
class Material:
    """The teacher, and what it is asked to read."""

    teacher: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    train: list[Example]
    held_out: list[Example]
    distill: S.Distillation

    def batch(self) -> Batch:
        """The held-out pairs, padded to one batch."""
        return collate(self.held_out)


def material(study: Study) -> Material:
    """The study's teacher (trained if there is none yet), its training pairs and some held-out ones."""
    quiet()
    teacher = read_model(study.teacher())
    corpus, spec = load_corpus(study.folders.corpus), study.task.corpus
    pairs = encode(corpus.splits["train"], corpus.tokenizer, spec)
    held_out = encode(corpus.splits["validation"][:HELD_OUT], corpus.tokenizer, spec)
    return Material(teacher, corpus.tokenizer, pairs, held_out, study.task.distill)


# ---------------------------------------------------------------------------------------------------- one matrix


def quantized(
    weight: Tensor, bits: int, scheme: Scheme | str | None = None, granularity: Granularity | str = "per_tensor"
) -> Quantized:
    """The weight by one scheme; a trained scale stands where its training would start.

    Args:
        weight: (rows, columns).
        bits, scheme, granularity: see :func:`dqlib.quantizers.quantize`.
    """
    learned = None
    if scheme is not None and Scheme.parse(scheme).learned:
        learned = initial_learned(weight, bits, granularity, scheme)
    return quantize(weight, bits, granularity, scheme, learned)


def relative_error(weight: Tensor, codes: Quantized) -> float:
    """``||w - (q - z) s||^2 / ||w||^2``: 0 is no error, 1 is what a matrix of zeros would have."""
    return float((weight - codes.dequantize()).square().sum() / weight.square().sum())


def bits_a_weight(codes: Quantized) -> float:
    """Codes at their bits (ternary: five in 8), scales and zero points shared out, as the footprint counts."""
    scale_bytes = FP16_BYTES * codes.scale.numel()
    if codes.zero_point is not None:
        scale_bytes += whole(codes.zero_point).nbytes
    return (8 / TRITS if codes.ternary else codes.bits) + 8 * scale_bytes / codes.codes.numel()


def worked_example(weights: Tensor, codes: Quantized, count: int = 8) -> pandas.DataFrame:
    """The first weights of the first row on their way through the grid: ``w``, ``w / s + z``, ``q``, ``(q - z) s``."""
    s = codes.scale[0, 0]
    z = 0.0 if codes.zero_point is None else codes.zero_point[0, 0]
    w, value = weights[0, :count], codes.dequantize()[0, :count]
    columns = {"w": w, "w / s": w / s + z, "q": codes.codes[0, :count], "q s": value, "error / s": (value - w) / s}
    if codes.zero_point is not None:
        columns = {{"w / s": "w / s + z", "q s": "(q - z) s"}.get(name, name): v for name, v in columns.items()}
    return pandas.DataFrame({name: column.numpy().round(3) for name, column in columns.items()})


def errors(weight: Tensor, granularities: Sequence[str] = GRANULARITIES) -> pandas.DataFrame:
    """Every scheme at every granularity: relative squared error, and bits a weight with scales.

    Granularities that do not fit the width of the matrix are left out.
    """
    rows = []
    for scheme in SCHEMES.values():
        for bits in sorted({8, 6, 5, 4, 3, 2, 1} & set(scheme.bits), reverse=True):
            for granularity in granularities:
                group = Granularity.parse(granularity).group
                if group and weight.size(1) % group:
                    continue
                codes = quantized(weight, bits, scheme, granularity)
                rows.append(
                    {
                        "scheme": str(scheme),
                        "bits": bits,
                        "granularity": granularity,
                        "error (%)": round(100 * relative_error(weight, codes), 3),
                        "bits a weight": round(bits_a_weight(codes), 3),
                    }
                )
    table = pandas.DataFrame(rows)
    table["granularity"] = pandas.Categorical(table.granularity, granularities, ordered=True)
    return table


def grids(weight: Tensor, which: Sequence[tuple[int, str]]) -> Figure:
    """Histogram of a matrix with the grid of each scheme drawn through it (one scale for the matrix).

    Args:
        weight: (rows, columns).
        which: bits and scheme of each panel, three panels a line.
    """
    w = weight.flatten().numpy()
    made = [quantized(weight, bits, scheme) for bits, scheme in which]
    lattices = [_grid(codes, Scheme.parse(scheme)) for codes, (_, scheme) in zip(made, which, strict=True)]
    reach = 1.08 * max(np.abs(w).max(), *(abs(point) for points in lattices for point in points))
    lines = -(-len(which) // 3)
    with matplotlib.rc_context(STYLE):
        figure, panels = pyplot.subplots(
            lines, 3, figsize=(6.6, 2.1 * lines + 0.5), sharex=True, sharey=True, squeeze=False, layout="constrained"
        )
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
            axes.set_title(f"{_bits(bits)}, {scheme}\nerror {error:.2g}%", fontsize=9)
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
    return _shown(figure)


def _grid(codes: Quantized, scheme: Scheme) -> list[float]:
    """Every value that the scheme can give with this one scale."""
    zero = 0.0 if codes.zero_point is None else float(codes.zero_point)
    return [(q - zero) * float(codes.scale) for q in scheme.grid(codes.bits)]


def mosaic(weight: Tensor, bits: Sequence[int] = (8, 4, 3, 2, 1), rows: int = 24, columns: int = 32) -> Figure:
    """A corner of a matrix as a picture, and what is left of it at each precision (one scale a row)."""
    reach = 2.5 * float(weight.std())
    pictures = {"full precision": weight}
    pictures |= {_bits(b): quantized(weight, b, None, "per_row").dequantize() for b in bits}
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure, panels = pyplot.subplots(2, 3, figsize=(6.6, 3.7), layout="constrained")
        for axes, (name, picture) in zip(panels.flat, pictures.items(), strict=True):
            corner = picture[:rows, :columns].numpy()
            image = axes.imshow(corner, cmap="PuOr", vmin=-reach, vmax=reach, aspect="auto")
            axes.set_title(name, fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        for axes in panels[:, 0]:
            axes.set_ylabel("row (output)", fontsize=9)
        for axes in panels[-1]:
            axes.set_xlabel("column (input)", fontsize=9)
        figure.colorbar(image, ax=panels, location="right", aspect=30, label="weight")
    return _shown(figure)


def scale_sweep(weight: Tensor, bits: Sequence[int] = (2, 3, 4, 5)) -> Figure:
    """Error against where the grid ends, in units of mean|w|, with the clip that each scheme would choose.

    The curve is dynamic scaling (QuantGPT, arXiv:2203.10705, section 3.2) at every gamma; the marks are at the same
    grid's end by other rules: the largest weight, LSQ's start, the gamma of least error.
    """
    mean = weight.abs().mean()
    levels = {b: max(1, 2 ** (b - 1) - 1) for b in bits}
    starts = {b: float(initial_learned(weight, b, "per_tensor", "lsq") * levels[b] / mean) for b in bits}
    gammas = torch.arange(0.5, 1.05 * max(*starts.values(), float(weight.abs().max() / mean)), 0.05)
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(6.6, 3.9), layout="constrained")
        for i, b in enumerate(bits):
            points = [_error_at(weight, b, float(gamma)) for gamma in gammas]
            axes.plot(gammas, points, color=COLOURS[i])
            axes.annotate(
                f"{b} bits", (float(gammas[-1]), points[-1]), (5, 0), textcoords="offset points", va="center",
                color=COLOURS[i], fontsize=9,
            )  # fmt: skip
            marks = {
                "o": float(initial_learned(weight, b, "per_tensor", "dynamic")),
                "s": starts[b],
                "^": float(weight.abs().max() / mean),
            }
            for marker, gamma in marks.items():
                axes.plot(gamma, _error_at(weight, b, gamma), marker, color=COLOURS[i], markersize=7)
        for marker, name in (("o", "least error (dynamic scaling starts here)"), ("s", "LSQ starts here"),
                             ("^", "the largest weight (symmetric)")):  # fmt: skip
            axes.plot([], [], marker, color=GREY, label=name)
        plain_log_scale(axes)
        axes.set_xlabel(r"where the grid ends: clip / mean$|w|$  ($\gamma$)")
        axes.set_ylabel("relative squared error (%)")
        figure.legend(loc="outside upper center", ncols=3, fontsize=8, handletextpad=0.2, columnspacing=1.0)
    return _shown(figure)


def _error_at(weight: Tensor, bits: int, gamma: float) -> float:
    codes = quantize(weight, bits, "per_tensor", "dynamic", torch.full((1, 1), gamma))
    return 100 * relative_error(weight, codes)


def row_sizes(weight: Tensor) -> Figure:
    """Largest and mean ``|w|`` of each row, sorted, beside those of the whole matrix."""
    largest, order = weight.abs().amax(dim=1).sort()
    mean = weight.abs().mean(dim=1)[order]
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(6.6, 2.9), layout="constrained")
        whole = {"max": float(weight.abs().max()), "mean": float(weight.abs().mean())}
        for i, (name, values) in enumerate((("max", largest), ("mean", mean))):
            axes.plot(values.numpy(), "o", markersize=3, color=COLOURS[i], label=f"{name} |w| of a row")
            axes.axhline(whole[name], color=COLOURS[i], linestyle=("--", ":")[i], label=f"{name} |w| of the matrix")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("row, from the smallest maximum to the largest")
        axes.set_ylabel("|w|")
        figure.legend(loc="outside right center", fontsize=8)
    return _shown(figure)


def error_by_bits(table: pandas.DataFrame, most: float = 6.2) -> Figure:
    """Error against bits a weight, scales counted: colours are the schemes of the table, markers granularities.

    Args:
        table: what :func:`errors` gave.
        most: bits a weight at the right edge.
    """
    table = table[table["bits a weight"] <= most]
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(6.6, 3.8), layout="constrained")
        for (scheme, granularity), rows in table.groupby(["scheme", "granularity"], sort=False, observed=True):
            axes.plot(
                rows["bits a weight"], rows["error (%)"], color=colour_of(scheme), linewidth=1,
                marker=marker_of(granularity), markersize=8 if len(rows) == 1 else 4.5,
                fillstyle="none" if len(rows) == 1 else "full",
            )  # fmt: skip
        for scheme in table.scheme.unique():
            axes.plot([], [], color=colour_of(scheme), linewidth=3, label=scheme)
        for granularity in table.granularity.cat.categories:
            axes.plot([], [], marker_of(granularity), color=GREY, label=granularity.replace("_", " "))
        plain_log_scale(axes)
        axes.set_xlabel("bits a weight, scales counted")
        axes.set_ylabel("relative squared error (%)")
        figure.legend(loc="outside right center", fontsize=8)
    return _shown(figure)


# ---------------------------------------------------------------------------------------------------- gradients


@dataclass(frozen=True, slots=True)
class Staircase:
    """A quantizer seen from one weight: value and derivatives over a range of weights, the step being 1."""

    weight: Tensor  # (points,)
    value: Tensor  # (points,)
    to_weight: Tensor  # (points,), d value / d w as autograd gives it
    to_step: Tensor  # (points,), d value / d s as autograd gives it


def staircase(bits: int = 3, reach: float = 1.7, points: int = 2001) -> Staircase:
    """Send a range of weights through LSQ with a step of 1, and a gradient of 1 back.

    Each weight is a row of its own with a step of its own, so the gradient of its step is its own, too. LSQ's
    gradient scale (arXiv:1902.08153, section 2.2) is divided out.

    Args:
        bits: of the grid.
        reach: how far the range goes, times the end of the grid.
        points: number of weights.
    """
    top = 2 ** (bits - 1) - 1
    w = torch.linspace(-reach * top, reach * top, points).unsqueeze(1).requires_grad_()  # (points, 1)
    quantizer = WeightFakeQuantizer(w, bits, "per_row", WeightQuantization(uniform="lsq", ternary="lsq"))
    with torch.no_grad():
        quantizer.learned.fill_(1.0)
    value = quantizer(w)
    value.sum().backward()
    return Staircase(
        w.detach().squeeze(1), value.detach().squeeze(1), w.grad.squeeze(1),
        quantizer.learned.grad.squeeze(1) * top**0.5,
    )  # fmt: skip


def straight_through(bits: int = 3) -> Figure:
    """The staircase, its true derivative with the straight-through one, and the gradient of LSQ's step."""
    seen = staircase(bits)
    top = 2 ** (bits - 1) - 1
    jumps = [k + 0.5 for k in range(-top, top)]
    with matplotlib.rc_context(STYLE):
        figure, panels = pyplot.subplots(
            3, 1, figsize=(6.6, 6.2), sharex=True, layout="constrained", height_ratios=(1.5, 0.8, 1.1)
        )
        for axes in panels:
            axes.axvspan(-top, top, color=COLOURS[4], alpha=0.13, linewidth=0)
        value, to_weight, to_step = panels
        value.plot(seen.weight, seen.weight, "--", color=GREY, label=r"$w$")
        value.plot(seen.weight, seen.value, color=COLOURS[0], label=r"$\hat w$, what the layer uses")
        value.set_ylabel(r"$\hat w\,/\,s$")
        to_weight.plot(seen.weight, seen.to_weight, color=COLOURS[1], label="straight-through")
        to_weight.axhline(0, color=COLOURS[0], linestyle=":", label="true: 0, none at a jump")
        for jump in jumps:  # where the true derivative has no value
            to_weight.plot(jump, 0, "o", color=COLOURS[0], markersize=4, fillstyle="none")
        to_weight.set_ylim(-0.15, 1.25)
        to_weight.set_ylabel(r"$\partial\hat w/\partial w$")
        to_step.plot(seen.weight, seen.to_step, color=COLOURS[2], label=r"$q - w/s$ inside, $q$ outside")
        to_step.axhline(0, color=GREY, linewidth=0.8)
        to_step.set_ylabel(r"$\partial\hat w/\partial s$")
        to_step.set_xlabel(r"weight, in steps: $w/s$   (shaded: inside the grid)")
        for axes in panels:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return _shown(figure)


def learn_step(weight: Tensor, bits: int, start: float, steps: int = 150, rate: float = 0.03) -> pandas.DataFrame:
    """Train LSQ's step of a whole matrix, and nothing else, to make the relative squared error small.

    Args:
        weight: (rows, columns), not changed.
        bits: of the grid.
        start: first step, times LSQ's own start.
        steps, rate: of Adam; the rate is a part of the first step.

    Returns:
        Columns ``iteration``, ``step`` and ``error (%)``.
    """
    quantizer = WeightFakeQuantizer(weight, bits, "per_tensor", WeightQuantization(uniform="lsq", ternary="lsq"))
    with torch.no_grad():
        quantizer.learned.mul_(start)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=rate * float(quantizer.learned.detach()))
    rows = []
    for iteration in range(steps + 1):
        error = (quantizer(weight) - weight).square().sum() / weight.square().sum()
        rows.append(
            {"iteration": iteration, "step": float(quantizer.learned.detach()), "error (%)": 100 * error.item()}
        )
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    return pandas.DataFrame(rows)


def learned_steps(weight: Tensor, bits: int = 3, starts: Sequence[float] = (0.4, 1.0, 2.0)) -> Figure:
    """LSQ's step and the error of the matrix while the step is trained, from several starts."""
    mean = weight.abs().mean()
    gammas = torch.arange(0.5, float(weight.abs().max() / mean), 0.05)
    least = min(_error_at(weight, bits, float(gamma)) for gamma in gammas)
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(6.6, 3.0), layout="constrained")
        for i, start in enumerate(starts):
            log = learn_step(weight, bits, start)
            name = "LSQ's start" if start == 1 else f"{start:g} x LSQ's start"
            left.plot(log.iteration, log.step, ("-", "--", "-.")[i % 3], color=COLOURS[i], label=name)
            right.plot(log.iteration, log["error (%)"], ("-", "--", "-.")[i % 3], color=COLOURS[i])
        right.axhline(least, color=TEACHER_COLOUR, linewidth=0.9, linestyle=":", label="least error of the sweep")
        left.set_ylabel(r"step $s$")
        right.set_ylabel("relative squared error (%)")
        left.set_ylim(bottom=0)
        right.set_ylim(bottom=0)
        for axes in (left, right):
            axes.set_xlabel("iteration")
        figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    return _shown(figure)


# ---------------------------------------------------------------------------------------------------- activations


@dataclass(frozen=True, slots=True)
class HiddenState:
    """What one linear layer reads for some texts."""

    layer: str
    states: Tensor  # (texts, tokens, features)
    mask: Tensor  # (texts, tokens), True where not padded
    ids: Tensor  # (texts, tokens)

    def text(self) -> int:
        """The text with the token that stands out most."""
        return int(_stands_out(self.states, self.mask).argmax())


@torch.no_grad()
def hidden_state(teacher: PreTrainedModel, batch: Batch, texts: int = 16) -> HiddenState:
    """The input of the encoder's linear layer where a token stands out most: largest max|x| over the median one."""
    mask, ids = batch.attention_mask[:texts].bool(), batch.input_ids[:texts]
    inputs: dict[str, Tensor] = {}
    encoder = teacher.get_encoder()
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        teacher.eval()
        encoder(input_ids=ids, attention_mask=mask.long())
    finally:
        for hook in hooks:
            hook.remove()
    layer = max(inputs, key=lambda name: float(_stands_out(inputs[name], mask).max()))
    return HiddenState(f"encoder.{layer}", inputs[layer], mask, ids)


def _stands_out(x: Tensor, mask: Tensor) -> Tensor:
    """For each text, the largest ``max|x|`` of a token over the median one: (texts,)."""
    peaks = x.abs().amax(dim=-1)  # (texts, tokens)
    return torch.stack([row[keep].max() / row[keep].median() for row, keep in zip(peaks, mask, strict=True)])


def token_errors(x: Tensor, bits: int, per_tensor: bool) -> Tensor:
    """Relative squared error of each token after rounding: (tokens,) for ``x`` of (tokens, features)."""
    rounded = fake_quantize_activation(x, bits, per_tensor=per_tensor)
    return (rounded - x).square().sum(dim=-1) / x.square().sum(dim=-1)


def outlier(hidden: HiddenState, tokenizer: PreTrainedTokenizerFast, bits: int = 4) -> Figure:
    """One text: how large each token is, and what rounding costs it with a scale a token and one for all."""
    text = hidden.text()
    keep = hidden.mask[text]
    x = hidden.states[text][keep]  # (tokens, features)
    peaks = x.abs().amax(dim=-1)
    largest = int(peaks.argmax())
    name = tokenizer.decode(hidden.ids[text][keep][largest]).strip() or "a space"
    with matplotlib.rc_context(STYLE):
        figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(6.6, 4.6), sharex=True, layout="constrained")
        colours = [COLOURS[2] if i == largest else GREY for i in range(len(peaks))]
        top.bar(range(len(peaks)), peaks.numpy(), color=colours, width=0.85)
        top.margins(y=0.2)
        top.grid(visible=False)
        top.annotate(
            f"largest: {name!r}", (largest, float(peaks[largest])), (0, 3), textcoords="offset points", ha="center",
            color=COLOURS[2], fontsize=9,
        )  # fmt: skip
        top.set_ylabel("max |x| of the token")
        for per_tensor, style, label in ((True, "^", "one scale for the text"), (False, "o", "one scale a token")):
            error = 100 * token_errors(x, bits, per_tensor).numpy()
            colour = COLOURS[1] if per_tensor else COLOURS[0]
            bottom.plot(error, style, color=colour, markersize=4.5, label=label)
            bottom.axhline(error.mean(), color=colour, linewidth=1, linestyle="--" if per_tensor else "-")
        plain_log_scale(bottom)
        bottom.set_ylabel(f"error at {bits} bits (%)\n(lines: mean)")
        bottom.set_xlabel(f"token of the text (input of {hidden.layer})")
        figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    return _shown(figure)


def activation_errors(hidden: HiddenState, bits: Sequence[int] = (8, 4)) -> pandas.DataFrame:
    """Mean relative squared error of a token (%), by bits and by how many tokens share a scale."""
    keep = hidden.mask
    text = hidden.text()
    one = hidden.states[text][keep[text]]
    rows = []
    for b in bits:
        a_token = token_errors(one, b, per_tensor=False).mean()
        a_text = token_errors(one, b, per_tensor=True).mean()
        a_batch = token_errors(hidden.states[keep], b, per_tensor=True)  # (tokens of all texts,)
        texts = torch.arange(len(keep)).unsqueeze(1).expand_as(keep)[keep]
        rows.append([100 * float(v) for v in (a_token, a_text, a_batch[texts == text].mean())])
    columns = ["one scale a token", "one for the text", f"one for a batch of {len(keep)} texts"]
    return pandas.DataFrame(rows, index=pandas.Index(bits, name="bits"), columns=columns).round(3)


# ---------------------------------------------------------------------------------------------------- likeness


@dataclass(frozen=True, slots=True)
class Similarity:
    """What is measured of one model on held-out pairs; arrays have one value a text."""

    similarity: np.ndarray  # mean cosine of different tokens' last hidden states
    encoder: np.ndarray  # the same of the encoder's
    table: float  # the same of the rows of the token embedding
    found: np.ndarray  # part of the tokens that are nearest to the same token of the teacher
    divergence: float  # from the teacher's next token, nats
    task: float  # cross-entropy of the reference, nats


@torch.no_grad()
def similarity(model: PreTrainedModel, teacher: PreTrainedModel, batch: Batch) -> Similarity:
    """How alike a model's tokens are (QuantGPT, arXiv:2203.10705, section 2), and how far it is from the teacher.

    Hidden states are those after the last layer (and its LayerNorm), of the decoder under the reference. A pair
    of positions counts where the tokens differ and neither is padding. Of the embedding, the rows of tokens that
    occur are compared.

    Args:
        model, teacher: encoder-decoders with the same vocabulary.
        batch: held-out texts.
    """
    was_training = model.training
    outputs = [m.eval()(**batch.inputs(), output_hidden_states=True) for m in (model, teacher)]
    model.train(was_training)
    ours, theirs = outputs
    mask = batch.labels != IGNORED_LABEL
    unit, unit_teacher = (normalize(o.decoder_hidden_states[-1], dim=-1) for o in outputs)
    across = (unit @ unit_teacher.transpose(1, 2)).masked_fill(~mask.unsqueeze(1), -2.0)  # (texts, ours, theirs)
    found = across.argmax(dim=-1) == torch.arange(mask.size(1))
    embedding = model.get_input_embeddings()
    rows = embedding.weight
    if getattr(embedding, "weight_quantizer", None) is not None:
        rows = embedding.weight_quantizer(rows)
    occurring = torch.cat([batch.input_ids[batch.attention_mask.bool()], batch.labels[mask]]).unique()
    return Similarity(
        similarity=_mean_cosine(ours.decoder_hidden_states[-1], batch.labels, mask),
        encoder=_mean_cosine(ours.encoder_hidden_states[-1], batch.input_ids, batch.attention_mask.bool()),
        table=float(_mean_cosine(rows[occurring][None], occurring[None], torch.ones(1, len(occurring)).bool())[0]),
        found=((found & mask).sum(dim=1) / mask.sum(dim=1)).numpy(),
        divergence=float(logits_kl(ours.logits, theirs.logits, mask)),
        task=float(cross_entropy(ours.logits, batch.labels)),
    )


def _mean_cosine(states: Tensor, ids: Tensor, mask: Tensor) -> np.ndarray:
    """Mean cosine over pairs of positions with different tokens: (texts,) for states (texts, tokens, features)."""
    unit = normalize(states, dim=-1)
    cosine = unit @ unit.transpose(1, 2)  # (texts, tokens, tokens)
    pairs = mask.unsqueeze(1) & mask.unsqueeze(2) & (ids.unsqueeze(1) != ids.unsqueeze(2))
    return ((cosine * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)).numpy()


def similarity_table(
    models: Mapping[str, PreTrainedModel], teacher: PreTrainedModel, batch: Batch, resamples: int = 1000
) -> pandas.DataFrame:
    """One row a model; ``more alike`` is its similarity less the teacher's, text by text, with a 95% interval.

    Args:
        models: by the name of the row; the teacher itself may be one.
        teacher: in full precision.
        batch: held-out texts.
        resamples: of the bootstrap over texts (:func:`dqlib.study.evaluation.generation.bootstrap_interval`).
    """
    base = similarity(teacher, teacher, batch)
    rows = []
    for name, model in models.items():
        seen = base if model is teacher else similarity(model, teacher, batch)
        more = seen.similarity - base.similarity
        low, high = bootstrap_interval(more, resamples)
        rows.append(
            {
                "model": name,
                "decoder": seen.similarity.mean(),
                "more alike": more.mean(),
                "low": low,
                "high": high,
                "encoder": seen.encoder.mean(),
                "embedding": seen.table,
                "found again (%)": 100 * seen.found.mean(),
                "divergence (nats)": seen.divergence,
                "task loss (nats)": seen.task,
            }
        )
    return pandas.DataFrame(rows).set_index("model").astype(float).round(3) + 0.0  # no minus zero


@torch.no_grad()
def similarity_maps(models: Mapping[str, PreTrainedModel], batch: Batch, text: int = 0) -> Figure:
    """Cosine similarity of every two tokens of one summary after the last decoder layer."""
    one = Batch(*(getattr(batch, name)[text : text + 1] for name in Batch.__slots__))
    length = int((one.labels != IGNORED_LABEL).sum())
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure, panels = pyplot.subplots(
            1, len(models), figsize=(6.6, 2.5), sharey=True, squeeze=False, layout="constrained"
        )
        for axes, (name, model) in zip(panels.flat, models.items(), strict=True):
            was_training = model.training
            states = model.eval()(**one.inputs(), output_hidden_states=True).decoder_hidden_states[-1][0, :length]
            model.train(was_training)
            unit = normalize(states, dim=-1)
            image = axes.imshow((unit @ unit.T).numpy(), cmap="PuOr", vmin=-1, vmax=1)
            axes.set_title(name, fontsize=9)
            axes.set_xlabel("token", fontsize=9)
            axes.tick_params(labelsize=8)
        panels[0, 0].set_ylabel("token of the summary", fontsize=9)
        bar = figure.colorbar(image, ax=panels, location="bottom", shrink=0.6, aspect=40, label="cosine similarity")
        bar.set_ticks([-1, -0.5, 0, 0.5, 1])
    return _shown(figure)


def similarity_points(table: pandas.DataFrame) -> Figure:
    """How much more alike tokens are than the teacher's (95% interval over texts), beside the divergence.

    Args:
        table: what :func:`similarity_table` gave.
    """
    places = range(len(table))
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(
            1, 2, figsize=(6.6, 0.45 * len(table) + 1.1), sharey=True, layout="constrained"
        )
        reach = [table["more alike"] - table.low, table.high - table["more alike"]]
        left.errorbar(table["more alike"], places, xerr=reach, fmt="o", color=colour_of("quantgpt"), capsize=3)
        left.axvline(0, color=TEACHER_COLOUR, linestyle="--", linewidth=1)
        left.set_yticks(places, table.index)
        left.invert_yaxis()
        left.set_xlabel("cosine of different tokens,\nless the teacher's (95% interval)")
        right.plot(table["divergence (nats)"], places, "s", color=colour_of("quantgpt"))
        right.set_xlim(left=-0.03 * max(table["divergence (nats)"].max(), 0.01))
        right.set_xlabel("divergence from the teacher's\nnext token (nats)")
        left.margins(y=0.15)
    return _shown(figure)


def distilled(
    given: Material, config: Config, preset: Preset | str, steps: int, contrastive: float | None = None
) -> PreTrainedModel:
    """A student after a short distillation by the study's own loop, with batches of half the study's size.

    Args:
        given: teacher, pairs, and the study's learning rate and batches.
        config: bits and layers.
        preset: preset whose losses and recipe are used.
        steps: of training.
        contrastive: weight of the contrast of tokens, in place of the preset's.

    Returns:
        The student after the last step, in evaluation mode, on the CPU.
    """
    preset = get_preset(preset)
    weights = preset.loss
    weights = weights if contrastive is None else replace(weights, contrastive=contrastive)
    recipe = preset.recipe_for(config)
    smaller = {"steps": steps, "batch_tokens": given.distill.batch_tokens // 2, "micro_batches": 1, "validations": 1}
    training = replace(given.distill.training(recipe), **smaller)
    accelerator = make_accelerator(training.seed)
    teacher = given.teacher.to(accelerator.device)
    student = make_student(teacher, config, preset)
    maps = supervision_maps(config, teacher)
    objective, batches = DistillationObjective(teacher, maps, weights), take_steps(given.train, training)
    with tempfile.TemporaryDirectory() as scratch:
        Trainer(
            student, objective, batches, given.held_out, training, accelerator, Path(scratch) / LOG,
            f"contrast {weights.contrastive:g}", recipe,
        ).train()  # fmt: skip
    given.teacher.cpu()
    return student.cpu().eval()


def in_words(table: pandas.DataFrame) -> str:
    """What the intervals of :func:`similarity_table` say, a sentence a model, so that prose need not guess."""
    sentences = []
    for name, row in table.iterrows():
        if row.low == row.high == 0:
            continue
        verdict = "about as alike as" if row.low <= 0 <= row.high else ("more alike than" if row.low > 0 else
                                                                        "less alike than")  # fmt: skip
        sentences.append(
            f"{name}: tokens are {verdict} the teacher's ({row['more alike']:+.3f}, 95% {row.low:+.3f} to "
            f"{row.high:+.3f}); divergence {row['divergence (nats)']:.3f} nats."
        )
    return "\n".join(sentences)


def _bits(bits: int) -> str:
    return f"{bits} bit{'s' * (bits > 1)}"


def _shown(figure: Figure) -> Figure:
    """The figure for a notebook to display once, not again at the end of the cell."""
    pyplot.close(figure)
    return figure
