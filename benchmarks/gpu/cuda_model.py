"""What counts of machine code say of a GPU: blocks that fit, and the fraction of copy bandwidth.

csrc/cuda/README.md states the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

WARP = 32


@dataclass(frozen=True)
class Multiprocessor:
    """What one holds at most."""

    warps: int
    blocks: int
    shared: int  # bytes
    registers: int = 65536


# By compute capability, as the CUDA programming guide lists them.
MULTIPROCESSORS = {
    80: Multiprocessor(warps=64, blocks=32, shared=164 * 1024),
    86: Multiprocessor(warps=48, blocks=16, shared=100 * 1024),
    89: Multiprocessor(warps=48, blocks=24, shared=100 * 1024),
    90: Multiprocessor(warps=64, blocks=32, shared=228 * 1024),
    100: Multiprocessor(warps=64, blocks=32, shared=228 * 1024),
    120: Multiprocessor(warps=48, blocks=24, shared=100 * 1024),
}
_REGISTER_UNIT = 256  # registers are given to a warp by so many
_WARP_UNIT = 4  # and to as many warps at a time as a multiprocessor has schedulers
_SHARED_UNIT = 128
SYSTEM_SHARED = 1024  # of each block


def round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def resident_blocks(limits: Multiprocessor, registers: int, threads: int, shared: int) -> int:
    """Blocks that a multiprocessor holds at once.

    Args:
        limits: of the multiprocessor.
        registers: per thread.
        threads: of a block.
        shared: bytes per block, static and dynamic.
    """
    warps = -(-threads // WARP)
    per_warp = round_up(registers * WARP, _REGISTER_UNIT)
    warps_by_registers = limits.registers // per_warp // _WARP_UNIT * _WARP_UNIT
    return min(
        limits.blocks,
        limits.warps // warps,
        warps_by_registers // warps,
        limits.shared // (round_up(shared, _SHARED_UNIT) + SYSTEM_SHARED),
    )


@dataclass(frozen=True)
class Gpu:
    name: str
    arch: int
    multiprocessors: int
    clock: float  # Hz
    copy_bandwidth: float  # bytes per second, read plus written
    latency: int  # cycles of a load from an idle memory
    product_cycles: float  # of an m16n8k16 with float32 sums on a quarter multiprocessor

    @property
    def bytes_per_cycle(self) -> float:
        """At copy bandwidth, for each multiprocessor."""
        return self.copy_bandwidth / (self.multiprocessors * self.clock)

    def loaded_latency(self, use: float) -> float:
        """Cycles of a load while the memory is busy for a fraction `use` of the time."""
        return self.latency * (1 + use / (10 * (1 - use)))


GPUS = (
    Gpu("H100", 90, 132, 1.755e9, 3.0e12, latency=480, product_cycles=6.2),
    Gpu("RTX 3090", 86, 82, 1.7e9, 0.85e12, latency=480, product_cycles=32),
)
QUARTERS = 4  # of a multiprocessor, each of which issues one instruction per cycle
L1_BYTES_PER_CYCLE = 128  # of a multiprocessor: loads from L1, shared memory either way


@dataclass(frozen=True)
class Counts:
    """Of one warp and its tile."""

    fewest_bytes: float  # to and from device memory, of any kernel that does the same
    memory_bytes: float  # of this one
    bytes_before: float  # of a kernel that has to run first, at copy bandwidth
    issued: int  # instructions
    products: int
    l1_bytes: int  # through the data path of L1 and shared memory
    cycles: Callable[[float], float]  # of the warp alone, by the latency of memory
    warps: int  # that a multiprocessor holds


@dataclass(frozen=True)
class Prediction:
    fraction: float  # of the copy bandwidth, counting the fewest bytes
    limit: str  # what stands in the way of more


def predict(gpu: Gpu, counts: Counts) -> Prediction:
    """On maps that full tiles cover, many times what the GPU works on at once."""
    at_bandwidth = counts.memory_bytes / gpu.bytes_per_cycle
    limits = {
        "instructions": counts.issued / QUARTERS,
        "products": counts.products * gpu.product_cycles / QUARTERS,
        "L1": counts.l1_bytes / L1_BYTES_PER_CYCLE,
        "latency": _memory_cycles(gpu, counts, at_bandwidth),
    }
    limit = max(limits, key=lambda name: limits[name])
    if limit == "latency" and at_bandwidth > 0.9 * limits[limit]:
        limit = "bytes"
    cycles = limits["latency" if limit == "bytes" else limit]
    cycles += counts.bytes_before / gpu.bytes_per_cycle
    return Prediction(counts.fewest_bytes / gpu.bytes_per_cycle / cycles, limit)


def _memory_cycles(gpu: Gpu, counts: Counts, at_bandwidth: float) -> float:
    """Cycles of a multiprocessor for each tile, by Little's law: the warps it holds, each of which
    takes `cycles(latency)` for a tile, where the latency grows with the use of the memory."""
    low, high = 0.0, 0.999
    for _ in range(30):
        use = (low + high) / 2
        per_tile = counts.cycles(gpu.loaded_latency(use)) / max(counts.warps, 1)
        if per_tile * use < at_bandwidth:  # the warps could keep the memory busier than that
            low = use
        else:
            high = use
    return at_bandwidth / low if low else float("inf")
