"""What the figures in a page have in common: explorer, window_explorer."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

__all__ = ["HtmlFigure", "check_texts", "fill_template"]


@dataclass(frozen=True, repr=False)
class HtmlFigure:
    """A figure that a notebook shows.

    Args:
        html: The figure, one element that needs nothing else.
    """

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"  # the same for all, for nbval


def check_texts(name: str, description: str) -> None:
    """Refuse what can be no id, and a description that says nothing.

    Raises:
        ValueError: name is no id, or description is empty.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise ValueError(
            "name must be a letter, then letters, digits, - and _ only, got "
            f"{name!r}"
        )
    if not description.strip():
        raise ValueError(f"description must not be empty, got {description!r}")


def fill_template(module: str, data: dict[str, Any], **texts: str | int) -> str:
    """Put style, script, data and texts into the template of a module.

    Args:
        module: Path of the module. The .html, .css and .js have its name.
        data: What the script gets, as JSON.
        texts: What else the template names.
    """
    html, css, js = (
        Path(module).with_suffix(suffix).read_text("utf-8").strip()
        for suffix in (".html", ".css", ".js")
    )
    return Template(html).substitute(
        texts, css=css, js=js, data=json.dumps(data, separators=(",", ":"))
    )
