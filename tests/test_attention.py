import pytest
import torch

from dqlib.config import Configuration
from dqlib.student import make_student


def test_the_padding_mask_reaches_quantized_attention(teacher, batch):
    # Registered without a mask function, an attention silently attends to padding.
    student = make_student(teacher, Configuration.parse("32-32-8 4-3")).eval()
    with torch.no_grad():
        output = student(**batch.inputs(), output_attentions=True)
    padded = ~batch.attention_mask.bool()[:, None, None, :]
    for maps in (*output.encoder_attentions, *output.cross_attentions):
        assert maps.masked_select(padded).max() == 0
    causal = torch.ones(6, 6, dtype=torch.bool).triu(1)
    assert all(maps[..., causal].max() == 0 for maps in output.decoder_attentions)


def test_eight_bits_are_close_to_full_precision(teacher, batch):
    teacher.set_attn_implementation("eager")
    student = make_student(teacher, Configuration.parse("32-32-8 4-3")).eval()
    with torch.no_grad():
        ours, theirs = student(**batch.inputs()).logits, teacher(**batch.inputs()).logits
    error = (ours - theirs).norm() / theirs.norm()
    assert 0 < error < 0.05


@pytest.mark.parametrize("bits", [8, 32])
def test_attention_inputs_are_rounded_only_where_asked(teacher, bits):
    student = make_student(teacher, Configuration.parse(f"2-2-{bits} 4-3"))
    assert {layer.self_attn.activation_bits for layer in student.model.encoder.layers} == {bits}
    assert {layer.encoder_attn.activation_bits for layer in student.model.decoder.layers} == {bits}
