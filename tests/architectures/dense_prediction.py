"""Networks whose output is an image, or boxes all over it."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from architectures._seeding import noise, seeded
from architectures.convnets import Residual, conv
from architectures.mobile import InvertedResidual, separable
from architectures.mobile import conv as mobile_conv

__all__ = ["deeplab", "fpn", "ssdlite", "style_transfer", "super_resolution", "unet"]

CLASSES = 5


class _UNet(nn.Module):
    """Down by pooling, up by transposed convolutions, with all sizes passed across."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        widths = [width << level for level in range(4)]
        inputs = [3, *widths]
        self.down = nn.ModuleList(self._double(i, o) for i, o in zip(inputs, widths, strict=False))
        pairs = [(2 * w, w) for w in reversed(widths[:-1])]
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in pairs)
        self.merge = nn.ModuleList(self._double(i, o) for i, o in pairs)
        self.classes = nn.Conv2d(width, CLASSES, 1)

    @staticmethod
    def _double(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(conv(inputs, outputs), conv(outputs, outputs))

    def forward(self, image: Tensor) -> Tensor:
        """Logits for each pixel; sizes must be multiples of 8."""
        kept: list[Tensor] = []
        x = image
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for up, merge, beside in zip(self.up, self.merge, reversed(kept[:-1]), strict=True):
            x = merge(torch.cat([beside, up(x)], 1))
        logits: Tensor = self.classes(x)
        return logits


def unet() -> nn.Module:
    """U-Net (Ronneberger et al., Convolutional Networks for Biomedical Image Segmentation, 2015)."""
    return seeded(_UNet, noise(4, 3, 64, 64))


class _Pyramid(nn.Module):
    """Dilated convolutions of several reaches, and the whole image (ASPP)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, width, 3, padding=rate, dilation=rate, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )
            for rate in (1, 2, 4)
        )
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, width, 1), nn.ReLU())
        self.project = conv(4 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The reaches mixed."""
        whole = F.interpolate(self.whole(x), x.shape[-2:], mode="bilinear", align_corners=False)
        mixed: Tensor = self.project(torch.cat([*(branch(x) for branch in self.branches), whole], 1))
        return mixed


class _DeepLab(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, width, 3, 2), conv(width, 2 * width, 3, 2))
        dilated = [nn.Conv2d(2 * width, 2 * width, 3, padding=2, dilation=2), nn.BatchNorm2d(2 * width)]
        self.body = Residual(nn.Sequential(*dilated), 2 * width, 2 * width, 1)
        self.pyramid = _Pyramid(2 * width, width)
        self.classes = nn.Conv2d(width, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits for each pixel, as large as the image whatever its size."""
        x = self.classes(self.pyramid(self.body(self.stem(image))))
        return F.interpolate(x, size=image.shape[-2:], mode="bilinear", align_corners=False)


def deeplab() -> nn.Module:
    """DeepLabV3 (Chen et al., Rethinking Atrous Convolution, 2017)."""
    return seeded(_DeepLab, noise(4, 3, 64, 64))


class _Fpn(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        inputs = (3, *widths)
        self.stages = nn.ModuleList(conv(i, o, 3, 2) for i, o in zip(inputs, widths, strict=False))
        self.lateral = nn.ModuleList(nn.Conv2d(w, width, 1) for w in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in widths)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Features at three scales, each knowing of the coarser ones."""
        features: list[Tensor] = []
        x = image
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        merged = [self.lateral[-1](features[-1])]
        for lateral, feature in zip(reversed(self.lateral[:-1]), reversed(features[:-1]), strict=True):
            above = F.interpolate(merged[0], size=feature.shape[-2:], mode="nearest")
            merged.insert(0, lateral(feature) + above)
        return tuple(smooth(x) for smooth, x in zip(self.smooth, merged, strict=True))


def fpn() -> nn.Module:
    """Features for detection (Lin et al., Feature Pyramid Networks for Object Detection, 2016)."""
    return seeded(_Fpn, noise(4, 3, 64, 64))


#: Of the anchors at each scale, in parts of the image: a square, a wide and a tall one of each.
_SCALES = (0.15, 0.35, 0.6, 0.85)
_RATIOS = (1.0, 2.0, 0.5)


def _anchors(feature: Tensor, scale: float) -> Tensor:
    """Centres and sizes of the anchors at every place of a feature map, in parts of the image."""
    height, width = feature.shape[-2:]
    y = (torch.arange(height, device=feature.device) + 0.5) / height
    x = (torch.arange(width, device=feature.device) + 0.5) / width
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    centres = torch.stack([columns, rows], -1).reshape(-1, 1, 2)
    sizes = torch.tensor([[scale * r**0.5, scale / r**0.5] for r in _RATIOS], device=feature.device)
    count = centres.shape[0]
    pairs = [centres.expand(-1, len(_RATIOS), -1), sizes.expand(count, -1, -1)]
    return torch.cat(pairs, -1).reshape(-1, 4)


def _decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Corners of the boxes that the offsets make of the anchors."""
    centres = anchors[:, :2] + offsets[..., :2] * 0.1 * anchors[:, 2:]
    sizes = anchors[:, 2:] * torch.exp((offsets[..., 2:] * 0.2).clamp(max=4.0))
    return torch.cat([centres - sizes / 2, centres + sizes / 2], -1).clamp(0.0, 1.0)


class _SsdLite(nn.Module):
    """Boxes and scores of all anchors, before anything is suppressed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            mobile_conv(3, 16, 3, 2, act=nn.ReLU6),
            InvertedResidual(16, 16, 2),
            InvertedResidual(16, 24, 2),
            InvertedResidual(24, 24, 1),
        )
        self.extra = nn.ModuleList(InvertedResidual(i, o, 2) for i, o in ((24, 32), (32, 48), (48, 48)))
        widths, count = (24, 32, 48, 48), len(_RATIOS)
        self.offsets = nn.ModuleList(separable(w, 4 * count) for w in widths)
        self.classes = nn.ModuleList(separable(w, CLASSES * count) for w in widths)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """``boxes`` as corners in parts of the image, ``scores`` of the classes."""
        features = [self.first(image)]
        for block in self.extra:
            features.append(block(features[-1]))
        offsets = [self._flat(head(x), 4) for head, x in zip(self.offsets, features, strict=True)]
        logits = [self._flat(head(x), CLASSES) for head, x in zip(self.classes, features, strict=True)]
        anchors = torch.cat([_anchors(x, scale) for x, scale in zip(features, _SCALES, strict=True)])
        boxes = _decode(torch.cat(offsets, 1), anchors)
        return {"boxes": boxes, "scores": torch.cat(logits, 1).softmax(-1)}

    @staticmethod
    def _flat(x: Tensor, size: int) -> Tensor:
        """[batch, anchors·size, height, width] to [batch, all anchors, size]."""
        batch, _, height, width = x.shape
        return x.view(batch, -1, size, height, width).permute(0, 3, 4, 1, 2).reshape(batch, -1, size)


def ssdlite() -> nn.Module:
    """SSDLite (Liu et al., SSD, 2015; Sandler et al., Inverted Residuals and Linear Bottlenecks, 2018)."""
    return seeded(_SsdLite, noise(4, 3, 96, 96))


def _stroke(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.ReflectionPad2d(kernel // 2),
        nn.Conv2d(inputs, outputs, kernel, stride),
        nn.InstanceNorm2d(outputs, affine=True),
    )


class _StyleResidual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(_stroke(width, width, 3), nn.ReLU(), _stroke(width, width, 3))

    def forward(self, x: Tensor) -> Tensor:
        """The input and what was made of it."""
        made: Tensor = self.branch(x)
        return x + made


def _style_transfer(width: int = 8) -> nn.Sequential:
    down = [_stroke(3, width, 9), nn.ReLU(), _stroke(width, 2 * width, 3, 2), nn.ReLU()]
    up = [nn.Upsample(scale_factor=2, mode="nearest"), _stroke(2 * width, width, 3), nn.ReLU()]
    last = [nn.ReflectionPad2d(4), nn.Conv2d(width, 3, 9), nn.Tanh()]
    return nn.Sequential(*down, *(_StyleResidual(2 * width) for _ in range(3)), *up, *last)


def style_transfer() -> nn.Module:
    """Fast style transfer (Johnson et al., Perceptual Losses, 2016; Ulyanov et al., Instance Norm, 2016)."""
    return seeded(_style_transfer)


def _super_resolution() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.Tanh(),
        nn.Conv2d(32, 16, 3, padding=1),
        nn.PReLU(16),
        nn.Conv2d(16, 9, 3, padding=1),
        nn.PixelShuffle(3),
    )


def super_resolution() -> nn.Module:
    """ESPCN (Shi et al., Real-Time Single Image and Video Super-Resolution, 2016)."""
    return seeded(_super_resolution)
