"""Networks in plain operators and as ONNX files: parity, metadata, foreign files."""

import json
import pickle
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from cfmrfn import checkpoint
from cfmrfn.checkpoint import About
from cfmrfn.classifier import load_classifier
from cfmrfn.config import parse_config
from cfmrfn.errors import CheckpointError, ConfigError
from cfmrfn.formats import onnx_file
from cfmrfn.models.plain import FromPixels, PlainNetwork

pytestmark = pytest.mark.usefixtures("one_thread", "no_network")

CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral", "contempt")


def make_network(options=(), classes=7, *, size=64, landmarks=False):
    """A random network whose every parameter and statistic counts, and what is said of it."""
    config = parse_config(["--image-size", str(size), "--depth", "1", *options])
    torch.manual_seed(0)
    network = checkpoint.build_network(config, classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.bias, -0.1, 0.1)
        elif isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.5, 1.5)
        elif isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.uniform_(module.bias, -0.1, 0.1)
    nn.init.normal_(network.head.weight)
    if network.landmark_backbone is not None and not landmarks:
        nn.init.zeros_(network.landmark_backbone.conv1.bn.running_mean)
    return network.eval(), About.of_run(config, CLASSES[:classes])


@torch.no_grad()
def expected_of(network, x, landmarks):
    return [network(x), network.landmarks(x)] if landmarks else [network(x)]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * max(1, scale))


PLAIN = {
    "tiny": {},
    "tiny at 224, landmarks": {"size": 224, "landmarks": True},
    "masked, at 96": {"options": ["--padding-mode", "masked"], "size": 96, "landmarks": True},
    "poster_view": {"options": ["--tokens", "poster_view"], "size": 128},
    "gray, landmarks": {"options": ["--gray", "True"], "size": 96, "landmarks": True},
    "global": {"options": ["--attention", "global"]},
    "window, not crossed, norm after": {
        "options": ["--attention", "window", "--cross-fusion", "False", "--pre-norm", "False"]
    },
    "expression alone": {"options": ["--streams", "expression"]},
    "landmark alone": {"options": ["--streams", "landmark"], "landmarks": True},
    "deeper": {"options": ["--depth", "3"], "size": 96},
    "no mixing": {"options": ["--token-mixing", "False"]},
    "dilations beyond the map": {"options": ["--head-dilations", *"11223399"]},
    "equations": {"options": ["--model", "cfmrfn_equations"]},
    "base": {"options": ["--model", "cfmrfn_base"], "landmarks": True},
}


@pytest.mark.parametrize("plain_prelu", (False, True))
@pytest.mark.parametrize("case", PLAIN.values(), ids=PLAIN.keys())
def test_plain_network_is_the_same(case, plain_prelu):
    network, about = make_network(**case)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    plain = PlainNetwork(network, about.image_size, plain_prelu=plain_prelu)
    assert plain.has_landmarks == case.get("landmarks", False)
    x = torch.randn(3, 3, about.image_size, about.image_size)
    found = plain(x)
    found = [found] if isinstance(found, torch.Tensor) else found
    assert_same(found, expected_of(network, x, plain.has_landmarks))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert network.position.requires_grad if network.image_backbone is not None else True


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """path of an ONNX file, network, about"""
    network, about = make_network(landmarks=True)
    path = tmp_path_factory.mktemp("onnx") / "fünf faces.onnx"
    write(path, network, about)
    return path, network, about


def write(path, network, about, *, pixels=False, opset=18):
    plain = PlainNetwork(network, about.image_size, plain_prelu=True)
    size = about.image_size
    example = torch.randn(2, 3, size, size)
    if pixels:
        plain = FromPixels(plain, about.mean, about.std, about.color)
        example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    onnx_file.write(path, plain, about, example, opset)


ONNX = {
    "7 classes": {},
    "8 classes, masked, at 96": {
        "options": ["--padding-mode", "masked"],
        "size": 96,
        "classes": 8,
        "landmarks": True,
    },
    "2 classes, poster_view": {"options": ["--tokens", "poster_view"], "classes": 2},
    "global, at 224": {"options": ["--attention", "global"], "size": 224},
    "landmark alone": {"options": ["--streams", "landmark"], "landmarks": True},
    "equations": {"options": ["--model", "cfmrfn_equations"]},
    "base": {"options": ["--model", "cfmrfn_base"], "landmarks": True},
}


@pytest.mark.parametrize("case", ONNX.values(), ids=ONNX.keys())
def test_parity_at_any_batch(case, tmp_path):
    network, about = make_network(**case)
    write(tmp_path / "model.onnx", network, about)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    file = onnx_file.OnnxFile(tmp_path / "model.onnx")
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, about.image_size, about.image_size)
        expected = expected_of(network, x, case.get("landmarks", False))
        assert_same(file.run(x), expected)
        probabilities, landmarks = file(x)
        assert_same([probabilities], [expected[0].softmax(1)])
        assert (landmarks is None) == (len(expected) == 1)


@pytest.mark.parametrize("opset", onnx_file.OPSETS)
def test_opsets_and_size_of_the_graph(opset, tmp_path):
    onnx = pytest.importorskip("onnx")
    network, about = make_network()
    path = tmp_path / "model.onnx"
    write(path, network, about, opset=opset)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", opset)]
    assert {node.domain for node in model.graph.node} == {""}
    # as gathered windows one layer alone had 300
    assert len(model.graph.node) < 250
    assert len(model.graph.input[0].type.tensor_type.shape.dim) == 4
    shapes = [
        [side.dim_param or side.dim_value for side in place.type.tensor_type.shape.dim]
        for place in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [["batch", 3, 64, 64], ["batch", 7]]
    # nothing tells where the exporter ran
    assert str(onnx_file.__file__).rpartition("/")[0].encode() not in path.read_bytes()
    assert sys.prefix.encode() not in path.read_bytes()
    x = torch.randn(3, 3, 64, 64)
    assert_same(onnx_file.OnnxFile(path).run(x), expected_of(network, x, False))


@pytest.mark.parametrize("color", ("RGB", "BGR"))
def test_a_file_that_takes_pixels(color, tmp_path):
    network, about = make_network(["--color", color], landmarks=True)
    path = tmp_path / "model.onnx"
    write(path, network, about, pixels=True)
    file = pickle.loads(pickle.dumps(onnx_file.OnnxFile(path)))  # as to other processes
    pixels = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    channels = pixels.permute(0, 3, 1, 2)
    if color == "BGR":
        channels = channels.flip(1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (about.mean, about.std))
    x = (channels / 255 - mean) / std
    logits, landmarks = expected_of(network, x, True)
    assert_same(file.run(pixels), [logits.softmax(1), landmarks])
    assert_same(file(x), [logits.softmax(1), landmarks])
    assert file.takes_pixels


def test_metadata_are_all_that_is_known(written):
    path, _, about = written
    about = replace(about, epoch=3, chosen_on="val")
    text = onnx_file.metadata(about, PlainNetwork(written[1], 64, plain_prelu=True))
    assert onnx_file.read_metadata(path, text) == (about, False)
    assert onnx_file.OnnxFile(path).about == written[2]


def test_classifier(written):
    path, network, about = written
    classifier = load_classifier(path)
    x = torch.randn(4, 3, 64, 64)
    logits, landmarks = expected_of(network, x, True)
    found = classifier(x)
    assert classifier.about == about
    assert_same([found.probabilities, found.landmarks], [logits.softmax(1), landmarks])


def test_large_models_have_their_weights_beside_them(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 1000)
    network, about = make_network()
    path = tmp_path / "model.onnx"
    write(path, network, about)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    x = torch.randn(1, 3, 64, 64)
    assert_same(onnx_file.OnnxFile(path).run(x), expected_of(network, x, False))
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(CheckpointError, match=r"model\.onnx .*weights in a file of their own"):
        onnx_file.OnnxFile(path)


# Other files


def changed(written, folder, change):
    """A copy of the file, changed as an ONNX model."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(written[0])
    change(model)
    onnx.save_model(model, folder / "changed.onnx")
    return folder / "changed.onnx"


def set_entry(**values):
    def change(model):
        (entry,) = model.metadata_props
        before = json.loads(entry.value)
        entry.value = json.dumps({**before, **values})

    return change


def set_about(**values):
    def change(model):
        (entry,) = model.metadata_props
        before = json.loads(entry.value)
        entry.value = json.dumps({**before, "about": {**before["about"], **values}})

    return change


def without_metadata(model):
    del model.metadata_props[:]


def with_text(model):
    model.metadata_props[0].value = "{"


TAMPERED = {
    "no metadata": (without_metadata, "does not say which classes"),
    "no JSON": (with_text, "damaged metadata"),
    "another format": (set_entry(format=2), "in format 2, and .* reads format 1"),
    "an unknown input": (set_entry(takes="grey"), "metadata that cfmrfn.export does not write"),
    "pixels": (set_entry(takes="pixels"), "has inputs and outputs"),
    "no about": (set_entry(about=None), "'about' is None"),
    "fewer classes": (set_about(class_names=["one", "two"]), "has inputs and outputs"),
    "another size": (set_about(image_size=96), "has inputs and outputs"),
    "a mean of two": (set_about(mean=[0, 0]), "three numbers"),
    "no network of ours": (set_about(config={"model": 3, "depht": 1}), "unknown keys depht"),
}


@pytest.mark.parametrize("change, message", TAMPERED.values(), ids=TAMPERED.keys())
def test_tampered_files_are_refused(written, tmp_path, change, message):
    path = changed(written, tmp_path, change)
    with pytest.raises((CheckpointError, ConfigError), match=message) as caught:
        load_classifier(path)
    assert "changed.onnx" in str(caught.value)


def test_outputs_of_another_network_are_refused(written, tmp_path):
    def rename(model):
        model.graph.output[1].name = "mesh"
        for node in model.graph.node:
            node.output[:] = ["mesh" if name == "landmarks" else name for name in node.output]

    with pytest.raises(CheckpointError, match="has inputs and outputs .*mesh"):
        load_classifier(changed(written, tmp_path, rename))


NO_ONNX = {
    "empty": (b"", "is no ONNX file, but empty"),
    "text": (b"no model at all", "is no ONNX file, but text"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\nsize 5\n", "Git LFS pointer"),
    "a web page": (b"<!doctype html><html></html>", "a web page"),
    "noise": (bytes(range(255, 127, -1)) * 9, "damaged, or no ONNX file"),
}


@pytest.mark.parametrize("content, message", NO_ONNX.values(), ids=NO_ONNX.keys())
def test_what_is_no_onnx_file_is_called_what_it_is(tmp_path, content, message):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_classifier(tmp_path / "model.onnx")


def test_a_file_cut_off_is_damaged(written, tmp_path):
    whole = written[0].read_bytes()
    (tmp_path / "model.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_classifier(tmp_path / "model.onnx")


def test_a_checkpoint_of_that_name(written, tmp_path):
    torch.save({"format": 1}, tmp_path / "model.onnx")
    with pytest.raises(CheckpointError, match="is no ONNX file, but a file of PyTorch"):
        load_classifier(tmp_path / "model.onnx")


def test_no_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no ONNX file .*none\.onnx"):
        load_classifier(tmp_path / "none.onnx")


def without_package(missing, monkeypatch):
    find = onnx_file.importlib.util.find_spec
    monkeypatch.setattr(
        onnx_file.importlib.util, "find_spec", lambda name: None if name == missing else find(name)
    )


@pytest.mark.parametrize("missing", ("onnx", "onnxscript"))
def test_packages_missing_to_write_are_named(written, missing, tmp_path, monkeypatch):
    without_package(missing, monkeypatch)
    with pytest.raises(ConfigError, match=rf"package {missing}: pip install 'sdwa\[export\]'"):
        write(tmp_path / "model.onnx", *written[1:])
    assert not list(tmp_path.iterdir())


def test_a_package_missing_to_read_is_named(written, monkeypatch):
    without_package("onnxruntime", monkeypatch)
    with pytest.raises(ConfigError, match=r"package onnxruntime: pip install 'sdwa\[export\]'"):
        load_classifier(written[0])


@pytest.mark.parametrize("device", ("cuda", "cuda:1", "mps", "nonsense"))
def test_devices_that_onnxruntime_has_not(written, device, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ConfigError, match=f"device .*{device}"):
        load_classifier(written[0], device)


def test_providers():
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert onnx_file._providers("cpu", both) == both[1:]
    for device, index in (("auto", 0), ("cuda", 0), ("cuda:1", 1)):
        chosen = [(both[0], {"device_id": index}), both[1]]
        assert onnx_file._providers(device, both) == chosen
    assert onnx_file._providers("auto", both[1:]) == both[1:]
