"""setup.py: the GPU architectures that are compiled for, the tag of a wheel, what a wheel holds."""

import runpy
import subprocess
from pathlib import Path

import pytest
import setuptools
import torch

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="no setup.py beside the tests"
)
ALL = ["8.0", "8.6", "9.0", "10.0", "12.0+PTX"]


@pytest.fixture
def build(monkeypatch):
    """The names of setup.py."""
    for name in ("TORCH_CUDA_ARCH_LIST", "SDWA_BUILD_CUDA", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    return runpy.run_path(str(ROOT / "setup.py"))


def program(path: Path, printed: str) -> str:
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}\nEND\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def nvcc(tmp_path):
    """A compiler that knows these architectures."""
    known = ("50", "75", "80", "86", "89", "90", "100", "120")
    return program(tmp_path / "nvcc", "\n".join(f"compute_{number}" for number in known))


def see_gpus(monkeypatch, *capabilities):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])


@pytest.mark.parametrize(
    "gpus, chosen",
    [
        ([], ALL),
        ([(8, 6)], ["8.6+PTX"]),
        ([(9, 0), (8, 6), (9, 0)], ["8.6", "9.0+PTX"]),
        ([(12, 1)], ["12.0+PTX"]),  # too new for this nvcc
        ([(7, 5)], []),  # too old for the kernels
        ([(7, 5), (8, 9)], ["8.9+PTX"]),
    ],
)
def test_architectures_are_those_of_the_gpus_seen(build, nvcc, monkeypatch, gpus, chosen):
    see_gpus(monkeypatch, *gpus)
    architectures, why = build["choose_architectures"](nvcc)
    assert architectures == chosen
    assert all(f"{major}.{minor}" in why for major, minor in gpus)
    assert ("no GPU" in why) == (not gpus)


@pytest.mark.parametrize(
    "asked, chosen",
    [
        ("8.6", ["8.6"]),
        ("8.0 9.0a;12.0+PTX", ["8.0", "9.0", "12.0+PTX"]),
        ("5.2 7.5 8.6", ["8.6"]),  # as container images list them
        ("native", ["8.9+PTX"]),
        ("all", ALL),
        ("Ampere;Hopper+PTX", ["8.0", "8.6", "9.0+PTX"]),
        ("Blackwell", ["10.0", "12.0"]),  # those of it that this nvcc knows
        ("Pascal;Volta;Turing;Ampere", ["8.0", "8.6"]),
        ("6.0 6.1 7.0+PTX", []),
        ("Ampere+Tegra", []),
    ],
)
def test_architectures_asked_for(build, nvcc, monkeypatch, asked, chosen):
    see_gpus(monkeypatch, (8, 9))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    architectures, why = build["choose_architectures"](nvcc)
    assert architectures == chosen
    assert asked == "native" or asked in why


@pytest.mark.parametrize(
    "asked, said",
    [
        ("sm_86", "got 'sm_86'"),
        ("Fermi", "such as Ampere or Hopper; got 'Fermi'"),
        ("8.7", "names 8.7"),
        ("native", "PyTorch sees no GPU"),
    ],
)
def test_wrong_architectures_are_an_error(build, nvcc, monkeypatch, asked, said):
    see_gpus(monkeypatch)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    with pytest.raises(SystemExit, match=said):
        build["choose_architectures"](nvcc)


def test_code_of_all_architectures_is_made_once(build):
    assert build["gencode"](["8.6", "9.0+PTX"]) == [
        f"-gencode=arch=compute_86,code={code}" for code in ("sm_86", "sm_90", "compute_86")
    ]


@pytest.mark.parametrize(
    "needed, tag",
    [
        (["GLIBC_2.17", "GLIBCXX_3.4.21"], "manylinux_2_28"),
        (["GLIBC_2.34", "GLIBCXX_3.4.9"], "manylinux_2_34"),
        (["GLIBC_2.17", "GLIBCXX_3.4.30", "CXXABI_1.3.13"], "manylinux_2_35"),
        (["GLIBCXX_3.4.99"], None),
    ],
)
def test_wheel_is_tagged_by_its_symbols(build, tmp_path, monkeypatch, needed, tag):
    lines = "\n".join(f"  0x0010:   Name: {name}  Flags: none  Version: 2" for name in needed)
    program(tmp_path / "readelf", lines)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = build["manylinux_tag"]([tmp_path / "any.so"])
    assert found is None if tag is None else found.startswith(tag + "_")


@pytest.mark.parametrize("name", ("a b's", "$HOME $in"))
def test_folders_may_have_any_name(build, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "one.h").write_text("#define ONE 1\n")
    source = folder / "one.cpp"
    source.write_text("#include <one.h>\nint one() { return ONE; }\n")
    n = build["NinjaFile"](folder, build["host_compiler"]())
    compiled = n.make("cxx", "one.o", source, [n.built_in])
    n.make("link", folder / "libone.so", compiled, [f"-L{n.torch}"])
    n.close()
    ninja = Path(build["ninja"].BIN_DIR) / "ninja"
    subprocess.run([ninja], cwd=folder, check=True)
    assert (folder / "libone.so").exists()


def test_a_module_that_an_earlier_build_left_goes_into_no_wheel(build, tmp_path, monkeypatch):
    left = tmp_path / "lib" / "sdwa" / "removed.py"
    left.parent.mkdir(parents=True)
    left.touch()
    distribution = setuptools.Distribution({"name": "sdwa", "version": "0"})
    distribution.get_command_obj("build").build_lib = str(tmp_path / "lib")
    monkeypatch.setattr(build["bdist_wheel"], "run", lambda self: None)
    wheel = build["UniversalWheel"](distribution)
    wheel.ensure_finalized()
    wheel.run()
    assert not left.exists()


def build_kernels(build, folder):
    """The command that compiles into `folder`."""
    command = build["BuildKernels"](setuptools.Distribution())
    command.build_lib, command.build_temp = str(folder), str(folder / "work")
    command.ensure_finalized()
    command.run()


def test_a_build_that_fails_leaves_the_facts_of_the_one_before(build, tmp_path, monkeypatch, capfd):
    # It says its version, and compiles nothing.
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && echo a compiler\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("SDWA_BUILD_CUDA", "0")
    facts = tmp_path / "sdwa" / "_lib" / "build.json"
    facts.parent.mkdir(parents=True)
    facts.write_text("those before")
    with pytest.raises(SystemExit, match="compiling the kernels failed"):
        build_kernels(build, tmp_path)
    assert facts.read_text() == "those before"
    assert not list(tmp_path.glob("sdwa/_build*"))


@pytest.mark.parametrize("compiler", ("no-such-compiler", "false"))
def test_what_is_no_compiler_is_said(build, tmp_path, monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(SystemExit, match=f"'{compiler}' is no C.. compiler .* CXX"):
        build_kernels(build, tmp_path)


@pytest.mark.parametrize("asked, strict", [("", False), ("0", False), ("1", True)])
def test_warnings_are_errors_where_that_is_asked(build, tmp_path, monkeypatch, asked, strict):
    monkeypatch.setenv("SDWA_WERROR", asked)
    n = build["NinjaFile"](tmp_path, "c++")
    n.close()
    assert ("-Werror" in n.host) == strict


def test_sources_go_into_the_sdist(build):
    files = build["SOURCE_FILES"]
    assert {"csrc/library.cpp", "csrc/cpu/simd.h", "csrc/cuda/forward_map.cu"} <= set(files)
