"""Put the package's text into the notebooks, and run what has changed.

    python tools/sync_notebooks.py            mend and run what needs it
    python tools/sync_notebooks.py 04         run chapter 04 in any case
    python tools/sync_notebooks.py --check    change nothing, say what is old

Three things stand in one place and are copied by this tool:

- the definitions of a module of vit_lessons, to the cells of its chapter;
- the repository of _config.yml, to the links of all notebooks and files;
- the outputs of the cells, by running the notebook in a fresh kernel.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import re
import sys
from pathlib import Path

import nbformat
import yaml
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
RUN_COMMAND = "python tools/sync_notebooks.py"
SETUP_TITLE = "# @title Setup: run this cell first"
SETUP = (
    SETUP_TITLE
    + """ { display-mode: "form" }
import importlib.util

if importlib.util.find_spec("vit_lessons") is None:
    %pip install -q git+REPOSITORY
    importlib.invalidate_caches()"""
)
BADGE = (
    '<a href="https://colab.research.google.com/github/SLUG/blob/BRANCH/'
    'notebooks/NAME"><img src="https://colab.research.google.com/assets/'
    'colab-badge.svg" alt="Open in Colab"></a>'
)
METADATA = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": [], "toc_visible": True},
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}
# Where a text file names the repository; the owner and name follow.
LINKS = re.compile(
    r"(colab\.research\.google\.com/github/"
    r"|git\+https://github\.com/"
    r"|git clone https://github\.com/"
    r"|(?:Repository = \"|repository-code: \")https://github\.com/)"
    r"[\w.-]+/[\w-]+(?:\.[\w-]+)*"
)
LINKED_FILES = (
    "README.md",
    "CONTRIBUTING.md",
    "CITATION.cff",
    "pyproject.toml",
)


class SyncError(Exception):
    """A fault that only a person can mend."""


def repository(root: Path = ROOT) -> dict[str, str]:
    """url, branch and slug ("owner/name") of the repository."""
    config = yaml.safe_load((root / "_config.yml").read_text("utf-8"))
    found = config["repository"]
    slug = found["url"].removeprefix("https://github.com/").rstrip("/")
    return {"url": found["url"], "branch": found["branch"], "slug": slug}


def definitions(source: str) -> dict[str, str]:
    """The text of every public definition of a module, by name."""
    tree = ast.parse(source)
    found = {name: node for node in tree.body for name in names(node)}
    public = ast.literal_eval(found["__all__"].value)
    return {name: text_of(found[name], source) for name in public}


def names(node: ast.stmt) -> list[str]:
    """Names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):  # NAME: type = value
        targets = [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def text_of(node: ast.stmt, source: str) -> str:
    """Source lines of a statement, decorators and comments included."""
    first = min(
        [node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]
    )
    return "\n".join(source.splitlines()[first - 1 : node.end_lineno])


def cell_names(cell: NotebookNode) -> list[str]:
    """Names that a code cell defines."""
    if cell.cell_type != "code" or is_setup(cell):
        return []
    python = re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", cell.source)
    return [name for node in ast.parse(python).body for name in names(node)]


def is_setup(cell: NotebookNode) -> bool:
    return cell.source.startswith(SETUP_TITLE)


def is_badge(cell: NotebookNode) -> bool:
    return "colab-badge.svg" in cell.source


def fingerprint(notebook: NotebookNode) -> str:
    """Changes whenever a code cell changes."""
    code = [c.source for c in notebook.cells if c.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:16]


def mend(notebook: NotebookNode, path: Path, root: Path = ROOT) -> None:
    """Bring definitions, links, ids and metadata up to date, in place."""
    remote = repository(root)
    module = root / "vit_lessons" / f"{path.stem[3:]}.py"
    wanted = definitions(module.read_text("utf-8"))
    defined = []
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        if is_setup(cell):
            cell.source = SETUP.replace("REPOSITORY", remote["url"])
        elif is_badge(cell):
            cell.source = (
                BADGE.replace("SLUG", remote["slug"])
                .replace("BRANCH", remote["branch"])
                .replace("NAME", path.name)
            )
        own = [name for name in cell_names(cell) if name in wanted]
        if own:
            if len(ast.parse(cell.source).body) > 1:
                raise SyncError(
                    f"{path.name}, cell {number}: a cell that defines "
                    f"{own[0]} must hold nothing else"
                )
            cell.source = wanted[own[0]]
            defined += own
    if sorted(defined) != sorted(wanted):
        raise SyncError(
            f"{path.name} must define each of {sorted(wanted)} once, "
            f"it defines {sorted(defined)}"
        )
    run = notebook.metadata.get("vit_lessons", {})
    notebook.metadata = nbformat.from_dict({**METADATA, "vit_lessons": run})


def needs_run(notebook: NotebookNode) -> bool:
    """Has a code cell changed, or lost its output, since the last run?"""
    run = notebook.metadata.get("vit_lessons", {})
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    return run.get("executed") != fingerprint(notebook) or counts != list(
        range(1, len(code) + 1)
    )


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run all cells in a fresh kernel and keep clean outputs."""
    os.environ["TQDM_DISABLE"] = "1"  # progress bars leave nothing stored
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as conftest.py
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # else their number changes from run to run
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                # The full traceback holds paths of the author's machine.
                output.traceback = [f"{output.ename}: {output.evalue}"]
    notebook.metadata = nbformat.from_dict(
        {**METADATA, "vit_lessons": {"executed": fingerprint(notebook)}}
    )


def relink(text: str, root: Path = ROOT) -> str:
    """A text with all links to the repository of _config.yml."""
    slug = repository(root)["slug"]
    return LINKS.sub(lambda match: match[1] + slug, text)


def sync(root: Path, *, check: bool, force: tuple[str, ...] = ()) -> list[str]:
    """Mend all files. The names of those that were (or would be) changed."""
    changed = []
    for name in LINKED_FILES:
        path = root / name
        before = path.read_text("utf-8")
        after = relink(before, root)
        if after != before:
            changed.append(name)
            if not check:
                path.write_text(after, "utf-8")
    for path in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        before = path.read_text("utf-8")
        notebook = nbformat.reads(before, as_version=4)
        mend(notebook, path, root)
        forced = bool(force) and path.name.startswith(force)
        run = forced or needs_run(notebook)
        if run and not check:
            print(f"running {path.name}", flush=True)
            execute(notebook, path.parent)
        after = nbformat.writes(notebook) + "\n"
        if run or after != before:
            changed.append(f"notebooks/{path.name}")
            if not check:
                path.write_text(after, "utf-8")
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("chapters", nargs="*", help="chapters to run, as 04")
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args()
    try:
        changed = sync(ROOT, check=options.check, force=tuple(options.chapters))
    except SyncError as error:
        print(error)
        return 1
    for name in changed:
        print(f"{'not in step' if options.check else 'written'}: {name}")
    if options.check and changed:
        print(f"Run: {RUN_COMMAND}   (or: make sync)")
    return int(options.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
