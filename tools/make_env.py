"""Make the virtual environment from the lock file, with nothing but the standard library.

    python3.11 tools/make_env.py .venv requirements.lock

Everything is installed at the version that the lock names. Before anything is downloaded, it is checked
that a machine without a GPU does not get a CUDA build of torch.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

CUDA_ADVICE = (
    "error: pip would install a CUDA build of torch (several GB) on this machine, which has no NVIDIA GPU.\n"
    "Point pip to PyTorch's CPU wheels, as pytorch.org/get-started describes for 'CPU' (for pip's own\n"
    "setting of that address: the environment variable PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS), and run this\n"
    "command again. To install the CUDA build all the same, set ALLOW_CUDA=1."
)


def main(folder: Path, lock: Path) -> int:
    """Make the environment; 0 when it is complete."""
    if sys.version_info[:2] < (3, 11):  # noqa: UP036 (this runs under whatever python is at hand)
        print(f"error: Python 3.11 or newer is needed, and this is {sys.version.split()[0]}.", file=sys.stderr)
        return 2
    venv.create(folder, with_pip=True, clear=not (folder / ".complete").exists())
    (folder / ".complete").unlink(missing_ok=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    torch = next(line for line in lock.read_text().splitlines() if line.startswith("torch=="))
    allowed = os.environ.get("ALLOW_CUDA", "") not in ("", "0")
    if shutil.which("nvidia-smi") is None and not allowed and _pulls_cuda(pip, torch):
        print(CUDA_ADVICE, file=sys.stderr)
        return 1
    print(f"Installing {lock} into {folder} (some minutes the first time)", flush=True)
    steps = [
        [*pip, "install", "--no-warn-script-location", "-r", str(lock)],
        [*pip, "install", "--no-deps", "--no-build-isolation", "--editable", "."],
    ]
    for step in steps:
        code = subprocess.run(step, check=False).returncode
        if code:
            return code
    (folder / ".complete").touch()
    return 0


def _pulls_cuda(pip: list[str], torch: str) -> bool:
    """Whether installing torch would also install packages of NVIDIA's."""
    dry_run = [*pip, "install", "--dry-run", "--ignore-installed", "--report", "-", torch]
    answer = subprocess.run(dry_run, check=False, capture_output=True, text=True)
    if answer.returncode:
        return False  # the real installation will say what is wrong
    names = [item["metadata"]["name"].lower() for item in json.loads(answer.stdout)["install"]]
    return any(name.startswith(("nvidia-", "cuda-")) for name in names)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
