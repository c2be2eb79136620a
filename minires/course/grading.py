"""Grading: the files of a whole class, each in a process of its own; what a teacher sees of them."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from minires.course.exercises import chapters_folder, examine, exercises_of, read


class Grade(NamedTuple):
    """One line of a teacher's table. result: a report's status, or "over time", "ended", "no chapter"."""

    file: str
    exercise: str
    result: str
    what: str = ""
    note: str = ""


def grade_all(paths: Iterable[Path], seconds: float = 60) -> list[Grade]:
    """The grades of every file among `paths` and in the folders among them."""
    from tqdm import tqdm

    files = tqdm(handed_in(paths), desc="check", unit="file", disable=None)  # no bar where stderr is no terminal
    return [line for path in files for line in grade(path, seconds)]


def handed_in(paths: Iterable[Path]) -> list[Path]:
    """The Python files among `paths` and in the folders among them, sorted within each."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"check --all: {path} is not there")
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    if not found:
        raise ValueError("check --all: wanted Python files, or folders with some")
    return found


def grade(path: Path, seconds: float = 60) -> list[Grade]:
    """Grade one file: every exercise of its chapter, in a process of its own that is ended after `seconds`.

    The chapter is read from the file's name: anna_ch04.py. After an answer that takes too long or ends the process,
    a new process goes on with the exercise after it.
    """
    chapters = chapters_folder()
    chapter = re.findall(r"ch\d\d", path.stem)
    stems = [p.stem for p in (chapters / "checks").glob(f"{chapter[-1]}_*.py")] if chapter else []
    if not stems:
        return [Grade(str(path), "", "no chapter", "the file's name must hold its chapter, as in anna_ch04.py")]
    try:
        read(path)
    except (OSError, UnicodeError) as error:
        return [Grade(str(path), "", "unreadable", str(error))]
    grades: list[Grade] = []
    numbers = [exercise.number for exercise in exercises_of(stems[0])]
    while left := numbers[len(grades) :]:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # what an answer writes goes here
            results = Path(folder, "results.jsonl")
            command = [
                sys.executable,
                "-P",
                "-c",
                "from minires.course.grading import _grade_here; _grade_here()",
                str(path.resolve()),
                stems[0],
                left[0],
                str(results),
            ]
            package = str(Path(__file__).parents[2])
            places = filter(None, [package, os.environ.get("PYTHONPATH")])  # "" would be the current folder
            env = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
            problem = "ended", "the answer ended Python"
            try:
                subprocess.run(
                    command,
                    env=env,
                    timeout=seconds,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            except subprocess.TimeoutExpired:
                problem = "over time", f"no result after {seconds:g} s: an endless loop?"
            lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
        grades += [Grade(str(path), *json.loads(line)) for line in lines]
        if len(lines) < len(left):
            grades.append(Grade(str(path), left[len(lines)], *problem))
    return grades


def _grade_here() -> None:
    """What the process for one file does: write a line for each exercise, as soon as it is known."""
    file, stem, first, results = sys.argv[1:]
    source, exercises = read(Path(file)), exercises_of(stem)
    notes = {exercise.number: borrowed(stem, exercise.name, source) for exercise in exercises}
    os.chdir(Path(results).parent)
    with open(results, "w", encoding="utf-8") as out:
        for exercise in exercises[list(notes).index(first) :]:
            found = examine(exercise, source, file)
            print(
                json.dumps([exercise.number, found.status, found.diagnosis, notes[exercise.number]]),
                file=out,
                flush=True,
            )


def as_csv(grades: Iterable[Grade]) -> str:
    """Grades as CSV with a header, one line an exercise."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(Grade._fields)
    table.writerows(grades)
    return out.getvalue()


def as_table(grades: Iterable[Grade]) -> str:
    """Grades as text, a block for each file: how many are solved, and what the others lack."""
    files: dict[str, list[Grade]] = {}
    for line in grades:
        files.setdefault(line.file, []).append(line)
    lines = []
    for file, some in files.items():
        lines.append(f"{file}: {sum(line.result == 'solved' for line in some)} of {len(some)} solved")
        for _, number, result, what, note in some:
            told = "; ".join(filter(None, [what.split(". wrong for: ")[0], note]))
            lines.append(f"  {number:5}{result:12}  {told}".rstrip())
    return "\n".join([*lines, ""])


# ---- what an answer borrows

BACK_DOORS = {"__import__", "eval", "exec", "importlib", "inspect", "open", "sys"}


def borrowed(stem: str, name: str, source: str) -> str:
    """What an answer uses of libraries and the master does not: "calls minires.conv2d"; "" for nothing.

    Only the text is read. Ways to reach a library without naming it are told too: "calls eval".
    """
    master = chapters_folder() / "teacher" / "masters" / f"{stem}.py"
    if not master.exists():  # a student's copy: masters are the teacher's
        return ""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ""
    own = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    todo, seen = [name], set()
    while todo:  # the answer and the functions of the file that it uses
        names = {n.id for n in ast.walk(own[todo[-1]]) if isinstance(n, ast.Name)} if todo[-1] in own else set()
        seen.add(todo.pop())
        todo += sorted(names & own.keys() - seen)
    used = {used for name in seen & own.keys() for used in _library_names(tree, own[name])}
    master_tree = ast.parse(read(master))
    new = sorted(used - _library_names(master_tree, master_tree))
    return f"calls {', '.join(new)}" if new else ""


def _library_names(tree: ast.Module, part: ast.AST) -> set[str]:
    """The full names, "minires.conv.conv2d", that a part of a module uses of what the module imports.

    Python's own library and NumPy do not count.
    """
    full = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full.update(
                {
                    alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                    for alias in node.names
                }
            )
        elif isinstance(node, ast.ImportFrom) and node.module:
            full.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    found = {name for alias, name in full.items() if alias == "*"}
    inner: set[ast.AST] = set()
    for node in ast.walk(part):  # outer nodes come first: of mr.conv.conv2d, the longest name counts
        first, *rest = _dotted(node)
        if first and node not in inner:
            inner.update(ast.walk(node))
            if first in full or first in BACK_DOORS:
                found.add(".".join([full.get(first, first), *rest]))
    harmless = (sys.stdlib_module_names | {"numpy"}) - BACK_DOORS
    return {name for name in found if name.split(".")[0] not in harmless}


def _dotted(node: ast.AST) -> list[str]:
    """["mr", "conv", "conv2d"] for mr.conv.conv2d, [""] for all that is no name."""
    rest: list[str] = []
    while isinstance(node, ast.Attribute):
        rest.insert(0, node.attr)
        node = node.value
    return [node.id, *rest] if isinstance(node, ast.Name) else [""]
