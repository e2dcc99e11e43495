"""The checks of chapters 05, 06 and 07: an MLP, a block, a whole model."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vit_lessons import (
    DropPath,
    EncoderBlock,
    Mlp,
    MultiHeadSelfAttention,
    PatchEmbed,
    VisionTransformer,
    pool,
    prepend_token,
)
from vit_lessons.checks import (
    check,
    encoder_block,
    mlp,
    vision_transformer,
)

PACKAGE = (Mlp, DropPath, EncoderBlock, VisionTransformer)
EXERCISES = (
    *mlp.EXERCISES,
    *encoder_block.EXERCISES,
    *vision_transformer.EXERCISES,
)
NAMES = [exercise.name for exercise in EXERCISES]
TWO = "There are two mistakes. "


def variant(base, **methods):
    """The class with some methods written differently."""
    return type("Candidate", (base,), methods)


def pair(size):
    return (size, size) if isinstance(size, int) else tuple(size)


# Chapter 05, as a reader writes it.


class OwnMlp(nn.Module):
    def __init__(self, dim, mlp_ratio=4, dropout=0.0):
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class ShortMlp(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x):
        x = self.fc1(x)
        x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        return self.fc2(x)


class NarrowMlp(OwnMlp):
    """Another default of mlp_ratio, which the check must not mind."""

    def __init__(self, dim, mlp_ratio=2):
        super().__init__(dim, mlp_ratio)


def mlp_by_token(self, x):
    tokens = [
        F.gelu(token @ self.fc1.weight.T + self.fc1.bias)
        for token in x.unbind(1)
    ]
    return torch.stack([self.fc2(token) for token in tokens], dim=1)


def mlp_relu(self, x):
    return self.fc2(torch.relu(self.fc1(x)))


def mlp_silu(self, x):
    return self.fc2(F.silu(self.fc1(x)))


def mlp_tanh_gelu(self, x):
    x = self.fc1(x)
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return self.fc2(0.5 * x * (1 + torch.tanh(inner)))


def mlp_linear(self, x):
    return self.fc2(self.fc1(x))


def mlp_gelu_last(self, x):
    return F.gelu(self.fc2(self.fc1(x)))


def mlp_gelu_both(self, x):
    return F.gelu(self.fc2(F.gelu(self.fc1(x))))


def mlp_residual(self, x):
    return x + self.fc2(F.gelu(self.fc1(x)))


def mlp_softmax(self, x):
    return torch.softmax(self.fc2(F.gelu(self.fc1(x))), dim=-1)


def mlp_norm(self, x):
    return self.fc2(F.gelu(self.fc1(F.layer_norm(x, x.shape[-1:]))))


def mlp_relu_residual(self, x):
    return x + self.fc2(torch.relu(self.fc1(x)))


def mlp_always_dropout(self, x):
    return self.fc2(F.dropout(F.gelu(self.fc1(x)), self.drop.p))


def mlp_fixed_dropout(self, x):
    return self.fc2(F.dropout(F.gelu(self.fc1(x)), 0.1))


def mlp_no_dropout(self, x):
    return self.fc2(F.gelu(self.fc1(x)))


def mlp_in_place(self, x):
    x += 1
    return self.fc2(F.gelu(self.fc1(x - 1)))


def mlp_softmax_in_evaluation(self, x):
    x = self.fc2(F.gelu(self.fc1(x)))
    return x if self.training else x.softmax(-1)


def init_equal_width(self, dim, mlp_ratio=4.0):
    nn.Module.__init__(self)
    self.fc1 = nn.Linear(dim, dim)
    self.fc2 = nn.Linear(dim, dim)


def init_ratio_as_int(self, dim, mlp_ratio=4):
    nn.Module.__init__(self)
    self.drop = nn.Identity()
    self.fc1 = nn.Linear(dim, dim * mlp_ratio)
    self.fc2 = nn.Linear(dim * mlp_ratio, dim)


def init_ratio_unused(self, dim, mlp_ratio=4):
    OwnMlp.__init__(self, dim)


MLPS_WRONG = [
    (mlp_relu, "The activation is ReLU"),
    (mlp_silu, "The activation is SiLU"),
    (mlp_tanh_gelu, "GELU is approximated"),
    (mlp_linear, "The activation is missing"),
    (mlp_gelu_last, "GELU comes after the second layer"),
    (mlp_gelu_both, "One more function follows the second layer"),
    (mlp_residual, "the residual connection belongs to the encoder block"),
    (mlp_softmax, "One more function follows the second layer"),
    (mlp_norm, "LayerNorm does not belong here"),
    (mlp_relu_residual, "There are two mistakes. The activation is ReLU"),
    (mlp_always_dropout, "Dropout acts in evaluation"),
    (mlp_fixed_dropout, "Dropout is on"),
    (mlp_no_dropout, "dropout changes nothing in training"),
    (mlp_in_place, "changes its input in place"),
    (mlp_softmax_in_evaluation, "Right in training, wrong in evaluation"),
]

# Chapter 06.


class OwnDropPath(nn.Module):
    def __init__(self, drop_path=0.1):
        super().__init__()
        self.p = drop_path

    def forward(self, x):
        if self.p == 0.0 or not self.training:
            return x
        keep = 1 - self.p
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        mask = (keep + torch.rand(shape, device=x.device)).floor()
        return x.div(keep) * mask


def drop_by_loop(self, x):
    if not self.training or self.p == 0:
        return x
    images = [
        image * 0 if torch.rand(1).item() < self.p else image / (1 - self.p)
        for image in x
    ]
    return torch.stack(images)


def drop_by_dropout(self, x):
    return x * F.dropout(torch.ones(len(x)), self.p, self.training).reshape(
        -1, *[1] * (x.ndim - 1)
    )


def drop_features(self, x):
    return F.dropout(x, self.p, self.training)


def drop_tokens(self, x):
    if not self.training:
        return x
    mask = torch.rand(*x.shape[:-1], 1) > self.p
    return x * mask / (1 - self.p)


def drop_all(self, x):
    if not self.training:
        return x
    return x / (1 - self.p) if torch.rand(()) > self.p else x * 0


def drop_unscaled(self, x):
    if not self.training:
        return x
    return x * (torch.rand(len(x), *[1] * (x.ndim - 1)) > self.p)


def drop_always(self, x):
    mask = torch.rand(len(x), *[1] * (x.ndim - 1)) > self.p
    return x * mask / (1 - self.p)


def drop_never(self, x):
    return x


def drop_keeps_p(self, x):
    if not self.training or self.p == 0:
        return x
    mask = torch.rand(len(x), *[1] * (x.ndim - 1)) < self.p
    return x * mask / (1 - self.p)


def drop_keeps_p_scaled(self, x):
    if not self.training or self.p == 0:
        return x
    mask = torch.rand(len(x), *[1] * (x.ndim - 1)) < self.p
    return x * mask / self.p


def drop_three_axes(self, x):
    if not self.training or self.p == 0:
        return x
    return x * (torch.rand(len(x), 1, 1) > self.p) / (1 - self.p)


def drop_multiplied(self, x):
    if not self.training:
        return x
    keep = 1 - self.p
    return x * x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(keep) * keep


def drop_half(self, x):
    if not self.training or self.p == 0:
        return x
    return x * (torch.rand(len(x), *[1] * (x.ndim - 1)) > 0.2) / 0.8


def drop_detached(self, x):
    return OwnDropPath.forward(self, x.detach())


def drop_in_place(self, x):
    if self.training and self.p:
        x *= (torch.rand(len(x), *[1] * (x.ndim - 1)) > self.p) / (1 - self.p)
    return x


DROPS_WRONG = [
    (drop_features, "Single features are dropped"),
    (drop_tokens, "Single tokens are dropped"),
    (drop_all, "All images share one draw"),
    (drop_unscaled, "What is kept is not scaled"),
    (drop_always, "active in evaluation too"),
    (drop_never, "never active"),
    (drop_keeps_p, "kept with probability drop_path"),
    (drop_keeps_p_scaled, "kept with probability drop_path"),
    (drop_three_axes, "Right for (B, N, D) only"),
    (drop_multiplied, "multiplied by the probability of keeping"),
    (drop_half, "Right for one probability only"),
    (drop_detached, "gradients do not flow back"),
    (drop_in_place, "changes its input in place"),
]


class OwnBlock(nn.Module):
    """A block that takes nothing but what it must."""

    eps = 1e-6

    def __init__(self, dim, num_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=self.eps)
        self.attn = MultiHeadSelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=self.eps)
        self.mlp = Mlp(dim)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class FullBlock(nn.Module):
    """A block with all arguments and with parts of its own."""

    def __init__(
        self,
        dim,
        num_heads,
        mlp_ratio=4.0,
        qkv_bias=False,
        dropout=0.1,
        drop_path=0.1,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim, 1e-6)
        self.attn = nn.Module()
        self.attn.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.attn.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, 1e-6)
        self.mlp = OwnMlp(dim, mlp_ratio, dropout)
        self.drop = nn.Dropout(dropout)
        self.path = OwnDropPath(drop_path)

    def attend(self, x, mask):
        b, n, d = x.shape
        q, k, v = (
            part.reshape(b, n, self.num_heads, -1).transpose(1, 2)
            for part in self.attn.qkv(x).chunk(3, dim=-1)
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.attn.proj(out.transpose(1, 2).reshape(b, n, d))

    def forward(self, x, bias=None, num_queries=None):
        x = x + self.path(self.drop(self.attend(self.norm1(x), bias)))
        x = x + self.path(self.mlp(self.norm2(x)))
        return x[:, :num_queries]


def block_by_hand(self, x):
    def normalize(x, norm):
        mean = x.mean(-1, keepdim=True)
        var = x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / torch.sqrt(var + 1e-6) * norm.weight + norm.bias

    residual = x
    x = self.attn(normalize(x, self.norm1))
    x = residual + x
    residual = x
    x = self.mlp(normalize(x, self.norm2))
    return residual + x


def block_post_norm(self, x):
    x = self.norm1(x + self.attn(x))
    return self.norm2(x + self.mlp(x))


def block_norm_after_branch(self, x):
    x = x + self.norm1(self.attn(x))
    return x + self.norm2(self.mlp(x))


def block_no_residual(self, x):
    return self.mlp(self.norm2(self.attn(self.norm1(x))))


def block_first_residual_only(self, x):
    x = x + self.attn(self.norm1(x))
    return self.mlp(self.norm2(x))


def block_second_residual_only(self, x):
    x = self.attn(self.norm1(x))
    return x + self.mlp(self.norm2(x))


def block_norm1_twice(self, x):
    x = x + self.attn(self.norm1(x))
    return x + self.mlp(self.norm1(x))


def block_parallel(self, x):
    return x + self.attn(self.norm1(x)) + self.mlp(self.norm2(x))


def block_of_one_z(self, x):
    z = x + self.attn(self.norm1(x))  # noqa: F841
    return x + self.mlp(self.norm2(x))


def block_residual_of_normalized(self, x):
    x = self.norm1(x)
    x = x + self.attn(x)
    x = self.norm2(x)
    return x + self.mlp(x)


def block_mlp_first(self, x):
    x = x + self.mlp(self.norm2(x))
    return x + self.attn(self.norm1(x))


def block_without_norm2(self, x):
    x = x + self.attn(self.norm1(x))
    return x + self.mlp(x)


def block_without_norms(self, x):
    x = x + self.attn(x)
    return x + self.mlp(x)


def block_over_the_batch(self, x):
    x = x + self.attn(self.norm1(x).transpose(0, 1)).transpose(0, 1)
    return x + self.mlp(self.norm2(x))


def block_relu(self, x):
    x = x + self.attn(self.norm1(x))
    return x + self.mlp.fc2(F.relu(self.mlp.fc1(self.norm2(x))))


def block_in_place(self, x):
    x += self.attn(self.norm1(x))
    x += self.mlp(self.norm2(x))
    return x


def block_post_norm_one_residual(self, x):
    x = self.norm1(x + self.attn(x))
    return self.norm2(self.mlp(x))


def block_detached(self, x):
    x = x + self.attn(self.norm1(x))
    return x + self.mlp(self.norm2(x).detach())


def full_bias_unused(self, x, bias=None, num_queries=None):
    return FullBlock.forward(self, x, None, num_queries)


def full_cut_early(self, x, bias=None, num_queries=None):
    return FullBlock.forward(self, x[:, :num_queries], None)


def full_queries_unused(self, x, bias=None, num_queries=None):
    return FullBlock.forward(self, x, bias)


def full_drop_features(self, dim, num_heads, drop_path=0.0):
    FullBlock.__init__(self, dim, num_heads, 4, True, 0.0, drop_path)
    self.path = nn.Dropout(self.path.p)


def full_never_drops(self, dim, num_heads, drop_path=0.0):
    FullBlock.__init__(self, dim, num_heads, 4, True, 0.0, drop_path)
    self.path = nn.Identity()


class OneNorm(OwnBlock):
    def __init__(self, dim, num_heads):
        super().__init__(dim, num_heads)
        self.norm2 = self.norm1


BLOCKS_WRONG = [
    (block_post_norm, "The norm comes after the sum"),
    (block_norm_after_branch, "The norm comes after the branch"),
    (block_no_residual, "Both residual connections are missing"),
    (block_first_residual_only, "The second residual connection is missing"),
    (block_second_residual_only, "The first residual connection is missing"),
    (block_norm1_twice, "The same norm is used twice"),
    (block_parallel, "The MLP reads x, the input of the block"),
    (block_of_one_z, "The attention is lost"),
    (block_residual_of_normalized, "added to the normalized tokens"),
    (block_mlp_first, "The MLP comes before the attention"),
    (block_without_norm2, "A norm is missing"),
    (block_without_norms, "A norm is missing"),
    (block_over_the_batch, "Attention runs over the batch"),
    (block_relu, "The activation is ReLU"),
    (block_in_place, "changes its input in place"),
    (block_post_norm_one_residual, TWO),
    (block_detached, "gradients do not flow back"),
]
FULL_BLOCKS_WRONG = [
    ({"forward": full_bias_unused}, "bias is not used"),
    ({"forward": full_cut_early}, "bias is not used"),
    ({"forward": full_queries_unused}, "num_queries is not used"),
    ({"__init__": full_drop_features}, "for some whole images"),
    ({"__init__": full_never_drops}, "for some whole images"),
]

# Chapter 07.


class FromParts(nn.Module):
    """A model made of the package's parts."""

    def __init__(
        self,
        img_size,
        patch_size,
        in_chans,
        num_classes,
        embed_dim,
        depth,
        num_heads,
    ):
        super().__init__()
        height, width = self.size = pair(img_size)
        p1, p2 = pair(patch_size)
        tokens = 1 + (height // p1) * (width // p2)
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, embed_dim))
        self.blocks = nn.ModuleList(
            [EncoderBlock(embed_dim, num_heads) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, images):
        if tuple(images.shape[2:]) != self.size:
            raise ValueError("wrong size")
        x = prepend_token(self.patch_embed(images), self.cls_token)
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(pool(self.norm(x)))


class InSequence(FromParts):
    """Blocks in nn.Sequential, all optional arguments."""

    def __init__(
        self,
        img_size=32,
        patch_size=4,
        in_chans=3,
        num_classes=10,
        embed_dim=64,
        depth=6,
        num_heads=4,
        mlp_ratio=2.0,
        qkv_bias=False,
        pool="mean",
        dropout=0.1,
        drop_path=0.1,
    ):
        super().__init__(
            *(img_size, patch_size, in_chans, num_classes),
            *(embed_dim, 0, num_heads),
        )
        self.pool = pool
        self.drop = nn.Dropout(dropout)
        rates = torch.linspace(0, drop_path, depth).tolist()
        self.blocks = nn.Sequential(
            *(
                EncoderBlock(
                    embed_dim,
                    num_heads,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    dropout=dropout,
                    drop_path=rate,
                )
                for rate in rates
            )
        )

    def tokens(self, images):
        assert images.shape[2:] == self.size
        x = self.patch_embed(images)
        token = self.cls_token.repeat(x.shape[0], 1, 1)
        x = torch.cat((token, x), dim=1) + self.pos_embed
        return self.norm(self.blocks(self.drop(x)))

    def forward(self, images):
        x = self.tokens(images)
        if self.pool == "mean":
            return self.head(x[:, 1:]).mean(dim=1)
        return self.head(x)[:, 0]


class OwnModel(nn.Module):
    """A model without any part of the package."""

    eps = 1e-6

    def __init__(
        self,
        img_size,
        patch_size,
        in_chans,
        num_classes,
        embed_dim,
        depth,
        num_heads,
    ):
        super().__init__()
        sides = pair(img_size)
        d, self.heads, self.patch = embed_dim, num_heads, pair(patch_size)
        self.grid = [s // p for s, p in zip(sides, self.patch, strict=True)]
        n = self.grid[0] * self.grid[1]
        conv = nn.Conv2d(in_chans, d, self.patch, stride=self.patch)
        self.patch_embed = nn.ModuleDict({"proj": conv})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = nn.Parameter(torch.zeros(1, n + 1, d))
        self.blocks = nn.ModuleList(self.new_block(d) for _ in range(depth))
        self.norm = nn.LayerNorm(d, self.eps)
        self.head = nn.Linear(d, num_classes)

    def new_block(self, d):
        mlp = {"fc1": nn.Linear(d, 4 * d), "fc2": nn.Linear(4 * d, d)}
        attn = {"qkv": nn.Linear(d, 3 * d), "proj": nn.Linear(d, d)}
        block = {
            "norm1": nn.LayerNorm(d, self.eps),
            "attn": nn.ModuleDict(attn),
            "norm2": nn.LayerNorm(d, self.eps),
            "mlp": nn.ModuleDict(mlp),
        }
        return nn.ModuleDict(block)

    def forward(self, images):
        x = self.run_blocks(self.embed(images))
        return self.read(self.norm(x))

    def embed(self, images):
        b, c, height, width = images.shape
        (p1, p2), (gh, gw) = self.patch, self.grid
        assert (height, width) == (gh * p1, gw * p2)
        x = images.view(b, c, gh, p1, gw, p2).permute(0, 2, 4, 1, 3, 5)
        proj = self.patch_embed["proj"]
        x = x.reshape(b, gh * gw, -1) @ proj.weight.flatten(1).T + proj.bias
        x = torch.cat([self.cls_token.expand(b, 1, -1), x], dim=1)
        return x + self.pos_embed

    def run_blocks(self, x):
        for block in self.blocks:
            x = x + self.attend(block["attn"], block["norm1"](x))
            hidden = F.gelu(block["mlp"]["fc1"](block["norm2"](x)))
            x = x + block["mlp"]["fc2"](hidden)
        return x

    def attend(self, attn, x):
        b, n, d = x.shape
        qkv = attn["qkv"](x).view(b, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * (d // self.heads) ** -0.5).softmax(dim=-1)
        return attn["proj"]((weights @ v).transpose(1, 2).reshape(b, n, d))

    def read(self, x):
        return self.head(x[:, 0])


def run_reversed(self, x):
    for block in reversed(self.blocks):
        x = block(x)
    return x


def run_one(self, x):
    return self.blocks[0](x)


def run_first_again(self, x):
    for _ in self.blocks:
        x = self.blocks[0](x)
    return x


def run_on_the_input(self, x):
    for block in self.blocks:
        out = block(x)
    return out


def run_over_the_batch(self, x):
    x = x.permute(1, 0, 2)
    for block in self.blocks:
        x = block(x)
    return x.permute(1, 0, 2)


def make_model(embed=None, run=None, end=None):
    """FromParts with one of its three steps written differently."""

    def forward(self, images):
        if tuple(images.shape[2:]) != self.size:
            raise ValueError("wrong size")
        x = embed(self, images) if embed else embed_right(self, images)
        x = run(self, x) if run else run_right(self, x)
        return end(self, x) if end else self.head(self.norm(x)[:, 0])

    return variant(FromParts, forward=forward)


def embed_right(self, images):
    return prepend_token(self.patch_embed(images), self.cls_token) + (
        self.pos_embed
    )


def run_right(self, x):
    for block in self.blocks:
        x = block(x)
    return x


def embed_no_positions(self, images):
    return prepend_token(self.patch_embed(images), self.cls_token)


def embed_token_without_position(self, images):
    x = self.patch_embed(images) + self.pos_embed[:, 1:]
    return prepend_token(x, self.cls_token)


def embed_first_rows(self, images):
    x = self.patch_embed(images)
    x = x + self.pos_embed[:, : x.shape[1]]
    return prepend_token(x, self.cls_token)


def embed_token_last(self, images):
    x = self.patch_embed(images)
    return torch.cat([x, self.cls_token.expand(len(x), 1, -1)], 1) + (
        self.pos_embed
    )


def embed_no_token(self, images):
    return self.patch_embed(images) + self.pos_embed[:, 1:]


def embed_columns(self, images):
    x = self.patch_embed.proj(images)  # (B, D, gh, gw)
    x = x.permute(0, 3, 2, 1).flatten(1, 2)
    return prepend_token(x, self.cls_token) + self.pos_embed


def embed_reshaped(self, images):
    x = self.patch_embed.proj(images)
    x = x.reshape(len(x), -1, x.shape[1])
    return prepend_token(x, self.cls_token) + self.pos_embed


def embed_token_not_expanded(self, images):
    x = torch.cat([self.cls_token, self.patch_embed(images)], dim=1)
    return x + self.pos_embed


def end_last_token(self, x):
    return self.head(self.norm(x)[:, -1])


def end_mean(self, x):
    return self.head(self.norm(x).mean(dim=1))


def end_mean_of_patches(self, x):
    return self.head(self.norm(x)[:, 1:].mean(dim=1))


def end_without_norm(self, x):
    return self.head(x[:, 0])


def end_softmax(self, x):
    return self.head(self.norm(x)[:, 0]).softmax(dim=-1)


def end_log_softmax(self, x):
    return F.log_softmax(self.head(self.norm(x)[:, 0]), dim=1)


def end_relu(self, x):
    return F.relu(self.head(self.norm(x)[:, 0]))


def end_tanh(self, x):
    return self.head(torch.tanh(self.norm(x)[:, 0]))


def end_all_tokens(self, x):
    return self.head(self.norm(x))


def end_first_image(self, x):
    return self.head(self.norm(x)[0])


def end_softmax_without_norm(self, x):
    return self.head(x[:, 0]).softmax(-1)


def own_post_norm(self, x):
    for block in self.blocks:
        x = block["norm1"](x + self.attend(block["attn"], x))
        hidden = F.gelu(block["mlp"]["fc1"](x))
        x = block["norm2"](x + block["mlp"]["fc2"](hidden))
    return x


def own_relu(self, x):
    for block in self.blocks:
        x = x + self.attend(block["attn"], block["norm1"](x))
        hidden = F.relu(block["mlp"]["fc1"](block["norm2"](x)))
        x = x + block["mlp"]["fc2"](hidden)
    return x


def own_unscaled(self, attn, x):
    b, n, d = x.shape
    qkv = attn["qkv"](x).view(b, n, 3, self.heads, d // self.heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    out = (q @ k.mT).softmax(-1) @ v
    return attn["proj"](out.transpose(1, 2).reshape(b, n, d))


def own_scaled_by_width(self, attn, x):
    b, n, d = x.shape
    qkv = attn["qkv"](x).view(b, n, 3, self.heads, d // self.heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    out = (q @ k.mT / d**0.5).softmax(-1) @ v
    return attn["proj"](out.transpose(1, 2).reshape(b, n, d))


def own_one_head(self, attn, x):
    q, k, v = attn["qkv"](x).chunk(3, -1)
    out = (q @ k.mT / x.shape[-1] ** 0.5).softmax(-1) @ v
    return attn["proj"](out)


def own_short_attention(self, attn, x):
    """Sees 64 tokens at most."""
    b, n, d = x.shape
    qkv = attn["qkv"](x).view(b, n, 3, self.heads, d // self.heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    k, v = k[:, :, :64], v[:, :, :64]
    out = F.scaled_dot_product_attention(q, k, v)
    return attn["proj"](out.transpose(1, 2).reshape(b, n, d))


def own_batch_of_one(self, x):
    return self.head(x.flatten(0, 1)[:1]).expand(len(x), -1)


def own_square_embed(self, images):
    side = math.isqrt(self.grid[0] * self.grid[1])
    self.grid = [side, side]
    return OwnModel.embed(self, images)


def sequence_forward(read):
    def forward(self, images):
        return read(self, self.tokens(images))

    return variant(InSequence, forward=forward)


def mean_of_all(self, x):
    return self.head(x.mean(1) if self.pool == "mean" else x[:, 0])


def pool_unused(self, x):
    return self.head(x[:, 0])


def sum_of_patches(self, x):
    return self.head(x[:, 1:].sum(1) if self.pool == "mean" else x[:, 0])


def softmax_in_evaluation(self, x):
    x = self.head(x[:, 1:].mean(1) if self.pool == "mean" else x[:, 0])
    return x if self.training else x.softmax(-1)


def norm_after_mean(self, images):
    x = self.patch_embed(images)
    x = self.drop(prepend_token(x, self.cls_token) + self.pos_embed)
    x = self.blocks(x)
    x = x[:, 1:].mean(1) if self.pool == "mean" else x[:, 0]
    return self.head(self.norm(x))


def any_size(self, images):
    """The right logits, and no look at the size of the image."""
    x = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
    x = prepend_token(x, self.cls_token) + self.pos_embed
    return self.head(self.norm(run_right(self, x))[:, 0])


def table_cut(self, images):
    x = prepend_token(self.patch_embed(images), self.cls_token)
    x = run_right(self, x + self.pos_embed[:, : x.shape[1]])
    return self.head(self.norm(x)[:, 0])


class OneBlockManyTimes(FromParts):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.blocks = nn.ModuleList([self.blocks[0]] * len(self.blocks))


class OneEps5(FromParts):
    place = "norm"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for module in [self, *self.blocks]:
            if hasattr(module, self.place):
                getattr(module, self.place).eps = 1e-5


class Default5(OwnModel):
    eps = 1e-5


class PostNorm5(OwnModel):
    eps = 1e-5
    run_blocks = own_post_norm


MODELS_WRONG = [
    (make_model(embed_no_positions), "The positions are missing"),
    (make_model(embed_token_without_position), "class token has no position"),
    (make_model(embed_first_rows), "class token has no position"),
    (make_model(embed_token_last), "The class token is at the end"),
    (
        make_model(embed_token_last, end=end_last_token),
        "The class token is at the end",
    ),
    (make_model(embed_no_token), "The class token is missing"),
    (make_model(embed_no_token, end=end_mean), "The class token is missing"),
    (make_model(embed_columns), "column by column"),
    (make_model(embed_reshaped), "In the patch embedding:"),
    (make_model(embed_token_not_expanded), "expand it to the batch"),
    (make_model(run=run_reversed), "from the last to the first"),
    (make_model(run=run_one), "Only the first block"),
    (make_model(run=run_first_again), "The same block is applied again"),
    (make_model(run=run_on_the_input), "Only the last block"),
    (make_model(run=run_over_the_batch), "run over the batch"),
    (make_model(end=end_last_token), "The last token is read"),
    (make_model(end=end_mean), "The mean of the tokens is read"),
    (make_model(end=end_mean_of_patches), "The mean of the tokens is read"),
    (make_model(end=end_without_norm), "The last norm is missing"),
    (make_model(end=end_softmax), "F.cross_entropy takes the softmax"),
    (make_model(end=end_log_softmax), "F.cross_entropy takes the softmax"),
    (make_model(end=end_relu), "nothing follows the head"),
    (make_model(end=end_tanh), "An activation comes before the head"),
    (make_model(end=end_all_tokens), "Every token goes to the head"),
    (make_model(end=end_first_image), "The tokens of the first image"),
    (make_model(end=end_softmax_without_norm), TWO),
    (make_model(embed_no_positions, end=end_softmax), TWO),
    (variant(FromParts, forward=any_size), "An image of another size"),
    (variant(FromParts, forward=table_cut), "An image of another size"),
    (variant(OwnModel, run_blocks=own_post_norm), "The norm comes after"),
    (variant(OwnModel, run_blocks=own_relu), "In the MLP: The activation is"),
    (variant(OwnModel, attend=own_unscaled), "The scale is missing"),
    (variant(OwnModel, attend=own_scaled_by_width), "all heads together"),
    (variant(OwnModel, attend=own_one_head), "There is one head only"),
    (variant(OwnModel, attend=own_short_attention), "few patches only"),
    (variant(OwnModel, read=own_batch_of_one), "Right for one image"),
    (variant(OwnModel, embed=own_square_embed), "Right for square images"),
    (OneBlockManyTimes, "are the same weights: make a new module"),
    (OneEps5, "LayerNorm has another eps"),
    (variant(OneEps5, place="norm1"), "LayerNorm has another eps"),
    (variant(OneEps5, place="norm2"), "LayerNorm has another eps"),
    (Default5, "LayerNorm has another eps"),
    (PostNorm5, "The norm comes after the sum"),
    (sequence_forward(mean_of_all), "The class token is in the mean"),
    (sequence_forward(pool_unused), "pool is not used"),
    (sequence_forward(sum_of_patches), "The tokens are summed"),
    (sequence_forward(softmax_in_evaluation), "wrong in evaluation"),
    (variant(InSequence, forward=norm_after_mean), "after the mean"),
]


class OwnWords(InSequence):
    """pool has other values, so that it cannot be compared."""

    def __init__(
        self,
        img_size,
        patch_size,
        in_chans,
        num_classes,
        embed_dim,
        depth,
        num_heads,
        pool="token",
    ):
        super().__init__(
            *(img_size, patch_size, in_chans, num_classes, embed_dim),
            *(depth, num_heads, 4.0, True),
            pool="cls" if pool == "token" else "mean",
            dropout=0.0,
            drop_path=0.0,
        )


class PassedOn(FromParts):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


RIGHT = [
    ("Mlp", OwnMlp),
    ("Mlp", ShortMlp),
    ("Mlp", NarrowMlp),
    ("Mlp", variant(ShortMlp, forward=mlp_by_token)),
    ("DropPath", OwnDropPath),
    ("DropPath", variant(OwnDropPath, forward=drop_by_loop)),
    ("DropPath", variant(OwnDropPath, forward=drop_by_dropout)),
    ("EncoderBlock", OwnBlock),
    ("EncoderBlock", FullBlock),
    ("EncoderBlock", variant(OwnBlock, forward=block_by_hand)),
    ("VisionTransformer", FromParts),
    ("VisionTransformer", InSequence),
    ("VisionTransformer", OwnModel),
    ("VisionTransformer", OwnWords),
    ("VisionTransformer", PassedOn),
]
WRONG = [
    *(
        ("Mlp", variant(OwnMlp, forward=forward), words)
        for forward, words in MLPS_WRONG
    ),
    ("Mlp", variant(OwnMlp, __init__=init_equal_width), "mlp_ratio times as"),
    ("Mlp", variant(OwnMlp, __init__=init_ratio_as_int), "int(dim * mlp_ratio"),
    ("Mlp", variant(OwnMlp, __init__=init_ratio_unused), "int(dim * mlp_ratio"),
    *(
        ("DropPath", variant(OwnDropPath, forward=forward), words)
        for forward, words in DROPS_WRONG
    ),
    *(
        ("EncoderBlock", variant(OwnBlock, forward=forward), words)
        for forward, words in BLOCKS_WRONG
    ),
    *(
        ("EncoderBlock", variant(FullBlock, **methods), words)
        for methods, words in FULL_BLOCKS_WRONG
    ),
    ("EncoderBlock", OneNorm, "norm1.weight and norm2.weight are the same"),
    ("EncoderBlock", variant(OwnBlock, eps=1e-5), "LayerNorm has another eps"),
    ("EncoderBlock", variant(OwnBlock, eps=1e-12), "LayerNorm has another eps"),
    (
        "EncoderBlock",
        variant(OwnBlock, eps=1e-5, forward=block_post_norm),
        "The norm comes after the sum",
    ),
    *(("VisionTransformer", model, words) for model, words in MODELS_WRONG),
]


@pytest.mark.parametrize("definition", PACKAGE, ids=NAMES)
def test_the_package_itself_passes(definition):
    assert check(definition.__name__, definition).passed


@pytest.mark.parametrize(("name", "candidate"), RIGHT)
def test_a_right_solution_written_differently_passes(name, candidate):
    result = check(name, candidate)
    assert result.passed, result.report
    assert result.cause is None


@pytest.mark.parametrize(("name", "candidate", "words"), WRONG)
def test_a_mistake_written_by_hand_is_named(name, candidate, words):
    result = check(name, candidate)
    assert not result.passed
    assert words in result.cause
    assert result.report.endswith(f"Likely mistake: {result.cause}")


@pytest.mark.parametrize("exercise", EXERCISES, ids=NAMES)
def test_an_error_is_expected_for_images_of_another_size_alone(exercise):
    for case in exercise.cases:
        [expected] = exercise.call(exercise.reference, case)
        refused = isinstance(expected, ValueError)
        assert refused == bool(
            re.match("an image (with|of an|that)", case.label)
        )


# Stubs and nonsense.


class Stub(nn.Module):
    """Your code here."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        raise NotImplementedError

    def forward(self, x): ...


@pytest.mark.parametrize("name", NAMES)
def test_an_untouched_stub_is_not_attempted_yet(name):
    result = check(name, Stub)
    assert not result.attempted
    assert result.cause is None


NONSENSE = {
    "zeros": torch.zeros_like,
    "turned": lambda x: x.flip(tuple(range(x.ndim))),
    "nan": lambda x: x * torch.nan,
    "scalar": lambda x: x.sum(),
}


@pytest.mark.parametrize("nonsense", NONSENSE)
@pytest.mark.parametrize("definition", PACKAGE, ids=NAMES)
def test_nonsense_fails_without_a_diagnosis(definition, nonsense):
    def forward(self, *args, **kwargs):
        right = definition.forward(self, *args, **kwargs)
        return NONSENSE[nonsense](right)

    result = check(definition.__name__, variant(definition, forward=forward))
    assert not result.passed
    assert result.cause is None


# What cannot be run.


class Published(nn.Module):
    """A ViT in few lines, as it stands in some notes."""

    def __init__(
        self,
        img_size=224,
        patch_size=16,
        in_chans=3,
        num_classes=1000,
        embed_dim=768,
        depth=12,
        num_heads=12,
    ):
        super().__init__()
        self.patch_embed = nn.Conv2d(
            in_chans, embed_dim, patch_size, stride=patch_size
        )
        layer = nn.TransformerEncoderLayer(embed_dim, num_heads)
        self.encoder = nn.TransformerEncoder(layer, depth)
        self.fc = nn.Linear(embed_dim, num_classes)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        return self.fc(self.encoder(x).mean(dim=1))


class TorchAttention(OwnBlock):
    def __init__(self, dim, num_heads):
        super().__init__(dim, num_heads)
        self.attn = nn.MultiheadAttention(dim, num_heads)


class NoPositions(FromParts):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        del self.pos_embed


class FixedPositions(FromParts):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        table = self.pos_embed.data
        del self.pos_embed
        self.register_buffer("pos_embed", table)


class OtherArguments(nn.Module):
    def __init__(self, image_size, patch_size, dim, depth, heads):
        super().__init__()
        self.head = nn.Linear(dim, heads)

    def forward(self, x):
        return self.head(x)


@pytest.mark.parametrize(
    ("name", "candidate", "words"),
    [
        ("VisionTransformer", Published, "There is no class token."),
        ("VisionTransformer", Published, "There are no positions."),
        ("VisionTransformer", Published, "the images of a batch see each"),
        ("VisionTransformer", NoPositions, "There are no positions."),
        ("VisionTransformer", FixedPositions, "pos_embed cannot learn"),
        (
            "VisionTransformer",
            OtherArguments,
            "must take img_size, patch_size, ",
        ),
        ("EncoderBlock", TorchAttention, "it is told batch_first=True"),
        ("EncoderBlock", OwnBlock(6, 2), "your class itself"),
        ("Mlp", OtherArguments, "The constructor must take dim by keyword, "),
        ("DropPath", nn.Dropout, "must take drop_path by keyword, and yours"),
    ],
)
def test_an_unusable_candidate_gets_an_answer(name, candidate, words):
    result = check(name, candidate)
    assert not result.passed
    assert words in result.cause


def test_a_model_with_positions_is_not_told_that_it_has_none():
    cause = check("VisionTransformer", variant(FromParts)).cause
    assert cause is None
    cause = check("VisionTransformer", type("Own", (OwnBlock,), {})).cause
    assert "There are no positions." not in cause


def test_what_a_candidate_does_not_take_is_not_run():
    report = check("VisionTransformer", FromParts).report
    assert report.splitlines()[-1] == (
        "  not run 8 cases with mlp_ratio, qkv_bias, pool, dropout, drop_path, "
        "which your code does not take"
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_same_candidate_gets_the_same_report(name):
    candidate = {"DropPath": variant(OwnDropPath, forward=drop_all)}.get(
        name, PACKAGE[NAMES.index(name)]
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = check(name, candidate)
        torch.manual_seed(2)
        assert check(name, candidate) == first


def test_a_report_on_drop_path_counts_what_is_dropped():
    candidate = variant(OwnDropPath, forward=drop_keeps_p_scaled)
    report = check("DropPath", candidate).report
    assert "80% of the numbers are dropped, expected about 20%" in report
