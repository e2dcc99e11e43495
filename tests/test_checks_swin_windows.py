"""The checks of chapter 15: windows written by hand, right and wrong."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

import vit_lessons
from vit_lessons.checks import check, swin_windows, windows

NAMES = [exercise.name for exercise in swin_windows.EXERCISES]
PARTITION, REVERSE, MASK, ATTENTION = NAMES


def pair(size):
    return (size, size) if isinstance(size, int) else tuple(size)


def variant(**methods):
    """OwnAttention with some methods written differently."""
    return type("Candidate", (OwnAttention,), methods)


# Right functions, as different as readers are.


def partition_by_permute(x, window_size):
    m1, m2 = pair(window_size)
    b, gh, gw, d = x.shape
    x = x.view(b, gh // m1, m1, gw // m2, m2, d)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, m1 * m2, d)


def partition_in_a_loop(x, window_size):
    m1, m2 = pair(window_size)
    _, gh, gw, _ = x.shape
    assert gh % m1 == gw % m2 == 0
    found = []
    for image in x:
        for i in range(0, gh, m1):
            for j in range(0, gw, m2):
                found.append(image[i : i + m1, j : j + m2].flatten(0, 1))
    return torch.stack(found)


def partition_by_one_index(x, window_size):
    _, gh, gw, d = x.shape
    places = torch.arange(gh * gw).view(1, gh, gw, 1)
    places = partition_by_permute(places, window_size).squeeze(-1)
    return x.flatten(1, 2)[:, places].reshape(-1, places.shape[1], d)


def partition_by_unfold(x, window_size):
    m1, m2 = pair(window_size)
    if x.shape[1] % m1 or x.shape[2] % m2:
        raise ValueError("pad first")
    x = x.unfold(1, m1, m1).unfold(2, m2, m2)  # (B, nh, nw, D, m1, m2)
    return x.flatten(0, 2).flatten(2).transpose(1, 2)


def reverse_by_permute(windows, window_size, grid_size):
    (m1, m2), (gh, gw) = pair(window_size), pair(grid_size)
    x = windows.view(-1, gh // m1, gw // m2, m1, m2, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, gh, gw, x.shape[-1])


def reverse_in_a_loop(windows, window_size, grid_size):
    (m1, m2), (gh, gw) = pair(window_size), pair(grid_size)
    images = windows.split(gh // m1 * (gw // m2))
    rows = [image.unflatten(1, (m1, m2)).split(gw // m2) for image in images]
    return torch.stack(
        [torch.cat([torch.cat([*r], 1) for r in row], 0) for row in rows]
    )


def reverse_by_one_index(windows, window_size, grid_size):
    gh, gw = pair(grid_size)
    places = torch.arange(gh * gw).view(1, gh, gw, 1)
    order = partition_by_permute(places, window_size).flatten().argsort()
    tokens = windows.reshape(-1, gh * gw, windows.shape[-1])
    return tokens[:, order].unflatten(1, (gh, gw))


def regions_by_slices(gh, gw, m1, m2, s1, s2):
    """The nine regions of published code."""
    region, number = torch.zeros(gh, gw), 0
    for rows in (slice(0, -m1), slice(-m1, -s1), slice(-s1, None)):
        for columns in (slice(0, -m2), slice(-m2, -s2), slice(-s2, None)):
            region[rows, columns] = number
            number += 1
    return region


def mask_by_slices(grid_size, window_size, shift_size, hidden=-100.0):
    (m1, m2), shift = pair(window_size), pair(shift_size)
    region = regions_by_slices(*pair(grid_size), m1, m2, *shift)
    region = partition_by_permute(region[None, ..., None], (m1, m2)).squeeze(2)
    mask = region.unsqueeze(1) - region.unsqueeze(2)
    return mask.masked_fill(mask != 0, hidden)


def mask_of_minus_infinity(*sizes):
    return mask_by_slices(*sizes, hidden=-math.inf)


def mask_of_minus_a_billion(*sizes):
    return mask_by_slices(*sizes, hidden=-1e9)


def mask_in_float64(*sizes):
    return mask_by_slices(*sizes).double()


def mask_in_a_loop(grid_size, window_size, shift_size):
    (gh, gw), (m1, m2) = pair(grid_size), pair(window_size)
    s1, s2 = pair(shift_size)
    masks = []
    for top, left in product(range(0, gh, m1), range(0, gw, m2)):
        came = [
            (top + i + s1 >= gh, left + j + s2 >= gw)
            for i, j in product(range(m1), range(m2))
        ]
        rows = [[0.0 if a == b else -math.inf for b in came] for a in came]
        masks.append(torch.tensor(rows))
    return torch.stack(masks)


def mask_by_distance(grid_size, window_size, shift_size):
    """Two tokens may see each other if they lie as near as they did."""
    (gh, gw), shift = pair(grid_size), pair(shift_size)
    y, x = torch.meshgrid(torch.arange(gh), torch.arange(gw), indexing="ij")
    place = torch.stack([y, x], -1)[None]
    before = place.roll((-shift[0], -shift[1]), (1, 2))
    moved = partition_by_permute(place - before, window_size)
    is_near = (moved[:, :, None] == moved[:, None]).all(-1)
    return torch.where(is_near, 0.0, -torch.inf)


# Right attention.


class OwnAttention(nn.Module):
    """As in published code: slices, -100, an axis for the windows."""

    hidden, persistent, std = -100.0, False, 0.02

    def __init__(
        self, dim, num_heads, window_size=7, shift_size=0, qkv_bias=True
    ):
        super().__init__()
        self.h, self.m, self.s = num_heads, pair(window_size), pair(shift_size)
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        rows = (2 * self.m[0] - 1) * (2 * self.m[1] - 1)
        self.relative_position_bias_table = self.make_table(rows, num_heads)
        index = self.make_index()
        self.register_buffer(
            "relative_position_index", index, persistent=self.persistent
        )

    def make_table(self, rows, heads):
        return nn.Parameter(torch.randn(rows, heads) * self.std)

    def make_index(self):
        m1, m2 = self.m
        places = torch.meshgrid(
            torch.arange(m1), torch.arange(m2), indexing="ij"
        )
        places = torch.stack(places).flatten(1)
        offsets = places[:, :, None] - places[:, None, :]
        offsets = offsets.permute(1, 2, 0).contiguous()
        offsets[:, :, 0] += m1 - 1
        offsets[:, :, 1] += m2 - 1
        offsets[:, :, 0] *= 2 * m2 - 1
        return offsets.sum(-1)

    def bias(self):
        n = self.m[0] * self.m[1]
        index = self.relative_position_index.view(-1)
        bias = self.relative_position_bias_table[index].view(n, n, -1)
        return bias.permute(2, 0, 1).contiguous()

    def pad(self, x):
        bottom, right = -x.shape[1] % self.m[0], -x.shape[2] % self.m[1]
        return F.pad(x, (0, 0, 0, right, 0, bottom))

    def shift(self, gh, gw):
        s1, s2 = self.s
        return (0 if self.m[0] >= gh else s1, 0 if self.m[1] >= gw else s2)

    def roll(self, x, s):
        return torch.roll(x, shifts=(-s[0], -s[1]), dims=(1, 2))

    def roll_back(self, x, s):
        return torch.roll(x, shifts=s, dims=(1, 2))

    def cut(self, x, s):
        return partition_by_permute(x, self.m)

    def join(self, x, grid, s):
        return reverse_by_permute(x, self.m, grid)

    def mask(self, grid, s):
        return mask_by_slices(grid, self.m, s, self.hidden)

    def add_mask(self, scores, mask):
        n_windows, n, _ = mask.shape
        scores = scores.view(-1, n_windows, self.h, n, n)
        scores = scores + mask.unsqueeze(1).unsqueeze(0)
        return scores.view(-1, self.h, n, n)

    def split(self, x):
        b, n, d = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.h, d // self.h)
        return qkv.permute(2, 0, 3, 1, 4)

    def scores(self, q, k):
        return (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)

    def attend(self, x, mask):
        q, k, v = self.split(x)
        scores = self.scores(q, k) + self.bias()
        if mask is not None:
            scores = self.add_mask(scores, mask)
        out = F.softmax(scores, dim=-1) @ v
        return self.proj(out.transpose(1, 2).reshape(x.shape))

    def forward(self, x):
        _, gh, gw, _ = x.shape
        x = self.pad(x)
        grid = tuple(x.shape[1:3])
        s = self.shift(*grid)
        mask = self.mask(grid, s) if sum(s) > 0 else None
        x = self.cut(self.roll(x, s), s)
        x = self.roll_back(self.join(self.attend(x, mask), grid, s), s)
        return x[:, :gh, :gw].contiguous()


def attend_fused(self, x, mask):
    q, k, v = self.split(x)
    bias = self.bias()[None]
    if mask is not None:
        bias = (bias + mask[:, None]).repeat(len(x) // len(mask), 1, 1, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return self.proj(rearrange(out, "b h n d -> b n (h d)"))


def attend_by_einsum(self, x, mask):
    q, k, v = rearrange(self.qkv(x), "b n (t h d) -> t b n h d", t=3, h=self.h)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1])
    scores = scores + self.bias()
    if mask is not None:
        visible = (mask == 0).tile(len(x) // len(mask), 1, 1)
        scores[~visible[:, None].expand_as(scores)] = -torch.inf
    out = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)
    return self.proj(out.flatten(2))


def attend_in_float64(self, x, mask):
    q, k, v = self.split(x).double()
    scores = self.scores(q, k) + self.bias()
    if mask is not None:
        scores = self.add_mask(scores, mask)
    out = (scores.softmax(-1) @ v).float()
    return self.proj(out.transpose(1, 2).flatten(2))


def attend_head_by_head(self, x, mask):
    q, k, v = self.split(x)
    table = self.relative_position_bias_table[self.make_index()]
    heads = []
    for i in range(self.h):
        scores = self.scores(q[:, i], k[:, i]) + table[..., i]
        if mask is not None:
            scores = scores + mask.repeat(len(x) // len(mask), 1, 1)
        heads.append(scores.softmax(-1) @ v[:, i])
    return self.proj(torch.cat(heads, -1))


def forward_window_by_window(self, x):
    """The irregular windows themselves, with no roll and no mask."""
    (_, gh, gw, _), x = x.shape, self.pad(x)
    s, out = self.shift(*x.shape[1:3]), torch.zeros_like(x)
    q, k, v = self.split(x.flatten(1, 2)).unflatten(3, x.shape[1:3])
    table = self.relative_position_bias_table
    edges = [
        sorted({0, size, *range(t or m, size, m)})
        for size, m, t in zip(x.shape[1:3], self.m, s, strict=True)
    ]
    for top, bottom in zip(edges[0], edges[0][1:], strict=False):
        for left, right in zip(edges[1], edges[1][1:], strict=False):
            here = (slice(top, bottom), slice(left, right))
            y, z = torch.cartesian_prod(
                torch.arange(top, bottom), torch.arange(left, right)
            ).T
            dy, dz = y[:, None] - y, z[:, None] - z
            row = (dy + self.m[0] - 1) * (2 * self.m[1] - 1)
            bias = table[row + dz + self.m[1] - 1].movedim(2, 0)
            a, b, c = (t[:, :, *here].flatten(2, 3) for t in (q, k, v))
            one = (self.scores(a, b) + bias).softmax(-1) @ c
            shape = (bottom - top, right - left)
            one = one.transpose(1, 2).flatten(2).unflatten(1, shape)
            out[:, *here] = self.proj(one)
    return out[:, :gh, :gw]


def cut_by_one_index(self, x, s):
    """Roll and cut in one step."""
    _, gh, gw, d = x.shape
    places = torch.arange(gh * gw).view(1, gh, gw, 1)
    places = partition_by_permute(OwnAttention.roll(self, places, s), self.m)
    self.order = places.flatten()
    return x.flatten(1, 2)[:, self.order].reshape(-1, places.shape[1], d)


def join_by_one_index(self, x, grid, s):
    tokens = x.reshape(-1, len(self.order), x.shape[-1])
    return tokens[:, self.order.argsort()].unflatten(1, grid)


def stay(self, x, s):
    return x


class TorchvisionAttention(ShiftedWindowAttention):
    """The layer of torchvision, with the arguments of ours."""

    persistent = False

    def __init__(
        self, dim, num_heads, window_size=7, shift_size=0, *, qkv_bias=True
    ):
        m, s = list(pair(window_size)), list(pair(shift_size))
        super().__init__(dim, m, s, num_heads, qkv_bias=qkv_bias)
        index = self._buffers.pop("relative_position_index")
        self.register_buffer(
            "relative_position_index", index, persistent=self.persistent
        )


RIGHT = [
    *(
        (PARTITION, function)
        for function in (
            partition_by_permute,
            partition_in_a_loop,
            partition_by_one_index,
            partition_by_unfold,
        )
    ),
    *(
        (REVERSE, function)
        for function in (
            reverse_by_permute,
            reverse_in_a_loop,
            reverse_by_one_index,
        )
    ),
    *(
        (MASK, function)
        for function in (
            mask_by_slices,
            mask_of_minus_infinity,
            mask_of_minus_a_billion,
            mask_in_float64,
            mask_in_a_loop,
            mask_by_distance,
        )
    ),
    *(
        (ATTENTION, candidate)
        for candidate in (
            TorchvisionAttention,
            OwnAttention,
            variant(hidden=-math.inf),
            variant(attend=attend_fused),
            variant(attend=attend_by_einsum),
            variant(attend=attend_in_float64),
            variant(attend=attend_head_by_head),
            variant(forward=forward_window_by_window),
            variant(
                roll=stay,
                roll_back=stay,
                cut=cut_by_one_index,
                join=join_by_one_index,
            ),
        )
    ),
]


@pytest.mark.parametrize(("name", "candidate"), RIGHT)
def test_a_right_solution_written_differently_passes(name, candidate):
    result = check(name, candidate)
    assert result.passed, result.report
    assert result.cause is None
    assert "not run" not in result.report


# Wrong functions.


def partition_by_view(x, window_size):
    m1, m2 = pair(window_size)
    b, gh, gw, d = x.shape
    return x.view(b, gh // m1, m1, gw // m2, m2, d).reshape(-1, m1 * m2, d)


def partition_without_check(x, window_size):
    (m1, m2), (_, gh, gw, _) = pair(window_size), x.shape
    return partition_by_permute(
        x[:, : gh // m1 * m1, : gw // m2 * m2], (m1, m2)
    )


def partition_padded(x, window_size):
    m1, m2 = pair(window_size)
    x = F.pad(x, (0, 0, 0, -x.shape[2] % m2, 0, -x.shape[1] % m1))
    return partition_by_permute(x, window_size)


def partition_of_squares(x, window_size):
    return partition_by_permute(x, int(window_size))


def partition_of_published_code(x, window_size):
    return partition_by_permute(x, window_size).unflatten(1, pair(window_size))


def partition_with(pattern, x_pattern="b (nh m1) (nw m2) d"):
    def partition(x, window_size):
        m1, m2 = pair(window_size)
        return rearrange(x, f"{x_pattern} -> {pattern}", m1=m1, m2=m2)

    return partition


def partition_swapped(x, window_size):
    return partition_by_permute(x, pair(window_size)[::-1])


def reverse_by_view(windows, window_size, grid_size):
    return windows.view(-1, *pair(grid_size), windows.shape[-1])


def reverse_of_windows(windows, window_size, grid_size):
    """grid_size is read as the number of windows."""
    (m1, m2), (gh, gw) = pair(window_size), pair(grid_size)
    b = len(windows) // (gh * gw)
    x = windows.view(b, gh, gw, m1, m2, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).flatten(1, 2).flatten(2, 3)


def reverse_with(pattern, tokens="(m1 m2)", batch="(b nh nw)"):
    def reverse(windows, window_size, grid_size):
        (m1, m2), (gh, gw) = pair(window_size), pair(grid_size)
        sizes = {"m1": m1, "m2": m2, "nh": gh // m1, "nw": gw // m2}
        return rearrange(windows, f"{batch} {tokens} d -> {pattern}", **sizes)

    return reverse


def reverse_with_windows_swapped(windows, window_size, grid_size):
    return reverse_by_permute(windows, pair(window_size)[::-1], grid_size)


def reverse_with_grid_swapped(windows, window_size, grid_size):
    return reverse_by_permute(windows, window_size, pair(grid_size)[::-1])


def mask_from(change=lambda region, *_: region, fill=None, end=None):
    """The mask of published code, with something changed."""

    def mask(grid_size, window_size, shift_size):
        (gh, gw), m, s = pair(grid_size), pair(window_size), pair(shift_size)
        region = change(regions_by_slices(gh, gw, *m, *s), gh, gw, m, s)
        if region.ndim == 2:
            region = partition_by_permute(region[None, ..., None], m)
        region = region.flatten(1)
        apart = region[:, None] != region[:, :, None]
        if fill is not None:
            mask = fill(apart)
        else:
            mask = torch.zeros(apart.shape).masked_fill(apart, -100.0)
        return mask if end is None else end(mask, *m)

    return mask


def rows_alone(region, gh, gw, m, s):
    return torch.arange(gh)[:, None].ge(gh - s[0]).float().expand(gh, gw)


def columns_alone(region, gh, gw, m, s):
    return torch.arange(gw).ge(gw - s[1]).float().expand(gh, gw)


def added_without_2(region, *sizes):
    return rows_alone(region, *sizes) + columns_alone(region, *sizes)


def one_or_the_other(region, *sizes):
    return added_without_2(region, *sizes).clamp(max=1)


def border_one_off(region, gh, gw, m, s):
    return regions_by_slices(gh, gw, *m, *(t + 1 if t else 0 for t in s))


def border_at_the_rest(region, gh, gw, m, s):
    return regions_by_slices(gh, gw, *m, m[0] - s[0], m[1] - s[1])


def border_swapped(region, gh, gw, m, s):
    return regions_by_slices(gh, gw, *m, s[1], s[0])


def border_at_the_top(region, gh, gw, m, s):
    rows, columns = torch.arange(gh) < s[0], torch.arange(gw) < s[1]
    return (rows[:, None] * 2 + columns).float()


def windows_of_the_block_before(region, gh, gw, m, s):
    rows = torch.arange(gh).roll(-s[0]) // m[0]
    columns = torch.arange(gw).roll(-s[1]) // m[1]
    return (rows[:, None] * gw + columns).float()


def cut_by_view(region, gh, gw, m, s):
    return region.reshape(-1, m[0] * m[1], 1)


def cut_in_columns(region, gh, gw, m, s):
    region = region.unflatten(0, (-1, m[0])).unflatten(2, (-1, m[1]))
    return region.permute(2, 0, 1, 3).flatten(0, 1).flatten(1)[:, :, None]


def not_cut(region, gh, gw, m, s):
    return region.reshape(1, -1, 1)


def mask_of_the_other_grid(grid_size, *sizes):
    return mask_by_slices(pair(grid_size)[::-1], *sizes)


def zero_times_infinity(apart):
    return apart.float() * -torch.inf


MASK_WRONG = [
    ({"change": rows_alone}, "One region is missing"),
    ({"change": columns_alone}, "One region is missing"),
    ({"change": one_or_the_other}, "One region is missing"),
    ({"change": added_without_2}, "Two of the four regions have the same"),
    ({"change": border_one_off}, "The border between the regions is in the w"),
    ({"change": border_at_the_rest}, "The border between the regions is in"),
    ({"change": border_swapped}, "swaps the two axes of the regions"),
    ({"change": border_at_the_top}, "The border lies above and on the left"),
    ({"change": windows_of_the_block_before}, "Pairs from two windows of the"),
    ({"change": cut_by_view}, "A reshape does not cut windows"),
    ({"change": cut_in_columns}, "The windows or their tokens are in the wro"),
    ({"change": not_cut}, "The whole map is one window"),
    ({"fill": lambda apart: -100.0 * ~apart}, "The mask is the wrong way ro"),
    ({"fill": lambda apart: 100.0 * apart}, "The mask has the wrong sign"),
    ({"fill": lambda apart: -1.0 * apart}, "that hides nothing"),
    ({"fill": lambda apart: -10.0 * apart}, "that hides nothing"),
    ({"fill": lambda apart: apart}, "The mask holds True and False"),
    ({"fill": lambda apart: ~apart}, "The mask holds True and False"),
    ({"fill": lambda apart: (~apart).float()}, "or 1 and 0"),
    ({"fill": zero_times_infinity}, "0 * -inf is NaN"),
    ({"fill": lambda apart: -100 * apart}, "not their dtype"),
    ({"end": lambda mask, *_: mask[:, None]}, "The shape is wrong"),
    ({"end": lambda mask, *_: mask[None, :, None]}, "The shape is wrong"),
]
FUNCTIONS_WRONG = [
    (PARTITION, partition_by_view, "A reshape does not cut windows"),
    (PARTITION, partition_without_check, "A map that windows do not tile is"),
    (PARTITION, partition_padded, "A map that windows do not tile is acc"),
    (PARTITION, partition_of_squares, "window_size may be a pair"),
    (PARTITION, partition_of_published_code, "A window is still a map"),
    (PARTITION, partition_swapped, "the code swaps the two"),
    *(
        (PARTITION, partition_with(*patterns), words)
        for patterns, words in (
            (
                ("(b nh nw) (m1 m2) d", "b (m1 nh) (m2 nw) d"),
                "The tokens of a window are spread over the map",
            ),
            (("(b nw nh) (m1 m2) d",), "The windows go column by column"),
            (("(nh nw b) (m1 m2) d",), "The windows of different images take"),
            (("(b nh nw) (m2 m1) d",), "swapped inside each window"),
            (("(b m1 m2) (nh nw) d",), "and the windows are mixed up"),
            (("b (nh nw) (m1 m2) d",), "Images and windows are apart"),
            (("(b nh nw) d (m1 m2)",), "The axes are in the wrong order"),
        )
    ),
    (REVERSE, reverse_by_view, "A reshape does not put windows together"),
    (REVERSE, reverse_of_windows, "and grid_size counts tokens."),
    (REVERSE, reverse_with_windows_swapped, "the code swaps the two"),
    (REVERSE, reverse_with_grid_swapped, "the code swaps the two"),
    *(
        (REVERSE, reverse_with(*patterns), words)
        for patterns, words in (
            (("b (m1 nh) (m2 nw) d",), "are spread over the map"),
            (
                ("b (nh m1) (nw m2) d", "(m1 m2)", "(b nw nh)"),
                "The windows go column by column",
            ),
            (
                ("b (nh m1) (nw m2) d", "(m1 m2)", "(nh nw b)"),
                "The windows of different images take turns",
            ),
            (("b (nh m1) (nw m2) d", "(m2 m1)"), "inside each window"),
            (("b (nw m2) (nh m1) d",), "The map is transposed"),
            (("b nh m1 nw m2 d",), "The windows are not put together"),
            (("b (nh m1 nw m2) d",), "The map is flat"),
        )
    ),
    (MASK, mask_of_the_other_grid, "grid_size is (height, width), and the"),
    *((MASK, mask_from(**changes), words) for changes, words in MASK_WRONG),
]

# Wrong attention.


def in_mask(change):
    """A method that makes the mask of published code with a change."""

    def mask(self, grid, s):
        return mask_from(change)(grid, self.m, s)

    return mask


def mask_padding(self, grid, s):
    """Right, but tokens do not see the padding; needs the size of the map."""
    gh, gw = self.size
    real = torch.zeros(1, *grid, 1)
    real[:, :gh, :gw] = 1
    real = partition_by_permute(OwnAttention.roll(self, real, s), self.m)
    hidden = torch.zeros(real.shape[0], *[real.shape[1]] * 2)
    hidden[(real != real.mT)] = -torch.inf
    return OwnAttention.mask(self, grid, s) + hidden


def pad_and_keep_the_size(self, x):
    self.size = x.shape[1:3]
    return OwnAttention.pad(self, x)


def filled(value, *, exchanged=False):
    def add_mask(self, scores, mask):
        hidden = (mask == 0 if exchanged else mask != 0)[:, None]
        hidden = hidden.repeat(len(scores) // len(mask), self.h, 1, 1)
        return scores.masked_fill(hidden, value)

    return add_mask


def add_per_head(self, scores, mask):
    return scores + mask


def add_in_turns(self, scores, mask):
    mask = mask.repeat_interleave(len(scores) // len(mask), dim=0)
    return scores + mask[:, None]


def add_bool(self, scores, mask):
    return OwnAttention.add_mask(self, scores, (mask != 0).float())


def add_visible(self, scores, mask):
    return OwnAttention.add_mask(self, scores, (mask == 0).float())


def subtract_mask(self, scores, mask):
    return OwnAttention.add_mask(self, scores, -mask)


def attend_hiding_late(self, x, mask):
    q, k, v = self.split(x)
    weights = (self.scores(q, k) + self.bias()).softmax(-1)
    if mask is not None:
        visible = (mask == 0).float()[:, None]
        weights = weights * visible.repeat(len(x) // len(mask), 1, 1, 1)
    return self.proj((weights @ v).transpose(1, 2).flatten(2))


def attend_over_queries(self, x, mask):
    q, k, v = self.split(x)
    scores = self.scores(q, k) + self.bias()
    if mask is not None:
        scores = self.add_mask(scores, mask)
    out = scores.softmax(dim=-2) @ v
    return self.proj(out.transpose(1, 2).flatten(2))


def attend_without_projection(self, x, mask):
    q, k, v = self.split(x)
    scores = self.scores(q, k) + self.bias()
    if mask is not None:
        scores = self.add_mask(scores, mask)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def roll_down(self, x, s):
    return torch.roll(x, shifts=s, dims=(1, 2))


def roll_along_the_other(self, x, s):
    return torch.roll(x, shifts=(-s[1], -s[0]), dims=(1, 2))


def roll_back_along_the_other(self, x, s):
    return torch.roll(x, shifts=(s[1], s[0]), dims=(1, 2))


def cut_then_roll(self, x, s):
    x = partition_by_permute(x, self.m).unflatten(1, self.m)
    return x.roll((-s[0], -s[1]), (1, 2)).flatten(1, 2)


def roll_then_join(self, x, grid, s):
    x = x.unflatten(1, self.m).roll(s, (1, 2)).flatten(1, 2)
    return reverse_by_permute(x, self.m, grid)


def forward_padded_late(self, x):
    """Roll, pad, attend, crop, roll back, with the mask of the padded map."""
    _, gh, gw, _ = x.shape
    grid = tuple(OwnAttention.pad(self, x).shape[1:3])
    s = self.shift(*grid)
    mask = self.mask(grid, s) if sum(s) > 0 else None
    windows = self.cut(self.pad(self.roll(x, s)), s)
    x = self.join(self.attend(windows, mask), grid, s)[:, :gh, :gw]
    return self.roll_back(x, s)


def forward_cropped_early(self, x):
    _, gh, gw, _ = x.shape
    x = self.pad(x)
    grid = tuple(x.shape[1:3])
    s = self.shift(*grid)
    mask = self.mask(grid, s) if sum(s) > 0 else None
    x = self.attend(self.cut(self.roll(x, s), s), mask)
    return self.roll_back(self.join(x, grid, s)[:, :gh, :gw], s)


def forward_not_cropped(self, x):
    return OwnAttention.forward(self, self.pad(x))


def forward_padded_at_the_top(self, x):
    _, gh, gw, _ = x.shape
    top, left = -gh % self.m[0], -gw % self.m[1]
    x = F.pad(x, (0, 0, left, 0, top, 0))
    return OwnAttention.forward(self, x)[:, top:, left:]


def forward_padded_around(self, x):
    (m1, m2), (_, gh, gw, _) = self.m, x.shape
    h, w = -gh % m1, -gw % m2
    x = F.pad(x, (0, 0, w // 2, w - w // 2, h // 2, h - h // 2))
    x = OwnAttention.forward(self, x)
    return x[:, h // 2 : h // 2 + gh, w // 2 : w // 2 + gw]


def forward_in_place(self, x):
    x *= 1.5
    return OwnAttention.forward(self, x)


def forward_that_forgets_its_shift(self, x):
    """A map that one window covers sets the shift to 0 for good."""
    if x.shape[1] <= self.m[0] and x.shape[2] <= self.m[1]:
        self.s = (0, 0)
    return OwnAttention.forward(self, x)


def pad_a_whole_window(self, x):
    bottom = self.m[0] - x.shape[1] % self.m[0]
    right = self.m[1] - x.shape[2] % self.m[1]
    return F.pad(x, (0, 0, 0, right, 0, bottom))


def pad_nothing(self, x):
    gh, gw = (n // m * m for n, m in zip(x.shape[1:3], self.m, strict=True))
    return x[:, :gh, :gw]


def pad_with_the_edge(self, x):
    bottom, right = -x.shape[1] % self.m[0], -x.shape[2] % self.m[1]
    x = x.permute(0, 3, 1, 2)
    x = F.pad(x, (0, right, 0, bottom), mode="replicate")
    return x.permute(0, 2, 3, 1)


def shift_of_squares(self, gh, gw):
    return (0, 0) if min(gh - self.m[0], gw - self.m[1]) <= 0 else self.s


def bias_of_one_head(self):
    return OwnAttention.bias(self)[:1]


def bias_viewed(self):
    n = self.m[0] * self.m[1]
    index = self.relative_position_index.view(-1)
    return self.relative_position_bias_table[index].view(-1, n, n)


def index_by_gw(self):
    """A row of offsets counts as gw numbers and not as 2 * gw - 1."""
    m1, m2 = self.m
    y, x = torch.cartesian_prod(torch.arange(m1), torch.arange(m2)).T
    dy, dx = y[:, None] - y + m1 - 1, x[:, None] - x + m2 - 1
    return dy * m2 + dx


def scores_without_scale(self, q, k):
    return q @ k.mT


def scores_scaled_by_d(self, q, k):
    return q @ k.mT * (self.h * q.shape[-1]) ** -0.5


def cut_spread(self, x, s):
    return partition_with("(b nh nw) (m1 m2) d", "b (m1 nh) (m2 nw) d")(
        x, self.m
    )


def join_spread(self, x, grid, s):
    return reverse_with("b (m1 nh) (m2 nw) d")(x, self.m, grid)


def cut_in_columns_of_windows(self, x, s):
    return partition_with("(b nw nh) (m1 m2) d")(x, self.m)


def join_columns_of_windows(self, x, grid, s):
    back = reverse_with("b (nh m1) (nw m2) d", "(m1 m2)", "(b nw nh)")
    return back(x, self.m, grid)


def cut_transposed(self, x, s):
    return partition_with("(b nh nw) (m2 m1) d")(x, self.m)


def join_transposed(self, x, grid, s):
    return reverse_with("b (nh m1) (nw m2) d", "(m2 m1)")(x, self.m, grid)


NO_ROLL = {"roll": stay, "roll_back": stay}
INSIDE = {"cut": cut_then_roll, "join": roll_then_join, **NO_ROLL}
ROUND = "The mask is the wrong way round"
CUT_FIRST = "The map is cut before it is rolled"
NO_MASK = {"mask": lambda self, grid, s: None}

ATTENTION_WRONG = [
    (NO_MASK, "The mask is missing"),
    ({"add_mask": add_per_head}, "The mask needs an axis for the heads"),
    ({"add_mask": add_in_turns}, "The masks follow another order"),
    ({"add_mask": subtract_mask}, ROUND),
    ({"add_mask": subtract_mask, "hidden": -math.inf}, ROUND),
    ({"add_mask": filled(-math.inf, exchanged=True)}, ROUND),
    ({"add_mask": filled(-100.0, exchanged=True)}, ROUND),
    ({"add_mask": add_bool}, ROUND),
    ({"add_mask": add_visible}, "The mask is a number that hides nothing"),
    ({"hidden": -1.0}, "The mask is a number that hides nothing"),
    ({"add_mask": filled(0.0)}, "The mask is multiplied with the scores"),
    ({"attend": attend_hiding_late}, "The mask comes after the softmax"),
    ({"mask": in_mask(border_at_the_top)}, "The border lies above"),
    ({"mask": in_mask(rows_alone)}, "One region is missing"),
    ({"mask": in_mask(columns_alone)}, "One region is missing"),
    ({"mask": in_mask(border_at_the_rest)}, "The border between the regions"),
    ({"mask": in_mask(border_swapped)}, "swaps the two axes of the regions"),
    (
        {"mask": mask_padding, "pad": pad_and_keep_the_size},
        "The padding is hidden by the mask",
    ),
    ({"shift": lambda self, *grid: (0, 0)}, "shift_size is not used"),
    ({"roll": roll_down, "roll_back": OwnAttention.roll}, "the wrong way: up"),
    ({"roll_back": stay}, "The map is not rolled back"),
    ({"roll_back": OwnAttention.roll}, "The map is rolled on instead of back"),
    (INSIDE, CUT_FIRST),
    (INSIDE | NO_MASK, CUT_FIRST),
    (NO_ROLL, "The map is not rolled, and the mask acts on the windows"),
    (
        {
            "roll": roll_along_the_other,
            "roll_back": roll_back_along_the_other,
        },
        "The map is rolled along the wrong axes",
    ),
    ({"shift": lambda self, *grid: self.s}, "The shift is kept along an axis"),
    ({"shift": shift_of_squares}, "The shift is dropped along both axes"),
    ({"forward": forward_that_forgets_its_shift}, "A small map changes the"),
    ({"forward": forward_padded_at_the_top}, "The padding is at the top"),
    ({"forward": forward_padded_around}, "The padding is on all sides"),
    ({"forward": forward_padded_late}, "The padding comes after the roll"),
    ({"forward": forward_cropped_early}, "The map is cropped before it is r"),
    ({"forward": forward_not_cropped}, "The padding is still there"),
    ({"forward": forward_in_place}, "changes its input in place"),
    ({"pad": pad_a_whole_window}, "A map that windows tile is padded too"),
    ({"pad": pad_nothing}, "What windows do not cover is dropped"),
    ({"pad": pad_with_the_edge}, "The padding must hold zeros"),
    (
        {
            "cut": lambda self, x, s: partition_by_view(x, self.m),
            "join": lambda self, x, grid, s: reverse_by_view(x, self.m, grid),
        },
        "A reshape does not cut windows",
    ),
    (
        {"join": lambda self, x, grid, s: reverse_by_view(x, self.m, grid)},
        "A reshape does not put windows together",
    ),
    ({"cut": cut_spread, "join": join_spread}, "are spread over the map"),
    (
        {"cut": cut_in_columns_of_windows, "join": join_columns_of_windows},
        "The windows go column by column",
    ),
    ({"join": join_columns_of_windows}, "The windows go column by column"),
    ({"cut": cut_transposed, "join": join_transposed}, "inside each window"),
    ({"bias": lambda self: 0}, "The relative position bias is missing"),
    (
        {"bias": lambda self: -OwnAttention.bias(self)},
        "The bias has the wrong sign",
    ),
    (
        {
            "make_index": lambda self: OwnAttention.make_index(
                self
            ).T.contiguous()
        },
        "The bias is transposed",
    ),
    ({"bias": bias_of_one_head}, "All heads share one bias"),
    ({"bias": bias_viewed}, "The bias is viewed as (h, N, N)"),
    ({"make_index": index_by_gw}, "The table is read with the wrong row"),
    ({"scores": scores_without_scale}, "The scale is missing"),
    ({"scores": scores_scaled_by_d}, "The scale uses the width of all heads"),
    ({"attend": attend_over_queries}, "The softmax runs over the queries"),
    ({"attend": attend_without_projection}, "output projection proj is miss"),
]


class OtherNames(OwnAttention):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.to_qkv = self.qkv
        del self.qkv


class TableByRows(OwnAttention):
    def make_table(self, rows, heads):
        return nn.Parameter(torch.zeros(heads, rows))


class OneTableForAllHeads(OwnAttention):
    def make_table(self, rows, heads):
        return nn.Parameter(torch.zeros(rows, 1))


class TableOfSquares(OwnAttention):
    def make_table(self, rows, heads):
        return nn.Parameter(torch.zeros((2 * self.m[0] - 1) ** 2, heads))


class SwappedWindow(OwnAttention):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.m = self.m[::-1]


class MaskIsABuffer(OwnAttention):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("attn_mask", torch.zeros(1))


CLASSES_WRONG = [
    (OtherNames, "missing: qkv.weight, qkv.bias; not expected: to_qkv.weight"),
    (variant(persistent=True), "with persistent=False."),
    (
        type("Published", (TorchvisionAttention,), {"persistent": True}),
        "not expected: relative_position_index. The index and the mask follow",
    ),
    (MaskIsABuffer, "not expected: attn_mask. The index and the mask follow"),
    (TableByRows, "must have shape (9, 1), and yours has (1, 9). The table"),
    (OneTableForAllHeads, "Right for one head, wrong for several"),
    (SwappedWindow, "window_size is (height, width), and the code swaps"),
    (TableOfSquares, "Right for square windows only"),
    (OwnAttention(4, 2), "check needs your class itself"),
    (nn.Linear, "must take dim, num_heads, window_size, shift_size by keyw"),
]
WRONG = [
    *FUNCTIONS_WRONG,
    *(
        (ATTENTION, variant(**methods), words)
        for methods, words in ATTENTION_WRONG
    ),
    *((ATTENTION, candidate, words) for candidate, words in CLASSES_WRONG),
]


@pytest.mark.parametrize(("name", "candidate", "words"), WRONG)
def test_a_mistake_written_by_hand_is_named(name, candidate, words):
    result = check(name, candidate)
    assert not result.passed
    assert words in (result.cause or ""), result.report
    assert result.report.endswith(f"Likely mistake: {result.cause}")


@pytest.mark.parametrize("exercise", windows.EXERCISES, ids=NAMES[:3])
def test_every_mistake_of_the_functions_is_written_by_hand(exercise):
    words = [words for name, _, words in WRONG if name == exercise.name]
    for wrong in exercise.wrong_forms():
        is_known = any(some in wrong.cause for some in words)
        assert is_known, wrong.cause


def test_every_mistake_of_attention_is_written_by_hand():
    words = [words for name, _, words in WRONG if name == ATTENTION]
    for mistake in (
        *swin_windows.MASKS,
        *swin_windows.SHIFTS,
        *swin_windows.PADDING,
        *swin_windows.WINDOWS,
        *swin_windows.BIASES,
    ):
        assert any(some in mistake.cause for some in words), mistake.cause


def test_two_mistakes_at_once_are_both_named():
    cause = check(ATTENTION, variant(bias=lambda self: 0, **NO_MASK)).cause
    assert cause.startswith("There are two mistakes. The mask is missing:")
    assert "The relative position bias is missing" in cause


def test_the_report_counts_the_pairs_that_are_wrong():
    report = check(MASK, mask_from(rows_alone)).report
    assert "of 64 pairs, 12 must be hidden and are not, 0 are hidden" in report


def test_a_result_with_nan_is_called_so():
    candidate = variant(add_mask=filled(-math.inf, exchanged=True))
    report = check(ATTENTION, candidate).report
    assert "a shift: the result holds NaN, which is not a number" in report


# Stubs.


class Stub(nn.Module):
    """Your code here."""

    def __init__(self, dim, num_heads, window_size, shift_size, qkv_bias=True):
        super().__init__()

    def forward(self, x): ...


def stub(*args):
    raise NotImplementedError


class StubOfThePackage(vit_lessons.MultiHeadSelfAttention):
    def __init__(self, dim, num_heads, window_size=7, shift_size=0):
        raise NotImplementedError  # begin with super().__init__(...)

    def forward(self, x): ...


def test_a_stub_may_extend_a_class_of_the_package():
    assert not check(ATTENTION, StubOfThePackage).attempted


@pytest.mark.parametrize("name", NAMES)
def test_an_untouched_stub_is_not_attempted_yet(name):
    result = check(name, Stub if name == ATTENTION else stub)
    assert not result.attempted
    assert result.cause is None


def test_the_exercises_are_the_public_names_of_the_chapter():
    assert set(NAMES) <= set(vit_lessons.swin_windows.__all__)
