"""The training loop: one for pre-training, fine-tuning and distillation, on one process or many.

A step is a fixed list of micro-batches. Each process takes its share and divides by the tokens of the whole step, so
the gradient is the same however the step is shared.
"""

from __future__ import annotations

import copy
import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object, set_seed
from torch import Tensor, nn
from transformers import PreTrainedModel, get_scheduler

from dqlib.errors import InputError
from dqlib.fake_quantize import LEARNED
from dqlib.files import write_text
from dqlib.losses import IGNORED_LABEL, cross_entropy
from dqlib.presets import Recipe
from dqlib.student import set_blend
from dqlib.study.params import settings as S
from dqlib.study.process.exit_codes import JobError
from dqlib.study.process.progress import report
from dqlib.study.training.average import Average
from dqlib.study.training.batches import Batch, Example, bucketed, collate
from dqlib.study.training.checkpoints import Checkpoints, random_states, restore_random_states
from dqlib.study.training.objectives import Objective
from dqlib.study.training.on_policy import OnPolicy

#: What makes a batch of examples.
Collate = Callable[[Sequence[Example]], Batch]

#: Rows of the log of one training, about.
LOG_ROWS = 50


class TrainingError(JobError):
    """Training cannot go on: a loss, a gradient or a weight is not a finite number, or memory is too small.

    Attributes:
        restored: whether the model was given back the weights of its best validation.
    """

    restored = False


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
    """One Accelerator per job, with all random states seeded; ``precision`` is that of matrix products."""
    mixed = "no" if precision == "fp32" else precision
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        AcceleratorState._reset_state()  # of an earlier job of this process
    accelerator = Accelerator(
        mixed_precision=mixed,
        cpu=not torch.accelerator.is_available(),  # without it, several processes on CPUs do not form a group
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )
    set_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
    return accelerator


@dataclass
class Trainer:
    """One training: what it needs is given when it is made, and :meth:`train` runs it.

    With ``checkpoints``, a training that was killed goes on from the last one, and ends with the weights that it would
    have had: bit for bit on CPU, with as many processes and threads as before.
    """

    model: PreTrainedModel  # the model to train, in place
    objective: Objective  # loss terms and weights
    # the micro-batches of each step, as :func:`dqlib.study.training.batches.steps` gives them
    batches: Iterator[list[list[Example]]]
    validation: Sequence[Example]  # examples whose cross-entropy, with dropout off, decides which weights are best
    training: S.Training  # steps, rate, schedule
    accelerator: Accelerator  # of this process
    log_path: Path  # CSV of every loss term, the learning rate and the validation loss
    name: str  # of the job, for the progress bar and errors
    # of a student. Where its weights turn from full precision to quantized ones, validations see quantized ones from
    # the first one on, since those are what is kept; after the first of the steps whose weights are averaged, the
    # averages are what is validated and kept
    recipe: Recipe = Recipe()  # noqa: RUF009 (frozen)
    # where to leave them every ``training.checkpoint_steps`` steps; None for none
    checkpoints: Checkpoints | None = None
    # which steps are on the model's own targets, without the task's loss; None for none
    on_policy: OnPolicy | None = None
    collate: Collate = collate  # makes a batch of examples

    def train(self) -> PreTrainedModel:
        """Train, and return the model with the weights of its best validation, in evaluation mode.

        Raises:
            InputError: a step has fewer micro-batches than there are processes.
            TrainingError: a loss term is not finite, and the message names the term and the step; or memory is too
                small.
        """
        training = self.training
        self._prepare()
        self._resume()
        self.model.train()
        while self._step < training.steps:
            self._take_step()
            if self._step % self._log_every == 0 or self._step in self._validate_at | self._last_of_parts:
                self._log_row()
            if self._step % training.checkpoint_steps == 0 and self._step < training.steps:
                self._save_checkpoint()
        return self._finished()

    def _prepare(self) -> None:
        training = self.training
        if training.compile:
            self.model.compile(dynamic=True)
        self._wrapped = self.accelerator.prepare(self.model)
        groups = _parameter_groups(self.model, training, self.recipe.scale_learning_rate)
        optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.98), eps=1e-6, fused=True)
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._optimizer = self.accelerator.prepare(optimizer)
        recipe, steps = self.recipe, training.steps
        self._layerwise_steps = recipe.layerwise_steps(steps)
        self._begin_part(1)
        self._average = Average(self.model, steps - recipe.averaged_steps(steps))
        #: Steps after which another objective begins: a row of the log ends there.
        self._last_of_parts = {self._layerwise_steps, math.ceil(recipe.layer_losses_until * steps)}
        self._log = Log(self.log_path)
        self._log_every = max(1, steps // LOG_ROWS)
        self._validate_at = {round(i * steps / training.validations) for i in range(1, training.validations + 1)}
        self._step = 0  # the last one that was taken
        self._rate = 0.0  # its learning rate
        self._sums: dict[str, Tensor] = {}  # of the loss terms, over the steps since the last row of the log
        self._summed_steps: dict[str, int] = {}  # of each term, which some steps are without
        self._best_loss = math.inf
        self._best_weights: dict[str, Tensor] | None = None

    def _begin_part(self, step: int) -> None:
        """A new schedule for the part of the training that a step, counted from 1, belongs to.

        What the optimizer knows of gradients stays: without it, the first steps of the next part do harm.
        """
        training, first = self.training, self._layerwise_steps
        steps, factor = (first, self.recipe.layerwise_rate) if step <= first else (training.steps - first, 1.0)
        optimizer = self._optimizer.optimizer  # schedules do not know accelerate's
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = group["initial_lr"] = rate * factor
        self._schedule = get_scheduler(training.schedule, optimizer, math.ceil(training.warmup * steps), steps)

    def _resume(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        state = None if self.checkpoints is None else _latest(self.checkpoints, self.name, self.accelerator)
        if state is None:
            return
        self._step, self._summed_steps = state["step"], state["since"]
        self._best_loss, self._best_weights = state["best_loss"], state["best_weights"]
        self.model.load_state_dict(state["model"])
        self._average.load_state_dict(state["average"])
        self._begin_part(self._step)
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._log.rows += state["rows"]
        own = state["processes"][self.accelerator.process_index]
        self._sums = {term: value.to(self.accelerator.device) for term, value in own["sums"].items()}
        self.objective.load_state_dict(own["objective"], self.accelerator.device)
        for _ in range(self._step):
            next(self.batches)
        restore_random_states(own["random"])

    def _take_step(self) -> None:
        """One optimizer step on the next micro-batches, of which this process takes its share."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        micro_batches = next(self.batches)
        self._step += 1
        if self._step == self._layerwise_steps + 1 > 1:
            self._begin_part(self._step)
        self.objective.begin(self._step, self.training.steps)
        if len(micro_batches) < world:  # a process without any would leave the others waiting for its gradients
            allowed = f"at most {len(micro_batches)}: the corpus gives a step of '{self.name}' no more micro-batches"
            raise InputError("compute.processes", world, allowed)
        if self.recipe.progressive:
            set_blend(self.model, min(1.0, self._step / (self.recipe.progressive * self.training.steps)))
        denominators = token_counts(micro_batches)
        share = micro_batches[rank::world]
        together = self._step > self._layerwise_steps
        self._own = self.on_policy is not None and together and self.on_policy.is_step(self._step)
        if self._own:
            with self._enough_memory():
                share, denominators = self._own_targets(share)
        for number, examples in enumerate(share, start=1):
            last = number == len(share)  # with which processes average their gradients
            with nullcontext() if last else self.accelerator.no_sync(self._wrapped), self._enough_memory():
                terms = self._backward(examples, denominators)
        norm = self.accelerator.clip_grad_norm_(self._wrapped.parameters(), self.training.clip)
        if not torch.isfinite(norm):
            raise self._not_finite()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._average.add(self._step)
        self._rate = self._schedule.get_last_lr()[0]
        self._schedule.step()
        for term in terms:
            self._summed_steps[term] = self._summed_steps.get(term, 0) + 1

    def _own_targets(self, share: list[list[Example]]) -> tuple[list[list[Example]], tuple[float, float]]:
        """This process's micro-batches with targets of the model's own, and the tokens of the whole step."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        assert self.on_policy is not None
        with self.accelerator.autocast():
            share = [
                self.on_policy.targets(self.model, examples, self._step, rank + number * world)
                for number, examples in enumerate(share)
            ]
        counts = torch.tensor(token_counts(share), dtype=torch.float64, device=self.accelerator.device)
        sources, targets = self.accelerator.reduce(counts, "sum").tolist()
        return share, (sources, targets)

    def _backward(self, examples: list[Example], denominators: tuple[float, float]) -> list[str]:
        """Add the gradient of one micro-batch, and its loss terms to the sums; gives their names."""
        batch = self.collate(examples).to(self.accelerator.device)
        with self.accelerator.autocast():
            terms = self.objective.terms(self._wrapped, batch, denominators)
        if self._own:
            terms.pop("task", None)  # the model's own tokens are no references
        total = sum(self.objective.weight(term) * value for term, value in terms.items())
        # processes average their gradients, and a step is a sum
        self.accelerator.backward(total * self.accelerator.num_processes)
        terms = {"loss": total, **terms}
        for term, value in terms.items():
            self._sums[term] = self._sums.get(term, 0.0) + value.detach()
        return list(terms)

    def _log_row(self) -> None:
        """Log the averages since the last row and, where it is time, a validation."""
        sums = self.accelerator.reduce(torch.stack(list(self._sums.values())), "sum")
        means = sums / sums.new_tensor([self._summed_steps[term] for term in self._sums])
        row = {"step": self._step, "learning_rate": self._rate, **dict(zip(self._sums, means.tolist(), strict=True))}
        if not all(map(math.isfinite, row.values())):
            raise self._not_finite()
        self._sums, self._summed_steps = {}, {}
        if self._step in self._validate_at:
            row["validation_loss"] = self._validate()
        if self.accelerator.is_main_process:
            self._log.add(row)
            best = f", best validation {self._best_loss:.3f}" if self._best_loss < math.inf else ""
            report(self.name, self._step, self.training.steps, f"loss {row['loss']:.3f}{best}")

    def _validate(self) -> float:
        """The validation loss; the weights are kept where it is the best so far."""
        if self.recipe.progressive:
            set_blend(self.model, 1.0)  # the next step turns it back
        with self._average.in_place():
            loss = validation_loss(self.model, self.validation, self.training, self.accelerator, self.collate)
            if loss < self._best_loss:
                self._best_loss = loss
                self._best_weights = copy.deepcopy(self.model.state_dict())
        self.model.train()
        return loss

    def _save_checkpoint(self) -> None:
        if self.checkpoints is None:
            return
        own = {"sums": self._sums, "objective": self.objective.state_dict(), "random": random_states()}
        processes = gather_object([own])
        if self.accelerator.is_main_process:
            state = {
                "step": self._step,
                "since": self._summed_steps,
                "best_loss": self._best_loss,
                "best_weights": self._best_weights,
                "model": self.model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "schedule": self._schedule.state_dict(),
                "average": self._average.state_dict(),
                "rows": self._log.rows,
                "processes": processes,
            }
            self.checkpoints.save(self._step, state)

    def _finished(self) -> PreTrainedModel:
        if self.training.precision != "fp32":
            self.accelerator.unwrap_model(self._wrapped, keep_fp32_wrapper=False)  # tests are in full precision
        if self.training.compile:
            self.model._compiled_call_impl = None
        if self._best_weights is not None:
            self.model.load_state_dict(self._best_weights)
        return self.model.eval()

    def _not_finite(self) -> TrainingError:
        """The error that names what is not finite; the model is given back its best weights, if there are any."""
        infinite = [term for term, value in self._sums.items() if not torch.isfinite(value)]
        bad = [f"the loss term {term}" for term in infinite if term != "loss"]
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                bad.insert(0, f"the weight {name}")
                break
            if not bad and parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                bad.append(f"the gradient of {name}")
        what = bad[0] if bad else "the norm of the gradient"
        error = TrainingError(
            f"{self.name}: {what} is not a finite number at step {self._step}; lower learning_rate, which is the usual "
            "cause."
        )
        if self._best_weights is not None:
            self.model.load_state_dict(self._best_weights)
            set_blend(self.model, 1.0)  # as they were validated
            error.restored = True
        return error

    @contextmanager
    def _enough_memory(self) -> Iterator[None]:
        """Say of a step that did not fit into memory what to change.

        Raises:
            TrainingError: it did not fit.
        """
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            message = str(error).lower()
            full = "out of memory" in message or "can't allocate memory" in message
            if not isinstance(error, MemoryError) and not full:
                raise
            training = self.training
            raise TrainingError(
                f"{self.name}: memory is too small for a micro-batch of "
                f"{training.batch_tokens // training.micro_batches:,} tokens at step {self._step}; set micro_batches "
                f"to {2 * training.micro_batches}, which halves a micro-batch and leaves the step as large as it is, "
                f"or batch_tokens to {training.batch_tokens // 2:,}."
            ) from error


@torch.no_grad()
def validation_loss(
    model: PreTrainedModel,
    examples: Sequence[Example],
    training: S.Training,
    accelerator: Accelerator,
    collate: Collate = collate,
) -> float:
    """Cross-entropy per label over all examples, with dropout off, shared by the processes."""
    model.eval()
    batches = bucketed(examples, training.batch_tokens)
    total = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    for indices in batches[accelerator.process_index :: accelerator.num_processes]:
        batch = collate([examples[i] for i in indices]).to(accelerator.device)
        total[0] += cross_entropy(model(**batch.inputs()).logits, batch.labels, 1.0)
        total[1] += sum(labelled(examples[i]) for i in indices)
    total = accelerator.reduce(total, "sum")
    return (total[0] / total[1]).item()


def token_counts(micro_batches: list[list[Example]]) -> tuple[float, float]:
    """Source tokens of a whole step, and labels: target tokens, classes, or tokens that were masked."""
    examples = [example for batch in micro_batches for example in batch]
    return float(sum(len(e.source) for e in examples)), float(sum(map(labelled, examples)))


def labelled(example: Example) -> int:
    """Labels of an example that count in the loss."""
    return len(example.target) - example.target.count(IGNORED_LABEL)


def _latest(checkpoints: Checkpoints, name: str, accelerator: Accelerator) -> dict[str, Any] | None:
    """What every process goes on from, read by the main one, which prints the notes."""
    state = None
    if accelerator.is_main_process:
        state, notes = checkpoints.latest()
        for note in notes:
            print(f"{name}: {note}", flush=True)
        if state is not None:
            print(f"{name}: goes on after step {state['step']:,}", flush=True)
    return broadcast_object_list([state])[0]


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
