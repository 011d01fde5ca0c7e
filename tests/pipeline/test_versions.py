import ast
from functools import cache
from pathlib import Path

import nbformat
import pytest
import yaml
from dqlib.study.pipeline.identity import DECIDING, NOT_DECIDING, code_hash

import dqlib
from dqlib.study.pipeline import identity as versions

PACKAGE = Path(dqlib.__file__).resolve().parent
STAGES = yaml.safe_load((PACKAGE.parent / "dvc.yaml").read_text())["stages"]

#: Reads parameters, starts jobs, tells of them and writes files, and decides no number of its own.
PASSING_ON = {
    *("errors.py", "files.py", "study/command.py", "study/launch.py", "study/locks.py", "study/parameters.py"),
    *("study/paths.py", "study/pipeline.py", "study/plan.py", "study/pool.py", "study/progress.py"),
    *("study/settings.py", "study/versions.py"),
}
#: Makes corpora, which later stages read as they are.
OF_CORPORA = {f"study/{name}.py" for name in ("cldr", "pydoc", "pydoc_qa", "sources")}
#: Makes students, and is imported where teachers are made, too.
OF_STUDENTS = {
    *("architectures.py", "attention.py", "config.py", "fake_quantize.py", "layers.py", "packing.py", "presets.py"),
    *("quantizers.py", "stored.py", "student.py"),
}
#: Of the commands that make corpora and models: what they run, and what of its imports decides nothing there. Values of
#: parameters that a file leaves out are in ``blocks``. All other stages make a page, by a notebook.
MAKERS = {
    "pipeline corpus": (("study/corpus.py", "study/blocks.py"), OF_STUDENTS),
    "pipeline pretrained": (("study/jobs.py", "study/blocks.py"), OF_STUDENTS | OF_CORPORA),
    "stage teacher": (("study/jobs.py", "study/blocks.py"), OF_STUDENTS | OF_CORPORA),
    "students": (("study/students.py", "study/jobs.py", "study/blocks.py"), OF_CORPORA),
    "methods": (("study/methods.py", "study/blocks.py"), OF_CORPORA),
}


@cache
def imported(path: Path) -> frozenset[str]:
    """Modules of this package that a file or a notebook imports, as paths in it."""
    text, found = path.read_text(), set()
    if path.suffix == ".ipynb":
        text = "\n".join(run.source for run in nbformat.reads(text, 4).runs if run.cell_type == "code")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dqlib":
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            paths = ["/".join(name.split(".")[1:]) + ".py" for name in names]
            found |= {name for name in paths if (PACKAGE / name).is_file()}
    return frozenset(found)


def test_every_module_that_a_run_imports_is_said_to_decide_or_not():
    named = set(DECIDING) | set(NOT_DECIDING)
    for name in DECIDING:
        assert imported(PACKAGE / name) <= named, name


@pytest.mark.parametrize("name", STAGES)
def test_dvc_knows_all_code_that_decides_a_number(name):
    command = STAGES[name]["cmd"].removeprefix("python -m dqlib.study.").partition(" --")[0]
    paths = [path.replace("${item.task}", "eli5") for path in STAGES[name]["deps"] if not path.startswith("runs/")]
    notebooks = [f"../{path}" for path in paths if path.startswith("notebooks/")]
    runs, left_out = MAKERS.get(command, (notebooks, set()))
    wanted, found = set(runs), set()
    while wanted:
        found.add(wanted.pop())
        wanted = wanted.union(*(imported(PACKAGE / module) for module in found)) - PASSING_ON - left_out - found
    known = [PACKAGE.parent / path for path in paths]
    assert all(path.exists() for path in known)
    missing = [module for module in found if not any((PACKAGE / module).resolve().is_relative_to(p) for p in known)]
    assert not sorted(missing)


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
