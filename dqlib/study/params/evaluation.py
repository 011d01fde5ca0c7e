"""The parameters of the test of a model."""

from __future__ import annotations

from dataclasses import dataclass

from dqlib.errors import InputError
from dqlib.generation_settings import MOST_BEAMS
from dqlib.study.params.schema import MANY, bounded

#: Test documents that results can be given for: one for each of :data:`dqlib.study.evaluation.recall.GROUPS`.
FEWEST_DOCUMENTS = 4


@dataclass(frozen=True)
class Evaluation:
    """Test of a model: beam search on the first ``documents`` of each test set (null for all)."""

    documents: int | None = None
    beams: int = 4
    batch_size: int = 32
    bootstrap: int = 1000
    validation_documents: int | None = 500

    def __post_init__(self) -> None:
        if self.documents is not None and self.documents < FEWEST_DOCUMENTS:
            allowed = f"at least {FEWEST_DOCUMENTS}: results compare groups of documents by their length"
            raise InputError("documents", self.documents, allowed)
        counts = {"documents": (1, MANY), "validation_documents": (1, MANY), "batch_size": (1, 10**6)}
        bounded(self, **counts, beams=(1, MOST_BEAMS), bootstrap=(1, 10**6))
