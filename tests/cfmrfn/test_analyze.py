"""The paper's figures of a checkpoint: what their maps hold, and the tool that draws them."""

import csv
import os
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from cfmrfn import analyze, checkpoint, errors, pictures
from cfmrfn.config import parse_config
from cfmrfn.data import Sample, open_set
from cfmrfn.distributed import World

CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")


def make_tiny(**options):
    torch.manual_seed(0)
    return timm.create_model("cfmrfn_tiny", depth=1, **options).eval()


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


@pytest.mark.parametrize("streams", ["both", "expression", "landmark"])
def test_evidence_of_all_places_and_the_biases_are_the_logit(streams):
    network = make_tiny(streams=streams)
    for parameter in network.norm.parameters():
        torch.nn.init.normal_(parameter)
    seen = network.describe(torch.randn(3, 3, 96, 64))
    classes = torch.tensor([0, 4, 6])
    evidence = analyze.class_evidence(network, seen, classes)
    fused = sum(analyze.stream_tokens(seen).values())
    gate = network.gate(network.norm(fused).mean((1, 2)))
    biases = (network.head.weight[classes] * gate * network.norm.bias).sum(1)
    biases = biases + network.head.bias[classes]
    logits = sum(places.mean((1, 2)) for places in evidence.values()) + biases
    expected = seen.logits.gather(1, classes.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(logits, expected)


def test_attention_of_one_token_is_its_row():
    attention = torch.rand(2, 8, 6, 6)
    places = analyze.attention_by_place(attention, (2, 3), (1, 0))
    assert torch.equal(places, attention[:, :, 3].view(2, 8, 2, 3))


@pytest.mark.parametrize("kind", ["dilated", "window", "global"])
def test_attention_spread_evenly_is_a_flat_map(kind):
    """Also at the border, which is in fewer windows."""
    network = make_tiny(attention=kind)
    for block in network.layers[0].blocks:
        torch.nn.init.zeros_(block.attention.kv.weight)
        torch.nn.init.zeros_(block.attention.kv.bias)
    attention = network.describe(torch.randn(1, 3, 128, 160)).attention
    places = analyze.attention_by_place(attention, (4, 5))
    even = 1 / 20 if kind == "global" else 1 / 9
    torch.testing.assert_close(places, torch.full((1, 1, 2, 8, 4, 5), even))


def describe(path, faces, **options):
    network, about = checkpoint.load_network(path)
    samples = open_set(faces, "auto", CLASSES).splits["test"][:2]
    return analyze.describe_faces(network, about, samples, layer=1, world=World("cpu"), **options)


@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_faces_are_shown_in_their_own_colours(save_checkpoint, faces, color):
    sample = open_set(faces, "auto", CLASSES).splits["test"][0]
    with Image.open(sample.path) as image:
        expected = np.asarray(image.convert("RGB")) / 255  # 64 x 64, as the network sees it
    face = describe(save_checkpoint("--color", color), faces)[0]
    np.testing.assert_allclose(face.face, expected, atol=1e-5)
    assert face.title.startswith(f"{CLASSES[sample.label]}\npredicted ")
    assert face.landmarks.shape == (68, 2)


@pytest.mark.parametrize("streams, drawn", [("both", {"landmark"}), ("expression", set())])
def test_pieces_of_channels_are_not_drawn_as_places(
    save_checkpoint, faces, tmp_path, streams, drawn, capsys
):
    path = save_checkpoint("--tokens", "poster_view", "--streams", streams)
    face = describe(path, faces)[0]
    assert set(face.attention) == set(face.evidence) == drawn
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
    names = {"faces.png", "heads-1.png", "heads-2.png"}
    assert {file.name for file in output.iterdir()} == names


def test_figures_of_a_data_set(save_checkpoint, faces, tmp_path, capsys):
    pytest.importorskip("sklearn")
    output = tmp_path / "figures"
    save_checkpoint()
    analyze.main(
        [
            *(str(tmp_path), "--data", str(faces), "--perplexity", "5"),
            *("--workers", "0", "--output", str(output)),
        ]
    )
    heads = {f"heads-{number}.png" for number in range(1, 8)}
    written = {file.name for file in output.iterdir()}
    assert written == {"faces.png", "tsne.png", "tsne.csv", *heads}
    with open(output / "tsne.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    samples = open_set(faces, "auto", CLASSES).splits["test"]
    assert [(row["image"], row["true"]) for row in rows] == [
        (sample.path, CLASSES[sample.label]) for sample in samples
    ]
    assert "7 faces" in capsys.readouterr().out


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
        errors.run(lambda: analyze.main([str(save_checkpoint()), *args]))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize("perplexity", [0, 4, 30])
def test_perplexity_that_is_not_legal(perplexity):
    message = f"above 0 and below the number of images, 4; got {perplexity}"
    with pytest.raises(errors.ConfigError, match=message):
        analyze.embed(np.zeros((4, 8)), perplexity, seed=0)


def test_without_scikit_learn_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(errors.ConfigError, match="pip install scikit-learn, or give --no-tsne"):
        analyze.embed(np.zeros((40, 8)), 30, seed=0)


def test_names_that_are_no_text(tmp_path):
    name = os.fsdecode(b"bl\xe9")
    points, labels = np.zeros((1, 2)), np.zeros(1, int)
    analyze._write_points(tmp_path / "a.csv", [Sample(f"{name}.jpg", 0)], labels, points, [name])
    assert b"\nbl\xe9.jpg,bl\xe9,bl\xe9,0" in (tmp_path / "a.csv").read_bytes()
    pictures.plot_tsne(tmp_path / "a.png", points, labels, [name], f"{name}/best.pt")
