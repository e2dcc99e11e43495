"""MLP: each token works out something on its own.

Chapter: notebooks/05_mlp.ipynb
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Mlp"]


class Mlp(nn.Module):
    """Widen each token, bend it by GELU, narrow it again.

    It works on the last axis alone, so no token sees another one. It holds
    two thirds of the parameters of an encoder block with mlp_ratio 4.

    Args:
        dim: Token width D, in features.
        mlp_ratio: Width of the hidden layer, in multiples of D.
        dropout: Probability of setting a feature to 0 in training, after
            each of the two layers.

    Shape:
        x: (..., D) -> (..., D)

    Raises:
        ValueError: The hidden layer would have no feature, or x is not
            (..., D).

    Source: Dosovitskiy et al. 2021, section 3.1 and equation 3,
    https://arxiv.org/abs/2010.11929. Parameter names are timm's.
    """

    def __init__(
        self, dim: int, *, mlp_ratio: float = 4.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        hidden_dim = int(dim * mlp_ratio)
        if hidden_dim < 1:
            raise ValueError(
                "dim * mlp_ratio must be at least 1, got "
                f"dim={dim} and mlp_ratio={mlp_ratio}"
            )
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()  # exact, not the tanh approximation
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.fc1.in_features:
            raise ValueError(
                f"x must be (..., {self.fc1.in_features}), got {tuple(x.shape)}"
            )
        x = self.dropout(self.act(self.fc1(x)))  # (..., hidden_dim)
        return self.dropout(self.fc2(x))  # (..., D)
