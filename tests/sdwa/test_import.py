"""Importing: torch alone, and the libraries found from the repository's root and elsewhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sdwa
from sdwa import extension
from sdwa.extension import build_info
from sdwa.info import describe

ROOT = Path(__file__).parents[2]
needs_build_info = pytest.mark.skipif(
    build_info() is None, reason="nothing is compiled: run `pip install .`"
)

IMPORTS = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import sdwa
print([str(w.message) for w in caught])
from sdwa.info import describe
print(describe())
"""


def python(code: str, folder: Path | str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_import_brings_torch_and_nothing_more():
    code = """
import sys, torch, torch.utils.flop_counter
before = {name.split(".")[0] for name in sys.modules}
import sdwa
print(sorted({name.split(".")[0] for name in sys.modules} - before))
"""
    assert python(code, ROOT) == "['sdwa']"


def installed() -> bool:
    """sdwa can be imported from outside the repository."""
    return python("import importlib.util; print(importlib.util.find_spec('sdwa'))", "/") != "None"


@pytest.mark.parametrize("folder", ["root", "elsewhere"])
def test_compiled_library_is_found(folder, tmp_path):
    if folder == "elsewhere" and not installed():
        pytest.skip("sdwa is not installed: run `pip install .`")
    code = "import sdwa; print(sdwa.available_backends()['cpu'], sdwa.__file__)"
    printed = python(code, ROOT if folder == "root" else tmp_path)
    assert printed.startswith("() ")
    if folder == "root":  # the source folder shadows the installed package
        assert str(ROOT / "sdwa") in printed


@needs_build_info
def test_library_of_other_sources_is_said(tmp_path):
    shutil.copytree(ROOT / "sdwa", tmp_path / "sdwa")  # with the libraries, if they lie there
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    assert "other sources" not in python(IMPORTS, tmp_path)
    with (tmp_path / "csrc" / "library.cpp").open("a") as file:
        file.write("// changed\n")
    warned, *info = python(IMPORTS, tmp_path).splitlines()
    assert "other sources" in warned and "pip install ." in warned
    assert any("other sources" in line for line in info)


def test_folders_that_cannot_be_looked_into_are_passed_over():
    code = "import sys; sys.path.insert(1, '/' + 'n' * 300); import sdwa; print(sdwa.__version__)"
    assert python(code, ROOT) == sdwa.__version__


@needs_build_info
def test_all_that_is_compiled_is_of_one_build(tmp_path):
    """Another build's module further down the path is not asked what the libraries are."""
    copy_of_package(tmp_path)
    other = tmp_path / "other" / "sdwa"
    other.mkdir(parents=True)
    (other / f"_build{extension.EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
    look = f"import sys\nsys.path.append({str(other.parent)!r})\n{IMPORTS}"
    warned, *info = python(look, tmp_path).splitlines()
    assert warned == "[]"
    assert build_info().compiler in "\n".join(info)


def test_info_tells_versions_and_backends():
    printed = subprocess.run(
        [sys.executable, "-m", "sdwa.info"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert sdwa.__version__ in printed
    for backend in sdwa.available_backends():
        assert backend in printed


def test_info_into_a_pipe_that_is_read_no_further():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "sdwa.info"], stdout=pipe, stderr=subprocess.PIPE, cwd=ROOT
        )
    assert (done.returncode, done.stderr) == (141, b"")


@needs_build_info
def test_info_tells_what_was_built():
    assert build_info().instruction_sets in describe()


@needs_build_info
def test_build_is_told_in_any_python(monkeypatch):
    told = build_info()
    assert told.source_digest and told.compiler
    monkeypatch.setattr(extension, "EXTENSION_SUFFIXES", [".another-python.so"])
    assert build_info.__wrapped__() == told


def copy_of_package(folder: Path) -> Path:
    """A copy of the package with its libraries, whose record of what was built is the file."""
    package = folder / "sdwa"
    shutil.copytree(ROOT / "sdwa", package, ignore=shutil.ignore_patterns("_build.*"))
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    if not (package / "_lib").exists():
        found = extension.find("_lib")
        if found is None:
            pytest.skip("nothing is compiled: run `pip install .`")
        shutil.copytree(found, package / "_lib")
    return package


@pytest.mark.parametrize(
    ("record", "error"),
    [
        (b"", "Expecting value"),
        (b"[1]", "must be a mapping"),
        (b"{}", "missing 6 required"),
        (b'{"another": 1}', "unexpected keyword argument 'another'"),
        (b"\xff", "can't decode byte"),
    ],
)
def test_unreadable_record_of_the_build_is_told(tmp_path, monkeypatch, record, error):
    file = tmp_path / "build.json"
    file.write_bytes(record)
    monkeypatch.setattr(extension, "find", lambda name: file if name.endswith(".json") else None)
    told = build_info.__wrapped__()
    assert error in told and "pip install ." in told


def test_unreadable_module_of_the_build_is_said(tmp_path):
    package = copy_of_package(tmp_path)
    (package / f"_build{extension.EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
    warned, *info = python(IMPORTS, tmp_path).splitlines()
    for text in (warned, "\n".join(info)):
        assert "cannot be read" in text and "pip install ." in text
    assert ["cpu", "usable"] in [line.split() for line in info]


def test_library_that_cannot_be_loaded_says_why(tmp_path):
    package = copy_of_package(tmp_path)
    (package / "_lib" / "libsdwa_cpu.so").write_bytes(b"")
    assert "libsdwa_cpu.so cannot be loaded: " in (printed := python(IMPORTS, tmp_path))
    assert "file too short" in printed


def test_library_of_another_version_is_said(tmp_path):
    package = copy_of_package(tmp_path)
    # One that defines nothing.
    shutil.copy(torch._C.__file__, package / "_lib" / "libsdwa_cpu.so")
    assert "has no attention_forward_kernel" in python(IMPORTS, tmp_path)
