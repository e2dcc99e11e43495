"""The checks of chapters 02 and 03: solutions and mistakes written by hand."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from scipy.ndimage import zoom
from torch import nn

from vit_lessons.checks import check


def pair(size):
    return (size, size) if isinstance(size, int) else tuple(size)


# Right solutions, as different as readers are.


def prepend_expand(x, token):
    return torch.cat((token.expand(x.shape[0], -1, -1), x), dim=1)


def prepend_repeat(x, token):
    return torch.cat([token.repeat(x.size(0), 1, 1), x], dim=-2)


def prepend_einops(x, cls_token):
    cls = repeat(cls_token, "1 1 d -> b 1 d", b=len(x))
    return torch.concat([cls, x], 1)


def prepend_with_a_loop(x, token):
    return torch.stack([torch.vstack([token[0], image]) for image in x])


def prepend_into_zeros(x, token):
    b, n, d = x.shape
    tokens = torch.zeros(b, n + 1, d)
    tokens[:, :1] = token
    tokens[:, 1:] = x
    return tokens


def prepend_by_padding(x, token):
    tokens = F.pad(x, (0, 0, 1, 0))
    first = torch.zeros(tokens.shape[1], 1)
    first[0] = 1
    return tokens + first * token


def pool_simple(x, mode):
    return x[:, 0] if mode == "cls" else x[:, 1:].mean(1)


def pool_match(x, mode="cls", num_prefix_tokens=1):
    match mode:
        case "cls":
            return x.select(1, 0)
        case "mean":
            return reduce(x[:, num_prefix_tokens:], "b n d -> b d", "mean")
    raise ValueError(mode)


def pool_sum(x, mode="cls", *, num_prefix_tokens=1):
    if mode == "cls":
        return x[:, :1].squeeze(1)
    patches = x.narrow(1, num_prefix_tokens, x.size(1) - num_prefix_tokens)
    return patches.sum(dim=1) / patches.shape[1]


def pool_with_loops(x, mode="cls"):
    vectors = []
    for image in x:
        if mode == "cls":
            vectors.append(image[0])
        else:
            vectors.append(sum(image[1:]) / (len(image) - 1))
    return torch.stack(vectors)


def pool_by_weights(x, mode="cls", num_prefix_tokens=1):
    weights = torch.zeros(x.shape[1])
    if mode == "cls":
        weights[0] = 1
    else:
        weights[num_prefix_tokens:] = 1 / (x.shape[1] - num_prefix_tokens)
    return torch.einsum("bnd,n->bd", x, weights)


def sincos_with_loops(grid_size, dim, *, temperature=10_000.0):
    if dim % 4 != 0:
        raise ValueError("dim")
    gh, gw = pair(grid_size)
    table = torch.zeros(1, gh * gw, dim)
    quarter = dim // 4
    for row in range(gh):
        for column in range(gw):
            for i in range(quarter):
                speed = 1 / temperature ** (i / quarter)
                place = table[0, row * gw + column]
                place[i] = math.sin(column * speed)
                place[quarter + i] = math.cos(column * speed)
                place[2 * quarter + i] = math.sin(row * speed)
                place[3 * quarter + i] = math.cos(row * speed)
    return table


def one_axis(dim, places):
    """MAE's function, in NumPy."""
    assert dim % 2 == 0
    omega = np.arange(dim // 2, dtype=float) / (dim / 2.0)
    out = np.einsum("m,d->md", places.reshape(-1), 1.0 / 10_000**omega)
    return np.concatenate([np.sin(out), np.cos(out)], axis=1)


def sincos_of_mae(grid_size, dim):
    gh, gw = pair(grid_size)
    across, down = np.meshgrid(np.arange(gw), np.arange(gh))
    assert dim % 2 == 0
    table = [one_axis(dim // 2, places) for places in (across, down)]
    return torch.from_numpy(np.concatenate(table, axis=1)).float()[None]


def sincos_by_einsum(grid_size, dim, temperature=10_000):
    h, w = pair(grid_size)
    grid_w, grid_h = torch.meshgrid(
        torch.arange(w, dtype=torch.float32),
        torch.arange(h, dtype=torch.float32),
        indexing="xy",
    )
    assert dim % 4 == 0
    pos_dim = dim // 4
    omega = torch.arange(pos_dim, dtype=torch.float32) / pos_dim
    omega = 1.0 / (temperature**omega)
    out_w = torch.einsum("m,d->md", [grid_w.flatten(), omega])
    out_h = torch.einsum("m,d->md", [grid_h.flatten(), omega])
    waves = [out_w.sin(), out_w.cos(), out_h.sin(), out_h.cos()]
    return nn.Parameter(torch.cat(waves, dim=1)[None], requires_grad=False)


def sincos_with_exp(grid_size, dim, **options):
    if dim % 4:
        raise ValueError
    gh, gw = pair(grid_size)
    heat = options.get("temperature", 10_000)
    speed = torch.exp(torch.arange(0, dim // 2, 2) * -math.log(heat) * 2 / dim)
    out = torch.empty(gh, gw, dim)
    across, down, axis = torch.arange(gw), torch.arange(gh), dim // 2
    for start, places in ((0, across[None, :]), (axis, down[:, None])):
        angle = places[..., None] * speed
        out[:, :, start : start + axis // 2] = angle.sin()
        out[:, :, start + axis // 2 : start + axis] = angle.cos()
    return out.reshape(1, -1, dim)


def index_of_swin(window_size):
    gh, gw = pair(window_size)
    coords = torch.stack(
        torch.meshgrid([torch.arange(gh), torch.arange(gw)], indexing="ij")
    )
    flat = torch.flatten(coords, 1)
    relative = flat[:, :, None] - flat[:, None, :]
    relative = relative.permute(1, 2, 0).contiguous()
    relative[:, :, 0] += gh - 1
    relative[:, :, 1] += gw - 1
    relative[:, :, 0] *= 2 * gw - 1
    return relative.sum(-1)


def index_with_loops(grid_size):
    gh, gw = pair(grid_size)
    n = gh * gw
    index = torch.zeros(n, n, dtype=torch.long)
    for i in range(n):
        for j in range(n):
            dy, dx = i // gw - j // gw, i % gw - j % gw
            index[i, j] = (dy + gh - 1) * (2 * gw - 1) + dx + gw - 1
    return index


def index_by_unique(grid_size):
    gh, gw = pair(grid_size)
    places = torch.tensor([(y, x) for y in range(gh) for x in range(gw)])
    offsets = places.unsqueeze(1) - places.unsqueeze(0)
    _, index = offsets.flatten(0, 1).unique(dim=0, return_inverse=True)
    return index.view(gh * gw, gh * gw)


def index_with_numpy(grid_size):
    gh, gw = pair(grid_size)
    y, x = np.divmod(np.arange(gh * gw), gw)
    dy, dx = np.subtract.outer(y, y), np.subtract.outer(x, x)
    index = np.ravel_multi_index(
        (dy + gh - 1, dx + gw - 1), (2 * gh - 1, 2 * gw - 1)
    )
    return torch.from_numpy(index)


def resize_einops(pos_embed, grid_size, new_grid_size, *, num_prefix_tokens=1):
    gh, gw = pair(grid_size)
    prefix = pos_embed[:, :num_prefix_tokens]
    table = pos_embed[:, num_prefix_tokens:].float()
    table = rearrange(table, "1 (h w) d -> 1 d h w", h=gh, w=gw)
    table = F.interpolate(table, size=pair(new_grid_size), mode="bicubic")
    table = rearrange(table, "1 d h w -> 1 (h w) d").to(pos_embed.dtype)
    return torch.cat((prefix, table), dim=1)


def resize_permute(pos_embed, old, new):
    (gh, gw), new = pair(old), pair(new)
    if (gh, gw) == new:
        return pos_embed
    cls, table = torch.split(pos_embed, [1, pos_embed.shape[1] - 1], dim=1)
    table = table.reshape(1, gh, gw, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table.double(), new, mode="bicubic")
    table = table.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1)
    return torch.cat([cls, table.to(cls.dtype)], dim=1)


def resize_in_full(
    pos_embed,
    grid_size,
    new_grid_size,
    num_prefix_tokens=1,
    mode="bicubic",
    align_corners=False,
    antialias=False,
):
    gh, gw = pair(grid_size)
    if pos_embed.shape[1] != num_prefix_tokens + gh * gw:
        raise ValueError("n")
    table = pos_embed[:, num_prefix_tokens:].float().mT.unflatten(2, (gh, gw))
    table = torch.nn.functional.interpolate(
        table,
        pair(new_grid_size),
        None,
        mode,
        align_corners=align_corners,
        antialias=antialias,
    )
    tokens = [*pos_embed[0, :num_prefix_tokens]]
    tokens += [*table[0].flatten(1).T.to(pos_embed.dtype)]
    return torch.stack(tokens)[None]


def cubic(t, a=-0.75):
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def weights_by_hand(new, old):
    matrix = torch.zeros(new, old)
    for i in range(new):
        center = (i + 0.5) * old / new - 0.5
        for k in range(math.floor(center) - 1, math.floor(center) + 3):
            matrix[i, min(max(k, 0), old - 1)] += cubic(center - k)
    return matrix


def resize_by_hand(table, old, new):
    (gh, gw), (new_gh, new_gw) = pair(old), pair(new)
    down, across = weights_by_hand(new_gh, gh), weights_by_hand(new_gw, gw)
    grid = table[0, 1:].float().reshape(gh, gw, -1)
    grid = torch.einsum("yi,xj,ijd->yxd", down, across, grid)
    patches = grid.reshape(1, new_gh * new_gw, -1).to(table.dtype)
    return torch.cat([table[:, :1], patches], dim=1)


RIGHT = {
    "prepend_token": [
        prepend_expand,
        prepend_repeat,
        prepend_einops,
        prepend_with_a_loop,
        prepend_into_zeros,
        prepend_by_padding,
    ],
    "pool": [
        pool_simple,
        pool_match,
        pool_sum,
        pool_with_loops,
        pool_by_weights,
    ],
    "sincos_pos_embed": [
        sincos_with_loops,
        sincos_of_mae,
        sincos_by_einsum,
        sincos_with_exp,
    ],
    "relative_position_index": [
        index_of_swin,
        index_with_loops,
        index_by_unique,
        index_with_numpy,
    ],
    "resize_pos_embed": [
        resize_einops,
        resize_permute,
        resize_in_full,
        resize_by_hand,
    ],
}
NAMES = list(RIGHT)


@pytest.mark.parametrize(
    ("name", "candidate"),
    [(name, f) for name, functions in RIGHT.items() for f in functions],
)
def test_a_right_solution_written_differently_passes(name, candidate):
    result = check(name, candidate)
    assert result.passed, result.report
    assert result.cause is None


# Mistakes.


def token_not_expanded(x, token):
    return torch.cat([token, x], dim=1)


def token_at_the_end(x, token):
    return torch.cat([x, token.expand(len(x), -1, -1)], dim=1)


def token_repeated_over_tokens(x, token):
    b, n, _ = x.shape
    return torch.cat([token.repeat(b, n, 1), x], dim=1)


def token_in_a_second_place(x, token):
    return torch.cat([token.repeat(1, len(x), 1), x], dim=1)


def token_added(x, token):
    return x + token


def token_on_the_batch(x, token):
    return torch.cat([token, x])


def token_on_the_features(x, token):
    return torch.cat([token.expand(*x.shape), x], dim=2)


def token_stacked(x, token):
    return torch.stack([token.expand_as(x), x], dim=1)


def token_over_the_first_patch(x, token):
    x = x.clone()
    x[:, 0] = token
    return x


def token_in_place(x, token):
    x[:, :1] = token
    return x


def token_new(x, token):
    return torch.cat([torch.zeros(len(x), 1, x.shape[-1]), x], dim=1)


def token_forgotten(x, token):
    token = token.expand(len(x), -1, -1)
    return x


def token_as_two_arguments(x, token):
    return torch.cat(token.expand(len(x), -1, -1), x)


def token_flat(x, token):
    return torch.cat([token.squeeze(0).expand(len(x), -1), x], dim=1)


def token_with_one_size(x, token):
    return torch.cat([token.expand(len(x)), x], dim=1)


def token_repeated_with_two(x, token):
    return torch.cat([token.repeat(len(x), 1), x], dim=1)


def token_as_a_vector(x, token):
    return torch.cat([token.view(-1), x], dim=1)


def token_for_each_patch(x, token):
    return torch.cat([token.expand(x.shape[1], -1, -1), x], dim=1)


def token_detached(x, token):
    return torch.cat([token.data.expand(len(x), -1, -1), x], dim=1)


def token_without_return(x, token):
    x = torch.cat([token.expand(len(x), -1, -1), x], dim=1)


def token_first(x, token):
    return prepend_expand(x, token).transpose(0, 1)


def token_end_not_expanded(x, token):
    return torch.cat([x, token], dim=1)


def pool_all(x, mode="cls"):
    return x[:, 0] if mode == "cls" else x.mean(dim=1)


def pool_first_image(x, mode="cls"):
    return x[0] if mode == "cls" else x[:, 1:].mean(dim=1)


def pool_last(x, mode="cls"):
    return x[:, -1] if mode == "cls" else x[:, 1:].mean(dim=1)


def pool_features(x, mode="cls"):
    return x[:, 0] if mode == "cls" else x[:, 1:].mean(dim=-1)


def pool_keepdim(x, mode="cls"):
    return x[:, :1] if mode == "cls" else x[:, 1:].mean(1)


def pool_cls_alone(x, mode="cls"):
    return x[:, 0]


def pool_mean_alone(x, mode="cls"):
    return x[:, 1:].mean(1)


def pool_exchanged(x, mode="cls"):
    return x[:, 0] if mode == "mean" else x[:, 1:].mean(1)


def pool_max(x, mode="cls"):
    return x[:, 0] if mode == "cls" else x[:, 1:].max(dim=1).values


def pool_batch(x, mode="cls"):
    return x[:, 0] if mode == "cls" else x[:, 1:].mean(0)


def pool_divided(x, mode="cls"):
    return x[:, 0] if mode == "cls" else x[:, 1:].sum(1) / x.size(1)


def pool_one_prefix(x, mode="cls", num_prefix_tokens=1):
    return x[:, 0] if mode == "cls" else x[:, 1:].mean(1)


def pool_prefix_as_cls(x, mode="cls", num_prefix_tokens=1):
    if mode == "cls":
        return x[:, :num_prefix_tokens].mean(1)
    return x[:, num_prefix_tokens:].mean(1)


def pool_minus_zero(x, mode="cls", num_prefix_tokens=1):
    if mode == "cls":
        return x[:, 0]
    return x.flip(1)[:, :-num_prefix_tokens].mean(1)


def pool_two_prefixes(x, mode="cls", num_prefix_tokens=2):
    return pool_sum(x, mode, num_prefix_tokens=num_prefix_tokens)


def pool_mean_first(x, mode="mean"):
    return pool_simple(x, mode)


def pool_squeezed(x, mode="cls"):
    return pool_simple(x, mode).squeeze()


def pool_one_image(x, mode="cls"):
    return x[0, 0] if mode == "cls" else x[0, 1:].mean(0)


def pool_two_mistakes(x, mode="cls"):
    return x[:, -1] if mode == "cls" else x.mean(1)


def sincos(grid_size, dim, exponent=None, first="column", temperature=1e4):
    """Correct, but for what the arguments change."""
    if dim % 4:
        raise ValueError
    gh, gw = pair(grid_size)
    i = torch.arange(dim // 4)
    speed = temperature ** -(
        i / (dim // 4) if exponent is None else exponent(i)
    )
    down, across = torch.meshgrid(
        torch.arange(gh), torch.arange(gw), indexing="ij"
    )
    down, across = (p.reshape(-1, 1) * speed for p in (down, across))
    if first == "row":
        down, across = across, down
    waves = [across.sin(), across.cos(), down.sin(), down.cos()]
    return torch.cat(waves, dim=1)[None]


def sincos_rows_first(grid_size, dim):
    return sincos(grid_size, dim, first="row")


def sincos_by_columns(grid_size, dim):
    gh = pair(grid_size)[0]
    return rearrange(sincos(grid_size, dim), "1 (h w) d -> 1 (w h) d", h=gh)


def sincos_half_rate(grid_size, dim):
    return sincos(grid_size, dim, exponent=lambda i: 2 * i / dim)


def sincos_double_rate(grid_size, dim):
    return sincos(grid_size, dim, exponent=lambda i: 2 * i / (dim // 4))


def sincos_interleaved(grid_size, dim):
    if dim % 4:
        raise ValueError
    gh, gw = pair(grid_size)
    speed = 1 / 10_000 ** (torch.arange(dim // 4) / (dim // 4))
    table = torch.zeros(gh, gw, dim)
    across = (torch.arange(gw)[:, None] * speed)[None]
    down = (torch.arange(gh)[:, None] * speed)[:, None]
    table[..., 0 : dim // 2 : 2] = across.sin()
    table[..., 1 : dim // 2 : 2] = across.cos()
    table[..., dim // 2 :: 2] = down.sin()
    table[..., dim // 2 + 1 :: 2] = down.cos()
    return table.view(1, gh * gw, dim)


def sincos_one_half(grid_size, dim):
    return sincos(grid_size, dim)[..., : dim // 2]


def sincos_degrees(grid_size, dim):
    if dim % 4:
        raise ValueError
    gh, gw = pair(grid_size)
    table = torch.zeros(1, gh * gw, dim)
    for n in range(gh * gw):
        for i in range(dim // 4):
            for half, place in enumerate((n % gw, n // gw)):
                angle = math.degrees(place / 10_000 ** (4 * i / dim))
                table[0, n, half * dim // 2 + i] = math.sin(angle)
                at = half * dim // 2 + dim // 4 + i
                table[0, n, at] = math.cos(angle)
    return table


def sincos_no_batch(grid_size, dim):
    return sincos(grid_size, dim)[0]


def sincos_of_a_sequence(grid_size, dim):
    if dim % 4:
        raise ValueError
    gh, gw = pair(grid_size)
    position = torch.arange(gh * gw).unsqueeze(1)
    div = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
    table = torch.zeros(1, gh * gw, dim)
    table[0, :, 0::2] = torch.sin(position * div)
    table[0, :, 1::2] = torch.cos(position * div)
    return table


def sincos_temperature_ignored(grid_size, dim, *, temperature=10_000.0):
    return sincos(grid_size, dim)


def sincos_other_default(grid_size, dim, *, temperature=100.0):
    return sincos(grid_size, dim, temperature=temperature)


def sincos_any_width(grid_size, dim):
    return sincos(grid_size, dim // 4 * 4)


def sincos_in_double(grid_size, dim):
    return sincos(grid_size, dim).double()


def sincos_pairs_only(grid_size, dim):
    gh, gw = grid_size
    return sincos((gh, gw), dim)


def sincos_ints_only(grid_size, dim):
    places = torch.arange(grid_size)
    return sincos((len(places), len(places)), dim)


def sincos_square(grid_size, dim):
    return sincos(pair(grid_size)[0], dim)


def sincos_swapped(grid_size, dim):
    return sincos(pair(grid_size)[::-1], dim)


def sincos_from_one(grid_size, dim):
    if dim % 4:
        raise ValueError
    gh, gw = pair(grid_size)
    bigger = sincos((gh + 1, gw + 1), dim).view(gh + 1, gw + 1, dim)
    return bigger[1:, 1:].reshape(1, gh * gw, dim)


def sincos_of_an_int(grid_size, dim):
    gh, gw = pair(grid_size)
    return torch.tensor([[torch.sin(i) for i in range(gh * gw)]])


def sincos_not_crossed(grid_size, dim):
    if dim % 4:
        raise ValueError
    gh, gw = pair(grid_size)
    speed = 1 / 10_000 ** (torch.arange(dim // 4) / (dim // 4))
    across = torch.arange(gw).unsqueeze(1) * speed
    down = torch.arange(gh).unsqueeze(1) * speed
    waves = [across.sin(), across.cos(), down.sin(), down.cos()]
    return torch.cat(waves, dim=1).unsqueeze(0)


def sincos_cosines_first(grid_size, dim):
    s, c, t, d = sincos(grid_size, dim).chunk(4, -1)
    return torch.cat([c, s, d, t], -1)


def index(grid_size, shift=True, stride=None, sign=1):
    """Correct, but for what the arguments change."""
    gh, gw = pair(grid_size)
    rows, columns = torch.arange(gh * gw) // gw, torch.arange(gh * gw) % gw
    dy = sign * (rows[:, None] - rows[None])
    dx = sign * (columns[:, None] - columns[None])
    if shift:
        dy, dx = dy + gh - 1, dx + gw - 1
    return dy * (2 * gw - 1 if stride is None else stride) + dx


def index_unshifted(grid_size):
    return index(grid_size, shift=False)


def index_sign(grid_size):
    return index(grid_size, sign=-1)


def index_stride_rows(grid_size):
    return index(grid_size, stride=2 * pair(grid_size)[0] - 1)


def index_stride_width(grid_size):
    return index(grid_size, stride=pair(grid_size)[1])


def index_difference(grid_size):
    gh, gw = pair(grid_size)
    n = torch.arange(gh * gw)
    return n[:, None] - n[None, :] + gh * gw - 1


def index_xy(grid_size):
    gh, gw = pair(grid_size)
    y, x = np.divmod(np.arange(gh * gw), gw)
    dy, dx = y[:, None] - y + gh - 1, x[:, None] - x + gw - 1
    return torch.from_numpy(dx * (2 * gh - 1) + dy)


def index_absolute(grid_size):
    gh, gw = pair(grid_size)
    y, x = np.divmod(np.arange(gh * gw), gw)
    dy, dx = abs(y[:, None] - y), abs(x[:, None] - x)
    return torch.from_numpy(dy * gw + dx)


def index_sum(grid_size):
    return index(grid_size, stride=1)


def index_float(grid_size):
    return index(grid_size).float()


def index_swapped(grid_size):
    return index(pair(grid_size)[::-1])


def index_flat(grid_size):
    return index(grid_size).flatten()


def index_two_parts(grid_size):
    gh, gw = pair(grid_size)
    places = torch.cartesian_prod(torch.arange(gh), torch.arange(gw))
    return places[:, None] - places + torch.tensor([gh - 1, gw - 1])


def index_by_columns(grid_size):
    gh, gw = pair(grid_size)
    four = index(grid_size).view(gh, gw, gh, gw)
    return four.permute(1, 0, 3, 2).reshape(gh * gw, gh * gw)


def index_square(grid_size):
    return index(pair(grid_size)[1])


def index_of_ints(grid_size):
    places = torch.arange(grid_size)
    return index(len(places))


def index_of_pairs(grid_size):
    return index((grid_size[0], grid_size[1]))


def index_one_too_many(grid_size):
    return index(grid_size) + 1


def index_shifted_late(grid_size):
    gh, gw = pair(grid_size)
    return index(grid_size, shift=False) + gh - 1 + gw - 1


def index_unshifted_transposed(grid_size):
    return index(grid_size, sign=-1, shift=False)


def resize(pos_embed, old, new, prefix=1, **how):
    """Correct, but for what the arguments change."""
    (gh, gw), new = pair(old), pair(new)
    table = pos_embed[:, prefix:].float().reshape(1, gh, gw, -1)
    how = {"mode": "bicubic"} | how
    table = F.interpolate(table.permute(0, 3, 1, 2), new, **how)
    table = table.flatten(2).mT.to(pos_embed.dtype)
    return torch.cat([pos_embed[:, :prefix], table], 1)


def resize_square(pos_embed, old, new):
    new = pair(new)
    side, new_side = (
        math.isqrt(pos_embed.shape[1] - 1),
        math.isqrt(new[0] * new[1]),
    )
    if side == new_side:
        return pos_embed
    return resize(pos_embed[:, : 1 + side * side], side, new_side)


def resize_same_number(pos_embed, old, new):
    (gh, gw), (new_gh, new_gw) = pair(old), pair(new)
    if gh * gw == new_gh * new_gw:
        return pos_embed
    return resize(pos_embed, old, new)


def resize_prefix_left(pos_embed, old, new):
    gh, gw = pair(old)
    table = pos_embed.reshape(1, gh, gw, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table, pair(new), mode="bicubic")
    return table.flatten(2).transpose(1, 2)


def resize_prefix_left_einops(pos_embed, old, new):
    gh = pair(old)[0]
    table = rearrange(pos_embed, "1 (h w) d -> 1 d h w", h=gh)
    return rearrange(F.interpolate(table, pair(new)), "1 d h w -> 1 (h w) d")


def resize_prefix_lost(pos_embed, old, new):
    return resize(pos_embed, old, new)[:, 1:]


def resize_prefix_last(pos_embed, old, new):
    return resize(pos_embed, old, new).roll(-1, 1)


def resize_whole_sequence(pos_embed, old, new):
    new = pair(new)
    table = pos_embed.transpose(1, 2)
    table = F.interpolate(table, 1 + new[0] * new[1], mode="linear")
    return table.transpose(1, 2)


def resize_reshaped(pos_embed, old, new):
    (gh, gw), d = pair(old), pos_embed.shape[2]
    table = pos_embed[:, 1:].float().reshape(1, d, gh, gw)
    table = F.interpolate(table, pair(new), mode="bicubic")
    table = table.reshape(1, -1, d).to(pos_embed.dtype)
    return torch.cat([pos_embed[:, :1], table], dim=1)


def resize_reshaped_back(pos_embed, old, new):
    (gh, gw), d = pair(old), pos_embed.shape[2]
    table = pos_embed[:, 1:].float().reshape(1, gh, gw, d).permute(0, 3, 1, 2)
    table = F.interpolate(table, pair(new), mode="bicubic")
    table = table.reshape(1, -1, d).to(pos_embed.dtype)
    return torch.cat([pos_embed[:, :1], table], dim=1)


def resize_nearest(pos_embed, old, new):
    (gh, gw), d = pair(old), pos_embed.shape[2]
    table = pos_embed[:, 1:].reshape(1, gh, gw, d).permute(0, 3, 1, 2)
    table = F.interpolate(table, pair(new)).flatten(2).mT
    return torch.cat([pos_embed[:, :1], table], dim=1)


def resize_bilinear(pos_embed, old, new):
    return resize(pos_embed, old, new, mode="bilinear")


def resize_bilinear_default(pos_embed, old, new, mode="bilinear"):
    return resize(pos_embed, old, new, mode=mode)


def resize_corners(pos_embed, old, new):
    return resize(pos_embed, old, new, align_corners=True)


def resize_of_timm(pos_embed, old, new):
    return resize(pos_embed, old, new, antialias=True)


def resize_of_the_paper(pos_embed, old, new):
    return resize(pos_embed, old, new, mode="bilinear", align_corners=True)


def resize_swapped_new(pos_embed, old, new):
    return resize(pos_embed, old, pair(new)[::-1])


def resize_by_columns(pos_embed, old, new):
    gh, new = pair(old)[0], pair(new)
    table = rearrange(pos_embed[:, 1:].float(), "1 (w h) d -> 1 d h w", h=gh)
    table = F.interpolate(table, new, mode="bicubic")
    table = rearrange(table, "1 d h w -> 1 (w h) d").to(pos_embed)
    return torch.cat([pos_embed[:, :1], table], dim=1)


def resize_in_half(pos_embed, old, new):
    (gh, gw), new = pair(old), pair(new)
    table = pos_embed[:, 1:].reshape(1, gh, gw, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table, new, mode="bicubic").flatten(2).mT
    return torch.cat([pos_embed[:, :1], table], 1)


def resize_to_float(pos_embed, old, new):
    return resize(pos_embed.float(), old, new)


def resize_counted_prefix(pos_embed, old, new):
    gh, gw = pair(old)
    return resize(pos_embed, old, new, prefix=pos_embed.shape[1] - gh * gw)


def resize_one_prefix(pos_embed, old, new, num_prefix_tokens=1):
    return resize(pos_embed, old, new, prefix=1)


def resize_minus_zero(pos_embed, old, new, num_prefix_tokens=1):
    if num_prefix_tokens == 0:
        return resize(pos_embed, old, new)
    return resize(pos_embed, old, new, prefix=num_prefix_tokens)


def resize_mode_ignored(pos_embed, old, new, mode="bicubic"):
    return resize(pos_embed, old, new)


def resize_options_ignored(pos_embed, old, new, **options):
    prefix = options.get("num_prefix_tokens", 1)
    return resize(pos_embed, old, new, prefix=prefix)


def resize_dino(pos_embed, old, new):
    (gh, gw), (new_gh, new_gw) = pair(old), pair(new)
    table = pos_embed[:, 1:].float().reshape(1, gh, gw, -1).permute(0, 3, 1, 2)
    factor = ((new_gh + 0.1) / gh, (new_gw + 0.1) / gw)
    table = F.interpolate(table, scale_factor=factor, mode="bicubic")
    table = table.flatten(2).mT.to(pos_embed.dtype)
    return torch.cat([pos_embed[:, :1], table], 1)


def resize_only_up(pos_embed, old, new):
    return resize(pos_embed, old, new) if pair(new) > pair(old) else pos_embed


def resize_cut(pos_embed, old, new):
    new = pair(new)
    return pos_embed[:, : 1 + new[0] * new[1]]


def resize_padded(pos_embed, old, new):
    new = pair(new)
    missing = 1 + new[0] * new[1] - pos_embed.shape[1]
    return F.pad(pos_embed, (0, 0, 0, missing))


def resize_never(pos_embed, old, new):
    return pos_embed


def resize_detached(pos_embed, old, new):
    return resize(pos_embed.detach(), old, new)


def resize_pairs_only(pos_embed, old, new):
    (gh, gw), (new_gh, new_gw) = old, new
    return resize(pos_embed, (gh, gw), (new_gh, new_gw))


def resize_not_a_picture(pos_embed, old, new):
    table = F.interpolate(pos_embed[:, 1:], pair(new), mode="bicubic")
    return torch.cat([pos_embed[:, :1], table], dim=1)


def resize_wrong_grid(pos_embed, old, new):
    return resize(pos_embed, new, old)


def resize_exchanged(pos_embed, new, old):
    gh, gw = pair(old)
    if pos_embed.shape[1] != 1 + gh * gw:
        raise ValueError("the table does not fit its grid")
    return resize(pos_embed, old, new)


def resize_wrong_grid_einops(pos_embed, new, old):
    (gh, gw), new = pair(old), pair(new)
    table = pos_embed[:, 1:].float()
    table = rearrange(table, "1 (h w) d -> 1 d h w", h=gh, w=gw)
    table = F.interpolate(table, new, mode="bicubic").flatten(2).mT
    return torch.cat([pos_embed[:, :1], table.to(pos_embed)], dim=1)


def resize_no_permute(pos_embed, old, new):
    table = pos_embed[:, 1:].unflatten(1, pair(old))
    table = F.interpolate(table, pair(new), mode="bicubic").flatten(2).mT
    return torch.cat([pos_embed[:, :1], table], dim=1)


def resize_prefix_without_axis(pos_embed, old, new):
    prefix = pos_embed[:, 0]
    return torch.cat([prefix, resize(pos_embed, old, new)[:, 1:]], dim=1)


def resize_corners_in_half(pos_embed, old, new):
    table = rearrange(pos_embed[:, 1:], "1 (h w) d -> 1 d h w", h=pair(old)[0])
    how = {"mode": "bicubic", "align_corners": True}
    table = F.interpolate(table, pair(new), **how).flatten(2).mT
    return torch.cat([pos_embed[:, :1], table], dim=1)


def resize_zoom(pos_embed, old, new):
    (gh, gw), (new_gh, new_gw) = pair(old), pair(new)
    grid = pos_embed[0, 1:].float().reshape(gh, gw, -1).detach().numpy()
    grid = zoom(grid, (new_gh / gh, new_gw / gw, 1), order=1)
    table = torch.from_numpy(grid).reshape(1, new_gh * new_gw, -1)
    return torch.cat([pos_embed[:, :1], table], dim=1)


def resize_smooth_and_linear(pos_embed, old, new):
    return resize(pos_embed, old, new, mode="bilinear", antialias=True)


def resize_two_mistakes(pos_embed, old, new):
    return resize(pos_embed, old, new, align_corners=True).roll(-1, 1)


WRONG = {
    "prepend_token": [
        (token_not_expanded, "expand it to (B, 1, D)"),
        (token_end_not_expanded, "The token stands at the end"),
        (token_at_the_end, "The token stands at the end"),
        (token_repeated_over_tokens, "repeated along the wrong axis"),
        (token_in_a_second_place, "expand it to (B, 1, D)"),
        (token_added, "The token is added to the others"),
        (token_on_the_batch, "joined along the batch axis"),
        (token_on_the_features, "joined along the features"),
        (token_stacked, "torch.stack makes a new axis"),
        (token_over_the_first_patch, "takes the place of a patch"),
        (token_in_place, "changes its input in place"),
        (token_new, "not the one that was given"),
        (token_forgotten, "come back without the new one"),
        (token_as_two_arguments, "takes the tensors in one list"),
        (token_flat, "as many axes as each other"),
        (token_with_one_size, "a size for each of the three axes"),
        (token_repeated_with_two, "a number for each of the three axes"),
        (token_as_a_vector, "The token has lost its axes"),
        (token_for_each_patch, "repeated along the wrong axis"),
        (token_detached, "gradients do not flow back"),
        (token_without_return, "The return line is missing"),
        (token_first, "The first two axes are swapped"),
    ],
    "pool": [
        (pool_all, "The class token is in the mean"),
        (pool_first_image, "read along the batch"),
        (pool_last, "read from the end"),
        (pool_features, "The mean runs over the features"),
        (pool_keepdim, "The axis of the tokens is still there"),
        (pool_cls_alone, 'mode="mean" reads the class token'),
        (pool_mean_alone, 'mode="cls" averages the tokens'),
        (pool_exchanged, "The modes are exchanged"),
        (pool_max, "The largest numbers are taken"),
        (pool_batch, "The mean runs over the batch"),
        (pool_divided, "The sum is divided by the wrong number"),
        (pool_one_prefix, "num_prefix_tokens is not used"),
        (pool_prefix_as_cls, "The prefix tokens are averaged for"),
        (pool_minus_zero, "average all tokens if num_prefix_tokens is 0"),
        (pool_two_prefixes, "num_prefix_tokens must be 1, and yours is 2."),
        (pool_mean_first, "mode must be 'cls', and yours is 'mean'."),
        (pool_squeezed, "squeeze takes the batch axis away"),
        (pool_one_image, "The first image alone is read"),
        (pool_two_mistakes, "There are two mistakes. "),
    ],
    "sincos_pos_embed": [
        (sincos_rows_first, "Row and column are swapped"),
        (sincos_by_columns, "The places go column by column"),
        (sincos_half_rate, "slow down at the wrong rate"),
        (sincos_double_rate, "slow down at the wrong rate"),
        (sincos_interleaved, "Sines and cosines alternate"),
        (sincos_one_half, "Half of the features is missing"),
        (sincos_degrees, "The angles are in degrees"),
        (sincos_no_batch, "The batch axis is missing"),
        (sincos_of_a_sequence, "count along the whole sequence"),
        (sincos_temperature_ignored, "temperature is not used"),
        (sincos_other_default, "must be 10000.0, and yours is 100.0."),
        (sincos_any_width, "no multiple of 4 is accepted"),
        (sincos_in_double, "not their dtype: use torch.float32."),
        (sincos_pairs_only, "An int is used as a pair"),
        (sincos_ints_only, "A pair is used as an int"),
        (sincos_square, "Right for square grids only"),
        (sincos_swapped, "the code swaps the two"),
        (sincos_from_one, "The places are counted from 1"),
        (sincos_of_an_int, "torch.sin and torch.cos need a tensor"),
        (sincos_not_crossed, "one vector for each row"),
        (sincos_cosines_first, "Cosines come before sines"),
    ],
    "relative_position_index": [
        (index_unshifted, "The offsets are not shifted"),
        (index_sign, "The sign of the offset is wrong"),
        (index_stride_rows, "multiplied by the wrong number"),
        (index_stride_width, "One row counts as gw numbers"),
        (index_difference, "One row counts as gw numbers"),
        (index_xy, "Rows and columns are swapped"),
        (index_absolute, "The offsets lost their sign"),
        (index_sum, "The two offsets are added"),
        (index_float, "not their dtype: use torch.int64."),
        (index_swapped, "the code swaps the two"),
        (index_flat, "the result is (N, N)"),
        (index_two_parts, "The two offsets are still apart"),
        (index_by_columns, "The places go column by column"),
        (index_square, "Right for square grids only"),
        (index_of_ints, "A pair is used as an int"),
        (index_of_pairs, "An int is used as a pair"),
        (index_one_too_many, "The smallest number is not 0"),
        (index_shifted_late, "The shift comes after the multiplication"),
        (index_unshifted_transposed, "There are two mistakes. "),
    ],
    "resize_pos_embed": [
        (resize_square, "The grid is guessed from the number of tokens"),
        (resize_same_number, "compare the grids, not the numbers of tokens"),
        (resize_prefix_left, "The prefix tokens are still there"),
        (resize_prefix_left_einops, "The prefix tokens are still there"),
        (resize_prefix_lost, "The prefix tokens are lost"),
        (resize_prefix_last, "The prefix tokens stand at the end"),
        (resize_whole_sequence, "interpolated along the sequence"),
        (resize_reshaped, "A reshape mixes places and features"),
        (resize_reshaped_back, "A reshape mixes places and features"),
        (resize_nearest, "The nearest place is copied"),
        (resize_bilinear, "The interpolation is linear"),
        (resize_bilinear_default, "'bicubic', and yours is 'bilinear'."),
        (resize_corners, "align_corners=False"),
        (resize_of_timm, "antialias=False"),
        (resize_of_the_paper, "the rule of the paper's own code"),
        (resize_swapped_new, "new_grid_size is (gh, gw)"),
        (resize_by_columns, "The places go column by column"),
        (resize_in_half, "compute in float32"),
        (resize_to_float, "not their dtype: keep the input's."),
        (resize_counted_prefix, "A table that does not fit is accepted"),
        (resize_one_prefix, "Right for one prefix token, wrong for two"),
        (resize_minus_zero, "all tokens are places"),
        (resize_mode_ignored, "mode is not used"),
        (resize_options_ignored, "mode, align_corners and antialias are not"),
        (resize_dino, "not scale_factor"),
        (resize_only_up, "a grid may get smaller"),
        (resize_cut, "The table is cut"),
        (resize_padded, "The table is cut"),
        (resize_never, "The table keeps its old size"),
        (resize_detached, "gradients do not flow back"),
        (resize_pairs_only, "An int is used as a pair"),
        (resize_not_a_picture, "F.interpolate needs a picture"),
        (resize_wrong_grid, "reshaped with other numbers"),
        (resize_two_mistakes, "There are two mistakes. "),
        (resize_exchanged, "grid_size and new_grid_size are exchanged"),
        (resize_wrong_grid_einops, "reshaped with other numbers"),
        (resize_no_permute, "F.interpolate resizes the last two axes"),
        (resize_prefix_without_axis, "keep the prefix (1, n, D)"),
        (resize_corners_in_half, "align_corners=False"),
        (resize_zoom, "the rule of the paper's own code"),
        (resize_smooth_and_linear, "There are two mistakes. "),
    ],
}


@pytest.mark.parametrize(
    ("name", "candidate", "words"),
    [(name, *case) for name, cases in WRONG.items() for case in cases],
)
def test_a_mistake_written_by_hand_is_named(name, candidate, words):
    result = check(name, candidate)
    assert not result.passed
    assert words in (result.cause or ""), result.report
    assert result.report.endswith(f"Likely mistake: {result.cause}")


@pytest.mark.parametrize("name", NAMES)
def test_at_least_eight_mistakes_are_written_by_hand(name):
    assert len({words for _, words in WRONG[name]}) >= 8


# Optional arguments that the reader leaves out.


@pytest.mark.parametrize(
    ("name", "candidate", "line"),
    [
        (
            "pool",
            pool_simple,
            "not run 5 cases with mode left out, num_prefix_tokens",
        ),
        ("sincos_pos_embed", sincos_of_mae, "not run 1 case with temperature"),
        (
            "resize_pos_embed",
            resize_einops,
            "not run 4 cases with mode, align_corners, antialias",
        ),
        (
            "resize_pos_embed",
            resize_permute,
            "not run 6 cases with num_prefix_tokens, mode, align_corners, "
            "antialias",
        ),
    ],
)
def test_cases_with_arguments_that_are_not_taken_are_not_run(
    name, candidate, line
):
    *_, last = check(name, candidate).report.splitlines()
    assert last == f"  {line}, which your code does not take"


@pytest.mark.parametrize(
    ("name", "candidate"),
    [
        ("pool", pool_match),
        ("sincos_pos_embed", sincos_with_exp),
        ("resize_pos_embed", resize_in_full),
    ],
)
def test_all_cases_run_if_all_arguments_are_taken(name, candidate):
    assert "not run" not in check(name, candidate).report


@pytest.mark.parametrize(
    ("name", "candidate", "words"),
    [
        ("pool", lambda x: x[:, 0], "must take (x, mode='cls', num_"),
        ("prepend_token", lambda x: x, "must take (x, token)"),
        ("sincos_pos_embed", lambda n: n, "must take (grid_size, dim, te"),
        ("resize_pos_embed", lambda table, new: table, "must take (pos_embed"),
        ("relative_position_index", lambda h, w: h, "must take (grid_size)"),
        ("relative_position_index", nn.Linear, "your function itself, and"),
    ],
)
def test_a_candidate_with_other_arguments_is_told_the_right_ones(
    name, candidate, words
):
    result = check(name, candidate)
    assert not result.passed
    assert words in result.cause


# Stubs and nonsense.


def prepend_stub(x, token): ...


def pool_stub(x, mode="cls", *, num_prefix_tokens=1):
    """Read one vector for each image."""


def sincos_stub(grid_size, dim, *, temperature=10_000.0):
    raise NotImplementedError("your code here")


def index_stub(grid_size):
    """Number the offsets."""
    raise NotImplementedError


def resize_stub(
    pos_embed,
    grid_size,
    new_grid_size,
    *,
    num_prefix_tokens=1,
    mode="bicubic",
    align_corners=False,
    antialias=False,
):
    pass


STUBS = (prepend_stub, pool_stub, sincos_stub, index_stub, resize_stub)


@pytest.mark.parametrize(
    ("name", "stub"), list(zip(NAMES, STUBS, strict=True)), ids=NAMES
)
def test_an_untouched_stub_is_not_attempted_yet(name, stub):
    result = check(name, stub)
    assert not result.attempted
    assert not result.passed
    assert result.cause is None
    assert f"{name}: not attempted yet" in result.report


NONSENSE = {
    "twice": lambda result: 2 * result,
    "a little more": lambda result: result + 0.01,
    "turned": lambda result: result.flip(-1),
    "shuffled": lambda result: result.flatten().roll(3).view_as(result),
    "too many": lambda result: torch.cat([result, result, result], dim=-1),
    "a tenth": lambda result: result / 10,
    "noise": lambda result: torch.randn(result.shape),
    "empty": lambda result: result[:0],
}


@pytest.mark.parametrize(
    ("name", "nonsense"),
    # An index whose columns are turned is i + j, a mistake that is known.
    sorted(set(product(NAMES, NONSENSE)) - {(NAMES[3], "turned")}),
)
def test_nonsense_fails_without_a_diagnosis(name, nonsense):
    right = RIGHT[name][1]

    def candidate(*args):
        return NONSENSE[nonsense](right(*args))

    result = check(name, candidate)
    assert not result.passed
    assert result.cause is None


@pytest.mark.parametrize(
    "name", ["sincos_pos_embed", "relative_position_index"]
)
def test_a_function_of_sizes_alone_needs_no_gradient(name):
    assert check(name, torch.no_grad()(RIGHT[name][0])).passed
