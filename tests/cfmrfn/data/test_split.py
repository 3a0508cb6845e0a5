"""Class folders that are divided into parts for training: `python -m cfmrfn.data split`."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from cfmrfn.data import DataError, open_set
from tests.cfmrfn import public_sets
from tests.cfmrfn.data.test_tools import run

COUNTS = {"happy": 20, "sad": 10, "angry": 2, "afraid": 1}


@pytest.fixture
def flat(tmp_path):
    """Class folders without parts, of different images."""
    rng = np.random.default_rng(0)
    for name, count in COUNTS.items():
        folder = tmp_path / "flat" / name / "subject"
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "flat"


def parts_of(root):
    """Part -> class folder -> names of its files."""
    return {
        part.name: {
            folder.name: {file.name for file in folder.rglob("*") if file.is_file()}
            for folder in part.iterdir()
        }
        for part in root.iterdir()
    }


def test_each_part_has_its_share_of_each_class(flat, tmp_path, capsys):
    status, out, _ = run(capsys, "split", flat, tmp_path / "new", "--validation", 0.1)
    assert status == 0
    parts = parts_of(tmp_path / "new")
    counts = {part: {n: len(files) for n, files in of.items()} for part, of in parts.items()}
    assert counts == {
        "train": {"happy": 14, "sad": 7, "angry": 1, "afraid": 1},
        "test": {"happy": 4, "sad": 2, "angry": 1},
        "val": {"happy": 2, "sad": 1},
    }
    for name, count in COUNTS.items():
        assert len(set().union(*(of.get(name, set()) for of in parts.values()))) == count
    rows = [line.split() for line in out.splitlines()]
    assert ["happiness", "14", "4", "2"] in rows
    assert ["all", "23", "7", "3"] in rows
    assert "not in test, val: class fear, which has 1 readable image" in out
    assert "not in val: class anger, which has 2 readable images" in out
    assert out.endswith(f"divided: {tmp_path}/new\n")


def test_the_seed_decides(flat, tmp_path, capsys):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(capsys, "split", flat, tmp_path / name, "--seed", seed)
    a, b, c = (parts_of(tmp_path / name) for name in "abc")
    assert a == b != c


def test_files_are_links_or_copies(flat, tmp_path, capsys, monkeypatch):
    run(capsys, "split", flat, tmp_path / "links")
    (linked,) = (tmp_path / "links/train/afraid").rglob("*.png")
    assert os.path.samefile(linked, flat / "afraid/subject/0.png")

    def refuse(*_):
        raise OSError("no hard links")

    monkeypatch.setattr(os, "link", refuse)
    run(capsys, "split", flat, tmp_path / "copies")
    (copied,) = (tmp_path / "copies/train/afraid").rglob("*.png")
    assert not os.path.samefile(copied, flat / "afraid/subject/0.png")
    assert copied.read_bytes() == linked.read_bytes()


def test_the_same_pixels_stay_in_one_part(flat, tmp_path, capsys):
    for number in range(5):
        shutil.copy(flat / "sad/subject/0.png", flat / f"sad/copy-{number}.png")
    shutil.copy(flat / "happy/subject/0.png", flat / "sad/other.png")
    for seed in range(5):
        target = tmp_path / str(seed)
        _, out, _ = run(capsys, "split", flat, target, "--seed", seed)
        parts = parts_of(target)
        same = {"0.png", *(f"copy-{number}.png" for number in range(5))}
        assert any(same <= of["sad"] for of in parts.values())
        assert "other.png" in parts["train"]["sad"] and "0.png" in parts["train"]["happy"]
        assert "in train: 2 images, the same pixel for pixel in several classes" in out


def test_what_is_left_out_is_said(flat, tmp_path, capsys):
    (flat / "sad/broken.png").write_text("no image")
    (flat / "sad/notes.txt").write_text("no image")
    status, out, _ = run(capsys, "split", flat, tmp_path / "new")
    assert status == 0
    assert f"left out: {flat}/sad/broken.png: " in out
    assert "left out: 1, no image by its name (.txt)" in out
    assert sum(len(of["sad"]) for of in parts_of(tmp_path / "new").values()) == COUNTS["sad"]


def test_an_error_leaves_nothing(flat, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(shutil, "copy2", fail)
    status, _, err = run(capsys, "split", flat, tmp_path / "new/er")
    assert (status, err.splitlines()[-1]) == (
        2,
        f"error: {tmp_path}/new/er: No space left on device",
    )
    assert os.listdir(tmp_path) == ["flat"]


@pytest.mark.parametrize("splits", [["train"], ["train", "test"]])
def test_a_set_that_is_divided_is_refused(tmp_path, capsys, splits):
    root = public_sets.class_folders(tmp_path / "set", ["happy", "sad"], splits)
    status, _, err = run(capsys, "split", root, tmp_path / "new")
    assert status == 2
    assert (
        f"must be a folder of class folders; it is class folders, with {', '.join(splits)}" in err
    )


def test_too_few_images_are_refused(tmp_path, capsys):
    root = public_sets.class_folders(tmp_path, ["happy", "sad"], ["flat"]) / "flat"
    status, _, err = run(capsys, "split", root, tmp_path / "new")
    assert status == 2
    assert "flat must have two classes or more with two different images or more" in err


@pytest.mark.parametrize("names", [("happy", "sad"), ("cats", "dogs")])
def test_training_names_the_command(tmp_path, names):
    public_sets.class_folders(tmp_path, names, ["my faces", "set/train"])
    for root, divided in (("my faces", "my faces"), ("set", "set/train")):
        with pytest.raises(DataError) as error:
            open_set(tmp_path / root)
        command = str(error.value).partition("python -m cfmrfn.data ")[2]
        assert command.startswith(f"split '{tmp_path}/{divided}' TARGET makes both") or (
            command.startswith(f"split {tmp_path}/{divided} TARGET makes both")
        )
