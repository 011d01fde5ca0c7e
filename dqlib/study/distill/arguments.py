"""The arguments of ``dqlib distill`` and ``dqlib evaluate``: each field is an option of a command and of its function.

Imports nothing heavy, so that ``dqlib --help`` answers at once.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from dqlib.errors import InputError
from dqlib.generation_settings import MOST_BEAMS


def flag(name: str) -> str:
    """The option of a command by which a field is given."""
    return f"--{name.replace('_', '-')}"


def _option(text: str, default: Any = None, **how: Any) -> Any:
    """A field that is an option, with its help; ``how`` is what ``add_argument`` takes besides.

    It has to be given where its default is missing.
    """
    return field(default=default, metadata={"help": text} | how)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of the data a model reads and is judged by, and how it is tested.

    Raises:
        InputError: a number is below 1, or there are too many beams.
    """

    source: str | None = _option("column of the texts that are read, of an encoder-decoder")
    target: str | None = _option("column of the texts that are to be written")
    text: str | None = _option("column of the text, of a classifier or a language model")
    second: str | None = _option("column of the second text, of a classifier of pairs")
    label: str | None = _option("column of the class, of a classifier")
    language: str | None = _option(
        "that is translated into: BLEU is the score then (default: what the checkpoint says)"
    )
    prefix: str | None = _option(
        "before each source, by which T5 knows its task (default: the one that the checkpoint has)"
    )
    source_tokens: int | None = _option("of a source, or of a text, that are read (default: the model's, at most 1024)")
    target_tokens: int | None = _option("that are written at most (default: the checkpoint's max_length, or 128)")
    documents: int = _option("texts of the test that are taken, at most (default: %(default)s)", 500)
    beams: int | None = _option("of the search (default: the checkpoint's, or 4)")
    batch_size: int = _option("texts of the test at a time (default: %(default)s)", 16)
    dataset_config: str | None = _option("of a data set of the hub")

    def __post_init__(self) -> None:
        for name in ("source_tokens", "target_tokens", "beams", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(flag(name), value, "at least 1")
        if self.beams is not None and self.beams > MOST_BEAMS:
            raise InputError("--beams", self.beams, f"at most {MOST_BEAMS}")


@dataclass(frozen=True, kw_only=True)
class DistillArguments(Columns):
    """All arguments of ``dqlib distill``."""

    checkpoint: str = _option("folder or hub name of a BART, mBART, Marian, T5, BERT or GPT-2", MISSING)
    out: str = _option("folder to write: new, empty, or of the same command, which goes on there", MISSING)
    train: str = _option("pairs: JSON Lines, CSV, Parquet, gzipped or not, or a data set of the hub", MISSING)
    config: str = _option("of the student, such as '2-2-8 6-3' or auto:25MB", MISSING)
    validation: str | None = _option("pairs to validate on (default: a part of train, by a hash)")
    test: str | None = _option("pairs to test on (default: a part of train, by a hash)")
    preset: str = _option("how bits become codes, and losses: a name or a YAML file (default: %(default)s)", "dqlib")
    steps: int | None = _option("of the training")
    hours: float | None = _option("that all may take, by two steps that are timed here (default: 2, without --steps)")
    batch_tokens: int = _option("of a step, source and target together (default: %(default)s)", 4096)
    learning_rate: float | None = _option("that fine-tuning would have (default: by the width of the model)")
    seed: int = _option("of the order of the texts (default: %(default)s)", 28)
    precision: str = _option("of matrix products in training: fp32 or bf16 (default: %(default)s)", "fp32")
    export: Sequence[str] = _option("engines to export to: onnxruntime, ctranslate2", (), nargs="+")
    revision: str | None = _option("of a checkpoint of the hub")
    dry_run: bool = _option("say hours, memory, disk and bytes of the student, and train nothing", False)


@dataclass(frozen=True, kw_only=True)
class Test(Columns):
    """All arguments of ``dqlib evaluate``."""

    model: str = _option("folder of a teacher, a student, a packed model or an export", MISSING)
    data: str = _option("pairs: JSON Lines, CSV or Parquet, gzipped or not, or a data set of the hub", MISSING)
    against: str | None = _option("folder of another model, to compare with on the same texts")
    threads: int | None = _option("of the engine (default: its own choice)")


#: How a parser reads a field, by its annotation without ``| None``; all others are texts.
_READ: dict[str, dict[str, Any]] = {
    "int": {"type": int, "metavar": "N"},
    "float": {"type": float, "metavar": "X"},
    "bool": {"action": "store_true"},
}

#: What is given by its place.
_BY_PLACE = ("checkpoint", "out", "model", "data")

#: Fields of parameters and of engines for which options have other names, in the order in which they are looked for.
_OPTIONS = {
    "num_beams": ("beams",),
    "max_new_tokens": ("target_tokens",),
    "languages": ("language",),
    "configs": ("config",),
    "train": ("data",),
    "dataset": ("train", "data"),
}


def options_of(kind: type) -> dict[str, dict[str, Any]]:
    """The fields of one of the classes above as ``add_argument`` takes them."""
    found = {}
    for each in sorted(fields(kind), key=lambda each: each.name not in _BY_PLACE):
        if each.name in _BY_PLACE:
            found[each.name] = {**each.metadata, "metavar": each.name.upper()}
        else:
            read = _READ.get(str(each.type).removesuffix(" | None"), {"metavar": "TEXT"})
            given = {"required": True} if each.default is MISSING else {"default": each.default}
            found[flag(each.name)] = {**each.metadata, **read, **given}
    return found


@contextmanager
def options_named(options: Collection[str]) -> Iterator[None]:
    """Name the field of an error as one of a command's ``options`` by which a user gives it, where there is one."""
    try:
        yield
    except InputError as error:
        name = re.sub(r"^(--|settings, |([\w-]+\.)+)|\[\d+\]$", "", error.field).replace("-", "_")
        names = [option for each in (name, *_OPTIONS.get(name, ())) for option in (flag(each), each)]
        option = next((each for each in names if each in options), None)
        if option is None:
            raise
        raise InputError(option, error.value, error.allowed) from None


def arguments_of(kind: type, options: argparse.Namespace) -> Any:
    """The fields of one of the classes above, of what a parser has read."""
    return kind(**{each.name: getattr(options, each.name) for each in fields(kind)})
