"""Images that are in a set more than once, pixel for pixel or nearly."""

import csv
import os

import numpy as np
import pytest
from PIL import Image

from cfmrfn.data.duplicates import Copy, find_groups, fingerprint, write_groups
from cfmrfn.data.synthetic.writer import draw_face


def face(number, expression="happiness"):
    return draw_face(expression, 64, (number,)).image


def groups_of(*pictures):
    """(same, places among `pictures`) of each group found among (image, split, class name)."""
    copies = [Copy(str(i), split, name) for i, (_, split, name) in enumerate(pictures)]
    found = find_groups(copies, [fingerprint(image.convert("RGB")) for image, *_ in pictures])
    return [(group.same, [int(copy.path) for copy in group.copies]) for group in found]


def as_jpeg(image, tmp_path):
    image.save(tmp_path / "a.jpg", quality=60)
    with Image.open(tmp_path / "a.jpg") as file:
        return file.convert("RGB")


CHANGES = {
    "jpeg": as_jpeg,
    "twice the size": lambda image, _: image.resize((128, 128), Image.Resampling.BICUBIC),
    "three quarters of the size": lambda image, _: image.resize((48, 48)),
    "grey": lambda image, _: image.convert("L"),
    "less contrast": lambda image, _: image.point(lambda level: int(level * 0.8 + 10)),
}


def test_the_same_pixels_are_found_in_whatever_file():
    pictures = [(face(1), "train", "fear"), (face(2), "train", "fear"), (face(1), "test", "fear")]
    assert groups_of(*pictures) == [(True, [0, 2])]


@pytest.mark.parametrize("change", CHANGES)
def test_nearly_the_same_picture_is_found(tmp_path, change):
    changed = CHANGES[change](face(1), tmp_path)
    pictures = [(face(1), "train", "fear"), (face(2), "train", "fear"), (changed, "test", "fear")]
    assert groups_of(*pictures) == [(False, [0, 2])]


def test_different_faces_are_not_alike():
    faces = [(face(number), "train", "fear") for number in range(40)]
    assert groups_of(*faces) == []


def test_plain_pictures_are_the_same_only_pixel_for_pixel():
    plain = [(Image.new("RGB", (8, 8), (grey,) * 3), "train", "fear") for grey in (7, 8, 7)]
    assert groups_of(*plain) == [(True, [0, 2])]
    # the same bytes in another shape
    assert groups_of(*[(Image.new("L", size), "a", "fear") for size in ((4, 9), (9, 4))]) == []


def test_different_labels_come_first_then_several_splits():
    pictures = [
        *[(face(1), "train", "fear")] * 2,
        *[(face(2), split, "fear") for split in ("train", "test")],
        *[(face(3), "train", name) for name in ("fear", "anger")],
    ]
    assert groups_of(*pictures) == [(True, [4, 5]), (True, [2, 3]), (True, [0, 1])]


def test_pairs_are_found_in_other_tiles(monkeypatch):
    monkeypatch.setattr("cfmrfn.data.duplicates._TILE", 3)
    faces = [(face(number), "train", "fear") for number in range(8)]
    blurred = face(1).resize((128, 128), Image.Resampling.BICUBIC)
    assert groups_of(*faces, (blurred, "test", "fear")) == [(False, [1, 8])]


def test_a_group_is_one_sentence_and_the_file_has_all(tmp_path):
    name = os.fsdecode(b"\xe9.jpg")
    copies = [Copy(name, "train", "fear"), *[Copy(f"{i}.jpg", "test", "anger") for i in range(9)]]
    (group,) = find_groups(copies, [fingerprint(face(1))] * 10)
    assert str(group) == (
        "10 images are the same pixel for pixel, in train and test, with different labels "
        "(fear, anger): \\xe9.jpg (train, fear), 0.jpg (test, anger), 1.jpg (test, anger), "
        "2.jpg (test, anger), 3.jpg (test, anger), 4.jpg (test, anger) and 4 more"
    )
    write_groups(tmp_path / "groups.csv", [group])
    lines = (tmp_path / "groups.csv").read_bytes().splitlines()
    assert lines[:2] == [b"group,alike,split,class,image", b"1,same,train,fear,\xe9.jpg"]
    with open(tmp_path / "groups.csv", encoding="latin-1") as file:
        assert [row["image"] for row in csv.DictReader(file)][1:] == [f"{i}.jpg" for i in range(9)]


def test_nothing_to_compare():
    assert find_groups([], []) == []
    assert np.frombuffer(fingerprint(face(1)).small, np.uint8).shape == (256,)
