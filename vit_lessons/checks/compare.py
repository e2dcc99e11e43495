"""Run a candidate, and compare what it returns with what it should return."""

from __future__ import annotations

import math
import os
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vit_lessons.checks.candidate import Refusal, kind

NOT_THE_READERS = (
    f"{Path(__file__).parents[1]}{os.sep}",  # this package
    f"{sysconfig.get_path('stdlib')}{os.sep}",
    "<frozen",
)
DTYPE = "The numbers are right, but not their dtype: keep the input's."


@contextmanager
def settings() -> Iterator[None]:
    """The same global settings for each call; the reader's own afterwards."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.device("cpu"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(0)
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)  # the tensors are tiny
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_num_threads(threads)


def attempt(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function; an exception is a result like any other."""
    try:
        return function(*args, **kwargs)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: an answer, no traceback
        return error


def isolate(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Attempt a call that may rely on global settings or change them."""
    with settings():
        return attempt(function, *args, **kwargs)


class NoDropout(TorchFunctionMode):
    """While it is on, dropout returns its input."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if "dropout" in getattr(function, "__name__", ""):
            return args[0]
        if "dropout_p" in kwargs:  # the fused attention kernel
            kwargs["dropout_p"] = 0.0
        return function(*args, **kwargs)


def clone(value: Any) -> Any:
    """A copy that shares no memory with the value."""
    return value.clone() if isinstance(value, Tensor) else value


def reverse(value: Any) -> Any:
    """The same numbers in other places."""
    if isinstance(value, Tensor):
        return value.flip(tuple(range(value.ndim)))
    return value


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a result: one, or those of a pair."""
    parts = value if isinstance(value, tuple | list) else [value]
    return [part for part in parts if isinstance(part, Tensor)]


def difference(expected: Tensor, got: Tensor) -> str | None:
    """How a tensor differs from the expected one, or None."""
    want, have = tuple(expected.shape), tuple(got.shape)
    dtype = expected.dtype
    if want != have:
        return f"expected shape {want}, got {have}"
    if got.is_complex() or got.layout != torch.strided:
        return f"expected {expected.dtype}, got {got.dtype}, {got.layout}"
    # Sums in float32 differ by about 1e-6 when the order differs.
    numbers = got.detach()
    if got.is_floating_point() and not expected.is_floating_point():
        expected = expected.to(got)  # 0.5 is not 0
    else:
        numbers = numbers.to(expected)
    if numbers.isnan().any():
        return "the result holds NaN, which is not a number"
    if not torch.allclose(expected, numbers, rtol=1e-4, atol=1e-5):
        largest = (expected - numbers).abs().max().item()
        return f"largest difference {largest:.2g}"
    if got.dtype != dtype:
        return f"the numbers are right, but the dtype is {got.dtype}"
    return None


def same(expected: Any, got: Any) -> bool:
    """Are these the same tensor, or the same pair of tensors?"""
    return compare(expected, got)[0] is None


def compare(expected: Any, got: Any) -> tuple[str | None, str | None]:
    """The problem, or None; and its cause where the problem shows it."""
    if isinstance(expected, Exception):
        if isinstance(got, BaseException):
            return None, None
        return "must raise an error, and does not", None
    if isinstance(got, BaseException):
        return _compare_error(got)
    if got is None:
        return "got None", "The return line is missing: your code returns None."
    if isinstance(expected, dict):
        return _different_fact(expected, got), None
    want, names = "a tensor", [""]
    if not isinstance(expected, Tensor):
        want, names = "the pair (output, weights)", ["output: ", "weights: "]
    if kind(expected) != kind(got):
        cause = f"Your code must return {want}, not {kind(got)}."
        return f"expected {want}, got {kind(got)}", cause
    for name, want, have in zip(
        names, tensors(expected), tensors(got), strict=True
    ):
        problem = attempt(difference, want, have)
        if isinstance(problem, BaseException):  # no numbers: on "meta", nested
            return f"{name}cannot be compared: {first_line(problem)}", None
        if problem:
            return f"{name}{problem}", _dtype_cause(problem)
    return None, None


def _different_fact(
    expected: dict[str, Any], got: dict[str, Any]
) -> str | None:
    """The first fact that differs; both hold the same names."""
    for name, want in expected.items():
        have = got[name]
        if isinstance(want, Tensor):
            if problem := difference(want, have):
                return f"{name}: {problem}"
        elif isinstance(want, float):
            if not math.isclose(want, have, rel_tol=1e-4, abs_tol=1e-5):
                return f"{name}: expected {want:.4g}, got {have:.4g}"
        elif want != have:
            return f"{name}: expected {want}, got {have}"
    return None


def _dtype_cause(problem: str) -> str | None:
    if problem.startswith("the numbers are right"):
        return DTYPE
    return None


def text(error: BaseException) -> str:
    """What an exception says; nothing if it cannot even do that."""
    says = attempt(str, error)
    return says.strip() if isinstance(says, str) else ""


def first_line(error: BaseException) -> str:
    """The type of an exception, and its text cut to one line."""
    return ": ".join([type(error).__name__, *text(error).splitlines()[:1]])


def is_the_readers(filename: str) -> bool:
    """Is this file no part of this package, of Python or of a library?"""
    libraries = {"site-packages", "dist-packages"}
    return not (
        filename.startswith(NOT_THE_READERS)
        or libraries.intersection(Path(filename).parts)
    )


def raised(error: BaseException) -> str:
    """What an exception says, and the line of the reader that led to it."""
    frames = traceback.extract_tb(error.__traceback__)
    known = [f for f in frames if f.line and is_the_readers(f.filename)]
    if not known:
        return f"raised {first_line(error)}"
    last = known[-1]
    more = " ..." if (last.end_lineno or 0) > last.lineno else ""
    return f"raised {first_line(error)} (in: {last.line}{more})"


def alike(one: Any, other: Any) -> bool:
    """Are these the same result, or errors that say the same?"""
    if isinstance(one, BaseException) and isinstance(other, BaseException):
        return first_line(one) == first_line(other)
    return same(one, other)


def _compare_error(error: BaseException) -> tuple[str, str | None]:
    if isinstance(error, Refusal):
        return text(error), None
    cause = None
    if "view size is not compatible" in text(error):
        cause = (
            "view needs axes that are in order in memory, and permute, "
            "transpose and chunk change that order. Check the order of your "
            "axes, then use reshape."
        )
    elif isinstance(error, NotImplementedError) and not text(error):
        cause = "A part of your code still raises NotImplementedError."
    return raised(error), cause
