"""Show the glossary, and link the first use of its terms on a page.

book/glossary.yml lists the terms:

    - term: class token
      chinese: 类别标记
      forms: [class tokens]      # other forms of the word in the text
      chapter: "02"              # optional: what explains it, or: paper
      definition: One to three sentences in Markdown.
      see: [token]               # optional: other entries
      link: false                # optional: no links from the chapters

The directive `glossary-terms` shows all of them in the order of the
alphabet. In each chapter and in LINKED_PAGES the first use of each term becomes
a link, outside of headings, code, formulas and other links.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml
from chapter_numbers import chapter_number
from chapters import link_mentions, other_pages
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective
from sphinx.util.osutil import relative_uri
from sphinx.writers.html5 import HTML5Translator

PAGE = "book/glossary"
LINKED_PAGES = ("book/paper", "book/choosing_a_model")
EXPLAINED = {"paper": '"[The paper in one sitting](/book/paper.md)"'}
NOT_LINKED = (
    nodes.literal,
    nodes.math,
    nodes.math_block,
    nodes.raw,
    nodes.reference,
    addnodes.pending_xref,  # a link that is not yet resolved
)


class Term(NamedTuple):
    """A term of the field, in English and Chinese."""

    term: str
    chinese: str
    definition: str
    chapter: str = ""
    forms: Sequence[str] = ()
    see: Sequence[str] = ()
    link: bool = True

    @property
    def anchor(self) -> str:
        return f"term-{nodes.make_id(self.term)}"


class chinese(nodes.Inline, nodes.TextElement):
    """Chinese words, marked as such for screen readers and fonts."""


@cache
def read_file(path: Path, changed: int) -> list[Term]:
    """Read the file once for each time it changes."""
    terms, owners = [], {}
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        try:
            term = Term(**entry)
        except TypeError as error:
            raise ExtensionError(f"{path.name}: {entry}: {error}") from None
        if not isinstance(term.forms, list | tuple):
            raise ExtensionError(f"{path.name}: {term.term}: forms is no list")
        if not re.fullmatch(r"(?:0[1-9]|1[0-7]|paper)?", str(term.chapter)):
            raise ExtensionError(
                f"{path.name}: {term.term}: no chapter {term.chapter!r}"
            )
        for form in (term.term, *term.forms):
            owner = owners.setdefault(form.lower(), term)
            if owner is not term:
                raise ExtensionError(
                    f"{path.name}: {form!r} is in two entries, "
                    f"{owner.term!r} and {term.term!r}"
                )
        terms.append(term)
    for term in terms:
        if unknown := set(term.see) - {other.term for other in terms}:
            raise ExtensionError(f"{path.name}: {term.term}: see {unknown}?")
    return sorted(terms, key=lambda term: term.term.lower())


def load_glossary(root: Path) -> list[Term]:
    """Read and check all terms, sorted.

    Raises:
        ExtensionError: An entry is malformed, or a form is in two entries.
    """
    path = root / "book" / "glossary.yml"
    return read_file(path, path.stat().st_mtime_ns)


@cache
def pattern(forms: tuple[str, ...]) -> re.Pattern:
    """Match any of the forms as whole words, the longest first."""
    words = sorted(forms, key=len, reverse=True)
    union = "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in words)
    return re.compile(rf"(?<![\w-])(?:{union})(?![\w-])", re.IGNORECASE)


class GlossaryTerms(SphinxDirective):
    """All terms, one after the other."""

    def run(self) -> list[nodes.Node]:
        root = Path(self.env.srcdir)
        self.env.note_dependency(str(root / "book" / "glossary.yml"))
        self.env.note_dependency(str(root / "book" / "chapters.yml"))
        terms = load_glossary(root)
        anchors = {term.term: term.anchor for term in terms}
        pages = other_pages(self.env.app, "")
        items = nodes.definition_list(classes=["glossary"])
        for term in terms:
            place = EXPLAINED.get(term.chapter, f"chapter {term.chapter}")
            text = term.definition.strip()
            if term.chapter:
                text += f" Explained in {place}."
            body = self.parse_text_to_nodes(link_mentions(text, pages))
            if term.see:
                body.append(self.see_also(term, anchors))
            title = nodes.term("", term.term, ids=[term.anchor])
            title += [nodes.Text(" "), chinese("", term.chinese)]
            items += nodes.definition_list_item(
                "", title, nodes.definition("", *body)
            )
        return [items]

    def see_also(self, term: Term, anchors: dict[str, str]) -> nodes.paragraph:
        """Return the line that leads to other terms."""
        line = nodes.paragraph("", "See also ", classes=["see-also"])
        for place, name in enumerate(term.see):
            line += nodes.Text(", " if place else "")
            line += nodes.reference(
                "", name, refid=anchors[name], internal=True
            )
        return line


def terms_by_form(root: Path) -> dict[str, Term]:
    """Return the terms by each of their forms, in small letters."""
    return {
        form.lower(): term
        for term in load_glossary(root)
        for form in (term.term, *term.forms)
    }


def link_first_uses(app: Sphinx, doctree: nodes.document) -> None:
    """Make the first use of each term in a chapter a link."""
    docname = app.env.docname
    if chapter_number(docname) is None and docname not in LINKED_PAGES:
        return
    if PAGE not in app.env.found_docs:
        return
    app.env.note_dependency(f"{app.srcdir}/book/glossary.yml")
    target = relative_uri(
        app.builder.get_target_uri(docname), app.builder.get_target_uri(PAGE)
    )
    link_all(doctree, terms_by_form(Path(app.srcdir)), target)


def link_all(
    doctree: nodes.Element, terms: dict[str, Term], target: str
) -> None:
    """Link the first use of each term in the prose of a page."""
    linked: set[str] = set()
    for text in [*doctree.findall(nodes.Text)]:
        if is_prose(text):
            text.parent.replace(text, link_terms(text, terms, linked, target))


def is_prose(text: nodes.Text) -> bool:
    """Is the text in a paragraph or a table, and not yet a link?"""
    node, in_paragraph = text.parent, False
    while node is not None:
        if isinstance(node, NOT_LINKED):
            return False
        in_paragraph = in_paragraph or isinstance(node, nodes.paragraph)
        node = node.parent
    return in_paragraph


def link_terms(
    text: nodes.Text, terms: dict[str, Term], linked: set[str], target: str
) -> list[nodes.Node]:
    """Link the terms that are used for the first time.

    The longest term wins, so that "batch norm" is never the first use of
    "batch", even where "batch norm" itself has been linked before.

    Args:
        text: A piece of prose.
        terms: All terms, by each of their forms.
        linked: The terms that have been linked before; those linked here
            are added.
        target: Address of the glossary.

    Returns:
        The text, cut into pieces of text and links.
    """
    parts, end, words = [], 0, text.astext()
    for match in pattern(tuple(terms)).finditer(words):
        term = terms[re.sub(r"\s+", " ", match[0].lower())]
        if term.link and term.term not in linked:
            linked.add(term.term)
            parts.append(nodes.Text(words[end : match.start()]))
            parts.append(
                nodes.reference(
                    "",
                    match[0],
                    refuri=f"{target}#{term.anchor}",
                    internal=True,
                    classes=["glossary-term"],
                )
            )
            end = match.end()
    return [*parts, nodes.Text(words[end:])]


def visit_chinese(self: HTML5Translator, node: chinese) -> None:
    self.body.append(self.starttag(node, "span", "", lang="zh-Hans"))


def depart_chinese(self: HTML5Translator, node: chinese) -> None:
    self.body.append("</span>")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("glossary-terms", GlossaryTerms)
    app.add_node(chinese, html=(visit_chinese, depart_chinese))
    app.connect("doctree-read", link_first_uses)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
