"""What only the CPU kernels promise: one meaning for any instruction set and number of threads."""

import os
import subprocess
import sys

import pytest
import torch

from sdwa.backends import BACKENDS
from sdwa.extension import build_info
from tests.sdwa.assertions import run
from tests.sdwa.cases import Case, draw

CPU = next(backend for backend in BACKENDS if backend.name == "cpu")
MISSING = CPU.unavailable(torch.device("cpu"))
pytestmark = pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))

BUILD = build_info()
INSTRUCTION_SETS = BUILD.instruction_sets.split() if BUILD else ()
# Many small maps, and one with fewer heads than threads would like.
THREADED = (
    Case("many_maps", (6, 7, 7, 8, 64), dilation=(1, 1, 2, 2, 2, 3, 3, 3), bias=True),
    Case("one_map", (1, 67, 41, 2, 24), dilation=(1, 3), bias=True),
    Case("bands_5x5", (1, 90, 11, 1, 16), kernel_size=5, dilation=2, bias=True),
)


def run_with(instruction_set: str, code: str) -> subprocess.CompletedProcess:
    """Runs code in a new process: the instruction set is chosen once in a process."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"SDWA_CPU_CAPABILITY": instruction_set},
        capture_output=True,
        text=True,
    )


CHECK_GOLDEN = """
import numpy as np
import torch
import sdwa
from tests.sdwa.assertions import assert_matches_float64, error
from tests.sdwa.cases import CASES, Case
from tests.sdwa.test_operator import OPERATOR_VECTORS

# Rows of every length: full strips of queries, short ones, and short ones that share a strip.
NARROW = [
    Case(f"width{width}", (1, 4, width, 5, 32), dilation=(1, 2, 3, 4, 5),
         padding_mode="masked" if width % 2 else "zeros")
    for width in range(1, 10)
]

for dtype, limit in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
    for path in OPERATOR_VECTORS:
        arrays = {name: torch.from_numpy(np.asarray(a)) for name, a in np.load(path).items()}
        names = ("query", "key", "value")
        inputs = [arrays[name].to(dtype).requires_grad_() for name in names]
        dilation = tuple(arrays["dilation"].tolist())
        out = sdwa.sliding_dilated_window_attention(
            *inputs, int(arrays["kernel_size"]), dilation, backend="cpu"
        )
        grads = torch.autograd.grad(out, inputs, arrays["grad_out"].to(out))
        assert error(out.detach(), arrays["out"]) <= limit, path
        for name, grad in zip(names, grads):
            assert error(grad, arrays["grad_" + name]) <= limit, (path, name)
for case in (*CASES, *NARROW):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert_matches_float64(case, dtype, backend="cpu")
print(torch.ops.sdwa.cpu_capability())
"""


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_every_instruction_set(instruction_set):
    done = run_with(instruction_set, CHECK_GOLDEN)
    if "does not have" in done.stderr:
        pytest.skip(f"{instruction_set} is not in this build or processor")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == instruction_set


def test_unknown_instruction_set_is_refused():
    done = run_with("mmx", CHECK_GOLDEN)
    assert done.returncode != 0
    assert "SDWA_CPU_CAPABILITY is 'mmx'" in done.stderr
    assert "baseline" in done.stderr


@pytest.mark.parametrize("case", THREADED, ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_bits_do_not_depend_on_threads(case, dtype):
    tensors = draw(case, dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(case, tensors, backend="cpu")
        for threads in (2, 3, 5):
            torch.set_num_threads(threads)
            together = run(case, tensors, backend="cpu")
            for name, result in alone.items():
                assert torch.equal(result, together[name]), (name, threads)
    finally:
        torch.set_num_threads(before)
