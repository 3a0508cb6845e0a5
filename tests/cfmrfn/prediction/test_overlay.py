"""Words and boxes on pictures: beside the faces, within the picture, at any size."""

import numpy as np
import pytest
from PIL import Image

from cfmrfn import Face, overlay

CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
GREY = (120, 130, 140)


def face(box, *, classes=CLASSES, best=3, landmarks=None):
    rest = 0.3 / (len(classes) - 1)
    probabilities = {name: 0.7 if i == best else rest for i, name in enumerate(classes)}
    return Face(box, 0.99, probabilities, landmarks)


def changed(picture, drawn):
    """(height, width): where the two differ."""
    return (np.asarray(picture) != np.asarray(drawn)).any(2)


def inside(box, margin):
    left, top, right, bottom = box
    return slice(top + margin, bottom - margin), slice(left + margin, right - margin)


@pytest.mark.parametrize("bars", [False, True])
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (4000, 3000)])
@pytest.mark.parametrize("corner", [(0.4, 0.4), (0, 0), (0.9, 0), (0, 0.86), (0.9, 0.86)])
def test_words_are_in_the_picture_and_beside_the_face(size, corner, bars):
    picture = Image.new("RGB", size, GREY)
    left, top = (round(part * side) for part, side in zip(corner, size, strict=True))
    box = (left, top, left + size[0] // 10, top + size[1] // 8)
    drawn = overlay.draw(picture, [face(box)], bars=bars)
    assert drawn.size == size
    marks = changed(picture, drawn)
    margin = max(size) // 100
    assert not marks[inside(box, margin)].any()
    words = marks.copy()
    words[inside(box, -margin)] = False
    rows, columns = np.nonzero(words)
    lines = 5 if bars else 1
    assert np.ptp(rows) > lines * 0.015 * max(size)  # letters of a height that can be read
    assert np.ptp(columns) > 3 * 0.015 * max(size)
    assert (np.asarray(picture) == GREY).all()  # it is a copy that was drawn on


@pytest.mark.parametrize("bars", [False, True])
def test_a_picture_that_is_one_face_is_extended(bars):
    picture = Image.new("RGB", (500, 450), GREY)
    drawn = overlay.draw(picture, [face((0, 0, 500, 450))], bars=bars)
    assert drawn.width >= 500 and drawn.height >= 450 and drawn.size != picture.size
    grey = (np.asarray(drawn) == GREY).all(2)
    assert grey.sum() == (500 - 2 * 5) * (450 - 2 * 5)  # all but the lines of the box


@pytest.mark.parametrize("bars", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 640, 480), (100, 10, 560, 470), (-40, -60, 300, 700)])
def test_frames_of_a_video_keep_their_size_and_most_of_the_face(box, bars):
    frame = np.full((480, 640, 3), GREY, np.uint8)
    drawn = overlay.draw(frame, [face(box)], bars=bars, grow=False)
    assert drawn.size == (640, 480)
    left, top, right, bottom = np.clip(box, 0, [640, 480, 640, 480])
    assert changed(frame, drawn)[top:bottom, left:right].mean() < 0.06


def test_faces_of_a_crowd_stay_free_and_keep_their_labels():
    picture = Image.new("RGB", (1280, 960), GREY)
    corners = [(x, y) for y in range(60, 900, 230) for x in range(30, 1200, 210)]
    boxes = [(x, y, x + 90, y + 90) for x, y in corners]
    faces = [face(box) for box in boxes]
    drawn = overlay.draw(picture, faces, bars=True, names=[f"#{n}" for n in range(len(faces))])
    assert drawn.size == picture.size
    marks = changed(picture, drawn)
    for box in boxes:
        assert not marks[inside(box, 12)].any()
        marks[inside(box, -1)] = False
    assert marks.mean() > len(boxes) * 100 * 20 / marks.size


@pytest.mark.parametrize(
    "size, scale", [((48, 48), 9), ((1, 1), 400), ((399, 20), 2), ((20, 1), 20)]
)
def test_small_pictures_are_enlarged(size, scale):
    picture = Image.new("L", size, 120)
    drawn = overlay.draw(picture, [face((0, 0, *size))], grow=False)
    assert drawn.size == (size[0] * scale, size[1] * scale)
    assert overlay.draw(picture, []).size == drawn.size


@pytest.mark.parametrize("bars", [False, True])
@pytest.mark.parametrize("name", ["x" * 200, "two\nlines\x1b[1m", "\udce9t\udce9", "喜び", ""])
def test_any_class_name(name, bars):
    picture = Image.new("RGB", (640, 480), GREY)
    odd = face((300, 200, 380, 290), classes=(name, *CLASSES, *"abcdefgh"), best=0)
    drawn = overlay.draw(picture, [odd], bars=bars, names=[name])
    assert max(drawn.size) <= 640 + 80
    assert not changed(picture, drawn.crop((0, 0, 640, 480)))[inside((300, 200, 380, 290), 6)].any()


def test_landmarks():
    picture = Image.new("RGB", (640, 480), GREY)
    points = np.stack(np.meshgrid(np.arange(17) * 6 + 250, np.arange(4) * 20 + 160), 2)
    one = face((230, 130, 380, 290), landmarks=points.reshape(68, 2).astype(float))
    drawn = np.asarray(overlay.draw(picture, [one]))
    for x, y in one.landmarks.astype(int):
        assert tuple(drawn[y, x]) != GREY
    without = overlay.draw(picture, [one], landmarks=False)
    assert not changed(picture, without)[inside((230, 130, 380, 290), 6)].any()
