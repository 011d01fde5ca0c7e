"""Joint distillation and quantization of language models: fewer layers, fewer bits, almost the same answers."""

from importlib import import_module
from typing import Any

from dqlib.registration import register

#: Where each public name lives: ``import dqlib`` alone loads nothing, PyTorch least of all.
_HOMES = {
    "Config": "config",
    "Preset": "presets",
    "get_preset": "presets",
    "quantize": "quantizers",
    "make_student": "student",
    "quantize_model": "student",
    "supervision_maps": "student",
    "round_for_storage": "student",
    "forget": "student",
    "distillation_terms": "terms",
    "DistillationMixin": "trainer",
    "save_student": "storage.students",
    "load_student": "storage.students",
    "save_packed": "storage.packed",
    "load_packed": "storage.packed",
    "size_bytes": "storage.footprint",
    "verify": "storage.manifest",
    "export_model": "engines",
    "distill": "study.distill.run",
    "load_engine": "engines",
    "load_classifier": "engines",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dqlib' has no attribute '{name}'")
    return getattr(import_module(f"dqlib.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


register()
