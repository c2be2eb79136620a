"""Makes what is made of the chapters' sources: `python chapters/build.py [exercises] [NN ...]`.

exercises: chapters/exercises/*.py and chapters/solutions/*.py from chapters/masters/*.py.
NN: the executed notebook chapters/NN_name.ipynb from chapters/src/NN_name.py. No argument: all of both.
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

from minires.devices.bench import machine  # noqa: E402
from minires.course.exercises import Exercise, exercises_of, make_solution, make_stub  # noqa: E402

FOR_STUDENTS = "# Write your answers here, then run: python -m minires check\n"
FOR_TEACHERS = "# Made from chapters/masters/{}.py by: python chapters/build.py exercises\n"


# ---- exercises


def exercise_files(stem: str) -> dict[Path, str]:
    """What a master makes: the text of the student's file and of the solutions, by path."""
    master = (CHAPTERS / "teacher" / "masters" / f"{stem}.py").read_text(encoding="utf-8")
    return {
        CHAPTERS / "exercises" / f"{stem}.py": FOR_STUDENTS + make_stub(master, exercises_of(stem, CHAPTERS)),
        CHAPTERS / "solutions" / f"{stem}.py": FOR_TEACHERS.format(stem) + make_solution(master),
    }


def holds_answers(path: Path, exercises: list[Exercise]) -> bool:
    """Whether somebody has written an answer into a student's file: a stub's line is gone, its exercise is not."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return any(
        f"{word} {exercise.name}(" in text and f'raise NotImplementedError("exercise {exercise.number}")' not in text
        for exercise in exercises
        for word in ("def", "class")
    )


def build_exercises() -> None:
    for master in sorted((CHAPTERS / "teacher" / "masters").glob("ch*.py")):
        for path, text in exercise_files(master.stem).items():
            if path.parent.name == "exercises" and holds_answers(path, exercises_of(master.stem, CHAPTERS)):
                sys.exit(f"{path} holds answers; move it away first, so that nobody's work is lost")
            path.write_text(text, encoding="utf-8", newline="\n")
            print(path)


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
                output.data.pop("text/plain", None)  # "<Figure size ...>" tells nobody anything
                output.data["image/png"] = smaller(output.data["image/png"])
    return seconds


def smaller(png: str) -> str:
    """The same picture in fewer bytes, base64 both: in 256 colours, where no eye can see the difference."""
    picture = Image.open(BytesIO(base64.b64decode(png))).convert("RGB")
    few = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    worst = max(high for _, high in ImageChops.difference(picture, few.convert("RGB")).getextrema())
    file = BytesIO()
    (few if worst <= INVISIBLE else picture).save(file, format="png", optimize=True)
    return base64.b64encode(file.getvalue()).decode() + "\n"


def build_notebook(source: Path) -> None:
    """Make and execute one notebook, and write down how long it took."""
    import nbformat

    notebook = read_source(source)
    seconds = execute(notebook)
    text = nbformat.writes(notebook) + "\n"
    (CHAPTERS / f"{source.stem}.ipynb").write_text(text, encoding="utf-8", newline="\n")
    times = json.loads(TIMES.read_text(encoding="utf-8")) if TIMES.exists() else {}
    times[source.stem] = {"seconds": round(seconds, 1), "machine": machine()}
    TIMES.write_text(json.dumps(dict(sorted(times.items())), indent=1) + "\n", encoding="utf-8", newline="\n")
    print(f"{source.stem}: {seconds:.1f} s, {len(text) / 1e6:.2f} MB", flush=True)


def times_table() -> str:
    """The chapters' running times, for chapters/README.md: from each chapter's own words, and as measured."""
    times = json.loads(TIMES.read_text(encoding="utf-8"))
    rows = ["| chapter | reading and running | exercises | all cells in one go |", "| --- | --- | --- | --- |"]
    for source in sources([]):
        text = source.read_text(encoding="utf-8")
        title = re.findall(r"^# # (.+)", text, re.MULTILINE)[0]
        told = re.search(r"about (\d+) minutes to read and run, (\d+) for the exercises", text)
        if not told:
            sys.exit(f"{source.name}: wanted `**Time**: about 60 minutes to read and run, 60 for the exercises.`")
        reading, answering = told.groups()
        measured = f"{times[source.stem]['seconds']:.0f} s" if source.stem in times else ""
        rows.append(f"| [{title}]({source.stem}.ipynb) | {reading} min | {answering} min | {measured} |")
    machines = {f"{entry['machine']['processor']}, {entry['machine']['cores']} cores" for entry in times.values()}
    return "\n".join([*rows, "", f"Seconds measured on: {'; '.join(sorted(machines))}.", ""])


def write_times() -> None:
    page = CHAPTERS / "README.md"
    before, rest = page.read_text(encoding="utf-8").split("<!-- times -->\n")
    after = rest.split("<!-- end -->")[1]
    text = f"{before}<!-- times -->\n{times_table()}<!-- end -->{after}"
    page.write_text(text, encoding="utf-8", newline="\n")


# ---- the command


def main(arguments: list[str]) -> None:
    numbers = [argument for argument in arguments if argument != "exercises"]
    chosen = sources(numbers) if numbers or not arguments else []
    if "exercises" in arguments or not arguments:
        build_exercises()
    for source in chosen:
        build_notebook(source)
    if chosen:
        write_times()


if __name__ == "__main__":
    main(sys.argv[1:])
