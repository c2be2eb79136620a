"""Files: what a name means, replacing a file in one step, digests, and rows of JSON.

Whatever a command writes to a place that the user names goes through `output_path`, so that it can't overwrite what
the command reads; and a file is replaced in one step, so that a power cut leaves the old content or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

FileName = str | os.PathLike[str]


class FileError(ValueError):
    """A file can't be read or written. The message is always one line."""

    def __init__(self, message: str):
        super().__init__("".join(c if c.isprintable() else " " for c in message))


def printable(text: object) -> str:
    r"""A text for a terminal or a picture: control characters, and bytes of a file's name that are no UTF-8, are
    escaped, as \x1b and \udcff."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def output_path(path: FileName, suffix: str = "", inputs: Iterable[FileName] = ()) -> Path:
    """The file to write for the name that a user gave: `~` is expanded, and `suffix` added if the name has none.

    Raises FileError if the name is that of a folder or of anything else that is not a plain file, or if the file is
    one of `inputs`, also under another name (a link).
    """
    given = Path(path).expanduser()
    target = given if given.suffix or not given.name else given.with_name(given.name + suffix)
    for name in (given, target):
        if name.is_dir():
            raise FileError(f"expected the name of a file to write, got the folder {name}; name a file in it")
        if name.exists() and not name.is_file():
            raise FileError(f"expected the name of a file to write, got {name}, which is a device or a pipe")
    for file in map(Path, inputs):
        if target.exists() and file.exists() and target.samefile(file):
            raise FileError(f"expected a new file, got {target}: it would overwrite {file}; choose another name")
    return target


def write_atomically(path: FileName, data: bytes) -> None:
    """Replace the content of `path` by `data`; even after a power cut the file is entirely the old or the new one.

    The bytes go to a temporary file in the same folder, are flushed to disk, and that file is renamed in one step.
    The file keeps its permissions, and of a symbolic link the file that it leads to is replaced. Raises FileError if
    this fails (disk full, folder missing); the old file is then unchanged.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
        _sync_folder(target.parent)
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


def digest(data: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def read_rows(path: FileName, needs: Sequence[str] = (), drop_half_line: bool = False) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file, one JSON object a line; none if there is no such file.

    needs: names under which every row must hold a number. drop_half_line: ignore a last line without its line end that
    can't be read, as a power cut leaves it. Raises FileError with file and line if a row is damaged, OSError if the
    file can't be read.
    """
    try:
        lines = Path(path).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # deeply nested brackets
            row = None
        if isinstance(row, dict) and all(_is_number(row.get(name)) for name in needs):
            rows.append(row)
        elif not (drop_half_line and number == len(lines) and not line.endswith(b"\n")):
            content = f"an object with the numbers {', '.join(needs)}" if needs else "an object"
            text = line[:40].decode(errors="backslashreplace").strip()
            raise FileError(
                f"{path}, line {number} is damaged: expected {content} in JSON, got {text!r}; delete the line"
            )
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
