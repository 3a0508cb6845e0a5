"""The known layouts of data sets, and `open_set`, which opens any of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cfmrfn.data import affectnet, ferplus, folder, rafdb
from cfmrfn.data.samples import ExpressionSet, Layout
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
    root: str | Path, layout: str = "auto", classes: int | Sequence[str] | None = None
) -> ExpressionSet:
    """Opens the data set under `root`.

    Args:
        root: the folder that the set's owners' archive unpacks to.
        layout: a name in `LAYOUTS`, or "auto" to recognise the layout.
        classes: None takes the classes as found. A number is checked against the data; AffectNet
            and FERPlus leave contempt out at 7. Names map the set onto those classes, in that
            order, and drop images of others (see `ExpressionSet.mapped_to`).

    Raises:
        DataError: the folder is missing or not recognised, a label is bad, the number of classes
            disagrees, a class has no training image (unless mapped onto names), or `layout` is
            unknown.
    """
    named = layout_named(layout)
    root = os.fspath(root)
    if not os.path.isdir(root):
        raise DataError(f"data folder {root} does not exist")
    chosen = named or _recognise(root)
    if classes is None or isinstance(classes, int):
        opened = chosen.load(root, classes)
        if classes not in (None, len(opened.class_names)):
            raise DataError(
                f"{opened.name} in {root} has {len(opened.class_names)} classes "
                f"({', '.join(opened.class_names)}), but {classes} are configured"
            )
        opened.require_trainable()
        return opened
    return chosen.load(root, None).mapped_to(classes)


def _recognise(root: str) -> Layout:
    for layout in LAYOUTS:
        if layout.recognise(root):
            return layout
    known = "; ".join(f"{layout.name} ({layout.description})" for layout in LAYOUTS)
    raise DataError(f"no data set recognised in {root}; known layouts: {known}")
