"""Class folders: matched by name, named by digits, and with or without splits."""

import unicodedata

import pytest
from PIL import Image

from cfmrfn.data import EXPRESSIONS, DataError, canonical_name, open_set
from tests.cfmrfn import public_sets
from tests.cfmrfn.public_sets import AFFECTNET, FERPLUS, RAFDB

FER2013 = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")


def test_class_folders_are_matched_by_name_not_by_alphabet(tmp_path):
    names = ["anger", "Disgusted", "fear", "happy", "4_neutral", "SAD", "surprise"]
    opened = open_set(public_sets.class_folders(tmp_path, names, splits=("train", "valid")))
    assert opened.class_names == RAFDB
    for sample in opened.splits["val"]:
        with Image.open(sample.path) as image:
            folder = names[round(image.getpixel((0, 0))[0] / 10)]
        assert opened.class_names[sample.label] == canonical_name(folder)


@pytest.mark.parametrize(
    "first, names, set_name", [(0, AFFECTNET, "AffectNet"), (1, EXPRESSIONS, "RAF-DB")]
)
def test_digit_folders_are_read_as_the_set_that_counts_so(tmp_path, first, names, set_name):
    digits = [str(first + label) for label in range(7)]
    opened = open_set(public_sets.class_folders(tmp_path, digits))
    assert opened.class_names == names[:7]
    assert opened.name == f"class folders, digits read as {set_name}'s labels"


def test_digit_folders_with_a_gap_keep_their_meaning(tmp_path):
    root = public_sets.class_folders(tmp_path, ["1", "2", "4"])
    with pytest.raises(DataError, match=r"class folders 1, 2, 4.*without a gap"):
        open_set(root)
    # happiness, sadness and surprise of AffectNet, or surprise, fear and disgust of RAF-DB
    root = public_sets.class_folders(tmp_path / "part", ["1", "2", "3"])
    with pytest.raises(DataError, match=r"class folders 1, 2, 3.*from 1 \(to 7 or 8\)"):
        open_set(root, training=False)


@pytest.mark.parametrize(
    "folders, digits, names",
    [
        ("0123456", ["fer2013"], FER2013),
        ("1234567", ["rafdb"], RAFDB),
        ("0123456", ["rafdb"], RAFDB),
        ("01234567", ["ferplus"], FERPLUS),
        ("023", ["fer2013"], ("anger", "fear", "happiness")),
        ("012", ["sad", "pain", "Happy"], ("sadness", "pain", "happiness")),
        ("123", ["sad", "pain", "Happy"], ("sadness", "pain", "happiness")),
    ],
)
def test_an_option_says_what_digit_folders_mean(tmp_path, folders, digits, names):
    opened = open_set(public_sets.class_folders(tmp_path, [*folders]), digits=digits)
    assert opened.class_names == names
    labels = [int(sample.path.split("/")[-2]) for sample in opened.splits["train"]]
    assert labels == [int(folder) for folder in folders]
    assert [sample.label for sample in opened.splits["train"]] == list(range(len(names)))


def test_digits_that_fit_no_order_are_refused(tmp_path):
    root = public_sets.class_folders(tmp_path, [*"01234567"])
    with pytest.raises(DataError, match=r"7 classes are named \(anger.*so that 7 has none"):
        open_set(root, digits=["fer2013"])
    with pytest.raises(DataError, match=r"digits must be affectnet, rafdb.*got 'raf'"):
        open_set(root, digits=["raf"])


def test_digits_of_folders_named_by_digits_have_an_effect(tmp_path):
    opened = open_set(public_sets.class_folders(tmp_path, [*"1234567"]), digits=["rafdb"])
    assert opened.without_effect(boxes=True, digits=["rafdb"]) == []


def test_own_class_names_are_kept(tmp_path):
    opened = open_set(public_sets.class_folders(tmp_path, ["pain", "Boredom", "happy"]))
    assert opened.class_names == ("happiness", "boredom", "pain")


def test_accents_are_the_same_however_a_system_writes_them(tmp_path):
    for split, form in (("train", "NFD"), ("test", "NFC")):
        for name in ("Ärger", "joie é"):
            folder = unicodedata.normalize(form, name)
            public_sets.save_image(tmp_path / split / folder / "1.jpg")
    opened = open_set(tmp_path)
    assert opened.class_names == ("joie é", "ärger")
    assert opened.counts("train") == opened.counts("test") == (1, 1)


def test_flat_folders_are_refused(tmp_path):
    for split in ("train", "test"):
        public_sets.save_image(tmp_path / split / "happy_1.jpg")
    with pytest.raises(DataError, match=r"train holds images beside, or instead of, class folders"):
        open_set(tmp_path)
    public_sets.save_image(tmp_path / "flat/1.jpg")
    with pytest.raises(DataError, match=r"no split folders; expected ROOT/train/happiness/1.jpg"):
        open_set(tmp_path / "flat")


def test_folder_splits_must_agree(tmp_path):
    public_sets.class_folders(tmp_path, ["happy", "sad"])
    public_sets.save_image(tmp_path / "test/fear/1.jpg")
    with pytest.raises(DataError, match=r"no training image of class fear; --only"):
        open_set(tmp_path)


def test_two_folders_of_one_class_are_refused(tmp_path):
    root = public_sets.class_folders(tmp_path, ["happy", "happiness", "sad"])
    message = r"several folders are of one class: happiness \(happiness\), happy \(happiness\); put"
    with pytest.raises(DataError, match=message):
        open_set(root)


def test_seven_of_eight_class_folders(tmp_path):
    root = public_sets.class_folders(tmp_path, [*EXPRESSIONS])
    with pytest.raises(DataError, match="8 classes .* but 7 are configured; --only"):
        open_set(root, classes=7)
    opened = open_set(root, classes=7, only=RAFDB)
    assert opened.class_names == RAFDB
    # a class that the test split alone has is no obstacle where it is not wanted
    (root / "train/contempt/1.jpg").unlink()
    assert open_set(root, only=RAFDB).counts("test") == (1,) * 7


@pytest.mark.parametrize("names", [["happy", "sad"], ["pain", "boredom"], [*"1234567"]])
def test_class_folders_without_splits_can_be_evaluated_on(tmp_path, names):
    for name in names:
        public_sets.save_image(tmp_path / name / "1.jpg")
    opened = open_set(tmp_path, training=False)
    assert opened.held_out == "all"
    assert opened.counts("all") == (1,) * len(names)
    with pytest.raises(DataError):
        open_set(tmp_path)


@pytest.mark.parametrize("split", ["test", "val", "train"])
def test_one_split_can_be_evaluated_on(tmp_path, split):
    root = public_sets.class_folders(tmp_path, ["happy", "sad"], splits=[split])
    opened = open_set(root, training=False, classes=RAFDB)
    assert (opened.held_out, len(opened.splits[split])) == (split, 2)
    with pytest.raises(DataError, match=r"only a training split|no split folders"):
        open_set(root)


def test_two_folders_of_one_split_are_refused(tmp_path):
    root = public_sets.class_folders(tmp_path, ["happy", "sad"], splits=("train", "val", "valid"))
    with pytest.raises(DataError, match="two folders for one split, val and valid"):
        open_set(root)


def test_a_class_may_be_spelled_otherwise_in_another_split(tmp_path):
    public_sets.class_folders(tmp_path, ["happy", "sad"], splits=["train"])
    root = public_sets.class_folders(tmp_path, ["Happiness", "SAD"], splits=["test"])
    assert open_set(root).counts("test") == (1, 1)
