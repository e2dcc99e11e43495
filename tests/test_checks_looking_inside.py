"""The checks of chapter 13: functions written by hand, right and wrong."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce

import vit_lessons
from vit_lessons.checks import check, looking_inside

EXERCISES = {exercise.name: exercise for exercise in looking_inside.EXERCISES}
NAMES = list(EXERCISES)
SIMILARITY, MAP, ROLLOUT, DISTANCE = NAMES

# Right functions, as different as readers are.


def similarity_in_loops(pos_embed, grid_size, num_prefix_tokens=1):
    gh, gw = grid_size
    table = pos_embed[0, num_prefix_tokens:].reshape(gh, gw, -1)
    result = torch.zeros(gh, gw, gh, gw)
    places = list(itertools.product(range(gh), range(gw)))
    for i, j in places:
        for k, m in places:
            one, two = table[i, j], table[k, m]
            norms = (one**2).sum().sqrt() * (two**2).sum().sqrt()
            result[i, j, k, m] = one.dot(two) / norms
    return result


def similarity_of_torch(pos_embed, grid_size, *, num_prefix_tokens=1):
    rows = pos_embed.detach().squeeze(0)[num_prefix_tokens:]
    alike = F.cosine_similarity(rows.unsqueeze(1), rows.unsqueeze(0), dim=-1)
    return alike.reshape(*grid_size, *grid_size)


def similarity_by_einsum(pos_embed, grid_size, num_prefix_tokens=1):
    table = F.normalize(pos_embed, dim=-1)[:, num_prefix_tokens:]
    alike = torch.einsum("bnd,bmd->bnm", table, table)
    gh, _ = grid_size
    return rearrange(alike, "1 (a b) (c d) -> a b c d", a=gh, c=gh).contiguous()


def similarity_by_norms(pos_embed, grid_size):
    rows = pos_embed[0][1:]
    norms = torch.linalg.norm(rows, dim=1)
    alike = rows @ rows.T / torch.outer(norms, norms)
    return alike.unflatten(1, grid_size).unflatten(0, grid_size)


def similarity_by_distance(pos_embed, grid_size, num_prefix_tokens=1):
    """For vectors of length 1, |a - b|^2 = 2 - 2 cos."""
    rows = pos_embed[0, num_prefix_tokens:].double()
    rows = rows / rows.norm(dim=-1, keepdim=True)
    alike = 1 - torch.cdist(rows, rows).square() / 2
    return alike.float().view(*grid_size, *grid_size)


def map_in_loops(weights, grid_size, num_prefix_tokens=1):
    n, (gh, gw) = num_prefix_tokens, grid_size
    maps = torch.zeros(*weights.shape[:2], gh, gw)
    for b, h in itertools.product(*map(range, weights.shape[:2])):
        row = weights[b, h, 0]
        total = sum(row[n:])
        for i, j in itertools.product(range(gh), range(gw)):
            maps[b, h, i, j] = row[n + i * gw + j] / total
    return maps


def map_by_einops(weights, grid_size, *, num_prefix_tokens=1, token=0):
    row = weights[..., token, num_prefix_tokens:]
    row = row / reduce(row, "... n -> ... 1", "sum")
    gh, gw = grid_size
    return rearrange(row, "b h (gh gw) -> b h gh gw", gh=gh, gw=gw)


def map_divided_at_the_end(weights, grid_size):
    b, h, _, _ = weights.shape
    maps = weights[:, :, 0, 1:].reshape(b, h, *grid_size)
    return maps / maps.sum(dim=(2, 3), keepdim=True)


def map_without_the_class(weights, grid_size):
    row = weights.select(2, 0)
    return (row[..., 1:] / (1 - row[..., :1])).unflatten(2, grid_size)


def map_of_logarithms(weights, grid_size, num_prefix_tokens=1):
    """A softmax of logarithms divides by the sum."""
    row = weights[:, :, 0, num_prefix_tokens:].log().softmax(dim=-1)
    return row.view(*row.shape[:2], *grid_size)


def rollout_in_a_loop(weights):
    tokens = weights[0].size(-1)
    result = torch.eye(tokens).repeat(len(weights[0]), 1, 1)
    for layer in weights:
        attention = layer.mean(dim=1)
        result = torch.bmm(0.5 * attention + 0.5 * torch.eye(tokens), result)
    return result


def rollout_from_the_last(weights):
    result = None
    for layer in reversed(weights):
        mixing = layer.mean(1) + torch.eye(layer.shape[-1])
        mixing = mixing / mixing.sum(dim=-1, keepdim=True)
        result = mixing if result is None else result @ mixing
    return result


def rollout_by_einsum(weights):
    layers = torch.stack(weights).mean(dim=2)
    mixing = 0.5 * (layers + torch.eye(layers.shape[-1]))
    result = mixing[0]
    for matrix in mixing[1:]:
        result = einsum(matrix, result, "b i j, b j k -> b i k")
    return result


def rollout_image_by_image(weights):
    eye = torch.eye(weights[0].shape[-1])
    images = []
    for b in range(weights[0].shape[0]):
        mixing = [0.5 * layer[b].mean(0) + 0.5 * eye for layer in weights]
        images.append(torch.linalg.multi_dot(mixing[::-1]))
    return torch.stack(images)


def rollout_of_each_token(weights):
    """Where the tokens of the input go, one after the other."""
    columns = []
    for token in torch.eye(weights[0].shape[-1]):
        x = token.expand(weights[0].shape[0], -1).unsqueeze(-1)
        for layer in weights:
            x = (layer.mean(1) @ x + x) / 2
        columns.append(x)
    return torch.cat(columns, dim=-1)


def rollout_in_numpy(weights):
    result = 1
    for layer in weights:
        mean = layer.numpy().mean(axis=1)
        mixing = (mean + torch.eye(mean.shape[-1]).numpy()) / 2
        result = mixing if isinstance(result, int) else mixing @ result
    return torch.from_numpy(result)


def distance_in_loops(weights, grid_size, patch_size, num_prefix_tokens=1):
    (gh, gw), (height, width) = grid_size, patch_size
    places = [(i * height, j * width) for i in range(gh) for j in range(gw)]
    result = torch.zeros(weights.shape[:2])
    for b, h in itertools.product(*map(range, weights.shape[:2])):
        for q, (y, x) in enumerate(places):
            row = weights[b, h, q + num_prefix_tokens, num_prefix_tokens:]
            for k, (v, u) in enumerate(places):
                apart = ((y - v) ** 2 + (x - u) ** 2) ** 0.5
                share = row[k] / row.sum()
                result[b, h] += share * apart / len(places)
    return result


def places_of(grid_size, patch_size):
    grid = torch.meshgrid(*map(torch.arange, grid_size), indexing="ij")
    return torch.stack(grid, -1).flatten(0, 1) * torch.tensor(patch_size)


def distance_by_cdist(weights, grid_size, patch_size, *, num_prefix_tokens=1):
    places = places_of(grid_size, patch_size).float()
    n = num_prefix_tokens
    among = F.normalize(weights[:, :, n:, n:], p=1, dim=-1)
    return torch.einsum(
        "bhqk,qk->bhq", among, torch.cdist(places, places)
    ).mean(-1)


def distance_divided_at_the_end(weights, grid_size, patch_size):
    y, x = places_of(grid_size, patch_size).float().T
    apart = torch.hypot(y[:, None] - y, x[:, None] - x)
    among = weights[..., 1:, 1:]
    return ((among * apart).sum(-1) / among.sum(-1)).mean(-1)


def distance_of_complex_numbers(weights, grid_size, patch_size):
    index = torch.arange(grid_size[0] * grid_size[1])
    y = index.div(grid_size[1], rounding_mode="floor") * patch_size[0]
    places = torch.complex(
        y.float(), (index % grid_size[1] * patch_size[1]).float()
    )
    apart = (places - places.unsqueeze(1)).abs()
    among = weights[:, :, 1:].clone()
    among[..., 0] = 0
    among = among / among.sum(-1, True)
    return among[..., 1:].mul(apart).sum((2, 3)) / len(index)


def distance_as_a_matrix_product(weights, grid_size, patch_size):
    places = places_of(grid_size, patch_size).float()
    apart = (places[:, None] - places[None]).pow(2).sum(-1).sqrt()
    among = weights[..., 1:, 1:]
    among = among / among.sum(-1, keepdim=True)
    products = among @ apart.T
    return products.diagonal(dim1=2, dim2=3).mean(-1)


RIGHT = [
    (SIMILARITY, similarity_in_loops),
    (SIMILARITY, similarity_of_torch),
    (SIMILARITY, similarity_by_einsum),
    (SIMILARITY, similarity_by_norms),
    (SIMILARITY, similarity_by_distance),
    (MAP, map_in_loops),
    (MAP, map_by_einops),
    (MAP, map_divided_at_the_end),
    (MAP, map_without_the_class),
    (MAP, map_of_logarithms),
    (ROLLOUT, rollout_in_a_loop),
    (ROLLOUT, rollout_from_the_last),
    (ROLLOUT, rollout_by_einsum),
    (ROLLOUT, rollout_image_by_image),
    (ROLLOUT, rollout_of_each_token),
    (ROLLOUT, rollout_in_numpy),
    (DISTANCE, distance_in_loops),
    (DISTANCE, distance_by_cdist),
    (DISTANCE, distance_divided_at_the_end),
    (DISTANCE, distance_of_complex_numbers),
    (DISTANCE, distance_as_a_matrix_product),
]


@pytest.mark.parametrize("name", NAMES)
def test_the_package_itself_passes(name):
    result = check(name, getattr(vit_lessons, name))
    assert result.passed, result.report
    assert "not run" not in result.report


@pytest.mark.parametrize(("name", "candidate"), RIGHT)
def test_a_right_function_written_differently_passes(name, candidate):
    result = check(name, candidate)
    assert result.passed, result.report
    assert result.cause is None


def test_a_function_need_not_count_prefix_tokens():
    for name, candidate, cases in (
        (SIMILARITY, similarity_by_norms, 2),
        (DISTANCE, distance_divided_at_the_end, 2),
    ):
        assert check(name, candidate).report.endswith(
            f"  not run {cases} cases with num_prefix_tokens, which your code "
            "does not take"
        )


def test_a_function_need_not_take_token():
    assert "not run 1 case with token," in check(MAP, map_in_loops).report


# Wrong similarities.


def unit(rows, dim=-1):
    return rows / rows.norm(dim=dim, keepdim=True)


def in_maps(alike, grid_size):
    return alike.reshape(*grid_size, *grid_size)


def similarity(change=unit, compare=lambda a, b: a @ b.T, end=in_maps):
    """A candidate that changes the rows, compares them and returns maps."""

    def candidate(pos_embed, grid_size, num_prefix_tokens=1):
        rows = change(pos_embed[0, num_prefix_tokens:])
        return end(compare(rows, rows), grid_size)

    return candidate


def similarity_without_the_last_row(pos_embed, grid_size):
    gh, gw = grid_size
    rows = unit(pos_embed[0, : gh * gw])
    return in_maps(rows @ rows.T, grid_size)


def similarity_with_the_prefix(pos_embed, grid_size, num_prefix_tokens=1):
    rows = unit(pos_embed[0])
    return in_maps(rows @ rows.T, grid_size)


def similarity_with_the_prefix_in_einops(pos_embed, grid_size):
    gh, gw = grid_size
    rows = rearrange(pos_embed[0], "(h w) d -> h w d", h=gh, w=gw)
    return torch.einsum("abd,ced->abce", unit(rows), unit(rows))


def similarity_of_all_rows_in_a_grid(pos_embed, grid_size):
    rows = pos_embed[0].view(*grid_size, -1)
    return torch.einsum("abd,ced->abce", unit(rows), unit(rows))


def similarity_for_one_prefix(pos_embed, grid_size, num_prefix_tokens=1):
    gh, gw = grid_size
    rows = unit(pos_embed[0, 1 : 1 + gh * gw])
    return in_maps(
        F.pad(rows, (0, 0, 0, gh * gw - len(rows))) @ rows.T, grid_size
    )


def similarity_of_normalized_tokens(pos_embed, grid_size):
    rows = F.normalize(pos_embed)[0, 1:]  # dim=1 is the default
    return in_maps(rows @ rows.T, grid_size)


def similarity_of_one_normalized_side(pos_embed, grid_size):
    rows = pos_embed[0, 1:]
    return in_maps(rows @ unit(rows).T, grid_size)


def similarity_scaled_as_scores(pos_embed, grid_size):
    rows = pos_embed[0, 1:]
    return in_maps(rows @ rows.T / rows.shape[1] ** 0.5, grid_size)


def similarity_without_keepdim(pos_embed, grid_size):
    rows = pos_embed[0, 1:]
    rows = rows / rows.norm(dim=1)
    return in_maps(rows @ rows.T, grid_size)


def similarity_for_square_grids(pos_embed, grid_size):
    side = int((pos_embed.shape[1] - 1) ** 0.5)
    rows = unit(pos_embed[0, 1 : 1 + side * side])
    return in_maps(rows @ rows.T, (side, side))


def turned_maps(alike, grid_size):
    gh, gw = grid_size
    return rearrange(alike, "(w h) (v g) -> h w g v", w=gw, h=gh, v=gw, g=gh)


def raw(rows):
    return rows


def distances(a, b):
    return torch.stack([(a - one).square().sum(-1).sqrt() for one in b])


LENGTH = "A vector keeps its length"
AXIS = "over the wrong axis"
APART = "This is a distance"
PREFIX = "The prefix tokens are still there"
GRID = "grid_size is (gh, gw), and the code swaps the two."
COLUMNS = "The places go column by column"
LAST = "The last token is left out"
ITSELF = "compared with itself only"
KEEPDIM = "use keepdim=True."

SIMILARITIES_WRONG = [
    (similarity(change=raw), LENGTH),
    (similarity_scaled_as_scores, LENGTH),
    (similarity_of_one_normalized_side, LENGTH),
    (similarity_without_the_last_row, LAST),
    (similarity_with_the_prefix, PREFIX),
    (similarity_with_the_prefix_in_einops, PREFIX),
    (similarity_of_all_rows_in_a_grid, PREFIX),
    (similarity_for_one_prefix, "Right for one prefix token only"),
    (similarity_for_square_grids, "Right for square grids only"),
    (similarity_of_normalized_tokens, AXIS),
    (similarity(change=lambda rows: unit(rows, 0)), AXIS),
    (similarity(change=lambda rows: rows / rows.norm()), AXIS),
    (similarity_without_keepdim, KEEPDIM),
    (
        similarity(change=raw, compare=lambda a, b: torch.corrcoef(a)),
        "A mean is subtracted first",
    ),
    (similarity(compare=distances), APART),
    (similarity(change=raw, compare=distances), APART),
    (similarity(compare=lambda a, b: 1 - a @ b.T), APART),
    (similarity(compare=lambda a, b: a @ b), "not rows @ rows."),
    (
        similarity(
            compare=F.cosine_similarity,
            end=lambda alike, grid_size: alike.view(grid_size),
        ),
        ITSELF,
    ),
    (
        similarity(compare=F.cosine_similarity, end=lambda alike, grid: alike),
        ITSELF,
    ),
    (similarity(end=lambda alike, grid: in_maps(alike, grid[::-1])), GRID),
    (similarity(end=turned_maps), COLUMNS),
    (
        similarity(end=lambda alike, grid: alike),
        "The result is no grid of maps",
    ),
]

# Wrong maps.


def shape_map(row, grid_size):
    return row.reshape(*row.shape[:-1], *grid_size)


def attention_map(
    row=lambda weights: weights[:, :, 0],
    divide=lambda row: row / row.sum(-1, keepdim=True),
    end=shape_map,
):
    """A candidate that takes a row, divides it and returns a map."""

    def candidate(weights, grid_size, num_prefix_tokens=1):
        patches = row(weights)[..., num_prefix_tokens:]
        return end(divide(patches), grid_size)

    return candidate


def map_with_the_class(weights, grid_size):
    return shape_map(weights[:, :, 0], grid_size)


def map_with_the_class_in_einops(weights, grid_size):
    gh, gw = grid_size
    row = weights[:, :, 0]
    return rearrange(row, "b h (gh gw) -> b h gh gw", gh=gh, gw=gw)


def map_with_the_class_unflattened(weights, grid_size):
    return weights[:, :, 0].unflatten(-1, grid_size)


def map_without_the_last_column(weights, grid_size):
    row = weights[:, :, 0, :-1]
    return shape_map(row / row.sum(-1, keepdim=True), grid_size)


def map_of_the_column(weights, grid_size):
    column = weights[:, :, 1:, 0]
    return shape_map(column / column.sum(-1, keepdim=True), grid_size)


def map_of_the_last_prefix(weights, grid_size, num_prefix_tokens=1):
    n = num_prefix_tokens
    row = weights[:, :, n - 1, n:]
    return shape_map(row / row.sum(-1, keepdim=True), grid_size)


def map_of_the_first_patch(weights, grid_size, num_prefix_tokens=1):
    n = num_prefix_tokens
    row = weights[:, :, n, n:]
    return shape_map(row / row.sum(-1, keepdim=True), grid_size)


def map_for_one_prefix(weights, grid_size, num_prefix_tokens=1):
    n = num_prefix_tokens
    row = weights[:, :, 0, n:] / (1 - weights[:, :, :1, 0])
    return shape_map(row, grid_size)


def map_for_square_grids(weights, grid_size):
    side = int((weights.shape[-1] - 1) ** 0.5)
    row = weights[:, :, 0, 1 : 1 + side * side]
    return shape_map(row / row.sum(-1, keepdim=True), (side, side))


def map_that_ignores_token(weights, grid_size, num_prefix_tokens=1, token=0):
    return map_by_einops(
        weights, grid_size, num_prefix_tokens=num_prefix_tokens
    )


def map_of_the_first_image(weights, grid_size):
    return map_by_einops(weights[:1], grid_size)


def map_without_keepdim(weights, grid_size):
    row = weights[:, :, 0, 1:]
    return shape_map(row / row.sum(dim=-1), grid_size)


def mean_of_heads_first(weights):
    return weights.mean(dim=1)[:, 0]


def turned_map(row, grid_size):
    return shape_map(row, grid_size[::-1]).transpose(-1, -2)


HEADS = "The heads are put together"
IMAGES = "The axis of the images is lost"
ONE_IMAGE = "Right for one image only"
NOT_DIVIDED = "Without the class token the weights sum to less than 1"
SOFTMAX = "A softmax acts on the weights once more"
TOGETHER = "divided by its own sum, over dim=-1 alone."
TOKEN = "Another token looks"

MAPS_WRONG = [
    (attention_map(divide=raw), NOT_DIVIDED),
    (map_with_the_class, PREFIX),
    (map_with_the_class_in_einops, PREFIX),
    (map_with_the_class_unflattened, PREFIX),
    (map_without_the_last_column, LAST),
    (map_of_the_column, "The column says who looks at the class token"),
    (map_of_the_last_prefix, TOKEN),
    (map_of_the_first_patch, TOKEN),
    (map_for_one_prefix, "Right for one prefix token only"),
    (map_for_square_grids, "Right for square grids only"),
    (map_that_ignores_token, "token is not used"),
    (map_of_the_first_image, ONE_IMAGE),
    (map_without_keepdim, KEEPDIM),
    (attention_map(row=lambda weights: weights.mean(2)), "rows are averaged"),
    (attention_map(row=mean_of_heads_first), HEADS),
    (attention_map(end=lambda r, grid: shape_map(r.mean(1), grid)), HEADS),
    (attention_map(end=lambda r, grid: shape_map(r.sum(1), grid)), HEADS),
    (attention_map(end=lambda r, grid: shape_map(r[0], grid)), IMAGES),
    (attention_map(end=lambda r, grid: shape_map(r.mean(0), grid)), IMAGES),
    (attention_map(end=lambda r, grid: shape_map(r, grid).squeeze(0)), IMAGES),
    (attention_map(divide=lambda row: row.softmax(-1)), SOFTMAX),
    (
        attention_map(divide=lambda row: row / row.amax(-1, keepdim=True)),
        "The map is divided by its largest weight",
    ),
    (attention_map(divide=lambda row: row / row.sum()), TOGETHER),
    (attention_map(divide=lambda row: F.normalize(row, p=1)), TOGETHER),
    (attention_map(end=lambda row, grid: shape_map(row, grid[::-1])), GRID),
    (attention_map(end=turned_map), COLUMNS),
    (attention_map(end=lambda row, grid: row), "The result is no map"),
]

# Wrong rollouts.


def half(attention):
    return 0.5 * attention + 0.5 * torch.eye(attention.shape[-1])


def add(attention):
    return attention + torch.eye(attention.shape[-1])


def add_and_divide(attention):
    return add(attention) / add(attention).sum(-1, keepdim=True)


def rollout(
    layers=lambda weights: weights,
    average=lambda layer: layer.mean(1),
    mix=half,
    multiply=lambda result, mixing: mixing @ result,
    end=raw,
):
    """A candidate that follows the layers one by one."""

    def candidate(weights):
        result = None
        for layer in layers(weights):
            mixing = mix(average(layer))
            result = mixing if result is None else multiply(result, mixing)
        return end(result)

    return candidate


def rollout_with_raw_first_layer(weights):
    result = weights[0].mean(1)
    for layer in weights[1:]:
        result = half(layer.mean(1)) @ result
    return result


def rollout_backwards(weights):
    result = torch.eye(weights[0].shape[-1])
    for layer in weights[::-1]:
        result = half(layer.mean(1)) @ result
    return result


def rollout_without_keepdim(weights):
    result = torch.eye(weights[0].shape[-1])
    for layer in weights:
        mixing = add(layer.mean(1))
        result = mixing / mixing.sum(dim=-1) @ result
    return result


def rollout_of_the_largest_without_keepdim(weights):
    result = torch.eye(weights[0].shape[-1])
    for layer in weights:
        mixing = add(layer.amax(1))
        result = mixing / mixing.sum(dim=-1) @ result
    return result


def rollout_of_two_layers(weights):
    return half(weights[1].mean(1)) @ half(weights[0].mean(1))


def rollout_of_the_first_image(weights):
    return rollout()([layer[:1] for layer in weights])


def rollout_of_a_tensor(weights):
    return rollout()(weights.unbind(0))


def rollout_that_takes_layers_away(weights):
    result = half(weights.pop(0).mean(1))
    while weights:
        result = half(weights.pop(0).mean(1)) @ result
    return result


def rollout_that_turns_the_list(weights):
    weights.reverse()
    result = torch.eye(weights[0].shape[-1])
    for layer in weights:
        result = result @ half(layer.mean(1))
    return result


def rollout_in_place(weights):
    for layer in weights:
        layer += torch.eye(layer.shape[-1])
        layer /= 2
    return rollout(mix=raw)(weights)


IDENTITY = "The identity is missing: "
MORE = "The rows sum to more than 1"
ORDER = "The order of the product is turned round"
ONE_HEAD = "Of all heads one is taken, or the largest or smallest weight"
APART_HEADS = "The heads are kept apart"
TURNED = "Rows and columns are swapped"
PART = "A part of the result is missing"
CHANGED = "changes the list that it gets"

ROLLOUTS_WRONG = [
    (rollout(mix=raw), IDENTITY),
    (rollout_with_raw_first_layer, "is missing in the first layer"),
    (rollout(mix=add), MORE),
    (rollout(mix=lambda a: 0.5 * a + torch.eye(a.shape[-1])), MORE),
    (rollout(multiply=torch.matmul), ORDER),
    (rollout_backwards, ORDER),
    (rollout(multiply=torch.mul), "not multiplied as matrices"),
    (rollout(layers=lambda weights: weights[:-1]), "last layer is left out"),
    (rollout(layers=lambda weights: weights[1:]), "first layer is left out"),
    (rollout(layers=lambda weights: weights[-1:]), "Only the last layer"),
    (rollout(average=lambda layer: layer.sum(1)), "The heads are summed"),
    (
        rollout(average=lambda layer: layer.sum(1), mix=add_and_divide),
        "The heads are summed",
    ),
    (rollout(average=lambda layer: layer.amax(1)), ONE_HEAD),
    (
        rollout(average=lambda layer: layer.max(1)[0], mix=add_and_divide),
        ONE_HEAD,
    ),
    (
        rollout(average=lambda layer: layer.min(1)[0], mix=add_and_divide),
        ONE_HEAD,
    ),
    (rollout(average=lambda layer: layer[:, 0]), ONE_HEAD),
    (rollout(average=raw), APART_HEADS),
    (rollout(average=raw, end=lambda result: result.mean(1)), APART_HEADS),
    (rollout(average=lambda layer: layer.mean(0)), IMAGES),
    (rollout(end=lambda result: result[0]), IMAGES),
    (rollout(end=lambda result: result.squeeze(0)), IMAGES),
    (rollout(end=lambda result: result.mean(0)), IMAGES),
    (rollout(average=lambda layer: layer.mean(1).mT), TURNED),
    (rollout(end=lambda result: result.transpose(1, 2)), TURNED),
    (rollout(end=lambda result: result[:, 0]), PART),
    (rollout(end=lambda result: result[:, 0, 1:]), PART),
    (rollout_without_keepdim, KEEPDIM),
    (rollout_of_the_largest_without_keepdim, KEEPDIM),
    (rollout_of_the_first_image, ONE_IMAGE),
    (rollout_of_two_layers, "Right for two layers only."),
    (rollout_of_a_tensor, "weights is a list with one tensor"),
    (rollout_that_takes_layers_away, CHANGED),
    (rollout_that_turns_the_list, CHANGED),
    (rollout_in_place, "changes its input in place"),
]

# Wrong distances.


def straight(offsets):
    return offsets.square().sum(-1).sqrt()


def rows_to_one(among):
    return among / among.sum(dim=-1, keepdim=True)


def distance(
    places=places_of,
    apart=straight,
    divide=rows_to_one,
    weigh=lambda among, distances: (among * distances).sum(-1),
    end=lambda each: each.mean(-1),
):
    """A candidate that measures, weighs and averages distances."""

    def candidate(weights, grid_size, patch_size, num_prefix_tokens=1):
        n = num_prefix_tokens
        at = places(grid_size, patch_size).float()
        distances = apart(at[:, None] - at)
        return end(weigh(divide(weights[:, :, n:, n:]), distances))

    return candidate


def straight_lines(grid_size, patch_size):
    places = places_of(grid_size, patch_size).float()
    return torch.cdist(places, places)


def distance_with_zeros_for_the_class(weights, grid_size, patch_size):
    """The class column stays, at a distance of 0 to all."""
    apart = F.pad(straight_lines(grid_size, patch_size), (1, 0))
    return (weights[:, :, 1:] * apart).sum(-1).mean(-1)


def distance_with_the_row_of_the_class(weights, grid_size, patch_size):
    apart = F.pad(straight_lines(grid_size, patch_size), (1, 0, 1, 0))
    weights = weights.clone()
    weights[..., 0] = 0
    return (rows_to_one(weights) * apart).sum(-1).mean(-1)


def distance_with_row_and_column_of_the_class(weights, grid_size, patch_size):
    apart = F.pad(straight_lines(grid_size, patch_size), (1, 0, 1, 0))
    return (weights * apart).sum(-1).mean(-1)


def distance_with_the_class(weights, grid_size, patch_size):
    return (weights * straight_lines(grid_size, patch_size)).sum(-1).mean(-1)


def distance_with_the_column_of_the_class(weights, grid_size, patch_size):
    apart = straight_lines(grid_size, patch_size)
    return torch.einsum("bhqk,qk->bhq", weights[:, :, 1:], apart).mean(-1)


def distance_without_the_last_token(weights, grid_size, patch_size):
    apart = straight_lines(grid_size, patch_size)
    return (rows_to_one(weights[..., :-1, :-1]) * apart).sum(-1).mean(-1)


def distance_for_one_prefix(
    weights, grid_size, patch_size, num_prefix_tokens=1
):
    among = weights[..., -grid_size[0] * grid_size[1] :, :]
    among = among / (1 - among[..., :1])
    among = among[..., -grid_size[0] * grid_size[1] :]
    apart = straight_lines(grid_size, patch_size)
    return (among * apart).sum(-1).mean(-1)


def distance_for_square_grids(weights, grid_size, patch_size):
    side = int((weights.shape[-1] - 1) ** 0.5)
    apart = straight_lines((side, side), patch_size)
    among = rows_to_one(weights[..., 1:, 1:])[..., : side**2, : side**2]
    return (among * apart).sum(-1).mean(-1)


def distance_for_square_patches(weights, grid_size, patch_size):
    apart = straight_lines(grid_size, (1, 1)) * sum(patch_size) / 2
    return (rows_to_one(weights[..., 1:, 1:]) * apart).sum(-1).mean(-1)


def distance_of_the_first_image(weights, grid_size, patch_size):
    return distance()(weights[:1], grid_size, patch_size)


def distance_of_whole_numbers(weights, grid_size, patch_size):
    places = places_of(grid_size, patch_size)
    apart = (places[:, None] - places).norm(dim=-1)
    return (rows_to_one(weights[..., 1:, 1:]) * apart).sum(-1).mean(-1)


def distance_by_cdist_of_whole_numbers(weights, grid_size, patch_size):
    places = places_of(grid_size, patch_size)
    apart = torch.cdist(places, places)
    return (rows_to_one(weights[..., 1:, 1:]) * apart).sum(-1).mean(-1)


def distance_times_a_pair(weights, grid_size, patch_size):
    apart = straight_lines(grid_size, (1, 1)) * patch_size
    return (rows_to_one(weights[..., 1:, 1:]) * apart).sum(-1).mean(-1)


def distance_without_keepdim(weights, grid_size, patch_size):
    among = weights[..., 1:, 1:]
    apart = straight_lines(grid_size, patch_size)
    return (among / among.sum(-1) * apart).sum(-1).mean(-1)


def places_divided_by_gh(grid_size, patch_size):
    gh, gw = grid_size
    index = torch.arange(gh * gw)
    return torch.stack([index // gh, index % gh], 1) * torch.tensor(patch_size)


def places_column_by_column(grid_size, patch_size):
    (gh, gw), (height, width) = grid_size, patch_size
    return torch.tensor(
        [(i * height, j * width) for j in range(gw) for i in range(gh)]
    )


def places_in_patches(grid_size, patch_size):
    return places_of(grid_size, (1, 1))


def places_with_swapped_sides(grid_size, patch_size):
    return places_of(grid_size, (patch_size[1], patch_size[0]))


def places_of_square_patches(grid_size, patch_size):
    return places_of(grid_size, (patch_size[0], patch_size[0]))


def places_of_the_width(grid_size, patch_size):
    return places_of(grid_size, (patch_size[1], patch_size[1]))


def by_all_columns(among):
    return among / among.sum(dim=-2, keepdim=True)


def by_the_whole(among):
    n = among.shape[-1]
    return among / among.sum(dim=(-2, -1), keepdim=True) * n


SIDES = "Height and width of the patch are swapped, or one is used twice"
STRAIGHT = "Not the straight distance"
SQUARED = "The distance is squared"
LARGEST = "The largest is taken"
SUM = "The weighted sum is wrong"
QUERIES = "The patches that look are summed, or kept apart"
TURNED_GRID = "The grid is turned"
FLOATS = "make them floats"

DISTANCES_WRONG = [
    (distance(divide=raw), NOT_DIVIDED),
    (distance_with_zeros_for_the_class, NOT_DIVIDED),
    (distance_with_the_row_of_the_class, "The row of the class token is in"),
    (distance_with_row_and_column_of_the_class, "The row of the class token"),
    (distance_with_the_class, PREFIX),
    (distance_with_the_column_of_the_class, PREFIX),
    (distance_without_the_last_token, LAST),
    (distance_for_one_prefix, "Right for one prefix token only"),
    (distance_for_square_grids, "Right for square grids only"),
    (distance_of_the_first_image, ONE_IMAGE),
    (distance_of_whole_numbers, FLOATS),
    (distance_by_cdist_of_whole_numbers, FLOATS),
    (distance_times_a_pair, "patch_size is (height, width)."),
    (distance_without_keepdim, KEEPDIM),
    (distance(divide=lambda among: among.softmax(-1)), SOFTMAX),
    (distance_for_square_patches, "Right for square patches only"),
    (distance(divide=by_all_columns), TOGETHER),
    (distance(divide=by_the_whole), TOGETHER),
    (distance(places=places_divided_by_gh), TURNED_GRID),
    (distance(places=places_column_by_column), TURNED_GRID),
    (distance(places=places_in_patches), "patch_size is not used"),
    (distance(places=places_with_swapped_sides), SIDES),
    (distance(places=places_of_square_patches), SIDES),
    (distance(places=places_of_the_width), SIDES),
    (distance(apart=lambda offsets: offsets.square().sum(-1)), SQUARED),
    (
        distance(
            apart=lambda offsets: offsets.square().sum(-1),
            end=lambda each: each.mean(-1).sqrt(),
        ),
        SQUARED,
    ),
    (distance(apart=lambda offsets: offsets.abs().sum(-1)), STRAIGHT),
    (distance(apart=lambda offsets: offsets.abs().amax(-1)), STRAIGHT),
    (distance(weigh=lambda among, d: (among * d).amax(-1)), LARGEST),
    (distance(end=lambda each: each.max(-1).values), LARGEST),
    (distance(weigh=lambda among, d: (among * d).mean(-1)), SUM),
    (distance(weigh=lambda among, d: (among @ d).mean(-1)), SUM),
    (distance(end=lambda each: each.sum(-1)), QUERIES),
    (distance(end=raw), QUERIES),
    (distance(end=lambda each: each.mean((1, 2))), HEADS),
    (distance(end=lambda each: each.mean(-1).sum(1)), HEADS),
    (distance(end=lambda each: each.mean((0, 2))), IMAGES),
    (distance(end=lambda each: each.mean(-1)[0]), IMAGES),
    (distance(end=lambda each: each.mean(-1).squeeze()), IMAGES),
]

WRONG = [
    (name, candidate, words)
    for name, candidates in zip(
        NAMES,
        (SIMILARITIES_WRONG, MAPS_WRONG, ROLLOUTS_WRONG, DISTANCES_WRONG),
        strict=True,
    )
    for candidate, words in candidates
]


@pytest.mark.parametrize(("name", "candidate", "words"), WRONG)
def test_a_mistake_written_by_hand_is_named(name, candidate, words):
    result = check(name, candidate)
    assert not result.passed
    assert words in (result.cause or ""), result.report
    assert result.report.endswith(f"Likely mistake: {result.cause}")


@pytest.mark.parametrize("name", NAMES)
def test_every_mistake_of_the_catalogue_is_written_by_hand(name):
    written = [words for which, _, words in WRONG if which == name]
    for wrong in EXERCISES[name].wrong_forms():
        if not wrong.cause.startswith("There are two mistakes."):
            assert any(some in wrong.cause for some in written), wrong.cause


@pytest.mark.parametrize("name", NAMES)
def test_every_cause_of_a_case_is_written_by_hand(name):
    written = [words for which, _, words in WRONG if which == name]
    for case in EXERCISES[name].cases:
        if case.cause:
            assert any(some in case.cause for some in written), case.cause


@pytest.mark.parametrize("name", NAMES)
def test_every_meaning_of_an_error_is_written_by_hand(name):
    written = [words for which, _, words in WRONG if which == name]
    for meaning in EXERCISES[name].errors.values():
        assert any(some in meaning for some in written), meaning


@pytest.mark.parametrize(
    ("candidate", "second"),
    [
        (
            distance(divide=raw, places=places_in_patches),
            "patch_size is not used: distances are in pixels, not in patches.",
        ),
        (
            distance_with_row_and_column_of_the_class,
            "The row of the class token is in the mean: only patches look.",
        ),
    ],
)
def test_two_mistakes_at_once_are_both_named(candidate, second):
    cause = check(DISTANCE, candidate).cause
    assert cause.startswith("There are two mistakes. Without the class token")
    assert cause.endswith(second)


def test_the_attention_of_a_case_sees_the_class_token_a_lot():
    for name in (MAP, DISTANCE):
        for case in EXERCISES[name].cases:
            if case.kwargs.get("num_prefix_tokens") != 0:
                assert 0.3 < case.args[0][..., 0].mean() < 0.6


# Stubs and nonsense.


def my_position_similarity(pos_embed, grid_size, *, num_prefix_tokens=1): ...


def my_class_attention(weights, grid_size, *, num_prefix_tokens=1): ...


def my_attention_rollout(weights): ...


def my_attention_distance(
    weights, grid_size, patch_size, *, num_prefix_tokens=1
): ...


STUBS = (
    my_position_similarity,
    my_class_attention,
    my_attention_rollout,
    my_attention_distance,
)


@pytest.mark.parametrize("stub", STUBS)
def test_an_untouched_stub_is_not_attempted_yet(stub):
    name = stub.__name__.removeprefix("my_")
    result = check(name, stub)
    assert not result.attempted
    assert not result.passed
    assert result.cause is None
    assert result.report.startswith(f"{name}: not attempted yet")


@pytest.mark.parametrize("name", NAMES)
def test_a_candidate_with_other_arguments_is_told_the_right_ones(name):
    result = check(name, lambda one, two, three, four: one)
    assert "Your function must take (" in result.cause


NONSENSE = {
    "zeros": torch.zeros_like,
    "turned": lambda x: x.flip(tuple(range(x.ndim))),
    "nan": lambda x: x * torch.nan,
    "scalar": lambda x: x.sum(),
}


@pytest.mark.parametrize(
    ("name", "nonsense"), list(itertools.product(NAMES, NONSENSE))
)
def test_nonsense_fails_without_a_diagnosis(name, nonsense):
    def candidate(*args, **kwargs):
        return NONSENSE[nonsense](getattr(vit_lessons, name)(*args, **kwargs))

    result = check(name, candidate)
    assert not result.passed
    assert result.cause is None


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, torch.enable_grad]
)
def test_check_answers_the_same_under_the_readers_settings(context):
    with context():
        for name, candidate in RIGHT[::5]:
            assert check(name, candidate).passed


def test_check_leaves_the_random_state_as_it_was():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = torch.get_rng_state()
        for name, candidate in RIGHT[::5]:
            check(name, candidate)
        assert torch.equal(before, torch.get_rng_state())
