"""The Vision Transformer as a drawing, in two arrangements of its parts.

Where everything stands is computed from a few heights and the number of
patches; drawing.py turns it into SVG.
"""

from __future__ import annotations

from drawing import GRID, Drawing, Link

TITLE = "The Vision Transformer"
DESCRIPTION = (
    "From top to bottom: an image is cut into nine patches. Each patch is "
    "flattened and projected to a token. A class token is put in front, and "
    "every token gets its position added. L encoder blocks follow; each one "
    "normalizes, attends and adds, then normalizes, applies an MLP and adds. "
    "A head reads the class of the image from the class token."
)
PATCHES = GRID * GRID
STEP, BOX, TOKEN, GAP = 18, 32, 26, 2  # heights; GAP parts arrow and box


class Pipeline:
    """Draws the model downwards and remembers where it is."""

    def __init__(self, drawing: Drawing, left: float, pitch: float) -> None:
        self.drawing, self.left, self.pitch, self.y = drawing, left, pitch, 0.0

    @property
    def width(self) -> float:
        return self.pitch * (PATCHES + 1)

    def centres(self, first: int = 0) -> list[tuple[int, float]]:
        """Return places and centres of the tokens from `first` on."""
        return [
            (place, self.left + self.pitch * (place + 0.5))
            for place in range(first, PATCHES + 1)
        ]

    def arrows(self, centres: list[tuple[int, float]]) -> None:
        for _, x in centres:
            start, end = self.y + GAP, self.y + STEP - GAP
            self.drawing.arrow((x, start), (x, end))
        self.y += STEP

    def step(self, words: str, kind: str, stem: str) -> None:
        """Draw a box as wide as the row of tokens."""
        size = (self.width, BOX)
        self.drawing.box(self.left, self.y, size, words, kind, stem)
        self.y += BOX

    def tokens(self, first: int = 0, *, numbered: bool = False) -> None:
        centres = self.centres(first)
        self.drawing.tokens(self.y, centres, numbered=numbered)
        self.y += TOKEN

    def image_to_tokens(self) -> None:
        """Draw everything in front of the encoder."""
        size = 90
        middle = self.centres(1)[PATCHES // 2][1]
        for number in range(PATCHES):
            row, column = divmod(number, GRID)
            x = middle + (column - GRID / 2) * size / GRID
            self.drawing.patch(number, x, row * size / GRID, size / GRID)
        self.drawing.arrow((middle, size + 3), (middle, size + 22))
        self.drawing.text(middle + 12, size + 17, "cut into patches", "note")
        self.y = size + 26
        for place, x in self.centres(1):
            self.drawing.patch(place - 1, x - 13, self.y, TOKEN)
        self.y += TOKEN
        self.arrows(self.centres(1))
        self.step("Flatten and project", "project", "01_patch_embedding")
        self.arrows(self.centres(1))
        self.tokens(1)
        self.arrows(self.centres(1))
        self.step("Put a class token in front", "class-token", "02_class_token")
        self.arrows(self.centres())
        self.tokens()
        self.arrows(self.centres())
        self.step("Add the position", "position", "03_position_embedding")
        self.arrows(self.centres())
        self.tokens(numbered=True)
        self.arrows(self.centres())

    def tokens_to_class(self) -> None:
        """Draw everything behind the encoder."""
        first = self.centres()[:1]
        self.arrows(self.centres())
        self.tokens()
        self.drawing.fade(first[0][1] + 20, self.y - TOKEN, self.width, TOKEN)
        self.arrows(first)
        self.step("Read the class token", "head-box", "07_vision_transformer")
        self.arrows(first)
        x = self.left
        self.drawing.box(x, self.y, (110, TOKEN), "landscape", "answer")


def draw_block(drawing: Drawing, x: float, y: float, width: float) -> float:
    """Draw the inside of an encoder block and return where it ends."""
    middle, inner = x + width / 2, width - 100
    left, bypass = middle - inner / 2, x + 26
    for words, kind, stem in (
        ("Attention", "attention", "04_attention"),
        ("MLP", "mlp", "05_mlp"),
    ):
        split = y + 8
        drawing.arrow((middle, y), (middle, y + 24))
        drawing.box(left, y + 26, (inner, 28), "Norm", "norm")
        drawing.arrow((middle, y + 56), (middle, y + 70))
        drawing.box(left, y + 72, (inner, 28), words, kind, stem)
        drawing.arrow((middle, y + 102), (middle, y + 116))
        plus = y + 126
        drawing.arrow(
            (middle, split), (bypass, split), (bypass, plus), (middle - 9, plus)
        )
        drawing.plus(middle, plus)
        y = plus + 10
    drawing.arrow((middle, y), (middle, y + 24))
    return y + 24


def draw_narrow(link: Link) -> str:
    """One column, for a phone."""
    drawing = Drawing("model-narrow", 340, link)
    pipeline = Pipeline(drawing, 10, 32)
    pipeline.image_to_tokens()
    top = pipeline.y
    words, stem = "Encoder block, L times", "06_encoder_block"
    pipeline.step(words, "block", stem)
    pipeline.y = draw_block(drawing, 10, pipeline.y + 4, pipeline.width)
    drawing.frame(10, top, pipeline.width, pipeline.y + 4 - top)
    pipeline.y += 4
    pipeline.tokens_to_class()
    return drawing.svg(pipeline.y + TOKEN + 2, TITLE, DESCRIPTION)


def draw_wide(link: Link) -> str:
    """The model at the left, the inside of a block at the right."""
    drawing = Drawing("model-wide", 760, link)
    pipeline = Pipeline(drawing, 10, 42)
    pipeline.image_to_tokens()
    top = pipeline.y
    words, stem = "Encoder block, L times", "06_encoder_block"
    pipeline.step(words, "block", stem)
    x, width, start = 500, 250, 130
    end = draw_block(drawing, x, start + 42, width) + 6
    drawing.text(x + width / 2, start + 26, "Inside a block", "label")
    drawing.frame(x, start, width, end - start)
    drawing.zoom(10 + pipeline.width, (top, pipeline.y), x, (start, end))
    pipeline.tokens_to_class()
    return drawing.svg(pipeline.y + TOKEN + 2, TITLE, DESCRIPTION)
