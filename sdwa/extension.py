"""Finds and loads the compiled libraries.

The repository's root holds the source folder `sdwa/`, which shadows the installed package for
commands run from there. The libraries lie in the installed one. So they are looked for beside this
file first, then in every `sdwa/` on the import path, and all are taken from the first that has
them. They may have been built from other sources than those in the checkout: that is said, see
`stale`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import dataclass, fields
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

from sdwa._sources import FACTS, library_path, source_digest

_AGAIN = "run `pip install .` again where the sources are"


@dataclass(frozen=True)
class BuildInfo:
    """What was compiled, with what."""

    torch_version: str
    compiler: str
    instruction_sets: str  # names, the best last
    cuda: str  # version of the toolkit, or why there are no CUDA kernels
    cuda_architectures: str  # "8.6;9.0+PTX", or nothing
    source_digest: str


@cache
def load_library(name: str, operator: str) -> str | None:
    """Loads a compiled library into PyTorch.

    Args:
        name: "sdwa_cpu" or "sdwa_cuda".
        operator: one that this version of the library defines.

    Returns:
        None where the library is loaded, else why it is not.
    """
    relative = library_path(name)
    path = find(relative)
    if path is None:
        file = Path(relative).name
        return f"{file} is not compiled: run `pip install .` where the sources are"
    try:
        torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
    except OSError as error:
        return f"{path.name} cannot be loaded: {error.__cause__ or error}"
    if not hasattr(torch.ops.sdwa, operator):
        return f"{path} is not of this version, it has no {operator}: {_AGAIN}"
    return None


@cache
def build_info() -> BuildInfo | str | None:
    """What was built, or why nobody can say; None where nothing is compiled.

    The module that was compiled for one Python says it, or, in another one, the file beside the
    libraries, which serve every Python.
    """
    try:
        return _read_build_info()
    except (ImportError, OSError, AttributeError, TypeError, ValueError) as error:
        return f"the record of what was compiled cannot be read ({error}): {_AGAIN}"


def _read_build_info() -> BuildInfo | None:
    path = find(f"_build{EXTENSION_SUFFIXES[0]}")
    if path is not None:
        spec = importlib.util.spec_from_file_location("sdwa._build", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return BuildInfo(**{field.name: getattr(module, field.name) for field in fields(BuildInfo)})
    path = find(FACTS)
    return None if path is None else BuildInfo(**json.loads(path.read_text()))


@cache
def stale() -> str | None:
    """Why the compiled libraries are not those of the sources beside the package.

    Returns:
        None where they are, where nothing is compiled, or where there are no sources. Where there
        is no saying what was compiled, it is said here too.
    """
    csrc = source_folder()
    build = build_info()
    if isinstance(build, str):
        return build
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
    folder = _compiled_folder()
    return None if folder is None or not (folder / relative).exists() else folder / relative


@cache
def _compiled_folder() -> Path | None:
    """The package whose compiled files are used: all of one build, which always has this one."""
    folders = [Path(__file__).parent, *(Path(entry) / "sdwa" for entry in sys.path)]
    library = library_path("sdwa_cpu")
    # Unlike Path.exists, it says no where one may not look, and for a name that is too long.
    return next((folder for folder in folders if os.path.exists(folder / library)), None)
