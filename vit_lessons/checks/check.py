"""The check itself: run a candidate, say what passed, name the mistake."""

from __future__ import annotations

from dataclasses import dataclass, field

from vit_lessons.checks import attention, patch_embedding
from vit_lessons.checks.candidate import Refusal
from vit_lessons.checks.compare import settings
from vit_lessons.checks.exercise import Exercise, Outcome

_EXERCISES: dict[str, Exercise] = {
    exercise.name: exercise
    for chapter in (patch_embedding, attention)
    for exercise in chapter.EXERCISES
}


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Args:
        name: Name of the exercise.
        passed: The candidate does what the package does.
        cause: The likely mistake in one sentence, or None if unknown.
        attempted: False for a stub that nobody has filled in yet.
        report: The text that check printed.
    """

    name: str
    passed: bool
    cause: str | None = None
    attempted: bool = True
    report: str = field(default="", repr=False)

    def _ipython_display_(self) -> None:
        """Show nothing: check has printed the report already."""


def exercises() -> list[str]:
    """Names of all exercises that check knows, in order of the chapters."""
    return list(_EXERCISES)


def check(name: str, candidate: object) -> CheckResult:
    """Compare your function or class with the package's, print a report.

    Args:
        name: Name of the exercise, for example "patchify".
        candidate: Your function, or your class (not an instance of it).

    Raises:
        ValueError: There is no exercise of this name.
    """
    if name not in _EXERCISES:
        raise ValueError(
            f"name must be one of {', '.join(exercises())}, got {name!r}"
        )
    with settings():
        result = _check(_EXERCISES[name], candidate)
    print(result.report)
    return result


def _check(exercise: Exercise, candidate: object) -> CheckResult:
    name = exercise.name
    if exercise.is_stub(candidate):
        report = f"{name}: not attempted yet. Write your code over the stub."
        return CheckResult(name, False, attempted=False, report=report)
    try:
        exercise.inspect(candidate)
    except Refusal as refusal:
        return _failed(name, [], str(refusal))
    outcomes = [exercise.run(candidate, case) for case in exercise.cases]
    lines = [_line(outcome) for outcome in outcomes]
    if any(outcome.problem for outcome in outcomes):
        cause = exercise.diagnose(candidate, outcomes)
        return _failed(name, lines, cause)
    if cause := exercise.gradient_problem(candidate):
        return _failed(name, [*lines, "  FAILED  gradients"], cause)
    lines = [f"{name}: all passed.", *lines, "  passed  gradients"]
    return CheckResult(name, True, report="\n".join(lines))


def _line(outcome: Outcome) -> str:
    if outcome.skipped:
        return f"  not run {outcome.case.label}: {outcome.skipped}"
    if outcome.problem:
        return f"  FAILED  {outcome.case.label}: {outcome.problem}"
    return f"  passed  {outcome.case.label}"


def _failed(name: str, lines: list[str], cause: str | None) -> CheckResult:
    last = (
        f"Likely mistake: {cause}"
        if cause
        else "This check does not know the mistake. Compare the shapes and "
        "numbers above with the definition in the chapter."
    )
    report = "\n".join([f"{name}: not right yet.", *lines, last])
    return CheckResult(name, False, cause, report=report)
