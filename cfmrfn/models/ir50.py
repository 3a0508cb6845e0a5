"""The expression backbone: ArcFace's IR network (Deng et al. 2019), in the paper IR-50.

Module names follow the public checkpoint, so that its keys are the keys here.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class IRBlock(nn.Module):
    """Pre-activation residual block; the second convolution carries the stride.

    (batch, in_channels, height, width) -> (batch, channels, height / stride, width / stride)
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.shortcut_layer: nn.Module = nn.Identity()
        if in_channels != channels:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
            )
        last_norm = nn.BatchNorm2d(channels)
        # Branches start small, or the sum of 21 untrained ones would far exceed their input.
        nn.init.constant_(last_norm.weight, 0.3)
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.PReLU(channels),
            nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False),
            last_norm,
        )

    def forward(self, x: Tensor) -> Tensor:
        # Every stride-th pixel first, not a strided 1 x 1 convolution: the same, but oneDNN 3.10
        # (in PyTorch 2.11) overruns its buffers in the backward pass of one with few channels.
        shortcut = self.shortcut_layer(x[:, :, :: self.stride, :: self.stride])
        return self.res_layer(x) + shortcut


class IRBackbone(nn.Module):
    """Stages of IR blocks, each halving the map. The defaults are IR-50 without its stage 4.

    Args:
        widths: channels of each stage; the stem has those of the first.
        blocks: blocks of each stage.
        early_stride: the stem halves the map instead of the first stage, so that what lies between
            costs a quarter.
        embedding: also hold the embedding layer that the public checkpoint stores (512 x 7 x 7 to
            512). Nothing runs it: its input would be the output of stage 4. It is there so that
            checkpoints load whole and so that parameters count as the paper counts them.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256),
        blocks: Sequence[int] = (3, 4, 14),
        *,
        early_stride: bool = False,
        embedding: bool = True,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks) or not widths:
            raise ValueError(
                "widths and blocks must have one entry per stage, "
                f"got {tuple(widths)} and {tuple(blocks)}"
            )
        self.out_channels = widths[-1]
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 2 if early_stride else 1, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.PReLU(widths[0]),
        )
        self.body = nn.Sequential()
        in_channels = widths[0]
        for stage, (channels, count) in enumerate(zip(widths, blocks, strict=True)):
            for index in range(count):
                halves = index == 0 and not (early_stride and stage == 0)
                self.body.append(IRBlock(in_channels, channels, stride=2 if halves else 1))
                in_channels = channels
        if embedding:
            self.output_layer = nn.Sequential(
                nn.BatchNorm2d(512),
                nn.Dropout(),
                nn.Flatten(),
                nn.Linear(512 * 7 * 7, 512),
                nn.BatchNorm1d(512),
            )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=0.25)  # the initial slope of PReLU

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, widths[-1], height / 2^stages, width / 2^stages)"""
        return self.body(self.input_layer(x))
