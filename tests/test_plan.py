"""The path of the course: start page, README and chapters say the same."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PLAN = yaml.safe_load((ROOT / "book" / "chapters.yml").read_text("utf-8"))
WRITTEN = [
    chapter
    for chapter in PLAN
    if (ROOT / "notebooks" / f"{chapter['stem']}.ipynb").is_file()
]
README = (ROOT / "README.md").read_text("utf-8")


def stem(chapter):
    return chapter["stem"]


@pytest.mark.parametrize("chapter", WRITTEN, ids=stem)
def test_the_plan_has_the_minutes_of_the_chapter(chapter):
    text = (ROOT / "notebooks" / f"{stem(chapter)}.ipynb").read_text("utf-8")
    minutes = re.search(
        r"(\d+) minutes to read, (\d+) minutes for the exercises", text
    )
    assert [chapter["read"], chapter["exercises"]] == [
        int(number) for number in minutes.groups()
    ]


@pytest.mark.parametrize("chapter", PLAN, ids=stem)
def test_a_chapter_has_one_to_three_stars(chapter):
    assert chapter["difficulty"] in (1, 2, 3)


@pytest.mark.parametrize("chapter", WRITTEN, ids=stem)
def test_the_readme_says_what_is_built_in_how_many_minutes(chapter):
    number, name = stem(chapter).split("_", 1)
    row = next(
        line
        for line in README.splitlines()
        if line.startswith(f"| {number} {chapter['title']} |")
    )
    assert row.split(" | ")[2:] == [
        f"[{name}.py](vit_lessons/{name}.py)",
        chapter["built"].strip(),
        f"{chapter['read']} + {chapter['exercises']}",
        "★" * chapter["difficulty"] + " |",
    ]


def test_the_readme_lists_no_other_chapter():
    rows = re.findall(r"(?m)^\| \d\d ", README)
    assert len(rows) == len(WRITTEN)
