"""Every count of the paper, to the digit it prints, and where ours come from."""

import runpy
import sys

import pytest
import timm
import torch

import cfmrfn.models  # noqa: F401  registers the presets
from cfmrfn import complexity
from cfmrfn.complexity import measure
from cfmrfn.process import command

DEPTHS = {2: "38.92", 3: "42.61", 4: "46.30", 5: "49.99", 6: "53.68", 7: "57.37"}


def test_parts_of_cfmrfn_base():
    parts = measure("cfmrfn_base").parts
    assert {label.strip(): cost.stored for label, cost in parts.items()} == {
        "expression backbone": 17_611_968 + 12_847_616,
        "embedding layer, never run": 12_847_616,
        "image tokens": 524_800,
        "positions": 25_088,
        "landmark backbone": 1_007_248,
        "encoder layers": 6 * 3_689_958,
        "attention": 6 * 2 * (512 * 1024 + 1024 + 512 * 512 + 512),
        "MLP": 6 * 2 * (2 * 512 * 1024 + 1024 + 512),
        "token mixing": 6 * (98 * 98 + 98),
        "norm, gate, classifier": 529_927,
    }


@pytest.mark.parametrize("depth", DEPTHS)
def test_table_3(depth):
    """Trainable parameters, the embedding layer among them."""
    with torch.device("meta"):
        model = timm.create_model("cfmrfn_base", depth=depth)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == 31_539_399 + depth * 3_689_958
    assert f"{trainable / 1e6:.2f}" == DEPTHS[depth]


@pytest.mark.parametrize(
    "attention, macs", [("dilated", "6.829"), ("window", "6.829"), ("global", "6.853")]
)
def test_table_5(attention, macs):
    """41.8M whatever the attention, and 6.8G with windows: executed parameters and MACs."""
    ours = measure("cfmrfn_base", attention=attention)
    assert ours.total.executed == 41_838_779
    assert f"{ours.total.executed / 1e6:.1f}" == "41.8"
    assert f"{ours.total.macs / 1e9:.3f}" == macs
    assert f"{ours.parts['expression backbone'].macs / 1e9:.3f}" == "5.468"
    assert f"{ours.parts['landmark backbone'].macs / 1e9:.3f}" == "0.221"
    # Two streams, six layers: scores and weighted values of 9 taps, or of all 49 tokens.
    keys = 49 if attention == "global" else 9
    assert ours.attention_macs == 2 * 6 * 2 * 49 * keys * 512


def test_executed_parameters_leave_out_the_embedding_layer():
    ours = measure("cfmrfn_base", depth=1)
    assert ours.parts["  embedding layer, never run"].executed == 0
    assert ours.parts["expression backbone"].executed == 17_611_968
    assert ours.parts["landmark backbone"].executed == 1_007_248
    assert ours.parts["landmark backbone"].trainable == 0
    assert ours.total.stored - ours.total.executed == 12_847_616


def test_options_that_change_a_layer():
    def layer(**options):
        return (
            measure("cfmrfn_tiny", depth=1, embed_dim=64, **options).parts["encoder layers"].stored
        )

    plain = layer()
    assert layer(q_proj=True) - plain == 2 * (64 * 64 + 64)
    assert plain - layer(token_mixing=False) == 98 * 98 + 98
    assert plain - layer(pre_norm=False) == 2 * 2 * 64
    assert plain - layer(cross_fusion=False) == 98 * 98 + 98 - 2 * (49 * 49 + 49)
    assert layer(attention="global") == layer(attention="window") == plain


def test_equations_preset():
    with torch.device("meta"):
        model = timm.create_model("cfmrfn_equations", depth=1)
    parameters = sum(p.numel() for p in model.layers.parameters())
    assert parameters == 3_689_958 + 2 * (512 * 512 + 512) - (98 * 98 + 98)


def test_costs_grow_with_the_batch():
    one, four = measure("cfmrfn_tiny", batch_size=1), measure("cfmrfn_tiny", batch_size=4)
    assert four.total.macs == 4 * one.total.macs
    assert 3.9 < four.total.activations / one.total.activations < 4
    assert four.total.stored == one.total.stored


def test_activations_are_what_autograd_keeps():
    """Of the classifier's row by hand: fused map, norm statistics, gate and head inputs."""
    batch, dim = 2, 96
    ours = measure("cfmrfn_tiny", batch_size=batch).parts["norm, gate, classifier"].activations
    fused, statistics = batch * 49 * dim, 2 * batch * 49
    pooled = batch * dim
    relu, gate, gated = pooled, pooled, pooled
    assert ours == 4 * (fused + statistics + pooled + relu + gate + gated)


def test_paper_tables(capsys):
    complexity.main(["--paper"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for depth, printed in DEPTHS.items():
        assert [str(depth), printed, printed] in lines
    assert ["8", "61.03", "61.06"] in [line[:3] for line in lines]
    assert ["dilated", "41.8", "41.8", "6.8", "6.8", "5.42"] in lines
    for attention, row in {
        "global": ["51.8", "41.8", "10.3", "6.9", "29.50"],
        "window": ["43.7", "41.8", "8.4", "6.8", "5.42"],
    }.items():
        (line,) = (line for line in lines if line[:1] == [attention])
        assert line[1:6] == row
        assert line[6:8] == ["not", "derivable:"]


def test_tool_prints_the_table_of_any_option(monkeypatch, capsys):
    options = ["--model", "cfmrfn_tiny", "--streams", "landmark", "--batch-size", "3"]
    monkeypatch.setattr(sys, "argv", ["complexity", *options])
    runpy.run_path(complexity.__file__, run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.startswith("cfmrfn_tiny, 3 x 224 x 224")
    assert "landmark backbone" in printed
    assert "expression backbone" not in printed


@pytest.mark.parametrize(
    "args, message",
    [
        (["--model", "resnet"], "resnet"),
        (["--image-size", "100"], "multiples of 32"),
        (["--batch-size", "0"], "batch-size"),
        (["--atention", "global"], "atention"),
        (["--head-dilations", "1", "2"], "head_dilations must be 8"),
        (["--ir50", "a.pth"], "ir50"),
    ],
)
def test_tool_explains_a_mistake_in_one_line(args, message, capsys):
    with pytest.raises(SystemExit) as stop:
        command.run(lambda: complexity.main(args))
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1
