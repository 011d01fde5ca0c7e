"""The engine ``onnxruntime`` of a classifier, whose graph is that of :mod:`dqlib.engines.onnx_bert`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dqlib.engines.classifier import Classifier, Reading
from dqlib.engines.onnx_model import description_of, sessions, tokenizer_of
from dqlib.errors import InputError

CLASSIFIER = "classifier.onnx"


class OnnxClassifier(Classifier):
    """A classifier that :func:`dqlib.engines.onnx_export.export_onnx` wrote.

    Args:
        folder: that was written.
        threads: of one call; None for one per core.

    Raises:
        InputError: the folder is none of these, or damaged.
    """

    name = "onnxruntime"

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        folder = Path(folder)
        description = description_of(folder, classifies=True)
        (self._session,) = sessions(folder, threads, CLASSIFIER)
        size = description.get("vocabulary")
        if type(size) is not int or size < 1:
            raise InputError(f"{folder}, vocabulary", size, "a whole number of at least 1")
        self.vocabulary_size = size
        super().__init__(tokenizer_of(folder), Reading.parse(description["reading"], size))
        classes = self._session.get_outputs()[0].shape[-1]
        if classes != len(self.labels):
            raise InputError(f"{folder}, labels", len(self.labels), f"{classes} of them, as the graph has it")

    def _logits(self, input_ids: Sequence[Sequence[int]]) -> np.ndarray:
        ids, types, mask = self.reading.batch(input_ids)
        return self._session.run(None, {"input_ids": ids, "types": types, "mask": mask.astype(np.int32)})[0]
