"""Reads the compiled CUDA library: each kernel's resources and its instructions.

Uses cuobjdump, of the CUDA toolkit or of Triton's package; needs no GPU.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.machine_code import Instruction, parse
from sdwa.extension import find


class ToolError(RuntimeError):
    """The library cannot be read."""


class Missing(ToolError):
    """There is no library, or no disassembler."""


@dataclass(frozen=True)
class CompiledKernel:
    """One kernel for one architecture. Sizes are in bytes."""

    arch: int
    name: str
    registers: int  # per thread
    stack: int  # per thread
    shared: int  # per block, static; some launches add dynamic shared memory
    threads: int  # of a block
    parameters: int  # where they start in the constant bank
    parameter_bytes: int
    program: list[Instruction]


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


def read(library: Path | None = None, arch: int | None = None) -> list[CompiledKernel]:
    """Every kernel in a library (the one that sdwa loads) or cubin, for one architecture or all.

    Raises:
        Missing: there is no library, or no tool that reads it.
        ToolError: the tool failed.
    """
    library = library or find_library()
    programs = dict(_by_function(_dump("-sass", library, arch)))
    if not programs:
        return []
    default = next(iter(programs))[0]  # a cubin has one, of which the next two dumps say nothing
    usage = dict(_by_function(_dump("-res-usage", library, arch), default))
    attributes = _attributes(_dump("-elf", library, arch), default)
    names = _short_names(sorted({name for _, name in programs}))
    kernels = []
    for key, lines in programs.items():
        number, name = key
        used = {word: int(n) for word, n in re.findall(r"([A-Z]+):(\d+)", usage[key][0])}
        kernels.append(
            CompiledKernel(
                arch=number,
                name=names[name],
                registers=used["REG"],
                stack=used["STACK"],
                shared=_static_shared(number, used["SHARED"]),
                threads=attributes[key]["MAX_THREADS"],
                parameters=attributes[key]["PARAM_CBANK"] & 0xFFFF,
                parameter_bytes=attributes[key]["PARAM_CBANK"] >> 16,
                program=parse(lines),
            )
        )
    return sorted(kernels, key=lambda kernel: (kernel.arch, kernel.name))


def _dump(option: str, library: Path, arch: int | None) -> list[str]:
    if not library.exists():
        raise Missing(f"{library} does not exist")
    command = [find_tool("cuobjdump"), option, str(library)]
    if arch is not None:
        command[1:1] = ["-arch", f"sm_{arch}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ToolError(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")
    return done.stdout.splitlines()


def _by_function(
    lines: Iterable[str], arch: int = 0
) -> Iterator[tuple[tuple[int, str], list[str]]]:
    """Architecture and mangled name of each function, and the lines that follow."""
    key, section = None, []  # type: tuple[int, str] | None, list[str]
    for line in lines:
        if match := re.match(r"\s*(?:arch = |code for )sm_(\d+)", line):
            arch = int(match[1])
        elif match := re.match(r"\s*Function (?:: )?(\S+?):?$", line):
            if key is not None:
                yield key, section
            key, section = (arch, match[1]), []
        else:
            section.append(line)
    if key is not None:
        yield key, section


# From sm_90 on the figure holds the 1 KiB that the system keeps per block, where there is dynamic
# shared memory; the occupancy adds it for every block.
_SYSTEM_SHARED = 1024


def _static_shared(arch: int, shared: int) -> int:
    return max(shared - _SYSTEM_SHARED, 0) if arch >= 90 else shared


def _attributes(lines: Iterable[str], arch: int) -> dict[tuple[int, str], dict[str, int]]:
    """Of each kernel: threads of a block at most, by launch bounds; where its parameters start."""
    found: dict[tuple[int, str], dict[str, int]] = {}
    current: dict[str, int] = {}
    attribute = ""
    for line in lines:
        if match := re.match(r"\s*arch = sm_(\d+)", line):
            arch = int(match[1])
        elif match := re.match(r"\.nv\.info\.(\S+)", line):
            current = found.setdefault((arch, match[1]), {})
        elif match := re.match(r"\s*Attribute:\s*EIATTR_(\w+)", line):
            attribute = match[1]
        elif match := re.match(r"\s*Value:\s*(0x[0-9a-f]+)(?: (0x[0-9a-f]+))?", line):
            if attribute == "MAX_THREADS":
                current[attribute] = int(match[1], 16)
            elif attribute == "PARAM_CBANK":  # a symbol; size and place in 16 bits each
                current[attribute] = int(match[2], 16)
    return found


def _short_names(mangled: list[str]) -> dict[str, str]:
    """As `backward_matrix<BFloat16, 3, 64 features, 16 bytes, plain, 2 slots>`.

    Mangled where c++filt is missing.
    """
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
        line = re.sub(
            r"(_matrix<.* bytes), (true|false)(?:, (\d))?>",
            lambda m: (
                m[1]
                + (", plain" if m[2] == "true" else "")
                + (f", {m[3]} slot{'s' * (m[3] != '1')}" if m[3] else "")
                + ">"
            ),
            line,
        )
        line = re.sub(r"StagedTile<(\d+), (\d+)>", r"float, \1, \2 lanes", line)
        names[name] = line.replace(" >", ">")
    return names
