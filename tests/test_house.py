"""The house: a room imports only from rooms above it, heavy libraries where they are used; the engine is short."""

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

import minires

HOUSE = Path(minires.__file__).parent
ORDER = [name.rstrip("/") for name in minires.READING_ORDER] + ["__main__"]
LIGHT = {"numpy", "threadpoolctl"}  # beside Python's own library, all that may be loaded at once
MAY_BE_HEAVY = {"plots", "course", "cli", "__main__"}  # nothing light imports these: heavy ones may stand on top
MODULES = sorted(p for p in HOUSE.rglob("*.py") if p != HOUSE / "__init__.py")


def room(module: Path) -> str:
    return module.relative_to(HOUSE).with_suffix("").parts[0]


def imports(tree: ast.AST) -> list[tuple[str, ast.stmt]]:
    """Every module that is imported, lazily or not, as a full name, and the statement."""
    found: list[tuple[str, ast.stmt]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the full name, minires.something"
            if node.module == "minires":
                found += [(f"minires.{alias.name}", node) for alias in node.names]
            else:
                found.append((node.module or "", node))
    return found


def at_top(tree: ast.Module) -> set[ast.stmt]:
    """The statements that run when the module is imported."""
    top: set[ast.stmt] = set()
    stack: list[ast.AST] = [tree]
    while stack:
        for node in ast.iter_child_nodes(stack.pop()):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if isinstance(node, ast.stmt):
                top.add(node)
            stack.append(node)
    return top


def parse(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", MODULES, ids=lambda p: p.relative_to(HOUSE).as_posix())
def test_a_module_imports_only_from_rooms_above_it(module):
    assert room(module) in ORDER, f"{module.name} has no place in the order"
    for name, node in imports(parse(module)):
        if name.split(".")[0] == "minires":
            other = name.split(".")[1]
            own_folder = other == room(module) and module.parent != HOUSE
            assert other in ORDER, f"line {node.lineno}: {name} is no room; import from the module itself"
            assert own_folder or ORDER.index(other) < ORDER.index(room(module)), (
                f"{module.name}, line {node.lineno}: {other} is below {room(module)} in the house"
            )


@pytest.mark.parametrize("module", MODULES, ids=lambda p: p.relative_to(HOUSE).as_posix())
def test_heavy_libraries_are_imported_where_they_are_used(module):
    tree = parse(module)
    top = at_top(tree)
    at_once = {name.split(".")[0] for name, node in imports(tree) if node in top}
    heavy = at_once - set(sys.stdlib_module_names) - LIGHT - {"minires"}
    allowed = MAY_BE_HEAVY & {room(module)}
    assert allowed or not heavy, f"{module.name} loads {', '.join(sorted(heavy))} when it is imported"


@pytest.mark.parametrize("module", MODULES, ids=lambda p: p.relative_to(HOUSE).as_posix())
def test_only_backend_and_the_doctor_name_cupy(module):
    tree = parse(module)
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    modules = {name.split(".")[0] for name, _ in imports(tree)}
    assert module.stem in ("backend", "doctor") or "cupy" not in names | modules


def test_each_room_is_listed_once_and_exists():
    assert len(set(ORDER)) == len(ORDER)
    rooms = {p.stem if p.suffix else f"{p.name}/" for p in HOUSE.iterdir() if re.match(r"[a-z]\w*(\.py)?$", p.name)}
    assert rooms == set(minires.READING_ORDER)


def test_the_readme_lists_the_rooms_in_the_reading_order():
    rows = re.findall(
        r"^\| \[`([\w/]+)`\]\(.*?\) \| (.*) \|$", (HOUSE.parent / "README.md").read_text(encoding="utf-8"), re.M
    )
    assert [row for row in rows if row[0] in minires.READING_ORDER] == list(minires.READING_ORDER.items())


# ---- short enough to read


def code_lines(path: Path) -> int:
    """Lines that hold code: no comments, docstrings or blank lines."""
    text = path.read_text(encoding="utf-8")
    docstrings = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    no_code = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in no_code]
    return len({line for t in tokens for line in range(t.start[0], t.end[0] + 1)} - docstrings)


ENGINE = ["parallel", "tensor", "functional", "winograd", "conv", "norm", "nn", "resnet", "optim"]


def test_the_engine_reads_in_an_evening():
    """What builds and trains a net; its kernels and its gradient checker are counted apart."""
    lines = {room: code_lines(HOUSE / f"{room}.py") for room in [*ENGINE, "kernels", "gradcheck"]}
    assert sum(lines[room] for room in ENGINE) <= 1_530, lines
    assert lines["kernels"] <= 90 and lines["gradcheck"] <= 180, lines


def test_the_code_lines_of_a_file_are_counted_rightly(tmp_path):
    path = tmp_path / "file.py"
    path.write_text(
        '"""Doc.\n\nMore."""\n\n# why\nx = [\n    1,  # one\n]\n\ndef f():\n    """Doc."""\n    return """\ntext"""\n'
    )
    assert code_lines(path) == 6


@pytest.mark.parametrize("room", ["tensor", "functional", "winograd", "conv", "norm"])
def test_an_operation_fits_on_one_screen(room):
    tree = parse(HOUSE / f"{room}.py")
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert functions
    for f in functions:
        assert (f.end_lineno or 0) - f.lineno + 1 <= 60, f"{room}.{f.name} is longer than 60 lines"
