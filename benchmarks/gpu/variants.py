"""Builds the CUDA library of several states of the kernels, to be timed side by side on one GPU.

    python -m benchmarks.gpu.variants --arch 9.0 build/variants

Writes FOLDER/NAME.so for each; copied to sdwa/_lib/libsdwa_cuda.so, a library is what sdwa loads.
Needs nvcc and the repository's history, no GPU. Where a variant is a commit, its kernels are built
with the operators of the checkout, so that all libraries suit one installation.
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


class Variant(NamedTuple):
    """Kernels of a commit (of the checkout where empty), compiled with more flags."""

    commit: str
    flags: str
    what: str


VARIANTS = {
    "now": Variant("", "", "the checkout"),
    "no_map": Variant("", "-DSDWA_CUDA_NO_MAP_KERNEL", "tiles for small maps too"),
    "numbering": Variant(
        "0847e4e", "", "fragments from global memory, tiles numbered without padding"
    ),
    "former": Variant("a316019", "", "fragments from global memory, tiles in padded regions"),
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
        target = options.folder / f"{name}.so"
        try:
            build(VARIANTS[name], options.arch, target)
        except subprocess.CalledProcessError as error:
            print(f"error: {name} was not built: {error}", file=sys.stderr)
            return 2
        print(f"{target}: {VARIANTS[name].what}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
