"""Read and check the recall cards of the chapters.

book/recall/NN_stem.yml holds the cards of a chapter as a list of mappings
with the keys id, question and answer. Question and answer are Markdown with
`$math$`; the question is one paragraph. An id is a slug that never changes
and is used once in the whole book: the learner's schedule in Anki hangs on
it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import yaml
from chapters import load_plan
from sphinx.errors import ExtensionError


class Card(NamedTuple):
    """A question and its answer, both in Markdown."""

    id: str
    question: str
    answer: str


def read_card(where: str, entry: object) -> Card:
    """Check one entry of a file.

    Raises:
        ExtensionError: The entry is no card; the message says where.
    """
    if not isinstance(entry, dict) or set(entry) != set(Card._fields):
        raise ExtensionError(
            f"{where} must have the keys id, question, answer and no other, "
            f"got {list(entry) if isinstance(entry, dict) else entry!r}"
        )
    for key, text in entry.items():
        if not isinstance(text, str) or not text.strip():
            raise ExtensionError(f"{where}: {key} must be text, got {text!r}")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", entry["id"]):
        raise ExtensionError(
            f"{where}: id must be a slug such as patch-count, "
            f"got {entry['id']!r}"
        )
    return Card(**{key: text.strip() for key, text in entry.items()})


def load_cards(root: Path) -> dict[str, list[Card]]:
    """Read the cards of all chapters, by the chapter's stem.

    Raises:
        ExtensionError: A file is malformed; the message names it and the
            card.
    """
    stems = [chapter["stem"] for chapter in load_plan(root)]
    chapters: dict[str, list[Card]] = {}
    seen: dict[str, str] = {}
    for path in sorted((root / "book" / "recall").glob("*.yml")):
        name = f"book/recall/{path.name}"
        if path.stem not in stems:
            raise ExtensionError(f"{name}: no such chapter in the plan")
        try:
            entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ExtensionError(f"{name} is not YAML: {error}") from None
        if not isinstance(entries, list):
            raise ExtensionError(f"{name} must be a list of cards")
        cards = []
        for place, entry in enumerate(entries, start=1):
            card_id = entry.get("id") if isinstance(entry, dict) else None
            where = f"{name}, card {place} ({card_id})"
            card = read_card(where, entry)
            if card.id in seen:
                raise ExtensionError(
                    f"{where}: the id is taken by {seen[card.id]}"
                )
            seen[card.id] = where
            cards.append(card)
        chapters[path.stem] = cards
    return chapters
