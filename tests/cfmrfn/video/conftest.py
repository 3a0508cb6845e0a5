"""A small random network, and a film of a face for it to look at."""

import pytest
import torch

import cfmrfn
from cfmrfn import checkpoint
from cfmrfn.config import parse_config
from tests.cfmrfn.video.films import CLASSES, film, path_of, scene


@pytest.fixture(scope="session")
def random_run(tmp_path_factory):
    """A checkpoint of a small random network."""
    config = parse_config(["--image-size", "64", "--depth", "1"])
    torch.manual_seed(0)
    network = checkpoint.build_network(config, len(CLASSES))
    about = checkpoint.About.of_run(config, CLASSES).to_dict()
    path = tmp_path_factory.mktemp("run") / "best.pt"
    checkpoint.save(path, {"model": network.state_dict(), "about": about})
    return path


@pytest.fixture(scope="session")
def predictor(random_run):
    return cfmrfn.Predictor(random_run, "cpu")


@pytest.fixture(scope="session")
def one_face(tmp_path_factory):
    """A video of a face that moves, and its boxes."""
    frames, boxes = scene([path_of((20, 20), (460, 300), 60)])
    return film(tmp_path_factory.mktemp("videos") / "one.mp4", frames), boxes
