"""RAF-DB, AffectNet and FERPlus as published: labels by name, counts, and bad lines."""

import csv

import numpy as np
import pytest
from PIL import Image

from cfmrfn.data import DataError, open_set
from cfmrfn.data import ferplus as ferplus_module
from tests.cfmrfn import public_sets
from tests.cfmrfn.public_sets import AFFECTNET, RAFDB, names_by_file


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
    "no votes": ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0], (None, None, None)),
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
