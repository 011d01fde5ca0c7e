"""What came out, in three sentences that the tables decide: of bits, of layers, of training together."""

from __future__ import annotations

from collections.abc import Sequence

from dqlib.study.evaluation.bootstrap import holm
from dqlib.study.evaluation.records import FALLING
from dqlib.study.report.claims import NOTHING
from dqlib.study.report.names import QUANTIZATION_ALONE
from dqlib.study.report.verdicts import SIGNIFICANT, Retention, Tables

#: Bits of the papers' grids, most first.
BITS = ("8-8-8", "4-4-8", "2-2-8", "1-1-8")


def findings(tables: Tables) -> list[str]:
    """Three sentences or fewer, as Markdown; one is left out where the tables have nothing for it."""
    return [text for text in (_bits(tables), _layers(tables), _together(tables)) if text]


def _bits(tables: Tables) -> str:
    by_bits = {bits: _of_tasks(tables, bits, "full") for bits in BITS}
    by_bits = {bits: kept for bits, kept in by_bits.items() if kept}
    if not by_bits:
        return ""
    lossless = []
    for bits, kept in by_bits.items():
        if min(each.part for each in kept.values()) < NOTHING:
            break
        lossless.append(bits)
    lead = "At every number of bits some task loses more than 1% of its teacher's score"
    if lossless:
        lead = f"Down to {_count(lossless[-1])}, with all layers, every task keeps 99% of its teacher's score or more"
    rest = [f"`{bits}`: {_listed(kept)}" for bits, kept in by_bits.items() if bits not in lossless]
    below = "Below: " if lossless else "Kept: "
    return f"**{lead}.**" + (f" {below}{'; '.join(rest)}." if rest else "")


def _layers(tables: Tables) -> str:
    full, parts, shown = _of_tasks(tables, "2-2-8", "full"), [], []
    for shape, name in (("half", "half of the decoder"), ("one", "one layer on each side")):
        fewer = _of_tasks(tables, "2-2-8", shape)
        lost = [100 * (full[task].part - fewer[task].part) for task in fewer if task in full]
        if lost:
            parts.append(f"keeping {name} costs {_span(lost)} points more")
            shown.append(f"{name} keeps {_listed(fewer)}")
    told = "; ".join(shown)
    return f"**At 2 bits, {', '.join(parts)}.** {told[:1].upper()}{told[1:]}." if parts else ""


def _together(tables: Tables) -> str:
    rows = [row for row in tables.comparisons.itertuples() if row.baseline == QUANTIZATION_ALONE]
    if not rows:
        return ""
    signs = [-1 if row.headline in FALLING else 1 for row in rows]
    more = [sign * (row.score - row.baseline_score) for sign, row in zip(signs, rows, strict=True)]
    decided = [p_value < SIGNIFICANT for p_value in holm([row.p_value for row in rows])]
    ahead = [row for row, each, sure in zip(rows, more, decided, strict=True) if sure and each > 0]
    behind = [row for row, each, sure in zip(rows, more, decided, strict=True) if sure and each < 0]
    lead = f"Distilling and quantizing together beats quantization alone in {len(ahead)} of {len(rows)} comparisons"
    lead += f", behind in {len(behind)}" if behind else ""
    undecided = len(rows) - len(ahead) - len(behind)
    lead += f", and {undecided} {'is' if undecided == 1 else 'are'} not decided" if undecided else ""
    shown = "; ".join(f"{row.task} `{row.config}`: {row.score:.2f} against {row.baseline_score:.2f}" for row in rows)
    return f"**{lead}** (p < {SIGNIFICANT}, corrected). {shown}."


def _of_tasks(tables: Tables, bits: str, shape: str) -> dict[str, Retention]:
    by_task = {task: tables.retention_of(task, bits, shape) for task in tables.tasks}
    return {task: kept for task, kept in by_task.items() if kept is not None and kept.decided}


def _listed(by_task: dict[str, Retention]) -> str:
    return ", ".join(f"{task} {kept}" for task, kept in by_task.items())


def _span(values: Sequence[float]) -> str:
    low, high = (f"{value:.1f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _count(bits: str) -> str:
    weights = bits.partition("-")[0]
    return f"{weights} bit" if weights == "1" else f"{weights} bits"
