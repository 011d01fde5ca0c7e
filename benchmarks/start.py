"""How long commands take before they do anything: CPU seconds, and how many times an import of PyTorch that is.

    python benchmarks/start.py PACKED [--onnx FOLDER] [--rounds 3]

``PACKED`` is the folder of a packed model with a tokenizer, ``FOLDER`` its export for ONNX Runtime. Every program is
started anew, all of them in turn; the least of the rounds counts, as anything else that runs only adds to it. Beside
the commands stand the imports that ``generate`` cannot do without in PyTorch: what it takes more is dqlib's own.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

TORCH, GENERATE = "import torch", "dqlib generate, one token"


def programs(folder: Path, onnx: Path | None = None) -> dict[str, list[str]]:
    """Arguments of Python by what they show."""
    imports = (TORCH, "from transformers import AutoTokenizer, MBartForConditionalGeneration", "import dqlib")
    commands: dict[str, list[str]] = {
        "dqlib --help": ["--help"],
        "dqlib verify": ["verify", str(folder)],
        "dqlib inspect": ["inspect", str(folder)],
        GENERATE: ["generate", str(folder), "--beams", "1", "--max-new-tokens", "1"],
    }
    if onnx is not None:
        commands["dqlib generate, one token, of the export"] = ["generate", str(onnx), *commands[GENERATE][2:]]
    return {code: ["-c", code] for code in imports} | {
        name: ["-m", "dqlib.cli", *arguments] for name, arguments in commands.items()
    }


def cpu_seconds(arguments: list[str]) -> float:
    """CPU time of a Python of its own, with one thread and one line to read.

    Raises:
        subprocess.CalledProcessError: it fails.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments], check=True, input=b"the sum\n", stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("packed", type=Path, metavar="PACKED")
    parser.add_argument("--onnx", type=Path, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    taken: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, arguments in programs(options.packed, options.onnx).items():
            taken.setdefault(name, []).append(cpu_seconds(arguments))
    for name, seconds in taken.items():
        print(f"{min(seconds):6.2f} s  {min(seconds) / min(taken[TORCH]):5.2f} times {TORCH}  {name}")


if __name__ == "__main__":
    main()
