"""Exercises of chapter 13, with the mistakes that learners make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_lessons.checks.catalogue import Mistake, WrongForm, combine
from vit_lessons.checks.exercise import Case, Exercise
from vit_lessons.checks.part import normal
from vit_lessons.checks.patch_embedding import SQUARE_PATCHES
from vit_lessons.checks.position_embedding import COLUMNS_FIRST, SQUARE, SWAPPED
from vit_lessons.looking_inside import (
    attention_distance,
    attention_rollout,
    class_attention,
    position_similarity,
)

Size = tuple[int, int]

PREFIX_LEFT = "The prefix tokens are still there: leave out as many in front."
ONE_PREFIX = "Right for one prefix token only: num_prefix_tokens counts them."
LAST_LEFT_OUT = "The last token is left out: the prefix tokens come first."
LOST = (
    "Without the class token the weights sum to less than 1: divide each row "
    "by its sum."
)
TOGETHER = "Each row is divided by its own sum, over dim=-1 alone."
SOFTMAX = "A softmax acts on the weights once more: divide them by their sum."
KEEPDIM = "The sum or norm of each row must keep its axis: use keepdim=True."
ONE_IMAGE = "Right for one image only: each image has its own result."
LIST = "weights is a list with one tensor for each layer: loop over it."
LIST_CHANGED = "Your code changes the list that it gets: make a new one."
FLOAT = "The places are whole numbers, int64: make them floats, with float()."
PAIR = "A pair is used as a number: patch_size is (height, width)."
# The first cases have 5 = 1 + 2 * 2 tokens, and 6 features or 3 heads.
ERRORS = {
    "input of size 25": PREFIX_LEFT,
    "input of size 30": PREFIX_LEFT,
    "input of size 15": PREFIX_LEFT,
    "length 5 in chunks": PREFIX_LEFT,
    "5 != 4": PREFIX_LEFT,
    "(5) in the input tensor": PREFIX_LEFT,
    "tensor a (5)": PREFIX_LEFT,
    "tensor b (5)": PREFIX_LEFT,
    "previously seen size 5": PREFIX_LEFT,
    "tensor b (3)": KEEPDIM,
    "tensor b (4)": KEEPDIM,
}
HEADS_LOST = Mistake(
    "The heads are put together: each one has its own result.",
    {"end": lambda x: x.mean(1)},
    {"end": lambda x: x.sum(1)},
)
IMAGES_LOST = Mistake(
    "The axis of the images is lost: it comes first, also for one image.",
    {"end": lambda x: x.mean(0)},
    {"end": lambda x: x[0]},
    {"end": lambda x: x.squeeze(0)},
)


@dataclass(frozen=True)
class Measurement(Exercise):
    """A function that measures a finished model: it needs no gradient."""

    def has_gradients(self, case: Case) -> bool:
        return False


@dataclass(frozen=True)
class LayersExercise(Measurement):
    """A function of a list of layers; a case holds them as one tensor."""

    def ready(self, candidate: Any, case: Case) -> Callable[..., Any]:
        return self.finish(candidate)

    def finish(self, form: Callable[..., Any]) -> Callable[..., Any]:
        def of_list(layers: Tensor) -> Any:
            weights = list(layers)
            before = list(map(id, weights))
            result = form(weights)
            if list(map(id, weights)) != before:
                raise ValueError("the list of weights has changed")
            return result

        return of_list


def _weights(*shape: int) -> Tensor:
    """Attention weights, (*shape, T, T), with much on the class token."""
    scores = 1.5 * normal(*shape, shape[-1], seed=7)
    scores[..., 0] += 2
    return scores.softmax(dim=-1)


def _divide(weights: Tensor, *dim: int) -> Tensor:
    return weights / weights.sum(dim or -1, keepdim=True)


def _same(x: Any, *rest: object) -> Any:
    return x


def _prefix(n: int, *args: Any) -> Case:
    prefix = {"num_prefix_tokens": n}
    return Case(f"num_prefix_tokens={n}", args, ONE_PREFIX, prefix)


def _similarity(
    rows: Callable = lambda table, n: table[0, n:],
    normalize: Callable = F.normalize,
    compare: Callable = lambda r: r @ r.T,
    layout: Callable = lambda s, gh, gw: s.view(gh, gw, gh, gw),
) -> Callable[..., Tensor]:
    """position_similarity, with some steps exchanged."""

    def form(
        pos_embed: Tensor, grid_size: Size, *, num_prefix_tokens: int = 1
    ) -> Tensor:
        table = normalize(rows(pos_embed, num_prefix_tokens))
        return layout(compare(table), *grid_size)

    return form


def _similarity_forms() -> Iterator[WrongForm]:
    raw = {"normalize": _same}
    return combine(
        _similarity,
        Mistake(LAST_LEFT_OUT, {"rows": lambda t, n: t[0, : t.shape[1] - n]}),
        Mistake(
            "A vector keeps its length: divide each by its norm first.",
            raw,
            raw | {"compare": lambda r: r @ r.T / r.shape[1] ** 0.5},
            raw | {"compare": lambda r: r @ F.normalize(r).T},
        ),
        Mistake(
            "The norm is taken over the wrong axis: each row has its own.",
            {"normalize": lambda r: F.normalize(r, dim=0)},
            {"normalize": lambda r: r / r.norm()},
            raw | {"rows": lambda t, n: F.normalize(t)[0, n:]},
        ),
        Mistake(
            "A mean is subtracted first: divide by the norms, and no more.",
            {"normalize": lambda r: F.normalize(r - r.mean(1, keepdim=True))},
        ),
        Mistake(
            "This is a distance: the cosine of equal directions is 1.",
            {"compare": lambda r: 1 - r @ r.T},
            {"compare": lambda r: torch.cdist(r, r)},
            raw | {"compare": lambda r: torch.cdist(r, r)},
        ),
        Mistake(
            "Each patch is compared with itself only: compare it with all.",
            {"layout": lambda s, h, w: s.diag()},
            {"layout": lambda s, h, w: s.diag().view(h, w)},
        ),
        Mistake(SWAPPED, {"layout": lambda s, h, w: s.view(w, h, w, h)}),
        Mistake(
            COLUMNS_FIRST,
            {"layout": lambda s, h, w: s.view(w, h, w, h).permute(1, 0, 3, 2)},
        ),
        Mistake(
            "The result is no grid of maps: make it (gh, gw, gh, gw).",
            {"layout": _same},
        ),
    )


def _table(n: int, gh: int, gw: int) -> tuple[Tensor, Size]:
    """A table of 6 features whose rows have different lengths."""
    tokens = n + gh * gw
    return normal(1, tokens, 6) * normal(1, tokens, 1).exp(), (gh, gw)


POSITION_SIMILARITY = Measurement(
    position_similarity,
    cases=(
        Case("a grid of 2 x 2", _table(1, 2, 2)),
        Case("a grid of 2 x 3", _table(1, 2, 3), SQUARE),
        _prefix(0, *_table(0, 4, 2)),
        _prefix(2, *_table(2, 4, 2)),
    ),
    wrong_forms=_similarity_forms,
    errors=ERRORS
    | {"(4x6 and 4x6)": "Rows are compared by rows @ rows.T, not rows @ rows."},
)


def _class_map(
    look: Callable = lambda w, n, token: w[..., token, :],
    keep: Callable = lambda row, n: row[..., n:],
    divide: Callable = _divide,
    end: Callable = _same,
    layout: Callable = lambda m, gh, gw: m.unflatten(-1, (gh, gw)),
) -> Callable[..., Tensor]:
    """class_attention, with some steps exchanged."""

    def form(
        weights: Tensor, grid: Size, num_prefix_tokens: int = 1, token: int = 0
    ) -> Tensor:
        row = look(weights, num_prefix_tokens, token)
        return layout(end(divide(keep(row, num_prefix_tokens))), *grid)

    return form


def _class_map_forms() -> Iterator[WrongForm]:
    return combine(
        _class_map,
        Mistake(LOST, {"divide": _same}),
        Mistake(
            LAST_LEFT_OUT,
            {"keep": lambda row, n: row[..., : row.shape[-1] - n]},
        ),
        Mistake(
            "The column says who looks at the class token: take its row.",
            {"look": lambda w, n, token: w[..., token]},
        ),
        Mistake(
            "Another token looks: the class token is the first one, row 0.",
            {"look": lambda w, n, token: w[..., n - 1, :]},
            {"look": lambda w, n, token: w[..., n, :]},
        ),
        Mistake(
            "The rows are averaged: take that of the class token alone.",
            {"look": lambda w, n, token: w.mean(-2)},
        ),
        HEADS_LOST,
        Mistake(HEADS_LOST.cause, {"look": lambda w, n, t: w.mean(1)[:, t]}),
        IMAGES_LOST,
        Mistake(SOFTMAX, {"divide": lambda m: m.softmax(-1)}),
        Mistake(
            "The map is divided by its largest weight: divide it by its sum.",
            {"divide": lambda m: m / m.amax(-1, keepdim=True)},
        ),
        Mistake(
            TOGETHER,
            {"divide": lambda m: m / m.sum()},
            {"divide": lambda m: _divide(m, 1)},
        ),
        Mistake(SWAPPED, {"layout": lambda m, h, w: m.unflatten(-1, (w, h))}),
        Mistake(
            COLUMNS_FIRST,
            {"layout": lambda m, h, w: m.unflatten(-1, (w, h)).mT},
        ),
        Mistake(
            "The result is no map: make it (B, h, gh, gw).", {"layout": _same}
        ),
    )


CLASS_ATTENTION = Measurement(
    class_attention,
    cases=(
        Case("one image, a grid of 2 x 2", (_weights(1, 3, 5), (2, 2))),
        Case("a grid of 2 x 3", (_weights(1, 3, 7), (2, 3)), SQUARE),
        Case("two images", (_weights(2, 3, 5), (2, 2)), ONE_IMAGE),
        _prefix(2, _weights(2, 3, 10), (4, 2)),
        Case(
            "the second prefix token looks",
            (_weights(2, 3, 10), (4, 2)),
            "token is not used: it says which of the prefix tokens looks.",
            {"num_prefix_tokens": 2, "token": 1},
        ),
    ),
    wrong_forms=_class_map_forms,
    errors=ERRORS,
)


def _rollout(
    pick: Callable = _same,
    heads: Callable = lambda w: w.mean(1),
    mix: Callable = lambda a, eye, i: (a + eye) / 2,
    step: Callable = lambda rollout, m: m @ rollout,
    end: Callable = _same,
) -> Callable[..., Tensor]:
    """attention_rollout, with some steps exchanged."""

    def form(weights: list[Tensor]) -> Tensor:
        eye = torch.eye(weights[0].shape[-1])
        layers = enumerate(pick(weights))
        return end(reduce(step, [mix(heads(w), eye, i) for i, w in layers]))

    return form


def _rollout_forms() -> Iterator[WrongForm]:
    divided = {"mix": lambda a, eye, i: _divide(a + eye)}
    return combine(
        _rollout,
        Mistake(
            "The identity is missing: half of each token stays where it is, "
            "for the residual connection of each layer.",
            {"mix": _same},
        ),
        Mistake(
            "The identity is missing in the first layer: add it in each one.",
            {"mix": lambda a, eye, i: (a + eye) / 2 if i else a},
        ),
        Mistake(
            "The rows sum to more than 1: halve the weights and the identity.",
            {"mix": lambda a, eye, i: a + eye},
            {"mix": lambda a, eye, i: a / 2 + eye},
        ),
        Mistake(
            KEEPDIM, {"mix": lambda a, eye, i: (a + eye) / (a + eye).sum(-1)}
        ),
        Mistake(
            "The order of the product is turned round: a later layer stands on "
            "the left, layer @ rollout.",
            {"step": lambda rollout, m: rollout @ m},
        ),
        Mistake(
            "The layers are not multiplied as matrices: use @.",
            {"step": lambda rollout, m: m * rollout},
        ),
        Mistake("The last layer is left out.", {"pick": lambda w: w[:-1]}),
        Mistake("The first layer is left out.", {"pick": lambda w: w[1:]}),
        Mistake("Only the last layer is used.", {"pick": lambda w: w[-1:]}),
        Mistake(
            "The heads are summed: average them.",
            {"heads": lambda w: w.sum(1)},
            {"heads": lambda w: w.sum(1)} | divided,
        ),
        Mistake(
            "Of all heads one is taken, or the largest or smallest weight: "
            "average the heads.",
            {"heads": lambda w: w.amax(1)},
            {"heads": lambda w: w.amax(1)} | divided,
            {"heads": lambda w: w.amin(1)} | divided,
            {"heads": lambda w: w[:, 0]},
        ),
        Mistake(
            "The heads are kept apart: average them before the product.",
            {"heads": _same},
            {"heads": _same, "end": lambda r: r.mean(1)},
        ),
        IMAGES_LOST,
        Mistake(IMAGES_LOST.cause, {"heads": lambda w: w.mean(0)}),
        Mistake(
            "Rows and columns are swapped: row i says where token i looks.",
            {"end": lambda r: r.mT},
            {"heads": lambda w: w.mean(1).mT},
        ),
        Mistake(
            "A part of the result is missing: return all rows and columns.",
            {"end": lambda r: r[:, 0]},
            {"end": lambda r: r[:, 0, 1:]},
        ),
    )


ATTENTION_ROLLOUT = LayersExercise(
    attention_rollout,
    cases=(
        Case("two layers, one image", (_weights(2, 1, 3, 5),)),
        Case("two images", (_weights(2, 2, 3, 5),), ONE_IMAGE),
        Case(
            "four layers", (_weights(4, 2, 3, 6),), "Right for two layers only."
        ),
    ),
    wrong_forms=_rollout_forms,
    errors={
        "tensor b (2)": KEEPDIM,
        "'list' object has no attribute": LIST,
        "list indices must be integers": LIST,
        "the list of weights has changed": LIST_CHANGED,
    },
)


def _distance(
    places: Callable = lambda k, gh, gw: (k // gw, k % gw),
    size: Callable = _same,
    length: Callable = lambda offsets: offsets.norm(dim=-1),
    cut: Callable = lambda w, n: w[..., n:, n:],
    divide: Callable = _divide,
    weigh: Callable = lambda w, d: (w * d).sum(-1),
    queries: Callable = lambda x, n: x.mean(-1),
    end: Callable = _same,
) -> Callable[..., Tensor]:
    """attention_distance, with some steps exchanged."""

    def form(
        weights: Tensor, grid: Size, patch: Size, *, num_prefix_tokens: int = 1
    ) -> Tensor:
        gh, gw = grid
        place = torch.stack(places(torch.arange(gh * gw), gh, gw), dim=-1)
        place = place * torch.tensor(size(patch), dtype=torch.float32)
        distances = length(place[:, None] - place)
        weighted = weigh(divide(cut(weights, num_prefix_tokens)), distances)
        return end(queries(weighted, num_prefix_tokens))

    return form


def _distance_forms() -> Iterator[WrongForm]:
    squared = {"length": lambda offsets: offsets.square().sum(-1)}
    return combine(
        _distance,
        Mistake(LOST, {"divide": _same}),
        Mistake(
            "The row of the class token is in the mean: only patches look.",
            {"queries": lambda x, n: x.sum(-1) / (x.shape[-1] + n)},
        ),
        Mistake(
            LAST_LEFT_OUT,
            {"cut": lambda w, n: w.flip(2, 3)[..., n:, n:].flip(2, 3)},
        ),
        Mistake(SOFTMAX, {"divide": lambda w: w.softmax(-1)}),
        Mistake(
            TOGETHER,
            {"divide": lambda w: _divide(w, -2)},
            {"divide": lambda w: _divide(w, -2, -1) * w.shape[-1]},
        ),
        Mistake(
            "The grid is turned: patch k is in row k // gw, column k % gw.",
            {"places": lambda k, gh, gw: (k // gh, k % gh)},
            {"places": lambda k, gh, gw: (k % gh, k // gh)},
        ),
        Mistake(
            "patch_size is not used: distances are in pixels, not in patches.",
            {"size": lambda p: (1, 1)},
        ),
        Mistake(
            "Height and width of the patch are swapped, or one is used twice: "
            "rows are the height apart, columns the width.",
            {"size": lambda p: p[::-1]},
            {"size": lambda p: (p[0], p[0])},
            {"size": lambda p: (p[1], p[1])},
        ),
        Mistake(
            "The distance is squared: take the root of each sum of squares.",
            squared,
            squared | {"queries": lambda x, n: x.mean(-1).sqrt()},
        ),
        Mistake(
            "Not the straight distance: take the root of the sum of squares.",
            {"length": lambda offsets: offsets.abs().sum(-1)},
            {"length": lambda offsets: offsets.abs().amax(-1)},
        ),
        Mistake(
            "The largest is taken: sum over keys, average over queries.",
            {"weigh": lambda w, d: (w * d).amax(-1)},
            {"queries": lambda x, n: x.amax(-1)},
        ),
        Mistake(
            "The weighted sum is wrong: (weights * distances).sum(dim=-1).",
            {"weigh": lambda w, d: (w * d).mean(-1)},
            {"weigh": lambda w, d: (w @ d).mean(-1)},
        ),
        Mistake(
            "The patches that look are summed, or kept apart: average them.",
            {"queries": lambda x, n: x.sum(-1)},
            {"queries": _same},
        ),
        HEADS_LOST,
        IMAGES_LOST,
    )


FIRST = _weights(1, 3, 5)
ATTENTION_DISTANCE = Measurement(
    attention_distance,
    cases=(
        Case("patches of 4 x 4", (FIRST, (2, 2), (4, 4))),
        Case("a grid of 2 x 3", (_weights(1, 3, 7), (2, 3), (4, 4)), SQUARE),
        Case("patches of (3, 5)", (FIRST, (2, 2), (3, 5)), SQUARE_PATCHES),
        Case("two images", (_weights(2, 3, 5), (2, 2), (4, 4)), ONE_IMAGE),
        _prefix(0, _weights(2, 3, 8), (4, 2), (3, 7)),
        _prefix(2, _weights(2, 3, 10), (4, 2), (3, 7)),
    ),
    wrong_forms=_distance_forms,
    errors=ERRORS
    | {
        "Got Long": FLOAT,
        "got: Long": FLOAT,
        "expected scalar type Long but found Float": FLOAT,
        "only integer tensors of a single element": PAIR,
        "can't multiply sequence by non-int": PAIR,
    },
)

EXERCISES = (
    POSITION_SIMILARITY,
    CLASS_ATTENTION,
    ATTENTION_ROLLOUT,
    ATTENTION_DISTANCE,
)
