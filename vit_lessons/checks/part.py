"""Exercises whose modules differ between training and evaluation."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vit_lessons.checks.candidate import Refusal, inspect_parameters
from vit_lessons.checks.catalogue import WrongForm
from vit_lessons.checks.exercise import Case, ModuleExercise, Outcome

NOT_TAKEN = r"unexpected keyword argument '(\w+)'"  # passed on by **kwargs

EVALUATION = (
    "Right in training, wrong in evaluation: the two differ by dropout alone."
)
DROPOUT_IN_EVALUATION = (
    "Dropout acts in evaluation: use nn.Dropout, or give F.dropout "
    "training=self.training."
)
DROPOUT_NOT_USED = (
    "dropout changes nothing in training: use each argument of the "
    "constructor, or leave it out."
)
ONE_WIDTH = "Right for one width only: take the sizes of the layers from dim."
RATIO = (
    "The hidden layer has int(dim * mlp_ratio) features, and mlp_ratio need "
    "not be an int."
)


@dataclass(frozen=True)
class PartCase(Case):
    """A call of a part that may differ between training and evaluation.

    Args:
        mode: "training"; "evaluation"; or "random": in training, look at
            what changes from call to call.
        factors: First words of parameter names, and what to multiply those
            parameters by.
        is_apart: The case shows one mistake, which often comes with others.
            To recognize the others, it is left out.
    """

    mode: str = "training"
    is_apart: bool = False
    factors: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PartExercise(ModuleExercise):
    """A class with optional arguments and a behavior in evaluation.

    Args:
        hints: Words in the text of a refusal, and a sentence to add to it.
        std: Standard deviation of the weights.
    """

    hints: dict[str, str] = field(default_factory=dict)
    std: float = 0.5

    def inspect(self, candidate: object) -> None:
        """Raise Refusal with a hint where the text of it gives one."""
        try:
            super().inspect(candidate)
        except Refusal as refusal:
            text = str(refusal)
            hints = [
                hint for words, hint in self.hints.items() if words in text
            ]
            raise Refusal(" ".join([text, *hints])) from None

    def build(self, case: Case) -> nn.Module:
        """The package's module with weights that are neither 0 nor tiny."""
        init, factors = tuple(case.init.items()), tuple(case.factors.items())
        is_training = case.mode != "evaluation"
        return _built(self.reference, self.std, init, factors, is_training)

    def ready(self, candidate: Any, case: Case) -> Callable[..., Any]:
        """The candidate's module with the same weights, in the same mode."""
        reference = self.build(case)
        if candidate is self.reference:
            return _observe(reference) if case.mode == "random" else reference
        module = candidate(**self._our_defaults(candidate, case), **case.init)
        _refuse_shared_weights(module)
        inspect_parameters(module, reference)
        module.load_state_dict(reference.state_dict())
        module.train(reference.training)
        return _observe(module) if case.mode == "random" else module

    def missing(self, candidate: Any, case: Case) -> tuple[str, ...]:
        """The optional arguments that are not taken, or mean another thing."""
        pairs = self._defaults(candidate)
        return super().missing(candidate, case) or tuple(
            name
            for name in case.init
            if name in pairs
            and name not in self.cases[0].init
            and not _is_alike(*pairs[name])
        )

    def _our_defaults(self, candidate: Any, case: Case) -> dict[str, Any]:
        """Our value of each optional argument with another default."""
        return {
            name: ours
            for name, (ours, theirs) in self._defaults(candidate).items()
            if name not in case.init
            and _is_alike(ours, theirs)
            and ours != theirs
        }

    def _defaults(self, candidate: Any) -> dict[str, tuple[Any, Any]]:
        """The defaults of the arguments that both take: ours and theirs."""
        ours = inspect.signature(self.reference).parameters
        theirs = inspect.signature(candidate).parameters
        return {
            name: (ours[name].default, theirs[name].default)
            for name in ours
            if name in theirs
            and theirs[name].default is not inspect.Parameter.empty
        }

    def run(self, candidate: Any, case: Case) -> Outcome:
        """Say in words what a random result lacks."""
        outcome = super().run(candidate, case)
        if isinstance(outcome.got, SharedWeights):
            return replace(outcome, cause=str(outcome.got))
        not_taken = re.search(NOT_TAKEN, outcome.problem or "")
        optional = case.init.keys() - self.cases[0].init.keys()
        if not_taken and not_taken[1] in optional:
            return Outcome(case, skipped=(not_taken[1],))
        if case.mode == "random" and (outcome.problem or "").startswith("larg"):
            words = "what is dropped in training is not right"
            if not outcome.got[0]:
                words = "two calls in training give the same result"
            return replace(outcome, problem=words)
        return outcome

    def diagnose(self, candidate: Any, outcomes: list[Outcome]) -> str | None:
        """Look for a wrong form in the plain cases; the others show a cause."""

        def is_plain(outcome: Outcome) -> bool:
            case = outcome.case
            return case.mode == "training" and not case.is_apart

        ran = [outcome for outcome in outcomes if not outcome.skipped]
        failed = next(outcome for outcome in ran if outcome.problem)
        if not is_plain(failed):
            return failed.cause or failed.case.cause
        return super().diagnose(candidate, list(filter(is_plain, ran)))


@functools.cache
def _built(
    reference: Callable[..., nn.Module],
    std: float,
    init: tuple[tuple[str, Any], ...],
    factors: tuple[tuple[str, float], ...],
    is_training: bool,
) -> nn.Module:
    """Each module is built once: nothing that is called with it changes it."""
    generator = torch.Generator().manual_seed(0)
    module = reference(**dict(init)).float()
    for name, parameter in module.named_parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
        for start, factor in factors:
            if name.startswith(start):
                parameter.data *= factor
    return module.train(is_training)


class SharedWeights(Refusal):
    """One module stands in two places of the candidate."""


def _refuse_shared_weights(module: nn.Module) -> None:
    names: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        other = names.setdefault(id(parameter), name)
        if other != name:
            raise SharedWeights(
                f"{other} and {name} are the same weights: make a new module "
                "for each place, [Block() for _ in range(depth)] and not "
                "[Block()] * depth."
            )


def _is_alike(ours: Any, theirs: Any) -> bool:
    """Does an argument with this default take the same values as ours?"""
    kinds = [float if type(x) is int else type(x) for x in (ours, theirs)]
    if kinds == [str, str]:
        return {ours, theirs} <= {"cls", "mean"}
    return kinds[0] is kinds[1]


def _observe(module: nn.Module) -> Callable[..., Any]:
    """Call a module twice: do the calls differ, do some images stay?"""

    def observe(x: Tensor) -> Any:
        one, two = module(x), module(x)
        if not isinstance(one, Tensor) or not isinstance(two, Tensor):
            return one
        stays = False
        if one.shape == x.shape:
            stays = (one == x).flatten(1).all(1).any()
        return torch.tensor([not one.equal(two), stays]).float()

    return observe


def normal(*shape: int, seed: int = 5, std: float = 1.0) -> Tensor:
    """Normal random numbers in float32, the same each time."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32) * std


def only_singles(forms: Iterator[WrongForm]) -> Iterator[WrongForm]:
    """The wrong forms that make one mistake."""
    return (w for w in forms if not w.cause.startswith("There are two"))
