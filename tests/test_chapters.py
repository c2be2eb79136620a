"""The chapters' notebooks: in step with their sources, executed, complete, and able to run again."""

import base64
import importlib.util
import json
import re
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

nbformat = pytest.importorskip("nbformat", reason="the chapters need: pip install -e .[chapters]")

ROOT = Path(__file__).parent.parent
CHAPTERS = ROOT / "chapters"
SOURCES = sorted((CHAPTERS / "src").glob("[0-9][0-9]_*.py"))
MOST_BYTES = 1_000_000
MOST_SECONDS = 90
OPENING = ("**After this chapter you can**", "**You need**", "**Time**")
CLOSING = ("Summary", "Common mistakes", "Three questions", "Exercises", "Read on")
OF_A_MACHINE = re.compile(r"/home/|/Users/|/root/|/tmp/|/work/|site-packages|[A-Z]:\\\\|0x[0-9a-f]{6,}")


def load_build():
    spec = importlib.util.spec_from_file_location("chapters_build", CHAPTERS / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["chapters_build"] = module
    spec.loader.exec_module(module)
    return module


build = load_build()


def committed(source):
    return nbformat.read(CHAPTERS / f"{source.stem}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


each_chapter = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


@each_chapter
def test_the_notebook_is_what_its_source_makes(source):
    def cells(notebook):
        return [(cell.id, cell.cell_type, cell.metadata, cell.source) for cell in notebook.cells]

    made, wanted = cells(committed(source)), cells(build.read_source(source))
    assert made == wanted, f"run: python chapters/build.py {source.name[:2]}"


@each_chapter
def test_every_cell_has_run_in_order_and_without_an_error(source):
    cells = code(committed(source))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


@each_chapter
def test_the_outputs_are_small_and_name_no_machine(source):
    file = CHAPTERS / f"{source.stem}.ipynb"
    assert file.stat().st_size < MOST_BYTES
    notebook = committed(source)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in code(notebook):
        assert "execution" not in cell.metadata
        for output in cell.outputs:
            text = json.dumps({kind: data for kind, data in output.get("data", {}).items() if kind != "image/png"})
            found = OF_A_MACHINE.search(text + output.get("text", ""))
            assert not found, f"{found.group()!r} in the output of:\n{cell.source}"


@each_chapter
def test_it_opens_and_closes_like_every_chapter(source):
    notebook = build.read_source(source)
    first, install = notebook.cells[0], code(notebook)[0]
    assert first.source.startswith(f"# {int(source.name[:2])}. ")
    leads = [first.source.find(lead) for lead in OPENING]
    assert -1 not in leads and leads == sorted(leads)
    assert install.source == code(build.read_source(SOURCES[0]))[0].source and "pip" in install.source
    assert "import minires as mr" in code(notebook)[1].source

    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = re.findall(r"^## (.+)$", prose, re.MULTILINE)
    assert tuple(headings[-5:]) == CLOSING
    questions = prose.split("## Three questions")[1].split("## Exercises")[0]
    assert len(re.findall(r"<details>\s*<summary>\d\.[^<]+\?</summary>.+?</details>", questions, re.DOTALL)) == 3
    assert "Predict." in prose and "minires/" in prose.split("## Read on")[1]


@each_chapter
def test_its_exercises_are_checked_in_it(source):
    number = int(source.name[:2])
    (stub,) = (CHAPTERS / "exercises").glob(f"ch{number:02}_*.py")
    wanted = sorted(set(re.findall(rf"exercise {number}\.\d+", stub.read_text(encoding="utf-8"))))
    notebook = build.read_source(source)
    checked = re.findall(r'^check\("(.+)"\)$', "\n".join(cell.source for cell in code(notebook)), re.MULTILINE)
    assert [f"exercise {name}" for name in checked] == wanted and 3 <= len(wanted) <= 6
    assert any(stub.name in cell.source for cell in notebook.cells)


@each_chapter
def test_it_shows_how_hard_its_exercises_are(source):
    text = source.read_text(encoding="utf-8")
    table = f"# <!-- exercises -->\n{build.exercise_table(source)}# <!-- end -->\n"
    assert table in text, "run: python chapters/build.py exercises"


@each_chapter
def test_the_front_page_has_the_chapters_own_minutes(source):
    words = source.read_text(encoding="utf-8").replace("\n# ", " ")
    reading, exercises = re.search(r"about (\d+) minutes to read and run, (\d+) for the exercises", words).groups()
    page = (CHAPTERS.parent / "README.md").read_text(encoding="utf-8")
    assert f"(chapters/{source.stem}.ipynb) | {reading} + {exercises} |" in page


def test_the_times_are_recorded_and_short_enough():
    times = json.loads((CHAPTERS / "times.json").read_text(encoding="utf-8"))
    assert list(times) == [source.stem for source in SOURCES]
    assert all(0 < entry["seconds"] <= MOST_SECONDS for entry in times.values())
    assert all({"processor", "cores", "python", "numpy"} <= set(entry["machine"]) for entry in times.values())


def test_cell_ids_are_unique_and_stable(tmp_path):
    source = tmp_path / "01_x.py"
    source.write_text("# %%\n1 + 1\n\n# %%\n1 + 1\n\n# %% [markdown]\n# text\n", encoding="utf-8")
    first = [cell.id for cell in build.read_source(source).cells]
    assert len(set(first)) == 3
    source.write_text("# %% [markdown]\n# new\n\n" + source.read_text(encoding="utf-8"), encoding="utf-8")
    assert [cell.id for cell in build.read_source(source).cells][1:] == first


def test_a_cell_that_raises_or_writes_to_stderr_stops_the_build(tmp_path):
    for line, error in (("1 / 0", "ZeroDivisionError"), ("import warnings; warnings.warn('hear me')", "hear me")):
        source = tmp_path / "01_x.py"
        source.write_text(f"# %%\n{line}\n", encoding="utf-8")
        with pytest.raises(Exception, match=error):
            build.execute(build.read_source(source))


def test_a_chapter_never_sees_cifar10(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIRES_DATA", str(tmp_path))
    source = tmp_path / "01_x.py"
    source.write_text("# %%\nimport os\nprint(os.environ.get('MINIRES_DATA'))\n", encoding="utf-8")
    notebook = build.read_source(source)
    build.execute(notebook)
    assert notebook.cells[0].outputs[0].text == "None\n"


@pytest.mark.parametrize("colours, most_different", [(5, 0), (300, build.INVISIBLE), (4096, 0)])
def test_a_picture_gets_smaller_and_looks_the_same(colours, most_different):
    """Few colours stay as they are, shades between them may move a little, many colours forbid a palette."""
    rng = np.random.default_rng(0)
    spread = 8 if colours == 300 else 256
    palette = 256 - spread + rng.integers(0, spread, (colours, 3))
    before = np.tile(palette[rng.integers(0, colours, (32, 64))], (2, 1, 1)).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(before).save(file, format="png", compress_level=0)
    small = base64.b64decode(build.smaller(base64.b64encode(file.getvalue()).decode()))
    assert len(small) < len(file.getvalue())
    after = np.asarray(Image.open(BytesIO(small)).convert("RGB"))
    assert np.abs(after.astype(int) - before).max() <= most_different


def test_an_unknown_chapter_is_named():
    with pytest.raises(SystemExit, match="no chapter 99"):
        build.sources(["99"])


@pytest.mark.slow
@each_chapter
def test_it_runs_from_scratch(source):
    """Not timed, since a busy machine would fail it: the build records the seconds, and they are checked above."""
    assert build.execute(build.read_source(source)) > 0
