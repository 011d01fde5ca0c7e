"""Corpora: pairs in three splits, on disk as JSON Lines with their SHA-256, and their tokenizer."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dqlib.errors import InputError
from dqlib.study import settings as S
from dqlib.study.paths import atomic_folder
from dqlib.study.pydoc import build_pairs
from dqlib.study.sources import read_rows
from dqlib.study.tokenizer import train_tokenizer

SPLITS = ("train", "validation", "test")

#: Of a hundred groups of the embedded corpus, this many go to validation and to test.
VALIDATION_PERCENT, TEST_PERCENT = 4, 5

Row = dict[str, str]


@dataclass(frozen=True)
class LoadedCorpus:
    """A built corpus: rows with ``document`` and ``summary`` by split, the tokenizer, and what is known of it."""

    splits: dict[str, list[Row]]
    tokenizer: PreTrainedTokenizerFast
    info: dict


def build_corpus(corpus: S.Corpus, folder: str | Path) -> None:
    """Make the splits and the tokenizer and write them to a folder; the same inputs give the same bytes.

    Raises:
        InputError: a file, column or package is missing or bad, or a split is empty.
    """
    splits = {"embedded": _embedded, "files": _from_files, "hub": _from_hub}[corpus.source](corpus)
    for split, rows in splits.items():
        if not rows:
            raise InputError(f"corpus.{split}", 0, "a split with at least one pair; allow more pairs or packages")
    if corpus.tokenizer is not None:
        tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer)
    else:
        texts = (text for row in splits["train"] for text in (row["document"], row["summary"]))
        tokenizer = train_tokenizer(texts, corpus.vocab_size, max(corpus.source_tokens, corpus.target_tokens))
    with atomic_folder(folder) as scratch:
        digest = hashlib.sha256()
        for split in SPLITS:
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
            "overlap": _overlap(splits),
        }
        (scratch / "corpus.json").write_text(json.dumps(info, indent=2) + "\n")


def load_corpus(folder: str | Path) -> LoadedCorpus:
    """Read a corpus that :func:`build_corpus` wrote."""
    folder = Path(folder)
    splits = {
        split: [json.loads(line) for line in (folder / f"{split}.jsonl").read_bytes().splitlines()] for split in SPLITS
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


def _embedded(corpus: S.Corpus) -> dict[str, list[Row]]:
    pairs = build_pairs(corpus.packages, processes=S.available_cores())
    # In the order of a hash, so that the first so many of a split are an even sample over all packages.
    pairs.sort(key=lambda pair: hashlib.sha256(f"{pair.name} {pair.summary}".encode()).digest())
    pairs = pairs[: corpus.limit]
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for pair in pairs:
        row = {"group": pair.group, "name": pair.name, "document": pair.document, "summary": pair.summary}
        splits[split_of(pair.group)].append(row)
    return splits


def _from_files(corpus: S.Corpus) -> dict[str, list[Row]]:
    return {
        split: [
            {"document": row[corpus.document], "summary": row[corpus.summary]}
            for row in read_rows(getattr(corpus, split), [corpus.document, corpus.summary])[: corpus.limit]
        ]
        for split in SPLITS
    }


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
        for column in (corpus.document, corpus.summary):
            if column not in data.column_names:
                raise InputError("corpus.column", column, f"one of {', '.join(data.column_names)}")
        rows = ({"document": row[corpus.document], "summary": row[corpus.summary]} for row in data)
        splits[split] = [row for row in rows if row["document"].strip() and row["summary"].strip()][: corpus.limit]
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


def _overlap(splits: dict[str, list[Row]], n: int = 8) -> float:
    """Part of the test documents that share a run of ``n`` words with a train document at half or more of theirs."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = [sys.intern(word) for word in text.lower().split(": ", 1)[-1].split()]
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    own = [runs(row["document"]) for row in splits["test"]]
    wanted = set().union(*own)
    train: set[tuple[str, ...]] = set()
    for row in splits["train"]:
        train |= runs(row["document"]) & wanted
    shared = sum(bool(each) and len(each & train) >= len(each) / 2 for each in own)
    return round(shared / len(own), 4)
