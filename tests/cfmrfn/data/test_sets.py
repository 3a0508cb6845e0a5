"""Sets of every layout: recognised, their classes chosen and mapped by name, and options."""

import string

import pytest
from PIL import Image

from cfmrfn.checkpoint import About
from cfmrfn.config import parse_config
from cfmrfn.data import EXPRESSIONS, DataError, canonical_name, open_set
from cfmrfn.data import ferplus as ferplus_module
from cfmrfn.inference import open_split
from tests.cfmrfn import public_sets
from tests.cfmrfn.public_sets import AFFECTNET, LAYOUTS, RAFDB


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_recognised_with_its_native_classes(tmp_path, layout):
    make, name, class_names = LAYOUTS[layout]
    opened = open_set(make(tmp_path / "set"))
    assert (opened.name, opened.class_names) == (name, class_names)
    assert opened.counts("train") == (1,) * len(class_names)
    for samples in opened.splits.values():
        for sample in samples:
            Image.open(sample.path).close()


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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_options_that_a_set_has_no_use_for_are_told(tmp_path, layout):
    opened = open_set(LAYOUTS[layout][0](tmp_path / "set"), boxes=False, digits=["rafdb"])
    lines = opened.without_effect(boxes=False, digits=["rafdb"])
    expected = ["digits rafdb has no effect, as no class folders are named by digits"]
    if layout != "affectnet-lists":
        expected = ["boxes False has no effect, as the data has no face boxes", *expected]
    assert lines == expected
    assert opened.without_effect(boxes=True, digits=None) == []


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
