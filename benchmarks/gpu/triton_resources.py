"""What the Triton kernels ask of a GPU: registers, spills, shared memory, instructions.

    python -m benchmarks.gpu.triton_resources
    python -m benchmarks.gpu.triton_resources --arch 90 --head-dim 64 --window 3 --dtype bf16

Compiles ahead of time to machine code, which needs no GPU, with the block shapes of a launch.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sdwa.backends.triton import interpreted
from sdwa.backends.triton.blocks import Blocks
from sdwa.backends.triton.launch import KERNELS, OPTIONS, Plan, attention_plan

ARCHITECTURES = (86, 90)
DTYPES = {"fp32": 4, "bf16": 2, "fp16": 2}
HEAD_DIMS = (16, 24, 32, 48, 60, 64, 96, 128, 256)
WINDOWS = (3, 5, 7, 13)
PASSES = ("forward", "backward")
# Of the input's type, and of types of their own; the others are float32.
POINTERS = {"table_ptr": "i32", "key_mask_ptr": "u8"}
INPUT_POINTERS = {
    f"{name}_ptr"
    for name in ("q", "k", "v", "out", "grad_out", "grad_query", "grad_key", "grad_value")
}


class Kernel(NamedTuple):
    """One specialisation of a kernel."""

    which: str
    arch: int
    dtype: str
    head_dim: int
    window: int
    bias: bool = False
    masked: bool = False
    key_mask: bool = False

    def plan(self, blocks: Blocks | None = None) -> Plan:
        """The launch on a contiguous map of 56 x 56 pixels with 8 heads."""
        shape = (8, 56, 56, 8, self.head_dim)
        strides = (56 * 56 * 8 * self.head_dim, 56 * 8 * self.head_dim, 8 * self.head_dim)
        tensors = ((*strides, self.head_dim),) * (4 if self.which == "backward" else 3)
        window = (self.window, self.window)
        size = DTYPES[self.dtype]
        dilation = (1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3)
        return attention_plan(
            self.which, shape, tensors, size, window, dilation, self.masked, blocks
        )


class Resources(NamedTuple):
    """What a compiled kernel takes. spills: bytes of stack; shared: bytes.

    instructions: in the machine code; per element of the tile and lane they are 32 times the
    issue slots that a warp spends on it, where no loop is left.
    """

    registers: int
    spills: int
    shared: int
    instructions: int


def compile_kernel(kernel: Kernel, blocks: Blocks | None = None) -> Resources:
    """Compiles one specialisation, as a launch on aligned tensors would."""
    plan = kernel.plan(blocks)
    function = KERNELS[kernel.which]
    signature: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    present = {
        "bias_ptr": kernel.bias,
        "bias_parts_ptr": kernel.bias,
        "key_mask_ptr": kernel.key_mask,
    }
    aligned: dict[tuple[int], list[list[Any]]] = {}
    for index, name in enumerate(function.arg_names):
        if not present.get(name, True):
            signature[name], constants[name] = "constexpr", None
        elif name.endswith("_ptr"):
            pointed = kernel.dtype if name in INPUT_POINTERS else POINTERS.get(name, "fp32")
            signature[name] = f"*{pointed}"
            aligned[(index,)] = [["tt.divisibility", 16]]
        elif name.endswith("_strides"):
            signature[name] = ("i32",) * 4
        elif name == "scale":
            signature[name] = "fp32"
        elif name.isupper() or name == "INDEX_64":
            signature[name], constants[name] = "constexpr", plan.arguments[name]
        else:
            signature[name] = "i32"
    source = ASTSource(function, signature, constants, aligned)
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", kernel.arch, 32),
        options={"num_warps": plan.warps, **OPTIONS},
    )
    return read_resources(compiled.asm["cubin"], compiled.metadata.shared)


def read_resources(cubin: bytes, shared: int) -> Resources:
    """Figures of a binary with one kernel, read by the disassembler that Triton brings."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _output(tools / "cuobjdump", "-res-usage", path)
        code = _output(tools / "nvdisasm", "-c", path)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    instructions = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s", code, re.MULTILINE))
    return Resources(int(found[1]), int(found[2]), shared, instructions)


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.triton_resources", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--pass", nargs="+", default=PASSES, choices=PASSES, dest="which")
    parser.add_argument("--dtype", nargs="+", default=("bf16", "fp32"), choices=DTYPES)
    parser.add_argument("--head-dim", type=int, nargs="+", default=HEAD_DIMS)
    parser.add_argument("--window", type=int, nargs="+", default=WINDOWS)
    parser.add_argument("--bias", action="store_true", help="with a window bias")
    parser.add_argument("--masked", action="store_true", help='padding_mode="masked"')
    parser.add_argument("--key-mask", action="store_true", help="with a key mask")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse_arguments()
    if interpreted():
        print("error: unset TRITON_INTERPRET, nothing is compiled under it", file=sys.stderr)
        return 2
    print("pass      arch  dtype head_dim window  blocks                 regs spills shared  instr")
    for arch in options.arch:
        for which in options.which:
            for dtype in options.dtype:
                for head_dim in options.head_dim:
                    for window in options.window:
                        kernel = Kernel(
                            which, arch, dtype, head_dim, window,
                            options.bias, options.masked, options.key_mask,
                        )  # fmt: skip
                        plan, got = kernel.plan(), compile_kernel(kernel)
                        a = plan.arguments
                        tile = (
                            f"{a['BLOCK_H']}x{a['BLOCK_W']}x{a['STRIP']} "
                            f"lanes {a['BLOCK_D']} warps {plan.warps}"
                        )
                        print(
                            f"{which:<9} sm_{arch:<3}{dtype:<6}{head_dim:<9}{window:<8}{tile:<22} "
                            f"{got.registers:>4}{got.spills:>7}{got.shared:>7}{got.instructions:>7}",
                            flush=True,
                        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
