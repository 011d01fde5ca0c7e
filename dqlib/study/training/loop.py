"""The training loop: one for pre-training, fine-tuning and distillation, on one process or many.

A step is a fixed list of micro-batches. Each process takes its share and divides by the tokens of the
whole step, so the gradient is the same however the step is shared.
"""

from __future__ import annotations

import copy
import csv
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object, set_seed
from torch import Tensor, nn
from transformers import PreTrainedModel, get_scheduler

from dqlib import attention
from dqlib.errors import InputError
from dqlib.losses import LayerMaps, LossWeights, MemoryBank, cross_entropy, distillation_terms
from dqlib.student import LEARNED, set_blend
from dqlib.study.params import settings as S
from dqlib.study.params.paths import write_text
from dqlib.study.process.progress import report
from dqlib.study.training.batches import Batch, Example, bucketed, collate
from dqlib.study.training.checkpoints import Checkpoints, random_states, restore_random_states

#: Rows of the log of one training, about.
LOG_ROWS = 50


class TrainingError(RuntimeError):
    """Training cannot go on: a loss, a gradient or a weight is not a finite number.

    Attributes:
        restored: whether the model was given back the weights of its best validation.
    """

    restored = False


class Objective(Protocol):
    """What a training minimizes: named terms and their weights."""

    def terms(self, model: nn.Module, batch: Batch, denominators: tuple[float, float]) -> dict[str, Tensor]:
        """Unweighted loss terms of a micro-batch, over the source and target tokens of the whole step."""
        ...

    def weight(self, term: str) -> float:
        """Weight of a term in the total."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What it keeps from step to step, for a checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Go on from what :meth:`state_dict` gave."""
        ...


@dataclass
class TaskObjective:
    """Cross-entropy of the reference."""

    label_smoothing: float = 0.0

    def terms(self, model: nn.Module, batch: Batch, denominators: tuple[float, float]) -> dict[str, Tensor]:
        logits = model(**batch.inputs()).logits
        return {"task": cross_entropy(logits, batch.labels, denominators[1], self.label_smoothing)}

    def weight(self, term: str) -> float:
        return 1.0

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        pass


@dataclass
class DistillationObjective:
    """Task loss, and distance to what the teacher computes from the same batch."""

    teacher: PreTrainedModel
    maps: LayerMaps
    weights: LossWeights
    bank: MemoryBank | None = None

    def __post_init__(self) -> None:
        self.teacher.eval()
        if self.weights.attention:
            self.teacher.set_attn_implementation(attention.NAME)  # returns the maps; full precision in a teacher
        if self.weights.contrastive and self.weights.momentum:
            self.bank = MemoryBank(self.teacher.config.vocab_size, self.weights.momentum)

    def terms(self, model: nn.Module, batch: Batch, denominators: tuple[float, float]) -> dict[str, Tensor]:
        wanted = {
            "output_attentions": self.weights.attention > 0,
            "output_hidden_states": self.weights.hidden > 0 or self.weights.contrastive > 0,
        }
        inputs = batch.inputs()
        student = model(**inputs, **wanted)
        with torch.no_grad():
            teacher = self.teacher(**inputs, **wanted)
        mask = batch.attention_mask.bool()
        return distillation_terms(
            student, teacher, batch.labels, mask, self.maps, self.weights, denominators, self.bank
        )

    def weight(self, term: str) -> float:
        return self.weights.of(term)

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.bank is None else self.bank.state_dict()

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        if self.bank is not None:
            self.bank.load_state_dict(state, device)


@dataclass
class Log:
    """Loss terms over the steps, averaged between rows, and validation losses; written as CSV."""

    path: Path
    rows: list[dict[str, float]] = field(default_factory=list)

    def add(self, row: dict[str, float]) -> None:
        """Append a row and write the file anew, whole."""
        self.rows.append(row)
        columns = list(dict.fromkeys(key for each in self.rows for key in each))
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows({key: f"{value:.6g}" for key, value in each.items()} for each in self.rows)
        write_text(self.path, buffer.getvalue())


def make_accelerator(seed: int, precision: str = "fp32") -> Accelerator:
    """One Accelerator a job, with all random states seeded; ``precision`` is that of matrix products."""
    mixed = "no" if precision == "fp32" else precision
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        AcceleratorState._reset_state()  # of an earlier job of this process
    accelerator = Accelerator(
        mixed_precision=mixed,
        cpu=not torch.accelerator.is_available(),  # said aloud, or several CPU processes stay strangers
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )
    set_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
    return accelerator


def train(
    model: PreTrainedModel,
    objective: Objective,
    steps: Iterator[list[list[Example]]],
    validation: Sequence[Example],
    training: S.Training,
    accelerator: Accelerator,
    log_path: Path,
    name: str,
    scale_learning_rate: float = 1.0,
    progressive: float = 0.0,
    checkpoints: Checkpoints | None = None,
) -> PreTrainedModel:
    """Train, and return the model with the weights of its best validation.

    With ``checkpoints``, a training that was killed goes on from the last one, and ends with the weights that it would
    have had: bit for bit on CPU, with as many processes and threads as before.

    Args:
        model: the model to train, in place.
        objective: loss terms and weights.
        steps: training steps, as :func:`dqlib.study.training.batches.steps` gives them.
        validation: examples whose cross-entropy, with dropout off, decides which weights are best.
        training: steps, rate, schedule.
        accelerator: of this process.
        log_path: CSV of every loss term, the learning rate and the validation loss.
        name: of the job, for the progress bar.
        scale_learning_rate: rate of trained scales, times that of the weights.
        progressive: part of the steps over which the forward pass turns from full-precision to quantized weights;
            validations see quantized weights from the first one on, since those are what is kept.
        checkpoints: where to leave them every ``training.checkpoint_steps`` steps; None for none.

    Raises:
        InputError: a step has fewer micro-batches than there are processes.
        TrainingError: a loss term is not finite, and the message names the term and the step; or memory is too small.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    optimizer = torch.optim.AdamW(
        _parameter_groups(model, training, scale_learning_rate),
        lr=training.learning_rate,
        betas=(0.9, 0.98),
        eps=1e-6,
        fused=True,
    )
    schedule = get_scheduler(training.schedule, optimizer, math.ceil(training.warmup * training.steps), training.steps)
    if training.compile:
        model.compile(dynamic=True)
    wrapped = accelerator.prepare(model)
    optimizer = accelerator.prepare(optimizer)
    log = Log(log_path)
    every = max(1, training.steps // LOG_ROWS)
    validate_at = {round((i + 1) * training.steps / training.validations) for i in range(training.validations)}
    best_loss, best_weights = math.inf, None
    sums: dict[str, Tensor] = {}
    done = since = 0
    state = _latest(checkpoints, name, accelerator) if checkpoints is not None else None
    if state is not None:
        done, since, best_loss, best_weights = (state[key] for key in ("step", "since", "best_loss", "best_weights"))
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        log.rows += state["rows"]
        mine = state["processes"][rank]
        sums = {term: value.to(accelerator.device) for term, value in mine["sums"].items()}
        objective.load_state_dict(mine["objective"], accelerator.device)
        for _ in range(done):
            next(steps)
        restore_random_states(mine["random"])
    model.train()
    for step in range(done + 1, training.steps + 1):
        micro_batches = next(steps)
        if len(micro_batches) < world:  # a process without any would leave the others waiting for its gradients
            allowed = f"at most {len(micro_batches)}: the corpus gives a step of '{name}' no more micro-batches"
            raise InputError("compute.processes", world, allowed)
        if progressive:
            set_blend(model, min(1.0, step / (progressive * training.steps)))
        denominators = _tokens(micro_batches)
        mine = micro_batches[rank::world]
        for i, examples in enumerate(mine):
            batch = collate(examples).to(accelerator.device)
            with _synchronized(accelerator, wrapped, last=i == len(mine) - 1), _enough_memory(name, step, training):
                with accelerator.autocast():
                    terms = objective.terms(wrapped, batch, denominators)
                total = sum(objective.weight(term) * value for term, value in terms.items())
                accelerator.backward(total * world)  # processes average their gradients; a step is a sum
            for term, value in {"loss": total, **terms}.items():
                sums[term] = sums.get(term, 0.0) + value.detach()
        norm = accelerator.clip_grad_norm_(wrapped.parameters(), training.clip)
        if not torch.isfinite(norm):
            raise _failed(_not_finite(name, step, sums, model), model, best_weights)
        optimizer.step()
        optimizer.zero_grad()
        rate = schedule.get_last_lr()[0]
        schedule.step()
        since += 1
        if step % every == 0 or step in validate_at:
            row = {"step": step, "learning_rate": rate, **_averages(accelerator, sums, since)}
            if not all(map(math.isfinite, row.values())):
                raise _failed(_not_finite(name, step, sums, model), model, best_weights)
            sums, since = {}, 0
            if step in validate_at:
                if progressive:
                    set_blend(model, 1.0)  # the next step turns it back
                row["validation_loss"] = loss = validation_loss(model, validation, training, accelerator)
                model.train()
                if loss < best_loss:
                    best_loss = loss
                    best_weights = copy.deepcopy(model.state_dict())
            if accelerator.is_main_process:
                log.add(row)
                best = f", best validation {best_loss:.3f}" if best_loss < math.inf else ""
                report(name, step, training.steps, f"loss {row['loss']:.3f}{best}")
        if checkpoints is not None and step % training.checkpoint_steps == 0 and step < training.steps:
            own = {"sums": sums, "objective": objective.state_dict(), "random": random_states()}
            processes = gather_object([own])
            if accelerator.is_main_process:
                state = {
                    "step": step, "since": since, "best_loss": best_loss, "best_weights": best_weights,
                    "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(), "rows": log.rows, "processes": processes,
                }  # fmt: skip
                checkpoints.save(step, state)
    if training.precision != "fp32":
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # tests are in full precision
    if training.compile:
        model._compiled_call_impl = None
    if best_weights is not None:
        model.load_state_dict(best_weights)
    return model.eval()


@torch.no_grad()
def validation_loss(
    model: PreTrainedModel, examples: Sequence[Example], training: S.Training, accelerator: Accelerator
) -> float:
    """Cross-entropy a token over all examples, with dropout off, shared by the processes."""
    model.eval()
    batches = bucketed(examples, training.batch_tokens)
    total = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    for indices in batches[accelerator.process_index :: accelerator.num_processes]:
        batch = collate([examples[i] for i in indices]).to(accelerator.device)
        total[0] += cross_entropy(model(**batch.inputs()).logits, batch.labels, 1.0)
        total[1] += sum(len(examples[i].target) for i in indices)
    total = accelerator.reduce(total, "sum")
    return (total[0] / total[1]).item()


def _latest(checkpoints: Checkpoints, name: str, accelerator: Accelerator) -> dict[str, Any] | None:
    """What every process goes on from, read by the main one; notes are said there."""
    found: list[Any] = [None]
    if accelerator.is_main_process:
        state, notes = checkpoints.latest()
        for note in notes:
            print(f"{name}: {note}", flush=True)
        if state is not None:
            print(f"{name}: goes on after step {state['step']:,}", flush=True)
        found = [state]
    return broadcast_object_list(found)[0]


@contextmanager
def _enough_memory(name: str, step: int, training: S.Training) -> Iterator[None]:
    """Say of a step that did not fit into memory what to change.

    Raises:
        TrainingError: it did not fit.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        told = str(error).lower()
        if not isinstance(error, MemoryError) and "out of memory" not in told and "can't allocate memory" not in told:
            raise
        tokens = training.batch_tokens // training.micro_batches
        raise TrainingError(
            f"{name}: memory is too small for a micro-batch of {tokens:,} tokens at step {step}; set micro_batches to "
            f"{2 * training.micro_batches}, which halves a micro-batch and leaves the step as large as it is, or "
            f"batch_tokens to {training.batch_tokens // 2:,}."
        ) from error


def _tokens(micro_batches: list[list[Example]]) -> tuple[float, float]:
    """Source and target tokens of a whole step."""
    examples = [example for batch in micro_batches for example in batch]
    return float(sum(len(e.source) for e in examples)), float(sum(len(e.target) for e in examples))


def _synchronized(accelerator: Accelerator, model: nn.Module, last: bool) -> AbstractContextManager:
    """Let processes average their gradients at the last micro-batch of a step only."""
    return nullcontext() if last else accelerator.no_sync(model)


def _averages(accelerator: Accelerator, sums: dict[str, Tensor], steps: int) -> dict[str, float]:
    stacked = accelerator.reduce(torch.stack(list(sums.values())), "sum") / steps
    return dict(zip(sums, stacked.tolist(), strict=True))


def _failed(message: str, model: nn.Module, best_weights: dict[str, Tensor] | None) -> TrainingError:
    error = TrainingError(message)
    if best_weights is not None:
        model.load_state_dict(best_weights)
        set_blend(model, 1.0)  # as they were validated
        error.restored = True
    return error


def _not_finite(name: str, step: int, sums: dict[str, Tensor], model: nn.Module) -> str:
    bad = [f"the loss term {term}" for term, value in sums.items() if not torch.isfinite(value) and term != "loss"]
    for parameter_name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            bad.insert(0, f"the weight {parameter_name}")
            break
        if not bad and parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            bad.append(f"the gradient of {parameter_name}")
    what = bad[0] if bad else "the norm of the gradient"
    return f"{name}: {what} is not a finite number at step {step}; lower learning_rate, which is the usual cause."


def _parameter_groups(model: nn.Module, training: S.Training, scale_learning_rate: float) -> list[dict]:
    """Weight decay for matrices; none for biases, LayerNorms and trained scales, which have a rate of their own."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    scales = [p for name, p in named if name.endswith(LEARNED)]
    others = [p for name, p in named if not name.endswith(LEARNED)]
    return [
        {"params": [p for p in others if p.dim() > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in others if p.dim() <= 1], "weight_decay": 0.0},
        {"params": scales, "weight_decay": 0.0, "lr": training.learning_rate * scale_learning_rate},
    ]
