"""Bits of each module under a budget of bytes: those that add the least loss, found exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from transformers import PreTrainedModel

from dqlib.architectures import architecture_of
from dqlib.config import Config, in_megabytes
from dqlib.errors import InputError
from dqlib.presets import Preset, get_preset
from dqlib.pruning import Calibration
from dqlib.sensitivity import Sensitivities, sensitivities
from dqlib.storage.footprint import Entry, footprint
from dqlib.student import layer_map, make_student, module_quantizers


def choose_bits(
    teacher: PreTrainedModel,
    config: Config,
    preset: Preset | str = "dqlib",
    calibration: Calibration | None = None,
    measured: Sensitivities | None = None,
) -> Config:
    """A configuration with a budget, and the bits of each module that add the least loss to the teacher's within it.

    The loss of a student is taken to be the sum of what its modules add alone (:mod:`dqlib.sensitivity`), measured in
    the teacher at full depth, where a student's layer is the one that it was copied from. More bits are never taken to
    be worse. The bytes are those of all tensors, :func:`dqlib.storage.footprint.size_bytes`; a packed file has names
    and checksums besides. A budget for everything at the most bits gives these to all.

    Args:
        preset: says how weights become codes, and which bits there are to choose from.
        measured: what that function gave for teacher and preset, to be taken instead of measuring again.

    Raises:
        InputError: the budget is below the smallest student of this shape, or there is no calibration.
    """
    names, preset = architecture_of(teacher.config), get_preset(preset)
    config = config.with_layers_of(*names.depths(teacher.config))
    names.check_fits(config, teacher.config)
    entries, rest = module_entries(teacher, config, preset, calibration)
    sizes = [[each.size_bytes for each in by_bits.values()] for by_bits in entries.values()]
    smallest = rest + sum(map(min, sizes))
    assert config.budget is not None
    if config.budget < smallest:
        raise InputError(f"budget of '{config}'", in_megabytes(config.budget),
                         f"at least {in_megabytes(smallest)}, the smallest student of this shape")  # fmt: skip
    if measured is None:
        measured = sensitivities(teacher, () if calibration is None else calibration, preset, config.a_bits)
    of_teacher = _paths_in_teacher(teacher, config, preset)
    added = ([measured[of_teacher(path)][bits] for bits in of] for path, of in entries.items())
    losses = [list(np.minimum.accumulate(each)) for each in added]  # more bits that measure as worse are noise
    if config.budget >= rest + sum(map(max, sizes)):
        places = [len(of) - 1 for of in sizes]
    else:
        places = knapsack(sizes, losses, config.budget - rest)
    chosen = {path: list(of)[place] for (path, of), place in zip(entries.items(), places, strict=True)}
    usual = {kind: _usual(entries, chosen, kind) for kind in ("weights", "embedding")}
    return replace(config, w_bits=usual["weights"], e_bits=usual["embedding"], modules=tuple(chosen.items()))


def module_entries(
    teacher: PreTrainedModel, config: Config, preset: Preset, calibration: Calibration | None = None
) -> tuple[dict[str, dict[int, Entry]], int]:
    """Bytes of each module at each of ``preset.budget_bits``, by its path in the student, and those of all else.

    Raises:
        InputError: the preset has a grid for none of the bits; or as :func:`dqlib.student.make_student`.
    """
    if not preset.budget_bits:
        raise InputError("preset", preset.name, "one with a grid for some of 1, 2, 4 and 8 bits, for a budget")
    entries: dict[str, dict[int, Entry]] = {}
    rest = 0
    for bits in preset.budget_bits:
        student = make_student(teacher, config.uniform(bits), preset, calibration)
        coded = {f"{path}.weight": path for path in module_quantizers(student)}
        rest = 0
        for entry in footprint(student):
            path = next((coded[name] for name in entry.names if name in coded), None)
            if path is None or entry.repeats is not None:
                rest += entry.size_bytes
            else:
                entries.setdefault(path, {})[bits] = entry
    return entries, rest


def knapsack(sizes: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], capacity: int) -> list[int]:
    """One choice of each group, of the least sum of losses whose sizes sum to at most a capacity: exact.

    The multiple-choice knapsack (Kellerer, Pferschy and Pisinger 2004, chapter 11) by dynamic programming over the
    sums that no other dominates. A sum is dropped where even parts of choices, which bound the rest from below by
    linear programming, could not make it better than what is known.

    Args:
        capacity: at least the sum of the smallest sizes.

    Returns:
        The place of the choice in each group.
    """
    bounds = _Bounds(sizes, losses)
    known = bounds.greedy(capacity)
    total: np.ndarray = np.zeros(1, dtype=np.int64)  # sizes of sums, sorted
    best: np.ndarray = np.zeros(1)  # and their losses
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for group in range(len(sizes)):
        size = np.add.outer(np.asarray(sizes[group], dtype=np.int64), total)  # (choices, sums)
        loss = np.add.outer(np.asarray(losses[group], dtype=float), best)
        choice, before = np.indices(size.shape)
        flat = size.ravel(), loss.ravel()
        order = np.lexsort((flat[1], flat[0]))
        total, best = flat[0][order], flat[1][order]
        below = np.concatenate([[np.inf], np.minimum.accumulate(best)[:-1]])
        lowest = bounds.of_rest(group + 1, capacity - total)
        kept = (best < below) & (best + lowest <= known + 1e-9 * (1 + abs(known)))
        total, best = total[kept], best[kept]
        steps.append((choice.ravel()[order][kept], before.ravel()[order][kept]))
    place, places = len(total) - 1, []  # the last is the best
    for choices, befores in reversed(steps):
        places.append(int(choices[place]))
        place = int(befores[place])
    return places[::-1]


class _Bounds:
    """The least loss of the last groups within a capacity, where parts of choices may be mixed.

    Each group starts from its smallest choice and follows the lower convex hull of its (size, loss); the steps of all
    groups in the order of what a byte is worth are the optimum of the linear program.
    """

    def __init__(self, sizes: Sequence[Sequence[int]], losses: Sequence[Sequence[float]]) -> None:
        self.curves = []
        for first in range(len(sizes) + 1):
            hulls = [_hull(*each) for each in zip(sizes[first:], losses[first:], strict=True)]
            steps = [(b[0] - a[0], b[1] - a[1]) for hull in hulls for a, b in pairwise(hull)]
            steps.sort(key=lambda step: step[1] / step[0])
            start = sum(hull[0][0] for hull in hulls), sum(hull[0][1] for hull in hulls)
            self.curves.append(np.cumsum([start, *steps], axis=0))  # (points, 2): sizes, losses

    def of_rest(self, first: int, capacities: np.ndarray) -> np.ndarray:
        """The bound of the groups from ``first`` on for each capacity; infinite where they do not fit."""
        curve = self.curves[first]
        return np.where(capacities < curve[0, 0], np.inf, np.interp(capacities, curve[:, 0], curve[:, 1]))

    def greedy(self, capacity: int) -> float:
        """The loss of whole steps, in that order, up to the first that does not fit: it can be had."""
        curve = self.curves[0]
        return float(curve[np.searchsorted(curve[:, 0], capacity, side="right") - 1, 1])


def _hull(sizes: Sequence[int], losses: Sequence[float]) -> list[tuple[int, float]]:
    """The lower convex hull of choices, from the smallest on, as long as the loss falls."""
    hull: list[tuple[int, float]] = []
    for size, loss in sorted(zip(sizes, losses, strict=True)):
        if hull and loss >= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], (size, loss)):
            hull.pop()
        hull.append((size, loss))
    return hull


def _slope(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def _paths_in_teacher(teacher: PreTrainedModel, config: Config, preset: Preset) -> Callable[[str], str]:
    """What gives the path of a student's module in its teacher, whose layers have other numbers."""
    names = architecture_of(teacher.config)
    moved: dict[str, str] = {}
    for side, stack in names.stacks.items():
        depth = getattr(teacher.config, stack.depth)
        layers = layer_map(getattr(config, f"{side}_layers"), depth, preset.single_layer)
        moved |= {f"{stack.layers}.{i}.": f"{stack.layers}.{layer}." for i, layer in enumerate(layers)}

    def path_in_teacher(path: str) -> str:
        for ours, theirs in moved.items():
            if path.startswith(ours):
                return theirs + path.removeprefix(ours)
        return path

    return path_in_teacher


def _usual(entries: Mapping[str, Mapping[int, Entry]], chosen: Mapping[str, int], kind: str) -> int:
    """The number of bits nearest to the mean over weights of a kind; over all, where there is none of the kind."""
    of = {path: next(iter(by_bits.values())) for path, by_bits in entries.items()}
    paths = [path for path in of if of[path].kind == kind] or list(of)
    mean = sum(chosen[path] * of[path].numel for path in paths) / sum(of[path].numel for path in paths)
    return min((bits for by_bits in entries.values() for bits in by_bits), key=lambda bits: abs(bits - mean))
