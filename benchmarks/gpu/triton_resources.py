"""What the compiled Triton kernels ask of a GPU, and what follows for their speed.

    python -m benchmarks.gpu.triton_resources
    python -m benchmarks.gpu.triton_resources --arch 90 --head-dim 64 --window 3 --dtype bf16

Compiles ahead of time to machine code, which needs no GPU, with the block shapes of a launch on a
square map with 8 heads of dilations 1 to 3. The columns, counted for one warp whose tile is inside
the map; backward for one that takes it as queries and one that takes it as keys, as two numbers or
as their sum:

    blocks    of a program: lines x strips of a line x queries of a strip; features of a chunk
    regs      registers of a thread
    spills    bytes of a thread's stack
    warps     that a multiprocessor holds at once
    code      instructions as they stand in the code
    /elem     lane instructions per element, a feature of one pixel and head
    waits     for global memory, one after the other
    bytes     bytes to and from device memory, over the fewest
    tiles     pixels of the tiles that are worked on, over those of the map
    idle      programs that find no tile to work on, over the others
    of copy   predicted fraction of the copy bandwidth of an H100 (sm_90) or RTX 3090 (sm_86), and
              what limits it; csrc/cuda/README.md states the model
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.gpu import cuda_model, machine_code, warp_clock, warp_path
from sdwa.backends.triton import interpreted
from sdwa.backends.triton.blocks import Blocks
from sdwa.backends.triton.geometry import head_tiles
from sdwa.backends.triton.launch import KERNELS, Plan, Windows, attention_plan

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


# Where a kernel's parameters start in the constant bank.
PARAMETERS = {80: 0x160, 86: 0x160, 89: 0x160, 90: 0x210, 100: 0x380, 120: 0x380}
# Rows of head_dim features per pixel: read or written by the kernel, of them needed, and read by
# the kernel for delta before it. Backward reads all of its inputs twice, but at once: the second
# time from L2.
ROWS = {"forward": (4, 4, 0), "backward": (7, 7, 2)}
HEADS = 8
DILATION = (1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3)


class Kernel(NamedTuple):
    """One specialisation of a kernel, for a square map of `side` pixels."""

    which: str
    arch: int
    dtype: str
    head_dim: int
    window: int
    bias: bool = False
    masked: bool = False
    key_mask: bool = False
    side: int = 56
    shifted: bool = False

    @property
    def windows(self) -> Windows:
        """As the launch takes them."""
        size = self.window, self.window
        return Windows.of(size, self.masked or self.shifted, self.shifted, (False, False))

    def plan(self, blocks: Blocks | None = None) -> Plan:
        """The launch on a contiguous map."""
        pixel = HEADS * self.head_dim
        strides = (self.side**2 * pixel, self.side * pixel, pixel, self.head_dim)
        return attention_plan(
            self.which,
            (8, self.side, self.side, HEADS, self.head_dim),
            (strides,) * (4 if self.which == "backward" else 3),
            DTYPES[self.dtype],
            self.windows,
            DILATION,
            blocks,
        )


Steps = tuple[warp_path.Step, ...]


class Resources(NamedTuple):
    """What a compiled kernel takes. spills: bytes of stack; shared: bytes."""

    registers: int
    spills: int
    shared: int
    program: list[machine_code.Instruction]


def compile_kernel(kernel: Kernel, blocks: Blocks | None = None) -> Resources:
    """What one specialisation takes, compiled as a launch on aligned tensors would."""
    compiled = compile_only(kernel, blocks)
    return read_resources(compiled.asm["cubin"], compiled.metadata.shared)


def compile_only(kernel: Kernel, blocks: Blocks | None = None) -> Any:
    """What Triton's compiler returns for it: `.asm` has the code in each of its languages."""
    plan = kernel.plan(blocks)
    function = KERNELS[kernel.which][not kernel.windows.plain]
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
    return triton.compile(
        source,
        target=GPUTarget("cuda", kernel.arch, 32),
        options=plan.options,
    )


def read_resources(cubin: bytes, shared: int) -> Resources:
    """Figures of a binary with one kernel, read by the disassembler that Triton brings."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _output(tools / "cuobjdump", "-res-usage", path)
        code = _output(tools / "cuobjdump", "-sass", path)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    program = machine_code.parse(code.splitlines())
    return Resources(int(found[1]), int(found[2]), shared, program)


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def paths(program: Sequence[machine_code.Instruction], arch: int, rounds: int) -> list[Steps]:
    """The ways of a warp with a tile: one forward, one on either side going backward.

    rounds: of the loop over the rows of the window.
    """

    def walk(turned: dict[int, bool]) -> tuple[dict[int, bool], Steps]:
        follower = warp_path.Follower(program, {}, PARAMETERS[arch], rounds, 200_000, turned)
        path = follower.run()
        assert path.ended
        return follower.to_the_work, path.steps

    branches, steps = walk({})
    found = [steps]
    for place, taken in branches.items():
        _, other = walk({place: not taken})
        # Whoever stores nothing has no tile.
        if any(step.executed and step.instruction.base == "STG" for step in other):
            found.append(other)
    return found


class Counts(NamedTuple):
    """The columns of the table, as the module says; of_copy: None where no GPU is known."""

    warps: int
    per_element: float
    waits: tuple[int, ...]
    bytes_over_fewest: float
    tiles: float
    idle: float
    of_copy: float | None
    limit: str


def count(kernel: Kernel, plan: Plan, resources: Resources) -> Counts:
    sides = paths(resources.program, kernel.arch, kernel.window)
    assert len(sides) == (2 if kernel.which == "backward" else 1)
    limits = cuda_model.MULTIPROCESSORS[kernel.arch]
    warps = plan.options["num_warps"]
    blocks = cuda_model.resident_blocks(
        limits, resources.registers, warps * warp_clock.LANES, resources.shared
    )
    a = plan.arguments
    tile = a["BLOCK_H"] * a["BLOCK_W"] * a["STRIP"]
    elements = tile // warps * kernel.head_dim
    issued = sum(step.instruction.base != "NOP" for steps in sides for step in steps)
    rows, fewest, before = ROWS[kernel.which]

    tiles = head_tiles(plan.table, kernel.side, a["BLOCK_H"], a["BLOCK_W"])
    used, of_copy, limit = sum(tiles) / HEADS, None, ""
    gpu = next((g for g in cuda_model.GPUS if g.arch == kernel.arch), None)
    if gpu:
        pixels = tile // warps

        def memory_bytes(rows: int) -> float:
            """Each pixel has 4 bytes of lse beside its rows."""
            return pixels * (rows * kernel.head_dim * DTYPES[kernel.dtype] + 4)

        traffic = [warp_clock.traffic(steps) for steps in sides]
        clocks = [warp_clock.by_latency(steps, gpu.latency, 0) for steps in sides]
        counts = cuda_model.Counts(
            fewest_bytes=memory_bytes(fewest),
            memory_bytes=memory_bytes(rows),
            bytes_before=memory_bytes(before) if before else 0,
            issued=issued,
            products=0,
            l1_bytes=sum(t.l1_bytes for t in traffic),
            cycles=lambda latency: sum(clock(latency) for clock in clocks),
            warps=blocks * warps,
        )
        prediction = cuda_model.predict(gpu, counts)
        of_copy, limit = prediction.fraction, prediction.limit
    return Counts(
        warps=blocks * warps,
        per_element=issued * warp_clock.LANES / elements,
        waits=tuple(warp_clock.waits_in_a_row(steps) for steps in sides),
        bytes_over_fewest=(rows + before) / fewest,
        tiles=used * tile / kernel.side**2,
        idle=max(tiles) / used - 1,
        of_copy=of_copy,
        limit=limit,
    )


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.triton_resources", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--pass", nargs="+", default=PASSES, choices=PASSES, dest="which")
    parser.add_argument("--dtype", nargs="+", default=("bf16", "fp32"), choices=DTYPES)
    parser.add_argument("--head-dim", type=int, nargs="+", default=HEAD_DIMS)
    parser.add_argument("--window", type=int, nargs="+", default=WINDOWS)
    parser.add_argument("--side", type=int, default=56, help="of the map (%(default)s)")
    parser.add_argument("--bias", action="store_true", help="with a window bias")
    parser.add_argument("--masked", action="store_true", help='padding_mode="masked"')
    parser.add_argument("--key-mask", action="store_true", help="with a key mask")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse_arguments()
    if interpreted():
        print("error: unset TRITON_INTERPRET, nothing is compiled under it", file=sys.stderr)
        return 2
    print(
        "pass      arch  dtype head_dim window blocks       regs spills warps  code  /elem  waits"
        "  bytes tiles  idle  of copy"
    )
    for arch, which, dtype, head_dim, window in product(
        options.arch, options.which, options.dtype, options.head_dim, options.window
    ):
        kernel = Kernel(
            which, arch, dtype, head_dim, window,
            options.bias, options.masked, options.key_mask, options.side,
        )  # fmt: skip
        plan, got = kernel.plan(), compile_kernel(kernel)
        counts = count(kernel, plan, got)
        a = plan.arguments
        blocks = f"{a['BLOCK_H']}x{a['BLOCK_W']}x{a['STRIP']} {a['BLOCK_D']}"
        waits = " ".join(map(str, counts.waits))
        of_copy = f"{counts.of_copy:.2f} {counts.limit}" if counts.of_copy else ""
        print(
            f"{which:<9} sm_{arch:<3}{dtype:<6}{head_dim:<9}{window:<7}{blocks:<12}"
            f"{got.registers:>5}{got.spills:>7}{counts.warps:>6}{len(got.program):>6}"
            f"{counts.per_element:>7.0f}{waits:>7}{counts.bytes_over_fewest:>7.2f}"
            f"{counts.tiles:>6.2f}{counts.idle:>6.2f}  {of_copy}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
