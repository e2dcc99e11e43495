"""The checks of chapter 12: solutions and mistakes written by hand."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from scipy.stats import binom

from vit_lessons import patchify
from vit_lessons.checks import check, masking, self_supervision

EXERCISES = {e.name: e for e in self_supervision.EXERCISES}
NAMES = list(EXERCISES)

# Right solutions, as different as readers are: draw_mask.


def mask_of_ranks(num_images, num_patches, ratio):
    noise = torch.rand(num_images, num_patches)
    ranks = noise.argsort(dim=1).argsort(dim=1)
    return ranks < round(num_patches * ratio)


def mask_of_permutations(num_images, num_patches, ratio):
    mask = torch.zeros(num_images, num_patches, dtype=torch.bool)
    for i in range(num_images):
        mask[i, torch.randperm(num_patches)[: round(ratio * num_patches)]] = 1
    return mask


def mask_of_top_k(num_images, num_patches, ratio):
    places = torch.randn(num_images, num_patches).topk(
        round(num_patches * ratio)
    )
    mask = torch.zeros(num_images, num_patches)
    return mask.scatter(1, places.indices, 1.0).bool()


def mask_of_lists(num_images, num_patches, ratio):
    rows = []
    for _ in range(num_images):
        chosen = random.sample(range(num_patches), round(ratio * num_patches))
        rows.append([patch in chosen for patch in range(num_patches)])
    return torch.tensor(rows)


def mask_of_numpy(num_images, num_patches, ratio):
    mask = np.ones((num_images, num_patches), dtype=bool)
    mask[:, round(num_patches * ratio) :] = False
    return torch.from_numpy(np.random.default_rng().permuted(mask, axis=1))


def mask_of_multinomial(num_images, num_patches, ratio, device="cpu"):
    weights = torch.ones(num_images, num_patches, device=device)
    chosen = weights.multinomial(round(ratio * num_patches))
    return F.one_hot(chosen, num_patches).sum(1).bool()


def mask_by_a_threshold(num_images, num_patches, ratio):
    noise = torch.rand(num_images, num_patches)
    k = round(ratio * num_patches)
    return noise <= noise.kthvalue(k, dim=1, keepdim=True).values


def mask_as_in_mae(num_images, num_patches, ratio):
    keep = num_patches - round(ratio * num_patches)
    noise = torch.rand(num_images, num_patches)
    restore = torch.argsort(torch.argsort(noise, dim=1), dim=1)
    mask = torch.ones([num_images, num_patches])
    mask[:, :keep] = 0
    return torch.gather(mask, dim=1, index=restore) == 1


def mask_drawn_until_it_fits(num_images, num_patches, ratio):
    mask = torch.zeros(num_images, num_patches, dtype=torch.bool)
    while (bad := mask.sum(1) != round(ratio * num_patches)).any():
        mask[bad] = torch.rand(bad.sum(), num_patches) < ratio
    return mask


# mean_color_classes.


def classes_of_patches(images, patch_size, *, bits=3):
    patches = patchify(images, patch_size)
    means = reduce(patches, "b n (c p) -> c b n", "mean", c=images.shape[1])
    result = 0
    for level in (means * 2**bits).long().clamp(0, 2**bits - 1):
        result = (result << bits) | level
    return result


def classes_of_a_pooling(images, patch_size, bits=3):
    means = F.avg_pool2d(images, patch_size).flatten(2)
    red, green, blue = (means * 2**bits).int().clamp(max=2**bits - 1).unbind(1)
    return (4**bits * red + 2**bits * green + blue).long()


def classes_in_loops(images, patch_size):
    p1, p2 = patch_size if isinstance(patch_size, tuple) else [patch_size] * 2
    rows = []
    for image in images:
        row = []
        for top in range(0, image.shape[1], p1):
            for left in range(0, image.shape[2], p2):
                patch = image[:, top : top + p1, left : left + p2]
                digits = [
                    min(math.floor(8 * channel.mean().item()), 7)
                    for channel in patch
                ]
                row.append(int("".join(map(str, digits)), 8))
        rows.append(row)
    return torch.tensor(rows)


def classes_of_borders(images, patch_size):
    pattern = "b c (gh p1) (gw p2) -> b (gh gw) c"
    means = reduce(images.double(), pattern, "mean", **sides(patch_size))
    borders = torch.linspace(0, 1, 9, dtype=torch.float64)[1:-1]
    return torch.bucketize(means, borders) @ torch.tensor([64, 8, 1])


def sides(patch_size):
    p1, p2 = patch_size if isinstance(patch_size, tuple) else [patch_size] * 2
    return {"p1": p1, "p2": p2}


def classes_of_bytes(images, patch_size):
    """As for a picture with 256 values; borders lie 0.4 % higher."""
    kernel = torch.ones(3, 1, *sides(patch_size).values())
    sums = F.conv2d(images, kernel, stride=kernel.shape[2:], groups=3)
    levels = (255 * sums / kernel[0].numel()).flatten(2) // 32
    return torch.einsum("bcn,c->bn", levels, torch.tensor([64.0, 8, 1])).long()


# corrupt_patches.


def corrupt_in_loops(x, kinds, mask_token):
    result = x.clone()
    for i, row in enumerate(kinds.tolist()):
        for j, what in enumerate(row):
            if what == 1:
                result[i, j] = mask_token[0, 0]
            elif what == 2:
                other = random.choice([k for k in range(len(row)) if k != j])
                result[i, j] = x[i, other]
    return result


def corrupt_by_index(x, kinds, mask_token):
    x = x + 0
    i, j = (kinds == 2).nonzero(as_tuple=True)
    other = torch.randint(x.shape[1] - 1, j.shape)
    other = other + (other >= j)
    taken = x[i, other]
    x[i, j] = taken
    x[kinds == 1] = mask_token.squeeze()
    return x


def corrupt_by_weights(x, kinds, mask_token):
    n = x.shape[1]
    weights = 1 - torch.eye(n)
    others = weights.multinomial(len(x), replacement=True).T  # (B, N)
    other = torch.einsum("bij,bjd->bid", F.one_hot(others, n).to(x), x)
    one, two = ((kinds == kind).unsqueeze(-1).to(x) for kind in (1, 2))
    return x * (1 - one - two) + one * mask_token + two * other


def corrupt_by_rejection(x, kinds, mask_token):
    b, n, d = x.shape
    own = repeat(torch.arange(n), "n -> b n", b=b)
    others = torch.randint(n, (b, n))
    while (clash := others == own).any():
        others = torch.where(clash, torch.randint(n, (b, n)), others)
    other = torch.gather(x, 1, repeat(others, "b n -> b n d", d=d))
    choices = torch.stack([x, mask_token.expand_as(x), other, x])
    return choices.gather(0, repeat(kinds, "b n -> 1 b n d", d=d))[0]


def corrupt_along_a_ring(x, kinds, mask_token):
    """All patches of an image in a random ring: each takes the next one."""
    result = []
    for tokens, row in zip(x, kinds, strict=True):
        ring = torch.randperm(len(tokens))
        other = torch.empty_like(tokens)
        other[ring] = tokens[ring.roll(1)]
        one = torch.where((row == 1)[:, None], mask_token[0], tokens)
        result.append(torch.where((row == 2)[:, None], other, one))
    return torch.stack(result)


# rotate_images.


def turn_by_rot90(images):
    b = len(images)
    turned = torch.cat([torch.rot90(images, k, [-2, -1]) for k in range(4)])
    return turned, torch.tensor([0] * b + [1] * b + [2] * b + [3] * b)


def turn_by_transposing(images):
    half = images.flip(2, 3)
    turned = [images, images.mT.flip(2), half, half.mT.flip(2)]
    return torch.cat(turned), torch.arange(4 * len(images)) // len(images)


def turn_in_loops(images):
    turned, labels = [], []
    for turns in range(4):
        for image in images:
            turned.append(image.rot90(turns, dims=(1, 2)))
            labels.append(turns)
    return torch.stack(turned), torch.tensor(labels)


def turn_step_by_step(images):
    turned = [images]
    for _ in range(3):
        turned.append(rearrange(turned[-1], "b c h w -> b c w h").flip(-2))
    images = rearrange(torch.stack(turned), "t b c h w -> (t b) c h w")
    return [images, repeat(torch.arange(4), "t -> (t b)", b=len(images) // 4)]


RIGHT = {
    "draw_mask": [
        mask_of_ranks,
        mask_of_permutations,
        mask_of_top_k,
        mask_of_lists,
        mask_of_numpy,
        mask_of_multinomial,
        mask_by_a_threshold,
        mask_as_in_mae,
        mask_drawn_until_it_fits,
    ],
    "mean_color_classes": [
        classes_of_patches,
        classes_of_a_pooling,
        classes_in_loops,
        classes_of_borders,
        classes_of_bytes,
    ],
    "corrupt_patches": [
        corrupt_in_loops,
        corrupt_by_index,
        corrupt_by_weights,
        corrupt_by_rejection,
        corrupt_along_a_ring,
    ],
    "rotate_images": [
        turn_by_rot90,
        turn_by_transposing,
        turn_in_loops,
        turn_step_by_step,
    ],
}
ALL_RIGHT = [(name, form) for name in NAMES for form in RIGHT[name]]


@pytest.mark.parametrize(("name", "candidate"), ALL_RIGHT)
def test_a_right_solution_written_differently_passes(name, candidate):
    result = check(name, candidate)
    assert result.passed, result.report
    assert result.cause is None


def test_bits_need_not_be_taken():
    report = check("mean_color_classes", classes_in_loops).report
    assert report.splitlines()[-1] == (
        "  not run 1 case with bits, which your code does not take"
    )


# Wrong masks.


def masks_with(count=round, noise=torch.rand, change=lambda mask: mask):
    """What most readers write; the tests exchange a part of it."""

    def candidate(num_images, num_patches, ratio):
        places = noise(num_images, num_patches).argsort(1)
        mask = torch.zeros(num_images, num_patches, dtype=torch.bool)
        mask.scatter_(1, places[:, : count(ratio * num_patches)], True)
        return change(mask)

    return candidate


def mask_of_one_permutation(num_images, num_patches, ratio):
    chosen = torch.randperm(num_patches)[: round(ratio * num_patches)]
    mask = torch.zeros(num_images, num_patches).bool()
    mask[:, chosen] = True
    return mask


def mask_of_one_image(num_images, num_patches, ratio):
    return mask_of_permutations(1, num_patches, ratio)[0]


def mask_for_the_first_image(num_images, num_patches, ratio):
    return mask_of_permutations(1, num_patches, ratio)


def mask_of_coins(num_images, num_patches, ratio):
    return torch.rand(num_images, num_patches) < ratio


def mask_of_bernoulli(num_images, num_patches, ratio):
    return torch.full((num_images, num_patches), ratio).bernoulli().bool()


def mask_of_coins_for_all(num_images, num_patches, ratio):
    return (torch.rand(num_patches) < ratio).expand(num_images, -1)


def mask_of_coins_turned(num_images, num_patches, ratio):
    return torch.rand(num_images, num_patches) > ratio


def mask_with_replacement(num_images, num_patches, ratio):
    k = round(ratio * num_patches)
    chosen = torch.randint(num_patches, (num_images, k))
    return F.one_hot(chosen, num_patches).sum(1) > 0


def mask_over_the_batch(num_images, num_patches, ratio):
    total = num_images * num_patches
    ranks = torch.randperm(total).view(num_images, num_patches)
    return ranks < round(ratio * num_patches) * num_images


def mask_of_visible_patches(num_images, num_patches, ratio):
    return ~mask_of_ranks(num_images, num_patches, ratio)


def mask_of_ranks_and_ratio(num_images, num_patches, ratio):
    return torch.rand(num_images, num_patches).argsort(1) < ratio


def mask_of_the_first(num_images, num_patches, ratio):
    first = torch.arange(num_patches) < round(ratio * num_patches)
    return first.repeat(num_images, 1)


def mask_with_a_seed(num_images, num_patches, ratio):
    torch.manual_seed(0)
    return mask_of_ranks(num_images, num_patches, ratio)


def mask_with_a_generator(num_images, num_patches, ratio):
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(num_images, num_patches, generator=generator)
    return noise.argsort(1) < round(ratio * num_patches)


def mask_of_a_block(num_images, num_patches, ratio):
    k = round(ratio * num_patches)
    mask = torch.zeros(num_images, num_patches, dtype=torch.bool)
    for row in mask:
        start = torch.randint(num_patches - k + 1, ())
        row[start : start + k] = True
    return mask


def mask_of_a_rolled_block(num_images, num_patches, ratio):
    first = torch.arange(num_patches) < round(ratio * num_patches)
    starts = torch.randint(num_patches, (num_images,)).tolist()
    return torch.stack([first.roll(start) for start in starts])


def mask_that_spares_the_first(num_images, num_patches, ratio):
    noise = torch.rand(num_images, num_patches)
    noise[:, 0] = 2
    return noise.argsort(1).argsort(1) < round(ratio * num_patches)


def mask_with_a_center(num_images, num_patches, ratio):
    center = torch.arange(num_patches) - num_patches / 2
    noise = torch.rand(num_images, num_patches) + center.abs() / num_patches
    return noise.argsort(1).argsort(1) < round(ratio * num_patches)


def mask_of_halves(num_images, num_patches, ratio):
    """First the left half of the patches, or the right one."""
    right = torch.arange(num_patches) >= num_patches / 2
    side = right == torch.randint(2, (num_images, 1)).bool()
    noise = torch.rand(num_images, num_patches) + side
    return noise.argsort(1).argsort(1) < round(ratio * num_patches)


def mask_of_quarters(num_images, num_patches, ratio):
    """Right for 3 in 4 only."""
    return mask_of_ranks(num_images, num_patches, 0.75)


def mask_of_the_first_image(num_images, num_patches, ratio):
    mask = torch.zeros(num_images, num_patches, dtype=torch.bool)
    mask[0, torch.randperm(num_patches)[: round(ratio * num_patches)]] = True
    return mask


def mask_without_an_axis(num_images, num_patches, ratio):
    return mask_of_ranks(num_images, num_patches, ratio).squeeze(0)


def places_alone(num_images, num_patches, ratio):
    noise = torch.rand(num_images, num_patches)
    return noise.argsort(1)[:, : round(ratio * num_patches)]


def ranks_alone(num_images, num_patches, ratio):
    return torch.rand(num_images, num_patches).argsort(1)


WRONG_MASKS = [
    (mask_of_one_permutation, "All images get the same mask"),
    (mask_of_one_image, "One mask comes back"),
    (mask_for_the_first_image, "One mask comes back"),
    (mask_of_coins, "The number of chosen patches varies"),
    (mask_of_bernoulli, "The number of chosen patches varies"),
    (mask_of_coins_for_all, "The number of chosen patches varies"),
    (mask_of_coins_turned, "The number of chosen patches varies"),
    (mask_with_replacement, "The number of chosen patches varies"),
    (mask_over_the_batch, "The number of chosen patches varies"),
    (mask_of_visible_patches, "the wrong way round"),
    (masks_with(int), "cut off or rounded up"),
    (masks_with(math.ceil), "cut off or rounded up"),
    (masks_with(lambda k: round(k) + 1), "One patch too many or too few"),
    (masks_with(lambda k: round(k) - 1), "One patch too many or too few"),
    (mask_of_ranks_and_ratio, "compare them with round(ratio * N)"),
    (mask_of_the_first, "Each call chooses the same patches"),
    (mask_with_a_seed, "Each call chooses the same patches"),
    (mask_with_a_generator, "Each call chooses the same patches"),
    (mask_of_a_block, "lie side by side"),
    (mask_of_a_rolled_block, "lie side by side"),
    (mask_that_spares_the_first, "Some patches are chosen more often"),
    (mask_with_a_center, "Some patches are chosen more often"),
    (mask_of_halves, "chosen together too often or too seldom"),
    (masks_with(change=torch.Tensor.float), "must be bool"),
    (masks_with(change=torch.Tensor.long), "must be bool"),
    (masks_with(change=torch.Tensor.byte), "must be bool"),
    (mask_of_quarters, "Right for one ratio only"),
    (mask_of_the_first_image, "Right for one image only"),
    (mask_without_an_axis, "One mask comes back"),
    (places_alone, "The numbers of patches come back"),
    (ranks_alone, "The numbers of patches come back"),
    (masks_with(change=torch.Tensor.tolist), "a tensor, not a list of 100."),
    (masks_with(change=lambda mask: None), "The return line is missing"),
]

# Wrong classes of colors.


def coloring(
    cut=patchify,
    mean=lambda x: x.mean(3),
    level=lambda x: (8 * x).long().clamp(max=7),
    join=lambda d: 64 * d[..., 0] + 8 * d[..., 1] + d[..., 2],
):
    """What most readers write; the tests exchange a part of it."""

    def candidate(images, patch_size):
        patches = cut(images, patch_size).unflatten(2, (3, -1))
        return join(level(mean(patches)))

    return candidate


def cut_in_columns(images, patch_size):
    columns = images.split(sides(patch_size)["p2"], dim=3)
    patches = [
        patch.flatten(1)
        for column in columns
        for patch in column.split(sides(patch_size)["p1"], dim=2)
    ]
    return torch.stack(patches, 1)


def cut_by_reshape(images, patch_size):
    pixels = math.prod(sides(patch_size).values())
    return images.reshape(len(images), -1, 3 * pixels)


def cut_each_channel_by_reshape(images, patch_size):
    pixels = math.prod(sides(patch_size).values())
    pieces = images.reshape(len(images), 3, -1, pixels)
    return pieces.transpose(1, 2).flatten(2)


def cut_with_channels_last(images, patch_size):
    return rearrange(
        images,
        "b c (gh p1) (gw p2) -> b (gh gw) (p1 p2 c)",
        **sides(patch_size),
    )


def cut_across(images, patch_size):
    p1, p2 = sides(patch_size).values()
    return patchify(images, (p2, p1))


def classes_of_the_image(images, patch_size):
    red, green, blue = (images.mean((2, 3)) * 8).long().clamp(max=7).T
    return red * 64 + green * 8 + blue


def classes_of_the_image_repeated(images, patch_size):
    n = patchify(images, patch_size).shape[1]
    return classes_of_the_image(images, patch_size)[:, None].expand(-1, n)


def classes_of_the_image_kept(images, patch_size):
    return classes_of_the_image(images, patch_size).unsqueeze(1)


def classes_on_the_grid(images, patch_size):
    levels = (F.avg_pool2d(images, patch_size) * 8).long().clamp(max=7)
    return levels[:, 0] * 64 + levels[:, 1] * 8 + levels[:, 2]


def classes_of_squares(images, patch_size):
    means = F.avg_pool2d(images, patch_size)
    grid = images.shape[3] // sides(patch_size)["p2"]
    means = means.reshape(len(images), 3, grid * grid)
    return coloring(
        cut=lambda images, patch_size: means.mT, mean=lambda x: x[..., 0]
    )(images, patch_size)


def classes_of_square_patches(images, patch_size):
    b, c, h, w = images.shape
    gh, gw = h // patch_size, w // patch_size
    x = images.reshape(b, c, gh, patch_size, gw, patch_size)
    digits = (x.mean((3, 5)).flatten(2) * 8).long().clamp(max=7)
    return (digits * torch.tensor([64, 8, 1])[:, None]).sum(1)


def classes_of_one_image(images, patch_size):
    classes = classes_of_patches(images, patch_size)
    return classes.view(1, -1)


def classes_with_fixed_bits(images, patch_size, bits=3):
    return classes_of_patches(images, patch_size)


def classes_with_two_bits(images, patch_size, bits=2):
    return classes_of_patches(images, patch_size, bits=bits)


def classes_in_place(images, patch_size):
    images *= 8
    return coloring(level=lambda x: x.long().clamp(max=7))(images, patch_size)


def join_all_channels(digits):
    return digits[..., 0]


WRONG_COLORS = [
    (
        coloring(join=lambda d: d[..., 0] + 8 * d[..., 1] + 64 * d[..., 2]),
        "The channels are in reversed order",
    ),
    (
        coloring(level=lambda x: (x * 3).long().clamp(max=2)),
        "There are as many levels as bits",
    ),
    (
        coloring(level=lambda x: (x / (1 / 3)).floor().long()),
        "There are as many levels as bits",
    ),
    (
        coloring(
            level=lambda x: (x * 3).long().clamp(max=2),
            join=lambda d: d @ torch.tensor([9, 3, 1]),
        ),
        "There are as many levels as bits",
    ),
    (coloring(level=lambda x: (8 * x).long()), "gets level 2^bits, which is"),
    (
        coloring(
            level=lambda x: (8 * x).long(),
            join=lambda d: (d @ torch.tensor([64, 8, 1])).clamp(max=511),
        ),
        "gets level 2^bits, which is one too many",
    ),
    (
        coloring(
            level=lambda x: (8 * x).long(),
            join=lambda d: (d @ torch.tensor([64, 8, 1])) % 512,
        ),
        "gets level 2^bits, which is one too many",
    ),
    (coloring(level=lambda x: (7 * x).long()), "The highest level holds the"),
    (coloring(level=lambda x: (7 * x).round().long()), "to the nearest or up"),
    (
        coloring(level=lambda x: (8 * x).round().clamp(max=7).long()),
        "to the nearest or up",
    ),
    (
        coloring(level=lambda x: (8 * x).ceil().clamp(max=7).long()),
        "to the nearest or up",
    ),
    (classes_of_the_image, "The mean is taken over the whole image"),
    (classes_of_the_image_repeated, "The mean is taken over the whole image"),
    (classes_of_the_image_kept, "The mean is taken over the whole image"),
    (coloring(cut=cut_by_reshape), "A reshape does not cut patches"),
    (
        coloring(cut=cut_each_channel_by_reshape),
        "A reshape does not cut patches",
    ),
    (coloring(cut=cut_with_channels_last), "The mean mixes the channels"),
    (
        coloring(mean=lambda x: x.mean((2, 3))[..., None].repeat(1, 1, 3)),
        "The mean of all channels is taken",
    ),
    (
        coloring(mean=lambda x: x.mean((2, 3)), join=lambda d: d),
        "The mean of all channels is taken",
    ),
    (coloring(cut=cut_in_columns), "The patches go column by column"),
    (coloring(cut=cut_across), "patch_size is (height, width)"),
    (coloring(mean=lambda x: x[..., 0]), "One pixel stands for the patch"),
    (
        coloring(mean=lambda x: x[..., x.shape[-1] // 2]),
        "One pixel stands for the patch",
    ),
    (
        coloring(
            mean=lambda x: (8 * x).long().clamp(max=7).float().mean(3),
            level=torch.Tensor.long,
        ),
        "Each pixel gets a level before the mean is taken",
    ),
    (
        coloring(
            mean=lambda x: (8 * x).long().clamp(max=7).float().mean(3),
            level=lambda x: x.round().long(),
        ),
        "Each pixel gets a level before the mean is taken",
    ),
    (coloring(join=lambda d: d), "The levels of the channels come back"),
    (coloring(join=lambda d: d.sum(-1)), "The levels are added without weig"),
    (
        coloring(
            level=lambda x: (8 * x).clamp(max=7).byte(),
        ),
        "The numbers do not fit into uint8",
    ),
    (classes_on_the_grid, "The grid must be flat"),
    (classes_of_one_image, "Right for one image only"),
    (classes_of_squares, "Right for square images only"),
    (classes_of_square_patches, "Right for square patches only"),
    (classes_with_fixed_bits, "Right for 3 bits only"),
    (classes_with_two_bits, "The default of bits must be 3"),
    (
        coloring(level=lambda x: (8 * x).floor().clamp(max=7)),
        "not their dtype: use torch.int64.",
    ),
    (
        coloring(level=lambda x: (8 * x).int().clamp(max=7)),
        "not their dtype: use torch.int64.",
    ),
    (classes_in_place, "changes its input in place"),
    (
        coloring(
            cut=cut_in_columns,
            join=lambda d: d[..., 0] + 8 * d[..., 1] + 64 * d[..., 2],
        ),
        "There are two mistakes. The channels are in reversed order",
    ),
]

# Wrong corruptions.


def draw_others(x):
    steps = torch.randint(1, x.shape[1], x.shape[:2])
    return (torch.arange(x.shape[1]) + steps) % x.shape[1]


def take(x, others):
    return x[torch.arange(len(x))[:, None], others]


def corrupting(
    one=1, two=2, others=draw_others, other=None, masked=None, order=(1, 2)
):
    """What most readers write; the tests exchange a part of it."""

    def candidate(x, kinds, mask_token):
        taken = take(x, others(x)) if other is None else other(x)
        token = mask_token if masked is None else masked(x, mask_token)
        result = x
        for step in order:
            if step == 1:
                is_one = torch.isin(kinds, torch.as_tensor(one))
                result = torch.where(is_one[..., None], token, result)
            else:
                is_two = torch.isin(kinds, torch.as_tensor(two))
                result = torch.where(is_two[..., None], taken, result)
        return result

    return candidate


def corrupt_after_masking(x, kinds, mask_token):
    x = torch.where((kinds == 1)[..., None], mask_token, x)
    return torch.where((kinds == 2)[..., None], take(x, draw_others(x)), x)


def corrupt_one_after_the_other(x, kinds, mask_token):
    result = x.clone()
    for i, j in kinds.nonzero().tolist():
        if kinds[i, j] == 1:
            result[i, j] = mask_token[0, 0]
        elif kinds[i, j] == 2:
            others = [k for k in range(x.shape[1]) if k != j]
            result[i, j] = result[i, random.choice(others)]
    return result


def corrupt_in_place(x, kinds, mask_token):
    taken = take(x, draw_others(x))
    x[kinds == 1] = mask_token.flatten()
    x[kinds == 2] = taken[kinds == 2]
    return x


def corrupt_the_first_images_way(x, kinds, mask_token):
    others = draw_others(x[:1])[0]
    return corrupting(other=lambda x: x[:, others])(x, kinds, mask_token)


def corrupt_without_gather_index(x, kinds, mask_token):
    other = x.gather(1, draw_others(x).unsqueeze(2))
    return corrupting(other=lambda x: other)(x, kinds, mask_token)


def corrupt_among_the_visible(x, kinds, mask_token):
    weights = (kinds == 0).float() + 1e-9
    others = weights.multinomial(x.shape[1], replacement=True)
    return corrupting(others=lambda x: others)(x, kinds, mask_token)


def corrupt_among_kind_two(x, kinds, mask_token):
    result = torch.where((kinds == 1)[..., None], mask_token, x)
    chosen = x[kinds == 2]
    result[kinds == 2] = chosen[torch.randperm(len(chosen))]
    return result


def corrupt_the_rest(x, kinds, mask_token):
    return torch.where((kinds == 0)[..., None], mask_token, x)


def corrupt_all_but_the_masked(x, kinds, mask_token):
    other = take(x, draw_others(x))
    return torch.where((kinds == 1)[..., None], mask_token, other)


def corrupt_data(x, kinds, mask_token):
    result = x.clone()
    result.data[kinds == 1] = mask_token.data.flatten()
    taken = take(x, draw_others(x))
    return torch.where((kinds == 2)[..., None], taken, result)


def corrupt_detached(x, kinds, mask_token):
    return corrupt_by_index(x, kinds, mask_token.detach())


def corrupt_to_double(x, kinds, mask_token):
    return corrupt_by_index(x, kinds, mask_token).double()


def corrupt_without_return(x, kinds, mask_token):
    corrupt_by_index(x, kinds, mask_token)


def corrupt_without_a_batch(x, kinds, mask_token):
    x, kinds = x.squeeze(0), kinds.squeeze(0)
    steps = torch.randint(1, len(x), (len(x),))
    other = x[(torch.arange(len(x)) + steps) % len(x)]
    x = torch.where((kinds == 1)[:, None], mask_token[0], x)
    return torch.where((kinds == 2)[:, None], other, x).unsqueeze(0)


def same_token_for_all(x):
    return torch.randint(x.shape[1], (len(x), 1)).expand(x.shape[:2])


def same_step_for_all(x):
    step = torch.randint(1, x.shape[1], ()).item()
    return x.roll(step, dims=1)


def step_for_each_image(x):
    steps = torch.randint(1, x.shape[1], (len(x), 1))
    return (torch.arange(x.shape[1]) + steps) % x.shape[1]


def neighbor(x):
    steps = torch.randint(2, x.shape[:2]) * 2 - 1
    return (torch.arange(x.shape[1]) + steps) % x.shape[1]


def never_the_last(x):
    """randint leaves out the upper bound."""
    n = x.shape[1]
    return (torch.arange(n) + torch.randint(1, n - 1, x.shape[:2])) % n


def any_place(x):
    return torch.randint(x.shape[1], x.shape[:2])


def any_order(x):
    return torch.rand(x.shape[:2]).argsort(1)


def any_token_of_the_batch(x):
    flat = x.flatten(0, 1)
    return flat[torch.randint(len(flat), x.shape[:2])]


ITSELF = "The other token may be the token itself"
OTHER_IMAGE = "get tokens of other images"
SHARED = "One draw serves several tokens"
WRONG_CORRUPTIONS = [
    (corrupting(one=[1, 3]), "Tokens of kind 3 get the mask token"),
    (corrupting(one=[1, 2, 3], two=9), "All chosen tokens get the mask token"),
    (corrupting(one=[1, 2], two=9), "Tokens of kind 2 get the mask token"),
    (corrupting(two=[2, 3]), "Tokens of kind 3 get another token"),
    (corrupting(two=9), "Tokens of kind 2 stay"),
    (corrupting(one=9), "Tokens of kind 1 do not all get the mask token"),
    (corrupting(two=[1, 2]), "Tokens of kind 1 do not all get the mask token"),
    (corrupting(two=3), "Kinds 2 and 3 are swapped"),
    (corrupting(one=2, two=1), "Kinds 1 and 2 are swapped"),
    (corrupting(one=3), "Kinds 1 and 3 are swapped"),
    (corrupting(one=0, two=1), "The kinds are counted from 0"),
    (corrupt_the_rest, "Tokens of kind 0 change"),
    (corrupt_all_but_the_masked, "Tokens of kind 0 change"),
    (corrupting(two=[0, 2]), "Tokens of kind 0 change"),
    (corrupting(others=any_place), ITSELF),
    (corrupting(others=any_order), ITSELF),
    (corrupting(other=any_token_of_the_batch), OTHER_IMAGE),
    (corrupting(other=lambda x: x[torch.randperm(len(x))]), OTHER_IMAGE),
    (corrupting(other=lambda x: x.roll(1, 0)), OTHER_IMAGE),
    (corrupt_among_kind_two, OTHER_IMAGE),
    (corrupt_after_masking, "taken after the mask tokens are in place"),
    (corrupt_one_after_the_other, "taken after the mask tokens are in place"),
    (corrupting(others=same_token_for_all), SHARED),
    (corrupting(other=same_step_for_all), SHARED),
    (corrupting(others=step_for_each_image), SHARED),
    (corrupt_the_first_images_way, SHARED),
    (corrupting(other=lambda x: x.roll(1, 1)), "Each call takes the same"),
    (corrupting(other=lambda x: x.flip(1)), "Each call takes the same"),
    (corrupting(others=neighbor), "Some of the other tokens are taken more"),
    (corrupting(others=never_the_last), "Some of the other tokens are taken"),
    (corrupt_among_the_visible, "Some of the other tokens are taken more"),
    (
        corrupting(masked=lambda x, token: x + token),
        "The mask token is added to the token",
    ),
    (corrupting(masked=lambda x, token: 0 * x), "Tokens of kind 1 become 0"),
    (corrupt_without_gather_index, "The other token is one feature"),
    (corrupt_in_place, "changes its input in place"),
    (corrupt_data, "gradients do not flow back"),
    (corrupt_detached, "gradients do not flow back"),
    (corrupt_to_double, "The dtype must stay that of x"),
    (corrupt_without_a_batch, "Right for one image only"),
    (corrupt_without_return, "The return line is missing"),
]

# Wrong turns.


def turning(turn=lambda x, k: x.rot90(k, (2, 3)), turns=range(4)):
    """What most readers write; the tests exchange a part of it."""

    def candidate(images):
        turned = torch.cat([turn(images, k) for k in turns])
        labels = torch.tensor([*turns]).repeat_interleave(len(images))
        return turned, labels

    return candidate


def changing(images=lambda x, b: x, labels=lambda x, b: x):
    """The right result, changed afterwards."""

    def candidate(x):
        turned, numbers = turn_by_rot90(x)
        return images(turned, len(x)), labels(numbers, len(x))

    return candidate


def one_turn_each(images):
    labels = torch.randint(4, (len(images),))
    turned = [
        image.rot90(k.item(), (1, 2))
        for image, k in zip(images, labels, strict=True)
    ]
    return torch.stack(turned), labels


def one_turn_for_the_batch(images):
    k = random.randrange(4)
    return images.rot90(k, (2, 3)), torch.full((len(images),), k)


def turned_again_and_again(images):
    turned = []
    for k in range(4):
        images = images.rot90(k, (2, 3))
        turned.append(images)
    return torch.cat(turned), torch.arange(4).repeat_interleave(len(images))


def interleaved(images):
    turned = [image.rot90(k, (1, 2)) for image in images for k in range(4)]
    return torch.stack(turned), torch.arange(4).repeat(len(images))


def turned_first_image(images):
    turned = [images[0].rot90(k, (1, 2)) for k in range(4)]
    return torch.stack(turned), torch.arange(4)


def turned_only(images):
    return turn_by_rot90(images)[0]


def swapped_results(images):
    turned, labels = turn_by_rot90(images)
    return labels, turned


def four_flips(x, k):
    return [x, x.flip(3), x.flip(2), x.flip(2, 3)][k]


def transposed(x, k):
    return [x, x.mT, x.flip(2, 3), x.flip(2, 3).mT][k]


CLOCKWISE = "The images turn clockwise"
ORDER = "Images and labels are not in the same order"
FLIPPED = "The images are flipped or transposed"
NUMBERED = "The labels are the numbers of quarter turns"
OWN_AXIS = "The turns have an axis of their own"
WRONG_TURNS = [
    (turning(lambda x, k: x.rot90(k, (3, 2))), CLOCKWISE),
    (turning(lambda x, k: x.rot90(-k, (-2, -1))), CLOCKWISE),
    (changing(labels=lambda x, b: torch.arange(4).repeat(b)), ORDER),
    (
        changing(
            images=lambda x, b: (
                x.unflatten(0, (4, b)).transpose(0, 1).flatten(0, 1)
            )
        ),
        ORDER,
    ),
    (interleaved, "The four turns of an image come one after the other"),
    (turning(four_flips), FLIPPED),
    (turning(lambda x, k: four_flips(x, (0, 2, 1, 3)[k])), FLIPPED),
    (turning(lambda x, k: four_flips(x, (0, 1, 3, 2)[k])), FLIPPED),
    (turning(lambda x, k: four_flips(x, (0, 2, 3, 1)[k])), FLIPPED),
    (turning(transposed), FLIPPED),
    (turning(lambda x, k: x.mT if k % 2 else x.rot90(k, (2, 3))), FLIPPED),
    (turning(lambda x, k: x.rot90(k)), "The wrong axes are turned"),
    (turning(lambda x, k: x.rot90(k, (1, 2))), "The wrong axes are turned"),
    (
        lambda images: (
            torch.stack([images.rot90(k, (1, 3)) for k in range(4)]),
            torch.arange(4),
        ),
        "The wrong axes are turned",
    ),
    (one_turn_each, "Each image comes back in one turn"),
    (one_turn_for_the_batch, "Each image comes back in one turn"),
    (turned_again_and_again, "The turns add up"),
    (turning(turns=(1, 2, 3)), "The images as they are, are missing"),
    (
        lambda images: (
            turning(turns=(1, 2, 3))(images)[0],
            torch.arange(3).repeat_interleave(len(images)),
        ),
        "The images as they are, are missing",
    ),
    (changing(labels=lambda x, b: x + 1), NUMBERED),
    (changing(labels=lambda x, b: 90 * x), NUMBERED),
    (changing(labels=lambda x, b: 3 - x), NUMBERED),
    (changing(images=lambda x, b: x.unflatten(0, (4, b))), OWN_AXIS),
    (
        changing(
            images=lambda x, b: x.unflatten(0, (4, b)),
            labels=lambda x, b: x.view(4, b),
        ),
        OWN_AXIS,
    ),
    (
        changing(
            images=lambda x, b: torch.stack(x.chunk(4), 1),
            labels=lambda x, b: x.view(4, b).T,
        ),
        OWN_AXIS,
    ),
    (
        changing(labels=lambda x, b: torch.arange(4)),
        "There is one label for each turn",
    ),
    (swapped_results, "The images come first, then the labels"),
    (changing(labels=lambda x, b: x.float()), "The labels must be int64"),
    (changing(labels=lambda x, b: x.int()), "The labels must be int64"),
    (changing(labels=lambda x, b: x.byte()), "The labels must be int64"),
    (turned_only, "the pair (images, labels), not a tensor."),
    (lambda images: print(end=""), "The return line is missing"),
    (
        lambda images: turn_by_rot90(images.sub_(1)),
        "changes its input in place",
    ),
    (turned_first_image, "Right for one image only"),
]

WRONG = {
    "draw_mask": WRONG_MASKS,
    "mean_color_classes": WRONG_COLORS,
    "corrupt_patches": WRONG_CORRUPTIONS,
    "rotate_images": WRONG_TURNS,
}


@pytest.mark.parametrize(
    ("name", "candidate", "words"),
    [(name, *case) for name in NAMES for case in WRONG[name]],
)
def test_a_mistake_written_by_hand_is_named(name, candidate, words):
    result = check(name, candidate)
    assert not result.passed
    assert words in (result.cause or ""), result.report
    assert result.report.endswith(f"Likely mistake: {result.cause}")


@pytest.mark.parametrize("name", NAMES)
def test_each_mistake_that_the_check_knows_is_written_by_hand(name):
    exercise = EXERCISES[name]
    known = {wrong.cause for wrong in exercise.wrong_forms()}
    known |= {case.cause for case in exercise.cases if case.cause}
    known |= set(exercise.errors.values())
    assert not [
        cause
        for cause in known
        if "There are two" not in cause
        and not any(words in cause for _, words in WRONG[name])
    ]


# Chance.


def odds_of_too_far(draws, share):
    """Exact odds that a right count is called too far from its mean."""
    limit = masking.LIMIT * math.sqrt(draws * share * (1 - share))
    low = binom.cdf(math.ceil(draws * share - limit) - 1, draws, share)
    return low + binom.sf(math.floor(draws * share + limit), draws, share)


def test_chance_fails_a_right_mask_less_than_once_in_a_million_checks():
    odds = 0
    for case in EXERCISES["draw_mask"].cases:
        b, n, ratio = case.args
        rows, share = b * masking.MASKS, round(ratio * n) / n
        pair = share * (round(ratio * n) - 1) / (n - 1)
        odds += n * odds_of_too_far(rows, share)
        odds += math.comb(n, 2) * odds_of_too_far(rows, pair)
        odds += math.comb(n, round(ratio * n)) ** (1 - masking.MASKS)
    assert 2 * odds < 1e-6  # each case is run twice


def test_chance_fails_right_corruptions_less_than_once_in_a_million_checks():
    odds = 0
    for case in EXERCISES["corrupt_patches"].cases:
        kinds = case.args[1]
        n, drawn = kinds.shape[1], (kinds == 2).sum().item()
        assert kinds.unique().tolist() == [0, 1, 2, 3]
        share, calls = 1 / (n - 1), masking.CORRUPTED + 1
        odds += (n - 1) * odds_of_too_far(drawn * calls, share)
        for place in (kinds == 2).sum(0).tolist():
            odds += odds_of_too_far((drawn - place) * calls, share)
        odds += share ** (drawn * masking.CORRUPTED)
    assert 2 * odds < 1e-6


def test_the_mean_of_no_patch_is_near_the_border_of_a_level():
    for case in EXERCISES["mean_color_classes"].cases:
        images, patch_size = case.args
        means = patchify(images, patch_size).unflatten(2, (3, -1)).mean(3)
        levels = means * 2 ** case.kwargs.get("bits", 3)
        inside = levels[(means > 0) & (means < 1)]
        assert ((inside - inside.round()).abs() > 0.02).all()


@pytest.mark.parametrize(("name", "candidate"), ALL_RIGHT[::4])
def test_check_leaves_the_random_states_as_they_were(name, candidate):
    def states():
        kind, numbers, *place = np.random.get_state()
        numpy = kind, numbers.tolist(), place
        return random.getstate(), numpy, torch.get_rng_state().tolist()

    np.random.rand(3)
    random.random()
    before = states()
    check(name, candidate)
    assert states() == before


def test_random_numbers_are_the_same_in_each_check():
    drawn = []

    def candidate(num_images, num_patches, ratio):
        numbers = random.random(), np.random.rand(), torch.rand(()).item()
        drawn.append(numbers)
        return mask_of_ranks(num_images, num_patches, ratio)

    check("draw_mask", candidate)
    first = drawn.copy()
    drawn.clear()
    random.random(), np.random.rand(), torch.rand(())
    check("draw_mask", candidate)
    assert drawn == first


# Nonsense, stubs, and what cannot be run.

NONSENSE = [
    ("draw_mask", lambda b, n, ratio: torch.zeros(b, n).bool()),
    ("draw_mask", lambda b, n, ratio: torch.ones(b, n).bool()),
    ("draw_mask", lambda b, n, ratio: torch.rand(b, n)),
    ("draw_mask", lambda b, n, ratio: torch.rand(b, 1) < ratio),
    ("draw_mask", lambda b, n, ratio: torch.rand(b, n).argsort(1) < 2),
    ("mean_color_classes", lambda images, p: patchify(images, p)[..., 0] > 1),
    ("corrupt_patches", lambda x, kinds, mask_token: -x),
    ("corrupt_patches", lambda x, kinds, mask_token: x[:, :1]),
    ("rotate_images", lambda images: (images.repeat(4, 1, 1, 1), images)),
]


@pytest.mark.parametrize(("name", "candidate"), NONSENSE)
def test_nonsense_fails_without_a_diagnosis(name, candidate):
    result = check(name, candidate)
    assert not result.passed
    assert result.cause is None


def stub_mask(num_images, num_patches, ratio): ...


def stub_classes(images, patch_size):
    pass


def stub_corruption(x, kinds, mask_token):
    """Replace tokens."""


def stub_turns(images):
    raise NotImplementedError


STUBS = dict(
    zip(
        NAMES,
        (stub_mask, stub_classes, stub_corruption, stub_turns),
        strict=True,
    )
)
ARGUMENTS = {
    "draw_mask": "(num_images, num_patches, ratio, device='cpu')",
    "mean_color_classes": "(images, patch_size, bits=3)",
    "corrupt_patches": "(x, kinds, mask_token)",
    "rotate_images": "(images)",
}


@pytest.mark.parametrize("name", NAMES)
def test_an_untouched_stub_is_not_attempted_yet(name):
    result = check(name, STUBS[name])
    assert not result.attempted
    assert not result.passed
    assert result.report.startswith(f"{name}: not attempted yet")


@pytest.mark.parametrize("name", NAMES)
def test_a_candidate_with_other_arguments_is_told_the_right_ones(name):
    cause = check(name, lambda one, two, three, four: one).cause
    assert f"Your function must take {ARGUMENTS[name]}" in cause


# The report.


@pytest.mark.parametrize(
    ("name", "candidate", "words"),
    [
        ("draw_mask", mask_of_coins, " chosen patches in an image"),
        ("draw_mask", masks_with(int), "expected 3 chosen patches in each im"),
        ("draw_mask", mask_of_one_image, "expected shape (100, 12), got (12,)"),
        ("corrupt_patches", corrupting(two=3), "kind 2 is treated as kind 3"),
        ("corrupt_patches", corrupting(others=any_place), "of kind 2 stay as"),
        ("rotate_images", one_turn_each, "expected all, got one"),
    ],
)
def test_the_report_says_what_was_found(name, candidate, words):
    report = check(name, candidate).report
    failed = [line for line in report.splitlines() if "FAILED" in line]
    assert words in failed[0]


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, torch.enable_grad]
)
def test_check_answers_the_same_under_the_readers_settings(context):
    with context():
        for name in NAMES:
            assert check(name, RIGHT[name][1]).passed
