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

from dqlib.config import Configuration
from dqlib.presets import preset
from dqlib.study import settings as S
from dqlib.study.command import ended
from dqlib.study.corpus import build_corpus, load_info, source_digests
from dqlib.study.launch import JobError, launch
from dqlib.study.paths import project_root, write_text
from dqlib.study.settings import Settings, load_settings
from dqlib.study.versions import code_hash

STAMP = "made_from.json"


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

        What is known of it is printed when it is built.

        Raises:
            InputError: a file that it is read from is missing.
        """
        spec, made_from, tokenizer = self.task.corpus, {"corpus": self.task.corpus}, None
        if files := source_digests(spec):  # no key for other sources: their stamps stay what they were
            made_from["files"] = files
        if self.base:
            made_from["base"] = _stamp(self.base.corpus())
            tokenizer = self.base.folders.corpus / "tokenizer"

        def build() -> None:
            build_corpus(spec, self.folders.corpus, tokenizer)
            print(describe_corpus(self.folders.corpus, spec), flush=True)

        return self._made(self.folders.corpus, made_from, build)

    def pretrained(self) -> Path | None:
        """Folder of the pre-trained model, with what it needs; None where the teacher starts from random weights."""
        if self.base:
            return self.base.pretrained()
        if self.settings.pretrained_folder(self.name) is None:
            return None
        corpus = self.corpus()
        made_from = {"corpus": _stamp(corpus), "model": self.task.model, "pretrain": self.task.pretrain}
        return self._made(self.folders.pretrained, made_from, lambda: self._launch("pretrain"))

    def teacher(self) -> Path:
        """Folder of the teacher, with what it needs."""
        pretrained = self.pretrained()
        made_from = {"finetune": self.task.finetune, "evaluate": self.task.evaluate}
        if pretrained is not None:
            made_from["pretrained"] = _stamp(pretrained)
        if pretrained != self.folders.pretrained:  # else they are among what that was made from
            made_from |= {"corpus": _stamp(self.corpus()), "model": self.task.model}
        return self._made(self.folders.teacher, made_from, lambda: self._launch("finetune"))

    def student(self, config: str, method: str | None = None) -> Path:
        """Folder of a student, with what it needs.

        Args:
            config: of the student.
            method: preset; the task's own, when None.

        Raises:
            InputError: the configuration is malformed, or deeper than the teacher.
        """
        configuration = Configuration.parse(config)
        configuration.check_fits(self.task.model.encoder_layers, self.task.model.decoder_layers)
        method = method or self.task.distill.preset
        folder, made_from = self.student_folder(configuration, method), self._student_from(method)
        return self._made(folder, made_from, lambda: self._launch("distill", str(configuration), method))

    def student_folder(self, configuration: Configuration, method: str) -> Path:
        """Where a student is, or will be."""
        return self.folders.student(configuration.slug, None if method == self.task.distill.preset else method)

    def has_student(self, configuration: Configuration, method: str) -> bool:
        """Whether a student is there as the parameters want it; its teacher is made if it is missing."""
        return _is_made(self.student_folder(configuration, method), self._student_from(method))

    def _student_from(self, method: str) -> dict:
        return {
            "teacher": _stamp(self.teacher()),
            "distill": dataclasses.replace(self.task.distill, preset=method),
            "preset": repr(preset(method)),
            "evaluate": self.task.evaluate,
            "code": code_hash(),
        }

    def _launch(self, job: str, config: str | None = None, method: str | None = None) -> None:
        launch(self.settings, self.params, job, self.name, config, method)

    def _made(self, folder: Path, made_from: dict, make: Callable[[], None]) -> Path:
        if not _is_made(folder, made_from):
            check_owner(folder)
            make()
            write_text(folder / STAMP, stamp_text(made_from))
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


def stamp_text(made_from: dict) -> str:
    """What a folder was made from, as the text of its stamp."""
    return json.dumps(made_from, default=_plain, sort_keys=True, indent=1)


def describe_corpus(folder: Path, corpus: S.Corpus) -> str:
    """Sizes of a built corpus, documents that the model will not read to their end, texts that train has too."""
    info = load_info(folder)
    cut = sum(split["documents"] for split in info["truncated"].values())
    pairs = sum(info["sizes"].values())
    sizes = ", ".join(f"{size:,} {split}" for split, size in info["sizes"].items())
    known = [
        f"{100 * part['documents']:.1f}% of documents and {100 * part['summaries']:.1f}% of summaries in {split}"
        for split, part in info["in_train"].items()
    ]
    return (
        f"{pairs:,} pairs ({sizes}); {cut:,} documents are longer than {corpus.source_tokens} tokens and will be cut\n"
        f"in train, too, whole or nearly so: {'; '.join(known)}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Make one part of the study: ``python -m dqlib.study.pipeline corpus``."""
    parser = argparse.ArgumentParser(prog="python -m dqlib.study.pipeline", description=main.__doc__)
    parser.add_argument("part", choices=["corpus", "pretrained", "teacher", "student"])
    parser.add_argument("--params", default="params.yaml", help="parameter file, or name of a profile")
    parser.add_argument("--task", default="summarization")
    parser.add_argument("--config", help="configuration of a student, such as '2-2-8 2-1'")
    options = parser.parse_args(arguments)

    def run() -> None:
        study = Study(options.params, options.task)
        folder = study.student(options.config) if options.part == "student" else getattr(study, options.part)()
        print(f"{options.part}: {folder.relative_to(project_root()) if folder else 'none; the teacher starts anew'}")

    return ended(run)


def _is_made(folder: Path, made_from: dict) -> bool:
    stamp = folder / STAMP
    return stamp.is_file() and stamp.read_text() == stamp_text(made_from)


def _stamp(folder: Path) -> str:
    return hashlib.sha256((folder / STAMP).read_bytes()).hexdigest()


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
