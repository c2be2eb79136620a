"""The exercise system: what it says about right, wrong, unfinished and broken answers; hints, commands, grading."""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minires.course import exercises, grading
from minires.course.compare import Mistake
from minires.course.exercises import Exercise, check_source
from minires.course.masters import BEGIN, END, Wrong, make_solution, make_stub, make_wrong, solution_lines
from minires.nn import Linear
from minires.tensor import Tensor

CHAPTERS = Path(__file__).parent.parent / "chapters"
MASTERS = CHAPTERS / "teacher" / "masters"
pytestmark = pytest.mark.skipif(not MASTERS.is_dir(), reason="a student's copy, without the masters")


def solution(stem):
    return make_solution(exercises.read(MASTERS / f"{stem}.py"))


def scaled(x, factor):
    return x * np.asarray(factor, x.dtype)


def scaled_cases():
    rng = np.random.default_rng(0)
    yield "a square", (rng.standard_normal((3, 3)), 2.0)
    yield "not square", (rng.standard_normal((2, 3)), 3.0)
    yield "float32", (rng.standard_normal((2, 3)).astype(np.float32), 3.0)


def exercise(reference=scaled, cases=scaled_cases, **others):
    hints = ("think", "think more", "copy this")
    return Exercise("9.1", "answer", "an exercise", 2, 1, hints, cases, reference, **others)


def one(*arguments):
    return lambda: iter([("the only case", arguments)])


def look_at(body, what=None, arguments="x, factor"):
    """The report on an answer with this body, in a file of its own."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return check_source(what or exercise(), f"import numpy as np\n\n\ndef answer({arguments}):\n{lines}", "ch09.py")


def is_readable(text):
    assert text.startswith("hint: ")
    assert text.splitlines()[-1] == "next: python -m minires hint 9.1"
    assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) <= 104
    assert "Traceback" not in text


# ---- the report


def test_a_right_answer_is_solved():
    assert look_at("return (factor * x).astype(x.dtype)") == (
        "solved",
        "",
        "exercise 9.1 answer (level 2, about 1 line): solved, 3 cases",
    )


def test_everything_about_a_wrong_answer_is_on_one_screen():
    found = look_at("out = x * factor\nif factor == 3 and x.dtype == np.float64:\n    out[1, 2] += 10\nreturn out")
    assert found.status == "wrong"
    x = list(scaled_cases())[1][1][0]
    assert found.text == (
        "hint: think\n"
        "\n"
        "exercise 9.1 answer (level 2, about 1 line): wrong\n"
        "  the result: no known pattern\n"
        "  shape (2, 3), float64\n"
        f"  worst at [1, 2]: yours {3 * x[1, 2] + 10:.6g}, expected {3 * x[1, 2]:.6g}\n"
        "  1 of 6 entries are wrong\n"
        "  case: not square (x float64 (2, 3), factor = 3.0)\n"
        "  wrong for: not square. right for: a square; float32\n"
        "\n"
        "next: python -m minires hint 9.1"
    )
    assert found.diagnosis == ("the result: no known pattern. wrong for: not square. right for: a square; float32")


@pytest.mark.parametrize(
    "body, says",
    [
        ("pass", "it is None: is a `return` missing?"),
        ("return (x * factor).tolist()", "wrong type: a list, expected an array"),
        ("return 'x'", "wrong type: a str, expected an array"),
        ("from minires import Tensor\nreturn Tensor(x * factor)", "wrong type: a Tensor, expected an array"),
        ("return x * factor, x", "wrong type: a tuple, expected an array"),
        ("return 3.0", "wrong type: a float, expected an array"),
        ("return 0 * x", "all zero"),
        ("return (x * factor).T", "transposed"),
        ("return -x * factor", "constant ratio -1"),
        ("return x * factor / 0", "NaN or infinity in 9 of 9 entries"),
        ("return (x * factor)[:1]", "wrong shape: (1, 3), expected (3, 3)"),
        ("return (x * factor).astype(np.float64)", "wrong dtype: float64, expected float32 ... wrong for: float32"),
        ("return np.sort((x * factor).ravel()).reshape(x.shape)", "the right numbers in another order"),
        ("x *= factor\nreturn x", "argument x: input modified: your answer changed x"),
        ("out = x * factor\nx.sort()\nreturn out", "argument x: input modified"),
        ("return x * factor * (len(x) == 3)", "all zero. wrong for: not square; float32. right for: a square"),
    ],
)
def test_patterns(body, says):
    found = look_at(body)
    assert found.status == "wrong" and Wrong("9.1", "", "", "", says).fits(found.diagnosis), found.diagnosis
    is_readable(found.text)
    assert not found.text.startswith("hint: think")  # a hint for the pattern


@pytest.mark.parametrize(
    "wanted, right, wrong, says",
    [
        (3, ("3", "np.int64(3)"), "3.0", "wrong type: a float 3.0, expected a whole number (int)"),
        (3, ("3",), "4", "another number"),
        (3, ("3",), "True", "wrong type: a bool, expected an int"),
        (0.5, ("0.5", "np.float32(0.5)", "np.array(0.5)"), "0.25", "constant ratio 0.5"),
        (0.5, ("0.5",), "0.500001", "nearly right"),
        (0.5, ("0.5",), "float('nan')", "NaN or infinity"),
        (0.5, ("0.5",), "np.array([0.5])", "wrong type: an array of shape (1,), expected a float"),
        (0.5, ("0.5",), "'x'", "wrong type: a str, expected a float"),
        (0.5, ("0.5",), "np.array(0.5j)", "wrong type: an array of shape (), expected a float"),
        (0.0, ("0", "-0.0"), "1e-3", "another number"),
        (True, ("True", "np.True_"), "1", "wrong type: an int, expected a bool"),
        (True, ("True",), "False", "it is False, expected True"),
        ("same", ("'same'",), "'full'", "it is 'full', expected 'same'"),
        (
            (1.0, 2.0),
            ("(1.0, 2.0)", "[1, 2]"),
            "(1.0, 2.0, 3.0)",
            "wrong number of results: expected 2 (dx, dw), got 3",
        ),
        ((1.0, 2.0), ("(1.0, 2.0)",), "1.0", "wrong number of results: expected 2 (dx, dw), got a float"),
        ((1.0, 2.0), ("(1.0, 2.0)",), "(1.0, None)", "dw: it is None"),
        ((1.0, 2.0), ("(1.0, 2.0)",), "(1.0, 4.0)", "dw: constant ratio 2"),
        (np.array([True, False]), ("np.array([True, False])",), "np.array([False, False])", "all zero"),
        (np.array([True, False]), ("np.array([True, False])",), "np.ones(2)", "wrong dtype: float64, expected bool"),
        (np.array([3, 1]), ("np.array([3, 1])", "np.array([3, 1], np.int32)"), "np.array([1, 3])", "reversed"),
        (np.array([3, 1]), ("np.array([3, 1])",), "np.array([3.0, 1.0])", "wrong dtype: float64, expected int"),
    ],
)
def test_results_of_every_kind(wanted, right, wrong, says):
    outputs = ("dx", "dw") if isinstance(wanted, tuple) else ("the result",)
    what = exercise(lambda n: wanted, one(1), outputs=outputs)
    for expression in right:
        assert look_at(f"return {expression}", what, "n").status == "solved", expression
    found = look_at(f"return {wrong}", what, "n")
    assert found.status == "wrong" and says in found.diagnosis, found.diagnosis
    is_readable(found.text)


@pytest.mark.parametrize(
    "wanted, wrong, way, right",
    [
        (np.ones(3), "[1.0, 1.0, 1.0]", "np.array(...) makes an array of a list", "np.array([1.0, 1.0, 1.0])"),
        (0.5, "np.array([0.5])", "a.item() is the number", "np.array([0.5]).item()"),
        (3, "7 / 2", "// divides whole numbers into a whole number", "7 // 2"),
    ],
)
def test_the_hint_for_a_wrong_type_helps_for_every_type(wanted, wrong, way, right):
    what = exercise(lambda n: wanted, one(1))
    said = " ".join(look_at(f"return {wrong}", what, "n").text.split())
    assert said.startswith("hint: The docstring says what to return: an array, a number, ") and way in said
    assert look_at(f"return {right}", what, "n").status == "solved"


def test_tensors_as_arguments_and_results():
    what = exercise(lambda t: Tensor(t.data * 2), one(Tensor(np.ones((2, 3)))))
    head = "from minires.tensor import Tensor\n"
    assert look_at(head + "return t * 2.0", what, "t").status == "solved"
    assert (
        "wrong type: an array of shape (2, 3), expected a Tensor" in look_at("return t.data * 2", what, "t").diagnosis
    )
    assert "input modified: your answer changed t" in look_at("t.data *= 2\nreturn t", what, "t").diagnosis


def test_a_net_is_shown_by_its_kind_and_not_by_its_address():
    what = exercise(lambda net, x: 2 * x, one(Linear(2, 3, rng=np.random.default_rng(0)), np.ones(2)))
    report = look_at("return x + 2", what, "net, x").text
    assert "(net = a Linear, x float64 (2,))" in report and " at 0x" not in report


def test_changes_inside_containers_are_found():
    what = exercise(lambda xs, d: xs[0] + d["a"], one([np.ones(3), np.ones(3)], {"a": np.ones(3)}))
    assert look_at("return xs[0] + d['a']", what, "xs, d").status == "solved"
    assert "changed xs" in look_at("out = xs[0] + d['a']\nxs[1] += 1\nreturn out", what, "xs, d").diagnosis
    assert "changed d" in look_at("return xs[0] + d.pop('a')", what, "xs, d").diagnosis
    what = exercise(lambda xs: 1.0, one([1.0, None, float("nan"), "s"]))
    assert look_at("return 1.0", what, "xs").status == "solved"
    for i, new in enumerate(("2.0", "3.0", "0.0", "'t'")):
        assert "changed xs" in look_at(f"xs[{i}] = {new}\nreturn 1.0", what, "xs").diagnosis


def test_an_argument_called_grad_is_the_upstream_gradient():
    rng = np.random.default_rng(0)
    what = exercise(lambda x, grad: 2 * x * grad, one(rng.standard_normal((2, 3)), rng.standard_normal((2, 3))))
    assert "came through unchanged" in look_at("return grad.copy()", what, "x, grad").diagnosis
    assert "missing as a factor" in look_at("return 2 * x", what, "x, grad").diagnosis


def test_a_mistake_that_a_check_raises_is_reported_as_it_is():
    def run(answer, x, factor):
        raise Mistake("wear a hat")

    found = look_at("return x", exercise(run=run))
    assert found.diagnosis.startswith("the result: wear a hat. wrong for: a square")


# ---- answers that stop, and files that cannot be loaded


@pytest.mark.parametrize(
    "body, says",
    [
        (
            "return x @ np.ones((7, 7))",
            "it stops with ValueError: matmul: Input operand 1 has a mismatch ... (line 5: return x @ np.ones((7, 7)))",
        ),
        ("return y", "it stops with NameError: name 'y' is not defined (line 5: return y)"),
        ("return answer(x, factor)", "it stops with RecursionError"),
        ("import sys\nsys.exit('bye')", "it stops with sys.exit: bye (line 6: sys.exit('bye'))"),
        ("raise SystemExit", "it stops with sys.exit"),
        ("return input()", "it stops with "),
        (
            "def inner(a):\n    return a.nothing\nreturn inner(x)",
            "has no attribute 'nothing' (line 6: return a.nothing)",
        ),
        ("raise NotImplementedError('exercise 8.2')", "it needs exercise 8.2, which is not started"),
        ("import minires\nreturn minires.conv2d(x, x)", "(line 6: return minires.conv2d(x, x))"),
    ],
)
def test_errors_are_reported_with_their_line_and_without_a_traceback(body, says, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    found = look_at(body)
    assert found.status == "wrong" and Wrong("9.1", "", "", "", says).fits(found.diagnosis), found.diagnosis
    is_readable(found.text)


@pytest.mark.parametrize(
    "source, says",
    [
        ("def answer(x, factor)\n    return x\n", "it cannot be loaded: SyntaxError: expected ':' (line 1: def answer"),
        ("def answer(x, factor):\nreturn x\n", "it cannot be loaded: IndentationError"),
        ("import nowhere\n", "ModuleNotFoundError: No module named 'nowhere' (line 1: import nowhere)"),
        ("from minires import nothing\n", "it cannot be loaded: ImportError"),
        ("answer = undefined\n", "NameError: name 'undefined' is not defined (line 1: answer = undefined)"),
        ("import sys\nsys.exit(3)\n", "it cannot be loaded: sys.exit: 3 (line 2: sys.exit(3))"),
        ("x = 1\0", "it cannot be loaded: "),
        ("def anwser(x, factor):\n    return x\n", "it has no answer: keep the names of the exercises as they are"),
        ("answer = 3\n", "it has no answer"),
        ("", "it has no answer"),
        ("def answer(x):\n    return x\n", "TypeError: answer() takes 1 positional argument but 2 were given"),
    ],
)
def test_files_that_are_broken(source, says):
    found = check_source(exercise(), source, "ch09.py")
    assert found.status == "wrong" and says in found.diagnosis, found.diagnosis
    is_readable(found.text)


def test_a_stub_is_not_started_and_half_of_one_is_wrong():
    found = look_at('raise NotImplementedError("exercise 9.1")')
    assert found.status == "not started" and found.diagnosis == ""
    assert found.text.splitlines() == [
        "exercise 9.1 answer (level 2, about 1 line): not started",
        "It is in ch09.py; for a hint: python -m minires hint 9.1",
    ]
    half = look_at('if x.dtype == np.float32:\n    raise NotImplementedError("exercise 9.1")\nreturn x * factor')
    assert half.diagnosis.startswith("the result: a part of it is not started")
    assert "right for: a square; not square" in half.diagnosis


def test_what_an_answer_prints_is_shown_and_not_mixed_with_the_report(capsys):
    found = look_at("print('shape', x.shape)\nprint('a' * 300)\nprint(1, 2, sep='\\n')\nreturn x")
    assert capsys.readouterr() == ("", "")
    assert "  it printed:\n    shape (3, 3)\n" in found.text and "  ... and 7 more lines" in found.text
    is_readable(found.text)
    assert look_at("print('hello')\nreturn (factor * x).astype(x.dtype)").status == "solved"
    assert capsys.readouterr() == ("", "")


def test_warnings_of_an_answer_are_not_errors():  # although they are in this test run
    assert look_at("np.ones(2) / np.zeros(2)\nreturn (factor * x).astype(x.dtype)").status == "solved"
    assert look_at("np.seterr(all='raise')\nreturn (factor * x).astype(x.dtype)").status == "solved"
    assert np.geterr()["divide"] == "warn"
    assert look_at("'\\d'\nreturn (factor * x).astype(x.dtype)").status == "solved"


def test_an_edited_file_is_always_read_again(tmp_path, monkeypatch):
    text = solution("ch01_autograd")
    file = a_checkout(tmp_path, monkeypatch) / "exercises" / "ch01_autograd.py"
    old, new = "self.grad += z.grad", "self.grad  = z.grad"  # same length, and the same second
    file.write_text(text, encoding="utf-8")
    assert exercises.report("1.1").status == "solved"
    file.write_text(text.replace(old, new), encoding="utf-8")
    assert exercises.report("1.1").status == "wrong"


def test_files_from_windows_are_read(tmp_path, monkeypatch):
    file = a_checkout(tmp_path, monkeypatch) / "exercises" / "ch01_autograd.py"
    text = solution("ch01_autograd") + "# \u00e9\u4e2d\n"
    file.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert exercises.report("1.1").status == "solved"
    file.write_bytes(text.encode("utf-16"))
    assert "your file: chapters/exercises/ch01_autograd.py cannot be read" in exercises.report("1.1").diagnosis
    file.unlink()
    assert "cannot be read" in exercises.report("1.1").diagnosis


# ---- masters


MASTER = '''"""A chapter."""

import numpy as np


def answer(x, factor):
    """9.1: scale."""
    ### BEGIN SOLUTION
    x = x * 1
    return x * factor
    ### END SOLUTION


class Other:
    def one(self):
        ### BEGIN SOLUTION
        return 1
        ### END SOLUTION

    def two(self):
        ### BEGIN SOLUTION
        return 1
        ### END SOLUTION
'''
BOTH = [exercise(), Exercise("9.2", "Other", "another", 3, 2, (), scaled_cases, scaled)]


def test_a_master_makes_stub_solution_and_wrong_answers():
    assert make_stub(MASTER, BOTH).endswith(
        'def answer(x, factor):\n    """9.1: scale.\n\n    Level 2, about 1 line.\n    """\n'
        '    raise NotImplementedError("exercise 9.1")\n\n\n'
        'class Other:\n    def one(self):\n        raise NotImplementedError("exercise 9.2")\n\n'
        '    def two(self):\n        raise NotImplementedError("exercise 9.2")\n'
    )
    assert make_solution(MASTER) == re.sub(" *### (BEGIN|END) SOLUTION\n", "", MASTER)
    assert solution_lines(MASTER, BOTH) == {"9.1": 2, "9.2": 2}
    wrong = make_wrong(MASTER, BOTH, Wrong("9.1", "", "x * factor\n", "x\n    # really\n", ""))
    assert wrong == make_solution(MASTER).replace("return x * factor\n", "return x\n    # really\n")


@pytest.mark.parametrize(
    "number, old, new, says",
    [
        ("9.1", "x * factor * 2", "x", "old occurs 0 times in the solution, expected once"),
        ("9.1", "x * ", "x", "old occurs 2 times"),
        ("9.1", "9.1: scale", "x", "old occurs 0 times"),  # it is in the docstring only
        ("9.2", "return 1", "return 2", "old occurs 2 times"),
        ("9.2", "x * factor", "x", "old occurs 0 times"),
        ("9.1", "x * factor", "x * factor", "old and new are the same"),
    ],
)
def test_a_wrong_answer_must_be_one_change_of_its_own_solution(number, old, new, says):
    with pytest.raises(ValueError, match=says):
        make_wrong(MASTER, BOTH, Wrong(number, "m", old, new, ""))


@pytest.mark.parametrize(
    "text, says",
    [
        (MASTER.replace(f"    {END}", "", 1), f"expected `{END}`, got `{BEGIN}`"),
        (MASTER.replace(f"    {BEGIN}", "", 1), f"expected `{BEGIN}`, got `{END}`"),
        (MASTER[: MASTER.rindex(END)], f"`{BEGIN}` without its `{END}`"),
        (MASTER.replace("class Other", "class Another"), "expected a solution of answer, Other, got one of Another"),
        (MASTER[: MASTER.index("class")], "got none in \\['Other'\\]"),
    ],
)
def test_a_master_with_wrong_markers_is_refused(text, says):
    with pytest.raises(ValueError, match=says):
        make_stub(text, BOTH)


# ---- a student in a checkout


def a_checkout(tmp_path, monkeypatch, solved=False, folders=("checks", "exercises")):
    """A copy of the chapters' exercises around the working directory, by default as a student has it."""
    chapters = tmp_path / "chapters"
    for folder in folders:
        shutil.copytree(CHAPTERS / folder, chapters / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in MASTERS.glob("ch*.py"):
        text = exercises.read(path)
        text = make_solution(text) if solved else make_stub(text, exercises.exercises_of(path.stem, CHAPTERS))
        (chapters / "exercises" / path.name).write_text(text, encoding="utf-8")
    (tmp_path / "somewhere").mkdir()
    monkeypatch.chdir(tmp_path / "somewhere")
    return chapters


def spoil(chapters):
    """Make 1.1 wrong."""
    file = chapters / "exercises" / "ch01_autograd.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("grad += other.data", "grad = other.data"), encoding="utf-8")


def test_the_overview_shows_sizes_and_what_is_solved(tmp_path, monkeypatch, capsys, status_of):
    chapters = a_checkout(tmp_path, monkeypatch, solved=True)
    spoil(chapters)
    file = chapters / "exercises" / "ch02_gradcheck.py"
    text = file.read_text(encoding="utf-8")
    start = text.index("    x = x.astype")  # the body of 2.1
    text = text[:start] + '    raise NotImplementedError("exercise 2.1")\n' + text[text.index("\n\n\n", start) :]
    file.write_text(text, encoding="utf-8")
    assert status_of("check") == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line[:1].isdigit()}
    assert rows["1.1"].endswith("wrong") and rows["1.2"].endswith("solved") and rows["2.1"].endswith("not started")
    assert list(rows) == list(exercises.all_exercises())
    assert "level 3  12 lines  solved" in rows["1.2"] and max(map(len, rows.values())) <= 112


def test_check_one_exercise(tmp_path, monkeypatch, capsys, status_of):
    chapters = a_checkout(tmp_path, monkeypatch)
    assert status_of("check", "1.1") == 1
    assert capsys.readouterr().out.startswith(
        "exercise 1.1 Value (level 1, about 4 lines): not started\nIt is in chapters/exercises/ch01_"
    )
    (chapters / "exercises" / "ch01_autograd.py").write_text(solution("ch01_autograd"), encoding="utf-8")
    assert status_of("check", "1.1") == 0
    assert capsys.readouterr() == ("exercise 1.1 Value (level 1, about 4 lines): solved, 9 cases\n", "")
    spoil(chapters)
    assert status_of("check", "1.1") == 1
    out, err = capsys.readouterr()
    assert out.startswith("hint: ") and err == "" and "a = 0.7" in out
    exercises.check("1.1")  # in a notebook
    assert capsys.readouterr().out == out


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)", "os.abort()"])
def test_an_answer_that_ends_python_is_wrong(end, tmp_path, monkeypatch, capsys, status_of):
    file = a_checkout(tmp_path, monkeypatch, solved=True) / "exercises" / "ch01_autograd.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("    z = np.tanh", f"    import os\n    {end}\n    z = np.tanh"), encoding="utf-8")
    assert status_of("check", "1.4") == 1
    out = capsys.readouterr().out.splitlines()
    assert (
        out[0].startswith("hint: Python ended in the middle of your answer") and "  chapters/exercises/ch01" in out[3]
    )
    assert out[3].endswith("the answer ended Python") and out[-1] == "next: python -m minires hint 1.4"
    assert status_of("check", "1.3") == 0
    file.write_text(f"import os\n{end}\n{text}", encoding="utf-8")
    assert status_of("check", "1.3") == 1


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("check", "9.9"), "there is no exercise '9.9'; there are 1.1, 1.2, "),
        (("grade", "nowhere"), "grade: nowhere does not exist"),
        (("grade", "."), "grade: expected Python files or folders with some, got none"),
        (("grade", ".", "--seconds", "nan"), "grade: expected a time limit from 0 to 86400 seconds, got nan"),
        (("grade", ".", "--seconds", "0"), "got 0"),
        (("grade", ".", "--seconds", "inf"), "got inf"),
        (("hint", "9.9"), "there is no exercise '9.9'"),
        (("hint", "1.1", "9"), "exercise 1.1 has hints 1 to 3, got 9"),
        (("hint", "1.1", "0"), "got 0"),
    ],
)
def test_mistakes_at_the_command_line_take_one_line(arguments, says, tmp_path, monkeypatch, capsys, status_of):
    a_checkout(tmp_path, monkeypatch)  # somewhere without Python files
    assert status_of(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err and len(err.splitlines()) == 1


def test_hints_come_one_at_a_time(capsys, status_of):
    hints = exercises.find("1.1")[1].hints
    assert status_of("hint", "1.1") == 0
    first = capsys.readouterr().out
    assert first.startswith("exercise 1.1 Value, hint 1 of 3:\n\n" + hints[0][:40])
    assert first.endswith("More: python -m minires hint 1.1 2\n")
    assert status_of("hint", "1.1", 3) == 0
    last = capsys.readouterr().out
    assert "    self.grad += (what self was multiplied with) * z.grad\n" in last and "More:" not in last


def test_checks_come_from_the_package_and_never_from_the_folder_one_is_in(tmp_path, monkeypatch):
    chapters = a_checkout(tmp_path, monkeypatch, folders=("checks", "exercises", "teacher/masters"))
    for path in (chapters / "checks").glob("*.py"):  # checks that find every answer right
        path.write_text("class Exercise:\n    number = name = title = '1.1'\n\n\nEXERCISES = [Exercise()]\n", "utf-8")
    assert exercises.chapters_folder() == CHAPTERS
    assert [what.number for what in exercises.exercises_of("ch01_autograd")] == ["1.1", "1.2", "1.3", "1.4"]
    stub = chapters / "exercises" / "ch01_autograd.py"
    assert {grade.status for grade in grading.grade(stub)} == {"not started"}
    assert exercises.report("1.2").status == "not started"
    stub.write_text(solution("ch01_autograd"), encoding="utf-8")
    assert {grade.status for grade in grading.grade(stub)} == {"solved"}
    assert exercises.report("1.2").status == "solved"  # the answers are those of the folder one is in


def test_a_package_without_chapters_says_how_to_install_it(tmp_path, monkeypatch):
    file = tmp_path / "site-packages" / "minires" / "course" / "exercises.py"
    monkeypatch.setattr(exercises, "__file__", str(file))
    with pytest.raises(FileNotFoundError, match="got none; run `pip install -e .` in a checkout"):
        exercises.chapters_folder()


def test_pytest_reports_hint_first_and_skips_what_is_not_started(tmp_path, monkeypatch):
    chapters = a_checkout(tmp_path, monkeypatch)
    (chapters / "exercises" / "ch01_autograd.py").write_text(solution("ch01_autograd"), encoding="utf-8")
    spoil(chapters)
    tests = str(CHAPTERS.parent / "tests" / "test_exercises.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rs", "-m", "ch01 or ch02", tests]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    report = done.stdout.split("= FAILURES =", 1)[1]
    lines = [line for line in report.splitlines()[1:] if not line.startswith("____")]
    assert lines[0].startswith("hint: ") and "next: python -m minires hint 1.1" in lines
    assert "Traceback" not in done.stdout and ".py:" not in report.split("= short test summary")[0]
    assert "not started" in done.stdout and "1 failed, 3 passed, 4 skipped" in done.stdout


# ---- a teacher


def test_a_file_in_the_teachers_folder_does_not_hide_pythons_own(tmp_path, monkeypatch):
    a_checkout(tmp_path, monkeypatch)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "anna_ch01.py").write_text(solution("ch01_autograd"), encoding="utf-8")
    (tmp_path / "random.py").write_text("raise SystemExit", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert {grade.status for grade in grading.grade(Path("anna_ch01.py"))} == {"solved"}


def test_what_is_graded_in_a_folder(tmp_path):
    graded = ["ANNA_CH01.PY", "anna/ch01.py", "ben/answers.ipynb", "ben/deeper/ch02.py", "carl__ch01.py", "notes.ipynb"]
    passed_over = [
        ".ipynb_checkpoints/ch01-checkpoint.py",
        "anna/.ipynb_checkpoints/answers-checkpoint.ipynb",
        "__MACOSX/._ch01.py",
        "__MACOSX/anna/ch01.py",
        "anna/__pycache__/ch01.py",
        "anna/._ch01.py",
        "$RECYCLE.BIN/ch01.py",
        ".venv/lib/ch01.py",
        "anna/notes.txt",
    ]
    folder = tmp_path / ".term" / "handed in"  # what is above the folder doesn't matter
    for name in graded + passed_over:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert grading.handed_in([folder]) == sorted(folder / name for name in graded)
    assert grading.handed_in([folder / ".venv" / "lib" / "ch01.py"]) == [folder / ".venv" / "lib" / "ch01.py"]


def test_a_folder_with_only_a_notebook_gets_a_line(tmp_path, capsys, status_of):
    (tmp_path / "anna").mkdir()
    (tmp_path / "anna" / "ch01.ipynb").write_text("{}", encoding="utf-8")
    assert status_of("grade", tmp_path) == 0
    assert capsys.readouterr().out == (
        f"{tmp_path / 'anna' / 'ch01.ipynb'}: not graded\n"
        "       notebook      expected the Python file of chapters/exercises, got a notebook\n"
    )


def test_grading_a_folder(tmp_path, monkeypatch, capsys, status_of):
    a_checkout(tmp_path, monkeypatch, folders=("checks", "exercises", "teacher/masters"))
    folder = tmp_path / "handed in"
    folder.mkdir()
    right = solution("ch01_autograd")
    (folder / "anna_ch01.py").write_text(right, encoding="utf-8")
    borrowing = right.replace("    z = np.tanh", "    import minires as mr\n    mr.relu(x)\n    z = np.tanh")
    (folder / "bob_ch01.py").write_text(borrowing.replace("grad += other.data", "grad = other.data"), encoding="utf-8")
    (folder / "carl.py").write_text(right, encoding="utf-8")
    (folder / "ch01_dora.py").write_bytes(b"\xff\xfe\x00")
    (folder / "notes.txt").write_text("not Python", encoding="utf-8")

    began = time.perf_counter()
    grades = grading.grade_all([folder])
    seconds = (time.perf_counter() - began) / 2
    found = {(Path(line.file).name, line.exercise): (line.status, line.note) for line in grades}
    assert [found["anna_ch01.py", f"1.{i}"] for i in range(1, 5)] == [("solved", "")] * 4
    assert found["bob_ch01.py", "1.1"] == ("wrong", "") and found["bob_ch01.py", "1.2"] == ("solved", "")
    assert found["bob_ch01.py", "1.4"] == ("solved", "calls minires.relu")
    assert found["carl.py", ""] == ("no chapter", "") and found["ch01_dora.py", ""] == ("unreadable", "")
    assert "constant ratio 0.5" in next(line.diagnosis for line in grades if line.status == "wrong")

    # an endless loop, an end of Python, a file written: the other exercises are still graded
    looping = right.replace("    front = tuple", "    while True:\n        pass\n    front = tuple")
    looping = looping.replace("    z = np.tanh", "    open('left behind', 'w').close()\n    z = np.tanh")
    assert looping.count("while True") == 1
    (folder / "eve_ch01.py").write_text(looping, encoding="utf-8")
    ending = right.replace("    z = np.tanh", "    __import__('os')._exit(0)\n    z = np.tanh")
    (folder / "finn_ch01.py").write_text(ending, encoding="utf-8")
    command = ["grade", folder / "eve_ch01.py", folder / "finn_ch01.py", "--csv", "--seconds"]
    began, limit = time.perf_counter(), round(2 + 4 * seconds)
    assert status_of(*command, limit) == 0
    assert time.perf_counter() - began < 3 * limit + 20  # the loop was ended
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["status"] for row in rows] == ["solved", "solved", "over time", "solved"] + ["solved"] * 3 + ["ended"]
    assert "an endless loop?" in rows[2]["diagnosis"] and rows[3]["note"] == "calls open"
    assert rows[7]["note"] == "" and rows[7]["exercise"] == "1.4"
    assert not list(tmp_path.rglob("left behind"))

    assert status_of("grade", folder / "anna_ch01.py", folder / "carl.py") == 0
    out = capsys.readouterr().out
    assert f"{folder / 'anna_ch01.py'}: 4 of 4 solved\n  1.1  solved\n" in out
    assert "  no chapter    the file's name should contain its chapter" in out


@pytest.mark.parametrize(
    "head, line, says",
    [
        ("import minires as mr", "mr.relu(x)", "calls minires.relu"),
        ("import minires", "minires.functional.relu(x).data", "calls minires.functional.relu"),
        ("from minires.functional import relu as r", "r(x)", "calls minires.functional.relu"),
        ("from minires import functional", "functional.relu(x)", "calls minires.functional.relu"),
        ("from minires.functional import *", "relu(x)", "calls minires.functional.*"),
        ("import torch", "torch.tanh(x)", "calls torch.tanh"),
        ("import numpy as np", "getattr(__import__('minires'), 're' + 'lu')(x)", "calls __import__"),
        ("import sys", "sys._getframe(1)", "calls sys._getframe"),
        ("import math, numpy as np", "math.exp(np.sum(x.data))", ""),
        ("def relu(x):\n    return x", "relu(x)", ""),
        ("import minires as mr\n\n\ndef helper(x):\n    return mr.relu(x)", "helper(x)", "calls minires.relu"),
        ("import minires as mr", "3", ""),  # imported, and not used
    ],
)
def test_library_calls_are_noted(head, line, says):
    source = f"{head}\n\n\ndef tanh(x):\n    from minires.tensor import Tensor\n\n    {line}\n    return Tensor(x)\n"
    assert grading.library_calls("ch01_autograd", "tanh", source) == says
    assert grading.library_calls("ch01_autograd", "unbroadcast", source) in ("", "calls minires.functional.*")


def test_no_solution_calls_what_its_master_does_not():
    for stem, what in exercises.all_exercises().values():
        assert grading.library_calls(stem, what.name, solution(stem)) == ""


def test_a_class_without_the_masters_has_no_notes(tmp_path, monkeypatch):
    source = "import torch\ndef tanh(x):\n    return torch.tanh(x)\n"
    assert grading.library_calls("ch01_autograd", "tanh", source) == "calls torch.tanh"
    monkeypatch.setattr(grading, "chapters_folder", lambda: a_checkout(tmp_path, monkeypatch))
    assert grading.library_calls("ch01_autograd", "tanh", source) == ""


def test_the_build_never_overwrites_answers(tmp_path, monkeypatch):
    chapters = a_checkout(tmp_path, monkeypatch, folders=("checks", "exercises", "src", "teacher/masters"))
    shutil.copy(CHAPTERS / "build.py", chapters)
    env = {**os.environ, "PYTHONPATH": str(CHAPTERS.parent)}

    def build(*what):
        command = [sys.executable, str(chapters / "build.py"), *what]
        return subprocess.run(command, env=env, capture_output=True, encoding="utf-8", timeout=300)

    assert build("exercises", "solutions").returncode == 0
    for path in MASTERS.glob("ch*.py"):
        assert exercises.read(chapters / "teacher" / "solutions" / path.name) == solution(path.stem)
    file = chapters / "exercises" / "ch01_autograd.py"
    text = file.read_text(encoding="utf-8").replace('raise NotImplementedError("exercise 1.3")', "return grad")
    file.write_text(text, encoding="utf-8")
    refused = build("exercises")
    assert refused.returncode == 1 and "ch01_autograd.py contains answers" in refused.stderr
    assert file.read_text(encoding="utf-8") == text
    shutil.rmtree(chapters / "teacher")
    refused = build("exercises")
    assert refused.returncode == 1 and "exercises are built in a teacher's copy" in refused.stderr


@pytest.mark.skipif(not (CHAPTERS / "times.json").exists(), reason="no notebook has been built")
def test_the_running_times_in_the_readme_are_the_measured_ones(monkeypatch):
    monkeypatch.syspath_prepend(str(CHAPTERS))
    monkeypatch.delitem(sys.modules, "build", raising=False)
    page = (CHAPTERS / "README.md").read_text(encoding="utf-8")
    assert f"<!-- times -->\n{__import__('build').times_table()}<!-- end -->" in page
