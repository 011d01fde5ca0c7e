"""The core in floors: the method (``dqlib/*.py``), storage above it, engines above both, the command line on top;
and its public names."""

import ast
import subprocess
import sys

import pytest

import dqlib
from dqlib.study.params.paths import project_root

CORE = project_root() / "dqlib"
#: What modules of each floor may import when they are loaded, besides their own floor.
FLOORS = {".": (), "storage": (".",), "engines": (".", "storage"), "cli": (".", "storage", "engines", "study")}


def imported(path):
    """The floors that a module imports when it is loaded."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
    names += [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    parts = [name.split(".") for name in names if name.split(".")[0] == "dqlib"]
    folders = {path.name for path in CORE.iterdir() if path.is_dir()}
    return {each[1] if len(each) > 1 and each[1] in folders else "." for each in parts}


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_imports_only_those_below_it(floor):
    found = {path.name: imported(path) - {floor, *FLOORS[floor]} for path in (CORE / floor).glob("*.py")}
    assert {name: above for name, above in found.items() if above} == {}


def test_public_names_are_loaded_when_they_are_asked_for_and_the_import_takes_milliseconds():
    assert set(dqlib.__all__) <= set(dir(dqlib))
    for name in dqlib.__all__:
        assert getattr(dqlib, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dqlib.nothing  # noqa: B018
    code = "import sys, time; start = time.process_time(); import dqlib; taken = time.process_time() - start; "
    code += "print(taken, *{'torch', 'transformers', 'numpy'} & set(sys.modules))"
    printed = [subprocess.check_output([sys.executable, "-c", code], text=True).split() for _ in range(3)]
    assert [loaded for _, *loaded in printed] == [[]] * 3
    assert min(float(taken) for taken, *_ in printed) < 0.05  # seconds
