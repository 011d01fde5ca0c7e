"""Every engine is the same model: its weights, its search, its limits, and one sentence for what it cannot do."""

import copy
import json
import struct
import sys
from dataclasses import asdict, replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from transformers import MBartConfig

from dqlib.config import Config
from dqlib.engines import ENGINES, engine_of, export_model, load_engine
from dqlib.engines.agreement import agreement
from dqlib.engines.base import Decoding
from dqlib.engines.torch_engine import TorchEngine, load_model
from dqlib.errors import InputError
from dqlib.storage.manifest import MANIFEST, Manifest, opened
from dqlib.storage.packed import load_packed, save_packed
from dqlib.storage.plain import plain_model
from dqlib.storage.students import save_student
from dqlib.student import make_student, module_quantizers, quantized_modules, round_for_storage
from dqlib.study.corpora.tokenizer import train_tokenizer
from tests.helpers.engines import OTHERS, alike, served
from tests.helpers.folders import contents, reseal
from tests.helpers.models import (
    ASYMMETRIC,
    CASES,
    EOS,
    LSQ,
    PAD,
    VOCABULARY,
    data_of,
    make_teacher,
    narrow_student,
    student_of,
)
from tests.helpers.packed import trained

pytest.importorskip("onnxruntime")
ctranslate = pytest.importorskip("dqlib.engines.ctranslate")

SERVED = [name for name, case in CASES.items() if case.encodes_and_decodes]
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def tokenizer():
    """One with fewer tokens than the models have rows, as BART's padded tables have."""
    return train_tokenizer(["return the sum of all numbers"] * 4, 60 + 240, 24, ["ro", "de"])


def sources():
    data = data_of("bart")
    return [[*row[keep].tolist(), 2] for row, keep in zip(data.inputs["input_ids"], data.source_mask, strict=True)]


def others_of(name):
    """The engines that serve a case: the heads of these T5 have a size that no kernel of ONNX Runtime has."""
    return ENGINES[1:2] if name.startswith("t5") else ENGINES[1:]


def weights_of(folder):
    """Every int8 matrix of ``model.bin``, by name, as codes over scale: version 6 of its format."""
    data, place, found = (folder / "model.bin").read_bytes(), 0, {}

    def take(form):
        nonlocal place
        values = struct.unpack_from(form, data, place)
        place += struct.calcsize(form)
        return values[0] if len(values) == 1 else values

    def text():
        return take(f"{take('<H')}s").rstrip(b"\0").decode()

    assert take("<I") == 6
    text(), take("<I")
    for _ in range(take("<I")):
        name = text()
        shape = [take("<I") for _ in range(take("<B"))]
        kind, size = take("<B"), take("<I")
        kinds = (np.float32, np.int8, np.int16, np.int32)
        found[name] = np.frombuffer(data, kinds[kind], size // np.dtype(kinds[kind]).itemsize, place).reshape(shape)
        place += size
    return {
        name: (value, found[f"{name}_scale"])
        for name, value in found.items()
        if value.dtype == np.int8 and f"{name}_scale" in found
    }


# --- the same weights


@pytest.mark.parametrize(
    ("preset", "bits"),
    [("dqlib", "2-2-8"), ("dqlib", "1-1-8"), ("dqlib", "4-4-8"), ("dqlib-ternary", "2-2-8"), ("dqlib", "8-8-8"),
     ("dqlib-stretched", "2-2-8"), (LSQ, "3-5-8"), (LSQ, "1-1-8")],
    ids=lambda p: getattr(p, "name", p),
)  # fmt: skip
def test_codes_survive_whatever_their_bits(preset, bits, tmp_path):
    student = trained("bart", preset, bits)
    report = export_model(student, tmp_path / "out", "ctranslate2")
    assert report.exact
    assert "keep the codes" in str(report)
    read, layer = weights_of(tmp_path / "out"), student.model.encoder.layers[0].self_attn
    assert {each.name for each in report.weights} == set(read)
    quantized = [module.quantized() for module in (layer.q_proj, layer.k_proj, layer.v_proj)]
    codes, scale = read["encoder/layer_0/self_attention/linear_0/weight"]
    assert np.array_equal(codes, torch.cat([each.codes for each in quantized]).numpy())
    expected = torch.cat([each.dequantize() for each in quantized]).numpy()
    assert np.allclose(codes / scale[:, None], expected, rtol=1e-6, atol=0)
    codes, _ = read["decoder/embeddings/weight"]
    table = student.model.shared.quantized()
    assert np.array_equal(codes, (table.codes * (table.scale > 0)).numpy())  # a row of zeros has codes of zero


def test_codes_of_a_budget_survive_where_one_matrix_of_the_engine_joins_several_of_other_bits(tmp_path):
    teacher = make_teacher("bart")
    paths = module_quantizers(student_of(teacher, "bart"))
    modules = tuple((path, (1, 2, 4)[i % 3]) for i, path in enumerate(paths))  # of queries, keys and values, too
    config = replace(Config.parse(f"2-2-8 {CASES['bart'].layers}"), modules=modules)
    student = make_student(teacher, config, "dqlib-ternary").eval()
    round_for_storage(student)
    report = export_model(student, tmp_path / "out", "ctranslate2")
    assert report.exact


def test_a_factor_that_training_made_negative_keeps_its_sign(tmp_path):
    student = student_of(make_teacher("bart"), "bart").eval()
    layer = student.model.encoder.layers[0].fc1
    with torch.no_grad():
        layer.weight_quantizer.learned[::2] *= -1
        layer.weight_quantizer.learned[1] = 0
    report = export_model(student, tmp_path / "out", "ctranslate2")
    assert report.exact
    codes, scale = weights_of(tmp_path / "out")["encoder/layer_0/ffn/linear_0/weight"]
    assert np.allclose(codes / scale[:, None], layer.quantized().dequantize().detach().numpy(), rtol=1e-6, atol=0)


def test_weights_with_several_scales_a_row_and_a_head_in_full_precision_are_rounded_anew_and_told(tmp_path):
    student = student_of(make_teacher("bart"), "bart", "2-2-8", ASYMMETRIC).eval()
    report = export_model(student, tmp_path / "out", "ctranslate2")
    assert not report.exact
    by_name = {each.name: each for each in report.weights}
    assert by_name["decoder/embeddings/weight"].exact  # one scale per row, an integer zero point
    other = by_name["encoder/layer_0/ffn/linear_0/weight"]
    assert not other.exact
    assert 0 < other.error < 0.01
    assert "were rounded anew" in str(report)
    assert "the student's to 8 bits with one scale per tensor" in str(report)
    assert opened(tmp_path / "out", "ctranslate2").about["notes"] == list(report.notes)
    faithful = student_of(make_teacher("bart"), "bart", "2-2-8", "dq-bart-faithful").eval()  # with a head in full
    report = export_model(faithful, tmp_path / "out", "ctranslate2")
    assert not {each.name: each.exact for each in report.weights}["decoder/projection/weight"]


@pytest.mark.parametrize("name", CASES)
def test_the_plain_model_is_the_student_without_rounding_of_activations(name):
    student = trained(name, "dqlib", "2-2-32")
    plain, data = plain_model(student), data_of(name)
    assert not quantized_modules(plain)
    assert type(plain) is type(student)
    with torch.no_grad():
        torch.testing.assert_close(plain(**data.inputs).logits, student(**data.inputs).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("quantization", ctranslate.QUANTIZATIONS)
def test_an_export_leaves_the_model_as_it_was(quantization, tmp_path):
    teacher = make_teacher("bart")  # CTranslate2 quantizes in place
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    config = teacher.config.to_dict()
    export_model(teacher, tmp_path / "out", "ctranslate2", quantization=quantization)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert teacher.config.to_dict() == config


@OTHERS
@pytest.mark.parametrize("name", ["mbart", "gpt2", "bert-classifier"])
def test_a_student_and_its_packed_model_give_the_same_file(name, engine, tokenizer, tmp_path):
    student = trained(name, "dqlib")
    save_student(student, tmp_path / "student")
    save_packed(student, tmp_path / "packed", tokenizer)
    found = [load_model(tmp_path / name) for name in ("student", "packed")]
    assert [tokenizer is None for _, tokenizer in found] == [True, False]
    for (model, _), name in zip(found, ("one", "other"), strict=True):
        export_model(model, tmp_path / name, engine)
    for path in (*(tmp_path / "one").glob("*.bin"), *(tmp_path / "one").glob("*.onnx")):
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


# --- the same search


@pytest.mark.parametrize("name", SERVED)
def test_the_same_numbers_write_the_same(name, tmp_path):
    ids = [*sources(), [EOS], [], [EOS, 5], [PAD, EOS]]  # a language may come last, and padding be a start
    for written in alike(make_teacher(name), tmp_path, ids, {}, {"num_beams": 3}, others=others_of(name)):
        assert any(written) or name == "marian-unshared"  # whose greedy texts are empty
        assert all(len(row) <= NEW_TOKENS for row in written)


@pytest.mark.parametrize(
    ("name", "beams", "forced"),
    [("mbart", 1, {"bos": 7}), ("bart", 1, {"eos": EOS}), ("bart", 4, {"bos": 7, "eos": EOS}),
     ("mbart", 4, {"eos": 9})],
    ids=str,
)  # fmt: skip
def test_all_engines_agree_on_an_empty_source_and_a_single_new_token(name, beams, forced, tmp_path):
    teacher = make_teacher(name)
    teacher.final_logits_bias.normal_().mul_(2)  # so that no choice hangs on how an engine rounds activations
    student = student_of(teacher, name, "2-2-8").eval()
    for field in ("bos", "eos"):
        setattr(student.generation_config, f"forced_{field}_token_id", forced.get(field))
    engines = [TorchEngine(student), served(student, "ctranslate2", tmp_path / "out", exact=False)]
    engines += [served(student, "onnxruntime", tmp_path / each, encoder=each) for each in ("int8", "packed")]
    ids = [[], [5, 6, 7, EOS], [EOS], [0, EOS], [9, 10, EOS]]
    for new_tokens in (1, 4):
        for engine in engines:
            engine.early_stopping = True
            options = {"num_beams": beams, "max_new_tokens": new_tokens}
            together = engine.generate_ids(ids, **options)
            assert together == [engine.generate_ids([row], **options)[0] for row in ids]
            assert together[0] == together[2]  # nothing but its end
            if engine is engines[0]:
                expected = together
            assert together == expected, engine.name
        if new_tokens == 1 and "eos" in forced:
            assert expected == [[] if forced["eos"] == EOS else [9]] * len(ids)
        elif "bos" in forced:
            assert all(row[0] == 7 for row in expected)


@pytest.mark.parametrize("name", [*SERVED, "heads of different sizes"])
def test_a_narrow_student_writes_the_same(name, tmp_path):
    if name in SERVED:
        student = narrow_student(name, "2-2-32", "h3 f11")
    else:
        student = narrow_student("mbart", "2-2-32", "h3", decoder_attention_heads=8)
    for written in alike(student, tmp_path, sources(), {}, {"num_beams": 3}, others=ENGINES[1:2]):
        assert any(written) or name not in SERVED or name.startswith("marian")  # whose greedy texts are empty


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_the_codes_of_a_narrow_student_survive(name, tmp_path):
    student = narrow_student(name, "2-2-8", "h3 f11")
    round_for_storage(student)
    save_packed(student, tmp_path / "packed")
    assert export_model(load_packed(tmp_path / "packed"), tmp_path / "out", "ctranslate2").exact
    fast = load_engine(tmp_path / "out", threads=1)
    assert all(0 < len(row) <= NEW_TOKENS for row in fast.generate_ids(sources(), num_beams=2, max_new_tokens=8))


@pytest.mark.parametrize("name", ["bart", "mbart", "marian", "t5"])
def test_an_8_bit_student_scores_tokens_as_the_student_does(name, tmp_path):
    student, data = student_of(make_teacher(name), name).eval(), data_of(name)
    engine = served(student, "ctranslate2", tmp_path / "out", exact=False)
    ids, start = sources(), CASES[name].config.decoder_start_token_id
    target = data.labels[0].tolist()
    scores = engine.translator.score_batch(engine._tokens(ids), engine._tokens([[start, *target]] * len(ids)))
    for source, scored in zip(ids, scores, strict=True):
        with torch.no_grad():
            inputs = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([[start, *target]])}
            logits = student(**inputs, attention_mask=torch.ones(1, len(source))).logits[0].log_softmax(-1)
        expected = logits[range(len(target)), target].numpy()
        assert np.abs(np.array(scored.log_probs[: len(target)]) - expected).max() < 0.35


@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
@pytest.mark.parametrize(
    "settings",
    [
        {"length_penalty": 2.0},
        {"length_penalty": 0.5, "min_length": 4},
        {"no_repeat_ngram_size": 2},
        {"forced_bos_token_id": 7},
        {"bad_words_ids": [[9], [11], [13]]},
        {"min_length": 56},  # more than are asked for
        {"min_length": 56, "min_new_tokens": 3},
    ],
    ids=str,
)
def test_what_a_model_says_of_decoding_holds_in_every_engine(settings, tmp_path):
    teacher = make_teacher("bart")
    for field, value in settings.items():
        setattr(teacher.generation_config, field, value)
    # with beams, a note tells where CTranslate2 has another rule; on these texts nothing comes of it
    for written in alike(teacher, tmp_path, sources(), {}, {"num_beams": 3}):
        assert "forced_bos_token_id" not in settings or all(row[0] == 7 for row in written)


@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
@pytest.mark.parametrize(
    ("asked", "all_alike"),
    [
        ({"length_penalty": 0.2}, True),
        ({"min_new_tokens": 6}, True),
        ({"min_new_tokens": 56, "early_stopping": True}, True),
        # with beams, CTranslate2 has rules of its own here, as notes tell
        ({"early_stopping": "never", "length_penalty": 9.0}, False),
        ({"no_repeat_ngram_size": 1, "min_new_tokens": 6}, False),
        ({"no_repeat_ngram_size": 2, "min_new_tokens": 6}, False),
        ({"no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "min_new_tokens": 6}, False),
        ({"bad_words_ids": "written"}, False),
        ({"bad_words_ids": None, "repetition_penalty": 1.0}, True),  # as if nothing were asked
    ],
    ids=str,
)
def test_a_call_asks_every_engine_for_the_same(asked, all_alike, tmp_path):
    teacher, ids = make_teacher("bart"), sources()
    teacher.generation_config.early_stopping = True
    written = TorchEngine(teacher).generate_ids(ids, num_beams=1, max_new_tokens=NEW_TOKENS)
    if asked.get("bad_words_ids"):
        forbidden = [[row[0]] for row in written] + [written[0][1:3], [EOS]]  # but an end may always be written
        asked = {"bad_words_ids": forbidden}
    else:
        teacher.generation_config.eos_token_id = [EOS, *{row[3] for row in written}]  # so that texts end, and soon
    plain = [TorchEngine(teacher), *(served(teacher, each, tmp_path / each, exact=False) for each in ENGINES[1:])]
    configured = copy.deepcopy(teacher)
    for field, value in asked.items():
        setattr(configured.generation_config, field, value)
    changed = 0
    for beams in (1, 3):
        options = {"num_beams": beams, "max_new_tokens": NEW_TOKENS}
        expected = TorchEngine(configured).generate_ids(ids, **options)
        before = TorchEngine(teacher).generate_ids(ids, **options)
        changed += expected != before
        for engine in plain:
            if all_alike or engine.name != "ctranslate2" or (beams == 1 and asked.get("repetition_penalty", 1) == 1):
                assert engine.generate_ids(ids, **options, **asked) == expected, engine.name
            assert engine.generate_ids(ids, **options) == before, engine.name
    assert changed or not any(asked.values()) or asked.get("repetition_penalty") == 1 or "never" in asked.values()


def test_what_an_engine_does_by_another_rule_is_told(tmp_path):
    def notes(**settings):
        teacher = make_teacher("bart")
        for field, value in ({"early_stopping": True} | settings).items():
            setattr(teacher.generation_config, field, value)
        return export_model(teacher, tmp_path / "out", "ctranslate2").notes

    assert [note.split()[0] for note in notes(repetition_penalty=1.7, early_stopping=False)] == ["Beam", "The"]
    assert notes() == ()
    for settings, word in (  # where beams are others than those of PyTorch
        ({"no_repeat_ngram_size": 2}, "no_repeat_ngram_size forbid"),
        ({"min_length": 4, "bad_words_ids": [[9]]}, "min_length and bad_words_ids forbid"),
        ({"forced_bos_token_id": 7}, "which is forced"),
        ({"forced_eos_token_id": 2}, "the forced end"),
    ):
        assert any(note.startswith("In beam search") and word in note for note in notes(**settings))


def test_what_no_engine_can_read_or_write_is_refused_by_all(tmp_path):
    teacher = make_teacher("bart")
    for engine in (TorchEngine(teacher), *(served(teacher, each, tmp_path / each) for each in ENGINES[1:])):
        for ids, options, message in (
            ([5], {"max_new_tokens": 0}, "max_new_tokens: 0"),
            ([5], {"max_new_tokens": 24}, "max_new_tokens: 24"),
            ([5], {"num_beams": 0}, "num_beams: 0"),
            ([5], {"num_beams": 1025}, "num_beams: 1025 .* from 1 to 1024"),
            ([5], {"starts": [2, 2, 2]}, "starts: "),
            ([5], {"starts": [2, -1]}, "starts: "),
            ([VOCABULARY], {}, "input_ids: "),
            ([-1], {}, "input_ids: "),
            ([5] * 25, {}, "input_ids: "),
            ([5], {"do_sample": True}, "do_sample: True .* a call may ask for min_new_tokens"),
            ([5], {"min_new_tokens": -1}, ".*min_new_tokens: -1"),
            ([5], {"bad_words_ids": [[10**6]]}, ".*bad_words_ids"),
            ([5], {"length_penalty": "long"}, ".*length_penalty: 'long'"),
            ([5], {"length_penalty": 1000.0}, r".*length_penalty: 1000\.0 .* a number from -10 to 10"),
        ):
            with pytest.raises(InputError, match=f"^{message}"):
                engine.generate_ids([[5], ids], **{"max_new_tokens": 4} | options)
        engine.decoding = replace(engine.decoding, ends=())
        with pytest.raises(InputError, match=r"^input_ids: \[\] is not allowed; .* without encoder or end"):
            engine.generate_ids([[5], []], max_new_tokens=4)


def test_a_text_starts_from_its_language(tokenizer, tmp_path):
    size = len(tokenizer)
    config = type(CASES["mbart"].config).from_dict(CASES["mbart"].config.to_dict() | {"vocab_size": size + 3})
    torch.manual_seed(0)
    teacher = CASES["mbart"].model(config).eval()
    alike(teacher, tmp_path, sources(), {"starts": [size - 1, size - 2, 2], "num_beams": 3})
    engine = served(teacher, "ctranslate2", tmp_path / "out", exact=False, tokenizer=tokenizer)
    reference = TorchEngine(teacher, tokenizer)
    texts = ["the sum", "return all numbers", ""]
    assert reference.starts(["de", "ro", "de"], 3) == [
        tokenizer.convert_tokens_to_ids(f"<{x}>") for x in ("de", "ro", "de")
    ]
    for languages in ("ro", ["ro", "de", "ro"]):
        options = {"languages": languages, "num_beams": 1, "max_new_tokens": 6, "batch_size": 2}
        assert engine.generate(texts, **options) == reference.generate(texts, **options)
    assert engine.generate(texts, languages="ro", num_beams=1) != engine.generate(texts, languages="de", num_beams=1)
    with pytest.raises(InputError, match=r"^language: 'fr' is not allowed; .*<fr>"):
        engine.generate(texts, languages="fr")
    with pytest.raises(InputError, match=r"^languages: '2 of them'"):
        engine.generate(texts, languages=["ro", "de"])


# --- limits and refusals


@OTHERS
def test_a_model_that_neither_writes_nor_classifies_is_told_so(engine, tmp_path):
    with pytest.raises(InputError, match=r"^model: 'BertForMaskedLM' .* a classifier of texts"):
        export_model(make_teacher("bert"), tmp_path / "out", engine)
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_is_told_in_one_sentence(tokenizer, tmp_path):
    teacher, out = make_teacher("bart"), tmp_path / "out"
    engine = served(teacher, "ctranslate2", out)
    with pytest.raises(InputError, match=r"^folder: 'without a tokenizer'"):
        engine.generate(["a"])
    engine = served(teacher, "ctranslate2", out, tokenizer=tokenizer)  # replaces the one before
    for field, value in (("num_beams", 0), ("batch_size", 0), ("max_new_tokens", 0), ("max_new_tokens", 24)):
        with pytest.raises(InputError, match=f"^{field}: {value} is not allowed"):
            engine.generate(["a"], **{field: value})
    for call, message in (
        (lambda: export_model(teacher, out, "tensorrt"), r"^engine: 'tensorrt' .* ctranslate2, onnxruntime"),
        (
            lambda: served(teacher, "ctranslate2", out, exact=False, quantization="int4"),
            r"^quantization: 'int4' .* int8, float32",
        ),
        (lambda: load_engine(out, "torch"), r"^engine: 'torch' .* ctranslate2, which"),
        (lambda: load_engine(tmp_path / "nowhere"), r"^folder: "),
        (lambda: load_engine(tmp_path), r"^folder: .* a packed model, a student, or a Hugging Face model"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    (out / MANIFEST).unlink()
    with pytest.raises(InputError, match=r"^folder: .* written by export_ctranslate2"):
        load_engine(out)


@OTHERS
def test_nothing_but_an_exported_model_is_replaced(engine, tokenizer, tmp_path):
    teacher, own, out = make_teacher("bart"), tmp_path / "own", tmp_path / "out"
    own.mkdir()
    (own / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"^folder: .* new, empty, or a folder written by export"):
        export_model(teacher, own, engine)
    for text in ("{}", "[1]", "not JSON"):
        (own / MANIFEST).write_text(text)  # of some other program
        with pytest.raises(InputError, match=r"^dqlib\.json: "):
            export_model(teacher, own, engine)
    for kind in ("model", engine):  # not to be replaced, and not the only one
        (own / MANIFEST).write_text(Manifest(kind, {}, {}).text())
        with pytest.raises(InputError, match=r"^folder: .*own, with thesis\.tex.* export_onnx and nothing else"):
            export_model(teacher, own, engine)
    export_model(teacher, out, engine, tokenizer)
    assert opened(out, engine).files.keys() == {path.as_posix() for path in contents(out)} - {MANIFEST}
    export_model(teacher, out, engine)
    (out / "inner").mkdir()
    (out / "inner" / "notes.txt").write_text("own")
    with pytest.raises(InputError, match=r"^folder: .*out, with inner/notes\.txt"):
        export_model(teacher, out, engine)
    assert (own / "thesis.tex").read_text() == "years of work"
    assert (out / "inner" / "notes.txt").is_file()


@OTHERS
def test_what_an_exported_model_claims_is_held_against_its_files(engine, tokenizer, tmp_path):
    export_model(make_teacher("bart"), tmp_path / "out", engine, tokenizer)
    about = dict(opened(tmp_path / "out", engine).about)
    reseal(tmp_path / "out", about=about | {"decoding": about["decoding"] | {"pad": 10**9}})
    with pytest.raises(InputError, match=r"^decoding, pad_token_id: 1000000000 .* vocabulary"):
        load_engine(tmp_path / "out")
    reseal(tmp_path / "out", about=about | {"layers": 10**9})
    if engine == "onnxruntime":
        with pytest.raises(InputError, match=r"layers: 1000000000 .* 2, as the graphs have it"):
            load_engine(tmp_path / "out")
        return
    for name, text, message in (
        ("shared_vocabulary.json", "[[]]", "a list of tokens"),
        ("shared_vocabulary.json", "[1", "JSON"),
        ("config.json", '{"add_source_bos": 1.5}', "add_source_bos: 1.5"),
    ):
        before = (tmp_path / "out" / name).read_text()
        (tmp_path / "out" / name).write_text(text)
        reseal(tmp_path / "out", [name], about=about)
        with pytest.raises(InputError, match=message):
            load_engine(tmp_path / "out")
        (tmp_path / "out" / name).write_text(before)
        reseal(tmp_path / "out", [name])


def test_an_engine_that_is_not_installed_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    for name in ("ctranslate", "ctranslate_engine"):
        monkeypatch.delitem(sys.modules, f"dqlib.engines.{name}")
    with pytest.raises(InputError, match=r"^engine: \'ctranslate2\' .* pip install -e \'\.\[engines\]\' in") as caught:
        export_model(make_teacher("bart"), tmp_path / "out", "ctranslate2")
    assert "\n" not in str(caught.value)


def test_a_failure_leaves_the_old_model_whole(tmp_path, monkeypatch):
    teacher = make_teacher("bart")
    export_model(teacher, tmp_path / "out", "ctranslate2")
    before = contents(tmp_path)
    monkeypatch.setattr("ctranslate2.specs.model_spec.ModelSpec.save", Mock(side_effect=OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        export_model(teacher, tmp_path / "out", "ctranslate2", quantization="int8")
    assert contents(tmp_path) == before


def test_a_folder_tells_its_engine(tmp_path):
    student = trained("bart", "dqlib")
    save_packed(student, tmp_path / "packed")
    export_model(student, tmp_path / "fast", "ctranslate2")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "decoder.onnx").touch()
    assert [engine_of(tmp_path / name) for name in ("packed", "fast", "onnx")] == list(ENGINES)
    ids = TorchEngine(load_packed(tmp_path / "packed")).generate_ids(sources(), num_beams=2, max_new_tokens=6)
    for engine in (load_engine(tmp_path / "packed"), load_engine(tmp_path / "packed", "torch")):
        assert isinstance(engine, TorchEngine)
        assert engine.generate_ids(sources(), num_beams=2, max_new_tokens=6) == ids


def test_a_decoding_reads_back_from_json():
    decoding = Decoding(2, (2, 5), 1, 24, forced_start=7, early_stopping="never", suppressed=((3,), (4, 5)))
    assert Decoding.parse(json.loads(json.dumps(asdict(decoding))), VOCABULARY) == decoding
    with pytest.raises(InputError, match=r"^decoding: "):
        Decoding.parse({"ends": [2], "suppressed": []}, VOCABULARY)
    for field, value, message in (
        ("start", VOCABULARY, "decoder_start_token_id"), ("ends", [-1], "eos_token_id"),
        ("suppressed", [[]], "bad_words_ids"), ("positions", "all", "positions"),
        ("length_penalty", None, "length_penalty"), ("repetition_penalty", 10**400, "repetition_penalty"),
        ("has_encoder", 1, "has_encoder"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=rf"^decoding, {message}"):
            Decoding.parse(asdict(decoding) | {field: value}, VOCABULARY)
    with pytest.raises(InputError, match=r"^model: 'BertForMaskedLM'"):
        Decoding.of(make_teacher("bert"))


def test_a_decoder_alone_writes_on_after_its_text():
    student = student_of(make_teacher("gpt2"), "gpt2").eval()
    engine, ids = TorchEngine(student), [[5, 6, 7], [8]]
    assert engine.continues
    written = engine.generate_ids(ids, num_beams=1, max_new_tokens=5)
    alone = student.generate(torch.tensor(ids[1:]), max_new_tokens=5, do_sample=False, num_beams=1)
    assert written[1] == engine.until_end(alone[0, 1:].tolist())
    assert engine.new_tokens() == 11
    assert engine.generate_ids([], max_new_tokens=5) == []


def test_a_decoder_starts_from_the_beginning_of_a_text_where_nothing_else_is_said():
    config = MBartConfig.from_dict(CASES["mbart"].config.to_dict() | {"decoder_start_token_id": None})
    torch.manual_seed(0)
    teacher = CASES["mbart"].model(config).eval()
    assert teacher.generation_config.decoder_start_token_id is None
    engine = TorchEngine(teacher)
    assert (engine.decoding.start, engine.continues) == (0, False)
    alone = teacher.generate(torch.tensor(sources()[:1]), max_new_tokens=5, do_sample=False, num_beams=1)
    assert engine.generate_ids(sources(), num_beams=1, max_new_tokens=5)[0] == engine.until_end(alone[0, 1:].tolist())
    teacher.config.bos_token_id = teacher.generation_config.bos_token_id = None
    with pytest.raises(InputError, match=r"^decoder_start_token_id: None .* bos_token_id"):
        TorchEngine(teacher)


def test_a_language_is_a_token_of_its_own_and_no_piece_of_a_word(tokenizer):
    engine = TorchEngine(make_teacher("bart"), tokenizer)
    assert "the" in {token.strip("Ġ") for token in tokenizer.get_vocab()}
    for piece in ("r", "e", "Ġ", ".*"):
        with pytest.raises(InputError, match=r"^language: "):
            engine.starts(piece, 1)
    codes = train_tokenizer(["return the sum of all numbers"] * 4, 300, 24)
    codes.add_special_tokens({"additional_special_tokens": ["ro_RO", "de_DE"]})
    engine = TorchEngine(make_teacher("bart"), codes)
    assert engine.starts(["ro", "ro_RO"], 2) == [codes.convert_tokens_to_ids("ro_RO")] * 2


@OTHERS
def test_what_an_engine_computes_or_searches_otherwise_is_refused(engine, tmp_path):
    config, generation = "config", "generation_config"
    for name, part, field, value in (
        ("bart", config, "activation_function", "tanh"),
        ("gpt2", config, "activation_function", "tanh"),
        ("gpt2", config, "scale_attn_by_inverse_layer_idx", True),
        ("bert-classifier", config, "hidden_act", "tanh"),
        ("marian-unshared", config, "decoder_vocab_size", 40),  # fewer ids to write than to read
        ("bart", generation, "suppress_tokens", [9]),
        ("bart", generation, "begin_suppress_tokens", [9, 11]),
        ("bart", generation, "encoder_no_repeat_ngram_size", 2),
        ("bart", generation, "sequence_bias", [[[9], -4.0]]),
        ("gpt2", generation, "min_length", 4),  # rules that look at the text otherwise
        ("gpt2", generation, "forced_bos_token_id", 5),
    ):
        model = make_teacher(name)
        setattr(getattr(model, part), field, value)
        with pytest.raises(InputError, match=rf"^{field}: .* must be (one of|60, as many|.* for the engine {engine})"):
            export_model(model, tmp_path / "out", engine)
    assert not list(tmp_path.iterdir())


# --- agreement


def test_agreement_counts_positions_choices_and_texts():
    found = agreement([[1, 2, 3], [4, 5, 6], [], [7]], [[1, 2, 3], [4, 9, 6, 8], [], []])
    assert (found.tokens, found.same_tokens) == (3 + 4 + 0 + 1, 3 + 2)
    assert (found.choices, found.same_choices) == (4 + 2 + 1 + 1, 4 + 1 + 1 + 0)
    assert (found.texts, found.same_texts) == (4, 2)
    assert "62.50% of 8 tokens" in str(found)
    assert agreement([], []).part == agreement([], []).part_of_choices == 1
    with pytest.raises(ValueError, match="zip"):
        agreement([[1]], [])


def test_the_tokenizer_may_have_fewer_tokens_than_the_model_rows(tokenizer):
    assert len(tokenizer) > VOCABULARY  # and more, too: what has no row is left out
    vocabulary = ctranslate._Vocabulary(VOCABULARY, tokenizer, Decoding(2, (2,), 1)).get_vocab()
    assert sorted(vocabulary.values()) == list(range(VOCABULARY))
    vocabulary = ctranslate._Vocabulary(len(tokenizer) + 2, tokenizer, Decoding(2, (2,), 1)).get_vocab()
    assert vocabulary[f"<id {len(tokenizer) + 1}>"] == len(tokenizer) + 1
