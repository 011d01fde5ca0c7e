"""What came out, in three sentences that the tables decide: of bits, of layers, of training together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from dqlib.study.report.claims import NOTHING
from dqlib.study.report.names import QUANTIZATION_ALONE, in_bits
from dqlib.study.report.verdicts import SIGNIFICANT, Retention, Tables, ahead, corrected, listed

#: Bits of the papers' grids, most first.
BITS = ("8-8-8", "4-4-8", "2-2-8", "1-1-8")


def findings(tables: Tables) -> list[str]:
    """Three sentences or fewer, as Markdown; one is left out where the tables have nothing for it."""
    return [text for text in (_bits(tables), _layers(tables), _together(tables)) if text]


def _bits(tables: Tables) -> str:
    by_bits = {bits: kept for bits in BITS if (kept := _kept(tables, bits, "full"))}
    if not by_bits:
        return ""
    every = {task for kept in by_bits.values() for task in kept}

    def keeps(bits: str) -> bool:
        return by_bits[bits].keys() == every and min(each.part for each in by_bits[bits].values()) >= NOTHING

    lossless = list(takewhile(keeps, by_bits))
    most = in_bits(int(next(iter(by_bits)).partition("-")[0]))
    lead = f"Already at {most}, with all layers, not every task keeps 99% of its teacher's score"
    if lossless:
        fewest = in_bits(int(lossless[-1].partition("-")[0]))
        lead = f"Down to {fewest}, with all layers, every task keeps 99% of its teacher's score or more"
    rest = [f"`{bits}`: {listed(kept)}" for bits, kept in by_bits.items() if bits not in lossless]
    below = "Below: " if lossless else "Kept: "
    return f"**{lead}.**" + (f" {below}{'; '.join(rest)}." if rest else "")


def _layers(tables: Tables) -> str:
    full, parts, shown = _kept(tables, "2-2-8", "full"), [], []
    for shape, name in (("half", "half of the decoder"), ("one", "one layer on each side")):
        fewer = _kept(tables, "2-2-8", shape)
        lost = [100 * (full[task].part - fewer[task].part) for task in fewer if task in full]
        if lost:
            parts.append(f"keeping {name} costs {_span(lost)} points more")
            shown.append(f"{name} keeps {listed(fewer)}")
    sentence = "; ".join(shown)
    return f"**At 2 bits, {', '.join(parts)}.** {sentence[:1].upper()}{sentence[1:]}." if parts else ""


def _together(tables: Tables) -> str:
    rows = [row for row in tables.comparisons.itertuples() if row.baseline == QUANTIZATION_ALONE]
    if not rows:
        return ""
    outcomes = [ahead(row, p_value) for row, p_value in corrected(rows)]
    more, less, undecided = (outcomes.count(outcome) for outcome in (True, False, None))
    lead = f"Distilling and quantizing together beats quantization alone in {more} of {len(rows)} comparisons"
    lead += f", behind in {less}" if less else ""
    lead += f", and {undecided} {'is' if undecided == 1 else 'are'} not decided" if undecided else ""
    shown = "; ".join(f"{row.task} `{row.config}`: {row.score:.2f} against {row.baseline_score:.2f}" for row in rows)
    return f"**{lead}** (p < {SIGNIFICANT}, corrected). {shown}."


def _kept(tables: Tables, bits: str, shape: str) -> dict[str, Retention]:
    by_task = tables.retentions(tables.tasks, bits, shape)
    return {task: kept for task, kept in by_task.items() if kept.decided}


def _span(values: Sequence[float]) -> str:
    low, high = (f"{value:.1f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
