"""The one place that knows what each supported architecture calls its layers, and its ``config.json`` its sizes.

Every entry needs a model that calls the transformers attention interface (``ALL_ATTENTION_FUNCTIONS``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dqlib.config import Config
from dqlib.errors import InputError

if TYPE_CHECKING:  # names alone are asked for without torch, too
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Stack:
    """A pile of layers that a student may take some of."""

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
        query: name, within an attention, of the projection that makes queries; empty where it is the joint one.
        outputs: paths, within a layer, of the projections that read the heads of each of ``attentions``.
        head_size: attribute of an attention with the features of one head.
        heads_width: attributes of an attention with the features of all heads.
        head_bias: name, within an attention, of a table of biases with a column per head; it stands in the first layer
            of a stack and serves all, so all of them have the same heads. Empty where there is none.
        neurons: paths, within a layer, of the projections whose outputs are neurons, in this order, gated or not.
        neurons_to: paths, within a layer, of the projections that read neurons.
        head_fields: fields of the model's configuration with the numbers of heads.
        neuron_fields: fields of the model's configuration with the numbers of neurons.
        width_field: field of the model's configuration with the features of a token.
        position_field: field of the model's configuration with how many positions there are; empty where they have no
            end.
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
    query: str = ""
    outputs: tuple[str, ...] = ()
    head_size: str = "head_dim"
    heads_width: tuple[str, ...] = ()
    head_bias: str = ""
    neurons: tuple[str, ...] = ()
    neurons_to: tuple[str, ...] = ()
    head_fields: tuple[str, ...] = ()
    neuron_fields: tuple[str, ...] = ()
    width_field: str = ""
    position_field: str = ""

    @property
    def stacks(self) -> dict[str, Stack]:
        """The stacks that there are, by side: ``encoder``, ``decoder``."""
        sides = {"encoder": self.encoder, "decoder": self.decoder}
        return {side: stack for side, stack in sides.items() if stack is not None}

    def depths(self, config: PreTrainedConfig) -> tuple[int, int]:
        """Encoder and decoder layers of a model; 0 for the stack that it lacks."""
        encoder, decoder = (getattr(config, s.depth) if s is not None else 0 for s in (self.encoder, self.decoder))
        return encoder, decoder

    def widths(self, config: PreTrainedConfig) -> tuple[int, int]:
        """Fewest heads of an attention of a model, and fewest neurons of a feed-forward layer."""
        neurons = [getattr(config, field) for field in self.neuron_fields]
        # GPT-2 has four times as many neurons as features, where nothing is said
        neurons = [4 * config.hidden_size if number is None else number for number in neurons]
        return min(getattr(config, field) for field in self.head_fields), min(neurons)

    def check_fits(self, config: Config, model_config: PreTrainedConfig) -> None:
        """Check that a configuration's shape is one that a teacher of this architecture can give.

        Raises:
            InputError: deeper or wider than the teacher, or layers on a side that it lacks, or none on one that it has.
        """
        config.check_fits(*self.depths(model_config), *self.widths(model_config))
        for side in self.stacks:
            if not getattr(config, f"{side}_layers"):
                raise InputError(f"config '{config}', {side}_layers", 0, "at least 1 for this architecture")


_BART = Architecture(
    encoder=Stack("model.encoder.layers", "encoder_layers"),
    decoder=Stack("model.decoder.layers", "decoder_layers"),
    attentions=("self_attn", "encoder_attn"),
    key_value=("k_proj", "v_proj"),
    heads="num_heads",
    token_embeddings=("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens"),
    positions=("model.encoder.embed_positions", "model.decoder.embed_positions"),
    query="q_proj",
    outputs=("self_attn.out_proj", "encoder_attn.out_proj"),
    neurons=("fc1",),
    neurons_to=("fc2",),
    head_fields=("encoder_attention_heads", "decoder_attention_heads"),
    neuron_fields=("encoder_ffn_dim", "decoder_ffn_dim"),
    width_field="d_model",
    position_field="max_position_embeddings",
)

ARCHITECTURES: dict[str, Architecture] = {
    "bart": _BART,
    "mbart": _BART,
    "marian": replace(_BART, positions=()),  # they are sinusoids, not learned
    "t5": Architecture(
        encoder=Stack("encoder.block", "num_layers"),
        decoder=Stack("decoder.block", "num_decoder_layers"),
        attentions=("layer.0.SelfAttention", "layer.1.EncDecAttention"),
        key_value=("k", "v"),
        heads="n_heads",
        token_embeddings=("shared", "encoder.embed_tokens", "decoder.embed_tokens"),
        query="q",
        outputs=("layer.0.SelfAttention.o", "layer.1.EncDecAttention.o"),
        head_size="key_value_proj_dim",
        heads_width=("inner_dim",),
        head_bias="relative_attention_bias",
        # after the cross-attention of a decoder's layer, where an encoder's has none; wi, or wi_0 gated by wi_1
        neurons=tuple(f"layer.{i}.DenseReluDense.{name}" for i in (1, 2) for name in ("wi", "wi_0", "wi_1")),
        neurons_to=("layer.1.DenseReluDense.wo", "layer.2.DenseReluDense.wo"),
        head_fields=("num_heads",),
        neuron_fields=("d_ff",),
        width_field="d_model",
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
        query="query",
        outputs=("attention.output.dense",),
        head_size="attention_head_size",
        heads_width=("all_head_size",),
        neurons=("intermediate.dense",),
        neurons_to=("output.dense",),
        head_fields=("num_attention_heads",),
        neuron_fields=("intermediate_size",),
        width_field="hidden_size",
        position_field="max_position_embeddings",
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
        outputs=("attn.c_proj",),
        heads_width=("split_size",),
        neurons=("mlp.c_fc",),
        neurons_to=("mlp.c_proj",),
        head_fields=("n_head",),
        neuron_fields=("n_inner",),
        width_field="n_embd",
        position_field="n_positions",
    ),
}


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """The entry of a model's configuration.

    Raises:
        InputError: the architecture is not in :data:`ARCHITECTURES`.
    """
    if config.model_type not in ARCHITECTURES:
        allowed = f"one of {', '.join(sorted(ARCHITECTURES))}; to add one, put an Architecture with its layer names "
        raise InputError("model_type", config.model_type, allowed + "into ARCHITECTURES in dqlib/architectures.py")
    return ARCHITECTURES[config.model_type]


def layer_weights(model: PreTrainedModel) -> int:
    """How many numbers the weight matrices of a model's layers have, without embeddings, head, biases and scales."""
    stacks = [model.get_submodule(stack.layers) for stack in architecture_of(model.config).stacks.values()]
    named = (each for stack in stacks for each in stack.named_parameters())
    return sum(weight.numel() for name, weight in named if weight.dim() > 1 and name.endswith("weight"))


def submodule(root: nn.Module, path: str) -> nn.Module | None:
    """The module at a path, or None where there is none."""
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def submodules(root: nn.Module, paths: Iterable[str]) -> Iterator[nn.Module]:
    """The modules at some paths, those that are there."""
    return (module for path in paths if (module := submodule(root, path)) is not None)
