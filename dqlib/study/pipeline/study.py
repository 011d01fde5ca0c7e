"""What a notebook asks for, made once: the corpus, the teacher, a student.

Under DVC each stage makes its own part and finds the others made, or fails. In a notebook that is opened by hand
the same calls make whatever is missing, with the small tutorial profile in well under a minute.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from dqlib.config import Config
from dqlib.presets import get_preset
from dqlib.study.corpora.corpus import build_corpus, load_info, source_digests
from dqlib.study.params import settings as S
from dqlib.study.params.paths import project_root, write_text
from dqlib.study.params.settings import Settings, load_settings
from dqlib.study.pipeline.identity import code_hash
from dqlib.study.process.exit_codes import ended
from dqlib.study.process.launch import JobError, launch

STAMP = "provenance.json"


class Study:
    """One task under one parameter file.

    Args:
        params: a parameter file, or the name of a profile.
        task: name of the experiment.

    Raises:
        InputError: a parameter is not allowed.
    """

    def __init__(self, params: str = "tutorial", task: str = "summarization") -> None:
        self.params = params
        self.settings: Settings = load_settings(params)
        self.name = task
        self.task = self.settings.task(task)
        self.folders = self.settings.folders(task)
        base = self.task.model.base_task
        #: The study of the task whose pre-trained model and tokenizer this one uses.
        self.base = Study(params, base) if base else None

    def corpus(self) -> Path:
        """Folder of the corpus, built if it is missing, or its parameters or the files that it is read from changed.

        Raises:
            InputError: a file that it is read from is missing.
        """
        spec, provenance, tokenizer = self.task.corpus, {"corpus": self.task.corpus}, None
        if files := source_digests(spec):  # no key for other sources: their stamps stay what they were
            provenance["files"] = files
        if self.base:
            provenance["base"] = _stamp(self.base.corpus())
            tokenizer = self.base.folders.corpus / "tokenizer"
        return self._made(self.folders.corpus, provenance, lambda: build_corpus(spec, self.folders.corpus, tokenizer))

    def pretrained(self) -> Path | None:
        """Folder of the pre-trained model, with what it needs; None where the teacher starts from random weights."""
        if self.base:
            return self.base.pretrained()
        if self.settings.pretrained_folder(self.name) is None:
            return None
        corpus = self.corpus()
        provenance = {"corpus": _stamp(corpus), "model": self.task.model, "pretrain": self.task.pretrain}
        return self._made(self.folders.pretrained, provenance, lambda: self._launch("pretrain"))

    def teacher(self) -> Path:
        """Folder of the teacher, with what it needs."""
        pretrained = self.pretrained()
        provenance = {"finetune": self.task.finetune, "evaluate": self.task.evaluate}
        if pretrained is not None:
            provenance["pretrained"] = _stamp(pretrained)
        if pretrained != self.folders.pretrained:  # else they are among what that was made from
            provenance |= {"corpus": _stamp(self.corpus()), "model": self.task.model}
        return self._made(self.folders.teacher, provenance, lambda: self._launch("finetune"))

    def student(self, config: str, preset: str | None = None) -> Path:
        """Folder of a student, with what it needs.

        Args:
            config: of the student.
            preset: preset; the task's own, when None.

        Raises:
            InputError: the configuration is malformed, or deeper than the teacher.
        """
        config = Config.parse(config)
        config.check_fits(self.task.model.encoder_layers, self.task.model.decoder_layers)
        preset = preset or self.task.distill.preset
        folder, provenance = self.student_folder(config, preset), self._student_from(preset)
        return self._made(folder, provenance, lambda: self._launch("distill", str(config), preset))

    def student_folder(self, config: Config, preset: str) -> Path:
        """Where a student is, or will be."""
        return self.folders.student(config.slug, None if preset == self.task.distill.preset else preset)

    def has_student(self, config: Config, preset: str) -> bool:
        """Whether a student is there as the parameters want it; its teacher is made if it is missing."""
        return _is_made(self.student_folder(config, preset), self._student_from(preset))

    def _student_from(self, preset: str) -> dict:
        return {
            "teacher": _stamp(self.teacher()),
            "distill": dataclasses.replace(self.task.distill, preset=preset),
            "preset": repr(get_preset(preset)),
            "evaluate": self.task.evaluate,
            "code": code_hash(),
        }

    def _launch(self, job: str, config: str | None = None, preset: str | None = None) -> None:
        launch(self.settings, self.params, job, self.name, config, preset)

    def _made(self, folder: Path, provenance: dict, make: Callable[[], None]) -> Path:
        if not _is_made(folder, provenance):
            check_owner(folder)
            make()
            write_text(folder / STAMP, stamp_text(provenance))
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
            told = f"{path} is missing, or made from other code or parameters, and is not made by the stage '{running}'"
            raise JobError(f"{told}: `dvc repro --force --single-item {stage.name}` makes it")


def stamp_text(provenance: dict) -> str:
    """What a folder was made from, as the text of its stamp."""
    return json.dumps(provenance, default=_plain, sort_keys=True, indent=1)


def describe_corpus(folder: Path, corpus: S.Corpus) -> str:
    """Sizes of a built corpus, and how many of its documents the model will not read to their end."""
    info = load_info(folder)
    cut = sum(split["documents"] for split in info["truncated"].values())
    pairs = sum(info["sizes"].values())
    sizes = ", ".join(f"{size:,} {split}" for split, size in info["sizes"].items())
    return f"{pairs:,} pairs ({sizes}); {cut:,} documents are longer than {corpus.source_tokens} tokens and will be cut"


def main(arguments: list[str] | None = None) -> int:
    """Make one part of the study: ``python -m dqlib.study.pipeline.study corpus``."""
    parser = argparse.ArgumentParser(prog="python -m dqlib.study.pipeline.study", description=main.__doc__)
    parser.add_argument("part", choices=["corpus", "pretrained", "teacher", "student"])
    parser.add_argument("--params", default="params.yaml", help="parameter file, or name of a profile")
    parser.add_argument("--task", default="summarization")
    parser.add_argument("--config", help="configuration of a student, such as '2-2-8 2-1'")
    options = parser.parse_args(arguments)

    def run() -> None:
        study = Study(options.params, options.task)
        folder = study.student(options.config) if options.part == "student" else getattr(study, options.part)()
        print(f"{options.part}: {folder.relative_to(project_root()) if folder else 'none; the teacher starts anew'}")
        if options.part == "corpus":
            print(describe_corpus(folder, study.task.corpus))

    return ended(run)


def _is_made(folder: Path, provenance: dict) -> bool:
    stamp = folder / STAMP
    return stamp.is_file() and stamp.read_text() == stamp_text(provenance)


def _stamp(folder: Path) -> str:
    return hashlib.sha256((folder / STAMP).read_bytes()).hexdigest()


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
