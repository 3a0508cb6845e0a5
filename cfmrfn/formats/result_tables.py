"""Tables of results in a model card, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cfmrfn.metrics import wilson_interval

# Hub's name of a metric, the reader's, and that in the report.
METRICS: Sequence[tuple[str, str, str]] = (
    ("accuracy", "Accuracy", "accuracy"),
    ("recall", "Mean accuracy of the classes", "mean_class_accuracy"),
    ("f1", "Macro F1", "macro_f1"),
)

# Further results: the reader's name and where they are in an evaluation.
_MORE: Sequence[tuple[str, tuple[str, ...]]] = (
    ("Cross-entropy", ("loss",)),
    ("Brier score", ("brier_score",)),
    ("ECE", ("calibration", "ece")),
    ("Mean confidence", ("calibration", "mean_confidence")),
)


def overall(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """Table of the results on all classes; `columns` are results by their titles."""
    rows = []
    for label, keys in [*((name, (key,)) for _, name, key in METRICS), *_MORE]:
        cells = []
        for results in columns.values():
            value: Any = results
            for key in keys:
                value = value.get(key) if isinstance(value, Mapping) else None
            interval = results.get("bootstrap", {}).get(keys[-1])
            cells.append("" if value is None else f"{value:.4f}{_interval(interval)}")
        if any(cells):
            rows.append([label, *cells])
    return _table(["", *columns], rows)


def of_classes(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """Table of the classes' accuracies, with the number of images where it is known."""
    header = ["Expression" if "" in columns else "Accuracy (recall)"]
    for title, results in columns.items():
        header.append(title or "Accuracy (recall)")
        header += ["Images"] if "confusion_matrix" in results else []
    rows = []
    first, *_ = columns.values()
    for place, name in enumerate(first["per_class"]):
        row = [as_markdown(name)]
        for results in columns.values():
            value = results["per_class"][name]
            cell = "no images" if value is None else f"{value:.4f}"
            if "confusion_matrix" in results:
                counts = results["confusion_matrix"][place]
                if images := sum(counts):
                    cell += _interval(wilson_interval(counts[place], images))
                row += [cell, str(images)]
            else:
                row.append(cell)
        rows.append(row)
    return _table(header, rows)


def _interval(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f" ({ends[0]:.4f} to {ends[1]:.4f})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def as_markdown(value: str) -> str:
    """Text as Markdown shows it, on one line; bytes of a name that are no UTF-8 as escapes."""
    plain = value.encode("utf-8", "backslashreplace").decode()
    return "".join(f"\\{c}" if c in r"\`*_[]<>|#" else c for c in " ".join(plain.split()))
