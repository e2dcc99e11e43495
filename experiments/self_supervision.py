"""What is pretraining without labels worth, and is the gain one of speed?

A small Vision Transformer learns from images without their labels: by masked
patch prediction, as a masked autoencoder, or by telling turned images apart.
Then it learns to classify from few labels, in few to many steps. On shapes
there is also pretraining with labels, to compare with.
"""

from __future__ import annotations

from functools import cache

import fine_tuning
import torch
from digits import TINY
from runner import record
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from vit_lessons import (
    MaskedAutoencoder,
    MaskedPatchPrediction,
    VisionTransformer,
    evaluate,
    evaluate_pretext,
    fit,
    load_pretrained,
    mean_color_classes,
    rotate_images,
)
from vit_lessons.data import split_digits
from vit_lessons.procedural import NEW_SHAPES, SHAPES, make_shapes

RATE = 2e-3


def build(task: str, num_classes: int) -> VisionTransformer:
    if task == "shapes":
        return fine_tuning.build(num_classes=num_classes)
    model = VisionTransformer(**TINY | {"num_classes": num_classes})
    nn.init.normal_(model.pos_embed, std=1.0)
    return model


@cache
def unlabeled(
    task: str, seed: int
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Images to learn from and images to test the pretext task with.

    Each with numbers in [0, 1], the same with about mean 0 and standard
    deviation 1, and the labels that most methods do not look at.
    """
    if task == "shapes":
        parts = [make_shapes(30_000, seed=1 + seed), make_shapes(500, seed=0)]
        mean, std = fine_tuning.scale()
    else:
        digits = split_digits(seed)
        parts = [
            (digits.train_images, digits.train_labels),
            (digits.test_images, digits.test_labels),
        ]
        mean, std = digits.train_images.mean(), digits.train_images.std()
    train, test = (
        (pixels, (pixels - mean) / std, labels) for pixels, labels in parts
    )
    return train, test


def few(task: str, size: int, seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Images with labels to learn from, the first ones, and to test with."""
    if task == "shapes":
        return (
            fine_tuning.data(size, 100 + seed, NEW_SHAPES),
            fine_tuning.data(2000, 0, NEW_SHAPES),
        )
    (_, images, labels), (_, test_images, test_labels) = unlabeled(task, seed)
    return (
        TensorDataset(images[:size], labels[:size]),
        TensorDataset(test_images, test_labels),
    )


def batches(images: TensorDataset, steps: int, size: int = 32) -> DataLoader:
    sampler = RandomSampler(images, num_samples=size * steps)
    return DataLoader(images, size, sampler=sampler)


@cache
def pretrained(
    task: str, method: str, steps: int, seed: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Weights of the encoder, and how well it does the pretext task."""
    torch.manual_seed(seed)
    train, test = (
        {"pixels": pixels, "images": images, "labels": labels}
        for pixels, images, labels in unlabeled(task, seed)
    )
    target, options = "images", {"evaluate_fn": evaluate_pretext}
    if method == "masked patches":
        encoder = build(task, 0)
        model = MaskedPatchPrediction(encoder)
        for part in (train, test):
            part["colors"] = mean_color_classes(
                part["pixels"], encoder.patch_embed.patch_size
            )
        target = "colors"
    elif method == "autoencoder":
        encoder = build(task, 0)
        model = MaskedAutoencoder(
            encoder,
            decoder_dim=48,
            decoder_depth=1,
            decoder_num_heads=4,
            mlp_ratio=2.0,
        )
    elif method == "rotation":
        model = encoder = build(task, 4)
        options = {
            "mix": lambda images, _: rotate_images(images[::4]),
            "evaluate_fn": evaluate_rotation,
        }
    else:  # with labels
        model = encoder = build(task, len(SHAPES))
        target, options = "labels", {"evaluate_fn": evaluate}
    if hasattr(model, "loss"):
        options["loss_fn"] = model.loss
    history = fit(
        model,
        batches(TensorDataset(train["images"], train[target]), steps),
        DataLoader(TensorDataset(test["images"], test[target]), 500),
        epochs=1,
        learning_rate=RATE,
        seed=seed,
        **options,
    )
    results = {
        "pretext_loss": round(history.test_loss[-1], 4),
        "pretext_score": round(history.test_accuracy[-1], 2),
    }
    return encoder.state_dict(), results


def evaluate_rotation(
    model: nn.Module, loader: DataLoader
) -> tuple[float, float]:
    return evaluate(model, (rotate_images(images) for images, _ in loader))


def run(
    *,
    seed: int,
    task: str,
    method: str,
    size: int,
    steps: int,
    pretraining: int,
) -> dict[str, float]:
    images, test = few(task, size, seed)
    torch.manual_seed(1000 + seed)
    model = build(task, 4 if task == "shapes" else 10)
    results = {}
    if method != "from scratch":
        weights, results = pretrained(task, method, pretraining, seed)
        load_pretrained(model, weights, new_head=True)
    history = fit(
        model,
        batches(images, steps),
        DataLoader(test, 500),
        epochs=1,
        learning_rate=RATE,
        seed=seed,
    )
    return {"accuracy": round(history.test_accuracy[-1], 2), **results}


CONFIGURATIONS = [
    {
        "task": "shapes",
        "method": method,
        "pretraining": pretraining,
        "size": size,
        "steps": steps,
    }
    for method, pretraining in (
        ("from scratch", 0),
        ("with labels", 1000),
        ("autoencoder", 6000),
        ("masked patches", 6000),
        ("autoencoder", 1000),
        ("masked patches", 1000),
    )
    for size in (100, 1000)
    for steps in (300, 1500)
] + [
    {
        "task": "digits",
        "method": method,
        "pretraining": pretraining,
        "size": size,
        "steps": steps,
    }
    for method, pretraining in (
        ("from scratch", 0),
        ("autoencoder", 2000),
        ("masked patches", 2000),
        ("rotation", 2000),
    )
    for size in (50, 200, 1347)
    for steps in (100, 400, 1600)
]

if __name__ == "__main__":
    record(
        __file__,
        run,
        CONFIGURATIONS,
        quick=(CONFIGURATIONS[::4], {"steps": 3, "pretraining": 3}),
    )
