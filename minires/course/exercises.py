"""Exercises: find one, run a student's answer on its cases, say how it is wrong, give hints.

All that belongs to a chapter's exercises lies in `chapters/` of the checkout, in files of one name, chNN_topic.py:

    masters/    every exercise with its solution, from which two other files are made:
    exercises/  the file a student edits: each solution is replaced by `raise NotImplementedError("exercise 4.2")`
    solutions/  the same with the solutions
    checks/     the list EXERCISES: hints, cases and a reference for each
    wrong/      the list WRONG: answers that must be found wrong, each with the diagnosis expected

`chapters/README.md` tells how to add one.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import inspect
import io
import re
import sys
import textwrap
import types
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minires.gradcheck import diagnose
from minires.tensor import Tensor


class Mistake(Exception):
    """Raised by a check's own code to say in plain words what is wrong with an answer."""


@dataclass(frozen=True)
class Exercise:
    """One exercise: what a right answer returns, and on which arguments that is tried.

    name: the function, or class, in the student's file. hints: three or more, from the idea to nearly the code.
    cases: yields (words, arguments): what is particular about the case, and a tuple for `reference(*arguments)`;
    from the plainest to the hardest, as the report is about the first one that fails.
    reference: what is wanted: an array, a Tensor, a number, True or False, a string, or a tuple or list of them. Its
    parameters' names are used in reports, and an array argument called `grad` is taken for the upstream gradient.
    run: calls the answer where `answer(*arguments)` is not enough, as run(answer, *arguments).
    outputs: names for the parts of a result that is a tuple.
    rtol: relative tolerance; None for 1e-4 where float32 is wanted, else 1e-6.
    """

    number: str
    name: str
    title: str
    hints: tuple[str, ...]
    cases: Callable[[], Iterable[tuple[str, tuple[Any, ...]]]]
    reference: Callable[..., Any]
    run: Callable[..., Any] | None = None
    outputs: tuple[str, ...] = ("the result",)
    rtol: float | None = None


class Wrong(NamedTuple):
    """A wrong answer: the master's solution with `old` (found there once) replaced by `new`.

    exercise: its number. mistake: in a few words. says: what the report's diagnosis must hold, " ... " standing for
    anything: "gradient for a: constant ratio 0.5 ... wrong for: a sum".
    """

    exercise: str
    mistake: str
    old: str
    new: str
    says: str

    def fits(self, diagnosis: str) -> bool:
        """Whether the diagnosis holds what it must."""
        return bool(re.search(".*".join(map(re.escape, self.says.split(" ... "))), diagnosis))


class Report(NamedTuple):
    """What a check found. status: "solved", "not started" or "wrong". diagnosis: one line, empty unless wrong."""

    status: str
    diagnosis: str
    text: str


# ---- the files of a chapter


def chapters_folder() -> Path:
    """`chapters/` of the checkout around the working directory, else of the one that this package lies in."""
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).parents[2]):
        if (folder / "chapters" / "checks").is_dir():
            return folder / "chapters"
    raise FileNotFoundError("no folder chapters/ with exercises here: run this in a checkout of minires")


def load(source: str, filename: str) -> dict[str, Any]:
    """The names that a Python file defines. It is run from its text: no compiled older version is ever met."""
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
    return path.read_text(encoding="utf-8-sig")


def exercises_of(stem: str, chapters: Path | None = None) -> list[Exercise]:
    """The exercises of one chapter, "ch04_convolution"."""
    path = (chapters or chapters_folder()) / "checks" / f"{stem}.py"
    return load(read(path), str(path))["EXERCISES"]


def all_exercises() -> dict[str, tuple[str, Exercise]]:
    """Every exercise by its number, with its chapter's file name: {"4.2": ("ch04_convolution", Exercise)}."""
    stems = sorted(path.stem for path in (chapters_folder() / "checks").glob("ch*.py"))
    return {exercise.number: (stem, exercise) for stem in stems for exercise in exercises_of(stem)}


def find(number: str) -> tuple[str, Exercise]:
    """The chapter's file name and the exercise with this number; ValueError if there is none."""
    every = all_exercises()
    if number not in every:
        raise ValueError(f"there is no exercise {number!r}; there are {', '.join(every)}")
    return every[number]


# ---- what a student uses


def check(number: str) -> None:
    """Print what is right or wrong with your answer to an exercise: `check("4.2")`."""
    print(report(number).text)


def hint(number: str, stage: int = 1) -> None:
    """Print a hint for an exercise: `hint("4.2")`, then `hint("4.2", 2)`. Each stage tells more."""
    exercise = find(number)[1]
    last = len(exercise.hints)
    if not 1 <= stage <= last:
        raise ValueError(f"exercise {number} has hints 1 to {last}, got stage {stage}")
    print(f"exercise {number} {exercise.name}, hint {stage} of {last}:\n")
    print(_fill(exercise.hints[stage - 1]))
    if stage < last:
        print(f"\nMore: python -m minires hint {number} --stage {stage + 1}")


def overview() -> str:
    """A line for each exercise: solved, not started or wrong."""
    every = {number: exercise for number, (_, exercise) in all_exercises().items()}
    wide = max(len(exercise.title) for exercise in every.values())
    lines = [
        f"{number:6}{exercise.name:22}{exercise.title:{wide}}  {report(number).status}"
        for number, exercise in every.items()
    ]
    return "\n".join([*lines, "", "One of them: python -m minires check 1.1   A hint: python -m minires hint 1.1"])


def report(number: str) -> Report:
    """The report on the answer in the student's file, chapters/exercises/chNN_topic.py."""
    stem, exercise = find(number)
    path = chapters_folder() / "exercises" / f"{stem}.py"
    name = f"chapters/exercises/{stem}.py"
    try:
        source = read(path)
    except (OSError, UnicodeError) as error:
        return _wrong(exercise, Finding("your file", f"{name} cannot be read: {error}"), [], "")
    return examine(exercise, source, name)


# ---- the check


class Finding(NamedTuple):
    """Why one case failed: the part of the result, the pattern, and lines with figures."""

    output: str
    pattern: str
    figures: tuple[str, ...] = ()


def examine(exercise: Exercise, source: str, filename: str) -> Report:
    """Run the answer in a file's text on every case of an exercise.

    The results wanted are computed before any of the student's code runs.
    """
    cases = [(words, args, exercise.reference(*copy.deepcopy(args))) for words, args in exercise.cases()]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # NaN and infinity are found in the result
        try:
            answer = load(source, filename).get(exercise.name)
        except (Exception, SystemExit) as error:
            found = Finding("your file", f"it cannot be loaded: {_told(error, filename, source)}")
            return _wrong(exercise, found, [], printed.getvalue())
        if not callable(answer):
            found = Finding("your file", f"{exercise.name} is not in it: a name of the exercise must stay as it was")
            return _wrong(exercise, found, [], printed.getvalue())
        findings = [_try(exercise, answer, args, wanted, filename, source) for _, args, wanted in cases]

    if all(finding is NOT_STARTED for finding in findings):
        return Report(
            "not started",
            "",
            f"exercise {exercise.number} {exercise.name}: not started\n"
            f"It is in {filename}; for a hint: {_hint_command(exercise)}",
        )
    if not any(findings):
        return Report("solved", "", f"exercise {exercise.number} {exercise.name}: solved ({len(cases)} cases)")
    first = next(finding for finding in findings if finding)
    return _wrong(exercise, first, list(zip(cases, findings, strict=True)), printed.getvalue())


NOT_STARTED = Finding("the result", "a part of it is not started: `raise NotImplementedError` still stands there")


def _try(
    exercise: Exercise, answer: Callable[..., Any], args: tuple[Any, ...], wanted: Any, filename: str, source: str
) -> Finding | None:
    """What is wrong with the answer on one case; None if nothing is."""
    given = copy.deepcopy(args)
    try:
        got = exercise.run(answer, *given) if exercise.run else answer(*given)
    except NotImplementedError as error:
        if str(error) == f"exercise {exercise.number}":
            return NOT_STARTED
        return Finding("the result", f"it needs {error}, which is not started; use what minires has for it")
    except Mistake as error:
        return Finding("the result", str(error))
    except (Exception, SystemExit) as error:
        return Finding("the result", f"it stops with {_told(error, filename, source)}")
    names = list(inspect.signature(exercise.reference).parameters)
    named = dict(zip(names, args, strict=False))
    for name, before, after in zip(names, args, given, strict=False):
        if not _same(before, after):
            return Finding(f"argument {name}", f"input modified: your answer changed {name}, which it was given")
    grad = named.get("grad")
    return _compare(exercise.outputs, got, wanted, grad if isinstance(grad, np.ndarray) else None, exercise.rtol)


def _compare(
    names: tuple[str, ...], got: Any, wanted: Any, upstream: np.ndarray | None, rtol: float | None
) -> Finding | None:
    """What is wrong with a result, or with the first wrong part of it."""
    name = names[0]
    if got is None and wanted is not None:
        return Finding(name, "it is None: is a `return` missing?")
    if isinstance(wanted, tuple | list):
        if not isinstance(got, tuple | list) or len(got) != len(wanted):
            came = f"{len(got)} of them" if isinstance(got, tuple | list) else kind(got)
            parts = f" ({', '.join(names)})" if len(names) == len(wanted) else ""
            return Finding("the result", f"wrong number of results: expected {len(wanted)}{parts}, got {came}")
        parts_ = names if len(names) == len(wanted) else [f"{name}[{i}]" for i in range(len(wanted))]
        found = (_compare((n,), g, w, upstream, rtol) for n, g, w in zip(parts_, got, wanted, strict=True))
        return next(filter(None, found), None)
    if isinstance(wanted, Tensor):
        if not isinstance(got, Tensor):
            return Finding(name, f"wrong type: {kind(got)}, expected a Tensor")
        return _compare(names, got.data, wanted.data, upstream, rtol)
    number = isinstance(wanted, Real) and not isinstance(wanted, bool | np.generic)
    if number and not isinstance(got, bool) and (isinstance(got, Real) or np.ndim(got) == np.size(got) - 1 == 0):
        if isinstance(wanted, Integral) and not isinstance(got, Integral):
            return Finding(name, f"wrong type: {kind(got)} {got}, expected a whole number (int)")
        got, wanted = np.asarray(float(got)), np.asarray(float(wanted))
    elif isinstance(wanted, np.ndarray | np.generic):
        if not isinstance(got, np.ndarray | np.generic):
            return Finding(name, f"wrong type: {kind(got)}, expected an array")
        got, wanted = np.asarray(got), np.asarray(wanted)
        if wanted.dtype.kind in "iub" and (got.dtype.kind in "iu") == (wanted.dtype.kind in "iu"):
            if got.dtype.kind in "iub":  # any size of integer will do
                got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    elif type(got) is not type(wanted) and not (isinstance(wanted, bool) and isinstance(got, np.bool_)):
        return Finding(name, f"wrong type: {kind(got)}, expected {kind(wanted)}")
    else:
        return None if got == wanted else Finding(name, f"it is {got!r}, expected {wanted!r}")

    rtol = rtol or (1e-4 if wanted.dtype == np.float32 else 1e-6)
    pattern = diagnose(got, wanted, upstream, rtol=rtol, atol=rtol / 10)
    if not pattern:
        return None
    shape = f"shape {got.shape}, expected {wanted.shape}" if got.shape != wanted.shape else f"shape {wanted.shape}"
    figures = [] if not wanted.ndim or pattern.startswith("wrong shape") else [f"{shape}, {wanted.dtype}"]
    if got.shape == wanted.shape:
        miss = np.nan_to_num(np.abs(got - wanted.astype(np.float64)), nan=np.inf)
        at = np.unravel_index(np.argmax(miss), miss.shape)
        where = f"worst at [{', '.join(map(str, at))}]: " if wanted.ndim else ""
        figures.append(f"{where}yours {got[at]:.6g}, expected {wanted[at]:.6g}")
        wrong = np.count_nonzero(miss > rtol / 10 + rtol * np.abs(wanted))
        if wanted.ndim:
            figures.append(f"{wrong} of {wanted.size} entries are wrong")
    return Finding(name, pattern, tuple(figures))


def _same(before: Any, after: Any) -> bool:
    """Whether an argument is what it was; arrays, tensors, numbers, strings, and containers of them."""
    if type(before) is not type(after):
        return False
    if isinstance(before, Tensor):
        return _same(before.data, after.data)
    if isinstance(before, np.ndarray):
        return before.shape == after.shape and np.array_equal(before, after, equal_nan=before.dtype.kind == "f")
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(_same(before[k], after[k]) for k in before)
    if isinstance(before, list | tuple):
        return len(before) == len(after) and all(map(_same, before, after))
    return before is after or before == after if isinstance(before, Real | str) else True


# ---- words


HINTS = {  # by the beginning of a pattern; for others, the exercise's own first hint
    "input modified": "Never write into an array that you were given: others hold it too. Write x = x - m for x -= m, "
    "or work on a copy.",
    "it is None": "A function without a `return` gives None.",
    "wrong number of results": "Look at the last line of the docstring: what is returned, and in which order?",
    "wrong type": "The docstring says what is wanted: an array, a number, a Tensor? Of a Tensor t, t.data is the "
    "array; of a list, np.array(...) makes one. Of an array a with one entry, a.item() is the number; "
    "of whole numbers, // makes a whole number.",
    "wrong dtype": "The result must have the dtype of the input. Look for np.zeros, np.ones or np.array without a "
    "dtype, and for a float32 or float64 in your code.",
    "wrong shape": "Write the shape behind each line of your code and compare with the docstring's. Which line is the "
    "first that differs?",
    "NaN": "Somewhere a division by zero, the logarithm of zero, the exponential of a large number, or an array from "
    "np.empty that was never filled.",
    "all zero": "Nothing arrives. Is the result ever written into, or is it multiplied by something that is zero?",
    "transposed": "The numbers are right, the axes stand in another order than the docstring's.",
    "the upstream gradient came through": "The chain rule: upstream gradient times local derivative. The second "
    "factor is missing.",
    "the upstream gradient is missing as a factor": "The chain rule: upstream gradient times local derivative. The "
    "first factor is missing.",
    "the upstream gradient is missing": "Gradients add. Two ways lead here, and one of them was overwritten: + or =?",
    "constant ratio -1": "The sign is the wrong way round.",
    "constant ratio": "A factor is missing or too much: a mean where a sum belongs or the other way round, 1/N, the 2 "
    "of a square, a gradient that was set where it should have been added.",
    "reversed": "The numbers are right, the order is the wrong way round along an axis.",
    "shifted": "Look at the index arithmetic: where does a window begin, with this stride and this padding?",
    "only the borders": "Right inside, wrong at the edge: look at the padding, or at where a loop begins and ends.",
    "the right numbers in another order": "Look at the order of loops, reshapes and transposes: which axis runs "
    "fastest?",
    "right for the first entry": "Along axis 0 (the images of a batch, say) only the first is right: is there an "
    "index 0 in your code, or a shape that fits one image only?",
    "off by one constant per channel": "A term that is the same for a whole channel is missing: a bias, or one with "
    "a mean.",
    "nearly right": "The big parts of the formula are there. Look for float32 where float64 is wanted, for a small "
    "number (an epsilon, a step h) that is off or in another place, for N - 1 in place of N.",
    "it cannot be loaded": "Python could not read your file to its end; the line named below is where it stopped.",
    "it stops with RecursionError": "Python's own stack holds about 1,000 calls. Use a loop, and a list as the stack.",
    "it stops with": "Python stopped at the line that is quoted below. Print shapes and values just before it.",
    "a part of it is not started": "One more place in this exercise is still to be written.",
}


def _wrong(exercise: Exercise, found: Finding, cases: list[Any], printed: str) -> Report:
    """The report on a wrong answer, hint first."""
    begins = [start for start in HINTS if found.pattern.startswith(start)]
    lines = [_fill(f"hint: {HINTS[begins[0]] if begins else exercise.hints[0]}"), ""]
    lines.append(f"exercise {exercise.number} {exercise.name}: wrong")
    lines += [_entry(line) for line in (f"{found.output}: {found.pattern}", *found.figures)]
    right = [words for (words, _, _), finding in cases if finding is None]
    failed = [(words, args) for (words, args, _), finding in cases if finding is not None]
    summary = ""
    if failed:
        words, args = failed[0]
        names = inspect.signature(exercise.reference).parameters
        shown = ", ".join(f"{name} {_argument(value)}" for name, value in zip(names, args, strict=False))
        lines.append(_entry(f"case: {words} ({shown})"))
        summary = f"wrong for: {'; '.join(words for words, _ in failed)}"
        if right:
            summary += f". right for: {'; '.join(right)}"
        lines.append(_entry(summary))
    if printed:
        shown_lines = printed.splitlines()
        more = f"\n  ... and {len(shown_lines) - 5} lines more" if len(shown_lines) > 5 else ""
        lines.append("  it printed:\n" + "\n".join(f"    {line[:100]}" for line in shown_lines[:5]) + more)
    lines += ["", f"next: {_hint_command(exercise)}"]
    return Report("wrong", f"{found.output}: {found.pattern}. {summary}".rstrip(". "), "\n".join(lines))


def _hint_command(exercise: Exercise) -> str:
    return f"python -m minires hint {exercise.number}"


def _fill(text: str) -> str:
    """Lines of at most 100 characters; lines that are indented (code, formulas) stay as they are."""
    return "\n".join(
        line if line.startswith(" ") else "\n".join(textwrap.wrap(line, 100)) for line in text.splitlines()
    )


def _entry(text: str) -> str:
    """A line of a report, folded where it is long."""
    return textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="    ")


def _argument(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"Tensor {value.dtype} {value.shape}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    if type(value).__repr__ is object.__repr__:  # it would show an address
        return f"= {kind(value)}"
    return f"= {textwrap.shorten(getattr(value, '__name__', repr(value)), 60)}"


def kind(value: Any) -> str:
    """A value's type in words."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    name = type(value).__name__
    return name if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _told(error: BaseException, filename: str, source: str) -> str:
    """An error in one line, with the line of the student's file where it came from."""
    line = None
    if isinstance(error, SyntaxError) and error.filename == filename:
        line, message = error.lineno, error.msg
    else:
        message = str(error)
        trace = error.__traceback__
        while trace:
            if trace.tb_frame.f_code.co_filename == filename:
                line = trace.tb_lineno
            trace = trace.tb_next
    name = "sys.exit" if isinstance(error, SystemExit) else type(error).__name__
    told = textwrap.shorten(f"{name}: {message}".rstrip(": "), 200)
    text = source.splitlines()[line - 1].strip() if line and line <= len(source.splitlines()) else ""
    return f"{told} (line {line}: {text})" if line else told


# ---- masters: stubs, solutions and wrong answers


def make_solution(master: str) -> str:
    """The solutions file of a master: the same without its markers."""
    return "".join(line for line in master.splitlines(True) if line.strip() not in ("# solution", "# end solution"))


def make_stub(master: str, exercises: list[Exercise]) -> str:
    """The student's file of a master: `raise NotImplementedError("exercise 4.2")` for each solution."""
    lines = master.splitlines(True)
    for begin, end, number in reversed(solutions(master, exercises)):
        indent = lines[begin][: len(lines[begin]) - len(lines[begin].lstrip())]
        lines[begin : end + 1] = [f'{indent}raise NotImplementedError("exercise {number}")\n']
    return "".join(lines)


def make_wrong(master: str, exercises: list[Exercise], wrong: Wrong) -> str:
    """The solutions file with one wrong answer planted in it."""
    lines = master.splitlines(True)
    blocks = [(begin, end) for begin, end, number in solutions(master, exercises) if number == wrong.exercise]
    found = sum("".join(lines[begin:end]).count(wrong.old) for begin, end in blocks)
    if found != 1 or wrong.old == wrong.new:
        problem = (
            "old and new are the same" if found == 1 else f"old occurs {found} times in the solution, expected once"
        )
        raise ValueError(f"wrong answer {wrong.mistake!r} of exercise {wrong.exercise}: {problem}: {wrong.old!r}")
    for begin, end in reversed(blocks):
        lines[begin:end] = ["".join(lines[begin:end]).replace(wrong.old, wrong.new)]
    return make_solution("".join(lines))


def solutions(master: str, exercises: list[Exercise]) -> list[tuple[int, int, str]]:
    """Each solution in a master: the indices of the lines of its two markers, and the exercise's number."""
    numbers = {exercise.name: exercise.number for exercise in exercises}
    owners = {}
    for node in ast.parse(master).body:
        for row in range(node.lineno - 1, node.end_lineno or node.lineno):
            owners[row] = getattr(node, "name", "")
    found: list[tuple[int, int, str]] = []
    begin: int | None = None
    for i, line in enumerate(master.splitlines()):
        if line.strip() not in ("# solution", "# end solution"):
            continue
        if (line.strip() == "# solution") == (begin is not None):
            raise ValueError(f"master, line {i + 1}: a `# solution` without its `# end solution`, or the reverse")
        if begin is None:
            begin = i
            continue
        if owners.get(begin) not in numbers:
            raise ValueError(
                f"master, line {begin + 1}: {owners.get(begin)!r} is not among the chapter's exercises: "
                f"{', '.join(numbers)}"
            )
        found.append((begin, i, numbers[owners[begin]]))
        begin = None
    missing = set(numbers.values()) - {number for _, _, number in found}
    if begin is not None or missing:
        raise ValueError(f"master: no `# solution` and `# end solution` for {', '.join(sorted(missing)) or 'the last'}")
    return found
