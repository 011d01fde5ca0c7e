"""The package, the lock and the conda environment say the same."""

import re
import tomllib
from importlib import metadata

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from dqlib.study.params.paths import project_root

ROOT = project_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
LOCK = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in LINES}


def test_the_lock_has_exact_versions_and_no_addresses_paths_or_cuda():
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!]+", line) for line in LINES)
    assert len(LOCK) == len(LINES)
    assert not [name for name in LOCK if name.startswith(("nvidia", "cuda", "triton"))]


def test_the_lock_satisfies_every_requirement_of_the_package():
    wanted = PROJECT["dependencies"] + [r for extra in PROJECT["optional-dependencies"].values() for r in extra]
    for requirement in map(Requirement, wanted):
        assert Version(LOCK[canonicalize_name(requirement.name)]) in requirement.specifier, str(requirement)


def test_what_is_installed_is_what_the_lock_says():
    assert {name: metadata.version(name).partition("+")[0] for name in LOCK} == LOCK


def test_the_lock_installs_on_the_first_release_of_its_python():
    asked = {name: metadata.metadata(name)["Requires-Python"] for name in LOCK}
    assert [name for name, versions in asked.items() if versions and "3.11.0" not in SpecifierSet(versions)] == []


def test_the_conda_environment_installs_the_same_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert pip == ["-r requirements.lock", "-e ."]
    python = next(item for item in environment["dependencies"] if str(item).startswith("python="))
    assert Version(python.partition("=")[2]) in Requirement(f"python{PROJECT['requires-python']}").specifier
    others = [str(item) for item in environment["dependencies"] if isinstance(item, str)]
    assert {item.partition("=")[0] for item in others} == {"python", "pip", "git", "make"}
