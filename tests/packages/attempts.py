"""What is done with wheel and sdist in an environment."""

import json
import os
import shutil
from pathlib import Path

from tests.packages.archives import ROOT, older
from tests.packages.environment import Environment, assert_same

HEADER = ["Python", "PyTorch", "error, float64", "error, float32", "cfmrfn", "wheel", "sdist"]
GOLDEN = ROOT / "tests" / "sdwa" / "golden"
TOLERANCE = {"torch.float64": 1e-10, "torch.float32": 1e-5}  # those of the tests
# sys.argv: the folder of the environment, golden vectors.
TRY = """
import json, sys
import numpy, torch, sdwa
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
print(json.dumps(worst))
"""


class Attempt:
    """A row of the table; what is not reached says so."""

    def __init__(self) -> None:
        self.environment: Environment | None = None
        self.errors: dict[str, float] = {}
        self.told = {"cfmrfn": "FAILED", "wheel": "FAILED", "sdist": "not tried"}

    def row(self) -> list[str]:
        """For HEADER."""
        there = self.environment
        versions = [there.python_version, there.torch_version] if there else ["?", "?"]
        errors = [f"{self.errors[d]:.0e}" if d in self.errors else "?" for d in TOLERANCE]
        return [*versions, *errors, *self.told.values()]

    def wheel(self, wheel: Path, folder: Path) -> None:
        """Installs the wheel, tries it, installs it again, over an older one, and uninstalls it."""
        there = self.environment
        before = there.files()
        there.pip("install", "--no-deps", wheel)
        installed = there.files()
        say("installed")
        self.operator()
        self.network()
        say("tried")
        there.pip("install", "--no-deps", "--force-reinstall", wheel)
        assert_same(installed, there.files(), "installed a second time")
        say("installed a second time")
        self.uninstall(before)
        there.pip("install", "--no-deps", older(wheel, folder))
        there.pip("install", "--no-deps", "--upgrade", wheel)
        assert_same(installed, there.files(), "installed over an older one")
        say("installed over an older one")
        self.uninstall(before)
        self.told["wheel"] = "passed"

    def sdist(self, sdist: Path) -> None:
        """Compiles and installs with and without nvcc, as SDWA_BUILD_CUDA says."""
        self.told["sdist"] = "FAILED"
        there = self.environment
        nvcc = shutil.which("nvcc")
        folders = os.environ["PATH"].split(os.pathsep)
        path = os.pathsep.join(f for f in folders if not (Path(f) / "nvcc").exists())
        cases = [
            ({"PATH": path}, "none: no nvcc in PATH"),
            ({"SDWA_BUILD_CUDA": "0"}, "none: SDWA_BUILD_CUDA=0"),
            ({"SDWA_BUILD_CUDA": "1", "PATH": path}, None),
        ]
        if nvcc and "+cpu" in there.torch_version:
            cases += [({}, f"none: the building PyTorch {there.torch_version} has no CUDA")]
            cases += [({"SDWA_BUILD_CUDA": "1"}, None)]
        elif nvcc:
            cases += [({"SDWA_BUILD_CUDA": "1"}, "CUDA ")]
        before = there.files()
        for variables, kernels in cases:
            what = [f"{k}={v}" if k != "PATH" else "no nvcc" for k, v in variables.items()]
            what = ", ".join(what) or "nvcc there"
            said = there.pip(
                "install", "--no-deps", "--no-build-isolation", sdist,
                fails=kernels is None, **variables,
            )  # fmt: skip
            if kernels is None:
                why = "no nvcc in PATH" if "PATH" in variables else "has no CUDA"
                assert "SDWA_BUILD_CUDA=1, but " in said and why in said, said
                assert_same(before, there.files(), f"{what}, which fails")
                say(f"from the sdist, {what}: refused, and told why")
                continue
            self.operator(kernels)
            self.uninstall(before)
            say(f"from the sdist, {what}: {kernels}")
        self.told["sdist"] = f"passed, {len(cases)} builds"

    def operator(self, kernels: str = "") -> None:
        """Golden vectors on the CPU; info must say `kernels` of the CUDA kernels."""
        there = self.environment
        golden = [path for path in sorted(GOLDEN.glob("*.npz")) if "module_" not in path.name]
        venv = there.folder / "venv"
        *_, last = there.run("-W", "ignore", "-c", TRY, venv, *golden).strip().splitlines()
        self.errors = json.loads(last)
        for dtype, error in self.errors.items():
            assert error <= TOLERANCE[dtype], f"golden vectors in {dtype}: off by {error:.1e}"
        info = there.run("-m", "sdwa.info")
        lines = [line.split(maxsplit=1) for line in info.splitlines()]
        assert "  cpu          usable" in info and ["sources", "none here"] in lines, info
        cuda = next(line for line in info.splitlines() if line.startswith("CUDA kernels"))
        assert kernels in cuda, f"{cuda!r} must say {kernels!r}"
        compiled = "none: " not in cuda
        assert compiled == ("libsdwa_cuda.so is not compiled" not in info), info

    def network(self) -> None:
        """Imports cfmrfn and asks for help, where all that it needs is there."""
        there = self.environment
        checked = there.pip("check", fails=None).splitlines()
        unmet = [line for line in checked if line.startswith("sdwa ")]
        if unmet:
            assert all("is not installed" in line for line in unmet), "\n".join(unmet)
            needs = [line.split(" requires ")[1].split(",")[0] for line in unmet]
            self.told["cfmrfn"] = f"not tried, needs {needs[0]} and {len(needs) - 1} more"
            return
        there.run("-c", "import cfmrfn")
        for module in ("cfmrfn", "cfmrfn.train"):
            assert "usage: " in there.run("-m", module, "--help")
        self.told["cfmrfn"] = "starts"

    def uninstall(self, before: dict[str, str]) -> None:
        """Nothing may be left that was not there before."""
        self.environment.pip("uninstall", "-y", "sdwa")
        assert_same(before, self.environment.files(), "uninstalled")
        say("uninstalled without a trace")


def say(what: str) -> None:
    """Progress."""
    print(f"  {what}", flush=True)
