"""An exercise: cases to run, and a catalogue of known wrong forms.

A mistake is recognized by what the code does. Either the candidate returns
exactly what a known wrong form returns, or it is right in the simple cases
and wrong as soon as one feature is added: a second image, a second head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vit_lessons.checks.candidate import (
    Refusal,
    accepts,
    arguments,
    inspect_parameters,
    is_empty,
    is_empty_class,
    kind,
)
from vit_lessons.checks.catalogue import WrongForm
from vit_lessons.checks.compare import attempt, clone, compare, same


@dataclass(frozen=True)
class Case:
    """One call of the candidate.

    Args:
        label: The case in a few words, for the report.
        args: Arguments of the function, or of forward.
        cause: The likely mistake if this is the first case to fail.
        kwargs: Keyword arguments of forward, for a class.
        init: Arguments of the constructor, for a class.
    """

    label: str
    args: tuple[Any, ...]
    cause: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    init: dict[str, Any] = field(default_factory=dict)

    def copy(self) -> Case:
        """The same case with tensors that a candidate may spoil."""
        kwargs = {name: clone(value) for name, value in self.kwargs.items()}
        return replace(self, args=tuple(map(clone, self.args)), kwargs=kwargs)

    def inputs(self) -> list[Tensor]:
        values = [*self.args, *self.kwargs.values()]
        return [value for value in values if isinstance(value, Tensor)]


@dataclass(frozen=True)
class Outcome:
    """What the candidate did in one case, next to what it should do."""

    case: Case
    expected: Any = None
    got: Any = None
    problem: str | None = None
    cause: str | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class Exercise:
    """A function that the reader writes.

    Args:
        reference: The package's definition.
        cases: From the simplest to the fullest.
        wrong_forms: Makes the catalogue. A function, so that it is only
            made when a candidate fails.
    """

    reference: Callable[..., Any]
    cases: tuple[Case, ...]
    wrong_forms: Callable[[], Iterable[WrongForm]]

    @property
    def name(self) -> str:
        return self.reference.__name__

    def is_stub(self, candidate: object) -> bool:
        return is_empty(candidate)

    def inspect(self, candidate: object) -> None:
        """Raise Refusal for what cannot be called as the reference is."""
        if not callable(candidate) or isinstance(candidate, type):
            raise Refusal(
                f"check needs your function itself, and got {kind(candidate)}."
            )
        for case in self.cases:
            if not accepts(candidate, *case.args):
                raise Refusal(
                    f"Your function must take ({arguments(self.reference)}), "
                    f"and it takes ({arguments(candidate)})."
                )

    def missing(self, candidate: Any, case: Case) -> str | None:
        """Why a case is left out for this candidate, or None."""
        return None

    def call(self, candidate: Any, case: Case) -> Any:
        return candidate(*case.args)

    def call_wrong(self, form: Callable[..., Any], case: Case) -> Any:
        return self.call(form, case)

    def run(self, candidate: Any, case: Case) -> Outcome:
        """Run one case and compare with the reference."""
        if skipped := self.missing(candidate, case):
            return Outcome(case, skipped=skipped)
        expected = attempt(self.call, self.reference, case.copy())
        given = case.copy()
        got = attempt(self.call, candidate, given)
        if all(map(same, case.inputs(), given.inputs())):
            return Outcome(case, expected, got, *compare(expected, got))
        cause = (
            "Your code changes its input in place: make a new tensor, "
            "x = x + y, not x += y."
        )
        return Outcome(case, expected, got, "the input has changed", cause)

    def diagnose(self, candidate: Any, outcomes: list[Outcome]) -> str | None:
        """The likely mistake in one sentence, or None."""
        ran = [outcome for outcome in outcomes if not outcome.skipped]
        failed = [outcome for outcome in ran if outcome.problem]
        for outcome in failed:
            if outcome.cause:
                return outcome.cause
        for wrong in self.wrong_forms():
            if self._explains(wrong, ran):
                return wrong.cause
        return failed[0].case.cause

    def _explains(self, wrong: WrongForm, outcomes: list[Outcome]) -> bool:
        """Does the wrong form return all that the candidate returned?"""
        compared = [
            outcome
            for outcome in outcomes
            if not isinstance(outcome.expected, Exception)
            and not isinstance(outcome.got, BaseException)
        ]
        return any(outcome.problem for outcome in compared) and all(
            same(
                attempt(self.call_wrong, wrong.form, outcome.case.copy()),
                outcome.got,
            )
            for outcome in compared
        )

    def gradient_problem(self, candidate: Any) -> str | None:
        """Compare the gradients in the fullest case that was run."""
        case = [
            case for case in self.cases if not self.missing(candidate, case)
        ][-1]
        expected = self.gradients(self.reference, case.copy())
        got = attempt(self.gradients, candidate, case.copy())
        if isinstance(got, BaseException) or not all(map(same, expected, got)):
            return (
                "The numbers are right, but gradients do not flow back: avoid "
                ".detach(), .data, .item(), NumPy and torch.no_grad()."
            )
        return None

    def gradients(self, candidate: Any, case: Case) -> list[Tensor]:
        leaves = _leaves(case)
        return _gradients(self.call(candidate, case), leaves)


@dataclass(frozen=True)
class ModuleExercise(Exercise):
    """A class that the reader writes; all cases use reference weights.

    A wrong form is a function of (module, *args), called with the package's
    module in the place of self.
    """

    def is_stub(self, candidate: object) -> bool:
        if isinstance(candidate, type):
            return is_empty_class(candidate)
        return is_empty(candidate)

    def inspect(self, candidate: object) -> None:
        """Raise Refusal for a class without the reference's parameters."""
        if not (
            isinstance(candidate, type) and issubclass(candidate, nn.Module)
        ):
            raise Refusal(
                f"check needs your class itself, a subclass of nn.Module, and "
                f"got {kind(candidate)}."
            )
        init = self.cases[0].init
        if not accepts(candidate, **init):
            raise Refusal(
                f"The constructor must take ({arguments(self.reference)}), "
                f"and yours takes ({arguments(candidate)})."
            )
        for case in self.cases:
            if self.missing(candidate, case):
                continue
            module = attempt(lambda init: candidate(**init), case.init)
            if isinstance(module, BaseException):
                raise Refusal(
                    f"The constructor raised {type(module).__name__}: {module}"
                )
            inspect_parameters(module, self.build(case.init))

    def missing(self, candidate: Any, case: Case) -> str | None:
        """Why a case is left out: an optional argument is not taken."""
        for name in case.init:
            if name not in self.cases[0].init and not accepts(
                candidate, **case.init
            ):
                return f"your constructor takes no {name}"
        if not accepts(candidate.forward, None, *case.args, **case.kwargs):
            names = ", ".join(case.kwargs)
            return f"your forward takes no {names}" if names else None
        return None

    def build(self, init: dict[str, Any]) -> nn.Module:
        """The package's module with weights that are neither 0 nor tiny."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = self.reference(**init)
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.5)
        return module

    def load(self, candidate: type, init: dict[str, Any]) -> nn.Module:
        """The candidate's module with the same weights."""
        module = candidate(**init)
        module.load_state_dict(self.build(init).state_dict())
        return module

    def call(self, candidate: type, case: Case) -> Any:
        module = self.load(candidate, case.init)
        return module(*case.args, **case.kwargs)

    def call_wrong(self, form: Callable[..., Any], case: Case) -> Any:
        return form(self.build(case.init), *case.args, **case.kwargs)

    def diagnose(self, candidate: Any, outcomes: list[Outcome]) -> str | None:
        if self._right_in_eval_mode(candidate, outcomes):
            return (
                "The numbers are right in eval mode alone: dropout must be 0 "
                "unless it is asked for."
            )
        return super().diagnose(candidate, outcomes)

    def _right_in_eval_mode(
        self, candidate: type, outcomes: list[Outcome]
    ) -> bool:
        def call(case: Case) -> Any:
            module = self.load(candidate, case.init).eval()
            return module(*case.args, **case.kwargs)

        return all(
            same(outcome.expected, attempt(call, outcome.case.copy()))
            for outcome in outcomes
            if not outcome.skipped
        )

    def gradients(self, candidate: type, case: Case) -> list[Tensor]:
        module, leaves = self.load(candidate, case.init), _leaves(case)
        parameters = [p for _, p in sorted(module.named_parameters())]
        output = module(*case.args, **case.kwargs)
        return _gradients(output, leaves + parameters)


def _leaves(case: Case) -> list[Tensor]:
    floats = [x for x in case.inputs() if x.is_floating_point()]
    return [x.requires_grad_() for x in floats]


def _gradients(output: Any, leaves: list[Tensor]) -> list[Tensor]:
    """Gradients of a sum in which no element weighs the same as another."""
    outputs = output if isinstance(output, tuple | list) else (output,)
    loss = sum(
        (o * torch.arange(o.numel()).view_as(o).sin()).sum() for o in outputs
    )
    return list(torch.autograd.grad(loss, leaves))
