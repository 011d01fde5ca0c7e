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
import dataclasses
import hashlib
import importlib.util
import inspect
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Pair:
    """A source with its target; ``group`` (the module) decides the split."""

    group: str
    name: str
    source: str
    target: str


def build(corpus: S.Corpus) -> dict[str, list[Row]]:
    """The rows of every split.

    Raises:
        InputError: a package is not installed.
    """
    return in_splits(build_pairs(corpus.packages, S.available_cores()), corpus.limit)


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
    found = each_module(packages, of_module, S.available_cores(), split="train")
    rows = [row for rows in found for row in rows]
    yield from sorted(rows, key=lambda row: hashlib.sha256(f"{row['name']} {row['source']}".encode()).digest())


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


def in_splits(pairs: list[Pair], limit: int | None) -> dict[str, list[Row]]:
    """Rows of at most ``limit`` pairs in their splits, as :func:`rows_in_splits` has them."""
    return rows_in_splits([dataclasses.asdict(pair) for pair in pairs], limit)


def rows_in_splits(rows: list[Row], limit: int | None) -> dict[str, list[Row]]:
    """At most ``limit`` rows with a ``group`` and a ``name`` in their splits.

    They are in the order of a hash, so that the first so many of a split are an even sample over all packages.
    """

    def place(row: Row) -> bytes:
        return hashlib.sha256(f"{row['name']} {row.get('target', '')}".encode()).digest()

    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row in sorted(rows, key=place)[:limit]:
        splits[split_of(row["group"])].append(row)
    return splits


def package_folder(package: str) -> Path:
    """Folder of an installed package, or of the standard library for ``"stdlib"``.

    Raises:
        InputError: no such package is installed here.
    """
    if package == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise InputError("packages", package, "an installed package (a folder of Python files), or 'stdlib'")
    return Path(next(iter(spec.submodule_search_locations)))


def python_files(package: str) -> list[tuple[str, Path]]:
    """All (module name, file) of a package, sorted by module name."""
    root = package_folder(package)
    found = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED_FOLDERS.isdisjoint(parts) and not parts[-1].startswith("test_"):
            prefix = () if package == "stdlib" else (package,)
            found.append((".".join(prefix + parts).removesuffix(".__init__"), path))
    return sorted(found)


def module_pairs(module: str, path: Path) -> list[Pair]:
    """Pairs of one file; none where the file cannot be read or parsed."""
    found = summaries_and_bodies(module, path)
    return [Pair(module, name, _source(name, body), summary) for name, summary, body in found]


def build_pairs(
    packages: list[str], processes: int = 1, of_module: Callable[[str, Path], list[Pair]] = module_pairs
) -> list[Pair]:
    """Pairs of all packages, in a fixed order, each target once (the first wins).

    Args:
        packages: importable package names, and ``"stdlib"``.
        processes: how many processes parse; the result does not depend on it.
        of_module: gives the pairs of one file; a function of a module, so that processes can call it.

    Raises:
        InputError: a package is not installed.
    """
    seen: set[str] = set()
    unique = []
    for pairs in each_module(packages, of_module, processes):
        for pair in pairs:
            key = re.sub(r"\W+", " ", pair.target.lower()).strip()
            if key not in seen:
                seen.add(key)
                unique.append(pair)
    return unique


def each_module(
    packages: list[str], of_module: Callable[[str, Path], Found], processes: int, split: str | None = None
) -> list[Found]:
    """What a function finds in each file of some packages, in a fixed order.

    Args:
        packages: importable package names, and ``"stdlib"``.
        of_module: takes a module's name and its file; a function of a module, so that processes can call it.
        processes: how many processes parse; the result does not depend on it.
        split: whose modules are read; None for all.

    Raises:
        InputError: a package is not installed.
    """
    files = [file for each in packages for file in python_files(each) if split in (None, split_of(file[0]))]
    if processes > 1 and files:
        with ProcessPoolExecutor(processes) as pool:
            return list(pool.map(of_module, *zip(*files, strict=True), chunksize=64))
    return [of_module(module, path) for module, path in files]


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
