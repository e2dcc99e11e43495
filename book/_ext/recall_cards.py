"""Show the recall cards of book/recall (see card_files.py) in the book.

The directive `recall-cards` shows the cards of the chapter it names, or of
all chapters if it names none. A card is a native `details` element, so it
turns by mouse, touch and keyboard, and without any script. The directive
`anki-deck` links to the deck that anki_deck.py writes.
"""

from __future__ import annotations

from pathlib import Path

from anki_deck import DECK, write_deck
from card_files import Card, load_cards
from chapters import load_plan
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.osutil import relative_uri
from sphinx.writers.html5 import HTML5Translator


class recall_card(nodes.General, nodes.Element):
    """A card; its children are a question and an answer."""


class recall_question(nodes.General, nodes.TextElement):
    """The front of a card."""


class recall_answer(nodes.General, nodes.Element):
    """The back of a card."""


class RecallCards(SphinxDirective):
    """Show the cards of one chapter, or of all."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        root = Path(self.env.srcdir)
        chapters = load_cards(root)
        self.env.note_dependency(str(root / "book" / "chapters.yml"))
        for stem in chapters:
            self.env.note_dependency(str(root / f"book/recall/{stem}.yml"))
        if self.arguments:
            if self.arguments[0] not in chapters:
                raise self.error(f"no cards for {self.arguments[0]}")
            return [self.deal(chapters[self.arguments[0]])]
        return [
            self.chapter(entry["stem"], entry["title"], chapters)
            for entry in load_plan(root)
            if entry["stem"] in chapters
        ]

    def chapter(
        self, stem: str, title: str, chapters: dict[str, list[Card]]
    ) -> nodes.section:
        """Return the section of a chapter: its title, link and cards."""
        number = int(stem[:2])
        section = nodes.section(ids=[nodes.make_id(f"cards-{stem}")])
        section += nodes.title("", f"{number}. {title}")
        if f"notebooks/{stem}" in self.env.found_docs:
            section += self.parse_text_to_nodes(
                f"From [chapter {number}](/notebooks/{stem}.ipynb)."
            )
        section += self.deal(chapters[stem])
        return section

    def deal(self, cards: list[Card]) -> nodes.container:
        """Return the cards as nodes."""
        deck = nodes.container(classes=["recall-cards"])
        for card in cards:
            paragraphs = self.parse_text_to_nodes(card.question)
            if [type(node) for node in paragraphs] != [nodes.paragraph]:
                raise self.error(
                    f"card {card.id}: the question must be one paragraph"
                )
            question = recall_question("", "", *paragraphs[0].children)
            answer = recall_answer("", *self.parse_text_to_nodes(card.answer))
            deck += recall_card("", question, answer, ids=[f"card-{card.id}"])
        return deck


def visit_card(self: HTML5Translator, node: recall_card) -> None:
    self.body.append(self.starttag(node, "details", CLASS="recall-card"))


def visit_question(self: HTML5Translator, node: recall_question) -> None:
    self.body.append("<summary><span class='recall-question'>")


def visit_answer(self: HTML5Translator, node: recall_answer) -> None:
    self.body.append("<div class='recall-answer'>")


def close(end: str):
    def depart(self: HTML5Translator, node: nodes.Element) -> None:
        self.body.append(end)

    return depart


class AnkiDeck(SphinxDirective):
    """A link to the deck of all cards; the content is its text."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        page = self.env.app.builder.get_target_uri(self.env.docname)
        link = nodes.reference(
            "",
            " ".join(self.content),
            refuri=relative_uri(page, DECK),
            classes=["button"],
        )
        return [nodes.paragraph("", "", link)]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("recall-cards", RecallCards)
    app.add_directive("anki-deck", AnkiDeck)
    app.add_node(recall_card, html=(visit_card, close("</details>\n")))
    app.add_node(
        recall_question, html=(visit_question, close("</span></summary>\n"))
    )
    app.add_node(recall_answer, html=(visit_answer, close("</div>\n")))
    app.connect("build-finished", write_deck)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
