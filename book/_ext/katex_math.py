"""Set mathematics with KaTeX while the book is built.

The pages then hold finished formulas: no script runs in the browser, and a
formula that KaTeX cannot read is a warning, which fails a strict build.
KaTeX is a JavaScript program; mini-racer runs it inside Python, so that no
Node is needed. The stylesheet and the fonts are in book/assets/katex.
"""

from __future__ import annotations

import atexit
from functools import cache
from pathlib import Path

from docutils import nodes
from py_mini_racer import JSEvalException, MiniRacer
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)
KATEX = Path(__file__).parent / "katex" / "katex.min.js"


@cache
def engine() -> MiniRacer:
    """Start the JavaScript engine once and load KaTeX into it."""
    racer = MiniRacer()
    atexit.register(racer.close)  # else Python 3.13 never exits
    racer.eval(KATEX.read_text(encoding="utf-8"))
    return racer


def render(tex: str, *, display: bool) -> str:
    """Return the HTML of a formula.

    Raises:
        ValueError: KaTeX cannot read the formula; the message says where.
    """
    options = {"displayMode": display, "throwOnError": True, "strict": "error"}
    try:
        return engine().call("katex.renderToString", tex, options)
    except JSEvalException as error:
        reason = str(error).splitlines()[0].split("ParseError: ")[-1]
        raise ValueError(reason) from None


def html_of(node: nodes.math | nodes.math_block, *, display: bool) -> str:
    """Return the HTML of a node; a bad formula is shown as it was typed."""
    tex = node.astext().strip()
    try:
        return render(tex, display=display)
    except ValueError as error:
        logger.warning(
            "bad formula %s (%s)", tex, error, location=node, type="katex"
        )
        return f"<code>{nodes.unescape(tex)}</code>"


def visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append('<span class="math notranslate nohighlight">')
    self.body.append(html_of(node, display=False))
    self.body.append("</span>")
    raise nodes.SkipNode


def visit_display(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(
        self.starttag(node, "div", CLASS="math notranslate nohighlight")
    )
    self.body.append('<div class="formula">')
    self.body.append(html_of(node, display=True))
    self.body.append("</div>")
    if node["number"]:
        number = get_node_equation_number(self, node)
        self.body.append(f'<span class="eqno">({number})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


def link_stylesheet(app: Sphinx, page: str, template: str, *_: object) -> None:
    """Load the stylesheet on pages with mathematics only."""
    if app.env.get_domain("math").has_equations(page):
        app.add_css_file("katex/katex.min.css")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer(
        "katex", (visit_inline, None), (visit_display, None)
    )
    app.connect("html-page-context", link_stylesheet)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
