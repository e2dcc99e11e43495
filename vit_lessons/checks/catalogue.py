"""Known wrong forms, one by one and two at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any


@dataclass(frozen=True)
class WrongForm:
    """A known mistake: its cause in one sentence, and code that makes it."""

    cause: str
    form: Callable[..., Any]


class Mistake:
    """Some steps of a computation done wrongly.

    Args:
        cause: The mistake in one sentence.
        variants: The ways to make it; each names steps, and what stands in
            their place.
    """

    def __init__(self, cause: str, *variants: dict[str, Any]) -> None:
        self.cause = cause
        self.variants = variants


def combine(
    compute: Callable[..., Callable[..., Any]], *mistakes: Mistake
) -> Iterator[WrongForm]:
    """All single mistakes, then all pairs that touch different steps.

    Args:
        compute: Called with step=wrong, it returns code that has this step
            wrong and the others right.
        mistakes: The single mistakes.
    """
    singles = [(m.cause, steps) for m in mistakes for steps in m.variants]
    for cause, steps in singles:
        yield WrongForm(cause, compute(**steps))
    for (cause, steps), (other, more) in combinations(singles, 2):
        if cause != other and steps.keys().isdisjoint(more):
            both = f"There are two mistakes. {cause} {other}"
            yield WrongForm(both, compute(**steps, **more))
