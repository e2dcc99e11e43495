"""What the book adds to the notebooks, which stay plain Markdown.

Each page notebooks/NN_stem gets two links below its title, to Colab and to
the module it builds, and the chapter's recall cards at its end. Where its
text, or that of any other page, speaks of a chapter, such as "chapter 04", the
words become a link, or carry the mark "planned" until that chapter is there.
The directive `chapter-table` lists the plan of the course (book/chapters.yml)
and says which chapters can be read today.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from chapter_numbers import chapter_number
from docutils import nodes
from nbformat.v4 import new_markdown_cell
from repository import repository
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

LINKS = """
:::{{container}} chapter-links
[Open in Colab]({colab})
{module}
:::
"""
CARDS = """
## Recall cards

Answer in your own words, then turn the card: click it, or press Enter.

```{{recall-cards}} {stem}
```
"""
MENTION = re.compile(
    r"""
      ^\#.*?$                                   # a heading
    | ^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)     # a block of code
    | (?P<ticks>`+).*?(?P=ticks)                # code in the text
    | \$\$.*?\$\$ | \$[^$\n]*\$                # a formula
    | \[[^\]]*\]\([^)]*\) | <[^>]*>            # a link, a piece of HTML
    | \b(?P<mention>[Cc]hapter\ (?P<number>\d\d))\b
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)


@cache
def read_plan(path: Path, changed: int) -> list[dict[str, Any]]:
    """Read the file once for each time it changes."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def load_plan(root: Path) -> list[dict[str, Any]]:
    """Read the planned chapters: stem, title, question and more of each."""
    path = root / "book" / "chapters.yml"
    return read_plan(path, path.stat().st_mtime_ns)


def module_of(stem: str) -> str:
    """Return the module a chapter builds: 04_attention -> attention."""
    return stem.split("_", 1)[1]


def links(app: Sphinx, stem: str) -> str:
    """Return the line below the title, in Markdown."""
    repo = repository(app.config)
    path = f"vit_lessons/{module_of(stem)}.py"
    module = ""
    if Path(app.srcdir, path).is_file():
        module = f"[{path}]({repo.source(path)})"
    colab = repo.in_colab(f"notebooks/{stem}.ipynb")
    return LINKS.format(colab=colab, module=module)


def link_mentions(text: str, pages: dict[str, str | None]) -> str:
    """Make each "chapter 04" in a Markdown text a link, or mark it.

    Args:
        text: Markdown. Its code, formulas, headings and links stay as they
            are.
        pages: The pages of the other chapters by their numbers, "04"; None
            for a chapter that is not there yet.
    """

    def replace(match: re.Match) -> str:
        mention, number = match["mention"], match["number"]
        if number not in pages:
            return match[0]
        if pages[number] is None:
            return f"{mention}[planned]{{.planned}}"
        return f"[{mention}](/{pages[number]}.ipynb)"

    return MENTION.sub(replace, text)


def other_pages(app: Sphinx, stem: str) -> dict[str, str | None]:
    """Return the pages of all chapters but this one, for link_mentions."""
    stems = [chapter["stem"] for chapter in load_plan(Path(app.srcdir))]
    docnames = {other[:2]: f"notebooks/{other}" for other in stems}
    docnames.pop(stem[:2], None)
    found = app.env.found_docs
    return {n: doc if doc in found else None for n, doc in docnames.items()}


def add_to_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Add links, and recall cards to a chapter, before a page is parsed."""
    if chapter_number(docname) is None:
        source[0] = link_mentions(source[0], other_pages(app, docname))
        return
    stem = docname.removeprefix("notebooks/")
    notebook = json.loads(source[0])
    pages = other_pages(app, stem)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = link_mentions("".join(cell["source"]), pages)
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and text.startswith("# "):
            title, _, rest = text.partition("\n")
            cell["source"] = f"{title}\n{links(app, stem)}\n{rest}"
            break
    if Path(app.srcdir, "book", "recall", f"{stem}.yml").is_file():
        text = CARDS.format(stem=stem)
        cell = new_markdown_cell(text, id="recall-cards")
        notebook["cells"].append(cell)
    source[0] = json.dumps(notebook)


def effort(chapter: dict[str, Any]) -> str:
    """Return what a chapter takes, such as "★★, 60 + 65 min"."""
    stars = "★" * chapter["difficulty"]
    if "read" not in chapter:
        return stars
    return f"{stars}, {chapter['read']} + {chapter['exercises']} min"


class ChapterTable(SphinxDirective):
    """The plan of the course, as a table."""

    def run(self) -> list[nodes.Node]:
        path = Path(self.env.srcdir, "book", "chapters.yml")
        self.env.note_dependency(str(path))
        rows = ["| No. | Chapter | What you will have built |", "|-:|:-|:-|"]
        for chapter in load_plan(Path(self.env.srcdir)):
            docname = f"notebooks/{chapter['stem']}"
            title = f"{chapter['title']} [being written]{{.soon}}"
            if docname in self.env.found_docs:
                title = f"[{chapter['title']}](/{docname}.ipynb)"
                title += " [available]{.ready}"
            title += f" [{effort(chapter)}]{{.effort}}"
            number = chapter_number(docname)
            built = f"{chapter['question']} [{chapter['built']}]{{.built}}"
            rows.append(f"| {number} | {title} | {built} |")
        return self.parse_text_to_nodes("\n".join(rows))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("chapter-table", ChapterTable)
    app.connect("source-read", add_to_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
