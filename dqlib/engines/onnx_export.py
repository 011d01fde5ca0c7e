"""BART and mBART as graphs for ONNX Runtime, whose kernels multiply weights of 2, 4 or 8 bits as they are.

The folder holds ``encoder.onnx``, which reads a source and gives the keys and values that all layers of the decoder
attend to; ``decoder.onnx``, which takes one step and keeps its keys and values in memory that the caller lends it;
``candidates.onnx``, which finds the best tokens for a beam search; ``weights.bin``, the numbers of all three;
``dqlib.json`` (:mod:`dqlib.storage.manifest`); configuration and tokenizer.

A low-bit weight is a ``MatMulNBits`` of ONNX Runtime (``com.microsoft``): unsigned codes around a zero point of
``2^(bits-1)``, one scale for each block of a row. A student's row has one scale, which is repeated, so ternary codes
become {1, 2, 3} and binary ones {1, 3} of two bits, and nothing is lost. Its kernels round activations to 8 bits, one
scale a block of a token; a student rounds them with one scale per token.

Those kernels serve few rows well and many badly, and an encoder has as many rows as its source has tokens. So the
encoder may be written with codes of 8 bits and one scale per row (``MatMulInteger``), four times as large and three to
four times as fast, on activations that are rounded as a student rounds them.

The output head is the low-bit table that tokens are looked up in. Its kernel wants the table in an order of its own, so
ONNX Runtime makes that copy when it loads; of the table on disk, mapped, only the rows of tokens that occur are read.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from dqlib.engines import ENGINES
from dqlib.engines.base import Decoding
from dqlib.engines.onnx_graph import Graph, Numbers
from dqlib.errors import InputError
from dqlib.files import atomic_folder
from dqlib.quantizers import Quantized
from dqlib.storage.live import parameters_of
from dqlib.storage.manifest import check_replaceable, seal

ENCODER, DECODER, CANDIDATES = "encoder.onnx", "decoder.onnx", "candidates.onnx"
WEIGHTS = "weights.bin"

#: Version of the folder's format.
FORMAT = 1

#: Architectures that are served, and whether their LayerNorms come before attention and feed-forward layers.
SERVED = {"bart": False, "mbart": True}

#: Bits that kernels have, and sizes of the blocks that share a scale, best first.
KERNEL_BITS, BLOCKS = (2, 4, 8), (128, 64, 32, 16)

#: How an encoder may be written: one byte per weight, or as the decoder is.
ENCODERS = ("int8", "packed")

_ACTIVATIONS = ("gelu", "relu")
_HEAD_FEATURES = 8  # what the size of a head in GroupQueryAttention is a multiple of; no other kernel minds the width
_POSITION_OFFSET = 2  # of BART's learned positions
_EPSILON = 1e-5  # of torch.nn.LayerNorm
_MASKED = -3e38


def export_onnx(
    model: PreTrainedModel,
    folder: str | Path,
    tokenizer: Tokenizer | None = None,
    bits: int | None = None,
    *,
    encoder: str | None = None,
) -> None:
    """Write a BART or mBART for ONNX Runtime, aside, and put it in place at once.

    Args:
        model: a student, what ``load_packed`` gave, or a model in full precision, which stays so.
        folder: new, empty, or an exported model, which is replaced.
        tokenizer: written beside it.
        bits: of the codes of weights and tokens in the graphs, 2, 4 or 8; None for the fewest that hold them.
        encoder: ``int8`` for speed, ``packed`` for the least memory; None for ``int8`` where every weight that it
            multiplies has a grid of one scale per row, and ``packed`` elsewhere.

    Raises:
        InputError: the model, its decoding or an argument is not served, or the folder holds something else.
    """
    model_config, folder = model.config, Path(folder)
    if model_config.model_type not in SERVED:
        served = " and ".join(sorted(SERVED))
        raise InputError("model_type", model_config.model_type, f"{served}, which the engine onnxruntime serves")
    if bits is not None and bits not in KERNEL_BITS:
        raise InputError("bits", bits, "2, 4 or 8, or None for the fewest that do")
    if encoder not in (None, *ENCODERS):
        raise InputError("encoder", encoder, f"one of {', '.join(ENCODERS)}")
    if model_config.activation_function not in _ACTIVATIONS:
        raise InputError("activation_function", model_config.activation_function, f"one of {', '.join(_ACTIVATIONS)}")
    heads, features = model_config.decoder_attention_heads, model_config.d_model
    if features // heads % _HEAD_FEATURES:
        allowed = f"one that gives each head a multiple of {_HEAD_FEATURES} of the {features} features (d_model)"
        raise InputError("decoder_attention_heads", heads, f"{allowed}, for the engine onnxruntime")
    check_replaceable(folder, *ENGINES[1:])
    config = getattr(model, "dqlib_config", None)
    rounded = config is not None and config.a_bits <= 8
    values, size = values_of(model), features // heads
    heads = heads if config is None or config.heads is None else config.heads
    if encoder is None:
        encoder = "int8" if _int8_serves(values) else "packed"
    description = {
        "format": FORMAT,
        "class": type(model).__name__,
        "config": None if config is None else str(config),
        "bits": bits,
        "encoder": encoder if rounded else "packed",
        "layers": model_config.decoder_layers,
        "heads": heads,
        "head_dim": size,
        "vocabulary": model_config.vocab_size,
        "decoding": decoding(model),
    }
    with atomic_folder(folder) as scratch:
        numbers = Numbers(scratch / WEIGHTS)
        weights = _Weights(values, bits)
        making = _Making(model_config, weights, numbers, rounded, rounded and encoder == "int8")
        onnx.save(making.encoder(), scratch / ENCODER)
        onnx.save(making.decoder(), scratch / DECODER)
        onnx.save(making.candidates(), scratch / CANDIDATES)
        numbers.close()
        plain = copy.deepcopy(model_config)
        plain.architectures = [type(model).__name__]
        plain.save_pretrained(scratch)
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        seal(scratch, "onnxruntime", description)


def decoding(model: PreTrainedModel) -> dict[str, Any]:
    """What a model's configuration says of decoding, as transformers reads it.

    Raises:
        InputError: it says something that this engine does not do.
    """
    settings = model.generation_config
    for field, plain in (("no_repeat_ngram_size", 0), ("repetition_penalty", 1.0), ("bad_words_ids", [])):
        if (getattr(settings, field) or plain) != plain:
            raise InputError(field, getattr(settings, field), f"{plain} for the engine onnxruntime")
    if settings.early_stopping == "never":
        raise InputError("early_stopping", "never", "True or False for the engine onnxruntime")
    return Decoding.exported(model, "onnxruntime").as_json()


def _int8_serves(values: dict[str, Quantized | torch.Tensor]) -> bool:
    """Whether all weights that an encoder of int8 multiplies have codes with one scale per row, around zero."""
    own = re.compile(
        r"model\.encoder\.layers\..*(_proj|fc\d)\.weight|model\.decoder\..*\.encoder_attn\.[kv]_proj\.weight"
    )
    return all(
        isinstance(value, Quantized) and value.zero_point is None and value.scale.size(-1) == 1
        for name, value in values.items()
        if own.fullmatch(name)
    )


def values_of(model: PreTrainedModel) -> dict[str, Quantized | torch.Tensor]:
    """Codes and scales of what a model quantizes, numbers of the rest, by every name that they have.

    Raises:
        InputError: a weight is quantized in part only.
    """
    values: dict[str, Quantized | torch.Tensor] = {}
    for each in parameters_of(model):
        quantized = each.quantized()
        values |= dict.fromkeys(each.names, each.value() if quantized is None else quantized)
    return values


@dataclass(frozen=True, slots=True)
class Codes:
    """A weight as a kernel takes it.

    Args:
        unsigned: uint8 (rows, columns), around a zero point of ``2^(bits-1)``.
        scale: fp32 (rows, groups).
        bits: 2, 4 or 8.
    """

    unsigned: np.ndarray
    scale: np.ndarray
    bits: int

    @classmethod
    def of(cls, quantized: Quantized, bits: int | None = None) -> Codes | None:
        """Codes in the fewest bits that hold them, or in ``bits``; None for a grid that the kernels do not have."""
        rows, columns = quantized.codes.shape
        group = columns // quantized.scale.size(-1)
        if quantized.zero_point is not None or (group < columns and group % BLOCKS[-1]):
            return None
        least = max(2, 2 ** math.ceil(math.log2(quantized.bits)))
        if bits is not None and bits < least:
            raise InputError("bits", bits, f"at least {least} for codes of {quantized.bits} bits")
        bits = bits or least
        unsigned = (quantized.codes.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8).cpu().numpy()
        scale = quantized.scale.detach().float().cpu().expand(rows, -1).numpy()
        return cls(unsigned, scale, bits)

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.unsigned.shape[1] // self.scale.shape[1]

    def packed(self, block: int) -> np.ndarray:
        """uint8 (rows, blocks, bytes of a block), the lowest bits first; a last block is filled up with zeros."""
        rows, columns = self.unsigned.shape
        filled = np.pad(self.unsigned, ((0, 0), (0, -columns % block)), constant_values=2 ** (self.bits - 1))
        places = 8 // self.bits
        by_place = filled.reshape(rows, -1, block // places, places)
        shifts: np.ndarray = (np.arange(places) * self.bits).astype(np.uint8)
        return np.bitwise_or.reduce(by_place << shifts, axis=-1).astype(np.uint8)

    def scales(self, block: int) -> np.ndarray:
        """The scale of each block, fp32 (rows, blocks)."""
        blocks = -(-self.unsigned.shape[1] // block)
        return np.ascontiguousarray(np.repeat(self.scale, blocks // self.scale.shape[1], axis=1))

    def block(self) -> int:
        """The best size of block for these columns, none of which has two scales."""
        fitting = [size for size in BLOCKS if self.group % size == 0]
        return fitting[0] if fitting else BLOCKS[-1]

    def signed(self) -> np.ndarray:
        """int8 (columns, rows)."""
        return (self.unsigned.astype(np.int16) - 2 ** (self.bits - 1)).astype(np.int8).T


class _Weights:
    """Weights by name, several as one where they read the same input."""

    def __init__(self, values: dict[str, Quantized | torch.Tensor], bits: int | None) -> None:
        self.values, self.bits = values, bits

    def number(self, name: str) -> np.ndarray:
        """A bias, a LayerNorm, a buffer: fp32."""
        value = self.values[name]
        assert not isinstance(value, Quantized)
        return value.numpy()

    def matrix(self, names: Sequence[str]) -> Codes | np.ndarray:
        """Rows of all these weights: codes, or fp32 where the kernels do not have the grid."""
        parts = [self.values[name] for name in names]
        bits = None if names[0].endswith("embed_positions.weight") else self.bits
        if all(isinstance(part, Quantized) for part in parts):
            codes = [each for part in parts if (each := Codes.of(part, bits)) is not None]
            if len(codes) == len(parts) and len({(each.bits, each.scale.shape[1]) for each in codes}) == 1:
                unsigned, scale = (np.concatenate([getattr(each, f) for each in codes]) for f in ("unsigned", "scale"))
                return Codes(unsigned, scale, codes[0].bits)
        return np.concatenate([(p.dequantize() if isinstance(p, Quantized) else p).float().numpy() for p in parts])


class _Making:
    """The two graphs of a model."""

    def __init__(self, config: Any, weights: _Weights, numbers: Numbers, rounded: bool, int8_encoder: bool) -> None:
        self.config, self.weights, self.numbers = config, weights, numbers
        self.level = 4 if rounded else 0
        self.int8_encoder = int8_encoder
        self.pre = SERVED[config.model_type]
        self.features = config.d_model

    # --- the graphs

    def encoder(self) -> onnx.ModelProto:
        """Ids (batch, source) and mask to keys and values (2 x decoder layers, batch, heads, source, head_dim)."""
        c, d, int8 = self.config, self.features, self.int8_encoder
        heads, size = self._heads("encoder")
        g = Graph("encoder", self.numbers)
        ids = g.input("input_ids", TensorProto.INT64, ["batch", "source"])
        mask = g.input("mask", TensorProto.INT32, ["batch", "source"])
        shape = g.op("Shape", ids)
        length = g.op("Gather", shape, g.constant("one", np.array(1, np.int64)))
        # Range straight into Gather is fused to a Slice that some versions of ONNX Runtime cannot run.
        places = g.op("Range", g.constant("zero", np.array(0, np.int64)), length, "one")
        places = g.op("Add", places, g.integers(_POSITION_OFFSET))
        x = g.op(
            "Add",
            self._lookup(g, ids, "model.encoder.embed_tokens.weight", self._embed_scale),
            self._lookup(g, places, "model.encoder.embed_positions.weight"),
        )
        by_text = g.op("Concat", shape, g.integers(heads * size), axis=0)  # (batch, source, features of all heads)
        x = self._norm(g, g.op("Reshape", x, g.integers(-1, d)), "model.encoder.layernorm_embedding")
        residual = x
        zero = self._zero_points(g, x) if int8 else None
        sublayers = [
            (f"model.encoder.layers.{i}.{part}", part) for i in range(c.encoder_layers) for part in ("attention", "ffn")
        ]
        final = "model.encoder.layer_norm"  # where the norms come first
        if self.pre:
            x = self._norm(g, x, "model.encoder.layers.0.self_attn_layer_norm")
        for n, (path, part) in enumerate(sublayers):
            layer = path.rpartition(".")[0]
            if part == "attention":
                attention = f"{layer}.self_attn"
                rows = self._rounded(g, x, zero) if zero is not None else x
                q, k, v = (
                    g.op("Reshape", self._linear(g, rows, [f"{attention}.{name}_proj"], bias=False), by_text)
                    for name in "qkv"
                )
                bias = self._bias(g, [f"{attention}.{name}_proj" for name in "qkv"])
                y = g.fused(
                    "MultiHeadAttention", q, k, v, bias, mask,
                    num_heads=heads, mask_filter_value=_MASKED,
                )  # fmt: skip
                y = g.op("Reshape", y, g.integers(-1, heads * size))
                out, own = f"{attention}.out_proj", f"{layer}.self_attn_layer_norm"
                following = f"{layer}.final_layer_norm"
            else:
                rows = self._rounded(g, x, zero) if zero is not None else x
                y = self._activated(g, self._linear(g, rows, [f"{layer}.fc1"], bias=False), f"{layer}.fc1")
                out, own = f"{layer}.fc2", f"{layer}.final_layer_norm"
                last = n + 1 == len(sublayers)
                following = final if last else f"{sublayers[n + 1][0].rpartition('.')[0]}.self_attn_layer_norm"
            delta = self._linear(g, self._rounded(g, y, zero) if zero is not None else y, [out], bias=False)
            x, residual = self._add_norm(g, residual, delta, following if self.pre else own, self._bias(g, [out]))
        names = [f"model.decoder.layers.{i}.encoder_attn.{name}_proj" for i in range(c.decoder_layers) for name in "kv"]
        y = self._linear(g, self._rounded(g, x, zero) if zero is not None else x, names)  # (rows, 2 layers x features)
        heads, size = self._heads("decoder")
        split = g.op("Concat", shape, g.integers(len(names), heads, size), axis=0)
        y = g.op("Transpose", g.op("Reshape", y, split), perm=[2, 0, 3, 1, 4])
        g.output(y, "cross", TensorProto.FLOAT, [len(names), "batch", heads, "source", size])
        return g.model()

    def decoder(self) -> onnx.ModelProto:
        """One step: a token a row to logits (rows, vocabulary).

        Rows are texts x beams. All beams of a text attend to the same source, as so many queries. Keys and values of
        earlier tokens are read from, and this token's written to, buffers (rows, heads, capacity, head_dim) that are
        bound as input and as output.
        """
        c, d, (heads, size) = self.config, self.features, self._heads("decoder")
        g = Graph("decoder", self.numbers)
        ids = g.input("ids", TensorProto.INT64, ["rows", 1])
        place = g.input("position", TensorProto.INT64, [1, 1])
        by_source = g.input("by_source", TensorProto.INT64, [3])
        mask = g.input("mask", TensorProto.INT32, ["texts", "source"])
        before = g.input("before", TensorProto.INT32, ["rows"])
        total = g.input("total", TensorProto.INT32, [])
        cache: list[int | str] = ["rows", heads, "capacity", size]
        source: list[int | str] = ["texts", heads, "source", size]
        x = g.op(
            "Add",
            self._lookup(g, ids, "model.decoder.embed_tokens.weight", self._embed_scale),
            self._lookup(g, place, "model.decoder.embed_positions.weight"),
        )
        x = residual = self._norm(g, x, "model.decoder.layernorm_embedding")
        if self.pre:
            x = self._norm(g, x, "model.decoder.layers.0.self_attn_layer_norm")
        by_row = g.integers(-1, 1, heads * size)
        for i in range(c.decoder_layers):
            layer = f"model.decoder.layers.{i}"
            own, across = f"{layer}.self_attn", f"{layer}.encoder_attn"
            keys = g.input(f"keys {i}", TensorProto.FLOAT, cache)
            values = g.input(f"values {i}", TensorProto.FLOAT, cache)
            joint = self._linear(g, x, [f"{own}.{name}_proj" for name in "qkv"])
            y, new_keys, new_values = g.fused(
                "GroupQueryAttention", joint, "", "", keys, values, before, total,
                outputs=3, num_heads=heads, kv_num_heads=heads,
            )  # fmt: skip
            g.output(new_keys, f"new keys {i}", TensorProto.FLOAT, cache)
            g.output(new_values, f"new values {i}", TensorProto.FLOAT, cache)
            delta = self._linear(g, y, [f"{own}.out_proj"])
            norm = f"{layer}.encoder_attn_layer_norm" if self.pre else f"{own}_layer_norm"
            x, residual = self._add_norm(g, residual, delta, norm)
            q = g.op(
                "Reshape", self._linear(g, x, [f"{across}.q_proj"]), by_source
            )  # (texts, beams, features of all heads)
            y = g.fused(
                "MultiHeadAttention", q,
                g.input(f"source keys {i}", TensorProto.FLOAT, source),
                g.input(f"source values {i}", TensorProto.FLOAT, source),
                "", mask, num_heads=heads, mask_filter_value=_MASKED,
            )  # fmt: skip
            delta = self._linear(g, g.op("Reshape", y, by_row), [f"{across}.out_proj"])
            norm = f"{layer}.final_layer_norm" if self.pre else f"{across}_layer_norm"
            x, residual = self._add_norm(g, residual, delta, norm)
            y = self._linear(g, x, [f"{layer}.fc1"], bias=c.activation_function != "gelu")
            delta = self._linear(g, self._activated(g, y, f"{layer}.fc1", biased=True), [f"{layer}.fc2"])
            following = f"model.decoder.layers.{i + 1}.self_attn_layer_norm"
            if i + 1 == c.decoder_layers:
                following = "model.decoder.layer_norm"
            norm = following if self.pre else f"{layer}.final_layer_norm"
            x, residual = self._add_norm(g, residual, delta, norm)
        x = g.op("Reshape", x, g.integers(-1, d))
        numbers = self.weights.number("final_logits_bias").reshape(-1)
        bias = g.constant("final_logits_bias", numbers) if numbers.any() else ""
        logits = self._multiply(g, x, ["lm_head"], bias)
        g.output(logits, "logits", TensorProto.FLOAT, ["rows", c.vocab_size])
        return g.model()

    def candidates(self) -> onnx.ModelProto:
        """Logits (rows, vocabulary) to the ``k`` best tokens of each row and their log-probabilities, best first."""
        g = Graph("candidates", self.numbers)
        logits = g.input("logits", TensorProto.FLOAT, ["rows", self.config.vocab_size])
        count = g.input("k", TensorProto.INT64, [1])
        best, tokens = g.op("TopK", g.op("LogSoftmax", logits, axis=-1), count, outputs=2, axis=-1)
        g.output(best, "best", TensorProto.FLOAT, ["rows", "count"])
        g.output(tokens, "tokens", TensorProto.INT64, ["rows", "count"])
        return g.model()

    # --- parts of them

    def _heads(self, side: str) -> tuple[int, int]:
        """Heads of the attentions of a stack, fewer than the configuration has in a narrow student, and their size."""
        size = self.features // getattr(self.config, f"{side}_attention_heads")
        return len(self.weights.number(f"model.{side}.layers.0.self_attn.q_proj.bias")) // size, size

    @property
    def _embed_scale(self) -> float:
        return math.sqrt(self.features) if self.config.scale_embedding else 1.0

    def _lookup(self, g: Graph, ids: str, name: str, factor: float = 1.0) -> str:
        """Rows of a table: (..., features)."""
        table = self.weights.matrix([name])
        if isinstance(table, np.ndarray):
            rows = g.op("Gather", g.constant(self._shared(name), table), ids)
            return rows if factor == 1 else g.op("Mul", rows, g.constant("embed_scale", np.array(factor, np.float32)))
        columns = table.unsigned.shape[1]
        block = max(16, 2 ** math.ceil(math.log2(columns))) if table.scale.shape[1] == 1 else table.block()
        packed = table.packed(8 // table.bits).reshape(len(table.unsigned), -1)
        return g.fused(
            "GatherBlockQuantized",
            g.constant(f"{self._shared(name)} table", packed),
            ids,
            g.constant(f"{self._shared(name)} table scales", table.scales(block) * np.float32(factor)),
            bits=table.bits,
            block_size=block,
            gather_axis=0,
            quantize_axis=1,
        )

    def _shared(self, name: str) -> str:
        """One name for all names of a number, so that it is written once."""
        value = self.weights.values[name]
        return next(other for other, each in self.weights.values.items() if each is value)

    def _linear(self, g: Graph, x: str | tuple[str, str], paths: Sequence[str], bias: bool = True) -> str:
        if isinstance(x, tuple):
            y = self._integer(g, x, paths)
            return g.op("Add", y, self._bias(g, paths)) if bias else y
        return self._multiply(g, x, paths, self._bias(g, paths) if bias else "")

    def _multiply(self, g: Graph, x: str, paths: Sequence[str], bias: str = "") -> str:
        weight, name = self.weights.matrix([f"{path}.weight" for path in paths]), _joint(paths)
        if isinstance(weight, np.ndarray):
            y = g.op("MatMul", x, g.constant(f"{name}.weight", np.ascontiguousarray(weight.T)))
            return g.op("Add", y, bias) if bias else y
        block = weight.block()
        rows, columns = weight.unsigned.shape
        inputs = [
            x,
            g.constant(f"{name}.weight codes", weight.packed(block)),
            g.constant(f"{name}.weight scales", weight.scales(block)),
        ]
        return g.fused(
            "MatMulNBits", *inputs, *(("", "", bias) if bias else ()),
            K=columns, N=rows, bits=weight.bits, block_size=block, accuracy_level=self.level,
        )  # fmt: skip

    def _bias(self, g: Graph, paths: Sequence[str]) -> str:
        bias = np.concatenate([self.weights.number(f"{path}.bias") for path in paths])
        return g.constant(f"{_joint(paths)}.bias", bias)

    def _activated(self, g: Graph, y: str, path: str, biased: bool = False) -> str:
        """The activation function of ``y`` and the bias, which ``relu`` may have got already."""
        if self.config.activation_function == "gelu":
            return g.fused("BiasGelu", y, self._bias(g, [path]))
        return g.op("Relu", y if biased else g.op("Add", y, self._bias(g, [path])))

    def _norm(self, g: Graph, x: str, path: str) -> str:
        gamma, beta = self._norm_numbers(g, path)
        return g.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=_EPSILON)

    def _norm_numbers(self, g: Graph, path: str) -> tuple[str, str]:
        gamma, beta = (g.constant(name, self.weights.number(name)) for name in (f"{path}.weight", f"{path}.bias"))
        return gamma, beta

    def _add_norm(self, g: Graph, residual: str, delta: str, norm: str, bias: str = "") -> tuple[str, str]:
        """What the next part reads, and what it is added to."""
        inputs = (residual, delta, *self._norm_numbers(g, norm), *((bias,) if bias else ()))
        if not self.pre:
            x = g.fused("SkipLayerNormalization", *inputs, epsilon=_EPSILON)
            return x, x
        outputs = g.fused("SkipLayerNormalization", *inputs, outputs=4, epsilon=_EPSILON)
        g.nodes[-1].output[1] = g.nodes[-1].output[2] = ""  # mean and deviation
        return outputs[0], outputs[3]

    # --- int8, as a student rounds: one scale per token, one a row of the weight

    def _zero_points(self, g: Graph, x: str) -> str:
        rows = g.op("Shape", x, end=1)
        return g.op("ConstantOfShape", rows, value=onnx.helper.make_tensor("128", TensorProto.UINT8, [1], [128]))

    def _rounded(self, g: Graph, x: str, zero: str) -> tuple[str, str]:
        """Codes uint8 (rows, features) around 128, and scales (rows, 1)."""
        largest = g.op("ReduceMax", g.op("Abs", x), g.integers(-1), keepdims=1)
        scale = g.op("Mul", largest, g.constant("1/127", np.array(1 / 127, np.float32)))
        scale = g.op("Max", scale, g.constant("tiny", np.array(np.finfo(np.float32).tiny)))
        return g.op("QuantizeLinear", x, g.op("Squeeze", scale, g.integers(-1)), zero, axis=0), scale

    def _integer(self, g: Graph, x: tuple[str, str], paths: Sequence[str]) -> str:
        weight, name = self.weights.matrix([f"{path}.weight" for path in paths]), _joint(paths)
        if isinstance(weight, np.ndarray) or weight.scale.shape[1] > 1:
            raise InputError("encoder", "int8", f"packed, since {name}.weight has no grid of one scale per row")
        y = g.fused(
            "MatMulIntegerToFloat",
            x[0],
            g.constant(f"{name}.weight int8", weight.signed()),
            g.constant("unit", np.array(1, np.float32)),
            g.constant(f"{name}.weight scale", weight.scale[:, 0]),
            g.constant("128", np.array(128, np.uint8)),
        )
        return g.op("Mul", y, x[1])


def _joint(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
