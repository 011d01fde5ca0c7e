import copy
import weakref
from functools import partial
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqlib import quantizers
from dqlib.config import ActivationQuantization, Granularity, WeightQuantization
from dqlib.errors import InputError
from dqlib.fake_quantize import WeightFakeQuantizer
from dqlib.layers import ActivationFakeQuantizer
from dqlib.quantizers import fake_quantize_activation, fake_quantize_weight, initial_learned, quantize
from dqlib.schemes import SCHEMES, Scheme
from dqlib.storage.stored import PackedWeight

GRANULARITIES = ("per_row", "per_tensor", "per_group_4")
#: Every scheme with every number of bits that it has a grid for, and with those at the ends only.
ALL_GRIDS = [(name, bits) for name, scheme in SCHEMES.items() for bits in scheme.bits]
GRIDS = [(name, bits) for name, bits in ALL_GRIDS if bits in (1, 2, 3, 8)]
LEARNED = [(scheme, bits) for scheme, bits in GRIDS if SCHEMES[scheme].learned]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def learned_for(weight, bits, granularity, scheme):
    return initial_learned(weight, bits, granularity, scheme) if SCHEMES[scheme].learned else None


def quantized(weight, bits, granularity, scheme, **options):
    return quantize(weight, bits, granularity, scheme, learned_for(weight, bits, granularity, scheme), **options)


def of_each(scale, weight):
    """What each weight shares with others: (rows, columns)."""
    return scale.repeat_interleave(weight.size(1) // scale.size(1), dim=1).expand_as(weight)


def preset(scheme, bits, **options):
    """What makes a quantizer of that many bits use that scheme."""
    return WeightQuantization(**{{1: "one_bit", 2: "two_bits"}.get(bits, "more_bits"): str(scheme)}, **options)


def top(bits):
    return max(1, 2 ** (bits - 1) - 1)


ODD = ("four_level", "stretched")  # whose codes are odd numbers


# --- codes and scales


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 6),
    quads=st.integers(1, 3),
    grid=st.sampled_from([(None, bits) for bits in range(1, 9)] + ALL_GRIDS),
    granularity=st.sampled_from(GRANULARITIES),
    full_range=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_codes_scales_and_what_they_stand_for(rows, quads, grid, granularity, full_range, seed):
    (scheme, bits), weight = grid, randn(rows, 4 * quads, seed=seed)
    q = quantized(weight, bits, granularity, scheme or default(bits), full_range=full_range)
    if scheme is None:
        assert torch.equal(quantize(weight, bits, granularity, full_range=full_range).codes, q.codes)
        scheme = default(bits)
    whole = scheme == "asymmetric" or (full_range and scheme == "symmetric")
    assert q.codes.dtype == torch.int8
    assert q.codes.shape == weight.shape
    if bits == 1 or scheme in ODD:
        assert (q.codes % 2 == 1).all()
        assert q.codes.abs().max() <= 2**bits - 1
    else:
        assert q.codes.min() >= (-(2 ** (bits - 1)) if whole else -top(bits))
        assert q.codes.max() <= top(bits)
    assert q.scale.shape == {"per_row": (rows, 1), "per_tensor": (1, 1), "per_group_4": (rows, quads)}[granularity]
    assert q.bits == bits
    assert (q.zero_point is not None) == (scheme == "asymmetric")
    value, steps = q.dequantize(), of_each(q.scale, weight)
    zeros = 0 if q.zero_point is None else of_each(q.zero_point, weight)
    assert torch.equal(value, (q.codes - zeros) * steps)
    if scheme == "symmetric" and not full_range:  # no weight is further from its code than half a step
        assert ((value - weight).abs() <= steps * 0.50001).all()
    if granularity == "per_group_4":  # groups are the rows of the reshaped matrix
        alone = quantized(weight.view(-1, 4), bits, "per_row", scheme, full_range=full_range)
        assert torch.equal(q.codes.view(-1, 4), alone.codes)
        assert torch.equal(q.scale.view(-1, 1), alone.scale)
        assert torch.equal(value.view(-1, 4), alone.dequantize())


def default(bits):
    return {1: "binary", 2: "ternary"}.get(bits, "symmetric")


@pytest.mark.parametrize(
    ("bits", "integer_zero_point", "offset"), [(2, True, 0.0), (8, False, 3.0), (8, True, -100.0), (2, False, -100.0)]
)
def test_no_weight_is_further_from_its_asymmetric_code_than_a_step(bits, integer_zero_point, offset):
    # A zero point held in int8 would wrap around where all weights lie on one side of zero.
    weight = randn(6, 12) + offset
    q = quantize(weight, bits, "per_row", "asymmetric", integer_zero_point=integer_zero_point)
    torch.testing.assert_close(q.scale, (weight.amax(1, True) - weight.amin(1, True)) / (2**bits - 1))
    assert ((q.dequantize() - weight).abs() <= q.scale * 1.001 + 1e-5 * abs(offset)).all()
    assert torch.equal(q.zero_point, q.zero_point.round()) or not integer_zero_point


def test_an_integer_zero_point_gives_zero_a_code_of_its_own():
    weight = torch.tensor([[-0.3, 0.0, 0.1, 0.9]])
    assert quantize(weight, 3, "per_row", "asymmetric").dequantize()[0, 1] == 0
    plain = quantize(weight, 3, "per_row", "asymmetric", integer_zero_point=False).dequantize()
    assert plain[0, 0] == weight[0, 0]  # but then the smallest weight is exact
    assert plain[0, 1] != 0
    for value in (0.25, -0.25):  # all alike: their range is zero, so a step made from it is zero, too
        alike = torch.full((2, 4), value)
        assert torch.equal(quantize(alike, 8, "per_row", "asymmetric").dequantize(), alike)


@pytest.mark.parametrize(
    ("scheme", "bits", "learned", "weight", "codes", "scale"),
    [
        # mean 0.44, threshold 0.308
        ("ternary", 2, None, [1.0, -0.9, 0.1, -0.2, 0.0], [1, -1, 0, 0, 0], 0.95),
        ("binary", 1, None, [1.0, -0.5, 0.0], [1, -1, 1], 0.5),
        # mean 0.46, levels at 0.2875 and 0.8625 of each sign
        ("four_level", 2, None, [1.0, -0.9, 0.1, -0.2, 0.0, 0.56], [3, -3, 1, -1, 1, 1], 0.2875),
        ("stretched", 2, 1.0, [0.5, -0.5, 0.0], [3, -1, 1], 0.25),  # as near to one code as to another: the higher one
        # ParetoQ's levels of the clip: -3/4, -1/4, 1/4, 3/4; halves of it part the outer levels from the inner ones
        ("stretched", 2, 0.8, [0.9, 0.41, 0.39, -0.1, -0.41, -9.0], [3, 3, 1, -1, -3, -3], 0.2),
        ("lsq", 1, 0.7, [1.0, -0.5, 0.0], [1, -1, 1], 0.7),  # that scale and the sign
        ("lsq", 3, 0.2, [1.0, -0.41, 0.09, 0.25, -9.0], [3, -2, 0, 1, -3], 0.2),
        ("asymmetric", 2, None, [-1.0, 0.0, 0.4, 2.0], [-2, -1, -1, 1], 1.0),  # step 1, -1 at the lowest code
        # mean 0.4: the clip is 0.6, the step 0.2
        ("dynamic", 3, 1.5, [1.0, -0.5, 0.1, 0.0], [3, -2, 0, 0], 0.2),
        ("dynamic", 1, 1.5, [1.0, -0.5, 0.1, 0.0], [1, -1, 1, 1], 0.6),
        ("symmetric", 3, None, [-4.0, 4.0, 1.0], [-3, 3, 1], 4 / 3),
    ],
)
def test_codes_follow_the_formula(scheme, bits, learned, weight, codes, scale):
    q = quantize(
        torch.tensor([weight]), bits, "per_row", scheme, None if learned is None else torch.tensor([[learned]])
    )
    assert q.codes.tolist() == [codes]
    assert q.scale.item() == pytest.approx(scale)
    assert q.zero_point is None or q.zero_point.item() == -1


def test_the_step_of_four_levels_is_that_of_least_error_for_a_normal_weight():
    # Max 1960, table II: four levels have an error of 0.1188 variances, and the three of ternary weights 0.191.
    weight = randn(1, 2**20)
    clip = initial_learned(weight, 2, "per_row", "stretched")
    fixed = quantize(weight, 2, "per_row", "four_level").dequantize()
    assert torch.equal(quantize(weight, 2, "per_row", "stretched", clip).dequantize(), fixed)

    def error(value):
        return (value - weight).square().mean().item()

    assert error(fixed) == pytest.approx(0.1188, abs=0.0005)
    for part in (0.97, 1.03):
        assert error(quantize(weight, 2, "per_row", "stretched", part * clip).dequantize()) > error(fixed)
    assert error(quantize(weight, 2).dequantize()) == pytest.approx(0.191, abs=0.001)


@pytest.mark.parametrize(("scheme", "bits"), GRIDS)
def test_zeros_stay_zeros_and_finite(scheme, bits):
    # The reference divides by zero here: its padding row becomes NaN.
    weight = randn(3, 8)
    weight[1] = 0
    quantizer = WeightFakeQuantizer(weight, bits, "per_row", preset(scheme, bits))
    quantizer(weight.requires_grad_()).sum().backward()
    assert torch.isfinite(weight.grad).all()
    assert (weight.grad[1] == 1).all()  # it may learn to be another one
    out = quantizer(weight)
    assert (out[1] == 0).all()
    if quantizer.learned is not None:
        assert torch.isfinite(quantizer.learned.grad).all()
        assert quantizer.learned.grad[1] == 0
        with torch.no_grad():
            quantizer.learned.add_(1.0)
        assert (quantizer(weight)[1] == 0).all()
    assert torch.isfinite(out).all()
    for granularity in GRANULARITIES:
        assert (quantized(torch.zeros(3, 8), bits, granularity, scheme).dequantize() == 0).all()


# --- without the codes

PLAIN = [grid for grid in GRIDS if grid not in LEARNED]


@pytest.mark.parametrize(("scheme", "bits"), PLAIN)
def test_a_value_without_codes_is_that_of_the_codes_also_where_it_is_made_in_blocks(scheme, bits, monkeypatch):
    # Training sees this value, and an export the codes: they must not part, nor differ in the sign of a zero.
    monkeypatch.setattr(quantizers, "BLOCK", 512)
    shapes = (40, 16), (9, 64), (4, 256)  # many rows per block, with a rest; few; too wide for blocks
    assert [quantizers.block_of_rows(randn(*shape)) for shape in shapes] == [32, 8, None]
    weights = [randn(*shape) for shape in shapes] + [randn(8, 12), 3 * randn(8, 12).double(), -randn(8, 12).abs()]
    weights += [torch.zeros(8, 12), randn(16, 40).T]  # a transposed one is taken whole
    every = [{}, {"clip": 1.0}, {"full_range": True}, {"integer_zero_point": False}]
    for granularity, options, weight in product(GRANULARITIES, every, weights):
        before, shape = weight.clone(), Granularity.parse(granularity).scale_shape(*weight.shape)
        for factor in (None, randn(*shape)):
            ours = fake_quantize_weight(weight, bits, granularity, scheme, factor, **options)
            theirs = quantize(weight, bits, granularity, scheme, factor, **options).dequantize()
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)
            assert torch.equal(ours.signbit(), theirs.signbit())
        assert torch.equal(weight, before)  # faster by working in place, but not in this place


# --- what is refused


def test_a_granularity_is_one_of_three_and_prints_back_as_it_was_read():
    for text in ("per_tensor", "per_row", "per_group_64"):
        assert str(Granularity.parse(text)) == text
        assert Granularity.parse(Granularity.parse(text)) == Granularity.parse(text)
    for bad in ("per_group", "per_group_0", "per_row_4", "per_column", "", None, 4):
        with pytest.raises(InputError, match=r"granularity: .* per_tensor, per_row, or per_group_k"):
            Granularity.parse(bad)
    for bad in (("per_group", 0), ("per_row", 4), ("per_group", -4), ("per_head", 0)):  # which belong together
        with pytest.raises(InputError, match=r"granularity: "):
            Granularity(*bad)


def test_a_quantization_that_cannot_be_is_refused():
    weight = torch.ones(2, 2)
    calls = (quantize, fake_quantize_weight, partial(initial_learned, granularity="per_row", scheme="dynamic"))
    for call, bits in product((*calls, WeightFakeQuantizer), (-1, 0, 9, 32, 2.5, None)):
        with pytest.raises(InputError, match=r"bits: .* from 1 to 8"):
            call(weight, bits)
    for scheme, bits in ((name, bits) for name in SCHEMES for bits in range(1, 9) if bits not in SCHEMES[name].bits):
        with pytest.raises(InputError, match=rf"bits: {bits} .* with the scheme '{scheme}'"):
            quantize(weight, bits, "per_row", scheme)
    for call in (quantize, fake_quantize_weight):
        for wrong, message in (
            (("per_group_3",), r"granularity: 'per_group_3' .* a row of 2 weights"),
            (("per_group",), r"granularity: 'per_group' "),
            (("per_row", "kmeans"), rf"scheme: 'kmeans' .* one of {', '.join(SCHEMES)}"),
        ):
            with pytest.raises(InputError, match=message):
                call(weight, 8, *wrong)
    for kind, field, *values in (
        (WeightQuantization, "one_bit", "ternary"),
        (WeightQuantization, "two_bits", "binary"),
        (WeightQuantization, "more_bits", "ternary", "kmeans"),
        (WeightQuantization, "clip", 0.0, float("nan")),
        (ActivationQuantization, "granularity", "per_row"),
        (ActivationQuantization, "clip", 0.0, -1.0),
    ):
        for value in values:
            with pytest.raises(InputError, match=rf"{field}: "):
                kind(**{field: value})
    with pytest.raises(InputError, match=r"granularity: "):
        WeightQuantization(linear="per_column")


# --- training


def round_pass(x):
    return (x.round() - x).detach() + x


def grad_scale(x, factor):
    return (x - x * factor).detach() + x * factor


def slow_lsq(weight, step, bits):
    """The paper's own pseudocode (arXiv:1902.08153, appendix A); a row of ``weight`` shares a step."""
    count = weight.size(-1) * top(bits)
    step = grad_scale(step, count**-0.5)
    if bits == 1:  # BiT (arXiv:2205.13016): a sign, whose gradient is that of the weight where it is within the step
        clipped = weight.clamp(-step.detach(), step.detach())
        return torch.where(weight < 0, -1.0, 1.0) * step + (clipped - clipped.detach())
    return round_pass((weight / step).clamp(-top(bits), top(bits))) * step


def slow_stretched(weight, clip, bits):
    """ParetoQ (arXiv:2502.02631): half the clip times the nearest of four levels of [-2, 2], as LSQ learns its step."""
    clip = grad_scale(clip, (weight.size(-1) * top(bits)) ** -0.5)
    half = 2 ** (bits - 1)
    levels = weight / clip * half
    nearest = ((levels - 0.5).round() + 0.5).clamp(0.5 - half, half - 0.5).detach()
    passed = levels + (nearest - levels).detach()
    return torch.where(levels.detach().abs() <= half, passed, nearest) * clip / half


def slow_dynamic(weight, gamma, bits):
    """QuantGPT (arXiv:2203.10705, section 3.2): the clip is gamma times the mean, which is no variable."""
    step = gamma * weight.detach().abs().mean(-1, keepdim=True) / top(bits)
    if bits == 1:
        sign = torch.where(weight < 0, -1.0, 1.0)
        return sign * step + weight - weight.detach()
    return round_pass((weight / step).clamp(-top(bits), top(bits))) * step


@pytest.mark.parametrize(
    ("granularity", "transposed"), [("per_row", False), ("per_tensor", False), ("per_group_4", True)]
)
@pytest.mark.parametrize(("scheme", "bits"), LEARNED)
def test_trained_scales_and_weights_have_the_gradient_of_the_paper(scheme, bits, granularity, transposed):
    # A transposed weight (GPT-2's) cannot be viewed as one row: the first version failed there.
    upstream = randn(8, 12, seed=1)
    base = randn(12, 8).T if transposed else randn(8, 12)
    weight = base.clone(memory_format=torch.preserve_format).requires_grad_()
    quantizer = WeightFakeQuantizer(weight, bits, granularity, preset(scheme, bits))
    mean = weight.detach().abs().reshape(*quantizer.learned.shape, -1).mean(-1)
    with torch.no_grad():  # a clip of 1.2 mean|w|, so that some weights lie outside of the grid
        clip = {"lsq": 1.2 * mean / top(bits), "stretched": 1.2 * mean, "dynamic": torch.full_like(mean, 1.2)}
        quantizer.learned.copy_(clip[scheme])
    out = quantizer(weight)
    out.backward(upstream)

    slow_weight = base.clone().requires_grad_()
    slow_scale = quantizer.learned.detach().clone().requires_grad_()
    shape = (*slow_scale.shape, -1)
    slow = {"lsq": slow_lsq, "stretched": slow_stretched, "dynamic": slow_dynamic}[scheme]
    expected = slow(slow_weight.reshape(shape), slow_scale.unsqueeze(-1), bits).reshape(8, 12)
    expected.backward(upstream)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weight.grad, slow_weight.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(quantizer.learned.grad, slow_scale.grad, rtol=1e-4, atol=1e-5)
    assert (scheme, bits) == ("dynamic", 1) or (weight.grad == 0).any()


@pytest.mark.parametrize("driven_to", [0.0, -1.0, 1e-30])
@pytest.mark.parametrize(("scheme", "bits"), [("lsq", 4), ("lsq", 1), ("stretched", 2), ("dynamic", 4)])
def test_a_step_that_is_driven_to_zero_stops_at_its_floor(scheme, bits, driven_to):
    # Below it every code is an extreme one, or the division gives NaN, and training does not come back.
    weight = randn(4, 8)
    quantizer = WeightFakeQuantizer(weight, bits, "per_row", preset(scheme, bits))
    with torch.no_grad():
        quantizer.learned.fill_(driven_to)
    floor = weight.abs().mean(1, keepdim=True) * 1e-3
    assert torch.equal(quantizer.quantize(weight).scale, floor)
    quantizer(weight).sum().backward()
    assert torch.isfinite(quantizer.learned.grad).all()
    # It is the way back: what is outside of the grid pulls the step up.
    quantizer.learned.grad = None
    (quantizer(weight) - weight).square().sum().backward()
    assert (quantizer.learned.grad < 0).all()


@pytest.mark.parametrize(("bits", "granularity"), [(2, "per_row"), (8, "per_tensor"), (8, "per_group_4")])
def test_lsq_starts_from_the_paper_s_step(bits, granularity):
    weight = randn(4, 8)
    start = initial_learned(weight, bits, granularity, "lsq")
    mean = weight.abs().view(*start.shape, -1).mean(-1)
    torch.testing.assert_close(start, 2 * mean / (2 ** (bits - 1) - 1) ** 0.5)
    # At 1 bit from the scale of least error, as BiT does.
    torch.testing.assert_close(initial_learned(weight, 1, granularity, "lsq"), mean)


@pytest.mark.parametrize(("bits", "granularity"), [(2, "per_row"), (3, "per_tensor"), (8, "per_group_4")])
def test_gamma_starts_where_the_squared_error_is_least(bits, granularity):
    weight = randn(6, 8)
    start = initial_learned(weight, bits, granularity, "dynamic")

    def errors(gamma):  # of each scale's weights
        difference = quantize(weight, bits, granularity, "dynamic", gamma).dequantize() - weight
        return difference.square().view(*start.shape, -1).mean(-1)

    least = errors(start)
    for sixteenths in range(8, 129):
        assert (least <= errors(torch.full_like(start, sixteenths / 16)) + 1e-9).all()
    assert torch.equal(start * 16, (start * 16).round())


@pytest.mark.parametrize(("scheme", "bits"), [*PLAIN, ("dynamic", 1)])
def test_a_trained_factor_starts_from_one_and_multiplies_the_scale_after_the_codes_are_found(scheme, bits, monkeypatch):
    monkeypatch.setattr(quantizers, "BLOCK", 512)  # so that values and gradients are made in blocks
    weight, upstream = randn(40, 16).requires_grad_(), randn(40, 16, seed=1)
    for granularity in GRANULARITIES:
        quantizer = WeightFakeQuantizer(weight, bits, granularity, preset(scheme, bits, factor=True))
        plain = quantize(weight, bits, granularity, "binary" if scheme == "dynamic" else scheme)
        assert torch.equal(quantizer(weight), plain.dequantize())
        assert quantizer.learned.shape == Granularity.parse(granularity).scale_shape(40, 16)
        with torch.no_grad():
            quantizer.learned.uniform_(0.5, 2)
        factored, out = quantizer.quantize(weight), quantizer(weight)
        assert torch.equal(factored.codes, plain.codes)
        torch.testing.assert_close(factored.scale, quantizer.learned * plain.scale)
        torch.testing.assert_close(out, of_each(quantizer.learned, weight) * plain.dequantize())
        to_weight, to_factor = torch.autograd.grad(out, (weight, quantizer.learned), upstream)
        assert torch.equal(to_weight, upstream)
        by_hand = (plain.dequantize() * upstream).view(*to_factor.shape, -1).sum(-1)
        torch.testing.assert_close(to_factor, by_hand, rtol=1e-4, atol=1e-4)
        with torch.no_grad():  # a factor of zero learns on
            quantizer.learned[0, 0] = 0
        (to_factor,) = torch.autograd.grad(quantizer(weight), quantizer.learned, upstream)
        torch.testing.assert_close(to_factor, by_hand, rtol=1e-4, atol=1e-4)
        quantizer.half_scales = True  # after training: a scale of zero is zero itself in fp16, and so is its slope
        (to_factor,) = torch.autograd.grad(quantizer(weight), quantizer.learned, upstream)
        assert to_factor[0, 0] == 0
        torch.testing.assert_close(to_factor.flatten()[1:], by_hand.flatten()[1:], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("scheme", "bits"), GRIDS)
def test_the_gradient_passes_straight_through_but_for_weights_outside_of_the_clip(scheme, bits):
    # The gradient of a learned step once took the place of the clip's.
    weight, upstream = 2 * randn(4, 32), randn(4, 32, seed=1)
    weight[0, :2] = torch.tensor([1.0, -1.0])  # on the limit itself: none either, as in DQ-BART's code
    weight.requires_grad_()
    outside = weight.abs() >= 1.0
    for factor in (False, True):
        quantizer = WeightFakeQuantizer(weight, bits, "per_row", preset(scheme, bits, clip=1.0, factor=factor))
        value = quantizer(weight)
        (gradient,) = torch.autograd.grad(value, weight, upstream)
        assert (gradient[outside] == 0).all()
        assert (gradient[~outside] != 0).any()
        if not SCHEMES[scheme].learned:
            assert torch.equal(gradient, upstream * ~outside)
        assert torch.equal(value, quantizer.quantize(weight).dequantize())
        with torch.no_grad():
            assert torch.equal(quantizer(weight), value)


@pytest.mark.parametrize(("scheme", "bits"), [(s, b) for s, b in LEARNED if b > 1])
def test_a_trained_scale_sees_clipped_weights(scheme, bits):
    weight = 2 * randn(4, 8)
    clipped = weight.clamp(-1.0, 1.0)
    gradients = []
    for w, options in ((weight, {"clip": 1.0}), (clipped, {})):
        quantizer = WeightFakeQuantizer(w, bits, "per_row", preset(scheme, bits, **options))
        with torch.no_grad():
            quantizer.learned.fill_(0.75)
        quantizer(w).backward(randn(4, 8, seed=1))
        gradients.append(quantizer.learned.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("scheme", "bits", "options"),
    [("ternary", 2, {"clip": 1.0}), ("four_level", 2, {"factor": True}), ("symmetric", 4, {"factor": True}),
     ("dynamic", 2, {}), ("stretched", 2, {"clip": 1.0}), ("lsq", 1, {})],
)  # fmt: skip
def test_a_blend_is_so_much_of_the_quantized_weight(scheme, bits, options):
    upstream = randn(4, 8, seed=1)

    def at(blend):
        weight = randn(4, 8).requires_grad_()
        quantizer = WeightFakeQuantizer(weight, bits, "per_row", preset(scheme, bits, **options))
        quantizer.blend = blend
        out = quantizer(weight)
        out.backward(upstream)
        learned = torch.zeros(()) if quantizer.learned is None else quantizer.learned.grad
        return weight.detach(), out.detach(), weight.grad, learned

    weight, full, full_gradient, full_learned = at(1.0)
    for blend in (0.0, 0.25):
        _, out, gradient, learned = at(blend)
        torch.testing.assert_close(out, (1 - blend) * weight + blend * full)
        # Outside of clip or grid, a weight has the gradient of its full-precision part.
        torch.testing.assert_close(gradient, (1 - blend) * upstream + blend * full_gradient)
        torch.testing.assert_close(learned, blend * full_learned)


VIEWS = {"whole": lambda weight: weight, "some rows": lambda weight: weight[4:], "turned": lambda weight: weight.T}
CHANGES = ("nothing", "weight", "another weight", "scale", "blend", "half scales", *VIEWS)


@settings(max_examples=60, deadline=None)
@given(
    scheme=st.sampled_from(["ternary", "lsq", "stretched", "dynamic"]),
    steps=st.lists(
        st.tuples(st.sampled_from(CHANGES), st.sampled_from([torch.enable_grad, torch.no_grad, torch.inference_mode])),
        min_size=1,
        max_size=12,
    ),
)
def test_a_weight_is_quantized_once_until_it_or_what_is_seen_or_made_of_it_changes(scheme, steps):
    # A view is known by its weight: GPT-2's is a new object at each call. What inference remembers serves training.
    weight, view, number = torch.nn.Parameter(randn(8, 8)), "whole", 0
    quantizer = WeightFakeQuantizer(weight, 2, "per_tensor", preset(scheme, 2, clip=1.0))
    for change, mode in [("another weight", torch.enable_grad), *steps]:
        number += change not in ("nothing", view) and (change != "scale" or quantizer.learned is not None)
        with torch.no_grad():
            if change == "weight":
                weight.mul_(-1.5)
            elif change == "another weight":
                weight = torch.nn.Parameter(randn(8, 8, seed=number))
            elif change == "scale" and quantizer.learned is not None:
                quantizer.learned.mul_(1.1)
            elif change == "blend":
                quantizer.blend = 1.5 - quantizer.blend
            elif change == "half scales":
                quantizer.half_scales = not quantizer.half_scales
            view = change if change in VIEWS else view
        with mode():
            seen = VIEWS[view](weight)
            value = quantizer(seen)
            expected = quantizer.quantize(seen).dequantize()
            assert torch.equal(value, expected if quantizer.blend == 1 else torch.lerp(seen, expected, quantizer.blend))
            assert quantizer.quantizations == number
        if mode is torch.enable_grad:
            value.square().sum().backward()  # which saves the value
            assert torch.isfinite(weight.grad).all()
            assert quantizer.learned is None or torch.isfinite(quantizer.learned.grad).all()


def test_a_new_tensor_in_the_place_of_an_old_one_is_rounded_by_itself():
    # An allocator hands the same address, and Python the same id, to the next tensor, whose version is the same, too.
    fixed, trained = (
        WeightFakeQuantizer(randn(64, 64), 2, "per_row", preset(each, 2)) for each in ("ternary", "dynamic")
    )
    activation, places = Counting(8), set()
    for seed in range(20):
        x = randn(64, 64, seed=seed)
        places.add(x.data_ptr())
        del trained.learned
        trained.learned = torch.nn.Parameter(torch.full((64, 1), 1 + seed / 10))
        for quantizer in (fixed, trained):
            assert torch.equal(quantizer(x), quantizer.quantize(x).dequantize())
        assert torch.equal(activation.shared(x), fake_quantize_activation(x))
        del x
    assert fixed.quantizations == trained.quantizations == activation.roundings == 20
    assert len(places) < 20  # it did happen here


def test_neither_quantizer_keeps_what_it_rounded_alive():
    for remember in (WeightFakeQuantizer(randn(4, 8), 2), ActivationFakeQuantizer(8).shared):
        x = randn(4, 8)
        remember(x)
        alive = weakref.ref(x)
        del x
        assert alive() is None


def test_a_weight_that_is_made_in_inference_mode_is_quantized_as_it_is_now():
    # Such a tensor counts no versions, so a change would not be noticed.
    with torch.inference_mode():
        weight = torch.nn.Parameter(randn(4, 8))
        quantizer = WeightFakeQuantizer(weight, 2, "per_row", preset("dynamic", 2))
        for changed in (weight, quantizer.learned):
            assert torch.equal(quantizer(weight), quantizer.quantize(weight).dequantize())
            changed.mul_(-1)
            assert torch.equal(quantizer(weight), quantizer.quantize(weight).dequantize())
    with torch.no_grad():
        assert torch.equal(quantizer(weight), quantizer.quantize(weight).dequantize())


@pytest.mark.parametrize(
    ("scheme", "bits", "options", "blend"),
    [("binary", 1, {"factor": True}, 0.5), ("asymmetric", 8, {}, 1.0), ("lsq", 4, {"clip": 1.0}, 1.0),
     ("dynamic", 2, {"full_range": True}, 0.5)],
)  # fmt: skip
def test_a_quantizer_compiles_into_one_graph_that_learns_the_same(scheme, bits, options, blend):
    torch._dynamo.reset()
    weight = randn(12, 8).requires_grad_()
    quantizer = WeightFakeQuantizer(weight.T, bits, "per_group_4", preset(scheme, bits, **options))
    quantizer.blend, quantizer.half_scales = blend, bits < 3
    compiled = torch.compile(lambda w: quantizer(w.T), backend="eager", fullgraph=True)
    learns = [p for p in (weight, quantizer.learned) if p is not None]
    values = [function(weight) for function in (lambda w: quantizer(w.T), compiled)]
    gradients = [torch.autograd.grad((value * randn(8, 12, seed=1)).sum(), learns) for value in values]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)
    assert quantizer.quantizations == 1  # a graph holds no state
    with torch.no_grad():
        torch.testing.assert_close(compiled(weight), values[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("scheme", "bits"), [("lsq", 1), ("ternary", 2), ("stretched", 2), ("symmetric", 8)])
def test_scales_of_half_precision_weights_are_finite_and_near_those_of_single(scheme, bits, dtype):
    weight = randn(256, 512).to(dtype)  # the sum of whose magnitudes is no number of fp16
    for granularity in ("per_tensor", "per_row"):
        found, expected = (quantized(w, bits, granularity, scheme) for w in (weight, weight.float()))
        assert found.scale.dtype == dtype
        torch.testing.assert_close(found.scale.float(), expected.scale, rtol=0.02, atol=0)
        learned = learned_for(weight, bits, granularity, scheme)
        assert torch.equal(fake_quantize_weight(weight, bits, granularity, scheme, learned), found.dequantize())


# --- activations


@settings(max_examples=120, deadline=None)
@given(
    shape=st.sampled_from([(7, 16), (2, 3, 8), (3, 1), (1, 1), (2, 4000)]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    bits=st.sampled_from([4, 8, 32]),
    told=st.builds(
        ActivationQuantization,
        st.sampled_from(["per_token", "per_tensor"]),
        st.booleans(),
        st.sampled_from([None, 2.5]),
    ),
    probabilities=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_an_activation_is_rounded_on_the_grid_of_its_token_or_tensor_and_passes_the_gradient_within_the_clip(
    shape, dtype, bits, told, probabilities, seed
):
    # Of a token, neighbours and padding do not count. In half precision, steps would vanish or miss the maximum.
    clip, per_tensor, unsigned = told.clip, told.granularity == "per_tensor", told.unsigned and probabilities
    x, upstream = 2 * randn(*shape, seed=seed), randn(*shape, seed=seed + 1).to(dtype)
    x[..., 0] = clip or 0  # on the limit itself, and zero alone in (3, 1)
    x = (torch.softmax(x, -1) if probabilities else x).to(dtype)
    clipped = x.float() if clip is None else x.float().clamp(-clip, clip)
    levels = 2**bits - 1 if unsigned else top(bits)
    largest = clipped.abs().amax() if per_tensor else clipped.abs().amax(-1, keepdim=True)
    step = (largest / levels).clamp(min=torch.finfo().tiny)
    expected = (torch.round(clipped / step) * step).to(dtype)
    call = partial(fake_quantize_activation, bits=bits, unsigned=unsigned, per_tensor=per_tensor, clip=clip)
    quantizer = copy.deepcopy(ActivationFakeQuantizer(bits, told))
    assert quantizer.per_tensor == (per_tensor and bits < 32)
    if bits == 32:
        assert call(x) is quantizer(x, probabilities) is quantizer.shared(x) is x
        return
    assert torch.equal(quantizer(x, unsigned=probabilities), expected)
    before, learning = x.clone(), x.clone().requires_grad_()
    assert torch.equal(call(x), expected)
    assert torch.equal(x, before)
    out = call(learning)
    out.backward(upstream)
    assert out.dtype == dtype
    assert torch.equal(out, expected)
    assert torch.equal(learning.grad, upstream if clip is None else upstream * (x.abs() < clip))
    assert call(x, in_place=True) is x
    assert torch.equal(x, expected)


ACTIVATIONS = [
    ActivationQuantization(),
    ActivationQuantization(granularity="per_tensor", unsigned=False, clip=2.5),
    ActivationQuantization(clip=0.5),
]


class Counting(ActivationFakeQuantizer):
    """Counts how often it rounds."""

    roundings = 0

    def __call__(self, x, unsigned=False):
        self.roundings += 1
        return super().__call__(x, unsigned)


@pytest.mark.parametrize("quantization", ACTIVATIONS)
def test_a_shared_input_is_rounded_once_to_the_same_values(quantization):
    quantizer, x = Counting(8, quantization), randn(2, 3, 8).requires_grad_()
    first, second = quantizer.shared(x), quantizer.shared(x)
    assert first is second
    assert quantizer.roundings == 1
    (first.square() + 3 * second).sum().backward()
    plain = randn(2, 3, 8).requires_grad_()
    expected = ActivationFakeQuantizer(8, quantization)(plain)
    (expected.square() + 3 * expected).sum().backward()
    assert torch.equal(first, expected)
    assert torch.equal(x.grad, plain.grad)


def test_a_shared_input_is_rounded_anew_when_it_or_the_grad_mode_changed():
    quantizer, x = Counting(8), randn(2, 8)
    quantizer.shared(x)
    x.mul_(-3).add_(1)
    assert torch.equal(quantizer.shared(x), fake_quantize_activation(x))
    assert quantizer.roundings == 2
    # What was rounded without a graph has no gradient to give, in the training step after a validation.
    quantizer, x = Counting(8), randn(2, 8).requires_grad_()
    with torch.no_grad():
        assert not quantizer.shared(x).requires_grad
    assert quantizer.shared(x).requires_grad
    with torch.no_grad():
        assert not quantizer.shared(x).requires_grad
    with torch.inference_mode():  # whose tensors count no versions
        y = randn(2, 8)
        for other in (y, -y, randn(2, 8, seed=1)):
            y.copy_(other)
            assert torch.equal(quantizer.shared(y), fake_quantize_activation(y))


def test_inputs_that_alternate_are_each_rounded_once():
    # Every decoder layer reads the encoder's output, and six inputs of its own in between.
    quantizer, source = Counting(8), randn(2, 8)
    for layer in range(3):
        own = [randn(2, 8, seed=6 * layer + i) for i in range(6)]
        for x in (own[0], source, *own[1:], source):
            assert torch.equal(quantizer.shared(x), fake_quantize_activation(x))
    assert quantizer.roundings == 3 * 6 + 1


# --- schemes


def test_one_entry_makes_a_scheme_that_presets_training_and_files_know(monkeypatch, tmp_path):
    def four_levels(w, grid):  # -3, -1, 1 and 3 halves of mean|w|, as codes -2 to 1 around a zero point of -1/2
        scale = w.abs().mean(-1, keepdim=True)
        return torch.round(w / scale - 0.5).clamp(-2, 1), scale, None

    monkeypatch.setitem(SCHEMES, "levels", Scheme("levels", (2,), four_levels, "this test", lowest="always"))
    weight = randn(4, 8)
    quantizer = WeightFakeQuantizer(weight, 2, "per_row", preset("levels", 2, factor=True))
    quantizer.half_scales = True
    quantized = copy.deepcopy(quantizer).quantize(weight)
    assert quantized.encoding == "bits"
    assert set(quantized.codes.unique().tolist()) == {-2, -1, 0, 1}
    packed = PackedWeight.of(quantized, quantizer.scheme, "per_row")
    assert (packed.scheme, packed.codes.nbytes) == ("levels", 8)
    assert torch.equal(packed.value(), quantizer(weight))
    with pytest.raises(InputError, match=r"more_bits: 'levels' .* one of symmetric"):
        WeightQuantization(more_bits="levels")
