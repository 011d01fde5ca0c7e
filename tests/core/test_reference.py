"""Values of the papers' own code: amazon-science/dq-bart and DeepSpeed's compression (XTC).

The files in ``reference/`` hold inputs and what the original quantizers gave for them, forward and backward.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dqlib.config import WeightQuantization
from dqlib.fake_quantize import WeightFakeQuantizer
from dqlib.quantizers import fake_quantize_activation, quantize

FOLDER = Path(__file__).parents[1] / "reference"
DQ_BART = load_file(FOLDER / "dq_bart_quantizers.safetensors")
XTC = load_file(FOLDER / "xtc_quantizers.safetensors")
CLIP = 2.5

exactly = {"atol": 1e-6, "rtol": 0.0}


def cases(reference, count):
    """Keys of the weights' cases, without their ending: a smaller file must not turn the tests below into none."""
    keys = sorted(key.removesuffix(".output") for key in reference if key.endswith(".output"))
    keys = [key for key in keys if "activation" not in key]
    assert len(keys) == count
    return keys


@pytest.mark.parametrize("case", cases(DQ_BART, 10))
def test_weights_and_gradients_are_those_of_dq_bart(case):
    scheme, bits, granularity = case.split(".")
    bits = int(bits.removesuffix("bit"))
    weight, expected = DQ_BART["weight"].clone().requires_grad_(), DQ_BART[f"{case}.grad_input"]
    ours = quantize(weight, bits, granularity, scheme, clip=CLIP, integer_zero_point=False).dequantize()
    torch.testing.assert_close(ours, DQ_BART[f"{case}.output"], **exactly)
    # Weights beyond the clip get no gradient; a plain straight-through estimator gives them one.
    field = {2: "two_bits"}.get(bits, "more_bits")
    quantizer = WeightFakeQuantizer(weight, bits, granularity, WeightQuantization(clip=CLIP, **{field: scheme}))
    quantizer(weight).backward(DQ_BART["grad_output"])
    torch.testing.assert_close(weight.grad, expected, **exactly)
    assert (expected == 0).any()  # the clip was at work


@pytest.mark.parametrize("granularity", ["per_row", "per_tensor"])
def test_activations_are_those_of_dq_bart(granularity):
    # Its "row" is the last dimension, which is a token.
    ours = fake_quantize_activation(DQ_BART["activation"], 8, per_tensor=granularity == "per_tensor", clip=CLIP)
    torch.testing.assert_close(ours, DQ_BART[f"symmetric.8bit.activation.{granularity}.output"], **exactly)


@pytest.mark.parametrize("case", cases(XTC, 15))
def test_weights_are_those_of_xtc(case):
    scheme, bits, groups = case.split(".")
    weight, bits, groups = XTC["weight"], int(bits.removesuffix("bit")), int(groups.removeprefix("groups"))
    ours = quantize(weight.view(groups, -1), bits, "per_row", scheme, full_range=True)
    torch.testing.assert_close(ours.dequantize().view_as(weight), XTC[f"{case}.output"], **exactly)
