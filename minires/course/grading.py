"""Grading: the files of an entire class, each in a process of its own, for the teacher to look through."""

from __future__ import annotations

import ast
import csv
import io
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from minires.course.exercises import chapters_folder, exercises_of, read
from minires.course.process import MEMORY, run_answers

SYSTEM_FOLDERS = (".", "__", "$")  # how the names of folders start that no student made: .ipynb_checkpoints, __MACOSX
A_DAY = 86_400  # seconds


class Grade(NamedTuple):
    """One line of a teacher's table.

    status and diagnosis are those of a report; status may also be "over time", "ended" (the answer ended Python),
    "unreadable", "notebook" or "no chapter". note: library calls that the master doesn't need.
    """

    file: str
    exercise: str
    status: str
    diagnosis: str = ""
    note: str = ""


def grade_all(paths: Iterable[Path], seconds: float = 60, memory: int = MEMORY) -> list[Grade]:
    """The grades of every file among `paths` and in the folders among them."""
    from tqdm import tqdm

    if not 0 < seconds <= A_DAY:
        raise ValueError(f"grade: expected a time limit from 0 to {A_DAY} seconds, got {seconds:g}; 60 is usual")
    files = tqdm(handed_in(paths), desc="grade", unit="file", disable=None)  # no bar where stderr is no terminal
    return [line for path in files for line in grade(path, seconds, memory)]


def handed_in(paths: Iterable[Path]) -> list[Path]:
    """The Python files and notebooks among `paths` and in the folders among them, sorted within each folder.

    Hidden files and folders are passed over, and those of the system.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"grade: {path} does not exist")
        files += (
            sorted(found for found in path.rglob("*") if _is_answer(found.relative_to(path)))
            if path.is_dir()
            else [path]
        )
    if not files:
        raise ValueError("grade: expected Python files or folders with some, got none")
    return files


def _is_answer(path: Path) -> bool:
    """Whether a path in a folder looks like something that a student handed in."""
    hidden = path.name.startswith(".") or any(part.startswith(SYSTEM_FOLDERS) for part in path.parent.parts)
    return path.suffix.lower() in (".py", ".ipynb") and not hidden


def grade(path: Path, seconds: float = 60, memory: int = MEMORY) -> list[Grade]:
    """Grade one file: every exercise of its chapter, in a process of its own that is ended after `seconds`.

    The chapter is read from the file's name: anna_ch04.py. After an answer that takes too long or ends the process,
    a new process resumes with the next exercise.
    """
    file = str(path)
    if path.suffix.lower() == ".ipynb":
        return [Grade(file, "", "notebook", "expected the Python file of chapters/exercises, got a notebook")]
    chapter = re.findall(r"ch\d\d", path.stem.lower())
    stems = [p.stem for p in (chapters_folder() / "checks").glob(f"{chapter[-1]}_*.py")] if chapter else []
    if not stems:
        return [Grade(file, "", "no chapter", "the file's name should contain its chapter, as in anna_ch04.py")]
    try:
        if path.is_symlink():
            raise OSError("expected the file itself, got a link")
        source = read(path)
    except (OSError, UnicodeError) as error:
        return [Grade(file, "", "unreadable", str(error))]
    numbers = [exercise.number for exercise in exercises_of(stems[0])]
    rows = run_answers(source, file, stems[0], numbers, seconds, memory)
    return [Grade(file, number, row.status, row.diagnosis, row.note) for number, row in zip(numbers, rows, strict=True)]


def as_csv(grades: Iterable[Grade]) -> str:
    """Grades as CSV with a header, one line per exercise."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(Grade._fields)
    table.writerows(map(_printable, grades))
    return out.getvalue()


def as_table(grades: Iterable[Grade]) -> str:
    """Grades as text, a block per file: how many exercises are solved, and what is wrong with the others."""
    files: dict[str, list[Grade]] = {}
    for line in map(_printable, grades):
        files.setdefault(line.file, []).append(line)
    rows = []
    for file, lines in files.items():
        solved = f"{sum(line.status == 'solved' for line in lines)} of {len(lines)} solved"
        rows.append(f"{file}: {solved if lines[0].exercise else 'not graded'}")
        for line in lines:
            details = "; ".join(filter(None, [line.diagnosis.split(". wrong for: ")[0], line.note]))
            rows.append(f"  {line.exercise:5}{line.status:12}  {details}".rstrip())
    return "\n".join([*rows, ""])


def _printable(grade: Grade) -> Grade:
    """Line ends, commands to a terminal and broken letters in names and messages, written out: "\\x1b"."""
    return Grade(
        *("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) for text in grade)
    )


# ---- library calls

EVASIONS = {"__import__", "eval", "exec", "importlib", "inspect", "open", "sys"}


def library_calls(stem: str, name: str, source: str) -> str:
    """What an answer uses of libraries that the master does not, as "calls minires.conv2d"; "" for nothing.

    Only the text is read. Ways to reach a library without naming it are reported too: "calls eval".
    """
    master = chapters_folder() / "teacher" / "masters" / f"{stem}.py"
    if not master.exists():  # a student's copy
        return ""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
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
    """The full names, "minires.conv.conv2d", that a part of a module uses of the module's imports.

    Python's own library and NumPy do not count.
    """
    full = {}  # by the name in the module
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]  # `import a.b` defines a
                full[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module:
            full.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    found = {name for alias, name in full.items() if alias == "*"}
    inner: set[ast.AST] = set()
    for node in ast.walk(part):  # outer nodes come first: of mr.conv.conv2d, the longest name counts
        first, *rest = _dotted(node)
        if first and node not in inner:
            inner.update(ast.walk(node))
            if first in full or first in EVASIONS:
                found.add(".".join([full.get(first, first), *rest]))
    harmless = (sys.stdlib_module_names | {"numpy"}) - EVASIONS
    return {name for name in found if name.split(".")[0] not in harmless}


def _dotted(node: ast.AST) -> list[str]:
    """["mr", "conv", "conv2d"] for mr.conv.conv2d, [""] for whatever is not a name."""
    rest: list[str] = []
    while isinstance(node, ast.Attribute):
        rest.insert(0, node.attr)
        node = node.value
    return [node.id, *rest] if isinstance(node, ast.Name) else [""]
