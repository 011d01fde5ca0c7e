"""A packed model is one of transformers' own: ``from_pretrained``, ``save_pretrained`` and ``push_to_hub`` know it."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers.utils
from huggingface_hub import ModelCard, constants
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from dqlib.errors import InputError
from dqlib.storage import registered
from dqlib.storage.manifest import MANIFEST, WEIGHTS, packed_size_bytes, verify
from dqlib.storage.packed import load_packed, save_packed
from tests.helpers.folders import flip, reconfigure
from tests.helpers.models import ASYMMETRIC, CASES, data_of, make_teacher
from tests.helpers.packed import files_of, logits, trained

AUTO = {
    "bert": AutoModelForMaskedLM,
    "bert-classifier": AutoModelForSequenceClassification,
    "gpt2": AutoModelForCausalLM,
}
REVISION = 40 * "a"


@pytest.fixture(scope="module")
def bart():
    return trained(preset="dqlib")


@pytest.fixture
def folder(bart, tmp_path):
    save_packed(bart, tmp_path / "packed")
    return tmp_path / "packed"


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        *((name, "dqlib") for name in CASES),
        ("bart", "dq-bart-faithful"),  # whose head is not quantized
        ("gpt2", ASYMMETRIC),
    ],
)
def test_an_auto_class_reads_a_packed_folder_as_load_packed_does(name, preset, tmp_path, caplog):
    student = trained(name, preset)
    save_packed(student, tmp_path / "packed")
    model, report = AUTO.get(name, AutoModelForSeq2SeqLM).from_pretrained(tmp_path / "packed", output_loading_info=True)
    assert not any(report.values()), report
    assert not [each for each in caplog.records if each.levelname != "INFO"]
    assert not model.training
    assert torch.equal(logits(model, name), logits(student, name))
    ours = load_packed(tmp_path / "packed")
    assert model.all_tied_weights_keys == ours.all_tied_weights_keys
    assert model.quantization_method == ours.quantization_method == "dqlib"
    state = ours.state_dict()
    assert all(torch.equal(value, state.pop(key)) for key, value in model.state_dict().items())
    assert not state
    for i, each in enumerate((model, ours)):
        each.save_pretrained(tmp_path / str(i))
        assert files_of(tmp_path / str(i)) == files_of(tmp_path / "packed")
        assert verify(tmp_path / str(i)) == []


@pytest.mark.parametrize("first", [pytest.param("dqlib", marks=pytest.mark.slow), "transformers"])
def test_whichever_is_imported_first(first, folder):
    code = f"""
import {first}
from transformers import AutoModelForSeq2SeqLM
if {first!r} == "transformers":
    try:
        AutoModelForSeq2SeqLM.from_pretrained({str(folder)!r})
    except Exception as error:
        assert "which transformers reads after 'import dqlib'" in str(error), error
    else:
        assert False, "it is read without dqlib"
    import dqlib
print(type(AutoModelForSeq2SeqLM.from_pretrained({str(folder)!r})).__name__)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.stdout.strip() == "BartForConditionalGeneration", ended.stderr


def in_a_cache(packed, cache, *left_out):
    """A repository of the hub as huggingface_hub keeps it after a download."""
    snapshot = cache / "models--someone--small" / "snapshots" / REVISION
    shutil.copytree(packed, snapshot, ignore=shutil.ignore_patterns(*left_out))
    (cache / "models--someone--small" / "refs").mkdir()
    (cache / "models--someone--small" / "refs" / "main").write_text(REVISION)
    return {"cache_dir": cache, "local_files_only": True}


def test_a_repository_of_the_hub_is_read_and_its_manifest_fetched(bart, folder, tmp_path, monkeypatch):
    options = in_a_cache(folder, tmp_path / "cache", MANIFEST)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def no_access(*_, **__):
        raise OSError("401 of\nhuggingface.co")

    monkeypatch.setattr(transformers.utils, "cached_file", no_access)
    with pytest.raises(InputError, match=r"^model: 'someone/small \(401 of huggingface\.co\)' .* log in first"):
        AutoModelForSeq2SeqLM.from_pretrained("someone/small", **options)
    asked = []

    def fetched(name, file, *, revision, cache_dir, subfolder):
        asked.append((name, file))
        assert not subfolder
        target = cache_dir / "models--someone--small" / "snapshots" / revision / file
        shutil.copyfile(folder / file, target)

    monkeypatch.setattr(transformers.utils, "cached_file", fetched)
    model = AutoModelForSeq2SeqLM.from_pretrained("someone/small", **options)
    assert asked == [("someone/small", MANIFEST), ("someone/small", "generation_config.json")]
    assert torch.equal(logits(model), logits(bart))
    AutoModelForSeq2SeqLM.from_pretrained("someone/small", **options)
    assert len(asked) == 2  # it is in the cache


@pytest.mark.parametrize("load", [load_packed, AutoModelForSeq2SeqLM.from_pretrained])
def test_push_to_hub_uploads_the_packed_model(load, folder, tmp_path, monkeypatch):
    uploaded = {}

    def create_commit(operations, **_):
        for each in operations:
            with each.as_file() as stream:
                uploaded[each.path_in_repo] = stream.read()

    hub = SimpleNamespace(create_repo=lambda name, **_: SimpleNamespace(repo_id=name), create_commit=create_commit)
    monkeypatch.setattr(transformers.utils.hub, "hf_api", lambda: hub)
    monkeypatch.setattr(transformers.utils.hub, "create_and_tag_model_card", lambda *_, **__: ModelCard("---\n---\n"))
    load(folder).push_to_hub("someone/small")
    assert uploaded.pop("README.md")
    assert uploaded == files_of(folder)
    assert sum(len(uploaded[name]) for name in (WEIGHTS, MANIFEST)) == packed_size_bytes(folder)
    with pytest.raises(InputError, match=r"^push_to_hub: True .* model\.push_to_hub"):
        load(folder).save_pretrained(tmp_path / "else", push_to_hub=True)


def test_what_stood_in_the_folder_stays_unless_it_could_be_read_for_the_packed_model(bart, folder, tmp_path):
    make_teacher("bart").save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "notes.txt").write_text("mine")
    load_packed(folder).save_pretrained(tmp_path / "other")
    assert files_of(tmp_path / "other") == files_of(folder) | {"notes.txt": b"mine"}
    assert torch.equal(logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "other")), logits(bart))


# --- what is wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # safetensors sorts by type and name: the last byte is of packed codes
        (lambda folder: flip(folder / WEIGHTS, -1), r"^model\.\S+\.codes: 'CRC-32 \d+' .* the file is damaged"),
        (lambda folder: reconfigure(folder, "config.json", d_model=32), "SHA-256|shape"),
        (lambda folder: (folder / MANIFEST).unlink(), "written by save_packed"),
        (lambda folder: (folder / "more.pkl").touch(), "more.pkl"),
    ],
)
def test_a_folder_that_load_packed_refuses_is_refused(change, message, folder):
    change(folder)
    for load in (load_packed, AutoModelForSeq2SeqLM.from_pretrained):
        with pytest.raises(InputError, match=message):
            load(folder)


def test_what_a_packed_model_is_not_is_told_in_one_sentence(bart, folder):
    read, to_disk = AutoModelForSeq2SeqLM.from_pretrained, {"model": "cpu", "lm_head": "disk"}
    assert torch.equal(logits(read(folder, device_map="cpu")), logits(bart))  # as accelerate places it
    for call, message in (
        (lambda: AutoModel.from_pretrained(folder), r"^class: 'BartModel' .* BartForConditionalGeneration"),
        (lambda: read(folder, dtype=torch.bfloat16), r"^dtype: 'torch.bfloat16' .* torch\.float32"),
        (lambda: read(folder, device_map=to_disk), r"^device_map: .* not left on the disk"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    with pytest.raises(ValueError, match="pre-quantized"):
        registered.PackedReader(registered.PackedConfig(), pre_quantized=False)
    content = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert content == {"quant_method": "dqlib"}
    reconfigure(folder, "config.json", quantization_config=content | {"bits": 3})
    with pytest.raises(InputError, match=r"quantization_config: .* as dqlib packed it"):
        load_packed(folder)


def test_a_packed_model_is_not_trained(folder, tmp_path):
    options = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    for load in (load_packed, BartForConditionalGeneration.from_pretrained):
        with pytest.raises(ValueError, match="attach trainable adapters"):
            Trainer(load(folder), options)


def test_adapters_of_peft_are_trained_and_saved_beside_a_packed_model(folder, tmp_path):
    peft = pytest.importorskip("peft")
    model = BartForConditionalGeneration.from_pretrained(folder)
    before = logits(model)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    assert not torch.equal(logits(model), before)
    Trainer(model, TrainingArguments(str(tmp_path), report_to=[], use_cpu=True))
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / WEIGHTS).exists()
    again = BartForConditionalGeneration.from_pretrained(folder)
    again.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("load", [load_packed, BartForConditionalGeneration.from_pretrained])
def test_a_model_of_peft_is_trained_on_codes_that_stay_as_they_are(load, bart, folder, tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(load(folder), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    data = data_of("bart")
    columns = data.inputs | {"labels": data.labels}
    rows = [{name: value[i] for name, value in columns.items()} for i in range(len(data.labels))]
    options = TrainingArguments(
        str(tmp_path / "checkpoints"), report_to=[], use_cpu=True, max_steps=2, learning_rate=0.1, save_strategy="no"
    )
    Trainer(model, options, train_dataset=rows).train()
    model.eval().save_pretrained(tmp_path / "adapter")
    after = logits(model)
    assert not torch.equal(after, logits(bart))
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(bart))
    again = peft.PeftModel.from_pretrained(load(folder), tmp_path / "adapter").eval()
    assert torch.equal(logits(again), after)
    with pytest.raises(InputError, match=r"'changed' is not allowed; it must be as load_packed gave it"):
        save_packed(again.merge_and_unload(), tmp_path / "merged")
