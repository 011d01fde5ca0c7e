"""A packed model is the student that was evaluated, in the bytes that are claimed, or a clear error."""

import errno
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    pipeline,
)

from dqlib.config import Config
from dqlib.errors import InputError
from dqlib.layers import QuantLinear
from dqlib.quantizers import quantize
from dqlib.storage import packed as packed_module
from dqlib.storage.account import account
from dqlib.storage.footprint import footprint, size_bytes
from dqlib.storage.live import stored
from dqlib.storage.manifest import MANIFEST, WEIGHTS, File, Manifest, opened, packed_size_bytes, verify
from dqlib.storage.packed import load_packed, load_tokenizer, save_packed
from dqlib.storage.stored import PackedWeight, checksum, record
from dqlib.student import quantize_model, round_for_storage, set_blend
from dqlib.study.corpora.tokenizer import train_tokenizer
from dqlib.study.params.paths import project_root
from tests.helpers.folders import reseal
from tests.helpers.models import ASYMMETRIC, CASES, FOUR_LEVELS, LSQ, make_teacher, student_of
from tests.helpers.packed import files_of, kept, logits, trained

STUDENTS = [
    ("bart", "dqlib-ternary", "2-2-8"),
    *((name, "quantgpt", ("1-1-8", "2-1-4", "3-5-8", "8-8-8", "6-7-8")[i % 5]) for i, name in enumerate(CASES)),
    *((name, ASYMMETRIC, bits) for name, bits in (("bart", "2-2-8"), ("gpt2", "8-4-8"))),
    *((name, LSQ, bits) for name, bits in (("mbart", "2-7-32"), ("gpt2", "3-3-8"))),
    ("bart", "dqlib", "2-2-8"),
    *((name, FOUR_LEVELS, bits) for name, bits in (("t5", "2-2-8"), ("gpt2", "2-1-8"))),
    ("bart", "dq-bart-faithful", "2-2-8"),
    ("mbart", "dq-bart-faithful", "32-8-8"),
    ("marian", "xtc", "1-2-8"),
    ("marian", "dqlib", "32-32-8"),  # without quantized weights; a folder leaves its sinusoids out
    ("bert", "dq-bart", "2-3-8"),
]
EVERY = pytest.mark.parametrize(
    ("name", "preset", "bits"),
    STUDENTS,
    ids=[f"{name} {getattr(preset, 'name', preset)} {bits}" for name, preset, bits in STUDENTS],
)


@pytest.fixture(scope="module")
def bart():
    return trained()


@pytest.fixture
def folder(bart, tmp_path):
    save_packed(bart, tmp_path / "packed")
    return tmp_path / "packed"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["return the sum of all numbers"] * 4, 60 + 240, 24)


@pytest.fixture(scope="module")
def described():
    """The reader in the description of the format."""
    text, names = (project_root() / "docs" / "packed-format.md").read_text(), {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], names)
    return names["read"]


# --- the same model


@EVERY
def test_a_packed_model_is_the_student_bit_for_bit_in_the_bytes_that_are_counted(
    name, preset, bits, described, tmp_path
):
    student = trained(name, preset, bits)
    _, loaded = kept(student, name, tmp_path)
    if CASES[name].generates:
        assert loaded.generation_config.to_dict() == student.generation_config.to_dict()
    state, read = loaded.state_dict(), described(tmp_path / "packed")
    assert read.keys() == state.keys()
    assert all(np.array_equal(read[key], value.numpy()) for key, value in state.items())

    tensors = load_file(tmp_path / "packed" / WEIGHTS)
    assert size_bytes(student) == sum(tensor.nbytes for tensor in tensors.values())
    assert footprint(student) == footprint(loaded)
    on_disk = sum((tmp_path / "packed" / file).stat().st_size for file in (WEIGHTS, MANIFEST))
    assert packed_size_bytes(tmp_path / "packed") == account(tmp_path / "packed").total.size_bytes == on_disk
    assert verify(tmp_path / "packed") == []


def test_tied_tables_are_one_again_and_a_head_in_full_precision_stays_apart_from_the_quantized_table(folder, tmp_path):
    tied = load_packed(folder)
    tables = (tied.model.shared, tied.model.encoder.embed_tokens, tied.model.decoder.embed_tokens, tied.lm_head)
    assert len({id(table.weight) for table in tables}) == 1
    assert isinstance(tied.lm_head, QuantLinear)
    names = load_file(folder / WEIGHTS).keys()
    assert not [name for name in names if "embed_tokens" in name or "lm_head" in name]

    save_packed(trained("bart", "dq-bart-faithful"), tmp_path / "apart")
    loaded = load_packed(tmp_path / "apart")
    assert type(loaded.lm_head) is torch.nn.Linear  # its inputs are not rounded either
    assert loaded.lm_head.weight is not loaded.model.shared.weight
    assert len(loaded.model.shared.weight[5].unique()) == 3
    assert len(loaded.lm_head.weight[5].unique()) > 3
    loaded.save_pretrained(tmp_path / "plain")
    plain = type(loaded).from_pretrained(tmp_path / "plain")
    assert torch.equal(plain.lm_head.weight, loaded.lm_head.weight)
    assert torch.equal(plain.model.decoder.embed_tokens.weight, loaded.model.shared.weight)


@pytest.mark.parametrize(
    ("name", "task"),
    [("bart", "feature-extraction"), ("gpt2", "text-generation"), ("bert", "fill-mask"),
      ("bert-classifier", "text-classification")],
)  # fmt: skip
def test_the_pipelines_that_the_documentation_names_take_a_packed_model(name, task, tokenizer, tmp_path):
    assert f"`{task}`" in (project_root() / "docs" / "small-file.md").read_text()
    case = CASES[name]
    config = type(case.config).from_dict(case.config.to_dict() | {"vocab_size": len(tokenizer)})
    student = quantize_model(case.model(config), Config.parse("2-2-8 " + case.depths)).eval()
    round_for_storage(student)
    save_packed(student, tmp_path / "packed", tokenizer)
    assert verify(tmp_path / "packed") == []
    inputs = load_packed(tmp_path / "packed"), load_tokenizer(tmp_path / "packed")
    assert inputs[1]("the sum of all").input_ids == tokenizer("the sum of all").input_ids
    options = {"max_new_tokens": 3} if task == "text-generation" else {}
    text = "the sum" + tokenizer.mask_token * (task == "fill-mask")
    assert pipeline(task, model=inputs[0], tokenizer=inputs[1], **options)(text)
    if task == "text-classification":  # whose auto class is that of the packed model
        assert pipeline(task, model=str(tmp_path / "packed"))(text)[0]["label"].startswith("LABEL_")


def test_zero_points_take_the_smallest_type_that_holds_them():
    torch.manual_seed(0)
    for shift, kind in ((-0.5, torch.int8), (10.0, torch.int16), (1e4, torch.int32)):
        quantized = quantize(torch.rand(6, 10) + shift, 8, "per_row", "asymmetric")
        quantized = replace(quantized, scale=quantized.scale.half().float())
        packed = PackedWeight.of(quantized, "asymmetric", "per_row")
        assert packed.zero_point.dtype == kind
        assert torch.equal(packed.value(), quantized.dequantize())


# --- its size


def student_of_real_shape(kind, model_config, config, preset):
    with packed_module.no_init_weights():
        model = kind(model_config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.1, 0.1)
    model.tie_weights()
    quantize_model(model, Config.parse(config), preset)
    round_for_storage(model)
    return model


def test_a_model_of_real_shape_is_as_small_as_claimed(tmp_path):
    sides = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072}
    config = BartConfig(d_model=768, vocab_size=50265, max_position_embeddings=1024, **sides)
    save_packed(student_of_real_shape(BartForConditionalGeneration, config, "2-2-8 1-1", "dqlib-ternary"), tmp_path)
    bart_base = account(tmp_path, teacher_bytes=557_882_724)  # BART-base in fp32
    assert bart_base.teacher_bytes / packed_size_bytes(tmp_path) >= 43
    assert round(bart_base.teacher_bytes / bart_base.total.paper_bytes, 1) == 27.4  # the paper prints 27.7
    assert bart_base.parts["overhead"].size_bytes < 0.005 * bart_base.total.size_bytes
    assert bart_base.with_full_head(2) - bart_base.total.size_bytes == 2 * 50265 * 768
    assert bart_base.parts["full head"].size_bytes == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "preset", "times"),
    [("1-1-8 5-0", "dqlib", 52), ("2-2-8 5-0", "dqlib-ternary", 34), ("2-2-8 0-12", "dqlib-ternary", 19)],
)
def test_bert_base_and_gpt2_of_real_shape_are_as_small_as_claimed(config, preset, times, tmp_path):
    if config.endswith("-0"):
        kind, model_config, numbers = BertForSequenceClassification, BertConfig(num_hidden_layers=5), 109_483_778
    else:
        kind, model_config, numbers = GPT2LMHeadModel, GPT2Config(), 124_439_808
    model = student_of_real_shape(kind, model_config, config, preset)
    assert 4 * numbers / account(model).total.size_bytes >= times  # of the teacher of 12 layers in fp32
    save_packed(model, tmp_path)
    assert 4 * numbers / packed_size_bytes(tmp_path) >= times


@pytest.mark.parametrize(("preset", "codes_a_byte"), [("dqlib-ternary", 5), ("dqlib", 4), (FOUR_LEVELS, 4)])
def test_the_account_counts_two_bits_as_the_preset_stores_them(preset, codes_a_byte):
    student = trained("bart", preset)
    counted = [entry for entry in footprint(student) if entry.kind in ("weights", "embedding")]
    assert {entry.bits for entry in counted} == {2}
    assert all(entry.code_bytes == -(-entry.numel // codes_a_byte) for entry in counted)
    parts = account(student).parts
    assert parts["weights"].size_bytes == sum(entry.code_bytes for entry in counted if entry.kind == "weights")
    # The paper counts two bits for either.
    assert parts["weights"].paper_bytes == sum(-(-entry.numel // 4) for entry in counted if entry.kind == "weights")


def test_a_full_head_is_a_table_of_its_own_and_costs_what_the_account_says():
    # What DQ-BART's paper counts is not what its code computes with.
    students = [trained("bart", preset) for preset in ("dqlib-ternary", "dq-bart-faithful")]
    tables = [[e for e in footprint(s) if e.kind == "embedding" or e.name == "lm_head.weight"] for s in students]
    assert {each.name: each.bits for each in tables[0]}["model.shared.weight"] == 2
    assert "lm_head.weight" not in {each.name for each in tables[0]}
    head = next(each for each in tables[1] if each.name == "lm_head.weight")
    assert (head.bits, head.size_bytes, head.repeats) == (16, 2 * 60 * 16, "model.shared.weight")
    ours, theirs = map(account, students)
    positions = ours.parts["positions"]  # which the faithful one leaves in full precision
    more = theirs.total.size_bytes - theirs.parts["rest"].size_bytes - theirs.parts["scales"].size_bytes
    less = ours.with_full_head(2) - ours.parts["rest"].size_bytes - ours.parts["scales"].size_bytes
    assert more == less - positions.size_bytes
    assert theirs.head_numbers == 0
    assert ours.total.numbers == theirs.total.numbers
    assert "full head" in str(theirs)


# --- what is refused when saving


def test_what_is_no_rounded_student_is_refused_by_name(tmp_path):
    def refused(model, message):
        with pytest.raises(InputError, match=message):
            save_packed(model, tmp_path / "packed")

    teacher = make_teacher("bart")
    refused(teacher, r"^model: 'BartForConditionalGeneration' .* a student")
    student = student_of(teacher, "bart").eval()
    refused(student, r"^model\.\S+, (value|scale): .* round_for_storage")
    round_for_storage(student)
    layers = student.model.encoder.layers
    with torch.no_grad():
        layers[0].fc1.bias[2] = 0.1
    refused(student, r"^model\.encoder\.layers\.0\.fc1\.bias, value: 0\.1\d* .* round_for_storage")
    round_for_storage(student)
    set_blend(student, 0.5)
    refused(student, r"blend: 0\.5")
    set_blend(student, 1.0)
    with torch.no_grad():
        layers[1].fc1.weight.mul_(1e9)
    refused(student, r"^model\.encoder\.layers\.1\.fc1\.weight, scale: inf")
    assert not (tmp_path / "packed").exists()


def test_a_loaded_model_that_was_changed_is_not_packed_as_it_was(folder, tmp_path):
    loaded = load_packed(folder)
    with torch.no_grad():
        loaded.model.encoder.layers[0].fc1.weight[0, 0] += 1
    with pytest.raises(InputError, match=r"^model\.encoder\.layers\.0\.fc1\.weight: 'changed'"):
        save_packed(loaded, tmp_path / "again")


def test_nothing_but_a_packed_model_is_replaced(bart, folder, tmp_path):
    (tmp_path / "mine").mkdir()
    for there in (tmp_path / "mine", folder):
        (there / "notes.txt").write_text("years of work")
        with pytest.raises(InputError, match=rf"^folder: .*{there.name}, with notes\.txt"):
            save_packed(bart, there)
    (folder / "notes.txt").unlink()
    save_packed(bart, folder)


def test_a_full_disk_leaves_the_old_model_whole(bart, folder, monkeypatch):
    before = files_of(folder)
    write = Path.write_bytes

    def until_full(path, data):
        write(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", until_full)
    with pytest.raises(OSError, match=r"as before \(No space left on device\).*packed"):
        save_packed(bart, folder)
    monkeypatch.undo()
    assert files_of(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["packed"]


# --- what is refused when loading


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_truncated_file_is_named(folder, length):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:length])
    with pytest.raises(InputError, match=rf"^packed\.safetensors: '\d+ bytes' .* {len(data)} bytes long"):
        load_packed(folder)
    assert len(verify(folder)) == 1
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"^packed\.safetensors: "):
        load_packed(folder)


FC1 = "model.encoder.layers.0.fc1.weight"


def record_of(parameters, name=FC1):
    return next(each for each in parameters if each["names"] == [name])


def test_a_manifest_that_tells_of_another_tensor_is_refused(folder):
    whole = (folder / MANIFEST).read_bytes()
    for field, value, message in (
        ("shape", [16, 24], rf"^{FC1}\.scale: .*\(24, 1\).* shape \(16, 1\)"),
        ("shape", [24, 15], rf"^{FC1}\.codes: "),
        ("shape", [24, -16], rf"^{FC1}, shape: "),
        ("shape", [24, 16, 1], rf"^{FC1}, shape: "),
        ("bits", 12, rf"^{FC1}, bits: 12"),
        ("bits", 3, rf"^{FC1}, bits: 3 .* ternary"),
        ("granularity", "per_column", rf"^{FC1}, granularity: 'per_column'"),
        ("encoding", "zip", rf"^{FC1}, encoding: 'zip' .* ternary"),
        ("encoding", "odd", rf"^{FC1}\.codes: "),
        ("encoding", "zeros", rf"^{FC1}, crc32: "),
        ("kind", "spare", rf"^{FC1}, kind: 'spare'"),
        ("zero_point", "complex64", rf"^{FC1}, zero_point: 'complex64'"),
        ("transposed", True, rf"^{FC1}\.scale: "),
        ("names", ["model.encoder.layers.9.fc1.weight"], r"^model\.encoder\.layers\.9\.fc1\.weight\.codes: 'missing'"),
    ):
        parameters = json.loads(whole)["parameters"]
        record_of(parameters)[field] = value
        reseal(folder, parameters=parameters)
        with pytest.raises(InputError, match=message):
            load_packed(folder)


def test_parameters_that_the_model_has_not_or_lacks_are_named(folder):
    parameters, whole = json.loads((folder / MANIFEST).read_text())["parameters"], load_file(folder / WEIGHTS)
    spare = {"spare": torch.zeros(3, dtype=torch.float16)}
    record = {"names": ["spare"], "kind": "rest", "shape": [3], "encoding": "fp16", "crc32": [checksum(spare["spare"])]}
    others = [each for each in parameters if each["names"] != [FC1]]
    zeros = record_of(parameters) | {"encoding": "zeros", "crc32": []}
    fewer = {name: tensor for name, tensor in whole.items() if not name.startswith(FC1)}
    without_scale = {name: tensor for name, tensor in whole.items() if name != f"{FC1}.scale"}
    of_bart = "BartForConditionalGeneration"
    for records, weights, message in (
        (parameters, whole | spare, r"^spare: 'in packed\.safetensors'"),
        ([*parameters, record], whole | spare, rf"^spare: 'in the manifest' .* a parameter of {of_bart}"),
        (parameters, without_scale, rf"^{re.escape(FC1)}\.scale: 'missing'"),
        (others, fewer, rf"^{re.escape(FC1)}: 'missing' .* {of_bart} has it"),
        ([*others, zeros], fewer, rf"^{re.escape(FC1)}: 'zeros' .* stored"),  # which buffers of zeros alone are not
    ):
        save_file(weights, folder / WEIGHTS)
        reseal(folder, [WEIGHTS], parameters=records)
        with pytest.raises(InputError, match=message):
            load_packed(folder)


def test_what_is_no_manifest_of_a_known_version_is_refused(folder, tmp_path):
    content = json.loads((folder / MANIFEST).read_text())
    for version in (0, 1, "2", None):
        (folder / MANIFEST).write_text(json.dumps(content | {"version": version}))
        with pytest.raises(InputError, match=rf"^dqlib\.json, version: {version!r} .* 2, which this dqlib reads"):
            load_packed(folder)
    for text in ("", "[]", "{", '{"format": "gguf"}', "\udcff"):
        (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(InputError, match=r"^dqlib\.json: "):
            load_packed(folder)
    with pytest.raises(InputError, match=r"^folder: .* written by save_packed"):
        load_packed(tmp_path)
    with pytest.raises(InputError, match=r"^folder: .* a folder"):
        verify(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "scaler.pt", "cache.PKL", "inner/data.pickle"])
def test_a_folder_with_a_pickle_is_refused(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch here'\ntR.")
    for read in (load_packed, load_tokenizer, packed_size_bytes):
        with pytest.raises(InputError, match=rf"{Path(name).name}.* pickles"):
            read(folder)
    assert len(verify(folder)) == 1


def test_nothing_from_the_folder_runs_and_nothing_else_is_read(folder, bart, tokenizer):
    trap = "raise SystemExit('ran')\n"
    (folder / "modeling_bart.py").write_text(trap)
    (folder / "generation_extra.json").write_text("not JSON")
    (folder / "tokenizer.json").write_text("not JSON")  # not in the manifest: there is no tokenizer
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "modeling_bart.Config", "AutoModelForSeq2SeqLM": "modeling_bart.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    reseal(folder, ["config.json"])
    assert torch.equal(logits(load_packed(folder), "bart"), logits(bart, "bart"))
    with pytest.raises(InputError, match=r"^tokenizer\.json: .* named by dqlib\.json"):
        load_tokenizer(folder)


def test_a_manifest_reads_as_it_was_written(bart):
    manifest = Manifest("packed", {"class": "é"}, {"a": File(3, "c")}, tuple(map(record, stored(bart))))
    assert Manifest.parse(manifest.text()) == manifest


def test_a_student_that_computes_in_half_precision_is_refused_and_taken_once_it_does_not(tmp_path):
    student = trained().to(torch.bfloat16)
    with pytest.raises(InputError, match=r"^\S+: 'torch.bfloat16' .* model\.float\(\), and round_for_storage again"):
        save_packed(student, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    round_for_storage(student.float())
    save_packed(student, tmp_path / "packed")
    assert torch.equal(logits(load_packed(tmp_path / "packed"), "bart"), logits(student, "bart"))


# --- folders that someone made to do harm, sealed as a packed model is


def test_a_manifest_whose_fields_no_packed_model_has_is_refused(folder):
    whole, about = (folder / MANIFEST).read_bytes(), dict(opened(folder, "packed").about)
    paths = ("../secret.json", "/etc/hostname", "a/../b", "a//b", "..", "", "a\\b", "c:b", MANIFEST)
    for fields, message in (
        ({"kind": "other"}, r"^dqlib\.json, kind: 'other'"),
        ({"about": [1]}, r"^dqlib\.json, about: \[1\]"),
        ({"files": ["config.json"]}, r"^dqlib\.json, files: \['config\.json'\]"),
        ({"files": {"config.json": 3}}, r"^dqlib\.json, files, config\.json: 3"),
        ({"files": {WEIGHTS: {"bytes": "all"}}}, r"^dqlib\.json, files, packed\.safetensors, bytes: 'all'"),
        ({"files": {WEIGHTS: {"bytes": 1}}}, r"^dqlib\.json, files, packed\.safetensors, sha256: None"),
        *(({"files": {path: {}}}, r"^dqlib\.json, files: .* plain name") for path in paths),
        ({"parameters": ({"names": []},)}, r"^dqlib\.json, names: \[\]"),
        ({"parameters": ({"names": "ab"},)}, r"^dqlib\.json, names: 'ab'"),
        ({"parameters": ([1],)}, r"^dqlib\.json, names: \[1\]"),
        ({"parameters": ({"names": ["a"], "bits": "two"},)}, r"^a, bits: 'two'"),
        ({"parameters": ({"names": ["a"], "repeats": [1]},)}, r"^a, repeats: \[1\]"),
        ({"parameters": ({"names": ["a"]},)}, r"^dqlib\.json: "),
    ):
        reseal(folder, **fields)
        for read in (load_packed, load_tokenizer, packed_size_bytes):
            with pytest.raises(InputError, match=message):
                read(folder)
        assert len(verify(folder)) == 1
        (folder / MANIFEST).write_bytes(whole)
    for change, message in (  # a model is built of what is known only
        ({"class": "Trainer"}, r"^class: 'Trainer' .* BartForConditionalGeneration"),
        ({"class": "os.system"}, r"^class: 'os\.system'"),
        ({"class": "T5Model"}, r"^class: 'T5Model'"),
        ({"class": ["a"]}, r"^class: \['a'\]"),
        ({"weights": [1]}, r"^preset: "),
        ({"config": "2-2-8"}, r"^config: '2-2-8'"),
        ({"activations": {"granularity": "per_mood"}}, r"^granularity: 'per_mood'"),
        ({"activations": {"mood": 1}}, r"^preset: .*mood"),
    ):
        reseal(folder, about=about | change)
        with pytest.raises(InputError, match=message):
            load_packed(folder)


@pytest.mark.parametrize("name", [MANIFEST, "config.json"])
def test_deep_nesting_is_refused(folder, name):
    data = b"[" * 10**5 + b"]" * 10**5
    (folder / name).write_bytes(data)
    if name != MANIFEST:
        reseal(folder, [name])
    with pytest.raises(InputError, match=rf"^{re.escape(name)}: "):
        load_packed(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_what_is_no_file_is_not_read(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)  # to read it would take for ever
    with pytest.raises(InputError, match=rf"^{re.escape(name)}: 'no file'"):
        load_packed(folder)
    assert len(verify(folder)) == 1
