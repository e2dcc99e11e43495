"""Chapter 09."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracles import has_all_gradients, random, randomize
from torch import nn

from vit_lessons import (
    Mlp,
    MultiHeadSelfAttention,
    PatchEmbed,
    SmallCNN,
    VisionTransformer,
    equivariance_error,
    place_images,
    shuffle_patches,
)

NO_GAP = {"rtol": 0, "atol": 1e-10}


def roll(rows, columns):
    return lambda x: x.roll((rows, columns), dims=(-2, -1))


def permute(order, dim):
    return lambda x: x.index_select(dim, torch.tensor(order))


def nothing(x):
    return x


# The error of equivariance.


def convolution(**options):
    return randomize(nn.Conv2d(3, 5, 3, padding=1, **options))


@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (3, -2)])
def test_a_convolution_on_a_ring_moves_with_the_image(shift):
    layer, move = convolution(padding_mode="circular"), roll(*shift)
    images = random(2, 3, 6, 9)
    assert equivariance_error(layer, images, move, move) < 1e-14
    assert equivariance_error(layer, images, move, nothing) > 0.5


def test_the_edge_of_the_image_breaks_the_equivariance_of_a_convolution():
    layer, move = convolution(), roll(1, 0)
    assert equivariance_error(layer, random(2, 3, 6, 9), move, move) > 0.1


def test_the_tokens_of_attention_and_mlp_move_with_the_input():
    move = permute([3, 0, 4, 1, 2], dim=1)
    for layer in (MultiHeadSelfAttention(8, num_heads=2), Mlp(8)):
        x = random(2, 5, 8)
        assert equivariance_error(randomize(layer), x, move, move) < 1e-14
        assert equivariance_error(layer, x, move, nothing) > 0.1


def test_the_features_of_attention_and_mlp_do_not_move_with_the_input():
    move = permute([3, 0, 1, 2], dim=2)
    for layer in (MultiHeadSelfAttention(4, num_heads=2), Mlp(4)):
        x = random(2, 5, 4)
        assert equivariance_error(randomize(layer), x, move, move) > 0.1


def test_patches_move_with_a_shift_by_a_whole_patch_only():
    layer = randomize(PatchEmbed((2, 3), in_chans=3, embed_dim=5))
    images = random(2, 3, 8, 15)  # 4 x 5 patches

    def tokens(rows, columns):
        def move(x):
            grid = x.unflatten(1, (4, 5))
            return grid.roll((rows, columns), dims=(1, 2)).flatten(1, 2)

        return move

    error = equivariance_error(layer, images, roll(2, -3), tokens(1, -1))
    assert error < 1e-14
    for shift in ((1, 0), (0, 1)):
        for output in (tokens(0, 0), tokens(*shift)):
            error = equivariance_error(layer, images, roll(*shift), output)
            assert error > 0.5


def test_a_mean_over_the_map_is_invariant():
    images, move = random(2, 3, 6, 9), roll(2, 5)

    def mean(images):
        return images.mean(dim=(2, 3))

    assert equivariance_error(mean, images, move, nothing) < 1e-14


def test_the_error_is_a_share_of_the_size_of_the_output():
    def function(x):
        return x + 1

    # got (1, -2), expected (-1, -4), the output is (1, 4)
    error = equivariance_error(
        function, torch.tensor([0.0, 3.0]), torch.neg, torch.neg
    )
    assert isinstance(error, float)
    assert error == pytest.approx(math.sqrt(8 / 17), rel=1e-6)


def test_the_error_of_a_larger_output_is_the_same_share():
    layer, images = convolution(), random(2, 3, 6, 9)
    small = equivariance_error(layer, images, roll(1, 0), roll(1, 0))
    large = equivariance_error(
        lambda x: 1000 * layer(x), images, roll(1, 0), roll(1, 0)
    )
    assert large == pytest.approx(small, rel=1e-12)


def test_the_error_needs_no_gradient():
    x = torch.ones(2, requires_grad=True)
    seen = []

    def function(x):
        seen.append((2 * x).requires_grad)
        return x

    equivariance_error(function, x, nothing, nothing)
    assert seen == [False, False]


def test_outputs_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 2\), got \(2, 3\)"):
        equivariance_error(nothing, random(2, 3), torch.t, nothing)


def test_an_output_of_zeros_is_refused():
    with pytest.raises(ValueError, match="all 0, got only zeros"):
        equivariance_error(torch.zeros_like, random(2), nothing, nothing)


# Shuffled patches.

SIZES = [
    ((2, 3, 6, 20), (3, 4), (2, 5)),
    ((1, 1, 4, 4), 2, (2, 2)),
    ((3, 2, 5, 3), 1, (5, 3)),
    ((1, 4, 3, 2), (3, 2), (1, 1)),
]
each_size = pytest.mark.parametrize(("shape", "patch_size", "grid"), SIZES)


def order_of(n, seed=0):
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


@each_size
def test_place_i_gets_patch_order_i(shape, patch_size, grid):
    images, (gh, gw) = random(*shape), grid
    h, w = shape[2] // gh, shape[3] // gw
    order = order_of(gh * gw)
    got = shuffle_patches(images, patch_size, order)
    assert got.shape == images.shape
    for place, patch in enumerate(order.tolist()):
        (r, c), (r2, c2) = divmod(place, gw), divmod(patch, gw)
        for b in range(shape[0]):
            here = got[b, :, r * h : (r + 1) * h, c * w : (c + 1) * w]
            there = images[b, :, r2 * h : (r2 + 1) * h, c2 * w : (c2 + 1) * w]
            assert torch.equal(here, there)


@each_size
def test_the_inverse_order_puts_the_patches_back(shape, patch_size, grid):
    images, order = random(*shape), order_of(grid[0] * grid[1])
    shuffled = shuffle_patches(images, patch_size, order)
    back = shuffle_patches(shuffled, patch_size, order.argsort())
    assert torch.equal(back, images)
    same = shuffle_patches(images, patch_size, torch.arange(len(order)))
    assert torch.equal(same, images)


def test_shuffling_leaves_the_images_as_they_were():
    images = random(1, 1, 4, 4)
    before = images.clone()
    shuffle_patches(images, 2, torch.tensor([3, 2, 1, 0])).zero_()
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    "order",
    [[0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 1, 3], [1, 2, 3, 4], [-1, 0, 1, 2], []],
    ids=str,
)
def test_an_order_that_is_none_is_refused(order):
    with pytest.raises(ValueError, match=r"each of 0\.\.3 once, got \[.*\]"):
        shuffle_patches(
            random(1, 1, 4, 4), 2, torch.tensor(order, dtype=torch.long)
        )


def test_images_that_cannot_be_cut_are_refused():
    with pytest.raises(ValueError, match=r"multiple of 3.*got \(1, 1, 4, 4\)"):
        shuffle_patches(random(1, 1, 4, 4), 3, torch.arange(1))


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_without_positions_a_vit_sees_no_order_of_patches(pool):
    model = VisionTransformer(
        (6, 20),
        (3, 4),
        num_classes=7,
        embed_dim=12,
        depth=2,
        num_heads=3,
        pool=pool,
    )
    randomize(model).eval()
    images = random(2, 3, 6, 20)

    def shuffle(images):
        return shuffle_patches(images, (3, 4), order_of(10))

    assert equivariance_error(model, images, shuffle, nothing) > 1e-4
    nn.init.zeros_(model.pos_embed)
    assert equivariance_error(model, images, shuffle, nothing) < 1e-12


# Images on a canvas.


@pytest.mark.parametrize("size", [(7, 9), (5, 4), 8])
def test_an_image_stands_at_its_row_and_column(size):
    images = random(4, 2, 5, 4)
    height, width = (size, size) if isinstance(size, int) else size
    rows = torch.tensor([0, height - 5, 0, (height - 5) // 2])
    columns = torch.tensor([0, width - 4, width - 4, (width - 4) // 2])
    got = place_images(images, size, rows, columns)
    expected = torch.stack(
        [
            F.pad(image, (c, width - 4 - c, r, height - 5 - r))
            for image, r, c in zip(
                images, rows.tolist(), columns.tolist(), strict=True
            )
        ]
    )
    assert got.dtype == images.dtype
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([0, 4], [0, 0], r"rows must be 2 numbers in 0\.\.3, got \[0, 4\]"),
        ([0, -1], [0, 0], r"rows must be 2 numbers in 0\.\.3, got \[0, -1\]"),
        ([0, 0], [6, 0], r"columns must be 2 numbers in 0\.\.5, got \[6, 0\]"),
        (
            [0, 0],
            [-1, 0],
            r"columns must be 2 numbers in 0\.\.5, got \[-1, 0\]",
        ),
        ([0], [0, 0], r"rows must be 2 numbers in 0\.\.3, got \[0\]"),
        ([0, 0], [0, 0, 0], r"columns must be 2 numbers"),
    ],
)
def test_a_place_over_the_edge_is_refused(rows, columns, message):
    with pytest.raises(ValueError, match=message):
        place_images(
            random(2, 1, 5, 4),
            (8, 9),
            torch.tensor(rows),
            torch.tensor(columns),
        )


def test_an_image_larger_than_the_canvas_is_refused():
    zero = torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match="rows must be 1 numbers"):
        place_images(random(1, 1, 5, 4), 4, zero, zero)


# The small CNN.


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_the_cnn_has_its_number_of_parameters():
    convolutions = 9 * (1 * 32 + 32 * 64 + 64 * 64)
    norms, head = 2 * (32 + 64 + 64), 64 * 10 + 10
    assert count(SmallCNN(1, 10)) == convolutions + norms + head == 56_554
    flatten = SmallCNN(1, 10, pool="flatten", img_size=8)  # 2 x 2 places
    assert count(flatten) == 56_554 + 3 * 640
    assert count(SmallCNN()) == 56_554 + 9 * 2 * 32


def small_cnn(**options):
    options = {"widths": (5, 6, 7), **options}
    model = SmallCNN(3, 4, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 0.1
            module.running_var *= 1.5
    return randomize(model)


def by_hand(model, images, num_pools):
    x = images
    convolutions = [m for m in model.features if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.features if isinstance(m, nn.BatchNorm2d)]
    for i, (layer, norm) in enumerate(zip(convolutions, norms, strict=True)):
        x = F.pad(x, (1, 1, 1, 1))
        x = x.unfold(2, 3, 1).unfold(3, 3, 1)  # (B, C, H, W, 3, 3)
        x = torch.einsum("bchwij,dcij->bdhw", x, layer.weight)
        shape = (1, -1, 1, 1)
        x = (x - norm.running_mean.view(shape)) / (
            norm.running_var.view(shape) + 1e-5
        ).sqrt()
        x = (x * norm.weight.view(shape) + norm.bias.view(shape)).relu()
        if i < num_pools:
            x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-2, -1))
    return x


@pytest.mark.parametrize("num_pools", [0, 1, 2, 3])
@pytest.mark.parametrize("pool", ["mean", "flatten"])
def test_the_logits_are_those_of_the_formula(num_pools, pool):
    size = {"img_size": (8, 13)} if pool == "flatten" else {}
    model = small_cnn(num_pools=num_pools, pool=pool, **size).eval()
    images = random(2, 3, 8, 13)
    x = by_hand(model, images, num_pools)
    assert x.shape == (2, 7, 8 >> num_pools, 13 >> num_pools)
    y = x.mean((2, 3)) if pool == "mean" else x.reshape(2, -1)
    expected = y @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(images), expected, **NO_GAP)


@pytest.mark.parametrize("size", [(4, 4), (8, 5), (17, 30)])
def test_with_the_mean_an_image_may_have_any_size(size):
    assert small_cnn()(random(2, 3, *size)).shape == (2, 4)


@pytest.mark.parametrize("size", [(8, 8), (12, 8), (8, 13), (9, 12), (16, 6)])
def test_with_flatten_another_size_is_refused(size):
    model = small_cnn(pool="flatten", img_size=(8, 12))
    assert model(random(2, 3, 8, 12)).shape == (2, 4)
    with pytest.raises(ValueError, match=rf"\(8, 12\), got \(2, 3, {size[0]}"):
        model(random(2, 3, *size))


def test_an_image_alone_is_classified_as_in_a_batch():
    model, images = small_cnn().eval(), random(3, 3, 8, 8)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(alone, model(images), **NO_GAP)


@pytest.mark.parametrize(
    "options", [{}, {"pool": "flatten", "img_size": 8}], ids=str
)
def test_a_gradient_reaches_every_parameter_of_the_cnn(options):
    model = small_cnn(**options)
    assert has_all_gradients(model, model(random(4, 3, 8, 8)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "max"}, '"mean" or "flatten", got \'max\''),
        ({"num_pools": 4}, r"num_pools must be in 0\.\.3, got 4"),
        ({"num_pools": -1}, r"num_pools must be in 0\.\.3, got -1"),
        ({"pool": "flatten"}, "got img_size=None with pool='flatten'"),
        ({"img_size": 8}, "got img_size=8 with pool='mean'"),
        ({"pool": "flatten", "img_size": (3, 8)}, r"at least 4 .*got \(3, 8\)"),
        ({"pool": "flatten", "img_size": 0}, "img_size must be a positive int"),
    ],
)
def test_a_cnn_that_cannot_be_built_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SmallCNN(3, 4, **options)
