"""The pieces of the generated Markdown pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with one line per row."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def provenance(setting: Mapping[str, Any]) -> str:
    """What made a table and where, from a record's setting: command, machine, date, versions."""
    versions = ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
    return (
        f"`{setting['command']}`  \n{setting['machine']}; {setting['date']}; "
        f"commit {setting['commit']}; {versions}"
    )
