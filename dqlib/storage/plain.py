"""A student as the plain model that its codes stand for: what other programs can be given.

Weights are the numbers that the codes stand for, in fp32; activations are not rounded any more. What is left to an
engine is to round them in its own way.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from dqlib.pruning import narrow
from dqlib.storage.live import Live, parameters_of
from dqlib.storage.packed import assign
from dqlib.storage.stored import Stored


def codes_of(each: Live | Stored) -> Tensor:
    """Whole numbers that times one scale per row make the parameter, in fp32; NaN where there are none of int8.

    A zero point is taken off them. Groups within a row have scales of their own, so they have no such codes. What is
    not quantized is its own value.
    """
    quantized = each.quantized()
    if quantized is None:
        return each.value()
    if quantized.scale.size(-1) == 1:
        codes = quantized.codes.float()  # (rows, columns)
        if quantized.zero_point is not None:
            codes = codes - quantized.zero_point
        if torch.equal(codes, codes.round()) and codes.abs().max() <= 127:
            return codes.T.contiguous() if each.transposed else codes
    return torch.full(each.shape, torch.nan)


def plain_model(model: PreTrainedModel, codes: bool = False) -> PreTrainedModel:
    """The Hugging Face model of the same class that a student is, without any quantized layer.

    Args:
        model: a student, what ``load_packed`` gave, or any other model, of which a copy is given.
        codes: give each quantized weight its codes instead (see :func:`codes_of`).

    Returns:
        A model in evaluation mode, in fp32, on the CPU; a table looked up quantized is apart from a head that is not.
    """
    if not hasattr(model, "dqlib_config"):
        return copy.deepcopy(model).cpu().float().eval()
    fields = model.config.to_dict()
    fields.pop("quantization_config", None)
    config = type(model.config).from_dict(fields)
    with no_init_weights():
        plain = narrow(type(model)(config), model.dqlib_config.heads)
    with torch.no_grad():
        assign(plain, parameters_of(model), codes_of if codes else lambda each: each.value())
    if getattr(model, "generation_config", None) is not None:
        plain.generation_config = copy.deepcopy(model.generation_config)
    return plain.eval()
