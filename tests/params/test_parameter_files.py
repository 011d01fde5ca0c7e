"""Any parameter file is accepted, or refused in one sentence that names the field, before any work."""

import copy
import random
import re
import shutil

import pytest
import yaml

from dqlib.errors import InputError
from dqlib.study.params.paths import project_root
from dqlib.study.params.settings import load_settings
from tests.helpers.projects import committed

PROFILES = sorted(path.stem for path in (committed() / "profiles").glob("*.yaml"))
FILES = 40

#: What people put into parameter files by mistake, and what they mean.
VALUES = [
    None, True, False, 0, 1, -1, 2, 7, 10**9, 0.0, 0.5, -0.001, 1e-300, 1e300, float("nan"), float("inf"), "", " ", "x",
    "2-2-8_2-1", "2-2-8_9-9", "1-1-1_1-1", "8-8-8", "dqlib", "no-such-preset", "../elsewhere", "é", "1e-3", "yes", [],
    [None], [1], ["2-2-8_2-1"], ["2-2-8_2-1", "2-2-8_2-1"], ["2-2-8_2-1", "2-2-8 2-1"], {}, {"steps": 3}, {1: 2},
    "../../x", "/elsewhere/x", ".", "a/../b", "a\nb", "\x00", 10**400, -(10**30), 2**32,
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


def refusal(path):
    """The message about a parameter file; None if it is accepted and can be asked for everything that is in it."""
    try:
        settings = load_settings(path)
    except InputError as error:
        return str(error)
    for folder in (settings.runs, project_root() / settings.results):
        assert folder.resolve().is_relative_to(project_root())
    for name in settings.tasks:
        task = settings.task(name)
        assert task.students()
        assert task.headline in [config for config, _ in task.students()]
        assert settings.folders(name).teacher
        settings.pretrained_folder(name)
        if task.methods is not None:
            assert task.methods.runs()
    return None


def test_a_parameter_file_with_mistakes_is_accepted_or_refused_in_one_sentence(given, tmp_path):
    order = random.Random(0)
    refused = []
    for number in range(FILES):
        parameters = changed(given[order.choice(PROFILES)], order)
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(parameters, allow_unicode=True))
        message = refusal(path)
        if message is not None:
            assert "\n" not in message, message
            assert " is not allowed; it must be " in message, message
            refused.append(message)
    assert len(refused) > FILES // 2  # most mistakes are mistakes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("profile: ../../x", "profile: '../../x' .* a name"),
        ("profile: /elsewhere/x", "profile: '/elsewhere/x' .* a name"),
        ("profile: .", r"profile: '\.' .* a name"),
        ("results: /elsewhere/x", "results: '/elsewhere/x' .* a name"),
        ("results: results/../../x", r"results: 'results/\.\./\.\./x' .* a name"),
        ("results: .", r"results: '\.' .* a name"),
        ("results: 2026-13-45", None),  # a name, and no date
        ("profile: !!python/name:os.system x", "profile: 'x' .* a value without a tag"),
        ("compute: !!set {a}", "compute: .* no tags"),
        ("compute: {processes: !!int many}", "compute.processes: 'many' .* a number"),
        ("compute: {processes: !!bool many}", "compute.processes: 'many' .* a tag"),
        ("compute: {processes: 1" + 400 * "0" + "}", "compute.processes: '1000.* at most 40 characters"),
        ("compute: {processes: 0x" + 5000 * "f" + "}", "compute.processes: '0xfff.* at most 40 characters"),
        ("compute: {processes: 1" + 30 * "0" + "}", "compute.processes: 10+ .* at most 4096"),
        ("compute: {processes: .inf}", "compute.processes: inf .* a whole number"),
        ("compute: {processes: 1, processes: 2}", "compute.processes: '2' .* given once; .* line 1"),
        ("profile: a\nprofile: b", "profile: 'b' .* given once; it is given again in line 2"),
        ("compute: " + 100 * "[" + 100 * "]", "params, line 1, levels: 17 .* at most 16"),
        ("compute: " + 100_000 * "{a: ", "params, line 1, levels: 17 .* at most 16"),
        ("compute: &a {b: *a}", r"compute\.b: '\*' .* hold itself"),
        ("compute: {<<: {processes: 1}}", "compute.<<: '<<' .* left out"),
        ("compute: {[a]: 1}", r"compute\..* plain names"),
        ('note: "\\ud800"', r"note: '\\ud800' .* halves of characters"),
        ('note: "\\0"', r"note: '\\x00' .* control characters"),
    ],
)
def test_what_yaml_can_say_and_parameters_are_not_is_refused_with_its_field(given, line, message, tmp_path):
    path = tmp_path / "params.yaml"
    others = {key: value for key, value in given["smoke"].items() if not line.startswith(f"{key}:")}
    path.write_text(f"{line}\n{yaml.safe_dump(others)}")
    text = refusal(path)
    assert text is None if message is None else re.match(message, text), text
    assert "\n" not in str(text)
    assert len(str(text)) < 500


def test_a_sentence_stays_one_whatever_the_value():
    value = "x" * 10**6
    for _ in range(60):
        value = [value, value]  # all of it would never end
    assert len(str(InputError("profile", value, "text"))) < 5000
    assert str(InputError("profile", "é", "text")) == "profile: 'é' is not allowed; it must be text."


@pytest.mark.parametrize("name", PROFILES)
def test_the_profiles_themselves_are_accepted_and_named_after_their_files(name):
    assert refusal(name) is None
    assert load_settings(name).profile == name


def test_a_profile_is_named_as_its_file(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "profiles").mkdir()
    shutil.copy(project_root() / "profiles" / "smoke.yaml", tmp_path / "profiles" / "mine.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"profile: 'smoke' .* mine, as its file"):
        load_settings("mine")


def test_what_is_no_parameter_file_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "bad.yaml"
    for text in (b"", b"- 1\n", b"a: [", b"profile: x\n", b"null", b"\x00", b"%YAML 9\n---\n", b"\xff\xfe\x00profile"):
        path.write_bytes(text)
        message = refusal(path)
        assert message
        assert "\n" not in message
