import copy
import io
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration

import dqlib
from dqlib.config import Config, WeightQuantization
from dqlib.errors import InputError
from dqlib.fake_quantize import LEARNED
from dqlib.layers import QuantEmbedding
from dqlib.presets import get_preset
from dqlib.storage.manifest import verify
from dqlib.storage.packed import load_packed, save_packed
from dqlib.storage.students import load_student, save_student
from dqlib.student import (
    layer_map,
    make_student,
    plain_parameters,
    quantize_model,
    quantized_modules,
    round_for_storage,
    set_blend,
    supervision_map,
    supervision_maps,
)
from tests.helpers.folders import contents, reweigh
from tests.helpers.models import TINY, data_of, make_teacher, student_of


def pickled(what):
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_layers_of_the_faithful_preset_are_those_of_its_code_copied_and_supervised():
    teacher = BartForConditionalGeneration(BartConfig(**TINY, encoder_layers=6, decoder_layers=6))
    for layers in ([5], [0, 5], [0, 2, 5], [0, 2, 3, 5], [0, 1, 3, 4, 5]):
        config = Config.parse(f"8-8-8 {len(layers)}-{len(layers)}")
        student = make_student(teacher, config, "dq-bart-faithful")
        for side in ("encoder", "decoder"):
            ours, theirs = getattr(student.model, side).layers, getattr(teacher.model, side).layers
            pairs = zip(ours, (theirs[i] for i in layers), strict=True)
            assert all(torch.equal(one.fc1.weight, other.fc1.weight) for one, other in pairs)
            assert list(getattr(supervision_maps(config, teacher), side)) == layers
    assert layer_map(3, 12) == [0, 5, 11]  # of two that are as near, the lower one


@pytest.mark.parametrize("teacher", [1, 2, 3, 6, 7, 12, 24, 29])
def test_first_and_last_layer_are_kept_and_each_is_the_nearest_to_even_spacing(teacher):
    for student in range(2, teacher + 1):
        chosen = layer_map(student, teacher)
        assert chosen == layer_map(student, teacher, "last")
        assert (chosen[0], chosen[-1]) == (0, teacher - 1)
        assert len(set(chosen)) == student
        assert all(2 * abs(layer * (student - 1) - i * (teacher - 1)) <= student - 1 for i, layer in enumerate(chosen))
    # a single layer is the first or, where asked, the last, which supervises it
    assert layer_map(1, teacher) == layer_map(1, teacher, "first") == [0]
    assert layer_map(1, teacher, "last") == supervision_map(1, teacher) == [teacher - 1]
    assert supervision_map(0, teacher) == supervision_map(0, 0) == []  # of a side without layers
    for student in (0, teacher + 1, -1):
        with pytest.raises(InputError, match=rf"student_layers: {student} .* between 1 and {teacher}"):
            layer_map(student, teacher)


@pytest.mark.parametrize(("config", "packed"), [("2-2-8 2-1", True), ("32-32-32 4-3", False)])
def test_a_model_that_is_quantized_already_is_refused(teacher, tmp_path, config, packed):
    # Its layers would keep their bits, and those that had none would get the new ones.
    student = make_student(teacher, Config.parse(config))
    if packed:
        round_for_storage(student)
        save_packed(student, tmp_path / "packed")
        student = load_packed(tmp_path / "packed")
        with pytest.raises(InputError, match=r"^model: .* make_student or load_student"):
            save_student(student, tmp_path / "student")
    for again in (make_student, quantize_model):
        with pytest.raises(InputError, match=rf"^model: '.* quantized as {config}' .* in full precision"):
            again(student, Config.parse("8-8-8 1-1"))


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(torch.optim.SGD, {}), (torch.optim.AdamW, {"fused": True})],
    ids=["sgd", "fused-adamw"],  # a fused optimizer does not raise a weight's version counter
)
def test_weights_are_quantized_once_a_step_and_once_a_generation(teacher, batch, optimizer, options):
    student = make_student(teacher, Config.parse("2-2-8 2-1"))
    quantizers = {id(m.weight_quantizer): m.weight_quantizer for m in quantized_modules(student).values()}.values()
    optimizer = optimizer(student.parameters(), lr=0.01, **options)
    for step in range(3):
        for _ in range(2):  # two micro-batches
            student(**batch.inputs()).logits.sum().backward()
        assert {q.quantizations for q in quantizers} == {step + 1}
        optimizer.step()
        optimizer.zero_grad()
    student.eval().generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=8)
    assert {q.quantizations for q in quantizers} == {4}


@pytest.mark.parametrize("preset", ["dqlib-fixed-scales", "dq-bart-faithful", "quantgpt"])
def test_weights_in_the_place_of_others_are_those_that_count(teacher, batch, preset):
    student = make_student(teacher, Config.parse("2-2-8 2-1"), preset).eval()

    def weights(seed):
        torch.manual_seed(seed)
        return {name: p + 0.1 * torch.randn_like(p) for name, p in student.named_parameters()}

    before = copy.deepcopy(student.state_dict())
    with torch.no_grad():
        found = [torch.func.functional_call(student, weights(seed), kwargs=batch.inputs()).logits for seed in range(4)]
        assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())  # put back
        for seed, logits in enumerate(found):  # the tensors of each round are gone with it, and their addresses free
            twin = copy.deepcopy(student)
            twin.load_state_dict(weights(seed), strict=False)
            assert torch.equal(logits, twin(**batch.inputs()).logits)


def test_weights_written_through_data_are_seen_after_forgetting(teacher, batch):
    student = make_student(teacher, Config.parse("2-2-8 2-1")).eval()
    with torch.no_grad():
        before = student(**batch.inputs()).logits
        for parameter in student.parameters():
            parameter.data.copy_(torch.lerp(parameter, torch.randn_like(parameter), 0.5))  # a moving average
        dqlib.forget(student)
        after = student(**batch.inputs()).logits
        assert torch.equal(after, copy.deepcopy(student)(**batch.inputs()).logits)
    assert not torch.equal(before, after)


def test_a_student_compiles_into_one_graph_that_learns_the_same(batch):
    torch._dynamo.reset()
    torch.manual_seed(0)
    teacher = BartForConditionalGeneration(BartConfig(**TINY, encoder_layers=1, decoder_layers=1))
    student = make_student(teacher, Config.parse("4-2-8 1-1"))
    compiled = torch.compile(student, backend="eager", fullgraph=True)  # which refuses what would break a graph
    inputs, gradients, logits = batch.inputs() | {"use_cache": False}, [], []
    for model in (student, compiled):
        logits.append(model(**inputs).logits)
        logits[-1].square().mean().backward()
        gradients.append([parameter.grad for parameter in student.parameters()])
        student.zero_grad()
    assert torch.equal(*logits)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        student.model.decoder.layers[0].fc1.weight.mul_(-1)
    assert torch.equal(student(**inputs).logits, compiled(**inputs).logits)


@pytest.mark.parametrize(("preset", "reentrant"), [("dqlib", False), ("dqlib", True), ("dq-bart-faithful", False)])
def test_a_checkpointed_student_learns_the_same(teacher, batch, preset, reentrant):
    student = make_student(teacher, Config.parse("2-2-8 4-3"), preset)
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            student.activation_checkpointing_enable({"use_reentrant": reentrant})
        student.zero_grad()
        student(**batch.inputs(), use_cache=False).logits.square().mean().backward()
        gradients.append([parameter.grad for parameter in student.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("name", "through"), [("mbart", copy.deepcopy), ("gpt2", copy.deepcopy), ("bert", pickled), ("t5", pickled)]
)
def test_a_copied_or_pickled_student_learns_on_with_its_optimizer(name, through):
    student, inputs = student_of(make_teacher(name), name, "2-2-8", "quantgpt"), data_of(name).inputs
    frozen = [parameter for name, parameter in student.named_parameters() if name.endswith(LEARNED)][::2]
    for parameter in frozen:
        parameter.requires_grad_(False)
    student(**inputs)  # what it remembers is of this one only
    other, optimizer = through((student, torch.optim.SGD(student.parameters(), lr=0.1)))
    assert [type(m) for m in other.modules()] == [type(m) for m in student.modules()]
    ours, theirs = dict(other.named_parameters()), dict(student.named_parameters())
    assert {k: p.requires_grad for k, p in ours.items()} == {k: p.requires_grad for k, p in theirs.items()}
    assert {id(p) for p in ours.values()} == {id(p) for p in optimizer.param_groups[0]["params"]}
    before = student(**inputs).logits
    other(**inputs).logits.square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, theirs[k]) for k, p in ours.items() if p.requires_grad and p.grad.any())
    assert not torch.equal(other(**inputs).logits, before)
    assert torch.equal(student(**inputs).logits, before)


@pytest.mark.parametrize(("preset", "bits"), [("dqlib", "8-8-8"), ("quantgpt", "2-2-8"), ("dq-bart-faithful", "2-2-8")])
def test_a_rounded_student_computes_with_fp16_numbers(teacher, batch, preset, bits):
    student = make_student(teacher, Config.parse(f"{bits} 2-2"), preset).eval()
    with torch.no_grad():
        before = student(**batch.inputs()).logits
        round_for_storage(student)
        logits = student(**batch.inputs()).logits
    assert not torch.equal(before, logits)
    torch.testing.assert_close(logits, before, rtol=0.2, atol=0.2)
    for parameter in plain_parameters(student).values():
        assert torch.equal(parameter, parameter.half().float())
    for module in quantized_modules(student).values():
        scale = module.quantized().scale
        assert torch.equal(scale, scale.half().float())
        assert torch.equal(module.quantized().dequantize(), module.weight_quantizer(module.weight))


def test_a_trained_scale_that_is_missing_or_of_another_shape_is_named(teacher, tmp_path):
    save_student(make_student(teacher, Config.parse("2-2-8 2-1")), tmp_path)
    name = "model.decoder.layers.0.fc1.weight_quantizer.learned"
    for change, message in (
        (lambda tensors: tensors.update({name: tensors[name][:1]}), r"\(1, 1\).* shape \(48, 1\)"),
        (lambda tensors: tensors.update({name: torch.full((48, 1), torch.nan)}), "nan or inf"),
        (lambda tensors: tensors.pop(name), "'missing'"),
        (lambda tensors: tensors.update({f"model.{LEARNED}": torch.ones(1)}), "'missing'"),
    ):
        reweigh(tmp_path, change)
        with pytest.raises(InputError, match=rf"^{name}: .*{message}"):
            load_student(tmp_path)


def test_a_failed_save_leaves_the_old_student_and_no_save_touches_other_files(teacher, tmp_path, monkeypatch):
    save_student(make_student(teacher, Config.parse("2-2-8 2-1")), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    before, other = contents(tmp_path), make_student(teacher, Config.parse("32-32-8 2-1"))
    monkeypatch.setattr("dqlib.storage.reading.seal", Mock(side_effect=OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_student(other, tmp_path)
    monkeypatch.undo()
    assert contents(tmp_path) == before
    save_student(other, tmp_path)
    assert contents(tmp_path).keys() == before.keys()


def test_a_number_too_large_for_fp16_is_named(teacher):
    student = make_student(teacher, Config.parse("2-2-8 2-2"))
    name, parameter = next((n, p) for n, p in plain_parameters(student).items() if n.endswith("bias"))
    with torch.no_grad():
        parameter[0] = 1e5
    with pytest.raises(InputError, match=name):
        round_for_storage(student)


@pytest.mark.parametrize("preset", ["dqlib", "dq-bart-faithful"])
def test_what_is_saved_by_either_name_is_the_student(teacher, batch, tmp_path, preset):
    student = make_student(teacher, Config.parse("2-2-8 2-1"), preset).eval()
    round_for_storage(student)
    save_student(student, tmp_path / "ours")
    student.save_pretrained(tmp_path / "theirs")
    copy.deepcopy(student).save_pretrained(tmp_path / "copied", max_shard_size="40KB")
    assert len(list((tmp_path / "copied").glob("model-*.safetensors"))) > 1
    for name in ("ours", "theirs", "copied"):
        assert verify(tmp_path / name) == []
        with torch.no_grad():
            assert torch.equal(load_student(tmp_path / name)(**batch.inputs()).logits, student(**batch.inputs()).logits)
        for kind in (type(teacher), AutoModelForSeq2SeqLM):  # full precision would be another function
            with pytest.raises(ValueError, match=r"the weights of a student, which dqlib\.load_student reads"):
                kind.from_pretrained(tmp_path / name)


def test_a_weight_that_is_not_finite_is_named_before_it_is_quantized(teacher):
    # One NaN makes the scale of its whole row NaN, and with it every sentence that meets the row.
    for value in (torch.nan, torch.inf, -torch.inf):
        with torch.no_grad():
            teacher.model.decoder.layers[2].fc1.weight[3, 4] = value
        with pytest.raises(InputError, match=r"model\.decoder\.layers\.\d\.fc1, weight: 'nan or inf' .* finite"):
            make_student(teacher, Config.parse("2-2-8 4-3"))


def test_a_group_that_does_not_fit_a_layer_names_the_layer(teacher):
    preset = replace(get_preset("dqlib"), weights=WeightQuantization(linear="per_group_32"))
    for each in (preset, "dqlib-groups-of-32"):
        with pytest.raises(InputError, match=r"fc2, granularity: 'per_group_32' .* divides a row of 48 weights"):
            make_student(teacher, Config.parse("2-2-8 4-3"), each)


def test_a_blend_of_zero_is_full_precision_and_of_one_the_student(teacher, batch):
    student = make_student(teacher, Config.parse("2-2-32 4-3"), "dq-bart-faithful").eval()
    teacher.set_attn_implementation("eager")
    with torch.no_grad():
        quantized = student(**batch.inputs()).logits
        full = teacher(**batch.inputs()).logits
        set_blend(student, 0.0)
        torch.testing.assert_close(student(**batch.inputs()).logits, full)
        set_blend(student, 1.0)
        assert torch.equal(student(**batch.inputs()).logits, quantized)
        assert not torch.allclose(full, quantized)


@pytest.mark.parametrize("name", ["bart", "gpt2"])
def test_a_printed_student_tells_bits_and_scheme_of_every_quantizer(name):
    printed = str(student_of(make_teacher(name), name, "2-4-8", "dqlib"))
    assert "WeightFakeQuantizer(4 bits, symmetric, per_row, trained factor)" in printed
    assert "inputs=ActivationFakeQuantizer(8 bits, per_token)" in printed
    printed = str(student_of(make_teacher("bart"), "bart", "2-2-32", "dq-bart-faithful"))
    assert "WeightFakeQuantizer(2 bits, ternary, per_tensor, clip=2.5)" in printed
    assert "inputs=ActivationFakeQuantizer(32 bits)" in printed


def test_the_head_stays_in_full_precision_where_the_method_says_so(teacher, batch):
    student = make_student(teacher, Config.parse("2-2-8 4-3"), "dq-bart-faithful").eval()
    with torch.no_grad():
        output = student(**batch.inputs(), output_hidden_states=True)
        expected = output.decoder_hidden_states[-1] @ student.model.shared.weight.T + student.final_logits_bias
    torch.testing.assert_close(output.logits, expected)
    assert not isinstance(student.model.encoder.embed_positions, QuantEmbedding)
    assert isinstance(student.model.encoder.embed_tokens, QuantEmbedding)
