"""Engines other than PyTorch, each of which may not be installed, and models that they run."""

from importlib.util import find_spec

import pytest

from dqlib.engines import ENGINES, export_model, is_classifier, load_classifier, load_engine

#: For a test of every other engine.
OTHERS = pytest.mark.parametrize(
    "engine",
    [pytest.param(name, marks=pytest.mark.skipif(find_spec(name) is None, reason=name)) for name in ENGINES[1:]],
)


def served(model, engine, folder, exact=True, **options):
    """The engine of an export; of CTranslate2 with weights in fp32 where it is to compute as PyTorch does."""
    if exact and engine == "ctranslate2":
        options["quantization"] = "float32"
    export_model(model, folder, engine, **options)
    return (load_classifier if is_classifier(folder) else load_engine)(folder, threads=1)
