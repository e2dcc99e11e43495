"""Encoder block: attention, MLP, and what makes a stack of them trainable.

Chapter: notebooks/06_encoder_block.ipynb
"""

from __future__ import annotations

from torch import Tensor, nn

from vit_lessons.attention import MultiHeadSelfAttention
from vit_lessons.mlp import Mlp

__all__ = ["DropPath", "EncoderBlock"]


class DropPath(nn.Module):
    """Stochastic depth: in training, skip a branch for some images at random.

    What is kept is divided by the probability of keeping it, so the mean
    over many draws is the output without it, and evaluation changes nothing.

    Args:
        drop_path: Probability of skipping the branch, for each image.

    Shape:
        x: (B, ...) -> (B, ...)

    Raises:
        ValueError: drop_path is not in 0 <= drop_path < 1.

    Source: Huang et al. 2016, https://arxiv.org/abs/1603.09382; one draw for
    each image, and dividing in training, as timm does.
    """

    def __init__(self, drop_path: float = 0.0) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise ValueError(
                f"drop_path must be in 0 <= drop_path < 1, got {drop_path}"
            )
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return x
        keep = 1 - self.drop_path
        each_image = x.new_empty(x.shape[0], *[1] * (x.ndim - 1))  # (B, 1, ...)
        return x * (each_image.bernoulli_(keep) / keep)


class EncoderBlock(nn.Module):
    """Attention between the tokens, then an MLP on each token.

    Both are branches: they read the normalized tokens and add to them.

    Args:
        dim: Token width D, in features. A multiple of num_heads.
        num_heads: Heads of the attention.
        mlp_ratio: Width of the MLP's hidden layer, in multiples of D.
        qkv_bias: Learn a bias for q, k and v.
        dropout: Probability of setting a feature to 0 in training, after
            each linear layer but qkv.
        drop_path: Probability of skipping a branch in training.

    Shape:
        x: (B, N, D), bias: broadcasts to (B, h, n, N) -> (B, n, D). Here n
        is num_queries: only the first n tokens are computed. None stands
        for all

    Raises:
        ValueError: As MultiHeadSelfAttention, Mlp and DropPath.

    Source: Dosovitskiy et al. 2021, equations 2 and 3,
    https://arxiv.org/abs/2010.11929. Parameter names are timm's.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = MultiHeadSelfAttention(dim, num_heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, mlp_ratio=mlp_ratio, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        *,
        num_queries: int | None = None,
    ) -> Tensor:
        branch = self.attn(self.norm1(x), bias, num_queries=num_queries)
        x = x[:, :num_queries]  # (B, n, D)
        x = x + self.drop_path(self.dropout(branch))  # equation 2: z'
        return x + self.drop_path(self.mlp(self.norm2(x)))  # equation 3: z
