"""Checkpoints side by side, and their differences to the first on the same images."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cfmrfn.data import Sample
from cfmrfn.evaluation import bootstrap, markdown
from cfmrfn.evaluation.bootstrap import Interval
from cfmrfn.evaluation.split import Evaluation
from cfmrfn.inference import open_table
from cfmrfn.whole_files import CsvFile

ACCURACIES = {"accuracy": "accuracy", "mean_class_accuracy": "mean of classes"}


@dataclass(frozen=True)
class Difference:
    """How much more accurate a checkpoint is than the first, on the images that both had.

    Attributes:
        images: number of them.
        values: by name of the accuracy.
        intervals: of the values, from a paired bootstrap.
    """

    images: int
    values: Mapping[str, float]
    intervals: Mapping[str, Interval]


def difference(evaluation: Evaluation, first: Evaluation) -> Difference | None:
    """See `Difference`; None: there is no image that both had, with the same true class."""
    own, others = _places(evaluation), _places(first)
    common = [image for image in own if image in others]
    if not common:
        return None
    here = np.array([own[image] for image in common])
    there = np.array([others[image] for image in common])
    labels = evaluation.labels[here]
    correct = evaluation.is_correct[here]
    correct_of_first = first.is_correct[there]
    gain = correct.astype(np.int64) - correct_of_first
    per_class = [gain[labels == label].mean() for label in np.unique(labels)]
    return Difference(
        len(common),
        {"accuracy": float(gain.mean()), "mean_class_accuracy": float(np.mean(per_class))},
        bootstrap.difference_intervals(labels, correct, correct_of_first),
    )


def _places(evaluation: Evaluation) -> dict[tuple[Sample, str], int]:
    """Index of each image that was read, by what it is: the image, and its true class by name."""
    names, samples = evaluation.class_names, evaluation.images.samples
    columns = zip(samples, evaluation.labels, evaluation.is_read, strict=True)
    # labels and votes are in the order of each checkpoint's classes
    return {
        (sample._replace(label=0, votes=None), names[label]): place
        for place, (sample, label, is_read) in enumerate(columns)
        if is_read
    }


@dataclass(frozen=True)
class Comparison:
    """Evaluations side by side, by the name of the checkpoint."""

    evaluations: Mapping[str, Evaluation]

    @cached_property
    def differences(self) -> Mapping[str, Difference | None]:
        """Of all but the first, to the first."""
        (_, first), *others = self.evaluations.items()
        return {name: difference(evaluation, first) for name, evaluation in others}

    def rows(self) -> list[dict[str, Any]]:
        """A flat row per checkpoint, as for a table; None where there is no value."""
        rows = []
        for name, evaluation in self.evaluations.items():
            row: dict[str, Any] = {"name": name, "images": evaluation.report.images}
            for quantity in ACCURACIES:
                row[quantity] = getattr(evaluation.report, quantity)
                low, high = evaluation.intervals[quantity]
                row |= {f"{quantity}_low": low, f"{quantity}_high": high}
            without = evaluation.without_duplicates
            row["images_without_duplicates"] = None if without is None else without.report.images
            for quantity in ACCURACIES:
                key = f"{quantity}_without_duplicates"
                values: tuple[float | None, ...] = (None, None, None)
                if without is not None:
                    values = (getattr(without.report, quantity), *without.intervals[quantity])
                row |= dict(zip((key, f"{key}_low", f"{key}_high"), values, strict=True))
            row["macro_f1"] = evaluation.report.macro_f1
            row["loss"] = evaluation.report.loss
            row["brier_score"] = evaluation.brier_score
            row["ece"] = evaluation.calibration.ece
            change = self.differences.get(name)
            row["images_of_both"] = None if change is None else change.images
            for quantity in ACCURACIES:
                key = f"{quantity}_difference"
                values = (None, None, None)
                if change is not None:
                    values = (change.values[quantity], *change.intervals[quantity])
                row |= dict(zip((key, f"{key}_low", f"{key}_high"), values, strict=True))
            rows.append(row)
        return rows

    def write_csv(self, path: str | Path) -> None:
        """Writes `rows` as CSV; cells without a value are empty."""
        rows = self.rows()
        with open_table(path) as file:
            writer = csv.DictWriter(CsvFile(file), list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def __str__(self) -> str:
        first = next(iter(self.evaluations))
        header = ["checkpoint", "images"]
        for label in ACCURACIES.values():
            header += [f"{label}, %", "to the first"]
        rows = self.rows()
        unique = "accuracy_without_duplicates"
        has_duplicates = any(row[unique] is not None for row in rows)
        if has_duplicates:
            header.append("without duplicates, %")
        header += ["macro F1", "ECE", "log loss"]
        table = []
        for row in rows:
            cells = [row["name"], str(row["images"])]
            for quantity in ACCURACIES:
                cells += [_percent(row, quantity), _percent(row, f"{quantity}_difference", "+")]
            if has_duplicates:
                cells.append(_percent(row, unique))
            cells += [f"{row[quantity]:.4f}" for quantity in ("macro_f1", "ece", "loss")]
            table.append(cells)
        lines = [
            markdown.table(header, table),
            "",
            f"In brackets: 95 % intervals, percentiles of a bootstrap, {bootstrap.RESAMPLES} "
            "resamples of the images whatever their class.",
            f"Differences are to {first}, on the images that both had, and their intervals from "
            "the same resamples for both (paired).",
        ]
        if has_duplicates:
            lines.append(
                "Without duplicates: accuracy on the images that are not pixel for pixel "
                f"{next(iter(self.evaluations.values())).images.learned_from} images."
            )
        images = {e.report.images for e in self.evaluations.values()}
        for name, change in self.differences.items():
            if change is None:
                lines.append(f"{name} and {first} have no image with the same true class.")
            elif images != {change.images}:
                lines.append(f"{name} and {first} have {change.images} images in common.")
        return "\n".join(lines)


def _percent(row: Mapping[str, Any], quantity: str, sign: str = "") -> str:
    if row[quantity] is None:
        return "-"
    value, low, high = (100 * row[key] for key in (quantity, f"{quantity}_low", f"{quantity}_high"))
    return f"{value:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"
