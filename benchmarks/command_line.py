"""What the tools' command lines share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from benchmarks.record import Record, UserError


def choose(option: str, names: str, known: Iterable[str], record: Record) -> list[str]:
    """The known ones of a list of names with commas between; the record notes the others.

    Raises:
        UserError: none is known.
    """
    known = tuple(known)
    asked = tuple(dict.fromkeys(names.split(",")))
    chosen = [name for name in asked if name in known]
    for name in asked:
        if name not in known:
            record.skip(f"unknown {option} {name!r}: known are {', '.join(known)}")
    if not chosen:
        raise UserError(f"{option} must be one of {', '.join(known)}; got {names!r}")
    return chosen


def add_options(
    parser: argparse.ArgumentParser, *, seconds: float | None = None, resume: bool = False
) -> None:
    """Adds the options that several tools share: --json, and where asked --seconds, --resume."""
    if seconds is not None:
        parser.add_argument(
            "--seconds", type=float, default=seconds, help="spent on each timing (%(default)s)"
        )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    if resume:
        parser.add_argument(
            "--resume",
            action="store_true",
            help="keep what FILE holds of this machine and commit, time the rest",
        )


def check_seconds(seconds: float) -> None:
    """Checks the option --seconds.

    Raises:
        UserError: it is not above 0 and below 60.
    """
    if not 0 < seconds < 60:
        raise UserError(f"--seconds must be above 0 and below 60, got {seconds:g}")


def choose_device(name: str | None) -> torch.device:
    """The device of that name; None: the GPU where PyTorch sees one, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device must be cpu or cuda, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device must be cpu or cuda, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA device")
    return device


def run_main(main: Callable[[], int | None]) -> None:
    """Runs a tool: a user's error becomes one line on stderr and exit status 2."""
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
