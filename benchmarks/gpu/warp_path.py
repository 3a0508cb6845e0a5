"""The path that one warp takes through a kernel's instructions.

`follow` walks from the first instruction to the EXIT. What a branch depends on is computed where it
can be known (`known_values`); a branch on the unknown goes where the work is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.gpu.known_values import State, Truth, both, is_predicate
from benchmarks.gpu.machine_code import Instruction


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


def _taken(branch: Instruction, state: State) -> Truth:
    """By the guard of a branch, and the predicate among its operands (`BRA.U !UP0, 0x80`)."""
    result = state.predicate(branch.guard) if branch.guard else True
    for name in (op for op in branch.operands[:-1] if is_predicate(op)):
        result = both(result, state.predicate(name))
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
            if ins.guard or any(is_predicate(op) for op in ins.operands[:-1]):
                yield i + 1
        else:
            yield i + 1
