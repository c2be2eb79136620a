"""Your answers to the exercises: `pytest -m ch04` for a chapter, `pytest -m ex4_2` for one exercise.

An exercise that is not started is skipped; a wrong answer fails with a report. Nothing else is tested here.
"""

import pytest

from minires.course.exercises import all_exercises, report


def marks(number: str, stem: str) -> list[pytest.MarkDecorator]:
    return [getattr(pytest.mark, stem[:4]), getattr(pytest.mark, f"ex{number.replace('.', '_')}")]


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, id=f"{number}-{exercise.name}", marks=marks(number, stem))
        for number, (stem, exercise) in all_exercises().items()
    ],
)
def test_exercise(number):
    found = report(number)
    if found.status == "not started":
        pytest.skip(f"exercise {number} is not started")
    if found.status == "wrong":
        pytest.fail(found.text, pytrace=False)
