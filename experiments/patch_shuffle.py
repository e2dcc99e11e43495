"""What does it cost to put the patches of all images in another order?

A small CNN and a small Vision Transformer learn digits and shapes, as they
are, and with their patches in one random order, the same for all images. The
position table of the Vision Transformer begins small or large.
"""

from __future__ import annotations

import torch
from data_size import images, vit
from digits import TINY, split
from runner import record
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from vit_lessons import (
    SmallCNN,
    VisionTransformer,
    evaluate,
    fit,
    shuffle_patches,
)

PATCH_SIZE = {"digits": 2, "shapes": 4}  # 16 patches either way


def data(task: str, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if task == "shapes":
        return *images("shapes", 3000, 1 + seed), *images("shapes", 2000, 0)
    train, test = split(seed)
    return *train.tensors, *test.tensors


TABLES = {"ViT, table 0.02": 0.02, "ViT, table 1": 1.0}


def build(task: str, model: str) -> nn.Module:
    if model == "CNN":
        return SmallCNN(1, 10) if task == "digits" else SmallCNN(3, 4)
    network = VisionTransformer(**TINY) if task == "digits" else vit(4)
    nn.init.normal_(network.pos_embed, std=TABLES[model])
    return network


def run(
    *, seed: int, task: str, model: str, patches: str, steps: int
) -> dict[str, float]:
    images.cache_clear()
    train_images, train_labels, test_images, test_labels = data(task, seed)
    generator = torch.Generator().manual_seed(seed)
    order, other = (torch.randperm(16, generator=generator) for _ in range(2))
    if patches == "in order":
        order = torch.arange(16)
    torch.manual_seed(seed)
    network = build(task, model)

    def shuffled(pixels: Tensor, order: Tensor) -> Tensor:
        return shuffle_patches(pixels, PATCH_SIZE[task], order)

    train = TensorDataset(shuffled(train_images, order), train_labels)
    test, test_in_other = (
        DataLoader(TensorDataset(shuffled(test_images, o), test_labels), 500)
        for o in (order, other)
    )
    sampler = RandomSampler(train, num_samples=64 * steps)
    history = fit(
        network,
        DataLoader(train, 64, sampler=sampler),
        test,
        epochs=1,
        learning_rate=2e-3,
        seed=seed,
    )
    return {
        "accuracy": round(history.test_accuracy[-1], 2),
        "accuracy in another order": round(
            evaluate(network, test_in_other)[1], 2
        ),
    }


CONFIGURATIONS = [
    {"task": task, "model": model, "patches": patches, "steps": 800}
    for task in PATCH_SIZE
    for model in ("CNN", *TABLES)
    for patches in ("in order", "shuffled")
]

if __name__ == "__main__":
    record(
        __file__,
        run,
        CONFIGURATIONS,
        quick=(CONFIGURATIONS[::3], {"steps": 5}),
        seeds=10,
    )
