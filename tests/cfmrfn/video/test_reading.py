"""Video files: pixels, times, files that are damaged or no videos, and frames read ahead."""

import os
import sys
import threading
import time
from itertools import count
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import cfmrfn
from cfmrfn import video
from cfmrfn.errors import ConfigError, DataError
from tests.cfmrfn.video.films import (
    LOSSLESS,
    MOTION_JPEG,
    MPEG4,
    RATE,
    SIZE,
    background,
    film,
    path_of,
    scene,
    tracks_of,
)

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")

pytestmark = pytest.mark.usefixtures("no_network", "one_thread")


def test_pixels_are_rgb(tmp_path, predictor):
    frame = np.zeros((480, 640, 3), np.uint8)
    frame[..., 2] = 200  # red, as OpenCV stores it
    film(tmp_path / "red.avi", [frame] * 3, code=LOSSLESS)
    for read in video.read(tmp_path / "red.avi", predictor):
        assert np.abs(read.pixels.astype(int) - (200, 0, 0)).max() < 6


def test_limit(one_face, predictor):
    read = list(video.read(one_face[0], predictor, limit=0.5))
    assert [frame.number for frame in read] == list(range(13))


@pytest.mark.parametrize(
    "options",
    [{"smooth": -1}, {"smooth": float("nan")}, {"smooth": None}, {"limit": 0}, {"limit": "1"}],
)
def test_options_that_are_not_legal(one_face, predictor, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        video.read(one_face[0], predictor, **options)


def test_grey(tmp_path, predictor):
    frames, boxes = scene([path_of((200, 100), (230, 120), 10)])
    film(tmp_path / "grey.avi", frames, code=LOSSLESS, color=False)
    (tracks,) = tracks_of(list(video.read(tmp_path / "grey.avi", predictor)), boxes)
    assert set(tracks) == {1}


def test_videos_of_phones_are_turned(tmp_path, predictor):
    frames, boxes = scene([path_of((200, 100), (230, 120), 10)])
    path = film(tmp_path / "phone.mp4", [cv2.rotate(f, cv2.ROTATE_90_CLOCKWISE) for f in frames])
    numbers = [[int(value * 2**16) for value in row] for row in ((1, 0), (0, 1))]
    upright, turned = (
        b"".join(
            number.to_bytes(4, "big", signed=True)
            for number in (a, b, 0, c, d, 0, x * 2**16, y * 2**16, 2**30)
        )
        for (a, b), (c, d), x, y in (
            (*numbers, 0, 0),
            ((0, -(2**16)), (2**16, 0), 0, 640),  # a quarter to the left
        )
    )
    content = path.read_bytes()
    head, sign, tail = content.partition(b"tkhd")
    assert upright in tail
    path.write_bytes(head + sign + tail.replace(upright, turned, 1))
    with video.Video(path) as opened:
        assert opened.size == SIZE
        read = list(video.read(opened, predictor))
    (tracks,) = tracks_of(read, boxes)
    assert set(tracks) == {1}


@only_linux
def test_names_of_any_bytes(tmp_path, one_face, predictor):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9 %03d\nf\xc3\xa9")
    os.mkdir(folder)
    path = os.path.join(folder, os.fsdecode(b"http:\xe9.mp4"))
    with video.VideoWriter(path, RATE) as writer:
        for number, frame in enumerate(scene([path_of((100, 100), (110, 100), 5)])[0]):
            writer.write(frame[..., ::-1], number / RATE)
    assert os.listdir(folder) == [os.path.basename(path)]
    assert [len(frame.faces) for frame in video.read(path, predictor)] == [1] * 5


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("zero.mp4", b"", "empty file"),
        ("text.mp4", b"no video\n" * 100, "no video by its content"),
        ("page.mp4", b"<!DOCTYPE html><html>", "no video by its content"),
        ("list.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9\nhttp://192.0.2.1/a.ts\n", "no"),
        ("noise.mp4", b"\0\0\0\x18ftypisom" + bytes(range(256)) * 20, "index is missing"),
        ("noise.mkv", b"\x1aE\xdf\xa3" + bytes(range(256)) * 20, "damaged"),
        ("noise.avi", b"RIFF\0\0\1\0AVI " + bytes(100), "cut off, 112 of 65544 bytes"),
    ],
)
def test_files_that_are_no_videos(tmp_path, predictor, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^cannot read video {path}: .*{reason}"):
        video.read(path, predictor)


def test_what_is_no_file(tmp_path, predictor):
    with pytest.raises(DataError, match=r"^cannot read video .*nowhere\.mp4: missing$"):
        video.read(tmp_path / "nowhere.mp4", predictor)
    with pytest.raises(DataError, match=r"^cannot read video .*: a folder$"):
        video.read(tmp_path, predictor)


@pytest.mark.skipif(os.name != "posix", reason="other systems have no named pipes")
def test_pipes_are_not_waited_for(tmp_path, predictor):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(DataError, match=r"pipe\.mp4: no file but a pipe or a device$"):
        video.read(tmp_path / "pipe.mp4", predictor)


def test_a_recording_that_was_not_ended(tmp_path, one_face, predictor):
    path = tmp_path / "cut.mp4"
    content = one_face[0].read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cut off, [0-9]+ of [0-9]+ bytes are there"):
        video.read(path, predictor)


def with_index_first(content):
    """An MP4 file as it is made for the web, whose boxes are in another order."""
    boxes, place = [], 0
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        boxes.append(content[place : place + length])
        place += length
    (index,) = (box for box in boxes if box[4:8] == b"moov")
    first, *others = (box for box in boxes if box is not index)
    head, sign, table = index.partition(b"stco")
    entries = int.from_bytes(table[4:8], "big")
    offsets = np.frombuffer(table[8 : 8 + 4 * entries], ">u4") + np.uint32(len(index))
    moved = head + sign + table[:8] + offsets.astype(">u4").tobytes() + table[8 + 4 * entries :]
    return b"".join([first, moved, *others])


@pytest.mark.parametrize(
    "suffix, code", [(".mp4", MPEG4), (".avi", MOTION_JPEG), (".webm", "VP80")]
)
def test_a_video_that_ends_early(tmp_path, predictor, suffix, code):
    frames, boxes = scene([path_of((50, 50), (200, 100), 40)])
    path = film(tmp_path / f"whole{suffix}", frames, code=code)
    content = path.read_bytes()
    if suffix == ".mp4":
        content = with_index_first(content)
    path.write_bytes(content)
    assert len(list(video.read(path, predictor))) == 40
    path.write_bytes(content[: len(content) * 3 // 5])
    read = []
    with pytest.raises(DataError, match="ends early") as error:
        read.extend(video.read(path, predictor))
    assert f"{len(read)} of 40 frames were read: it is cut off" in str(error.value)
    assert 10 < len(read) < 40
    (tracks,) = tracks_of(read, boxes[: len(read)])
    assert tracks.count(1) >= len(read) - 2


def test_a_codec_that_is_missing(tmp_path, predictor):
    path = film(tmp_path / "codec.avi", [background(SIZE)] * 5, code=LOSSLESS)
    path.write_bytes(path.read_bytes().replace(b"FFV1", b"ZZZZ"))
    with pytest.raises(DataError, match=r"codec\.avi: .* OpenCV lacks its codec; `ffmpeg -i"):
        video.read(path, predictor)


def test_a_video_of_which_no_frame_can_be_decoded(tmp_path, predictor):
    path = film(tmp_path / "a.mp4", [background(SIZE)] * 5)
    head, data, tail = path.read_bytes().partition(b"mdat")
    pixels, index, rest = tail.partition(b"moov")
    path.write_bytes(head + data + bytes(len(pixels) - 4) + pixels[-4:] + index + rest)
    with pytest.raises(DataError, match=r"a\.mp4: no frame of 5 .* codec, .*; `ffmpeg -i"):
        list(video.read(path, predictor))


class Damaged:
    """A capture in which some reads fail, as OpenCV's do at frames that cannot be decoded."""

    def __init__(self, capture, bad):
        self.capture, self.bad, self.reads = capture, bad, count()

    def read(self):
        is_read, pixels = self.capture.read()
        return (False, None) if next(self.reads) in self.bad else (is_read, pixels)

    def __getattr__(self, name):
        return getattr(self.capture, name)


@pytest.mark.parametrize("limit", [None, 0.8])
def test_frames_after_damaged_ones_are_read(tmp_path, limit):
    path = film(tmp_path / "a.mp4", [background(SIZE)] * 30)
    with video.Video(path) as clip:
        clip._capture = Damaged(clip._capture, {0, 7, 8, 9})
        pictures, read = clip.pictures(limit), []
        with pytest.raises(DataError, match=r"a\.mp4 is damaged: 4 frames could not be decoded"):
            read.extend(pictures)
    assert len(read) == (26 if limit is None else 16)
    assert [picture.number for picture in read] == list(range(len(read)))
    assert read[-1].seconds == pytest.approx(29 / RATE if limit is None else 19 / RATE)


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("a.MP4", b"", True),
        ("a.jpg", b"\0\0\0\x18ftypisom", False),
        ("a.gif", b"GIF89a", False),
        ("a", b"\0\0\0\x18ftypisom", True),
        ("a", b"\0\0\0\x18ftypheic", False),
        ("a", b"\0\0\0\x18ftypavif", False),
        ("a.5", b"RIFF\0\0\0\0AVI LIST", True),
        ("a", b"RIFF\0\0\0\0WEBPVP8 ", False),
        ("a", b"\x1aE\xdf\xa3", True),
        ("a", (b"G" + bytes(187)) * 3, True),
        ("a", b"\xff\xd8\xff", False),
        ("a", b"", False),
    ],
)
def test_what_is_a_video(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert video.is_video(tmp_path / name) == expected


def test_frames_without_times_and_with_wild_ones_follow_at_the_rate(one_face):
    with video.Video(one_face[0]) as opened:
        told = iter([0, 40, 0, 120, 1e9, 160, 200])
        real = opened._capture
        opened._capture = SimpleNamespace(
            read=real.read, get=lambda _: next(told), release=real.release
        )
        seconds = [next(pictures).seconds for pictures in [opened.pictures()] for _ in range(7)]
    assert seconds == pytest.approx([n / RATE for n in range(7)])


# Threads.


def endless(read, pixels):
    for number in count():
        read.append(number)
        yield video.VideoPicture(number, number / RATE, pixels)


def test_few_frames_are_read_ahead_and_threads_end(one_face, predictor, monkeypatch):
    before = threading.active_count()
    with video.Video(one_face[0]) as opened:
        read = []
        monkeypatch.setattr(opened, "pictures", lambda limit: endless(read, background(SIZE)))
        frames = video.read(opened, predictor)
        for _ in range(5):
            next(frames)
        time.sleep(0.5)  # for what would read on and on
        assert len(read) <= 5 + 3 * 8 + 3
        frames.close()
    assert threading.active_count() == before


def test_an_error_in_a_thread_is_raised_where_frames_are_taken(one_face, random_run, monkeypatch):
    broken = cfmrfn.Predictor(random_run, "cpu")

    def fail(pixels):
        raise RuntimeError("out of order")

    monkeypatch.setattr(broken, "find", fail)
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="out of order"):
        list(video.read(one_face[0], broken))
    assert threading.active_count() == before
