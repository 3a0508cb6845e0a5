"""Label files that are not what their layout says, and folders that lack a part of it."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import cfmrfn
from cfmrfn.data import DataError, ferplus, open_set
from tests.cfmrfn import public_sets

ROOT = str(Path(cfmrfn.__file__).parents[1])
HAPPY = [0, 10, 0, 0, 0, 0, 0, 0, 0, 0]


def rewrite(path, change):
    """The text of a file, changed."""
    path.write_text(change(path.read_text()))


def test_empty_lines_are_passed_over(tmp_path):
    rafdb = public_sets.rafdb(tmp_path / "rafdb")
    rewrite(
        rafdb / "EmoLabel/list_patition_label.txt", lambda text: text.replace("\n", "\n \n") + "\n"
    )
    assert open_set(rafdb).counts("train") == (1,) * 7
    affectnet = public_sets.affectnet_lists(tmp_path / "affectnet")
    rewrite(
        affectnet / "Manually_Annotated_file_lists/training.csv",
        lambda text: text.replace("\n", "\n\n"),
    )
    assert open_set(affectnet).counts("train") == (1,) * 8


def test_a_field_that_is_longer_than_any_of_a_table_is_named(tmp_path):
    root = public_sets.affectnet_lists(tmp_path)
    rewrite(
        root / "Manually_Annotated_file_lists/training.csv",
        lambda text: text + csv.field_size_limit() * "1" + "1,\n",
    )
    with pytest.raises(DataError, match=r"training\.csv, line 13: field larger than field limit"):
        open_set(root)


@pytest.mark.parametrize(
    "file, change, reason",
    [
        (
            "fer2013new.csv",
            lambda text: text.partition("\n")[2],
            "fer2013new.csv, line 1: expected the header Usage,Image name,neutral",
        ),
        ("fer2013new.csv", lambda text: "", "fer2013new.csv, line 1: expected the header Usage"),
        (
            "fer2013new.csv",
            lambda text: text.replace("Training", "Train"),
            r"fer2013new.csv, line 2: 'Train,a\.png.*Usage is none of Training, PublicTest",
        ),
        (
            "fer2013.csv",
            lambda text: text.partition("\n")[2],
            "fer2013.csv, line 1: expected the header emotion,pixels,Usage",
        ),
        (
            "fer2013.csv",
            lambda text: text.replace(",Training", ""),
            "fer2013.csv, line 2: 2 columns, expected emotion,pixels,Usage",
        ),
    ],
)
def test_prepare_refuses_tables_of_another_form(tmp_path, file, change, reason):
    root = public_sets.ferplus_files(tmp_path, [("Training", "a.png", HAPPY)])
    rewrite(root / file, change)
    with pytest.raises(DataError, match=reason):
        ferplus.prepare(str(root), progress=False)
    assert sorted(path.name for path in root.iterdir()) == ["fer2013.csv", "fer2013new.csv"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are UTF-8 in any locale")
def test_a_locale_without_utf8_is_named_and_no_file(tmp_path):
    """Python takes UTF-8 in its place, where it is not told otherwise."""
    public_sets.class_folders(tmp_path / "folders", ["fröhlich", "müde"])
    rafdb = public_sets.rafdb(tmp_path / "rafdb")
    (rafdb / "EmoLabel/list_patition_label.txt").write_text("train_é.jpg 1", "utf-8")
    code = (
        "from cfmrfn.data import DataError, open_set\n"
        "for root in ('folders', 'rafdb'):\n"
        "    try: open_set(root)\n"
        "    except DataError as error: print(ascii(str(error)))"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ROOT, **locale},
        capture_output=True,
        text=True,
    )
    folders, label = done.stdout.splitlines()
    reason = "cannot be read, as the locale is not one of UTF-8; set LC_ALL=C.UTF-8"
    assert f"the name of class folder fr\\xf6hlich {reason}" in folders
    assert f"line 1: 'train_\\xe9.jpg 1': the name {reason}" in label


def test_images_that_are_missing_altogether(tmp_path):
    affectnet = public_sets.affectnet_lists(tmp_path / "affectnet")
    (affectnet / "Manually_Annotated_Images").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"Manually_Annotated.* is missing: AffectNet's images"):
        open_set(affectnet)
    rafdb = public_sets.rafdb(tmp_path / "rafdb")
    (rafdb / "Image/aligned").rename(tmp_path / "elsewhere too")
    with pytest.raises(DataError, match=r"RAF-DB's own aligned images$"):
        open_set(rafdb)


def test_a_label_array_that_cannot_be_opened_is_named(tmp_path):
    root = public_sets.affectnet_arrays(tmp_path)
    label = root / "train_set/annotations/3_exp.npy"
    label.unlink()
    label.mkdir()
    with pytest.raises(DataError, match=r"cannot read .*3_exp\.npy: Is a directory"):
        open_set(root)


def test_a_layout_that_is_named_and_no_other_fits(tmp_path):
    with pytest.raises(DataError, match=r"RAF-DB's root holds EmoLabel and Image$"):
        open_set(tmp_path, "rafdb")


def test_a_class_wanted_twice_is_refused(tmp_path):
    root = public_sets.rafdb(tmp_path)
    with pytest.raises(DataError, match="must be distinct, got happy, happiness"):
        open_set(root, only=["happy", "happiness"])


def test_a_file_beside_the_splits_that_is_no_image_is_not_counted(tmp_path):
    root = public_sets.class_folders(tmp_path, ["happy", "sad"])
    (root / "README.txt").write_text("from a friend")
    Image.new("RGB", (8, 8)).save(root / "sample.png")
    assert open_set(root).dropped == {"beside the split folders": 1}
