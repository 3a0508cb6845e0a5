"""Which backend runs a problem, and why the others do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn.functional import pad

from sdwa.arguments import Line, is_int, make_problem
from sdwa.backends import BACKENDS, Backend
from sdwa.problem import AttentionProblem, Call, Causal, Dilation, Size
from sdwa.torch_private import trace_paused

# At most so many calls are kept: more than any model makes, and a bound where shapes never repeat.
MOST_PREPARED = 4096
# Each with the arguments that it was made of and that may equal others which are not legal: (1, 2)
# equals (1, 2.0), and False equals 0.
_prepared: dict[Any, tuple[Call, Size, Dilation, Causal]] = {}


class BackendError(ValueError, RuntimeError):
    """A backend was asked for that cannot run the problem, or none can on this machine."""


def prepare(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Size,
    dilation: Dilation,
    bias: Tensor | None,
    scale: float | None,
    padding_mode: str,
    key_mask: Tensor | None,
    is_causal: Causal,
    backend: str | None,
) -> Call:
    """Validates a call, chooses its backend, and returns what computes (out, lse).

    It is for maps, or for sequences, (batch, length, heads, head_dim).

    On a small map that takes longer than the kernel, so the result is kept. It serves later calls
    with the same arguments and tensors of the same shape, dtype and device.

    Returns:
        (query, key, value, bias, key_mask) -> (out, lse), with bias contiguous in the accumulation
        type, and key_mask contiguous.

    Raises:
        TypeError, ValueError, BackendError: as `make_problem` and `select`.
    """
    facts = None
    if not is_compiling():
        try:
            facts = (  # flat: tuples in it would take longer to make
                query.shape, query.dtype, query.device, query.stride(-1),
                key.shape, key.dtype, key.device, key.stride(-1),
                value.shape, value.dtype, value.device, value.stride(-1),
                None if bias is None else (bias.shape, bias.dtype, bias.device, bias.layout),
                None if key_mask is None else (
                    key_mask.shape, key_mask.dtype, key_mask.device, key_mask.layout
                ),
                kernel_size, dilation, scale, scale.__class__, padding_mode, is_causal, backend,
            )  # fmt: skip
            known = _prepared.get(facts)
        except (AttributeError, IndexError, TypeError, RuntimeError):
            known = facts = None  # not dense tensors, or lists, which have no hash
            if any(isinstance(given, list) for given in (kernel_size, dilation, is_causal)):
                sizes = _as_tuples(kernel_size), _as_tuples(dilation)
                causal = _as_tuples(is_causal)
                return prepare(
                    *(query, key, value, *sizes, bias, scale, padding_mode),
                    *(key_mask, causal, backend),
                )
        if (
            known is not None
            and (known[2] is dilation or repr(known[2]) == repr(dilation))
            and (known[1] is kernel_size or repr(known[1]) == repr(kernel_size))
            and (is_causal is False or repr(known[3]) == repr(is_causal))
        ):
            return known[0]
    if query.dim() == 4:
        line = Line(
            *(query, key, value, kernel_size, dilation, bias),
            *(padding_mode, key_mask, is_causal),
        )
        call = _of_sequences(
            prepare(
                *(line.query, line.key, line.value, line.kernel_size, line.dilation, line.bias),
                *(scale, padding_mode, line.key_mask, line.is_causal, backend),
            )
        )
    else:
        with trace_paused():
            problem = make_problem(
                *(query, key, value, kernel_size, dilation, bias, scale, padding_mode),
                *(key_mask, is_causal),
            )
            widths = query.shape[4], value.shape[4]
            bias_parts = [] if bias is None else problem.bias_parts(bias.shape)
        call = select(problem, backend).bind(problem)
        if bias_parts:
            call = _with_part_of_bias(call, bias_parts)
        if widths[0] != widths[1]:
            call = _padded(call, widths[1], problem.shape[4])
    # Within `torch.jit.trace` the facts hold tensors, new each time: they are not found again.
    if (
        facts is not None
        and _is_fixed(kernel_size)
        and _is_fixed(dilation)
        and isinstance(is_causal, bool | tuple)
        and not torch.jit.is_tracing()  # type: ignore[no-untyped-call]
    ):
        if len(_prepared) >= MOST_PREPARED:
            _prepared.clear()
        _prepared[facts] = call, kernel_size, dilation, is_causal
    return call


def _of_sequences(call: Call) -> Call:
    """A call for sequences, made of one for maps of one row."""

    def of_sequences(
        query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, key_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        bias = None if bias is None else bias.unsqueeze(1)
        key_mask = None if key_mask is None else key_mask.unsqueeze(1)
        out, lse = call(query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1), bias, key_mask)
        return out.squeeze(1), lse.squeeze(1)

    return of_sequences


def _is_fixed(value: Any) -> bool:
    """Whether nothing can change it, as it can a sequence of the user's own class."""
    return is_int(value) or (isinstance(value, tuple) and all(map(_is_fixed, value)))


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _padded(call: Call, value_dim: int, head_dim: int) -> Call:
    """A call for a value of another head_dim than query and key, made of one for a single head_dim.

    Further features of zero change neither the scores, nor those of the result that are kept.
    """

    def widened(x: Tensor) -> Tensor:
        # `pad` may keep a layout that it takes for channels_last_3d.
        return pad(x, (0, head_dim - x.shape[4])).contiguous()

    def padded(
        query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, key_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if value_dim == head_dim:
            query, key = widened(query), widened(key)
        else:
            value = widened(value)
        out, lse = call(query, key, value, bias, key_mask)
        return out[..., :value_dim].contiguous(), lse

    return padded


def _with_part_of_bias(call: Call, parts: Sequence[tuple[int, int, int]]) -> Call:
    """A call that takes the bias as the user gave it, made of one that takes that of its taps.

    A bias by distance is cut to the window, and one of a causal window to the taps that are left.
    """

    def cut(
        query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, key_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        assert bias is not None
        for part in parts:
            bias = bias.narrow(*part)
        return call(query, key, value, bias.contiguous(), key_mask)

    return cut


def select(problem: AttentionProblem, name: str | None) -> Backend:
    """The backend of that name, or the best that fits where name is None.

    Raises:
        ValueError: no backend of that name.
        BackendError: the named backend cannot run the problem, or none can; with the reasons.
    """
    if name is None:
        for backend in BACKENDS:
            if backend.by_default and not backend.reasons(problem):
                return backend
        lines = [f"  {b.name}: {'; '.join(b.reasons(problem))}" for b in BACKENDS]
        raise BackendError("no backend can run this problem:\n" + "\n".join(lines))
    backend = named(name)
    if reasons := backend.reasons(problem):
        raise BackendError(f'backend "{name}" cannot run this problem: {"; ".join(reasons)}')
    return backend


def named(name: str) -> Backend:
    """The backend of that name.

    Raises:
        ValueError: there is none.
    """
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    legal = ", ".join(f'"{b.name}"' for b in BACKENDS)
    raise ValueError(f"backend must be None or one of {legal}, got {name!r}")


def available_backends(
    device: torch.device | str | None = None,
) -> dict[str, tuple[str, ...]]:
    """Why each backend cannot be used on a device; an empty tuple: it can.

    Args:
        device: the device to ask about; None: the GPU where PyTorch sees one, else the CPU. Every
            backend is then asked about the device that it is made for.

    Raises:
        ValueError: PyTorch knows no such device.

    Example:
        >>> sdwa.available_backends("cpu")["cpu"]
        ()
    """
    if device is None:
        return {b.name: b.unavailable(torch.device(b.device_type)) for b in BACKENDS}
    try:
        asked = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f'device must be one that PyTorch knows, such as "cpu" or "cuda:0", got {device!r}'
        ) from error
    return {backend.name: backend.unavailable(asked) for backend in BACKENDS}
