"""Chapter 04."""

import re

import pytest
import timm
import torch
import torch.nn.functional as F
from oracles import has_all_gradients, random, randomize, tokens_that_change
from torch import nn

from vit_lessons import MultiHeadSelfAttention, scaled_dot_product_attention

NO_GAP = {"rtol": 0, "atol": 1e-12}
SHAPES = [(1, 1, 1, 1), (2, 5, 12, 3), (3, 7, 10, 5), (2, 200, 8, 2)]
INF = float("inf")


def qkv(*batch, n=4, m=5, d=6, dv=7):
    q, k = random(*batch, n, d, seed=1), random(*batch, m, d, seed=2)
    return q, k, random(*batch, m, dv, seed=3)


def attention_with_loops(q, k, v, bias):
    output = torch.zeros(len(q), v.shape[1], dtype=q.dtype)
    for i in range(len(q)):
        fits = [
            sum(q[i, f] * k[j, f] for f in range(q.shape[1]))
            / q.shape[1] ** 0.5
            + bias[i, j]
            for j in range(len(k))
        ]
        total = sum(fit.exp() for fit in fits)
        for j in range(len(k)):
            output[i] += fits[j].exp() / total * v[j]
    return output


def layer_of(dim=12, num_heads=3, **options):
    return randomize(MultiHeadSelfAttention(dim, num_heads, **options))


def test_attention_equals_the_loops():
    q, k, v = qkv()
    bias = random(4, 5, seed=4)
    output, _ = scaled_dot_product_attention(q, k, v, bias)
    expected = attention_with_loops(q, k, v, bias)
    torch.testing.assert_close(output, expected, **NO_GAP)


@pytest.mark.parametrize("bias", [None, (4, 5), (3, 4, 5), (2, 3, 4, 5)])
def test_attention_equals_torch(bias):
    q, k, v = qkv(2, 3)
    bias = None if bias is None else random(*bias, seed=4)
    output, _ = scaled_dot_product_attention(q, k, v, bias)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    torch.testing.assert_close(output, expected, **NO_GAP)


def test_each_row_of_weights_sums_to_1():
    _, weights = scaled_dot_product_attention(*qkv(2, 3), random(4, 5))
    sums = torch.ones(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(weights.sum(-1), sums, **NO_GAP)


def test_the_output_is_the_weights_times_the_values():
    q, k, v = qkv(2, 3)
    output, weights = scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(output, weights @ v, **NO_GAP)


def test_a_bias_of_minus_infinity_hides_a_key():
    q, k, v = qkv()
    bias = torch.zeros(4, 5, dtype=torch.float64)
    bias[:, 3] = -INF
    _, weights = scaled_dot_product_attention(q, k, v, bias)
    assert (weights == 0).nonzero()[:, 1].tolist() == [3] * 4


def test_large_scores_stay_finite():
    q, k, v = (1000 * x for x in qkv())
    assert scaled_dot_product_attention(q, k, v)[0].isfinite().all()


@pytest.mark.parametrize(
    ("q", "k", "v"),
    [((4, 6), (5, 7), (5, 6)), ((4, 6), (5, 6), (4, 6))],
)
def test_attention_refuses_shapes_that_do_not_fit(q, k, v):
    with pytest.raises(ValueError, match=re.escape(f"got {q}, {k}, {v}")):
        scaled_dot_product_attention(
            torch.zeros(q), torch.zeros(k), torch.zeros(v)
        )


@pytest.mark.parametrize("n", [5, 200])
def test_a_bias_must_hold_floats(n):
    bias = torch.ones(n, n, dtype=torch.bool)
    q = random(n, 4)
    for attend in (
        lambda: scaled_dot_product_attention(q, q, q, bias),
        lambda: layer_of()(random(1, n, 12), bias),
    ):
        with pytest.raises(ValueError, match=r"floats, got torch\.bool"):
            attend()


@pytest.mark.parametrize(("b", "n", "dim", "heads"), SHAPES)
def test_the_layer_keeps_the_shape(b, n, dim, heads):
    layer = layer_of(dim, heads)
    output, weights = layer(random(b, n, dim), return_weights=True)
    assert output.shape == (b, n, dim)
    assert weights.shape == (b, heads, n, n)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("n", [5, 200])
def test_the_layer_equals_timm_with_its_weights(n, qkv_bias):
    theirs = randomize(timm.layers.Attention(12, 3, qkv_bias=qkv_bias))
    ours = MultiHeadSelfAttention(12, 3, qkv_bias=qkv_bias).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = random(2, n, 12)
    torch.testing.assert_close(ours(x), theirs(x), **NO_GAP)


def test_the_layer_equals_torch_with_its_weights():
    theirs = randomize(nn.MultiheadAttention(12, 3, batch_first=True))
    ours = MultiHeadSelfAttention(12, 3).double()
    names = {
        "qkv.weight": "in_proj_weight",
        "qkv.bias": "in_proj_bias",
        "proj.weight": "out_proj.weight",
        "proj.bias": "out_proj.bias",
    }
    state = theirs.state_dict()
    ours.load_state_dict({our: state[their] for our, their in names.items()})
    x = random(2, 5, 12)
    output, weights = ours(x, return_weights=True)
    expected = theirs(x, x, x, average_attn_weights=False)
    torch.testing.assert_close((output, weights), expected, **NO_GAP)


@pytest.mark.parametrize("bias", [None, (200, 200), (3, 200, 200)])
def test_the_fused_kernel_equals_the_plain_form(bias):
    layer, x = layer_of(), random(2, 200, 12)
    bias = None if bias is None else random(*bias, seed=4)
    plain, _ = layer(x, bias, return_weights=True)
    torch.testing.assert_close(layer(x, bias), plain, **NO_GAP)


def test_a_long_sequence_runs_the_fused_kernel(monkeypatch):
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: calls.append(1) or fused(*args, **kwargs),
    )
    layer = layer_of()
    layer(random(1, 63, 12))
    assert not calls
    layer(random(1, 64, 12))
    assert calls


@pytest.mark.parametrize("n", [10, 70])
@pytest.mark.parametrize("num_queries", [1, 4, None])
@pytest.mark.parametrize("axes", [(), (1,), (1, 1), (3, 0, 1), (2, 1, 0, 1)])
def test_a_bias_broadcasts_to_the_scores(n, num_queries, axes):
    # 0 stands for the number of queries, 1 as the last axis for all tokens.
    queries = num_queries or n
    shape = [queries if axis == 0 else axis for axis in axes[:-1]]
    bias = random(*shape, *[n] * bool(axes), seed=4)
    layer, x = layer_of(), random(2, n, 12)
    output, weights = layer(
        x, bias, num_queries=num_queries, return_weights=True
    )
    assert weights.shape == (2, 3, queries, n)
    full = bias.expand(2, 3, queries, n)
    expected = layer(x, full, num_queries=num_queries)
    torch.testing.assert_close(output, expected, **NO_GAP)
    short = layer(x, bias, num_queries=num_queries)
    torch.testing.assert_close(short, expected, **NO_GAP)


@pytest.mark.parametrize("n", [10, 70])
@pytest.mark.parametrize("shape", [(3, 9, 9), (4, 1, 1, 1), (2, 2, 1, 1)])
def test_a_bias_that_does_not_broadcast_is_refused(n, shape):
    words = re.escape(f"broadcast to (2, 3, {n}, {n}), got {shape}")
    with pytest.raises(ValueError, match=words):
        layer_of()(random(2, n, 12), random(*shape))


@pytest.mark.parametrize("n", [10, 70])
def test_a_bias_for_all_queries_is_refused_if_few_ask(n):
    with pytest.raises(ValueError, match=rf"got \({n}, {n}\)"):
        layer_of()(random(2, n, 12), random(n, n), num_queries=1)


@pytest.mark.parametrize("num_queries", [-1, 0, 6])
def test_a_number_of_queries_that_there_are_not_is_refused(num_queries):
    with pytest.raises(ValueError, match=f"in 1..5, got {num_queries}"):
        layer_of()(random(2, 5, 12), num_queries=num_queries)


@pytest.mark.parametrize("n", [10, 70])
def test_a_bias_may_be_finer_than_the_layer(n):
    layer = layer_of().bfloat16()
    x = random(2, n, 12).bfloat16()
    assert layer(x, random(n, n)).dtype == torch.bfloat16


@pytest.mark.parametrize("n", [5, 200])
def test_permuting_tokens_permutes_the_output(n):
    layer, x = layer_of(), random(2, n, 12)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], **NO_GAP)


def test_every_token_sees_every_token_of_its_own_image_only():
    layer, x = layer_of(), random(2, 5, 12)
    changed = tokens_that_change(layer, x, (1, 3))
    assert changed == [[1, token] for token in range(5)]


@pytest.mark.parametrize("n", [8, 200])
def test_nothing_passes_a_bias_of_minus_infinity(n):
    layer, x = layer_of(), random(2, n, 12)
    half = torch.arange(n) < n // 2
    bias = torch.zeros(n, n, dtype=torch.float64)
    bias[half[:, None] != half[None, :]] = -INF
    changed = tokens_that_change(lambda x: layer(x, bias), x, (0, 0))
    assert changed == [[0, token] for token in range(n // 2)]


@pytest.mark.parametrize("n", [5, 200])
def test_gradients_reach_every_parameter(n):
    # The key bias moves all scores of a row alike: its gradient is 0.
    layer = layer_of(qkv_bias=False)
    assert has_all_gradients(layer, layer(random(2, n, 12)))


def test_the_number_of_heads_changes_the_output_and_no_weight():
    one, three = layer_of(num_heads=1), layer_of(num_heads=3)
    assert one.state_dict().keys() == three.state_dict().keys()
    x = random(2, 5, 12)
    assert not torch.allclose(one(x), three(x))


def test_base_model_attention_has_2362368_weights():
    with torch.device("meta"):
        layer = MultiHeadSelfAttention(768, 12)
    assert sum(p.numel() for p in layer.parameters()) == 2_362_368


@pytest.mark.parametrize("n", [5, 200])
def test_the_layer_runs_in_bfloat16_autocast(n):
    layer = MultiHeadSelfAttention(12, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(torch.ones(2, n, 12), torch.zeros(n, n))
    assert output.dtype == torch.bfloat16


@pytest.mark.parametrize(("dim", "heads"), [(12, 5), (12, 0), (0, 1)])
def test_the_layer_refuses_a_width_that_heads_do_not_divide(dim, heads):
    with pytest.raises(ValueError, match=f"dim={dim} and num_heads={heads}"):
        MultiHeadSelfAttention(dim, heads)


@pytest.mark.parametrize("shape", [(5, 12), (2, 5, 11), (1, 2, 5, 12)])
def test_the_layer_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=re.escape(f"got {shape}")):
        MultiHeadSelfAttention(12, 3)(torch.zeros(shape))
