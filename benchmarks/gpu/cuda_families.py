"""What the machine code of the CUDA kernels does not say: `FAMILIES`, and how each is launched.

Follows csrc/cuda: a new family of kernels, or another choice at launch, needs an edit here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.gpu.cuda_model import SYSTEM_SHARED, WARP, Multiprocessor, round_up

_ELEMENT_BYTES = {"BFloat16": 2, "Float16": 2, "float": 4, "double": 8}


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
    # None: as many threads as the launch bounds, without dynamic shared memory.
    launch: ChooseLaunch | None = None

    def memory_bytes(self, instance: Instance, rows: int) -> float:
        """Of a warp: rows of its pixels, and 4 bytes of lse for each of them."""
        row_bytes = instance.head_dim * instance.element_bytes
        return self.pixels(instance) * (rows * row_bytes + 4)


# The problem of the counts, beside window and head_dim.
_PROBLEM = {"work.launch_heads": 8, "work.masked": 0, "groups.lanes": 8}


def parameters_of(instance: Instance) -> dict[str, int]:
    """That are known of the problem which the counts are for, by their names in csrc/cuda."""
    side = instance.window or 3
    sizes = {"work.head_dim": instance.head_dim, "work.kernel_h": side, "work.kernel_w": side}
    return {**_PROBLEM, **sizes}


def _resident(sm: Multiprocessor, warps: int, warp_bytes: int) -> int:
    """Warps that shared memory has room for, in blocks of `warps`; 0 where one block has none."""
    if warps * warp_bytes > sm.shared - SYSTEM_SHARED:
        return 0
    return sm.shared // (warps * warp_bytes + SYSTEM_SHARED) * warps


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
        fixed = instance.number("slot")
        for slots in (2, 1) if fixed is None else (fixed,):
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
    size = round_up(4 * (taps + tile.near + tile.pixels * (1 + taps)), 16) + tile.tensor_bytes
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
    size = round_up(4 * (taps + tile.near), 16) + 2 * tile.tensor_bytes + 8 * tile.near
    size = round_up(size, 16)
    warps, _ = tile.best(sm, size, min(most, 12))
    return Launch(warps, warps * size, {"warp_bytes": size})


MAP_SIDE = 7  # of the map that the kernels for small ones are counted for
_MAP_WARPS = 4


def _map_launch(instance: Instance, *, backward: bool) -> Launch:
    """A block copies two or four tensors of the map, in pairs of rows of 8 pixels; see
    map_tile.cuh."""
    rows = round_up(MAP_SIDE, 2)
    tensor = rows * 8 * (instance.number("features") or 0) * instance.element_bytes
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
    "backward_vector": Family(pixels=_four, rows=7, fewest=7, rows_before=2),  # by row_delta
    "row_delta": Family(pixels=_four, rows=2, fewest=2),
}


def family_of(name: str) -> tuple[Family, Instance] | None:
    """Of a kernel, by `name<template arguments>`; None for one that the table does not hold."""
    match = re.fullmatch(r"(\w+)<(.*)>", name)
    if match is None or match[1] not in FAMILIES:
        return None
    return FAMILIES[match[1]], Instance(tuple(match[2].split(", ")))
