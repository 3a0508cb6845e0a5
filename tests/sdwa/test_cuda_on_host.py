"""The CUDA kernels' own source on the host: blocks of fibers, under two sanitizers.

Outputs are poisoned with NaN first, reads outside an array and races in shared memory end the run,
and every problem runs in two orders of the threads whose results must agree bit for bit.
"""

from __future__ import annotations

import random
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.sdwa import cuda_on_host
from tests.sdwa.assertions import assert_results_match
from tests.sdwa.cases import CASES, GOLDEN, Case, draw

ROOT = Path(__file__).parents[2]
MISSING = cuda_on_host.missing_tools()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# What only these kernels tell apart: tiles, phases, chunks of features, access widths.
EXTRA = (
    Case("window_3_wide_rows", (1, 9, 6, 2, 192), dilation=(1, 2)),
    Case("window_5_head_dim_60", (1, 9, 8, 2, 60), kernel_size=5, dilation=(1, 2), bias=True),
    Case("window_7_head_dim_64", (1, 10, 9, 2, 64), kernel_size=7, dilation=(1, 3), bias=True),
    Case("window_7_head_dim_28", (1, 9, 9, 1, 28), kernel_size=7, padding_mode="masked", bias=True),
    Case("window_5_head_dim_100", (1, 7, 9, 1, 100), kernel_size=5, dilation=2, bias=True),
    Case(
        "window_5_head_dim_64_key_mask",
        (1, 9, 7, 2, 64),
        kernel_size=5,
        dilation=(1, 2),
        padding_mode="masked",
        key_mask=True,
    ),
    Case("window_3_head_dim_128_key_mask", (1, 5, 7, 1, 128), bias=True, key_mask=True),
    Case("window_7x3", (1, 6, 7, 2, 16), kernel_size=(7, 3), dilation=(2, 1), bias=True),
    Case("unaligned_view", (1, 5, 6, 3, 16), dilation=(1, 2, 2), layout="strided"),
    Case(
        "more_heads_than_a_launch", (2, 3, 3, 70, 8), dilation=tuple(1 + n % 3 for n in range(70))
    ),
    # The sum of the bias' gradient in two launches, and with more taps than a block has threads.
    Case("window_7_many_tiles", (2, 24, 20, 2, 8), kernel_size=7, dilation=(1, 2), bias=True),
    Case("window_17_bias", (1, 6, 7, 1, 4), kernel_size=17, dilation=3, bias=True),
    Case("one_phase_a_pixel", (2, 5, 4, 2, 32), dilation=(9, 4), bias=True),
    Case(
        "window_255x1_masked",
        (1, 11, 3, 1, 4),
        kernel_size=(255, 1),
        dilation=3,
        padding_mode="masked",
    ),
    Case("window_1x255_masked", (1, 2, 9, 1, 8), kernel_size=(1, 255), padding_mode="masked"),
    # Whole maps.
    Case("map_8x8", (2, 8, 8, 4, 64), dilation=(1, 2, 3, 4), bias=True),
    Case("map_7x7_window_5", (1, 7, 7, 4, 48), kernel_size=5, dilation=(1, 2, 3, 4)),
    Case(
        "map_8x8_window_5",
        (1, 8, 8, 4, 32),
        kernel_size=5,
        dilation=(1, 2, 3, 7),
        bias=True,
        key_mask=True,
        padding_mode="masked",
    ),
    Case("map_7x7_window_7", (1, 7, 7, 4, 64), kernel_size=7, dilation=(1, 2, 3, 9), bias=True),
    Case(
        "map_7x8_window_7_masked",
        (1, 7, 8, 3, 24),
        kernel_size=7,
        dilation=(1, 2, 3),
        padding_mode="masked",
    ),
    Case("map_1x8", (2, 1, 8, 3, 32), dilation=(1, 3, 8), bias=True),
    Case("map_2x3", (2, 2, 3, 3, 16), kernel_size=5, dilation=(1, 2, 4), bias=True),
    Case(
        "map_5x6_by_axis",
        (1, 5, 6, 3, 8),
        dilation=((1, 3), (3, 1), (5, 6)),
        bias=True,
        key_mask=True,
    ),
    Case(
        "map_nothing_left",
        (1, 7, 8, 3, 40),
        dilation=(1, 2, 3),
        bias=True,
        strictly_causal=True,
        padding_mode="masked",
        key_mask=True,
        layout="packed",
    ),
    Case("maps_of_many_heads", (2, 2, 5, 70, 8), dilation=tuple(1 + n % 3 for n in range(70))),
    # Small maps that are cut into tiles: too narrow for that, or just beyond it.
    Case("tiles_8x1", (2, 8, 1, 3, 32), dilation=(1, 3, 8), bias=True),
    Case("tiles_5x3", (1, 5, 3, 3, 16), kernel_size=5, dilation=(1, 2, 4), bias=True),
    Case("tiles_9x9", (2, 9, 9, 4, 64), dilation=(1, 2, 3, 4), bias=True, key_mask=True),
    Case(
        "tiles_nothing_left",
        (1, 9, 7, 2, 24),
        kernel_size=5,
        dilation=(1, 2),
        bias=True,
        strictly_causal=True,
        padding_mode="masked",
    ),
)


def fuzz(count: int, seed: int) -> list[tuple[Case, torch.dtype]]:
    rng = random.Random(seed)
    drawn = []
    for number in range(count):
        heads = rng.choice((1, 2, 3, 5))
        shape = (
            rng.choice((1, 1, 2, 3)),
            rng.randint(1, 14),
            rng.randint(1, 14),
            heads,
            rng.choice((1, 4, 7, 8, 12, 16, 20, 24, 30, 32, 40, 48, 60, 64, 72, 80, 96, 128)),
        )
        bias = rng.random() < 0.5
        case = Case(
            f"fuzz_{number}",
            shape,
            kernel_size=rng.choice((3, 3, 3, 5, 7, 1, (3, 5), (9, 3))),
            dilation=tuple((rng.randint(1, 4), rng.randint(1, 4)) for _ in range(heads)),
            bias=bias,
            strictly_causal=bias and rng.random() < 0.4,
            key_mask=rng.random() < 0.4,
            scale=rng.choice((None, None, 0.0, 1.3, -0.4)),
            padding_mode=rng.choice(("zeros", "masked", "shifted")),
            is_causal=rng.choice((False, False, False, True, (True, False))),
            layout=rng.choice(("contiguous", "packed", "strided", "heads_first")),
        )
        drawn.append((case, rng.choice((torch.float32, torch.bfloat16, torch.float16))))
    return drawn


def keeps(case: Case, dtype: torch.dtype) -> bool:
    """float64 shares one kernel with the other types: a few cases of it suffice."""
    return dtype != torch.float64 or case.name in (
        "paper",
        "bias_masked",
        "window_3x5",
        "head_dim_3",
    )


PROBLEMS = {
    f"{case}-{str(dtype).removeprefix('torch.')}": (case, dtype)
    for case, dtype in [
        *((case, dtype) for case in (*CASES, *EXTRA) for dtype in DTYPES if keeps(case, dtype)),
        *fuzz(90, seed=1),
    ]
}


RIGHT = "own_word", "warp_barrier", "block_barrier", "halves_of_a_word", "copies", "older_group"
# The small kernels of races.cpp that are wrong, and what must be said of them.
WRONG = {
    "read_of_another_lane": r"reads .*, which lane \d+ of warp \d wrote with no",
    "read_of_another_warp": r"reads .*, which lane \d+ of warp \d wrote with no",
    "read_of_a_word_half_of_another_lane": r"reads .*, which lane \d+ of warp \d wrote with no",
    "write_of_what_another_lane_read": r"writes .*, which lane \d+ of warp \d read with no",
    "write_of_what_a_warp_read": r"writes .*, which several lanes of warp \d read with no",
    "write_of_what_another_warp_read": r"writes .*, which lane \d+ of warp \d read with no",
    "write_of_what_both_warps_read": "writes .*, which several lanes of several warps read with no",
    "writes_of_a_warp": r"writes .*, which lane \d+ of warp \d wrote with no",
    "writes_of_two_warps": r"writes .*, which lane \d+ of warp \d wrote with no",
    "writes_of_a_half": r"writes .*, which lane \d+ of warp \d wrote with no",
    "read_before_the_wait": r"lane (\d+) of warp \d reads .*, which lane \1 of .* may still",
    "read_without_a_commit": r"lane (\d+) of warp \d reads .*, which lane \1 of .* may still",
    "read_of_a_pending_group": r"lane (\d+) of warp \d reads .*, which lane \1 of .* may still",
    "barrier_without_a_wait": r"reads .*, which lane \d+ of warp \d may still",
    "barrier_before_the_wait": r"reads .*, which lane \d+ of warp \d wrote with no",
    "write_before_the_wait": r"writes .*, which lane \d+ of warp \d may still",
    "copy_before_the_wait": r"copies to .*, which lane \d+ of warp \d may still",
    "copy_to_what_another_lane_read": r"copies to .*, which lane \d+ of warp \d read with no",
    "copy_at_the_end": "the thread ends without having waited for its copies",
    "never_written": "reads .*, which the block has not written",
    "written_by_an_earlier_block": "reads .*, which the block has not written",
    "outside": "writes bytes 1280 to 1283 of shared memory, of which there are 1280",
    "not_aligned": "writes bytes 4 to 11 of shared memory, which are not aligned",
    "without_the_functions": "SEGV",
}


@pytest.mark.parametrize("schedule", (0, 1))
@pytest.mark.parametrize(("name", "message"), [*dict.fromkeys(RIGHT).items(), *WRONG.items()])
def test_races_in_shared_memory(name, message, schedule, programs):
    command = [programs / "races", name, str(schedule)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) == (message is None), done.stderr
    assert message is None or re.search(message, done.stderr), done.stderr


def golden(path: Path) -> tuple[Case, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    with np.load(path) as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    kernel, dilation = int(tensors.pop("kernel_size")), tuple(tensors.pop("dilation").tolist())
    case = Case(path.stem, tuple(tensors["query"].shape), kernel_size=kernel, dilation=dilation)
    given = {name: tensors.pop(name) for name in ("query", "key", "value", "grad_out")}
    return case, given, tensors


@pytest.fixture(scope="session")
def programs():
    return cuda_on_host.build(ROOT / "build" / "cuda_on_host")


@pytest.fixture(scope="session")
def tensors():
    return {name: draw(case, dtype) for name, (case, dtype) in PROBLEMS.items()}


def in_both_orders(programs, folder, tensors, names, shared):
    """Results of problems in both orders of the threads, side by side."""
    given = [(PROBLEMS[name][0], tensors[name]) for name in names]
    with ThreadPoolExecutor(2) as pool:
        both = pool.map(
            lambda order: cuda_on_host.run(programs, folder, given, order, shared=shared), (0, 1)
        )
        return dict(zip(names, zip(*both, strict=True), strict=True))


@pytest.fixture(scope="session")
def results(programs, tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulated")
    return in_both_orders(programs, folder, tensors, list(PROBLEMS), cuda_on_host.RTX_3090)


# What a GPU with more shared memory stages otherwise shows in these as well.
ON_H100 = [
    name
    for name, (case, dtype) in PROBLEMS.items()
    if dtype in (torch.float32, torch.bfloat16) and not case.name.startswith("fuzz")
]


@pytest.fixture(scope="session")
def results_on_h100(programs, tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulated_h100")
    return in_both_orders(programs, folder, tensors, ON_H100, cuda_on_host.H100)


def assert_matches(name, result, tensors):
    case, dtype = PROBLEMS[name]
    assert_results_match(case, dtype, tensors[name], result)


@pytest.mark.parametrize("name", PROBLEMS)
def test_matches_float64(name, results, tensors):
    assert_matches(name, results[name][0], tensors)


@pytest.mark.parametrize("name", ON_H100)
def test_matches_float64_on_h100(name, results_on_h100, tensors):
    assert_matches(name, results_on_h100[name][0], tensors)


def assert_same_bits(result, expected):
    for output, tensor in expected.items():
        assert torch.equal(result[output].view(torch.uint8), tensor.view(torch.uint8)), output


@pytest.mark.parametrize("name", PROBLEMS)
def test_order_of_threads_does_not_matter(name, results):
    assert_same_bits(*results[name])


@pytest.mark.parametrize("name", ON_H100)
def test_order_of_threads_does_not_matter_on_h100(name, results_on_h100):
    assert_same_bits(*results_on_h100[name])


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.npz")), ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
def test_golden(path, dtype, programs, tmp_path):
    if path.stem.startswith("module"):
        pytest.skip("a whole layer, not an operator")
    case, given, expected = golden(path)
    given = {name: tensor.to(dtype) for name, tensor in given.items()}
    (result,) = cuda_on_host.run(programs, tmp_path, [(case, given)], 0)
    limit = 1e-10 if dtype == torch.float64 else 1e-5
    for name, tensor in expected.items():
        assert (result[name].double() - tensor).norm() <= limit * tensor.norm(), name


def test_no_grad_lse_is_zero_grad_lse(programs, tensors, tmp_path):
    chosen = ["paper-bfloat16", "bias-bfloat16", "bias-float32", "window_11x9-float32"]
    with_zeros = [
        (
            PROBLEMS[name][0],
            {**tensors[name], "grad_lse": torch.zeros_like(tensors[name]["grad_lse"])},
        )
        for name in chosen
    ]
    without = [
        (case, {key: tensor for key, tensor in given.items() if key != "grad_lse"})
        for case, given in with_zeros
    ]
    for zero, none in zip(
        cuda_on_host.run(programs, tmp_path, with_zeros, 0),
        cuda_on_host.run(programs, tmp_path, without, 0),
        strict=True,
    ):
        assert all(torch.equal(zero[output], none[output]) for output in zero)


@pytest.mark.parametrize("name", ("paper-bfloat16", "window_5-bfloat16"))
def test_layout_does_not_change_the_result(name, programs, tmp_path):
    case = replace(PROBLEMS[name][0], layout="heads_first")
    given = draw(case, torch.bfloat16)
    packed = {name: tensor.contiguous() for name, tensor in given.items()}
    strided, contiguous = cuda_on_host.run(programs, tmp_path, [(case, given), (case, packed)], 0)
    assert all(torch.equal(strided[output], contiguous[output]) for output in strided)


@pytest.mark.parametrize("name", ("paper-bfloat16", "paper-float32", "window_7x3-bfloat16"))
def test_out_may_start_anywhere_in_its_storage(name, programs, tensors, tmp_path):
    """The backward pass reads it by whole rows too, 16 bytes at a time only where it is aligned."""
    case, dtype = PROBLEMS[name]
    (result,) = cuda_on_host.run(programs, tmp_path, [(case, tensors[name])], 0, out_shift=1)
    assert_results_match(case, dtype, tensors[name], result)


@pytest.mark.parametrize(
    "name", ("bias-bfloat16", "map_8x8-bfloat16", "bias-float32", "window_7x3-float32")
)
def test_a_bias_of_minus_infinity_leaves_taps_out(name, programs, tensors, tmp_path):
    case, dtype = PROBLEMS[name]
    bias = tensors[name]["bias"].clone()
    bias[:, 0] = float("-inf")
    given = {**tensors[name], "bias": bias}
    (result,) = cuda_on_host.run(programs, tmp_path, [(case, given)], 0)
    assert (result["grad_bias"][:, 0] == 0).all()
    assert_results_match(case, dtype, given, result)


@pytest.mark.parametrize(
    "name", ("map_nothing_left-bfloat16", "tiles_nothing_left-bfloat16", "nothing_left_3x7-float32")
)
def test_the_gradient_of_an_lse_of_minus_infinity_goes_nowhere(
    name, programs, tensors, results, tmp_path
):
    nothing = results[name][0]["lse"] == float("-inf")
    assert nothing.any()
    given = dict(tensors[name])
    given["grad_lse"] = given["grad_lse"].masked_fill(nothing, float("nan"))
    (result,) = cuda_on_host.run(programs, tmp_path, [(PROBLEMS[name][0], given)], 0)
    assert_same_bits(result, results[name][0])


@pytest.mark.parametrize(
    "name",
    ("key_mask-float16", "key_mask_masked-bfloat16", "key_mask-float32", "key_mask_9x3-float32"),
)
def test_what_a_masked_key_holds_does_not_matter(name, programs, tensors, results, tmp_path):
    """Its score may be far above those that count."""
    given = dict(tensors[name])
    left_out = ~given["key_mask"][..., None, None]
    given["key"] = given["key"].where(~left_out, 300 * given["key"])
    given["value"] = given["value"].where(~left_out, 7)
    (result,) = cuda_on_host.run(programs, tmp_path, [(PROBLEMS[name][0], given)], 0)
    assert_same_bits(result, results[name][0])
    left_out = left_out.expand_as(result["out"])
    assert (result["grad_key"][left_out] == 0).all()
    assert (result["grad_value"][left_out] == 0).all()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("kernel_size", (3, 7, (255, 3)), ids=str)
def test_a_dilation_beyond_the_map_may_be_of_any_size(kernel_size, dtype, programs, tmp_path):
    case = Case("beyond", (1, 4, 5, 2, 16), kernel_size=kernel_size, bias=True)
    given = draw(case, dtype)
    largest, just_beyond = cuda_on_host.run(
        programs,
        tmp_path,
        [(replace(case, dilation=step), given) for step in (2**31 - 1, ((4, 5), (4, 5)))],
        0,
    )
    assert_same_bits(largest, just_beyond)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_strides_may_be_beyond_32_bits(dtype, programs, tmp_path):
    case = Case("long_strides", (1, 1, 9, 2, 16), dilation=(1, 2))
    packed = draw(case, dtype)
    given = {
        name: tensor.as_strided(tensor.shape, (2**40, 2**40, *tensor.stride()[2:]))
        for name, tensor in packed.items()
        if name != "grad_lse"
    }
    given["grad_lse"] = packed["grad_lse"]
    (result,) = cuda_on_host.run(programs, tmp_path, [(case, given)], 0)
    assert_results_match(case, dtype, packed, result)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("width", (7, 9))
def test_the_stride_of_a_dimension_of_one_may_be_anything(width, dtype, programs, tmp_path):
    case = Case("one_row", (2, 1, width, 3, 16), dilation=(1, 2, 3))
    packed = draw(case, dtype)
    given = {
        name: tensor.as_strided(tensor.shape, (tensor.stride(0), 1, *tensor.stride()[2:]))
        for name, tensor in packed.items()
        if name != "grad_lse"
    }
    given["grad_lse"] = packed["grad_lse"]
    (result,) = cuda_on_host.run(programs, tmp_path, [(case, given)], 0)
    assert_results_match(case, dtype, packed, result)


def test_coordinates_beyond_32_bits_are_refused(programs, tmp_path):
    height = 8_000_000
    zeros = torch.zeros(1, 1, 1, 1, 1).expand(1, height, 1, 1, 1)
    case = Case("tall", tuple(zeros.shape), kernel_size=(255, 1), dilation=2**31 - 1)
    given = dict.fromkeys(("query", "key", "value", "grad_out"), zeros)
    message = "height 8000000 with kernel_size 255 and dilation 2147483647 along it"
    with pytest.raises(AssertionError, match=message):
        cuda_on_host.run(programs, tmp_path, [(case, given)], 0)


def test_the_bias_of_no_images_has_no_gradient(programs, tmp_path):
    case = Case("empty", (0, 3, 5, 2, 8), bias=True)
    given = draw(case, torch.float32)
    (result,) = cuda_on_host.run(programs, tmp_path, [(case, given)], 0)
    assert (result["grad_bias"] == 0).all()


DILATIONS = (1, 1, 2, 2, 2, 3, 3, 3)


@pytest.mark.parametrize(
    "batch, height, width, tile, dilations, limit",
    [
        (3, 7, 7, (4, 4), DILATIONS, None),
        (2, 28, 28, (4, 4), DILATIONS, 1.02),
        (1, 56, 56, (4, 4), DILATIONS, 1.02),
        (1, 112, 112, (4, 4), DILATIONS, 1.02),
        (1, 40, 40, (4, 4), tuple(1 + n % 3 for n in range(70)), None),
        (2, 13, 29, (8, 2), (1, 13, 5, 40), None),
        (1, 1, 300, (2, 4), (1, 7), None),
    ],
    ids=str,
)
def test_every_pixel_is_in_one_tile(batch, height, width, tile, dilations, limit, programs):
    """limit: of warps launched over those that have a tile on the map."""
    command = [programs / "tiles", *map(str, (batch, height, width, *tile, *dilations))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    launched, useful = map(int, done.stdout.split())
    assert limit is None or launched <= limit * useful, (launched, useful)
