"""What the notebook on deployment shows: where a file's bytes are, and the same documents answered by each engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from dqlib.engines import export_model, load_engine
from dqlib.engines.base import Engine
from dqlib.engines.torch_engine import load_model
from dqlib.storage.account import Account
from dqlib.storage.packed import save_packed
from dqlib.study.notebooks.show import texts_table
from dqlib.study.report.engines import measured as measured
from dqlib.study.report.engines import weight_bytes
from dqlib.study.report.style import COLOURS, TEACHER_COLOUR, subplots


def pack(student: Path, folder: Path) -> None:
    """Write a packed model of a trained student's folder, with its tokenizer."""
    model, tokenizer = load_model(student)
    save_packed(model, folder, tokenizer)


def export_each(packed: Path, engines: Sequence[str]) -> dict[str, Path]:
    """The folder of each engine: the packed model itself for ``torch``, exports beside it; sizes and notes are printed.

    Raises:
        InputError: an engine is unknown or not installed.
    """
    folders = {}
    for name in engines:
        folders[name] = packed
        if name != "torch":
            folders[name] = packed.with_name(f"{packed.name}-{name}")
            model, tokenizer = load_model(packed)
            notes = export_model(model, folders[name], name, tokenizer)
            print(f"{folders[name]}: {weight_bytes(folders[name]):,} bytes" if notes is None else notes, end="\n\n")
    return folders


def bytes_by_part(account: Account) -> Figure:
    """The account as a picture: bytes of each part on disk, as the paper counts, and in full precision."""
    parts = {**account.parts, "all": account.total}
    rows = {name: part for name, part in parts.items() if part.size_bytes or part.paper_bytes or part.fp32_bytes}
    looks = {
        "fp32": ("fp32_bytes", "o", TEACHER_COLOUR, "none"),
        "paper's count": ("paper_bytes", "^", COLOURS[1], COLOURS[1]),
        "on disk": ("size_bytes", "s", COLOURS[0], COLOURS[0]),
    }
    with subplots(figsize=(6.4, 0.36 * len(rows) + 1.2)) as (figure, axes):
        for label, (column, marker, colour, fill) in looks.items():
            values = enumerate(getattr(part, column) for part in rows.values())
            shown = [(value / 1000, place) for place, value in values if value]
            axes.plot(*zip(*shown, strict=True), marker, color=colour, markerfacecolor=fill, label=label)
        for place, part in enumerate(rows.values()):
            share = 100 * part.size_bytes / account.total.size_bytes
            axes.annotate(f"{share:.1f}%" if part.size_bytes else "-", (1.01, place), va="center", fontsize=8,
                          xycoords=("axes fraction", "data"), annotation_clip=False)  # fmt: skip
        axes.set_xscale("log")
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("kB (logarithmic); right: share of the bytes on disk")
        figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure


def load_each(folders: Mapping[str, Path]) -> dict[str, Engine]:
    """The engine of each folder, by its name."""
    return {name: load_engine(folder) for name, folder in folders.items()}


def answers(engines: Mapping[str, Engine], texts: Sequence[str], beams: int = 1, max_new_tokens: int = 40) -> Styler:
    """What each engine writes for the same texts, by the search of :func:`measured`: one row per text and engine."""
    written = {}
    for name, engine in engines.items():
        engine.early_stopping = True
        written[name] = engine.generate(texts, num_beams=beams, max_new_tokens=max_new_tokens)
    rows = [
        {"document": text[:60] + " ..." * (len(text) > 60) if name == next(iter(engines)) else "", "engine": name,
         "answer": written[name][i].strip()}
        for i, text in enumerate(texts) for name in engines
    ]  # fmt: skip
    return texts_table(rows)
