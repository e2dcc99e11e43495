"""The exercises of chapter 15 that cut maps, with their mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import dropwhile, takewhile
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vit_lessons.checks.candidate import Refusal
from vit_lessons.checks.catalogue import Mistake, WrongForm, combine
from vit_lessons.checks.exercise import Case, Exercise, Outcome
from vit_lessons.checks.part import normal
from vit_lessons.patch_embedding import as_pair
from vit_lessons.swin_windows import (
    as_shift,
    shift_mask,
    window_partition,
    window_reverse,
)

Size = int | tuple[int, int]

SEVERAL_IMAGES = "Right for one image only: the windows of B images are B * nW."
SQUARE_MAPS = (
    "Right for square maps only: count the windows down and across "
    "separately, gh / M and gw / M."
)
SQUARE_WINDOWS = (
    "Right for square windows only: window_size may be a pair, (height, width)."
)
INT = (
    "An int is used as a pair: window_size, shift_size and grid_size may be an "
    "int, which stands for both axes."
)
PAIR = (
    "A pair is used as an int: window_size, shift_size and grid_size may be "
    "pairs, (rows, columns)."
)
BORDER = (
    "A map that windows do not tile is accepted: raise a ValueError when M "
    "does not divide gh and gw; padding is a step of its own."
)
PLAIN_RESHAPE = (
    "A reshape does not cut windows, it takes tokens in the order of memory: "
    "split gh and gw into (windows, M), then permute, then flatten."
)
SPREAD = (
    "The tokens of a window are spread over the map: gh is (nh m1), windows "
    "outside and places inside, not (m1 nh)."
)
COLUMNS_FIRST = (
    "The windows go column by column: they must go row by row, (b nh nw)."
)
IMAGES_MIXED = (
    "The windows of different images take turns: all windows of an image "
    "follow each other, (b nh nw)."
)
TRANSPOSED = (
    "Rows and columns are swapped inside each window: the order is row, "
    "column, (m1 m2)."
)
SWAPPED_WINDOW = "window_size is (height, width), and the code swaps the two."
SWAPPED_GRID = "grid_size is (height, width), and the code swaps the two."
ERRORS = {
    "cannot unpack non-iterable int": INT,
    "'int' object is not subscriptable": INT,
    "must be an iterable, not int": INT,
    "zip argument": INT,
    "'tuple' and 'int'": PAIR,
    "'int' and 'tuple'": PAIR,
    "bad operand type for unary -: 'tuple'": PAIR,
    "'tuple' object cannot be interpreted": PAIR,
    "shape '[0, ": (
        "The number of images comes out as 0: it is the number of windows "
        "divided by nW = gh / M * gw / M, and grid_size counts tokens."
    ),
}


def _pair(size: Size) -> tuple[int, int]:
    return as_pair("size", size)


def is_single(wrong: WrongForm) -> bool:
    return not wrong.cause.startswith("There are two")


def with_few_pairs(
    compute: Callable[..., Callable[..., Any]],
    mistakes: tuple[Mistake, ...],
    often: tuple[Mistake, ...],
) -> Iterator[WrongForm]:
    """All single mistakes, then the pairs of those made often."""
    yield from takewhile(is_single, combine(compute, *mistakes))
    yield from dropwhile(is_single, combine(compute, *often))


# window_partition and window_reverse.


def partition_with(
    split: str = "b (nh m1) (nw m2) d",
    windows: str = "(b nh nw)",
    tokens: str = "(m1 m2)",
    layout: str = "{windows} {tokens} d",
    sides: Callable[[int, int], tuple[int, int]] = lambda m1, m2: (m1, m2),
) -> Callable[[Tensor, Size], Tensor]:
    """window_partition, with some steps exchanged."""
    pattern = f"{split} -> {layout.format(windows=windows, tokens=tokens)}"

    def form(x: Tensor, window_size: Size) -> Tensor:
        m1, m2 = sides(*_pair(window_size))
        return rearrange(x, pattern, m1=m1, m2=m2)

    return form


def _cut_by_reshape(x: Tensor, window_size: Size) -> Tensor:
    m1, m2 = _pair(window_size)
    return x.reshape(-1, m1 * m2, x.shape[-1])


def _partition_forms() -> Iterator[WrongForm]:
    yield WrongForm(PLAIN_RESHAPE, _cut_by_reshape)
    yield from combine(
        partition_with,
        Mistake(SPREAD, {"split": "b (m1 nh) (m2 nw) d"}),
        Mistake(COLUMNS_FIRST, {"windows": "(b nw nh)"}),
        Mistake(
            IMAGES_MIXED,
            {"windows": "(nh nw b)"},
            {"windows": "(nh b nw)"},
        ),
        Mistake(TRANSPOSED, {"tokens": "(m2 m1)"}),
        Mistake(SWAPPED_WINDOW, {"sides": lambda m1, m2: (m2, m1)}),
        Mistake(
            "The places of a token inside its window and the windows are mixed "
            "up: a row of the result holds the tokens of one window, (m1 m2), "
            "and not the tokens at one place of all windows, (nh nw).",
            {"layout": "(b m1 m2) (nh nw) d"},
        ),
        Mistake(
            "A window is still a map: flatten its tokens to one axis, "
            "(B * nW, M * M, D).",
            {"layout": "{windows} m1 m2 d"},
            {"layout": "b nh nw m1 m2 d"},
        ),
        Mistake(
            "Images and windows are apart: they share the first axis, "
            "(B * nW, M * M, D).",
            {"layout": "b (nh nw) {tokens} d"},
            {"layout": "b nh nw {tokens} d"},
        ),
        Mistake(
            "The axes are in the wrong order: first the windows, then the "
            "tokens of a window, then the features.",
            {"layout": "{windows} d {tokens}"},
            {"layout": "{tokens} {windows} d"},
        ),
    )


WINDOW_PARTITION = Exercise(
    window_partition,
    cases=(
        Case("a map of 4 x 4, M = 2", (normal(1, 4, 4, 3), 2)),
        Case("two images", (normal(2, 4, 4, 3), 2), SEVERAL_IMAGES),
        Case("a map of 4 x 6", (normal(1, 4, 6, 3), 2), SQUARE_MAPS),
        Case("M = 3", (normal(1, 6, 6, 3), 3), "Right for M = 2 only."),
        Case("windows of 2 x 3", (normal(1, 6, 6, 3), (2, 3)), SQUARE_WINDOWS),
        Case("one window", (normal(2, 2, 3, 3), (2, 3)), SQUARE_WINDOWS),
        Case("a height of 5, M = 2", (normal(1, 5, 4, 3), 2), BORDER),
        Case("a width of 5, M = 2", (normal(1, 4, 5, 3), 2), BORDER),
        Case("all axes different", (normal(2, 8, 9, 5), (4, 3))),
    ),
    wrong_forms=_partition_forms,
    errors=ERRORS,
)


def reverse_with(
    windows: str = "(b nh nw)",
    tokens: str = "(m1 m2)",
    layout: str = "b (nh m1) (nw m2) d",
    sides: Callable[[int, int], tuple[int, int]] = lambda m1, m2: (m1, m2),
    grid: Callable[[int, int], tuple[int, int]] = lambda gh, gw: (gh, gw),
) -> Callable[[Tensor, Size, Size], Tensor]:
    """window_reverse, with some steps exchanged."""
    pattern = f"{windows} {tokens} d -> {layout}"

    def form(x: Tensor, window_size: Size, grid_size: Size) -> Tensor:
        m1, m2 = sides(*_pair(window_size))
        gh, gw = grid(*_pair(grid_size))
        sizes = {"nh": gh // m1, "nw": gw // m2, "m1": m1, "m2": m2}
        return rearrange(x, pattern, **sizes)

    return form


def _join_by_reshape(x: Tensor, window_size: Size, grid_size: Size) -> Tensor:
    return x.reshape(-1, *_pair(grid_size), x.shape[-1])


def _reverse_forms() -> Iterator[WrongForm]:
    yield WrongForm(
        "A reshape does not put windows together, it takes tokens in the order "
        "of memory: split the axes into (b nh nw) and (m1 m2), then permute, "
        "then flatten.",
        _join_by_reshape,
    )
    yield from combine(
        reverse_with,
        Mistake(SPREAD, {"layout": "b (m1 nh) (m2 nw) d"}),
        Mistake(COLUMNS_FIRST, {"windows": "(b nw nh)"}),
        Mistake(
            IMAGES_MIXED,
            {"windows": "(nh nw b)"},
            {"windows": "(nh b nw)"},
        ),
        Mistake(TRANSPOSED, {"tokens": "(m2 m1)"}),
        Mistake(SWAPPED_WINDOW, {"sides": lambda m1, m2: (m2, m1)}),
        Mistake(SWAPPED_GRID, {"grid": lambda gh, gw: (gw, gh)}),
        Mistake(
            "The map is transposed: rows come before columns, (B, gh, gw, D).",
            {"layout": "b (nw m2) (nh m1) d"},
        ),
        Mistake(
            "The windows are not put together: the result is a map, "
            "(B, gh, gw, D).",
            {"layout": "b nh nw m1 m2 d"},
            {"layout": "b nh m1 nw m2 d"},
            {"layout": "b (nh nw) (m1 m2) d"},
        ),
        Mistake(
            "The map is flat: the result has an axis for the rows and one for "
            "the columns, (B, gh, gw, D).",
            {"layout": "b (nh m1 nw m2) d"},
        ),
    )


def _reverse_case(
    label: str,
    batch: int,
    grid: Size,
    window: Size,
    cause: str | None = None,
    *,
    dim: int = 3,
) -> Case:
    windows = window_partition(normal(batch, *_pair(grid), dim), window)
    return Case(label, (windows, window, grid), cause)


WINDOW_REVERSE = Exercise(
    window_reverse,
    cases=(
        _reverse_case("a map of 4 x 4, M = 2", 1, (4, 4), 2),
        _reverse_case("two images", 2, (4, 4), 2, SEVERAL_IMAGES),
        _reverse_case("a map of 4 x 6", 1, (4, 6), 2, SQUARE_MAPS),
        _reverse_case("a map given as 6", 1, 6, 2, INT),
        _reverse_case("M = 3", 1, (6, 6), 3, "Right for M = 2 only."),
        _reverse_case("windows of 2 x 3", 1, (6, 6), (2, 3), SQUARE_WINDOWS),
        _reverse_case("one window", 2, (2, 3), (2, 3), SQUARE_WINDOWS),
        _reverse_case("all axes different", 2, (8, 9), (4, 3), dim=5),
    ),
    wrong_forms=_reverse_forms,
    errors=ERRORS,
)

# shift_mask.

BOOLEAN = (
    "The mask holds True and False: it is added to the scores, so it must hold "
    "-inf where a pair is hidden and 0 where it is not."
)
ZERO_TIMES_INFINITY = (
    "0 * -inf is NaN, which is not a number: write -inf where a pair is hidden "
    "and 0 elsewhere, with masked_fill or torch.where."
)
LARGE = 100.0  # what published code subtracts from a score to hide a pair


def _simplify(mask: Any) -> Any:
    """The same mask with -inf as -100, and small numbers as their signs.

    Raises:
        Refusal: It holds True and False, or NaN and other numbers.
    """
    if not isinstance(mask, Tensor) or mask.is_meta:
        return mask
    if mask.dtype == torch.bool:
        raise Refusal(BOOLEAN)
    if not mask.is_floating_point():
        return mask
    is_nan = mask.isnan()
    if is_nan.any() and not is_nan.all():
        raise Refusal(ZERO_TIMES_INFINITY)
    is_large = mask.abs() >= LARGE
    mask = torch.where(is_large, mask.clamp(-LARGE, LARGE), mask.sign())
    return mask.float()


@dataclass(frozen=True)
class MaskExercise(Exercise):
    """A mask may hide with -inf or a number that is as good, -100."""

    def ready(self, candidate: Any, case: Case) -> Callable[..., Any]:
        return self.finish(candidate)

    def finish(self, form: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: _simplify(form(*args, **kwargs))

    def run(self, candidate: Any, case: Case) -> Outcome:
        """Count the pairs that are wrong."""
        outcome = super().run(candidate, case)
        if isinstance(outcome.got, Refusal):
            return replace(outcome, cause=str(outcome.got))
        if (outcome.problem or "").startswith("largest difference"):
            want, have = outcome.expected, outcome.got.to(outcome.expected)
            seen, hidden = (want < 0) & (have >= 0), (want == 0) & (have < 0)
            words = (
                f"of {want.numel()} pairs, {seen.sum()} must be hidden and are "
                f"not, {hidden.sum()} are hidden and must not be"
            )
            return replace(outcome, problem=words)
        return outcome


def _rolled(gh: int, gw: int, s1: int, s2: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of a map that was rolled up and to the left."""
    return torch.arange(gh).roll(-s1), torch.arange(gw).roll(-s2)


def _four(y: Tensor, x: Tensor, s1: int, s2: int) -> Tensor:
    return 2 * (y < s1)[:, None] + (x < s2)


def hide(apart: Tensor, value: float = float("-inf")) -> Tensor:
    """A mask with this value where two places are apart, and 0 elsewhere."""
    return torch.zeros(apart.shape).masked_fill(apart, value)


def mask_with(
    places: Callable = _rolled,
    shift: Callable = lambda s1, s2, m1, m2: (s1, s2),
    region: Callable = _four,
    cut: Callable = lambda region, m1, m2: window_partition(
        region[None, ..., None], (m1, m2)
    ).squeeze(2),
    fill: Callable = hide,
    layout: Callable = lambda mask, m1, m2: mask,
) -> Callable[[Size, Size, Size], Tensor]:
    """shift_mask, with some steps exchanged."""

    def form(grid_size: Size, window_size: Size, shift_size: Size) -> Tensor:
        (gh, gw), (m1, m2) = _pair(grid_size), _pair(window_size)
        s1, s2 = shift(*as_shift(shift_size, window_size), m1, m2)
        regions = cut(region(*places(gh, gw, s1, s2), s1, s2), m1, m2)
        return layout(fill(regions[:, :, None] != regions[:, None]), m1, m2)

    return form


def _windows_before(grid_size: Size, window_size: Size, shift: Size) -> Tensor:
    (gh, gw), (m1, m2) = _pair(grid_size), _pair(window_size)
    y, x = _rolled(gh, gw, *as_shift(shift, window_size))
    number = (y // m1)[:, None] * gw + x // m2
    regions = window_partition(number[None, ..., None], window_size)
    return hide(regions != regions.mT)


NUMBER = (
    "The hidden pairs hold a number that hides nothing, such as -1 or -10: it "
    "must be -inf, or far below all scores, -100 or less."
)
EXCHANGED = (
    "The mask is the wrong way round: pairs of one region are hidden, and "
    "those of two regions see each other."
)
SIGN = (
    "The mask has the wrong sign: it is added to the scores, so what is hidden "
    "must be -inf and not a positive number."
)
UNROLLED = (
    "The border lies above and on the left, as in the map before the roll, or "
    "rolled the other way: the roll brings what came around to the bottom and "
    "to the right."
)
ONE_AXIS = (
    "One region is missing: rows that came around and columns that came around "
    "make four regions, of which no two see each other."
)
WRONG_BORDER = (
    "The border between the regions is in the wrong place: the last shift_size "
    "rows and columns of the rolled map came around."
)
SWAPPED_SHIFT = (
    "shift_size is (rows, columns), and the code swaps the two axes of the "
    "regions."
)


def _mask_forms() -> Iterator[WrongForm]:
    yield WrongForm(
        "Pairs from two windows of the block before are hidden, and the shift "
        "is there for them: hide only what the roll brought together.",
        _windows_before,
    )
    yield WrongForm(
        SWAPPED_GRID, lambda size, *rest: shift_mask(_pair(size)[::-1], *rest)
    )
    mistakes = (
        Mistake(
            UNROLLED,
            {"places": lambda gh, gw, *_: (torch.arange(gh), torch.arange(gw))},
            {"places": lambda gh, gw, a, b: _rolled(gh, gw, -a, -b)},
        ),
        Mistake(
            ONE_AXIS,
            {"region": lambda y, x, a, b: (y < a)[:, None].expand(-1, len(x))},
            {"region": lambda y, x, a, b: (x < b).expand(len(y), -1)},
            {"region": lambda y, x, a, b: (y < a)[:, None] | (x < b)},
            {"region": lambda y, x, a, b: (y < a)[:, None] & (x < b)},
        ),
        Mistake(
            "Two of the four regions have the same number, those at the bottom "
            "left and at the top right: count 2 for the rows and 1 for the "
            "columns.",
            {"region": lambda y, x, a, b: (y < a)[:, None] * 1 + (x < b)},
        ),
        Mistake(
            WRONG_BORDER,
            {"region": lambda y, x, a, b: _four(y, x, a - 1, b - 1)},
            {"region": lambda y, x, a, b: _four(y, x, a + 1, b + 1)},
            {"shift": lambda s1, s2, m1, m2: (m1 - s1, m2 - s2)},
        ),
        Mistake(SWAPPED_SHIFT, {"shift": lambda s1, s2, m1, m2: (s2, s1)}),
        Mistake(
            PLAIN_RESHAPE,
            {"cut": lambda region, m1, m2: region.reshape(-1, m1 * m2)},
        ),
        Mistake(
            "The windows or their tokens are in the wrong order: cut the "
            "regions as window_partition cuts the map.",
            {"cut": lambda r, m1, m2: _cut(r, m1, m2, "(nw nh) (m1 m2)")},
            {"cut": lambda r, m1, m2: _cut(r, m1, m2, "(nh nw) (m2 m1)")},
            {"cut": lambda r, m1, m2: _cut(r, m2, m1, "(nh nw) (m1 m2)")},
        ),
        Mistake(
            "The whole map is one window: cut the regions into windows first.",
            {"cut": lambda region, m1, m2: region.reshape(1, -1)},
        ),
        Mistake(EXCHANGED, {"fill": lambda apart: hide(~apart)}),
        Mistake(SIGN, {"fill": lambda apart: hide(apart, LARGE)}),
        Mistake(NUMBER, {"fill": lambda apart: hide(apart, -1.0)}),
        Mistake(
            BOOLEAN,
            {"fill": lambda apart: apart},
            {"fill": lambda apart: ~apart},
            {"fill": lambda apart: apart.float()},
            {"fill": lambda apart: (~apart).float()},
        ),
        Mistake(
            "The shape is wrong: the mask is (nW, M * M, M * M); axes for "
            "images and heads are added where it is used.",
            {"layout": lambda mask, m1, m2: mask[:, None]},
            {"layout": lambda mask, m1, m2: mask[None, :, None]},
            {"layout": lambda mask, m1, m2: mask.flatten(0, 1)},
            {"layout": lambda mask, m1, m2: mask.view(-1, m1, m2, m1, m2)},
        ),
    )
    often = (mistakes[0], *mistakes[4:6], *mistakes[8:10])
    yield from with_few_pairs(mask_with, mistakes, often)


def _cut(region: Tensor, m1: int, m2: int, order: str) -> Tensor:
    pattern = f"(nh m1) (nw m2) -> {order}"
    return rearrange(region, pattern, m1=m1, m2=m2)


SHIFT_MASK = MaskExercise(
    shift_mask,
    cases=(
        Case("a map of 4 x 4, M = 2, shift 1", ((4, 4), 2, 1)),
        Case("a map given as 6", (6, 2, 1), INT),
        Case("a map of 4 x 6", ((4, 6), 2, 1), SQUARE_MAPS),
        Case("M = 3, shift 1", ((6, 6), 3, 1), WRONG_BORDER),
        Case("M = 3, shift 2", ((6, 9), 3, 2), WRONG_BORDER),
        Case("windows of 2 x 3", ((4, 6), (2, 3), 1), SQUARE_WINDOWS),
        Case(
            "a shift of 1 and 2",
            ((8, 8), 4, (1, 2)),
            "Right for one shift along both axes only: shift_size may be a "
            "pair, (rows, columns).",
        ),
        Case(
            "a shift of rows alone",
            ((6, 6), 3, (1, 0)),
            "Right for a shift of both axes only: along an axis with a shift "
            "of 0 nothing came around, and a slice that begins at -0 is whole.",
        ),
        Case(
            "a shift of columns alone",
            ((6, 6), 3, (0, 1)),
            "Right for a shift of both axes only: along an axis with a shift "
            "of 0 nothing came around, and a slice that begins at -0 is whole.",
        ),
        Case("no shift", ((6, 6), 3, 0), "Without a shift nothing is hidden."),
        Case("one window", ((4, 4), 4, 1), "Right for several windows only."),
        Case("all axes different", ((8, 15), (4, 5), (1, 3))),
    ),
    wrong_forms=_mask_forms,
    errors=ERRORS,
)

EXERCISES = (WINDOW_PARTITION, WINDOW_REVERSE, SHIFT_MASK)

# Wrong ways to pad.


def rest(x: Tensor, m: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that are missing to whole windows."""
    return -x.shape[1] % m[0], -x.shape[2] % m[1]


def pad_at(share: float) -> dict[str, Callable]:
    """This share of the padding is above and on the left, and cut off."""

    def pad(x: Tensor, m: tuple[int, int]) -> Tensor:
        h, w = rest(x, m)
        top, left = int(h * share), int(w * share)
        return F.pad(x, (0, 0, left, w - left, top, h - top))

    def crop(x: Tensor, gh: int, gw: int) -> Tensor:
        top, left = (
            int((x.shape[1] - gh) * share),
            int((x.shape[2] - gw) * share),
        )
        return x[:, top : top + gh, left : left + gw]

    return {"pad": pad, "crop": crop}


def pad_always(x: Tensor, m: tuple[int, int]) -> Tensor:
    h, w = m[0] - x.shape[1] % m[0], m[1] - x.shape[2] % m[1]
    return F.pad(x, (0, 0, 0, w, 0, h))


def pad_with_edge(x: Tensor, m: tuple[int, int]) -> Tensor:
    h, w = rest(x, m)
    return F.pad(x.movedim(3, 1), (0, w, 0, h), mode="replicate").movedim(1, 3)


def drop_rest(x: Tensor, m: tuple[int, int]) -> Tensor:
    gh, gw = x.shape[1:3]
    return x[:, : gh // m[0] * m[0], : gw // m[1] * m[1]]
