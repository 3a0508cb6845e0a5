"""Checkpoints without training, images to measure them on, and `python -m cfmrfn.evaluate`."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from cfmrfn import checkpoint, evaluate
from cfmrfn.config import parse_config
from cfmrfn.data import open_set
from cfmrfn.data.samples import EXPRESSIONS


@pytest.fixture
def save_run(options, tmp_path):
    """Write a run folder with a random network; its path."""

    def save(name="run", class_names=EXPRESSIONS[:7], files=("best.pt",), extra=()):
        config = parse_config([*options, *extra])
        torch.manual_seed(len(name))
        network = checkpoint.build_network(config, len(class_names))
        about = checkpoint.About.of_run(config, class_names).to_dict() | {"epoch": 3}
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for file in files:
            checkpoint.save(folder / file, {"model": network.state_dict(), "about": about})
        return folder

    return save


@pytest.fixture
def classes(faces, tmp_path) -> Path:
    """Two images in each of three class folders, without splits."""
    by_label = {}
    for sample in open_set(faces).splits["train"]:
        by_label.setdefault(sample.label, []).append(sample.path)
    root = tmp_path / "classes"
    for folder, label in (("Happy", 3), ("anger", 5), ("contempt", 6)):
        (root / folder).mkdir(parents=True)
        for number, path in enumerate(by_label[label][:2]):
            shutil.copy(path, root / folder / f"{number}.jpg")
    return root


@pytest.fixture
def run_tool(tmp_path, capsys):
    """Run the tool without workers; its results, by name of the file, and what was printed."""

    def run(*args, output="results"):
        folder = tmp_path / output
        evaluate.main([*map(str, args), "--workers", "0", "--output", str(folder)])
        results = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
        return results, capsys.readouterr()

    return run
