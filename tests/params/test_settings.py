import copy
import shutil
from pathlib import Path

import pytest
import yaml

import dqlib
from dqlib.errors import InputError
from dqlib.study.__main__ import main
from dqlib.study.evaluation.recall import GROUPS
from dqlib.study.params.evaluation import FEWEST_DOCUMENTS
from dqlib.study.params.paths import project_root
from dqlib.study.params.profiles import choose_profile
from dqlib.study.params.settings import load_settings, profile_path
from tests.helpers.projects import committed


@pytest.fixture
def smoke():
    return yaml.safe_load((project_root() / "profiles" / "smoke.yaml").read_text())


def load(data, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(data))
    return load_settings(str(path))


#: Sizes that no machine has room for, and what is no size, by their parameter.
ABSURD = [
    ("corpus.vocab_size", 10**12), ("corpus.source_tokens", 10**12), ("corpus.limit", 10**30), ("corpus.seed", 2**32),
    ("corpus.name", "../x"), ("model.d_model", 2**40), ("model.decoder_layers", 10**9), ("finetune.steps", 10**18),
    ("finetune.seed", 2**32), ("finetune.learning_rate", float("inf")), ("distill.batch_tokens", 10**18),
    ("evaluate.bootstrap", 10**12), ("evaluate.documents", 10**30), ("methods.seeds", [2**40]),
    ("methods.seeds", [True]), ("methods.longer_steps", [10**30]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("summarization.configs", ["2-2 6-3"], r"summarization.configs\[0\]: '2-2 6-3'"),
        ("summarization.repeats", {"configs": ["1-2-8 2-1"], "seeds": [1]}, r"repeats.configs\[0\]: '1-2-8 2-1"),
        ("summarization.repeats", {"configs": ["2-2-8 2-1"], "seeds": [28]}, r"summarization.repeats.seeds: \[28\]"),
        ("summarization.repeats", {"configs": ["2-2-8 2-1"]}, r"summarization.repeats.seeds: \[\]"),
        ("summarization.repeats", {"configs": ["2-2-8 2-1"], "seeds": [-1]}, r"summarization.repeats.seeds\[0\]: -1"),
        ("summarization.configs", ["2-2-8 9-1"], "encoder_layers: 9"),
        ("summarization.configs", ["2-2-8_2-1_f999"], "ffn: 999"),
        ("summarization.configs", [], "summarization.configs"),
        ("summarization.configs", ["2-2-8 2-1", "2-2-8_2-1"], "without repetitions"),
        ("summarization.corpus.origin", "web", "summarization.corpus.origin: 'web' .* embedded, files, hub"),
        ("summarization.corpus.sauce", 1, "summarization.corpus.sauce"),
        ("summarization.corpus.vocab_size", "many", "summarization.corpus.vocab_size: 'many' .* whole number"),
        ("summarization.model.heads", 5, "summarization.model.heads: 5 .* divisor"),
        ("summarization.model.max_positions", 16, "max_positions: 16"),
        ("summarization.distill.steps", 0, "summarization.distill.steps: 0"),
        ("summarization.distill.steps", 1.5, "summarization.distill.steps: 1.5"),
        ("summarization.distill.steps", True, "summarization.distill.steps: True"),
        ("summarization.distill.learning_rate", float("nan"), "learning_rate: nan"),
        ("summarization.distill.preset", "dq-bert", "summarization.distill.preset: 'dq-bert' .* dq-bart"),
        ("summarization.distill.schedule", "linear", "summarization.distill.schedule"),
        ("summarization.methods.presets", ["dqlib", "sota"], r"methods.presets\[1\]: 'sota' .* dqlib"),
        (
            "summarization.methods.configs",
            ["2-2-8 2-2", "2-2-8 2-9"],
            r"methods\.configs\[1\] '2-2-8 2-9', decoder_layers",
        ),
        ("summarization.methods.configs", ["2-2-8 2-2 h5"], "heads: 5"),
        ("summarization.methods.ablation_seeds", [7], "ablation_seeds"),
        ("summarization.methods.ablations", ["dqlib-no-task"], "ablations: .* a block"),
        ("summarization.methods.ablations", {"2-2-8_2-2": ["sota"]}, r"ablations\.2-2-8_2-2\[0\]: 'sota'"),
        (
            "summarization.methods.ablations",
            {"2-2-8_2-9": ["dqlib-no-task"]},
            r"ablations\[0\] '2-2-8 2-9', decoder_layers",
        ),
        ("summarization.methods.longer_seeds", [7], "longer_seeds"),
        ("summarization.methods.longer", {"2-2-8_2-2": ["sota"]}, r"longer\.2-2-8_2-2\[0\]: 'sota'"),
        ("compute.processes", 3, "micro_batches: 2 .* multiple of compute.processes, 3"),
        ("compute.processes", 0, "compute.processes: 0"),
        ("summarisation", {}, "summarisation"),
        ("summarization.corpus.languages", ["ro"], "summarization.corpus.languages"),
        ("translation.corpus.languages", [], "translation.corpus.languages: .* given"),
        ("translation.corpus.languages", ["ro", "ro"], "without repetitions"),
        ("translation.corpus.languages", ["Romanian"], r"languages\[0\]: 'Romanian'"),
        ("translation.corpus.limit", None, "translation.corpus.limit"),
        ("translation.corpus.name", "wmt", "translation.corpus.name: 'wmt' .* pydoc, pydoc-qa, cldr"),
        ("translation.model.pretrained", "eli5", "translation.model.pretrained: 'eli5' .* pre-trained here"),
        ("eli5.model.pretrained", "eli5", "eli5.model.pretrained"),
        ("eli5.model.d_model", 32, "eli5.model.d_model: 32 .* 64, as in summarization.model"),
        ("eli5.corpus.vocab_size", 900, "eli5.corpus.vocab_size: 900 .* 1500, .* unless eli5.model.pretrained is null"),
        ("eli5.corpus.tokenizer", "mine", "eli5.corpus.tokenizer: 'mine'"),
        ("eli5.pretrain", {"steps": 1, "learning_rate": 0.1, "batch_tokens": 9}, "eli5.pretrain: .* null"),
        ("translation.finetune", None, "translation.finetune: None .* unless model.pretrained names a checkpoint"),
        ("eli5.finetune.micro_batches", 0, "eli5.finetune.micro_batches: 0"),
        ("eli5.evaluate.documents", GROUPS - 1, "eli5.evaluate.documents: 3 .* at least 4: .* by their length"),
        ("eli5.evaluate.validation_documents", 0, "eli5.evaluate.validation_documents: 0"),
        ("summarization.distill", None, "summarization.distill: None .* a block"),
        ("matching.kind", "seq2seq", "matching.*: .* must be"),
        ("topics.kind", "language_modelling", "topics.*: .* must be"),
        ("matching.corpus.name", "pydoc", r"matching\.corpus\.name: 'pydoc' .* pydoc-match, pydoc-topic, whose rows"),
        ("summarization.corpus.name", "pydoc-text", r"summarization\.corpus\.name: .* pydoc, pydoc-qa, cldr, whose"),
        ("summarization.corpus.target_tokens", 0, r"summarization\.corpus\.target_tokens: 0 .* at least 8"),
        ("matching.corpus.target_tokens", 8, r"matching\.corpus\.target_tokens: 8 .* left out, for a class"),
        ("language.corpus.second", "x", r"language\.corpus\.second: 'x' .* left out, for the next token"),
        ("matching.model.decoder_layers", 1, r"matching\.model\.decoder_layers: 1 .* 0, for a class"),
        ("language.model.decoder_layers", 0, r"language\.model\.decoder_layers: 0 .* at least 1"),
        ("summarization.model.encoder_layers", 0, r"summarization\.model\.encoder_layers: 0 .* at least 1"),
        ("matching.configs", ["2-2-8_1-1"], r"matching\.configs\[0\] '2-2-8 1-1', decoder_layers: 1"),
        ("matching.model.pretrained", "summarization", r"matching.*: .* must be"),
        ("language.pretrain", {"steps": 1, "learning_rate": 0.1, "batch_tokens": 9}, "language.pretrain: .* null, for"),
        ("summarization.methods.presets", ["dq-bert"], r"methods.presets\[0\]: 'dq-bert' .* dq-bart"),
        ("summarization.methods.seeds", [1, 1], "without repetitions"),
        ("summarization.methods.configs", [], r"summarization\.methods\.configs"),
        (
            "summarization.methods.evaluate.documents",
            41,
            r"methods\.evaluate\.documents: 41 .* evaluate\.documents, 40",
        ),
        ("summarization.methods.evaluate.documents", None, r"methods\.evaluate\.documents: None .* at most"),
        *((f"summarization.{key}", value, rf"^summarization\.{key}") for key, value in ABSURD),
        ("summarization.methods.configs", ["2-2-8 " + 5000 * "9" + "-1"], r"^summarization\.methods\.config"),
    ],
)
def test_a_bad_parameter_is_named_with_its_value_and_what_is_allowed(smoke, tmp_path, path, value, message):
    data = copy.deepcopy(smoke)
    *parents, last = path.split(".")
    block = data
    for parent in parents:
        block = block[parent]
    block[last] = value
    assert FEWEST_DOCUMENTS == GROUPS  # so that each group of lengths has a document
    with pytest.raises(InputError, match=message) as caught:
        load(data, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_control_that_is_a_student_already_comes_once(smoke, tmp_path):
    smoke["summarization"]["distill"]["preset"] = "quantization-only"
    task = load(smoke, tmp_path).task("summarization")
    assert [str(config) for config, _ in task.students()] == ["8-8-8 2-2", "2-2-8 2-1"]


def test_a_bench_of_a_preset_that_does_not_serve_the_teacher_is_refused(smoke, tmp_path):
    evaluate = smoke["language"]["evaluate"]
    bench = smoke["summarization"]["methods"] | {"configs": ["2-2-8_0-1"], "longer": {}, "evaluate": evaluate}
    smoke["language"]["methods"] = bench | {"presets": ["dqlib"]}
    assert load(smoke, tmp_path).task("language").methods
    smoke["language"]["methods"] = bench
    with pytest.raises(InputError, match=r"^language\.methods, preset: 'dq-bart-faithful' .* architecture 'gpt2'"):
        load(smoke, tmp_path)


def test_a_bench_beside_a_teacher_that_is_not_trained_is_refused(smoke, tmp_path):
    data = yaml.safe_load(profile_path("committed").read_text())
    assert load(data, tmp_path).task("summarization").finetune is None
    data["summarization"]["methods"] = smoke["summarization"]["methods"]
    with pytest.raises(InputError, match=r"^summarization\.methods: 'a block' .* null where finetune is"):
        load(data, tmp_path)


@pytest.mark.parametrize(("task", "ends"), [("summarization", 1), ("matching", 0)])
def test_a_window_of_pretraining_fills_the_positions_with_its_marks_and_no_more(smoke, tmp_path, task, ends):
    most = smoke[task]["model"]["max_positions"] - ends
    smoke[task]["pretrain"]["window"] = most
    assert load(smoke, tmp_path).task(task).longest_window == most + ends
    smoke[task]["pretrain"]["window"] = most + 1
    with pytest.raises(InputError, match=f"max_positions: {most + ends} .* at least {most + ends + 1}, the longest"):
        load(smoke, tmp_path)


def test_what_follows_from_another_task_s_model_need_not_be_given_and_all_else_must(smoke, tmp_path):
    smoke["eli5"]["model"] = {"pretrained": "summarization"}
    del smoke["eli5"]["corpus"]["vocab_size"]
    assert load(smoke, tmp_path) == load_settings("smoke")
    del smoke["summarization"]["finetune"]["steps"]
    with pytest.raises(InputError, match=r"summarization\.finetune\.steps"):
        load(smoke, tmp_path)


def test_unknown_profiles_and_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"profile: 'desktop' .* laptop, .*paper, paper-cnn, .*real, .*smoke"):
        load_settings("desktop")
    with pytest.raises(InputError, match="params"):
        load_settings(str(tmp_path / "none.yaml"))


def test_a_profile_has_the_tasks_that_it_names(smoke, tmp_path):
    settings = load(smoke, tmp_path)
    assert tuple(settings.tasks) == ("summarization", "eli5", "translation", "matching", "topics", "language")
    assert settings.pretrained_folder("eli5") == settings.folders("summarization").pretrained
    assert settings.pretrained_folder("translation") is None
    left_out = ("summarization", "eli5", "matching", "topics", "language")
    only = load({key: value for key, value in smoke.items() if key not in left_out}, tmp_path)
    assert tuple(only.tasks) == ("translation",)
    with pytest.raises(InputError, match=r"task: 'eli5' .* translation, which the profile 'smoke' has"):
        only.task("eli5")
    with pytest.raises(InputError, match="at least one of summarization, eli5, translation"):
        load({key: smoke[key] for key in ("profile", "results", "compute")}, tmp_path)
    del smoke["summarization"]
    with pytest.raises(InputError, match=r"eli5\.model\.pretrained: 'summarization'"):
        load(smoke, tmp_path)


def test_choosing_a_profile_says_how_to_go_back_and_never_loses_edits(tmp_path, monkeypatch, capsys):
    assert (committed() / "params.yaml").read_bytes() == (committed() / "profiles" / "study.yaml").read_bytes()
    (tmp_path / "dvc.yaml").touch()
    shutil.copytree(committed() / "profiles", tmp_path / "profiles")
    monkeypatch.chdir(tmp_path)
    params = tmp_path / "params.yaml"
    assert main(["profile", "laptop"]) == 0
    assert "`git checkout params.yaml dvc.lock` goes back" in capsys.readouterr().out
    assert not choose_profile("laptop")
    params.write_text(params.read_text() + "# mine\n")
    edited = params.read_text()
    assert not choose_profile("laptop")
    with pytest.raises(InputError, match="unedited"):
        choose_profile("smoke")
    assert params.read_text() == edited
    params.write_bytes((tmp_path / "profiles" / "laptop.yaml").read_bytes())
    assert choose_profile("smoke")
    assert main(["profile", "cloud"]) == 2


def test_from_any_folder_a_profile_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_settings("laptop").runs == Path(dqlib.__file__).resolve().parents[1] / "runs" / "laptop"
    (tmp_path / "dvc.yaml").touch()  # another project
    with pytest.raises(InputError, match=r"profile: 'laptop' .* a file in .*profiles, which has none"):
        load_settings("laptop")


def resolved(pipeline, parameters):
    """Each parameter that a stage reads, with the name of the stage, of all that DVC makes under some parameters."""
    for name, stage in pipeline.items():
        items = stage.get("foreach", [""])
        if isinstance(items, str):  # such as ${pipeline.tasks}
            items = parameters["pipeline"][items.strip("${}").removeprefix("pipeline.")]
        for item in items:
            for key in stage.get("do", stage).get("params", []):
                yield f"{name}@{item}", key.replace("${item}", item).replace("${key}", item)


@pytest.mark.parametrize("profile", ["laptop", "smoke", "study", "real"])
def test_a_profile_of_the_pipeline_has_every_parameter_that_its_stages_read(profile):
    pipeline = yaml.safe_load((project_root() / "dvc.yaml").read_text())["stages"]
    parameters = yaml.safe_load(profile_path(profile).read_text())
    stages = list(resolved(pipeline, parameters))
    for name, key in stages:
        found = parameters
        for part in key.split("."):
            assert part in found, f"{name}: {key}"
            found = found[part]
    tasks = load_settings(profile).tasks
    assert {name for name, _ in stages if name.startswith("students@")} == {f"students@{task}" for task in tasks}


def test_stages_that_are_not_those_of_the_tasks_are_refused_before_a_profile_is_chosen(smoke, tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "profiles").mkdir()
    monkeypatch.chdir(tmp_path)
    del smoke["topics"]
    (tmp_path / "profiles" / "smoke.yaml").write_text(yaml.safe_dump(smoke))
    allowed = r"corpora: \[summarization, translation, matching, language\]"
    with pytest.raises(InputError, match=rf"pipeline: .*topics.*{allowed}"):
        choose_profile("smoke")
    smoke["pipeline"] = load_settings("smoke").stages
    (tmp_path / "profiles" / "smoke.yaml").write_text(yaml.safe_dump(smoke))
    assert choose_profile("smoke")
    params = smoke | {"profile": "smoke", "pipeline": None}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(InputError, match="pipeline: None"):
        choose_profile("smoke")
