"""Parameters as dataclasses: read from YAML, and built from it, every error with the full name of its field."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from yaml.constructor import SafeConstructor

from dqlib.errors import InputError, check_fields

#: What is found of an entry of a list.
Found = TypeVar("Found")

#: Most bytes of a parameter file, levels in it, and characters of a number.
LONGEST_FILE, DEEPEST, LONGEST_NUMBER = 1_000_000, 16, 40

#: Most of what is counted, and most tokens of a text; beyond it nothing that is here could be done.
MANY, LONGEST = 10**9, 10**5
#: That random numbers can start from.
SEEDS = (0, 2**32 - 1)

#: In the metadata of a field that is a dictionary of blocks: the keys that they may have, beside the other fields'.
NAMED_BLOCKS = "named blocks"

#: What errors call the types of values.
_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a block"}

#: What reads the numbers of YAML, by the names of their tags.
_NUMBERS = {"int": SafeConstructor.construct_yaml_int, "float": SafeConstructor.construct_yaml_float}

_YAML = "tag:yaml.org,2002:"
_NAME = re.compile(r"\w[\w.-]{0,99}")
_NO_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """PyYAML's reader, which calls itself for every level and so needs a limit."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > DEEPEST:
            line = self.peek_event().start_mark.line + 1
            raise InputError(f"params, line {line}, levels", self._depth, f"at most {DEEPEST}")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def read(path: Path) -> Any:
    """What a parameter file says, in dictionaries, lists, texts and numbers.

    Dates are texts, as all is that is no number, ``true``, ``false`` or ``null``.

    Raises:
        InputError: it cannot be read or is not YAML; a key is given twice, a value has a tag, refers to itself, or is
            too large a number.
    """
    try:
        if path.stat().st_size > LONGEST_FILE:
            raise InputError("params", str(path), f"a file of at most {LONGEST_FILE:,} bytes")
        node = _Loader(path.read_text(encoding="utf-8")).get_single_node()
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError("params", str(path), f"valid YAML ({' '.join(str(error).split())})") from None
    return None if node is None else _plain(node, "", {})


def _plain(node: yaml.Node, where: str, known: dict[yaml.Node, Any]) -> Any:
    """The value of a node; ``known`` has those of others, which aliases may name again, and None while one is read."""
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, where)
    if node.tag not in (f"{_YAML}map", f"{_YAML}seq"):
        raise InputError(where or "params", node.tag, "left out: values have no tags here")
    if node in known:
        if known[node] is None:
            raise InputError(where, "*", "a value that does not hold itself")
        return known[node]
    known[node] = None
    if isinstance(node, yaml.SequenceNode):
        known[node] = [_plain(item, f"{where}[{i}]", known) for i, item in enumerate(node.value)]
        return known[node]
    block: dict[str, Any] = {}
    for key, value in node.value:
        name = f"{where}.{key.value}" if where else str(key.value)
        if not isinstance(key, yaml.ScalarNode) or key.tag == f"{_YAML}merge":
            raise InputError(name, "<<", "left out: keys are plain names, each written where it belongs")
        if key.value in block:
            raise InputError(name, value.value, f"given once; it is given again in line {key.start_mark.line + 1}")
        block[key.value] = _plain(value, name, known)
    known[node] = block
    return block


def _scalar(node: yaml.ScalarNode, where: str) -> str | int | float | bool | None:
    kind, text = node.tag.removeprefix(_YAML), node.value
    if kind in ("str", "timestamp", "value"):
        if _NO_TEXT.search(text):
            raise InputError(where or "params", text, "text without control characters or halves of characters")
        return text
    if kind == "null":
        return None
    try:
        if kind == "bool":
            return SafeConstructor.bool_values[text.lower()]
        if kind in _NUMBERS and len(text) <= LONGEST_NUMBER:
            return _NUMBERS[kind](SafeConstructor(), node)
    except (ValueError, LookupError, ArithmeticError):
        pass  # of a tag that is written there
    allowed = f"a number of at most {LONGEST_NUMBER} characters" if kind in _NUMBERS else "a value without a tag"
    raise InputError(where or "params", text, allowed)


def build(cls: Any, data: Any, where: str) -> Any:
    """An instance of a dataclass from nested dictionaries, every error with its full name.

    The fields of the dataclass name the keys, their types the values; ``where`` is the block's full name, with dots.

    Raises:
        InputError: a key is unknown or missing, or a value is not allowed.
    """
    if not isinstance(data, dict):
        raise InputError(where or "params", data, f"a block with {', '.join(f.name for f in dataclasses.fields(cls))}")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}
    named = {name: tuple(spec.metadata[NAMED_BLOCKS]) for name, spec in known.items() if NAMED_BLOCKS in spec.metadata}
    keys = [key for name in known for key in named.get(name, (name,))]
    dotted = f"{where}." if where else ""
    for key in data:
        if key not in keys:
            raise InputError(f"{dotted}{key}", data[key], f"left out: the keys here are {', '.join(keys)}")
    values = {}
    for name, spec in known.items():
        if name in named:
            block = typing.get_args(hints[name])[1]
            given = [key for key in named[name] if data.get(key) is not None]
            values[name] = {key: build(block, data[key], f"{dotted}{key}") for key in given}
        elif name in data:
            values[name] = _value(hints[name], data[name], f"{dotted}{name}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise InputError(f"{dotted}{name}", None, "given")
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{dotted}{error.field}", error.value, error.allowed) from None


def _value(hint: Any, value: Any, where: str) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    kind = typing.get_origin(hint)
    if kind in (list, tuple):
        if not isinstance(value, list | tuple):
            raise InputError(where, value, "a list")
        return kind(_value(typing.get_args(hint)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind is Mapping:
        if not isinstance(value, dict):
            raise InputError(where, value, "a block")
        keys, block = typing.get_args(hint)
        return {
            _number(key, where) if keys is int else key: _value(block, each, f"{where}.{key}")
            for key, each in value.items()
        }
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or isinstance(value, bool) != (hint is bool):
        raise InputError(where, value, _KINDS[hint])
    if hint is float and not math.isfinite(value):
        raise InputError(where, value, "a finite number")
    return value


def _number(key: str, where: str) -> int:
    """A key that is a number."""
    if not key.isdecimal():
        raise InputError(where, key, "a block whose keys are whole numbers")
    return int(key)


def a_name(field: str, value: str, folders: bool = False) -> None:
    """Refuse what is no name, or no path of names: what is written stays in the folder that the project has for it."""
    if not all(map(_NAME.fullmatch, value.split("/") if folders else [value])):
        allowed = "a name: a letter or digit, then letters, digits, '.', '-' and '_'"
        raise InputError(field, value, allowed + (", or several with '/' between them" if folders else ""))


def bounded(block: Any, **bounds: tuple[int, int]) -> None:
    """Refuse numbers of a block below the least or above the most; those that are None are not asked."""
    for field, (least, most) in bounds.items():
        value = getattr(block, field)
        if value is not None and not least <= value <= most:
            raise InputError(field, value, f"at least {least}" if value < least else f"at most {most}")


def each(block: Any, name: str, check: Callable[[Any], Found], where: str = "") -> list[Found]:
    """What a check gives for every entry of a list of a block; an error names the list and the entry's place in it.

    A block is an instance of a dataclass or a dictionary.

    Errors of the check begin with what an entry is (``config '9-2-8 2-1', w_bits``); ``where`` the block stands has a
    dot behind it.
    """
    found = []
    for place, value in enumerate(block[name] if isinstance(block, Mapping) else getattr(block, name)):
        try:
            found.append(check(value))
        except InputError as error:
            _, blank, rest = error.field.partition(" ")
            raise InputError(f"{where}{name}[{place}]{blank}{rest}", error.value, error.allowed) from None
    return found


def no_repetitions(name: str, values: list[Any], given: list[Any] | None = None) -> None:
    """Refuse a list whose ``values`` are not all different; it is shown as it was ``given``."""
    if len(set(values)) < len(values):
        raise InputError(name, values if given is None else given, "a list without repetitions")


def a_seed(value: int) -> None:
    """Refuse what random numbers cannot start from."""
    if not SEEDS[0] <= value <= SEEDS[1]:
        raise InputError("seed", value, "from {} to {}".format(*SEEDS))


def below_one(block: Any, name: str) -> None:
    """Refuse a part of a whole that is not one."""
    check_fields(block, name, lambda share: 0 <= share < 1, "at least 0 and below 1")
