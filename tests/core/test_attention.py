import torch
from torch import nn

from dqlib.attention import quantized_attention
from dqlib.config import ActivationQuantization
from dqlib.layers import ActivationFakeQuantizer
from dqlib.quantizers import fake_quantize_activation


def qkv():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 5, 4, generator=generator) for _ in range(3)]  # (batch, heads, tokens, head_dim)


def module(bits=8, **options):
    attention = nn.Module().eval()
    attention.activation = ActivationFakeQuantizer(bits, ActivationQuantization(**options))
    return attention


def test_a_module_that_was_never_quantized_attends_in_full_precision():
    # The teacher runs through the same function, where its scores are to be compared.
    query, key, value = qkv()
    output, maps = quantized_attention(nn.Module().eval(), query, key, value, None)
    expected = nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(output, expected.transpose(1, 2))
    torch.testing.assert_close(maps, torch.softmax(query @ key.transpose(2, 3) / 2, -1))


def test_queries_are_rounded_a_token_and_probabilities_on_the_unsigned_grid():
    query, key, value = qkv()
    output, maps = quantized_attention(module(), query, key, value, None)  # keys and values come rounded already
    probabilities = torch.softmax(fake_quantize_activation(query) @ key.transpose(2, 3) / 2, -1)
    torch.testing.assert_close(maps, probabilities)
    expected = fake_quantize_activation(probabilities, unsigned=True) @ value
    torch.testing.assert_close(output, expected.transpose(1, 2))


def test_one_scale_a_tensor_rounds_the_scaled_query_keys_values_and_probabilities():
    query, key, value = (5 * x for x in qkv())
    output, maps = quantized_attention(
        module(granularity="per_tensor", unsigned=False, clip=2.5), query, key, value, None
    )
    q, k, v = (fake_quantize_activation(x, 8, False, True, 2.5) for x in (query / 2, key, value))
    torch.testing.assert_close(maps, torch.softmax(q @ k.transpose(2, 3), -1))
    torch.testing.assert_close(output, (fake_quantize_activation(maps, 8, False, True, 2.5) @ v).transpose(1, 2))


def test_scores_are_what_the_softmax_is_taken_of_and_zero_where_masked():
    query, key, value = qkv()
    attention, bias = module(32), torch.randn(1, 3, 5, 5)
    mask = torch.zeros(2, 1, 5, 5).masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), torch.finfo().min)
    output, probabilities = quantized_attention(attention, query, key, value, mask, position_bias=bias)
    attention.attention_maps = "scores"
    same_output, scores = quantized_attention(attention, query, key, value, mask, position_bias=bias)
    assert torch.equal(output, same_output)
    seen = mask.expand_as(scores) == 0
    assert (scores[~seen] == 0).all()
    torch.testing.assert_close(scores[seen], (query @ key.transpose(2, 3) / 2 + bias)[seen])
    torch.testing.assert_close(torch.softmax(scores.masked_fill(~seen, -torch.inf), -1), probabilities)
