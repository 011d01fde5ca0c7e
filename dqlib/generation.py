"""Faster generation that changes no token."""

from __future__ import annotations

from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache


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
