"""The parameters of what a teacher writes for its students."""

from __future__ import annotations

from dataclasses import dataclass

from dqlib.generation_settings import MOST_BEAMS
from dqlib.study.params.schema import MANY, bounded


@dataclass(frozen=True)
class PseudoLabels:
    """Targets that the teacher writes, once, for students whose preset asks for them.

    It labels the first ``pairs`` of the training split (null for all) and at most ``texts`` texts that are in no pair,
    by a search of ``beams``. Embedded corpora know such texts themselves; for files and the hub, ``unpaired``
    names the file or the split that has them, in the column of the pairs' sources.
    """

    pairs: int | None = None
    texts: int = 20_000
    beams: int = 4
    batch_size: int = 64
    unpaired: str | None = None

    def __post_init__(self) -> None:
        bounded(self, pairs=(1, MANY), texts=(1, MANY), beams=(1, MOST_BEAMS), batch_size=(1, 10**6))
