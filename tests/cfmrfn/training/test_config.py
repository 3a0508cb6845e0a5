"""Recipes, flags, and the one-line errors of both."""

import dataclasses
import io
import math
import os
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import yaml

from cfmrfn.config import (
    Config,
    ImageConfig,
    NetworkConfig,
    OptimConfig,
    RunConfig,
    continued,
    from_mapping,
    from_yaml,
    parse_config,
    read_recipe,
    recipes,
)
from cfmrfn.errors import ConfigError

# What decides the weights in a run of section 3.2 of the paper. Written out, so that a default that
# changes does not change the recipes unnoticed.
PAPER = {
    "data": None,
    "layout": "auto",
    "classes": None,
    "drawn_train": 2000,
    "drawn_test": 500,
    "validation": 0.0,
    "image_size": 224,
    "color": "RGB",
    "flip": 0.5,
    "erasing": 0.5,
    "erasing_scale": [0.02, 0.1],
    "crop": False,
    "jitter": False,
    "rotation": 0.0,
    "translate": 0.0,
    "scale": [1.0, 1.0],
    "stretch": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "balanced": False,
    "soft_labels": False,
    "only": None,
    "boxes": True,
    "digits": None,
    "drop_duplicates": False,
    "model": "cfmrfn_base",
    "depth": None,
    "attention": None,
    "head_dilations": None,
    "cross_fusion": None,
    "streams": None,
    "tokens": None,
    "gray": None,
    "q_proj": None,
    "token_mixing": None,
    "padding_mode": None,
    "pre_norm": None,
    "drop_path_rate": None,
    "ir50": None,
    "landmarks": None,
    "init": None,
    "epochs": 300,
    "batch_size": 200,
    "accumulate": 1,
    "optimizer": "adam",
    "lr": 4e-5,
    "weight_decay": 0.0,
    "layer_decay": 1.0,
    "schedule": "exponential",
    "decay": 0.98,
    "warmup_epochs": 0.0,
    "rho": 0.05,
    "sam_freeze_statistics": True,
    "sam_local": False,
    "sync_batchnorm": True,
    "ce_weight": 1.0,
    "smooth_weight": 2.0,
    "label_smoothing": 0.2,
    "clip": None,
    "ema": 0.0,
    "ema_warmup": False,
    "precision": "float32",
    "seed": 0,
    "freeze": [],
    "class_weights": None,
}
RECIPES = {
    "affectnet7": {**PAPER, "layout": "affectnet", "classes": 7, "balanced": True},
    "affectnet8": {**PAPER, "layout": "affectnet", "classes": 8, "balanced": True},
    "drawn": {
        **PAPER,
        "model": None,
        "validation": 0.1,
        "image_size": 128,
        "erasing": 0.25,
        "epochs": 12,
        "batch_size": 32,
        "optimizer": "adamw",
        "lr": 2e-3,
        "weight_decay": 0.01,
        "schedule": "cosine",
        "warmup_epochs": 1.0,
        "smooth_weight": 0.0,
        "clip": 5.0,
    },
    "ferplus": {**PAPER, "layout": "ferplus", "classes": 8, "gray": True},
    "ferplus-tiny": {
        **PAPER,
        "layout": "ferplus-votes",
        "classes": 8,
        "soft_labels": True,
        "model": "cfmrfn_tiny",
        "gray": True,
        "image_size": 128,
        "rotation": 15.0,
        "translate": 0.075,
        "scale": [0.87, 1.18],
        "stretch": 0.07,
        "brightness": 0.2,
        "contrast": 0.3,
        "erasing_scale": [0.02, 0.2],
        "epochs": 30,
        "batch_size": 64,
        "optimizer": "adamw",
        "lr": 2e-3,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "warmup_epochs": 1.0,
        "rho": 0.0,
        "smooth_weight": 0.0,
        "clip": 5.0,
        "ema": 0.999,
        "ema_warmup": True,
        "precision": "bf16",
    },
    "rafdb": {**PAPER, "layout": "rafdb", "classes": 7},
}


def test_resolved_values_of_every_recipe():
    assert recipes() == list(RECIPES)
    for name, expected in RECIPES.items():
        config = read_recipe(name)
        found = {k: v for k, v in config.flat().items() if k not in config.sections()["run"]}
        assert found == expected, name
        assert config.run == RunConfig(recipe=name)


@pytest.mark.parametrize("recipe", recipes())
def test_recipes_hold_only_what_departs_from_the_defaults(recipe):
    text = (resources.files("cfmrfn") / "recipes" / f"{recipe}.yaml").read_text("utf-8")
    defaults = Config().flat()
    for name, value in yaml.safe_load(text).items():
        assert value != defaults[name], name


@pytest.mark.parametrize("recipe", recipes())
def test_resolved_configuration_reads_back(recipe, tmp_path):
    flags = ["--head-dilations", "1", "1", "2", "2", "--crop", "--freeze", "encoder"]
    flags += ["--class-weights", "1", "2.5", "--init", "runs/a"]
    config = parse_config(["--recipe", recipe, "--clip", "2", "--cross-fusion", "False", *flags])
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert from_yaml(path) == config
    assert from_mapping(config.flat(), "test") == config


def test_every_field_is_a_flag_and_a_key():
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(section.default_factory):
            assert field.name in Config().flat()
    assert len(Config().flat()) == sum(len(s) for s in Config().sections().values())


def test_flags_override_the_recipe():
    config = parse_config(["--recipe", "rafdb", "--lr", "1e-3", "--no-sync-batchnorm"])
    assert config.optim.lr == 1e-3
    assert not config.optim.sync_batchnorm
    assert config.optim.batch_size == 200
    assert config.run.recipe == "rafdb"


def test_recipe_from_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: cfmrfn_tiny\nerasing_scale: [0.1, 0.2]\nflip: 0\nclip: null\n")
    config = parse_config(["--recipe", str(path)])
    assert config.network.model == "cfmrfn_tiny"
    assert config.images.erasing_scale == (0.1, 0.2)


def test_a_recipe_may_depart_from_a_named_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: ferplus-tiny\nlr: 0.004\nsoft_labels: false\n")
    config, base = parse_config(["--recipe", str(path)]), read_recipe("ferplus-tiny")
    assert config.run.recipe == str(path)
    mine, theirs = config.flat(), base.flat()
    changed = {name: mine[name] for name in mine if mine[name] != theirs[name]}
    assert changed == {"lr": 0.004, "soft_labels": False, "recipe": str(path)}
    # the configuration of a run leaves nothing out, whatever recipe it is of
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    again = parse_config(["--recipe", str(tmp_path / "config.yaml")])
    assert again.flat() | {"recipe": str(path)} == mine


def test_the_former_name_of_layout_is_still_read(tmp_path):
    assert parse_config(["--kind", "rafdb"]).images.layout == "rafdb"
    former = Config(images=ImageConfig(layout="rafdb")).to_yaml().replace("layout:", "kind:")
    (tmp_path / "config.yaml").write_text(former)
    for config in (
        from_mapping(yaml.safe_load(former), "test"),
        parse_config(["--recipe", str(tmp_path / "config.yaml")]),
        parse_config(["--resume", str(tmp_path), "--layout", "rafdb"]),
    ):
        assert config.images.layout == "rafdb"
        assert "kind" not in config.flat()
    config = parse_config(["--resume", str(tmp_path), "--layout", "ferplus"])
    with pytest.raises(ConfigError, match="was started with layout rafdb, not ferplus"):
        continued(config, tmp_path)


def test_overrides_are_what_departs_from_the_preset():
    config = parse_config(["--streams", "landmark", "--depth", "3", "--no-crop"])
    assert config.network.overrides() == {"streams": "landmark", "depth": 3}


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--drawn-train", "84", "--data", "faces"], "drawn-train 84 has no effect, as images are"),
        (["--drawn-test", "84", "--data", "faces"], "drawn-test 84 has no effect, as images are"),
        (["--recipe", "ferplus-tiny", "--erasing", "0"], "erasing-scale [0.02, 0.2] has no effect"),
        (["--decay", "0.5"], "decay 0.5 has no effect, as schedule is cosine"),
        (["--ema-warmup"], "ema-warmup True has no effect, as ema is 0"),
        (["--label-smoothing", "0.1"], "label-smoothing 0.1 has no effect, as smooth-weight is 0"),
        (["--sam-local", "--rho", "0"], "sam-local True has no effect, as rho is 0"),
        (["--no-sam-freeze-statistics", "--rho", "0"], "sam-freeze-statistics False has no effect"),
        (["--attention", "global", "--padding-mode", "masked"], "padding-mode masked has no"),
        (["--streams", "expression", "--cross-fusion", "False"], "cross-fusion False has no"),
        (["--streams", "landmark", "--tokens", "poster_view"], "tokens poster_view has no effect"),
        (["--depth", "1", "--drop-path-rate", "0.9"], "drop-path-rate 0.9 has no effect"),
        (["--freeze", "all-but-head", "--layer-decay", "0.3"], "layer-decay 0.3 has no effect"),
        (["--streams", "landmark", "--layer-decay", "0.3"], "layer-decay 0.3 has no effect"),
        (
            ["--warmup-epochs", "5", "--epochs", "1"],
            "warmup-epochs 5.0 are more than epochs 1: the",
        ),
    ],
)
def test_options_without_effect_are_told(args, line):
    (found,) = parse_config(args).without_effect()
    assert found.startswith(line)


@pytest.mark.parametrize("recipe", recipes())
def test_all_of_a_recipe_has_an_effect(recipe):
    assert parse_config(["--recipe", recipe, "--epochs", "1"]).without_effect() == []


def test_gray_needs_the_order_that_its_weights_are_for():
    assert parse_config(["--gray", "True"]).network.overrides() == {"gray": True}
    with pytest.raises(ConfigError, match="color must be RGB with gray, .*, got BGR"):
        parse_config(["--gray", "True", "--color", "BGR"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 1", "unknown keys learning_rate"),
        ("lr: fast", "--lr"),
        ("- lr", "expected lines of 'field: value'"),
        ("lr: [", "cannot read configuration"),
        ("lr: 1".encode("utf-16"), "mine.yaml: it is UTF-16; save it as UTF-8"),
        ("lr: 1\ndata: \xe9t\xe9".encode("latin-1"), "mine.yaml: line 2 is not UTF-8; save it as"),
        (
            "recipe: best",
            "mine.yaml: recipe must be one of affectnet7, .*, rafdb, for .*; got 'best'",
        ),
        ("resume: runs/1", "mine.yaml: resume is an option of the command line, not of a recipe"),
    ],
    ids=str,
)
def test_bad_recipe_files(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        parse_config(["--recipe", str(path)])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--batch-size", "0"], "batch-size must be 1 or more, got 0"),
        (["--batchsize", "8"], "Unrecognized options: --batchsize, 8; perhaps --batch-size"),
        (["--batch-size", "many"], "--batch-size"),
        (["--attention", "local"], "'local' for argument '--attention'. Expected one of"),
        (["--lr", "-1"], "lr must be above 0, got -1.0"),
        (["--lr", "nan"], "lr must be above 0, got nan"),
        (["--rho", "inf"], "rho must be finite, got inf"),
        (["--clip", "inf"], "clip must be finite, got inf"),
        (["--flip", "2"], "flip must be 0 to 1, got 2.0"),
        (["--ema", "1"], "ema must be 0 or more and below 1, got 1.0"),
        (["--classes", "1"], "classes must be 2 or more, got 1"),
        (["--erasing-scale", "0.2", "0.1"], "erasing-scale must be 0 < smallest <= largest < 1"),
        (
            ["--scale", "1.2", "0.8"],
            "scale must be finite, and 0 < smallest <= largest, got (1.2, 0.8)",
        ),
        (["--translate", "1"], "translate must be 0 or more and below 1, got 1.0"),
        (["--ce-weight", "0"], "ce-weight must be above 0 where smooth-weight is 0, as the loss"),
        (["--recipe", "fer2013"], "recipe must be one of affectnet7"),
        (["--recipe", "none.yaml"], "cannot read configuration none.yaml"),
        (["--resume", "nowhere"], "cannot resume: there is no nowhere. --resume takes"),
        (["stray"], "Unrecognized options: stray"),
        (["--data", ""], "--data is empty: leave it out, or see whether a variable has no value"),
        (["--output="], "--output is empty"),
        (["--resume", ""], "--resume is empty"),
        (["--gray", "True", ""], "an argument is empty"),
    ],
)
def test_bad_options_give_one_line(args, message):
    with pytest.raises(ConfigError) as caught:
        parse_config(args)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_every_number_must_be_finite(value):
    for section in (ImageConfig, NetworkConfig, OptimConfig, RunConfig):
        for field in dataclasses.fields(section):
            if "float" in field.type:
                values = (value, value) if "tuple" in field.type else value
                with pytest.raises(ConfigError, match=f"{field.name.replace('_', '-')} must be"):
                    section(**{field.name: values})


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (ImageConfig, {"classes": 1}, "classes must be 2 or more, got 1"),
        (ImageConfig, {"erasing_scale": (0.2, 0.1)}, "erasing-scale must be 0 < smallest"),
        (NetworkConfig, {"depth": 0}, "depth must be 1 or more, got 0"),
        (OptimConfig, {"lr": 0.0}, "lr must be above 0, got 0.0"),
        (OptimConfig, {"decay": 1.5}, "decay must be above 0 and at most 1, got 1.5"),
        (RunConfig, {"workers": -1}, "workers must be 0 or more, got -1"),
        (ImageConfig, {"color": "rgb"}, "color must be RGB or BGR, got 'rgb'"),
        (ImageConfig, {"only": "happy"}, "only must be a tuple, each a text or None, got 'happy'"),
        (ImageConfig, {"scale": (1, 2, 3)}, "scale must be a tuple of 2, each a number, got"),
        (NetworkConfig, {"head_dilations": (1.5,)}, "head-dilations must be .* whole number"),
        (NetworkConfig, {"cross_fusion": "no"}, "cross-fusion must be True or False or None, got"),
        (OptimConfig, {"lr": "fast"}, "lr must be a number, got 'fast'"),
        (OptimConfig, {"optimizer": "sgd"}, "optimizer must be adam or adamw, got 'sgd'"),
        (OptimConfig, {"batch_size": True}, "batch-size must be a whole number, got True"),
        (OptimConfig, {"schedule": "exponental"}, "must be exponential or cosine or constant, got"),
        (OptimConfig, {"freeze": ("backbone",)}, "freeze must be a tuple, each expression-backb"),
        (OptimConfig, {"class_weights": "inverse"}, "class-weights must be balanced or effective"),
        (OptimConfig, {"precision": "bf8"}, "precision must be float32 or bf16 or fp16, got 'bf8'"),
        (RunConfig, {"on_broken": "ignore"}, "on-broken must be error or skip, got 'ignore'"),
    ],
)
def test_a_section_built_in_python_is_checked_as_the_command_line_is(section, values, message):
    with pytest.raises(ConfigError, match=message):
        section(**values)
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(section(), **values)


def test_an_error_that_is_being_handled_is_not_mistaken_for_a_new_one():
    with pytest.raises(ConfigError, match="lr must be above 0"):
        parse_config(["--lr", "-1"])
    try:
        OptimConfig(lr=-1)
    except ConfigError:
        with pytest.raises(ConfigError, match="Unrecognized options: stray"):
            parse_config(["stray"])


def test_a_recipe_that_is_out_of_range_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("lr: -1\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: lr must be above 0, got -1.0$"):
        parse_config(["--recipe", str(path)])


def test_the_line_does_not_depend_on_the_terminal(monkeypatch):
    plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", plain)
    with pytest.raises(ConfigError, match=r"^Unrecognized options: stray \(--help"):
        parse_config(["stray"])


@pytest.fixture
def saved(tmp_path):
    """A function that saves the configuration of a command line; the run folder."""

    def save(*args):
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "config.yaml").write_text(parse_config(args).absolute().to_yaml())
        return folder

    return save


def resumed(folder, *args):
    config = parse_config(["--resume", str(folder), *args])
    continued(config, folder)
    return config


def test_resume_refuses_another_configuration(saved):
    folder = saved("--lr", "0.01", "--batch-size", "50")
    with pytest.raises(
        ConfigError, match="was started with batch-size 50, not 10; lr 0.01, not 0.1. L"
    ):
        resumed(folder, "--lr", "0.1", "--batch-size", "10")
    config = resumed(folder, "--workers", "3", "--on-broken", "skip")
    assert config.optim.lr == 0.01
    assert config.run.workers == 3
    assert config.run.on_broken == "skip"


def test_a_resumed_run_keeps_its_recipe_and_its_folder(saved):
    folder = saved("--recipe", "rafdb", "--output", "run")
    for more, named in (
        (["--output", "elsewhere"], "--output"),
        (["--recipe", "drawn", "--output", "elsewhere"], "--recipe and --output"),
    ):
        with pytest.raises(ConfigError, match=f"--resume .* recipe: leave {named} out, or start"):
            resumed(folder, *more)
    assert resumed(folder, "--recipe", "rafdb", "--output", "run").run.recipe == "rafdb"


def test_paths_of_a_run_hold_in_any_working_directory(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = saved("--data", "faces", "--ir50", "weights/ir50.pth", "--output", "run")
    text = (folder / "config.yaml").read_text()
    assert f"data: {tmp_path}/faces\n" in text
    assert f"ir50: {tmp_path}/weights/ir50.pth\n" in text
    resumed(folder, "--ir50", "weights/ir50.pth")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resumed(folder).images.data == tmp_path / "faces"
    assert resumed(Path("../run"), "--data", "moved").images.data == Path("moved")
    with pytest.raises(ConfigError, match="was started with ir50 /"):
        resumed(folder, "--ir50", "weights/ir50.pth")


def test_a_run_resumed_from_python_need_not_name_its_weights_again(saved):
    folder = saved("--init", "runs/other", "--landmarks", "landmarks.pth", "--depth", "3")
    network = from_yaml(folder / "config.yaml").network
    left_out = dataclasses.replace(network, init=None, landmarks=None, depth=None, model=None)
    config = dataclasses.replace(from_yaml(folder / "config.yaml"), network=left_out)
    assert continued(config, folder).network == network
    another = dataclasses.replace(config, network=dataclasses.replace(network, init=Path("/a")))
    with pytest.raises(ConfigError, match="with init /.*, not /a"):
        continued(another, folder)


def test_epochs_may_be_raised_where_the_schedule_does_not_depend_on_them(saved):
    folder = saved("--recipe", "rafdb", "--epochs", "10")
    assert resumed(folder, "--epochs", "12").optim.epochs == 12
    with pytest.raises(ConfigError, match="epochs 10, not 9. Leave"):
        resumed(folder, "--epochs", "9")


def test_epochs_of_the_cosine_schedule_are_fixed(saved):
    folder = saved("--recipe", "drawn")
    for epochs in ("11", "13"):
        with pytest.raises(ConfigError, match=f"epochs 12, not {epochs}"):
            resumed(folder, "--epochs", epochs)
    with pytest.raises(ConfigError, match="the cosine schedule falls to 0 at the last epoch"):
        resumed(folder, "--epochs", "13")


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_a_checkpoint_stands_for_its_run_folder(saved, name):
    folder = saved("--lr", "0.01")
    (folder / name).write_bytes(b"")
    config = parse_config(["--resume", str(folder / name)])
    assert config.run.resume == folder
    assert config.optim.lr == 0.01


def test_what_is_no_run_folder_is_told(saved, tmp_path):
    folder = saved()
    with pytest.raises(ConfigError, match=f"no run folder, .* the latest in it is {folder}$"):
        parse_config(["--resume", str(tmp_path)])
    with pytest.raises(ConfigError, match="there is no .*/run/epoch3.pt"):
        parse_config(["--resume", str(folder / "epoch3.pt")])
    (tmp_path / "last.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match="has no config.yaml. --resume takes the folder"):
        parse_config(["--resume", str(tmp_path / "last.pt")])


def test_lists_and_numpys_numbers_become_plain_values():
    plain = OptimConfig(freeze=("encoder",), class_weights=(1.0, 0.5), epochs=2, lr=0.5)
    weights = list(np.array([1, 0.5]))
    given = OptimConfig(
        freeze=["encoder"], class_weights=weights, epochs=np.int64(2), lr=np.float32(0.5)
    )
    assert Config(optim=given).to_yaml() == Config(optim=plain).to_yaml()


def test_paths_may_be_text_in_python():
    assert ImageConfig(data="faces").data == Path("faces")
    assert NetworkConfig(ir50="a.pth", landmarks="b.pth").landmarks == Path("b.pth")
    run = RunConfig(resume="runs/a", output="runs/b", device="cpu")
    assert (run.resume, run.output, run.device) == (Path("runs/a"), Path("runs/b"), "cpu")


def test_on_broken_of_a_former_run_is_read(tmp_path):
    former = Config().to_yaml().replace("on_broken: error\n", "")
    former = former.replace("soft_labels: false\n", "soft_labels: false\non_broken: skip\n")
    (tmp_path / "config.yaml").write_text(former)
    assert parse_config(["--resume", str(tmp_path)]).run.on_broken == "skip"


def test_names_that_are_no_text_survive(tmp_path):
    name = os.fsdecode(b"/sets/bl\xe9")
    config = parse_config(["--data", name])
    (tmp_path / "config.yaml").write_text(config.to_yaml(), "utf-8")
    assert from_yaml(tmp_path / "config.yaml").images.data == Path(name)
