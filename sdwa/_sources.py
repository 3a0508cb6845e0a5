"""What the build and the package agree on: names of files, and the digest of the kernels' sources.

setup.py runs this file by itself, so it imports nothing of the package.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

SUFFIXES = (".cpp", ".h", ".cu", ".cuh")
FACTS = "_lib/build.json"  # what was built, below the package


def library_path(name: str) -> str:
    """Where the library "sdwa_cpu" or "sdwa_cuda" lies below the package."""
    return f"_lib/{name}.dll" if sys.platform == "win32" else f"_lib/lib{name}.so"


def source_files(csrc: Path) -> list[Path]:
    """The kernels' sources below the folder `csrc`."""
    return sorted(path for path in csrc.rglob("*") if path.suffix in SUFFIXES)


def source_digest(csrc: Path) -> str:
    """Tells the sources below the folder `csrc` from any others."""
    digest = hashlib.sha256()
    for path in source_files(csrc):
        digest.update(path.relative_to(csrc).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
