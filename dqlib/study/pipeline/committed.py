"""Teachers that live in git, under ``models/``: taken instead of a training that would make the same."""

from __future__ import annotations

from pathlib import Path

from dqlib.study.corpora.corpus import load_info
from dqlib.study.params import settings as S
from dqlib.study.params.paths import PROVENANCE, project_root
from dqlib.study.process.provenance import is_made, provenance_text

#: Folder of the models that are committed.
MODELS = "models"


def teacher_folder(task: str) -> Path:
    """Where the committed teacher of a task is, or would be."""
    return project_root() / MODELS / f"{task}-teacher"


def teacher_provenance(settings: S.Settings, task: str) -> dict[str, object]:
    """All that decides the weights of a task's teacher: the pairs themselves, their tokens, its shape, its trainings.

    The corpus must have been built: another version of Python brings other docstrings, and so another teacher.
    """
    spec = settings.task(task)
    info = load_info(settings.folders(task).corpus)
    return {"pairs": info["sha256"], "corpus": spec.corpus, "model": spec.model, "pretrain": spec.pretrain,
            "finetune": spec.finetune}  # fmt: skip


def committed_teacher(settings: S.Settings, task: str) -> Path | None:
    """The folder of the committed teacher, in fp16, where it is the one that the parameters ask for.

    Its weights are on the grid of fp16 since its training ended, so in fp32 they are the same function, bit for bit.
    """
    folder = teacher_folder(task)
    there = (folder / PROVENANCE).is_file()
    return folder if there and is_made(folder, provenance_text(teacher_provenance(settings, task))) else None
