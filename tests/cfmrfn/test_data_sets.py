"""Every loader on small copies of the public layouts: labels by name, counts, and bad input."""

import csv
import string
import unicodedata

import numpy as np
import pytest
from PIL import Image

from cfmrfn.checkpoint import About
from cfmrfn.config import parse_config
from cfmrfn.data import EXPRESSIONS, DataError, canonical_name, open_set
from cfmrfn.data import ferplus as ferplus_module
from cfmrfn.inference import open_split
from tests.cfmrfn import public_sets

RAFDB = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
AFFECTNET = (
    *("neutral", "happiness", "sadness", "surprise"),
    *("fear", "disgust", "anger", "contempt"),
)
FERPLUS = (
    *("neutral", "happiness", "surprise", "sadness"),
    *("anger", "disgust", "fear", "contempt"),
)

LAYOUTS = {
    "rafdb": (public_sets.rafdb, "RAF-DB", RAFDB),
    "affectnet-lists": (public_sets.affectnet_lists, "AffectNet", AFFECTNET),
    "affectnet-arrays": (public_sets.affectnet_arrays, "AffectNet (array files)", AFFECTNET),
    "ferplus": (public_sets.ferplus_of_all_classes, "FERPlus (majority)", FERPLUS),
    "folder": (
        lambda root: public_sets.class_folders(root, ["Angry", "Happy", "Neutral", "Surprise"]),
        "class folders",
        ("surprise", "happiness", "anger", "neutral"),
    ),
}


def names_by_file(opened, split):
    """File name -> class name."""
    return {
        sample.path.rsplit("/", 1)[1]: opened.class_names[sample.label]
        for sample in opened.splits[split]
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_recognised_with_its_native_classes(tmp_path, layout):
    make, name, class_names = LAYOUTS[layout]
    opened = open_set(make(tmp_path / "set"))
    assert (opened.name, opened.class_names) == (name, class_names)
    assert opened.counts("train") == (1,) * len(class_names)
    for samples in opened.splits.values():
        for sample in samples:
            Image.open(sample.path).close()


def test_rafdb_labels_are_its_own_order_from_one(tmp_path):
    opened = open_set(public_sets.rafdb(tmp_path, test=(4, 7, 1)))
    assert names_by_file(opened, "train") == {
        f"train_{number:05d}_aligned.jpg": name for number, name in enumerate(RAFDB, start=1)
    }
    assert list(names_by_file(opened, "test").values()) == ["happiness", "neutral", "surprise"]
    assert opened.held_out == "test"
    assert sum(opened.published["train"].values()) == 12271
    assert list(opened.published["test"].values()) == [329, 74, 160, 1185, 478, 162, 680]


def test_rafdb_is_found_in_the_top_folder_of_its_archive(tmp_path):
    public_sets.rafdb(tmp_path / "basic")
    assert open_set(tmp_path).name == "RAF-DB"


def test_rafdb_layout_takes_contempt_as_label_eight(tmp_path):
    root = public_sets.rafdb(tmp_path, train=range(1, 9))
    assert open_set(root).class_names == (*RAFDB, "contempt")
    with pytest.raises(DataError, match=r"has 8 classes \(surprise.*contempt\), but 7 are config"):
        open_set(root, classes=7)


@pytest.mark.parametrize(
    "line, reason",
    [
        ("train_00001.jpg", 'expected "train_00001.jpg 5"'),
        ("train_00001.jpg five", 'expected "train_00001.jpg 5"'),
        ("train_00001.jpg 9", "legal labels are 1 to 8"),
        ("train_00001.jpg 0", "legal labels are 1 to 8"),
        ("photo_00001.jpg 3", "begin with train_ or test_"),
        (f"train_00001.jpg {5000 * '9'}", 'expected "train_00001.jpg 5"'),
    ],
)
def test_a_bad_rafdb_line_is_named_with_number_and_content(tmp_path, line, reason):
    root = public_sets.rafdb(tmp_path)
    label_file = root / "EmoLabel/list_patition_label.txt"
    lines = label_file.read_text().splitlines()
    lines[2] = line
    label_file.write_text("\n".join(lines))
    with pytest.raises(DataError, match=reason) as caught:
        open_set(root)
    assert f"line 3: {line[:120]!r}" in str(caught.value)


def test_rafdb_lists_that_name_an_image_again(tmp_path):
    root = public_sets.rafdb(tmp_path)
    label_file = root / "EmoLabel/list_patition_label.txt"
    lines, images = label_file.read_text().splitlines(), open_set(root).counts("train")
    label_file.write_text("\n".join([*lines, lines[0]]))
    opened = open_set(root)
    assert opened.counts("train") == images
    assert list(opened.dropped.values()) == [1]
    name, label = lines[0].split()
    label_file.write_text("\n".join([*lines, f"{name} {int(label) + 1}"]))
    with pytest.raises(DataError, match=f"line {len(lines) + 1}: .* before it, label {label}"):
        open_set(root)


def test_rafdb_without_aligned_images_says_so(tmp_path):
    root = public_sets.rafdb(tmp_path)
    (root / "Image/aligned").rename(root / "Image/original")
    with pytest.raises(DataError, match=r"aligned is missing.*own aligned images"):
        open_set(root)


def test_affectnet_lists_give_boxes_and_drop_what_is_no_expression(tmp_path):
    opened = open_set(public_sets.affectnet_lists(tmp_path))
    assert names_by_file(opened, "train") == {
        f"training{label}.jpg": name for label, name in enumerate(AFFECTNET)
    }
    assert len(opened.splits["val"]) == 8
    assert opened.splits["train"][0].box == (10, 20, 110, 100)
    assert opened.dropped == {
        "label 8 (none)": 1,
        "label 9 (uncertain)": 1,
        "label 10 (no face)": 1,
    }
    assert sum(opened.published["train"].values()) == 287651
    assert sum(opened.published["val"].values()) == 3999
    assert opened.held_out == "val"


def rewrite_training_list(root, header, columns, encoding="utf-8", end="\n"):
    """The list of an AffectNet with this header, and these of its columns in place of its own."""
    path = root / "Manually_Annotated_file_lists/training.csv"
    with open(path, newline="") as file:
        _, *rows = csv.reader(file)
    lines = [header, *(",".join(row[column] for column in columns) for row in rows)]
    path.write_text("".join(line + end for line in lines), encoding, newline="")


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        (public_sets.AFFECTNET_HEADER, range(9)),
        (public_sets.AFFECTNET_HEADER.upper(), range(9)),
        (
            "subDirectory_filePath, face_x, face_y, face_width, face_height, expression",
            [*range(5), 6],
        ),
        (
            "valence,expression,face_height,face_width,face_y,face_x,subDirectory_filePath,mine",
            [7, 6, 4, 3, 2, 1, 0, 8],
        ),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_affectnet_columns_go_by_the_names_in_the_header(tmp_path, header, columns, encoding, end):
    root = public_sets.affectnet_lists(tmp_path)
    expected = open_set(root).splits
    rewrite_training_list(root, header, columns, encoding, end)
    assert open_set(root).splits == expected


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (
            "subDirectory_filePath,x,y,face_width,face_height,expression",
            "face_x and one face_y; expected",
        ),
        (
            "subDirectory_filePath,face_x,face_y,face_width,face_height,label",
            "one column expression",
        ),
        (
            "expression,face_x,face_y,face_width,face_height,Expression",
            "one column subDirectory_filePath and one expression; expected subDir.*, expression$",
        ),
    ],
)
def test_affectnet_columns_that_are_lacking_are_named(tmp_path, header, reason):
    root = public_sets.affectnet_lists(tmp_path)
    rewrite_training_list(root, header, [0, 1, 2, 3, 4, 6])
    with pytest.raises(DataError, match=rf"training\.csv, line 1: '{header}': .*{reason}"):
        open_set(root)


def test_affectnet_without_columns_of_boxes(tmp_path):
    root = public_sets.affectnet_lists(tmp_path)
    rewrite_training_list(root, "expression,subDirectory_filePath", [6, 0])
    assert open_set(root, boxes=False).counts("train") == (1,) * 8


@pytest.mark.parametrize("make", [public_sets.affectnet_lists, public_sets.affectnet_arrays])
def test_affectnet_seven_leaves_contempt_out(tmp_path, make):
    opened = open_set(make(tmp_path), classes=7)
    assert opened.class_names == AFFECTNET[:7]
    assert opened.counts("val") == (1,) * 7
    assert opened.dropped["class contempt is not wanted"] == 2
    assert sum(opened.published["train"].values()) == 283901
    assert sum(opened.published["val"].values()) == 3500


@pytest.mark.parametrize(
    "line, reason",
    [
        ("1/a.jpg,10,20,100,80,1;2,happy,0,0", "expression 'happy'.*0 to 10"),
        ("1/a.jpg,10,20,100,80,1;2,11,0,0", "expression '11'.*0 to 10"),
        ("1/a.jpg,ten,20,100,80,1;2,1,0,0", "not four numbers"),
        ("1/a.jpg,10,20,0,80,1;2,1,0,0", "face box is empty"),
        (f"1/a.jpg,10,20,100,80,1;2,{5000 * '1'},0,0", "expression '1111.*but legal labels"),
        ("1/a.jpg,1", "2 columns, expected subDirectory_filePath"),
    ],
)
def test_a_bad_affectnet_line_is_named(tmp_path, line, reason):
    root = public_sets.affectnet_lists(tmp_path)
    with open(root / "Manually_Annotated_file_lists/training.csv", "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match=reason) as caught:
        open_set(root)
    assert f"training.csv, line 13: '{line[:120]}'" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_bad_affectnet_array_is_named(tmp_path):
    root = public_sets.affectnet_arrays(tmp_path)
    np.save(root / "train_set/annotations/3_exp.npy", np.array("8"))
    with pytest.raises(DataError, match=r"3_exp.npy: label 8.*0 to 7"):
        open_set(root)
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': %s, }\n"
    files = [b"", b"\x93NUM", b"PK\x03\x04"]
    for shape in (b"(10000000000000,)", b"((((("):
        text = header % shape
        files.append(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    for content in files:
        (root / "train_set/annotations/3_exp.npy").write_bytes(content)
        with pytest.raises(DataError, match=r"3_exp.npy holds no label") as caught:
            open_set(root)
        assert "allow_pickle" not in str(caught.value)


# Ten columns: the eight expressions in FERPlus's order, unknown, NF. The published file's counts
# (25,060 / 28,389 / 28,559 training images) come out of the same three functions.
VOTES = {
    "clear": ([0, 8, 2, 0, 0, 0, 0, 0, 0, 0], (1, 1, 1)),
    "half is no majority": ([4, 0, 0, 4, 2, 0, 0, 0, 0, 0], (None, 0, 0)),
    "majority without outliers": ([1, 1, 5, 0, 1, 0, 0, 0, 2, 0], (2, 2, 2)),
    "unknown votes count": ([5, 0, 0, 0, 0, 0, 0, 0, 5, 0], (None, 0, 0)),
    "unknown": ([3, 0, 0, 0, 0, 0, 0, 0, 7, 0], (None, None, 0)),
    "no face": ([0, 0, 0, 0, 0, 0, 0, 0, 0, 10], (None, None, None)),
    "single votes only": ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], (None, 0, 0)),
}


@pytest.mark.parametrize("case", VOTES)
def test_ferplus_rules(case):
    votes, expected = VOTES[case]
    rules = (ferplus_module.majority, ferplus_module.argmax10, ferplus_module.argmax8)
    assert tuple(rule(tuple(votes)).label for rule in rules) == expected


def test_ferplus_joins_by_row_and_keeps_soft_votes(tmp_path):
    rows = [
        ("Training", "fer0000000.png", [0, 6, 3, 1, 0, 0, 0, 0, 0, 0]),
        ("Training", "", [0, 0, 0, 0, 0, 0, 0, 0, 0, 10]),
        ("Training", "fer0000002.png", [0, 0, 0, 0, 9, 0, 0, 0, 1, 0]),
        ("PublicTest", "fer0000003.png", [10, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("PrivateTest", "fer0000004.png", [3, 0, 0, 0, 0, 0, 0, 0, 7, 0]),
    ]
    root = str(public_sets.ferplus_files(tmp_path, rows))
    counts = ferplus_module.prepare(root, progress=False)
    public_sets.save_image(tmp_path / "FER2013Test/fer0000009.png")
    assert counts == {"FER2013Train": 2, "FER2013Valid": 1, "FER2013Test": 1}
    with Image.open(tmp_path / "FER2013Train/fer0000002.png") as image:
        assert (image.size, image.mode, image.getextrema()) == ((48, 48), "L", (2, 2))

    loaded = ferplus_module.load(root)
    assert names_by_file(loaded, "train") == {
        "fer0000000.png": "happiness",
        "fer0000002.png": "anger",
    }
    assert loaded.splits["train"][0].votes == pytest.approx((0, 6 / 9, 3 / 9, 0, 0, 0, 0, 0))
    assert loaded.splits["test"] == []
    assert loaded.dropped == {
        **{"no image name": 1, "unknown or no face": 1},
        "file that fer2013new.csv does not name": 1,
    }
    plain = ferplus_module.load(root, rule=ferplus_module.argmax8)
    assert plain.splits["train"][0].votes == pytest.approx((0, 0.6, 0.3, 0.1, 0, 0, 0, 0))
    assert names_by_file(plain, "test") == {"fer0000004.png": "neutral"}
    # all votes to train on, and the owners' images to evaluate on
    votes = open_set(root, "ferplus-votes", training=False)
    assert votes.splits["train"] == plain.splits["train"]
    assert votes.splits["test"] == []
    assert votes.dropped == loaded.dropped


@pytest.mark.parametrize(
    "layout, counts",
    [
        ("ferplus", (25060, 3199, 3153)),
        ("ferplus-argmax10", (28389, 3553, 3546)),
        ("ferplus-argmax8", (28559, 3579, 3573)),
        ("ferplus-votes", (28559, 3199, 3153)),
    ],
)
def test_ferplus_published_counts_are_those_of_the_rule(tmp_path, layout, counts):
    opened = open_set(public_sets.ferplus_of_all_classes(tmp_path), layout)
    published = (sum(opened.published[split].values()) for split in ("train", "val", "test"))
    assert tuple(published) == counts


def test_ferplus_without_images_says_how_to_make_them(tmp_path):
    root = public_sets.ferplus_files(tmp_path, [("Training", "a.png", [10] + [0] * 9)])
    with pytest.raises(DataError, match=r"FER2013Train is missing.*prepare"):
        open_set(root)


def test_ferplus_bad_lines_are_named(tmp_path):
    root = public_sets.ferplus_of_all_classes(tmp_path)
    with open(root / "fer2013new.csv", "a") as file:
        file.write(f"Training,fer0000099.png,1,2,x,0,0,0,0,0,0,{5000 * '1'}\n")
    with pytest.raises(DataError, match=r"line 26: 'Training,fer0000099.png,1,2,x.*ten counts"):
        open_set(root)


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda rows: rows[:-1], "has 1 rows, but fer2013new.csv has 2"),
        (lambda rows: [*rows, rows[0]], "has 3 rows, but fer2013new.csv has 2"),
        (lambda rows: [rows[0], [*rows[1][:2], "PublicTest"]], "line 3: Usage is 'PublicTest'"),
        (lambda rows: [[0, "1 2 3", "Training"], rows[1]], "line 2: 3 pixels, expected 48 x 48"),
        (lambda rows: [[0, "1 2 x", "Training"], rows[1]], "line 2: pixels must be numbers"),
        (lambda rows: [[0, "256 1", "Training"], rows[1]], "line 2: pixels must be numbers"),
    ],
)
def test_prepare_refuses_files_that_do_not_belong_together(tmp_path, change, reason):
    votes = [10] + [0] * 9
    rows = [("Training", "a.png", votes), ("Training", "b.png", votes)]
    root = public_sets.ferplus_files(tmp_path, rows)
    with open(root / "fer2013.csv", newline="") as file:
        header, *lines = csv.reader(file)
    with open(root / "fer2013.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *change(lines)])
    with pytest.raises(DataError, match=reason):
        ferplus_module.prepare(str(root), progress=False)
    assert sorted(path.name for path in root.iterdir()) == ["fer2013.csv", "fer2013new.csv"]


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "a/b.png", "..", "a\0.png"])
def test_prepare_writes_into_its_own_folders_only(tmp_path, name):
    root = public_sets.ferplus_files(tmp_path, [("Training", name, [10] + [0] * 9)])
    with pytest.raises(
        DataError, match="the name of an image must be that of a file|line contains"
    ):
        ferplus_module.prepare(str(root), progress=False)
    assert sorted(path.name for path in root.iterdir()) == ["fer2013.csv", "fer2013new.csv"]


def test_prepare_does_not_overwrite(tmp_path):
    root = public_sets.ferplus_of_all_classes(tmp_path)
    with pytest.raises(DataError, match=r"FER2013Train exists already"):
        ferplus_module.prepare(str(root), progress=False)


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


def test_missing_and_unknown_folders(tmp_path):
    with pytest.raises(DataError, match=r"data folder .*nowhere does not exist"):
        open_set(tmp_path / "nowhere")
    (tmp_path / "set.zip").touch()
    with pytest.raises(DataError, match=r"data folder .*set.zip is a file"):
        open_set(tmp_path / "set.zip")
    with pytest.raises(DataError, match=r"no data set recognised in .*rafdb.*affectnet.*ferplus"):
        open_set(tmp_path)
    with pytest.raises(DataError, match=r"layout must be auto, drawn, rafdb.*got 'raf'"):
        open_set(tmp_path, layout="raf")


@pytest.mark.parametrize(
    "make", [public_sets.rafdb, lambda root: public_sets.class_folders(root, ["happy", "sad"])]
)
@pytest.mark.parametrize("training", [True, False])
def test_a_set_within_a_folder_is_named(tmp_path, make, training):
    """As archives unpack that have a folder of their own, with label files beside it."""
    make(tmp_path / "DATASET")
    (tmp_path / "labels.csv").touch()
    with pytest.raises(DataError, match=f"but in a folder of it: give {tmp_path / 'DATASET'}"):
        open_set(tmp_path, training=training)


def test_a_set_is_shown_in_a_line(tmp_path):
    opened = open_set(public_sets.rafdb(tmp_path))
    assert repr(opened) == "<RAF-DB: 7 classes; images in train: 7, test: 2>"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_number_of_classes_that_the_set_has_not_is_told_with_those_it_has(tmp_path, layout):
    make, _, class_names = LAYOUTS[layout]
    found = rf"{len(class_names)} classes \({', '.join(class_names)}\)"
    with pytest.raises(DataError, match=f"has {found}, but 5 are configured; --only"):
        open_set(make(tmp_path / "set"), classes=5)


def test_one_class_empty_class_and_more_classes_than_configured(tmp_path):
    one = public_sets.class_folders(tmp_path / "one", ["happy"])
    with pytest.raises(DataError, match=r"images of 1 class\(es\); at least 2"):
        open_set(one)
    gap = public_sets.rafdb(tmp_path / "gap", train=(1, 2, 3, 5, 6, 7))
    with pytest.raises(DataError, match="no training image of class happiness"):
        open_set(gap)
    eight = public_sets.class_folders(tmp_path / "eight", [*EXPRESSIONS])
    with pytest.raises(DataError, match=r"has 8 classes \(surprise.*contempt\), but 7 are config"):
        open_set(eight, classes=7)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_set_maps_onto_another_by_name(tmp_path, layout):
    root = LAYOUTS[layout][0](tmp_path / "set")
    native, mapped = open_set(root), open_set(root, classes=RAFDB)
    assert mapped.class_names == RAFDB
    for split in native.splits:
        kept = {
            sample.path: native.class_names[sample.label]
            for sample in native.splits[split]
            if native.class_names[sample.label] != "contempt"
        }
        assert kept == {s.path: mapped.class_names[s.label] for s in mapped.splits[split]}
    lost = sum(native.counts(s)[-1] for s in native.splits if "contempt" in native.class_names)
    assert mapped.dropped.get("class contempt is not wanted", 0) == lost


def test_rafdb_tests_a_model_of_affectnet_eight(tmp_path):
    opened = open_set(public_sets.rafdb(tmp_path), classes=AFFECTNET)
    assert [opened.class_names[s.label] for s in opened.splits["train"]] == list(RAFDB)
    assert opened.counts("train") == (1,) * 7 + (0,)


def test_mapping_reorders_votes_and_rescales_them(tmp_path):
    rows = [("Training", "a.png", [4, 5, 0, 0, 0, 0, 0, 1, 0, 0])]
    root = public_sets.ferplus_files(tmp_path, rows)
    ferplus_module.prepare(str(root), progress=False)
    loaded = ferplus_module.load(str(root), rule=ferplus_module.argmax8)
    (sample,) = loaded.mapped_to(RAFDB).splits["train"]
    assert sample.label == RAFDB.index("happiness")
    assert sample.votes == pytest.approx((0, 0, 0, 5 / 9, 0, 0, 4 / 9))


def test_mapping_onto_strangers_is_refused(tmp_path):
    opened = open_set(public_sets.rafdb(tmp_path))
    with pytest.raises(DataError, match=r"no class of RAF-DB .* is among the wanted ones \(cat\)"):
        opened.mapped_to(["cat"])
    with pytest.raises(DataError, match=r"\(a, b, c, d, e, f, g, h, and 18 more\)"):
        opened.mapped_to([*string.ascii_lowercase])
    with pytest.raises(DataError, match="must be distinct, got happy, happiness"):
        opened.mapped_to(["happy", "happiness"])


def test_boxes_can_be_left_out(tmp_path):
    root = public_sets.affectnet_lists(tmp_path)
    with open(root / "Manually_Annotated_file_lists/training.csv", "a") as file:
        file.write("1/training0.jpg,,,,,1;2,1,0,0\n")
    with pytest.raises(DataError, match="not four numbers"):
        open_set(root)
    opened = open_set(root, boxes=False)
    assert {sample.box for samples in opened.splits.values() for sample in samples} == {None}


@pytest.mark.parametrize(
    ("trained", "asked", "cropped"),
    [(True, None, True), (False, None, False), (False, True, True), (True, False, False)],
)
def test_boxes_are_those_of_training_unless_asked(tmp_path, trained, asked, cropped):
    root = public_sets.affectnet_lists(tmp_path)
    config = parse_config([] if trained else ["--no-boxes"])
    about = About.of_run(config, open_set(root).class_names)
    split = open_split(root, "auto", None, about, boxes=asked)
    assert {sample.box is not None for sample in split.samples} == {cropped}


FER2013 = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")


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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_options_that_a_set_has_no_use_for_are_told(tmp_path, layout):
    opened = open_set(LAYOUTS[layout][0](tmp_path / "set"), boxes=False, digits=["rafdb"])
    lines = opened.without_effect(boxes=False, digits=["rafdb"])
    expected = ["digits rafdb has no effect, as no class folders are named by digits"]
    if layout != "affectnet-lists":
        expected = ["boxes False has no effect, as the data has no face boxes", *expected]
    assert lines == expected
    assert opened.without_effect(boxes=True, digits=None) == []


def test_digits_of_folders_named_by_digits_have_an_effect(tmp_path):
    opened = open_set(public_sets.class_folders(tmp_path, [*"1234567"]), digits=["rafdb"])
    assert opened.without_effect(boxes=True, digits=["rafdb"]) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_some_classes_only(tmp_path, layout):
    make, _, class_names = LAYOUTS[layout]
    root = make(tmp_path / "set")
    wanted = ("Neutral", "happy", "surprise")
    opened = open_set(root, only=wanted)
    expected = tuple(n for n in class_names if n in map(canonical_name, wanted))
    assert opened.class_names == expected
    assert opened.counts("train") == (1, 1, 1)
    assert opened.dropped["class anger is not wanted"] >= 1
    with pytest.raises(DataError, match=r"has no class pain; its classes are"):
        open_set(root, only=["pain", "happy"])


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


def test_other_sets_without_their_training_split_can_be_evaluated_on(tmp_path):
    lists = public_sets.affectnet_lists(tmp_path / "lists")
    (lists / "Manually_Annotated_file_lists/training.csv").unlink()
    arrays = public_sets.affectnet_arrays(tmp_path / "arrays")
    (arrays / "train_set").rename(tmp_path / "elsewhere")
    ferplus = public_sets.ferplus_of_all_classes(tmp_path / "ferplus")
    (ferplus / "FER2013Train").rename(tmp_path / "elsewhere too")
    for root, held_out in ((lists, "val"), (arrays, "val"), (ferplus, "test")):
        opened = open_set(root, training=False)
        assert opened.held_out == held_out
        assert opened.counts(held_out) == (1,) * 8
        with pytest.raises(DataError, match="is missing"):
            open_set(root)


def test_two_folders_of_one_split_are_refused(tmp_path):
    root = public_sets.class_folders(tmp_path, ["happy", "sad"], splits=("train", "val", "valid"))
    with pytest.raises(DataError, match="two folders for one split, val and valid"):
        open_set(root)


def test_a_class_may_be_spelled_otherwise_in_another_split(tmp_path):
    public_sets.class_folders(tmp_path, ["happy", "sad"], splits=["train"])
    root = public_sets.class_folders(tmp_path, ["Happiness", "SAD"], splits=["test"])
    assert open_set(root).counts("test") == (1, 1)


@pytest.mark.parametrize("there", LAYOUTS)
@pytest.mark.parametrize("named", ["drawn", "rafdb", "affectnet", "ferplus", "folder"])
def test_a_wrong_layout_hints_at_the_one_that_fits(tmp_path, named, there):
    fitting = there.partition("-")[0]
    root = LAYOUTS[there][0](tmp_path / "set")
    if named == fitting:
        assert open_set(root, named)
        return
    with pytest.raises(DataError, match=rf"use --layout {fitting}$"):
        open_set(root, named)


def test_rafdb_images_without_aligned_in_their_names(tmp_path):
    root = public_sets.rafdb(tmp_path)
    for path in (root / "Image/aligned").iterdir():
        path.rename(path.with_name(path.name.replace("_aligned", "")))
    with pytest.raises(
        DataError, match=r"holds test_00001.jpg, but not test_00001_aligned.jpg.*rename"
    ):
        open_set(root)


def test_rafdb_with_original_images_only_says_where_the_aligned_are(tmp_path):
    root = public_sets.rafdb(tmp_path)
    (root / "Image/aligned").rename(root / "Image/original")
    with pytest.raises(DataError, match=r"Image/original holds whole photographs; .*aligned\.zip"):
        open_set(root)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(
    "name, header, order",
    [
        ("fer2013.csv", "emotion,pixels,Usage", (0, 1, 2)),
        ("icml_face_data.csv", "emotion, Usage, pixels", (0, 2, 1)),
    ],
)
def test_ferplus_from_either_copy_of_the_pixels(tmp_path, name, header, order, encoding):
    rows = [
        ("Training", "a.png", [0, 9, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("PrivateTest", "b.png", [9, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ]
    root = public_sets.ferplus_files(tmp_path, rows)
    with open(root / "fer2013.csv", newline="") as file:
        _, *lines = csv.reader(file)
    (root / "fer2013.csv").unlink()
    text = "".join(",".join(line[column] for column in order) + "\n" for line in lines)
    (root / name).write_text(f"{header}\n{text}", encoding)
    votes = root / "fer2013new.csv"
    votes.write_text(votes.read_text(), encoding)
    ferplus_module.prepare(str(root), progress=False)
    with Image.open(root / "FER2013Test/b.png") as image:
        assert image.getextrema() == (1, 1)
    assert names_by_file(ferplus_module.load(str(root)), "train") == {"a.png": "happiness"}
