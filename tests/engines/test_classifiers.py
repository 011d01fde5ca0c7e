"""All engines of a classifier find the same classes: its weights, its pairs, its limits, a sentence for the rest."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from dqlib.config import Config
from dqlib.engines import export_model, is_classifier, load_classifier, load_engine
from dqlib.engines.agreement import class_agreement
from dqlib.engines.classifier import Reading, probabilities
from dqlib.engines.torch_engine import TorchClassifier, load_model
from dqlib.errors import InputError
from dqlib.storage.manifest import opened
from dqlib.storage.packed import save_packed
from dqlib.storage.students import save_student
from dqlib.student import make_student, round_for_storage
from dqlib.study.training.batches import collate_texts
from dqlib.study.training.examples import Example
from tests.helpers.checkpoints import CLASSES, save_checkpoint, tokenizer_of
from tests.helpers.engines import OTHERS, served
from tests.helpers.folders import reseal
from tests.helpers.models import ASYMMETRIC, CASES, PAD, VOCABULARY, make_teacher, narrow_student, student_of
from tests.helpers.packed import trained

TEXTS = ["the river and the stone", "water", "old plants grows near the green river under stone", "light over wind"]
SECONDS = ["a small house", "keeps the light near the river and under the old stone", "wind", "the water"]
IDS = [[2, 5, 6, 7, 3, 9, 10, 3], [2, 20, 3], [2, 30, 31, 32, 33, 3]]


def separating(engine):
    """An engine without a tokenizer that knows which token ends a text of a pair."""
    engine.reading = replace(engine.reading, separator=3)
    return engine


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A teacher with its tokenizer; a rounded student of it, as it was saved and packed."""
    root = tmp_path_factory.mktemp("classifiers")
    save_checkpoint("bert", root / "teacher")
    teacher, tokenizer = load_model(root / "teacher")
    student = make_student(teacher, Config.parse("2-2-8 2-0")).eval()
    round_for_storage(student)
    save_student(student, root / "student", tokenizer)
    save_packed(student, root / "packed", tokenizer)
    return {name: root / name for name in ("teacher", "student", "packed")}


def test_a_packed_classifier_finds_the_classes_of_its_student(folders):
    found = [load_classifier(folders[name], threads=1).classify(TEXTS, SECONDS) for name in ("student", "packed")]
    assert found[0] == found[1]
    for each in found[0]:
        assert each.label in CLASSES
        assert each.probabilities[each.label] == max(each.probabilities.values())
        assert sum(each.probabilities.values()) == pytest.approx(1, abs=1e-12)


def test_texts_and_pairs_are_read_as_transformers_reads_them(folders):
    model, tokenizer = load_model(folders["teacher"])
    engine = TorchClassifier(model, tokenizer)
    for columns in ((TEXTS,), (TEXTS, SECONDS)):
        found = engine.classify(*columns, batch_size=3)
        for row, each in zip(zip(*columns, strict=True), found, strict=True):
            with torch.no_grad():
                options = {"return_tensors": "pt", "truncation": True, "return_token_type_ids": True}
                logits = model(**tokenizer(*row, **options)).logits[0]
            expected = torch.softmax(logits.double(), dim=-1).tolist()
            assert list(each.probabilities.values()) == pytest.approx(expected, abs=1e-6)


@OTHERS
@pytest.mark.parametrize("widths", [None, "", "h3 f11"])
def test_an_engine_gives_the_logits_of_a_teacher_a_student_and_a_narrow_one_in_pytorch(engine, widths, tmp_path):
    model = make_teacher("bert-classifier")
    model = model if widths is None else narrow_student("bert-classifier", "2-2-32", widths)
    ours, theirs = separating(TorchClassifier(model)), separating(served(model, engine, tmp_path / "out"))
    expected = ours.logits_of_ids(IDS)
    assert np.abs(theirs.logits_of_ids(IDS) - expected).max() < 1e-5
    for row, logits in zip(IDS, expected, strict=True):  # padding and neighbours change nothing
        assert np.abs(theirs.logits_of_ids([row])[0] - logits).max() < 1e-5
    ours.reading = replace(ours.reading, separator=None)
    assert np.abs(ours.logits_of_ids(IDS) - expected)[0].max() > 1e-3  # the types of tokens count


@OTHERS
@pytest.mark.parametrize("bits", ["2-2-8", "1-1-8", "4-4-8"])
def test_an_engine_of_integers_is_the_student_but_for_what_it_rounds_inside_of_attention(engine, bits, tmp_path):
    student = trained("bert-classifier", "dqlib", bits)
    report = export_model(student, tmp_path / "out", engine)
    if engine == "ctranslate2":
        assert report.exact
        assert report.notes == (
            "Inputs of attention and its probabilities are not rounded, as they are in the student.",
        )
    else:
        assert opened(tmp_path / "out", engine).about["encoder"] == "int8"
    ours, theirs = (
        separating(each).logits_of_ids(IDS) for each in (TorchClassifier(student), load_classifier(tmp_path / "out"))
    )
    assert np.abs(ours - theirs).max() < 0.03


@pytest.mark.parametrize(
    ("preset", "encoder", "bits"), [("dqlib", "packed", None), ("dqlib", "packed", 2), (ASYMMETRIC, None, None)]
)
def test_weights_of_few_bits_stay_so_in_onnxruntime(preset, encoder, bits, tmp_path):
    pytest.importorskip("onnx")
    student = student_of(make_teacher("bert-classifier"), "bert-classifier", "2-2-32", preset).eval()
    export_model(student, tmp_path / "out", "onnxruntime", encoder=encoder, bits=bits)
    assert opened(tmp_path / "out", "onnxruntime").about["encoder"] == "packed"
    ours, theirs = (
        separating(each).logits_of_ids(IDS) for each in (TorchClassifier(student), load_classifier(tmp_path / "out"))
    )
    assert np.abs(ours - theirs).max() < 1e-4


@OTHERS
def test_texts_and_pairs_go_into_every_engine(engine, folders, tmp_path):
    model, tokenizer = load_model(folders["packed"])
    export_model(model, tmp_path / "out", engine, tokenizer)
    assert is_classifier(tmp_path / "out")
    ours, theirs = load_classifier(folders["packed"]), load_classifier(tmp_path / "out", engine, threads=1)
    for columns in ((TEXTS,), (TEXTS, SECONDS), ([*TEXTS, "the river " * 30],)):
        for one, other in zip(ours.classify(*columns), theirs.classify(*columns, batch_size=2), strict=True):
            assert list(one.probabilities.values()) == pytest.approx(list(other.probabilities.values()), abs=0.02)
            assert one.cut == other.cut
    with pytest.raises(InputError, match=r"^model: 'BertForSequenceClassification' .* a model that writes"):
        load_engine(tmp_path / "out")
    about = dict(opened(tmp_path / "out", engine).about)
    reseal(tmp_path / "out", about=about | {"reading": about["reading"] | {"labels": ["a", "b", "c"]}})
    with pytest.raises(InputError, match=r"classes|graph"):
        load_classifier(tmp_path / "out")


def test_which_text_a_token_is_of_is_told_as_in_training():
    reading = Reading(("a", "b"), PAD, 24, types=2, separator=3)
    batch = collate_texts([Example(ids, [0]) for ids in IDS], PAD, separator=3)
    ids, types, mask = reading.batch(IDS)
    assert np.array_equal(ids, batch.input_ids)
    assert np.array_equal(types, batch.token_type_ids)
    assert np.array_equal(mask, batch.attention_mask)
    assert types[0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert not Reading(("a", "b"), PAD, 24, types=1, separator=3).batch(IDS)[1].any()


def test_what_is_longer_than_the_model_reads_is_cut_and_told(folders):
    engine = load_classifier(folders["packed"])
    texts = ["the river", "the river " * 30]
    assert [each.cut for each in engine.classify(texts)] == [False, True]
    assert [len(row) for row in engine.encode(texts)[0]] == [4, 24]
    assert [each.cut for each in engine.classify(texts, texts[::-1])] == [True, True]
    full, more = "river " * 22, "river " * 23  # with the tokens around a text, as many as there are positions, and more
    assert [len(row) for row in engine.encode([full, more])[0]] == [24, 24]
    assert [each.cut for each in engine.classify([full, more])] == [False, True]
    assert [each.cut for each in engine.classify(["river"] * 2, ["river " * 20, "river " * 21])] == [False, True]


def test_what_no_classifier_can_read_is_refused(folders):
    engine = load_classifier(folders["packed"])
    for ids, expected in (([], "0 tokens"), ([5] * 25, "25 tokens"), ([VOCABULARY], str(VOCABULARY)), ([-1], "-1")):
        with pytest.raises(InputError, match=rf"^input_ids: '?{expected}"):
            engine.logits_of_ids([[5], ids])
    assert engine.logits_of_ids([]).shape == (0, 2)
    assert engine.classify([]) == []
    for columns, options, message in (
        ((["the", " "],), {}, r"^texts, number 2: ' ' .* a word at least"),
        ((["the"], [""]), {}, r"^seconds, number 1: ''"),
        ((["the", "river"], ["old"]), {}, r"^seconds: '1 of them'"),
        ((["the"],), {"batch_size": 0}, r"^batch_size: 0"),
    ):
        with pytest.raises(InputError, match=message):
            engine.classify(*columns, **options)
    engine.tokenizer = None
    with pytest.raises(InputError, match=r"^folder: 'without a tokenizer' .* with its tokenizer, tokenizer\.json"):
        engine.classify(["the"])


def test_a_model_that_writes_is_no_classifier_and_the_other_way_round(folders, tmp_path):
    save_packed(trained("gpt2", "dqlib"), tmp_path / "gpt2")
    assert not is_classifier(tmp_path / "gpt2")
    assert all(is_classifier(folder) for folder in folders.values())
    with pytest.raises(InputError, match=r"^model: 'GPT2LMHeadModel' .* a classifier of texts"):
        load_classifier(tmp_path / "gpt2")
    with pytest.raises(InputError, match=r"^model: 'BertForSequenceClassification' .* a model that writes"):
        load_engine(folders["packed"])
    with pytest.raises(InputError, match=r"^engine: 'ctranslate2' .* torch"):
        load_classifier(folders["packed"], "ctranslate2")
    with pytest.raises(InputError, match=r"^folder: "):
        is_classifier(tmp_path / "nowhere")


def test_a_model_that_gives_no_single_class_is_refused():
    case = CASES["bert-classifier"]
    for changes, field in (
        ({"problem_type": "multi_label_classification"}, "problem_type"),
        ({"problem_type": "regression"}, "problem_type"),
        ({"num_labels": 1}, "id2label"),
    ):
        content = {k: v for k, v in case.config.to_dict().items() if k not in ("id2label", "label2id")}
        model = case.model(type(case.config).from_dict(content | changes))
        with pytest.raises(InputError, match=f"^{field}: "):
            TorchClassifier(model)


def test_a_reading_reads_back_from_json():
    reading = Reading.of(make_teacher("bert-classifier"), tokenizer_of("bert"))
    assert reading == Reading(("LABEL_0", "LABEL_1", "LABEL_2"), PAD, 24, 2, 3)
    assert Reading.parse(json.loads(json.dumps(asdict(reading))), VOCABULARY) == reading
    for field, value in (
        ("labels", ["a", "a"]), ("labels", ["a", 1]), ("pad", VOCABULARY), ("positions", 0), ("types", "2"),
        ("separator", -1), ("more", 1), ("labels", 5),
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"^reading"):
            Reading.parse(asdict(reading) | {field: value}, VOCABULARY)


def test_agreement_of_classes_counts_labels_and_probabilities():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    others = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]))
    found = class_agreement(logits, others)
    assert (found.texts, found.same_labels, found.part) == (2, 1, 0.5)
    assert (found.largest, found.mean) == (pytest.approx(0.25), pytest.approx(0.5 / 6))
    assert "50.00% of 2 texts have the same label" in str(found)
    assert class_agreement([], []).part == 1
    with pytest.raises(ValueError, match="1 outputs for 2"):
        class_agreement(logits, others[:1])
    assert probabilities(np.array([[1000.0, 0.0]])).tolist() == [[1.0, 0.0]]
