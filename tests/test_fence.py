"""A fence around the user's files: whatever name an output gets, a command changes only paths that it printed.

A folder is photographed (names, contents, permissions, links), a command runs in it, and the photographs are compared.
The commands and their outputs are read from the command line itself: a new one has no case yet, and fails a test.
"""

import os
import re
import shutil
import stat
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from PIL import Image

from minires.cli import app
from minires.data import Dataset, cifar10
from minires.files import digest
from minires.training.config import Config
from minires.training.loop import fit

RESULTS = Path(__file__).parent.parent / "results" / "zero-residual"
INPUTS = {"data_dir"}  # options that name a folder to read ...
FETCH = ("data fetch", "data_dir")  # ... but for one

# the commands with an output, with small work to do, and the inputs that must not be written over
FILES = {
    ("predict", "plot"): (["predict", "run", "cat.png", "photos/a/0.png", "--plot"], "cat.png"),
    ("summary", "plot"): (["summary", "resnet8", "--plot"], None),
    ("data show", "out"): (["data", "show", "photos", "--out"], "photos/a/0.png"),
    ("plot", "out"): (["plot", "run", "--out"], "run/metrics.jsonl"),
    ("export", "file"): (["export", "run"], "run/model.safetensors"),
}
TRAIN = ["train", "resnet8", "--width", "2", "--epochs", "1", "--data", "photos", "--threads", "1"]
FOLDERS = {
    ("train", "out"): [*TRAIN, "--out"],
    ("train", "resume"): ["train", "--resume"],
    ("reproduce", "out"): ["reproduce", "--tables", "--out"],
    FETCH: ["data", "fetch", "--data-dir"],
}


def outputs():
    """(command, option) of each option, or argument named `file`, that names a file or a folder to write."""
    found, apps = set(), [("", app)]
    for prefix, part in apps:
        apps += [(f"{group.name} ", group.typer_instance) for group in part.registered_groups]
        for command in part.registered_commands:
            name = prefix + (command.name or command.callback.__name__)
            for option, hint in get_type_hints(command.callback, include_extras=True).items():
                kinds = [type(extra).__name__ for extra in getattr(hint, "__metadata__", ())]
                is_output = "OptionInfo" in kinds and option not in INPUTS or option == "file"
                if is_output and "Path" in str(getattr(hint, "__origin__", "")):
                    found.add((name, option))
    return found


def test_every_output_of_every_command_has_a_case():
    assert outputs() | {FETCH} == set(FILES) | set(FOLDERS)
    assert {("train", "out"), ("predict", "plot")} <= outputs()  # it does find them


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A home folder: pictures in folders, a trained run, recorded results, and files of the user's own."""
    home, rng = tmp_path_factory.mktemp("original"), np.random.default_rng(0)
    for name in ("cat.png", *(f"photos/{c}/{i}.png" for c in "ab" for i in range(6))):
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    images, labels = rng.integers(0, 256, (12, 32, 32, 3), np.uint8), np.arange(12) % 2
    dataset = Dataset("pictures", images, labels, images, labels, ("a", "b"))
    fit(Config.from_recipe(model="resnet8", width=2, epochs=1, batch_size=4, threads=1), home / "run", dataset=dataset)
    shutil.copytree(RESULTS, home / "results" / "zero-residual", ignore=shutil.ignore_patterns("*.png"))
    (home / "results" / "README.md").write_bytes(b"# Mine\r\n<!-- table: zero-residual --><!-- end -->\r\nmore\r\n")
    (home / "README.md").write_bytes(b"my own page\r\n<!-- table: runs --><!-- end -->\r\n")
    (home / "private.txt").write_bytes(b"secret")
    return home


@pytest.fixture
def home(original, tmp_path, monkeypatch):
    home = tmp_path / "home"
    shutil.copytree(original, home)
    (home / "private.txt").chmod(0o600)
    (home / "README.md").chmod(0o600)
    monkeypatch.chdir(home)
    monkeypatch.delenv("MINIRES_DATA", raising=False)
    return home


def photograph(home):
    """Each path with what can be seen of it: its kind and permissions, and its content or where it leads."""
    seen = {}
    for path in sorted(home.rglob("*")):
        mode = path.lstat().st_mode
        if path.is_symlink():
            content = os.readlink(path)
        else:
            content = digest(path.read_bytes()) if stat.S_ISREG(mode) else ""
        seen[path.relative_to(home).as_posix()] = (mode, content)
    return seen


def changes(home, before):
    after = photograph(home)
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def printed(text, home):
    """The paths in what a command printed."""
    words = {word.rstrip(",;:") for line in text.splitlines() for word in [line, *line.split()]}
    return {path for word in words if (path := inside(word, home))}


def inside(word, home):
    try:
        return Path(home, word).resolve().relative_to(home.resolve()).as_posix()
    except (OSError, ValueError):  # no path, or one elsewhere
        return None


def assert_only_printed_paths_differ(home, before, text):
    named = printed(text, home)
    folders = {Path(name) for name in re.findall(r"run folder (\S+)", text)}
    for path in changes(home, before):
        is_part = any(Path(path).is_relative_to(folder) for folder in folders)
        is_new_folder = path not in before and any(Path(path) in Path(name).parents for name in {*named, *folders})
        assert path in named or is_part or is_new_folder, (path, text)


def links_to(target, home, end):
    """Other names of a file: a hard link, a symbolic link."""
    os.link(home / target, home / f"hard{end}")
    yield f"hard{end}"
    yield "hard"  # the suffix is added
    if os.name != "nt":
        (home / f"soft{end}").symlink_to(target)
        yield f"soft{end}"


@pytest.mark.parametrize("case", FILES, ids=" ".join)
def test_a_file(case, home, status_of, capsys):
    arguments, target = FILES[case]
    end = ".onnx" if case[0] == "export" and pytest.importorskip("onnx", reason="onnx is not installed") else ".png"
    for name, written in ((f"new{end}", f"new{end}"), ("new2", f"new2{end}"), ("nowhere/.new", f"nowhere/.new{end}")):
        before = photograph(home)
        assert status_of(*arguments, name) == 0
        assert changes(home, before) - {"nowhere"} == {written}
        assert_only_printed_paths_differ(home, before, capsys.readouterr().out)
    refused = [".", "photos", "photos/", "README.md", "private.txt"]
    if target:
        refused += [target, os.path.join("photos", "..", target), *links_to(target, home, end)]
        refused += [target.removesuffix(".png")] if target.endswith(".png") else []
    before = photograph(home)
    for name in refused:
        assert status_of(*arguments, name) == 2, name
        assert changes(home, before) == set(), name
        assert capsys.readouterr().err.count("\n") == 1


def test_a_picture_that_is_no_input_is_replaced_and_its_link_and_permissions_stay(home, status_of, capsys):
    (home / "old.png").write_bytes((home / "cat.png").read_bytes())
    (home / "old.png").chmod(0o600)
    before = photograph(home)
    assert status_of("summary", "resnet8", "--plot", "old.png") == 0
    assert changes(home, before) == {"old.png"} and capsys.readouterr().out.endswith("\nold.png\n")
    assert photograph(home)["old.png"][0] == before["old.png"][0]


def test_the_folder_of_a_new_run(home, status_of, capsys):
    before = photograph(home)
    assert status_of(*FOLDERS["train", "out"], "fresh/run") == 0
    out = capsys.readouterr().out
    assert {"fresh/run/config.json", "fresh/run/model.safetensors", "fresh/run/curves.png"} <= changes(home, before)
    assert_only_printed_paths_differ(home, before, out)


def test_no_run_begins_in_what_is_there(home, status_of, capsys):
    os.link(home / "cat.png", home / "hard")
    before = photograph(home)
    for name in (".", "photos", "run", "results", "cat.png", "hard", "private.txt"):
        assert status_of(*FOLDERS["train", "out"], name) == 2, name
        assert changes(home, before) == set(), name
        assert capsys.readouterr().err.count("\n") == 1


def test_resuming_changes_only_the_run(home, status_of, capsys):
    before = photograph(home)
    for name in (".", "photos", "results", "results/zero-residual/plain", "cat.png", "private.txt", "nowhere"):
        assert status_of(*FOLDERS["train", "resume"], name) == 2, name
        assert changes(home, before) == set(), name
        assert capsys.readouterr().err.count("\n") == 1


def test_tables_and_figures(home, status_of, capsys):
    for name in ("photos", "run", "nowhere"):  # nothing is recorded there
        before = photograph(home)
        assert status_of(*FOLDERS["reproduce", "out"], name) == 0, name
        assert changes(home, before) == set(), name
    for name in ("cat.png", "private.txt"):
        before = photograph(home)
        status_of(*FOLDERS["reproduce", "out"], name)
        assert changes(home, before) == set(), name
    capsys.readouterr()
    before = photograph(home)
    assert status_of(*FOLDERS["reproduce", "out"], "results") == 0
    out = capsys.readouterr().out
    assert changes(home, before) == {"results/README.md", "results/zero-residual/zero-residual.png"}
    assert_only_printed_paths_differ(home, before, out)
    page = (home / "results" / "README.md").read_bytes()
    assert page.startswith(b"# Mine\r\n<!-- table: zero-residual -->\r\n") and page.endswith(
        b"<!-- end -->\r\nmore\r\n"
    )
    before = photograph(home)
    assert status_of(*FOLDERS["reproduce", "out"], "results") == 0  # they are up to date
    assert changes(home, before) == set()


def test_a_download_goes_where_it_is_said(home, status_of, capsys, monkeypatch):
    def download(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cifar-10-python.tar.gz").write_bytes(b"many images")
        return folder / "cifar-10-python.tar.gz"

    monkeypatch.setattr(cifar10, "download_cifar10", download)
    before = photograph(home)
    assert status_of(*FOLDERS[FETCH], "images") == 0
    assert changes(home, before) == {"images", "images/cifar-10-python.tar.gz"}
    assert_only_printed_paths_differ(home, before, capsys.readouterr().out)


READERS = {
    "eval": ["eval", "run"],
    "predict": ["predict", "run", "cat.png"],
    "summary": ["summary", "resnet8", "--json"],
    "doctor": ["doctor"],
    "check": ["check"],
    "grade": ["grade", "private.txt"],
    "hint": ["hint", "1.1"],
    "elsewhere": ["elsewhere", "keras"],
}


@pytest.mark.parametrize("name", READERS)
def test_a_command_without_an_output_changes_nothing(name, home, status_of):
    before = photograph(home)
    status_of(*READERS[name])
    assert changes(home, before) == set()
