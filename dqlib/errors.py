"""The one error a user's input raises: field, value, and what is allowed."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

_SHOWN = reprlib.Repr()  # of a value; a sentence stays one, whatever was given
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 200
_SHOWN.maxlist = _SHOWN.maxtuple = _SHOWN.maxdict = _SHOWN.maxset = 20
_SHOWN.maxlevel = 4


class InputError(ValueError):
    """Bad input, in one sentence that names the field, the value and what is allowed."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field, self.value, self.allowed = field, value, allowed
        super().__init__(f"{field}: {_SHOWN.repr(value)} is not allowed; it must be {allowed}.")

    def __reduce__(self) -> tuple:
        return type(self), (self.field, self.value, self.allowed)  # else it could not leave a worker


@contextmanager
def within(where: str) -> Iterator[None]:
    """Let an error of the block say, too, where its field stands."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}, {error.field}", error.value, error.allowed) from None


def check_choice(field: str, value: object, choices: Collection[Any]) -> None:
    """Refuse a value that is none of some choices."""
    if value not in choices:
        raise InputError(field, value, f"one of {', '.join(map(str, choices))}")


def check_fields(data: object, fields: str, is_allowed: Callable[[Any], bool], allowed: str) -> None:
    """Refuse the first of some fields, named with spaces between, whose value is not allowed."""
    for field in fields.split():
        if not is_allowed(getattr(data, field)):
            raise InputError(field, getattr(data, field), allowed)
