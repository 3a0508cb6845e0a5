"""How a tool's process allocates memory: what is freed is kept for the next allocation."""

from __future__ import annotations

import ctypes
import os
import sys

# Parameters of glibc's mallopt, see malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# Larger blocks go back to the system when they are freed; before 2.35 glibc takes 32 MiB at most
_LARGEST_KEPT = (1 << 30, 32 << 20)
_NEVER = -1


def keep_pages() -> bool:
    """Makes glibc keep the pages of freed memory, and returns whether it does.

    A training step frees what it has allocated, and the next one allocates the same again. By
    default glibc gives blocks of 32 MiB and more, and what is free at the end of its heap, back to
    the system, and every page that comes anew is cleared and mapped at its first use.

    It holds for this process and those that are forked from it. Other allocators and other
    systems, and what the user has chosen by a variable of the environment, stay as they are.
    """
    if sys.platform != "linux" or _is_chosen():
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):  # musl, for one
        return False
    trims_never = libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    return bool(trims_never) and any(
        libc.mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST_KEPT
    )


def _is_chosen() -> bool:
    """Whether the user has said how memory is allocated, or by which library."""
    return any(name.startswith("MALLOC_") for name in os.environ) or any(
        "malloc" in os.environ.get(name, "") for name in ("GLIBC_TUNABLES", "LD_PRELOAD")
    )
