"""Any parameter file is accepted, or refused in one sentence that names the field, before any work."""

import copy
import random

import pytest
import yaml

from dqlib.errors import InputError
from dqlib.study.paths import project_root
from dqlib.study.settings import load_settings
from tests.conftest import committed

PROFILES = sorted(path.stem for path in (committed() / "profiles").glob("*.yaml"))
FILES = 200

#: What people put into parameter files by mistake, and what they mean.
VALUES = [
    None, True, False, 0, 1, -1, 2, 7, 10**9, 0.0, 0.5, -0.001, 1e-300, 1e300, float("nan"), float("inf"), "", " ", "x",
    "2-2-8_2-1", "2-2-8_9-9", "1-1-1_1-1", "8-8-8", "dqlib", "no-such-preset", "../elsewhere", "é", "1e-3", "yes", [],
    [None], [1], ["2-2-8_2-1"], ["2-2-8_2-1", "2-2-8_2-1"], ["2-2-8_2-1", "2-2-8 2-1"], {}, {"steps": 3}, {1: 2},
    "embedded", "files", "hub", "summarization", "translation", ["ro"], ["xx"], ["ro", "ro"], "2026-11-21",
]  # fmt: skip
KEYS = ["steps", "stesp", "", "seed", "unknown", 1, None, "micro_batches", "languages", "test", "pretrained", "methods"]


def places(node, path=()):
    """Every place in nested mappings and lists, the whole first."""
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def changed(parameters, order):
    """The parameters with one to three random mistakes."""
    parameters = copy.deepcopy(parameters)
    for _ in range(order.choice((1, 1, 2, 3))):
        path = order.choice(list(places(parameters)))
        if not path:
            continue
        node = parameters
        for key in path[:-1]:
            node = node[key]
        kind = order.choice(("value", "value", "value", "left out", "key"))
        if kind == "value":
            node[path[-1]] = copy.deepcopy(order.choice(VALUES))
        elif kind == "left out":
            del node[path[-1]]
        elif isinstance(node, dict):
            node[order.choice(KEYS)] = copy.deepcopy(order.choice(VALUES))
        if not isinstance(parameters, dict):
            break
    return parameters


@pytest.fixture(scope="module")
def given():
    return {name: yaml.safe_load((project_root() / "profiles" / f"{name}.yaml").read_text()) for name in PROFILES}


def told(path):
    """What is said of a parameter file: None if it is accepted and can be asked for everything that it says."""
    try:
        settings = load_settings(path)
    except InputError as error:
        return str(error)
    for name in settings.tasks:
        task = settings.task(name)
        assert task.students()
        assert task.headline in [configuration for configuration, _ in task.students()]
        assert settings.folders(name).teacher
        settings.pretrained_folder(name)
        if task.methods is not None:
            assert task.methods.cells()
            task.methods.longer()
    return None


@pytest.mark.parametrize("seed", range(4))
def test_a_parameter_file_with_mistakes_is_accepted_or_refused_in_one_sentence(given, seed, tmp_path):
    order = random.Random(seed)
    refused = []
    for number in range(FILES // 4):
        parameters = changed(given[order.choice(PROFILES)], order)
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(parameters, allow_unicode=True))
        said = told(path)
        if said is not None:
            assert "\n" not in said, said
            assert " is not allowed; it must be " in said, said
            refused.append(said)
    assert len(refused) > FILES // 8  # most mistakes are mistakes


@pytest.mark.parametrize("name", PROFILES)
def test_the_profiles_themselves_are_accepted(name):
    assert told(name) is None


@pytest.mark.parametrize(
    "text", ["", "- 1\n", "a: [", "profile: x\n", "null", "profile: &a [*a]\n", "\x00", "%YAML 9\n---\n"]
)
def test_what_is_no_parameter_file_is_refused_in_one_sentence(text, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    said = told(path)
    assert said
    assert "\n" not in said


def test_a_file_that_is_no_text_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00profile")
    assert "YAML" in told(path)
