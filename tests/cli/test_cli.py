"""The command line: every subcommand, its help, and one sentence for what is wrong."""

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from dqlib.cli import COMMANDS, main, parser
from dqlib.engines import ENGINES, load_classifier, load_engine
from dqlib.engines.torch_engine import TorchEngine
from dqlib.errors import InputError
from dqlib.storage.account import fp32_bytes_of
from dqlib.storage.footprint import fp32_size_bytes
from dqlib.storage.manifest import MANIFEST, WEIGHTS, opened, packed_size_bytes
from dqlib.storage.packed import load_packed, load_tokenizer
from dqlib.storage.reading import read_tokenizer, save_model
from dqlib.storage.students import load_student, save_student
from dqlib.student import round_for_storage
from dqlib.study.corpora.tokenizer import train_tokenizer
from dqlib.study.params.paths import project_root
from tests.helpers.folders import flip, reconfigure, reseal
from tests.helpers.models import CASES, make_teacher, student_of

TEXTS = ["return the sum", "", "of all numbers that there are", "the"]
#: That show how commands are called.
PAGES = ("small-file.md", "your-model.md")
NAMES = ("bart", "gpt2", "bert", "bert-classifier")


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """Folders of rounded students with their tokenizer; ``raw`` is one that was not rounded, and has none."""
    tokenizer = train_tokenizer(TEXTS, 300, 24)
    root = tmp_path_factory.mktemp("students")
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            config = type(CASES[name].config).from_dict(CASES[name].config.to_dict() | {"vocab_size": len(tokenizer)})
            patch.setitem(CASES, name, replace(CASES[name], config=config))
            student = student_of(make_teacher(name), name)
            if name == "bart":
                save_student(student, root / "raw")
            round_for_storage(student)
            save_student(student, root / name, tokenizer)
    return root


@pytest.fixture(scope="module")
def packed(students, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    for name in NAMES:
        assert main(["pack", str(students / name), str(folder / name)]) == 0
    return folder


@pytest.fixture(scope="module")
def fast(students, tmp_path_factory):
    """The student of BART for CTranslate2."""
    pytest.importorskip("ctranslate2")
    folder = tmp_path_factory.mktemp("exported") / "bart"
    assert main(["export", str(students / "bart"), str(folder), "--engine", "ctranslate2"]) == 0
    return folder


@pytest.fixture
def texts(tmp_path):
    """A file of the texts, a line each."""
    (tmp_path / "texts").write_text("".join(f"{text}\n" for text in TEXTS))
    return tmp_path / "texts"


def printed(capsys, *arguments, code=0):
    """What a call prints that ends with an exit code."""
    capsys.readouterr()
    assert main([str(each) for each in arguments]) == code
    return capsys.readouterr()


def refused(capsys, *arguments):
    """The one sentence on standard error of a call that fails with exit code 2."""
    output = printed(capsys, *arguments, code=2)
    assert output.out == ""
    assert output.err.startswith(f"dqlib {arguments[0]}: ")
    assert output.err.count("\n") == 1
    return output.err


def rows_of(capsys, *arguments):
    """The JSON objects that a call writes, one per line."""
    return [json.loads(line) for line in printed(capsys, *arguments).out.splitlines()]


def test_help_of_each_command_has_an_example_that_can_be_called(capsys):
    for name, command in COMMANDS.items():
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        assert command.example in capsys.readouterr().out
        words = shlex.split(command.example.rpartition("| ")[2])
        assert words[0] == "dqlib"
        assert parser().parse_args(words[1:]).command == name
        assert any(f"dqlib {name} " in (project_root() / "docs" / page).read_text() for page in PAGES)


def test_a_call_that_is_not_understood_ends_with_2(capsys):
    for arguments, said in (
        ([], "usage: dqlib"),
        (["frobnicate"], "usage: dqlib"),
        (["pack", "a"], "usage: dqlib"),
        (["generate", "a", "--beams", "0"], "usage: dqlib"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert said in capsys.readouterr().err


# --- packed and exported


def test_pack_writes_the_student_and_its_tokenizer(students, packed, tmp_path, capsys):
    output = printed(capsys, "pack", students / "bart", tmp_path / "out").out
    assert f"{packed_size_bytes(tmp_path / 'out'):,} bytes" in output
    ids = torch.tensor([[5, 6, 7, 2]])
    with torch.no_grad():
        ours, theirs = (
            model(input_ids=ids, decoder_input_ids=ids).logits
            for model in (load_packed(tmp_path / "out"), load_student(students / "bart"))
        )
    assert torch.equal(ours, theirs)
    assert load_tokenizer(tmp_path / "out")(TEXTS[0]).input_ids[-1] == 2


def test_pack_rounds_only_when_asked(students, texts, tmp_path, capsys):
    assert "round_for_storage" in refused(capsys, "pack", students / "raw", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    printed(capsys, "pack", students / "raw", tmp_path / "out", "--round")
    printed(capsys, "verify", tmp_path / "out")
    assert "tokenizer" in refused(capsys, "generate", tmp_path / "out", "--input", texts)  # which has none


def test_inspect_shows_the_account(students, packed, capsys):
    fp32_bytes = fp32_size_bytes(load_student(students / "raw"))
    assert fp32_bytes_of(students / "raw") == fp32_bytes
    output = printed(capsys, "inspect", packed / "bart", "--teacher", students / "raw").out
    assert "BartForConditionalGeneration, 2-2-8 2-1, preset dqlib" in output
    for part in ("weights", "embeddings", "positions", "scales", "rest", "overhead", "paper's count", "a head in fp16",
                 f"{packed_size_bytes(packed / 'bart'):,}", f"{fp32_bytes:,}"):  # fmt: skip
        assert part in output


def test_export_says_what_became_of_the_weights(packed, fast, tmp_path, capsys):
    call = ("export", packed / "bart", tmp_path / "out", "--engine", "ctranslate2")
    output = printed(capsys, *call).out
    assert "keep the codes that they were trained with" in output
    assert f"{(tmp_path / 'out' / 'model.bin').stat().st_size:,} bytes, int8" in output
    assert (tmp_path / "out" / "model.bin").read_bytes() == (fast / "model.bin").read_bytes()
    assert "bytes, float32" in printed(capsys, *call, "--quantization", "float32").out


def test_the_encoder_of_an_export_is_chosen_and_is_onnxruntime_s(packed, tmp_path, capsys):
    call = ("export", packed / "bart", tmp_path / "out", "--engine")
    output = refused(capsys, *call, "ctranslate2", "--encoder", "packed")
    assert "--encoder: 'packed'" in output
    assert "left out with --engine ctranslate2: it is one of onnxruntime" in output
    pytest.importorskip("onnx")
    assert "--encoder: 'int4'" in refused(capsys, *call, "onnxruntime", "--encoder", "int4")
    printed(capsys, *call, "onnxruntime", "--encoder", "packed")
    assert opened(tmp_path / "out", "onnxruntime").about["encoder"] == "packed"


# --- asked for texts and classes


def test_inspect_and_verify_name_a_weights_file_that_is_damaged(packed, tmp_path, capsys):
    shutil.copytree(packed / "bart", tmp_path / "out")
    data, weights = (packed / "bart" / WEIGHTS).read_bytes(), tmp_path / "out" / WEIGHTS
    flipped = [data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :] for place in (0, 7, 12, -1)]
    lengths = [length.to_bytes(8, "little") + data[8:] for length in (0, 2**20, 2**63)]
    for damaged in (b"", data[:4], data[: len(data) // 2], data[:-1], data + b"\0", *flipped, *lengths, None):
        weights.unlink(missing_ok=True)
        if damaged is not None:
            weights.write_bytes(damaged)
        assert WEIGHTS in refused(capsys, "inspect", tmp_path / "out")
        faults = printed(capsys, "verify", tmp_path / "out", code=1).err
        assert WEIGHTS in faults
        assert faults.count("\n") == 1


@pytest.mark.parametrize("name", ["bart", "gpt2"])
def test_generate_answers_every_line_in_order(name, packed, texts, capsys, monkeypatch):
    call = ("generate", packed / name, "--beams", 2, "--max-new-tokens", 4)
    answers = rows_of(capsys, *call, "--input", texts)
    assert [answer["input"] for answer in answers] == TEXTS
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS)))
    assert rows_of(capsys, *call, "--batch-size", 3) == answers
    model, tokenizer = load_packed(packed / name), load_tokenizer(packed / name)
    inputs = tokenizer(TEXTS[2], return_tensors="pt")
    ids = model.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, num_beams=2,
                         max_new_tokens=4, do_sample=False)  # fmt: skip
    new = ids[0, inputs.input_ids.size(1) :] if name == "gpt2" else ids[0]
    assert answers[2]["output"] == tokenizer.decode(new, skip_special_tokens=True)
    texts.write_text("numbers " * 60)  # more than the model reads
    assert len(rows_of(capsys, *call, "--input", texts)) == 1


def test_an_exported_model_generates_and_agrees(students, packed, fast, texts, capsys):
    options = ("--input", texts, "--beams", 2, "--max-new-tokens", 4)
    answers = rows_of(capsys, "generate", fast, *options)
    assert [answer["input"] for answer in answers] == TEXTS
    others = ("--batch-size", 3, "--engine", "ctranslate2", "--threads", 1)
    assert rows_of(capsys, "generate", fast, *options, *others) == answers
    assert "100.00% of" in printed(capsys, "agree", packed / "bart", students / "bart", *options).out
    output = printed(capsys, "agree", packed / "bart", fast, *options, "--early-stopping").out
    assert "of 4 texts are the same" in output


def test_a_search_is_asked_for_by_options(packed, tmp_path, capsys):
    (tmp_path / "texts").write_text("return the sum\n")
    asked = {"min_new_tokens": 6, "no_repeat_ngram_size": 1, "repetition_penalty": 1.5, "length_penalty": 2.0}
    options = [word for name, value in asked.items() for word in (f"--{name.replace('_', '-')}", value)]
    call = ("generate", packed / "bart", "--input", tmp_path / "texts", "--max-new-tokens", 8, "--beams", 2)
    expected = TorchEngine(load_packed(packed / "bart"), load_tokenizer(packed / "bart")).generate(
        ["return the sum"], num_beams=2, max_new_tokens=8, early_stopping=True, **asked
    )
    assert [row["output"] for row in rows_of(capsys, *call, "--early-stopping", *options)] == expected
    assert "--min-new-tokens: 9 is not allowed; it must be at most 8" in refused(capsys, *call, "--min-new-tokens", 9)
    for penalty in ("inf", "nan", "1000", "-1e9"):
        said = refused(capsys, *call, f"--length-penalty={penalty}")
        assert f"--length-penalty: {float(penalty)} is not allowed; it must be a number from -10 to 10" in said
    for penalty in (-10, 10):
        assert rows_of(capsys, *call, f"--length-penalty={penalty}")


def test_texts_are_utf_8_whatever_the_terminal_has(packed, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("ș日\n".encode()), encoding="ascii"))
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="latin-1"))
    assert main(["generate", str(packed / "bart"), "--beams", "1", "--max-new-tokens", "2"]) == 0
    assert json.loads(written.getvalue().decode("utf-8"))["input"] == "ș日"


def test_classify_labels_every_line_in_order(packed, tmp_path, capsys, monkeypatch):
    model, texts = packed / "bert-classifier", [text for text in TEXTS if text]
    (tmp_path / "texts").write_text("\n".join(texts))
    rows = rows_of(capsys, "classify", model, "--input", tmp_path / "texts", "--batch-size", 2)
    assert [row["input"] for row in rows] == texts
    found = load_classifier(model).classify(texts)
    assert [row["label"] for row in rows] == [each.label for each in found]
    assert all(list(row["probabilities"]) == ["0", "1", "2"] for row in rows)  # classes without names
    assert rows[0]["probabilities"]["1"] == pytest.approx(found[0].probabilities["1"], abs=1e-6)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(texts)))
    plain = printed(capsys, "classify", model, "--format", "text").out.splitlines()
    chance = found[0].probabilities[found[0].label]
    assert plain[0] == f"{found[0].label}\t{chance:.4f}\t{texts[0]}"
    assert len(plain) == len(texts)


def test_classify_reads_pairs_from_tabs_and_from_columns(packed, tmp_path, capsys):
    pairs = [("the sum", "return all numbers"), ("of", "the numbers that there are")]
    (tmp_path / "tabs").write_text("".join("\t".join(pair) + "\n" for pair in pairs))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"a": a, "b": b, "c": 1}) + "\n" for a, b in pairs))
    call = ("classify", packed / "bert-classifier", "--input")
    tabs = rows_of(capsys, *call, tmp_path / "tabs", "--pairs")
    assert rows_of(capsys, *call, tmp_path / "rows.jsonl", "--text", "a", "--second", "b") == tabs
    assert [(row["input"], row["second"]) for row in tabs] == pairs
    (tmp_path / "tabs").write_text("numbers " * 60 + "\n" + "the sum\n")
    cut = printed(capsys, *call, tmp_path / "tabs")
    assert cut.err == "dqlib classify: 1 of 2 texts were longer than the model reads, and were cut\n"


def test_an_exported_classifier_labels_and_agrees(packed, students, tmp_path, capsys):
    pytest.importorskip(engine := "onnxruntime")
    model, exported, lines = packed / "bert-classifier", tmp_path / "out", tmp_path / "lines"
    printed(capsys, "export", model, exported, "--engine", engine)
    lines.write_text("the sum\tall numbers\nof\tthe\n")
    texts = ("--input", lines, "--pairs", "--threads", 1)
    ours, theirs = (rows_of(capsys, "classify", folder, *texts) for folder in (model, exported))
    assert [row["label"] for row in ours] == [row["label"] for row in theirs]
    assert "100.00% of 2 texts have the same label" in printed(capsys, "agree", model, exported, *texts).out
    assert "0.0000 at most" in printed(capsys, "agree", model, students / "bert-classifier", *texts).out
    assert "BertForSequenceClassification" in refused(capsys, "generate", exported, "--input", lines)


@pytest.mark.parametrize("name", ["bart", "bert-classifier"])
def test_models_of_other_vocabularies_are_not_compared(name, students, texts, tmp_path, capsys):
    other = shutil.copytree(students / name, tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    ids = content["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    reseal(other, ["tokenizer.json"])
    texts.write_text("the sum\n")
    said = refused(capsys, "agree", students / name, other, "--input", texts)
    assert f"folder: '{other}' is not allowed; it must be a model of the same vocabulary as {students / name}" in said


# --- what is wrong


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("pack {out} {out}", "folder: "),
        ("pack {students}/bart {here}/empty/x", "/empty/x' is not allowed; it must be a folder that can be written"),
        ("inspect {packed}/bart --teacher {here}", "--teacher: "),
        ("export {packed}/bart {out} --engine ctranslate2 --bits 2", "--bits: 2"),
        ("export {packed}/bart {packed}/bart/inside --engine ctranslate2", "out: "),
        ("generate {packed}/bart --input {texts} --threads 9999", "threads: 9999"),
        ("generate {packed}/bart --input {out}", "{out}' is not allowed; it must be a file that exists"),
        ("generate {packed}/bart --input {here}/binary", "{here}/binary, line 2: "),
        ("generate {packed}/bart --input {texts} --max-new-tokens 24", "--max-new-tokens: 24"),
        ("generate {fast} --input {texts} --language fr", "--language: 'fr'"),
        ("classify {packed}/bert --input {texts}", "BertForMaskedLM"),
        ("generate {students}/raw --input {texts}", "it must be one saved or exported with its tokenizer"),
        ("agree {packed}/bart {here} --input {texts}", "folder: "),
        ("agree {packed}/bart {packed}/bert-classifier --input {texts}", "folder {packed}/bert-classifier, "),
        ("agree {packed}/bert-classifier {packed}/bert-classifier --input {texts} --beams 2", "--beams: 2"),
        ("agree {packed}/bart {packed}/bart --input {texts} --pairs", "--pairs: True"),
        ("generate {packed}/bart --input {here}/empty", "with a text at least"),
        ("classify {packed}/bert-classifier --input {here}/empty", "with a text at least"),
        ("agree {packed}/bart {packed}/bart --input {here}/empty", "with a text at least"),
        ("agree {packed}/bert-classifier {packed}/bert-classifier --input {here}/empty", "with a text at least"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(
    call, expected, students, packed, fast, texts, tmp_path, capsys, monkeypatch
):
    (here := tmp_path / "here").mkdir()
    (here / "empty").touch()
    (here / "binary").write_bytes("die Höhe\n".encode() + b"\xff\xfe\x00")
    monkeypatch.chdir(here)
    out = tmp_path / "out"
    paths = {"students": students, "packed": packed, "fast": fast, "texts": texts, "here": here, "out": out}
    assert expected.format(**paths) in refused(capsys, *call.format(**paths).split())
    assert sorted(path.name for path in here.iterdir()) == ["binary", "empty"]
    assert not out.exists()
    assert not (packed / "bart" / "inside").exists()


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("the sum\n\n", (), "lines, line 2: '' is not allowed; it must be a text"),
        ("a\tb\nc\n", ("--pairs",), "lines, line 2: 'c' is not allowed; it must be two texts with one tab"),
        ("a\t \n", ("--pairs",), "lines, line 1: "),
        ('{"a": "b"}\n{"a": 3}\n', ("--text", "a"), "lines, line 2: "),
        ('{"a": "b"\n', ("--text", "a"), "a JSON object ("),
        ('{"a": "b"}\n{"a": "b", "c": {"d": 1, "d": 2}}\n', ("--text", "a"), "lines, line 2, key: 'd'"),
        ('{"a": "b", "a": "c"}\n', ("--text", "a"), "lines, line 1, key: 'a' is not allowed; it must be there once"),
        ('\ufeff{"a": "b"}\n{"a": "\\ud800"}\n', ("--text", "a"), "lines, line 2: "),
        ("the\n", ("--second", "a"), "--second: 'a'"),
        ("the\n", ("--pairs", "--text", "a"), "--pairs: True"),
    ],
)
def test_what_is_wrong_with_texts_to_classify_is_told_with_its_line(packed, text, options, expected, tmp_path, capsys):
    (tmp_path / "lines").write_text(text)
    call = ("classify", packed / "bert-classifier", "--input", tmp_path / "lines", "--batch-size", 5)
    assert expected in refused(capsys, *call, *options)


def _without_its_kind(folder):
    content = json.loads((folder / "config.json").read_text())
    del content["model_type"]
    (folder / "config.json").write_text(json.dumps(content))
    reseal(folder, ["config.json"])


@pytest.mark.parametrize(
    ("kind", "damage", "expected"),
    [
        ("bart", _without_its_kind, "config.json, model_type: None"),
        ("bart", lambda folder: reseal(folder, about={}), "config: None"),
        ("bart", lambda folder: reseal(folder, about={"config": "2-2-8 2-1"}), "preset: "),
        ("bart", lambda folder: (folder / MANIFEST).write_text("[1]"), "dqlib.json: 'another format'"),
        ("bart", lambda folder: (folder / MANIFEST).unlink(), "written by save_student"),
        ("bart", lambda folder: os.truncate(folder / "tokenizer.json", 99), "tokenizer.json: "),
        *(
            ("bart", lambda folder, lost=lost: (folder / lost).unlink(), f"{lost}: 'missing' is not allowed")
            for lost in ("tokenizer.json", "tokenizer_config.json")
        ),
        ("raw", lambda folder: (folder / "tokenizer.json").touch(), "must be named by dqlib.json"),
    ],
)
def test_a_damaged_student_is_told_in_one_sentence(kind, damage, expected, students, tmp_path, capsys):
    folder = shutil.copytree(students / kind, tmp_path / "student")
    damage(folder)
    assert expected in refused(capsys, "pack", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    refused(capsys, "generate", folder, "--input", texts)


def test_beside_a_tokenizer_that_the_manifest_names_no_other_file_is_read(students, texts, tmp_path, capsys):
    folder = shutil.copytree(students / "bart", tmp_path / "student")
    for stray in ("added_tokens.json", "special_tokens_map.json"):
        (folder / stray).write_text("not JSON")
    assert read_tokenizer(folder).get_vocab() == read_tokenizer(students / "bart").get_vocab()
    assert rows_of(capsys, "generate", folder, "--input", texts, "--max-new-tokens", 2, "--beams", 1)


def test_beams_are_counted_where_a_search_begins(fast, texts, capsys):
    call = ("generate", fast, "--input", texts, "--beams", 1025)
    assert "--beams: 1025 is not allowed; it must be from 1 to 1024" in refused(capsys, *call)


def test_a_student_without_its_manifest_is_not_taken_for_a_teacher(students, texts, tmp_path, capsys):
    folder = shutil.copytree(students / "bart", tmp_path / "student")
    (folder / MANIFEST).unlink()
    call = ("generate", folder, "--input", texts)
    assert "a student is read with its dqlib.json" in refused(capsys, *call)
    reconfigure(folder, transformers_weights=None)
    assert "weight_quantizer.learned: 'in the weights'" in refused(capsys, *call)


@pytest.mark.parametrize("kind", ["packed", "student", "teacher", "ctranslate2", "onnxruntime"])
def test_every_folder_that_is_written_is_verified_and_no_flipped_bit_escapes(kind, students, packed, tmp_path, capsys):
    folder = tmp_path / kind
    if kind in ENGINES:
        pytest.importorskip(kind)
        printed(capsys, "export", packed / "bart", folder, "--engine", kind)
    elif kind == "teacher":
        save_model(make_teacher("bart"), folder)
    else:
        shutil.copytree((packed if kind == "packed" else students) / "bart", folder)
    printed(capsys, "verify", folder)
    random = np.random.default_rng(0)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        places = {0, len(whole) - 1, int(random.integers(len(whole)))}
        if path.name == WEIGHTS:  # its header, too
            places |= {7, 8, *range(9, 8 + int.from_bytes(whole[:8], "little"), 797)}
        for place in sorted(places):
            flip(path, place, 1 << int(random.integers(8)))
            assert printed(capsys, "verify", folder, code=1).err.count("\n") == 1
            with pytest.raises(InputError):
                load_engine(folder)
            path.write_bytes(whole)
        path.unlink()
        printed(capsys, "verify", folder, code=1)
        if kind != "teacher" or path.name != MANIFEST:  # which a teacher from elsewhere has not
            with pytest.raises(InputError):
                load_engine(folder)
        path.write_bytes(whole)
    printed(capsys, "verify", folder)
    assert load_engine(folder).generate_ids([[5, 2]], max_new_tokens=2)


# --- the process itself


def test_what_a_folder_is_is_told_without_torch_and_an_export_writes_without_it(packed, students, tmp_path, capsys):
    calls = ["verify", str(packed / "bart")], ["inspect", str(packed / "bart"), "--teacher", str(students / "bart")]
    exported = ["generate", str(tmp_path / "onnx"), "--max-new-tokens", "4"]
    printed(capsys, "export", packed / "bart", exported[1], "--engine", "onnxruntime")
    script = f"""
import sys
from dqlib.cli import main
for call in {calls!r}:
    assert main(call) == 0
heavy = {{"torch", "transformers", "tokenizers", "pandas"}} & set(sys.modules)
assert not heavy, heavy
assert main({exported!r}) == 0
assert "torch" not in sys.modules
"""
    call = [sys.executable, "-c", script]
    ended = subprocess.run(call, input="the sum", capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["input"] == "the sum"


def test_threads_of_a_training_wait_passively_unless_the_user_says_otherwise(monkeypatch, capsys):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    call = ("distill", "checkpoint", "out", "--train", "pairs.jsonl", "--config", "2-2-8 6-3")
    refused(capsys, *call, "--steps", 0)
    assert os.environ.pop("OMP_WAIT_POLICY") == "ACTIVE"
    code = """
import os, sys
class Watch:
    def find_spec(self, name, *rest):
        if name.startswith("torch."):  # torch is being imported
            sys.exit(os.environ.get("OMP_WAIT_POLICY"))
sys.meta_path.insert(0, Watch())
from dqlib.cli import main
main(sys.argv[1:])
"""
    made = subprocess.run([sys.executable, "-c", code, *call], capture_output=True, text=True)
    assert made.stderr.strip() == "PASSIVE"


def test_ctrl_c_ends_in_one_sentence(packed, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dqlib.storage.manifest.verify", interrupted)
    assert main(["verify", str(packed / "bart")]) == 130
    assert capsys.readouterr().err == "dqlib verify: stopped\n"
