"""Fine-tuning: begin with weights that another task has trained.

Chapter: notebooks/11_fine_tuning.ipynb
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vit_lessons.position_embedding import resize_pos_embed
from vit_lessons.training import parameter_groups
from vit_lessons.weights import LoadReport, read_weights

__all__ = [
    "HEADS",
    "PREFIX_TOKENS",
    "TORCHVISION_NAMES",
    "find_faults",
    "fit_pos_embed",
    "from_torchvision",
    "is_part_of",
    "layerwise_learning_rates",
    "learning_rate_groups",
    "load_pretrained",
]

#: Parts that belong to the classes of a task, by timm's names.
HEADS = ("head", "head_dist")

#: Tokens that stand before the patches, by timm's names.
PREFIX_TOKENS = ("cls_token", "dist_token")

#: What torchvision calls a weight, and what timm and this course call it.
#: linear_1 and linear_2 are the names in weights older than torchvision 0.14.
TORCHVISION_NAMES: dict[str, str] = {
    r"class_token": r"cls_token",
    r"encoder\.pos_embedding": r"pos_embed",
    r"conv_proj\.(weight|bias)": r"patch_embed.proj.\1",
    r"conv_proj\.conv_last\.(\w+)": r"patch_embed.proj.\1",
    r"conv_proj\.conv_bn_relu_(\d+)\.(.+)": r"patch_embed.backbone.\1.\2",
    r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(\w+)": (
        r"blocks.\1.norm\2.\3"
    ),
    r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(\w+)": (
        r"blocks.\1.attn.qkv.\2"
    ),
    r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(\w+)": (
        r"blocks.\1.attn.proj.\2"
    ),
    r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(\w+)": (
        r"blocks.\1.mlp.fc1.\2"
    ),
    r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(\w+)": (
        r"blocks.\1.mlp.fc2.\2"
    ),
    r"encoder\.ln\.(\w+)": r"norm.\1",
    r"heads\.head\.(\w+)": r"head.\1",
}


def from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give torchvision's weights the names that timm and this course use.

    Only names change: the tensors hold the same numbers in the same order.

    Args:
        state_dict: Of a torchvision VisionTransformer.

    Raises:
        ValueError: A name is not one of torchvision's, or two become one.
    """
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state_dict.items():
        for pattern, new_name in TORCHVISION_NAMES.items():
            match = re.fullmatch(pattern, name)
            if match:
                new_name = match.expand(new_name)
                if new_name in renamed:
                    raise ValueError(
                        "state_dict must hold each weight once, got two of "
                        f"{new_name}, the second one as {name}"
                    )
                renamed[new_name] = tensor
                break
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(
            "state_dict must have torchvision's names of a Vision "
            f"Transformer, got {len(unknown)} others: {', '.join(unknown[:5])}"
        )
    return renamed


def is_part_of(name: str, parts: Sequence[str]) -> bool:
    """Whether a parameter belongs to one of these parts of a model.

    Args:
        name: For example "blocks.1.norm1.weight".
        parts: For example ("blocks.1", "head").

    Returns:
        True if one of the parts holds it. "blocks.1" does not hold
        "blocks.10", and "" holds everything.

    Raises:
        ValueError: parts is a single string, whose letters would be parts.
    """
    if isinstance(parts, str):
        raise ValueError(
            f"parts must be a sequence of names, got the string {parts!r}; "
            f"write [{parts!r}]"
        )
    return any(
        part in ("", name) or name.startswith(f"{part}.") for part in parts
    )


def fit_pos_embed(
    pos_embed: Tensor,
    model: nn.Module,
    grid_size: int | tuple[int, int] | None = None,
) -> Tensor:
    """Resize a position table to the patch grid of a model.

    Args:
        pos_embed: The table of other weights.
        model: It has grid_size, (gh, gw), and num_prefix_tokens.
        grid_size: Patches down and across of the table. None stands for a
            square, or for the model's grid if the places make no square.

    Shape:
        pos_embed: (1, num_prefix_tokens + N, D) -> the same with N = gh * gw

    Raises:
        ValueError: The table is not one of this grid, or its grid cannot be
            told from its number of rows.
    """
    prefix, (gh, gw) = model.num_prefix_tokens, model.grid_size
    if pos_embed.ndim != 3:
        raise ValueError(
            f"pos_embed must be (1, {prefix} + N, D), got "
            f"{tuple(pos_embed.shape)}"
        )
    places = pos_embed.shape[1] - prefix
    side = math.isqrt(max(0, places))
    if grid_size is None and side * side == places > 0:
        grid_size = (side, side)
        if places == gh * gw and gh != gw:
            raise ValueError(
                f"grid_size must be given, got none, and {places} places may "
                f"be a grid of {grid_size} or of {(gh, gw)}"
            )
    elif grid_size is None and places == gh * gw:
        grid_size = (gh, gw)
    elif grid_size is None:
        raise ValueError(
            f"pos_embed must have {prefix} + N rows with a square N, got "
            f"{pos_embed.shape[1]}; give grid_size if its grid is no square"
        )
    return resize_pos_embed(
        pos_embed, grid_size, (gh, gw), num_prefix_tokens=prefix
    )


def find_faults(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> list[str]:
    """Say in words which of the given weights a model cannot take.

    Args:
        own: The state dict of the model.
        given: Weights with some of the same names.

    Returns:
        One text for each weight with a fault.

    Raises:
        KeyError: A name in given is not in own.
    """
    faults = []
    for name, tensor in given.items():
        shape, wanted = tuple(tensor.shape), tuple(own[name].shape)
        if shape != wanted:
            hint = "; see new_head" if is_part_of(name, HEADS) else ""
            faults.append(f"{name} of shape {shape} for {wanted}{hint}")
        elif tensor.is_floating_point() != own[name].is_floating_point():
            faults.append(f"{name} of {tensor.dtype} for {own[name].dtype}")
        elif tensor.is_meta or own[name].is_meta:
            faults.append(f"{name} on the meta device, without numbers")
        elif tensor.layout != own[name].layout:
            faults.append(f"{name} of {tensor.layout}")
        elif not tensor.to(own[name].dtype).isfinite().all():
            faults.append(f"{name} with numbers that are not finite")
    return faults


def load_pretrained(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    *,
    new_head: bool = False,
    grid_size: int | tuple[int, int] | None = None,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> LoadReport:
    """Put trained weights into a model: all of them, or none.

    Names are timm's; torchvision's are renamed. The position table is resized
    to the model's grid. If anything does not fit, there is an error that
    names it, and the model stays as it was.

    Args:
        model: Its state dict has timm's names.
        source: A state dict, a file, a folder, or the name of published
            weights: see read_weights.
        new_head: The task has other classes: leave out the head of the
            source. The model keeps its own.
        grid_size: Patches down and across of the source's position table:
            see fit_pos_embed.
        allow_missing: Parts of the model that the source need not have, for
            example "dist_token". They keep their values.
        allow_unexpected: Parts of the source that the model need not have.

    Raises:
        ValueError: The source does not fit the model, or is none.
        WeightsError: A download failed.
    """
    weights = read_weights(source)
    given = weights.state_dict
    if "class_token" in given:
        given = from_torchvision(given)
    own = model.state_dict()
    heads = HEADS if new_head else ()
    replaced = [name for name in own | given if is_part_of(name, heads)]
    given = {n: given[n] for n in given if n not in replaced}
    missing = [n for n in own if n not in given and n not in replaced]
    unexpected = [n for n in given if n not in own]
    taken = {n: given[n] for n in given if n in own}
    faults = [f"no {n}" for n in missing if not is_part_of(n, allow_missing)]
    faults += [
        f"{n}, which the model does not have"
        for n in unexpected
        if not is_part_of(n, allow_unexpected)
    ]
    if "pos_embed" in taken and hasattr(model, "grid_size"):
        tokens = [n for n in PREFIX_TOKENS if n in given]
        try:
            if tokens and len(tokens) != model.num_prefix_tokens:
                raise ValueError(
                    f"pos_embed must have {model.num_prefix_tokens} + N rows, "
                    f"got those of {' and '.join(tokens)} and the patches"
                )
            table = fit_pos_embed(taken["pos_embed"], model, grid_size)
            taken["pos_embed"] = table
        except ValueError as error:
            faults.append(str(error))
            del taken["pos_embed"]
    faults += find_faults(own, taken)
    if faults:
        more = [f"{len(faults) - 8} more"] if len(faults) > 8 else []
        raise ValueError(
            f"source must fit the model, got {'; '.join(faults[:8] + more)}"
        )
    model.load_state_dict(own | taken)
    # A table that need not be resized comes back as the same tensor.
    resized = [n for n in taken if taken[n] is not given[n]]
    return LoadReport(
        loaded=tuple(n for n in taken if n not in resized),
        resized=tuple(resized),
        replaced=tuple(replaced),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        preprocessing=weights.preprocessing,
    )


def learning_rate_groups(
    model: nn.Module,
    learning_rates: Mapping[str, float],
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Sort the parameters for AdamW: a learning rate for each part.

    Weight decay is that of parameter_groups: on matrices only.

    Args:
        model: Any model. Its frozen parameters are left out.
        learning_rates: The largest learning rate of each part, by its name,
            for example {"": 1e-4, "head": 1e-3}. Of the names that hold a
            parameter, the longest counts; "" holds all.
        weight_decay: See parameter_groups.

    Returns:
        Groups that hold each trainable parameter once.

    Raises:
        ValueError: A parameter has no rate, a rate has no parameter or is not
            positive, or no parameter is trainable.
    """
    part_of: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters():
        parts = [part for part in learning_rates if is_part_of(name, [part])]
        if parts:
            part_of[parameter] = max(parts, key=len)
        elif parameter.requires_grad:
            raise ValueError(
                "learning_rates must hold every trainable parameter, got "
                f"{', '.join(learning_rates)}, without {name}"
            )
    for part, rate in learning_rates.items():
        if part not in part_of.values() or not 0 < rate < math.inf:
            raise ValueError(
                "learning_rates must be positive and each that of a parameter, "
                f"got {rate} for {part!r}"
            )
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    for group in parameter_groups(model, weight_decay):
        for parameter in group["params"]:
            part = part_of[parameter]
            same = groups.setdefault(
                (part, group["weight_decay"]),
                {**group, "params": [], "lr": learning_rates[part]},
            )
            same["params"].append(parameter)
    return list(groups.values())


def layerwise_learning_rates(
    model: nn.Module,
    learning_rate: float,
    decay: float,
    *,
    blocks: Sequence[str] | None = None,
) -> dict[str, float]:
    """Give each block a learning rate, smaller towards the input.

    What is registered after the last block has the full rate, the last block
    decay times that, the block before it decay times as much again, and so
    on; what is registered before the first block comes last. What is
    registered between two blocks goes with the second one.

    Args:
        model: Registers its parts in the order in which it computes. Tensors
            that are its own, such as the class token, always come first.
        learning_rate: The full rate.
        decay: Factor from a block to the one before it, in 0 < decay <= 1.
        blocks: Names of the blocks, from the input on. None takes all parts
            whose name ends in "blocks" and a number.

    Returns:
        Rates by part, for learning_rate_groups.

    Raises:
        ValueError: decay is not in its range, or the model has no such
            blocks.

    Source: Howard and Ruder 2018, section 3.2,
    https://arxiv.org/abs/1801.06146; for a Vision Transformer Bao et al.
    2022, https://arxiv.org/abs/2106.08254.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay must be in 0 < decay <= 1, got {decay}")
    parts = [name for name, _ in model.named_modules()]
    if blocks is None:
        pattern = r"((?!blocks\.).)*blocks\.\d+"  # no blocks within blocks
        blocks = [name for name in parts if re.fullmatch(pattern, name)]
    is_nested = any(
        a != b and is_part_of(a, [b]) for a in blocks for b in blocks
    )
    if (
        not blocks
        or is_nested
        or [*blocks] != [b for b in parts if b in blocks]
    ):
        raise ValueError(
            "blocks must be names of parts of the model in their order, each "
            f"once and none within another, got {blocks}"
        )
    rates: dict[str, float] = {}
    place, last = 0, len(blocks) + 1
    for name, _ in model.named_parameters():
        inside = [b for b in blocks if is_part_of(name, [b])]
        if inside:
            part = inside[0]
            step = place = blocks.index(part) + 1
        else:  # the largest part around it that holds no block
            words = name.split(".")
            starts = (".".join(words[: i + 1]) for i in range(len(words)))
            part = next(
                s for s in starts if not any(is_part_of(b, [s]) for b in blocks)
            )
            step = 0 if place == 0 else place + 1
        rates[part] = learning_rate * decay ** (last - step)
    return rates
