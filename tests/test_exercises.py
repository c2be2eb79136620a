"""Your answers to the exercises: `pytest -m ch04` for a chapter, `pytest -m ex4_2` for one exercise.

An exercise that is not started is skipped; a wrong answer fails with a report. Nothing else is tested here.
"""

import pytest

from minires.course.exercises import all_exercises, reports


def marks(number: str, stem: str) -> list[pytest.MarkDecorator]:
    return [getattr(pytest.mark, stem[:4]), getattr(pytest.mark, f"ex{number.replace('.', '_')}")]


@pytest.fixture(scope="module")
def found(request):
    """The reports on all exercises of this test run, a process for each chapter."""
    return reports(item.callspec.params["number"] for item in request.session.items if item.path == request.path)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, id=f"{number}-{exercise.name}", marks=marks(number, stem))
        for number, (stem, exercise) in all_exercises().items()
    ],
)
def test_exercise(number, found):
    if found[number].status == "not started":
        pytest.skip(f"exercise {number} is not started")
    if found[number].status == "wrong":
        pytest.fail(found[number].text, pytrace=False)
