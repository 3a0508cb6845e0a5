"""Predictions of image files: over bad files, in any bytes of names, from Python and a terminal."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

import cfmrfn
from cfmrfn import checkpoint, errors, predict
from cfmrfn.config import parse_config
from cfmrfn.errors import ConfigError, DataError
from cfmrfn.faces import FRAMING
from cfmrfn.process import command
from tests.cfmrfn.scenes import ground, scene

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
        command.run(lambda: predict.main([*map(str, args)]))
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


def test_a_bad_file_takes_one_line(run_folder, images, capsys):
    named = images[1].with_name("two\nlines\t.jpg")
    images[1].rename(named)
    assert run_tool(run_folder, named) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "two\\nlines\\t.jpg" in first and second == "1 of 1 images could not be read"


@pytest.mark.skipif(os.name != "posix", reason="other systems have no named pipes")
def test_pipes_are_not_waited_for(run_folder, images, capsys):
    for name in ("pipe.jpg", "pipe"):
        os.mkfifo(images[0].with_name(name))
    folder = images[0].parent
    assert run_tool(run_folder, folder, folder / "pipe") == 1
    first, second, third, *_ = capsys.readouterr().err.splitlines()
    assert "left out of" in first and second.startswith(f"cannot read image {images[1]}: ")
    assert third == f"cannot read image {folder / 'pipe.jpg'}: no file but a pipe or a device"


def test_networks_are_named_first(run_folder, images):
    for network in (run_folder, run_folder / "best.pt"):
        with pytest.raises(errors.ConfigError, match="is a network: name it before the pictures"):
            predict.main([str(images[0]), str(network)])
        with pytest.raises(errors.ConfigError, match="is a network"):
            predict.main(["video.mp4", str(network)])


def test_addresses_are_not_read(run_folder):
    with pytest.raises(errors.ConfigError, match="https://a.b/c.jpg is an address: download it"):
        predict.main([str(run_folder), "https://a.b/c.jpg"])
    with pytest.raises(errors.ConfigError, match="https://a.b/c.pt is an address: download it"):
        cfmrfn.Predictor("https://a.b/c.pt")


@pytest.mark.skipif(os.name != "posix", reason="other systems have no /dev/stdout")
def test_pipes_of_pictures_and_tables_named_by_a_dash(run_folder, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    for names in (["-"], ["pipe"], [str(run_folder), "-"]):
        with pytest.raises(errors.ConfigError, match=f"must be files: save what {names[-1]} gives"):
            predict.main(names)
    for option in ("--csv", "--json"):
        with pytest.raises(errors.ConfigError, match=f"standard output is {option} /dev/stdout"):
            predict.main([str(run_folder), str(images[0]), option, "-"])
    assert not Path("-").exists()


def test_wrong_arguments_in_python(run_folder, images):
    with pytest.raises(errors.ConfigError, match="on_broken must be error or skip; got 'ignore'"):
        next(predict.predict(run_folder, images, on_broken="ignore"))
    with pytest.raises(errors.ConfigError, match="a checkpoint must be given by its path, got ''"):
        cfmrfn.Predictor("")


def test_names_of_classes_are_on_one_line(run_folder, images, capsys):
    saved = checkpoint.load(run_folder / "best.pt")
    saved["about"]["class_names"] = [f"{name}\n\x1b[1m" for name in CLASSES]
    torch.save(saved, run_folder / "best.pt")
    assert status(run_folder, images[0]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.count("\\n\\x1b[1m 0.") == 3


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


@pytest.mark.parametrize("name", ["two\nlines, and a comma.jpg", "carriage\rreturn.jpg"])
def test_table(run_folder, images, tmp_path, name):
    awkward = images[0].with_name(name)
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


@pytest.mark.skipif(os.name != "posix", reason="other systems have no /dev/stdout")
def test_tables_go_to_pipes(run_folder, images, tmp_path):
    options = [images[0], "--csv", "/dev/stdout"]
    done = subprocess.run(
        [sys.executable, "-m", "cfmrfn.predict", run_folder, *options], capture_output=True
    )
    assert done.returncode == 0, done.stderr
    header, row = [line for line in done.stdout.splitlines() if b"," in line]
    assert header.startswith(b"path,frame,") and row.startswith(os.fsencode(images[0]) + b",,,1,")
    # an output that goes to a file keeps what is there, before and after
    for mark in (">", ">>"):
        tool = shlex.join([sys.executable, "-m", "cfmrfn.predict", str(run_folder), str(images[0])])
        log = tmp_path / "log.txt"
        log.write_text("first\n")
        script = (
            f"(echo before; {tool} --csv /dev/stdout; {tool} --json /dev/fd/2 2>&1; echo after) "
            f"{mark} {shlex.quote(str(log))}"
        )
        subprocess.run(["sh", "-c", script], check=True)
        lines = log.read_text().splitlines()
        assert lines[:-1].count("before") == 1 and lines[-1] == "after"
        assert lines.count("first") == (mark == ">>")
        assert sum(line.startswith("path,frame,") for line in lines) == 1
        assert len([line for line in lines if "probabilities" in line]) == 1
    # only of files are two the same where one would be lost
    assert status(run_folder, images[0], "--csv", os.devnull, "--json", os.devnull) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_names_of_any_bytes_where_output_is_strict(
    run_folder, images, tmp_path, encoding, monkeypatch
):
    named = os.fsencode(images[0].parent) + b"/\xe9t\xe9 \xc3\xa9\n2.jpg"
    shutil.copy(images[0], named)
    table = tmp_path / "table.csv"
    terminal = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, *encoding.split(":")))
    args = [str(run_folder), os.fsdecode(named), "--csv", str(table)]
    command.run(lambda: predict.main(args))
    printed = terminal.getvalue()
    shown = b"\xc3\xa9" if encoding.startswith("utf-8") else b"\\xe9"
    assert printed.count(b"\n") == 1
    assert b"/\xe9t\xe9 " + shown + b"\\n2.jpg  " in printed
    text = io.StringIO(table.read_bytes().decode("utf-8", "surrogateescape"), newline="")
    (row,) = csv.DictReader(text)
    assert os.fsencode(row["path"]) == named


def test_control_codes_in_names_are_escaped():
    assert predict.on_one_line("a\x1b[1m\r\n\u2028é.jpg") == "a\\x1b[1m\\r\\n\\u2028é.jpg"


def status(*args):
    """The status of the tool, also where it is 0."""
    try:
        predict.main([*map(str, args)])
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture
def photographs(tmp_path) -> Path:
    """A folder: a photograph, a crowd in several formats, no face, and files that are no images."""
    folder = tmp_path / "photographs"
    (folder / "inner").mkdir(parents=True)
    Image.fromarray(data.astronaut()).save(folder / "astronaut.png")
    crowd = scene(0).image
    crowd.save(folder / "crowd.jpg", quality=95)
    crowd.save(folder / "inner" / "crowd.png")
    crowd.convert("CMYK").save(folder / "crowd cmyk.jpg", quality=95)
    crowd.convert("RGBA").save(folder / "crowd alpha.webp", lossless=True)
    grey = np.asarray(crowd.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(folder / "crowd 16 bit.png")
    crowd.save(folder / "crowd.gif", save_all=True, append_images=[ground(crowd.size)])
    ground((500, 300)).save(folder / "meadow.jpg")
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no image")
    (folder / "cut.jpg").write_bytes((folder / "crowd.jpg").read_bytes()[:5000])
    Image.new("1", (20000, 10000)).save(folder / "bomb.png")
    return folder


BROKEN = ("bomb.png", "cut.jpg", "empty.jpg", "text.jpg")


def test_the_whole_tool_on_photographs(run_folder, photographs, tmp_path, capsys, no_network):
    table, listed, overlay = (tmp_path / name for name in ("a.csv", "a.json", "overlay"))
    options = ["--csv", table, "--json", listed, "--overlay", overlay]
    assert status(run_folder, photographs, *options) == 1
    printed = capsys.readouterr()

    # every file is spoken of once, in order, on stdout or on stderr
    lines = {Path(line.split("  ")[0]).name: line for line in printed.out.splitlines()}
    assert lines["meadow.jpg"].endswith("meadow.jpg  no face found")
    assert printed.out.count("crowd.jpg  face") == 3
    for name in BROKEN:
        assert printed.err.count(f"cannot read image {photographs / name}: ") == 1
    assert "4 of 12 images could not be read" in printed.err
    assert "no face was found in 1 of 12 images" in printed.err

    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    faces = {}
    for row in rows:
        faces.setdefault(Path(row["path"]).relative_to(photographs).as_posix(), []).append(row)
    assert {name: [row["face"] for row in found] for name, found in faces.items()} == {
        "astronaut.png": ["1"],
        **{f"crowd{kind}": ["1", "2", "3"] for kind in (".jpg", " cmyk.jpg", ".gif")},
        **{f"crowd {kind}": ["1", "2", "3"] for kind in ("alpha.webp", "16 bit.png")},
        "inner/crowd.png": ["1", "2", "3"],
        "meadow.jpg": ["0"],
        **{name: [""] for name in BROKEN},
    }
    assert not any(list(faces["meadow.jpg"][0].values())[4:])

    content = json.loads(listed.read_text("utf-8"))
    assert set(content) == {"checkpoint", "class_names", "pictures"}
    assert content["checkpoint"] == str(run_folder)
    assert content["class_names"] == list(CLASSES)
    listed_rows = []
    for picture in content["pictures"]:
        if "error" in picture:
            assert picture == {"path": picture["path"], "error": picture["error"]}
            assert picture["path"] in picture["error"]
            listed_rows.append((picture["path"], ""))
            continue
        assert list(picture) == ["path", "frame", "seconds", "drawn", "faces"]
        assert picture["frame"] is picture["seconds"] is None
        for face in picture["faces"]:
            assert face["landmarks"] is None
            assert face["prediction"] == max(CLASSES, key=face["probabilities"].get)
        listed_rows += [
            (
                picture["path"],
                str(face["face"]),
                *(f"{edge:.1f}" for edge in face["box"]),
                f"{face['score']:.6f}",
                face["prediction"],
                *(f"{face['probabilities'][name]:.6f}" for name in CLASSES),
            )
            for face in picture["faces"]
        ] or [(picture["path"], "0")]
    assert listed_rows == [
        tuple(
            value
            for key, value in row.items()
            if key not in ("frame", "seconds") and (value or key == "face")
        )
        for row in rows
    ]

    # several pictures are called crowd
    assert {path.name for path in overlay.iterdir()} == {
        *("astronaut.jpg", "crowd.jpg", "crowd-2.jpg", "crowd-3.jpg", "crowd cmyk.jpg"),
        *("crowd alpha.jpg", "crowd 16 bit.jpg", "meadow.jpg"),
    }
    with Image.open(overlay / "astronaut.jpg") as drawn:
        assert np.abs(np.asarray(drawn).astype(int) - data.astronaut()).max() > 100


def test_status_is_0_where_every_picture_has_a_face(run_folder, photographs, capsys):
    assert status(run_folder, photographs / "astronaut.png", photographs / "crowd.jpg") == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 4
    assert not printed.err


def test_no_face_sets_the_status(run_folder, photographs, capsys):
    assert status(run_folder, photographs / "meadow.jpg") == 1
    assert "no face was found in 1 of 1 images" in capsys.readouterr().err
    assert status(run_folder, photographs / "meadow.jpg", "--faces", "whole") == 0


def test_sizes_and_scores_that_faces_need(run_folder, photographs, capsys):
    crowd = photographs / "crowd.jpg"
    assert status(run_folder, crowd, "--min-size", "300") == 1
    assert status(run_folder, crowd, "--min-score", "1") == 1
    assert "no face found" in capsys.readouterr().out
    assert status(run_folder, crowd, "--top", "1", "--faces", "detect") == 0
    for line in capsys.readouterr().out.splitlines():
        assert len(line.split("  ")) == 3


def test_framing_of_a_folder(run_folder, faces, tmp_path):
    framing = predict.framing_in(faces / "Image" / "aligned")
    np.testing.assert_allclose(framing, FRAMING, atol=0.04)
    ground((64, 64)).save(tmp_path / "meadow.png")
    with pytest.raises(ConfigError, match="too few of its 1 images; eight or more are needed"):
        predict.framing_in(tmp_path)
    photo = tmp_path / "photo.png"
    Image.fromarray(data.astronaut()).save(photo)
    tables = [tmp_path / "own.csv", tmp_path / "given.csv"]
    for table, more in zip(tables, ([], ["--framing", faces / "Image" / "aligned"]), strict=True):
        assert status(run_folder, photo, "--csv", table, *more) == 0
    assert tables[0].read_bytes() != tables[1].read_bytes()


def test_options_without_effect_are_told(run_folder, images, tmp_path, capsys):
    options = ["--bars", "--smooth", "1", "--min-size", "30", "--faces", "whole"]
    assert status(run_folder, images[0], *options) == 0
    assert capsys.readouterr().err.splitlines() == [
        "--bars has no effect, as --overlay is not given",
        "--smooth has no effect, as there is no video",
        "--min-size has no effect, as --faces is whole",
    ]
    tool = predict.Predict((), bars=True, overlay=tmp_path, smooth=1, min_size=30)
    assert not tool.without_effect(["film.mp4"])


@pytest.mark.parametrize("what", ["file", "picture of another run"])
def test_a_folder_of_pictures_is_new_or_empty(run_folder, images, tmp_path, what, capsys):
    overlay = tmp_path / "overlay"
    if what == "file":
        overlay.mkdir()
        (overlay / "a.jpg").write_text("precious")
    else:
        assert status(run_folder, images[0], "--overlay", overlay) == 0
    held = (overlay / "a.jpg").read_bytes()
    assert run_tool(run_folder, images[0], "--overlay", overlay) == 2
    assert "--overlay must be a new or an empty folder" in capsys.readouterr().err
    assert (overlay / "a.jpg").read_bytes() == held


def test_json_says_which_drawn_picture_is_which(run_folder, images, tmp_path, capsys):
    for folder, source in (("A", images[0]), ("B", images[2])):
        (tmp_path / folder).mkdir()
        shutil.copy(source, tmp_path / folder / "x.jpg")
    overlay, listed = tmp_path / "overlay", tmp_path / "faces.json"
    args = [tmp_path / "A", tmp_path / "B", "--json", listed]
    assert status(run_folder, *args, "--overlay", overlay) == 0
    names = {each["path"]: each["drawn"] for each in json.loads(listed.read_text())["pictures"]}
    assert names == {f"{tmp_path}/A/x.jpg": "x.jpg", f"{tmp_path}/B/x.jpg": "x-2.jpg"}
    assert set(names.values()) == set(os.listdir(overlay))
    assert status(run_folder, *args) == 0
    assert {each["drawn"] for each in json.loads(listed.read_text())["pictures"]} == {None}


def test_names_of_pictures_never_meet(tmp_path):
    folder = predict.PictureFolder(tmp_path / "new")
    paths = ["a/x.jpg", "b/x.jpg", "x-2.png", "X.gif", f"{'é' * 120}.jpg", f"{'é' * 120}.png"]
    names = [folder.name_for(path, ".jpg").name for path in paths]
    assert names[:4] == ["x.jpg", "x-2.jpg", "x-2-2.jpg", "X-3.jpg"]
    assert len({name.casefold() for name in names}) == len(names)
    assert max(len(os.fsencode(name)) for name in names) < 255


def test_nothing_half_written(run_folder, images, tmp_path, monkeypatch):
    table, listed, overlay = (tmp_path / name for name in ("t.csv", "t.json", "overlay"))
    table.write_text("from before")

    def interrupt(self, path, image):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict.PictureFolder, "save", interrupt)
    options = ["--csv", table, "--json", listed, "--overlay", overlay]
    with pytest.raises(KeyboardInterrupt):
        predict.main([*map(str, [run_folder, *images, *options])])
    assert table.read_text() == "from before"
    assert not listed.exists()
    assert not any(overlay.iterdir())
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["nowhere"], "there is no checkpoint nowhere"),
        (["{empty}"], "folder .*empty has neither a network nor pictures"),
        (["{begun}"], "there is no best.pt in .*begun; a run writes it after its first epoch"),
        (["{version}"], "is a checkpoint in format 99, .* reads format 1"),
        (["{run}", "--csv", "{tmp}/none/a.csv"], "--csv: there is no folder .*/none"),
        (["{run}", "--min-score", "2"], "min_score must be 0 to 1, got 2"),
        (["{run}", "--min-size", "3"], "min_size must be 12 pixels or more, got 3"),
        (["{run}", "--faces", "all"], "all"),
        (["{run}", "--top", "0"], "top"),
        (["{run}", "--seconds", "inf"], "seconds must be finite, got inf"),
        (["{run}", "--smooth", "inf"], "smooth must be finite, got inf"),
        (["{run}", "--csv", "{tmp}/a.JPG"], "--csv must not be named as a picture .*a.JPG"),
        (["{run}", "--json", "{tmp}/a.mp4"], "--json must not be named as a picture .*a.mp4"),
        (["{run}", "--csv", "{tmp}"], "--csv must be a file to write; .* is a folder"),
        (["{run}", "--csv", "{tmp}/a", "--json", "{tmp}/../{tmp.name}/a"], "different files"),
        (["{run}", "--framing", "{empty}"], "too few of its 0 images"),
        (["{run}", "--framing", "nowhere"], "must be a folder of images; got nowhere"),
    ],
)
def test_errors_of_the_user(run_folder, images, tmp_path, capsys, wrong, message):
    for name in ("empty", "begun"):
        (tmp_path / name).mkdir()
    (tmp_path / "begun/config.yaml").touch()
    torch.save({"format": 99}, tmp_path / "version.pt")
    places = {
        "run": run_folder,
        "tmp": tmp_path,
        "empty": tmp_path / "empty",
        "begun": tmp_path / "begun",
        "version": tmp_path / "version.pt",
    }
    tool, *more = (word.format(**places) for word in wrong)
    assert run_tool(tool, images[0], *more) == 2
    printed = capsys.readouterr()
    assert not printed.out
    (line,) = printed.err.splitlines()
    assert re.search(message, line)


def test_a_network_without_images(run_folder, capsys):
    assert run_tool(run_folder) == 2
    network = run_folder / "best.pt"
    assert capsys.readouterr() == ("", f"error: no images were given: {network} is the network\n")
    assert run_tool("nosuch.xyz") == 2
    assert "nosuch.xyz" in capsys.readouterr().err


def test_packages_that_are_missing_are_named_first(run_folder, photographs, capsys, monkeypatch):
    monkeypatch.setattr(predict, "why_no_detector", lambda: "pip install 'sdwa[faces]'")
    options = [photographs / "text.jpg", photographs / "crowd.jpg"]
    assert run_tool(run_folder, *options) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert "crowd.jpg has 640 x 400 pixels, too many for a crop of a face: pip" in printed.err
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 640 * 400 - 1)  # Pillow warns of larger ones
    assert run_tool(run_folder, photographs / "crowd.jpg") == 2
    assert status(run_folder, photographs / "crowd.jpg", "--faces", "whole") == 0
    capsys.readouterr()
    assert run_tool(run_folder, photographs / "text.jpg", "--framing", photographs) == 2
    assert capsys.readouterr().err == "error: pip install 'sdwa[faces]'\n"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_of_any_bytes_in_json_and_pictures(run_folder, images, tmp_path):
    named = os.fsencode(images[0].parent) + b"/\xe9t\xe9 \xc3\xa9\n2.jpg"
    shutil.copy(images[0], named)
    listed, overlay = tmp_path / "a.json", tmp_path / "overlay"
    options = ["--json", listed, "--overlay", overlay]
    assert status(run_folder, os.fsdecode(named), *options) == 0
    (picture,) = json.loads(listed.read_text("utf-8"))["pictures"]
    assert os.fsencode(picture["path"]) == named
    assert os.listdir(os.fsencode(overlay)) == [os.path.basename(named)]
