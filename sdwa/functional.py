"""The operator as a function."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from sdwa.autocast import autocast_tensors
from sdwa.dispatch import prepare
from sdwa.problem import Dilation, Size, accumulation_dtype
from sdwa.torch_private import any_autocast


@overload
def sliding_dilated_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Size = 3,
    dilation: Dilation = 1,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    padding_mode: str = "zeros",
    key_mask: Tensor | None = None,
    return_lse: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...


@overload
def sliding_dilated_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Size = 3,
    dilation: Dilation = 1,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    padding_mode: str = "zeros",
    key_mask: Tensor | None = None,
    return_lse: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


def sliding_dilated_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Size = 3,
    dilation: Dilation = 1,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    padding_mode: str = "zeros",
    key_mask: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Each query attends to the dilated window of keys centred on its own pixel.

    For head n with dilation r, query pixel p and taps t of the window::

        s_t = scale * <query[p], key[p + r t]> + bias[n, t]
        out = sum_t softmax(s)_t * value[p + r t]
        lse = log sum_t exp(s_t)

    These are eqs. 8-10 of the CFMRFN paper; there the query comes from the other stream.

    Args:
        query, key, value: (batch, height, width, heads, head_dim), float32, bfloat16, float16 or
            float64, of one shape, dtype and device. Any strides, so slices of a packed projection
            are read in place; the last stride must be 1. head_dim from 1 to 256.
        kernel_size: taps along each side of the window, odd, up to 255; or (kernel_h, kernel_w).
        dilation: distance of neighbouring taps in pixels: one for all heads, or a sequence with one
            entry per head, an int or (dilation_h, dilation_w). It may exceed the map.
        bias: (heads, kernel_h, kernel_w), added to the scores; float32 or the dtype of query.
        scale: factor of the scores; None: `head_dim ** -0.5`. 0.0 is a value like any other.
        padding_mode: what a tap off the map is. "zeros": a zero key and a zero value, which keep
            their place in the softmax, as `torch.nn.Unfold` pads; "masked": left out.
        key_mask: (batch, height, width) bool; a key where it is False, such as the padding of a
            smaller image, is left out of every softmax. Beyond the border padding_mode holds.
        return_lse: also return lse.
        backend: "cuda", "triton", "cpu" or "reference"; None: the best that fits.

    Returns:
        out: (batch, height, width, heads, head_dim) in the dtype of query.
        lse, with return_lse: (batch, height, width, heads), float32 (float64 for float64 tensors),
            natural logarithm, differentiable.
        Where every tap of a window is left out (by "masked" and a bias of -inf, or by key_mask) out
        is 0, lse is -inf and all gradients are 0.

    Raises:
        TypeError, ValueError: an argument that is not legal; the message names it.
        BackendError: the backend asked for cannot run this; or, with None, none can. The message
            gives the reasons. It is a ValueError and a RuntimeError.

    Example:
        >>> q, k, v = torch.randn(3, 2, 7, 7, 8, 64)
        >>> sliding_dilated_window_attention(q, k, v, 3, (1, 1, 2, 2, 2, 3, 3, 3)).shape
        torch.Size([2, 7, 7, 8, 64])
    """
    if any_autocast():
        query, key, value = autocast_tensors(query, key, value)
    call = prepare(
        query, key, value, kernel_size, dilation, bias, scale, padding_mode, key_mask, backend
    )
    if bias is not None:
        bias = bias.to(accumulation_dtype(query.dtype)).contiguous()
    if key_mask is not None:
        key_mask = key_mask.contiguous()
    out, lse = call(query, key, value, bias, key_mask)
    return (out, lse) if return_lse else out
