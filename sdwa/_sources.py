"""The digest of the kernels' sources: setup.py writes it into the build, `sdwa.extension` compares.

setup.py runs this file by itself, so it imports nothing of the package.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

SUFFIXES = (".cpp", ".h", ".cu", ".cuh")


def source_digest(csrc: Path) -> str:
    """Tells the sources below the folder `csrc` from any others."""
    digest = hashlib.sha256()
    for path in sorted(csrc.rglob("*")):
        if path.suffix in SUFFIXES:
            digest.update(path.relative_to(csrc).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
