"""Times settings of environment variables that the CUDA library reads at every launch.

    python -m benchmarks.gpu.knobs SDWA_SLOTS=1 SDWA_SLOTS=2 SDWA_SLOTS=1,SDWA_WARPS=2

Needs a GPU, and a patched library of `benchmarks.gpu.variants`, which says what the variables do.
Of each shape, dtype and pass it prints the fraction of the copy bandwidth, without a setting first.
One process times all of them, so that they differ by nothing else.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import sdwa
from benchmarks import command_line, measure
from benchmarks.attention import draw, input_sets, make_call
from benchmarks.record import DTYPES, Measurement, UserError, start_record
from benchmarks.shapes import SHAPE_SETS

UNSET = "unset"
MOST_SETS = 3  # of inputs; enough that none is found in a cache


def parse_setting(text: str) -> dict[str, str]:
    """{"A": "1", "B": "2"} for "A=1,B=2", {} for "unset".

    Raises:
        UserError: it is something else.
    """
    if text == UNSET:
        return {}
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(name.startswith("SDWA_") and value for name, _, value in pairs):
        raise UserError(f"a setting must be such as SDWA_SLOTS=1,SDWA_WARPS=2; got {text!r}")
    return {name: value for name, _, value in pairs}


@contextmanager
def environment(setting: dict[str, str]) -> Iterator[None]:
    """Within it the variables are set, for compiled code too; afterwards they are not."""
    os.environ.update(setting)
    try:
        yield
    finally:
        for name in setting:
            del os.environ[name]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.knobs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="+", metavar="NAME=VALUE[,NAME=VALUE]")
    parser.add_argument("--shapes", default="paper,map14,map28,map56,map224", help="(%(default)s)")
    parser.add_argument("--dtypes", default="bfloat16,float32", help="(%(default)s)")
    parser.add_argument("--passes", default="forward,backward", help="(%(default)s)")
    parser.add_argument("--backend", default="cuda", help="(%(default)s)")
    parser.add_argument("--device", help="cpu or cuda (the GPU where there is one)")
    command_line.add_options(parser, seconds=0.03)
    options = parser.parse_args(arguments)
    device = command_line.choose_device(options.device)
    command_line.check_seconds(options.seconds)
    settings = {text: parse_setting(text) for text in (UNSET, *options.settings)}
    known = {shape.name: shape for group in SHAPE_SETS.values() for shape in group}
    record = start_record("knobs", device)
    shapes = command_line.choose("shape", options.shapes, known, record)
    dtypes = command_line.choose("dtype", options.dtypes, DTYPES, record)
    measure.note_limits(record, device, [DTYPES[dtype] for dtype in dtypes])
    bandwidth = record.setting["copy_bytes_per_second"]
    print("settings: " + "  ".join(settings))
    for name in shapes:
        shape = known[name].on(device)
        for dtype_name in dtypes:
            dtype = DTYPES[dtype_name]
            sets = min(MOST_SETS, input_sets(shape, dtype, device))
            inputs = [draw(shape, dtype, device) for _ in range(sets)]
            attend = partial(
                sdwa.sliding_dilated_window_attention,
                kernel_size=shape.kernel_size,
                dilation=shape.dilation,
                backend=options.backend,
            )
            for what in options.passes.split(","):
                calls = [make_call(attend, tensors, what) for tensors in inputs]
                fractions = []
                for text, setting in settings.items():
                    with environment(setting):
                        timing = measure.time_call(calls, device, seconds=options.seconds)
                    details = {
                        "fewest_bytes": shape.fewest_bytes(what, dtype),
                        "shape": shape.as_json(),
                    }
                    m = Measurement(name, text, what, dtype_name, timing, None, details)
                    record.measurements.append(m)
                    fractions.append(f"{m.per_second('fewest_bytes') / bandwidth:.3f}")
                print(f"{name} {dtype_name} {what}: {' '.join(fractions)}", flush=True)
                if options.json is not None:
                    record.save(options.json)
    return 0


if __name__ == "__main__":
    command_line.run_main(main)
