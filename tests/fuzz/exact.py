"""Results of a problem from the plain loops in C, and how far a backend may be off."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from tests.fuzz.problems import MODES, Problem

SOURCE = Path(__file__).with_name("loops.c")
RESULTS = ("out", "lse", "grad_query", "grad_key", "grad_value", "grad_bias")
# Unit roundoffs: of the accumulation type, and of what is stored.
ROUNDOFF = {
    torch.float64: (2.0**-53, 0.0),
    torch.float32: (2.0**-24, 0.0),
    torch.bfloat16: (2.0**-24, 2.0**-9),
    torch.float16: (2.0**-24, 2.0**-12),
}
# What a weight, and a result, may lose for being too small.
SMALLEST = {
    torch.float64: 1e-307,
    torch.float32: 1e-37,
    torch.bfloat16: 1e-37,
    torch.float16: 2.0**-24,
}


class _Problem(ctypes.Structure):
    _fields_ = (
        *(
            (n, ctypes.c_long)
            for n in ("batch", "height", "width", "heads", "key_dim", "value_dim")
        ),
        ("kernel", ctypes.c_long * 2),
        ("mode", ctypes.c_long),
        ("causal", ctypes.c_long * 2),
        ("by_distance", ctypes.c_long),
        *((n, ctypes.c_double) for n in ("scale", "u", "stored", "smallest")),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "loops.so"
        compiler = os.environ.get("CC", "cc")
        command = [compiler, "-O2", "-shared", "-fPIC", "-o", path, SOURCE, "-lm"]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(path))


def exact(problem: Problem, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], ...]:
    """What the tensors as they are give in real arithmetic, and its bounds, by name, in float64."""
    batch, height, width, heads, dim = problem.shape
    own = {name: tensor.double().contiguous() for name, tensor in tensors.items()}
    if "key_mask" in tensors:
        own["key_mask"] = tensors["key_mask"].contiguous()
    shapes = {
        "out": (*problem.shape[:4], problem.value_dim),
        "lse": problem.shape[:4],
        "grad_query": problem.shape,
        "grad_key": problem.shape,
        "grad_value": (*problem.shape[:4], problem.value_dim),
        "grad_bias": problem.bias_shape if problem.bias else (0,),
    }
    results, bounds = (
        {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
        for _ in range(2)
    )
    u, stored = ROUNDOFF[problem.dtype]
    given = _Problem(
        *(batch, height, width, heads, dim, problem.value_dim),
        (ctypes.c_long * 2)(*problem.kernel_size),
        MODES.index(problem.padding_mode),
        (ctypes.c_long * 2)(*problem.is_causal),
        problem.bias == "distance",
        dim**-0.5 if problem.scale is None else problem.scale,
        *(u, stored, SMALLEST[problem.dtype]),
    )
    dilation = torch.tensor(problem.dilation, dtype=torch.int64)

    def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
        return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())

    def pointers(named: dict[str, Tensor]) -> ctypes.Array:
        return (ctypes.c_void_p * 6)(*(named[name].data_ptr() for name in RESULTS))

    _library().attend(
        ctypes.byref(given),
        pointer(dilation),
        *(pointer(own.get(n)) for n in ("query", "key", "value", "bias", "key_mask")),
        *(pointer(own.get(n)) for n in ("d_out", "d_lse")),
        pointers(results),
        pointers(bounds),
    )
    if not problem.bias:
        del results["grad_bias"], bounds["grad_bias"]
    return results, bounds


def assert_matches(
    problem: Problem,
    tensors: dict[str, Tensor],
    found: dict[str, Tensor],
    times: float = 3.0,
    spreads: bool = False,
) -> None:
    """Asserts that every number found is as near to the exact one as rounding explains.

    A special value may change only what depends on it in real arithmetic; there NaN must not come
    out finite. (What infinities give there depends on how a softmax is computed.) With `spreads` it
    may change more.
    """
    clean = tensors
    if problem.special and (name := problem.special[0]) in tensors:
        special = ~tensors[name].isfinite()
        clean = {**tensors, name: tensors[name].masked_fill(special, 1)}
        depends, _ = exact(problem, {**tensors, name: tensors[name].masked_fill(special, math.nan)})
    right, bounds = exact(problem, clean)
    for name, result in found.items():
        of_value = problem.special and "value" in (name.removeprefix("grad_"), problem.special[0])
        if of_value and name.startswith("grad") and not problem.d_out:
            continue  # a gradient of 0 times NaN
        target, stored = right[name], result.dtype
        assert result.shape == target.shape, f"{name}: shape {tuple(result.shape)}"
        wide = result.double()
        if clean is not tensors:
            touched = depends[name].isnan()
            if math.isnan(problem.special[1]):
                lost = touched & wide.isfinite()
                assert not lost.any(), f"{name}: {_first(lost)} is finite, and should be NaN"
            if name == "grad_bias":  # a softmax of NaN is NaN also where a tap is left out
                touched = touched.any((1, 2), keepdim=True).expand_as(touched)
            wide = wide.where(~touched, target)
            if spreads:
                wide = wide.where(wide.isfinite(), target)
        bound = times * (bounds[name] + (ROUNDOFF[stored][0] + ROUNDOFF[stored][1]) * target.abs())
        bound += SMALLEST[stored]
        too_large = target.abs() + bound > torch.finfo(stored).max
        off = (wide - target).abs()
        off = off.where(wide != target, 0)  # infinities
        wrong = ~(off <= bound) & ~too_large
        if wrong.any():
            index = _first(wrong)
            raise AssertionError(
                f"{name}: {int(wrong.sum())} of {wrong.numel()} are wrong, first {index}: "
                f"{wide[index]:.9g} instead of {target[index]:.9g} +- {bound[index]:.2g}"
            )


def _first(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero()[0].tolist())


def is_available() -> bool:
    """Whether a C compiler is here."""
    try:
        _library()
    except (OSError, subprocess.CalledProcessError):
        return False
    return True
