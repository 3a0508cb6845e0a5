"""Public weights in every layout that users have, and what is wrong with the files that are not."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

import cfmrfn.models  # noqa: F401  registers the presets
from cfmrfn.checkpoint import About, build_network
from cfmrfn.config import Config
from cfmrfn.errors import CheckpointError
from cfmrfn.weights.public_weights import (
    load_init,
    load_ir50,
    load_landmarks,
    read_source,
    read_tensors,
)

LAYOUTS = Path(__file__).parents[1] / "layouts"
STAGE_OFFSETS = {1: 0, 2: 3, 3: 7, 4: 21}


def random_tensors(layout):
    """A state dict of random tensors with the names and shapes of a public file."""
    shapes = json.loads((LAYOUTS / f"{layout}.json").read_text())
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.tensor(7) if shape == [] else torch.rand(shape, generator=generator)
        for name, shape in shapes.items()
    }


def by_stage(tensors):
    """IR-50 with POSTER++'s names."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("body."):
            _, index, rest = name.split(".", 2)
            stage = max(s for s, offset in STAGE_OFFSETS.items() if offset <= int(index))
            name = f"body{stage}.{int(index) - STAGE_OFFSETS[stage]}.{rest}"
        renamed[name] = tensor
    return renamed


def with_prefix(tensors):
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def model():
    return timm.create_model("cfmrfn_base", depth=1)


@pytest.fixture(autouse=True)
def _blank(model):
    """Every test starts from weights that no file holds."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(-1)


@pytest.fixture(scope="module")
def ir50():
    return random_tensors("ir50-stages123")


@pytest.fixture(scope="module")
def landmarks():
    return random_tensors("mobilefacenet-68")


def assert_filled(module, tensors):
    for name, own in module.state_dict().items():
        assert torch.equal(own, tensors[name]), name


FLAT = {
    "flat": dict,
    "module": with_prefix,
    "by-stage": by_stage,
    "module-by-stage": lambda tensors: with_prefix(by_stage(tensors)),
}
WRAPPED = {
    "state_dict": lambda tensors: {"state_dict": with_prefix(tensors), "epoch": 3},
    "model": lambda tensors: {"model": tensors},
}


def assert_loads_ir50(model, ir50, path):
    report = load_ir50(model, path)
    assert (len(report.matched), report.missing, report.unexpected) == (304, (), ())
    assert "304 matched, 0 missing, 0 unexpected" in str(report)
    assert_filled(model.image_backbone, ir50)


@pytest.mark.parametrize("wrap", [*FLAT, *WRAPPED])
def test_ir50_in_every_layout(model, ir50, tmp_path, wrap):
    torch.save({**FLAT, **WRAPPED}[wrap](ir50), tmp_path / "ir50.pth")
    assert_loads_ir50(model, ir50, tmp_path / "ir50.pth")


@pytest.mark.parametrize("wrap", FLAT)
def test_ir50_in_safetensors(model, ir50, tmp_path, wrap):
    safetensors.torch.save_file(FLAT[wrap](ir50), tmp_path / "ir50.safetensors")
    assert_loads_ir50(model, ir50, tmp_path / "ir50.safetensors")


@pytest.mark.parametrize("rename", [dict, by_stage], ids=["flat", "by-stage"])
def test_ir50_with_stage_4_reports_what_it_leaves_out(model, tmp_path, rename):
    tensors = random_tensors("ir50-full")
    torch.save(rename(tensors), tmp_path / "ir50.pth")
    report = load_ir50(model, tmp_path / "ir50.pth")
    assert (len(report.matched), len(report.missing), len(report.unexpected)) == (304, 0, 45)
    assert all(name.startswith(("body.21", "body.22", "body.23")) for name in report.unexpected)
    assert_filled(model.image_backbone, tensors)


def test_landmarks_in_the_public_file(model, landmarks, tmp_path):
    path = tmp_path / "mobilefacenet_model_best.pth.tar"
    # What a training script saves beside the weights: numbers, text, numpy scalars.
    torch.save({"state_dict": landmarks, "epoch": 9, "arch": "x", "best": np.float64(0.1)}, path)
    report = load_landmarks(model, path)
    assert (len(report.matched), report.missing, report.unexpected) == (333, (), ())
    assert_filled(model.landmark_backbone, landmarks)
    assert not any(p.requires_grad for p in model.landmark_backbone.parameters())


def test_an_old_zipless_file(model, landmarks, tmp_path):
    path = tmp_path / "old.pth"
    torch.save(landmarks, path, _use_new_zipfile_serialization=False)
    assert len(load_landmarks(model, path).matched) == 333


# Files that must not load, and leave the model as it was.


def assert_refused(load, model, path, *parts):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load(model, path)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_refuses_the_wrong_network(model, landmarks, tmp_path):
    torch.save(landmarks, tmp_path / "a.pth")
    assert_refused(load_ir50, model, tmp_path / "a.pth", "0 matched, 304 missing", "333 unexpected")


@pytest.mark.parametrize("name", ["body.9.res_layer.1.weight", "input_layer.1.running_mean"])
def test_refuses_a_file_with_one_weight_missing(model, ir50, tmp_path, name):
    torch.save({n: t for n, t in ir50.items() if n != name}, tmp_path / "a.pth")
    assert_refused(load_ir50, model, tmp_path / "a.pth", "303 matched", name)


def test_refuses_wrong_shapes(model, ir50, tmp_path):
    name = "body.0.res_layer.1.weight"
    torch.save({**ir50, name: torch.zeros(64, 64, 1, 1)}, tmp_path / "a.pth")
    shapes = f"{name} is (64, 64, 1, 1) and not (64, 64, 3, 3)"
    assert_refused(load_ir50, model, tmp_path / "a.pth", "1 of another shape", shapes)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_refuses_a_truncated_file(model, ir50, tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    save = torch.save if suffix == ".pth" else safetensors.torch.save_file
    save(ir50, path)
    path.write_bytes(path.read_bytes()[:100_000])
    assert_refused(load_ir50, model, path, str(path), "damaged")


def test_refuses_a_missing_file(model, tmp_path):
    assert_refused(load_ir50, model, tmp_path / "nowhere.pth", "no such weight file")


def test_refuses_a_file_without_tensors(model, tmp_path):
    torch.save({"lr": 0.1}, tmp_path / "a.pth")
    assert_refused(load_ir50, model, tmp_path / "a.pth", "no named tensors", "lr")


class Payload:
    """Would write a file if its pickle were executed."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_never_executes_a_pickle(model, ir50, tmp_path):
    torch.save({"state_dict": ir50, "extra": Payload(tmp_path / "executed")}, tmp_path / "a.pth")
    assert_refused(
        load_ir50, model, tmp_path / "a.pth", "object of the class or function", "getattr"
    )
    assert not (tmp_path / "executed").exists()


def test_refuses_a_backbone_that_is_switched_off(tmp_path):
    tiny = timm.create_model("cfmrfn_tiny", streams="landmark")
    assert_refused(load_ir50, tiny, tmp_path / "a.pth", "no expression backbone")
    tiny = timm.create_model("cfmrfn_tiny", streams="expression")
    assert_refused(load_landmarks, tiny, tmp_path / "a.pth", "no landmark backbone")


# POSTER


def poster_tensors(ir50, landmarks, depth, num_classes=7):
    """A state dict with the names and shapes of POSTER (zczcwh/POSTER), all scales included."""
    shapes = {
        "ir_layer.weight": (512, 1024),
        "ir_layer.bias": (512,),
        "pyramid_fuse.cls_token": (1, 1, 512),
        "pyramid_fuse.pos_embed": (1, 50, 512),
        "pyramid_fuse.downsample_m.weight": (100, 100, 2),
        "pyramid_fuse.norm.weight": (512,),
        "pyramid_fuse.norm.bias": (512,),
        "se_block.linear1.weight": (512, 512),
        "se_block.linear1.bias": (512,),
        "se_block.linear2.weight": (512, 512),
        "se_block.linear2.bias": (512,),
        "head.linear.weight": (num_classes, 512),
        "head.linear.bias": (num_classes,),
    }
    for layer in range(depth):
        for scale, dim in (("l", 512), ("m", 256), ("s", 128)):
            block = f"pyramid_fuse.blocks.{layer}.block_{scale}"
            for norm in ("norm1", "norm2", "norm3", "norm4"):
                shapes |= {f"{block}.{norm}.weight": (dim,), f"{block}.{norm}.bias": (dim,)}
            for attention in ("attn_img", "attn_lm"):
                shapes |= {
                    f"{block}.{attention}.kv.weight": (2 * dim, dim),
                    f"{block}.{attention}.kv.bias": (2 * dim,),
                    f"{block}.{attention}.proj.weight": (dim, dim),
                    f"{block}.{attention}.proj.bias": (dim,),
                }
            for mlp in ("mlp1", "mlp2"):
                shapes |= {
                    f"{block}.{mlp}.fc1.weight": (2 * dim, dim),
                    f"{block}.{mlp}.fc1.bias": (2 * dim,),
                    f"{block}.{mlp}.fc2.weight": (dim, 2 * dim),
                    f"{block}.{mlp}.fc2.bias": (dim,),
                }
            shapes |= {f"{block}.conv.weight": (100, 100, 1), f"{block}.conv.bias": (100,)}
        shapes[f"pyramid_fuse.blocks.{layer}.upsample_m.weight"] = (100, 100, 2)
    tensors = {name: torch.rand(shape) for name, shape in shapes.items()}
    tensors |= {f"ir_back.{name}": tensor for name, tensor in ir50.items()}
    return tensors | {f"face_landback.{name}": tensor for name, tensor in landmarks.items()}


def test_poster_checkpoint(ir50, landmarks, tmp_path):
    tensors = poster_tensors(ir50, landmarks, depth=2)
    path = tmp_path / "epoch50_acc0.92.pth"
    torch.save({"iter": 50, "model_state_dict": with_prefix(tensors)}, path)
    source = read_source(path)
    config = Config(network=source.network)
    model = build_network(config, 7)
    report = load_init(model, source, About.of_run(config, tuple("abcdefg")))
    assert (report.missing, report.misshapen) == ((), ())
    assert len(report.matched) == len(model.state_dict())
    assert all(name.startswith("pyramid_fuse.") for name in report.unexpected)
    assert not any("block_l" in name for name in report.unexpected)
    assert "class tokens" in str(report)

    own = model.state_dict()
    block = "pyramid_fuse.blocks.1.block_l"
    assert torch.equal(own["layers.1.blocks.1.norm1.weight"], tensors[f"{block}.norm3.weight"])
    assert torch.equal(
        own["layers.1.blocks.0.attention.kv.weight"], tensors[f"{block}.attn_img.kv.weight"]
    )
    assert torch.equal(own["position"][2, 3], tensors["pyramid_fuse.pos_embed"][0, 1 + 2 * 7 + 3])
    # From landmark place (0, 1) to image place (0, 2): the streams' class tokens are rows 0 and 50.
    mixing = tensors[f"{block}.conv.weight"][..., 0]
    assert own["layers.1.mixing.0.weight"][2, 50] == mixing[3, 52]
    assert torch.equal(own["head.bias"], tensors["head.linear.bias"])


def test_read_tensors_keeps_plain_names(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    assert list(read_tensors(tmp_path / "a.pth")) == ["a"]
