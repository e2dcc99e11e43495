"""Chapter 12."""

import copy
import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import random, randomize, tokens_that_change
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from vit_lessons import (
    CORRUPTIONS,
    HybridVisionTransformer,
    MaskedAutoencoder,
    MaskedPatchPrediction,
    VisionTransformer,
    class_colors,
    corrupt_patches,
    draw_corruption,
    draw_mask,
    evaluate_pretext,
    fit,
    load_pretrained,
    mean_color_classes,
    normalize_patches,
    paint_prediction,
    patchify,
    rotate_images,
)

NO_GAP = {"rtol": 0, "atol": 1e-10}
SMALL = {
    "img_size": (12, 20),
    "patch_size": (3, 4),
    "in_chans": 3,
    "num_classes": 7,
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 3,
}
DECODER = {"decoder_dim": 8, "decoder_depth": 2, "decoder_num_heads": 2}


class TwoTokens(VisionTransformer):
    """Two tokens stand in front of the patches, as in DeiT."""

    num_prefix_tokens = 2

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.dist_token = nn.Parameter(torch.zeros_like(self.cls_token))

    def add_positions(self, x):
        tokens = self.cls_token, self.dist_token
        front = [token.expand(len(x), -1, -1) for token in tokens]
        return torch.cat([*front, x], dim=1) + self.pos_embed


each_encoder = pytest.mark.parametrize("cls", [VisionTransformer, TwoTokens])


@pytest.fixture(autouse=True)
def one_seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def small(cls=VisionTransformer, **options):
    return cls(**{**SMALL, **options})


def predictor(cls=VisionTransformer, *, bits=1, **options):
    return randomize(MaskedPatchPrediction(small(cls, **options), bits=bits))


def autoencoder(cls=VisionTransformer, *, normalize=True, **options):
    model = MaskedAutoencoder(
        small(cls, **options), normalize=normalize, **DECODER
    )
    return randomize(model)


each_method = pytest.mark.parametrize(
    "method", [MaskedPatchPrediction, MaskedAutoencoder]
)


def wrapped(method, cls=VisionTransformer, **options):
    decoder = DECODER if method is MaskedAutoencoder else {}
    return randomize(method(small(cls), **decoder, **options))


def targets_of(model, images):
    """What model.loss compares with."""
    if isinstance(model, MaskedAutoencoder):
        return images
    return mean_color_classes(
        images.sigmoid(), model.encoder.patch_embed.patch_size
    )


def images_for(encoder, batch=3):
    return random(batch, encoder.in_chans, *encoder.img_size)


def hide(images, mask, encoder, value):
    """Other pixels in the hidden patches."""
    gh, gw = encoder.grid_size
    p1, p2 = encoder.patch_embed.patch_size
    holes = mask.unflatten(1, (gh, gw))
    holes = holes.repeat_interleave(p1, 1).repeat_interleave(p2, 2)
    return images.masked_fill(holes.unsqueeze(1), value)


def first_input(module, function):
    """What the module is given first while the function runs."""
    seen = []
    with module.register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        result = function()
    return seen[0].detach(), result


def without_gradient(module):
    return {
        name
        for name, p in module.named_parameters()
        if p.grad is None or not p.grad.any()
    }


def fit_the_shares(counts, shares):
    """Pearson's chi-square is at most six standard deviations too large."""
    expected = sum(counts) * np.array(shares) / sum(shares)
    chi_square = ((np.array(counts) - expected) ** 2 / expected).sum()
    freedom = len(counts) - 1
    return chi_square <= freedom + 6 * (2 * freedom) ** 0.5


# Which patches are chosen.


@given(st.integers(1, 5), st.integers(1, 70), st.floats(-0.1, 1.1))
@settings(deadline=None, max_examples=60)
def test_the_ratio_is_rounded_to_patches_of_each_image(b, n, ratio):
    chosen = round(ratio * n)
    if 0 < chosen < n:
        mask = draw_mask(b, n, ratio)
        assert (mask.shape, mask.dtype) == ((b, n), torch.bool)
        assert mask.sum(1).tolist() == [chosen] * b
    else:
        said = re.escape(f"got {ratio} of {n} patches")
        with pytest.raises(ValueError, match=f"one patch and leave.*{said}"):
            draw_mask(b, n, ratio)


@pytest.mark.parametrize(("n", "chosen"), [(2, 1), (5, 2), (6, 5), (7, 3)])
def test_every_choice_is_equally_probable(n, chosen):
    rows = draw_mask(4000, n, chosen / n).tolist()
    choices = [
        [i in choice for i in range(n)]
        for choice in itertools.combinations(range(n), chosen)
    ]
    counts = [rows.count(choice) for choice in choices]
    assert sum(counts) == 4000
    assert fit_the_shares(counts, [1] * len(choices))


def test_many_patches_are_chosen_equally_often():
    counts = draw_mask(2000, 196, 0.75).sum(0).tolist()
    assert fit_the_shares(counts, [1] * 196)


def test_the_mask_lies_where_it_is_wanted():
    assert draw_mask(2, 6, 0.5).device.type == "cpu"
    assert draw_mask(2, 6, 0.5, device="meta").device.type == "meta"


# What happens to them.


def test_the_shares_are_those_of_the_paper():
    shares = {"mask token": 0.8, "other patch": 0.1, "kept": 0.1}
    assert list(CORRUPTIONS.items()) == list(shares.items())
    mask = draw_mask(2000, 20, 0.5)
    kinds = draw_corruption(mask)
    assert kinds.dtype == torch.int64
    assert torch.equal(kinds > 0, mask)
    counts = kinds[mask].bincount(minlength=4).tolist()
    assert counts[0] == 0
    assert len(counts) == 4
    for count, share in zip(counts[1:], shares.values(), strict=True):
        deviation = (20_000 * share * (1 - share)) ** 0.5
        assert abs(count - 20_000 * share) < 5 * deviation


def test_each_patch_has_its_own_draw():
    shares = [a * b for a in (0.8, 0.1, 0.1) for b in (0.8, 0.1, 0.1)]
    kinds = draw_corruption(torch.ones(20_000, 2, dtype=torch.bool)) - 1
    neighbors = kinds[:, 0] * 3 + kinds[:, 1]
    images = kinds[:-1, 0] * 3 + kinds[1:, 0]
    for pairs in (neighbors, images):
        assert fit_the_shares(pairs.bincount(minlength=9).tolist(), shares)


@pytest.mark.parametrize(
    "mask",
    [torch.ones(2, 3), torch.ones(2, 3, 1).bool(), torch.ones(3).bool()],
    ids=lambda mask: f"{mask.dtype} {tuple(mask.shape)}",
)
def test_a_mask_that_is_none_is_refused(mask):
    said = re.escape(f"got {tuple(mask.shape)} of {mask.dtype}")
    with pytest.raises(ValueError, match=rf"\(B, N\) of bool, {said}"):
        draw_corruption(mask)


def sources(num_images, num_patches):
    """Where the token of each swapped patch comes from."""
    numbers = torch.arange(num_images * num_patches)  # (B * N)
    x = numbers.view(num_images, num_patches, 1).double()
    kinds = torch.full((num_images, num_patches), 2)
    got = corrupt_patches(x, kinds, torch.full((1, 1, 1), -1.0)).squeeze(2)
    return (got - x[:, :1, 0]).long()


@pytest.mark.parametrize("n", [2, 3, 6])
def test_the_other_patch_is_any_other_of_the_same_image(n):
    places = sources(3000, n)
    assert (places.min(), places.max()) == (0, n - 1)
    for place in range(n):
        counts = places[:, place].bincount(minlength=n).tolist()
        assert counts.pop(place) == 0
        assert fit_the_shares(counts, [1] * (n - 1))


def test_two_swapped_patches_are_swapped_independently():
    places = sources(3000, 4)
    for pairs in (
        places[:, 0] * 4 + places[:, 1],
        places[:-1, 0] * 4 + places[1:, 0],
    ):
        counts = pairs.bincount(minlength=16).tolist()
        assert fit_the_shares([c for c in counts if c], [1] * 9)


def test_each_patch_becomes_what_its_kind_says():
    x = random(50, 8, 5).requires_grad_()
    token = random(1, 1, 5, seed=2).requires_grad_()
    before = x.clone()
    kinds = draw_corruption(draw_mask(50, 8, 0.75))
    kinds[0] = torch.tensor([1, 1, 1, 1, 1, 1, 1, 2])
    got = corrupt_patches(x, kinds, token)
    assert got[(kinds == 0) | (kinds == 3)].equal(
        x[(kinds == 0) | (kinds == 3)]
    )
    assert got[kinds == 1].equal(token[0].expand((kinds == 1).sum(), -1))
    # Also where all others are masked, the other patch is an image's own.
    same = (got.unsqueeze(2) == x.unsqueeze(1)).all(3)  # (B, N, N)
    assert same[kinds == 2].sum(1).eq(1).all()
    assert not same.diagonal(dim1=1, dim2=2)[kinds == 2].any()
    assert x.equal(before)
    got.sum().backward()
    assert x.grad[:, :, 0].equal(same.sum(1).double())
    assert token.grad.eq((kinds == 1).sum()).all()


def test_the_tokens_keep_their_precision():
    # In mixed precision the mask token has more bits than the tokens.
    x, kinds = random(2, 3, 4).bfloat16(), torch.tensor([[1, 2, 3]] * 2)
    got = corrupt_patches(x, kinds, torch.zeros(1, 1, 4))
    assert got.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("x", "kinds", "token"),
    [
        ((2, 1, 5), (2, 1), (1, 1, 5)),  # no other patch
        ((2, 4, 5), (2, 3), (1, 1, 5)),
        ((2, 4, 5), (4,), (1, 1, 5)),
        ((2, 4, 5), (2, 4), (1, 1, 1)),
        ((2, 4, 5), (2, 4), (5,)),
        ((4, 5), (4,), (1, 1, 5)),
        ((2, 4, 5, 6), (2, 4), (1, 1, 5)),
    ],
)
def test_tokens_that_do_not_fit_are_refused(x, kinds, token):
    said = re.escape(f"got {x}, {kinds} and {token}")
    with pytest.raises(ValueError, match=f"N at least 2.*{said}"):
        corrupt_patches(
            torch.zeros(x), torch.zeros(kinds).long(), torch.zeros(token)
        )


# The color of a patch.


def class_by_loops(image, patch_size, bits):
    (p1, p2), levels = patch_size, 2**bits
    height, width = image.shape[1:]
    classes = []
    for row in range(0, height, p1):
        for column in range(0, width, p2):
            number = 0
            for channel in image.tolist():
                pixels = [
                    channel[row + i][column + j]
                    for i in range(p1)
                    for j in range(p2)
                ]
                level = int(math.fsum(pixels) / len(pixels) * levels)
                number = number * levels + min(level, levels - 1)
            classes.append(number)
    return classes


SIDES = st.tuples(*[st.integers(1, 4) for _ in range(4)])


@given(SIDES, st.integers(1, 3), st.integers(1, 4), st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_the_class_of_a_patch_is_that_of_the_loops(sides, channels, bits, seed):
    gh, gw, p1, p2 = sides
    images = random(2, channels, gh * p1, gw * p2, seed=seed).sigmoid()
    images[:, :, :p1, :p2] = float(seed % 2)  # a black or a white patch
    got = mean_color_classes(images, (p1, p2), bits=bits)
    expected = [class_by_loops(image, (p1, p2), bits) for image in images]
    assert got.dtype == torch.int64
    assert got.tolist() == expected


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_a_color_on_a_border_belongs_to_the_level_above(bits):
    borders = torch.arange(1, 2**bits, dtype=torch.float64) / 2**bits
    images = borders.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    below = images.nextafter(torch.zeros(()).double())
    above = list(range(1, 2**bits))
    classes = mean_color_classes(images, 2, bits=bits).flatten().tolist()
    assert classes == above
    classes = mean_color_classes(below, 2, bits=bits).flatten().tolist()
    assert classes == [level - 1 for level in above]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (-1e-6, "-1e-06 to 0.5"),
        (1 + 1e-6, "0.5 to 1"),
        (math.nan, "nan to nan"),
        (math.inf, "0.5 to inf"),
    ],
)
def test_one_number_out_of_range_is_refused(value, said):
    images = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64)
    images[1, 2, 3, 3] = value
    with pytest.raises(ValueError, match=rf"in \[0, 1\], got {said}"):
        mean_color_classes(images, 2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_images_of_integers_are_refused(dtype):
    with pytest.raises(ValueError, match=f"got 0 to 1 of {dtype}"):
        mean_color_classes(torch.eye(4, dtype=dtype)[None, None], 2)


def test_sizes_of_colors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="bits must be positive, got 0"):
        mean_color_classes(torch.zeros(1, 1, 4, 4), 2, bits=0)
    with pytest.raises(ValueError, match="H a multiple of 3"):
        mean_color_classes(torch.zeros(1, 1, 4, 4), 3)


@pytest.mark.parametrize(
    ("channels", "bits"), [(1, 1), (1, 4), (2, 2), (3, 1), (3, 3)]
)
def test_the_color_of_a_class_is_in_the_middle_of_its_level(channels, bits):
    number = 2 ** (channels * bits)
    colors = class_colors(torch.arange(number), channels, bits=bits)
    assert (colors.shape, colors.dtype) == ((number, channels), torch.float32)
    images = colors[:, :, None, None].expand(-1, -1, 2, 4)
    classes = mean_color_classes(images, (2, 4), bits=bits)
    assert classes.flatten().tolist() == list(range(number))
    other = random(1, channels, 30, 40).sigmoid()
    painted = class_colors(
        mean_color_classes(other, 1, bits=bits), channels, bits=bits
    )
    gap = (painted - patchify(other, 1)).abs().max()
    assert 0.45 < gap * 2**bits <= 0.5


def test_classes_of_any_shape_become_colors():
    color = [15 / 16, 1 / 16, 1 / 16]
    assert class_colors(torch.tensor(448)).tolist() == color
    classes = torch.full((2, 1, 4), 448)
    assert class_colors(classes).tolist() == [[[color] * 4]] * 2


@pytest.mark.parametrize("number", [-1, 16])
def test_a_number_of_no_color_is_refused(number):
    classes = torch.tensor([3, number, 5])
    said = f"got {min(3, number)} to {max(5, number)}"
    with pytest.raises(ValueError, match=rf"in 0\.\.15, {said}"):
        class_colors(classes, 2, bits=2)


# Masked patch prediction.


@each_encoder
def test_the_blocks_see_corrupted_patches_at_their_places(cls):
    model, prefix = predictor(cls), cls.num_prefix_tokens
    encoder = model.encoder
    images = images_for(encoder, batch=400)
    z, (_, mask) = first_input(encoder.blocks[0], lambda: model(images))
    x = encoder.embed_patches(images)
    n = x.shape[1]
    assert mask.sum(1).tolist() == [n // 2] * 400
    front = encoder.add_positions(x)[:, :prefix]
    torch.testing.assert_close(z[:, :prefix], front, **NO_GAP)
    # Without its position each token is one of the image or the mask token.
    z = z[:, prefix:] - encoder.pos_embed[:, prefix:]
    known = torch.cat([x, model.mask_token.expand(400, -1, -1)], dim=1)
    gaps = (z.unsqueeze(2) - known.unsqueeze(1)).abs().amax(3)  # (B, N, N + 1)
    gap, which = gaps.min(2)
    assert gap.max() < 1e-10
    own = which == torch.arange(n)
    assert own[~mask].all()
    masked, kept = (which[mask] == n).sum().item(), own[mask].sum().item()
    other = mask.sum().item() - masked - kept
    assert fit_the_shares([masked, other, kept], [8, 1, 1])


@each_encoder
def test_the_logits_are_those_of_the_patches(cls):
    model = predictor(cls)
    images = images_for(model.encoder)
    x, (logits, _) = first_input(model.encoder.blocks[0], lambda: model(images))
    for block in model.encoder.blocks:
        x = block(x)
    expected = model.head(model.encoder.norm(x))[:, cls.num_prefix_tokens :]
    torch.testing.assert_close(logits, expected, **NO_GAP)


@pytest.mark.parametrize(
    ("in_chans", "bits", "colors"), [(1, 3, 8), (3, 2, 64), (3, 3, 512)]
)
def test_there_is_a_logit_for_each_color(in_chans, bits, colors):
    model = predictor(in_chans=in_chans, bits=bits, num_classes=0)
    logits, mask = model(images_for(model.encoder))
    assert logits.shape == (3, 20, colors)
    assert (mask.shape, mask.dtype) == ((3, 20), torch.bool)


MASK = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]]).bool()
CHOSEN = [(0, 0), (0, 3), (1, 2)]


def test_the_loss_is_the_cross_entropy_of_the_chosen_patches():
    logits = random(2, 5, 8).requires_grad_()
    classes = torch.randint(8, (2, 5))
    terms = []
    for place in CHOSEN:
        row = logits[place].tolist()
        total = math.log(math.fsum(map(math.exp, row)))
        terms.append(total - row[classes[place]])
    loss = predictor().loss((logits, MASK), classes)
    assert loss.item() == pytest.approx(sum(terms) / 3, rel=1e-12)
    loss.backward()
    assert torch.equal(logits.grad.abs().amax(2) > 0, MASK)


def test_the_score_is_the_share_of_colors_that_are_found():
    logits = random(2, 5, 8)
    best = logits.argmax(2)
    for right in range(4):
        classes = torch.where(MASK, (best + 1) % 8, best)
        for place in CHOSEN[:right]:
            classes[place] = best[place]
        score = predictor().score((logits, MASK), classes)
        assert score.item() == pytest.approx(100 * right / 3, rel=1e-6)


def test_the_fresh_mask_token_is_small_and_the_encoder_stays_as_it_is():
    encoder = small(embed_dim=480, depth=1)
    before = copy.deepcopy(encoder.state_dict())
    options = {"decoder_dim": 480, "decoder_depth": 0}
    for model in (
        MaskedPatchPrediction(encoder),
        MaskedAutoencoder(encoder, **options),
    ):
        assert 0.017 < model.mask_token.std() < 0.023
    for name, value in encoder.state_dict().items():
        assert value.equal(before[name]), name


# Both methods.


@each_method
def test_a_hybrid_is_refused(method):
    encoder = small(HybridVisionTransformer, patch_size=4)
    with pytest.raises(ValueError, match=r"a PatchEmbed, .*got ConvStem"):
        method(encoder)


def test_the_visible_tokens_of_a_hybrid_know_the_hidden_pixels():
    sizes = {"img_size": (12, 20), "patch_size": 4}
    hidden = (0, slice(None), slice(4, 8), slice(4, 8))  # patch 6 of 3 x 5
    for cls, known in (
        (VisionTransformer, [6]),
        (HybridVisionTransformer, [6, 7, 11, 12]),
    ):
        encoder = randomize(small(cls, **sizes)).eval()
        changed = tokens_that_change(
            encoder.embed_patches, images_for(encoder), hidden
        )
        assert changed == [[0, patch] for patch in known]


@each_method
@pytest.mark.parametrize("ratio", [0.02, 0.98])
def test_a_ratio_of_no_patch_or_of_all_is_refused(method, ratio):
    model = wrapped(method, ratio=ratio)
    with pytest.raises(ValueError, match=f"got {ratio} of 20 patches"):
        model(images_for(model.encoder))


@each_method
@pytest.mark.parametrize(("ratio", "chosen"), [(0.15, 3), (0.9, 18)])
def test_each_call_chooses_as_many_patches_and_others(method, ratio, chosen):
    model = wrapped(method, ratio=ratio)
    images = images_for(model.encoder)
    one, other = model(images)[1], model(images)[1]
    assert one.sum(1).tolist() == other.sum(1).tolist() == [chosen] * 3
    assert not one.equal(other)
    assert not one[0].equal(one[1])


@each_method
@each_encoder
def test_a_gradient_reaches_all_that_predicts(method, cls):
    model = wrapped(method, cls)
    images = images_for(model.encoder)
    model.loss(model(images), targets_of(model, images)).backward()
    unused = {"encoder.head.weight", "encoder.head.bias"}
    assert without_gradient(model) == unused


# Normalized patches.


def test_normalized_patches_are_those_of_numpy():
    patches = 3 * random(2, 4, 6) + 5
    values, mean, std = normalize_patches(patches)
    x = patches.numpy()
    expected_mean = x.mean(2, keepdims=True)
    expected_std = np.sqrt(x.var(2, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(mean.numpy(), expected_mean, 1e-13)
    np.testing.assert_allclose(std.numpy(), expected_std, 1e-13)
    expected = (x - expected_mean) / expected_std
    np.testing.assert_allclose(values.numpy(), expected, 1e-10, 1e-13)


def test_a_patch_of_one_color_stays_finite():
    patches = torch.full((1, 2, 6), 0.5, requires_grad=True)
    values, mean, std = normalize_patches(patches, eps=1e-4)
    assert not values.any()
    assert mean.eq(0.5).all()
    torch.testing.assert_close(std, torch.full((1, 2, 1), 1e-2))
    values.sum().backward()
    assert patches.grad.isfinite().all()


def test_a_patch_of_one_number_is_refused():
    with pytest.raises(ValueError, match=r"2 numbers each, got \(2, 4, 1\)"):
        normalize_patches(torch.zeros(2, 4, 1))


# The masked autoencoder.


def take(x, order):
    return x[torch.arange(len(x)).unsqueeze(1), order]


def by_shuffling(model, images, mask):
    """The algorithm of the paper: shuffle, encode the first, unshuffle."""
    encoder, (b, n) = model.encoder, mask.shape
    prefix, hidden = encoder.num_prefix_tokens, int(mask.sum(1)[0])
    order = (mask + torch.rand(b, n)).argsort(1)  # the visible ones first
    back = order.argsort(1)
    proj, (p1, p2) = encoder.patch_embed.proj, encoder.patch_embed.patch_size
    x = images.unfold(2, p1, p1).unfold(3, p2, p2)  # (B, C, gh, gw, P, P)
    x = x.permute(0, 2, 3, 1, 4, 5).reshape(b, n, -1)
    x = x @ proj.weight.flatten(1).T + proj.bias
    x = x + encoder.pos_embed[:, prefix:]
    x = take(x, order)[:, : n - hidden]
    names = ["cls_token", "dist_token"][:prefix]
    front = torch.cat([getattr(encoder, name) for name in names], 1)
    front = (front + encoder.pos_embed[:, :prefix]).expand(b, -1, -1)
    x = torch.cat([front, x], 1)
    for block in encoder.blocks:
        x = block(x)
    x = model.decoder_embed(encoder.norm(x))
    holes = model.mask_token.expand(b, hidden, -1)
    x = torch.cat(
        [x[:, :prefix], take(torch.cat([x[:, prefix:], holes], 1), back)], 1
    )
    x = x + model.decoder_pos_embed
    for block in model.decoder_blocks:
        x = block(x)
    return model.decoder_pred(model.decoder_norm(x))[:, prefix:]


def gradients(model, output):
    used = [p for n, p in model.named_parameters() if "encoder.head" not in n]
    loss = (output * random(*output.shape, seed=3)).sum()
    return torch.autograd.grad(loss, used)


@given(SIDES, st.integers(1, 4), st.sampled_from([1, 2]), st.data())
@settings(deadline=None, max_examples=15)
def test_the_prediction_is_that_of_the_papers_algorithm(
    sides, in_chans, prefix, data
):
    gh, gw, p1, p2 = sides
    gw += gh == gw == 1  # at least two patches
    model = autoencoder(
        [VisionTransformer, TwoTokens][prefix - 1],
        img_size=(gh * p1, gw * p2),
        patch_size=(p1, p2),
        in_chans=in_chans,
    )
    images = images_for(model.encoder)
    hidden = data.draw(st.integers(1, gh * gw - 1))
    mask = draw_mask(3, gh * gw, hidden / (gh * gw))
    got, same = model(images, mask)
    assert same.equal(mask)
    expected = by_shuffling(model, images, mask)
    torch.testing.assert_close(got, expected, **NO_GAP)
    pairs = zip(gradients(model, got), gradients(model, expected), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_decoder_knows_the_places_as_in_mae():
    model = MaskedAutoencoder(small(TwoTokens), **DECODER)
    positions = model.decoder_pos_embed
    assert (positions.shape, positions.dtype) == ((1, 22, 8), torch.float32)
    assert not positions[:, :2].any()  # the tokens in front have no place
    for place in range(20):
        row, column = divmod(place, 5)
        expected = [
            wave(angle / 10_000 ** (i / 2))
            for angle in (column, row)
            for wave in (math.sin, math.cos)
            for i in range(2)
        ]
        got = positions[0, 2 + place].tolist()
        assert got == pytest.approx(expected, abs=1e-6)


@each_encoder
def test_the_encoder_computes_the_visible_patches_only(cls):
    model, prefix = autoencoder(cls), cls.num_prefix_tokens
    images = images_for(model.encoder)
    x, (prediction, mask) = first_input(
        model.encoder.blocks[0], lambda: model(images)
    )
    assert mask.sum(1).tolist() == [15, 15, 15]  # 75 percent
    assert x.shape == (3, prefix + 5, 12)
    y, _ = first_input(model.decoder_blocks[0], lambda: model(images))
    assert y.shape == (3, prefix + 20, 8)
    assert prediction.shape == (3, 20, 36)


@each_encoder
@pytest.mark.parametrize("value", [math.nan, -1000.0])
def test_the_prediction_does_not_depend_on_hidden_pixels(cls, value):
    model = autoencoder(cls)
    images = images_for(model.encoder)
    mask = draw_mask(3, 20, 0.4)
    prediction = model(images, mask)[0]
    assert prediction.isfinite().all()
    assert model(hide(images, mask, model.encoder, value), mask)[0].equal(
        prediction
    )


def test_a_visible_patch_changes_all_predictions_of_its_image():
    model = autoencoder()
    mask = torch.tensor([[i % 5 != k for i in range(20)] for k in (0, 1, 2)])
    patch = (1, slice(None), slice(3, 6), slice(4, 8))  # 6, which is visible
    changed = tokens_that_change(
        lambda images: model(images, mask)[0], images_for(model.encoder), patch
    )
    assert changed == [[1, i] for i in range(20)]


def maes_target(images, patch_size, normalize):
    """The hidden and the visible patches in numpy, (B, N, C * P * P)."""
    (p1, p2), (b, c, h, w) = patch_size, images.shape
    x = images.numpy().reshape(b, c, h // p1, p1, w // p2, p2)
    x = x.transpose(0, 2, 4, 1, 3, 5).reshape(b, -1, c * p1 * p2)
    if normalize:
        variance = x.var(axis=2, ddof=1, keepdims=True)  # torch's default
        x = (x - x.mean(axis=2, keepdims=True)) / np.sqrt(variance + 1e-6)
    return x


@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_is_that_of_mae_and_the_score_its_share(normalize):
    model = autoencoder(normalize=normalize)
    images = 2 * images_for(model.encoder) + 1
    mask = draw_mask(3, 20, 0.75)
    prediction = random(3, 20, 36, seed=5).requires_grad_()
    target = maes_target(images, (3, 4), normalize)
    error = ((prediction.detach().numpy() - target) ** 2).mean(2)
    expected = (error * mask.numpy()).sum() / mask.sum().item()
    loss = model.loss((prediction, mask), images)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    assert torch.equal(prediction.grad.abs().amax(2) > 0, mask)
    # The mean hidden patch has the score 0.
    hidden = target[mask.numpy()]  # (45, 36)
    baseline = ((hidden - hidden.mean(0)) ** 2).mean()
    score = model.score((prediction, mask), images).item()
    assert score == pytest.approx(100 * (1 - expected / baseline), rel=1e-10)


BAD_MASKS = {
    "rows of two lengths": [[True, False, False, False], [True, True] * 2],
    "one patch less": [[True, False, False]] * 2,
    "one image": [[True, False, False, False]],
    "no batch": [True, False, False, False],
    "nothing hidden": [[False] * 4] * 2,
    "all hidden": [[True] * 4] * 2,
    "no bool": [[1, 0, 0, 0]] * 2,
}


@pytest.mark.parametrize("mask", BAD_MASKS.values(), ids=BAD_MASKS)
def test_a_mask_that_does_not_fit_is_refused(mask):
    model = autoencoder(img_size=(6, 8))
    images, mask = images_for(model.encoder, batch=2), torch.tensor(mask)
    counts = mask.sum(-1).tolist()
    said = re.escape(f"got {tuple(mask.shape)} of {mask.dtype} with {counts}")
    with pytest.raises(ValueError, match=rf"be \(2, 4\) of bool.*{said}"):
        model(images, mask)


def test_a_decoder_that_cannot_know_places_is_refused():
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        MaskedAutoencoder(small(), decoder_dim=6, decoder_num_heads=2)


def names_of_a_block(name):
    layers = "norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"
    return {f"{name}.{layer}" for layer in layers}


def test_the_names_are_those_of_mae():
    names = {"decoder_embed", "decoder_norm", "decoder_pred"}
    names |= names_of_a_block("decoder_blocks.0")
    names |= names_of_a_block("decoder_blocks.1")
    names = {f"{n}.{p}" for n in names for p in ("weight", "bias")}
    names |= {f"encoder.{name}" for name in small().state_dict()}
    model = autoencoder()
    assert set(model.state_dict()) == {"mask_token", *names}
    assert [*dict(model.named_buffers())] == ["decoder_pos_embed"]


def test_the_default_decoder_is_that_of_mae():
    with torch.device("meta"):
        encoder = VisionTransformer(num_classes=0)
        model = MaskedAutoencoder(encoder)
    number = sum(p.numel() for p in model.parameters())
    fixed = model.decoder_pos_embed.numel()
    assert number + fixed == 111_907_840  # of mae_vit_base_patch16
    assert model.decoder_blocks[7].attn.num_heads == 16
    assert model.decoder_norm.eps == 1e-6
    assert (model.ratio, model.normalize) == (0.75, True)


def test_the_sizes_of_the_decoder_can_be_chosen():
    sizes = {"decoder_dim": 24, "decoder_depth": 3, "decoder_num_heads": 6}
    model = MaskedAutoencoder(small(), **sizes, mlp_ratio=1.5)
    assert model.mask_token.shape == (1, 1, 24)
    assert [block.attn.num_heads for block in model.decoder_blocks] == [6] * 3
    assert model.decoder_blocks[2].mlp.fc1.weight.shape == (36, 24)


def test_the_fresh_decoder_is_drawn_by_its_widths():
    model = MaskedAutoencoder(small(embed_dim=48), decoder_dim=64)
    decoder = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name.startswith("decoder")
    ]
    assert len(decoder) == 2 + 8 * 4
    for name, layer in decoder:
        bound = (6 / sum(layer.weight.shape)) ** 0.5
        assert 0.95 * bound < layer.weight.abs().max() <= bound, name
        assert not layer.bias.any(), name
    first, second = model.decoder_blocks[:2]
    assert not first.attn.qkv.weight.equal(second.attn.qkv.weight)


@each_encoder
def test_the_encoder_becomes_a_classifier(cls):
    model = autoencoder(cls)
    classifier = small(cls, num_classes=4).double()
    head = classifier.head.weight.clone()
    weights = model.encoder.state_dict()
    report = load_pretrained(classifier, weights, new_head=True)
    assert report.replaced == ("head.weight", "head.bias")
    assert len(report.loaded) == len(weights) - 2
    images = images_for(model.encoder)
    features = model.encoder.forward_features(images)
    assert classifier.forward_features(images).equal(features)
    assert classifier.head.weight.equal(head)


@each_method
def test_a_model_learns_in_bfloat16(method):
    model = wrapped(method).float()
    images = images_for(model.encoder).float()
    targets = targets_of(model, images)
    torch.manual_seed(1)
    expected, _ = model(images)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images)
        loss = model.loss(outputs, targets)
        score = model.score(outputs, targets)
    assert outputs[0].dtype == torch.bfloat16
    gap = (outputs[0] - expected).norm() / expected.norm()
    assert 1e-4 < gap < 0.05
    assert loss.isfinite()
    assert score.isfinite()
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)


# A picture of the prediction.


def patch_of(images, place, patch_size, gw):
    (row, column), (p1, p2) = divmod(place, gw), patch_size
    rows = slice(row * p1, (row + 1) * p1)
    return images[:, rows, column * p2 : (column + 1) * p2]


def painted_by_loops(prediction, images, mask, patch_size, normalized):
    (p1, p2), gw = patch_size, images.shape[3] // patch_size[1]
    painted = images.clone()
    for b, i in mask.nonzero().tolist():
        values = prediction[b, i].view(-1, p1, p2)
        if normalized:
            total = mean = std = 0
            for j in (~mask[b]).nonzero().flatten().tolist():
                (r, c), (r2, c2) = divmod(i, gw), divmod(j, gw)
                weight = 1 / ((r - r2) ** 2 + (c - c2) ** 2)
                pixels = patch_of(images[b], j, patch_size, gw).numpy()
                total += weight
                mean += weight * pixels.mean()
                std += weight * (pixels.var(ddof=1) + 1e-6) ** 0.5
            values = values * (std / total) + mean / total
        patch_of(painted[b], i, patch_size, gw).copy_(values)
    return painted


def picture(grid, patch_size=(3, 4), channels=2, ratio=0.6):
    (gh, gw), (p1, p2) = grid, patch_size
    images = 2 * random(2, channels, gh * p1, gw * p2) + 3
    prediction = random(2, gh * gw, channels * p1 * p2, seed=2)
    return prediction, images, draw_mask(2, gh * gw, ratio)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(
    ("grid", "ratio"), [((3, 5), 0.6), ((1, 2), 0.5), ((6, 7), 0.9)]
)
def test_the_picture_is_that_of_the_loops(grid, ratio, normalized):
    prediction, images, mask = picture(grid, ratio=ratio)
    before = [t.clone() for t in (prediction, images, mask)]
    got = paint_prediction(
        prediction, images, mask, (3, 4), normalized=normalized
    )
    expected = painted_by_loops(prediction, images, mask, (3, 4), normalized)
    torch.testing.assert_close(got, expected, **NO_GAP)
    for one, other in zip((prediction, images, mask), before, strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("normalized", [True, False])
def test_the_visible_pixels_stay_as_they_are(normalized):
    prediction, images, mask = picture((3, 5))
    prediction[~mask] = math.nan
    images = images.float()
    got = paint_prediction(
        prediction.float(), images, mask, (3, 4), normalized=normalized
    )
    assert patchify(got, (3, 4))[~mask].equal(patchify(images, (3, 4))[~mask])
    assert got.isfinite().all()


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("value", [math.nan, -1000.0])
def test_no_hidden_pixel_is_in_the_picture(normalized, value):
    prediction, images, mask = picture((4, 5), (3, 4), channels=3)
    other = hide(images, mask, small(), value)
    one, two = (
        paint_prediction(prediction, x, mask, (3, 4), normalized=normalized)
        for x in (images, other)
    )
    assert one.isfinite().all()
    assert one.equal(two)


def test_an_image_of_one_color_is_restored_from_a_prediction_of_0():
    prediction, images, mask = picture((3, 5))
    images[0], images[1] = 0.3, -40.0
    got = paint_prediction(
        0 * prediction, images, mask, (3, 4), normalized=True
    )
    torch.testing.assert_close(got, images, rtol=1e-14, atol=0)


def test_a_picture_that_does_not_fit_is_refused():
    prediction, images, mask = picture((3, 5))
    said = re.escape("(2, 15, 24) and mask (2, 15), got ")
    for wrong in (
        (prediction[:, :, 1:], images, mask),
        (prediction[:, 1:], images, mask[:, 1:]),
        (prediction, images, mask[:1]),
    ):
        shapes = [tuple(wrong[0].shape), tuple(wrong[2].shape)]
        end = re.escape(f"{shapes[0]} and {shapes[1]}")
        with pytest.raises(ValueError, match=said + end):
            paint_prediction(*wrong, (3, 4), normalized=True)
    with pytest.raises(ValueError, match="H a multiple of 4"):
        paint_prediction(prediction, images, mask, 4, normalized=True)
    mask[1] = True
    with pytest.raises(ValueError, match="must leave a visible patch"):
        paint_prediction(prediction, images, mask, (3, 4), normalized=True)


# Turned images.


def test_all_images_of_one_turn_come_after_the_other():
    images = random(3, 2, 5, 5)
    turned, labels = rotate_images(images)
    assert labels.dtype == torch.int64
    expected = [
        (np.rot90(image.numpy(), k=turns, axes=(1, 2)), turns)
        for turns in range(4)
        for image in images
    ]
    assert labels.tolist() == [turns for _, turns in expected]
    assert turned.equal(torch.tensor(np.stack([x for x, _ in expected])))


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (3, 4, 4), (1, 2, 3, 4, 4)])
def test_images_that_are_not_square_cannot_be_turned(shape):
    said = re.escape(f"(B, C, H, H), got {shape}")
    with pytest.raises(ValueError, match=said):
        rotate_images(torch.zeros(shape))


# Measuring and training.


def pretext(method, **options):
    """A small model of float32 and a data set of 12 images for it."""
    encoder = small(img_size=(6, 8), in_chans=1, depth=1, **options)
    colors, slopes = random(2, 12, 1, 1, 1)
    images = colors + slopes * torch.linspace(-1, 1, 8)
    images = (images + 0.1 * random(12, 1, 6, 8)).float()
    decoder = {**DECODER, "decoder_depth": 1, "ratio": 0.5}
    model = method(encoder, **(decoder if method is MaskedAutoencoder else {}))
    return model, TensorDataset(images, targets_of(model, images))


@each_method
def test_each_evaluation_hides_the_same_patches(method):
    model, data = pretext(method)
    randomize(model).float()
    loader = DataLoader(data, batch_size=5)
    before = torch.random.get_rng_state()
    first = evaluate_pretext(model, loader)
    assert torch.random.get_rng_state().equal(before)
    torch.rand(3)
    assert evaluate_pretext(model, loader) == first
    assert evaluate_pretext(model, loader, seed=1) != first


@each_method
def test_loss_and_score_are_means_over_the_images(method):
    model, data = pretext(method, dropout=0.5)
    batches = [data[:7], data[7:9], data[9:]]
    got = evaluate_pretext(model, iter(batches), seed=5)
    assert not model.training
    torch.manual_seed(5)
    expected = [0.0, 0.0]
    for images, targets in batches:
        outputs = model(images)
        for i, measure in enumerate((model.loss, model.score)):
            expected[i] += measure(outputs, targets).item() * len(images) / 12
    assert got == pytest.approx(expected, rel=1e-6)


@each_method
def test_evaluation_needs_a_batch_and_changes_no_weight(method):
    model, data = pretext(method)
    before = copy.deepcopy(model.state_dict())
    outputs = []
    model.register_forward_hook(lambda *args: outputs.append(args[2][0]))
    evaluate_pretext(model.train(), [data[:]])
    assert not model.training
    assert not outputs[0].requires_grad
    for name, parameter in model.named_parameters():
        assert parameter.equal(before[name])
        assert parameter.grad is None
    with pytest.raises(ValueError, match="at least one batch, got none"):
        evaluate_pretext(model, [])


class Stop(Exception):
    pass


def stop_after(batches):
    """A mix that changes nothing and interrupts the run."""
    left = itertools.count(batches, -1)

    def mix(images, targets):
        if next(left) == 0:
            raise Stop
        return images, targets

    return mix


def pretrain(method, epochs=3, **options):
    torch.manual_seed(4)
    model, data = pretext(method, dropout=0.1)
    history = fit(
        model,
        DataLoader(data, batch_size=5, shuffle=True),
        DataLoader(data, batch_size=12),
        epochs=epochs,
        loss_fn=model.loss,
        evaluate_fn=evaluate_pretext,
        **options,
    )
    weights = nn.utils.parameters_to_vector(model.parameters())
    return history, weights.detach()


@each_method
def test_a_run_that_was_interrupted_ends_with_the_same_bits(method, tmp_path):
    expected = pretrain(method)
    options = {"checkpoint": tmp_path / "a.pt"}
    with pytest.raises(Stop):
        pretrain(method, mix=stop_after(4), **options)
    history, weights = pretrain(method, **options)
    assert history == expected[0]
    assert weights.equal(expected[1])


@each_method
def test_both_learn_what_12_images_look_like(method):
    history, _ = pretrain(method, epochs=15, learning_rate=1e-2)
    assert history.test_loss[-1] < 0.9 * history.test_loss[0]
    assert history.test_accuracy[-1] > history.test_accuracy[0]
