"""Training: one loop, from the first batch to the curve.

Chapter: notebooks/08_training.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
)
from torch.utils.data import DataLoader

from vit_lessons.checkpoint import (
    describe_groups,
    load_checkpoint,
    refuse_hidden_state,
    save_checkpoint,
)
from vit_lessons.progress import progress

__all__ = [
    "History",
    "evaluate",
    "fit",
    "mixed_precision",
    "parameter_groups",
    "train_one_epoch",
    "warmup_cosine",
]


def parameter_groups(
    model: nn.Module, weight_decay: float
) -> list[dict[str, Any]]:
    """Sort the parameters for AdamW: weight decay on matrices only.

    Matrices are parameters with more than one axis whose name ends in
    "weight": those of linear layers and convolutions. Biases, norms, the class
    token and position tables keep their size.

    Args:
        model: Its frozen parameters are left out.
        weight_decay: Each step multiplies a matrix by
            1 - learning rate * weight_decay.

    Returns:
        Two groups that hold each trainable parameter once.

    Raises:
        ValueError: No parameter of the model is trainable.

    Source: big_vision decays names that end in "kernel", Flax's name for
    these weights, https://github.com/google-research/big_vision.
    """
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = name.endswith("weight") and parameter.ndim > 1
            (decayed if is_matrix else kept).append(parameter)
    if not decayed and not kept:
        raise ValueError("model must have a trainable parameter, got none")
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def warmup_cosine(
    optimizer: Optimizer, warmup_steps: int, total_steps: int
) -> LRScheduler:
    """Let the learning rate rise along a line, then fall along a cosine.

    Args:
        optimizer: Its learning rates are the largest ones.
        warmup_steps: Steps until a rate is at its largest. The first step
            takes 1 / warmup_steps of it. 0 leaves out the warm-up.
        total_steps: Steps until the rate is 0.

    Raises:
        ValueError: Not 0 <= warmup_steps < total_steps.

    Source: Loshchilov and Hutter 2017, equation 5,
    https://arxiv.org/abs/1608.03983, without restarts.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            "warmup_steps must be in 0 <= warmup_steps < total_steps, got "
            f"{warmup_steps} and total_steps {total_steps}"
        )
    if warmup_steps == 0:
        return CosineAnnealingLR(optimizer, T_max=total_steps)
    line = LinearLR(
        optimizer, start_factor=1 / warmup_steps, total_iters=warmup_steps - 1
    )
    cosine = CosineAnnealingLR(optimizer, T_max=total_steps - warmup_steps)
    return SequentialLR(optimizer, [line, cosine], milestones=[warmup_steps])


def mixed_precision(device: str | torch.device) -> torch.autocast:
    """Compute in bfloat16 on a GPU that has units for it.

    Those are Nvidia's GPUs from 2020 on (compute capability 8). Elsewhere
    everything stays in float32, also on Colab's T4, which only emulates
    bfloat16.

    Args:
        device: The device of the model, for example "cpu".

    Raises:
        RuntimeError: PyTorch knows no such device.
    """
    device = torch.device(device)
    is_fast = device.type == "cuda" and (
        torch.cuda.get_device_capability(device) >= (8, 0)
    )
    return torch.autocast("cuda", torch.bfloat16, enabled=is_fast)


def train_one_epoch(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    optimizer: Optimizer,
    scheduler: LRScheduler,
    *,
    loss_fn: Callable[..., Tensor] = F.cross_entropy,
    mix: Callable[..., tuple[Tensor, Tensor]] | None = None,
    max_norm: float = 1.0,
) -> float:
    """Train on every batch once; return the mean loss over the images.

    Args:
        model: From images to logits. It is set to training mode.
        loader: Gives batches of images and labels.
        optimizer: Makes one step after each batch.
        scheduler: Makes one step after each batch.
        loss_fn: From logits and labels to a mean over the batch.
        mix: From a batch to another one, for example MixUp.
        max_norm: The gradients of all parameters, as one vector, are made
            shorter if the vector is longer than this.

    Raises:
        ValueError: loader gives no batch.
    """
    device = next(model.parameters()).device
    model.train()
    total, count = torch.zeros((), device=device), 0
    for images, labels in progress(loader, "batches", leave=False):
        images = images.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        if mix is not None:
            images, labels = mix(images, labels)
        with mixed_precision(device):
            loss = loss_fn(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        scheduler.step()
        total += loss.detach() * len(images)  # the last batch may be smaller
        count += len(images)
    if count == 0:
        raise ValueError("loader must give at least one batch, got none")
    return total.item() / count


def evaluate(
    model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """Return the mean loss and the accuracy (percent) over the images.

    Args:
        model: From images to logits. It is set to evaluation mode.
        loader: Gives batches of images and labels.

    Raises:
        ValueError: loader gives no batch.
    """
    device = next(model.parameters()).device
    model.eval()
    loss, right, count = 0.0, 0, 0
    with torch.inference_mode():
        for images, labels in loader:
            images = images.to(device, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            with mixed_precision(device):
                logits = model(images)
                loss += F.cross_entropy(logits, labels, reduction="sum").item()
            right += (logits.argmax(dim=1) == labels).sum().item()
            count += len(images)
    if count == 0:
        raise ValueError("loader must give at least one batch, got none")
    return loss / count, 100 * right / count


@dataclass
class History:
    """What fit measures in each epoch. Accuracy is in percent.

    Args:
        train_loss: Mean over the epoch, while the model was learning.
        test_loss: On the test images after the epoch.
        test_accuracy: On the test images after the epoch.

    Raises:
        ValueError: plot is called before the first epoch ended.
    """

    train_loss: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.train_loss)

    def append(
        self, train_loss: float, test_loss: float, test_accuracy: float
    ) -> None:
        self.train_loss.append(train_loss)
        self.test_loss.append(test_loss)
        self.test_accuracy.append(test_accuracy)

    def state_dict(self) -> dict[str, list[float]]:
        return vars(self)

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        vars(self).update({name: [*state[name]] for name in vars(self)})

    def plot(self) -> tuple[Axes, Axes]:
        """Draw the losses, and the accuracy below them."""
        if not len(self):
            raise ValueError("history must hold at least one epoch, got none")
        epochs = range(1, len(self) + 1)
        _, (top, bottom) = plt.subplots(2, 1, figsize=(6, 5), sharex=True)
        top.plot(epochs, self.train_loss, marker=".", label="training")
        top.plot(epochs, self.test_loss, marker=".", ls="--", label="test")
        top.set(ylabel="loss", ylim=(0, None))
        top.legend()
        bottom.plot(epochs, self.test_accuracy, marker=".", ls="--", color="C1")
        bottom.set(xlabel="epoch", ylabel="test accuracy (%)", ylim=(None, 101))
        return top, bottom


def fit(
    model: nn.Module,
    train_loader: DataLoader,
    test_loader: DataLoader,
    *,
    epochs: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.05,
    groups: list[dict[str, Any]] | None = None,
    warmup: float = 0.1,
    loss_fn: Callable[..., Tensor] = F.cross_entropy,
    mix: Callable[..., tuple[Tensor, Tensor]] | None = None,
    evaluate_fn: Callable[..., tuple[float, float]] = evaluate,
    max_norm: float = 1.0,
    seed: int = 0,
    checkpoint: str | Path | None = None,
) -> History:
    """Train a model; after each epoch evaluate it and write a checkpoint.

    If the checkpoint is there already, training goes on after its last epoch.
    On a CPU an interrupted run ends with the same bits as one that was not, if
    all that is random comes from torch. The checkpoint knows the numbers among
    the arguments, and refuses others; images, augmentation and functions must
    be the same, which is not checked.

    Args:
        model: From images to logits, with its first weights.
        train_loader: Gives batches of images and labels to learn from.
        test_loader: Gives batches to measure with. Nothing is learned or
            chosen from them.
        epochs: How often the model sees the training images.
        learning_rate: Of AdamW, at its largest.
        weight_decay: Of AdamW, on matrices only.
        groups: Parameter groups for AdamW, with rates of their own (chapter
            11). None stands for parameter_groups(model, weight_decay).
        warmup: Share of all steps in which the learning rate rises.
        loss_fn, mix, max_norm: See train_one_epoch.
        evaluate_fn: From model and test_loader to a loss and a score, which
            the history keeps as accuracy.
        seed: Of the order of images, augmentation, mix and dropout: torch's
            seed is set in each epoch. The first weights are there already.
        checkpoint: File to write to and to go on from. None writes nothing.

    Raises:
        ValueError: An argument is out of its range, the loss is no longer a
            number, or the checkpoint is one of another run.
    """
    if epochs < 1 or not 0 <= warmup < 1:
        raise ValueError(
            "epochs must be at least 1 and warmup in 0 <= warmup < 1, got "
            f"{epochs} and {warmup}"
        )
    refuse_hidden_state(train_loader)
    steps = epochs * len(train_loader)
    if steps == 0:
        raise ValueError("train_loader must give at least one batch, got none")
    if groups is None:
        groups = parameter_groups(model, weight_decay)
    # The optimizer changes its groups, so it gets a copy of each.
    own = {"lr": learning_rate, "weight_decay": weight_decay}
    groups = [
        {**own, **group, "params": [*group["params"]]} for group in groups
    ]
    described = describe_groups(model, groups)
    optimizer = AdamW(groups, **own)
    scheduler = warmup_cosine(optimizer, int(warmup * steps), steps)
    history = History()
    parts = {
        "model": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "history": history,
    }
    settings = {
        "steps": steps,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "groups": described,
        "warmup": warmup,
        "max_norm": max_norm,
        "seed": seed,
    }
    if checkpoint is not None and Path(checkpoint).is_file():
        load_checkpoint(checkpoint, parts, settings)
    for epoch in progress(range(len(history), epochs), "epochs"):
        # All that is random in an epoch follows from its own seed, so no
        # state of a generator has to be kept.
        torch.manual_seed(1_000_003 * seed + epoch)
        train_loss = train_one_epoch(
            model,
            train_loader,
            optimizer,
            scheduler,
            loss_fn=loss_fn,
            mix=mix,
            max_norm=max_norm,
        )
        test_loss, test_accuracy = evaluate_fn(model, test_loader)
        if not math.isfinite(train_loss + test_loss):
            raise ValueError(
                "learning_rate must keep the loss finite, got "
                f"{learning_rate}, and a loss of {train_loss} in training and "
                f"{test_loss} in the test in epoch {epoch + 1}"
            )
        history.append(train_loss, test_loss, test_accuracy)
        if checkpoint is not None:
            save_checkpoint(checkpoint, parts, settings)
    return history
