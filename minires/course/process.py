"""Answers run in a process of their own, with limits, so that none harms the checking of the others.

`run_answers` starts this file as a script, `_check_answers`, which writes a row for each exercise. Such a process gets
a copy of the package and the checks, in a temporary folder, and the limits below. The rows are in a file without a
name, which the files and the output of an answer can't imitate.

This holds back accidents, not malice: answers run with your rights. On Windows there is no limit on memory and on the
size of files, and a process that an answer started is not ended.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

MEMORY = 4 * 2**30  # bytes that one process may fill (on Linux; macOS does not enforce it)
FILE_SIZE = 2**26  # bytes of a file that an answer may write
RESULTS = 2**22  # bytes of rows that are read
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # each thread of BLAS reserves memory


class Row(NamedTuple):
    """What the check of one exercise found: a `Report`, and the note on its library calls.

    status may also be "ended" (the answer ended Python) or "over time"; text and note are then empty.
    """

    status: str
    diagnosis: str
    text: str = ""
    note: str = ""


def run_answers(
    source: str, filename: str, stem: str, numbers: Sequence[str], seconds: float | None = None, memory: int = MEMORY
) -> list[Row]:
    """A row for each of these exercises of a chapter, for the answers in a file's text.

    seconds: the time limit; None means no limit. After an answer that takes too long or ends the process, a new process
    continues with the next exercise.
    """
    rows: dict[str, Row] = {}
    while todo := [number for number in numbers if number not in rows]:
        found, problem = _run([source, filename, stem, todo, memory], seconds)
        rows |= found
        if missing := [number for number in todo if number not in found]:
            rows[missing[0]] = problem
    return [rows[number] for number in numbers]


def _run(request: list[Any], seconds: float | None) -> tuple[dict[str, Row], Row]:
    """The rows that one process writes, by exercise, and a row about why it wrote no more."""
    problem = Row("ended", "the answer ended Python")
    with (
        tempfile.TemporaryFile() as results,
        suppress(RecursionError),  # an answer made a thousand folders one inside the other: they stay
        tempfile.TemporaryDirectory(prefix="minires-", ignore_cleanup_errors=True) as folder,
    ):
        copy, work = Path(folder, "checkout"), Path(folder, "work")
        _copy_checkout(copy)
        work.mkdir()
        paths = os.pathsep.join(filter(None, [str(copy), os.environ.get("PYTHONPATH")]))
        with subprocess.Popen(
            [sys.executable, "-P", str(copy / "minires" / "course" / "process.py")],
            env={**os.environ, "PYTHONPATH": paths, **ONE_THREAD},
            cwd=work,
            stdin=subprocess.PIPE,
            stdout=results,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # no effect on Windows
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        ) as process:
            try:
                process.communicate(json.dumps(request).encode(), timeout=seconds)
            except subprocess.TimeoutExpired:
                problem = Row("over time", f"no result after {seconds:g} s: an endless loop?")
            finally:
                _end(process, str(copy))
                results.seek(0)
                rows = _rows(results.read(RESULTS))
    return rows, problem


def _copy_checkout(copy: Path) -> None:
    """Copy what a check needs: an answer that writes next to what it imports doesn't reach the original."""
    original = Path(__file__).parents[2]
    for part in ("minires", "chapters/checks", "chapters/teacher/masters"):
        if (original / part).is_dir():  # a student's copy has no masters
            shutil.copytree(original / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """End the process and those it started: its group, and on Linux every other that has `mark` in its environment."""
    if sys.platform == "win32":
        process.kill()
    else:
        with suppress(OSError):  # nobody is left
            os.killpg(process.pid, signal.SIGKILL)
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark.encode() in environment.read_bytes():
                    os.kill(int(environment.parent.name), signal.SIGKILL)


def _rows(written: bytes) -> dict[str, Row]:
    """The rows by exercise, up to the first damaged one."""
    rows: dict[str, Row] = {}
    with suppress(ValueError, TypeError, RecursionError):
        for line in written.splitlines():
            number, *fields = json.loads(line)
            rows.setdefault(number, Row(*map(str, fields)))  # os.fork in an answer makes a second writer
    return rows


# ---- in the new process


def _check_answers() -> None:
    """Check the exercises that stdin asks for, and write the rows to what was stdout."""
    source, filename, stem, numbers, memory = json.load(sys.stdin)
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    if sys.platform != "win32":
        if child := os.fork():  # answers run in the child: it can signal its parent, which then is this process
            os.waitpid(child, 0)
            os._exit(0)
        _limit(memory)

    from minires.course.exercises import check_source, exercises_of
    from minires.course.grading import library_calls

    exercises = [exercise for exercise in exercises_of(stem) if exercise.number in numbers]
    notes = [library_calls(stem, exercise.name, source) for exercise in exercises]
    for exercise, note in zip(exercises, notes, strict=True):
        row = [exercise.number, *check_source(exercise, source, filename), note]
        print(json.dumps(row), file=results, flush=True)
    os._exit(0)  # without waiting for an answer's threads and exit handlers


def _limit(memory: int) -> None:
    """Limit what this process may use."""
    if sys.platform != "win32":
        import resource

        limits = {resource.RLIMIT_DATA: memory, resource.RLIMIT_FSIZE: FILE_SIZE, resource.RLIMIT_CORE: 0}
        for kind, most in limits.items():
            with suppress(ValueError, OSError):  # the system allows no such limit, or less already
                resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    _check_answers()
