"""Files that hold trust: written whole or not at all, private, never through a symlink."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tensorguard.errors import ConfigurationError, NotFound, TooLarge


class UnsafeFile(ConfigurationError):
    code = "unsafe_file"
    remedy = "Make it a regular file of your own user, mode 0600, in a folder of mode 0700."


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Yield a file to write; it replaces `path`, whole and durably, only when the block succeeds."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` by `data`: a crash leaves the old content or the new, durably."""
    with atomic_file(path, mode=mode) as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Make a rename or removal inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bounded(path: Path, *, limit: int, private: bool = False) -> bytes:
    """Return the content of a regular file, never following a symlink at its end.

    With `private`, also insist that it is ours and that nobody else can read it. Raises `NotFound`,
    `TooLarge` over `limit` bytes, or `UnsafeFile`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}") from error
    except OSError as error:
        raise UnsafeFile(f"{path} cannot be read safely: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeFile(f"{path} is not a regular file")
        if private and (status.st_mode & 0o077 or status.st_uid != os.geteuid()):
            raise UnsafeFile(f"{path} can be read by others")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise TooLarge(f"{path} is larger than {limit} bytes")
    return data


def private_folder(path: Path) -> Path:
    """Return `path`, made with mode 0700 if it was absent. Raises `UnsafeFile`."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafeFile(f"{path} is not a folder")
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise UnsafeFile(f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):04o})")
    return path
