"""Inductive bias: what a model holds to be likely before it sees data.

Chapter: notebooks/09_inductive_bias.ipynb
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from vit_lessons.patch_embedding import as_pair, patchify, unpatchify

__all__ = [
    "SmallCNN",
    "equivariance_error",
    "place_images",
    "shuffle_patches",
]


def equivariance_error(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    transform: Callable[[Tensor], Tensor],
    transform_output: Callable[[Tensor], Tensor],
) -> float:
    """How far function(transform(x)) is from transform_output(function(x)).

    The distance is a share of the size of function(x). 0 says that function
    is equivariant: the output moves as the input does. If transform_output
    changes nothing, 0 says that function is invariant.

    Args:
        function: For example a layer or a model, in evaluation mode.
        x: Input of function.
        transform: Moves the input, for example by one pixel.
        transform_output: What the output should then do.

    Shape:
        x: any that function takes

    Raises:
        ValueError: function(x) is all 0, or the two outputs differ in shape.
    """
    with torch.no_grad():
        got = function(transform(x))
        output = function(x)
        expected = transform_output(output)
    if got.shape != expected.shape:
        raise ValueError(
            "transform_output must give the shape of function(transform(x)), "
            f"{tuple(got.shape)}, got {tuple(expected.shape)}"
        )
    size = output.norm()
    if size == 0:
        raise ValueError("function(x) must not be all 0, got only zeros")
    return ((got - expected).norm() / size).item()


def shuffle_patches(
    images: Tensor, patch_size: int | tuple[int, int], order: Tensor
) -> Tensor:
    """Put the patches of each image in another order, the same for all.

    Args:
        images: Images to cut up.
        patch_size: Patch side P, or (height, width), in pixels.
        order: Place i of the result gets patch order[i].

    Shape:
        images: (B, C, H, W), order: (N,) -> (B, C, H, W)

    Raises:
        ValueError: order does not hold each of 0..N-1 once.
    """
    patches = patchify(images, patch_size)  # (B, N, C * P * P)
    n = patches.shape[1]
    if not torch.equal(order.sort().values, torch.arange(n).to(order)):
        raise ValueError(
            f"order must hold each of 0..{n - 1} once, got {order.tolist()}"
        )
    p1, p2 = as_pair("patch_size", patch_size)
    grid = images.shape[2] // p1, images.shape[3] // p2
    return unpatchify(patches[:, order], patch_size, grid)


def place_images(
    images: Tensor, size: int | tuple[int, int], rows: Tensor, columns: Tensor
) -> Tensor:
    """Put each image somewhere on an empty canvas.

    Args:
        images: Small images.
        size: Side of the canvas, or (height, width), in pixels.
        rows: Row of the canvas that gets the first row of each image.
        columns: Column of the canvas that gets its first column.

    Shape:
        images: (B, C, h, w), rows and columns: (B,) -> (B, C, H, W)

    Raises:
        ValueError: An image would stand over the edge, or there are not as
            many rows and columns as images.
    """
    height, width = as_pair("size", size)
    b, c, h, w = images.shape
    for name, places, room in (
        ("rows", rows, height - h),
        ("columns", columns, width - w),
    ):
        if places.shape != (b,) or places.min() < 0 or places.max() > room:
            raise ValueError(
                f"{name} must be {b} numbers in 0..{room}, got "
                f"{places.tolist()}"
            )
    canvas = images.new_zeros(b, c, height, width)
    for one, image, row, column in zip(
        canvas, images, rows.tolist(), columns.tolist(), strict=True
    ):
        one[:, row : row + h, column : column + w] = image
    return canvas


class SmallCNN(nn.Module):
    """A classifier of 3 x 3 convolutions, as an opponent for a small ViT.

    Each convolution is followed by batch norm and ReLU, and each of the first
    num_pools of them by a max-pooling that halves height and width.

    Args:
        in_chans: Channels C of the image.
        num_classes: Classes K.
        widths: Output channels of each convolution.
        num_pools: Number of poolings.
        pool: What the head reads: "mean", the mean over the map, or
            "flatten", each feature at each place of it.
        img_size: Side of the image, or (height, width), in pixels. "flatten"
            needs it; with "mean" the image may have any size.

    Shape:
        images: (B, C, H, W) -> logits (B, K)

    Raises:
        ValueError: pool is unknown, num_pools is more than the convolutions,
            img_size is missing where it is needed, or images are not of it.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 10,
        *,
        widths: Sequence[int] = (32, 64, 64),
        num_pools: int = 2,
        pool: str = "mean",
        img_size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if pool not in ("mean", "flatten"):
            raise ValueError(f'pool must be "mean" or "flatten", got {pool!r}')
        if not 0 <= num_pools <= len(widths):
            raise ValueError(
                f"num_pools must be in 0..{len(widths)}, got {num_pools}"
            )
        if (pool == "flatten") == (img_size is None):
            raise ValueError(
                'img_size must be given with pool="flatten" and only then, got '
                f"img_size={img_size} with pool={pool!r}"
            )
        layers: list[nn.Module] = []
        for i, (before, width) in enumerate(
            zip((in_chans, *widths), widths, strict=False)
        ):
            layers += [
                nn.Conv2d(before, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            if i < num_pools:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = pool
        self.img_size, places = None, 1
        if img_size is not None:
            self.img_size = (height, width) = as_pair("img_size", img_size)
            places = (height >> num_pools) * (width >> num_pools)
            if places == 0:
                raise ValueError(
                    f"img_size must be at least {2**num_pools} with num_pools="
                    f"{num_pools}, got {self.img_size}"
                )
        self.head = nn.Linear(widths[-1] * places, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        if self.img_size not in (None, images.shape[2:]):
            raise ValueError(
                f"images must be of img_size {self.img_size}, got "
                f"{tuple(images.shape)}"
            )
        x = self.features(images)  # (B, D, H / 2^pools, W / 2^pools)
        if self.pool == "mean":
            return self.head(x.mean(dim=(2, 3)))
        return self.head(rearrange(x, "b d h w -> b (d h w)"))
