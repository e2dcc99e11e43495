"""What should the head read, and how should the class token begin?

A small Vision Transformer learns the handwritten digits. The head reads the
class token, the mean of the patch tokens, the mean of all tokens, or the
output of one patch, each with several learning rates. Then the class token
begins with numbers of several sizes.
"""

from __future__ import annotations

import torch
from digits import TINY, train
from runner import record
from torch import Tensor, nn

from vit_lessons import VisionTransformer, pool

READS = ("class token", "mean of patches", "mean of all", "patch 5")


class Reader(VisionTransformer):
    """A Vision Transformer whose head reads what read says."""

    def __init__(self, read: str, **sizes: object) -> None:
        super().__init__(**sizes)
        self.read = read

    def forward(self, images: Tensor) -> Tensor:
        x = self.forward_features(images)
        match self.read:
            case "class token":
                x = pool(x, "cls")
            case "mean of patches":
                x = pool(x, "mean")
            case "mean of all":
                x = x.mean(dim=1)
            case "patch 5":
                x = x[:, 1 + 5]
        return self.head(x)


def run(
    *, seed: int, read: str, learning_rate: float, token_std: float, steps: int
) -> dict[str, float]:
    torch.manual_seed(seed)
    model = Reader(read, **TINY)
    nn.init.normal_(model.pos_embed, std=1.0)  # see position_embedding.py
    nn.init.normal_(model.cls_token, std=token_std)
    accuracy = train(model, seed=seed, steps=steps, learning_rate=learning_rate)
    return {"accuracy": accuracy}


CONFIGURATIONS = [
    {"read": read, "learning_rate": rate, "token_std": 0.0, "steps": 400}
    for read in READS
    for rate in (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
] + [
    {
        "read": "class token",
        "learning_rate": 2e-3,
        "token_std": std,
        "steps": 400,
    }
    for std in (0.02, 1.0, 10.0, 100.0)
]

if __name__ == "__main__":
    record(
        __file__, run, CONFIGURATIONS, quick=(CONFIGURATIONS[::5], {"steps": 5})
    )
