"""The bug museum: each bug passes a test of shapes and fails its proof.

The page book/bug_museum.md quotes the wrong forms and the proofs from here.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from weakref import WeakSet

import pytest
import timm
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from oracles import has_all_gradients, random, randomize, tokens_that_change
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer as timm_vit
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import AdamW
from torch.utils.data import DataLoader
from torchvision.models import VisionTransformer as torchvision_vit
from torchvision.models import vit_b_16
from torchvision.models.swin_transformer import (
    PatchMerging as TorchvisionMerging,
)
from torchvision.models.swin_transformer import (
    SwinTransformerBlock as TorchvisionBlock,
)
from torchvision.transforms import v2

from vit_lessons import (
    SWIN_PRESETS,
    VIT_PRESETS,
    ConvStem,
    DistilledVisionTransformer,
    EncoderBlock,
    HybridVisionTransformer,
    MaskedAutoencoder,
    Mlp,
    MultiHeadSelfAttention,
    PatchEmbed,
    PatchMerging,
    RepeatedAugmentation,
    SmallCNN,
    SwinBlock,
    SwinTransformer,
    VisionTransformer,
    WindowAttention,
    ask_teacher,
    attention_distance,
    attention_rollout,
    attention_weights,
    class_attention,
    class_colors,
    create_model,
    deit_augmentation,
    deit_mix,
    draw_mask,
    equivariance_error,
    evaluate,
    fit,
    hard_distillation_loss,
    is_part_of,
    layerwise_learning_rates,
    learning_rate_groups,
    load_pretrained,
    mean_color_classes,
    normalize_patches,
    pad_to_windows,
    paint_prediction,
    parameter_groups,
    patch_distances,
    patchify,
    place_images,
    pool,
    position_similarity,
    prepend_token,
    recorded,
    resize_pos_embed,
    scaled_dot_product_attention,
    shift_mask,
    shuffle_patches,
    sincos_pos_embed,
    soft_distillation_loss,
    swin_from_torchvision,
    train_one_epoch,
    unpatchify,
    warmup_cosine,
    window_partition,
    window_reverse,
)
from vit_lessons.data import ImageDataset, load_photograph, split_digits
from vit_lessons.weights import Preprocessing

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "book" / "bug_museum.md").read_text(encoding="utf-8")


def assert_equal(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def small(model_class: Callable[..., nn.Module]) -> nn.Module:
    """A model for images of 8 x 12 pixels, with redrawn weights."""
    model = model_class((8, 12), 4, embed_dim=12, depth=2, num_heads=3)
    return randomize(model).eval()


def fresh(model_class: Callable[..., nn.Module]) -> nn.Module:
    """The same model with the weights it starts from."""
    torch.manual_seed(0)
    model = model_class((8, 12), 4, embed_dim=12, depth=2, num_heads=3)
    return model.double().eval()


def photographs() -> Tensor:
    """Two photographs, (2, 3, 224, 224), in [-1, 1]."""
    names = ("china", "flower")
    return torch.stack([load_photograph(name, 224) for name in names]) * 2 - 1


def miss(wrong: Tensor, right: Tensor) -> float:
    """How far apart, in multiples of the size of the right one."""
    return ((wrong - right).norm() / right.norm()).item()


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def parameters(build: Callable[[], nn.Module]) -> str:
    with torch.device("meta"):
        return f"{sum(p.numel() for p in build().parameters()):,}"


# --- Chapter 01: patch embedding ---------------------------------------


def patches_by_reshape(images, patch_size):
    b, c, h, w = images.shape
    n = (h // patch_size) * (w // patch_size)
    # wrong: takes row after row
    return images.reshape(b, n, c * patch_size**2)


def patch_0_holds_the_pixels_of_its_square(cut):
    images = torch.arange(3 * 224 * 224).view(1, 3, 224, 224)
    square = images[:, :, :16, :16]
    assert torch.isin(cut(images, 16)[0, 0], square).all()


def share_of_the_reshaped_patch_in_its_square() -> list[str]:
    images = torch.arange(3 * 224 * 224).view(1, 3, 224, 224)
    patch = patches_by_reshape(images, 16)[0, 0]
    assert patch.max() < 224 * 224, "all of it is red"
    inside = torch.isin(patch, images[:, :, :16, :16]).float().mean()
    return [percent(inside)]


def patches_with_channels_last(images, patch_size):
    return rearrange(
        images,
        # wrong: not (c p1 p2)
        "b c (gh p1) (gw p2) -> b (gh gw) (p1 p2 c)",
        p1=patch_size,
        p2=patch_size,
    )


def patches_fit_the_kernel_of_a_convolution(cut):
    conv = randomize(nn.Conv2d(3, 8, 4, stride=4))
    images = random(2, 3, 12, 8)
    tokens = F.linear(cut(images, 4), conv.weight.flatten(1), conv.bias)
    assert_equal(tokens, conv(images).flatten(2).transpose(1, 2))


def miss_of_channels_last() -> list[str]:
    kernel, images = random(768, 768), random(1, 3, 224, 224, seed=2)
    right = patchify(images, 16) @ kernel.T
    wrong = patches_with_channels_last(images, 16) @ kernel.T
    return [f"{miss(wrong, right):.1f}"]


class PatchEmbedWithoutACheck(nn.Module):
    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__()
        self.proj = nn.Conv2d(
            in_chans, embed_dim, patch_size, stride=patch_size
        )

    def forward(self, images):
        # wrong: H or W may leave a rest
        x = self.proj(images)
        return x.flatten(2).transpose(1, 2)


def every_pixel_counts_or_is_refused(embed_class):
    embed = randomize(embed_class(16, 3, 8))
    images = random(1, 3, 224, 220).requires_grad_()
    try:
        embed(images).sum().backward()
    except ValueError:
        return
    assert images.grad.all()  # no pixel without a gradient


def pixels_without_a_gradient() -> list[str]:
    embed = randomize(PatchEmbedWithoutACheck(16, 3, 8))
    images = random(1, 3, 224, 220).requires_grad_()
    tokens = embed(images)
    tokens.sum().backward()
    unseen = (images.grad == 0).double().mean()
    return [f"{tokens.shape[1]}", percent(unseen)]


# --- Chapter 02: class token -------------------------------------------


def mean_of_all_tokens(x):
    # wrong: with the class token
    return x.mean(dim=1)


def the_class_token_is_not_in_the_mean(mean):
    x = random(2, 17, 8)
    other = x.clone()
    other[:, 0] = random(2, 8, seed=2)
    assert_equal(mean(x), mean(other))


def share_of_the_class_token() -> list[str]:
    def share(tokens: int) -> float:
        x = torch.zeros(1, tokens, 1, dtype=torch.float64, requires_grad=True)
        mean_of_all_tokens(x).backward()
        return x.grad[0, 0].item()

    return [percent(share(1 + 196)), percent(share(1 + 16))]


class TokenForEachPlaceInTheBatch(nn.Module):
    def __init__(self, batch_size, dim):
        super().__init__()
        # wrong: the size of one batch
        shape = (batch_size, 1, dim)
        self.cls_token = nn.Parameter(torch.zeros(shape))

    def forward(self, x):
        return torch.cat([self.cls_token, x], dim=1)


class TokenForAllImages(nn.Module):
    def __init__(self, batch_size, dim):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, x):
        return prepend_token(x, self.cls_token)  # expands it


def equal_images_get_equal_tokens(layer_class):
    layer = randomize(layer_class(batch_size=2, dim=8))
    image = random(1, 4, 8)
    first, second = layer(image.expand(2, -1, -1))
    assert_equal(first, second)


def numbers_in_the_class_token() -> list[str]:
    classes = (TokenForEachPlaceInTheBatch, TokenForAllImages)
    return [parameters(lambda c=c: c(32, 768)) for c in classes]


def token_from_randn(dim):
    # wrong: std 1
    return nn.Parameter(torch.randn(1, 1, dim))


def token_of_the_package(dim: int) -> nn.Parameter:
    model = VisionTransformer(16, 16, embed_dim=dim, depth=1)
    return model.cls_token


def the_token_starts_smaller_than_a_patch(make_token):
    torch.manual_seed(0)
    patches = PatchEmbed()(photographs())  # (2, 196, 768)
    size = patches.norm(dim=-1).mean()
    assert make_token(768).norm() < 0.1 * size


@torch.no_grad()
def size_of_a_token_from_randn() -> list[str]:
    torch.manual_seed(0)
    size = PatchEmbed()(photographs()).norm(dim=-1).mean()
    return [f"{token_from_randn(768).norm() / size:.1f}"]


# --- Chapter 03: position embedding ------------------------------------


class VitWithoutPositions(VisionTransformer):
    def embed(self, images):
        x = self.patch_embed(images)
        # wrong: no pos_embed
        return prepend_token(x, self.cls_token)


def shuffled_patches_give_other_logits(model_class):
    model, images = small(model_class), random(2, 3, 8, 12)
    patches = patchify(images, 4)[:, [3, 1, 5, 0, 2, 4]]
    shuffled = unpatchify(patches, 4, (2, 3))
    gap = (model(images) - model(shuffled)).abs().max()
    assert gap > 1e-6


def effect_of_shuffled_patches() -> list[str]:
    """In multiples of what another image does to the logits."""

    def effect(model_class: Callable) -> float:
        model, images = small(model_class), random(2, 3, 8, 12)
        patches = patchify(images, 4)[:, [3, 1, 5, 0, 2, 4]]
        logits = model(images)
        moved = model(unpatchify(patches, 4, (2, 3))) - logits
        return (moved[0].norm() / (logits[1] - logits[0]).norm()).item()

    forms = (VitWithoutPositions, VisionTransformer)
    return [f"{effect(form):.2f}" for form in forms]


def resize_to_a_square(pos_embed, grid, new_grid):
    needed = new_grid[0] * new_grid[1]
    old_side = int((pos_embed.shape[1] - 1) ** 0.5)
    # wrong: a guess
    new_side = int(needed**0.5)
    if new_side == old_side:
        return pos_embed
    token, table = pos_embed[:, :1], pos_embed[:, 1:]
    table = rearrange(table, "1 (h w) d -> 1 d h w", h=old_side)
    size = (new_side, new_side)
    table = F.interpolate(table, size, mode="bicubic")
    table = rearrange(table, "1 d h w -> 1 (h w) d")
    return torch.cat([token, table], dim=1)


def patches_of_one_row_stay_in_one_row(resize):
    row = torch.arange(14.0).repeat_interleave(14)  # of each patch
    table = F.pad(row, (1, 0)).view(1, 197, 1)  # class token first
    for gh, gw in (13, 16), (14, 28), (7, 28), (12, 27):
        new = resize(table, (14, 14), (gh, gw))
        assert new.shape == (1, 1 + gh * gw, 1)
        rows = new[0, 1:, 0].view(gh, gw)
        assert (rows - rows[:, :1]).abs().max() < 1e-4


def rows_of_tables_guessed_square() -> list[str]:
    table = random(1, 197, 4)

    def rows(resize: Callable, grid: tuple[int, int]) -> str:
        return str(resize(table, (14, 14), grid).shape[1])

    return [
        rows(form, grid)
        for grid in ((13, 16), (14, 28))
        for form in (resize_to_a_square, resize_pos_embed)
    ]


def resize_with_a_guessed_prefix(pos_embed, grid, new_grid):
    side = int(pos_embed.shape[1] ** 0.5)
    # wrong: a guess
    prefix = pos_embed.shape[1] - side**2
    tokens, table = pos_embed[:, :prefix], pos_embed[:, prefix:]
    table = rearrange(table, "1 (h w) d -> 1 d h w", h=side)
    table = F.interpolate(table, new_grid, mode="bicubic")
    table = rearrange(table, "1 d h w -> 1 (h w) d")
    return torch.cat([tokens, table], dim=1)


def the_class_token_keeps_its_row(resize):
    table = random(1, 1 + 13 * 15, 4)
    new = resize(table, (13, 15), (26, 30))
    assert new.shape == (1, 1 + 26 * 30, 4)
    assert new[:, 0].equal(table[:, 0])


def rows_of_a_table_with_a_guessed_prefix() -> list[str]:
    table = random(1, 1 + 13 * 15, 4)
    forms = (resize_with_a_guessed_prefix, resize_pos_embed)
    rows = [form(table, (13, 15), (26, 30)).shape[1] for form in forms]
    assert table.shape[1] == 14**2
    return [str(table.shape[1]), *map(str, rows)]


def resize_if_the_table_is_shorter(pos_embed, grid, new_grid):
    needed = 1 + new_grid[0] * new_grid[1]
    if pos_embed.shape[1] >= needed:
        # wrong: the upper rows only
        return pos_embed[:, :needed]
    return resize_pos_embed(pos_embed, grid, new_grid)


def the_last_row_is_still_the_last(resize):
    row = torch.arange(24.0).repeat_interleave(24)  # of each patch
    table = F.pad(row, (1, 0)).view(1, 577, 1)
    rows = resize(table, (24, 24), (14, 14))[0, 1:].view(14, 14)
    assert rows[-1].min() > 22


def part_of_the_table_that_is_cut_off() -> list[str]:
    row = torch.arange(24.0).repeat_interleave(24)
    table = F.pad(row, (1, 0)).view(1, 577, 1)
    new = resize_if_the_table_is_shorter(table, (24, 24), (14, 14))
    last = int(new.max()) + 1  # counted from 1
    return [f"{last}", "24", percent(1 - (new.shape[1] - 1) / 24**2, 0)]


# --- Chapter 04: attention ---------------------------------------------


def block_without_batch_first(dim, num_heads):
    # wrong: no batch_first=True
    return nn.TransformerEncoderLayer(
        dim, num_heads, dim_feedforward=4 * dim, dropout=0.0
    )


def every_token_sees_its_own_image_only(block_class):
    block = randomize(block_class(12, 3))
    x = random(2, 5, 12)  # two images of five tokens
    changed = tokens_that_change(block, x, (1, 2))
    assert changed == [[1, token] for token in range(5)]


@torch.no_grad()
def what_another_image_changes() -> list[str]:
    torch.manual_seed(0)
    blocks = block_without_batch_first(48, 4), EncoderBlock(48, 4)
    x = torch.randn(2, 16, 48)
    other = x.clone()
    other[1] = torch.randn(16, 48)
    gaps = [(block(x) - block(other))[0].abs().max() for block in blocks]
    changed = tokens_that_change(
        blocks[0].double(), x.double(), (slice(None), 5)
    )
    tokens = {token for _, token in changed}
    return [*(f"{gap:.1f}" for gap in gaps), f"{len(tokens)}"]


def softmax_over_the_queries(q, k, v):
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    # wrong: over queries
    weights = scores.softmax(dim=-2)
    return weights @ v


def equal_values_are_their_own_average(attention):
    q, k = random(2, 3, 5, 4, seed=1), random(2, 3, 5, 4, seed=2)
    ones = torch.ones(2, 3, 5, 4, dtype=torch.float64)
    assert_equal(attention(q, k, ones), ones)


def averages_of_ones() -> list[str]:
    q, k = random(2, 3, 5, 4, seed=1), random(2, 3, 5, 4, seed=2)
    ones = torch.ones(2, 3, 5, 4, dtype=torch.float64)
    out = softmax_over_the_queries(q, k, ones)
    return [f"{out.min():.1f}", f"{out.max():.1f}"]


def attention_without_the_scale(q, k, v):
    # wrong: not divided
    scores = q @ k.transpose(-2, -1)
    return scores.softmax(dim=-1) @ v


def attention_equals_the_one_of_pytorch(attention):
    q, k, v = random(3, 2, 3, 5, 64)
    expected = F.scaled_dot_product_attention(q, k, v)
    assert_equal(attention(q, k, v), expected)


def largest_weights() -> list[str]:
    q, k = random(1, 1000, 64, seed=1), random(1, 197, 64, seed=2)
    eye = torch.eye(197, dtype=torch.float64)  # the output is the weights
    outputs = (
        attention_without_the_scale(q, k, eye),
        attention_of_the_package(q, k, eye),
    )
    return [f"{x.amax(-1).mean():.2f}" for x in outputs]


def attention_of_the_package(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v)[0]


class AttentionWithMixedHeads(MultiHeadSelfAttention):
    def forward(self, x):
        q, k, v = rearrange(
            self.qkv(x),
            "b n (three h d) -> three b h n d",
            three=3,
            h=self.num_heads,
        )
        out, _ = scaled_dot_product_attention(q, k, v)
        # wrong: h before N
        return self.proj(out.reshape(x.shape))


def shuffled_tokens_give_shuffled_outputs(layer_class):
    layer, x = randomize(layer_class(12, 3)), random(2, 5, 12)
    order = [3, 0, 4, 1, 2]
    assert_equal(layer(x[:, order]), layer(x)[:, order])


def miss_of_mixed_heads() -> list[str]:
    x = random(2, 197, 48)
    forms = (AttentionWithMixedHeads, MultiHeadSelfAttention)
    wrong, right = (randomize(form(48, 4))(x) for form in forms)
    return [f"{miss(wrong, right):.1f}"]


class AttentionWithHeadsFirst(MultiHeadSelfAttention):
    def forward(self, x):
        q, k, v = rearrange(
            self.qkv(x),
            # wrong: not (three h d)
            "b n (h three d) -> three b h n d",
            three=3,
            h=self.num_heads,
        )
        out, _ = scaled_dot_product_attention(q, k, v)
        return self.proj(rearrange(out, "b h n d -> b n (h d)"))


def weights_of_timm_give_the_outputs_of_timm(layer_class):
    theirs = randomize(timm.layers.Attention(12, 3, qkv_bias=True))
    ours = layer_class(12, 3).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = random(2, 5, 12)
    assert_equal(ours(x), theirs(x))


def miss_of_heads_first() -> list[str]:
    x = random(2, 197, 48)
    forms = (AttentionWithHeadsFirst, MultiHeadSelfAttention)
    wrong, right = (randomize(form(48, 4))(x) for form in forms)
    return [f"{miss(wrong, right):.1f}"]


class CausalAttention(MultiHeadSelfAttention):
    def forward(self, x):
        later = x.new_ones(x.shape[1], x.shape[1]).triu(1).bool()
        bias = torch.zeros_like(later, dtype=x.dtype)
        bias = bias.masked_fill(later, float("-inf"))
        # wrong: a mask
        return super().forward(x, bias)


def every_token_sees_every_token(layer_class):
    layer, x = randomize(layer_class(12, 3)), random(1, 5, 12)
    last = (0, 4)
    changed = tokens_that_change(layer, x, last)
    assert changed == [[0, token] for token in range(5)]


def what_a_causal_mask_hides() -> list[str]:
    layer = randomize(CausalAttention(12, 3))
    value = layer.qkv.weight[24:], layer.qkv.bias[24:]
    x = random(1, 197, 12)
    alone = layer.proj(F.linear(x[:, 0], *value))
    assert_equal(layer(x)[:, 0], alone)  # token 0 sees itself alone
    hidden = torch.ones(197, 197).triu(1).mean()
    return [percent(hidden), "1"]


class AttentionOfFixedLength(MultiHeadSelfAttention):
    def __init__(self, dim, num_heads, length=196):
        super().__init__(dim, num_heads)
        self.length = length  # the patches of an image

    def forward(self, x):
        place = torch.arange(x.shape[1], device=x.device)
        bias = torch.zeros_like(place, dtype=x.dtype)
        # wrong: an image has no end
        bias[place >= self.length] = float("-inf")
        return super().forward(x, bias)


def the_last_of_197_tokens_is_seen(layer_class):
    layer, x = randomize(layer_class(12, 3)), random(1, 197, 12)
    last = (0, 196)
    changed = tokens_that_change(layer, x, last)
    assert len(changed) == 197


def patches_beyond_the_length() -> list[str]:
    layer, numbers = randomize(AttentionOfFixedLength(12, 3)), []
    for side in 14, 24:
        x = random(1, 1 + side**2, 12).requires_grad_()
        layer(x)[0, 0].sum().backward()
        unseen = x.grad[0].eq(0).all(dim=-1).sum().item()
        numbers += [f"{unseen}", f"{side**2}"]
    return numbers


# --- Chapter 05: MLP ---------------------------------------------------


class NarrowMlp(nn.Module):
    def __init__(self, in_features, hidden_features=None):
        super().__init__()
        # wrong: not 4 * in
        hidden = hidden_features or in_features
        self.fc1 = nn.Linear(in_features, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, in_features)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


def the_mlp_of_the_base_model_has_4722432_weights(mlp_class):
    with torch.device("meta"):
        mlp = mlp_class(768)
    assert sum(p.numel() for p in mlp.parameters()) == 4_722_432


def weights_of_narrow_mlps() -> list[str]:
    narrow, wide = (parameters(lambda c=c: c(768)) for c in (NarrowMlp, Mlp))
    model = parameters(VisionTransformer)
    missing = 12 * (int(wide.replace(",", "")) - int(narrow.replace(",", "")))
    left = 1 - missing / int(model.replace(",", ""))
    return [narrow, wide, percent(left, 0)]


class ReluMlp(Mlp):
    def forward(self, x):
        # wrong: no GELU
        return self.fc2(F.relu(self.fc1(x)))


class TanhMlp(Mlp):
    def forward(self, x):
        # wrong: an approximation
        x = F.gelu(self.fc1(x), approximate="tanh")
        return self.fc2(x)


def the_mlp_equals_the_one_of_timm(mlp_class):
    theirs = randomize(timm.layers.Mlp(12, 48))
    ours = mlp_class(12).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = random(2, 5, 12)
    assert_equal(ours(x), theirs(x))


def gap_to_gelu(activation: Callable[[Tensor], Tensor]) -> float:
    x = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    return (activation(x) - F.gelu(x)).abs().max().item()


def gap_of_relu() -> list[str]:
    return [f"{gap_to_gelu(F.relu):.2f}"]


def gap_of_tanh_gelu() -> list[str]:
    gap = gap_to_gelu(partial(F.gelu, approximate="tanh"))
    return [f"{gap:.4f}"]


# --- Chapter 06: encoder block -----------------------------------------


class BlockWithOneState(EncoderBlock):
    def forward(self, x):
        z = self.attn(self.norm1(x)) + x
        # wrong: not norm2(z)
        return self.mlp(self.norm2(x)) + z


def the_block_equals_the_one_of_timm(block_class):
    theirs = randomize(
        timm.models.vision_transformer.Block(12, 3, qkv_bias=True)
    )
    ours = block_class(12, 3).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = 0.1 * random(2, 5, 12)
    assert_equal(ours(x), theirs(x))


def miss_of_one_state() -> list[str]:
    x = random(2, 197, 48)
    forms = (BlockWithOneState, EncoderBlock)
    wrong, right = (randomize(form(48, 4))(x) for form in forms)
    return [f"{miss(wrong, right):.1f}"]


class BlockWithDefaultEps(EncoderBlock):
    def __init__(self, dim, num_heads):
        super().__init__(dim, num_heads)
        # wrong: eps is 1e-5
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)


def effect_of_eps() -> list[str]:
    def effect(std: float) -> float:
        x = random(197, 768)
        x = std * F.layer_norm(x, (768,), eps=0)
        return miss(*(F.layer_norm(x, (768,), eps=e) for e in (1e-5, 1e-6)))

    return [f"{effect(1):.1e}", percent(effect(0.02))]


class PostNormBlock(EncoderBlock):
    def forward(self, x):
        # wrong: norm after the sum
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


@torch.no_grad()
def silent_branches_leave_the_tokens_alone(block_class):
    block, x = randomize(block_class(12, 3)), random(2, 5, 12)
    for name, parameter in block.named_parameters():
        if "norm" not in name:
            parameter.zero_()
    assert_equal(block(x), x)


@torch.no_grad()
def what_is_left_of_the_input() -> list[str]:
    def size(block: nn.Module) -> float:
        torch.manual_seed(0)
        for name, parameter in block.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        x = torch.randn(2, 197, 48)
        return block(100 * x / x.std()).std().item()

    return [
        f"{size(form(48, 4)):.0f}" for form in (PostNormBlock, EncoderBlock)
    ]


def one_block_many_times(dim, num_heads, depth):
    block = EncoderBlock(dim, num_heads)
    # wrong: the same object
    return nn.Sequential(*[block] * depth)


def blocks_of_the_package(dim: int, num_heads: int, depth: int) -> nn.Module:
    model = VisionTransformer(
        16, embed_dim=dim, num_heads=num_heads, depth=depth
    )
    return nn.Sequential(*model.blocks)


def three_blocks_have_three_times_the_weights(stack):
    def count(depth):
        blocks = stack(12, 3, depth)
        return sum(p.numel() for p in blocks.parameters())

    assert count(3) == 3 * count(1)


def weights_of_twelve_blocks() -> list[str]:
    forms = (one_block_many_times, blocks_of_the_package)
    return [parameters(lambda form=form: form(768, 12, 12)) for form in forms]


class BlockWithOneNorm(EncoderBlock):
    def __init__(self, dim, num_heads):
        super().__init__(dim, num_heads)
        # wrong: one object, two places
        self.norm2 = self.norm1


def each_norm_has_its_own_weights(block_class):
    block = block_class(12, 3)
    names = ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"]
    state = {name: random(12, seed=i) for i, name in enumerate(names)}
    block.double().load_state_dict(state, strict=False)
    for name in names:
        assert_equal(block.state_dict()[name], state[name])


def effect_of_one_norm() -> list[str]:
    forms = (BlockWithOneNorm, EncoderBlock)
    right = randomize(EncoderBlock(48, 4))
    wrong = BlockWithOneNorm(48, 4).double()
    wrong.load_state_dict(right.state_dict(), strict=True)
    x = random(2, 197, 48)
    return [
        *(parameters(lambda form=form: form(768, 12)) for form in forms),
        f"{miss(wrong(x), right(x)):.1f}",
    ]


# --- Chapter 07: Vision Transformer ------------------------------------


class VitWithoutFinalNorm(VisionTransformer):
    def forward_features(self, images, *, num_queries=None):
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        # wrong: no self.norm
        return x


def every_parameter_has_a_gradient(model_class):
    model = small(model_class)
    assert has_all_gradients(model, model(random(2, 3, 8, 12)))


@torch.no_grad()
def sizes_of_what_the_head_reads() -> list[str]:
    x = F.interpolate(photographs(), (64, 64), mode="area")

    def size(model_class: Callable) -> float:
        torch.manual_seed(0)
        model = model_class(64, embed_dim=192, num_heads=3)
        return model.forward_features(x)[:, 0].std().item()

    forms = (VitWithoutFinalNorm, VisionTransformer)
    return [f"{size(form):.1f}" for form in forms]


def equal_on_fresh_weights(model_class):
    right, ours = fresh(VisionTransformer), fresh(model_class)
    # wrong: the head is 0
    ours.load_state_dict(right.state_dict())
    images = random(2, 3, 8, 12)
    return torch.allclose(ours(images), right(images))


def equal_on_redrawn_weights(model_class):
    right, ours = randomize(fresh(VisionTransformer)), fresh(model_class)
    ours.load_state_dict(right.state_dict())
    images = random(2, 3, 8, 12)
    return torch.allclose(ours(images), right(images))


def the_test_finds_each_broken_model(test):
    assert test(VisionTransformer)
    assert not test(VitWithoutPositions)
    assert not test(VitWithoutFinalNorm)


def largest_fresh_logit() -> list[str]:
    images = random(2, 3, 8, 12)
    forms = VisionTransformer, VitWithoutPositions, VitWithoutFinalNorm
    logits = torch.stack([fresh(form)(images) for form in forms])
    return ["0" if logits.eq(0).all() else f"{logits.abs().max()}"]


class FortyLineVit(nn.Module):
    def __init__(self, img_size, patch_size, embed_dim, depth, num_heads):
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, patch_size, patch_size)
        layers = [
            # wrong: batch second, norm last
            nn.TransformerEncoderLayer(embed_dim, num_heads)
            for _ in range(depth)
        ]
        self.blocks = nn.Sequential(*layers)
        # wrong: not ten
        self.head = nn.Linear(embed_dim, 1000)

    def forward(self, images):
        x = self.proj(images)  # (B, D, gh, gw)
        x = x.flatten(2).transpose(1, 2)  # (B, N, D)
        # wrong: no positions
        x = self.blocks(x)
        return self.head(x.mean(dim=1))


ten_class_vit = partial(VisionTransformer, num_classes=10)


def an_image_alone_has_the_logits_it_has_in_a_batch(model_class):
    model, images = small(model_class), random(2, 3, 8, 12)
    assert_equal(model(images[:1]), model(images)[:1])


def ten_classes_have_ten_logits(model_class):
    logits = small(model_class)(random(2, 3, 8, 12))
    assert logits.shape == (2, 10)


def losses_of_knowing_nothing() -> list[str]:
    def loss(classes: int) -> float:
        label = torch.tensor([3])
        return F.cross_entropy(torch.zeros(1, classes), label).item()

    return [f"{loss(classes):.1f}" for classes in (1000, 10)]


def loss_on_ten_classes(model_class: Callable) -> Tensor:
    logits = small(model_class)(random(2, 3, 8, 12))
    return F.cross_entropy(logits, torch.tensor([3, 9]))


# --- Chapter 08: training ----------------------------------------------


def loader_of_raw_pixels(images, labels):
    # wrong: still from 0 to 255
    pixels = images.float()
    return DataLoader(ImageDataset(pixels, labels), batch_size=64)


def loader_of_normalized_pixels(images: Tensor, labels: Tensor) -> DataLoader:
    std, mean = torch.std_mean(images / 255, dim=(0, 2, 3))
    finish = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean.tolist(), std.tolist()),
        ]
    )
    return DataLoader(ImageDataset(images, labels, finish), batch_size=64)


def each_channel_has_mean_0_and_deviation_1(make_loader):
    torch.manual_seed(0)
    dark = (64 * torch.rand(32, 3, 8, 12)).to(torch.uint8)
    x, _ = next(iter(make_loader(dark, torch.zeros(32))))
    std, mean = torch.std_mean(x, dim=(0, 2, 3))
    assert mean.abs().max() < 1e-3
    assert (std - 1).abs().max() < 1e-3


@torch.no_grad()
def tokens_of_raw_pixels() -> list[str]:
    """Their sizes, and how much they point in one direction."""
    images = (255 * (photographs() + 1) / 2).to(torch.uint8)
    torch.manual_seed(0)
    model = VisionTransformer(depth=1)  # the blocks are not called
    sizes, cosines = [], []
    for make_loader in loader_of_raw_pixels, loader_of_normalized_pixels:
        x, _ = next(iter(make_loader(images, torch.zeros(2))))
        tokens = model.patch_embed(x).flatten(0, 1)
        sizes.append(tokens.std())
        tokens = F.normalize(tokens, dim=-1)
        pairs = len(tokens) * (len(tokens) - 1)
        cosines.append(((tokens @ tokens.T).sum() - len(tokens)) / pairs)
    return [
        *(f"{size:.2g}" for size in (*sizes, model.pos_embed.std())),
        *(f"{cosine:.1f}" for cosine in cosines),
    ]


def augment_a_batch(images):
    crop = v2.RandomCrop(images.shape[-1], padding=4)
    # wrong: one draw for all
    return crop(images)


def augment_each_image(images: Tensor) -> Tensor:
    crop = v2.RandomCrop(images.shape[-1], padding=4)
    dataset = ImageDataset(images, torch.zeros(len(images)), crop)
    return next(iter(DataLoader(dataset, len(images))))[0]


def copies_of_an_image_become_different(augment):
    torch.manual_seed(0)
    copies = random(1, 3, 32, 32).expand(64, -1, -1, -1)
    versions = augment(copies).unique(dim=0)
    assert len(versions) > 1


def versions_of_an_image() -> list[str]:
    torch.manual_seed(0)
    copies = random(1, 3, 32, 32).expand(64, -1, -1, -1)
    forms = (augment_a_batch, augment_each_image)
    return [str(len(form(copies).unique(dim=0))) for form in forms]


def loss_of_probabilities(logits, labels):
    probabilities = logits.softmax(dim=1)
    # wrong: it wants logits
    return F.cross_entropy(probabilities, labels)


def a_sure_and_right_model_has_no_loss(loss_fn):
    logits = 100 * torch.eye(10, dtype=torch.float64)
    labels = torch.arange(10)
    assert loss_fn(logits, labels) < 1e-10


def losses_and_gradients_of_probabilities() -> list[str]:
    label = torch.tensor([3])

    def loss_and_gradient(loss_fn: Callable, logits: Tensor) -> Tensor:
        logits = logits.double().requires_grad_()
        loss = loss_fn(logits, label)
        loss.backward()
        return torch.stack([loss.detach(), logits.grad.norm()])

    nothing, sure = torch.zeros(1, 10), 100 * F.one_hot(label, 10)
    start, right = (
        loss_and_gradient(form, nothing)
        for form in (loss_of_probabilities, F.cross_entropy)
    )
    least = loss_and_gradient(loss_of_probabilities, sure)[0]
    return [
        f"{start[0]:.2f}",
        f"{right[0]:.2f}",
        f"{least:.2f}",
        f"{right[1] / start[1]:.0f}",
    ]


def decay_of_everything(model, weight_decay):
    # wrong: norms and positions too
    decayed = list(model.parameters())
    return [{"params": decayed, "weight_decay": weight_decay}]


def weight_decay_shrinks_matrices_only(make_groups):
    model = small(VisionTransformer)
    matrix, kept = model.head.weight, (model.norm.weight, model.pos_embed)
    before = [parameter.detach().clone() for parameter in (matrix, *kept)]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    AdamW(make_groups(model, 0.05), lr=1e-3).step()
    assert matrix.norm() < before[0].norm()
    for parameter, old in zip(kept, before[1:], strict=True):
        assert_equal(parameter.detach(), old)


def what_decay_leaves_of_a_norm() -> list[str]:
    norm = nn.LayerNorm(1)
    groups = decay_of_everything(norm, 0.05)
    optimizer = AdamW(groups, lr=1e-3)
    scheduler = warmup_cosine(optimizer, 1000, 10_000)
    norm.weight.grad = torch.zeros(1)
    for _ in range(10_000):
        optimizer.step()
        scheduler.step()
    return [f"{norm.weight.item():.2f}"]


def train_with_one_step_an_epoch(model, loader, optimizer, scheduler):
    model.train()
    for images, labels in loader:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # wrong: planned in batches
    scheduler.step()


def the_learning_rate_ends_at_zero(train):
    model = small(VisionTransformer)
    loader = [(random(2, 3, 8, 12), torch.tensor([0, 1]))] * 5
    optimizer = AdamW(model.parameters(), lr=1e-3)
    scheduler = warmup_cosine(optimizer, 4, total_steps=4 * 5)
    for _ in range(4):
        train(model, loader, optimizer, scheduler)
    assert optimizer.param_groups[0]["lr"] < 1e-10


def planned_learning_rates() -> list[float]:
    """20 epochs of 22 batches, a tenth to warm up: shares of the largest."""
    optimizer = AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = warmup_cosine(optimizer, 44, 440)
    rates = scheduler.get_last_lr()
    for _ in range(440):
        optimizer.step()
        scheduler.step()
        rates = [*rates, *scheduler.get_last_lr()]
    return rates  # of each step, and the one after the run


def learning_rate_of_the_last_epoch() -> list[str]:
    return [percent(planned_learning_rates()[20 - 1], 0)]


def fit_with_a_file_of_weights(model, loader, path):
    first = 0
    if path.is_file():
        first, weights = torch.load(path)
        model.load_state_dict(weights)
    groups = parameter_groups(model, weight_decay=0.05)
    optimizer = AdamW(groups, lr=1e-3)
    steps = 4 * len(loader)
    scheduler = warmup_cosine(optimizer, steps // 4, steps)
    for epoch in range(first, 4):
        train_one_epoch(model, loader, optimizer, scheduler)
        # wrong: weights alone
        torch.save((epoch + 1, model.state_dict()), path)


def fit_with_a_checkpoint(model: nn.Module, loader: list, path: Path) -> None:
    fit(model, loader, loader[:], epochs=4, warmup=0.25, checkpoint=path)


class StopsInTheThirdEpoch(list):
    epochs = 0

    def __iter__(self):
        self.epochs += 1
        if self.epochs == 3:
            raise KeyboardInterrupt
        return super().__iter__()


def a_stopped_run_ends_like_one_that_was_not(train):
    images, labels = random(4, 3, 8, 12), torch.tensor([0, 1])
    batches = [(images[:2], labels), (images[2:], labels)]
    with TemporaryDirectory() as folder:
        path = Path(folder, "stopped")
        with suppress(KeyboardInterrupt):
            stopping = StopsInTheThirdEpoch(batches)
            train(small(VisionTransformer), stopping, path)
        assert path.is_file()
        resumed = small(VisionTransformer)
        train(resumed, batches, path)
        whole = small(VisionTransformer)
        train(whole, batches, Path(folder, "whole"))
    assert_equal(resumed(images), whole(images))


def learning_rates_after_a_stop() -> list[str]:
    rates = planned_learning_rates()
    assert rates[-1] < 1e-10, "as planned"
    return [percent(rates[step], 0) for step in (0, 220)]


def evaluate_in_training_mode(model, loader):
    loss, right, count = 0.0, 0, 0
    # wrong: no model.eval()
    with torch.no_grad():
        for images, labels in loader:
            logits = model(images)
            total = F.cross_entropy(logits, labels, reduction="sum")
            loss += total.item()
            right += (logits.argmax(dim=1) == labels).sum().item()
            count += len(images)
    return loss / count, 100 * right / count


def it_does_not_matter_which_images_share_a_batch(evaluate):
    images, labels = random(6, 3, 8, 12), torch.arange(6)
    dropout = partial(VisionTransformer, dropout=0.1)
    for model in small(dropout), randomize(SmallCNN()):
        results = []
        for batch_size in 6, 3:
            dataset = ImageDataset(images, labels)
            model.train()  # as it is after an epoch
            result = evaluate(model, DataLoader(dataset, batch_size))
            results.append(torch.tensor(result, dtype=torch.float64))
        assert_equal(*results)


@torch.no_grad()
def accuracies_in_training_mode() -> list[str]:
    """Of a network on random features, so that no machine rounds another."""
    data = split_digits()
    torch.manual_seed(0)
    model = SmallCNN(1, widths=(32, 64), num_pools=1).double()
    for layer in model.features:
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean of all batches
    model.features(data.train_images.double())
    model.eval()
    x = model.features(data.train_images.double()).mean(dim=(2, 3))
    x = F.pad(x, (0, 1), value=1)
    targets = F.one_hot(data.train_labels).double()
    solution = torch.linalg.lstsq(x, targets).solution
    model.head.weight.copy_(solution[:-1].T)
    model.head.bias.copy_(solution[-1])
    state = {name: t.clone() for name, t in model.state_dict().items()}
    order = data.test_labels.argsort(stable=True)
    dataset = ImageDataset(
        data.test_images[order].double(), data.test_labels[order]
    )
    accuracies = []
    for form in (evaluate, evaluate_in_training_mode):
        model.load_state_dict(state)
        model.train()
        accuracies.append(form(model, DataLoader(dataset, 64))[1])
    return [percent(accuracy / 100, 0) for accuracy in accuracies]


def train_on_after_a_test(model, loader, test_loader, epochs):
    optimizer = AdamW(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for images, labels in loader:
            # wrong: no model.train()
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        evaluate(model, test_loader)  # model.eval() is in there


def train_and_test(
    model: nn.Module, loader: list, test_loader: list, epochs: int
) -> None:
    fit(model, loader, test_loader, epochs=epochs)


def modes_of_the_steps(train, epochs):
    modes, model = [], small(VisionTransformer).train()

    def write_down(model, inputs):
        if torch.is_grad_enabled():
            modes.append(model.training)

    model.register_forward_pre_hook(write_down)
    batches = [(random(2, 3, 8, 12), torch.tensor([0, 1]))]
    train(model, batches, batches, epochs)
    return modes


def each_step_is_made_in_training_mode(train):
    assert modes_of_the_steps(train, 3) == [True, True, True]


def epochs_in_training_mode() -> list[str]:
    modes = modes_of_the_steps(train_on_after_a_test, 20)
    return [f"{sum(modes)}", f"{len(modes)}"]


def accuracy_of_batches(model, loader):
    model.eval()
    accuracies = []
    with torch.inference_mode():
        for images, labels in loader:
            right = model(images).argmax(dim=1) == labels
            accuracies.append(100 * right.double().mean())
    # wrong: the last is smaller
    return torch.stack(accuracies).mean().item()


def accuracy_of_images(model: nn.Module, loader: DataLoader) -> float:
    return evaluate(model, loader)[1]


def every_image_counts_the_same(accuracy):
    model, images = small(VisionTransformer), random(7, 3, 8, 12)
    labels = model(images).argmax(dim=1)
    labels[6] = 999 - labels[6]  # one mistake
    dataset = ImageDataset(images, labels)
    one = accuracy(model, DataLoader(dataset, batch_size=7))
    three = accuracy(model, DataLoader(dataset, batch_size=3))
    assert abs(one - three) < 1e-10


def accuracies_with_two_mistakes() -> list[str]:
    labels = split_digits().test_labels
    model = nn.Linear(10, 10, bias=False)
    nn.init.eye_(model.weight)
    answers = F.one_hot(labels).float()
    answers[-2:] = answers[-2:].roll(1, dims=1)
    loader = DataLoader(ImageDataset(answers, labels), 64)
    *_, (last, _) = loader
    return [
        percent(accuracy_of_images(model, loader) / 100),
        percent(accuracy_of_batches(model, loader) / 100),
        f"{len(last)}",
        f"{64 / len(last):.0f}",
    ]


def evaluate_in_one_tensor(model, loader):
    model.eval()
    total, count = 0, 0
    with torch.inference_mode():
        for images, labels in loader:
            logits = model(images)
            loss = F.cross_entropy(logits, labels, reduction="sum")
            right = (logits.argmax(dim=1) == labels).sum()
            # wrong: as coarse as the logits
            total += torch.stack([loss, right.to(loss)])
            count += len(images)
    loss, right = total.tolist()
    return loss / count, 100 * right / count


def answers_that_are_right(right, count):
    """Logits in bfloat16, and labels of which some agree with them."""
    torch.manual_seed(0)
    labels = (torch.randperm(count) < right).long()
    return torch.eye(2)[[1] * count].bfloat16(), labels


def bfloat16_counts_each_right_answer(evaluate):
    logits, labels = answers_that_are_right(953, 1000)
    loader = DataLoader(ImageDataset(logits, labels), 64)
    model = nn.Linear(2, 2, bias=False).bfloat16()
    nn.init.eye_(model.weight)
    _, accuracy = evaluate(model, loader)
    assert accuracy == 95.3


def accuracies_in_bfloat16() -> list[str]:
    model = nn.Linear(2, 2, bias=False).bfloat16()
    nn.init.eye_(model.weight)
    dataset = ImageDataset(*answers_that_are_right(9531, 10_000))
    accuracies = (
        form(model, DataLoader(dataset, batch_size))[1]
        for form, batch_size in (
            (evaluate, 64),
            (evaluate_in_one_tensor, 64),
            (evaluate_in_one_tensor, 256),
        )
    )
    return [percent(accuracy / 100) for accuracy in accuracies]


def accuracy_after_training(model, train_loader, test_loader):
    # wrong: one loader twice
    history = fit(model, train_loader, train_loader, epochs=1)
    return history.test_accuracy[-1]


def accuracy_of_fit(
    model: nn.Module, train_loader: DataLoader, test_loader: DataLoader
) -> float:
    history = fit(model, train_loader, test_loader, epochs=1)
    return history.test_accuracy[-1]


def a_class_that_was_never_shown_is_not_known(score):
    images = random(8, 3, 8, 12)
    only_0, only_1 = (
        DataLoader(ImageDataset(images, torch.full((8,), label)), 4)
        for label in (0, 1)
    )
    assert score(fresh(VisionTransformer), only_0, only_1) == 0


def accuracies_of_random_labels() -> list[str]:
    """The nearest neighbor knows its training images by heart."""
    data = split_digits()
    generator = torch.Generator().manual_seed(0)
    train_labels, test_labels = (
        labels[torch.randperm(len(labels), generator=generator)]
        for labels in (data.train_labels, data.test_labels)
    )
    known = data.train_images, train_labels
    accuracies = (
        accuracy_of_neighbors(*known, *images)
        for images in (known, (data.test_images, test_labels))
    )
    return [percent(accuracy, 0) for accuracy in accuracies]


def accuracy_of_neighbors(
    images: Tensor, labels: Tensor, new_images: Tensor, new_labels: Tensor
) -> float:
    """How often an image has the label of the known one nearest to it."""
    pixels, new_pixels = (x.flatten(1).double() for x in (images, new_images))
    nearest = torch.cdist(new_pixels, pixels).argmin(dim=1)
    return (labels[nearest] == new_labels).double().mean().item()


# --- Chapter 09: inductive bias ----------------------------------------


def shift_error_of_an_empty_border(layer):
    # wrong: the border is black
    x = F.pad(random(1, 3, 8, 8), (4, 4, 4, 4))
    shift = partial(torch.roll, shifts=1, dims=3)
    return equivariance_error(layer, x, shift, shift)


def shift_error_of_a_full_image(layer):
    x = random(1, 3, 16, 16)
    shift = partial(torch.roll, shifts=1, dims=3)
    return equivariance_error(layer, x, shift, shift)


def the_measurement_finds_the_border(error_of):
    conv = partial(nn.Conv2d, 3, 8, kernel_size=3, padding=1)
    around = randomize(conv(padding_mode="circular"))
    assert error_of(around) < 1e-10
    zeros = randomize(conv())  # zeros around the image
    assert error_of(zeros) > 0.01


def shift_errors() -> list[str]:
    conv = randomize(nn.Conv2d(3, 32, 3, padding=1))
    features = randomize(SmallCNN(num_pools=0)).eval().features
    return [
        percent(shift_error_of_an_empty_border(conv)),
        percent(shift_error_of_a_full_image(conv), 0),
        percent(shift_error_of_a_full_image(features), 0),
    ]


def cnn_that_flattens(img_size):
    # wrong: weights for each place
    return SmallCNN(pool="flatten", img_size=img_size)


def cnn_of_the_package(img_size: int) -> SmallCNN:
    return SmallCNN()  # for images of any size


def logits_do_not_depend_on_the_place(build):
    model = randomize(build(48)).eval()
    small_image = random(1, 3, 8, 8)
    row, left, right = torch.tensor([[16], [16], [24]])
    one = model(place_images(small_image, 48, row, left))
    other = model(place_images(small_image, 48, row, right))
    assert_equal(one, other)


@torch.no_grad()
def effects_of_a_place() -> list[str]:
    """In multiples of what the small image adds to an empty one."""
    x, row, left = random(1, 3, 8, 8), *torch.tensor([[16], [16]])

    def effect(model: nn.Module, shift: int) -> float:
        empty = model(torch.zeros(1, 3, 48, 48).double())
        one = model(place_images(x, 48, row, left)) - empty
        other = model(place_images(x, 48, row, left + shift)) - empty
        return miss(other, one)

    flat, mean = (
        randomize(build(48)).eval()
        for build in (cnn_that_flattens, cnn_of_the_package)
    )
    weights = [parameters(lambda m=model: m.head) for model in (flat, mean)]
    effects = effect(flat, 8), effect(mean, 8), effect(mean, 1)
    return [*(f"{effect:.2f}" for effect in effects), *weights]


def shuffle_in_a_new_order(images, patch_size):
    patches = patchify(images, patch_size)
    # wrong: drawn in each call
    order = torch.randperm(patches.shape[1])
    side = images.shape[-1] // patch_size
    return unpatchify(patches[:, order], patch_size, (side, side))


def shuffle_in_one_order(images: Tensor, patch_size: int) -> Tensor:
    places = (images.shape[-1] // patch_size) ** 2
    order = torch.randperm(places, generator=torch.Generator().manual_seed(0))
    return shuffle_patches(images, patch_size, order)


def each_patch_has_the_same_new_place_in_every_image(shuffle):
    torch.manual_seed(0)
    image = random(1, 3, 16, 16)
    assert_equal(shuffle(image, 4), shuffle(image, 4))


def accuracies_of_shuffled_digits() -> list[str]:
    data = split_digits()
    torch.manual_seed(0)

    def accuracy(shuffle: Callable[[Tensor], Tensor]) -> float:
        train, test = (
            torch.cat([shuffle(image) for image in images.split(1)])
            for images in (data.train_images, data.test_images)
        )
        return accuracy_of_neighbors(
            train, data.train_labels, test, data.test_labels
        )

    forms = (
        lambda image: image,
        partial(shuffle_in_one_order, patch_size=2),
        partial(shuffle_in_a_new_order, patch_size=2),
    )
    return [percent(accuracy(form)) for form in forms]


# --- Chapter 10: hybrid ------------------------------------------------


def train_the_head_of_a_frozen_model(model, loader):
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    # wrong: batch norm still moves
    fit(model, loader, loader, epochs=1)


def train_the_head_on_features(model: nn.Module, loader: DataLoader) -> None:
    head, model.head = model.head, nn.Identity()
    model.eval()
    with torch.no_grad():
        features = [(model(images), labels) for images, labels in loader]
    model.head = head
    fit(head, features, features, epochs=1)


def the_frozen_part_computes_what_it_did(train):
    model, images = small(HybridVisionTransformer), random(2, 3, 8, 12)
    head, before = model.head.weight.clone(), model.forward_features(images)
    train(model, some_batches())
    assert not model.head.weight.equal(head)
    assert_equal(model.eval().forward_features(images), before)


@torch.no_grad()
def what_batch_norm_forgets() -> list[str]:
    """In 22 batches: of an average, and of the tokens of a photograph."""
    norm = nn.BatchNorm2d(1)
    norm.running_mean.fill_(1)
    stem = fresh_stem()
    china, flower = photographs().double().split(1)
    for layer in stem.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0  # keep the next batch alone
    stem.train()(china)
    before = stem.eval()(china)
    for layer in stem.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = norm.momentum
    stem.train()
    for _ in range(22):
        norm(torch.zeros(2, 1, 1, 1))
        stem(flower)
    change = miss(stem.eval()(china), before)
    return [percent(norm.running_mean.item(), 0), f"{change:.1f}"]


def fresh_stem() -> nn.Module:
    torch.manual_seed(0)
    return ConvStem(16, 3, 64).double().eval()


def shift_error_of_whole_tokens(embed):
    x = photographs().double()
    shift = partial(torch.roll, shifts=8, dims=3)
    # wrong: a constant does not move
    return equivariance_error(embed, x, shift, lambda tokens: tokens)


def shift_error_of_differences(embed: nn.Module) -> float:
    def differences(images: Tensor) -> Tensor:
        tokens = embed(images)
        return tokens - tokens.mean(dim=1, keepdim=True)

    return shift_error_of_whole_tokens(differences)


def a_constant_in_each_token_does_not_count(error_of):
    embed = randomize(PatchEmbed(16, 3, 8))
    before = error_of(embed)
    with torch.no_grad():
        embed.proj.bias += 10
    assert abs(error_of(embed) - before) < 1e-10


def shift_errors_of_a_fresh_stem() -> list[str]:
    stem = fresh_stem()
    forms = shift_error_of_whole_tokens, shift_error_of_differences
    return [percent(form(stem), 0) for form in forms]


# --- Chapter 11: fine-tuning -------------------------------------------


def load_without_strict(model, weights):
    # wrong: says nothing if none fits
    model.load_state_dict(weights, strict=False)


def the_weights_arrive_or_are_refused(load):
    source, model = small(VisionTransformer), fresh(VisionTransformer)
    weights = source.state_dict()
    weights = {f"model.{name}": weights[name] for name in weights}
    try:
        load(model, weights)
    except ValueError:
        return
    images = random(2, 3, 8, 12)
    assert_equal(model(images), source(images))


def tensors_that_a_prefix_keeps_out() -> list[str]:
    with torch.device("meta"):
        model = VisionTransformer()
    weights = {f"model.{n}": t for n, t in model.state_dict().items()}
    missing, _ = model.load_state_dict(weights, strict=False)
    return [f"{len(weights) - len(missing)}", f"{len(weights)}"]


def load_what_fits(model, weights):
    own = model.state_dict()
    # wrong: leaves out the rest
    fitting = {
        name: tensor
        for name, tensor in weights.items()
        if name in own and tensor.shape == own[name].shape
    }
    model.load_state_dict(fitting, strict=False)


def every_weight_is_loaded_or_there_is_an_error(load):
    plain, model = small(timm_vit), fresh(VisionTransformerDistilled)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    try:
        load(model, plain.state_dict())
    except ValueError:
        return
    after = model.state_dict()
    assert [name for name in after if after[name].equal(before[name])] == []


def what_stays_random_in_a_distilled_model() -> list[str]:
    with torch.device("meta"):
        plain = timm.create_model("deit_base_patch16_224")
        model = timm.create_model("deit_base_distilled_patch16_224")
    weights, own = plain.state_dict(), model.state_dict()
    left = [
        own[name].numel()
        for name in own
        if name not in weights or weights[name].shape != own[name].shape
    ]
    rows = [f"{m.pos_embed.shape[1]}" for m in (plain, model)]
    return [*rows, f"{len(left)}", f"{len(own)}", f"{sum(left):,}"]


def groups_of_encoder_and_heads(model):
    # wrong: two parts are in neither
    return [
        {"params": list(model.encoder.parameters()), "lr": 1e-4},
        {"params": list(model.heads.parameters()), "lr": 1e-3},
    ]


def groups_of_all_parts(model: nn.Module) -> list[dict]:
    return learning_rate_groups(model, {"": 1e-4, "heads": 1e-3}, 0.05)


def every_parameter_is_in_one_group(make_groups):
    model = torchvision_vit(32, 8, 2, 4, 48, 96)
    groups = make_groups(model)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def numbers_in_no_group() -> list[str]:
    with torch.device("meta"):
        model = vit_b_16()
    groups = groups_of_encoder_and_heads(model)
    held = {p for group in groups for p in group["params"]}
    left = sum(p.numel() for p in model.parameters() if p not in held)
    return [f"{left:,}", parameters(vit_b_16)]


def normalize_as_usual(images, preprocessing):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    # wrong: not of these weights
    return v2.functional.normalize(images, mean, std)


def prepare_as_expected(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    return preprocessing.transform()(images)


def preprocessing_of(name: str) -> Preprocessing:
    """What timm says of its weights."""
    config = timm.get_pretrained_cfg(name)
    size = config.input_size[1]
    resize = int(size / config.crop_pct)
    return Preprocessing(
        size, resize, config.mean, config.std, config.interpolation
    )


def the_mean_of_the_weights_becomes_0(prepare):
    for name in "vit_small_patch16_224", "deit_small_patch16_224":
        preprocessing = preprocessing_of(name)
        mean = torch.tensor(preprocessing.mean).view(1, 3, 1, 1)
        std = torch.tensor(preprocessing.std).view(1, 3, 1, 1)
        images = torch.cat([mean, mean + std]).expand(2, 3, 224, 224)
        zeros, ones = prepare(images, preprocessing)
        assert zeros.abs().max() < 1e-5
        assert (ones - 1).abs().max() < 1e-5


def effect_of_another_normalization() -> list[str]:
    preprocessing = preprocessing_of("vit_small_patch16_224")
    images = (photographs() + 1) / 2  # in [0, 1]
    wrong = normalize_as_usual(images, preprocessing)
    right = v2.functional.normalize(
        images, preprocessing.mean, preprocessing.std
    )
    edges = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 224, 224)
    ranges = [
        (x[1, 0] - x[0, 0]).mean().item()
        for form in (normalize_as_usual, prepare_as_expected)
        for x in [form(edges, preprocessing)]
    ]
    return [f"{number:.1f}" for number in (miss(wrong, right), *ranges)]


def model_with_guessed_heads(weights):
    width = weights["norm.weight"].numel()
    # wrong: not each head is 64 wide
    return model_with_heads(weights, num_heads=width // 64)


def model_with_heads(weights, num_heads):
    width = weights["norm.weight"].numel()
    model = VisionTransformer(
        (8, 12), 4, embed_dim=width, depth=2, num_heads=num_heads
    )
    load_pretrained(model.double().eval(), weights)
    return model


def vit_of_four_heads() -> nn.Module:
    model = randomize(
        VisionTransformer((8, 12), 4, embed_dim=128, depth=2, num_heads=4)
    )
    for layer in model.modules():
        if isinstance(layer, nn.LayerNorm):  # else attention is nearly even
            nn.init.ones_(layer.weight)
    return model.eval()


def the_weights_compute_what_they_did(build):
    source, images = vit_of_four_heads(), random(2, 3, 8, 12)
    assert_equal(build(source.state_dict())(images), source(images))


def effect_of_guessed_heads() -> list[str]:
    source, images = vit_of_four_heads(), random(2, 3, 8, 12)
    wrong = model_with_guessed_heads(source.state_dict())
    huge = VIT_PRESETS["vit_huge_patch14_224"]
    width, heads = huge["embed_dim"], huge["num_heads"]
    return [
        f"{miss(wrong(images), source(images)):.1f}",
        *(f"{number}" for number in (width // heads, width // 64, heads)),
    ]


def freeze_by_beginning(model, part):
    for name, parameter in model.named_parameters():
        # wrong: takes blocks.10 too
        if name.startswith(part):
            parameter.requires_grad = False


def freeze_a_part(model: nn.Module, part: str) -> None:
    for name, parameter in model.named_parameters():
        if is_part_of(name, [part]):
            parameter.requires_grad = False


def frozen_numbers(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if not p.requires_grad)


def one_block_of_twelve_is_frozen(freeze):
    with torch.device("meta"):
        model = VisionTransformer(depth=12)
    freeze(model, "blocks.1")
    wanted = sum(p.numel() for p in model.blocks[1].parameters())
    assert frozen_numbers(model) == wanted


def numbers_that_are_frozen() -> list[str]:
    counts = []
    for freeze in freeze_by_beginning, freeze_a_part:
        with torch.device("meta"):
            model = VisionTransformer()
        freeze(model, "blocks.1")
        counts.append(f"{frozen_numbers(model):,}")
    return counts


def rates_by_a_list(model, learning_rate, decay):
    # wrong: knows no other token
    first = ("cls_token", "pos_embed", "patch_embed")
    last = len(model.blocks) + 1
    rates = {}
    for name, _ in model.named_parameters():
        part, *rest = name.split(".")
        step = 0 if part in first else last
        if part == "blocks":
            step = int(rest[0]) + 1
        rates[name] = learning_rate * decay ** (last - step)
    return rates


def all_tokens_have_the_smallest_rate(make_rates):
    model = fresh(VisionTransformerDistilled)
    rates = make_rates(model, 1e-3, 0.75)
    smallest = rate_of(model, rates, "patch_embed.proj.weight")
    assert smallest < rate_of(model, rates, "head.weight")
    for name in "cls_token", "pos_embed", "dist_token":
        assert rate_of(model, rates, name) == smallest


def rate_of(model, rates, name):
    parameter = model.get_parameter(name)
    for group in learning_rate_groups(model, rates, 0.05):
        if any(p is parameter for p in group["params"]):
            return group["lr"]
    raise AssertionError(f"{name} is in no group")


def how_much_too_fast_a_token_learns() -> list[str]:
    with torch.device("meta"):
        model = timm.create_model("deit_base_distilled_patch16_224")
    rates = rates_by_a_list(model, 1e-3, 0.75)
    return [f"{rates['dist_token'] / rates['cls_token']:.0f}"]


# --- Chapter 12: self-supervision --------------------------------------


def color_classes_of_three_levels(images, patch_size):
    patches = patchify(images, patch_size)
    mean = reduce(patches, "b n (c p) -> b n c", "mean", c=3)
    bits = 3
    # wrong: bits, not 2**bits
    digits = (mean * bits).long().clamp(0, bits - 1)
    return digits @ torch.tensor([64, 8, 1])


def each_of_512_colors_has_its_own_class(classes_of):
    colors = class_colors(torch.arange(512))  # (512, 3), in [0, 1]
    pixels = colors.T.reshape(1, 3, 16, 32)  # a color in each pixel
    assert classes_of(pixels, 1).unique().numel() == 512


def number_of_classes(classes_of: Callable) -> int:
    levels = torch.linspace(0, 1, 16)
    colors = torch.cartesian_prod(levels, levels, levels)
    return len(classes_of(colors.T.reshape(1, 3, 64, 64), 1).unique())


def classes_of_three_levels() -> list[str]:
    forms = (color_classes_of_three_levels, mean_color_classes)
    images = (photographs() + 1) / 2  # in [0, 1]
    shares = [
        classes.bincount().max().item() / len(classes)
        for form in forms
        for classes in [form(images, 16).flatten()]
    ]
    return [
        *(f"{number_of_classes(form)}" for form in forms),
        *(percent(share, 0) for share in shares),
    ]


def color_classes_of_normalized_images(images, patch_size):
    half = [0.5, 0.5, 0.5]
    images = v2.functional.normalize(images, half, half)
    patches = patchify(images, patch_size)
    mean = reduce(patches, "b n (c p) -> b n c", "mean", c=3)
    # wrong: mean is in [-1, 1]
    digits = (mean * 8).long().clamp(0, 7)
    return digits @ torch.tensor([64, 8, 1])


def patches_that_are_called_black() -> list[str]:
    forms = (color_classes_of_normalized_images, mean_color_classes)
    images = (photographs() + 1) / 2  # in [0, 1]
    colors = class_colors(torch.arange(512)).T.reshape(1, 3, 16, 32)
    left = len(forms[0](colors, 1).unique())
    shares = [(form(images, 16) == 0).double().mean().item() for form in forms]
    return [f"{left}", "512", *(percent(share, 0) for share in shares)]


def draw_mask_by_coin(num_images, num_patches, ratio):
    # wrong: not as many in each image
    return torch.rand(num_images, num_patches) < ratio


def each_image_hides_as_many(draw):
    torch.manual_seed(0)
    hidden = draw(64, 196, 0.75).sum(dim=1)
    assert hidden.eq(0.75 * 196).all()


def visible_patches_by_coin() -> list[str]:
    torch.manual_seed(0)
    counts = [
        (~draw(64, 196, 0.75)).sum(dim=1)
        for draw in (draw_mask_by_coin, draw_mask)
    ]
    ends = [end for count in counts for end in (count.min(), count.max())]
    return [f"{end}" for end in ends]


def autoencoder_with_a_stem(img_size, patch_size, dim):
    model = autoencoder_of_patches(img_size, patch_size, dim)
    # wrong: its tokens overlap
    stem = ConvStem(patch_size, 3, dim)
    model.encoder.patch_embed = stem
    return model


def autoencoder_of_patches(img_size, patch_size, dim):
    encoder = VisionTransformer(
        img_size, patch_size, embed_dim=dim, depth=2, num_heads=3
    )
    return MaskedAutoencoder(
        encoder, decoder_dim=8, decoder_depth=1, decoder_num_heads=2
    )


def mask_of_two() -> Tensor:
    """What is hidden of two images of 8 x 12 pixels, in patches of 4."""
    return torch.tensor([[1, 0, 1, 0, 1, 1], [0, 1, 1, 1, 0, 1]]).bool()


def with_other_hidden_pixels(images: Tensor, mask: Tensor) -> Tensor:
    patches = patchify(images, 4)
    patches[mask] = random(*patches[mask].shape, seed=2)
    return unpatchify(patches, 4, (2, 3))


def hidden_pixels_change_no_prediction(build):
    model = randomize(build((8, 12), 4, 12)).eval()
    images, mask = random(2, 3, 8, 12), mask_of_two()
    other = with_other_hidden_pixels(images, mask)
    assert_equal(model(images, mask)[0], model(other, mask)[0])


def what_a_token_of_a_stem_sees() -> list[str]:
    stem = fresh_stem()
    images, others = photographs().double().split(1)
    images.requires_grad_()
    stem(images)[0, 100].sum().backward()
    seen = images.grad[0].abs().amax(dim=0) > 0
    torch.manual_seed(0)
    mask = draw_mask(1, 196, 0.75)
    patches = torch.where(
        mask.unsqueeze(2), patchify(others, 16), patchify(images, 16)
    )
    changed = unpatchify(patches, 16, (14, 14))
    with torch.no_grad():
        moved = (stem(changed) - stem(images)).abs().amax(dim=2) > 1e-12
    share = moved[~mask].double().mean().item()
    return [f"{seen.sum()}", f"{16**2}", percent(share, 0)]


def loss_of_all_patches(model, outputs, images):
    prediction, _ = outputs
    # wrong: the visible ones too
    return F.mse_loss(prediction, model.target(images))


def a_visible_patch_does_not_count(loss):
    model = autoencoder_of_patches((8, 12), 4, 12)
    images, mask = random(2, 3, 8, 12), mask_of_two()
    one, other = random(2, 2, 6, 48)
    other[mask] = one[mask]  # the same answer for what is hidden
    one, other = (loss(model, (p, mask), images) for p in (one, other))
    assert_equal(one, other)


def losses_of_a_copy() -> list[str]:
    """Of a model that copies what it sees and says nothing of the rest."""
    model = autoencoder_of_patches(224, 16, 12)
    images = photographs()
    torch.manual_seed(0)
    mask = draw_mask(2, 196, 0.75)
    copy = model.target(images).masked_fill(mask.unsqueeze(2), 0)
    forms = (loss_of_all_patches, MaskedAutoencoder.loss)
    return [f"{form(model, (copy, mask), images):.2f}" for form in forms]


def paint_with_the_answer(prediction, images, mask, patch_size):
    patches = patchify(images, patch_size)
    _, mean, std = normalize_patches(patches)
    # wrong: those of the hidden patch
    prediction = prediction * std + mean
    painted = torch.where(mask.unsqueeze(2), prediction, patches)
    grid = [side // patch_size for side in images.shape[2:]]
    return unpatchify(painted, patch_size, grid)


paint_from_the_visible = partial(paint_prediction, normalized=True)


def hidden_pixels_change_no_picture(paint):
    prediction, mask = random(2, 6, 48, seed=3), mask_of_two()
    images = random(2, 3, 8, 12)
    other = with_other_hidden_pixels(images, mask)
    one = paint(prediction, images, mask, 4)
    assert_equal(one, paint(prediction, other, mask, 4))


def errors_of_painted_zeros() -> list[str]:
    """In shares of the error of one gray for all hidden pixels."""
    images = photographs().double()
    torch.manual_seed(0)
    mask = draw_mask(2, 196, 0.75)
    patches = patchify(images, 16)
    zeros, hidden = torch.zeros_like(patches), patches[mask]

    def error(paint: Callable) -> float:
        painted = patchify(paint(zeros, images, mask, 16), 16)[mask]
        left = (painted - hidden).square().mean()
        return (left / hidden.var(correction=0)).item()

    forms = (paint_with_the_answer, paint_from_the_visible)
    return [percent(error(form), 0) for form in forms]


# --- Chapter 13: looking inside ----------------------------------------


@cache
def model_of_twelve_blocks() -> nn.Module:
    """With attention that is not even: see vit_of_four_heads."""
    model = randomize(VisionTransformer(embed_dim=64, num_heads=4))
    for layer in model.modules():
        if isinstance(layer, nn.LayerNorm):
            nn.init.ones_(layer.weight)
    return model.eval()


@cache
def weights_of_twelve_layers() -> list[Tensor]:
    return attention_weights(
        model_of_twelve_blocks(), photographs()[:1].double()
    )


def weights_of_first_tokens(model, images):
    x = model.embed(images)
    weights = []
    for block in model.blocks:
        # wrong: x is never block(x)
        y = block.norm1(x)
        weights.append(block.attn(y, return_weights=True)[1])
    return weights


def the_last_maps_depend_on_the_first_block(weights_of):
    model, images = small(VisionTransformer), random(2, 3, 8, 12)
    before = weights_of(model, images)[-1]
    randomize(model.blocks[0], seed=5)
    gap = (weights_of(model, images)[-1] - before).abs().max()
    assert gap > 1e-6


@torch.no_grad()
def miss_of_maps_of_first_tokens() -> list[str]:
    wrong = weights_of_first_tokens(
        model_of_twelve_blocks(), photographs()[:1].double()
    )
    right = weights_of_twelve_layers()
    return [f"{miss(wrong[i], right[i]):.1f}" for i in (0, -1)]


def distance_without_the_class_column(weights, grid_size, patch_size):
    # wrong: rows sum to less than 1
    among = weights[..., 1:, 1:]
    distances = patch_distances(grid_size, patch_size)
    return (among * distances).sum(dim=-1).mean(dim=-1)


def even_attention(share, num_patches):
    """A share for the class token, and the rest for all patches alike."""
    row = torch.full((1 + num_patches,), (1 - share) / num_patches)
    row[0] = share
    return row.double().expand(1 + num_patches, -1)


def the_class_token_does_not_shorten_the_distance(distance):
    with_it = distance(even_attention(0.6, 12), (3, 4), 16)
    without = distance(even_attention(0.0, 12), (3, 4), 16)
    assert_equal(with_it, without)


def distances_of_even_attention() -> list[str]:
    forms = (distance_without_the_class_column, attention_distance)
    even = even_attention(0.6, 196)
    return [f"{form(even, (14, 14), 16):.0f}" for form in forms]


def rollout_from_the_wrong_side(weights):
    identity = torch.eye(weights[0].shape[-1]).to(weights[0])
    rollout = identity
    for layer in weights:
        mixing = 0.5 * layer.mean(dim=1) + 0.5 * identity
        # wrong: mixing must be on the left
        rollout = rollout @ mixing
    return rollout


def a_path_of_two_steps_is_found(rollout):
    first, second = torch.eye(3).double().repeat(2, 1, 1, 1, 1)
    first[0, 0, 1] = torch.tensor([0, 0, 1])  # 1 looks at 2,
    second[0, 0, 0] = torch.tensor([0, 1, 0])  # then 0 looks at 1
    expected = torch.tensor([0.5, 0.25, 0.25]).double()
    assert_equal(rollout([first, second])[0, 0], expected)


def maps_from_the_wrong_side() -> list[str]:
    first, second = torch.eye(3).double().repeat(2, 1, 1, 1, 1)
    first[0, 0, 1] = torch.tensor([0, 0, 1])
    second[0, 0, 0] = torch.tensor([0, 1, 0])
    forms = (rollout_from_the_wrong_side, attention_rollout)
    parts = [form([first, second])[0, 0, 2] for form in forms]
    maps = [
        class_attention(form(weights_of_twelve_layers()), 14).flatten()
        for form in forms
    ]
    correlation = torch.corrcoef(torch.stack(maps))[0, 1]
    return [f"{number:.2f}" for number in (*parts, correlation)]


def rollout_of_the_strongest(weights):
    identity = torch.eye(weights[0].shape[-1]).to(weights[0])
    rollout = identity
    for layer in weights:
        mean = layer.mean(dim=1)  # (B, T, T)
        strong = mean * (mean >= mean.quantile(0.9))
        mixing = strong + identity
        # wrong: no keepdim=True
        mixing = mixing / mixing.sum(dim=-1)
        rollout = mixing @ rollout
    return rollout


def the_rows_of_a_rollout_sum_to_1(rollout):
    layers = [random(1, 2, 7, 7, seed=seed) for seed in (1, 2, 3)]
    sums = rollout([layer.softmax(dim=-1) for layer in layers]).sum(dim=-1)
    assert_equal(sums, torch.ones_like(sums))


def largest_sums_of_rows() -> list[str]:
    forms = (rollout_of_the_strongest, attention_rollout)
    return [
        f"{form(weights_of_twelve_layers()).sum(dim=-1).max():.2f}"
        for form in forms
    ]


def similarity_by_dot_product(pos_embed, grid_size):
    rows = pos_embed[0, 1:]
    # wrong: rows are not all of one length
    similarity = rows @ rows.T
    return similarity.view(*grid_size, *grid_size)


def the_length_of_a_row_does_not_count(similarity):
    table = random(1, 1 + 3 * 4, 8)
    longer = table.clone()
    longer[:, 6] *= 10
    assert_equal(similarity(longer, (3, 4)), similarity(table, (3, 4)))


def maps_where_one_place_is_brightest() -> list[str]:
    table = F.pad(sincos_pos_embed((14, 14), 768), (0, 0, 1, 0))
    place = 7 * 14 + 7
    table[:, 1 + place] *= 1.5
    forms = (similarity_by_dot_product, position_similarity)
    brightest = [
        form(table, (14, 14)).view(196, 196).argmax(dim=1) for form in forms
    ]
    return [f"{(places == place).sum()}" for places in brightest]


# --- Chapter 14: DeiT --------------------------------------------------


def distance_to_one_class(dist_logits, teacher_logits, temperature):
    classes = teacher_logits.shape[1]
    # wrong: one class is left of them
    teacher = F.one_hot(teacher_logits.argmax(dim=1), classes)
    student = (dist_logits / temperature).log_softmax(dim=1)
    teacher = teacher.to(student)
    distance = F.kl_div(student, teacher, reduction="batchmean")
    return temperature**2 * distance


def distance_of_the_package(
    dist_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> Tensor:
    return soft_distillation_loss(
        dist_logits,
        dist_logits,
        torch.zeros(len(dist_logits), dtype=torch.long),  # have no weight
        teacher_logits,
        temperature=temperature,
        weight=1.0,
    )


def the_second_place_counts(distance):
    student = torch.tensor([[0.0, 1.0, 2.0]])
    one, other = torch.tensor([[[4.0, 2.0, 0.0]], [[4.0, 0.0, 2.0]]])
    gap = distance(student, one, 3.0) - distance(student, other, 3.0)
    assert gap.abs() > 1e-3


def distances_of_a_copy_to_its_teacher() -> list[str]:
    logits = torch.tensor([[4, 2, 0]]).double()
    numbers = [
        f"{distance(logits, logits, 3.0):.2f}"
        for distance in (distance_to_one_class, distance_of_the_package)
    ]
    shares = (logits / 3).softmax(dim=1), F.one_hot(logits.argmax(dim=1))
    return [*numbers, *(percent(s.max().item(), 0) for s in shares)]


def distance_over_all_numbers(dist_logits, teacher_logits, temperature):
    distance = F.kl_div(
        (dist_logits / temperature).log_softmax(dim=1),
        (teacher_logits / temperature).log_softmax(dim=1),
        reduction="sum",
        log_target=True,
    )
    # wrong: B * K, and not B
    distance = distance / teacher_logits.numel()
    return temperature**2 * distance


def classes_in_two_halves_are_as_far(distance):
    student, teacher = random(2, 4, 5)
    halves = student.repeat(1, 2), teacher.repeat(1, 2)
    assert_equal(distance(*halves, 3.0), distance(student, teacher, 3.0))


def weights_of_a_mean_over_classes() -> list[str]:
    logits = random(2, 4, 1000)
    right, wrong = (
        distance(*logits, 3.0)
        for distance in (distance_of_the_package, distance_over_all_numbers)
    )
    return [f"{right / wrong:.0f}", f"{0.1 * wrong / right:.4f}"]


def distance_without_the_square(dist_logits, teacher_logits, temperature):
    # wrong: no temperature**2
    return F.kl_div(
        (dist_logits / temperature).log_softmax(dim=1),
        (teacher_logits / temperature).log_softmax(dim=1),
        reduction="batchmean",
        log_target=True,
    )


def three_times_the_logits_are_nine_times_as_far(distance):
    student, teacher = random(2, 4, 5)
    near = distance(student, teacher, 1.0)
    far = distance(3 * student, 3 * teacher, 3.0)
    assert_equal(far, 9 * near)


def gradient_of(distance: Callable, temperature: float) -> Tensor:
    student, teacher = random(2, 64, 10)
    student.requires_grad_()
    distance(student, teacher, temperature).backward()
    return student.grad.norm()


def gradients_at_a_high_temperature() -> list[str]:
    """In percent of the gradient at temperature 1."""
    return [
        percent(
            gradient_of(form, temperature).item() / gradient_of(form, 1).item(),
            0,
        )
        for form in (distance_without_the_square, distance_of_the_package)
        for temperature in (3, 10)
    ]


def distance_from_the_student(dist_logits, teacher_logits, temperature):
    distance = F.kl_div(
        # wrong: the student is the input
        (teacher_logits / temperature).log_softmax(dim=1),
        (dist_logits / temperature).log_softmax(dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * distance


def a_sure_teacher_is_like_a_label(distance):
    student, labels = random(4, 5), torch.tensor([3, 0, 4, 1])
    teacher = 100 * F.one_hot(labels, 5).double()
    assert_equal(
        distance(student, teacher, 1.0), F.cross_entropy(student, labels)
    )


def distances_to_an_undecided_teacher() -> list[str]:
    """Of a student that decides, and of one that takes all classes alike."""
    teacher = torch.tensor([[0.49, 0.49, 0.02]]).log()
    decides = torch.tensor([[0.96, 0.02, 0.02]]).log()
    forms = (distance_of_the_package, distance_from_the_student)
    return [
        f"{distance(student, teacher, 1.0):.2f}"
        for distance in forms
        for student in (decides, torch.zeros(1, 3))
    ]


def loss_of_a_batch(model, images, labels, teacher_logits):
    # wrong: no model.train()
    logits, dist_logits = model(images)
    teacher = teacher_logits.softmax(-1)
    loss = -(labels * logits.log_softmax(-1)).sum(-1)
    distance = -(teacher * dist_logits.log_softmax(-1)).sum(-1)
    return (loss.mean() + distance.mean()) / 2


def loss_in_training_mode(
    model: nn.Module, images: Tensor, labels: Tensor, teacher_logits: Tensor
) -> Tensor:
    model.train()
    return hard_distillation_loss(*model(images), labels, teacher_logits)


def batch_of_two() -> tuple[Tensor, Tensor, Tensor]:
    """Images, the probabilities of their labels, logits of a teacher."""
    labels = random(2, 1000, seed=2).softmax(dim=1)
    return random(2, 3, 8, 12), labels, random(2, 1000, seed=3)


def the_head_of_the_labels_ignores_the_teacher(loss):
    images, labels, teacher_logits = batch_of_two()
    gradients = []
    for answer in teacher_logits, -teacher_logits:
        model = small(DistilledVisionTransformer)  # not in training mode
        loss(model, images, labels, answer).backward()
        gradients.append(model.head.weight.grad)
    assert_equal(*gradients)


def effects_of_exchanged_answers() -> list[str]:
    """On the second head: two images exchange what the teacher says."""
    images, labels, teacher_logits = batch_of_two()

    def gradient(loss: Callable, answers: Tensor) -> Tensor:
        model = small(DistilledVisionTransformer)
        for layer in model.modules():
            if isinstance(layer, nn.LayerNorm):  # else tokens are much alike
                nn.init.ones_(layer.weight)
        loss(model, images, labels, answers).backward()
        return model.head_dist.weight.grad

    return [
        f"{miss(gradient(loss, exchanged), gradient(loss, teacher_logits)):.1f}"
        for loss in (loss_of_a_batch, loss_in_training_mode)
        for exchanged in [teacher_logits.flip(0)]
    ]


class StudentWithTeacher(nn.Module):
    def __init__(self, student, teacher):
        super().__init__()
        self.student = student
        # wrong: train() reaches it too
        self.teacher = teacher.eval()

    def forward(self, images):
        with torch.no_grad():
            teacher_logits = self.teacher(images)
        return self.student(images), teacher_logits


class StudentThatAsks(nn.Module):
    def __init__(self, student, teacher):
        super().__init__()
        self.student = student
        self.ask = ask_teacher(teacher)  # a function is no submodule

    def forward(self, images):
        images, (_, teacher_logits) = self.ask(images, None)
        return self.student(images), teacher_logits


def the_teacher_answers_as_it_did(wrap):
    teacher, images = randomize(SmallCNN()), random(2, 3, 8, 12)
    before = teacher.eval()(images)
    model = wrap(small(DistilledVisionTransformer), teacher.train())
    _, teacher_logits = model.train()(images)
    assert_equal(teacher_logits, before)
    assert_equal(teacher.eval()(images), before)


@torch.no_grad()
def answers_of_a_teacher_in_training_mode() -> list[str]:
    """Another class: for mixed digits, and afterwards for the digits."""
    data = split_digits()
    images, labels = data.train_images[:640], data.train_labels[:640]
    torch.manual_seed(0)
    teacher, mix = SmallCNN(1), deit_mix(10)
    norms = [m for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # keep the statistics of this one batch
    teacher(images)
    for norm in norms:
        norm.momentum = 0.1
    order = torch.randperm(640).split(32)
    mixed = [mix(images[batch], labels[batch])[0] for batch in order]

    def classes(batches: list[Tensor]) -> Tensor:
        return torch.cat([teacher.eval()(x).argmax(dim=1) for x in batches])

    before, right = classes([images]), classes(mixed)
    model = StudentWithTeacher(nn.Identity(), teacher).train()
    answers = torch.cat([model(x)[1].argmax(dim=1) for x in mixed])
    shares = answers != right, classes([images]) != before
    return [percent(share.double().mean().item(), 0) for share in shares]


def ask_before_mixing(teacher, images, labels, mix):
    # wrong: of other images
    teacher_logits = teacher(images)
    images, labels = mix(images, labels)
    return images, (labels, teacher_logits)


def ask_after_mixing(
    teacher: nn.Module, images: Tensor, labels: Tensor, mix: Callable
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    return ask_teacher(teacher, mix)(images, labels)


def the_answer_is_about_the_images(ask):
    torch.manual_seed(0)
    teacher, mix = small(VisionTransformer), v2.MixUp(num_classes=10)
    images, labels = random(4, 3, 8, 12), torch.arange(4)
    images, (_, teacher_logits) = ask(teacher, images, labels, mix)
    assert_equal(teacher_logits, teacher(images))


def classes_of_other_images() -> list[str]:
    """A teacher of digits: the class whose mean image is the nearest."""
    data = split_digits()
    images, labels = data.train_images, data.train_labels
    means = torch.stack([images[labels == k].mean(dim=0) for k in range(10)])
    means = means.flatten(1)

    def teacher(x: Tensor) -> Tensor:
        return -torch.cdist(x.flatten(1), means)

    right = (teacher(images).argmax(dim=1) == labels).float().mean().item()
    torch.manual_seed(0)
    mix, other = v2.MixUp(alpha=0.8, num_classes=10), []
    for _ in range(10):
        for batch in torch.randperm(len(images)).split(64):
            mixed, (_, before) = ask_before_mixing(
                teacher, images[batch], labels[batch], mix
            )
            after = teacher(mixed).argmax(dim=1)
            other.append(after != before.argmax(dim=1))
    share = torch.cat(other).float().mean().item()
    return [percent(right, 0), percent(share, 0)]


def loss_of_the_first_output(outputs, targets):
    labels, _ = targets
    # wrong: the second gets no loss
    return F.cross_entropy(outputs[0], labels)


def loss_of_both_outputs(
    outputs: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor]
) -> Tensor:
    return hard_distillation_loss(*outputs, *targets)


def a_head_that_answers_is_trained(loss_fn):
    images, labels, teacher_logits = batch_of_two()
    model = small(DistilledVisionTransformer).train()
    loss = loss_fn(model(images), (labels, teacher_logits))
    assert has_all_gradients(model, loss)


@torch.no_grad()
def how_sure_half_an_answer_is() -> list[str]:
    """The class head is 99 % sure of one class of ten."""
    model = DistilledVisionTransformer(
        16, num_classes=10, embed_dim=64, depth=1, num_heads=1
    )
    model.head.bias[0] = math.log(0.99 / (0.01 / 9))
    images = torch.zeros(1, 3, 16, 16)
    class_head = model.train()(images)[0].softmax(dim=1)
    both = model.eval()(images).softmax(dim=1)
    return [percent(p[0, 0].item(), 0) for p in (class_head, both)]


def student_without_a_token(**options):
    # wrong: the one with one token
    return timm.create_model("deit_base_patch16_224", **options)


def student_of_the_package(**options) -> nn.Module:
    return create_model("deit_base_distilled_patch16_224", **options)


def small_student(build):
    return small(
        lambda img_size, patch_size, **options: build(
            img_size=img_size, patch_size=patch_size, **options
        )
    )


def a_student_in_training_gives_two_answers(build):
    student = small_student(build).train()
    answers = student(random(3, 3, 8, 12))  # not two images
    assert len(answers) == 2
    assert not answers[0].equal(answers[1])


def what_a_student_without_a_token_lacks() -> list[str]:
    numbers = []
    for build in student_without_a_token, student_of_the_package:
        with torch.device("meta"):
            rows = build().pos_embed.shape[1]
        numbers += [parameters(build), f"{rows}"]
    # The label says class 0, and the teacher class 1.
    label, teacher = torch.tensor([0]), torch.tensor([[0.0, 1.0]])
    sure_of_0, sure_of_1 = torch.tensor([[[50.0, 0.0]], [[0.0, 50.0]]])
    both = torch.linspace(-5, 5, 101)
    answers = torch.stack([both, -both], dim=1)[:, None]
    one = [hard_distillation_loss(x, x, label, teacher) for x in answers]
    two = hard_distillation_loss(sure_of_0, sure_of_1, label, teacher)
    return [*numbers, f"{min(one):.2f}", f"{two:.2f}"]


def batches_with_copies_in_a_row(num_images, batch_size, repeats):
    order = torch.randperm(num_images)
    # wrong: MixUp takes the one before
    order = order.repeat_interleave(repeats)
    return list(order[:num_images].split(batch_size))


def batches_of_the_package(
    num_images: int, batch_size: int, repeats: int
) -> list[Tensor]:
    sampler = RepeatedAugmentation(num_images, batch_size, repeats=repeats)
    return [torch.tensor(batch) for batch in sampler]


def no_image_is_mixed_with_itself(make_batches):
    for batch in make_batches(48, 12, 3):
        images = batch.double().view(-1, 1, 1, 1)
        mix = v2.MixUp(num_classes=48)
        mixed, _ = mix(images, batch)
        assert (mixed != images).all()


def shares_that_are_mixed_with_themselves() -> list[str]:
    torch.manual_seed(0)
    shares = []
    for form in batches_with_copies_in_a_row, batches_of_the_package:
        batches = torch.stack(form(1280, 128, 3))
        same = batches == batches.roll(1, dims=1)
        shares.append(percent(same.double().mean().item(), 0))
    return shares


def randaugment_of_nine():
    # wrong: 9 of 30, and not of 10
    return v2.RandAugment(num_ops=2, magnitude=9)


def deit_augmentation_alone() -> Callable[[Tensor], Tensor]:
    """Without crop, flip and noise."""
    return deit_augmentation(
        224, [0.0], [1.0], crop_scale=(1.0, 1.0), flip=0.0, erasing=0.0
    )


def largest_turn(augment):
    """How steep an edge becomes in 100 trials, in degrees."""
    image = torch.zeros(1, 224, 224, dtype=torch.uint8)
    image[:, 112:] = 255  # the lower half is white
    angles = [0.0]
    for _ in range(100):
        new = augment(image)[0, :, 62:163]
        white = new > new.max() / 2
        if white.any(dim=0).all():
            edge = white.float().argmax(dim=0)  # row of each column
            slope = (edge[-1] - edge[0]) / 100
            angles.append(slope.abs().atan().rad2deg().item())
    return max(angles)


def turns_of_20_degrees_occur(build):
    torch.manual_seed(0)
    assert largest_turn(build()) > 20


def turns_of_two_magnitudes() -> list[str]:
    torch.manual_seed(0)
    return [
        f"{largest_turn(v2.RandAugment(num_ops=1, magnitude=magnitude)):.0f}"
        for magnitude in (9, 27)
    ]


# --- Chapter 15: Swin windows ------------------------------------------


def attend_in_windows(attention, x, window, bias=None):
    """Attention of chapter 04 in each window of a map."""
    windows = attention(window_partition(x, window), bias)
    return window_reverse(windows, window, tuple(x.shape[1:3]))


def shift_of_the_package(
    attention: MultiHeadSelfAttention, x: Tensor, window: int, shift: int
) -> Tensor:
    layer = WindowAttention(attention.dim, attention.num_heads, window, shift)
    nn.init.zeros_(layer.to(x).relative_position_bias_table)
    layer.load_state_dict(attention.state_dict(), strict=False)
    return layer(x)


def tokens_that_see(shifted, grid, place, window=4, shift=2):
    """Tokens of a map that change with the token at one place."""
    attention = randomize(MultiHeadSelfAttention(8, 4))
    return tokens_that_change(
        lambda x: shifted(attention, x, window, shift),
        random(1, *grid, 8),
        (0, *place),
    )


def shift_without_a_mask(attention, x, window, shift):
    gh, gw = x.shape[1:3]
    x = pad_to_windows(x, window)
    x = x.roll((-shift, -shift), dims=(1, 2))
    # wrong: opposite borders meet
    x = attend_in_windows(attention, x, window)
    x = x.roll((shift, shift), dims=(1, 2))
    return x[:, :gh, :gw]


def the_corner_is_seen_by_its_neighbors_only(shifted):
    tokens = tokens_that_see(shifted, (8, 8), (0, 0))
    assert tokens == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]


def tokens_that_see_the_corner() -> list[str]:
    """And windows that hold several regions, of the maps of two stages."""
    numbers = [
        f"{len(tokens_that_see(form, (8, 8), (0, 0)))}"
        for form in (shift_without_a_mask, shift_of_the_package)
    ]
    for grid in 56, 14:
        mixed = shift_mask(grid, 7, 3).isinf().flatten(1).any(dim=1)
        numbers += [f"{mixed.sum()}", f"{len(mixed)}"]
    attention, x = randomize(MultiHeadSelfAttention(8, 4)), random(1, 8, 8, 8)
    wrong, right = (
        form(attention, x, 4, 2)
        for form in (shift_without_a_mask, shift_of_the_package)
    )
    other = (wrong - right).abs().amax(dim=-1) > 1e-12
    record = recorded.load("swin_windows")
    settings = {"task": "match", "depth": 4, "steps": 800}
    accuracies = (
        record.mean_and_std("accuracy", attention=kind, **settings)[0]
        for kind in ("shifted", "shifted, no mask")
    )
    return [
        *numbers,
        f"{other.sum()}",
        f"{other.numel()}",
        *(percent(accuracy / 100) for accuracy in accuracies),
    ]


def shift_with_a_mask_for_each_head(attention, x, window, shift):
    mask = shift_mask(tuple(x.shape[1:3]), window, shift)  # (nW, N, N)
    x = x.roll((-shift, -shift), dims=(1, 2))
    # wrong: it is read as (h, N, N)
    x = attend_in_windows(attention, x, window, mask)
    return x.roll((shift, shift), dims=(1, 2))


def pairs_with_the_mask_of_another_window() -> list[str]:
    """Shares of the hidden pairs that are seen, and of the seen hidden."""
    apart = shift_mask(8, 4, 2).isinf()  # (4, 16, 16)
    right, wrong = torch.broadcast_tensors(apart[:, None], apart[None])
    return [
        percent(share.double().mean().item(), 0)
        for share in (~wrong[right], wrong[~right])
    ]


def shift_with_a_mask_that_shows(attention, x, window, shift):
    mask = shift_mask(tuple(x.shape[1:3]), window, shift)
    # wrong: not minus 255
    mask = 255.0 * mask.isinf()
    mask = mask[:, None].repeat(len(x), 1, 1, 1)
    x = x.roll((-shift, -shift), dims=(1, 2))
    x = attend_in_windows(attention, x, window, mask)
    return x.roll((shift, shift), dims=(1, 2))


def neighbors_that_see_the_corner() -> list[str]:
    """All tokens that do, and those of its region."""
    tokens = tokens_that_see(shift_with_a_mask_that_shows, (8, 8), (0, 0))
    near = [token for token in tokens if max(token) < 2]
    mixed = shift_mask(56, 7, 3).isinf().flatten(1).any(dim=1)
    whole = [f"{(~mixed).sum()}", f"{len(mixed)}"]
    return [f"{len(tokens) - len(near)}", f"{len(near)}", "4", *whole]


def shift_inside_the_windows(attention, x, window, shift):
    grid = tuple(x.shape[1:3])
    x = window_partition(x, window).unflatten(1, (window, window))
    # wrong: each window by itself
    x = x.roll((-shift, -shift), dims=(1, 2))
    mask = shift_mask(grid, window, shift)[:, None]
    mask = mask.repeat(len(x) // len(mask), 1, 1, 1)
    x = attention(x.flatten(1, 2), mask)
    x = x.unflatten(1, (window, window))
    x = x.roll((shift, shift), dims=(1, 2))
    return window_reverse(x.flatten(1, 2), window, grid)


def a_window_lies_across_the_old_borders(shifted):
    tokens = tokens_that_see(shifted, (8, 8), (3, 4))
    assert tokens == [[0, r, c] for r in range(2, 6) for c in range(2, 6)]


def tokens_after_ten_blocks() -> list[str]:
    """Blocks without and with a shift take turns."""

    def blocks(shifted: Callable) -> Callable:
        def run(attention: nn.Module, x: Tensor, *sizes: int) -> Tensor:
            for _ in range(5):
                x = x + attend_in_windows(attention, x, sizes[0])
                x = F.layer_norm(x, (8,))
                x = F.layer_norm(x + shifted(attention, x, *sizes), (8,))
            return x

        return run

    forms = shift_inside_the_windows, shift_of_the_package
    return [
        f"{len(tokens_that_see(blocks(form), (8, 8), (0, 0)))}"
        for form in forms
    ]


def shift_before_padding(attention, x, window, shift):
    gh, gw = x.shape[1:3]
    x = x.roll((-shift, -shift), dims=(1, 2))
    # wrong: first pad, then roll
    x = pad_to_windows(x, window)
    mask = shift_mask(tuple(x.shape[1:3]), window, shift)
    mask = mask[:, None].repeat(len(x), 1, 1, 1)
    x = attend_in_windows(attention, x, window, mask)[:, :gh, :gw]
    return x.roll((shift, shift), dims=(1, 2))


def corners_of_padded_maps_are_seen_by_neighbors_only(shifted):
    for grid in (5, 8), (8, 7), (5, 7):
        tokens = tokens_that_see(shifted, grid, (0, 0))
        assert tokens == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]


def leaks(shifted, grid, window, shift):
    """Pairs of tokens of different regions, of which one sees the other."""

    def region(place):
        return [(p - shift) // window for p in place]

    sizes = {"window": window, "shift": shift}
    return [
        (place, other)
        for place in product(*map(range, grid))
        for _, *other in tokens_that_see(shifted, grid, place, **sizes)
        if region(place) != region(other)
    ]


def leaks_and_losses_of_padding_late() -> list[str]:
    """Of all pairs of tokens on a map of 5 x 7 that see each other."""

    def pairs(shifted: Callable) -> set[tuple]:
        return {
            (place, *other)
            for place in product(range(5), range(7))
            for _, *other in tokens_that_see(shifted, (5, 7), place)
        }

    wrong, right = pairs(shift_before_padding), pairs(shift_of_the_package)
    return [f"{len(p)}" for p in (wrong - right, right - wrong, right)]


def shift_with_interleaved_masks(attention, x, window, shift):
    mask = shift_mask(tuple(x.shape[1:3]), window, shift)[:, None]
    # wrong: windows 0, 0, 1, 1, and so on
    mask = mask.repeat_interleave(len(x), dim=0)
    x = x.roll((-shift, -shift), dims=(1, 2))
    x = attend_in_windows(attention, x, window, mask)
    return x.roll((shift, shift), dims=(1, 2))


def images_do_not_depend_on_the_batch(shifted):
    attention = randomize(MultiHeadSelfAttention(8, 4))
    x = random(2, 8, 8, 8)
    alone = [shifted(attention, image, 4, 2) for image in x.split(1)]
    assert_equal(shifted(attention, x, 4, 2), torch.cat(alone))


def windows_with_the_mask_of_another_one() -> list[str]:
    """For one image, and for two: those that should have another mask."""
    mask = shift_mask(56, 7, 3)
    numbers = []
    for images in 1, 2:
        right = mask.repeat(images, 1, 1)
        wrong = mask.repeat_interleave(images, dim=0)
        other = (wrong != right).flatten(1).any(dim=1)
        numbers += [f"{other.sum()}", f"{len(other)}"]
    return numbers


def shift_of_the_only_window(attention, x, window, shift):
    gh, gw = x.shape[1:3]
    x = pad_to_windows(x, window)
    # wrong: along each axis
    x = x.roll((-shift, -shift), dims=(1, 2))
    mask = shift_mask(tuple(x.shape[1:3]), window, shift)
    mask = mask[:, None].repeat(len(x), 1, 1, 1)
    x = attend_in_windows(attention, x, window, mask)
    return x.roll((shift, shift), dims=(1, 2))[:, :gh, :gw]


def the_only_window_sees_the_whole_map(shifted):
    attention = randomize(MultiHeadSelfAttention(8, 4))
    x = random(2, 4, 4, 8)
    expected = attention(x.flatten(1, 2)).unflatten(1, (4, 4))
    assert_equal(shifted(attention, x, 4, 2), expected)


def pairs_of_the_last_stage() -> list[str]:
    """One window of 7 x 7 tokens, with and without a shift."""
    return [
        percent((shift_mask(7, 7, shift) == 0).double().mean().item(), 0)
        for shift in (3, 0)
    ]


def tokens_that_change_by_a_constant(function, x, index):
    other = x.clone()
    # wrong: a norm takes it away
    other[index] += 1
    moved = (function(other) - function(x)).abs().amax(-1) > 1e-12
    return moved.nonzero().tolist()


def branch_without_a_mask() -> Callable[[Tensor], Tensor]:
    """A norm, shifted windows without a mask, and a residual connection."""
    norm = randomize(nn.LayerNorm(8))
    attention = randomize(MultiHeadSelfAttention(8, 4))
    return lambda x: x + shift_without_a_mask(attention, norm(x), 4, 2)


def the_missing_mask_is_found_behind_a_norm(changes):
    x = random(1, 8, 8, 8)
    tokens = changes(branch_without_a_mask(), x, (0, 0, 0))
    assert [0, 7, 7] in tokens


def tokens_behind_a_norm() -> list[str]:
    x = random(1, 8, 8, 8)
    return [
        f"{len(changes(branch_without_a_mask(), x, (0, 0, 0)))}"
        for changes in (tokens_that_change_by_a_constant, tokens_that_change)
    ]


def leaks_of_a_padded_map(shifted):
    # wrong: rolled tokens meet only zeros
    return leaks(shifted, (7, 10), 4, 3)


def leaks_of_a_tiled_map(shifted: Callable) -> list[tuple]:
    return leaks(shifted, (8, 8), 4, 3)


def a_missing_mask_leaks(leaks_of):
    assert leaks_of(shift_without_a_mask)


def leaks_without_a_mask() -> list[str]:
    return [
        f"{len(leaks_of(shift_without_a_mask)):,}"
        for leaks_of in (leaks_of_a_padded_map, leaks_of_a_tiled_map)
    ]


# --- Chapter 16: Swin Transformer --------------------------------------


class MergingInReadingOrder(PatchMerging):
    def forward(self, x):
        x = rearrange(
            x,
            # wrong: not (right down d)
            "b (gh down) (gw right) d -> b gh gw (down right d)",
            down=2,
            right=2,
        )
        return self.reduction(self.norm(x))


def merging_equals_the_one_of_torchvision(merging_class):
    theirs = randomize(TorchvisionMerging(8))
    ours = merging_class(8).double()
    ours.load_state_dict(theirs.state_dict())
    x = random(2, 4, 6, 8)
    assert_equal(ours(x), theirs(x))


def miss_of_reading_order() -> list[str]:
    right, x = randomize(PatchMerging(96)), random(1, 56, 56, 96)
    nn.init.ones_(right.norm.weight)
    wrong = MergingInReadingOrder(96).double()
    wrong.load_state_dict(right.state_dict())
    return [f"{miss(wrong(x), right(x)):.1f}"]


class MergingBeforeTheNorm(PatchMerging):
    def __init__(self, dim):
        super().__init__(dim)
        # wrong: of 4 * dim, before it
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x):
        x = rearrange(
            x,
            "b (gh down) (gw right) d -> b gh gw (right down d)",
            down=2,
            right=2,
        )
        return self.norm(self.reduction(x))


@torch.no_grad()
def twice_the_weights_are_twice_the_output(merging_class):
    merging, x = randomize(merging_class(8)), random(2, 4, 6, 8)
    before = merging(x)
    merging.reduction.weight.mul_(2)
    assert_equal(merging(x), 2 * before)


def parameters_of_all_mergings() -> list[str]:
    """Of the smallest published model, and how many fewer."""
    right, wrong = (
        int(
            parameters(
                lambda c=merging_class: nn.ModuleList(
                    c(96 * 2**i) for i in range(3)
                )
            ).replace(",", "")
        )
        for merging_class in (PatchMerging, MergingBeforeTheNorm)
    )
    with torch.device("meta"):
        model = create_model("swin_tiny_patch4_window7_224")
    total = sum(p.numel() for p in model.parameters())
    return [f"{right - wrong:,}", f"{total:,}"]


class SwinBlockWithTheEpsOfViT(SwinBlock):
    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        # wrong: Swin has 1e-5
        self.norm1.eps = self.norm2.eps = 1e-6


def a_block_equals_the_one_of_torchvision(block_class):
    theirs = randomize(TorchvisionBlock(8, 2, [4, 4], [2, 2])).eval()
    weights = swin_from_torchvision(
        {f"features.1.0.{k}": w for k, w in theirs.state_dict().items()}
    )
    ours = block_class(8, 2, 4, 2).double()
    start = len("layers.0.blocks.0.")
    ours.load_state_dict({k[start:]: w for k, w in weights.items()})
    x = random(2, 8, 8, 8)
    assert_equal(ours(x), theirs(x))


@torch.no_grad()
def gaps_of_two_eps() -> list[str]:
    """Of a fresh block, for tokens of two sizes."""

    def gap(std: float) -> float:
        outputs = []
        for form in SwinBlockWithTheEpsOfViT, SwinBlock:
            torch.manual_seed(0)
            block = form(96, 3, 7, 3).double()
            outputs.append(block(std * random(1, 14, 14, 96)))
        return (outputs[0] - outputs[1]).abs().max().item()

    return [f"{gap(std):.0e}" for std in (1, 0.01)]


def rates_for_each_stage(drop_path, depths):
    return [
        # wrong: begins at 0 again
        [drop_path * i / max(1, depth - 1) for i in range(depth)]
        for depth in depths
    ]


def rates_of_the_package(
    drop_path: float, depths: tuple[int, ...]
) -> list[list[float]]:
    with torch.device("meta"):
        model = SwinTransformer(
            32,
            embed_dim=8,
            depths=depths,
            num_heads=[1] * len(depths),
            drop_path=drop_path,
        )
    return [
        [block.drop_path.drop_path for block in stage.blocks]
        for stage in model.layers
    ]


def the_rates_rise_evenly_through_all_stages(rates):
    stages = rates(0.2, (2, 2, 6, 2))
    blocks = [rate for stage in stages for rate in stage]
    assert blocks == pytest.approx([0.2 * i / 11 for i in range(12)])


def rates_of_two_blocks() -> list[str]:
    """Of the second block and the first of the last stage, and the mean."""
    numbers = []
    for form in rates_for_each_stage, rates_of_the_package:
        stages = form(0.2, (2, 2, 6, 2))
        mean = sum(map(sum, stages)) / 12
        rates = stages[0][1], stages[3][0], mean
        numbers += [percent(rate, 0) for rate in rates]
    return numbers


# --- The exhibits ------------------------------------------------------


@dataclass(frozen=True)
class Exhibit:
    """A bug, and what does and does not find it.

    Args:
        chapter: The chapter that builds the part.
        wrong: The wrong form, which the page quotes.
        right: The form of the package.
        use: What a test of shapes looks at: its output for one candidate.
        proof: The property, which the page quotes: it raises AssertionError.
        numbers: Measures the numbers that the page states, in bold.
    """

    chapter: int
    wrong: Callable
    right: Callable
    use: Callable[[Callable], Tensor]
    proof: Callable[[Callable], None]
    numbers: Callable[[], list[str]]

    @property
    def name(self) -> str:
        return self.wrong.__name__

    @property
    def target(self) -> str:
        """The name of its section on the page."""
        return self.name.lower().replace("_", "-")


def cut_16(cut: Callable) -> Tensor:
    return cut(random(2, 3, 224, 224), 16)


def resize_14_to_24(resize: Callable) -> Tensor:
    return resize(random(1, 197, 4), (14, 14), (24, 24))


def attend(attention: Callable) -> Tensor:
    return attention(*random(3, 2, 3, 5, 4))


def run_layer(layer_class: Callable) -> Tensor:
    return randomize(layer_class(12, 3))(random(2, 5, 12))


def run_mlp(mlp_class: Callable) -> Tensor:
    return randomize(mlp_class(12))(random(2, 5, 12))


def run_model(model_class: Callable) -> Tensor:
    return small(model_class)(random(2, 3, 8, 12))


def some_batches() -> DataLoader:
    return DataLoader(ImageDataset(random(4, 3, 8, 12), torch.arange(4)), 2)


def groups_of_a_model(make_groups: Callable) -> Tensor:
    groups = make_groups(small(VisionTransformer), 0.05)
    return torch.zeros(sum(len(group["params"]) for group in groups))


def load_a_batch(make_loader: Callable) -> Tensor:
    images = random(4, 3, 8, 12).mul(50).abs().byte()
    return next(iter(make_loader(images, torch.arange(4))))[0]


def train_for_an_epoch(train: Callable) -> Tensor:
    model = small(VisionTransformer)
    optimizer = AdamW(model.parameters(), lr=1e-3)
    train(model, some_batches(), optimizer, warmup_cosine(optimizer, 1, 2))
    return model(random(2, 3, 8, 12))


def train_with_a_file(train: Callable) -> Tensor:
    model = small(VisionTransformer)
    with TemporaryDirectory() as folder:
        train(model, list(some_batches()), Path(folder, "file"))
    return model(random(2, 3, 8, 12))


def train_for_two_epochs(train: Callable) -> Tensor:
    model, batches = small(VisionTransformer), list(some_batches())
    train(model, batches, batches, 2)
    return model(random(2, 3, 8, 12))


def measure_a_model(measure: Callable) -> Tensor:
    model = small(VisionTransformer)
    return torch.tensor(measure(model, some_batches()))


def measure_a_convolution(measure: Callable) -> Tensor:
    return torch.tensor(measure(randomize(nn.Conv2d(3, 8, 3, padding=1))))


def learn_and_measure(measure: Callable) -> Tensor:
    model = fresh(VisionTransformer)
    return torch.tensor(measure(model, some_batches(), some_batches()))


def train_a_hybrid(train: Callable) -> Tensor:
    model = small(HybridVisionTransformer)
    train(model, some_batches())
    return model(random(2, 3, 8, 12))


def load_and_run(load: Callable) -> Tensor:
    model = fresh(VisionTransformer)
    load(model, small(VisionTransformer).state_dict())
    return model(random(2, 3, 8, 12))


def train_with_groups(make_groups: Callable) -> Tensor:
    model = torchvision_vit(32, 8, 2, 4, 48, 96)
    optimizer = AdamW(make_groups(model))
    images = torch.zeros(2, 3, 32, 32)
    F.cross_entropy(model(images), torch.tensor([3, 9])).backward()
    optimizer.step()
    return model(images)


def train_with_rates(make_rates: Callable) -> Tensor:
    model = fresh(VisionTransformerDistilled)
    rates = make_rates(model, 1e-3, 0.75)
    optimizer = AdamW(learning_rate_groups(model, rates, 0.05))
    images = random(2, 3, 8, 12)
    model(images).sum().backward()
    optimizer.step()
    return model(images)


def freeze_and_run(freeze: Callable) -> Tensor:
    model = small(VisionTransformer)
    freeze(model, "blocks.1")
    return model(random(2, 3, 8, 12))


def measure_a_prediction(loss: Callable) -> Tensor:
    model = autoencoder_of_patches((8, 12), 4, 12)
    outputs = random(2, 6, 48), mask_of_two()
    return loss(model, outputs, random(2, 3, 8, 12))


def classes_of_random_colors(classes_of: Callable) -> Tensor:
    return classes_of(torch.rand(2, 3, 8, 12), 4)


def roll_out(rollout: Callable) -> Tensor:
    layers = [random(1, 2, 7, 7, seed=seed) for seed in (1, 2, 3)]
    return rollout([layer.softmax(dim=-1) for layer in layers])


def stacked_weights(weights_of: Callable) -> Tensor:
    model = small(VisionTransformer)
    return torch.stack(weights_of(model, random(2, 3, 8, 12)))


def measure_a_distance(distance: Callable) -> Tensor:
    return distance(*random(2, 4, 5), 3.0)


def distill_a_batch(loss: Callable) -> Tensor:
    return loss(small(DistilledVisionTransformer), *batch_of_two())


def train_with_a_teacher(wrap: Callable) -> Tensor:
    teacher = randomize(SmallCNN())
    model = wrap(small(DistilledVisionTransformer), teacher).train()
    return model(random(2, 3, 8, 12))[1]


def ask_a_teacher(ask: Callable) -> Tensor:
    images, labels = random(4, 3, 8, 12), torch.arange(4)
    mix = v2.MixUp(num_classes=10)
    _, (_, answer) = ask(small(VisionTransformer), images, labels, mix)
    return answer


def shift_a_map(shifted: Callable) -> Tensor:
    attention = randomize(MultiHeadSelfAttention(8, 4))
    return shifted(attention, random(2, 8, 8, 8), 4, 2)


def merge_a_map(merging_class: Callable) -> Tensor:
    return randomize(merging_class(8))(random(2, 4, 6, 8))


EXHIBITS = [
    Exhibit(
        1,
        patches_by_reshape,
        patchify,
        cut_16,
        patch_0_holds_the_pixels_of_its_square,
        share_of_the_reshaped_patch_in_its_square,
    ),
    Exhibit(
        1,
        patches_with_channels_last,
        patchify,
        cut_16,
        patches_fit_the_kernel_of_a_convolution,
        miss_of_channels_last,
    ),
    Exhibit(
        1,
        PatchEmbedWithoutACheck,
        PatchEmbed,
        lambda embed: embed(16, 3, 8)(torch.zeros(2, 3, 224, 224)),
        every_pixel_counts_or_is_refused,
        pixels_without_a_gradient,
    ),
    Exhibit(
        2,
        mean_of_all_tokens,
        partial(pool, mode="mean"),
        lambda mean: mean(random(2, 17, 8)),
        the_class_token_is_not_in_the_mean,
        share_of_the_class_token,
    ),
    Exhibit(
        2,
        TokenForEachPlaceInTheBatch,
        TokenForAllImages,
        lambda layer: layer(2, 8)(torch.zeros(2, 4, 8)),
        equal_images_get_equal_tokens,
        numbers_in_the_class_token,
    ),
    Exhibit(
        2,
        token_from_randn,
        token_of_the_package,
        lambda make: make(768),
        the_token_starts_smaller_than_a_patch,
        size_of_a_token_from_randn,
    ),
    Exhibit(
        3,
        VitWithoutPositions,
        VisionTransformer,
        run_model,
        shuffled_patches_give_other_logits,
        effect_of_shuffled_patches,
    ),
    Exhibit(
        3,
        resize_to_a_square,
        resize_pos_embed,
        resize_14_to_24,
        patches_of_one_row_stay_in_one_row,
        rows_of_tables_guessed_square,
    ),
    Exhibit(
        3,
        resize_with_a_guessed_prefix,
        resize_pos_embed,
        resize_14_to_24,
        the_class_token_keeps_its_row,
        rows_of_a_table_with_a_guessed_prefix,
    ),
    Exhibit(
        3,
        resize_if_the_table_is_shorter,
        resize_pos_embed,
        lambda resize: resize(random(1, 577, 4), (24, 24), (14, 14)),
        the_last_row_is_still_the_last,
        part_of_the_table_that_is_cut_off,
    ),
    Exhibit(
        4,
        block_without_batch_first,
        EncoderBlock,
        run_layer,
        every_token_sees_its_own_image_only,
        what_another_image_changes,
    ),
    Exhibit(
        4,
        softmax_over_the_queries,
        attention_of_the_package,
        attend,
        equal_values_are_their_own_average,
        averages_of_ones,
    ),
    Exhibit(
        4,
        attention_without_the_scale,
        attention_of_the_package,
        attend,
        attention_equals_the_one_of_pytorch,
        largest_weights,
    ),
    Exhibit(
        4,
        AttentionWithMixedHeads,
        MultiHeadSelfAttention,
        run_layer,
        shuffled_tokens_give_shuffled_outputs,
        miss_of_mixed_heads,
    ),
    Exhibit(
        4,
        AttentionWithHeadsFirst,
        MultiHeadSelfAttention,
        run_layer,
        weights_of_timm_give_the_outputs_of_timm,
        miss_of_heads_first,
    ),
    Exhibit(
        4,
        CausalAttention,
        MultiHeadSelfAttention,
        run_layer,
        every_token_sees_every_token,
        what_a_causal_mask_hides,
    ),
    Exhibit(
        4,
        AttentionOfFixedLength,
        MultiHeadSelfAttention,
        run_layer,
        the_last_of_197_tokens_is_seen,
        patches_beyond_the_length,
    ),
    Exhibit(
        5,
        NarrowMlp,
        Mlp,
        run_mlp,
        the_mlp_of_the_base_model_has_4722432_weights,
        weights_of_narrow_mlps,
    ),
    Exhibit(
        5,
        ReluMlp,
        Mlp,
        run_mlp,
        the_mlp_equals_the_one_of_timm,
        gap_of_relu,
    ),
    Exhibit(
        5,
        TanhMlp,
        Mlp,
        run_mlp,
        the_mlp_equals_the_one_of_timm,
        gap_of_tanh_gelu,
    ),
    Exhibit(
        6,
        BlockWithOneState,
        EncoderBlock,
        run_layer,
        the_block_equals_the_one_of_timm,
        miss_of_one_state,
    ),
    Exhibit(
        6,
        BlockWithDefaultEps,
        EncoderBlock,
        run_layer,
        the_block_equals_the_one_of_timm,
        effect_of_eps,
    ),
    Exhibit(
        6,
        PostNormBlock,
        EncoderBlock,
        run_layer,
        silent_branches_leave_the_tokens_alone,
        what_is_left_of_the_input,
    ),
    Exhibit(
        6,
        one_block_many_times,
        blocks_of_the_package,
        lambda stack: stack(12, 3, 3)(torch.zeros(2, 5, 12)),
        three_blocks_have_three_times_the_weights,
        weights_of_twelve_blocks,
    ),
    Exhibit(
        6,
        BlockWithOneNorm,
        EncoderBlock,
        run_layer,
        each_norm_has_its_own_weights,
        effect_of_one_norm,
    ),
    Exhibit(
        7,
        VitWithoutFinalNorm,
        VisionTransformer,
        run_model,
        every_parameter_has_a_gradient,
        sizes_of_what_the_head_reads,
    ),
    Exhibit(
        7,
        equal_on_fresh_weights,
        equal_on_redrawn_weights,
        lambda test: torch.tensor(test(VisionTransformer)),
        the_test_finds_each_broken_model,
        largest_fresh_logit,
    ),
    Exhibit(
        7,
        FortyLineVit,
        ten_class_vit,
        loss_on_ten_classes,
        ten_classes_have_ten_logits,
        losses_of_knowing_nothing,
    ),
    Exhibit(
        8,
        loader_of_raw_pixels,
        loader_of_normalized_pixels,
        load_a_batch,
        each_channel_has_mean_0_and_deviation_1,
        tokens_of_raw_pixels,
    ),
    Exhibit(
        8,
        augment_a_batch,
        augment_each_image,
        lambda augment: augment(random(2, 3, 32, 32)),
        copies_of_an_image_become_different,
        versions_of_an_image,
    ),
    Exhibit(
        8,
        loss_of_probabilities,
        F.cross_entropy,
        lambda loss: loss(random(2, 10), torch.tensor([3, 9])),
        a_sure_and_right_model_has_no_loss,
        losses_and_gradients_of_probabilities,
    ),
    Exhibit(
        8,
        decay_of_everything,
        parameter_groups,
        groups_of_a_model,
        weight_decay_shrinks_matrices_only,
        what_decay_leaves_of_a_norm,
    ),
    Exhibit(
        8,
        train_with_one_step_an_epoch,
        train_one_epoch,
        train_for_an_epoch,
        the_learning_rate_ends_at_zero,
        learning_rate_of_the_last_epoch,
    ),
    Exhibit(
        8,
        fit_with_a_file_of_weights,
        fit_with_a_checkpoint,
        train_with_a_file,
        a_stopped_run_ends_like_one_that_was_not,
        learning_rates_after_a_stop,
    ),
    Exhibit(
        8,
        evaluate_in_training_mode,
        evaluate,
        measure_a_model,
        it_does_not_matter_which_images_share_a_batch,
        accuracies_in_training_mode,
    ),
    Exhibit(
        8,
        train_on_after_a_test,
        train_and_test,
        train_for_two_epochs,
        each_step_is_made_in_training_mode,
        epochs_in_training_mode,
    ),
    Exhibit(
        8,
        accuracy_of_batches,
        accuracy_of_images,
        measure_a_model,
        every_image_counts_the_same,
        accuracies_with_two_mistakes,
    ),
    Exhibit(
        8,
        evaluate_in_one_tensor,
        evaluate,
        measure_a_model,
        bfloat16_counts_each_right_answer,
        accuracies_in_bfloat16,
    ),
    Exhibit(
        8,
        accuracy_after_training,
        accuracy_of_fit,
        learn_and_measure,
        a_class_that_was_never_shown_is_not_known,
        accuracies_of_random_labels,
    ),
    Exhibit(
        9,
        shift_error_of_an_empty_border,
        shift_error_of_a_full_image,
        measure_a_convolution,
        the_measurement_finds_the_border,
        shift_errors,
    ),
    Exhibit(
        9,
        cnn_that_flattens,
        cnn_of_the_package,
        lambda build: build(48)(torch.zeros(2, 3, 48, 48)),
        logits_do_not_depend_on_the_place,
        effects_of_a_place,
    ),
    Exhibit(
        9,
        shuffle_in_a_new_order,
        shuffle_in_one_order,
        lambda shuffle: shuffle(random(2, 3, 16, 16), 4),
        each_patch_has_the_same_new_place_in_every_image,
        accuracies_of_shuffled_digits,
    ),
    Exhibit(
        10,
        train_the_head_of_a_frozen_model,
        train_the_head_on_features,
        train_a_hybrid,
        the_frozen_part_computes_what_it_did,
        what_batch_norm_forgets,
    ),
    Exhibit(
        10,
        shift_error_of_whole_tokens,
        shift_error_of_differences,
        lambda measure: torch.tensor(measure(fresh_stem())),
        a_constant_in_each_token_does_not_count,
        shift_errors_of_a_fresh_stem,
    ),
    Exhibit(
        11,
        load_without_strict,
        load_pretrained,
        load_and_run,
        the_weights_arrive_or_are_refused,
        tensors_that_a_prefix_keeps_out,
    ),
    Exhibit(
        11,
        load_what_fits,
        load_pretrained,
        load_and_run,
        every_weight_is_loaded_or_there_is_an_error,
        what_stays_random_in_a_distilled_model,
    ),
    Exhibit(
        11,
        model_with_guessed_heads,
        partial(model_with_heads, num_heads=4),
        lambda build: build(vit_of_four_heads().state_dict())(
            random(2, 3, 8, 12)
        ),
        the_weights_compute_what_they_did,
        effect_of_guessed_heads,
    ),
    Exhibit(
        11,
        normalize_as_usual,
        prepare_as_expected,
        lambda prepare: prepare(
            photographs(), preprocessing_of("vit_small_patch16_224")
        ),
        the_mean_of_the_weights_becomes_0,
        effect_of_another_normalization,
    ),
    Exhibit(
        11,
        groups_of_encoder_and_heads,
        groups_of_all_parts,
        train_with_groups,
        every_parameter_is_in_one_group,
        numbers_in_no_group,
    ),
    Exhibit(
        11,
        rates_by_a_list,
        layerwise_learning_rates,
        train_with_rates,
        all_tokens_have_the_smallest_rate,
        how_much_too_fast_a_token_learns,
    ),
    Exhibit(
        11,
        freeze_by_beginning,
        freeze_a_part,
        freeze_and_run,
        one_block_of_twelve_is_frozen,
        numbers_that_are_frozen,
    ),
    Exhibit(
        12,
        color_classes_of_three_levels,
        mean_color_classes,
        classes_of_random_colors,
        each_of_512_colors_has_its_own_class,
        classes_of_three_levels,
    ),
    Exhibit(
        12,
        color_classes_of_normalized_images,
        mean_color_classes,
        classes_of_random_colors,
        each_of_512_colors_has_its_own_class,
        patches_that_are_called_black,
    ),
    Exhibit(
        12,
        draw_mask_by_coin,
        draw_mask,
        lambda draw: draw(2, 196, 0.75),
        each_image_hides_as_many,
        visible_patches_by_coin,
    ),
    Exhibit(
        12,
        autoencoder_with_a_stem,
        autoencoder_of_patches,
        lambda build: build((8, 12), 4, 12)(torch.zeros(2, 3, 8, 12))[0],
        hidden_pixels_change_no_prediction,
        what_a_token_of_a_stem_sees,
    ),
    Exhibit(
        12,
        loss_of_all_patches,
        MaskedAutoencoder.loss,
        measure_a_prediction,
        a_visible_patch_does_not_count,
        losses_of_a_copy,
    ),
    Exhibit(
        12,
        paint_with_the_answer,
        paint_from_the_visible,
        lambda paint: paint(
            random(2, 6, 48), random(2, 3, 8, 12), mask_of_two(), 4
        ),
        hidden_pixels_change_no_picture,
        errors_of_painted_zeros,
    ),
    Exhibit(
        13,
        weights_of_first_tokens,
        attention_weights,
        stacked_weights,
        the_last_maps_depend_on_the_first_block,
        miss_of_maps_of_first_tokens,
    ),
    Exhibit(
        13,
        distance_without_the_class_column,
        attention_distance,
        lambda distance: distance(
            random(2, 3, 13, 13).softmax(dim=-1), (3, 4), 16
        ),
        the_class_token_does_not_shorten_the_distance,
        distances_of_even_attention,
    ),
    Exhibit(
        13,
        rollout_from_the_wrong_side,
        attention_rollout,
        roll_out,
        a_path_of_two_steps_is_found,
        maps_from_the_wrong_side,
    ),
    Exhibit(
        13,
        rollout_of_the_strongest,
        attention_rollout,
        roll_out,
        the_rows_of_a_rollout_sum_to_1,
        largest_sums_of_rows,
    ),
    Exhibit(
        13,
        similarity_by_dot_product,
        position_similarity,
        lambda similarity: similarity(random(1, 13, 8), (3, 4)),
        the_length_of_a_row_does_not_count,
        maps_where_one_place_is_brightest,
    ),
    Exhibit(
        14,
        distance_to_one_class,
        distance_of_the_package,
        measure_a_distance,
        the_second_place_counts,
        distances_of_a_copy_to_its_teacher,
    ),
    Exhibit(
        14,
        distance_over_all_numbers,
        distance_of_the_package,
        measure_a_distance,
        classes_in_two_halves_are_as_far,
        weights_of_a_mean_over_classes,
    ),
    Exhibit(
        14,
        distance_without_the_square,
        distance_of_the_package,
        measure_a_distance,
        three_times_the_logits_are_nine_times_as_far,
        gradients_at_a_high_temperature,
    ),
    Exhibit(
        14,
        distance_from_the_student,
        distance_of_the_package,
        measure_a_distance,
        a_sure_teacher_is_like_a_label,
        distances_to_an_undecided_teacher,
    ),
    Exhibit(
        14,
        loss_of_a_batch,
        loss_in_training_mode,
        distill_a_batch,
        the_head_of_the_labels_ignores_the_teacher,
        effects_of_exchanged_answers,
    ),
    Exhibit(
        14,
        StudentWithTeacher,
        StudentThatAsks,
        train_with_a_teacher,
        the_teacher_answers_as_it_did,
        answers_of_a_teacher_in_training_mode,
    ),
    Exhibit(
        14,
        ask_before_mixing,
        ask_after_mixing,
        ask_a_teacher,
        the_answer_is_about_the_images,
        classes_of_other_images,
    ),
    Exhibit(
        14,
        loss_of_the_first_output,
        loss_of_both_outputs,
        lambda loss_fn: loss_fn(
            tuple(random(2, 2, 10)), (torch.arange(2), random(2, 10))
        ),
        a_head_that_answers_is_trained,
        how_sure_half_an_answer_is,
    ),
    Exhibit(
        14,
        student_without_a_token,
        student_of_the_package,
        lambda build: small_student(build)(random(2, 3, 8, 12)),
        a_student_in_training_gives_two_answers,
        what_a_student_without_a_token_lacks,
    ),
    Exhibit(
        14,
        batches_with_copies_in_a_row,
        batches_of_the_package,
        lambda make_batches: torch.stack(make_batches(48, 12, 3)),
        no_image_is_mixed_with_itself,
        shares_that_are_mixed_with_themselves,
    ),
    Exhibit(
        14,
        randaugment_of_nine,
        deit_augmentation_alone,
        lambda build: build()(torch.zeros(1, 224, 224, dtype=torch.uint8)),
        turns_of_20_degrees_occur,
        turns_of_two_magnitudes,
    ),
    Exhibit(
        15,
        shift_without_a_mask,
        shift_of_the_package,
        shift_a_map,
        the_corner_is_seen_by_its_neighbors_only,
        tokens_that_see_the_corner,
    ),
    Exhibit(
        15,
        shift_with_a_mask_for_each_head,
        shift_of_the_package,
        shift_a_map,
        the_corner_is_seen_by_its_neighbors_only,
        pairs_with_the_mask_of_another_window,
    ),
    Exhibit(
        15,
        shift_with_a_mask_that_shows,
        shift_of_the_package,
        shift_a_map,
        the_corner_is_seen_by_its_neighbors_only,
        neighbors_that_see_the_corner,
    ),
    Exhibit(
        15,
        shift_inside_the_windows,
        shift_of_the_package,
        shift_a_map,
        a_window_lies_across_the_old_borders,
        tokens_after_ten_blocks,
    ),
    Exhibit(
        15,
        shift_before_padding,
        shift_of_the_package,
        shift_a_map,
        corners_of_padded_maps_are_seen_by_neighbors_only,
        leaks_and_losses_of_padding_late,
    ),
    Exhibit(
        15,
        shift_with_interleaved_masks,
        shift_of_the_package,
        shift_a_map,
        images_do_not_depend_on_the_batch,
        windows_with_the_mask_of_another_one,
    ),
    Exhibit(
        15,
        shift_of_the_only_window,
        shift_of_the_package,
        shift_a_map,
        the_only_window_sees_the_whole_map,
        pairs_of_the_last_stage,
    ),
    Exhibit(
        15,
        tokens_that_change_by_a_constant,
        tokens_that_change,
        lambda changes: torch.tensor(
            changes(nn.Identity(), random(1, 8, 8, 8), (0, 0, 0))
        ),
        the_missing_mask_is_found_behind_a_norm,
        tokens_behind_a_norm,
    ),
    Exhibit(
        15,
        leaks_of_a_padded_map,
        leaks_of_a_tiled_map,
        lambda leaks_of: torch.tensor(leaks_of(lambda attention, x, *_: x)),
        a_missing_mask_leaks,
        leaks_without_a_mask,
    ),
    Exhibit(
        16,
        MergingInReadingOrder,
        PatchMerging,
        merge_a_map,
        merging_equals_the_one_of_torchvision,
        miss_of_reading_order,
    ),
    Exhibit(
        16,
        MergingBeforeTheNorm,
        PatchMerging,
        merge_a_map,
        twice_the_weights_are_twice_the_output,
        parameters_of_all_mergings,
    ),
    Exhibit(
        16,
        SwinBlockWithTheEpsOfViT,
        SwinBlock,
        lambda block_class: randomize(block_class(8, 2, 4, 2))(
            random(2, 8, 8, 8)
        ),
        a_block_equals_the_one_of_torchvision,
        gaps_of_two_eps,
    ),
    Exhibit(
        16,
        rates_for_each_stage,
        rates_of_the_package,
        lambda rates: torch.cat([*map(torch.tensor, rates(0.2, (2, 2, 6, 2)))]),
        the_rates_rise_evenly_through_all_stages,
        rates_of_two_blocks,
    ),
]


each_exhibit = pytest.mark.parametrize(
    "exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name
)


@each_exhibit
def test_the_wrong_form_has_the_right_shape(exhibit):
    wrong, right = exhibit.use(exhibit.wrong), exhibit.use(exhibit.right)
    assert wrong.shape == right.shape


@each_exhibit
def test_the_proof_finds_the_wrong_form(exhibit):
    with pytest.raises(AssertionError):
        exhibit.proof(exhibit.wrong)


@each_exhibit
def test_the_proof_holds_for_the_form_of_the_package(exhibit):
    exhibit.proof(exhibit.right)


# --- What else the page says -------------------------------------------


def test_channels_last_with_reordered_weights_are_as_good():
    kernel, images = random(8, 3, 4, 4), random(2, 3, 12, 8, seed=2)
    reordered = rearrange(kernel, "d c p1 p2 -> d (p1 p2 c)")
    tokens = patches_with_channels_last(images, 4) @ reordered.T
    assert_equal(tokens, patchify(images, 4) @ kernel.flatten(1).T)


def test_a_token_that_is_not_expanded_fails_on_two_images_only():
    token = torch.zeros(1, 1, 8)
    torch.cat([token, torch.zeros(1, 4, 8)], dim=1)
    with pytest.raises(RuntimeError):
        torch.cat([token, torch.zeros(2, 4, 8)], dim=1)


def test_a_token_for_each_place_fails_on_a_smaller_batch():
    with pytest.raises(RuntimeError):
        TokenForEachPlaceInTheBatch(2, 8)(torch.zeros(1, 4, 8))


def test_a_gradient_finds_the_missing_positions_too():
    with pytest.raises(AssertionError):
        every_parameter_has_a_gradient(VitWithoutPositions)


@pytest.mark.parametrize("grid", [(7, 28), (12, 27)])
def test_a_square_number_of_patches_is_wrong_in_silence(grid):
    column = torch.arange(14.0).repeat(14)  # of each patch
    table = F.pad(column, (1, 0)).view(1, 197, 1)
    wrong = resize_to_a_square(table, (14, 14), grid)
    right = resize_pos_embed(table, (14, 14), grid)
    assert wrong.shape == right.shape
    assert (wrong - right).abs().max() > 6  # columns


def test_batch_first_makes_the_layer_of_pytorch_right():
    every_token_sees_its_own_image_only(
        lambda dim, num_heads: nn.TransformerEncoderLayer(
            dim, num_heads, 4 * dim, dropout=0.0, batch_first=True
        )
    )


def test_shuffled_tokens_do_not_find_heads_first():
    shuffled_tokens_give_shuffled_outputs(AttentionWithHeadsFirst)


def test_five_tokens_do_not_find_a_length_of_196():
    every_token_sees_every_token(AttentionOfFixedLength)


def test_a_coarse_tolerance_does_not_find_the_tanh():
    torch.manual_seed(0)
    right, wrong = Mlp(768), TanhMlp(768)
    wrong.load_state_dict(right.state_dict())
    x = torch.randn(2, 197, 768)
    torch.testing.assert_close(wrong(x), right(x), rtol=0, atol=1e-3)


def test_allclose_in_float32_does_not_find_the_eps():
    x = F.layer_norm(random(197, 768), (768,), eps=0).float()
    one, other = (F.layer_norm(x, (768,), eps=eps) for eps in (1e-5, 1e-6))
    assert torch.allclose(one, other)


@pytest.mark.parametrize(
    "block_class", [BlockWithOneState, BlockWithDefaultEps, PostNormBlock]
)
def test_the_weights_of_a_right_block_load_into_a_wrong_one(block_class):
    state = EncoderBlock(12, 3).state_dict()
    block_class(12, 3).load_state_dict(state, strict=True)


def test_twelve_times_the_same_block_loads_twelve_blocks():
    right = blocks_of_the_package(12, 3, 12)
    wrong = one_block_many_times(12, 3, 12)
    wrong.load_state_dict(right.state_dict(), strict=True)
    assert wrong[0].mlp.fc1.weight.equal(right[11].mlp.fc1.weight)


def test_a_fresh_block_with_one_norm_is_equal_to_the_last_bit():
    torch.manual_seed(0)
    right, wrong = EncoderBlock(12, 3), BlockWithOneNorm(12, 3)
    wrong.load_state_dict(right.state_dict(), strict=True)
    x = torch.randn(2, 5, 12)
    assert wrong(x).equal(right(x))


def test_a_fresh_model_of_the_package_has_no_logit_but_0():
    assert not fresh(VisionTransformer)(random(2, 3, 8, 12)).any()


@pytest.mark.parametrize(
    "proof",
    [
        shuffled_patches_give_other_logits,
        an_image_alone_has_the_logits_it_has_in_a_batch,
        ten_classes_have_ten_logits,
    ],
)
def test_the_forty_lines_fail_each_proof_of_a_model(proof):
    with pytest.raises(AssertionError):
        proof(FortyLineVit)
    proof(ten_class_vit)


def test_the_blocks_of_the_forty_lines_are_post_norm():
    with pytest.raises(AssertionError):
        silent_branches_leave_the_tokens_alone(
            lambda dim, num_heads: FortyLineVit(8, 4, dim, 1, num_heads).blocks
        )


def loader_of_pixels_up_to_1(images: Tensor, labels: Tensor) -> DataLoader:
    return DataLoader(ImageDataset(images / 255, labels), 64)


def test_a_division_by_255_is_found_too():
    with pytest.raises(AssertionError):
        each_channel_has_mean_0_and_deviation_1(loader_of_pixels_up_to_1)


@torch.no_grad()
def test_a_division_by_255_leaves_the_directions_of_the_tokens():
    images = ((photographs() + 1) / 2 * 255).byte()
    torch.manual_seed(0)
    embed, cosines = PatchEmbed(), []
    for make_loader in loader_of_raw_pixels, loader_of_pixels_up_to_1:
        tokens = embed(next(iter(make_loader(images, torch.zeros(2))))[0])
        tokens = F.normalize(tokens.flatten(0, 1), dim=-1)
        cosines.append((tokens @ tokens.T).mean())
    assert 0.75 < cosines[1] < cosines[0] + 0.01


def test_after_a_softmax_the_sure_and_wrong_get_no_gradient():
    logits = (100 * torch.eye(2).double()).requires_grad_()
    label = torch.tensor([1, 0])
    (gradient,) = torch.autograd.grad(
        loss_of_probabilities(logits, label), logits
    )
    assert gradient.abs().max() < 1e-10


def test_a_file_of_weights_is_enough_until_a_run_is_stopped(tmp_path):
    images = random(4, 3, 8, 12)
    batches = list(DataLoader(ImageDataset(images, torch.arange(4)), 2))
    wrong, right = small(VisionTransformer), small(VisionTransformer)
    fit_with_a_file_of_weights(wrong, batches, tmp_path / "weights")
    fit_with_a_checkpoint(right, batches, tmp_path / "checkpoint")
    assert wrong(images).equal(right(images))


def test_after_one_epoch_a_missing_train_does_not_show():
    assert modes_of_the_steps(train_on_after_a_test, 1) == [True]


@pytest.mark.parametrize("train", [train_on_after_a_test, train_and_test])
def test_only_in_test_mode_batch_norm_keeps_the_averages_of_an_epoch(train):
    averages = []
    for epochs in 1, 2:
        model = randomize(SmallCNN()).train()
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.requires_grad_(False)  # so that it sees the same
        train(model, list(some_batches()), list(some_batches()), epochs)
        averages.append(model.features[1].running_mean)
    assert averages[0].equal(averages[1]) == (train is train_on_after_a_test)


def test_dropout_in_training_mode_gives_two_results():
    model = small(partial(VisionTransformer, dropout=0.1)).train()
    one, other = (
        evaluate_in_training_mode(model, some_batches())[0] for _ in range(2)
    )
    assert abs(one - other) > 1e-3


@pytest.mark.parametrize("form", [evaluate_in_training_mode, evaluate])
def test_only_in_training_mode_batch_norm_learns_from_test_images(form):
    model = randomize(SmallCNN())
    before = model.features[1].running_mean.clone()
    form(model, some_batches())
    is_changed = form is evaluate_in_training_mode
    assert is_changed == (not model.features[1].running_mean.equal(before))


def test_a_mean_over_equal_batches_is_right():
    model, images = small(VisionTransformer), random(6, 3, 8, 12)
    labels = model(images).argmax(dim=1)
    labels[5] = 999 - labels[5]  # one mistake
    loader = DataLoader(ImageDataset(images, labels), batch_size=3)
    wrong, right = accuracy_of_batches(model, loader), 100 * 5 / 6
    assert wrong == pytest.approx(right, abs=1e-10)
    assert accuracy_of_images(model, loader) == pytest.approx(right)


def test_bfloat16_cannot_count_by_one_from_256_on():
    number = torch.tensor(256.0).bfloat16()
    assert number + 1 == 256
    assert number - 1 == 255
    number = torch.tensor(8192.0).bfloat16()
    steps = torch.arange(1.0, 129)
    counted = (number + steps.bfloat16()).unique().tolist()
    assert counted == [8192, 8192 + 64, 8192 + 128]


def test_in_float32_an_accuracy_in_a_tensor_is_right():
    model = nn.Linear(2, 2, bias=False)
    nn.init.eye_(model.weight)
    logits, labels = answers_that_are_right(9531, 10_000)
    loader = DataLoader(ImageDataset(logits.float(), labels), 64)
    assert evaluate_in_one_tensor(model, loader)[1] == 95.31


def tensors_for_a_backward_pass(add: Callable, batches: int) -> int:
    """How many are kept after some batches of a test with gradients."""

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor.detach()
            kept.add(self)

    kept, total, model = WeakSet(), 0.0, small(VisionTransformer)
    images, labels = random(2, 3, 8, 12), torch.tensor([0, 1])
    with saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        for _ in range(batches):
            total = add(total, F.cross_entropy(model(images), labels))
        return len(kept)


def test_a_loss_in_a_tensor_keeps_the_activations_of_all_batches():
    def add_numbers(total: float, loss: Tensor) -> float:
        return total + loss.item()

    one, ten = (tensors_for_a_backward_pass(operator.add, n) for n in (1, 10))
    assert ten == 10 * one > 0
    assert tensors_for_a_backward_pass(add_numbers, 10) == 0


def test_within_one_call_a_new_order_is_the_same_for_all_images():
    image = random(1, 3, 16, 16)
    first, second = shuffle_in_a_new_order(image.expand(2, -1, -1, -1), 4)
    assert first.equal(second)


def test_a_frozen_model_without_batch_norm_may_be_in_training_mode():
    model, images = small(VisionTransformer), random(2, 3, 8, 12)
    before = model.forward_features(images)
    train_the_head_of_a_frozen_model(model, some_batches())
    assert_equal(model.forward_features(images), before)


def test_a_fresh_stem_gives_mostly_the_bias_of_its_projection():
    stem = fresh_stem()
    x = photographs().double()
    sizes = []
    for layer in stem.backbone:
        x = layer(x)
        sizes.append(x.square().mean().sqrt().item())
    assert sizes == sorted(sizes, reverse=True)
    tokens = stem(photographs().double())
    assert miss(stem.proj.bias.expand_as(tokens), tokens) < 0.1


@pytest.mark.parametrize("load", [load_without_strict, load_what_fits])
def test_loading_without_questions_is_right_for_a_file_that_fits(load):
    source, model = small(VisionTransformer), fresh(VisionTransformer)
    load(model, source.state_dict())
    images = random(2, 3, 8, 12)
    assert_equal(model(images), source(images))


def test_without_strict_another_shape_is_still_an_error():
    model = fresh(VisionTransformerDistilled)
    with pytest.raises(RuntimeError, match=r"size mismatch for pos_embed"):
        load_without_strict(model, small(timm_vit).state_dict())


def test_what_fits_of_a_plain_model_has_no_position_table():
    model = fresh(VisionTransformerDistilled)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    load_what_fits(model, small(timm_vit).state_dict())
    after = model.state_dict()
    assert [name for name in after if after[name].equal(before[name])] == [
        "pos_embed",
        "dist_token",
        "head_dist.weight",
        "head_dist.bias",
    ]


def test_the_two_answers_of_a_distilled_model_are_averaged():
    model, images = small(VisionTransformerDistilled), random(2, 3, 8, 12)
    features = model.forward_features(images)
    heads = model.head(features[:, 0]), model.head_dist(features[:, 1])
    assert_equal(model(images), sum(heads) / 2)


def test_the_published_sizes_below_huge_have_heads_of_64_features():
    assert {
        name: sizes["embed_dim"] / sizes["num_heads"]
        for name, sizes in VIT_PRESETS.items()
        if sizes["embed_dim"] != 64 * sizes["num_heads"]
    } == {"vit_huge_patch14_224": 80}


def test_fit_refuses_groups_without_a_part():
    model = torchvision_vit(32, 8, 2, 4, 48, 96)
    groups = groups_of_encoder_and_heads(model)
    batches = [(torch.zeros(2, 3, 32, 32), torch.tensor([3, 9]))]
    with pytest.raises(ValueError, match=r"groups must hold every"):
        fit(model, batches, batches, epochs=1, groups=groups)


def test_a_list_of_names_is_right_for_the_model_it_was_written_for():
    model = small(VisionTransformer)
    by_list = rates_by_a_list(model, 1e-3, 0.75)
    by_place = layerwise_learning_rates(model, 1e-3, 0.75)
    for name, _ in model.named_parameters():
        assert rate_of(model, by_list, name) == rate_of(model, by_place, name)


def test_up_to_ten_blocks_the_beginning_of_a_name_is_enough():
    with torch.device("meta"):
        model = VisionTransformer(depth=10)
    freeze_by_beginning(model, "blocks.1")
    wanted = sum(p.numel() for p in model.blocks[1].parameters())
    assert frozen_numbers(model) == wanted


@pytest.mark.parametrize("low, high", [(-1, 1), (0, 2)])
def test_colors_outside_of_0_and_1_are_refused(low, high):
    images = torch.linspace(low, high, 2 * 3 * 8 * 12).view(2, 3, 8, 12)
    with pytest.raises(ValueError, match=r"images must be floats in \[0, 1\]"):
        mean_color_classes(images, 4)


def test_a_reshape_of_uneven_masks_moves_tokens_to_another_image():
    x = torch.tensor([0, 1]).view(2, 1, 1).expand(2, 6, 1)  # which image
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]).bool()
    visible = x[~mask].reshape(2, -1)
    assert visible.tolist() == [[0, 0, 1], [1, 1, 1]]
    mask[0, 0] = False  # now 7 are visible
    with pytest.raises(RuntimeError):
        x[~mask].reshape(2, -1)


def test_the_autoencoder_refuses_uneven_masks():
    model, mask = autoencoder_of_patches((8, 12), 4, 12), mask_of_two()
    mask[0, 0] = False
    with pytest.raises(ValueError, match="as many patches in each row"):
        model(torch.zeros(2, 3, 8, 12), mask)


def test_the_autoencoder_refuses_a_stem():
    encoder = HybridVisionTransformer(
        (8, 12), 4, embed_dim=12, depth=2, num_heads=3
    )
    with pytest.raises(ValueError, match=r"must be a PatchEmbed"):
        MaskedAutoencoder(encoder)


class VitThatLooksBeforeHiding(VisionTransformer):
    def embed(self, images: Tensor) -> Tensor:
        return self.blocks[0](super().embed(images))


def test_hiding_patches_after_a_block_is_found_too():
    def build(img_size, patch_size, dim):
        return MaskedAutoencoder(
            VitThatLooksBeforeHiding(
                img_size, patch_size, embed_dim=dim, depth=2, num_heads=3
            ),
            decoder_dim=8,
            decoder_depth=1,
            decoder_num_heads=2,
        )

    with pytest.raises(AssertionError):
        hidden_pixels_change_no_prediction(build)


def test_a_prediction_of_plain_pixels_is_painted_without_the_answer():
    paint = partial(paint_prediction, normalized=False)
    hidden_pixels_change_no_picture(paint)


def test_the_rows_of_a_rollout_from_the_wrong_side_sum_to_1():
    the_rows_of_a_rollout_sum_to_1(rollout_from_the_wrong_side)


def test_even_rows_do_not_find_a_sum_without_keepdim():
    even = torch.full((1, 2, 7, 7), 1 / 7).double()
    sums = rollout_of_the_strongest([even, even]).sum(dim=-1)
    assert_equal(sums, torch.ones_like(sums))


def test_a_sum_without_keepdim_fails_on_two_images():
    layer = random(2, 2, 7, 7).softmax(dim=-1)
    with pytest.raises(RuntimeError):
        rollout_of_the_strongest([layer])


def test_the_maps_of_the_first_block_need_no_block_before_them():
    model, images = small(VisionTransformer), random(2, 3, 8, 12)
    wrong = weights_of_first_tokens(model, images)
    right = attention_weights(model, images)
    assert_equal(wrong[0], right[0])
    assert (wrong[1] - right[1]).abs().max() > 1e-6
    assert_equal(wrong[1].sum(dim=-1), torch.ones(2, 3, 7).double())


def test_rows_of_one_length_hide_a_dot_product():
    table = F.pad(sincos_pos_embed((3, 4), 8), (0, 0, 1, 0)).double()
    products = similarity_by_dot_product(table, (3, 4))
    cosines = position_similarity(table, (3, 4))
    torch.testing.assert_close(products / 4, cosines, rtol=0, atol=1e-6)


def test_zeros_with_the_answer_show_the_brightness_of_each_patch():
    images, mask = random(2, 3, 8, 12), mask_of_two()
    zeros = torch.zeros(2, 6, 48).double()
    painted = patchify(paint_with_the_answer(zeros, images, mask, 4), 4)
    hidden = patchify(images, 4)[mask].mean(dim=1, keepdim=True)
    assert_equal(painted[mask], hidden.expand(-1, 48))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_rollout_that_forgets_a_residual_is_found_too(share):
    def rollout(weights):
        first, *later = (layer.mean(dim=1) for layer in weights)
        identity = torch.eye(first.shape[-1]).to(first)
        rolled = first  # without the residual
        for layer in later:
            rolled = ((1 - share) * layer + share * identity) @ rolled
        return rolled

    with pytest.raises(AssertionError):
        a_path_of_two_steps_is_found(rollout)


@pytest.mark.parametrize("one_side", ["student", "teacher"])
def test_a_temperature_on_one_side_is_found_too(one_side):
    def distance(dist_logits, teacher_logits, temperature):
        if one_side == "student":
            dist_logits = dist_logits / temperature
        else:
            teacher_logits = teacher_logits / temperature
        return temperature**2 * distance_of_the_package(
            dist_logits, teacher_logits, 1.0
        )

    with pytest.raises(AssertionError):
        three_times_the_logits_are_nine_times_as_far(distance)


def test_the_square_is_no_matter_at_temperature_1():
    logits = random(2, 4, 5)
    wrong = distance_without_the_square(*logits, 1.0)
    assert_equal(wrong, distance_of_the_package(*logits, 1.0))


@pytest.mark.parametrize(
    "loss_fn", [hard_distillation_loss, soft_distillation_loss]
)
def test_the_losses_refuse_one_answer_that_was_taken_for_two(loss_fn):
    images, labels, teacher_logits = batch_of_two()
    one, other = small(DistilledVisionTransformer)(images)
    assert one.shape == other.shape == (1000,)
    with pytest.raises(
        ValueError, match=r"must all be \(B, K\), got \(1000,\)"
    ):
        loss_fn(one, other, labels, teacher_logits)


def test_one_answer_for_three_images_cannot_be_taken_for_two():
    model = small(DistilledVisionTransformer)
    with pytest.raises(ValueError, match="too many values"):
        _one, _other = model(random(3, 3, 8, 12))


def test_in_training_mode_the_loss_of_a_batch_is_right():
    def loss(model, *batch):
        return loss_of_a_batch(model.train(), *batch)

    the_head_of_the_labels_ignores_the_teacher(loss)


def test_without_train_a_teacher_inside_a_student_is_right():
    def wrap(student, teacher):
        model = StudentWithTeacher(student, teacher)
        model.train = lambda: model  # leaves all modes as they are
        return model

    the_teacher_answers_as_it_did(wrap)


def test_the_distilled_model_refuses_the_weights_of_a_plain_one():
    model = small(DistilledVisionTransformer)
    weights = small(VisionTransformer).state_dict()
    with pytest.raises(ValueError, match=r"no dist_token.*no head_dist"):
        load_pretrained(model, weights)


def test_the_package_knows_no_deit_without_a_token():
    with pytest.raises(ValueError, match="deit_base_distilled_patch16_224"):
        create_model("deit_base_patch16_224")


def test_without_a_call_the_distilled_model_of_timm_gives_one_answer():
    build = partial(timm.create_model, "deit_base_distilled_patch16_224")
    student, images = small_student(build).train(), random(3, 3, 8, 12)
    mean = student(images)
    student.set_distilled_training(True)
    assert_equal(mean, sum(student(images)) / 2)


def test_a_fresh_second_head_halves_the_logits():
    model, images = fresh(DistilledVisionTransformer), random(2, 3, 8, 12)
    randomize(model.head)
    logits, _ = model.train()(images)
    assert logits.any()
    assert_equal(model.eval()(images), logits / 2)


@pytest.mark.parametrize(
    "shifted", [shift_without_a_mask, shift_with_a_mask_that_shows]
)
def test_a_wrong_mask_changes_nothing_in_the_middle_of_the_map(shifted):
    a_window_lies_across_the_old_borders(shifted)


def test_a_mask_for_each_head_is_refused_if_there_are_more_windows():
    attention = randomize(MultiHeadSelfAttention(8, 4))
    with pytest.raises(ValueError, match="bias must broadcast to"):
        shift_with_a_mask_for_each_head(attention, random(1, 8, 12, 8), 4, 2)
    with pytest.raises(RuntimeError):
        _ = random(6, 4, 16, 16) + shift_mask((8, 12), 4, 2)


def test_the_published_models_never_have_as_many_windows_as_heads():
    for preset in SWIN_PRESETS.values():
        windows = [(56 // 2**stage // 7) ** 2 for stage in range(4)]
        pairs = zip(windows, preset["num_heads"], strict=True)
        assert all(of_map != heads for of_map, heads in pairs)


def test_padding_late_is_right_on_maps_that_windows_tile():
    the_corner_is_seen_by_its_neighbors_only(shift_before_padding)
    a_window_lies_across_the_old_borders(shift_before_padding)


def test_interleaved_masks_are_right_for_one_image():
    the_corner_is_seen_by_its_neighbors_only(shift_with_interleaved_masks)


def test_a_shift_without_a_rule_for_one_window_is_right_for_more():
    the_corner_is_seen_by_its_neighbors_only(shift_of_the_only_window)
    corners_of_padded_maps_are_seen_by_neighbors_only(shift_of_the_only_window)
    a_window_lies_across_the_old_borders(shift_of_the_only_window)
    images_do_not_depend_on_the_batch(shift_of_the_only_window)


def test_without_a_norm_a_constant_finds_the_missing_mask():
    tokens = tokens_that_see(shift_without_a_mask, (8, 8), (0, 0))
    attention, x = randomize(MultiHeadSelfAttention(8, 4)), random(1, 8, 8, 8)
    changed = tokens_that_change_by_a_constant(
        lambda x: shift_without_a_mask(attention, x, 4, 2), x, (0, 0, 0)
    )
    assert changed == tokens


@pytest.mark.parametrize("grid", [(5, 6), (5, 7), (7, 6), (6, 6), (3, 8)])
def test_padding_hides_a_leak_if_it_reaches_from_the_shift_to_the_window(grid):
    window, shift = 4, 2
    hidden = all(-side % window >= window - shift for side in grid)
    assert hidden == (not leaks(shift_without_a_mask, grid, window, shift))


@pytest.mark.parametrize("grid", [(7, 10), (8, 8), (5, 7)])
def test_attention_of_the_package_leaks_nowhere(grid):
    assert leaks(shift_of_the_package, grid, 4, 3) == []


def test_merging_in_reading_order_with_reordered_weights_is_as_good():
    right, wrong = randomize(PatchMerging(8)), MergingInReadingOrder(8)
    wrong.double().load_state_dict(
        {
            name: rearrange(
                weight,
                "... (right down d) -> ... (down right d)",
                right=2,
                down=2,
            )
            for name, weight in right.state_dict().items()
        }
    )
    x = random(2, 4, 6, 8)
    assert_equal(wrong(x), right(x))


@pytest.mark.parametrize("function", ["pixel_unshuffle", "unfold"])
def test_merging_with_channels_first_is_found_too(function):
    class Merging(PatchMerging):
        def forward(self, x: Tensor) -> Tensor:
            _, gh, gw, _ = x.shape
            x = x.permute(0, 3, 1, 2)
            if function == "unfold":
                x = F.unfold(x, 2, stride=2)
                x = x.unflatten(2, (gh // 2, gw // 2))
            else:
                x = F.pixel_unshuffle(x, 2)
            return self.reduction(self.norm(x.permute(0, 2, 3, 1)))

    assert merge_a_map(Merging).shape == merge_a_map(PatchMerging).shape
    with pytest.raises(AssertionError):
        merging_equals_the_one_of_torchvision(Merging)


def test_published_weights_do_not_fit_a_norm_after_the_reduction():
    with pytest.raises(RuntimeError, match="size mismatch for norm"):
        MergingBeforeTheNorm(8).load_state_dict(PatchMerging(8).state_dict())


@torch.no_grad()
def test_float32_does_not_see_the_eps():
    outputs = []
    for form in SwinBlockWithTheEpsOfViT, SwinBlock:
        torch.manual_seed(0)
        outputs.append(form(96, 3, 7, 3)(random(1, 14, 14, 96).float()))
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-5)


# --- The page ----------------------------------------------------------


def section_of(target: str) -> str:
    """Return a section of the page from its name to the next one."""
    start = PAGE.index(f"({target})=\n") + len(target) + 3
    return re.split(r"^(?:\(.*\)=|## .*)$", PAGE[start:], flags=re.M)[0]


def quoted(text: str) -> list[tuple[Path, str]]:
    """The files and the names of what a part of the page quotes."""
    fence = re.compile(
        r"^`{3,}\{literalinclude\} (\S+)\n:language: python\n"
        r"(?::\w+:.*\n)*?:pyobject: (\S+)$",
        re.M,
    )
    assert len(fence.findall(text)) == text.count("{literalinclude}")
    return [
        ((ROOT / "book" / path).resolve(), name)
        for path, name in fence.findall(text)
    ]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def source_of(path: Path, name: str) -> str:
    """Return the lines of a top-level definition."""
    for node in tree_of(path).body:
        if getattr(node, "name", None) == name:
            lines = path.read_text(encoding="utf-8").splitlines()
            return "\n".join(lines[node.lineno - 1 : node.end_lineno])
    raise AssertionError(f"{path.name} has no {name}")


def numbers_of(text: str) -> tuple[list[str], list[str]]:
    """Return the bold numbers of the prose, and the other ones."""
    for pattern in (
        r"^(`{3,}).*?^\1$",  # code
        r"`[^`]*`",
        r"\]\([^)]*\)",  # where a link leads
        r"[Cc]hapter \d\d",
        r"[Ss]ection \d\.\d",
    ):
        text = re.sub(pattern, "", text, flags=re.M | re.S)
    bold = r"\*\*(\d[^*]*)\*\*"
    rest = re.sub(bold, "", text)
    return re.findall(bold, text), re.findall(r"\S*\d\S*", rest)


@each_exhibit
def test_the_page_shows_the_wrong_form_and_its_proof(exhibit):
    shown = [name for _, name in quoted(section_of(exhibit.target))]
    assert shown[0] == exhibit.name
    everywhere = [name for _, name in quoted(PAGE)]
    assert exhibit.proof.__name__ in everywhere


@each_exhibit
def test_the_page_states_what_is_measured_and_no_other_number(exhibit):
    bold, other = numbers_of(section_of(exhibit.target))
    assert sorted(set(bold)) == sorted(set(exhibit.numbers()))
    assert other == []


@each_exhibit
def test_an_exhibit_has_every_part_and_stands_in_its_chapter(exhibit):
    section = section_of(exhibit.target)
    assert section.count("\n### ") == 1
    parts = re.findall(r"^\*\*(\D[^*]*)\.\*\*", section, re.M)
    assert parts == PARTS
    assert f"hapter {exhibit.chapter:02}" in section.split("**The fix.**")[1]
    before = PAGE[: PAGE.index(f"({exhibit.target})=\n")]
    chapter = re.findall(r"^## Chapter (\d\d): ", before, re.M)[-1]
    assert int(chapter) == exhibit.chapter


PARTS = [
    "What you see",
    "Why a shape test passes",
    "What finds it",
    "The fix",
]


def test_the_table_lists_the_exhibits_of_the_page():
    rows = re.findall(
        r"^\| (\d\d) \| \[(.*)\]\(#([a-z0-9-]+)\) \|.*\|.*\|$", PAGE, re.M
    )
    titles = [
        re.search(r"^### (.*)$", section_of(exhibit.target), re.M)[1]
        for exhibit in EXHIBITS
    ]
    assert rows == [
        (f"{exhibit.chapter:02}", title, exhibit.target)
        for exhibit, title in zip(EXHIBITS, titles, strict=True)
    ]


def test_the_page_has_no_section_that_is_no_exhibit():
    targets = re.findall(r"^\((.*)\)=$", PAGE, re.M)
    assert targets == [exhibit.target for exhibit in EXHIBITS]


def test_a_wrong_form_says_where_it_is_wrong():
    marks = {
        exhibit.name: re.findall(
            r"^ +# wrong: .*$", source_of(Path(__file__), exhibit.name), re.M
        )
        for exhibit in EXHIBITS
    }
    assert [name for name, lines in marks.items() if not lines] == []
    # A phone shows 44 columns before the reader scrolls.
    assert max(len(line) for lines in marks.values() for line in lines) <= 44


def test_quoted_code_is_narrow():
    wide = [
        line
        for path, name in quoted(PAGE)
        if path == Path(__file__).resolve()
        for line in source_of(path, name).splitlines()
        if len(line) > 76
    ]
    assert wide == []


def numbers_against_the_sentences() -> list[str]:
    with torch.device("meta"):
        model = VisionTransformer()
    kernel = model.patch_embed.proj.weight
    changed = tokens_that_change(
        randomize(PatchEmbed(16, 3, 8)),
        random(1, 3, 224, 224),
        (0, 0, 100, 100),
    )
    numbers = [str(kernel[0].numel()), str(len(kernel)), str(len(changed))]
    for patch_size in (16, 32):
        numbers.append(parameters(lambda p=patch_size: PatchEmbed(p)))
        with torch.device("meta"):
            model = VisionTransformer(224, patch_size)
        numbers.append(str(model.pos_embed.shape[1]))
    model = parameters(VisionTransformer)
    with torch.device("meta"):
        table = VisionTransformer().pos_embed
    pairs = [(1 + (size // 16) ** 2) ** 2 for size in (224, 448)]
    numbers += [f"{table.numel():,}", model, *(f"{n:,}" for n in pairs)]
    return [
        *numbers,
        *accuracies_of_positions(),
        *changes_under_a_shift(),
        *distances_of_trained_heads(),
        *changes_of_the_maps(),
        *numbers_about_deit(),
        *numbers_about_masks(),
    ]


def accuracies_of_positions() -> list[str]:
    """Of the best size for each kind, and of one size for all."""
    record = recorded.load("position_embedding")

    def accuracy(kind: str, std: float) -> float:
        settings = {"positions": kind, "std": std, "steps": 400}
        return record.mean_and_std("accuracy", **settings)[0] / 100

    kinds = ("learned", "sine-cosine, centered", "relative bias")
    best = [
        max(accuracy(kind, std) for std in (0.02, 0.1, 0.3, 1.0, 3.0))
        for kind in kinds
    ]
    same = accuracy("learned", 0.02), accuracy("sine-cosine", 0.02)
    assert abs(accuracy("sine-cosine, centered", 0.02) - same[1]) < 0.02
    return [
        percent(share)
        for share in (min(best), max(best), *same, accuracy("none", 0.0))
    ]


def distances_of_trained_heads() -> list[str]:
    """The smallest, of how many heads, and that of even attention."""
    record = recorded.load("looking_inside")
    least = [
        distance
        for layer in (1, 2, 3)
        for distance in record.values(
            f"least distance {layer}, trained", task="shapes"
        )
    ]
    even = record.values("distance, even", task="shapes")[0]
    return [f"{min(least):.1f}", f"{4 * len(least)}", f"{even:.1f}"]


def changes_under_a_shift() -> list[str]:
    """A photograph moves by a pixel, around the border."""
    conv = randomize(nn.Conv2d(3, 32, 3, padding=1, padding_mode="circular"))
    x = photographs()[:1].double()
    shift = partial(torch.roll, shifts=1, dims=3)
    errors = (
        equivariance_error(conv, x, shift, output)
        for output in (lambda features: features, shift)
    )
    return [percent(error, 0) for error in errors]


@torch.no_grad()
def changes_of_the_maps() -> list[str]:
    """Another head decides the opposite."""
    model, image = small(VisionTransformer), random(1, 3, 8, 12)
    logits, before = model(image), attention_weights(model, image)
    model.head.weight.neg_()
    model.head.bias.neg_()
    assert model(image).argmin() == logits.argmax()
    after = attention_weights(model, image)
    maps, other = torch.stack(before), torch.stack(after)
    return [f"{maps.numel()}", f"{(maps != other).sum()}"]


def numbers_about_deit() -> list[str]:
    """Two means of two heads, batches that MixUp leaves, images of an epoch."""
    one, difference = random(2, 100_000, 10)
    heads = torch.stack([2 * one, 2 * one + difference])
    means = heads.mean(dim=0), heads.softmax(dim=-1).mean(dim=0)
    other = means[0].argmax(dim=1) != means[1].argmax(dim=1)
    torch.manual_seed(0)
    mix, images = v2.MixUp(alpha=0.8, num_classes=2), random(2, 3, 4, 4)
    mixed = [mix(images, torch.arange(2))[0] for _ in range(1000)]
    unchanged = sum(torch.allclose(x, images, atol=1e-12) for x in mixed)
    epoch = torch.cat(batches_of_the_package(3072, 96, 3))
    seen = [f"{len(epoch):,}", f"{len(epoch.unique()):,}"]
    return [percent(other.double().mean().item()), f"{unchanged}", *seen]


def numbers_about_masks() -> list[str]:
    """Numbers that change with the order of a pair, and with nine regions."""
    mask = shift_mask(56, 7, 3)
    place = torch.arange(56)
    part = (place >= 56 - 7).long() + (place >= 56 - 3)  # 0, 1, 2
    region = window_partition((3 * part[:, None] + part)[None, ..., None], 7)
    assert len(region.unique()) == 9
    apart = region != region.transpose(1, 2)
    turned = (mask != mask.transpose(1, 2)).sum()
    return [
        f"{mask.numel():,}",
        f"{turned}",
        f"{(mask.isinf() != apart).sum()}",
    ]


def test_the_wrong_sentences_are_answered_by_measured_numbers():
    section = PAGE.split("## Wrong sentences")[1]
    bold, other = numbers_of(section)
    assert sorted(set(bold)) == sorted(set(numbers_against_the_sentences()))
    assert other == []
