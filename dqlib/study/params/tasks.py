"""Tasks that a parameter file may have."""

from __future__ import annotations

from dataclasses import dataclass

from dqlib.study.params.kinds import KINDS, SEQ2SEQ, Kind


@dataclass(frozen=True)
class KnownTask:
    """What is known of a task beside its parameters.

    Args:
        title: its name on pages.
        translates: whether each target starts with the token of its language.
        kind: name of what its models do, one of :data:`dqlib.study.params.kinds.KINDS`.
        compared: whether the stages of ``dvc.yaml`` make it.
    """

    title: str
    translates: bool = False
    kind: str = SEQ2SEQ
    compared: bool = True


#: Every task, in the order in which they are shown.
TASKS = {
    "summarization": KnownTask("Summarization"),
    "eli5": KnownTask("Long-form question answering"),
    "translation": KnownTask("Translation", translates=True),
    "matching": KnownTask("Matching of summary and body", kind="classification"),
    "topics": KnownTask("Classification by topic", kind="classification"),
    "language": KnownTask("Language modelling", kind="language_modelling"),
    "texts": KnownTask("Texts from texts", compared=False),
    "classes": KnownTask("Classes of texts", kind="classification", compared=False),
}


def kind_of(task: str) -> Kind:
    """What the models of a task do; a name that is none of :data:`TASKS` is taken for a text from a text."""
    return KINDS[TASKS[task].kind if task in TASKS else SEQ2SEQ]
