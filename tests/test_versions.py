"""The versions that the oldest-versions run installs are the lower bounds of pyproject.toml."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def number(version):
    parts = [int(part) for part in version.split(".")]
    return parts + [0] * (3 - len(parts))  # 2.0 is 2.0.0


def test_the_oldest_versions_are_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [re.split(">=", text) for text in project["dependencies"] + extras["chapters"] + extras["test"]]
    direct = (ROOT / "tests" / "oldest.txt").read_text(encoding="utf-8").split("\n\n")[0]
    found = re.findall(r"^([a-z]+)==(.+)$", direct, re.MULTILINE)
    assert {name: number(version) for name, version in found} == {name: number(bound) for name, bound in wanted}
