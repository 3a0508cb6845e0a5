"""``python -m cfmrfn.data``: verify, draw, prepare and split."""

import contextlib
import io
import os
import sys

import pytest
from PIL import Image

from cfmrfn.data import __main__ as tool
from cfmrfn.process import command
from tests.cfmrfn import public_sets


def run(capsys, *args):
    """Exit status, standard output and standard error of a command line."""
    with pytest.raises(SystemExit) as stop:
        command.run(lambda: tool.main([str(arg) for arg in args]))
    return stop.value.code, *capsys.readouterr()


def test_verify_counts_beside_the_published_ones(tmp_path, capsys):
    status, out, _ = run(capsys, "verify", public_sets.rafdb(tmp_path))
    assert status == 0
    assert out.startswith("RAF-DB, 7 classes\n")
    rows = [line.split() for line in out.splitlines()]
    assert ["surprise", "1", "1290", "differs"] in rows
    assert ["all", "2", "3068", "differs"] in rows
    assert "counts differ from the published ones" in out
    assert out.endswith("9 images, all readable\n")


@pytest.mark.parametrize("workers", [1, 2])
def test_verify_lists_what_is_broken_or_missing(tmp_path, capsys, workers):
    root = public_sets.rafdb(tmp_path)
    folder = root / "Image/aligned"
    (folder / "train_00002_aligned.jpg").unlink()
    broken = folder / "test_00001_aligned.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    status, out, _ = run(capsys, "verify", root, "--workers", workers)
    assert status == 1
    missing, named, verdict = out.splitlines()[-3:]
    assert missing == f"{folder / 'train_00002_aligned.jpg'}: missing"
    assert named.startswith(f"{broken}: ")
    assert verdict == "2 of 9 images are missing or broken"


def test_verify_sums_up_the_rarer_sizes(tmp_path, capsys):
    root = public_sets.rafdb(tmp_path)
    for number, side in enumerate((10, 20, 30), start=1):
        public_sets.save_image(
            root / f"Image/aligned/train_0000{number}_aligned.jpg", size=(side, 5)
        )
    _, out, _ = run(capsys, "verify", root)
    (line,) = [line for line in out.splitlines() if line.startswith("sizes in pixels: ")]
    assert line.startswith("sizes in pixels: 6 of 100 x 100, 1 of 10 x 5, 1 of 20 x 5, ")
    assert "1 of 1 other sizes" in line


def test_verify_of_a_training_split_alone(tmp_path, capsys):
    root = public_sets.class_folders(tmp_path, ["happy", "sad"], splits=["train"])
    status, out, _ = run(capsys, "verify", root)
    assert status == 0
    assert "for evaluation only: class folders has a training split only, and nothing to" in out


def test_verify_says_which_options_have_no_effect(tmp_path, capsys):
    _, out, _ = run(capsys, "verify", public_sets.rafdb(tmp_path), "--no-boxes")
    assert out.endswith("readable\nboxes False has no effect, as the data has no face boxes\n")


def test_verify_prints_to_what_is_no_terminal_or_file(tmp_path, capsys):
    root = public_sets.rafdb(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as stop:
        command.run(lambda: tool.main(["verify", str(root)]))
    assert stop.value.code == 0
    assert printed.getvalue().endswith("9 images, all readable\n")


def test_verify_says_what_a_rule_left_out(tmp_path, capsys):
    root = public_sets.ferplus_of_all_classes(tmp_path)
    status, out, _ = run(capsys, "verify", root, "--layout", "ferplus-argmax8", "--classes", 7)
    assert status == 0
    assert out.startswith("FERPlus (argmax8), 7 classes\n")
    assert "left out: 3, class contempt is not wanted" in out


def test_verify_lists_duplicates_and_writes_them_all(tmp_path, capsys):
    root = public_sets.rafdb(tmp_path / "set")
    aligned = root / "Image/aligned"
    for first, second in (("train_00001", "test_00001"), ("train_00002", "train_00003")):
        noise = Image.effect_noise((60, 60), 60).convert("RGB")
        for name in (first, second):
            noise.save(aligned / f"{name}_aligned.jpg")
    status, out, _ = run(
        capsys, "verify", root, "--shown", 1, "--duplicates", tmp_path / "groups.csv"
    )
    assert status == 0
    lines = [line for line in out.splitlines() if line.startswith("duplicates: ")]
    assert lines[0] == (
        "duplicates: 3 groups of the same picture, 6 images; "
        "2 groups in several splits, 2 with different labels"
    )
    assert lines[1] == (
        "duplicates: 2 images are the same pixel for pixel, in train and test, with different "
        f"labels (surprise, sadness): {aligned}/train_00001_aligned.jpg (train, surprise), "
        f"{aligned}/test_00001_aligned.jpg (test, sadness)"
    )
    assert lines[2:] == ["duplicates: 2 more groups; --duplicates FILE lists all of them"]
    assert len((tmp_path / "groups.csv").read_text().splitlines()) == 1 + 6


@pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses such names")
def test_verify_names_each_file_on_one_line(tmp_path, capsys):
    root = public_sets.class_folders(tmp_path, ["happy", "sad"], splits=["test"])
    picture = next((root / "test" / "happy").iterdir())
    for broken, name in ((False, "a\nb.png"), (True, "c\nd\te.png")):
        data = b"no picture" if broken else picture.read_bytes()
        (root / "test" / "sad" / name).write_bytes(data)
    status, out, _ = run(capsys, "verify", root)
    assert status == 1
    assert f"\n{root}/test/sad/c\\nd\\te.png: cannot identify image file\n" in out
    assert f"{root}/test/sad/a\\nb.png (test, sadness)" in out


def test_verify_compares_boxes_with_images(tmp_path, capsys):
    root = public_sets.affectnet_lists(tmp_path)
    cropped = root / "Manually_Annotated_Images/1/training0.jpg"
    public_sets.save_image(cropped, size=(30, 40))
    status, out, _ = run(capsys, "verify", root)
    assert status == 1
    assert f"{cropped}: the face box of 100 x 80 pixels at 10, 20 is mostly outside" in out
    assert "image of 30 x 40 pixels" in out
    assert run(capsys, "verify", root, "--no-boxes")[0] == 0


def test_verify_takes_what_can_be_evaluated_on_only(tmp_path, capsys):
    root = public_sets.class_folders(tmp_path, ["1", "2"], splits=["test"])
    status, out, _ = run(capsys, "verify", root, "--digits", "happy", "sad", "--only", "sad")
    assert status == 0
    assert (
        "for evaluation only: class folders, digits read as happiness, sadness has no train" in out
    )
    assert "left out: 1, class happiness is not wanted" in out


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_verify_prints_any_name_on_any_terminal(tmp_path, encoding, monkeypatch):
    root = public_sets.class_folders(tmp_path, ["happy", "sad"])
    for name in (b"f\xe2ch\xe9.jpg", "été.jpg".encode()):
        with open(os.fsencode(root / "test/sad") + b"/" + name, "wb"):
            pass
    terminal = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, encoding, "strict"))
    with pytest.raises(SystemExit) as stop:
        command.run(lambda: tool.main(["verify", str(root), "--workers", "1"]))
    assert stop.value.code == 1
    lines = terminal.getvalue().decode(encoding).splitlines()
    assert f"{root}/test/sad/f\\xe2ch\\xe9.jpg: empty file" in lines
    shown = "été" if encoding == "utf-8" else "\\xe9t\\xe9"
    assert f"{root}/test/sad/{shown}.jpg: empty file" in lines


@pytest.mark.parametrize(
    "args, message",
    [
        (("verify", "ROOT/nowhere"), "data folder ROOT/nowhere does not exist"),
        (("verify", "ROOT", "--layout", "raf"), "layout must be auto, drawn, rafdb"),
        (("verify", "ROOT", "--kind", "raf"), "layout must be auto, drawn, rafdb"),
        (("verify", "ROOT", "--shown", "-1"), "shown must be 0 or more, got -1"),
        (("verify",), "Root folder of the data set"),
        (("verify", "ROOT", "--knid", "raf"), "--knid"),
        (("draw",), "name a folder to draw into, or a picture with --sheet"),
        (("draw", "ROOT/faces", "--classes", "9"), "classes must be 7 or 8"),
        (("draw", "ROOT/faces", "--train", "3"), "train must be at least one face per class"),
        (("draw", "ROOT/faces", "--size", "8"), "size must be at least 32 pixels, got 8"),
        (("draw", "ROOT/faces", "--seed", "-1"), "seed must not be negative, got -1"),
        (
            ("draw", "--sheet", "ROOT/a.png", "--size", "0"),
            "size must be at least 32 pixels, got 0",
        ),
        (("draw", "--sheet", "ROOT/a.png", "--seed", "-1"), "seed must not be negative, got -1"),
        (("draw", "--sheet", "ROOT/a.foo"), "sheet must end as pictures do, .png; got ROOT/a.foo"),
        (("draw", "--sheet", "ROOT/a.psd"), "sheet must end as pictures do, .png; got ROOT/a.psd"),
        (("draw", "--sheet", "ROOT/no/a.png", "--size", "32"), "ROOT/no/a.png: No such file"),
        (("prepare", "ROOT/nowhere"), "data folder ROOT/nowhere does not exist"),
        (("prepare", "ROOT"), "ROOT/fer2013new.csv is missing"),
        (("split", "ROOT/nowhere", "ROOT/new"), "data folder ROOT/nowhere does not exist"),
        (("split", "ROOT", "ROOT"), "target must be a folder to make; ROOT exists"),
        (("split", "ROOT", "ROOT/new"), "target must be outside of ROOT; got ROOT/new"),
        (("split", "ROOT", "ROOT-2", "--test", "0"), "test must be above 0 and below 1, got 0.0"),
        (
            ("split", "ROOT", "ROOT-2", "--test", "0.5", "--validation", "0.5"),
            "test and validation together must be below 1, got 1.0",
        ),
    ],
)
def test_a_user_error_is_one_line_and_status_2(tmp_path, capsys, args, message):
    args = [arg.replace("ROOT", str(tmp_path)) for arg in args]
    status, out, err = run(capsys, *args)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message.replace("ROOT", str(tmp_path)) in err


def test_draw_then_verify(tmp_path, capsys):
    root = tmp_path / "faces"
    drawing = ("draw", root, "--train", 16, "--test", 8, "--classes", 8, "--size", 32)
    status, out, _ = run(capsys, *drawing)
    assert (status, out) == (0, f"drawn faces: {root}\n")
    status, out, _ = run(capsys, "verify", root)
    assert status == 0
    assert out.startswith("drawn faces, 8 classes\n")
    assert "differs" not in out
    assert out.endswith("24 images, all readable\n")


def test_draw_a_contact_sheet_only(tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    status, _, _ = run(capsys, "draw", "--sheet", sheet, "--size", 32, "--classes", 8)
    assert status == 0
    with Image.open(sheet) as picture:
        assert picture.height == 8 * (32 + 2)


def test_prepare_then_verify(tmp_path, capsys):
    rows = [
        (usage, f"fer{2 * place + label:07d}.png", [9 if i == label else 0 for i in range(10)])
        for place, usage in enumerate(("Training", "PublicTest", "PrivateTest"))
        for label in range(8)
    ]
    root = public_sets.ferplus_files(tmp_path, rows)
    status, out, _ = run(capsys, "prepare", root)
    assert status == 0
    assert f"{root / 'FER2013Train'}: 8 images" in out
    assert run(capsys, "verify", root)[0] == 0
