"""Patch embedding: an image becomes a sequence of tokens.

Chapter: notebooks/01_patch_embedding.ipynb
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

__all__ = ["PatchEmbed", "as_pair", "patchify", "unpatchify"]


def as_pair(name: str, size: int | tuple[int, int]) -> tuple[int, int]:
    """Read a size as (height, width): an int stands for a square.

    Args:
        name: Name of the argument, for the error message.
        size: One positive int, or a pair of them.

    Raises:
        ValueError: size is neither a positive int nor a pair of them.
    """
    match size:
        case int(side) if side > 0:
            return side, side
        case int(height), int(width) if height > 0 and width > 0:
            return height, width
    raise ValueError(
        f"{name} must be a positive int or a pair (height, width) of them, "
        f"got {size!r}"
    )


def patchify(images: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    """Cut images into patches and flatten each patch to a vector.

    Patches come row by row, from the top left to the bottom right. Inside
    a patch the order is channel, row, column, as in a convolution kernel.

    Args:
        images: A batch of images.
        patch_size: Patch side P, or (height, width), in pixels.

    Shape:
        images: (B, C, H, W) -> (B, N, C * P * P) with N = H / P * W / P

    Raises:
        ValueError: images is not (B, C, H, W), or P does not divide H and W.

    Source: Dosovitskiy et al. 2021, section 3.1,
    https://arxiv.org/abs/2010.11929
    """
    p1, p2 = as_pair("patch_size", patch_size)
    if images.ndim != 4 or images.shape[2] % p1 or images.shape[3] % p2:
        raise ValueError(
            f"images must be (B, C, H, W) with H a multiple of {p1} and W a "
            f"multiple of {p2}, got {tuple(images.shape)}"
        )
    return rearrange(
        images, "b c (gh p1) (gw p2) -> b (gh gw) (c p1 p2)", p1=p1, p2=p2
    )


def unpatchify(
    patches: Tensor,
    patch_size: int | tuple[int, int],
    grid_size: int | tuple[int, int],
) -> Tensor:
    """Put patches back together: the inverse of patchify.

    Args:
        patches: A batch of patch sequences, as patchify returns them.
        patch_size: Patch side P, or (height, width), in pixels.
        grid_size: Patches down and across, (gh, gw). An int is a square grid.

    Shape:
        patches: (B, gh * gw, C * P * P) -> (B, C, gh * P, gw * P)

    Raises:
        ValueError: patches does not fit grid_size and patch_size.
    """
    p1, p2 = as_pair("patch_size", patch_size)
    gh, gw = as_pair("grid_size", grid_size)
    if (
        patches.ndim != 3
        or patches.shape[1] != gh * gw
        or patches.shape[2] % (p1 * p2)
    ):
        raise ValueError(
            f"patches must be (B, N, C * P * P) with N = {gh * gw} and a "
            f"multiple of {p1 * p2} features, got {tuple(patches.shape)}"
        )
    return rearrange(
        patches,
        "b (gh gw) (c p1 p2) -> b c (gh p1) (gw p2)",
        gh=gh,
        p1=p1,
        p2=p2,
    )


class PatchEmbed(nn.Module):
    """Cut images into patches and project each patch to a token.

    The projection is one matrix for all patches. A convolution whose stride
    is its kernel size applies it, and PyTorch weights are stored for that.

    Args:
        patch_size: Patch side P, or (height, width), in pixels.
        in_chans: Channels C of the image.
        embed_dim: Token width D, in features.

    Shape:
        images: (B, C, H, W) -> (B, N, D) with N = H / P * W / P

    Raises:
        ValueError: images is not (B, C, H, W) with C = in_chans, or P does
            not divide H and W.

    Source: Dosovitskiy et al. 2021, equation 1,
    https://arxiv.org/abs/2010.11929. Parameter names are timm's.
    """

    def __init__(
        self,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
    ) -> None:
        super().__init__()
        self.patch_size = as_pair("patch_size", patch_size)
        self.proj = nn.Conv2d(
            in_chans, embed_dim, self.patch_size, stride=self.patch_size
        )

    def forward(self, images: Tensor) -> Tensor:
        channels, (p1, p2) = self.proj.in_channels, self.patch_size
        if (
            images.ndim != 4
            or images.shape[1] != channels
            or images.shape[2] % p1
            or images.shape[3] % p2
        ):
            raise ValueError(
                f"images must be (B, {channels}, H, W) with H a multiple of "
                f"{p1} and W a multiple of {p2}, got {tuple(images.shape)}"
            )
        tokens = self.proj(images)  # (B, D, gh, gw)
        return tokens.flatten(2).transpose(1, 2)  # (B, N, D)
