"""Attention: every token looks at every other token.

Chapter: notebooks/04_attention.ipynb
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

__all__ = ["MultiHeadSelfAttention", "scaled_dot_product_attention"]


def scaled_dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Average the values, each weighted by how well its key fits the query.

    Args:
        q: Queries, one for each token that asks.
        k: Keys, one for each token that is asked.
        v: Values, one for each key.
        bias: Numbers added to the scores before the softmax. Where it is
            -inf, the query cannot see the key; each query must see one.

    Shape:
        q: (..., N, d), k: (..., M, d), v: (..., M, dv), bias: broadcasts to
        (..., N, M) -> output (..., N, dv) and weights (..., N, M)

    Raises:
        ValueError: The shapes of q, k and v do not fit together, or bias
            holds no floating-point numbers.

    Source: Vaswani et al. 2017, equation 1,
    https://arxiv.org/abs/1706.03762
    """
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError(
            "q, k, v must be (..., N, d), (..., M, d), (..., M, dv), got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if bias is not None and not bias.is_floating_point():
        raise ValueError(f"bias must hold floats, got {bias.dtype}")
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # (..., N, M)
    if bias is not None:
        scores = scores + bias
    weights = scores.softmax(dim=-1)  # each row sums to 1
    return weights @ v, weights


class MultiHeadSelfAttention(nn.Module):
    """Self-attention over N tokens by h heads side by side.

    The projections take time that grows as N. Each head compares all pairs
    of tokens, which takes time that grows as N^2, and so does memory
    wherever the weights are stored.

    Args:
        dim: Token width D, in features. A multiple of num_heads.
        num_heads: Number of heads h, each on d = D / h features.
        qkv_bias: Learn a bias for q, k and v, as ViT, DeiT and Swin do.

    Shape:
        x: (B, N, D), bias: broadcasts to (B, h, n, N) -> (B, n, D). With
        return_weights also the weights, (B, h, n, N). Here n is num_queries:
        the first n tokens ask, all N answer. None stands for all

    Raises:
        ValueError: dim is no multiple of num_heads, x is not (B, N, D), bias
            holds no floating-point numbers or does not broadcast, or
            num_queries is not in 1..N.

    Source: Dosovitskiy et al. 2021, equations 5-8,
    https://arxiv.org/abs/2010.11929. Parameter names are timm's.
    """

    def __init__(
        self, dim: int, num_heads: int, *, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim < 1 or dim % num_heads:
            raise ValueError(
                f"dim must be a positive multiple of num_heads, got dim={dim} "
                f"and num_heads={num_heads}"
            )
        self.dim = dim
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        *,
        num_queries: int | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if x.ndim != 3 or x.shape[2] != self.dim:
            raise ValueError(
                f"x must be (B, N, {self.dim}), got {tuple(x.shape)}"
            )
        if num_queries is not None and not 1 <= num_queries <= x.shape[1]:
            raise ValueError(
                f"num_queries must be in 1..{x.shape[1]}, got {num_queries}"
            )
        if bias is not None and not bias.is_floating_point():
            raise ValueError(f"bias must hold floats, got {bias.dtype}")
        q, k, v = rearrange(
            self.qkv(x),
            "b n (three h d) -> three b h n d",
            three=3,
            h=self.num_heads,
        )
        q = q[:, :, :num_queries]  # (B, h, n, d)
        if bias is not None:
            shape = (*q.shape[:3], x.shape[1])  # (B, h, n, N)
            try:
                bias = bias.to(q.dtype).expand(shape)
            except RuntimeError:
                raise ValueError(
                    f"bias must broadcast to {shape}, got {tuple(bias.shape)}"
                ) from None
        # The fused kernel does not store the weights. On a CPU and for a
        # very short sequence it is not faster (benchmarks/forms.py).
        if return_weights or (x.shape[1] < 64 and not x.is_cuda):
            out, weights = scaled_dot_product_attention(q, k, v, bias)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out = self.proj(rearrange(out, "b h n d -> b n (h d)"))
        return (out, weights) if return_weights else out
