"""``models/``: small models that live in git, so that a clone writes a text and trains a student at once.

The teacher of summarization in fp16, and the headline student of each task, packed; each with a card.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas
import torch
from transformers import PreTrainedTokenizerBase

from dqlib.errors import InputError
from dqlib.files import atomic_folder, write_text
from dqlib.storage.manifest import MANIFEST, File
from dqlib.storage.packed import save_packed
from dqlib.storage.reading import read_model, read_tokenizer, save_model
from dqlib.storage.students import load_student
from dqlib.study.corpora.corpus import load_info
from dqlib.study.evaluation.records import read_record
from dqlib.study.params.paths import LOG, PROVENANCE, RECORD, project_root
from dqlib.study.params.settings import Settings, load_settings
from dqlib.study.params.tasks import TASKS
from dqlib.study.pipeline.committed import MODELS, teacher_folder, teacher_provenance
from dqlib.study.pipeline.study import Study
from dqlib.study.process.provenance import provenance_text
from dqlib.study.report.names import METRIC_NAMES, TITLES, interval_text, percent
from dqlib.study.report.pages import markdown_table

#: The task whose teacher is among them.
TEACHER_OF = "summarization"

#: Bytes of all of them, at most.
MOST = 8_000_000

CARD, LIST = "README.md", "manifest.json"


@dataclass(frozen=True)
class _Compact:
    """A tokenizer whose file has no spaces between its parts, which are half of it."""

    tokenizer: PreTrainedTokenizerBase

    def save_pretrained(self, folder: Path) -> None:
        """Write its files."""
        self.tokenizer.save_pretrained(folder)
        path = Path(folder) / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        write_text(path, json.dumps(content, ensure_ascii=False, separators=(",", ":")))


def write_models(params: str) -> tuple[Path, list[str], list[str]]:
    """Write the models that a profile has made, in place of those of before; nothing is trained.

    Returns:
        The folder, and the tasks whose headline student is not there, and those where it is of other code or
        parameters: what was committed of them stays.

    Raises:
        InputError: the teacher is not there, or of other parameters, or all are more than :data:`MOST` bytes.
    """
    settings = load_settings(params)
    target = project_root() / MODELS
    missing: list[str] = []
    stale: list[str] = []
    teacher = settings.folders(TEACHER_OF).teacher
    if not Study(params, TEACHER_OF, settings).has_teacher():
        raise InputError("teacher", str(teacher), "one that is trained and tested with these parameters")
    with atomic_folder(target) as folder:
        _write_teacher(settings, teacher, folder / teacher_folder(TEACHER_OF).name)
        for task in (name for name, known in TASKS.items() if known.compared):
            there, study = (target / task).is_dir(), Study(params, task, settings) if task in settings.tasks else None
            ready = _is_ready(study) if study else None
            if study and ready:
                _write_student(settings, task, _headline(study), folder / task)
                continue
            if there:
                shutil.copytree(target / task, folder / task)
            if there or study:
                (missing if ready is None else stale).append(task)
        _write_list(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if size > MOST:
            raise InputError(MODELS, f"{size:,} bytes", f"at most {MOST:,}: they live in git")
    return target, missing, stale


def _headline(study: Study) -> Path:
    return study.settings.student_folder(study.name, study.task.headline, study.task.distill.preset)


def _is_ready(study: Study) -> bool | None:
    """Whether the headline student is of the present code and parameters; None where there is none."""
    if not (_headline(study) / RECORD).is_file():
        return None
    return study.has_teacher() and study.has_student(study.task.headline, study.task.distill.preset)


def _write_teacher(settings: Settings, source: Path, folder: Path) -> None:
    halved = read_model(source).half()
    weights = zip(read_model(source).parameters(), halved.parameters(), strict=True)
    if not all(torch.equal(whole, half.float()) for whole, half in weights):
        raise InputError("teacher", str(source), "one whose weights are numbers of fp16, as fine-tuning leaves them")
    save_model(halved, folder, _Compact(read_tokenizer(source)))  # type: ignore[arg-type]
    shutil.copyfile(source / LOG, folder / LOG)
    write_text(folder / PROVENANCE, provenance_text(teacher_provenance(settings, TEACHER_OF)))
    title = TITLES[TEACHER_OF].lower()
    text = f"""Teacher of the task *{title}*, in fp16: its weights are numbers of fp16 since its training
ended, so read in fp32 it is the very function that students learn from. Where parameters and corpus are those in
[`{PROVENANCE}`]({PROVENANCE}), the study takes it instead of training the same again."""
    _write_card(settings, TEACHER_OF, source, folder, text)


def _write_student(settings: Settings, task: str, student: Path, folder: Path) -> None:
    save_packed(load_student(student), folder, _Compact(read_tokenizer(student)))  # type: ignore[arg-type]
    record, spec = read_record(student), settings.task(task)
    about = f"""Student of the task *{TITLES[task].lower()}*: `{record.config}` (bits of weights, embeddings and
activations, then encoder and decoder layers) by the preset `{record.preset}`, {record.compression:g} times smaller than
its teacher, of whose score it keeps {percent(record.retention)}."""
    language = f" --language {spec.corpus.languages[0]}" if spec.corpus.languages else ""
    use = f"""```bash
echo "{TASKS[task].example}" |
  dqlib generate {MODELS}/{task} --beams 4{language}
```"""
    _write_card(settings, task, student, folder, about, use if TASKS[task].example else "")


def _write_card(settings: Settings, task: str, source: Path, folder: Path, about: str, use: str = "") -> None:
    """Keep the record of a model, and the page that says what it is and how good."""
    shutil.copyfile(source / RECORD, folder / RECORD)
    record, info = read_record(source), load_info(settings.folders(task).corpus)
    interval = interval_text(record.score_low, record.score_high)
    text = f"""{about}

| | |
| --- | --- |
| {METRIC_NAMES[record.headline]} on {record.n_test:,} test documents (95% interval) | {record.score:.2f} ({interval}) |
| corpus | `{record.corpus}`, {info["sizes"]["train"]:,} training rows, SHA-256 `{info["sha256"][:16]}` |
| training | {record.train_steps:,} steps, seed {record.seed} |

{use}"""
    limits = """It is a small model, trained in minutes on what installed packages bring; it shows a method and is no
help for anything else. Its licence is that of the project."""
    title = f"{record.role.capitalize()}: {TITLES[task].lower()}"
    write_text(folder / CARD, f"# {title}\n\n{text.strip()}\n\n{limits}\n")


def _write_list(folder: Path) -> None:
    """The list of all models, with the SHA-256 of every file, and the page that names them."""
    rows, listed = [], {}
    for path in sorted(each for each in folder.iterdir() if (each / RECORD).is_file()):
        record = read_record(path)
        files = {file.name: File.of(file) for file in sorted(path.iterdir())}
        size = sum(file.size for file in files.values())
        kept = "" if record.role == "teacher" else f", {percent(record.retention)} of its teacher's"
        rows.append({
            "folder": f"[`{path.name}`]({path.name}/{CARD})", "role": record.role, "config": f"`{record.config}`",
            "size": f"{size / 1e6:.2f} MB", "score": f"{METRIC_NAMES[record.headline]} {record.score:.2f}{kept}",
        })  # fmt: skip
        listed[path.name] = {
            "task": record.task, "role": record.role, "config": record.config, "preset": record.preset,
            "files": {name: {"bytes": file.size, "sha256": file.sha256} for name, file in files.items()},
        }  # fmt: skip
    write_text(folder / LIST, json.dumps(listed, indent=1) + "\n")
    write_text(folder / CARD, f"""# Models

Written by `python -m dqlib.study models` from what the study trained; [`{LIST}`]({LIST}) has the SHA-256 of every
file, and each folder a `{MANIFEST}` of its own, which `dqlib verify` checks. A packed model is read by
`dqlib.load_packed`, by transformers after `import dqlib`, and by the command `dqlib`.

{markdown_table(pandas.DataFrame(rows))}
Students are of one seed, the study's own; the tables of `results/` have means over several.
""")  # fmt: skip
