"""Look at a candidate before it is run: is it there, can it be called?"""

from __future__ import annotations

import dis
import inspect
import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

STUB_NAMES = (
    "NotImplemented",
    "NotImplementedError",
    "super",
    "nn",
    "Module",
    "__init__",
)
PLAIN = nn.Module.__mro__


class Refusal(Exception):
    """The candidate cannot be run; the text says why, in one sentence."""


def is_empty(function: object, name: str = "") -> bool:
    """Is this a stub: pass, ... or raise NotImplementedError?

    Args:
        function: A function, or anything else, which is no stub.
        name: Name of its class. super().__init__() alone is a stub too.
    """
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    flags = (inspect.CO_VARARGS, inspect.CO_VARKEYWORDS)
    stars = sum(bool(code.co_flags & flag) for flag in flags)
    return (
        {name, *STUB_NAMES}.issuperset(code.co_names)
        and code.co_nlocals == code.co_argcount + code.co_kwonlyargcount + stars
        and all(
            constant in (None, ...) or isinstance(constant, str)
            for constant in code.co_consts
        )
        and not any(
            step.opname.startswith("LOAD_FAST") and step.argval != "self"
            for step in dis.get_instructions(code)
        )
    )


def is_empty_class(candidate: type) -> bool:
    """Are all methods stubs that a class adds to nn.Module, or to ours?"""
    others = [base for base in candidate.__mro__ if base not in PLAIN]
    own = [b for b in others if not b.__module__.startswith("vit_lessons.")]
    methods = [m for base in own for m in vars(base).values() if callable(m)]
    if own != others and not methods:
        return False  # all that it does, it has from a class of ours
    return all(is_empty(method, candidate.__name__) for method in methods)


def kind(thing: object) -> str:
    """What a thing is, in words for a report."""
    if isinstance(thing, tuple | list):
        if len(thing) == 2 and all(isinstance(t, Tensor) for t in thing):
            return "a pair of tensors"
        parts = ["None" if part is None else kind(part) for part in thing[:3]]
        parts = f" ({' and '.join(parts)})" if 0 < len(thing) <= 3 else ""
        return f"a {type(thing).__name__} of {len(thing)}{parts}"
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    if isinstance(thing, Tensor):
        return "a tensor"
    return f"a value of type {type(thing).__name__}"


def accepts(function: Callable, *args: Any, **kwargs: Any) -> bool:
    """Can the function be called with these arguments?"""
    try:
        signature = inspect.signature(function)
    except Exception:  # some built-in functions have none: try the call
        return True
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def not_taken(
    function: Callable, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, ...]:
    """The keyword arguments that the function cannot be called with."""
    if accepts(function, *args, **kwargs):
        return ()
    taken = [n for n in kwargs if accepts(function, *args, **{n: kwargs[n]})]
    return tuple(n for n in kwargs if n not in taken) or tuple(kwargs)


def defaults(function: Callable) -> dict[str, Any]:
    """The arguments of a function that may be left out."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except Exception:  # some built-in functions have none
        return {}
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def arguments(function: Callable) -> str:
    """Names and defaults of a function's arguments, for a report."""
    parameters = inspect.signature(function).parameters.values()
    text = ", ".join(str(p.replace(annotation=p.empty)) for p in parameters)
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def inspect_parameters(module: nn.Module, reference: nn.Module) -> None:
    """Refuse a module whose parameters have other names or shapes."""
    expected, got = (
        {name: tuple(p.shape) for name, p in m.state_dict().items()}
        for m in (reference, module)
    )
    if expected.keys() != got.keys():
        missing = ", ".join(n for n in expected if n not in got) or "none"
        extra = ", ".join(n for n in got if n not in expected) or "none"
        raise Refusal(
            f"The parameters must be named {', '.join(expected)}, as in "
            f"published weights; missing: {missing}; not expected: {extra}."
        )
    for name, shape in expected.items():
        if got[name] != shape:
            layer = reference.get_submodule(name.rpartition(".")[0])
            raise Refusal(
                f"The parameter {name} must have shape {shape}, and yours has "
                f"{got[name]}: use each argument of the constructor, and store "
                f"it as nn.{type(layer).__name__} does, as in published "
                f"weights."
            )
    learned = dict(module.named_parameters())
    if fixed := [n for n in expected if n not in learned]:
        raise Refusal(f"{fixed[0]} cannot learn: make it an nn.Parameter.")
