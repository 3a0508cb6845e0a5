"""The tool for export: every format read elsewhere, the model card, files whole or not at all."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image

from cfmrfn import checkpoint, export
from cfmrfn.classifier import load_classifier
from cfmrfn.errors import CheckpointError, ConfigError
from cfmrfn.formats import onnx_file, timm_folder
from cfmrfn.predictor import Predictor
from cfmrfn.process import command
from tests.cfmrfn.export.test_onnx_file import assert_same, make_network

ROOT = Path(__file__).parents[3]
ALL = ("onnx", "torch", "safetensors")
WRITTEN = {"model.onnx", "model.pt2", "model.safetensors", "config.json", "README.md"}

pytestmark = pytest.mark.usefixtures("one_thread", "no_network")


def make_run(folder, options=(), classes=7, *, report=True, **more):
    """A run folder of a random network that was trained on a set of its own."""
    config_options = ["--data", str(folder.parent / "secret" / "MY-FACES"), *options]
    network, about = make_network(config_options, classes, **more)
    folder.mkdir()
    values = {**about.to_dict(), "epoch": 2, "chosen_on": "test"}
    checkpoint.save(folder / "best.pt", {"model": network.state_dict(), "about": values})
    results = {
        "epoch": 2,
        "images": 15,
        "loss": 1.25,
        "accuracy": 0.5625,
        "mean_class_accuracy": 0.4375,
        "macro_f1": 0.3125,
        "per_class": {name: 0.1 * n for n, name in enumerate(about.class_names)},
    }
    if report:
        text = json.dumps(
            {
                "data": "My|faces",
                "training_images": 60,
                "left_out": {},
                "held_out": {"test": results},
            }
        )
        (folder / "report.json").write_text(text)
    return network, about


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """folder of all formats, the network itself, what is said of it"""
    root = tmp_path_factory.mktemp("export")
    network, about = make_run(root / "run", landmarks=True)
    export.export(root / "run", ALL, root / "out")
    return root / "out", network, about


def run_tool(*args):
    """The status of the tool on the command line."""
    try:
        command.run(lambda: export.main([*map(str, args)]))
    except SystemExit as stop:
        return stop.code
    return 0


@torch.no_grad()
def logits_and_landmarks(network, x):
    return [network(x), network.landmarks(x)]


def test_files(exported):
    assert {file.name for file in exported[0].iterdir()} == WRITTEN
    assert {file.name for file in exported[0].parent.iterdir()} == {"run", "out"}


def test_timm_opens_the_folder(exported):
    folder, network, about = exported
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), network(x))
    images = timm.data.resolve_model_data_config(model)
    assert tuple(images["input_size"]) == (3, 64, 64)
    assert (tuple(images["mean"]), tuple(images["std"])) == (about.mean, about.std)
    assert model.pretrained_cfg["label_names"] == list(about.class_names)
    finetuned = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3)
    assert finetuned(x).shape == (3, 3)


def test_timm_sees_images_as_we_do(exported, faces):
    folder = exported[0]
    images = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{folder}"))
    transform = timm.data.create_transform(**images)
    file = next((faces / "Image" / "aligned").iterdir())
    with Image.open(file) as image:
        image = image.convert("RGB").resize((91, 70))
    ours = Predictor(folder / "model.onnx", faces="whole").prepare(image).images[0]
    # timm resizes images of Pillow, we resize tensors
    torch.testing.assert_close(transform(image), ours, rtol=0, atol=0.05)


def test_torch_runs_without_us(exported):
    """The program needs PyTorch alone."""
    folder, network, about = exported
    x = torch.randn(4, 3, 64, 64)
    torch.save(x, folder.parent / "x.pt")
    code = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
extra = {"cfmrfn.json": ""}
model = torch.export.load(sys.argv[1], extra_files=extra).module()
with torch.no_grad():
    results = [model(part) for part in torch.load(sys.argv[2]).split([1, 3])]
assert not {"sdwa", "cfmrfn", "timm"} & set(sys.modules), sys.modules
print(json.loads(extra["cfmrfn.json"])["about"]["class_names"])
torch.save([torch.cat(each) for each in zip(*results)], sys.argv[2])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, folder / "model.pt2", folder.parent / "x.pt"],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(list(about.class_names))
    assert_same(torch.load(folder.parent / "x.pt"), logits_and_landmarks(network, x))
    (folder.parent / "x.pt").unlink()


def test_classifiers_of_folder_and_file_agree(exported):
    folder, network, about = exported
    x = torch.randn(2, 3, 64, 64)
    logits, landmarks = logits_and_landmarks(network, x)
    for path in (folder, folder / "model.onnx"):
        classifier = load_classifier(path)
        assert classifier.about.class_names == about.class_names
        assert classifier.about.epoch == 2
        found = classifier(x)
        assert_same([found.probabilities, found.landmarks], [logits.softmax(1), landmarks])


def test_a_folder_with_onnx_alone(exported, tmp_path):
    shutil.copy(exported[0] / "model.onnx", tmp_path)
    assert load_classifier(tmp_path).about.epoch == 2


def test_an_exported_folder_is_exported_again(exported, tmp_path):
    folder, network, _ = exported
    export.export(folder, ("onnx",), tmp_path / "again")
    x = torch.randn(2, 3, 64, 64)
    again = onnx_file.OnnxFile(tmp_path / "again" / "model.onnx")
    assert_same(again.run(x), logits_and_landmarks(network, x))
    assert again.about == load_classifier(folder).about


def test_no_path_of_this_machine_is_told(exported):
    folder = exported[0]
    about = load_classifier(folder).about
    assert about.config.images.data == Path("MY-FACES")
    for file in folder.iterdir():
        content = file.read_bytes()
        for secret in (b"secret", os.fsencode(ROOT), os.fsencode(sys.prefix)):
            assert secret not in content, file


# Formats and options


@pytest.mark.parametrize("color", ("RGB", "BGR"))
def test_pixels(color, tmp_path):
    network, about = make_run(tmp_path / "run", ["--color", color], classes=2)
    export.export(tmp_path / "run", ("onnx", "torch"), tmp_path / "out", pixels=True)
    pixels = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    channels = pixels.permute(0, 3, 1, 2)
    channels = channels.flip(1) if color == "BGR" else channels
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (about.mean, about.std))
    with torch.no_grad():
        probabilities = network((channels / 255 - mean) / std).softmax(1)
        program = torch.export.load(tmp_path / "out" / "model.pt2").module()
        assert_same([program(pixels)], [probabilities])
    assert_same(onnx_file.OnnxFile(tmp_path / "out" / "model.onnx").run(pixels), [probabilities])


@pytest.mark.parametrize("options", (["--tokens", "poster_view"], ["--model", "cfmrfn_base"]))
def test_other_networks_in_timm_and_torch(options, tmp_path):
    network, _ = make_run(tmp_path / "run", options, classes=8)
    export.export(tmp_path / "run", ("torch", "safetensors"), tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), network(x))
        program = torch.export.load(tmp_path / "out" / "model.pt2").module()
        assert_same([program(x)], [network(x)])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"formats": ("onnx", "tflite")}, "format must be one or more of .*got onnx tflite"),
        ({"formats": ()}, "got none"),
        ({"opset": 11}, "opset must be one of 18, 19, 20; got 11"),
        ({"formats": ("safetensors",), "pixels": True}, "pixels is for onnx and torch"),
        ({"weights": "float8"}, "weights must be one of float32, float16; got 'float8'"),
        ({"results": "a.json", "card": False}, "results are for the card, which was not asked"),
        ({"name": "a", "card": False}, "name is the title of the card, which was not asked"),
        ({"opset": 20, "formats": ["torch"]}, "opset is for onnx files; formats are torch"),
    ],
)
def test_arguments_that_are_not_legal(arguments, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        export.export(tmp_path, output=tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert run_tool("run", "--format", "safetensors") == 0
    printed = capsys.readouterr().out
    assert "model.safetensors: largest difference from PyTorch 0.0e+00" in printed
    assert {file.name for file in (tmp_path / "export" / "run").iterdir()} == {
        *("README.md", "config.json", "model.safetensors")
    }
    assert run_tool("nowhere") == 2
    assert capsys.readouterr().err == "error: there is no checkpoint nowhere\n"


def test_a_checkpoint_that_is_not_the_best_has_a_name_of_its_own(tmp_path, monkeypatch):
    make_run(tmp_path / "run")
    shutil.copy(tmp_path / "run" / "best.pt", tmp_path / "run" / "last.pt")
    monkeypatch.chdir(tmp_path)
    exported = export.export("run/last.pt", ("safetensors",), card=False)
    assert exported.folder == Path("export/run-last")
    assert {file.name for file in exported.folder.iterdir()} == {"model.safetensors", "config.json"}


# Whole or not at all


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_nothing_is_overwritten_unless_asked(tmp_path):
    make_run(tmp_path / "run")
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("mine")
    (out / "notes.txt").write_text("mine too")
    before = contents(out)
    with pytest.raises(ConfigError, match=r"has README.md; --overwrite replaces"):
        export.export(tmp_path / "run", ("safetensors",), out)
    assert contents(out) == before
    export.export(tmp_path / "run", ("safetensors",), out, card=False)
    assert contents(out)["README.md"] == b"mine"
    export.export(tmp_path / "run", ("safetensors",), out, overwrite=True)
    assert contents(out)["README.md"] != b"mine"
    assert contents(out)["notes.txt"] == b"mine too"
    assert {file.name for file in tmp_path.iterdir()} == {"run", "out"}


def test_a_card_does_not_lie_beside_weights_of_others(tmp_path):
    make_run(tmp_path / "run")
    out = tmp_path / "out"
    export.export(tmp_path / "run", ("safetensors",), out)
    before = contents(out)
    message = (
        r"has README\.md, the card of config\.json, model\.safetensors, which would be replaced"
    )
    with pytest.raises(ConfigError, match=message):
        export.export(tmp_path / "run", ("safetensors",), out, overwrite=True, card=False)
    assert contents(out) == before
    (out / "README.md").write_text("mine")
    export.export(tmp_path / "run", ("safetensors",), out, overwrite=True, card=False)
    assert contents(out)["README.md"] == b"mine"


def test_files_of_two_networks_do_not_lie_together(tmp_path):
    make_run(tmp_path / "run")
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.onnx").write_text("of another network")
    with pytest.raises(ConfigError, match=r"has model\.onnx of another export"):
        export.export(tmp_path / "run", ("safetensors",), out, overwrite=True)


def test_a_file_in_the_way(tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        export.export(tmp_path / "run", ("safetensors",), tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("there", (True, False))
@pytest.mark.parametrize("value", (1e-2, float("nan")))
def test_a_difference_leaves_nothing_behind(value, there, tmp_path, monkeypatch):
    make_run(tmp_path / "run")
    out = tmp_path / "deep" / "out"
    if there:
        out.mkdir(parents=True)
        (out / "notes.txt").write_text("mine")
    run = onnx_file.OnnxFile.run
    monkeypatch.setattr(
        onnx_file.OnnxFile, "run", lambda self, x: [each + value for each in run(self, x)]
    )
    with pytest.raises(CheckpointError, match=r"model\.onnx differs .* at most 1e-04 is rounding"):
        export.export(tmp_path / "run", ("safetensors", "onnx"), out)
    if there:
        assert contents(out) == {"notes.txt": b"mine"}
        assert {file.name for file in out.parent.iterdir()} == {"out"}
    else:
        assert {file.name for file in tmp_path.iterdir()} == {"run"}


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path, monkeypatch):
    make_run(tmp_path / "run")

    def fail(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fail)
    assert run_tool(tmp_path / "run", "--format", "safetensors", "--output", tmp_path / "out") == 2
    assert {file.name for file in tmp_path.iterdir()} == {"run"}


def test_largest_difference():
    one = torch.tensor([1.0, -20.0])
    assert export.largest_difference([one], [one + 0.1]) == pytest.approx(0.1 / 20, rel=1e-4)
    assert export.largest_difference([one / 20], [one / 20 + 0.1]) == pytest.approx(0.1, rel=1e-4)
    assert export.largest_difference([one], [one[:1]]) == float("inf")
    assert export.largest_difference([one], [one * torch.nan]) == float("inf")
    with pytest.raises(ValueError, match="longer"):
        export.largest_difference([one], [one, one])


# timm folders that are not as they were written


def damage_config(folder, change):
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))


def test_damaged_folders(exported, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(exported[0] / name, tmp_path)
    whole = contents(tmp_path)
    damage_config(tmp_path, lambda values: values.pop("cfmrfn"))
    with pytest.raises(CheckpointError, match=r"config\.json is not of a network"):
        load_classifier(tmp_path)
    (tmp_path / "config.json").write_bytes(whole["config.json"])
    damage_config(tmp_path, lambda values: values["cfmrfn"]["class_names"].pop())
    with pytest.raises(CheckpointError, match=r"does not fit config\.json: .*num_classes=7"):
        load_classifier(tmp_path)
    (tmp_path / "config.json").write_bytes(whole["config.json"][:50])
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        load_classifier(tmp_path)
    (tmp_path / "config.json").write_bytes(whole["config.json"])
    (tmp_path / "model.safetensors").write_bytes(whole["model.safetensors"][:5000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors "):
        load_classifier(tmp_path)


def test_a_folder_of_neither(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no best\.pt in"):
        load_classifier(tmp_path)


# The model card


def card_of(folder):
    text = (folder / "README.md").read_text("utf-8")
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_card_has_the_report_and_its_figures(exported):
    front, body = card_of(exported[0])
    (model,) = front["model-index"]
    (result,) = model["results"]
    assert {each["type"]: each["value"] for each in result["metrics"]} == {
        "accuracy": 0.5625,
        "recall": 0.4375,
        "f1": 0.3125,
    }
    assert "15 held-out images of My\\|faces" in body
    assert "Training images: 60." in body
    assert "optimistic" in body
    for row in ("| Accuracy | 0.5625 |", "| surprise | 0.0000 |", "| neutral | 0.6000 |"):
        assert row in body
    for name in WRITTEN - {"README.md"}:
        digest = export._digest(exported[0] / name)
        assert re.search(rf"\| `{re.escape(name)}` \|.*\| `{digest}` \|", body)


@pytest.mark.parametrize("other", (None, {"epoch": 1}, {"weights": "0" * 64}))
def test_card_invents_no_figures(other, tmp_path):
    """No report, or one of other weights; former versions knew these by their epoch."""
    make_run(tmp_path / "run", report=other is not None)
    if other is not None:
        report = json.loads((tmp_path / "run" / "report.json").read_text())
        report["held_out"]["test"].update(other)
        (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    export.export(tmp_path / "run", ("safetensors",), tmp_path / "out")
    front, body = card_of(tmp_path / "out")
    assert "model-index" not in front
    assert "None are given" in body
    assert ("Training images: 60." if other else "Training images: not recorded") in body
    assert "0.5625" not in body


@pytest.mark.parametrize(
    "content", (b"\xff", b"[]", b'{"held_out": 3}', b'{"held_out": {"last": 1}}')
)
def test_a_damaged_report_is_not_taken_for_none(content, tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / "run" / "report.json").write_bytes(content)
    with pytest.raises(ConfigError, match="report .*report.json is damaged .*: put a whole one"):
        export.export(tmp_path / "run", ("safetensors",), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_card_says_of_what_a_report_has_intervals(tmp_path):
    make_run(tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    report["held_out"]["test"]["confusion_matrix"] = [[2] * 7] * 7
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    export.export(tmp_path / "run", ("safetensors",), tmp_path / "out")
    _, body = card_of(tmp_path / "out")
    assert "| Accuracy | 0.5625 |" in body
    assert "intervals, of single classes by Wilson's formula. They say" in body


def card_with(run, **results):
    """Front matter and body of a card with results that were measured otherwise than the report."""
    report = json.loads((run / "report.json").read_text())
    network, _ = checkpoint.load_network(run)
    file = run / "results.json"
    measured = {
        **report["held_out"]["test"],
        "data": str(run.parent / "secret" / "MY-FACES"),
        "set": report["data"],
        "split": "test",
        "weights": checkpoint.digest_of(network),
        **results,
    }
    file.write_text(json.dumps(measured))
    out = run.parent / "out"
    export.export(run, ("safetensors",), out, results=file, overwrite=True)
    front, body = card_of(out)
    return front["model-index"][0]["results"][0]["dataset"], " ".join(body.split())


def test_card_says_which_images_were_measured(tmp_path):
    make_run(tmp_path / "run")
    data, body = card_with(tmp_path / "run", images=14)
    assert data["name"] == "My|faces, held-out images"
    assert data["split"] == "test"
    assert "Measured on the 14 held-out images of My\\|faces (split test)" in body
    assert "the best on the held-out images themselves, so that the figures below are opti" in body
    assert "- Held out: 15 images." in body  # as the report has it

    data, body = card_with(tmp_path / "run", images=60, split="train")
    assert (data["name"], data["split"]) == ("My|faces, training images", "train")
    assert "Measured on the 60 training images of My\\|faces (split train)" in body
    assert "The network learned from them" in body
    assert "- Held out: 15 images." in body
    assert "optimistic" not in body

    data, body = card_with(tmp_path / "run", images=60, set="RAF-DB")
    assert data["name"] == "RAF-DB, held-out images"
    assert "Measured on the 60 held-out images of RAF-DB (split test)" in body
    assert "epoch 2: the best on the held-out images of My\\|faces." in body
    assert "optimistic" not in body
    assert "Not measured: further data sets" in body


@pytest.mark.parametrize(
    ("folder", "own"), [("MY-FACES", True), ("YOUR-FACES", False)], ids=["own", "another"]
)
def test_card_tells_class_folders_apart(tmp_path, folder, own):
    """All have one name."""
    make_run(tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    (tmp_path / "run" / "report.json").write_text(json.dumps({**report, "data": "class folders"}))
    _, body = card_with(tmp_path / "run", data=f"/elsewhere/{folder}")
    assert ("optimistic" in body) == own


@pytest.mark.parametrize(("chosen_on", "said"), [("val", "validation"), ("train", "held-out")])
def test_card_tells_images_that_chose_the_epoch_from_others(tmp_path, chosen_on, said):
    """Images of split val are held out where those for validation are of the training split."""
    network, about = make_run(tmp_path / "run", ["--validation", "0.1"])
    values = {**about.to_dict(), "epoch": 2, "chosen_on": "val"}
    checkpoint.save(tmp_path / "run" / "best.pt", {"model": network.state_dict(), "about": values})
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    report |= {"validation_images": 6, "validation_split": chosen_on}
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    _, body = card_with(tmp_path / "run", split="val")
    assert ("10 % of the training images were set aside" in body) == (chosen_on == "train")
    assert f"Measured on the 15 {said} images of" in body
    assert ("so that the figures below are optimistic" in body) == (chosen_on == "val")


def test_card_says_how_predictions_were_restricted_and_which_images_left_out(tmp_path):
    make_run(tmp_path / "run")
    few = {"surprise": 0.5, "anger": 0.25}
    data, body = card_with(
        tmp_path / "run",
        **{"per_class": few, "shared_classes": True, "set": "AffectNet"},
        duplicates={"left_out": True, "of": "training or validation", "images": ["a", "b"]},
    )
    assert data["name"] == "AffectNet, held-out images, 2 shared classes"
    assert "are among the 2 shared classes alone, of the network's 7" in body
    assert "2 more were left out, which are training or validation images of that set too" in body
    data, body = card_with(tmp_path / "run", shared_classes=True)
    assert "shared classes" not in data["name"] + body


@pytest.mark.parametrize(
    ("options", "layout", "drawn"),
    [([], None, True), (["--data", "FACES"], "drawn", True), (["--data", "FACES"], "rafdb", False)],
)
def test_card_says_what_drawn_faces_are_good_for(options, layout, drawn, tmp_path):
    network, about = make_network(options)
    (tmp_path / "run").mkdir()
    checkpoint.save(
        tmp_path / "run" / "best.pt",
        {"model": network.state_dict(), "about": {**about.to_dict(), "layout": layout}},
    )
    export.export(tmp_path / "run", ("safetensors",), tmp_path / "out")
    front, body = card_of(tmp_path / "out")
    assert ("Drawn faces only." in body) == drawn
    assert front["license"] == ("mit" if drawn else "other")
    # how many are drawn where no data are given decides nothing else
    assert ("2000 for training and 500 held out" in body) == (options == [])
    assert load_classifier(tmp_path / "out").about.layout == layout


def test_card_says_which_images_and_weights_a_run_began_with(tmp_path):
    (tmp_path / "ours").mkdir()
    options = [
        "--validation",
        "0",
        "--only",
        "fear",
        "anger",
        "--ir50",
        str(tmp_path / "ours/ir.pt"),
    ]
    make_run(tmp_path / "run", options)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    report |= {"validation_images": 9, "left_out": {"class none is not wanted": 4}}
    report["held_out"]["test"]["flip"] = True
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    export.export(tmp_path / "run", ("safetensors",), tmp_path / "out")
    _, body = card_of(tmp_path / "out")
    assert "set aside for validation" not in body
    assert "- Validation images: 9.\n" in body
    assert "- Of its classes these were used: fear, anger.\n" in body
    assert "- Left out: 4 (class none is not wanted).\n" in body
    assert "mean over each image and its mirror image" in body
    assert "expression backbone from `ir.pt`" in body
    assert str(tmp_path) not in body


@pytest.mark.parametrize("gray", (True, False))
def test_card_says_that_colors_are_not_seen(gray, tmp_path):
    make_run(tmp_path / "run", ["--gray", str(gray)])
    export.export(tmp_path / "run", ("safetensors",), tmp_path / "out")
    assert ("colours become grey" in card_of(tmp_path / "out")[1]) == gray


@pytest.mark.parametrize(
    "options, more",
    [
        (("--color", "BGR"), {"landmarks": True}),
        (("--gray", "True"), {"landmarks": True}),
        ((), {"pixels": True, "formats": ("onnx", "torch")}),
        ((), {"formats": ("torch",)}),
    ],
)
def test_snippets_of_the_card_run(options, more, tmp_path, faces, monkeypatch):
    """Every block of the card, in its folder, gives the same probabilities."""
    make_run(tmp_path / "run", options, landmarks=more.get("landmarks", False))
    out = tmp_path / "out"
    exported = {name: value for name, value in more.items() if name == "pixels"}
    export.export(tmp_path / "run", more.get("formats", ALL), out, **exported)
    source = next((faces / "Image" / "aligned").iterdir())
    for name in ("photo.jpg", "face.jpg"):
        shutil.copy(source, out / name)
    blocks = re.findall(r"```(\w+)\n(.*?)```", card_of(out)[1], re.DOTALL)
    (reference,) = Predictor(tmp_path / "run")(out / "face.jpg")
    assert blocks
    monkeypatch.chdir(out)
    for language, code in blocks:
        if language == "sh":
            command = code.replace("python", sys.executable, 1).split()
            done = subprocess.run(
                command,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{code}\n{done.stderr}"
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(code, {"__name__": "__main__"})
        found = {
            name: float(value)
            for name, value in re.findall(
                r"'(\w+)': (?:np\.float32\()?([\d.e-]+)", printed.getvalue()
            )
        }
        assert found == pytest.approx(reference.probabilities, abs=0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_of_any_bytes_and_that_markdown_would_read(tmp_path):
    folder = tmp_path / os.fsdecode(b"run_*1*_\xe9")
    make_run(folder)
    out = tmp_path / os.fsdecode(b"out \xe9")
    export.export(folder, ALL, out)
    assert r"# run\_\*1\*\_\\udce9" in card_of(out)[1]
    assert timm_folder.load(out)[1].epoch == 2
    assert load_classifier(out / "model.onnx").about.epoch == 2
    (out / "model.onnx").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match="is no ONNX file, but text"):
        load_classifier(out / "model.onnx")
