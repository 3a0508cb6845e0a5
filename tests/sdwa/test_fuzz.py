"""A few random problems against plain loops, others each day: `python -m tests.fuzz` tries many.

The environment variable SDWA_FUZZ_SEED repeats a day's, its number since the year 1.
"""

import datetime
import os
from dataclasses import replace

import pytest
import torch

from sdwa.backends import BACKENDS
from tests.fuzz.cases import check, run_chunk
from tests.fuzz.exact import assert_matches, exact, is_available
from tests.fuzz.problems import Problem, tensors_of
from tests.fuzz.targets import TARGETS, attend

pytestmark = pytest.mark.skipif(not is_available(), reason="no C compiler")
SEED = int(os.environ.get("SDWA_FUZZ_SEED") or datetime.date.today().toordinal())
CPU = next(backend for backend in BACKENDS if backend.name == "cpu")

PLAIN = Problem(
    seed=0,
    shape=(2, 7, 9, 3, 16),
    value_dim=16,
    kernel_size=(3, 3),
    dilation=((1, 1), (1, 2), (3, 2)),
    padding_mode="zeros",
    is_causal=(False, False),
    dtype=torch.float32,
    scale=None,
    layouts=("contiguous",) * 3,
    spread=1.0,
    bias="tap",
    bias_dtype=torch.float32,
    left_out=0.0,
    kept=None,
    graded=("query", "key", "value", "bias"),
    d_out=True,
    d_lse=True,
    summed=False,
    special=None,
)


@pytest.mark.parametrize("name", ("reference", "cpu"))
def test_random_problems(name, tmp_path):
    if name == "cpu" and (missing := CPU.unavailable(torch.device("cpu"))):
        pytest.skip("; ".join(missing))
    target = TARGETS[name]
    failure = run_chunk(target, check(target, target.make(tmp_path)), SEED, 300)
    assert failure is None, f"SDWA_FUZZ_SEED={SEED}: {failure}"


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16))
@pytest.mark.parametrize(
    "name", ("out", "lse", "grad_query", "grad_key", "grad_value", "grad_bias")
)
def test_one_wrong_number_is_found(name, dtype):
    problem = replace(PLAIN, dtype=dtype)
    tensors = tensors_of(problem)
    found = attend(problem, tensors, "reference")
    assert_matches(problem, tensors, found)
    number = found[name].view(-1)[5]
    number += 0.01 if dtype != torch.bfloat16 else 4
    with pytest.raises(AssertionError, match=f"{name}: 1 of .* are wrong"):
        assert_matches(problem, tensors, found)


@pytest.mark.parametrize(
    "changed",
    (
        {"dilation": ((1, 1), (1, 2), (2, 2))},
        {"padding_mode": "masked"},
        {"is_causal": (True, False)},
        {"scale": 0.26},
    ),
    ids=str,
)
def test_another_problem_is_found(changed):
    tensors = tensors_of(PLAIN)
    found = attend(replace(PLAIN, **changed), tensors, "reference")
    with pytest.raises(AssertionError, match="are wrong"):
        assert_matches(PLAIN, tensors, found)


def test_nan_that_reaches_another_pixel_is_found():
    problem = replace(PLAIN, special=("key", float("nan")))
    tensors = tensors_of(problem)
    found = attend(problem, tensors, "reference")
    assert_matches(problem, tensors, found)
    finite = found["out"].isfinite().nonzero()[0]
    found["out"][tuple(finite)] = float("nan")
    with pytest.raises(AssertionError, match="out: 1 of .* are wrong"):
        assert_matches(problem, tensors, found)


def test_nan_that_is_lost_is_found():
    problem = replace(PLAIN, special=("value", float("nan")))
    tensors = tensors_of(problem)
    found = attend(problem, tensors, "reference")
    found["out"].nan_to_num_()
    with pytest.raises(AssertionError, match="out: .* is finite, and should be NaN"):
        assert_matches(problem, tensors, found)


def test_the_loops_are_attention():
    """Where a window covers the map, and nothing beside it counts, they are PyTorch's own."""
    problem = replace(
        PLAIN,
        shape=(2, 3, 2, 3, 16),
        kernel_size=(5, 5),
        dilation=((1, 1),) * 3,
        padding_mode="masked",
        bias=None,
        dtype=torch.float64,
    )
    tensors = tensors_of(problem)
    names = ("query", "key", "value")
    inputs = [tensors[name].detach().requires_grad_() for name in names]
    flat = [tensor.flatten(1, 2).transpose(1, 2) for tensor in inputs]
    out = torch.nn.functional.scaled_dot_product_attention(*flat).transpose(1, 2)
    scores = flat[0] @ flat[1].transpose(-1, -2) * 16**-0.5
    lse = scores.logsumexp(-1).transpose(1, 2)
    losses = tensors["d_out"].flatten(1, 2), tensors["d_lse"].flatten(1, 2)
    grads = torch.autograd.grad((out, lse), inputs, losses)
    results, _ = exact(problem, tensors)
    torch.testing.assert_close(results["out"].flatten(1, 2), out.detach())
    torch.testing.assert_close(results["lse"].flatten(1, 2), lse.detach())
    for name, grad in zip(names, grads, strict=True):
        torch.testing.assert_close(results[f"grad_{name}"], grad)
