"""Random weights that make a network depend on all of its input, the same every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["noise", "seeded"]

M = TypeVar("M", bound=nn.Module)


def seeded(build: Callable[[], M], *examples: Tensor) -> M:
    """The module that ``build`` makes, in evaluation mode, its weights drawn from one seed.

    Normalization gets scales, shifts and statistics of its own: those of ``examples``, noise at most, so that
    activations neither vanish nor explode, and no folding of them is trivially right.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2024)
        module = build()
        for part in module.modules():
            _draw(part)
        for part in module.modules():
            _calm(part)
        if examples:
            module.train()
            with torch.no_grad():
                module(*examples)
        return module.eval()


def noise(*shape: int) -> Tensor:
    """The same standard normal noise every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def _calm(part: nn.Module) -> None:
    """Residual branches add little, as in trained networks: else rounding errors grow with the depth."""
    branch = getattr(part, "branch", None)
    if isinstance(branch, nn.Module) and getattr(part, "adds", True):
        norms = [m for m in branch.modules() if isinstance(m, (nn.BatchNorm2d, nn.InstanceNorm2d))]
        nn.init.uniform_(norms[-1].weight, 0.1, 0.5)


def _draw(part: nn.Module) -> None:
    if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
    elif isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
        part.momentum = None  # the average of all batches: of the one that is seen
    elif isinstance(part, nn.Linear):
        nn.init.xavier_normal_(part.weight)
    affine = isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm))
    weight, bias = getattr(part, "weight", None), getattr(part, "bias", None)
    if affine and weight is not None and bias is not None:
        nn.init.uniform_(weight, 0.5, 1.5)
        nn.init.normal_(bias, std=0.2)
