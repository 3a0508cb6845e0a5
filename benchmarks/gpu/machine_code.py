"""Machine code of NVIDIA GPUs: its instructions, and the path that one warp takes through them.

`follow` walks from the first instruction to the EXIT, and computes what can be known of registers:
numbers that the code itself holds, and parameters that it is told. A pointer among the parameters
that the code compares with null is optional (a bias, a key mask), and taken to be absent. The rest
is unknown, and a branch on the unknown goes where the work is.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

INSTRUCTION_BYTES = 16
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


@dataclass(frozen=True)
class Parameter:
    """32 bits of a kernel's parameters, which are not known."""

    offset: int


@dataclass(frozen=True)
class LowerHalf:
    """Predicate: how the lower 32 bits of a pointer compare with 0; the upper are still to come."""

    offset: int


@dataclass(frozen=True)
class Bits:
    """A register of which some bits are known: the compiler keeps predicates in bits."""

    value: int
    known: int


Value = int | Bits | Parameter | None  # None: not known
Predicate = bool | LowerHalf | None

_BITS = 0xFFFFFFFF
_CONSTANT = re.compile(r"c\[0x0\]\[(?:0x([0-9a-f]+))\]")
_REGISTER = re.compile(r"U?R(\d+)$")
_PREDICATE = re.compile(r"!?(U?P\d|U?PT)$")
_WITHOUT_RESULT = re.compile(
    r"(ST|RED|BRA|BRX|JM|EXIT|BSSY|BSYNC|BAR|DEPBAR|LDGDEPBAR|LDGSTS|NOP|WARPSYNC|MEMBAR|CCTL|CALL"
    r"|RET|ERRBAR|BREAK|YIELD|NANOSLEEP|BMOV|ACQBULK)"
)


def _signed(value: int) -> int:
    return value - (1 << 32) if value & 1 << 31 else value


def _results(instruction: Instruction) -> int:
    """Registers in a row that an instruction writes."""
    base, modifiers = instruction.base, instruction.opcode.split(".")[1:]
    if base in ("HMMA", "IMMA"):
        return 4
    if base == "LDSM":
        return instruction.bytes_per_lane // 4
    if "128" in modifiers:
        return 4
    is_wide = bool({"64", "WIDE", "F64"} & set(modifiers)) or re.match(r"D(ADD|MUL|FMA|MNMX)", base)
    return 2 if is_wide or instruction.opcode == "CS2R" else 1


@dataclass
class State:
    """What is known of a warp's registers."""

    parameters: Mapping[int, int]  # known ones, 32 bits each, by offset
    base: int  # offset of the first parameter in the constant bank
    thread: int | None = None  # of the block, where one is looked at
    values: dict[str, Value] = field(default_factory=dict)
    predicates: dict[str, Predicate] = field(default_factory=dict)

    def predicate(self, name: str) -> Predicate:
        negated, plain = name.startswith("!"), name.lstrip("!")
        value = True if plain in ("PT", "UPT") else self.predicates.get(plain)
        return not value if negated and isinstance(value, bool) else None if negated else value

    def value(self, text: str) -> Value:
        """Of an operand."""
        if text in ("RZ", "URZ", "SRZ"):
            return 0
        if text[:1] in "-~" and len(text) > 1 and (text[1] in "RUc" or text.startswith("~")):
            inner = self.value(text[1:])
            if not isinstance(inner, int):
                return None
            return (-inner if text[0] == "-" else ~inner) & _BITS
        if match := _CONSTANT.fullmatch(text):
            return self.parameter(int(match[1], 16))
        if _REGISTER.match(text):
            return self.values.get(text)
        try:
            return int(text, 0) & _BITS
        except ValueError:
            return None

    def parameter(self, address: int) -> Value:
        offset = address - self.base
        if offset < 0:
            return None  # sizes of the grid, the stack and so on
        return self.parameters.get(offset, Parameter(offset))

    def execute(self, instruction: Instruction) -> None:
        """Computes the results that can be known, and forgets what the others replace."""
        guard = self.predicate(instruction.guard) if instruction.guard else True
        if guard is False:
            return
        values, predicates = self._compute(instruction)
        if guard is not True:  # what was there may stay
            values = {name: _either(self.values.get(name), v) for name, v in values.items()}
            predicates = {
                name: v for name, v in predicates.items() if self.predicates.get(name) is v
            }
        self._forget_results(instruction)
        self.values.update(values)
        self.predicates.update(predicates)

    def _forget_results(self, instruction: Instruction) -> None:
        if instruction.opcode.startswith("R2P"):
            self.predicates.clear()
        if _WITHOUT_RESULT.match(instruction.opcode):
            return
        seen_register = "SETP" in instruction.base or "PLOP3" in instruction.base
        for operand in instruction.operands:
            if _PREDICATE.match(operand):
                self.predicates.pop(operand, None)
            elif not seen_register:
                seen_register = True
                for name in _registers(operand, _results(instruction)):
                    self.values.pop(name, None)
            else:
                break

    def _compute(self, instruction: Instruction) -> tuple[dict[str, Value], dict[str, Predicate]]:
        """The registers and predicates that an instruction sets, where it is known to what."""
        opcode, operands = instruction.opcode, instruction.operands
        base = instruction.base.removeprefix("U")  # the uniform registers' instructions do the same
        if base == "ISETP":
            return {}, {operands[0]: _compare(opcode, operands, self)}
        if base == "PLOP3":
            inputs = [self.predicate(name) for name in operands[2:5]]
            return {}, {operands[i]: _lookup(inputs, int(operands[5 + i], 16)) for i in (0, 1)}
        if opcode in ("P2R", "R2P"):
            return self._move_predicates(opcode, operands)
        if base == "LOP3":
            return self._logic(operands)
        if not operands:
            return {}, {}
        names = _registers(operands[0], _results(instruction))
        values: dict[str, Value] = {}
        if base in ("LDC", "LDCU"):
            if place := _CONSTANT.fullmatch(operands[1]):
                first = int(place[1], 16)
                values = {name: self.parameter(first + 4 * i) for i, name in enumerate(names)}
        elif base == "S2R" and operands[1] == "SR_TID.X":
            values = {names[0]: self.thread}
        elif instruction.base == "CS2R":
            values = dict.fromkeys(names, 0 if operands[1] == "SRZ" else None)
        elif len(names) == 1:
            values = {names[0]: _arithmetic(base, opcode, operands, self)}
        return values, {}

    def _logic(self, operands: Sequence[str]) -> tuple[dict[str, Value], dict[str, Predicate]]:
        """LOP3: a function of three registers bit by bit, and whether any bit of it is set."""
        is_set = operands[0] if _PREDICATE.match(operands[0]) else None
        target, *sources = operands[1:] if is_set else operands
        result = _bitwise([self.value(op) for op in sources[:3]], int(sources[3], 16))
        values: dict[str, Value] = dict.fromkeys(_registers(target, 1), result)
        if is_set is None or sources[4] not in ("!PT", "!UPT"):
            return values, {}
        bits = _bits(result)
        known = True if bits.value else False if bits.known == _BITS else None
        return values, {is_set: known}

    def _move_predicates(
        self, opcode: str, operands: Sequence[str]
    ) -> tuple[dict[str, Value], dict[str, Predicate]]:
        """P2R gathers predicates in the bits of a register, R2P takes them from there."""
        if opcode == "R2P":
            bits, mask = _bits(self.value(operands[1])), int(operands[2], 16)
            return {}, {
                f"P{i}": bool(bits.value >> i & 1)
                if mask >> i & bits.known >> i & 1
                else None
                if mask >> i & 1
                else self.predicates.get(f"P{i}")
                for i in range(7)
            }
        bits, mask = _bits(self.value(operands[2])), int(operands[3], 16)
        value, known = bits.value & ~mask, bits.known & ~mask
        for i in range(7):
            holds = self.predicates.get(f"P{i}")
            if mask >> i & 1 and isinstance(holds, bool):
                value, known = value | holds << i, known | 1 << i
        return {operands[0]: _value(value, known)}, {}


def _registers(first: str, count: int) -> list[str]:
    """The names of registers in a row; none where the operand is not one, or is always zero."""
    match = re.match(r"(U?R)(\d+)$", first)
    return [f"{match[1]}{int(match[2]) + i}" for i in range(count)] if match else []


def _bits(value: Value) -> Bits:
    if isinstance(value, int):
        return Bits(value, _BITS)
    return value if isinstance(value, Bits) else Bits(0, 0)


def _value(value: int, known: int) -> Value:
    return value if known == _BITS else Bits(value, known) if known else None


def _either(a: Value, b: Value) -> Value:
    """What is known of a register that holds one of two values."""
    if a == b:
        return a
    x, y = _bits(a), _bits(b)
    known = x.known & y.known & ~(x.value ^ y.value)
    return _value(x.value & known, known)


def _bitwise(inputs: Sequence[Value], table: int) -> Value:
    """A function of three registers bit by bit: bit 4a + 2b + c of the table."""
    may_be = [0, 0]  # bits that may be 0, bits that may be 1
    bits = [_bits(value) for value in inputs]
    for place in range(8):
        possible = _BITS
        for shift, x in zip((2, 1, 0), bits, strict=True):
            possible &= (x.value if place >> shift & 1 else ~x.value) | ~x.known
        may_be[table >> place & 1] |= possible
    known = may_be[0] ^ may_be[1]
    return _value(may_be[1] & known & _BITS, known & _BITS)


def _compare(opcode: str, operands: Sequence[str], state: State) -> Predicate:
    modifiers = opcode.split(".")[1:]
    a, b = state.value(operands[2]), state.value(operands[3])
    relation = modifiers[0]
    result: Predicate = None
    if {"S64", "U64"} & set(modifiers):
        pair = operands[2] if b == 0 else operands[3]
        if 0 in (a, b) and relation in ("EQ", "NE") and _is_pointer(pair, state):
            result = relation == "EQ"  # absent
    elif "EX" in modifiers:
        # The upper halves, and the predicate of the lower ones in the last operand.
        lower = state.predicate(operands[5])
        if isinstance(lower, LowerHalf) and {a, b} == {Parameter(lower.offset + 4), 0}:
            result = relation == "EQ"  # absent
        elif isinstance(a, int) and isinstance(b, int):
            result = _relate(relation, a, b, "U32" in modifiers) if a != b else lower
    elif isinstance(a, int) and isinstance(b, int):
        result = _relate(relation, a, b, "U32" in modifiers)
    elif "U32" in modifiers and relation in ("EQ", "NE") and 0 in (a, b):
        pointer = a if isinstance(a, Parameter) else b
        if isinstance(pointer, Parameter) and pointer.offset % 8 == 0:
            return LowerHalf(pointer.offset)
    other = state.predicate(operands[4])
    if "AND" in modifiers:
        return _and(result, other)
    if "OR" in modifiers:
        inverse = _and(_not(result), _not(other))
        return _not(inverse)
    return None


def _relate(relation: str, a: int, b: int, unsigned: bool) -> bool | None:
    if not unsigned:
        a, b = _signed(a), _signed(b)
    holds = {"LT": a < b, "LE": a <= b, "GT": a > b, "GE": a >= b, "EQ": a == b, "NE": a != b}
    return {**holds, "T": True, "F": False}.get(relation)


def _is_pointer(lower: str, state: State) -> bool:
    """Whether a register and the next hold a pointer from the parameters."""
    match = re.fullmatch(r"(U?R)(\d+)", lower)
    if match is None:
        return False
    upper = state.values.get(f"{match[1]}{int(match[2]) + 1}")
    value = state.values.get(lower)
    return isinstance(value, Parameter) and upper == Parameter(value.offset + 4)


def _not(a: Predicate) -> Predicate:
    return not a if isinstance(a, bool) else None


def _and(a: Predicate, b: Predicate) -> Predicate:
    if a is False or b is False:
        return False
    return True if a is True and b is True else None


def _lookup(inputs: Sequence[Predicate], table: int) -> Predicate:
    """A function of three predicates: bit 4a + 2b + c of the table."""
    places = [0]
    for value in inputs:
        options = [int(value)] if isinstance(value, bool) else [0, 1]
        places = [2 * place + option for place in places for option in options]
    results = {table >> place & 1 for place in places}
    return bool(results.pop()) if len(results) == 1 else None


def _arithmetic(base: str, opcode: str, operands: Sequence[str], state: State) -> Value:
    """Result of the integer instructions that decide branches; None of any other."""
    modifiers = opcode.split(".")[1:]
    sources = [op for op in operands[1:] if not _PREDICATE.match(op)]
    conditions = [op for op in operands[1:] if _PREDICATE.match(op)]
    known = [state.value(op) for op in sources]
    if base in ("MOV", "R2UR"):
        return known[0]
    if base == "HFMA2" and sources[:2] == ["-RZ", "RZ"]:  # how the compiler loads some numbers
        halves = struct.pack("<2e", float(sources[3]), float(sources[2]))
        return int.from_bytes(halves, "little")
    if base == "SEL" and conditions:
        chosen = state.predicate(conditions[0])
        if isinstance(chosen, bool):
            return known[0] if chosen else known[1]
        return None
    if base == "IMAD" and not {"WIDE", "HI", "X"} & set(modifiers):
        a, b, c = known[:3]
        if a == 0 or b == 0:
            return c
        if isinstance(a, int) and isinstance(b, int) and isinstance(c, int):
            return (a * b + c) & _BITS
        return None
    numbers = [value for value in known if isinstance(value, int)]
    if len(numbers) < len(known):
        return None
    if base in ("IADD3", "IADD", "VIADD") and "X" not in modifiers:
        return sum(numbers) & _BITS
    if base in ("IMNMX", "VIMNMX") and conditions:
        chosen = state.predicate(conditions[0])
        pair = numbers if "U32" in modifiers else [_signed(n) for n in numbers]
        if isinstance(chosen, bool):
            return (min(pair) if chosen else max(pair)) & _BITS
    if base == "SHF" and len(numbers) == 3:
        low, shift, high = numbers
        shift = min(shift, 32) if "W" not in modifiers else shift & 31
        if "L" in modifiers and high == 0 and "HI" not in modifiers:
            return low << shift & _BITS
        if "R" in modifiers and "HI" in modifiers and low == 0:
            return (_signed(high) if "S32" in modifiers else high) >> shift & _BITS
    if base == "LEA" and "X" not in modifiers:
        if "HI" in modifiers and len(numbers) == 4 and "SX32" not in modifiers:
            a, b, c, shift = numbers
            return ((c << 32 | a) >> (32 - shift)) + b & _BITS
        if "HI" not in modifiers and len(numbers) == 3:
            a, b, shift = numbers
            return (a << shift) + b & _BITS
    return None


@dataclass(frozen=True)
class Step:
    """One instruction of a path; `executed` is False where its guard is known not to hold."""

    instruction: Instruction
    executed: bool


@dataclass(frozen=True)
class Path:
    """What one warp runs through."""

    steps: tuple[Step, ...]
    ended: bool  # it reached an EXIT
    loops: int  # loops whose number of rounds was not known
    assumed: int  # branches that went where the work is

    @property
    def instructions(self) -> int:
        """Issued, but for NOPs."""
        return sum(step.instruction.base != "NOP" for step in self.steps)


def follow(
    program: Sequence[Instruction],
    *,
    base: int,
    parameters: Mapping[int, int] | None = None,
    rounds: int = 1,
    limit: int = 200_000,
) -> Path:
    """The path of one warp whose tile is inside the map.

    Args:
        program: instructions of one function, from its first.
        base: offset of the first parameter in the constant bank.
        parameters: the known ones, 32 bits each, by offset.
        rounds: of a loop whose number of rounds is not known.
        limit: steps after which the path is given up.
    """
    turned: dict[int, bool] = {}
    while True:
        walk = Follower(program, dict(parameters or {}), base, rounds, limit, turned)
        path = walk.run()
        stores = any(step.executed and step.instruction.base == "STG" for step in path.steps)
        others = [place for place in walk.to_the_work if place not in turned]
        if stores or not path.ended or not others:
            return path
        # What stores nothing is the way of a warp without a tile: it parted from the others at the
        # last branch on the unknown.
        turned[others[-1]] = not walk.to_the_work[others[-1]]


def _is_branch(instruction: Instruction) -> bool:
    """A call under a condition is a branch too: so the compiler leaves some loops."""
    return instruction.base == "BRA" or (instruction.base == "CALL" and bool(instruction.guard))


def _taken(branch: Instruction, state: State) -> Predicate:
    """By the guard of a branch, and the predicate among its operands (`BRA.U !UP0, 0x80`)."""
    result = state.predicate(branch.guard) if branch.guard else True
    for name in (op for op in branch.operands[:-1] if _PREDICATE.match(op)):
        result = _and(result, state.predicate(name))
    return result


class Follower:
    def __init__(
        self,
        program: Sequence[Instruction],
        parameters: Mapping[int, int],
        base: int,
        rounds: int,
        limit: int,
        turned: Mapping[int, bool],
    ) -> None:
        self.program = program
        self.state = State(parameters, base)
        self.first_thread = State(parameters, base, thread=0)
        self.rounds = rounds
        self.limit = limit
        self.place = {ins.address: i for i, ins in enumerate(program)}
        self.successors = [tuple(self._successors(i)) for i in range(len(program))]
        self.turned = turned  # branches on the unknown that are decided: whether they are taken
        self.to_the_work: dict[int, bool] = {}  # those met
        self.rounds_left: dict[int, int] = {}
        self.stays_by: dict[int, bool | None] = {}
        self.loops: set[int] = set()  # branches that decide about a loop by what is not known

    def run(self) -> Path:
        steps: list[Step] = []
        returns: list[int] = []
        i = 0
        ended = False
        while 0 <= i < len(self.program) and len(steps) < self.limit:
            ins = self.program[i]
            guard = self.state.predicate(ins.guard) if ins.guard else True
            steps.append(Step(ins, guard is not False))
            if ins.base == "EXIT" and guard is True:
                ended = True
                break
            if _is_branch(ins) and guard is not False:
                if ins.target not in self.place:
                    break
                i = self.place[ins.target] if self.branch(i) else i + 1
            elif ins.base == "CALL" and guard is not False:
                if ins.target not in self.place:
                    break
                returns.append(i + 1)
                i = self.place[ins.target]
            elif ins.base == "RET" and guard is not False:
                if not returns:
                    break
                i = returns.pop()
            elif ins.base in ("BRX", "JMX", "JMP") and guard is not False:
                break
            else:
                self.state.execute(ins)
                self.first_thread.execute(ins)
                i += 1
        return Path(tuple(steps), ended, len(self.loops), len(self.to_the_work))

    def branch(self, i: int) -> bool:
        """Whether the branch at place i is taken."""
        ins = self.program[i]
        if ins.opcode.startswith(("BRA.DIV", "BRA.CONV")):
            return ins.opcode.startswith("BRA.CONV")  # the lanes of a warp stay together
        taken = _taken(ins, self.state)
        if isinstance(taken, bool):
            return taken
        assert ins.target is not None
        target = self.place[ins.target]
        if i not in self.stays_by:
            self.stays_by[i] = self._stays_by(i, target)
        stays = self.stays_by[i]
        if stays is not None:
            # All lanes go through as many rounds as the first one, or nearly.
            first = _taken(ins, self.first_thread)
            if isinstance(first, bool):
                return first
            self.loops.add(i)
            left = self.rounds_left.pop(i, self.rounds - 1)
            if left > 0:
                self.rounds_left[i] = left - 1
            return stays == (left > 0)
        if i not in self.to_the_work:
            self.to_the_work[i] = self.turned.get(i, self._goes_to_the_work(i, target))
        return self.to_the_work[i]

    def _stays_by(self, i: int, target: int) -> bool | None:
        """Whether a loop goes on where the branch at i is taken (True) or not (False); None for one
        that does not decide about a loop."""
        if target <= i:
            return True
        after = self.program[i + 1]
        if after.base == "BRA" and not after.guard and self.place.get(after.target or 0, i) < i:
            return False
        comes_back = [i in self._reach(start) for start in (target, i + 1)]
        return None if comes_back[0] == comes_back[1] else comes_back[0]

    def _goes_to_the_work(self, i: int, target: int) -> bool:
        """Of the two sides of a branch that with more instructions until they meet. A short one
        that calls a subroutine does not count: it is for division of unusual numbers."""
        taken, passed = self._reach(target, i), self._reach(i + 1, i)
        weights = [
            0 if len(side) < 16 and any(self._is_call(k) for k in side) else len(side)
            for side in (taken - passed, passed - taken)
        ]
        return weights[0] > weights[1]

    def _is_call(self, i: int) -> bool:
        return self.program[i].base == "CALL" and not _is_branch(self.program[i])

    def _reach(self, start: int, stop: int | None = None) -> frozenset[int]:
        """Places that can be reached from one, without passing another."""
        seen: set[int] = set()
        ahead = [start]
        while ahead:
            i = ahead.pop()
            if i in seen or i == stop or i >= len(self.program):
                continue
            seen.add(i)
            ahead.extend(self.successors[i])
        return frozenset(seen)

    def _successors(self, i: int) -> Iterator[int]:
        ins = self.program[i]
        if ins.base in ("EXIT", "RET", "BRX"):
            if ins.guard:
                yield i + 1
        elif _is_branch(ins):
            if ins.target in self.place:
                yield self.place[ins.target]
            if ins.guard or any(_PREDICATE.match(op) for op in ins.operands[:-1]):
                yield i + 1
        else:
            yield i + 1
