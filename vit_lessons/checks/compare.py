"""Compare what a candidate returns with what it should return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vit_lessons.checks.candidate import kind


def attempt(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function; an exception is a result like any other."""
    try:
        return function(*args)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: an answer, no traceback
        return error


def clone(value: Any) -> Any:
    """A copy that shares no memory with the value."""
    return value.clone() if isinstance(value, Tensor) else value


def difference(expected: Tensor, got: Tensor) -> str | None:
    """How a tensor differs from the expected one, or None."""
    want, have = tuple(expected.shape), tuple(got.shape)
    if want != have:
        return f"expected shape {want}, got {have}"
    if got.is_complex() or got.layout != torch.strided:
        return f"expected {expected.dtype}, got {got.dtype}, {got.layout}"
    # Sums in float32 differ by about 1e-6 when the order differs.
    got = got.detach().to(expected)
    if torch.allclose(expected, got, rtol=1e-4, atol=1e-5):
        return None
    return f"largest difference {(expected - got).abs().max().item():.2g}"


def same(expected: Any, got: Any) -> bool:
    """Are these the same tensor, or the same pair of tensors?"""
    return compare(expected, got)[0] is None


def compare(expected: Any, got: Any) -> tuple[str | None, str | None]:
    """The problem, or None; and its cause where the problem shows it."""
    if isinstance(expected, Exception):
        if isinstance(got, BaseException):
            return None, None
        return f"must raise {type(expected).__name__}, and does not", None
    if isinstance(got, BaseException):
        return _compare_error(got)
    if got is None:
        return "got None", "The return line is missing: your code returns None."
    if kind(expected) != kind(got):
        return (
            f"expected {kind(expected)}, got {kind(got)}",
            f"Your code must return {kind(expected)}, not {kind(got)}.",
        )
    if isinstance(expected, Tensor):
        return difference(expected, got), None
    for name, want, have in zip(
        ("output", "weights"), expected, got, strict=True
    ):
        if problem := difference(want, have):
            return f"{name}: {problem}", None
    return None, None


def _compare_error(error: BaseException) -> tuple[str, str | None]:
    first_line = next(iter(str(error).strip().splitlines()), "")
    cause = None
    if "view size is not compatible" in str(error):
        cause = (
            "After permute or transpose, view cannot read the memory in the "
            "new order: use reshape."
        )
    return f"raised {type(error).__name__}: {first_line}", cause
