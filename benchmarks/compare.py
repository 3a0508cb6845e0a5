"""Two files of results side by side: how many times the time of A does B take?

Takes what `python -m benchmarks.attention --json FILE` and its siblings write, and what
`pytest benchmarks/ --benchmark-only --benchmark-json FILE` writes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command_line import run_main
from benchmarks.record import Measurement, Record, Timing, UserError


def load(path: Path) -> Record:
    """Reads a file of results of either kind.

    Raises:
        UserError: it is neither.
    """
    try:
        entries = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(entries, dict) or "benchmarks" not in entries:
        return Record.load(path)
    measurements = []
    for test in entries["benchmarks"]:
        stats = test["stats"]
        # pytest-benchmark keeps quartiles; they stand in for the 20th and 80th percentile.
        seconds = (stats["q1"], stats["median"], stats["q3"])
        timing = Timing(*(1e3 * s for s in seconds), runs=stats["rounds"])
        measurements.append(Measurement(test["name"], "", "", "", timing))
    commit = (entries.get("commit_info") or {}).get("id") or "unknown"
    machine = (entries.get("machine_info") or {}).get("cpu", {}).get("brand_raw", "unknown")
    setting = {"commit": commit[:12], "machine": machine, "date": entries.get("datetime", "")}
    return Record("pytest", setting, measurements)


def ratios(a: Record, b: Record) -> dict[tuple[str, str, str, str], float]:
    """Time in b over time in a, both the median, of everything that both hold."""
    return {
        m.key: other.timing.p50_ms / m.timing.p50_ms
        for m in a.measurements
        if (other := b.find(m.key)) is not None
    }


def report(a: Record, b: Record, bound: float | None) -> str:
    """A line for each ratio, those above the bound marked, and what only one of them holds."""
    found = ratios(a, b)
    lines = [
        f"{side}: commit {r.setting['commit']}, {r.setting['date']}, {r.setting['machine']}"
        for side, r in (("A", a), ("B", b))
    ]
    if a.setting["machine"] != b.setting["machine"]:
        lines.append("warning: not the same machine")
    lines.append(f"{'B / A':>8} {'A ms':>10} {'B ms':>10}")
    for key, ratio in sorted(found.items(), key=lambda entry: -entry[1]):
        times = [r.find(key) for r in (a, b)]
        shown = " ".join(f"{t.timing.p50_ms:>10.3f}" for t in times if t is not None)
        mark = "  slower than allowed" if bound is not None and ratio > bound else ""
        lines.append(f"{ratio:>8.3f} {shown}  {' '.join(filter(None, key))}{mark}")
    mean = math.exp(sum(map(math.log, found.values())) / len(found))
    lines.append(f"{mean:>8.3f}  geometric mean of {len(found)}")
    for side, one, other in (("A", a, b), ("B", b, a)):
        alone = sum(other.find(m.key) is None for m in one.measurements)
        if alone:
            lines.append(f"only in {side}: {alone}")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", type=Path, metavar="A.json", help="results before")
    parser.add_argument("b", type=Path, metavar="B.json", help="results after")
    parser.add_argument(
        "--fail-above",
        type=float,
        metavar="RATIO",
        help="exit with status 1 if B takes more than RATIO times as long anywhere, such as 1.1",
    )
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse()
    bound = arguments.fail_above
    if bound is not None and not bound > 0:
        raise UserError(f"--fail-above must be above 0, got {bound:g}")
    a, b = load(arguments.a), load(arguments.b)
    found = ratios(a, b)
    if not found:
        raise UserError(f"{arguments.a} and {arguments.b} have no measurement in common")
    print(report(a, b, bound))
    return 1 if bound is not None and max(found.values()) > bound else 0


if __name__ == "__main__":
    run_main(main)
