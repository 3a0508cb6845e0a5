"""Registers and memory of the compiled CUDA kernels, read from the library without a GPU."""

from __future__ import annotations

import pytest

from benchmarks.gpu import cuda_resources as resources


@pytest.fixture(scope="module")
def kernels():
    """Of two architectures at most: disassembling all takes a minute."""
    try:
        listed = [*resources.read_kernels(arch=86), *resources.read_kernels(arch=90)]
        return listed or resources.read_kernels()
    except resources.Missing as error:
        pytest.skip(str(error))


def test_no_kernel_spills(kernels):
    spilling = [k for k in kernels if k.spills or k.stack]
    assert not [k for k in spilling if k.is_special], resources.table(spilling)


def test_special_kernels_are_there(kernels):
    for arch in {kernel.arch for kernel in kernels}:
        names = " ".join(k.name for k in kernels if k.arch == arch and k.is_special)
        for wanted in (
            "forward_matrix<BFloat16, 3",
            "backward_matrix<Float16, 7",
            "forward_strip<",
        ):
            assert wanted in names, f"sm_{arch}"


def test_rows_are_read_16_bytes_at_a_time(kernels):
    for kernel in kernels:
        if "_matrix<" in kernel.name and "64 features" in kernel.name and "16 bytes" in kernel.name:
            assert kernel.wide_loads >= 28, kernel
            assert kernel.wide_stores >= 4, kernel
            assert kernel.matrix >= 48, kernel


def test_a_missing_library_is_one_line(tmp_path, capsys):
    assert resources.main(["--library", str(tmp_path / "none.so")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
