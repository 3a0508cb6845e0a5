"""The operator on tensors that are spread over devices, `torch.distributed.tensor.DTensor`.

Neither images nor heads depend on each other: each rank computes its shard of the batch and of the
heads by itself, with the dilations of its heads. This wraps the function, since a sharding rule for
the operators (`register_sharding`) places tensors, but cannot take a rank's part of the dilations;
and the reference is no operator.

Importing this module loads DTensor, which takes long: `sdwa.functional` imports it once a DTensor
has come in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DeviceMesh, DTensor, Partial, Placement, Replicate, Shard

from sdwa.arguments import check_scale_tensor, make_problem
from sdwa.autocast import autocast_tensors
from sdwa.dispatch import select
from sdwa.problem import Causal, Dilation, Size, accumulation_dtype
from sdwa.rules import HEADS
from sdwa.torch_private import varies

BATCH = 0  # dimension of the images in (batch, height, width, heads, head_dim)


def attention(
    attend: Callable[..., tuple[Tensor, Tensor]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Size,
    dilation: Dilation,
    *,
    bias: Tensor | None,
    scale: float | Tensor | None,
    padding_mode: str,
    key_mask: Tensor | None,
    is_causal: Causal,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """Calls `attend`, the function for plain tensors, with each rank's shards.

    The placements of query rule. Those over the batch and over the heads stay. Any other, such as
    one over the height, or Partial, is made Replicate, with the communication that this takes, as
    PyTorch's own operators do. Key and value then get the placements of query.

    Shapes and dilation are those of the whole tensors. bias, scale and key_mask may be DTensors, or
    plain tensors that are whole and the same on every rank. Where ranks share bias or scale, the
    gradient is the sum over them: Partial for a DTensor, already summed for a plain tensor.

    Returns:
        out and lse, DTensors with those placements of query.

    Raises:
        TypeError: query, key or value is not a DTensor.
        ValueError: DTensors on different meshes.
        Anything that the function raises for whole tensors, on every rank.
    """
    spread = _as_spread(query, key, value, {"bias": bias, "scale": scale, "key_mask": key_mask})
    query, key, value = autocast_tensors(query, key, value)
    if isinstance(scale, Tensor):
        check_scale_tensor(scale, query)
    # A tensor, or a number that torch.compile keeps as a variable, is no constant of the problem.
    constant = None if isinstance(scale, Tensor) or varies(scale) else scale
    problem = make_problem(
        *(query, key, value, kernel_size, dilation, bias, constant, padding_mode),
        *(key_mask, is_causal),
    )
    mesh = spread.device_mesh
    # Per dimension of the mesh: the dimension of query that it shards.
    sharded = [
        placement.dim if type(placement) is Shard and placement.dim in (BATCH, HEADS) else None
        for placement in spread.placements
    ]
    placements, _ = _placements(sharded, {BATCH: BATCH, HEADS: HEADS})

    def local(tensor: Tensor, dims: Mapping[int, int]) -> Tensor:
        return _local(tensor, mesh, *_placements(sharded, dims))

    q, k, v = (local(tensor, {BATCH: BATCH, HEADS: HEADS}) for tensor in (query, key, value))
    if bias is not None:
        bias = local(bias, {HEADS: 0})
    if isinstance(scale, Tensor):
        scale = local(scale, {HEADS: 0} if scale.numel() > 1 else {})
    if key_mask is not None:
        key_mask = local(key_mask, {BATCH: 0})
    heads = _own_heads(problem.shape[HEADS], mesh, sharded)
    if heads.start < heads.stop:
        out, lse = attend(
            q,
            k,
            v,
            problem.kernel_size,
            problem.dilation[heads],
            bias=bias,
            scale=scale,
            padding_mode=padding_mode,
            key_mask=key_mask,
            is_causal=problem.is_causal,
            return_lse=True,
            backend=backend,
        )
    else:
        # Raises here as well where no backend runs it: else the other ranks alone would fail.
        one_head = (*problem.shape[:HEADS], 1, *problem.shape[HEADS + 1 :])
        select(replace(problem, shape=one_head, flat_dilation=(1, 1)), backend)
        out, lse = _nothing(v, q, k, bias, scale)
    return (
        _whole(out, (*problem.shape[:-1], value.shape[-1]), mesh, placements),
        _whole(lse, problem.shape[:-1], mesh, placements),
    )


def _as_spread(query: Tensor, key: Tensor, value: Tensor, others: Mapping[str, Any]) -> DTensor:
    """query, once key and value are known to be DTensors like it, and all to be on one mesh.

    Raises:
        TypeError, ValueError: as `attention`.
    """
    maps = {"query": query, "key": key, "value": value}
    spread = {name: t for name, t in {**maps, **others}.items() if isinstance(t, DTensor)}
    for name, tensor in maps.items():
        if name not in spread:
            raise TypeError(
                f"{name} must be a DTensor where {next(iter(spread))} is one, got "
                f"{type(tensor).__name__}: torch.distributed.tensor.distribute_tensor makes one"
            )
    mesh = spread["query"].device_mesh
    for name, tensor in spread.items():
        if tensor.device_mesh != mesh:
            raise ValueError(
                f"{name} must be on the device mesh of query, {mesh}: got {tensor.device_mesh}"
            )
    return spread["query"]


def _placements(
    sharded: Sequence[int | None], dims: Mapping[int, int]
) -> tuple[list[Placement], list[Placement]]:
    """Where a tensor must lie to go with the shards of query, and where its gradient then does.

    Args:
        sharded: the dimension of query that each dimension of the mesh shards.
        dims: the tensor's own dimension for each of query that it has. Ranks that differ in any
            other share the tensor, and each has a part of its gradient.
    """
    where: list[Placement] = []
    gradient: list[Placement] = []
    for dim in sharded:
        own = None if dim is None else dims.get(dim)
        where.append(Replicate() if own is None else Shard(own))
        gradient.append(where[-1] if dim is None or own is not None else Partial())
    return where, gradient


def _local(
    tensor: Tensor, mesh: DeviceMesh, where: Sequence[Placement], gradient: Sequence[Placement]
) -> Tensor:
    """This rank's part of a tensor, brought to the placements `where`."""
    if not isinstance(tensor, DTensor):
        tensor = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim)
    if tuple(tensor.placements) != tuple(where):
        tensor = tensor.redistribute(mesh, where)
    return tensor.to_local(grad_placements=gradient)


def _own_heads(heads: int, mesh: DeviceMesh, sharded: Sequence[int | None]) -> slice:
    """The heads of this rank: like `torch.chunk`, once for each dimension of the mesh in turn."""
    coordinate = mesh.get_coordinate()
    if coordinate is None:  # not a rank of this mesh
        return slice(0, 0)
    start, stop = 0, heads
    # torch.compile of PyTorch 2.11 cannot go through mesh.shape.
    for axis, (dim, index) in enumerate(zip(sharded, coordinate, strict=True)):
        if dim == HEADS:
            chunk = -(-(stop - start) // mesh.size(axis))
            start = min(start + index * chunk, stop)
            stop = min(start + chunk, stop)
    return slice(start, stop)


def _nothing(value: Tensor, *others: float | Tensor | None) -> tuple[Tensor, Tensor]:
    """(out, lse) of a rank without heads.

    They depend on all inputs, as on the other ranks: these wait for this one where gradients are
    summed.
    """
    out = value
    for other in others:
        if isinstance(other, Tensor):
            out = out + other.sum()
    return out, out.sum(-1, dtype=accumulation_dtype(out.dtype))


def _whole(
    tensor: Tensor, shape: Sequence[int], mesh: DeviceMesh, placements: Sequence[Placement]
) -> DTensor:
    """The contiguous tensor of that shape of which this rank has a part."""
    size, stride = torch.Size(shape), torch.empty(shape, device="meta").stride()
    return DTensor.from_local(tensor.contiguous(), mesh, placements, shape=size, stride=stride)
