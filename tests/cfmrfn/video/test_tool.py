"""``python -m cfmrfn.predict`` on videos and cameras: tables, drawn videos, and interrupts."""

import csv
import json
import os
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest

from cfmrfn import predict, video
from cfmrfn.errors import ConfigError
from cfmrfn.process import command
from tests.cfmrfn.video.cameras import Camera
from tests.cfmrfn.video.films import (
    CLASSES,
    MOTION_JPEG,
    RATE,
    SIZE,
    background,
    film,
    overlap,
    path_of,
    scene,
)

pytestmark = pytest.mark.usefixtures("no_network", "one_thread")


def run_tool(*args):
    """The status of the tool on the command line."""
    try:
        command.run(lambda: predict.main([*map(str, args), "--device", "cpu"]))
    except SystemExit as stop:
        return stop.code
    return 0


def test_pictures_and_videos_of_a_folder(random_run, one_face, tmp_path, capsys):
    folder = tmp_path / "media"
    folder.mkdir()
    frames, boxes = scene([path_of((100, 100), (140, 120), 8)])
    cv2.imwrite(str(folder / "a.png"), frames[0])
    film(folder / "b.mp4", frames)
    (folder / "c.mp4").write_text("no video")
    whole = film(tmp_path / "whole.avi", frames * 3, code=MOTION_JPEG).read_bytes()
    (folder / "d.avi").write_bytes(whole[: len(whole) // 2])
    film(folder / "e.mkv", [background(SIZE)] * 3)
    (folder / "notes.txt").write_text("")
    drawn, table, listed = tmp_path / "drawn", tmp_path / "faces.csv", tmp_path / "faces.json"
    options = ["--csv", table, "--json", listed, "--overlay", drawn, "--bars", "--smooth", "0.2"]
    assert run_tool(random_run, folder, *options) == 1
    printed = capsys.readouterr()
    assert "c.mp4: no video by its content" in printed.err
    assert "d.avi ends early: " in printed.err
    assert "2 of 5 files could not be read" in printed.err
    assert "no face was found in 1 of 5 files" in printed.err
    assert ".txt" in printed.err
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    of_file = {
        name: [row for row in rows if row["path"] == str(folder / name)]
        for name in ("a.png", "b.mp4", "c.mp4", "d.avi", "e.mkv")
    }
    assert [(row["frame"], row["track"]) for row in of_file["a.png"]] == [("", "")]
    assert [
        (row["frame"], row["seconds"], row["face"], row["track"]) for row in of_file["b.mp4"]
    ] == [(str(n), f"{n / RATE:.3f}", "1", "1") for n in range(8)]
    for row, (box,) in zip(of_file["b.mp4"], boxes, strict=True):
        assert overlap([float(row[edge]) for edge in ("left", "top", "right", "bottom")], box) > 0.4
        assert sum(float(row[f"p_{name}"]) for name in CLASSES) == pytest.approx(1, abs=1e-4)
    assert [row["face"] for row in of_file["c.mp4"]] == [""]
    assert len(of_file["d.avi"]) > 5 and of_file["d.avi"][-1]["frame"] == ""
    assert [row["face"] for row in of_file["e.mkv"]] == ["0"] * 3
    entries = json.loads(listed.read_text())["pictures"]
    assert [entry["path"] for entry in entries] == [row["path"] for row in rows]
    assert [e["faces"][0]["track"] for e in entries if e["path"].endswith("b.mp4")] == [1] * 8
    assert {e["drawn"] for e in entries if e["path"].endswith("b.mp4")} == {"b-faces.mp4"}
    assert sorted(os.listdir(drawn)) == ["a.jpg", "b-faces.mp4", "d-faces.mp4", "e-faces.mp4"]
    with video.Video(drawn / "b-faces.mp4") as made:
        assert (made.frames, made.rate, made.size) == (8, RATE, SIZE)
        for picture, frame in zip(made.pictures(), frames, strict=True):
            changed = np.abs(picture.pixels.astype(int) - frame[..., ::-1]).max(2) > 90
            assert changed.sum() > 1000  # pixels of boxes and bars


@pytest.mark.parametrize(("rate", "kept"), [(480, True), (1000, False)])
def test_the_rate_of_a_drawn_video(random_run, tmp_path, capsys, rate, kept):
    path = film(tmp_path / "fast.mp4", [background(SIZE)] * 20, rate=rate)
    run_tool(random_run, path, "--overlay", tmp_path / "drawn")
    with video.Video(tmp_path / "drawn/fast-faces.mp4") as made:
        assert (made.rate, made.frames) == ((480, 20) if kept else (30, 2))
    said = f"fast-faces.mp4 has 30 frames per second, as 1000, which {path} says, are unlikely"
    assert (said in capsys.readouterr().err) is not kept


def test_a_camera_is_watched_until_interrupted(random_run, monkeypatch, tmp_path, capsys):
    frames, _ = scene([path_of((100, 100), (300, 100), 200)])
    camera = Camera(frames, lambda number: number == 40 and signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(cv2, "VideoCapture", lambda *args: _real(*args) if args[1:] else camera)
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    options = ["--csv", "faces.csv", "--json", "faces.json", "--overlay", "drawn"]
    assert run_tool(random_run, "0", *options) == 0
    assert signal.getsignal(signal.SIGINT) is handler
    assert camera.released
    with open("faces.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == {"0"}
    assert float(rows[-1]["seconds"]) < 30
    assert len(json.loads((tmp_path / "faces.json").read_text())["pictures"]) == len(rows)
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
    with video.Video(tmp_path / "drawn" / "0-faces.mp4") as drawn:
        assert drawn.frames > 0


_real = cv2.VideoCapture


@pytest.mark.parametrize("faces", ["auto", "detect"])
def test_without_the_detector_a_video_is_refused_at_once(
    random_run, one_face, monkeypatch, capsys, faces
):
    monkeypatch.setattr(predict, "why_no_detector", lambda: "pip install 'sdwa[faces]'")
    monkeypatch.setattr(predict, "Output", None)
    assert run_tool(random_run, one_face[0], "--faces", faces) == 2
    assert "one.mp4 is a video: pip install 'sdwa[faces]'" in capsys.readouterr().err


def test_without_opencv_a_video_is_an_error_that_says_what_to_install(one_face, monkeypatch):
    monkeypatch.setattr(video.files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs OpenCV: pip install 'sdwa\[faces\]'"):
        video.Video(one_face[0])


def test_the_terminal_has_our_words_alone(random_run, tmp_path):
    (tmp_path / "a.mkv").write_bytes(b"\x1aE\xdf\xa3" + bytes(100))
    whole = film(tmp_path / "b.avi", [background(SIZE)] * 20, code=MOTION_JPEG).read_bytes()
    (tmp_path / "b.avi").write_bytes(whole[: len(whole) // 2])
    done = subprocess.run(
        [sys.executable, "-m", "cfmrfn.predict", random_run, tmp_path, "63", "--device", "cpu"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    first, second, third, *rest = done.stderr.splitlines()
    assert "a.mkv" in first and "b.avi" in second and "camera 63" in third
    assert len(rest) == 1 and rest[0].startswith("3 of 3 files could not be read")


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interrupt_in_a_file_leaves_nothing_half_written(random_run, tmp_path):
    frames, _ = scene([path_of((100, 100), (200, 120), 50)])
    path = film(tmp_path / "long.mp4", frames * 40)
    options = ["--overlay", tmp_path / "drawn", "--csv", tmp_path / "faces.csv"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cfmrfn.predict", random_run, path, "--device", "cpu", *options],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, b"")
    assert os.listdir(tmp_path / "drawn") == []
    assert sorted(os.listdir(tmp_path)) == ["drawn", "long.mp4"]
