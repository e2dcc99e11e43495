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
    PatchMerging,
    SwinBlock,
    SwinStage,
    SwinTransformer,
    create_model,
    fit,
    layerwise_learning_rates,
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


def torchvision_of(window_size=(3, 5), **options):
    widths = {"patch_size": [2, 2], "embed_dim": 8, "num_classes": 7}
    blocks = {"depths": [2, 3, 1], "num_heads": [2, 1, 4]}
    theirs = torchvision_swin.SwinTransformer(
        **widths, **blocks, window_size=[*window_size], **options
    )
    return randomize(theirs, seed=5).eval()


def assert_same_with_gradients(theirs, **options):
    ours = model_of(**options)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = images_for(ours, *options.get("img_size", ()))
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
    assert_same_with_gradients(timm_of(**options), **options)


@each_padded
def test_padded_maps_give_what_timm_gives_if_it_pads_before_it_rolls(options):
    assert_same_with_gradients(pad_first(timm_of(**options)), **options)


@each_padded
def test_without_a_shift_padded_maps_give_what_timm_gives(options):
    options = {**options, "depths": (1, 1, 1)}
    assert_same_with_gradients(timm_of(**options), **options)


@pytest.mark.parametrize("window_size", [(3, 5), (4, 2), (2, 2)])
def test_images_of_any_size_give_what_torchvision_gives(window_size):
    theirs = torchvision_of(window_size)
    ours = model_of(img_size=64, window_size=window_size)
    ours.load_state_dict(swin_from_torchvision(theirs.state_dict()))
    for grid in (1, 1), (1, 9), (7, 2), (5, 7), (11, 16), (12, 20), (15, 25):
        images = images_for(ours, *(2 * side for side in grid))
        torch.testing.assert_close(ours(images), theirs(images), **NO_GAP)


def relative_gap(one, other):
    return ((one - other).abs().max() / other.abs().max()).item()


@functools.cache
def preset(size):
    """A preset of torchvision, and ours with its weights."""
    theirs = randomize(getattr(torchvision.models, f"swin_{size[0]}")())
    ours = create_model(f"swin_{size}_patch4_window7_224").double()
    ours.load_state_dict(swin_from_torchvision(theirs.state_dict()))
    return theirs.eval(), ours.eval()


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@torch.no_grad()
def test_a_preset_gives_what_torchvision_and_timm_give(size):
    theirs, ours = preset(size)
    images = images_for(ours, 224, 224, batch=1)
    logits = ours(images)
    assert relative_gap(logits, theirs(images)) < 1e-10
    theirs = timm.create_model(f"swin_{size}_patch4_window7_224").double()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert relative_gap(logits, theirs.eval()(images)) < 1e-10


@pytest.mark.parametrize(
    "size", [(192, 256), (200, 264), (100, 36), (68, 148), (4, 4)]
)
@torch.no_grad()
def test_the_smallest_preset_gives_what_torchvision_gives_at_any_size(size):
    theirs, ours = preset("tiny")
    images = images_for(ours, *size, batch=1)
    assert relative_gap(ours(images), theirs(images)) < 1e-10


@pytest.mark.parametrize(
    ("size", "window"), [((112, 448), (4, 7)), ((192, 256), (6, 7))]
)
@torch.no_grad()
def test_the_smallest_preset_gives_what_timm_gives_at_its_size(size, window):
    name = "swin_tiny_patch4_window7_224"
    theirs = randomize(timm.create_model(name, img_size=size)).eval()
    ours = create_model(name, img_size=size).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert ours.layers[3].blocks[0].attn.window_size == window
    if size == (192, 256):  # windows do not tile its maps
        pad_first(theirs)
    images = images_for(ours, *size, batch=1)
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
    for (top, bottom), (left, right) in itertools.product(rows, columns):
        tokens = padded[:, top:bottom, left:right].flatten(1, 2)
        q, k, v = linear(tokens, w, f"{name}.qkv").chunk(3, -1)
        q, k, v = (t.unflatten(2, (heads, -1)) for t in (q, k, v))
        scores = torch.einsum("bihd,bjhd->bijh", q, k) / math.sqrt(q.shape[3])
        y = torch.arange(bottom - top).repeat_interleave(right - left)
        x = torch.arange(right - left).repeat(bottom - top)
        down, across = (t[:, None] - t for t in (y, x))
        row = (down + m1 - 1) * (2 * m2 - 1) + across + m2 - 1
        scores = scores + table[row]
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


def logits_by_hand(w, images, img_size, depths, num_heads, window_size):
    """Each step written out; nothing of the package is used."""
    patches = images.unfold(2, 2, 2).unfold(3, 2, 2)
    x = torch.einsum("bcyxpq,dcpq->byxd", patches, w["patch_embed.proj.weight"])
    x = layer_norm(x + w["patch_embed.proj.bias"], w, "patch_embed.norm")
    for s, depth in enumerate(depths):
        if s > 0:
            x = merge(x, w, f"layers.{s}.downsample")
        sides = (math.ceil(side / 2 ** (s + 1)) for side in img_size)
        window = [*map(min, window_size, sides)]
        for i in range(depth):
            name = f"layers.{s}.blocks.{i}"
            y = layer_norm(x, w, f"{name}.norm1")
            x = x + attend(y, w, f"{name}.attn", num_heads[s], window, i % 2)
            y = linear(layer_norm(x, w, f"{name}.norm2"), w, f"{name}.mlp.fc1")
            y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
            x = x + linear(y, w, f"{name}.mlp.fc2")
    return linear(layer_norm(x, w, "norm").mean((1, 2)), w, "head.fc")


SIDES = st.tuples(st.integers(1, 8), st.integers(1, 8))
WINDOWS = st.tuples(st.integers(1, 3), st.integers(1, 4))


@given(
    SIDES, SIDES, WINDOWS, st.lists(st.integers(1, 2), min_size=2, max_size=3)
)
@settings(deadline=None, max_examples=15)
def test_the_logits_equal_the_forward_pass_written_out(
    grid, image_grid, window_size, depths
):
    """The image may have another size than the one that cuts the windows."""
    options = {
        "img_size": (2 * grid[0], 2 * grid[1]),
        "depths": depths,
        "num_heads": (2, 1, 4)[: len(depths)],
        "window_size": window_size,
    }
    model = model_of(**options)
    images = images_for(model, *(2 * side for side in image_grid))
    expected = logits_by_hand(model.state_dict(), images, **options)
    torch.testing.assert_close(model(images), expected, **NO_GAP)


# The parts.


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (5, 4), (6, 7)])
def test_four_tokens_become_one_in_the_order_of_columns(size):
    merging, x = randomize(PatchMerging(3)), random(2, *size, 3)
    state = merging.state_dict()
    expected = merge(x, {f"m.{name}": state[name] for name in state}, "m")
    assert merging(x).shape == (2, (size[0] + 1) // 2, (size[1] + 1) // 2, 6)
    torch.testing.assert_close(merging(x), expected, **NO_GAP)
    for library in timm_swin, torchvision_swin:
        theirs = library.PatchMerging(3).double()
        theirs.load_state_dict(state, strict=True)
        torch.testing.assert_close(theirs(x), expected, **NO_GAP)


def test_every_second_block_of_a_stage_is_shifted_by_half_a_window():
    stage = SwinStage(8, 2, (4, 7), drop_path=[0.0] * 5)
    shifts = [block.attn.shift_size for block in stage.blocks]
    assert shifts == [(0, 0), (2, 3), (0, 0), (2, 3), (0, 0)]
    assert {b.attn.window_size for b in stage.blocks} == {(4, 7)}


def test_a_stage_need_not_merge():
    stage = SwinStage(8, 2, (2, 3), merge=False).double()
    assert stage(random(2, 7, 6, 8)).shape == (2, 7, 6, 8)
    assert {n.split(".")[0] for n, _ in stage.named_parameters()} == {"blocks"}


@pytest.mark.parametrize(
    ("size", "shift"),
    [((4, 5), 0), ((3, 5), 0), ((2, 1), 0), ((4, 9), (0, 2)), ((7, 5), (2, 0))],
)
def test_an_axis_that_the_window_covers_is_not_shifted(size, shift):
    both = randomize(SwinBlock(8, 2, (4, 5), 2))
    other = SwinBlock(8, 2, (4, 5), shift).double()
    other.load_state_dict(both.state_dict())
    assert both(random(2, *size, 8)).equal(other(random(2, *size, 8)))


def test_no_token_of_a_padded_map_sees_the_opposite_border():
    block = randomize(SwinBlock(8, 2, 4, 2))  # rows 0-1, 2-5, 6 and padding
    changed = tokens_that_change(block, random(1, 7, 7, 8), (0, 0, 0))
    assert changed == [[0, row, column] for row in (0, 1) for column in (0, 1)]


@pytest.mark.parametrize(
    ("img_size", "windows"),
    [
        (256, [(7, 7), (7, 7), (7, 7), (7, 7)]),
        ((192, 256), [(7, 7), (7, 7), (7, 7), (6, 7)]),
        ((32, 100), [(7, 7), (4, 7), (2, 7), (1, 4)]),
    ],
)
def test_windows_are_cut_to_the_maps_along_each_axis(img_size, windows):
    with torch.device("meta"):
        model = SwinTransformer(img_size)
    layers = [stage.blocks[1].attn for stage in model.layers]
    assert [layer.window_size for layer in layers] == windows
    shifts = [(m1 // 2, m2 // 2) for m1, m2 in windows]
    assert [layer.shift_size for layer in layers] == shifts


@pytest.mark.parametrize("depths", [(2, 3, 1), (2, 2, 6, 2), (1, 1), (1,)])
def test_drop_path_rises_over_all_stages_as_in_timm(depths):
    options = {"depths": depths, "num_heads": [1] * len(depths)}
    theirs = timm_of(drop_path=0.2, **options)
    ours = model_of(drop_path=0.2, **options)
    blocks = [block for stage in ours.layers for block in stage.blocks]
    theirs = [block for stage in theirs.layers for block in stage.blocks]
    expected = [getattr(b.drop_path1, "drop_prob", 0.0) for b in theirs]
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
    for count, mean in zip(counts, [250, 750, 750, 2250], strict=True):
        assert abs(count - mean) < 4.5 * mean**0.5


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


def test_the_maps_equal_those_of_timm():
    options = {**SMALL, "features_only": True, "out_indices": (0, 1, 2)}
    del options["num_classes"]
    theirs = timm.create_model("swin_tiny_patch4_window7_224", **options)
    theirs, ours = randomize(theirs).eval(), model_of()
    state = theirs.state_dict()
    state = {n.replace("layers_", "layers."): state[n] for n in state}
    load_pretrained(ours, state, allow_missing=["norm", "head"])
    images = images_for(ours)
    expected = [one.permute(0, 3, 1, 2) for one in theirs(images)]
    torch.testing.assert_close(ours.feature_maps(images), expected, **NO_GAP)


@pytest.mark.parametrize("size", [(24, 40), (26, 38), (2, 6)])
def test_the_maps_equal_those_of_torchvision(size):
    theirs, ours = torchvision_of(), model_of(img_size=64)
    ours.load_state_dict(swin_from_torchvision(theirs.state_dict()))
    images = images_for(ours, *size)
    nodes = ["features.1", "features.3", "features.5"]
    expected = create_feature_extractor(theirs, nodes)(images)
    expected = [expected[node].permute(0, 3, 1, 2) for node in nodes]
    torch.testing.assert_close(ours.feature_maps(images), expected, **NO_GAP)


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
    shapes = [one.shape[1:] for one in out.values()]
    assert shapes == [(4, 13, 19), (4, 7, 10), (4, 4, 5)]
    torch.cat([one.flatten() for one in out.values()]).square().sum().backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    read_by_the_head = {"norm.weight", "norm.bias"}
    assert without == read_by_the_head | {"head.fc.weight", "head.fc.bias"}


# Names, sizes and files.


def test_a_preset_can_be_changed():
    name = "swin_base_patch4_window7_224"
    with torch.device("meta"):
        model = create_model(name, num_classes=0, img_size=384, window_size=12)
    head = 1000 * (1024 + 1)
    assert sum(p.numel() for p in model.parameters()) == 87_903_584 - head


def test_every_layer_norm_has_the_eps_of_swin():
    norms = [m for m in model_of().modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 1 + 2 * 6 + 2 + 1
    assert {norm.eps for norm in norms} == {1e-5}


def test_torchvision_weights_keep_their_numbers_under_other_names():
    state = torchvision_of().state_dict()
    renamed = swin_from_torchvision(state)
    assert renamed.keys() == model_of().state_dict().keys()
    dropped = "relative_position_index"
    kept = [value for name, value in state.items() if dropped not in name]
    assert {id(value) for value in renamed.values()} == set(map(id, kept))
    for name, value in state.items():  # a part of them, too
        part = swin_from_torchvision({name: value})
        assert part.items() <= renamed.items()
        assert len(part) == (dropped not in name)


@pytest.mark.parametrize(
    "name",
    [
        "encoder.layers.encoder_layer_0.ln_1.weight",  # of its ViT
        "layers.0.blocks.0.norm1.weight",  # of timm
        "features.1.0.mlp.fc1.weight",
        "features.1.0.norm3.weight",
        "features.0.1.weight",
        "features.2.0.norm1.weight",
        "features.3.norm.weight",
        "features.8.reduction.weight",
        "features",
        "head.fc.weight",
        "norm",
    ],
)
def test_names_that_are_not_torchvisions_are_refused(name):
    state = {"norm.weight": torch.ones(2), name: torch.ones(2)}
    with pytest.raises(ValueError, match=f"Swin Transformer, got {name}$"):
        swin_from_torchvision(state)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_pretrained_weights_are_loaded_from_a_file(tmp_path, library):
    theirs, model = torchvision_of(), model_of(img_size=64)
    weights = swin_from_torchvision(theirs.state_dict())
    if library == "timm":
        theirs, model = timm_of(), model_of()
        weights = theirs.state_dict()
    save_file(weights, tmp_path / "swin.safetensors")
    report = load_pretrained(model, tmp_path / "swin.safetensors")
    assert len(report.loaded) == len(model.state_dict())
    images = images_for(model)
    torch.testing.assert_close(model(images), theirs(images), **NO_GAP)


def test_the_head_can_be_new():
    theirs, model = timm_of(), model_of(num_classes=4)
    before = model.head.fc.weight.clone()
    report = load_pretrained(model, theirs.state_dict(), new_head=True)
    assert report.replaced == ("head.fc.weight", "head.fc.bias")
    assert model.head.fc.weight.equal(before)
    assert len(report.loaded) == len(model.state_dict()) - 2


def swin_v2():
    block = torchvision_swin.SwinTransformerBlockV2
    merging = torchvision_swin.PatchMergingV2
    theirs = torchvision_of(block=block, downsample_layer=merging)
    return swin_from_torchvision(theirs.state_dict())


TABLE = "relative_position_bias_table"


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (swin_v2, f"no layers.0.blocks.0.attn.{TABLE}"),
        (torchvision_of, "no patch_embed.proj.weight; no patch_embed.proj.bi"),
        ({"embed_dim": 16}, "weight of shape (16, 3, 2, 2) for (8, 3, 2, 2)"),
        ({"depths": (2, 4, 1)}, "layers.1.blocks.3.norm1.weight, which the m"),
        ({"window_size": 3}, f"{TABLE} of shape (25, 2) for (45, 2)"),
        ({"num_classes": 5}, "of shape (5, 32) for (7, 32); see new_head"),
    ],
)
def test_weights_of_another_model_are_refused_and_change_nothing(theirs, words):
    theirs = timm_of(**theirs) if isinstance(theirs, dict) else theirs()
    weights = theirs if isinstance(theirs, dict) else theirs.state_dict()
    model = model_of()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=re.escape(words)):
        load_pretrained(model, weights)
    for name, value in model.state_dict().items():
        assert value.equal(before[name]), name


# What the model computes.


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
    images, read = images_for(model), model.forward_features
    changed = tokens_that_change(read, images, patch)
    places = itertools.product(range(3), range(5))
    assert changed == [[1, *place] for place in places]


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


def test_init_weights_draws_all_weights_anew():
    model = model_of()
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    assert model.patch_embed.proj.bias.any()  # as PyTorch draws it
    for name, value in model.state_dict().items():
        assert ("norm" in name) == value.equal(before[name]), name


def test_fresh_tables_have_std_002():
    for stage in fresh(window_size=(12, 20), num_heads=(8, 8, 8)).layers:
        table = stage.blocks[0].attn.relative_position_bias_table
        assert table.std().item() == pytest.approx(0.02, rel=0.1)


def test_two_fresh_blocks_differ():
    first, second = fresh().layers[0].blocks
    for name, value in first.named_parameters():
        is_constant = "norm" in name or name.endswith("bias")
        assert is_constant == second.get_parameter(name).equal(value)


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


class Stop(Exception):
    pass


def train(checkpoint=None, steps=None):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(12, 3, 26, 38, generator=generator)
    labels = torch.arange(12) % 7
    batches = [*zip(images.split(4), labels.split(4), strict=True)]

    def stop_after(images, labels):
        nonlocal steps
        if steps == 0:
            raise Stop
        steps = None if steps is None else steps - 1
        return images, labels

    model = fresh(drop_path=0.3)
    options = {"epochs": 3, "learning_rate": 1e-2, "mix": stop_after}
    history = fit(model, batches, batches, checkpoint=checkpoint, **options)
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


def test_merging_learns_at_the_rate_of_the_block_after_it():
    rates = layerwise_learning_rates(model_of(), 128.0, 0.5)
    parts = ["patch_embed"]
    for stage, depth in enumerate((2, 3, 1)):
        parts += [f"layers.{stage}.blocks.{i}" for i in range(depth)]
    expected = {part: 2.0**i for i, part in enumerate(parts)}
    expected |= {"norm": 128, "head": 128}
    expected |= {"layers.1.downsample": 8, "layers.2.downsample": 64}
    assert rates == expected


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
        ({"depths": (), "num_heads": ()}, "got () and ()"),
        ({"depths": (2, 0, 1)}, "got (2, 0, 1) and (2, 1, 4)"),
        ({"depths": [2, 3]}, "got [2, 3] and (2, 1, 4)"),
        ({"num_heads": (2, 1)}, "got (2, 3, 1) and (2, 1)"),
        ({"num_heads": (2, 3, 4)}, "dim=16 and num_heads=3"),
        ({"num_heads": (2, 0, 4)}, "dim=16 and num_heads=0"),
        ({"window_size": 0}, "pair (height, width) of them, got 0"),
        ({"window_size": (3, 5, 7)}, "window_size must be"),
        ({"mlp_ratio": 0}, "dim=8 and mlp_ratio=0"),
        ({"drop_path": -0.1}, "drop_path < 1, got -0.1"),
        ({"drop_path": 1.0}, "drop_path < 1, got 1.0"),
        ({"drop_path": math.nan}, "drop_path < 1, got nan"),
        (
            {"drop_path": 1.0, "depths": (1,), "num_heads": (1,)},
            "drop_path < 1, got 1.0",
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


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: PatchMerging(0), "dim must be positive, got 0"),
        (lambda: SwinStage(9, 3), "dim must be even to merge patches, got 9"),
        (lambda: SwinStage(8, 2, drop_path=()), "for each block, got 0"),
    ],
)
def test_parts_that_cannot_work_are_refused_at_once(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_an_odd_width_needs_no_merging():
    assert SwinStage(9, 3, merge=False)(torch.ones(1, 2, 2, 9)).shape[3] == 9


def test_a_block_refuses_a_shift_of_a_whole_window():
    with pytest.raises(ValueError, match="shift_size must be"):
        SwinBlock(8, 2, (4, 3), (1, 3))
    with pytest.raises(ValueError, match=r"drop_path < 1, got 1"):
        SwinBlock(8, 2, drop_path=1)
