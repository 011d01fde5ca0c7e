"""The engine onnxruntime computes with the student's weights and searches as transformers does."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from dqlib.config import Config, WeightQuantization
from dqlib.engines.torch_engine import TorchEngine
from dqlib.errors import InputError
from dqlib.presets import get_preset
from dqlib.storage.manifest import opened
from dqlib.student import make_student, module_quantizers, quantized_modules
from tests.helpers.folders import reseal
from tests.helpers.models import BOTH, CASES, PAD

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from dqlib.engines.onnx_export import export_onnx  # noqa: E402
from dqlib.engines.onnx_model import OnnxEngine  # noqa: E402
from dqlib.engines.onnx_weights import Codes  # noqa: E402
from dqlib.quantizers import quantize  # noqa: E402

SOURCES = [[10, 11, 12, 13, 14, 15, 2], [30, 31, 2], [40, 41, 42, 43, 44, 2], [50, 51, 52, 53, 2]]
FOUR_LEVELS = "dqlib"
GROUPS_OF_FOUR_LEVELS = replace(
    get_preset("dqlib"), name="groups", weights=WeightQuantization(two_bits="four_level", linear="per_group_16")
)


def student_of(teacher, bits, preset="dqlib-ternary"):
    return make_student(teacher, Config.parse(f"{bits} 3-2"), preset).eval()


def padded(sources):
    ids = torch.full((len(sources), max(map(len, sources))), 1)
    for i, row in enumerate(sources):
        ids[i, : len(row)] = torch.tensor(row)
    return {"input_ids": ids, "attention_mask": ids.ne(1).long()}


def generated(model, sources, **options):
    """What transformers generates, without start, end and padding."""
    rows = model.generate(**padded(sources), **options)[:, 1:].tolist()
    return [row[: row.index(2)] if 2 in row else row for row in rows]


def check_logits(engine, student, tokens=(2, 20, 21), sources=SOURCES):
    """Step by step they are the student's, and near them where it rounds activations, which kernels do by blocks."""
    steps = engine._read_source(sources, 1, len(tokens))
    ours = np.stack([steps.logits(np.array([token] * len(sources))).copy() for token in tokens], axis=1)
    with torch.no_grad():
        theirs = student(**padded(sources), decoder_input_ids=torch.tensor([tokens] * len(sources))).logits.numpy()
    difference = np.abs(ours - theirs)
    if student.dqlib_config.a_bits == 32:
        assert difference.max() < 1e-4
    else:
        assert difference.mean() < 0.05 * theirs.std()


@pytest.fixture
def exported(tmp_path):
    def export(model, **options):
        export_onnx(model, tmp_path / "onnx", **options)
        return OnnxEngine(tmp_path / "onnx", threads=1)

    return export


# --- the same weights


@pytest.mark.parametrize(
    ("bits", "preset", "options"),
    [
        *((bits, "dqlib-ternary", {}) for bits in ("1-1-32", "2-2-32", "3-4-32", "8-8-32", "32-32-32")),
        *((bits, FOUR_LEVELS, {}) for bits in ("2-2-32", "1-2-32", "2-8-32")),
        *(("2-2-32", preset, {"bits": 4}) for preset in ("dqlib-ternary", FOUR_LEVELS)),
        ("2-2-32", "dqlib-stretched", {}),
        ("1-1-32", "dqlib-elastic-binary", {}),
        ("2-2-32", GROUPS_OF_FOUR_LEVELS, {}),
        ("2-2-8", "dqlib-ternary", {"encoder": "packed"}),
        ("8-8-8", "dqlib-ternary", {"encoder": "int8"}),
        *(("2-2-8", FOUR_LEVELS, {"encoder": encoder}) for encoder in ("int8", "packed")),
    ],
)
def test_weights_survive_exactly_and_rounded_activations_stay_near_the_student(
    teacher, exported, bits, preset, options
):
    with torch.no_grad():
        teacher.final_logits_bias.normal_()
    student = student_of(teacher, bits, preset)
    with torch.no_grad():
        for module in quantized_modules(student).values():
            if module.weight_quantizer.learned is not None:
                module.weight_quantizer.learned.mul_(torch.rand_like(module.weight_quantizer.learned) + 0.5)
    check_logits(exported(student, **options), student, [2, 20, 21, 22, 23])


def test_an_encoder_of_int8_is_for_one_scale_a_row_and_others_are_packed(teacher, tmp_path):
    made = partial(replace, get_preset("dqlib"), name="made")
    groups, asymmetric = {"linear": "per_group_16"}, {"two_bits": "asymmetric"}
    presets = "dqlib-ternary", *(made(weights=WeightQuantization(**each)) for each in (groups, asymmetric))
    for bits, preset in zip(("32-8-8", "2-2-8", "2-2-8"), presets, strict=True):
        student = student_of(teacher, bits, preset)
        export_onnx(student, tmp_path / "onnx")
        assert opened(tmp_path / "onnx", "onnxruntime").about["encoder"] == "packed"
        with pytest.raises(InputError, match=r"^encoder: 'int8' .* packed, since model\.encoder\.layers\.0"):
            export_onnx(student, tmp_path / "onnx", encoder="int8")
    export_onnx(student_of(teacher, "2-2-8"), tmp_path / "onnx")
    assert opened(tmp_path / "onnx", "onnxruntime").about["encoder"] == "int8"


@pytest.mark.parametrize(
    ("bits", "granularity", "scheme", "asked", "expected"),
    [
        (1, "per_row", "binary", None, (2, False)),
        *((bits, "per_row", "symmetric", None, (bits, False)) for bits in (2, 4, 8)),
        (2, "per_row", "four_level", None, (2, True)),  # shifted by half a scale
        (2, "per_row", "four_level", 4, (4, False)),
        (2, "per_group_20", "four_level", None, (None, None)),  # no block of a kernel
        (2, "per_group_32", "four_level", None, (4, False)),  # each group would have a sum of its own
    ],
)
def test_codes_of_a_kernel_stand_for_the_weight(bits, granularity, scheme, asked, expected):
    columns = 64 if granularity == "per_group_32" else 40
    quantized = quantize(torch.randn(5, columns), bits, granularity, scheme)
    codes = Codes.of(quantized, asked)
    if codes is None:
        assert expected == (None, None)
        return
    assert (codes.bits, codes.shifted) == expected
    packed, places = codes.packed(16), 8 // codes.bits
    unpacked = np.stack([(packed >> (codes.bits * i)) & (2**codes.bits - 1) for i in range(places)], axis=-1)
    unpacked = unpacked.reshape(5, -1)[:, :columns].astype(np.float32) - 2 ** (codes.bits - 1)
    value = unpacked * codes.scale.repeat(codes.group, axis=1) + (codes.missing()[:, None] if codes.shifted else 0)
    np.testing.assert_allclose(value, quantized.dequantize(), rtol=1e-6)
    assert codes.scales(16).shape == (5, -(-columns // 16))
    if granularity == "per_row":
        signed, scale = codes.signed()
        assert signed.dtype == np.int8
        np.testing.assert_array_equal(signed.T, quantized.codes)
        np.testing.assert_array_equal(scale, quantized.scale[:, 0])
    else:
        with pytest.raises(InputError, match=r"^bits: 2 .* at least 4 for codes of 2 bits"):
            Codes.of(quantized, 2)


@pytest.mark.parametrize(
    ("widths", "bits"), [("h1 f12", "2-2-32"), ("h3 f33", "2-2-32"), ("h2", "2-2-32"), ("h3 f33", "8-8-8")]
)
def test_narrow_students_are_served_as_they_are(teacher, exported, widths, bits):
    student = make_student(teacher, Config.parse(f"{bits} 3-2 {widths}")).eval()
    engine = exported(student)
    check_logits(engine, student)
    if bits == "2-2-32":
        engine.early_stopping = True
        options = {"num_beams": 3, "max_new_tokens": 8}
        assert engine.generate_ids(SOURCES, **options) == generated(student, SOURCES, early_stopping=True, **options)


@pytest.mark.parametrize(("preset", "a_bits"), [("dqlib-ternary", 32), (FOUR_LEVELS, 8)])
def test_modules_of_different_bits_stay_codes(teacher, tmp_path, preset, a_bits):
    # Queries, keys and values of a decoder layer are one matrix to the kernel.
    paths = module_quantizers(student_of(teacher, "2-2-8"))
    for bits in ((1, 2), (2, 4), (1, 2, 4, 8)):
        mixed = Config.parse(f"2-2-{a_bits} 3-2")
        mixed = replace(mixed, modules=tuple((path, bits[i % len(bits)]) for i, path in enumerate(paths)))
        student = make_student(teacher, mixed, preset).eval()
        export_onnx(student, tmp_path / "onnx")
        nodes = onnx.load(tmp_path / "onnx" / "decoder.onnx", load_external_data=False).graph.node
        assert not any(node.op_type == "MatMul" for node in nodes)
        check_logits(OnnxEngine(tmp_path / "onnx", threads=1), student)


def test_the_sum_of_an_input_is_computed_once(teacher, tmp_path):
    for preset, joint in (("dqlib-ternary", False), (FOUR_LEVELS, True)):
        export_onnx(student_of(teacher, "2-2-8", preset), tmp_path / preset, encoder="packed")
        for graph in ("encoder", "decoder"):
            nodes = onnx.load(tmp_path / preset / f"{graph}.onnx", load_external_data=False).graph.node
            read = [node.input[0] for node in nodes if node.op_type == "MatMulNBits"]
            summed = [node.input[0] for node in nodes if node.op_type == "ReduceSum"]
            assert sorted(summed) == (sorted(set(read)) if joint else [])
            assert len(set(read)) < len(read) or graph == "decoder"  # queries, keys and values of the encoder


# --- the same searches


@BOTH
@pytest.mark.parametrize("end", [0.0, 7.0])  # where it is likely, most texts end early
def test_searches_are_those_of_transformers(teacher, exported, end):
    with torch.no_grad():
        teacher.final_logits_bias[0, 2] = end
    student = student_of(teacher, "2-2-32", FOUR_LEVELS)
    engine = exported(student)
    sources = [*SOURCES, [2]]  # one has nothing but its end
    check_logits(engine, student, sources=sources)
    for beams, new_tokens in ((1, 1), (1, 15), (4, 1), (4, 6), (4, 15)):
        options = {"num_beams": beams, "max_new_tokens": new_tokens}
        expected = generated(student, sources, **options)
        assert engine.generate_ids(sources, **options) == expected
    assert not end or min(map(len, expected)) < 15


# --- shapes


@pytest.mark.parametrize(("features", "heads"), [(16, 4), (15, 3)])
def test_a_size_of_heads_that_no_kernel_has_is_refused_at_export(teacher, tmp_path, features, heads):
    config = teacher.config.to_dict() | {"d_model": features, "decoder_attention_heads": heads}
    config["encoder_attention_heads"] = 1
    student = student_of(type(teacher)(type(teacher.config).from_dict(config)), "2-2-8")
    with pytest.raises(InputError, match=rf"^decoder_attention_heads: {heads} .* a multiple of 8 of the {features} "):
        export_onnx(student, tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("features", "heads", "others", "inner", "preset"),
    [(24, 3, 8, 5, "dqlib-ternary"), (40, 5, 1, 33, FOUR_LEVELS), (8, 1, 4, 1, FOUR_LEVELS)],
)
def test_any_other_width_runs(teacher, exported, features, heads, others, inner, preset):
    config = teacher.config.to_dict() | {"d_model": features, "decoder_attention_heads": heads}
    config |= {"encoder_attention_heads": others, "encoder_ffn_dim": inner, "decoder_ffn_dim": inner, "vocab_size": 61}
    student = student_of(type(teacher)(type(teacher.config).from_dict(config)), "2-2-32", preset)
    check_logits(exported(student), student)


def teacher_of(name, **fields):
    """A teacher of another architecture, whose norms and biases are not ones and zeros."""
    case = CASES[name]
    torch.manual_seed(0)
    content = {
        key: value for key, value in case.config.to_dict().items() if key not in ("dense_act_fn", "is_gated_act")
    }
    teacher = case.model(type(case.config).from_dict(content | fields)).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
        if hasattr(teacher, "final_logits_bias"):
            teacher.final_logits_bias.normal_()
    return teacher


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("marian", {"activation_function": "gelu"}),
        ("marian", {"activation_function": "relu"}),
        ("marian-unshared", {"activation_function": "swish"}),
        *(("t5", {"d_kv": 8, "feed_forward_proj": each}) for each in ("relu", "gated-silu", "gelu")),
        ("t5", {"d_kv": 8, "feed_forward_proj": "gated-gelu", "scale_decoder_outputs": False}),
    ],
)
def test_marian_and_t5_are_the_student_and_search_as_transformers_does(name, fields, exported):
    teacher = teacher_of(name, **fields)
    for bits in ("2-2-32", "2-2-8"):
        student = make_student(teacher, Config.parse(f"{bits} 2-1")).eval()
        engine = exported(student)
        check_logits(engine, student, [PAD, 20, 21, 22])
        for beams in (1, 3) if bits.endswith("32") else ():
            options = {"num_beams": beams, "max_new_tokens": 16 if name == "t5" else 8}
            expected = TorchEngine(student).generate_ids(SOURCES, **options)
            assert engine.generate_ids(SOURCES, **options) == expected
            assert any(expected) or beams == 1


@pytest.mark.parametrize("bits", ["2-2-32", "2-2-8"])
def test_a_t5_reads_and_writes_beyond_its_farthest_distance_and_with_fewer_heads(bits, exported):
    teacher = teacher_of("t5", d_kv=8, num_heads=4)
    teacher.lm_head.weight = torch.nn.Parameter(torch.randn(60, 16) / 4)  # a head of its own
    teacher.all_tied_weights_keys.pop("lm_head.weight")
    for shape in ("3-2", "2-1 h2 f9"):
        student = make_student(teacher, Config.parse(f"{bits} {shape}")).eval()
        check_logits(exported(student), student, [PAD, *range(10, 40)], [list(range(3, 43)), [7, 2]])


def test_errors_are_clear(teacher, tmp_path):
    student = student_of(teacher, "4-4-8")
    with pytest.raises(InputError, match=r"bits: 4 .* left out of a model that is not quantized"):
        export_onnx(teacher, tmp_path / "onnx", bits=4)
    with pytest.raises(InputError, match="bits: 3 is not allowed"):
        export_onnx(student, tmp_path / "onnx", bits=3)
    with pytest.raises(InputError, match="at least 4 for codes of 4 bits"):
        export_onnx(student, tmp_path / "onnx", bits=2)
    assert not (tmp_path / "onnx").exists()
    with pytest.raises(InputError, match="d_kv: 6 is not allowed; it must be a multiple of 8"):
        export_onnx(teacher_of("t5"), tmp_path / "onnx")
    with pytest.raises(InputError, match="dense_act_fn: 'tanh' is not allowed"):
        export_onnx(teacher_of("t5", d_kv=8, feed_forward_proj="tanh"), tmp_path / "onnx")
    export_onnx(student, tmp_path / "onnx")
    reseal(tmp_path / "onnx", about=dict(opened(tmp_path / "onnx", "onnxruntime").about) | {"format": 99})
    with pytest.raises(InputError, match="format"):
        OnnxEngine(tmp_path / "onnx")
