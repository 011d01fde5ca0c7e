"""What a training minimizes: cross-entropy of the references, or the distance to a teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import PreTrainedModel

from dqlib import attention
from dqlib.layerwise import layerwise_states, layerwise_terms
from dqlib.loss_weights import LossWeights
from dqlib.losses import MemoryBank, cross_entropy
from dqlib.presets import Recipe
from dqlib.study.training.batches import Batch
from dqlib.terms import LayerMaps, distillation_terms


class Objective:
    """Named loss terms and their weights in the total; where nothing else is said, it is the same in every step."""

    def begin(self, step: int, steps: int) -> None:
        """Make ready for a step, counted from 1, of so many: what changes in the course of a training follows it."""

    def terms(self, model: nn.Module, batch: Batch, denominators: tuple[float, float]) -> dict[str, Tensor]:
        """Unweighted loss terms of a micro-batch, divided by the source and target tokens of the whole step."""
        raise NotImplementedError

    def weight(self, term: str) -> float:
        """Weight of a term in the total."""
        return 1.0

    def state_dict(self) -> dict[str, Tensor]:
        """What it keeps from step to step, for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Go on from what :meth:`state_dict` gave."""


@dataclass
class TaskObjective(Objective):
    """Cross-entropy of the references."""

    label_smoothing: float = 0.0

    def terms(self, model: nn.Module, batch: Batch, denominators: tuple[float, float]) -> dict[str, Tensor]:
        logits = model(**batch.inputs()).logits
        return {"task": cross_entropy(logits, batch.labels, denominators[1], self.label_smoothing)}


@dataclass
class DistillationObjective(Objective):
    """Task loss, and distance to what the teacher computes from the same batch."""

    # put into evaluation mode; where attention maps are compared, it is switched to the attention that returns them
    teacher: PreTrainedModel
    maps: LayerMaps  # teacher layer that supervises each student layer
    weights: LossWeights  # of the terms
    bank: MemoryBank | None = None  # memory of the contrastive loss; made from the weights, where they ask for one
    # says which steps are layer-wise, and what layers' terms weigh in the course of the others
    recipe: Recipe = Recipe()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        self.teacher.eval()
        self._layerwise, self._layers = False, 1.0
        if self.weights.attention:
            self.teacher.set_attn_implementation(attention.NAME)  # returns the maps; full precision in a teacher
        if self.weights.contrastive and self.weights.momentum:
            self.bank = MemoryBank(self.teacher.config.vocab_size, self.weights.momentum)

    def begin(self, step: int, steps: int) -> None:
        self._layerwise = step <= self.recipe.layerwise_steps(steps)
        self._layers = self.recipe.layer_losses(step, steps)

    def terms(self, model: nn.Module, batch: Batch, denominators: tuple[float, float]) -> dict[str, Tensor]:
        if self._layerwise:
            student = extract_model_from_parallel(model)
            states = layerwise_states(student, self.teacher, batch.inputs(), self.maps, model)
            return layerwise_terms(*states, batch.labels, batch.attention_mask.bool(), denominators)
        weights = self.weights if self._layers else replace(self.weights, attention=0.0, hidden=0.0)
        wanted = {
            "output_attentions": weights.attention > 0,
            "output_hidden_states": weights.hidden > 0 or weights.contrastive > 0,
            "use_cache": False,  # nothing is generated
        }
        inputs = batch.inputs()
        student = model(**inputs, **wanted)
        with torch.no_grad():
            teacher = self.teacher(**inputs, **wanted)
        mask = batch.attention_mask.bool()
        return distillation_terms(student, teacher, batch.labels, mask, self.maps, weights, denominators, self.bank)

    def weight(self, term: str) -> float:
        if self._layerwise:
            return 1.0
        return self.weights.of(term) * (self._layers if term.endswith(("attention", "hidden")) else 1.0)

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.bank is None else self.bank.state_dict()

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        if self.bank is not None:
            self.bank.load_state_dict(state, device)
