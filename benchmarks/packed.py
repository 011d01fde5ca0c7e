"""Packed models of real shape: bytes on disk, and how long packing, saving and loading take.

    python benchmarks/packed.py [--configs "2-2-8 6-3" ...] [--rounds 5] [--threads 1] [--csv PATH]

Students of BART-base's shape have random weights, which suffice for size and speed. For each config it prints

* bytes of weights file and manifest, how many times smaller that is than BART-base in fp32 (six and six layers), and
  the paper's way of counting beside it;
* seconds of ``load_packed`` against reading the same student in fp32: ``from_pretrained``, and one pass over all
  its numbers, since ``from_pretrained`` maps the file and reads nothing before it is asked to. Both are run in
  turn with warm files; the median of the ratios counts. The ratio to ``from_pretrained`` alone is printed, too, and
  the ratio of CPU seconds, the least of each, which what else the machine does changes little;
* CPU seconds of what cannot be left out of ``load_packed``, the least of each: getting memory for the numbers and
  writing to it once, the SHA-256 of the file, making the model without numbers, and unpacking into memory that is
  there;
* millions of fp32 bytes per second that codes are packed and unpacked at, all weights of the student counted.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from random_models import random_bart
from tables import median_ratio, write_rows
from transformers import BartForConditionalGeneration, PreTrainedModel
from transformers.utils import logging

from dqlib.config import Config
from dqlib.storage.account import account
from dqlib.storage.footprint import FP32_BYTES, fp32_size_bytes
from dqlib.storage.manifest import WEIGHTS, packed_size_bytes
from dqlib.storage.packed import load_packed, save_packed
from dqlib.storage.packing import large_tensor, pack, unpack
from dqlib.storage.reading import empty_model
from dqlib.storage.stored import PackedWeight
from dqlib.student import quantize_model, round_for_storage

CONFIGS = ("8-8-8 6-6", "2-2-8 6-6", "2-2-8 6-3", "2-2-8 1-1", "1-1-8 3-1")


@dataclass(frozen=True, slots=True)
class Row:
    """One config."""

    config: str
    size_bytes: int
    smaller: float
    smaller_by_paper: float
    load_seconds: float
    fp32_seconds: float
    load_ratio: float
    load_ratio_mapped: float
    load_ratio_cpu: float
    load_cpu_seconds: float
    memory_cpu_seconds: float
    hash_cpu_seconds: float
    model_cpu_seconds: float
    unpack_cpu_seconds: float
    pack_mb_s: float
    unpack_mb_s: float


def make_model(
    encoder_layers: int, decoder_layers: int, features: int = 768, vocabulary: int = 50265
) -> PreTrainedModel:
    """A random BART of base width."""
    layers = (encoder_layers, decoder_layers)
    return random_bart(layers, vocabulary, features, 12, 4 * features, max_position_embeddings=1024)


def seconds(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of a call, what it gives thrown away after the clock has stopped."""
    start = clock()
    result = run()
    taken = clock() - start
    del result
    return taken


def cpu_seconds(run: Callable[[], object], rounds: int) -> float:
    """CPU time of a call, the least of some."""
    return min(seconds(run, time.process_time) for _ in range(rounds))


def read_fp32(folder: Path) -> PreTrainedModel:
    """A model in fp32 with all its numbers in memory."""
    model = BartForConditionalGeneration.from_pretrained(folder)
    for parameter in model.parameters():
        parameter.detach().sum()
    return model


def measure(text: str, teacher_bytes: int, folder: Path, rounds: int, **shape: int) -> Row:
    """Make, pack and load one student."""
    config = Config.parse(text)
    model = make_model(config.encoder_layers, config.decoder_layers, **shape)
    model.save_pretrained(folder / "fp32")
    quantize_model(model, config)
    round_for_storage(model)
    save_packed(model, folder / "packed")
    del model
    sizes = account(folder / "packed", teacher_bytes)
    ways = {
        "packed": lambda: load_packed(folder / "packed"),
        "fp32": lambda: read_fp32(folder / "fp32"),
        "mapped": lambda: BartForConditionalGeneration.from_pretrained(folder / "fp32"),
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for i in range(rounds + 1):  # the first round fills the cache of files
        for way, run in ways.items():
            once = seconds(run)
            if i:
                taken[way].append(once)
    packed = load_packed(folder / "packed")
    weights = [each.content for each in packed.dqlib_packed if isinstance(each.content, PackedWeight)]
    codes = [unpack(w.codes, w.shape, w.bits, w.encoding) for w in weights]
    fp32_bytes = FP32_BYTES * sum(code.numel() for code in codes)
    numbers = sum(parameter.numel() for parameter in packed.parameters())
    memory = [large_tensor(w.shape, torch.float32) for w in weights]
    data = (folder / "packed" / WEIGHTS).read_bytes()
    parts = {
        "memory": lambda: large_tensor((numbers,), torch.float32).fill_(1),
        "hash": lambda: hashlib.sha256(data).digest(),
        "model": lambda: empty_model(type(packed), packed.config, len(packed.dqlib_packed), "config"),
        "unpack": lambda: [w.value(out.view(-1)) for w, out in zip(weights, memory, strict=True)],
    }
    cpu = {name: cpu_seconds(run, rounds + 1) for name, run in (ways | parts).items()}
    packing, unpacking = [], []
    for _ in range(rounds):
        packing.append(seconds(lambda: [pack(c, w.bits, w.encoding) for c, w in zip(codes, weights, strict=True)]))
        unpacking.append(seconds(lambda: [unpack(w.codes, w.shape, w.bits, w.encoding) for w in weights]))
    return Row(
        text,
        packed_size_bytes(folder / "packed"),
        teacher_bytes / packed_size_bytes(folder / "packed"),
        teacher_bytes / sizes.total.paper_bytes,
        statistics.median(taken["packed"]),
        statistics.median(taken["fp32"]),
        median_ratio(taken["packed"], taken["fp32"]),
        median_ratio(taken["packed"], taken["mapped"]),
        cpu["packed"] / cpu["fp32"],
        cpu["packed"],
        *(cpu[name] for name in parts),
        fp32_bytes / statistics.median(packing) / 1e6,
        fp32_bytes / statistics.median(unpacking) / 1e6,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--configs", nargs="+", default=CONFIGS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", type=Path, help="file for the rows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    with torch.device("meta"):
        teacher_bytes = fp32_size_bytes(make_model(6, 6))
    rows = []
    for text in options.configs:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(text, teacher_bytes, Path(folder), options.rounds)
        rows.append(row)
        print(
            f"{row.config}: {row.size_bytes:,} bytes, {row.smaller:.1f}x smaller (by the paper's count "
            f"{row.smaller_by_paper:.1f}x)\n"
            f"  loads in {row.load_seconds:.2f} s: {row.load_ratio:.2f} times fp32 read whole, "
            f"{row.load_ratio_mapped:.2f} times fp32 only mapped, {row.load_ratio_cpu:.2f} times as much CPU\n"
            f"  of {row.load_cpu_seconds:.3f} CPU seconds: memory {row.memory_cpu_seconds:.3f}, SHA-256 "
            f"{row.hash_cpu_seconds:.3f}, an empty model {row.model_cpu_seconds:.3f}, "
            f"unpacking {row.unpack_cpu_seconds:.3f}\n"
            f"  packs at {row.pack_mb_s:,.0f} MB/s of fp32 weights, unpacks at {row.unpack_mb_s:,.0f} MB/s",
            flush=True,
        )
    if options.csv:
        write_rows(rows, options.csv)


if __name__ == "__main__":
    main()
