"""Recall cards: what is refused, and what the Anki deck is made of."""

import re
import sqlite3
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
anki_deck = pytest.importorskip("anki_deck")
card_files = pytest.importorskip("card_files")
errors = pytest.importorskip("sphinx.errors")

CARD = "- {id: one, question: 'Why?', answer: Because.}\n"
MALFORMED = {
    "no list": ("one: two", r"must be a list of cards"),
    "no YAML": ("- {id: one", r"is not YAML"),
    "no mapping": ("- only text", r"card 1 \(None\).*keys id, question"),
    "missing key": ("- {id: one, question: 'Why?'}", r"card 1 \(one\).*keys"),
    "unknown key": (
        "- {id: one, question: 'Why?', answer: So., hint: No.}",
        r"card 1 \(one\).*keys",
    ),
    "empty text": (
        f"{CARD}- {{id: two, question: ' ', answer: So.}}",
        r"card 2 \(two\): question must be text",
    ),
    "number": ("- {id: one, question: 'Why?', answer: 3}", r"\(one\): answer"),
    "no slug": (
        "- {id: One two, question: Q, answer: A}",
        r"id must be a slug",
    ),
    "id twice": (CARD + CARD, r"card 2 \(one\): the id is taken by .*card 1"),
}


@pytest.fixture
def root(tmp_path) -> Path:
    """The root of a book of two chapters, with no cards yet."""
    (tmp_path / "book" / "recall").mkdir(parents=True)
    (tmp_path / "book" / "chapters.yml").write_text(
        "- {stem: 01_first, title: First, question: What}\n"
        "- {stem: 02_second, title: Second, question: What}\n"
    )
    return tmp_path


def write(root: Path, stem: str, text: str) -> None:
    (root / "book" / "recall" / f"{stem}.yml").write_text(text)


def guids(root: Path) -> list[str]:
    return [note.guid for deck in anki_deck.decks(root) for note in deck.notes]


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_file_is_refused_by_file_and_card(root, fault):
    text, message = MALFORMED[fault]
    write(root, "01_first", text)
    pattern = rf"(?s)book/recall/01_first\.yml.*{message}"
    with pytest.raises(errors.ExtensionError, match=pattern):
        card_files.load_cards(root)


def test_an_id_is_used_once_in_the_whole_book(root):
    write(root, "01_first", CARD)
    write(root, "02_second", CARD)
    message = r"02_second\.yml, card 1 \(one\): the id is taken by .*01_first"
    with pytest.raises(errors.ExtensionError, match=message):
        card_files.load_cards(root)


def test_a_file_for_no_chapter_is_refused(root):
    write(root, "03_third", CARD)
    with pytest.raises(errors.ExtensionError, match=r"03_third\.yml: no such"):
        card_files.load_cards(root)


def test_the_cards_of_the_book_are_well_formed():
    assert all(
        len(cards) >= 8 for cards in card_files.load_cards(ROOT).values()
    )


def test_a_reworded_card_is_the_same_note(root):
    write(root, "01_first", CARD)
    before = guids(root)
    write(root, "01_first", CARD.replace("Why?", "How so?"))
    assert guids(root) == before


def test_a_card_with_another_id_is_another_note(root):
    write(root, "01_first", CARD)
    before = guids(root)
    write(root, "01_first", CARD.replace("one", "two"))
    assert guids(root) != before


def test_every_chapter_has_a_part_of_the_deck_of_its_own(root):
    write(root, "01_first", CARD)
    write(root, "02_second", CARD.replace("one", "two"))
    decks = anki_deck.decks(root)
    assert [deck.name.split("::")[1] for deck in decks] == [
        "01 First",
        "02 Second",
    ]
    assert len({deck.deck_id for deck in decks}) == 2


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("Is $a < b$?", r"<p>Is <span.*>\\\(a &lt; b\\\)</span>\?</p>"),
        ("$$\na_1\n$$", r"<div.*>\s*\\\[a_1\\\]\s*</div>"),
        ("`x * y * z`", r"<p><code>x \* y \* z</code></p>"),
        ("```python\na < b\n```", r"(?s)<pre><code.*>a &lt; b\n</code></pre>"),
    ],
    ids=["formula", "displayed formula", "code", "block of code"],
)
def test_text_is_written_as_anki_reads_it(text, html):
    assert re.fullmatch(html, anki_deck.to_anki(text))


def test_the_deck_is_a_file_that_anki_can_open(root, tmp_path):
    write(root, "01_first", CARD)
    builder = SimpleNamespace(format="html")
    app = SimpleNamespace(srcdir=root, outdir=tmp_path, builder=builder)
    anki_deck.write_deck(app, None)
    with zipfile.ZipFile(tmp_path / anki_deck.DECK) as package:
        package.extract("collection.anki2", tmp_path)
    database = sqlite3.connect(tmp_path / "collection.anki2")
    notes = database.execute("select flds, tags from notes").fetchall()
    database.close()
    assert notes == [
        ("<p>Why?</p>\x1f<p>Because.</p>", " vit-lessons 01_first ")
    ]
