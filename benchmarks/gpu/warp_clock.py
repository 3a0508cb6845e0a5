"""How long one warp, alone on its scheduler, takes for a path, and how often it waits for memory.

The order of a warp's instructions is fixed, and the compiler has written into each how many cycles
pass until the next and for which scoreboards it waits (`machine_code.Instruction`). What is not in
the code is when a scoreboard is released: the latencies below, in cycles, rounded from published
measurements on sm_80 to sm_90. Only the latency of global memory matters for what is derived here.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from benchmarks.gpu.machine_code import SCOREBOARDS, Instruction
from benchmarks.gpu.warp_path import Step

LANES = 32
_LATENCIES = {
    "LDS": 30,
    "LDSM": 33,
    "LDC": 40,
    "ULDC": 40,
    "LDCU": 40,
    "LDL": 35,
    "SHFL": 24,
    "MUFU": 20,
    "S2R": 30,
    "S2UR": 30,
}
_OTHER_LATENCY = 20
_READ_LATENCY = 12  # until a store or load has read its operands

# Large against everything else, and far apart: their difference counts waits exactly.
_FAR, _FARTHER = 10**6, 2 * 10**6


@dataclass(frozen=True)
class Traffic:
    """What one warp asks for, as if all of its lanes took part."""

    loads: int  # instructions that load or copy from global memory
    global_bytes: int  # loaded, copied and stored
    wide_bytes: int  # of these, 16 bytes per lane
    l1_bytes: int  # through the data path of L1 and shared memory, which shuffles share
    spills: int  # instructions that store to or load from local memory
    products: int  # of matrices, m16n8k16


def traffic(steps: Iterable[Step]) -> Traffic:
    loads = global_bytes = wide_bytes = l1_bytes = spills = products = 0
    for step in steps:
        if not step.executed:
            continue
        base, per_lane = step.instruction.base, step.instruction.bytes_per_lane
        size = LANES * per_lane
        loads += base in ("LDG", "LDGSTS")
        if base in ("LDG", "LDGSTS", "STG"):
            global_bytes += size
            wide_bytes += size if per_lane == 16 else 0
        if base in ("LDG", "LDGSTS", "STG", "LDS", "LDSM", "STS"):
            l1_bytes += size
        elif base == "SHFL":
            l1_bytes += 4 * LANES
        spills += base in ("LDL", "STL")
        products += step.instruction.opcode.startswith("HMMA.16816")
    return Traffic(loads, global_bytes, wide_bytes, l1_bytes, spills, products)


def cycles(steps: Iterable[Step], latency: float, product_cycles: float = 0) -> float:
    """From the first instruction to the last.

    Args:
        steps: of a path.
        latency: cycles until global memory answers.
        product_cycles: that the matrix unit takes for an m16n8k16.
    """
    return sum(
        held + step.instruction.stall for step, held in _replay(steps, latency, product_cycles)
    )


def _replay(
    steps: Iterable[Step], latency: float, product_cycles: float
) -> Iterator[tuple[Step, float]]:
    """Each instruction, and the cycles by which it is held up beyond the stall of the one before.

    A warp has six scoreboards; each counts what is under way, and an instruction that waits for one
    waits for all of it. Asynchronous copies (LDGSTS) set none: LDGDEPBAR makes those before it a
    group, which DEPBAR waits for. Barriers cost nothing: the other warps do the same.
    """
    now: float = 0
    unit_free: float = 0
    copied: float = 0  # when the copies since the last group will be there
    under_way: list[list[float]] = [[] for _ in range(SCOREBOARDS)]  # when each will be there
    for step in steps:
        instruction = step.instruction
        base, ready = instruction.base, now
        for board in instruction.waits:
            now = max([now, *under_way[board]])
            under_way[board].clear()
        if step.executed:
            if base == "HMMA":
                now = max(now, unit_free)
                unit_free = now + product_cycles
            elif base == "DEPBAR":
                now = max(now, _wait_for_all_but(instruction.operands, under_way))
            elif base == "LDGSTS":
                copied = max(copied, now + latency)
            if instruction.write is not None:
                there = copied if base == "LDGDEPBAR" else now + _latency(base, latency)
                under_way[instruction.write].append(there)
            if instruction.read is not None:
                under_way[instruction.read].append(now + _READ_LATENCY)
        yield step, now - ready
        now += instruction.stall


def _latency(base: str, of_memory: float) -> float:
    return of_memory if base == "LDG" else _LATENCIES.get(base, _OTHER_LATENCY)


def _wait_for_all_but(operands: tuple[str, ...], under_way: list[list[float]]) -> float:
    """`DEPBAR.LE SB0, 0x1`: when at most one is left under way. The oldest are there first."""
    board, left = re.match(r"SB(\d)", operands[0]), int(operands[1], 16)
    if board is None:
        return 0
    waiting = under_way[int(board[1])]
    oldest = max(len(waiting) - left, 0)
    under_way[int(board[1])] = waiting[oldest:]
    return max(waiting[:oldest], default=0)


def waits_in_a_row(steps: tuple[Step, ...]) -> int:
    """How often the warp goes to global memory one time after the other.

    That is by how many latencies the time of the path grows where nothing but memory takes long:
    1 where all loads start before the first is waited for.
    """
    return round((cycles(steps, _FARTHER) - cycles(steps, _FAR)) / (_FARTHER - _FAR))


def by_latency(
    steps: tuple[Step, ...], idle_latency: int, product_cycles: float
) -> Callable[[float], float]:
    """`cycles` as a function of the latency, between a few computed points: it is convex, and
    nearly straight."""
    points = [idle_latency * factor for factor in (1, 2, 4, 8)]
    times = [cycles(steps, latency, product_cycles) for latency in points]

    def interpolated(latency: float) -> float:
        i = min(max(bisect(points, latency) - 1, 0), len(points) - 2)
        slope = (times[i + 1] - times[i]) / (points[i + 1] - points[i])
        return times[i] + slope * (latency - points[i])

    return interpolated


def waiting(steps: tuple[Step, ...]) -> list[Instruction]:
    """The instructions that wait for global memory."""
    return [step.instruction for step, held in _replay(steps, _FAR, 0) if held > _FAR / 2]
