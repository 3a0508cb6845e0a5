"""Automatic mixed precision."""

from functools import partial

import pytest
import torch

import sdwa

SHAPE = (2, 5, 6, 2, 8)


def draw(device, *dtypes):
    torch.manual_seed(0)
    return [torch.randn(SHAPE, device=device).to(dtype).requires_grad_() for dtype in dtypes]


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_autocast(backend, dtype):
    """`torch.autocast`"""
    device = backend.device_type
    tensors = draw(device, torch.float32, dtype, torch.float32)
    bias = torch.randn(2, 3, 3, device=device, requires_grad=True)
    options = {"bias": bias, "return_lse": True, "backend": backend.name}
    with torch.autocast(device, dtype):
        out, lse = sdwa.sliding_dilated_window_attention(*tensors, 3, (1, 2), **options)
    expected, expected_lse = sdwa.sliding_dilated_window_attention(
        *(tensor.to(dtype) for tensor in tensors), 3, (1, 2), **options
    )
    assert out.dtype == dtype and lse.dtype == torch.float32
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse)
    out.float().square().sum().backward()
    assert [tensor.grad.dtype for tensor in tensors] == [torch.float32, dtype, torch.float32]
    assert bias.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float64), ids=str)
def test_bias_may_have_any_dtype(backend, dtype):
    """`torch.autocast` beside a bias of any floating dtype"""
    device = backend.device_type
    tensors = draw(device, *(torch.float32,) * 3)
    bias = torch.randn(2, 3, 3, device=device, dtype=dtype, requires_grad=True)
    attend = partial(
        sdwa.sliding_dilated_window_attention, *tensors, dilation=(1, 2), backend=backend.name
    )
    for cast_to in (torch.bfloat16, torch.float16):
        with torch.autocast(device, cast_to):
            out = attend(bias=bias)
            assert torch.equal(out, attend(bias=bias.float()))
    out.float().sum().backward()
    assert bias.grad.dtype == dtype
    assert torch.equal(attend(bias=bias), attend(bias=bias.float()))


def test_layer_in_half_precision_under_autocast_to_the_other():
    layer = sdwa.SlidingDilatedWindowAttention(
        32, 4, relative_bias=True, backend="reference"
    ).bfloat16()
    with torch.autocast("cpu", torch.float16):
        assert layer(torch.randn(2, 5, 6, 32)).dtype == torch.float16


def test_operator_rule(backend):
    if backend.name == "reference":
        pytest.skip("reference is plain PyTorch")
    device = backend.device_type
    tensors = draw(device, torch.float32, torch.bfloat16, torch.float32)
    name = "triton_attention_forward" if backend.name == "triton" else "attention_forward"
    bias = torch.randn(2, 3, 3, device=device)
    with torch.autocast(device, torch.bfloat16):
        out, lse = getattr(torch.ops.sdwa, name)(
            *tensors, bias, None, [3, 3], [1, 1, 2, 2], 0.3, False
        )
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    out.float().sum().backward()
    assert tensors[0].grad.dtype == torch.float32


def test_layer_whose_query_is_not_projected(backend):
    """the layer under autocast, its query not projected"""
    device = backend.device_type
    layer = sdwa.SlidingDilatedWindowAttention(
        16, 2, dilation=(1, 2), q_proj=False, relative_bias=True, backend=backend.name
    ).to(device)
    x = torch.randn(2, 5, 6, 16, device=device)
    with torch.autocast(device, torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), rtol=0.05, atol=0.05)


def test_attention_dropout():
    layer = sdwa.SlidingDilatedWindowAttention(
        16, 2, dilation=(1, 2), q_proj=False, attn_drop=0.5, backend="reference"
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 5, 6, 16)).dtype == torch.bfloat16


def test_float64_stays():
    tensors = draw("cpu", *(torch.float64,) * 3)
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = sdwa.sliding_dilated_window_attention(*tensors, return_lse=True)
    expected, expected_lse = sdwa.sliding_dilated_window_attention(*tensors, return_lse=True)
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse)


def test_float64_beside_another_dtype_is_refused():
    tensors = draw("cpu", torch.float64, torch.bfloat16, torch.float32)
    message = "got float64, bfloat16, float32: autocast leaves float64 as it is. Cast them to one"
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=message):
        sdwa.sliding_dilated_window_attention(*tensors)
