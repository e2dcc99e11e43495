"""Draw with SVG: text, arrows, boxes, tokens and the patches of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape

GRID, SIDE = 3, 4  # patches along a side, pixels along the side of a patch

Link = Callable[[str], str | None]  # stem of a chapter -> address, if any


def pixel(row: int, column: int) -> str:
    """Return the color of one pixel of a small landscape."""
    if (row - 2.5) ** 2 + (column - 9.5) ** 2 < 2.6:
        return "#f0c531"  # the sun
    if row >= 10:
        return "#1f6fa8" if (row + column // 3) % 2 else "#2b86c5"  # a lake
    if row >= 9 - (column > 7):
        return "#2f9e6e"  # the shore
    if row >= 3 + abs(column - 4):
        return "#f4f6f7" if row < 5 else "#5d7f8c"  # a mountain, with snow
    if row >= 6 + abs(column - 9):
        return "#7c9aa5"  # a hill behind it
    return "#9fd3f2" if row < 4 else "#c3e4f7"  # the sky


class Drawing:
    """Collects the parts of an SVG."""

    def __init__(self, name: str, width: int, link: Link) -> None:
        self.name, self.width, self.link = name, width, link
        self.parts: list[str] = []

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(words)}</text>'
        )

    def arrow(self, *points: tuple[float, float]) -> None:
        """Draw a line through the points with a head at its end."""
        (x0, y0), (x1, y1) = points[-2:]
        dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
        bx, by = x1 - 7 * dx, y1 - 7 * dy
        line = " ".join(f"{x:g},{y:g}" for x, y in (*points[:-1], (bx, by)))
        head = (
            f"{x1:g},{y1:g} {bx + 4 * dy:g},{by + 4 * dx:g} "
            f"{bx - 4 * dy:g},{by - 4 * dx:g}"
        )
        self.parts.append(
            f'<polyline class="line" points="{line}"/>'
            f'<polygon class="head" points="{head}"/>'
        )

    def box(
        self,
        x: float,
        y: float,
        size: tuple[float, float],
        words: str,
        kind: str,
        stem: str = "",
    ) -> None:
        """Draw a box; it links to the chapter `stem` if that exists."""
        width, height = size
        address = self.link(stem) if stem else None
        if address:
            self.parts.append(f'<a href="{escape(address, quote=True)}">')
        self.parts.append(
            f'<rect class="box {kind}" x="{x:g}" y="{y:g}" '
            f'width="{width:g}" height="{height:g}" rx="6"/>'
        )
        self.text(x + width / 2, y + height / 2 + 4.5, words, "label")
        if address:
            self.parts.append("</a>")

    def patch(self, number: int, x: float, y: float, size: float) -> None:
        """Draw patch `number` of the image."""
        shapes: dict[str, str] = {}
        for place in range(SIDE * SIDE):
            row, column = divmod(place, SIDE)
            color = pixel(
                number // GRID * SIDE + row, number % GRID * SIDE + column
            )
            path = shapes.get(color, "")
            shapes[color] = f"{path}M{column} {row}h1v1h-1z"
        paths = "".join(
            f'<path fill="{color}" d="{path}"/>'
            for color, path in shapes.items()
        )
        self.parts.append(
            f'<g class="pixels" transform="translate({x:g} {y:g}) '
            f'scale({size / SIDE:g})">{paths}</g>'
        )

    def tokens(
        self,
        y: float,
        centres: Iterable[tuple[int, float]],
        *,
        numbered: bool = False,
    ) -> None:
        """Draw a row of tokens; the class token is the one at place 0."""
        for place, x in centres:
            kind = "class-token" if place == 0 else "token"
            self.parts.append(
                f'<rect class="box {kind}" x="{x - 13:g}" y="{y:g}" '
                f'width="26" height="26" rx="4"/>'
            )
            if numbered:
                self.text(x, y + 17.5, str(place), "label")

    def plus(self, x: float, y: float) -> None:
        """Draw the sign of an addition."""
        self.parts.append(
            f'<circle class="line" cx="{x:g}" cy="{y:g}" r="9"/>'
            f'<path class="line" d="M{x - 5:g} {y:g}h10M{x:g} {y - 5:g}v10"/>'
        )

    def frame(self, x: float, y: float, width: float, height: float) -> None:
        """Draw the outline of a group."""
        self.parts.append(
            f'<rect class="frame" x="{x:g}" y="{y:g}" width="{width:g}" '
            f'height="{height:g}" rx="8"/>'
        )

    def fade(self, x: float, y: float, width: float, height: float) -> None:
        """Let what is drawn there step back."""
        self.parts.append(
            f'<rect class="fade" x="{x:g}" y="{y:g}" width="{width:g}" '
            f'height="{height:g}"/>'
        )

    def zoom(
        self,
        x0: float,
        ends0: tuple[float, float],
        x1: float,
        ends1: tuple[float, float],
    ) -> None:
        """Draw the dotted lines from a box to its enlargement."""
        for y0, y1 in zip(ends0, ends1, strict=True):
            self.parts.append(
                f'<path class="zoom" d="M{x0:g} {y0:g}L{x1:g} {y1:g}"/>'
            )

    def svg(self, height: float, title: str, description: str) -> str:
        """Return the finished picture."""
        name = self.name
        return (
            f'<svg class="{name}" viewBox="0 0 {self.width} {height:g}" '
            f'role="group" aria-labelledby="{name}-title" '
            f'aria-describedby="{name}-desc">'
            f'<title id="{name}-title">{escape(title)}</title>'
            f'<desc id="{name}-desc">{escape(description)}</desc>'
            f"{''.join(self.parts)}</svg>"
        )
