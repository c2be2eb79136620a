"""Four gates for every exercise: its stub is "not started", its solution passes, each wrong answer gets its expected
diagnosis, and there are at least five of those. `pytest -k ch04` for one chapter, `-k "4.2"` for one exercise."""

import ast
import os
import sys
import time
from pathlib import Path

import pytest

from minires.course.exercises import Exercise, check_source, exercises_of, load, read
from minires.course.masters import Wrong, make_solution, make_stub, make_wrong, solution_lines

CHAPTERS = Path(__file__).parent.parent / "chapters"
STEMS = sorted(path.stem for path in (CHAPTERS / "teacher" / "masters").glob("ch*.py"))
MASTERS = {stem: read(CHAPTERS / "teacher" / "masters" / f"{stem}.py") for stem in STEMS}
EXERCISES = {stem: exercises_of(stem, CHAPTERS) for stem in STEMS}
WRONG = {stem: load(read(CHAPTERS / "teacher" / "wrong" / f"{stem}.py"), f"{stem}.py")["WRONG"] for stem in STEMS}
EACH = [pytest.param(stem, e, id=f"{stem}-{e.number}-{e.name}") for stem in STEMS for e in EXERCISES[stem]]
EACH_WRONG = [
    pytest.param(stem, e, wrong, id=f"{stem}-{e.number}-{wrong.mistake}")
    for stem in STEMS
    for e in EXERCISES[stem]
    for wrong in WRONG[stem]
    if wrong.exercise == e.number
]


# ---- the gates


@pytest.mark.parametrize("stem, exercise", EACH)
def test_the_stub_is_not_started(stem: str, exercise: Exercise):
    found = check_source(exercise, make_stub(MASTERS[stem], EXERCISES[stem]), "stub.py")
    assert found.status == "not started", f"the stub must end at its NotImplementedError in every case:\n{found.text}"


@pytest.mark.parametrize("stem, exercise", EACH)
def test_the_solution_passes_soon(stem: str, exercise: Exercise):
    start = time.perf_counter()
    found = check_source(exercise, make_solution(MASTERS[stem]), "solution.py")
    seconds = time.perf_counter() - start
    assert found.status == "solved", f"the master's solution is not right:\n{found.text}"
    assert seconds < 10, (
        f"expected the check to take about 1 s and at most 10 s, got {seconds:.1f} s: use smaller cases"
    )


@pytest.mark.parametrize("stem, exercise, wrong", EACH_WRONG)
def test_a_wrong_answer_gets_its_diagnosis(stem: str, exercise: Exercise, wrong: Wrong):
    answer = make_wrong(MASTERS[stem], EXERCISES[stem], wrong)
    found = check_source(exercise, answer, "wrong.py")
    planted = f"{exercise.number}: {wrong.mistake!r} was planted"
    if found.status == "solved":
        pytest.fail(
            f"{planted} and passes: the check needs a case that fails for it\n\n{wrong.old}\n    became\n{wrong.new}",
            pytrace=False,
        )
    if not wrong.fits(found.diagnosis):
        pytest.fail(
            f"{planted} and found wrong, but not as expected\nexpected:  {wrong.expected_diagnosis}\n"
            f"diagnosis: {found.diagnosis}\n\nThe student sees:\n\n{found.text}",
            pytrace=False,
        )
    assert len(found.text.splitlines()) <= 24, f"too long for one screen:\n{found.text}"
    assert found.text.startswith("hint: ") and "Traceback" not in found.text


@pytest.mark.parametrize("stem, exercise", EACH)
def test_every_exercise_has_five_wrong_answers(stem: str, exercise: Exercise):
    mistakes = [wrong.mistake for wrong in WRONG[stem] if wrong.exercise == exercise.number]
    assert len(mistakes) >= 5, f"{exercise.number} has {len(mistakes)} wrong answers, expected 5 or more"
    assert len(set(mistakes)) == len(mistakes), f"two wrong answers of {exercise.number} have the same name"


# ---- the files fit together


@pytest.mark.parametrize("stem", STEMS)
def test_every_wrong_answer_belongs_to_an_exercise_and_every_folder_has_the_chapter(stem: str):
    numbers = {e.number for e in EXERCISES[stem]}
    strays = [wrong for wrong in WRONG[stem] if wrong.exercise not in numbers]
    assert not strays, f"no such exercise: {strays}"
    for folder in ("exercises", "checks"):
        assert (CHAPTERS / folder / f"{stem}.py").exists(), "run: python chapters/build.py exercises"


@pytest.mark.parametrize("stem, exercise", EACH)
def test_numbers_hints_cases_and_docstrings(stem: str, exercise: Exercise):
    chapter = int(stem[2:4])
    assert exercise.number.split(".")[0] == str(chapter), f"{exercise.number} is not of chapter {chapter}"
    assert len(exercise.hints) >= 3, f"{exercise.number} has {len(exercise.hints)} hints, expected 3 or more"
    words = [words for words, _ in exercise.cases()]
    assert len(words) >= 3 and len(set(words)) == len(words), f"expected 3 cases or more, no two alike: {words}"
    nodes = [n for n in ast.parse(MASTERS[stem]).body if getattr(n, "name", "") == exercise.name]
    assert nodes, f"the master has no function or class {exercise.name}"
    doc = ast.get_docstring(nodes[0]) or ""
    assert doc.startswith(f"{exercise.number}: "), f"the docstring of {exercise.name} must start with its number"


def test_numbers_are_in_order_and_no_two_alike():
    numbers = [tuple(map(int, e.number.split("."))) for stem in STEMS for e in EXERCISES[stem]]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("stem", STEMS)
def test_levels_and_lines_are_true(stem: str):
    exercises = EXERCISES[stem]
    assert all(exercise.level in (1, 2, 3) for exercise in exercises)
    stated = {exercise.number: exercise.lines for exercise in exercises}
    assert stated == solution_lines(MASTERS[stem], exercises)
    stub = make_stub(MASTERS[stem], exercises)
    for node in ast.parse(stub).body:
        for exercise in exercises:
            if getattr(node, "name", "") == exercise.name:
                assert ast.get_docstring(node).endswith(f"\n\n{exercise.size.capitalize()}.")


@pytest.mark.parametrize("stem", STEMS)
def test_a_stub_is_what_its_master_makes(stem: str, build):
    path = CHAPTERS / "exercises" / f"{stem}.py"
    if build.has_answers(path, EXERCISES[stem]) and "CI" not in os.environ:
        pytest.skip(f"{path.name} contains answers")
    assert read(path) == build.stub_of(build.MASTERS / path.name), "run: python chapters/build.py exercises"


@pytest.fixture
def build(monkeypatch):
    monkeypatch.syspath_prepend(str(CHAPTERS))
    monkeypatch.delitem(sys.modules, "build", raising=False)
    return __import__("build")
