"""Pictures as PNG: of any names and sizes, and the same whatever the user has set."""

import itertools

import numpy as np
import pytest
from matplotlib import rcParams, style
from PIL import Image

from cfmrfn import pictures
from cfmrfn.metrics import Calibration, Report
from cfmrfn.pictures import (
    FaceMaps,
    plot_batch,
    plot_confusion,
    plot_curves,
    plot_faces,
    plot_heads,
    plot_reliability,
    plot_tsne,
)

NAMES = ("anger", "fear", "joy")


def test_pictures_are_written(tmp_path):
    report = Report(NAMES, np.array([[5, 1, 0], [0, 4, 0], [0, 0, 0]]), loss=0.5)
    plot_confusion(tmp_path / "confusion.png", report, "drawn faces")
    row = {"epoch": 1, "lr": 0.1, "train_loss": 1.0, "train_accuracy": 0.5}
    plot_curves(tmp_path / "curves.png", [row | {"test_loss": 1.1, "test_accuracy": 0.4}])
    for name in ("confusion.png", "curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_pictures_take_any_names(tmp_path):
    """Bytes that are no UTF-8, and what would be a formula with an error in it."""
    names = [f"{number} $_{{$ \udce9" for number in range(3)]
    report = Report(tuple(names), np.eye(3, dtype=int), loss=0.5)
    plot_confusion(tmp_path / "confusion.png", report, names[0])
    calibration = Calibration.of(np.eye(3), np.arange(3))
    plot_reliability(tmp_path / "reliability.png", calibration, names[0])
    plot_tsne(tmp_path / "tsne.png", np.eye(3)[:, :2], np.arange(3), names, names[0])
    maps = {"landmark": np.ones((8, 2, 2))}
    evidence = {"landmark": np.ones((2, 2))}
    face = FaceMaps(names[0], np.zeros((8, 8, 3)), None, maps, evidence)
    plot_faces(tmp_path / "faces.png", [face], names[0])
    plot_heads(tmp_path / "heads.png", face, names[0], None, None)
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_landmarks_have_a_column_of_their_own(tmp_path):
    shown = {}
    for name, landmarks in (("without", None), ("with", np.full((68, 2), 4.0))):
        face = FaceMaps("a face", np.zeros((8, 8, 3)), landmarks, {}, {})
        plot_faces(tmp_path / "faces.png", [face], "title")
        with Image.open(tmp_path / "faces.png") as picture:
            shown[name] = np.asarray(picture.convert("RGB"))
    assert shown["with"].shape[1] > 1.5 * shown["without"].shape[1]
    dots = {name: (pixels == (0, 0xE0, 0xFF)).all(2).any() for name, pixels in shown.items()}
    assert dots == {"without": False, "with": True}


def test_a_picture_is_as_wide_as_its_title(tmp_path):
    report = Report(("one", "two"), np.eye(2, dtype=np.int64), 0.0)
    widths = []
    for title in ("short", "x" * 200):
        plot_confusion(tmp_path / "confusion.png", report, title)
        with Image.open(tmp_path / "confusion.png") as picture:
            widths.append(picture.width)
            border = np.asarray(picture.convert("L"))[:, [0, -1]]
        assert (border == 255).all()  # nothing is cut off
    assert widths[1] > 2 * widths[0]


LONG = "a name that is too long to be written out in it"


@pytest.mark.parametrize(
    ("classes", "name"),
    # from 31 classes on the cells hold no numbers
    [*itertools.product([2, 8, 60], ["c", "happiness", LONG]), (30, LONG)],
)
def test_nothing_of_a_confusion_matrix_is_cut_off(tmp_path, classes, name):
    matrix = np.random.default_rng(0).integers(0, 900, (classes, classes))
    matrix[1] = 0  # a class without images
    names = tuple(f"{name} {index}" for index in range(classes))
    plot_confusion(tmp_path / "confusion.png", Report(names, matrix, 0.5), "run/best.pt on data")
    assert_has_a_white_border(tmp_path / "confusion.png")


@pytest.mark.parametrize("images", [1, 100_000])
def test_nothing_of_a_reliability_diagram_is_cut_off(tmp_path, images):
    rng = np.random.default_rng(0)
    calibration = Calibration.of(rng.dirichlet(np.ones(5), images), rng.integers(0, 5, images))
    plot_reliability(tmp_path / "reliability.png", calibration, "run/best.pt on data" * 9)
    assert_has_a_white_border(tmp_path / "reliability.png")


def assert_has_a_white_border(path):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert (pixels[:, [0, -1]] == 255).all()
    assert (pixels[[0, -1]] == 255).all()


def a_face(name="a face"):
    maps = {"landmark": np.linspace(0, 1, 32).reshape(8, 2, 2)}
    evidence = {"landmark": np.ones((2, 2))}
    return FaceMaps(name, np.zeros((8, 8, 3)), np.full((68, 2), 4.0), maps, evidence)


def draw_each(folder, name="joy"):
    """Every picture of the module, with a name in each of its texts."""
    face, names = a_face(name), (name, f"{name} 2", f"{name} 3")
    row = {"epoch": 1, "lr": 0.1, "train_loss": 1.0, "train_accuracy": 0.5}
    points, labels = np.eye(3)[:, :2], np.arange(3)
    arguments = {
        "batch": (np.zeros((3, 64, 64, 3), np.uint8), names),
        "confusion": (Report(names, np.eye(3, dtype=int), 0.5), name),
        "curves": ([row],),
        "faces": ([face], name),
        "heads": (face, name, None),
        "reliability": (Calibration.of(np.eye(3), labels), name),
        "tsne": (points, labels, names, name),
    }
    assert {f"plot_{each}" for each in arguments} == {n for n in dir(pictures) if "plot_" in n}
    for each, given in arguments.items():
        getattr(pictures, f"plot_{each}")(folder / f"{each}.png", *given)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pictures_are_the_same_whatever_the_settings_of_matplotlib(tmp_path):
    for folder in ("usual", "changed"):
        (tmp_path / folder).mkdir()
    usual = draw_each(tmp_path / "usual")
    changed = {"text.usetex": True, "font.family": "monospace", "savefig.bbox": "tight"}
    with style.context(["dark_background", changed]):
        before = dict(rcParams)
        assert draw_each(tmp_path / "changed") == usual
        assert dict(rcParams) == before


def test_names_in_any_writing(tmp_path):
    """As warnings are errors, none is without a font, on whatever machine."""
    assert len(draw_each(tmp_path, "怖い злость ดีใจ \U0010ffff")) == 7


def test_captions_of_a_batch_differ_by_accents_and_end_with_their_images(tmp_path):
    images = np.zeros((2, 40, 64, 3), np.uint8)
    path, drawn = tmp_path / "batch.png", set()
    for caption in ("u", "ü", "é", "a caption that is longer than its image", ""):
        plot_batch(path, images, (caption, ""))
        with Image.open(path) as picture:
            pixels = np.asarray(picture)[40:]
        drawn.add(pixels.tobytes())
        assert (pixels[:, 64:] == 255).all()
    assert len(drawn) == 5
