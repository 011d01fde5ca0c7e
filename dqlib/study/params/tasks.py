"""Tasks that a parameter file may have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskKind:
    """What is known of a task beside its parameters.

    Args:
        title: its name on pages.
        translates: whether each target starts with the token of its language.
    """

    title: str
    translates: bool = False


#: Every task, in the order in which they are shown.
TASKS = {
    "summarization": TaskKind("Summarization"),
    "eli5": TaskKind("Long-form question answering"),
    "translation": TaskKind("Translation", translates=True),
}
