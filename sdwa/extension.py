"""Finds and loads the compiled libraries.

The repository's root holds the source folder `sdwa/`, which shadows the installed package for
commands run from there. The libraries lie in the installed one. So they are looked for beside this
file first, then in every `sdwa/` on the import path. What is found there may have been built from
other sources than those in the checkout: that is said, see `stale`.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import torch

from sdwa._sources import source_digest


@cache
def load_library(name: str) -> str | None:
    """Loads `_lib/lib{name}.so` into PyTorch.

    Args:
        name: "sdwa_cpu" or "sdwa_cuda".

    Returns:
        None where the library is loaded, else why it is not.
    """
    path = find(f"_lib/lib{name}.so")
    if path is None:
        return f"lib{name}.so is not compiled: run `pip install .` where the sources are"
    try:
        torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
    except OSError as error:
        return f"{path.name} cannot be loaded: {error}"
    return None


@cache
def build_info() -> ModuleType | None:
    """The compiled module that tells what was built, or None where nothing is compiled."""
    path = find(f"_build{EXTENSION_SUFFIXES[0]}")
    if path is None:
        return None
    spec = importlib.util.spec_from_file_location("sdwa._build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def stale() -> str | None:
    """Why the compiled libraries are not those of the sources beside the package.

    Returns:
        None where they are, where nothing is compiled, or where there are no sources.
    """
    csrc = source_folder()
    build = build_info()
    if build is None or csrc is None:
        return None
    if build.source_digest == source_digest(csrc):
        return None
    return (
        f"the kernels in {find('_lib')} were built from other sources than those in {csrc}: "
        "run `pip install .` or `python setup.py build_ext --inplace` there"
    )


def source_folder() -> Path | None:
    """The kernels' sources beside the package, or None: an installed package has none."""
    csrc = Path(__file__).parents[1] / "csrc"
    return csrc if (csrc / "library.cpp").exists() else None


def find(relative: str) -> Path | None:
    """Path of a compiled file of the package, or None."""
    folders = [Path(__file__).parent, *(Path(entry) / "sdwa" for entry in sys.path)]
    return next((folder / relative for folder in folders if (folder / relative).exists()), None)
