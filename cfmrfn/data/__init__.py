"""Data sets of facial expressions: one structure, one loader per layout, one dataset class.

`open_set(root)` recognises RAF-DB, AffectNet, FERPlus, class folders and drawn faces;
`ExpressionDataset` feeds a split of any of them to a `DataLoader`. Classes are matched by name
everywhere, never by number.
"""

from cfmrfn.data.catalog import LAYOUTS, layout_named, open_set
from cfmrfn.data.dataset import ExpressionDataset
from cfmrfn.data.files import FoundImages, find_images
from cfmrfn.data.reading import read_image, why_unreadable
from cfmrfn.data.samples import (
    EXPRESSIONS,
    ExpressionSet,
    Sample,
    canonical_name,
)
from cfmrfn.data.transforms import eval_transform, train_transform
from cfmrfn.errors import DataError

__all__ = [
    "EXPRESSIONS",
    "LAYOUTS",
    "DataError",
    "ExpressionDataset",
    "ExpressionSet",
    "FoundImages",
    "Sample",
    "canonical_name",
    "eval_transform",
    "find_images",
    "layout_named",
    "open_set",
    "read_image",
    "train_transform",
    "why_unreadable",
]
