"""torch.export and AOTInductor."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._inductor.utils import fresh_cache

import sdwa
from sdwa import extension

ROOT = Path(__file__).parents[2]

# PyTorch's own, when it is first asked for an export.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script"),
    pytest.mark.filterwarnings("ignore:The given buffer is not writable"),
]


def layer(backend):
    torch.manual_seed(0)
    return sdwa.SlidingDilatedWindowAttention(
        16, 2, dilation=(1, 2), relative_bias=True, backend=backend
    ).eval()


def export(module, device="cpu"):
    x = torch.randn(3, 5, 6, 16, device=device)
    batch = torch.export.Dim("batch", min=1, max=512)
    return torch.export.export(module, (x,), dynamic_shapes={"x": {0: batch}})


def test_export(backend, tmp_path):
    """`torch.export`, dynamic batch, saved and loaded"""
    module = layer(backend.name).to(backend.device_type)
    program = export(module, backend.device_type)
    torch.export.save(program, tmp_path / "layer.pt2")
    loaded = torch.export.load(tmp_path / "layer.pt2").module()
    for batch in (1, 3, 8):
        x = torch.randn(batch, 5, 6, 16, device=backend.device_type)
        torch.testing.assert_close(loaded(x), module(x))


def test_export_decomposes_into_standard_operators():
    """decompositions for exporters, `torch._decomp`"""
    if sdwa.available_backends("cpu")["cpu"]:
        pytest.skip("the CPU kernels are not compiled")
    program = export(layer("cpu"))
    assert any("sdwa" in str(node.target) for node in program.graph.nodes)
    operators = [
        getattr(torch.ops.sdwa, f"attention_{way}").default for way in ("forward", "backward")
    ]
    decomposed = program.run_decompositions(torch._decomp.get_decompositions(operators))
    assert not any("sdwa" in str(node.target) for node in decomposed.graph.nodes)
    x = torch.randn(2, 5, 6, 16)
    torch.testing.assert_close(decomposed.module()(x), program.module()(x))


def test_aot_inductor(tmp_path, monkeypatch):
    """AOTInductor: packaged, loaded and run by another process, and by a C++ program"""
    if sdwa.available_backends("cpu")["cpu"]:
        pytest.skip("the CPU kernels are not compiled")
    monkeypatch.setenv("CI", "true")  # makes Inductor strict about operators with a decomposition
    module = layer("cpu")
    with fresh_cache():
        package = torch._inductor.aoti_compile_and_package(
            export(module), package_path=str(tmp_path / "layer.pt2")
        )
    x = torch.randn(7, 5, 6, 16)
    with torch.no_grad():
        torch.save({"x": x, "y": module(x)}, tmp_path / "tensors.pt")
        of_ones = module(torch.ones_like(x)).sum().item()
    code = f"""
import torch
import torch._inductor.codecache  # which PyTorch 2.10 needs and does not import
import sdwa  # brings the operators
run = torch._inductor.aoti_load_package({package!r})
tensors = torch.load({str(tmp_path / "tensors.pt")!r})
torch.testing.assert_close(run(tensors["x"]), tensors["y"])
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    if compiler := shutil.which("g++"):
        assert_runs_without_python(compiler, package, of_ones, tmp_path / "run_package")


def assert_runs_without_python(compiler, package, expected, program):
    torch_folder = Path(torch.__file__).parent
    headers = [torch_folder / "include", torch_folder / "include/torch/csrc/api/include"]
    libraries = [torch_folder / "lib", extension.find("_lib")]
    command = [
        *(compiler, "-std=c++20", "-Wl,--no-as-needed", "-o", program),
        *(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",),
        *(f"-I{folder}" for folder in headers),
        *(Path(__file__).with_name("run_package.cpp"),),
        *(f"-L{folder}" for folder in libraries),
        *(f"-Wl,-rpath,{folder}" for folder in libraries),
        *("-ltorch", "-ltorch_cpu", "-lc10", "-lsdwa_cpu"),
    ]
    subprocess.run(command, check=True)
    done = subprocess.run([program, package], check=True, capture_output=True, text=True)
    assert float(done.stdout) == pytest.approx(expected, rel=1e-4)
