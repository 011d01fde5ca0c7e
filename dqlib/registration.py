"""Makes packed models known to transformers, whichever of the two is imported first, without importing it or torch.

Transformers finds the reader of a quantized checkpoint in a table of its own, by the name in ``config.json``, and has
no entry point for others to fill it. So that a plain ``import dqlib`` suffices, this waits for the module that holds
the table: it is asked for each module that is imported from then on, compares a name, and is gone after the one.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

#: The module with the table.
REGISTRY = "transformers.quantizers.auto"


class _Awaiting:
    """An entry of ``sys.meta_path`` that lets the registry be loaded as ever, and then enters ours."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != REGISTRY:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]  # it has the one method that is called
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        loaded = spec.loader.exec_module

        def load_and_enter(module: ModuleType) -> None:
            loaded(module)
            _enter()

        spec.loader.exec_module = load_and_enter  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Let transformers read packed models, now or as soon as it is imported."""
    if REGISTRY in sys.modules:
        _enter()
    elif not any(isinstance(each, _Awaiting) for each in sys.meta_path):
        sys.meta_path.insert(0, _Awaiting())  # type: ignore[arg-type]


def _enter() -> None:
    import dqlib.storage.registered  # noqa: F401  # which enters itself
