"""Chapter 02."""

import re

import pytest
import timm
import torch
from oracles import has_all_gradients, random, randomize, tokens_that_change
from torch import nn

from vit_lessons import pool, prepend_token

SHAPES = [(1, 1, 1), (2, 3, 4), (4, 3, 2), (3, 3, 3)]  # B, N, D


def prepend_with_loops(x, token):
    sequences = [[token[0, 0], *sequence] for sequence in x]
    return torch.stack([torch.stack(sequence) for sequence in sequences])


def mean_with_loops(x, prefix):
    return torch.stack(
        [sum(image[prefix:]) / (len(image) - prefix) for image in x]
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_prepend_token_equals_the_loops(shape):
    x, token = random(*shape), random(1, 1, shape[2], seed=2)
    tokens = prepend_token(x, token)
    assert tokens.equal(prepend_with_loops(x, token))
    assert tokens.shape == (shape[0], 1 + shape[1], shape[2])


def test_the_token_is_the_same_for_every_image():
    x, token = random(5, 3, 4), random(1, 1, 4, seed=2)
    first = prepend_token(x, token)[:, 0]
    assert first.equal(token[0].expand(5, -1))


def test_the_other_tokens_stay_as_they_are():
    x = random(2, 3, 4)
    assert prepend_token(x, random(1, 1, 4, seed=2))[:, 1:].equal(x)


def test_the_gradient_of_the_token_sums_over_the_batch():
    x, token = random(5, 3, 4), random(1, 1, 4, seed=2).requires_grad_()
    weights = random(5, 4, 4, seed=3)
    (prepend_token(x, token) * weights).sum().backward()
    expected = weights[:, :1].sum(0, keepdim=True)
    torch.testing.assert_close(token.grad, expected, rtol=0, atol=1e-12)


def test_a_gradient_reaches_the_tokens_and_the_token():
    parts = nn.ParameterList([random(2, 3, 4), random(1, 1, 4, seed=2)])
    assert has_all_gradients(parts, prepend_token(*parts))


@pytest.mark.parametrize(
    ("x", "token"),
    [
        ((3, 4), (1, 1, 4)),
        ((2, 3, 4, 5), (1, 1, 5)),
        ((2, 3, 4), (1, 4)),
        ((2, 3, 4), (4,)),
        ((2, 3, 4), (2, 1, 4)),
        ((2, 3, 4), (1, 2, 4)),
        ((2, 3, 4), (1, 1, 5)),
    ],
)
def test_prepend_token_refuses_shapes_that_do_not_fit(x, token):
    expected = f"token (1, 1, D), got {x} and {token}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        prepend_token(torch.zeros(x), torch.zeros(token))


@pytest.mark.parametrize("shape", SHAPES)
def test_cls_is_the_token_that_was_prepended(shape):
    x, token = random(*shape), random(1, 1, shape[2], seed=2)
    vectors = pool(prepend_token(x, token), "cls")
    assert vectors.equal(token[0].expand(shape[0], -1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_mean_is_the_mean_of_the_patch_tokens(shape, prefix):
    b, n, d = shape
    x = random(b, prefix + n, d)
    vectors = pool(x, "mean", num_prefix_tokens=prefix)
    expected = mean_with_loops(x, prefix)
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_mean_does_not_see_the_prefix_tokens(prefix):
    def mean(x):
        return pool(x, "mean", num_prefix_tokens=prefix)[:, None]

    x = random(2, 6, 4)
    for token in range(6):
        changed = tokens_that_change(mean, x, (1, token))
        assert changed == ([] if token < prefix else [[1, 0]])


def test_cls_is_the_first_token_however_many_prefix_tokens_there_are():
    x = random(2, 6, 4)
    assert pool(x, "cls", num_prefix_tokens=2).equal(x[:, 0])


def test_the_default_is_cls_with_one_prefix_token():
    x = random(2, 6, 4)
    assert pool(x).equal(pool(x, "cls", num_prefix_tokens=1))
    assert pool(x, "mean").equal(pool(x, "mean", num_prefix_tokens=1))


@pytest.mark.parametrize(
    ("mode", "theirs"), [("cls", "token"), ("mean", "avg")]
)
@pytest.mark.parametrize("prefix", [1, 2])
def test_pool_equals_timm(mode, theirs, prefix):
    x = random(2, 6, 4)
    expected = timm.layers.global_pool_nlc(x, theirs, prefix)
    vectors = pool(x, mode, num_prefix_tokens=prefix)
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-12)


def test_both_functions_together_equal_timm_with_its_token():
    theirs = randomize(
        timm.models.VisionTransformer(
            *(32, 16, 3, 0),
            embed_dim=12,
            depth=0,
            num_heads=1,
            pos_embed="none",
        )
    )
    images = random(2, 3, 32, 32)
    tokens = prepend_token(theirs.patch_embed(images), theirs.cls_token)
    features = theirs.norm(tokens)
    expected = theirs.forward_features(images)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        pool(features), theirs(images), rtol=0, atol=1e-12
    )


def test_pool_refuses_an_unknown_mode():
    expected = 'mode must be "cls" or "mean", got \'avg\''
    with pytest.raises(ValueError, match=f"^{expected}$"):
        pool(torch.zeros(2, 6, 4), "avg")


@pytest.mark.parametrize(("mode", "prefix"), [("cls", 0), ("mean", -1)])
def test_pool_refuses_a_number_of_prefix_tokens_that_is_too_small(mode, prefix):
    least = {"cls": 1, "mean": 0}[mode]
    expected = (
        f"num_prefix_tokens must be at least {least} with mode='{mode}', "
        f"got {prefix}"
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        pool(torch.zeros(2, 6, 4), mode, num_prefix_tokens=prefix)


@pytest.mark.parametrize(
    ("shape", "mode", "prefix"),
    [
        ((6, 4), "cls", 1),
        ((6, 4), "mean", 1),
        ((2, 6, 4, 1), "mean", 1),
        ((2, 0, 4), "cls", 1),
        ((2, 1, 4), "cls", 2),
        ((2, 1, 4), "mean", 1),
        ((2, 2, 4), "mean", 2),
        ((2, 0, 4), "mean", 0),
    ],
)
def test_pool_refuses_tokens_that_it_cannot_read(shape, mode, prefix):
    expected = f"x must be (B, {prefix} + N, D), got {shape}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        pool(torch.zeros(shape), mode, num_prefix_tokens=prefix)
