"""What the teacher writes for its students: made once, by what agrees with it, never taken for another teacher's."""

import json
from dataclasses import replace

import pytest

from dqlib.engines.torch_engine import TorchEngine, load_model
from dqlib.errors import InputError
from dqlib.files import write_text
from dqlib.study.__main__ import main
from dqlib.study.corpora import pydoc
from dqlib.study.corpora.corpus import load_corpus
from dqlib.study.corpora.pseudo_labels import load_labels, write_labels
from dqlib.study.corpora.rows import Rows
from dqlib.study.labelling import pseudo_labels
from dqlib.study.params.paths import PROVENANCE
from dqlib.study.params.settings import load_settings
from dqlib.study.pipeline.study import Study
from dqlib.study.process.exit_codes import JobError
from tests.helpers.folders import flip
from tests.helpers.processes import in_this_process
from tests.helpers.projects import set_task

TEXTS = [
    {"group": "m", "name": f"m.f{i}", "source": f"m.f{i}: m f{i}. {'word ' * i}of a text in no pair."} for i in range(9)
]
CONFIG = "2-2-8 2-1"


@pytest.fixture
def study(made_study, monkeypatch):
    """The small study, whose labels are few and made in this process, in chunks of ten."""
    set_task(pseudo_labels={"pairs": 25, "texts": 7, "beams": 2, "batch_size": 8}, distill={"steps": 8})
    monkeypatch.setattr(pydoc, "unpaired", lambda corpus: iter(TEXTS))
    monkeypatch.setattr(pseudo_labels, "run_all", in_this_process)
    monkeypatch.setattr(pseudo_labels, "CHUNK", 10)
    return Study("small.yaml")


def labels_of(study):
    info = json.loads((study.folders.pseudo_labels / "labels.json").read_text())
    return load_labels(study.folders.pseudo_labels, info["corpus"], info["teacher"])


def test_the_teacher_labels_pairs_and_texts_once_as_pytorch_would(study, monkeypatch):
    folder = study.pseudo_labels()
    labels, corpus = labels_of(study), load_corpus(study.folders.corpus)
    assert (len(labels.pairs), len(labels.texts)) == (25, 7)
    train = corpus.splits["train"][:25]
    assert [row["source"] for row in labels.pairs] == [row["source"] for row in train]
    assert [{**row, "target": ""} for row in labels.texts] == [{**row, "target": ""} for row in TEXTS[:7]]
    assert labels.info["corpus"] == corpus.info["sha256"]
    assert labels.info["settings"] == {"beams": 2, "max_tokens": 24, "early_stopping": True}
    assert labels.info["engine"] == "ctranslate2"
    engine = TorchEngine(*load_model(study.folders.teacher))
    engine.early_stopping = True
    wrote = engine.generate([row["source"][:200] for row in TEXTS[:7]], num_beams=2, max_new_tokens=24)
    assert [row["target"] for row in labels.texts] == [text.strip() for text in wrote]
    assert not study.folders.checkpoints(folder).exists()
    monkeypatch.setattr(pseudo_labels, "run_all", None)  # which is not called again
    assert study.pseudo_labels() == folder


def test_labelling_that_was_stopped_goes_on_with_the_next_chunk(study, monkeypatch):
    made = []

    def one_then_fail(title, jobs):
        made.append([job.name for job in jobs])
        in_this_process(title, jobs[:1])
        raise JobError("stopped")

    monkeypatch.setattr(pseudo_labels, "run_all", one_then_fail)
    for _ in range(2):
        with pytest.raises(JobError):
            study.pseudo_labels()
    assert not (study.folders.pseudo_labels / "labels.json").exists()
    assert made[1] == made[0][1:] == ["pairs from 10 on", "pairs from 20 on", "texts from 0 on"]
    monkeypatch.setattr(pseudo_labels, "run_all", in_this_process)
    study.pseudo_labels()
    stopped = labels_of(study).sha256
    write_text(study.folders.pseudo_labels / PROVENANCE, "made from anything else")
    study.pseudo_labels()
    assert labels_of(study).sha256 == stopped


@pytest.mark.parametrize("why", ["differs", "missing"])
def test_pytorch_writes_where_ctranslate2_does_not_serve(study, monkeypatch, capsys, why):
    def no_engine(*_, **__):
        raise InputError("engine", "ctranslate2", "installed")

    if why == "differs":
        monkeypatch.setattr(pseudo_labels, "AGREED", 1.1)
    else:
        monkeypatch.setattr(pseudo_labels, "export_model", no_engine)
    study.pseudo_labels()
    assert "summarization: pseudo-labels are written by PyTorch" in capsys.readouterr().out
    assert labels_of(study).info["engine"] == "torch"


def test_students_are_trained_on_labels_that_are_made_where_they_are_asked_for(study):
    study.student(CONFIG)
    assert not study.folders.pseudo_labels.exists()
    weights = {}
    with pytest.raises(InputError, match=r"teacher_targets: 1\.0 .* at most 0\.\d+, the share of pairs"):
        study.student(CONFIG, "dqlib-sequence-level")
    for preset in ("dqlib", "dqlib-labelled-text", "dqlib-on-policy"):
        folder = study.student(CONFIG, preset)
        weights[preset] = (folder / "model.safetensors").read_bytes()
        assert ("pseudo_labels" in json.loads((folder / PROVENANCE).read_text())) == (preset == "dqlib-labelled-text")
    assert len(set(weights.values())) == 3


def test_labels_of_another_teacher_are_refused_in_one_sentence(study):
    folder, labels = study.pseudo_labels(), labels_of(study)
    with pytest.raises(InputError, match=r"pseudo-labels in .*, teacher: .* of the teacher that the student") as caught:
        load_labels(folder, labels.info["corpus"], 64 * "0")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"pseudo-labels in .*, corpus: "):
        load_labels(folder, 64 * "0", labels.info["teacher"])
    flip(folder / "texts.jsonl")
    with pytest.raises(InputError, match=r"pseudo-labels in .*, SHA-256: "):
        labels_of(study)
    with pytest.raises(InputError, match=r"pseudo-labels: .* makes them"):
        load_labels(folder / "none", "", "")


def test_an_empty_set_is_refused(study, tmp_path, monkeypatch):
    monkeypatch.setattr(pydoc, "unpaired", lambda corpus: iter(()))
    with pytest.raises(InputError, match=r"pseudo_labels\.texts: 0 .* no text that is in no pair"):
        study.pseudo_labels()
    with pytest.raises(InputError, match=r"pseudo_labels: 0 .* at least one pair"):
        write_labels(tmp_path / "empty", {"pairs": [], "texts": []}, {})


def test_a_study_without_such_a_preset_makes_an_empty_folder(study, capsys):
    assert main(["make", "pseudo-labels", "--if-asked", "--params", "small.yaml"]) == 0
    assert [path.name for path in study.folders.pseudo_labels.iterdir()] == [PROVENANCE]
    set_task(methods={"ablations": {"2-2-8_2-2": ["dqlib-labelled-text"]}})
    assert main(["make", "pseudo-labels", "--if-asked", "--params", "small.yaml"]) == 0
    assert len(Rows(study.folders.pseudo_labels / "texts.jsonl")) == 7


def test_models_that_do_not_write_have_none_and_no_teacher_is_made_for_them(monkeypatch, capsys):
    monkeypatch.setattr(Study, "teacher", lambda self: pytest.fail("made the teacher"))
    assert main(["make", "pseudo-labels", "--params", "smoke", "--task", "topics"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: task: 'topics' is not allowed; it must be one whose models write texts")
    assert said.count("\n") == 1


def test_texts_without_a_target_are_asked_of_a_corpus_that_has_them():
    task = load_settings("real").task("summarization")
    distill = replace(task.distill, preset="dqlib-labelled-text")
    with pytest.raises(InputError, match=r"preset 'dqlib-labelled-text', labelled_text: 0\.5 .* unless pseudo_labels"):
        replace(task, distill=distill)
    named = replace(task.pseudo_labels, unpaired="data/texts.jsonl")
    assert replace(task, distill=distill, pseudo_labels=named).uses_pseudo_labels(distill.preset)
    embedded = load_settings("smoke").task("summarization")
    with pytest.raises(InputError, match=r"pseudo_labels\.unpaired: .* left out: 'pydoc' knows"):
        replace(embedded, pseudo_labels=named)
