"""Numbers in texts, and those that the ledger of claims vouches for."""

import re
from functools import cache
from pathlib import Path

import yaml

PATH = Path(__file__).parents[1] / "book" / "claims.yml"
NO_MEASUREMENT = re.compile(
    r"`[^`]*`|\$[^$]*\$|CC BY 2\.0|\]\([^)]*\)"
    r"|(?:[Ss]ections?|appendix) [\w.]+(?:(?:, | and | to )\d[\w.]*)*"
)
UNITS = r"(?: ?%| percent| points| times| million| billion| epochs)"
NUMBER = re.compile(
    r"(?<![\w.])\d[\d,]*\.\d+"  # 0.67
    r"|(?<![\w.])\d{1,3}(?:,\d{3})+"  # 1,234
    rf"|\d[\d.,]*(?={UNITS})"
)
UNIT = re.compile(UNITS)


@cache
def entries():
    """Return the entries of book/claims.yml, as they are written there."""
    return yaml.safe_load(PATH.read_text("utf-8"))


def numbers(text):
    """Return the numbers of a text, as they are written."""
    return set(re.findall(r"\d[\d,]*\.\d+|\d+(?:,\d{3})*", text))


def claimed_numbers(page):
    """Return the numbers in the claims of a chapter or another page."""
    return frozenset().union(
        *(
            numbers(claim["claim"])
            for claim in entries()
            if page in claim["pages"]
        )
    )
