"""Show the claims of book/claims.yml as a ledger.

Each entry is a statement that the book takes from a paper, from other code
or from what is commonly said, and says how it stands:

    - id: cnn-ahead-on-few-images       # a slug that never changes
      pages: [09_inductive_bias]        # who states it; the first lists it
      claim: One sentence that can be understood alone.
      verdict: quoted | measured | unseen | refuted
      cite: dosovitskiy2021             # a key of references.bib
      place: section 4.3, figure 4      # where it stands there
      source: published tutorials       # beside or instead of these two
      cell: "09_inductive_bias: words"  # see cells.py
      record: data_size                 # vit_lessons/recorded/data_size.json
      here: One sentence with what our cell shows.

`cite` and `place` may be lists of equal length. The directive
`claims-ledger` shows the entries by page, `claims-of` those of one verdict
as a list of links, `claims-count` how many there are of each verdict. Each
chapter ends with a link to its entries.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml
from cells import find_cell
from chapter_numbers import chapter_number
from chapters import load_plan
from docutils import nodes
from nbformat.v4 import new_markdown_cell
from repository import repository
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import ReferenceRole, SphinxDirective
from sphinx.util.osutil import relative_uri

VERDICTS = {
    "quoted": ("quoted", "stands in the source, and was not measured here"),
    "measured": (
        "measured",
        "we measured it, often in miniature: our result agrees, or is our own",
    ),
    "unseen": (
        "not seen here",
        "our miniature does not show what the source found at its own scale",
    ),
    "refuted": ("refuted", "a sentence that our cell shows to be wrong"),
}
PAGES = {
    "paper": "The paper in one sitting",
    "choosing_a_model": "Choosing a model",
    "bug_museum": "The bug museum",
}


LEDGER = """
{{ledger}}`The ledger of claims <{stem}>` says what this chapter measures and \
what it quotes.
"""


class Claim(NamedTuple):
    """A statement, where it comes from, and what we know about it."""

    id: str
    pages: list[str]
    claim: str
    verdict: str
    cite: Sequence[str] = ()
    place: Sequence[str] = ()
    source: str = ""
    cell: str = ""
    record: str = ""
    here: str = ""


def read_claim(root: Path, where: str, entry: object) -> Claim:
    """Check one entry of the file.

    Raises:
        ExtensionError: Something is missing, unknown or leads nowhere; the
            message says where and what.
    """

    def require(condition: object, what: str) -> None:
        if not condition:
            raise ExtensionError(f"{where} {what}")

    required = {"id", "pages", "claim", "verdict"}
    require(
        isinstance(entry, dict)
        and required <= set(entry) <= set(Claim._fields),
        f"must have the keys {sorted(required)} and no unknown one, got "
        f"{list(entry) if isinstance(entry, dict) else entry!r}",
    )
    lists = {
        key: [entry[key]] if isinstance(entry[key], str) else entry[key]
        for key in ("pages", "cite", "place")
        if key in entry
    }
    claim = Claim(**{**entry, **lists})
    slug = re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", str(claim.id))
    require(slug, f"needs a slug as its id, got {claim.id!r}")
    stems = {chapter["stem"] for chapter in load_plan(root)}
    unknown = set(claim.pages) - stems - set(PAGES)
    require(claim.pages and not unknown, f"names no such pages: {unknown}")
    require(
        claim.verdict in VERDICTS,
        f"must have one of the verdicts {[*VERDICTS]}, got {claim.verdict!r}",
    )
    require(
        len(claim.cite) == len(claim.place),
        f"needs a place for each citation, got {claim.cite}, {claim.place}",
    )
    if claim.verdict != "measured":
        require(claim.cite or claim.source, "needs a citation or a source")
    if claim.verdict != "quoted":
        require(claim.cell, "needs the cell that shows what we measured")
    if claim.verdict in ("unseen", "refuted"):
        require(claim.here, "must say what we measured (here)")
    if claim.cell:
        find_cell(root, claim.cell)
    record = root / "vit_lessons" / "recorded" / f"{claim.record}.json"
    require(not claim.record or record.is_file(), f"has no record {record}")
    return claim


@cache
def read_file(root: Path, changed: int) -> list[Claim]:
    """Read the file once for each time it changes."""
    path = root / "book" / "claims.yml"
    claims: dict[str, Claim] = {}
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    for place, entry in enumerate(entries, start=1):
        claim_id = entry.get("id") if isinstance(entry, dict) else None
        where = f"book/claims.yml, claim {place} ({claim_id})"
        claim = read_claim(root, where, entry)
        if claim.id in claims:
            raise ExtensionError(f"{where}: the id is taken")
        claims[claim.id] = claim
    return [*claims.values()]


def load_claims(root: Path) -> list[Claim]:
    """Read and check all claims, in the order of the file.

    Raises:
        ExtensionError: An entry is malformed, or leads nowhere.
    """
    path = root / "book" / "claims.yml"
    return read_file(root, path.stat().st_mtime_ns)


def mark(verdict: str) -> str:
    """Return a verdict as a mark, in Markdown."""
    return f"[{VERDICTS[verdict][0]}]{{.verdict .{verdict}}}"


class Ledger(SphinxDirective):
    """All claims, a section for each page."""

    def run(self) -> list[nodes.Node]:
        root = Path(self.env.srcdir)
        self.env.note_dependency(str(root / "book" / "claims.yml"))
        self.env.note_dependency(str(root / "book" / "chapters.yml"))
        titles = {
            chapter["stem"]: f"{int(chapter['stem'][:2])}. {chapter['title']}"
            for chapter in load_plan(root)
        }
        sections = []
        for page, title in {**PAGES, **titles}.items():
            claims = [c for c in load_claims(root) if c.pages[0] == page]
            if not claims:
                continue
            section = nodes.section(ids=[nodes.make_id(f"claims-{page}")])
            section += nodes.title("", title)
            for claim in claims:
                section += self.entry(claim)
            sections.append(section)
        return sections

    def entry(self, claim: Claim) -> nodes.container:
        """Return a claim with its verdict and its links."""
        lines = [f"{mark(claim.verdict)} {claim.claim.strip()}"]
        if claim.here:
            lines += ["", f"Here: {claim.here.strip()}"]
        entry = nodes.container(
            classes=["claim"], ids=[nodes.make_id(f"claim-{claim.id}")]
        )
        entry += self.parse_text_to_nodes(
            "\n".join([*lines, "", self.links(claim)])
        )
        return entry

    def links(self, claim: Claim) -> str:
        """Return the last line: source, cell, record and pages."""
        pairs = zip(claim.cite, claim.place, strict=True)
        parts = [f"{{cite:t}}`{key}`, {place}" for key, place in pairs]
        if claim.source:
            parts.append(claim.source)
        parts = [f"From {'; '.join(parts)}."] if parts else []
        if claim.cell:
            stem = claim.cell.partition(":")[0]
            title = f"the cell of chapter {stem[:2]}"
            parts.append(f"Measured in {{cell}}`{title} <{claim.cell}>`.")
        if claim.record:
            path = f"vit_lessons/recorded/{claim.record}.json"
            address = repository(self.config).source(path)
            parts.append(f"Recorded in [{claim.record}.json]({address}).")
        pages = [self.page(name) for name in claim.pages]
        parts.append(f"Stated in {', '.join(pages)}.")
        return " ".join(parts)

    def page(self, name: str) -> str:
        """Return the link to a page."""
        if name in PAGES:
            return f"[{PAGES[name]}](/book/{name}.md)"
        return f"[chapter {name[:2]}](/notebooks/{name}.ipynb)"


class ClaimsOf(SphinxDirective):
    """The claims of one verdict, as a list of links."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        root = Path(self.env.srcdir)
        self.env.note_dependency(str(root / "book" / "claims.yml"))
        if self.arguments[0] not in VERDICTS:
            raise self.error(f"the verdict must be one of {[*VERDICTS]}")
        items = nodes.bullet_list(bullet="-")
        for claim in load_claims(root):
            if claim.verdict == self.arguments[0]:
                text = self.parse_text_to_nodes(claim.claim.strip())[0]
                anchor = nodes.make_id(f"claim-{claim.id}")
                link = nodes.reference(
                    "", "What we found", refid=anchor, internal=True
                )
                text += [nodes.Text(" "), link]
                items += nodes.list_item("", text)
        return [items]


class ClaimsCount(SphinxDirective):
    """How many claims there are of each verdict."""

    def run(self) -> list[nodes.Node]:
        root = Path(self.env.srcdir)
        self.env.note_dependency(str(root / "book" / "claims.yml"))
        count = Counter(claim.verdict for claim in load_claims(root))
        rows = ["| Verdict | What it means | Claims |", "|:-|:-|-:|"]
        for verdict, (_, meaning) in VERDICTS.items():
            rows.append(f"| {mark(verdict)} | {meaning} | {count[verdict]} |")
        return self.parse_text_to_nodes("\n".join(rows))


class LedgerRole(ReferenceRole):
    """A link to the claims of a chapter."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        self.env.note_dependency(f"{self.env.srcdir}/book/claims.yml")
        builder = self.env.app.builder
        page = builder.get_target_uri(self.env.docname)
        address = relative_uri(page, builder.get_target_uri("book/claims"))
        address += f"#{nodes.make_id(f'claims-{self.target}')}"
        link = nodes.reference("", self.title, refuri=address, internal=True)
        return [link], []


def link_to_ledger(app: Sphinx, docname: str, source: list[str]) -> None:
    """End each chapter, before its recall cards, with a link to its claims."""
    if chapter_number(docname) is None:
        return
    stem = docname.removeprefix("notebooks/")
    claims = load_claims(Path(app.srcdir))
    if not any(claim.pages[0] == stem for claim in claims):
        return
    notebook = json.loads(source[0])
    cell = new_markdown_cell(LEDGER.format(stem=stem), id="ledger")
    notebook["cells"].append(cell)
    source[0] = json.dumps(notebook)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_role("ledger", LedgerRole())
    app.connect("source-read", link_to_ledger, priority=400)
    app.add_directive("claims-ledger", Ledger)
    app.add_directive("claims-of", ClaimsOf)
    app.add_directive("claims-count", ClaimsCount)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
