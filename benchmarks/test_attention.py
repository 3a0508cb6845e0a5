"""The quick set: `pytest benchmarks/ --benchmark-only [--benchmark-json FILE]`."""

import pytest
import torch

from benchmarks.attention import check, draw, exact_results, make_call
from benchmarks.peers import Problem, contenders
from benchmarks.shapes import Shape

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.float32 if DEVICE.type == "cpu" else torch.bfloat16
QUICK = (
    Shape("network", 20, 7, 7, 8, 64, (1, 1, 2, 2, 2, 3, 3, 3), gpu_batch=200),
    Shape("map28", 4, 28, 28, 6, 32, (1, 1, 2, 2, 3, 3), gpu_batch=64),
    Shape("map56", 2, 56, 56, 4, 64, (1, 2, 2, 3), gpu_batch=32),
)
OURS = [contender for contender in contenders() if contender.is_ours]


@pytest.mark.parametrize("what", ("forward", "forward+backward"))
@pytest.mark.parametrize("shape", QUICK, ids=str)
@pytest.mark.parametrize("contender", OURS, ids=lambda contender: contender.name)
def test_attention(benchmark, contender, shape, what):
    shape = shape.on(DEVICE)
    problem = Problem(shape, DTYPE, DEVICE, training=what != "forward")
    if reason := contender.refuses(problem):
        pytest.skip(reason)
    tensors = draw(shape, DTYPE, DEVICE)
    attend = contender.prepare(problem, {})
    exact = exact_results(shape, contender.computes, tensors)
    check(shape, attend, tensors, exact, problem.training)
    call = make_call(attend, tensors, what)

    def finished():
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(finished, rounds=20, warmup_rounds=2)
