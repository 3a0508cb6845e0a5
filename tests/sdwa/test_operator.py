"""Every backend against the golden vectors and the float64 reference."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks

import sdwa
from tests.sdwa.assertions import assert_matches_float64, assert_results_match, error, run
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
        strictly_causal=draw_from(st.booleans()),
        key_mask=draw_from(st.booleans()),
        padding_mode=draw_from(st.sampled_from(("zeros", "masked", "shifted"))),
        is_causal=draw_from(st.sampled_from((False, False, True, (True, False)))),
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


@pytest.mark.parametrize("heads", (None, 1, 2), ids=("scalar", "one", "per head"))
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_scale_may_be_a_tensor(backend, heads, dtype):
    skip_unsupported(backend, dtype)
    case = Case("scale", (2, 5, 6, 2, 8), dilation=(1, 2), bias=True)
    tensors = draw(case, dtype, backend.device_type)
    shape = () if heads is None else (heads,)
    scale = torch.rand(shape, device=backend.device_type).add(0.5).requires_grad_()

    def results(tensors, attend):
        inputs = [tensors[name].detach().requires_grad_() for name in ("query", "key", "value")]
        out = attend(*inputs)
        return out, *torch.autograd.grad(out, (*inputs, scale), tensors["grad_out"])

    def fused(*inputs):
        return sdwa.sliding_dilated_window_attention(
            *inputs, 3, (1, 2), bias=tensors["bias"], scale=scale, backend=backend.name
        )

    def by_definition(query, key, value):
        bias = tensors["bias"].double()
        query = query * scale.double().broadcast_to(2)[:, None]
        return sdwa.sliding_dilated_window_attention(
            query, key, value, 3, (1, 2), bias=bias, scale=1.0, backend="reference"
        )

    doubles = {name: tensor.double() for name, tensor in tensors.items()}
    allowed = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    *got, grad_scale = results(tensors, fused)
    *expected, exact_grad_scale = results(doubles, by_definition)
    assert all(error(*both) <= allowed for both in zip(got, expected, strict=True))
    # Summed over the map, where much of it cancels.
    assert error(grad_scale, exact_grad_scale.double()) <= 5 * allowed


def test_scale_of_the_cpu_beside_any_device(backend):
    tensors = draw(Case("scale", (1, 4, 5, 2, 8)), torch.float32, backend.device_type)
    inputs = [tensors[name] for name in ("query", "key", "value")]
    attend = partial(sdwa.sliding_dilated_window_attention, *inputs, backend=backend.name)
    torch.testing.assert_close(attend(scale=torch.tensor(0.25)), attend(scale=0.25))


@pytest.mark.parametrize("value_dim", (1, 5, 24), ids=lambda dim: f"value_{dim}")
def test_value_may_have_another_head_dim(backend, value_dim):
    case = Case("value_dim", (2, 5, 6, 2, 8), dilation=(1, 2), bias=True)
    tensors = draw(case, torch.float32, backend.device_type)
    other = draw(Case("value", (2, 5, 6, 2, value_dim)), torch.float32, backend.device_type, seed=1)
    tensors |= {"value": other["value"], "grad_out": other["grad_out"]}
    results = run(case, tensors, backend=backend.name)
    assert results["out"].shape == results["grad_value"].shape == (2, 5, 6, 2, value_dim)
    assert results["out"].is_contiguous()
    weights = sdwa.attention_weights(
        tensors["query"], tensors["key"], 3, (1, 2), bias=tensors["bias"]
    )
    expected = weighted(weights, tensors["value"], (1, 2))
    torch.testing.assert_close(results["out"], expected)
    doubles = {name: tensor.double() for name, tensor in tensors.items()}
    exact = run(case, doubles, backend="reference")
    for name, result in results.items():
        assert error(result, exact[name]) <= 2e-6, name


def weighted(weights, value, dilation):
    """Sums of the values around each pixel, tap by tap."""
    _, height, width, heads, _ = value.shape
    out = torch.zeros_like(value)
    for head in range(heads):
        r = dilation[head]
        padded = torch.nn.functional.pad(value[:, :, :, head], (0, 0, r, r, r, r))
        for i in range(3):
            for j in range(3):
                there = padded[:, i * r : i * r + height, j * r : j * r + width]
                out[:, :, :, head] += weights[:, :, :, head, i, j, None] * there
    return out


@pytest.mark.parametrize("padding_mode", ("zeros", "masked"))
def test_attention_weights_are_those_of_the_operator(backend, padding_mode):
    case = Case("weights", (2, 5, 6, 2, 8), dilation=(1, 2), bias=True, key_mask=True)
    tensors = draw(case, torch.float32, backend.device_type)
    options = {name: tensors[name] for name in ("bias", "key_mask")}
    options |= {"padding_mode": padding_mode, "scale": 0.3}
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    out, lse = sdwa.sliding_dilated_window_attention(
        query, key, value, 3, (1, 2), **options, return_lse=True, backend=backend.name
    )
    weights = sdwa.attention_weights(query, key, 3, (1, 2), **options)
    assert weights.shape == (2, 5, 6, 2, 3, 3)
    torch.testing.assert_close(weights.sum((-2, -1)), lse.isfinite().float())
    torch.testing.assert_close(weighted(weights, value, (1, 2)), out)


def test_attention_weights_of_half_precision_are_float32():
    query, key = torch.randn(2, 1, 5, 6, 2, 8)
    exact = sdwa.attention_weights(query.bfloat16().float(), key.bfloat16().float(), 5)
    with torch.autocast("cpu", torch.bfloat16):
        weights = sdwa.attention_weights(query, key, 5)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, exact)


def test_a_window_with_nothing_left_spreads_no_nan(backend):
    # Of the pixel whose window has nothing left, out has no gradient, and lse none or one.
    case = Case("nothing", (1, 5, 6, 2, 8), bias=True, strictly_causal=True, padding_mode="masked")
    tensors = draw(case, torch.float32, backend.device_type)
    tensors["grad_out"][:, 0, 0] = 0
    for grad_lse in (0.0, 1.0):
        tensors["grad_lse"][:, 0, 0] = grad_lse
        results = run(case, tensors, backend=backend.name)
        assert not any(result.isnan().any() for result in results.values())
        assert (results["out"][:, 0, 0] == 0).all()
        assert (results["lse"][:, 0, 0] == float("-inf")).all()
        assert (results["grad_query"][:, 0, 0] == 0).all()
        assert_results_match(case, torch.float32, tensors, results)


def test_changing_the_result_in_place_is_never_silent(backend):
    # Refused, as after the fused kernels of scaled_dot_product_attention, or right.
    query = torch.randn(1, 4, 5, 2, 8, device=backend.device_type, requires_grad=True)
    attend = partial(sdwa.sliding_dilated_window_attention, query, query, query)
    (expected,) = torch.autograd.grad((attend(backend="reference") + 1).square().sum(), query)
    out = attend(backend=backend.name)
    out += 1
    if backend.name == "reference":
        torch.testing.assert_close(torch.autograd.grad(out.square().sum(), query)[0], expected)
    else:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.square().sum().backward()


def test_saved_tensors_may_come_back_in_another_layout(backend):
    def turned(x):
        return x.permute(*reversed(range(x.dim())))

    inputs = [t.to(backend.device_type).requires_grad_() for t in torch.randn(3, 2, 4, 5, 2, 8)]
    bias = torch.randn(2, 3, 3, device=backend.device_type, requires_grad=True)
    key_mask = torch.rand(2, 4, 5, device=backend.device_type) < 0.8
    grads = []
    for hooks in (
        nullcontext(),
        saved_tensors_hooks(lambda x: turned(x).contiguous(), turned),
    ):
        with hooks:
            out = sdwa.sliding_dilated_window_attention(
                *inputs, 3, (1, 2), bias=bias, key_mask=key_mask, backend=backend.name
            )
        grads.append(torch.autograd.grad(out.square().sum(), [*inputs, bias]))
    for plain, hooked in zip(*grads, strict=True):
        torch.testing.assert_close(hooked, plain)


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


def test_results_that_memory_does_not_hold(backend):
    # PyTorch's own words: libraries that try again with a smaller batch look for them.
    own = "DefaultCPUAllocator: can't allocate memory|out of memory"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 13):
        own += "|see stderr for the reason"  # it prints them
    query = torch.randn(1, 8, 8, 1, 16, device=backend.device_type).expand(2**32, -1, -1, -1, -1)
    with pytest.raises(RuntimeError, match=own):
        sdwa.sliding_dilated_window_attention(query, query, query, backend=backend.name)


def test_overlapping_tensors_of_two_head_dims(backend):
    # By its strides, a map of 3-d channels-last images.
    query = torch.randn(500, device=backend.device_type).as_strided(
        (1, 3, 4, 2, 8), (0, 1, 9, 4, 1)
    )
    value = torch.randn(1, 3, 4, 2, 16, device=backend.device_type)
    expected = sdwa.sliding_dilated_window_attention(query.contiguous(), query.contiguous(), value)
    found = sdwa.sliding_dilated_window_attention(query, query, value, backend=backend.name)
    torch.testing.assert_close(found, expected)
