"""Corpora: pairs in three splits, on disk as JSON Lines with their SHA-256, and their tokenizer."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from dqlib.errors import InputError
from dqlib.files import atomic_folder
from dqlib.languages import language_id
from dqlib.study.corpora.cldr import phrases
from dqlib.study.corpora.files import files_of, read_rows
from dqlib.study.corpora.hub import fetching, hub_rows, located
from dqlib.study.corpora.pydoc import build_pairs
from dqlib.study.corpora.pydoc_qa import build_answers
from dqlib.study.corpora.rows import Row, Rows
from dqlib.study.corpora.tokenizer import load_tokenizer, set_source_language, train_tokenizer
from dqlib.study.params import settings as S

SPLITS = ("train", "validation", "test")
#: A second test set, which only some corpora have; that of CLDR has names that training has never seen.
UNSEEN = "test_unseen"

#: Of a hundred groups of the embedded corpus, this many go to validation and to test.
VALIDATION_PERCENT, TEST_PERCENT = 4, 5

#: Phrases drawn for each that is wanted before the corpus is said to be too large (some kinds have few).
MOST_DRAWS = 20

#: Texts that are tokenized at a time to be counted.
COUNTED = 500


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
    made = {"embedded": _embedded, "files": _from_files, "hub": _from_hub}[corpus.origin](corpus)
    with atomic_folder(folder) as scratch:
        digest = hashlib.sha256()
        splits = {split: _written(rows, scratch / f"{split}.jsonl", digest) for split, rows in made.items()}
        for split, rows in splits.items():
            if not rows:
                raise InputError(f"corpus.{split}", 0, "a split with at least one pair; allow more pairs or packages")
        tokenizer = _tokenizer(corpus, splits["train"], tokenizer_folder)
        tokenizer.save_pretrained(scratch / "tokenizer")
        info = {
            "name": corpus.name,
            "origin": corpus.origin,
            "sha256": digest.hexdigest(),
            "sizes": {split: len(rows) for split, rows in splits.items()},
            "truncated": _truncated(splits, tokenizer, corpus),
            "source_overlap": _overlap(splits, "source"),
            "target_overlap": _overlap(splits, "target"),
        }
        (scratch / "corpus.json").write_text(json.dumps(info, indent=2) + "\n")


def file_digests(corpus: S.Corpus) -> dict[str, list[str]]:
    """SHA-256 of the files that each split is read from; nothing for corpora that are not from files.

    Raises:
        InputError: a file is missing.
    """
    if corpus.origin != "files":
        return {}
    files = {split: files_of(path, _columns(corpus)) for split, path in _named_files(corpus).items()}
    return {split: [_digest(path, *_last_change(path)) for path in paths] for split, paths in files.items()}


def _last_change(path: Path) -> tuple[int, int]:
    """Size of a file, and when it was changed last, in nanoseconds."""
    told = path.stat()
    return told.st_size, told.st_mtime_ns


@cache
def _digest(path: Path, *_: int) -> str:
    """SHA-256 of a file, computed once for each of its changes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_corpus(folder: str | Path) -> LoadedCorpus:
    """Read a corpus that :func:`build_corpus` wrote."""
    folder = Path(folder)
    files = {split: folder / f"{split}.jsonl" for split in (*SPLITS, UNSEEN)}
    splits = {split: Rows(file) for split, file in files.items() if split in SPLITS or file.is_file()}
    return LoadedCorpus(splits, load_tokenizer(folder / "tokenizer"), load_info(folder), folder)


def load_info(folder: str | Path) -> dict:
    """What is known of a built corpus: name, sizes, SHA-256, truncated texts, overlap of test with train."""
    return json.loads((Path(folder) / "corpus.json").read_text())


def split_of(group: str) -> str:
    """Split of a content group: a hash decides, so that a module is in one split, here and everywhere."""
    percent = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) % 100
    if percent < TEST_PERCENT:
        return "test"
    return "validation" if percent < TEST_PERCENT + VALIDATION_PERCENT else "train"


def _written(rows: Iterable[Row], path: Path, digest: hashlib._Hash) -> Rows:
    """Write rows to a file, one after the other, and add its bytes to a digest."""
    with path.open("wb") as file:
        for row in rows:
            line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
            digest.update(line)
            file.write(line)
    return Rows(path)


def _tokenizer(corpus: S.Corpus, train: Sequence[Row], folder: str | Path | None) -> PreTrainedTokenizerFast:
    """The tokenizer of that folder, the ready one that the corpus names, or one trained on the training split."""
    if folder is None and corpus.tokenizer is None:
        texts = (text for row in train for text in (row["source"], row["target"]))
        longest = max(corpus.source_tokens, corpus.target_tokens)
        return train_tokenizer(texts, corpus.vocab_size, longest, corpus.languages)
    if folder is not None:
        tokenizer = load_tokenizer(folder)
    else:
        with fetching("corpus.tokenizer", corpus.tokenizer):
            tokenizer = load_tokenizer(*located(corpus.tokenizer, corpus.tokenizer_revision))
    set_source_language(tokenizer, corpus.source_language)
    for language in corpus.languages:
        language_id(tokenizer, language)
    return tokenizer


def _embedded(corpus: S.Corpus) -> dict[str, list[Row]]:
    if corpus.name == "cldr":
        return _translations(corpus)
    build = {"pydoc": build_pairs, "pydoc-qa": build_answers}[corpus.name]
    pairs = build(corpus.packages, processes=S.available_cores())
    # In the order of a hash, so that the first so many of a split are an even sample over all packages.
    pairs.sort(key=lambda pair: hashlib.sha256(f"{pair.name} {pair.target}".encode()).digest())
    pairs = pairs[: corpus.limit]
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for pair in pairs:
        row = {"group": pair.group, "name": pair.name, "source": pair.source, "target": pair.target}
        splits[split_of(pair.group)].append(row)
    return splits


def _translations(corpus: S.Corpus) -> dict[str, list[Row]]:
    """``limit`` phrases in three splits, and as many with unseen names as a test split has; each once."""
    splits: dict[str, list[Row]] = {split: [] for split in (*SPLITS, UNSEEN)}
    split_with: dict[str, str] = {}  # of each English text, so that none is in two splits
    unseen = corpus.limit * TEST_PERCENT // 100
    for wanted, of_unseen in ((corpus.limit, False), (unseen, True)):
        seen: set[tuple[str, str]] = set()
        drawn = phrases(corpus.languages, corpus.seed, of_unseen)
        for row in itertools.islice(drawn, MOST_DRAWS * wanted):
            split = UNSEEN if of_unseen else split_of(row["group"])
            key = row["language"], row["source"]
            if key not in seen and split_with.setdefault(row["source"], split) == split:
                seen.add(key)
                splits[split].append(row)
            if len(seen) == wanted:
                break
        else:
            raise InputError("corpus.limit", corpus.limit, "fewer: there are not so many different phrases")
    return splits


def _from_files(corpus: S.Corpus) -> dict[str, list[Row]]:
    return {
        split: [
            _named(row[corpus.source], row[corpus.target], row.get(corpus.language), corpus, path)
            for row in read_rows(path, _columns(corpus))[: corpus.limit]
        ]
        for split, path in _named_files(corpus).items()
    }


def _named_files(corpus: S.Corpus) -> dict[str, str]:
    """Path of each split's file, as the parameters have it."""
    return {split: getattr(corpus, split) for split in (*SPLITS, UNSEEN) if getattr(corpus, split)}


def _columns(corpus: S.Corpus) -> list[str]:
    return [corpus.source, corpus.target, *([corpus.language] if corpus.language else [])]


def _named(source: str, target: str, language: str | None, corpus: S.Corpus, path: str) -> Row:
    """A row of a file or of the hub under our names for its columns, with its language where there are any."""
    named = {"source": source.strip(), "target": target.strip()}
    if corpus.languages:
        named["language"] = language if corpus.language else corpus.languages[0]
        if named["language"] not in corpus.languages:
            allowed = f"one of {', '.join(corpus.languages)}, the languages that have a token"
            raise InputError(f"{path}, column {corpus.language}", named["language"], allowed)
    return named


def _from_hub(corpus: S.Corpus) -> dict[str, Iterator[Row]]:
    texts = {name: hub_rows(corpus, getattr(corpus, name) or name) for name in SPLITS}
    rows = {
        name: (_named(*texts_of_row, corpus, corpus.dataset) for texts_of_row in each) for name, each in texts.items()
    }
    return {
        name: itertools.islice((row for row in each if row["source"] and row["target"]), corpus.limit)
        for name, each in rows.items()
    }


def _truncated(
    splits: Mapping[str, Sequence[Row]], tokenizer: PreTrainedTokenizerFast, corpus: S.Corpus
) -> dict[str, dict[str, int]]:
    """How many sources and targets of each split are longer than the model reads."""

    def longer(rows: Sequence[Row], column: str, most: int) -> int:
        texts, count = (row[column] for row in rows), 0
        while some := list(itertools.islice(texts, COUNTED)):
            count += sum(len(ids) > most for ids in tokenizer(some, verbose=False)["input_ids"])
        return count

    return {
        split: {
            "sources": longer(rows, "source", corpus.source_tokens),
            "targets": longer(rows, "target", corpus.target_tokens),
        }
        for split, rows in splits.items()
    }


def _overlap(splits: Mapping[str, Sequence[Row]], column: str, n: int = 8) -> float:
    """Part of the test texts that share a run of ``n`` words with a train text at half or more of theirs."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = [sys.intern(word) for word in text.lower().split(": ", 1)[-1].split()]
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    own = [runs(row[column]) for row in splits["test"]]
    wanted = set().union(*own)
    train: set[tuple[str, ...]] = set()
    for row in splits["train"]:
        train |= runs(row[column]) & wanted
    shared = sum(bool(each) and len(each & train) >= len(each) / 2 for each in own)
    return round(shared / len(own), 4)
