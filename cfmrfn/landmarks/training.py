"""How the landmark backbone learns from drawn faces.

Everything random in a step follows from the seed and the number of the step, so a training that was
interrupted goes on bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cfmrfn.checks import is_whole
from cfmrfn.errors import brief
from cfmrfn.landmarks.crops import Faces, normalised, random_frames, spoilt_crops
from cfmrfn.models.mobilefacenet import NATIVE_SIZE, MobileFaceNet
from cfmrfn.optim import load_optimizer_state
from cfmrfn.process.precision import Precision, autocast
from cfmrfn.process.seeds import derived_seed
from cfmrfn.process.signals import init_worker, signals_wait

# Sides of the images that the backbone sees in training. The encoder takes its features of images
# of half the network's image size; landmarks are always those of images of NATIVE_SIZE. Small
# images, which cost less, come first.
EARLY_SIDES = (64, 64, 80)
LATE_SIDES = (64, 96, NATIVE_SIZE, NATIVE_SIZE)
LATE = 0.6  # part of the steps done when larger images come
FROZEN_STATISTICS = 0.2  # part of the steps, at the end
WARM_UP = 0.03  # part of the steps


class CropBatches(Dataset[tuple[Tensor, Tensor]]):
    """Batch number `step` of a training: images as networks see them, and landmarks.

    A batch follows from the seed and its number. Half of its images are in 0..1, as the landmarks
    of a network are computed on, the others normalised, as its tokens are.
    """

    def __init__(self, faces: Faces, batch_size: int, epochs: int, seed: int) -> None:
        self.faces = faces
        self.batch_size = min(batch_size, len(faces))
        self.epochs = epochs
        self.seed = seed

    @property
    def steps(self) -> int:
        """Batches of one pass over the faces; what is left of them is left out."""
        return len(self.faces) // self.batch_size

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(step, self.steps)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.faces))
        taken = order[place * self.batch_size : (place + 1) * self.batch_size]
        generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch, place))
        sides = EARLY_SIDES if step < LATE * self.epochs * self.steps else LATE_SIDES
        side = sides[int(torch.randint(len(sides), (), generator=generator))]
        images, points = spoilt_crops(*self.faces.take(taken), side, generator)
        images[::2] = normalised(images[::2])
        return images, points


def new_backbone(preset: str, faces: Faces, seed: int) -> MobileFaceNet:
    """The untrained backbone of a preset, whose outputs are spread as the landmarks of crops."""
    torch.manual_seed(seed)
    network = timm.create_model(preset).landmark_backbone
    network.requires_grad_(True)
    points = torch.from_numpy(faces.points[:1024])
    inside = random_frames(points, torch.Generator().manual_seed(seed)).points(points)
    # The last norm stays in eval mode, a factor and an addend: less the mean of their batch, faces
    # would lose where they are.
    scale = network.output_layer.bn
    with torch.no_grad():
        scale.weight.copy_(inside.std(0, correction=0).flatten())
        scale.bias.copy_(inside.mean(0).flatten())
    return network.to(memory_format=torch.channels_last)


class Learner:
    """A training, of which `epoch` epochs are done."""

    def __init__(
        self,
        network: MobileFaceNet,
        batches: CropBatches,
        *,
        lr: float,
        precision: Precision,
        device: torch.device,
    ) -> None:
        self.network = network.to(device)
        self.batches = batches
        self.lr, self.precision, self.device = lr, precision, device
        self.epoch = 0
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.01  # statistics over a hundred batches
        groups: list[dict[str, Any]] = [{"params": [], "weight_decay": 0.0}, {"params": []}]
        for parameter in network.parameters():
            groups[parameter.ndim > 1]["params"].append(parameter)
        self.optimizer = torch.optim.AdamW(groups, lr=lr)

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return self.batches.epochs * self.batches.steps

    def run(self, workers: int) -> Iterator[float]:
        """Trains to the end; yields the loss of each step, when its epoch is counted if it ends it.

        Args:
            workers: processes that make crops; 0: this one does.
        """
        steps = range(self.epoch * self.batches.steps, self.total)
        loader = DataLoader(
            self.batches,
            batch_size=None,
            sampler=steps,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=init_worker,
        )
        with signals_wait():
            read_ahead = iter(loader)
        for step, (images, points) in zip(steps, read_ahead, strict=True):
            loss = self._step(step, images.to(self.device), points.to(self.device))
            self.epoch = (step + 1) // self.batches.steps
            yield loss

    def _step(self, step: int, images: Tensor, points: Tensor) -> float:
        done = (step + 0.5) / self.total
        rate = min(1.0, done / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * self.lr
        # At the end it learns with the statistics that it is used with.
        self.network.train(done < 1 - FROZEN_STATISTICS)
        self.network.output_layer.bn.eval()
        with autocast(self.precision, self.device):
            found = self._landmarks(images.contiguous(memory_format=torch.channels_last))
        # Smooth L1 (Girshick 2015, eq. 3) in pixels. Wing loss (Feng et al. 2018) has its least
        # slope where errors are large, as they all are at first.
        loss = F.smooth_l1_loss(found.float() * NATIVE_SIZE, points * NATIVE_SIZE)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def _landmarks(self, images: Tensor) -> Tensor:
        """Of images of any side: their features, resized, are what the head sees."""
        features = self.network.forward_features(images)
        if images.shape[-1] != NATIVE_SIZE:
            features = F.interpolate(features, (7, 7), mode="bilinear")
        return self.network.output_layer(features)

    def state_dict(self) -> dict[str, Any]:
        """What a training that goes on needs."""
        return {
            "epoch": self.epoch,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict()`, bit for bit; raises an error where it cannot be such."""
        epochs = self.batches.epochs
        if not (is_whole(state["epoch"]) and 0 <= state["epoch"] <= epochs):
            raise ValueError(f"epoch must be 0 to {epochs}, got {brief(state['epoch'])}")
        self.epoch = state["epoch"]
        self.network.load_state_dict(state["network"])
        load_optimizer_state(self.optimizer, state["optimizer"])
