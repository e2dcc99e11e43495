"""Chapter 16."""

import copy
import functools
import itertools
import math
import re

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import has_all_gradients, random, randomize, tokens_that_change
from safetensors.torch import save_file
from timm.models import swin_transformer as timm_swin
from torch import nn
from torchvision.models import swin_transformer as torchvision_swin
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FeaturePyramidNetwork

from vit_lessons import (
    SWIN_PRESETS,
    PatchMerging,
    SwinBlock,
    SwinPatchEmbed,
    SwinStage,
    SwinTransformer,
    create_model,
    fit,
    layerwise_learning_rates,
    list_models,
    load_pretrained,
    swin_from_torchvision,
)

NO_GAP = {"rtol": 0, "atol": 1e-10}
SMALL = {  # maps of 12 x 20, 6 x 10 and 3 x 5: windows tile them
    "img_size": (24, 40),
    "patch_size": 2,
    "in_chans": 3,
    "num_classes": 7,
    "embed_dim": 8,
    "depths": (2, 3, 1),
    "num_heads": (2, 1, 4),
    "window_size": (3, 5),
}
TILED = {
    "all sizes different": {},
    "a square window": {"img_size": (16, 32), "window_size": 4},
    "the smallest window": {"img_size": (32, 16), "window_size": 2},
    "windows of 1": {"window_size": 1},
    "one window": {"window_size": (12, 20)},
    "a patch that is not square": {"img_size": (24, 20), "patch_size": (2, 1)},
    "one channel": {"in_chans": 1},
    "two channels": {"in_chans": 2},
    "four channels": {"in_chans": 4},
    "one stage": {"depths": (3,), "num_heads": (2,)},
    "four stages": {
        "img_size": (48, 80),
        "depths": (1, 2, 1, 2),
        "num_heads": (1, 2, 2, 4),
    },
    "no qkv bias": {"qkv_bias": False},
    "mlp_ratio 2.5": {"mlp_ratio": 2.5},
    "no head": {"num_classes": 0},
}
PADDED = {
    "windows of all stages are padded": {"img_size": (26, 38)},
    "odd maps are merged": {"img_size": (10, 14)},
    "the last window is cut on one side": {
        "img_size": (22, 32),
        "window_size": 4,
        "depths": (2, 2, 2),
    },
    "a token is left": {"img_size": (2, 6)},
    "one pixel a patch": {"img_size": (7, 11), "patch_size": 1},
}
each_tiled = pytest.mark.parametrize("options", TILED.values(), ids=TILED)
each_padded = pytest.mark.parametrize("options", PADDED.values(), ids=PADDED)


def model_of(**options):
    return randomize(SwinTransformer(**{**SMALL, **options}))


def images_for(model, *size, batch=2):
    height, width = size or SMALL["img_size"]
    return random(batch, model.patch_embed.proj.in_channels, height, width)


class PaddedFirst(timm_swin.SwinTransformerBlock):
    """timm's block, made to pad the map before it is rolled, not after.

    Its mask is made for this order. In the other one, tokens of opposite
    borders see each other; see huggingface/pytorch-image-models, issue 2438.
    """

    def _attn(self, x):
        m1, m2 = self.window_size
        padding = (0, 0, 0, -x.shape[2] % m2, 0, -x.shape[1] % m1)
        padded = nn.functional.pad(x, padding)
        return super()._attn(padded)[:, : x.shape[1], : x.shape[2]]


def pad_first(theirs):
    for module in theirs.modules():
        if isinstance(module, timm_swin.SwinTransformerBlock):
            module.__class__ = PaddedFirst
    return theirs


def timm_of(drop_path=0.0, **options):
    theirs = timm_swin.SwinTransformer(
        **{**SMALL, **options}, drop_path_rate=drop_path
    )
    return randomize(theirs, seed=5).eval()


def torchvision_of(window_size=(3, 5), in_chans=3, drop_path=0.0):
    theirs = torchvision_swin.SwinTransformer(
        [2, 2], 8, [2, 3, 1], [2, 1, 4], [*window_size], num_classes=7,
        stochastic_depth_prob=drop_path,
    )  # fmt: skip
    return randomize(theirs, seed=5).eval()


def assert_same_with_gradients(ours, theirs, images):
    """ours has timm's names, so that gradients can be compared by name."""
    ours.load_state_dict(theirs.state_dict(), strict=True)
    logits, expected = ours(images), theirs(images)
    torch.testing.assert_close(logits, expected, **NO_GAP)
    for out in logits, expected:
        (out * random(*out.shape, seed=3)).sum().backward()
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, grads[name], rtol=1e-10, atol=1e-10
        )


# The same model as other libraries have.


@each_tiled
def test_logits_and_gradients_equal_timm_with_its_weights(options):
    theirs, ours = timm_of(**options), model_of(**options)
    size = options.get("img_size", SMALL["img_size"])
    assert_same_with_gradients(ours, theirs, images_for(ours, *size))


@each_padded
def test_padded_maps_give_what_timm_gives_if_it_pads_before_it_rolls(options):
    theirs, ours = pad_first(timm_of(**options)), model_of(**options)
    assert_same_with_gradients(
        ours, theirs, images_for(ours, *options["img_size"])
    )


@each_padded
def test_without_a_shift_padded_maps_give_what_timm_gives(options):
    options = {**options, "depths": (1, 1, 1)}
    theirs, ours = timm_of(**options), model_of(**options)
    assert_same_with_gradients(
        ours, theirs, images_for(ours, *options["img_size"])
    )


SIZES = [(2, 2), (2, 18), (14, 4), (10, 14), (22, 32), (24, 40), (30, 50)]


@pytest.mark.parametrize("window_size", [(3, 5), (4, 2), (2, 2)])
@pytest.mark.parametrize("size", SIZES)
def test_images_of_any_size_give_what_torchvision_gives(size, window_size):
    theirs = torchvision_of(window_size)
    ours = model_of(img_size=64, window_size=window_size)
    ours.load_state_dict(swin_from_torchvision(theirs.state_dict()))
    images = images_for(ours, *size)
    torch.testing.assert_close(ours(images), theirs(images), **NO_GAP)


@functools.cache
def preset_with_logits(name):
    """The model, an image, and its logits, which several tests need."""
    model = randomize(create_model(name)).eval()
    images = images_for(model, 224, 224, batch=1)
    with torch.no_grad():
        return model, images, model(images)


def relative_gap(one, other):
    return ((one - other).abs().max() / other.abs().max()).item()


def to_torchvision(state):
    """Our weights under torchvision's names, read backwards."""
    renamed = {}
    for name, value in state.items():
        name = name.replace("head.fc.", "head.")
        name = name.replace("patch_embed.proj.", "features.0.0.")
        name = name.replace("patch_embed.norm.", "features.0.2.")
        name = name.replace("mlp.fc1.", "mlp.0.").replace("mlp.fc2.", "mlp.3.")
        words = name.split(".")
        if words[0] == "layers":
            place = 2 * int(words[1]) + (words[2] == "blocks")
            name = ".".join(["features", str(place), *words[3:]])
        renamed[name] = value
    return renamed


@functools.cache
def torchvision_preset(size):
    theirs = getattr(torchvision.models, f"swin_{size[0]}")().double().eval()
    state = preset_with_logits(f"swin_{size}_patch4_window7_224")[
        0
    ].state_dict()
    report = theirs.load_state_dict(to_torchvision(state), strict=False)
    assert not report.unexpected_keys
    assert all(
        name.endswith("relative_position_index") for name in report.missing_keys
    )
    return theirs


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_a_preset_gives_what_torchvision_gives(size):
    _, images, logits = preset_with_logits(f"swin_{size}_patch4_window7_224")
    with torch.no_grad():
        assert relative_gap(logits, torchvision_preset(size)(images)) < 1e-10


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_a_preset_gives_what_timm_gives(size):
    name = f"swin_{size}_patch4_window7_224"
    model, images, logits = preset_with_logits(name)
    theirs = timm.create_model(name).double().eval()
    theirs.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        assert relative_gap(logits, theirs(images)) < 1e-10


@pytest.mark.parametrize(
    "size", [(192, 256), (200, 264), (100, 36), (68, 148), (4, 4)]
)
def test_the_smallest_preset_gives_what_torchvision_gives_at_any_size(size):
    model, *_ = preset_with_logits("swin_tiny_patch4_window7_224")
    images = images_for(model, *size, batch=1)
    with torch.no_grad():
        expected = torchvision_preset("tiny")(images)
        assert relative_gap(model(images), expected) < 1e-10


@pytest.mark.parametrize(
    ("size", "last_window"),
    [((112, 448), (4, 7)), ((192, 256), (6, 7)), ((224, 448), (7, 7))],
)
def test_the_smallest_preset_gives_what_timm_gives_at_its_size(
    size, last_window
):
    name = "swin_tiny_patch4_window7_224"
    theirs = timm.create_model(name, img_size=size)
    theirs = randomize(theirs).eval()
    if size == (192, 256):  # its maps need padding, those of the others do not
        pad_first(theirs)
    ours = create_model(name, img_size=size).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert ours.layers[3].blocks[0].attn.window_size == last_window
    images = images_for(ours, *size, batch=1)
    with torch.no_grad():
        assert relative_gap(ours(images), theirs(images)) < 1e-10


# The forward pass, written out.


def layer_norm(x, w, name):
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def cuts(length, side, shift):
    """Where windows begin and end. A shift makes the first one smaller."""
    shift = 0 if side == length else shift
    edges = {0, *range(shift, length, side), length}
    return itertools.pairwise(sorted(edges))


def attend(x, w, name, heads, window, shifted):
    """Windows one by one, with neither a roll nor a mask."""
    (m1, m2), (gh, gw) = window, x.shape[1:3]
    size = math.ceil(gh / m1) * m1, math.ceil(gw / m2) * m2
    padded = x.new_zeros(len(x), *size, x.shape[3])
    padded[:, :gh, :gw] = x
    out = torch.empty_like(padded)
    table = w[f"{name}.relative_position_bias_table"]
    rows = cuts(size[0], m1, shifted * (m1 // 2))
    columns = cuts(size[1], m2, shifted * (m2 // 2))
    for (top, bottom), (left, right) in itertools.product(rows, [*columns]):
        tokens = padded[:, top:bottom, left:right].flatten(1, 2)
        q, k, v = linear(tokens, w, f"{name}.qkv").chunk(3, -1)
        q, k, v = (t.unflatten(2, (heads, -1)) for t in (q, k, v))
        scores = torch.einsum("bihd,bjhd->bijh", q, k) / math.sqrt(q.shape[3])
        places = [*itertools.product(range(bottom - top), range(right - left))]
        for (i, one), (j, other) in itertools.product(
            enumerate(places), repeat=2
        ):
            down, across = one[0] - other[0], one[1] - other[1]
            row = (down + m1 - 1) * (2 * m2 - 1) + across + m2 - 1
            scores[:, i, j] += table[row]
        weights = scores.exp() / scores.exp().sum(2, keepdim=True)
        mixed = torch.einsum("bijh,bjhd->bihd", weights, v).flatten(2)
        mixed = linear(mixed, w, f"{name}.proj")
        shape = bottom - top, right - left
        out[:, top:bottom, left:right] = mixed.unflatten(1, shape)
    return out[:, :gh, :gw]


def merge(x, w, name):
    gh, gw = x.shape[1:3]
    padded = x.new_zeros(len(x), gh + 1, gw + 1, x.shape[3])
    padded[:, :gh, :gw] = x
    parts = [
        padded[:, row : gh + row : 2, column : gw + column : 2]
        for column in (0, 1)
        for row in (0, 1)
    ]
    x = layer_norm(torch.cat(parts, -1), w, f"{name}.norm")
    return x @ w[f"{name}.reduction.weight"].T


def logits_by_hand(w, images, patch, depths, num_heads, windows):
    """Each step written out; nothing of the package is used."""
    patches = images.unfold(2, patch, patch).unfold(3, patch, patch)
    x = torch.einsum("bcyxpq,dcpq->byxd", patches, w["patch_embed.proj.weight"])
    x = x + w["patch_embed.proj.bias"]
    x = layer_norm(x, w, "patch_embed.norm")
    for s, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        if s > 0:
            x = merge(x, w, f"layers.{s}.downsample")
        for i in range(depth):
            name = f"layers.{s}.blocks.{i}"
            y = layer_norm(x, w, f"{name}.norm1")
            x = x + attend(y, w, f"{name}.attn", heads, windows[s], i % 2)
            y = linear(layer_norm(x, w, f"{name}.norm2"), w, f"{name}.mlp.fc1")
            y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
            x = x + linear(y, w, f"{name}.mlp.fc2")
    return linear(layer_norm(x, w, "norm").mean((1, 2)), w, "head.fc")


SIDES = st.tuples(st.integers(1, 7), st.integers(1, 7))


@given(SIDES, SIDES, st.tuples(st.integers(1, 3), st.integers(1, 4)), st.data())
@settings(deadline=None, max_examples=15)
def test_the_logits_equal_the_forward_pass_written_out(
    grid, image_grid, window, data
):
    """The image may have another size than the one that cuts the windows."""
    patch, stages = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    depths, num_heads, windows = [], [], []
    (gh, gw), (m1, m2) = grid, window
    for _ in range(stages):
        depths.append(data.draw(st.integers(1, 2)))
        num_heads.append(data.draw(st.sampled_from([1, 2, 4])))
        windows.append((min(m1, gh), min(m2, gw)))
        gh, gw = math.ceil(gh / 2), math.ceil(gw / 2)
    model = model_of(
        img_size=(grid[0] * patch, grid[1] * patch),
        patch_size=patch,
        embed_dim=4,
        depths=depths,
        num_heads=num_heads,
        window_size=window,
    )
    images = images_for(model, image_grid[0] * patch, image_grid[1] * patch)
    expected = logits_by_hand(
        model.state_dict(), images, patch, depths, num_heads, windows
    )
    torch.testing.assert_close(model(images), expected, **NO_GAP)


# The parts.


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (5, 4), (6, 7)])
def test_four_tokens_become_one_in_the_order_of_columns(size):
    merging, x = randomize(PatchMerging(3)), random(2, *size, 3)
    expected = merge(
        x, {f"m.{n}": v for n, v in merging.state_dict().items()}, "m"
    )
    torch.testing.assert_close(merging(x), expected, **NO_GAP)
    assert merging(x).shape == (2, (size[0] + 1) // 2, (size[1] + 1) // 2, 6)


@pytest.mark.parametrize(
    "theirs", [timm_swin.PatchMerging(3), torchvision_swin.PatchMerging(3)]
)
def test_merging_equals_that_of_other_libraries(theirs):
    ours, x = PatchMerging(3).double(), random(2, 5, 8, 3)
    ours.load_state_dict(randomize(theirs).state_dict(), strict=True)
    torch.testing.assert_close(ours(x), theirs(x), **NO_GAP)


def test_patches_become_a_map_of_normalized_tokens():
    embed = randomize(SwinPatchEmbed((2, 3), 4, 6))
    images = random(2, 4, 10, 9)
    expected = embed.norm(embed.proj(images).permute(0, 2, 3, 1))
    assert expected.shape == (2, 5, 3, 6)
    torch.testing.assert_close(embed(images), expected, **NO_GAP)


def test_a_block_adds_attention_and_then_an_mlp():
    block, x = randomize(SwinBlock(8, 2, (3, 2), (1, 0))), random(2, 5, 4, 8)
    x_mid = x + block.attn(block.norm1(x))
    expected = x_mid + block.mlp(block.norm2(x_mid))
    torch.testing.assert_close(block(x), expected, **NO_GAP)


def test_every_second_block_of_a_stage_is_shifted_by_half_a_window():
    stage = SwinStage(8, 2, (4, 7), drop_path=[0.0] * 5)
    shifts = [block.attn.shift_size for block in stage.blocks]
    assert shifts == [(0, 0), (2, 3), (0, 0), (2, 3), (0, 0)]
    assert {b.attn.window_size for b in stage.blocks} == {(4, 7)}


def test_a_stage_merges_before_its_blocks():
    stage, x = randomize(SwinStage(8, 2, (2, 3))), random(2, 7, 6, 4)
    first, second = stage.blocks
    expected = second(first(stage.downsample(x)))
    assert expected.shape == (2, 4, 3, 8)
    torch.testing.assert_close(stage(x), expected, **NO_GAP)


def test_the_first_stage_does_not_merge():
    model = model_of()
    assert not [*model.layers[0].downsample.parameters()]
    x = random(2, 7, 6, 8)
    assert SwinStage(8, 2, (2, 3), merge=False).double()(x).shape == x.shape


@pytest.mark.parametrize("size", [(4, 5), (3, 5), (2, 1)])
def test_a_window_that_covers_the_map_is_not_shifted(size):
    shifted = randomize(SwinBlock(8, 2, (4, 5), (2, 2)))
    plain = SwinBlock(8, 2, (4, 5)).double()
    plain.load_state_dict(shifted.state_dict())
    assert shifted(random(2, *size, 8)).equal(plain(random(2, *size, 8)))


def test_an_axis_that_the_window_does_not_cover_is_shifted():
    both = randomize(SwinBlock(8, 2, (4, 5), (2, 2)))
    across = SwinBlock(8, 2, (4, 5), (0, 2)).double()
    across.load_state_dict(both.state_dict())
    x = random(2, 4, 9, 8)
    assert both(x).equal(across(x))


def test_no_token_of_a_padded_map_sees_the_opposite_border():
    block = randomize(SwinBlock(8, 2, 4, 2))  # rows 0-1, 2-5, 6 and padding
    changed = tokens_that_change(block, random(1, 7, 7, 8), (0, 0, 0))
    assert changed == [[0, row, column] for row in (0, 1) for column in (0, 1)]


@pytest.mark.parametrize(
    ("img_size", "windows"),
    [
        (224, [(7, 7)] * 4),
        (256, [(7, 7)] * 4),
        ((192, 256), [(7, 7)] * 3 + [(6, 7)]),
        ((256, 100), [(7, 7), (7, 7), (7, 7), (7, 4)]),
        ((32, 160), [(7, 7), (4, 7), (2, 7), (1, 5)]),
    ],
)
def test_windows_are_cut_to_the_maps_along_each_axis(img_size, windows):
    with torch.device("meta"):
        model = SwinTransformer(img_size)
    assert windows == [
        stage.blocks[1].attn.window_size for stage in model.layers
    ]
    assert [stage.blocks[1].attn.shift_size for stage in model.layers] == [
        (m1 // 2, m2 // 2) for m1, m2 in windows
    ]


@pytest.mark.parametrize("depths", [(2, 3, 1), (2, 2, 6, 2), (1, 1), (1,)])
def test_drop_path_rises_over_all_stages_as_in_timm(depths):
    options = {"depths": depths, "num_heads": [1] * len(depths)}
    theirs = timm_of(drop_path=0.2, **options)
    ours = model_of(drop_path=0.2, **options)
    blocks = [block for stage in ours.layers for block in stage.blocks]
    expected = [
        getattr(block.drop_path1, "drop_prob", 0.0)
        for stage in theirs.layers
        for block in stage.blocks
    ]
    rates = [block.drop_path.drop_path for block in blocks]
    assert rates == pytest.approx(expected, abs=1e-7)
    assert rates[-1] == (0.2 if len(blocks) > 1 else 0)


def test_drop_path_skips_each_branch_for_each_image_by_itself():
    block = randomize(SwinBlock(4, 2, 2, drop_path=0.25))
    x = random(1, 2, 3, 4).expand(4000, -1, -1, -1)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        out = block(x)
    counts = []
    for attention, mlp in itertools.product([0, 4 / 3], repeat=2):
        y = x[:1] + attention * block.attn(block.norm1(x[:1]))
        y = y + mlp * block.mlp(block.norm2(y))
        counts.append(((out - y).abs().amax((1, 2, 3)) < 1e-10).sum().item())
    assert sum(counts) == 4000
    for count, share in zip(
        counts, [1 / 16, 3 / 16, 3 / 16, 9 / 16], strict=True
    ):
        assert abs(count - 4000 * share) < 4.5 * (4000 * share) ** 0.5


def test_nothing_is_dropped_in_evaluation():
    model, plain = model_of(drop_path=0.5), model_of()
    images = images_for(model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.isclose(model(images), plain(images)).any()
    expected = plain(images)
    assert model.eval()(images).equal(expected)
    assert model(images).equal(expected)


# The pyramid.


def test_each_map_has_half_the_sides_and_twice_the_features():
    model = model_of()
    for size, sides in {
        (24, 40): [(12, 20), (6, 10), (3, 5)],
        (26, 38): [(13, 19), (7, 10), (4, 5)],
        (2, 6): [(1, 3), (1, 2), (1, 1)],
    }.items():
        shapes = [m.shape for m in model.feature_maps(images_for(model, *size))]
        assert shapes == [
            (2, dim, *side)
            for dim, side in zip((8, 16, 32), sides, strict=True)
        ]


def test_the_maps_equal_those_of_timm():
    options = {**SMALL, "out_indices": (0, 1, 2)}
    del options["num_classes"]
    name = "swin_tiny_patch4_window7_224"
    theirs = timm.create_model(name, features_only=True, **options)
    theirs, ours = randomize(theirs).eval(), model_of()
    weights = {
        name.replace("layers_", "layers."): value
        for name, value in theirs.state_dict().items()
    }
    report = ours.load_state_dict(weights, strict=False)
    assert not report.unexpected_keys
    assert all(n.startswith(("norm", "head")) for n in report.missing_keys)
    images = images_for(ours)
    for one, other in zip(
        ours.feature_maps(images), theirs(images), strict=True
    ):
        torch.testing.assert_close(one, other.permute(0, 3, 1, 2), **NO_GAP)


def test_the_maps_equal_those_of_torchvision():
    theirs, ours = torchvision_of(), model_of(img_size=64)
    ours.load_state_dict(swin_from_torchvision(theirs.state_dict()))
    nodes = ["features.1", "features.3", "features.5"]
    images = images_for(ours, 26, 38)
    expected = create_feature_extractor(theirs, nodes)(images)
    for one, node in zip(ours.feature_maps(images), nodes, strict=True):
        torch.testing.assert_close(
            one, expected[node].permute(0, 3, 1, 2), **NO_GAP
        )


def test_the_last_map_normalized_is_what_the_head_reads_the_mean_of():
    model = model_of()
    images = images_for(model, 26, 38)
    last = model.norm(model.feature_maps(images)[-1].permute(0, 2, 3, 1))
    assert model.forward_features(images).equal(last)
    expected = model.head.fc(last.mean((1, 2)))
    torch.testing.assert_close(model(images), expected, **NO_GAP)


def test_a_feature_pyramid_teaches_every_stage():
    model = model_of(qkv_bias=False)
    pyramid = randomize(FeaturePyramidNetwork([8, 16, 32], 4))
    maps = model.feature_maps(images_for(model, 26, 38))
    out = pyramid({str(i): one for i, one in enumerate(maps)})
    assert [one.shape[1:] for one in out.values()] == [
        (4, 13, 19), (4, 7, 10), (4, 4, 5)
    ]  # fmt: skip
    torch.cat([one.flatten() for one in out.values()]).square().sum().backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert without == {
        "norm.weight",
        "norm.bias",
        "head.fc.weight",
        "head.fc.bias",
    }


# Names, sizes and files.


@pytest.mark.parametrize(
    ("size", "count"),
    [("tiny", 28_288_354), ("small", 49_606_258), ("base", 87_768_224)],
)
def test_a_preset_has_the_names_and_shapes_of_timm(size, count):
    name = f"swin_{size}_patch4_window7_224"
    with torch.device("meta"):
        ours, theirs = create_model(name), timm.create_model(name)
    assert type(ours) is SwinTransformer
    assert sum(p.numel() for p in ours.parameters()) == count
    shapes, expected = (
        [(name, value.shape) for name, value in model.state_dict().items()]
        for model in (ours, theirs)
    )
    assert shapes == expected
    heads, expected = (
        [
            block.attn.num_heads
            for stage in model.layers
            for block in stage.blocks
        ]
        for model in (ours, theirs)
    )
    assert heads == expected
    assert name in SWIN_PRESETS
    assert name in list_models()


def test_there_are_three_presets_and_they_can_be_changed():
    assert len(SWIN_PRESETS) == 3
    with torch.device("meta"):
        model = create_model(
            "swin_base_patch4_window7_224",
            num_classes=3, img_size=384, window_size=12,
        )  # fmt: skip
    assert sum(p.numel() for p in model.parameters()) == (
        87_903_584 - (1000 - 3) * (1024 + 1)  # its head has 1000 classes
    )


@each_tiled
def test_names_order_and_shapes_are_those_of_timm(options):
    ours, theirs = (
        [(name, p.shape) for name, p in model.state_dict().items()]
        for model in (model_of(**options), timm_of(**options))
    )
    assert ours == theirs


def test_the_state_dict_holds_parameters_alone():
    model = model_of()
    names = {name for name, _ in model.named_parameters()}
    assert model.state_dict().keys() == names


def test_every_layer_norm_has_the_eps_of_swin():
    norms = [m for m in model_of().modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 1 + 2 * 6 + 2 + 1
    assert {norm.eps for norm in norms} == {1e-5}


def test_torchvision_weights_keep_their_numbers_under_other_names():
    state = torchvision_of().state_dict()
    renamed = swin_from_torchvision(state)
    assert renamed.keys() == model_of().state_dict().keys()
    back = to_torchvision(renamed)
    dropped = state.keys() - back.keys()
    assert len(dropped) == 6
    assert all(name.endswith("relative_position_index") for name in dropped)
    for name, value in back.items():
        assert value is state[name]


@given(st.data())
@settings(deadline=None, max_examples=10)
def test_a_part_of_the_names_can_be_changed(data):
    state = torchvision_of().state_dict()
    names = data.draw(st.lists(st.sampled_from([*state]), unique=True))
    whole = swin_from_torchvision(state)
    part = swin_from_torchvision({name: state[name] for name in names})
    weights = [n for n in names if not n.endswith("relative_position_index")]
    assert len(part) == len(weights)
    assert all(whole[name] is value for name, value in part.items())


@pytest.mark.parametrize(
    "name",
    [
        "class_token",
        "encoder.layers.encoder_layer_0.ln_1.weight",
        "patch_embed.proj.weight",
        "layers.0.blocks.0.norm1.weight",
        "head.fc.weight",
        "classifier.0.weight",
        "features",
        "features.x.0.weight",
        "norm",
    ],
)
def test_names_that_are_not_torchvisions_are_refused(name):
    state = {"norm.weight": torch.ones(2), name: torch.ones(2)}
    with pytest.raises(ValueError, match=f"Swin Transformer, got {name}$"):
        swin_from_torchvision(state)


def test_pretrained_weights_of_torchvision_are_loaded():
    theirs, model = torchvision_of(), model_of(img_size=64)
    weights = swin_from_torchvision(theirs.state_dict())
    report = load_pretrained(model, weights)
    assert len(report.loaded) == len(model.state_dict())
    images = images_for(model)
    torch.testing.assert_close(model(images), theirs(images), **NO_GAP)


def test_pretrained_weights_of_timm_are_loaded_from_a_file(tmp_path):
    theirs, model = timm_of(), model_of()
    save_file(theirs.state_dict(), tmp_path / "swin.safetensors")
    load_pretrained(model, tmp_path / "swin.safetensors")
    images = images_for(model)
    torch.testing.assert_close(model(images), theirs(images), **NO_GAP)


def test_the_head_can_be_new():
    theirs, model = timm_of(), model_of(num_classes=4)
    before = model.head.fc.weight.clone()
    report = load_pretrained(model, theirs.state_dict(), new_head=True)
    assert report.replaced == ("head.fc.weight", "head.fc.bias")
    assert model.head.fc.weight.equal(before)
    expected = theirs.forward_features(images_for(model))
    torch.testing.assert_close(
        model.forward_features(images_for(model)), expected, **NO_GAP
    )


def swin_v2():
    theirs = torchvision_swin.SwinTransformer(
        [2, 2], 8, [2, 3, 1], [2, 1, 4], [3, 5], num_classes=7,
        block=torchvision_swin.SwinTransformerBlockV2,
        downsample_layer=torchvision_swin.PatchMergingV2,
    )  # fmt: skip
    return swin_from_torchvision(theirs.state_dict())


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (swin_v2, "no layers.0.blocks.0.attn.relative_position_bias_table"),
        (
            lambda: torchvision_of().state_dict(),
            "features.0.0.weight, which the model does not have|no patch_embed",
        ),
        (
            lambda: timm_of(embed_dim=16).state_dict(),
            r"patch_embed.proj.weight of shape \(16, 3, 2, 2\) for \(8, 3, 2",
        ),
        (
            lambda: timm_of(depths=(2, 4, 1)).state_dict(),
            "layers.1.blocks.3.norm1.weight, which the model does not have",
        ),
        (
            lambda: timm_of(window_size=(3, 4)).state_dict(),
            r"relative_position_bias_table of shape \(35, 2\) for \(45, 2\)",
        ),
        (
            lambda: timm_of(num_classes=5).state_dict(),
            r"head.fc.weight of shape \(5, 32\) for \(7, 32\); see new_head",
        ),
    ],
    ids=["Swin V2", "names", "width", "depth", "window", "classes"],
)
def test_weights_of_another_model_are_refused_and_change_nothing(
    weights, words
):
    model = model_of()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=words):
        load_pretrained(model, weights())
    for name, value in model.state_dict().items():
        assert value.equal(before[name]), name


# What the model computes.


@pytest.mark.parametrize("size", [(2, 2), (2, 40), (26, 38), (64, 64)])
def test_images_of_any_size_become_logits(size):
    model = model_of()
    assert model(images_for(model, *size, batch=5)).shape == (5, 7)


@pytest.mark.parametrize("size", [(24, 40), (26, 38)])
def test_an_image_alone_gives_the_same_logits_as_in_a_batch(size):
    model = model_of()
    images = images_for(model, *size, batch=3)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(alone, model(images), **NO_GAP)


def test_a_small_image_leaves_the_answer_to_a_large_one_as_it_is():
    model = model_of()
    images = images_for(model, 64, 64)
    expected = model(images)
    model(images_for(model, 2, 2))
    assert model(images).equal(expected)


def test_without_a_head_the_model_returns_what_the_head_would_read():
    model, without = model_of(), model_of(num_classes=0)
    without.load_state_dict(model.state_dict(), strict=False)
    assert not [*without.head.parameters()]
    images = images_for(model)
    assert without(images).shape == (2, 32)
    assert model.head(without(images)).equal(model(images))


@pytest.mark.parametrize("size", [(24, 40), (26, 38)])
def test_a_gradient_reaches_every_parameter(size):
    # The key bias moves all scores of a row alike: its gradient is 0.
    model = model_of(qkv_bias=False)
    for stage in model.layers[1:]:
        assert stage.downsample.reduction.bias is None
    assert has_all_gradients(model, model(images_for(model, *size)))


def test_every_token_sees_every_patch_of_its_own_image_in_the_end():
    model = model_of()
    patch = (1, slice(None), slice(2, 4), slice(36, 38))
    changed = tokens_that_change(
        model.forward_features, images_for(model), patch
    )
    assert changed == [
        [1, row, column] for row in range(3) for column in range(5)
    ]


def fresh(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SwinTransformer(**{**SMALL, **options})


def test_fresh_matrices_have_std_002_and_fresh_biases_are_0():
    model = fresh(embed_dim=64)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(linear) == 6 * 4 + 2 + 1
    for layer in linear:
        few = 5 / layer.weight.numel() ** 0.5  # about 7 standard errors
        assert layer.weight.std().item() == pytest.approx(0.02, rel=few)
        assert abs(layer.weight.mean().item()) < 0.02 * few
        assert layer.bias is None or not layer.bias.any()


def test_two_fresh_blocks_differ():
    first, second = fresh().layers[0].blocks
    for name, value in first.named_parameters():
        is_drawn = name.endswith(("table", "qkv.weight", "fc1.weight"))
        assert second.get_parameter(name).equal(value) != is_drawn or (
            name.endswith(("proj.weight", "fc2.weight"))
        )


def test_a_copy_gives_the_same_logits_and_shares_no_weight():
    model = model_of()
    other, images = copy.deepcopy(model), images_for(model)
    assert other(images).equal(model(images))
    nn.init.zeros_(other.patch_embed.proj.weight)
    assert not other(images).equal(model(images))


@pytest.mark.parametrize("size", [(24, 40), (26, 38)])
def test_the_model_runs_in_bfloat16_autocast(size):
    model = randomize(fresh()).float()
    images = images_for(model, *size).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.bfloat16
    expected = model(images)
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


def test_the_model_runs_on_the_meta_device():
    with torch.device("meta"):
        model = SwinTransformer(**SMALL)
        assert model(torch.ones(2, 3, 26, 38)).shape == (2, 7)


class Stop(Exception):
    pass


def train(checkpoint=None, steps=None):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(12, 3, 26, 38, generator=generator)
    batches = [
        *zip(images.split(4), (torch.arange(12) % 7).split(4), strict=True)
    ]

    def stop_after(images, labels):
        nonlocal steps
        if steps == 0:
            raise Stop
        steps = None if steps is None else steps - 1
        return images, labels

    model = fresh(drop_path=0.3)
    history = fit(
        *(model, batches, batches),
        epochs=3,
        learning_rate=1e-2,
        mix=stop_after,
        checkpoint=checkpoint,
    )
    return history, model.state_dict()


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path):
    history, expected = train()
    assert history.test_loss[2] < history.test_loss[0]
    with pytest.raises(Stop):
        train(tmp_path / "a.pt", steps=4)  # one step in the second epoch
    again, weights = train(tmp_path / "a.pt")
    assert again == history
    for name, value in weights.items():
        assert value.equal(expected[name]), name


def test_learning_rates_grow_by_block_and_merging_goes_with_the_next_one():
    rates = layerwise_learning_rates(model_of(), 128.0, 0.5)
    assert rates == {
        "patch_embed": 1,
        "layers.0.blocks.0": 2,
        "layers.0.blocks.1": 4,
        "layers.1.downsample": 8,
        "layers.1.blocks.0": 8,
        "layers.1.blocks.1": 16,
        "layers.1.blocks.2": 32,
        "layers.2.downsample": 64,
        "layers.2.blocks.0": 64,
        "norm": 128,
        "head": 128,
    }


# What is refused.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"img_size": (25, 40)}, "patch_size, got (25, 40) and (2, 2)"),
        ({"img_size": (24, 41)}, "patch_size, got (24, 41) and (2, 2)"),
        ({"img_size": 0}, "img_size must be a positive int or a pair"),
        ({"patch_size": 0}, "patch_size must be a positive int or a pair"),
        ({"in_chans": 0}, "got 0, 8 and 7"),
        ({"embed_dim": 0}, "got 3, 0 and 7"),
        ({"num_classes": -1}, "got 3, 8 and -1"),
        ({"depths": ()}, "got () and (2, 1, 4)"),
        ({"depths": (), "num_heads": ()}, "got () and ()"),
        ({"depths": (2, 0, 1)}, "got (2, 0, 1) and (2, 1, 4)"),
        ({"depths": [2, 3]}, "got [2, 3] and (2, 1, 4)"),
        ({"num_heads": (2, 1)}, "got (2, 3, 1) and (2, 1)"),
        ({"num_heads": (2, 3, 4)}, "dim=16 and num_heads=3"),
        ({"num_heads": (2, 0, 4)}, "dim=16 and num_heads=0"),
        ({"window_size": 0}, "pair (height, width) of them, got 0"),
        ({"window_size": (3, 5, 7)}, "window_size must be"),
        ({"window_size": 3.5}, "window_size must be"),
        ({"mlp_ratio": 0}, "dim=8 and mlp_ratio=0"),
        ({"drop_path": -0.1}, "drop_path < 1, got -0.1"),
        ({"drop_path": 1.0}, "drop_path < 1, got 1.0"),
        ({"drop_path": math.nan}, "drop_path < 1, got nan"),
        (
            {"drop_path": -0.1, "depths": (1,), "num_heads": (1,)},
            "drop_path < 1, got -0.1",
        ),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        SwinTransformer(**{**SMALL, **options})


@pytest.mark.parametrize(
    "shape", [(2, 3, 25, 40), (2, 3, 24, 41), (2, 1, 24, 40), (3, 24, 40)]
)
def test_images_that_do_not_fit_are_refused(shape):
    model = fresh()
    words = f"must be (B, 3, H, W) with H a multiple of 2.*got {shape}"
    words = re.escape(words).replace(r"\.\*", ".*")
    for method in (model, model.forward_features, model.feature_maps):
        with pytest.raises(ValueError, match=words):
            method(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 4, 6), (2, 4, 6, 5), (2, 4, 6, 8, 1)])
def test_a_map_that_does_not_fit_is_not_merged(shape):
    words = re.escape(f"x must be (B, gh, gw, 8), got {shape}")
    with pytest.raises(ValueError, match=words):
        PatchMerging(8)(torch.zeros(shape))


def test_a_block_refuses_a_shift_of_a_whole_window():
    with pytest.raises(ValueError, match="shift_size must be"):
        SwinBlock(8, 2, (4, 3), (1, 3))
    with pytest.raises(ValueError, match=r"drop_path < 1, got 1"):
        SwinBlock(8, 2, drop_path=1)
