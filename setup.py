"""Compiles the kernels with ninja; everything else about the packages stands in pyproject.toml.

Three files are built:

- `sdwa/_lib/libsdwa_cpu.so`: the operators' schemas and the CPU kernels, always. The kernels are
  compiled once for each instruction set and the best one is picked at run time.
- `sdwa/_lib/libsdwa_cuda.so`: the CUDA kernels, where nvcc is found.
- `sdwa/_build.*.so`: what was built, for `python -m sdwa.info`.

The two libraries use PyTorch's stable ABI only, so the PyTorch that builds them and the one that
runs them need not agree (2.10 or later).

Environment: SDWA_BUILD_CUDA=auto|1|0 (1 makes a missing toolkit an error), TORCH_CUDA_ARCH_LIST
("8.6;9.0+PTX"), SDWA_NVCC_FLAGS (more of them), CUDA_HOME, CXX, MAX_JOBS.
"""

import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import ninja
import pybind11
import torch
from ninja.ninja_syntax import Writer
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
TORCH = Path(torch.__file__).parent
source_digest = runpy.run_path(str(ROOT / "sdwa" / "_sources.py"))["source_digest"]

# PyTorch 2.10, the oldest whose stable ABI has all that is used here.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
COMMON = ["-O3", "-std=c++20", "-DNDEBUG"]
HOST = ["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-fno-math-errno", "-fno-trapping-math"]
# The CPU kernels are compiled once for each instruction set (see csrc/README.md).
ISA_SOURCES = ("forward.cpp", "backward.cpp", "products.cpp")
# The sets of a processor family, the best last, and the features that each takes: as GCC and Clang
# name them, after -m and to __builtin_cpu_supports.
AVX2 = ("avx2", "fma", "f16c")
AVX512 = (*AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")
INSTRUCTION_SETS = {
    "x86_64": {
        "baseline": (),
        "avx2": AVX2,
        "avx512": AVX512,
        "avx512bf16": (*AVX512, "avx512bf16"),
    },
}
# A100, RTX 30xx (and RTX 40xx, which run the same code), Hopper, Blackwell. The last also carries
# PTX, for newer ones.
DEFAULT_ARCHITECTURES = "8.0;8.6;9.0;10.0;12.0+PTX"


def say(message: str) -> None:
    print(f"sdwa build: {message}", file=sys.stderr, flush=True)


def find_nvcc() -> tuple[str | None, str]:
    """Path of nvcc or None, and why."""
    choice = os.environ.get("SDWA_BUILD_CUDA", "auto")
    if choice not in ("auto", "1", "0"):
        sys.exit(f"SDWA_BUILD_CUDA must be auto, 1 or 0, got {choice!r}")
    if choice == "0":
        return None, "SDWA_BUILD_CUDA=0"
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")
    if nvcc is None:
        where = f"{home}/bin (CUDA_HOME)" if home else "PATH"
        why = f"no nvcc in {where}"
    elif not (TORCH / "lib" / "libtorch_cuda.so").exists():
        nvcc, why = None, f"the building PyTorch {torch.__version__} has no CUDA"
    else:
        return nvcc, f"found {nvcc}"
    if choice == "1":
        sys.exit(f"SDWA_BUILD_CUDA=1, but {why}: install the CUDA toolkit or set CUDA_HOME")
    return None, why


def cuda_architectures(nvcc: str) -> list[str]:
    """Compute capabilities, as "8.6" or "9.0+PTX"; of the default list those that nvcc knows."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    known = {int(number) for number in re.findall(r"compute_(\d+)", listed.stdout)}
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST")
    chosen = re.split(r"[;,\s]+", (asked or DEFAULT_ARCHITECTURES).strip())
    kept = []
    for entry in chosen:
        match = re.fullmatch(r"(\d+)\.(\d)(\+PTX)?", entry)
        if match is None:
            sys.exit(
                f"TORCH_CUDA_ARCH_LIST must hold entries such as 8.6 or 9.0+PTX, got {entry!r}"
            )
        if int(match[1] + match[2]) in known:
            kept.append(entry)
        elif asked:
            sys.exit(f"TORCH_CUDA_ARCH_LIST names {entry}, which {nvcc} cannot compile for")
    if not kept:
        sys.exit(f"{nvcc} knows none of {DEFAULT_ARCHITECTURES}: set TORCH_CUDA_ARCH_LIST")
    return kept


def gencode(architectures: list[str]) -> list[str]:
    """One intermediate code, for the oldest architecture, and machine code of it for each.

    The intermediate code is most of the compiler's work.
    """
    numbers = [entry.removesuffix("+PTX").replace(".", "") for entry in architectures]
    oldest = min(numbers, key=int)
    codes = [f"sm_{number}" for number in numbers]
    if any(entry.endswith("+PTX") for entry in architectures):
        codes.append(f"compute_{oldest}")
    return [f"-gencode=arch=compute_{oldest},code={code}" for code in codes]


def instruction_sets_header(sets: dict[str, tuple[str, ...]]) -> str:
    """A macro that calls X(name, whether the processor has it) for each set, the best first."""
    lines = ["#define SDWA_FOR_EACH_INSTRUCTION_SET(X)"]
    for isa in reversed(sets):
        supported = [f'__builtin_cpu_supports("{name}")' for name in sets[isa]]
        lines.append(f"  X({isa}, {' && '.join(supported) or 'true'})")
    comment = "// Written by setup.py. X(name, whether the processor has it), the best set first.\n"
    return comment + " \\\n".join(lines) + "\n"


def write_if_other(path: Path, text: str) -> None:
    """Leaves an unchanged file alone, so that what includes it is not compiled again."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def first_line(command: list[str]) -> str:
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return printed.splitlines()[0]


class BuildKernels(build_ext):
    """Writes build.ninja and runs it; `ext_modules` only tells setuptools that code is compiled."""

    def get_outputs(self) -> list[str]:
        return [str(path) for path in self.built]

    def run(self) -> None:
        package = ROOT / "sdwa" if self.inplace else Path(self.build_lib).resolve() / "sdwa"
        work = Path(self.build_temp).resolve()
        work.mkdir(parents=True, exist_ok=True)
        (package / "_lib").mkdir(parents=True, exist_ok=True)
        self.built = self.write_ninja(work, package)
        jobs = os.environ.get("MAX_JOBS")
        command = [str(Path(ninja.BIN_DIR) / "ninja"), "-k", "0", *(["-j", jobs] if jobs else [])]
        if subprocess.run(command, cwd=work).returncode:
            sys.exit(
                "sdwa build: compiling the kernels failed (see above); "
                "SDWA_BUILD_CUDA=0 builds without the CUDA kernels"
            )

    def write_ninja(self, work: Path, package: Path) -> list[Path]:
        compiler = os.environ.get("CXX", "c++")
        nvcc, why = find_nvcc()
        architectures = cuda_architectures(nvcc) if nvcc else []
        sets = INSTRUCTION_SETS.get(platform.machine(), {"baseline": ()})
        say(f"CPU kernels for {', '.join(sets)} with {first_line([compiler, '--version'])}")
        cuda = f"CUDA kernels for {', '.join(architectures)}" if nvcc else "no CUDA kernels"
        say(f"{cuda}: {why}")

        facts = {
            "TORCH": torch.__version__,
            "COMPILER": first_line([compiler, "--version"]),
            "INSTRUCTION_SETS": " ".join(sets),
            "CUDA": self.cuda_version(nvcc) if nvcc else why,
            "ARCHITECTURES": ";".join(architectures),
            "SOURCE_DIGEST": source_digest(CSRC),
        }
        defines = [f'#define SDWA_{key} "{value}"\n' for key, value in facts.items()]
        write_if_other(work / "build_facts.h", "".join(defines))
        write_if_other(work / "instruction_sets.h", instruction_sets_header(sets))

        strict = ["-Werror"] if os.environ.get("SDWA_WERROR") else []
        torch_include = [f"-isystem {TORCH / 'include'}"]
        torch_link = [f"-L{TORCH / 'lib'}", "-Wl,--no-as-needed"]
        with (work / "build.ninja").open("w") as file:
            n = Writer(file, width=100)
            n.rule(
                "cxx",
                f"{compiler} -MMD -MF $out.d $flags -c $in -o $out",
                depfile="$out.d",
                deps="gcc",
                description="c++ $out",
            )
            n.rule("link", f"{compiler} -shared $in -o $out $flags", description="link $out")

            def compile_host(source: Path, name: str, flags: list[str]) -> str:
                n.build(name, "cxx", str(source), variables={"flags": " ".join(flags)})
                return name

            include = [f"-I{CSRC}", f"-I{work}", *torch_include]
            host_flags = [*COMMON, *HOST, *strict, *STABLE_ABI, *include]
            sources = [CSRC / "library.cpp", *sorted((CSRC / "cpu").glob("*.cpp"))]
            objects = []
            for source in sources:
                if source.name in ISA_SOURCES:
                    for isa, features in sets.items():
                        isa_flags = [f"-DSDWA_ISA={isa}", *(f"-m{name}" for name in features)]
                        flags = [*host_flags, *isa_flags]
                        objects.append(compile_host(source, f"{source.stem}_{isa}.o", flags))
                else:
                    objects.append(compile_host(source, f"{source.stem}.o", host_flags))
            cpu_library = package / "_lib" / "libsdwa_cpu.so"
            n.build(
                str(cpu_library),
                "link",
                objects,
                variables={"flags": " ".join([*torch_link, "-ltorch_cpu"])},
            )
            outputs = [cpu_library]

            if nvcc:
                n.rule(
                    "nvcc",
                    f"{nvcc} -MD -MF $out.d $flags -c $in -o $out",
                    depfile="$out.d",
                    deps="gcc",
                    description="nvcc $out",
                )
                n.rule("nvlink", f"{nvcc} -shared $in -o $out $flags", description="nvlink $out")
                flags = [
                    *COMMON,
                    *STABLE_ABI,
                    "-DUSE_CUDA",
                    "-Xfatbin -compress-all",  # 2.5 times smaller
                    f"-ccbin {compiler}",
                    "-Xcompiler " + ",".join(["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]),
                    *(["-Werror all-warnings"] if strict else []),
                    *gencode(architectures),
                    *os.environ.get("SDWA_NVCC_FLAGS", "").split(),
                    f"-I{CSRC}",
                    f"-I{work}",
                    *torch_include,
                ]
                cuda_objects = []
                for source in sorted(
                    p for p in (CSRC / "cuda").iterdir() if p.suffix in (".cu", ".cpp")
                ):
                    name = f"cuda_{source.stem}.o"
                    n.build(name, "nvcc", str(source), variables={"flags": " ".join(flags)})
                    cuda_objects.append(name)
                cuda_library = package / "_lib" / "libsdwa_cuda.so"
                # The CUDA runtime is linked in, so the library needs the driver and PyTorch alone.
                link = [f"-ccbin {compiler}", "-cudart static", f"-L{TORCH / 'lib'}"]
                link += ["-Xlinker --no-as-needed", "-ltorch_cpu", "-ltorch_cuda"]
                n.build(
                    str(cuda_library), "nvlink", cuda_objects, variables={"flags": " ".join(link)}
                )
                outputs.append(cuda_library)

            binding = package / f"_build{sysconfig.get_config_var('EXT_SUFFIX')}"
            flags = [*COMMON, *HOST, *strict, f"-I{work}", f"-isystem {pybind11.get_include()}"]
            flags.append(f"-isystem {sysconfig.get_path('include')}")
            module = compile_host(CSRC / "build_info.cpp", "build_info.o", flags)
            n.build(str(binding), "link", module)
            return [*outputs, binding]

    @staticmethod
    def cuda_version(nvcc: str) -> str:
        printed = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
        release = re.search(r"release ([\d.]+)", printed.stdout)
        return release[1] if release else "unknown"


setup(
    ext_modules=[Extension("sdwa._build", sources=[])],
    cmdclass={"build_ext": BuildKernels},
)
