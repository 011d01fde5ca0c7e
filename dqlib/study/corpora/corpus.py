"""Corpora: pairs in three splits, on disk as JSON Lines with their SHA-256, and their tokenizer."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

from transformers import PreTrainedTokenizerFast

from dqlib.errors import InputError
from dqlib.files import atomic_folder
from dqlib.languages import language_id
from dqlib.study.corpora import files, hub
from dqlib.study.corpora.classes import classes
from dqlib.study.corpora.rows import Row, Rows, write_rows
from dqlib.study.corpora.splits import SPLITS, UNSEEN, in_train, lengths, of_train_alone
from dqlib.study.corpora.tokenizer import checked_tokenizer, set_source_language, train_tokenizer
from dqlib.study.params import settings as S
from dqlib.study.params.checkpoint import fetching, located
from dqlib.study.params.corpus import EMBEDDED
from dqlib.study.params.kinds import KINDS, SEQ2SEQ


@dataclass(frozen=True)
class LoadedCorpus:
    """A built corpus: rows with ``source`` and ``target`` by split, the tokenizer, and what is known of it.

    In a translation each row has a ``language``, that of its ``target``. In a classification the ``target`` is one of
    the ``labels``, and there may be a ``second`` text; in language modelling there is none. Rows are read when they are
    asked for.
    """

    splits: dict[str, Rows]
    tokenizer: PreTrainedTokenizerFast
    info: dict
    folder: Path

    @property
    def labels(self) -> list[str]:
        """Classes in the order of a model's logits; none, where targets are texts."""
        return self.info.get("labels", [])

    def test_sets(self, documents: int | None = None) -> dict[str, Rows]:
        """The first so many rows of every test set (None for all), by name."""
        return {name: self.splits[name][:documents] for name in ("test", UNSEEN) if name in self.splits}

    def test_rows(self, documents: int | None = None) -> list[Row]:
        """The rows of :meth:`test_sets` one after the other, each with its ``test_set``."""
        return [row | {"test_set": name} for name, each in self.test_sets(documents).items() for row in each]


def build_corpus(
    corpus: S.Corpus, folder: str | Path, tokenizer_folder: str | Path | None = None, kind: str = SEQ2SEQ
) -> None:
    """Make the splits and the tokenizer and write them to a folder; the same inputs give the same bytes.

    ``tokenizer_folder`` is of another corpus, whose tokenizer this one is to use; ``kind`` is the task's.

    Raises:
        InputError: a file, column, package or locale is missing or bad, a language has no token in a ready
            tokenizer, a split is empty, or classes are not those of train.
    """
    form = KINDS[kind]
    made = _origin(corpus).build(corpus, *([] if corpus.origin == "embedded" else [form]))
    with atomic_folder(folder) as scratch:
        digest = hashlib.sha256()
        splits = {split: write_rows(rows, scratch / f"{split}.jsonl", digest) for split, rows in made.items()}
        for split, rows in splits.items():
            if not rows:
                raise InputError(f"corpus.{split}", 0, "a split with at least one pair; allow more pairs or packages")
        of_classes = classes(splits, partial(_place, corpus, form), corpus.labels) if form.labels else {}
        tokenizer = _tokenizer(corpus, splits["train"], tokenizer_folder, form)
        tokenizer.save_pretrained(scratch / "tokenizer")
        shared = {name: in_train(splits, name) for name in _texts(form, splits["train"])}
        info = {
            "name": corpus.name,
            "kind": kind,
            "origin": corpus.origin,
            "sha256": digest.hexdigest(),
            "sizes": {split: len(rows) for split, rows in splits.items()},
            **lengths(splits, tokenizer, corpus, form),
            **{f"{name}_overlap": parts["test"][0] for name, parts in shared.items()},
            "in_train": {
                split: {f"{name}s": parts[split][1] for name, parts in shared.items()} for split in shared["source"]
            },
            **of_classes,
        }
        (scratch / "corpus.json").write_text(json.dumps(info, indent=2) + "\n")


def load_corpus(folder: str | Path) -> LoadedCorpus:
    """Read a corpus that :func:`build_corpus` wrote."""
    folder = Path(folder)
    paths = {split: folder / f"{split}.jsonl" for split in (*SPLITS, UNSEEN)}
    splits = {split: Rows(path) for split, path in paths.items() if split in SPLITS or path.is_file()}
    info = load_info(folder)
    tokenizer = checked_tokenizer(folder / "tokenizer", kind=KINDS[info.get("kind", SEQ2SEQ)])
    return LoadedCorpus(splits, tokenizer, info, folder)


def load_info(folder: str | Path) -> dict:
    """What is known of a built corpus: name, sizes, SHA-256, texts that are cut, and those that train has too."""
    return json.loads((Path(folder) / "corpus.json").read_text())


def unpaired_rows(spec: S.Task, corpus: LoadedCorpus) -> Iterator[Row]:
    """Texts that are in no pair of a corpus, for a teacher to label: rows with ``source`` and their language.

    Each is there once, and none repeats what is held out (:func:`dqlib.study.corpora.splits.of_train_alone`).

    Raises:
        InputError: they cannot be read.
    """
    module = _origin(spec.corpus)
    where = () if spec.corpus.origin == "embedded" else (spec.pseudo_labels.unpaired,)
    return of_train_alone(module.unpaired(spec.corpus, *where), corpus.splits)


def _origin(corpus: S.Corpus) -> ModuleType:
    """The module that has the rows of a corpus: in ``build`` those of every split, in ``unpaired`` texts in no pair."""
    made = {"files": files, "hub": hub}
    return made.get(corpus.origin) or importlib.import_module(EMBEDDED[corpus.name].module)


def _place(corpus: S.Corpus, kind: S.Kind, split: str, number: int) -> str:
    """Where a row of a split is, counted from 0."""
    if corpus.origin == "files":
        return files.place_of(corpus, kind, split, number)
    return f"corpus.{split}, row {number + 1}"


def _texts(kind: S.Kind, rows: Sequence[Row]) -> list[str]:
    """Our names for the columns of texts."""
    return [name for name in kind.columns if name in rows[0] and not (kind.labels and name == "target")]


def _tokenizer(
    corpus: S.Corpus, train: Sequence[Row], folder: str | Path | None, kind: S.Kind
) -> PreTrainedTokenizerFast:
    """The tokenizer of that folder, the ready one that the corpus names, or one trained on the training split."""
    if folder is not None:
        tokenizer = checked_tokenizer(folder, kind=kind)
    elif corpus.tokenizer is not None:
        with fetching("corpus.tokenizer", corpus.tokenizer):
            tokenizer = checked_tokenizer(*located(corpus.tokenizer, corpus.tokenizer_revision), kind)
    else:
        names = _texts(kind, train)
        texts = (row[name] for row in train for name in names)
        longest = max(corpus.source_tokens, corpus.target_tokens)
        return train_tokenizer(texts, corpus.vocab_size, longest, corpus.languages, kind)
    set_source_language(tokenizer, corpus.source_language)
    for language in corpus.languages if corpus.start is None else ():
        language_id(tokenizer, language)
    return tokenizer
