"""What counts of machine code say of a GPU: blocks that fit, and the fraction of copy bandwidth.

csrc/cuda/README.md states the model. `FAMILIES` says what the code does not: on how many pixels a
warp works, and what its launch adds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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
        return _ELEMENT_BYTES.get(self.arguments[0], 4)

    @property
    def window(self) -> int:
        """0: any."""
        return next((int(a) for a in self.arguments[:2] if a.isdigit()), 0)

    @property
    def is_chunked(self) -> bool:
        """Works on the features in a loop."""
        return any("at a time" in argument for argument in self.arguments)

    def number(self, unit: str) -> int | None:
        """Of `64 features` or `8 lanes`."""
        found = (re.match(rf"(\d+) {unit}", argument) for argument in self.arguments)
        return next((int(match[1]) for match in found if match), None)

    @property
    def head_dim(self) -> int:
        """That the counts are for: as many features as the kernel is made for, else 64."""
        features = self.number("features")
        if features is None:
            lanes = self.number("lanes")
            return 64 if lanes is None else lanes * STAGED_FEATURES
        return 2 * features if self.is_chunked else features


@dataclass(frozen=True)
class Launch:
    """What the host chooses, as `choose_stages` (staging.cuh) and `StagedWarps` (staged_tile.cuh)
    do, and the parameters that say so."""

    warps: int  # of a block
    shared: int = 0  # dynamic, bytes per block
    parameters: Mapping[str, int] = field(default_factory=dict)


# How a kernel is launched on a multiprocessor whose registers hold a number of warps of it.
ChooseLaunch = Callable[[Instance, Multiprocessor, int], Launch]


@dataclass(frozen=True)
class Family:
    """Kernels of one name, and what their code does not say.

    Rows are those of `head_dim` features that go to or from device memory, for each pixel of a
    head; the fewest are those of the arguments and results, each once.
    """

    pixels: Callable[[Instance], float]  # of a warp
    rows: int
    fewest: int
    rows_before: int = 0  # by a kernel that has to run first, at copy bandwidth
    launch: ChooseLaunch | None = None  # None: as many threads as the launch bounds, no dynamic
    # shared memory


# The problem of the counts, beside window and head_dim.
_PROBLEM = {"work.launch_heads": 8, "work.masked": 0, "groups.lanes": 8}


def parameters_of(instance: Instance) -> dict[str, int]:
    """That are known of the problem which the counts are for, by their names in csrc/cuda."""
    side = instance.window or 3
    sizes = {"work.head_dim": instance.head_dim, "work.kernel_h": side, "work.kernel_w": side}
    return {**_PROBLEM, **sizes}


def _resident(sm: Multiprocessor, warps: int, warp_bytes: int) -> int:
    """Warps that shared memory has room for, in blocks of `warps`; 0 where one block has none."""
    if warps * warp_bytes > sm.shared - _SYSTEM_SHARED:
        return 0
    return sm.shared // (warps * warp_bytes + _SYSTEM_SHARED) * warps


MATRIX_PIXELS = 16
_MATRIX_WARPS = (4, 2, 1)  # of a block, the first that is best


def _matrix_launch(tensors: int, other_bytes: Callable[[int], int]) -> ChooseLaunch:
    """tensors: of a slot; other_bytes: per warp, of the neighbourhood's number of pixels."""

    def choose(instance: Instance, sm: Multiprocessor, most: int) -> Launch:
        tile_w = 2 if instance.window == 7 else 4
        halo = instance.window - 1
        pixels = (MATRIX_PIXELS // tile_w + halo) * (tile_w + halo)
        features = instance.number("features") or 0
        best, resident = Launch(warps=1), 0
        for slots in (2, 1):
            size = slots * tensors * pixels * features * instance.element_bytes
            size += other_bytes(pixels)
            for warps in _MATRIX_WARPS:
                now = min(_resident(sm, warps, size), most)
                if now > resident:
                    values = {"slots": slots, "warp_bytes": size}
                    best, resident = Launch(warps, warps * size, values), now
        return best

    return choose


STAGED_FEATURES = 16  # on a lane
_STAGED_WARPS = (4, 3, 2, 1)


@dataclass(frozen=True)
class _StagedTile:
    """StagedTile of staged_tile.cuh."""

    instance: Instance

    @property
    def _groups(self) -> int:
        return WARP // (self.instance.number("lanes") or WARP)

    @property
    def pixels(self) -> int:
        return self._groups * (1 if self._groups == 16 else 2)

    @property
    def near(self) -> int:
        """Pixels of the neighbourhood."""
        width = 4 if self._groups >= 8 else 2
        halo = self.instance.window - 1
        return (self.pixels // width + halo) * (width + halo)

    @property
    def tensor_bytes(self) -> int:
        return self.near * self.instance.head_dim * 4

    def best(self, sm: Multiprocessor, size: int, most: int) -> tuple[int, int]:
        """Warps of a block, and of a multiprocessor."""
        found = (0, 0)
        for warps in _STAGED_WARPS:
            now = min(_resident(sm, warps, size), most // warps * warps)
            if now > found[1]:
                found = warps, now
        return found


def _staged_forward(instance: Instance, sm: Multiprocessor, most: int) -> Launch:
    tile, taps = _StagedTile(instance), instance.window**2
    size = _round_up(4 * (taps + tile.near + tile.pixels * (1 + taps)), 16) + tile.tensor_bytes
    both = size + tile.tensor_bytes
    most = min(most, 16)
    warps, resident = tile.best(sm, both, most)
    if resident >= 8:
        values = {"value_floats": tile.tensor_bytes // 4, "warp_bytes": both}
        return Launch(warps, warps * both, values)
    warps, _ = tile.best(sm, size, most)
    return Launch(warps, warps * size, {"value_floats": 0, "warp_bytes": size})


def _staged_backward(instance: Instance, sm: Multiprocessor, most: int) -> Launch:
    tile, taps = _StagedTile(instance), instance.window**2
    size = _round_up(4 * (taps + tile.near), 16) + 2 * tile.tensor_bytes + 8 * tile.near
    size = _round_up(size, 16)
    warps, _ = tile.best(sm, size, min(most, 12))
    return Launch(warps, warps * size, {"warp_bytes": size})


MAP_SIDE = 7  # of the map that the kernels for small ones are counted for
_MAP_WARPS = 4


def _map_launch(instance: Instance, *, backward: bool) -> Launch:
    """A block copies two or four tensors of the map, in rows of 8 pixels; see map_tile.cuh."""
    tensor = MAP_SIDE * 8 * (instance.number("features") or 0) * instance.element_bytes
    exchange = MAP_SIDE * instance.window * 2 * 128 + 128
    offset = 2 * tensor + max(2 * tensor, exchange)
    shared = offset if backward else 2 * tensor
    sides = {"work.height": MAP_SIDE, "work.width": MAP_SIDE}
    return Launch(_MAP_WARPS, shared, {**sides, "bias_offset": offset})


def _map_pixels(_: Instance) -> float:
    return MAP_SIDE**2 / _MAP_WARPS


def _strip_pixels(instance: Instance) -> int:
    """Four groups of eight lanes, each of which has a strip."""
    return 4 if instance.window == 7 else 8


def _matrix_pixels(_: Instance) -> int:
    return MATRIX_PIXELS


def _four(_: Instance) -> int:
    return 4


FAMILIES = {
    "forward_matrix": Family(
        pixels=_matrix_pixels, rows=4, fewest=4, launch=_matrix_launch(1, lambda pixels: 0)
    ),
    # Reads out as well; keeps lse and delta of the neighbourhood.
    "backward_matrix": Family(
        pixels=_matrix_pixels, rows=8, fewest=7, launch=_matrix_launch(2, lambda pixels: 8 * pixels)
    ),
    "forward_staged": Family(
        pixels=lambda i: _StagedTile(i).pixels, rows=4, fewest=4, launch=_staged_forward
    ),
    "backward_staged": Family(
        pixels=lambda i: _StagedTile(i).pixels, rows=8, fewest=7, launch=_staged_backward
    ),
    "forward_map": Family(
        pixels=_map_pixels,
        rows=4,
        fewest=4,
        launch=lambda instance, sm, most: _map_launch(instance, backward=False),
    ),
    "backward_map": Family(
        pixels=_map_pixels,
        rows=7,
        fewest=7,
        launch=lambda instance, sm, most: _map_launch(instance, backward=True),
    ),
    "forward_strip": Family(pixels=_strip_pixels, rows=4, fewest=4),
    "forward_any": Family(pixels=_four, rows=4, fewest=4),
    "backward_vector": Family(pixels=_four, rows=7, fewest=7, rows_before=2),  # row_delta
}


def family_of(name: str) -> tuple[Family, Instance] | None:
    """Of a kernel, by `name<template arguments>`; None for one that the table does not hold."""
    match = re.fullmatch(r"(\w+)<(.*)>", name)
    if match is None or match[1] not in FAMILIES:
        return None
    return FAMILIES[match[1]], Instance(tuple(match[2].split(", ")))


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
