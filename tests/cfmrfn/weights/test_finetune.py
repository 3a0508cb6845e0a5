"""Starting from other weights, frozen parts, class weights, and classes of a user's own."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from timm.layers import resample_abs_pos_embed

from cfmrfn import checkpoint, evaluate, predict
from cfmrfn.config import Config, parse_config
from cfmrfn.data import Sample, open_set
from cfmrfn.errors import CheckpointError, ConfigError
from cfmrfn.figures.pictures import plot_confusion, plot_tsne
from cfmrfn.losses import ExpressionLoss, class_weights
from cfmrfn.metrics import Report
from cfmrfn.optim import build_ema
from cfmrfn.process.distributed import World
from cfmrfn.train import Trainer
from cfmrfn.training.images import Splits, weights_of_classes
from cfmrfn.weights import initial_weights, public_weights
from tests.cfmrfn.processes import forked
from tests.cfmrfn.training.test_ddp import rows
from tests.cfmrfn.training.test_resume import assert_equal, state
from tests.cfmrfn.weights.test_weights import poster_tensors, random_tensors

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")


@pytest.fixture(scope="module")
def source_run(faces, tmp_path_factory):
    """The folder of a run on 7 expressions, with a network of depth 1 for 64 x 64 images."""
    folder = tmp_path_factory.mktemp("source") / "run"
    args = ["--data", str(faces), "--image-size", "64", "--depth", "1", "--epochs", "1"]
    more = ["--batch-size", "8", "--workers", "0", "--no-tensorboard", "--rho", "0"]
    return Trainer(parse_config([*args, *more, "--output", str(folder)])).train()


@pytest.fixture(scope="module")
def own_classes(faces, tmp_path_factory):
    """Class folders of three classes, two of them expressions, of unequal size."""
    root = tmp_path_factory.mktemp("own") / "set"
    folders = {"happiness": "Happy", "anger": "10-19", "surprise": "été"}
    opened = open_set(faces)
    for split in ("train", "test"):
        for sample in opened.splits[split]:
            if folder := folders.get(opened.class_names[sample.label]):
                (root / split / folder).mkdir(parents=True, exist_ok=True)
                shutil.copy(sample.path, root / split / folder)
    for image in sorted((root / "train" / "10-19").iterdir())[2:]:
        image.unlink()
    return root


@pytest.fixture
def own_options(own_classes):
    """A run on `own_classes` that takes a second or two."""
    return [
        *("--data", str(own_classes), "--image-size", "64", "--epochs", "2", "--batch-size", "6"),
        *("--validation", "0", "--workers", "0", "--no-tensorboard", "--device", "cpu"),
    ]


def about_of(config=None, names=NAMES):
    return checkpoint.About.of_run(config or Config(), tuple(names))


def tiny(names=NAMES, *args):
    """A network of random weights, and what it is for."""
    torch.manual_seed(len(args))
    config = initial_weights.with_network_of_init(parse_config(["--image-size", "64", *args]))
    return checkpoint.build_network(config, len(names)), about_of(config, names)


def saved(path, names=NAMES, *args):
    """A checkpoint of a random network at `path`; its tensors."""
    network, about = tiny(names, *args)
    network.landmark_backbone.conv1.bn.running_mean.fill_(1)
    checkpoint.save(path, {"model": network.state_dict(), "about": about.to_dict()})
    return network.state_dict()


# What is loaded


def test_every_tensor_of_a_checkpoint_and_of_bare_weights(tmp_path):
    tensors = saved(tmp_path / "best.pt")
    safetensors.torch.save_file(
        {f"_orig_mod.{n}": t.contiguous() for n, t in tensors.items()},
        tmp_path / "model.safetensors",
    )
    for path in (tmp_path / "best.pt", tmp_path, tmp_path / "model.safetensors"):
        network, about = tiny(NAMES, "--seed", "5")
        report = public_weights.load_init(network, public_weights.read_source(path), about)
        assert (report.missing, report.unexpected, report.misshapen) == ((), (), ())
        assert_equal(dict(network.state_dict()), dict(tensors))
    assert "does not name its classes" in str(report)


def test_classes_are_matched_by_name(tmp_path):
    tensors = saved(tmp_path / "best.pt")
    names = ("happiness", "bored", "anger", "surprise")
    network, about = tiny(names, "--seed", "5")
    fresh = network.head.weight.detach().clone()
    report = public_weights.load_init(network, public_weights.read_source(tmp_path), about)
    for index, name in enumerate(names):
        expected = tensors["head.weight"][NAMES.index(name)] if name in NAMES else fresh[index]
        assert torch.equal(network.head.weight[index], expected), name
    assert "classifier by name: happiness, anger, surprise from the file; new are bored" in str(
        report
    )
    assert report.missing == ()
    assert torch.equal(network.gate[0].weight, tensors["gate.0.weight"])


def test_no_class_in_common_gives_a_new_classifier(tmp_path):
    saved(tmp_path / "best.pt")
    network, about = tiny(("calm", "tense"), "--seed", "5")
    fresh = network.head.weight.detach().clone()
    report = public_weights.load_init(network, public_weights.read_source(tmp_path), about)
    assert torch.equal(network.head.weight, fresh)
    assert report.missing == ("head.weight", "head.bias")
    assert "new classifier" in str(report)


def test_a_classifier_that_does_not_fit_is_new(tmp_path):
    safetensors.torch.save_file(
        {n: t.contiguous() for n, t in saved(tmp_path / "best.pt").items()},
        tmp_path / "bare.safetensors",
    )
    network, about = tiny(NAMES[:3], "--seed", "5")
    fresh = network.head.weight.detach().clone()
    report = public_weights.load_init(
        network, public_weights.read_source(tmp_path / "bare.safetensors"), about
    )
    assert "new classifier for 3 classes, as the file has 7" in str(report)
    assert torch.equal(network.head.weight, fresh)

    source = public_weights.read_source(tmp_path / "best.pt")
    source.tensors["head.weight"] = torch.ones(7, 5)  # of another width
    report = public_weights.load_init(network, source, about)
    assert any("head.weight is (7, 5) and not (3, " in each for each in report.misshapen)
    assert torch.equal(network.head.weight, fresh)


def test_another_image_size_resizes_positions_and_token_mixing(tmp_path):
    tensors = saved(tmp_path / "best.pt", NAMES, "--image-size", "128")
    with torch.no_grad():
        tensors["layers.0.mixing.0.weight"].normal_()
        tensors["layers.0.mixing.0.bias"].normal_()
    checkpoint.save(
        tmp_path / "best.pt", checkpoint.load(tmp_path / "best.pt") | {"model": tensors}
    )
    network, about = tiny(NAMES, "--image-size", "96")
    report = public_weights.load_init(network, public_weights.read_source(tmp_path), about)
    assert (report.missing, report.misshapen) == ((), ())
    assert "positions resized from 4 x 4 to 3 x 3" in str(report)
    old = tensors["position"].flatten(0, 1)[None]
    expected = resample_abs_pos_embed(old, [3, 3], [4, 4], num_prefix_tokens=0)
    torch.testing.assert_close(network.position.flatten(0, 1)[None], expected)
    # as the source's own layer mixes maps of this size
    source, _ = checkpoint.load_network(tmp_path / "best.pt")
    maps = torch.randn(2, 1, 3, 3, 5).unbind()
    torch.testing.assert_close(
        torch.stack(list(network.layers[0].mixing[0](maps))),
        torch.stack(list(source.layers[0].mixing[0](maps))),
        rtol=1e-5,
        atol=1e-5,
    )


def test_more_layers_than_the_source_are_reported(tmp_path):
    saved(tmp_path / "best.pt", NAMES, "--depth", "1")
    network, about = tiny(NAMES, "--depth", "2")
    report = public_weights.load_init(network, public_weights.read_source(tmp_path), about)
    assert report.missing
    assert all(name.startswith("layers.1.") for name in report.missing)
    assert "depth is 2, in the file 1" in str(report)


@pytest.mark.parametrize("stream", ["expression", "landmark"])
def test_one_stream_of_two(tmp_path, stream):
    tensors = saved(tmp_path / "best.pt")
    network, about = tiny(NAMES, "--streams", stream)
    report = public_weights.load_init(network, public_weights.read_source(tmp_path), about)
    number = ("expression", "landmark").index(stream)
    name = "attention.kv.weight"
    found = network.state_dict()[f"layers.0.blocks.0.{name}"]
    assert torch.equal(found, tensors[f"layers.0.blocks.{number}.{name}"])
    assert any("of the other stream" in name for name in report.unexpected)


def test_poster_and_backbones_by_content(tmp_path):
    ir50, landmarks = random_tensors("ir50-full"), random_tensors("mobilefacenet-68")
    base = ["--model", "cfmrfn_base", "--image-size", "224"]
    poster = poster_tensors(
        {n: t for n, t in ir50.items() if not n.startswith("body.2")} | ir50, landmarks, depth=1
    )
    torch.save({"model_state_dict": poster}, tmp_path / "a.pth")
    config = initial_weights.with_network_of_init(parse_config(["--init", str(tmp_path / "a.pth")]))
    assert (config.network.model, config.network.depth) == ("cfmrfn_base", 1)
    assert (config.network.tokens, config.network.attention) == ("poster_view", "global")
    network, about = tiny(NAMES, *base, "--init", str(tmp_path / "a.pth"))
    report = public_weights.load_init(
        network, public_weights.read_source(tmp_path / "a.pth"), about
    )
    assert (report.missing, report.misshapen) == ((), ())
    assert torch.equal(network.head.weight, poster["head.linear.weight"])

    network, about = tiny(NAMES, *base, "--depth", "1")
    for name, tensors, prefix in (
        ("b.pth", ir50, "image_backbone."),
        ("c.pth", landmarks, "landmark_backbone."),
    ):
        torch.save(tensors, tmp_path / name)
        report = public_weights.load_init(
            network, public_weights.read_source(tmp_path / name), about
        )
        own = [n for n in network.state_dict() if n.startswith(prefix)]
        assert (sorted(report.matched), report.missing) == (sorted(own), ())
        assert all(torch.equal(network.state_dict()[n], tensors[n[len(prefix) :]]) for n in own)

    network, about = tiny()
    before = {n: t.clone() for n, t in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"expression backbone is that of another.*--model"):
        public_weights.load_init(network, public_weights.read_source(tmp_path / "b.pth"), about)
    assert_equal(dict(network.state_dict()), before)


def test_what_is_no_source(tmp_path):
    torch.save({"conv.weight": torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"no known network \(conv.weight\)"):
        public_weights.read_source(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"holds no best.pt, last.pt or model.safetensors"):
        public_weights.read_source(tmp_path)


def test_the_network_is_the_sources_unless_options_say_otherwise(tmp_path):
    saved(tmp_path / "best.pt", NAMES, "--depth", "1", "--attention", "window")
    init = ["--init", str(tmp_path)]
    network = initial_weights.with_network_of_init(parse_config(init)).network
    assert (network.model, network.depth, network.attention) == ("cfmrfn_tiny", 1, "window")
    network = initial_weights.with_network_of_init(parse_config([*init, "--depth", "3"])).network
    assert (network.depth, network.attention) == (3, "window")
    other, about = tiny(NAMES, *init, "--model", "cfmrfn_base")
    message = "another network, cfmrfn_tiny: give --model.*model is cfmrfn_base, in the file"
    with pytest.raises(CheckpointError, match=message):
        public_weights.load_init(other, public_weights.read_source(tmp_path), about)


@pytest.mark.parametrize("file", ["best.pt", "weights.pt", "model.safetensors"])
def test_a_network_of_grey_images_stays_one(tmp_path, file):
    tensors = saved(tmp_path / "best.pt", NAMES, "--gray", "True")
    torch.save(tensors, tmp_path / "weights.pt")
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        tmp_path / "model.safetensors",
    )
    path = tmp_path / file
    network, about = tiny(NAMES, "--init", str(path))
    report = public_weights.load_init(network, public_weights.read_source(path), about)
    assert (report.missing, report.unexpected, report.misshapen) == ((), (), ())
    assert about.config.network.gray
    images = torch.rand(2, 3, 64, 64)
    grey = network.luma(images)
    torch.testing.assert_close(network.eval()(images), network(grey))
    config = parse_config(["--init", str(path), "--gray", "False"])
    assert initial_weights.with_network_of_init(config).network.gray is False


def test_another_channel_order_is_said(tmp_path):
    saved(tmp_path / "best.pt", NAMES, "--color", "BGR")
    network, about = tiny()
    report = public_weights.load_init(network, public_weights.read_source(tmp_path), about)
    assert "WARNING: trained on BGR and used here on RGB images; --color BGR keeps" in str(report)
    about = dataclasses.replace(about, mean=(0.5, 0.5, 0.5))
    report = public_weights.load_init(network, public_weights.read_source(tmp_path), about)
    assert "here by (0.5, 0.5, 0.5)" in str(report)


def test_a_backbone_given_beside_init_wins(source_run, own_options, tmp_path):
    backbone, _ = tiny(NAMES, "--seed", "7", "--depth", "1", "--depth", "2")
    tensors = {n: t + 1 for n, t in backbone.image_backbone.state_dict().items()}
    torch.save(tensors, tmp_path / "backbone.pth")
    args = ["--init", str(source_run), "--ir50", str(tmp_path / "backbone.pth")]
    config = parse_config([*own_options, *args, "--output", str(tmp_path / "run")])
    trainer = Trainer(config)
    assert_equal(dict(trainer.network.image_backbone.state_dict()), tensors)
    gate = checkpoint.load(source_run / "best.pt")["model"]["gate.0.weight"]
    assert torch.equal(trainer.network.gate[0].weight, gate)


# What is frozen


def parts_of(network):
    return {name.partition(".")[0] for name, p in network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("freeze", "trained"),
    [
        (["expression-backbone"], {"image_embed", "position", "layers", "norm", "gate", "head"}),
        (["encoder"], {"image_backbone", "image_embed", "position", "gate", "head"}),
        (["expression-backbone", "encoder"], {"image_embed", "position", "gate", "head"}),
        (["all-but-head"], {"head"}),
    ],
)
@pytest.mark.parametrize("rho", ["0", "0.05"])
def test_frozen_parts_stay_as_they_are(own_options, source_run, tmp_path, freeze, trained, rho):
    more = ["--init", str(source_run), "--ema", "0.5", "--layer-decay", "0.5", "--rho", rho]
    more += ["--optimizer", "adamw", "--weight-decay", "0.1", "--no-sam-freeze-statistics"]
    args = [*own_options, *more, "--freeze", *freeze, "--output", str(tmp_path / "run")]
    trainer = Trainer(parse_config(args))
    network = trainer.network
    before = {n: t.clone() for n, t in network.state_dict().items()}
    held = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert parts_of(network) == trained
    assert len(held) == sum(p.requires_grad for p in network.parameters())
    folder = trainer.train()
    for state_dict in (network.state_dict(), trainer.ema.module.state_dict()):
        for name, tensor in state_dict.items():
            if name.partition(".")[0] not in trained:
                assert torch.equal(tensor, before[name]), name
    assert not torch.equal(network.head.weight, before["head.weight"])
    total = sum(p.numel() for p in network.parameters())
    count = sum(p.numel() for p in held)
    log = (folder / "log.txt").read_text()
    assert f"{count / 1e6:.3g} M trained parameters of {total / 1e6:.3g} M" in log
    assert f"frozen: {', '.join(freeze)}" in log


def test_frozen_parts_are_in_eval_mode_for_good():
    network, _ = tiny()
    network.freeze(["expression-backbone", "encoder"])
    average = build_ema(network, 0.9).module
    for model in (network, average):
        model.eval().train()
        assert model.training and model.gate.training
        for part in (model.image_backbone, model.landmark_backbone, model.layers, model.norm):
            assert not any(module.training for module in part.modules())


def test_no_such_part_to_freeze(own_options, tmp_path):
    args = ["--streams", "landmark", "--freeze", "expression-backbone"]
    with pytest.raises(ConfigError, match="no expression backbone to freeze"):
        Trainer(parse_config([*own_options, *args, "--output", str(tmp_path / "run")]))
    with pytest.raises(ConfigError, match="invalid choice 'head'"):
        parse_config(["--freeze", "head"])


@pytest.mark.parametrize(
    ("freeze", "more", "random"),
    [
        (["all-but-head"], [], "expression backbone and the encoder"),
        (["all-but-head"], ["--streams", "landmark"], "encoder"),
        (["all-but-head"], ["--ir50"], "encoder"),
        (["encoder"], ["--init"], "encoder"),
        (["encoder", "expression-backbone"], [], "encoder"),
        (["expression-backbone"], [], "expression backbone"),
    ],
)
def test_random_weights_are_not_frozen(own_options, tmp_path, freeze, more, random):
    if more in (["--ir50"], ["--init"]):
        network, _ = tiny()
        more = [*more, str(tmp_path / "backbone.pt")]
        torch.save(network.image_backbone.state_dict(), more[-1])
    args = [*own_options, *more, "--freeze", *freeze, "--output", str(tmp_path / "run")]
    with pytest.raises(ConfigError, match=f"would keep random weights in the {random}: give"):
        Trainer(parse_config(args))
    assert not (tmp_path / "run").exists()


# Class weights


def test_class_weights_by_hand():
    counts = torch.tensor([1, 3, 6])
    found = class_weights("balanced", counts)
    torch.testing.assert_close(found, torch.tensor([10 / 3, 10 / 9, 10 / 18]).double())
    counts = torch.tensor([10, 1000])
    effective = [(1 - 0.999**10) / 0.001, (1 - 0.999**1000) / 0.001]
    assert effective[0] == pytest.approx(9.955, abs=1e-3)
    assert effective[1] == pytest.approx(632.305, abs=1e-3)
    scale = 1010 / (10 / effective[0] + 1000 / effective[1])
    found = class_weights("effective", counts).tolist()
    assert found == pytest.approx([scale / effective[0], scale / effective[1]])
    # only ratios of given numbers matter: the mean over the images is 1
    found = class_weights((2.0, 4.0), torch.tensor([3, 1])).tolist()
    assert found == pytest.approx([0.8, 1.6])
    found = class_weights((0.1, 0.2), torch.tensor([1, 1]))
    assert found.tolist() == pytest.approx([2 / 3, 4 / 3], rel=1e-12)
    with pytest.raises(ValueError, match="2 class weights for 3 classes"):
        class_weights((1.0, 2.0), torch.ones(3))
    with pytest.raises(ValueError, match="need an image of every class to train on$"):
        class_weights("balanced", torch.tensor([1, 0]))


def test_weighted_loss_by_hand():
    torch.manual_seed(0)
    logits = torch.randn(4, 3, dtype=torch.float64)
    w = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    log_p = logits.log_softmax(1)
    labels = torch.tensor([2, 0, 1, 2])
    votes = torch.tensor([[0.2, 0.3, 0.5], [1, 0, 0], [0, 0.5, 0.5], [0.1, 0.1, 0.8]]).double()
    criterion = ExpressionLoss(1.0, 2.0, 0.2, w)
    for targets, hot in ((labels, F.one_hot(labels, 3).double()), (votes, votes)):
        plain = -(hot * log_p * w).sum() / 4
        smooth = -((0.8 * hot + 0.2 / 3) * log_p * w).sum() / 4
        assert criterion(logits, targets).item() == pytest.approx((plain + 2 * smooth).item())
        halves = (criterion(logits[:2], targets[:2]) + criterion(logits[2:], targets[2:])) / 2
        assert halves.item() == pytest.approx(criterion(logits, targets).item())
    equal = ExpressionLoss(1.0, 2.0, 0.2, torch.ones(3))
    without = ExpressionLoss(1.0, 2.0, 0.2)
    assert equal(logits, labels).item() == pytest.approx(without(logits, labels).item())
    expected = F.cross_entropy(logits, labels) + 2 * F.cross_entropy(
        logits, labels, label_smoothing=0.2
    )
    assert without(logits, labels).item() == pytest.approx(expected.item())
    posters = ExpressionLoss()
    assert posters(logits, labels).item() == pytest.approx(expected.item())


def test_class_weights_of_a_run(own_options, tmp_path, faces):
    def trainer(name, *more):
        return Trainer(parse_config([*own_options, *more, "--output", str(tmp_path / name)]))

    run = trainer("a", "--class-weights", "balanced")
    # happiness, 10-19, été: 8, 2 and 8 images
    assert run.class_names == ("happiness", "10-19", "été")
    assert run.class_weights.tolist() == pytest.approx([18 / 24, 18 / 6, 18 / 24])
    log = (tmp_path / "a" / "log.txt").read_text()
    assert "class weights: happiness 0.75, 10-19 3, été 0.75" in log
    message = "2 class weights for 3 classes, in this order: happiness, 10-19, été"
    with pytest.raises(ConfigError, match=message):
        trainer("b", "--class-weights", "1", "2")
    with pytest.raises(ConfigError, match="leave one out"):
        trainer("c", "--class-weights", "effective", "--balanced")
    with pytest.raises(ConfigError, match="class-weights must be balanced, effective, or a finite"):
        parse_config(["--class-weights", "1", "0"])


def test_class_weights_of_classes_that_are_drawn_equally_often():
    config = parse_config(["--balanced", "--class-weights", "1", "3"])
    samples = [Sample(f"{i}", int(i == 0)) for i in range(100)]
    splits = Splits("rare", ("calm", "tense"), samples, [], [])
    # their mean over the images that are drawn is 1
    assert weights_of_classes(splits, config).tolist() == pytest.approx([0.5, 1.5])


def test_votes_decide_the_class_weights_of_soft_labels():
    config = parse_config(["--soft-labels", "--class-weights", "balanced"])
    samples = [Sample("a", 0, votes=(0.75, 0.25)), Sample("b", 0, votes=(0.75, 0.25))]
    splits = Splits("votes", ("calm", "tense"), samples, [], [])
    # 1.5 and 0.5 images: the weights are 2 / (2 * 1.5) and 2 / (2 * 0.5)
    assert weights_of_classes(splits, config).tolist() == pytest.approx([2 / 3, 2])


# All together


ALL = ["--class-weights", "balanced", "--ema", "0.5", "--layer-decay", "0.7", "--rho", "0.05"]


@pytest.mark.parametrize("freeze", [["expression-backbone"], ["all-but-head"]])
def test_two_processes_equal_one(own_options, source_run, tmp_path, freeze):
    shared = [*own_options, *ALL, "--init", str(source_run), "--freeze", *freeze]
    shared += ["--lr", "1e-4", "--drop-path-rate", "0"]
    done = forked([*shared, "--output", str(tmp_path / "two")])
    assert done.returncode == 0, done.stderr
    Trainer(parse_config([*shared, "--output", str(tmp_path / "one")])).train()
    accumulated = [*shared, "--accumulate", "3", "--output", str(tmp_path / "three")]
    if freeze == ["all-but-head"]:  # else batch statistics differ
        Trainer(parse_config(accumulated)).train()
    for name in ("two", "three"):
        if (tmp_path / name).exists():
            found, expected = rows(tmp_path / name), rows(tmp_path / "one")
            for key in ("train_loss", "test_loss"):
                assert [r[key] for r in found] == pytest.approx(
                    [r[key] for r in expected], rel=1e-5
                )


def test_resumed_without_the_source_bit_for_bit(own_options, source_run, tmp_path, monkeypatch):
    source = tmp_path / "source"
    shutil.copytree(source_run, source)
    args = [*own_options, *ALL, "--init", str(source), "--freeze", "encoder"]
    args += ["--checkpoint-every", "1", "--output"]
    whole = Trainer(parse_config([*args, str(tmp_path / "whole")])).train()

    class Killed(Exception):
        pass

    real_save, saves = checkpoint.save, []

    def kill(path, content):
        real_save(path, content)
        saves.append(path)
        if len(saves) == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", kill)
        with pytest.raises(Killed):
            Trainer(parse_config([*args, str(tmp_path / "killed")])).train()
    shutil.rmtree(source)
    resumed = Trainer(parse_config(["--resume", str(tmp_path / "killed")])).train()
    assert_equal(state(resumed), state(whole))


def test_a_run_on_classes_of_ones_own(own_options, own_classes, source_run, tmp_path, capsys):
    args = [*own_options, "--classes", "3", "--init", str(source_run)]
    folder = Trainer(parse_config([*args, "--output", str(tmp_path / "run")])).train()
    log = (folder / "log.txt").read_text()
    assert "classifier by name: happiness from the file; new are 10-19, été" in log
    report = json.loads((folder / "report.json").read_text())
    assert list(report["held_out"]["last"]["per_class"]) == ["happiness", "10-19", "été"]
    evaluation = evaluate.evaluate_checkpoint(
        folder / "last.pt", own_classes, workers=0, world=World("cpu")
    )
    evaluated = evaluation.report
    assert evaluation.about.config.network.depth == 1
    assert evaluated.class_names == ("happiness", "10-19", "été")
    assert evaluated.matrix.tolist() == report["held_out"]["last"]["confusion_matrix"]
    image = next((own_classes / "test" / "10-19").iterdir())
    capsys.readouterr()
    predict.main([str(folder / "best.pt"), str(image), "--device", "cpu"])
    assert "10-19" in capsys.readouterr().out


def test_pictures_of_many_classes_and_of_names_like_formulas(tmp_path):
    names = tuple(f"class {index} $\\a$" for index in range(60))
    report = Report(names, np.eye(60, dtype=np.int64), 0.0)
    plot_confusion(tmp_path / "confusion.png", report, "sixty")
    labels = np.arange(60)
    points = np.random.default_rng(0).random((60, 2))
    plot_tsne(tmp_path / "tsne.png", points, labels, names, "$\\a$")
    for name in ("confusion.png", "tsne.png"):
        with Image.open(tmp_path / name) as image:
            assert max(image.size) < 8000
