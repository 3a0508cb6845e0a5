"""analysis.html: it needs nothing else, shows every face and group, and what it shows is right."""

import base64
import io
import os
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from cfmrfn import analyze, checkpoint
from cfmrfn.analysis import page as analysis_page
from cfmrfn.analysis.explanation import attention_by_place, head_groups, receptive_field
from cfmrfn.config import parse_config
from cfmrfn.data import open_set
from cfmrfn.figures.heatmaps import Scale

pytestmark = pytest.mark.usefixtures("no_network", "one_thread")

CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Elements as (tag, attributes, classes of the elements around it), and the text."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text("utf-8")
        self.open, self.elements, self.texts = [], [], []
        self.feed(self.source)
        assert self.open == []  # each element is closed, in order

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), [*self.open]))

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.texts.append((data, [*self.open]))

    def all(self, tag, within=None, **attributes):
        """Attributes of the elements that have these, within an element of that id or class."""
        return [
            own
            for name, own, around in self.elements
            if name == tag
            and all(own.get(key.rstrip("_")) == value for key, value in attributes.items())
            and (within is None or any(within in self._names(each) for _, each in around))
        ]

    @staticmethod
    def _names(attributes):
        return {attributes.get("id"), *(attributes.get("class") or "").split()}

    def text(self, within=None):
        return " ".join(
            " ".join(data.split())
            for data, around in self.texts
            if not any(tag in ("style", "script") for tag, _ in around)
            and (within is None or any(within in self._names(each) for _, each in around))
        )


def save_checkpoint(options, path, class_names=CLASSES, *, landmarks=False, **more):
    torch.manual_seed(0)
    config = parse_config(options)
    network = checkpoint.build_network(config, len(class_names))
    if landmarks:  # as weights from a file, which have batch statistics
        network.landmark_backbone.conv1.bn.running_mean.fill_(0.1)
    about = checkpoint.About.of_run(config, class_names).to_dict() | more
    checkpoint.save(path, {"model": network.state_dict(), "about": about})
    return path


@pytest.fixture
def make_page(options, faces, tmp_path, monkeypatch):
    """The page of a network with random weights, without the pictures; and its checkpoint."""
    for picture in ("plot_faces", "plot_heads", "plot_tsne"):
        monkeypatch.setattr(analyze, picture, lambda *_, **__: None)

    def make(*more, images=(), args=(), **other):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        path = save_checkpoint([*options, *more], folder / "best.pt", **other)
        output = tmp_path / "figures"
        chosen = [*images] or ["--data", faces, "--perplexity", "5", "--workers", "0"]
        analyze.main([*map(str, [path, *chosen, *args, "--output", output])])
        page = Page(output / "analysis.html")
        shutil.rmtree(output)
        return page, path

    return make


@pytest.fixture
def image(faces):
    return next((faces / "Image" / "aligned").glob("test_*"))


def check_nothing_outside(page):
    for _, attributes, _ in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "data", "poster", "action", "srcset"):
                assert value.startswith(("data:", "#")), value[:80]
    ids = {attributes.get("id") for _, attributes, _ in page.elements}
    for _, attributes, _ in page.elements:
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids
    own = re.sub(r"data:image/\w+;base64,[\w+/=]*", "", page.source)
    assert not re.search(r"https?:|//\w|url\(|@import|\bimport\b|fetch|XMLHttp|WebSocket", own)
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; img-src data:;")


@pytest.mark.parametrize(("layout", "said"), [("drawn", "drawn faces"), ("rafdb", "faces")])
def test_what_the_network_learned_from_is_named(make_page, layout, said):
    page, _ = make_page(layout=layout, args=["--no-tsne"])
    assert f"Trained on {said} Classes" in " ".join(page.text().split())


OPTIONS = {
    "plain": [],
    "three layers": ["--depth", "3"],
    "global": ["--attention", "global"],
    "window": ["--attention", "window", "--padding-mode", "masked"],
    "expression": ["--streams", "expression"],
    "landmark": ["--streams", "landmark"],
    "pieces of channels": ["--tokens", "poster_view"],
    "nothing on the face": ["--tokens", "poster_view", "--streams", "expression"],
    "apart": ["--cross-fusion", "False", "--token-mixing", "False"],
}


@pytest.mark.parametrize("more", OPTIONS.values(), ids=OPTIONS)
def test_all_faces_groups_and_layers_are_there_and_nothing_from_outside(make_page, more):
    pytest.importorskip("sklearn")
    page, path = make_page(*more)
    network, _ = checkpoint.load_network(path)
    check_nothing_outside(page)
    assert "run/best.pt" in page.text()
    streams = {
        name
        for name, backbone in (
            ("expression", network.image_backbone if network.tokens == "spatial" else None),
            ("landmark", network.landmark_backbone),
        )
        if backbone is not None
    }
    groups, depth = head_groups(network), len(network.layers)
    for number, name in enumerate(CLASSES, 1):
        card = f"card-{number}"
        assert len(page.all("img", card)) == 1
        assert all(f"{label} " in f"{page.text(card)} " for label in CLASSES)
        assert name in page.text(card)  # the true class
        maps = [own for own in page.all("svg", card) if own.get("class") == "map"]
        assert len(maps) == len(streams) * (2 + len(groups) * depth)
        labels = [own["aria-label"] for own in maps]
        assert len(set(labels)) == len(labels)
        for stream in streams:
            assert f"class evidence, {stream} stream" in labels
            assert f"attention rollout, {stream} stream" in labels
        assert len(page.all("use", card, href=f"#face-{number}")) == len(maps)
    fields = page.all("svg", class_="field")
    assert len(fields) == len(groups) + (len(groups) > 1)
    assert len(page.all("use", "tsne")) == 15
    assert ("No landmarks are drawn" in page.text()) == (network.landmark_backbone is not None)
    assert ("no landmark stream" in page.text()) == (network.landmark_backbone is None)
    assert ("pieces of channels" in page.text()) == ("poster_view" in more)
    assert ("on padding" in page.text()) == (
        bool(streams) and network.head_dilations is not None and "masked" not in more
    )


@pytest.mark.parametrize(
    ("chosen_on", "told"), [(None, "the last"), ("val", "the best on the validation images")]
)
def test_the_page_says_which_checkpoint_it_is_of(make_page, image, chosen_on, told):
    page, _ = make_page(images=[image], epoch=2, chosen_on=chosen_on)
    assert f"epoch 2 of 2, {told}" in page.text()


def test_trained_landmarks_are_drawn(make_page, image):
    page, _ = make_page(images=[image], landmarks=True)
    assert len(page.all("circle", "photo")) == 68
    assert len(page.all("polyline", "photo")) == 9
    assert "No landmarks are drawn" not in page.text()


def test_names_are_escaped_and_may_be_any_bytes(options, faces, image, tmp_path):
    pytest.importorskip("sklearn")
    evil = "<img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}"
    odd = os.fsdecode(b"b\xe9d")
    names = (f"{evil}", odd, *CLASSES[2:])
    run = tmp_path / f"{evil}{odd}"
    run.mkdir()
    path = save_checkpoint(options, run / "best.pt", names)
    picture = tmp_path / f"{evil}{odd}.jpg"
    shutil.copy(image, picture)
    data = tmp_path / f"set {evil}"
    others = image.parent.glob("train_*")
    for label, name in enumerate(CLASSES[2:]):
        (data / "test" / name).mkdir(parents=True)
        for number in range(2):
            shutil.copy(next(others), data / "test" / name / f"{label}{number}{evil}{odd}.jpg")
    output = tmp_path / "figures"
    args = [path, picture, "--data", data, "--perplexity", 3, "--workers", 0, "--output", output]
    analyze.main([*map(str, args)])
    page = Page(output / "analysis.html")
    check_nothing_outside(page)
    shown = f"{evil}b\\xe9d"
    assert all(set(own) <= {"src", "alt", "class"} for own in page.all("img"))
    assert page.all("img", alt=f"face: {shown}.jpg")
    text = page.text()
    assert f"{shown}/best.pt" in text
    assert f"{shown}.jpg" in page.text("card-1")
    assert evil in page.text("bars") and "b\\xe9d" in page.text("bars")
    assert f"test/disgust/00{shown}.jpg" in page.text("tsne")
    assert str(tmp_path) not in page.source


def decode(uri):
    """Levels of a map, (rows, columns)."""
    with Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))) as image:
        assert image.mode == "P"
        return np.asarray(image)


def test_maps_hold_what_the_network_attends_to(make_page, faces, monkeypatch):
    pytest.importorskip("sklearn")
    scales = []

    class Kept(Scale):
        def __init__(self, *args):
            super().__init__(*args)
            scales.append(self)

    monkeypatch.setattr(analysis_page, "Scale", Kept)
    page, path = make_page("--image-size", "96", "--depth", "2")
    network, about = checkpoint.load_network(path)
    chosen, _ = analyze.faces_of_classes(
        open_set(faces, "auto", CLASSES).splits["test"], about, "error"
    )
    attention = network.describe(chosen[2].image[None]).attention[0]
    of_mean, of_one = scales[:2]
    images = [own for own in page.all("image", "card-3") if own["width"] in ("3", "9")]
    means = [own["href"] for own in images if own["class"] == "heat mean"][2:]
    tiles = [own["href"] for own in images if own["class"] == "heat tiles"][2:]
    assert len(means) == len(tiles) == 12  # 2 streams, 2 layers, 3 groups

    def levels(scale, values):
        parts = (values.numpy() - scale.low) / (scale.high - scale.low)
        return np.rint(parts.clip(0, 1) * 31)

    for index, (mean, one) in enumerate(zip(means, tiles, strict=True)):
        stream, layer, group = index // 6, index // 3 % 2, index % 3
        weights = attention[layer, stream, list(head_groups(network)[group].heads)]
        expected = levels(of_mean, attention_by_place(weights, (3, 3)).mean(0))
        np.testing.assert_allclose(decode(mean), expected, atol=1)  # of rounding
        one = decode(one)
        for row, column in np.ndindex(3, 3):
            expected = levels(of_one, weights[:, 3 * row + column].mean(0).view(3, 3))
            tile = one[3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
            np.testing.assert_allclose(tile, expected, atol=1)


def test_fields_are_those_of_the_groups(make_page, image):
    page, path = make_page("--image-size", "96", "--depth", "2", images=[image])
    network, _ = checkpoint.load_network(path)
    groups = head_groups(network)
    shown = [*([group] for group in groups), groups]
    for own, members in zip(page.all("svg", class_="field"), shown, strict=True):
        field = receptive_field(members, (3, 3), 2).flatten().tolist()
        assert [-1 if c == "-" else int(c) for c in own["data-layers"]] == field
    # the cells begin with the token in the middle
    cells = [own for own in page.all("g", "field") if "data-layer" in own]
    middle = receptive_field(groups, (3, 3), 2)[4].tolist()
    assert [int(own["data-layer"]) for own in cells[-9:]] == middle


def test_the_page_begins_with_the_token_that_was_asked_for(make_page, image):
    page, _ = make_page("--image-size", "96", images=[image], args=["--token", "2", "1"])
    (body,) = page.all("body")
    assert body["class"] == "token"
    assert all(
        (own["x"], own["y"]) == ("-3", "-6") for own in page.all("image", class_="heat tiles")
    )
    assert [own["value"] for own in page.all("option") if "selected" in own] == ["7"]
    cells = [own for own in page.all("g", "field") if "data-layer" in own]
    assert cells[7]["data-layer"] == "0"


def test_the_logit_is_told_in_its_parts(make_page, image):
    page, path = make_page(images=[image])
    network, _ = checkpoint.load_network(path)
    chosen, _ = analyze.faces_in_pictures(analyze.Predictor(path, "cpu"), [str(image)], "error")
    logits = network(chosen[0].image[None])[0]
    told = re.search(
        r"The logit of this class, (-?[\d.]+), is ([+-][\d.]+) from the expression stream, "
        r"([+-][\d.]+) from the landmark stream, ([+-][\d.]+) from biases",
        page.text("card-1"),
    )
    whole, *parts = map(float, told.groups())
    assert whole == pytest.approx(logits.max().item(), abs=0.006)
    assert sum(parts) == pytest.approx(whole, abs=0.021)
    shown = [float(n) for n in re.findall(r"([\d.]+) %", page.text("bars"))]
    assert shown == pytest.approx((100 * logits.softmax(0)).tolist(), abs=0.06)


def test_colours_of_a_scale():
    scale = Scale("RdBu_r", -2, 2, 0)
    with Image.open(
        io.BytesIO(base64.b64decode(scale.uri(np.array([[-9.0, 0, 2]])).partition(",")[2]))
    ) as image:
        (low, _, high), *_ = np.asarray(image.convert("RGBA")).astype(int)
    assert low[2] > low[0] and high[0] > high[2]  # blue, and red
    assert low[3] == high[3] > 150
    assert decode(scale.uri(np.linspace(-2, 2, 32)[None])).tolist() == [list(range(32))]
