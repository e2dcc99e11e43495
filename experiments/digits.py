"""Train a small model on the handwritten digits, the same way every time."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from vit_lessons.data import load_digits

# A small Vision Transformer: 4 x 4 patches of 2 x 2 pixels.
TINY = {
    "img_size": 8,
    "patch_size": 2,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 4,
    "mlp_ratio": 2.0,
}


@cache
def split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels: 1347 to train on, then 450 to test with."""
    images, labels = load_digits()
    train, test = train_test_split(
        torch.arange(len(labels)),
        test_size=450,
        stratify=labels,
        random_state=0,
    )
    images = (images - images[train].mean()) / images[train].std()
    return images[train], labels[train], images[test], labels[test]


def train(
    model: nn.Module,
    *,
    seed: int,
    steps: int = 400,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    warmup: float = 0.1,
    weight_decay: float = 0.05,
) -> float:
    """Train with AdamW; return the accuracy on the test images, in percent.

    Args:
        model: From images to logits.
        seed: Of the order of the images.
        steps: Batches to train on.
        batch_size: Images in a batch.
        learning_rate: The largest one; it rises during the warm-up and then
            falls to 0 along a cosine.
        warmup: Share of the steps that are warm-up.
        weight_decay: On tensors of two and more axes: matrices, tables and
            tokens, not biases and norms.
    """
    images, labels, test_images, test_labels = split()
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = AdamW(
        groups, lr=learning_rate, weight_decay=weight_decay, fused=True
    )
    first = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < first and warmup:
            return (step + 1) / first
        rest = torch.tensor((step - first) / max(1, steps - first))
        return (0.5 * (1 + (rest * torch.pi).cos())).item()

    schedule = LambdaLR(optimizer, factor)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        batch = torch.randint(len(labels), (batch_size,), generator=generator)
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.inference_mode():
        right = (model(test_images).argmax(1) == test_labels).float().mean()
    return round(100 * right.item(), 2)
