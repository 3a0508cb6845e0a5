"""The images of a run: its splits, and what is found out about them before training."""

import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from cfmrfn.config import ImageConfig
from cfmrfn.data import Sample, open_set
from cfmrfn.errors import ConfigError, DataError
from cfmrfn.training.images import (
    Splits,
    check_images,
    check_readable,
    framing_of,
    open_splits,
    stratified_split,
)
from tests.cfmrfn.public_sets import class_folders, ferplus_of_all_classes, rafdb, save_image

LABELS = [0] * 20 + [1] * 6 + [2] * 4
WORLD = SimpleNamespace(on_main=lambda make: make())  # of one process


def test_a_stratified_split_takes_the_same_part_of_each_class():
    samples = [Sample(f"{i}.jpg", label) for i, label in enumerate(LABELS)]
    train, validation = stratified_split(samples, 0.25, seed=0)
    assert Counter(sample.label for sample in validation) == {0: 5, 1: 2, 2: 1}
    assert sorted(train + validation) == sorted(samples)
    assert stratified_split(samples, 0.25, seed=0) == (train, validation)
    assert stratified_split(samples, 0.0, seed=0) == (samples, [])


@pytest.mark.parametrize(
    ("images", "fraction", "validation"),
    [
        *[(5, 0.1, 1), (2, 0.1, 1), (1, 0.1, 0), (5, 1e-6, 1), (5, 0.0, 0), (30, 0.1, 3)],
        *[(1, 0.6, 0), (2, 0.9, 1), (3, 0.9, 2)],
    ],
)
def test_a_small_class_gives_an_image_for_validation_and_keeps_one(images, fraction, validation):
    samples = [Sample(f"{i}.jpg", 0) for i in range(images)]
    assert len(stratified_split(samples, fraction, seed=0)[1]) == validation


def test_fingerprint_sees_labels():
    def fingerprint(label):
        return Splits("set", ("a", "b"), [Sample("x/1.jpg", label)], [], []).fingerprint()

    assert fingerprint(0) == fingerprint(0) != fingerprint(1)


def test_fingerprint_of_former_runs():
    train = [Sample("x/1.jpg", 0), Sample("x/sub/é 2.jpg", 1)]
    splits = Splits("set", ("a", "b"), train, [], [Sample("3.png", 1)])
    assert splits.fingerprint() == "3ad2e9c1af0d5d86"


def test_fingerprint_of_names_that_are_no_text():
    def fingerprint(name):
        return Splits("set", ("a", "b"), [Sample(os.fsdecode(name), 0)], [], []).fingerprint()

    assert fingerprint(b"x/bl\xe9.jpg") != fingerprint(b"x/bl\xe8.jpg")


@pytest.fixture
def pictures(tmp_path):
    """Four samples, the second and the last of which cannot be read."""
    samples = [Sample(str(tmp_path / f"{i}.png"), 0) for i in range(4)]
    for sample in samples[::2]:
        save_image(Path(sample.path))
    Path(samples[1].path).write_bytes(b"not a picture")
    return samples


def test_images_are_opened_before_training(pictures):
    checked = check_readable(pictures)
    assert list(checked.unreadable) == [pictures[1], pictures[3]]
    assert str(checked) == "4 of 4 images were opened before training, 2 cannot be read"
    checked = check_readable(pictures, seconds=0)
    assert str(checked) == "0 of 4 images were opened before training, all readable"

    splits = Splits("set", ("a", "b"), pictures[2:], pictures[:1], pictures[:2])
    with pytest.raises(DataError, match=r"2 of 5 images cannot be read: .*--on-broken skip"):
        check_images(splits, "error")
    # training replaces what it cannot read when it gets there
    checked = check_images(splits, "skip")
    assert checked.total == 3
    left = splits.without(checked.unreadable.keys())
    assert (left.train, left.held_out) == (pictures[2:], pictures[:1])
    assert left.dropped == {"held-out image that cannot be read": 1}
    none_left = Splits("set", ("a", "b"), pictures[:1], [], pictures[1:2])
    with pytest.raises(DataError, match="each is one that cannot be read"):
        none_left.without({pictures[1]})


def test_faces_are_drawn_where_no_data_are_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = ImageConfig(drawn_train=14, drawn_test=7)
    splits = open_splits(images, 0, WORLD)
    assert [path.name for path in Path("data").iterdir()] == ["drawn-faces-7-14-7"]
    assert len(splits.held_out) == 7
    assert open_splits(images, 0, WORLD).fingerprint() == splits.fingerprint()
    with pytest.raises(
        ConfigError, match="--data must be given: the root folder of the rafdb data"
    ):
        open_splits(ImageConfig(layout="rafdb"), 0, WORLD)


def test_a_set_without_held_out_images_is_refused(tmp_path):
    images = ImageConfig(data=str(rafdb(tmp_path, test=())))
    with pytest.raises(DataError, match="RAF-DB: no image in the test split, which results are"):
        open_splits(images, 0, WORLD)


def test_validation_that_no_image_is_left_for_is_refused(tmp_path):
    """Rather than that held-out images choose the best epoch without a word."""
    root = class_folders(tmp_path, ["anger", "joy"])
    with pytest.raises(DataError, match="no class has two images, .* by --validation 0"):
        open_splits(ImageConfig(data=str(root), validation=0.1), 0, WORLD)
    splits = open_splits(ImageConfig(data=str(root)), 0, WORLD)
    train, held_out = splits.train, splits.held_out
    splits = Splits("set", splits.class_names, train[:1], train[1:], held_out)
    with pytest.raises(DataError, match="no validation image is left, each is one that cannot"):
        splits.without({train[1]})


def test_without_the_detector_the_framing_is_unknown(faces, monkeypatch):
    monkeypatch.setattr("cfmrfn.training.images.why_no_detector", lambda: "OpenCV is missing")
    assert framing_of(open_set(faces).splits["train"]) is None


def test_a_set_is_validated_on_its_own_validation_split(tmp_path):
    root = ferplus_of_all_classes(tmp_path)
    splits = open_splits(ImageConfig(data=str(root), validation=0.5), 0, WORLD)
    assert (len(splits.train), len(splits.validation), len(splits.held_out)) == (8, 8, 8)
    assert {Path(s.path).parent.name for s in splits.validation} == {"FER2013Valid"}
    (line,) = splits.without_effect
    assert line == "validation 0.5 has no effect, as the data has validation images"
