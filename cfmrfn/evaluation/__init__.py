"""Evaluation on a split of a data set, comparison of several, their intervals and tables."""

from cfmrfn.evaluation.split import (
    HOW_CHOSEN,
    Evaluation,
    OnBroken,
    evaluate,
    evaluate_checkpoint,
    evaluate_split,
    predicted_classes,
)

__all__ = [
    "HOW_CHOSEN",
    "Evaluation",
    "OnBroken",
    "evaluate",
    "evaluate_checkpoint",
    "evaluate_split",
    "predicted_classes",
]
