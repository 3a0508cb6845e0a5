"""How far a run is: what `last.pt` keeps of it beside weights and the optimizer's state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any

from cfmrfn.checks import is_number, is_whole
from cfmrfn.errors import brief

# An epoch's results, as in `metrics.csv`, and its confusion matrices.
Row = dict[str, Any]


@dataclass
class Progress:
    """How far a run is: `step` steps into `epoch`, both from 0, and what happened so far.

    `loss_sum` and `correct` are over this epoch's steps; `history` has a row for each epoch
    done; `best_weights` is the digest of those in `best.pt`, None before and in former runs. There
    is no random state: order, augmentation and stochastic depth follow from the seed
    and the position, see `cfmrfn.batches`.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    history: list[Row] = field(default_factory=list)
    best_weights: str | None = None

    @classmethod
    def from_dict(
        cls, values: dict[str, Any], *, steps: int, classes: int, splits: Iterable[str]
    ) -> Progress:
        """What `dataclasses.asdict` made of the progress of a run.

        Args:
            values: from a file.
            steps, classes, splits: steps of an epoch, number of classes, and names of the splits
                that are evaluated, of the run.

        Raises:
            ValueError: a value is not such.
        """
        values = {"best_weights": None, **values}
        missing = {each.name for each in fields(cls)} - set(values)
        if missing:
            raise ValueError(f"progress lacks {', '.join(sorted(missing))}")
        progress = cls(**values)
        for name, most in (("epoch", None), ("step", steps), ("correct", None)):
            number = getattr(progress, name)
            _require(is_whole(number) and number >= 0, name, number, "a whole number from 0 on")
            _require(most is None or number <= most, name, number, f"{most} at most")
        _require(is_number(progress.loss_sum), "loss_sum", progress.loss_sum, "a number")
        history = progress.history
        rows = isinstance(history, list) and len(history) == progress.epoch
        _require(rows, "history", history, f"a list of {progress.epoch} rows")
        needed = {"epoch", "lr", "train_loss", "train_accuracy"}
        for split in splits:
            needed |= {f"{split}_loss", f"{split}_accuracy", f"{split}_matrix"}
        for row in history:
            _require(isinstance(row, dict), "a row of history", row, "a dictionary")
            partners = {
                str(name).removesuffix("_matrix") + "_loss"
                for name in row
                if str(name).endswith("_matrix")
            }
            absent = {str(name) for name in (needed | partners) - set(row)}
            _require(not absent, "a row of history", row, f"with {', '.join(sorted(absent))}")
            for name, value in row.items():
                if str(name).endswith("_matrix"):
                    _require(_is_matrix(value, classes), name, value, "counts, class by class")
                else:
                    _require(isinstance(value, Real), name, value, "a number")
        best = progress.best_weights
        _require(best is None or isinstance(best, str), "best_weights", best, "a text")
        return progress


def _is_matrix(value: Any, classes: int) -> bool:
    return _is_list(value, classes) and all(
        _is_list(row, classes) and all(is_whole(count) and count >= 0 for count in row)
        for row in value
    )


def _is_list(value: object, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def _require(condition: bool, name: object, value: object, legal: str) -> None:
    if not condition:
        raise ValueError(f"{name} of progress must be {legal}, got {brief(value)}")
