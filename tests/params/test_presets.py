"""Presets from YAML: what they start from and what they change, wherever a preset is named."""

import pickle
import re
from dataclasses import replace

import pytest
import yaml

from dqlib.cli import main as dqlib
from dqlib.errors import InputError
from dqlib.presets import PRESETS, get_preset
from dqlib.study.params import presets
from dqlib.study.params.paths import project_root
from dqlib.study.params.presets import load_preset, preset_named
from dqlib.study.params.settings import load_settings, settings_of
from dqlib.study.pipeline import study
from tests.helpers.checkpoints import save_checkpoint

EXAMPLE = project_root() / "presets" / "example.yaml"


@pytest.fixture(autouse=True)
def no_others(monkeypatch):
    """What a test reads is known to it alone."""
    monkeypatch.setattr(presets, "_FILES", {})
    before = dict(PRESETS)
    yield
    PRESETS.clear()
    PRESETS.update(before)


def written(folder, **content):
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_example_is_the_one_of_the_page_and_changes_what_it_names_alone():
    page = (project_root() / "docs" / "extend.md").read_text()
    assert EXAMPLE.read_text() in re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    ours, example = get_preset("dqlib"), load_preset(EXAMPLE)
    by_bits = {bits: replace(recipe, average=0.2) for bits, recipe in ours.by_bits.items()}
    by_bits[2] = replace(by_bits[2], learning_rate=2.0)
    assert example == replace(
        ours,
        name="example",
        weights=replace(ours.weights, more_bits="asymmetric"),
        loss=replace(ours.loss, hidden=0.0),
        recipe=replace(ours.recipe, average=0.2),
        by_bits=by_bits,
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_that_changes_nothing_is_the_one_that_it_starts_from(name, tmp_path):
    assert repr(load_preset(written(tmp_path, **{"from": name}))) == repr(replace(get_preset(name), name="mine"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"from: None is not allowed; it must be one of dq-bart-faithful, .*dqlib"),
        ({"from": "magic"}, r"from: 'magic'"),
        ({"from": "dqlib", "losses": {}}, r"losses: .* left out: the keys here are name, weights"),
        ({"from": "dqlib", "loss": {"logit": 1}}, r"loss.logit: 1 .* keys here are task"),
        ({"from": "dqlib", "loss": {"logits": -1}}, r"loss.logits: -1.0 .* at least 0"),
        ({"from": "dqlib", "recipe": {"average": "much"}}, r"recipe.average: 'much' .* a number"),
        ({"from": "dqlib", "recipe": 3}, r"recipe: 3 .* a block"),
        ({"from": "dqlib", "by_bits": {"two": {}}}, r"by_bits: 'two' .* whole numbers"),
        ({"from": "dqlib", "by_bits": [2]}, r"by_bits: \[2\] .* a block"),
        ({"from": "dqlib", "weight_bits": 2}, r"weight_bits: 2 .* a list"),
        ({"from": "dqlib", "single_layer": "middle"}, r"single_layer: 'middle' .* first or last"),
        ({"from": "dqlib", "name": "other"}, r"name: 'other' .* that of the file"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_sentence(content, message, tmp_path):
    with pytest.raises(InputError, match=f"preset 'mine.yaml', {message}"):
        load_preset(written(tmp_path, **content))


def test_a_file_that_is_not_there_is_no_yaml_or_has_a_preset_s_name_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"preset: '.*mine.yaml' is not allowed; .* a YAML file that exists"):
        preset_named(str(tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").write_text("a: [1,\n")
    with pytest.raises(InputError, match=r"preset 'mine.yaml': .* valid YAML"):
        preset_named(str(tmp_path / "mine.yaml"))
    written(tmp_path, **{"from": "xtc"}).rename(tmp_path / "dqlib.yaml")
    with pytest.raises(InputError, match=r"preset 'dqlib.yaml', name: 'dqlib' .* another name"):
        preset_named(str(tmp_path / "dqlib.yaml"))
    (tmp_path / "else").mkdir()
    preset_named(str(written(tmp_path, **{"from": "xtc"})))
    preset_named(str(written(tmp_path, **{"from": "dqlib"})))  # changed, and read again
    assert get_preset("mine") == replace(get_preset("dqlib"), name="mine")
    with pytest.raises(InputError, match=r"preset 'mine.yaml', name: 'mine' .* another name"):
        preset_named(str(written(tmp_path / "else", **{"from": "xtc"})))


def test_parameters_may_name_files_wherever_they_name_presets_and_workers_know_them(tmp_path, monkeypatch):
    path = str(written(tmp_path, **{"from": "dqlib", "loss": {"hidden": 0}}))
    content = yaml.safe_load((project_root() / "profiles" / "smoke.yaml").read_text())
    content["summarization"]["distill"]["preset"] = path
    content["summarization"]["methods"]["presets"] = ["dqlib", path]
    settings = settings_of(content)
    task = settings.task("summarization")
    assert (task.distill.preset, task.methods.presets) == ("mine", ["dqlib", "mine"])
    made = settings.student_folder("summarization", task.headline, "mine")
    assert made == load_settings("smoke").student_folder("summarization", task.headline, "dqlib")
    pickled, preset = pickle.dumps(settings), get_preset("mine")
    del PRESETS["mine"], presets._FILES["mine"]
    assert pickle.loads(pickled) == settings  # as in a worker
    assert get_preset("mine") == preset
    monkeypatch.setattr(study.Study, "teacher", lambda self: tmp_path)
    monkeypatch.setattr(study, "_provenance_hash", lambda folder: "")
    provenance = study.Study("smoke", "summarization", settings)._of_student("mine")
    assert provenance["preset"] == repr(preset)
    content["summarization"]["distill"]["preset"] = str(tmp_path / "none.yaml")
    with pytest.raises(InputError, match=r"summarization.distill.preset: '.*none.yaml' is not allowed"):
        settings_of(content)


def test_the_command_takes_a_file_from_the_current_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, **{"from": "dqlib", "loss": {"hidden": -1}})
    options = ["--train", "pairs.csv", "--config", "2-2-8 1-1", "--source", "a", "--target", "b"]
    (tmp_path / "pairs.csv").write_text("a,b\n1,2\n")
    save_checkpoint("bart", tmp_path / "checkpoint")
    assert dqlib(["distill", "checkpoint", "out", *options, "--preset", "mine.yaml"]) == 2
    assert "distill.preset 'mine.yaml', loss.hidden: -1.0 is not allowed" in capsys.readouterr().err
