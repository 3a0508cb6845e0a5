"""The Triton kernels on the CPU, in Triton's interpreter.

Triton decides when it is imported whether it interprets, so this file runs itself in a process of
its own: the one test that pytest sees here starts the others.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import sdwa
from sdwa.arguments import make_problem
from sdwa.backends.triton import reasons_unavailable
from sdwa.backends.triton.blocks import MAX_STRIP, power_of_two
from sdwa.dispatch import BackendError, select
from tests.sdwa.assertions import assert_matches_float64, error, run
from tests.sdwa.cases import CASES, GOLDEN, Case, draw
from tests.sdwa.geometry_table import AXES, MIRRORED, TAP_COUNTS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GOLDEN_PATHS = sorted(p for p in GOLDEN.glob("*.npz") if not p.name.startswith("module_"))

# Of an axis of up to 7 pixels.
KEY_MASK = (True, False, True, True, False, False, True)

if INTERPRETED:
    from triton.runtime.interpreter import interpreter_builder

    from sdwa.backends.triton import launch
    from sdwa.backends.triton.launch import MAX_EXTENT, MAX_REACH
    from tests.sdwa.geometry_in_triton import owned_pixels, reach_of, scores_of, sources_of

    # Lanes beyond the map divide by an empty sum; what they get is never stored.
    pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

    # Else the interpreter spends a third of its time on overflows that it does not report.
    OVERFLOW_STOPS = replace(interpreter_builder.options, debug=True, sanitize_overflow=True)
    interpreter_builder.options = replace(OVERFLOW_STOPS, debug=False, sanitize_overflow=False)
else:

    @pytest.mark.timeout(3600)  # of all tests below; each has the usual time
    def test_interpreted_kernels():
        if missing := [r for r in reasons_unavailable("cuda") if "triton" in r]:
            pytest.skip(missing[0])
        root = Path(__file__).parents[2]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-n0", "-q", "-x", "--no-header", __file__],
            env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(root)},
            cwd=root,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        print(done.stdout.strip().splitlines()[-1])


def interpreted(test):
    """Leaves a test out of the process that does not interpret."""
    test.__test__ = INTERPRETED
    return test


@pytest.fixture
def fresh_plans():
    """Launches are planned anew in the test, and once more after it."""
    plans = (launch.attention_plan, launch.delta_plan, launch.reasons)
    for plan in plans:
        plan.cache_clear()
    yield
    for plan in plans:
        plan.cache_clear()


@interpreted
@pytest.mark.parametrize("axis", AXES.values(), ids=AXES)
def test_taps_read_what_the_table_says(axis):
    sources, on_map = sources_of(axis.kernel_size, axis.dilation, axis.length)
    assert tuple(map(tuple, sources)) == axis.sources
    assert on_map == [[mark == "#" for mark in marks] for marks in axis.on_map]


@interpreted
@pytest.mark.parametrize("key_mask", (None, KEY_MASK))
@pytest.mark.parametrize("masked", (False, True))
@pytest.mark.parametrize("axis", AXES.values(), ids=AXES)
def test_taps_count_as_the_table_says(axis, masked, key_mask):
    def counts(source, mark):
        if mark == "#":
            return TAP_COUNTS[True, masked] and (key_mask is None or key_mask[source])
        return TAP_COUNTS[False, masked]

    kept = key_mask and key_mask[: axis.length]
    scores = scores_of(
        axis.kernel_size, axis.dilation, axis.length, masked=masked, mirrored=False, key_mask=kept
    )
    assert scores == [
        [
            tap if counts(source, mark) else float("-inf")
            for tap, (source, mark) in enumerate(zip(sources, marks, strict=True))
        ]
        for sources, marks in zip(axis.sources, axis.on_map, strict=True)
    ]


@interpreted
@pytest.mark.parametrize("key_mask", (None, KEY_MASK))
@pytest.mark.parametrize("axis", AXES.values(), ids=AXES)
def test_mirrored_taps_count_for_a_key_that_is_kept(axis, key_mask):
    size = axis.kernel_size
    kept = key_mask and key_mask[: axis.length]
    scores = scores_of(size, axis.dilation, axis.length, masked=False, mirrored=True, key_mask=kept)
    assert scores == [
        [tap if key_mask is None or key_mask[key] else float("-inf") for tap in MIRRORED[size]]
        for key in range(axis.length)
    ]


@interpreted
@pytest.mark.parametrize("strip", (1, 2, 3))
@pytest.mark.parametrize("axis", AXES.values(), ids=AXES)
def test_pixels_are_numbered_phase_by_phase(axis, strip):
    length, dilation = axis.length, axis.dilation
    # A column as wide as the map, so that a line is a row.
    strips = owned_pixels((dilation, dilation), length, length, strip, 1, power_of_two(2 * length))
    order = [pixel for phase in axis.phases for pixel in phase]
    assert [pixel for queries in strips for pixel in queries] == [
        (y, x) for y in order for x in order
    ]


@interpreted
def test_strips_of_a_small_map():
    # 3 rows, 5 columns, dilation (2, 2), strips of 2: rows in the order 0, 2, 1; columns 0, 2 and 4
    # of phase 0, then 1 and 3 of phase 1 with a strip that has nothing left.
    assert owned_pixels((2, 2), 3, 5, 2, 1, 4) == [
        [(0, 0), (0, 2)],
        [(0, 4)],
        [(0, 1), (0, 3)],
        [],
        [(2, 0), (2, 2)],
        [(2, 4)],
        [(2, 1), (2, 3)],
        [],
        [(1, 0), (1, 2)],
        [(1, 4)],
        [(1, 1), (1, 3)],
        [],
    ]


@interpreted
def test_lines_run_down_one_column_after_the_other():
    # The same strips in columns of two, in tiles of four lines: the second has two to spare.
    assert owned_pixels((2, 2), 3, 5, 2, 4, 2) == [
        *([(0, 0), (0, 2)], [(0, 4)]),
        *([(2, 0), (2, 2)], [(2, 4)]),
        *([(1, 0), (1, 2)], [(1, 4)]),
        *([(0, 1), (0, 3)], []),
        *([(2, 1), (2, 3)], []),
        *([(1, 1), (1, 3)], []),
        *([], [], [], []),
    ]


@interpreted
@pytest.mark.parametrize("height,width", [(1, 1), (7, 7), (5, 13), (16, 3), (1, 29)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 3), (3, 2), (4, 40)])
@pytest.mark.parametrize("strip", [1, 2, 3, 4])
def test_every_pixel_has_one_owner(height, width, dilation, strip):
    pixels = [p for strip_ in owned_pixels(dilation, height, width, strip, 4, 2) for p in strip_]
    assert sorted(pixels) == [(y, x) for y in range(height) for x in range(width)]


@interpreted
@pytest.mark.parametrize("kernel_size", (1, 3, 13, 255))
@pytest.mark.parametrize("beyond", (0, 1, 30))
def test_taps_at_the_far_end_of_the_largest_map(monkeypatch, kernel_size, beyond):
    """In 32 bits as in Python's own integers, whose phases are written out here once more."""
    monkeypatch.setattr(interpreter_builder, "options", OVERFLOW_STOPS)
    height, block = MAX_EXTENT - beyond, 64
    dilation = min(MAX_REACH // (2 * kernel_size + MAX_STRIP), height)
    short, longer = divmod(height, dilation)
    for tile in (0, -(-height // block) - 1):
        rows, counts = reach_of(kernel_size, dilation, height, tile, block)
        for number, row, count in zip(range(tile * block, height), rows, counts, strict=False):
            if number < longer * (short + 1):
                phase, step = divmod(number, short + 1)
            else:
                phase, step = divmod(number - longer, short)
            assert row == step * dilation + phase
            taps = range(row - kernel_size // 2 * dilation, height, dilation)[:kernel_size]
            assert count == sum(tap >= 0 for tap in taps)
        assert not any(counts[max(0, height - tile * block) :])


@interpreted
@pytest.mark.parametrize(
    "shape, kernel_size, dilation, message",
    [
        ((1, 2**26 + 1, 1, 1, 1), 1, 1, "height, width and heads"),
        ((1, 1, 2**22, 16, 17), 1, 1, "elements in a row"),
        ((1, 2**26, 1, 1, 1), (255, 1), 2**25, "kernel_size 255 and dilation 33554432"),
    ],
)
def test_problems_beyond_32_bits_are_for_another_backend(shape, kernel_size, dilation, message):
    query = torch.zeros(shape[-1]).expand(shape)
    problem = make_problem(
        query, query, query, kernel_size, dilation, bias=None, scale=None, padding_mode="zeros"
    )
    with pytest.raises(BackendError, match=f'"triton" cannot run this problem: .*{message}'):
        select(problem, "triton")
    assert select(problem, None).name != "triton"


@interpreted
@pytest.mark.parametrize("path", GOLDEN_PATHS, ids=lambda path: path.stem)
def test_golden_vectors(path):
    arrays = {name: torch.from_numpy(np.asarray(a)) for name, a in np.load(path).items()}
    inputs = [arrays[name].float().requires_grad_() for name in ("query", "key", "value")]
    out = sdwa.sliding_dilated_window_attention(
        *inputs, int(arrays["kernel_size"]), tuple(arrays["dilation"].tolist()), backend="triton"
    )
    grads = torch.autograd.grad(out, inputs, arrays["grad_out"].to(out))
    results = dict(zip(("out", "grad_query", "grad_key", "grad_value"), (out, *grads), strict=True))
    for name, result in results.items():
        assert error(result.detach(), arrays[name]) <= 1e-5, name


@interpreted
@pytest.mark.parametrize(
    "case,dtype",
    # Every case in one of the types, neighbouring cases in different ones: a program is slow here.
    [
        pytest.param(case, DTYPES[i % 3], id=f"{case}-{str(DTYPES[i % 3])[6:]}")
        for i, case in enumerate(CASES)
    ],
)
def test_cases(case, dtype):
    assert_matches_float64(case, dtype, backend="triton")


TILED = (
    # Block shapes as on a GPU, tiles smaller than the map: (case, forced blocks)
    ("strips", Case("strips", (1, 7, 11, 2, 24), dilation=(1, 3), bias=True), (4, 2, 3, 8, 1)),
    (
        "masked_strips",
        Case("masked_strips", (2, 5, 9, 1, 16), dilation=2, bias=True, padding_mode="masked"),
        (2, 1, 4, 16, 1),
    ),
    ("ragged_chunks", Case("ragged_chunks", (1, 6, 5, 2, 60), dilation=(1, 2)), (2, 2, 2, 32, 1)),
    (
        "online_strips",
        Case("online_strips", (1, 7, 6, 1, 12), kernel_size=(5, 3), dilation=((2, 1),), bias=True),
        (2, 2, 2, 8, 1),
    ),
    (
        "key_mask_strips",
        Case("key_mask_strips", (2, 7, 9, 2, 24), dilation=(1, 2), bias=True, key_mask=True),
        (4, 2, 3, 8, 1),
    ),
    (
        "key_mask_online_strips",
        Case(
            "key_mask_online_strips",
            (2, 6, 7, 1, 12),
            kernel_size=(3, 5),
            dilation=((1, 2),),
            key_mask=True,
            padding_mode="masked",
        ),
        (2, 2, 2, 8, 1),
    ),
    (
        "packed_strips",
        Case("packed_strips", (1, 9, 4, 2, 8), dilation=(2, 3), layout="packed"),
        (8, 1, 2, 8, 1),
    ),
)


@interpreted
@pytest.mark.parametrize(
    "case,blocks,dtype",
    [
        pytest.param(case, blocks, DTYPES[i % 3], id=f"{name}-{str(DTYPES[i % 3])[6:]}")
        for i, (name, case, blocks) in enumerate(TILED)
    ],
)
def test_tiles_and_strips(fresh_plans, monkeypatch, case, blocks, dtype):
    monkeypatch.setattr(launch, "choose_blocks", lambda *_: launch.Blocks(*blocks))
    assert_matches_float64(case, dtype, backend="triton")


@interpreted
@pytest.mark.parametrize("kernel_size", (3, 5))
def test_64_bit_offsets(fresh_plans, monkeypatch, kernel_size):
    monkeypatch.setattr(launch, "needs_index_64", lambda *_: True)
    case = Case("wide", (2, 5, 6, 2, 5), kernel_size, (1, 2), bias=True, key_mask=True)
    assert_matches_float64(case, torch.float32, backend="triton")


@interpreted
@pytest.mark.parametrize("name", ("key_mask", "nothing_left", "nothing_left_5x5"))
@pytest.mark.parametrize("grad", (float("nan"), float("inf")))
def test_nothing_goes_back_through_a_window_with_nothing_left(name, grad):
    case = next(case for case in CASES if case.name == name)
    tensors = draw(case, torch.float32)
    expected = run(case, tensors, backend="triton")
    nothing = expected["lse"] == float("-inf")
    assert nothing.any()
    assert not expected["out"][nothing].any()
    assert not expected["grad_query"][nothing].any()
    tensors["grad_lse"][nothing] = grad
    tensors["grad_out"][nothing] *= 1e6
    results = run(case, tensors, backend="triton")
    assert all(torch.equal(results[name], expected[name]) for name in expected)


@st.composite
def drawn_cases(draw_from):
    heads = draw_from(st.integers(1, 3))
    step = st.integers(1, 5)
    return Case(
        "drawn",
        (
            draw_from(st.integers(1, 2)),
            draw_from(st.integers(1, 9)),
            draw_from(st.integers(1, 9)),
            heads,
            draw_from(st.integers(1, 70)),
        ),
        (draw_from(st.sampled_from((1, 3, 5))), draw_from(st.sampled_from((1, 3, 5)))),
        tuple((draw_from(step), draw_from(step)) for _ in range(heads)),
        bias=(bias := draw_from(st.booleans())),
        strictly_causal=bias and draw_from(st.booleans()),
        key_mask=draw_from(st.booleans()),
        padding_mode=draw_from(st.sampled_from(("zeros", "masked", "shifted"))),
        is_causal=draw_from(st.sampled_from((False, False, True, (True, False)))),
        layout=draw_from(st.sampled_from(("contiguous", "packed", "strided", "heads_first"))),
    )


@interpreted
# No shrinking: an example takes seconds here. `tests.fuzz triton-interpreted` draws more.
@settings(max_examples=10, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(drawn_cases(), st.sampled_from(DTYPES), st.integers(0, 1000))
def test_fuzz(case, dtype, seed):
    assert_matches_float64(case, dtype, seed, backend="triton")


@interpreted
def test_gradients_are_identical_bit_for_bit():
    case = Case("repeat", (2, 6, 5, 2, 8), dilation=(1, 2), bias=True)
    tensors = draw(case, torch.float32)
    first, again = (run(case, tensors, backend="triton") for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@interpreted
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("key_mask", (False, True))
def test_opcheck(key_mask):
    case = Case("opcheck", (1, 3, 4, 2, 4), dilation=(1, 2), bias=True, key_mask=key_mask)
    tensors = draw(case, torch.float32)
    kept = tensors.get("key_mask")
    inputs = [tensors[name].requires_grad_() for name in ("query", "key", "value", "bias")]
    sdwa.sliding_dilated_window_attention(*inputs[:3], 3, (1, 2), backend="triton")
    window = ([3, 3], [1, 1, 2, 2], 0.5, False)
    forward = torch.ops.sdwa.triton_attention_forward.default
    torch.library.opcheck(forward, (*inputs, kept, *window))
    out, lse = (t.detach() for t in forward(*inputs, kept, *window))
    backward = torch.ops.sdwa.triton_attention_backward.default
    detached = [t.detach() for t in inputs]
    arguments = (tensors["grad_out"], tensors["grad_lse"], *detached, kept, out, lse, *window)
    torch.library.opcheck(backward, arguments)


@interpreted
def test_direct_calls_read_nothing_outside_their_tensors():
    """As those of exported programs, which no Python checks: see csrc/checks.h"""
    query = torch.randn(1, 4, 3, 2, 8)
    attend = torch.ops.sdwa.triton_attention_forward.default

    def refuses(said, *inputs, window=([3, 3], [1, 1, 2, 2], 0.5, False)):
        with pytest.raises(ValueError, match=said):
            attend(*inputs, *window)

    strided = torch.randn(1, 4, 3, 2, 16)[..., ::2]
    refuses("query must have stride 1 in head_dim, got 2", strided, query, query, None, None)
    refuses("key must have the shape, dtype", query, query[:, :2], query, None, None)
    refuses("value must have the shape, dtype", query, query, query.double(), None, None)
    refuses("bias must be contiguous, of its", query, query, query, torch.zeros(2, 1, 1), None)
    mask = torch.ones(1, 3, 4, dtype=torch.bool)
    refuses("key_mask must be contiguous", query, query, query, None, mask.mT)
    dilation = ([3, 3], [1, 1], 0.5, False)
    refuses("dilation must hold two", query, query, query, None, None, window=dilation)
    empty = query[:, :0]
    refuses("all but batch at least 1, got", empty, empty, empty, None, None)
    window = ([3, 3], [1, 1, 2, 2], 0.5, False)
    out, lse = attend(query, query, query, None, None, *window)
    differentiate = torch.ops.sdwa.triton_attention_backward.default
    for name, results in (("out", (out[..., :4], lse)), ("lse", (out, lse[:, 1:]))):
        with pytest.raises(ValueError, match=f"{name} must"):
            differentiate(out, None, query, query, query, None, None, *results, *window)


@interpreted
def test_compiles_whole():
    case = Case("compiled", (1, 4, 3, 2, 4), dilation=(1, 2))
    tensors = draw(case, torch.float32)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(*args, **options):
        return sdwa.sliding_dilated_window_attention(*args, **options)

    expected = run(case, tensors, backend="triton")
    results = run(case, tensors, compiled, backend="triton")
    assert all(torch.equal(results[name], expected[name]) for name in expected)


@interpreted
def test_cpu_tensors_are_taken():
    assert sdwa.available_backends("cpu")["triton"] == ()
    assert "TRITON_INTERPRET" in sdwa.available_backends("cuda")["triton"][0] or (
        not torch.cuda.is_available()
    )


@interpreted
def test_interpreting_is_for_those_who_name_it():
    query = torch.randn(1, 3, 3, 1, 4)
    problem = make_problem(query, query, query, 3, 1, None, None, "zeros", None, False)
    assert select(problem, None).name != "triton"
    assert select(problem, "triton").name == "triton"


@interpreted
def test_interpreting_is_asked_for_before_the_import(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert reasons_unavailable("cuda") == (
        "TRITON_INTERPRET was changed after Triton was imported: set it before",
    )


@interpreted
def test_float64_is_refused_by_name():
    query = torch.randn(1, 3, 3, 1, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="triton.*float64"):
        sdwa.sliding_dilated_window_attention(query, query, query, backend="triton")
