"""A browser for the tests that need one, and figures in a page of it."""

import os
import re
import shutil
import tomllib
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def missing(what: str) -> None:
    """Skip for want of a tool; in CI every tool has to be there."""
    message = f"{what} is not installed"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def browser():
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        missing("a browser (Debian: apt-get install chromium)")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox"]
        )
        yield chromium
        chromium.close()


@contextmanager
def listening(tab, **listeners):
    """Call each listener at the event of its name."""
    for event, listener in listeners.items():
        tab.on(event, listener)
    try:
        yield
    finally:
        for event, listener in listeners.items():
            tab.remove_listener(event, listener)


RUN_AXE = """([options, twins]) => {
    const selector = twins ? `:not(${twins})` : "*";
    axe.configure({ rules: [{ id: "color-contrast", selector }] });
    return axe.run(options);
}"""


def axe_finds(tab, *, no_contrast_of: str = "", **options) -> list[dict]:
    """The faults that axe finds in a page.

    Args:
        no_contrast_of: Selector of elements whose contrast is not measured.
        options: Those of axe.run.
    """
    try:
        from axe_playwright_python.base import AXE_SCRIPT
    except ImportError:
        missing("axe-playwright-python")
    if not tab.evaluate("'axe' in window"):
        tab.evaluate(AXE_SCRIPT)
    options = {
        "resultTypes": ["violations"],
        "preload": False,  # loads style sheets once more
        "rules": {"label-content-name-mismatch": {"enabled": True}},
        **options,
    }
    return tab.evaluate(RUN_AXE, [options, no_contrast_of])["violations"]


# --- Figures in a page ---------------------------------------------------

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>A page</title>
<style>html {{ color-scheme: {scheme}; background: Canvas }}</style></head>
<body><main><h1>A page</h1><figure>Another figure</figure>
{body}<p>The end.</p></main></body></html>"""
BAD_NAMES = ("", "1st", "a b", 'a"', "a<b", "é", "a\n")

# Puts a figure in a page as a notebook does.
INSERT = """(html) => {
    const output = document.createElement("div");
    output.innerHTML = html;
    document.querySelector("main").append(output);
    for (const old of output.querySelectorAll("script")) {
        const script = document.createElement("script");
        script.textContent = old.textContent;
        old.replaceWith(script);
    }
}"""
PIXELS = """(canvas) => {
    const { width, height } = canvas;
    const copy = new OffscreenCanvas(width, height);
    const pen = copy.getContext("2d", { willReadFrequently: true });
    pen.drawImage(canvas, 0, 0);
    return [...pen.getImageData(0, 0, width, height).data];
}"""


class Figures:
    """Figures on a page, and what a reader sees of the first."""

    def __init__(self, tab):
        self.tab = tab

    def show(self, *figures, scheme="light"):
        self.tab.mouse.move(0, 0)
        body = "<p>and</p>".join(one.html for one in figures)
        self.tab.set_content(PAGE.format(scheme=scheme, body=body))

    def find(self, selector):
        return self.tab.locator(selector).first

    @property
    def colors(self):
        """The pixels of the canvas, (red, green, blue, alpha)."""
        data = self.find("canvas").evaluate(PIXELS)
        return [tuple(data[i : i + 4]) for i in range(0, len(data), 4)]

    @property
    def faults(self):
        """What axe finds: the rule, and the first element that breaks it."""
        found = axe_finds(self.tab)
        return [(one["id"], one["nodes"][0]["html"]) for one in found]


@pytest.fixture(scope="module")
def desktop(browser):
    context = browser.new_context(
        reduced_motion="reduce", viewport={"width": 900, "height": 700}
    )
    yield context.new_page()
    context.close()


@pytest.fixture(scope="module")
def phone(browser):
    context = browser.new_context(
        has_touch=True,
        is_mobile=True,
        reduced_motion="reduce",
        viewport={"width": 320, "height": 500},
    )
    yield context.new_page()
    context.close()


@pytest.fixture(params=["desktop"])
def page(request):
    """A page that says nothing and loads nothing, as the file's class Shown."""
    tab = request.getfixturevalue(request.param)
    heard = []
    with listening(
        tab,
        console=lambda message: heard.append(message.text),
        pageerror=lambda error: heard.append(str(error)),
        request=lambda request: heard.append(request.url),
    ):
        yield request.module.Shown(tab)
    assert [one for one in heard if not one.startswith("data:")] == []


on_phone = pytest.mark.parametrize("page", ["phone"], indirect=True)
on_both = pytest.mark.parametrize("page", ["desktop", "phone"], indirect=True)


def ids_in(html: str) -> list[str]:
    return re.findall(r'\sid="([^"]*)"', html)


def is_in_the_wheel(name: str) -> bool:
    """Whether a file of the package goes with it, where it is installed."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    patterns = tomllib.loads(text)["tool"]["setuptools"]["package-data"]
    return (ROOT / "vit_lessons" / name).is_file() and any(
        fnmatch(name, one) for one in patterns["vit_lessons"]
    )
