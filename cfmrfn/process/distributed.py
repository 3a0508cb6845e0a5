"""Several processes under `torchrun`; one process is the case of size 1, without torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cfmrfn.errors import ConfigError

T = TypeVar("T")

# How long processes wait for what the main one does alone, such as reading all images of a large
# set. They notice at once when it ends, as its connections do.
_LONGEST_ALONE = timedelta(days=7)
_waiting: dist.ProcessGroup | None = None  # for that; other messages have PyTorch's own time limit


class World:
    """The processes of a run: `rank` of `size`, and the `device` of this one.

    Args:
        device: "auto", or what `torch.device` takes. On GPUs each process takes its own. "auto"
            leaves Apple's GPU alone: the network was never tried on one.

    Raises:
        ConfigError: there is no such device.
    """

    def __init__(self, device: str = "auto") -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.device = _device(device, int(os.environ.get("LOCAL_RANK", 0)), self.size)
        if self.size > 1 and not dist.is_initialized():
            global _waiting
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
            group = dist.new_group(backend="gloo", timeout=_LONGEST_ALONE)
            _waiting = cast(dist.ProcessGroup, group)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sums `values` over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Replaces every one of `tensors` by the main process's, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def on_main(self, action: Callable[[], T]) -> T:
        """Does `action` on the main process; every process gets its result, or its error.

        However long that takes: the time limit of other messages does not hold for it.
        """
        if self.size == 1:
            return action()
        box: list[Any] = [None, None]  # result, error
        if self.is_main:
            try:
                box[0] = action()
            except Exception as error:  # raised again below, in every process
                box[1] = error
        dist.broadcast_object_list(box, src=0, group=_waiting)
        if box[1] is not None:
            raise box[1]
        result: T = box[0]
        return result

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces every gradient by its mean over the processes, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))

    def barrier(self) -> None:
        """Waits for every process."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leaves the process group."""
        if self.size > 1:
            dist.destroy_process_group()


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes, of equal size, on any device.

    `nn.SyncBatchNorm` is the same for GPUs only.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same"""
        if not self.training:
            return super().forward(x)
        size = dist.get_world_size()
        wide = x.float()
        mean = _sum_over_processes(wide.mean((0, 2, 3))) / size
        centred = wide - mean[:, None, None]
        variance = _sum_over_processes(centred.square().mean((0, 2, 3))) / size
        if self.track_running_stats:
            self._record(mean.detach(), variance.detach(), size * x.numel() // x.shape[1])
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    def _record(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Moves the running statistics, with the unbiased variance of `count` values."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


class _SumOverProcesses(torch.autograd.Function):
    """The gradient of a sum over processes is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def _sum_over_processes(values: Tensor) -> Tensor:
    """Differentiable sum over the processes."""
    total: Tensor = _SumOverProcesses.apply(values)
    return total


def synchronise_batchnorm(network: nn.Module) -> None:
    """Makes every batch normalisation of `network` see the batches of all processes."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            # only the class changes: parameters, buffers and their names stay
            module.__class__ = GlobalBatchNorm2d


def _device(name: str, local_rank: int, processes: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    legal = f"device must be auto, cpu, cuda, cuda:N or mps, got {name}"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ConfigError(legal) from None
    asked = f"device {name} was asked for, but"
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(
                f"{asked} PyTorch sees no GPU: take --device cpu, or install the PyTorch that is "
                "built for your GPU and driver"
            )
        device = torch.device("cuda", device.index if device.index is not None else local_rank)
        count = torch.cuda.device_count()
        if device.index >= count:
            raise ConfigError(
                f"device {device} was asked for, but PyTorch sees {count} GPU(s): take a lower "
                "number, or start fewer processes"
            )
        torch.cuda.set_device(device)
    elif device.type == "mps":
        if not torch.backends.mps.is_built():
            raise ConfigError(f"{asked} this PyTorch is built without it: take --device cpu")
        if not torch.backends.mps.is_available():
            raise ConfigError(
                f"{asked} PyTorch sees no Apple GPU, or needs a newer macOS: take --device cpu"
            )
        if processes > 1:
            raise ConfigError(f"{asked} it serves one process: leave torchrun out")
    elif device.type != "cpu":
        raise ConfigError(legal)
    return device
