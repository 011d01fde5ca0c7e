"""Show that a change alters no number: the smoke study at a commit and in the working tree, byte for byte.

    python tools/same.py [COMMIT]        # HEAD, where none is given

Weights, records and predictions of every teacher and student are compared. What a commit gave is kept under
``build/same``, so that the next comparison with it runs the working tree alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "same"
TASKS = ("summarization", "eli5", "translation")

#: Names of the files whose bytes are compared.
COMPARED = ("model.safetensors", "dqlib.safetensors", "record.json", "details.json", "predictions.jsonl")


def main(arguments: list[str]) -> int:
    """0 where all bytes are the same, 1 where some are not (each is named)."""
    commit = _git("rev-parse", "--verify", f"{arguments[0] if arguments else 'HEAD'}^{{commit}}")
    before, after = _of_commit(commit), _of_working_tree()
    different = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    for name in different:
        only = f"only {'before' if name in before else 'after'}"
        print(f"{'differs' if name in before and name in after else only}: {name}")
    print(f"{len(before.keys() & after.keys()) - sum(n in before and n in after for n in different)} of "
          f"{len(before)} files of the smoke study are the same as at {commit[:10]}.")  # fmt: skip
    return 1 if different else 0


def _of_commit(commit: str) -> dict[str, str]:
    kept = BUILD / f"{commit}.json"
    if not kept.is_file():
        tree = _fresh(BUILD / "before")
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x"], cwd=tree, input=archive, check=True)
        digests = _digests(tree)
        kept.write_text(json.dumps(digests, indent=1))
    return json.loads(kept.read_text())


def _of_working_tree() -> dict[str, str]:
    tree = _fresh(BUILD / "after")
    listed = _git("ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    return _digests(tree)


def _digests(tree: Path) -> dict[str, str]:
    """Run the smoke study in a tree, and give the SHA-256 of what it made."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    for task in TASKS:
        command = [sys.executable, "-m", "dqlib.study", "students", "--params", "smoke", "--task", task]
        subprocess.run(command, cwd=tree, env=environment, check=True)
    runs = tree / "runs" / "smoke"
    files = (path for path in sorted(runs.rglob("*")) if path.name in COMPARED)
    return {str(path.relative_to(runs)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
