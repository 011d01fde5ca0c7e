import ast
from pathlib import Path

import dqlib
from dqlib.study import versions
from dqlib.study.versions import DECIDING, NOT_DECIDING, code_hash

PACKAGE = Path(dqlib.__file__).parent


def imported(path: Path) -> set[str]:
    """Modules of this package that a file imports, as paths in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dqlib":
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            paths = ["/".join(name.split(".")[1:]) + ".py" for name in names]
            found |= {name for name in paths if (PACKAGE / name).is_file()}
    return found


def test_every_module_that_a_run_imports_is_said_to_decide_or_not():
    named = set(DECIDING) | set(NOT_DECIDING)
    for name in DECIDING:
        assert imported(PACKAGE / name) <= named, name


def test_a_run_of_other_code_is_not_taken_for_this_one(tmp_path, monkeypatch):
    before = code_hash()
    for name in DECIDING:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((PACKAGE / name).read_bytes())
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "study" / "versions.py"))
    try:
        code_hash.cache_clear()
        assert code_hash() == before
        with (tmp_path / "losses.py").open("a") as file:
            file.write("# other\n")
        code_hash.cache_clear()
        assert code_hash() != before
    finally:
        code_hash.cache_clear()
