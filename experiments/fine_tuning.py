"""What is pretraining worth, and how should one fine-tune?

A small Vision Transformer learns to tell four shapes apart from 30 000
images. Then it learns four new shapes from few images: from scratch, or from
the pretrained weights in one of several ways, at one of several sizes.
"""

from __future__ import annotations

from functools import cache

import torch
from data_size import BATCH
from runner import record
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from vit_lessons import (
    HybridVisionTransformer,
    VisionTransformer,
    fit,
    layerwise_learning_rates,
    learning_rate_groups,
    load_pretrained,
)
from vit_lessons.procedural import NEW_SHAPES, SHAPES, make_shapes

RATE = 2e-3
RATES = {
    "one rate": lambda model: {"": RATE},
    "one small rate": lambda model: {"": RATE / 10},
    "two rates": lambda model: {"": RATE / 10, "head": RATE},
    "layer-wise rates": lambda model: layerwise_learning_rates(
        model, RATE, 0.5
    ),
}


def build(
    pixels: int = 16,
    num_classes: int = 4,
    kind: type[VisionTransformer] = VisionTransformer,
) -> VisionTransformer:
    model = kind(
        pixels,
        4,
        num_classes=num_classes,
        embed_dim=48,
        depth=3,
        num_heads=4,
        mlp_ratio=2.0,
    )
    nn.init.normal_(model.pos_embed, std=0.1)
    return model


@cache
def scale() -> tuple[Tensor, Tensor]:
    pixels, _ = make_shapes(1000, seed=1)
    return pixels.mean(), pixels.std()


def data(
    count: int, seed: int, kinds: tuple[str, ...], pixels: int = 16
) -> TensorDataset:
    """Images of about mean 0 and standard deviation 1."""
    images, labels = make_shapes(count, seed=seed, size=pixels, kinds=kinds)
    mean, std = scale()
    return TensorDataset((images - mean) / std, labels)


def train(
    model: nn.Module,
    images: TensorDataset,
    test: TensorDataset,
    steps: int,
    rates: dict[str, float],
    seed: int,
) -> float:
    sampler = RandomSampler(images, num_samples=BATCH * steps)
    history = fit(
        model,
        DataLoader(images, BATCH, sampler=sampler),
        DataLoader(test, 500),
        epochs=1,
        groups=learning_rate_groups(model, rates, 0.05),
        seed=seed,
    )
    return round(history.test_accuracy[-1], 2)


@cache
def pretrained(seed: int, steps: int) -> tuple[dict[str, Tensor], float]:
    """Weights that know SHAPES, and their test accuracy."""
    torch.manual_seed(seed)
    model = build()
    images, test = data(30_000, 1 + seed, SHAPES), data(2000, 0, SHAPES)
    accuracy = train(model, images, test, steps, {"": RATE}, seed)
    return model.state_dict(), accuracy


def run(
    *,
    seed: int,
    method: str,
    size: int,
    pixels: int,
    steps: int,
    pretraining: int,
) -> dict[str, float]:
    images = data(size, 100 + seed, NEW_SHAPES, pixels)
    test = data(2000, 0, NEW_SHAPES, pixels)
    torch.manual_seed(1000 + seed)
    if method in ("from scratch", "hybrid from scratch"):
        hybrid = method.startswith("hybrid")
        kind = HybridVisionTransformer if hybrid else VisionTransformer
        model = build(pixels, kind=kind)
        accuracy = train(model, images, test, steps, {"": RATE}, seed)
        return {"accuracy": accuracy}
    weights, before = pretrained(seed, pretraining)
    if method == "linear":
        model = build(pixels, num_classes=0)
        load_pretrained(model, weights, new_head=True)
        model.eval()
        with torch.no_grad():
            (x, y), (test_x, test_y) = (
                (model(part.tensors[0]), part.tensors[1])
                for part in (images, test)
            )
        linear = LogisticRegression(max_iter=5000).fit(x, y)
        accuracy = round(100 * linear.score(test_x, test_y), 2)
    else:
        model = build(pixels)
        load_pretrained(model, weights, new_head=True)
        rates = RATES[method](model)
        accuracy = train(model, images, test, steps, rates, seed)
    return {"accuracy": accuracy, "pretraining accuracy": before}


SIZES = (40, 100, 300, 1000)
METHODS = ("from scratch", "hybrid from scratch", "linear", *RATES)
CONFIGURATIONS = [
    {
        "method": method,
        "size": size,
        "pixels": pixels,
        "steps": 1000 if method.endswith("from scratch") else 300,
        "pretraining": 1500,
    }
    for methods, sizes, sides in (
        (METHODS, SIZES, (16,)),
        (("from scratch", "one rate"), (1000,), (24,)),  # do more pixels help?
    )
    for method in methods
    for size in sizes
    for pixels in sides
]

if __name__ == "__main__":
    record(
        __file__,
        run,
        CONFIGURATIONS,
        quick=(CONFIGURATIONS[4::6], {"steps": 5, "pretraining": 5}),
    )
