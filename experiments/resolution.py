"""How far does an interpolated position table carry?

A small Vision Transformer learns the digits with 4 x 4 patches. Then it gets
larger versions of them, in more patches of the same size, with a position
table that is interpolated or random, and a few steps to get used to them.
"""

from __future__ import annotations

from functools import cache

import torch
from digits import TINY, split
from runner import record
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from torchvision.transforms import v2

from vit_lessons import (
    VisionTransformer,
    evaluate,
    fit,
    load_pretrained,
    resize_pos_embed,
)

PATCH = TINY["patch_size"]


def build(grid: int) -> VisionTransformer:
    model = VisionTransformer(**{**TINY, "img_size": PATCH * grid})
    nn.init.normal_(model.pos_embed, std=1.0)
    return model


@cache
def digits(seed: int, grid: int) -> tuple[TensorDataset, TensorDataset]:
    """The digits in so many patches down and across."""
    resize = v2.Resize(PATCH * grid, v2.InterpolationMode.BICUBIC)
    train, test = (
        TensorDataset(resize(part.tensors[0]), part.tensors[1])
        for part in split(seed)
    )
    return train, test


def learn(
    model: nn.Module, seed: int, grid: int, steps: int, rate: float
) -> float:
    """Train for so many steps of 32 images; return the test accuracy."""
    train, test = digits(seed, grid)
    test_loader = DataLoader(test, 450)
    if steps == 0:
        return round(evaluate(model, test_loader)[1], 2)
    sampler = RandomSampler(train, num_samples=32 * steps)
    loader = DataLoader(train, 32, sampler=sampler)
    history = fit(
        model, loader, test_loader, epochs=1, learning_rate=rate, seed=seed
    )
    return round(history.test_accuracy[-1], 2)


@cache
def pretrained(seed: int, steps: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model = build(4)
    learn(model, seed, 4, steps, 2e-3)
    return model.state_dict()


def run(
    *, seed: int, table: str, grid: int, steps: int, pretraining: int
) -> dict[str, float]:
    torch.manual_seed(1000 + seed)
    model = build(grid)
    if table == "from scratch":
        return {"accuracy": learn(model, seed, grid, steps, 2e-3)}
    weights = {**pretrained(seed, pretraining)}
    before = weights["pos_embed"]
    if table == "random":
        # The class token's row stays; the others are drawn as large as before.
        drawn = torch.randn(1, grid**2, before.shape[2])
        drawn = drawn * before[:, 1:].square().mean().sqrt()
        weights["pos_embed"] = torch.cat([before[:, :1], drawn], dim=1)
    else:
        weights["pos_embed"] = resize_pos_embed(before, 4, grid, mode=table)
    load_pretrained(model, weights)
    return {"accuracy": learn(model, seed, grid, steps, 5e-4)}


CONFIGURATIONS = [
    {"table": table, "grid": grid, "steps": count, "pretraining": 800}
    for tables, grids, steps in (
        (("bicubic", "bilinear", "random"), (3, 4, 5, 6, 8, 12, 16), (0,)),
        (("bicubic", "random", "from scratch"), (5, 6, 8), (30, 100, 300)),
        (("bicubic", "random", "from scratch"), (12,), (100,)),
    )
    for table in tables
    for grid in grids
    for count in steps
]

if __name__ == "__main__":
    record(
        __file__,
        run,
        CONFIGURATIONS,
        quick=(CONFIGURATIONS[-2:], {"steps": 2, "pretraining": 5}),
    )
