"""Checkpoints are whole or absent, and hold no code."""

import contextlib
import errno
import os
import resource
import stat
from pathlib import Path

import pytest
import timm
import torch

from cfmrfn import checkpoint
from cfmrfn.config import Config, parse_config
from cfmrfn.data import EXPRESSIONS
from cfmrfn.errors import CheckpointError, ConfigError


@contextlib.contextmanager
def full_disk(free_bytes):
    """Files grow no further than ``free_bytes``; writing on raises OSError, as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.parametrize("free_bytes", [0, 1000, 100_000])
def test_full_disk_leaves_the_previous_checkpoint(tmp_path, free_bytes):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"model": {"weight": torch.ones(3)}})
    message = "File too large; the checkpoint before it is intact"
    with full_disk(free_bytes), pytest.raises(CheckpointError, match=message):
        checkpoint.save(path, {"model": {"weight": torch.zeros(100_000)}})
    assert checkpoint.load(path)["model"]["weight"].tolist() == [1, 1, 1]
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def fail_to_sync(kind):
    """`os.fsync` that fails on files, or on folders, as CIFS and vboxsf do."""
    real = os.fsync

    def fsync(descriptor):
        if kind(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    return fsync


def test_a_folder_that_cannot_be_synchronised(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", fail_to_sync(stat.S_ISDIR))
    for value in (1, 2):
        checkpoint.save(tmp_path / "last.pt", {"value": value})
        assert checkpoint.load(tmp_path / "last.pt")["value"] == value


def test_a_file_that_cannot_be_synchronised(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_to_sync(stat.S_ISREG))
        with pytest.raises(CheckpointError, match="Invalid argument; there is none before it"):
            checkpoint.save(path, {"value": 1})
    assert not list(tmp_path.iterdir())
    checkpoint.save(path, {"value": 1})
    monkeypatch.setattr(os, "fsync", fail_to_sync(stat.S_ISREG))
    with pytest.raises(CheckpointError, match="the checkpoint before it is intact"):
        checkpoint.save(path, {"value": 2})
    assert checkpoint.load(path)["value"] == 1


def test_missing_folder(tmp_path):
    with pytest.raises(CheckpointError, match="cannot write"):
        checkpoint.save(tmp_path / "gone" / "last.pt", {})


class Payload:
    def __reduce__(self):
        return print, ("code was run",)


@pytest.mark.parametrize(
    "content",
    [
        {"format": 1, "model": Payload()},
        {"format": 99},
        {"format": torch.ones(2)},
        {"other": 1},
        torch.ones(2),
    ],
)
def test_only_plain_checkpoints_of_this_format_load(tmp_path, content, capsys):
    path = tmp_path / "last.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        checkpoint.load(path)
    assert "code was run" not in capsys.readouterr().out


def test_cut_off_and_missing_files(tmp_path):
    path = tmp_path / "last.pt"
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        checkpoint.load(path)
    checkpoint.save(path, {"model": {"weight": torch.ones(3)}})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("part", "message"),
    [("about", "lacks a part: 'about'"), ("model", "does not fit its own network: .*Missing key")],
)
def test_checkpoints_that_lack_a_part(tmp_path, part, message):
    config = parse_config(["--image-size", "64", "--depth", "1"])
    network = checkpoint.build_network(config, 2)
    parts = {
        "model": network.state_dict(),
        "about": checkpoint.About.of_run(config, ("anger", "joy")).to_dict(),
    }
    if part == "model":
        del parts["model"]["head.bias"]
    else:
        del parts[part]
    checkpoint.save(tmp_path / "best.pt", parts)
    with pytest.raises(CheckpointError, match=f"best.pt {message}"):
        checkpoint.load_network(tmp_path / "best.pt")


@pytest.mark.parametrize("model", [None, [torch.ones(1)], {1: torch.ones(1)}])
def test_a_model_that_is_none(tmp_path, model):
    config = parse_config(["--image-size", "32", "--depth", "1"])
    about = checkpoint.About.of_run(config, ("anger", "joy")).to_dict()
    checkpoint.save(tmp_path / "best.pt", {"model": model, "about": about})
    with pytest.raises(CheckpointError, match="best.pt does not fit its own network: "):
        checkpoint.load_network(tmp_path / "best.pt")


def test_what_a_checkpoint_says_of_itself_keeps_its_layout():
    config = parse_config(["--image-size", "64"])
    about = checkpoint.About.of_run(config, ("anger", "joy")).to_dict()
    assert about.pop("config") == config.flat()
    assert set(about.pop("versions")) == {"python", "sdwa", "timm", "torch", "torchvision"}
    assert about == {
        "class_names": ["anger", "joy"],
        "color": "RGB",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "image_size": 64,
        "epoch": 0,
        "chosen_on": None,
        "framing": None,
        "layout": None,
    }


def test_framing_is_kept_and_older_checkpoints_have_none(tmp_path):
    config = parse_config(["--image-size", "64"])
    framing = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))
    about = checkpoint.About.of_run(config, ("anger", "joy"), framing).to_dict()
    checkpoint.save(tmp_path / "best.pt", {"about": about})
    saved = checkpoint.load(tmp_path / "best.pt")["about"]
    assert checkpoint.About.from_dict(saved, tmp_path).framing == framing
    with pytest.raises(CheckpointError, match="'framing' of 'about' must be five points"):
        checkpoint.About.from_dict(saved | {"framing": [0.3, 0.4]}, tmp_path)
    del saved["framing"]
    assert checkpoint.About.from_dict(saved, tmp_path).framing is None


@pytest.mark.parametrize(
    ("options", "read_as", "drawn"),
    [
        ([], None, True),
        (["--data", "FACES", "--layout", "drawn"], None, True),
        (["--data", "FACES"], "drawn", True),
        (["--data", "FACES"], "rafdb", False),
        (["--data", "FACES"], None, False),
    ],
    ids=["no data", "asked for", "recognised", "another set", "an older checkpoint"],
)
def test_drawn_faces_are_known_however_they_are_given(options, read_as, drawn):
    about = checkpoint.About.of_run(parse_config(options), ("anger", "joy"), None, read_as)
    saved = about.to_dict()
    if read_as is None:
        del saved["layout"]
    assert checkpoint.About.from_dict(saved, Path("a.pt")) == about
    assert about.is_drawn == drawn


def test_a_checkpoint_of_before_layout_was_named_so():
    config = parse_config(["--layout", "rafdb"])
    about = checkpoint.About.of_run(config, ("anger", "joy"))
    former = about.to_dict()
    former["config"]["kind"] = former["config"].pop("layout")
    assert checkpoint.About.from_dict(former, Path("a.pt")) == about


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("color", None, "lacks a part: 'color' of 'about'"),
        ("config", None, "lacks a part: 'config' of 'about'"),
        ("image_size", "64", "'image_size' of 'about' must be an integer, got '64'"),
        ("class_names", "joy", "'class_names' of 'about' must be a list of names, got 'joy'"),
        ("mean", [0.5], r"'mean' of 'about' must be three numbers, got \[0.5\]"),
        ("chosen_on", "dev", "'chosen_on' of 'about' must be val, test or None, got 'dev'"),
        ("config", {"depth": 0}, "a.pt: depth must be 1 or more, got 0"),
        ("config", {"depth": [[1]]}, r"a.pt: values must be texts, .*; got 'depth': \[\[1\]\]"),
        ("versions", {"torch": [1]}, "'versions' of 'about' must be a dictionary of texts"),
    ],
)
def test_what_a_checkpoint_says_of_itself_is_checked(name, value, message):
    about = checkpoint.About.of_run(Config(), ("anger", "joy")).to_dict()
    about[name] = value
    if value is None:
        del about[name]
    with pytest.raises((CheckpointError, ConfigError), match=message):
        checkpoint.About.from_dict(about, Path("a.pt"))


def test_what_a_checkpoint_says_of_itself_may_be_nothing_of_ours():
    with pytest.raises(
        CheckpointError, match=r"a.pt was not written by cfmrfn.train: .* \['RGB'\]"
    ):
        checkpoint.About.from_dict(["RGB"], Path("a.pt"))


def test_lack_of_memory_is_not_taken_for_a_file_that_does_not_fit():
    with pytest.raises(MemoryError), checkpoint.fitting("a.pt does not fit"):
        raise MemoryError


def test_network_comes_back_with_its_meaning(tmp_path):
    config = parse_config(
        ["--color", "BGR", "--image-size", "64", "--depth", "1", "--streams", "expression"]
    )
    names = ("anger", "joy")
    network = checkpoint.build_network(config, len(names)).eval()
    about = checkpoint.About.of_run(config, names)
    parts = {"model": network.state_dict(), "about": about.to_dict()}
    checkpoint.save(tmp_path / "best.pt", parts)
    loaded, told = checkpoint.load_network(tmp_path / "best.pt")
    assert told == about
    assert told.class_names == ("anger", "joy")
    assert told.color == "BGR"
    assert told.image_size == 64
    assert told.mean == (0.485, 0.456, 0.406)
    assert told.versions["torch"] == torch.__version__
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(image), network(image))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--image-size", "100"], "multiples of 32"),
        (["--head-dilations", "1", "2"], "head_dilations must be 8 whole numbers"),
        (["--model", "resnet18"], "model must be one of cfmrfn_base, .*; got 'resnet18'"),
    ],
)
def test_networks_that_cannot_be_built(args, message):
    with pytest.raises(ConfigError, match=message):
        checkpoint.build_network(parse_config(args), 7)


@pytest.fixture
def small_run(tmp_path):
    """A run folder whose `best.pt` has a network with 8 classes and an unusual shape."""
    options = ["--image-size", "96", "--depth", "1", "--data", "/nowhere"]
    config = parse_config(options)
    names = EXPRESSIONS
    network = checkpoint.build_network(config, len(names)).eval()
    about = checkpoint.About.of_run(config, names).to_dict()
    checkpoint.save(tmp_path / "best.pt", {"model": network.state_dict(), "about": about})
    return tmp_path, network


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("name", ["", "best.pt"])
def test_a_run_folder_stands_for_its_best_checkpoint(small_run, kind, name):
    folder, network = small_run
    loaded, about = checkpoint.load_network(kind(folder / name))
    assert about.class_names == EXPRESSIONS
    assert torch.equal(loaded.head.bias, network.head.bias)


def test_a_run_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no best\.pt in .*after its first epoch"):
        checkpoint.load_network(str(tmp_path))


def test_a_checkpoint_of_another_version(tmp_path):
    torch.save({"format": 99}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="in format 99, and this version .* reads format 1"):
        checkpoint.load(tmp_path / "last.pt")


def test_timm_reads_our_checkpoints(small_run):
    folder, network = small_run
    built = timm.create_model(
        "cfmrfn_tiny",
        checkpoint_path=str(folder / "best.pt"),
        num_classes=8,
        img_size=96,
        depth=1,
    ).eval()
    image = torch.randn(1, 3, 96, 96)
    assert torch.equal(built(image), network(image))


def test_timm_takes_our_checkpoints_as_pretrained_weights(small_run):
    """With a new head where the number of classes differs."""
    folder, network = small_run

    def create(num_classes):
        return timm.create_model(
            "cfmrfn_tiny",
            pretrained=True,
            pretrained_cfg_overlay={"file": str(folder / "best.pt"), "num_classes": 8},
            num_classes=num_classes,
            img_size=96,
            depth=1,
        )

    same, other = create(8), create(3)
    assert torch.equal(same.head.weight, network.head.weight)
    assert other.head.weight.shape == (3, 96)
    assert torch.equal(other.image_embed.weight, network.image_embed.weight)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_classes": 7}, "num_classes=8; create"),
        ({"depth": 2}, "depth=1; create"),
        ({"img_size": 64}, r"img_size=\(96, 96\); create"),
        ({"num_classes": 7, "depth": 2}, "depth=1, num_classes=8; create"),
    ],
)
def test_timm_says_which_options_the_weights_need(small_run, options, message):
    folder, _ = small_run
    with pytest.raises(RuntimeError, match=f"are of a network with {message} this one likewise"):
        timm.create_model(
            "cfmrfn_tiny",
            checkpoint_path=str(folder / "best.pt"),
            **{"num_classes": 8, "img_size": 96, "depth": 1, **options},
        )
