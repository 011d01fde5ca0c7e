"""Write the lock file: exact versions of all that ``pyproject.toml`` needs, no addresses, no paths.

python3.11 tools/make_lock.py requirements.lock
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

HEADER = "# Exact versions of everything installed; written by `make lock` from pyproject.toml.\n"
#: Chosen by hand: the one version for which a CPU build is known to be at hand wherever this was tried.
TORCH = "torch==2.13.0"


def main(lock: Path) -> int:
    """Resolve in a scratch environment and write the lock."""
    project = tomllib.loads(Path("pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    with tempfile.TemporaryDirectory() as scratch:
        venv.create(scratch, with_pip=True)
        pip = [str(Path(scratch) / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        for packages in ([TORCH], [TORCH, *wanted]):  # torch first, so that nothing else picks another build
            subprocess.run([*pip, "install", "--quiet", *packages], check=True)
        frozen = subprocess.run([*pip, "freeze", "--all"], check=True, capture_output=True, text=True).stdout
    lines = []
    for line in frozen.splitlines():
        name, _, version = line.partition("==")
        if name != "pip":
            lines.append(f"{name}=={version.partition('+')[0]}")  # a local label names a build, not a version
    lock.write_text(HEADER + "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
