"""What a CPU takes at least: the bytes at the rate of a copy, or the multiply-adds at their own.

The rate of the multiply-adds is that of a loop of independent ones (multiply_adds.c), compiled here
for the instruction set that the kernels use, on as many threads.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import UserError, dtype_name
from benchmarks.shapes import Shape

SOURCE = Path(__file__).with_name("multiply_adds.c")
FLAGS = ("-O2", "-ffp-contract=fast", "-Wno-psabi", "-shared", "-fPIC")
KEPT = 12  # independent sums in a round of a loop
VECTOR_BYTES = {"baseline": 16, "avx2": 32, "avx512": 64, "avx512bf16": 64}
# float16 is multiplied as float32, and so is bfloat16, or by an instruction of its own for twice as
# many. One such took 1.1 times as long as one of float32 on an AMD EPYC, four times on an Intel
# Xeon.
PAIRS = ("avx512bf16", torch.bfloat16)


@dataclass
class Floor:
    """The rates of this machine, measured once.

    Attributes:
        capability: instruction set of the kernels.
        bytes_per_second: read plus written, of a copy far larger than the caches.
        multiply_adds_per_second: by name, of each dtype asked for so far.
    """

    capability: str
    bytes_per_second: float
    multiply_adds_per_second: dict[str, float] = field(default_factory=dict)

    def milliseconds(self, shape: Shape, what: str, dtype: torch.dtype) -> dict[str, float]:
        """The least time for a pass's "bytes" and for its "arithmetic"."""
        rates = self.multiply_adds_per_second
        name = dtype_name(dtype)
        if name not in rates:
            rates[name] = multiply_adds_rate(self.capability, dtype)
        return {
            "bytes": shape.fewest_bytes(what, dtype) / self.bytes_per_second * 1e3,
            "arithmetic": shape.operations(what) / 2 / rates[name] * 1e3,
        }

    def __str__(self) -> str:
        rates = self.multiply_adds_per_second.items()
        return ", ".join(
            [
                self.capability,
                f"copy {self.bytes_per_second / 1e9:.1f} GB/s",
                *(f"{name} {rate / 1e9:.0f} G multiply-adds/s" for name, rate in rates),
            ]
        )


def multiply_adds_rate(capability: str, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Multiply-adds a second, of all threads together, by the instruction that gives most."""
    number = torch.float64 if dtype == torch.float64 else torch.float32
    vectors = "avx512" if capability == "avx512bf16" else capability
    lanes = {f"{vectors}_{dtype_name(number)}": VECTOR_BYTES[capability] // number.itemsize}
    if (capability, dtype) == PAIRS:
        lanes[f"{capability}_{dtype_name(dtype)}"] = VECTOR_BYTES[capability] // dtype.itemsize
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(Path(folder))
        return max(lanes[name] * _rate(getattr(library, name), seconds) for name in lanes)


def _rate(loop: Any, seconds: float) -> float:
    """Instructions a second of a loop, on all threads together."""
    loop.argtypes, loop.restype = [ctypes.c_long], ctypes.c_double
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:

        def run(rounds: int) -> float:
            start = time.perf_counter()
            list(pool.map(loop, [rounds] * threads))
            return time.perf_counter() - start

        rounds = 10**5
        while (took := run(rounds)) < seconds / 10:
            rounds *= 2
        took = min(took, *(run(rounds) for _ in range(8)))
    return threads * rounds * KEPT / took


def compiled(folder: Path) -> ctypes.CDLL:
    """The loops, compiled by the C compiler of the machine (CC)."""
    compiler = os.environ.get("CC", "cc")
    library = folder / "multiply_adds.so"
    command = [*shlex.split(compiler), *FLAGS, str(SOURCE), "-o", str(library)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError(
            f"the floor needs a C compiler, and {compiler} is not there: set CC"
        ) from error
    if done.returncode:
        raise UserError(f"{compiler} could not compile {SOURCE}:\n{done.stderr}")
    return ctypes.CDLL(str(library))
