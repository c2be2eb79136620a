"""A run folder: its names, its lock, and what may be deleted in it.

    config.json                            every setting, versions, data set
    metrics.jsonl                          one line per epoch
    model.safetensors                      the net, for `load_run`
    checkpoints/step-00000390.safetensors  from which the run resumes

People keep files of their own next to these. So minires deletes only what `_delete` lets it: checkpoints under exactly
these names, and temporary files that a killed process left. A damaged checkpoint is renamed, never deleted.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from minires.files import FileError, read_rows
from minires.training.config import CONFIG, RunError

METRICS, MODEL, CHECKPOINTS, LOCK = "metrics.jsonl", "model.safetensors", "checkpoints", ".lock"

CHECKPOINT = re.compile(r"step-(\d{8,})\.safetensors")
TEMPORARY = re.compile(  # of `write_atomically`
    r"((config|init_from)\.json|(metrics|sessions|layers|steps)\.jsonl|curves\.png|(model|step-\d{8,})\.safetensors)"
    r"\.\d+\.tmp"
)


def checkpoint_path(out: Path, step: int) -> Path:
    """The name of the checkpoint after this many steps."""
    return out / CHECKPOINTS / f"step-{step:08d}.safetensors"


def checkpoints_in(out: Path) -> list[Path]:
    """The run's checkpoints, oldest first; none without a folder of them. Raises FileError if it can't be read."""
    found = [path for path in _content_of(out / CHECKPOINTS) if CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=lambda path: (len(path.name), path.name))


def leftovers_in(folder: Path) -> list[Path]:
    """The temporary files that a killed process left. Raises FileError if the folder can't be read."""
    return [path for path in _content_of(folder) if TEMPORARY.fullmatch(path.name)]


def _content_of(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FileError(f"cannot read {folder}: {error.strerror or error}") from error


# ---- what may be deleted -------------------------------------------------------------------------------------------


def _delete(path: Path) -> None:
    if (CHECKPOINT.fullmatch(path.name) or TEMPORARY.fullmatch(path.name)) and path.is_file():
        path.unlink(missing_ok=True)


def delete_checkpoints(out: Path, keep: int) -> None:
    """Delete the run's checkpoints but for the newest `keep`; with the last, their folder, if nothing else is in it."""
    for path in checkpoints_in(out)[: -keep or None]:
        _delete(path)
    if not keep:
        with suppress(OSError):  # somebody's files are in it
            (out / CHECKPOINTS).rmdir()


def delete_leftovers(out: Path) -> None:
    """Delete the temporary files that a killed process left in the run folder and among the checkpoints."""
    for path in leftovers_in(out) + leftovers_in(out / CHECKPOINTS):
        _delete(path)


def set_aside(path: Path) -> Path:
    """Give a damaged checkpoint a name under which nothing looks for one. Returns the new name."""
    names = (path.with_name(f"{path.name}.damaged{n or ''}") for n in count())
    new = next(name for name in names if not os.path.lexists(name))
    path.rename(new)
    return new


# ---- lock and resuming ---------------------------------------------------------------------------------------------


@contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """Lock the run folder for this process; the system releases the lock if the process dies.

    The folder is made if needed. An error inside leaves no lock file behind that wasn't there before.
    """
    import filelock

    file = out / LOCK
    try:
        out.mkdir(parents=True, exist_ok=True)
        was_there = file.exists()
        lock = filelock.FileLock(file)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RunError(f"{out} is in use by another training run; name another folder with --out") from None
    except OSError as error:
        raise FileError(f"cannot write to {out}: {error.strerror or error}") from error
    try:
        yield
    except Exception:
        if not was_there:
            with suppress(OSError):  # deleted already: Windows does so
                file.unlink()
        raise
    finally:
        lock.release()


def can_resume(out: Path) -> bool:
    """Whether resuming will work: the folder holds a run with a checkpoint, or one that no epoch is recorded of."""
    try:
        return (out / CONFIG).is_file() and (bool(checkpoints_in(out)) or not recorded_rows(out))
    except (OSError, ValueError):
        return False


def recorded_rows(out: Path) -> list[dict[str, float]]:
    """The epochs that are recorded in `metrics.jsonl`. Raises FileError if it can't be read or they have been lost."""
    rows = read_rows(out / METRICS, needs=["step"], drop_half_line=True)
    if not rows and (out / MODEL).exists():
        raise FileError(f"{out / METRICS}: expected the epochs that {MODEL} was trained for, got none; restore them")
    return rows


def resume_command(out: Path) -> str:
    """What to type to resume a run."""
    words = ["python", "-m", "minires", "train", "--resume", str(out)]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
