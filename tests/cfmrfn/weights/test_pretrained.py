"""The network that comes with the package: in timm, without a checkpoint, from other folders."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from skimage import data
from timm.models import PretrainedCfg, _registry

import cfmrfn
from cfmrfn import analyze, checkpoint, errors, evaluate, export, predict, pretrained
from cfmrfn.config import from_mapping, parse_config
from cfmrfn.data.synthetic import draw_face
from cfmrfn.demo import __main__ as demo
from cfmrfn.errors import CheckpointError, ConfigError
from cfmrfn.formats import timm_folder
from cfmrfn.models import presets
from cfmrfn.process import command
from cfmrfn.train import Trainer
from cfmrfn.weights import initial_weights, public_weights
from tests.cfmrfn.export.test_onnx_file import CLASSES, make_network

ROOT = Path(__file__).parents[3]
SIZE = 64

pytestmark = pytest.mark.usefixtures("one_thread", "no_network")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A folder as comes with the package, of a random network in float16."""
    options = ["--data", "FERPLUS", "--layout", "ferplus", "--drop-path-rate", "0.3"]
    network, about = make_network([*options, "--depth", "2"], 8, size=SIZE)
    run = tmp_path_factory.mktemp("run") / "run"
    run.mkdir()
    values = {"model": network.state_dict(), "about": {**about.to_dict(), "epoch": 3}}
    checkpoint.save(run / "best.pt", values)
    folder = tmp_path_factory.mktemp("pretrained") / "cfmrfn_tiny"
    export.export(run, ("safetensors",), folder, weights="float16", name="cfmrfn_tiny")
    return folder


@pytest.fixture
def packaged(stand_in, monkeypatch):
    """The same, in the place of what comes with the package."""
    monkeypatch.setattr(pretrained, "FOLDER", stand_in.parent)
    config = PretrainedCfg(**presets._config("cfmrfn_tiny"), architecture="cfmrfn_tiny")
    monkeypatch.setitem(_registry._model_pretrained_cfgs, "cfmrfn_tiny", config)
    return stand_in


@pytest.fixture
def nothing(tmp_path, monkeypatch):
    """A package without weights."""
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "nothing")


@pytest.fixture
def face_file(tmp_path):
    path = tmp_path / "face.png"
    Image.fromarray(data.astronaut()[40:180, 160:300]).save(path)
    return path


def images(side=SIZE):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def status_of(main, *args):
    """The status of a tool on the command line."""
    try:
        command.run(lambda: main([*map(str, args)]))
    except SystemExit as stop:
        return stop.code
    return 0


LINE = "cfmrfn_tiny that comes with the package, trained on FERPLUS, for research; its card: {}\n"


# timm


@torch.inference_mode()
def test_timm_loads_it_as_it_was_trained(packaged):
    network, about = timm_folder.load(packaged)
    model = timm.create_model("cfmrfn_tiny", pretrained=True).eval()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model(images()), network(images()))
    assert model.layers[1].blocks[0].drop_path.drop_prob == 0.3
    described = model.pretrained_cfg
    assert (described["num_classes"], tuple(described["input_size"])) == (8, (3, SIZE, SIZE))
    assert described["label_names"] == list(about.class_names)
    assert (tuple(described["mean"]), tuple(described["std"])) == (about.mean, about.std)
    assert described["license"] == "research-only"
    assert timm.data.resolve_model_data_config(model)["input_size"] == [3, SIZE, SIZE]


def test_without_its_weights_it_has_the_same_shapes(packaged):
    ours, theirs = (
        {name: tensor.shape for name, tensor in network.state_dict().items()}
        for network in (
            timm.create_model("cfmrfn_tiny"),
            timm.create_model("cfmrfn_tiny", pretrained=True),
        )
    )
    assert ours == theirs


def test_timm_gives_it_another_head(packaged):
    full = timm.create_model("cfmrfn_tiny", pretrained=True).eval()
    three = timm.create_model("cfmrfn_tiny", pretrained=True, num_classes=3).eval()
    none = timm.create_model("cfmrfn_tiny", pretrained=True, num_classes=0).eval()
    assert three(images()).shape == (2, 3)
    pooled = full.forward_head(full.forward_features(images()), pre_logits=True)
    assert torch.equal(none(images()), pooled)
    assert torch.equal(three.gate[0].weight, full.gate[0].weight)


@torch.inference_mode()
def test_timm_resizes_it(packaged):
    """Positions and token mixing become, once, what they are of a larger image at run time."""
    full = timm.create_model("cfmrfn_tiny", pretrained=True).eval()
    larger = timm.create_model("cfmrfn_tiny", pretrained=True, img_size=(96, 128)).eval()
    assert larger.position.shape[:2] == larger.layers[0].mixing[0].grid == (3, 4)
    x = torch.nn.functional.interpolate(images(), size=(96, 128))
    torch.testing.assert_close(larger(x), full(x), rtol=1e-4, atol=1e-4)


def test_timm_resizes_exported_folders_too(stand_in):
    model = timm.create_model(f"local-dir:{stand_in}", pretrained=True, img_size=96)
    assert model(images(96)).shape == (2, 8)


@pytest.mark.parametrize(
    ("options", "trained_with"),
    [
        ({"streams": "landmark"}, "streams='both'"),
        ({"streams": "expression"}, "streams='both'"),
        ({"depth": 1}, "depth=2"),
        ({"q_proj": True}, "q_proj=False"),
        ({"token_mixing": False}, "token_mixing=True"),
        ({"pre_norm": False}, "pre_norm=True"),
        ({"cross_fusion": False}, "cross_fusion=True"),
        ({"embed_dim": 64}, "embed_dim=96"),
    ],
)
@pytest.mark.parametrize("classes", [{}, {"num_classes": 3}])
def test_timm_does_not_give_it_another_structure(packaged, options, trained_with, classes):
    message = f"the weights are of a network with {trained_with}; create this one likewise"
    with pytest.raises(RuntimeError, match=message):
        timm.create_model("cfmrfn_tiny", pretrained=True, **options, **classes)


def test_presets_without_weights_say_so(packaged):
    with pytest.raises(RuntimeError, match="No pretrained weights exist for cfmrfn_base"):
        timm.create_model("cfmrfn_base", pretrained=True)


# Without a checkpoint


def test_predictor_without_a_checkpoint(packaged, face_file, capsys):
    (face,) = cfmrfn.Predictor()(face_file)
    (same,) = cfmrfn.Predictor(packaged)(face_file)
    assert face.probabilities == same.probabilities
    assert tuple(face.probabilities) == CLASSES
    (probabilities,) = predict.predict(None, face_file)
    assert probabilities == face.probabilities
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("first", ([], ["pretrained"]))
def test_predict_says_whose_weights_it_uses(first, packaged, face_file, capsys):
    found = face_file.with_name("faces.json")
    assert status_of(predict.main, *first, face_file, "--json", found) == 0
    printed = capsys.readouterr()
    assert printed.err == LINE.format(packaged / "README.md")
    assert printed.out.startswith(str(face_file))
    assert json.loads(found.read_text())["checkpoint"] == "pretrained"


@pytest.mark.parametrize(
    "names, network",
    [
        (["a.jpg", "b.jpg"], None),
        (["nowhere.HEIC"], None),
        (["clip.mp4"], None),
        (["0"], None),
        (["pictures"], None),
        (["picture-without-suffix"], None),
        (["pretrained", "a.jpg"], "pretrained"),
        (["./pretrained", "a.jpg"], "./pretrained"),
        (["nowhere", "a.jpg"], "nowhere"),
        (["best.pt", "a.jpg"], "best.pt"),
        (["run", "a.jpg"], "run"),
        (["model.onnx"], "model.onnx"),
        ([], None),
    ],
)
def test_what_is_a_network_among_names(names, network, face_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("pictures", "run", "empty"):
        Path(folder).mkdir()
    shutil.copy(face_file, "pictures/face.png")
    shutil.copy(face_file, "picture-without-suffix")
    shutil.copy(face_file, "run/curves.png")
    Path("run/config.yaml").touch()
    pictures = names if network is None else names[1:]
    assert predict.network_and_pictures(names) == (network, pictures)
    with pytest.raises(ConfigError, match="folder empty has neither a network nor pictures"):
        predict.network_and_pictures(["empty", "a.jpg"])


def test_a_package_without_weights_says_what_to_do(nothing, face_file, capsys):
    with pytest.raises(ConfigError, match=r"come with the package; give a checkpoint"):
        cfmrfn.Predictor()
    assert status_of(predict.main, face_file) == 2
    assert capsys.readouterr().err.startswith("error: no weights of cfmrfn_tiny come with")


class Reached(Exception):
    """A tool has come to the place that a test looks at."""


def test_evaluate_takes_it_and_compares_with_it(packaged, faces, tmp_path, monkeypatch, capsys):
    args = ["--data", faces, "--output", tmp_path / "out", "--workers", "0"]
    shutil.copytree(packaged, tmp_path / "mine")
    plan = evaluate._plans

    def stop(tool, names):
        raise Reached([each.name for each in plan(tool, names)])

    ours, mine = "cfmrfn_tiny/model.safetensors", "mine/model.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "_plans", stop)
        for names, expected in (([], [ours]), ([tmp_path / "mine", "pretrained"], [mine, ours])):
            with pytest.raises(Reached) as reached:
                evaluate.main([*map(str, names), *map(str, args)])
            assert reached.value.args == (expected,)
            assert capsys.readouterr().err == LINE.format(packaged / "README.md")
    assert status_of(evaluate.main, *args) == 0
    results = json.loads((tmp_path / "out" / "cfmrfn_tiny-model-faces-test.json").read_text())
    assert results["weights"] == checkpoint.digest_of(timm_folder.load(packaged)[0])


def test_analyze_and_demo_take_it(packaged, face_file, monkeypatch, capsys):
    def stop(*given):
        raise Reached(*given)

    monkeypatch.setattr(analyze, "explain_faces", stop)
    with pytest.raises(Reached) as reached:
        analyze.main([str(face_file), "--output", str(face_file.with_name("analysis"))])
    network, about, chosen = reached.value.args
    assert len(chosen) == 1 and about.class_names == CLASSES
    assert torch.equal(network.head.weight, timm_folder.load(packaged)[0].head.weight)
    monkeypatch.setattr(demo, "_serve", stop)
    with pytest.raises(Reached) as reached:
        demo.main(["--port", "0"])
    assert reached.value.args[1].about == about
    assert demo._name_of(None) == "cfmrfn_tiny"
    assert capsys.readouterr().err == 2 * LINE.format(packaged / "README.md")


def test_export_takes_it_by_name_alone(packaged, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert status_of(export.main, "pretrained", "--format", "safetensors") == 0
    assert capsys.readouterr().err == LINE.format(packaged / "README.md")
    ours, theirs = (timm_folder.load(p)[0] for p in (packaged, Path("export/cfmrfn_tiny")))
    assert checkpoint.digest_of(ours) == checkpoint.digest_of(theirs)
    assert "license_name: research-only" in Path("export/cfmrfn_tiny/README.md").read_text()


# Fine-tuning


def test_training_starts_from_it_by_name(packaged, faces, options, tmp_path):
    args = [*options[:2], "--image-size", "96", *options[6:], "--output", str(tmp_path / "run")]
    more = ["--init", "pretrained", "--freeze", "all-but-head", "--only", "anger", "happiness"]
    trainer = Trainer(parse_config([*args, *more]))
    saved = (tmp_path / "run" / "config.yaml").read_text()
    assert re.search("^init: pretrained$", saved, re.MULTILINE)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "positions resized from 2 x 2 to 3 x 3 tokens" in log
    assert "classifier by name: happiness, anger from the file" in log
    assert f"from {packaged / 'model.safetensors'}" in log
    source = timm_folder.load(packaged)[0]
    rows = [CLASSES.index(name) for name in trainer.class_names]
    assert torch.equal(trainer.network.head.weight, source.head.weight[rows])
    trained_parts = {n for n, p in trainer.network.named_parameters() if p.requires_grad}
    assert trained_parts == {"head.weight", "head.bias"}
    assert trainer.config.network.overrides()["drop_path_rate"] == 0.3


def test_a_folder_of_that_name_is_no_name(tmp_path, monkeypatch, packaged):
    monkeypatch.chdir(tmp_path)
    config = parse_config(["--init", "./pretrained"])
    assert config.network.init == Path("pretrained")
    assert from_mapping(config.flat(), "a test").network.init == Path("pretrained")
    with pytest.raises(errors.CheckpointError, match="no such weight file"):
        public_weights.read_source(config.network.init)
    assert parse_config(["--init", "pretrained"]).network.init == "pretrained"


def test_presets_without_weights_cannot_be_started_from(packaged):
    with pytest.raises(ConfigError, match="no weights of cfmrfn_base come with the package"):
        initial_weights.with_network_of_init(
            parse_config(["--init", "pretrained", "--model", "cfmrfn_base"])
        )


def test_exported_folders_tell_their_classes(stand_in):
    source = public_weights.read_source(stand_in)
    assert source.about.class_names == CLASSES
    assert public_weights.read_source(stand_in / "model.safetensors").about == source.about


# What is written


def results_of(network, about, split="test"):
    """As `cfmrfn.evaluate` writes them."""
    classes = len(about.class_names)

    def figures(each, accuracy):
        matrix = np.diag(np.full(classes, each)) + np.eye(classes, k=1, dtype=int)
        return {
            "images": int(matrix.sum()),
            "accuracy": accuracy,
            "mean_class_accuracy": 0.5,
            "macro_f1": 0.25,
            "loss": 1.5,
            "per_class": dict.fromkeys(about.class_names, 0.9),
            "confusion_matrix": matrix.tolist(),
            "brier_score": 0.375,
            "calibration": {"ece": 0.0625, "mean_confidence": 0.75},
            "bootstrap": {"accuracy": [0.1, 0.2], "mean_class_accuracy": [0.3, 0.4]},
        }

    return {
        "checkpoint": "/secret/best.pt",
        "data": "/secret/data",
        "set": "FERPlus (majority)",
        "split": split,
        "weights": checkpoint.digest_of(network),
        **figures(9, 0.8125),
        "without_duplicates": figures(8, 0.7812),
    }


@pytest.fixture(scope="module")
def card(stand_in, tmp_path_factory):
    """The text of a card with results."""
    folder = tmp_path_factory.mktemp("card")
    network, about = timm_folder.load(stand_in)
    (folder / "results.json").write_text(json.dumps(results_of(network, about)))
    export.export(
        stand_in, ("safetensors",), folder / "out", name="tiny", results=folder / "results.json"
    )
    return (folder / "out" / "README.md").read_text("utf-8")


def test_card_has_results_with_and_without_duplicates(card):
    assert "8 of the images are training images too, pixel for pixel; the other 71 are" in card
    for row in (
        "| | All images | Without duplicates |",
        "| Accuracy | 0.8125 (0.1000 to 0.2000) | 0.7812 (0.1000 to 0.2000) |",
        "| Macro F1 | 0.2500 | 0.2500 |",
        "| ECE | 0.0625 | 0.0625 |",
        "| Brier score | 0.3750 | 0.3750 |",
        # 9 of 10 and 8 of 9, by Wilson's formula
        "| surprise | 0.9000 (0.5958 to 0.9821) | 10 | 0.9000 (0.5650 to 0.9801) | 9 |",
    ):
        assert row in card
    assert "by Wilson's formula, of the others by a bootstrap over the images. They say" in card
    assert "not measured here" not in re.search("It always answers.*", card)[0]
    assert "secret" not in card


def test_card_tells_the_licence_as_hubs_read_it(card):
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["license_name"]) == ("other", "research-only")
    (model,) = front["model-index"]
    assert model["results"][0]["dataset"]["name"].startswith("FERPlus")
    for phrase in ("MIT licence", "FER2013", "never settled", "48 x 48 grey", "for research"):
        assert phrase in card
    hub = pytest.importorskip("huggingface_hub")
    parsed = hub.ModelCard(card).data
    assert parsed.license_name == "research-only"
    values = {each.metric_type: each.metric_value for each in parsed.eval_results}
    assert values == {"accuracy": 0.8125, "recall": 0.5, "f1": 0.25}


def test_results_of_other_weights_are_refused(stand_in, tmp_path):
    network, about = timm_folder.load(stand_in)
    results = {**results_of(network, about), "weights": "another"}
    for text, message in (
        (json.dumps(results), "are of other weights, those of /secret/best.pt"),
        ('{"runs": []}', "are not those of one network"),
        ("{", "are damaged"),
        (None, "cannot read results"),
    ):
        file = tmp_path / "results.json"
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            export.export(stand_in, ("safetensors",), tmp_path / "out", results=file)
    assert {path.name for path in tmp_path.iterdir()} <= {"results.json"}


def test_float16_halves_the_file_and_says_what_it_costs(tmp_path, capsys):
    network, about = make_network(["--depth", "2"], 8, size=SIZE)
    values = {"model": network.state_dict(), "about": about.to_dict()}
    checkpoint.save(tmp_path / "best.pt", values)
    sizes, printed = [], []
    for dtype in ("float32", "float16"):
        args = [tmp_path / "best.pt", "--format", "safetensors", "--weights", dtype]
        assert status_of(export.main, *args, "--output", tmp_path / dtype) == 0
        printed.append(capsys.readouterr().out)
        sizes.append((tmp_path / dtype / "model.safetensors").stat().st_size)
    assert 0.45 < sizes[1] / sizes[0] < 0.6
    cost = re.search(r"changes outputs by up to (\S+), and probabilities by up to", printed[1])
    assert 1e-6 < float(cost[1]) < 1e-2 and "rounded" not in printed[0]
    assert cost[0] in (tmp_path / "float16" / "README.md").read_text()
    rounded, _ = timm_folder.load(tmp_path / "float16")
    torch.testing.assert_close(rounded(images()), network(images()), rtol=0.01, atol=0.01)
    assert torch.equal(rounded.norm.weight, network.norm.weight)
    with pytest.raises(ConfigError, match="float16 are for safetensors; name that format alone"):
        export.export(tmp_path, ("onnx", "safetensors"), tmp_path / "out", weights="float16")


def test_weights_that_float16_cannot_hold(tmp_path):
    network, about = make_network(size=SIZE)
    torch.nn.init.constant_(network.head.weight, 1e5)
    values = {"model": network.state_dict(), "about": about.to_dict()}
    checkpoint.save(tmp_path / "best.pt", values)
    with pytest.raises(CheckpointError, match="too large for float16; leave them in float32"):
        export.export(tmp_path, ("safetensors",), tmp_path / "out", weights="float16")
    assert not (tmp_path / "out").exists()


# The package


def test_wheel_and_sdist_hold_it(stand_in, tmp_path, monkeypatch):
    setuptools = pytest.importorskip("setuptools")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("sdwa/__init__.py", "sdwa/_version.py", "cfmrfn/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    there = tmp_path / "cfmrfn" / "pretrained"
    (there / "__pycache__").mkdir(parents=True)
    (there / "__pycache__" / "__init__.cpython-311.pyc").touch()
    shutil.copy(ROOT / "cfmrfn" / "pretrained" / "__init__.py", there)
    shutil.copytree(stand_in, there / "cfmrfn_tiny")
    (there / "landmarks").mkdir()
    (there / "landmarks" / "cfmrfn_tiny.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    distribution = setuptools.Distribution({"script_name": "setup.py", "src_root": None})
    distribution.parse_config_files(["pyproject.toml"])
    wanted = {
        *(f"cfmrfn/pretrained/cfmrfn_tiny/{file.name}" for file in stand_in.iterdir()),
        "cfmrfn/pretrained/landmarks/cfmrfn_tiny.safetensors",
        "cfmrfn/pretrained/__init__.py",
    }
    assert len(wanted) == 5
    with contextlib.redirect_stdout(None):
        distribution.run_command("sdist")
        distribution.run_command("build_py")
    (archive,) = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as files:
        in_sdist = {name.partition("/")[2] for name in files.getnames()}
    in_wheel = {
        os.path.relpath(file, "build/lib")
        for file in Path("build/lib").rglob("*")
        if file.is_file()
    }
    for found in (in_sdist, in_wheel):
        assert wanted == {
            name for name in found if name.startswith("cfmrfn/pretrained/") and "." in name
        }


OTHER_PROCESS = """
import sys
seen = []
names = ("open", "socket.connect", "socket.getaddrinfo", "pickle.find_class")
sys.addaudithook(lambda name, args: seen.append((name, str(args[0]))) if name in names else None)
import cfmrfn, timm
assert not [args for name, args in seen if "safetensors" in args and name == "open" and
            "model.safetensors" in args], "weights are read when the package is imported"
print(timm.list_models("cfmrfn*", pretrained=True))
print(timm.create_model("cfmrfn_tiny", pretrained=True).num_classes)
from cfmrfn import predict
seen.clear()
predict.main(["face.png"])
print(sorted({name for name, _ in seen} - {"open"}))
print(any(args.endswith("model.safetensors") for name, args in seen))
"""


def test_installed_elsewhere(stand_in, face_file, tmp_path):
    """From another folder: registered with timm, no weights read on import, no pickle, offline."""
    place = tmp_path / "site-packages"
    shutil.copytree(ROOT / "cfmrfn", place / "cfmrfn", ignore=shutil.ignore_patterns("__pycache__"))
    target = place / "cfmrfn" / "pretrained" / "cfmrfn_tiny"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(stand_in, target)
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS],
        cwd=face_file.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (place, ROOT)))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    models, classes, face, others, was_read = done.stdout.splitlines()
    assert (models, classes) == ("['cfmrfn_tiny']", "8")
    assert face.startswith("face.png")
    assert (others, was_read) == ("[]", "True")
    assert done.stderr == LINE.format(target / "README.md")


# The weights themselves

REAL = pretrained.FOLDER / "cfmrfn_tiny"


def test_it_is_small_and_says_where_it_is_from():
    assert {file.name for file in REAL.iterdir()} == {
        *("config.json", "model.safetensors", "README.md")
    }
    assert (REAL / "model.safetensors").stat().st_size <= 4e6
    for file in REAL.iterdir():
        content = file.read_bytes()
        for path in (b"/root", b"/home", b"/work", b"/tmp", b"/Users", b":\\\\"):
            assert path not in content, file
    text = (REAL / "README.md").read_text("utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license_name"] == "research-only"
    assert {each["type"] for each in front["model-index"][0]["results"][0]["metrics"]} >= {
        "accuracy"
    }
    for phrase in ("Brier score", "ECE", "pixel for pixel", "Not for decisions about people"):
        assert phrase in text
    shown = re.search(r"`model.safetensors` \| .* \| `(\w{64})`", text)[1]
    assert shown == export._digest(REAL / "model.safetensors")


def test_it_is_the_preset():
    """Options of the run may be others, but none that its checkpoints would not fit."""
    ours, theirs = (
        {
            n: p.shape
            for n, p in timm.create_model("cfmrfn_tiny", pretrained=pretrained).named_parameters()
        }
        for pretrained in (False, True)
    )
    assert ours == theirs


def test_its_weights_make_a_network_see_grey(tmp_path):
    theirs = timm.create_model("cfmrfn_tiny", pretrained=True).eval()
    x = torch.randn(2, 3, 128, 128)
    torch.save(theirs.state_dict(), tmp_path / "mine.pth")
    with pytest.warns(UserWarning, match="gray=True"):
        ours = timm.create_model(
            "cfmrfn_tiny", num_classes=8, checkpoint_path=tmp_path / "mine.pth"
        )
    assert torch.equal(ours.eval()(x), theirs(x))
    again = timm.create_model("cfmrfn_tiny", num_classes=8, gray=True)
    again.load_state_dict(theirs.state_dict())
    assert torch.equal(again.eval()(x), theirs(x))


def test_weights_of_former_versions_have_no_luma():
    network = timm.create_model("cfmrfn_tiny", gray=True)
    former = {n: t for n, t in network.state_dict().items() if not n.startswith("luma.")}
    network.load_state_dict(former)
    assert "luma.weights" in network.state_dict() and "luma.weights" not in former


def test_it_knows_a_smile():
    """In colour, which it never learnt from, as well."""
    predictor = cfmrfn.Predictor()
    (face,) = predictor(data.astronaut())
    assert face.expression == "happiness"
    (grey,) = predictor(Image.fromarray(data.astronaut()).convert("L").convert("RGB"))
    assert grey.probabilities == pytest.approx(face.probabilities, abs=0.02)
    drawn = [draw_face("happiness", 128, (seed,)).image for seed in range(5)]
    found = [faces[0].expression for faces in predictor(drawn)]
    assert found.count("happiness") >= 3
