"""Making pseudo-labels: the teacher writes the targets of texts, in chunks that are shared by cores or accelerators.

On cores CTranslate2 writes, if it is installed and agrees with the teacher on the first texts; else PyTorch does. A
chunk that was written stays, so that what was stopped goes on with the next.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import torch

from dqlib.engines import export_model, load_engine
from dqlib.engines.agreement import agreement
from dqlib.engines.base import Engine
from dqlib.engines.torch_engine import TorchEngine
from dqlib.errors import InputError
from dqlib.files import atomic_file, write_text
from dqlib.storage.reading import read_model
from dqlib.study.corpora.corpus import LoadedCorpus, load_corpus, unpaired_rows
from dqlib.study.corpora.pseudo_labels import PARTS, write_labels
from dqlib.study.corpora.rows import Row, Rows, write_rows
from dqlib.study.params import settings as S
from dqlib.study.process.locks import only_maker
from dqlib.study.process.provenance import is_made
from dqlib.study.process.workers import Job, devices, run_all
from dqlib.study.training.batches import encode
from dqlib.study.training.checkpoints import weights_hash
from dqlib.study.training.examples import Example

#: Rows of one chunk.
CHUNK = 2000

#: Texts on which CTranslate2 has to agree with the teacher, and the share of its choices that has to be the same.
CHECKED, AGREED = 32, 0.98

_IDENTITY, _ENGINE, _TEXTS, _EXPORTED = "identity.json", "engine.json", "texts.jsonl", "ctranslate2"


@dataclass(frozen=True)
class _Labelling:
    """What the chunks of one task share; ``work`` is the folder of what is not finished."""

    settings: S.Settings
    task: str
    work: Path

    @property
    def spec(self) -> S.Task:
        return self.settings.task(self.task)

    def rows(self, corpus: LoadedCorpus) -> dict[str, Rows]:
        """The rows of both parts that the teacher is to label."""
        pairs = corpus.splits["train"][: self.spec.pseudo_labels.pairs]
        return dict(zip(PARTS, (pairs, Rows(self.work / _TEXTS)), strict=True))

    def ids(self, engine: Engine, examples: Sequence[Example]) -> list[list[int]]:
        """What an engine writes for examples, all in one batch."""
        engine.early_stopping = True  # the rule by which all engines end alike
        return engine.generate_ids(
            [example.source for example in examples],
            num_beams=self.spec.pseudo_labels.beams,
            max_new_tokens=min(self.spec.corpus.target_tokens, self.spec.model.max_positions - 1),
            starts=[example.start for example in examples],
        )

    def targets(self, engine: Engine, corpus: LoadedCorpus, rows: Sequence[Row]) -> list[str]:
        """What an engine writes for rows, as text and in their order; those of like length are read together."""
        examples = encode([{**row, "target": ""} for row in rows], corpus.tokenizer, self.spec.corpus)
        order = sorted(range(len(rows)), key=lambda i: len(examples[i].source))
        written = [""] * len(rows)
        size = self.spec.pseudo_labels.batch_size
        for batch in (order[first : first + size] for first in range(0, len(order), size)):
            ids = self.ids(engine, [examples[i] for i in batch])
            for i, text in zip(batch, corpus.tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
                written[i] = text.strip()
        return written


def make_pseudo_labels(settings: S.Settings, task: str, provenance: str) -> None:
    """Let a task's teacher write the targets of training pairs, and of texts in no pair where the corpus has such.

    Chunks that were made from anything else than ``provenance`` says are not taken up.

    Raises:
        BusyError: another run is making them.
        JobError: a chunk failed; those that were made stay.
    """
    folders = settings.folders(task)
    target, work = folders.pseudo_labels, folders.checkpoints(folders.pseudo_labels)
    labelling = _Labelling(settings, task, work)
    with only_maker(target, work.with_name(f"{work.name}.lock")):
        if not is_made(work, provenance, _IDENTITY):  # what is there is not finished, and of something else
            shutil.rmtree(work, ignore_errors=True)
            write_text(work / _IDENTITY, provenance)
        corpus = load_corpus(folders.corpus)
        if not (work / _TEXTS).is_file():
            _write_texts(labelling.spec, corpus, work / _TEXTS)
        if not (work / _ENGINE).is_file():
            write_text(work / _ENGINE, json.dumps(_chosen_engine(labelling, corpus)))
        firsts = {part: range(0, len(rows), CHUNK) for part, rows in labelling.rows(corpus).items()}
        missing = [(part, first) for part in PARTS for first in firsts[part] if not _chunk(work, part, first).is_file()]
        jobs = [Job(f"{part} from {first:,} on", _label, (labelling, part, first)) for part, first in missing]
        run_all(f"{task}: pseudo-labels", jobs)
        chunks = {part: [Rows(_chunk(work, part, first)) for first in firsts[part]] for part in PARTS}
        labelled = {part: chain.from_iterable(rows) for part, rows in chunks.items()}
        about = {"corpus": corpus.info["sha256"], **json.loads((work / _ENGINE).read_text())}
        write_labels(target, labelled, about)
        shutil.rmtree(work)


def _write_texts(spec: S.Task, corpus: LoadedCorpus, path: Path) -> None:
    """Write the texts in no pair that are to be labelled: none where the corpus has none.

    Raises:
        InputError: there should be some, and all of them are in pairs.
    """
    rows = list(islice(unpaired_rows(spec, corpus), spec.pseudo_labels.texts)) if spec.has_unpaired_text else []
    if spec.has_unpaired_text and not rows:
        where = spec.pseudo_labels.unpaired or f"the corpus '{spec.corpus.name}'"
        raise InputError("pseudo_labels.texts", 0, f"at least 1: {where} has no text that is in no pair")
    with atomic_file(path) as scratch:
        write_rows(rows, scratch, hashlib.sha256())


def _chosen_engine(labelling: _Labelling, corpus: LoadedCorpus) -> dict[str, object]:
    """The teacher's hash, and the engine that is to write, which is checked on the first pairs."""
    teacher = read_model(labelling.settings.folders(labelling.task).teacher)
    spec = labelling.spec
    settings = {"beams": spec.pseudo_labels.beams, "max_tokens": spec.corpus.target_tokens, "early_stopping": True}
    about: dict[str, object] = {"teacher": weights_hash(teacher), "engine": TorchEngine.name, "settings": settings}
    if devices():
        return about
    try:
        export_model(teacher, labelling.work / _EXPORTED, _EXPORTED)
        engine = load_engine(labelling.work / _EXPORTED, threads=1)
    except InputError as error:
        print(f"{labelling.task}: pseudo-labels are written by PyTorch: {error}", flush=True)
        return about
    first = encode(corpus.splits["train"][:CHECKED], corpus.tokenizer, spec.corpus)
    found = agreement(labelling.ids(TorchEngine(teacher), first), labelling.ids(engine, first))
    if found.part_of_choices < AGREED:
        print(f"{labelling.task}: pseudo-labels are written by PyTorch, since CTranslate2 differs: {found}", flush=True)
        return about
    return about | {"engine": engine.name, "agreement": str(found)}


def _label(labelling: _Labelling, part: str, first: int) -> None:
    """Write one chunk, in a worker."""
    folders, work = labelling.settings.folders(labelling.task), labelling.work
    corpus = load_corpus(folders.corpus)
    engine: Engine
    if json.loads((work / _ENGINE).read_text())["engine"] == _EXPORTED:
        engine = load_engine(work / _EXPORTED, threads=1)
    else:
        teacher = read_model(folders.teacher)
        engine = TorchEngine(teacher.to(torch.accelerator.current_accelerator()) if devices() else teacher)
    rows = labelling.rows(corpus)[part][first : first + CHUNK]
    targets = labelling.targets(engine, corpus, rows)
    with atomic_file(_chunk(work, part, first)) as scratch:
        labelled = ({**row, "target": target} for row, target in zip(rows, targets, strict=True))
        write_rows(labelled, scratch, hashlib.sha256())


def _chunk(work: Path, part: str, first: int) -> Path:
    """File of the chunk that begins with a row."""
    return work / f"{part}-{first:09d}.jsonl"
