"""How much data does a prior save, and on which task?

A small Vision Transformer, the same one behind two convolutions (a hybrid)
and two CNNs learn a local task (which shape is it?) and a relation (are two
tiles equal?) from few to many images. All models make the same number of
steps on batches of the same size, and once more steps on the most images.
"""

from __future__ import annotations

from functools import cache, partial

import torch
from runner import record
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from vit_lessons import (
    HybridVisionTransformer,
    SmallCNN,
    VisionTransformer,
    evaluate,
    fit,
)
from vit_lessons.procedural import make_match, make_shapes

TASKS = {
    "shapes": (make_shapes, 4),
    "match": (make_match, 2),
    # Tiles that lie on four patches each.
    "match off the grid": (partial(make_match, offset=2), 2),
}
SIZES = (300, 1000, 3000, 10_000, 30_000, 100_000)
BATCH = 64


def vit(
    num_classes: int,
    kind: type[VisionTransformer] = VisionTransformer,
    *,
    depth: int = 3,
) -> VisionTransformer:
    model = kind(
        16,
        4,
        num_classes=num_classes,
        embed_dim=48,
        depth=depth,
        num_heads=4,
        mlp_ratio=2.0,
    )
    nn.init.normal_(model.pos_embed, std=0.1)
    return model


def hybrid(num_classes: int) -> nn.Module:
    return vit(num_classes, HybridVisionTransformer)


def cnn(num_classes: int) -> nn.Module:
    return SmallCNN(3, num_classes)


def deeper_cnn(num_classes: int) -> nn.Module:
    return SmallCNN(3, num_classes, widths=(32, 64, 64, 64, 64), num_pools=3)


MODELS = {
    "ViT": vit,
    "hybrid": hybrid,
    "CNN": cnn,
    "deeper CNN": deeper_cnn,
}


@cache
def images(task: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images with about mean 0 and standard deviation 1, and labels."""
    make, _ = TASKS[task]
    pixels, _ = make(1000, seed=1)
    drawn, labels = make(count, seed=seed)
    return (drawn - pixels.mean()) / pixels.std(), labels


def run(
    *, seed: int, task: str, model: str, size: int, steps: int
) -> dict[str, float]:
    images.cache_clear()
    train = TensorDataset(*images(task, size, 1 + seed))
    test = TensorDataset(*images(task, 2000, 0))  # the same for all runs
    sampler = RandomSampler(train, num_samples=BATCH * steps)
    torch.manual_seed(seed)
    network = MODELS[model](TASKS[task][1])
    history = fit(
        network,
        DataLoader(train, BATCH, sampler=sampler),
        DataLoader(test, 500),
        epochs=1,
        learning_rate=2e-3,
        seed=seed,
    )
    seen = TensorDataset(*train[:2000])
    _, train_accuracy = evaluate(network, DataLoader(seen, 500))
    return {
        "accuracy": round(history.test_accuracy[-1], 2),
        "train_accuracy": round(train_accuracy, 2),
    }


CONFIGURATIONS = [
    {"task": task, "model": model, "size": size, "steps": steps}
    for task in ("shapes", "match")
    for model in ("CNN", "deeper CNN", "ViT", "hybrid")
    for size, steps in (
        *((size, 1000) for size in reversed(SIZES)),
        (SIZES[-1], 4000),  # is the end of the curve a matter of steps?
    )
] + [
    {"task": "match off the grid", "model": model, "size": size, "steps": 1000}
    for model in ("deeper CNN", "ViT", "hybrid")
    for size in (3000, 30_000)
]

if __name__ == "__main__":
    record(
        __file__,
        run,
        CONFIGURATIONS,
        quick=(CONFIGURATIONS[5::9], {"steps": 5}),
    )
