"""What another framework means by the same words: the lines of chapters/elsewhere.md that differ from minires."""

from __future__ import annotations

import textwrap
from typing import NamedTuple

from minires.paper.records import checkout

Row = dict[str, str]  # column title: cell


class Topic(NamedTuple):
    """A section of the page with a table: a row for each framework, and what to mind when a net moves."""

    title: str
    rows: dict[str, Row]  # by framework, in lower case
    advice: str


def topics() -> list[Topic]:
    """The sections of the page that compare minires with others, in their order."""
    text = checkout("chapters/elsewhere.md").read_text(encoding="utf-8")
    found = []
    for section in text.split("\n## ")[1:]:
        title, *lines = section.splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        columns, _, *rows = cells
        by_name = {row[0].lower(): dict(zip(columns[1:], row[1:], strict=True)) for row in rows}
        found.append(Topic(title, by_name, " ".join(section.partition("**Moving a net.**")[2].split())))
    return found


def differences(framework: str) -> str:
    """What `framework`, for example "keras", does differently, topic by topic. Raises ValueError if it isn't known."""
    page, name = topics(), framework.lower()
    known = sorted({other for topic in page for other in topic.rows} - {"minires"})
    if name not in known:
        raise ValueError(f"elsewhere: expected one of {', '.join(known)}, got {framework!r}")
    blocks = []
    for topic in page:
        ours, theirs = topic.rows["minires"], topic.rows.get(name, {})
        lines = [
            f"  {column}: {cell}  (minires: {ours[column]})"
            for column, cell in theirs.items()
            if cell not in ("same", "?", ours[column])
        ]
        if lines:
            advice = textwrap.wrap(topic.advice, 96, initial_indent="  -> ", subsequent_indent="     ")
            blocks.append("\n".join([topic.title, *lines, *advice]))
    return "\n\n".join(blocks)
