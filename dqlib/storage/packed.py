"""Packed models on disk: a folder whose bytes are the size that is claimed, and which is a Hugging Face model again.

The folder holds ``packed.safetensors``, ``dqlib.json`` (:mod:`dqlib.storage.manifest`), the configurations of the model
and of its generation and, if one was given, the tokenizer. Nothing in it is a pickle or a program, only files that the
manifest names are read, and every number read is checked. ``docs/packed-format.md`` describes the format.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.initialization import no_init_weights

from dqlib.config import FULL_PRECISION, Config
from dqlib.errors import InputError
from dqlib.files import atomic_folder
from dqlib.generation import check_generation
from dqlib.presets import Preset
from dqlib.pruning import narrow
from dqlib.storage.live import Live, stored
from dqlib.storage.manifest import FORMAT, WEIGHTS, Manifest, check_replaceable, opened, read_file, read_tensors, seal
from dqlib.storage.packing import large_tensor
from dqlib.storage.reading import (
    CONFIG,
    ELSEWHERE,
    GENERATION,
    add_to_config,
    config_of,
    empty_model,
    generation_of,
    json_object,
    model_class,
    read_tokenizer,
    refused_as,
    saved,
)
from dqlib.storage.registered import PackedConfig, PackedReader
from dqlib.storage.stored import PackedWeight, Stored, record, restored
from dqlib.storage.students import describe, described_config, in_shape
from dqlib.student import quantize_model

Each = TypeVar("Each", bound=Live | Stored)

#: What stands where transformers looks for the name of a file of weights, so that it tells its user: with dqlib it
#: knows better (:mod:`dqlib.storage.registered`).
OF_A_PACKED_MODEL = "these are packed weights, which transformers reads after 'import dqlib'"


@dataclass(frozen=True, slots=True)
class Packed:
    """What the folder of a packed model holds, read and checked."""

    manifest: Manifest
    model_config: PreTrainedConfig
    generation: GenerationConfig | None
    config: Config
    preset: Preset
    parameters: list[Stored]


def save_packed(model: PreTrainedModel, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Write a student as a packed model: written aside, put in place at once.

    What is written is what the student computes with, so its numbers must have been rounded before its last
    evaluation: call :func:`dqlib.student.round_for_storage` there. It is not done here, where nobody would see that the
    model scored is another than the one stored.

    Args:
        model: a student, or what :func:`load_packed` gave, which gives the same bytes again.
        folder: new, empty, or a packed model, which is replaced.

    Raises:
        InputError: the model is no student, its numbers are not rounded or not in fp32, or the folder holds something
            else.
        OSError: the folder cannot be written; what was there is as before.
    """
    folder, parameters = Path(folder), _parameters(model)
    check_replaceable(folder, "packed")
    try:
        with atomic_folder(folder) as scratch:
            _write(model, parameters, scratch)
            if tokenizer is not None:
                tokenizer.save_pretrained(scratch)
            seal(scratch, "packed", describe(model), list(map(record, parameters)))
    except OSError as error:
        reason = f"not written, and what was there is as before ({error.strerror})"
        raise OSError(error.errno, reason, str(folder)) from error


def add_to_folder(model: PreTrainedModel, folder: str | Path, state_dict: object = None, **_: Any) -> None:
    """What ``save_pretrained`` of a packed model does: pack it again; other files of the folder stay.

    Raises:
        InputError: the model was changed since it was loaded.
    """
    parameters = _parameters(model)
    with saved(folder, "packed", describe(model), None, list(map(record, parameters))) as scratch:
        _write(model, parameters, scratch)


def _parameters(model: PreTrainedModel) -> list[Stored]:
    """Everything that a packed model of a student holds, or an error as of :func:`save_packed`."""
    if not hasattr(model, "dqlib_config"):
        raise InputError("model", type(model).__name__, "a student, of make_student, load_student or load_packed")
    model_class(model.config, type(model).__name__)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise InputError(name, str(value.dtype), "fp32, which a packed model computes in: call model.float(), and "
                             "round_for_storage again before the evaluation")  # fmt: skip
    check_generation(model)
    return list(stored(model))


def _write(model: PreTrainedModel, parameters: Sequence[Stored], folder: Path) -> None:
    """Write all files of a packed model but tokenizer and manifest."""
    weights = safetensors.torch.save({name: t for each in parameters for name, t in each.tensors.items()})
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    packed = {"dtype": "float32", "quantization_config": PackedConfig().to_dict(), ELSEWHERE: OF_A_PACKED_MODEL}
    add_to_config(folder, packed)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
    (folder / WEIGHTS).write_bytes(weights)


def load_packed(folder: str | Path) -> PreTrainedModel:
    """Read a packed model.

    Weights are fp32 numbers, those that the codes stand for; activations are rounded as the student's are. So the
    logits are the student's, bit for bit on a CPU. ``model.dqlib_packed`` keeps the packed codes (:class:`Stored`).

    Returns:
        A model of the Hugging Face class that was packed, in evaluation mode.

    Raises:
        InputError: the folder is no packed model, is damaged, or holds a pickle; the tensor or file is named.
    """
    packed = read_packed(folder)
    model = _built(packed.model_config, packed.manifest.about.get("class"), packed.parameters, packed.config.heads)
    assign(model, packed.parameters, in_one_memory(packed.parameters))
    if packed.generation is not None:
        model.generation_config = packed.generation
    round_activations(model, packed)
    # as transformers marks what it loads
    model.is_quantized, model.quantization_method, model.hf_quantizer = True, FORMAT, PackedReader(PackedConfig())
    model.config.quantization_config = model.hf_quantizer.quantization_config
    return model.eval()


def read_packed(folder: str | Path) -> Packed:
    """What the folder of a packed model holds.

    Raises:
        InputError: as :func:`load_packed`.
    """
    manifest = opened(folder, "packed")
    tensors = read_tensors(folder, manifest)
    parameters = [restored(record, tensors) for record in manifest.parameters]
    largest = max((size for each in parameters for size in each.shape), default=1)
    fields = json_object(read_file(folder, manifest, CONFIG), CONFIG)
    if fields.get("quantization_config") == PackedConfig().to_dict():
        del fields["quantization_config"]
    model_config, generation = config_of(fields, CONFIG, largest), None
    if GENERATION in manifest.files:
        settings = json_object(read_file(folder, manifest, GENERATION), GENERATION)
        generation = generation_of(settings, model_config, GENERATION)
    config, preset = described_config(manifest.about), Preset.described(manifest.about)
    return Packed(manifest, model_config, generation, config, preset, parameters)


def round_activations(model: PreTrainedModel, packed: Packed) -> None:
    """Let a model with the weights of a packed one, which are quantized already, round its activations as the student.

    Raises:
        InputError: it has not as many layers and neurons as the student's configuration tells.
    """
    config = in_shape(packed.config, model)
    quantize_model(model, config.uniform(FULL_PRECISION), replace(packed.preset, position_bits=FULL_PRECISION))
    model.dqlib_config, model.dqlib_preset, model.dqlib_packed = config, packed.preset, packed.parameters


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a packed model, of files that the manifest names, checked.

    Raises:
        InputError: as :func:`load_packed`, or no tokenizer was packed.
    """
    opened(folder, "packed")
    tokenizer = read_tokenizer(folder)
    if tokenizer is None:
        raise InputError("folder", str(folder), "a packed model with a tokenizer: give save_packed one")
    return tokenizer


def _built(
    config: PreTrainedConfig, name: object, parameters: Sequence[Stored], heads: int | None = None
) -> PreTrainedModel:
    """A model without numbers, if these parameters fit it, which is found out before it takes any memory."""
    kind = model_class(config, name)
    empty = empty_model(kind, config, len(parameters), CONFIG, heads)
    check_fit(empty, parameters)
    stored_buffers = empty.state_dict().keys()
    if all(name in stored_buffers for name, _ in empty.named_buffers()):
        return empty  # without numbers of its own, it gets all of them
    with refused_as(CONFIG, f"one that a {name} can be built of"), no_init_weights():
        return narrow(kind(config), heads)


def check_fit(model: nn.Module, parameters: Sequence[Live | Stored]) -> None:
    """Check that parameters are those of a model's state, by names and shapes.

    Raises:
        InputError: as :func:`assign`; or one that the model has numbers of is said to be all zeros.
    """
    state = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    numbers = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for each in parameters:
        for name in each.names:
            if name not in state:
                raise InputError(name, "in the manifest", f"once a parameter of {type(model).__name__}")
            shape = state.pop(name)
            if shape != each.shape:
                raise InputError(name, each.shape, f"of the shape {shape}, as {CONFIG} has it")
            if name in numbers and isinstance(each, Stored) and each.content is None:
                raise InputError(name, "zeros", "stored, as all but buffers are")
    if state:
        raise InputError(min(state), "missing", f"in the manifest, since {type(model).__name__} has it")


def assign(model: nn.Module, parameters: Sequence[Each], value_of: Callable[[Each], Tensor]) -> None:
    """Give a model all its numbers; tied parameters become one.

    Raises:
        InputError: a name is missing, is none of the model's, or has another shape there.
    """
    check_fit(model, parameters)
    for each, value in numbers_of(parameters, value_of):
        _put(model, each.names, value)
    keep_apart(model, parameters)


def numbers_of(parameters: Sequence[Each], value_of: Callable[[Each], Tensor]) -> Iterator[tuple[Each, Tensor]]:
    """Parameters with their numbers, which all threads of PyTorch make, the largest first."""
    largest_first = sorted(parameters, key=lambda each: -torch.Size(each.shape).numel())
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        yield from zip(largest_first, pool.map(value_of, largest_first), strict=True)


def in_one_memory(parameters: Sequence[Stored]) -> Callable[[Stored], Tensor]:
    """What gives the numbers of parameters, all packed ones in memory that is got at once.

    For getting memory takes most of the time of loading, and the system gives large pages for much of it only.
    """
    counts = {each.name: prod(each.shape) for each in parameters if isinstance(each.content, PackedWeight)}
    ends = list(accumulate(-(-count // 16) * 16 for count in counts.values()))  # at multiples of 64 bytes
    memory = large_tensor((max(ends, default=0),), torch.float32).numpy()
    places = {
        name: torch.from_numpy(memory[start : start + count])  # each a storage of its own, as transformers expects
        for (name, count), start in zip(counts.items(), [0, *ends], strict=False)
    }
    return lambda each: each.value(places.get(each.name))


def tie(model: nn.Module, names: Sequence[str]) -> None:
    """Give all names of a parameter the tensor that the first has."""
    if names[1:]:
        _put(model, names, model.get_parameter(names[0]).detach())


def _put(model: nn.Module, names: Sequence[str], value: Tensor) -> None:
    parameter = None
    for name in names:
        path, _, field = name.rpartition(".")
        module = model.get_submodule(path)
        if field in module._parameters:
            if parameter is None:
                parameter = nn.Parameter(value, requires_grad=module._parameters[field].requires_grad)
            module._parameters[field] = parameter
        else:
            module._buffers[field] = value


def keep_apart(model: PreTrainedModel, parameters: Sequence[Live | Stored]) -> None:
    """Let transformers know which weights that it ties by default are not tied here, as it does itself on loading."""
    first = {name: each.names[0] for each in parameters for name in each.names}
    for name, other in list(model.all_tied_weights_keys.items()):
        if first[name] != first[other]:
            del model.all_tied_weights_keys[name]
