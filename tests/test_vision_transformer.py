"""Chapter 07."""

import copy
import io
import pickle
import re

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import has_all_gradients, random, randomize, tokens_that_change
from torch import nn

from vit_lessons import (
    VIT_PRESETS,
    VisionTransformer,
    pool,
    resize_pos_embed,
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
CONFIGURATIONS = {
    "all sizes different": {},
    "square": {"img_size": 8, "patch_size": 4},
    "one channel": {"in_chans": 1},
    "four channels": {"in_chans": 4},
    "one block": {"depth": 1},
    "one head": {"num_heads": 1},
    "one patch": {"img_size": (3, 4)},
    "80 patches": {"img_size": (24, 40)},
    "no qkv bias": {"qkv_bias": False},
    "mlp_ratio 2.5": {"mlp_ratio": 2.5},
    "no head": {"num_classes": 0},
}
each_configuration = pytest.mark.parametrize(
    "options", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys()
)
each_pool = pytest.mark.parametrize("mode", ["cls", "mean"])


def model_of(**options):
    return randomize(VisionTransformer(**{**SMALL, **options}))


def images_for(model, batch=2):
    (gh, gw), (p1, p2) = model.grid_size, model.patch_embed.patch_size
    channels = model.patch_embed.proj.in_channels
    return random(batch, channels, gh * p1, gw * p2)


def timm_model(pool="cls", drop_path=0.0, **options):
    how = {"cls": {}, "mean": {"global_pool": "avg", "fc_norm": False}}[pool]
    options = {**SMALL, **options, "drop_path_rate": drop_path}
    model = timm.models.VisionTransformer(**options, **how)
    return randomize(model).eval()


def like(theirs, **options):
    """Our model with the weights of timm's, not one name changed."""
    ours = VisionTransformer(**{**SMALL, **options}).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours


RENAMES = {
    "class_token": "cls_token",
    "encoder.pos_embedding": "pos_embed",
    "conv_proj": "patch_embed.proj",
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
    """The weights of torchvision's model under timm's names."""
    renamed = {}
    for name, value in state.items():
        for theirs, ours in RENAMES.items():
            name = name.replace(theirs, ours)
        renamed[name] = value
    return renamed


# The same model as other libraries have.


@each_pool
@each_configuration
def test_the_logits_equal_timm_with_its_weights(options, mode):
    theirs = timm_model(mode, **options)
    ours = like(theirs, pool=mode, **options)
    images = images_for(ours)
    torch.testing.assert_close(ours(images), theirs(images), **NO_GAP)


@each_configuration
def test_the_tokens_equal_timm_with_its_weights(options):
    theirs = timm_model(**options)
    ours = like(theirs, **options)
    images = images_for(ours)
    expected = theirs.forward_features(images)
    torch.testing.assert_close(
        ours.forward_features(images), expected, **NO_GAP
    )


SIDES = st.tuples(*[st.integers(1, 3) for _ in range(4)])


@given(
    SIDES, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.data()
)
@settings(deadline=None, max_examples=15)
def test_a_drawn_model_equals_timm(sides, in_chans, depth, heads, data):
    gh, gw, p1, p2 = sides
    options = {
        "img_size": (gh * p1, gw * p2),
        "patch_size": (p1, p2),
        "in_chans": in_chans,
        "num_classes": data.draw(st.integers(0, 4)),
        "embed_dim": heads * data.draw(st.integers(1, 4)),
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": data.draw(st.sampled_from([1, 2.5, 4])),
        "qkv_bias": data.draw(st.booleans()),
    }
    mode = data.draw(st.sampled_from(["cls", "mean"]))
    theirs = timm_model(mode, **options)
    ours = like(theirs, pool=mode, **options)
    images = images_for(ours)
    torch.testing.assert_close(ours(images), theirs(images), **NO_GAP)


@pytest.mark.parametrize("img_size", [8, 36])
def test_the_logits_equal_torchvision_with_its_weights(img_size):
    theirs = torchvision.models.VisionTransformer(
        img_size, 4, 2, 3, 12, 30, num_classes=7
    )
    theirs = randomize(theirs).eval()
    sizes = {"img_size": img_size, "patch_size": 4, "mlp_ratio": 2.5}
    ours = VisionTransformer(**{**SMALL, **sizes}).double()
    ours.load_state_dict(from_torchvision_names(theirs.state_dict()))
    images = images_for(ours)
    torch.testing.assert_close(ours(images), theirs(images), **NO_GAP)


def test_the_logits_equal_torchvision_for_an_image_that_is_not_square():
    # Its model refuses such an image, and its parts do not.
    theirs = torchvision.models.VisionTransformer(
        12, 4, 2, 3, 12, 30, num_classes=7
    )
    tokens = 1 + 3 * 5
    theirs.encoder.pos_embedding = nn.Parameter(torch.zeros(1, tokens, 12))
    theirs = randomize(theirs).eval()
    sizes = {"img_size": (12, 20), "patch_size": 4, "mlp_ratio": 2.5}
    ours = VisionTransformer(**{**SMALL, **sizes}).double()
    ours.load_state_dict(from_torchvision_names(theirs.state_dict()))
    images = images_for(ours)
    patches = theirs.conv_proj(images).flatten(2).transpose(1, 2)
    token = theirs.class_token.expand(len(images), -1, -1)
    encoded = theirs.encoder(torch.cat([token, patches], dim=1))
    expected = theirs.heads(encoded[:, 0])
    torch.testing.assert_close(ours(images), expected, **NO_GAP)


@each_configuration
def test_names_order_and_shapes_are_those_of_timm(options):
    ours, theirs = (
        [(name, p.shape) for name, p in model.state_dict().items()]
        for model in (model_of(**options), timm_model(**options))
    )
    assert ours == theirs


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_drop_path_rises_as_in_timm(depth):
    theirs = timm_model(drop_path=0.2, depth=depth)
    ours = model_of(drop_path=0.2, depth=depth)
    rates = [block.drop_path.drop_path for block in ours.blocks]
    expected = [getattr(b.drop_path1, "drop_prob", 0.0) for b in theirs.blocks]
    assert rates == pytest.approx(expected, abs=1e-7)


# What the model computes.


@each_configuration
def test_images_become_logits(options):
    model = model_of(**options)
    classes = options.get("num_classes", 7) or 12
    assert model(images_for(model, batch=5)).shape == (5, classes)


@pytest.mark.parametrize("img_size", [(12, 20), (24, 40)])
@each_pool
def test_the_trimmed_last_block_gives_the_same_logits(mode, img_size):
    model = model_of(pool=mode, img_size=img_size)
    images = images_for(model)
    expected = model.head(pool(model.forward_features(images), mode))
    torch.testing.assert_close(model(images), expected, **NO_GAP)


@pytest.mark.parametrize("num_queries", [1, 3])
def test_num_queries_gives_the_first_tokens(num_queries):
    model = model_of()
    images = images_for(model)
    torch.testing.assert_close(
        model.forward_features(images, num_queries=num_queries),
        model.forward_features(images)[:, :num_queries],
        **NO_GAP,
    )


def test_the_mean_leaves_out_the_class_token():
    model = model_of(pool="mean")
    model.norm = nn.Identity()
    tokens = random(2, 21, 12)
    model.forward_features = lambda images, num_queries: tokens
    expected = model.head(tokens[:, 1:].mean(1))
    assert model(images_for(model)).equal(expected)


def test_without_a_head_the_model_returns_what_the_head_would_read():
    with_head = model_of()
    without = VisionTransformer(**{**SMALL, "num_classes": 0}).double()
    state = with_head.state_dict()
    del state["head.weight"], state["head.bias"]
    without.load_state_dict(state)
    images = images_for(with_head)
    features = without(images)
    torch.testing.assert_close(
        with_head.head(features), with_head(images), **NO_GAP
    )


def shuffled(images, p1, p2):
    """The same patches in other places."""
    patches = images.unfold(2, p1, p1).unfold(3, p2, p2)
    gh, gw = patches.shape[2:4]
    order = torch.randperm(gh * gw, generator=torch.Generator().manual_seed(0))
    patches = patches.flatten(2, 3)[:, :, order].unflatten(2, (gh, gw))
    return patches.permute(0, 1, 2, 4, 3, 5).reshape(images.shape)


@each_pool
def test_only_positions_tell_shuffled_patches_apart(mode):
    model = model_of(pool=mode)
    images = images_for(model)
    other = shuffled(images, 3, 4)
    assert (model(images) - model(other)).abs().max() > 1e-3
    nn.init.zeros_(model.pos_embed)
    torch.testing.assert_close(model(images), model(other), **NO_GAP)


@each_pool
def test_an_image_alone_gives_the_same_logits_as_in_a_batch(mode):
    model = model_of(pool=mode)
    images = images_for(model, batch=3)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(alone, model(images), **NO_GAP)


def test_every_token_sees_every_patch_of_its_own_image():
    model = model_of()
    patch = (1, slice(None), slice(3, 6), slice(4, 8))
    changed = tokens_that_change(
        model.forward_features, images_for(model), patch
    )
    assert changed == [[1, token] for token in range(21)]


def test_dropout_follows_the_positions():
    model = model_of(dropout=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        zeros = (model.embed(images_for(model)) == 0).double().mean()
    assert 0.4 < zeros < 0.6


def test_dropout_reaches_every_block():
    layers = [m for m in model_of(dropout=0.5).modules() if hasattr(m, "p")]
    assert [layer.p for layer in layers] == [0.5] * 5  # 2 in each block


@pytest.mark.parametrize("option", ["dropout", "drop_path"])
def test_nothing_is_dropped_in_evaluation(option):
    model = model_of(**{option: 0.5})
    images = images_for(model, batch=8)
    expected = model_of()(images)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not model(images).equal(expected)
    assert model.eval()(images).equal(expected)


@each_pool
def test_gradients_reach_every_parameter(mode):
    # The key bias moves all scores of a row alike: its gradient is 0.
    model = model_of(pool=mode, qkv_bias=False)
    assert has_all_gradients(model, model(images_for(model)))


# Fresh weights.


def fresh(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VisionTransformer(**{**SMALL, **options})


def test_fresh_logits_are_exactly_0():
    model = fresh().double()
    assert not model(images_for(model)).any()


def test_the_fresh_class_token_and_all_fresh_biases_of_layers_are_0():
    model = fresh()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert not model.cls_token.any()
    assert not any(layer.bias.any() for layer in linear)


def test_fresh_positions_have_std_002():
    positions = fresh(embed_dim=240).pos_embed
    assert 0.019 < positions.std() < 0.021
    assert abs(positions.mean()) < 0.002


def test_fresh_matrices_are_drawn_by_their_width():
    for dim in (12, 48):
        block = fresh(embed_dim=dim).blocks[0]
        for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1):
            bound = (6 / sum(layer.weight.shape)) ** 0.5
            assert 0.9 * bound < layer.weight.abs().max() <= bound


def test_two_fresh_blocks_differ():
    first, second = fresh().blocks
    assert not first.attn.qkv.weight.equal(second.attn.qkv.weight)
    assert not first.mlp.fc1.weight.equal(second.mlp.fc1.weight)


def test_init_weights_draws_all_weights_anew():
    model = model_of()
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    norms = ("norm.", "norm1.", "norm2.")
    for name, value in model.state_dict().items():
        if not any(norm in name for norm in norms):
            assert not value.equal(before[name]), name


# Sizes, devices, files.


def test_the_way_of_pooling_changes_no_parameter():
    cls, mean = model_of(pool="cls"), model_of(pool="mean")
    mean.load_state_dict(cls.state_dict(), strict=True)
    images = images_for(cls)
    assert not torch.allclose(cls(images), mean(images))


def test_a_model_for_larger_images_takes_a_resized_table():
    small, large = model_of(), model_of(img_size=(18, 12))
    state = small.state_dict()
    state["pos_embed"] = resize_pos_embed(state["pos_embed"], (4, 5), (6, 3))
    large.load_state_dict(state, strict=True)
    images = images_for(large)
    theirs = timm_model(img_size=(18, 12))
    theirs.load_state_dict(state)
    torch.testing.assert_close(large(images), theirs(images), **NO_GAP)


def test_a_saved_model_gives_the_same_logits():
    model, other = model_of(), fresh().double()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    images = images_for(model)
    assert model(images).equal(other(images))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_a_copy_gives_the_same_logits_and_shares_no_weight(copied):
    model = model_of()
    other, images = copied(model), images_for(model)
    assert model(images).equal(other(images))
    assert other.pos_embed is not model.pos_embed


@pytest.mark.parametrize("img_size", [(12, 20), (24, 40)])
def test_the_model_runs_in_bfloat16(img_size):
    model = fresh(img_size=img_size).bfloat16()
    images = images_for(model).bfloat16()
    assert model(images).dtype == torch.bfloat16


def test_the_model_runs_on_the_meta_device():
    with torch.device("meta"):
        model = VisionTransformer(**SMALL)
        assert model(torch.ones(2, 3, 12, 20)).shape == (2, 7)


def test_presets_have_the_names_and_sizes_of_timm():
    assert list(VIT_PRESETS) == [
        "vit_tiny_patch16_224",
        "vit_small_patch16_224",
        "vit_base_patch16_224",
        "vit_large_patch16_224",
        "vit_huge_patch14_224",
    ]
    for preset in VIT_PRESETS.values():
        assert preset["embed_dim"] // preset["num_heads"] in (64, 80)


# What is refused.


@pytest.mark.parametrize(
    "shape",
    [
        (2, 3, 24, 40),  # more patches
        (2, 3, 12, 16),  # fewer
        (2, 3, 15, 16),  # as many patches, another grid
        (2, 3, 20, 12),  # the other way round
        (2, 3, 13, 20),  # one pixel too high
        (2, 1, 12, 20),  # another number of channels
        (3, 12, 20),  # no batch
    ],
)
def test_images_of_another_size_are_refused(shape):
    words = re.escape(f"must be (B, 3, 12, 20), got {shape}")
    with pytest.raises(ValueError, match=rf"{words}.*resize_pos_embed"):
        fresh()(torch.zeros(shape))


def test_as_many_patches_of_another_grid_are_refused():
    model = fresh(img_size=32, patch_size=4)
    with pytest.raises(ValueError, match=re.escape("got (1, 3, 16, 64)")):
        model(torch.zeros(1, 3, 16, 64))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"img_size": (13, 20)}, "patch_size, got (13, 20) and (3, 4)"),
        ({"img_size": (12, 21)}, "patch_size, got (12, 21) and (3, 4)"),
        ({"img_size": 0}, "img_size"),
        ({"patch_size": 0}, "patch_size"),
        ({"pool": "max"}, 'pool must be "cls" or "mean", got \'max\''),
        ({"depth": 0}, "depth must be at least 1"),
        ({"embed_dim": 0}, "got 3, 0 and 7"),
        ({"in_chans": 0}, "got 0, 12 and 7"),
        ({"num_classes": -1}, "got 3, 12 and -1"),
        ({"depth": 1, "drop_path": -0.5}, "got 1 and -0.5"),
        ({"num_heads": 5}, "dim=12 and num_heads=5"),
        ({"mlp_ratio": 0}, "dim=12 and mlp_ratio=0"),
        ({"drop_path": 1.0}, "drop_path < 1, got 2 and 1.0"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        VisionTransformer(**{**SMALL, **options})
