"""Where should the norm of an encoder block stand?

A Vision Transformer of several depths learns the handwritten digits, with
the norm before each branch and after each sum, each with two learning rates,
with and without warm-up. Then without norms, and without residuals.
"""

from __future__ import annotations

import torch
from digits import TINY, train
from runner import record
from torch import Tensor, nn

from vit_lessons import VisionTransformer


def post_norm(block: nn.Module, x: Tensor) -> Tensor:
    x = block.norm1(x + block.attn(x))
    return block.norm2(x + block.mlp(x))


def no_norm(block: nn.Module, x: Tensor) -> Tensor:
    x = x + block.attn(x)
    return x + block.mlp(x)


def no_residual(block: nn.Module, x: Tensor) -> Tensor:
    return block.mlp(block.norm2(block.attn(block.norm1(x))))


FORMS = {
    "pre-norm": lambda block, x: block(x),
    "post-norm": post_norm,
    "no norm": no_norm,
    "no residual": no_residual,
}


class Stack(VisionTransformer):
    """A Vision Transformer whose blocks run in the named form."""

    def __init__(self, form: str, **sizes: object) -> None:
        super().__init__(**sizes)
        self.form = form

    def forward_features(self, images: Tensor, **_: object) -> Tensor:
        x = self.embed(images)
        for block in self.blocks:
            x = FORMS[self.form](block, x)
        return self.norm(x)


def run(
    *,
    seed: int,
    form: str,
    depth: int,
    learning_rate: float,
    warmup: float,
    steps: int,
) -> dict[str, float]:
    torch.manual_seed(seed)
    model = Stack(form, **(TINY | {"depth": depth}))
    nn.init.normal_(model.pos_embed, std=1.0)  # see position_embedding.py
    accuracy = train(
        model,
        seed=seed,
        steps=steps,
        learning_rate=learning_rate,
        warmup=warmup,
    )
    return {"accuracy": accuracy}


CONFIGURATIONS = [
    {
        "form": form,
        "depth": depth,
        "learning_rate": rate,
        "warmup": warmup,
        "steps": 400,
    }
    for form in FORMS
    for depth in (3, 12, 24)
    for rate in (5e-4, 2e-3)
    for warmup in ((0.1, 0.0) if form.endswith("-norm") else (0.1,))
]

if __name__ == "__main__":
    record(
        __file__,
        run,
        CONFIGURATIONS,
        quick=(CONFIGURATIONS[::6], {"steps": 5}),
    )
