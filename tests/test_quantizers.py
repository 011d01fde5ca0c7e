import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqlib.errors import InputError
from dqlib.fake_quantize import WeightFakeQuantizer
from dqlib.quantizers import (
    fake_quantize_activation,
    quantize,
)

GRANULARITIES = ("per_row", "per_tensor")


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 17),
    bits=st.sampled_from([1, 2, 3, 4, 8]),
    granularity=st.sampled_from(GRANULARITIES),
    seed=st.integers(0, 2**16),
)
def test_codes_stay_in_their_range_and_scales_have_the_granularity(rows, columns, bits, granularity, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    quantized = quantize(weight, bits, granularity)
    most = {1: 1, 2: 1}.get(bits, 2 ** (bits - 1) - 1)
    assert quantized.codes.dtype == torch.int8
    assert quantized.codes.abs().max() <= most
    assert quantized.scale.shape == ((rows, 1) if granularity == "per_row" else (1, 1))
    assert bits != 1 or (quantized.codes != 0).all()
    if bits > 2:  # uniform: no weight is further from its code than half a step
        assert ((quantized.dequantize() - weight).abs() <= quantized.scale * 0.50001).all()


def test_ternary_weights_follow_the_formula():
    weight = torch.tensor([[1.0, -0.9, 0.1, -0.2, 0.0]])  # mean 0.44, threshold 0.308
    quantized = quantize(weight, 2)
    assert quantized.codes.tolist() == [[1, -1, 0, 0, 0]]
    assert quantized.scale.item() == pytest.approx(0.95)


def test_binary_weights_follow_the_formula():
    quantized = quantize(torch.tensor([[1.0, -0.5, 0.0]]), 1)
    assert quantized.codes.tolist() == [[1, -1, 1]]
    assert quantized.scale.item() == pytest.approx(0.5)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_zeros_stay_zeros_and_finite(bits, granularity):
    # The reference divides by zero here: its padding row becomes NaN.
    weight = torch.randn(3, 5)
    weight[1] = 0
    out = quantize(weight, bits, "per_row").dequantize()
    assert (out[1] == 0).all()
    assert torch.isfinite(quantize(torch.zeros(3, 5), bits, granularity).dequantize()).all()


@pytest.mark.parametrize(("bits", "granularity"), [(0, "per_row"), (5, "per_row"), (32, "per_row"), (8, "per_group")])
def test_unsupported_bits_and_granularities_are_named(bits, granularity):
    with pytest.raises(InputError, match=r"bits: |granularity: "):
        quantize(torch.ones(2, 2), bits, granularity)


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    weight = torch.randn(4, 3, requires_grad=True)
    hat = torch.randn(4, 3)
    out = straight_through(weight, hat)
    upstream = torch.randn(4, 3)
    (out * upstream).sum().backward()
    assert torch.equal(out, hat)
    assert torch.equal(weight.grad, upstream)


def test_an_activation_does_not_depend_on_its_neighbours():
    # One scale a tensor, as the reference has it, lets padding change a sentence's result.
    x = torch.randn(2, 5, 16)
    crowd = torch.cat([x, 100 * torch.randn(2, 3, 16)], dim=1)
    assert torch.equal(fake_quantize_activation(crowd)[:, :5], fake_quantize_activation(x))


def test_activations_round_to_half_a_step_and_pass_the_gradient():
    x = torch.randn(7, 16, requires_grad=True)
    out = fake_quantize_activation(x, 8)
    step = x.abs().amax(-1, keepdim=True) / 127
    assert ((out - x).abs() <= step * 0.5001).all()
    out.sum().backward()
    assert (x.grad == 1).all()
    assert fake_quantize_activation(x, 32) is x
    assert (fake_quantize_activation(torch.zeros(2, 4)) == 0).all()


def test_probabilities_use_the_unsigned_grid():
    p = torch.softmax(torch.randn(50, 40), -1)
    signed = (fake_quantize_activation(p) - p).abs().mean()
    unsigned = (fake_quantize_activation(p, unsigned=True) - p).abs().mean()
    assert unsigned < 0.6 * signed


def test_a_weight_is_quantized_once_until_it_changes():
    weight = torch.nn.Parameter(torch.randn(4, 4))
    quantizer = WeightFakeQuantizer(2)
    for _ in range(3):
        quantizer(weight)
    assert quantizer.quantizations == 1
    with torch.no_grad():
        weight.add_(1.0)
    assert torch.equal(quantizer(weight), quantize(weight, 2).dequantize())
    assert quantizer.quantizations == 2
