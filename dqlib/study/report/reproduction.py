"""Whether a study that was run again gave what is committed: score by score, with the machines of both.

``measured/PROFILE.json`` keeps what a profile gave, and where. Another processor sums in another order, so a training
ends elsewhere: its scores should lie within the committed intervals, and the bytes need not be the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas

from dqlib.files import write_text
from dqlib.study.params.paths import TABLES, project_root
from dqlib.study.report.names import MODEL_COLUMNS, percent

#: Folder of what profiles gave, among the results.
MEASURED = "measured"

#: Libraries whose versions decide numbers.
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")

#: Columns that name the model of a score.
_MODEL = [*MODEL_COLUMNS, "seed"]


def machine() -> dict[str, Any]:
    """The processor, how many cores there are, and the versions of Python and of the libraries that decide numbers."""
    processors = Path("/proc/cpuinfo")
    lines = processors.read_text().splitlines() if processors.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    versions = {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
    return {"processor": processor, "cores": os.cpu_count(), **versions}


def write_measured(
    metrics: pandas.DataFrame,
    retention: pandas.DataFrame,
    folder: Path,
    profile: str,
    where: Mapping[str, Any] | None = None,
) -> None:
    """Keep what a profile gave, and where (here, when None), in a folder of results whose tables have been written."""
    kept = metrics.merge(retention[[*MODEL_COLUMNS, "low", "high"]], on=MODEL_COLUMNS, how="left")
    columns = {"value": ("retention", "score"), "low": ("low", "score_low"), "high": ("high", "score_high")}
    of_role = {name: kept[ours].where(kept.role == "student", kept[theirs]) for name, (ours, theirs) in columns.items()}
    kept = kept[[*_MODEL, "role"]].assign(**of_role).round(4)
    scores = kept.astype(object).where(kept.notna(), None).to_dict("records")
    digest = hashlib.sha256((folder / TABLES / "metrics.csv").read_bytes()).hexdigest()
    content = {"machine": where or machine(), "metrics_sha256": digest, "scores": scores}
    write_text(folder / MEASURED / f"{profile}.json", json.dumps(content, indent=1) + "\n")


def measured_on(folder: Path, profile: str) -> dict[str, Any] | None:
    """Where a profile's results were measured; None where that was not kept."""
    file = folder / MEASURED / f"{profile}.json"
    return json.loads(file.read_text())["machine"] if file.is_file() else None


def comparison(folder: Path, profile: str) -> str:
    """What a profile gave here, in its folder of results, held against what is committed of it, in lines."""
    file = folder / MEASURED / f"{profile}.json"
    before = _committed(file)
    if not file.is_file():
        return f"There is no {file.name} in {MEASURED}/: `compare` writes it."
    if before is None:
        return f"No values of the profile '{profile}' are committed, to hold these against."
    now = json.loads(file.read_text())
    theirs, ours = (
        {tuple(score[name] for name in _MODEL): score for score in each["scores"]} for each in (before, now)
    )
    both = [key for key in ours if key in theirs]
    decided = [key for key in both if theirs[key]["low"] is not None and ours[key]["value"] is not None]
    undecided = [key for key in both if key not in decided]
    outside = [key for key in decided if not theirs[key]["low"] <= ours[key]["value"] <= theirs[key]["high"]]
    same, within = now["metrics_sha256"] == before["metrics_sha256"], len(decided) - len(outside)
    lines = [f"Held against the committed values of the profile '{profile}':"]
    lines.append(f"  {within} of {len(both)} scores lie within the committed intervals")
    lines += [f"  outside: {_named(ours[key])} here, {_named(theirs[key], interval=True)} committed" for key in outside]
    lines += [f"  not decided: {_named(theirs[key])}, without an interval" for key in undecided]
    lines += [f"  only here: {_named(score)}" for key, score in ours.items() if key not in theirs]
    lines += [f"  only committed: {_named(score)}" for key, score in theirs.items() if key not in ours]
    lines.append(f"  {TABLES}/metrics.csv is {'' if same else 'not '}the same, byte for byte")
    lines.append(f"  committed: {_of_machine(before['machine'])}")
    lines.append(f"  here:      {_of_machine(now['machine'])}")
    return "\n".join(lines)


def _named(score: Mapping[str, Any], interval: bool = False) -> str:
    def shown(value: float | None) -> str:
        return percent(value) if score["role"] == "student" or value is None else f"{value:.2f}"

    between = f" ({shown(score['low'])} to {shown(score['high'])})" if interval else ""
    model = f"{score['task']} {score['config']} {score['preset']}, seed {score['seed']}"
    return f"{model}: {shown(score['value'])}{between}"


def _of_machine(about: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {about[name]}" for name in about if name not in ("processor", "cores"))
    return f"{about['processor']}, {about['cores']} cores; {versions}"


def _committed(file: Path) -> dict[str, Any] | None:
    """What the last commit has of a file; None where it has none, or there is no repository."""
    root = project_root()
    if not file.is_relative_to(root):
        return None
    command = ["git", "show", f"HEAD:./{file.relative_to(root).as_posix()}"]
    try:
        found = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    except OSError:  # no git
        return None
    return None if found.returncode else json.loads(found.stdout)
