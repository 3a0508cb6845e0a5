"""Drawn faces: whole or absent, the same for any number of workers, landmarks on the features."""

import json
import os
import shutil
import statistics

import numpy as np
import pytest
from PIL import Image

from cfmrfn.data import EXPRESSIONS, DataError, open_set
from cfmrfn.data.synthetic import contact_sheet, draw_face, write_faces, writer
from cfmrfn.data.synthetic.actions import Actions, draw_actions
from cfmrfn.data.synthetic.canvas import Canvas
from cfmrfn.data.synthetic.face import Face, Pose, draw_identity

SMALL = {"train": 14, "test": 7, "size": 32, "progress": False}


def contents(root):
    """Relative path -> bytes of every file under ``root``."""
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def geometry(expression, count=40):
    """Landmarks (count, 68, 3) in head space, of different people with one expression."""
    faces = []
    for seed in range(count):
        rng = np.random.default_rng((7, seed))
        identity = draw_identity(rng)
        faces.append(Face(identity, draw_actions(rng, expression)).landmarks())
    return np.stack(faces)


def measures(expression):
    """Medians over people of what tells expressions apart; y points down."""
    points = geometry(expression)

    def distance(a, b):
        return statistics.median(np.linalg.norm(points[:, a] - points[:, b], axis=1))

    def height(upper, lower):
        return statistics.median(
            points[:, lower, 1].mean(axis=1) - points[:, upper, 1].mean(axis=1)
        )

    return {
        "eye opening": height([37, 38, 43, 44], [40, 41, 46, 47]),
        "inner brow": height([21, 22], [39, 42]),
        "outer brow": height([17, 26], [36, 45]),
        "mouth opening": height([61, 62, 63], [65, 66, 67]),
        "mouth width": distance(48, 54),
        "corners raised": height([48, 54], [51, 57]),
    }


@pytest.fixture(scope="module")
def measured():
    return {expression: measures(expression) for expression in EXPRESSIONS}


def test_the_set_is_in_rafdbs_own_layout_and_read_by_its_loader(tmp_path):
    root = write_faces(tmp_path / "faces", workers=1, **SMALL)
    lines = (root / "EmoLabel/list_patition_label.txt").read_text().splitlines()
    assert len(lines) == 21
    assert lines[0].split()[0] == "train_00001.jpg"
    with Image.open(root / "Image/aligned/train_00001_aligned.jpg") as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (32, 32), "RGB")
    for layout, name in (("auto", "drawn faces"), ("rafdb", "RAF-DB")):
        opened = open_set(root, layout)
        assert (opened.name, opened.class_names) == (name, EXPRESSIONS[:7])
        assert opened.counts("train") == (2,) * 7
        assert opened.counts("test") == (1,) * 7


def test_the_same_seed_draws_the_same_files_with_any_number_of_workers(tmp_path):
    alone = contents(write_faces(tmp_path / "a", workers=1, **SMALL))
    assert alone == contents(write_faces(tmp_path / "b", workers=3, **SMALL))
    other = contents(write_faces(tmp_path / "c", workers=1, seed=1, **SMALL))
    image = "Image/aligned/train_00001_aligned.jpg"
    assert alone[image] != other[image]


def test_eight_classes_add_contempt_and_uneven_counts_are_spread(tmp_path):
    root = write_faces(tmp_path / "faces", classes=8, train=19, test=8, size=32, progress=False)
    opened = open_set(root)
    assert opened.class_names == EXPRESSIONS
    assert opened.counts("train") == (3, 3, 3, 2, 2, 2, 2, 2)
    assert tuple(opened.published["train"].values()) == opened.counts("train")


def test_a_finished_set_is_reused_untouched(tmp_path, monkeypatch):
    root = write_faces(tmp_path / "faces", workers=1, **SMALL)
    monkeypatch.setattr(writer, "draw_face", lambda *_: pytest.fail("drew again"))
    assert write_faces(root, workers=1, **SMALL) == root


def test_a_set_drawn_with_other_arguments_is_refused(tmp_path):
    root = write_faces(tmp_path / "faces", workers=1, **SMALL)
    with pytest.raises(DataError, match=r"other drawn faces \(seed is 0, wanted 3\); remove it"):
        write_faces(root, seed=3, workers=1, **SMALL)
    description = json.loads((root / "faces.json").read_text())
    (root / "faces.json").write_text(json.dumps({**description, "version": 0}))
    with pytest.raises(DataError, match=r"version is 0, wanted \d"):
        write_faces(root, workers=1, **SMALL)


def test_a_folder_with_something_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="exists and holds no drawn faces"):
        write_faces(tmp_path, workers=1, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_interrupted_set_is_absent(tmp_path, monkeypatch):
    drawn = []

    def stop_in_the_middle(*args):
        drawn.append(args)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return draw_face(*args)

    monkeypatch.setattr(writer, "draw_face", stop_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        write_faces(tmp_path / "faces", workers=1, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_of_two_processes_that_draw_one_set_the_second_finds_it(tmp_path, monkeypatch):
    root, write = tmp_path / "faces", writer._write

    def both(unfinished, *args):
        write(unfinished, *args)
        shutil.copytree(unfinished, root)

    monkeypatch.setattr(writer, "_write", both)
    assert write_faces(root, workers=1, **SMALL) == root
    assert list(tmp_path.iterdir()) == [root]
    assert len(open_set(root).splits["train"]) == SMALL["train"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "faces").mkdir()
    root = write_faces(tmp_path / "faces", workers=1, **SMALL)
    assert (root / "faces.json").is_file()
    assert os.stat(root).st_mode & 0o777 == 0o755


def test_a_damaged_description_is_named(tmp_path):
    root = write_faces(tmp_path / "faces", workers=1, **SMALL)
    (root / "faces.json").write_text("{}")
    with pytest.raises(DataError, match=r"faces.json does not describe drawn faces"):
        open_set(root)


def test_landmarks_lie_beside_the_images_in_label_file_order(tmp_path):
    root = write_faces(tmp_path / "faces", workers=2, **SMALL)
    with np.load(root / "landmarks.npz") as file:
        names, points = file["names"], file["points"]
    listed = (root / "EmoLabel/list_patition_label.txt").read_text().split()[::2]
    assert names.tolist() == listed
    assert points.shape == (21, 68, 2)
    assert points[:, 30].min() > 0
    assert points[:, 30].max() < 32


def test_landmarks_are_in_ibug_order():
    points = Face(draw_identity(np.random.default_rng(0)), Actions()).landmarks()
    assert points.shape == (68, 3)
    x, y = points[:, 0], points[:, 1]
    assert (np.diff(x[:17]) > 0).all()  # jaw from left to right, the chin lowest
    assert y.argmax() == 8
    assert (np.diff(x[17:27]) > 0).all()  # brows from left to right, above the eyes
    assert y[17:27].max() < y[36:48].min()
    assert (np.diff(y[27:31]) > 0).all()  # down the bridge
    assert (np.diff(x[31:36]) > 0).all()
    for corners in ((36, 39), (42, 45), (48, 54), (60, 64)):
        assert x[corners[0]] < x[corners[1]]
    for upper, lower in ((37, 41), (38, 40), (43, 47), (44, 46), (51, 57), (50, 58), (52, 56)):
        assert y[upper] < y[lower]
        assert x[upper] == pytest.approx(x[lower], abs=0.06)
    mirrored = {36: 45, 37: 44, 39: 42, 48: 54, 0: 16, 17: 26, 31: 35, 61: 63}
    for left, right in mirrored.items():
        assert x[left] == pytest.approx(-x[right], abs=1e-5)
        assert y[left] == pytest.approx(y[right], abs=1e-5)


def test_dark_pupils_lie_between_the_landmarks_of_open_eyes():
    darker = 0
    for seed in range(20):
        face = draw_face("surprise", 128, (0, seed))
        grey = np.asarray(face.image.convert("L"), float)
        for eye in (range(36, 42), range(42, 48)):
            points = face.landmarks[list(eye)]
            x, y = points.mean(axis=0).round().astype(int)
            around = grey[y - 8 : y + 9, x - 12 : x + 13]
            darker += grey[y - 1 : y + 2, x - 1 : x + 2].mean() < around.mean()
    assert darker >= 34


@pytest.mark.parametrize(
    "measure, strongest, weakest",
    [
        ("eye opening", ("surprise", "fear"), ("disgust", "happiness", "sadness")),
        ("mouth opening", ("surprise",), ("neutral", "anger", "contempt")),
        ("inner brow", ("surprise", "sadness"), ("anger", "disgust")),
        ("outer brow", ("surprise",), ("anger",)),
        ("mouth width", ("happiness", "fear"), ("surprise", "neutral", "sadness")),
        ("corners raised", ("happiness",), ("sadness",)),
    ],
)
def test_action_units_move_what_they_are_named_after(measured, measure, strongest, weakest):
    low = max(measured[expression][measure] for expression in weakest)
    high = min(measured[expression][measure] for expression in strongest)
    assert high > low + 0.015


def test_contempt_is_one_sided_and_happiness_is_not():
    def lopsided(expression):
        points = geometry(expression)
        return np.abs(points[:, 48, 1] - points[:, 54, 1]).mean()

    assert lopsided("contempt") > 0.08
    assert lopsided("happiness") < 0.03


def test_pose_turns_the_head():
    face = Face(draw_identity(np.random.default_rng(0)), Actions())
    straight, turned = (
        Pose(yaw, 0.0, 0.0, 50.0, (64.0, 64.0)).project(face.landmarks()) for yaw in (0.0, 0.4)
    )
    nose, left, right = 30, 36, 45

    def balance(points):
        return (points[right, 0] - points[nose, 0]) - (points[nose, 0] - points[left, 0])

    assert balance(straight) == pytest.approx(0, abs=1e-3)
    assert balance(turned) < -5


def test_people_and_light_vary_within_an_expression():
    faces = [draw_face("neutral", 64, (0, seed)) for seed in range(12)]
    means = [np.asarray(face.image, float).mean() for face in faces]
    assert np.std(means) > 10
    widths = [np.ptp(face.landmarks[:, 0]) for face in faces]
    assert np.std(widths) > 1


def test_unknown_arguments_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"classes must be 7 or 8 \(with contempt\), got 6"):
        write_faces(tmp_path / "faces", classes=6)
    with pytest.raises(DataError, match="classes must be 7 or 8"):
        contact_sheet(classes=9)


def test_a_filled_polygon_covers_what_it_should():
    canvas = Canvas(16)
    square = np.array([(4, 4), (12, 4), (12, 12), (4, 12)], np.float32)
    mask = canvas.fill(square, (1, 0.5, 0))
    # 8 x 8, and half a subpixel more on each side, as Pillow draws edges
    assert canvas.pixels[..., 0].sum() == pytest.approx(8.25**2, rel=0.01)
    assert canvas.pixels[8, 8].tolist() == [1, 0.5, 0]
    assert canvas.pixels[2, 8].tolist() == [0, 0, 0]
    canvas.fill(square - 4, (0, 0, 1), within=mask)
    assert canvas.pixels[6, 6].tolist() == pytest.approx([0, 0, 1])
    assert canvas.pixels[2, 2].tolist() == [0, 0, 0]


@pytest.mark.parametrize("offset", [(40, 0), (0, -40), (-14, 14)])
def test_shapes_over_the_edge_are_cut(offset):
    canvas = Canvas(16)
    square = np.array([(0, 0), (16, 0), (16, 16), (0, 16)], np.float32)
    mask = canvas.fill(square + np.array(offset, np.float32), (1, 1, 1), blur=1)
    canvas.fill(square, (0, 0, 1), within=mask)
    assert np.isfinite(canvas.pixels).all()
    assert canvas.pixels.max() <= 1.001
