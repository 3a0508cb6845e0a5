"""Figures of a report against ones worked out by hand."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from cfmrfn.losses import ExpressionLoss
from cfmrfn.metrics import Report, confusion_matrix
from cfmrfn.pictures import (
    FaceMaps,
    plot_confusion,
    plot_curves,
    plot_faces,
    plot_heads,
    plot_tsne,
)

NAMES = ("anger", "fear", "joy")


def test_confusion_matrix_counts_pairs():
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    predictions = torch.tensor([0, 1, 1, 2, 0, 2])
    matrix = confusion_matrix(predictions, labels, 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]


def test_report_by_hand():
    report = Report(NAMES, np.array([[1, 1, 0], [0, 1, 0], [1, 0, 2]]), loss=0.5)
    assert report.images == 6
    assert report.accuracy == pytest.approx(4 / 6)
    assert report.per_class == pytest.approx([1 / 2, 1, 2 / 3])
    assert report.mean_class_accuracy == pytest.approx((1 / 2 + 1 + 2 / 3) / 3)
    # precision 1/2, 1/2, 1 and recall 1/2, 1, 2/3
    assert report.macro_f1 == pytest.approx((1 / 2 + 2 / 3 + 4 / 5) / 3)
    assert "overall accuracy     0.6667" in str(report)


def test_class_without_images_is_left_out():
    report = Report(NAMES, np.array([[2, 0, 0], [0, 0, 0], [0, 1, 1]]), loss=0.5)
    assert math.isnan(report.per_class[1])
    assert report.mean_class_accuracy == pytest.approx(0.75)
    assert report.macro_f1 == pytest.approx((1 + 2 / 3) / 2)
    assert report.as_dict()["per_class"] == {"anger": 1.0, "fear": None, "joy": 0.5}


def test_loss_is_the_weighted_sum():
    logits, labels = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    log_p = logits.log_softmax(1)
    plain = -log_p[range(4), labels].mean()
    smooth = 0.8 * plain - 0.2 * log_p.mean(1).mean()
    assert torch.allclose(ExpressionLoss(1, 2, 0.2)(logits, labels), plain + 2 * smooth)
    votes = torch.nn.functional.one_hot(labels, 3).double()
    assert torch.allclose(ExpressionLoss(1, 2, 0.2)(logits, votes), plain + 2 * smooth)


def test_pictures_are_written(tmp_path):
    report = Report(NAMES, np.array([[5, 1, 0], [0, 4, 0], [0, 0, 0]]), loss=0.5)
    plot_confusion(tmp_path / "confusion.png", report, "drawn faces")
    row = {"epoch": 1, "lr": 0.1, "train_loss": 1.0, "train_accuracy": 0.5}
    plot_curves(tmp_path / "curves.png", [row | {"test_loss": 1.1, "test_accuracy": 0.4}])
    for name in ("confusion.png", "curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_pictures_take_any_names(tmp_path):
    """Bytes that are no UTF-8, and what would be a formula with an error in it."""
    names = [f"{number} $_{{$ \udce9" for number in range(3)]
    report = Report(tuple(names), np.eye(3, dtype=int), loss=0.5)
    plot_confusion(tmp_path / "confusion.png", report, names[0])
    plot_tsne(tmp_path / "tsne.png", np.eye(3)[:, :2], np.arange(3), names, names[0])
    maps = {"landmark": np.ones((8, 2, 2))}
    evidence = {"landmark": np.ones((2, 2))}
    face = FaceMaps(names[0], np.zeros((8, 8, 3)), None, maps, evidence)
    plot_faces(tmp_path / "faces.png", [face], names[0])
    plot_heads(tmp_path / "heads.png", face, names[0], None, None)
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_picture_is_as_wide_as_its_title(tmp_path):
    report = Report(("one", "two"), np.eye(2, dtype=np.int64), 0.0)
    widths = []
    for title in ("short", "x" * 200):
        plot_confusion(tmp_path / "confusion.png", report, title)
        with Image.open(tmp_path / "confusion.png") as picture:
            widths.append(picture.width)
            border = np.asarray(picture.convert("L"))[:, [0, -1]]
        assert (border == 255).all()  # nothing is cut off
    assert widths[1] > 2 * widths[0]
