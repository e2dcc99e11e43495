"""Exercises of chapter 01, with the mistakes that learners make."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vit_lessons.checks.catalogue import Mistake, WrongForm, combine
from vit_lessons.checks.exercise import Case, Exercise, ModuleExercise
from vit_lessons.patch_embedding import (
    PatchEmbed,
    as_pair,
    patchify,
    unpatchify,
)

Size = int | tuple[int, int]

SEVERAL_IMAGES = "Right for one image only: keep the batch axis B apart."
SQUARE_IMAGES = (
    "Right for square images only: count the patches down and across "
    "separately, gh = H / P and gw = W / P."
)
SQUARE_PATCHES = (
    "Right for square patches only: patch_size may be a pair, (height, width)."
)
CHANNELS = "Right for one number of channels only: C may be any number."
BORDER = (
    "Border pixels are dropped silently: raise a ValueError when the patch "
    "size does not divide the height and the width of the image."
)
SPLIT = (
    "The pixels of a patch are spread over the whole image: H is (gh p1), grid "
    "outside and patch inside, not (p1 gh)."
)
COLUMNS_FIRST = (
    "The patches go column by column: they must go row by row, (gh gw)."
)
CHANNEL_PLACE = (
    "Inside a patch the channel stands in the wrong place: the order is "
    "channel, row, column, (c p1 p2), as in a convolution kernel."
)
TRANSPOSED = (
    "Rows and columns are swapped inside each patch: the order is channel, "
    "row, column, (c p1 p2)."
)
SWAPPED_PATCH = "patch_size is (height, width), and the code swaps the two."
TOKENS_LAST = (
    "The last two axes are swapped: tokens come before features, (B, N, ...)."
)
BATCH_SECOND = "The first two axes are swapped: the batch comes first."
MERGED = "Batch and patches share one axis: keep them apart, (B, N, ...)."
RESHAPED = (
    "reshape changed the shape to (B, N, ...) without moving the numbers: use "
    "transpose(1, 2)."
)
PLAIN_RESHAPE = (
    "A plain reshape does not cut patches, it takes pixels in the order of "
    "memory: split H and W into (grid, patch) and permute first."
)
NO_PERMUTE = (
    "The axes are split but not permuted: bring gh and gw together, and C, p1 "
    "and p2, before you flatten."
)
OVERLAP = (
    "The patches overlap: the step from patch to patch, the stride, must be P."
)
INT = (
    "An int is used as a pair: patch_size and grid_size may be an int, which "
    "stands for a square."
)
ERRORS = {
    "cannot unpack non-iterable int": INT,
    "'int' object is not subscriptable": INT,
    "must be an iterable, not int": INT,
    "object of type 'int' has no len": INT,
    "too many values to unpack": (
        "Your code unpacks fewer axes than there are: images are (B, C, H, W), "
        "and patches are (B, N, C * P * P)."
    ),
}

ORDER = (
    Mistake(COLUMNS_FIRST, {"grid": "(gw gh)"}),
    Mistake(
        CHANNEL_PLACE,
        {"patch": "(p1 p2 c)"},
        {"patch": "(p2 p1 c)"},
        {"patch": "(p1 c p2)"},
        {"patch": "(p2 c p1)"},
    ),
    Mistake(TRANSPOSED, {"patch": "(c p2 p1)"}),
    Mistake(SPLIT, {"split": "b c (p1 gh) (p2 gw)"}),
)


def _images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def _pair(size: Size) -> tuple[int, int]:
    return as_pair("size", size)


def _patchify(
    split: str = "b c (gh p1) (gw p2)",
    grid: str = "(gh gw)",
    patch: str = "(c p1 p2)",
    layout: str = "b {grid} {patch}",
) -> Callable[[Tensor, Size], Tensor]:
    """patchify, with some steps exchanged."""
    pattern = f"{split} -> {layout.format(grid=grid, patch=patch)}"

    def form(images: Tensor, patch_size: Size) -> Tensor:
        p1, p2 = _pair(patch_size)
        return rearrange(images, pattern, p1=p1, p2=p2)

    return form


def _plain_reshape(images: Tensor, patch_size: Size) -> Tensor:
    p1, p2 = _pair(patch_size)
    return images.reshape(len(images), -1, images.shape[1] * p1 * p2)


def _no_permute(images: Tensor, patch_size: Size) -> Tensor:
    p1, p2 = _pair(patch_size)
    patches = images.unfold(2, p1, p1).unfold(3, p2, p2)
    return patches.reshape(len(images), -1, images.shape[1] * p1 * p2)


def _overlap(images: Tensor, patch_size: Size) -> Tensor:
    return F.unfold(images, _pair(patch_size)).mT


def _swapped_patch(images: Tensor, patch_size: Size) -> Tensor:
    return patchify(images, _pair(patch_size)[::-1])


def _reshape_last(images: Tensor, patch_size: Size) -> Tensor:
    patches = patchify(images, patch_size)
    return patches.mT.reshape(patches.shape)


CUTS = (
    (PLAIN_RESHAPE, _plain_reshape),
    (NO_PERMUTE, _no_permute),
    (OVERLAP, _overlap),
    (SWAPPED_PATCH, _swapped_patch),
)


def _patchify_forms() -> Iterator[WrongForm]:
    yield from (WrongForm(cause, cut) for cause, cut in CUTS)
    yield WrongForm(RESHAPED, _reshape_last)
    for layout in ("b (c gh gw) (p1 p2)", "b (gh gw c) (p1 p2)"):
        yield WrongForm(
            "Each channel became a patch of its own: a patch holds them all.",
            _patchify(layout=layout),
        )
    yield from combine(
        _patchify,
        *ORDER,
        Mistake(TOKENS_LAST, {"layout": "b {patch} {grid}"}),
        Mistake(BATCH_SECOND, {"layout": "{grid} b {patch}"}),
        Mistake(
            MERGED,
            {"layout": "(b gh gw) {patch}"},
            {"layout": "(gh gw b) {patch}"},
        ),
        Mistake(
            "Each patch is flattened together with the batch: keep the batch "
            "axis apart, patch.flatten(1).",
            {"layout": "{grid} (b c p1 p2)"},
            {"layout": "(b c p1 p2) {grid}"},
            {"layout": "1 {grid} (b c p1 p2)"},
        ),
        Mistake(
            "A patch must be flat, one axis of C * P * P numbers.",
            {"layout": "b {grid} c p1 p2"},
            {"layout": "b {grid} p1 p2 c"},
            {"layout": "b c {grid} (p1 p2)"},
            {"layout": "b {grid} c (p1 p2)"},
            {"layout": "b c {grid} p1 p2"},
        ),
        Mistake(
            "The grid must be flat, one axis of N = gh * gw patches.",
            {"layout": "b gh gw {patch}"},
        ),
        Mistake(
            "The axes are not flat yet: the result has three, (B, N, C * P * "
            "P).",
            {"layout": "b gh gw c p1 p2"},
            {"layout": "b gh gw p1 p2 c"},
            {"layout": "b c gh gw p1 p2"},
            {"layout": "b c gh p1 gw p2"},
        ),
    )


PATCHIFY = Exercise(
    patchify,
    cases=(
        Case("one square image, P = 2", (_images(1, 3, 6, 6), 2)),
        Case("one channel", (_images(1, 1, 6, 6), 2), CHANNELS),
        Case("two images", (_images(2, 3, 6, 6), 2), SEVERAL_IMAGES),
        Case("an image of 4 x 6", (_images(1, 3, 4, 6), 2), SQUARE_IMAGES),
        Case(
            "patches of (2, 3)", (_images(1, 3, 6, 12), (2, 3)), SQUARE_PATCHES
        ),
        Case(
            "a height that P does not divide", (_images(2, 3, 7, 6), 2), BORDER
        ),
        Case(
            "a width that P does not divide", (_images(2, 3, 6, 7), 2), BORDER
        ),
        Case("all axes different", (_images(2, 3, 35, 24), (7, 6))),
    ),
    wrong_forms=_patchify_forms,
    errors=ERRORS,
)


def _unpatchify(
    split: str = "b c (gh p1) (gw p2)",
    grid: str = "(gh gw)",
    patch: str = "(c p1 p2)",
    layout: str = "{split}",
) -> Callable[[Tensor, Size, Size], Tensor]:
    """unpatchify, with some steps exchanged."""
    pattern = f"b {grid} {patch} -> {layout.format(split=split)}"

    def form(patches: Tensor, patch_size: Size, grid_size: Size) -> Tensor:
        (p1, p2), (gh, gw) = _pair(patch_size), _pair(grid_size)
        return rearrange(patches, pattern, gh=gh, gw=gw, p1=p1, p2=p2)

    return form


def _unpatchify_forms() -> Iterator[WrongForm]:
    def plain_reshape(patches: Tensor, patch_size: Size, grid_size: Size):
        return patches.reshape(unpatchify(patches, patch_size, grid_size).shape)

    def swapped_grid(patches: Tensor, patch_size: Size, grid_size: Size):
        return unpatchify(patches, patch_size, _pair(grid_size)[::-1])

    def swapped_patch(patches: Tensor, patch_size: Size, grid_size: Size):
        return unpatchify(patches, _pair(patch_size)[::-1], grid_size)

    def reshaped(patches: Tensor, patch_size: Size, grid_size: Size):
        b, n, features = patches.shape
        last = patches.reshape(b, features, n).mT
        return unpatchify(last, patch_size, grid_size)

    def not_interleaved(patches: Tensor, patch_size: Size, grid_size: Size):
        right = unpatchify(patches, patch_size, grid_size)
        apart = _unpatchify(layout="b c gh gw p1 p2")
        return apart(patches, patch_size, grid_size).reshape(right.shape)

    def exchanged(patches: Tensor, patch_size: Size, grid_size: Size):
        return unpatchify(patches, grid_size, patch_size)

    yield WrongForm(
        "reshape changed (B, N, features) to (B, features, N) without moving "
        "the numbers: use transpose(1, 2).",
        reshaped,
    )
    yield WrongForm(
        "Grid and patch are not interleaved: permute to (B, C, gh, p1, gw, p2) "
        "before you reshape to the image.",
        not_interleaved,
    )
    yield WrongForm(
        "patch_size and grid_size are exchanged: the arguments are (patches, "
        "patch_size, grid_size).",
        exchanged,
    )
    yield WrongForm(
        "A plain reshape leaves the pixels in the order of the patches: split "
        "N into (gh gw) and the patch into (c p1 p2), permute, then reshape.",
        plain_reshape,
    )
    yield WrongForm(
        "grid_size is (gh, gw), and the code swaps the two.", swapped_grid
    )
    yield WrongForm(SWAPPED_PATCH, swapped_patch)
    yield from combine(
        _unpatchify,
        *ORDER,
        Mistake(
            "The channels come last: an image here is (B, C, H, W).",
            {"layout": "b (gh p1) (gw p2) c"},
        ),
        Mistake(
            "Height and width of the image are swapped.",
            {"layout": "b c (gw p2) (gh p1)"},
        ),
        Mistake(
            "Grid and patch are still apart: merge gh with p1 to H, and gw "
            "with p2 to W.",
            {"layout": "b c gh gw p1 p2"},
            {"layout": "b c gh p1 gw p2"},
            {"layout": "b gh gw c p1 p2"},
            {"layout": "b gh p1 gw p2 c"},
        ),
        Mistake(
            "Grid and patch are merged with the wrong partner: H is (gh p1) "
            "and W is (gw p2).",
            {"layout": "b c (gh gw) (p1 p2)"},
        ),
    )


UNPATCHIFY = Exercise(
    unpatchify,
    cases=(
        Case("three channels, P = 2, 3 x 3", (_images(1, 9, 12), 2, 3)),
        Case("one channel", (_images(1, 9, 4), 2, 3), CHANNELS),
        Case("two images", (_images(2, 9, 12), 2, 3), SEVERAL_IMAGES),
        Case(
            "a grid given as (3, 3)",
            (_images(1, 9, 12), 2, (3, 3)),
            "Right for a grid_size that is an int only: it may be a pair, "
            "(gh, gw).",
        ),
        Case(
            "a grid of 2 x 3",
            (_images(1, 6, 12), 2, (2, 3)),
            "Right for square grids only: gh and gw are two numbers.",
        ),
        Case(
            "patches of (2, 3)",
            (_images(1, 6, 18), (2, 3), (3, 2)),
            SQUARE_PATCHES,
        ),
        Case(
            "12 patches for a grid of 3 x 3",
            (_images(1, 12, 12), 2, (3, 3)),
            "Patches that do not fill the grid are accepted: raise a "
            "ValueError when N is not gh * gw.",
        ),
        Case("all axes different", (_images(2, 20, 126), (7, 6), (5, 4))),
    ),
    wrong_forms=_unpatchify_forms,
    errors=ERRORS,
)


def _embed(
    split: str = "b c (gh p1) (gw p2)",
    grid: str = "(gh gw)",
    patch: str = "(c p1 p2)",
    bias: bool = True,
    after: Callable[[Tensor], Tensor] = lambda tokens: tokens,
    layout: Callable[[Tensor], Tensor] = lambda tokens: tokens,
) -> Callable[[PatchEmbed, Tensor], Tensor]:
    """PatchEmbed.forward, with some steps exchanged."""
    cut = _patchify(split, grid, patch)

    def form(self: PatchEmbed, images: Tensor) -> Tensor:
        weight = self.proj.weight.flatten(1)
        tokens = F.linear(cut(images, self.patch_size), weight)
        return layout(after(tokens + self.proj.bias if bias else tokens))

    return form


def _patch_embed_forms() -> Iterator[WrongForm]:
    def embed(cut: Callable[[Tensor, Size], Tensor]) -> Callable:
        def form(self: PatchEmbed, images: Tensor) -> Tensor:
            patches = cut(images, self.patch_size)
            weight = self.proj.weight.flatten(1)
            return F.linear(patches, weight, self.proj.bias)

        return form

    def token_map(self: PatchEmbed, images: Tensor) -> Tensor:
        return self.proj(images)

    def token_grid(self: PatchEmbed, images: Tensor) -> Tensor:
        return self.proj(images).permute(0, 2, 3, 1)

    yield from (WrongForm(cause, embed(cut)) for cause, cut in CUTS)
    for form in (token_map, token_grid):
        yield WrongForm(
            "The grid is not flat: the result is (B, N, D), one axis for all "
            "tokens, then the features.",
            form,
        )
    yield from combine(
        _embed,
        *ORDER,
        Mistake(RESHAPED, {"layout": lambda x: x.mT.reshape(x.shape)}),
        Mistake(TOKENS_LAST, {"layout": lambda x: x.mT}),
        Mistake(BATCH_SECOND, {"layout": lambda x: x.transpose(0, 1)}),
        Mistake(MERGED, {"layout": lambda x: x.flatten(0, 1)}),
        Mistake(
            "The tokens are averaged: keep one token for each patch.",
            {"layout": lambda x: x.mean(1)},
        ),
        Mistake("The bias of the projection is missing.", {"bias": False}),
        Mistake(
            "The projection is linear: no activation follows it.",
            {"after": F.relu},
            {"after": F.gelu},
            {"after": F.silu},
            {"after": torch.tanh},
        ),
        Mistake(
            "LayerNorm does not belong here: the encoder block has it.",
            {"after": lambda x: F.layer_norm(x, x.shape[-1:])},
        ),
        Mistake(
            "There is one token too many: the class token comes in chapter 02.",
            {"after": lambda x: F.pad(x, (0, 0, 1, 0))},
        ),
    )


def _embed_case(
    label: str, shape: tuple[int, ...], sizes: tuple, cause: str | None = None
) -> Case:
    names = ("patch_size", "in_chans", "embed_dim")
    init = dict(zip(names, sizes, strict=True))
    return Case(label, (_images(*shape),), cause, init=init)


PATCH_EMBED = ModuleExercise(
    PatchEmbed,
    cases=(
        _embed_case("one square image, P = 2", (1, 3, 6, 6), (2, 3, 5)),
        _embed_case("one channel", (1, 1, 6, 6), (2, 1, 5), CHANNELS),
        _embed_case("two images", (2, 3, 6, 6), (2, 3, 5), SEVERAL_IMAGES),
        _embed_case(
            "an image of 4 x 6", (1, 3, 4, 6), (2, 3, 5), SQUARE_IMAGES
        ),
        _embed_case(
            "patches of (2, 3)", (1, 3, 6, 12), ((2, 3), 3, 5), SQUARE_PATCHES
        ),
        _embed_case(
            "a height that P does not divide", (2, 3, 7, 6), (2, 3, 5), BORDER
        ),
        _embed_case(
            "a width that P does not divide", (2, 3, 6, 7), (2, 3, 5), BORDER
        ),
        _embed_case("all axes different", (2, 3, 35, 24), ((7, 6), 3, 11)),
    ),
    wrong_forms=_patch_embed_forms,
    errors=ERRORS,
)

EXERCISES = (PATCHIFY, UNPATCHIFY, PATCH_EMBED)
