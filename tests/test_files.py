"""Files: the names that outputs get, permissions and links that stay, rows and where they are damaged."""

import os
import stat
from pathlib import Path

import pytest

from minires.files import FileError, digest, output_path, read_rows, write_atomically

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions, links and pipes")


# ---- names


@pytest.mark.parametrize(("given", "name"), [("cat", "cat.png"), ("cat.svg", "cat.svg"), (".cat", ".cat.png")])
def test_a_name_without_a_suffix_gets_one(tmp_path, given, name):
    assert output_path(tmp_path / given, ".png") == tmp_path / name
    assert os.listdir(tmp_path) == []


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert output_path("~/cat.png") == tmp_path / "cat.png"


def test_a_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.png").mkdir()
    (tmp_path / "folder").mkdir()
    for name in (".", "..", "folder", "cat", "cat.png", tmp_path, tmp_path.anchor):
        with pytest.raises(FileError, match="expected the name of a file to write, got the folder"):
            output_path(name, ".png")


@posix
def test_a_device_and_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("/dev/null", tmp_path / "pipe", tmp_path / "pipe.png"):
        with pytest.raises(FileError, match="which is a device or a pipe"):
            output_path(name, ".png")


def test_an_input_is_refused_under_each_of_its_names(tmp_path):
    image = tmp_path / "cat.png"
    image.write_bytes(b"a cat")
    os.link(image, tmp_path / "hard.png")
    names = ["cat", "cat.png", "hard", "hard.png", os.path.join("..", tmp_path.name, "cat.png")]
    if os.name != "nt":
        (tmp_path / "soft.png").symlink_to(image)
        names.append("soft.png")
    for name in names:
        with pytest.raises(FileError, match="it would overwrite"):
            output_path(tmp_path / name, ".png", inputs=[tmp_path / "nothing.png", image])
    (tmp_path / "twin.png").write_bytes(b"a cat")  # the same content, another file
    assert output_path(tmp_path / "twin", ".png", inputs=[image]) == tmp_path / "twin.png"


# ---- writing


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_a_file_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "page.md"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == mode


@posix
def test_a_symbolic_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    page, link = tmp_path / "there" / "page.md", tmp_path / "link.md"
    link.symlink_to(Path("there", "page.md"))
    for content in (b"first", b"second"):  # at first the link leads to nothing
        write_atomically(link, content)
        assert link.is_symlink() and page.read_bytes() == content and not page.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link.md", "there"] and os.listdir(page.parent) == ["page.md"]


@posix
def test_the_other_name_of_a_hard_link_keeps_the_old_content(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    os.link(tmp_path / "a", tmp_path / "b")
    write_atomically(tmp_path / "b", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and (tmp_path / "b").read_bytes() == b"new"


def test_digest():
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180


# ---- rows


def test_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    path.write_bytes(b'{"step": 1, "name": "\xc3\xa4"}\r\n{"step": 2.5}')  # a last line needs no line end
    assert read_rows(path) == read_rows(path, ["step"]) == [{"step": 1, "name": "ä"}, {"step": 2.5}]


@pytest.mark.parametrize("bad", [b"", b"\0" * 500, b'{"step": 2, "lr', b"[1]", b"3", b"[" * 10**5, b'{"a": "\xff"}'])
def test_a_damaged_row_is_reported_with_file_and_line(tmp_path, bad):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\n' + bad + b'\n{"step": 3}\n')
    for half in (False, True):
        with pytest.raises(FileError, match=r"rows\.jsonl, line 2 is damaged: expected an object") as error:
            read_rows(path, drop_half_line=half)
        assert str(error.value).isprintable() and len(str(error.value)) < len(str(path)) + 250


@pytest.mark.parametrize("bad", ['{"epoch": 1}', '{"step": "1"}', '{"step": null}', '{"step": true}'])
def test_a_row_without_the_number_it_needs(tmp_path, bad):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{bad}\n", encoding="utf-8")
    assert len(read_rows(path)) == 1
    with pytest.raises(FileError, match="line 1 is damaged: expected an object with the numbers step, lr"):
        read_rows(path, ["step", "lr"])


@pytest.mark.parametrize("half", ['{"step": 2, "lr', "{", "\0\0\0"])
def test_only_a_last_line_without_its_end_may_be_dropped(tmp_path, half):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1}\n' + half, encoding="utf-8")
    assert read_rows(path, drop_half_line=True) == [{"step": 1}]
    with pytest.raises(FileError, match="line 2 is damaged"):
        read_rows(path)
    path.write_text('{"step": 1}\n' + half + "\n", encoding="utf-8")
    with pytest.raises(FileError, match="line 2 is damaged"):
        read_rows(path, drop_half_line=True)


def test_what_is_not_found_and_what_is_not_readable_differ(tmp_path):
    with pytest.raises(OSError):
        read_rows(tmp_path)
