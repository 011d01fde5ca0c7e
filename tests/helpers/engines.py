"""Engines other than PyTorch, each of which may not be installed, and models that they run."""

from importlib.util import find_spec

import pytest

from dqlib.engines import ENGINES, export_model, is_classifier, load_classifier, load_engine
from dqlib.engines.torch_engine import TorchEngine

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


def alike(model, folder, ids, *requests, others=ENGINES[1:]):
    """What PyTorch writes at each request, once all other engines are found to write the same with the same numbers.

    What stands beside a text changes nothing of it.
    """
    engines, found = [TorchEngine(model), *(served(model, each, folder / each) for each in others)], []
    for request in requests:
        options = {"num_beams": 1, "max_new_tokens": 8, "early_stopping": True} | request
        expected, *written = (engine.generate_ids(ids, **options) for engine in engines)
        assert written == [expected] * len(others), request
        found.append(expected)
    if "starts" not in options:
        for engine in engines[1:]:
            assert [engine.generate_ids([row], **options)[0] for row in ids] == expected, engine.name
    return found
