"""Files that are whole or not there: atomic writes, hashes."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LARGE = 2**28
"""Bytes from which hashing a file would take too long."""


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically: beside it first, then renamed."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of the one given when the context ends well, else is removed."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk names no file
            error.filename = str(path)
        raise


def sha256(path: Path) -> str:
    """Hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def contents(path: Path, together: int = 0) -> str:
    """What identifies a file's content: its hash, so that a copy is the same; of a large file size and time.

    Args:
        path: The file.
        together: Bytes of all files that it is one of, where these are hashed one after the other.
    """
    about = path.stat()
    small = max(about.st_size, together) < LARGE
    return sha256(path) if small else f"{about.st_size} bytes, {about.st_mtime_ns}"
