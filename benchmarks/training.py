"""The network's training step, throughput and latency, for each kind of attention, and POSTER's.

POSTER, the network that CFMRFN follows, is taken from a checkout of its public repository
(https://github.com/zczcwh/POSTER). All networks have random weights, and take the same images, loss
and optimizer through the same step. Logits and gradients are compared with the same network's in
float64 before anything is timed.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import io
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

import cfmrfn  # noqa: F401  registers the networks
from benchmarks import command_line, measure
from benchmarks.command_line import choose
from benchmarks.record import DTYPES, Measurement, Record, UserError, start_record
from benchmarks.report import training_table
from cfmrfn.config import OptimConfig
from cfmrfn.losses import ExpressionLoss
from cfmrfn.models.fusion import StreamAttention
from cfmrfn.optim import build_optimizer
from cfmrfn.process.distributed import World
from cfmrfn.process.precision import autocast
from cfmrfn.training.step import TrainingStep

ATTENTION = ("dilated", "window", "global")
MEASURES = ("step", "sam step", "throughput", "latency")
PRECISIONS = {"float32": "float32", "bf16": "bfloat16", "fp16": "float16"}
LAYOUTS = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}
# Norm of the difference from float64 over the norm, of logits and of the gradient of all weights.
# cuDNN multiplies float32 as TF32 by default, and gradients gather the rounding of 50 layers.
LARGEST_ERROR = {"float32": (1e-2, 5e-2), "bf16": (1e-1, 2e-1), "fp16": (2e-2, 2e-1)}
NUM_CLASSES = 7


@dataclass(frozen=True)
class Options:
    """What the networks are given, and how they are timed."""

    batch: int
    image_size: int
    precision: str
    layout: str
    compiled: bool
    seconds: float
    replay: bool

    @property
    def case(self) -> str:
        """Names the setting in tables and files."""
        how = "compiled" if self.compiled else "eager"
        return f"batch {self.batch}, {self.image_size} px, {self.layout}, {how}"


class Poster(nn.Module):
    """POSTER from a checkout, with random weights, called as CFMRFN is.

    Args:
        folder: the checkout.
        size: "small", "base" or "large".
    """

    def __init__(self, folder: Path, size: str = "base") -> None:
        super().__init__()
        sys.path.insert(0, str(folder))
        # It loads two checkpoints that are not in the repository, and prints what it loads.
        no_weights = patch.object(torch, "load", lambda *_, **__: {"state_dict": {}})
        no_loading = patch.object(nn.Module, "load_state_dict", lambda *_, **__: None)
        try:
            with no_weights, no_loading, redirect_stdout(io.StringIO()):
                module = importlib.import_module("models.emotion_hyp")
                self.network = module.pyramid_trans_expr(num_classes=NUM_CLASSES, type=size)
        finally:
            sys.path.remove(str(folder))

    def landmark_features(self, images: Tensor) -> None:
        """POSTER has no way to compute its frozen stream once for both passes of SAM."""

    def forward(self, images: Tensor, landmark_features: None = None) -> Tensor:
        """(batch, 3, 224, 224) -> (batch, classes)"""
        return self.network(images)[0]


def networks(model: str, poster: Path | None) -> dict[str, Callable[[], nn.Module]]:
    """What makes each network, by the name of its attention.

    Raises:
        UserError: no such model, or no POSTER checkout at that path.
    """
    if not timm.is_model(model):
        raise UserError(
            f"--model must be one of {', '.join(timm.list_models('cfmrfn*'))}; got {model}"
        )
    found: dict[str, Callable[[], nn.Module]] = {
        attention: partial(timm.create_model, model, num_classes=NUM_CLASSES, attention=attention)
        for attention in ATTENTION
    }
    if poster is not None:
        if not (poster / "models" / "emotion_hyp.py").exists():
            raise UserError(
                f"--poster {poster}: no checkout of POSTER, models/emotion_hyp.py is missing"
            )
        found["poster"] = partial(Poster, poster)
    return found


def run(
    record: Record,
    name: str,
    make_network: Callable[[], nn.Module],
    options: Options,
    measures: Sequence[str],
    device: torch.device,
) -> None:
    """Measures one network in one setting, except what the record already holds."""
    torch.manual_seed(0)
    dtype = PRECISIONS[options.precision]
    layout = LAYOUTS[options.layout]
    todo = [w for w in measures if not record.find((options.case, name, w, dtype))]
    if not todo:
        return
    network = make_network().to(device, memory_format=layout)
    shape = (options.batch, 3, options.image_size, options.image_size)
    images = torch.randn(shape, device=device).contiguous(memory_format=layout)
    labels = torch.randint(NUM_CLASSES, (options.batch,), device=device)
    errors = check(network, images[:1], options.precision)
    model = torch.compile(network) if options.compiled else network
    for what in todo:
        if what in ("step", "sam step"):
            step = make_step(network, model, 0.05 if what == "sam step" else 0.0, options, device)
            call = partial(step, images, labels, 0)
            batch = options.batch
        else:
            batch = 1 if what == "latency" else options.batch
            call = make_inference(model, images[:batch], options.precision)
        details: dict[str, Any] = {
            **errors,
            "batch": batch,
            "parameters": sum(p.numel() for p in network.parameters()),
        }
        # The first call also makes gradients and the optimizer's state.
        with nullcontext() if options.compiled else FlopCounterMode(display=False) as counter:
            call()
        if counter is not None:
            details["operations"] = counter.get_total_flops()
        peak, first_ms = measure.peak_memory(call, device)
        if device.type == "cuda":  # with weights, gradients, optimizer state and images
            details["total_peak_bytes"] = torch.cuda.max_memory_allocated(device)
        timing = measure.time_call(
            call, device, seconds=options.seconds, fewest_runs=3, first_ms=first_ms
        )
        details["images_per_second"] = batch / timing.p50_ms * 1e3
        if options.replay and device.type == "cuda" and what == "latency":
            details["graph_p50_ms"] = measure.time_replay(call, device, copies=1).p50_ms
        record.measurements.append(
            Measurement(options.case, name, what, dtype, timing, peak, details)
        )


def check(network: nn.Module, image: Tensor, precision: str) -> dict[str, float]:
    """Errors of logits and gradient of one image against the network in float64 on the CPU.

    Returns:
        "error" of the logits, "gradient_error" of all weights' gradient.

    Raises:
        ValueError: one is larger than rounding explains.
    """
    network.eval()
    exact = copy.deepcopy(network).to("cpu", torch.float64)
    for module in exact.modules():
        if isinstance(module, StreamAttention):
            module.backend = "reference"
    expected = _logits_and_gradient(exact, image.to("cpu", torch.float64), "float32")
    found = _logits_and_gradient(network, image, precision)
    errors = {}
    for name, got, exactly, limit in zip(
        ("error", "gradient_error"), found, expected, LARGEST_ERROR[precision], strict=True
    ):
        errors[name] = ((got - exactly).norm() / exactly.norm()).item()
        if not errors[name] <= limit:
            raise ValueError(f"{name} {errors[name]:.1e} against float64, {limit:.0e} is rounding")
    return errors


def _logits_and_gradient(
    network: nn.Module, image: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    """Logits and the gradient of their cross-entropy by all weights, flat, in float64."""
    weights = [p for p in network.parameters() if p.requires_grad]
    with autocast(precision, image.device):
        logits = network(image)
    loss = cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), label(image))
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    flat = [g.flatten().to("cpu", torch.float64) for g in gradients if g is not None]
    return logits.detach().to("cpu", torch.float64), torch.cat(flat)


def label(images: Tensor) -> Tensor:
    """The first class for each image."""
    return torch.zeros(len(images), dtype=torch.long, device=images.device)


def make_step(
    network: nn.Module, model: nn.Module, rho: float, options: Options, device: torch.device
) -> TrainingStep:
    """The training step of `cfmrfn.train`, with its loss; with rho 0 one pass instead of SAM's."""
    network.train()
    optim = OptimConfig(rho=rho, precision=options.precision)
    criterion = ExpressionLoss(optim.ce_weight, optim.smooth_weight, optim.label_smoothing)
    optimizer = build_optimizer(network, optim)
    return TrainingStep(network, model, optimizer, criterion, optim, World(str(device)))


def make_inference(model: nn.Module, images: Tensor, precision: str) -> Callable[[], Tensor]:
    """A function without arguments that computes the logits of the images."""

    def infer() -> Tensor:
        model.eval()
        with torch.no_grad(), autocast(precision, images.device):
            return model(images)

    return infer


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument(
        "--model", default="cfmrfn_base", help="preset of the network (%(default)s)"
    )
    parser.add_argument(
        "--attention",
        default=",".join(ATTENTION),
        help="kinds of attention, and poster with --poster (%(default)s)",
    )
    parser.add_argument("--poster", type=Path, metavar="PATH", help="a checkout of POSTER")
    parser.add_argument(
        "--measures",
        default=",".join(MEASURES),
        help="step: one pass; sam step: two; throughput, latency: inference at the batch and at "
        "batch 1 (%(default)s)",
    )
    parser.add_argument("--batch", type=int, help="images (CPU: 8; GPU: 200)")
    parser.add_argument("--image-size", type=int, default=224, help="side (%(default)s)")
    parser.add_argument("--device", help="cpu or cuda (the GPU where there is one)")
    parser.add_argument(
        "--precision", help="float32, bf16, fp16, with commas between (CPU: float32; GPU: bf16)"
    )
    parser.add_argument(
        "--layout",
        default="channels_last",
        help="of weights and images: channels_last, contiguous (%(default)s); CFMRFN makes its "
        "maps channels-last itself, POSTER always runs contiguous",
    )
    parser.add_argument("--compile", action="store_true", help="compile the networks")
    parser.add_argument(
        "--graph", action="store_true", help="GPU: also the latency inside a CUDA graph"
    )
    command_line.add_options(parser, seconds=3.0, resume=True)
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse()
    device = command_line.choose_device(arguments.device)
    command_line.check_seconds(arguments.seconds)
    batch = arguments.batch or (8 if device.type == "cpu" else 200)
    if batch < 1:
        raise UserError(f"--batch must be at least 1, got {batch}")
    record = start_record("training", device, arguments.json, arguments.resume)
    known = networks(arguments.model, arguments.poster)
    names = arguments.attention + (",poster" if arguments.poster is not None else "")
    chosen = choose("attention", names, known, record)
    default_precision = "float32" if device.type == "cpu" else "bf16"
    asked = arguments.precision or default_precision
    precisions = choose("precision", asked, PRECISIONS, record)
    layouts = choose("layout", arguments.layout, LAYOUTS, record)
    measures = choose("measure", arguments.measures, MEASURES, record)
    measure.note_limits(record, device, [DTYPES[PRECISIONS[p]] for p in precisions])
    failed = False
    for precision in precisions:
        for layout in layouts:
            for name in chosen:
                options = Options(
                    batch,
                    arguments.image_size,
                    precision,
                    "contiguous" if name == "poster" else layout,
                    arguments.compile,
                    arguments.seconds,
                    arguments.graph,
                )
                try:
                    run(record, name, known[name], options, measures, device)
                except Exception as error:
                    # One network may not fit or not run; the others are measured.
                    reason = " ".join(str(error).split())[:200]
                    record.skip(
                        f"{name}, {options.case}, {precision}: {type(error).__name__}: {reason}"
                    )
                    failed = failed or name != "poster"
                if arguments.json is not None:
                    record.save(arguments.json)
    print(training_table(record))
    return 1 if failed else 0


if __name__ == "__main__":
    command_line.run_main(main)
