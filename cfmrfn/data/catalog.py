"""The known layouts of data sets, and `open_set`, which opens any of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from cfmrfn.data import affectnet, ferplus, folder, rafdb
from cfmrfn.data.files import check_folder, holds_image, is_visible
from cfmrfn.data.samples import ExpressionSet, Layout, SetOptions
from cfmrfn.data.synthetic import writer as drawn
from cfmrfn.errors import DataError

# In the order in which layout="auto" asks them; the first that recognises the folder reads it.
LAYOUTS = (
    Layout("drawn", "faces drawn by cfmrfn, in RAF-DB's layout", drawn.recognise, drawn.load),
    Layout("rafdb", "RAF-DB: EmoLabel, Image/aligned", rafdb.recognise, rafdb.load),
    Layout(
        "affectnet",
        "AffectNet: Manually_Annotated_file_lists, or train_set/annotations",
        affectnet.recognise,
        affectnet.load,
    ),
    Layout("ferplus", "FERPlus: fer2013new.csv", ferplus.recognise, ferplus.load),
    Layout(
        "ferplus-argmax10",
        "FERPlus labelled by most votes of all columns",
        ferplus.recognise,
        partial(ferplus.load, rule=ferplus.argmax10),
    ),
    Layout(
        "ferplus-argmax8",
        "FERPlus labelled by most votes of the eight expressions",
        ferplus.recognise,
        partial(ferplus.load, rule=ferplus.argmax8),
    ),
    Layout(
        "ferplus-votes",
        "FERPlus with all votes: argmax8 to train on, majority to evaluate on",
        ferplus.recognise,
        partial(ferplus.load, rule=ferplus.argmax8, evaluation_rule=ferplus.majority),
    ),
    Layout("folder", "class folders: train/happiness/1.jpg", folder.recognise, folder.load),
)


def layout_named(name: str) -> Layout | None:
    """The layout of that name in `LAYOUTS`, or None for "auto".

    Raises:
        DataError: there is none.
    """
    layouts = {"auto": None, **{layout.name: layout for layout in LAYOUTS}}
    if name not in layouts:
        raise DataError(f"layout must be {', '.join(layouts)}; got {name!r}")
    return layouts[name]


def open_set(
    root: str | Path,
    layout: str = "auto",
    classes: int | Sequence[str] | None = None,
    *,
    only: Sequence[str] | None = None,
    training: bool = True,
    boxes: bool = True,
    digits: Sequence[str] | None = None,
) -> ExpressionSet:
    """Opens the data set under `root`.

    Args:
        root: the folder that the set's owners' archive unpacks to.
        layout: a name in `LAYOUTS`, or "auto" to recognise the layout.
        classes: None takes the classes as found. A number is checked against the data; AffectNet
            and FERPlus leave contempt out at 7. Names map the set onto those classes, in that
            order, and drop images of others (see `ExpressionSet.mapped_to`).
        only: names of the classes to use, of those the set has. None: all.
        training: the set must have a training split with images of every class, and another split.
            False opens what is there, such as `ROOT/test` alone, or class folders without splits,
            which then are the split "all".
        boxes: crop to the face boxes of AffectNet's lists. False: the images are cropped already.
        digits: what class folders named by digits mean, a name in `folder.DIGITS` or the names of
            the classes in order. None: AffectNet's labels from 0, RAF-DB's from 1.

    Raises:
        DataError: the folder is missing or not recognised, a label is bad, the number of classes
            disagrees, a class has no training image (unless mapped onto names), or `layout` is
            unknown.
    """
    named = layout_named(layout)
    root = os.fspath(root)
    check_folder(root)
    chosen = named or _recognise(root, training)
    number = classes if isinstance(classes, int) else None
    options = SetOptions(
        # what is left of 8 classes by `only` is counted, not what the set has
        classes=None if only else number,
        training=training,
        boxes=boxes,
        digits=tuple(digits or ()),
    )
    opened = _load(chosen, root, options)
    if only:
        opened = opened.only(only)
    if classes is not None and not isinstance(classes, int):
        return opened.mapped_to(classes)
    if number not in (None, len(opened.class_names)):
        raise DataError(
            f"{opened.name} in {root} has {len(opened.class_names)} classes "
            f"({', '.join(opened.class_names)}), but {number} are configured; "
            f"--only and names of classes choose some of them"
        )
    if training:
        opened.require_trainable()
    return opened


def _load(layout: Layout, root: str, options: SetOptions) -> ExpressionSet:
    try:
        return replace(layout.load(root, options), layout=layout.name)
    except DataError as error:
        if layout.recognise(root):
            raise
        fitting = next((other for other in LAYOUTS if other.recognise(root)), None)
        if fitting is None:
            raise
        raise DataError(
            f"{error}. The folder looks like another layout ({fitting.description}): "
            f"use --layout {fitting.name}"
        ) from error


def _holds_set(root: str) -> bool:
    """Whether the folder is surely a data set, and not a class of one."""
    *sets, _ = LAYOUTS
    return folder.has_splits(root) or any(layout.recognise(root) for layout in sets)


def _recognise(root: str, training: bool) -> Layout:
    for layout in LAYOUTS:
        if layout.recognise(root):
            return layout
    with os.scandir(root) as entries:
        inside = sorted(each.path for each in entries if each.is_dir() and is_visible(each.name))
    below = [path for path in inside if _holds_set(path)]
    if len(below) == 1:
        raise DataError(f"no data set recognised in {root}, but in a folder of it: give {below[0]}")
    if not training and holds_image(root):
        return LAYOUTS[-1]  # class folders of a user's own classes
    known = "; ".join(f"{layout.name} ({layout.description})" for layout in LAYOUTS)
    hint = f". {folder.how_to_divide(root)}" if holds_image(root) else ""
    raise DataError(f"no data set recognised in {root}; known layouts: {known}{hint}")
