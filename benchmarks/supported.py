"""Writes docs/pytorch.md, the table of what works in PyTorch, from what the tests show.

    python -m benchmarks.supported

Runs the tests below. A row is a test whose docstring names a feature, a column a backend among its
parameters. A test without that parameter runs on the CPU, with the backend chosen there.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks import markdown
from benchmarks.command_line import run_main
from benchmarks.record import ROOT, setting
from sdwa.backends import BACKENDS

FILES = [
    f"tests/sdwa/test_{name}.py"
    for name in (
        "compile",
        "export",
        "onnx",
        "tracing",
        "autocast",
        "functorch",
        "opcheck",
        "modules",
        "swap",
        "sharding",
    )
]
WITHOUT_PYTHON = """\
## Without Python

AOTInductor makes a package of a model, which a C++ program loads:

```python
program = torch.export.export(model, (image,))
torch._inductor.aoti_compile_and_package(program, package_path="model.pt2")
```

```cpp
torch::inductor::AOTIModelPackageLoader model("model.pt2");
std::vector<at::Tensor> out = model.run({image});
```

The program links `libtorch` and the file `_lib/libsdwa_cpu.so` of the installed package, which
holds the operators, with `-Wl,--no-as-needed`, or opens that file by `dlopen` before it loads the
model. No other file of `sdwa` is needed. `tests/sdwa/run_package.cpp` is a whole program, and
`tests/sdwa/test_export.py` compiles and runs it.

In a Python program, `torch.compile(model, options={"cpp_wrapper": True})` writes the calls between
the kernels in C++ as well. From PyTorch 2.13 on, the operators are called there without Python;
before, the wrapper calls operators that take lists by way of Python.
"""
FAILS, YES, NOT_RUN, NOT_ASKED = "**fails**", "yes", "not run", ""
INTRODUCTION = """\
# sdwa in PyTorch

What of PyTorch works with the operator and the layer, by backend: each row is a feature with tests
of its own in `tests/sdwa`. Yes: they pass. Empty: no test asks for it on that backend, because one
backend shows it for all, or because plain PyTorch needs nothing for it.
"""


class Outcome(NamedTuple):
    """How one test ended: "passed", "failed" or "skipped", and why it was skipped."""

    outcome: str
    reason: str


Outcomes = Mapping[str, Mapping[str, Sequence[Outcome]]]  # by feature, then by backend


class Collect:
    """A pytest plugin that gathers the outcomes of each feature."""

    def __init__(self) -> None:
        self.tests: dict[str, tuple[str, str]] = {}  # test -> feature, backend
        self.outcomes: dict[str, dict[str, list[Outcome]]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        on_cpu = next(b.name for b in BACKENDS if not b.unavailable(torch.device("cpu")))
        for item in items:
            text = getattr(item, "function", None).__doc__
            if text is None:
                continue
            backend = getattr(item, "callspec", None) and item.callspec.params.get("backend")
            feature = text.strip().splitlines()[0]
            if feature.endswith("."):
                raise pytest.UsageError(
                    f"a docstring of these files must name a feature, without a full stop: got "
                    f"{feature!r} of {item.nodeid}"
                )
            self.tests[item.nodeid] = feature, backend.name if backend else on_cpu
            self.outcomes.setdefault(feature, defaultdict(list))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        done = report.when == "call" or (report.when == "setup" and not report.passed)
        if done and report.nodeid in self.tests:
            feature, backend = self.tests[report.nodeid]
            reason = report.longrepr[2] if report.skipped else ""
            self.outcomes[feature][backend].append(Outcome(report.outcome, reason))


def cell(outcomes: Sequence[Outcome]) -> str:
    """One word for what came of a feature's tests on a backend."""
    found = {outcome for outcome, _ in outcomes}
    if "failed" in found:
        return FAILS
    if "passed" in found:
        return YES
    # Skipped since plain PyTorch has no operators of its own: as good as not asked.
    asked = any("plain PyTorch" not in reason for _, reason in outcomes)
    return NOT_RUN if asked else NOT_ASKED


def page(outcomes: Outcomes, setting: Mapping[str, Any]) -> str:
    """The whole file. Backends and features of which nothing was run are told in a sentence."""
    cells = {
        feature: {b.name: cell(by_backend.get(b.name, ())) for b in BACKENDS}
        for feature, by_backend in outcomes.items()
    }
    ran = (YES, FAILS)
    columns = [b.name for b in BACKENDS if any(row[b.name] in ran for row in cells.values())]
    rows = {feature: row for feature, row in cells.items() if any(w in ran for w in row.values())}
    left_out = [f"`{b.name}`" for b in BACKENDS if b.name not in columns]
    untried = [feature for feature in cells if feature not in rows]
    sentences = []
    if left_out:
        were = "was" if len(left_out) == 1 else "were"
        why = "" if torch.cuda.is_available() else ": the machine that made this page has no GPU"
        sentences.append(f"{' and '.join(left_out)} {were} not run{why}.")
    if untried:
        sentences.append(f"Without a test that ran here: {'; '.join(untried)}.")
    if any(row[name] == NOT_RUN for row in rows.values() for name in columns):
        sentences.append("Not run: the tests need what the machine that made this page lacks.")
    table = markdown.table(
        ["in PyTorch", *(f"`{name}`" for name in columns)],
        [[feature, *(row[name] for name in columns)] for feature, row in rows.items()],
    )
    made_by = f"Made by {markdown.provenance(setting)}"
    parts = [INTRODUCTION, " ".join(sentences), table, WITHOUT_PYTHON, made_by]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.supported",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs/pytorch.md", help="the page (docs/pytorch.md)"
    )
    options = parser.parse_args()
    collected = Collect()
    files = [str(ROOT / file) for file in FILES]
    status = pytest.main(["-q", "-n0", "--rootdir", str(ROOT), *files], plugins=[collected])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return int(status)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options.output.write_text(page(collected.outcomes, setting(device)), "utf-8")
    return int(status)


if __name__ == "__main__":
    run_main(main)
