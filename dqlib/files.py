"""Writing that leaves no half-written file or folder, whatever ends it."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

from dqlib.errors import InputError

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

#: In the names of what is being written: no other hidden file has it.
_ASIDE = ".dqlib-"

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux, <fcntl.h> and <linux/fs.h>

#: The disk is full, the user's share of it is, or a file is larger than is allowed.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(OSError):
    """There is no room for what was to be written: one sentence that names the folder."""

    def __init__(self, folder: str | Path, number: int = errno.ENOSPC) -> None:
        super().__init__(number, os.strerror(number))
        self.folder = str(folder)

    def __str__(self) -> str:
        return (
            f"{self.folder}: {self.strerror}; what was there before is unchanged, so make room and start the same "
            "command again."
        )

    def __reduce__(self) -> tuple:
        return type(self), (self.folder, self.errno)


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """Write a folder aside and put it in place, replacing an old one, only when the block ends well.

    All is on the disk before the old folder goes, so that a kill or a power cut leaves the old one or the new one.
    Where ``target`` is a link, what it leads to is replaced and the link stays.

    Raises:
        DiskFullError: there is no room; the old folder is as it was.
        InputError: the target is the current folder or holds it, which would be taken from under this program.
    """
    named, target = Path(target), Path(target).resolve()
    if Path.cwd().is_relative_to(target):
        raise InputError("folder", str(named), "another than the current folder, which cannot be replaced from within")
    with room_in(named), _aside(target, Path.mkdir) as scratch:
        with room_in(named, scratch):
            yield scratch
            for path in (*scratch.rglob("*"), scratch):
                _sync(path)
        if not target.exists():
            scratch.replace(target)
        elif not _exchange(scratch, target):  # else the old folder is now the scratch one
            with _aside(target, Path.mkdir) as old:
                target.replace(old / target.name)
                scratch.replace(target)
        _sync(target.parent)


@contextmanager
def atomic_file(target: str | Path) -> Iterator[Path]:
    """Write a file aside and put it in place at once, when the block ended well and all of it is on the disk.

    Raises:
        DiskFullError: there is no room; the old file is as it was.
    """
    target = Path(target)
    with room_in(target.parent), _aside(target, Path.touch) as scratch:
        yield scratch
        _sync(scratch)
        scratch.replace(target)
        _sync(target.parent)


@contextmanager
def added_to(folder: str | Path, last: str) -> Iterator[Path]:
    """Write files aside and put them into a folder when the block has ended well; its other files stay.

    Args:
        folder: is made if it is not there.
        last: name of the file that is put in place after the others, without which they count for nothing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with room_in(folder), _aside(folder / last, Path.mkdir) as scratch:
        yield scratch
        found = [path.relative_to(scratch) for path in scratch.rglob("*") if not path.is_dir()]
        for path in sorted(found, key=lambda path: path.name == last):
            (folder / path).parent.mkdir(exist_ok=True)
            (scratch / path).replace(folder / path)


def write_text(target: str | Path, text: str) -> None:
    """Write a text file (UTF-8) aside and put it in place at once; raises as :func:`write_bytes`."""
    write_bytes(target, text.encode("utf-8"))


def write_bytes(target: str | Path, data: bytes) -> None:
    """Write a file as :func:`atomic_file` does, and with its errors."""
    with atomic_file(target) as scratch:
        scratch.write_bytes(data)


@contextmanager
def room_in(folder: Path, scratch: Path | None = None) -> Iterator[None]:
    """Tell of a full disk by the folder that was to be written, also where ``scratch`` stood for it.

    Raises:
        DiskFullError: something within the block found no room.
    """
    try:
        yield
    except DiskFullError as error:
        if scratch is None or not Path(error.folder).is_relative_to(scratch):
            raise
        raise DiskFullError(folder, cast(int, error.errno)) from error
    except Exception as error:
        number = _full(error)
        if number is None:
            raise
        raise DiskFullError(folder, number) from error


def _full(error: BaseException | None) -> int | None:
    """The system's number for a full disk, where an error or one of its causes has it."""
    while error is not None:
        for number in _FULL:  # safetensors writes in Rust, and has it in its message alone
            if getattr(error, "errno", None) == number or f"(os error {number})" in str(error):
                return number
        error = error.__cause__
    return None


@contextmanager
def _aside(target: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A file or folder beside the target that is removed at the end, after those that killed processes left there.

    Each is locked by the process that writes it, and the lock ends with the process: what is not locked is nobody's.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".*{_ASIDE}*"):
        with _locked(left, wait=False) as nobodys:
            if nobodys:
                _remove(left)
    scratch = target.with_name(f".{target.name}{_ASIDE}{secrets.token_hex(4)}")
    with ExitStack() as held:
        while not scratch.exists():  # again, where another process came in between and took it for left
            make(scratch)
            held.enter_context(_locked(scratch))
        try:
            yield scratch
        finally:
            _remove(scratch)


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Lock a file or folder while the block runs; gives whether it is: another may have it, or the system none."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # another process has removed it, or a system that opens no folder
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (OSError, AttributeError):  # some file systems have none, nor has Windows
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file's or folder's contents are on the disk."""
    if path.is_dir() and os.name == "nt":  # which opens no folder
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = os.fsencode(one), os.fsencode(other)
    return rename is not None and rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0
