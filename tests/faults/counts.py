"""What was tried, and what went wrong."""

import collections
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Counts:
    """Counts faults by kind, and keeps what they broke."""

    def __init__(self) -> None:
        self.tried: collections.Counter[str] = collections.Counter()
        self.broken: list[str] = []

    @contextmanager
    def trying(self, kind: str, what: str = "") -> Iterator[None]:
        """A fault; an error within it is one that it brought to light."""
        self.tried[kind] += 1
        try:
            yield
        except AssertionError as error:
            self.broken.append(f"{kind}, {what}: {error}")
            print(f"BROKEN  {self.broken[-1]}", flush=True)

    def part(self, name: str, do) -> None:
        """Runs a part, which is called with this object, and prints its counts."""
        before, broken, began = self.tried.copy(), len(self.broken), time.monotonic()
        do(self)
        for kind, count in (self.tried - before).items():
            print(f"{count:7,} {kind}")
        seconds = time.monotonic() - began
        print(f"        {name}: {len(self.broken) - broken} broken, {seconds:.0f} s", flush=True)
