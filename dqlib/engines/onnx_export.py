"""Models as graphs for ONNX Runtime, whose kernels multiply weights of 2, 4 or 8 bits as they are.

Of an encoder-decoder, the folder holds ``encoder.onnx``, which reads a source and gives the keys and values that all
layers of the decoder attend to; ``decoder.onnx``, which takes one step and keeps its keys and values in memory that the
caller lends it; ``candidates.onnx``, which finds the best tokens for a beam search; ``weights.bin``, the numbers of all
three; ``dqlib.json`` (:mod:`dqlib.storage.manifest`); configuration and tokenizer. A decoder alone has no
``encoder.onnx``: its ``decoder.onnx`` reads the text, too, in one go. A classifier is an encoder, ``classifier.onnx``.

A low-bit weight is a ``MatMulNBits`` of ONNX Runtime (``com.microsoft``): unsigned codes around a zero point of
``2^(bits-1)``, one scale for each block of a row. A student's row has one scale, which is repeated, so ternary codes
become {1, 2, 3} and binary ones {1, 3} of two bits, and nothing is lost. Four levels become {0, 1, 2, 3}, which lie
around 1.5: half a scale times the sum of the input's row is added to the product, so nothing is lost either. (Kernels
take a zero point of 1.5, too, but then unpack the whole weight for each product, 5 to 200 times slower.) With several
scales per row four levels take 4 bits. The kernels round activations to 8 bits, one scale per block of a token; a
student rounds them with one scale per token.

Those kernels serve few rows well and many badly, and an encoder has as many rows as its source has tokens. So the
encoder may be written with codes of 8 bits and one scale per row (``MatMulInteger``), four times as large and three to
four times as fast, on activations that are rounded as a student rounds them.

The output head is the low-bit table that tokens are looked up in. Its kernel wants the table in an order of its own, so
ONNX Runtime makes that copy when it loads; of the table on disk, mapped, only the rows of tokens that occur are read.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path

import onnx
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from dqlib.architectures import architecture_of
from dqlib.engines import ENGINES
from dqlib.engines.base import Decoding
from dqlib.engines.classifier import CLASSIFIERS, Reading
from dqlib.engines.onnx_architectures import GRAPHS
from dqlib.engines.onnx_graph import Graph, Numbers
from dqlib.engines.onnx_model import FORMAT, OnnxEngine
from dqlib.engines.onnx_stacks import Stacks
from dqlib.engines.onnx_weights import KERNEL_BITS, Weights, values_of
from dqlib.errors import InputError, check_choice
from dqlib.files import atomic_folder
from dqlib.quantizers import Quantized
from dqlib.storage.manifest import check_replaceable, seal

WEIGHTS = "weights.bin"

#: How an encoder may be written: one byte per weight, or as the decoder is.
ENCODERS = ("int8", "packed")


def export_onnx(
    model: PreTrainedModel,
    folder: str | Path,
    tokenizer: Tokenizer | None = None,
    bits: int | None = None,
    *,
    encoder: str | None = None,
) -> None:
    """Write a model for ONNX Runtime, aside, and put it in place at once.

    Args:
        model: a student, what ``load_packed`` gave, or a model in full precision, which stays so. Of
            BERT, a classifier.
        folder: new, empty, or an exported model, which is replaced.
        bits: of the codes of weights and tokens in the graphs, 2, 4 or 8; None for the fewest that hold them.
        encoder: ``int8`` for speed, ``packed`` for the least memory; None for ``int8`` where every weight that it
            multiplies has a grid of one scale per row, and ``packed`` elsewhere. Of a decoder alone, None.

    Raises:
        InputError: the model, its decoding or an argument is not served, or the folder holds something else.
    """
    kind = _checked(model.config, bits, encoder)
    folder = Path(folder)
    check_replaceable(folder, *ENGINES[1:])
    config = getattr(model, "dqlib_config", None)
    rounded = config is not None and config.a_bits <= 8
    own = architecture_of(model.config).positions
    values = values_of(model)
    if bits is not None and not any(isinstance(each, Quantized) for each in values.values()):
        raise InputError("bits", bits, "left out of a model that is not quantized, whose numbers stay as they are")
    graphs = kind(model.config, Weights(values, bits, own), rounded, encoder)
    description = {
        "format": FORMAT,
        "class": type(model).__name__,
        "config": None if config is None else str(config),
        "bits": bits,
        "encoder": "int8" if graphs.int8_encoder else "packed",
        "vocabulary": model.config.vocab_size,
    }
    if model.config.model_type in CLASSIFIERS:
        description["reading"] = asdict(Reading.of(model, tokenizer))
    else:
        description["decoding"] = asdict(Decoding.exported(model, OnnxEngine.name))
        layers, (heads, size) = len(graphs.layers("decoder")), graphs.heads("decoder")
        description |= {"layers": layers, "heads": heads, "head_dim": size, "first_position": graphs.first_position}
    with atomic_folder(folder) as scratch:
        with Numbers(scratch / WEIGHTS) as numbers:
            for name, make in graphs.parts.items():
                graph = Graph(name.removesuffix(".onnx"), numbers)
                make(graph)
                onnx.save(graph.model(), scratch / name)
        plain = copy.deepcopy(model.config)
        plain.architectures = [type(model).__name__]
        plain.save_pretrained(scratch)
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        seal(scratch, OnnxEngine.name, description)


def _checked(config: PreTrainedConfig, bits: int | None, encoder: str | None) -> type[Stacks]:
    """What makes the graphs, once it is checked that the kernels serve a configuration and an export's options."""
    kind = GRAPHS.get(config.model_type)
    if kind is None:
        served = ", ".join(sorted(GRAPHS))
        raise InputError("model_type", config.model_type, f"one of {served}, which the engine onnxruntime serves")
    if bits is not None and bits not in KERNEL_BITS:
        raise InputError("bits", bits, "2, 4 or 8, or None for the fewest that do")
    if encoder is not None:
        check_choice("encoder", encoder, ENCODERS)
        if architecture_of(config).encoder is None:
            raise InputError("encoder", encoder, f"left out for {config.model_type}, which has none")
    kind.check(config)
    return kind
