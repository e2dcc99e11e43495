"""Chapter 06."""

import pytest
import timm
import torch
import torchvision
from oracles import has_all_gradients, random, randomize, tokens_that_change
from timm.models.vision_transformer import Block
from torch import nn

from vit_lessons import DropPath, EncoderBlock

NO_GAP = {"rtol": 0, "atol": 1e-12}


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def block_of(dim=12, num_heads=3, **options):
    return randomize(EncoderBlock(dim, num_heads, **options))


# DropPath.


@pytest.mark.parametrize("shape", [(7, 5), (7, 3, 5), (7, 3, 4, 5)])
def test_an_image_is_dropped_whole_or_kept_and_scaled(shape):
    x = random(*shape)
    output = DropPath(0.4)(x)
    kept = [bool(image.any()) for image in output]
    assert 0 < sum(kept) < len(kept)
    for image, was_kept, result in zip(x, kept, output, strict=True):
        torch.testing.assert_close(result, image / 0.6 * was_kept, **NO_GAP)


@pytest.mark.parametrize("drop_path", [0.1, 0.5, 0.9])
def test_drop_path_is_the_share_of_dropped_images(drop_path):
    dropped = (DropPath(drop_path)(torch.ones(10_000, 1)) == 0).float().mean()
    assert abs(dropped - drop_path) < 0.02  # 4 standard deviations


@pytest.mark.parametrize("drop_path", [0.1, 0.5, 0.9])
def test_drop_path_keeps_the_mean(drop_path):
    mean = DropPath(drop_path)(torch.ones(10_000, 1)).mean()
    assert abs(mean - 1) < 0.04 * (drop_path / (1 - drop_path)) ** 0.5


def test_two_calls_drop_different_images():
    layer, x = DropPath(0.5), torch.ones(100, 1)
    assert not layer(x).equal(layer(x))


def test_drop_path_returns_x_itself_where_it_drops_nothing():
    x = random(2, 3)
    assert DropPath(0.5).eval()(x) is x
    assert DropPath(0.0)(x) is x
    assert DropPath()(x) is x


@pytest.mark.parametrize(
    "other",
    [
        torchvision.ops.StochasticDepth(0.4, "row"),
        timm.layers.DropPath(0.4),
    ],
    ids=["torchvision", "timm"],
)
def test_drop_path_draws_as_other_libraries_do(other):
    x = random(50, 3, 4)
    torch.manual_seed(1)
    ours = DropPath(0.4)(x)
    torch.manual_seed(1)
    torch.testing.assert_close(ours, other(x), **NO_GAP)


def test_drop_path_keeps_the_dtype():
    x = torch.ones(3, 4, dtype=torch.bfloat16)
    assert DropPath(0.5)(x).dtype == torch.bfloat16


@pytest.mark.parametrize("drop_path", [-0.1, 1, 1.5, float("nan")])
def test_drop_path_refuses_what_is_no_probability_below_1(drop_path):
    with pytest.raises(ValueError, match=f"drop_path < 1, got {drop_path}"):
        DropPath(drop_path)


# EncoderBlock.


def from_torchvision_names(state):
    """A torchvision block's weights under our names."""
    names = {
        "ln_1": "norm1",
        "self_attention.in_proj_": "attn.qkv.",
        "self_attention.out_proj": "attn.proj",
        "ln_2": "norm2",
        "mlp.0": "mlp.fc1",
        "mlp.3": "mlp.fc2",
    }
    renamed = {}
    for name, value in state.items():
        [their] = [start for start in names if name.startswith(start)]
        renamed[name.replace(their, names[their])] = value
    return renamed


@pytest.mark.parametrize(
    ("b", "n", "dim", "heads"), [(1, 1, 1, 1), (2, 5, 12, 3), (3, 70, 10, 5)]
)
def test_the_block_keeps_the_shape(b, n, dim, heads):
    assert block_of(dim, heads)(random(b, n, dim)).shape == (b, n, dim)


@pytest.mark.parametrize("n", [5, 70])
@pytest.mark.parametrize(
    "options", [{}, {"qkv_bias": False}, {"mlp_ratio": 2.5}]
)
def test_the_block_equals_timm_with_its_weights(n, options):
    theirs = randomize(Block(12, 3, **{"qkv_bias": True, **options})).eval()
    ours = EncoderBlock(12, 3, **options).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = random(2, n, 12)
    torch.testing.assert_close(ours(x), theirs(x), **NO_GAP)


@pytest.mark.parametrize("n", [5, 70])
def test_the_block_equals_torchvision_with_its_weights(n):
    theirs = torchvision.models.vision_transformer.EncoderBlock(
        *(3, 12, 48, 0.0, 0.0), lambda dim: nn.LayerNorm(dim, eps=1e-6)
    )
    theirs = randomize(theirs).eval()
    ours = EncoderBlock(12, 3).double()
    ours.load_state_dict(from_torchvision_names(theirs.state_dict()))
    x = random(2, n, 12)
    torch.testing.assert_close(ours(x), theirs(x), **NO_GAP)


@pytest.mark.parametrize("norm", ["norm1", "norm2"])
def test_another_eps_of_a_norm_does_not_equal_ours(norm):
    block, x = block_of(), random(2, 5, 12)
    expected = block(x)
    getattr(block, norm).eps = 1e-5
    assert (block(x) - expected).abs().max() > 1e-7


def test_both_branches_add_to_what_they_read():
    block, x = block_of(), random(2, 5, 12)
    middle = x + block.attn(block.norm1(x))
    expected = middle + block.mlp(block.norm2(middle))
    assert block(x).equal(expected)


def test_a_block_whose_branches_return_0_returns_its_input():
    block, x = block_of(), random(2, 5, 12)
    for layer in (block.attn.proj, block.mlp.fc2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    assert block(x).equal(x)


def test_the_two_norms_are_two_objects():
    block = EncoderBlock(12, 3)
    assert block.norm1 is not block.norm2
    assert block.norm1.weight is not block.norm2.weight


@pytest.mark.parametrize("n", [5, 70])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_the_bias_reaches_the_attention(n, shape):
    block, x = block_of(), random(2, n, 12)
    bias = random(*shape, n, n, seed=4)
    middle = x + block.attn(block.norm1(x), bias)
    expected = middle + block.mlp(block.norm2(middle))
    assert block(x, bias).equal(expected)
    assert not torch.allclose(block(x), expected)


@pytest.mark.parametrize("num_queries", [1, 2, None])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("n", [17, 70])
def test_few_queries_give_the_first_tokens(n, with_bias, num_queries):
    block, x = block_of(), random(2, n, 12)
    full = random(3, n, n, seed=4) if with_bias else None
    few = full[:, :num_queries] if with_bias else None
    torch.testing.assert_close(
        block(x, few, num_queries=num_queries),
        block(x, full)[:, :num_queries],
        **NO_GAP,
    )


@pytest.mark.parametrize("n", [5, 70])
def test_permuting_tokens_permutes_the_output(n):
    block, x = block_of(), random(2, n, 12)
    order = torch.randperm(n)
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order], **NO_GAP)


def test_every_token_sees_every_token_of_its_own_image_only():
    changed = tokens_that_change(block_of(), random(2, 5, 12), (1, 3))
    assert changed == [[1, token] for token in range(5)]


def test_drop_path_skips_a_branch_for_whole_images():
    block, x = block_of(drop_path=0.5), random(200, 5, 12)
    output = block(x)
    attention = x + 2 * block.attn(block.norm1(x))
    ways = {
        "none": x,
        "attention": attention,
        "mlp": x + 2 * block.mlp(block.norm2(x)),
        "both": attention + 2 * block.mlp(block.norm2(attention)),
    }
    for i in range(200):
        fits = [torch.allclose(output[i], way[i]) for way in ways.values()]
        assert sum(fits) == 1
    for way in ways.values():
        share = (output - way).abs().amax((1, 2)).lt(1e-9).double().mean()
        assert 0.12 < share < 0.38  # 0.25, 4 standard deviations


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"drop_path": 0.5}])
def test_nothing_is_dropped_in_evaluation(options):
    block, x = block_of(**options), random(8, 5, 12)
    expected = block_of()(x)
    assert not block(x).equal(expected)
    assert block.eval()(x).equal(expected)


def test_dropout_follows_the_attention_and_both_layers_of_the_mlp():
    block, x = block_of(dropout=0.5), random(50, 5, 12)
    branches = {}
    for name in ("dropout", "mlp"):
        getattr(block, name).register_forward_hook(
            lambda _, __, output, name=name: branches.update({name: output})
        )
    block(x)
    assert branches.keys() == {"dropout", "mlp"}
    for branch in branches.values():
        assert 0.4 < (branch == 0).double().mean() < 0.6


@pytest.mark.parametrize("n", [5, 70])
def test_gradients_reach_every_parameter(n):
    # The key bias moves all scores of a row alike: its gradient is 0.
    block = block_of(qkv_bias=False)
    assert has_all_gradients(block, block(random(2, n, 12)))


def test_base_model_block_has_7087872_weights():
    with torch.device("meta"):
        block = EncoderBlock(768, 12)
    assert sum(p.numel() for p in block.parameters()) == 7_087_872


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_heads": 5}, "dim=12 and num_heads=5"),
        ({"mlp_ratio": 0}, "dim=12 and mlp_ratio=0"),
        ({"drop_path": 1}, "drop_path < 1, got 1"),
    ],
)
def test_the_block_refuses_what_its_parts_refuse(options, words):
    with pytest.raises(ValueError, match=words):
        EncoderBlock(12, **{"num_heads": 3, **options})
