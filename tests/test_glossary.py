"""The glossary: what is refused, and which words become links."""

from pathlib import Path

import pytest

glossary = pytest.importorskip("glossary")
errors = pytest.importorskip("sphinx.errors")
nodes = pytest.importorskip("docutils.nodes")
addnodes = pytest.importorskip("sphinx.addnodes")

ROOT = Path(__file__).parents[1]
GOOD = """
- {term: token, chinese: 词元, forms: [tokens], chapter: "01",
   definition: A vector., see: [class token]}
- {term: class token, chinese: 类别词元, chapter: "02", definition: A token.}
- {term: attention, chinese: 注意力, chapter: "04", definition: An average.}
- {term: key, chinese: 键, chapter: "04", definition: A vector., link: false}
"""
BAD = {
    "no Chinese": ("- {term: a, chapter: '01', definition: b}", "chinese"),
    "unknown key": (
        f"{GOOD}- {{term: a, chinese: 甲, definition: b, hint: c}}",
        "unexpected keyword argument 'hint'",
    ),
    "forms is a word": (
        "- {term: a, chinese: 甲, definition: b, forms: as}",
        "a: forms is no list",
    ),
    "no such chapter": (
        "- {term: a, chinese: 甲, definition: b, chapter: '99'}",
        "a: no chapter '99'",
    ),
    "two entries": (
        f"{GOOD}- {{term: Tokens, chinese: 词, chapter: '01', definition: b}}",
        "'Tokens' is in two entries",
    ),
    "see nothing": (
        "- {term: a, chinese: 甲, chapter: '01', definition: b, see: [c]}",
        "a: see {'c'}",
    ),
}


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "glossary.yml").write_text(GOOD, encoding="utf-8")
    return tmp_path


def linked(root: Path, *paragraphs: nodes.Node) -> list[str]:
    """The words that become links, as `word -> anchor`."""
    document = nodes.section("", *paragraphs)
    terms = glossary.terms_by_form(root)
    glossary.link_all(document, terms, "glossary.html")
    return [
        f"{link.astext()} -> {link['refuri'].partition('#')[2]}"
        for link in document.findall(nodes.reference)
        if "glossary-term" in link["classes"]
    ]


def paragraph(text: str) -> nodes.paragraph:
    return nodes.paragraph("", text)


def test_the_terms_are_sorted(root):
    names = [term.term for term in glossary.load_glossary(root)]
    assert names == ["attention", "class token", "key", "token"]


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_file_is_refused(root, fault):
    text, message = BAD[fault]
    (root / "book" / "glossary.yml").write_text(text, encoding="utf-8")
    with pytest.raises(errors.ExtensionError, match=message):
        glossary.load_glossary(root)


def test_the_first_use_is_linked_and_no_other(root):
    words = linked(root, paragraph("A token, two tokens."), paragraph("token"))
    assert words == ["token -> term-token"]


def test_a_form_of_the_word_is_its_first_use(root):
    assert linked(root, paragraph("Tokens. A token.")) == [
        "Tokens -> term-token"
    ]


def test_the_longer_term_comes_first(root):
    assert linked(root, paragraph("The class token is a token.")) == [
        "class token -> term-class-token",
        "token -> term-token",
    ]


def test_a_part_of_a_longer_term_is_no_use(root):
    words = linked(root, paragraph("A class token, and a class token again."))
    assert words == ["class token -> term-class-token"]


def test_a_term_may_go_over_the_end_of_a_line(root):
    assert linked(root, paragraph("The class\ntoken.")) == [
        "class\ntoken -> term-class-token"
    ]


def test_a_part_of_a_word_is_no_use(root):
    assert linked(root, paragraph("self-attention, attentional")) == []


def test_an_ambiguous_word_is_not_linked(root):
    assert linked(root, paragraph("A key.")) == []


@pytest.mark.parametrize(
    "node",
    [
        nodes.title("", "A token"),
        nodes.literal_block("", "token"),
        nodes.caption("", "token"),
        *(
            nodes.paragraph("", "", inside)
            for inside in (
                nodes.literal("", "token"),
                nodes.math("", "token"),
                nodes.reference("", "token", refuri="x"),
                addnodes.pending_xref("", nodes.inline("", "token")),
                nodes.raw("", "token", format="html"),
                nodes.math_block("", "token"),
            )
        ),
    ],
    ids=str,
)
def test_words_that_are_no_prose_are_not_linked(root, node):
    words = linked(root, node, paragraph("Then a token."))
    assert words == ["token -> term-token"]
    assert not any(
        "glossary-term" in link["classes"]
        for link in node.findall(nodes.reference)
    )


def test_the_text_stays_as_it_is(root):
    text = "A class token is a token; attention sees tokens."
    node = paragraph(text)
    linked(root, node)
    assert node.astext() == text


def test_every_term_of_the_book_has_chinese_characters_or_is_a_name():
    latin = {
        term.term
        for term in glossary.load_glossary(ROOT)
        if not any("\u4e00" <= letter <= "\u9fff" for letter in term.chinese)
    }
    assert latin == NAMES


# Names that Chinese texts leave in Latin letters.
NAMES = {
    "BERT",
    "CutMix",
    "JAX",
    "MixUp",
    "RandAugment",
    "Swin Transformer",
    "Transformer",
}
