"""The checks of chapter 16: parts of Swin by hand, right and wrong."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vit_lessons import DropPath, Mlp, SwinBlock, SwinTransformer
from vit_lessons.checks import check
from vit_lessons.position_embedding import relative_position_index


def variant(base, **methods):
    """The class with some methods or attributes written differently."""
    return type("Candidate", (base,), methods)


def pair(size):
    return (size, size) if isinstance(size, int) else tuple(size)


# Merging.

PLACES = ((0, 0), (1, 0), (0, 1), (1, 1))


class Merging(nn.Module):
    """The four tokens by slices, as in the authors' code."""

    def __init__(self, dim):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def padded(self, x):
        _, gh, gw, _ = x.shape
        if gh % 2 == 1 or gw % 2 == 1:
            x = F.pad(x, (0, 0, 0, gw % 2, 0, gh % 2))
        return x

    def joined(self, x):
        return torch.cat([x[:, i::2, j::2] for i, j in PLACES], -1)

    def forward(self, x):
        return self.reduction(self.norm(self.joined(self.padded(x))))


def joined_by_permute(self, x):
    b, gh, gw, d = x.shape
    x = x.reshape(b, gh // 2, 2, gw // 2, 2, d).permute(0, 1, 3, 4, 2, 5)
    return x.flatten(3)


def joined_by_unfold(self, x):
    b, gh, gw, d = x.shape
    columns = F.unfold(x.permute(0, 3, 1, 2), 2, stride=2)
    four = columns.reshape(b, d, 2, 2, gh // 2, gw // 2)
    return four.permute(0, 4, 5, 3, 2, 1).reshape(b, gh // 2, gw // 2, 4 * d)


def joined_in_loops(self, x):
    b, gh, gw, d = x.shape
    result = x.new_zeros(b, gh // 2, gw // 2, 4 * d)
    for n, (i, j) in enumerate(PLACES):
        result[..., n * d : n * d + d] = x[:, i::2, j::2]
    return result


def joined_row_by_row(self, x):
    four = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    return torch.cat(four, dim=-1)


def joined_by_pixel_unshuffle(self, x):
    return F.pixel_unshuffle(x.movedim(-1, 1), 2).movedim(1, -1)


def joined_as_unfold_orders(self, x):
    _, gh, gw, _ = x.shape
    columns = F.unfold(x.permute(0, 3, 1, 2), kernel_size=2, stride=2)
    return columns.mT.unflatten(1, (gh // 2, gw // 2))


def joined_by_view(self, x):
    b, gh, gw, d = x.shape
    return x.reshape(b, gh // 2, gw // 2, 4 * d)


def joined_quarters(self, x):
    h, w = x.shape[1] // 2, x.shape[2] // 2
    left, right = x[:, :, :w], x[:, :, w:]
    halves = (left[:, :h], left[:, h:], right[:, :h], right[:, h:])
    return torch.cat(halves, dim=-1)


def padded_above(self, x):
    return F.pad(x, (0, 0, x.shape[2] % 2, 0, x.shape[1] % 2, 0))


def padded_by_the_other_axis(self, x):
    _, gh, gw, _ = x.shape
    return F.pad(x, (0, 0, 0, gh % 2, 0, gw % 2))


def cropped(self, x):
    return x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2, :]


def not_padded(self, x):
    return x


def merging_with(norm=4, reduction=(4, 2), bias=False, joined=Merging.joined):
    """Layers of other sizes, in multiples of dim."""

    def init(self, dim):
        nn.Module.__init__(self)
        self.norm = nn.LayerNorm(norm * dim)
        sizes = [n * dim for n in reduction]
        self.reduction = nn.Linear(*sizes, bias=bias)

    return variant(Merging, __init__=init, joined=joined)


def init_with_a_convolution(self, dim):
    nn.Module.__init__(self)
    self.norm = nn.LayerNorm(4 * dim)
    self.reduction = nn.Conv2d(dim, 2 * dim, 2, 2, bias=False)


def init_without_norm(self, dim):
    nn.Module.__init__(self)
    self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)


def with_eps(base, eps=1e-6):
    """The class with another eps in all norms."""

    @functools.wraps(base.__init__)
    def init(self, *args, **kwargs):
        base.__init__(self, *args, **kwargs)
        for layer in self.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.eps = eps

    return variant(base, __init__=init)


def merged_to_a_sequence(self, x):
    return Merging.forward(self, x).flatten(1, 2)


def merged_with_rows_and_columns_exchanged(self, x):
    return Merging.forward(self, x.transpose(1, 2))


def merged_without_norm(self, x):
    return self.reduction(self.joined(self.padded(x)))


MERGING_WRONG = [
    ({"joined": joined_row_by_row}, "stand row by row"),
    ({"joined": joined_by_pixel_unshuffle}, "are interleaved"),
    ({"joined": joined_as_unfold_orders}, "are interleaved"),
    ({"joined": joined_by_view}, "not neighbors in a square"),
    ({"joined": joined_quarters}, "not neighbors in a square"),
    ({"padded": padded_above}, "at the top and on the left"),
    ({"padded": padded_by_the_other_axis}, "each axis on its own"),
    ({"padded": cropped}, "of an odd map is cut off"),
    ({"padded": not_padded}, "odd rows or columns is padded"),
    ({"forward": merged_to_a_sequence}, "The result is a sequence"),
    ({"forward": merged_without_norm}, "The norm is missing"),
    ({"__init__": init_without_norm}, "The norm is missing"),
    ({"__init__": init_with_a_convolution}, "weights of a convolution"),
]
MERGING_LAYERS_WRONG = [
    (merging_with(norm=2), "The norm comes after the reduction"),
    (merging_with(norm=1), "The norm reads D features"),
    (merging_with(bias=True), "The reduction has no bias"),
    (merging_with(reduction=(4, 4)), "makes 2 D of the 4 D features"),
    (merging_with(reduction=(4, 1)), "makes 2 D of the 4 D features"),
    (merging_with(reduction=(1, 2)), "do not average them"),
    (with_eps(Merging), "LayerNorm has another eps"),
]


@pytest.mark.parametrize(
    "joined",
    [Merging.joined, joined_by_permute, joined_by_unfold, joined_in_loops],
)
def test_a_right_merging_written_differently_passes(joined):
    result = check("PatchMerging", variant(Merging, joined=joined))
    assert result.passed, result.report


@pytest.mark.parametrize(("methods", "words"), MERGING_WRONG)
def test_a_wrong_merging_is_told_its_mistake(methods, words):
    result = check("PatchMerging", variant(Merging, **methods))
    assert not result.passed
    assert words in result.cause


@pytest.mark.parametrize(("candidate", "words"), MERGING_LAYERS_WRONG)
def test_wrong_layers_of_a_merging_are_told(candidate, words):
    result = check("PatchMerging", candidate)
    assert not result.passed
    assert words in result.cause


def test_a_merging_of_a_turned_map_fails():
    forward = merged_with_rows_and_columns_exchanged
    assert not check("PatchMerging", variant(Merging, forward=forward)).passed


# The block, with an attention of its own.


class Attention(nn.Module):
    """Windows by reshape, a mask of -100 from nine regions, all by hand."""

    hidden = -100.0

    def __init__(self, dim, num_heads, window, shift, qkv_bias):
        super().__init__()
        self.num_heads, self.window, self.shift = num_heads, window, shift
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        rows = (2 * window[0] - 1) * (2 * window[1] - 1)
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros(rows, num_heads)
        )
        self.register_index(relative_position_index(window))

    def register_index(self, index):
        self.register_buffer("relative_position_index", index, persistent=False)

    def cut(self, x):
        (m1, m2), (b, gh, gw, d) = self.window, x.shape
        x = x.view(b, gh // m1, m1, gw // m2, m2, d)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, m1 * m2, d)

    def join(self, x, b, gh, gw):
        m1, m2 = self.window
        x = x.view(b, gh // m1, gw // m2, m1, m2, -1)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(b, gh, gw, -1)

    def shifts(self, gh, gw):
        sizes = zip(self.shift, self.window, (gh, gw), strict=True)
        return [0 if m >= side else s for s, m, side in sizes]

    def mask(self, gh, gw, shift):
        """Nine regions by slices."""
        slices = [
            (slice(0, -m), slice(-m, -s or None), slice(-s, None))
            if s
            else (slice(None),)
            for m, s in zip(self.window, shift, strict=True)
        ]
        regions, count = torch.zeros(1, gh, gw, 1), 0
        for rows in slices[0]:
            for columns in slices[1]:
                regions[:, rows, columns] = count
                count += 1
        regions = self.cut(regions)[..., 0]
        apart = regions[:, None, :] != regions[:, :, None]
        return torch.zeros(apart.shape).masked_fill(apart, self.hidden)

    def with_mask(self, scores, mask):
        b = len(scores) // len(mask)
        scores = scores.unflatten(0, (b, -1)) + mask[:, None]
        return scores.flatten(0, 1)

    def pad(self, x):
        m1, m2 = self.window
        return F.pad(x, (0, 0, 0, -x.shape[2] % m2, 0, -x.shape[1] % m1))

    def roll(self, x, shift):
        return torch.roll(x, [-s for s in shift], dims=(1, 2))

    def prepare(self, x):
        x = self.pad(x)
        shift = self.shifts(*x.shape[1:3])
        return self.roll(x, shift), shift

    def attend(self, x, mask):
        n, length, d = x.shape
        qkv = self.qkv(x).view(n, length, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        index = self.relative_position_index
        bias = self.relative_position_bias_table[index.flatten()]
        scores = scores + bias.view(length, length, -1).permute(2, 0, 1)
        if mask is not None:
            scores = self.with_mask(scores, mask)
        out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, length, d)
        return self.proj(out)

    def forward(self, x):
        b, gh, gw, _ = x.shape
        x, shift = self.prepare(x)
        size = x.shape[1:3]
        mask = self.mask(*size, shift) if any(shift) else None
        x = self.join(self.attend(self.cut(x), mask), b, *size)
        return torch.roll(x, shift, dims=(1, 2))[:, :gh, :gw]


class Block(nn.Module):
    """A block with two modules for drop-path, as in timm."""

    attention, eps = Attention, 1e-5

    def __init__(
        self,
        dim,
        num_heads,
        window_size=7,
        shift_size=0,
        mlp_ratio=4.0,
        qkv_bias=True,
        drop_path=0.1,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, self.eps)
        self.attn = self.attention(
            dim, num_heads, pair(window_size), pair(shift_size), qkv_bias
        )
        self.norm2 = nn.LayerNorm(dim, self.eps)
        self.mlp = Mlp(dim, mlp_ratio=mlp_ratio)
        self.drop_path1 = DropPath(drop_path)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x):
        shortcut = x
        x = shortcut + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


def block_with(**methods):
    return variant(Block, attention=variant(Attention, **methods))


def drop_by_rand(self, x):
    if not self.training or self.drop_path1.drop_path == 0:
        return x
    keep = 1 - self.drop_path1.drop_path
    return x / keep * (torch.rand(len(x), 1, 1, 1) < keep)


def forward_with_rand(self, x):
    x = x + drop_by_rand(self, self.attn(self.norm1(x)))
    return x + drop_by_rand(self, self.mlp(self.norm2(x)))


BLOCKS_RIGHT = [
    Block,
    block_with(hidden=float("-inf")),
    block_with(mask=lambda self, gh, gw, shift: fewer_regions(self, gh, gw)),
    variant(Block, forward=forward_with_rand),
    variant(SwinBlock),
]


def fewer_regions(self, gh, gw):
    """Which tokens came around the border."""
    down, right = self.shifts(gh, gw)
    rows = torch.arange(gh) >= gh - down
    columns = torch.arange(gw) >= gw - right
    regions = (rows.int()[:, None] + 2 * columns.int())[None, ..., None]
    regions = self.cut(regions)[..., 0]
    apart = regions[:, None] != regions[..., None]
    return apart * torch.tensor(-100.0)


@pytest.mark.parametrize("candidate", BLOCKS_RIGHT)
def test_a_right_block_written_differently_passes(candidate):
    result = check("SwinBlock", candidate)
    assert result.passed, result.report
    assert "not run" not in result.report


def forward_post_norm(self, x):
    x = self.norm1(x + self.drop_path1(self.attn(x)))
    return self.norm2(x + self.drop_path2(self.mlp(x)))


def forward_norm_of_the_branch(self, x):
    x = x + self.drop_path1(self.norm1(self.attn(x)))
    return x + self.drop_path2(self.norm2(self.mlp(x)))


def forward_one_norm(self, x):
    x = x + self.drop_path1(self.attn(self.norm1(x)))
    return x + self.drop_path2(self.mlp(self.norm1(x)))


def forward_no_residual(self, x):
    x = self.drop_path1(self.attn(self.norm1(x)))
    return x + self.drop_path2(self.mlp(self.norm2(x)))


def forward_no_second_residual(self, x):
    x = x + self.drop_path1(self.attn(self.norm1(x)))
    return self.drop_path2(self.mlp(self.norm2(x)))


def forward_mlp_first(self, x):
    x = x + self.drop_path2(self.mlp(self.norm2(x)))
    return x + self.drop_path1(self.attn(self.norm1(x)))


def forward_no_drop(self, x):
    x = x + self.attn(self.norm1(x))
    return x + self.mlp(self.norm2(x))


def forward_drop_one(self, x):
    x = x + self.drop_path1(self.attn(self.norm1(x)))
    return x + self.mlp(self.norm2(x))


def forward_drop_all(self, x):
    return x + self.drop_path1(forward_no_drop(self, x) - x)


def forward_drop_sum(self, x):
    x = self.drop_path1(x + self.attn(self.norm1(x)))
    return self.drop_path2(x + self.mlp(self.norm2(x)))


def mask_per_head(self, scores, mask):
    return scores + mask


def mask_in_another_order(self, scores, mask):
    return scores + mask.repeat_interleave(len(scores) // len(mask), 0)[:, None]


def prepare_pad_late(self, x):
    size = self.pad(x).shape[1:3]
    shift = self.shifts(*size)
    return self.pad(self.roll(x, shift)), shift


def forward_pad_late(self, x):
    b, gh, gw, _ = x.shape
    x, shift = prepare_pad_late(self, x)
    size = x.shape[1:3]
    mask = self.mask(*size, shift) if any(shift) else None
    x = self.join(self.attend(self.cut(x), mask), b, *size)
    return torch.roll(x[:, :gh, :gw], shift, dims=(1, 2))


def forward_shift_late(self, x):
    """Partition, then roll inside the windows."""
    b, gh, gw, d = x.shape
    x = self.pad(x)
    size = x.shape[1:3]
    shift = self.shifts(*size)
    mask = self.mask(*size, shift) if any(shift) else None
    windows = self.cut(x).view(-1, *self.window, d)
    windows = self.roll(windows, shift).flatten(1, 2)
    windows = self.attend(windows, mask).view(-1, *self.window, d)
    windows = windows.roll(shift, (1, 2)).flatten(1, 2)
    return self.join(windows, b, *size)[:, :gh, :gw]


def forward_not_back(self, x):
    b, gh, gw, _ = x.shape
    x, shift = self.prepare(x)
    size = x.shape[1:3]
    mask = self.mask(*size, shift) if any(shift) else None
    x = self.join(self.attend(self.cut(x), mask), b, *size)
    return x[:, :gh, :gw]


def other_mask(change):
    def mask(self, gh, gw, shift):
        return change(Attention.mask(self, gh, gw, shift))

    return mask


def shifts_never(self, gh, gw):
    return [0, 0]


def shifts_always(self, gh, gw):
    return list(self.shift)


def shifts_all_or_none(self, gh, gw):
    side = min(gh, gw)
    return [0, 0] if side <= max(self.window) else list(self.shift)


def register_persistent(self, index):
    self.register_buffer("relative_position_index", index)


def init_one_norm(self, *args, **kwargs):
    Block.__init__(self, *args, **kwargs)
    self.norm2 = self.norm1


def init_no_second_norm(self, *args, **kwargs):
    Block.__init__(self, *args, **kwargs)
    del self.norm2


BLOCKS_WRONG = [
    (variant(Block, forward=forward_post_norm), "comes after the sum"),
    (variant(Block, forward=forward_norm_of_the_branch), "after the branch"),
    (variant(Block, forward=forward_one_norm), "The same norm is used twice"),
    (variant(Block, __init__=init_one_norm), "are the same weights"),
    (variant(Block, __init__=init_no_second_norm), "a norm of its own"),
    (variant(Block, forward=forward_no_residual), "The first residual"),
    (variant(Block, forward=forward_no_second_residual), "The second residual"),
    (variant(Block, forward=forward_mlp_first), "MLP comes before the att"),
    (variant(Block, forward=forward_no_drop), "drop_path is not used"),
    (variant(Block, forward=forward_drop_one), "on one branch only"),
    (variant(Block, forward=forward_drop_all), "on the whole block"),
    (variant(Block, forward=forward_drop_sum), "drops the tokens too"),
    (variant(Block, eps=1e-6), "LayerNorm has another eps"),
    (block_with(shifts=shifts_never), "The windows do not shift"),
    (block_with(hidden=0.0), "The mask is missing"),
    (block_with(with_mask=mask_per_head), "The mask is added for each head"),
    (block_with(with_mask=mask_in_another_order), "to the wrong windows"),
    (block_with(hidden=100.0), "The mask has the wrong sign"),
    (block_with(hidden=float("inf")), "the wrong sign gives NaN"),
    (
        block_with(mask=other_mask(lambda mask: -100.0 - mask)),
        "The mask has the wrong sign",
    ),
    (block_with(forward=forward_pad_late), "padded after the roll"),
    (block_with(forward=forward_shift_late), "comes after the partition"),
    (block_with(forward=forward_not_back), "is not rolled back"),
    (block_with(shifts=shifts_always), "along an axis that one window covers"),
    (block_with(shifts=shifts_all_or_none), "no shift at all if one window"),
    (block_with(register_index=register_persistent), "persistent=False"),
]


@pytest.mark.parametrize(("candidate", "words"), BLOCKS_WRONG)
def test_a_wrong_block_is_told_its_mistake(candidate, words):
    result = check("SwinBlock", candidate)
    assert not result.passed
    assert words in result.cause


def test_a_rate_that_is_not_used_shows_by_the_number_of_results():
    report = check("SwinBlock", variant(Block, forward=forward_no_drop)).report
    assert "1 results for one image in training, expected 4" in report


def test_a_block_that_drops_single_images_of_one_draw_is_refused():
    def forward(self, x):
        if not self.training or self.drop_path1.drop_path == 0:
            return forward_no_drop(self, x)
        keep = 1 - self.drop_path1.drop_path
        kept = (torch.rand(len(x), 1, 1, 1) < keep) / keep
        x = x + kept * self.attn(self.norm1(x))
        return x + kept * self.mlp(self.norm2(x))

    result = check("SwinBlock", variant(Block, forward=forward))
    assert "with a draw of its own" in result.cause


# The model.


class Embed(nn.Module):
    """Patches as a map, with a norm."""

    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, images):
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class Model(nn.Module):
    """The whole model with parts of its own, as timm has them."""

    embed, merging, block = Embed, Merging, Block

    def __init__(
        self,
        img_size=224,
        patch_size=4,
        in_chans=3,
        num_classes=1000,
        embed_dim=96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        window_size=7,
        mlp_ratio=4.0,
        qkv_bias=True,
        drop_path=0.1,
    ):
        super().__init__()
        self.depths, self.drop_path = depths, drop_path
        self.patch_embed = self.embed(patch_size, in_chans, embed_dim)
        self.layers = nn.ModuleList()
        sizes = zip(pair(img_size), pair(patch_size), strict=True)
        grid = [pixels // p for pixels, p in sizes]
        for s, heads in enumerate(self.heads(num_heads)):
            dim, stage = self.width(embed_dim, s), nn.Module()
            if s > 0:
                stage.downsample = self.merging(self.width(embed_dim, s - 1))
                grid = [-(-side // 2) for side in grid]
            window = self.window(pair(window_size), grid)
            stage.blocks = nn.ModuleList(
                self.block(
                    *(dim, heads, window, self.shift(s, i, window)),
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    drop_path=self.rate(s, i),
                )
                for i in range(depths[s])
            )
            self.layers.append(stage)
        self.norm = nn.LayerNorm(dim)
        self.make_head(dim, num_classes)

    def make_head(self, dim, num_classes):
        fc = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.head = nn.ModuleDict({"fc": fc})

    def heads(self, num_heads):
        return num_heads

    def width(self, embed_dim, s):
        return embed_dim * 2**s

    def window(self, window, grid):
        return tuple(map(min, window, grid))

    def shift(self, s, i, window):
        return [0 if i % 2 == 0 else m // 2 for m in window]

    def rate(self, s, i):
        rates = torch.linspace(0, self.drop_path, sum(self.depths))
        return rates[sum(self.depths[:s]) + i].item()

    def stages(self, images):
        x, maps = self.patch_embed(images), []
        for s, stage in enumerate(self.layers):
            x = stage.downsample(x) if s else x
            for block in stage.blocks:
                x = block(x)
            maps.append(x)
        return maps

    def read(self, x):
        return self.norm(x).permute(0, 3, 1, 2).mean((-2, -1))

    def forward(self, images):
        return self.head["fc"](self.read(self.stages(images)[-1]))

    def feature_maps(self, images):
        return [x.permute(0, 3, 1, 2) for x in self.stages(images)]


class Plain(Model):
    """Without the optional arguments."""

    def __init__(
        self,
        img_size,
        patch_size,
        in_chans,
        num_classes,
        embed_dim,
        depths,
        num_heads,
        window_size,
    ):
        super().__init__(
            *(img_size, patch_size, in_chans, num_classes, embed_dim, depths),
            *(num_heads, window_size),
            drop_path=0.0,
        )


class FromPackage(SwinTransformer):
    """The package's parts, and a forward of one's own."""

    def forward(self, images):
        x = self.patch_embed(images)
        for stage in self.layers:
            x = stage(x)
        x = self.norm(x).flatten(1, 2).transpose(1, 2)
        return self.head(F.adaptive_avg_pool1d(x, 1).flatten(1))


@pytest.mark.parametrize("candidate", [Model, FromPackage])
def test_a_right_model_written_differently_passes(candidate):
    result = check("SwinTransformer", candidate)
    assert result.passed, result.report
    assert "not run" not in result.report


def test_a_model_need_not_take_what_is_optional():
    result = check("SwinTransformer", Plain)
    assert result.passed, result.report
    assert result.report.splitlines()[-1] == (
        "  not run 5 cases with mlp_ratio, qkv_bias, drop_path, "
        "which your code does not take"
    )


class EmbedWithoutNorm(Embed):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.norm = nn.Identity()


class EmbedThatSkipsItsNorm(Embed):
    def forward(self, images):
        return self.proj(images).permute(0, 2, 3, 1)


class MergingAtTheEnd(Model):
    """As in the authors' code."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for before, stage in zip(self.layers, self.layers[1:], strict=False):
            before.downsample = stage.downsample
            del stage.downsample


class ClassToken(Model):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.cls_token = nn.Parameter(
            torch.zeros(1, 1, self.norm.weight.numel())
        )


class Positions(Model):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.pos_embed = nn.Parameter(torch.zeros(1, 16, 4))


class NoLastNorm(Model):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm = nn.Identity()


def head_by_name(self, dim, num_classes):
    self.head = nn.Linear(dim, num_classes)


def other_read(read):
    return {"read": lambda self, x: read(self.norm, x)}


def other_rate(rate):
    return {"rate": lambda self, s, i: rate(self.drop_path, s, i, self.depths)}


def other_shift(shift):
    return {"shift": lambda self, s, i, w: [shift(s, i, m) for m in w]}


def stages_that_merge_first(self, images):
    """The map of a stage is what its merging returns."""
    x, maps = self.patch_embed(images), []
    for s, stage in enumerate(self.layers):
        x = stage.downsample(x) if s else x
        maps.append(x)
        for block in stage.blocks:
            x = block(x)
    return maps


def maps_after_merging(self, images):
    merged = stages_that_merge_first(self, images)[1:]
    return [x.movedim(3, 1) for x in (*merged, self.stages(images)[-1])]


def maps_channels_last(self, images):
    return self.stages(images)


def maps_with_norm(self, images):
    *maps, last = self.stages(images)
    return [x.movedim(3, 1) for x in (*maps, self.norm(last))]


def maps_last_alone(self, images):
    return [self.stages(images)[-1].movedim(3, 1)]


def maps_as_tensor(self, images):
    return self.stages(images)[-1].movedim(3, 1)


BY_DEPTH = "it rises evenly, from 0"
MODELS_WRONG = [
    ({"embed": EmbedWithoutNorm}, "A norm follows the projection"),
    ({"embed": EmbedThatSkipsItsNorm}, "norm of the patch embedding is not"),
    ({"heads": lambda self, heads: heads[:1] * len(heads)}, "for each stage"),
    ({"width": lambda self, dim, s: dim}, "twice as wide"),
    ({"window": lambda self, window, grid: window}, "is cut to that map"),
    (
        {"window": lambda s, window, grid: (min(*window, *grid),) * 2},
        "is cut to that map, along each axis",
    ),
    ({"make_head": head_by_name}, "named head.fc"),
    (other_shift(lambda s, i, m: m // 2), "All blocks shift"),
    (other_shift(lambda s, i, m: m // 2 * (1 - i % 2)), "The first of two"),
    (other_shift(lambda s, i, m: (m + 1) // 2 * (i % 2)), "another number of"),
    (other_read(lambda norm, x: norm(x.mean((1, 2)))), "after the mean"),
    (other_read(lambda norm, x: x.mean((1, 2))), "The last norm is missing"),
    (other_rate(lambda p, s, i, depths: 0.0), "not used by both"),
    (
        other_rate(lambda p, s, i, depths: p * s / max(1, len(depths) - 1)),
        "the same in all blocks of a stage",
    ),
    (
        other_rate(lambda p, s, i, depths: p * i / max(1, depths[s] - 1)),
        "begins anew in each stage",
    ),
    (other_rate(lambda p, s, i, depths: p * (i + 1) / 9), BY_DEPTH),
    ({"block": variant(Block, forward=forward_drop_one)}, "not used by both"),
    ({"block": block_with(hidden=0.0)}, "In the blocks: The mask is missing"),
    (
        {"merging": variant(Merging, joined=joined_row_by_row)},
        "In the merging: The four tokens stand row by row",
    ),
    ({"block": variant(Block, eps=1e-6)}, "LayerNorm has another eps"),
    ({"feature_maps": maps_with_norm}, "The last map is normalized"),
    ({"feature_maps": maps_channels_last}, "The features are the last axis"),
    ({"feature_maps": maps_after_merging}, "those after the merging"),
    ({"feature_maps": maps_last_alone}, "The map of each stage is returned"),
    ({"feature_maps": maps_as_tensor}, "must return a list"),
    (
        {"block": block_with(register_index=register_persistent)},
        "persistent=False",
    ),
]


@pytest.mark.parametrize(("methods", "words"), MODELS_WRONG)
def test_a_wrong_model_is_told_its_mistake(methods, words):
    result = check("SwinTransformer", variant(Model, **methods))
    assert not result.passed
    assert words in result.cause


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (MergingAtTheEnd, "Merging stands at the beginning"),
        (ClassToken, "Swin has no class token"),
        (Positions, "Swin has no table of positions"),
        (NoLastNorm, "A norm comes after the last stage"),
        (with_eps(Model), "LayerNorm has another eps"),
    ],
)
def test_other_layers_of_a_model_are_told(candidate, words):
    result = check("SwinTransformer", candidate)
    assert not result.passed
    assert words in result.cause
