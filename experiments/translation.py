"""Who knows a digit at a place where no digit stood in training?

Digits of 8 x 8 pixels stand on a canvas of 16 x 16: in training in columns
0 to 2 from the left, in the test in each column. The row is free.
"""

from __future__ import annotations

from functools import partial

import torch
from digits import TINY
from runner import record
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from vit_lessons import (
    SmallCNN,
    VisionTransformer,
    evaluate,
    fit,
    place_images,
)
from vit_lessons.data import ImageDataset, split_digits

CANVAS = 16
PLACES = CANVAS - 8 + 1
SEEN = 3  # columns in training


def vit(pool: str, std: float) -> nn.Module:
    """A small ViT whose position table begins with numbers of size std.

    With std 0 the table stays 0.
    """
    sizes = TINY | {"img_size": CANVAS, "patch_size": 4, "pool": pool}
    model = VisionTransformer(**sizes)
    nn.init.normal_(model.pos_embed, std=std)
    model.pos_embed.requires_grad_(std > 0)
    return model


MODELS = {
    "CNN, mean": partial(SmallCNN, 1, 10),
    "CNN, flatten": partial(SmallCNN, 1, 10, pool="flatten", img_size=CANVAS),
    "ViT, table 0.02": partial(vit, "cls", 0.02),
    "ViT, table 1": partial(vit, "cls", 1.0),
    "ViT, no table": partial(vit, "mean", 0.0),
}


def scatter(image: Tensor) -> Tensor:
    """Put one image in a random row, and in a column seen in training."""
    row, column = torch.randint(PLACES, (1,)), torch.randint(SEEN, (1,))
    return place_images(image[None], CANVAS, row, column)[0]


def run(*, seed: int, model: str, epochs: int) -> dict[str, float]:
    digits = split_digits(seed)
    mean, std = digits.train_images.mean(), digits.train_images.std()
    # Paper is 0 after this too, like the empty canvas.
    train_images, test_images = (
        pixels / (mean**2 + std**2).sqrt()
        for pixels in (digits.train_images, digits.test_images)
    )
    train = ImageDataset(train_images, digits.train_labels, scatter)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(PLACES, (len(test_images),), generator=generator)
    tests = []
    for column in range(PLACES):
        columns = torch.full_like(rows, column)
        canvases = place_images(test_images, CANVAS, rows, columns)
        dataset = TensorDataset(canvases, digits.test_labels)
        tests.append(DataLoader(dataset, 450))
    torch.manual_seed(seed)
    network = MODELS[model]()
    fit(
        network,
        DataLoader(train, 64, shuffle=True),
        tests[0],
        epochs=epochs,
        learning_rate=2e-3,
        seed=seed,
    )
    return {
        f"accuracy at {column}": round(evaluate(network, test)[1], 2)
        for column, test in enumerate(tests)
    }


CONFIGURATIONS = [{"model": model, "epochs": 36} for model in MODELS]

if __name__ == "__main__":
    record(
        __file__,
        run,
        CONFIGURATIONS,
        quick=(CONFIGURATIONS[::3], {"epochs": 1}),
        seeds=10,
    )
