"""The one place that knows the names of layers in each supported architecture."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig

from dqlib.errors import InputError


@dataclass(frozen=True, slots=True)
class Architecture:
    """Where a model keeps the modules that a student copies, quantizes or leaves.

    Args:
        encoder: path of the encoder, holding ``layers``.
        decoder: path of the decoder, holding ``layers``.
        token_embeddings: paths of the modules that look up the shared token embedding.
        positions: paths of the learned position embeddings.
        head: path of the output projection, tied to the token embedding.
        key_value: names, within an attention, of the projections to keys and values.
    """

    encoder: str
    decoder: str
    token_embeddings: tuple[str, ...]
    positions: tuple[str, ...]
    head: str
    key_value: tuple[str, ...]


_BART = Architecture(
    encoder="model.encoder",
    decoder="model.decoder",
    token_embeddings=("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens"),
    positions=("model.encoder.embed_positions", "model.decoder.embed_positions"),
    head="lm_head",
    key_value=("k_proj", "v_proj"),
)

ARCHITECTURES: dict[str, Architecture] = {"bart": _BART, "mbart": _BART}


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
            f"one of {known} (add others to ARCHITECTURES in dqlib/architectures.py)",
        ) from None
