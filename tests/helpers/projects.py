"""Projects that are not the one in the working tree: the committed one, and a small study of its own."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import yaml

from dqlib.study.params.paths import project_root


@cache
def committed(project: Path = Path(__file__).parents[2]) -> Path:
    """A copy of the project as it is in git's index, without what a user's runs, profiles and notebooks have changed.

    The project itself where it is in no repository.
    """
    folder = Path(tempfile.mkdtemp(prefix="dqlib-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    subprocess.run(["git", "checkout-index", "--all", f"--prefix={folder}/"], check=False, cwd=project)
    return folder if (folder / "dvc.yaml").is_file() else project


def set_task(**blocks: object) -> None:
    """Change the task of the small study in the current folder; of a block only the values that are given."""
    path = Path("small.yaml")
    params = yaml.safe_load(path.read_text())
    task = params["summarization"]
    for name, value in blocks.items():
        task[name] = (task.get(name) or {}) | value if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(params))


def write_small_study(folder: Path) -> None:
    """Make a folder a project of its own: the tutorial study with a shrunken corpus and trainings of a few steps."""
    root = project_root()
    (folder / "dvc.yaml").touch()
    (folder / "profiles").mkdir()
    params = yaml.safe_load((root / "profiles" / "tutorial.yaml").read_text())
    task = params["summarization"]
    task["corpus"] |= {"packages": ["datasets", "huggingface_hub"], "limit": 800}  # the standard library takes seconds
    for training in (task["pretrain"], task["finetune"], task["distill"], task["methods"]["distill"]):
        training["batch_tokens"] = 800
    task["pretrain"]["steps"] = task["finetune"]["steps"] = 4
    task["methods"]["distill"]["steps"], task["methods"]["longer_steps"] = 3, [5]
    task["methods"]["evaluate"]["documents"] = 12  # fewer than the teacher's
    task["methods"] |= {"presets": ["dq-bart-faithful", "dqlib"], "ablations": {"2-2-8_2-2": ["dqlib-fixed-scales"]}}
    (folder / "small.yaml").write_text(yaml.safe_dump(params))
