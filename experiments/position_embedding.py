"""How should the model learn where a patch was?

A small Vision Transformer learns the handwritten digits with five kinds of
position embedding, one of them in two forms, each with several sizes of its
first numbers, and with a short and a longer training.
"""

from __future__ import annotations

import torch
from digits import TINY, train
from einops import rearrange
from runner import record
from torch import Tensor, nn

from vit_lessons import (
    VisionTransformer,
    relative_position_index,
    sincos_pos_embed,
)

STDS = (0.02, 0.1, 0.3, 1.0, 3.0)


class NoPositions(VisionTransformer):
    """A Vision Transformer whose position table is 0 and stays 0."""

    def __init__(self, **sizes: object) -> None:
        super().__init__(**sizes)
        nn.init.zeros_(self.pos_embed)
        self.pos_embed.requires_grad_(False)


class LearnedTable(VisionTransformer):
    """One learned vector for each place, the class token's included."""

    def __init__(self, std: float, **sizes: object) -> None:
        super().__init__(**sizes)
        nn.init.normal_(self.pos_embed, std=std)


class LearnedAxes(NoPositions):
    """One learned vector for each row and for each column, half as wide."""

    def __init__(self, std: float, **sizes: object) -> None:
        super().__init__(**sizes)
        half = self.pos_embed.shape[2] // 2
        self.rows, self.columns = (
            nn.Parameter(std * torch.randn(n, half)) for n in self.grid_size
        )

    def embed(self, images: Tensor) -> Tensor:
        gh, gw = self.grid_size
        rows = self.rows.repeat_interleave(gw, dim=0)
        table = torch.cat([rows, self.columns.repeat(gh, 1)], dim=1)  # (N, D)
        x = super().embed(images)
        return torch.cat([x[:, :1], x[:, 1:] + table], dim=1)


class SineCosine(NoPositions):
    """A fixed table of sines and cosines with the standard deviation std.

    Most of its variance is between features, and the same for all places.
    The centered table has the mean of each feature taken away.
    """

    is_centered = False

    def __init__(self, std: float, **sizes: object) -> None:
        super().__init__(**sizes)
        table = sincos_pos_embed(self.grid_size, self.pos_embed.shape[2])
        if self.is_centered:
            table = table - table.mean(dim=1, keepdim=True)
        self.pos_embed.data[:, 1:] = table * std / table.std()


class CenteredSineCosine(SineCosine):
    is_centered = True


class RelativeBias(NoPositions):
    """In each block and head, a learned bias for each offset of two patches.

    The class token has no place: its pairs have bias 0.
    """

    def __init__(self, std: float, **sizes: object) -> None:
        super().__init__(**sizes)
        gh, gw = self.grid_size
        offsets, heads = (2 * gh - 1) * (2 * gw - 1), sizes["num_heads"]
        self.tables = nn.ParameterList(
            std * torch.randn(offsets, heads) for _ in self.blocks
        )
        index = relative_position_index(self.grid_size)
        self.register_buffer("index", index, persistent=False)

    def forward_features(self, images: Tensor, **_: object) -> Tensor:
        x = self.embed(images)
        for block, table in zip(self.blocks, self.tables, strict=True):
            bias = rearrange(table[self.index], "n m h -> h n m")
            x = block(x, nn.functional.pad(bias, (1, 0, 1, 0)))
        return self.norm(x)


KINDS = {
    "learned": LearnedTable,
    "learned axes": LearnedAxes,
    "sine-cosine": SineCosine,
    "sine-cosine, centered": CenteredSineCosine,
    "relative bias": RelativeBias,
}


def run(
    *, seed: int, positions: str, std: float, pool: str, steps: int
) -> dict[str, float]:
    torch.manual_seed(seed)
    sizes = TINY | {"pool": pool}
    if positions == "none":
        model = NoPositions(**sizes)
    else:
        model = KINDS[positions](std, **sizes)
    return {"accuracy": train(model, seed=seed, steps=steps)}


CONFIGURATIONS = [
    {"positions": positions, "std": std, "pool": "cls", "steps": steps}
    for steps in (400, 1600)
    for positions, stds in (
        ("none", (0.0,)),
        *((kind, STDS) for kind in KINDS),
    )
    for std in stds
]

if __name__ == "__main__":
    record(
        __file__,
        run,
        CONFIGURATIONS,
        quick=(CONFIGURATIONS[:26:5], {"steps": 5}),
    )
