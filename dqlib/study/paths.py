"""All paths of the study in one place, and writing that leaves no half-written file."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: Names of the files that every trained model's folder holds.
LOG, PREDICTIONS, ROW, DETAILS = "log.csv", "predictions.jsonl", "row.json", "details.json"


@dataclass(frozen=True)
class Folders:
    """Where a task keeps what it makes."""

    root: Path

    @property
    def corpus(self) -> Path:
        """Splits and tokenizer."""
        return self.root / "corpus"

    @property
    def pretrained(self) -> Path:
        """Model after text infilling."""
        return self.root / "pretrained"

    @property
    def teacher(self) -> Path:
        """Fine-tuned model."""
        return self.root / "teacher"

    @property
    def students(self) -> Path:
        """All students."""
        return self.root / "students"

    def student(self, slug: str, method: str | None = None) -> Path:
        """Student of a configuration, named by its slug, and by its method where that is not the task's own."""
        return self.students / (slug if method is None else f"{slug}_{method}")

    @property
    def methods(self) -> Path:
        """Runs of the bench."""
        return self.root / "methods"

    def method(self, name: str, slug: str, seed: int) -> Path:
        """One run of the bench: a preset at a configuration from a seed."""
        return self.methods / name / slug / f"seed{seed}"


def project_root() -> Path:
    """The folder that holds ``dvc.yaml``, looking upwards from here; the current folder if there is none."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").is_file()), here)


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """Write a folder aside and put it in place, replacing an old one, only when the block ends well."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    scratch.chmod(0o755)
    try:
        yield scratch
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            target.replace(old / target.name)
            scratch.replace(target)
            shutil.rmtree(old)
        else:
            scratch.replace(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_text(target: str | Path, text: str) -> None:
    """Write a text file (UTF-8) aside and put it in place at once."""
    write_bytes(target, text.encode("utf-8"))


def write_bytes(target: str | Path, data: bytes) -> None:
    """Write a file aside and put it in place at once."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        scratch.write_bytes(data)
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
