"""Whatever ends a writing, a reader finds the old folder or the new one."""

import os
import signal
import subprocess
import sys

import pytest

from dqlib import files
from dqlib.errors import InputError
from dqlib.files import atomic_folder


@pytest.fixture
def old(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("old")
    return folder


def write_new(folder):
    with atomic_folder(folder) as scratch:
        (scratch / "weights").write_text("new")
        (scratch / "inner").mkdir()
        (scratch / "inner" / "more").write_text("new")


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_whole_also_where_a_link_leads_to_it(old, exchanges, monkeypatch):
    if not exchanges:  # as on a system that cannot
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    link = old.parent / "link"
    link.symlink_to(old)
    for name in (old, link):
        (old / "weights").write_text("old")
        write_new(name)
        assert sorted(path.name for path in old.iterdir()) == ["inner", "weights"]
        assert (old / "weights").read_text() == "new"
        assert sorted(path.name for path in old.parent.iterdir()) == ["link", "model"]
    assert link.is_symlink()


def test_an_error_leaves_the_old_folder(old):
    def write_half():
        with atomic_folder(old) as scratch:
            (scratch / "weights").write_text("half")
            raise OSError("disk is full")

    with pytest.raises(OSError, match="disk"):
        write_half()
    assert (old / "weights").read_text() == "old"
    assert [path.name for path in old.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("inner", [".", "inner"])
def test_the_current_folder_is_not_taken_from_under_the_program(old, inner, monkeypatch):
    (old / "inner").mkdir()
    monkeypatch.chdir(old / inner)
    for name in (".", str(old)) if inner == "." else ("..", str(old)):
        with pytest.raises(InputError, match=r"^folder: .* the current folder"):
            write_new(name)
    assert (old / "weights").read_text() == "old"
    assert [path.name for path in old.parent.iterdir()] == ["model"]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")
    synced = []
    monkeypatch.setattr(files, "_sync", lambda path: synced.append((path, (tmp_path / "file").read_text())))
    files.write_text(tmp_path / "file", "new")
    assert [text for _, text in synced] == ["old", "new"]
    assert synced[1][0] == tmp_path


@pytest.mark.skipif(os.name == "nt", reason="kills with a signal")
@pytest.mark.parametrize("moment", ["writing", "fsync", "_exchange"])
def test_a_kill_at_any_moment_leaves_the_old_folder(old, moment):
    script = f"""
import os, signal
from dqlib import files
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if {moment!r} == "fsync": os.fsync = die
if {moment!r} == "_exchange": files._exchange = die
with files.atomic_folder({str(old)!r}) as scratch:
    (scratch / "weights").write_text("half")
    if {moment!r} == "writing": die()
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=os.getcwd(), timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert (old / "weights").read_text() == "old"
    assert len(list(old.parent.iterdir())) == 2
    write_new(old)
    assert (old / "weights").read_text() == "new"
    assert [path.name for path in old.parent.iterdir()] == ["model"]  # and not what the killed one left


def test_what_killed_processes_left_is_cleared_and_what_others_are_writing_is_not(tmp_path):
    script = """
import sys
from pathlib import Path
from dqlib import files
folder = Path(sys.argv[1])
with files.atomic_folder(folder / "corpus") as scratch, files.atomic_file(folder / "log.csv") as file:
    (scratch / "train").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
    file.write_text("whole")
"""
    dead, alive = (
        subprocess.Popen([sys.executable, "-c", script, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    )
    for process in (dead, alive):
        assert process.stdout.readline() == b"writing\n"
    (tmp_path / ".corpus.mine").mkdir()
    assert len(list(tmp_path.iterdir())) == 5
    dead.kill()
    dead.communicate()
    files.write_text(tmp_path / "other", "x")  # any next writing in the folder
    assert len(list(tmp_path.iterdir())) == 4
    alive.communicate(b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".corpus.mine", "corpus", "log.csv", "other"]
    assert (tmp_path / "corpus" / "train").read_text() == "half"
    assert (tmp_path / "log.csv").read_text() == "whole"
