"""Hybrid: a few convolutions look before the encoder does.

Chapter: notebooks/10_hybrid.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vit_lessons.patch_embedding import as_pair
from vit_lessons.vision_transformer import VisionTransformer

__all__ = ["ConvStem", "HybridVisionTransformer"]


class ConvStem(nn.Module):
    """Turn images into tokens by convolutions, one token for P x P pixels.

    Each of log2(P) convolutions of 3 x 3 halves the height and the width; then
    each place of the map is a patch of 1 x 1 and is projected to a token.
    Unlike patches, the regions that neighboring tokens see overlap.

    Args:
        patch_size: Pixels P from one token to the next, a power of 2.
        in_chans: Channels C of the image.
        embed_dim: Token width D, in features.
        widths: Output channels of each convolution. None doubles them from
            2 * D / P to D.

    Shape:
        images: (B, C, H, W) -> (B, N, D) with N = H / P * W / P

    Raises:
        ValueError: patch_size is no power of 2 from 2 on, widths does not fit
            it, or images is not (B, C, H, W) with multiples of P.

    Source: Xiao et al. 2021, section 4, https://arxiv.org/abs/2106.14881. The
    hybrid of Dosovitskiy et al. 2021, section 3.1, has a ResNet here.
    """

    def __init__(
        self,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        *,
        widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        p1, p2 = self.patch_size = as_pair("patch_size", patch_size)
        if p1 != p2 or p1 < 2 or p1.bit_count() != 1:
            raise ValueError(
                "patch_size must be a power of 2 from 2 on, the same for "
                f"height and width, got {patch_size}"
            )
        halvings = p1.bit_length() - 1  # log2(P)
        if widths is None:
            widths = [embed_dim >> i for i in reversed(range(halvings))]
        if len(widths) != halvings or min(widths) < 1:
            raise ValueError(
                f"widths must be {halvings} positive numbers for patch_size "
                f"{p1}, got {list(widths)}"
            )
        self.in_chans = in_chans
        self.backbone = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, width, 3, 2, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                )
                for before, width in zip(
                    (in_chans, *widths), widths, strict=False
                )
            )
        )
        self.proj = nn.Conv2d(widths[-1], embed_dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        channels, (p1, p2) = self.in_chans, self.patch_size
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
        tokens = self.proj(self.backbone(images))  # (B, D, gh, gw)
        return tokens.flatten(2).transpose(1, 2)  # (B, N, D)


class HybridVisionTransformer(VisionTransformer):
    """A Vision Transformer whose patch embedding is a ConvStem.

    All else is that of VisionTransformer: of one seed, both begin with the
    same encoder.

    Args:
        img_size: Side of the image, or (height, width), in pixels.
        patch_size: Pixels from one token to the next, a power of 2.
        in_chans: Channels C of the image.
        embed_dim: Token width D, in features.
        stem_widths: The widths of ConvStem.
        arguments: The other arguments of VisionTransformer.

    Shape:
        images: (B, C, H, W) of img_size -> logits (B, K)

    Raises:
        ValueError: As VisionTransformer and ConvStem.

    Source: Dosovitskiy et al. 2021, section 3.1, "Hybrid Architecture",
    https://arxiv.org/abs/2010.11929
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        *,
        in_chans: int = 3,
        embed_dim: int = 768,
        stem_widths: Sequence[int] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(
            img_size,
            patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            **arguments,
        )
        self.patch_embed = ConvStem(
            patch_size, in_chans, embed_dim, widths=stem_widths
        )
