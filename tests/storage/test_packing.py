"""Codes become bytes and codes again, whatever their number."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dqlib.errors import InputError
from dqlib.quantizers import initial_learned, quantize
from dqlib.schemes import SCHEMES
from dqlib.storage import packing
from dqlib.storage.packing import pack, packed_size, unpack, unpack_rows
from dqlib.storage.stored import PackedWeight

FORMS = [(bits, "bits") for bits in range(1, 9)] + [(bits, "odd") for bits in range(1, 8)] + [(2, "ternary")]
EVERY_FORM = pytest.mark.parametrize(("bits", "encoding"), FORMS)


def grid(bits, encoding):
    if encoding == "ternary":
        return [-1, 0, 1]
    if encoding == "odd" or bits == 1:
        return list(range(1 - 2**bits, 2**bits, 2))
    return list(range(-(2 ** (bits - 1)), 2 ** (bits - 1)))


def random_codes(bits, encoding, shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).choice(np.array(grid(bits, encoding), np.int8), shape))


def digits_by_the_book(data, count, base, places):
    """The layout as docs/packed-format.md describes it, a digit at a time."""
    size = -(-count // places)
    return [int(data[i % size]) // base ** (i // size) % base for i in range(count)], data[size:]


@EVERY_FORM
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_codes_of_any_shape_come_back_and_blocks_do_not_show(bits, encoding, data):
    block = data.draw(st.sampled_from([1, 3, 16, packing.BLOCK]))
    shape = data.draw(arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=41 if block > 16 else 9))
    codes = random_codes(bits, encoding, shape, data.draw(st.integers(0, 2**32 - 1)))
    packed = pack(codes, bits, encoding)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_size(codes.numel(), bits, encoding),)
    with mock.patch.object(packing, "BLOCK", block):
        again = unpack(packed, shape, bits, encoding)
        assert again.dtype == torch.int8
        assert torch.equal(again, codes)
        assert torch.equal(pack(again, bits, encoding), packed)


@EVERY_FORM
def test_bytes_are_laid_out_as_described(bits, encoding):
    for count in (1, 2, 7, 8, 9, 25, 26, 101):
        values = grid(bits, encoding)
        codes = [values[i * 7 % len(values)] for i in range(count)]
        data = pack(torch.tensor(codes, dtype=torch.int8), bits, encoding).numpy()
        if encoding == "ternary":
            read, data = digits_by_the_book(data, count, 3, 5)
            read = [digit - 1 for digit in read]
        else:
            read, shift = [0] * count, 0
            for width in (8, 4, 2, 1):
                if bits & width:
                    part, data = digits_by_the_book(data, count, 2**width, 8 // width)
                    read, shift = [a + (b << shift) for a, b in zip(read, part, strict=True)], shift + width
            odd = bits == 1 or encoding == "odd"
            read = [2 * digit - 2**bits + 1 if odd else digit - 2 ** (bits - 1) for digit in read]
        assert read == codes
        assert len(data) == 0


@EVERY_FORM
@pytest.mark.parametrize("block", [1, 40, 10**6])
def test_rows_are_unpacked_some_at_a_time(bits, encoding, block, monkeypatch):
    codes = random_codes(bits, encoding, (13, 17))
    monkeypatch.setattr(packing, "BLOCK", block)
    found = torch.zeros_like(codes)
    for rows, some in unpack_rows(pack(codes, bits, encoding), codes.shape, bits, encoding):
        assert some.numel() <= max(block, 17)
        found[rows] = some
    assert torch.equal(found, codes)
    none = codes[:, :0]
    rows = [some.clone() for _, some in unpack_rows(pack(none, bits, encoding), none.shape, bits, encoding)]
    assert torch.cat(rows).shape == none.shape


def test_sizes_are_those_that_are_claimed():
    n = 1000
    assert [packed_size(n, bits) for bits in range(1, 9)] == [125, 250, 375, 500, 625, 750, 875, 1000]
    assert [packed_size(n, bits, "odd") for bits in range(1, 8)] == [125, 250, 375, 500, 625, 750, 875]
    assert packed_size(n, 2, "ternary") == 200
    assert packed_size(n + 1, 2, "ternary") == 201
    assert packed_size(0, 2, "ternary") == packed_size(0, 3) == 0


@pytest.mark.parametrize("full_range", [False, True])
def test_codes_are_those_of_the_encoding_that_a_quantizer_names(full_range):
    torch.manual_seed(0)
    weight = torch.randn(40, 20)
    for scheme, bits in ((each, bits) for each in SCHEMES.values() for bits in each.bits):
        learned = initial_learned(weight, bits, "per_row", scheme) if scheme.learned else None
        quantized = quantize(weight, bits, "per_row", scheme, learned, full_range=full_range)
        codes, encoding = quantized.codes, quantized.encoding
        assert set(codes.unique().tolist()) <= set(grid(bits, encoding))
        assert (encoding == "ternary") == (bits == 2 and len(codes.unique()) < 4)
        assert (encoding == "odd") == (bits > 1 and bool((codes % 2 == 1).all()))
        assert torch.equal(unpack(pack(codes, bits, encoding), weight.shape, bits, encoding), codes)


def test_codes_off_the_grid_are_refused():
    for codes, bits, encoding, message in (
        ([2], 2, "bits", r"^codes: '2 to 2' .* -2 to 1"),
        ([-2, 1], 2, "ternary", r"^codes: '-2 to 1' .* -1 to 1"),
        ([0, 1], 1, "bits", r"^codes: '0 to 1' .* odd numbers from -1 to 1"),
        ([-3, 2], 2, "odd", r"^codes: '-3 to 2' .* odd numbers from -3 to 3"),
        ([5], 2, "odd", r"^codes: '5 to 5' .* odd numbers from -3 to 3"),
        ([1], 9, "bits", r"^bits: 9 .* from 1 to 8"),
        ([1], 3, "ternary", r"^bits: 3 .* 2 for ternary codes"),
        ([1], 8, "odd", r"^bits: 8 .* at most 7 for odd codes"),
        ([1], 2, "zip", r"^encoding: 'zip' .* ternary, odd, bits"),
    ):
        with pytest.raises(InputError, match=message):
            pack(torch.tensor(codes, dtype=torch.int8), bits, encoding)


def test_bytes_that_no_codes_make_are_refused():
    with pytest.raises(InputError, match=r"^packed: '3 bytes' .* 2 bytes for 10 codes of 2 bits"):
        unpack(torch.zeros(3, dtype=torch.uint8), (10,), 2, "ternary")
    with pytest.raises(InputError, match=r"^packed: 'a byte of 243' .* below 243"):
        unpack(torch.tensor([0, 243], dtype=torch.uint8), (10,), 2, "ternary")


@pytest.mark.parametrize("granularity", ["per_tensor", "per_row", "per_group_5"])
@pytest.mark.parametrize(("scheme", "bits"), [("asymmetric", 3), ("ternary", 2), ("stretched", 2)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_is_unpacked_some_rows_at_a_time_as_at_once(scheme, bits, granularity, transposed, monkeypatch):
    torch.manual_seed(0)
    weight, of = torch.randn(13, 20), SCHEMES[scheme]
    learned = initial_learned(weight, bits, granularity, of) if of.learned else None
    quantized = quantize(weight, bits, granularity, of, learned)
    quantized = replace(quantized, scale=quantized.scale.detach().half().float())  # as a file holds it
    packed = PackedWeight.of(quantized, scheme, granularity, transposed)
    whole = quantized.dequantize()
    monkeypatch.setattr(packing, "BLOCK", 50)
    assert torch.equal(packed.value(), whole.T if transposed else whole)
    out = torch.zeros(13 * 20)
    packed.value(out)
    assert torch.equal(out.view(20, 13) if transposed else out.view(13, 20), packed.value())
