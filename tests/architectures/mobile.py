"""Classifiers for small devices: depthwise convolutions, gates, shuffles; and ConvNeXt."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from architectures._seeding import noise, seeded
from architectures.convnets import head

__all__ = [
    "InvertedResidual",
    "convnext",
    "efficientnet",
    "ghostnet",
    "mobilenet_v2",
    "mobilenet_v3",
    "separable",
    "shufflenet_v2",
]

Activation = Callable[[], nn.Module]


def conv(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    *,
    depthwise: bool = False,
    act: Activation = nn.Identity,
) -> nn.Sequential:
    """Convolution, normalization, activation."""
    groups = inputs if depthwise else 1
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        act(),
    )


def separable(inputs: int, outputs: int, act: Activation = nn.ReLU6) -> nn.Sequential:
    """Depthwise convolution with an activation, then plain mixing of channels."""
    return nn.Sequential(conv(inputs, inputs, 3, depthwise=True, act=act), nn.Conv2d(inputs, outputs, 1))


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole image holds (Hu et al., 2017)."""

    def __init__(self, channels: int, act: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, max(4, channels // 4), 1)
        self.up = nn.Conv2d(max(4, channels // 4), channels, 1)
        self.act, self.gate = act, gate

    def forward(self, x: Tensor) -> Tensor:
        """The input, its channels scaled."""
        weights: Tensor = self.gate(self.up(self.act(self.down(x.mean((2, 3), keepdim=True)))))
        return x * weights


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; the input is added where sizes allow."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        *,
        expand: int = 4,
        kernel: int = 3,
        act: Activation = nn.ReLU6,
        gate: Activation | None = None,
    ) -> None:
        super().__init__()
        hidden = inputs * expand
        layers: list[nn.Module] = [conv(inputs, hidden, act=act)] if expand > 1 else []
        layers.append(conv(hidden, hidden, kernel, stride, depthwise=True, act=act))
        if gate is not None:
            layers.append(SqueezeExcite(hidden, act(), gate()))
        self.branch = nn.Sequential(*layers, conv(hidden, outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        y: Tensor = self.branch(x)
        return x + y if self.adds else y


def _mobilenet_v2() -> nn.Sequential:
    layers: list[nn.Module] = [conv(3, 16, 3, 2, act=nn.ReLU6)]
    layers.append(InvertedResidual(16, 8, 1, expand=1))
    channels = 8
    for width, depth, stride in ((12, 2, 2), (16, 3, 2), (32, 3, 2), (48, 2, 1), (80, 2, 2)):
        for block in range(depth):
            layers.append(InvertedResidual(channels, width, 1 if block else stride, expand=6))
            channels = width
    return nn.Sequential(*layers, conv(channels, 160, act=nn.ReLU6), head(160))


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 (Sandler et al., Inverted Residuals and Linear Bottlenecks, 2018)."""
    return seeded(_mobilenet_v2, noise(8, 3, 64, 64))


def _mobilenet_v3() -> nn.Sequential:
    swish, relu, hard = nn.Hardswish, nn.ReLU, nn.Hardsigmoid
    return nn.Sequential(
        conv(3, 16, 3, 2, act=swish),
        InvertedResidual(16, 16, 2, expand=1, act=relu, gate=hard),
        InvertedResidual(16, 24, 2, expand=4, act=relu),
        InvertedResidual(24, 24, 1, expand=4, act=relu),
        InvertedResidual(24, 40, 2, expand=4, kernel=5, act=swish, gate=hard),
        InvertedResidual(40, 40, 1, expand=6, kernel=5, act=swish, gate=hard),
        InvertedResidual(40, 48, 1, expand=3, kernel=5, act=swish, gate=hard),
        conv(48, 96, act=swish),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 64),
        nn.Hardswish(),
        nn.Linear(64, 10),
    )


def mobilenet_v3() -> nn.Module:
    """MobileNetV3-Small: gates, hard swish (Howard et al., Searching for MobileNetV3, 2019)."""
    return seeded(_mobilenet_v3, noise(8, 3, 64, 64))


def _efficientnet() -> nn.Sequential:
    layers: list[nn.Module] = [conv(3, 16, 3, 2, act=nn.SiLU)]
    layers.append(InvertedResidual(16, 8, 1, expand=1, act=nn.SiLU, gate=nn.Sigmoid))
    channels = 8
    for width, depth, stride, kernel in ((12, 2, 2, 3), (20, 2, 2, 5), (40, 2, 2, 3), (56, 2, 1, 5)):
        for block in range(depth):
            step = 1 if block else stride
            layers.append(
                InvertedResidual(channels, width, step, expand=6, kernel=kernel, act=nn.SiLU, gate=nn.Sigmoid)
            )
            channels = width
    return nn.Sequential(*layers, conv(channels, 160, act=nn.SiLU), head(160))


def efficientnet() -> nn.Module:
    """EfficientNet-B0, narrower (Tan & Le, Rethinking Model Scaling, 2019)."""
    return seeded(_efficientnet, noise(8, 3, 64, 64))


class _Ghost(nn.Module):
    """Half of the channels are cheap functions of the others."""

    def __init__(self, inputs: int, outputs: int, act: Activation) -> None:
        super().__init__()
        self.outputs = outputs
        self.primary = conv(inputs, (outputs + 1) // 2, act=act)
        self.cheap = conv((outputs + 1) // 2, (outputs + 1) // 2, 3, depthwise=True, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """As many channels as wanted, of both halves."""
        primary = self.primary(x)
        return torch.cat([primary, self.cheap(primary)], 1)[:, : self.outputs]


class _GhostBottleneck(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int) -> None:
        super().__init__()
        middle: list[nn.Module] = [conv(hidden, hidden, 3, stride, depthwise=True)] if stride > 1 else []
        gate = SqueezeExcite(hidden, nn.ReLU(), nn.Hardsigmoid())
        self.branch = nn.Sequential(
            _Ghost(inputs, hidden, nn.ReLU), *middle, gate, _Ghost(hidden, outputs, nn.Identity)
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                conv(inputs, inputs, 3, stride, depthwise=True), conv(inputs, outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        y: Tensor = self.branch(x) + self.shortcut(x)
        return y


def _ghostnet() -> nn.Sequential:
    return nn.Sequential(
        conv(3, 16, 3, 2, act=nn.ReLU),
        _GhostBottleneck(16, 16, 16, 1),
        _GhostBottleneck(16, 48, 24, 2),
        _GhostBottleneck(24, 71, 25, 1),  # odd: one cheap channel is cut off
        _GhostBottleneck(25, 72, 40, 2),
        _GhostBottleneck(40, 120, 40, 1),
        conv(40, 96, act=nn.ReLU),
        head(96),
    )


def ghostnet() -> nn.Module:
    """GhostNet (Han et al., More Features from Cheap Operations, 2019)."""
    return seeded(_ghostnet, noise(8, 3, 64, 64))


def _shuffle(x: Tensor) -> Tensor:
    """Channels of the two halves, one by one."""
    batch, channels, height, width = x.shape
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)


class _ShuffleUnit(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.splits = stride == 1
        half, given = outputs // 2, inputs // 2 if stride == 1 else inputs
        self.left: nn.Module = nn.Identity()
        if stride > 1:
            self.left = nn.Sequential(
                conv(inputs, inputs, 3, stride, depthwise=True), conv(inputs, half, act=nn.ReLU)
            )
        self.right = nn.Sequential(
            conv(given, half, act=nn.ReLU),
            conv(half, half, 3, stride, depthwise=True),
            conv(half, half, act=nn.ReLU),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        left, right = x.chunk(2, 1) if self.splits else (x, x)
        return _shuffle(torch.cat([self.left(left), self.right(right)], 1))


def _shufflenet_v2() -> nn.Sequential:
    layers: list[nn.Module] = [conv(3, 24, 3, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
    channels = 24
    for width, depth in ((32, 2), (64, 3), (128, 2)):
        for block in range(depth):
            layers.append(_ShuffleUnit(channels, width, 1 if block else 2))
            channels = width
    return nn.Sequential(*layers, conv(channels, 160, act=nn.ReLU), head(160))


def shufflenet_v2() -> nn.Module:
    """ShuffleNetV2: split, shuffle (Ma et al., Practical Guidelines for Efficient CNN Design, 2018)."""
    return seeded(_shufflenet_v2, noise(8, 3, 64, 64))


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalized where the channels are last, which they are not."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _NextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.mix = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """The block; channels are last inside."""
        y: Tensor = self.mix(self.depthwise(x).permute(0, 2, 3, 1)) * self.scale
        return x + y.permute(0, 3, 1, 2)


def _convnext() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 4, 4), _ChannelNorm(16)]
    for width, depth in ((16, 2), (32, 2), (64, 3)):
        layers += [_NextBlock(width) for _ in range(depth)]
        if width < 64:
            layers += [_ChannelNorm(width), nn.Conv2d(width, 2 * width, 2, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 10))


def convnext() -> nn.Module:
    """ConvNeXt (Liu et al., A ConvNet for the 2020s, 2022)."""
    return seeded(_convnext)
