"""The landmark backbone: MobileFaceNet for 68 landmarks (Chen 2021, PyTorch Face Landmark).

Module names follow the public checkpoint, so that its keys are the keys here.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

LANDMARKS = 68
NATIVE_SIZE = 112  # side of the images that the landmark coordinates are defined on


class ConvUnit(nn.Module):
    """Convolution without bias, batch norm, and PReLU unless `linear`."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, channels, kernel_size, stride, padding, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(channels)
        self.prelu = nn.Identity() if linear else nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.prelu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Inverted bottleneck: expand, 3 x 3 depthwise convolution, project without activation."""

    def __init__(self, in_channels: int, channels: int, hidden: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = ConvUnit(in_channels, hidden)
        self.conv_dw = ConvUnit(hidden, hidden, 3, stride=stride, padding=1, groups=hidden)
        self.project = ConvUnit(hidden, channels, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.conv_dw(self.conv(x)))


class ResidualStage(nn.Module):
    """Bottlenecks of one width, each with a residual connection."""

    def __init__(self, channels: int, hidden: int, blocks: int) -> None:
        super().__init__()
        stage = [Bottleneck(channels, channels, hidden) for _ in range(blocks)]
        for block in stage:
            # Branches start small, or the sum of untrained ones would far exceed their input.
            nn.init.constant_(block.project.bn.weight, 0.3)
        self.model = nn.Sequential(*stage)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.model:
            x = x + block(x)
        return x


class LandmarkHead(nn.Module):
    """7 x 7 depthwise convolution over the whole map, then two coordinates per landmark."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_6_dw = ConvUnit(channels, channels, 7, groups=channels, linear=True)
        self.linear = nn.Linear(channels, 2 * LANDMARKS, bias=False)
        self.bn = nn.BatchNorm1d(2 * LANDMARKS)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, 7, 7) -> (batch, 68, 2)"""
        return self.bn(self.linear(self.conv_6_dw(x).flatten(1))).unflatten(1, (LANDMARKS, 2))


class MobileFaceNet(nn.Module):
    """Feature map and landmarks of a face.

    Args:
        width: channels of the first layers; the later ones are multiples of it.
        blocks: residual blocks of the stages at 1/4, 1/8 and 1/16 of the image.
        out_channels: channels of the feature map.
    """

    def __init__(
        self, width: int = 64, blocks: Sequence[int] = (4, 6, 2), out_channels: int = 512
    ) -> None:
        super().__init__()
        if len(blocks) != 3:
            raise ValueError(f"blocks must have 3 entries, got {tuple(blocks)}")
        double = 2 * width
        self.conv1 = ConvUnit(3, width, 3, stride=2, padding=1)
        self.conv2_dw = ConvUnit(width, width, 3, padding=1, groups=width)
        self.conv_23 = Bottleneck(width, width, 2 * width, stride=2)
        self.conv_3 = ResidualStage(width, 2 * width, blocks[0])
        self.conv_34 = Bottleneck(width, double, 4 * width, stride=2)
        self.conv_4 = ResidualStage(double, 4 * width, blocks[1])
        self.conv_45 = Bottleneck(double, double, 8 * width, stride=2)
        self.conv_5 = ResidualStage(double, 4 * width, blocks[2])
        self.conv_6_sep = ConvUnit(double, out_channels)
        self.output_layer = LandmarkHead(out_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # Fan-in, so that features keep an ordinary size without training: the batch norms
                # are in eval mode and change nothing, and fan-out would count all channels of a
                # depthwise convolution.
                nn.init.kaiming_normal_(module.weight, a=0.25)

    @property
    def is_trained(self) -> bool:
        """Whether the weights are from a file and not random.

        The network keeps this backbone in eval mode, so random weights have no batch statistics.
        """
        mean = self.conv1.bn.running_mean
        assert mean is not None
        return bool(mean.any())

    def forward_features(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, out_channels, height / 16, width / 16)"""
        x = self.conv2_dw(self.conv1(x))
        x = self.conv_3(self.conv_23(x))
        x = self.conv_4(self.conv_34(x))
        x = self.conv_5(self.conv_45(x))
        return self.conv_6_sep(x)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, 112, 112) -> (batch, 68, 2): x, y as fractions of the image's sides."""
        return self.output_layer(self.forward_features(x))
