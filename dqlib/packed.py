"""Packed models on disk: a folder whose bytes are the size that is claimed, and which is a Hugging Face model again.

The folder holds ``packed.safetensors``, ``packed.json`` (:mod:`dqlib.manifest`), the model's and the generation's
configuration and, if one was given, the tokenizer. Nothing in it is a pickle or a program, only files that the
manifest names are read, and every number read is checked. ``docs/packed-format.md`` describes the format.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.initialization import no_init_weights

from dqlib.architectures import architecture_of, config_of, model_class, one_line, read_tokenizer
from dqlib.config import FULL_PRECISION, Configuration
from dqlib.errors import InputError
from dqlib.files import atomic_folder
from dqlib.manifest import MANIFEST, WEIGHTS, Manifest, checksum, expected_tensors, record, restored, sha256
from dqlib.presets import Preset
from dqlib.stored import Stored, stored
from dqlib.student import describe, quantize_model

CONFIG, GENERATION = "config.json", "generation_config.json"

#: Endings of files that may hold pickles, which no packed model has.
PICKLES = frozenset({".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"})

Each = TypeVar("Each", bound="Named")


def save_packed(model: PreTrainedModel, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Write a student as a packed model: written aside, put in place at once.

    What is written is what the student computes with, so its numbers must have been rounded before its last
    evaluation: call :func:`dqlib.student.round_for_storage` there. It is not done here, where nobody would see that the
    model scored is another than the one stored.

    Args:
        model: a student, or what :func:`load_packed` gave, which gives the same bytes again.
        folder: new, empty, or a packed model, which is replaced.
        tokenizer: written beside the weights.

    Raises:
        InputError: the model is no student, its numbers are not rounded or not in fp32, or the folder holds something
            else.
        OSError: the folder cannot be written; what was there is as before.
    """
    folder = Path(folder)
    if not hasattr(model, "dqlib_configuration"):
        raise InputError("model", type(model).__name__, "a student, of make_student, load_student or load_packed")
    model_class(model.config, type(model).__name__)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise InputError(name, str(value.dtype), "fp32, which a packed model computes in: call model.float(), and "
                             "round_for_storage again before the evaluation")  # fmt: skip
    _check_replaceable(folder)
    parameters = list(stored(model))
    weights = safetensors.torch.save({name: t for each in parameters for name, t in each.tensors.items()})
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    try:
        with atomic_folder(folder) as scratch:
            config.save_pretrained(scratch)
            if getattr(model, "generation_config", None) is not None:
                model.generation_config.save_pretrained(scratch)
            if tokenizer is not None:
                tokenizer.save_pretrained(scratch)
            files = {path.name: sha256(path.read_bytes()) for path in sorted(scratch.iterdir())}
            (scratch / WEIGHTS).write_bytes(weights)
            records = tuple(map(record, parameters))
            manifest = Manifest(describe(model), files, len(weights), sha256(weights), records)
            (scratch / MANIFEST).write_text(manifest.text(), encoding="utf-8")
    except OSError as error:
        raise OSError(
            error.errno, f"not written, and what was there is as before ({error.strerror})", str(folder)
        ) from error


def load_packed(folder: str | Path) -> PreTrainedModel:
    """Read a packed model.

    Weights are fp32 numbers, those that the codes stand for; activations are rounded as the student's are. So the
    logits are the student's, bit for bit on a CPU. ``model.dqlib_packed`` keeps the packed codes (:class:`Stored`).

    Returns:
        A model of the Hugging Face class that was packed, in evaluation mode.

    Raises:
        InputError: the folder is no packed model, is damaged, or holds a pickle; the tensor or file is named.
    """
    folder, manifest = _opened(folder)
    parameters = _read_parameters(folder, manifest)
    config = config_of(_read_json(folder, manifest, CONFIG), CONFIG)
    configuration, method = Configuration.parse(manifest.student.get("config")), Preset.described(manifest.student)
    model = _built(config, manifest.student.get("class"), parameters)
    assign(model, parameters, Stored.value)
    if GENERATION in manifest.files:
        model.generation_config = _read_generation(folder, manifest)
    # The weights are quantized already: what is left to do at run time is to round activations.
    activations_only = replace(configuration, w_bits=FULL_PRECISION, e_bits=FULL_PRECISION)
    quantize_model(model, activations_only, replace(method, position_bits=FULL_PRECISION))
    model.dqlib_configuration, model.dqlib_preset, model.dqlib_packed = configuration, method, parameters
    return model.eval()


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a packed model, of files that the manifest names, checked.

    Raises:
        InputError: as :func:`load_packed`, or no tokenizer was packed.
    """
    folder, manifest = _opened(folder)
    names = [name for name in manifest.files if name not in (CONFIG, GENERATION)]
    if not any(name.startswith("tokenizer") for name in names):
        raise InputError("folder", str(folder), "a packed model with a tokenizer: give save_packed one")
    with tempfile.TemporaryDirectory() as checked:  # nothing else can be read from there
        for name in (CONFIG, *names):
            (Path(checked) / name).write_bytes(_read(folder, manifest, name))
        tokenizer = read_tokenizer(checked, folder)
    tokenizer.name_or_path = str(folder)
    return tokenizer


def verify_packed(folder: str | Path) -> list[str]:
    """Check every file of a packed model against the manifest, by SHA-256.

    Returns:
        One sentence for each fault, which names the tensor or file; empty where there is none.

    Raises:
        InputError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise InputError("folder", str(folder), "a folder")
    try:
        folder, manifest = _opened(folder)
    except InputError as error:
        return [str(error)]
    faults = []
    for name in manifest.files:
        try:
            _read(folder, manifest, name)
        except InputError as error:
            faults.append(str(error))
    try:
        _read_parameters(folder, manifest)
        found = sha256((folder / WEIGHTS).read_bytes())
        if found != manifest.weights_sha256:
            raise InputError(WEIGHTS, f"SHA-256 {found}", manifest.weights_sha256)
    except InputError as error:
        faults.append(str(error))
    return faults


def packed_manifest(folder: str | Path) -> Manifest:
    """The manifest of a packed model.

    Raises:
        InputError: the folder is no packed model, holds a pickle, or its manifest is damaged.
    """
    return _opened(folder)[1]


def packed_size_bytes(folder: str | Path) -> int:
    """Bytes of a packed model on disk: weights file and manifest.

    Configuration and tokenizer, which the full-precision model has as well, are not counted.

    Raises:
        InputError: the folder is no packed model.
    """
    folder, _ = _opened(folder)
    return sum((folder / name).stat().st_size for name in (MANIFEST, WEIGHTS))


def _opened(folder: str | Path) -> tuple[Path, Manifest]:
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise InputError("folder", str(folder), f"a folder written by save_packed, with a {MANIFEST}")
    pickles = sorted(path.name for path in folder.rglob("*") if path.suffix.lower() in PICKLES)
    if pickles:
        raise InputError(
            "folder", pickles[0], "a folder without files that may be pickles, since no packed model has any"
        )
    return folder, Manifest.parse((folder / MANIFEST).read_bytes())


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that holds anything but a packed model."""
    if not folder.exists():
        return
    allowed = "new, empty, or a packed model and nothing else"
    if not folder.is_dir():
        raise InputError("folder", str(folder), allowed)
    there = {path.name for path in folder.iterdir()}
    if there and MANIFEST not in there:
        raise InputError("folder", str(folder), allowed)
    if there:
        others = there - {MANIFEST, WEIGHTS, *Manifest.parse((folder / MANIFEST).read_bytes()).files}
        if others:
            raise InputError("folder", f"{folder}, with {min(others)}", allowed)


def _read(folder: Path, manifest: Manifest, name: str) -> bytes:
    """A file that the manifest names, if it is the one."""
    if name not in manifest.files:
        raise InputError(MANIFEST, f"without {name}", f"one that names {name}")
    data = _bytes(folder / name)
    found = sha256(data)
    if found != manifest.files[name]:
        raise InputError(name, f"SHA-256 {found}", f"{manifest.files[name]}, as the manifest has it: it was changed")
    return data


def _read_json(folder: Path, manifest: Manifest, name: str) -> dict[str, Any]:
    try:
        content = json.loads(_read(folder, manifest, name))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(name, one_line(error), "JSON") from None
    if not isinstance(content, dict):
        raise InputError(name, type(content).__name__, "a JSON object")
    return content


def _bytes(path: Path) -> bytes:
    """What a file holds, if it is one: a pipe could be read for ever."""
    try:
        if not path.is_file():
            raise InputError(path.name, "no file" if path.exists() else "missing", "a file in the folder")
        return path.read_bytes()
    except OSError as error:
        raise InputError(path.name, error.strerror or str(error), "a file in the folder") from None


def _read_generation(folder: Path, manifest: Manifest) -> GenerationConfig:
    content = _read_json(folder, manifest, GENERATION)
    try:
        return GenerationConfig.from_dict(content)
    except Exception as error:  # of checks in transformers, which have no class in common
        raise InputError(GENERATION, one_line(error), "the configuration of a generation") from None


def _built(config: PreTrainedConfig, name: str | None, parameters: Sequence[Stored]) -> PreTrainedModel:
    """A model without numbers, if these parameters fit it, which is found out before it takes any memory.

    Raises:
        InputError: the class is unknown, the configuration none that a model can be built of, or a parameter does not
            fit.
    """
    kind = model_class(config, name)
    try:
        layers = sum(architecture_of(config).depths(config))
        if layers > len(parameters):
            raise InputError(CONFIG, f"{layers} layers", f"of no more layers than the {len(parameters)} parameters")
        with no_init_weights():
            with torch.device("meta"):
                empty = kind(config)
            _check_fit(empty, parameters)
            stored_buffers = empty.state_dict().keys()
            computed = any(name not in stored_buffers for name, _ in empty.named_buffers())
            return kind(config) if computed else empty  # without numbers of its own, it gets all of them
    except InputError:
        raise
    except Exception as error:  # whatever a model does with a field that it did not check
        raise InputError(CONFIG, one_line(error), f"one that a {name} can be built of") from None


def _check_fit(model: nn.Module, parameters: Sequence[Named]) -> None:
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


def _read_parameters(folder: Path, manifest: Manifest) -> list[Stored]:
    """Everything in the weights file, if each tensor is what the manifest says."""
    data = _bytes(folder / WEIGHTS)
    if len(data) != manifest.weights_bytes:
        raise InputError(WEIGHTS, f"{len(data)} bytes", f"{manifest.weights_bytes} bytes long, as the manifest has it")
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(WEIGHTS, f"damaged ({error})", "a whole safetensors file") from None
    expected: set[str] = set()
    for said in manifest.parameters:
        for (name, form), crc32 in zip(expected_tensors(said).items(), said["crc32"], strict=True):
            if name in expected:
                raise InputError(name, "twice in the manifest", "there once")
            expected.add(name)
            _check_tensor(name, tensors.get(name), form, crc32)
    extra = tensors.keys() - expected
    if extra:
        raise InputError(min(extra), f"in {WEIGHTS}", "named by the manifest, or not be there")
    return [restored(said, tensors) for said in manifest.parameters]


def _check_tensor(name: str, tensor: Tensor | None, form: tuple[torch.dtype, tuple[int, ...]], crc32: int) -> None:
    if tensor is None:
        raise InputError(name, "missing", f"in {WEIGHTS}, since the manifest names it")
    found = tensor.dtype, tuple(tensor.shape)
    if found != form:
        raise InputError(
            name, f"{found[0]} of shape {found[1]}", f"{form[0]} of shape {form[1]}, as the manifest has it"
        )
    if checksum(tensor) != crc32:
        raise InputError(name, f"CRC-32 {checksum(tensor)}", f"{crc32}, as the manifest has it: the file is damaged")


class Named(Protocol):
    """Something that a model has, under one name or several tied ones."""

    @property
    def names(self) -> tuple[str, ...]:
        """Its names in the model's state."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the model."""


def assign(model: nn.Module, parameters: Sequence[Each], value_of: Callable[[Each], Tensor]) -> None:
    """Give a model all its numbers; tied parameters become one.

    Args:
        model: to be given them, in place.
        parameters: everything in the model's state, by its names.
        value_of: makes the numbers of one, in its shape.

    Raises:
        InputError: a name is missing, is none of the model's, or has another shape there.
    """
    _check_fit(model, parameters)
    largest_first = sorted(parameters, key=lambda each: -torch.Size(each.shape).numel())
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for each, value in zip(largest_first, pool.map(value_of, largest_first), strict=True):
            _put(model, each.names, value)
    _keep_apart(model)


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


def _keep_apart(model: PreTrainedModel) -> None:
    """Let transformers know which weights that it ties by default are not tied here, as it does itself on loading."""
    tied: Mapping[str, str] = model.all_tied_weights_keys
    for name, other in list(tied.items()):
        if model.get_parameter(name) is not model.get_parameter(other):
            del model.all_tied_weights_keys[name]
