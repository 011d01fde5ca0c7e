"""The one error a user's input raises: field, value, and what is allowed."""

from __future__ import annotations

import reprlib

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
