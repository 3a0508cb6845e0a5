"""Optimizer steps: SAM against a step written out by hand, and what surrounds it."""

import contextlib
import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from cfmrfn.config import OptimConfig
from cfmrfn.losses import ExpressionLoss
from cfmrfn.optim import (
    build_ema,
    build_optimizer,
    learning_rate_factor,
    load_ema_state,
    load_optimizer_state,
    parameter_groups,
    set_learning_rate,
)
from cfmrfn.process.distributed import World
from cfmrfn.training.step import TrainingStep, frozen_batch_statistics
from tests.cfmrfn.processes import forked
from tests.cfmrfn.states import changed_at

CE = ExpressionLoss(1.0, 0.0)


class SmallNetwork(nn.Module):
    """Stands in for CFMRFN: a frozen stream, a batch normalisation, and dropout on request."""

    def __init__(self, norm=True, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(5, 3)
        self.frozen_calls = []  # whether each was to keep gradients

    def landmark_features(self, x):
        self.frozen_calls.append(torch.is_grad_enabled())
        return x.mean((1, 2, 3)).unsqueeze(1)

    def forward(self, x, landmark_features):
        pooled = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.head(torch.cat([self.dropout(pooled), landmark_features], 1))


def make_step(network, model=None, world=None, **settings):
    optim = OptimConfig(lr=0.01, **settings)
    optimizer = build_optimizer(network, optim)
    return TrainingStep(network, model or network, optimizer, CE, optim, world or World("cpu"))


def make_batch(size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 6, 6, generator=generator, dtype=torch.float64)
    return images, torch.randint(3, (size,), generator=generator)


def gradients(network, images, labels):
    loss = nn.functional.cross_entropy(network(images, network.landmark_features(images)), labels)
    return loss, torch.autograd.grad(loss, list(network.parameters()))


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_sam_step_by_hand(freeze, clip):
    torch.manual_seed(0)
    network = SmallNetwork().double()
    by_hand = copy.deepcopy(network)
    step = make_step(network, rho=0.3, clip=clip, sam_freeze_statistics=freeze)
    adam = torch.optim.Adam(by_hand.parameters(), lr=0.01)
    for number in range(3):
        images, labels = make_batch(seed=number)
        result = step(images, labels, number)

        loss, first = gradients(by_hand, images, labels)
        statistics = copy.deepcopy(by_hand.norm.state_dict())
        norm = torch.cat([g.flatten() for g in first]).norm()
        weights = [p.detach().clone() for p in by_hand.parameters()]
        with torch.no_grad():
            for parameter, gradient in zip(by_hand.parameters(), first, strict=True):
                parameter += 0.3 * gradient / norm
        _, second = gradients(by_hand, images, labels)
        if freeze:
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                getattr(by_hand.norm, name).copy_(statistics[name])
        norm = torch.cat([g.flatten() for g in second]).norm()
        factor = 1 if clip is None else min(1, clip / norm)
        with torch.no_grad():
            for parameter, weight in zip(by_hand.parameters(), weights, strict=True):
                parameter.copy_(weight)
        for parameter, gradient in zip(by_hand.parameters(), second, strict=True):
            parameter.grad = factor * gradient
        adam.step()

        # pytorch_optimizer takes the norm of the gradient in float32
        assert result.loss == pytest.approx(loss.item(), rel=1e-7)
        for name, value in by_hand.state_dict().items():
            torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-6, atol=1e-8)


def test_plain_step_by_hand():
    torch.manual_seed(0)
    network = SmallNetwork().double()
    by_hand = copy.deepcopy(network)
    images, labels = make_batch()
    adam = torch.optim.Adam(by_hand.parameters(), lr=0.01)
    logits = by_hand(images, by_hand.landmark_features(images))
    loss = nn.functional.cross_entropy(logits, labels)
    loss.backward()
    adam.step()
    # the loss is summed in float64
    assert make_step(network, rho=0.0)(images, labels, 0) == (
        pytest.approx(loss.item(), rel=1e-14),
        (logits.argmax(1) == labels).sum().item(),
        True,
    )
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-12, atol=1e-14)


def test_sam_leaves_what_has_no_gradient():
    network = SmallNetwork().double()
    network.register_parameter("untrained", nn.Parameter(torch.ones(3)))
    assert make_step(network, rho=0.1)(*make_batch(), 0).applied
    assert network.untrained.tolist() == [1, 1, 1]


def test_an_image_of_votes_counts_for_the_class_of_most():
    network = SmallNetwork().double()
    votes = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.0, 0.4]]).double().repeat(4, 1)
    images, _ = make_batch()
    guesses = network(images, network.landmark_features(images)).argmax(1)
    right = (guesses == torch.tensor([1, 0]).repeat(4)).sum().item()
    assert make_step(network)(images, votes, 0).correct == right


@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_accumulation_equals_one_batch(rho):
    torch.manual_seed(0)
    whole = SmallNetwork(norm=False).double()
    parts = copy.deepcopy(whole)
    step_whole, step_parts = make_step(whole, rho=rho), make_step(parts, rho=rho, accumulate=4)
    for number in range(3):
        images, labels = make_batch(seed=number)
        one, many = step_whole(images, labels, number), step_parts(images, labels, number)
        assert one.loss == pytest.approx(many.loss, rel=1e-12)
        assert one.correct == many.correct
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-9, atol=1e-12)


def test_frozen_stream_runs_once_a_step():
    network = SmallNetwork().double()
    make_step(network, rho=0.1)(*make_batch(), 0)
    assert network.frozen_calls == [False]


def test_statistics_that_are_not_kept_stay_so():
    kept, not_kept = nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)
    with contextlib.suppress(KeyError), frozen_batch_statistics(nn.Sequential(kept, not_kept)):
        assert not kept.track_running_stats
        raise KeyError
    assert kept.track_running_stats and not not_kept.track_running_stats


def test_both_passes_see_the_same_dropout():
    torch.manual_seed(0)
    network = SmallNetwork(dropout=0.5).double()
    seen = []
    network.dropout.register_forward_hook(lambda module, inputs, out: seen.append(out == 0))
    step = make_step(network, rho=1e-9)
    step(*make_batch(), 0)
    step(*make_batch(), 1)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_optimizer_state_resumes_exactly(optimizer, rho):
    torch.manual_seed(0)
    network = SmallNetwork().double()
    step = make_step(network, rho=rho, optimizer=optimizer, weight_decay=0.1)
    for number in range(3):
        step(*make_batch(seed=number), number)
    resumed_network = copy.deepcopy(network)
    resumed = make_step(resumed_network, rho=rho, optimizer=optimizer, weight_decay=0.1)
    load_optimizer_state(resumed.optimizer, copy.deepcopy(step.optimizer.state_dict()))
    for number in range(3, 6):
        step(*make_batch(seed=number), number)
        resumed(*make_batch(seed=number), number)
    for name, value in network.state_dict().items():
        assert torch.equal(resumed_network.state_dict()[name], value)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("param_groups",), [], "optimizer needs 2 groups of parameters"),
        (("param_groups", 0, "params"), [0, 1, 2], "a group of optimizer needs 2 parameters"),
        (("param_groups", 1, "lr"), None, "lr of optimizer must be a number from 0 on, got None"),
        (("param_groups", 1, "lr"), -1.0, "lr of optimizer must be a number from 0 on, got -1.0"),
        (("state", 0), {}, "state of optimizer needs step, exp_avg, exp_avg_sq, got"),
        (("state", 1, "exp_avg"), None, r"exp_avg of optimizer must have shape \(3, 5\)"),
        (("state", 1, "exp_avg"), torch.ones(5), r"exp_avg of optimizer must have shape \(3, 5\)"),
        (
            ("state", 1, "exp_avg_sq"),
            torch.ones(3, 5).to_sparse(),
            "exp_avg_sq of optimizer must be dense and of floats",
        ),
        (("state", 1, "step"), torch.tensor(3), "step of optimizer must be dense and of floats"),
        (("state", 1, "step"), torch.tensor(-1.0), "step of optimizer must be .* got -1"),
        (("state", 1, "step"), torch.tensor(math.inf), "step of optimizer must be .* got inf"),
    ],
)
def test_an_optimizer_state_that_cannot_be(place, value, message):
    network = SmallNetwork(norm=False).double()
    step = make_step(network, weight_decay=0.1)
    step(*make_batch(), 0)
    saved = changed_at(step.optimizer.state_dict(), place, value)
    with pytest.raises(ValueError, match=message):
        load_optimizer_state(make_step(network, weight_decay=0.1).optimizer, saved)


@pytest.mark.parametrize("lr", [0.0, 0.5])
def test_hyperparameters_of_an_optimizer_are_those_of_the_configuration(lr):
    network = SmallNetwork().double()
    step = make_step(network)
    step(*make_batch(), 0)
    saved = step.optimizer.state_dict()
    saved["param_groups"][0] |= {"lr": lr, "betas": None, "eps": "x"}
    saved["state"][0]["step"].zero_()
    optimizer = make_step(network).optimizer
    load_optimizer_state(optimizer, saved)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (lr, (0.9, 0.999), 1e-8)
    torch.testing.assert_close(optimizer.state_dict()["state"], saved["state"], rtol=0, atol=0)


def test_averages_and_loss_scales_that_cannot_be():
    ema, other = (build_ema(SmallNetwork(), 0.9, warmup=True) for _ in range(2))
    load_ema_state(ema, other.state_dict())  # before the first step
    torch.testing.assert_close(ema.state_dict(), other.state_dict(), rtol=0, atol=0)
    saved = ema.state_dict() | {"n_averaged": torch.tensor(-1)}
    with pytest.raises(ValueError, match="n_averaged of ema must be 0 or more, got -1"):
        load_ema_state(ema, saved)
    step = make_step(SmallNetwork(), precision="fp16")
    saved = step.scaler.state_dict()
    for scale in (None, -1.0):
        with pytest.raises(ValueError, match=f"scale of scaler must be a number .* got {scale}"):
            step.load_scaler_state(saved | {"scale": scale})
    step.load_scaler_state(saved | {"scale": 8.0})
    assert step.scaler.get_scale() == 8


def test_bf16_trains():
    network = SmallNetwork()
    dtypes = set()
    network.conv.register_forward_hook(lambda module, inputs, out: dtypes.add(out.dtype))
    step = make_step(network, rho=0.05, precision="bf16")
    images, labels = make_batch()
    losses = [step(images.float(), labels, number).loss for number in range(30)]
    assert losses[-1] < losses[0]
    assert dtypes == {torch.bfloat16}


@pytest.mark.parametrize("overflowing_pass", [1, 2])
def test_fp16_skips_the_whole_step_where_a_pass_overflows(overflowing_pass):
    torch.manual_seed(0)
    network = SmallNetwork()
    step = make_step(network, rho=0.05, precision="fp16")
    images, labels = make_batch()
    images = images.float()
    step(images, labels, 0)
    before = copy.deepcopy(network.state_dict())
    adam_before = copy.deepcopy(step.optimizer.state_dict()["state"])
    scale = step.scaler.get_scale()

    passes, forwards = [], []
    network.conv.register_forward_hook(lambda *_: forwards.append(None))

    def overflow(gradient):
        passes.append(gradient)
        return gradient * math.inf if len(passes) == overflowing_pass else gradient

    handle = network.head.weight.register_hook(overflow)
    result = step(images, labels, 1)
    handle.remove()
    assert math.isfinite(result.loss)
    assert result.applied is False
    assert len(forwards) == overflowing_pass
    assert step.may_overflow
    assert step.scaler.get_scale() == scale / 2
    for name, value in network.named_parameters():
        assert torch.equal(value, before[name])
    torch.testing.assert_close(step.optimizer.state_dict()["state"], adam_before, rtol=0, atol=0)
    assert step(images, labels, 2).applied
    step.scaler.update(1.0)
    assert not step.may_overflow
    step.scaler.update(1.5)
    assert step.may_overflow


def test_not_finite_in_float32_leaves_the_weights():
    network = SmallNetwork().double()
    step = make_step(network, rho=0.05)
    images, labels = make_batch()
    before = copy.deepcopy(network.head.weight)
    result = step(images * math.inf, labels, 0)
    assert not math.isfinite(result.loss)
    assert not result.applied
    assert not step.may_overflow
    assert torch.equal(network.head.weight, before)


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1, bias=False).requires_grad_(False)
        self.input_layer = nn.Conv2d(3, 4, 1)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))


class Pretrained(nn.Module):
    def __init__(self):
        super().__init__()
        self.image_backbone = Backbone()
        self.landmark_backbone = nn.Linear(2, 2).requires_grad_(False)
        self.head = nn.Linear(4, 2)


def test_layers_of_the_backbone_learn_slower_downwards():
    network = Pretrained()
    groups = parameter_groups(network, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    settings = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    named = {n: settings.get(id(p)) for n, p in network.named_parameters()}
    assert named == {
        "image_backbone.stem.weight": None,
        "image_backbone.input_layer.weight": (0.125, 0.1),
        "image_backbone.input_layer.bias": (0.125, 0.0),
        "image_backbone.body.0.weight": (0.25, 0.1),
        "image_backbone.body.0.bias": (0.25, 0.0),
        "image_backbone.body.1.weight": (0.5, 0.1),
        "image_backbone.body.1.bias": (0.5, 0.0),
        "landmark_backbone.weight": None,
        "landmark_backbone.bias": None,
        "head.weight": (1.0, 0.1),
        "head.bias": (1.0, 0.0),
    }
    (alike,) = parameter_groups(network, lr=1.0)
    assert (alike["lr"], alike["weight_decay"], len(alike["params"])) == (1.0, 0.0, 8)
    optimizer = build_optimizer(network, OptimConfig(lr=1.0, layer_decay=0.5))
    set_learning_rate(optimizer, 0.1)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx(
        [0.0125, 0.025, 0.05, 0.1]
    )


def test_what_a_network_spares_does_not_decay():
    network = SmallNetwork(norm=False)
    network.no_weight_decay = lambda: {"conv.weight"}
    spared, decaying = parameter_groups(network, lr=1.0, weight_decay=0.1)
    assert (spared["weight_decay"], decaying["weight_decay"]) == (0.0, 0.1)
    assert [p.shape for p in spared["params"]] == [network.conv.weight.shape, (3,)]
    assert [p.shape for p in decaying["params"]] == [network.head.weight.shape]


def test_learning_rate_schedules():
    def course(**settings):
        optim = OptimConfig(**settings)
        return [learning_rate_factor(optim, epoch) for epoch in (0.0, 0.5, 1.5, 2.5, 10.0, 11.0)]

    assert course(decay=0.9) == pytest.approx([1, 1, 0.9, 0.81, 0.9**10, 0.9**11])
    assert course(decay=0.9, warmup_epochs=2) == pytest.approx([0, 0.25, 0.75, 1, 0.9**8, 0.9**9])
    assert course(schedule="constant") == [1, 1, 1, 1, 1, 1]

    def cosine(progress):
        return 0.5 * (1 + math.cos(math.pi * progress))

    assert course(schedule="cosine", epochs=10) == pytest.approx(
        [1, cosine(0.05), cosine(0.15), cosine(0.25), 0, 0]
    )
    assert course(schedule="cosine", epochs=10, warmup_epochs=2) == pytest.approx(
        [0, 0.25, 0.75, cosine(0.5 / 8), 0, 0]
    )
    # nothing but warm-up
    assert course(schedule="cosine", epochs=2, warmup_epochs=2)[2] == 0.75


@pytest.mark.parametrize("warmup", [False, True])
def test_moving_average_by_hand(warmup):
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = build_ema(network, 0.5, warmup) if warmup else build_ema(network, 0.5)
    expected = 0.0
    # 1 - 3 ** (-2/3) = 0.519 is above the decay that was asked for
    decays = (0.0, 1 - 2 ** (-2 / 3), 0.5, 0.5) if warmup else (0.0, 0.5, 0.5, 0.5)
    for value, decay in zip((1.0, 2.0, 4.0, 8.0), decays, strict=True):
        with torch.no_grad():
            network[0].weight.fill_(value)
            network[1].running_mean.fill_(value)
        ema.update_parameters(network)
        expected = decay * expected + (1 - decay) * value
    assert ema.module[0].weight[0, 0].item() == pytest.approx(expected)
    assert ema.module[1].running_mean[0].item() == pytest.approx(expected)


# Settings of steps of two processes on half of a batch each
IN_TWO_PROCESSES = {
    "plain": {"rho": 0.0, "accumulate": 2, "clip": 0.1},
    "SAM": {"rho": 0.3, "accumulate": 2},
    "SAM of each process": {"rho": 0.3, "sam_local": True},
}


def sam_of_each_process(network, images, labels):
    """Gradients of a step: each half of a batch climbs by its own gradient."""
    halves = []
    for part, targets in zip(images.chunk(2), labels.chunk(2), strict=True):
        climbed = copy.deepcopy(network)
        _, first = gradients(climbed, part, targets)
        norm = torch.cat([g.flatten() for g in first]).norm()
        with torch.no_grad():
            for parameter, gradient in zip(climbed.parameters(), first, strict=True):
                parameter += 0.3 * gradient / norm
        halves.append(gradients(climbed, part, targets)[1])
    return [sum(pair) / 2 for pair in zip(*halves, strict=True)]


def test_two_processes_make_the_steps_of_one(tmp_path):
    program = Path(__file__).with_name("steps_of_two_processes.py")
    done = forked([tmp_path / "made"], [str(program)])
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"made.{rank}") for rank in (0, 1))
    # the overflow of one process is one of both
    assert first["loss scales"] == second["loss scales"] == [(4.0, False), (4.0, True)]
    for name, settings in IN_TWO_PROCESSES.items():
        torch.manual_seed(0)
        network = SmallNetwork(norm=False).double()
        adam = torch.optim.Adam(network.parameters(), lr=0.01)
        step = make_step(network, **{**settings, "accumulate": 1})
        state, results = first[name]
        assert results == second[name][1]
        for number, result in enumerate(results):
            images, labels = make_batch(seed=number)
            if settings.get("sam_local"):
                loss, _ = gradients(network, images, labels)
                steepest = sam_of_each_process(network, images, labels)
                for parameter, gradient in zip(network.parameters(), steepest, strict=True):
                    parameter.grad = gradient
                adam.step()
                assert result[0] == pytest.approx(loss.item(), rel=1e-7)  # as above
            else:
                # and one exchange of gradients between the processes
                alone = step(images, labels, number)
                assert result == (pytest.approx(alone.loss, rel=1e-12), *alone[1:], 1)
        for key, value in network.state_dict().items():
            assert torch.equal(state[key], second[name][0][key])
            torch.testing.assert_close(state[key], value, rtol=1e-6, atol=1e-8, msg=name)
