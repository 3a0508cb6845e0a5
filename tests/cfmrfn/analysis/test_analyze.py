"""The paper's figures of a checkpoint: what their maps hold, and the tool that draws them."""

import csv
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from cfmrfn import analyze, checkpoint, errors
from cfmrfn.analysis.embedding import Embedding, embed
from cfmrfn.analysis.explanation import explain_faces
from cfmrfn.classifier import OnnxClassifier
from cfmrfn.config import parse_config
from cfmrfn.data import Sample, open_set
from cfmrfn.figures import pictures
from cfmrfn.predictor import Predictor
from cfmrfn.process import command

pytestmark = pytest.mark.usefixtures("no_network", "one_thread")

CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")


@pytest.fixture
def save_checkpoint(options, tmp_path):
    """Write a network with random weights as a run does; the file."""

    def save_with(*more):
        config = parse_config([*options, *more])
        network = checkpoint.build_network(config, len(CLASSES))
        about = checkpoint.About.of_run(config, CLASSES).to_dict()
        path = tmp_path / "best.pt"
        checkpoint.save(path, {"model": network.state_dict(), "about": about})
        return path

    return save_with


def explain(path, faces):
    """What the network makes of the first two classes' first images."""
    network, about = checkpoint.load_network(path)
    samples = open_set(faces, "auto", CLASSES).splits["test"]
    chosen, left_out = analyze.faces_of_classes(samples, about, "error")
    assert not left_out
    return explain_faces(network, about, chosen[:2]), samples


@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_faces_are_shown_in_their_own_colours(save_checkpoint, faces, color):
    explained, samples = explain(save_checkpoint("--color", color), faces)
    first = next(sample for sample in samples if sample.label == 0)
    with Image.open(first.path) as image:
        expected = np.asarray(image.convert("RGB")) / 255  # 64 x 64, as the network sees it
    np.testing.assert_allclose(explained[0].face, expected, atol=1e-5)
    assert explained[0].name == os.path.basename(first.path)
    maps = analyze.maps_of(explained[0], CLASSES, 1, (2, 2), None)
    assert maps.title[:2] == (os.path.basename(first.path), CLASSES[0])
    assert maps.title[2].startswith("predicted ")
    assert maps.landmarks is None  # of random weights they mean nothing


@pytest.mark.parametrize("streams, drawn", [("both", {"landmark"}), ("expression", set())])
def test_pieces_of_channels_are_not_drawn_as_places(
    save_checkpoint, faces, tmp_path, streams, drawn, capsys
):
    path = save_checkpoint("--tokens", "poster_view", "--streams", streams)
    face = explain(path, faces)[0][0]
    assert set(face.attention) == set(face.evidence) == set(face.rollout) == drawn
    output = tmp_path / "figures"
    image = next((faces / "Image" / "aligned").glob("test_*"))
    analyze.main([str(path), str(image), "--output", str(output)])
    assert (output / "heads-1.png").exists() == bool(drawn)
    assert "no maps of the expression stream" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more",
    [[], ["--streams", "expression"], ["--streams", "landmark", "--attention", "global"]],
    ids=["both", "expression", "landmark"],
)
def test_maps_of_image_files(save_checkpoint, faces, tmp_path, more):
    images = sorted((faces / "Image" / "aligned").glob("test_*"))[:2]
    output = tmp_path / "figures"
    path = save_checkpoint(*more)
    analyze.main([str(path), *map(str, images), "--token", "1", "0", "--output", str(output)])
    names = {"analysis.html", "faces.png", "heads-1.png", "heads-2.png"}
    assert {file.name for file in output.iterdir()} == names


def run_tool(*args):
    """The status of the tool on the command line."""
    try:
        command.run(lambda: analyze.main([*map(str, args)]))
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture
def broken_set(faces, tmp_path):
    """The data set with its first test image of each of two classes unreadable; these files."""
    root = tmp_path / "set"
    shutil.copytree(faces, root)
    samples = open_set(root, "auto", CLASSES).splits["test"]
    first = list({sample.label: sample.path for sample in reversed(samples)}.values())
    broken = sorted(first)[:2]
    for path in broken:
        Path(path).write_text("no image")
    return root, broken


def test_a_bad_image_of_a_set_stops_or_is_named_and_skipped(
    save_checkpoint, broken_set, tmp_path, capsys
):
    pytest.importorskip("sklearn")
    root, broken = broken_set
    output = tmp_path / "figures"
    args = (save_checkpoint(), "--data", root, "--perplexity", 5, "--workers", 0)
    args = (*args, "--output", output)
    assert run_tool(*args) == 2
    error = capsys.readouterr().err
    assert f"cannot read image {broken[0]}" in error or f"cannot read image {broken[1]}" in error
    assert "--on-broken skip leaves such images out" in error
    assert not [*tmp_path.glob("figures"), *tmp_path.glob(".*")]

    assert run_tool(*args, "--on-broken", "skip") == 0
    printed = capsys.readouterr()
    for path in broken:
        assert printed.err.count(f"left out: cannot read image {path}") == 1
    assert "without a face: 2" in printed.out
    assert "faces: 7" in printed.out  # the next image of their classes is shown
    assert "t-SNE of 13 images" in printed.out
    with open(output / "tsne.csv", newline="") as file:
        assert not {row["image"] for row in csv.DictReader(file)} & set(broken)


def test_a_bad_image_file_stops_or_is_named_and_skipped(save_checkpoint, faces, tmp_path, capsys):
    good = next((faces / "Image" / "aligned").glob("test_*"))
    bad = tmp_path / os.fsdecode(b"b\xe9d.jpg")
    bad.write_text("no image")
    output = tmp_path / "figures"
    args = (save_checkpoint(), bad, good, "--output", output)
    assert run_tool(*args) == 2
    assert "--on-broken skip leaves such images out" in capsys.readouterr().err
    assert not output.exists()
    assert run_tool(*args, "--on-broken", "skip") == 0
    printed = capsys.readouterr()
    assert f"left out: cannot read image {tmp_path}/b\\xe9d.jpg" in printed.err
    assert "without a face: 1" in printed.out
    assert "faces: 1" in printed.out


def test_a_split_without_a_readable_image_has_no_tsne(
    save_checkpoint, broken_set, tmp_path, capsys
):
    root, _ = broken_set
    for sample in open_set(root, "auto", CLASSES).splits["test"]:
        Path(sample.path).write_text("no image")
    good = next((root / "Image" / "aligned").glob("train_*"))
    output = tmp_path / "figures"
    args = (save_checkpoint(), good, "--data", root, "--workers", 0, "--output", output)
    assert run_tool(*args, "--on-broken", "skip") == 2
    assert capsys.readouterr().err.endswith("error: no image of the split can be read\n")
    assert not output.exists()


def test_only_networks_of_pytorch_can_be_looked_into(
    save_checkpoint, tmp_path, monkeypatch, capsys
):
    file = SimpleNamespace(about=None)
    predictor = SimpleNamespace(about=None, classifier=OnnxClassifier(file))
    monkeypatch.setattr(analyze, "Predictor", lambda *_: predictor)
    assert run_tool(save_checkpoint(), "a.jpg", "--output", tmp_path / "figures") == 2
    assert "best.pt cannot be looked into; give a checkpoint" in capsys.readouterr().err


def test_where_every_image_is_bad_nothing_is_written(save_checkpoint, tmp_path, capsys):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    output = tmp_path / "figures"
    assert run_tool(save_checkpoint(), bad, "--on-broken", "skip", "--output", output) == 2
    assert "no image shows a face: cannot read image" in capsys.readouterr().err
    assert not output.exists()


@pytest.fixture
def photograph(tmp_path):
    """Two faces side by side, in a picture that is no crop."""
    data = pytest.importorskip("skimage.data")
    pytest.importorskip("cv2")
    pixels = data.astronaut()[:256, 64:384]
    path = tmp_path / "photo.png"
    Image.fromarray(np.concatenate([pixels, pixels[:, ::-1]], 1)).save(path)
    return path


def test_each_face_of_a_photograph_is_shown_as_predict_sees_it(
    save_checkpoint, photograph, tmp_path
):
    path = save_checkpoint()
    predictor = Predictor(path, "cpu")
    chosen, _ = analyze.faces_in_pictures(predictor, [str(photograph)], "error")
    assert [face.name for face in chosen] == [f"photo.png, face {n} of 2" for n in (1, 2)]
    explained = explain_faces(predictor.classifier.network, predictor.about, chosen)
    for face, predicted in zip(explained, predictor(photograph), strict=True):
        np.testing.assert_allclose(
            face.probabilities, list(predicted.probabilities.values()), atol=1e-5
        )
    output = tmp_path / "figures"
    assert run_tool(path, photograph, "--output", output) == 0
    assert (output / "heads-2.png").exists()
    output = tmp_path / "whole"
    assert run_tool(path, photograph, "--faces", "whole", "--output", output) == 0
    assert not (output / "heads-2.png").exists()


def test_a_photograph_without_a_face(save_checkpoint, photograph, tmp_path, capsys):
    empty = tmp_path / "empty.png"
    Image.new("RGB", (400, 300), "grey").save(empty)
    output = tmp_path / "figures"
    args = (save_checkpoint(), empty, photograph, "--output", output)
    assert run_tool(*args) == 2
    assert f"no face was found in {empty}; --faces whole" in capsys.readouterr().err
    assert run_tool(*args, "--on-broken", "skip") == 0
    printed = capsys.readouterr()
    assert f"left out: no face was found in {empty}" in printed.err
    assert "faces: 2" in printed.out


def test_more_faces_than_a_figure_holds(save_checkpoint, photograph, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(analyze, "MOST_FACES", 1)
    output = tmp_path / "figures"
    assert run_tool(save_checkpoint(), photograph, "--output", output) == 2
    assert "2 faces were found, and one figure holds 1" in capsys.readouterr().err


def test_a_set_of_more_classes_than_a_figure_holds(
    save_checkpoint, faces, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(analyze, "MOST_FACES", 3)
    output = tmp_path / "figures"
    assert run_tool(save_checkpoint(), "--data", faces, "--no-tsne", "--output", output) == 0
    printed = capsys.readouterr().out
    assert "faces of the first 3 of 7 classes are shown" in printed
    assert "faces: 3, in" in printed
    assert (output / "heads-3.png").exists() and not (output / "heads-4.png").exists()


def test_after_an_error_nothing_is_left(save_checkpoint, faces, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(analyze, "write_page", full)
    image = next((faces / "Image" / "aligned").glob("test_*"))
    assert run_tool(save_checkpoint(), image, "--output", tmp_path / "new" / "figures") == 2
    assert not (tmp_path / "new").exists()


def test_figures_of_a_data_set(save_checkpoint, faces, tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    titles, save = [], pictures._save

    def keep(figure, path):
        titles.append(figure.get_suptitle())
        # within the figure, at the size at which it is saved
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        extent = figure._suptitle.get_window_extent(renderer)
        assert 0 < extent.x0 < extent.x1 < figure.bbox.x1
        assert extent.y1 <= figure.bbox.y1
        save(figure, path)

    monkeypatch.setattr(pictures, "_save", keep)
    folder, output = tmp_path / "some where" / ("drawn-20261127-" * 15), tmp_path / "figures"
    folder.mkdir(parents=True)
    shutil.copy(save_checkpoint(), folder / "best.pt")
    args = (folder, "--data", faces, "--perplexity", 5, "--workers", 0)
    assert run_tool(*args, "--output", output) == 0

    # titles name the run and not where it lies
    assert len(titles) == 9
    for title in titles:
        assert title.startswith(f"{folder.name}/best.pt")
        assert "some where" not in title

    heads = {f"heads-{number}.png" for number in range(1, 8)}
    written = {file.name for file in output.iterdir()}
    assert written == {"analysis.html", "faces.png", "tsne.png", "tsne.csv", *heads}
    with open(output / "tsne.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    samples = open_set(faces, "auto", CLASSES).splits["test"]
    assert [(row["image"], row["true"]) for row in rows] == [
        (sample.path, CLASSES[sample.label]) for sample in samples
    ]
    assert "faces: 7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing to draw: give image files, or a data set by --data"),
        (["a.jpg"] * 33, "images must be 32 or fewer, got 33"),
        (["a.jpg", "--layer", "2"], "layer must be 1 to 1, got 2"),
        (["a.jpg", "--token", "0", "2"], "a column from 0 to 1, got 0 2"),
        (["a.jpg", "--token", "-1", "0"], "token must be a row from 0 to 1"),
        (["a.jpg", "--batch-size", "0"], "batch-size must be 1 or more, got 0"),
        (["a.jpg", "--output", "."], "output . exists"),
        (["nowhere.jpg"], "cannot read image nowhere.jpg"),
        (["--data", "DATA", "--no-tsne", "--split", "dev"], "split must be one of train, test"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    save_checkpoint, faces, tmp_path, args, message, capsys
):
    args = [str(faces) if a == "DATA" else a for a in args]
    if "--output" not in args:
        args += ["--output", str(tmp_path / "figures")]
    with pytest.raises(SystemExit) as stop:
        command.run(lambda: analyze.main([str(save_checkpoint()), *args]))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize("perplexity", [0, 4, 30])
def test_perplexity_that_is_not_legal(perplexity):
    message = f"above 0 and below the number of images, 4; got {perplexity}"
    with pytest.raises(errors.ConfigError, match=message):
        embed(np.zeros((4, 8)), perplexity, seed=0)


@pytest.mark.parametrize("images", [2, 15, 40])
def test_few_images_have_a_perplexity_that_fits(images):
    features = np.random.default_rng(0).normal(size=(images, 8)).astype(np.float32)
    assert np.isfinite(embed(features, None, seed=0)).all()


def test_one_image_has_no_tsne():
    with pytest.raises(errors.ConfigError, match="2 images or more, got 1; give --no-tsne"):
        embed(np.zeros((1, 8)), None, seed=0)


def test_images_that_are_all_the_same_have_no_tsne():
    """Rather than a division by their spread, whose NaN end the process in scikit-learn's tree."""
    same = np.ones((40, 8), np.float32)
    for features in (same, 0 * same, same + 1e-7 * np.eye(40, 8, dtype=np.float32)):
        message = "images that differ, got 40 with the same features; give --no-tsne"
        with pytest.raises(errors.ConfigError, match=message):
            embed(features, None, seed=0)
    with pytest.raises(errors.CheckpointError, match="features are not finite"):
        embed(np.full((40, 8), np.nan), None, seed=0)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1, 5e37])
def test_features_of_any_size_have_a_tsne(scale):
    features = np.random.default_rng(0).normal(size=(5, 8)) * scale
    for few in (features, features[[0, 0, 0, 0, 1]]):
        points = embed(few.astype(np.float32), None, seed=0)
        assert np.isfinite(points).all()
        assert np.ptp(points) > 1


def test_without_scikit_learn_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(errors.ConfigError, match="pip install scikit-learn, or give --no-tsne"):
        embed(np.zeros((40, 8)), 30, seed=0)


def test_names_that_are_no_text(tmp_path):
    name = os.fsdecode(b"bl\xe9")
    points, labels = np.zeros((1, 2)), np.zeros(1, int)
    embedding = Embedding("a, test", "a", [Sample(f"{name}.jpg", 0)], labels, points)
    analyze._write_points(tmp_path / "a.csv", embedding, [name])
    assert b"\nbl\xe9.jpg,bl\xe9,bl\xe9,0" in (tmp_path / "a.csv").read_bytes()
    pictures.plot_tsne(tmp_path / "a.png", points, labels, [name], f"{name}/best.pt")
