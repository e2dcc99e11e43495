"""Exercises on functions that take or return more than tensors.

Their result is a dictionary of facts: what the function returned, and what it
did to a model or an optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from torch import Tensor
from tqdm.std import tqdm

from vit_lessons.checks.candidate import Refusal, kind
from vit_lessons.checks.exercise import Case, Exercise, Outcome

Facts = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ObservedExercise(Exercise):
    """A function that is known by what it does.

    Args:
        observe: Makes fresh arguments from those of the case, calls the
            function that comes first, and returns facts by name. Those that
            tell most come first. A Refusal is the cause of a failure.
        causes: The likely mistake if the fact of this name is the first one
            that differs.
    """

    observe: Callable[..., Facts | None]
    causes: dict[str, str] = field(default_factory=dict)

    def ready(self, candidate: Any, case: Case) -> Callable[..., Any]:
        return self.finish(candidate)

    def finish(self, form: Callable[..., Any]) -> Callable[..., Any]:
        def observed(*args: Any, **kwargs: Any) -> Facts | None:
            with _no_progress_bars():
                return self.observe(form, *args, **kwargs)

        return observed

    def has_gradients(self, case: Case) -> bool:
        return False

    def run(self, candidate: Any, case: Case) -> Outcome:
        """Name the cause that one fact shows."""
        outcome = super().run(candidate, case)
        if isinstance(outcome.got, Refusal):
            return replace(outcome, cause=str(outcome.got))
        fact = (outcome.problem or "").partition(":")[0]
        return replace(outcome, cause=self.causes.get(fact, outcome.cause))


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Bars on epochs of a millisecond would hide the report."""
    start = tqdm.__init__

    def quiet(self: tqdm, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **(kwargs | {"disable": True}))

    tqdm.__init__ = quiet
    try:
        yield
    finally:
        tqdm.__init__ = start


def number(name: str, value: Any) -> float:
    """A returned number; a tensor without axes is one too."""
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, Real):
        return float(value)
    what = kind(value)
    if isinstance(value, Tensor):
        what = f"a tensor of shape {tuple(value.shape)}"
    raise Refusal(f"Your code must return {name} as one number, not {what}.")
