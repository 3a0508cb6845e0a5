"""One optimizer step over one batch: plain, or the two passes of sharpness-aware minimisation.

SAM (Foret et al., ICLR 2021) takes the gradient where the loss is worst near the weights: the
first pass climbs from w to w + rho * g / ||g||, the second pass takes the gradient there, and the
base optimizer applies it to w.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from pytorch_optimizer import SAM
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import Optimizer

from cfmrfn.checks import is_number
from cfmrfn.config import OptimConfig
from cfmrfn.errors import brief
from cfmrfn.models import CFMRFN
from cfmrfn.process.distributed import World
from cfmrfn.process.precision import autocast, sum_dtype
from cfmrfn.process.seeds import derived_seed

# images (part, 3, size, size), landmark features, targets
Part = tuple[Tensor, Tensor | None, Tensor]


class StepResult(NamedTuple):
    """Mean `loss` and number of `correct` images of the batch, before the step.

    `applied`: False where the loss or a gradient was not finite; the weights are then unchanged.
    """

    loss: float
    correct: int
    applied: bool


@contextmanager
def frozen_batch_statistics(network: nn.Module) -> Iterator[None]:
    """Within it, batch normalisation uses the batch's statistics without recording them."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


class TrainingStep:
    """Callable: one optimizer step over this process's part of a batch.

    Args:
        network: the bare network, with `landmark_features(images)`.
        model: what is called, `network` or its compiled or distributed wrapper.
        optimizer: from `optim.build_optimizer`.
        criterion: (logits, targets) -> mean loss.
        optim: precision, accumulation, clipping, and SAM's switches.
        world: the processes of the run.
    """

    def __init__(
        self,
        network: CFMRFN,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: nn.Module,
        optim: OptimConfig,
        world: World,
    ) -> None:
        self.network = network
        self.model = model
        self.optimizer = optimizer
        self.criterion = criterion
        self.optim = optim
        self.world = world
        self.sam = optimizer if isinstance(optimizer, SAM) else None
        self.base_optimizer = optimizer if self.sam is None else self.sam.base_optimizer
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.scaler = GradScaler(world.device.type, enabled=optim.precision == "fp16")

    def __call__(self, images: Tensor, targets: Tensor, number: int) -> StepResult:
        """images (batch, 3, size, size), targets (batch,) or (batch, classes).

        `number` counts the steps of the run and decides stochastic depth, alike in both passes:
        SAM compares one network with itself.
        """
        image_parts = images.chunk(self.optim.accumulate)
        target_parts = targets.chunk(self.optim.accumulate)
        with torch.no_grad(), self._autocast():
            # the landmark stream is frozen: once for both passes
            features = [self.network.landmark_features(part) for part in image_parts]
        parts = list(zip(image_parts, features, target_parts, strict=True))

        self.optimizer.zero_grad()
        loss, correct = self._backward(parts, number, synchronise=self.sam is None)
        if not math.isfinite(loss):
            return StepResult(loss, correct, applied=False)
        applied = (self.sam is None or self._climb(self.sam, parts, number)) and self._descend()
        self.scaler.update()
        return StepResult(loss, correct, applied)

    def load_scaler_state(self, saved: dict[str, Any]) -> None:
        """Loads what `scaler.state_dict()` gave; raises ValueError where it cannot be such."""
        for name in self.scaler.state_dict():
            number = saved[name]
            if not (is_number(number) and number >= 0):
                raise ValueError(
                    f"{name} of scaler must be a number from 0 on, got {brief(number)}"
                )
        self.scaler.load_state_dict(saved)

    @property
    def may_overflow(self) -> bool:
        """Whether the loss scaler can still go down, so that a step not applied is no failure."""
        return self.scaler.get_scale() > 1  # that of a scaler without use is 1

    def _no_sync(self) -> AbstractContextManager[object]:
        # of a distributed wrapper, which a compiled one around it passes on
        no_sync: Callable[[], AbstractContextManager[object]]
        no_sync = getattr(self.model, "no_sync", nullcontext)
        return no_sync()

    def _autocast(self) -> AbstractContextManager[object]:
        return autocast(self.optim.precision, self.world.device)

    def _backward(self, parts: list[Part], number: int, *, synchronise: bool) -> tuple[float, int]:
        """Forward and backward of every part; the batch's mean loss and correct predictions."""
        sums = torch.zeros(2, dtype=sum_dtype(self.world.device), device=self.world.device)
        for index, (images, features, targets) in enumerate(parts):
            torch.manual_seed(
                derived_seed(self.optim.seed, number, self.world.rank * len(parts) + index)
            )
            last = index == len(parts) - 1
            with nullcontext() if synchronise and last else self._no_sync():
                with self._autocast():
                    logits = self.model(images, features)
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                loss = self.criterion(logits, targets) / len(parts)
                self.scaler.scale(loss).backward()
            labels = targets if targets.ndim == 1 else targets.argmax(1)
            sums += torch.stack([loss.detach(), (logits.argmax(1) == labels).sum()])
        loss_sum, correct = self.world.sum(sums).tolist()
        return loss_sum / self.world.size, int(correct)

    def _climb(self, sam: SAM, parts: list[Part], number: int) -> bool:
        """SAM's first step and second pass; False where the first gradient is not finite."""
        if not self.optim.sam_local:
            self.world.average_gradients(self.parameters)
        self.scaler.unscale_(sam)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = get_total_norm(gradients)
        # with sam_local the gradients differ between processes, and all must decide alike
        if not self.world.sum(norm).isfinite():
            # also of loss scales: every scaler is to see a gradient that is not finite
            gradients[0].fill_(math.inf)
            self.scaler.unscale_(self.base_optimizer)
            return False
        sam.first_step(zero_grad=True)
        freeze = self.optim.sam_freeze_statistics
        with frozen_batch_statistics(self.network) if freeze else nullcontext():
            self._backward(parts, number, synchronise=True)
        return True

    def _descend(self) -> bool:
        """Clip and apply the gradient; False, and no change of weights, where it is not finite."""
        self.scaler.unscale_(self.base_optimizer)
        clip = math.inf if self.optim.clip is None else self.optim.clip
        finite = bool(clip_grad_norm_(self.parameters, clip).isfinite())
        if not finite:
            # without gradients the base optimizer does nothing, and SAM still restores the weights
            self.optimizer.zero_grad()
        if self.sam is None:
            self.base_optimizer.step()
        else:
            self.sam.second_step()
        return finite
