"""A figure that shifts windows step by step: which tokens see each other?

It needs no server and no other file: window_explorer.html takes in
window_explorer.css, window_explorer.js and the data.
"""

from __future__ import annotations

from html import escape
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_lessons._html_figure import HtmlFigure, check_texts, fill_template
from vit_lessons.patch_embedding import as_pair
from vit_lessons.swin_windows import (
    as_shift,
    pad_to_windows,
    shift_mask,
    window_partition,
)

__all__ = ["WindowExplorer", "window_explorer"]

LARGEST = 16  # cells across: their numbers can still be read on a phone

# Title, when it is needed, sentence, and three tables of _tables: where the
# cells lie, what the lines enclose, and who sees each other.
STEPS = (
    (
        "Usual windows",
        "",
        "A usual block cuts the map of {grid} tokens into windows of "
        "{window}, from the top left.{covered}",
        "home usual usual",
    ),
    (
        "Shifted windows",
        "shift",
        "A shifted block moves the cuts {cuts}. That makes {many} windows "
        "{unequal}instead of {few}.",
        "home region region",
    ),
    (
        "Padding",
        "padding",
        "Windows of {window} do not tile {grid} tokens. Empty cells fill the "
        "map up to {size}. They are zeros, and tokens see them too.",
        "home {group} {group}",
    ),
    (
        "Roll",
        "shift",
        "Roll the map {rolls}. The first {first} come back {return}.",
        "rolled region region",
    ),
    (
        "Cut",
        "shift",
        "Cut again: {windows} windows of {window}, so one tensor holds them. "
        "Those {return} join opposite borders of the map.",
        "rolled shifted region",
    ),
    (
        "Mask",
        "shift",
        "The mask lets tokens of a window see each other only inside the "
        "dashed lines, where they are neighbors on the map.",
        "rolled shifted region",
    ),
    (
        "Back home",
        "shift",
        "Put the windows together and roll back.{crop} Each token saw its "
        "window of step 2, and all windows had the same size.",
        "home shifted region",
    ),
)


class WindowExplorer(HtmlFigure):
    """What window_explorer returns: a notebook shows it as a figure.

    Args:
        html: The figure, one element that needs nothing else.
    """


def window_explorer(
    grid_size: int | tuple[int, int] = 8,
    window_size: int | tuple[int, int] = 4,
    shift_size: int | tuple[int, int] = 2,
    *,
    name: str = "windows",
    query: int | None = None,
    description: str = "A map of tokens whose windows shift",
) -> WindowExplorer:
    """Draw the steps of WindowAttention as a figure to walk through.

    The reader chooses a step and a token, and sees which tokens it may
    attend to. This comes from window_partition and shift_mask. Where scripts
    do not run, the step of the mask is seen.

    Args:
        grid_size: Tokens down and across the map, (gh, gw). An int is a
            square. With its padding the map has at most 16 rows and columns.
        window_size: Window side M, or (height, width), in tokens.
        shift_size: Tokens by which windows move, or (rows, columns). As in
            WindowAttention, there is no shift along an axis that one window
            covers.
        name: The id of the element: unique on its page.
        query: Number of the token that looks at first. None is the first of
            those from which the mask hides most.
        description: What is seen, for readers who do not see it.

    Raises:
        ValueError: A size is not positive, shift_size is not in 0..M - 1, the
            map is too large, query is no token number, name is no id, or
            description is empty.
    """
    grid = as_pair("grid_size", grid_size)
    window = as_pair("window_size", window_size)
    shift = as_shift(shift_size, window)
    _check_settings(grid, window, query)
    check_texts(name, description)
    number = torch.arange(1, grid[0] * grid[1] + 1).view(1, *grid, 1)
    number = pad_to_windows(number, window)[0, ..., 0] - 1  # -1 is padding
    sides = zip(shift, window, number.shape, strict=True)
    shift = tuple(s if m < g else 0 for s, m, g in sides)
    tables = _tables(number, window, shift)
    if query is None:
        query = _most_hidden(tables)
    data = {
        "steps": _steps(tables, grid, window, shift),
        "tables": {key: t.flatten().tolist() for key, t in tables.items()},
        "columns": number.shape[1],
        "query": int((number.flatten() == query).nonzero()),
    }
    return WindowExplorer(_filled(data, name, escape(description)))


def _check_settings(
    grid: tuple[int, int], window: tuple[int, int], query: int | None
) -> None:
    gh, gw = (g + -g % m for g, m in zip(grid, window, strict=True))
    if max(gh, gw) > LARGEST:
        raise ValueError(
            f"grid_size must be at most {LARGEST} x {LARGEST} when padded, got "
            f"{grid}, padded to {(gh, gw)}"
        )
    last = grid[0] * grid[1] - 1
    if query is not None and not 0 <= query <= last:
        raise ValueError(f"query must be in 0..{last}, got {query}")


def _tables(
    number: Tensor, window: tuple[int, int], shift: tuple[int, int]
) -> dict[str, Tensor]:
    """For each cell of the padded map: its places and its company.

    home and rolled are its places before and after the roll. usual and
    shifted number its windows. In the shifted one it sees the cells of its
    region, which is called by its first cell.
    """
    home = torch.arange(number.numel()).view(1, *number.shape, 1)
    rolled = home.roll([-s for s in shift], dims=(1, 2))  # who comes where
    usual = window_partition(home, window)[..., 0]  # (nW, M * M)
    shifted = window_partition(rolled, window)[..., 0]
    may_see = shift_mask(tuple(number.shape), window, shift) == 0
    first = may_see.int().argmax(dim=-1)  # (nW, M * M)
    nth = torch.arange(len(usual))[:, None].expand_as(usual)

    def by_cell(cells: Tensor, values: Tensor) -> Tensor:
        return values.flatten()[cells.flatten().argsort()].view_as(number)

    return {
        "number": number,
        "home": by_cell(home, home),
        "rolled": by_cell(rolled, home),
        "usual": by_cell(usual, nth),
        "shifted": by_cell(shifted, nth),
        "region": by_cell(shifted, shifted.gather(1, first)),
    }


def _most_hidden(tables: dict[str, Tensor]) -> int:
    """The first of the tokens from which the mask hides most tokens."""
    is_token = tables["number"] >= 0
    window, region = (tables[key][is_token] for key in ("shifted", "region"))
    hidden = (window[:, None] == window) & (region[:, None] != region)
    return int(hidden.sum(dim=1).argmax())


def _steps(
    tables: dict[str, Tensor],
    grid: tuple[int, int],
    window: tuple[int, int],
    shift: tuple[int, int],
) -> list[dict[str, Any]]:
    """What each step says and shows: those of STEPS that are needed."""
    is_token = tables["number"] >= 0
    size = tuple(is_token.shape)
    needed = {"": True, "shift": any(shift), "padding": size != grid}

    def both(phrases: str, sizes: tuple[int, int] = shift) -> str:
        pair = zip(phrases.split(", "), sizes, strict=True)
        return " and ".join(phrase.format(s) for phrase, s in pair if s)

    covered = both(
        "rows, columns", (window[0] == size[0], window[1] == size[1])
    )
    _, sizes = tables["region"][is_token].unique(return_counts=True)
    words = {
        "grid": f"{grid[0]} \u00d7 {grid[1]}",
        "size": f"{size[0]} \u00d7 {size[1]}",
        "window": f"{window[0]} \u00d7 {window[1]}",
        "windows": len(tables["shifted"].unique()),
        "few": len(tables["usual"][is_token].unique()),
        "many": len(sizes),
        "unequal": "of unequal size " if len(sizes.unique()) > 1 else "",
        "covered": covered
        and f" One window covers all {covered}: they are not shifted.",
        "cuts": both("down by {}, right by {}"),
        "rolls": both("up by {}, to the left by {}"),
        "first": both("rows, columns"),
        "return": both("at the bottom, at the right"),
        "crop": " The empty cells are cut off." if needed["padding"] else "",
        "group": "region" if any(shift) else "usual",
    }
    steps = []
    for title, need, text, keys in STEPS:
        place, group, sees = keys.format_map(words).split()
        padded = place == "rolled" or title == "Padding"
        lines, dashes = (
            _borders(tables[key].where(is_token | padded, -1), tables[place])
            for key in (group, sees)
        )
        step = {
            "title": title,
            "text": text.format_map(words),
            "place": place,
            "window": group,
            "sees": sees,
            "padded": padded,
            "lines": lines,
            "dashes": dashes if title == "Mask" else "",
        }
        if needed[need]:
            steps.append(step)
    return steps


def _borders(groups: Tensor, places: Tensor) -> str:
    """An SVG path between unequal groups of cells, with none around -1."""
    at = torch.empty_like(groups)
    at.view(-1)[places.flatten()] = groups.flatten()
    at = F.pad(at, (1, 1, 1, 1), value=-1)
    above = at[1:, 1:-1] != at[:-1, 1:-1]
    left = at[1:-1, 1:] != at[1:-1, :-1]
    path = ""
    for borders, line in ((above, "M{1} {0}h{2}"), (left.T, "M{0} {1}v{2}")):
        edges = F.pad(borders.int(), (1, 1)).diff(dim=1)
        starts, ends = ((edges == sign).nonzero().tolist() for sign in (1, -1))
        for (i, start), (_, end) in zip(starts, ends, strict=True):
            path += line.format(i, start, end - start)
    return path


def _filled(data: dict[str, Any], name: str, description: str) -> str:
    """Put the data and the texts, and what follows from them, in the HTML."""
    tables, steps, query = data["tables"], data["steps"], data["query"]
    titles = [step["title"] for step in steps]
    start = titles.index("Mask") if "Mask" in titles else len(titles) - 1
    number, sees = tables["number"], tables[steps[start]["sees"]]
    cells = _cells(data, steps[start])
    seen = [n for n, s in zip(number, sees, strict=True) if s == sees[query]]
    seen = ", ".join(str(n) for n in seen if n >= 0)
    return fill_template(
        __file__,
        data,
        name=name,
        description=description,
        text=f"{steps[start]['text']} Token {number[query]} sees {seen}.",
        rows=len(number) // data["columns"],
        columns=data["columns"],
        cells=cells,
        lines=steps[start]["lines"],
        dashes=steps[start]["dashes"],
        titles="".join(
            f'<option value="{i}">{i + 1}. {title}</option>'
            for i, title in enumerate(titles)
        ),
        no_shift="" if "Mask" in titles else "hidden",
        no_rows="" if "from-top" in cells else "hidden",
        no_columns="" if "from-left" in cells else "hidden",
        no_padding="" if "Padding" in titles else "hidden",
    )


def _cells(data: dict[str, Any], step: dict[str, Any]) -> str:
    """The cells of one step, as the script would mark them."""
    tables, columns, query = (data[k] for k in ("tables", "columns", "query"))
    window, sees = tables[step["window"]], tables[step["sees"]]
    spans = []
    for cell, number in enumerate(tables["number"]):
        y, x = divmod(cell, columns)
        to_y, to_x = divmod(tables["rolled"][cell], columns)
        marks = {
            "empty": number < 0,
            "from-top": to_y > y,
            "from-left": to_x > x,
            "looks": cell == query,
            "seen": sees[cell] == sees[query],
            "barred": window[cell] == window[query]
            and sees[cell] != sees[query],
        }
        names = " ".join(mark for mark, holds in marks.items() if holds)
        y, x = divmod(tables[step["place"]][cell], columns)
        text = number if number >= 0 else ""
        spans.append(
            f'<span class="{names}" style="--y:{y};--x:{x}">{text}</span>'
        )
    return "".join(spans)
