"""The paper's data sets and models as the hub has them, but tiny: schemas, file names, classes of model and tokenizer.

Nothing here reaches the hub: the profiles' names are replaced by folders with the layout of a snapshot.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import datasets
import huggingface_hub
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, List, Translation, Value
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForPreTraining,
    BertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
)
from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

from dqlib.errors import InputError
from dqlib.storage.students import load_student
from dqlib.study.corpora.corpus import build_corpus, load_corpus
from dqlib.study.corpora.tokenizer import checked_tokenizer, set_source_language, train_tokenizer
from dqlib.study.evaluation import words
from dqlib.study.evaluation.records import read_details, read_record
from dqlib.study.notebooks import show
from dqlib.study.params import checkpoint
from dqlib.study.params import settings as S
from dqlib.study.params.paths import PREDICTIONS, project_root
from dqlib.study.pipeline.plan import plan
from dqlib.study.pipeline.study import Study
from dqlib.study.report.tables import collect_training
from dqlib.study.training.batches import collate, encode
from tests.helpers.checkpoints import TEXT
from tests.helpers.folders import reconfigure

SIZES = {"train": 24, "validation": 6, "test": 6}

TINY = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "heads": 2, "ffn_dim": 16, "max_positions": 64}
#: The same in the configuration of a BART or an mBART.
SHAPE = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64,
}  # fmt: skip
CORPUS = {"source_tokens": 32, "target_tokens": 12}
LOOP = {"steps": 2, "batch_tokens": 400, "micro_batches": 2, "validations": 1}
EVALUATION = {"documents": 4, "validation_documents": 4, "bootstrap": 20}


def sentence(order, words=12):
    return " ".join(order.choices(TEXT.split(), k=words)).capitalize() + "."


def snapshot(folder, config, rows, features=None, files=None, subfolder=None):
    """A configuration of a data set as the hub has it since loading scripts are gone: Parquet by split, named in the
    README's head."""
    subfolder, readme = subfolder or config, folder / "README.md"
    named = []
    for split, each in rows.items():
        parts = (files or {}).get(split, 1)
        for part in range(parts):
            path = folder / subfolder / f"{split}-{part:05d}-of-{parts:05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            Dataset.from_list(each[part::parts], features=features).to_parquet(path)
        named.append({"split": split, "path": f"{subfolder}/{split}-*"})
    others = yaml.safe_load(readme.read_text().split("---")[1])["configs"] if readme.is_file() else []
    head = yaml.safe_dump({"configs": [*others, {"config_name": config, "data_files": named}]})
    readme.write_text(f"---\n{head}---\n# A data set\n")


def in_splits(make):
    return {split: [make(f"{split}{i}") for i in range(size)] for split, size in SIZES.items()}


def xsum(folder, order):
    rows = in_splits(lambda i: {"document": sentence(order, 30), "summary": sentence(order), "id": i})
    snapshot(folder, "default", rows, subfolder="data")


def cnn_dailymail(folder, order):
    make = lambda i: {"article": sentence(order, 40), "highlights": f"{sentence(order)}\n{sentence(order)}", "id": i}  # noqa: E731
    snapshot(folder, "3.0.0", in_splits(make), files={"train": 3})


def kilt_tasks(folder, order):
    """Questions whose outputs are lists of blocks: answers, and at last where the answer stands, without one."""
    text, number = Value("string"), Value("int32")
    where = {"bleu_score": Value("float32"), "start_paragraph_id": number, "title": text, "wikipedia_id": text,
             "meta": {"annotation_id": text, "evidence_span": List(text)}}  # fmt: skip
    output = List({"answer": text, "meta": {"score": number}, "provenance": List(where)})
    meta = {"left_context": text, "mention": text, "obj_surface": List(text)}
    features = Features({"id": text, "input": text, "meta": meta, "output": output})
    provenance = {"bleu_score": 0.5, "start_paragraph_id": 1, "title": "River", "wikipedia_id": "1",
                  "meta": {"annotation_id": "-1", "evidence_span": []}}  # fmt: skip

    def make(name):
        answers = [] if name.startswith("test") else [sentence(order), sentence(order)]
        outputs = [{"answer": answer, "meta": {"score": 3}, "provenance": []} for answer in answers]
        outputs.append({"answer": "", "meta": {"score": 0}, "provenance": [provenance]})
        nothing = {"left_context": "", "mention": "", "obj_surface": []}
        return {"id": name, "input": f"why {sentence(order, 5)}", "meta": nothing, "output": outputs}

    rows = in_splits(make)
    rows["train"] += [make(f"more{i}") for i in range(176)]
    snapshot(folder, "eli5", rows, features, {"train": 2})
    return [row for each in rows.values() for row in each]


def support_docs(folder, order, questions):
    folder.mkdir()
    for split in ("train", "validation"):
        lines = [
            {"id": row["id"], "input": row["input"], "output": [
                {"answer": sentence(order), "provenance": None},
                {"answer": None, "provenance": [{"wikipedia_id": "1", "text": sentence(order)} for _ in range(2)]},
            ]}
            for row in questions if row["id"].startswith(split)
        ]  # fmt: skip
        (folder / f"{split}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def wmt16(folder, order):
    rows = in_splits(lambda _: {"translation": {"ro": sentence(order), "en": sentence(order)}})
    snapshot(folder, "ro-en", rows, Features({"translation": Translation(["ro", "en"])}))


def byte_level(folder, order, special=()):
    """The files of a tokenizer of BART's or GPT-2's kind, a vocabulary and its merges; gives the vocabulary."""
    tokenizer, texts = ByteLevelBPETokenizer(), [sentence(order) for _ in range(200)]
    tokenizer.train_from_iterator(texts, vocab_size=400, special_tokens=list(special), show_progress=False)
    folder.mkdir()
    tokenizer.save_model(str(folder))
    return json.loads((folder / "vocab.json").read_text())


def bart(folder, order):
    """BART's files as in ``facebook/bart-base``, whose ``<mask>`` is the last token."""
    vocabulary = byte_level(folder, order, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    last = max(vocabulary, key=vocabulary.get)
    vocabulary[last], vocabulary["<mask>"] = vocabulary["<mask>"], vocabulary[last]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    config = BartConfig(vocab_size=len(vocabulary), **SHAPE, forced_bos_token_id=0, decoder_start_token_id=2)
    BartForConditionalGeneration(config).save_pretrained(folder)


def mbart(folder, order):
    """mBART's files as in ``facebook/mbart-large-cc25``: tokenizer.json, and no word on the tokenizer's class but the
    model's."""
    pieces = Tokenizer(models.Unigram())
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    pieces.train_from_iterator([sentence(order) for _ in range(200)], trainer)
    learned = [token for token, _ in json.loads(pieces.to_str())["model"]["vocab"][1:]]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *learned, *FAIRSEQ_LANGUAGE_CODES, "<mask>"]
    MBartTokenizer(vocab=[(token, 0.0) for token in tokens]).save_pretrained(folder)
    (folder / "tokenizer_config.json").unlink()
    config = MBartConfig(vocab_size=len(tokens), **SHAPE, scale_embedding=True)
    MBartForConditionalGeneration(config).save_pretrained(folder)
    assert {"tokenizer.json", "config.json"} <= {path.name for path in folder.iterdir()}


#: Columns of the texts and names of the classes of GLUE's data sets.
GLUE = {
    "cola": (["sentence"], ["unacceptable", "acceptable"]),
    "sst2": (["sentence"], ["negative", "positive"]),
    "mrpc": (["sentence1", "sentence2"], ["not_equivalent", "equivalent"]),
    "qqp": (["question1", "question2"], ["not_duplicate", "duplicate"]),
    "mnli": (["premise", "hypothesis"], ["entailment", "neutral", "contradiction"]),
    "qnli": (["question", "sentence"], ["entailment", "not_entailment"]),
    "rte": (["sentence1", "sentence2"], ["entailment", "not_entailment"]),
}


def glue(folder, order):
    """The data sets of ``nyu-mll/glue``: classes have names, and test splits have the class -1."""
    for config, (columns, labels) in GLUE.items():
        features = dict.fromkeys(columns, Value("string"))
        features |= {"label": ClassLabel(names=labels), "idx": Value("int32")}
        splits = {"train": 40, "validation": 6, "test": 6}
        if config == "mnli":
            parts = [f"{part}_{kind}" for part in ("validation", "test") for kind in ("matched", "mismatched")]
            splits = {"train": 60, **dict.fromkeys(parts, 6)}
        rows = {
            split: [
                {name: sentence(order) for name in columns}
                | {"label": -1 if split.startswith("test") else i % len(labels), "idx": i}
                for i in range(count)
            ]
            for split, count in splits.items()
        }
        snapshot(folder, config, rows, Features(features))


def running_text(folder, order, column, config):
    """Lines of texts, some of them empty, as in ``Salesforce/wikitext`` and ``ptb-text-only/ptb_text_only``."""
    rows = {
        split: [{column: text} for text in (f" = {split} = \n", "", *(sentence(order) for _ in range(count)))]
        for split, count in SIZES.items()
    }
    snapshot(folder, config, rows)


def renamed(folder, new_name):
    """Give the weights of a checkpoint other names, as old checkpoints have them."""
    weights = {new_name(name): value for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def bert(folder, order):
    """BERT's files as in ``google-bert/bert-base-uncased``: LayerNorms have a gamma and a beta, two heads."""
    words = sorted({*TEXT.split(), ".", *"abcdefghijklmnopqrstuvwxyz"})
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    BertTokenizer(str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    config = BertConfig(vocab_size=len(words) + 5, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=64)  # fmt: skip
    BertForPreTraining(config).save_pretrained(folder)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed(folder, lambda name: re.sub("|".join(old), lambda found: old[found[0]], name))


def gpt2(folder, order):
    """GPT-2's files as in ``openai-community/gpt2``: one special token, the last, and names without a prefix."""
    vocabulary = byte_level(folder, order)
    end = vocabulary["<|endoftext|>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    config = GPT2Config(vocab_size=len(vocabulary), n_embd=16, n_layer=2, n_head=2, n_inner=16, n_positions=64,
                        bos_token_id=end, eos_token_id=end)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    renamed(folder, lambda name: name.removeprefix("transformer."))


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """The ``paper`` profiles with folders in place of names, and smaller sizes."""
    folder = tmp_path_factory.mktemp("paper")
    order = random.Random(0)
    xsum(folder / "xsum", order)
    cnn_dailymail(folder / "cnn_dailymail", order)
    questions = kilt_tasks(folder / "kilt_tasks", order)
    support_docs(folder / "lfqa_support_docs", order, questions)
    wmt16(folder / "wmt16", order)
    bart(folder / "bart-base", order)
    mbart(folder / "mbart-large-cc25", order)
    glue(folder / "glue", order)
    bert(folder / "bert-base-uncased", order)
    running_text(folder / "wikitext", order, "text", "wikitext-2-raw-v1")
    running_text(folder / "ptb_text_only", order, "sentence", "penn_treebank")
    gpt2(folder / "gpt2", order)
    (folder / "dvc.yaml").touch()
    for profile in ("paper", "paper-cnn", "paper-glue", "paper-gpt2"):
        params = yaml.safe_load((project_root() / "profiles" / f"{profile}.yaml").read_text())
        for task in (value for value in params.values() if isinstance(value, dict) and "corpus" in value):
            smaller(task)
        (folder / f"{profile}.yaml").write_text(yaml.safe_dump(params))
    return folder


def smaller(task):
    corpus, model = task["corpus"], task["model"]
    named = ((corpus, "dataset"), (corpus, "tokenizer"), (model, "pretrained"), (corpus.get("support"), "dataset"))
    for block, key in named:
        if block:
            block[key] = block[key].partition("/")[2]
    kinds = {"bert": ("encoder_layers", "2-2-8_1-0"), "gpt2": ("decoder_layers", "2-2-8_0-1")}
    corpus |= CORPUS | {"vocab_size": 400}
    model |= TINY
    only, config = kinds.get(model.get("architecture"), (None, "2-2-8_2-1"))
    if only:
        del corpus["target_tokens"]
        model |= dict.fromkeys({"encoder_layers", "decoder_layers"} - {only}, 0)
    task["finetune"] |= LOOP
    task["distill"] |= LOOP
    task["evaluate"] |= EVALUATION
    task["configs"] = [config]


@pytest.fixture
def there(snapshots, tmp_path, monkeypatch):
    monkeypatch.chdir(snapshots)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(checkpoint, "_reachable", lambda: pytest.fail("the hub was asked for"))
    monkeypatch.setattr(words, "STEPS", 5)
    return snapshots


@pytest.mark.parametrize(
    ("profile", "task", "config", "headline", "architecture"),
    [
        ("paper", "summarization", "2-2-8 2-1", "rougeL", "bart"),
        ("paper", "eli5", "2-2-8 2-1", "rougeL", "bart"),
        ("paper", "translation", "2-2-8 2-1", "bleu", "mbart"),
        ("paper-cnn", "summarization", "2-2-8 2-1", "rougeL", "bart"),
        ("paper-glue", "cola", "2-2-8 1-0", "accuracy", "bert"),  # two classes of a text
        ("paper-glue", "mnli", "2-2-8 1-0", "accuracy", "bert"),  # and three of a pair
        ("paper-gpt2", "wikitext2", "2-2-8 0-1", "perplexity", "gpt2"),
        ("paper-gpt2", "ptb", "2-2-8 0-1", "perplexity", "gpt2"),
    ],
)
def test_every_experiment_runs_from_snapshots_to_test_scores(there, profile, task, config, headline, architecture):
    study = Study(f"{profile}.yaml", task)
    teacher, student = study.teacher(), study.student(config)
    model, corpus = load_student(student), load_corpus(study.folders.corpus)
    assert model.config.model_type == architecture
    rows, documents = corpus.splits["train"], 1 if headline == "perplexity" else 4  # running text is one document
    for made in (teacher, student):
        row, metrics = read_record(made), {detail.metric for detail in read_details(made)}
        lines = (made / PREDICTIONS).read_text(encoding="utf-8").splitlines()
        assert (row.headline, row.n_test, len(lines)) == (headline, documents, documents)
        if headline == "accuracy":
            assert row.mcc is not None
            assert ("f1_positive" in metrics) == (task == "cola")
        if headline == "perplexity":
            assert 1 < row.perplexity < 10_000
    if headline == "accuracy":
        assert list(AutoConfig.from_pretrained(teacher).id2label.values()) == GLUE[task][1]
    elif headline == "perplexity":
        assert "= train =" in rows[0]["source"]
    elif task == "translation":
        assert model.generation_config.decoder_start_token_id == corpus.tokenizer.convert_tokens_to_ids("ro_RO")
        assert corpus.tokenizer.src_lang == "en_XX"
    elif task == "eli5":
        assert corpus.info["sizes"] == {"train": 22, "validation": 2, "test": 6}  # those with a support document
        assert rows[0]["source"].startswith("question: why ")
        assert rows[0]["source"].count("<P> ") == 2
    else:
        assert len(rows) == SIZES["train"]


def test_a_corpus_of_glue_has_its_texts_and_classes(there, tmp_path):
    for task, (columns, labels) in GLUE.items():
        build_corpus(S.load_settings("paper-glue.yaml").task(task).corpus, tmp_path / task, kind="classification")
        corpus = load_corpus(tmp_path / task)
        assert corpus.labels == labels  # in the order of the data set: the second one is what F1 is of
        assert corpus.info["sizes"]["test"] == 6  # of the validation split, whose classes are public
        assert ("second" in corpus.splits["train"][0]) == (len(columns) == 2)


def test_mbart_reads_its_language_last_and_writes_from_the_target_s(there):
    tokenizer = checked_tokenizer("mbart-large-cc25")
    set_source_language(tokenizer, "en")
    tokenizer.save_pretrained(there / "saved")
    en, ro = (tokenizer.convert_tokens_to_ids(code) for code in ("en_XX", "ro_RO"))
    corpus = S.Corpus("wmt", "hub", 400, 8, 8, dataset="d", languages=["ro"], source_language="en")
    rows = [{"source": f"the {'stone ' * n}", "target": f"old {'wind ' * n}", "language": "ro"} for n in (1, 40)]
    for each in (tokenizer, checked_tokenizer(there / "saved")):
        short, long = encode(rows, each, corpus)
        assert short.source[-2:] == long.source[-2:] == [2, en]
        assert short.target[-1] == long.target[-1] == 2
        assert (len(long.source), len(long.target)) == (8, 8)
        assert not {en, ro, 0} & set(short.target + long.target)
        batch = collate([short, long])
        assert batch.decoder_input_ids[:, 0].tolist() == [ro, ro]
        assert batch.labels[1].tolist()[-1] == 2
    with pytest.raises(InputError, match="source_language: None"):
        set_source_language(tokenizer, None)
    with pytest.raises(InputError, match="language: 'pl'"):
        encode([rows[0] | {"language": "pl"}], tokenizer, corpus)


def test_bart_s_texts_stand_between_its_tokens_and_mask_is_its_last(there):
    tokenizer = checked_tokenizer("bart-base")
    assert type(tokenizer) is type(AutoTokenizer.from_pretrained("bart-base"))
    assert tokenizer.mask_token_id == len(tokenizer) - 1
    corpus = S.Corpus("xsum", "hub", 400, 8, 8, dataset="d")
    (example,) = encode([{"source": "the stone " * 20, "target": "old wind"}], tokenizer, corpus)
    assert (example.source[0], example.source[-1], len(example.source)) == (0, 2, 8)
    assert (example.target[0], example.target[-1], example.start) == (0, 2, 2)


def test_a_tokenizer_without_a_token_that_its_kind_needs_is_refused(tmp_path):
    train_tokenizer(["one two three"], 300, 16).save_pretrained(tmp_path)
    reconfigure(tmp_path, "tokenizer_config.json", pad_token=None)
    with pytest.raises(InputError, match=r"pad_token_id: None .* must be given, for a text from a text"):
        checked_tokenizer(tmp_path)


def bare(name):
    """The parameters of the profile ``paper`` under another name, without what checkpoints say themselves."""
    params = yaml.safe_load(Path("paper.yaml").read_text()) | {"profile": name}
    for task in (params[task] for task in S.TASKS if task in params):
        for key in (*S.SIZES, "architecture"):
            task["model"].pop(key, None)
        for key in ("vocab_size", "tokenizer", "tokenizer_revision"):
            del task["corpus"][key]
    return params


def test_shape_vocabulary_and_tokenizer_of_a_checkpoint_need_not_be_given(there):
    params = bare("bare")
    whole, short = S.load_settings("paper.yaml"), S.settings_of(params)
    for task in whole.tasks:
        ours, theirs = short.task(task), whole.task(task)
        assert (ours.model, ours.corpus.tokenizer) == (theirs.model, theirs.corpus.tokenizer)
        vocabulary = json.loads((there / ours.model.pretrained / "config.json").read_text())["vocab_size"]
        assert ours.corpus.vocab_size == vocabulary
    params["summarization"]["model"]["heads"] = 4
    with pytest.raises(InputError, match=r"summarization\.model\.heads: 4 .* 2, as in the model 'bart-base'"):
        S.settings_of(params)
    params["summarization"]["model"] = {"pretrained": "xsum"}
    with pytest.raises(InputError, match=r"summarization\.model\.pretrained: 'xsum' .* folder of a snapshot"):
        S.settings_of(params)
    (there / "xsum" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match=r"model\.pretrained: 'xsum' .* bart, mbart, marian, t5; it is of 'bert'"):
        S.settings_of(params)
    (there / "xsum" / "config.json").unlink()


def test_a_checkpoint_that_is_fine_tuned_already_is_the_teacher_as_it_is(there):
    params = {name: block for name, block in bare("tuned").items() if name not in ("eli5", "translation")}
    params["summarization"]["finetune"] = None
    study = Study("tuned.yaml", "summarization", S.settings_of(params))
    teacher = AutoModelForSeq2SeqLM.from_pretrained(study.teacher())
    theirs = AutoModelForSeq2SeqLM.from_pretrained("bart-base").state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in teacher.state_dict().items())
    row = read_record(study.folders.teacher)
    assert (row.role, row.preset, row.train_steps, row.n_test) == ("teacher", "checkpoint", 0, 4)
    planned = {each.name: each.steps for each in plan(study.settings).trainings}
    assert planned == {"summarization: teacher, as it is": 0, "summarization: 2-2-8 2-1 dq-bart": 2}
    assert not show.curves(study.folders.teacher, ["task", "validation_loss"]).axes[0].lines
    assert study.student("2-2-8 2-1")
    logs = collect_training([study])
    assert logs.groupby("model").step.max().to_dict() == {"teacher": 0, "2-2-8 2-1": 2}


@pytest.mark.parametrize("block", ["corpus.dataset", "corpus.tokenizer", "model.pretrained"])
def test_without_a_network_a_profile_fails_at_once_and_says_what_to_do(there, tmp_path, monkeypatch, block):
    monkeypatch.undo()
    monkeypatch.chdir(there)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    checkpoint._reachable.cache_clear()
    part, key = block.split(".")
    params = yaml.safe_load(Path("paper.yaml").read_text()) | {"profile": f"offline-{key}"}
    params["summarization"][part][key] = "nobody/nothing"
    began = time.monotonic()
    try:
        with pytest.raises(InputError, match=rf"^{block}: 'nobody/nothing' .* snapshot .* cannot be reached") as caught:
            Study("offline.yaml", "summarization", S.settings_of(params)).pretrained()
    finally:
        checkpoint._reachable.cache_clear()
    assert time.monotonic() - began < 20
    assert "\n" not in str(caught.value)
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_columns_are_paths_and_wrong_ones_are_told(there, tmp_path):
    corpus = S.load_settings("paper.yaml").task("eli5").corpus
    with pytest.raises(InputError, match=r"corpus\.column: 'output\.reply' .* input, .*output\.answer"):
        build_corpus(replace(corpus, target="output.reply"), tmp_path / "c")
    with pytest.raises(InputError, match=r"corpus\.dataset: 'kilt_tasks' .* folder of a snapshot"):
        build_corpus(replace(corpus, dataset_config="eli6"), tmp_path / "c")


MEASURED = """
import json, resource, sys
from pathlib import Path
from dqlib.study.pipeline.jobs import run_job
from dqlib.study.params.settings import load_settings
run_job(load_settings("long.yaml"), "finetune", "summarization")
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


@pytest.mark.slow
def test_training_needs_no_more_memory_for_ten_times_the_documents(tmp_path):
    order = random.Random(0)
    peaks = []
    for count in (3_000, 30_000):
        folder = tmp_path / str(count)
        corpus = folder / "runs" / "long" / "summarization" / "corpus"
        corpus.mkdir(parents=True)
        (folder / "dvc.yaml").touch()
        texts = [sentence(order, 100) for _ in range(300)]
        for split, rows in {"train": count, "validation": 100, "test": 20}.items():
            with (corpus / f"{split}.jsonl").open("w") as file:
                for i in range(rows):
                    file.write(json.dumps({"source": f"{i} {texts[i % 300]}", "target": f"{texts[i % 7][:50]}"}) + "\n")
        train_tokenizer(texts, 400, 200).save_pretrained(corpus / "tokenizer")
        (corpus / "corpus.json").write_text(json.dumps({"name": "long", "sha256": str(count)}))
        task = {
            "corpus": {"name": "long", "origin": "hub", "dataset": "none", "vocab_size": 400, "source_tokens": 160,
                       "target_tokens": 32},
            "model": TINY | {"max_positions": 160}, "pretrain": None, "configs": ["2-2-8_2-1"],
            "finetune": {**LOOP, "learning_rate": 0.001, "steps": 3, "batch_tokens": 4000},
            "distill": {**LOOP, "learning_rate": 0.001}, "evaluate": EVALUATION,
        }  # fmt: skip
        params = {"profile": "long", "results": "r", "compute": {"processes": 1}, "summarization": task}
        (folder / "long.yaml").write_text(yaml.safe_dump(params))
        done = subprocess.run(
            [sys.executable, "-c", MEASURED], check=True, capture_output=True, text=True, cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
                              "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        peaks.append(int(done.stdout.splitlines()[-1]))
        assert len(list((folder / "runs/long/summarization/tokens").glob("train-*/*.arrow"))) == -(-count // 10_000)
        shutil.rmtree(folder)
    assert peaks[1] <= 1.1 * peaks[0], peaks
