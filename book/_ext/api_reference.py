"""Help autodoc to write the API page from the package's docstrings.

The book is built without torch: autodoc replaces whatever the package
imports from other projects by stand-ins. This extension finds out what that
is, sets our `Shape:` sections as code, links each entry to the cell of the
chapter that defines it, and classes of other projects to their manuals.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from cells import find_definition
from chapters import load_plan, module_of
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import inspect

TORCH = "https://docs.pytorch.org/docs/stable/"
VISION = "https://docs.pytorch.org/vision/stable/"
MATPLOTLIB = "https://matplotlib.org/stable/api/"
PYTHON = "https://docs.python.org/3/library/"
MANUALS = {
    "Tensor": f"{TORCH}tensors.html#torch.Tensor",
    "Module": f"{TORCH}generated/torch.nn.Module.html",
    "DataLoader": f"{TORCH}data.html#torch.utils.data.DataLoader",
    "Dataset": f"{TORCH}data.html#torch.utils.data.Dataset",
    "LRScheduler": f"{TORCH}optim.html#how-to-adjust-learning-rate",
    "Optimizer": f"{TORCH}optim.html#torch.optim.Optimizer",
    "Compose": f"{VISION}generated/torchvision.transforms.v2.Compose.html",
    "autocast": f"{TORCH}amp.html#torch.autocast",
    "device": f"{TORCH}tensor_attributes.html#torch.device",
    "Axes": f"{MATPLOTLIB}_as_gen/matplotlib.axes.Axes.html",
    "Figure": f"{MATPLOTLIB}figure_api.html#matplotlib.figure.Figure",
    "Callable": f"{PYTHON}collections.abc.html#collections.abc.Callable",
    "Iterable": f"{PYTHON}collections.abc.html#collections.abc.Iterable",
    "Iterator": f"{PYTHON}collections.abc.html#collections.abc.Iterator",
    "Mapping": f"{PYTHON}collections.abc.html#collections.abc.Mapping",
    "Sequence": f"{PYTHON}collections.abc.html#collections.abc.Sequence",
    "Path": f"{PYTHON}pathlib.html#pathlib.Path",
}
PROJECTS = {
    "collections",
    "matplotlib",
    "nn",
    "pathlib",
    "torch",
    "torchvision",
}


def imported_packages(package: Path) -> list[str]:
    """Return what the modules of a package import from other projects."""
    names = {package.name, *sys.stdlib_module_names}
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    return sorted(found - names)


def find_package(app: Sphinx, config: Config) -> None:
    """Let autodoc import the package, without what the package needs."""
    sys.path.insert(0, str(app.confdir))
    package = Path(app.confdir, "vit_lessons")
    # Modules with exercises compute with torch when they are imported.
    exercises = [
        f"vit_lessons.checks.{path.stem}"
        for path in sorted(package.glob("checks/*.py"))
        if "\nEXERCISES" in path.read_text(encoding="utf-8")
    ]
    config.autodoc_mock_imports = [*imported_packages(package), *exercises]


def set_sections(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    lines: list[str],
) -> None:
    """Turn `Shape:` into a block of code and `Source:` into a paragraph."""
    out: list[str] = []
    in_shape = False
    for line in lines:
        if line == "Shape:":
            in_shape = True
            out += [":Shape:", "    .. code-block:: text", ""]
            continue
        in_shape = in_shape and (not line or line.startswith(" "))
        if in_shape:
            line = f"    {line}"
        line = re.sub(r"^Source: ", "**Source:** ", line)
        if chapter := re.fullmatch(r"Chapter: (notebooks/\w+)\.ipynb", line):
            line = ""
            if chapter[1] in app.env.found_docs:
                line = f"From the chapter :doc:`/{chapter[1]}`."
        out.append(line)
    lines[:] = [*out, *link_to_cell(app, name)]


def link_to_cell(app: Sphinx, name: str) -> list[str]:
    """Return the line that leads from an entry to the cell defining it."""
    root = Path(app.srcdir)
    module, _, member = name.rpartition(".")
    for stem in (chapter["stem"] for chapter in load_plan(root)):
        if module == f"vit_lessons.{module_of(stem)}":
            reference = find_definition(root, stem, member)
            title = f"Chapter {stem[:2]} defines it"
            if reference is not None:
                return ["", f":cell:`{title} <{reference}>`.", ""]
    return []


def set_signature(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Show the arguments of a layer, not those of the stand-in above it."""
    if what != "class" or "__init__" not in vars(obj):
        return signature, returns
    init = inspect.signature(vars(obj)["__init__"], bound_method=True)
    return inspect.stringify_signature(
        init, show_return_annotation=False, unqualified_typehints=True
    ), None


def link_manual(
    app: Sphinx, env: object, node: nodes.Element, content: nodes.Element
) -> nodes.reference | None:
    """Link a class of another project to its page in the manual."""
    parts = node.get("reftarget", "").split(".")
    ours = parts[0] not in PROJECTS | MANUALS.keys()
    if ours or parts[-1] not in MANUALS:
        return None
    return nodes.reference("", "", content, refuri=MANUALS[parts[-1]])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", find_package)
    app.connect("autodoc-process-docstring", set_sections, priority=400)
    app.connect("autodoc-process-signature", set_signature)
    app.connect("missing-reference", link_manual)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
