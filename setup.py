"""Compiles the kernels with ninja; everything else about the packages stands in pyproject.toml.

Four files are built:

- `sdwa/_lib/libsdwa_cpu.so`: the operators' schemas and the CPU kernels, always. The kernels are
  compiled once for each instruction set and the best one is picked at run time.
- `sdwa/_lib/libsdwa_cuda.so`: the CUDA kernels, where nvcc is found.
- `sdwa/_lib/build.json`: what was built, for `python -m sdwa.info`.
- `sdwa/_build.*.so`: the same as a module for the Python at hand, where pybind11 is installed.

The two libraries use PyTorch's stable ABI only, and nothing of Python's, so the PyTorch that builds
them and the one that runs them need not agree (2.10 or later), and a wheel serves every Python.

Environment: SDWA_BUILD_CUDA=auto|1|0 (1 makes a missing toolkit an error), TORCH_CUDA_ARCH_LIST
(see `choose_architectures`), SDWA_NVCC_FLAGS (more of them), SDWA_WERROR=1, CUDA_HOME, CXX,
MAX_JOBS. docs/install.md has more.
"""

import importlib.util
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import ninja
import setuptools
import torch
from ninja.ninja_syntax import Writer
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    sys.exit(
        f"sdwa build: setuptools {setuptools.__version__} is too old; without build isolation, "
        "pip install 'setuptools>=77' first"
    )

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
TORCH = Path(torch.__file__).parent
SOURCES = runpy.run_path(str(ROOT / "sdwa" / "_sources.py"))
CCACHE = shutil.which("ccache")
WINDOWS, MACOS = sys.platform == "win32", sys.platform == "darwin"

# PyTorch 2.10, the oldest whose stable ABI has all that is used here.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
OPTIMIZED = ["-O3", "-DNDEBUG"]
CXX20 = "-std=c++20"
# The last is GCC's default.
FLOATS = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
HOST = ["-Wall", "-Wextra", *FLOATS, "-fPIC", "-fvisibility=hidden"]
if WINDOWS:  # clang-cl: the vectors of the CPU kernels are those of GCC and Clang
    OPTIMIZED, CXX20 = ["/clang:-O3", "/DNDEBUG"], "/std:c++20"
    HOST = ["/W4", *(f"/clang:{flag}" for flag in FLOATS), "/EHsc", "/MD"]
# The CPU kernels are compiled once for each instruction set (see csrc/README.md).
# The longest to compile come first.
ISA_SOURCES = ("products.cpp", "backward.cpp", "forward.cpp")
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
INSTRUCTION_SETS["AMD64"] = INSTRUCTION_SETS["x86_64"]  # Windows's word
# Sets whose vectors and products are another's: see csrc/cpu/namespaces.h.
VECTORS = {"avx512bf16": "avx512"}
# PyTorch's own wheels need this much.
OLDEST_GLIBC = (2, 28)
# The newest symbols of libstdc++ that a distribution with some glibc has (PEP 600).
GLIBC_OF_LIBSTDCXX = [
    ((3, 4, 24), (2, 28)),
    ((3, 4, 28), (2, 31)),
    ((3, 4, 29), (2, 34)),
    ((3, 4, 30), (2, 35)),
    ((3, 4, 33), (2, 39)),
]
# A100, RTX 30xx (and RTX 40xx, which run the same code), Hopper, Blackwell. The last also carries
# PTX, for newer ones.
DEFAULT_ARCHITECTURES = "8.0;8.6;9.0;10.0;12.0+PTX"
OLDEST_ARCHITECTURE = 80  # the kernels copy to shared memory without registers
# PyTorch's names, old ones too.
NAMED_ARCHITECTURES = {
    "all": DEFAULT_ARCHITECTURES,
    "kepler": "3.5",
    "kepler+tesla": "3.7",
    "maxwell": "5.0;5.2",
    "maxwell+tegra": "5.3",
    "pascal": "6.0;6.1",
    "volta": "7.0",
    "volta+tegra": "7.2",
    "turing": "7.5",
    "ampere": "8.0;8.6",
    "ampere+tegra": "8.7",
    "ada": "8.9",
    "hopper": "9.0",
    "blackwell": "10.0;10.3;12.0;12.1",
    "blackwell+tegra": "11.0",
    "rubin": "10.7",
}


def say(message: str) -> None:
    print(f"sdwa build: {message}", file=sys.stderr, flush=True)


def find_nvcc() -> tuple[str | None, str]:
    """Path of nvcc or None, and why."""
    choice = os.environ.get("SDWA_BUILD_CUDA", "auto")
    if choice not in ("auto", "1", "0"):
        sys.exit(f"SDWA_BUILD_CUDA must be auto, 1 or 0, got {choice!r}")
    if choice == "0":
        return None, "SDWA_BUILD_CUDA=0"
    if WINDOWS and choice == "auto":
        return None, "not tried on Windows"
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


def choose_cuda() -> tuple[str | None, list[str], str]:
    """Path of nvcc and what it compiles for, or None and nothing; and why."""
    nvcc, why = find_nvcc()
    if nvcc is None:
        return None, [], why
    architectures, which = choose_architectures(nvcc)
    if architectures:
        return nvcc, architectures, f"{which}; {why}"
    if os.environ.get("SDWA_BUILD_CUDA") == "1":
        sys.exit(f"SDWA_BUILD_CUDA=1, but the kernels {which}: set TORCH_CUDA_ARCH_LIST")
    return None, [], f"they {which}"


def choose_architectures(nvcc: str) -> tuple[list[str], str]:
    """Compute capabilities to compile for, as "8.6" or "9.0+PTX", and why these.

    By default those of the GPUs that PyTorch sees, and PTX, for newer ones; without a GPU, as where
    a container is built, all. TORCH_CUDA_ARCH_LIST overrides: numbers, PyTorch's names of
    architectures, "native" (the GPUs seen) and "all". What the kernels do not run on is left out.
    """
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    known = sorted({int(number) for number in re.findall(r"compute_(\d+)", listed.stdout)})
    known = [number for number in known if number >= OLDEST_ARCHITECTURE]
    gpus = sorted({10 * major + minor for major, minor in visible_gpus()})
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if asked and asked != "native":
        chosen = asked_architectures(asked, known, nvcc)
        why = f"TORCH_CUDA_ARCH_LIST={asked}"
        if chosen:
            return chosen, why
        return [], f"run on none of {why} that {nvcc} compiles for"
    if asked and not gpus:
        sys.exit("TORCH_CUDA_ARCH_LIST is native, but PyTorch sees no GPU: list architectures")
    if gpus:
        # A GPU that is too new for nvcc runs the PTX of the newest architecture that it knows.
        chosen = {max((n for n in known if n <= gpu), default=0) for gpu in gpus} - {0}
        why = f"of the GPUs that PyTorch sees ({', '.join(map(dotted, gpus))})"
        if chosen:
            return [*map(dotted, sorted(chosen)[:-1]), f"{dotted(max(chosen))}+PTX"], why
        return [], f"need compute capability {dotted(OLDEST_ARCHITECTURE)}, PyTorch sees GPUs {why}"
    kept = [e for e in DEFAULT_ARCHITECTURES.split(";") if undotted(e) in known]
    if not kept:
        sys.exit(f"{nvcc} knows none of {DEFAULT_ARCHITECTURES}: set TORCH_CUDA_ARCH_LIST")
    return kept, "all, since PyTorch sees no GPU"


def asked_architectures(asked: str, known: list[int], nvcc: str) -> list[str]:
    """TORCH_CUDA_ARCH_LIST, without what the kernels do not run on; nothing may be left."""
    kept = []
    for word in re.split(r"[;,\s]+", asked):
        entries = NAMED_ARCHITECTURES.get(word.removesuffix("+PTX").lower(), word)
        if entries != word and word.endswith("+PTX"):
            entries += "+PTX"
        for entry in entries.split(";"):
            match = re.fullmatch(r"(\d+\.\d)[af]?(\+PTX)?", entry)
            if match is None:
                sys.exit(
                    "TORCH_CUDA_ARCH_LIST must hold entries such as 8.6 or 9.0+PTX, native, all or "
                    f"PyTorch's names, such as Ampere or Hopper; got {word!r}"
                )
            number = undotted(match[1])
            if number < OLDEST_ARCHITECTURE:
                say(f"TORCH_CUDA_ARCH_LIST: {entry} is left out, the kernels do not run on it")
            elif number in known:
                kept.append(match[1] + (match[2] or ""))
            elif entries == word:
                sys.exit(f"TORCH_CUDA_ARCH_LIST names {entry}, which {nvcc} cannot compile for")
    return list(dict.fromkeys(kept))


def visible_gpus() -> list[tuple[int, int]]:
    """Compute capabilities of the GPUs that the building PyTorch sees."""
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]


def dotted(number: int) -> str:
    return f"{number // 10}.{number % 10}"


def undotted(entry: str) -> int:
    return int(entry.removesuffix("+PTX").replace(".", ""))


def gencode(architectures: list[str]) -> list[str]:
    """One intermediate code, for the oldest architecture, and machine code of it for each.

    The intermediate code is most of the compiler's work.
    """
    numbers = [undotted(entry) for entry in architectures]
    oldest = min(numbers)
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


def host_compiler() -> str:
    """The compiler of C++, as a command."""
    # "ccache g++" and the like: ccache is added to the rules.
    words = shlex.split(os.environ.get("CXX") or ("clang-cl" if WINDOWS else "c++"))
    return shlex.join(w for w in words if Path(w).stem not in ("ccache", "sccache"))


def compiler_version(compiler: str) -> str:
    """What the compiler of C++ says of itself."""
    try:
        return first_line([*shlex.split(compiler), "--version"])
    except (OSError, IndexError, subprocess.CalledProcessError) as error:
        sys.exit(
            f"sdwa build: {compiler!r} is no C++ compiler ({error}): install one, such as g++, or "
            "name it in CXX"
        )


def cuda_version(nvcc: str) -> str:
    printed = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    release = re.search(r"release ([\d.]+)", printed.stdout)
    return release[1] if release else "unknown"


def first_line(command: list[str]) -> str:
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return printed.splitlines()[0]


def manylinux_tag(libraries: list[Path]) -> str | None:
    """The platform of a wheel whose libraries need these symbols of glibc and libstdc++.

    None where there are none, or readelf is missing. PyTorch itself is on the list of needed
    libraries, and installed apart: `auditwheel show` is told so by its --exclude.
    """
    readelf = shutil.which("readelf")
    if readelf is None or not libraries:
        return None
    needed = OLDEST_GLIBC
    for library in libraries:
        command = [readelf, "--version-info", "--wide", str(library)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for name, version in re.findall(r"\b(GLIBC|GLIBCXX)_(\d+(?:\.\d+)*)", printed):
            numbers = tuple(int(number) for number in version.split("."))
            if name == "GLIBCXX":
                fitting = [glibc for newest, glibc in GLIBC_OF_LIBSTDCXX if numbers <= newest]
                if not fitting:
                    return None
                numbers = fitting[0]
            needed = max(needed, numbers[:2])
    return f"manylinux_{needed[0]}_{needed[1]}_{platform.machine()}"


def quoted(path: Path | str) -> str:
    """A path as a command of build.ninja has it: folders may have spaces in their names."""
    quote = subprocess.list2cmdline([str(path)]) if WINDOWS else shlex.quote(str(path))
    return quote.replace("$", "$$")


def in_ninja(path: Path | str) -> str:
    """A path as a file of build.ninja."""
    return str(path).replace("$", "$$")


class UniversalWheel(bdist_wheel):
    """Tagged for every Python 3; which of them may install it is said by `requires-python`."""

    def run(self) -> None:
        if not self.skip_build:  # else a module that an earlier build left there goes in, too
            shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        tag = super().get_tag()[2]
        if tag.startswith("linux_") and not self.plat_name_supplied:
            compiled = Path(self.get_finalized_command("build").build_lib) / "sdwa" / "_lib"
            tag = manylinux_tag(sorted(compiled.glob("*.so"))) or tag
        return "py3", "none", tag


class NinjaFile(Writer):
    """The file that ninja builds from: a method for each thing that is built.

    Args:
        folder: where it lies, with what is compiled.
        compiler: of C++, as a command.
    """

    def __init__(self, folder: Path, compiler: str) -> None:
        super().__init__((folder / "build.ninja").open("w"), width=100)
        self.compiler = compiler
        self.launcher = f"{quoted(CCACHE)} " if CCACHE else ""
        self.strict = os.environ.get("SDWA_WERROR", "0") not in ("", "0")
        self.built_in = f"-I{quoted(folder)}"
        self.torch = quoted(TORCH / "lib")
        torch_headers = f"-isystem {quoted(TORCH / 'include')}"
        self.include = [f"-I{quoted(CSRC)}", self.built_in, torch_headers]
        self.host = [*HOST, *(["-Werror"] if self.strict else [])]
        # clang-cl takes these of GCC's options where they are marked.
        dependencies = "/clang:-MMD /clang:-MF$out.d" if WINDOWS else "-MMD -MF $out.d"
        self.compile_rule("cxx", f"{compiler} {dependencies}", "c++ $out")
        link = f"{compiler} -shared $in -o $out $flags"
        if WINDOWS:
            link = f"{compiler} /LD $in -o $out /link $flags"
        elif MACOS:
            link = f"{compiler} -dynamiclib $in -o $out $flags"
        self.rule("link", link, description="link $out")

    def compile_rule(self, name: str, command: str, description: str) -> None:
        self.rule(
            name,
            f"{self.launcher}{command} $flags -c $in -o $out",
            depfile="$out.d",
            deps="gcc",
            description=description,
        )

    def make(
        self,
        rule: str,
        output: Path | str,
        inputs: Path | str | list[str],
        flags: list[str],
        after: list[Path] | None = None,
    ) -> str:
        """`output`, built from `inputs` once `after` are there. Returns its name to ninja."""
        sources = inputs if isinstance(inputs, list) else [in_ninja(inputs)]
        waits = [in_ninja(path) for path in after or ()]
        variables = {"flags": " ".join(flags)}
        self.build(in_ninja(output), rule, sources, order_only=waits, variables=variables)
        return in_ninja(output)

    def cpu_library(self, library: Path, sets: dict[str, tuple[str, ...]]) -> Path:
        """The CPU kernels, for each of the instruction sets, and the operators' schemas."""
        host_flags = [*OPTIMIZED, CXX20, *self.host, *STABLE_ABI, *self.include]
        objects = []
        for name in ISA_SOURCES:
            source = CSRC / "cpu" / name
            for isa, features in sets.items():
                flags = [*host_flags, f"-DSDWA_ISA={isa}", *(f"-m{each}" for each in features)]
                if isa in VECTORS:
                    if name == "products.cpp":
                        continue
                    flags.append(f"-DSDWA_VECTORS={VECTORS[isa]}")
                objects.append(self.make("cxx", f"{source.stem}_{isa}.o", source, flags))
        for source in [CSRC / "library.cpp", *sorted((CSRC / "cpu").glob("*.cpp"))]:
            if source.name not in ISA_SOURCES:
                objects.append(self.make("cxx", f"{source.stem}.o", source, host_flags))
        if WINDOWS:
            # The last has __builtin_cpu_supports.
            printed = [*shlex.split(self.compiler), "/clang:-print-libgcc-file-name"]
            flags = [f"/LIBPATH:{self.torch}", "torch_cpu.lib", f'"{first_line(printed)}"']
        else:
            keep = [] if MACOS else ["-Wl,--no-as-needed"]
            flags = [f"-L{self.torch}", *keep, "-ltorch_cpu"]
        self.make("link", library, objects, flags)
        return library

    def cuda_library(self, library: Path, nvcc: str, architectures: list[str]) -> Path:
        """The CUDA kernels."""
        self.compile_rule("nvcc", f"{quoted(nvcc)} -MD -MF $out.d", "nvcc $out")
        self.rule("nvlink", f"{quoted(nvcc)} -shared $in -o $out $flags", description="nvlink $out")
        flags = [
            *OPTIMIZED,
            CXX20,
            *STABLE_ABI,
            "-DUSE_CUDA",
            "-Xfatbin -compress-all",  # 2.5 times smaller
            f"-ccbin {self.compiler}",
            "-Xcompiler " + ",".join(["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]),
            *(["-Werror all-warnings"] if self.strict else []),
            *gencode(architectures),
            *os.environ.get("SDWA_NVCC_FLAGS", "").split(),
            *self.include,
        ]
        sources = sorted(p for p in (CSRC / "cuda").iterdir() if p.suffix in (".cu", ".cpp"))
        objects = [self.make("nvcc", f"cuda_{p.stem}.o", p, flags) for p in sources]
        # The CUDA runtime is linked in, so the library needs the driver and PyTorch alone.
        flags = [f"-ccbin {self.compiler}", "-cudart static", f"-L{self.torch}"]
        flags += ["-Xlinker --no-as-needed", "-ltorch_cpu", "-ltorch_cuda"]
        self.make("nvlink", library, objects, flags)
        return library

    def facts_module(self, module: Path, after: list[Path]) -> Path:
        """The facts as a module for the Python at hand; it needs pybind11.

        It is linked after the libraries that they are of.
        """
        import pybind11

        flags = ["-O1", CXX20, *self.host, self.built_in]
        flags.append(f"-isystem {quoted(pybind11.get_include())}")
        flags.append(f"-isystem {quoted(sysconfig.get_path('include'))}")
        binding = self.make("cxx", "build_info.o", CSRC / "build_info.cpp", flags)
        flags = ["-undefined dynamic_lookup"] if MACOS else []
        self.make("link", module, binding, flags, after)
        return module


class BuildKernels(build_ext):
    """Writes build.ninja and runs it; `ext_modules` only tells setuptools that code is compiled."""

    def get_outputs(self) -> list[str]:
        return [str(path) for path in self.built]

    def run(self) -> None:
        package = ROOT / "sdwa" if self.inplace else Path(self.build_lib).resolve() / "sdwa"
        work = Path(self.build_temp).resolve()
        work.mkdir(parents=True, exist_ok=True)
        (package / "_lib").mkdir(parents=True, exist_ok=True)
        self.plan(work, package)
        # Another build's, which may have had CUDA kernels, or have been another Python's.
        for left in {*(package / "_lib").iterdir(), *package.glob("_build.*")} - {*self.built}:
            left.unlink()
        jobs = os.environ.get("MAX_JOBS")
        command = [str(Path(ninja.BIN_DIR) / "ninja"), "-k", "0", *(["-j", jobs] if jobs else [])]
        # Paths below the sources count as relative ones, so that any checkout has ccache's results.
        environment = {"CCACHE_BASEDIR": str(ROOT), "CCACHE_NOHASHDIR": "1", **os.environ}
        if subprocess.run(command, cwd=work, env=environment).returncode:
            sys.exit(
                "sdwa build: compiling the kernels failed (see above); "
                "SDWA_BUILD_CUDA=0 builds without the CUDA kernels"
            )
        # Not before: what an earlier build left keeps its own facts.
        self.facts_file.write_text(json.dumps(self.facts, indent=1) + "\n")

    def plan(self, work: Path, package: Path) -> None:
        """Says what is built and why, and writes what ninja and the sources need to know of it."""
        compiler = host_compiler()
        version = compiler_version(compiler)
        nvcc, architectures, why = choose_cuda()
        sets = INSTRUCTION_SETS.get(platform.machine(), {"baseline": ()})
        say(f"CPU kernels for {', '.join(sets)} with {version}")
        say(
            f"CUDA kernels for {', '.join(architectures)}: {why}"
            if nvcc
            else f"no CUDA kernels: {why}"
        )
        say(f"compiled through {CCACHE}" if CCACHE else "ccache, which keeps results, is not found")

        self.facts = facts = {
            "torch_version": torch.__version__,
            "compiler": version,
            "instruction_sets": " ".join(sets),
            "cuda": cuda_version(nvcc) if nvcc else why,
            "cuda_architectures": ";".join(architectures),
            "source_digest": SOURCES["source_digest"](CSRC),
        }
        defines = [f"#define SDWA_{k.upper()} {json.dumps(v)}\n" for k, v in facts.items()]
        write_if_other(work / "build_facts.h", "".join(defines))
        write_if_other(work / "instruction_sets.h", instruction_sets_header(sets))
        self.facts_file = package / SOURCES["FACTS"]

        path_of = SOURCES["library_path"]
        n = NinjaFile(work, compiler)
        libraries = [n.cpu_library(package / path_of("sdwa_cpu"), sets)]
        if nvcc:
            library = package / path_of("sdwa_cuda")
            libraries.append(n.cuda_library(library, nvcc, architectures))
        self.built = [*libraries, self.facts_file]
        if importlib.util.find_spec("pybind11") and not WINDOWS:
            suffix = sysconfig.get_config_var("EXT_SUFFIX")
            module = package / f"_build{suffix}"
            self.built.append(n.facts_module(module, after=libraries))
        n.close()


# `depends` puts the kernels' sources into the sdist.
SOURCE_FILES = [p.relative_to(ROOT).as_posix() for p in SOURCES["source_files"](CSRC)]
setup(
    ext_modules=[Extension("sdwa._build", sources=[], depends=SOURCE_FILES)],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": UniversalWheel},
)
