"""Exercises: find one, check a student's answer, show a hint.

A chapter's exercises are in files of one name, chNN_topic.py, in these folders of `chapters/`:

    exercises/        the file a student edits: `raise NotImplementedError("exercise 4.2")` where an answer belongs
    checks/           the list EXERCISES: hints, cases and a reference for each
    teacher/masters/  every exercise with its solution, from which `exercises/` is made
    teacher/wrong/    the list WRONG: answers that must be found wrong, each with the diagnosis expected

Students get a copy without `teacher/`. `chapters/README.md` explains how to add an exercise.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import stat
import sys
import textwrap
import types
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minires.course.compare import Mistake, compare, kind, unchanged
from minires.course.hints import HINTS
from minires.course.process import run_answers
from minires.tensor import Tensor

NOT_STARTED = "a part of it is not started: there is still a `raise NotImplementedError`"
LARGEST_FILE = 10**6  # bytes
MOST_PRINTED = 10_000  # characters that are kept of what an answer prints


@dataclass(frozen=True)
class Exercise:
    """One exercise: what a right answer returns, and the arguments on which that is checked.

    name: the function, or class, in the student's file. level: its difficulty, from 1 to 3. lines: of code in the
    master's solution. hints: three or more, from the idea to nearly the code.
    cases: yields (words, arguments): what is special about the case, and a tuple for `reference(*arguments)`; from the
    plainest to the hardest, because the report describes the first case that fails.
    reference: the expected result: an array, a Tensor, a number, True or False, a string, or a tuple or list of them.
    Its parameters' names are used in reports; an array argument called `grad` is taken for the upstream gradient.
    run: calls the answer where `answer(*arguments)` is not enough, as run(answer, *arguments).
    outputs: names for the parts of a result that is a tuple.
    rtol: relative tolerance; None means 1e-4 where float32 is expected, 1e-6 otherwise.
    """

    number: str
    name: str
    title: str
    level: int
    lines: int
    hints: tuple[str, ...]
    cases: Callable[[], Iterable[tuple[str, tuple[Any, ...]]]]
    reference: Callable[..., Any]
    run: Callable[..., Any] | None = None
    outputs: tuple[str, ...] = ("the result",)
    rtol: float | None = None

    @property
    def size(self) -> str:
        """Difficulty and length in words: "level 2, about 6 lines"."""
        return f"level {self.level}, about {self.lines} line{'s' if self.lines > 1 else ''}"


class Report(NamedTuple):
    """What a check found. status: "solved", "not started" or "wrong". diagnosis: one line, empty unless wrong."""

    status: str
    diagnosis: str
    text: str


# ---- the files of a chapter


def chapters_folder() -> Path:
    """`chapters/` of the checkout that contains this package. Checks never come from the folder you are in."""
    folder = Path(__file__).parents[2] / "chapters"
    if not (folder / "checks").is_dir():
        raise FileNotFoundError(
            f"expected the exercises' checks in {folder / 'checks'}, got none; run `pip install -e .` in a checkout"
        )
    return folder


def _answers_folder() -> Path:
    """The student's `exercises/`: in the checkout around the working directory, or else in that of this package."""
    here = Path.cwd()
    around = (folder / "chapters" / "exercises" for folder in (here, *here.parents))
    return next(filter(Path.is_dir, around), chapters_folder() / "exercises")


def load(source: str, filename: str) -> dict[str, Any]:
    """The names that a Python file defines. It runs from its text, so no outdated compiled version is ever used."""
    module = types.ModuleType(Path(filename).stem)
    module.__file__ = filename
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module  # dataclasses look it up
    try:
        exec(compile(source, filename, "exec"), module.__dict__)
    finally:
        if before is None:
            sys.modules.pop(module.__name__, None)
        else:
            sys.modules[module.__name__] = before
    return module.__dict__


def read(path: Path) -> str:
    """The text of a Python file. What is no file (a pipe, a device) or too large for one is refused unopened."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"expected a Python file, got a {'folder' if path.is_dir() else 'pipe or device'}: {path}")
    if found.st_size > LARGEST_FILE:
        raise OSError(f"expected a Python file of at most {LARGEST_FILE:,} bytes, got {found.st_size:,}: {path}")
    return path.read_text(encoding="utf-8-sig")  # Windows editors may write the three bytes of a BOM


def exercises_of(stem: str, chapters: Path | None = None) -> list[Exercise]:
    """The exercises of one chapter, "ch04_convolution"."""
    return _load_checks((chapters or chapters_folder()) / "checks" / f"{stem}.py")


@cache
def _load_checks(path: Path) -> list[Exercise]:
    exercises: list[Exercise] = load(read(path), str(path))["EXERCISES"]
    return exercises


def all_exercises() -> dict[str, tuple[str, Exercise]]:
    """Every exercise by its number, with its chapter's file name: {"4.2": ("ch04_convolution", Exercise)}."""
    stems = sorted(path.stem for path in (chapters_folder() / "checks").glob("ch*.py"))
    return {exercise.number: (stem, exercise) for stem in stems for exercise in exercises_of(stem)}


def find(number: str) -> tuple[str, Exercise]:
    """The chapter's file name and the exercise with this number; ValueError if there is none."""
    exercises = all_exercises()
    if number not in exercises:
        raise ValueError(f"there is no exercise {number!r}; there are {', '.join(exercises)}")
    return exercises[number]


# ---- what a student uses


def check(number: str) -> None:
    """Print whether your answer to an exercise is right, and if not, how it is wrong: `check("4.2")`."""
    print(report(number).text)


def hint(number: str, stage: int = 1) -> None:
    """Print a hint for an exercise: `hint("4.2")`, then `hint("4.2", 2)`. Each stage says more."""
    exercise = find(number)[1]
    last = len(exercise.hints)
    if not 1 <= stage <= last:
        raise ValueError(f"exercise {number} has hints 1 to {last}, got {stage}")
    print(f"exercise {number} {exercise.name}, hint {stage} of {last}:\n")
    print(_wrap(exercise.hints[stage - 1]))
    if stage < last:
        print(f"\nMore: python -m minires hint {number} {stage + 1}")


def overview() -> str:
    """A line for each exercise: its size, and whether it is solved, not started or wrong."""
    exercises = [exercise for _, exercise in all_exercises().values()]
    found = reports(exercise.number for exercise in exercises)
    width = max(len(exercise.title) for exercise in exercises)
    rows = [
        f"{exercise.number:6}{exercise.name:21}{exercise.title:{width}}  level {exercise.level}  "
        f"{exercise.lines:2} line{'s' if exercise.lines > 1 else ' '}  {found[exercise.number].status}"
        for exercise in exercises
    ]
    return "\n".join([*rows, "", "One exercise: python -m minires check 1.1   A hint: python -m minires hint 1.1"])


def report(number: str) -> Report:
    """The report on the answer in the student's file, chapters/exercises/chNN_topic.py."""
    return reports([number])[number]


def reports(numbers: Iterable[str]) -> dict[str, Report]:
    """The report on each of these exercises."""
    by_chapter: dict[str, list[Exercise]] = {}
    for stem, exercise in map(find, numbers):
        by_chapter.setdefault(stem, []).append(exercise)
    return {
        exercise.number: found
        for stem, exercises in by_chapter.items()
        for exercise, found in zip(exercises, _reports(stem, exercises), strict=True)
    }


def _reports(stem: str, exercises: list[Exercise]) -> list[Report]:
    """The reports on the student's answers to exercises of one chapter, which run in a process of their own."""
    filename = f"chapters/exercises/{stem}.py"
    try:
        source = read(_answers_folder() / f"{stem}.py")
    except (OSError, UnicodeError) as error:
        mistake = Mistake(f"{filename} cannot be read: {error}", "your file")
        return [_report_wrong(exercise, mistake) for exercise in exercises]
    rows = run_answers(source, filename, stem, [exercise.number for exercise in exercises])
    return [
        Report(*row[:3]) if row.text else _report_wrong(exercise, Mistake(row.diagnosis, filename))
        for exercise, row in zip(exercises, rows, strict=True)
    ]


# ---- the check


class _Printed(io.StringIO):
    """The start of what an answer prints, which may be endless. An answer can't close it."""

    def write(self, text: str) -> int:
        super().write(text[: max(0, MOST_PRINTED - self.tell())])
        return len(text)

    def close(self) -> None:
        pass


def check_source(exercise: Exercise, source: str, filename: str) -> Report:
    """Run the answer in a file's text on every case of an exercise.

    Expected results are computed before any student code runs.
    """
    cases = [(words, args, exercise.reference(*copy.deepcopy(args))) for words, args in exercise.cases()]
    printed = _Printed()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # NaN and infinity are found in the result
        try:
            answer = load(source, filename).get(exercise.name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            mistake = Mistake(f"it cannot be loaded: {_describe(error, filename, source)}", "your file")
            return _report_wrong(exercise, mistake, printed=printed.getvalue())
        if not callable(answer):
            mistake = Mistake(f"it has no {exercise.name}: keep the names of the exercises as they are", "your file")
            return _report_wrong(exercise, mistake, printed=printed.getvalue())
        tried = [
            (words, args, _mistake(exercise, answer, args, expected, filename, source))
            for words, args, expected in cases
        ]

    mistakes = [mistake for _, _, mistake in tried if mistake]
    if not mistakes:
        return Report("solved", "", f"{_title(exercise)}: solved, {len(cases)} cases")
    if len(mistakes) == len(cases) and all(mistake.pattern == NOT_STARTED for mistake in mistakes):
        where = f"It is in {filename}; for a hint: {_hint_command(exercise)}"
        return Report("not started", "", f"{_title(exercise)}: not started\n{where}")
    return _report_wrong(exercise, mistakes[0], tried, printed.getvalue())


def _mistake(
    exercise: Exercise, answer: Callable[..., Any], args: tuple[Any, ...], expected: Any, filename: str, source: str
) -> Mistake | None:
    """What is wrong with the answer on one case; None if nothing is."""
    given = copy.deepcopy(args)
    try:
        got = exercise.run(answer, *given) if exercise.run else answer(*given)
        names = _argument_names(exercise)
        for name, before, after in zip(names, args, given, strict=False):
            if not unchanged(before, after):
                return Mistake(f"input modified: your answer changed {name}, which it was given", f"argument {name}")
        grad = dict(zip(names, args, strict=False)).get("grad")
        compare(exercise.outputs, got, expected, grad if isinstance(grad, np.ndarray) else None, exercise.rtol)
    except Mistake as mistake:
        return mistake
    except NotImplementedError as error:
        if str(error) == f"exercise {exercise.number}":
            return Mistake(NOT_STARTED)
        return Mistake(f"it needs {error}, which is not started; use what minires has for it")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Mistake(f"it stops with {_describe(error, filename, source)}")
    return None


# ---- words


def _report_wrong(
    exercise: Exercise,
    mistake: Mistake,
    tried: Iterable[tuple[str, tuple[Any, ...], Mistake | None]] = (),
    printed: str = "",
) -> Report:
    """The report on a wrong answer, hint first. tried: words, arguments and mistake of each case."""
    hint = next((HINTS[start] for start in HINTS if mistake.pattern.startswith(start)), exercise.hints[0])
    diagnosis = f"{mistake.output}: {mistake.pattern}"
    lines = [_wrap(f"hint: {hint}"), "", f"{_title(exercise)}: wrong"]
    lines += [_entry(line) for line in (diagnosis, *mistake.figures)]
    if failed := [(words, args) for words, args, wrong in tried if wrong]:
        words, args = failed[0]
        shown = ", ".join(f"{n} {_argument(a)}" for n, a in zip(_argument_names(exercise), args, strict=False))
        summary = f"wrong for: {'; '.join(words for words, _ in failed)}"
        if right := [words for words, _, wrong in tried if not wrong]:
            summary += f". right for: {'; '.join(right)}"
        lines += [_entry(f"case: {words} ({shown})"), _entry(summary)]
        diagnosis += f". {summary}"
    if printed:
        shown_lines = printed.splitlines()
        lines += ["  it printed:", *(f"    {line[:100]}" for line in shown_lines[:5])]
        lines += [f"  ... and {len(shown_lines) - 5} more lines"] if len(shown_lines) > 5 else []
        lines += [f"  ... cut after {MOST_PRINTED:,} characters"] if len(printed) == MOST_PRINTED else []
    lines += ["", f"next: {_hint_command(exercise)}"]
    return Report("wrong", diagnosis, "\n".join(lines))


def _title(exercise: Exercise) -> str:
    return f"exercise {exercise.number} {exercise.name} ({exercise.size})"


def _hint_command(exercise: Exercise) -> str:
    return f"python -m minires hint {exercise.number}"


def _argument_names(exercise: Exercise) -> list[str]:
    return list(inspect.signature(exercise.reference).parameters)


def _wrap(text: str) -> str:
    """Lines of at most 100 characters; indented lines (code, formulas) stay as they are."""
    return "\n".join(
        line if line.startswith(" ") else "\n".join(textwrap.wrap(line, 100)) for line in text.splitlines()
    )


def _entry(text: str) -> str:
    """A line of a report, wrapped where it is long."""
    return textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="    ")


def _argument(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"Tensor {value.dtype} {value.shape}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    text = getattr(value, "__name__", repr(value))
    return f"= {kind(value)}" if " at 0x" in text else f"= {textwrap.shorten(text, 60)}"  # an address helps nobody


def _describe(error: BaseException, filename: str, source: str) -> str:
    """An error in one line, with the line of the student's file that caused it."""
    number, message = None, str(error)
    if isinstance(error, SyntaxError) and error.filename == filename:
        number, message = error.lineno, error.msg
    else:
        trace = error.__traceback__
        while trace:
            if trace.tb_frame.f_code.co_filename == filename:
                number = trace.tb_lineno
            trace = trace.tb_next
    name = "sys.exit" if isinstance(error, SystemExit) else type(error).__name__
    text = textwrap.shorten(f"{name}: {message}".rstrip(": "), 200)
    lines = source.splitlines()
    return f"{text} (line {number}: {lines[number - 1].strip() if number <= len(lines) else ''})" if number else text
