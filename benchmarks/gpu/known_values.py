"""What can be known of a warp's registers without running it.

Known are numbers that the code itself holds, and parameters that are told. A pointer among the
parameters that the code compares with null is optional (a bias, a key mask), and taken to be
absent. Everything that comes from memory, or differs between lanes, is unknown.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.gpu.machine_code import Instruction


@dataclass(frozen=True)
class Parameter:
    """32 bits of a kernel's parameters, which are not known."""

    offset: int


@dataclass(frozen=True)
class LowerHalf:
    """Truth: how the lower 32 bits of a pointer compare with 0; the upper are still to come."""

    offset: int


@dataclass(frozen=True)
class Bits:
    """A register of which some bits are known: the compiler keeps predicates in bits."""

    value: int
    known: int


Value = int | Bits | Parameter | None  # None: not known
Truth = bool | LowerHalf | None

_BITS = 0xFFFFFFFF
_CONSTANT = re.compile(r"c\[0x0\]\[(?:0x([0-9a-f]+))\]")
_REGISTER = re.compile(r"U?R(\d+)$")
_PREDICATE = re.compile(r"!?(U?P\d|U?PT)$")
_WITHOUT_RESULT = re.compile(
    r"(ST|RED|BRA|BRX|JM|EXIT|BSSY|BSYNC|BAR|DEPBAR|LDGDEPBAR|LDGSTS|NOP|WARPSYNC|MEMBAR|CCTL|CALL"
    r"|RET|ERRBAR|BREAK|YIELD|NANOSLEEP|BMOV|ACQBULK)"
)


def is_predicate(operand: str) -> bool:
    return _PREDICATE.match(operand) is not None


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
    predicates: dict[str, Truth] = field(default_factory=dict)

    def predicate(self, name: str) -> Truth:
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
            if is_predicate(operand):
                self.predicates.pop(operand, None)
            elif not seen_register:
                seen_register = True
                for name in _registers(operand, _results(instruction)):
                    self.values.pop(name, None)
            else:
                break

    def _compute(self, instruction: Instruction) -> tuple[dict[str, Value], dict[str, Truth]]:
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

    def _logic(self, operands: Sequence[str]) -> tuple[dict[str, Value], dict[str, Truth]]:
        """LOP3: a function of three registers bit by bit, and whether any bit of it is set."""
        is_set = operands[0] if is_predicate(operands[0]) else None
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
    ) -> tuple[dict[str, Value], dict[str, Truth]]:
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


def _compare(opcode: str, operands: Sequence[str], state: State) -> Truth:
    modifiers = opcode.split(".")[1:]
    a, b = state.value(operands[2]), state.value(operands[3])
    relation = modifiers[0]
    result: Truth = None
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
        return both(result, other)
    if "OR" in modifiers:
        inverse = both(_not(result), _not(other))
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


def _not(a: Truth) -> Truth:
    return not a if isinstance(a, bool) else None


def both(a: Truth, b: Truth) -> Truth:
    """Whether both hold."""
    if a is False or b is False:
        return False
    return True if a is True and b is True else None


def _lookup(inputs: Sequence[Truth], table: int) -> Truth:
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
    sources = [op for op in operands[1:] if not is_predicate(op)]
    conditions = [op for op in operands[1:] if is_predicate(op)]
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
