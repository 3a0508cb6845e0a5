"""Figures of a report against ones worked out by hand."""

import math

import numpy as np
import pytest
import torch

from cfmrfn.losses import ExpressionLoss
from cfmrfn.metrics import Calibration, Report, brier_score, confusion_matrix, wilson_interval

NAMES = ("anger", "fear", "joy")


def test_confusion_matrix_counts_pairs():
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    predictions = torch.tensor([0, 1, 1, 2, 0, 2])
    matrix = confusion_matrix(predictions, labels, 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    # classes that do not come
    assert confusion_matrix(torch.tensor([0]), torch.tensor([1]), 3).tolist() == [
        [0, 0, 0],
        [1, 0, 0],
        [0, 0, 0],
    ]


def test_report_by_hand():
    report = Report(NAMES, np.array([[1, 1, 0], [0, 1, 0], [1, 0, 2]]), loss=0.5)
    assert report.images == 6
    assert report.accuracy == pytest.approx(4 / 6)
    assert report.per_class == pytest.approx([1 / 2, 1, 2 / 3])
    assert report.mean_class_accuracy == pytest.approx((1 / 2 + 1 + 2 / 3) / 3)
    # precision 1/2, 1/2, 1 and recall 1/2, 1, 2/3
    assert report.macro_f1 == pytest.approx((1 / 2 + 2 / 3 + 4 / 5) / 3)
    assert report.in_brief() == "0.6667 (mean of classes 0.7222, macro F1 0.6556)"
    assert str(report).split("\n") == [
        "images               6",
        "overall accuracy     0.6667",
        "mean class accuracy  0.7222",
        "macro F1             0.6556",
        "         precision  recall      F1  images",
        "  anger     0.5000  0.5000  0.5000       2",
        "  fear      0.5000  1.0000  0.6667       1",
        "  joy       1.0000  0.6667  0.8000       3",
    ]
    assert report.figures({"macro_f1": "less"}).split("\n")[-1] == (
        "macro F1             0.6556  less"
    )


def test_report_as_plain_values():
    report = Report(("a", "b"), np.array([[3, 1], [0, 4]]), loss=0.5)
    assert report.as_dict() == {
        "images": 8,
        "loss": 0.5,
        "accuracy": 7 / 8,
        "mean_class_accuracy": 7 / 8,
        "macro_f1": pytest.approx((6 / 7 + 8 / 9) / 2),
        "per_class": {"a": 3 / 4, "b": 1.0},
        "per_class_precision": {"a": 1.0, "b": 4 / 5},
        "per_class_f1": pytest.approx({"a": 6 / 7, "b": 8 / 9}),
        "confusion_matrix": [[3, 1], [0, 4]],
    }


def test_class_without_images_is_left_out():
    report = Report(NAMES, np.array([[2, 0, 0], [0, 0, 0], [0, 1, 1]]), loss=0.5)
    assert math.isnan(report.per_class[1])
    assert report.mean_class_accuracy == pytest.approx(0.75)
    assert report.macro_f1 == pytest.approx((1 + 2 / 3) / 2)
    assert report.as_dict()["per_class"] == {"anger": 1.0, "fear": None, "joy": 0.5}


def some_predictions(images=500, classes=5, seed=0):
    """Probabilities (images, classes) and labels (images,); no image of class 1, no guess of 3."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 2, 3, 4], images)
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), labels] += 1
    logits[:, 3] -= 50
    probabilities = np.exp(2 * logits)
    return probabilities / probabilities.sum(1, keepdims=True), labels


def test_precision_recall_and_f1_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    probabilities, labels = some_predictions()
    guesses = probabilities.argmax(1)
    matrix = confusion_matrix(torch.tensor(guesses), torch.tensor(labels), 5).numpy()
    report = Report(tuple("abcde"), matrix, 0.5)
    expected = metrics.precision_recall_fscore_support(
        labels, guesses, labels=range(5), zero_division=np.nan
    )
    precision, recall, f1, counts = expected
    assert report.precision == pytest.approx(precision, nan_ok=True)
    assert report.per_class == pytest.approx(recall, nan_ok=True)
    has_images = counts > 0
    assert has_images.tolist() == [True, False, True, True, True]
    assert report.f1[has_images] == pytest.approx(f1[has_images])
    assert math.isnan(report.f1[1])
    present = [0, 2, 3, 4]
    macro = metrics.f1_score(labels, guesses, labels=present, average="macro")
    assert report.macro_f1 == pytest.approx(macro)
    plain = report.as_dict()
    assert plain["per_class_precision"]["d"] is None
    assert plain["per_class_precision"]["b"] == 0  # predicted, and never right
    assert plain["per_class_f1"]["b"] is None and plain["per_class"]["b"] is None
    assert plain["per_class_f1"]["d"] == 0
    row = str(report).splitlines()[-2].split()  # of d
    assert row == ["d", "-", "0.0000", "0.0000", str(counts[3])]


def test_ece_by_a_plain_loop():
    probabilities, labels = some_predictions()
    calibration = Calibration.of(probabilities, labels)
    gap, seen = 0.0, 0
    for place in range(15):
        inside = []
        for row, label in zip(probabilities, labels, strict=True):
            if place / 15 < max(row) <= (place + 1) / 15:
                inside.append((max(row), row.argmax() == label))
        edges = calibration.as_dict()["bins"][place]
        assert (edges["above"], edges["up_to"]) == (place / 15, (place + 1) / 15)
        assert edges["images"] == len(inside)
        seen += len(inside)
        if not inside:
            assert edges["accuracy"] is None and edges["confidence"] is None
            continue
        confidence, accuracy = np.mean(inside, 0)
        assert (edges["accuracy"], edges["confidence"]) == pytest.approx((accuracy, confidence))
        gap += len(inside) / len(labels) * abs(accuracy - confidence)
    assert seen == len(labels)
    assert calibration.ece == pytest.approx(gap)
    assert calibration.mean_confidence == pytest.approx(probabilities.max(1).mean())
    right = probabilities.argmax(1) == labels
    assert calibration.mean_accuracy == pytest.approx(right.mean())
    plain = calibration.as_dict()
    assert plain["definition"] == "ECE of Guo et al. 2017, 15 equal-width bins"
    assert plain["ece"] == calibration.ece
    assert plain["mean_confidence"] == calibration.mean_confidence


def test_ece_by_hand():
    """Sure and right: 0. Always sure, right in half: 1/2. A confidence on an edge is below it."""
    sure = np.eye(2)[[0, 0, 1, 1]]
    assert Calibration.of(sure, np.array([0, 0, 1, 1])).ece == 0
    assert Calibration.of(sure, np.array([0, 0, 0, 0])).ece == 0.5
    on_edge = Calibration.of(np.array([[0.6, 0.4]]), np.array([0]))
    assert on_edge.counts.tolist() == [0] * 8 + [1] + [0] * 6
    assert on_edge.ece == pytest.approx(0.4)


def test_brier_score_is_the_sum_over_the_classes():
    metrics = pytest.importorskip("sklearn.metrics")
    probabilities, labels = some_predictions()
    each = [metrics.brier_score_loss(labels == c, probabilities[:, c]) for c in range(5)]
    assert brier_score(probabilities, labels) == pytest.approx(sum(each))
    assert brier_score(np.eye(3)[[0, 1]], np.array([0, 2])) == 1  # the one that is wrong counts 2


@pytest.mark.parametrize(
    "hits, images, interval",
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (20, 20, (0.8389, 1.0)),
    ],
)
def test_wilson_interval_is_as_newcombe_gives_it(hits, images, interval):
    """Newcombe, Statistics in Medicine 17 (1998), table I; the last is the third, turned round."""
    low, high = wilson_interval(hits, images)
    assert (low, high) == pytest.approx(interval, abs=5e-5)
    assert 0 <= low <= hits / images <= high <= 1


def test_loss_is_the_weighted_sum():
    logits, labels = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    log_p = logits.log_softmax(1)
    plain = -log_p[range(4), labels].mean()
    smooth = 0.8 * plain - 0.2 * log_p.mean(1).mean()
    assert torch.allclose(ExpressionLoss(1, 2, 0.2)(logits, labels), plain + 2 * smooth)
    votes = torch.nn.functional.one_hot(labels, 3).double()
    assert torch.allclose(ExpressionLoss(1, 2, 0.2)(logits, votes), plain + 2 * smooth)
