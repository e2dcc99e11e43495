"""Chapter 10."""

import copy
import io
import re

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import has_all_gradients, random, randomize
from torch import nn
from torchvision.models.vision_transformer import ConvStemConfig

from vit_lessons import (
    ConvStem,
    HybridVisionTransformer,
    VisionTransformer,
)

NO_GAP = {"rtol": 0, "atol": 1e-10}
SMALL = {
    "img_size": (16, 24),
    "patch_size": 8,
    "in_chans": 3,
    "num_classes": 7,
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 3,
    "stem_widths": (2, 5, 9),
}
MODES = ["training", "evaluation"]
each_mode = pytest.mark.parametrize("mode", MODES)


def redraw(module, mode="training"):
    """Random parameters and, unlike fresh ones, random statistics."""
    randomize(module)
    generator = torch.Generator().manual_seed(4)
    for name, value in module.named_buffers():
        if name.endswith("running_mean"):
            value.normal_(generator=generator)
        if name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
    return module.train(mode == "training")


def stem_of(*args, mode="training", **options):
    return redraw(ConvStem(*args, **options), mode)


def model_of(mode="training", **options):
    return redraw(HybridVisionTransformer(**{**SMALL, **options}), mode)


def images_for(model, batch=2):
    return random(batch, model.in_chans, *model.img_size)


# The same stem written otherwise.


def stem_by_hand(stem, images):
    """Convolutions as products of matrices, statistics by their definition."""
    x = images
    for conv, norm, _ in stem.backbone:
        height, width = x.shape[2:]
        columns = F.unfold(F.pad(x, (1, 1, 1, 1)), 3, stride=2)
        x = (conv.weight.flatten(1) @ columns).unflatten(
            2, (height // 2, width // 2)
        )
        mean, var = norm.running_mean, norm.running_var
        if stem.training:
            pixels = x.transpose(0, 1).flatten(1)  # (D, B * h * w)
            mean, var = pixels.mean(1), pixels.var(1, correction=0)
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        x = x * norm.weight[:, None, None] + norm.bias[:, None, None]
        x = x.clamp(min=0)
    places = x.flatten(2).transpose(1, 2)
    return places @ stem.proj.weight[:, :, 0, 0].T + stem.proj.bias


SIZES = {
    "P = 2": ((2, 3, 5), {}, (2, 3, 6, 8)),
    "P = 4": ((4, 3, 8), {}, (2, 3, 8, 12)),
    "P = 8": ((8, 3, 8), {}, (2, 3, 24, 16)),
    "P = 16": ((16, 3, 8), {}, (2, 3, 16, 48)),
    "one channel": ((4, 1, 8), {}, (3, 1, 12, 4)),
    "four channels": ((4, 4, 8), {}, (1, 4, 4, 8)),
    "own widths": ((4, 3, 8), {"widths": (7, 5)}, (2, 3, 12, 8)),
    "a pair": (((4, 4), 3, 8), {}, (2, 3, 8, 12)),
    "one token an image": ((2, 1, 1), {}, (2, 1, 2, 2)),
}
each_size = pytest.mark.parametrize(
    ("sizes", "options", "shape"), SIZES.values(), ids=SIZES.keys()
)


@each_size
def test_images_become_tokens(sizes, options, shape):
    patch_size, _, embed_dim = sizes
    p = patch_size if isinstance(patch_size, int) else patch_size[0]
    batch, _, height, width = shape
    tokens = stem_of(*sizes, **options)(random(*shape))
    assert tokens.shape == (batch, (height // p) * (width // p), embed_dim)


@each_mode
@each_size
def test_the_stem_equals_products_of_matrices(sizes, options, shape, mode):
    stem, images = stem_of(*sizes, **options, mode=mode), random(*shape)
    expected = stem_by_hand(stem, images)
    torch.testing.assert_close(stem(images), expected, **NO_GAP)


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.tuples(st.integers(1, 3), st.integers(2, 3)),
    st.integers(1, 4),
    st.sampled_from(MODES),
    st.data(),
)
@settings(deadline=None, max_examples=25)
def test_a_drawn_stem_equals_products_of_matrices(
    halvings, batch, grid, in_chans, mode, data
):
    p = 2**halvings
    widths = data.draw(
        st.lists(st.integers(1, 6), min_size=halvings, max_size=halvings)
    )
    stem = stem_of(p, in_chans, 5, widths=widths, mode=mode)
    images = random(batch, in_chans, grid[0] * p, grid[1] * p)
    expected = stem_by_hand(stem, images)
    torch.testing.assert_close(stem(images), expected, **NO_GAP)


def test_the_tokens_go_row_by_row():
    stem, images = stem_of(4, 3, 8, mode="evaluation"), random(2, 3, 8, 12)
    grid = stem.proj(stem.backbone(images))  # (B, D, gh, gw)
    tokens = stem(images)
    for row in range(2):
        for column in range(3):
            token = tokens[:, 3 * row + column]
            torch.testing.assert_close(token, grid[:, :, row, column])


def timm_stem(in_chans, widths, embed_dim, img_size):
    """timm's patches of 1 x 1 behind the convolutions of Xiao et al."""
    backbone = nn.Sequential(
        *(
            nn.Sequential(
                nn.Conv2d(before, width, 3, 2, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )
            for before, width in zip((in_chans, *widths), widths, strict=False)
        )
    )
    return timm.layers.HybridEmbed(
        backbone, img_size, 1, in_chans=in_chans, embed_dim=embed_dim
    )


@each_mode
@pytest.mark.parametrize("widths", [(5,), (4, 6), (2, 5, 9)])
def test_the_stem_equals_timm_with_its_weights(widths, mode):
    p, img_size = 2 ** len(widths), (16, 24)
    theirs = redraw(timm_stem(3, widths, 12, img_size), mode)
    ours = stem_of(p, 3, 12, widths=widths, mode=mode)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = random(2, 3, *img_size)
    torch.testing.assert_close(ours(images), theirs(images), **NO_GAP)


# The same model as torchvision has.


RENAMES = {
    "class_token": "cls_token",
    "encoder.pos_embedding": "pos_embed",
    "conv_proj.conv_bn_relu_": "patch_embed.backbone.",
    "conv_proj.conv_last": "patch_embed.proj",
    "encoder.layers.encoder_layer_": "blocks.",
    ".ln_1": ".norm1",
    ".self_attention.in_proj_": ".attn.qkv.",
    ".self_attention.out_proj": ".attn.proj",
    ".ln_2": ".norm2",
    ".mlp.0": ".mlp.fc1",
    ".mlp.3": ".mlp.fc2",
    "encoder.ln": "norm",
    "heads.head": "head",
}


def from_torchvision_names(state):
    """The weights of torchvision's model under our names."""
    renamed = {}
    for name, value in state.items():
        for theirs, ours in RENAMES.items():
            name = name.replace(theirs, ours)
        renamed[name] = value
    return renamed


def torchvision_model(img_size, widths, mode):
    stem = [ConvStemConfig(width, kernel_size=3, stride=2) for width in widths]
    model = torchvision.models.VisionTransformer(
        *(img_size, 2 ** len(widths), 2, 3, 12, 30),
        num_classes=7,
        conv_stem_configs=stem,
    )
    return redraw(model, mode)


def like(theirs, img_size, widths, mode):
    """Our model with the weights and statistics of torchvision's."""
    ours = model_of(
        mode,
        img_size=img_size,
        patch_size=2 ** len(widths),
        stem_widths=widths,
        mlp_ratio=2.5,
    )
    state = from_torchvision_names(theirs.state_dict())
    ours.load_state_dict(state, strict=True)
    return ours


each_stem = pytest.mark.parametrize(
    ("img_size", "widths"),
    [(8, (5,)), (8, (6, 4)), (24, (2, 5, 9)), (32, (1, 3, 6, 12))],
)


@each_mode
@each_stem
def test_the_logits_equal_torchvision_with_its_weights(img_size, widths, mode):
    theirs = torchvision_model(img_size, widths, mode)
    ours = like(theirs, img_size, widths, mode)
    images = images_for(ours, batch=3)
    torch.testing.assert_close(ours(images), theirs(images), **NO_GAP)


@each_stem
def test_the_statistics_after_training_equal_torchvision(img_size, widths):
    theirs = torchvision_model(img_size, widths, "training")
    ours = like(theirs, img_size, widths, "training")
    for step in range(3):
        images = random(2, 3, img_size, img_size, seed=step)
        ours(images), theirs(images)
    expected = from_torchvision_names(theirs.state_dict())
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, expected[name], **NO_GAP)
    assert ours.patch_embed.backbone[0][1].num_batches_tracked == 3


# Only the patch embedding differs from the plain model.


def seeded(model, seed=0, **options):
    options = {**SMALL, **options}
    if model is VisionTransformer:
        del options["stem_widths"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model(**options)


def others(model):
    """All that a model stores outside of its patch embedding."""
    return {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith("patch_embed.")
    }


def test_outside_of_the_stem_names_order_and_shapes_are_those_of_the_vit():
    plain, hybrid = (
        [(name, value.shape) for name, value in others(model).items()]
        for model in (seeded(VisionTransformer), model_of())
    )
    assert len(plain) > 20
    assert hybrid == plain


def test_names_and_order_in_the_stem_are_those_of_timm():
    ours = stem_of(4, 3, 8, widths=(6, 5)).state_dict()
    theirs = timm_stem(3, (6, 5), 8, (8, 12)).state_dict()
    assert list(ours) == list(theirs)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("stem_widths", [None, (2, 5, 9)])
def test_of_one_seed_the_encoder_begins_as_that_of_the_vit(seed, stem_widths):
    plain = others(seeded(VisionTransformer, seed))
    hybrid = seeded(HybridVisionTransformer, seed, stem_widths=stem_widths)
    for name, value in others(hybrid).items():
        assert value.equal(plain[name]), name


@each_mode
def test_the_rest_of_the_vit_reads_the_tokens_of_the_stem(mode):
    hybrid = model_of(mode)
    plain = randomize(seeded(VisionTransformer)).train(hybrid.training)
    plain.load_state_dict(others(hybrid), strict=False)
    plain.patch_embed = hybrid.patch_embed
    images = images_for(hybrid)
    assert hybrid(images).equal(plain(images))


def test_a_hybrid_holds_no_weights_of_patches():
    stem = model_of().patch_embed
    assert type(stem) is ConvStem
    assert stem.proj.weight.shape == (12, 9, 1, 1)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_other_arguments_are_those_of_the_vit(pool):
    options = {"pool": pool, "mlp_ratio": 2.5, "qkv_bias": False}
    more = {"num_classes": 0, "drop_path": 0.2, "dropout": 0.1}
    hybrid = model_of(**options, **more)
    plain = seeded(VisionTransformer, **options, **more)
    assert others(hybrid).keys() == others(plain).keys()
    assert hybrid.pool == pool
    assert hybrid.dropout.p == 0.1
    assert hybrid.blocks[-1].drop_path.drop_path == 0.2


def test_a_plain_vit_draws_patches_before_blocks():
    """The weights of chapters 07 to 09 for a seed are what they were."""
    drawn, by_hand = seeded(VisionTransformer), seeded(VisionTransformer, 1)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        drawn.init_weights()
        torch.manual_seed(2)
        nn.init.trunc_normal_(by_hand.pos_embed, std=0.02)
        by_hand.patch_embed.proj.reset_parameters()
        for block in by_hand.blocks:
            layers = (block.attn.qkv, block.attn.proj)
            for layer in (*layers, block.mlp.fc1, block.mlp.fc2):
                nn.init.xavier_uniform_(layer.weight)
    for name, value in drawn.state_dict().items():
        assert value.equal(by_hand.state_dict()[name]), name


# What a token sees.


def alone_and_in_a_batch(model, images):
    alone = torch.cat([model(image[None]) for image in images])
    return alone, model(images)


def test_an_image_alone_gives_the_same_logits_in_evaluation():
    model = model_of("evaluation")
    alone, together = alone_and_in_a_batch(model, images_for(model, batch=3))
    torch.testing.assert_close(alone, together, **NO_GAP)


def test_in_training_the_images_of_a_batch_share_their_statistics():
    model = model_of("training")
    alone, together = alone_and_in_a_batch(model, images_for(model, batch=3))
    assert (alone - together).abs().max() > 1e-3


def test_evaluation_changes_no_statistics():
    model = model_of("evaluation")
    before = copy.deepcopy(model.state_dict())
    model(images_for(model))
    assert all(v.equal(before[n]) for n, v in model.state_dict().items())


def all_positive(stem):
    """No ReLU is in the way of a gradient."""
    stem.eval()
    for value in (*stem.parameters(), *stem.buffers()):
        value.data = value.data.abs()
    for _, norm, _ in stem.backbone:
        norm.running_mean.zero_()
    return stem


@pytest.mark.parametrize("halvings", [1, 2, 3, 4])
def test_a_token_sees_a_square_around_the_first_pixel_of_its_patch(halvings):
    p, side = 2**halvings, 2 ** (halvings + 1) - 1
    stem = all_positive(stem_of(p, 1, 4, widths=[2] * halvings))
    images = random(1, 1, 4 * p, 5 * p).abs().requires_grad_()
    tokens = stem(images)[0].unflatten(0, (4, 5))
    row, column = 2, 3
    (gradient,) = torch.autograd.grad(tokens[row, column].sum(), images)
    rows, columns = (gradient[0, 0] > 0).nonzero().T
    assert len(rows) == side * side
    for places, at in ((rows, row), (columns, column)):
        assert places.min() == at * p - (p - 1)
        assert places.max() == at * p + (p - 1)


@pytest.mark.parametrize("halvings", [1, 2, 3])
@pytest.mark.parametrize("axis", [2, 3])
def test_a_shift_by_a_patch_moves_the_tokens_by_one_place(halvings, axis):
    p, grid = 2**halvings, (5, 6)
    stem = stem_of(p, 3, 8, mode="evaluation")
    images = random(2, 3, 5 * p, 6 * p)

    def tokens(shift):
        moved = stem(images.roll(shift, dims=axis))
        return moved.unflatten(1, grid).movedim(axis - 1, 0)

    before, after = tokens(0), tokens(p)
    # Only the first place sees the padding, before and after the shift.
    torch.testing.assert_close(after[2:], before[1:-1], **NO_GAP)
    assert (after[1] - before[0]).abs().max() > 1e-3
    assert (tokens(1)[2:] - before[1:-1]).abs().max() > 1e-3
    assert (tokens(1) - before).abs().max() > 1e-3


def test_the_regions_of_neighboring_tokens_overlap():
    stem = all_positive(stem_of(4, 1, 4))
    images = random(1, 1, 12, 12).abs()
    other = images.clone()
    other[0, 0, 5, 7] += 1  # in the patch of token (1, 1)
    changed = (stem(other) - stem(images)).abs().amax(-1) > 1e-9
    assert changed[0].unflatten(0, (3, 3)).nonzero().tolist() == [
        [1, 1],
        [1, 2],
        [2, 1],
        [2, 2],
    ]


@each_mode
@pytest.mark.parametrize("patch_size", [2, 4, 8, 16])
def test_gradients_reach_every_parameter_of_the_stem(patch_size, mode):
    stem = stem_of(patch_size, 3, 8, mode=mode)
    for _, norm, _ in stem.backbone:
        nn.init.constant_(norm.bias, 2)  # no ReLU is always 0
    images = random(2, 3, 2 * patch_size, 3 * patch_size)
    assert has_all_gradients(stem, stem(images))


@each_mode
def test_gradients_reach_every_parameter_of_the_model(mode):
    # The key bias moves all scores of a row alike: its gradient is 0.
    model = model_of(mode, qkv_bias=False)
    assert has_all_gradients(model, model(images_for(model)))


# Sizes and first weights.


@pytest.mark.parametrize(
    ("patch_size", "embed_dim", "widths"),
    [
        (2, 5, [5]),
        (4, 12, [6, 12]),
        (8, 64, [16, 32, 64]),
        (16, 768, [96, 192, 384, 768]),
        (16, 12, [1, 3, 6, 12]),
        (32, 96, [6, 12, 24, 48, 96]),
    ],
)
def test_the_widths_double_up_to_that_of_a_token(patch_size, embed_dim, widths):
    with torch.device("meta"):
        stem = ConvStem(patch_size, 3, embed_dim)
    assert [conv.out_channels for conv, *_ in stem.backbone] == widths
    assert [norm.num_features for _, norm, _ in stem.backbone] == widths
    assert stem.proj.weight.shape == (embed_dim, embed_dim, 1, 1)


def count(definition, *args, **options):
    with torch.device("meta"):
        module = definition(*args, **options)
    return sum(p.numel() for p in module.parameters())


def test_the_stem_of_a_base_model_has_4079712_weights():
    # 3 x 3 kernels, two numbers of batch norm a channel, the projection
    kernels = 9 * (3 * 96 + 96 * 192 + 192 * 384 + 384 * 768)
    norms = 2 * (96 + 192 + 384 + 768)
    assert kernels + norms + 768 * 768 + 768 == 4_079_712
    assert count(ConvStem) == 4_079_712


def test_a_base_hybrid_has_the_weights_of_the_vit_but_for_its_embedding():
    patches = 590_592
    assert count(VisionTransformer) == 86_567_656
    assert count(HybridVisionTransformer) == 86_567_656 - patches + 4_079_712


def test_the_stem_of_a_small_model_has_exactly_its_weights():
    assert count(ConvStem, 4, 3, 8, widths=(6, 5)) == (
        9 * (3 * 6 + 6 * 5) + 2 * (6 + 5) + 5 * 8 + 8
    )


def test_the_convolutions_have_no_bias_and_the_projection_has_one():
    stem = stem_of(8, 3, 8)
    assert all(conv.bias is None for conv, *_ in stem.backbone)
    assert stem.proj.bias.shape == (8,)


def test_fresh_logits_are_exactly_0():
    model = seeded(HybridVisionTransformer).double()
    assert not model(images_for(model)).any()


def test_init_weights_draws_all_weights_anew_but_those_of_norms():
    model = model_of()
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    norms = {
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d)
    }
    assert len(norms) == 8  # 3 in the stem, 2 in each block, the last one
    for name, value in model.state_dict().items():
        is_norm = name.startswith(tuple(norms))
        assert value.equal(before[name]) == is_norm, name


def test_init_weights_draws_convolutions_and_linear_layers_by_their_width():
    model = model_of()
    model.init_weights()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):  # as PyTorch draws them
            bound = layer.weight[0].numel() ** -0.5
            assert 0.7 * bound < layer.weight.abs().max() <= bound
        elif isinstance(layer, nn.Linear) and layer is not model.head:
            bound = (6 / sum(layer.weight.shape)) ** 0.5
            assert 0.8 * bound < layer.weight.abs().max() <= bound
            assert not layer.bias.any()


def test_init_weights_draws_the_same_weights_from_the_same_seed():
    first, second, other = model_of(), model_of(), model_of()
    with torch.random.fork_rng():
        for model, seed in ((first, 5), (second, 5), (other, 6)):
            torch.manual_seed(seed)
            model.init_weights()
    for name, value in first.state_dict().items():
        assert value.equal(second.state_dict()[name]), name
    stem, encoder = "patch_embed.backbone.0.0.weight", "blocks.1.mlp.fc1.weight"
    for name in (stem, encoder):
        assert not first.state_dict()[name].equal(other.state_dict()[name])


def test_two_seeds_give_two_stems():
    first, second = (
        seeded(HybridVisionTransformer, seed).patch_embed for seed in (0, 1)
    )
    weights = (stem.backbone[0][0].weight for stem in (first, second))
    assert not next(weights).equal(next(weights))


# Devices and files.


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"img_size": 16, "patch_size": 2, "stem_widths": None},
        {"img_size": (8, 12), "patch_size": 4, "stem_widths": (6, 5)},
        {"img_size": (16, 48), "patch_size": 16, "stem_widths": None},
        {"in_chans": 1},
        {"in_chans": 4},
        {"num_classes": 0},
    ],
)
def test_images_become_logits(options):
    model = model_of(**options)
    classes = options.get("num_classes", 7) or 12
    assert model(images_for(model, batch=5)).shape == (5, classes)


def test_a_saved_model_keeps_its_statistics():
    model = model_of("evaluation")
    other = seeded(HybridVisionTransformer).double().eval()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    images = images_for(model)
    assert model(images).equal(other(images))


def test_a_copy_gives_the_same_logits_and_shares_no_weight():
    model = model_of("evaluation")
    other, images = copy.deepcopy(model), images_for(model)
    assert model(images).equal(other(images))
    assert other.patch_embed.proj.weight is not model.patch_embed.proj.weight


def test_the_model_runs_in_bfloat16():
    model = seeded(HybridVisionTransformer).bfloat16()
    assert model(images_for(model).bfloat16()).dtype == torch.bfloat16


def test_the_model_runs_on_the_meta_device():
    with torch.device("meta"):
        model = HybridVisionTransformer(**SMALL)
        assert model(torch.ones(2, 3, 16, 24)).shape == (2, 7)


# What is refused.


@pytest.mark.parametrize("patch_size", [1, 3, 6, 12, (4, 8), (8, 4), (3, 3)])
def test_a_patch_size_that_is_no_power_of_2_is_refused(patch_size):
    words = "must be a power of 2 from 2 on, the same for height and width, "
    words = re.escape(f"patch_size {words}got {patch_size}")
    with pytest.raises(ValueError, match=words):
        ConvStem(patch_size)
    with pytest.raises(ValueError, match=words):
        HybridVisionTransformer(24, patch_size, num_heads=12)


@pytest.mark.parametrize("patch_size", [0, -4, 4.0, "4", (4, 4, 4)])
def test_a_patch_size_is_an_int_or_a_pair_of_them(patch_size):
    with pytest.raises(ValueError, match=r"^patch_size must be a positive"):
        ConvStem(patch_size)


@pytest.mark.parametrize(
    "widths", [(), (8,), (4, 8, 16), (0, 8), (4, 0), (-1, 8)]
)
def test_widths_that_do_not_fit_the_patch_size_are_refused(widths):
    words = "widths must be 2 positive numbers for patch_size 4, got "
    words = re.escape(f"{words}{list(widths)}")
    with pytest.raises(ValueError, match=words):
        ConvStem(4, widths=widths)
    with pytest.raises(ValueError, match=words):
        HybridVisionTransformer(8, 4, stem_widths=widths)


def test_a_token_too_narrow_for_default_widths_is_refused():
    words = "4 positive numbers for patch_size 16, got [0, 1, 2, 4]"
    with pytest.raises(ValueError, match=re.escape(words)):
        ConvStem(16, embed_dim=4)


@pytest.mark.parametrize(
    "shape",
    [
        (3, 16, 16),  # no batch
        (2, 3, 16),  # no width
        (2, 3, 16, 16, 5),  # one axis too many
        (2, 1, 16, 16),  # another number of channels
        (2, 3, 20, 16),  # 8 does not divide the height
        (2, 3, 16, 17),  # nor the width
    ],
)
def test_the_stem_refuses_other_images(shape):
    words = (
        "images must be (B, 3, H, W) with H a multiple of 8 and W a multiple "
        f"of 8, got {shape}"
    )
    with pytest.raises(ValueError, match=re.escape(words)):
        stem_of(8, 3, 8)(torch.zeros(shape))


@pytest.mark.parametrize(
    "shape",
    [
        (2, 3, 24, 24),  # more places
        (2, 3, 24, 16),  # as many, another grid
        (2, 3, 17, 24),  # one pixel too high
        (2, 1, 16, 24),  # another number of channels
        (3, 16, 24),  # no batch
    ],
)
def test_the_model_refuses_images_of_another_size(shape):
    words = re.escape(f"must be (B, 3, 16, 24), got {shape}")
    with pytest.raises(ValueError, match=rf"{words}.*resize_pos_embed"):
        model_of()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"img_size": (20, 24)}, "patch_size, got (20, 24) and (8, 8)"),
        ({"img_size": (16, 25)}, "patch_size, got (16, 25) and (8, 8)"),
        ({"in_chans": 0}, "got 0, 12 and 7"),
        ({"num_heads": 5}, "dim=12 and num_heads=5"),
        ({"pool": "max"}, 'pool must be "cls" or "mean", got \'max\''),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        HybridVisionTransformer(**{**SMALL, **options})


def test_an_argument_that_the_vit_does_not_take_is_refused():
    with pytest.raises(TypeError, match="widths"):
        HybridVisionTransformer(**SMALL, widths=(2, 5, 9))
