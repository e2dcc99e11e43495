"""What do windows cost, what does the shift bring, what does the mask hide?

A small model of windows learns a relation (are two tiles equal?), where far
tokens must meet, and a local task (which shape is it?). Attention is global,
in windows, in shifted windows, or in shifted windows without the mask, so
that tokens of opposite borders see each other.
"""

from __future__ import annotations

import torch
from einops import rearrange
from runner import record
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from vit_lessons import PatchEmbed, SwinBlock, WindowAttention, evaluate, fit
from vit_lessons.procedural import SHAPES, TILE, make_match, make_shapes

TASKS = {"match": (make_match, 2), "shapes": (make_shapes, len(SHAPES))}
BATCH = 64
GRID = 4  # tokens down and across


class UnmaskedWindowAttention(WindowAttention):
    """The mistake: windows are shifted, and the mask is forgotten."""

    def window_bias(
        self, grid_size: tuple[int, int], shift_size: tuple[int, int]
    ) -> Tensor:
        return super().window_bias(grid_size, (0, 0))


class WindowModel(nn.Module):
    """Patches with positions, blocks of windows, the mean, a head."""

    def __init__(self, attention: str, depth: int, num_classes: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(TILE, 3, 48)
        self.pos_embed = nn.Parameter(0.1 * torch.randn(1, GRID**2, 48))
        window = GRID if attention == "global" else 2
        shift = 1 if attention.startswith("shifted") else 0
        self.blocks = nn.ModuleList(
            SwinBlock(48, 4, window, shift if i % 2 else 0, mlp_ratio=2.0)
            for i in range(depth)
        )
        unmasked = attention == "shifted, no mask"
        kind = UnmaskedWindowAttention if unmasked else WindowAttention
        for block in self.blocks:
            block.attn = kind(48, 4, window, block.attn.shift_size)
        self.norm = nn.LayerNorm(48)
        self.head = nn.Linear(48, num_classes)
        for module in self.modules():  # as chapter 07 does
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images) + self.pos_embed
        x = rearrange(x, "b (gh gw) d -> b gh gw d", gh=GRID)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=(1, 2)))


def tile_distances(images: Tensor) -> Tensor:
    """Rows or columns between the two tiles of match, the larger of both."""
    cells = rearrange(
        images,
        "n c (gh p1) (gw p2) -> n (gh gw) (c p1 p2)",
        p1=TILE,
        p2=TILE,
    )
    # The tiles are the cells that differ most from gray.
    places = (cells - 0.5).abs().mean(dim=2).topk(2, dim=1).indices
    rows, columns = places // GRID, places % GRID
    return torch.maximum(
        (rows[:, 0] - rows[:, 1]).abs(), (columns[:, 0] - columns[:, 1]).abs()
    )


def run(
    *, seed: int, task: str, attention: str, depth: int, steps: int
) -> dict[str, float]:
    make, num_classes = TASKS[task]
    pixels, _ = make(1000, seed=1)
    mean, std = pixels.mean(), pixels.std()
    train_images, train_labels = make(20_000, seed=1 + seed)
    images, labels = make(2000, seed=0)  # the same for all runs
    train = TensorDataset((train_images - mean) / std, train_labels)
    test = TensorDataset((images - mean) / std, labels)
    torch.manual_seed(seed)
    model = WindowModel(attention, depth, num_classes)
    history = fit(
        model,
        DataLoader(
            train,
            BATCH,
            sampler=RandomSampler(train, num_samples=BATCH * steps),
        ),
        DataLoader(test, 500),
        epochs=1,
        learning_rate=2e-3,
        seed=seed,
    )
    results = {"accuracy": round(history.test_accuracy[-1], 2)}
    if task == "match":
        distances = tile_distances(images)
        for distance in range(1, GRID):
            part = TensorDataset(*test[distances == distance])
            _, accuracy = evaluate(model, DataLoader(part, 500))
            results[f"accuracy_{distance}"] = round(accuracy, 2)
    return results


KINDS = ("global", "windows", "shifted", "shifted, no mask")
CONFIGURATIONS = [
    {"task": task, "attention": attention, "depth": 4, "steps": 800}
    for task in TASKS
    for attention in KINDS
] + [
    {"task": "match", "attention": attention, "depth": depth, "steps": steps}
    for depth, steps in ((8, 800), (4, 2400))
    for attention in ("shifted", "shifted, no mask")
]


def seeds(settings: dict) -> int:
    first = settings["task"] == "match" and settings["depth"] == 4
    return 10 if first and settings["steps"] == 800 else 5


if __name__ == "__main__":
    record(
        __file__,
        run,
        CONFIGURATIONS,
        quick=(CONFIGURATIONS[:4], {"steps": 5}),
        seeds=seeds,
    )
