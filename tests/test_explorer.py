"""The attention explorer: what is in its HTML, and what a browser makes of it.

Every test in a browser also holds that the page writes nothing to the console
and loads nothing.
"""

import json
import re
from functools import cache
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from browsers import (
    BAD_NAMES,
    INSERT,
    PAGE,
    Figures,
    ids_in,
    is_in_the_wheel,
    on_phone,
)

from vit_lessons.explorer import ALPHABET, AttentionExplorer, attention_explorer
from vit_lessons.procedural import make_shapes

mpl.use("agg")  # opens no windows
ROOT = Path(__file__).parents[1]
FILES = ("explorer.css", "explorer.html", "explorer.js")


def attention(*shape, seed=0):
    """Random weights (B, h, T, T), some large and many small."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.rand(shape, generator=generator, dtype=torch.float64) ** 6
    return raw / raw.sum(dim=-1, keepdim=True)


GRID = (3, 4)
IMAGES = make_shapes(2, size=12)[0][:, :, :9]  # (2, 3, 9, 12)
WEIGHTS = [attention(2, 3, 13, 13, seed=1), attention(2, 2, 13, 13, seed=2)]


def explorer(images=IMAGES, weights=WEIGHTS, grid=GRID, **options):
    return attention_explorer(images, weights, grid, **options)


# --- The HTML ------------------------------------------------------------


def data_of(html):
    (data,) = re.search(r'(?m)^\}\)\("explorer", (.+)\);$', html).groups()
    return json.loads(data)


def number(text):
    value = 0
    for letter in text:
        value = 64 * value + ALPHABET.index(letter)
    return value


def test_each_weight_is_right_to_1_63_of_the_largest_in_its_row():
    data = data_of(explorer().html)
    for image in range(2):
        for layer, weights in enumerate(WEIGHTS):
            wanted = weights[image, ..., 1:]  # (h, T, N)
            text = data["levels"][image][layer]
            levels = torch.tensor([number(c) for c in text]).view_as(wanted)
            largest = wanted.amax(dim=-1, keepdim=True)
            found = (levels / 63).double().square() * largest
            assert ((found - wanted).abs() <= largest / 63).all()
            assert levels.amax(dim=-1).unique().tolist() == [63]


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_what_the_text_says_is_right_to_4e_6(prefix):
    weights = attention(1, 2, 12 + prefix, 12 + prefix)
    html = explorer(IMAGES[:1], [weights], num_prefix_tokens=prefix).html
    text = data_of(html)["facts"][0][0]
    rows = torch.cat([weights, weights.mean(1, keepdim=True)], 1).flatten(0, 2)
    size = 5 + 3 * prefix
    assert len(text) == size * len(rows)
    for i, row in enumerate(rows):
        fact = text[i * size : (i + 1) * size]
        assert number(fact[3:5]) == row[prefix:].argmax()
        wanted = [row[prefix:].max(), *row[:prefix]]
        threes = [fact[:3], *re.findall("...", fact[5:])]
        found = [(number(three) / (64**3 - 1)) ** 2 for three in threes]
        assert found == pytest.approx(torch.tensor(wanted).tolist(), abs=4e-6)


def test_two_images_of_64_patches_take_less_than_150_kB():
    images, _ = make_shapes(2)
    weights = [attention(2, 4, 65, 65, seed=i) for i in range(3)]
    assert len(attention_explorer(images, weights, 8).html) < 150_000


def test_the_script_takes_less_than_8_kB():
    assert (ROOT / "vit_lessons/explorer.js").stat().st_size < 8_000


def test_the_same_input_gives_the_same_bytes_in_every_style():
    first = explorer().html
    with mpl.rc_context({"font.size": 20, "image.cmap": "gray"}):
        assert explorer().html == first


def test_nothing_changes_for_the_notebook():
    before = dict(mpl.rcParams), plt.get_fignums()
    explorer()
    assert (dict(mpl.rcParams), plt.get_fignums()) == before


def test_every_id_begins_with_the_name():
    ids = ids_in(explorer(name="mine").html)
    assert ids[0] == "mine"
    assert all(re.fullmatch(r"mine(-\w+)?", one) for one in ids)
    assert len(set(ids)) == len(ids)


def test_no_address_is_in_the_html():
    html = re.sub(r"base64,[\w+/=]+", "", explorer().html)
    assert re.findall(r"//[\w.]|@import", html) == []


def test_a_notebook_shows_the_html_and_compares_a_fixed_text():
    shown = explorer()
    assert isinstance(shown, AttentionExplorer)
    assert shown._repr_html_() == shown.html
    assert repr(shown) == "AttentionExplorer(...)"


def test_weights_that_were_rounded_are_taken():
    half = [layer.bfloat16() for layer in WEIGHTS]
    assert data_of(explorer(weights=half).html)["heads"] == [3, 2]
    over = torch.eye(13).expand(2, 1, 13, 13) * 1.004  # 100 %
    assert data_of(explorer(weights=[over]).html)["facts"][1][0][8:11] == "___"


def test_a_wheel_holds_the_three_files():
    assert all(is_in_the_wheel(name) for name in FILES)


def with_number(value, tensor):
    changed = tensor.clone()
    changed.view(-1)[0] = value
    return changed


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        (r"images must be .*got \(3, 9, 12\)", {"images": IMAGES[0]}),
        (r"images must be .*got \(2, 2, 9", {"images": IMAGES[:, :2]}),
        (r"images must be .*got \(0, 3, 9", {"images": IMAGES[:0]}),
        (r"images must be in \[0, 1\], got -", {"images": -IMAGES}),
        (r"images .* to 2$", {"images": with_number(2.0, IMAGES)}),
        ("images .* to nan", {"images": with_number(torch.nan, IMAGES)}),
        (r"weights must hold \(2, h, 13, 13\).*\[\]", {"weights": []}),
        (r"weights must hold .*\(3, 13, 13\)", {"weights": WEIGHTS[0]}),
        ("weights must hold", {"weights": [WEIGHTS[0][:1]]}),
        ("weights must hold", {"weights": [WEIGHTS[0][..., 1:]]}),
        ("weights must hold", {"weights": [WEIGHTS[0][:, :0]]}),
        (r"weights must hold \(2, h, 14", {"num_prefix_tokens": 2}),
        (r"weights must hold \(2, h, 10", {"grid": 3}),
        (
            r"weights must be at least 0, got -1 in weights\[1\]",
            {"weights": [WEIGHTS[0], with_number(-1.0, WEIGHTS[1])]},
        ),
        (
            "weights must be at least 0, got nan",
            {"weights": [with_number(torch.nan, WEIGHTS[0])]},
        ),
        (
            r"weights must sum to 1 .* got .* 1 off in weights\[0\]",
            {"weights": [WEIGHTS[0] * 2]},
        ),
        ("weights must sum", {"weights": [with_number(torch.inf, WEIGHTS[0])]}),
        ("grid_size .* got 0", {"grid": 0}),
        (
            "grid_size must hold at most 4096 patches, got 4160",
            {"grid": (64, 65)},
        ),
        ("num_prefix_tokens .* got -1", {"num_prefix_tokens": -1}),
        ("query must be in 0..11, got 12", {"query": 12}),
        ("query must be in 0..11, got -1", {"query": -1}),
        ("description must not be empty, got ' '", {"description": " "}),
        *(
            (f"name must .*{re.escape(repr(name))}", {"name": name})
            for name in BAD_NAMES
        ),
    ],
)
def test_what_does_not_fit_is_refused(message, arguments):
    with pytest.raises(ValueError, match=message):
        explorer(**arguments)


# --- In a browser ----------------------------------------------------------

usual = cache(explorer)  # its picture takes a while to draw


class Shown(Figures):
    @property
    def text(self):
        return self.find(".now").inner_text().replace("\u00a0", " ")

    def place(self, n, grid=GRID):
        """The middle of a patch, in pixels of the screen."""
        box = self.find(".stage").bounding_box()
        x = box["x"] + (n % grid[1] + 0.5) * box["width"] / grid[1]
        y = box["y"] + (n // grid[1] + 0.5) * box["height"] / grid[0]
        return x, y

    def framed(self, shape=".frame", grid=GRID):
        """The patch at which a mark stands, or None."""
        mark = self.find(f"{shape} > :last-child")
        if not mark.is_visible():
            return None
        box, stage = mark.bounding_box(), self.find(".stage").bounding_box()
        middle = [
            (box[a] + box[size] / 2 - stage[a]) / stage[size]
            for a, size in (("y", "height"), ("x", "width"))
        ]
        y, x = (int(m * n) for m, n in zip(middle, grid, strict=True))
        return y * grid[1] + x


def percent(share):
    places = 0 if share >= 0.0995 else 1 if share >= 0.00995 else 2
    if 0 < share < 1e-4:
        return "less than 0.01 %"
    return f"{100 * share:.{places}f} %" if share else "0 %"


def sentence(row, looks, where, prefix=1, grid=GRID):
    """What is said of a row of weights, (T,)."""
    names = ["the class token", *(f"token {t + 1}" for t in range(1, prefix))]
    names = names[:prefix] + [
        f"the patch in row {y + 1}, column {x + 1}"
        for y in range(grid[0])
        for x in range(grid[1])
    ]
    most = int(row.argmax())
    best = prefix + int(row[prefix:].argmax())
    others = [t for t in (best, *range(prefix)) if t != most]
    to = [n if t != looks else "itself" for t, n in enumerate(names)]
    more = ", and ".join(f"{percent(row[t])} to {to[t]}" for t in others)
    return (
        f"T{names[looks][1:]} ({where}) gives {percent(row[most])} to "
        f"{to[most]}, its largest weight."
        + (f" It gives {more}." if more else "")
        + f" Even attention would be {percent(1 / len(row))}."
    )


def assert_colors(page, patches, steps=0.51):
    """Colors are those of inferno at the root of the weights."""
    inferno = [
        tuple(round(255 * c) for c in mpl.colormaps["inferno"](i / 63))
        for i in range(64)
    ]
    wanted = 63 * (patches / patches.max()).sqrt()
    assert [inferno.index(color) for color in page.colors] == pytest.approx(
        wanted.tolist(), abs=steps
    )


def test_it_starts_with_the_class_token_and_the_mean_of_the_last_heads(page):
    page.show(usual())
    row = WEIGHTS[1][0].mean(dim=0)[0]
    assert page.text == sentence(row, 0, "layer 2, mean of the heads")
    assert_colors(page, row[1:], steps=2)
    assert page.framed() is None
    assert page.framed(".ring") == row[1:].argmax()
    ticks = page.tab.locator(".ticks span").all_inner_texts()
    assert [tick.replace("\u00a0", " ") for tick in ticks] == [
        percent(row[1:].max() * share) for share in (0, 0.25, 1)
    ]


def test_words_colors_and_marks_tell_the_weights_of_every_choice(page):
    page.show(usual())
    for image in range(2):
        page.find(".image").select_option(str(image + 1))
        for layer, weights in enumerate(WEIGHTS):
            page.find(".layer").select_option(str(layer + 1))
            for head in range(weights.shape[1]):
                page.find(".head").select_option(str(head + 1))
                n = (5 * head + layer + image) % 12
                page.tab.mouse.move(*page.place(n))
                row = weights[image, head, n + 1]
                where = f"layer {layer + 1}, head {head + 1}"
                assert page.text == sentence(row, n + 1, where)
                assert_colors(page, row[1:])
                assert page.framed() == n
                assert page.framed(".ring") == row[1:].argmax()


def test_the_picture_is_that_of_the_chosen_image(page):
    page.show(usual())
    first, second = data_of(usual().html)["images"]
    background = "stage => stage.style.backgroundImage"
    assert first in page.find(".stage").evaluate(background)
    page.find(".image").select_option("2")
    assert second in page.find(".stage").evaluate(background)


def test_a_layer_with_fewer_heads_offers_these(page):
    page.show(usual())
    page.find(".layer").select_option("1")
    page.find(".head").select_option("3")
    page.find(".layer").select_option("2")
    options = page.tab.locator(".head option").all_inner_texts()
    assert options == ["mean", "1", "2"]
    row = WEIGHTS[1][0, 1, 0]
    assert page.text == sentence(row, 0, "layer 2, head 2")
    assert page.find(".head").input_value() == "1"


def test_a_click_holds_a_patch_and_a_second_click_lets_go(page):
    page.show(usual())
    page.tab.mouse.click(*page.place(7))
    page.tab.mouse.move(*page.place(2))
    assert page.framed() == 7
    page.tab.mouse.click(*page.place(2))
    page.tab.mouse.move(*page.place(3))
    assert page.framed() == 2
    page.tab.mouse.click(*page.place(2))
    page.tab.mouse.move(*page.place(3))
    assert page.framed() == 3


def test_escape_lets_go(page):
    page.show(usual())
    page.tab.mouse.click(*page.place(7))
    page.tab.keyboard.press("Escape")
    assert page.framed() == 7
    page.tab.mouse.move(*page.place(2))
    assert page.framed() == 2


def test_keys_move_by_a_patch_and_stop_at_the_edges(page):
    page.show(usual(query=5))  # row 2, column 2 of 3 x 4
    page.find(".stage").focus()
    up, down, left, right = (
        f"Arrow{where}" for where in ("Up", "Down", "Left", "Right")
    )
    keys = [up, up, right, right, right, down, down, left]
    keys += ["Home", left, "End", down]
    places = [1, 1, 2, 3, 3, 7, 11, 10, 8, 8, 11, 11]
    for key, n in zip(keys, places, strict=True):
        page.tab.keyboard.press(key)
        assert page.framed() == n
    row = WEIGHTS[1][0].mean(dim=0)[12]
    assert page.text == sentence(row, 12, "layer 2, mean of the heads")


def test_keys_hold_a_patch_as_a_click_does(page):
    page.show(usual(query=5))
    page.find(".stage").press("Enter")
    page.tab.mouse.move(*page.place(2))
    assert page.framed() == 5
    page.find(".stage").press(" ")
    page.tab.mouse.move(*page.place(3))
    assert page.framed() == 3


def test_a_key_with_control_is_left_to_the_browser(page):
    page.show(usual(query=5))
    page.find(".stage").press("Control+ArrowRight")
    assert page.framed() == 5


def test_the_keyboard_reaches_all_in_order_and_shows_where_it_is(page):
    page.show(usual())
    order = []
    for _ in range(6):
        page.tab.keyboard.press("Tab")
        name, outline = page.tab.evaluate(
            """() => [document.activeElement.className
            || document.activeElement.textContent,
            getComputedStyle(document.activeElement).outlineStyle]"""
        )
        order.append(name)
        assert outline == "solid", name
    assert page.tab.get_by_role(
        "application",
        name="Where the patches of an image look: arrow keys choose a patch",
        exact=True,
    ).is_visible()
    buttons = ["class token", "a patch"]
    assert order == ["image", "layer", "head", *buttons, "stage"]


def test_a_button_lets_each_prefix_token_look(page):
    weights = attention(1, 2, 14, 14)
    page.show(explorer(IMAGES[:1], [weights], num_prefix_tokens=2, query=4))
    mean = weights[0].mean(dim=0)
    buttons = page.tab.get_by_role("button")
    assert buttons.all_inner_texts() == ["class token", "token 2", "a patch"]
    for place, token, n in ((1, 1, None), (0, 0, None), (2, 6, 4)):
        buttons.nth(place).click()
        text = sentence(mean[token], token, "layer 1, mean of the heads", 2)
        assert page.text == text
        assert page.framed() == n
        pressed = [b.get_attribute("aria-pressed") for b in buttons.all()]
        assert [p == "true" for p in pressed] == [i == place for i in range(3)]


def test_the_first_key_goes_back_from_a_token_to_the_patch(page):
    page.show(usual(query=4))
    page.tab.get_by_role("button", name="class token").click()
    page.find(".stage").press("ArrowRight")
    assert page.framed() == 4


def test_a_change_is_announced_but_for_that_of_a_mouse(page):
    page.show(usual())
    live = page.find(".now")
    page.tab.mouse.move(*page.place(2))
    assert live.get_attribute("aria-live") == "off"
    page.tab.mouse.click(*page.place(2))
    assert live.get_attribute("aria-live") == "polite"
    page.tab.keyboard.press("Escape")
    page.tab.mouse.move(*page.place(3))
    page.tab.keyboard.press("ArrowLeft")
    assert live.get_attribute("aria-live") == "polite"


@pytest.mark.parametrize(
    ("grid", "prefix", "heads", "channels"),
    [
        ((1, 1), 0, 1, 1),
        ((2, 5), 0, 2, 3),
        ((4, 1), 2, 1, 1),
        ((3, 3), 5, 3, 3),
    ],
)
def test_other_grids_tokens_heads_and_gray_images(
    page, grid, prefix, heads, channels
):
    tokens = prefix + grid[0] * grid[1]
    weights = attention(1, heads, tokens, tokens)
    images = IMAGES[:1, :channels]
    page.show(explorer(images, [weights], grid, num_prefix_tokens=prefix))
    last = grid[0] * grid[1] - 1
    page.tab.mouse.move(*page.place(last, grid))
    row = weights[0].mean(dim=0)[-1]
    where = "head 1" if heads == 1 else "mean of the heads"
    wanted = sentence(row, tokens - 1, f"layer 1, {where}", prefix, grid)
    assert page.text == wanted
    assert_colors(page, row[prefix:], steps=0.51 if heads == 1 else 2)
    assert page.framed(grid=grid) == last
    assert page.find(".image").is_hidden()
    buttons = page.tab.get_by_role("button").count()
    assert buttons == (prefix + 1 if prefix else 0)
    box = page.find(".stage").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(12 / 9, rel=0.01)


def test_a_token_that_gives_the_patches_nothing(page):
    weights = torch.zeros(1, 2, 13, 13)
    weights[..., 0] = 1
    page.show(explorer(IMAGES[:1], [weights]))
    row = weights[0, 0, 0]
    assert page.text == sentence(row, 0, "layer 1, mean of the heads")
    assert set(page.colors) == {(0, 0, 4, 255)}


def test_two_explorers_do_not_disturb_each_other(page):
    page.show(usual(name="one"), usual(name="two", query=4))
    two = page.tab.locator("#two .now")
    before = two.inner_text()
    page.tab.mouse.click(*page.place(7))
    assert page.framed() == 7
    assert two.inner_text() == before
    text, colors = page.text, page.colors
    page.tab.locator("#two .stage").press("ArrowRight")
    assert two.inner_text() != before
    assert (page.framed(), page.text, page.colors) == (7, text, colors)


def test_it_works_where_a_notebook_inserts_it_even_twice(page):
    page.tab.set_content(PAGE.format(scheme="light", body=""))
    known = page.tab.evaluate("Object.keys(window)")
    for _ in range(2):
        page.tab.evaluate(INSERT, usual(query=4).html)
    texts = page.tab.locator(".now").all_inner_texts()
    assert len(texts) == 2
    assert texts[0] == texts[1] != ""
    new = set(page.tab.evaluate("Object.keys(window)")) - set(known)
    assert new <= {"explorer"}  # every id is a name in the window


def test_a_saved_page_works(page):
    page.show(usual(query=4))
    saved = page.tab.content()
    page.tab.set_content(saved)
    assert page.tab.locator(".stage").count() == 1
    page.tab.mouse.move(*page.place(7))
    assert page.framed() == 7


HEIGHT_OF_LINES = """(text) => {
    const lines = document.createRange();
    lines.selectNodeContents(text);
    return lines.getBoundingClientRect().height;
}"""


@on_phone
def test_nothing_moves_when_the_sentence_changes(page):
    weights = attention(1, 1, 14, 14)
    weights[0, 0, 1] = torch.eye(14)[0]  # token 2 looks at the class token
    page.show(explorer(IMAGES[:1], [weights], num_prefix_tokens=2))
    heights, places = set(), set()
    for name in ("class token", "token 2", "a patch"):
        page.tab.get_by_role("button", name=name).click()
        heights.add(page.find(".now").evaluate(HEIGHT_OF_LINES))
        places.add(page.find(".help").evaluate("help => help.offsetTop"))
    assert len(heights) > 1
    assert len(places) == 1


def test_without_scripts_the_picture_of_the_start_is_seen(browser):
    context = browser.new_context(java_script_enabled=False)
    page = Shown(context.new_page())
    page.show(explorer(description="Weights of <two> layers"))
    picture = page.find("img")
    assert picture.get_attribute("alt") == (
        "Weights of <two> layers. The class token looks, layer 2, mean of the "
        "heads."
    )
    assert picture.bounding_box()["height"] > 200
    assert page.tab.locator("select, button, .stage").count() == 0
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page, scheme):
    page.show(usual(), usual(name="two"), scheme=scheme)
    assert page.faults == []


@on_phone
def test_a_phone_of_320_pixels_needs_no_sideways_scroll(page):
    page.show(usual())
    wide = "document.documentElement.scrollWidth"
    assert page.tab.evaluate(wide) == 320
    for target in page.tab.locator("select:visible, button").all():
        box = target.bounding_box()
        assert min(box["width"], box["height"]) >= 44


@on_phone
def test_a_tap_chooses_a_patch(page):
    page.show(usual())
    page.find(".stage").scroll_into_view_if_needed()
    for n in (7, 2, 2):
        page.tab.touchscreen.tap(*page.place(n))
        assert page.framed() == n


def swipe(page, start, x, y):
    """Drag a finger by (x, y) pixels in steps, as a hand does."""
    session = page.tab.context.new_cdp_session(page.tab)
    for step in range(11):
        at = {"x": start[0] + x * step / 10, "y": start[1] + y * step / 10}
        kind = "touchMove" if step else "touchStart"
        session.send(
            "Input.dispatchTouchEvent", {"type": kind, "touchPoints": [at]}
        )
    end = {"type": "touchEnd", "touchPoints": []}
    session.send("Input.dispatchTouchEvent", end)
    session.detach()


def wait_until_still(page):
    """A page goes on for a while after the finger has left it."""
    page.tab.wait_for_function(
        """() => new Promise((done) => {
            const before = scrollY;
            setTimeout(() => done(scrollY === before), 200);
        })"""
    )


@on_phone
def test_a_finger_that_moves_up_scrolls_the_page_and_chooses_nothing(page):
    page.show(usual(query=0))
    before = page.tab.evaluate("scrollY")
    swipe(page, page.place(10), 5, -150)
    page.tab.wait_for_function("y => scrollY > y + 50", arg=before)
    assert page.framed() == 0


@on_phone
def test_a_finger_that_moves_sideways_chooses(page):
    page.show(usual(query=0))
    page.find(".stage").scroll_into_view_if_needed()
    wait_until_still(page)
    start, end = page.place(4), page.place(7)
    before = page.tab.evaluate("scrollY")
    swipe(page, start, end[0] - start[0], 0)
    assert page.framed() == 7
    assert page.tab.evaluate("scrollY") == before
