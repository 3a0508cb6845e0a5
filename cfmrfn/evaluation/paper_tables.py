"""Tables 1 and 2 of the paper, with rows of our own measurements.

The numbers are those that the paper of CFMRFN prints, references and all, in Table 1, "Comparison
of the RAF-DB, AffectNet and FERPlus datasets", and Table 2, "Comparison of single-class accuracy of
RAF-DB, AffectNet and FERPlus datasets". None of them was measured here. Tables 3 to 6 are in
`cfmrfn.sweep`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cfmrfn.data import EXPRESSIONS, canonical_name
from cfmrfn.evaluation import markdown
from cfmrfn.evaluation.split import HOW_CHOSEN, Evaluation


class PaperSet(NamedTuple):
    """A data set of the paper: its layouts here, its number of classes and its split."""

    layouts: Sequence[str]
    classes: int
    split: str


SETS = {
    "RAF-DB": PaperSet(("rafdb",), 7, "test"),
    "AffectNet-7": PaperSet(("affectnet",), 7, "val"),
    "AffectNet-8": PaperSet(("affectnet",), 8, "val"),
    "FERPlus": PaperSet(("ferplus", "ferplus-argmax10", "ferplus-argmax8"), 8, "test"),
}

# Method, venue, and accuracy in percent by data set, in the order of `SETS`; None: no data.
TABLE_1: Sequence[tuple[str, str, Sequence[float | None]]] = [
    ("SCN (Wang et al., 2020b)", "CVPR", (87.03, 60.23, 60.28, 89.39)),
    ("PSR (Thanh-Hung et al., 2020)", "CVPR", (88.98, 63.77, 60.68, None)),
    ("RAN (Wang et al., 2020a)", "TIP", (86.90, None, None, 89.16)),
    ("DACL (Farzaneh et al., 2020)", "WACV", (87.78, 65.20, None, None)),
    ("KTN (Li et al., 2021)", "TIP", (88.07, 63.97, None, 90.49)),
    ("DMUE (She et al., 2021)", "CVPR", (89.42, 63.11, None, None)),
    ("FDRL (Ruan et al., 2021)", "CVPR", (89.47, None, None, None)),
    ("TransFER (Xue et al., 2017)", "ICCV", (90.91, 66.23, None, 90.83)),
    ("AMP-Net (Liu et al., 2022)", "TCSVT", (89.19, 61.32, 61.74, 89.37)),
    ("Face2Exp (Zeng et al., 2022)", "CVPR", (88.54, 64.23, None, None)),
    ("EAC (Zhang et al., 2022)", "ECCV", (89.99, 65.32, None, 89.64)),
    ("EDGL-FLP (Zhang et al., 2023)", "INS", (89.90, None, 61.25, None)),
    ("FER-former (Li et al., 2023)", "arXiv", (91.30, None, None, 90.96)),
    ("CLIPER (Li et al., 2024)", "ICME", (91.61, 66.29, 61.98, None)),
    ("MMATRans (Liu et al., 2024)", "TII", (89.67, 64.89, None, 90.32)),
    ("ExpIIm (Lan et al., 2025)", "TMM", (91.03, 65.93, 62.86, None)),
    ("CFMRFN", "-", (92.14, 67.35, 63.44, 91.67)),
]

# Accuracy in percent on each class, in the order of the columns, then their mean.
COLUMNS_2 = (
    "neutral",
    "happiness",
    "sadness",
    "surprise",
    "fear",
    "disgust",
    "anger",
    "contempt",
)
TABLE_2: Mapping[str, Mapping[str, Sequence[float | None]]] = {
    "RAF-DB": {
        "CFMRFN": (93.23, 97.13, 90.58, 90.88, 66.21, 71.87, 90.12, None, 85.71),
        "cross fusion alone": (91.61, 96.62, 90.58, 90.68, 66.31, 65.00, 89.50, None, 84.32),
    },
    "AffectNet-7": {
        "CFMRFN": (67.33, 88.17, 67.01, 65.56, 65.00, 56.28, 63.61, None, 67.56),
        "cross fusion alone": (66.12, 87.08, 65.41, 65.55, 65.12, 56.00, 59.46, None, 66.39),
    },
    "FERPlus": {
        "CFMRFN": (94.19, 96.18, 94.72, 80.67, 90.77, 53.33, 61.53, 46.15, 77.19),
        "cross fusion alone": (93.08, 96.52, 93.46, 80.41, 89.29, 43.66, 61.53, 40.13, 74.76),
    },
}

# What a reader who compares should know of the paper's own numbers.
NOTES = {
    "AffectNet-7": "The validation split has 500 images of each class, so that accuracy and mean "
    "of the classes are the same; the paper prints 67.35 in Table 1 and 67.56 in Table 2.",
    "FERPlus": "The paper does not say which rule made the labels from the votes. Its columns in "
    "Table 2 seem to be in FERPlus's own order (neutral, happiness, surprise, sadness, anger, "
    "disgust, fear, contempt) under the heading printed here: weighted by the images of the test "
    "split they give 91.5 % in that order and 89.7 % as printed, where Table 1 has 91.67 %.",
}

MEASURED = "measured here"
PAPER = "the paper"


def set_of(evaluation: Evaluation) -> str | None:
    """Name in `SETS` of what was evaluated on; None: the paper has no such data set."""
    images = evaluation.images
    shared = {canonical_name(name) for name in images.shared_classes}
    fitting = (
        name
        for name, paper_set in SETS.items()
        if images.layout in paper_set.layouts
        and images.name == paper_set.split
        and shared == set(EXPRESSIONS[: paper_set.classes])
    )
    return next(fitting, None)


def tables(evaluations: Mapping[str, Evaluation]) -> str:
    """Tables 1 and 2 as Markdown for the data sets of `evaluations`, which are named.

    For evaluations on other data a sentence says that the paper has no table.
    """
    by_set: dict[str | None, dict[str, Evaluation]] = {}
    for name, evaluation in evaluations.items():
        by_set.setdefault(set_of(evaluation), {})[name] = evaluation
    return "\n\n".join(
        _no_table(own) if name is None else _both_tables(name, own) for name, own in by_set.items()
    )


def _no_table(evaluations: Mapping[str, Evaluation]) -> str:
    images = next(iter(evaluations.values())).images
    numbers = sorted({len(each.images.shared_classes) for each in evaluations.values()})
    legal = ", ".join(
        f"{name} (split {paper_set.split}, {paper_set.classes} classes)"
        for name, paper_set in SETS.items()
    )
    return (
        f"The paper has no table for {images.set_name}, split {images.name}, "
        f"{' or '.join(map(str, numbers))} classes; Tables 1 and 2 are of {legal}, as their owners "
        "lay them out."
    )


def _both_tables(name: str, evaluations: Mapping[str, Evaluation]) -> str:
    place = list(SETS).index(name)
    rows = [
        [method, venue, f"{accuracies[place]:.2f}", PAPER]
        for method, venue, accuracies in TABLE_1
        if accuracies[place] is not None
    ]
    rows += [
        [label, "-", f"{100 * evaluation.report.accuracy:.2f}", MEASURED]
        for label, evaluation in evaluations.items()
    ]
    parts = [
        f"**Table 1 of the paper, {name}**",
        markdown.table(["method", "venue", f"{name}, accuracy, %", "from"], rows, left=2),
    ]
    if name in TABLE_2:
        columns = COLUMNS_2[: SETS[name].classes]
        rows = [
            [method, *_cells([*values[: len(columns)], values[-1]]), PAPER]
            for method, values in TABLE_2[name].items()
        ]
        for label, evaluation in evaluations.items():
            recall = {
                canonical_name(own): 100 * value
                for own, value in zip(
                    evaluation.class_names, evaluation.report.per_class, strict=True
                )
            }
            values = [recall[column] for column in columns]
            values.append(100 * evaluation.report.mean_class_accuracy)
            rows.append([label, *_cells(values), MEASURED])
        header = ["method", *columns, "mean", "from"]
        parts += [
            f"**Table 2 of the paper, {name}: accuracy of each class, %**",
            markdown.table(header, rows),
        ]
    else:
        parts.append(f"Table 2 of the paper has no row for {name}.")
    notes = [_about_measured(label, evaluation) for label, evaluation in evaluations.items()]
    notes.insert(
        0, f'"{PAPER}": as printed there, not measured here. {NOTES.get(name, "")}'.strip()
    )
    return "\n\n".join([*parts, "\n".join(notes)])


def _cells(values: Sequence[float | None]) -> list[str]:
    # nan: a class without images
    return ["-" if value is None or value != value else f"{value:.2f}" for value in values]


def _about_measured(label: str, evaluation: Evaluation) -> str:
    about, images = evaluation.about, evaluation.images
    network = about.config.network.preset
    facts = [
        f"{label}: {network}, epoch {about.epoch}, {HOW_CHOSEN[about.chosen_on]}",
        f"on {evaluation.report.images} images of {images.set_name}",
    ]
    expected = sum(
        count for name, count in images.published.items() if name in images.shared_classes
    )
    if evaluation.report.images != expected:
        facts.append(f"where the published split has {expected}: not the paper's images")
    if (without := evaluation.without_duplicates) is not None:
        facts.append(
            f"{evaluation.report.images - without.report.images} of them {images.learned_from} "
            f"images too, without which accuracy is {100 * without.report.accuracy:.2f}"
        )
    if len(evaluation.class_names) > len(images.shared_classes):
        facts.append(f"predicted among {len(evaluation.class_names)} classes")
    elif evaluation.only_shared and len(about.class_names) > len(evaluation.class_names):
        facts.append(f"predicted among these classes only of its {len(about.class_names)}")
    if evaluation.flip:
        facts.append("mean of image and mirror image")
    return ", ".join(facts) + "."
