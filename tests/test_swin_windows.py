"""Chapter 15."""

import copy
import itertools
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import has_all_gradients, random, randomize, tokens_that_change
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer import WindowAttention as TimmAttention
from torchvision.models.swin_transformer import ShiftedWindowAttention

from vit_lessons import (
    MultiHeadSelfAttention,
    WindowAttention,
    as_shift,
    pad_to_windows,
    shift_mask,
    window_partition,
    window_reverse,
)

NO_GAP = {"rtol": 0, "atol": 1e-12}
INF = float("inf")

# Map, window and shift.
TILED = [
    ((4, 6), (2, 3), (0, 0)),
    ((4, 6), (2, 2), (1, 1)),
    ((6, 8), (3, 4), (1, 2)),
    ((9, 8), (3, 4), (2, 3)),
    ((8, 6), (4, 3), (0, 2)),
    ((8, 6), (4, 3), (3, 0)),
    ((3, 9), (3, 3), (1, 1)),  # one window covers the rows,
    ((6, 3), (2, 3), (1, 2)),  # the columns,
    ((3, 4), (3, 4), (1, 2)),  # or both
    ((2, 4), (2, 2), (1, 1)),  # as many windows as heads
    ((4, 3), (1, 1), (0, 0)),
    ((16, 8), (8, 8), (4, 4)),  # 64 tokens: the fused kernel
]
PADDED = [
    ((5, 7), (2, 3), (0, 0)),
    ((5, 7), (2, 3), (1, 2)),
    ((7, 5), (3, 2), (1, 1)),
    ((4, 5), (3, 3), (2, 2)),  # a whole shifted window of zeros
    ((2, 7), (3, 3), (1, 1)),  # one window covers the rows,
    ((7, 2), (2, 4), (1, 1)),  # the columns,
    ((2, 3), (3, 4), (1, 2)),  # or both
    ((1, 1), (2, 3), (1, 1)),
    ((9, 12), (8, 8), (4, 3)),
]
ALL = TILED + PADDED
SMALL = [case for case in ALL if case[1] != (8, 8)]

sides = st.integers(1, 4)


@st.composite
def maps(draw):
    """A map that windows tile, the window, and a shift along each axis."""
    window = draw(st.tuples(sides, sides))
    times = draw(st.tuples(sides, sides))
    shift = tuple(draw(st.integers(0, m - 1)) for m in window)
    grid = tuple(m * n for m, n in zip(window, times, strict=True))
    return grid, window, shift


def layer_of(window, shift=0, *, dim=6, heads=2, **options):
    return randomize(WindowAttention(dim, heads, window, shift, **options))


def map_of(grid, *, batch=2, dim=6):
    return random(batch, *grid, dim)


def cut_by_slicing(x, window):
    m1, m2 = window
    return torch.stack(
        [
            image[top : top + m1, left : left + m2].flatten(0, 1)
            for image in x
            for top in range(0, x.shape[1], m1)
            for left in range(0, x.shape[2], m2)
        ]
    )


# Windows that lie across the borders of others, and nothing is rolled. Along
# an axis, they begin at s, s + M, s + 2 M: the first and last may be smaller.


def window_at(place, window, shift):
    """Number of the window that holds a place: -1 is before the first."""
    return tuple(
        (p - s) // m for p, m, s in zip(place, window, shift, strict=True)
    )


def places_of(grid):
    return list(itertools.product(*map(range, grid)))


def padded_grid(grid, window):
    return tuple(-(-g // m) * m for g, m in zip(grid, window, strict=True))


def mask_by_coordinates(grid, window, shift):
    (gh, gw), (m1, m2), (down, right) = grid, window, shift
    mask = []
    for top, left in itertools.product(range(0, gh, m1), range(0, gw, m2)):
        numbers = []
        for i, j in places_of(window):
            place = (top + down + i) % gh, (left + right + j) % gw
            numbers.append(window_at(place, window, shift))
        mask.append([[0 if a == b else -INF for b in numbers] for a in numbers])
    return torch.tensor(mask)


def seen_from(place, grid, layer):
    """Places of the padded map in the same window as one of them."""
    window, grid = layer.window_size, padded_grid(grid, layer.window_size)
    sizes = zip(grid, window, layer.shift_size, strict=True)
    shift = [0 if m >= g else s for g, m, s in sizes]
    number = window_at(place, window, shift)
    return [p for p in places_of(grid) if window_at(p, window, shift) == number]


def seen_on_map(image, place, grid, layer):
    places = set(seen_from(place, grid, layer)) & set(places_of(grid))
    return [[image, *p] for p in sorted(places)]


def attention_by_coordinates(layer, x):
    """Each token with the tokens of its window, found by their places."""
    (m1, m2), heads = layer.window_size, layer.num_heads
    batch, gh, gw, dim = x.shape
    grid = padded_grid((gh, gw), (m1, m2))
    padded = torch.zeros(batch, *grid, dim, dtype=x.dtype)
    padded[:, :gh, :gw] = x
    q, k, v = layer.qkv(padded).view(batch, *grid, 3, heads, -1).unbind(3)
    table = layer.relative_position_bias_table
    output = torch.zeros_like(x)
    for b, (r, c) in itertools.product(range(batch), places_of((gh, gw))):
        rows, columns = torch.tensor(seen_from((r, c), (gh, gw), layer)).T
        offset = (r - rows + m1 - 1) * (2 * m2 - 1) + c - columns + m2 - 1
        found = []
        for h in range(heads):
            fits = k[b, rows, columns, h] @ q[b, r, c, h] / (dim / heads) ** 0.5
            weights = (fits + table[offset, h]).softmax(0)
            found.append(weights @ v[b, rows, columns, h])
        output[b, r, c] = layer.proj(torch.cat(found))
    return output


# Cutting a map into windows.


@settings(deadline=None, max_examples=30)
@given(maps(), st.integers(0, 3))
def test_partition_equals_cutting_by_slices(case, batch):
    grid, window, _ = case
    x = random(1 + batch, *grid, 2)
    assert window_partition(x, window).equal(cut_by_slicing(x, window))


@settings(deadline=None, max_examples=30)
@given(maps(), st.integers(0, 3))
def test_reverse_inverts_partition(case, batch):
    grid, window, _ = case
    x = random(batch, *grid, 2)
    windows = window_partition(x, window)
    assert window_reverse(windows, window, grid).equal(x)


@settings(deadline=None, max_examples=30)
@given(maps(), st.integers(0, 3))
def test_partition_inverts_reverse(case, batch):
    grid, window, _ = case
    (gh, gw), (m1, m2) = grid, window
    windows = random(batch * (gh // m1) * (gw // m2), m1 * m2, 2)
    x = window_reverse(windows, window, grid)
    assert x.shape == (batch, gh, gw, 2)
    assert window_partition(x, window).equal(windows)


def test_windows_and_their_tokens_come_row_by_row():
    x = torch.arange(2 * 4 * 6).view(2, 4, 6, 1)
    windows = window_partition(x, (2, 3))[..., 0].tolist()
    assert windows[:4] == [
        [0, 1, 2, 6, 7, 8],
        [3, 4, 5, 9, 10, 11],
        [12, 13, 14, 18, 19, 20],
        [15, 16, 17, 21, 22, 23],
    ]
    assert windows[4] == [24, 25, 26, 30, 31, 32]


def test_an_int_stands_for_a_square():
    x = map_of((4, 4))
    windows = window_partition(x, 2)
    assert windows.equal(window_partition(x, (2, 2)))
    assert window_reverse(windows, 2, 4).equal(x)


def test_one_window_is_the_whole_map():
    x = map_of((3, 5))
    assert window_partition(x, (3, 5)).equal(x.flatten(1, 2))


def test_a_window_of_1_holds_one_token():
    x = map_of((3, 5))
    assert window_partition(x, 1).equal(x.view(2 * 15, 1, 6))


@pytest.mark.parametrize(
    "shape", [(2, 5, 6, 3), (2, 4, 7, 3), (4, 6, 3), (1, 2, 4, 6, 3)]
)
def test_partition_refuses_a_map_that_windows_do_not_tile(shape):
    words = "gh a multiple of 2 and gw a multiple of 3, got " + str(shape)
    with pytest.raises(ValueError, match=f"^x must be .* {re.escape(words)}$"):
        window_partition(torch.zeros(shape), (2, 3))


@pytest.mark.parametrize("grid", [(5, 6), (4, 7), (1, 3)])
def test_reverse_refuses_a_grid_that_windows_do_not_tile(grid):
    words = f"multiple of window_size, got {grid} and (2, 3)"
    with pytest.raises(ValueError, match=re.escape(words)):
        window_reverse(torch.zeros(4, 6, 1), (2, 3), grid)


@pytest.mark.parametrize("shape", [(6, 6, 3), (4, 5, 3), (4, 6), (4, 2, 3, 1)])
def test_reverse_refuses_windows_that_do_not_fit(shape):
    words = f"windows must be (B * 4, 6, D), got {shape}"
    with pytest.raises(ValueError, match=re.escape(words)):
        window_reverse(torch.zeros(shape), (2, 3), (4, 6))


@pytest.mark.parametrize("size", [0, (3, 0), (3,), 1.5, None])
def test_sizes_are_positive_ints_or_pairs_of_them(size):
    x, windows = torch.zeros(1, 3, 3, 2), torch.zeros(1, 9, 2)
    for name, call in [
        ("window_size", lambda: window_partition(x, size)),
        ("window_size", lambda: window_reverse(windows, size, 3)),
        ("grid_size", lambda: window_reverse(windows, 3, size)),
        ("window_size", lambda: pad_to_windows(x, size)),
        ("window_size", lambda: as_shift(0, size)),
        ("window_size", lambda: shift_mask(3, size, 0)),
        ("grid_size", lambda: shift_mask(size, 3, 0)),
        ("window_size", lambda: WindowAttention(4, 2, size)),
    ]:
        words = f"{name} must be a positive int or a pair (height, width) of "
        words += f"them, got {size!r}"
        with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
            call()


# Padding.


@pytest.mark.parametrize(
    ("grid", "window", "padded"),
    [
        ((5, 7), (2, 3), (6, 9)),
        ((4, 7), (2, 3), (4, 9)),
        ((5, 6), (2, 3), (6, 6)),
        ((1, 2), (4, 5), (4, 5)),
        ((50, 66), 7, (56, 70)),
    ],
)
def test_padding_adds_zeros_below_and_to_the_right_only(grid, window, padded):
    x = map_of(grid)
    expected = torch.zeros(2, *padded, 6, dtype=x.dtype)
    expected[:, : grid[0], : grid[1]] = x
    assert pad_to_windows(x, window).equal(expected)


@pytest.mark.parametrize(("grid", "window", "_"), TILED)
def test_a_map_that_windows_tile_is_not_padded(grid, window, _):
    x = map_of(grid)
    assert pad_to_windows(x, window).equal(x)


@pytest.mark.parametrize("shape", [(4, 6, 3), (1, 2, 4, 6, 3)])
def test_padding_refuses_other_shapes(shape):
    words = f"x must be (B, gh, gw, D), got {shape}"
    with pytest.raises(ValueError, match=re.escape(words)):
        pad_to_windows(torch.zeros(shape), 2)


# Shifts.


@pytest.mark.parametrize(
    ("shift", "window", "expected"),
    [
        (0, 1, (0, 0)),
        (3, 7, (3, 3)),
        (6, 7, (6, 6)),
        (2, (3, 5), (2, 2)),
        ((1, 4), (2, 5), (1, 4)),
        ((4, 0), (5, 1), (4, 0)),
    ],
)
def test_a_shift_is_read_as_rows_and_columns(shift, window, expected):
    assert as_shift(shift, window) == expected


@pytest.mark.parametrize(
    "shift",
    [
        *(-1, 3, 4, 1.0, None, "1", (1,), (1, 1, 1)),
        *((-1, 0), (0, -1), (3, 0), (0, 5), (1.0, 1), (1, 1.0), (2, None)),
    ],
)
def test_a_shift_is_at_least_0_and_below_the_window(shift):
    words = f"below window_size, got {shift!r} for (3, 5)"
    for call in (
        lambda: as_shift(shift, (3, 5)),
        lambda: shift_mask((6, 10), (3, 5), shift),
        lambda: WindowAttention(4, 2, (3, 5), shift),
    ):
        expected = f"^shift_size must be .* {re.escape(words)}$"
        with pytest.raises(ValueError, match=expected):
            call()


# The mask.


@settings(deadline=None, max_examples=40)
@given(maps())
def test_the_mask_joins_what_lies_in_one_window_before_the_roll(case):
    assert shift_mask(*case).equal(mask_by_coordinates(*case))


@settings(deadline=None, max_examples=40)
@given(maps())
def test_the_mask_equals_timm_with_minus_infinity_for_minus_100(case):
    grid, window, shift = case
    block = SwinTransformerBlock(
        *(4, grid, 2), window_size=window, always_partition=True
    )
    block.shift_size = shift
    theirs = block.get_attn_mask()
    if theirs is None:
        theirs = torch.zeros_like(shift_mask(*case))
    assert shift_mask(*case).equal(theirs.masked_fill(theirs == -100, -INF))


def test_a_mask_by_hand():
    # Columns 1 2 | 3 0 of a map with 4: the last window joins two borders.
    mask = shift_mask((1, 4), (1, 2), (0, 1))
    assert mask.tolist() == [[[0, 0], [0, 0]], [[0, -INF], [-INF, 0]]]


@settings(deadline=None, max_examples=20)
@given(maps())
def test_seeing_is_mutual(case):
    mask = shift_mask(*case)
    assert mask.equal(mask.transpose(1, 2))


@settings(deadline=None, max_examples=20)
@given(maps())
def test_each_token_sees_itself(case):
    assert (shift_mask(*case).diagonal(dim1=1, dim2=2) == 0).all()


def test_a_mask_holds_0_and_minus_infinity_in_float32():
    mask = shift_mask(8, 4, 2)
    assert mask.dtype == torch.float32
    assert mask.unique().tolist() == [-INF, 0]


def test_the_mask_is_made_on_the_device():
    mask = shift_mask(4, 2, 1, device=torch.device("meta"))
    assert mask.device.type == "meta"
    assert mask.shape == (4, 4, 4)


@pytest.mark.parametrize("grid", [(5, 6), (4, 7)])
def test_a_mask_needs_a_map_that_windows_tile(grid):
    with pytest.raises(ValueError, match="gh a multiple of 2 and gw a mul"):
        shift_mask(grid, (2, 3), 1)


# Attention in windows.


@pytest.mark.parametrize(("grid", "window", "shift"), ALL)
def test_the_layer_keeps_the_shape(grid, window, shift):
    layer = WindowAttention(6, 3, window, shift)
    assert layer(torch.ones(2, *grid, 6)).shape == (2, *grid, 6)


@pytest.mark.parametrize(("grid", "window", "shift"), SMALL)
def test_the_layer_equals_attention_by_coordinates(grid, window, shift):
    layer, x = layer_of(window, shift), map_of(grid)
    expected = attention_by_coordinates(layer, x)
    torch.testing.assert_close(layer(x), expected, **NO_GAP)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize(("grid", "window", "shift"), ALL)
def test_the_layer_equals_torchvision(grid, window, shift, qkv_bias):
    theirs = randomize(
        ShiftedWindowAttention(
            6, list(window), list(shift), 2, qkv_bias=qkv_bias
        )
    )
    ours = layer_of(window, shift, qkv_bias=qkv_bias)
    state = theirs.state_dict()
    state.pop("relative_position_index")
    ours.load_state_dict(state, strict=True)
    x = map_of(grid, batch=3)
    torch.testing.assert_close(ours(x), theirs(x), **NO_GAP)


def timm_of(ours, grid):
    """The attention of timm's block: what follows its first norm."""
    theirs = SwinTransformerBlock(
        *(ours.dim, grid, ours.num_heads),
        window_size=ours.window_size,
        shift_size=ours.shift_size,
    ).double()
    theirs.attn.load_state_dict(ours.state_dict(), strict=True)
    return theirs._attn


@pytest.mark.parametrize(("grid", "window", "shift"), TILED)
def test_the_layer_equals_timm_where_windows_tile_the_map(grid, window, shift):
    layer, x = layer_of(window, shift), map_of(grid, batch=3)
    torch.testing.assert_close(layer(x), timm_of(layer, grid)(x), **NO_GAP)


@pytest.mark.parametrize(("grid", "window", "shift"), PADDED)
def test_the_layer_equals_timm_on_a_map_padded_before(grid, window, shift):
    layer, x = layer_of(window, shift), map_of(grid, batch=3)
    theirs = timm_of(layer, padded_grid(grid, window))
    padded = theirs(pad_to_windows(x, window))
    expected = padded[:, : grid[0], : grid[1]]
    torch.testing.assert_close(layer(x), expected, **NO_GAP)


def test_opposite_borders_stay_apart_where_timm_joins_them():
    # timm rolls the map first and pads it afterwards. The mask is for the
    # other order.
    layer, x = layer_of(3, 1), map_of((5, 5), batch=1)
    theirs, top, bottom = timm_of(layer, (5, 5)), (0, 0, 0), [0, 4, 0]
    if bottom not in tokens_that_change(theirs, x, top):
        pytest.skip("this timm keeps opposite borders of a padded map apart")
    assert bottom not in tokens_that_change(layer, x, top)


@pytest.mark.parametrize(("grid", "window", "shift"), SMALL)
def test_a_token_changes_the_tokens_of_its_window_and_no_other(
    grid, window, shift
):
    layer, x = layer_of(window, shift), map_of(grid)
    before = layer(x)
    for place in places_of(grid):
        other = x.clone()
        other[0, *place] += random(6, seed=2)
        changed = (layer(other) != before).any(-1).nonzero().tolist()
        assert changed == seen_on_map(0, place, grid, layer)


@pytest.mark.parametrize(("grid", "window", "shift"), SMALL)
def test_a_gradient_reaches_the_tokens_of_the_window_and_no_other(
    grid, window, shift
):
    layer, x = layer_of(window, shift), map_of(grid).requires_grad_()
    output = layer(x)
    for place in places_of(grid):
        asked = (output[1, *place] * random(6, seed=2)).sum()
        (gradient,) = torch.autograd.grad(asked, x, retain_graph=True)
        changed = gradient.any(-1).nonzero().tolist()
        assert changed == seen_on_map(1, place, grid, layer)


@pytest.mark.parametrize("window", [4, 8])  # 8: the fused kernel
def test_no_score_is_large_enough_to_pass_the_mask(window):
    layer, half = layer_of(window, window // 2), window // 2
    layer.qkv.weight.data *= 100
    x = map_of((2 * window, 2 * window))
    other = x.clone()
    other[:, :half] += random(2, half, 2 * window, 6, seed=2)
    same = (layer(other) == layer(x)).all(-1)
    assert same[:, half:].all()
    assert not same[:, :half].any()


@pytest.mark.parametrize(("grid", "window"), [((4, 6), (2, 3)), ((9, 4), 3)])
def test_without_a_shift_it_is_chapter_04_in_each_window(grid, window):
    layer, x = layer_of(window), map_of(grid)
    m1, m2 = layer.window_size
    plain = MultiHeadSelfAttention(6, 2).double()
    plain.load_state_dict(layer.state_dict(), strict=False)
    padded = F.pad(x, (0, 0, 0, -grid[1] % m2, 0, -grid[0] % m1))
    expected = torch.zeros_like(padded)
    for top in range(0, grid[0], m1):
        for left in range(0, grid[1], m2):
            place = slice(top, top + m1), slice(left, left + m2)
            tokens = padded[:, *place].flatten(1, 2)
            output = plain(tokens, layer.position_bias())
            expected[:, *place] = output.view(2, m1, m2, 6)
    expected = expected[:, : grid[0], : grid[1]]
    torch.testing.assert_close(layer(x), expected, **NO_GAP)


@pytest.mark.parametrize("shift", [0, (1, 2)])
def test_one_window_without_bias_is_chapter_04(shift):
    layer, x = layer_of((3, 4), shift), map_of((3, 4))
    torch.nn.init.zeros_(layer.relative_position_bias_table)
    plain = MultiHeadSelfAttention(6, 2).double()
    plain.load_state_dict(layer.state_dict(), strict=False)
    expected = plain(x.flatten(1, 2)).view_as(x)
    torch.testing.assert_close(layer(x), expected, **NO_GAP)


def test_each_head_has_a_bias_for_each_offset_between_two_tokens():
    layer = layer_of((2, 3), heads=3)
    bias = layer.position_bias()
    assert bias.shape == (3, 6, 6)
    table = layer.relative_position_bias_table.view(3, 5, 3)
    for i, (r, c) in enumerate(places_of((2, 3))):
        for j, (y, x) in enumerate(places_of((2, 3))):
            assert bias[:, i, j].equal(table[r - y + 1, c - x + 2])


def test_far_from_the_border_a_shift_only_moves_the_windows():
    shifted, plain = layer_of((3, 4), (1, 3)), layer_of((3, 4))
    x = map_of((9, 12))
    expected = plain(x[:, 1:-2, 3:-1])
    torch.testing.assert_close(shifted(x)[:, 1:-2, 3:-1], expected, **NO_GAP)


def test_rolling_the_map_by_whole_windows_rolls_the_output():
    layer, x = layer_of((2, 3)), map_of((6, 9))
    rolled = layer(x.roll((4, 3), dims=(1, 2)))
    expected = layer(x).roll((4, 3), dims=(1, 2))
    torch.testing.assert_close(rolled, expected, **NO_GAP)


@pytest.mark.parametrize(("grid", "window", "shift"), ALL)
def test_an_image_alone_equals_the_same_image_in_a_batch(grid, window, shift):
    layer, x = layer_of(window, shift), map_of(grid, batch=3)
    alone = torch.cat([layer(image) for image in x.split(1)])
    torch.testing.assert_close(layer(x), alone, **NO_GAP)


def test_a_batch_may_be_empty():
    assert layer_of(2, 1)(map_of((5, 4), batch=0)).shape == (0, 5, 4, 6)


@pytest.mark.parametrize("shift", [0, 1])
def test_map_sizes_may_follow_each_other(shift):
    used = layer_of(2, shift)
    for grid in [(4, 6), (2, 2), (5, 3), (6, 4), (4, 6)]:
        x = map_of(grid)
        assert used(x).equal(layer_of(2, shift)(x))


def test_weights_loaded_after_a_forward_are_used():
    used, other, x = layer_of(2, 1), layer_of(2, 1), map_of((5, 4))
    used(x)
    randomize(other, seed=9)
    used.load_state_dict(other.state_dict(), strict=True)
    assert used(x).equal(other(x))


@pytest.mark.parametrize("shift", [0, 1])
def test_gradients_reach_every_parameter(shift):
    layer = layer_of(3, shift, qkv_bias=False)
    assert has_all_gradients(layer, layer(map_of((6, 7))))


@pytest.mark.parametrize("shift", [0, (1, 2)])
def test_a_gradient_reaches_every_number_of_the_bias_table(shift):
    layer = layer_of((3, 4), shift)
    has_all_gradients(layer, layer(map_of((6, 8))))
    assert (layer.relative_position_bias_table.grad != 0).all()


def test_training_and_evaluation_are_the_same():
    layer, x = layer_of(2, 1), map_of((4, 6))
    assert layer.train()(x).equal(layer.eval()(x))


def test_strides_do_not_matter():
    layer, x = layer_of((2, 3), (1, 1)), map_of((5, 6))
    strided = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not strided.is_contiguous()
    torch.testing.assert_close(layer(strided), layer(x), **NO_GAP)


def test_the_layer_runs_in_inference_mode():
    layer, x = layer_of(2, 1), map_of((4, 6))
    expected = layer(x)
    with torch.inference_mode():
        assert layer(x).equal(expected)


@pytest.mark.parametrize("window", [3, 8])
@pytest.mark.parametrize("shift", [0, 2])
def test_the_layer_runs_in_bfloat16_autocast(window, shift):
    layer, x = WindowAttention(6, 2, window, shift), torch.ones(2, 12, 17, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    assert output.isfinite().all()


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16]
)
def test_the_output_has_the_type_of_the_layer(dtype):
    layer = WindowAttention(6, 2, 2, 1).to(dtype)
    assert layer(map_of((4, 6)).to(dtype)).dtype == dtype


def test_a_copy_of_the_layer_is_the_same_layer():
    layer, x = layer_of((2, 3), (1, 2)), map_of((5, 6))
    for other in copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)):
        assert other(x).equal(layer(x))


@pytest.mark.parametrize("window", [7, (2, 5)])
def test_names_and_shapes_of_weights_are_those_of_timm(window):
    def shapes(layer):
        return {name: w.shape for name, w in layer.state_dict().items()}

    theirs = TimmAttention(12, 3, window_size=window)
    assert shapes(WindowAttention(12, 3, window)) == shapes(theirs)


def test_the_first_layer_of_swin_tiny_has_37755_weights():
    with torch.device("meta"):
        layer = WindowAttention(96, 3, 7, 3)
        assert layer(torch.ones(2, 56, 56, 96)).shape == (2, 56, 56, 96)
    assert sum(p.numel() for p in layer.parameters()) == 37_755


def test_first_biases_are_small_and_not_0():
    torch.manual_seed(0)
    table = WindowAttention(96, 3, 7).relative_position_bias_table
    assert 0.018 < table.std() < 0.022
    assert abs(table.mean()) < 0.002


def test_windows_of_7_are_the_default_and_do_not_shift():
    layer = WindowAttention(6, 2)
    assert (layer.window_size, layer.shift_size) == ((7, 7), (0, 0))


@pytest.mark.parametrize("shape", [(4, 6, 12), (2, 4, 6, 11), (1, 2, 4, 6, 12)])
def test_the_layer_refuses_other_shapes(shape):
    words = f"x must be (B, gh, gw, 12), got {shape}"
    with pytest.raises(ValueError, match=re.escape(words)):
        WindowAttention(12, 3, 2)(torch.zeros(shape))


@pytest.mark.parametrize(("dim", "heads"), [(12, 5), (12, 0), (0, 1)])
def test_the_layer_refuses_a_width_that_heads_do_not_divide(dim, heads):
    with pytest.raises(ValueError, match=f"dim={dim} and num_heads={heads}"):
        WindowAttention(dim, heads, 2)
