"""Exercises of chapter 03, with the mistakes that learners make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vit_lessons.checks.catalogue import Mistake, WrongForm, combine
from vit_lessons.checks.exercise import Case, Exercise
from vit_lessons.patch_embedding import as_pair
from vit_lessons.position_embedding import (
    relative_position_index,
    resize_pos_embed,
    sincos_pos_embed,
)

Size = int | tuple[int, int]

INT = (
    "An int is used as a pair: a grid size may be an int, which stands for a "
    "square."
)
PAIR = (
    "A pair is used as an int: a grid size may be a pair, (gh, gw), so read "
    "the two numbers first."
)
SQUARE = (
    "Right for square grids only: gh and gw are two numbers, rows and columns."
)
SWAPPED = "grid_size is (gh, gw), and the code swaps the two."
COLUMNS_FIRST = (
    "The places go column by column: they must go row by row, as the patches "
    "do."
)
ERRORS = {
    "cannot unpack non-iterable int": INT,
    "'int' object is not subscriptable": INT,
    "must be an iterable, not int": INT,
    "object of type 'int' has no len": INT,
    "must be Number, not tuple": PAIR,
    "'tuple' object cannot be interpreted as an integer": PAIR,
    "and 'tuple'": PAIR,
    "'tuple' and 'int'": PAIR,
    "argument 'input' (position 1) must be Tensor, not int": (
        "torch.sin and torch.cos need a tensor: compute the angles of all "
        "places at once, with torch.arange, or use math.sin and math.cos."
    ),
    "argument 'input' (position 1) must be Tensor, not float": (
        "torch.sin and torch.cos need a tensor: compute the angles of all "
        "places at once, with torch.arange, or use math.sin and math.cos."
    ),
}


def _pair(size: Size) -> tuple[int, int]:
    return as_pair("size", size)


def _places(gh: int, gw: int) -> tuple[Tensor, Tensor]:
    """Row and column of each place, row by row."""
    rows, columns = torch.meshgrid(
        torch.arange(gh), torch.arange(gw), indexing="ij"
    )
    return rows.flatten(), columns.flatten()


def _places_by_column(gh: int, gw: int) -> tuple[Tensor, Tensor]:
    columns, rows = _places(gw, gh)
    return rows, columns


def _powers(dim: int, temperature: float) -> Tensor:
    return temperature ** -(torch.arange(dim // 4) / (dim // 4))


def _waves(columns: Tensor, rows: Tensor) -> list[Tensor]:
    return [columns.sin(), columns.cos(), rows.sin(), rows.cos()]


def _sincos(
    places: Callable = _places,
    order: Callable = lambda rows, columns, gh, gw: (columns, rows),
    powers: Callable = _powers,
    angle: Callable = lambda place, powers: place[:, None] * powers,
    waves: Callable = _waves,
    join: Callable = lambda waves: torch.cat(waves, 1),
    layout: Callable = lambda table, gh, gw: table[None],
    heat: Callable = lambda temperature: temperature,
) -> Callable[..., Tensor]:
    """sincos_pos_embed, with some steps exchanged."""

    def form(
        grid_size: Size, dim: int, *, temperature: float = 10_000.0
    ) -> Tensor:
        gh, gw = _pair(grid_size)
        speed = powers(dim, heat(temperature))
        first, second = order(*places(gh, gw), gh, gw)
        table = join(waves(angle(first, speed), angle(second, speed)))
        return layout(table, gh, gw)

    return form


def _exponent(top: Callable, bottom: Callable) -> Callable:
    """Powers with the exponent top(i) / bottom(D), for i = 0 .. D / 4 - 1."""

    def powers(dim: int, temperature: float) -> Tensor:
        steps = torch.arange(dim // 4)
        return temperature ** -(top(steps) / bottom(dim))

    return powers


def _along_the_sequence(grid_size: Size, dim: int, interleave: bool) -> Tensor:
    """The table of Vaswani et al., for a sequence of N tokens."""
    gh, gw = _pair(grid_size)
    steps = torch.arange(dim // 2) / (dim // 2)
    angles = torch.arange(gh * gw)[:, None] / 10_000**steps
    waves = [angles.sin(), angles.cos()]
    if interleave:
        return torch.stack(waves, -1).flatten(1)[None]
    return torch.cat(waves, 1)[None]


def _axes_added(grid_size: Size, dim: int, interleave: bool) -> Tensor:
    """The table of Vaswani et al. for rows and for columns, added."""
    gh, gw = _pair(grid_size)
    rows = _along_the_sequence((gh, 1), dim, interleave)[0, :, None]
    columns = _along_the_sequence((gw, 1), dim, interleave)[0, None]
    return (rows + columns).reshape(1, gh * gw, dim)


def _sincos_forms() -> Iterator[WrongForm]:
    def on_the_sequence(
        grid_size: Size,
        dim: int,
        *,
        temperature: float = 10_000.0,
        make: Callable,
        interleave: bool,
    ) -> Tensor:
        return make(grid_size, dim, interleave)

    for interleave in (False, True):
        yield WrongForm(
            "The positions count along the whole sequence: half of the "
            "features tell the column, the other half the row.",
            partial(
                on_the_sequence,
                make=_along_the_sequence,
                interleave=interleave,
            ),
        )
        yield WrongForm(
            "The waves of column and row are added: each has half of the "
            "features, side by side.",
            partial(on_the_sequence, make=_axes_added, interleave=interleave),
        )
    yield WrongForm(
        SWAPPED,
        lambda grid_size, dim, *, temperature=10_000.0: sincos_pos_embed(
            _pair(grid_size)[::-1], dim, temperature=temperature
        ),
    )

    def not_crossed(
        grid_size: Size, dim: int, *, temperature: float = 10_000.0
    ) -> Tensor:
        gh, gw = _pair(grid_size)
        powers = _powers(dim, temperature)
        angles = [torch.arange(n)[:, None] * powers for n in (gw, gh)]
        return torch.cat(_waves(*angles), 1)[None]

    yield WrongForm(
        "There is one vector for each row, not for each place: combine each "
        "row with each column, as torch.meshgrid does.",
        not_crossed,
    )
    yield from combine(
        _sincos,
        Mistake(COLUMNS_FIRST, {"places": _places_by_column}),
        Mistake(
            "Row and column are swapped: the first half of the features tells "
            "the column, the second half the row.",
            {"order": lambda rows, columns, gh, gw: (rows, columns)},
        ),
        Mistake(
            "Both halves tell the column: the second half tells the row.",
            {"order": lambda rows, columns, gh, gw: (columns, columns)},
        ),
        Mistake(
            "Both halves tell the row: the first half tells the column.",
            {"order": lambda rows, columns, gh, gw: (rows, rows)},
        ),
        Mistake(
            "The places are counted from 1: they are counted from 0.",
            {"order": lambda rows, columns, gh, gw: (columns + 1, rows + 1)},
        ),
        Mistake(
            "The places are divided by the size of the grid: use the numbers "
            "of row and column as they are.",
            {"order": lambda r, c, gh, gw: (c / gw, r / gh)},
            {
                "order": lambda r, c, gh, gw: (
                    c / max(gw - 1, 1),
                    r / max(gh - 1, 1),
                )
            },
            {
                "order": lambda r, c, gh, gw: (
                    2 * torch.pi * c / gw,
                    2 * torch.pi * r / gh,
                )
            },
        ),
        Mistake(
            "The waves slow down at the wrong rate: wave i of the D / 4 waves "
            "has the exponent i / (D / 4).",
            {"powers": _exponent(lambda i: i, lambda dim: dim / 2)},
            {"powers": _exponent(lambda i: i, lambda dim: dim)},
            {"powers": _exponent(lambda i: 2 * i, lambda dim: dim / 4)},
            {"powers": _exponent(lambda i: 4 * i, lambda dim: dim / 4)},
            {
                "powers": _exponent(
                    lambda i: i, lambda dim: max(dim // 4 - 1, 1)
                )
            },
            {"powers": _exponent(lambda i: i + 1, lambda dim: dim / 4)},
            {"powers": _exponent(lambda i: i, lambda dim: 1)},
            {"powers": _exponent(lambda i: 2 * (i // 2), lambda dim: dim / 4)},
            {"powers": _exponent(lambda i: 2 * (i // 2), lambda dim: dim / 2)},
        ),
        Mistake(
            "All waves are equally fast: wave i is slower than wave i - 1.",
            {"powers": lambda dim, temperature: torch.ones(dim // 4)},
        ),
        Mistake(
            "The waves get faster: divide the place by temperature ** (i / "
            "(D / 4)), or multiply it with a negative exponent.",
            {"powers": lambda dim, temperature: 1 / _powers(dim, temperature)},
        ),
        Mistake(
            "The waves come in the wrong order: the fastest is the first.",
            {
                "powers": lambda dim, temperature: _powers(
                    dim, temperature
                ).flip(0)
            },
        ),
        Mistake(
            "The angles are in degrees: torch.sin and torch.cos take radians, "
            "so use them as they are.",
            {
                "angle": lambda place, powers: (
                    place[:, None] * powers
                ).rad2deg()
            },
            {
                "angle": lambda place, powers: (
                    place[:, None] * powers
                ).deg2rad()
            },
        ),
        Mistake(
            "The angles are multiplied by pi: use them as they are.",
            {"angle": lambda place, powers: place[:, None] * powers * torch.pi},
            {
                "angle": lambda place, powers: (
                    place[:, None] * powers * 2 * torch.pi
                )
            },
        ),
        Mistake(
            "Sines and cosines alternate: each half holds all its sines, then "
            "all its cosines.",
            {
                "waves": lambda c, r: [
                    torch.stack([a.sin(), a.cos()], -1).flatten(1)
                    for a in (c, r)
                ]
            },
        ),
        Mistake(
            "Cosines come before sines: each half holds its sines first.",
            {"waves": lambda c, r: [c.cos(), c.sin(), r.cos(), r.sin()]},
        ),
        Mistake(
            "All sines come before all cosines: first the sines and cosines "
            "of the column, then those of the row.",
            {"waves": lambda c, r: [c.sin(), r.sin(), c.cos(), r.cos()]},
        ),
        Mistake(
            "The features of column and row alternate: the first half of the "
            "features is for the column, the second half for the row.",
            {
                "waves": lambda c, r: [
                    torch.stack([f(c), f(r)], -1).flatten(1)
                    for f in (torch.sin, torch.cos)
                ]
            },
            {"waves": lambda c, r: [torch.stack(_waves(c, r), -1).flatten(1)]},
        ),
        Mistake(
            "There are sines alone: each half holds sines, then cosines.",
            {"waves": lambda c, r: [c.sin(), c.sin(), r.sin(), r.sin()]},
            {"waves": lambda c, r: [c.sin(), r.sin()]},
        ),
        Mistake(
            "There are cosines alone: each half holds sines, then cosines.",
            {"waves": lambda c, r: [c.cos(), c.cos(), r.cos(), r.cos()]},
            {"waves": lambda c, r: [c.cos(), r.cos()]},
        ),
        Mistake(
            "The column has sines alone, and the row cosines alone: each has "
            "both.",
            {"waves": lambda c, r: [c.sin(), r.cos()]},
        ),
        Mistake(
            "Half of the features is missing: there are D / 4 sines and D / 4 "
            "cosines for the column, and as many for the row.",
            {"waves": lambda c, r: [c.sin(), c.cos()]},
            {"waves": lambda c, r: [r.sin(), r.cos()]},
        ),
        Mistake(
            "The waves are added: put them side by side, with torch.cat.",
            {"join": sum},
            {
                "join": lambda waves: torch.cat(
                    [waves[0] + waves[-2], waves[1] + waves[-1]], 1
                )
            },
        ),
        Mistake(
            "The waves are joined along the places: the features are the last "
            "axis, dim=1.",
            {"join": torch.cat},
        ),
        Mistake(
            "The waves are stacked and not joined: use torch.cat with dim=1.",
            {"join": lambda waves: torch.stack(waves, 1)},
            {"join": lambda waves: torch.stack(waves, -1)},
            {"join": lambda waves: torch.stack(waves)},
        ),
        Mistake(
            "The batch axis is missing: the result is (1, N, D).",
            {"layout": lambda table, gh, gw: table},
        ),
        Mistake(
            "The batch axis is in the wrong place: the result is (1, N, D), so "
            "use unsqueeze(0).",
            {"layout": lambda table, gh, gw: table[:, None]},
            {"layout": lambda table, gh, gw: table[..., None]},
        ),
        Mistake(
            "The grid is not flat: the result is (1, N, D), one axis of N = "
            "gh * gw places.",
            {"layout": lambda table, gh, gw: table.unflatten(0, (gh, gw))},
            {
                "layout": lambda table, gh, gw: table.unflatten(0, (gh, gw))[
                    None
                ]
            },
        ),
        Mistake(
            "Places and features are swapped: the result is (1, N, D), and the "
            "features are its last axis.",
            {"layout": lambda table, gh, gw: table.mT},
            {"layout": lambda table, gh, gw: table.mT[None]},
        ),
        Mistake(
            "There is one row too many: the class token is no place.",
            {"layout": lambda table, gh, gw: F.pad(table, (0, 0, 1, 0))[None]},
        ),
        Mistake(
            "temperature is not used: wave i divides the place by temperature "
            "** (i / (D / 4)).",
            {"heat": lambda temperature: 10_000.0},
        ),
    )


SINCOS_POS_EMBED = Exercise(
    sincos_pos_embed,
    cases=(
        Case("a grid of 3 x 3, D = 4", ((3, 3), 4)),
        Case(
            "D = 8",
            ((3, 3), 8),
            "Right for one wave, wrong for several: wave i of the D / 4 waves "
            "divides the place by 10000 ** (i / (D / 4)).",
        ),
        Case("a grid given as 3", (3, 8), INT),
        Case("a grid of 2 x 5", ((2, 5), 8), SQUARE),
        Case("one row of 3", ((1, 3), 8), SQUARE),
        Case("one column of 3", ((3, 1), 8), SQUARE),
        Case(
            "D = 6, no multiple of 4",
            ((3, 3), 6),
            "A width that is no multiple of 4 is accepted: raise a ValueError, "
            "since there are four kinds of features.",
        ),
        Case("all numbers different", ((3, 5), 24)),
        Case(
            "temperature=100",
            ((3, 5), 16),
            "Right for a temperature of 10000 only: use the argument.",
            {"temperature": 100.0},
        ),
    ),
    wrong_forms=_sincos_forms,
    errors=ERRORS,
)


def _offsets(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    return rows[:, None] - rows, columns[:, None] - columns


def _index(
    places: Callable = _places,
    offsets: Callable = _offsets,
    shift: Callable = lambda dy, dx, gh, gw: (dy + gh - 1, dx + gw - 1),
    number: Callable = lambda dy, dx, gh, gw: dy * (2 * gw - 1) + dx,
    layout: Callable = lambda index, gh, gw: index,
) -> Callable[[Size], Tensor]:
    """relative_position_index, with some steps exchanged."""

    def form(grid_size: Size) -> Tensor:
        gh, gw = _pair(grid_size)
        dy, dx = shift(*offsets(*places(gh, gw)), gh, gw)
        return layout(number(dy, dx, gh, gw), gh, gw)

    return form


def _along(grid_size: Size) -> Tensor:
    gh, gw = _pair(grid_size)
    tokens = torch.arange(gh * gw)
    return tokens[:, None] - tokens


def _first_seen(grid_size: Size) -> Tensor:
    index, numbers = relative_position_index(grid_size), {}
    seen = [
        numbers.setdefault(i, len(numbers)) for i in index.flatten().tolist()
    ]
    return torch.tensor(seen).view_as(index)


def _index_forms() -> Iterator[WrongForm]:
    yield WrongForm(
        SWAPPED, lambda size: relative_position_index(_pair(size)[::-1])
    )
    yield WrongForm(
        "The distance is counted along the whole sequence: two places differ "
        "by rows and by columns, each with a sign.",
        lambda size: _along(size).abs(),
    )
    yield WrongForm(
        "The offsets are numbered as they appear: the number is the row "
        "offset times (2 * gw - 1), plus the column offset.",
        _first_seen,
    )
    yield WrongForm(
        "Each pair of places has a number of its own: pairs that lie the same "
        "way apart share one.",
        lambda size: torch.arange(len(_along(size)) ** 2).view_as(_along(size)),
    )
    yield from combine(
        _index,
        Mistake(COLUMNS_FIRST, {"places": _places_by_column}),
        Mistake(
            "The sign of the offset is wrong: row i, column j is the place of "
            "i less the place of j.",
            {"offsets": lambda r, c: (r - r[:, None], c - c[:, None])},
        ),
        Mistake(
            "One of the two offsets has the wrong sign: both are the place of "
            "i less the place of j.",
            {"offsets": lambda r, c: (r[:, None] - r, c - c[:, None])},
            {"offsets": lambda r, c: (r - r[:, None], c[:, None] - c)},
        ),
        Mistake(
            "The offsets lost their sign: a key on the left has another number "
            "than one on the right, so leave out abs.",
            {
                "offsets": lambda r, c: (
                    (r[:, None] - r).abs(),
                    (c[:, None] - c).abs(),
                )
            },
            {
                "offsets": lambda r, c: (
                    (r[:, None] - r).abs(),
                    (c[:, None] - c).abs(),
                ),
                "shift": lambda dy, dx, gh, gw: (dy, dx),
            },
            {
                "offsets": lambda r, c: (
                    (r[:, None] - r).abs(),
                    (c[:, None] - c).abs(),
                ),
                "shift": lambda dy, dx, gh, gw: (dy, dx),
                "number": lambda dy, dx, gh, gw: dy * gw + dx,
            },
        ),
        Mistake(
            "The places are added, not subtracted: an offset is the place of i "
            "less the place of j.",
            {"offsets": lambda r, c: (r[:, None] + r, c[:, None] + c)},
            {
                "offsets": lambda r, c: (r[:, None] + r, c[:, None] + c),
                "shift": lambda dy, dx, gh, gw: (dy, dx),
            },
        ),
        Mistake(
            "The offsets are not shifted, so that some numbers are negative: "
            "add gh - 1 to the rows and gw - 1 to the columns.",
            {"shift": lambda dy, dx, gh, gw: (dy, dx)},
        ),
        Mistake(
            "One of the two offsets is not shifted: add gh - 1 to the rows and "
            "gw - 1 to the columns.",
            {"shift": lambda dy, dx, gh, gw: (dy + gh - 1, dx)},
            {"shift": lambda dy, dx, gh, gw: (dy, dx + gw - 1)},
        ),
        Mistake(
            "The smallest number is not 0: add gh - 1 to the rows and gw - 1 "
            "to the columns, and nothing after that.",
            {"shift": lambda dy, dx, gh, gw: (dy + gh, dx + gw)},
            {"shift": lambda dy, dx, gh, gw: (dy + gh, dx + gw - 1)},
            {"shift": lambda dy, dx, gh, gw: (dy + gh - 1, dx + gw)},
        ),
        Mistake(
            "The two shifts are exchanged: add gh - 1 to the rows and gw - 1 "
            "to the columns.",
            {"shift": lambda dy, dx, gh, gw: (dy + gw - 1, dx + gh - 1)},
        ),
        Mistake(
            "One row counts as gw numbers, as in the difference of the places "
            "in the sequence, i - j, so that different offsets share a number: "
            "there are 2 * gw - 1 column offsets, so multiply by that.",
            {"number": lambda dy, dx, gh, gw: dy * gw + dx},
        ),
        Mistake(
            "The row offset is multiplied by the wrong number: there are 2 * "
            "gw - 1 column offsets.",
            {"number": lambda dy, dx, gh, gw: dy * (2 * gh - 1) + dx},
            {"number": lambda dy, dx, gh, gw: dy * gh + dx},
            {"number": lambda dy, dx, gh, gw: dy * (2 * gw) + dx},
            {"number": lambda dy, dx, gh, gw: dy * (2 * gh) + dx},
            {"number": lambda dy, dx, gh, gw: dy * (2 * gw + 1) + dx},
            {"number": lambda dy, dx, gh, gw: dy * (gw - 1) + dx},
        ),
        Mistake(
            "Rows and columns are swapped: the number is the row offset times "
            "(2 * gw - 1), plus the column offset.",
            {"number": lambda dy, dx, gh, gw: dx * (2 * gh - 1) + dy},
            {"number": lambda dy, dx, gh, gw: dx * (2 * gw - 1) + dy},
        ),
        Mistake(
            "The two offsets are added, so that different ones get the same "
            "number: multiply the row offset by 2 * gw - 1 first.",
            {"number": lambda dy, dx, gh, gw: dy + dx},
        ),
        Mistake(
            "The row offset alone is numbered: the column offset counts too.",
            {"number": lambda dy, dx, gh, gw: dy},
            {"number": lambda dy, dx, gh, gw: dy * (2 * gw - 1)},
        ),
        Mistake(
            "The column offset alone is numbered: the row offset counts too.",
            {"number": lambda dy, dx, gh, gw: dx},
        ),
        Mistake(
            "The sum runs over the wrong axis: add the row offset and the "
            "column offset of each pair.",
            {
                "number": lambda dy, dx, gh, gw: torch.stack(
                    [dy * (2 * gw - 1), dx]
                ).sum(-1)
            },
        ),
        Mistake(
            "The shift comes after the multiplication: shift both offsets "
            "first, so that they start at 0.",
            {
                "shift": lambda dy, dx, gh, gw: (dy, dx),
                "number": lambda dy, dx, gh, gw: (
                    dy * (2 * gw - 1) + gh - 1 + dx + gw - 1
                ),
            },
        ),
        Mistake(
            "The two offsets are still apart: make one number of them, the row "
            "offset times (2 * gw - 1) plus the column offset.",
            {"number": lambda dy, dx, gh, gw: torch.stack([dy, dx], -1)},
            {"number": lambda dy, dx, gh, gw: torch.stack([dy, dx])},
            {
                "number": lambda dy, dx, gh, gw: torch.stack(
                    [dy * (2 * gw - 1), dx], -1
                )
            },
        ),
        Mistake(
            "The shape is wrong: the result is (N, N), a row for each query "
            "and a column for each key.",
            {"layout": lambda index, gh, gw: index.flatten()},
            {"layout": lambda index, gh, gw: index[None]},
            {"layout": lambda index, gh, gw: index.view(gh, gw, gh, gw)},
            {"layout": lambda index, gh, gw: index.view(gh, gw, -1)},
        ),
    )


RELATIVE_POSITION_INDEX = Exercise(
    relative_position_index,
    cases=(
        Case("a grid of 2 x 2", ((2, 2),)),
        Case(
            "a grid of 3 x 3",
            ((3, 3),),
            "Right for 2 x 2 only: there are 2 * gh - 1 row offsets and 2 * gw "
            "- 1 column offsets.",
        ),
        Case("a grid given as 3", (3,), INT),
        Case("one row of 4", ((1, 4),), SQUARE),
        Case("one column of 4", ((4, 1),), SQUARE),
        Case("a grid of 2 x 3", ((2, 3),), SQUARE),
        Case("a grid of 4 x 3", ((4, 3),), SQUARE),
        Case("a grid of 3 x 5", ((3, 5),)),
    ),
    wrong_forms=_index_forms,
    errors=ERRORS,
)

NO_PERMUTE = (
    "A reshape mixes places and features: reshape to (1, gh, gw, D) first, and "
    "permute to (1, D, gh, gw) then; afterwards the same way back."
)
GUESSED = (
    "The grid is guessed from the number of tokens, as if it were square: use "
    "grid_size and new_grid_size."
)
UNCHANGED = (
    "The table keeps its old size: interpolate it whenever new_grid_size "
    "differs from grid_size."
)


PREFIX_LEFT = (
    "The prefix tokens are still there: take them off before you reshape the "
    "table to its grid, and put them in front again afterwards."
)
OTHER_GRID = (
    "The old table is reshaped with other numbers than its own: it has the "
    "rows and columns of grid_size, the second argument."
)
NOT_CHANNELS = (
    "F.interpolate resizes the last two axes, and they are no rows and "
    "columns: permute (1, gh, gw, D) to (1, D, gh, gw) first."
)
# The first table has 1 + 3 * 3 tokens of 6 features, the new one 5 * 5 places.
RESIZE_ERRORS = ERRORS | {
    "is invalid for input of size 60": PREFIX_LEFT,
    "divide axis of length 10 ": PREFIX_LEFT,
    "10 != 9": PREFIX_LEFT,
    "the size of dim 1 (10)": PREFIX_LEFT,
    "is invalid for input of size 54": OTHER_GRID,
    "divide axis of length 9 ": OTHER_GRID,
    "9 != 25": OTHER_GRID,
    "Expected size 6 but got size 3 for": NOT_CHANNELS,
    "is invalid for input of size 75": NOT_CHANNELS,
    "Tensors must have same number of dimensions": (
        "torch.cat needs tensors with as many axes as each other: keep the "
        "prefix (1, n, D), as pos_embed[:, :n] is."
    ),
    "is invalid for input of size 150": (
        "The new table is reshaped with other numbers than its own: it has "
        "the rows and columns of new_grid_size."
    ),
    "must have the same number of spatial dimensions": (
        "F.interpolate needs a picture, (1, D, gh, gw), and the new size, (gh, "
        "gw)."
    ),
}


def _table(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)  # not the seed of check
    table = torch.randn(shape, generator=generator, dtype=torch.float32)
    return table.to(dtype)


def _to_map(patches: Tensor, gh: int, gw: int) -> Tensor:
    return rearrange(patches, "1 (gh gw) d -> 1 d gh gw", gh=gh, gw=gw)


def _from_map(table: Tensor) -> Tensor:
    return rearrange(table, "1 d gh gw -> 1 (gh gw) d")


def _interpolate(table: Tensor, size: tuple[int, int], **how: object) -> Tensor:
    return F.interpolate(table.float(), size, **how).to(table.dtype)


def _resize(
    count: Callable = lambda n: n,
    split: Callable = lambda table, n: table.tensor_split([n], 1),
    to_map: Callable = _to_map,
    size: Callable = lambda new_size, total: new_size,
    method: Callable = lambda mode: mode,
    corners: Callable = lambda align_corners: align_corners,
    smooth: Callable = lambda antialias: antialias,
    interpolate: Callable = _interpolate,
    from_map: Callable = _from_map,
    join: Callable = lambda prefix, patches: torch.cat([prefix, patches], 1),
) -> Callable[..., Tensor]:
    """resize_pos_embed, with some steps exchanged."""

    def form(
        pos_embed: Tensor,
        grid_size: Size,
        new_grid_size: Size,
        *,
        num_prefix_tokens: int = 1,
        mode: str = "bicubic",
        align_corners: bool = False,
        antialias: bool = False,
    ) -> Tensor:
        gh, gw = _pair(grid_size)
        new_size = _pair(new_grid_size)
        prefix, patches = split(pos_embed, count(num_prefix_tokens))
        table = interpolate(
            to_map(patches, gh, gw),
            size(new_size, patches.shape[1]),
            mode=method(mode),
            align_corners=corners(align_corners),
            antialias=smooth(antialias),
        )
        return join(prefix, from_map(table))

    return form


def _always(value: object) -> Callable[[object], object]:
    return lambda asked: value


def _nearest(
    table: Tensor, size: tuple[int, int], mode: str, **options: object
) -> Tensor:
    return F.interpolate(table.float(), size, mode=mode).to(table.dtype)


def _half(table: Tensor, size: tuple[int, int], **how: object) -> Tensor:
    return F.interpolate(table, size, **how)


def _by_factor(table: Tensor, size: tuple[int, int], **how: object) -> Tensor:
    """Give interpolate a factor, slightly too large, as some code does."""
    gh, gw = table.shape[2:]
    factor = (size[0] + 0.1) / gh, (size[1] + 0.1) / gw
    new = F.interpolate(table.float(), scale_factor=factor, **how)
    return new.to(table.dtype)


def _as_sequence(
    pos_embed: Tensor, n: int, prefix: int = 0, mode: str = "linear"
) -> Tensor:
    head, tail = pos_embed.tensor_split([prefix], 1)
    how = {"align_corners": False} if mode == "linear" else {}
    tail = F.interpolate(tail.mT, n, mode=mode, **how).mT
    return torch.cat([head, tail], 1)


def _resize_forms() -> Iterator[WrongForm]:
    def simple(function: Callable) -> Callable:
        """A form that gets the table, the sizes and the prefix alone."""

        def form(
            pos_embed: Tensor,
            grid_size: Size,
            new_grid_size: Size,
            *,
            num_prefix_tokens: int = 1,
            **options: object,
        ) -> Tensor:
            sizes = _pair(grid_size), _pair(new_grid_size)
            return function(pos_embed, *sizes, num_prefix_tokens)

        return form

    def count(size: tuple[int, int], prefix: int = 0) -> int:
        return prefix + size[0] * size[1]

    def guess_unchanged(
        pos_embed: Tensor,
        grid_size: Size,
        new_grid_size: Size,
        *,
        num_prefix_tokens: int = 1,
        **options: object,
    ) -> Tensor:
        """int(sqrt(N)) on both sides, and nothing done if they agree."""
        sizes = _pair(grid_size), _pair(new_grid_size)
        old, new = (int(count(size) ** 0.5) for size in sizes)
        if old == new:
            return pos_embed
        prefix, patches = pos_embed.tensor_split([num_prefix_tokens], 1)
        table = _to_map(patches[:, : old * old], old, old)
        how = {"mode": "bicubic", "align_corners": False} | options
        table = _interpolate(table, (new, new), **how)
        return torch.cat([prefix, _from_map(table)], 1)

    yield WrongForm(
        "grid_size and new_grid_size are exchanged: the arguments are "
        "(pos_embed, grid_size, new_grid_size).",
        simple(
            lambda table, old, new, n: resize_pos_embed(
                table, new, old, num_prefix_tokens=n
            )
        ),
    )
    yield WrongForm(UNCHANGED, simple(lambda table, old, new, n: table))
    for fill in (
        lambda table, old, new, n: table[:, : count(new, n)],
        lambda table, old, new, n: F.pad(
            table, (0, 0, 0, count(new, n) - table.shape[1])
        ),
    ):
        yield WrongForm(
            "The table is cut or filled up: interpolate it as a picture of gh "
            "x gw pixels with D channels.",
            simple(fill),
        )
    for in_sequence in (
        lambda table, old, new, n: _as_sequence(table, count(new, n), n),
        lambda table, old, new, n: _as_sequence(
            table, count(new, n), n, "nearest"
        ),
        lambda table, old, new, n: _as_sequence(table, count(new, n)),
        lambda table, old, new, n: _as_sequence(
            table, count(new, n), 0, "nearest"
        ),
    ):
        yield WrongForm(
            "The table is interpolated along the sequence: it is a grid, so "
            "reshape it to (1, D, gh, gw) first.",
            simple(in_sequence),
        )
    yield WrongForm(GUESSED, guess_unchanged)
    yield from combine(
        _resize,
        Mistake(
            "num_prefix_tokens is not used: as many tokens are in front of the "
            "patches.",
            {"count": lambda n: 1},
        ),
        Mistake(
            "The prefix tokens are lost: put them in front of the new patches "
            "again.",
            {"join": lambda prefix, patches: patches},
        ),
        Mistake(
            "The prefix tokens stand at the end: they go in front of the "
            "patches.",
            {"join": lambda prefix, patches: torch.cat([patches, prefix], 1)},
        ),
        Mistake(
            "The prefix tokens are zeros now: keep them as they are.",
            {
                "join": lambda prefix, patches: torch.cat(
                    [torch.zeros_like(prefix), patches], 1
                )
            },
        ),
        Mistake(
            "The first token alone is kept: keep all prefix tokens.",
            {
                "join": lambda prefix, patches: torch.cat(
                    [prefix[:, :1], patches], 1
                )
            },
        ),
        Mistake(
            "The prefix tokens are taken from the end of the table: they are "
            "the first ones.",
            {
                "split": lambda table, n: table.tensor_split(
                    [table.shape[1] - n], 1
                )[::-1]
            },
        ),
        Mistake(
            "The places go column by column: they go row by row, (gh gw).",
            {
                "to_map": lambda patches, gh, gw: rearrange(
                    patches, "1 (gw gh) d -> 1 d gh gw", gh=gh
                )
            },
            {
                "from_map": lambda table: rearrange(
                    table, "1 d gh gw -> 1 (gw gh) d"
                )
            },
            {
                "to_map": lambda patches, gh, gw: rearrange(
                    patches, "1 (gw gh) d -> 1 d gh gw", gh=gh
                ),
                "from_map": lambda table: rearrange(
                    table, "1 d gh gw -> 1 (gw gh) d"
                ),
            },
        ),
        Mistake(
            "grid_size is (gh, gw), and the code swaps the two.",
            {
                "to_map": lambda patches, gh, gw: rearrange(
                    patches, "1 (gw gh) d -> 1 d gw gh", gh=gh
                )
            },
        ),
        Mistake(
            "new_grid_size is (gh, gw), and the code swaps the two.",
            {"size": lambda new_size, total: new_size[::-1]},
        ),
        Mistake(
            NO_PERMUTE,
            {
                "to_map": lambda patches, gh, gw: patches.reshape(
                    1, patches.shape[2], gh, gw
                )
            },
            {"from_map": lambda table: table.reshape(1, -1, table.shape[1])},
            {
                "to_map": lambda patches, gh, gw: patches.reshape(
                    1, patches.shape[2], gh, gw
                ),
                "from_map": lambda table: table.reshape(1, -1, table.shape[1]),
            },
        ),
        Mistake(
            "Places and features are swapped in the result: it is (1, N, D).",
            {"from_map": lambda table: table.flatten(2)},
        ),
        Mistake(
            GUESSED,
            {
                "to_map": lambda patches, gh, gw: _to_map(
                    patches, *[int((gh * gw) ** 0.5)] * 2
                )
            },
            {
                "size": lambda new_size, total: (
                    (int((new_size[0] * new_size[1]) ** 0.5),) * 2
                )
            },
            {
                "to_map": lambda patches, gh, gw: _to_map(
                    patches, *[int((gh * gw) ** 0.5)] * 2
                ),
                "size": lambda new_size, total: (
                    (int((new_size[0] * new_size[1]) ** 0.5),) * 2
                ),
            },
        ),
        Mistake(
            "One side of the new grid is used for both: new_grid_size is (gh, "
            "gw).",
            {"size": lambda new_size, total: (new_size[0],) * 2},
            {"size": lambda new_size, total: (new_size[1],) * 2},
        ),
        Mistake(
            'The nearest place is copied: interpolate with mode="bicubic".',
            {"method": _always("nearest"), "interpolate": _nearest},
            {"method": _always("nearest-exact"), "interpolate": _nearest},
            {"method": _always("area"), "interpolate": _nearest},
        ),
        Mistake(
            'The interpolation is linear: the default is mode="bicubic".',
            {"method": _always("bilinear")},
        ),
        Mistake(
            "This is the rule of the paper's own code: the defaults here are "
            'mode="bicubic" and align_corners=False.',
            {"method": _always("bilinear"), "corners": _always(True)},
        ),
        Mistake(
            "mode is not used: hand it to F.interpolate.",
            {"method": _always("bicubic")},
        ),
        Mistake(
            "The corners of the grids are put on each other: the default is "
            "align_corners=False.",
            {"corners": _always(True)},
        ),
        Mistake(
            "align_corners is not used: hand it to F.interpolate.",
            {"corners": _always(False)},
        ),
        Mistake(
            "The grid is smoothed as it gets smaller: the default is "
            "antialias=False.",
            {"smooth": _always(True)},
        ),
        Mistake(
            "antialias is not used: hand it to F.interpolate.",
            {"smooth": _always(False)},
        ),
        Mistake(
            "mode, align_corners and antialias are not used: hand them to "
            "F.interpolate.",
            {
                "method": _always("bicubic"),
                "corners": _always(False),
                "smooth": _always(False),
            },
        ),
        Mistake(
            "The factor is not exact: hand the new size to F.interpolate, not "
            "scale_factor.",
            {"interpolate": _by_factor},
        ),
        Mistake(
            "Half precision is interpolated as it is: compute in float32, and "
            "return the table's own dtype.",
            {"interpolate": _half},
        ),
    )


def _resize_case(
    label: str,
    old: Size,
    new: Size,
    cause: str | None = None,
    *,
    tokens: int | None = None,
    dim: int = 6,
    dtype: torch.dtype = torch.float32,
    **kwargs: object,
) -> Case:
    gh, gw = _pair(old)
    prefix = kwargs.get("num_prefix_tokens", 1)
    table = _table(1, tokens or prefix + gh * gw, dim, dtype=dtype)
    return Case(label, (table, old, new), cause, kwargs)


RESIZE_POS_EMBED = Exercise(
    resize_pos_embed,
    cases=(
        _resize_case("from 3 x 3 to 5 x 5", (3, 3), (5, 5)),
        _resize_case(
            "from 5 x 5 to 3 x 3",
            (5, 5),
            (3, 3),
            "Right for a larger grid only: a grid may get smaller too.",
        ),
        _resize_case(
            "from 3 x 3 to 3 x 3",
            (3, 3),
            (3, 3),
            "Wrong for the same grid: the table stays as it is.",
        ),
        _resize_case("sizes given as 3 and 5", 3, 5, INT),
        _resize_case(
            "from 3 x 3 to 2 x 7",
            (3, 3),
            (2, 7),
            "Right for a square new grid only: use both numbers of "
            "new_grid_size.",
        ),
        _resize_case(
            "from 2 x 6 to 4 x 4",
            (2, 6),
            (4, 4),
            "Right for a square old grid only: use both numbers of grid_size.",
        ),
        _resize_case(
            "from 2 x 6 to 6 x 2",
            (2, 6),
            (6, 2),
            "Wrong for as many places in another grid: compare the grids, not "
            "the numbers of tokens.",
        ),
        _resize_case(
            "a table with 3 tokens too many",
            (3, 3),
            (5, 5),
            "A table that does not fit is accepted: raise a ValueError when it "
            "does not have num_prefix_tokens + gh * gw tokens.",
            tokens=13,
        ),
        _resize_case(
            "a table in bfloat16",
            (3, 3),
            (5, 5),
            "Right in float32, wrong in half precision: compute in float32, "
            "and return the table's own dtype.",
            dtype=torch.bfloat16,
        ),
        _resize_case("all numbers different", (4, 5), (7, 3), dim=8),
        _resize_case(
            "num_prefix_tokens=2",
            (2, 3),
            (4, 5),
            "Right for one prefix token, wrong for two: keep the first "
            "num_prefix_tokens tokens as they are.",
            num_prefix_tokens=2,
        ),
        _resize_case(
            "num_prefix_tokens=0",
            (2, 3),
            (4, 5),
            "Right with prefix tokens, wrong without: all tokens are places if "
            "num_prefix_tokens is 0.",
            num_prefix_tokens=0,
        ),
        _resize_case(
            'mode="bilinear"',
            (3, 3),
            (5, 5),
            'Right for mode="bicubic" only: hand mode to F.interpolate.',
            mode="bilinear",
        ),
        _resize_case(
            "align_corners=True",
            (3, 3),
            (5, 5),
            "Right for align_corners=False only: hand it to F.interpolate.",
            align_corners=True,
        ),
        _resize_case(
            "antialias=True",
            (5, 5),
            (3, 3),
            "Right for antialias=False only: hand it to F.interpolate.",
            antialias=True,
        ),
        _resize_case(
            "all arguments",
            (4, 6),
            (7, 3),
            dim=8,
            num_prefix_tokens=2,
            mode="bilinear",
            align_corners=True,
            antialias=True,
        ),
    ),
    wrong_forms=_resize_forms,
    errors=RESIZE_ERRORS,
)

EXERCISES = (SINCOS_POS_EMBED, RELATIVE_POSITION_INDEX, RESIZE_POS_EMBED)
