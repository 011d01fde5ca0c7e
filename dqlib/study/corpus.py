"""Corpora: pairs in three splits, on disk as JSON Lines with their SHA-256, and their tokenizer."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dqlib.errors import InputError
from dqlib.study import settings as S
from dqlib.study.cldr import phrases
from dqlib.study.paths import atomic_folder
from dqlib.study.pydoc import build_pairs
from dqlib.study.pydoc_qa import build_answers
from dqlib.study.sources import read_rows
from dqlib.study.tokenizer import language_id, train_tokenizer

SPLITS = ("train", "validation", "test")
#: The test set whose names training has never seen; only some corpora have it.
UNSEEN = "test_unseen"

#: Of a hundred groups of the embedded corpus, this many go to validation and to test.
VALIDATION_PERCENT, TEST_PERCENT = 4, 5

#: Phrases drawn for each that is wanted before the corpus is said to be too large (some kinds have few).
MOST_DRAWS = 20

Row = dict[str, str]


@dataclass(frozen=True)
class LoadedCorpus:
    """A built corpus: rows with ``document`` and ``summary`` by split, the tokenizer, and what is known of it.

    In a translation each row has a ``language``, that of its ``summary``.
    """

    splits: dict[str, list[Row]]
    tokenizer: PreTrainedTokenizerFast
    info: dict

    def test_sets(self, documents: int | None = None) -> dict[str, list[Row]]:
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
    splits = {"embedded": _embedded, "files": _from_files, "hub": _from_hub}[corpus.source](corpus)
    for split, rows in splits.items():
        if not rows:
            raise InputError(f"corpus.{split}", 0, "a split with at least one pair; allow more pairs or packages")
    tokenizer = _tokenizer(corpus, splits["train"], tokenizer_folder)
    with atomic_folder(folder) as scratch:
        digest = hashlib.sha256()
        for split in splits:
            data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in splits[split]).encode()
            digest.update(data)
            (scratch / f"{split}.jsonl").write_bytes(data)
        tokenizer.save_pretrained(scratch / "tokenizer")
        info = {
            "name": corpus.name,
            "source": corpus.source,
            "sha256": digest.hexdigest(),
            "sizes": {split: len(rows) for split, rows in splits.items()},
            "truncated": _truncated(splits, tokenizer, corpus),
            "overlap": _overlap(splits, "document"),
            "summary_overlap": _overlap(splits, "summary"),
        }
        (scratch / "corpus.json").write_text(json.dumps(info, indent=2) + "\n")


def load_corpus(folder: str | Path) -> LoadedCorpus:
    """Read a corpus that :func:`build_corpus` wrote."""
    folder = Path(folder)
    files = {split: folder / f"{split}.jsonl" for split in (*SPLITS, UNSEEN)}
    splits = {
        split: [json.loads(line) for line in file.read_bytes().splitlines()]
        for split, file in files.items()
        if split in SPLITS or file.is_file()
    }
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    return LoadedCorpus(splits, tokenizer, load_info(folder))


def load_info(folder: str | Path) -> dict:
    """What is known of a built corpus: name, sizes, SHA-256, truncated texts, overlap of test with train."""
    return json.loads((Path(folder) / "corpus.json").read_text())


def split_of(group: str) -> str:
    """Split of a content group: a hash decides, so that a module is in one split, here and everywhere."""
    percent = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) % 100
    if percent < TEST_PERCENT:
        return "test"
    return "validation" if percent < TEST_PERCENT + VALIDATION_PERCENT else "train"


def _tokenizer(corpus: S.Corpus, train: list[Row], folder: str | Path | None) -> PreTrainedTokenizerFast:
    """The tokenizer of that folder, the ready one that the corpus names, or one trained on the training split."""
    ready = folder or corpus.tokenizer
    if ready is None:
        texts = (text for row in train for text in (row["document"], row["summary"]))
        longest = max(corpus.source_tokens, corpus.target_tokens)
        return train_tokenizer(texts, corpus.vocab_size, longest, corpus.languages)
    tokenizer = AutoTokenizer.from_pretrained(ready)
    for language in corpus.languages:
        language_id(tokenizer, language)
    return tokenizer


def _embedded(corpus: S.Corpus) -> dict[str, list[Row]]:
    if corpus.name == "cldr":
        return _translations(corpus)
    build = {"pydoc": build_pairs, "pydoc-qa": build_answers}[corpus.name]
    pairs = build(corpus.packages, processes=S.available_cores())
    # In the order of a hash, so that the first so many of a split are an even sample over all packages.
    pairs.sort(key=lambda pair: hashlib.sha256(f"{pair.name} {pair.summary}".encode()).digest())
    pairs = pairs[: corpus.limit]
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for pair in pairs:
        row = {"group": pair.group, "name": pair.name, "document": pair.document, "summary": pair.summary}
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
            key = row["language"], row["document"]
            if key not in seen and split_with.setdefault(row["document"], split) == split:
                seen.add(key)
                splits[split].append(row)
            if len(seen) == wanted:
                break
        else:
            raise InputError("corpus.limit", corpus.limit, "fewer: there are not so many different phrases")
    return splits


def _from_files(corpus: S.Corpus) -> dict[str, list[Row]]:
    columns = [corpus.document, corpus.summary, *([corpus.language] if corpus.language else [])]
    paths = {split: getattr(corpus, split) for split in (*SPLITS, UNSEEN) if getattr(corpus, split)}
    return {
        split: [_named(row, corpus, path) for row in read_rows(path, columns)[: corpus.limit]]
        for split, path in paths.items()
    }


def _named(row: Row, corpus: S.Corpus, path: str) -> Row:
    """A row of a file or of the hub under our names for its columns, with its language where there are any."""
    named = {"document": row[corpus.document].strip(), "summary": row[corpus.summary].strip()}
    if corpus.languages:
        named["language"] = row[corpus.language] if corpus.language else corpus.languages[0]
        if named["language"] not in corpus.languages:
            allowed = f"one of {', '.join(corpus.languages)}, the languages that have a token"
            raise InputError(f"{path}, column {corpus.language}", named["language"], allowed)
    return named


def _from_hub(corpus: S.Corpus) -> dict[str, list[Row]]:
    import datasets  # slow to import, and needed here only

    splits = {}
    for split in SPLITS:
        try:
            data = datasets.load_dataset(corpus.dataset, corpus.dataset_config, split=split, revision=corpus.revision)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                "corpus.dataset",
                corpus.dataset,
                f"a dataset that can be reached; offline, save its splits and use source 'files' ({reason})",
            ) from None
        data = data.flatten()  # wmt16's pairs are one column of two: translation.en, translation.ro
        for column in filter(None, (corpus.document, corpus.summary, corpus.language)):
            if column not in data.column_names:
                raise InputError("corpus.column", column, f"one of {', '.join(data.column_names)}")
        rows = (_named(row, corpus, corpus.dataset) for row in data)
        splits[split] = [row for row in rows if row["document"] and row["summary"]][: corpus.limit]
    return splits


def _truncated(
    splits: dict[str, list[Row]], tokenizer: PreTrainedTokenizerFast, corpus: S.Corpus
) -> dict[str, dict[str, int]]:
    """How many documents and summaries of each split are longer than the model reads."""

    def longer(rows: list[Row], column: str, most: int) -> int:
        encoded = tokenizer([row[column] for row in rows], verbose=False)["input_ids"]
        return sum(len(ids) > most for ids in encoded)

    return {
        split: {
            "documents": longer(rows, "document", corpus.source_tokens),
            "summaries": longer(rows, "summary", corpus.target_tokens),
        }
        for split, rows in splits.items()
    }


def _overlap(splits: dict[str, list[Row]], column: str, n: int = 8) -> float:
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
