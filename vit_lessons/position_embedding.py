"""Position embedding: the model learns where a patch was.

Chapter: notebooks/03_position_embedding.ipynb
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vit_lessons.patch_embedding import as_pair

__all__ = ["relative_position_index", "resize_pos_embed", "sincos_pos_embed"]


def sincos_pos_embed(
    grid_size: int | tuple[int, int],
    dim: int,
    *,
    temperature: float = 10_000.0,
) -> Tensor:
    """Give each place of a grid a fixed vector of sines and cosines.

    The first half of the features tells the column, the second half the row.
    Each half holds sines, then cosines, of slower and slower waves.

    Args:
        grid_size: Patches down and across, (gh, gw). An int is a square grid.
        dim: Token width D, in features. A multiple of 4.
        temperature: The slowest wave is nearly this many times slower than
            the fastest.

    Shape:
        (1, gh * gw, D), float32, in the order of the patches

    Raises:
        ValueError: dim is no positive multiple of 4, temperature is not
            positive, or grid_size is no size.

    Source: Vaswani et al. 2017, section 3.5, https://arxiv.org/abs/1706.03762,
    once for each axis. MAE uses this layout.
    """
    gh, gw = as_pair("grid_size", grid_size)
    if dim < 4 or dim % 4:
        raise ValueError(f"dim must be a positive multiple of 4, got {dim}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    steps = torch.arange(dim // 4, dtype=torch.float64) / (dim // 4)
    rows, columns = torch.meshgrid(
        torch.arange(gh), torch.arange(gw), indexing="ij"
    )  # (gh, gw) each
    angles = [
        places.reshape(-1, 1) / temperature**steps for places in (columns, rows)
    ]  # (N, D / 4) each
    waves = [wave for a in angles for wave in (a.sin(), a.cos())]
    return torch.cat(waves, dim=1).float().unsqueeze(0)  # (1, N, D)


def relative_position_index(grid_size: int | tuple[int, int]) -> Tensor:
    """Number the offset between each two places of a grid.

    A table with one row for each offset, read with this index, gives two
    pairs of places the same bias if they lie the same way apart.

    Args:
        grid_size: Places down and across, (gh, gw). An int is a square grid.

    Shape:
        (N, N), int64 in 0..(2 * gh - 1) * (2 * gw - 1) - 1, N = gh * gw. Row
        i, column j is the offset of query i from key j

    Raises:
        ValueError: grid_size is no size.

    Source: Liu et al. 2021, equation 4, https://arxiv.org/abs/2103.14030
    """
    gh, gw = as_pair("grid_size", grid_size)
    places = torch.cartesian_prod(torch.arange(gh), torch.arange(gw))  # (N, 2)
    offsets = places[:, None] - places[None, :]  # (N, N, 2): rows, columns
    offsets = offsets + torch.tensor([gh - 1, gw - 1])  # from 0 on
    return offsets[..., 0] * (2 * gw - 1) + offsets[..., 1]


def resize_pos_embed(
    pos_embed: Tensor,
    grid_size: int | tuple[int, int],
    new_grid_size: int | tuple[int, int],
    *,
    num_prefix_tokens: int = 1,
    mode: str = "bicubic",
    align_corners: bool = False,
    antialias: bool = False,
) -> Tensor:
    """Interpolate a position table so that it fits another patch grid.

    The rows of the prefix tokens have no place in the image: they stay as
    they are. The default is the rule of DeiT and MAE. The paper's own code
    has mode="bilinear", align_corners=True, and timm has antialias=True.

    Args:
        pos_embed: The position table.
        grid_size: Its patches down and across, (gh, gw). An int is a square.
        new_grid_size: The patches down and across that are needed.
        num_prefix_tokens: Tokens in front of the patches: 1 if there is only
            the class token, 0 if there is none.
        mode: "bilinear" or "bicubic".
        align_corners: Put the corners of the grids on each other: the centers
            of the corner patches if True, the corners of the image if False.
        antialias: Average over more places when the grid gets smaller.

    Shape:
        pos_embed: (1, num_prefix_tokens + gh * gw, D) -> the same with the
        new gh * gw. Computed in float32 or finer, returned in its own dtype

    Raises:
        ValueError: pos_embed does not fit grid_size and num_prefix_tokens, or
            mode is unknown.

    Source: Dosovitskiy et al. 2021, section 3.2,
    https://arxiv.org/abs/2010.11929
    """
    gh, gw = as_pair("grid_size", grid_size)
    new_size = as_pair("new_grid_size", new_grid_size)
    if mode not in ("bilinear", "bicubic"):
        raise ValueError(f'mode must be "bilinear" or "bicubic", got {mode!r}')
    if (
        num_prefix_tokens < 0
        or pos_embed.ndim != 3
        or pos_embed.shape[:2] != (1, num_prefix_tokens + gh * gw)
    ):
        raise ValueError(
            f"pos_embed must be (1, {num_prefix_tokens} + {gh} * {gw}, D), got "
            f"{tuple(pos_embed.shape)}"
        )
    if new_size == (gh, gw):
        return pos_embed
    prefix, patches = pos_embed.tensor_split([num_prefix_tokens], dim=1)
    table = rearrange(patches, "1 (gh gw) d -> 1 d gh gw", gh=gh)
    table = F.interpolate(
        table.to(torch.promote_types(table.dtype, torch.float32)),
        new_size,
        mode=mode,
        align_corners=align_corners,
        antialias=antialias,
    )
    patches = rearrange(table, "1 d gh gw -> 1 (gh gw) d").to(patches.dtype)
    return torch.cat([prefix, patches], dim=1)
