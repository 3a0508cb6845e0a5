"""Tables that a terminal shows aligned and that Markdown takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table as Markdown, its columns as wide as their widest cell.

    Args:
        header: titles of the columns.
        rows: of as many cells each.
        left: number of columns, from the first, that are aligned to the left; others to the right.
    """
    lines = [[_escaped(cell) for cell in row] for row in [header, *rows]]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(header))]
    rule = [
        f":{'-' * (width - 1)}" if column < left else f"{'-' * (width - 1)}:"
        for column, width in enumerate(widths)
    ]

    def aligned(line: Sequence[str]) -> str:
        cells = enumerate(zip(line, widths, strict=True))
        padded = (cell.ljust(w) if column < left else cell.rjust(w) for column, (cell, w) in cells)
        return f"| {' | '.join(padded)} |"

    return "\n".join(map(aligned, [lines[0], rule, *lines[1:]]))


def _escaped(cell: str) -> str:
    return cell.replace("|", r"\|").replace("\n", " ")
