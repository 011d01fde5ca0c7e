"""Layer by layer: each layer of a student learns alone what the layers of its teacher do that it stands for.

Every layer gets what the teacher's layers got, and not what the student's layers before it made of it, so that errors
do not add up and no layer learns to mend another. Sources: ZeroQuant (arXiv:2206.01861, section 4.3, layer-by-layer
knowledge distillation) and BRECQ (arXiv:2102.05426, section 3.2, reconstruction of a block's output). Both take one
layer after another; here all of them learn in each step, which costs one pass through each model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dqlib.architectures import architecture_of
from dqlib.losses import IGNORED_LABEL, hidden_mse, logits_kl
from dqlib.terms import LayerMaps


@dataclass
class LayerStates:
    """Hidden states, (batch, tokens, features), around each layer of a student, or the stretch of layers it stands for.

    Attributes:
        entering, leaving: of each stack, by side (``encoder``, ``decoder``); one per layer of the student.
    """

    entering: dict[str, list[Tensor]] = field(default_factory=dict)
    leaving: dict[str, list[Tensor]] = field(default_factory=dict)
    logits: Tensor | None = None


def stretches(supervisors: Sequence[int]) -> list[tuple[int, int]]:
    """First and last teacher layer that each student layer stands for, from those that supervise the student's layers.

    Of ``[0, 3]``: ``[(0, 0), (1, 3)]``.
    """
    return [(before + 1, last) for before, last in zip([-1, *supervisors], supervisors, strict=False)]


def layerwise_states(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    maps: LayerMaps,
    forward: nn.Module | None = None,
) -> tuple[LayerStates, LayerStates]:
    """What the layers of a student make of what entered those of its teacher, beside what the teacher's made of it.

    The output head of the student, and its final normalizations, read the teacher's last hidden state in the same way.
    A decoder sees the encoder's output through the normalization of the student's encoder, where there is one.

    Args:
        student, teacher: of the same architecture; the gradient is the student's alone.
        forward: what calls the student, such as a wrapper for several processes; the student itself, when None.

    Returns:
        States of the student and of the teacher.
    """
    of_student = LayerMaps(range(len(maps.encoder)), range(len(maps.decoder)))
    with torch.no_grad(), _recorded(teacher, maps) as theirs:
        theirs.logits = teacher(**inputs).logits
    # A graph that is compiled without hooks knows none, and with them would be compiled anew at each step.
    compiled = student._compiled_call_impl is not None
    with (
        _recorded(student, of_student, theirs) as ours,
        torch.compiler.set_stance("force_eager") if compiled else nullcontext(),
    ):
        ours.logits = (student if forward is None else forward)(**inputs).logits
    return ours, theirs


def layerwise_terms(
    student: LayerStates,
    teacher: LayerStates,
    labels: Tensor,
    source_mask: Tensor,
    denominators: tuple[Tensor | float | None, Tensor | float | None] = (None, None),
) -> dict[str, Tensor]:
    """Every term of a layer-wise step.

    A hidden state's term is ``mean_d (s - t)^2 / mean_d t^2``, averaged over the tokens that count. Each token has its
    own divisor, so that deep layers, whose states are larger, count as much as others, and splitting a step changes
    nothing.

    Args:
        labels: (batch, target), -100 where padded; (batch,) of a classifier.
        source_mask: (batch, source), True where not padded.
        denominators: source and target tokens of the whole step.

    Returns:
        Term by name: ``{encoder,decoder}_embeddings``, what enters the first layer; ``{encoder,decoder}_layers``, the
        mean over the student's layers; ``logits``, the divergence of the student's head from the teacher's.
    """
    target_mask = labels != IGNORED_LABEL
    source = source_mask, denominators[0]
    sides = {"encoder": source, "decoder": (target_mask, denominators[1]) if labels.dim() > 1 else source}
    terms: dict[str, Tensor] = {}
    for side, (mask, denominator) in sides.items():
        if side not in student.leaving:
            continue
        first = student.entering[side][0], teacher.entering[side][0]
        terms[f"{side}_embeddings"] = relative_mse(*first, mask, denominator)
        pairs = zip(student.leaving[side], teacher.leaving[side], strict=True)
        terms[f"{side}_layers"] = torch.stack([relative_mse(*pair, mask, denominator) for pair in pairs]).mean()
    assert student.logits is not None
    assert teacher.logits is not None
    terms["logits"] = logits_kl(student.logits, teacher.logits, target_mask, denominators[1])
    return terms


def relative_mse(student: Tensor, teacher: Tensor, mask: Tensor, denominator: Tensor | float | None = None) -> Tensor:
    """Squared difference of hidden states over the square of the teacher's, averaged over the tokens that count.

    Args:
        student, teacher: (batch, tokens, features).
        mask: (batch, tokens), True where a token counts.
        denominator: tokens to divide by; those that count here, when None.
    """
    norm = teacher.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=torch.finfo(teacher.dtype).tiny ** 0.5)
    return hidden_mse(student / norm, teacher / norm, mask, denominator)


@contextmanager
def _recorded(model: PreTrainedModel, maps: LayerMaps, given: LayerStates | None = None) -> Iterator[LayerStates]:
    """The states around the stretches of layers of one forward pass; with ``given``, each starts from what is given.

    What leaves a stack is then the given state, too, for the modules that come after it.
    """
    states, handles = LayerStates(), []
    for side, stack in architecture_of(model.config).stacks.items():
        layers = model.get_submodule(stack.layers)
        states.entering[side], states.leaving[side] = [], []
        parts = stretches(getattr(maps, side))
        for number, (first, last) in enumerate(parts):
            instead = None if given is None else given.entering[side][number]
            end = given.leaving[side][number] if given is not None and number == len(parts) - 1 else None
            enter, leave = _Hook(states.entering[side], instead).enter, _Hook(states.leaving[side], end).leave
            handles.append(layers[first].register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(layers[last].register_forward_hook(leave))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class _Hook:
    """Keeps the hidden state that comes to a layer, or leaves it, and puts the given one in its place."""

    kept: list[Tensor]
    instead: Tensor | None

    def enter(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a layer."""
        self.kept.append(args[0] if args else kwargs["hidden_states"])
        if self.instead is None:
            return None
        return ((self.instead, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": self.instead})

    def leave(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """After a layer, which gives its hidden state alone or first of several things."""
        alone = isinstance(output, Tensor)
        self.kept.append(output if alone else output[0])
        if self.instead is None:
            return None
        return self.instead if alone else (self.instead, *output[1:])
