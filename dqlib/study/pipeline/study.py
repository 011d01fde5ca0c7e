"""What a notebook asks for, made once: the corpus, the teacher, a student.

Under DVC each stage makes its own part and finds the others made, or fails. In a notebook that is opened by hand
the same calls make whatever is missing, with the small tutorial profile in well under a minute.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from dqlib.config import Config
from dqlib.errors import InputError
from dqlib.files import atomic_folder, write_text
from dqlib.presets import get_preset
from dqlib.study.corpora.corpus import build_corpus, load_info
from dqlib.study.corpora.files import SOURCES, digests_of, file_digests
from dqlib.study.corpora.pseudo_labels import load_labels_info
from dqlib.study.params import settings as S
from dqlib.study.params.checkpoint import MODEL_FILES, on_disk, snapshot
from dqlib.study.params.identity import LABELLING, code_hash
from dqlib.study.params.paths import PROVENANCE, project_root
from dqlib.study.params.presets import file_of, preset_named
from dqlib.study.params.settings import Settings, load_settings
from dqlib.study.pipeline.committed import committed_teacher
from dqlib.study.process.exit_codes import JobError
from dqlib.study.process.launch import launch, on_this_process
from dqlib.study.process.provenance import is_made, provenance_text


class Study:
    """One task under one parameter file.

    ``params`` is a parameter file, or the name of a profile, and ``settings`` what it holds, where it was read already.

    Raises:
        InputError: a parameter is not allowed.
    """

    def __init__(self, params: str = "tutorial", task: str = "summarization", settings: Settings | None = None) -> None:
        self.params = params
        self.settings: Settings = load_settings(params) if settings is None else settings
        self.name = task
        self.task = self.settings.task(task)
        self.folders = self.settings.folders(task)
        base = self.task.model.base_task
        #: The study of the task whose pre-trained model and tokenizer this one uses.
        self.base = Study(params, base, self.settings) if base else None

    def corpus(self) -> Path:
        """Folder of the corpus, built if it is missing, or its parameters or the files that it is read from changed.

        What is known of it is printed when it is built.

        Raises:
            InputError: a file that it is read from is missing.
        """
        spec, tokenizer = self.task.corpus, None
        provenance: dict[str, object] = {"corpus": spec}
        if files := file_digests(spec, self.task.form):
            provenance["files"] = files
        if self.base:
            provenance["base"] = _provenance_hash(self.base.corpus())
            tokenizer = self.base.folders.corpus / "tokenizer"

        def build() -> None:
            build_corpus(spec, self.folders.corpus, tokenizer, self.task.kind)
            print(_description(self.folders.corpus, spec), flush=True)

        return self.made(self.folders.corpus, provenance, build)

    def pretrained(self) -> Path | None:
        """Folder of the pre-trained model, with what it needs; None where the teacher starts from random weights."""
        if self.base:
            return self.base.pretrained()
        if self.settings.pretrained_folder(self.name) is None:
            return None
        return self.made(self.folders.pretrained, self._of_pretrained(), lambda: self._run("pretrain"))

    def _of_pretrained(self) -> dict[str, object]:
        corpus, model = _provenance_hash(self.corpus()), self.task.model
        provenance: dict[str, object] = {"corpus": corpus, "model": model, "pretrain": self.task.pretrain}
        if model.checkpoint is not None and on_disk(model.checkpoint):  # its path stays where its weights change
            files = sorted(path for each in MODEL_FILES for path in Path(snapshot(model.checkpoint)).glob(each))
            provenance["files"] = {path.name: digests_of(self.task.corpus, self.task.form, str(path)) for path in files}
        return provenance

    def teacher(self) -> Path:
        """Folder of the teacher, with what it needs: the committed one where it is the one that is asked for."""
        provenance = self._of_teacher()
        committed = committed_teacher(self.settings, self.name)

        def make() -> None:
            if committed is None:
                self.pretrained()
            self._run("finetune")

        return self.made(self.folders.teacher, provenance, make)

    def has_teacher(self) -> bool:
        """Whether the teacher is there as the parameters want it; its corpus is built if it is missing."""
        return is_made(self.folders.teacher, provenance_text(self._of_teacher()))

    def _of_teacher(self) -> dict[str, object]:
        corpus = self.corpus()
        provenance: dict[str, object] = {"finetune": self.task.finetune, "evaluate": self.task.evaluate}
        if self.settings.pretrained_folder(self.name) != self.folders.pretrained:  # else these decide that model, too
            provenance |= {"corpus": _provenance_hash(corpus), "model": self.task.model}
        if self.settings.pretrained_folder(self.name) is not None:
            text = provenance_text((self.base or self)._of_pretrained())
            provenance["pretrained"] = hashlib.sha256(text.encode()).hexdigest()
        return provenance

    def pseudo_labels(self) -> Path:
        """Folder of what the teacher writes for its students, with what it needs.

        Raises:
            InputError: its models do not write, a file that texts are read from is missing, or no text is in no pair.
        """
        form = self.task.form
        if not form.writes:
            raise InputError("task", self.name, f"one whose models write texts; what these give is {form.description}")
        self.teacher()
        labels, corpus = self.task.pseudo_labels, _provenance_hash(self.corpus())
        provenance: dict[str, object] = {"labels": labels, "corpus": corpus, "code": code_hash(room=LABELLING)}
        provenance["teacher"] = self.teacher_digest()
        if self.task.corpus.origin == "files" and labels.unpaired is not None:
            provenance["files"] = digests_of(self.task.corpus, SOURCES, labels.unpaired)

        def make() -> None:
            from dqlib.study.labelling.pseudo_labels import make_pseudo_labels  # torch is needed only now
            from dqlib.study.pipeline.jobs import quiet

            quiet()
            make_pseudo_labels(self.settings, self.name, provenance_text(provenance))

        return self.made(self.folders.pseudo_labels, provenance, make)

    def teacher_digest(self) -> str:
        """SHA-256 of the weights of the teacher, which is there."""
        return hashlib.sha256((self.folders.teacher / "model.safetensors").read_bytes()).hexdigest()

    def asked_pretrained(self) -> Path:
        """:meth:`pretrained`, or an empty folder: a stage of the pipeline makes its folder in every study."""
        return self.pretrained() or self._empty(self.folders.pretrained, "pretrain")

    def asked_pseudo_labels(self) -> Path:
        """:meth:`pseudo_labels` where a student or a run of the benchmark is trained on them, or an empty folder."""
        asked = self.task.asks_for_pseudo_labels
        return self.pseudo_labels() if asked else self._empty(self.folders.pseudo_labels, "labels")

    def student(self, config: Config | str, preset: str | None = None, seed: int | None = None) -> Path:
        """Folder of a student, with what it needs.

        ``preset`` (a name or a YAML file) and ``seed`` are the task's own, when None.

        Raises:
            InputError: the configuration is malformed, or deeper or wider than the teacher; no such seed.
        """
        config = Config.parse(str(config))
        self.task.check_fits(config)
        preset = preset_named(preset) if preset else self.task.distill.preset
        folder = self.settings.student_folder(self.name, config, preset, seed)
        return self.made(folder, self._of_student(preset, seed), lambda: self._run("distill", config, preset, seed))

    def has_student(self, config: Config, preset: str, seed: int | None = None) -> bool:
        """Whether a student is there as the parameters want it; its teacher is made if it is missing."""
        folder = self.settings.student_folder(self.name, config, preset, seed)
        return is_made(folder, provenance_text(self._of_student(preset, seed)))

    def labels_of(self, preset: str) -> dict[str, str]:
        """The part of a student's provenance about pseudo-labels, which are made if it is trained on them."""
        asked = self.task.uses_pseudo_labels(preset)
        return {"pseudo_labels": load_labels_info(self.pseudo_labels())["sha256"]} if asked else {}

    def _of_student(self, preset: str, seed: int | None = None) -> dict[str, object]:
        distill = self.task.distillation(preset, seed)  # refuses a seed before anything is made
        return {
            **self.labels_of(preset),
            "teacher": _provenance_hash(self.teacher()),
            "distill": distill,
            "preset": repr(get_preset(preset)),
            "evaluate": self.task.evaluate,
            "code": code_hash(),
        }

    def _run(self, job: str, config: Config | None = None, preset: str | None = None, seed: int | None = None) -> None:
        """Run a job in this process, or on as many as the parameters say."""
        processes = self.settings.compute.processes
        if on_this_process(processes):
            from dqlib.study.pipeline.jobs import run_job  # torch and transformers are needed only now

            return run_job(self.settings, job, self.name, config, preset, seed)
        arguments = ["job", job, "--params", self.params, "--task", self.name]
        arguments += [] if config is None else ["--config", str(config)]
        arguments += [] if preset is None else ["--preset", file_of(preset)]
        arguments += [] if seed is None else ["--seed", str(seed)]
        return launch(arguments, processes)

    def _empty(self, folder: Path, block: str) -> Path:
        def make() -> None:
            with atomic_folder(folder):
                pass

        return self.made(folder, {block: None}, make)

    def made(self, folder: Path, provenance: Mapping[str, object], make: Callable[[], object]) -> Path:
        """A folder as it is to be: it is made unless what it was made from, as a file in it says, is just that.

        Raises:
            JobError: it belongs to another stage of the pipeline than the one that runs.
        """
        text = provenance_text(provenance)
        if not is_made(folder, text):
            check_owner(folder)
            make()
            write_text(folder / PROVENANCE, text)
        return folder


def check_owner(folder: Path) -> None:
    """Refuse to make, in a stage that DVC runs, what another stage owns: DVC would not know what it was made from.

    Raises:
        JobError: another stage of ``dvc.yaml`` has the folder among its outs.
    """
    running = os.environ.get("DVC_STAGE", "").rpartition(":")[2]  # set by DVC; from a subfolder, behind a path
    if not running:
        return
    from dvc.repo import Repo  # takes half a second, and is needed only here

    root = project_root()
    path = folder.relative_to(root)
    for stage in Repo(root).stage.load_all(root / "dvc.yaml"):
        if stage.name != running and any(path.is_relative_to(out.def_path) for out in stage.outs):
            raise JobError(
                f"{path} is missing, or made from other code or parameters, and is not made by the stage '{running}': "
                f"`dvc repro --force --single-item {stage.name}` makes it"
            )


def _description(folder: Path, corpus: S.Corpus) -> str:
    """Sizes of a built corpus, sources that the model will not read to their end, texts that train has too, classes."""
    info = load_info(folder)
    cut = sum(split["sources"] for split in info["truncated"].values())
    rows = sum(info["sizes"].values())
    sizes = ", ".join(f"{size:,} {split}" for split, size in info["sizes"].items())
    known = [
        f"{' and '.join(f'{100 * share:.1f}% of {name}' for name, share in part.items())} in {split}"
        for split, part in info["in_train"].items()
    ]
    lines = [f"{rows:,} {'documents' if not info['truncated'] else 'pairs'} ({sizes})"]
    if info["truncated"]:
        lines[0] += f"; {cut:,} sources are longer than {corpus.source_tokens} tokens and will be cut"
    lines.append(f"in train, too, whole or nearly so: {'; '.join(known)}")
    for split, counts in info.get("balance", {}).items():
        shares = ", ".join(f"{100 * count / info['sizes'][split]:.1f}% {label}" for label, count in counts.items())
        lines.append(f"classes in {split}: {shares}")
    return "\n".join(lines)


def _provenance_hash(folder: Path) -> str:
    return hashlib.sha256((folder / PROVENANCE).read_bytes()).hexdigest()
