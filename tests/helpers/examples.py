"""Examples that a small model learns in some steps, and rows of a corpus in files."""

import json
import random
from pathlib import Path

from dqlib.study.training.examples import Example


def copying(count, seed):
    """Examples whose target is the start of their source."""
    order = random.Random(seed)
    rows = [[order.randrange(5, 25) for _ in range(order.randrange(3, 9))] for _ in range(count)]
    return [Example([*row, 2], [*row[:2], 2]) for row in rows]


def write_splits(folder: Path, **rows: list[dict]) -> dict[str, str]:
    """Write the rows of splits as lines of JSON, and give the path of each split's file."""
    for split, each in rows.items():
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in each))
    return {split: str(folder / f"{split}.jsonl") for split in rows}
