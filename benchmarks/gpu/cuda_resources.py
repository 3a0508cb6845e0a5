"""What the compiled CUDA kernels ask of a GPU: registers, spills, shared memory, instructions.

    python -m benchmarks.gpu.cuda_resources
    python -m benchmarks.gpu.cuda_resources --arch 90 --match "backward_matrix<BFloat16, 3"

Reads the machine code in the library that sdwa loads with cuobjdump (of the CUDA toolkit or of
Triton's package); needs no GPU. Instructions are counted as they stand in the code, both sides of
every branch.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from sdwa.extension import find


class ToolError(RuntimeError):
    """The library cannot be read."""


class Missing(ToolError):
    """There is no library, or no disassembler."""


@dataclass(frozen=True)
class Kernel:
    """One kernel for one architecture. Bytes, but for what is counted."""

    arch: int
    name: str
    registers: int
    stack: int
    shared: int  # static; some launches add dynamic shared memory
    spills: int  # instructions that store to or load from local memory
    instructions: int
    loads: int  # from global memory
    wide_loads: int  # of these, 16 bytes per lane
    stores: int
    wide_stores: int
    matrix: int  # matrix products

    @property
    def is_special(self) -> bool:
        """Made for one window: the kernels that ordinary problems run on."""
        return (
            re.search(r"(_matrix<\w+|forward_strip<\w+|backward_vector<float), [357]", self.name)
            is not None
        )


def find_library() -> Path:
    """The library that sdwa loads: in the checkout where it is built there, else as installed."""
    library = find("_lib/libsdwa_cuda.so")
    if library is None:
        raise Missing("libsdwa_cuda.so is not compiled: install with SDWA_BUILD_CUDA=1")
    return library


def find_tool(name: str) -> str:
    """Path of a CUDA binary tool: PATH, then the toolkit, then Triton's package."""
    found = shutil.which(name)
    if found:
        return found
    nvcc = shutil.which("nvcc")
    folders = [Path(nvcc).resolve().parent] if nvcc else []
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    for folder in folders:
        if (folder / name).exists():
            return str(folder / name)
    raise Missing(
        f"no {name} in PATH, beside nvcc, or in triton: install the CUDA toolkit or triton"
    )


def _dump(option: str, library: Path, arch: int | None) -> str:
    if not library.exists():
        raise Missing(f"{library} does not exist")
    command = [find_tool("cuobjdump"), option, str(library)]
    if arch is not None:
        command[1:1] = ["-arch", f"sm_{arch}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ToolError(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")
    return done.stdout


def _short_names(mangled: list[str]) -> dict[str, str]:
    """`forward_matrix<BFloat16, 3, 64 features, 16 bytes>`; mangled where c++filt is missing."""
    tool = shutil.which("c++filt")
    if tool is None or not mangled:
        return {name: name for name in mangled}
    text = "\n".join(mangled)
    plain = subprocess.run([tool], input=text, capture_output=True, text=True, check=True).stdout
    names = {}
    for name, line in zip(mangled, plain.splitlines(), strict=True):
        line = re.sub(r"\(anonymous namespace\)::|sdwa::(?:cuda::)?|^void ", "", line)
        line = line.split("(", 1)[0]
        line = re.sub(
            r"Features<(\d+), (true|false), (\d+)>",
            lambda m: f"{m[1]} features{'' if m[2] == 'true' else ' at a time'}, {m[3]} bytes",
            line,
        )
        names[name] = line.replace(" >", ">")
    return names


def read_kernels(library: Path | None = None, arch: int | None = None) -> list[Kernel]:
    """Every kernel in a library (the one that sdwa loads), for one architecture or all.

    Raises:
        Missing: there is no library, or no tool that reads it.
        ToolError: the tool failed.
    """
    library = library or find_library()
    usage: dict[tuple[int, str], dict[str, int]] = {}
    current, function = 0, ""
    for line in _dump("-res-usage", library, arch).splitlines():
        if match := re.match(r"\s*arch = sm_(\d+)", line):
            current = int(match[1])
        elif match := re.match(r"\s*Function (\S+):", line):
            function = match[1]
        elif "REG:" in line and function:
            usage[current, function] = {k: int(v) for k, v in re.findall(r"([A-Z]+):(\d+)", line)}
            function = ""
    counts: dict[tuple[int, str], Counter[str]] = {}
    opcode = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)")
    for line in _dump("-sass", library, arch).splitlines():
        if match := re.match(r"\s*arch = sm_(\d+)", line):
            current = int(match[1])
        elif match := re.match(r"\s*Function : (\S+)", line):
            counts[current, match[1]] = counter = Counter()
        elif match := opcode.match(line):
            counter[match[1]] += 1
    names = _short_names(sorted({name for _, name in usage}))
    kernels = []
    for (number, name), used in usage.items():
        code = counts.get((number, name), Counter())

        def count(pattern: str, code: Counter[str] = code) -> int:
            return sum(times for op, times in code.items() if re.match(pattern, op))

        kernels.append(
            Kernel(
                arch=number,
                name=names[name],
                registers=used["REG"],
                stack=used["STACK"],
                shared=used.get("SHARED", 0),
                spills=count(r"(STL|LDL)\b"),
                instructions=sum(code.values()) - code["NOP"],
                loads=count(r"LDG?\.|LDG?$"),
                wide_loads=count(r"LDG?\..*128"),
                stores=count(r"STG?\.|STG?$"),
                wide_stores=count(r"STG?\..*128"),
                matrix=count("HMMA"),
            )
        )
    return sorted(kernels, key=lambda kernel: (kernel.arch, kernel.name))


def table(kernels: list[Kernel]) -> str:
    """One line per kernel."""
    width = max([len(kernel.name) for kernel in kernels], default=6)
    head = f"{'arch':>4} {'kernel':<{width}} {'regs':>4} {'stack':>5} {'shared':>6} {'spills':>6}"
    lines = [
        head + f" {'instr':>6} {'loads':>5} {'16 B':>5} {'stores':>6} {'16 B':>5} {'matrix':>6}"
    ]
    lines += [
        f"{k.arch:>4} {k.name:<{width}} {k.registers:>4} {k.stack:>5} {k.shared:>6} {k.spills:>6}"
        f" {k.instructions:>6} {k.loads:>5} {k.wide_loads:>5} {k.stores:>6} {k.wide_stores:>5}"
        f" {k.matrix:>6}"
        for k in kernels
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--library", type=Path, help="file to read (the library that sdwa loads)")
    parser.add_argument("--arch", type=int, help="only this architecture, as in 86 or 90")
    parser.add_argument("--match", default="", help="only kernels whose name holds this")
    parser.add_argument("--json", type=Path, help="also write the table there")
    options = parser.parse_args(arguments)
    try:
        kernels = [
            k for k in read_kernels(options.library, options.arch) if options.match in k.name
        ]
    except ToolError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(kernels))
    if options.json:
        options.json.write_text(json.dumps([asdict(kernel) for kernel in kernels], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
