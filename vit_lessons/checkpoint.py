"""Checkpoints: the state of a training run in a file, whole or not at all."""

from __future__ import annotations

import copy
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = [
    "describe_groups",
    "load_checkpoint",
    "refuse_hidden_state",
    "save_checkpoint",
]


def save_checkpoint(
    path: str | Path, parts: dict[str, Any], settings: dict[str, Any]
) -> None:
    """Write the state of a run to a file, whole or not at all.

    The state goes to a second file, which then takes the place of the first.
    So an interruption leaves the checkpoint before this one.

    Args:
        path: The file.
        parts: What has a state_dict(), by name.
        settings: Numbers and strings that say which run this is.

    Raises:
        OSError: The file cannot be written, for example to a full disk.
    """
    state = {name: part.state_dict() for name, part in parts.items()}
    path = Path(path)
    part_file = path.with_name(f"{path.name}.part")
    try:
        with part_file.open("wb") as file:
            torch.save(state | {"settings": settings}, file)
            file.flush()
            os.fsync(file.fileno())  # on the disk, not only on its way
        part_file.replace(path)
    finally:
        part_file.unlink(missing_ok=True)


def load_checkpoint(
    path: str | Path, parts: dict[str, Any], settings: dict[str, Any]
) -> None:
    """Put the state of a file that save_checkpoint wrote into the parts.

    PyTorch is told to read tensors and plain values alone, so that a file
    cannot run code. Versions before 2.10 had holes in this (CVE-2025-32434,
    CVE-2026-24747): read files of strangers with a new one. If a part does not
    fit the file, all parts stay as they are.

    Args:
        path: The file.
        parts: What has a load_state_dict(), by name.
        settings: They must equal those of the file.

    Raises:
        ValueError: The file is no checkpoint, or is one of another run or of
            other parts.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state.pop("settings")
    except Exception as error:
        raise ValueError(
            f"path must be a file of save_checkpoint, got {path}, which "
            f"cannot be read ({type(error).__name__}); delete it to begin anew"
        ) from error
    if found != settings:
        names = [n for n in settings if settings[n] != found.get(n)]
        wanted, got = ({n: s.get(n) for n in names} for s in (settings, found))
        raise ValueError(
            f"path must be a checkpoint of a run with {wanted}, got {path} "
            f"of a run with {got}; take the same settings or another file"
        )
    if state.keys() != parts.keys():
        raise ValueError(
            f"parts must be {', '.join(state)} as in {path}, got "
            f"{', '.join(parts)}; take the same parts or another file"
        )
    before = copy.deepcopy(
        {name: part.state_dict() for name, part in parts.items()}
    )
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except Exception as error:
        for name_before, state_before in before.items():
            parts[name_before].load_state_dict(state_before)
        raise ValueError(
            f"{name} must fit {path}, got another one than that of the run; "
            "take the same one or another file"
        ) from error


def refuse_hidden_state(train_loader: Any) -> None:
    """Refuse a loader with random numbers of its own.

    They go on from epoch to epoch, and no checkpoint holds where they are.

    Args:
        train_loader: A DataLoader, or anything that gives batches.

    Raises:
        ValueError: It has a generator or persistent workers.
    """
    batches = getattr(train_loader, "batch_sampler", None)
    for part in (train_loader, getattr(batches, "sampler", None)):
        if getattr(part, "generator", None) is not None:
            raise ValueError(
                "train_loader must have no generator, or a run that goes on "
                f"would not know its state, got {part.generator}; use seed"
            )
    if getattr(train_loader, "persistent_workers", False):
        raise ValueError(
            "train_loader must have no persistent workers, or a run that goes "
            "on would not know their state, got persistent_workers=True"
        )


def describe_groups(
    model: nn.Module, groups: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Say how each parameter group learns, and what is in it.

    Args:
        model: The model that is trained.
        groups: As an optimizer takes them, with lr and weight_decay in each.

    Returns:
        A text for each group. It ends in a number that other parameters would
        change.

    Raises:
        ValueError: A trainable parameter of the model is in no group.
    """
    name_of = {p: name for name, p in model.named_parameters()}
    texts = []
    for group in groups:
        # An optimizer also takes parameters in pairs (name, parameter).
        held = [p[1] if isinstance(p, tuple) else p for p in group["params"]]
        names = [name_of.pop(p, "of no model") for p in held]
        which = zlib.crc32(" ".join(names).encode())
        texts.append(
            f"lr {group['lr']}, weight decay {group['weight_decay']}, "
            f"{len(names)} parameters {which:08x}"
        )
    for parameter, name in name_of.items():
        if parameter.requires_grad:
            raise ValueError(
                f"groups must hold every trainable parameter, got no {name}"
            )
    return texts
