"""Recipes, flags, and the one-line errors of both."""

import dataclasses
import io
import sys
from importlib import resources

import pytest
import yaml

from cfmrfn.config import (
    Config,
    ImageConfig,
    NetworkConfig,
    OptimConfig,
    RunConfig,
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
    "balanced": False,
    "soft_labels": False,
    "on_broken": "error",
    "model": "cfmrfn_base",
    "depth": None,
    "attention": None,
    "head_dilations": None,
    "cross_fusion": None,
    "streams": None,
    "tokens": None,
    "q_proj": None,
    "token_mixing": None,
    "padding_mode": None,
    "pre_norm": None,
    "drop_path_rate": None,
    "ir50": None,
    "landmarks": None,
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
    "precision": "float32",
    "seed": 0,
}
RECIPES = {
    "affectnet7": {**PAPER, "layout": "affectnet", "classes": 7, "balanced": True},
    "affectnet8": {**PAPER, "layout": "affectnet", "classes": 8, "balanced": True},
    "drawn": {
        **PAPER,
        "model": "cfmrfn_tiny",
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
    "ferplus": {**PAPER, "layout": "ferplus", "classes": 8},
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
    text = (resources.files("cfmrfn") / "configs" / f"{recipe}.yaml").read_text("utf-8")
    defaults = Config().flat()
    for name, value in yaml.safe_load(text).items():
        assert value != defaults[name], name


@pytest.mark.parametrize("recipe", recipes())
def test_resolved_configuration_reads_back(recipe, tmp_path):
    flags = ["--head-dilations", "1", "1", "2", "2", "--crop"]
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
    with pytest.raises(ConfigError, match="layout: ferplus, not rafdb"):
        parse_config(["--resume", str(tmp_path), "--layout", "ferplus"])


def test_overrides_are_what_departs_from_the_preset():
    config = parse_config(["--streams", "landmark", "--depth", "3", "--no-crop"])
    assert config.network.overrides() == {"streams": "landmark", "depth": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 1", "unknown keys learning_rate"),
        ("lr: fast", "--lr"),
        ("- lr", "expected lines of 'field: value'"),
        ("lr: [", "cannot read configuration"),
    ],
)
def test_bad_recipe_files(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
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
        (["--flip", "2"], "flip must be 0 to 1, got 2.0"),
        (["--ema", "1"], "ema must be 0 or more and below 1, got 1.0"),
        (["--classes", "9"], "classes must be 7 or 8, got 9"),
        (["--erasing-scale", "0.2", "0.1"], "erasing-scale must be 0 < smallest <= largest < 1"),
        (["--recipe", "fer2013"], "recipe must be one of affectnet7"),
        (["--recipe", "none.yaml"], "cannot read configuration none.yaml"),
        (["--resume", "nowhere"], "cannot read configuration nowhere/config.yaml"),
        (["stray"], "Unrecognized options: stray"),
    ],
)
def test_bad_options_give_one_line(args, message):
    with pytest.raises(ConfigError) as caught:
        parse_config(args)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (ImageConfig, {"classes": 9}, "classes must be 7 or 8, got 9"),
        (ImageConfig, {"erasing_scale": (0.2, 0.1)}, "erasing-scale must be 0 < smallest"),
        (NetworkConfig, {"depth": 0}, "depth must be 1 or more, got 0"),
        (OptimConfig, {"lr": 0.0}, "lr must be above 0, got 0.0"),
        (OptimConfig, {"decay": 1.5}, "decay must be above 0 and at most 1, got 1.5"),
        (RunConfig, {"workers": -1}, "workers must be 0 or more, got -1"),
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


def test_resume_refuses_another_configuration(tmp_path):
    (tmp_path / "config.yaml").write_text(
        parse_config(["--lr", "0.01", "--batch-size", "50"]).to_yaml()
    )
    with pytest.raises(ConfigError, match=r"batch_size: 10, not 50; lr: 0.1, not 0.01"):
        parse_config(["--resume", str(tmp_path), "--lr", "0.1", "--batch-size", "10"])
    config = parse_config(["--resume", str(tmp_path), "--workers", "3"])
    assert config.optim.lr == 0.01
    assert config.run.workers == 3
