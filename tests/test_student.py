import copy

import pytest
import torch

from dqlib.config import Configuration
from dqlib.errors import InputError
from dqlib.footprint import footprint, fp32_size_bytes, size_bytes
from dqlib.quantizers import quantize
from dqlib.student import (
    layer_map,
    load_student,
    make_student,
    quantized_modules,
    save_student,
    supervision_map,
)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [(6, 6, [0, 1, 2, 3, 4, 5]), (3, 6, [0, 2, 5]), (3, 12, [0, 5, 11]), (2, 24, [0, 23]), (1, 6, [0]), (1, 1, [0])],
)
def test_layers_are_maximally_spaced(student, teacher, expected):
    assert layer_map(student, teacher) == expected


@pytest.mark.parametrize("teacher", range(2, 30))
def test_first_and_last_layer_are_always_kept(teacher):
    for student in range(2, teacher + 1):
        chosen = layer_map(student, teacher)
        assert (chosen[0], chosen[-1]) == (0, teacher - 1)
        assert len(set(chosen)) == student
    assert supervision_map(1, teacher) == [teacher - 1]


def test_more_layers_than_the_teacher_are_refused(teacher):
    with pytest.raises(InputError, match=r"encoder_layers: 5 .* at most 4"):
        make_student(teacher, Configuration.parse("2-2-8 5-3"))


def test_an_unknown_architecture_is_told_how_to_be_added():
    from transformers import PegasusConfig, PegasusForConditionalGeneration

    tiny = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 20, "max_position_embeddings": 8}
    tiny |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    with pytest.raises(InputError, match=r"model_type: 'pegasus' .* ARCHITECTURES"):
        make_student(PegasusForConditionalGeneration(PegasusConfig(**tiny)), Configuration.parse("2-2-8 1-1"))


def test_a_full_precision_full_depth_student_is_the_teacher(teacher, batch):
    student = make_student(teacher, Configuration.parse("32-32-32 4-3")).eval()
    teacher.set_attn_implementation("eager")
    inputs = batch.inputs()
    with torch.no_grad():
        ours = student(**inputs, output_attentions=True, output_hidden_states=True)
        theirs = teacher(**inputs, output_attentions=True, output_hidden_states=True)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.cross_attentions[1], theirs.cross_attentions[1])
    assert torch.equal(ours.encoder_hidden_states[2], theirs.encoder_hidden_states[2])


def test_layers_are_copied_by_the_map_and_the_teacher_is_left_alone(teacher):
    before = copy.deepcopy(teacher.state_dict())
    student = make_student(teacher, Configuration.parse("2-2-8 2-1"))
    assert torch.equal(student.model.encoder.layers[1].fc1.weight, teacher.model.encoder.layers[3].fc1.weight)
    assert (len(student.model.encoder.layers), len(student.model.decoder.layers)) == (2, 1)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not quantized_modules(teacher)


def test_embedding_and_head_are_one_quantized_table(teacher, batch):
    # The reference's head uses the full-precision embedding, so what it counts is not what it computes.
    student = make_student(teacher, Configuration.parse("2-2-32 4-3")).eval()
    table = quantize(student.model.shared.weight, 2).dequantize()
    with torch.no_grad():
        output = student(**batch.inputs(), output_hidden_states=True)
        logits = output.decoder_hidden_states[-1] @ table.T
    torch.testing.assert_close(output.logits, logits + student.final_logits_bias)
    assert student.lm_head.weight is student.model.shared.weight
    assert student.lm_head.weight_quantizer is student.model.encoder.embed_tokens.weight_quantizer


@pytest.mark.parametrize("config", ["8-8-8 4-3", "2-2-8 2-1", "1-1-8 1-1"])
def test_padding_does_not_change_a_result(teacher, batch, config):
    student = make_student(teacher, Configuration.parse(config)).eval()
    inputs = batch.inputs()
    with torch.no_grad():
        together = student(**inputs).logits[1, :2]
        alone = student(
            input_ids=inputs["input_ids"][1:2, :4],
            attention_mask=inputs["attention_mask"][1:2, :4],
            decoder_input_ids=inputs["decoder_input_ids"][1:2, :2],
        ).logits[0]
    # Sums in another order may move a value over a rounding edge, so not bit by bit.
    torch.testing.assert_close(together, alone, atol=0.05 * float(alone.abs().max()), rtol=0)


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(torch.optim.SGD, {}), (torch.optim.AdamW, {}), (torch.optim.AdamW, {"fused": True})],
    ids=["sgd", "adamw", "fused-adamw"],  # a fused optimizer does not raise a weight's version counter
)
def test_weights_are_quantized_once_a_step_and_once_a_generation(teacher, batch, optimizer, options):
    student = make_student(teacher, Configuration.parse("2-2-8 2-1"))
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


@pytest.mark.parametrize("config", ["8-8-8 4-3", "4-4-8 4-2", "3-3-8 1-2", "2-2-8 2-1", "1-1-8 1-1", "32-32-32 2-1"])
def test_every_parameter_learns(teacher, batch, config):
    student = make_student(teacher, Configuration.parse(config))
    student(**batch.inputs()).logits.square().sum().backward()
    without = [name for name, p in student.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []


@pytest.mark.parametrize("config", ["4-4-8 2-2", "2-2-8 2-1", "1-1-8 1-3"])
def test_cached_generation_gives_what_the_whole_forward_gives(teacher, batch, config):
    student = make_student(teacher, Configuration.parse(config)).eval()
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    greedy = {"max_new_tokens": 10, "num_beams": 1, "do_sample": False}
    assert torch.equal(student.generate(**inputs, **greedy), student.generate(**inputs, **greedy, use_cache=False))


def test_a_saved_student_loads_as_the_same_function(teacher, batch, tmp_path):
    student = make_student(teacher, Configuration.parse("2-2-8 2-1"), "per_tensor").eval()
    save_student(student, tmp_path)
    loaded = load_student(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(**batch.inputs()).logits, student(**batch.inputs()).logits)
    assert loaded.dqlib_granularity == "per_tensor"
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")) == []


def test_a_folder_without_sidecar_is_refused(teacher, tmp_path):
    teacher.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"dqlib\.json"):
        load_student(tmp_path)


def test_the_footprint_counts_every_number_once(teacher):
    student = make_student(teacher, Configuration.parse("2-2-8 4-3"))
    entries = footprint(student)
    assert sum(entry.numel for entry in entries) == sum(p.numel() for p in student.parameters())
    by_kind = {entry.kind for entry in entries}
    assert by_kind == {"weights", "embedding", "positions", "rest"}
    embedding = next(entry for entry in entries if entry.kind == "embedding")
    assert embedding.size_bytes == 96 * 32 * 2 // 8 + 96 * 2  # two bits a weight, a half-precision scale a row
    assert size_bytes(student) == sum(entry.size_bytes for entry in entries)
    assert fp32_size_bytes(teacher) == 4 * sum(p.numel() for p in teacher.parameters())
