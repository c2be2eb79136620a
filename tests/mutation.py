"""Do the tests notice a fault? Makes small faults in the engine, one at a time, and looks whether a test fails.

    pip install cosmic-ray==8.7.0
    python tests/mutation.py                              # the sample that tests/mutation.md reports
    python tests/mutation.py norm.py:NumberReplacer:12    # some mutants by name; they are told as a diff

cosmic-ray knows what may be changed. The changes are made in copies of the checkout, in a temporary folder. A mutant
that the fast tests of its file let through meets the wide ones too. A test that hangs has noticed the fault as well.
"""

import argparse
import ast
import difflib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.util import cache_from_source
from pathlib import Path
from queue import SimpleQueue

import cosmic_ray.plugins
import parso
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).parents[1]
NOT_FAST = ("torch", "strict", "conv2d_equals", "pooling_equals", "adjoint", "recursion", "memory_flat", "is_light")
FAST = ["-m", "not gpu and not cupy and not slow and not kill", "-k", " and ".join(f"not {word}" for word in NOT_FAST)]
FAST_TESTS = {  # the tests most likely to notice come first
    "tensor.py": ["test_tensor.py", "test_operations.py"],
    "functional.py": ["test_operations.py"],
    "conv.py": ["test_operations.py"],
    "norm.py": ["test_operations.py"],
    "optim.py": ["test_optim.py"],
}
WIDE = [
    "-m",
    "not gpu and not cupy and not slow and not kill",
    "-k",
    "not torch and not strict and (properties or extremes or nn or optim or _equals or adjoint)",
    "-p",
    "_hypothesis_pytestplugin",
    "--hypothesis-seed=0",
]
WIDE_TESTS = [
    "test_properties.py",
    "test_extremes.py",
    "test_nn.py",
    "test_optim.py",
    "test_operations.py",
    "test_tensor.py",
]


def annotations(source):
    """The places (first, last) of type annotations, which are never run."""
    nodes = [getattr(n, field, None) for n in ast.walk(ast.parse(source)) for field in ("annotation", "returns")]
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in nodes if n]


def mutants(file):
    """The names of all mutants of a file: file, operator of cosmic-ray, and which of the places where it can act."""
    source = (ROOT / "minires" / file).read_text(encoding="utf-8")
    nodes, unused, found = list(ast_nodes(parso.parse(source))), annotations(source), []
    for name in sorted(cosmic_ray.plugins.operator_names()):
        operator = cosmic_ray.plugins.get_operator(name)
        if operator.arguments():  # those that want to be told the names of variables
            continue
        places = [place for node in nodes for place in operator().mutation_positions(node)]
        for i, (start, end) in enumerate(places):
            if not any(lo <= start and end <= hi for lo, hi in unused):
                found.append(f"{file}:{name.removeprefix('core/')}:{i}")
    return found


def sample(n, seed):
    """`n` of all mutants; each file has its share."""
    rng, everything = random.Random(seed), {file: mutants(file) for file in FAST_TESTS}
    total = sum(map(len, everything.values()))
    print(f"{total} mutants: {', '.join(f'{file} {len(names)}' for file, names in everything.items())}")
    return [name for names in everything.values() for name in rng.sample(names, round(n * len(names) / total))]


class Checkout:
    """A copy of the checkout, in which files may be changed."""

    def __init__(self, folder):
        self.folder = Path(folder)
        for part in ("minires", "tests", "chapters"):
            shutil.copytree(ROOT / part, self.folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", self.folder)
        path = os.pathsep.join(filter(None, [str(self.folder), os.environ.get("PYTHONPATH")]))
        self.environment = os.environ | {
            "PYTHONPATH": path,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "MINIRES_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }

    def write(self, file, source):
        path = self.folder / "minires" / file
        path.write_text(source, encoding="utf-8")
        # Python compares only time and length, and would run what it compiled before
        Path(cache_from_source(str(path))).unlink(missing_ok=True)

    def fate(self, tests, options, limit):
        """ "" where all tests pass, else the first that failed, or "timeout"."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *options, *tests]
        try:
            done = subprocess.run(
                command,
                cwd=self.folder / "tests",
                env=self.environment,
                timeout=limit,
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except subprocess.TimeoutExpired:
            return "timeout"
        told = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return (told or [f"status {done.returncode}"])[0] if done.returncode else ""


def change(name):
    """File, its source, and its mutated source."""
    file, operator, place = name.split(":")
    source = (ROOT / "minires" / file).read_text(encoding="utf-8")
    changed = mutate_code(source, cosmic_ray.plugins.get_operator(f"core/{operator}")(), int(place))
    return file, source, changed


def difference(source, changed):
    lines = difflib.unified_diff(source.splitlines(), changed.splitlines(), n=0, lineterm="")
    return "\n".join(f"    {line}" for line in lines if not line.startswith(("---", "+++")))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="file:operator:place; default: a sample")
    parser.add_argument("--sample", type=int, default=320, help="how many mutants")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for the fast tests; ten times that for all")
    arguments = parser.parse_args()
    names = arguments.names or sample(arguments.sample, arguments.seed)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        free: SimpleQueue = SimpleQueue()
        for i in range(arguments.jobs):
            free.put(Checkout(Path(folder, str(i))))

        first = free.get()
        if fate := first.fate(WIDE_TESTS, WIDE, 10 * arguments.timeout):
            sys.exit(f"without any mutation: {fate}")
        for file, tests in FAST_TESTS.items():
            source = (ROOT / "minires" / file).read_text(encoding="utf-8")
            first.write(file, "raise RuntimeError")
            if not first.fate(tests, FAST, arguments.timeout):  # unlikely, but all else would be worth nothing
                sys.exit(f"the tests do not load the copy of {file}")
            first.write(file, source)
        free.put(first)

        def judge(name):
            file, source, changed = change(name)
            checkout = free.get()
            try:
                checkout.write(file, changed)
                fate, by = checkout.fate(FAST_TESTS[file], FAST, arguments.timeout), "fast"
                if not fate:
                    fate, by = checkout.fate(WIDE_TESTS, WIDE, 10 * arguments.timeout), "wide"
            finally:
                checkout.write(file, source)
                free.put(checkout)
            print(f"{name}: {f'killed ({by}): {fate}' if fate else 'SURVIVED'}", flush=True)
            if arguments.names or not fate:
                print(difference(source, changed), flush=True)
            return file, "timeout" if fate == "timeout" else f"killed ({by})" if fate else "survived"

        fates = Counter(pool.map(judge, names))

    for (file, fate), count in sorted(fates.items()):
        print(f"{file:15} {fate:15} {count}")
    survived = sum(count for (_, fate), count in fates.items() if fate == "survived")
    print(f"{len(names)} sampled, {len(names) - survived} killed, {survived} survived")


if __name__ == "__main__":
    main()
