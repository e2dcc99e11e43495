"""Mend what the theme and Jupyter Book leave broken or heavy.

- Scripts: Thebe (it loads a foreign file and is added twice, which is an
  error on each page) and the icons' script (the icon font draws the same).
- Accessibility: labels that hide the visible words, a sidebar outside of
  every landmark. Elements are found by class, never by their English words,
  so that the mends hold in a translated book.
"""

from __future__ import annotations

import re
from html import escape

from docutils import nodes
from sphinx.application import Sphinx

UNWANTED = ("sphinx-thebe", "THEBE_JS_URL")


def drop_attribute(name: str, tag: str, marker: str) -> tuple[str, str]:
    """Return a pattern and its replacement that drop an attribute.

    Args:
        name: The attribute to drop.
        tag: The element that has it.
        marker: A class of the element, or "" for every such element.
    """
    opening = rf"(<{tag}\b(?=[^>]*{marker})[^>]*?) {name}=\"[^\"]*\""
    return opening, r"\1"


MENDS = [
    # The visible words name these, not a label with other words.
    drop_attribute("aria-label", "button", "search-button"),
    drop_attribute("aria-label", "summary", ""),
    # Roles that ARIA has given up; the list needs none.
    drop_attribute("role", "div", "citation"),
    # The icon font in the stylesheet draws the icons.
    (r"<script[^>]*fontawesome\.js[^>]*></script>", ""),
]


def polish(html: str) -> str:
    """Mend a part of a page."""
    for pattern, replacement in MENDS:
        html = re.sub(pattern, replacement, html)
    return html


def polish_context(
    app: Sphinx,
    page: str,
    template: str,
    context: dict,
    doctree: nodes.document | None,
) -> None:
    """Drop unwanted scripts and follow the reader's light or dark system."""
    context["default_mode"] = "auto"
    for kind in ("script_files", "css_files"):
        files = {}
        for asset in context[kind]:
            name = f"{asset.filename or asset.attributes}"
            if not any(word in name for word in UNWANTED):
                files.setdefault(name, asset)
        context[kind][:] = files.values()


def add_filter(app: Sphinx) -> None:
    """Make `polish` a filter for book/_ext/templates/layout.html."""
    if app.builder.format != "html":
        return
    title = escape(app.config.project, quote=True)
    sidebar = 'id="pst-primary-sidebar"'
    landmark = f'{sidebar} role="complementary" aria-label="{title}"'

    def mend(html: str) -> str:
        return polish(html).replace(sidebar, landmark)

    app.builder.templates.environment.filters["polish"] = mend


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", add_filter)
    app.connect("html-page-context", polish_context, priority=900)
    app.add_css_file("css/book.css", priority=900)
    app.add_js_file("js/book.js", loading_method="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
