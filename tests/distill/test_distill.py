"""``dqlib distill``: a checkpoint of every architecture and data of every kind become a small model with its report."""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer

import dqlib
from dqlib.cli import main
from dqlib.engines import load_classifier, load_engine
from dqlib.engines.kept import keep, kept
from dqlib.engines.torch_engine import load_model
from dqlib.storage.manifest import Manifest
from dqlib.storage.reading import read_model
from dqlib.study.corpora import rows as corpus_rows
from dqlib.study.corpora.corpus import load_corpus
from dqlib.study.distill import arguments, evaluate, page, parameters
from dqlib.study.evaluation import words
from dqlib.study.evaluation.records import read_predictions, read_record
from dqlib.study.params import checkpoint
from dqlib.study.params.settings import load_settings
from dqlib.study.training import task as task_training
from dqlib.study.training.loop import Trainer
from dqlib.study.training.seq2seq import TRAINING
from tests.helpers.checkpoints import CLASSES, save_checkpoint, write_pairs
from tests.helpers.folders import contents, hidden, reconfigure

PAIRS = ("--source", "read", "--target", "write")
EXPORT = ("--export", "onnxruntime", "ctranslate2")

#: Kind of file, columns, configuration and engines of each architecture.
RUNS = {
    "bart": ("pairs.jsonl", (*PAIRS, *EXPORT), "2-2-8 2-1"),
    "mbart": ("pairs.csv.gz", PAIRS, "2-2-8 2-1"),
    "marian": ("pairs.parquet", (*PAIRS, "--language", "ro"), "auto:15kB 2-1"),
    "t5": ("pairs.jsonl.gz", (*PAIRS, "--prefix", "the "), "2-2-8 2-1"),
    "bert": ("pairs.csv", ("--text", "read", "--label", "kind", *EXPORT), "2-2-8 2-0"),
    "gpt2": ("pairs.parquet.gz", ("--text", "read"), "2-2-8 0-2"),
}
HEADLINES = {"mbart": "bleu", "marian": "bleu", "bert": "accuracy", "gpt2": "perplexity"}
SMALL = ("--steps", "4", "--batch-tokens", "400", "--documents", "6", "--beams", "2", "--target-tokens", "8")


def call(folder, name, *more):
    """The arguments of a run of an architecture in a folder, whose checkpoint and data are made where they are not."""
    file, options, config = RUNS[name]
    if not (folder / "checkpoint").is_dir():
        save_checkpoint(name, folder / "checkpoint")
        write_pairs(folder / file)
    small = SMALL if name in ("bart", "mbart", "marian", "t5") else SMALL[:-4]
    given = (folder / "checkpoint", folder / "out", "--train", folder / file, "--config", config, *options, *small)
    return ["distill", *map(str, given), *map(str, more)]


@pytest.fixture(scope="module", autouse=True)
def _little_is_measured():
    """Few steps of simpler methods, few pairs whose losses are of each module, short timings and documents."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (words, "STEPS", 5), (task_training, "CALIBRATION", 8), (page, "TIMED", 2), (page, "TURNS", 1),
            (corpus_rows, "LONGEST_DOCUMENT", 60),
        ):  # fmt: skip
            patch.setattr(module, name, value)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What gives the output of an architecture's run, made once."""
    made = {}

    def run(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            assert main(call(folder, name)) == 0
            made[name] = folder / "out"
        return made[name]

    return run


def trained(out):
    """Folder and parameters of the task, and the folders of its teacher and its student."""
    ((name, task),) = load_settings(out / "params.yaml").tasks.items()
    folder = out / "work" / name
    return folder, task, folder / "teacher", next((folder / "students").iterdir())


@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_becomes_a_packed_model_with_a_report(name, runs):
    out = runs(name)
    folder, task, teacher, student = trained(out)
    record, of_teacher = read_record(student), read_record(teacher)
    assert record.headline == of_teacher.headline == HEADLINES.get(name, "rougeL")
    assert (record.train_steps, of_teacher.train_steps) == (4, 0)
    sizes = load_corpus(folder / "corpus").info["sizes"]
    assert min(sizes.values()) > 0
    if name != "gpt2":
        assert sum(sizes.values()) == 160
    ours, packed = load_model(out / "student")[0], load_model(out / "packed")[0]
    ids = torch.tensor([[5, 6, 7]])
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if task.form.writes else {})
    with torch.no_grad():
        assert torch.equal(ours(**inputs).logits, packed(**inputs).logits)
    assert dqlib.verify(out / "packed") == []
    report, html = (out / "report.md").read_text(), (out / "report.html").read_text()
    for text in (f"{record.score:.2f}", f"{of_teacher.score:.2f}", "| teacher |", "| packed |", "dqlib distill"):
        assert text in report
    assert report.count("| `") == 4  # hashes
    assert html.count("<svg") == 2
    assert "src=" not in html  # one file
    card = (out / "README.md").read_text()
    head = yaml.safe_load(card.partition("---\n")[2].partition("\n---")[0])
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == record.score
    if "--export" in RUNS[name][1]:
        for engine in ("onnxruntime", "ctranslate2"):
            assert f"| {engine} |" in report
            if name == "bert":
                assert load_classifier(out / engine).labels == CLASSES
            else:
                assert load_engine(out / engine).generate(["the river"], num_beams=1, max_new_tokens=4)


@pytest.mark.parametrize("name", ["bart", "mbart", "marian", "t5"])
def test_texts_are_read_and_written_as_transformers_does_it(name, runs):
    folder, task, teacher, _ = trained(runs(name))
    model, corpus = read_model(teacher), load_corpus(folder / "corpus")
    tokenizer = AutoTokenizer.from_pretrained(runs(name).parent / "checkpoint")
    rows = corpus.splits["train"][:3]
    assert all(row["source"].startswith(task.corpus.prefix) for row in rows)
    assert task.corpus.prefix == ("the " if name == "t5" else "")
    batch = TRAINING.collate(corpus.tokenizer)(TRAINING.encode(rows, corpus, task.corpus))
    texts, targets = ([row[column] for row in rows] for column in ("source", "target"))
    theirs = tokenizer(texts, text_target=targets, padding=True, return_tensors="pt")
    assert torch.equal(batch.input_ids, theirs["input_ids"])
    assert torch.equal(batch.attention_mask, theirs["attention_mask"])
    labels = theirs["labels"].masked_fill(theirs["labels"] == tokenizer.pad_token_id, -100)
    assert torch.equal(batch.labels, labels)
    if name in ("marian", "t5"):  # BART's and mBART's decoders here start from </s> and from <ro>
        assert torch.equal(batch.decoder_input_ids, model.prepare_decoder_input_ids_from_labels(labels=labels))
    line = read_predictions(teacher)[0]
    inputs = tokenizer([line["source"]], return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**inputs, num_beams=2, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(ids[0], skip_special_tokens=True).strip() == line["prediction"]


@pytest.mark.parametrize("name", RUNS)
def test_a_model_is_scored_as_in_the_report_with_any_engine_and_against_another(name, runs, capsys):
    out = runs(name)
    _, task, teacher, student = trained(out)
    columns = [each for each in RUNS[name][1] if each not in (*EXPORT, "--language", "ro", "--prefix", "the ")]
    test = out / "test.jsonl"
    rows = load_corpus(out / "work" / teacher.parent.name / "corpus").splits["test"][:6]
    second = "kind" if name == "bert" else "write"
    named = [{"read": row["source"].removeprefix(task.corpus.prefix), second: row.get("target")} for row in rows]
    if name == "gpt2":  # whose documents are joined from lines, as they are to be again
        named = [{"read": line} for row in named for line in row["read"].split("\n")]
    test.write_text("".join(json.dumps(row) + "\n" for row in named))
    capsys.readouterr()
    assert main(["evaluate", str(out / "packed"), str(test), *columns, "--against", str(teacher)]) == 0
    output = capsys.readouterr().out
    headline = {"rougeL": "ROUGE-L", "bleu": "BLEU"}.get(HEADLINES.get(name, "rougeL"), HEADLINES.get(name))
    (line,) = [each for each in output.splitlines() if each.split()[:1] == [headline]]
    assert line.split()[1] == f"{read_record(student).score:.2f}"
    assert f" {read_record(teacher).score:.2f} " in line
    assert 0 < float(line.split()[-1]) <= 1
    for folder in (out / "onnxruntime", out / "ctranslate2") if "--export" in RUNS[name][1] else ():
        assert main(["evaluate", str(folder), str(test), *columns, "--threads", "1"]) == 0
        assert headline in capsys.readouterr().out


def test_what_is_wrong_with_an_evaluation_is_one_sentence(runs, tmp_path, capsys):
    def refused(name, *more, folder="packed", data=tmp_path / "pairs.jsonl"):
        model = runs(name) / folder
        capsys.readouterr()
        assert main(["evaluate", str(model), str(data), *more]) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        return printed

    write_pairs(tmp_path / "pairs.jsonl")
    assert "a classifier of texts" in refused("gpt2", "--text", "read", "--label", "read")
    assert "one of gpt2, where --text stands alone" in refused("bert", "--text", "read")
    of_texts = refused("bert", "--text", "read", "--label", "kind", "--beams", "2")
    assert "--beams: 2 is not allowed; it must be left out, for a class" in of_texts
    assert "--prefix: 'x: ' is not allowed; it must be left out" in refused("gpt2", "--text", "read", "--prefix", "x: ")
    assert "the model itself, packed or not" in refused("bert", "--text", "read", folder="onnxruntime")
    labels = refused("bert", "--text", "read", "--label", "write")
    assert re.search(r"pairs\.jsonl, row 1, write: '.*' is not allowed; it must be a class of \S+: dry, wet", labels)
    missing = refused("bart", *PAIRS, data=tmp_path / "no.jsonl")
    assert re.match(r"dqlib evaluate: data: '\S+no\.jsonl' .* a file that exists", missing)
    assert "folder: " in refused("bart", *PAIRS, folder="nothing")
    for option, value in (
        ("--documents", 0), ("--beams", -1), ("--beams", 1025), ("--target-tokens", 1000), ("--source-tokens", 4),
    ):  # fmt: skip
        assert f"dqlib evaluate: {option}: {value} is not allowed" in refused("bart", *PAIRS, option, str(value))
    for name, columns, threads in (
        ("bart", PAIRS, 0), ("bert", ("--text", "read", "--label", "kind"), -2), ("gpt2", ("--text", "read"), 1025),
    ):  # fmt: skip
        expected = f"threads: {threads} is not allowed; it must be from 1 to 1024"
        assert expected in refused(name, *columns, "--threads", str(threads))


def test_a_test_of_few_documents_is_refused_and_has_neither_interval_nor_p_value(runs, tmp_path, capsys, monkeypatch):
    out, texts = runs("gpt2"), write_pairs(tmp_path / "pairs.jsonl")
    columns = ("--text", "read", "--documents", "3")
    monkeypatch.setattr(corpus_rows, "LONGEST_DOCUMENT", 100_000)  # all texts are one document
    capsys.readouterr()
    assert main(["evaluate", str(out / "packed"), str(texts), *columns, "--against", str(out / "packed")]) == 0
    (line,) = [each for each in capsys.readouterr().out.splitlines() if each.split()[:1] == ["perplexity"]]
    assert len(line.split()) == 3  # the name, and two scores
    assert main(call(tmp_path, "gpt2", "--validation", texts, "--test", texts)) == 2
    sentence = r"--test: '1 documents' is not allowed; it must be at least 4, of [\d,]+ characters each"
    assert re.search(sentence, capsys.readouterr().err)


def test_models_of_other_tokenizers_are_compared_by_bits_per_byte(runs, tmp_path, capsys):
    out, texts = runs("gpt2"), write_pairs(tmp_path / "pairs.jsonl")
    other = shutil.copytree(out / "packed", tmp_path / "other")
    reconfigure(other, "tokenizer.json", normalizer={"type": "Replace", "pattern": {"String": " w"}, "content": ""})
    capsys.readouterr()
    assert main(["evaluate", str(out / "packed"), str(texts), "--text", "read", "--against", str(other)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"bits per byte.* [01]\.\d{4}\b", printed)
    assert not re.search(r"perplexity.* [01]\.\d{4}\b", printed)


@pytest.mark.parametrize("name", ["bart", "t5", "marian"])
def test_what_is_made_of_a_student_keeps_how_it_was_tested(name, runs, tmp_path):
    out = runs(name)
    tested = {"source_tokens": 24, "target_tokens": 8, "beams": 2}
    tested |= {"t5": {"prefix": "the "}, "marian": {"language": "ro"}}.get(name, {})
    assert main(["pack", str(out / "student"), str(tmp_path / "packed")]) == 0
    assert main(["export", str(out / "packed"), str(tmp_path / "fast"), "--engine", "ctranslate2"]) == 0
    made = [out / "student", out / "packed", tmp_path / "packed", tmp_path / "fast"]
    for folder in (*made, *(out / each for each in EXPORT[1:] if each in RUNS[name][1])):
        assert kept(folder) == tested
        assert dqlib.verify(folder) == []


def test_a_folder_in_which_settings_are_kept_is_at_no_time_unsound(runs, tmp_path, monkeypatch):
    folder = shutil.copytree(runs("bart") / "packed", tmp_path / "packed")
    before = contents(folder)

    def stopped(manifest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "text", stopped)  # the last thing that is written
        with pytest.raises(KeyboardInterrupt):
            keep(folder, {"beams": 3})
    assert contents(folder) == before
    assert not hidden(tmp_path)
    keep(folder, {"beams": 3})
    assert kept(folder) == {"beams": 3}
    assert dqlib.verify(folder) == []


def test_a_checkpoint_says_how_it_is_asked(tmp_path):
    folder = save_checkpoint("t5", tmp_path / "checkpoint")
    reconfigure(folder, task_specific_params={"summarization": {"prefix": "shorten: "}})
    reconfigure(folder, "generation_config.json", num_beams=3, max_length=22)
    given = arguments.Test(model=str(folder), data="", source="read", target="write", beams=2)
    asked = evaluate._asked(given, "seq2seq")
    assert (asked.prefix, asked.source_tokens, asked.target_tokens, asked.beams) == ("shorten: ", 24, 22, 2)


def test_a_classifier_keeps_its_head_and_the_order_of_its_classes(runs):
    folder, task, teacher, _ = trained(runs("bert"))
    assert task.corpus.labels == load_corpus(folder / "corpus").labels == list(CLASSES)
    theirs = read_model(runs("bert").parent / "checkpoint").classifier.weight
    assert torch.equal(read_model(teacher).classifier.weight, theirs)


def test_what_classify_writes_is_read_as_classes_that_have_no_names(tmp_path, capsys):
    folder, texts = save_checkpoint("bert", tmp_path / "model", id2label=None, label2id=None), tmp_path / "texts.jsonl"
    write_pairs(texts, 12)
    capsys.readouterr()
    assert main(["classify", str(folder), "--input", str(texts), "--text", "read"]) == 0
    (tmp_path / "labels.jsonl").write_text(capsys.readouterr().out)
    assert main(["evaluate", str(folder), str(tmp_path / "labels.jsonl"), "--text", "input", "--label", "label"]) == 0
    assert re.search(r"accuracy +100\.00", capsys.readouterr().out)


def test_the_same_command_makes_nothing_again(runs, capsys):
    out = runs("bart")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    capsys.readouterr()
    assert main(call(out.parent, "bart")) == 0
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert re.search(r"report\.html: rougeL \d+\.\d\d, teacher", output)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before
    (out.parent / "other.jsonl").touch()
    assert main([*call(out.parent, "bart"), "--train", str(out.parent / "other.jsonl")]) == 2
    assert "another folder, or the one of" in capsys.readouterr().err
    whole = (out / "arguments.json").read_text()
    for damaged in ("[]", "{", "{}", whole.replace('"chosen_steps": 4', '"chosen_steps": "4"')):
        (out / "arguments.json").write_text(damaged)
        assert main(call(out.parent, "bart")) == 2
        assert re.match(r"dqlib distill: \S+/arguments\.json: .* is not allowed", capsys.readouterr().err)
    (out / "arguments.json").write_text(whole)


def test_a_checkpoint_whose_weights_changed_is_taken_again(tmp_path):
    arguments = call(tmp_path, "bert", "--dry-run")
    assert main(arguments) == 0
    theirs, ours = (tmp_path / each / "model.safetensors" for each in ("checkpoint", "out/work/classes/pretrained"))
    before = ours.read_bytes()
    save_checkpoint("bert", tmp_path / "checkpoint", initializer_range=0.5)
    weights = read_model(theirs.parent).state_dict()
    assert main(arguments) == 0
    assert ours.read_bytes() != before
    assert all(torch.equal(value, weights[name]) for name, value in read_model(ours.parent).state_dict().items())


def test_ctrl_c_leaves_what_the_same_command_goes_on_from(tmp_path, capsys, monkeypatch):
    step = Trainer._take_step

    def stopped(trainer):
        if trainer._step == 27:
            raise KeyboardInterrupt
        step(trainer)

    arguments = call(tmp_path, "mbart")
    arguments[arguments.index("--steps") + 1] = "30"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_take_step", stopped)
        assert main(arguments) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "goes on after step 25" in output
    assert "testing the teacher" not in output
    assert read_record(trained(tmp_path / "out")[3]).train_steps == 30


def test_hours_become_steps_that_stay(tmp_path, capsys):
    arguments = call(tmp_path, "bart", "--dry-run", "--preset", "dqlib-sequence-level")  # labels are timed, too
    place = arguments.index("--steps")
    arguments[place : place + 2] = ["--hours", "0.02"]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    steps = int(re.search(r"([\d,]+) steps in 0.02 hours", output)[1].replace(",", ""))
    assert steps > 0
    for text in ("memory: at most ", "disk, checkpoints too: at most ", "the student, packed: "):
        assert text in output
    assert not list((tmp_path / "out").rglob("students"))
    assert not (tmp_path / "out" / "report.md").exists()
    asked = (tmp_path / "out" / "arguments.json").read_bytes()
    assert main([*arguments, "--batch-tokens", "100"]) == 0
    assert (tmp_path / "out" / "arguments.json").read_bytes() == asked  # an estimate changes no run
    arguments[place + 1] = "0.00001"
    assert main(arguments) == 2
    assert re.search(r"--hours: 1e-05 is not allowed; it must be at least 0\.\d+", capsys.readouterr().err)


def test_what_is_wrong_is_one_sentence_before_anything_is_trained(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments = call(tmp_path, "bart")
    capsys.readouterr()  # how far the checkpoint is written

    def refused(**changes):
        changed = list(arguments)
        for name, value in changes.items():
            place = {"checkpoint": 1, "out": 2}.get(name)
            if place is None:
                option = f"--{name.replace('_', '-')}"
                if option not in changed:
                    changed += [option, ""]
                place = changed.index(option) + 1
            changed[place] = str(value)
        assert main(changed) == 2
        output = capsys.readouterr().err
        assert output.startswith("dqlib distill: ")
        assert output.count("\n") == 1
        assert not list(tmp_path.rglob("teacher"))
        return output

    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").touch()
    (tmp_path / "few.jsonl").write_text("".join((tmp_path / "pairs.jsonl").read_text().splitlines(True)[:20]))
    assert "the folder of a snapshot in place of the name" in refused(checkpoint="no/such")
    assert "column: 'red' is not allowed; it must be one of read, write, kind" in refused(source="red")
    assert "--label: 'kind' is not allowed; it must be left out" in refused(label="kind")
    assert "encoder_layers: 9 is not allowed; it must be at most 3" in refused(config="2-2-8 9-1")
    few, all_pairs = tmp_path / "few.jsonl", tmp_path / "pairs.jsonl"
    second = {"train": few, "out": tmp_path / "out2"}
    assert "distill: --test: 0 " in refused(**second)
    assert "as many as a step reads" in refused(**second, batch_tokens=2000, validation=all_pairs, test=all_pairs)
    assert "out: " in refused(out=tmp_path / "else")
    assert "a file that exists" in refused(train=tmp_path / "nothing.csv", out=tmp_path / "out3")
    assert "preset: 'nothing'" in refused(out=tmp_path / "out2", preset="nothing")  # where nothing was made: no claim
    assert "--revision: 'main' is not allowed; it must be left out" in refused(revision="main")
    assert "--dataset-config: 'ro-en' is not allowed; it must be left out" in refused(dataset_config="ro-en")
    assert "distill: --source-tokens: 4 " in refused(source_tokens=4)
    assert "distill: --seed: -1 " in refused(seed=-1)
    bare = tmp_path / "bare"  # of which transformers makes a tokenizer that knows no word
    shutil.copytree(save_checkpoint("t5", tmp_path / "t5"), bare, ignore=shutil.ignore_patterns("*token*"))
    assert "its tokenizer: " in refused(checkpoint=bare, out=tmp_path / "out4")
    assert "d_kv: 6 is not allowed" in refused(checkpoint=tmp_path / "t5", out=tmp_path / "out4", export="onnxruntime")
    for folder, what in (("packed", "a packed model"), ("student", "a student")):
        sentence = f"a model in full precision, such as the teacher of this one, which is {what} already"
        assert sentence in refused(checkpoint=runs("bart") / folder, out=tmp_path / "out4")
    assert "--hours: inf" in refused(hours="inf")
    shutil.copytree(tmp_path / "checkpoint", odd := tmp_path / "odd")
    for content in ("[1]", "", '{"max_length": "128"}', '{"num_beams": "four"}', '{"decoder_start_token_id": [2]}'):
        (odd / "generation_config.json").write_text(content)
        assert "checkpoint" in refused(checkpoint=odd, out=tmp_path / "out4")
    (odd / "generation_config.json").unlink()
    whole = (odd / "config.json").read_text()
    for name, value in (("architectures", {"a": 1}), ("task_specific_params", "x")):
        (odd / "config.json").write_text(whole)
        reconfigure(odd, **{name: value})
        assert f"checkpoint, {name}" in refused(checkpoint=odd, out=tmp_path / "out4")
    assert "distill: --config: ''" in refused(config="")
    assert "--export: 'tensorrt'" in refused(export="tensorrt")
    with monkeypatch.context() as patch:
        patch.setattr("dqlib.study.distill.run.find_spec", lambda name: None)
        said = refused(export="onnxruntime")
    assert "must be installed, by pip install -e '.[engines]' in the project's folder" in said
    for option in ("beams", "source_tokens", "target_tokens", "batch_size"):
        assert f"--{option.replace('_', '-')}: 0 is not allowed; it must be at least 1" in refused(**{option: 0})
    assert re.search(
        r"--config: 'auto:1kB 2-2' .* at least auto:0\.\d+MB", refused(config="auto:1kB 2-2", out=tmp_path / "out5")
    )
    assert "distill: --preset: 'nothing'" in refused(preset="nothing")
    reconfigure(tmp_path / "checkpoint", "tokenizer_config.json", pad_token="<s>")
    assert "pad_token_id: 0 is not allowed; it must be 1, as in the model" in refused(out=tmp_path / "out4")


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="SentencePiece is installed")
@pytest.mark.parametrize("tokenizer_config", [None, {"tokenizer_class": "MarianTokenizer"}])
def test_a_tokenizer_whose_package_is_not_there_is_one_sentence(tokenizer_config, tmp_path, capsys):
    arguments = call(tmp_path, "marian")
    checkpoint = tmp_path / "checkpoint"
    vocabulary = AutoTokenizer.from_pretrained(checkpoint).get_vocab()
    for path in checkpoint.glob("*token*"):
        path.unlink()
    (checkpoint / "vocab.json").write_text(json.dumps(vocabulary))
    for name in ("source.spm", "target.spm"):  # as the checkpoints of Marian on the hub have them
        (checkpoint / name).write_bytes(b"pieces")
    if tokenizer_config is not None:
        (checkpoint / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    capsys.readouterr()
    assert main(arguments) == 2
    sentence = "one whose packages are installed: this one needs sentencepiece (pip install sentencepiece)."
    assert capsys.readouterr().err == (
        f"dqlib distill: checkpoint, its tokenizer: '{checkpoint}' is not allowed; it must be {sentence}\n"
    )
    assert not list(tmp_path.rglob("teacher"))


@pytest.mark.parametrize(
    ("error", "cause", "sentence"),
    [
        (ValueError("bad"), ModuleNotFoundError(name="tiktoken"), ": this one needs tiktoken (pip install tiktoken)."),
        (ImportError("It requires\nthe protobuf library"), None, " (It requires the protobuf library)."),
        (ValueError("no tiktoken in sentencepiece/"), None, " (no tiktoken in sentencepiece/)."),  # names, and no more
    ],
)
def test_a_package_is_missing_where_its_module_is_and_transformers_says_the_rest(
    error, cause, sentence, tmp_path, capsys, monkeypatch
):
    def load(*arguments):
        raise error from cause

    monkeypatch.setattr(parameters, "checked_tokenizer", load)
    assert main(call(tmp_path, "t5")) == 2
    assert capsys.readouterr().err.endswith(f"{sentence}\n")


def test_it_is_a_function_that_gives_the_scores(runs, monkeypatch):
    out = runs("gpt2")
    monkeypatch.chdir(out.parent)
    made = dqlib.distill(
        "checkpoint", "out", train="pairs.parquet.gz", config="2-2-8 0-2", text="read", steps=4, batch_tokens=400,
        documents=6,
    )  # fmt: skip
    assert made.student == read_record(trained(out)[3])
    assert made.retention == made.student.retention
    assert Path(made.out) == out


def test_a_checkpoint_on_the_hub_generates_as_its_own_file_says(tmp_path, monkeypatch):
    (tmp_path / "generation_config.json").write_text('{"num_beams": 2}')
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(checkpoint.huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert checkpoint.generation_settings("checkpoint", "someone/model") == {"num_beams": 2}
    (tmp_path / "generation_config.json").unlink()
    assert checkpoint.generation_settings("checkpoint", "someone/model") == {}


def test_both_models_are_loaded_before_one_is_tested(tmp_path, capsys, monkeypatch):
    call(tmp_path, "bart")
    shutil.copytree(tmp_path / "checkpoint", tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").write_bytes(b"")
    capsys.readouterr()
    monkeypatch.setattr(evaluate, "text_scores", lambda *_: pytest.fail("a model was tested"))
    texts = (tmp_path / "pairs.jsonl", "--source", "read", "--target", "write", "--documents", 2)
    assert main(list(map(str, ["evaluate", tmp_path / "checkpoint", *texts, "--against", tmp_path / "other"]))) == 2
    assert capsys.readouterr().err.startswith("dqlib evaluate: ")
