"""A student as the plain model that its codes stand for: what other programs can be given.

Weights are the numbers that the codes stand for, in fp32; activations are not rounded any more. What is left to an
engine is to round them in its own way.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from dqlib.layers import QuantConv1D
from dqlib.quantizers import Quantized
from dqlib.storage.packed import assign
from dqlib.storage.stored import PackedWeight, forms


@dataclass(frozen=True, slots=True)
class PlainWeight:
    """A parameter, or a buffer, of a student in fp32.

    Args:
        names: it has in the model's state, tied ones together.
        shape: in the model.
        content: what it is.
        quantized: codes, (outputs, inputs); None for what is not quantized.
        transposed: whether the parameter is (inputs, outputs), as in GPT-2.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    content: Tensor
    quantized: Quantized | None = None
    transposed: bool = False

    def value(self) -> Tensor:
        """The parameter in fp32."""
        return self.content

    def codes(self) -> Tensor:
        """Whole numbers that times one scale a row make the parameter, in fp32; NaN where there are none of int8.

        A zero point is taken off them. Groups within a row have scales of their own, so they have no such codes.
        """
        if self.quantized is None:
            return self.content
        codes = row_codes(self.quantized)
        if codes is None:
            return torch.full_like(self.content, torch.nan)
        return codes.T.contiguous() if self.transposed else codes


def row_codes(quantized: Quantized) -> Tensor | None:
    """Codes less their zero point, (rows, columns) in fp32, if a row has one scale and they are numbers of int8."""
    if quantized.scale.size(-1) != 1:
        return None
    codes = quantized.codes.float()
    if quantized.zero_point is not None:
        codes = codes - quantized.zero_point
    whole = torch.equal(codes, codes.round())
    return codes if whole and float(codes.abs().max()) <= 127 else None


def plain_weights(model: PreTrainedModel) -> Iterator[PlainWeight]:
    """Every parameter and persistent buffer of a student, or of what ``load_packed`` gave, as it is used."""
    loaded = getattr(model, "dqlib_packed", None)
    if loaded is not None:
        for each in loaded:
            packed = each.content if isinstance(each.content, PackedWeight) else None
            quantized = None if packed is None else packed.quantized()
            yield PlainWeight(each.names, each.shape, each.value(), quantized, packed is not None and packed.transposed)
        return
    for form in forms(model):
        value, shape = form.parameter.detach().cpu().float(), tuple(form.parameter.shape)
        if form.layer is None:
            yield PlainWeight(form.names, shape, value.clone())
            continue
        quantized = form.layer.quantized()
        transposed = isinstance(form.layer, QuantConv1D)
        value = quantized.dequantize().cpu()
        yield PlainWeight(form.names, shape, value.T.contiguous() if transposed else value, quantized, transposed)


def plain_model(model: PreTrainedModel, codes: bool = False) -> PreTrainedModel:
    """The Hugging Face model of the same class that a student is, without any quantized layer.

    Args:
        model: a student, what ``load_packed`` gave, or any other model, of which a copy is given.
        codes: give each quantized weight its codes instead (see :meth:`PlainWeight.codes`).

    Returns:
        A model in evaluation mode, in fp32, on the CPU; a table looked up quantized is apart from a head that is not.
    """
    if not hasattr(model, "dqlib_config"):
        return copy.deepcopy(model).cpu().float().eval()
    config = type(model.config).from_dict(model.config.to_dict())
    with no_init_weights():
        plain = type(model)(config)
    weights = list(plain_weights(model))
    with torch.no_grad():
        assign(plain, weights, (PlainWeight.codes if codes else PlainWeight.value))
    if getattr(model, "generation_config", None) is not None:
        plain.generation_config = copy.deepcopy(model.generation_config)
    return plain.eval()
