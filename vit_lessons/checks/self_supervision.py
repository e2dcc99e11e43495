"""Exercises of chapter 12, with the mistakes that learners make."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from vit_lessons.checks.candidate import Refusal, kind
from vit_lessons.checks.catalogue import Mistake, WrongForm, combine
from vit_lessons.checks.compare import DTYPE
from vit_lessons.checks.exercise import Case, Exercise, Outcome
from vit_lessons.checks.masking import CORRUPT_PATCHES, DRAW_MASK
from vit_lessons.checks.observe import Facts, ObservedExercise
from vit_lessons.checks.part import normal
from vit_lessons.checks.patch_embedding import (
    COLUMNS_FIRST,
    SEVERAL_IMAGES,
    SQUARE_IMAGES,
    SQUARE_PATCHES,
    SWAPPED_PATCH,
)
from vit_lessons.patch_embedding import as_pair, patchify
from vit_lessons.self_supervision import mean_color_classes, rotate_images

# mean_color_classes.

INT64 = "The numbers are right, but not their dtype: use torch.int64."


@dataclass(frozen=True)
class ClassesExercise(Exercise):
    """Classes are whole numbers, whatever the images are."""

    def run(self, candidate: Any, case: Case) -> Outcome:
        outcome = super().run(candidate, case)
        if outcome.cause == DTYPE:
            return replace(outcome, cause=INT64)
        return outcome

    def has_gradients(self, case: Case) -> bool:
        return False


def _level(mean: Tensor, bits: int) -> Tensor:
    return (mean * 2**bits).floor().clamp(max=2**bits - 1)


def _number(digits: Tensor, base: int) -> Tensor:
    places = base ** torch.arange(digits.shape[-1] - 1, -1, -1)
    return (digits.long() * places).sum(dim=-1)


def _classes(
    cut: Callable[..., Tensor] = patchify,
    average: str | Callable[[Tensor], Tensor] = "b n (c p) -> b n c",
    level: Callable[[Tensor, int], Tensor] = _level,
    number: Callable[..., Tensor] = lambda d, bits: _number(d, 2**bits),
    end: Callable[..., Tensor] = lambda classes, grid: classes,
) -> Callable[..., Tensor]:
    """mean_color_classes, with some steps exchanged."""

    def form(images: Tensor, patch_size: Any, *, bits: int = 3) -> Tensor:
        p1, p2 = as_pair("patch_size", patch_size)
        patches = cut(images, (p1, p2))
        if isinstance(average, str):
            mean = reduce(patches, average, "mean", c=images.shape[1])
        else:
            mean = average(rearrange(patches, "b n (c p) -> b n c p", c=3))
        classes = number(level(mean, bits), bits)
        return end(classes, (images.shape[2] // p1, images.shape[3] // p2))

    return form


def _in_columns(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    p1, p2 = patch_size
    pattern = "b c (gh p1) (gw p2) -> b (gw gh) (c p1 p2)"
    return rearrange(images, pattern, p1=p1, p2=p2)


def _reshaped(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    return images.reshape(len(images), -1, 3 * math.prod(patch_size))


def _pieces_of_rows(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    pieces = images.reshape(len(images), 3, -1, math.prod(patch_size))
    return rearrange(pieces, "b c n p -> b n (c p)")


def _channels_last(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    p1, p2 = patch_size
    pattern = "b c (gh p1) (gw p2) -> b (gh gw) (p1 p2 c)"
    return rearrange(images, pattern, p1=p1, p2=p2)


def _pixels(mean: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """A level for each pixel, then a mean of them."""
    return {
        "average": lambda pixels: _level(pixels, 3).mean(dim=-1) / 8,
        "level": lambda x, bits: mean(x * 8),
    }


def _whole(x: Tensor) -> Tensor:
    return x.mean(dim=(1, 3), keepdim=True).squeeze(3)  # (B, 1, C)


COLOR_MISTAKES = (
    Mistake(
        "The channels are in reversed order: the first one, red, is the "
        "highest digit.",
        {"number": lambda d, bits: _number(d.flip(-1), 2**bits)},
    ),
    Mistake(
        "There are as many levels as bits, and there must be 2^bits.",
        {
            "level": lambda x, bits: (x * bits).floor().clamp(max=bits - 1),
        },
        {
            "level": lambda x, bits: (x * bits).floor().clamp(max=bits - 1),
            "number": lambda d, bits: _number(d, bits),
        },
        {"level": lambda x, bits: (x * bits).floor()},
    ),
    Mistake(
        "A channel of 1 gets level 2^bits, which is one too many: the highest "
        "level is 2^bits - 1 in each channel.",
        {"level": lambda x, bits: (x * 2**bits).floor()},
        {
            "level": lambda x, bits: (x * 2**bits).floor(),
            "end": lambda classes, grid: classes.clamp(max=511),
        },
        {
            "level": lambda x, bits: (x * 2**bits).floor(),
            "end": lambda classes, grid: classes % 512,
        },
    ),
    Mistake(
        "The highest level holds the mean 1 alone: multiply by 2^bits, not by "
        "2^bits - 1.",
        {"level": lambda x, bits: (x * (2**bits - 1)).floor()},
    ),
    Mistake(
        "Levels are rounded to the nearest or up: round each mean down to one "
        "of 2^bits levels.",
        {"level": lambda x, bits: (x * 2**bits).round().clamp(max=2**bits - 1)},
        {"level": lambda x, bits: (x * (2**bits - 1)).round()},
        {"level": lambda x, bits: (x * 2**bits).ceil().clamp(max=2**bits - 1)},
    ),
    Mistake(
        "The mean is taken over the whole image: each patch has its own.",
        {"average": lambda x: _whole(x).expand(-1, x.shape[1], -1)},
        {"average": _whole},
        {"average": lambda x: _whole(x).squeeze(1)},
    ),
    Mistake(
        "A reshape does not cut patches, it takes pixels in the order of "
        "memory: use patchify.",
        {"cut": _reshaped},
        {"cut": _pieces_of_rows},
    ),
    Mistake(
        "The mean mixes the channels: a patch is (c p1 p2), one channel after "
        "the other.",
        {"average": "b n (p c) -> b n c"},
        {"cut": _channels_last},
    ),
    Mistake(
        "The mean of all channels is taken: each channel has its own.",
        {"average": lambda x: x.mean(dim=(2, 3), keepdim=True).squeeze(3)},
        {
            "average": lambda x: (
                x.mean(dim=(2, 3), keepdim=True).squeeze(3).expand(-1, -1, 3)
            )
        },
    ),
    Mistake(COLUMNS_FIRST, {"cut": _in_columns}),
    Mistake(
        SWAPPED_PATCH, {"cut": lambda images, p: patchify(images, p[::-1])}
    ),
    Mistake(
        "One pixel stands for the patch: take the mean of all its pixels.",
        {"average": lambda x: x[..., 0]},
        {"average": lambda x: x[..., x.shape[3] // 2]},
    ),
    Mistake(
        "Each pixel gets a level before the mean is taken: take the mean "
        "first.",
        _pixels(torch.floor),
        _pixels(torch.round),
    ),
    Mistake(
        "The levels of the channels come back: make one number of them.",
        {"number": lambda d, bits: d.long()},
    ),
    Mistake(
        "The levels are added without weights: with 3 bits, red counts 64 "
        "times and green 8 times.",
        {"number": lambda d, bits: d.long().sum(dim=-1)},
    ),
    Mistake(
        "The numbers do not fit into uint8, which ends at 255: use int64.",
        {"number": lambda d, bits: _number(d, 2**bits).to(torch.uint8)},
        {"number": lambda d, bits: _number(d, 2**bits) % 256},
    ),
    Mistake(
        "The grid must be flat, one axis of N patches.",
        {"end": lambda classes, grid: classes.unflatten(1, grid)},
    ),
)


def _pictures(*shape: int, seed: int) -> Tensor:
    """Pixels in [0, 1], brighter in some rows than in others.

    The seeds below are those with which no mean of a patch is near the border
    of a level, where the order of a sum decides.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(*shape[:-1], 1, generator=generator)
    return torch.rand(shape, generator=generator) ** (4 * rows - 2).exp()


def _pure_colors() -> Tensor:
    """Black, blue, green, cyan, red, magenta, yellow, white and a gray."""
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    colors = torch.cat([corners, torch.tensor([[0.55, 0.55, 0.55]])])
    pattern = "(gh gw) c -> 1 c (gh p1) (gw p2)"
    return repeat(colors, pattern, gh=3, p1=2, p2=2)


MEAN_COLOR_CLASSES = ClassesExercise(
    mean_color_classes,
    cases=(
        Case("one image, P = 2", (_pictures(1, 3, 6, 6, seed=100), 2)),
        Case("pure colors", (_pure_colors(), 2)),
        Case(
            "two images", (_pictures(2, 3, 4, 4, seed=139), 2), SEVERAL_IMAGES
        ),
        Case(
            "an image of 4 x 6",
            (_pictures(1, 3, 4, 6, seed=36), 2),
            SQUARE_IMAGES,
        ),
        Case(
            "patches of (2, 3)",
            (_pictures(1, 3, 6, 6, seed=19), (2, 3)),
            SQUARE_PATCHES,
        ),
        Case(
            "bits=2",
            (_pictures(1, 3, 4, 6, seed=11), 2),
            "Right for 3 bits only: there are 2^bits levels.",
            {"bits": 2},
        ),
        Case("all axes different", (_pictures(2, 3, 8, 15, seed=187), (4, 5))),
    ),
    wrong_forms=lambda: combine(_classes, *COLOR_MISTAKES),
)

# rotate_images.

ONE_TURN = (
    "Each image comes back in one turn: the result holds all four turns of "
    "each, 4 * B images."
)
LABELS_INT64 = "The labels must be int64, as cross-entropy needs them."
AXES = (
    "The wrong axes are turned: height and width are the axes 2 and 3, "
    "dims=(2, 3)."
)


def _observe_turns(
    function: Callable[..., Any], images: Tensor
) -> Facts | None:
    result = function(images)
    if result is None:
        return None
    if kind(result) != "a pair of tensors":
        raise Refusal(
            "Your code must return the pair (images, labels), not "
            f"{kind(result)}."
        )
    turned, labels = (part.detach().cpu() for part in result)
    is_one = turned.ndim == 4 and len(turned) == len(images)
    return {
        "turns of each image": "one" if is_one else "all",
        "images": turned,
        "labels": labels.double(),
        "dtype of the labels": str(labels.dtype),
    }


def _rotate(
    turn: Callable[[Tensor, int], Tensor] = lambda x, k: x.rot90(k, (2, 3)),
    turns: tuple[int, ...] = (0, 1, 2, 3),
    images_in: str = "(t b) c h w",
    labels_in: str = "(t b)",
    name: Callable[[Tensor], Tensor] = lambda labels: labels,
    end: Callable[..., Any] = lambda images, labels: (images, labels),
) -> Callable[[Tensor], Any]:
    """rotate_images, with some steps exchanged."""

    def form(images: Tensor) -> Any:
        turned = torch.stack([turn(images, k) for k in turns])
        labels = repeat(name(torch.tensor(turns)), "t -> t b", b=len(images))
        return end(
            rearrange(turned, f"t b c h w -> {images_in}"),
            rearrange(labels, f"t b -> {labels_in}"),
        )

    return form


def _drawn_turns(images: Tensor) -> tuple[Tensor, Tensor]:
    turns = torch.randint(4, (len(images),))
    pairs = zip(images, turns.tolist(), strict=True)
    return torch.stack([x.rot90(k, (1, 2)) for x, k in pairs]), turns


def _flip(*flips: tuple[int, ...]) -> dict[str, Any]:
    return {"turn": lambda x, k: x.flip(flips[k])}


TURN_MISTAKES = (
    Mistake(
        "The images turn clockwise: label 1 is a quarter turn to the left, "
        "counterclockwise.",
        {"turn": lambda x, k: x.rot90(-k, (2, 3))},
    ),
    Mistake(
        "Images and labels are not in the same order: first all images as "
        "they are, with label 0, then all with label 1, and so on.",
        {"labels_in": "(b t)"},
        {"images_in": "(b t) c h w"},
    ),
    Mistake(
        "The four turns of an image come one after the other: first all "
        "images as they are, then all with one quarter turn, and so on.",
        {"images_in": "(b t) c h w", "labels_in": "(b t)"},
    ),
    Mistake(
        "The images are flipped or transposed: a turn moves rows to columns "
        "and reverses one of the two, as rot90 does.",
        _flip((), (3,), (2,), (2, 3)),
        _flip((), (2,), (3,), (2, 3)),
        _flip((), (3,), (2, 3), (2,)),
        _flip((), (2,), (2, 3), (3,)),
        {"turn": lambda x, k: (x.mT if k % 2 else x).rot90(k - k % 2, (2, 3))},
        {"turn": lambda x, k: x.mT if k % 2 else x.rot90(k, (2, 3))},
    ),
    Mistake(
        "The turns add up: turn the images as they came, not those that were "
        "turned before.",
        {"turn": lambda x, k: x.rot90(k * (k + 1) // 2, (2, 3))},
    ),
    Mistake(
        "The images as they are, are missing: there are four turns, by 0, 90, "
        "180 and 270 degrees.",
        {"turns": (1, 2, 3)},
        {"turns": (1, 2, 3), "name": lambda labels: labels - 1},
    ),
    Mistake(
        "The labels are the numbers of quarter turns, 0, 1, 2 and 3.",
        {"name": lambda labels: labels + 1},
        {"name": lambda labels: labels * 90},
        {"name": lambda labels: labels.flip(0)},
    ),
    Mistake(
        "The turns have an axis of their own: images are (4 * B, C, H, H), "
        "labels (4 * B,).",
        {"images_in": "t b c h w", "labels_in": "t b"},
        {"images_in": "t b c h w"},
        {"images_in": "b t c h w", "labels_in": "b t"},
    ),
    Mistake(
        "There is one label for each turn: each of the 4 * B images has its "
        "own.",
        {"end": lambda images, labels: (images, labels.unique())},
    ),
    Mistake(
        "The images come first, then the labels.",
        {"end": lambda images, labels: (labels, images)},
    ),
    Mistake(
        LABELS_INT64,
        {"end": lambda images, labels: (images, labels.float())},
    ),
)


def _turn_forms() -> Iterator[WrongForm]:
    yield WrongForm(ONE_TURN, _drawn_turns)
    yield from combine(_rotate, *TURN_MISTAKES)


ROTATE_IMAGES = ObservedExercise(
    rotate_images,
    cases=(
        Case("one image", (normal(1, 3, 5, 5),)),
        Case("three images", (normal(3, 2, 4, 4),), SEVERAL_IMAGES),
        Case("five gray images", (normal(5, 1, 6, 6),)),
    ),
    wrong_forms=_turn_forms,
    errors={
        "Sizes of tensors must match except": AXES,
        "stack expects each tensor to be equal size": AXES,
    },
    observe=_observe_turns,
    causes={
        "turns of each image": ONE_TURN,
        "dtype of the labels": LABELS_INT64,
    },
)

EXERCISES = (DRAW_MASK, MEAN_COLOR_CLASSES, CORRUPT_PATCHES, ROTATE_IMAGES)
