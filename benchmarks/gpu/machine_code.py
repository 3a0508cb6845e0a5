"""The instructions of NVIDIA GPUs, as cuobjdump prints them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

SCOREBOARDS = 6
_NO_SCOREBOARD = 7


@dataclass(frozen=True)
class Instruction:
    """One instruction, and what the compiler has encoded of its schedule.

    A result that takes an unknown time sets a scoreboard (`write`), operands that are read late set
    another (`read`), and an instruction that needs either waits for the scoreboards in `waits`.
    """

    address: int
    guard: str  # "P0", "!UP1", or "" where it is always executed
    opcode: str
    operands: tuple[str, ...]
    stall: int  # cycles until the warp issues its next instruction
    write: int | None
    read: int | None
    waits: frozenset[int]

    @cached_property
    def base(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.split(".", 1)[0]

    @cached_property
    def target(self) -> int | None:
        """Address that a branch or call goes to; None for another, or one that is computed."""
        if self.base not in ("BRA", "CALL"):
            return None
        found = re.fullmatch(r"`?\(?0x([0-9a-f]+)\)?", self.operands[-1]) if self.operands else None
        return int(found[1], 16) if found else None

    @cached_property
    def bytes_per_lane(self) -> int:
        """That a load, store or copy moves."""
        if self.base == "LDSM":
            return 4 * int(self.opcode[-1]) if self.opcode[-1].isdigit() else 4
        modifiers = self.opcode.split(".")[1:]
        sizes = {"128": 16, "64": 8, "U16": 2, "S16": 2, "16": 2, "U8": 1, "S8": 1, "8": 1}
        return next((sizes[m] for m in modifiers if m in sizes), 4)


_LINE = re.compile(
    r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;"
    r"\s*/\* 0x[0-9a-f]{16} \*/"
)
_UPPER_HALF = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/\s*$")


def parse(lines: Iterable[str]) -> list[Instruction]:
    """The instructions of one function as `cuobjdump -sass` prints them, each on two lines."""
    program: list[Instruction] = []
    first = None
    for line in lines:
        if match := _LINE.match(line):
            first = match
        elif first is not None and (match := _UPPER_HALF.match(line)):
            schedule = int(match[1], 16) >> 41  # bits 105 to 125 of the instruction
            write, read = schedule >> 5 & 7, schedule >> 8 & 7
            program.append(
                Instruction(
                    address=int(first[1], 16),
                    guard=first[2] or "",
                    opcode=first[3],
                    operands=_split(first[4]),
                    stall=max(schedule & 15, 1),
                    write=None if write == _NO_SCOREBOARD else write,
                    read=None if read == _NO_SCOREBOARD else read,
                    waits=frozenset(b for b in range(SCOREBOARDS) if schedule >> 11 & 1 << b),
                )
            )
            first = None
    return program


def _split(operands: str) -> tuple[str, ...]:
    """At commas outside brackets."""
    parts = re.split(r",(?![^\[{]*[\]}])", operands.replace(".reuse", ""))
    return tuple(part.strip() for part in parts if part.strip())
