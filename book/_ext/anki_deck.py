"""Write the recall cards as an Anki deck beside the book's pages.

A card is recognised by its id alone: import the deck of a newer book and
reworded cards change in place, while the learner's schedule stays. The
numbers of the deck and of the model never change either.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

import genanki
from card_files import Card, load_cards
from chapters import load_plan
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from sphinx.application import Sphinx

DECK = "vit-lessons.apkg"
DECK_ID = 1_764_400_000  # the deck of chapter N is DECK_ID + N
MODEL_ID = 1_764_399_001
STYLE = """
.card { font: 20px/1.5 sans-serif; text-align: center; }
pre { text-align: left; display: inline-block; font-size: 16px; }
ul, ol, table { text-align: left; display: inline-block; }
"""
MODEL = genanki.Model(
    MODEL_ID,
    "Vision Transformer, from scratch",
    fields=[{"name": "Question"}, {"name": "Answer"}],
    templates=[
        {
            "name": "Recall",
            "qfmt": "{{Question}}",
            "afmt": "{{FrontSide}}<hr id=answer>{{Answer}}",
        }
    ],
    css=STYLE,
)


class Note(genanki.Note):
    """A card of the deck, recognised by its id and not by its words."""

    def __init__(self, card: Card, stem: str) -> None:
        super().__init__(
            MODEL,
            [to_anki(card.question), to_anki(card.answer)],
            guid=genanki.guid_for("vit-lessons", card.id),
            tags=["vit-lessons", stem],
        )


def math_for_anki(tex: str, options: dict[str, bool]) -> str:
    """Put a formula between the marks that Anki's MathJax looks for."""
    tex = escape(tex.strip(), quote=False)
    return rf"\[{tex}\]" if options["display_mode"] else rf"\({tex}\)"


def to_anki(text: str) -> str:
    """Return Markdown with `$math$` as the HTML of an Anki field."""
    markdown = MarkdownIt("commonmark").enable("table")
    markdown.use(dollarmath_plugin, renderer=math_for_anki)
    return markdown.render(text).strip()


def decks(root: Path) -> list[genanki.Deck]:
    """Return one deck per chapter that has cards."""
    titles = {entry["stem"]: entry["title"] for entry in load_plan(root)}
    result = []
    for stem, cards in load_cards(root).items():
        number = int(stem[:2])
        name = f"{MODEL.name}::{number:02} {titles[stem]}"
        deck = genanki.Deck(DECK_ID + number, name)
        for card in cards:
            deck.add_note(Note(card, stem))
        result.append(deck)
    return result


def write_deck(app: Sphinx, error: Exception | None) -> None:
    """Write the deck into the finished book."""
    if error is None and app.builder.format == "html":
        package = genanki.Package(decks(Path(app.srcdir)))
        package.write_to_file(str(Path(app.outdir) / DECK))
