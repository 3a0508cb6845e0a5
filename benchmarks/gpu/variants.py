"""Builds the CUDA library of several states of the kernels, to be timed side by side on one GPU.

    python -m benchmarks.gpu.variants --arch 9.0 build/variants

Writes FOLDER/NAME/sdwa/_lib/libsdwa_cuda.so for each: with FOLDER/NAME on the import path, and none
in the checkout's own sdwa/_lib, that is what sdwa loads. Needs nvcc and the repository's history,
no GPU. Where a variant is a commit, its kernels are built with the operators of the checkout, so
that all libraries suit one installation.

What has been thought of and waits for a GPU to choose is in variants.patch, behind macros. Its
libraries also read these environment variables at every launch (`benchmarks.gpu.knobs` times them);
what does not fit a kernel leaves it as it is:

    SDWA_SLOTS     1, 2: slots of the matrix kernels; float32 forward: 2 has keys and values at once
    SDWA_WARPS     1, 2, 4: warps of a block
    SDWA_BLOCKS    at most so many blocks on a multiprocessor, to see whether latency decides
    SDWA_CARVEOUT  percent of L1 that is shared memory
    SDWA_MAP_SIDE  0 to 8: the largest map that the map kernels take
    SDWA_CHUNK     fewest tiles of a head that are numbered one after the other (32)
    SDWA_PLAIN     0: kernels with code for a bias also without one
    SDWA_L2_FETCH  32, 64, 128: bytes that L2 fetches at least, for the whole process
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


PATCH = Path(__file__).with_suffix(".patch")


class Variant(NamedTuple):
    """Kernels of a commit (of the checkout where empty), patched or not, compiled with flags."""

    what: str
    flags: str = ""
    commit: str = ""
    patched: bool = False


def _patched(what: str, flags: str = "") -> Variant:
    return Variant(what, flags, patched=True)


# The fewest blocks of 3 x 3 kernels on a multiprocessor, which limits their registers.
_FIVE_FORWARD = "-DSDWA_FORWARD_BLOCKS=5"
_BLOCKS = f"{_FIVE_FORWARD} -DSDWA_BACKWARD_BLOCKS=3 -DSDWA_BACKWARD_BLOCKS_32=5"
_PAST_L1 = '-DSDWA_CG=\\"\\"'
_STREAM = '-DSDWA_STREAM=\\".cs\\" -DSDWA_LOAD=\\".L1::no_allocate\\"'
VARIANTS = {
    "now": Variant("the checkout"),
    "no_map": Variant("tiles for small maps too", "-DSDWA_CUDA_NO_MAP_KERNEL"),
    "numbering": Variant(
        "fragments from global memory, tiles numbered without padding", commit="0847e4e"
    ),
    "former": Variant("fragments from global memory, tiles in padded regions", commit="a316019"),
    "knobs": _patched("the checkout with the environment variables"),
    "rows": _patched("backward 3 x 3 reads the tile's own rows from both slots", "-DSDWA_ROWS"),
    "cg": _patched("copies of 16 bytes past L1", _PAST_L1),
    "rows_cg": _patched("both", f"-DSDWA_ROWS {_PAST_L1}"),
    "regs": _patched("3 x 3: one more block, fewer registers", _BLOCKS),
    "rows_regs": _patched("both", f"-DSDWA_ROWS {_BLOCKS}"),
    "regs6": _patched("3 x 3 forward: two more blocks", "-DSDWA_FORWARD_BLOCKS=6"),
    "stream": _patched("results leave the caches first, tile rows pass L1 by", _STREAM),
    "rows_cg_stream": _patched(
        "nothing goes through L1", f"-DSDWA_ROWS {_PAST_L1} {_STREAM} {_FIVE_FORWARD}"
    ),
    "prefetch": _patched("backward: what is read late is fetched into L2", "-DSDWA_PREFETCH"),
}


def build(variant: Variant, arch: str, target: Path) -> None:
    """Compiles a variant for one architecture, as in 9.0, and copies its library to `target`."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in ("setup.py", "pyproject.toml", "README.md", "csrc", "sdwa"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, tree / name)
        if variant.commit:
            kernels = subprocess.run(
                ["git", "archive", variant.commit, "csrc/cuda"],
                cwd=ROOT, check=True, capture_output=True,
            ).stdout  # fmt: skip
            operators = (tree / "csrc/cuda/operators.cpp").read_bytes()
            shutil.rmtree(tree / "csrc/cuda")
            subprocess.run(["tar", "-x"], cwd=tree, input=kernels, check=True)
            (tree / "csrc/cuda/operators.cpp").write_bytes(operators)
        if variant.patched:
            subprocess.run(["git", "apply", PATCH], cwd=tree, check=True)
        environment = {
            **os.environ,
            "SDWA_BUILD_CUDA": "1",
            "TORCH_CUDA_ARCH_LIST": arch,
            "SDWA_NVCC_FLAGS": variant.flags,
        }
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=tree, env=environment, check=True,
        )  # fmt: skip
        shutil.copy(tree / "sdwa/_lib/libsdwa_cuda.so", target)


def main(arguments: list[str] | None = None) -> int:
    listed = "\n".join(f"  {name:<10} {variant.what}" for name, variant in VARIANTS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nvariants:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where the libraries go")
    parser.add_argument("--arch", required=True, help="architecture, as in 9.0")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        target = options.folder / name / "sdwa/_lib/libsdwa_cuda.so"
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            build(VARIANTS[name], options.arch, target)
        except subprocess.CalledProcessError as error:
            print(f"error: {name} was not built: {error}", file=sys.stderr)
            return 2
        print(f"{target}: {VARIANTS[name].what}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
