"""Pictures as PNG: of any names and sizes, and the same whatever the user has set."""

import itertools

import numpy as np
import pytest
from matplotlib import rcParams, style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from cfmrfn.figures import pictures
from cfmrfn.figures.pictures import (
    FaceMaps,
    plot_batch,
    plot_confusion,
    plot_curves,
    plot_faces,
    plot_heads,
    plot_reliability,
    plot_tsne,
)
from cfmrfn.metrics import Calibration, Report

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
    face = FaceMaps((names[0],), np.zeros((8, 8, 3)), None, maps, evidence)
    plot_faces(tmp_path / "faces.png", [face], names[0])
    plot_heads(tmp_path / "heads.png", face, names[0], None, None)
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_landmarks_have_a_column_of_their_own(tmp_path):
    shown = {}
    for name, landmarks in (("without", None), ("with", np.full((68, 2), 4.0))):
        face = FaceMaps(("a face",), np.zeros((8, 8, 3)), landmarks, {}, {})
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


def a_face(*title):
    maps = {"landmark": np.linspace(0, 1, 32).reshape(8, 2, 2)}
    evidence = {"landmark": np.ones((2, 2))}
    return FaceMaps(title, np.zeros((8, 8, 3)), np.full((68, 2), 4.0), maps, evidence)


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


@pytest.fixture
def figures(monkeypatch):
    """Figures in place of files."""
    drawn = []

    def keep(figure, path):
        figure.draw(FigureCanvasAgg(figure).get_renderer())
        drawn.append(figure)

    monkeypatch.setattr(pictures, "_save", keep)
    return drawn


def test_lines_at_the_edge_of_their_axes_are_seen(figures):
    row = {"lr": 1e-4, "train_loss": 1.0, "train_accuracy": 1.0}
    plot_curves(None, [row | {"epoch": epoch} for epoch in (1, 2)])
    _, accuracy, rate = figures[0].axes
    assert not any(line.get_clip_on() for line in (*accuracy.lines, *rate.lines))
    assert rate.get_ylim() == pytest.approx((0, 1.1e-4))


def test_long_names_that_differ_look_different():
    assert pictures._shortened(["11 and so on 22", "33 and so on 44", "5"], 7) == [
        *("11 … 22", "33 … 44", "5")
    ]
    alike = [f"11 and so {middle} on 22" for middle in ("two", "three", "three")]
    assert pictures._shortened([*alike, "two", "two"], 7) == [
        *("1. 11 … 22", "2. 11 … 22", "2. 11 … 22", "two", "two")
    ]


def test_classes_of_a_tsne_are_all_named_and_seen_on_white(figures):
    names = ("_a", "b", "c" * 99, *"defg")
    plot_tsne(None, np.eye(7)[:, :2], np.arange(7), names, "title")
    (legend,), (axes,) = figures[0].legends, figures[0].axes
    assert [text.get_text()[:2] for text in legend.get_texts()] == ["_a", "b", "cc", *"defg"]
    for points in axes.collections:
        assert (points.get_edgecolor()[:, :3] < 0.5).all()
    # the names take no room from the points
    assert axes.get_window_extent().width > 4.5 * figures[0].dpi


def test_each_face_is_shown_with_its_file_and_its_classes(figures):
    words = ("photograph.jpg, face 1 of 2", "c" * 99, f"predicted {'d' * 99} 0.81")
    plot_faces(None, [a_face(*words), a_face(words[0], "joy", "predicted joy 0.99")], "title")
    plot_heads(None, a_face(*words), "title", None)
    faces, heads = figures
    first, second = (faces.axes[index] for index in (0, 4))
    assert second.get_ylabel() == "photograph.j…, face 1 of 2\njoy\npredicted joy 0.99"
    assert first.yaxis.label.get_window_extent().height < first.get_window_extent().height
    assert heads.get_suptitle() == f"title\n{', '.join(words)}"
