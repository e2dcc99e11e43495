"""Progress bars, in a terminal and in a notebook."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm.auto import tqdm

__all__ = ["progress"]


def progress(
    items: Iterable[Any], description: str, *, leave: bool = True
) -> Iterator[Any]:
    """Go through the items and show how far we are.

    Args:
        items: What to go through.
        description: Stands in front of the bar.
        leave: Keep the bar when it is full.

    The environment variable TQDM_DISABLE turns bars off. tqdm itself reads it
    in a terminal only.
    """
    is_off = os.environ.get("TQDM_DISABLE", "") not in ("", "0")
    return iter(tqdm(items, desc=description, leave=leave, disable=is_off))
