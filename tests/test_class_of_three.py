"""A class of three: whatever the file in the middle does, the grades of the other two stay as they are."""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from minires.course import grading
from minires.course.exercises import read
from minires.course.masters import make_solution

resource = pytest.importorskip("resource", reason="Windows limits neither memory nor files, and has no groups")

REPO = Path(__file__).parent.parent
MASTERS = REPO / "chapters" / "teacher" / "masters"
MEMORY = 512 * 2**20  # the limit for each process of this class
LIBRARIES = 64 * 2**20  # the code of Python and NumPy itself is on top
GRADER = 64 * 2**20  # what the grading process itself may need, however much an answer writes
SECONDS = 20

pytestmark = pytest.mark.skipif(not MASTERS.is_dir(), reason="a student's copy, without the masters")

NOTHING_WRONG = ["solved"] * 4
ENDED = ["ended"] * 4
IN_AN_ANSWER = [*["solved"] * 3, "ended"]
WRONG = ["wrong"] * 4
LAST_WRONG = [*["solved"] * 3, "wrong"]

CHILD = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)', NOTE], {})"


def fill(block):
    """Code that fills the memory with up to 64 blocks, and notes how much of it it got."""
    return f"""try:
    full = []
    while len(full) < 64: full.append({block})
except MemoryError:
    import resource; full.clear()
    open(NOTE, 'w').write(f'answer {{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}}'); raise"""


IN_A_CHILD = f"""code = 'import sys; NOTE = sys.argv[1]\\n' + {fill("b'x' * 2**24")!r}
if subprocess.run([sys.executable, '-c', code, NOTE]).returncode: raise MemoryError"""
FORGED = repr('["1.4", "solved", "", "", ""]\n')

IN_A_GROUP = f"assert {os.getpgrp()} not in (os.getpgrp(), os.getpgid(os.getppid()))"

# Code at the top of the file, code in its last answer, and what becomes of its four exercises. Each leaves a note.
# Where grading is broken, they do no harm: a check, or a small number, comes first.
WAYS = {
    "ends Python at once": ("os._exit(0)", "", ENDED),
    "ends Python in an answer": ("", "os._exit(0)", IN_AN_ANSWER),
    "crashes Python": ("", "os.kill(os.getpid(), 11)", IN_AN_ANSWER),
    "exits at once": ("sys.exit(0)", "", WRONG),
    "loops": ("", "while True: pass", [*["solved"] * 3, "over time"]),
    "prints without end, nearly": (
        "for _ in range(600): print('x' * 2**20); os.write(1, b'x' * 2**16)",
        "",
        NOTHING_WRONG,
    ),
    "leaves a process running": (CHILD.format("env={}"), "", NOTHING_WRONG),
    "leaves a daemon running": (CHILD.format("start_new_session=True"), "", NOTHING_WRONG),
    "leaves a process running and ends": (CHILD.format(""), "os._exit(0)", IN_AN_ANSWER),
    "divides": ("os.fork()", "", NOTHING_WRONG),
    "fills the memory": ("", fill("b'x' * 2**24"), LAST_WRONG),
    "fills the memory with arrays": ("", fill("np.ones(2**21)"), LAST_WRONG),
    "fills the memory in a process that it starts": ("", IN_A_CHILD, LAST_WRONG),
    "fills the disk": ("", "open('large', 'wb').truncate(2**40)", LAST_WRONG),
    "writes results of its own": (
        f"open('results.jsonl', 'w').write({FORGED}); print({FORGED}); os.write(1, {FORGED}.encode())",
        "return 0",
        LAST_WRONG,
    ),
    "reports without end": ("import json", "json.dumps = lambda row: 'x' * (2**26 - 2**20)", IN_AN_ANSWER),
    "patches Python": ("import builtins, json; builtins.print = json.dumps = builtins.len = None", "", ENDED),
    "patches NumPy and minires": (
        "import minires, minires.course.compare as c; np.tanh = np.asarray = c.diagnose = minires.Tensor = print",
        "",
        ["wrong", "solved", "ended", "wrong"],
    ),
    "deletes its working folder": ("shutil.rmtree('../work', ignore_errors=True)", "", NOTHING_WRONG),
    "fills its working folder": ("for _ in range(1500): os.mkdir('a'); os.chdir('a')", "", NOTHING_WRONG),
    "changes the folder": ("os.chdir('/')", "", NOTHING_WRONG),
    "closes stdout": ("sys.stdout.close(); sys.stderr.close(); os.closerange(0, 3)", "print(1)", NOTHING_WRONG),
    "closes everything": ("os.closerange(0, 99)", "", ENDED),
    "raises what is no Exception": ("class Stop(BaseException): pass", "raise Stop", LAST_WRONG),
    "raises what Ctrl-C raises": ("", "raise KeyboardInterrupt", IN_AN_ANSWER),
    "says what no terminal can print": ("", "raise ValueError('\\udcff\\x1b[2J\\n  1.4  solved')", LAST_WRONG),
    "kills its group": ("", f"{IN_A_GROUP}; os.killpg(0, 9)", IN_AN_ANSWER),
    "kills its parent's group": ("", f"{IN_A_GROUP}; os.killpg(os.getpgid(os.getppid()), 9)", IN_AN_ANSWER),
    "starts a thread that never ends": ("threading.Thread(target=time.sleep, args=(99,)).start()", "", NOTHING_WRONG),
    "has an endless exit handler": (
        "atexit.register(time.sleep, 99); atexit.register(Path(NOTE).write_text, 'exit')",
        "",
        NOTHING_WRONG,
    ),
    "writes to the checkout": (
        "import minires; script = Path(sys.modules['__main__'].__file__)\n"
        f"root = Path(minires.__file__).parents[1]; assert {str(REPO)!r} not in (str(root), str(script.parents[2]))\n"
        "for path in [script, *root.rglob('*.py'), Path('../minires.py')]: path.write_text('raise SystemExit')",
        "",
        NOTHING_WRONG,
    ),
}
QUICK = (
    "ends Python in an answer",
    "fills the memory",
    "leaves a daemon running",
    "writes results of its own",
    "writes to the checkout",
)


def solution(stem):
    return make_solution(read(MASTERS / f"{stem}.py"))


@pytest.fixture
def folder(tmp_path):
    """The class, with nothing in the middle."""
    folder = tmp_path / "handed in"
    folder.mkdir()
    (folder / "anna_ch01.py").write_text(solution("ch01_autograd"), encoding="utf-8")
    wrong = solution("ch02_gradcheck").replace("x.astype(np.float64)", "x.astype(np.float32)")
    (folder / "carl_ch02.py").write_text(wrong, encoding="utf-8")
    return folder


@pytest.fixture
def temporary(tmp_path):
    """A folder for temporary files; here `rm`, because Python can't remove a thousand folders one inside the other."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    yield temporary
    subprocess.run(["rm", "-rf", temporary], check=True)


@pytest.fixture(scope="session")
def others():
    """The grades of the other two, which are found out once."""
    return {}


def graded(folder, others):
    """The rows of the file in the middle; those of the other two are compared with the grades of a class without it."""
    middle, rest, before = [], [], peak_memory()
    for grade in grading.grade_all([folder], SECONDS, MEMORY):
        (middle if Path(grade.file).name.startswith("ben") else rest).append(grade._replace(file=Path(grade.file).name))
    if not others:
        files = [folder / name for name in ("anna_ch01.py", "carl_ch02.py")]
        alone = [grade._replace(file=Path(grade.file).name) for grade in grading.grade_all(files, SECONDS, MEMORY)]
        assert [grade.status for grade in alone] == ["solved"] * 4 + ["wrong"] + ["solved"] * 3
        others["csv"], others["table"] = grading.as_csv(alone), grading.as_table(alone)
    assert grading.as_csv(rest) == others["csv"] and grading.as_table(rest) == others["table"]
    assert peak_memory() - before < GRADER
    table, files = grading.as_table(middle), {grade.file for grade in middle}
    assert "\x1b" not in table and len(table.encode()) < 4000 and len(table.splitlines()) == len(files) + len(middle)
    return middle


def peak_memory():
    """In bytes, of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def processes(mark):
    """The processes that have `mark` in their environment or their arguments, where the system shows them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            shown = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            found += [process.name] * (mark.encode() in shown)
        except OSError:  # it ended, or is another user's
            pass
    return found


def photograph():
    files = [
        path
        for part in ("chapters/checks", "chapters/teacher", "minires/course")
        for path in (REPO / part).rglob("*")
        if path.is_file()
    ]
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in files if path.suffix != ".pyc"}


@pytest.mark.parametrize("way", [pytest.param(way, marks=[] if way in QUICK else pytest.mark.slow) for way in WAYS])
def test_a_hostile_file(way, folder, others, temporary, tmp_path, monkeypatch):
    head, body, statuses = WAYS[way]
    if way.startswith("fills the memory") and sys.platform != "linux":
        pytest.skip("only Linux limits memory")
    note, before = tmp_path / "note", photograph()
    text = solution("ch01_autograd")
    assert text.count("    z = np.tanh") == 1
    lines = "".join(f"    {line}\n" for line in ["open(NOTE, 'a').write('answer ')", *body.splitlines()])
    imports = "import atexit, os, shutil, subprocess, sys, threading, time\nfrom pathlib import Path\n"
    head = f"{imports}NOTE = {str(note)!r}\nopen(NOTE, 'a').write('head ')\n{head}\n"
    text = text.replace("    z = np.tanh", f"{lines}    z = np.tanh")
    place = text.index("class Value")
    (folder / "ben_ch01.py").write_text(f"{text[:place]}{head}\n\n{text[place:]}", encoding="utf-8")
    monkeypatch.setenv("MINIRES_TEST_CLASS", mark := str(note))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    middle = graded(folder, others)
    assert [grade.status for grade in middle] == statuses, middle
    assert ("answer " if body else "head ") in note.read_text() and "exit" not in note.read_text()
    deadline = time.monotonic() + 10  # a process that was killed takes a moment to end
    while processes(mark) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert processes(mark) == []
    assert photograph() == before
    assert list(temporary.iterdir()) == [] or way == "fills its working folder"
    if way.startswith("fills the memory"):
        assert "it stops with MemoryError" in middle[3].diagnosis
        assert MEMORY / 2 < int(note.read_text().split()[1]) * 1024 < MEMORY + LIBRARIES
    if way == "fills the disk":
        assert "File too large" in middle[3].diagnosis


def test_files_that_are_no_answers(folder, others):
    os.mkfifo(folder / "ben_pipe_ch01.py")
    (folder / "ben_device_ch01.py").symlink_to("/dev/null")
    (folder / "ben_nowhere_ch01.py").symlink_to("nowhere")
    (folder / "ben_link_ch01.py").symlink_to(MASTERS / "ch01_autograd.py")
    (folder / "ben_folder_ch01.py").mkdir()
    (folder / "ben_large_ch01.py").write_bytes(b"# " + bytes(10**6))
    (folder / "ben_latin_ch01.py").write_bytes(b"x = '\xff'\n")
    (folder / "ben_empty_ch01.py").touch()
    (folder / "ben_words_ch01.py").write_text("Dear teacher,\n", encoding="utf-8")
    (folder / "ben_nested_ch01.py").write_text("x = " + "-" * 100_000 + "1\n", encoding="utf-8")
    found = {}
    for grade in graded(folder, others):
        found.setdefault(Path(grade.file).stem.split("_")[1], []).append((grade.status, grade.diagnosis))
    says = {
        "pipe": "expected a Python file, got a pipe or device",
        "device": "got a link",
        "nowhere": "got a link",
        "link": "got a link",
        "folder": "expected a Python file, got a folder",
        "large": "expected a Python file of at most 1,000,000 bytes, got 1,000,002",
        "latin": "can't decode byte 0xff",
    }
    for name, words in says.items():
        ((status, diagnosis),) = found.pop(name)
        assert status == "unreadable" and words in diagnosis, (name, diagnosis)
    assert [status for status, _ in found["empty"]] == WRONG and "it has no Value" in found["empty"][0][1]
    assert [status for status, _ in found["words"]] == WRONG and "SyntaxError" in found["words"][0][1]
    assert [status for status, _ in found["nested"]] == WRONG and "cannot be loaded" in found["nested"][0][1]
    assert len(found) == 3


def test_a_device_is_not_read_even_without_a_link():
    with pytest.raises(OSError, match="expected a Python file, got a pipe or device: /dev/null"):
        read(Path("/dev/null"))
