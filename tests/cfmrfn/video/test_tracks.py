"""Faces of a video: found, followed from frame to frame, numbered, and smoothed over time."""

import numpy as np
import pytest

from cfmrfn import video
from cfmrfn.data.synthetic import draw_face
from cfmrfn.faces import DetectedFace
from cfmrfn.predictor import Face
from tests.cfmrfn.video.films import (
    CLASSES,
    RATE,
    SIZE,
    background,
    film,
    overlap,
    path_of,
    scene,
    tracks_of,
)

pytestmark = pytest.mark.usefixtures("no_network", "one_thread")


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


def test_smoothing_forgets_tracks_that_do_not_come_back():
    """Else the memory of a camera would grow with every face that ever passed."""
    average = video.frames._Average(1.0)
    for number in range(100):
        seconds = number / 2
        passing = Face((0, 0, 9, 9), 0.9, {"fear": 1.0}, track=number + 2)
        seldom = Face((0, 0, 9, 9), 0.9, {"fear": float(number == 0)}, track=1)
        faces = [passing, *([seldom] if number % 2 == 0 else [])]
        *_, last = average(faces, video.VideoPicture(number, seconds, np.zeros((9, 9, 3))))
        assert len(average.last) <= 4
    assert last.track == 101
    assert 0 < average.last[1][1]["fear"] < 1e-9  # it was there once a second, and is remembered
