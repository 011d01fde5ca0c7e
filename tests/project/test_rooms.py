"""The arrows between rooms are those that were decided, and there is no circle."""

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

import dqlib
from tests.helpers.rooms import ARROWS, room_of

PACKAGE = Path(dqlib.__file__).parent
TESTS = Path(__file__).parents[1]
ROOMS = [f"study/{room}" for room in ARROWS if (PACKAGE / "study" / room).is_dir()]


@cache
def nodes(path):
    """All of a module's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text())))


def imported(path, package="dqlib"):
    """Modules of a package that one of them imports, inside functions too, as paths with their lines."""
    root = {"dqlib": PACKAGE, "tests": TESTS}[package]
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith(f"{package}."):
                yield Path(*name.split(".")[1:]), f"{path.relative_to(root)}:{node.lineno} imports {name}"


def test_no_room_imports_one_that_it_may_not():
    new = []
    for path in PACKAGE.rglob("*.py"):
        room = room_of(path.relative_to(PACKAGE))
        arrows = {(room, to) for to in ARROWS[room] | {room}}
        new += [line for target, line in imported(path) if (room, room_of(target)) not in arrows]
    assert not new


def test_the_arrows_have_no_circle():
    tuple(TopologicalSorter(ARROWS).static_order())  # raises CycleError


def test_no_test_imports_a_test_or_the_fixtures_but_what_they_share_is_in_helpers():
    found = [each for path in TESTS.rglob("*.py") for each in imported(path, "tests")]
    assert not [line for target, line in found if target.parts[0] != "helpers"]
    assert found


def test_tests_are_in_the_rooms_of_the_code():
    rooms = {path.name for path in TESTS.iterdir() if (path / "__init__.py").is_file()}
    assert rooms <= {*ARROWS, "storage", "project", "helpers"}


#: The walks of docs/architecture.md, and the most files of each.
WALKS = {"A document": 8, "A weight": 9, "`distill.steps`": 6}


def imports(path, other):
    """Whether one file imports another, or something of it."""
    module = other.relative_to(PACKAGE).with_suffix("")
    return any(module in (target, *target.parents) for target, _ in imported(path))


@pytest.mark.parametrize("walk", WALKS)
def test_the_walks_of_the_architecture_go_from_file_to_file_and_are_short(walk):
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    section = re.split(r"\n\n|\n\* ", text.partition(f"* **{walk}**: ")[2])[0]
    names = re.findall(r"`([\w/]+\.py)`", section)
    files = [next(root / name for root in (PACKAGE, PACKAGE / "study") if (root / name).is_file()) for name in names]
    assert 4 < len(files) <= WALKS[walk]
    assert len(set(files)) == len(files)
    apart = [(str(a), str(b)) for a, b in pairwise(files) if not (imports(a, b) or imports(b, a))]
    assert not apart


def test_no_function_is_longer_than_60_lines():
    long = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}: {length} lines"
        for path in PACKAGE.rglob("*.py")
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef) and (length := node.end_lineno - node.lineno + 1) > 60
    ]
    assert not long


@pytest.mark.parametrize("room", ["storage", "engines", "cli", "study", *ROOMS])
def test_a_room_says_what_lives_there_and_what_it_may_import(room):
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
    assert 1 <= len(text.splitlines()) <= 5
    assert re.search(r"\b[Mm]ay import\b", text)
