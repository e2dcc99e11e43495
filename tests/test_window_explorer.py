"""The window explorer: what is in its HTML, and what a browser makes of it.

Every test in a browser also holds that the page writes nothing to the console
and loads nothing.
"""

import json
import re
from itertools import product
from math import hypot
from pathlib import Path

import pytest
import torch
from browsers import (
    BAD_NAMES,
    INSERT,
    PAGE,
    Figures,
    ids_in,
    is_in_the_wheel,
    on_both,
    on_phone,
)

from vit_lessons.plotting import PALETTE
from vit_lessons.swin_windows import WindowAttention, shift_mask
from vit_lessons.window_explorer import WindowExplorer, window_explorer

ROOT = Path(__file__).parents[1] / "vit_lessons"
FILES = [f"window_explorer.{kind}" for kind in ("css", "html", "js")]
SIZES = [
    (8, 4, 2),
    (8, 4, (2, 0)),
    (8, 4, (0, 3)),
    (6, 3, 0),
    (6, (3, 2), 1),
    ((6, 9), 3, 1),
    ((8, 12), (2, 4), (1, 3)),
    ((7, 9), 4, (2, 1)),
    ((5, 6), 4, 2),
    (5, 4, 3),
    ((4, 8), 4, 2),
    ((3, 10), (5, 4), (2, 3)),
    ((10, 3), (4, 7), (1, 6)),
    (4, 4, 2),
    (3, 7, 3),
    (1, 1, 0),
    (12, 6, 3),
    (8, 2, 1),
]


class Truth:
    """Who sees whom, by a rule that knows no mask: cuts on the map."""

    def __init__(self, grid, window=4, shift=2):
        def pair(size):
            return size if isinstance(size, tuple) else (size, size)

        self.grid, self.window = pair(grid), pair(window)
        sides = list(zip(self.grid, self.window, strict=True))
        self.size = tuple(-(-g // m) * m for g, m in sides)
        sides = zip(pair(shift), self.window, self.size, strict=True)
        self.shift = tuple(s if g > m else 0 for s, m, g in sides)
        self.padded = self.grid != self.size
        self.titles = [
            title
            for title, needed in (
                ("Usual windows", True),
                ("Shifted windows", any(self.shift)),
                ("Padding", self.padded),
                *(
                    (title, any(self.shift))
                    for title in ("Roll", "Cut", "Mask", "Back home")
                ),
            )
            if needed
        ]
        self.cells = list(product(*map(range, self.size)))
        self.tokens = list(product(*map(range, self.grid)))

    def number(self, cell):
        return self.tokens.index(cell) if cell in self.tokens else -1

    def place(self, cell, title):
        if title not in ("Roll", "Cut", "Mask"):
            return cell
        return tuple(
            (a - s) % g
            for a, s, g in zip(cell, self.shift, self.size, strict=True)
        )

    def is_shown(self, cell, title):
        return cell in self.tokens or title in (
            "Padding",
            "Roll",
            "Cut",
            "Mask",
        )

    def region(self, cell, title):
        """What the cuts of a block enclose, without a roll."""
        shift = (0, 0) if title == "Usual windows" else self.shift
        sides = zip(cell, shift, self.window, strict=True)
        return tuple((a - s) // m for a, s, m in sides)

    def company(self, cell, title):
        """The cells that it sees, and those of its window that are hidden."""
        around = [c for c in self.cells if self.is_shown(c, title)]
        mine = self.region(cell, title)
        seen = [c for c in around if self.region(c, title) == mine]
        if title not in ("Cut", "Mask", "Back home"):
            return seen, []

        def rolled(c):
            place = zip(self.place(c, "Roll"), self.window, strict=True)
            return tuple(a // m for a, m in place)

        mates = [c for c in around if rolled(c) == rolled(cell)]
        assert set(seen) <= set(mates)
        return seen, [c for c in mates if c not in seen]

    def list(self, cells):
        numbers = sorted(self.number(c) for c in cells if c in self.tokens)
        starts = [n for n in numbers if n - 1 not in numbers]
        ends = [n for n in numbers if n + 1 not in numbers]
        runs = ", ".join(
            str(a) if a == b else f"{a}-{b}"
            for a, b in zip(starts, ends, strict=True)
        )
        empty = len(cells) - len(numbers)
        parts = [f"{count(len(numbers), 'token')}: {runs}"] * bool(numbers)
        parts += [count(empty, "empty cell")] * bool(empty)
        return ", and ".join(parts) or "nothing"

    def sentence(self, cell, title, *, bare=False):
        seen, hidden = self.company(cell, title)
        who = f"{self.number(cell)} (row {cell[0]}, column {cell[1]})"
        if title not in ("Cut", "Mask", "Back home"):
            return f"Token {who} sees {self.list(seen)}."
        if not bare:
            return (
                f"Token {who} sees {self.list(seen)}. In its window the mask "
                f"hides {self.list(hidden)}."
            )
        text = (
            f"Without the mask, token {who} sees {self.list(seen + hidden)}. "
            f"The mask would hide {self.list(hidden)}."
        )
        leaks = [c for c in hidden if c in self.tokens]
        if leaks:
            far = max(
                leaks, key=lambda c: hypot(c[0] - cell[0], c[1] - cell[1])
            )
            down, right = (abs(a - b) for a, b in zip(far, cell, strict=True))
            text += (
                f" The farthest of them, token {self.number(far)}, is "
                f"{count(down, 'row')} and {count(right, 'column')} away on "
                "the map."
            )
        return text


def plain(text):
    """With a hyphen for a dash at which no line breaks."""
    return text.replace("\u2013\u2060", "-")


def count(n, what):
    return f"{n} {what}{'s' * (n != 1)}"


# --- The HTML ------------------------------------------------------------


def data_of(html):
    (data,) = re.search(r'(?m)^\}\)\("windows", (.+)\);$', html).groups()
    return json.loads(data)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_data_say_who_sees_whom_as_cuts_on_the_map_do(sizes):
    truth, data = Truth(*sizes), data_of(window_explorer(*sizes).html)
    tables, steps = data["tables"], data["steps"]
    assert [step["title"] for step in steps] == truth.titles
    assert tables["number"] == [truth.number(c) for c in truth.cells]
    for step in steps:
        title = step["title"]
        place, window, sees = (
            tables[step[key]] for key in ("place", "window", "sees")
        )
        for i, cell in enumerate(truth.cells):
            y, x = truth.place(cell, title)
            assert place[i] == y * data["columns"] + x
            if not truth.is_shown(cell, title):
                assert not step["padded"]
                continue
            found = [], []
            for j, other in enumerate(truth.cells):
                if truth.is_shown(other, title) and window[j] == window[i]:
                    found[sees[j] != sees[i]].append(other)
            assert found == truth.company(cell, title)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_data_say_who_sees_whom_as_the_layer_does(sizes):
    """A change in one token changes the outputs of those that see it."""
    truth, data = Truth(*sizes), data_of(window_explorer(*sizes).html)
    torch.manual_seed(0)
    layer = WindowAttention(4, 2, *sizes[1:]).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    count = len(truth.tokens)
    x = torch.randn(1, *truth.grid, 4).double()
    changes = torch.eye(count).view(count, *truth.grid, 1)
    changed = layer(x + changes * torch.randn_like(x)) - layer(x)
    sees = changed.detach().flatten(1, 2).abs().amax(dim=-1).T > 1e-12
    tables = data["tables"]
    numbers = torch.tensor(tables["number"])
    region = torch.tensor(tables[data["steps"][-1]["sees"]])[numbers >= 0]
    assert torch.equal(sees, region[:, None] == region)


def drawn(path):
    """The sides of cells along an SVG path: (row, column, "h" or "v")."""
    lines = re.findall(r"M(\d+) (\d+)([hv])(\d+)", path)
    assert "".join("M{} {}{}{}".format(*line) for line in lines) == path
    return {
        (int(y) + i * (way == "v"), int(x) + i * (way == "h"), way)
        for x, y, way, length in lines
        for i in range(int(length))
    }


def outlined(truth, title, group):
    """The sides between cells of unequal groups."""
    at = {
        truth.place(c, title): group(c)
        for c in truth.cells
        if truth.is_shown(c, title)
    }
    borders = set()
    for y, x in product(*(range(size + 1) for size in truth.size)):
        if at.get((y, x)) != at.get((y - 1, x)):
            borders.add((y, x, "h"))
        if at.get((y, x)) != at.get((y, x - 1)):
            borders.add((y, x, "v"))
    return borders


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_lines_part_the_windows_and_dashes_the_regions_of_the_mask(sizes):
    truth = Truth(*sizes)
    for step in data_of(window_explorer(*sizes).html)["steps"]:
        title = step["title"]

        def region(cell, title=title):
            return truth.region(cell, title)

        def window(cell):
            place = zip(truth.place(cell, "Cut"), truth.window, strict=True)
            return tuple(a // m for a, m in place)

        lines = window if title in ("Cut", "Mask") else region
        dashes = outlined(truth, title, region) if title == "Mask" else set()
        found = [drawn(step["lines"]), drawn(step["dashes"])]
        assert found == [outlined(truth, title, lines), dashes]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_without_a_choice_the_token_looks_from_which_most_is_hidden(sizes):
    truth, data = Truth(*sizes), data_of(window_explorer(*sizes).html)
    hidden = [
        sum(other in truth.tokens for other in truth.company(c, "Mask")[1])
        for c in truth.tokens
    ]
    query = truth.tokens[hidden.index(max(hidden))]
    assert truth.cells[data["query"]] == query


def texts(*sizes):
    steps = data_of(window_explorer(*sizes).html)["steps"]
    return {s["title"]: s["text"].replace("\u00d7", "x") for s in steps}


def test_each_step_has_a_sentence():
    assert texts((8, 12), 4, 2) == {
        "Usual windows": "A usual block cuts the map of 8 x 12 tokens into "
        "windows of 4 x 4, from the top left.",
        "Shifted windows": "A shifted block moves the cuts down by 2 and right "
        "by 2. That makes 12 windows of unequal size instead of 6.",
        "Roll": "Roll the map up by 2 and to the left by 2. The first rows and "
        "columns come back at the bottom and at the right.",
        "Cut": "Cut again: 6 windows of 4 x 4, so one tensor holds them. Those "
        "at the bottom and at the right join opposite borders of the map.",
        "Mask": "The mask lets tokens of a window see each other only inside "
        "the dashed lines, where they are neighbors on the map.",
        "Back home": "Put the windows together and roll back. Each token saw "
        "its window of step 2, and all windows had the same size.",
    }


def test_the_sentences_name_only_the_axis_that_shifts():
    told = texts((4, 8), 4, (2, 1))
    assert told["Usual windows"].endswith(
        "from the top left. One window covers all rows: they are not shifted."
    )
    assert "the cuts right by 1. That makes 3" in told["Shifted windows"]
    assert told["Roll"] == (
        "Roll the map to the left by 1. The first columns come back at the "
        "right."
    )
    assert "Those at the right join" in told["Cut"]
    assert "down by 3. That" in texts(8, 4, (3, 0))["Shifted windows"]


def test_the_sentences_tell_of_padding():
    told = texts((6, 7), (5, 4), (3, 0))
    assert told["Shifted windows"] == (
        "A shifted block moves the cuts down by 3. That makes 4 windows of "
        "unequal size instead of 4."
    )
    assert told["Padding"] == (
        "Windows of 5 x 4 do not tile 6 x 7 tokens. Empty cells fill the map "
        "up to 10 x 8. They are zeros, and tokens see them too."
    )
    assert "roll back. The empty cells are cut off. Each" in told["Back home"]


@pytest.mark.parametrize(
    "sizes", [(8, 4, 2), (16, 8, 4), (15, 2, 1), (16, (1, 2), (0, 1))], ids=str
)
def test_a_figure_takes_less_than_45_kB(sizes):
    assert len(window_explorer(*sizes).html) < 45_000


def test_colors_are_those_of_the_palette():
    for name in FILES:
        text = (ROOT / name).read_text("utf-8")
        assert set(re.findall("#[0-9A-Fa-f]{6}", text)) <= set(PALETTE)


def test_no_class_is_one_of_the_book():
    """Its styles would reach into the figure."""
    book = ROOT.parent / "book/assets/css/book.css"
    classes = re.findall(r"\.([a-z][\w-]*)", book.read_text("utf-8"))
    html = window_explorer(7).html
    mine = re.findall(r'class="([^"]+)"', html) + re.findall(
        r'classList.add\("(.+?)"\)', html
    )
    assert set(" ".join(mine).split()) & set(classes) == set()


def test_the_same_input_gives_the_same_bytes():
    assert window_explorer().html == window_explorer(8, 4, 2).html


def test_every_id_begins_with_the_name():
    html = window_explorer(name="mine").html
    ids = ids_in(html)
    assert ids[0] == "mine"
    assert all(re.fullmatch(r"mine(-\w+)?", one) for one in ids)
    assert len(set(ids)) == len(ids)
    assert '})("mine", {' in html


def test_no_address_is_in_the_html():
    assert re.findall(r"//[\w.]|@import", window_explorer().html) == []


def test_a_notebook_shows_the_html_and_compares_a_fixed_text():
    shown = window_explorer()
    assert isinstance(shown, WindowExplorer)
    assert shown._repr_html_() == shown.html
    assert repr(shown) == "WindowExplorer(...)"


def test_a_wheel_holds_the_three_files():
    assert all(is_in_the_wheel(name) for name in FILES)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        (r"grid_size must be a positive int .* got 0$", {"grid_size": 0}),
        (r"window_size must be .* got \(4, 0\)", {"window_size": (4, 0)}),
        (r"shift_size must be .* got 4 for \(4, 4\)", {"shift_size": 4}),
        (
            r"grid_size must be at most 16 x 16 when padded, got \(16, 15\), "
            r"padded to \(20, 15\)",
            {"grid_size": (16, 15), "window_size": 5},
        ),
        (r"grid_size .* got \(8, 17\)", {"grid_size": (8, 17)}),
        ("query must be in 0..63, got 64", {"query": 64}),
        ("query must be in 0..63, got -1", {"query": -1}),
        ("description must not be empty, got ' '", {"description": " "}),
        *(
            (f"name must .*{re.escape(repr(name))}", {"name": name})
            for name in BAD_NAMES
        ),
    ],
)
def test_what_does_not_fit_is_refused(message, arguments):
    with pytest.raises(ValueError, match=message):
        window_explorer(**arguments)


# --- In a browser ----------------------------------------------------------


class Shown(Figures):
    def show(self, *explorers, scheme="light", step=None):
        super().show(*explorers, scheme=scheme)
        if step:
            self.go(step)

    def go(self, title):
        options = self.tab.locator("figure select").first.locator("option")
        labels = options.all_inner_texts()
        (label,) = [one for one in labels if one.endswith(f". {title}")]
        self.find("select").select_option(label=label)

    @property
    def step(self):
        chosen = "select => select.selectedOptions[0].textContent"
        return self.find("select").evaluate(chosen).split(". ")[1]

    @property
    def step_text(self):
        return self.find(".now p").inner_text().replace("\u00d7", "x")

    @property
    def text(self):
        return plain(self.find(".said p").inner_text())

    @property
    def looks(self):
        return self.marked("looks")

    def marked(self, mark):
        """Numbers of the cells with a mark."""
        found = self.find(".map").locator(f".{mark}").all_text_contents()
        return [int(number or -1) for number in found]

    def token(self, number):
        cells = self.find(".map").locator("span")
        return cells.get_by_text(str(number), exact=True)

    def where(self, number):
        """Row and column in which a token is seen."""
        box = self.token(number).bounding_box()
        stage = self.find(".stage").bounding_box()
        return (
            round((box["y"] - stage["y"]) / box["height"]),
            round((box["x"] - stage["x"]) / box["width"]),
        )


# Clicks every token, and returns what is said and marked then.
EVERY_TOKEN = """(map) => [...map.children].flatMap((cell) => {
    if (!cell.textContent) return [];
    cell.click();
    const marked = (mark) => [...map.children].flatMap((other, i) =>
        other.classList.contains(mark) ? [i] : []);
    const said = document.querySelector(".said p").textContent;
    return [[said, ...["looks", "seen", "barred", "leaks"].map(marked)]];
})"""


@pytest.mark.parametrize("bare", [False, True], ids=["masked", "bare"])
@pytest.mark.parametrize(
    "sizes", [(8, 4, 2), ((5, 6), 4, (3, 1)), ((3, 6), 3, 1)], ids=str
)
def test_words_and_marks_tell_of_every_token_in_every_step(page, sizes, bare):
    truth = Truth(*sizes)
    page.show(window_explorer(*sizes), step="Mask")
    page.find("input").set_checked(bare)
    for title in truth.titles:
        page.go(title)
        found = page.find(".map").evaluate(EVERY_TOKEN)
        assert len(found) == len(truth.tokens)
        for cell, (said, *marks) in zip(truth.tokens, found, strict=True):
            wanted = truth.sentence(cell, title, bare=bare)
            assert plain(said) == wanted
            seen, hidden = truth.company(cell, title)
            groups = [[cell], seen, [] if bare else hidden, []]
            groups[3] = hidden if bare else []
            assert marks == [[truth.cells.index(c) for c in g] for g in groups]


def test_some_sentences_as_they_are_read(page):
    page.show(window_explorer(query=27))
    assert page.text == (
        "Token 27 (row 3, column 3) sees 16 tokens: 0-3, 8-11, 16-19, 24-27."
    )
    page.go("Mask")
    assert page.text == (
        "Token 27 (row 3, column 3) sees 16 tokens: 18-21, 26-29, 34-37, "
        "42-45. In its window the mask hides nothing."
    )
    page.token(0).click()
    page.find("input").check()
    assert page.text == (
        "Without the mask, token 0 (row 0, column 0) sees 16 tokens: 0-1, "
        "6-9, 14-15, 48-49, 54-57, 62-63. The mask would hide 12 tokens: "
        "6-7, 14-15, 48-49, 54-57, 62-63. The farthest of them, token 63, is "
        "7 rows and 7 columns away on the map."
    )


@on_both
@pytest.mark.parametrize("sizes", [(8, 4, 2), ((5, 6), 4, (3, 1))], ids=str)
def test_tokens_are_seen_where_the_step_puts_them(page, sizes):
    truth = Truth(*sizes)
    page.show(window_explorer(*sizes))
    for title in truth.titles:
        page.go(title)
        for number in (0, 7, len(truth.tokens) - 1):
            cell = truth.tokens[number]
            assert page.where(number) == truth.place(cell, title)
        found = page.find(".map").evaluate(
            """(map) => [...map.querySelectorAll(".empty")].map(
                (cell) => getComputedStyle(cell).visibility)"""
        )
        seen = "visible" if truth.is_shown(None, title) else "hidden"
        assert found == [seen] * (len(truth.cells) - len(truth.tokens))


def test_what_comes_around_has_marks_of_its_own(page):
    page.show(window_explorer((8, 4), 4, (1, 3)))
    assert page.marked("from-top") == [0, 1, 2, 3]
    assert page.marked("from-left") == []  # one window covers all columns
    page.show(window_explorer((4, 8), 2, (0, 1)))
    assert page.marked("from-top") == []
    assert page.marked("from-left") == [0, 8, 16, 24]
    images = {
        page.token(number).evaluate("e => getComputedStyle(e).backgroundImage")
        for number in (1, 16)
    }
    assert len(images) == 2


def test_the_key_explains_what_can_be_seen(page):
    def key():
        entries = page.find(".key").locator("span:visible")
        return [one.strip() for one in entries.all_inner_texts()]

    masked = ["looks", "is seen", "hidden by the mask", "leaks in"]
    page.show(window_explorer())
    assert key() == [*masked, "first rows", "first columns"]
    page.show(window_explorer((7, 4), 4, 1))
    assert key() == [*masked, "first rows", "empty cell"]
    page.show(window_explorer(6, 3, 0))
    assert key() == ["looks", "is seen"]


BLUE, RED = ((*bytes.fromhex(PALETTE[i][1:]), 255) for i in (0, 1))


@pytest.mark.parametrize("sizes", [(8, 4, 2), ((5, 6), 4, (3, 1))], ids=str)
def test_the_picture_of_the_pairs_is_the_mask_of_the_window(page, sizes):
    truth = Truth(*sizes)
    mask = shift_mask(truth.size, truth.window, truth.shift)
    across = truth.size[1] // truth.window[1]
    page.show(window_explorer(*sizes), step="Mask")
    for cell in (truth.tokens[0], truth.tokens[-1]):
        page.token(truth.number(cell)).click()
        y, x = truth.place(cell, "Mask")
        m1, m2 = truth.window
        allowed = (mask[y // m1 * across + x // m2] == 0).flatten().tolist()
        page.find("input").uncheck()
        clear = (0, 0, 0, 0)
        assert page.colors == [BLUE if may else clear for may in allowed]
        page.find("input").check()
        assert page.colors == [BLUE if may else RED for may in allowed]
        frame = page.find(".one").bounding_box()
        canvas = page.find("canvas").bounding_box()
        middle = frame["y"] + frame["height"] / 2 - canvas["y"]
        row = int(middle / canvas["height"] * m1 * m2)
        assert row == y % m1 * m2 + x % m2


def test_all_pairs_of_an_irregular_window_see_each_other(page):
    page.show(window_explorer(query=2), step="Shifted windows")
    assert page.colors == [BLUE] * 8**2  # of 2 x 4 tokens


def test_buttons_go_on_and_back_and_stop_at_the_ends(page):
    page.show(window_explorer(7))
    titles = Truth(7).titles
    back, on = page.find(".back"), page.find(".next")
    for title in titles:
        assert page.step == title
        assert (
            back.get_attribute("aria-disabled")
            == str(title == titles[0]).lower()
        )
        assert (
            on.get_attribute("aria-disabled")
            == str(title == titles[-1]).lower()
        )
        assert page.step_text == texts(7)[title]
        on.click(force=True)  # for playwright, aria-disabled is disabled
    assert page.step == titles[-1]
    for title in titles[::-1]:
        assert page.step == title
        back.click(force=True)
    assert page.step == titles[0]


@pytest.mark.parametrize("where", ["select", ".back", ".next"])
def test_keys_go_on_and_back_and_stop_at_the_ends(page, where):
    page.show(window_explorer())
    first, second, *_, almost, last = Truth(8).titles
    page.find(where).focus()
    for key, title in (
        ("ArrowLeft", first),
        ("ArrowRight", second),
        ("End", last),
        ("ArrowRight", last),
        ("ArrowLeft", almost),
        ("Home", first),
        ("Control+ArrowRight", first),
    ):
        page.tab.keyboard.press(key)
        assert page.step == title


@on_phone
def test_a_tap_goes_on_and_chooses_a_token(page):
    page.show(window_explorer())
    page.find(".next").tap()
    assert page.step == "Shifted windows"
    page.token(20).tap()
    assert page.looks == [20]
    assert page.text == Truth(8).sentence((2, 4), "Shifted windows")


def test_a_click_chooses_a_token_but_no_empty_cell(page):
    page.show(window_explorer(7), step="Mask")
    page.token(20).click()
    assert page.looks == [20]
    page.find(".map .empty").click()
    assert page.looks == [20]


def press(page, keys):
    looks = []
    for key in keys.split():
        name = key if key in ("Home", "End") else f"Arrow{key}"
        page.tab.keyboard.press(name)
        looks += page.looks
    return looks


def test_keys_choose_the_next_token_and_stop_at_the_edges(page):
    page.show(window_explorer((4, 6), 2, 1, query=7))
    page.find(".stage").focus()
    keys = "Up Up Left Left Down End Right Down Down Down Home"
    assert press(page, keys) == [1, 1, 0, 0, 6, 11, 11, 17, 23, 23, 18]


def test_keys_follow_what_is_seen_after_the_roll(page):
    page.show(window_explorer((4, 6), 2, 1, query=7), step="Roll")
    page.find(".stage").focus()
    keys = "Up Left End Left Home Down Down Down"
    assert press(page, keys) == [7, 7, 6, 11, 7, 13, 19, 1]


def test_keys_cross_the_empty_cells(page):
    page.show(window_explorer(5, 4, 2, query=22), step="Roll")
    page.find(".stage").focus()
    assert press(page, "Right Right Right Right") == [23, 24, 20, 21]
    assert press(page, "Down Down Up Home") == [1, 6, 1, 2]


def test_a_key_with_control_is_left_to_the_browser(page):
    page.show(window_explorer(query=5))
    page.find(".stage").press("Control+ArrowRight")
    assert page.looks == [5]


def test_the_choice_without_the_mask_is_open_where_there_is_a_mask(page):
    page.show(window_explorer(7))
    for title in Truth(7).titles:
        page.go(title)
        masked = title in ("Cut", "Mask", "Back home")
        assert page.find("input").is_enabled() == masked
    assert page.tab.get_by_label("without the mask", exact=True).is_visible()
    page.show(window_explorer(8, 4, 0))
    assert page.find("input").is_hidden()


def test_the_keyboard_reaches_all_in_order_and_shows_where_it_is(page):
    page.show(window_explorer(), step="Mask")
    order = []
    page.find(".back").focus()
    for _ in range(5):
        name, outline = page.tab.evaluate(
            """() => [document.activeElement.classList[0]
            || document.activeElement.localName,
            getComputedStyle(document.activeElement).outlineStyle]"""
        )
        order.append(name)
        assert outline == "solid", name
        page.tab.keyboard.press("Tab")
    assert order == ["back", "select", "next", "stage", "input"]
    assert page.tab.get_by_role(
        "application",
        name="A map of tokens whose windows shift: arrow keys choose a token",
        exact=True,
    ).is_visible()


def test_changes_are_announced(page):
    page.show(window_explorer())
    for selector in (".now p", ".said p"):
        assert page.find(selector).get_attribute("aria-live") == "polite"
    assert page.find(".stage").get_attribute("aria-describedby") == (
        page.find(".said p").get_attribute("id")
    )
    assert page.find(".map").get_attribute("aria-hidden") == "true"


def test_two_explorers_do_not_disturb_each_other(page):
    page.show(window_explorer(name="one"), window_explorer(name="two"))
    two = page.tab.locator("#two .view")
    before = two.inner_html()
    page.go("Mask")
    page.token(42).click()
    page.find("input").check()
    assert two.inner_html() == before
    one = page.tab.locator("#one .view").inner_html()
    page.tab.locator("#two .next").click()
    page.tab.locator("#two .stage").press("ArrowRight")
    assert two.inner_html() != before
    assert page.tab.locator("#one .view").inner_html() == one


def test_it_works_where_a_notebook_inserts_it_even_twice(page):
    page.tab.set_content(PAGE.format(scheme="light", body=""))
    known = page.tab.evaluate("Object.keys(window)")
    for _ in range(2):
        page.tab.evaluate(INSERT, window_explorer(query=4).html)
    found = page.tab.locator(".said p:first-child").all_inner_texts()
    assert len(found) == 2
    assert found[0] == found[1] != ""
    new = set(page.tab.evaluate("Object.keys(window)")) - set(known)
    assert new <= {"windows"}  # every id is a name in the window


def test_a_saved_page_works(page):
    page.show(window_explorer(query=4), step="Mask")
    page.tab.set_content(page.tab.content())
    assert page.tab.locator(".longest").count() == 2
    assert page.step == "Usual windows"
    page.find(".next").click()
    page.token(7).click()
    assert page.text == Truth(8).sentence((0, 7), "Shifted windows")


@on_both
def test_nothing_moves_when_a_sentence_changes(page):
    page.show(window_explorer(7), step="Cut")
    page.find("input").check()
    places, heights = set(), set()
    for title in Truth(7).titles:
        page.go(title)
        for number in (0, 24, 48):
            page.token(number).evaluate("cell => cell.click()")
            heights.add(page.find(".said p").evaluate("p => p.scrollHeight"))
            places.add(page.find(".key").bounding_box()["y"])
            places.add(page.find(".stage").bounding_box()["y"])
    assert len(places) == 2


def test_tokens_fly_unless_the_reader_wants_less_motion(page):
    page.show(window_explorer())
    seconds = "cell => getComputedStyle(cell).transitionDuration"
    assert page.token(0).evaluate(seconds) == "0s"
    page.tab.emulate_media(reduced_motion="no-preference")
    assert page.token(0).evaluate(seconds) == "0.7s"
    page.tab.emulate_media(reduced_motion="reduce")


def test_without_scripts_the_step_of_the_mask_is_seen(browser):
    context = browser.new_context(java_script_enabled=False)
    page = Shown(context.new_page())
    page.show(window_explorer(7, query=0, description="Maps of <49> tokens"))
    truth = Truth(7)
    told = f"Maps of <49> tokens. {texts(7)['Mask']} Token 0 sees 0, 1, 7, 8."
    picture = page.tab.get_by_role("img", name=told, exact=True)
    assert picture.is_visible()
    assert page.find("noscript p").inner_text() == (
        f"{told} The steps need JavaScript."
    )
    for number in (0, 16, 48):
        cell = truth.tokens[number]
        assert page.where(number) == truth.place(cell, "Mask")
    seen, hidden = truth.company((0, 0), "Mask")
    assert page.marked("seen") == [truth.number(c) for c in seen]
    assert page.marked("barred") == [truth.number(c) for c in hidden]
    controls = "button, select, input, canvas, .said, .now"
    assert page.tab.locator(controls).count() == 7
    assert page.tab.locator(controls).filter(visible=True).count() == 0
    context.close()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_picture_without_scripts_is_that_of_the_script(page, sizes):
    explorer = window_explorer(*sizes)
    written = re.search('<div class="map".*?</div>', explorer.html)[0]
    page.show(explorer)
    last = Truth(*sizes).titles[-1]
    page.go("Mask" if "Mask" in Truth(*sizes).titles else last)

    def normal(html):
        html = re.sub(r"\s*([:;])\s*", r"\1", html).replace(';"', '"')
        found = re.findall('class="(.*?)" style="(.*?)">(.*?)<', html)
        return [(set(c.split()), style, text) for c, style, text in found]

    drawn = page.find(".map").evaluate("map => map.outerHTML")
    assert normal(drawn) == normal(written) != []


def test_a_description_is_text(page):
    page.show(window_explorer(description='<b id="x">"a" & b'))
    assert page.tab.locator("#x").count() == 0
    label = page.find(".stage").get_attribute("aria-label")
    assert label == '<b id="x">"a" & b: arrow keys choose a token'


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("title", ["Usual windows", "Mask"])
def test_axe_finds_nothing(page, scheme, title):
    explorers = window_explorer(7), window_explorer(7, name="two")
    page.show(*explorers, scheme=scheme, step=title)
    assert page.faults == []


def rgba(text):
    """A computed color: rgb(0, 114, 178) or color(srgb 0 0.4 0.7 / 0.5)."""
    numbers = [float(n) for n in re.findall(r"[\d.]+", text)]
    if text.startswith("rgb"):
        numbers[:3] = [n / 255 for n in numbers[:3]]
    return numbers if len(numbers) == 4 else [*numbers, 1.0]


def over(color, ground):
    *color, alpha = color
    pairs = zip(color, ground, strict=True)
    return [alpha * c + (1 - alpha) * g for c, g in pairs]


def luminance(color):
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in color
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


STYLES = """(map) => [...map.children].map((cell) => {
    const style = getComputedStyle(cell);
    return [cell.className, style.color, style.backgroundColor,
        style.backgroundImage];
})"""


@pytest.mark.parametrize("bare", [False, True], ids=["masked", "bare"])
@pytest.mark.parametrize(
    ("ink", "ground"),
    [
        ("#000000", "#ffffff"),
        ("#323232", "#ffffff"),
        ("#ced6dd", "#14181e"),
    ],
    ids=["black", "book", "dark book"],
)
def test_numbers_have_contrast_with_every_stripe_below_them(
    page, ink, ground, bare
):
    page.show(window_explorer(6, 4, 2, query=0), step="Mask")
    page.tab.add_style_tag(content=f"html {{ color: {ink} }}")
    page.find("input").set_checked(bare)
    ground = [byte / 255 for byte in bytes.fromhex(ground[1:])]
    for name, text, color, image in page.find(".map").evaluate(STYLES):
        below = [over(rgba(color), ground)]
        # In masked cells a cross, of two layers, is there to be on the number.
        layers = image.split("-gradient(")[3 if "barred" in name else 1 :]
        for layer in layers:
            stripe = re.search(r"rgba?\(.*?\)|color\(.*?\)", layer)[0]
            below += [over(rgba(stripe), one) for one in below]
        for one in below:
            dark, light = sorted(map(luminance, (rgba(text)[:3], one)))
            assert "empty" in name or light + 0.05 >= 4.5 * (dark + 0.05), name


@on_phone
@pytest.mark.parametrize("sizes", [(8, 4, 2), (15, 8, 4), ((2, 16), 2, 1)])
def test_a_phone_of_320_pixels_needs_no_sideways_scroll(page, sizes):
    page.show(window_explorer(*sizes))
    wide = "document.documentElement.scrollWidth"
    for title in Truth(*sizes).titles:
        page.go(title)
        assert page.tab.evaluate(wide) == 320
    for target in page.tab.locator("button, select, label:visible").all():
        box = target.bounding_box()
        assert min(box["width"], box["height"]) >= 44
    text = "e => e.scrollWidth <= e.clientWidth"
    assert all(e.evaluate(text) for e in page.tab.locator("button").all())
