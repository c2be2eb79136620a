"""The house: a module imports only from rooms above it, and heavy libraries where they are used."""

import ast
import re
import sys
from pathlib import Path

import pytest

import minires

HOUSE = Path(minires.__file__).parent
ORDER = [  # a room may import from those before it; `data` is a folder of modules
    "backend",
    "tensor",
    "gradcheck",
    "functional",
    "conv",
    "norm",
    "nn",
    "resnet",
    "optim",
    "summary",
    "data",
    "devices",
    "training",
    "plots",
    "paper",
    "course",
    "cli",
    "__main__",
]
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
def test_only_backend_imports_or_uses_cupy(module):
    tree = parse(module)
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    modules = {name.split(".")[0] for name, _ in imports(tree)}
    assert room(module) == "backend" or "cupy" not in names | modules


def test_each_room_is_listed_once_and_only_data_is_a_folder():
    assert len(set(ORDER)) == len(ORDER)
    assert {p.name for p in HOUSE.iterdir() if p.is_dir() and re.match("[a-z]", p.name)} <= {
        "data",
        "devices",
        "training",
        "paper",
        "course",
    }
