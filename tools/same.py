"""Show that a change alters no number: the smoke study at a commit and in the working tree, byte for byte.

    python tools/same.py [COMMIT]        # HEAD, where none is given

Weights, records and predictions of every teacher and student are compared, and what a teacher writes for students.
What a commit gave is kept under ``build/same``, so that the next comparison with it runs the working tree alone.

Where all is the same, models that are here, and rows of runs in ``results/``, count as made by the code as
it is now: their provenance gets its hash, and ``dvc commit`` records the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from dqlib.files import write_text
from dqlib.study.pipeline.ledger import LENGTH

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "same"

#: Names of the files whose bytes are compared.
COMPARED = ("model.safetensors", "record.json", "details.json", "predictions.jsonl", "pairs.jsonl")

#: Prints the hashes of the code that stands in the current folder: of what decides a score, and what a teacher writes
#: (commits from before it had one have the same there); then the tasks of its smoke profile.
ASKED = """
from dqlib.study.params import identity
from dqlib.study.params.settings import load_settings
rooms = [{"room": identity.LABELLING}] if hasattr(identity, "LABELLING") else [{}]
print(*(identity.code_hash(**room) for room in [{}, *rooms]), *load_settings("smoke").tasks)
"""

#: The task whose teacher writes.
LABELLED = "summarization"


def main(arguments: list[str]) -> int:
    """0 where all bytes are the same, 1 where some are not (each is named)."""
    commit = _git("rev-parse", "--verify", f"{arguments[0] if arguments else 'HEAD'}^{{commit}}")
    before, after = _of_commit(commit), _of_working_tree()
    codes = [(before.pop(name), after.pop(name)) for name in ("code", "labelling")]
    different = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    for name in different:
        missing = "" if name in before and name in after else f", missing {'after' if name in before else 'before'}"
        print(f"differs: {name}{missing}")
    same = len(before.keys() | after.keys()) - len(different)
    print(f"{same} of {len(before)} files of the smoke study are the same as at {commit[:10]}.")
    if not before or different:
        return 1
    print(f"{_record(*codes)} models under runs/ count as made by this code; `dvc commit` records it in dvc.lock.")
    return 0


def _record(code: tuple[str, str], labelling: tuple[str, str]) -> int:
    """Let what the code before has made be of the code now, by its provenance.

    Args:
        code, labelling: both hashes, before and after.
    """
    stale = 0
    for path in (ROOT / "runs").rglob("provenance.json"):
        before, after = labelling if path.parent.name == "pseudo-labels" else code
        if f'"code": "{before}"' in path.read_text():
            write_text(path, path.read_text().replace(before, after))  # in place of a link into DVC's cache, too
            stale += 1
    before, after = (each[:LENGTH] for each in code)
    for path in (ROOT / "results").rglob("tables/*.csv"):
        text = path.read_text()
        if (renewed := text.replace(f",{before}\n", f",{after}\n")) != text:
            write_text(path, renewed)
    return stale


def _of_commit(commit: str) -> dict[str, str]:
    kept = BUILD / f"{commit}.json"
    if not kept.is_file():
        tree = _fresh(BUILD / "before")
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x"], cwd=tree, input=archive, check=True)
        write_text(kept, json.dumps(_digests(tree), indent=1))
    return json.loads(kept.read_text())


def _of_working_tree() -> dict[str, str]:
    tree = _fresh(BUILD / "after")
    for name in _git("ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    return _digests(tree)


def _digests(tree: Path) -> dict[str, str]:
    """Run the smoke study in a tree, and give the SHA-256 of what it made, and its code's: ``code``, ``labelling``."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    asked = subprocess.run([sys.executable, "-c", ASKED], cwd=tree, env=environment, check=True, stdout=subprocess.PIPE)
    code, labelling, *tasks = asked.stdout.decode().split()
    for task in tasks:
        for part in ["students", "pseudo-labels"] if task == LABELLED else ["students"]:
            command = [sys.executable, "-m", "dqlib.study", "make", part, "--params", "smoke", "--task", task]
            subprocess.run(command, cwd=tree, env=environment, check=True)
    runs = tree / "runs" / "smoke"
    files = (path for path in sorted(runs.rglob("*")) if path.name in COMPARED)
    digests = {str(path.relative_to(runs)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {"code": code, "labelling": labelling} | digests


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
