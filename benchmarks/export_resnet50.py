"""Write a ResNet-50 as torch's dynamo exporter leaves it when its own optimizer is off.

    pip install -c constraints.txt torch onnxscript
    python benchmarks/export_resnet50.py resnet50_raw.onnx
    python benchmarks/optimize.py resnet50_raw.onnx

Seeded weights, batch free. The BatchNormalizations hide behind a CastLike and Expands of constants, so that
onnxruntime does not fold them into the convolutions by itself.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A bottleneck of three convolutions beside a shortcut (He et al., 2015, arXiv:1512.03385)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.BatchNorm2d(4 * width),
        )
        projects = stride != 1 or channels != 4 * width
        projection = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
        self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(4 * width)) if projects else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, h, w]`` to ``[batch, 4 * width, h / stride, w / stride]``."""
        return torch.relu(self.path(x) + self.shortcut(x))


def resnet50() -> nn.Module:
    """The network, its running statistics as those of a trained one: neither 0 nor 1."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    channels = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(count):
            layers.append(Block(channels, width, 1 if number else stride))
            channels = 4 * width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
    model = nn.Sequential(*layers).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def main() -> None:
    torch.manual_seed(0)
    image, batch = torch.randn(2, 3, 224, 224), torch.export.Dim("batch")
    program = torch.onnx.export(
        resnet50(), (image,), dynamo=True, optimize=False, dynamic_shapes=({0: batch},), input_names=["x"]
    )
    program.save(sys.argv[1])


if __name__ == "__main__":
    main()
