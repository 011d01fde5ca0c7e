"""The embedded summarization corpus: documentation that every installation already has.

Docstrings of the standard library and of the study's own dependencies are read with :mod:`ast`.
Nothing is imported, so building the corpus runs none of that code. PEP 257 asks for a one-line
summary, a blank line, and a body; that convention is the annotation:

* target: the first line of the docstring,
* source: the qualified name, as it is and in words, and the body.

The name in words is there because ``PeriodIndex`` and "period index" share no token: a model of this size
cannot learn their relation from so little text.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import itertools
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

from dqlib.errors import InputError
from dqlib.study.corpora.rows import Row
from dqlib.study.corpora.splits import SPLITS, split_of
from dqlib.study.params import settings as S

#: What is found in one file.
Found = TypeVar("Found")

#: What may have a docstring.
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

#: Folders whose docstrings describe tests or copies of other projects, not an interface.
SKIPPED_FOLDERS = frozenset({"test", "tests", "testing", "_vendor", "site-packages", "__pycache__", "idlelib"})

#: Shortest and longest summary and shortest body, in words.
SUMMARY_WORDS = (3, 30)
MIN_BODY_WORDS = 8

#: Files that a process parses at a time; as many alone are parsed by this one.
PART = 64


def build(corpus: S.Corpus) -> dict[str, list[Row]]:
    """The rows of every split; raises as :func:`dqlib.study.corpora.pydoc.python_files`."""
    return in_splits(rows_once(corpus.packages, module_rows), corpus.limit)


def unpaired(corpus: S.Corpus) -> Iterator[Row]:
    """Every docstring of a module of the training split, in the form of a pair's source, in the order of a hash.

    What is longer than a summary alone is read as the body of a pair is, without its first paragraph; of others the
    whole text is the body. Those of fewer than :data:`MIN_BODY_WORDS` words are left out.

    Raises:
        InputError: a package is not installed.
    """
    return in_train_split(corpus.packages, module_texts)


def in_train_split(packages: list[str], of_module: Callable[[str, Path], list[Row]]) -> Iterator[Row]:
    """Rows with ``group``, ``name`` and ``source`` of all modules of the training split, in the order of a hash."""
    rows = itertools.chain.from_iterable(each_module(packages, of_module, split="train"))
    yield from sorted(rows, key=lambda row: hashlib.sha256(f"{row['name']} {row['source']}".encode()).digest())


def module_rows(module: str, path: Path) -> list[Row]:
    """Summaries with their bodies in one file; none where the file cannot be read or parsed."""
    found = summaries_and_bodies(module, path)
    return [
        {"group": module, "name": name, "source": _source(name, body), "target": line} for name, line, body in found
    ]


def module_texts(module: str, path: Path) -> list[Row]:
    """The docstrings of one file as rows without a target; none where the file cannot be read or parsed."""
    rows = []
    for name, _, docstring in documented(module, path):
        head, _, body = docstring.partition("\n\n")
        texts = (" ".join(text.split()) for text in (body, head))
        text = next((text for text in texts if len(text.split()) >= MIN_BODY_WORDS), None)
        if text is not None:
            rows.append({"group": module, "name": name, "source": _source(name, text)})
    return rows


def in_splits(rows: list[Row], limit: int | None) -> dict[str, list[Row]]:
    """At most ``limit`` rows with a ``group`` (the module, which decides the split) and a ``name`` in their splits.

    They are in the order of a hash, so that the first so many of a split are an even sample over all packages.
    """

    def place(row: Row) -> bytes:
        return hashlib.sha256(f"{row['name']} {row.get('target', '')}".encode()).digest()

    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row in sorted(rows, key=place)[:limit]:
        splits[split_of(row["group"])].append(row)
    return splits


def python_files(packages: list[str]) -> list[tuple[str, str, Path]]:
    """All (package, module, file) of importable packages and of ``"stdlib"``, those of a package sorted by module.

    Raises:
        InputError: a package is not installed.
    """
    files: list[tuple[str, str, Path]] = []
    for place, package in enumerate(packages):
        spec = importlib.util.find_spec(package) if package.isidentifier() and package != "stdlib" else None
        folders = [sysconfig.get_paths()["stdlib"]] if package == "stdlib" else spec and spec.submodule_search_locations
        if not folders:
            allowed = "an installed package (a folder of Python files), or 'stdlib'"
            raise InputError(f"corpus.packages[{place}]", package, allowed)
        root, found = Path(next(iter(folders))), []
        for path in root.rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            if SKIPPED_FOLDERS.isdisjoint(parts) and not parts[-1].startswith("test_"):
                prefix = () if package == "stdlib" else (package,)
                found.append((package, ".".join(prefix + parts).removesuffix(".__init__"), path))
        files += sorted(found)
    return files


def rows_once(packages: list[str], of_module: Callable[[str, Path], list[Row]]) -> list[Row]:
    """Rows of all packages, in a fixed order, each target once (the first wins).

    Raises:
        InputError: a package is not installed.
    """
    unique: dict[str, Row] = {}
    for row in itertools.chain.from_iterable(each_module(packages, of_module)):
        unique.setdefault(re.sub(r"\W+", " ", row["target"].lower()).strip(), row)
    return list(unique.values())


def each_module(
    packages: list[str], of_module: Callable[[str, Path], Found], split: str | None = None
) -> Iterable[Found]:
    """What a function finds in each file of some packages, or of those modules that are in a split, in a fixed order.

    ``of_module`` takes a module's name and its file; it is a function of a module, so that processes can call it.

    Raises:
        InputError: a package is not installed.
    """
    files = [(module, path) for _, module, path in python_files(packages) if split in (None, split_of(module))]
    if len(files) <= PART:
        return itertools.starmap(of_module, files)
    with ProcessPoolExecutor(S.available_cores()) as pool:
        return list(pool.map(of_module, *zip(*files, strict=True), chunksize=PART))


def documented(module: str, path: Path) -> Iterator[tuple[str, Documented, str]]:
    """(qualified name, node, docstring) of a file and of every class and function in it that has a docstring.

    The docstring is without its indentation. Nothing where the file cannot be read or parsed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's string literals
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError):
        return
    stack: list[tuple[str, ast.AST]] = [(module, tree)]
    while stack:
        name, node = stack.pop()
        if isinstance(node, Documented):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield name, node, inspect.cleandoc(docstring)
        children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        stack.extend(
            (f"{name}.{child.name}" if hasattr(child, "name") else name, child) for child in reversed(children)
        )


def summaries_and_bodies(module: str, path: Path) -> Iterator[tuple[str, str, str]]:
    """(qualified name, first line, what comes after it) of each docstring of one file that has both, long enough."""
    shortest, longest = SUMMARY_WORDS
    for name, _, docstring in documented(module, path):
        summary, _, body = (part.strip() for part in docstring.partition("\n\n"))
        long_enough = shortest <= len(summary.split()) <= longest and len(body.split()) >= MIN_BODY_WORDS
        if long_enough and "\n" not in summary:
            yield name, " ".join(summary.split()), " ".join(body.split())


def _source(name: str, body: str) -> str:
    return f"{name}: {name_in_words(name)}. {body}"


def name_in_words(name: str) -> str:
    """The last two parts of a qualified name as words: ``a.b.PeriodIndex.is_full`` is ``period index is full``."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", " ".join(name.split(".")[-2:]))
    return " ".join(parts).lower()
