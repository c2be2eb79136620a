"""Recorded results that a power cut or a hand has damaged, and pages with other line ends, modes and links."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from minires.paper import tables

RESULTS = Path(__file__).parent.parent / "results"
FILES = {  # the rows that say whether a run is finished
    "fast/resnet20": "metrics.jsonl",
    "very-deep/resnet110": "steps.jsonl",
    "zero-residual/plain": "metrics.jsonl",
}


@pytest.fixture
def copied(tmp_path):
    """copied(run): a copy of a recorded run, in results of its own."""

    def copy(run):
        shutil.copytree(RESULTS / run, out := tmp_path / "results" / run)
        return out

    return copy


def content_of(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


# ---- damaged runs

DAMAGE = {  # what becomes of the file's lines, and which of them is then damaged
    "half a line": (lambda lines: [*lines[:-1], lines[-1][:20]], -1),
    "zero bytes": (lambda lines: [*lines, bytes(4096)], -1),
    "a list": (lambda lines: [lines[0], b"[1]\n", *lines[1:]], 1),
    "half a line in the middle": (lambda lines: [lines[0], lines[1][:20] + b"\n", *lines[2:]], 1),
    "not UTF-8": (lambda lines: [b"\xff" + lines[0], *lines[1:]], 0),
}


@pytest.mark.parametrize("run", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_finished_run_names_its_damaged_line_and_keeps_every_byte(damage, run, copied, status_of, capsys):
    """No checkpoint could restore the line, and to train the run again would lose the others."""
    out = copied(run)
    file, (change, at) = out / FILES[run], DAMAGE[damage]
    lines = change(file.read_bytes().splitlines(keepends=True))
    file.write_bytes(b"".join(lines))
    before = content_of(out.parent.parent)
    assert status_of("reproduce", run, "--out", out.parent.parent) == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.count("\n") == 1
    assert f"{file}, line {range(len(lines))[at] + 1} is damaged: expected " in found.err
    assert content_of(out.parent.parent) == before


@pytest.mark.parametrize("text", ["", "\0\0\0", '{"config": {"model"', "[]", "null", "{}", '{"steps": "many"}'])
def test_a_damaged_config_is_named_and_nothing_is_trained(text, copied, status_of, capsys):
    out = copied("fast/resnet20")
    (out / "config.json").write_text(text, encoding="utf-8")
    before = content_of(out.parent.parent)
    assert status_of("reproduce", "fast", "--out", out.parent.parent) == 2
    err = capsys.readouterr().err
    assert f"{out / 'config.json'} cannot be read: " in err and err.count("\n") == 1
    assert content_of(out.parent.parent) == before


# ---- pages


@pytest.fixture
def page(copied, monkeypatch):
    """A page that is not written yet, next to results of its table; figures are left out."""
    monkeypatch.setattr(tables, "draw", lambda results: [])
    return copied("zero-residual/plain").parent.parent / "README.md"


BEFORE, AFTER = b"# Caf\xe9\r\nend\n\r\n<!-- table: zero-residual -->", b"<!-- end -->\r\n\nmore\ttext \r\n no line end"


def test_a_page_of_windows_keeps_its_line_ends_and_gets_no_others(page):
    page.write_bytes(BEFORE + b"\r\n\r\nold\r\n" + AFTER)
    assert tables.rebuild(page.parent) == [page]
    text = page.read_bytes()
    assert text.startswith(BEFORE) and text.endswith(AFTER)
    table = text[len(BEFORE) : -len(AFTER)]
    assert b"| blocks |" in table and table.count(b"\n") == table.count(b"\r\n") > 4
    assert tables.rebuild(page.parent) == []


@pytest.mark.parametrize("text", [b"", b"no table\r\n", b"<!-- table: zero-residual -->\n", b"\xff\xfe\0<!-- end -->"])
def test_a_page_without_a_table_is_left_alone(text, page):
    page.write_bytes(text)
    os.utime(page, (1, 1))
    assert tables.rebuild(page.parent) == []
    assert page.read_bytes() == text and page.stat().st_mtime == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions, and a link needs one")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_page_keeps_its_mode_behind_two_links_too(mode, page):
    target = page.parent.parent / "elsewhere.md"
    target.write_bytes(BEFORE + AFTER)
    target.chmod(mode)
    (page.parent / "middle.md").symlink_to(os.path.join("..", "elsewhere.md"))
    page.symlink_to("middle.md")
    assert tables.rebuild(page.parent) == [page]
    assert os.readlink(page) == "middle.md" and (page.parent / "middle.md").is_symlink() and not target.is_symlink()
    assert b"| blocks |" in target.read_bytes() and stat.S_IMODE(target.stat().st_mode) == mode
    assert {path.name for path in page.parent.iterdir()} == {"README.md", "middle.md", "zero-residual"}


def test_a_page_that_is_no_file_is_left_alone(page):
    page.mkdir()
    assert tables.rebuild(page.parent) == []
    page.rmdir()
    if os.name != "nt":
        page.symlink_to("nowhere")
        assert tables.rebuild(page.parent) == [] and page.is_symlink()
        page.unlink()
        os.mkfifo(page)
        assert tables.rebuild(page.parent) == []
    assert {path.name for path in page.parent.iterdir()} <= {"README.md", "zero-residual"}


def test_an_interrupted_write_leaves_the_old_page(page, monkeypatch):
    page.write_bytes(BEFORE + AFTER)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupted)
        tables.rebuild(page.parent)
    assert page.read_bytes() == BEFORE + AFTER
    assert {path.name for path in page.parent.iterdir()} == {"README.md", "zero-residual"}
