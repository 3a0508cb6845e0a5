"""Every backend against the golden vectors and the float64 reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdwa
from tests.sdwa.assertions import assert_matches_float64, error, run
from tests.sdwa.cases import CASES, GOLDEN, Case, draw

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
OPERATOR_VECTORS = sorted(
    path for path in GOLDEN.glob("*.npz") if not path.name.startswith("module_")
)


def skip_unsupported(backend, dtype):
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend.name} does not take {dtype}")


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("path", OPERATOR_VECTORS, ids=lambda path: path.stem)
def test_golden_vectors(backend, path, dtype):
    skip_unsupported(backend, dtype)
    arrays = {name: torch.from_numpy(np.asarray(a)) for name, a in np.load(path).items()}
    inputs = [
        arrays[name].to(backend.device_type, dtype).requires_grad_()
        for name in ("query", "key", "value")
    ]
    out = sdwa.sliding_dilated_window_attention(
        *inputs,
        int(arrays["kernel_size"]),
        tuple(arrays["dilation"].tolist()),
        backend=backend.name,
    )
    grads = torch.autograd.grad(out, inputs, arrays["grad_out"].to(out))
    results = dict(zip(("out", "grad_query", "grad_key", "grad_value"), (out, *grads), strict=True))
    for name, result in results.items():
        assert error(result.detach().cpu(), arrays[name]) <= (1e-10 if dtype == DTYPES[0] else 1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(backend, case, dtype):
    skip_unsupported(backend, dtype)
    assert_matches_float64(case, dtype, backend=backend.name, device=backend.device_type)


windows = st.sampled_from((1, 3, 5, 7))


@st.composite
def drawn_cases(draw_from):
    heads = draw_from(st.integers(1, 5))
    step = st.integers(1, 6)
    return Case(
        "drawn",
        (
            draw_from(st.integers(1, 3)),
            draw_from(st.integers(1, 12)),
            draw_from(st.integers(1, 12)),
            heads,
            draw_from(st.integers(1, 70)),
        ),
        (draw_from(windows), draw_from(windows)),
        tuple((draw_from(step), draw_from(step)) for _ in range(heads)),
        bias=draw_from(st.booleans()),
        padding_mode=draw_from(st.sampled_from(("zeros", "masked"))),
        layout=draw_from(st.sampled_from(("contiguous", "packed", "strided", "heads_first"))),
    )


def test_fuzz(backend):
    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(drawn_cases(), st.sampled_from(backend.dtypes), st.integers(0, 1000))
    def check(case, dtype, seed):
        assert_matches_float64(case, dtype, seed, backend=backend.name, device=backend.device_type)

    check()


def test_gradients_are_identical_bit_for_bit(backend):
    case = Case("repeat", (2, 20, 17, 4, 32), dilation=(1, 2, 3, 4), bias=True)
    tensors = draw(case, torch.float32, backend.device_type)
    first = run(case, tensors, backend=backend.name)
    for _ in range(3):
        again = run(case, tensors, backend=backend.name)
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_gradcheck(backend):
    skip_unsupported(backend, torch.float64)
    case = Case("gradcheck", (1, 3, 4, 2, 2), dilation=(1, 2), bias=True)
    tensors = draw(case, torch.float64, backend.device_type)
    inputs = [tensors[name].requires_grad_() for name in ("query", "key", "value", "bias")]

    def function(query, key, value, bias):
        return sdwa.sliding_dilated_window_attention(
            query, key, value, 3, (1, 2), bias=bias, return_lse=True, backend=backend.name
        )

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_lse_gradient_alone(backend):
    case = Case("lse", (1, 5, 6, 2, 8), dilation=(1, 2))
    tensors = draw(case, torch.float32, backend.device_type)
    tensors["grad_out"].zero_()
    expected = run(case, tensors, backend="reference")
    query = tensors["query"].requires_grad_()
    _, lse = sdwa.sliding_dilated_window_attention(
        query, tensors["key"], tensors["value"], 3, (1, 2), return_lse=True, backend=backend.name
    )
    (grad,) = torch.autograd.grad(lse, query, tensors["grad_lse"])
    torch.testing.assert_close(grad, expected["grad_query"])
