"""What several tests share: random weights that no mistake can hide in."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def randomize(module: nn.Module, *, seed: int = 0) -> nn.Module:
    """Make the module float64 and redraw every parameter with std 0.2.

    Fresh weights hide mistakes: zeros hide a layer, and small weights hide
    a wrong activation.
    """
    generator = torch.Generator().manual_seed(seed)
    module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return module


def random(*shape: int, seed: int = 1) -> Tensor:
    """Normal random numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def tokens_that_change(function, x: Tensor, index: tuple) -> list[list[int]]:
    """Indices of output tokens that change with x[index].

    The change is random noise: LayerNorm would remove a constant.
    """
    other = x.clone()
    other[index] += random(*x[index].shape, seed=2)
    moved = (function(other) - function(x)).abs().amax(-1) > 1e-12
    return moved.nonzero().tolist()


def has_all_gradients(module: nn.Module, output: Tensor) -> bool:
    """Does a gradient that is not 0 reach every parameter?"""
    (output * random(*output.shape, seed=3)).sum().backward()
    return all(p.grad is not None and p.grad.any() for p in module.parameters())
