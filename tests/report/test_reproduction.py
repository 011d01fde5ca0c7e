"""A study that is run again says where it differs from what is committed."""

import json
import subprocess

import pytest

from dqlib.study.params.paths import TABLES
from dqlib.study.report.reproduction import comparison, machine, write_measured
from tests.helpers import grid
from tests.helpers.folders import reconfigure


@pytest.fixture
def committed_values(tmp_path, monkeypatch):
    """A repository with the values of a profile, and the function that measures again."""
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results"

    def measure(metrics, width=0.01):
        metrics = metrics.assign(seed=28)
        (folder / TABLES).mkdir(parents=True, exist_ok=True)
        (folder / TABLES / "metrics.csv").write_text(metrics.to_csv())
        write_measured(metrics, grid.retention(metrics, width), folder, "laptop")

    measure(grid.metrics())
    for command in ("init -q", "add -A", "-c user.name=a -c user.email=a@b.c commit -qm x"):
        subprocess.run(["git", *command.split()], check=True)
    return folder, measure


def test_the_same_again_is_the_same_byte_for_byte(committed_values):
    folder, _ = committed_values
    text = comparison(folder, "laptop")
    count = len(grid.metrics())
    assert f"{count} of {count} scores lie within" in text
    assert "metrics.csv is the same, byte for byte" in text
    assert "outside" not in text
    assert text.count(machine()["processor"]) == 2
    assert f"torch {machine()['torch']}" in text


def test_scores_outside_the_committed_intervals_are_named(committed_values):
    folder, measure = committed_values
    measure(grid.metrics(eli5={("2-2-8", "half"): 0.93}))
    text = comparison(folder, "laptop")
    (line,) = [line for line in text.splitlines() if "outside" in line]
    assert "eli5 2-2-8 2-2 dqlib, seed 28: 93.0% here" in line
    assert "95.0% (94.0% to 96.0%) committed" in line
    assert "not the same, byte for byte" in text


def test_other_processors_scores_and_profiles_are_told_apart(committed_values):
    folder, measure = committed_values
    metrics = grid.metrics()
    measure(metrics[metrics.task != "eli5"])
    file = folder / "measured" / "laptop.json"
    reconfigure(file.parent, file.name, machine=json.loads(file.read_text())["machine"] | {"processor": "another"})
    text = comparison(folder, "laptop")
    assert text.count("only committed: eli5") == (metrics.task == "eli5").sum()
    assert "here:      another" in text
    file.rename(folder / "measured" / "mine.json")
    assert "No values of the profile 'mine' are committed" in comparison(folder, "mine")
