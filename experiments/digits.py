"""Train a small model on the handwritten digits, the same way every time."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from vit_lessons import (
    evaluate,
    parameter_groups,
    train_one_epoch,
    warmup_cosine,
)
from vit_lessons.data import split_digits

# A small Vision Transformer: 4 x 4 patches of 2 x 2 pixels.
TINY = {
    "img_size": 8,
    "patch_size": 2,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 4,
    "mlp_ratio": 2.0,
}


@cache
def split(seed: int = 0) -> tuple[TensorDataset, TensorDataset]:
    """Digits of mean 0 and standard deviation 1: 1347, and 450 to test."""
    digits = split_digits(seed)
    mean, std = digits.train_images.mean(), digits.train_images.std()
    return (
        TensorDataset((digits.train_images - mean) / std, digits.train_labels),
        TensorDataset((digits.test_images - mean) / std, digits.test_labels),
    )


def train(
    model: nn.Module,
    *,
    seed: int,
    steps: int = 400,
    learning_rate: float = 2e-3,
    warmup: float = 0.1,
) -> float:
    """Train on batches of 32; return the test accuracy in percent.

    It does what fit does, but accepts a loss that is no longer a number:
    some models of the experiments cannot be trained.

    Args:
        model: From images to logits.
        seed: Of the order of the images.
        steps: Batches to train on.
        learning_rate: The largest one.
        warmup: Share of the steps that are warm-up.
    """
    train_set, test_set = split()
    optimizer = AdamW(parameter_groups(model, 0.05), lr=learning_rate)
    scheduler = warmup_cosine(optimizer, int(warmup * steps), steps)
    torch.manual_seed(seed)
    sampler = RandomSampler(train_set, num_samples=32 * steps)
    loader = DataLoader(train_set, 32, sampler=sampler)
    train_one_epoch(model, loader, optimizer, scheduler)
    return round(evaluate(model, DataLoader(test_set, 450))[1], 2)
