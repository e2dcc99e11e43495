"""The checks of the reader's code: right solutions pass, mistakes are named."""

from __future__ import annotations

import functools
import random
import re
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vit_lessons.attention import MultiHeadSelfAttention
from vit_lessons.checks import check, compare, exercises
from vit_lessons.checks.check import _EXERCISES
from vit_lessons.checks.exercise import ModuleExercise
from vit_lessons.patch_embedding import PatchEmbed, patchify

EXERCISES = tuple(_EXERCISES.values())  # of all chapters
NAMES = [exercise.name for exercise in EXERCISES]
FORMS = {e.name: list(e.wrong_forms()) for e in EXERCISES}
TWO = "There are two mistakes. "


def pair(size):
    return (size, size) if isinstance(size, int) else size


def as_candidate(exercise, form):
    """A wrong form as a reader would hand it in."""
    if not isinstance(exercise, ModuleExercise):
        return form

    def forward(self, *args, **kwargs):
        return form(self, *args, **kwargs)

    return type("Candidate", (exercise.reference,), {"forward": forward})


def embed_class(forward):
    """A PatchEmbed of one's own, with this forward."""

    class Embed(nn.Module):
        def __init__(self, patch_size, in_chans, embed_dim):
            super().__init__()
            self.patch_size = pair(patch_size)
            self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

    Embed.forward = forward
    return Embed


def attention_class(forward):
    """A MultiHeadSelfAttention of one's own, with this forward."""

    class Attention(nn.Module):
        def __init__(self, dim, num_heads=8, qkv_bias=True, drop=0.0):
            super().__init__()
            self.heads = num_heads
            self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
            self.proj = nn.Linear(dim, dim)
            self.drop = nn.Dropout(drop)

    Attention.forward = forward
    return Attention


def split_heads(self, x):
    b, n, d = x.shape
    qkv = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads)
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


def merge_heads(x):
    return x.transpose(1, 2).flatten(2)


def must_divide(images, patch_size):
    p1, p2 = pair(patch_size)
    if images.shape[2] % p1 or images.shape[3] % p2:
        raise ValueError("the patch size must divide the image")


# Right solutions, as different as readers are.


def patchify_with_loops(images, patch_size):
    must_divide(images, patch_size)
    (p1, p2), (b, c, height, width) = pair(patch_size), images.shape
    patches = torch.zeros(b, height // p1 * (width // p2), c * p1 * p2)
    n = 0
    for i in range(0, height, p1):
        for j in range(0, width, p2):
            patch = images[:, :, i : i + p1, j : j + p2]
            patches[:, n] = patch.reshape(b, -1)
            n += 1
    return patches


def patchify_with_lists(images, patch_size):
    must_divide(images, patch_size)
    p1, p2 = pair(patch_size)
    rows = images.split(p1, dim=2)
    patches = [patch for row in rows for patch in row.split(p2, dim=3)]
    return torch.stack([patch.flatten(1) for patch in patches], dim=1)


def patchify_with_permute(images, patch_size):
    (p1, p2), (b, c, height, width) = pair(patch_size), images.shape
    x = images.reshape(b, c, height // p1, p1, width // p2, p2)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * p1 * p2)


def patchify_with_unfold(*args):
    images, patch_size = args
    must_divide(images, patch_size)
    size = pair(patch_size)
    return F.unfold(images, size, stride=size).transpose(1, 2)


def unpatchify_with_loops(patches, patch_size, grid_size):
    (p1, p2), (gh, gw) = pair(patch_size), pair(grid_size)
    b, n, features = patches.shape
    assert n == gh * gw
    images = torch.empty(b, features // (p1 * p2), gh * p1, gw * p2)
    for i in range(gh):
        for j in range(gw):
            patch = patches[:, i * gw + j].reshape(b, -1, p1, p2)
            images[:, :, i * p1 : i * p1 + p1, j * p2 : j * p2 + p2] = patch
    return images


def unpatchify_with_fold(patches, patch_size, grid_size):
    (p1, p2), (gh, gw) = pair(patch_size), pair(grid_size)
    image_size = (gh * p1, gw * p2)
    return F.fold(patches.mT, image_size, (p1, p2), stride=(p1, p2))


def unpatchify_with_permute(patches, patch_size, grid_size):
    (p1, p2), (gh, gw) = pair(patch_size), pair(grid_size)
    x = patches.unflatten(2, (-1, p1, p2)).unflatten(1, (gh, gw))
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def embed_by_convolution(self, x):
    must_divide(x, self.patch_size)
    return self.proj(x).flatten(2).transpose(1, 2)


def embed_by_einsum(self, x):
    patches = patchify_with_permute(x, self.patch_size)
    weight = self.proj.weight.flatten(1)
    return torch.einsum("bnk,dk->bnd", patches, weight) + self.proj.bias


def attend_with_loops(q, k, v, bias=None):
    b, h, n, d = q.shape
    m = k.shape[2]
    bias = torch.zeros(b, h, n, m) if bias is None else bias.expand(b, h, n, m)
    weights, output = torch.empty(b, h, n, m), torch.zeros(*q.shape[:3], 0)
    scores = [
        torch.stack([q[:, :, i].mul(k[:, :, j]).sum(-1) for j in range(m)], -1)
        for i in range(n)
    ]
    for i in range(n):
        weights[:, :, i] = (scores[i] / d**0.5 + bias[:, :, i]).softmax(-1)
    output = [(weights[:, :, i, :, None] * v).sum(2) for i in range(n)]
    return [torch.stack(output, 2), weights]


def attend_fused(query, key, value, mask=None, *, scale=None):
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = torch.einsum("...nd,...md->...nm", query, key)
    scores = scores * (scale or query.size(-1) ** -0.5)
    scores = scores + (0 if mask is None else mask)
    exp = torch.exp(scores - scores.amax(-1, keepdim=True))
    return output, exp / exp.sum(-1, keepdim=True)


def self_attend_head_by_head(self, x):
    q, k, v = self.qkv(x).chunk(3, dim=-1)
    d = x.shape[2] // self.heads
    heads = []
    for h in range(self.heads):
        one = slice(h * d, (h + 1) * d)
        scores = torch.bmm(q[..., one], k[..., one].transpose(1, 2))
        heads.append(F.softmax(scores / d**0.5, dim=2) @ v[..., one])
    return self.proj(torch.cat(heads, dim=-1))


def self_attend_in_full(self, x, bias=None, return_weights=False):
    q, k, v = split_heads(self, x)
    out, weights = attend_fused(q, k, v, bias)
    out = self.drop(self.proj(rearrange(out, "b h n d -> b n (h d)")))
    return (out, weights) if return_weights else out


RIGHT = [
    ("patchify", patchify_with_loops),
    ("patchify", patchify_with_lists),
    ("patchify", patchify_with_permute),
    ("patchify", patchify_with_unfold),
    ("patchify", functools.partial(patchify_with_permute)),
    ("unpatchify", unpatchify_with_loops),
    ("unpatchify", unpatchify_with_fold),
    ("unpatchify", unpatchify_with_permute),
    ("PatchEmbed", embed_class(embed_by_convolution)),
    ("PatchEmbed", embed_class(embed_by_einsum)),
    ("scaled_dot_product_attention", attend_with_loops),
    ("scaled_dot_product_attention", attend_fused),
    ("MultiHeadSelfAttention", attention_class(self_attend_head_by_head)),
    ("MultiHeadSelfAttention", attention_class(self_attend_in_full)),
]


@pytest.mark.parametrize("exercise", EXERCISES, ids=NAMES)
def test_the_package_itself_passes(exercise):
    result = check(exercise.name, exercise.reference)
    assert result.passed, result.report
    assert "not run" not in result.report


@pytest.mark.parametrize(("name", "candidate"), RIGHT)
def test_a_right_solution_written_differently_passes(name, candidate):
    result = check(name, candidate)
    assert result.passed, result.report
    assert result.cause is None


# The catalogue.


def every_single(exercise):
    """The forms with one mistake; of whole models, which repeat those of
    their parts, every fourth or second."""
    singles = [w for w in FORMS[exercise.name] if not w.cause.startswith(TWO)]
    steps = {"VisionTransformer": 4, "SwinTransformer": 2}
    return singles[:: steps.get(exercise.name, 1)]


SINGLES = [
    pytest.param(e, wrong, id=f"{e.name}-{i}")
    for e in EXERCISES
    for i, wrong in enumerate(every_single(e))
]
PAIRS = [
    pytest.param(e, wrong, id=f"{e.name}-{wrong.cause[len(TWO) :][:40]}")
    for e in EXERCISES
    for wrong in [w for w in FORMS[e.name] if w.cause.startswith(TWO)][7::197]
]


@pytest.mark.parametrize(("exercise", "wrong"), SINGLES)
def test_a_known_wrong_form_fails_with_its_own_cause(exercise, wrong):
    result = check(exercise.name, as_candidate(exercise, wrong.form))
    assert not result.passed
    assert result.cause == wrong.cause


@pytest.mark.parametrize(("exercise", "wrong"), PAIRS)
def test_of_two_mistakes_at_once_none_is_named_wrongly(exercise, wrong):
    result = check(exercise.name, as_candidate(exercise, wrong.form))
    assert not result.passed
    # One mistake may hide the other: without a scale nothing scales the bias.
    assert result.cause.removeprefix(TWO) in wrong.cause


@pytest.mark.parametrize("name", NAMES)
def test_a_catalogue_holds_at_least_six_mistakes(name):
    assert len({w.cause for w in FORMS[name] if TWO not in w.cause}) >= 6


@pytest.mark.parametrize("exercise", EXERCISES, ids=NAMES)
def test_each_cause_is_a_statement_that_ends_with_a_full_stop(exercise):
    causes = [wrong.cause for wrong in FORMS[exercise.name]]
    causes += [case.cause for case in exercise.cases if case.cause]
    assert all(re.fullmatch(r"[A-Za-z].*\.", cause) for cause in causes)


@pytest.mark.parametrize("exercise", EXERCISES, ids=NAMES)
def test_an_error_is_expected_only_where_the_case_says_so(exercise):
    raises = {
        case.label
        for case in exercise.cases
        if isinstance(
            exercise.run(exercise.reference, case).expected, Exception
        )
    }
    assert raises == {
        case.label
        for case in exercise.cases
        if "raise a ValueError" in (case.cause or "")
    }


# Mistakes written by hand, not with the catalogue.


def columns_first(images, patch_size):
    must_divide(images, patch_size)
    p1, p2 = pair(patch_size)
    columns = images.split(p2, dim=3)
    patches = [patch for column in columns for patch in column.split(p1, dim=2)]
    return torch.stack([patch.flatten(1) for patch in patches], 1)


def channels_last(images, patch_size):
    must_divide(images, patch_size)
    p1, p2 = pair(patch_size)
    patches = []
    for i in range(0, images.shape[2], p1):
        for j in range(0, images.shape[3], p2):
            patch = images[:, :, i : i + p1, j : j + p2]
            patches.append(patch.permute(0, 2, 3, 1).reshape(len(images), -1))
    return torch.stack(patches, dim=1)


def without_border(images, patch_size):
    (p1, p2), (b, c, height, width) = pair(patch_size), images.shape
    patches = torch.zeros(b, height // p1, width // p2, c * p1 * p2)
    for i in range(height // p1):
        for j in range(width // p2):
            rows, columns = (
                slice(i * p1, i * p1 + p1),
                slice(j * p2, j * p2 + p2),
            )
            patches[:, i, j] = images[:, :, rows, columns].flatten(1)
    return patches.flatten(1, 2)


def padded_border(images, patch_size):
    p1, p2 = pair(patch_size)
    missing = (0, -images.shape[3] % p2, 0, -images.shape[2] % p1)
    return patchify_with_permute(F.pad(images, missing), patch_size)


def view_alone(images, patch_size):
    (p1, p2), (b, c, height, width) = pair(patch_size), images.shape
    return images.view(b, height // p1 * (width // p2), c * p1 * p2)


def unfold_without_permute(images, patch_size):
    (p1, p2), (b, c, _, _) = pair(patch_size), images.shape
    x = images.unfold(2, p1, p1).unfold(3, p2, p2)
    return x.contiguous().view(b, -1, c * p1 * p2)


def colour_only(images, patch_size):
    (p1, p2), (b, _, height, width) = pair(patch_size), images.shape
    x = images.reshape(b, 3, height // p1, p1, width // p2, p2)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, 3 * p1 * p2)


def square_grid(images, patch_size):
    must_divide(images, patch_size)
    (p1, p2), (b, c, height, _) = pair(patch_size), images.shape
    side = height // p1
    x = images.reshape(b, c, side, p1, side, p2)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, side**2, c * p1 * p2)


def first_image_only(images, patch_size):
    return patchify_with_permute(images[:1], patch_size)


def pixels_changed(images, patch_size):
    images -= images.mean()
    return patchify_with_permute(images, patch_size)


def patches_remembered(images, patch_size, memory={}):  # noqa: B006
    key = (*images.shape, patch_size)
    if key not in memory:
        memory[key] = patchify_with_permute(images, patch_size)
    return memory[key]


def through_numpy(images, patch_size):
    images = torch.from_numpy(images.detach().numpy().copy())
    return patchify_with_permute(images, patch_size)


def in_double(images, patch_size):
    return patchify_with_permute(images.double(), patch_size)


def mae_unpatchify(patches, patch_size, grid_size):
    (p1, p2), (gh, gw) = pair(patch_size), pair(grid_size)
    x = patches.unflatten(2, (p1, p2, -1)).unflatten(1, (gh, gw))
    return torch.einsum("nhwpqc->nchpwq", x).flatten(4, 5).flatten(2, 3)


def square_unpatchify(patches, patch_size, grid_size):
    p1, p2 = pair(patch_size)
    side = int(patches.shape[1] ** 0.5)
    if side * side != patches.shape[1]:
        raise ValueError("the grid must be square")
    return unpatchify_with_permute(patches, (p1, p2), side)


def unchecked_unpatchify(patches, patch_size, grid_size):
    gh, gw = pair(grid_size)
    return unpatchify_with_loops(patches[:, : gh * gw], patch_size, grid_size)


def unpatchify_int_patch(patches, patch_size, grid_size):
    gh, gw = pair(grid_size)
    channels = patches.shape[2] // patch_size**2
    x = patches.reshape(-1, gh, gw, channels, patch_size, patch_size)
    x = x.permute(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, channels, gh * patch_size, gw * patch_size)


def unpatchify_not_interleaved(patches, patch_size, grid_size):
    (p1, p2), (gh, gw) = pair(patch_size), pair(grid_size)
    x = patches.reshape(len(patches), gh, gw, -1, p1, p2)
    x = x.permute(0, 3, 1, 2, 4, 5)
    return x.reshape(len(x), -1, gh * p1, gw * p2)


def unpatchify_arguments(patches, grid_size, patch_size):
    return unpatchify_with_permute(patches, patch_size, grid_size)


def embed_without_check(self, x):
    return self.proj(x).flatten(2).transpose(1, 2)


def embed_map(self, x):
    return self.proj(x)


def embed_reshaped(self, x):
    must_divide(x, self.patch_size)
    x = self.proj(x)
    return x.reshape(x.shape[0], -1, x.shape[1])


def embed_overlapping(self, x):
    x = F.conv2d(x, self.proj.weight, self.proj.bias)
    return x.flatten(2).transpose(1, 2)


def embed_without_bias(self, x):
    must_divide(x, self.patch_size)
    x = F.conv2d(x, self.proj.weight, stride=self.patch_size)
    return x.flatten(2).transpose(1, 2)


def embed_with_dropout(self, x):
    return F.dropout(embed_by_convolution(self, x), 0.1)


def embed_detached(self, x):
    return embed_by_convolution(self, x.detach())


def embed_remembered(self, x):
    if not hasattr(self, "tokens"):
        self.tokens = embed_by_convolution(self, x)
    return self.tokens


def embed_and_spoil(self, x):
    tokens = embed_by_convolution(self, x)
    x.zero_()
    return tokens


def attend(q, k, v, scale, bias=None, dim=-1):
    scores = torch.matmul(q, k.transpose(-1, -2)) * scale
    weights = F.softmax(scores if bias is None else scores + bias, dim=dim)
    return torch.matmul(weights, v), weights


def unscaled(q, k, v, bias=None):
    return attend(q, k, v, 1, bias)


def scaled_by_tokens(q, k, v, bias=None):
    return attend(q, k, v, k.size(2) ** -0.5, bias)


def scaled_for_64(q, k, v, bias=None):
    return attend(q, k, v, 1 / 8, bias)


def softmax_over_queries(q, k, v, bias=None):
    return attend(q, k, v, q.size(-1) ** -0.5, bias, dim=2)


def softmax_over_heads(q, k, v, bias=None):
    return attend(q, k, v, q.size(-1) ** -0.5, bias, dim=1)


def keys_reshaped(q, k, v, bias=None):
    b, h, m, d = k.shape
    scores = q @ k.reshape(b, h, d, m) / d**0.5
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return weights @ v, weights


def overflowing(q, k, v, bias=None):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    exp = torch.exp(scores if bias is None else scores + bias)
    weights = exp / exp.sum(dim=-1, keepdim=True)
    return weights @ v, weights


def blind_to_infinity(q, k, v, bias=None):
    bias = None if bias is None else torch.nan_to_num(bias, neginf=0.0)
    return attend(q, k, v, q.size(-1) ** -0.5, bias)


def bias_as_mask(q, k, v, bias=None):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if bias is not None:
        scores = scores.masked_fill(bias == 0, -1e9)
    weights = scores.softmax(-1)
    return weights @ v, weights


def query_changed(q, k, v, bias=None):
    q *= q.shape[-1] ** -0.5
    return attend(q, k, v, 1, bias)


def causal(q, k, v, bias=None):
    hidden = torch.full((q.shape[-2], k.shape[-2]), -torch.inf).triu(1)
    bias = hidden if bias is None else bias + hidden
    return attend(q, k, v, q.size(-1) ** -0.5, bias)


def output_alone(q, k, v, bias=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def dropped_weights(q, k, v, bias=None):
    _, weights = attend(q, k, v, q.size(-1) ** -0.5, bias)
    weights = F.dropout(weights, p=0.2)
    return weights @ v, weights


def merged_without_transpose(self, x):
    out = F.scaled_dot_product_attention(*split_heads(self, x))
    return self.proj(out.reshape(x.shape))


def split_by_reshape(self, x):
    b, n, d = x.shape
    shape = (b, self.heads, n, d // self.heads)
    q, k, v = (part.reshape(shape) for part in self.qkv(x).chunk(3, -1))
    return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))


def split_by_view(self, x):
    b, n, d = x.shape
    shape = (b, self.heads, n, d // self.heads)
    q, k, v = (part.view(shape) for part in self.qkv(x).chunk(3, -1))
    return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))


def heads_outside(self, x):
    b, n, d = x.shape
    qkv = self.qkv(x).reshape(b, n, self.heads, 3 * d // self.heads)
    q, k, v = qkv.transpose(1, 2).chunk(3, dim=-1)
    return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))


def scaled_by_width(self, x):
    q, k, v = split_heads(self, x)
    return self.proj(merge_heads(attend(q, k, v, x.shape[2] ** -0.5)[0]))


def across_the_batch(self, x):
    """nn.MultiheadAttention without batch_first."""
    out, _ = F.multi_head_attention_forward(
        *(x, x, x, x.shape[2], self.heads, self.qkv.weight, self.qkv.bias),
        *(None, None, False, 0.0, self.proj.weight, self.proj.bias),
        need_weights=False,
    )
    return out


def one_head(self, x):
    q, k, v = self.qkv(x).chunk(3, dim=-1)
    return self.proj(attend(q, k, v, x.shape[2] ** -0.5)[0])


def without_projection(self, x):
    return merge_heads(F.scaled_dot_product_attention(*split_heads(self, x)))


def with_fused_dropout(self, x):
    q, k, v = split_heads(self, x)
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)
    return self.proj(merge_heads(out))


def with_cache(self, x):
    q, k, v = split_heads(self, x)
    if hasattr(self, "keys"):
        k, v = torch.cat([self.keys, k], 2), torch.cat([self.values, v], 2)
    self.keys, self.values = k, v
    return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))


def bias_detached(self, x, bias=None):
    bias = None if bias is None else bias.detach()
    out = F.scaled_dot_product_attention(*split_heads(self, x), bias)
    return self.proj(merge_heads(out))


def bias_of_first_head(self, x, bias=None):
    bias = bias if bias is None or bias.ndim == 2 else bias[..., :1, :, :]
    out = F.scaled_dot_product_attention(*split_heads(self, x), bias)
    return self.proj(merge_heads(out))


def mean_weights(self, x, return_weights=False):
    q, k, v = split_heads(self, x)
    out, weights = attend(q, k, v, q.shape[-1] ** -0.5)
    out = self.proj(merge_heads(out))
    return (out, weights.mean(dim=1)) if return_weights else out


# Natural first mistakes; most of them raise.


def all_in_one(images, patch_size, dim=0):
    must_divide(images, patch_size)
    p1, p2 = pair(patch_size)
    rows = images.split(p1, dim=2)
    patches = [patch for row in rows for patch in row.split(p2, dim=3)]
    return torch.stack([patch.flatten() for patch in patches], dim)


def all_in_columns(images, patch_size):
    return all_in_one(images, patch_size, dim=1)


def all_in_one_batch(images, patch_size):
    return all_in_one(images, patch_size).unsqueeze(0)


def patchify_pairs(images, patch_size):
    p1, p2 = patch_size
    return patchify_with_permute(images, (p1, p2))


def patchify_one_image(images, patch_size):
    c, height, width = images.shape
    return patchify_with_permute(images.view(1, c, height, width), patch_size)


def unpatchify_ints(patches, patch_size, grid_size):
    channels = patches.shape[2] // patch_size**2
    x = patches.reshape(
        *(len(patches), grid_size, grid_size),
        *(channels, patch_size, patch_size),
    )
    side = grid_size * patch_size
    return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, side, side)


def unpatchify_pair_grid(patches, patch_size, grid_size):
    grid_size = grid_size[0], grid_size[1]
    return unpatchify_with_permute(patches, patch_size, grid_size)


def keys_fully_transposed(q, k, v, bias=None):
    scores = q @ k.T / q.shape[-1] ** 0.5
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return weights @ v, weights


def keys_of_three_axes(q, k, v, bias=None):
    scores = torch.matmul(q, k.transpose(1, 2)) / q.shape[-1] ** 0.5
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return weights @ v, weights


def keys_by_bmm(q, k, v, bias=None):
    scores = torch.bmm(q, k.transpose(1, 2)) / q.shape[-1] ** 0.5
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return torch.bmm(weights, v), weights


def keys_as_they_are(q, k, v, bias=None):
    weights = (q @ k / q.shape[-1] ** 0.5).softmax(-1)
    return weights @ v, weights


def numbers_of_queries(q, k, v, bias=None):
    scores = q * k / q.shape[-1] ** 0.5
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return weights * v, weights


def numbers_of_keys(q, k, v, bias=None):
    weights = (q * k).sum(-1).div(q.shape[-1] ** 0.5).softmax(-1)
    return weights @ v, weights


def numbers_of_values(q, k, v, bias=None):
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return weights * v, weights


def loops_of_the_chapter(q, k, v, bias=None):
    output = torch.zeros(len(q), v.shape[1])
    for i in range(len(q)):
        scores = torch.zeros(len(k))
        for j in range(len(k)):
            scores[j] = (q[i] * k[j]).sum() / q.shape[1] ** 0.5
        weights = scores.exp() / scores.exp().sum()
        for j in range(len(k)):
            output[i] += weights[j] * v[j]
    return output


def loops_over_tables(q, k, v, bias=None):
    n, d = q.shape
    scores = torch.zeros(n, len(k))
    for i in range(n):
        for j in range(len(k)):
            scores[i, j] = q[i] @ k[j] / d**0.5
    weights = scores.softmax(-1)
    return weights @ v, weights


def truth_of_bias(q, k, v, bias=None):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if bias:
        scores = scores + bias
    weights = scores.softmax(-1)
    return weights @ v, weights


def root_of_int(q, k, v, bias=None):
    return attend(q, k, v, 1 / torch.sqrt(q.shape[-1]), bias)


def three_on_the_wrong_axis(self, x):
    q, k, v = rearrange(
        self.qkv(x), "b n (three h d) -> b three h n d", three=3, h=self.heads
    )
    return self.proj(merge_heads(attend(q, k, v, q.shape[-1] ** -0.5)[0]))


def pair_merged(self, x):
    out = attend_fused(*split_heads(self, x))
    return self.proj(rearrange(out, "b h n d -> b n (h d)"))


def pair_transposed(self, x):
    return self.proj(merge_heads(attend_fused(*split_heads(self, x))))


def pair_projected(self, x):
    return self.proj(attend_fused(*split_heads(self, x)))


def self_attend_one_sequence(self, x):
    n, d = x.shape
    return self_attend_head_by_head(self, x.view(1, n, d))


def self_attend_keys_transposed(self, x):
    q, k, v = split_heads(self, x)
    weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
    return self.proj(merge_heads(weights @ v))


WRONG = {
    "patchify": [
        (all_in_one, "flattened together with the batch"),
        (all_in_columns, "flattened together with the batch"),
        (all_in_one_batch, "flattened together with the batch"),
        (patchify_pairs, "An int is used as a pair"),
        (patchify_one_image, "Your code unpacks fewer axes than there are"),
        (columns_first, "column by column"),
        (channels_last, "the channel stands in the wrong place"),
        (without_border, "Border pixels are dropped"),
        (padded_border, "raise a ValueError"),
        (view_alone, "A plain reshape does not cut patches"),
        (unfold_without_permute, "split but not permuted"),
        (colour_only, "one number of channels only"),
        (square_grid, "square images only"),
        (first_image_only, "one image only"),
        (pixels_changed, "changes its input in place"),
        (patches_remembered, "from one call to the next"),
        (through_numpy, "gradients do not flow back"),
        (in_double, "not their dtype"),
    ],
    "unpatchify": [
        (unpatchify_ints, "Right for a grid_size that is an int only"),
        (unpatchify_pair_grid, "An int is used as a pair"),
        (mae_unpatchify, "the channel stands in the wrong place"),
        (square_unpatchify, "square grids only"),
        (unchecked_unpatchify, "do not fill the grid"),
        (unpatchify_int_patch, "square patches only"),
        (unpatchify_not_interleaved, "not interleaved"),
        (unpatchify_arguments, "patch_size and grid_size are exchanged"),
    ],
    "PatchEmbed": [
        (embed_without_check, "Border pixels are dropped"),
        (embed_map, "The grid is not flat"),
        (embed_reshaped, "without moving the numbers"),
        (embed_overlapping, "The patches overlap"),
        (embed_without_bias, "The bias of the projection is missing"),
        (embed_with_dropout, "Dropout is on"),
        (embed_detached, "gradients do not flow back"),
        (embed_remembered, "from one call to the next"),
        (embed_and_spoil, "changes its input in place"),
    ],
    "scaled_dot_product_attention": [
        (keys_fully_transposed, "The wrong axes of the keys are swapped"),
        (keys_of_three_axes, "The wrong axes of the keys are swapped"),
        (keys_by_bmm, "Right for three axes only"),
        (keys_as_they_are, "The keys are not transposed"),
        (numbers_of_queries, "Queries and keys are multiplied number by"),
        (numbers_of_queries, "Weights and values are multiplied number by"),
        (numbers_of_keys, "Queries and keys are multiplied number by"),
        (numbers_of_values, "Weights and values are multiplied number by"),
        (loops_of_the_chapter, "Right for tables of two axes only"),
        (loops_over_tables, "Right for tables of two axes only"),
        (truth_of_bias, "write `if bias is not None`"),
        (root_of_int, "write q.shape[-1] ** 0.5."),
        (unscaled, "The scale is missing"),
        (scaled_by_tokens, "The scale uses the number of tokens"),
        (scaled_for_64, "The scale is a fixed number"),
        (softmax_over_queries, "The softmax runs over the queries"),
        (softmax_over_heads, "The softmax runs over the heads"),
        (keys_reshaped, "The keys are reshaped"),
        (overflowing, "Right for small scores only"),
        (blind_to_infinity, "wrong for -inf"),
        (bias_as_mask, "The bias is read as a mask"),
        (query_changed, "changes its input in place"),
        (causal, "A causal mask"),
        (output_alone, "must return the pair (output, weights)"),
        (dropped_weights, "Dropout is on"),
    ],
    "MultiHeadSelfAttention": [
        (three_on_the_wrong_axis, "takes a tensor apart along its first axis"),
        (pair_merged, "A tuple is used as one tensor"),
        (pair_transposed, "A tuple is used as one tensor"),
        (pair_projected, "A tuple is used as one tensor"),
        (self_attend_one_sequence, "Your code unpacks fewer axes"),
        (self_attend_keys_transposed, "The wrong axes of the keys are"),
        (merged_without_transpose, "The heads are merged by a reshape"),
        (split_by_reshape, "A reshape to (B, h, N, d) mixes"),
        (split_by_view, "view needs axes that are in order"),
        (heads_outside, "features are (three h d)"),
        (scaled_by_width, "the width of all heads together"),
        (across_the_batch, "Attention runs over the batch"),
        (one_head, "There is one head only"),
        (without_projection, "The output projection proj is missing"),
        (with_fused_dropout, "Dropout is on"),
        (with_cache, "from one call to the next"),
        (bias_detached, "gradients do not flow back"),
        (bias_of_first_head, "wrong for a bias for each head"),
        (mean_weights, "The weights are averaged over the heads"),
    ],
}
MAKE_CLASS = {
    "PatchEmbed": embed_class,
    "MultiHeadSelfAttention": attention_class,
}


def finished(name, function):
    return MAKE_CLASS.get(name, lambda function: function)(function)


@pytest.mark.parametrize(
    ("name", "function", "words"),
    [(name, *case) for name, cases in WRONG.items() for case in cases],
)
def test_a_mistake_written_by_hand_is_named(name, function, words):
    result = check(name, finished(name, function))
    assert not result.passed
    assert words in result.cause
    assert result.report.endswith(f"Likely mistake: {result.cause}")


def test_two_mistakes_written_by_hand_are_both_named():
    def forward(self, x):
        output, _ = unscaled(*split_heads(self, x))
        return self.proj(output.reshape(x.shape))

    candidate = attention_class(forward)
    cause = check("MultiHeadSelfAttention", candidate).cause
    assert cause.startswith("There are two mistakes. The heads are merged by")
    assert "The scale is missing" in cause


def test_dropout_layers_with_a_rate_are_named():
    whole = attention_class(self_attend_in_full)

    class Dropped(whole):
        def __init__(self, dim, num_heads, qkv_bias=True):
            super().__init__(dim, num_heads, qkv_bias, drop=0.3)

    assert "Dropout" in check("MultiHeadSelfAttention", Dropped).cause


# Nonsense.


def shaped(name, make):
    """Nonsense of the right shape, made from the right result."""
    right = _EXERCISES[name].reference
    if not isinstance(right, type):

        def nonsense(*args, **kwargs):
            result = right(*args, **kwargs)
            if isinstance(result, tuple):
                return tuple(map(make, result))
            return make(result)

        return nonsense

    def forward(self, *args, **kwargs):
        result = right.forward(self, *args, **kwargs)
        return (
            tuple(map(make, result))
            if isinstance(result, tuple)
            else make(result)
        )

    return type("Nonsense", (right,), {"forward": forward})


NONSENSE = {
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "random": torch.rand_like,
    "mean": lambda x: x.mean().expand_as(x),
    "sorted": lambda x: x.flatten().sort().values.view_as(x),
    "turned": lambda x: x.flip(tuple(range(x.ndim))),
    "rounded": torch.round,
    "nan": lambda x: x * torch.nan,
    "scalar": lambda x: x.sum(),
    "boolean": lambda x: x > 0,
    "meta": lambda x: x.to("meta"),
}


# What is no nonsense: whole numbers rounded, (i, j) turned to (j, i), and the
# sum of one number.
LOSSES = ("hard_distillation_loss", "soft_distillation_loss")
SENSE = {
    *product(LOSSES, ("mean", "sorted", "turned", "scalar")),
    ("relative_position_index", "rounded"),
    ("relative_position_index", "turned"),
    ("draw_mask", "turned"),
    ("draw_mask", "boolean"),
    ("mean_color_classes", "rounded"),
    ("shift_mask", "boolean"),
    ("shift_mask", "rounded"),
    ("shift_mask", "turned"),
}


@pytest.mark.parametrize(
    ("name", "nonsense"),
    [pair for pair in product(NAMES, NONSENSE) if pair not in SENSE],
)
def test_nonsense_fails_without_a_diagnosis(name, nonsense):
    result = check(name, shaped(name, NONSENSE[nonsense]))
    assert not result.passed
    assert result.cause is None


@pytest.mark.parametrize("name", [name for name in NAMES if name in WRONG])
def test_returning_the_input_fails_without_a_diagnosis(name):
    def first(*args):
        return args[0]

    def first_two(q, k, v, bias=None):
        return q, k

    def forward(self, x):
        return x

    functions = {"scaled_dot_product_attention": first_two}
    function = forward if name in MAKE_CLASS else functions.get(name, first)
    result = check(name, finished(name, function))
    assert not result.passed
    assert result.cause is None


# Stubs.


def stub_dots(images, patch_size): ...


def stub_pass(images, patch_size):
    pass


def stub_docstring(images, patch_size):
    """Cut images into patches."""


def stub_raise(images, patch_size):
    """Cut images into patches."""
    raise NotImplementedError("your code here")


def stub_stars(*args, **kwargs):
    raise NotImplementedError


class StubEmpty(nn.Module): ...


class StubMethods(nn.Module):
    """Cut and project."""

    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__()
        # your layers here

    def forward(self, images):
        raise NotImplementedError


class StubOldStyle(nn.Module):
    def __init__(self, *args, **kwargs):
        super(StubOldStyle, self).__init__()  # noqa: UP008

    def forward(self, images): ...


STUBS = [
    *(("patchify", f) for f in (stub_dots, stub_pass, stub_docstring)),
    *(("patchify", f) for f in (stub_raise, stub_stars)),
    *(("PatchEmbed", c) for c in (StubEmpty, StubMethods, StubOldStyle)),
]


@pytest.mark.parametrize(("name", "stub"), STUBS)
def test_an_untouched_stub_is_not_attempted_yet(name, stub):
    result = check(name, stub)
    assert not result.attempted
    assert not result.passed
    assert result.cause is None
    assert f"{name}: not attempted yet" in result.report


@pytest.mark.parametrize(
    ("name", "candidate"),
    [
        ("patchify", lambda images, patch_size: images),
        ("PatchEmbed", type("Layer", (nn.Linear,), {})),
        ("PatchEmbed", int),
    ],
)
def test_what_is_no_stub_counts_as_attempted(name, candidate):
    assert check(name, candidate).attempted


# What cannot be run.


class NoSuper(nn.Module):
    def __init__(self, patch_size, in_chans, embed_dim):
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size)

    def forward(self, x):
        return self.proj(x)


class LinearProjection(nn.Module):
    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__()
        p1, p2 = pair(patch_size)
        self.proj = nn.Linear(in_chans * p1 * p2, embed_dim)

    def forward(self, x):
        return self.proj(x)


class Lazy(LinearProjection):
    def __init__(self, patch_size, in_chans, embed_dim):
        nn.Module.__init__(self)
        self.proj = nn.LazyConv2d(embed_dim, patch_size, patch_size)


class Buffers(nn.Module):
    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__()
        self.proj = nn.Module()
        p1, p2 = pair(patch_size)
        weight = torch.zeros(embed_dim, in_chans, p1, p2)
        self.proj.register_buffer("weight", weight)
        self.proj.register_buffer("bias", torch.zeros(embed_dim))

    def forward(self, x):
        return x


class Misspelt(nn.Module):
    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

    def foward(self, x):
        return self.proj(x)


class WrongArguments(Misspelt):
    def forward(self, x, mask):
        return self.proj(x)


class IgnoresQkvBias(nn.Module):
    def __init__(self, dim, num_heads, qkv_bias=True):
        super().__init__()
        self.heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    forward = self_attend_head_by_head


def recursion(images, patch_size):
    return recursion(images, patch_size)


def leave(images, patch_size):
    sys.exit("goodbye")


def key_error(images, patch_size):
    raise KeyError("proj")


class SilentError(Exception):
    def __str__(self):
        raise RuntimeError


def silent_error(images, patch_size):
    raise SilentError


def no_return(images, patch_size):
    images = patchify_with_permute(images, patch_size)


def generator(images, patch_size):
    yield from patchify_with_permute(images, patch_size)


UNUSABLE = [
    ("patchify", None, "your function itself, and got a value of type None"),
    ("patchify", torch.zeros(2), "your function itself, and got a tensor"),
    ("patchify", PatchEmbed, "your function itself, and got the class"),
    ("patchify", lambda images: images, "must take (images, patch_size)"),
    ("patchify", lambda *, images, patch_size: images, "must take"),
    ("patchify", torch.matmul, "raised TypeError"),
    ("patchify", recursion, "raised RecursionError"),
    ("patchify", leave, "raised SystemExit: goodbye"),
    ("patchify", key_error, "raised KeyError: 'proj'"),
    ("patchify", silent_error, "raised SilentError"),
    ("patchify", no_return, "The return line is missing"),
    ("patchify", generator, "a tensor, not a value of type generator"),
    ("patchify", lambda x, p: [x, p], "a tensor, not a list of 2"),
    ("patchify", lambda x, p: (x, x), "a tensor, not a pair of tensors"),
    ("patchify", lambda x, p: x.numpy(), "not a value of type ndarray"),
    ("patchify", lambda x, p: patchify(x, p).to_sparse(), "sparse"),
    ("PatchEmbed", patchify, "your class itself"),
    ("PatchEmbed", PatchEmbed(2, 3, 5), "your class itself"),
    ("PatchEmbed", functools.partial(PatchEmbed, 2), "your class itself"),
    ("PatchEmbed", nn.Conv2d, "must take patch_size, in_chans, embed_dim by"),
    ("PatchEmbed", NoSuper, "cannot be built: it raised AttributeError"),
    ("PatchEmbed", LinearProjection, "store it as nn.Conv2d does"),
    ("PatchEmbed", Lazy, "cannot be built"),
    ("PatchEmbed", Buffers, "proj.weight cannot learn"),
    ("PatchEmbed", Misspelt, "no method named forward"),
    ("PatchEmbed", WrongArguments, "forward must take (self, images)"),
    ("MultiHeadSelfAttention", IgnoresQkvBias, "qkv_bias=False must leave out"),
]


@pytest.mark.parametrize(("name", "candidate", "words"), UNUSABLE)
def test_an_unusable_candidate_gets_an_answer(name, candidate, words):
    result = check(name, candidate)
    assert not result.passed
    assert words in result.report


def test_renamed_parameters_are_told_the_expected_names():
    class Renamed(nn.Module):
        def __init__(self, dim, num_heads):
            super().__init__()
            self.to_qkv = nn.Linear(dim, 3 * dim)
            self.proj = nn.Linear(dim, dim)

        def forward(self, x):
            return self.proj(self.to_qkv(x)[..., : x.shape[-1]])

    cause = check("MultiHeadSelfAttention", Renamed).cause
    assert "named qkv.weight, qkv.bias, proj.weight, proj.bias" in cause
    assert "missing: qkv.weight, qkv.bias;" in cause
    assert "not expected: to_qkv.weight, to_qkv.bias." in cause


# check itself.


def test_an_unknown_name_raises_with_the_known_names():
    known = ", ".join(NAMES)
    with pytest.raises(ValueError, match=f"name must be one of {known}, got"):
        check("pachify", patchify)


def test_exercises_are_listed_in_the_order_of_the_chapters():
    assert exercises() == NAMES
    chapters = [
        int(re.search(r"notebooks/(\d\d)_", sys.modules[module].__doc__)[1])
        for module in (e.reference.__module__ for e in EXERCISES)
    ]
    assert chapters == sorted(chapters)
    assert {1, 2, 3, 4}.issubset(chapters)


def test_the_printed_report_is_the_report_of_the_result(capsys):
    result = check("patchify", columns_first)
    assert capsys.readouterr().out == result.report + "\n"


def test_the_report_says_what_passed_and_what_did_not():
    lines = check("patchify", colour_only).report.splitlines()
    assert lines[0] == "patchify: not right yet."
    assert lines[1] == "  passed  one square image, P = 2"
    assert lines[2].startswith("  FAILED  one channel: raised RuntimeError")


def test_the_report_holds_expected_and_got_shape():
    report = check("patchify", lambda x, p: x.flatten(2)).report
    assert "expected shape (1, 9, 12), got (1, 3, 36)" in report


def test_the_report_holds_the_largest_difference():
    def form(images, patch_size):
        return patchify_with_permute(images, patch_size) + 0.5

    assert "largest difference 0.5" in check("patchify", form).report


def test_the_same_candidate_gets_the_same_report():
    candidate = embed_class(embed_with_dropout)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = check("PatchEmbed", candidate)
        torch.manual_seed(2)
        assert check("PatchEmbed", candidate) == first


def test_one_closing_line_says_which_arguments_were_not_run():
    candidate = attention_class(self_attend_head_by_head)
    report = check("MultiHeadSelfAttention", candidate).report
    assert report.count("not run") == 1
    assert report.splitlines()[-1] == (
        "  not run 5 cases with bias, return_weights, which your code does not "
        "take"
    )


def test_a_failed_report_says_too_what_was_not_run():
    candidate = attention_class(one_head)
    *_, left_out, last = check(
        "MultiHeadSelfAttention", candidate
    ).report.splitlines()
    assert left_out.startswith("  not run 5 cases with bias, return_weights")
    assert last.startswith("Likely mistake: ")


# The reader's line in the report of an error.


def helper_raises(images, patch_size):
    return cut_in_two(images, images.shape)


def cut_in_two(images, shape):
    return images[:, : shape // 2]


def package_raises(images, patch_size):
    return patchify(images[0], patch_size)


def einops_raises(images, patch_size):
    return rearrange(images, "b c h w -> b (h w)")


def long_line_raises(images, patch_size):
    return torch.reshape(
        images,
        (images, patch_size),
    )


def python_raises(images, patch_size):
    return random.sample(images, patch_size)


NO_SOURCE = {}
exec("def no_source(images, patch_size): return images // 'a'", NO_SOURCE)


@pytest.mark.parametrize(
    ("candidate", "line"),
    [
        (helper_raises, "return images[:, : shape // 2]"),
        (package_raises, "return patchify(images[0], patch_size)"),
        (long_line_raises, "return torch.reshape( ..."),
        (python_raises, "return random.sample(images, patch_size)"),
        (einops_raises, 'return rearrange(images, "b c h w -> b (h w)")'),
    ],
)
def test_an_error_is_reported_with_the_readers_own_line(candidate, line):
    first = check("patchify", candidate).report.splitlines()[1]
    assert first.endswith(f" (in: {line})")


PACKAGE_FOLDER = Path(compare.__file__).parents[1]


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("/tmp/ipykernel_7/1.py", True),
        (f"{PACKAGE_FOLDER}_of_mine/attention.py", True),
        (f"{PACKAGE_FOLDER}/attention.py", False),
        (random.__file__, False),
        ("/home/a/.local/lib/python3.12/site-packages/einops/e.py", False),
        ("/usr/local/lib/python3.12/dist-packages/torch/t.py", False),
        ("<frozen importlib._bootstrap>", False),
    ],
)
def test_code_of_packages_and_of_python_is_not_the_readers(filename, expected):
    assert compare.is_the_readers(filename) == expected


@pytest.mark.parametrize("candidate", [NO_SOURCE["no_source"], torch.matmul])
def test_a_line_that_is_not_known_is_left_out(candidate):
    report = check("patchify", candidate).report
    assert "raised TypeError" in report
    assert "(in:" not in report


def test_a_class_that_cannot_be_built_is_told_its_own_line():
    line = "self.proj = nn.Conv2d(in_chans, embed_dim, patch_size)"
    assert f"(in: {line})" in check("PatchEmbed", NoSuper).report


def test_an_unknown_error_does_not_speak_of_shapes_and_numbers():
    last = check("patchify", helper_raises).report.splitlines()[-1]
    assert last == (
        "This check does not know the mistake. Your code stops with the error "
        "shown above."
    )


def test_a_refused_parameter_is_no_error_of_the_code():
    class Embed(embed_class(embed_by_convolution)):
        def __init__(self, patch_size, in_chans, embed_dim):
            embed_dim = min(embed_dim, 10)  # wrong in the last case only
            super().__init__(patch_size, in_chans, embed_dim)

    report = check("PatchEmbed", Embed).report
    assert "The parameter proj.weight must have shape" in report
    assert "stops with the error" not in report


def test_an_unknown_difference_speaks_of_shapes_and_numbers():
    result = check("patchify", shaped("patchify", torch.zeros_like))
    assert "Compare the shapes and numbers above" in result.report


@pytest.mark.parametrize(
    ("name", "candidate"),
    [
        ("patchify", without_border),
        ("unpatchify", unchecked_unpatchify),
        ("PatchEmbed", embed_class(embed_without_check)),
    ],
)
def test_a_missing_refusal_does_not_prescribe_the_exception(name, candidate):
    report = check(name, candidate).report
    assert "must raise an error, and does not" in report


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (None, "not a tuple of 2 (a tensor and None)."),
        (0.5, "not a tuple of 2 (a tensor and a value of type float)."),
    ],
)
def test_a_wrong_pair_is_told_what_its_elements_are(second, words):
    def form(q, k, v, bias=None):
        return output_alone(q, k, v, bias), second

    cause = check("scaled_dot_product_attention", form).cause
    assert cause.endswith(words)


def test_a_long_list_is_told_by_its_length_alone():
    def form(images, patch_size):
        return list(images.flatten())

    cause = check("patchify", form).cause
    assert cause == "Your code must return a tensor, not a list of 108."


def spoil_settings(images, patch_size):
    torch.manual_seed(1)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    return patchify_with_permute(images, patch_size)


def test_check_leaves_the_random_state_as_it_was():
    before = torch.get_rng_state()
    check("patchify", spoil_settings)
    check("PatchEmbed", PatchEmbed)
    assert torch.equal(before, torch.get_rng_state())


def test_check_leaves_default_dtype_and_gradients_as_they_were():
    check("patchify", spoil_settings)
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


def test_check_leaves_the_candidate_class_as_it_was():
    candidate = attention_class(self_attend_in_full)
    before = dict(vars(candidate))
    check("MultiHeadSelfAttention", candidate)
    assert dict(vars(candidate)) == before


@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.inference_mode, lambda: torch.device("meta")],
)
def test_check_answers_the_same_under_the_readers_settings(context):
    with context():
        assert check("MultiHeadSelfAttention", MultiHeadSelfAttention).passed


def test_check_answers_the_same_with_another_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        assert check("PatchEmbed", PatchEmbed).passed
    finally:
        torch.set_default_dtype(torch.float32)
