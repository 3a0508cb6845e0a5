"""What only the CPU kernels promise: one meaning for any instruction set and number of threads."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import sdwa
from sdwa.backends import BACKENDS
from sdwa.extension import build_info
from tests.sdwa.assertions import assert_matches_float64, run
from tests.sdwa.cases import Case, draw

CPU = next(backend for backend in BACKENDS if backend.name == "cpu")
MISSING = CPU.unavailable(torch.device("cpu"))
pytestmark = pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))

CSRC = Path(__file__).parents[2] / "csrc"
COMPILER = os.environ.get("CXX", "c++")
BUILD = build_info()
INSTRUCTION_SETS = BUILD.instruction_sets.split() if BUILD else ()
# Many small maps, and one with fewer heads than threads would like.
THREADED = (
    Case("many_maps", (6, 7, 7, 8, 64), dilation=(1, 1, 2, 2, 2, 3, 3, 3), bias=True),
    Case("one_map", (1, 67, 41, 2, 24), dilation=(1, 3), bias=True),
    Case("bands_5x5", (1, 90, 11, 1, 16), kernel_size=5, dilation=2, bias=True),
    Case("pieces", (1, 2, 5000, 3, 8), dilation=(1, 2, 1700), bias=True),
)
# Rows that are cut into pieces: into runs, into groups of phases, into both, differently per head.
WIDE = (
    Case("runs", (1, 3, 6000, 1, 8), dilation=1, bias=True),
    Case("runs_3x5_masked", (1, 3, 6000, 1, 8), (3, 5), 2, bias=True, padding_mode="masked"),
    Case("window_3x9", (1, 2, 6000, 2, 20), (3, 9), (1, 700), bias=True, key_mask=True),
    Case(
        "both_1x7_masked",
        (1, 2, 6000, 1, 8),
        (1, 7),
        50,
        bias=True,
        padding_mode="masked",
        key_mask=True,
    ),
    Case("half_the_width", (1, 2, 6000, 1, 8), dilation=2997, bias=True),
    Case("more_than_half", (1, 2, 6000, 1, 8), dilation=3003, padding_mode="masked"),
    Case("all_but_one", (1, 2, 6000, 1, 8), dilation=5999, bias=True),
    Case("beyond", (1, 2, 6000, 1, 8), dilation=18000, bias=True),
    Case("no_halo", (1, 2, 6000, 1, 8), 1, 7, bias=True),
    Case("by_head", (2, 3, 1501, 3, 40), dilation=(1, 2, 400), bias=True),
    Case("window_1x255", (1, 1, 6000, 1, 8), (1, 255), bias=True),
    Case("window_1x31", (1, 1, 6000, 1, 8), (1, 31), 150, bias=True),
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


@pytest.mark.parametrize("case", WIDE, ids=str)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
def test_wide_maps(case, dtype):
    assert_matches_float64(case, dtype, backend="cpu")


@pytest.mark.parametrize("padding_mode", ("zeros", "shifted"))
def test_threads_that_call_at_once(padding_mode):
    """Each has its own tensors, and all one pool; each gets what it gets alone."""
    cases = [
        Case("one", (2, 24, 23, 3, 24), 3, (1, 2, 3), bias=True, padding_mode=padding_mode),
        Case("other", (1, 50, 31, 2, 16), (5, 3), 2, bias=True, padding_mode=padding_mode),
    ]
    given = [(case, draw(case, torch.float32, seed=seed)) for case in cases for seed in range(2)]
    alone = [run(case, tensors, backend="cpu") for case, tensors in given]
    with ThreadPoolExecutor(len(given)) as pool:
        for _ in range(3):
            found = pool.map(lambda each: run(*each, backend="cpu"), given)
            for expected, results in zip(alone, found, strict=True):
                for name, tensor in expected.items():
                    assert torch.equal(results[name], tensor), name


@pytest.mark.parametrize("key_mask", (False, True))
def test_pieces_do_not_change_bits(key_mask):
    """What lies around the middle of a wide map, where it is cut, is as on a narrow map."""
    case = Case("wide", (1, 3, 6000, 2, 8), (3, 5), (1, 2), bias=True, key_mask=key_mask)
    tensors = draw(case, torch.float32)
    around = {
        name: tensor if name == "bias" else tensor[:, :, 2700:3300].contiguous()
        for name, tensor in tensors.items()
    }
    whole, narrow = (run(case, maps, backend="cpu") for maps in (tensors, around))
    for name in ("out", "lse", "grad_query", "grad_key", "grad_value"):
        assert torch.equal(whole[name][:, :, 2720:3280], narrow[name][:, :, 20:580]), name


MEASURE_MEMORY = """
import resource
import torch
import sdwa

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def step(width):
    def zeros():
        return torch.zeros(1, 1, 1, 1, 32).expand(1, 1, width, 1, 32).requires_grad_()
    inputs = [zeros() for _ in range(3)]
    out = sdwa.sliding_dilated_window_attention(*inputs, (1, 9), backend="cpu")
    torch.autograd.grad(out, inputs, zeros().detach())

step(1000)
before = peak()
step(2**18)
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss in KiB")
def test_scratch_does_not_grow_with_the_map():
    done = run_with("", MEASURE_MEMORY)
    assert done.returncode == 0, done.stderr
    results = 4 * 32 + 1  # MiB: out and three gradients of 2**18 tokens, and lse
    assert float(done.stdout) < results + 32


def attend(query, kernel_size, dilation):
    return torch.ops.sdwa.attention_forward(
        query, query, query, None, None, kernel_size, dilation, 1.0, False
    )


@pytest.mark.parametrize("dilation", (2**31 - 1, 2**31, 2**62))
def test_any_dilation(dilation):
    query = torch.randn(1, 5, 4, 1, 8)
    largest, out_of_reach = (attend(query, [5, 5], [d, d]) for d in (dilation, 5))
    assert all(map(torch.equal, largest, out_of_reach))


@pytest.mark.parametrize("axis", (1, 2))
def test_maps_beyond_32_bits_are_refused(axis):
    shape = [1, 1, 1, 1, 1]
    shape[axis] = 2**30 + 1
    query = torch.zeros(1, 1, 1, 1, 1).expand(shape)
    said = "height and width from 1 to 1073741824, got .*1073741825"
    with pytest.raises(RuntimeError, match=said):
        attend(query, [3, 3], [1, 1])
    with pytest.raises(sdwa.BackendError, match="height and width up to 1073741824, got "):
        sdwa.sliding_dilated_window_attention(query, query, query, backend="cpu")


@pytest.mark.parametrize(
    "shape, said",
    [
        ((2, 0, 3, 1, 4), "height and width from 1 to 1073741824, got 0 and 3"),
        ((2, 3, 0, 1, 4), "height and width from 1 to 1073741824, got 3 and 0"),
        ((2, 3, 3, 0, 4), "heads and head_dim of at least 1, got 0 and 4"),
        ((2, 3, 3, 1, 0), "heads and head_dim of at least 1, got 1 and 0"),
    ],
)
def test_empty_maps_are_refused(shape, said):
    """Also where no Python checks them, as in traced and in exported programs"""
    query = torch.zeros(shape)
    window = ([3, 3], [1, 1] * shape[3], 1.0, False)
    operators = torch.ops.sdwa.attention_forward, torch.ops.sdwa.attention_backward
    lse = torch.zeros(shape[:4])
    for operator, inputs in zip(operators, ([query] * 3, [query, None, *[query] * 3]), strict=True):
        results = [query, lse] if operator is operators[1] else []
        with pytest.raises(RuntimeError, match=said):
            operator(*inputs, None, None, *results, *window)


def test_windows_beyond_the_limit_are_refused():
    with pytest.raises(
        RuntimeError, match="kernel_size must hold two numbers up to 255, odd ones unless"
    ):
        attend(torch.zeros(1, 2, 2, 1, 1), [257, 1], [1, 1])


CHECK_RING = """
#define SDWA_ISA here
#include <cstdio>
#include "cpu/scratch.h"
using namespace sdwa::cpu::here;

int main() {
  static char buffer[1 << 16];
  long wrong = 0;
  for (int rows = 1; rows <= 300; ++rows) {
    Scratch scratch(buffer);
    const RowRing<float> ring(rows, 1, scratch);
    for (long turn = 0; turn < (1l << 31) / rows; turn += 1 + turn / 1000) {
      for (long index = turn * rows - 1; index <= turn * rows + 1; ++index) {
        if (index >= 0) wrong += ring.row(index) - ring.data() != index % rows;
      }
    }
    wrong += ring.row(2147483647) - ring.data() != 2147483647 % rows;
  }
  std::printf("%ld", wrong);
}
"""


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="no C++ compiler")
@pytest.mark.skipif(not CSRC.is_dir(), reason="no kernel sources beside the tests")
def test_ring_of_rows_is_exact(tmp_path):
    """Through the operator it takes 2**32 taps to get to where 32 bits end."""
    (tmp_path / "ring.cpp").write_text(CHECK_RING)
    (tmp_path / "instruction_sets.h").write_text("#define SDWA_FOR_EACH_INSTRUCTION_SET(X)\n")
    program = tmp_path / "ring"
    command = [COMPILER, "-std=c++20", "-O1", f"-I{CSRC}", f"-I{tmp_path}", "-o", program]
    subprocess.run([*command, tmp_path / "ring.cpp"], check=True)
    assert subprocess.run([program], check=True, capture_output=True).stdout == b"0"


def test_gradients_of_windows_with_nothing_left_go_nowhere():
    case = Case("nothing_left", (1, 6, 7, 2, 8), key_mask=True, padding_mode="masked")
    tensors = draw(case, torch.float32)
    nothing = run(case, tensors, backend="cpu")["lse"] == float("-inf")
    assert nothing.any() and not nothing.all()
    tensors["grad_lse"][nothing] = float("nan")
    for name, result in run(case, tensors, backend="cpu").items():
        assert not result.isnan().any(), name
