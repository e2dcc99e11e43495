"""Chapter 05."""

import re

import pytest
import timm
import torch
from oracles import has_all_gradients, random, randomize, tokens_that_change
from torch import nn

from vit_lessons import Mlp

NO_GAP = {"rtol": 0, "atol": 1e-12}
SHAPES = [(6,), (5, 6), (1, 1, 6), (2, 5, 6), (2, 3, 4, 6)]


def layer_of(dim=6, **options):
    return randomize(Mlp(dim, **options))


def equals_timm(activation):
    """Does our layer equal timm's with this activation?"""
    theirs = timm.layers.Mlp(6, 24, act_layer=activation)
    theirs = randomize(theirs).eval()
    ours = Mlp(6).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = random(2, 5, 6)
    return torch.allclose(ours(x), theirs(x), **NO_GAP)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_layer_keeps_the_shape(shape):
    assert layer_of()(random(*shape)).shape == shape


def test_the_layer_equals_timm_with_its_weights():
    assert equals_timm(nn.GELU)


@pytest.mark.parametrize(
    "activation", [nn.ReLU, nn.SiLU, lambda: nn.GELU(approximate="tanh")]
)
def test_another_activation_does_not_equal_ours(activation):
    assert not equals_timm(activation)


def test_a_token_changes_itself_alone():
    x = random(2, 5, 6)
    assert tokens_that_change(layer_of(), x, (1, 3)) == [[1, 3]]


def test_permuting_tokens_permutes_the_output():
    layer, x = layer_of(), random(2, 5, 6)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], **NO_GAP)


@pytest.mark.parametrize(
    ("ratio", "hidden"), [(4, 20), (2.5, 12), (1 / 5, 1), (0.39, 1)]
)
def test_the_hidden_width_is_rounded_down(ratio, hidden):
    layer = layer_of(5, mlp_ratio=ratio)
    assert layer.fc1.out_features == layer.fc2.in_features == hidden
    assert layer(random(2, 3, 5)).shape == (2, 3, 5)


def test_dropout_acts_in_training_only():
    layer, x = layer_of(dropout=0.5), random(4, 5, 6)
    expected = layer_of()(x)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dropped = layer(x)
    assert layer.eval()(x).equal(expected)
    assert not dropped.equal(expected)


def test_dropout_follows_both_layers():
    layer = layer_of(dropout=0.5)
    nn.init.zeros_(layer.fc2.weight)
    x = random(100, 6)
    seen = []
    layer.fc2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        output = layer(x)
    for dropped in (seen[0], output):
        assert 0.4 < (dropped == 0).double().mean() < 0.6


def test_dropout_falls_where_timms_falls():
    theirs = randomize(timm.layers.Mlp(6, 24, drop=0.5)).train()
    ours = Mlp(6, dropout=0.5).double()
    ours.load_state_dict(theirs.state_dict())
    x, outputs = random(4, 5, 6), []
    for layer in (theirs, ours):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            outputs.append(layer(x))
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)


def test_gradients_reach_every_parameter():
    layer = layer_of()
    assert has_all_gradients(layer, layer(random(2, 5, 6)))


def test_base_model_mlp_has_4722432_weights():
    with torch.device("meta"):
        layer = Mlp(768)
    assert sum(p.numel() for p in layer.parameters()) == 4_722_432


def test_the_layer_runs_in_bfloat16_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Mlp(6)(torch.ones(2, 5, 6)).dtype == torch.bfloat16


@pytest.mark.parametrize(("dim", "ratio"), [(6, 0), (6, 0.1), (0, 4), (6, -1)])
def test_a_hidden_layer_has_at_least_one_feature(dim, ratio):
    with pytest.raises(ValueError, match=f"dim={dim} and mlp_ratio={ratio}"):
        Mlp(dim, mlp_ratio=ratio)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 6, 5)])
def test_the_layer_refuses_another_width(shape):
    with pytest.raises(ValueError, match=re.escape(f"(..., 6), got {shape}")):
        Mlp(6)(torch.zeros(shape))
