"""Chapter 03."""

import math
import re

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import random
from scipy.ndimage import zoom

from vit_lessons import (
    relative_position_index,
    resize_pos_embed,
    sincos_pos_embed,
)

CLOSE = {"rtol": 0, "atol": 1e-12}
SINGLE = {"rtol": 0, "atol": 1e-6}  # what returns float32 rounds to it
GRIDS = [(1, 1), (1, 5), (4, 1), (3, 3), (2, 5), (5, 3)]
# Old and new grid: up, down, square to oblong, oblong to oblong, turned.
RESIZES = [
    ((3, 3), (5, 5)),
    ((5, 5), (3, 3)),
    ((4, 4), (3, 6)),
    ((2, 5), (4, 3)),
    ((3, 5), (5, 3)),
    ((2, 3), (7, 11)),
]
RULES = [
    {"mode": "bicubic"},
    {"mode": "bicubic", "antialias": True},
    {"mode": "bilinear"},
    {"mode": "bilinear", "antialias": True},
    {"mode": "bicubic", "align_corners": True},
    {"mode": "bilinear", "align_corners": True},
]
PAPER = {"mode": "bilinear", "align_corners": True}


# Sines and cosines.


def sincos_with_loops(grid_size, dim, temperature):
    table = []
    for row in range(grid_size[0]):
        for column in range(grid_size[1]):
            vector = []
            for place in (column, row):
                for wave in (math.sin, math.cos):
                    for i in range(dim // 4):
                        slower = temperature ** (i / (dim / 4))
                        vector.append(wave(place / slower))
            table.append(vector)
    return torch.tensor([table])


@pytest.mark.parametrize("grid_size", GRIDS)
@pytest.mark.parametrize("dim", [4, 8, 24])
def test_sincos_equals_the_loops(grid_size, dim):
    table = sincos_pos_embed(grid_size, dim)
    assert table.shape == (1, grid_size[0] * grid_size[1], dim)
    assert table.dtype == torch.float32
    expected = sincos_with_loops(grid_size, dim, 10_000)
    torch.testing.assert_close(table, expected, **SINGLE)


@pytest.mark.parametrize("grid_size", GRIDS)
@pytest.mark.parametrize("temperature", [10_000.0, 100.0])
def test_sincos_equals_timm(grid_size, temperature):
    # With the column first, timm goes through the grid column by column.
    gh, gw = grid_size
    theirs = timm.layers.build_sincos2d_pos_embed(
        [gh, gw], 24, temperature, reverse_coord=True, interleave_sin_cos=True
    ).view(gw, gh, 24)
    table = sincos_pos_embed(grid_size, 24, temperature=temperature)
    expected = theirs.transpose(0, 1).reshape(1, gh * gw, 24)
    torch.testing.assert_close(table, expected, **SINGLE)


def test_one_place_of_sincos_by_hand():
    # Row 1, column 2, waves of speed 1 and 1 / 100.
    angles = [2, 0.02, 1, 0.01]
    sines, cosines = map(math.sin, angles), map(math.cos, angles)
    s, c = list(sines), list(cosines)
    expected = torch.tensor([*s[:2], *c[:2], *s[2:], *c[2:]])
    table = sincos_pos_embed((2, 3), 8)
    torch.testing.assert_close(table[0, 1 * 3 + 2], expected, **SINGLE)


def test_sincos_is_exact_at_places_far_away():
    table = sincos_pos_embed((1, 10_000), 16, temperature=2)
    assert abs(table[0, 9_999, 1] - math.sin(9_999 / 2**0.25)) < 1e-6


def test_sincos_of_an_int_is_that_of_a_square():
    assert sincos_pos_embed(3, 8).equal(sincos_pos_embed((3, 3), 8))


def test_each_place_has_a_vector_of_its_own():
    table = sincos_pos_embed((16, 24), 32)[0]
    distances = torch.cdist(table, table) + 9 * torch.eye(16 * 24)
    assert distances.min() > 0.1


def test_the_first_half_tells_the_column_and_the_second_half_the_row():
    columns, rows = sincos_pos_embed((3, 5), 8).view(3, 5, 8).split(4, dim=2)
    assert columns.equal(columns[:1].expand_as(columns))
    assert rows.equal(rows[:, :1].expand_as(rows))


def test_equal_steps_have_equal_dot_products():
    table = sincos_pos_embed((4, 6), 32)[0]
    products = (table @ table.T).view(4, 6, 4, 6)
    torch.testing.assert_close(
        products[0, 0, 2, 3], products[1, 2, 3, 5], rtol=1e-5, atol=0
    )


def test_the_temperature_slows_the_waves_down():
    warm, cold = (sincos_pos_embed(3, 8, temperature=t) for t in (1e4, 1e2))
    same = (warm == cold).all(1)[0].tolist()
    assert same == [True, False] * 4  # the fastest of two waves has speed 1


def test_at_temperature_1_all_waves_are_equally_fast():
    table = sincos_pos_embed(3, 8, temperature=1).view(9, 4, 2)
    assert table[..., 0].equal(table[..., 1])


@pytest.mark.parametrize("dim", [0, -4, 2, 6, 7])
def test_sincos_refuses_a_width_that_4_does_not_divide(dim):
    with pytest.raises(ValueError, match=f"^dim must be .* 4, got {dim}$"):
        sincos_pos_embed(3, dim)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
def test_sincos_refuses_a_temperature_that_is_not_positive(temperature):
    expected = f"^temperature must be positive, got {temperature}$"
    with pytest.raises(ValueError, match=expected):
        sincos_pos_embed(3, 8, temperature=temperature)


@pytest.mark.parametrize("size", [0, (3, 0), (3,), 1.5, None])
def test_sizes_of_grids_are_positive_ints_or_pairs_of_them(size):
    table = torch.zeros(1, 10, 4)
    for name, call in [
        ("grid_size", lambda: sincos_pos_embed(size, 8)),
        ("grid_size", lambda: relative_position_index(size)),
        ("grid_size", lambda: resize_pos_embed(table, size, 3)),
        ("new_grid_size", lambda: resize_pos_embed(table, 3, size)),
    ]:
        expected = f"{name} must be a positive int or a pair (height, width)"
        with pytest.raises(ValueError, match=f"^{re.escape(expected)}"):
            call()


# Relative positions.


def index_with_a_dictionary(gh, gw):
    offsets = [(y, x) for y in range(1 - gh, gh) for x in range(1 - gw, gw)]
    number = {offset: i for i, offset in enumerate(offsets)}
    places = [(y, x) for y in range(gh) for x in range(gw)]
    return torch.tensor(
        [[number[y - v, x - u] for v, u in places] for y, x in places]
    )


@pytest.mark.parametrize("grid_size", GRIDS)
def test_index_equals_the_dictionary_of_offsets(grid_size):
    index = relative_position_index(grid_size)
    assert index.dtype == torch.int64
    assert index.equal(index_with_a_dictionary(*grid_size))


@pytest.mark.parametrize("grid_size", GRIDS)
def test_index_equals_timm(grid_size):
    theirs = timm.models.swin_transformer.get_relative_position_index
    assert relative_position_index(grid_size).equal(theirs(*grid_size))


@pytest.mark.parametrize("grid_size", [(2, 2), (3, 3), (2, 5), (5, 3), (7, 7)])
def test_index_equals_torchvision(grid_size):
    gh, gw = grid_size
    theirs = torchvision.models.swin_transformer.ShiftedWindowAttention(
        2, [gh, gw], [0, 0], 1
    ).relative_position_index.view(gh * gw, gh * gw)
    assert relative_position_index(grid_size).equal(theirs)


def test_index_of_an_int_is_that_of_a_square():
    index = relative_position_index(3)
    assert index.equal(relative_position_index((3, 3)))


@pytest.mark.parametrize("grid_size", GRIDS)
def test_a_place_and_itself_have_the_number_in_the_middle(grid_size):
    gh, gw = grid_size
    index = relative_position_index(grid_size)
    middle = ((2 * gh - 1) * (2 * gw - 1) - 1) // 2
    assert index.diagonal().tolist() == [middle] * (gh * gw)


@pytest.mark.parametrize("grid_size", GRIDS)
def test_the_way_there_and_the_way_back_mirror_each_other(grid_size):
    gh, gw = grid_size
    index = relative_position_index(grid_size)
    assert (index + index.T == (2 * gh - 1) * (2 * gw - 1) - 1).all()


@pytest.mark.parametrize("grid_size", GRIDS)
def test_each_number_occurs(grid_size):
    gh, gw = grid_size
    numbers = relative_position_index(grid_size).unique().tolist()
    assert numbers == list(range((2 * gh - 1) * (2 * gw - 1)))


def test_pairs_that_lie_the_same_way_apart_share_a_number():
    index = relative_position_index((3, 5)).view(3, 5, 3, 5)
    assert index[1:, 2:, 1:, 2:].equal(index[:-1, :-2, :-1, :-2])


# A table for another grid.


def table_of(grid_size, prefix=1, dim=7):
    return random(1, prefix + grid_size[0] * grid_size[1], dim)


def by_zoom(table, grid_size, new_grid_size):
    """The rule of the paper's code, vit_jax/checkpoint.py."""
    grid = table.view(*grid_size, -1)
    factors = [n / o for n, o in zip(new_grid_size, grid_size, strict=True)]
    return torch.tensor(zoom(grid.numpy(), (*factors, 1), order=1)).flatten(
        0, 1
    )


@pytest.mark.parametrize(("old", "new"), RESIZES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_resize_equals_timm(old, new, rule, prefix):
    table = table_of(old, prefix).float()
    theirs = timm.layers.resample_abs_pos_embed(
        table,
        list(new),
        list(old),
        prefix,
        rule["mode"],
        rule.get("antialias", False),
        align_corners=rule.get("align_corners"),
    )
    resized = resize_pos_embed(
        table, old, new, num_prefix_tokens=prefix, **rule
    )
    torch.testing.assert_close(resized, theirs, **SINGLE)


@pytest.mark.parametrize(("old", "new"), RESIZES)
def test_resize_equals_the_rule_of_the_paper(old, new):
    table = table_of(old)
    resized = resize_pos_embed(table, old, new, **PAPER)
    expected = by_zoom(table[0, 1:], old, new)
    torch.testing.assert_close(resized[0, 1:], expected, **CLOSE)


def test_resize_equals_the_rule_of_the_paper_for_14_to_24():
    table = table_of((14, 14))
    resized = resize_pos_embed(table, 14, 24, **PAPER)
    expected = by_zoom(table[0, 1:], (14, 14), (24, 24))
    torch.testing.assert_close(resized[0, 1:], expected, **CLOSE)


@pytest.mark.parametrize(("old", "new"), RESIZES)
def test_resize_equals_the_rule_of_deit_and_mae(old, new):
    table = table_of(old)
    patches = table[:, 1:].reshape(1, *old, 7).permute(0, 3, 1, 2)
    patches = F.interpolate(
        patches, size=new, mode="bicubic", align_corners=False
    )
    patches = patches.permute(0, 2, 3, 1).flatten(1, 2)
    expected = torch.cat([table[:, :1], patches], dim=1)
    torch.testing.assert_close(
        resize_pos_embed(table, old, new), expected, **CLOSE
    )


def test_resize_equals_torchvision_at_another_image_size():
    table = table_of((7, 7)).float()
    theirs = torchvision.models.vision_transformer.interpolate_embeddings(
        96, 8, {"encoder.pos_embedding": table}
    )["encoder.pos_embedding"]
    resized = resize_pos_embed(table, 7, 12, mode="bicubic", align_corners=True)
    torch.testing.assert_close(resized, theirs, **SINGLE)


@pytest.mark.parametrize(
    ("new", "tokens"), [((13, 16), 209), ((14, 28), 393), ((24, 24), 577)]
)
def test_a_table_of_14_x_14_gets_a_row_for_each_token(new, tokens):
    assert resize_pos_embed(torch.ones(1, 197, 4), 14, new).shape == (
        *(1, tokens),
        4,
    )


@settings(deadline=None, max_examples=25)
@given(
    st.tuples(*[st.integers(1, 9)] * 4),
    st.integers(0, 2),
    st.sampled_from(RULES),
)
def test_a_constant_table_stays_constant(sizes, prefix, rule):
    old, new = sizes[:2], sizes[2:]
    tokens = prefix + old[0] * old[1]
    value = random(1, 1, 3)
    resized = resize_pos_embed(
        value.expand(1, tokens, 3), old, new, num_prefix_tokens=prefix, **rule
    )
    expected = value.expand(1, prefix + new[0] * new[1], 3)
    torch.testing.assert_close(resized, expected, **CLOSE)


@pytest.mark.parametrize("new", [(9, 4), (3, 8), (2, 2)])
def test_a_ramp_stays_a_ramp_with_aligned_corners(new):
    def ramp(gh, gw):
        down = torch.linspace(0, 1, gh, dtype=torch.float64)
        across = torch.linspace(0, 1, gw, dtype=torch.float64)
        return (2 * down[:, None] - 3 * across).view(1, gh * gw, 1)

    resized = resize_pos_embed(
        ramp(5, 6), (5, 6), new, num_prefix_tokens=0, **PAPER
    )
    torch.testing.assert_close(resized, ramp(*new), **CLOSE)


def test_aligned_corners_keep_the_four_corners():
    table = table_of((4, 6), 0).view(1, 4, 6, 7)
    resized = resize_pos_embed(
        table.flatten(1, 2), (4, 6), (7, 3), num_prefix_tokens=0, **PAPER
    ).view(1, 7, 3, 7)
    for row in (0, -1):
        for column in (0, -1):
            torch.testing.assert_close(
                resized[:, row, column], table[:, row, column], **CLOSE
            )


def test_each_feature_is_resized_alone():
    table = table_of((4, 5))
    resized = resize_pos_embed(table, (4, 5), (3, 7))
    alone = resize_pos_embed(table[..., 2:3], (4, 5), (3, 7))
    torch.testing.assert_close(alone, resized[..., 2:3], **CLOSE)


def test_rows_and_columns_are_treated_alike():
    table = table_of((4, 5), 0)
    turned = table.view(1, 4, 5, 7).transpose(1, 2).flatten(1, 2)
    options = {"num_prefix_tokens": 0}
    resized = resize_pos_embed(table, (4, 5), (3, 7), **options)
    expected = resize_pos_embed(turned, (5, 4), (7, 3), **options)
    torch.testing.assert_close(
        resized.view(1, 3, 7, 7).transpose(1, 2),
        expected.view(1, 7, 3, 7),
        **CLOSE,
    )


@pytest.mark.parametrize("prefix", [1, 2])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16]
)
def test_the_prefix_rows_stay_as_they_are_bit_for_bit(prefix, dtype):
    table = table_of((3, 4), prefix).to(dtype)
    resized = resize_pos_embed(table, (3, 4), 5, num_prefix_tokens=prefix)
    assert resized[:, :prefix].equal(table[:, :prefix])


def test_the_same_grid_returns_the_table_itself():
    table = table_of((3, 4))
    assert resize_pos_embed(table, (3, 4), (3, 4)) is table


def test_as_many_places_in_another_grid_is_another_table():
    table = table_of((2, 6))
    assert not resize_pos_embed(table, (2, 6), (3, 4)).equal(table)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES)
def test_half_precision_is_computed_in_float32(dtype, rule):
    table = table_of((5, 5)).to(dtype)
    resized = resize_pos_embed(table, 5, 3, **rule)
    assert resized.dtype == dtype
    assert resized.equal(
        resize_pos_embed(table.float(), 5, 3, **rule).to(dtype)
    )


def test_float64_is_computed_in_float64():
    table = table_of((3, 3))
    resized = resize_pos_embed(table, 3, 5)
    rounded = resize_pos_embed(table.float(), 3, 5)
    assert resized.dtype == torch.float64
    patches = resized[:, 1:]
    assert not patches.equal(patches.float().double())
    torch.testing.assert_close(resized.float(), rounded, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_a_gradient_reaches_every_number_of_the_table(rule):
    table = table_of((3, 4)).requires_grad_()
    resized = resize_pos_embed(table, (3, 4), (6, 5), **rule)
    (resized * random(*resized.shape, seed=3)).sum().backward()
    assert (table.grad != 0).all()


def test_each_option_changes_the_table():
    table = table_of((6, 6))
    plain = resize_pos_embed(table, 6, 4)
    for rule in RULES[1:]:
        assert not torch.allclose(resize_pos_embed(table, 6, 4, **rule), plain)


@pytest.mark.parametrize(
    ("shape", "old", "prefix"),
    [
        ((10, 4), (3, 3), 1),
        ((2, 10, 4), (3, 3), 1),
        ((1, 9, 4), (3, 3), 1),
        ((1, 10, 4), (3, 3), 0),
        ((1, 10, 4), (3, 3), 2),
        ((1, 10, 4), (2, 5), 1),
        ((1, 8, 4), (3, 3), -1),
        ((1, 1, 10, 4), (3, 3), 1),
        ((1, 10, 4, 1), (3, 3), 1),
    ],
)
def test_resize_refuses_a_table_that_does_not_fit(shape, old, prefix):
    expected = (
        f"pos_embed must be (1, {prefix} + {old[0]} * {old[1]}, D), got {shape}"
    )
    for new in (old, (5, 5)):
        with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
            resize_pos_embed(
                torch.zeros(shape), old, new, num_prefix_tokens=prefix
            )


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic", None])
def test_resize_refuses_another_mode(mode):
    expected = f'^mode must be "bilinear" or "bicubic", got {mode!r}$'
    for new in (3, 5):
        with pytest.raises(ValueError, match=expected):
            resize_pos_embed(torch.zeros(1, 10, 4), 3, new, mode=mode)
