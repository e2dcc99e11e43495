"""What of a convolutional stem helps, and for how long?

A small Vision Transformer, the hybrid, and models between the two learn which
shape an image shows: from few and from more images, for few and for many
steps, and at other learning rates.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from data_size import BATCH, hybrid, images, vit
from einops.layers.torch import Rearrange
from runner import record
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from vit_lessons import HybridVisionTransformer, VisionTransformer, fit


def with_embedding(*layers: nn.Module) -> VisionTransformer:
    """The Vision Transformer with layers in place of its patch embedding."""
    model = vit(4)
    model.patch_embed = nn.Sequential(
        *layers, Rearrange("b d h w -> b (h w) d")
    )
    return model


def deeper_vit() -> nn.Module:
    """A fourth block: more parameters than the hybrid has."""
    return vit(4, depth=4)


def shallower_hybrid() -> nn.Module:
    """Two blocks: fewer parameters than the Vision Transformer has."""
    return vit(4, HybridVisionTransformer, depth=2)


def patch_mlp() -> nn.Module:
    """Norm and ReLU, but each token still sees its own patch alone.

    The width gives it nearly as many parameters as the hybrid.
    """
    return with_embedding(
        nn.Conv2d(3, 136, 4, 4, bias=False),
        nn.BatchNorm2d(136),
        nn.ReLU(),
        nn.Conv2d(136, 48, 1),
    )


def stem(
    kernel: int, *, norm: bool = True, activation: bool = True
) -> nn.Module:
    """The hybrid with another kernel, or with something left out."""
    layers: list[nn.Module] = []
    for before, width in ((3, 24), (24, 48)):
        padding = (kernel - 1) // 2
        conv = nn.Conv2d(before, width, kernel, 2, padding, bias=not norm)
        layers += [conv]
        layers += [nn.BatchNorm2d(width)] if norm else []
        layers += [nn.ReLU()] if activation else []
    return with_embedding(*layers, nn.Conv2d(48, 48, 1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "ViT": lambda: vit(4),
    "ViT, 4 blocks": deeper_vit,
    "patch MLP": patch_mlp,
    "stem of 2 x 2": lambda: stem(2),
    "stem without ReLU": lambda: stem(3, activation=False),
    "stem without norm": lambda: stem(3, norm=False),
    "hybrid, 2 blocks": shallower_hybrid,
    "hybrid": lambda: hybrid(4),
}


def run(
    *, seed: int, model: str, size: int, steps: int, learning_rate: float
) -> dict[str, float]:
    images.cache_clear()
    train = TensorDataset(*images("shapes", size, 1 + seed))
    test = TensorDataset(*images("shapes", 2000, 0))
    sampler = RandomSampler(train, num_samples=BATCH * steps)
    torch.manual_seed(seed)
    network = MODELS[model]()
    history = fit(
        network,
        DataLoader(train, BATCH, sampler=sampler),
        DataLoader(test, 500),
        epochs=1,
        learning_rate=learning_rate,
        seed=seed,
    )
    return {
        "accuracy": round(history.test_accuracy[-1], 2),
        "parameters": sum(p.numel() for p in network.parameters()),
    }


CONFIGURATIONS = (
    [  # what of the stem helps
        {"model": model, "size": size, "steps": 1000, "learning_rate": 2e-3}
        for size in (300, 3000)
        for model in MODELS
    ]
    + [  # for how long it helps
        {"model": model, "size": 30_000, "steps": steps, "learning_rate": 2e-3}
        for model in ("ViT", "hybrid")
        for steps in (250, 500, 1000, 2000, 4000)
    ]
    + [  # at which learning rates
        {"model": model, "size": 3000, "steps": 1000, "learning_rate": rate}
        for model in ("ViT", "hybrid")
        for rate in (5e-4, 8e-3)
    ]
)

if __name__ == "__main__":
    record(
        __file__, run, CONFIGURATIONS, quick=(CONFIGURATIONS[::5], {"steps": 5})
    )
