"""Videos of moving drawn faces: faces found and followed, times, damaged files, cameras."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import count
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import cfmrfn
from cfmrfn import checkpoint, errors, predict, video
from cfmrfn.config import parse_config
from cfmrfn.data.synthetic import draw_face
from cfmrfn.errors import ConfigError, DataError
from cfmrfn.faces import DetectedFace

CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
SIZE = 640, 480
RATE = 25.0
MPEG4, MOTION_JPEG, LOSSLESS = "mp4v", "MJPG", "FFV1"
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")

pytestmark = pytest.mark.usefixtures("no_network", "one_thread")


@pytest.fixture(scope="session")
def random_run(tmp_path_factory):
    """A checkpoint of a small random network."""
    config = parse_config(["--image-size", "64", "--depth", "1"])
    torch.manual_seed(0)
    network = checkpoint.build_network(config, len(CLASSES))
    about = checkpoint.About.of_run(config, CLASSES).to_dict()
    path = tmp_path_factory.mktemp("run") / "best.pt"
    checkpoint.save(path, {"model": network.state_dict(), "about": about})
    return path


@pytest.fixture(scope="session")
def predictor(random_run):
    return cfmrfn.Predictor(random_run, "cpu")


def background(size, seed=0):
    """(height, width, 3), smooth."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 190, (12, 16, 3), dtype=np.uint8)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def film(path, frames, *, code=MPEG4, rate=RATE, color=True):
    """Writes frames (height, width, 3), BGR."""
    size = frames[0].shape[1::-1]
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*code), rate, size, color
    )
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame if color else cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY))
    writer.release()
    return path


def scene(moves, *, seed=0, side=150):
    """Frames, and the boxes of the faces in each; `moves`: of each face (frames, 2), its corner."""
    drawn = [draw_face("happiness", side, (3, seed, number)) for number in range(len(moves))]
    ground = background(SIZE, seed)
    frames, boxes = [], []
    for corners in zip(*moves, strict=True):
        frame = ground.copy()
        of_frame = []
        for (x, y), face in zip(corners, drawn, strict=True):
            frame[y : y + side, x : x + side] = np.asarray(face.image)[..., ::-1]
            landmarks = face.landmarks + np.array([x, y])
            of_frame.append((*landmarks.min(0), *landmarks.max(0)))
        frames.append(frame)
        boxes.append(of_frame)
    return frames, boxes


def path_of(start, end, frames):
    return np.linspace(start, end, frames).round().astype(int)


@pytest.fixture(scope="session")
def one_face(tmp_path_factory):
    """A video of a face that moves, and its boxes."""
    frames, boxes = scene([path_of((20, 20), (460, 300), 60)])
    return film(tmp_path_factory.mktemp("videos") / "one.mp4", frames), boxes


def overlap(one, other):
    """Intersection over union."""
    one, other = np.array(one), np.array(other)
    common = np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0).prod()
    return common / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - common)


def tracks_of(frames, boxes):
    """For each face of the scene the track in each frame, None where it was not found."""
    return [
        [
            next((face.track for face in frame.faces if overlap(face.box, now[place]) > 0.4), None)
            for frame, now in zip(frames, boxes, strict=True)
        ]
        for place in range(len(boxes[0]))
    ]


def run_tool(*args):
    """The status of the tool on the command line."""
    try:
        errors.run(lambda: predict.main([*map(str, args), "--device", "cpu"]))
    except SystemExit as stop:
        return stop.code
    return 0


# Faces and their tracks.


def test_a_moving_face_is_found_and_keeps_its_number(one_face, predictor):
    path, boxes = one_face
    frames = list(video.read(path, predictor))
    assert [frame.number for frame in frames] == list(range(60))
    assert [frame.seconds for frame in frames] == pytest.approx([n / RATE for n in range(60)])
    assert all(frame.pixels.shape == (480, 640, 3) for frame in frames)
    assert sum(len(frame.faces) for frame in frames) <= 60
    (tracks,) = tracks_of(frames, boxes)
    assert tracks.count(1) >= 57
    for frame in frames:
        for face in frame.faces:
            assert tuple(face.probabilities) == CLASSES
            assert sum(face.probabilities.values()) == pytest.approx(1, abs=1e-5)
            assert 0.9 <= face.score <= 1


def test_pixels_are_rgb(tmp_path, predictor):
    frame = np.zeros((480, 640, 3), np.uint8)
    frame[..., 2] = 200  # red, as OpenCV stores it
    film(tmp_path / "red.avi", [frame] * 3, code=LOSSLESS)
    for read in video.read(tmp_path / "red.avi", predictor):
        assert np.abs(read.pixels.astype(int) - (200, 0, 0)).max() < 6


def test_faces_that_pass_keep_their_numbers(tmp_path, predictor):
    moves = [path_of((0, 0), (480, 60), 50), path_of((480, 250), (10, 310), 50)]
    frames, boxes = scene(moves)
    read = list(video.read(film(tmp_path / "two.mp4", frames), predictor))
    both = tracks_of(read, boxes)
    assert {frozenset(tracks) - {None} for tracks in both} == {frozenset({1}), frozenset({2})}
    assert all(tracks.count(None) <= 2 for tracks in both)


def test_no_face_is_lost_at_a_cut_and_those_after_it_have_new_numbers(tmp_path, predictor):
    before, first = scene([path_of((40, 40), (120, 60), 33)], seed=1)
    after, second = scene([path_of((400, 250), (330, 250), 30)], seed=2)
    read = list(video.read(film(tmp_path / "cut.mp4", before + after), predictor))
    (tracks,) = tracks_of(read, first + second)
    assert tracks[33] == 2
    assert tracks[:33].count(1) >= 32 and tracks[33:].count(2) >= 29


def test_a_face_that_comes_is_found_soon(tmp_path, predictor):
    shown, boxes = scene([path_of((250, 150), (260, 160), 20)])
    read = list(video.read(film(tmp_path / "late.mp4", [background(SIZE)] * 23 + shown), predictor))
    assert not any(frame.faces for frame in read[:23])
    (tracks,) = tracks_of(read[23:], boxes)
    assert set(tracks[int(video.SEARCH_EVERY * RATE) :]) == {1}


class Detector:
    """Stands for a predictor's: finds what `faces` says, and counts the searches."""

    def __init__(self):
        self.faces = []
        self.searches = 0

    def find(self, pixels):
        self.searches += 1
        return self.faces

    def follow(self, pixels, before):
        return [
            next((now for now in self.faces if overlap(was.box, now.box) > 0.4), None)
            for was in before
        ]


def found(x, y, side=100):
    return DetectedFace((x, y, x + side, y + side), 0.99, np.zeros((5, 2)))


@pytest.mark.parametrize("missing, number", [(10, 1), (40, 2)])
def test_a_face_that_comes_back_soon_has_its_number(missing, number):
    detector = Detector()
    tracker = video.Tracker(detector)
    pixels = background(SIZE)
    for frame in range(5 + missing + 10):
        detector.faces = [] if 5 <= frame < 5 + missing else [found(200, 100)]
        seen = tracker(pixels, frame / RATE)
    assert list(seen) == [number]


def test_a_face_that_is_in_every_frame_has_one_number_however_few_there_are():
    detector, numbers = Detector(), []
    tracker = video.Tracker(detector)
    for frame in range(5):
        detector.faces = [found(200, 100)]
        numbers += tracker(background(SIZE), 2.0 * frame)
    assert numbers == [1] * 5


def test_between_searches_faces_are_followed():
    detector = Detector()
    tracker = video.Tracker(detector)
    for frame in range(50):
        detector.faces = [found(100 + 4 * frame, 100), found(400, 100, 60)]
        seen = tracker(background(SIZE), frame / RATE)
        places = {number: face.box[0] for number, face in seen.items()}
        assert places == {1: 100 + 4 * frame, 2: 400}
    assert detector.searches <= 11


def test_a_face_that_was_behind_another_has_its_number():
    detector = Detector()
    tracker = video.Tracker(detector)
    for frame in range(35):
        before, behind = found(100 + 10 * frame, 100), found(250, 100)
        hidden = overlap(before.box, behind.box) > 0.3
        detector.faces = [before] if hidden else [before, behind]
        seen = tracker(background(SIZE), frame / RATE)
        assert seen[1].box == before.box
    assert list(seen) == [1, 2]


def test_a_lost_face_is_searched_for_at_once():
    detector = Detector()
    tracker = video.Tracker(detector)
    detector.faces = [found(0, 0)]
    tracker(background(SIZE), 0)
    detector.faces = [found(60, 0)]  # too far to be followed
    assert list(tracker(background(SIZE), 0.04)) == [1]
    assert detector.searches == 2


def test_a_flash_is_no_cut():
    detector = Detector()
    tracker = video.Tracker(detector)
    detector.faces = [found(200, 100)]
    for frame in range(20):
        pixels = background(SIZE)
        pixels = np.clip(pixels.astype(int) + 60 * (frame == 8), 0, 255).astype(np.uint8)
        assert list(tracker(pixels, frame / RATE)) == [1]


def test_frames_that_are_crops_are_taken_whole(tmp_path, predictor):
    face = np.asarray(draw_face("anger", 128, (1,)).image)[..., ::-1]
    read = list(video.read(film(tmp_path / "crops.mp4", [face] * 4), predictor))
    assert [[face.track for face in frame.faces] for frame in read] == [[1]] * 4
    assert all(frame.faces[0].box == (0, 0, 128, 128) for frame in read)
    assert all(frame.faces[0].score is None for frame in read)


def test_smoothing_is_a_moving_average_of_each_track(one_face, predictor):
    path, _ = one_face
    raw = list(video.read(path, predictor))
    smooth = list(video.read(path, predictor, smooth=0.3))
    expected = None
    for one, other in zip(raw, smooth, strict=True):
        now = np.array(list(one.faces[0].probabilities.values()))
        keep = np.exp(-1 / RATE / 0.3)
        expected = now if expected is None else keep * expected + (1 - keep) * now
        assert list(other.faces[0].probabilities.values()) == pytest.approx(expected, abs=1e-4)
    assert raw[-1].faces[0].probabilities != smooth[-1].faces[0].probabilities


@pytest.mark.parametrize(
    "options",
    [{"smooth": -1}, {"smooth": float("nan")}, {"smooth": None}, {"limit": 0}, {"limit": "1"}],
)
def test_options_that_are_not_legal(one_face, predictor, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        video.read(one_face[0], predictor, **options)


# Files.


def test_limit(one_face, predictor):
    read = list(video.read(one_face[0], predictor, limit=0.5))
    assert [frame.number for frame in read] == list(range(13))


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


# Annotated videos.


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


# Cameras.


class Camera:
    """Stands for OpenCV's capture of a camera, of 50 frames per second."""

    def __init__(self, frames, on_read=lambda number: None):
        self.frames = frames
        self.on_read = on_read
        self.number = 0
        self.released = False

    def __call__(self, source, *_):
        assert isinstance(source, int)
        return self

    def isOpened(self):
        return True

    def get(self, what):
        return {cv2.CAP_PROP_FRAME_WIDTH: 640, cv2.CAP_PROP_FRAME_HEIGHT: 480}.get(what, 0)

    def read(self):
        time.sleep(0.02)
        if self.number == len(self.frames):
            return False, None
        self.on_read(self.number)
        self.number += 1
        return True, self.frames[self.number - 1]

    def release(self):
        self.released = True


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


def test_a_file_that_has_a_number_for_a_name_is_no_camera(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert video.camera("0") == 0 and video.camera("12") == 12
    assert video.camera("0.mp4") is None and video.camera("-1") is None
    (tmp_path / "0").mkdir()
    assert video.camera("0") is None


# The command line.


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
    assert sorted(os.listdir(drawn)) == ["a.jpg", "b-faces.mp4", "d-faces.mp4", "e-faces.mp4"]
    with video.Video(drawn / "b-faces.mp4") as made:
        assert (made.frames, made.rate, made.size) == (8, RATE, SIZE)
        for picture, frame in zip(made.pictures(), frames, strict=True):
            changed = np.abs(picture.pixels.astype(int) - frame[..., ::-1]).max(2) > 90
            assert changed.sum() > 1000  # pixels of boxes and bars


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
