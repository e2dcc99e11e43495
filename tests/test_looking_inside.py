"""Chapter 13."""

import math
import re

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import random, randomize
from sklearn.decomposition import PCA
from torch import nn

from vit_lessons import (
    HybridVisionTransformer,
    MultiHeadSelfAttention,
    SmallCNN,
    VisionTransformer,
    attention_distance,
    attention_rollout,
    attention_weights,
    class_attention,
    distance_correlation,
    load_pretrained,
    patch_attention,
    patch_distances,
    patch_filters,
    position_similarity,
    prepend_token,
    shuffle_patches,
    sincos_pos_embed,
)

SINGLE = 1e-5  # patch_distances rounds to float32
GRIDS = st.tuples(st.integers(1, 4), st.integers(1, 4))
PATCHES = st.tuples(st.integers(1, 9), st.integers(1, 9))
LEADING = st.sampled_from([(), (3,), (2, 3)])
drawn = settings(deadline=None, max_examples=25)


def softmax_rows(*shape, seed=1):
    """Random attention weights: each row is positive and sums to 1."""
    return random(*shape, seed=seed).softmax(dim=-1)


def places(grid_size, patch_size=(1, 1)):
    """Where each patch stands, in pixels, row by row."""
    (gh, gw), (p1, p2) = grid_size, patch_size
    return [(p1 * r, p2 * c) for r in range(gh) for c in range(gw)]


def close(got, expected, gap=1e-10):
    """The same shape, dtype and numbers, also in tuples and lists."""
    torch.testing.assert_close(got, expected, rtol=0, atol=gap)


def sums_to_1(x, dim=-1):
    total = x.sum(dim)
    close(total, torch.ones_like(total))


# Distances between patches.


@drawn
@given(GRIDS, PATCHES)
def test_patch_distances_are_those_between_places(grid_size, patch_size):
    at = places(grid_size, patch_size)
    got = patch_distances(grid_size, patch_size)
    assert got.dtype == torch.float32
    expected = torch.tensor([[math.dist(a, b) for b in at] for a in at])
    close(got, expected, SINGLE)
    assert got.equal(got.T)
    assert not got.diagonal().any()


def test_one_number_stands_for_a_square_grid_of_square_patches():
    assert patch_distances(3, 4).equal(patch_distances((3, 3), (4, 4)))
    assert patch_distances(3).equal(patch_distances((3, 3), 1))


@pytest.mark.parametrize(
    ("sizes", "name"), [((0, 1), "grid_size"), ((2, (4, 0)), "patch_size")]
)
def test_patch_distances_need_sizes(sizes, name):
    with pytest.raises(ValueError, match=f"{name} must be a positive int"):
        patch_distances(*sizes)


# How far attention looks.


@pytest.mark.parametrize("k", [0, 1, 2])
def test_who_looks_at_itself_looks_at_distance_0(k):
    weights = torch.eye(k + 6)
    distance = attention_distance(weights, (2, 3), 16, num_prefix_tokens=k)
    assert distance.equal(torch.tensor(0.0))


@drawn
@given(st.integers(1, 20), st.integers(1, 16), st.integers(0, 2))
def test_uniform_attention_on_a_row_has_the_distance_of_the_formula(n, p, k):
    weights = torch.full((k + n, k + n), 1 / (k + n))
    distance = attention_distance(weights, (1, n), p, num_prefix_tokens=k)
    assert distance == pytest.approx(p * (n * n - 1) / (3 * n), rel=1e-5)


def test_uniform_attention_on_a_grid_has_the_mean_distance_of_all_pairs():
    at = places((3, 5), (4, 7))
    expected = sum(math.dist(a, b) for a in at for b in at) / 15**2
    weights = torch.full((16, 16), 1 / 16)
    distance = attention_distance(weights, (3, 5), (4, 7))
    assert distance == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("step", "expected"), [((1, 0), 4.0), ((0, 1), 7.0)])
def test_who_looks_at_a_neighbor_looks_one_patch_far(step, expected):
    at = places((2, 4))
    weights = torch.zeros(8, 8)
    for i, (r, c) in enumerate(at):
        there = (r + step[0], c + step[1])
        back = (r - step[0], c - step[1])  # at the edge
        weights[i, at.index(there if there in at else back)] = 1
    distance = attention_distance(weights, (2, 4), (4, 7), num_prefix_tokens=0)
    assert distance == expected


@drawn
@given(GRIDS, PATCHES, st.integers(0, 2), LEADING, st.integers(0, 99))
def test_the_distance_is_the_weighted_mean(
    grid_size, patch_size, prefix, leading, seed
):
    at = places(grid_size, patch_size)
    tokens = prefix + len(at)
    weights = softmax_rows(*leading, tokens, tokens, seed=seed)
    expected = []
    for matrix in weights.view(-1, tokens, tokens).tolist():
        means = []
        for place, row in zip(at, matrix[prefix:], strict=True):
            far = [math.dist(place, other) for other in at]
            shares = row[prefix:]
            total = sum(s * d for s, d in zip(shares, far, strict=True))
            means.append(total / sum(shares))
        expected.append(sum(means) / len(means))
    got = attention_distance(
        weights, grid_size, patch_size, num_prefix_tokens=prefix
    )
    expected = torch.tensor(expected, dtype=torch.float64).view(leading)
    close(got, expected, SINGLE)


@pytest.mark.parametrize("k", [1, 2])
def test_what_goes_to_the_prefix_tokens_moves_no_distance(k):
    among = softmax_rows(2, 6, 6)
    weights = torch.full((2, k + 6, k + 6), 1 / (k + 6)).double()
    weights[:, k:, :k] = 0.5 / k  # half of each row
    weights[:, k:, k:] = 0.5 * among
    got = attention_distance(weights, (2, 3), num_prefix_tokens=k)
    close(got, attention_distance(among, (2, 3), num_prefix_tokens=0))


# Attention among the patches.


@drawn
@given(st.integers(1, 5), st.integers(0, 2), LEADING)
def test_rows_among_the_patches_sum_to_1_and_keep_their_ratios(n, k, leading):
    weights = softmax_rows(*leading, k + n, k + n)
    among = patch_attention(weights, num_prefix_tokens=k)
    assert among.shape == (*leading, n, n)
    sums_to_1(among)
    kept = weights[..., k:, k:]
    close(among * kept[..., :1], kept * among[..., :1])


@pytest.mark.parametrize(
    ("shape", "k", "words"),
    [
        ((3, 4), 1, "(..., T, T) with T more than 1, got (3, 4)"),
        ((3,), 1, "(..., T, T) with T more than 1, got (3,)"),
        ((2, 1, 1), 1, "(..., T, T) with T more than 1, got (2, 1, 1)"),
        ((4, 4), 4, "with T more than 4, got (4, 4)"),
        ((4, 4), -1, "with T more than -1, got (4, 4)"),
    ],
)
def test_without_patches_there_is_nothing_among_them(shape, k, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        patch_attention(torch.ones(shape), num_prefix_tokens=k)


@pytest.mark.parametrize("function", [patch_attention, attention_distance])
def test_a_patch_that_looks_at_no_patch_is_refused(function):
    weights = softmax_rows(2, 5, 5)
    weights[1, 3] = torch.tensor([1, 0, 0, 0, 0])
    arguments = () if function is patch_attention else (2,)
    with pytest.raises(ValueError, match=r"weight in each row, got a sum of 0"):
        function(weights, *arguments)


# Attention through all layers.


def test_layers_that_move_nothing_give_the_identity():
    layer = torch.eye(4).expand(2, 3, 4, 4)
    assert attention_rollout([layer] * 3).equal(torch.eye(4).expand(2, 4, 4))


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_each_uniform_layer_halves_what_stays_in_place(depth):
    layer = torch.ones(1, 2, 5, 5).double() / 5
    stays = 0.5**depth
    expected = stays * torch.eye(5).double() + (1 - stays) / 5
    close(attention_rollout([layer] * depth)[0], expected)


@drawn
@given(st.lists(st.integers(1, 3), min_size=1, max_size=6), st.integers(1, 5))
def test_the_rows_of_a_rollout_sum_to_1(heads, tokens):
    layers = [
        softmax_rows(2, h, tokens, tokens, seed=i) for i, h in enumerate(heads)
    ]
    rollout = attention_rollout(layers)
    assert rollout.shape == (2, tokens, tokens)
    sums_to_1(rollout)


def test_a_rollout_sums_over_all_paths_the_last_layer_first():
    one, two, three = (softmax_rows(2, 3, 4, 4, seed=i) for i in range(3))
    a, b, c = (
        0.5 * torch.stack([sum(w) / 3 for w in layer]) + 0.5 * torch.eye(4)
        for layer in (one, two, three)
    )
    expected = torch.einsum("zij,zjk,zkl->zil", c, b, a)
    wrong = torch.einsum("zij,zjk,zkl->zil", a, b, c)
    got = attention_rollout([one, two, three])
    close(got, expected)
    assert (got - wrong).abs().max() > 0.01


def test_what_layer_1_gave_can_be_passed_on_by_layer_2_only():
    a, b, c = 0, 1, 2
    one, two = (torch.eye(3).repeat(1, 2, 1, 1) for _ in range(2))
    one[:, :, b] = torch.eye(3)[a]  # b looks at a
    two[:, :, c] = torch.eye(3)[b]  # then c looks at b
    rollout = attention_rollout([one, two])[0]
    assert rollout[c].tolist() == [0.25, 0.25, 0.5]
    assert rollout[a].tolist() == [1, 0, 0]
    assert attention_rollout([two, one])[0, c].tolist() == [0, 0.5, 0.5]


@pytest.mark.parametrize(
    "shapes",
    [
        [],
        [(2, 4, 4)],
        [(1, 2, 3, 4)],
        [(1, 2, 4, 4), (1, 2, 1, 4)],  # a last layer of one query
        [(1, 2, 4, 4), (1, 2, 5, 5)],
        [(1, 2, 4, 4), (2, 2, 4, 4)],
        [(1, 2, 4, 4), (1, 4, 4)],
    ],
    ids=str,
)
def test_layers_that_do_not_fit_together_are_refused(shapes):
    words = f"(B, h, T, T) for each layer, got {shapes}"
    with pytest.raises(ValueError, match=re.escape(words)):
        attention_rollout([torch.ones(shape) for shape in shapes])


# Where the class token looks.


@drawn
@given(GRIDS, st.sampled_from([(1, 0), (2, 0), (2, 1), (3, 1)]), LEADING)
def test_the_map_shows_the_row_of_the_token_row_by_row(grid, tokens, leading):
    (gh, gw), (k, token) = grid, tokens
    weights = softmax_rows(*leading, k + gh * gw, k + gh * gw)
    got = class_attention(weights, grid, num_prefix_tokens=k, token=token)
    assert got.shape == (*leading, gh, gw)
    sums_to_1(got, dim=(-2, -1))
    left = 1 - weights[..., token, :k].sum(dim=-1)
    for r in range(gh):
        for c in range(gw):
            expected = weights[..., token, k + r * gw + c] / left
            close(got[..., r, c], expected)


@pytest.mark.parametrize("function", [attention_distance, class_attention])
@pytest.mark.parametrize(
    ("shape", "k"),
    [((6, 6), 1), ((7, 7), 2), ((7, 7), 0), ((2, 1, 7), 1), ((7,), 1)],
)
def test_weights_that_do_not_fit_the_grid_are_refused(function, shape, k):
    words = f"weights must be (..., {k + 6}, {k + 6}), got {shape}"
    with pytest.raises(ValueError, match=re.escape(words)):
        function(torch.ones(shape), (2, 3), num_prefix_tokens=k)


@pytest.mark.parametrize(("k", "token"), [(1, 1), (1, -1), (2, 2), (0, 0)])
def test_only_a_prefix_token_has_a_map(k, token):
    with pytest.raises(ValueError, match=f"token must be .*, got {token}$"):
        class_attention(
            torch.ones(k + 6, k + 6), (2, 3), num_prefix_tokens=k, token=token
        )


def test_a_class_token_that_looks_at_no_patch_is_refused():
    weights = softmax_rows(2, 5, 5)
    weights[1, 0] = torch.tensor([1, 0, 0, 0, 0])
    with pytest.raises(ValueError, match="some weight, got a sum of 0"):
        class_attention(weights, 2)
    weights[1, 0] = torch.tensor([0, 0, 0, 0, 1])
    weights[:, 1:] = torch.eye(5)[0]  # the others may
    assert class_attention(weights, 2)[1].tolist() == [[0, 0], [0, 1]]


# The weights of a model.


class TwoTokens(VisionTransformer):
    """With a second prefix token, as in DeiT."""

    num_prefix_tokens = 2

    def __init__(self, **options):
        super().__init__(**options)
        self.dist_token = nn.Parameter(torch.zeros(1, 1, 12))

    def add_positions(self, x):
        x = prepend_token(prepend_token(x, self.dist_token), self.cls_token)
        return self.dropout(x + self.pos_embed)


SMALL = {
    "img_size": (8, 12),
    "patch_size": 4,
    "num_classes": 5,
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 3,
}
MODELS = {
    "class token": (VisionTransformer, {}),
    "mean": (VisionTransformer, {"pool": "mean"}),
    "one block": (VisionTransformer, {"depth": 1}),
    "three blocks": (VisionTransformer, {"depth": 3}),
    "no head": (VisionTransformer, {"num_classes": 0}),
    "no qkv bias": (VisionTransformer, {"qkv_bias": False}),
    "80 patches": (VisionTransformer, {"img_size": (20, 64)}),
    "oblong patches": (VisionTransformer, {"patch_size": (4, 3)}),
    "hybrid": (HybridVisionTransformer, {}),
    "two tokens": (TwoTokens, {}),
}
each_model = pytest.mark.parametrize("name", MODELS)


def model_of(name="class token", **more):
    cls, options = MODELS[name]
    return randomize(cls(**{**SMALL, **options, **more}))


def images_for(model, batch=2):
    return random(batch, 3, *model.img_size)


def written_out(qkv, num_heads, bias=0):
    """The softmax of the scores, head by head, from the output of qkv."""
    q, k, _ = qkv.chunk(3, dim=-1)
    d = q.shape[-1] // num_heads
    heads = [slice(i * d, (i + 1) * d) for i in range(num_heads)]
    scores = [q[..., s] @ k[..., s].mT / math.sqrt(d) for s in heads]
    powers = (torch.stack(scores, dim=1) + bias).exp()
    return powers / powers.sum(dim=-1, keepdim=True)


def outputs_of(modules, run):
    """What the modules return while run() runs, in order."""
    seen = []
    hooks = [
        m.register_forward_hook(lambda m, i, output: seen.append(output))
        for m in modules
    ]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return seen


@each_model
def test_the_weights_are_the_softmax_written_out(name):
    model = model_of(name).eval()
    images = images_for(model)
    layers = [block.attn.qkv for block in model.blocks]
    seen = outputs_of(layers, lambda: model(images))
    expected = [written_out(qkv, num_heads=3) for qkv in seen]
    tokens = model.pos_embed.shape[1]  # also in the last block
    assert expected[-1].shape == (2, 3, tokens, tokens)
    close(attention_weights(model, images), expected)


@pytest.mark.parametrize(("img_size", "depth"), [(8, 1), (36, 3)])
def test_the_weights_are_those_of_torchvision(img_size, depth):
    theirs = torchvision.models.VisionTransformer(
        img_size, 4, depth, 3, 12, 48, num_classes=5
    )
    randomize(theirs).eval()
    model = model_of(img_size=img_size, depth=depth)
    load_pretrained(model, theirs.state_dict())
    images = images_for(model)
    layers = list(theirs.encoder.layers)
    seen = outputs_of([layer.ln_1 for layer in layers], lambda: theirs(images))
    expected = [
        layer.self_attention(x, x, x, average_attn_weights=False)[1]
        for layer, x in zip(layers, seen, strict=True)
    ]
    close(attention_weights(model, images), expected)


@pytest.mark.parametrize(
    ("theirs", "name"),
    [
        ("vit_tiny_patch16_224", "class token"),
        ("deit_tiny_distilled_patch16_224", "two tokens"),
    ],
)
def test_the_weights_are_those_of_timm(theirs, name):
    theirs = randomize(timm.create_model(theirs, **SMALL), seed=1).eval()
    model = model_of(name)
    load_pretrained(model, theirs.state_dict(), allow_unexpected=("head_dist",))
    images = images_for(model)
    drops = [block.attn.attn_drop for block in theirs.blocks]
    for block in theirs.blocks:
        block.attn.fused_attn = False
    expected = outputs_of(drops, lambda: theirs(images))
    close(attention_weights(model, images), expected)


class Twice(nn.Module):
    """One attention under two names, with a bias, and few queries."""

    def __init__(self):
        super().__init__()
        self.attn = self.again = MultiHeadSelfAttention(6, num_heads=2)
        self.bias = random(2, 5, 5, seed=4)
        self.bias[:, :, 3] = -math.inf  # nobody sees token 3

    def forward(self, x):
        x = x + self.attn(x, self.bias)
        return self.again(x=x, bias=2 * self.bias[:, :1], num_queries=2)


def test_an_attention_that_runs_twice_with_biases_has_two_entries():
    model, x = randomize(Twice()), random(3, 5, 6)
    one, two = outputs_of([model.attn.qkv], lambda: model(x))
    expected = [
        written_out(one, num_heads=2, bias=model.bias),
        written_out(two, num_heads=2, bias=2 * model.bias[:, :1]),
    ]
    close(attention_weights(model, x), expected)


@pytest.mark.parametrize("option", ["dropout", "drop_path"])
def test_nothing_is_dropped_while_looking(option):
    # The last block drops the most, but after the last weights.
    model = model_of("three blocks", **{option: 0.9}).train()
    images = images_for(model)
    expected = attention_weights(model_of("three blocks"), images)
    close(attention_weights(model, images), expected)


@each_model
def test_looking_leaves_no_trace(name):
    model = model_of(name).eval()
    images = images_for(model)
    before = model(images)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    weights = attention_weights(model.train(), images)
    assert not any(w.requires_grad for w in weights)
    assert torch.is_grad_enabled()
    assert all(p.requires_grad for p in model.parameters())
    after = model.state_dict()
    assert all(after[n].equal(t) for n, t in state.items())
    assert model.eval()(images).equal(before)


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_modes_and_hooks_are_afterwards_as_before(mode, broken):
    model = model_of("hybrid").train(mode != "eval")
    if mode == "mixed":
        model.blocks[1].mlp = model.blocks[0].mlp
        model.blocks[1].eval()
        model.blocks[0].mlp.train()
        model.patch_embed.eval()
        model.patch_embed.backbone[0][1].train()
    images, calls = images_for(model), []
    for block in model.blocks:  # hooks of the reader
        block.attn.register_forward_pre_hook(lambda m, i: calls.append("attn"))
        block.attn.qkv.register_forward_hook(lambda m, i, o: calls.append("q"))
    modes = {name: m.training for name, m in model.named_modules()}
    if broken:
        head, model.head = model.head, nn.Linear(1, 1).double()
        model.head.train(modes["head"])
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            attention_weights(model, images)
        model.head = head
    else:
        attention_weights(model, images)
    assert {name: m.training for name, m in model.named_modules()} == modes
    calls.clear()
    model(images)
    assert calls == ["attn", "q"] * 2


def test_a_model_without_attention_is_refused():
    unused = SmallCNN(1)
    unused.attn = MultiHeadSelfAttention(6, num_heads=2)  # does not run
    for model in (SmallCNN(1), unused):
        with pytest.raises(ValueError, match="MultiHeadSelfAttention, got non"):
            attention_weights(model, torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize("name", ["oblong patches", "two tokens"])
def test_without_positions_the_maps_move_with_the_patches(name):
    model = model_of(name)
    nn.init.zeros_(model.pos_embed)
    images = images_for(model)
    patch_size, grid = model.patch_embed.patch_size, model.grid_size
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(grid[0] * grid[1], generator=generator)

    def look(images):
        weights = attention_weights(model, images)
        k = model.num_prefix_tokens
        return [
            class_attention(w, grid, num_prefix_tokens=k, token=k - 1)
            for w in (weights[0], weights[-1], attention_rollout(weights))
        ]

    maps = look(images)
    assert [m.ndim for m in maps] == [4, 4, 3]  # a rollout has no heads
    expected = [m.flatten(-2)[..., order].view(m.shape) for m in maps]
    close(look(shuffle_patches(images, patch_size, order)), expected)
    assert min((m - e).std() for m, e in zip(maps, expected, strict=True)) > 0


# Positions.


@drawn
@given(GRIDS, st.integers(0, 2))
def test_similarity_is_the_cosine_between_places(grid_size, prefix):
    gh, gw = grid_size
    table = random(1, prefix + gh * gw, 5)
    parameter = nn.Parameter(table)
    got = position_similarity(parameter, grid_size, num_prefix_tokens=prefix)
    assert not got.requires_grad
    rows = {
        place: table[0, prefix + i] for i, place in enumerate(places(grid_size))
    }
    expected = torch.zeros(gh, gw, gh, gw).double()
    for one, x in rows.items():
        for other, y in rows.items():
            cosine = x.dot(y) / (x.dot(x) * y.dot(y)).sqrt()
            expected[(*one, *other)] = cosine
    close(got, expected)


def test_the_length_of_a_position_does_not_matter():
    table, lengths = random(1, 7, 8), random(1, 7, 1, seed=2).exp()
    got = position_similarity(lengths * table, (2, 3))
    close(got, position_similarity(table, (2, 3)))


@pytest.mark.parametrize(
    ("shape", "prefix"),
    [
        ((1, 6, 4), 1),
        ((1, 7, 4), 0),
        ((2, 7, 4), 1),
        ((1, 7), 1),
        ((1, 7, 2, 2), 1),
        ((1, 5, 4), -1),
    ],
)
def test_a_table_that_does_not_fit_the_grid_is_refused(shape, prefix):
    words = re.escape(f"(1, {prefix} + 2 * 3, D), got {shape}")
    with pytest.raises(ValueError, match=f"pos_embed must be {words}"):
        position_similarity(torch.ones(shape), (2, 3), num_prefix_tokens=prefix)


def test_sines_and_cosines_know_the_grid_and_random_numbers_do_not():
    tables = (sincos_pos_embed((7, 9), 64), random(1, 63, 64))
    known, unknown = (
        distance_correlation(
            position_similarity(table, (7, 9), num_prefix_tokens=0)
        )
        for table in tables
    )
    assert known > 0.8
    assert abs(unknown) < 0.05


@drawn
@given(GRIDS.filter(lambda grid: grid[0] * grid[1] > 2))
def test_the_correlation_is_that_of_pearson_without_self_pairs(grid_size):
    at = places(grid_size)
    similarity = random(*grid_size, *grid_size)
    rows = similarity.view(len(at), len(at)).tolist()
    pairs = [
        (rows[i][j], -math.dist(at[i], at[j]))
        for i in range(len(at))
        for j in range(len(at))
        if i != j
    ]
    mx, my = (sum(numbers) / len(pairs) for numbers in zip(*pairs, strict=True))
    sxy = sum((x - mx) * (y - my) for x, y in pairs)
    sxx = sum((x - mx) ** 2 for x, _ in pairs)
    syy = sum((y - my) ** 2 for _, y in pairs)
    got = distance_correlation(similarity)
    assert isinstance(got, float)
    assert got == pytest.approx(sxy / math.sqrt(sxx * syy), abs=1e-6)


def test_a_line_that_falls_with_distance_has_correlation_1():
    similarity = 3 - 0.25 * patch_distances((3, 5)).view(3, 5, 3, 5)
    assert distance_correlation(similarity) == pytest.approx(1, abs=1e-6)
    assert distance_correlation(-similarity) == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize(
    "shape",
    [(9, 9), (3, 3, 3), (2, 3, 3, 2), (2, 3, 2, 3, 1), (1, 2, 1, 2), (9,), ()],
)
def test_a_similarity_of_another_shape_is_refused(shape):
    words = re.escape(f"at least 3 patches, got {shape}")
    with pytest.raises(ValueError, match=words):
        distance_correlation(torch.ones(shape))


# Filters.


@pytest.mark.parametrize("patch_size", [(2, 3), 5])  # 18 and 75 weights
def test_the_filters_are_the_principal_components_of_scikit_learn(patch_size):
    model = randomize(nn.Conv2d(3, 30, patch_size))
    got, shares = patch_filters(model, count=10)
    assert got.shape == (10, *model.weight.shape[1:])
    pca = PCA(10, svd_solver="full").fit(model.weight.detach().flatten(1))
    expected = torch.from_numpy(pca.components_)
    signs = (expected * got.flatten(1)).sum(dim=1, keepdim=True).sign()
    close(got.flatten(1), signs * expected)
    close(shares, torch.from_numpy(pca.explained_variance_ratio_))


@pytest.mark.parametrize("width", [4, 30])  # fewer and more than 18 weights
def test_all_filters_are_orthonormal_and_share_all_of_the_variance(width):
    model = randomize(nn.Conv2d(3, width, (2, 3)))
    got, shares = patch_filters(model, count=min(width, 18))
    rows = got.flatten(1)
    close(rows @ rows.T, torch.eye(len(rows)).double())
    sums_to_1(shares)
    assert shares.equal(shares.sort(descending=True).values)


def test_the_largest_weight_of_a_filter_is_positive():
    model = randomize(nn.Conv2d(3, 30, (2, 3)))
    rows = patch_filters(model, count=18)[0].flatten(1)
    assert rows.amax(dim=1).equal(rows.abs().amax(dim=1))


def test_neither_order_nor_a_common_pattern_changes_the_filters():
    model, other = (randomize(nn.Conv2d(3, 12, 4)) for _ in range(2))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        other.weight.copy_(model.weight[order] + random(3, 4, 4))
    close(patch_filters(other, 5), patch_filters(model, 5))


def test_planted_patterns_are_found_the_strongest_first():
    model = nn.Conv2d(1, 40, 4).double()
    ramp = (torch.arange(4.0) - 1.5).double()
    across, check = ramp.expand(4, 4), ramp[:, None] * ramp
    across, check = across / across.norm(), check / check.norm()
    amounts = random(40, 2, 1, 1) * torch.tensor([3.0, 1.0])[:, None, None]
    with torch.no_grad():
        model.weight[:, 0] = amounts[:, 0] * across + amounts[:, 1] * check + 5
    (first, second), shares = patch_filters(model, count=2)
    # The two amounts are slightly correlated: the patterns mix a little.
    assert (first[0] * across).sum().abs() > 0.99
    assert (second[0] * check).sum().abs() > 0.99
    assert shares.sum() == pytest.approx(1)
    assert shares[0] > 4 * shares[1]


@pytest.mark.parametrize(
    ("create", "shape"),
    [
        (lambda: VisionTransformer(**SMALL), (3, 4, 4)),
        (lambda: HybridVisionTransformer(**SMALL), (3, 3, 3)),
        (lambda: SmallCNN(2, 10), (2, 3, 3)),
    ],
    ids=["ViT", "hybrid", "SmallCNN"],
)
def test_the_convolution_that_reads_the_pixels_is_taken(create, shape):
    model = create()
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    got, shares = patch_filters(model, count=3)
    assert got.shape == (3, *shape)
    assert not got.requires_grad
    close((got, shares), patch_filters(layers[0], count=3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_filters_of_half_precision_are_found_in_float32(dtype):
    model = randomize(nn.Conv2d(3, 12, 4)).to(dtype)
    got, shares = patch_filters(model, count=3)
    assert got.dtype == shares.dtype == torch.float32
    close((got, shares), patch_filters(model.float(), count=3))


@pytest.mark.parametrize(
    ("width", "count", "words"),
    [(5, 0, "1..5, got 0"), (5, 6, "1..5, got 6"), (30, 13, "1..12, got 13")],
)
def test_as_many_filters_as_there_are_can_be_found(width, count, words):
    model = nn.Conv2d(3, width, 2)  # 12 weights
    with pytest.raises(ValueError, match=re.escape(f"must be in {words}")):
        patch_filters(model, count)


def test_a_model_without_a_convolution_has_no_filters():
    with pytest.raises(ValueError, match="hold a convolution, got none"):
        patch_filters(nn.Linear(2, 2), 1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16])
def test_a_distance_is_computed_in_float32_at_least(dtype):
    weights = torch.ones(4, 4, dtype=dtype)
    distance = attention_distance(weights, 2, num_prefix_tokens=0)
    assert distance.dtype == torch.float32
    assert distance == pytest.approx((2 + 2**0.5) / 4, rel=1e-6)


def test_the_correlation_of_half_precision_does_not_overflow():
    table = sincos_pos_embed(14, 64)
    similarity = position_similarity(table, 14, num_prefix_tokens=0)
    assert distance_correlation(similarity.half()) == pytest.approx(
        distance_correlation(similarity), abs=1e-3
    )


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_table_that_is_the_same_everywhere_has_no_correlation(value):
    similarity = position_similarity(torch.full((1, 10, 4), value), 3)
    with pytest.raises(ValueError, match="same for all pairs, got only"):
        distance_correlation(similarity)
