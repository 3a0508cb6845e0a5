"""Annotated videos: rates, sizes, and no file where an error stopped the writing."""

import os
import sys

import numpy as np
import pytest

from cfmrfn import video
from tests.cfmrfn.video.films import RATE, SIZE

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")

pytestmark = pytest.mark.usefixtures("no_network", "one_thread")


def test_a_video_of_constant_rate_has_each_frame_once(tmp_path):
    path = tmp_path / "made.mp4"
    with video.VideoWriter(path, RATE) as writer:
        for number in range(30):
            writer.write(np.full((480, 640, 3), number * 8, np.uint8), number / RATE + 0.004)
            assert not path.exists()
    assert os.listdir(tmp_path) == ["made.mp4"]
    with video.Video(path) as made:
        assert (made.rate, made.size, made.frames) == (RATE, SIZE, 30)
        levels = [picture.pixels.mean() for picture in made.pictures()]
    assert levels == pytest.approx(range(0, 240, 8), abs=4)


def test_a_video_of_varying_rate_lasts_as_long(tmp_path):
    path = tmp_path / "made.mp4"
    with video.VideoWriter(path, 10) as writer:
        for level, seconds in ((50, 3.0), (100, 3.1), (150, 3.12), (200, 3.5)):
            writer.write(np.full((480, 640, 3), level, np.uint8), seconds)
    with video.Video(path) as made:
        levels = [picture.pixels.mean() for picture in made.pictures()]
    assert levels == pytest.approx([50, 100, 150, 150, 150, 200], abs=4)


def test_odd_and_changing_sizes(tmp_path):
    path = tmp_path / "made.mp4"
    with video.VideoWriter(path, RATE) as writer:
        for number, (height, width) in enumerate([(241, 321), (480, 640), (241, 321)]):
            writer.write(np.full((height, width, 3), 90, np.uint8), number / RATE)
    with video.Video(path) as made:
        assert made.size == (320, 240) and made.frames == 3


def write_frames(path, pixels, error=None):
    with video.VideoWriter(path, RATE) as writer:
        for number in range(20):
            writer.write(pixels, number / RATE)
        if error is not None:
            raise error


def test_an_error_leaves_no_file(tmp_path):
    frame = np.zeros((480, 640, 3), np.uint8)
    with pytest.raises(KeyboardInterrupt):
        write_frames(tmp_path / "a.mp4", frame, KeyboardInterrupt())
    with pytest.raises(FileNotFoundError):
        write_frames(tmp_path / "no/a.mp4", frame)
    assert os.listdir(tmp_path) == []


@only_linux
def test_a_disk_that_is_full(tmp_path):
    import resource

    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="full"):
            write_frames(tmp_path / "a.mp4", noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []
