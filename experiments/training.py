"""How well do four kinds of model read the handwritten digits?

Logistic regression, a support vector machine, a small CNN and a small Vision
Transformer learn from 1347 digits. The last two are trained by fit, with and
without augmentation, and with MixUp. Each seed has its own test images.
"""

from __future__ import annotations

import time
from functools import cache

import torch
from digits import TINY
from runner import record
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from vit_lessons import SmallCNN, VisionTransformer, fit
from vit_lessons.data import ImageData, ImageDataset, split_digits

AUGMENT = v2.RandomAffine(
    degrees=8,
    translate=(0.09, 0.09),
    scale=(0.95, 1.05),
    interpolation=v2.InterpolationMode.BILINEAR,
)
SMOOTH = nn.CrossEntropyLoss(label_smoothing=0.1)
MIX = v2.MixUp(alpha=0.2, num_classes=10)


@cache
def data(seed: int) -> ImageData:
    return split_digits(seed)


def loaders(
    seed: int, augment: bool, batch_size: int
) -> tuple[DataLoader, DataLoader]:
    digits = data(seed)
    mean, std = digits.train_images.mean(), digits.train_images.std()
    normalize = v2.Normalize([mean.item()], [std.item()])
    transform = v2.Compose([AUGMENT, normalize]) if augment else normalize
    train = ImageDataset(digits.train_images, digits.train_labels, transform)
    test = ImageDataset(digits.test_images, digits.test_labels, normalize)
    return (
        DataLoader(train, batch_size, shuffle=True),
        DataLoader(test, batch_size=450),
    )


def run(*, seed: int, model: str, recipe: str, epochs: int) -> dict[str, float]:
    start = time.process_time()
    results = {}
    if epochs:
        torch.manual_seed(seed)
        if model == "CNN":
            network = SmallCNN(1, 10)
        else:
            network = VisionTransformer(**TINY)
            nn.init.normal_(network.pos_embed, std=1.0)
        history = fit(
            network,
            *loaders(seed, "augmentation" in recipe, 64),
            epochs=epochs,
            learning_rate=2e-3,
            loss_fn=SMOOTH if "smoothing" in recipe else nn.CrossEntropyLoss(),
            mix=MIX if "MixUp" in recipe else None,
            seed=seed,
        )
        accuracy = history.test_accuracy[-1]
        for epoch, value in enumerate(history.test_accuracy, start=1):
            results[f"accuracy after {epoch}"] = round(value, 2)
    else:
        machine = {
            "logistic regression": LogisticRegression(max_iter=5000),
            "SVM": SVC(C=10),
        }[model]
        digits = data(seed)
        machine.fit(digits.train_images.flatten(1), digits.train_labels)
        accuracy = 100 * machine.score(
            digits.test_images.flatten(1), digits.test_labels
        )
    return {
        "accuracy": round(accuracy, 2),
        "seconds": round(time.process_time() - start, 2),
        **results,
    }


CONFIGURATIONS = [
    {"model": model, "recipe": recipe, "epochs": epochs}
    for model, recipe, epochs in (
        ("logistic regression", "plain", 0),
        ("SVM", "plain", 0),
        ("CNN", "plain", 36),
        ("CNN", "augmentation", 36),
        ("ViT", "plain", 36),
        ("ViT", "augmentation", 36),
        ("ViT", "MixUp", 36),
        ("ViT", "smoothing", 36),
        ("ViT", "augmentation, MixUp, smoothing", 36),
        ("ViT", "augmentation", 150),
    )
]

if __name__ == "__main__":
    record(
        __file__,
        run,
        CONFIGURATIONS,
        quick=(CONFIGURATIONS[3:9:5], {"epochs": 1}),
        seeds=10,
    )
