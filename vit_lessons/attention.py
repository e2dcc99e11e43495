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
        bias: Numbers added to the scores before the softmax. A score plus
            -inf is a pair that may not see each other.

    Shape:
        q: (..., N, d), k: (..., M, d), v: (..., M, dv), bias: broadcasts to
        (..., N, M) -> output (..., N, dv) and weights (..., N, M)

    Raises:
        ValueError: The shapes of q, k and v do not fit together.

    Source: Vaswani et al. 2017, equation 1,
    https://arxiv.org/abs/1706.03762
    """
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError(
            "q, k, v must be (..., N, d), (..., M, d), (..., M, dv), got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # (..., N, M)
    if bias is not None:
        scores = scores + bias
    weights = scores.softmax(dim=-1)  # each row sums to 1
    return weights @ v, weights
