"""Files: replaced in one step, so that a power cut leaves the old content or the new one, never half of each."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

FileName = str | os.PathLike[str]


class FileError(ValueError):
    """A file can't be read or written. The message is always one line."""

    def __init__(self, message: str):
        super().__init__("".join(c if c.isprintable() else " " for c in message))


def write_atomically(path: FileName, data: bytes) -> None:
    """Replace the content of `path` by `data`; even after a power cut the file is entirely the old or the new one.

    The bytes go to a temporary file in the same folder, are flushed to disk, and that file is renamed in one step.
    Raises FileError if this fails (disk full, folder missing); the old file is then unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # already renamed on success
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Flush a folder's directory entries to disk, if the system can (Windows cannot)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
