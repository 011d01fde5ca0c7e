"""Joint distillation and quantization of language models: fewer layers, fewer bits, almost the same answers."""

from importlib import import_module

#: Where each name that ``dqlib`` itself has comes from: ``import dqlib`` alone loads nothing, PyTorch least of all.
_HOMES = {"forget": "dqlib.student"}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'dqlib' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
