"""Writes the README's table of what is supported, from the tests and their parameters.

    python -m benchmarks.supported

Runs the tests below. A row is a test whose docstring names a feature, a column a backend among its
parameters. A test without that parameter runs on the CPU, with the backend chosen there.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.measure import ROOT, UserError, run_main
from sdwa.backends import BACKENDS

FILES = [
    f"tests/sdwa/test_{name}.py"
    for name in ("compile", "export", "onnx", "autocast", "functorch", "opcheck", "swap")
]
BEGIN, END = "<!-- supported:begin -->", "<!-- supported:end -->"
FAILS, YES, NOT_RUN, NOTHING = "**fails**", "yes", "not run", ""


class Collect:
    """A pytest plugin that gathers the outcomes of each feature."""

    def __init__(self) -> None:
        self.features: dict[str, tuple[str, str]] = {}
        self.outcomes: dict[str, dict[str, list[tuple[str, str]]]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        on_cpu = next(b.name for b in BACKENDS if not b.unavailable(torch.device("cpu")))
        for item in items:
            text = getattr(item, "function", None).__doc__
            if text is None:
                continue
            backend = getattr(item, "callspec", None) and item.callspec.params.get("backend")
            feature = text.strip().splitlines()[0]
            self.features[item.nodeid] = feature, backend.name if backend else on_cpu
            self.outcomes.setdefault(feature, defaultdict(list))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        done = report.when == "call" or (report.when == "setup" and not report.passed)
        if done and report.nodeid in self.features:
            feature, backend = self.features[report.nodeid]
            reason = report.longrepr[2] if report.skipped else ""
            self.outcomes[feature][backend].append((report.outcome, reason))


def cell(outcomes: list[tuple[str, str]]) -> str:
    """One word for what came of a feature's tests on a backend."""
    found = {outcome for outcome, _ in outcomes}
    if "failed" in found:
        return FAILS
    if "passed" in found:
        return YES
    # Nothing was asked, or nothing needs to be: plain PyTorch has no operators of its own.
    return NOTHING if all("plain PyTorch" in reason for _, reason in outcomes) else NOT_RUN


def table(collected: Collect) -> str:
    """The Markdown table, sorted as the tests are."""
    names = [backend.name for backend in BACKENDS]
    lines = ["| in PyTorch | " + " | ".join(f"`{name}`" for name in names) + " |"]
    lines.append("|---|" + "---|" * len(names))
    for feature, outcomes in collected.outcomes.items():
        cells = [cell(outcomes[name]) for name in names]
        lines.append(f"| {feature} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rewrite(path: Path, text: str) -> None:
    """Puts text between the markers of a file.

    Raises:
        UserError: it has not both markers, once.
    """
    old = path.read_text("utf-8")
    if old.count(BEGIN) != 1 or old.count(END) != 1:
        raise UserError(f"{path} must hold {BEGIN} and {END} once each")
    head, rest = old.split(BEGIN)
    path.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.supported", description=__doc__)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args()
    collected = Collect()
    arguments: list[Any] = ["-q", "--rootdir", str(ROOT), *(str(ROOT / file) for file in FILES)]
    status = pytest.main(arguments, plugins=[collected])
    note = (
        'What the tests showed. "not run": this machine has no such device; empty: they do not ask '
        "it of that backend. Made by `python -m benchmarks.supported`.\n\n"
    )
    rewrite(options.readme, note + table(collected))
    return int(status)


if __name__ == "__main__":
    run_main(main)
