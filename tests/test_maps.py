"""The glossary and the map of the paper: all that they link to exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ("glossary.md", "paper_map.md")
each_page = pytest.mark.parametrize("page", PAGES)


def read(path):
    return path.read_text(encoding="utf-8")


def names(path):
    """The top-level names of a Python file, and the methods of its classes as Class.method."""
    found = set()
    for node in ast.parse(read(path)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def rows(page):
    """The rows of all tables of a page, as lists of cells, without the header rows."""
    tables = re.findall(r"(?:^\|.*\n)+", read(ROOT / "chapters" / page), re.MULTILINE)
    lines = [line for table in tables for line in table.splitlines()[2:]]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@each_page
def test_every_link_leads_to_a_file_that_defines_its_name(page):
    text = read(ROOT / "chapters" / page)
    links = re.findall(r"\[([^\]]+)\]\(([^)]+)\)", text)
    assert len(links) > 20 and all(label.startswith("`") for label, _ in links)
    for label, target in links:
        assert label.strip("`") in names(ROOT / "chapters" / target), f"{target} has no {label}"


@each_page
def test_every_row_is_complete_and_names_a_chapter_that_exists(page):
    for cells in rows(page):
        assert len(cells) == 5, cells
        chapters = cells[3] if page == "glossary.md" else cells[2]
        assert all(1 <= int(number) <= 10 for number in chapters.split(", ") if number), cells
        assert chapters or "not run" in cells[4], cells


def test_every_exercise_exists_and_belongs_to_a_chapter_of_its_row():
    for cells in rows("paper_map.md"):
        for number in filter(None, cells[3].split(", ")):
            chapter = number.split(".")[0]
            (checks,) = (ROOT / "chapters" / "checks").glob(f"ch{int(chapter):02}_*.py")
            assert f'number="{number}"' in read(checks), number
            assert chapter in cells[2].split(", "), cells


def test_the_map_is_complete():
    """It lists each equation, figure and table of the paper once."""
    first = [cells[0] for cells in rows("paper_map.md")]
    assert [cell[:10] for cell in first if cell.startswith("equation")] == ["equation 1", "equation 2"]
    numbers = [cell for cell in first if re.fullmatch(r"[\d, andto]+", cell)]
    assert numbers == ["1", "2", "3", "4", "5", "6", "7", "1", "2", "3", "4, 5", "6", "7, 8 and 9 to 14"]


def test_the_glossary_lists_each_word_once_in_both_languages():
    words = rows("glossary.md")
    assert len({cells[0] for cells in words}) == len(words)
    assert all(re.search("[一-鿿]", cells[1]) and not re.search("[一-鿿]", cells[0]) for cells in words)
    english = " ".join(cells[0] for cells in words)
    for word in (
        "residual learning",
        "residual block",
        "identity mapping",
        "shortcut connection",
        "skip connection",
        "degradation problem",
        "bottleneck",
        "batch normalisation",
        "gradient flow",
    ):
        assert word in english
