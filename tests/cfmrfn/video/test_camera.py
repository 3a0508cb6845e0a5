"""Cameras: seen live, absent, and such as stop."""

import time

import cv2
import pytest

from cfmrfn import video
from cfmrfn.errors import DataError
from tests.cfmrfn.video.cameras import Camera
from tests.cfmrfn.video.films import path_of, scene

pytestmark = pytest.mark.usefixtures("no_network", "one_thread")


def test_where_no_camera_is_nothing_but_an_error_comes(predictor, capfd):
    with pytest.raises(DataError, match=r"^cannot open camera 63: there is none"):
        video.read(63, predictor)
    assert capfd.readouterr() == ("", "")


def test_a_camera_is_seen_live(predictor, monkeypatch):
    frames, _ = scene([path_of((100, 100), (200, 100), 100)])
    camera = Camera(frames)
    monkeypatch.setattr(cv2, "VideoCapture", camera)
    numbers, seconds = [], []
    for frame in video.read(0, predictor, limit=1.2):
        numbers.append(frame.number)
        seconds.append(frame.seconds)
        time.sleep(0.1)  # slower than the camera: frames are passed over, none waits for long
    assert numbers == sorted(set(numbers)) and len(numbers) < numbers[-1]
    assert 0.5 < seconds[-1] < 1.2


def test_a_camera_that_stops(predictor, monkeypatch):
    frames, _ = scene([path_of((100, 100), (200, 100), 5)])
    monkeypatch.setattr(cv2, "VideoCapture", Camera(frames))
    with pytest.raises(DataError, match="camera 0 gave no more pictures after 5 frames"):
        list(video.read(0, predictor))


def test_a_file_that_has_a_number_for_a_name_is_no_camera(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert video.camera("0") == 0 and video.camera("12") == 12
    assert video.camera("0.mp4") is None and video.camera("-1") is None
    (tmp_path / "0").mkdir()
    assert video.camera("0") is None
