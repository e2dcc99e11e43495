"""The picture of the Vision Transformer on the first page.

The directive `model-picture` puts two arrangements of the same parts into
the page, one for wide screens and one for phones; the stylesheet shows the
one that fits. Colors are variables of the stylesheet, so the picture
follows light and dark mode. A part whose chapter exists links to it.
"""

from __future__ import annotations

from docutils import nodes
from model_drawing import draw_narrow, draw_wide
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator


class model_picture(nodes.General, nodes.Element):
    """Stands for the picture; drawn when the page is written."""


class ModelPicture(SphinxDirective):
    """The picture, with the content as its caption."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        caption = self.parse_content_to_nodes()
        return [model_picture("", *caption)]


def visit_picture(self: HTML5Translator, node: model_picture) -> None:
    builder = self.builder

    def link(stem: str) -> str | None:
        page = f"notebooks/{stem}"
        if page not in builder.env.found_docs:
            return None
        return builder.get_relative_uri(builder.current_docname, page)

    self.body.append('<figure class="model-picture">')
    self.body.append(draw_wide(link) + draw_narrow(link))
    self.body.append("<figcaption>")


def depart_picture(self: HTML5Translator, node: model_picture) -> None:
    self.body.append("</figcaption></figure>\n")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("model-picture", ModelPicture)
    app.add_node(model_picture, html=(visit_picture, depart_picture))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
