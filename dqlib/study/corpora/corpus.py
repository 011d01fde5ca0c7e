"""Corpora: pairs in three splits, on disk as JSON Lines with their SHA-256, and their tokenizer."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from dqlib.errors import InputError
from dqlib.files import atomic_folder
from dqlib.languages import language_id
from dqlib.study.corpora import files, hub
from dqlib.study.corpora.rows import Row, Rows, write_rows
from dqlib.study.corpora.splits import SPLITS, UNSEEN, in_train, of_train_alone, truncated
from dqlib.study.corpora.tokenizer import load_tokenizer, set_source_language, train_tokenizer
from dqlib.study.params import settings as S
from dqlib.study.params.checkpoint import fetching, located
from dqlib.study.params.corpus import EMBEDDED


@dataclass(frozen=True)
class LoadedCorpus:
    """A built corpus: rows with ``source`` and ``target`` by split, the tokenizer, and what is known of it.

    In a translation each row has a ``language``, that of its ``target``. Rows are read when they are asked for.
    """

    splits: dict[str, Rows]
    tokenizer: PreTrainedTokenizerFast
    info: dict
    folder: Path

    def test_sets(self, documents: int | None = None) -> dict[str, Rows]:
        """The first so many rows of every test set (None for all), by name."""
        return {name: self.splits[name][:documents] for name in ("test", UNSEEN) if name in self.splits}


def build_corpus(corpus: S.Corpus, folder: str | Path, tokenizer_folder: str | Path | None = None) -> None:
    """Make the splits and the tokenizer and write them to a folder; the same inputs give the same bytes.

    Args:
        corpus: what to build.
        folder: where to.
        tokenizer_folder: of another corpus, whose tokenizer this one is to use.

    Raises:
        InputError: a file, column, package or locale is missing or bad, a language has no token in a ready
            tokenizer, or a split is empty.
    """
    made = _rows_of_splits(corpus)
    with atomic_folder(folder) as scratch:
        digest = hashlib.sha256()
        splits = {split: write_rows(rows, scratch / f"{split}.jsonl", digest) for split, rows in made.items()}
        for split, rows in splits.items():
            if not rows:
                raise InputError(f"corpus.{split}", 0, "a split with at least one pair; allow more pairs or packages")
        tokenizer = _tokenizer(corpus, splits["train"], tokenizer_folder)
        tokenizer.save_pretrained(scratch / "tokenizer")
        sources, targets = (in_train(splits, column) for column in ("source", "target"))
        info = {
            "name": corpus.name,
            "origin": corpus.origin,
            "sha256": digest.hexdigest(),
            "sizes": {split: len(rows) for split, rows in splits.items()},
            "truncated": truncated(splits, tokenizer, corpus),
            "source_overlap": sources["test"][0],
            "target_overlap": targets["test"][0],
            "in_train": {split: {"sources": sources[split][1], "targets": targets[split][1]} for split in sources},
        }
        (scratch / "corpus.json").write_text(json.dumps(info, indent=2) + "\n")


def load_corpus(folder: str | Path) -> LoadedCorpus:
    """Read a corpus that :func:`build_corpus` wrote."""
    folder = Path(folder)
    paths = {split: folder / f"{split}.jsonl" for split in (*SPLITS, UNSEEN)}
    splits = {split: Rows(path) for split, path in paths.items() if split in SPLITS or path.is_file()}
    return LoadedCorpus(splits, load_tokenizer(folder / "tokenizer"), load_info(folder), folder)


def load_info(folder: str | Path) -> dict:
    """What is known of a built corpus: name, sizes, SHA-256, texts that are cut, and those that train has too."""
    return json.loads((Path(folder) / "corpus.json").read_text())


def unpaired_rows(spec: S.Task, corpus: LoadedCorpus) -> Iterator[Row]:
    """Texts that are in no pair of a corpus, for a teacher to label: rows with ``source`` and their language.

    Each is there once, and none repeats what is held out (:func:`dqlib.study.corpora.splits.of_train_alone`).

    Raises:
        InputError: they cannot be read.
    """
    origin, where = spec.corpus.origin, spec.pseudo_labels.unpaired or ""
    if origin == "embedded":
        rows = importlib.import_module(EMBEDDED[spec.corpus.name].module).unpaired(spec.corpus)
    else:
        rows = files.unpaired(spec.corpus, where) if origin == "files" else hub.unpaired(spec.corpus, where)
    return of_train_alone(rows, corpus.splits)


def _rows_of_splits(corpus: S.Corpus) -> Mapping[str, Iterable[Row]]:
    """The rows of every split, from where the parameters say."""
    if corpus.origin == "embedded":
        return importlib.import_module(EMBEDDED[corpus.name].module).build(corpus)
    return files.build(corpus) if corpus.origin == "files" else hub.build(corpus)


def _tokenizer(corpus: S.Corpus, train: Sequence[Row], folder: str | Path | None) -> PreTrainedTokenizerFast:
    """The tokenizer of that folder, the ready one that the corpus names, or one trained on the training split."""
    if folder is not None:
        tokenizer = load_tokenizer(folder)
    elif corpus.tokenizer is not None:
        with fetching("corpus.tokenizer", corpus.tokenizer):
            tokenizer = load_tokenizer(*located(corpus.tokenizer, corpus.tokenizer_revision))
    else:
        texts = (text for row in train for text in (row["source"], row["target"]))
        longest = max(corpus.source_tokens, corpus.target_tokens)
        return train_tokenizer(texts, corpus.vocab_size, longest, corpus.languages)
    set_source_language(tokenizer, corpus.source_language)
    for language in corpus.languages:
        language_id(tokenizer, language)
    return tokenizer
