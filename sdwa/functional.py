"""The operator as a function."""

from __future__ import annotations

import sys
from typing import Any, Literal, overload

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from sdwa import reference
from sdwa.arguments import Line, check_flag, check_scale_tensor, make_problem
from sdwa.autocast import autocast_tensors
from sdwa.dispatch import prepare
from sdwa.problem import Causal, Dilation, Size, accumulation_dtype
from sdwa.torch_private import any_autocast, trace_paused, varies


@overload
def sliding_dilated_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Size = 3,
    dilation: Dilation = 1,
    *,
    bias: Tensor | None = None,
    scale: float | Tensor | None = None,
    padding_mode: str = "zeros",
    key_mask: Tensor | None = None,
    is_causal: Causal = False,
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
    scale: float | Tensor | None = None,
    padding_mode: str = "zeros",
    key_mask: Tensor | None = None,
    is_causal: Causal = False,
    return_lse: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


@overload
def sliding_dilated_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Size = 3,
    dilation: Dilation = 1,
    *,
    bias: Tensor | None = None,
    scale: float | Tensor | None = None,
    padding_mode: str = "zeros",
    key_mask: Tensor | None = None,
    is_causal: Causal = False,
    return_lse: bool,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]: ...


def sliding_dilated_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Size = 3,
    dilation: Dilation = 1,
    *,
    bias: Tensor | None = None,
    scale: float | Tensor | None = None,
    padding_mode: str = "zeros",
    key_mask: Tensor | None = None,
    is_causal: Causal = False,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Each query attends to the dilated window of keys centred on its own pixel.

    For head n with dilation r, query pixel p and taps t of the window::

        s_t = scale * <query[p], key[p + r t]> + bias[n, t]
        out = sum_t softmax(s)_t * value[p + r t]
        lse = log sum_t exp(s_t)

    These are eqs. 8-10 of the CFMRFN paper; there the query comes from the other stream.

    Sequences of one axis are given without the height: query, key and value as (batch, length,
    heads, head_dim), and then kernel_size, each entry of dilation and is_causal are those of one
    axis (or pairs as for a map of height 1, which a layer for sequences has), bias is (heads,
    kernel) or (heads, 2 * kernel - 1), key_mask (batch, length), and lse (batch, length, heads).

    Args:
        query, key, value: (batch, height, width, heads, head_dim), float32, bfloat16, float16 or
            float64, of one shape, dtype and device. Any strides, so slices of a packed projection
            are read in place; the last stride must be 1. head_dim from 1 to 256. value may have
            another head_dim; all three are then copied, padded to the larger one. Tensors whose
            heads come first, (batch, heads, height, width, head_dim), would be read as maps of
            heads x height: pass `query.permute(0, 2, 3, 1, 4)`. Maps whose heads are not split,
            (batch, height, width, channels), would be read as sequences with width heads: pass
            `query.unflatten(-1, (heads, -1))`. They may be DTensors, sharded over
            batch and heads without communication; `sdwa.sharding` says what holds there.
        kernel_size: taps along each side of the window, up to 255, or (kernel_h, kernel_w). They
            are odd, but with padding_mode="shifted": there a window of even size has one tap more
            before the query than after it. The backward pass of "cpu" keeps the weights of kernel_h
            rows of queries in each thread: 26 MiB for 31 x 31 taps on a map of 64 x 64, 1.5 GiB for
            127 x 127.
        dilation: distance of neighbouring taps in pixels: one for all heads, or a sequence with one
            entry per head, an int or (dilation_h, dilation_w). It may exceed the map. (2, 1) is two
            heads; 2 rows and 1 column apart in all heads is `((2, 1),) * heads`.
        bias: added to the scores, by tap, (heads, kernel_h, kernel_w), or by the distance in taps
            from query to key, (heads, 2 * kernel_h - 1, 2 * kernel_w - 1), whose middle is for the
            query's own pixel. Centred windows use the middle kernel_h x kernel_w of the latter;
            "shifted" takes no other. Any of the dtypes above.
        scale: factor of the scores; None: `head_dim ** -0.5` of query. 0.0 is a value like any
            other. A tensor of shape (), (1,) or (heads,) may be learned: the query is multiplied by
            it, and the product is rounded to the dtype of query.
        padding_mode: what a tap off the map is. "zeros": a zero key and a zero value, which keep
            their place in the softmax, as `torch.nn.Unfold` pads; "masked": left out. "shifted",
            neighborhood attention (Hassani et al. 2023): there is none, as a window that would
            leave the map moves inwards, by whole dilations, and is no longer centred on its query.
            Where the map has fewer pixels a dilation apart than the window has taps, a query
            attends to all of them.
        key_mask: (batch, height, width) bool; a key where it is False, such as the padding of a
            smaller image, is left out of every softmax. (`key_padding_mask` of
            `torch.nn.MultiheadAttention` is the other way round.) What is left out must be finite
            all the same, and so must its products with query and grad_out. Off the map padding_mode
            holds: with "masked", a padded image comes out as it does alone. With "zeros" it does so
            without key_mask, if key and value are 0 in the padding.
        is_causal: leave out the taps after the query, along both axes or as (height, width) says.
            With "shifted", as NATTEN has it, a causal window has all kernel_size taps, the last of
            them at the query, and those before the first pixel are left out.
        return_lse: also return lse.
        backend: "cuda", "triton", "cpu" or "reference"; None: the best that fits.

    Returns:
        out: (batch, height, width, heads, head_dim of value), contiguous, in the dtype of query.
            The backward pass reads it: write `out = out + x`, not `out += x`, as after the fused
            kernels of `scaled_dot_product_attention`.
        lse, with return_lse: (batch, height, width, heads), float32 (float64 for float64 tensors),
            natural logarithm, differentiable.
        NaN and infinities reach only the results that depend on them; but the tensor cores of
        "cuda" take bfloat16 and float16 by tiles, within which they may reach others. A score of
        +inf makes out NaN, and lse NaN or +inf, as the backend has it.
        Where every tap of a window is left out (by "masked" and a bias of -inf, or by key_mask) out
        is 0, lse is -inf and all gradients are 0, where that of out is finite.

    Raises:
        TypeError, ValueError: an argument that is not legal; the message names it.
        BackendError: the backend asked for cannot run this; or, with None, none can. The message
            gives the reasons. It is a ValueError and a RuntimeError.

    Example:
        >>> q, k, v = torch.randn(3, 2, 7, 7, 8, 64)
        >>> sliding_dilated_window_attention(q, k, v, 3, (1, 1, 2, 2, 2, 3, 3, 3)).shape
        torch.Size([2, 7, 7, 8, 64])
    """
    check_flag("return_lse", return_lse)
    if (
        not (query.__class__ is key.__class__ is value.__class__ is Tensor)
        or (bias is not None and bias.__class__ is not Tensor)
        or (key_mask is not None and key_mask.__class__ is not Tensor)
        or isinstance(scale, Tensor)
    ):
        results = _of_other_classes(
            *(query, key, value, kernel_size, dilation, bias, scale),
            *(padding_mode, key_mask, is_causal, return_lse, backend),
        )
        if results is not None:
            return results  # type: ignore[no-any-return]
    if any_autocast():
        query, key, value = autocast_tensors(query, key, value)
    # The operators take scale as a constant, which neither of these is.
    if scale is not None and (isinstance(scale, Tensor) or varies(scale)):
        query, scale = _scaled(query, scale), 1.0
    call = prepare(
        *(query, key, value, kernel_size, dilation, bias, scale, padding_mode, key_mask),
        *(is_causal, backend),
    )
    if bias is not None:
        bias = bias.to(accumulation_dtype(query.dtype)).contiguous()
    if key_mask is not None:
        key_mask = key_mask.contiguous()
    out, lse = call(query, key, value, bias, key_mask)
    return (out, lse) if return_lse else out


def attention_weights(
    query: Tensor,
    key: Tensor,
    kernel_size: Size = 3,
    dilation: Dilation = 1,
    *,
    bias: Tensor | None = None,
    scale: float | Tensor | None = None,
    padding_mode: str = "zeros",
    key_mask: Tensor | None = None,
    is_causal: Causal = False,
) -> Tensor:
    """The weights by which `sliding_dilated_window_attention` adds up the values, for looking at.

    They are computed in plain PyTorch and take kernel_h * kernel_w numbers per query and head; the
    fused kernels never hold them. On any device, differentiable.

    Args:
        query, key, kernel_size, dilation, bias, scale, padding_mode, key_mask, is_causal: as for
            `sliding_dilated_window_attention`, but no DTensors.

    Returns:
        (batch, height, width, heads, kernel_h, kernel_w), or (batch, length, heads, kernel) for
        sequences; float32 (float64 for float64 tensors).
        Entry [b, y, x, n, i, j] is the weight, for the query of head n at (y, x), of the value at
        (y + (i - kernel_h // 2) * dilation_h, x + (j - kernel_w // 2) * dilation_w), with the
        dilation of head n. The weights of a window add up to 1; with "zeros" those of taps off the
        map are among them. Where every tap is left out all are 0. With "shifted", i and j count
        from the first tap of the window where it has moved to.

    Raises:
        TypeError, ValueError: an argument that is not legal; the message names it.

    Example:
        >>> q, k = torch.randn(2, 1, 7, 7, 8, 64)
        >>> attention_weights(q, k, 3, (1, 1, 2, 2, 2, 3, 3, 3)).shape
        torch.Size([1, 7, 7, 8, 3, 3])

        Those of a layer, of the map x to itself:

        >>> layer, x = sdwa.SlidingDilatedWindowAttention(512), torch.randn(1, 7, 7, 512)
        >>> q = layer.q(x).unflatten(-1, (layer.num_heads, -1))
        >>> k, v = layer.kv(x).unflatten(-1, (2, layer.num_heads, -1)).unbind(3)
        >>> attention_weights(
        ...     q, k, layer.kernel_size, layer.dilation, bias=layer.relative_bias,
        ...     scale=layer.scale, padding_mode=layer.padding_mode, is_causal=layer.is_causal,
        ... ).shape
        torch.Size([1, 7, 7, 8, 3, 3])
    """
    refuse_dtensors("attention weights are computed", query, key, bias, scale, key_mask)
    # Below, key stands for the value, on which the weights do not depend.
    if any_autocast():
        query, key, _ = autocast_tensors(query, key, key)
    if isinstance(query, Tensor) and query.dim() == 4:
        line = Line(
            *(query, key, key, kernel_size, dilation, bias),
            *(padding_mode, key_mask, is_causal),
        )
        weights = attention_weights(
            *(line.query, line.key, line.kernel_size, line.dilation),
            bias=line.bias,
            scale=scale,
            padding_mode=padding_mode,
            key_mask=line.key_mask,
            is_causal=line.is_causal,
        )
        return weights[:, 0, :, :, 0]
    if isinstance(scale, Tensor):
        query, scale = _scaled(query, scale), 1.0
    with trace_paused():
        problem = make_problem(
            *(query, key, key, kernel_size, dilation, bias, scale, padding_mode),
            *(key_mask, is_causal),
        )
        bias_parts = [] if bias is None else problem.bias_parts(bias.shape)
    for part in bias_parts:
        bias = bias.narrow(*part)  # type: ignore[union-attr]
    return reference.attention_weights(problem, query, key, bias, key_mask)


def any_dtensor(*arguments: Any) -> bool:
    """Whether one of these arguments is a DTensor."""
    loaded = sys.modules.get("torch.distributed.tensor")  # there are none where it is not loaded
    # While another thread imports it, it has none yet.
    kind = getattr(loaded, "DTensor", None)
    return kind is not None and kind in tuple(map(type, arguments))


def refuse_dtensors(what: str, *arguments: Any) -> None:
    """Raises NotImplementedError where one of these arguments is a DTensor."""
    if any_dtensor(*arguments):
        raise NotImplementedError(
            f"{what} for plain tensors alone, got a DTensor: call .to_local() on shards of the "
            "batch, or .full_tensor()"
        )


def _one_axis(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Size,
    dilation: Dilation,
    bias: Tensor | None,
    scale: float | Tensor | None,
    padding_mode: str,
    key_mask: Tensor | None,
    is_causal: Causal,
    return_lse: bool,
    backend: str | None,
) -> Any:
    """What `sliding_dilated_window_attention` returns for DTensors of sequences."""
    line = Line(
        *(query, key, value, kernel_size, dilation, bias),
        *(padding_mode, key_mask, is_causal),
    )
    results = sliding_dilated_window_attention(
        *(line.query, line.key, line.value, line.kernel_size, line.dilation),
        bias=line.bias,
        scale=scale,
        padding_mode=padding_mode,
        key_mask=line.key_mask,
        is_causal=line.is_causal,
        return_lse=return_lse,
        backend=backend,
    )
    if isinstance(results, tuple):
        return tuple(t.squeeze(1) for t in results)
    return results.squeeze(1)


def _of_other_classes(
    query: Any,
    key: Any,
    value: Any,
    kernel_size: Size,
    dilation: Dilation,
    bias: Tensor | None,
    scale: float | Tensor | None,
    padding_mode: str,
    key_mask: Tensor | None,
    is_causal: Causal,
    return_lse: bool,
    backend: str | None,
) -> Any:
    """What `sliding_dilated_window_attention` returns for classes with a way of their own.

    Those are classes with `__torch_function__`, such as the proxies of torch.fx, and DTensor. None
    for all others, such as parameters.
    """
    if has_torch_function_variadic(query, key, value, bias, scale, key_mask):
        return handle_torch_function(
            sliding_dilated_window_attention,
            (query, key, value, bias, scale, key_mask),
            query,
            key,
            value,
            kernel_size,
            dilation,
            bias=bias,
            scale=scale,
            padding_mode=padding_mode,
            key_mask=key_mask,
            is_causal=is_causal,
            return_lse=return_lse,
            backend=backend,
        )
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not any_dtensor(query, key, value, bias, scale, key_mask):
        return None
    if query.dim() == 4:
        return _one_axis(
            *(query, key, value, kernel_size, dilation, bias, scale),
            *(padding_mode, key_mask, is_causal, return_lse, backend),
        )
    from sdwa import sharding

    results = sharding.attention(
        sliding_dilated_window_attention,
        query,
        key,
        value,
        kernel_size,
        dilation,
        bias=bias,
        scale=scale,
        padding_mode=padding_mode,
        key_mask=key_mask,
        is_causal=is_causal,
        backend=backend,
    )
    return results if return_lse else results[0]


def _scaled(query: Tensor, scale: float | Tensor) -> Tensor:
    """query times scale, of one element or of one per head, in the dtype of query.

    Raises:
        TypeError, ValueError: as `check_scale_tensor`.
    """
    if isinstance(scale, Tensor):
        with trace_paused():
            check_scale_tensor(scale, query)
        if scale.dim() > 0:
            scale = scale[:, None]  # of each head, for all its features
    return (query * scale).to(query.dtype)
