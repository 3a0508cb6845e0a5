"""One wheel under several Pythons and PyTorches: `python -m benchmarks.wheel WHEEL PYTHON ...`.

Each PYTHON is a command that starts an interpreter with pip, PyTorch and NumPy, such as
"python3.12" or "env PYTHONPATH=FOLDER python3.12". The wheel is installed into a folder of its own,
without dependencies, and tried on the CPU: the golden vectors of the tests, forward and backward in
float64 and float32, and what `python -m sdwa.info` prints. The table is Markdown; the status is 1
where something failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.markdown import table

GOLDEN = Path(__file__).parents[1] / "tests" / "sdwa" / "golden"
VERSIONS = """
import json, platform, torch
print(json.dumps([platform.python_version(), torch.__version__]))
"""
# sys.argv: the folder that the wheel was installed into, golden vectors.
TRY = """
import json, sys
sys.path.insert(0, sys.argv[1])
import numpy, torch, sdwa, sdwa.info
assert sdwa.__file__.startswith(sys.argv[1]), sdwa.__file__
worst = {}
for path in sys.argv[2:]:
    arrays = {name: torch.from_numpy(numpy.asarray(a)) for name, a in numpy.load(path).items()}
    for dtype in (torch.float64, torch.float32):
        given = [arrays[name].to(dtype).requires_grad_() for name in ("query", "key", "value")]
        out = sdwa.sliding_dilated_window_attention(
            *given, int(arrays["kernel_size"]), tuple(arrays["dilation"].tolist()), backend="cpu"
        )
        results = (out, *torch.autograd.grad(out, given, arrays["grad_out"].to(dtype)))
        for name, result in zip(("out", "grad_query", "grad_key", "grad_value"), results):
            right = arrays[name]
            error = ((result.detach().double() - right).norm() / right.norm()).item()
            worst[str(dtype)] = max(error, worst.get(str(dtype), 0.0))
print(json.dumps([worst, sdwa.available_backends(), sdwa.info.describe()]))
"""
TOLERANCE = {"torch.float64": 1e-10, "torch.float32": 1e-5}  # those of the tests


def run(command: list[str], folder: str) -> str:
    """What a command prints, from a folder that holds no source of the package."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command[:3])} failed:\n{done.stdout}{done.stderr}")
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def try_wheel(
    wheel: Path, python: list[str], folder: str
) -> tuple[str, str, float, dict[str, float]]:
    """Version of Python and of PyTorch, seconds that installing takes, largest relative errors."""
    python_version, torch_version = json.loads(run([*python, "-c", VERSIONS], folder))
    target = str(Path(folder) / "installed")
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "--target", target, str(wheel)]
    begin = time.perf_counter()
    run([*python, *install], folder)
    seconds = time.perf_counter() - begin
    golden = [str(p) for p in sorted(GOLDEN.glob("*.npz")) if not p.name.startswith("module_")]
    printed = run([*python, "-W", "ignore", "-c", TRY, target, *golden], folder)
    worst, backends, info = json.loads(printed)
    if backends["cpu"] or "compiled with" not in info:
        raise RuntimeError(f"the CPU kernels are off:\n{info}")
    for dtype, error in worst.items():
        if not error <= TOLERANCE[dtype]:
            raise RuntimeError(f"golden vectors in {dtype}: off by {error:.1e}, relative")
    return python_version, torch_version, seconds, worst


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wheel", description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("python", nargs="+", help="command that starts an interpreter")
    options = parser.parse_args()
    wheel = options.wheel.resolve()
    rows, failed = [], False
    for command in options.python:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            try:
                python, torch, seconds, worst = try_wheel(wheel, shlex.split(command), folder)
            except (RuntimeError, OSError) as error:
                print(f"{command}: {error}", file=sys.stderr)
                failed = True
                continue
        errors = [f"{worst[dtype]:.0e}" for dtype in TOLERANCE]
        rows.append([python, torch, f"{seconds:.1f}", *errors])
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB\n")
    header = ["Python", "PyTorch", "installed in, s", "error, float64", "error, float32"]
    print(table(header, rows))
    sys.exit(failed)


if __name__ == "__main__":
    main()
