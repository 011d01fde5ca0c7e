"""The parameters of a study: read from YAML, checked at once, before any work.

A parameter file is a profile: it sets sizes and sources, never code. Every key is a field of a
dataclass of this room, an unknown key is an error, and the message about a wrong value has its full name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dqlib.config import Config
from dqlib.errors import InputError, check_choice
from dqlib.study.params.corpus import Corpus, Support
from dqlib.study.params.evaluation import Evaluation
from dqlib.study.params.kinds import KINDS, Kind
from dqlib.study.params.methods import Methods, Run
from dqlib.study.params.model import SIZES, Model
from dqlib.study.params.paths import Folders, project_root
from dqlib.study.params.presets import own_presets, remember
from dqlib.study.params.schema import NAMED_BLOCKS, a_name, bounded, build, read
from dqlib.study.params.task import PseudoLabels, Task
from dqlib.study.params.tasks import BENCHMARKED, TASKS
from dqlib.study.params.training import Distillation, Finetuning, Loop, Pretraining, Training

__all__ = [
    "KINDS", "SIZES", "TASKS", "Compute", "Corpus", "Distillation", "Evaluation", "Finetuning", "Kind", "Loop",
    "Methods", "Model", "Pretraining", "PseudoLabels", "Run", "Settings", "Support", "Task", "Training",
    "available_cores", "load_settings", "profile_path", "settings_of",
]  # fmt: skip


@dataclass(frozen=True)
class Compute:
    """Processes of a stage (each micro-batch of a step goes to one of them)."""

    processes: int = 1

    def __post_init__(self) -> None:
        bounded(self, processes=(1, 4096))


@dataclass(frozen=True)
class Settings:
    """Everything that a profile sets; its ``tasks`` are one or more, by name. Its ``note`` opens the results.

    ``pipeline`` is what ``dvc.yaml`` reads of it, :attr:`stages`.
    ``folder`` is where everything is made but the results; ``runs/PROFILE`` of the project, when left out.
    """

    profile: str
    results: str
    compute: Compute
    tasks: dict[str, Task] = field(metadata={NAMED_BLOCKS: TASKS})
    note: str = ""
    pipeline: dict | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        a_name("profile", self.profile)
        a_name("results", self.results, folders=True)
        if not self.tasks:
            raise InputError("params", self.profile, f"a file with at least one of {', '.join(TASKS)}")
        for name, task in self.tasks.items():
            check_choice(f"{name}.kind", task.kind, (TASKS[name].kind,))
            languages = task.corpus.languages
            if bool(languages) != TASKS[name].translates:
                allowed = "given: each target starts with the token of its language" if not languages else "left out"
                raise InputError(f"{name}.corpus.languages", languages, allowed)
            for part, training in (("pretrain", task.pretrain), ("finetune", task.finetune), ("distill", task.distill)):
                if training is not None and training.micro_batches % self.compute.processes:
                    allowed = f"a multiple of compute.processes, {self.compute.processes}"
                    raise InputError(f"{name}.{part}.micro_batches", training.micro_batches, allowed)
            if task.model.base_task:
                self._check_base(name, task, task.model.base_task)

    def __getstate__(self) -> dict[str, Any]:
        """For a worker, which is to know the presets of files, too."""
        return self.__dict__ | {"presets": own_presets()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for path, preset in state.pop("presets").items():
            remember(preset, path)
        self.__dict__.update(state)

    @property
    def in_pipeline(self) -> bool:
        """Whether the stages of ``dvc.yaml`` make it: all tasks that are compared, none of the hub."""
        of_hub = any(task.corpus.origin == "hub" for task in self.tasks.values())
        compared = {name for name, known in TASKS.items() if known.compared and KINDS[known.kind].writes}
        return compared <= set(self.tasks) and not of_hub

    @property
    def stages(self) -> dict[str, Any]:
        """The stages of the tasks: those whose corpora have tokens of their own (``corpora``), those with another's
        (``shared``), all of them (``tasks``), the task whose pre-trained model each teacher starts from
        (``teachers``), the notebook that shows each (``experiments``), and those with a benchmark, with the end of its
        files' names (``benchmarks``)."""
        benchmarked = [name for name, task in self.tasks.items() if task.methods]
        shared = {name: task.model.base_task for name, task in self.tasks.items() if task.model.base_task}
        return {
            "corpora": [name for name in self.tasks if name not in shared],
            "shared": shared,
            "tasks": list(self.tasks),
            "teachers": {name: shared.get(name, name) for name in self.tasks},
            "experiments": {name: self.notebook(name) for name in self.tasks if TASKS[name].compared},
            "benchmarks": {name: "" if name == BENCHMARKED else f"_{name}" for name in benchmarked},
        }

    def check_pipeline(self) -> None:
        """Check that the stages of ``dvc.yaml`` are those of the tasks.

        Raises:
            InputError: ``pipeline`` says something else.
        """
        if self.in_pipeline and self.pipeline != self.stages:
            wanted = yaml.safe_dump(self.stages, default_flow_style=True, sort_keys=False, width=10**6).strip()
            raise InputError("pipeline", self.pipeline, f"{wanted}, for the tasks of the profile '{self.profile}'")

    @property
    def runs(self) -> Path:
        """Folder of everything this profile makes but the results."""
        return project_root() / (self.folder or f"runs/{self.profile}")

    def folders(self, task: str) -> Folders:
        """Where a task keeps what it makes under this profile."""
        self.task(task)
        return Folders(self.runs / task)

    def task(self, name: str) -> Task:
        """The experiment of that name.

        Raises:
            InputError: this profile has none.
        """
        if name not in self.tasks:
            raise InputError("task", name, f"one of {', '.join(self.tasks)}, which the profile '{self.profile}' has")
        return self.tasks[name]

    def notebook(self, task: str) -> str:
        """The notebook that shows a task and its headline student."""
        return self.task(task).form.notebook or task

    def student_folder(self, task: str, config: Config, preset: str, seed: int | None = None) -> Path:
        """Where a student is, or will be: its name has preset and seed where they are not the task's own."""
        distill = self.task(task).distill
        return self.folders(task).student(
            config.slug,
            preset=preset if preset != distill.preset else None,
            seed=seed if seed != distill.seed else None,
        )

    def pretrained_folder(self, task: str) -> Path | None:
        """The model that a task's teacher starts from; None where it starts from random weights."""
        spec = self.task(task)
        if spec.model.base_task:
            return self.folders(spec.model.base_task).pretrained
        return None if spec.pretrain is None and spec.model.pretrained is None else self.folders(task).pretrained

    def _check_base(self, name: str, task: Task, base_task: str) -> None:
        """A model that another task has pre-trained brings its shape and its tokenizer."""
        base, start, tokenizer = self.tasks.get(base_task), f"{name}.model.pretrained", task.corpus.tokenizer
        if base is not None and base.kind != task.kind:
            raise InputError(start, base_task, f"a model of {task.form.description}")
        if base is None or base is task or base.model.pretrained is not None or base.pretrain is None:
            allowed = "a folder, a name on the hub, or another task of this file that is pre-trained here"
            raise InputError(start, base_task, allowed)
        if tokenizer is not None:
            raise InputError(f"{name}.corpus.tokenizer", tokenizer, f"left out: the tokenizer is that of {base_task}")
        for block, size in (*(("model", size) for size in SIZES), ("corpus", "vocab_size")):
            given, wanted = (getattr(getattr(each, block), size) for each in (task, base))
            if given != wanted:
                allowed = f"{wanted}, as in {base_task}.{block}, unless {start} is null"
                raise InputError(f"{name}.{block}.{size}", given, allowed)


def load_settings(params: str | Path = "tutorial") -> Settings:
    """Read and check a parameter file, given by path or by the name of a profile.

    Raises:
        InputError: no such file or profile, not YAML, or any value that is not allowed; a profile of another name.
    """
    named = not str(params).endswith((".yaml", ".yml"))
    path = profile_path(str(params)) if named else project_root() / params
    if not path.is_file():
        raise InputError("params", str(params), "a YAML file or the name of a profile")
    settings = settings_of(read(path))
    if named and settings.profile != params:
        raise InputError("profile", settings.profile, f"{params}, as its file, since what it makes has that name")
    return settings


def settings_of(content: Any) -> Settings:
    """Check the content of a parameter file.

    Raises:
        InputError: any value is not allowed.
    """
    return build(Settings, _completed(content), "")


def _completed(data: Any) -> Any:
    """Parameters with what the model that a teacher starts from says itself: its shape, its vocabulary, its tokenizer.

    Raises:
        InputError: what is given is not so, or a checkpoint that has to be asked is not there.
    """
    given = {name: data[name] for name in TASKS if isinstance(data, dict) and isinstance(data.get(name), dict)}
    for name, task in given.items():
        task = {"kind": TASKS[name].kind} | task
        data = data | {name: task}
        model, corpus = task.get("model"), task.get("corpus")
        start = model.get("pretrained") if isinstance(model, dict) and isinstance(corpus, dict) else None
        if start in given:
            blocks = [block for block in map(given[start].get, ("model", "corpus")) if isinstance(block, dict)]
            found = {key: block[key] for block in blocks for key in (*SIZES, "vocab_size") if key in block}
        elif isinstance(start, str) and start and start not in TASKS:
            revision = model.get("revision")
            if corpus.get("tokenizer") is None:
                corpus = corpus | {"tokenizer": start, "tokenizer_revision": revision}
            found = _checkpoint(name, start, revision, model, {*model, *corpus})
        else:
            continue
        vocabulary = {key: found.pop(key) for key in ("vocab_size",) if key in found}
        data = data | {name: task | {"model": found | model, "corpus": vocabulary | corpus}}
    return data


def _checkpoint(task: str, name: str, revision: Any, model: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """What a checkpoint says of its shape; nothing where all is given and it is on the hub, for then that can wait."""
    from dqlib.study.params.checkpoint import checkpoint_shape, located  # slow to import

    if {*SIZES, "vocab_size"} <= given and not Path(located(name)[0], "config.json").is_file():
        return {}
    where, revision = f"{task}.model", revision if isinstance(revision, str) else None
    found = checkpoint_shape(f"{where}.pretrained", name, revision, KINDS[TASKS[task].kind].architectures)
    for key in model.keys() & found.keys():
        if model[key] != found[key]:
            raise InputError(f"{where}.{key}", model[key], f"{found[key]}, as in the model '{name}'")
    return found


def profile_path(profile: str) -> Path:
    """File of a profile.

    Raises:
        InputError: there is no such profile.
    """
    folder = project_root() / "profiles"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if profile not in known:
        allowed = f"one of {', '.join(known)}" if known else f"a file in {folder}, which has none"
        raise InputError("profile", profile, allowed)
    return folder / f"{profile}.yaml"


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
