"""Swin Transformer: blocks of windows in four stages, as a pyramid.

Chapter: notebooks/16_swin_transformer.ipynb
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vit_lessons.encoder_block import DropPath
from vit_lessons.mlp import Mlp
from vit_lessons.patch_embedding import PatchEmbed, as_pair
from vit_lessons.swin_windows import WindowAttention

__all__ = [
    "SWIN_PRESETS",
    "TORCHVISION_SWIN_NAMES",
    "PatchMerging",
    "SwinBlock",
    "SwinPatchEmbed",
    "SwinStage",
    "SwinTransformer",
    "swin_from_torchvision",
]


class SwinPatchEmbed(PatchEmbed):
    """Cut images into patches, project them, and keep them as a map.

    There is a norm after the projection, and no position is added.

    Args:
        patch_size: Patch side P, or (height, width), in pixels.
        in_chans: Channels C of the image.
        embed_dim: Token width D, in features.

    Shape:
        images: (B, C, H, W) -> (B, gh, gw, D) with gh = H / P, gw = W / P

    Raises:
        ValueError: images is not (B, C, H, W) with C = in_chans, or P does
            not divide H and W.

    Source: Liu et al. 2021, section 3.1, https://arxiv.org/abs/2103.14030.
    The norm is in the authors' code.
    """

    def __init__(
        self,
        patch_size: int | tuple[int, int] = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
    ) -> None:
        super().__init__(patch_size, in_chans, embed_dim)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.norm(super().forward(images))  # (B, N, D)
        gh = images.shape[2] // self.patch_size[0]
        return rearrange(tokens, "b (gh gw) d -> b gh gw d", gh=gh)


class PatchMerging(nn.Module):
    """Join each 2 x 2 tokens of a map into one that is twice as wide.

    The four tokens stand one after the other: top left, bottom left, top
    right, bottom right. A norm and a linear layer without bias make 2 D of
    their 4 D features. An odd map is padded with zeros, below and to the
    right.

    Args:
        dim: Token width D before merging, in features.

    Shape:
        x: (B, gh, gw, D) -> (B, gh / 2, gw / 2, 2 D), rounded up

    Raises:
        ValueError: dim is not positive, or x is not (B, gh, gw, D).

    Source: Liu et al. 2021, section 3.1, https://arxiv.org/abs/2103.14030.
    The order of the four, and the norm before the linear layer, are those
    of the authors' code. Parameter names are timm's.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be positive, got {dim}")
        self.dim = dim
        self.norm = nn.LayerNorm(4 * dim, eps=1e-5)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[3] != self.dim:
            raise ValueError(
                f"x must be (B, gh, gw, {self.dim}), got {tuple(x.shape)}"
            )
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = rearrange(
            x,
            "b (gh down) (gw right) d -> b gh gw (right down d)",
            down=2,
            right=2,
        )
        return self.reduction(self.norm(x))


class SwinBlock(nn.Module):
    """Attention inside windows, then an MLP on each token.

    It is the encoder block with another attention.

    Args:
        dim: Token width D, in features. A multiple of num_heads.
        num_heads: Heads of the attention.
        window_size: Window side M, or (height, width), in tokens.
        shift_size: Tokens by which the windows move, or (rows, columns).
        mlp_ratio: Width of the MLP's hidden layer, in multiples of D.
        qkv_bias: Learn a bias for q, k and v.
        drop_path: Probability of skipping a branch in training.

    Shape:
        x: (B, gh, gw, D) -> (B, gh, gw, D)

    Raises:
        ValueError: As WindowAttention, Mlp and DropPath.

    Source: Liu et al. 2021, equation 3, https://arxiv.org/abs/2103.14030.
    Parameter names are timm's.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int | tuple[int, int] = 7,
        shift_size: int | tuple[int, int] = 0,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn = WindowAttention(
            dim, num_heads, window_size, shift_size, qkv_bias=qkv_bias
        )
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = Mlp(dim, mlp_ratio=mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class SwinStage(nn.Module):
    """Merge patches, then blocks in pairs: windows, and shifted windows.

    Args:
        dim: Token width D of the blocks, in features.
        num_heads: Heads of each attention.
        window_size: Window side M, or (height, width), in tokens.
        drop_path: Probability of skipping a branch, for each block: their
            number is the depth of the stage.
        merge: Begin with patch merging, which takes tokens of D / 2 features.
        mlp_ratio: Width of the MLP's hidden layer, in multiples of D.
        qkv_bias: Learn a bias for q, k and v.

    Shape:
        x: (B, gh, gw, D) -> the same, or with merge (B, gh, gw, D / 2) ->
        (B, gh / 2, gw / 2, D), rounded up

    Raises:
        ValueError: drop_path is empty, merge is asked for with an odd dim, or
            as PatchMerging and SwinBlock.

    Source: Liu et al. 2021, section 3.1, https://arxiv.org/abs/2103.14030.
    Parameter names are timm's.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int | tuple[int, int] = 7,
        *,
        drop_path: Sequence[float] = (0.0, 0.0),
        merge: bool = True,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        if len(drop_path) == 0:
            raise ValueError("drop_path must name a rate for each block, got 0")
        if merge and dim % 2:
            raise ValueError(f"dim must be even to merge patches, got {dim}")
        m1, m2 = as_pair("window_size", window_size)
        self.downsample = PatchMerging(dim // 2) if merge else nn.Identity()
        self.blocks = nn.ModuleList(
            SwinBlock(
                dim,
                num_heads,
                (m1, m2),
                (m1 // 2, m2 // 2) if i % 2 else 0,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop_path=rate,
            )
            for i, rate in enumerate(drop_path)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class SwinTransformer(nn.Module):
    """An image classifier of windows, in stages on smaller and smaller maps.

    There is no class token and no position table: the head reads the mean of
    all tokens, and positions are in the biases of the windows.

    Args:
        img_size: Side of the image, or (height, width), in pixels. A window
            that is larger than the map of its stage is cut to that map.
            Images of other sizes are possible: maps are padded.
        patch_size: Patch side P, or (height, width), in pixels.
        in_chans: Channels C of the image.
        num_classes: Classes K. 0 leaves out the head: the model returns the
            features that the head would read.
        embed_dim: Token width D of the first stage, in features. It doubles
            with each stage.
        depths: Blocks of each stage.
        num_heads: Heads of each attention, for each stage.
        window_size: Window side M, or (height, width), in tokens.
        mlp_ratio: Width of the MLP's hidden layer, in multiples of its dim.
        qkv_bias: Learn a bias for q, k and v.
        drop_path: Probability of skipping a branch of the last block in
            training. It rises evenly from 0 in the first block of all.

    Shape:
        images: (B, C, H, W) -> logits (B, K). H and W are multiples of P

    Raises:
        ValueError: The sizes do not fit together, or P does not divide the
            images.

    Source: Liu et al. 2021, section 3, https://arxiv.org/abs/2103.14030.
    Parameter names are timm's.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 4,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int | tuple[int, int] = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if min(in_chans, embed_dim) < 1 or num_classes < 0:
            raise ValueError(
                "in_chans, embed_dim must be positive and num_classes at least "
                f"0, got {in_chans}, {embed_dim} and {num_classes}"
            )
        if len(depths) != len(num_heads) or min(depths, default=0) < 1:
            raise ValueError(
                "depths must be positive and num_heads as many, got "
                f"{depths} and {num_heads}"
            )
        if not 0 <= drop_path < 1:
            raise ValueError(
                f"drop_path must be in 0 <= drop_path < 1, got {drop_path}"
            )
        height, width = as_pair("img_size", img_size)
        self.patch_embed = SwinPatchEmbed(patch_size, in_chans, embed_dim)
        p1, p2 = self.patch_embed.patch_size
        if height % p1 or width % p2:
            raise ValueError(
                f"img_size must be a multiple of patch_size, got "
                f"{(height, width)} and {(p1, p2)}"
            )
        gh, gw = height // p1, width // p2
        m1, m2 = as_pair("window_size", window_size)
        last = max(1, sum(depths) - 1)
        rates = (drop_path * i / last for i in range(sum(depths)))
        self.layers = nn.ModuleList()
        for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            if i > 0:  # merging halves the map
                gh, gw = (gh + 1) // 2, (gw + 1) // 2
            stage = SwinStage(
                embed_dim * 2**i,
                heads,
                (min(m1, gh), min(m2, gw)),
                drop_path=list(islice(rates, depth)),
                merge=i > 0,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
            )
            self.layers.append(stage)
        dim = embed_dim * 2 ** (len(depths) - 1)
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.head = nn.Sequential()
        if num_classes:
            self.head.add_module("fc", nn.Linear(dim, num_classes))
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the first weights: small ones, 0 for biases of linear layers."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
            elif isinstance(module, WindowAttention):
                nn.init.trunc_normal_(
                    module.relative_position_bias_table, std=0.02
                )
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Return the map of each stage, as detectors read them.

        The first is (B, D, gh, gw), and each later one has twice the
        features on half the rows and columns.
        """
        x = self.patch_embed(images)
        maps = []
        for stage in self.layers:
            x = stage(x)
            maps.append(rearrange(x, "b gh gw d -> b d gh gw"))
        return maps

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last map after the last norm: (B, gh, gw, D)."""
        x = self.patch_embed(images)
        for stage in self.layers:
            x = stage(x)
        return self.norm(x)

    def forward(self, images: Tensor) -> Tensor:
        x = self.forward_features(images)
        return self.head(x.mean(dim=(1, 2)))


#: What torchvision calls a weight of Swin, and what timm and we call it.
#: Its part n holds the blocks (odd) or the merging (even) of stage n // 2.
TORCHVISION_SWIN_NAMES: dict[str, str] = {
    r"features\.0\.0\.(?P<end>\w+)": "patch_embed.proj.{end}",
    r"features\.0\.2\.(?P<end>\w+)": "patch_embed.norm.{end}",
    r"features\.(?P<n>[246])\.(?P<end>(norm|reduction)\.\w+)": (
        "layers.{stage}.downsample.{end}"
    ),
    r"features\.(?P<n>[1357])\.(?P<i>\d+)\.mlp\.0\.(?P<end>\w+)": (
        "layers.{stage}.blocks.{i}.mlp.fc1.{end}"
    ),
    r"features\.(?P<n>[1357])\.(?P<i>\d+)\.mlp\.3\.(?P<end>\w+)": (
        "layers.{stage}.blocks.{i}.mlp.fc2.{end}"
    ),
    r"features\.(?P<n>[1357])\.(?P<i>\d+)\.(?P<end>(norm1|norm2|attn)\..+)": (
        "layers.{stage}.blocks.{i}.{end}"
    ),
    r"norm\.(?P<end>\w+)": "norm.{end}",
    r"head\.(?P<end>\w+)": "head.fc.{end}",
}


def swin_from_torchvision(
    state_dict: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Give torchvision's Swin weights the names that timm and we use.

    Only names change. The index of the biases, which torchvision stores, is
    left out: the model makes its own.

    Args:
        state_dict: Of a torchvision SwinTransformer.

    Raises:
        ValueError: A name is not one of torchvision's.
    """
    renamed = {}
    for name, tensor in state_dict.items():
        if name.endswith(".attn.relative_position_index"):
            continue
        for pattern, new_name in TORCHVISION_SWIN_NAMES.items():
            match = re.fullmatch(pattern, name)
            if match:
                parts = match.groupdict()
                stage = int(parts.get("n", 0)) // 2
                renamed[new_name.format(stage=stage, **parts)] = tensor
                break
        else:
            raise ValueError(
                "state_dict must have torchvision's names of a Swin "
                f"Transformer, got {name}"
            )
    return renamed


#: Arguments of SwinTransformer for the published sizes, by timm's names.
SWIN_PRESETS: dict[str, dict[str, Any]] = {
    f"swin_{name}_patch4_window7_224": {
        "img_size": 224,
        "patch_size": 4,
        "embed_dim": embed_dim,
        "depths": depths,
        "num_heads": num_heads,
        "window_size": 7,
    }
    for name, embed_dim, depths, num_heads in (
        ("tiny", 96, (2, 2, 6, 2), (3, 6, 12, 24)),
        ("small", 96, (2, 2, 18, 2), (3, 6, 12, 24)),
        ("base", 128, (2, 2, 18, 2), (4, 8, 16, 32)),
    )
}
