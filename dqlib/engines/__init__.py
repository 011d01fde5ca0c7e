"""Engines: one model, several programs that run it, the same calls. May import the core.

``torch`` runs every model as it was trained, ``ctranslate2`` on 8-bit integers, ``onnxruntime`` on weights of a few
bits. The last two are optional, ``pip install -e ".[engines]"``, and are imported when they are asked for. A model
that writes is loaded by :func:`load_engine`, one that classifies by :func:`load_classifier`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dqlib.errors import InputError, check_choice

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from dqlib.engines.base import Engine
    from dqlib.engines.classifier import Classifier

#: Names of all engines.
ENGINES = ("torch", "ctranslate2", "onnxruntime")

#: Most threads of an engine: with many more all of them crash or hang.
THREADS = 1024

#: The extra that the optional engines are installed with.
EXTRA = "pip install -e '.[engines]' in the project's folder"


def export_model(
    model: PreTrainedModel, folder: str | Path, engine: str, tokenizer: Tokenizer | None = None, **options: Any
) -> Any:
    """Write a model in the form of an engine: aside, and put in place at once.

    Args:
        model: a student, what ``load_packed`` gave, or a teacher.
        folder: new, empty, or an exported model, which is replaced.
        engine: ``ctranslate2`` or ``onnxruntime``; for ``torch``, save or pack the model.
        options: of the engine: ``quantization`` of CTranslate2
            (:func:`dqlib.engines.ctranslate.export_ctranslate2`), ``bits`` and ``encoder`` of ONNX Runtime
            (:func:`dqlib.engines.onnx_export.export_onnx`).

    Returns:
        What the engine's own function tells of the export.

    Raises:
        InputError: the engine is unknown or not installed, or does not serve the model.
    """
    check_choice("engine", engine, ENGINES[1:])
    with _installed(engine):
        if engine == "ctranslate2":
            from dqlib.engines.ctranslate import export_ctranslate2

            return export_ctranslate2(model, folder, tokenizer, **options)
        from dqlib.engines.onnx_export import export_onnx

        return export_onnx(model, folder, tokenizer, **options)


def load_engine(folder: str | Path, engine: str | None = None, threads: int | None = None) -> Engine:
    """The engine that runs what a folder holds: a model that writes.

    Args:
        folder: of an exported, packed, trained or Hugging Face model.
        engine: one of :data:`ENGINES`; None for the one that the folder was made for.
        threads: of the engine; None for its own choice.

    Raises:
        InputError: the engine is unknown, not installed, or not that of the folder, the model does not write, or there
            are no threads or too many.
    """
    return _loaded(folder, engine, threads, classifies=False)


def load_classifier(folder: str | Path, engine: str | None = None, threads: int | None = None) -> Classifier:
    """The engine that runs what a folder holds: a classifier of texts, or of pairs of texts.

    Raises:
        InputError: the engine is unknown, not installed, or not that of the folder, or the model is no classifier.
    """
    return _loaded(folder, engine, threads, classifies=True)


def is_classifier(folder: str | Path) -> bool:
    """Whether a folder holds a model that classifies, by what it says of itself.

    Raises:
        InputError: there is no such folder, or its manifest or configuration is damaged.
    """
    from dqlib.storage.manifest import MANIFEST, WRITERS, opened
    from dqlib.storage.reading import CONFIG, read_json

    engine_of(folder)  # refuses what is no folder
    if (Path(folder) / MANIFEST).is_file():
        name = opened(folder, *WRITERS).about.get("class")
    else:
        classes = read_json(Path(folder) / CONFIG, optional=True).get("architectures")
        name = classes[0] if isinstance(classes, list) and classes else None
    return isinstance(name, str) and name.endswith("ForSequenceClassification")


def engine_of(folder: str | Path) -> str:
    """The engine that a folder was made for, told by its files.

    Raises:
        InputError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("folder", str(folder), "a folder")
    if (folder / "model.bin").is_file():
        return "ctranslate2"
    return "onnxruntime" if any(folder.glob("*.onnx")) else "torch"


def _loaded(folder: str | Path, engine: str | None, threads: int | None, classifies: bool) -> Any:
    """What runs a folder, once it is checked that it was made for the engine asked for."""
    check_threads(threads)
    made_for = engine_of(folder)
    if engine is not None:
        check_choice("engine", engine, ENGINES)
        if engine != made_for:
            raise InputError("engine", engine, f"{made_for}, which {folder} was made for; dqlib export makes others")
    with _installed(made_for):
        if made_for == "ctranslate2":
            from dqlib.engines.ctranslate_engine import CTranslate2Classifier, CTranslate2Engine

            return (CTranslate2Classifier if classifies else CTranslate2Engine)(folder, threads)
        if made_for == "torch":
            from dqlib.engines.torch_engine import TorchClassifier, TorchEngine, load_model

            return (TorchClassifier if classifies else TorchEngine)(*load_model(folder, threads))
        from dqlib.engines.onnx_model import OnnxClassifier, OnnxEngine

        return (OnnxClassifier if classifies else OnnxEngine)(folder, threads)


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that no engine runs on."""
    if threads is not None and not 1 <= threads <= THREADS:
        raise InputError("threads", threads, f"from 1 to {THREADS}")


@contextmanager
def _installed(engine: str) -> Iterator[None]:
    """Tell how an engine is installed whose libraries are not there."""
    try:
        yield
    except ImportError as error:
        raise InputError("engine", engine, f"installed, by {EXTRA} ({error})") from error
