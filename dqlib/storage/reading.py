"""Reading and writing of models in the Hugging Face layout: the one way in, for teachers and students alike.

A file decides nothing but numbers and known settings: no class, kernel, repository or code is taken from it. What a
configuration claims is held against the tensors that are there before anything is allocated, and a model is all of its
file's tensors and no others, or an error.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.initialization import no_init_weights
from transformers.models.auto import modeling_auto

from dqlib.architectures import ARCHITECTURES, architecture_of
from dqlib.errors import InputError, check_choice
from dqlib.fake_quantize import LEARNED
from dqlib.files import added_to
from dqlib.generation import vocabulary_size
from dqlib.generation_settings import SETTINGS, checked_settings
from dqlib.pruning import narrow
from dqlib.storage.manifest import MANIFEST, WRITERS, check_files, opened, read_file, seal

CONFIG, GENERATION, SAFETENSORS = "config.json", "generation_config.json", "model.safetensors"

#: Field of a student's configuration, in which transformers looks for the name of a file of weights: this is none, so
#: it tells its user so, instead of making a model in full precision of a student's weights.
ELSEWHERE = "transformers_weights"
OF_A_STUDENT = "these are the weights of a student, which dqlib.load_student reads"

#: Fields of a configuration that are dropped: they say how to load, where from, and in which form to answer.
_DROPPED = frozenset({"_name_or_path", "output_attentions", "output_hidden_states", "return_dict", ELSEWHERE})

#: Fields that a configuration may have besides those that its class saves.
_OLDER = frozenset({"torch_dtype", "num_labels", *SETTINGS})

_DTYPES = (None, "float32", "float16", "bfloat16", "float64")


def model_class(config: PreTrainedConfig, name: object) -> type[PreTrainedModel]:
    """The class of that name among those that transformers has for an architecture, and no other.

    A name read from a file so never decides which code runs.

    Raises:
        InputError: the architecture is not in :data:`ARCHITECTURES`, or has no such class.
    """
    architecture_of(config)
    mappings = [names for field, names in vars(modeling_auto).items() if re.fullmatch("MODEL.*_MAPPING_NAMES", field)]
    known = {names[config.model_type] for names in mappings if isinstance(names.get(config.model_type), str)}
    check_choice("class", name, sorted(known))
    return getattr(transformers, str(name))


def config_of(content: Mapping[str, Any], where: str, largest: int) -> PreTrainedConfig:
    """The configuration that the content of a ``config.json`` describes, of the fields that its class has.

    Args:
        largest: dimension of a tensor of the model; no class has more labels.

    Raises:
        InputError: the architecture is not in :data:`ARCHITECTURES`, a field has a value that it cannot have, or the
            weights are said to be quantized in some other way.
    """
    kind = content.get("model_type") if isinstance(content, Mapping) else None
    check_choice(f"{where}, model_type", kind, sorted(ARCHITECTURES))
    if content.get("quantization_config") is not None:
        allowed = "left out: a model is read in full precision, or as dqlib packed it"
        raise InputError(f"{where}, quantization_config", content["quantization_config"], allowed)
    for field in ("dtype", "torch_dtype"):
        if content.get(field) not in _DTYPES:
            raise InputError(f"{where}, {field}", content[field], f"one of {', '.join(_DTYPES[1:])}")
    classes = content.get("architectures")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(each, str) for each in classes)):
        raise InputError(f"{where}, architectures", classes, "a list of names")
    labels = content.get("num_labels")
    if labels is not None and (type(labels) is not int or not 0 < labels <= largest):
        raise InputError(f"{where}, num_labels", labels, f"from 1 to {largest}, the largest dimension of a weight")
    with refused_as(where, f"the configuration of a model of the kind {kind}"):
        config = CONFIG_MAPPING[kind].from_dict({name: content[name] for name in content if name in _known(kind)})
        vocabulary = vocabulary_size(config)
    checked_settings({name: content[name] for name in content if name in SETTINGS}, vocabulary, where)
    for name in (name for name in content if "drop" in name and name in _known(kind)):
        left_out = content[name] is None and getattr(_plain(kind), name) is None
        if not left_out and not (type(content[name]) in (int, float) and 0 <= content[name] <= 1):
            raise InputError(f"{where}, {name}", content[name], "a probability")
    return config


@cache
def _plain(kind: str) -> PreTrainedConfig:
    """The configuration of an architecture as it is where nothing is said."""
    return CONFIG_MAPPING[kind]()


@cache
def _known(kind: str) -> frozenset[str]:
    """Fields of an architecture's ``config.json`` that are read."""
    of_class = CONFIG_MAPPING[kind]
    names = {*_plain(kind).to_dict(), *(field.name for field in fields(of_class)), *of_class.attribute_map}
    return frozenset(names | _OLDER) - _DROPPED


def read_config(folder: str | Path, weights: Mapping[str, Tensor] | None = None) -> PreTrainedConfig:
    """The configuration of a Hugging Face folder, of its weights where they are read. No code of the folder is run.

    Raises:
        InputError: it has none, or one that :func:`config_of` refuses, or a file of weights is damaged.
    """
    folder = Path(folder)
    weights = _weights(folder) if weights is None else weights
    largest = max((size for value in weights.values() for size in value.shape), default=2**16)
    config = config_of(read_json(folder / CONFIG), str(folder / CONFIG), largest)
    config.name_or_path = str(folder)
    return config


def read_model(
    folder: str | Path,
    name: str | None = None,
    *,
    scales: dict[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    bins: bool = False,
    heads: int | None = None,
) -> PreTrainedModel:
    """The model of a Hugging Face folder, of safetensors, in evaluation mode. No code of the folder is run.

    Args:
        folder: written by ``save_pretrained`` or :func:`save_model`.
        name: of the model's class; ``seq2seq`` for the one that writes texts from texts; None for the one that the
            configuration names.
        scales: is given the trained scales that stand beside the weights of a student; None for a folder that is to be
            no student's.
        dtype: of the model; None for that of the file.
        bins: read ``pytorch_model.bin`` where there is nothing else, as torch does without running what is in it.
        heads: of every attention of a student that has fewer of them than its configuration says.

    Raises:
        InputError: configuration or class are not those of a known architecture, there are no weights, a tensor is
            missing, of another shape or not of the model, a number is not finite, or a file was changed since dqlib
            wrote it.
    """
    folder = Path(folder)
    _check_kind(folder, student=scales is not None)
    weights = _weights(folder, bins)
    if not weights:
        raise InputError("folder", str(folder), f"one with weights, in {SAFETENSORS}")
    config = read_config(folder, weights)
    if scales is not None:
        scales |= {each: weights.pop(each) for each in list(weights) if each.endswith(LEARNED)}
    if name == "seq2seq":
        name = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    kind = model_class(config, (config.architectures or [""])[0] if name is None else name)
    _check_sizes(kind, config, weights, str(folder / CONFIG), heads)
    options: dict[str, Any] = {"state_dict": dict(weights), "dtype": "auto" if dtype is None else dtype}
    if kind.can_generate():
        options["generation_config"] = _generation(folder, config)
    try:
        made = _narrowed(kind, heads)
        model, report = made.from_pretrained(None, config=config, output_loading_info=True, **options)
        model.__class__ = kind
    except (ValueError, RuntimeError) as error:  # shapes that differ, say
        allowed = f"one whose weights are those of a {kind.__name__} ({one_line(error)})"
        raise InputError("folder", str(folder), allowed) from None
    _check_complete(model, report, weights, exact=scales is not None)
    model.name_or_path = model.config.name_or_path = str(folder)
    return model.eval()


def save_model(model: PreTrainedModel, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Save a model in full precision in the Hugging Face layout, with the SHA-256 of its files; others stay."""
    about = {"class": type(model).__name__, "numbers": sum(p.numel() for p in model.parameters())}
    with saved(folder, "model", about, tokenizer) as scratch:
        model.save_pretrained(scratch)


@contextmanager
def saved(
    folder: str | Path,
    kind: str,
    about: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    parameters: Sequence[Mapping[str, Any]] = (),
) -> Iterator[Path]:
    """Save a model, written aside, in place of one that may be there; other files of the folder stay."""
    with added_to(folder, MANIFEST) as scratch:
        yield scratch
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        seal(scratch, kind, about, parameters)
    for path in _files_of_model(Path(folder)):
        if path.name not in opened(folder, kind).files:
            path.unlink()  # of the one before


def read_tokenizer(folder: str | Path) -> Tokenizer | None:
    """The tokenizer of a folder; None if there is none. No code of the folder is run.

    Of a folder that dqlib wrote, it is made of files that the manifest names, checked.

    Raises:
        InputError: a file of it is damaged, or was changed since dqlib wrote it, or the manifest names none and one
            lies there: to leave it out in silence would make another thing of the model than whoever put it there
            thinks it is.
    """
    folder = Path(folder)
    there = min((path.name for path in folder.glob("tokenizer*") if path.is_file()), default=None)
    if not (folder / MANIFEST).is_file():
        return None if there is None else _tokenizer(folder, folder)
    manifest = opened(folder, *WRITERS)
    if not any(name.startswith("tokenizer") for name in manifest.files):
        if there is None:
            return None
        allowed = f"named by {MANIFEST}, as {WRITERS[manifest.kind]} does with a tokenizer that it is given, or not "
        raise InputError(there, f"in {folder}", f"{allowed}be there")
    with tempfile.TemporaryDirectory() as checked:  # nothing else can be read from there
        for name in manifest.files:
            if name != GENERATION and not name.endswith(".safetensors"):
                (Path(checked) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(checked) / name).write_bytes(read_file(folder, manifest, name))
        tokenizer = _tokenizer(Path(checked), folder)
    tokenizer.name_or_path = str(folder)
    return tokenizer


def _tokenizer(folder: Path, named: Path) -> Tokenizer:
    """The tokenizer of a folder, or an error that has another's name, of which it is a copy."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # of libraries that have no class in common
        raise InputError("folder", str(named), f"one with a whole tokenizer ({one_line(error)})") from None


def generation_of(content: Mapping[str, Any], config: PreTrainedConfig, where: str) -> GenerationConfig:
    """The configuration of a generation that the content of a ``generation_config.json`` describes.

    Raises:
        InputError: a setting is not known or out of range.
    """
    settings = checked_settings(content, vocabulary_size(config), where)
    with refused_as(where, "the configuration of a generation"):
        return GenerationConfig(**settings)


def json_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        InputError: it holds something else.
    """
    with refused_as(where, "JSON"):
        content = json.loads(data)
    if not isinstance(content, dict):
        raise InputError(where, type(content).__name__, "a JSON object")
    return content


def read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    """The JSON object that a file holds; an empty one where it is ``optional`` and not there.

    Raises:
        InputError: it holds something else, or is no file.
    """
    if path.is_file():
        return json_object(path.read_bytes(), str(path))
    if optional:
        return {}
    raise InputError(str(path), "no file", "one as save_pretrained writes it")


def add_to_config(folder: Path, fields: dict[str, Any]) -> None:
    """Write fields into the ``config.json`` of a folder, in the form that transformers gives it."""
    content = read_json(folder / CONFIG, optional=True) | fields
    (folder / CONFIG).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def empty_model(
    kind: type[PreTrainedModel], config: PreTrainedConfig, tensors: int, where: str, heads: int | None = None
) -> PreTrainedModel:
    """A model without numbers, which takes no memory.

    Args:
        tensors: that there are for it; no more layers than these are made.

    Raises:
        InputError: the configuration is none that a model can be built of.
    """
    with refused_as(where, f"one that a {kind.__name__} can be built of"):
        layers = sum(architecture_of(config).depths(config))
        if layers > tensors:
            raise InputError(where, f"{layers} layers", f"of no more layers than the {tensors} tensors of the weights")
        with no_init_weights(), torch.device("meta"):
            return narrow(kind(config), heads)


@contextmanager
def refused_as(where: str, allowed: str) -> Iterator[None]:
    """Make what libraries raise within the block, of classes that have nothing in common, an error of the input.

    Raises:
        InputError: of the block itself, or what a library said is its value.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(where, one_line(error), allowed) from None


def check_finite(named: Mapping[str, Tensor]) -> None:
    """Raise an ``InputError`` that names the tensor, where a number is not finite."""
    for name, value in named.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(name, "nan or inf", "finite numbers")


def one_line(error: Exception) -> str:
    """What an error says, or its class where it says nothing, as one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _files_of_model(folder: Path) -> list[Path]:
    """The files of a folder that a model is read from, as far as they are there."""
    named = (folder / CONFIG, folder / GENERATION, *folder.glob("model*.safetensors*"))
    return [path for path in named if path.is_file()]


def _generation(folder: Path, config: PreTrainedConfig) -> GenerationConfig:
    """How a model generates; that of old ones stands among the fields of their configuration."""
    path = folder / GENERATION
    if path.is_file():
        return generation_of(read_json(path), config, str(path))
    content = read_json(folder / CONFIG)
    return generation_of({name: content[name] for name in content if name in SETTINGS}, config, str(folder / CONFIG))


def _weights(folder: Path, bins: bool = False) -> dict[str, Tensor]:
    """All tensors of a folder's weights, by name; their numbers are not read yet."""
    for whole in (SAFETENSORS, "pytorch_model.bin")[: 1 + bins]:
        index = folder / f"{whole}.index.json"
        if (folder / whole).is_file():
            names = {whole}
        elif index.is_file():
            places = read_json(index).get("weight_map")
            names = set(map(str, places.values())) if isinstance(places, dict) else set()
        else:
            continue
        weights: dict[str, Tensor] = {}
        for name in sorted(names):
            if Path(name).name != name:
                raise InputError(str(index), name, "the plain name of a file in the folder")
            try:
                if whole == SAFETENSORS:
                    weights |= safetensors.torch.load_file(folder / name)
                else:
                    weights |= torch.load(folder / name, map_location="cpu", weights_only=True)
            except Exception as error:  # of libraries that have no class in common
                allowed = f"one with whole files of weights ({name}: {one_line(error)})"
                raise InputError("folder", str(folder), allowed) from None
        return weights
    return {}


def _check_kind(folder: Path, student: bool) -> None:
    """Refuse a folder that was changed since dqlib wrote it, is a student's, or is none where one is wanted.

    The weights of a student alone are another model, with or without its manifest.
    """
    if student or (folder / MANIFEST).is_file():
        manifest = opened(folder, "student" if student else "model")
        check_files(folder, manifest)
        if others := [path.name for path in _files_of_model(folder) if path.name not in manifest.files]:
            raise InputError(min(others), f"in {folder}", f"named by {MANIFEST}, or not be there")
    elsewhere = None if student else read_json(folder / CONFIG).get(ELSEWHERE)
    if elsewhere is not None:
        allowed = f"left out, and the weights be in {SAFETENSORS}; a student is read with its {MANIFEST}"
        raise InputError(f"{folder / CONFIG}, {ELSEWHERE}", elsewhere, allowed)


def _narrowed(kind: type[PreTrainedModel], heads: int | None) -> type[PreTrainedModel]:
    """A class of the same name whose models are made with fewer heads, since transformers makes them as it loads."""
    if heads is None:
        return kind

    def make(self: PreTrainedModel, config: PreTrainedConfig) -> None:
        kind.__init__(self, config)
        narrow(self, heads)

    return type(kind.__name__, (kind,), {"__init__": make, "__module__": kind.__module__})


def _check_sizes(
    kind: type[PreTrainedModel],
    config: PreTrainedConfig,
    weights: Mapping[str, Tensor],
    where: str,
    heads: int | None = None,
) -> None:
    """Hold a configuration against the tensors that there are, before a model of it takes any memory."""
    empty = empty_model(kind, config, len(weights), where, heads)
    for name, value in empty.state_dict().items():
        if name in weights and weights[name].shape != value.shape:
            allowed = f"of the shape {tuple(value.shape)}, as {where} has it"
            raise InputError(name, tuple(weights[name].shape), allowed)
    # Older names differ in how they begin, and what is tied or computed need not be there: so no name that is missing
    # is an error yet, but twice the numbers that there are would be.
    own = (value for name, value in empty.named_parameters() if name not in empty.all_tied_weights_keys)
    numbers, there = (sum(value.numel() for value in values) for values in (own, weights.values()))
    if numbers > 2 * there:
        raise InputError(where, f"a model of {numbers:,} numbers", f"one of the {there:,} numbers of the weights")


def _check_complete(
    model: PreTrainedModel, report: Mapping[str, Any], weights: Mapping[str, Tensor], exact: bool
) -> None:
    """Check that a model was made of all tensors of its file and of no others, and of numbers.

    Args:
        report: of transformers, on names that were missing or left over.
        exact: whether this dqlib wrote them; else what the class declares to be computed, or to be left over from older
            versions, may be missing or be there.
    """
    missing, extra = set(report["missing_keys"]), set(report["unexpected_keys"])
    state = model.state_dict(keep_vars=True)
    if exact:
        there = {id(value) for name, value in state.items() if name in weights}
        computed = model._keys_to_ignore_on_save or ()
        missing |= {name for name, value in state.items() if id(value) not in there and name not in computed}
        extra = weights.keys() - state.keys()
    if missing:
        raise InputError(min(missing), "missing", f"in the weights, since {type(model).__name__} has it")
    if extra:
        raise InputError(min(extra), "in the weights", f"a tensor of {type(model).__name__}, or not be there")
    check_finite(dict({id(value): (name, value) for name, value in state.items()}.values()))  # tied ones once
