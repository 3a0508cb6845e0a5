"""Predictions of image files: over bad files, in any bytes of names, from Python and a terminal."""

import csv
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cfmrfn import checkpoint, errors, predict
from cfmrfn.config import parse_config
from cfmrfn.errors import ConfigError, DataError

CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run_folder(options, tmp_path) -> Path:
    """A run folder with a random network."""
    config = parse_config(options)
    torch.manual_seed(0)
    network = checkpoint.build_network(config, len(CLASSES))
    about = checkpoint.About.of_run(config, CLASSES).to_dict()
    folder = tmp_path / "run"
    folder.mkdir()
    checkpoint.save(folder / "best.pt", {"model": network.state_dict(), "about": about})
    return folder


@pytest.fixture
def images(faces, tmp_path) -> list[Path]:
    """Three images and, as the second of four files, one that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, source in zip("acd", sorted((faces / "Image" / "aligned").iterdir()), strict=False):
        shutil.copy(source, folder / f"{name}.jpg")
    (folder / "b.jpg").write_text("no image")
    return [folder / f"{name}.jpg" for name in "abcd"]


def run_tool(*args):
    """The status of the tool on the command line."""
    with pytest.raises(SystemExit) as stop:
        errors.run(lambda: predict.main([*map(str, args)]))
    return stop.value.code


def names_printed(text):
    return [Path(line.split("  ")[0]).name for line in text.splitlines()]


@pytest.mark.parametrize("more", [[], ["--batch-size", "1"], ["--workers", "1"]])
def test_bad_files_are_named_and_the_others_printed(run_folder, images, more, capsys):
    assert run_tool(run_folder, *images, "nowhere.jpg", *more) == 1
    printed = capsys.readouterr()
    assert names_printed(printed.out) == ["a.jpg", "c.jpg", "d.jpg"]
    first, second, last = printed.err.splitlines()
    assert first.startswith(f"cannot read image {images[1]}: ")
    assert second == "cannot read image nowhere.jpg: missing"
    assert last == "2 of 5 images could not be read"


def test_the_others_are_what_they_are_alone(run_folder, images):
    together = list(predict.predict(run_folder, images, on_broken="skip"))
    assert together[1] is None
    for image, expected in zip(images, together, strict=True):
        if expected is not None:
            (alone,) = predict.predict(str(run_folder / "best.pt"), str(image))
            assert alone == pytest.approx(expected, abs=1e-5)
            assert sum(alone.values()) == pytest.approx(1)
            assert tuple(alone) == CLASSES


@pytest.mark.parametrize("workers", [0, 1])
def test_in_python_a_bad_file_is_an_error(run_folder, images, workers):
    answers = predict.predict(run_folder, [str(image) for image in images], workers=workers)
    assert next(answers) is not None
    with pytest.raises(DataError, match=r"^cannot read image .*b\.jpg: .*[^\n]$"):
        next(answers)


def test_what_a_folder_holds_beside_images_is_said(run_folder, images, tmp_path, capsys):
    (images[0].parent / "notes.txt").write_text("")
    empty = tmp_path / "empty"
    empty.mkdir()
    images[1].unlink()
    assert run_tool(run_folder, images[0].parent, empty) == 1
    printed = capsys.readouterr()
    assert names_printed(printed.out) == ["a.jpg", "c.jpg", "d.jpg"]
    assert "left out of" in printed.err and ".txt" in printed.err
    assert f"there are no images or videos in folder {empty}" in printed.err


def test_a_folder_of_other_files_is_an_error_that_says_so(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(
        ConfigError, match=r"no images or videos in folder .*; left out of .*: 1, .*\.txt"
    ):
        predict.image_files([tmp_path])


def test_table(run_folder, images, tmp_path):
    awkward = images[0].with_name("two\nlines, and a comma.jpg")
    images[0].rename(awkward)
    table = tmp_path / "table.csv"
    assert run_tool(run_folder, awkward, *images[1:], "--csv", table) == 1
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    place = ["frame", "seconds", "face", "track", "left", "top", "right", "bottom", "score"]
    assert list(rows[0]) == ["path", *place, "prediction", *(f"p_{name}" for name in CLASSES)]
    assert [rows[0][name] for name in place] == ["", "", "1", "", "0.0", "0.0", "64.0", "64.0", ""]
    assert [row["path"] for row in rows] == [str(awkward), *map(str, images[1:])]
    assert set(list(rows[1].values())[1:]) == {""}
    probabilities = {name: float(rows[0][f"p_{name}"]) for name in CLASSES}
    assert rows[0]["prediction"] == max(probabilities, key=probabilities.get)
    (expected,) = predict.predict(run_folder, awkward)
    assert probabilities == pytest.approx(expected, abs=1e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_names_of_any_bytes_where_output_is_strict(run_folder, images, tmp_path, encoding):
    named = os.fsencode(images[0].parent) + b"/\xe9t\xe9 \xc3\xa9\n2.jpg"
    shutil.copy(images[0], named)
    table = tmp_path / "table.csv"
    done = subprocess.run(
        [sys.executable, "-m", "cfmrfn.predict", run_folder, named, "--csv", table],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    shown = b"\xc3\xa9" if encoding.startswith("utf-8") else b"\\xe9"
    assert done.stdout.count(b"\n") == 1
    assert b"/\xe9t\xe9 " + shown + b"\\n2.jpg  " in done.stdout
    text = io.StringIO(table.read_bytes().decode("utf-8", "surrogateescape"), newline="")
    (row,) = csv.DictReader(text)
    assert os.fsencode(row["path"]) == named


def test_control_codes_in_names_are_escaped():
    assert predict.on_one_line("a\x1b[1m\r\n\u2028é.jpg") == "a\\x1b[1m\\r\\n\\u2028é.jpg"
