"""What commands read: lines of a file or of standard input, texts and pairs of texts in them; their common options."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from dqlib.engines.base import ASKED, Engine
from dqlib.engines.classifier import Classifier
from dqlib.errors import InputError

Model = TypeVar("Model", Engine, Classifier)


def outside(folder: str, out: str) -> None:
    """Refuse to write into the folder that is read, which would be another one then.

    Raises:
        InputError: the output is a folder within it.
    """
    read = os.path.realpath(folder)
    if os.path.realpath(out).startswith(read + os.sep):
        raise InputError("out", out, f"a folder outside of {folder}, which is read")


def check_writable(out: str) -> None:
    """Refuse a folder that cannot be written, before there is anything to write.

    Raises:
        InputError: of what it is to lie in, that which exists cannot be written, or is no folder.
    """
    place = Path(out).expanduser().absolute().parent
    while not os.path.lexists(place):
        place = place.parent
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise InputError("out", out, f"a folder that can be written ({error.strerror}: {place})") from None


@contextmanager
def of_option(name: str, folder: str) -> Iterator[None]:
    """Let an error of what a folder holds say which option, or argument, gave the folder."""
    try:
        yield
    except InputError as error:
        field = name if error.field == "folder" else f"{name} {folder}, {error.field}"
        raise InputError(field, error.value, error.allowed) from None


def compared(options: argparse.Namespace, load: Callable[..., Model]) -> list[Model]:
    """The two models of ``agree``, loaded; the first one's tokens are for both.

    Raises:
        InputError: the first has no tokenizer, or the second another vocabulary.
    """
    models = []
    for name in ("reference", "folder"):
        with of_option(name, folder := getattr(options, name)):
            models.append(load(folder, threads=options.threads))
    if models[0].tokenizer is None:
        raise InputError("reference", options.reference, "a model with a tokenizer")
    vocabularies = [each.tokenizer.get_vocab() for each in models if each.tokenizer is not None]
    if any(each != vocabularies[0] for each in vocabularies):
        raise InputError("folder", options.folder, f"a model of the same vocabulary as {options.reference}")
    return models


def _number(kind: type, least: int | None = None) -> Callable[[str], Any]:
    """What reads the value of an option that is a number of that kind."""
    allowed = ("a whole number" if kind is int else "a number") + ("" if least is None else f" of at least {least}")

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or (least is not None and value < least):
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed; it must be {allowed}")
        return value

    return read


#: The value of an option that counts something.
at_least_one = _number(int, 1)


def _asked(kind: type, text: str) -> dict[str, Any]:
    """An option of a search, which is the model's own where it is not given."""
    how = {"action": "store_const", "const": True} if kind is bool else {"type": _number(kind), "metavar": "N"}
    return {"help": f"{text} (default: the model's own)", **how}


#: Beams of a search where none are asked for.
BEAMS = 4

#: Options as ``add_argument`` takes them: the texts and the engine that reads them,
READING: dict[str, dict[str, Any]] = {
    "--input": {"metavar": "FILE", "default": "-", "help": "file of one text per line; - for standard input"},
    "--batch-size": {"type": at_least_one, "default": 8, "help": "texts at a time (default: %(default)s)"},
    "--threads": {"type": at_least_one, "help": "of the engine (default: its own choice)"},
}
#: where a line has the texts of a classifier,
COLUMNS: dict[str, dict[str, Any]] = {
    "--pairs": {
        "action": "store_true",
        "help": "for a classifier of pairs: each line is two texts with a tab between them",
    },
    "--text": {
        "metavar": "COLUMN",
        "help": "for a classifier: each line is a JSON object (JSON Lines), which has the text under this name",
    },
    "--second": {"metavar": "COLUMN", "help": "and the second text of a pair under this name"},
}
#: and the search.
SEARCH: dict[str, dict[str, Any]] = {
    "--beams": {"type": at_least_one, "help": f"beams of the search (default: {BEAMS})"},
    "--max-new-tokens": {
        "type": at_least_one,
        "help": "tokens written at most (default: 64, or what the model has positions for)",
    },
    **{f"--{name.replace('_', '-')}": _asked(*how) for name, how in ASKED.items() if how[0] is not list},
    "--language": {"help": "to write in, for a model of several (default: where the model starts)"},
}


#: How bytes that are no UTF-8 are read: as halves of characters, which :func:`lines_of` refuses with their line.
UNDECODED = "surrogateescape"


@contextmanager
def lines_of(source: str) -> Iterator[Iterator[str]]:
    """The lines of a file, or of standard input.

    Raises:
        InputError: the file does not exist or has no line, or a line is no UTF-8.
    """
    if source == "-":
        yield _decoded(sys.stdin, source)
        return
    if not Path(source).exists() or Path(source).is_dir():
        raise InputError("--input", source, "a file that exists")
    with Path(source).open(encoding="utf-8-sig", errors=UNDECODED) as lines:  # some editors begin with a mark
        yield _decoded(lines, source)


def _decoded(lines: Iterable[str], source: str) -> Iterator[str]:
    number = 0
    for number, line in enumerate(lines, start=1):
        if not _is_whole(line):
            raise InputError(_line(source, number), line, "a text in utf-8")
        yield line.rstrip("\r\n")
    if not number:
        raise InputError("--input", source, "a file, or - for standard input, with a text at least")


def _line(source: str, number: int) -> str:
    """What errors call a line."""
    return f"--input {source}, line {number}"


def _is_whole(text: str) -> bool:
    """Whether a text has no halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def search_of(options: argparse.Namespace) -> dict[str, Any]:
    """What is asked for of a search."""
    asked = {name: getattr(options, name, None) for name in ASKED}
    return {"num_beams": options.beams or BEAMS, **{name: value for name, value in asked.items() if value is not None}}


def texts_of(lines: Iterable[str], options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """One text, or two, of each line, as the options :data:`COLUMNS` say.

    Raises:
        InputError: options contradict each other, or a line has not what they say; it is named by its number.
    """
    names = [name for name in (options.text, options.second) if name is not None]
    if options.pairs and names:
        raise InputError("--pairs", True, "left out with --text, or be alone")
    if options.second is not None and options.text is None:
        raise InputError("--second", options.second, "given with --text, the column of the first text")
    for number, line in enumerate(lines, start=1):
        where = _line(options.input, number)
        if names:
            texts = tuple(_columns(line, names, where))
        else:
            texts = tuple(line.split("\t")) if options.pairs else (line,)
            if options.pairs and len(texts) != 2:
                raise InputError(where, line, "two texts with one tab between them")
        if not all(text.strip() for text in texts):
            raise InputError(where, line, "a text, with a word at least" if len(texts) == 1 else "two texts with words")
        yield texts


def _columns(line: str, names: Iterable[str], where: str) -> Iterator[str]:
    def with_keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for key, value in pairs:
            if key in row:  # nobody knows which of the two is meant
                raise InputError(f"{where}, key", key, "there once")
            row[key] = value
        return row

    try:
        row = json.loads(line, object_pairs_hook=with_keys_once)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(where, line, f"a JSON object ({error})") from None
    for name in names:
        value = row.get(name) if isinstance(row, dict) else None
        if not isinstance(value, str):
            raise InputError(where, line, f"a JSON object with a text under the name {name!r}")
        if not _is_whole(value):
            raise InputError(where, line, "texts of whole characters; one has half of one")
        yield value
