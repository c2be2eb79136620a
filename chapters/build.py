"""Builds what is generated in `chapters/`: `python chapters/build.py [exercises] [solutions] [NN ...]`.

exercises: chapters/exercises/*.py from chapters/teacher/masters/*.py, and the tables of exercises in chapters/src/*.py.
solutions: chapters/teacher/solutions/*.py, from the masters too; not under version control.
NN: the executed notebook chapters/NN_name.ipynb from chapters/src/NN_name.py. No argument: exercises and all notebooks.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import sys
import time
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageChops

if TYPE_CHECKING:
    from nbformat import NotebookNode

CHAPTERS = Path(__file__).resolve().parent
TIMES = CHAPTERS / "times.json"
INVISIBLE = 10  # levels of 255
MOST_SECONDS = 600  # for one cell, so that a cell that hangs ends
sys.path.insert(0, str(CHAPTERS.parent))  # minires of this checkout, installed or not

from minires.course.exercises import Exercise, exercises_of, read  # noqa: E402
from minires.course.masters import make_solution, make_stub  # noqa: E402

MASTERS = CHAPTERS / "teacher" / "masters"
SOLUTIONS = CHAPTERS / "teacher" / "solutions"
FOR_STUDENTS = "# Write your answers here, then run: python -m minires check\n"


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def replace_between(path: Path, begin: str, end: str, text: str) -> None:
    """Replace what a file has between two lines."""
    before, rest = path.read_text(encoding="utf-8").split(f"{begin}\n", 1)
    after = rest.split(f"{end}\n", 1)[1]
    write(path, f"{before}{begin}\n{text}{end}\n{after}")


# ---- exercises


def masters() -> list[Path]:
    """The chapters' masters, which only a teacher's copy has."""
    if not MASTERS.is_dir():
        sys.exit(f"no folder {MASTERS}: exercises are built in a teacher's copy")
    return sorted(MASTERS.glob("ch*.py"))


def stub_of(master: Path) -> str:
    """The text of the student's file."""
    return FOR_STUDENTS + make_stub(read(master), exercises_of(master.stem, CHAPTERS))


def has_answers(path: Path, exercises: list[Exercise]) -> bool:
    """Whether somebody has written an answer into a student's file: a stub's line is gone, its exercise is not."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return any(
        f"{word} {exercise.name}(" in text and f'raise NotImplementedError("exercise {exercise.number}")' not in text
        for exercise in exercises
        for word in ("def", "class")
    )


def exercise_table(source: Path) -> str:
    """The table of a chapter's exercises, in comments, as its source has it."""
    (checks,) = (CHAPTERS / "checks").glob(f"ch{source.name[:2]}_*.py")
    rows = ["| exercise | what it does | level | lines |", "| --- | --- | --- | --- |"]
    rows += [
        f"| {exercise.number} `{exercise.name}` | {exercise.title} | {exercise.level} | about {exercise.lines} |"
        for exercise in exercises_of(checks.stem, CHAPTERS)
    ]
    return "".join(f"{line}\n" for line in ("#", *(f"# {row}" for row in rows), "#"))


def build_exercises() -> None:
    for master in masters():
        path = CHAPTERS / "exercises" / master.name
        if has_answers(path, exercises_of(master.stem, CHAPTERS)):
            sys.exit(f"{path} contains answers; move it away first, so that nobody's work is lost")
        write(path, stub_of(master))
        print(path)
    for source in sources([]):
        replace_between(source, "# <!-- exercises -->", "# <!-- end -->", exercise_table(source))


def build_solutions() -> None:
    SOLUTIONS.mkdir(exist_ok=True)
    for master in masters():
        write(SOLUTIONS / master.name, make_solution(read(master)))
        print(SOLUTIONS / master.name)


# ---- notebooks


def sources(numbers: list[str]) -> list[Path]:
    """The chapters' sources; only those of these numbers, if any is named."""
    found = sorted((CHAPTERS / "src").glob("[0-9][0-9]_*.py"))
    if unknown := set(numbers) - {source.name[:2] for source in found}:
        sys.exit(f"no chapter {', '.join(sorted(unknown))}; there are {', '.join(s.name[:2] for s in found)}")
    return [source for source in found if not numbers or source.name[:2] in numbers]


def read_source(source: Path) -> NotebookNode:
    """The notebook of a source, not executed. A cell's id comes from its text, so that it stays the same."""
    import jupytext
    from nbformat import NotebookNode

    notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        digest = hashlib.sha256(cell.source.encode()).hexdigest()[:12]
        cell.id = f"{digest}-{seen[digest]}"
        seen[digest] += 1
        if "hide-input" in cell.metadata.get("tags", []):
            cell.metadata["jupyter"] = {"source_hidden": True}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def execute(notebook: NotebookNode) -> float:
    """Run every cell, on Shapes-10, and tidy the outputs. Returns the seconds it took."""
    from nbclient import NotebookClient

    metadata = notebook.metadata.copy()
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    environment.pop("MINIRES_DATA", None)  # no CIFAR-10 image may enter a notebook
    client = NotebookClient(
        notebook,
        timeout=MOST_SECONDS,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(CHAPTERS)}},
    )
    began = time.perf_counter()
    client.execute(env=environment)
    seconds = time.perf_counter() - began
    notebook.metadata = metadata  # without the kernel's version
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise RuntimeError(f"a cell writes to stderr: {output.text}\n\nthe cell:\n{cell.source}")
            if "image/png" in output.get("data", {}):
                output.data.pop("text/plain", None)  # "<Figure size ...>" says nothing
                output.data["image/png"] = smaller(output.data["image/png"])
    return seconds


def smaller(png: str) -> str:
    """The same picture in fewer bytes, both in base64: with 256 colours where nobody can see the difference."""
    picture = Image.open(BytesIO(base64.b64decode(png))).convert("RGB")
    few = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    worst = max(high for _, high in ImageChops.difference(picture, few.convert("RGB")).getextrema())
    file = BytesIO()
    (few if worst <= INVISIBLE else picture).save(file, format="png", optimize=True)
    return base64.b64encode(file.getvalue()).decode() + "\n"


def build_notebook(source: Path) -> None:
    """Build and execute one notebook, and record how long it took."""
    import nbformat

    from minires.devices.bench import measured_on

    notebook = read_source(source)
    seconds = execute(notebook)
    text = nbformat.writes(notebook) + "\n"
    write(CHAPTERS / f"{source.stem}.ipynb", text)
    times = json.loads(TIMES.read_text(encoding="utf-8")) if TIMES.exists() else {}
    times[source.stem] = {"seconds": round(seconds, 1), "machine": measured_on()}
    write(TIMES, json.dumps(dict(sorted(times.items())), indent=1) + "\n")
    print(f"{source.stem}: {seconds:.1f} s, {len(text) / 1e6:.2f} MB", flush=True)


def times_table() -> str:
    """The chapters' running times, for chapters/README.md: from each chapter's own words, and as measured."""
    times = json.loads(TIMES.read_text(encoding="utf-8"))
    rows = ["| chapter | reading and running | exercises | all cells in one go |", "| --- | --- | --- | --- |"]
    for source in sources([]):
        text = source.read_text(encoding="utf-8")
        title = re.findall(r"^# # (.+)", text, re.MULTILINE)[0]
        minutes = re.search(r"about (\d+) minutes to read and run, (\d+) for the exercises", text)
        if not minutes:
            sys.exit(f"{source.name}: expected `**Time**: about 60 minutes to read and run, 60 for the exercises.`")
        reading, answering = minutes.groups()
        measured = f"{times[source.stem]['seconds']:.0f} s" if source.stem in times else ""
        rows.append(f"| [{title}]({source.stem}.ipynb) | {reading} min | {answering} min | {measured} |")
    machines = {f"{entry['machine']['processor']}, {entry['machine']['cores']} cores" for entry in times.values()}
    return "\n".join([*rows, "", f"Seconds measured on: {'; '.join(sorted(machines))}.", ""])


# ---- the command


def main(arguments: list[str]) -> None:
    numbers = [argument for argument in arguments if argument not in ("exercises", "solutions")]
    chosen = sources(numbers) if numbers or not arguments else []
    if "exercises" in arguments or not arguments:
        build_exercises()
    if "solutions" in arguments:
        build_solutions()
    for source in chosen:
        build_notebook(source)
    if chosen:
        replace_between(CHAPTERS / "README.md", "<!-- times -->", "<!-- end -->", times_table())


if __name__ == "__main__":
    main(sys.argv[1:])
