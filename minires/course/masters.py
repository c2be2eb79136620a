"""Masters: the exercises with their solutions, and what is made from them: stubs, solutions and wrong answers.

In a master, each solution is between two marker lines, those of nbgrader.
"""

from __future__ import annotations

import ast
import re
from typing import NamedTuple

from minires.course.exercises import Exercise

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


class Wrong(NamedTuple):
    """A wrong answer: the master's solution with `old` (found there once) replaced by `new`.

    exercise: its number. mistake: in a few words. expected_diagnosis: what the report's diagnosis must contain,
    " ... " matching anything: "gradient for a: constant ratio 0.5 ... wrong for: a sum".
    """

    exercise: str
    mistake: str
    old: str
    new: str
    expected_diagnosis: str

    def fits(self, diagnosis: str) -> bool:
        """Whether the diagnosis contains what it must."""
        parts = self.expected_diagnosis.split(" ... ")
        return bool(re.search(".*".join(map(re.escape, parts)), diagnosis))


def make_solution(master: str) -> str:
    """The solutions file: the master without its markers."""
    return "".join(line for line in master.splitlines(True) if line.strip() not in (BEGIN, END))


def make_stub(master: str, exercises: list[Exercise]) -> str:
    """The student's file: `raise NotImplementedError("exercise 4.2")` for each solution, sizes in the docstrings."""
    lines = master.splitlines(True)
    for begin, end, exercise in reversed(solution_blocks(master, exercises)):
        indent = _indent(lines[begin])
        lines[begin : end + 1] = [f'{indent}raise NotImplementedError("exercise {exercise.number}")\n']
    sizes = {exercise.name: exercise.size for exercise in exercises}
    for node in reversed(ast.parse("".join(lines)).body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in sizes and ast.get_docstring(node):
            last = (node.body[0].end_lineno or 0) - 1
            text, indent = lines[last].rstrip().removesuffix('"""').rstrip(), _indent(lines[node.body[0].lineno - 1])
            size = f'{indent}{sizes[node.name].capitalize()}.\n{indent}"""\n'
            lines[last] = f"{text}\n\n{size}" if text else f"\n{size}"
    return "".join(lines)


def make_wrong(master: str, exercises: list[Exercise], wrong: Wrong) -> str:
    """The solutions file with one wrong answer planted in it."""
    lines = master.splitlines(True)
    blocks = [(i, j) for i, j, exercise in solution_blocks(master, exercises) if exercise.number == wrong.exercise]
    found = sum("".join(lines[begin:end]).count(wrong.old) for begin, end in blocks)
    problem = f"old occurs {found} times in the solution, expected once" if found != 1 else ""
    if wrong.old == wrong.new:
        problem = "old and new are the same"
    if problem:
        raise ValueError(f"wrong answer {wrong.mistake!r} of exercise {wrong.exercise}: {problem}: {wrong.old!r}")
    for begin, end in reversed(blocks):
        lines[begin:end] = ["".join(lines[begin:end]).replace(wrong.old, wrong.new)]
    return make_solution("".join(lines))


def solution_lines(master: str, exercises: list[Exercise]) -> dict[str, int]:
    """The number of code lines of each exercise's solution, without comments and blank lines, by number."""
    lines = [line.strip() for line in master.splitlines()]
    count = dict.fromkeys((exercise.number for exercise in exercises), 0)
    for begin, end, exercise in solution_blocks(master, exercises):
        count[exercise.number] += sum(bool(line) and not line.startswith("#") for line in lines[begin:end])
    return count


def solution_blocks(master: str, exercises: list[Exercise]) -> list[tuple[int, int, Exercise]]:
    """Each solution in a master: the indices of the lines of its two markers, and its exercise."""
    by_name = {exercise.name: exercise for exercise in exercises}
    markers = [(i, line.strip()) for i, line in enumerate(master.splitlines()) if line.strip() in (BEGIN, END)]
    for k, (i, marker) in enumerate(markers):
        if marker != (BEGIN, END)[k % 2]:
            raise ValueError(f"master, line {i + 1}: expected `{(BEGIN, END)[k % 2]}`, got `{marker}`")
    if len(markers) % 2:
        raise ValueError(f"master, line {markers[-1][0] + 1}: `{BEGIN}` without its `{END}`")
    owners = {
        i: getattr(node, "name", "")
        for node in ast.parse(master).body
        for i in range(node.lineno - 1, node.end_lineno or node.lineno)
    }
    blocks = []
    for (begin, _), (end, _) in zip(markers[::2], markers[1::2], strict=True):
        if owners.get(begin) not in by_name:
            raise ValueError(
                f"master, line {begin + 1}: expected a solution of {', '.join(by_name)}, got one of {owners.get(begin)}"
            )
        blocks.append((begin, end, by_name[owners[begin]]))
    if missing := by_name.keys() - {exercise.name for _, _, exercise in blocks}:
        raise ValueError(f"master: expected `{BEGIN}` and `{END}` in each exercise, got none in {sorted(missing)}")
    return blocks


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]
