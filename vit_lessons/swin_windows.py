"""Swin windows: attention in small windows, and windows that shift.

Chapter: notebooks/15_swin_windows.ipynb
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vit_lessons.attention import MultiHeadSelfAttention
from vit_lessons.patch_embedding import as_pair
from vit_lessons.position_embedding import relative_position_index

__all__ = [
    "WindowAttention",
    "as_shift",
    "pad_to_windows",
    "shift_mask",
    "window_partition",
    "window_reverse",
]


def window_partition(x: Tensor, window_size: int | tuple[int, int]) -> Tensor:
    """Cut a map of tokens into windows that do not overlap.

    The windows of an image follow each other row by row, from the top left
    to the bottom right, and so do the tokens inside a window.

    Args:
        x: A batch of maps of tokens.
        window_size: Window side M, or (height, width), in tokens.

    Shape:
        x: (B, gh, gw, D) -> (B * nW, M * M, D) with nW = gh / M * gw / M

    Raises:
        ValueError: x is not (B, gh, gw, D), or M does not divide gh and gw.

    Source: Liu et al. 2021, section 3.2, https://arxiv.org/abs/2103.14030
    """
    m1, m2 = as_pair("window_size", window_size)
    if x.ndim != 4 or x.shape[1] % m1 or x.shape[2] % m2:
        raise ValueError(
            f"x must be (B, gh, gw, D) with gh a multiple of {m1} and gw a "
            f"multiple of {m2}, got {tuple(x.shape)}"
        )
    return rearrange(
        x, "b (nh m1) (nw m2) d -> (b nh nw) (m1 m2) d", m1=m1, m2=m2
    )


def window_reverse(
    windows: Tensor,
    window_size: int | tuple[int, int],
    grid_size: int | tuple[int, int],
) -> Tensor:
    """Put windows back together: the inverse of window_partition.

    Args:
        windows: Windows of tokens, as window_partition returns them.
        window_size: Window side M, or (height, width), in tokens.
        grid_size: Tokens down and across the map, (gh, gw). An int is a
            square.

    Shape:
        windows: (B * nW, M * M, D) -> (B, gh, gw, D)

    Raises:
        ValueError: M does not divide gh and gw, or windows does not fit
            window_size and grid_size.
    """
    m1, m2 = as_pair("window_size", window_size)
    gh, gw = as_pair("grid_size", grid_size)
    if gh % m1 or gw % m2:
        raise ValueError(
            f"grid_size must be a multiple of window_size, got {(gh, gw)} and "
            f"{(m1, m2)}"
        )
    nh, nw = gh // m1, gw // m2
    if (
        windows.ndim != 3
        or windows.shape[0] % (nh * nw)
        or windows.shape[1] != m1 * m2
    ):
        raise ValueError(
            f"windows must be (B * {nh * nw}, {m1 * m2}, D), got "
            f"{tuple(windows.shape)}"
        )
    return rearrange(
        windows,
        "(b nh nw) (m1 m2) d -> b (nh m1) (nw m2) d",
        nh=nh,
        nw=nw,
        m1=m1,
    )


def pad_to_windows(x: Tensor, window_size: int | tuple[int, int]) -> Tensor:
    """Add zeros below and to the right until windows tile the map.

    Args:
        x: A batch of maps of tokens.
        window_size: Window side M, or (height, width), in tokens.

    Shape:
        x: (B, gh, gw, D) -> the same with gh and gw rounded up to multiples
        of M

    Raises:
        ValueError: x is not (B, gh, gw, D).
    """
    m1, m2 = as_pair("window_size", window_size)
    if x.ndim != 4:
        raise ValueError(f"x must be (B, gh, gw, D), got {tuple(x.shape)}")
    below, right = -x.shape[1] % m1, -x.shape[2] % m2
    # Padding by nothing would copy the map.
    return F.pad(x, (0, 0, 0, right, 0, below)) if below or right else x


def as_shift(
    shift_size: int | tuple[int, int], window_size: int | tuple[int, int]
) -> tuple[int, int]:
    """Read a shift as (rows, columns): an int stands for both.

    Args:
        shift_size: Tokens by which windows move, 0 for none.
        window_size: Window side M, or (height, width), in tokens.

    Raises:
        ValueError: shift_size is not in 0..M - 1 along each axis.
    """
    m1, m2 = as_pair("window_size", window_size)
    match shift_size:
        case int(side) if 0 <= side < min(m1, m2):
            return side, side
        case int(rows), int(columns) if 0 <= rows < m1 and 0 <= columns < m2:
            return rows, columns
    raise ValueError(
        "shift_size must be an int or a pair (rows, columns) of them, each at "
        f"least 0 and below window_size, got {shift_size!r} for {(m1, m2)}"
    )


def shift_mask(
    grid_size: int | tuple[int, int],
    window_size: int | tuple[int, int],
    shift_size: int | tuple[int, int],
    *,
    device: torch.device | None = None,
) -> Tensor:
    """Say who may see whom after a map was rolled around its borders.

    Rolling the map up and to the left by the shift moves its first rows to
    the bottom and its first columns to the right. A window there holds
    tokens that come from opposite borders: they must not see each other.

    Args:
        grid_size: Tokens down and across the map, (gh, gw). An int is a
            square.
        window_size: Window side M, or (height, width), in tokens.
        shift_size: Tokens by which the map was rolled, or (rows, columns).
        device: Where the mask is made.

    Shape:
        (nW, M * M, M * M), float32: 0 where the query in row i may see the
        key in column j, -inf where it may not

    Raises:
        ValueError: M does not divide gh and gw, or shift_size is not in
            0..M - 1.

    Source: Liu et al. 2021, figure 4, https://arxiv.org/abs/2103.14030
    """
    gh, gw = as_pair("grid_size", grid_size)
    down, right = as_shift(shift_size, window_size)
    rows = torch.arange(gh, device=device).roll(-down)
    columns = torch.arange(gw, device=device).roll(-right)
    came_around = 2 * (rows < down)[:, None] + (columns < right)  # (gh, gw)
    region = window_partition(came_around[None, ..., None], window_size)
    apart = region != region.transpose(1, 2)  # (nW, M * M, M * M)
    mask = torch.zeros(apart.shape, device=device)
    return mask.masked_fill(apart, float("-inf"))


class WindowAttention(MultiHeadSelfAttention):
    """Self-attention inside windows that tile a map, shifted or not.

    Each token compares itself with the M * M tokens of its window: time and
    memory grow with the number of tokens, not with its square. A learned
    bias for each head and each offset between two tokens tells where they
    are. With a shift the windows lie across the borders of those without.

    A map that windows do not tile is padded with zeros, which take part in
    the attention, as in the authors' code for detection. Along an axis that
    one window covers, there is no shift.

    Args:
        dim: Token width D, in features. A multiple of num_heads.
        num_heads: Number of heads h.
        window_size: Window side M, or (height, width), in tokens.
        shift_size: Tokens by which the windows move down and to the right,
            or (rows, columns).
        qkv_bias: Learn a bias for q, k and v.

    Shape:
        x: (B, gh, gw, D) -> (B, gh, gw, D)

    Raises:
        ValueError: dim is no multiple of num_heads, shift_size is not in
            0..M - 1, or x is not (B, gh, gw, D).

    Source: Liu et al. 2021, section 3.2 and equation 4,
    https://arxiv.org/abs/2103.14030. Parameter names are timm's.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int | tuple[int, int] = 7,
        shift_size: int | tuple[int, int] = 0,
        *,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias)
        self.window_size = (m1, m2) = as_pair("window_size", window_size)
        self.shift_size = as_shift(shift_size, window_size)
        offsets = (2 * m1 - 1) * (2 * m2 - 1)
        table = torch.zeros(offsets, num_heads)
        self.relative_position_bias_table = nn.Parameter(table)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer(
            "relative_position_index",
            relative_position_index(self.window_size),
            persistent=False,
        )

    def position_bias(self) -> Tensor:
        """Read the table for each pair of places: (h, M * M, M * M)."""
        bias = self.relative_position_bias_table[self.relative_position_index]
        return bias.permute(2, 0, 1)

    def window_bias(
        self, grid_size: tuple[int, int], shift_size: tuple[int, int]
    ) -> Tensor:
        """Add the mask of a shift: (nW, h, M * M, M * M).

        The sizes are those of the padded map and of the shift along it.
        Without a shift nW is 1: the bias is the same for all windows.
        """
        bias = self.position_bias()[None]
        if not any(shift_size):
            return bias
        mask = shift_mask(
            grid_size, self.window_size, shift_size, device=bias.device
        )
        return bias + mask[:, None].to(bias.dtype)  # one for all heads

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[3] != self.dim:
            raise ValueError(
                f"x must be (B, gh, gw, {self.dim}), got {tuple(x.shape)}"
            )
        gh, gw = x.shape[1:3]
        x = pad_to_windows(x, self.window_size)
        grid = (x.shape[1], x.shape[2])
        sizes = zip(self.shift_size, self.window_size, grid, strict=True)
        down, right = (s if m < g else 0 for s, m, g in sizes)
        if down or right:
            x = x.roll((-down, -right), dims=(1, 2))
        windows = window_partition(x, self.window_size)  # (B * nW, M*M, D)
        bias = self.window_bias(grid, (down, right))
        # Windows that differ in their bias stand beside each other as heads
        # do: one bias then serves all images.
        w, h = bias.shape[:2]  # w is nW, or 1
        q, k, v = rearrange(
            self.qkv(windows),
            "(b w) n (three h d) -> three b (w h) n d",
            three=3,
            w=w,
            h=h,
        )
        bias = rearrange(bias.to(q.dtype), "w h n m -> 1 (w h) n m")
        if x.is_cuda:  # the fused kernel, which stores no scores
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:  # equation 4; q is smaller than the scores, so divide q
            scores = (q / q.shape[-1] ** 0.5) @ k.transpose(-2, -1) + bias
            out = scores.softmax(dim=-1) @ v
        out = self.proj(rearrange(out, "b (w h) n d -> (b w) n (h d)", h=h))
        x = window_reverse(out, self.window_size, grid)
        if down or right:
            x = x.roll((down, right), dims=(1, 2))
        return x[:, :gh, :gw]
