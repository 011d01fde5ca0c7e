"""The embedded question-answering corpus: what the arguments of documented functions mean.

Docstrings describe arguments in a few conventions (Google, NumPy, reStructuredText); ``docstring_parser`` reads them
all. Each description becomes the answer to a question, as long-form question answering has it:

* source: the question, and as its support the function's summary, the argument as the signature has it, and the
  names of the others,
* target: the description, 12 to 80 words.

As in :mod:`dqlib.study.corpora.pydoc`, files are parsed and never imported, and the module decides the split.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import docstring_parser

from dqlib.study.corpora.pydoc import Documented, documented, in_splits, in_train_split, name_in_words, rows_once
from dqlib.study.corpora.rows import Row
from dqlib.study.params import settings as S

#: Shortest and longest answer, in words.
ANSWER_WORDS = (12, 80)

#: What a file has to contain to describe an argument in some convention.
DESCRIBES = re.compile(rb"(Arg|Argument|Param|Parameter|Attribute)s?:?\s*\n|[:@](param|arg|key|keyword)")


def build(corpus: S.Corpus) -> dict[str, list[Row]]:
    """The rows of every split; raises as :func:`dqlib.study.corpora.pydoc.python_files`."""
    return in_splits(rows_once(corpus.packages, module_answers), corpus.limit)


def unpaired(corpus: S.Corpus) -> Iterator[Row]:
    """The same questions about every argument of what is documented in a module of the training split.

    Only modules that describe arguments in some convention count, as for pairs.

    Raises:
        InputError: a package is not installed.
    """
    return in_train_split(corpus.packages, module_questions)


def module_answers(module: str, path: Path) -> list[Row]:
    """Questions with answers of one file; none where the file cannot be read or parsed."""
    rows: list[Row] = []
    shortest, longest = ANSWER_WORDS
    for name, sources, parsed in _documented_arguments(module, path):
        answers = {each.arg_name.lstrip("*\\"): " ".join((each.description or "").split()) for each in parsed.params}
        for argument, answer in answers.items():
            right_length = argument in sources and shortest <= len(answer.split()) <= longest
            if right_length and answer not in _support(name, parsed):  # one of an unknown convention is all summary
                asked = {"name": f"{name.removesuffix('.__init__')}({argument})", "source": sources[argument]}
                rows.append({"group": module, **asked, "target": answer})
    return rows


def module_questions(module: str, path: Path) -> list[Row]:
    """A question about each argument of what one file documents, answered or not, as rows without a target.

    None where the file describes no argument at all, or cannot be read or parsed.
    """
    return [
        {"group": module, "name": f"{name}({argument})", "source": source}
        for name, sources, parsed in _documented_arguments(module, path)
        if parsed.short_description
        for argument, source in sources.items()
    ]


def _documented_arguments(module: str, path: Path) -> Iterator[tuple[str, dict[str, str], docstring_parser.Docstring]]:
    """(qualified name, source of a question about each argument, docstring in its parts) of what one file documents.

    Nothing where the file describes no argument: most do not, and most of the time would go into parsing them.
    """
    try:
        describes = DESCRIBES.search(path.read_bytes())
    except OSError:
        return
    for name, node, docstring in documented(module, path) if describes else ():
        signature, parsed = _signature(node), _parsed(docstring)
        if signature is not None and parsed is not None:
            yield name, _sources(name, signature, parsed), parsed


def _parsed(docstring: str) -> docstring_parser.Docstring | None:
    """A docstring in its parts; odd ones make the parser fail in many ways, and none of them is worth anything here."""
    try:
        return docstring_parser.parse(docstring)
    except Exception:
        return None


def _support(name: str, parsed: docstring_parser.Docstring) -> str:
    """What is known of a function beside its signature."""
    name = name.removesuffix(".__init__")
    return f"{name}: {name_in_words(name)}. {' '.join((parsed.short_description or '').split())}"


def _sources(name: str, signature: ast.arguments, parsed: docstring_parser.Docstring) -> dict[str, str]:
    """The source of a question about each argument."""
    known, support, name = _arguments(signature), _support(name, parsed), name.removesuffix(".__init__")
    last, names = name.rpartition(".")[2], ", ".join(known)
    return {
        argument: f"What does the argument {argument} of {last} mean? {support} {written} ({names})"
        for argument, written in known.items()
    }


def _signature(node: Documented) -> ast.arguments | None:
    """Arguments of a function, or of a class's ``__init__``; None where there are none to ask for."""
    if isinstance(node, ast.ClassDef):
        methods = (each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__")
        node = next(methods, node)
    return node.args if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else None


def _arguments(signature: ast.arguments) -> dict[str, str]:
    """Every argument as it is written, with its type and its default, in order; without ``self``."""
    named = [*signature.posonlyargs, *signature.args]
    defaults = [None] * (len(named) - len(signature.defaults)) + signature.defaults
    pairs = [*zip(named, defaults, strict=True), *zip(signature.kwonlyargs, signature.kw_defaults, strict=True)]
    pairs += [(each, None) for each in (signature.vararg, signature.kwarg) if each is not None]
    written = {}
    for argument, default in pairs:
        text = ast.unparse(argument)
        written[argument.arg] = text if default is None else f"{text} = {ast.unparse(default)}"
    return {name: text for name, text in written.items() if name not in ("self", "cls")}
