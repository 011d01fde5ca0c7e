"""Rounded activations: the linear layer where a token stands out most, and the error by who shares a scale."""

from __future__ import annotations

from dataclasses import dataclass

import pandas
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dqlib.quantizers import fake_quantize_activation
from dqlib.study.report.style import COLOURS, GREY, plain_log_scale, subplots
from dqlib.study.training.batches import Batch

#: Texts that are read.
TEXTS = 16


@dataclass(frozen=True, slots=True)
class HiddenState:
    """What one linear layer reads for some texts."""

    layer: str
    states: Tensor  # (texts, tokens, features)
    mask: Tensor  # (texts, tokens), True where not padded
    ids: Tensor  # (texts, tokens)

    def text(self) -> int:
        """The text with the token that stands out most."""
        return int(_stands_out(self.states, self.mask).argmax())


@torch.no_grad()
def hidden_state(teacher: PreTrainedModel, batch: Batch) -> HiddenState:
    """The input of the encoder's linear layer where a token stands out most: largest max|x| over the median one.

    The first :data:`TEXTS` of the batch are read.
    """
    mask, ids = batch.attention_mask[:TEXTS].bool(), batch.input_ids[:TEXTS]
    inputs: dict[str, Tensor] = {}
    encoder = teacher.eval().get_encoder()
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear)
    ]
    encoder(input_ids=ids, attention_mask=mask.long())
    for hook in hooks:
        hook.remove()
    layer = max(inputs, key=lambda name: float(_stands_out(inputs[name], mask).max()))
    return HiddenState(f"encoder.{layer}", inputs[layer], mask, ids)


def _stands_out(x: Tensor, mask: Tensor) -> Tensor:
    """For each text, the largest ``max|x|`` of a token over the median one: (texts,)."""
    peaks = x.abs().amax(dim=-1)  # (texts, tokens)
    return torch.stack([row[keep].max() / row[keep].median() for row, keep in zip(peaks, mask, strict=True)])


def token_errors(x: Tensor, bits: int, per_tensor: bool) -> Tensor:
    """Relative squared error of each token after rounding: (tokens,) for ``x`` of (tokens, features)."""
    rounded = fake_quantize_activation(x, bits, per_tensor=per_tensor)
    return (rounded - x).square().sum(dim=-1) / x.square().sum(dim=-1)


def outlier(hidden: HiddenState, tokenizer: PreTrainedTokenizerFast, bits: int) -> Figure:
    """One text: how large each token is, and what rounding costs it with a scale per token and one for all."""
    text = hidden.text()
    keep = hidden.mask[text]
    x = hidden.states[text][keep]  # (tokens, features)
    peaks = x.abs().amax(dim=-1)
    largest = int(peaks.argmax())
    name = tokenizer.decode(hidden.ids[text][keep][largest]).strip() or "a space"
    with subplots(2, 1, figsize=(6.6, 4.6), sharex=True) as (figure, (top, bottom)):
        bars = top.bar(range(len(peaks)), peaks.numpy(), color=GREY, width=0.85)
        bars[largest].set_facecolor(COLOURS[2])
        top.margins(y=0.2)
        top.grid(visible=False)
        top.annotate(
            f"largest: {name!r}", (largest, float(peaks[largest])), (0, 3), textcoords="offset points", ha="center",
            color=COLOURS[2], fontsize=9,
        )  # fmt: skip
        top.set_ylabel("max |x| of the token")
        looks = (("^", COLOURS[1], "--", "one scale for the text"), ("o", COLOURS[0], "-", "one scale per token"))
        for marker, colour, line, label in looks:
            error = 100 * token_errors(x, bits, per_tensor=line == "--").numpy()
            bottom.plot(error, marker, color=colour, markersize=4.5, label=label)
            bottom.axhline(error.mean(), color=colour, linewidth=1, linestyle=line)
        plain_log_scale(bottom)
        bottom.set_ylabel(f"error at {bits} bits (%)\n(lines: mean)")
        bottom.set_xlabel(f"token of the text (input of {hidden.layer})")
        figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    return figure


def activation_errors(hidden: HiddenState) -> pandas.DataFrame:
    """Mean relative squared error of a token (%), by bits and by how many tokens share a scale."""
    keep, text = hidden.mask, hidden.text()
    one = hidden.states[text][keep[text]]
    texts = torch.arange(len(keep)).unsqueeze(1).expand_as(keep)[keep]  # (tokens of all texts,)
    rows = {}
    for bits in (8, 4):
        in_batch = token_errors(hidden.states[keep], bits, per_tensor=True)[texts == text]
        each = token_errors(one, bits, per_tensor=False), token_errors(one, bits, per_tensor=True), in_batch
        rows[bits] = [100 * float(errors.mean()) for errors in each]
    columns = ["one scale per token", "one for the text", f"one for a batch of {len(keep)} texts"]
    return pandas.DataFrame.from_dict(rows, "index", columns=columns).rename_axis("bits").round(3)
