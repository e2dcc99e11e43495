"""Images that a rule draws: as many as you like, each with its label.

Of one seed, the first images are the same however many are asked for, so a
larger training set holds the smaller ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate, pad

__all__ = ["NEW_SHAPES", "SHAPES", "make_match", "make_shapes", "shape_masks"]

SHAPES = ("disc", "square", "triangle", "cross")
NEW_SHAPES = ("ring", "half disc", "diamond", "corner")
SIDE = 16  # pixels
TILE = 4  # pixels
NOISE = 0.05  # standard deviation; the colors lie in [0, 1]
BLOCK = 1000  # images that one generator draws

Draw = Callable[[int, Generator], tuple[Tensor, ...]]


def make_shapes(
    num_images: int,
    *,
    seed: int = 0,
    size: int = SIDE,
    kinds: Sequence[str] = SHAPES,
) -> tuple[Tensor, Tensor]:
    """Draw a bright shape on a dark ground, and ask which shape it is.

    A disc, square, triangle or cross stands anywhere, a little rotated,
    with a bright blob behind it. Small parts of the image, an edge or a
    corner, tell the classes apart: a local task.

    Args:
        num_images: Number N of images.
        seed: Another seed gives other images.
        size: Side of the images, in pixels. Of one seed, another size shows
            the same scenes with more or fewer pixels.
        kinds: The classes: names in SHAPES or NEW_SHAPES.

    Shape:
        images (N, 3, size, size), float32 in [0, 1]; labels (N,), int64,
        numbers in kinds

    Raises:
        ValueError: num_images or size is not positive, seed is negative, or
            kinds names an unknown shape, or none.
    """
    images, labels, _ = _in_blocks(_shapes(size, kinds), num_images, seed)
    return images, labels


def shape_masks(
    num_images: int,
    *,
    seed: int = 0,
    size: int = SIDE,
    kinds: Sequence[str] = SHAPES,
) -> Tensor:
    """Tell which pixels of the images of make_shapes show the shape.

    Args:
        num_images, seed, size, kinds: As those of make_shapes.

    Shape:
        (N, 1, size, size), float32 in [0, 1]: 1 on the shape, 0 off it, the
        share on its edge

    Raises:
        ValueError: As make_shapes.
    """
    return _in_blocks(_shapes(size, kinds), num_images, seed)[2]


def make_match(
    num_images: int, *, seed: int = 0, offset: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw two small tiles, and ask whether they are equal.

    Each tile has 2 x 2 random colors and fills one of the 4 x 4 cells of a
    gray image. No part of the image holds the answer, only the relation of
    two places that may be far apart. The cells are the patches of a Vision
    Transformer with a patch size of 4, unless offset moves them.

    Args:
        num_images: Number N of images.
        seed: Another seed gives other images.
        offset: Pixels, 0 to 3, by which all cells are moved down and to the
            right. If it is not 0, only 3 x 3 cells have room.

    Shape:
        images (N, 3, 16, 16), float32 in [0, 1]; labels (N,), int64, 1 if the
        tiles are equal and 0 if not

    Raises:
        ValueError: num_images is not positive, seed is negative, or offset is
            not in 0..3.
    """
    if offset not in range(TILE):
        raise ValueError(f"offset must be in 0..{TILE - 1}, got {offset}")
    return _in_blocks(partial(_draw_match, offset), num_images, seed)


def _in_blocks(draw: Draw, num_images: int, seed: int) -> tuple[Tensor, ...]:
    if num_images < 1 or seed < 0:
        raise ValueError(
            "num_images must be positive and seed at least 0, got "
            f"{num_images} and {seed}"
        )
    blocks = []
    for block in range(math.ceil(num_images / BLOCK)):
        generator = Generator().manual_seed(seed * 1_000_003 + block)
        blocks.append(draw(BLOCK, generator))
    return tuple(
        torch.cat(part)[:num_images] for part in zip(*blocks, strict=True)
    )


def _uniform(
    n: int, low: float, high: float, generator: Generator, axes: int = 1
) -> Tensor:
    shape = (n, axes, 1, 1)  # fits (N, C, H, W)
    return low + (high - low) * torch.rand(shape, generator=generator)


def _shapes(size: int, kinds: Sequence[str]) -> Draw:
    """A function that draws shapes, if there are such shapes."""
    if size < 1:
        raise ValueError(f"size must be positive, got {size}")
    if not kinds or not {*kinds} <= {*SHAPES, *NEW_SHAPES}:
        known = ", ".join(SHAPES + NEW_SHAPES)
        raise ValueError(f"kinds must be some of {known}, got {kinds}")
    return partial(_draw_shapes, size, kinds)


def _draw_shapes(
    size: int, kinds: Sequence[str], n: int, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.randint(len(kinds), (n,), generator=generator)
    radius = _uniform(n, 3.5, 5.5, generator)
    turn = _uniform(n, -math.pi / 9, math.pi / 9, generator)  # 20 degrees
    row, column = (
        radius + (SIDE - 2 * radius) * _uniform(n, 0, 1, generator)
        for _ in range(2)
    )
    y, x = _coordinates(size, row, column)
    x, y = (
        x * turn.cos() + y * turn.sin(),
        y * turn.cos() - x * turn.sin(),
    )
    edges = _distances_to_edge(x, y, radius)
    edge = torch.stack([edges[kind] for kind in kinds], dim=1)
    edge = edge[torch.arange(n), labels]
    place = (_uniform(n, 0, SIDE, generator) for _ in range(2))
    y, x = _coordinates(size, *place)
    blob = _uniform(n, 1, 2, generator) - (x**2 + y**2).sqrt()
    images = _uniform(n, 0, 0.4, generator, axes=3)  # the ground
    for what in (blob, edge):
        color = _uniform(n, 0.5, 1, generator, axes=3)
        pixels = what * (size / SIDE)
        cover = (pixels + 0.5).clamp(0, 1)  # pixels on the edge are mixed
        images = images + cover * (color - images)
    return _with_noise(images, generator), labels, cover  # of the shape


def _distances_to_edge(x: Tensor, y: Tensor, r: Tensor) -> dict[str, Tensor]:
    """From each pixel to the edge of each shape, positive inside."""
    from_center = (x**2 + y**2).sqrt()
    disc = r - from_center
    slope = math.sqrt(3) / 2
    wide, high = 0.95 * r, 0.33 * r
    bars = [
        torch.minimum(wide - along.abs(), high - across.abs())
        for along, across in ((x, y), (y, x))
    ]
    square = 0.8 * r - torch.maximum(x.abs(), y.abs())
    return {
        "disc": disc,
        "square": square,
        "triangle": 0.55 * r - torch.maximum(y, slope * x.abs() - 0.5 * y),
        "cross": torch.maximum(*bars),
        "ring": torch.minimum(disc, from_center - 0.45 * r),
        "half disc": torch.minimum(disc, y),
        "diamond": (r - x.abs() - y.abs()) / math.sqrt(2),
        "corner": torch.minimum(square, torch.maximum(-x, y) - 0.15 * r),
    }


def _coordinates(
    size: int, row: Tensor, column: Tensor
) -> tuple[Tensor, Tensor]:
    """How far each pixel is below and to the right of a place, (N, 1, H, W).

    The unit is a pixel of an image of side 16.
    """
    centers = (torch.arange(size) + 0.5) * (SIDE / size)
    y = (centers[:, None] - row).expand(-1, -1, -1, size)
    x = (centers - column).expand(-1, -1, size, -1)
    return y, x


def _draw_match(
    offset: int, n: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    labels = torch.randint(2, (n,), generator=generator)
    first, second = torch.rand(2, n, 3, 2, 2, generator=generator)
    second = torch.where(labels.view(n, 1, 1, 1) == 1, first, second)
    cells = (SIDE - offset) // TILE
    order = torch.rand(n, cells**2, generator=generator).argsort(dim=1)
    images = torch.full((n, 3, cells, TILE, cells, TILE), 0.5)
    for place, tile in ((order[:, 0], first), (order[:, 1], second)):
        pixels = interpolate(tile, size=TILE)  # each color 2 x 2 pixels
        which = torch.arange(n), slice(None), place // cells, slice(None)
        images[*which, place % cells] = pixels
    images = images.reshape(n, 3, cells * TILE, cells * TILE)
    rest = SIDE - offset - cells * TILE
    images = pad(images, (offset, rest, offset, rest), value=0.5)
    return _with_noise(images, generator), labels


def _with_noise(images: Tensor, generator: Generator) -> Tensor:
    noise = torch.randn(images.shape, generator=generator)
    return (images + NOISE * noise).clamp(0, 1)
