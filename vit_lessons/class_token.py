"""Class token: one token speaks for the whole image.

Chapter: notebooks/02_class_token.ipynb
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pool", "prepend_token"]


def prepend_token(x: Tensor, token: Tensor) -> Tensor:
    """Put the same token in front of every sequence of a batch.

    Args:
        x: A batch of token sequences.
        token: One token, shared by all images of the batch.

    Shape:
        x: (B, N, D), token: (1, 1, D) -> (B, 1 + N, D)

    Raises:
        ValueError: x is not (B, N, D), or token is not (1, 1, D).

    Source: Dosovitskiy et al. 2021, equation 1,
    https://arxiv.org/abs/2010.11929
    """
    if x.ndim != 3 or token.shape != (1, 1, x.shape[2]):
        raise ValueError(
            "x must be (B, N, D) and token (1, 1, D), got "
            f"{tuple(x.shape)} and {tuple(token.shape)}"
        )
    return torch.cat([token.expand(x.shape[0], -1, -1), x], dim=1)


def pool(x: Tensor, mode: str = "cls", *, num_prefix_tokens: int = 1) -> Tensor:
    """Read one vector for each image out of its tokens.

    Args:
        x: Token sequences, the prefix tokens in front of the patches.
        mode: "cls" reads the first token; "mean" averages the patch tokens
            and leaves out the prefix tokens.
        num_prefix_tokens: Tokens in front of the patches: 1 if there is only
            the class token.

    Shape:
        x: (B, num_prefix_tokens + N, D) -> (B, D)

    Raises:
        ValueError: mode is unknown, x is not (B, tokens, D), or it holds no
            token of the kind that mode reads.

    Source: Dosovitskiy et al. 2021, equation 4 and appendix D.3,
    https://arxiv.org/abs/2010.11929
    """
    if mode not in ("cls", "mean"):
        raise ValueError(f'mode must be "cls" or "mean", got {mode!r}')
    if num_prefix_tokens < (mode == "cls"):
        raise ValueError(
            f"num_prefix_tokens must be at least {int(mode == 'cls')} with "
            f"mode={mode!r}, got {num_prefix_tokens}"
        )
    if x.ndim != 3 or x.shape[1] < num_prefix_tokens + (mode == "mean"):
        raise ValueError(
            f"x must be (B, {num_prefix_tokens} + N, D), got {tuple(x.shape)}"
        )
    if mode == "cls":
        return x[:, 0]
    return x[:, num_prefix_tokens:].mean(dim=1)
