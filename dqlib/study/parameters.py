"""Parameters as dataclasses: built from nested dictionaries, every error with the full name of its field."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from dqlib.errors import InputError


def build(cls: type, data: Any, where: str) -> Any:
    """An instance of a dataclass from nested dictionaries, every error with its full name.

    Args:
        cls: the dataclass; its fields name the keys, their types the values.
        data: what YAML gave.
        where: full name of the block, with dots.

    Raises:
        InputError: a key is unknown or missing, or a value is not allowed.
    """
    if not isinstance(data, dict):
        raise InputError(where or "params", data, f"a block with {', '.join(f.name for f in dataclasses.fields(cls))}")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}
    dotted = f"{where}." if where else ""
    for key in data:
        if key not in known:
            raise InputError(f"{dotted}{key}", data[key], f"left out: the keys here are {', '.join(known)}")
    values = {}
    for name, spec in known.items():
        if name in data:
            values[name] = _value(hints[name], data[name], f"{dotted}{name}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise InputError(f"{dotted}{name}", None, "given")
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{dotted}{error.field}", error.value, error.allowed) from None


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
        if dataclasses.is_dataclass(hint):
            return build(hint, value, where)
    if typing.get_origin(hint) is list:
        item = typing.get_args(hint)[0]
        if not isinstance(value, list) or not all(isinstance(v, item) for v in value):
            raise InputError(where, value, f"a list of {item.__name__}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or isinstance(value, bool) != (hint is bool) or value != value:
        raise InputError(where, value, {"int": "a whole number", "float": "a number", "str": "text"}[hint.__name__])
    return value


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not in a list."""
    if value not in allowed:
        raise InputError(name, value, f"one of {', '.join(allowed)}")


def at_least(name: str, value: int, least: int) -> None:
    """Refuse a number below the least."""
    if value < least:
        raise InputError(name, value, f"at least {least}")


def below_one(name: str, value: float) -> None:
    """Refuse a part of a whole that is not one."""
    if not 0 <= value < 1:
        raise InputError(name, value, "at least 0 and below 1")
