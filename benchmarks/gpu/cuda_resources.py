"""What the compiled CUDA kernels ask of a GPU, and what follows for their speed.

    python -m benchmarks.gpu.cuda_resources
    python -m benchmarks.gpu.cuda_resources --arch 90 --match "backward_matrix<BFloat16, 3"
    python -m benchmarks.gpu.cuda_resources --markdown csrc/cuda/README.md

Reads the machine code in the library that sdwa loads; needs no GPU. The columns, counted for one
warp whose tile is inside the map, without bias, key mask and grad_lse:

    regs, stack, spills   registers and bytes of a thread; instructions that spill
    static, dynamic       bytes of shared memory per block
    threads               of a block
    blocks, warps         that a multiprocessor holds at once
    instr                 instructions on the path to the EXIT; "?" where it could not be followed
    /elem                 lane instructions per element, a feature of one pixel and head
    waits                 for global memory, one after the other
    asked                 bytes asked of L1 and L2, over the fewest that device memory can give
    bytes                 bytes to and from device memory, over the fewest
    of copy               predicted fraction of the copy bandwidth of an H100 (sm_90) or RTX 3090
                          (sm_86), and what limits it; csrc/cuda/README.md states the model
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gpu import cuda_families, cuda_library, cuda_model, warp_clock, warp_path
from benchmarks.gpu.cuda_library import CompiledKernel, Missing, ToolError
from benchmarks.gpu.cuda_parameters import Sources

__all__ = ["Kernel", "Missing", "ToolError", "main", "read_kernels", "table"]

_ROUNDS = 2  # of a loop whose number of rounds the code and the parameters do not say

BEGIN, END = "<!-- counted: begin -->", "<!-- counted: end -->"


@dataclass(frozen=True)
class Kernel:
    """One kernel for one architecture, as the module says; None where a column does not apply."""

    arch: int
    name: str
    registers: int
    stack: int
    spills: int
    static_shared: int
    dynamic_shared: int | None
    threads: int
    blocks: int | None
    warps: int | None
    code: int  # instructions as they stand in the code, both sides of every branch
    instructions: int | None
    loads: int | None
    wide: float | None  # fraction of the bytes asked for that are 16 per lane
    products: int | None
    per_element: float | None
    waits: int | None
    asked: float | None
    bytes_over_fewest: float | None
    loops: int | None  # whose number of rounds is assumed
    of_copy: float | None
    limit: str | None
    waiting: list[str]  # the instructions that wait for memory

    @property
    def is_special(self) -> bool:
        """Made for one window: the kernels that ordinary problems run on."""
        found = cuda_families.family_of(self.name)
        return found is not None and found[1].window > 0


def read_kernels(library: Path | None = None, arch: int | None = None) -> list[Kernel]:
    """Every kernel in a library (the one that sdwa loads), for one architecture or all.

    Raises:
        Missing: there is no library, or no tool that reads it.
        ToolError: the tool failed.
    """
    sources = Sources.read()
    return [count(kernel, sources) for kernel in cuda_library.read(library, arch)]


def count(compiled: CompiledKernel, sources: Sources) -> Kernel:
    family, instance = cuda_families.family_of(compiled.name) or (None, None)
    limits = cuda_model.MULTIPROCESSORS.get(compiled.arch)

    def resident(threads: int, shared: int) -> int | None:
        if limits is None:
            return None
        return cuda_model.resident_blocks(limits, compiled.registers, threads, shared)

    launch = cuda_families.Launch(warps=-(-compiled.threads // warp_clock.LANES))
    if family and family.launch and instance and limits:
        by_registers = (resident(compiled.threads, 0) or 0) * launch.warps
        launch = family.launch(instance, limits, by_registers)
    threads = launch.warps * warp_clock.LANES
    blocks = resident(threads, compiled.shared + launch.shared)
    warps = None if blocks is None else blocks * launch.warps

    known = {**cuda_families.parameters_of(instance), **launch.parameters} if instance else {}
    path = warp_path.follow(
        compiled.program,
        base=compiled.parameters,
        parameters=_by_offset(compiled, sources, known),
        rounds=_ROUNDS,
    )
    traffic = warp_clock.traffic(path.steps)
    whole = warp_clock.traffic(warp_path.Step(ins, True) for ins in compiled.program)

    per_element = asked = bytes_over_fewest = prediction = None
    if family and instance:
        bytes_over_fewest = (family.rows + family.rows_before) / family.fewest
    if family and instance and path.ended:
        pixels = family.pixels(instance)
        fewest_bytes = family.memory_bytes(instance, family.fewest)
        per_element = path.instructions * warp_clock.LANES / (pixels * instance.head_dim)
        asked = traffic.global_bytes / fewest_bytes
        gpu = next((g for g in cuda_model.GPUS if g.arch == compiled.arch), None)
        if gpu and warps:
            before = family.memory_bytes(instance, family.rows_before)
            counts = cuda_model.Counts(
                fewest_bytes=fewest_bytes,
                memory_bytes=family.memory_bytes(instance, family.rows),
                bytes_before=before if family.rows_before else 0,
                issued=len(path.steps),
                products=traffic.products,
                l1_bytes=traffic.l1_bytes,
                cycles=warp_clock.by_latency(path.steps, gpu.latency, gpu.product_cycles),
                warps=warps,
            )
            prediction = cuda_model.predict(gpu, counts)
    return Kernel(
        arch=compiled.arch,
        name=compiled.name,
        registers=compiled.registers,
        stack=compiled.stack,
        spills=whole.spills,
        static_shared=compiled.shared,
        dynamic_shared=launch.shared if instance else None,
        threads=threads,
        blocks=blocks,
        warps=warps,
        code=sum(ins.base != "NOP" for ins in compiled.program),
        instructions=path.instructions if path.ended else None,
        loads=traffic.loads if path.ended else None,
        wide=traffic.wide_bytes / max(traffic.global_bytes, 1) if path.ended else None,
        products=traffic.products if path.ended else None,
        per_element=per_element,
        waits=warp_clock.waits_in_a_row(path.steps) if path.ended else None,
        asked=asked,
        bytes_over_fewest=bytes_over_fewest,
        loops=path.loops if path.ended else None,
        of_copy=prediction.fraction if prediction else None,
        limit=prediction.limit if prediction else None,
        waiting=[
            f"{i.address:#x} {i.opcode} {', '.join(i.operands)}"
            for i in warp_clock.waiting(path.steps)
        ],
    )


def _by_offset(
    compiled: CompiledKernel, sources: Sources, known: Mapping[str, int]
) -> dict[int, int]:
    """Values of parameters by their places; none where the sources are not those of the kernel."""
    accumulation = "double" if "<double" in compiled.name else "float"
    layout = sources.parameters(compiled.name.split("<", 1)[0], accumulation)
    if layout is None or layout.size != compiled.parameter_bytes:
        return {}
    return {layout.offsets[n]: value for n, value in known.items() if n in layout.offsets}


# Title, and the cell for a kernel.
_COLUMNS = {
    "arch": lambda k: str(k.arch),
    "kernel": lambda k: k.name,
    "regs": lambda k: str(k.registers),
    "stack": lambda k: str(k.stack),
    "spills": lambda k: str(k.spills),
    "static": lambda k: str(k.static_shared),
    "dynamic": lambda k: _cell(k.dynamic_shared),
    "threads": lambda k: str(k.threads),
    "blocks": lambda k: _cell(k.blocks),
    "warps": lambda k: _cell(k.warps),
    "instr": lambda k: _cell(k.instructions, missing="?"),
    "/elem": lambda k: _cell(k.per_element, ".1f"),
    "waits": lambda k: _cell(k.waits, missing="?"),
    "asked": lambda k: _cell(k.asked, ".2f"),
    "bytes": lambda k: _cell(k.bytes_over_fewest, ".2f"),
    "of copy": lambda k: "-" if k.of_copy is None else f"{k.of_copy:.2f} {k.limit}",
}
_LEFT = ("kernel", "of copy")


def _cell(value: float | None, form: str = "", missing: str = "-") -> str:
    return missing if value is None else format(value, form)


def _rows(kernels: Iterable[Kernel]) -> list[list[str]]:
    return [[cell(kernel) for cell in _COLUMNS.values()] for kernel in kernels]


def table(kernels: Sequence[Kernel]) -> str:
    """One line per kernel."""
    rows = [list(_COLUMNS), *_rows(kernels)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = [
        " ".join(
            text.ljust(width) if title in _LEFT else text.rjust(width)
            for text, width, title in zip(row, widths, _COLUMNS, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def summary(kernels: Sequence[Kernel]) -> str:
    followed = sum(kernel.instructions is not None for kernel in kernels)
    looping = sum(bool(kernel.loops) for kernel in kernels)
    return (
        f"{followed} of {len(kernels)} kernels followed to their EXIT; {looping} have loops whose "
        "number of rounds is assumed"
    )


def markdown(kernels: Sequence[Kernel]) -> str:
    """Tables by architecture, in bfloat16 and float32, of the kernels made for one window."""
    parts = []
    for arch in sorted({kernel.arch for kernel in kernels}):
        shown = [k for k in kernels if k.arch == arch and k.is_special and "<Float16" not in k.name]
        titles = [title for title in _COLUMNS if title != "arch"]
        lines = [f"### sm_{arch}", "", f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
        lines += [f"| `{row[1]}` | {' | '.join(row[2:])} |" for row in _rows(shown)]
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, summary(kernels) + "."])


def write_between_markers(page: Path, text: str) -> None:
    before, _, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ToolError(f"{page} lacks the lines {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def main(arguments: list[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--library", type=Path, help="library or cubin to read (the library that sdwa loads)"
    )
    parser.add_argument("--arch", type=int, help="only this architecture, as in 86 or 90")
    parser.add_argument("--match", default="", help="only kernels whose name holds this")
    parser.add_argument("--waits", action="store_true", help="also say which instructions wait")
    parser.add_argument("--json", type=Path, help="also write the table there")
    parser.add_argument("--markdown", type=Path, help="also put it into this page, at its markers")
    options = parser.parse_args(arguments)
    try:
        kernels = [
            k for k in read_kernels(options.library, options.arch) if options.match in k.name
        ]
        if options.markdown:
            write_between_markers(options.markdown, markdown(kernels))
    except ToolError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(kernels))
    if options.waits:
        for kernel in kernels:
            print("\n  ".join([f"{kernel.arch} {kernel.name} waits at", *kernel.waiting]))
    print(summary(kernels))
    if options.json:
        options.json.write_text(json.dumps([asdict(kernel) for kernel in kernels], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
