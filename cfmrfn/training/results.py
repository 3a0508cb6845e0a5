"""Results of epochs: rows of the history made of reports, and reports made of rows again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cfmrfn.metrics import Report
from cfmrfn.training.progress import Row

_WITHOUT = "without_duplicates_"


def columns_of(split: str, report: Report) -> Row:
    """What an epoch's row has of a split: "val" or "test"."""
    row: Row = {}
    for part, each in (("", report), (_WITHOUT, report.without_duplicates)):
        if each is not None:
            row |= {f"{split}_{part}{key}": value for key, value in each.summary().items()}
            row[f"{split}_{part}matrix"] = each.matrix.tolist()
    return row


def held_out_report(row: Row, class_names: tuple[str, ...]) -> Report:
    """The report that an epoch's row has of the held-out images."""
    without = None
    if f"test_{_WITHOUT}matrix" in row:
        matrix = np.array(row[f"test_{_WITHOUT}matrix"])
        without = Report(class_names, matrix, row[f"test_{_WITHOUT}loss"])
    return Report(class_names, np.array(row["test_matrix"]), row["test_loss"], without)


def best_row(history: Sequence[Row], split: str) -> Row:
    """That of the epoch with the highest accuracy on `split`, and among equals the lowest loss."""
    return max(history, key=lambda row: (row[f"{split}_accuracy"], -row[f"{split}_loss"]))


def chosen_rows(history: Sequence[Row], chosen_on: str) -> dict[str | None, Row]:
    """The rows to report: those of the best epoch on each split it may be chosen on, and the last.

    Keys are those of `cfmrfn.evaluation.HOW_CHOSEN`.
    """
    splits = dict.fromkeys([chosen_on, "test"])
    return {**{split: best_row(history, split) for split in splits}, None: history[-1]}


def unequal_epochs(history: Sequence[Row], to_come: Mapping[str, int]) -> list[str]:
    """Lines on splits of which epochs were measured on more or fewer images than others.

    Args:
        history: rows of the epochs done.
        to_come: number of images, by split, of the epochs that follow.
    """
    lines = []
    for split, name in (("val", "validation"), ("test", "held-out")):
        matrices = [row[f"{split}_matrix"] for row in history if f"{split}_matrix" in row]
        counts = {int(np.sum(matrix)) for matrix in matrices}
        if counts and split in to_come:
            counts.add(to_come[split])
        if len(counts) > 1:
            numbers = " and ".join(map(str, sorted(counts)))
            lines.append(
                f"epochs are measured on {numbers} {name} images, so their results differ by the "
                "images too"
            )
    return lines


def as_dict(row: Row, report: Report, weights: str | None) -> dict[str, Any]:
    """What `report.json` has of an epoch; `weights` is their digest, None where it is unknown."""
    result = {"epoch": row["epoch"], "weights": weights, **report.as_dict()}
    if report.without_duplicates is not None:
        result["without_duplicates"] = report.without_duplicates.as_dict()
    return result


def in_lines(row: Row, report: Report, how_chosen: str) -> list[str]:
    """What the log says of an epoch's held-out images."""
    lines = [f"  {report.in_brief()}  epoch {row['epoch']}, {how_chosen}"]
    if (without := report.without_duplicates) is not None:
        lines.append(
            f"    {without.in_brief()}  without the {report.images - without.images} images that "
            "are training images too"
        )
    return lines
