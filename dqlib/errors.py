"""The one error a user's input raises: field, value, and what is allowed."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input, told in one sentence that names the field, the value and what is allowed."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field, self.value, self.allowed = field, value, allowed
        super().__init__(f"{field}: {value!r} is not allowed; it must be {allowed}.")
