"""Convolutional classifiers: what ends in a pooled vector and one linear layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from architectures._seeding import noise, seeded

__all__ = ["densenet", "googlenet", "regnet", "resnet18", "resnet50", "squeezenet", "vgg_bn"]

CLASSES = 10


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, normalization, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def head(features: int) -> nn.Sequential:
    """Average over the image, then classes."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, CLASSES))


class Residual(nn.Module):
    """A branch beside the identity, or beside a projection where sizes change."""

    def __init__(self, branch: nn.Module, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """ReLU of the sum."""
        return torch.relu(self.branch(x) + self.shortcut(x))


def _basic(inputs: int, width: int, stride: int) -> Residual:
    branch = nn.Sequential(
        conv(inputs, width, 3, stride), nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
    )
    return Residual(branch, inputs, width, stride)


def _bottleneck(inputs: int, width: int, stride: int) -> Residual:
    branch = nn.Sequential(
        conv(inputs, width, 1),
        conv(width, width, 3, stride),
        nn.Conv2d(width, 4 * width, 1, bias=False),
        nn.BatchNorm2d(4 * width),
    )
    return Residual(branch, inputs, 4 * width, stride)


def _resnet(depths: Sequence[int], *, bottleneck: bool, width: int = 16) -> nn.Sequential:
    layers: list[nn.Module] = [conv(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels, factor = width, 4 if bottleneck else 1
    for stage, depth in enumerate(depths):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            make = _bottleneck if bottleneck else _basic
            layers.append(make(channels, width << stage, stride))
            channels = factor * (width << stage)
    return nn.Sequential(*layers, head(channels))


def resnet18() -> nn.Module:
    """ResNet of basic blocks (He et al., Deep Residual Learning for Image Recognition, 2015)."""
    return seeded(lambda: _resnet((2, 2, 2, 2), bottleneck=False), noise(8, 3, 64, 64))


def resnet50() -> nn.Module:
    """ResNet of bottleneck blocks (He et al., 2015)."""
    return seeded(lambda: _resnet((3, 4, 6, 3), bottleneck=True, width=8), noise(8, 3, 64, 64))


def _vgg() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in ((16, 1), (32, 1), (64, 2), (64, 2), (64, 2)):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    hidden = [nn.Linear(channels * 4, 128), nn.ReLU(), nn.Dropout(), nn.Linear(128, CLASSES)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), *hidden)


def vgg_bn() -> nn.Module:
    """VGG-11 with batch normalization (Simonyan & Zisserman, Very Deep Convolutional Networks, 2014)."""
    return seeded(_vgg, noise(8, 3, 64, 64))


class _Dense(nn.Module):
    """Layers that each see all that came before them."""

    def __init__(self, inputs: int, growth: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self._layer(inputs + i * growth, growth) for i in range(depth))

    @staticmethod
    def _layer(inputs: int, growth: int) -> nn.Sequential:
        return nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            conv(inputs, 4 * growth, 1),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """All features side by side."""
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


def _densenet(growth: int = 8, depths: Sequence[int] = (3, 6, 6, 4)) -> nn.Sequential:
    channels = 2 * growth
    layers: list[nn.Module] = [conv(3, channels, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for stage, depth in enumerate(depths):
        layers.append(_Dense(channels, growth, depth))
        channels += depth * growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        if stage < len(depths) - 1:
            layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
    return nn.Sequential(*layers, head(channels))


def densenet() -> nn.Module:
    """DenseNet with transitions (Huang et al., Densely Connected Convolutional Networks, 2016)."""
    return seeded(_densenet, noise(8, 3, 64, 64))


class _Fire(nn.Module):
    """Few channels, expanded by two sizes of kernel."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(inputs, squeezed, 1), nn.ReLU())
        self.small = nn.Conv2d(squeezed, expanded, 1)
        self.large = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Both expansions side by side."""
        x = self.squeeze(x)
        return torch.cat([torch.relu(self.small(x)), torch.relu(self.large(x))], 1)


def _squeezenet() -> nn.Sequential:
    pool = {2, 5}  # behind these; sizes are rounded up, as in the paper's code
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)]
    channels = 32
    for number, width in enumerate((8, 8, 12, 12, 16, 16)):
        layers.append(_Fire(channels, width, 4 * width))
        channels = 8 * width
        if number in pool:
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
    classes = [nn.Dropout(), nn.Conv2d(channels, CLASSES, 1), nn.ReLU()]
    return nn.Sequential(*layers, *classes, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def squeezenet() -> nn.Module:
    """SqueezeNet 1.1 (Iandola et al., AlexNet-level Accuracy with 50x Fewer Parameters, 2016)."""
    return seeded(_squeezenet)


class _Inception(nn.Module):
    """Four branches of different reach."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.one = conv(inputs, width, 1)
        self.three = nn.Sequential(conv(inputs, width, 1), conv(width, 2 * width, 3))
        self.five = nn.Sequential(conv(inputs, width, 1), conv(width, width, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(inputs, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The branches side by side."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


def _googlenet() -> nn.Sequential:
    stem = [conv(3, 16, 7, 2), nn.MaxPool2d(3, 2, ceil_mode=True), nn.LocalResponseNorm(5), conv(16, 40)]
    body: list[nn.Module] = []
    channels = 40
    for width in (8, 12, 16, 16):
        body.append(_Inception(channels, width))
        channels = 5 * width
        if width == 12:
            body.append(nn.MaxPool2d(3, 2, ceil_mode=True))
    return nn.Sequential(*stem, *body, nn.Dropout(), head(channels))


def googlenet() -> nn.Module:
    """GoogLeNet of Inception blocks (Szegedy et al., Going Deeper with Convolutions, 2014)."""
    return seeded(_googlenet, noise(8, 3, 64, 64))


def _regnet() -> nn.Sequential:
    layers: list[nn.Module] = [conv(3, 16, 3, 2)]
    channels = 16
    for width, depth in ((24, 1), (56, 2), (152, 3)):
        for block in range(depth):
            stride = 1 if block else 2
            branch = nn.Sequential(
                conv(channels, width, 1),
                conv(width, width, 3, stride, groups=width // 8),
                nn.Conv2d(width, width, 1, bias=False),
                nn.BatchNorm2d(width),
            )
            layers.append(Residual(branch, channels, width, stride))
            channels = width
    return nn.Sequential(*layers, head(channels))


def regnet() -> nn.Module:
    """RegNetX: grouped bottlenecks (Radosavovic et al., Designing Network Design Spaces, 2020)."""
    return seeded(_regnet, noise(8, 3, 64, 64))
