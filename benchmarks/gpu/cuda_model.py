"""What counts of machine code say of a GPU: blocks that fit, and the fraction of copy bandwidth.

csrc/cuda/README.md states the model. `FAMILIES` says what the code does not: on how many pixels a
warp works, and what its launch adds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

WARP = 32
_ELEMENT_BYTES = {"BFloat16": 2, "Float16": 2, "float": 4, "double": 8}


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
_SYSTEM_SHARED = 1024  # of each block


def _round_up(n: int, unit: int) -> int:
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
    per_warp = _round_up(registers * WARP, _REGISTER_UNIT)
    warps_by_registers = limits.registers // per_warp // _WARP_UNIT * _WARP_UNIT
    return min(
        limits.blocks,
        limits.warps // warps,
        warps_by_registers // warps,
        limits.shared // (_round_up(shared, _SHARED_UNIT) + _SYSTEM_SHARED),
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
class Instance:
    """The template arguments of one kernel."""

    arguments: tuple[str, ...]

    @property
    def element_bytes(self) -> int:
        return _ELEMENT_BYTES[self.arguments[0]]

    @property
    def window(self) -> int:
        """0: any; counted as 3."""
        side = self.arguments[1] if len(self.arguments) > 1 else "0"
        return int(side) if side.isdigit() else 0

    @property
    def is_chunked(self) -> bool:
        """Works on the features in a loop."""
        return any("at a time" in argument for argument in self.arguments)

    @property
    def head_dim(self) -> int:
        """That the counts are for: as many features as the kernel is made for, else 64."""
        widths = [int(a.split()[0]) for a in self.arguments if "features" in a]
        return widths[0] * (2 if self.is_chunked else 1) if widths else 64

    @property
    def rounds(self) -> int:
        """Of loops whose number of rounds the code does not say: two over the features; three over
        the taps of an axis, and over the steps of a sum on eight lanes."""
        return 2 if self.is_chunked else 3


@dataclass(frozen=True)
class Family:
    """Kernels of one name, and what their code does not say.

    Rows are those of `head_dim` features that go to or from device memory, for each pixel of a
    head; the fewest are those of the arguments and results, each once.
    """

    pixels: Callable[[Instance], int]  # of a warp
    rows: int
    fewest: int
    rows_before: int = 0  # by a kernel that has to run first, at copy bandwidth
    # Dynamic shared memory, bytes per warp, without a bias.
    shared: Callable[[Instance], int] = lambda instance: 0


def _strip_pixels(instance: Instance) -> int:
    """Four groups of eight lanes, each of which has a strip."""
    return 4 if instance.window == 7 else 8


FAMILIES = {
    "forward_matrix": Family(pixels=lambda i: 16, rows=4, fewest=4),
    "backward_matrix": Family(pixels=lambda i: 16, rows=8, fewest=7),  # reads out as well
    "forward_strip": Family(pixels=_strip_pixels, rows=4, fewest=4),
    "forward_any": Family(pixels=lambda i: 4, rows=4, fewest=4),
    "backward_vector": Family(pixels=lambda i: 4, rows=7, fewest=7, rows_before=2),  # row_delta
}


def family_of(name: str) -> tuple[Family, Instance] | None:
    """Of a kernel, by `name<template arguments>`; None for one that the table does not hold."""
    match = re.fullmatch(r"(\w+)<(.*)>", name)
    if match is None or match[1] not in FAMILIES:
        return None
    return FAMILIES[match[1]], Instance(tuple(re.split(r", (?![^<]*>)", match[2])))


@dataclass(frozen=True)
class Counts:
    """Of one warp and its tile."""

    issued: int  # instructions
    products: int
    l1_bytes: int  # through the data path of L1 and shared memory
    cycles: Callable[[float], float]  # of the warp alone, by the latency of memory
    warps: int  # that a multiprocessor holds


@dataclass(frozen=True)
class Prediction:
    fraction: float  # of the copy bandwidth, counting the fewest bytes
    limit: str  # what stands in the way of more


def predict(gpu: Gpu, family: Family, instance: Instance, counts: Counts) -> Prediction:
    """On maps that full tiles cover, many times what the GPU works on at once."""
    pixels = family.pixels(instance)

    def byte_cycles(rows: int) -> float:
        """Of a multiprocessor at copy bandwidth; each pixel has 4 bytes of lse beside its rows."""
        size = rows * instance.head_dim * instance.element_bytes + 4
        return pixels * size / gpu.bytes_per_cycle

    at_bandwidth = byte_cycles(family.rows)
    limits = {
        "instructions": counts.issued / QUARTERS,
        "products": counts.products * gpu.product_cycles / QUARTERS,
        "L1": counts.l1_bytes / L1_BYTES_PER_CYCLE,
        "latency": _memory_cycles(gpu, counts, at_bandwidth),
    }
    limit = max(limits, key=lambda name: limits[name])
    if limit == "latency" and at_bandwidth > 0.9 * limits[limit]:
        limit = "bytes"
    before = byte_cycles(family.rows_before) if family.rows_before else 0.0
    return Prediction(byte_cycles(family.fewest) / (max(limits.values()) + before), limit)


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
