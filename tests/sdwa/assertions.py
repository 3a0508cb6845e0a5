"""Runs a case forward and backward, and compares it with float64.

The tolerance is relative to what PyTorch itself loses in that dtype: at most twice (forward) or
three times (gradients) the error of the same computation, step by step in that dtype, plus a tiny
floor. Border and interior are compared apart, so that a large interior hides no border.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import sdwa
from sdwa.arguments import as_causal, as_dilation, as_kernel_size
from tests.sdwa.cases import Case, draw

Results = dict[str, Tensor]
FLOOR = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-3, torch.float16: 3e-4}


def run(
    case: Case, tensors: dict[str, Tensor], attention: Callable | None = None, **options
) -> Results:
    """Outputs and gradients of a case: out, lse, grad_query, grad_key, grad_value, grad_bias."""
    attention = attention or sdwa.sliding_dilated_window_attention
    inputs = {
        name: tensors[name].detach().requires_grad_()
        for name in ("query", "key", "value", "bias")
        if name in tensors
    }
    out, lse = attention(
        inputs["query"],
        inputs["key"],
        inputs["value"],
        case.kernel_size,
        case.dilation,
        bias=inputs.get("bias"),
        scale=case.scale,
        padding_mode=case.padding_mode,
        key_mask=tensors.get("key_mask"),
        is_causal=case.is_causal,
        return_lse=True,
        **options,
    )
    grads = torch.autograd.grad(
        (out, lse), list(inputs.values()), (tensors["grad_out"], tensors["grad_lse"].to(lse.dtype))
    )
    return {"out": out.detach(), "lse": lse.detach()} | {
        f"grad_{name}": grad for name, grad in zip(inputs, grads, strict=True)
    }


def stepwise(
    query,
    key,
    value,
    kernel_size,
    dilation,
    *,
    bias,
    scale,
    padding_mode,
    key_mask,
    is_causal,
    return_lse,
):
    """The operator, every step rounded to the dtype of query, as plain PyTorch code does it."""
    batch, height, width, heads, head_dim = query.shape
    shifted = padding_mode == "shifted"
    kernel = as_kernel_size(kernel_size, shifted)
    causal = as_causal(is_causal)
    scale = head_dim**-0.5 if scale is None else scale
    outs, lses = [], []
    for head, step in enumerate(as_dilation(dilation, heads)):
        (rows, bias_rows), (columns, bias_columns) = (
            window_taps(length, size, d, shifted, is_causal)
            for length, size, d, is_causal in zip(
                (height, width), kernel, step, causal, strict=True
            )
        )

        def windows(x: Tensor, rows=rows, columns=columns) -> Tensor:
            """(batch, pixels, taps, channels)"""
            padded = torch.nn.functional.pad(x, (0, 0, 0, 1, 0, 1))  # zeros for what is off the map
            taps = padded[:, rows][:, :, :, columns]
            return taps.transpose(2, 3).reshape(batch, height * width, -1, x.shape[3])

        q = query[:, :, :, head].reshape(batch, height * width, 1, head_dim)
        scores = (q * windows(key[:, :, :, head])).sum(-1) * scale
        if bias is not None and shifted:
            of_taps = bias[head][bias_rows][:, :, bias_columns].transpose(1, 2)
            scores = scores + of_taps.reshape(height * width, -1)
        elif bias is not None:
            scores = scores + bias[head].flatten()
        if any(causal) and not shifted:
            later = torch.zeros(kernel, dtype=torch.bool, device=scores.device)
            later[kernel[0] // 2 + 1 :] |= causal[0]
            later[:, kernel[1] // 2 + 1 :] |= causal[1]
            scores = scores.masked_fill(later.flatten(), float("-inf"))
        on_map = torch.ones_like(key[:, :, :, head, :1])
        if padding_mode != "zeros":
            scores = scores.masked_fill(windows(on_map)[..., 0] == 0, float("-inf"))
        if key_mask is not None:
            left_out = windows(on_map * ~key_mask.unsqueeze(-1))[..., 0]
            scores = scores.masked_fill(left_out != 0, float("-inf"))
        nothing = (scores == float("-inf")).all(-1, keepdim=True)
        scores = scores.masked_fill(nothing, 0)
        weights = scores.softmax(-1).masked_fill(nothing, 0)
        out = (weights.unsqueeze(-1) * windows(value[:, :, :, head])).sum(-2)
        outs.append(out.view(batch, height, width, head_dim))
        lse = scores.logsumexp(-1).masked_fill(nothing[..., 0], float("-inf"))
        lses.append(lse.view(batch, height, width))
    return torch.stack(outs, 3), torch.stack(lses, 3)


def window_taps(length: int, size: int, dilation: int, shifted: bool, is_causal: bool):
    """Which pixel each tap of each pixel reads along an axis, and its place in a bias by distance.

    Both are (length, size). A tap off the axis reads pixel `length`.
    """
    sources, places = [], []
    for pixel in range(length):
        phase = range(pixel % dilation, length, dilation)
        here = pixel // dilation
        first = here - size // 2
        if shifted:
            first = max(0, min(first, len(phase) - size))
            if is_causal:
                first = here - (size - 1)
        taps = range(first, first + size)
        sources.append([phase[tap] if 0 <= tap < len(phase) else length for tap in taps])
        places.append([tap - here + size - 1 for tap in taps])
    return torch.tensor(sources), torch.tensor(places)


def error(result: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of the exact tensor; infinite where it is NaN, or where
    one is infinite and not the other."""
    if exact.numel() == 0:
        return 0.0
    result, infinite = result.double(), exact.isinf()
    if not torch.equal(result.where(infinite, 0), exact.where(infinite, 0)):
        return float("inf")
    result, exact = (tensor.masked_fill(infinite, 0) for tensor in (result, exact))
    difference = (result - exact).norm().item()
    return (
        difference / max(exact.norm().item(), 1e-30) if difference == difference else float("inf")
    )


def parts(tensor: Tensor, case: Case) -> dict[str, Tensor]:
    """Border and interior of a map; a bias gradient is whole."""
    if tensor.dim() < 4:
        return {"whole": tensor}
    kernel = as_kernel_size(case.kernel_size, case.padding_mode == "shifted")
    reach = [max(d[axis] for d in as_dilation(case.dilation, case.shape[3])) for axis in (0, 1)]
    reach = [r * (k // 2) for r, k in zip(reach, kernel, strict=True)]
    inside = torch.zeros(case.shape[1:3], dtype=torch.bool, device=tensor.device)
    inside[reach[0] : case.shape[1] - reach[0], reach[1] : case.shape[2] - reach[1]] = True
    return {"interior": tensor[:, inside], "border": tensor[:, ~inside]}


def assert_matches_float64(case: Case, dtype: torch.dtype, seed: int = 0, **options) -> None:
    """Every output and gradient of a case, in a dtype, against the float64 reference."""
    device = options.pop("device", "cpu")
    tensors = draw(case, dtype, device, seed)
    assert_results_match(case, dtype, tensors, run(case, tensors, **options))


def assert_results_match(
    case: Case, dtype: torch.dtype, tensors: dict[str, Tensor], results: Results
) -> None:
    """The same for results at hand, of the tensors given."""
    doubles = {
        name: tensor if name == "key_mask" else tensor.double() for name, tensor in tensors.items()
    }
    exact = run(case, doubles, backend="reference")
    if dtype != torch.float64 and case.shape[0]:
        lost = run(case, tensors, stepwise)
    else:
        lost = {name: tensor.to(dtype) for name, tensor in exact.items()}
    assert results["out"].dtype == dtype
    assert results["lse"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for name, result in results.items():
        assert result.shape == exact[name].shape, name
        allowed_times = 3 if name.startswith("grad") else 2
        for part in parts(result, case):
            target = parts(exact[name], case)[part]
            got = error(parts(result, case)[part], target)
            allowed = allowed_times * error(parts(lost[name], case)[part], target) + FLOOR[dtype]
            assert got <= allowed, f"{name}, {part}: error {got:.2e}, allowed {allowed:.2e}"
