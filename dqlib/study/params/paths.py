"""All paths of the study in one place."""

from __future__ import annotations

from pathlib import Path

#: Names of the files that every trained model's folder holds.
LOG, PREDICTIONS, RECORD, DETAILS = "log.csv", "predictions.jsonl", "record.json", "details.json"

#: What the training of a run of the benchmark cost, in its folder.
COST = "cost.json"

#: Folders of the results.
TABLES, FIGURES = "tables", "figures"

#: What a folder was made from, in it.
PROVENANCE = "provenance.json"


class Folders:
    """Where a task keeps what it makes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.corpus = root / "corpus"  # splits and tokenizer
        self.pretrained = root / "pretrained"  # before fine-tuning
        self.teacher = root / "teacher"
        self.pseudo_labels = root / "pseudo-labels"  # what the teacher writes for its students
        self.students = root / "students"
        self.methods = root / "methods"  # runs of the benchmark

    def student(self, slug: str, preset: str | None = None, seed: int | None = None) -> Path:
        """Student of a configuration: its slug, then the preset and the seed where they are not the task's own."""
        parts = slug, preset, None if seed is None else f"seed{seed}"
        return self.students / "_".join(part for part in parts if part is not None)

    def checkpoints(self, target: Path) -> Path:
        """Checkpoints of the training that makes one of the others; DVC, which empties those, leaves this alone."""
        return self.root / "checkpoints" / "-".join(target.relative_to(self.root).parts)

    def run(self, preset: str, slug: str, seed: int, steps: int | None = None) -> Path:
        """One run of the benchmark: a preset at a configuration from a seed, for all runs' steps or its own."""
        return self.methods / preset / slug / (f"seed{seed}" if steps is None else f"seed{seed}-steps{steps}")


def project_root() -> Path:
    """The folder that holds ``dvc.yaml``: looking upwards from here, then the one that this package is installed from.

    The current folder if neither is there.
    """
    here, clone = Path.cwd(), Path(__file__).parents[3]
    return next((folder for folder in (here, *here.parents, clone) if (folder / "dvc.yaml").is_file()), here)
