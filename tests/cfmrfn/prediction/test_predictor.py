"""`cfmrfn.Predictor`: what it takes, what it gives, and how it streams."""

import dataclasses
import gc
import itertools
import math
import pickle
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

import cfmrfn
from cfmrfn import checkpoint
from cfmrfn.config import parse_config
from cfmrfn.data import Sample, eval_transform, read_image
from cfmrfn.data.reading import Tag
from cfmrfn.errors import CheckpointError, ConfigError, DataError
from cfmrfn.faces import FRAMING
from tests.cfmrfn.scenes import ground, scene

CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")

pytestmark = pytest.mark.usefixtures("one_thread")


def save_checkpoint(path, framing=None, *more):
    config = parse_config(["--image-size", "64", "--depth", "1", *more])
    torch.manual_seed(0)
    network = checkpoint.build_network(config, len(CLASSES))
    with torch.no_grad():
        network.head.weight *= 30  # so that faces differ
    about = checkpoint.About.of_run(config, CLASSES, framing).to_dict()
    checkpoint.save(path, {"model": network.state_dict(), "about": about})
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("run") / "best.pt")


@pytest.fixture(scope="module")
def predictor(weights):
    return cfmrfn.Predictor(weights, "cpu")


@pytest.fixture(scope="module")
def crops(faces):
    return sorted((faces / "Image" / "aligned").iterdir())


def same(one, other, **tolerance):
    assert one.box == other.box and one.score == other.score
    assert one.probabilities == pytest.approx(other.probabilities, **tolerance)


def test_photograph_in_three_lines(weights, tmp_path, no_network):
    Image.fromarray(data.astronaut()).save(tmp_path / "photo.png")
    predictor = cfmrfn.Predictor(str(weights))
    (face,) = predictor(tmp_path / "photo.png")
    assert tuple(face.probabilities) == CLASSES
    assert sum(face.probabilities.values()) == pytest.approx(1)
    assert face.expression == max(face.probabilities, key=face.probabilities.get)
    assert face.box == pytest.approx((177, 60, 269, 190), abs=30)
    assert face.score > 0.99
    assert face.landmarks is None


def test_kinds_of_pictures_give_the_same(predictor, tmp_path):
    pixels = data.astronaut()
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    tensor = torch.from_numpy(pixels).movedim(2, 0)
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    kinds = [
        *(str(path), path, Image.fromarray(pixels), pixels, pixels / 255, opaque),
        *((pixels.astype(np.float32) / 255), pixels.astype(np.uint16) * 257),
        *(tensor, tensor / 255, tensor.double() / 255),
    ]
    answers = predictor(kinds)
    assert len(answers) == len(kinds)
    for (face,) in answers:
        same(face, answers[0][0], abs=1e-5)
    (rounded,) = predictor(tensor.bfloat16() / 255)
    assert rounded.expression == answers[0][0].expression


def test_kinds_of_grey_pictures_give_the_same(predictor):
    grey = np.array(Image.fromarray(data.astronaut()).convert("L"))
    tensor = torch.from_numpy(grey)
    for picture in (Image.fromarray(grey), grey, grey[..., None], tensor, tensor[None]):
        (face,) = predictor(picture)
        same(face, predictor(np.dstack([grey] * 3))[0], abs=1e-6)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "YCbCr"])
def test_modes_of_pil_images(predictor, mode):
    (face,) = predictor(Image.fromarray(data.astronaut()).convert(mode))
    assert face.box == pytest.approx((177, 60, 269, 190), abs=30)


def test_boxes_are_in_pixels_of_the_picture_as_a_viewer_shows_it(predictor, tmp_path):
    exif = Image.Exif()
    exif[Tag.Orientation] = 6
    upright = Image.fromarray(data.astronaut())
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    (face,) = predictor(tmp_path / "turned.jpg")
    assert face.box == pytest.approx(predictor(upright)[0].box, abs=3)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("nowhere.jpg", "^cannot read image nowhere.jpg: missing$"),
        (5, "a picture must be a path, .*; got int"),
        (None, "a picture must be a path, .*; got NoneType"),
        (np.zeros((3, 0, 3), np.uint8), r"an array must be .*\(3, 0, 3\)"),
        (np.zeros((4, 5, 2), np.uint8), r"an array must be .*\(4, 5, 2\)"),
        (np.zeros(7, np.uint8), r"an array must be .*\(7,\)"),
        (torch.zeros(2, 3, 64, 64), "an array must be"),
        (np.zeros((8, 8), np.int64), "pixels must be uint8, uint16 or floats, got int64"),
        (np.full((8, 8), 7.0), "floats must be 0 to 1, got 7 to 7"),
        (np.full((8, 8), np.nan), "floats must be 0 to 1, got nan to nan"),
    ],
)
def test_wrong_pictures(predictor, picture, message):
    with pytest.raises(DataError, match=message):
        predictor(picture)
    (error,) = predictor.stream([picture])
    assert isinstance(error, DataError)


def test_an_opened_image_that_turns_out_damaged(predictor, tmp_path):
    ground((64, 64)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:500])
    message = "^cannot read the image: image file is truncated"
    with Image.open(tmp_path / "cut.png") as picture, pytest.raises(DataError, match=message):
        predictor(picture)


def test_crops_are_taken_whole_as_evaluation_takes_them(weights, predictor, crops):
    network, about = checkpoint.load_network(weights)
    transform = eval_transform(about.image_size, mean=about.mean, std=about.std)
    for path, answer in zip(crops[:6], predictor(crops[:6]), strict=True):
        (face,) = answer
        assert face.box == (0, 0, 64, 64)
        assert face.score is None
        with torch.inference_mode(), Image.open(path) as image:
            expected = network(transform(image)[None]).softmax(1)[0]
        assert [*face.probabilities.values()] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_network_of_bgr_sees_bgr(tmp_path, crops):
    path = save_checkpoint(tmp_path / "best.pt", None, "--color", "BGR")
    network, about = checkpoint.load_network(path)
    transform = eval_transform(about.image_size, mean=about.mean, std=about.std)
    with Image.open(crops[0]) as image:
        swapped = Image.merge("RGB", image.split()[::-1])
    with torch.inference_mode():
        expected = network(transform(swapped)[None]).softmax(1)[0]
    (face,) = cfmrfn.Predictor(path)(crops[0])
    assert [*face.probabilities.values()] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("faces", "size", "whole"),
    [
        ("auto", (256, 256), True),
        ("auto", (48, 48), True),
        ("auto", (200, 240), True),
        ("auto", (257, 257), False),
        ("auto", (100, 240), False),
        ("whole", (4000, 10), True),
        ("detect", (48, 48), False),
    ],
)
def test_which_pictures_are_taken_whole(weights, faces, size, whole):
    assert cfmrfn.Predictor(weights, faces=faces).takes_whole(size) is whole


def test_whole_photographs(weights):
    (face,) = cfmrfn.Predictor(weights, faces="whole")(ground((300, 200)))
    assert face.box == (0, 0, 300, 200) and face.score is None


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("faces", "size"), [("whole", (1001, 800)), ("auto", (255, 210))])
def test_large_crops_are_decoded_at_less_as_evaluation_does(
    weights, tmp_path, faces, size, orientation
):
    path = str(tmp_path / "large.jpg")
    exif = Image.Exif()
    exif[Tag.Orientation] = orientation
    ground(size).save(path, exif=exif)
    (face,) = cfmrfn.Predictor(weights, faces=faces)(path)
    assert face.box == (0, 0, *(size if orientation == 1 else size[::-1]))
    network, about = checkpoint.load_network(weights)
    transform = eval_transform(about.image_size, mean=about.mean, std=about.std)
    image = read_image(Sample(path, 0), about.image_size)
    assert max(image.size) <= (max(size) + 1) // 2
    with torch.inference_mode():
        expected = network(transform(image)[None]).softmax(1)[0]
    assert [*face.probabilities.values()] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (300, 2), (640, 400)])
def test_pictures_without_faces(weights, size):
    predictor = cfmrfn.Predictor(weights, faces="detect")
    assert predictor(ground(size)) == []


def test_several_faces_are_each_what_they_are_alone(predictor):
    shown = scene(3)
    together = predictor(shown.image)
    assert len(together) == 3
    assert [face.score for face in together] == sorted((f.score for f in together), reverse=True)
    pixels = np.asarray(shown.image)
    for face, found in zip(together, predictor.find(pixels), strict=True):
        ((alone,),) = predictor.classify([predictor.prepare(pixels, [found])])
        same(face, alone, abs=1e-5)


def test_known_faces_are_not_looked_for(weights, monkeypatch):
    predictor = cfmrfn.Predictor(weights)
    found = predictor.find(data.astronaut())
    monkeypatch.setattr(predictor, "find", None)
    prepared = predictor.prepare(data.astronaut(), found)
    assert prepared.images.shape == (1, 3, 64, 64)
    (empty,) = predictor.classify([predictor.prepare(data.astronaut(), [])])
    assert empty == []


def test_framing_comes_from_the_checkpoint(weights, tmp_path):
    tight = tuple((0.5 + 1.4 * (x - 0.5), 0.5 + 1.4 * (y - 0.6)) for x, y in FRAMING)
    of_tight_crops = save_checkpoint(tmp_path / "best.pt", tight)
    assert cfmrfn.Predictor(weights).framing == FRAMING
    assert cfmrfn.Predictor(of_tight_crops).framing == tight
    assert cfmrfn.Predictor(of_tight_crops, framing=FRAMING).framing == FRAMING
    sides = []
    for path in (weights, of_tight_crops):
        prepared = cfmrfn.Predictor(path).prepare(data.astronaut())
        sides.append(np.linalg.norm(prepared.to_picture[0][:, 0]))
    assert sides[0] / sides[1] == pytest.approx(1.4)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_streams_keep_the_order_and_errors_end_nothing(predictor, crops, batch_size, workers):
    pictures = [*crops[:5], "nowhere.jpg", scene(1).image, ground((300, 99)), crops[5]]
    found = list(predictor.stream(pictures, batch_size, workers))
    assert [len(each) if isinstance(each, list) else None for each in found] == [
        *([1] * 5),
        *(None, 3, 0, 1),
    ]
    assert str(found[5]) == "cannot read image nowhere.jpg: missing"
    for picture, each in zip(pictures, found, strict=True):
        if isinstance(each, list):
            for face, alone in zip(each, predictor(picture), strict=True):
                same(face, alone, abs=1e-5)


def test_results_repeat(predictor):
    pictures = [scene(seed).image for seed in range(3)]
    first, second = ([*predictor.stream(pictures, 4, 3)] for _ in range(2))
    assert first == second


def test_the_network_gets_at_most_a_batch_of_faces(weights, monkeypatch):
    predictor = cfmrfn.Predictor(weights)
    batches = []
    classifier = predictor.classifier

    def note(images):
        batches.append(len(images))
        return classifier(images)

    monkeypatch.setattr(predictor, "classifier", note)
    list(predictor.stream([scene(seed).image for seed in range(4)], 2))
    assert sum(batches) == 12
    assert max(batches) == 2


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("cfmrfn")]


def test_pictures_are_taken_as_they_are_needed(predictor, crops):
    taken = itertools.count()
    number = 0

    def pictures():
        nonlocal number
        for path in itertools.cycle(crops):  # without end
            number = next(taken)
            yield path

    with closing(predictor.stream(pictures(), 4, 2)) as results:
        for _ in range(10):
            next(results)
        assert len(threads()) == 2
        assert number < 10 + 2 * (4 + 2 * 2)
    assert not threads()


def test_streams_that_are_left_end_their_threads(predictor, crops):
    results = predictor.stream(crops, 2, 3)
    next(results)
    del results
    gc.collect()
    assert not threads()
    with pytest.raises(DataError):
        predictor([crops[0], "nowhere.jpg", *crops[1:]])
    gc.collect()
    assert not threads()


def test_one_image_in_several_places(predictor, crops, monkeypatch):
    image = Image.open(crops[0])
    load, alone, loading = image.load, predictor(crops[0]), threading.Lock()

    def load_alone():
        assert loading.acquire(blocking=False)
        time.sleep(0.02)  # that other threads come, too
        try:
            return load()
        finally:
            loading.release()

    monkeypatch.setattr(image, "load", load_alone)
    for faces in predictor.stream([image] * 6, workers=3):
        same(faces[0], alone[0], abs=1e-5)


def test_predictors_go_to_other_processes(weights, predictor):
    for given in (predictor, cfmrfn.Predictor(weights, "cpu", "detect", min_size=60)):
        (face,) = given(data.astronaut())
        (other,) = pickle.loads(pickle.dumps(given))(data.astronaut())
        same(face, other, abs=1e-5)


def test_errors_of_the_callers_own_pictures_come_through(predictor, crops):
    def pictures():
        yield crops[0]
        raise RuntimeError("camera lost")

    with pytest.raises(RuntimeError, match="camera lost"):
        list(predictor.stream(pictures()))
    assert not threads()


def test_no_pictures(predictor):
    assert predictor([]) == []
    assert list(predictor.stream([])) == []


def test_faces_are_values(predictor):
    picture = data.astronaut()
    (face,), (again,) = predictor(picture), predictor(picture)
    assert face == again
    assert len({face, again}) == 1
    assert face != dataclasses.replace(face, score=0.5)


def test_landmarks_are_in_pixels_of_the_picture(weights, monkeypatch):
    predictor = cfmrfn.Predictor(weights)
    classifier = predictor.classifier
    corners = torch.tensor([[0.0, 0.0], [64.0, 64.0]])

    def with_landmarks(images):
        return classifier(images)._replace(landmarks=corners.expand(len(images), 2, 2))

    monkeypatch.setattr(predictor, "classifier", with_landmarks)
    (crop,) = predictor(Image.fromarray(data.astronaut()).resize((128, 128)))
    np.testing.assert_allclose(crop.landmarks, [[0, 0], [128, 128]])
    for face in predictor(scene(2).image):
        left, top, right, bottom = face.box
        (x, y), (x2, y2) = face.landmarks
        assert x < left and y < top and x2 > right and y2 > bottom - 5
        assert x2 - x < 3 * (right - left)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"faces": "all"}, "faces must be whole, detect or auto; got 'all'"),
        ({"faces": "detect", "min_size": 3}, "min_size must be 12"),
        ({"faces": "detect", "min_score": 2}, "min_score must be 0 to 1"),
        ({"min_size": "a"}, "min_size must be 12 pixels or more, got 'a'"),
        ({"min_score": None}, "min_score must be 0 to 1, got None"),
        ({"device": None}, "device must be auto, cpu, cuda, cuda:N or mps, got None"),
        ({"framing": "x"}, "framing must be None, or five points .*, got 'x'"),
        ({"framing": [(0, 0)] * 5}, "framing must be None, or five points that are not all the"),
        ({"framing": [(0, 0)] * 4 + [(1, math.nan)]}, "framing must be None, or five points"),
    ],
)
def test_wrong_options(weights, options, message):
    with pytest.raises(ConfigError, match=message):
        cfmrfn.Predictor(weights, **options)


def test_wrong_options_of_streams(predictor):
    with pytest.raises(ConfigError, match="batch_size must be 1 or more, got 0"):
        predictor.stream([], 0)
    with pytest.raises(ConfigError, match="workers must be 0 or more, got -1"):
        predictor.stream([], workers=-1)
    with pytest.raises(ConfigError, match="workers must be 0 or more, got 1.5"):
        predictor.stream([], workers=1.5)
    with pytest.raises(ConfigError, match=r"must be a list of pictures, got the one of 'a\.jpg'"):
        predictor.stream("a.jpg")
    pixels = np.zeros((8, 9, 3), np.uint8)
    for picture, what in (
        (pixels, r"ndarray of \(8, 9, 3\)"),
        (torch.from_numpy(pixels).movedim(2, 0), r"Tensor of \(3, 8, 9\)"),
        (Image.fromarray(pixels), "Image"),
        (b"\xff\xd8", "bytes"),
        (None, "NoneType"),
    ):
        with pytest.raises(ConfigError, match=f"must be a list of pictures, got one {what}"):
            predictor.stream(picture)


def test_pictures_of_one_array(predictor):
    pixels = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), np.uint8)
    assert list(predictor.stream(pixels, np.int64(2))) == predictor(list(pixels))


def test_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        cfmrfn.Predictor(tmp_path / "best.pt")
    with pytest.raises(ConfigError, match="a checkpoint must be given by its path, got 3"):
        cfmrfn.Predictor(3)
