"""Which files of a folder are images, what is left out and why, and bytes in names."""

import os
import sys

import pytest
from PIL import Image

from cfmrfn.data import DataError, find_images, open_set, reading
from tests.cfmrfn import public_sets

LATIN = os.fsdecode(b"f\xe2ch\xe9")  # a name that is no UTF-8


def touch(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def without_heif(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    reading.heic_is_readable.cache_clear()
    yield
    reading.heic_is_readable.cache_clear()


def test_sub_folders_and_all_spellings_of_suffixes_are_found(tmp_path):
    names = ["a.JPG", "b.jfif", "c.gif", "S010/001/d.png", "S011/e.Tiff", "S011/f.webp"]
    for name in names:
        touch(tmp_path / name)
    found = find_images(tmp_path)
    assert {os.path.relpath(path, tmp_path) for path in found.paths} == set(names)
    assert found.left_out == {}


def test_what_systems_and_notebooks_leave_is_passed_over(tmp_path):
    for name in (
        *(".ipynb_checkpoints/a.png", "__MACOSX/._a.jpg", "._a.jpg", ".DS_Store"),
        *("@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "a.jpg"),
    ):
        touch(tmp_path / name)
    assert find_images(tmp_path) == ([str(tmp_path / "a.jpg")], {})


def test_files_without_a_suffix_are_known_by_their_content(tmp_path):
    for name in ("plain", "S010_004.0000017"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, "JPEG")
    touch(tmp_path / "notes", b"text")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    found = find_images(tmp_path)
    assert [os.path.basename(path) for path in found.paths] == ["S010_004.0000017", "plain"]
    assert found.left_out == {"no image by its content (no suffix)": 2}


def test_what_is_left_out_is_counted_by_reason(tmp_path, without_heif):
    for name in ("a.txt", "b/c.TXT", "b/d.mp4", "e.HEIC"):
        touch(tmp_path / name)
    assert find_images(tmp_path) == (
        [],
        {
            "no image by its name (.txt)": 2,
            "no image by its name (.mp4)": 1,
            "HEIC, which needs the package pillow-heif (pip install pillow-heif)": 1,
        },
    )


def test_linked_folders_are_walked_once(tmp_path):
    touch(tmp_path / "elsewhere/a.jpg")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "set")
    assert find_images(tmp_path / "set").paths == [str(tmp_path / "set/link/a.jpg")]


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        find_images(tmp_path / "nowhere")


def test_no_class_and_no_image_is_invented_from_hidden_names(tmp_path):
    names = ["anger", "disgust", "fear", "happy", "neutral", "sad", "surprise"]
    root = public_sets.class_folders(tmp_path, names)
    public_sets.save_image(root / "train/.ipynb_checkpoints/1.jpg")
    touch(root / "train/happy/._1.jpg")
    touch(root / "__MACOSX/train/happy/._1.jpg")
    opened = open_set(root)
    assert opened.counts("train") == opened.counts("test") == (1,) * 7
    assert opened.dropped == {}


def test_class_folders_by_subject_count_what_they_leave_out(tmp_path, without_heif):
    root = public_sets.class_folders(tmp_path, ["happy", "sad"])
    public_sets.save_image(root / "train/happy/S010/001/2.png")
    touch(root / "train/sad/IMG_1.HEIC")
    touch(root / "train/readme.txt")
    public_sets.save_image(root / "extra/3.png")
    public_sets.save_image(root / "4.png")
    opened = open_set(root)
    assert opened.counts("train") == (2, 1)
    assert opened.dropped == {
        "HEIC, which needs the package pillow-heif (pip install pillow-heif)": 1,
        "no image by its name (.txt)": 1,
        "in folder extra, which is no split": 1,
        "beside the split folders": 1,
    }


def test_a_class_whose_every_file_was_left_out_says_why(tmp_path, without_heif):
    root = public_sets.class_folders(tmp_path, ["happy", "sad", "fear"])
    (root / "train/fear/1.jpg").rename(root / "train/fear/1.heic")
    with pytest.raises(DataError, match=r"no training image of class fear.*left out: 1, HEIC"):
        open_set(root)


def test_hidden_and_unlabelled_files_of_other_sets(tmp_path):
    root = public_sets.affectnet_arrays(tmp_path / "affectnet")
    touch(root / "train_set/annotations/._0_exp.npy", b"\0\5\x16\7")
    touch(root / "train_set/images/._0.jpg")
    touch(root / "train_set/images/99.jpg")
    opened = open_set(root)
    assert len(opened.splits["train"]) == 8
    assert opened.dropped == {
        "file in train_set/images without a label in train_set/annotations": 1
    }
    root = public_sets.rafdb(tmp_path / "rafdb")
    touch(root / "Image/aligned/._train_00001_aligned.jpg")
    touch(root / "Image/aligned/train_99999_aligned.jpg")
    assert open_set(root).dropped == {"file in Image/aligned without a label": 1}


def test_names_in_other_bytes_than_utf8_find_their_files(tmp_path):
    root = public_sets.class_folders(tmp_path / "folders", ["happy", "sad"])
    public_sets.save_image(root / f"train/happy/{LATIN}.jpg", 7)
    assert any(LATIN in sample.path for sample in open_set(root).splits["train"])

    root = public_sets.rafdb(tmp_path / "rafdb")
    public_sets.save_image(root / f"Image/aligned/train_{LATIN}_aligned.jpg")
    with open(root / "EmoLabel/list_patition_label.txt", "ab") as file:
        file.write(os.fsencode(f"train_{LATIN}.jpg 1\n"))
    sample = open_set(root).splits["train"][-1]
    assert os.path.exists(sample.path)

    root = public_sets.affectnet_lists(tmp_path / "affectnet")
    with open(root / "Manually_Annotated_file_lists/training.csv", "ab") as file:
        file.write(os.fsencode(f"1/{LATIN}.jpg,10,20,100,80,1;2,1,0,0\n"))
    place = r"training\.csv, line 13: '1/f\\\\xe2ch\\\\xe9\.jpg.*not UTF-8, and there is no file"
    with pytest.raises(DataError, match=place):
        open_set(root)


def test_label_files_in_utf_16_and_with_a_byte_order_mark(tmp_path):
    root = public_sets.rafdb(tmp_path)
    label_file = root / "EmoLabel/list_patition_label.txt"
    text = label_file.read_text()
    label_file.write_text(text, "utf-8-sig")
    assert len(open_set(root).splits["train"]) == 7
    label_file.write_text(text, "utf-16")
    with pytest.raises(DataError, match=r"list_patition_label\.txt, line 1: the file is UTF-16"):
        open_set(root)


def test_a_class_folder_that_is_no_utf8_is_named(tmp_path):
    root = public_sets.class_folders(tmp_path, ["happy", LATIN])
    with pytest.raises(DataError, match=r"class folder f\\xe2ch\\xe9 is not UTF-8; rename it"):
        open_set(root)
