"""``python -m cfmrfn.data``: verify, draw and prepare."""

import pytest
from PIL import Image

from cfmrfn import errors
from cfmrfn.data import __main__ as tool
from tests.cfmrfn import public_sets


def run(capsys, *args):
    """Exit status, standard output and standard error of a command line."""
    with pytest.raises(SystemExit) as stop:
        errors.run(lambda: tool.main([str(arg) for arg in args]))
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


def test_verify_says_what_a_rule_left_out(tmp_path, capsys):
    root = public_sets.ferplus_of_all_classes(tmp_path)
    status, out, _ = run(capsys, "verify", root, "--layout", "ferplus-argmax8", "--classes", 7)
    assert status == 0
    assert out.startswith("FERPlus (argmax8), 7 classes\n")
    assert "left out: 3, class contempt is not wanted" in out


@pytest.mark.parametrize(
    "args, message",
    [
        (("verify", "ROOT/nowhere"), "data folder ROOT/nowhere does not exist"),
        (("verify", "ROOT", "--layout", "raf"), "layout must be auto, drawn, rafdb"),
        (("verify", "ROOT", "--kind", "raf"), "layout must be auto, drawn, rafdb"),
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
        (("draw", "--sheet", "ROOT/no/a.png", "--size", "32"), "ROOT/no/a.png: No such file"),
        (("prepare", "ROOT/nowhere"), "data folder ROOT/nowhere does not exist"),
        (("prepare", "ROOT"), "ROOT/fer2013new.csv is missing"),
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
