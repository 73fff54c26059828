"""Classifiers that cut the image into patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from architectures._seeding import noise, seeded

__all__ = ["deit", "mlp_mixer", "poolformer", "swin", "vit"]

CLASSES = 10


class _Patches(nn.Module):
    """Tokens of an image, with a class token and positions if wanted."""

    def __init__(self, width: int, patch: int, tokens: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, tokens + 1, width) * 0.3)

    def forward(self, image: Tensor) -> Tensor:
        """[batch, tokens + 1, width]."""
        patches = self.project(image).flatten(2).transpose(1, 2)
        token = self.token.expand(image.shape[0], -1, -1)
        return torch.cat([token, patches], 1) + self.positions


class _VisionTransformer(nn.Module):
    """nn.TransformerEncoder over patches; the class token is read."""

    def __init__(self, width: int = 48, depth: int = 3) -> None:
        super().__init__()
        self.patches = _Patches(width, 8, 64)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.classes = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classes(self.encoder(self.patches(image))[:, 0])
        return logits


def vit() -> nn.Module:
    """Vision Transformer (Dosovitskiy et al., An Image is Worth 16x16 Words, 2020)."""
    return seeded(_VisionTransformer)


class _SelfAttention(nn.Module):
    """nn.MultiheadAttention of something with itself, behind a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """The input and what was attended to."""
        y = self.norm(x)
        attended: Tensor = self.attention(y, y, y, need_weights=False)[0]
        return x + attended


class _Mlp(nn.Module):
    """Two linear layers behind a norm, beside the identity."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The input and what was made of it."""
        made: Tensor = self.layers(x)
        return x + made


class _Deit(nn.Module):
    def __init__(self, width: int = 48, depth: int = 3) -> None:
        super().__init__()
        self.patches = _Patches(width, 8, 64)
        self.blocks = nn.Sequential(
            *(nn.Sequential(_SelfAttention(width, 3), _Mlp(width, 4 * width)) for _ in range(depth))
        )
        self.classes = nn.Linear(width, CLASSES)
        self.teacher = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """The average of both heads."""
        tokens = self.blocks(self.patches(image))
        logits: Tensor = (self.classes(tokens[:, 0]) + self.teacher(tokens[:, 1:].mean(1))) / 2
        return logits


def deit() -> nn.Module:
    """DeiT of nn.MultiheadAttention (Touvron et al., Training data-efficient image transformers, 2020)."""
    return seeded(_Deit)


class _WindowAttention(nn.Module):
    """Attention inside windows, with a bias for every offset; windows may be shifted by half."""

    def __init__(self, width: int, heads: int, window: int, side: int, *, shifted: bool) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, window // 2 if shifted else 0
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.bias = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.5)
        self.register_buffer("offsets", _offsets(window))
        self.register_buffer("mask", _shift_mask(side, window, self.shift))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, side, side, width] to the same."""
        y = self.norm(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        batch, side, _, width = y.shape
        rows = side // self.window
        y = y.view(batch, rows, self.window, rows, self.window, width).permute(0, 1, 3, 2, 4, 5)
        y = self._attend(y.reshape(-1, self.window**2, width), rows**2)
        y = y.view(batch, rows, rows, self.window, self.window, width).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(batch, side, side, width)
        return x + (torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y)

    def _attend(self, windows: Tensor, count: int) -> Tensor:
        total, tokens, width = windows.shape
        qkv = self.qkv(windows).view(total, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        offsets, mask = self.get_buffer("offsets"), self.get_buffer("mask")
        bias = self.bias[offsets.view(-1)].view(tokens, tokens, self.heads).permute(2, 0, 1)
        scores = q * (width // self.heads) ** -0.5 @ k.transpose(-2, -1) + bias
        if self.shift:
            scores = scores.view(-1, count, self.heads, tokens, tokens) + mask[None, :, None]
            scores = scores.view(-1, self.heads, tokens, tokens)
        mixed: Tensor = self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(total, tokens, width))
        return mixed


def _offsets(window: int) -> Tensor:
    """Which bias each pair of places in a window has."""
    places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    apart = places[:, :, None] - places[:, None, :] + window - 1
    return apart[0] * (2 * window - 1) + apart[1]


def _shift_mask(side: int, window: int, shift: int) -> Tensor:
    """What keeps apart that came together only by the shift, for each window."""
    regions = torch.zeros(side, side)
    if shift:
        bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
        for number, (rows, columns) in enumerate((r, c) for r in bands for c in bands):
            regions[rows, columns] = number
    count = side // window
    tokens = regions.view(count, window, count, window).permute(0, 2, 1, 3).reshape(count**2, window**2)
    return (tokens[:, None] != tokens[:, :, None]).float() * -100.0


class _Merge(nn.Module):
    """Four neighbours become one of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Half the side."""
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        merged: Tensor = self.reduce(self.norm(torch.cat(corners, -1)))
        return merged


class _Swin(nn.Module):
    def __init__(self, width: int = 24, window: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        stages: list[nn.Module] = []
        for side in (16, 8):
            for shifted in (False, True):
                stages += [
                    _WindowAttention(width, width // 8, window, side, shifted=shifted),
                    _Mlp(width, 4 * width),
                ]
            if side == 16:
                stages.append(_Merge(width))
                width *= 2
        self.stages = nn.Sequential(*stages, nn.LayerNorm(width))
        self.classes = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classes(self.stages(self.embed(image).permute(0, 2, 3, 1)).mean((1, 2)))
        return logits


def swin() -> nn.Module:
    """Swin (Liu et al., Hierarchical Vision Transformer using Shifted Windows, 2021)."""
    return seeded(_Swin)


class _Mixer(nn.Module):
    """One layer over the tokens, one over the channels."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.channels = _Mlp(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] to the same."""
        mixed: Tensor = self.channels(x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2))
        return mixed


class _MlpMixer(nn.Module):
    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 8, 8)
        self.blocks = nn.Sequential(*(_Mixer(64, width) for _ in range(4)), nn.LayerNorm(width))
        self.classes = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        tokens = self.embed(image).flatten(2).transpose(1, 2)
        logits: Tensor = self.classes(self.blocks(tokens).mean(1))
        return logits


def mlp_mixer() -> nn.Module:
    """MLP-Mixer (Tolstikhin et al., An all-MLP Architecture for Vision, 2021)."""
    return seeded(_MlpMixer)


class _PoolBlock(nn.Module):
    """Pooling mixes the places; the edge is not counted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.mlp = nn.Sequential(nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        y = self.first(x)
        x = x + F.avg_pool2d(y, 3, 1, 1, count_include_pad=False) - y
        mixed: Tensor = x + 0.5 * self.mlp(self.second(x))
        return mixed


def _poolformer() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 7, 4, 2)]
    for width in (16, 32, 64):
        layers += [_PoolBlock(width), _PoolBlock(width)]
        if width < 64:
            layers.append(nn.Conv2d(width, 2 * width, 3, 2, 1))
    return nn.Sequential(
        *layers, nn.GroupNorm(1, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES)
    )


def poolformer() -> nn.Module:
    """PoolFormer (Yu et al., MetaFormer is Actually What You Need for Vision, 2021)."""
    return seeded(_poolformer, noise(2, 3, 64, 64))
