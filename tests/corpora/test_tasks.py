"""Question answering and translation from corpus to student, on models that learn nothing."""

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from dqlib.errors import InputError
from dqlib.storage.students import load_student
from dqlib.study.corpora.corpus import load_info
from dqlib.study.corpora.splits import SPLITS
from dqlib.study.evaluation.records import read_details, read_record
from dqlib.study.notebooks import show
from dqlib.study.params.paths import DETAILS, PREDICTIONS, PROVENANCE
from dqlib.study.pipeline.study import Study

MODEL = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "heads": 2, "ffn_dim": 16, "max_positions": 64}
TRAINING = {"steps": 2, "learning_rate": 0.001, "batch_tokens": 400, "validations": 1}
TASK = {
    "pretrain": None,
    "finetune": TRAINING,
    "distill": TRAINING,
    "evaluate": {"documents": 6, "validation_documents": 6, "bootstrap": 20, "beams": 2},
    "configs": ["2-2-8_1-1"],
}
CORPUS = {"origin": "embedded", "vocab_size": 500, "source_tokens": 32, "target_tokens": 12}
TEXTS = CORPUS | {"packages": ["datasets"]}
PARAMS = {
    "profile": "tiny",
    "results": "results",
    "compute": {"processes": 1},
    "summarization": TASK
    | {"corpus": TEXTS | {"name": "pydoc"}, "model": MODEL, "pretrain": TRAINING | {"window": 16}},
    "eli5": TASK | {"corpus": TEXTS | {"name": "pydoc-qa"}, "model": MODEL | {"pretrained": "summarization"}},
    "translation": TASK
    | {"corpus": CORPUS | {"name": "cldr", "languages": ["ro", "de"], "limit": 600}, "model": MODEL},
}

LONG = "What has more than eight tokens by far, whatever a tokenizer makes of it, number"


def from_files(folder, **texts):
    """A study of summarization whose corpus is read from files: ``data/SPLIT.source`` and ``data/SPLIT.target``."""
    (folder / "dvc.yaml").touch()
    (folder / "data").mkdir()
    for split in SPLITS:
        for column in ("source", "target"):
            lines = [f"{texts.get(split, LONG)} {i}" for i in range(40)]
            (folder / "data" / f"{split}.{column}").write_text("\n".join(lines))
    corpus = CORPUS | {"name": "mine", "origin": "files"} | {split: f"data/{split}.*" for split in SPLITS}
    params = {key: PARAMS[key] for key in ("profile", "results", "compute")}
    params["summarization"] = PARAMS["summarization"] | {"corpus": corpus}
    (folder / "mine.yaml").write_text(yaml.safe_dump(params))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("tasks")
    (target / "dvc.yaml").touch()
    (target / "tiny.yaml").write_text(yaml.safe_dump(PARAMS))
    return target


@pytest.fixture
def study(folder, monkeypatch, request):
    monkeypatch.chdir(folder)
    return Study("tiny.yaml", request.param)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / PREDICTIONS).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("study", ["translation"], indirect=True)
def test_a_translation_is_tested_in_every_language_on_both_test_sets(study):
    assert study.pretrained() is None
    assert set(json.loads((study.corpus() / PROVENANCE).read_text())) == {"corpus"}  # as of no files
    teacher, student = study.teacher(), study.student("2-2-8 1-1")
    for made in (teacher, student):
        record = read_record(made)
        assert (record.headline, record.score, record.rougeL) == ("bleu", record.bleu, None)
        assert record.n_test == sum((each["test_set"], each["language"]) == ("test", "ro") for each in lines(made))
        assert len(lines(made)) == 12
        assert {(d.test_set, d.language) for d in read_details(made)} == {
            (test_set, language) for test_set in ("test", "test_unseen") for language in ("ro", "de")
        }
    first = AutoTokenizer.from_pretrained(teacher).convert_tokens_to_ids("<ro>")
    for model in (AutoModelForSeq2SeqLM.from_pretrained(teacher), load_student(student)):
        assert model.generation_config.decoder_start_token_id == first


@pytest.mark.parametrize("study", ["translation"], indirect=True)
def test_own_texts_are_answered_side_by_side(study):
    teacher = study.teacher()
    models = {"teacher": (AutoModelForSeq2SeqLM.from_pretrained(teacher), teacher)}
    table = show.side_by_side(models, "Kenya and Peru", max_new_tokens=4, language="de").data
    assert list(table.columns) == ["", "answer", "size (MB)", "time (ms)"]
    assert table["size (MB)"].tolist() == [f"{read_record(teacher).size_bytes / 1e6:.2f}"]
    with pytest.raises(InputError, match=r"language: 'es' .* <es>"):
        show.side_by_side(models, "Kenya and Peru", language="es")
    with pytest.raises(InputError, match="text: ' '"):
        show.side_by_side(models, " ")
    assert show.details({"teacher": teacher}, ["bleu", "exact"]).columns.tolist() == ["bleu", "exact"]


@pytest.mark.parametrize("study", ["eli5"], indirect=True)
def test_answers_start_from_the_model_and_tokenizer_of_summarization(study):
    assert study.pretrained() == study.settings.folders("summarization").pretrained
    teacher = study.teacher()
    base = study.settings.folders("summarization").corpus / "tokenizer"
    ours, theirs = (AutoTokenizer.from_pretrained(each).get_vocab() for each in (teacher, base))
    assert ours == theirs
    assert not study.folders.pretrained.exists()
    assert (read_record(teacher).headline, read_record(teacher).n_test) == ("rougeL", 6)
    assert {"words", "length_ratio"} <= {each["metric"] for each in json.loads((teacher / DETAILS).read_text())}


@pytest.mark.parametrize("split", ["train", "validation"])
def test_texts_that_are_too_short_to_pre_train_on_are_refused(tmp_path, monkeypatch, split):
    from_files(tmp_path, **{split: "a"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"summarization\.corpus\.{split}, .*: 0 .* corpus 'mine' .* 8 tokens"):
        Study("mine.yaml").pretrained()


def test_what_train_and_the_other_splits_have_in_common_is_said_when_a_corpus_is_built(tmp_path, monkeypatch, capsys):
    from_files(tmp_path)
    texts = {
        "train": "How are you? No, not\n今天天气很好我们去公园\nไปโรงเรียนด้วยกันไหม\n",
        "validation": "Unlike all of it\nhow are  you? no, not\n",
        "test": "今天天气很好我们去公园吧\nไปโรงเรียนด้วยกันไหม\nUnlike\nHow are you?\n",
    }
    for split, text in texts.items():
        (tmp_path / "data" / f"{split}.source").write_text(text)
        (tmp_path / "data" / f"{split}.target").write_text("".join(f"{split} {i}\n" for i in range(text.count("\n"))))
    monkeypatch.chdir(tmp_path)
    info = load_info(Study("mine.yaml").corpus())
    assert info["in_train"] == {
        "validation": {"sources": 0.5, "targets": 0.0}, "test": {"sources": 0.5, "targets": 0.0}
    }  # fmt: skip
    output = capsys.readouterr().out
    assert "3 train, 2 validation, 4 test" in output
    assert "in train, too, whole or nearly so: 50.0% of sources and 0.0% of targets in validation; 50.0% of" in output
    Study("mine.yaml").corpus()
    assert capsys.readouterr().out == ""


def test_a_corpus_is_built_again_when_a_file_has_other_contents(tmp_path, monkeypatch):
    from_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    built = Study("mine.yaml").corpus()
    before, provenance = load_info(built), (built / PROVENANCE).read_text()
    when = (built / "corpus.json").stat().st_mtime_ns
    (tmp_path / "data" / "test.target").touch()
    assert (Study("mine.yaml").corpus() / "corpus.json").stat().st_mtime_ns == when
    assert str(tmp_path) not in provenance  # a project may be moved
    with (tmp_path / "data" / "test.target").open("a") as file:
        file.write(" and more")
    assert load_info(Study("mine.yaml").corpus())["sha256"] != before["sha256"]
    assert (built / PROVENANCE).read_text() != provenance
    (tmp_path / "data" / "train.source").unlink()
    with pytest.raises(InputError, match=r"train\.source.* a file that exists"):
        Study("mine.yaml").corpus()
