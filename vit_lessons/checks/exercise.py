"""An exercise: cases to run, and a catalogue of known wrong forms.

A mistake is recognized by what the code does. Either the candidate returns
exactly what a known wrong form returns, or it is right in the simple cases
and wrong as soon as one feature is added: a second image, a second head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vit_lessons.checks.candidate import (
    Refusal,
    accepts,
    arguments,
    defaults,
    inspect_parameters,
    is_empty,
    is_empty_class,
    kind,
    not_taken,
)
from vit_lessons.checks.catalogue import WrongForm
from vit_lessons.checks.compare import (
    DTYPE,
    NoDropout,
    alike,
    attempt,
    clone,
    compare,
    isolate,
    raised,
    reverse,
    same,
    tensors,
    text,
)

IN_PLACE = (
    "Your code changes its input in place: make a new tensor, x = x + y, not "
    "x += y."
)
STATE = (
    "Your code keeps something from one call to the next: compute everything "
    "from the arguments of this call."
)
DROPOUT = "Dropout is on: it must be 0 unless it is asked for."
NO_GRADIENT = (
    "The numbers are right, but gradients do not flow back: avoid .detach(), "
    ".data, .item(), NumPy and torch.no_grad()."
)
IN_PLACE_GRADIENT = (
    "The numbers are right, but gradients do not flow back through an "
    "operation in place: make a new tensor, x = x + y, not x += y."
)


@dataclass(frozen=True)
class Case:
    """One call of the candidate.

    Args:
        label: The case in a few words, for the report.
        args: Arguments of the function, or of forward.
        cause: The likely mistake if this is the first case to fail.
        kwargs: Optional keyword arguments of the function, or of forward. The
            case is not run if the candidate does not take them.
        init: Arguments of the constructor, for a class.
    """

    label: str
    args: tuple[Any, ...]
    cause: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    init: dict[str, Any] = field(default_factory=dict)

    def map(self, change: Callable[[Any], Any]) -> Case:
        """The same case with other arguments of the function or forward."""
        kwargs = {name: change(value) for name, value in self.kwargs.items()}
        return replace(self, args=tuple(map(change, self.args)), kwargs=kwargs)

    def inputs(self) -> list[Tensor]:
        return tensors([*self.args, *self.kwargs.values()])


@dataclass(frozen=True)
class Outcome:
    """What the candidate did in one case, next to what it should do."""

    case: Case
    expected: Any = None
    got: Any = None
    problem: str | None = None
    cause: str | None = None
    skipped: tuple[str, ...] = ()

    def has_raised(self) -> bool:
        """Did the candidate stop with an error where it must not?"""
        is_error = isinstance(self.got, BaseException)
        is_refusal = isinstance(self.got, Refusal)  # nothing was called
        return bool(self.problem) and is_error and not is_refusal

    def is_half(self) -> bool:
        """Is this a case in half precision?"""
        return any(
            x.dtype in (torch.float16, torch.bfloat16)
            for x in tensors(self.expected)
        )

    def is_readable(self) -> bool:
        """Does the result show which wrong form the candidate is?"""
        return not (
            isinstance(self.expected, Exception)
            or isinstance(self.got, BaseException)
            or self.cause
            or not same(self.got, self.got)  # it holds NaN, or no numbers
        )


@dataclass(frozen=True)
class Exercise:
    """A function that the reader writes.

    Args:
        reference: The package's definition.
        cases: From the simplest to the fullest.
        wrong_forms: Makes the catalogue. A function, so that it is only
            made when a candidate fails.
        errors: Words in the text of an exception, and what they mean here.
        simpler: Run only when the first case fails; the cause of such a
            case is the likely mistake if it passes.
    """

    reference: Callable[..., Any]
    cases: tuple[Case, ...]
    wrong_forms: Callable[[], Iterable[WrongForm]]
    errors: dict[str, str] = field(default_factory=dict)
    simpler: tuple[Case, ...] = ()

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
            if not (
                accepts(candidate, *case.args)
                or (case is not self.cases[0] and self._wants(candidate, case))
            ):
                raise Refusal(
                    f"Your function must take ({arguments(self.reference)}), "
                    f"and it takes ({arguments(candidate)})."
                )

    def missing(self, candidate: Any, case: Case) -> tuple[str, ...]:
        """The optional arguments of a case that are not taken."""
        if wanted := self._wants(candidate, case):
            return tuple(f"{name} left out" for name in wanted)
        return not_taken(candidate, case.args, case.kwargs)

    def _wants(self, candidate: Any, case: Case) -> tuple[str, ...]:
        """The arguments that a case leaves out and the candidate needs."""
        left_out = {
            name: default
            for name, default in defaults(self.reference).items()
            if name not in self.given(case)
        }
        for n in range(len(left_out) + 1):
            if accepts(candidate, *case.args, *list(left_out.values())[:n]):
                return tuple(left_out)[:n]
        return ()

    def given(self, case: Case) -> set[str]:
        """Names of the arguments that a case gives to the reference."""
        bound = inspect.signature(self.reference).bind(*case.args)
        return {*bound.arguments, *case.kwargs}

    def fill(self, case: Case, more: dict[str, Any]) -> Case:
        """The same case, with arguments that it leaves out."""
        return replace(case, kwargs=more | case.kwargs)

    def ready(self, candidate: Any, case: Case) -> Callable[..., Any]:
        """What to call with the arguments of this case."""
        return candidate

    def before(self, case: Case) -> tuple[Any, ...]:
        """What a wrong form takes before the arguments of the case."""
        return ()

    def finish(self, form: Callable[..., Any]) -> Callable[..., Any]:
        """What to call of a wrong form."""
        return form

    def call(self, candidate: Any, *cases: Case) -> list[Any]:
        """Make the candidate ready once, then call it in each case."""
        function = isolate(self.ready, candidate, cases[0])
        if isinstance(function, BaseException):
            return [function] * len(cases)
        return [isolate(function, *c.args, **c.kwargs) for c in cases]

    def run(self, candidate: Any, case: Case) -> Outcome:
        """Call the candidate twice and compare with the reference."""
        if skipped := self.missing(candidate, case):
            return Outcome(case, skipped=skipped)
        again = case.map(reverse)
        expected, expected_again = self.call(self.reference, case, again)
        given = case.map(clone)
        got, got_again = self.call(candidate, given, again)
        problem, cause = compare(expected, got)
        if cause == DTYPE and not case.inputs():
            cause = DTYPE.replace("keep the input's", f"use {expected.dtype}")
        if not all(map(same, case.inputs(), given.inputs())):
            problem, cause = "the input has changed", IN_PLACE
        elif not problem and not same(expected_again, got_again):
            problem, cause = "right in one call, wrong in the next", STATE
        outcome = Outcome(case, expected, got, problem, cause)
        if outcome.has_raised() and not cause:
            meanings = [m for w, m in self.errors.items() if w in text(got)]
            outcome = replace(outcome, cause=next(iter(meanings), None))
        return outcome

    def diagnose(self, candidate: Any, outcomes: list[Outcome]) -> str | None:
        """The likely mistake in one sentence, or None."""
        ran = [outcome for outcome in outcomes if not outcome.skipped]
        failed = [outcome for outcome in ran if outcome.problem]
        if failed[0].cause:
            return failed[0].cause
        if any(outcome.cause == IN_PLACE for outcome in failed):
            return IN_PLACE
        if self._is_right_without_dropout(candidate, ran):
            return DROPOUT
        if cause := self._other_defaults(candidate, ran):
            return cause
        causes = [self._recognize(ran)]
        if ran[0].problem:
            causes.append(self._is_right_only_for(candidate))
        causes.append(failed[0].case.cause)
        causes += [outcome.cause for outcome in failed]
        return next(filter(None, causes), None)

    def _is_right_only_for(self, candidate: Any) -> str | None:
        """The cause of the first simpler case that the candidate passes."""
        for case in self.simpler:
            [expected] = self.call(self.reference, case)
            [got] = self.call(candidate, case.map(clone))
            if same(expected, got) or same(tensors(expected)[0], got):
                return case.cause
        return None

    def _is_right_without_dropout(
        self, candidate: Any, outcomes: list[Outcome]
    ) -> bool:
        with NoDropout():
            return all(
                same(o.expected, *self.call(candidate, o.case.map(clone)))
                for o in outcomes
            )

    def _other_defaults(
        self, candidate: Any, outcomes: list[Outcome]
    ) -> str | None:
        """The defaults to mend, if the candidate is right with ours."""
        ours, theirs = defaults(self.reference), defaults(candidate)
        other = {
            name: default
            for name, default in ours.items()
            if name in theirs
            and isinstance(default, str | int | float)
            and isinstance(theirs[name], str | int | float | None)
            and theirs[name] != default
        }
        if not other:
            return None
        for outcome in outcomes:
            given = self.given(outcome.case)
            more = {n: d for n, d in other.items() if n not in given}
            [got] = self.call(
                candidate, self.fill(outcome.case, more).map(clone)
            )
            if not same(outcome.expected, got):
                return None
        return " ".join(
            f"The default of {n} must be {d!r}, and yours is {theirs[n]!r}."
            for n, d in other.items()
        )

    def _recognize(self, outcomes: list[Outcome]) -> str | None:
        """The cause of the wrong form that returns all that was returned."""
        readable = [outcome for outcome in outcomes if outcome.is_readable()]
        if not any(outcome.problem for outcome in readable):
            # Nothing but errors: look for the form that raises all of them.
            raising = [o for o in outcomes if o.has_raised() and not o.cause]
            if not raising:
                return None
            readable += raising
        full = [outcome for outcome in readable if not outcome.is_half()]
        if any(outcome.problem for outcome in full):
            readable = full  # rounding must not hide another mistake
        # The failed cases first: they tell the wrong forms apart.
        readable.sort(key=lambda outcome: not outcome.problem)
        with torch.no_grad():
            calls = [
                ((*self.before(o.case), *o.case.args), o.case.kwargs)
                for o in readable
            ]
            for wrong in self.wrong_forms():
                form = self.finish(wrong.form)
                if all(
                    alike(attempt(form, *args, **kwargs), o.got)
                    for (args, kwargs), o in zip(calls, readable, strict=True)
                ):
                    return wrong.cause
        return None

    def gradient_problem(self, candidate: Any) -> str | None:
        """Compare the gradients in the fullest case that was run."""
        case = [c for c in self.cases if not self.missing(candidate, c)][-1]
        if not self.has_gradients(case):
            return None
        expected = isolate(self.gradients, self.reference, case)
        got = isolate(self.gradients, candidate, case)
        if isinstance(got, BaseException):
            is_in_place = "inplace" in text(got)
            return IN_PLACE_GRADIENT if is_in_place else NO_GRADIENT
        return None if all(map(same, expected, got)) else NO_GRADIENT

    def has_gradients(self, case: Case) -> bool:
        """Is there anything in this case that a gradient can reach?"""
        return any(x.is_floating_point() for x in case.inputs())

    def gradients(self, candidate: Any, case: Case) -> list[Tensor]:
        """Gradients of a sum in which no element weighs the same."""
        function, case = self.ready(candidate, case), case.map(clone)
        leaves = [x for x in case.inputs() if x.is_floating_point()]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        if isinstance(function, nn.Module):
            leaves += [p for _, p in sorted(function.named_parameters())]
        outputs = tensors(function(*case.args, **case.kwargs))
        loss = sum(
            (x * torch.arange(x.numel()).view_as(x).sin()).sum()
            for x in outputs
        )
        return list(torch.autograd.grad(loss, leaves))


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
        case = self.cases[0]
        if not accepts(candidate, **case.init):
            raise Refusal(
                f"The constructor must take {', '.join(case.init)} by keyword, "
                f"and yours takes ({arguments(candidate)})."
            )
        forward = candidate.forward
        if forward is nn.Module.forward or not callable(forward):
            raise Refusal("Your class has no method named forward.")
        if not accepts(forward, None, *case.args):
            raise Refusal(
                f"forward must take ({arguments(self.reference.forward)}), "
                f"and yours takes ({arguments(forward)})."
            )
        module = isolate(self.ready, candidate, case)
        if isinstance(module, Refusal):
            raise module
        if isinstance(module, BaseException):
            raise Refusal(f"Your class cannot be built: it {raised(module)}")

    def missing(self, candidate: Any, case: Case) -> tuple[str, ...]:
        """The optional arguments of a case that are not taken."""
        if not accepts(candidate, **case.init):
            return tuple(n for n in case.init if n not in self.cases[0].init)
        if not accepts(candidate.forward, None, *case.args, **case.kwargs):
            return tuple(case.kwargs)
        return ()

    def given(self, case: Case) -> set[str]:
        """Names of the arguments that a case gives to the constructor."""
        return set(case.init)

    def fill(self, case: Case, more: dict[str, Any]) -> Case:
        """The same case, with arguments that the constructor lacks."""
        return replace(case, init=more | case.init)

    def has_gradients(self, case: Case) -> bool:
        return True

    def build(self, case: Case) -> nn.Module:
        """The package's module with weights that are neither 0 nor tiny."""
        generator = torch.Generator().manual_seed(0)
        module = self.reference(**case.init)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)
        return module

    def ready(self, candidate: Any, case: Case) -> Callable[..., Any]:
        """The candidate's module with the same weights."""
        reference = self.build(case)
        module = candidate(**case.init)
        inspect_parameters(module, reference)
        module.load_state_dict(reference.state_dict())
        return module

    def before(self, case: Case) -> tuple[Any, ...]:
        return (self.build(case),)
