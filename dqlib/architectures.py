"""The one place that knows the names of layers in each supported architecture.

Every entry needs a model that calls the transformers attention interface (``ALL_ATTENTION_FUNCTIONS``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.models.auto import modeling_auto

from dqlib.config import Configuration
from dqlib.errors import InputError


@dataclass(frozen=True, slots=True)
class Stack:
    """A pile of layers that a student may take some of.

    Args:
        layers: path of the module list.
        depth: field of the model's configuration that says how many there are.
    """

    layers: str
    depth: str


@dataclass(frozen=True, slots=True)
class Architecture:
    """Where a model keeps the modules that a student copies, quantizes or leaves.

    A path that a model does not have (a head, a pooler) is passed over. What no field names, such as
    LayerNorms, biases, fixed positions and a classifier, stays in full precision.

    Args:
        encoder, decoder: its stacks; None for what it lacks.
        attentions: paths, within a layer, of the attentions.
        key_value: names, within an attention, of the projections that make keys and values.
        heads: attribute of an attention with its number of heads.
        token_embeddings: paths of the modules that look up tokens (one table, or several tied ones).
        positions: paths of small learned tables, of positions and of token types.
        heads_of_vocabulary: paths of the output projection.
        linears: paths of linear layers outside of the stacks.
        joint_projection: whether one projection makes query, keys and values, in this order.
    """

    encoder: Stack | None
    decoder: Stack | None
    attentions: tuple[str, ...]
    key_value: tuple[str, ...]
    heads: str
    token_embeddings: tuple[str, ...]
    positions: tuple[str, ...] = ()
    heads_of_vocabulary: tuple[str, ...] = ("lm_head",)
    linears: tuple[str, ...] = ()
    joint_projection: bool = False

    @property
    def stacks(self) -> dict[str, Stack]:
        """The stacks that there are, by side: ``encoder``, ``decoder``."""
        sides = {"encoder": self.encoder, "decoder": self.decoder}
        return {side: stack for side, stack in sides.items() if stack is not None}

    def depths(self, config: PreTrainedConfig) -> tuple[int, int]:
        """Encoder and decoder layers of a model; 0 for the stack that it lacks."""
        return tuple(getattr(config, s.depth) if s is not None else 0 for s in (self.encoder, self.decoder))

    def check_fits(self, configuration: Configuration, config: PreTrainedConfig) -> None:
        """Check that a configuration's depths are ones that a teacher of this architecture can give.

        Raises:
            InputError: deeper than the teacher, or layers on a side that it lacks, or none on one that it has.
        """
        configuration.check_fits(*self.depths(config))
        for side in self.stacks:
            if not getattr(configuration, f"{side}_layers"):
                raise InputError(f"config '{configuration}', {side}_layers", 0, "at least 1 for this architecture")


_SEQUENCE_TO_SEQUENCE = {
    "encoder": Stack("model.encoder.layers", "encoder_layers"),
    "decoder": Stack("model.decoder.layers", "decoder_layers"),
    "attentions": ("self_attn", "encoder_attn"),
    "key_value": ("k_proj", "v_proj"),
    "heads": "num_heads",
    "token_embeddings": ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens"),
}
_BART = Architecture(
    **_SEQUENCE_TO_SEQUENCE,
    positions=("model.encoder.embed_positions", "model.decoder.embed_positions"),
)

ARCHITECTURES: dict[str, Architecture] = {
    "bart": _BART,
    "mbart": _BART,
    "marian": Architecture(**_SEQUENCE_TO_SEQUENCE),  # its positions are sinusoids, not learned
    "t5": Architecture(
        encoder=Stack("encoder.block", "num_layers"),
        decoder=Stack("decoder.block", "num_decoder_layers"),
        attentions=("layer.0.SelfAttention", "layer.1.EncDecAttention"),
        key_value=("k", "v"),
        heads="n_heads",
        token_embeddings=("shared", "encoder.embed_tokens", "decoder.embed_tokens"),
    ),
    "bert": Architecture(
        encoder=Stack("bert.encoder.layer", "num_hidden_layers"),
        decoder=None,
        attentions=("attention.self",),
        key_value=("key", "value"),
        heads="num_attention_heads",
        token_embeddings=("bert.embeddings.word_embeddings",),
        positions=("bert.embeddings.position_embeddings", "bert.embeddings.token_type_embeddings"),
        heads_of_vocabulary=("cls.predictions.decoder",),
        linears=("bert.pooler.dense", "cls.predictions.transform.dense"),
    ),
    "gpt2": Architecture(
        encoder=None,
        decoder=Stack("transformer.h", "n_layer"),
        attentions=("attn",),
        key_value=("c_attn",),
        heads="num_heads",
        token_embeddings=("transformer.wte",),
        positions=("transformer.wpe",),
        joint_projection=True,
    ),
}


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """The entry of a model's configuration.

    Raises:
        InputError: the architecture is not in :data:`ARCHITECTURES`.
    """
    try:
        return ARCHITECTURES[config.model_type]
    except KeyError:
        known = ", ".join(sorted(ARCHITECTURES))
        raise InputError(
            "model_type",
            config.model_type,
            f"one of {known}; to add one, put an Architecture with its layer names into ARCHITECTURES "
            "in dqlib/architectures.py",
        ) from None


def model_class(config: PreTrainedConfig, name: str) -> type[PreTrainedModel]:
    """The class of that name among those that transformers has for an architecture, and no other.

    A name read from a file so never decides which code runs.

    Raises:
        InputError: the architecture is not in :data:`ARCHITECTURES`, or has no such class.
    """
    architecture_of(config)
    mappings = [names for field, names in vars(modeling_auto).items() if re.fullmatch("MODEL.*_MAPPING_NAMES", field)]
    known = {names[config.model_type] for names in mappings if isinstance(names.get(config.model_type), str)}
    if not isinstance(name, str) or name not in known:
        raise InputError("class", name, f"one of {', '.join(sorted(known))}")
    return getattr(transformers, name)


def config_of(said: Mapping[str, Any], where: str) -> PreTrainedConfig:
    """The configuration that the content of a ``config.json`` describes.

    Args:
        said: that content.
        where: it was read from, for the error.

    Raises:
        InputError: the architecture is not in :data:`ARCHITECTURES`, or a field has a value that it cannot have.
    """
    kind = said.get("model_type") if isinstance(said, Mapping) else None
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise InputError(f"{where}, model_type", kind, f"one of {', '.join(sorted(ARCHITECTURES))}")
    try:
        return CONFIG_MAPPING[kind].from_dict(dict(said))
    except Exception as error:  # of checks in transformers, which have no class in common
        raise InputError(where, one_line(error), f"the configuration of a model of the kind {kind}") from None


def read_config(folder: str | Path) -> PreTrainedConfig:
    """The configuration of a Hugging Face folder. No code of the folder is run.

    Raises:
        InputError: it has none, or one that :func:`config_of` refuses.
    """
    path = Path(folder) / "config.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(str(path), one_line(error), "a configuration as save_pretrained writes it") from None
    config = config_of(said, str(path))
    config.name_or_path = str(folder)
    return config


def read_model(folder: str | Path, name: str | None = None) -> PreTrainedModel:
    """The model of a Hugging Face folder, of safetensors. No code of the folder is run.

    Args:
        folder: written by ``save_pretrained``.
        name: of the model's class; None for the one that the configuration names.

    Raises:
        InputError: configuration or class are not those of a known architecture, or a file of weights is damaged.
        OSError: there are no weights.
    """
    config = read_config(folder)
    kind = model_class(config, (config.architectures or [""])[0] if name is None else name)
    try:
        return kind.from_pretrained(folder, config=config, local_files_only=True, use_safetensors=True)
    except SafetensorError as error:
        raise InputError("folder", str(folder), f"one with whole files of weights ({one_line(error)})") from None


def read_tokenizer(folder: str | Path, named: str | Path | None = None) -> Tokenizer | None:
    """The tokenizer of a folder; None if there is none. No code of the folder is run.

    Args:
        folder: with the tokenizer's files.
        named: folder that an error names, where ``folder`` is a copy of it.

    Raises:
        InputError: a file of it is damaged.
    """
    if not any(Path(folder).glob("tokenizer*")):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # of libraries that have no class in common
        raise InputError("folder", str(named or folder), f"one with a whole tokenizer ({one_line(error)})") from None


def one_line(error: Exception) -> str:
    """What an error says, or its class where it says nothing, as one line."""
    return " ".join(str(error).split()) or type(error).__name__


def submodule(root: nn.Module, path: str) -> nn.Module | None:
    """The module at a path, or None where there is none."""
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None
