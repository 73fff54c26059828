"""Write files so that a full disk, an interrupt or a kill leaves the old file or the new one, whole.

Everything is written to a new folder inside the target's, so on the same filesystem, synced, and renamed.
A killed process leaves that folder (``.graphopt-…``) behind; it can be deleted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from graphopt.errors import OutputError

__all__ = ["checked_target", "output_errors", "replace", "replace_pair"]

Writer = Callable[[BinaryIO], None]

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EFBIG: "it would be larger than files may be here; choose another folder or raise the limit",
    errno.EACCES: "no permission to write there; choose another folder",
    errno.EPERM: "no permission to write there; choose another folder",
    errno.EROFS: "the filesystem is read-only; choose another folder",
    errno.ENAMETOOLONG: "the name is too long",
}


def checked_target(target: str | os.PathLike[str]) -> Path:
    """The absolute path of a file to write; a symbolic link is followed, so that it stays one.

    Raises:
        OutputError: Its folder does not exist, or something is there that is not a file.
    """
    with output_errors(target):
        path = Path(os.path.realpath(target))
        if not path.parent.is_dir():
            raise OutputError(f"the folder '{path.parent}' does not exist; create it first")
        if path.exists() and not path.is_file():
            raise OutputError(f"it is a {'folder' if path.is_dir() else 'device or pipe'}")
    return path


@contextlib.contextmanager
def output_errors(target: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors of the operating system into one :class:`OutputError`, and name the target in any such."""
    try:
        yield
    except OutputError as error:
        raise OutputError(f"cannot write '{target}': {error}") from error
    except OSError as error:
        reason = _REASONS.get(error.errno or 0) or error.strerror or str(error)
        raise OutputError(f"cannot write '{target}': {reason}") from error


def replace(path: Path, write: Writer) -> int:
    """Write one file; returns its size in bytes."""
    with _staging(path.parent) as stage:
        size = _write(stage / "file", write, like=path)
        os.replace(stage / "file", path)  # noqa: PTH105 (one name for the call that must be atomic)
        _sync_folder(path.parent)
    return size


def replace_pair(path: Path, write: Writer, data_path: Path, write_data: Writer) -> int:
    """Write a file and a second one that only it refers to; returns the size of both in bytes.

    ``data_path`` must be a new name: what the old file at ``path`` refers to stays as it is until, and
    unless, the new file has replaced the old one.
    """
    with _staging(path.parent) as stage:
        size = _write(stage / "data", write_data, like=path) + _write(stage / "file", write, like=path)
        os.close(
            os.open(data_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        )  # nobody else takes the name
        try:
            os.replace(stage / "data", data_path)  # noqa: PTH105
            _sync_folder(path.parent)
            os.replace(stage / "file", path)  # noqa: PTH105
        except BaseException:
            if (stage / "file").exists():  # else an interrupt came after the new file was in place
                data_path.unlink()
            raise
        _sync_folder(path.parent)
    return size


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    stage = Path(tempfile.mkdtemp(dir=folder, prefix=".graphopt-"))
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _write(path: Path, write: Writer, like: Path) -> int:
    """Write and sync a staged file, with the permissions of the file it will replace."""
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    if like.exists():
        shutil.copymode(like, path)
    return size


def _sync_folder(folder: Path) -> None:
    """Make renames last through a power cut, where the filesystem can; they are atomic anyway."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
