"""One version in all files: minires' own, and the lower bounds that the oldest-versions run installs."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def number(version):
    parts = [int(part) for part in version.split(".")]
    return parts + [0] * (3 - len(parts))  # 2.0 is 2.0.0


def test_the_oldest_versions_are_the_lower_bounds():
    extras = PROJECT["optional-dependencies"]
    wanted = [text.split(">=") for text in PROJECT["dependencies"] + extras["chapters"] + extras["test"]]
    direct = (ROOT / "tests" / "oldest.txt").read_text(encoding="utf-8").split("\n\n")[0]
    found = re.findall(r"^([a-z-]+)==(.+)$", direct, re.MULTILINE)
    assert {name: number(version) for name, version in found} == {name: number(bound) for name, bound in wanted}


def test_the_citation_and_the_changelog_have_the_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall("^version: (.+)$", citation, re.MULTILINE) == [PROJECT["version"]]
    assert re.findall(r"^## \[(\d.*?)\]", changelog, re.MULTILINE)[0] == PROJECT["version"]
