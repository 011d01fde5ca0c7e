"""Error of a quantized matrix: by scheme, bits and granularity, with what each costs in bits per weight.

Every value comes from the quantizers that students are made of, not from a second copy of a formula.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas
import torch
from torch import Tensor

from dqlib.config import Granularity
from dqlib.quantizers import Quantized, initial_learned, quantize
from dqlib.schemes import SCHEMES, Scheme
from dqlib.storage.account import FP16_BYTES
from dqlib.storage.packing import TRITS
from dqlib.storage.stored import whole

GRANULARITIES = ("per_tensor", "per_row", "per_group_32", "per_group_16")


def quantized(
    weight: Tensor, bits: int, scheme: Scheme | str | None = None, granularity: Granularity | str = "per_tensor"
) -> Quantized:
    """A weight, (rows, columns), by one scheme; a trained scale stands where its training would start.

    All arguments are those of :func:`dqlib.quantizers.quantize`.
    """
    learned = None
    if scheme is not None and Scheme.parse(scheme).learned:
        learned = initial_learned(weight, bits, granularity, scheme)
    return quantize(weight, bits, granularity, scheme, learned)


def relative_error(weight: Tensor, codes: Quantized) -> float:
    """``||w - (q - z) s||^2 / ||w||^2``: 0 is no error, 1 is what a matrix of zeros would have."""
    return float((weight - codes.dequantize()).square().sum() / weight.square().sum())


def error_at(weight: Tensor, bits: int, gamma: float) -> float:
    """Relative squared error (%) of a grid that ends at ``gamma`` times ``mean|w|``."""
    codes = quantize(weight, bits, "per_tensor", "dynamic", torch.full((1, 1), gamma))
    return 100 * relative_error(weight, codes)


def bits_per_weight(codes: Quantized) -> float:
    """Codes at their bits (ternary: five in 8), scales and zero points shared out, as the footprint counts."""
    scale_bytes = FP16_BYTES * codes.scale.numel()
    if codes.zero_point is not None:
        scale_bytes += whole(codes.zero_point).nbytes
    return (8 / TRITS if codes.encoding == "ternary" else codes.bits) + 8 * scale_bytes / codes.codes.numel()


def errors(weight: Tensor, granularities: Sequence[str] = GRANULARITIES) -> pandas.DataFrame:
    """Every scheme at every granularity: relative squared error, and bits per weight with scales.

    Granularities that do not fit the width of the matrix are left out.
    """
    rows = []
    for scheme in SCHEMES.values():
        for bits in sorted({8, 6, 5, 4, 3, 2, 1} & set(scheme.bits), reverse=True):
            for granularity in granularities:
                group = Granularity.parse(granularity).group
                if group and weight.size(1) % group:
                    continue
                codes = quantized(weight, bits, scheme, granularity)
                error = round(100 * relative_error(weight, codes), 3)
                rows.append((str(scheme), bits, granularity, error, round(bits_per_weight(codes), 3)))
    table = pandas.DataFrame(rows, columns=["scheme", "bits", "granularity", "error (%)", "bits per weight"])
    table["granularity"] = pandas.Categorical(table.granularity, granularities, ordered=True)
    return table
