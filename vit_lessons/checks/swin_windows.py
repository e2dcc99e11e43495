"""Exercises of chapter 15, with the mistakes that learners make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from vit_lessons.attention import MultiHeadSelfAttention
from vit_lessons.checks import windows
from vit_lessons.checks.attention import SELF_ATTENTION
from vit_lessons.checks.candidate import Refusal
from vit_lessons.checks.catalogue import Mistake, WrongForm
from vit_lessons.checks.compare import isolate
from vit_lessons.checks.exercise import Case, Outcome
from vit_lessons.checks.part import PartCase, PartExercise, normal
from vit_lessons.swin_windows import (
    WindowAttention,
    pad_to_windows,
    shift_mask,
    window_partition,
    window_reverse,
)

Pair = tuple[int, int]

NAN = 999.0  # stands for NaN in a result, so that results can be compared
TABLE = (
    "The table has a row for each offset, (2 * M - 1) along the rows times "
    "(2 * M - 1) along the columns, and a column for each head."
)
NOT_PERSISTENT = (
    "The index and the mask follow from the sizes and are no weights: "
    "register their buffers with persistent=False."
)
AFTER = "after a small map"
STATE = (
    "A small map changes the module: compute the shift of each map in forward, "
    "and leave self.shift_size and self.window_size as they are."
)


def _mark(module: nn.Module, args: Any, out: Any) -> Any:
    """Make NaN a number, so that a form that returns NaN is recognized."""
    if isinstance(out, Tensor) and out.is_floating_point():
        return out.masked_fill(out.isnan(), NAN)
    return out


@dataclass(frozen=True)
class WindowExercise(PartExercise):
    """Attention in windows: tell where NaN comes from, and what has state."""

    def ready(self, candidate: Any, case: Case) -> Callable[..., Any]:
        try:
            module = super().ready(candidate, case)
        except Refusal as refusal:
            text, found, _ = str(refusal).partition(": use each argument")
            raise Refusal(f"{text}. {TABLE}" if found else text) from None
        if module is self.build(case):
            return module
        if case.mode == AFTER:
            m1, m2 = self.build(case).window_size
            isolate(module, case.args[0][:, :m1, :m2])
        module.register_forward_hook(_mark)
        return module

    def finish(self, form: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: _mark(args[0], (), form(*args, **kwargs))

    def run(self, candidate: Any, case: Case) -> Outcome:
        outcome = super().run(candidate, case)
        is_marked = isolate(lambda: bool((outcome.got == NAN).any()))
        if outcome.problem and is_marked is True:
            words = "the result holds NaN, which is not a number"
            return replace(outcome, problem=words)
        return outcome


def _shift(self: WindowAttention, grid: Pair) -> Pair:
    """The shift along each axis that is longer than one window."""
    sizes = zip(self.shift_size, self.window_size, grid, strict=True)
    return tuple(s if m < g else 0 for s, m, g in sizes)


def _roll(x: Tensor, shift: Pair) -> Tensor:
    return x.roll([-s for s in shift], dims=(1, 2))


def _unroll(x: Tensor, shift: Pair) -> Tensor:
    return x.roll(shift, dims=(1, 2))


def _join(bias: Tensor, mask: Tensor, batch: int) -> Tensor:
    """Position bias and mask of each window: (B * nW, h, N, N)."""
    return (bias + mask[:, None]).repeat(batch, 1, 1, 1)


def _forward(
    size: Callable = lambda self: self.window_size,
    pad: Callable = pad_to_windows,
    pad_late: bool = False,
    shift: Callable = _shift,
    roll: Callable = _roll,
    partition: Callable = lambda x, m, s: window_partition(x, m),
    bias: Callable = lambda self: self.position_bias(),
    mask: Callable = lambda grid, m, s, size: shift_mask(grid, m, s),
    join: Callable = _join,
    attend: Callable = MultiHeadSelfAttention.forward,
    reverse: Callable = lambda w, m, grid, s: window_reverse(w, m, grid),
    unroll: Callable = _unroll,
    crop: Callable = lambda x, gh, gw: x[:, :gh, :gw],
    crop_early: bool = False,
) -> Callable[[WindowAttention, Tensor], Tensor]:
    """WindowAttention.forward, with some steps exchanged."""

    def form(self: WindowAttention, x: Tensor) -> Tensor:
        batch, gh, gw, _ = x.shape
        m, padded = size(self), pad(x, size(self))
        grid = tuple(padded.shape[1:3])
        s, added = shift(self, grid), bias(self)
        if any(s):
            x = pad(roll(x, s), m) if pad_late else roll(padded, s)
            added = join(added, mask(grid, m, s, (gh, gw)), batch)
        else:
            x = padded
        x = reverse(attend(self, partition(x, m, s), added), m, grid, s)
        if any(s):
            x = crop(x, gh, gw) if crop_early else x
            x = unroll(x, s)
        return crop(x, gh, gw)

    return form


# Wrong steps.


def _no_mask(*_: Any) -> Tensor:
    return torch.zeros(1, 1, 1)


def _join_once(bias: Tensor, mask: Tensor, batch: int) -> Tensor:
    """One mask for all windows, or the masks of windows as those of heads."""
    return bias + mask


def _join_in_turns(bias: Tensor, mask: Tensor, batch: int) -> Tensor:
    return (bias + mask[:, None]).repeat_interleave(batch, 0)


def _masked(**steps: Callable) -> dict[str, Callable]:
    """A mask with some steps of shift_mask exchanged."""
    wrong = windows.mask_with(**steps)
    return {"mask": lambda grid, m, s, size: wrong(grid, m, s)}


def _mask_of_padding(grid: Pair, m: Pair, s: Pair, size: Pair) -> Tensor:
    """The right mask, and no token sees the padding but the padding."""
    y, x = (torch.arange(g) for g in grid)
    real = (y < size[0])[:, None] & (x < size[1])
    real = window_partition(_roll(real[None, ..., None], s), m)
    return shift_mask(grid, m, s) + windows.hide(real != real.mT)


def _late(on: str) -> Callable[..., Tensor]:
    """Hide by a product with 0, of the scores or of the weights."""

    def attend(self: WindowAttention, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).unbind(2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        hidden = bias.isinf()
        scores = q @ k.mT / q.shape[-1] ** 0.5 + bias.masked_fill(hidden, 0)
        if on == "scores":
            scores = scores.masked_fill(hidden, 0)
        weights = scores.softmax(-1)
        if on == "weights":
            weights = weights.masked_fill(hidden, 0)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))

    return attend


def _table(number: Callable) -> Callable[[WindowAttention], Tensor]:
    """Read the table of biases with another number for each offset."""

    def read(self: WindowAttention) -> Tensor:
        m1, m2 = self.window_size
        y, x = torch.cartesian_prod(torch.arange(m1), torch.arange(m2)).T
        dy, dx = y[:, None] - y + m1 - 1, x[:, None] - x + m2 - 1
        index = number(dy, dx, m1, m2)
        return self.relative_position_bias_table[index].permute(2, 0, 1)

    return read


def _without_sign(dy: Tensor, dx: Tensor, m1: int, m2: int) -> Tensor:
    return (dy - m1 + 1).abs() * (2 * m2 - 1) + (dx - m2 + 1).abs()


def _table_viewed(self: WindowAttention) -> Tensor:
    index = self.relative_position_index
    table = self.relative_position_bias_table
    return table[index.flatten()].view(-1, *index.shape)


def _partition_then_roll(x: Tensor, m: Pair, s: Pair) -> Tensor:
    inside = window_partition(x, m).unflatten(1, m)
    return _roll(inside, s).flatten(1, 2)


def _roll_then_reverse(w: Tensor, m: Pair, grid: Pair, s: Pair) -> Tensor:
    inside = _unroll(w.unflatten(1, m), s)
    return window_reverse(inside.flatten(1, 2), m, grid)


def _stay(x: Tensor, shift: Pair) -> Tensor:
    return x


ROLLED_INSIDE = {
    "roll": _stay,
    "unroll": _stay,
    "partition": _partition_then_roll,
    "reverse": _roll_then_reverse,
}
NO_MASK = {"mask": _no_mask, "join": _join_once}
TURNED = {"mask": lambda grid, m, s, size: shift_mask(grid, m, s).flip(0, 1, 2)}

# Mistakes of chapter 04 that windows bring back.
IN_ATTENTION = (
    "The scale is missing",
    "The scores are divided by d",
    "The scale uses the width of all heads",
    "The bias is scaled",
    "The bias comes after the softmax",
    "The softmax runs over the queries",
    "The softmax runs over the heads",
    "A reshape to (B, h, N, d)",
    "Attention runs over the heads",
    "There is one head only",
    "The bias of the qkv layer is not used",
    "The heads are merged by a reshape",
    "The output projection proj is missing",
)

NO_BIAS = Mistake(
    "The relative position bias is missing: add it to the scores before the "
    "softmax.",
    {"bias": lambda self: 0 * self.position_bias()},
)
BIAS_TRANSPOSED = Mistake(
    "The bias is transposed: row i, column j is for query i and key j, the "
    "place of i less the place of j.",
    {"bias": lambda self: self.position_bias().mT},
)
MISSING_MASK = Mistake(
    "The mask is missing: after the roll, windows hold tokens from opposite "
    "borders of the map, and they must not see each other.",
    NO_MASK,
)
NOT_ROLLED_BACK = Mistake(
    "The map is not rolled back: after the windows are put together, roll by "
    "+shift_size.",
    {"unroll": _stay},
)
NOT_CROPPED = Mistake(
    "The padding is still there: the result is as large as x, x[:, :gh, :gw].",
    {"crop": lambda x, gh, gw: x},
)

MASKS = (
    MISSING_MASK,
    Mistake(
        "The mask needs an axis for the heads: (nW, N, N) added to (B * nW, h, "
        "N, N) gives each head the mask of one window, without an error where "
        "nW equals h. Write mask[:, None].",
        {"join": _join_once},
    ),
    Mistake(
        "The masks follow another order than the windows: those of an image "
        "follow each other, so repeat the masks as a whole, with repeat and "
        "not repeat_interleave.",
        {"join": _join_in_turns},
    ),
    Mistake(
        "The mask is the wrong way round, by its sign or by what it hides: "
        "pairs of two regions get -inf, and pairs of one region 0.",
        _masked(fill=lambda apart: windows.hide(apart, float("inf"))),
        _masked(fill=lambda apart: windows.hide(apart, 1.0)),
        _masked(fill=lambda apart: windows.hide(~apart)),
        _masked(fill=lambda apart: windows.hide(~apart, -windows.LARGE)),
    ),
    Mistake(
        "The mask is a number that hides nothing, such as -1, or True where a "
        "pair is visible: it must be -inf, or far below all scores, -100.",
        _masked(fill=lambda apart: windows.hide(apart, -1.0)),
    ),
    Mistake(
        "The mask is multiplied with the scores: 0 is a score like any other, "
        "so add -inf before the softmax.",
        {"attend": _late("scores")},
    ),
    Mistake(
        "The mask comes after the softmax: the weights of a query then no "
        "longer sum to 1, so add -inf before it.",
        {"attend": _late("weights")},
    ),
    Mistake(windows.UNROLLED, TURNED),
    Mistake(
        windows.ONE_AXIS,
        _masked(shift=lambda s1, s2, m1, m2: (s1, 0)),
        _masked(shift=lambda s1, s2, m1, m2: (0, s2)),
    ),
    Mistake(
        windows.WRONG_BORDER,
        _masked(shift=lambda a, b, m1, m2: (a and m1 - a, b and m2 - b)),
    ),
    Mistake(windows.SWAPPED_SHIFT, _masked(shift=lambda a, b, m1, m2: (b, a))),
    Mistake(
        "The padding is hidden by the mask: in published code it takes part in "
        "the attention, and the mask is that of the padded map.",
        {"mask": _mask_of_padding},
    ),
)

SHIFTS = (
    Mistake(
        "shift_size is not used: with a shift the map is rolled before it is "
        "cut, and rolled back at the end.",
        {"shift": lambda self, grid: (0, 0)},
    ),
    Mistake(
        "The map is rolled the wrong way: up and to the left, by -shift_size, "
        "before it is cut, and by +shift_size at the end.",
        {"roll": _unroll, "unroll": _roll},
        {"roll": _unroll, "unroll": _roll} | TURNED,
    ),
    NOT_ROLLED_BACK,
    Mistake(
        "The map is rolled on instead of back: by -shift_size before it is "
        "cut, and by +shift_size at the end.",
        {"unroll": _roll},
    ),
    Mistake(
        "The map is cut before it is rolled, so that tokens stay in their "
        "windows: roll the map, then cut it.",
        ROLLED_INSIDE,
        ROLLED_INSIDE | NO_MASK,
    ),
    Mistake(
        "The map is not rolled, and the mask acts on the windows as they were: "
        "roll the map before it is cut.",
        {"roll": _stay, "unroll": _stay},
    ),
    Mistake(
        "The map is rolled along the wrong axes: x is (B, gh, gw, D), rows are "
        "axis 1, columns axis 2.",
        {
            "roll": lambda x, s: _roll(x, s[::-1]),
            "unroll": lambda x, s: _unroll(x, s[::-1]),
        },
        {
            "roll": lambda x, s: x.roll([-t for t in s], (2, 3)),
            "unroll": lambda x, s: x.roll(s, (2, 3)),
        },
    ),
    Mistake(
        "The shift is kept along an axis that one window covers: there each "
        "token sees all others already, so the shift is 0.",
        {"shift": lambda self, grid: self.shift_size},
        {
            "shift": lambda self, grid: (
                self.shift_size if any(_shift(self, grid)) else (0, 0)
            )
        },
    ),
    Mistake(
        "The shift is dropped along both axes where a window covers one: the "
        "rule holds for each axis alone.",
        {
            "shift": lambda self, grid: (
                s if all(s := _shift(self, grid)) else (0, 0)
            )
        },
    ),
)

PADDING = (
    Mistake(
        "The padding is at the top and on the left: it belongs at the bottom "
        "and on the right.",
        windows.pad_at(1.0),
    ),
    Mistake(
        "The padding is on all sides: it belongs at the bottom and on the "
        "right.",
        windows.pad_at(0.5),
    ),
    Mistake(
        "The padding comes after the roll, in the middle of what was rolled, "
        "and the mask does not know it: pad, then roll.",
        {"pad_late": True, "crop_early": True},
        {"pad_late": True},
    ),
    Mistake(
        "The map is cropped before it is rolled back: what is cut off is not "
        "the padding then.",
        {"crop_early": True},
    ),
    NOT_CROPPED,
    Mistake(
        "A map that windows tile is padded too, by a whole window: pad by "
        "-gh % M and -gw % M, which are 0 then.",
        {"pad": windows.pad_always},
    ),
    Mistake("The padding must hold zeros.", {"pad": windows.pad_with_edge}),
    Mistake(
        "What windows do not cover is dropped: pad the map with zeros.",
        {"pad": windows.drop_rest},
    ),
)


def _cut_with(**steps: str) -> dict[str, Callable]:
    """Windows cut and put together in the same wrong way."""
    split = steps.pop("layout", None)
    back = windows.reverse_with(**steps, **({"layout": split} if split else {}))
    cut = windows.partition_with(**steps, **({"split": split} if split else {}))
    return {
        "partition": lambda x, m, s: cut(x, m),
        "reverse": lambda w, m, grid, s: back(w, m, grid),
    }


WINDOWS = (
    Mistake(
        windows.PLAIN_RESHAPE,
        {
            "partition": lambda x, m, s: x.reshape(-1, m[0] * m[1], x.shape[3]),
            "reverse": lambda w, m, grid, s: w.reshape(-1, *grid, w.shape[2]),
        },
    ),
    Mistake(
        "A reshape does not put windows together: undo what window_partition "
        "did, with window_reverse.",
        {"reverse": lambda w, m, grid, s: w.reshape(-1, *grid, w.shape[2])},
    ),
    Mistake(windows.SPREAD, _cut_with(layout="b (m1 nh) (m2 nw) d")),
    Mistake(
        windows.COLUMNS_FIRST,
        _cut_with(windows="(b nw nh)"),
        {"reverse": _cut_with(windows="(b nw nh)")["reverse"]},
    ),
    Mistake(windows.TRANSPOSED, _cut_with(tokens="(m2 m1)")),
    Mistake(
        windows.SWAPPED_WINDOW, {"size": lambda self: self.window_size[::-1]}
    ),
)

BIASES = (
    NO_BIAS,
    Mistake(
        "The bias has the wrong sign: add it to the scores.",
        {"bias": lambda self: -self.position_bias()},
    ),
    BIAS_TRANSPOSED,
    Mistake(
        "All heads share one bias: the table has a column for each head.",
        {"bias": lambda self: self.position_bias().mean(0, keepdim=True)},
        {"bias": lambda self: self.position_bias()[:1]},
    ),
    Mistake(
        "The bias is viewed as (h, N, N), which mixes heads and offsets: read "
        "the table, (N, N, h), then move the heads to the front, "
        "permute(2, 0, 1).",
        {"bias": _table_viewed},
    ),
    Mistake(
        "The table is read with the wrong row: it is the row offset times "
        "(2 * M - 1), plus the column offset, both counted from 0.",
        {"bias": _table(lambda dy, dx, m1, m2: dy * m2 + dx)},
        {"bias": _table(lambda dy, dx, m1, m2: dy * (2 * m1 - 1) + dx)},
        {"bias": _table(lambda dy, dx, m1, m2: dx * (2 * m1 - 1) + dy)},
        {"bias": _table(lambda dy, dx, m1, m2: dy + dx)},
        {"bias": _table(_without_sign)},
    ),
)


def _attention_mistakes() -> Iterator[Mistake]:
    for wrong in takewhile(windows.is_single, SELF_ATTENTION.wrong_forms()):
        if wrong.cause.startswith(IN_ATTENTION):
            yield Mistake(wrong.cause, {"attend": wrong.form})


def _window_forms() -> Iterator[WrongForm]:
    mistakes = (*MASKS, *SHIFTS, *PADDING, *WINDOWS, *BIASES)
    inner = tuple(_attention_mistakes())
    often = (MISSING_MASK, NOT_ROLLED_BACK, NOT_CROPPED, NO_BIAS)
    often = (*often, BIAS_TRANSPOSED, inner[0])
    yield from windows.with_few_pairs(_forward, (*mistakes, *inner), often)


def _case(
    label: str,
    shape: tuple[int, int, int, int],
    window: int | Pair,
    shift: int | Pair = 0,
    cause: str | None = None,
    *,
    heads: int = 1,
    mode: str = "training",
    **optional: Any,
) -> Case:
    init = {
        "dim": shape[-1],
        "num_heads": heads,
        "window_size": window,
        "shift_size": shift,
        **optional,
    }
    return PartCase(label, (normal(*shape),), cause, {}, init, mode)


NO_QKV = "qkv_bias=False must leave out the bias of the qkv layer."
HEADS = (
    "Right for one head, wrong for several: each has its own queries, keys and "
    "values, and its own column of the table."
)
IMAGES = (
    "Right for one image, wrong for several: images do not see each other, and "
    "each has the same nW masks."
)
ONE_SHIFT = (
    "Right for one shift along both axes only: shift_size may be a pair, "
    "(rows, columns)."
)
ONE_WINDOW = (
    "Right for several windows along each axis only: along an axis that one "
    "window covers, the shift is 0."
)
SHIFT = (
    "Right without a shift, wrong with one: roll the map by -shift_size, cut "
    "it, hide what came around, and roll by +shift_size at the end."
)
PADDED = (
    "Right without padding, wrong with it: add zeros at the bottom and on the "
    "right until windows tile the map, and crop at the end."
)

WINDOW_ATTENTION = WindowExercise(
    WindowAttention,
    cases=(
        _case("one window of 2 x 2", (1, 2, 2, 4), 2),
        _case("a map of 4 x 6", (1, 4, 6, 4), 2, 0, windows.SQUARE_MAPS),
        _case("three heads", (1, 2, 2, 6), 2, 0, HEADS, heads=3),
        _case("two images", (2, 4, 4, 4), 2, 0, IMAGES),
        _case(
            "windows of 2 x 3", (1, 4, 9, 4), (2, 3), 0, windows.SQUARE_WINDOWS
        ),
        _case("qkv_bias=False", (1, 4, 4, 4), 2, 0, NO_QKV, qkv_bias=False),
        _case("a map of 4 x 7, M = 3", (1, 4, 7, 4), 3, 0, PADDED),
        _case("a shift", (1, 6, 9, 6), 3, 1, SHIFT, heads=2),
        _case("as many windows as heads", (1, 6, 6, 4), 3, 1, SHIFT, heads=4),
        _case("a shift, two images", (2, 6, 6, 4), 3, 1, IMAGES, heads=2),
        _case("a shift of 1 and 2", (1, 8, 9, 4), (4, 3), (1, 2), ONE_SHIFT),
        _case("a shift of rows alone", (1, 6, 6, 4), 3, (2, 0), ONE_SHIFT),
        _case("a shift and padding", (1, 5, 7, 4), 3, 1, PADDED),
        _case("a shift, one window high", (1, 3, 9, 4), 3, 1, ONE_WINDOW),
        _case("a shift, one window wide", (1, 9, 2, 4), 3, 1, ONE_WINDOW),
        _case("after a small map", (1, 6, 6, 4), 3, 1, STATE, mode=AFTER),
        _case("all axes different", (2, 7, 11, 12), (4, 5), (1, 3), heads=3),
    ),
    wrong_forms=_window_forms,
    errors=windows.ERRORS,
    hints={"relative_position_index": NOT_PERSISTENT, "mask": NOT_PERSISTENT},
)

EXERCISES = (*windows.EXERCISES, WINDOW_ATTENTION)
