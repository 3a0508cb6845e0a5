"""The backends, best first. A new one is its own file or folder and one entry here."""

from __future__ import annotations

from sdwa.backends.base import Backend
from sdwa.backends.native import CpuBackend, CudaBackend
from sdwa.backends.reference import ReferenceBackend
from sdwa.backends.triton import TritonBackend

BACKENDS: tuple[Backend, ...] = (CudaBackend(), TritonBackend(), CpuBackend(), ReferenceBackend())

__all__ = ["BACKENDS", "Backend"]
