"""The ledger of claims: no dead link, and no number that nobody printed."""

import re
from pathlib import Path

import nbformat
import pytest
import yaml
from ledger import NO_MEASUREMENT, NUMBER, claimed_numbers, numbers

claims = pytest.importorskip("claims")
cells = pytest.importorskip("cells")
errors = pytest.importorskip("sphinx.errors")
pybtex = pytest.importorskip("pybtex.database")

ROOT = Path(__file__).parents[1]
LEDGER = claims.load_claims(ROOT)
PAGES = sorted((ROOT / "book").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WORKS = pybtex.parse_file(ROOT / "book" / "references.bib").entries
CITATION = re.compile(r"\{cite:\w+\}`([^`]+)`")
LINK = re.compile(r"\]\((https?://[^)\s\"\\]+)\)")
GOOD = {
    "id": "a-claim",
    "pages": ["04_attention"],
    "claim": "Attention has heads.",
    "verdict": "refuted",
    "cite": "vaswani2017",
    "place": "section 3.2",
    "cell": "04_attention: class MultiHeadSelfAttention(",
    "here": "It has none.",
}
BAD = {
    "no mapping": ("a claim", "must have the keys"),
    "missing key": ({"claim": None}, "must have the keys"),
    "unknown key": ({"url": "x"}, "must have the keys"),
    "no slug": ({"id": "A claim"}, "needs a slug"),
    "no page": ({"pages": []}, "names no such pages"),
    "unknown page": ({"pages": ["99_x"]}, "names no such pages: {'99_x'}"),
    "unknown verdict": ({"verdict": "true"}, "one of the verdicts"),
    "no place": ({"place": None}, "a place for each citation"),
    "one place too few": ({"cite": ["a", "b"]}, "a place for each citation"),
    "no source": ({"cite": None, "place": None}, "needs a citation or a"),
    "no cell": ({"cell": None}, "needs the cell"),
    "nothing found": ({"here": None}, "must say what we measured"),
    "no such chapter": ({"cell": "99_x: class"}, "named as CHAPTER: WORDS"),
    "no words": ({"cell": "04_attention"}, "named as CHAPTER: WORDS"),
    "cell is gone": ({"cell": "04_attention: no such words"}, "are in 0"),
    "two cells": ({"cell": "04_attention: torch"}, r"are in \d\d"),
    "record is gone": ({"record": "no_record"}, "has no record"),
}


def printed_by(claim):
    """The numbers that the cell of a claim prints, as they are written."""
    stem, place = cells.find_cell(ROOT, claim.cell)
    notebook = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", 4)
    outputs = notebook.cells[place].outputs
    return numbers(" ".join(output.get("text", "") for output in outputs))


def cited_works():
    """The keys that a page or the ledger cites, or a chapter links to."""
    keys = {key for claim in LEDGER for key in claim.cite}
    for page in PAGES:
        for names in CITATION.findall(page.read_text("utf-8")):
            keys |= {name.strip() for name in names.split(",")}
    return keys


def test_a_good_entry_is_read():
    assert claims.read_claim(ROOT, "here", GOOD).cite == ["vaswani2017"]


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_entry_is_refused(fault):
    change, message = BAD[fault]
    entry = change
    if isinstance(change, dict):
        entry = {k: v for k, v in (GOOD | change).items() if v is not None}
    with pytest.raises(errors.ExtensionError, match=message):
        claims.read_claim(ROOT, "claim 1", entry)


def test_an_id_is_used_once(tmp_path):
    for folder in ("notebooks", "vit_lessons"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "book").mkdir()
    (tmp_path / "book/chapters.yml").symlink_to(ROOT / "book/chapters.yml")
    (tmp_path / "book/claims.yml").write_text(yaml.safe_dump([GOOD, GOOD]))
    with pytest.raises(errors.ExtensionError, match="the id is taken"):
        claims.load_claims(tmp_path)


@pytest.mark.parametrize("claim", LEDGER, ids=lambda claim: claim.id)
def test_a_claim_cites_works_of_the_bibliography(claim):
    assert set(claim.cite) - set(WORKS) == set()


@pytest.mark.parametrize(
    "claim", [c for c in LEDGER if c.here], ids=lambda claim: claim.id
)
def test_what_we_measured_is_printed_by_the_cell(claim):
    assert numbers(claim.here) - printed_by(claim) == set()


@pytest.mark.parametrize(
    "claim", [c for c in LEDGER if c.record], ids=lambda claim: claim.id
)
def test_a_chapter_loads_the_record_of_its_claim(claim):
    stem = claim.cell.partition(":")[0]
    text = (ROOT / "notebooks" / f"{stem}.ipynb").read_text("utf-8")
    assert f'load(\\"{claim.record}\\")' in text


def test_every_work_of_the_bibliography_is_cited():
    linked = {
        address.rstrip("/")
        for notebook in NOTEBOOKS
        for address in LINK.findall(notebook.read_text("utf-8"))
    }
    cited = cited_works()
    unused = [
        key
        for key, work in WORKS.items()
        if key not in cited and work.fields["url"] not in linked
    ]
    assert unused == []


def test_every_paper_that_a_chapter_links_to_is_in_the_bibliography():
    known = " ".join(
        work.fields["url"] + work.fields.get("note", "")
        for work in WORKS.values()
    )
    missing = {
        (notebook.stem, address)
        for notebook in NOTEBOOKS
        for address in LINK.findall(notebook.read_text("utf-8"))
        if re.search(r"arxiv|doi\.org|proceedings|aclanthology", address)
        and address.rstrip("/").rpartition("/")[2] not in known
    }
    assert missing == set()


# --- The pages that live from the ledger --------------------------------

PLACE = re.compile(
    r"abstract|[Ss]ections? \d|[Tt]ables? \d|[Ff]igures? \d|appendix [A-D]"
    r"|equations? \d|arXiv|\{cell\}|\{cite:|\]\(|[Cc]hapter \d\d"
)


def statements(page):
    """The list items of a page, and its lines that hold a number."""
    text = re.sub(r"(?s)```.*?```|\$\$.*?\$\$", "", page.read_text("utf-8"))
    for line in text.splitlines():
        if not line.startswith(("|", "#", ":")) and (
            line.startswith("- ") or re.search(r"\d[\d.]* ?%|\d\.\d", line)
        ):
            yield line


def printed_in(stem):
    """The numbers that the cells of a chapter print."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", 4)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    return numbers(" ".join(output.get("text", "") for output in outputs))


@pytest.mark.parametrize("name", ["paper", "choosing_a_model"])
def test_a_statement_of_the_page_says_where_it_is_from(name):
    lines = statements(ROOT / "book" / f"{name}.md")
    assert [line for line in lines if not PLACE.search(line)] == []


@pytest.mark.parametrize("name", ["paper", "choosing_a_model"])
def test_a_number_of_the_page_is_printed_by_its_cell_or_in_the_ledger(name):
    """Rows without a citation belong to a table of the paper as a whole."""
    text = (ROOT / "book" / f"{name}.md").read_text("utf-8")
    missing = []
    for line in re.sub(r"(?s)```.*?```|\$\$.*?\$\$", "", text).splitlines():
        if line.startswith("|") and "{c" not in line:
            continue
        known = set(claimed_numbers(name))
        for stem in re.findall(r"\{cell\}`[^`<]*<(\w+): ", line):
            known |= printed_in(stem)
        prose = re.sub(r"\{cell\}`([^`<]*)<[^`]*>`", r"\1", line)
        prose = NO_MEASUREMENT.sub("", prose)
        missing += [
            (match[0], line)
            for match in NUMBER.finditer(prose)
            if match[0] not in known
        ]
    assert missing == []


def test_torchvision_publishes_these_accuracies():
    models = pytest.importorskip("torchvision.models")
    text = (ROOT / "book" / "choosing_a_model.md").read_text("utf-8")
    rows = re.findall(
        r"(?m)^\S+ \| (\w+) \| ([\d.]+) \| ImageNet \| torchvision", text
    )
    published = {
        "vit_base_patch16_224": models.ViT_B_16_Weights.IMAGENET1K_V1,
        "efficientnet_b0": models.EfficientNet_B0_Weights.IMAGENET1K_V1,
        "resnet50": models.ResNet50_Weights.IMAGENET1K_V2,
        "convnext_tiny": models.ConvNeXt_Tiny_Weights.IMAGENET1K_V1,
    }
    assert dict(rows) == {
        name: f"{weights.meta['_metrics']['ImageNet-1K']['acc@1']:.1f}"
        for name, weights in published.items()
    }
