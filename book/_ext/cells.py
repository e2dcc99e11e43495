"""Lead from any page to a cell of a chapter.

Each code cell of a chapter gets an anchor, and the role `cell` links to it.
A cell is named by its chapter and by words that occur in no other code cell
of that chapter, so the link survives when cells are added before it:

    {cell}`the picture <13_looking_inside: plot_similarity(similarity>`

A link whose words occur in no cell, or in two, fails the build.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import ReferenceRole
from sphinx.util.osutil import relative_uri


@cache
def code_cells(path: Path, changed: int) -> dict[int, str]:
    """Return the text of each code cell by its place in the notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return {
        place: "".join(cell["source"])
        for place, cell in enumerate(cells)
        if cell["cell_type"] == "code"
    }


def find_cell(root: Path, reference: str) -> tuple[str, int]:
    """Return the chapter and the place of the cell that a reference names.

    Args:
        root: The folder that holds notebooks/.
        reference: "STEM: words", such as "04_attention: class MultiHead".

    Raises:
        ExtensionError: There is no such chapter, or the words are not in
            exactly one of its code cells.
    """
    stem, _, words = reference.partition(": ")
    path = root / "notebooks" / f"{stem}.ipynb"
    if not words or not path.is_file():
        raise ExtensionError(
            f"a cell must be named as CHAPTER: WORDS, got {reference!r}"
        )
    cells = code_cells(path, path.stat().st_mtime_ns)
    places = [place for place, text in cells.items() if words in text]
    if len(places) != 1:
        raise ExtensionError(
            f"the words must be in one code cell of {stem}, are in "
            f"{len(places)}: {words!r}"
        )
    return stem, places[0]


def find_definition(root: Path, stem: str, name: str) -> str | None:
    """Return the reference of the cell that defines a public name, if any."""
    path = root / "notebooks" / f"{stem}.ipynb"
    if not path.is_file():
        return None
    start = re.compile(
        rf"^(?:(?:class|def) {name}[(:]|{name}(?:: [^=\n]+)? =(?!=))", re.M
    )
    for text in code_cells(path, path.stat().st_mtime_ns).values():
        if match := start.search(text):
            return f"{stem}: {match[0]}"
    return None


def uri(app: Sphinx, docname: str, reference: str) -> str:
    """Return the address of a cell, as a page links to it."""
    stem, place = find_cell(Path(app.srcdir), reference)
    target = app.builder.get_target_uri(f"notebooks/{stem}")
    page = app.builder.get_target_uri(docname)
    return f"{relative_uri(page, target)}#cell-{place}"


class CellRole(ReferenceRole):
    """A link to a cell of a chapter."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        stem = self.target.partition(":")[0]
        self.env.note_dependency(f"{self.env.srcdir}/notebooks/{stem}.ipynb")
        address = uri(self.env.app, self.env.docname, self.target)
        link = nodes.reference("", self.title, refuri=address, internal=True)
        return [link], []


def add_anchors(app: Sphinx, doctree: nodes.document) -> None:
    """Give each code cell of a chapter an anchor: cell-7 for cells[7]."""
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") == "cell_code":
            cell["ids"].append(f"cell-{cell['cell_index']}")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_role("cell", CellRole())
    app.connect("doctree-read", add_anchors)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
