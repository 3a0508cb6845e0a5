"""The backends that the fuzz runs, each as a function from a problem to its results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import sdwa
from tests.fuzz.problems import NAMES, Problem

Results = dict[str, Tensor]
Attend = Callable[[Problem, dict[str, Tensor]], Results]


@dataclass(frozen=True)
class Target:
    """A backend as it is run here.

    Attributes:
        environment: what must be set before Python starts.
        budget: multiply-adds of a forward pass that it has time for.
        side: of the largest map.
        taps: of the largest window.
        plain: it takes what the kernels take, not all that the operator takes.
        tiles: with numbers of 16 bits it multiplies tiles, in which a special value spreads.
        dtypes: that it knows; the others are drawn, and passed over.
    """

    name: str
    make: Callable[[Path], Attend]
    environment: dict[str, str]
    budget: int
    side: int = 40
    taps: int = 255**2
    plain: bool = False
    tiles: bool = False
    dtypes: tuple[torch.dtype, ...] = (
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float64,
    )


def attend(
    problem: Problem, tensors: dict[str, Tensor], backend: str, device: str = "cpu"
) -> Results:
    """Calls the operator as a user does."""
    given = {name: tensor.to(device) for name, tensor in tensors.items()}
    inputs = {
        name: given[name].detach().requires_grad_(name in problem.graded)
        for name in NAMES
        if name in given
    }
    out, lse = sdwa.sliding_dilated_window_attention(
        *(inputs[name] for name in ("query", "key", "value")),
        problem.kernel_size,
        problem.dilation,
        bias=inputs.get("bias"),
        scale=problem.scale,
        padding_mode=problem.padding_mode,
        key_mask=given.get("key_mask"),
        is_causal=problem.is_causal,
        return_lse=True,
        backend=backend,
    )
    results = {"out": out.detach(), "lse": lse.detach()}
    graded = [inputs[name] for name in problem.graded]
    losses = [(o, given[n]) for o, n in ((out, "d_out"), (lse, "d_lse")) if n in given]
    losses = [(o, grad) for o, grad in losses if o.requires_grad]  # lse does not depend on value
    if losses:
        outs, grads = zip(*losses, strict=True)
        found = torch.autograd.grad(outs, graded, grads, allow_unused=True)
        for name, tensor, grad in zip(problem.graded, graded, found, strict=True):
            results[f"grad_{name}"] = torch.zeros_like(tensor) if grad is None else grad
    return {name: tensor.cpu() for name, tensor in results.items()}


def same_bits(first: Results, second: Results, what: str) -> None:
    """Asserts that two runs agree bit for bit."""
    for name, tensor in first.items():
        equal = torch.equal(tensor.isnan(), second[name].isnan())
        equal &= torch.equal(tensor.nan_to_num(), second[name].nan_to_num())
        assert equal, f"{name}: {what} change its bits"


def of_backend(backend: str, device: str = "cpu") -> Callable[[Path], Attend]:
    return lambda folder: lambda problem, tensors: attend(problem, tensors, backend, device)


def cpu(folder: Path) -> Attend:
    """The CPU kernels, which one thread and two must give the same bits."""

    def both(problem: Problem, tensors: dict[str, Tensor]) -> Results:
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            results = attend(problem, tensors, "cpu")
            torch.set_num_threads(1)
            same_bits(results, attend(problem, tensors, "cpu"), "threads")
        finally:
            torch.set_num_threads(before)
        return results

    return both


def cuda_on_host(folder: Path) -> Attend:
    """The CUDA kernels' sources, compiled for the host, threads in either order."""
    from tests.sdwa import cuda_on_host as host
    from tests.sdwa.cases import Case

    programs = host.build(Path(__file__).parents[2] / "build" / "cuda_on_host")

    def emulate(problem: Problem, tensors: dict[str, Tensor]) -> Results:
        if problem.bias == "distance" and problem.padding_mode != "shifted":
            return {}
        case = Case(
            "fuzz",
            problem.shape,
            problem.kernel_size,
            problem.dilation,
            scale=problem.scale,
            padding_mode=problem.padding_mode,
            is_causal=problem.is_causal,
        )
        renamed = {"d_out": "grad_out", "d_lse": "grad_lse"}
        given = [(case, {renamed.get(name, name): t for name, t in tensors.items()})]
        results, other = (host.run(programs, folder, given, order)[0] for order in (0, 1))
        same_bits(results, other, "the order of threads")
        return results

    return emulate


HALF_AND_FLOAT = (torch.float32, torch.bfloat16, torch.float16)
TARGETS = {
    target.name: target
    for target in (
        Target("reference", of_backend("reference"), {}, 1_000_000),
        *(
            Target(f"cpu-{isa}", cpu, {"SDWA_CPU_CAPABILITY": isa}, 3_000_000)
            for isa in ("baseline", "avx2", "avx512", "avx512bf16")
        ),
        Target("cpu", cpu, {}, 3_000_000),
        Target("cuda-on-host", cuda_on_host, {}, 200_000, side=30, plain=True, tiles=True),
        Target(
            "triton-interpreted",
            of_backend("triton"),
            {"TRITON_INTERPRET": "1"},
            20_000,
            side=7,
            taps=25,
            dtypes=HALF_AND_FLOAT,
        ),
        Target("cuda", of_backend("cuda", "cuda"), {}, 3_000_000, tiles=True),
        Target("triton", of_backend("triton", "cuda"), {}, 3_000_000, dtypes=HALF_AND_FLOAT),
    )
}
