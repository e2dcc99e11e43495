"""Vision Transformer: the parts become one model.

Chapter: notebooks/07_vision_transformer.ipynb
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vit_lessons.class_token import pool, prepend_token
from vit_lessons.encoder_block import EncoderBlock
from vit_lessons.patch_embedding import PatchEmbed, as_pair

__all__ = ["VIT_PRESETS", "VisionTransformer"]


class VisionTransformer(nn.Module):
    """An image classifier made of patches, tokens and encoder blocks.

    Args:
        img_size: Side of the image, or (height, width), in pixels.
        patch_size: Patch side P, or (height, width), in pixels.
        in_chans: Channels C of the image.
        num_classes: Classes K. 0 leaves out the head: the model returns the
            D features that the head would read.
        embed_dim: Token width D, in features.
        depth: Number of blocks L.
        num_heads: Heads of each attention.
        mlp_ratio: Width of the MLP's hidden layer, in multiples of D.
        qkv_bias: Learn a bias for q, k and v.
        pool: What the head reads: "cls", the class token, or "mean", the mean
            of the patch tokens.
        dropout: Probability of setting a feature to 0 in training, after the
            positions and after each linear layer but qkv and the head.
        drop_path: Probability of skipping a branch of the last block in
            training. It rises evenly from 0 in the first block, so that it
            changes nothing if there is one block.

    Shape:
        images: (B, C, H, W) of img_size -> logits (B, K)

    Raises:
        ValueError: The sizes do not fit together, or images are not of
            img_size.

    Source: Dosovitskiy et al. 2021, equations 1-4,
    https://arxiv.org/abs/2010.11929. Parameter names are timm's.
    """

    num_prefix_tokens = 1  # the class token

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        pool: str = "cls",
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if min(in_chans, embed_dim) < 1 or num_classes < 0:
            raise ValueError(
                "in_chans, embed_dim must be positive and num_classes at least "
                f"0, got {in_chans}, {embed_dim} and {num_classes}"
            )
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.img_size = (height, width) = as_pair("img_size", img_size)
        self.in_chans = in_chans
        p1, p2 = self.patch_embed.patch_size
        if height % p1 or width % p2:
            raise ValueError(
                f"img_size must be a multiple of patch_size, got "
                f"{(height, width)} and {(p1, p2)}"
            )
        if depth < 1 or not 0 <= drop_path < 1:
            raise ValueError(
                "depth must be at least 1 and drop_path in 0 <= drop_path < 1, "
                f"got {depth} and {drop_path}"
            )
        if pool not in ("cls", "mean"):
            raise ValueError(f'pool must be "cls" or "mean", got {pool!r}')
        self.grid_size = (gh, gw) = (height // p1, width // p2)
        self.pool = pool
        tokens = self.num_prefix_tokens + gh * gw
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dim))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            EncoderBlock(
                embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                dropout=dropout,
                drop_path=drop_path * i / max(1, depth - 1),
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = (
            nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the first weights: class token and head 0, positions small."""
        nn.init.zeros_(self.cls_token)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.head, nn.Linear):
            nn.init.zeros_(self.head.weight)

    def embed_patches(self, images: Tensor) -> Tensor:
        """Turn images into tokens that do not know their places: (B, N, D)."""
        size = (self.in_chans, *self.img_size)
        if images.shape[1:] != size:
            raise ValueError(
                f"images must be (B, {size[0]}, {size[1]}, {size[2]}), got "
                f"{tuple(images.shape)}; for another size, build a model of "
                "that img_size and give it the position table that "
                "resize_pos_embed returns"
            )
        return self.patch_embed(images)

    def add_positions(self, x: Tensor) -> Tensor:
        """Put the class token in front and add positions: (B, 1 + N, D)."""
        x = prepend_token(x, self.cls_token)
        return self.dropout(x + self.pos_embed)  # equation 1: z_0

    def embed(self, images: Tensor) -> Tensor:
        """Turn images into tokens with positions: (B, 1 + N, D)."""
        return self.add_positions(self.embed_patches(images))

    def encode(self, x: Tensor, *, num_queries: int | None = None) -> Tensor:
        """Run the blocks and the last norm on tokens with positions.

        With num_queries the result holds only the first tokens, for which
        the last block then does less work.
        """
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)  # equations 2 and 3
        return self.norm(last(x, num_queries=num_queries))

    def forward_features(
        self, images: Tensor, *, num_queries: int | None = None
    ) -> Tensor:
        """Return the tokens after the last norm: (B, 1 + N, D)."""
        return self.encode(self.embed(images), num_queries=num_queries)

    def forward(self, images: Tensor) -> Tensor:
        # The last block computes only what the head reads: the same logits
        # for less work (benchmarks/speed.py).
        read = self.num_prefix_tokens if self.pool == "cls" else None
        x = self.forward_features(images, num_queries=read)
        y = pool(x, self.pool, num_prefix_tokens=self.num_prefix_tokens)
        return self.head(y)  # y is that of equation 4


#: Arguments of VisionTransformer for the published sizes, by timm's names.
VIT_PRESETS: dict[str, dict[str, Any]] = {
    f"vit_{name}_patch{patch_size}_224": {
        "img_size": 224,
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
    }
    for name, patch_size, embed_dim, depth, num_heads in (
        ("tiny", 16, 192, 12, 3),
        ("small", 16, 384, 12, 6),
        ("base", 16, 768, 12, 12),
        ("large", 16, 1024, 24, 16),
        ("huge", 14, 1280, 32, 16),
    )
}
