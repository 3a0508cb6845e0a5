"""The Triton kernels compiled to machine code, which needs no GPU: nothing spills, few waits."""

import os
import re

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("nothing is compiled under TRITON_INTERPRET=1", allow_module_level=True)

import triton

from benchmarks.gpu.triton_resources import Kernel, compile_kernel, compile_only, count

TRITON = tuple(int(number) for number in triton.__version__.split(".")[:2])
KERNELS = (
    # (pass, dtype, head_dim, window, bias, masked, key_mask)
    ("forward", "bf16", 64, 3, False, False, False),
    ("forward", "fp32", 64, 3, False, False, False),
    ("forward", "bf16", 96, 3, True, True, False),
    ("forward", "fp16", 60, 5, False, False, False),
    ("forward", "fp32", 64, 13, False, False, False),
    ("forward", "bf16", 64, 3, False, False, True),
    ("forward", "fp32", 64, 13, True, True, True),
    ("backward", "bf16", 60, 3, False, False, False),
    ("backward", "bf16", 64, 3, True, False, False),
    ("backward", "fp32", 64, 3, False, False, False),
    ("backward", "fp16", 24, 5, True, True, False),
    ("backward", "fp32", 96, 5, True, True, True),
    ("backward", "bf16", 24, 7, True, False, False),
    ("backward", "bf16", 128, 7, False, False, False),
    ("backward", "bf16", 64, 13, True, False, False),
    ("backward", "fp32", 96, 13, True, True, False),
    ("backward", "bf16", 64, 3, False, False, True),
    ("backward", "fp16", 24, 7, True, True, True),
)


@pytest.mark.parametrize("arch", [86, 90], ids=lambda arch: f"sm_{arch}")
@pytest.mark.parametrize(
    "which,dtype,head_dim,window,bias,masked,key_mask",
    KERNELS,
    ids=[
        f"{which}-{dtype}-{dim}-{window}{'-key_mask' * key_mask}"
        for which, dtype, dim, window, *_, key_mask in KERNELS
    ],
)
def test_nothing_spills(arch, which, dtype, head_dim, window, bias, masked, key_mask):
    resources = compile_kernel(Kernel(which, arch, dtype, head_dim, window, bias, masked, key_mask))
    # One kernel of sm_90, to which Triton 3.8 gives 168 registers, all that let three blocks fit a
    # multiprocessor, needs two more of 3.9.
    is_it = (arch, which, dtype, window, bias, key_mask) == (90, "forward", "fp32", 13, True, True)
    most = 8 if is_it and TRITON >= (3, 9) else 0
    assert resources.spills <= most
    assert resources.shared <= 1024  # only what the sums of dbias and the store of lse need


@pytest.mark.parametrize("arch", [86, 90], ids=lambda arch: f"sm_{arch}")
@pytest.mark.parametrize(
    "which,dtype,window,most",
    [
        # For the table, then at most two or three times for each row of the window.
        ("forward", "fp32", 3, (10,)),
        ("forward", "bf16", 7, (22,)),
        ("backward", "bf16", 3, (10, 10)),
    ],
)
def test_loads_do_not_wait_for_each_other(which, dtype, window, most, arch):
    if dtype == "fp32" and TRITON < (3, 8):
        most = (20,)  # its order of the loads lets up to 19 wait
    kernel = Kernel(which, arch, dtype, 64, window)
    counts = count(kernel, kernel.plan(), compile_kernel(kernel))
    assert len(counts.waits) == len(most)
    assert all(waits <= limit for waits, limit in zip(counts.waits, most, strict=True))


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("which", ["forward", "backward"])
def test_kernels_for_shifted_windows_do_not_spill(which, bias):
    for dtype in ("fp32", "bf16"):
        kernel = Kernel(which, 90, dtype, 64, 7, bias=bias, key_mask=bias, shifted=True)
        assert compile_kernel(kernel).spills == 0


@pytest.mark.parametrize("shifted", [False, True], ids=["zeros", "shifted"])
@pytest.mark.parametrize("which", ["forward", "backward"])
def test_scores_are_rounded_before_lse_is_subtracted(which, shifted):
    """The compiler contracts `product * scale - lse` unless it is told not to, and lse, which is of
    rounded scores, then does not fit: with scores of hundreds, by more than PyTorch loses."""
    kernel = Kernel(which, 90, "fp32", 16, 3, shifted=shifted)
    code = compile_only(kernel).asm["ptx"]
    (scale,) = re.findall(r"\.param \.f32 (\w+)", code)
    (register,) = re.findall(rf"ld\.param\.\w+\s+(%\w+), \[{scale}\]", code)
    fused = re.findall(rf"\bfma\.\S+\s+.*{register}\b.*, (\S+);", code)
    assert fused and set(fused) == {"0f00000000"}
