"""The built book: numbers, links, and what a browser makes of it."""

import ast
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest
import yaml
from browsers import axe_finds, listening, missing

ROOT = Path(__file__).parents[1]
# With what axe looks for. The dark changes the colors and the logo, no more.
MODES = {
    "light": {},
    "dark": {"runOnly": ["color-contrast", "link-in-text-block", "image-alt"]},
}
TWIN = "[data-twin]"
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}


def strict_build(out: Path, root: Path = ROOT) -> subprocess.CompletedProcess:
    command = shutil.which("jupyter-book", path=Path(sys.executable).parent)
    if command is None:
        missing("jupyter-book")
    options = ["-W", "-n", "--keep-going", "--path-output", str(out)]
    return subprocess.run(
        [command, "build", str(root), *options], capture_output=True, text=True
    )


@pytest.fixture(scope="session")
def book(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("book")
    done = strict_build(out)
    assert done.returncode == 0, done.stderr
    return out / "_build" / "html"


@pytest.fixture(scope="session")
def soups(book):
    """Every page of the book; index.html only redirects to the first."""
    bs4 = pytest.importorskip("bs4")
    return {
        path.relative_to(book).as_posix(): bs4.BeautifulSoup(
            path.read_text(encoding="utf-8"), "html.parser"
        )
        for path in sorted(book.rglob("*.html"))
        if path != book / "index.html" and book / "_static" not in path.parents
    }


@pytest.fixture(scope="session")
def chapters() -> dict[str, int]:
    """Pages of the chapters in the table of contents, with file numbers."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [page["file"] for part in toc["parts"] for page in part["chapters"]]
    return {
        f"{file}.html": int(Path(file).name[:2])
        for file in files
        if file.startswith("notebooks/")
    }


@pytest.fixture(scope="session")
def site(book):
    """Address of the book on a server of our own."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = partial(Quiet, directory=book)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def tab(browser):
    context = browser.new_context(reduced_motion="reduce")
    yield context.new_page()
    context.close()


# To measure a contrast takes milliseconds, and a page has up to 12,000 texts
# but only dozens of looks: the same colors and size on the same ground. Four
# texts of each look are enough. axe gives no verdict on one character, nor on
# a text that another covers, hence not one text alone. MathML is never seen.
MARK_TWINS = """() => {
    const grounds = new Map([[null, ""]]), looks = new Map();
    const ground = (box) => {
        if (!grounds.has(box)) {
            const style = getComputedStyle(box);
            const own = [
                style.backgroundColor, style.backgroundImage, style.opacity,
                style.filter, style.position.replace("relative", "static"),
            ].join();
            const plain = own === "rgba(0, 0, 0, 0),none,1,none,static";
            grounds.set(box, ground(box.parentElement) + (plain ? "" : own));
        }
        return grounds.get(box);
    };
    for (const box of document.querySelectorAll(
        "body :not(.katex-mathml *)")) {
        const texts = [...box.childNodes].filter((node) => node.nodeType === 3);
        const letters = texts.map((node) => node.data).join("").match(/[!-~]/g);
        if (!letters || !box.checkVisibility()) continue;
        const style = getComputedStyle(box);
        const look = [
            letters.length > 1, style.color, style.fontSize, style.fontWeight,
            style.textShadow, style.visibility, ground(box),
        ].join();
        looks.set(look, (looks.get(look) ?? 0) + 1);
        box.toggleAttribute("data-twin", looks.get(look) > 4);
    }
}"""


@pytest.fixture(scope="session")
def visited(soups) -> list[str]:
    """All pages, but few listings of source: they differ in their words only.

    Those few have each class of markup that is in any listing.
    """
    names, known = [], set()
    for name, soup in soups.items():
        tags = soup.select("[class]")
        kinds = {(tag.name, kind) for tag in tags for kind in tag["class"]}
        if not name.startswith("_modules/"):
            names.append(name)
        elif kinds - known:
            names.append(name)
            known |= kinds
    return names


def visit(tab, address: str, width: int) -> SimpleNamespace:
    """What a browser reports of a page, in the light and in the dark."""
    seen = SimpleNamespace(axe=[], console=[], urls=[])

    def listen(message):
        if message.type in ("error", "warning"):
            seen.console.append(message.text)

    with listening(
        tab,
        console=listen,
        pageerror=lambda error: seen.console.append(str(error)),
        request=lambda request: seen.urls.append(request.url),
    ):
        tab.goto(address)
        tab.evaluate(
            "document.querySelectorAll('details').forEach(d => d.open = true)"
        )
        for mode, options in MODES.items():
            tab.emulate_media(color_scheme=mode)
            tab.wait_for_function(
                "m => document.documentElement.dataset.theme === m", arg=mode
            )
            tab.evaluate("document.fonts.ready")
            tab.evaluate(MARK_TWINS)
            for found in axe_finds(tab, no_contrast_of=TWIN, **options):
                targets = [node["target"] for node in found["nodes"]]
                seen.axe.append((mode, found["id"], targets[:3]))
        wide = tab.evaluate("document.documentElement.scrollWidth")
    seen.beyond = max(0, wide - width)  # the edge, in pixels
    return seen


@pytest.fixture(scope="session")
def visits(browser, site, visited):
    """What a browser reports of each page on a wide and a narrow screen."""
    report = {}
    for size, (width, height) in SIZES.items():
        context = browser.new_context(
            reduced_motion="reduce", viewport={"width": width, "height": height}
        )
        tab = context.new_page()
        for name in visited:
            report[name, size] = visit(tab, site + name, width)
        context.close()
    return report


# --- The files --------------------------------------------------------


def test_every_key_of_the_configuration_is_known_to_jupyter_book():
    jupyter_book = pytest.importorskip("jupyter_book")
    schema = Path(jupyter_book.__file__).with_name("config_schema.json")
    known = json.loads(schema.read_text(encoding="utf-8"))["properties"]
    known = {**known, "only_build_toc_files": {}}
    text = (ROOT / "_config.yml").read_text(encoding="utf-8")
    assert set(yaml.safe_load(text)) <= set(known)


def test_a_configuration_without_a_repository_is_refused():
    errors = pytest.importorskip("sphinx.errors")
    from repository import repository

    config = SimpleNamespace(html_theme_options={"repository_url": ""})
    with pytest.raises(errors.ConfigError, match=r"repository\.url"):
        repository(config)


def test_a_formula_that_cannot_be_read_fails_the_build(tmp_path):
    pytest.importorskip("py_mini_racer")
    (tmp_path / "conf.py").write_text(
        "extensions = ['myst_parser', 'katex_math']\n"
        "myst_enable_extensions = ['dollarmath']\n"
    )
    (tmp_path / "index.md").write_text("# Title\n\nIt is $\\frac{1$ here.\n")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", tmp_path, tmp_path / "o"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "book" / "_ext")},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert re.search(r"index\.md.*bad formula \\frac\{1 ", done.stderr)


def test_no_page_loads_a_file_from_another_host(book, soups):
    places = "[src], link[rel~=stylesheet], link[rel~=preload], link[rel~=icon]"
    foreign = [
        (page, tag.get("src") or tag.get("href"))
        for page, soup in soups.items()
        for tag in soup.select(places)
        if re.match(r"(https?:)?//", tag.get("src") or tag.get("href"))
    ]
    assert foreign == []


def test_no_stylesheet_loads_a_file_from_another_host(book):
    sheets = (book / "_static").rglob("*.css")
    pattern = r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']*"
    assert [
        (sheet.name, found)
        for sheet in sheets
        for found in re.findall(pattern, sheet.read_text(encoding="utf-8"))
    ] == []


def test_the_title_of_a_chapter_has_the_number_of_its_file(soups, chapters):
    titles = {
        page: soups[page].select_one("article h1").get_text()
        for page in chapters
    }
    assert {
        page: int(title.split(".")[0]) for page, title in titles.items()
    } == (chapters)


def test_the_sidebar_has_the_numbers_of_the_files(soups, chapters):
    for page, soup in soups.items():
        shown = {}
        for link in soup.select("nav.bd-docs-nav a"):
            target = urljoin(page, link["href"].removesuffix("#")) or page
            if target in chapters:
                shown[target] = int(link.get_text().strip().split(".")[0])
        assert shown == chapters, page


def test_a_chapter_has_its_number_before_its_figures_are_numbered():
    nodes = pytest.importorskip("docutils.nodes")
    from chapter_numbers import with_file_numbers

    page = "notebooks/04_attention"
    env = SimpleNamespace(
        toc_secnumbers={page: {"": (2,), "#idea": (2, 3)}},
        titles={page: nodes.title(secnumber=[2])},
        tocs={page: nodes.bullet_list()},
    )
    seen = {}
    assign = with_file_numbers(
        lambda _, env: seen.update(env.toc_secnumbers[page])
    )
    assign(None, env)
    assert seen == {"": (4,), "#idea": (4, 3)}


def test_every_internal_link_leads_somewhere(book, soups):
    ids = {
        page: {tag["id"] for tag in soup.select("[id]")}
        for page, soup in soups.items()
    }
    broken = []
    for page, soup in soups.items():
        for link in soup.select("a[href]"):
            address, anchor = urldefrag(link["href"])
            if urlsplit(address).scheme or not (address or anchor):
                continue
            target = unquote(urljoin(page, address)) if address else page
            if not (book / target).is_file() or (
                anchor and anchor not in ids.get(target, {anchor})
            ):
                broken.append((page, link["href"]))
    assert broken == []


def test_every_figure_says_in_words_what_it_shows(soups):
    images = [
        (page, image.get("alt", ""))
        for page, soup in soups.items()
        for image in soup.select("article img")
    ]
    assert [
        (page, alt)
        for page, alt in images
        if " " not in alt.strip()  # a path has none
    ] == []


def test_the_start_page_calls_available_what_is_available(soups, chapters):
    rows = soups["book/index.html"].select("tr:has(.ready)")
    links = {urljoin("book/index.html", row.a["href"]) for row in rows}
    assert links == set(chapters)


def test_the_start_page_lists_all_planned_chapters(soups):
    rows = soups["book/index.html"].select("tr:has(.ready), tr:has(.soon)")
    assert [row.td.get_text() for row in rows] == [
        str(n + 1) for n in range(17)
    ]


def test_the_picture_leads_to_the_chapters_it_shows(soups, chapters):
    for kind in ("model-wide", "model-narrow"):
        links = soups["book/index.html"].select(f"svg.{kind} a")
        shown = {urljoin("book/index.html", link["href"]) for link in links}
        assert shown == {page for page, n in chapters.items() if n <= 7}


@pytest.mark.parametrize(
    ("text", "linked"),
    [
        ("as in chapter 04.", "as in [chapter 04](/notebooks/04_x.ipynb)."),
        ("Swin (chapter 15)", "Swin (chapter 15[planned]{.planned})"),
        ("chapter 01 and chapter 99", "chapter 01 and chapter 99"),
        ("## Chapter 04\n", "## Chapter 04\n"),
        ("`chapter 04`", "`chapter 04`"),
        ("```\nchapter 04\n```", "```\nchapter 04\n```"),
        (r"$\text{chapter 04}$", r"$\text{chapter 04}$"),
        ("$$\n\\text{chapter 04}\n$$", "$$\n\\text{chapter 04}\n$$"),
        ("[see chapter 04](x)", "[see chapter 04](x)"),
        ('<img alt="chapter 04">', '<img alt="chapter 04">'),
    ],
)
def test_chapters_are_linked_in_the_text_alone(text, linked):
    pytest.importorskip("sphinx")
    from chapters import link_mentions

    pages = {"04": "notebooks/04_x", "15": None}
    assert link_mentions(text, pages) == linked


def test_a_chapter_that_the_text_speaks_of_is_linked_or_marked(soups, chapters):
    wrong = []
    for page, own in chapters.items():
        for text in (
            soups[page]
            .select_one("article")
            .find_all(string=re.compile(r"[Cc]hapter \d\d\b"))
        ):
            if text.find_parent(["code", "pre", "h1", "h2", "h3"]):
                continue
            link, mark = text.find_parent("a"), text.find_next_sibling("span")
            for number in map(int, re.findall(r"hapter (\d\d)", text)):
                there = number in chapters.values()
                if number != own and not (
                    link if there else mark and mark["class"] == ["planned"]
                ):
                    wrong.append((page, text))
    assert wrong == []


def test_a_chapter_links_to_colab_and_to_its_module(soups, chapters):
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    url, branch = config["repository"]["url"], config["repository"]["branch"]
    path = urlsplit(url).path
    for page in chapters:
        stem = Path(page).stem
        links = soups[page].select(".chapter-links a")
        assert [link["href"] for link in links] == [
            f"https://colab.research.google.com/github{path}/blob/{branch}"
            f"/notebooks/{stem}.ipynb",
            f"{url}/blob/{branch}/vit_lessons/{stem[3:]}.py",
        ]


def test_the_reference_names_everything_that_a_chapter_exports(soups, chapters):
    names = set()
    for page in chapters:
        module = Path(page).stem[3:]
        path = ROOT / "vit_lessons" / f"{module}.py"
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
                names |= {
                    f"vit_lessons.{module}.{name}"
                    for name in ast.literal_eval(node.value)
                }
    shown = {tag["id"] for tag in soups["book/api.html"].select("dt[id]")}
    assert names - shown == set()


def test_a_chapter_ends_with_its_recall_cards(soups, chapters):
    for page in chapters:
        text = (ROOT / "book/recall" / f"{Path(page).stem}.yml").read_text(
            encoding="utf-8"
        )
        ids = [f"card-{card['id']}" for card in yaml.safe_load(text)]
        last = soups[page].select("article section")[-1]
        assert [card["id"] for card in last.select("details")] == ids


def test_the_page_of_all_cards_links_to_the_deck(book, soups):
    links = soups["book/recall.html"].select("article a[href$='.apkg']")
    paths = [book / urljoin("book/", link["href"]) for link in links]
    assert [path.is_file() for path in paths] == [True]


def defined_in(code: str) -> set[str]:
    """The names that the statements of a cell define."""
    names = set()
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = getattr(node, "targets", None) or [node.target]
            names |= {t.id for t in targets if isinstance(t, ast.Name)}
    return names


def test_an_entry_of_the_reference_leads_to_the_cell_that_defines_it(
    soups, chapters
):
    wrong = []
    for page in chapters:
        module = f"vit_lessons.{Path(page).stem[3:]}"
        for entry in soups["book/api.html"].select(f"dt[id^='{module}.']"):
            name = entry["id"].removeprefix(f"{module}.")
            if "." in name:  # a method
                continue
            link = entry.find_next_sibling("dd").find(
                "a", href=re.compile("#cell-")
            )
            address, anchor = urldefrag(urljoin("book/", link["href"]))
            cell = soups[address].find(id=anchor).select_one(".cell_input")
            if address != page or name not in defined_in(cell.get_text()):
                wrong.append(entry["id"])
    assert wrong == []


def test_the_ledger_shows_every_claim_with_its_links(soups):
    text = (ROOT / "book" / "claims.yml").read_text(encoding="utf-8")
    page = soups["book/claims.html"]
    for claim in yaml.safe_load(text):
        entry = page.find(id=f"claim-{claim['id']}")
        mark = {"unseen": "not seen here"}.get(
            claim["verdict"], claim["verdict"]
        )
        assert entry.select_one(".verdict").get_text() == mark
        links = [link["href"] for link in entry.select("a")]
        pages = [
            f"../notebooks/{name}.html" if name[0].isdigit() else f"{name}.html"
            for name in claim["pages"]
        ]
        assert [link for link in links if link in pages] == pages
        cells = [link for link in links if "#cell-" in link]
        assert len(cells) == ("cell" in claim)
        if cells:
            stem = claim["cell"].partition(":")[0]
            assert cells[0].startswith(f"../notebooks/{stem}.html#cell-")


def test_a_chapter_leads_to_its_claims(soups, chapters):
    for page in chapters:
        links = [link["href"] for link in soups[page].select("article a")]
        anchor = f"#claims-{Path(page).stem.replace('_', '-')}"
        assert f"../book/claims.html{anchor}" in links


def test_the_glossary_shows_both_languages(soups):
    text = (ROOT / "book" / "glossary.yml").read_text(encoding="utf-8")
    shown = {
        entry.select_one("[lang='zh-Hans']").get_text(): entry.get_text()
        for entry in soups["book/glossary.html"].select(".glossary dt")
    }
    for entry in yaml.safe_load(text):
        assert entry["term"] in shown[entry["chinese"]]


def test_the_first_use_of_a_term_in_a_chapter_leads_to_the_glossary(
    soups, chapters
):
    text = (ROOT / "book" / "glossary.yml").read_text(encoding="utf-8")
    terms = yaml.safe_load(text)
    silent = {e["term"] for e in terms if not e.get("link", True)}
    owner = {
        form.lower(): entry["term"]
        for entry in terms
        for form in (entry["term"], *entry.get("forms", ()))
    }
    forms = "|".join(
        re.escape(form) for form in sorted(owner, key=len, reverse=True)
    )
    word = re.compile(rf"(?<![\w-])(?:{forms})(?![\w-])", re.IGNORECASE)
    wrong = []
    for page in (*chapters, "book/paper.html", "book/choosing_a_model.html"):
        uses = {}
        for paragraph in soups[page].select("article p"):
            for piece in paragraph.find_all(string=True):
                if piece.find_parent(["code", "pre", "svg"]) or (
                    piece.find_parent(class_="math")
                ):
                    continue
                link = piece.find_parent("a")
                marked = link and "glossary-term" in link.get("class", ())
                if link and not marked:
                    continue
                for match in word.finditer(re.sub(r"\s+", " ", piece)):
                    term = owner[match[0].lower()]
                    uses.setdefault(term, []).append(bool(marked))
        wrong += [
            (page, term, marks)
            for term, marks in uses.items()
            if marks != [term not in silent] + [False] * (len(marks) - 1)
        ]
    assert wrong == []


def test_the_table_of_costs_has_the_counted_numbers(soups):
    """12 (12 D^2 + 13 D) + ... for ViT-B/16, by hand: 86,567,656."""
    rows = {
        tuple(cell.get_text() for cell in row.select("td")[:3])
        for row in soups["book/choosing_a_model.html"].select("tr")
    }
    assert ("ViT-B/16", "86.6", "17.6") in rows
    assert ("ResNet-50", "25.6", "4.1") in rows


def test_the_start_page_says_how_long_and_how_hard_a_chapter_is(
    soups, chapters
):
    rows = soups["book/index.html"].select("tr:has(.ready)")
    assert len(rows) == len(chapters)
    for row in rows:
        effort = row.select_one(".effort").get_text()
        assert re.fullmatch(r"★{1,3}, \d+ \+ \d+ min", effort)
        assert row.select_one(".built").get_text().endswith(".")


# --- The pages in a browser -------------------------------------------


def test_axe_finds_nothing(visits):
    found = {page: seen.axe for page, seen in visits.items() if seen.axe}
    assert found == {}


def test_the_console_is_silent(visits):
    said = {page: seen.console for page, seen in visits.items() if seen.console}
    assert said == {}


def test_nothing_is_requested_from_another_host(visits, site):
    foreign = {
        url
        for seen in visits.values()
        for url in seen.urls
        if not url.startswith((site, "data:"))
    }
    assert foreign == set()


def test_no_page_is_wider_than_the_screen(visits):
    beyond = {page: seen.beyond for page, seen in visits.items()}
    assert {page: pixels for page, pixels in beyond.items() if pixels} == {}


def test_a_page_of_text_weighs_less_than_250_kB(visits, book, site):
    urls = set(visits["book/bibliography.html", "desktop"].urls)
    files = [book / urlsplit(url).path.lstrip("/") for url in urls]
    weights = {
        file.name: len(gzip.compress(file.read_bytes())) for file in files
    }
    assert sum(weights.values()) < 250_000, weights


@pytest.fixture
def card(tab, site):
    """The first recall card, seen on the page of all cards."""
    tab.goto(f"{site}book/recall.html")
    return tab.locator(".recall-card").first


def test_a_recall_card_turns_by_a_click(card):
    card.locator("summary").click()
    card.locator(".recall-answer").wait_for(state="visible", timeout=2000)


def test_a_recall_card_turns_by_the_keyboard(card):
    card.locator("summary").press("Enter")
    card.locator(".recall-answer").wait_for(state="visible", timeout=2000)


def test_a_recall_card_turns_back(card):
    card.locator("summary").click()
    card.locator("summary").press("Space")
    card.locator(".recall-answer").wait_for(state="hidden", timeout=2000)


def test_a_recall_card_turns_without_scripts(browser, site):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f"{site}book/recall.html")
    tab.locator(".recall-card summary").first.click()
    answer = tab.locator(".recall-answer").first
    answer.wait_for(state="visible", timeout=2000)
    context.close()


def test_every_answer_is_on_the_printed_page(card, tab):
    tab.emulate_media(media="print")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    answers = tab.locator(".recall-answer")
    assert all(answer.is_visible() for answer in answers.all())


CUT = """(selector) => [...document.querySelectorAll(selector)]
    .filter((box) => !box.parentElement.closest(".katex"))
    .filter((box) => box.scrollWidth > box.clientWidth)
    .map((box) => box.outerHTML.slice(0, 90))"""


@pytest.mark.parametrize("size", SIZES)
def test_nothing_in_an_open_card_is_cut(card, tab, size):
    width, height = SIZES[size]
    tab.set_viewport_size({"width": width, "height": height})
    tab.evaluate(
        "document.querySelectorAll('.recall-card').forEach(c => c.open = true)"
    )
    tab.evaluate("document.fonts.ready")
    assert tab.evaluate(CUT, ".recall-card, .recall-card *") == []


@pytest.mark.parametrize("size", SIZES)
def test_an_error_is_not_cut(tab, site, chapters, size):
    width, height = SIZES[size]
    tab.set_viewport_size({"width": width, "height": height})
    errors, cut = 0, []
    for page in chapters:
        tab.goto(site + page)
        errors += tab.locator(".traceback pre").count()
        cut += tab.evaluate(CUT, ".traceback pre, .stderr pre")
    assert errors
    assert cut == []


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_what_goes_on_beyond_the_edge_of_a_phone_shows_it(tab, site, mode):
    """A shadow lies at the right edge until the box is at its end."""
    image = pytest.importorskip("PIL.Image")
    tab.emulate_media(color_scheme=mode)
    tab.set_viewport_size({"width": 280, "height": 844})

    def shadow(box) -> float:
        """Difference of gray between the edge and a place further in."""
        png = io.BytesIO(box.screenshot(animations="disabled"))
        gray = image.open(png).convert("L")
        at = gray.width - 3
        edge, inside = (
            gray.crop((x, 2, x + 2, gray.height - 2)).resize((1, 1), 4)
            for x in (at, at - 20)
        )
        return abs(edge.getpixel((0, 0)) - inside.getpixel((0, 0)))

    tab.goto(f"{site}book/notation.html")
    tab.add_style_tag(
        content=".bd-article * { color: transparent !important }"
        ".bd-article :is(code, table, table *)"
        "{ border-color: transparent !important }"
        ".bd-article table code { background: none !important }"
    )
    for kind in (".formula", ".pst-scrollable-table-container", "pre"):
        box = tab.locator(f".bd-article {kind}").filter(visible=True)
        wide = next(
            one
            for one in box.all()
            if one.evaluate("box => box.scrollWidth > box.clientWidth + 16")
        )
        assert shadow(wide) > 20, kind
        wide.evaluate("box => { box.scrollLeft = box.scrollWidth }")
        assert shadow(wide) < 5, kind


def test_all_that_scrolls_sideways_on_a_phone_can_show_it(tab, site, soups):
    tab.set_viewport_size({"width": 390, "height": 844})
    bare = {}
    for page in soups:
        tab.goto(site + page)
        bare[page] = tab.evaluate(
            """[...document.querySelectorAll(".bd-article *")]
            .filter((box) => box.scrollWidth > box.clientWidth)
            .map((box) => [box, getComputedStyle(box)])
            .filter(([_, style]) => /auto|scroll/.test(style.overflowX))
            .filter(([_, style]) => !/local/.test(style.backgroundAttachment))
            .map(([box]) => box.outerHTML.slice(0, 90))"""
        )
    assert bare == {page: [] for page in soups}


def test_a_figure_in_dark_mode_is_one_white_sheet(tab, site, chapters):
    tab.emulate_media(color_scheme="dark")
    for page in chapters:
        tab.goto(site + page)
        tab.wait_for_function("document.documentElement.dataset.theme=='dark'")
        sheets = tab.evaluate(
            """[...document.querySelectorAll("div.cell_output img")]
            .map((image) => getComputedStyle(image))
            .map((style) => style.backgroundColor + " " + style.filter)"""
        )
        assert set(sheets) == {"rgb(255, 255, 255) none"}, page


@pytest.mark.parametrize("size", SIZES)
def test_words_in_the_picture_are_large_enough(tab, site, size):
    width, height = SIZES[size]
    tab.set_viewport_size({"width": width, "height": height})
    tab.goto(f"{site}book/index.html")
    sizes = tab.evaluate(
        """[...document.querySelectorAll(".model-picture text")]
        .filter((text) => text.checkVisibility())
        .map((text) => parseFloat(getComputedStyle(text).fontSize)
          * text.getScreenCTM().a)"""
    )
    assert min(sizes) >= 11
