"""The check itself: run a candidate, say what passed, name the mistake."""

from __future__ import annotations

from dataclasses import dataclass, field

from vit_lessons.checks import (
    attention,
    class_token,
    deit,
    encoder_block,
    fine_tuning,
    hybrid,
    inductive_bias,
    looking_inside,
    mlp,
    patch_embedding,
    patch_merging,
    position_embedding,
    self_supervision,
    swin_block,
    swin_transformer,
    swin_windows,
    training,
    vision_transformer,
)
from vit_lessons.checks.candidate import Refusal
from vit_lessons.checks.compare import settings
from vit_lessons.checks.exercise import Exercise, Outcome

_EXERCISES: dict[str, Exercise] = {
    exercise.name: exercise
    for chapter in (
        patch_embedding,
        class_token,
        position_embedding,
        attention,
        mlp,
        encoder_block,
        vision_transformer,
        training,
        inductive_bias,
        hybrid,
        fine_tuning,
        self_supervision,
        looking_inside,
        deit,
        swin_windows,
        patch_merging,
        swin_block,
        swin_transformer,
    )
    for exercise in chapter.EXERCISES
}

UNKNOWN = (
    "This check does not know the mistake. Compare the shapes and numbers "
    "above with the definition in the chapter."
)
STOPPED = (
    "This check does not know the mistake. Your code stops with the error "
    "shown above."
)


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
    lines = [_line(outcome) for outcome in outcomes if not outcome.skipped]
    left_out = _left_out(outcomes)
    if failed := [outcome for outcome in outcomes if outcome.problem]:
        cause = exercise.diagnose(candidate, outcomes)
        unknown = STOPPED if failed[0].has_raised() else UNKNOWN
        return _failed(name, [*lines, *left_out], cause, unknown)
    if cause := exercise.gradient_problem(candidate):
        lines += ["  FAILED  gradients", *left_out]
        return _failed(name, lines, cause)
    if any(map(exercise.has_gradients, exercise.cases)):
        lines.append("  passed  gradients")
    lines = [f"{name}: all passed.", *lines, *left_out]
    return CheckResult(name, True, report="\n".join(lines))


def _left_out(outcomes: list[Outcome]) -> list[str]:
    """One line for all cases that need what the candidate does not take."""
    skipped = [outcome.skipped for outcome in outcomes if outcome.skipped]
    if not skipped:
        return []
    names = ", ".join(dict.fromkeys(n for names in skipped for n in names))
    cases = "1 case" if len(skipped) == 1 else f"{len(skipped)} cases"
    return [f"  not run {cases} with {names}, which your code does not take"]


def _line(outcome: Outcome) -> str:
    if outcome.problem:
        return f"  FAILED  {outcome.case.label}: {outcome.problem}"
    return f"  passed  {outcome.case.label}"


def _failed(
    name: str, lines: list[str], cause: str | None, unknown: str = ""
) -> CheckResult:
    last = f"Likely mistake: {cause}" if cause else unknown
    report = "\n".join([f"{name}: not right yet.", *lines, last])
    return CheckResult(name, False, cause, report=report)
