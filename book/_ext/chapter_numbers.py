"""Number each chapter as its file is numbered.

notebooks/04_attention.ipynb is chapter 4 even while 02 and 03 are being
written. Sphinx counts 1, 2, 3; this extension puts the file's number in the
place of Sphinx's as soon as Sphinx has assigned it, so that the figures and
equations numbered after that carry it too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.environment.collectors.toctree import TocTreeCollector

Assign = Callable[[TocTreeCollector, BuildEnvironment], list[str]]


def chapter_number(docname: str) -> int | None:
    """Return 4 for notebooks/04_attention, None for other pages."""
    match = re.fullmatch(r"notebooks/(\d\d)_\w+", docname)
    return int(match[1]) if match else None


def renumber(env: BuildEnvironment) -> None:
    """Put the files' numbers in the place of those Sphinx has assigned."""
    for docname, numbers in env.toc_secnumbers.items():
        chapter = chapter_number(docname)
        if chapter is None:
            continue
        for anchor, number in numbers.items():
            if number:
                numbers[anchor] = (chapter, *number[1:])
        for entry in (env.titles[docname], *env.tocs[docname].findall()):
            if isinstance(entry, nodes.Element) and entry.get("secnumber"):
                entry["secnumber"] = [chapter, *entry["secnumber"][1:]]


def with_file_numbers(assign_figure_numbers: Assign) -> Assign:
    """Wrap Sphinx's numbering of figures: the chapters' numbers come first.

    Sphinx numbers sections and then figures, in one step. Others (the table
    of contents of Jupyter Book) replace the numbering of sections, so the
    numbering of figures is the safe place to come in between.
    """

    @wraps(assign_figure_numbers)
    def assign(self: TocTreeCollector, env: BuildEnvironment) -> list[str]:
        renumber(env)
        return assign_figure_numbers(self, env)

    return assign


def setup(app: Sphinx) -> dict[str, bool]:
    assign = TocTreeCollector.assign_figure_numbers
    if not hasattr(assign, "__wrapped__"):  # once per process
        TocTreeCollector.assign_figure_numbers = with_file_numbers(assign)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
