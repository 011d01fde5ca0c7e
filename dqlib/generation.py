"""How models generate: settings that can be read again, and a faster search that changes no token."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from dqlib.generation_settings import checked_settings


def check_generation(model: PreTrainedModel) -> None:
    """Raise an ``InputError`` unless how a model generates is said by settings that can be read again."""
    if getattr(model, "generation_config", None) is not None:
        checked_settings(model.generation_config.to_dict(), vocabulary_size(model.config), "generation_config")


def vocabulary_size(config: PreTrainedConfig) -> int:
    """Ids that a model has, on the side that has more."""
    return max(config.vocab_size, getattr(config, "decoder_vocab_size", None) or 0)


class OneSourceCache(EncoderDecoderCache):
    """Keys and values for the beam search of an encoder-decoder, to be passed to ``generate`` as ``past_key_values``.

    All beams of a text have read the same source. Its keys and values are therefore left in place where beams change
    places, instead of being copied onto equal ones in every layer at every step, which for long sources takes more
    time than the rest of the decoder.
    """

    def __init__(self) -> None:
        super().__init__(DynamicCache(), DynamicCache())

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let the beams go on from those that ``beam_idx``, (texts x beams,), names: each from one of its own text."""
        self.self_attention_cache.reorder_cache(beam_idx)
