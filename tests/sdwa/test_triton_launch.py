"""What is decided before a launch of the Triton kernels: tables, block shapes, limits."""

import threading
from importlib import metadata

import pytest
import torch

pytest.importorskip("triton")

from sdwa.backends import triton as backend
from sdwa.backends.triton import launch
from sdwa.backends.triton.blocks import (
    PASSES,
    SHAPES,
    Shape,
    candidates,
    choose_blocks,
    choose_shape,
    chunk_width,
    fit_blocks,
)
from sdwa.backends.triton.geometry import head_table, head_tiles
from sdwa.backends.triton.launch import (
    MAX_EXTENT,
    MAX_REACH,
    Windows,
    alignment,
    attention_plan,
    delta_plan,
    needs_index_64,
    reasons,
)


def windows(*kernel_size):
    return Windows.of(kernel_size, False, False, (False, False))


@pytest.mark.parametrize(
    "package, version, reason",
    [
        ("triton", "3.6.0", None),
        ("triton", "3.5.1", "triton 3.5.1 is too old, 3.6 or newer is needed"),
        ("triton-rocm", "3.10.0+git1", None),  # as PyTorch's wheels for AMD have it
        ("pytorch-triton-rocm", "3.4.0", "pytorch-triton-rocm 3.4.0 is too old"),
        ("triton-of-others", "1.0", None),
    ],
)
def test_triton_is_found_under_any_name(monkeypatch, package, version, reason):
    def version_of(name):
        if name != package:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", version_of)
    found = backend._find_triton()
    assert found is None if reason is None else found.startswith(reason)


def test_missing_triton_is_said(monkeypatch):
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    assert backend._find_triton() == "triton is not installed, 3.6 or newer is needed"


def test_head_table():
    # (dilation_h, dilation_w, rows of a short phase, phases with one more, strips of a phase)
    assert head_table((1, 1), 7, 7, 1) == ((1, 1, 7, 0, 7),)
    assert head_table((1, 1), 7, 7, 4) == ((1, 1, 7, 0, 2),)
    assert head_table((2, 3), 7, 7, 2) == ((2, 3, 3, 1, 2),)
    assert head_table((3, 2), 7, 9, 2) == ((3, 2, 2, 1, 3),)
    assert head_table((9, 100), 4, 5, 2) == ((4, 5, 1, 0, 1),)
    assert head_table((1, 1, 2, 2), 2, 3, 1) == ((1, 1, 2, 0, 3), (2, 2, 1, 0, 2))


def test_tiles():
    table = head_table((1, 1, 3, 3), 7, 7, 2)  # 4 strips in a row, and 3 phases of 2
    assert head_tiles(table, 7, 4, 4) == (2, 4)  # columns of 4 strips, 7 lines each: 1, and 2
    assert head_tiles(table, 7, 8, 8) == (1, 1)
    assert head_tiles(table, 7, 16, 2) == (1, 2)


def test_chunk_width():
    head_dims = (1, 2, 3, 5, 8, 16, 20, 24, 48, 60, 64, 96, 100, 256)
    assert [chunk_width(d, 1) for d in head_dims] == [
        *(1, 2, 4, 8, 8, 16, 32, 32, 64, 64, 64, 128, 128, 256)
    ]
    assert [chunk_width(d, 3) for d in head_dims] == [
        *(1, 2, 4, 8, 8, 8, 8, 8, 16, 32, 32, 32, 64, 128)
    ]


@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize("element_size", [2, 4])
@pytest.mark.parametrize(
    "kernel_size", [(1, 1), (3, 3), (1, 9), (5, 5), (7, 3), (13, 13), (15, 15)]
)
def test_every_problem_has_blocks(which, element_size, kernel_size):
    for head_dim in range(1, 257):
        for height, width in ((1, 1), (7, 7), (56, 56), (1, 300)):
            blocks = choose_blocks(which, element_size, head_dim, kernel_size, height, width)
            powers = (blocks.block_h, blocks.block_w, blocks.block_d, blocks.warps)
            assert all(n & (n - 1) == 0 for n in powers), blocks
            assert -(-head_dim // blocks.block_d) <= 4
            lanes = max(1, blocks.block_d * element_size // 16)
            assert blocks.block_h * blocks.block_w * lanes <= max(32 * blocks.warps, lanes)


def test_shapes_by_window():
    assert choose_shape("forward", 2, (1, 9)) == SHAPES["forward", 3, 2]
    assert choose_shape("backward", 2, (1, 9)) == SHAPES["backward", 13, 2]
    assert choose_shape("backward", 4, (5, 3)) == SHAPES["backward", 5, 4]
    assert choose_shape("forward", 4, (7, 7)) == SHAPES["forward", 7, 4]
    assert choose_shape("forward", 2, (15, 15)) == SHAPES["forward", 13, 2]


@pytest.mark.parametrize("kernel_size", [(3, 3), (5, 5), (3, 5)])
def test_both_passes_add_features_in_one_order(kernel_size):
    """In float32, so that the scores that lse is of come out the same again."""
    forward, backward = (choose_shape(which, 4, kernel_size) for which in PASSES)
    assert forward.lane_bytes == backward.lane_bytes
    for head_dim in range(1, 257):
        assert chunk_width(head_dim, forward.chunks) == chunk_width(head_dim, backward.chunks)


@pytest.mark.parametrize("kernel_size", [(3, 3), (5, 5)])
def test_tuning_keeps_that_order(kernel_size):
    for which in PASSES:
        known = choose_shape(which, 4, kernel_size)
        tried = candidates(which, 4, kernel_size)
        assert len(tried) > 1
        assert {(s.chunks, s.lane_bytes) for s in tried} == {(known.chunks, known.lane_bytes)}


@pytest.mark.parametrize("refused", (1, 10**6))
def test_tuning_passes_over_what_is_refused(monkeypatch, refused):
    """The fastest of what runs; what is chosen anyway, and not for good, where nothing does."""
    tried = []

    def do_bench(run, warmup, rep):
        tried.append(run)
        if len(tried) <= refused:
            raise RuntimeError("more registers than there are")
        return 1 + len(tried) % 2

    monkeypatch.setattr("triton.testing.do_bench", do_bench)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(launch, "_FASTEST", {})
    size = (1, 8, 8, 2, 16)
    problem = (size, ((2048, 256, 32, 16),) * 3, 4, windows(3, 3), (1, 1, 2, 2))
    plan = launch._fastest_plan("forward", problem, torch.float32, (True,), None)
    if refused == 1:
        assert plan in launch._FASTEST.values()
    else:
        assert plan == attention_plan("forward", *problem) and not launch._FASTEST


def test_alignment():
    assert alignment([(448, 64, 16, 0)]) == 16
    assert alignment([(480, 60, 20, 4), (0, 0, 0, 0)]) == 4
    assert alignment([(21, 7, 3, 1)]) == 1
    assert alignment([(0, 0, 0, 0)]) == 16


def test_wide_maps_take_64_bit_offsets():
    contiguous = ((2**28 * 16, 2**14 * 16, 16, 16),)
    assert not needs_index_64((1, 2**12, 2**14, 1, 16), contiguous)
    assert needs_index_64((1, 2**14, 2**14, 1, 16), contiguous)
    arguments, grid = delta_plan((1, 2, 2**26, 1, 16), (2**33, 2**32, 64, 0), 2)
    assert arguments["INDEX_64"]
    assert grid == (2 * arguments["blocks"],)


def test_small_maps_take_small_tiles():
    blocks = fit_blocks(Shape(4, 1, 2, 8, 16), 2, 64, 1, 1)
    assert blocks == (1, 1, 1, 64, 1, None)  # block_h, block_w, strip, block_d, warps, registers


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 1, MAX_EXTENT + 1, 1, 1), "height, width and heads up to"),
        ((1, MAX_EXTENT + 1, 1, 1, 1), "height, width and heads up to"),
        ((1, 1, 1, MAX_EXTENT + 1, 1), "height, width and heads up to"),
        ((1, 1, 2**22, 16, 17), r"elements in a row \(width \* heads \* head_dim\)"),
        ((2**31, 1, 1, 1, 1), "programs"),
    ],
)
@pytest.mark.parametrize("which, tensors", [("forward", 3), ("backward", 4)])
def test_maps_beyond_32_bits_are_refused(which, tensors, shape, message):
    strides = ((shape[1] * shape[2], shape[2], 1, 1),) * tensors
    with pytest.raises(ValueError, match=message):
        attention_plan(which, shape, strides, 2, windows(3, 3), (1, 1))
    assert len(reasons(shape, 2, windows(3, 3), (1, 1))) == 1
    if message != "programs":
        with pytest.raises(ValueError, match=message):
            delta_plan(shape, strides[0], 2)


@pytest.mark.parametrize(
    "shape, kernel_size, dilation",
    [
        ((1, 2**26, 1, 1, 1), (255, 1), (2**25, 1)),  # the taps come round to the map again
        ((1, 1, 2**26, 2, 1), (1, 255), (1, 1, 1, 2**31 - 1)),
        ((1, MAX_EXTENT, 1, 1, 1), (255, 1), (MAX_REACH // 514 + 1, 1)),
    ],
)
def test_windows_beyond_32_bits_are_refused(shape, kernel_size, dilation):
    (reason,) = reasons(shape, 2, windows(*kernel_size), dilation)
    assert "kernel_size 255 and dilation" in reason
    assert str(MAX_REACH) in reason


def test_the_largest_of_everything_is_taken():
    largest = 2**31 - 1
    assert reasons((1, 7, 7, 2, 64), 2, windows(255, 255), (largest,) * 4) == ()
    assert reasons((1, MAX_EXTENT, 1, 1, 1), 2, windows(13, 1), (largest, largest)) == ()
    assert reasons((1, MAX_EXTENT, 1, 1, 1), 2, windows(255, 1), (MAX_REACH // 514, 1)) == ()
    assert reasons((1, 1, 2**24, 1, 64), 4, windows(3, 3), (largest, largest)) == ()


def test_more_rows_than_a_grid_holds_are_refused():
    with pytest.raises(ValueError, match="programs"):
        delta_plan((2**25, 64, 1, 1, 1), (64, 1, 1, 1), 2)


def test_head_tables_are_kept_for_captures(monkeypatch):
    table, device = ((1, 1, 7, 0, 7),), torch.device("cuda", 0)
    kept = torch.zeros(1, 5)
    monkeypatch.setitem(launch._TABLES, (table, device), kept)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert launch._table_on(table, device) is kept


def test_head_tables_are_made_once_and_in_another_thread(monkeypatch):
    # CUDA graphs of torch.compile own what the calling thread allocates.
    made_in = []

    def tensor(*args, **options):
        made_in.append(threading.get_ident())
        return torch.zeros(1, 5)

    monkeypatch.setattr(launch, "_TABLES", {})
    monkeypatch.setattr(torch, "tensor", tensor)
    first, again = (launch._table_on(((1, 1, 7, 0, 7),), torch.device("cpu")) for _ in range(2))
    assert first is again
    assert len(made_in) == 1
    assert made_in[0] != threading.get_ident()
