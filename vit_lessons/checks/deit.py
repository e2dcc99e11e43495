"""Exercises of chapter 14, with the mistakes that learners make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_lessons.checks.candidate import Refusal, kind
from vit_lessons.checks.catalogue import Mistake, WrongForm, combine
from vit_lessons.checks.compare import clone, isolate
from vit_lessons.checks.exercise import Case, Exercise, ModuleExercise, Outcome
from vit_lessons.checks.observe import Facts, ObservedExercise
from vit_lessons.checks.part import (
    DROPOUT_IN_EVALUATION,
    DROPOUT_NOT_USED,
    PartCase,
    PartExercise,
    normal,
)
from vit_lessons.checks.vision_transformer import OTHER_SIZE, SEVERAL_IMAGES
from vit_lessons.deit import (
    DistilledVisionTransformer,
    ask_teacher,
    hard_distillation_loss,
    soft_distillation_loss,
)

# Both losses.

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class LossExercise(Exercise):
    """A loss of a student: the teacher needs no gradients."""

    def gradients(self, candidate: Any, case: Case) -> list[Tensor]:
        case = case.map(clone)
        leaves = [logits.requires_grad_() for logits in case.args[:2]]
        loss = candidate(*case.args, **case.kwargs)
        return list(torch.autograd.grad(loss, leaves))


def _label_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def _classes(labels: Tensor) -> Tensor:
    return labels.argmax(1) if labels.ndim == 2 else labels


def _labels_by(**changes: Any) -> dict[str, Any]:
    """F.cross_entropy of the labels with another argument."""

    def label_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        arguments = {"label_smoothing": smoothing} | changes
        return F.cross_entropy(logits, labels, **arguments)

    return {"label_loss": label_loss}


ONE_NUMBER = (
    "One number for each image comes back: return their mean over the batch."
)
SUM = (
    "The loss is a sum over the images: take the mean over the batch, or the "
    "steps grow with it."
)
SOFTMAX_FIRST = (
    "A softmax comes before the cross-entropy, which takes the logits as they "
    "are."
)
ON_CLASS_HEAD = (
    "The teacher's part is computed from logits: the distillation head learns "
    "it, so take dist_logits."
)
NO_TEACHER = "The teacher has no part in the loss: both parts count."
NO_LABELS = "The labels have no part in the loss: both parts count."

BOTH_HEADS = (
    Mistake(
        ON_CLASS_HEAD,
        {"heads": lambda logits, dist: (logits, logits)},
    ),
    Mistake(
        "The labels' part is computed from dist_logits: the class head learns "
        "the labels, so take logits.",
        {"heads": lambda logits, dist: (dist, dist)},
    ),
    Mistake(
        "The heads are exchanged: logits learn the labels, and dist_logits "
        "what the teacher says.",
        {"heads": lambda logits, dist: (dist, logits)},
    ),
    Mistake(
        "The heads are averaged before the loss: each head has its own part.",
        {"heads": lambda logits, dist: ((logits + dist) / 2,) * 2},
        {"heads": lambda logits, dist: (logits + dist,) * 2},
    ),
)
LABELS_WRONG = (
    Mistake(
        "label_smoothing is not used: it smooths the labels.",
        _labels_by(label_smoothing=0.0),
    ),
    Mistake(
        "Labels that are probabilities lose them: give them to "
        "F.cross_entropy as they are, without argmax.",
        {
            "label_loss": lambda logits, labels, smoothing: _label_loss(
                logits, _classes(labels), smoothing
            )
        },
    ),
)

SHAPES = (
    "Logits of different shapes are accepted: raise a ValueError unless "
    "logits, dist_logits and teacher_logits are all (B, K)."
)
LABEL_SHAPE = (
    "Labels of another shape are accepted: raise a ValueError unless they are "
    "(B,) or (B, K)."
)
MIXED = (
    "Right for classes, wrong for probabilities: labels may be (B, K), as "
    "MixUp and CutMix return them."
)
SMOOTHING = "label_smoothing smooths the labels, and only them."
IMAGES = (
    "Right for one image, wrong for several: take the mean over the images."
)


def _batch(
    b: int, k: int, *, mixed: bool = False, seed: int = 20
) -> tuple[Tensor, ...]:
    """Logits of both heads, labels and the teacher's logits."""
    logits, dist_logits, teacher_logits = (
        normal(b, k, seed=seed + i, std=2) for i in range(3)
    )
    if mixed:
        labels = normal(b, k, seed=seed + 3).softmax(1)
    else:
        labels = (teacher_logits.argmax(1) + 1 + torch.arange(b) % 2) % k
    return logits, dist_logits, labels, teacher_logits


def _cut(*which: int, size: tuple[int, ...]) -> tuple[Tensor, ...]:
    """A batch of which these tensors are cut to this size."""
    batch = list(_batch(3, 5))
    for i in which:
        batch[i] = batch[i][tuple(map(slice, size))]
    return tuple(batch)


REFUSED = (
    Case("a teacher of fewer classes", _cut(3, size=(3, 4)), SHAPES),
    Case("a teacher's answer to one image", _cut(3, size=(1, 5)), SHAPES),
    Case("a class head of more classes", _cut(1, 3, size=(3, 4)), SHAPES),
    Case("a label for one of three images", _cut(2, size=(1,)), LABEL_SHAPE),
)
# The last case is that of the gradients; all who know no option take it.
LAST = Case("six images of seven classes", _batch(6, 7, mixed=True, seed=40))

# hard_distillation_loss.


def _hard(
    heads: Callable[..., tuple[Tensor, Tensor]] = lambda *logits: logits,
    label_loss: Loss = _label_loss,
    answer: Callable[[Tensor], Tensor] = lambda teacher: teacher.argmax(1),
    teacher_loss: Loss = lambda logits, answer, smoothing: F.cross_entropy(
        logits, answer
    ),
    end: Loss = lambda loss, teacher_loss: (loss + teacher_loss) / 2,
) -> Callable[..., Tensor]:
    """hard_distillation_loss, with some steps exchanged."""

    def form(
        logits: Tensor,
        dist_logits: Tensor,
        labels: Tensor,
        teacher_logits: Tensor,
        *,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        for_labels, for_teacher = heads(logits, dist_logits)
        return end(
            label_loss(for_labels, labels, label_smoothing),
            teacher_loss(for_teacher, answer(teacher_logits), label_smoothing),
        )

    return form


def _teacher_by(**arguments: Any) -> dict[str, Any]:
    """F.cross_entropy of the teacher's class with another argument."""
    return {
        "teacher_loss": lambda logits, answer, smoothing: F.cross_entropy(
            logits, answer, **arguments
        )
    }


LABELS_AFTER_SOFTMAX = {
    "label_loss": lambda logits, labels, smoothing: _label_loss(
        logits.softmax(1), labels, smoothing
    )
}
TEACHER_AFTER_SOFTMAX = {
    "teacher_loss": lambda logits, answer, smoothing: F.cross_entropy(
        logits.softmax(1), answer
    )
}
HALVES = "Both parts count half: (loss + teacher_loss) / 2."

HARD_MISTAKES = (
    Mistake(
        "The teacher's answer is used with all its probabilities or logits: "
        "in hard distillation it is one class, its argmax.",
        {"answer": lambda teacher: teacher.softmax(1)},
        {"answer": lambda teacher: teacher},
        {"answer": lambda teacher: teacher.log_softmax(1)},
    ),
    Mistake(
        "The argmax of the teacher runs over the wrong axis: the classes are "
        "the last one, teacher_logits.argmax(dim=1).",
        {"answer": lambda teacher: teacher.argmax(0)},
        {"answer": lambda teacher: teacher.argmax()},
    ),
    Mistake(
        "The class with the teacher's smallest logit is used: take the argmax.",
        {"answer": lambda teacher: teacher.argmin(1)},
    ),
    Mistake(
        HALVES,
        {"end": lambda loss, teacher: loss + teacher},
        {"end": lambda loss, teacher: loss + teacher / 2},
        {"end": lambda loss, teacher: loss / 2 + teacher},
        {"end": lambda loss, teacher: 0.9 * loss + 0.1 * teacher},
        {"end": lambda loss, teacher: 0.1 * loss + 0.9 * teacher},
    ),
    Mistake(
        NO_TEACHER,
        {"end": lambda loss, teacher: loss},
        {"end": lambda loss, teacher: loss / 2},
    ),
    Mistake(
        NO_LABELS,
        {"end": lambda loss, teacher: teacher},
        {"end": lambda loss, teacher: teacher / 2},
    ),
    *BOTH_HEADS,
    *LABELS_WRONG,
    Mistake(
        "The teacher's class is smoothed: label_smoothing is for the labels "
        "alone.",
        {
            "teacher_loss": lambda logits, answer, smoothing: _label_loss(
                logits, answer, smoothing
            )
        },
    ),
    Mistake(
        SUM,
        _labels_by(reduction="sum") | _teacher_by(reduction="sum"),
        _labels_by(reduction="sum"),
        _teacher_by(reduction="sum"),
    ),
    Mistake(
        ONE_NUMBER,
        _labels_by(reduction="none") | _teacher_by(reduction="none"),
        _labels_by(reduction="none"),
        _teacher_by(reduction="none"),
    ),
    Mistake(
        SOFTMAX_FIRST,
        LABELS_AFTER_SOFTMAX | TEACHER_AFTER_SOFTMAX,
        LABELS_AFTER_SOFTMAX,
        TEACHER_AFTER_SOFTMAX,
    ),
)

HARD = LossExercise(
    hard_distillation_loss,
    cases=(
        Case("one image", _batch(1, 4)),
        Case("three images", _batch(3, 5), IMAGES),
        Case("as many images as classes", _batch(4, 4)),
        Case("labels that are probabilities", _batch(3, 5, mixed=True), MIXED),
        Case(
            "label_smoothing=0.2",
            _batch(3, 5),
            SMOOTHING,
            {"label_smoothing": 0.2},
        ),
        *REFUSED,
        Case(
            "all at once",
            _batch(6, 7, mixed=True, seed=30),
            None,
            {"label_smoothing": 0.1},
        ),
        LAST,
    ),
    wrong_forms=lambda: combine(_hard, *HARD_MISTAKES),
)

# soft_distillation_loss.


def _kl(log_p: Tensor, log_q: Tensor, reduction: str = "batchmean") -> Tensor:
    """KL(p || q)."""
    return F.kl_div(log_q, log_p, reduction=reduction, log_target=True)


def _cooled(logits: Tensor, temperature: float) -> Tensor:
    return (logits / temperature).log_softmax(1)


def _soft(
    heads: Callable[..., tuple[Tensor, Tensor]] = lambda *logits: logits,
    at_labels: Callable[..., Tensor] = lambda logits, temperature: logits,
    label_loss: Loss = _label_loss,
    student: Callable[..., Tensor] = _cooled,
    teacher: Callable[..., Tensor] = _cooled,
    distance: Loss = lambda student, teacher: _kl(teacher, student),
    factor: Callable[[float], float] = lambda temperature: temperature**2,
    end: Loss = lambda loss, distance, weight: (
        (1 - weight) * loss + weight * distance
    ),
    scale: Callable[..., Tensor] = lambda loss, temperature: loss,
) -> Callable[..., Tensor]:
    """soft_distillation_loss, with some steps exchanged."""

    def form(
        logits: Tensor,
        dist_logits: Tensor,
        labels: Tensor,
        teacher_logits: Tensor,
        *,
        temperature: float = 3.0,
        weight: float = 0.1,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        for_labels, for_teacher = heads(logits, dist_logits)
        for_labels = at_labels(for_labels, temperature)
        loss = label_loss(for_labels, labels, label_smoothing)
        apart = distance(
            student(for_teacher, temperature),
            teacher(teacher_logits, temperature),
        )
        total = end(loss, factor(temperature) * apart, weight)
        return scale(total, temperature)

    return form


NOT_SQUARED = {"factor": lambda temperature: 1}
NOT_COOLED = {"student": lambda logits, temperature: logits.log_softmax(1)}
TEACHER_NOT_COOLED = {
    "teacher": lambda logits, temperature: logits.log_softmax(1)
}
WARMED = {
    "student": lambda logits, t: (logits * t).log_softmax(1),
    "teacher": lambda logits, t: (logits * t).log_softmax(1),
}
STUDENT_OVER_IMAGES = {"student": lambda logits, t: (logits / t).log_softmax(0)}
TEACHER_OVER_IMAGES = {"teacher": lambda logits, t: (logits / t).log_softmax(0)}
AS_THEY_ARE = {
    "student": lambda logits, t: logits,
    "teacher": lambda logits, t: logits,
}
ONE_CLASS = {
    "teacher": lambda logits, t: logits.argmax(1),
    "distance": F.nll_loss,
}
LOG_TARGET = (
    "The result is NaN: F.kl_div takes the logarithm of its target, so the "
    "target must be probabilities, or log-probabilities with log_target=True."
)
TEMPERATURE = (
    "temperature is not used as it should be: it divides the logits of "
    "student and teacher, and its square multiplies the distance."
)
WEIGHT = (
    "weight is not used as it should be: the distance gets weight, and the "
    "cross-entropy 1 - weight."
)

SOFT_MISTAKES = (
    Mistake(
        "The square of the temperature is missing: the distance is multiplied "
        "by temperature^2, or its gradients shrink as 1 / temperature^2.",
        NOT_SQUARED,
        {"factor": lambda temperature: temperature},
    ),
    Mistake(
        "The distance is divided by temperature^2: multiply it.",
        {"factor": lambda temperature: temperature**-2},
    ),
    Mistake(
        "The cross-entropy is multiplied by temperature^2, too: only the "
        "distance is.",
        NOT_SQUARED
        | {"scale": lambda loss, temperature: loss * temperature**2},
    ),
    Mistake(
        "Only the student's logits are divided by the temperature: divide the "
        "teacher's, too.",
        TEACHER_NOT_COOLED,
    ),
    Mistake(
        "Only the teacher's logits are divided by the temperature: divide the "
        "student's, too.",
        NOT_COOLED,
    ),
    Mistake(
        "No logits are divided by the temperature: divide those of student "
        "and teacher.",
        NOT_COOLED | TEACHER_NOT_COOLED,
        NOT_COOLED | TEACHER_NOT_COOLED | NOT_SQUARED,
    ),
    Mistake(
        "The logits are multiplied by the temperature: divide them by it.",
        WARMED,
        WARMED | {"factor": lambda temperature: temperature**-2},
    ),
    Mistake(
        "The temperature acts on the cross-entropy with the labels, too: only "
        "the distance has one.",
        {"at_labels": lambda logits, temperature: logits / temperature},
    ),
    Mistake(
        "The divergence is the other way round, KL(student || teacher): in "
        "F.kl_div the student comes first and the teacher is the target.",
        {"distance": lambda student, teacher: _kl(student, teacher)},
    ),
    Mistake(
        'The distance is divided by B * K, as reduction="mean" of F.kl_div '
        'does: its mean over the B images is reduction="batchmean".',
        {"distance": lambda s, t: _kl(t, s, "mean")},
    ),
    Mistake(
        SUM,
        {"distance": lambda s, t: _kl(t, s, "sum")},
        _labels_by(reduction="sum"),
        _labels_by(reduction="sum")
        | {"distance": lambda s, t: _kl(t, s, "sum")},
    ),
    Mistake(
        ONE_NUMBER,
        {"distance": lambda s, t: _kl(t, s, "none").sum(1)},
        _labels_by(reduction="none"),
        _labels_by(reduction="none")
        | {"distance": lambda s, t: _kl(t, s, "none").sum(1)},
    ),
    Mistake(
        "One number for each image and class comes back: add up over the "
        "classes, then take the mean over the batch.",
        {"distance": lambda s, t: _kl(t, s, "none")},
    ),
    Mistake(
        "The weights are swapped: the distance gets weight, and the "
        "cross-entropy 1 - weight.",
        {"end": lambda loss, far, weight: weight * loss + (1 - weight) * far},
    ),
    Mistake(
        "The cross-entropy has the whole weight 1: it gets 1 - weight.",
        {"end": lambda loss, far, weight: loss + weight * far},
    ),
    Mistake(
        "The distance has the whole weight 1: it gets weight.",
        {"end": lambda loss, far, weight: (1 - weight) * loss + far},
    ),
    Mistake(
        "weight is not used: the distance gets weight, and the cross-entropy "
        "1 - weight.",
        {"end": lambda loss, far, weight: loss + far},
        {"end": lambda loss, far, weight: (loss + far) / 2},
    ),
    Mistake(
        NO_TEACHER,
        {"end": lambda loss, far, weight: loss},
        {"end": lambda loss, far, weight: (1 - weight) * loss},
    ),
    Mistake(
        NO_LABELS,
        {"end": lambda loss, far, weight: far},
        {"end": lambda loss, far, weight: weight * far},
    ),
    Mistake(
        "The distance is subtracted: add it, so that it becomes small.",
        {"end": lambda loss, far, weight: (1 - weight) * loss - weight * far},
    ),
    Mistake(
        "F.kl_div gets the student's probabilities: its first argument must "
        "be log-probabilities, so use log_softmax.",
        {"distance": lambda s, t: _kl(t, s.exp())},
    ),
    Mistake(
        "F.kl_div gets the student's logits as they are: its first argument "
        "must be log-probabilities, so use log_softmax.",
        {"student": lambda logits, temperature: logits / temperature},
        {"student": lambda logits, temperature: logits},
    ),
    Mistake(
        "log_target=True says that the target are log-probabilities: the "
        "teacher's part needs log_softmax, or leave out log_target.",
        {"distance": lambda s, t: _kl(t.exp(), s)},
        {"teacher": lambda logits, temperature: logits / temperature},
        {"teacher": lambda logits, temperature: logits},
    ),
    Mistake(
        "The softmax runs over the images: the classes are the last axis, "
        "dim=1.",
        STUDENT_OVER_IMAGES | TEACHER_OVER_IMAGES,
        STUDENT_OVER_IMAGES,
        TEACHER_OVER_IMAGES,
    ),
    Mistake(
        "Only the teacher's class is used, its argmax: soft distillation uses "
        "all its probabilities.",
        ONE_CLASS | NOT_COOLED | NOT_SQUARED,
        ONE_CLASS,
        ONE_CLASS | NOT_COOLED,
        ONE_CLASS | NOT_SQUARED,
    ),
    Mistake(
        "This is the cross-entropy with the teacher's probabilities, larger "
        "than the divergence by the teacher's entropy. Its gradients are "
        "right, so a model learns the same; here the distance is the KL "
        "divergence, which is 0 when student and teacher agree.",
        {"distance": lambda s, t: -(t.exp() * s).sum(1).mean()},
    ),
    Mistake(
        "The distance is a squared difference: use the KL divergence of the "
        "probabilities.",
        AS_THEY_ARE | NOT_SQUARED | {"distance": F.mse_loss},
        AS_THEY_ARE | {"distance": F.mse_loss},
        {"distance": lambda s, t: F.mse_loss(s.exp(), t.exp())},
        NOT_SQUARED | {"distance": lambda s, t: F.mse_loss(s.exp(), t.exp())},
        {"distance": F.mse_loss},
    ),
    *BOTH_HEADS,
    *LABELS_WRONG,
    Mistake(SOFTMAX_FIRST, LABELS_AFTER_SOFTMAX),
)


@dataclass(frozen=True)
class SoftLossExercise(LossExercise):
    """A loss that is NaN after the most usual mistake with F.kl_div."""

    def diagnose(self, candidate: Any, outcomes: list[Outcome]) -> str | None:
        """With one class, the logarithm of the probability is 0, not less."""
        cause = super().diagnose(candidate, outcomes)
        failed = next(o for o in outcomes if o.problem and not o.skipped)
        if cause is None and "NaN" in failed.problem:
            one_class = Case("one class", _batch(2, 1))
            [got] = self.call(candidate, one_class)
            if isinstance(got, Tensor) and not got.isnan().any():
                return LOG_TARGET
        return cause


def _soft_case(
    label: str,
    cause: str | None,
    batch: tuple[Tensor, ...] | None = None,
    **kwargs: float,
) -> Case:
    return Case(label, batch or _batch(3, 5), cause, kwargs)


SOFT = SoftLossExercise(
    soft_distillation_loss,
    cases=(
        Case("one image", _batch(1, 4)),
        Case("three images", _batch(3, 5), IMAGES),
        Case("as many images as classes", _batch(4, 4)),
        Case("labels that are probabilities", _batch(3, 5, mixed=True), MIXED),
        _soft_case("temperature=1", TEMPERATURE, temperature=1.0),
        _soft_case("temperature=0.5", TEMPERATURE, temperature=0.5),
        _soft_case("weight=0.5", WEIGHT, weight=0.5),
        _soft_case("weight=0", WEIGHT, weight=0.0),
        _soft_case("weight=1", WEIGHT, weight=1.0),
        _soft_case("label_smoothing=0.2", SMOOTHING, label_smoothing=0.2),
        *REFUSED,
        *(
            _soft_case(
                f"temperature={temperature}",
                "A temperature that is not positive is accepted: raise a "
                "ValueError.",
                temperature=temperature,
            )
            for temperature in (0, -1)
        ),
        *(
            _soft_case(
                f"weight={weight}",
                "A weight that is less than 0 or more than 1 is accepted: "
                "raise a ValueError.",
                weight=weight,
            )
            for weight in (-0.1, 1.1)
        ),
        _soft_case(
            "all at once",
            None,
            _batch(6, 7, mixed=True, seed=30),
            temperature=2.0,
            weight=0.3,
            label_smoothing=0.1,
        ),
        LAST,
    ),
    wrong_forms=lambda: combine(_soft, *SOFT_MISTAKES),
)

# DistilledVisionTransformer.

Model = DistilledVisionTransformer
Pair = tuple[Tensor, Tensor]


def _first(self: Model, x: Tensor, *tokens: Tensor) -> Tensor:
    """Tokens in front of the patches, one for all images each."""
    return torch.cat([t.expand(len(x), -1, -1) for t in tokens] + [x], dim=1)


def _last(self: Model, x: Tensor, *tokens: Tensor) -> Tensor:
    return torch.cat([x] + [t.expand(len(x), -1, -1) for t in tokens], dim=1)


def _tokens(self: Model, x: Tensor) -> Tensor:
    return _first(self, x, self.cls_token, self.dist_token)


def _split(self: Model, x: Tensor) -> Tensor:
    """The distillation token behind the patches."""
    return _last(self, _first(self, x, self.cls_token), self.dist_token)


def _distilled(
    place: Callable[..., Tensor] = lambda s, x: _tokens(s, x) + s.pos_embed,
    encode: Callable[..., Tensor] = lambda self, x: self.encode(x),
    read: Callable[[Tensor], Pair] = lambda x: (x[:, 0], x[:, 1]),
    classify: Callable[..., Pair] = lambda s, x, y: (s.head(x), s.head_dist(y)),
    in_training: Callable[..., Any] = lambda x, y: (x, y),
    in_evaluation: Callable[..., Any] = lambda x, y: (x + y) / 2,
) -> Callable[[Model, Tensor], Any]:
    """DistilledVisionTransformer.forward, with some steps exchanged."""

    def form(self: Model, images: Tensor) -> Any:
        x = self.dropout(place(self, self.embed_patches(images)))
        logits = classify(self, *read(encode(self, x)))
        return (in_training if self.training else in_evaluation)(*logits)

    return form


def _softmax_twice(x: Tensor, y: Tensor) -> Tensor:
    return x.softmax(-1) + y.softmax(-1)


def _without_norm(self: Model, x: Tensor) -> Tensor:
    for block in self.blocks:
        x = block(x)
    return x


NO_DIST_POSITION = (
    "The distillation token has no position: put both tokens in front of the "
    "patches first, then add the table, which has 2 + N rows."
)
NOT_A_PAIR = (
    "In training the logits of both heads come back, each on its own: the "
    "pair (logits of head, logits of head_dist)."
)
NOT_THE_MEAN = (
    "Right in training, wrong in evaluation: there the mean of the logits of "
    "both heads comes back."
)
MODE = (
    "A pair comes back in evaluation, too: there return the mean of the "
    "logits of both heads. self.training tells the two apart."
)
BEFORE = (
    "The distillation token comes before the class token: the order is class "
    "token, distillation token, patches, as in published weights."
)
AT_THE_END = (
    "The distillation token is at the end, behind the patches: it is the "
    "second token, right after the class token."
)
NO_HEADS = (
    "With num_classes=0 both heads are left out: nn.Identity() stands in the "
    "place of each."
)
POOL = (
    'Another pool than "cls" is accepted, and the heads read the tokens '
    "alone: raise a ValueError."
)

DISTILLED_MISTAKES = (
    Mistake(
        BEFORE,
        {
            "place": lambda s, x: (
                _first(s, x, s.dist_token, s.cls_token) + s.pos_embed
            )
        },
        {
            "place": lambda s, x: (
                _first(s, x, s.dist_token, s.cls_token) + s.pos_embed
            ),
            "read": lambda x: (x[:, 1], x[:, 0]),
        },
    ),
    Mistake(
        AT_THE_END,
        {
            "place": lambda s, x: _split(s, x) + s.pos_embed,
            "read": lambda x: (x[:, 0], x[:, -1]),
        },
        {"place": lambda s, x: _split(s, x) + s.pos_embed},
    ),
    Mistake(
        "Both tokens are at the end, behind the patches: they come first.",
        {
            "place": lambda s, x: (
                _last(s, x, s.cls_token, s.dist_token) + s.pos_embed
            ),
            "read": lambda x: (x[:, -2], x[:, -1]),
        },
        {
            "place": lambda s, x: (
                _last(s, x, s.cls_token, s.dist_token) + s.pos_embed
            )
        },
    ),
    Mistake(
        NO_DIST_POSITION,
        {
            "place": lambda s, x: _first(
                s,
                x + s.pos_embed[:, 2:],
                s.cls_token + s.pos_embed[:, :1],
                s.dist_token,
            )
        },
        {
            "place": lambda s, x: torch.cat(
                [
                    _first(s, x, s.cls_token) + s.pos_embed[:, :-1],
                    s.dist_token.expand(len(x), -1, -1),
                ],
                dim=1,
            ),
            "read": lambda x: (x[:, 0], x[:, -1]),
        },
    ),
    Mistake(
        "The class token has no position: put both tokens in front of the "
        "patches first, then add the table, which has 2 + N rows.",
        {
            "place": lambda s, x: _first(
                s, _first(s, x, s.dist_token) + s.pos_embed[:, 1:], s.cls_token
            )
        },
    ),
    Mistake(
        "Both tokens have no position: put them in front of the patches "
        "first, then add the table, which has 2 + N rows.",
        {"place": lambda s, x: _tokens(s, x + s.pos_embed[:, 2:])},
        {"place": lambda s, x: _tokens(s, x + s.pos_embed[:, :-2])},
    ),
    Mistake(
        "The positions are missing: add pos_embed before the first block.",
        {"place": _tokens},
    ),
    Mistake(
        "The positions are shifted: row 0 of the table belongs to the class "
        "token, row 1 to the distillation token, row 2 to the first patch.",
        {"place": lambda s, x: _tokens(s, x) + s.pos_embed.roll(-1, 1)},
        {"place": lambda s, x: _tokens(s, x) + s.pos_embed.roll(-2, 1)},
    ),
    Mistake(
        "The class token stands in the place of the distillation token: use "
        "dist_token, which is learned on its own.",
        {
            "place": lambda s, x: (
                _first(s, x, s.cls_token, s.cls_token) + s.pos_embed
            )
        },
    ),
    Mistake(
        "The distillation token stands in the place of the class token: use "
        "cls_token, too.",
        {
            "place": lambda s, x: (
                _first(s, x, s.dist_token, s.dist_token) + s.pos_embed
            )
        },
    ),
    Mistake(
        "dist_token is not used: a new token of zeros or ones stands in its "
        "place.",
        {
            "place": lambda s, x: (
                _first(s, x, s.cls_token, 0 * s.dist_token) + s.pos_embed
            )
        },
        {
            "place": lambda s, x: (
                _first(s, x, s.cls_token, 0 * s.dist_token + 1) + s.pos_embed
            )
        },
    ),
    Mistake(
        "The last norm is missing: norm comes after the last block.",
        {"encode": _without_norm},
    ),
    Mistake(
        "Both heads read the class token: head_dist reads the distillation "
        "token, token 1.",
        {"read": lambda x: (x[:, 0], x[:, 0])},
    ),
    Mistake(
        "Both heads read the distillation token: head reads the class token, "
        "token 0.",
        {"read": lambda x: (x[:, 1], x[:, 1])},
    ),
    Mistake(
        "The heads are swapped: head reads the class token, and head_dist the "
        "distillation token.",
        {"read": lambda x: (x[:, 1], x[:, 0])},
        {"classify": lambda s, x, y: (s.head_dist(x), s.head(y))},
    ),
    Mistake(
        "head_dist reads a patch: the distillation token is token 1.",
        {"read": lambda x: (x[:, 0], x[:, 2])},
        {"read": lambda x: (x[:, 0], x[:, -1])},
        {"read": lambda x: (x[:, 1], x[:, 2])},
    ),
    Mistake(
        "head_dist reads the mean of the tokens: it reads the distillation "
        "token, token 1.",
        {"read": lambda x: (x[:, 0], x[:, 2:].mean(1))},
        {"read": lambda x: (x[:, 0], x[:, 1:].mean(1))},
        {"read": lambda x: (x[:, 0], x.mean(1))},
    ),
    Mistake(
        "Axis 1 stays: read the tokens as x[:, 0] and x[:, 1], so that the "
        "logits are (B, K).",
        {"read": lambda x: (x[:, :1], x[:, 1:2])},
    ),
    Mistake(
        "Every token goes to the heads: each head reads one token, so that "
        "the logits are (B, K).",
        {"read": lambda x: (x, x)},
    ),
    Mistake(
        "head is used for both tokens: the distillation token has a head of "
        "its own, head_dist.",
        {"classify": lambda s, x, y: (s.head(x), s.head(y))},
    ),
    Mistake(
        "head_dist is used for both tokens: the class token has a head of its "
        "own, head.",
        {"classify": lambda s, x, y: (s.head_dist(x), s.head_dist(y))},
    ),
    Mistake(
        "The heads return logits: no softmax follows them.",
        {
            "classify": lambda s, x, y: (
                s.head(x).softmax(-1),
                s.head_dist(y).softmax(-1),
            )
        },
        {
            "classify": lambda s, x, y: (
                s.head(x).log_softmax(-1),
                s.head_dist(y).log_softmax(-1),
            )
        },
    ),
    Mistake(
        "The pair is turned round in training: first the logits of head, then "
        "those of head_dist.",
        {"in_training": lambda x, y: (y, x)},
    ),
    Mistake(
        f"The mean comes back in training. {NOT_A_PAIR}",
        {"in_training": lambda x, y: (x + y) / 2},
    ),
    Mistake(
        f"The logits are added in training. {NOT_A_PAIR}",
        {"in_training": lambda x, y: x + y},
    ),
    Mistake(
        f"Only one head comes back in training. {NOT_A_PAIR}",
        {"in_training": lambda x, y: x},
        {"in_training": lambda x, y: y},
    ),
    Mistake(
        "The pair is one tensor in training: return the two as a tuple, (B, "
        "K) each.",
        {"in_training": lambda x, y: torch.stack([x, y])},
        {"in_training": lambda x, y: torch.stack([x, y], dim=1)},
        {"in_training": lambda x, y: torch.cat([x, y])},
        {"in_training": lambda x, y: torch.cat([x, y], dim=1)},
    ),
    Mistake(
        "The mean of probabilities comes back in evaluation: return the mean "
        "of the logits. The paper adds up the softmax of both heads; its code "
        "and its published weights use the logits.",
        {"in_evaluation": lambda x, y: _softmax_twice(x, y) / 2},
        {"in_evaluation": _softmax_twice},
        {"in_evaluation": lambda x, y: ((x + y) / 2).softmax(-1)},
        {"in_evaluation": lambda x, y: (_softmax_twice(x, y) / 2).log()},
        {
            "in_evaluation": lambda x, y: (
                (x.log_softmax(-1) + y.log_softmax(-1)) / 2
            )
        },
    ),
    Mistake(
        "Only the class head comes back in evaluation: return the mean of the "
        "logits of both heads.",
        {"in_evaluation": lambda x, y: x},
    ),
    Mistake(
        "Only the distillation head comes back in evaluation: return the mean "
        "of the logits of both heads.",
        {"in_evaluation": lambda x, y: y},
    ),
    Mistake(
        "The logits are added in evaluation: return their mean, (x + y) / 2.",
        {"in_evaluation": lambda x, y: x + y},
        {"in_evaluation": lambda x, y: x + y / 2},
    ),
    Mistake(
        "The larger logit of each class comes back in evaluation: return the "
        "mean of both.",
        {"in_evaluation": torch.maximum},
    ),
    Mistake(
        MODE,
        {"in_evaluation": lambda x, y: (x, y)},
        {"in_evaluation": lambda x, y: (y, x)},
    ),
    Mistake(
        "The modes are exchanged: the pair comes back in training, and the "
        "mean in evaluation.",
        {
            "in_training": lambda x, y: (x + y) / 2,
            "in_evaluation": lambda x, y: (x, y),
        },
    ),
)


@dataclass(frozen=True)
class DistilledExercise(PartExercise):
    """A model that returns a pair in training, and a tensor in evaluation."""

    def inspect(self, candidate: object) -> None:
        """Say what a table of positions of another size means here."""
        try:
            super().inspect(candidate)
        except Refusal as refusal:
            if "The parameter pos_embed must" in str(refusal):
                raise Refusal(
                    "The table pos_embed must be (1, 2 + N, D), a row for each "
                    "of the two tokens in front and for each patch: set "
                    "num_prefix_tokens = 2 in your class, or make the table "
                    "yourself."
                ) from None
            raise

    def ready(self, candidate: Any, case: Case) -> Callable[..., Any]:
        """Two calls in training are compared as one tensor."""
        if isinstance(isolate(self.build, case), Exception):
            return candidate(**case.init)  # it should refuse this, too
        if case.mode != "random":
            return super().ready(candidate, case)
        module = super().ready(candidate, replace(case, mode="training"))

        def observe(images: Tensor) -> Any:
            one, two = module(images), module(images)
            if not (_is_pair(one) and _is_pair(two)):
                return one
            return torch.tensor([not torch.cat(one).equal(torch.cat(two))])

        return observe

    def run(self, candidate: Any, case: Case) -> Outcome:
        """Call the two results by their names."""
        outcome = super().run(candidate, case)
        problem, cause = outcome.problem, outcome.cause
        for words, ours in (
            ("the pair (output, weights)", "the pair of logits"),
            ("output: ", "class head: "),
            ("weights: ", "distillation head: "),
        ):
            problem = problem and problem.replace(words, ours)
        if cause and cause.startswith("Your code must return"):
            cause = None  # some wrong forms do this
        return replace(outcome, problem=problem, cause=cause)

    def diagnose(self, candidate: Any, outcomes: list[Outcome]) -> str | None:
        """Look for one wrong form for training and evaluation together."""
        ran = [outcome for outcome in outcomes if not outcome.skipped]
        compared = [o for o in ran if not o.case.is_apart]
        failed = next(outcome for outcome in ran if outcome.problem)
        if failed not in compared:
            return failed.cause or failed.case.cause
        return ModuleExercise.diagnose(
            self, candidate, compared
        ) or _other_result(failed)


def _is_pair(result: Any) -> bool:
    return kind(result) == "a pair of tensors"


def _other_result(outcome: Outcome) -> str | None:
    """What to say of a result in training that is no pair."""
    got = outcome.got
    if isinstance(got, BaseException) or _is_pair(got):
        return None
    return f"{NOT_A_PAIR} Your code returns {kind(got)}."


def _case(
    label: str,
    cause: str | None = None,
    *,
    batch: int = 1,
    img_size: int | tuple[int, int] = 8,
    image: tuple[int, int] | None = None,
    patch_size: int | tuple[int, int] = 4,
    in_chans: int = 3,
    num_classes: int = 7,
    depth: int = 1,
    num_heads: int = 1,
    mode: str = "training",
    is_apart: bool = False,
    **optional: Any,
) -> PartCase:
    init = {
        "img_size": img_size,
        "patch_size": patch_size,
        "in_chans": in_chans,
        "num_classes": num_classes,
        "embed_dim": 8,
        "depth": depth,
        "num_heads": num_heads,
        **optional,
    }
    if image is None:
        image = (img_size,) * 2 if isinstance(img_size, int) else img_size
    images = normal(batch, in_chans, *image)
    return PartCase(label, (images,), cause, {}, init, mode, is_apart)


def _distilled_forms() -> Iterator[WrongForm]:
    """Each code once: if both heads read all tokens, turning the pair round
    in training is the same as swapping the heads.
    """
    for form in combine(_distilled, *DISTILLED_MISTAKES):
        same = "Every token goes to the heads", "The pair is turned round"
        if not all(cause in form.cause for cause in same):
            yield form


DISTILLED = DistilledExercise(
    DistilledVisionTransformer,
    cases=(
        _case("one image, one block, one head"),
        _case("two images", SEVERAL_IMAGES, batch=2),
        _case(
            "two blocks of two heads",
            "Right for one block of one head only: use depth and num_heads.",
            depth=2,
            num_heads=2,
        ),
        _case(
            "one channel",
            "Right for one number of channels only: use in_chans.",
            in_chans=1,
        ),
        _case(
            "an image of 12 x 8, patches of (2, 4)",
            "Right for square images and patches only: img_size and patch_size "
            "are ints, or the height and the width.",
            img_size=(12, 8),
            patch_size=(2, 4),
        ),
        _case("num_classes=0", NO_HEADS, num_classes=0),
        _case(
            "mlp_ratio=2.5",
            "mlp_ratio is not used: give it to the encoder blocks.",
            mlp_ratio=2.5,
        ),
        _case("one image in evaluation", NOT_THE_MEAN, mode="evaluation"),
        _case(
            "two images in evaluation",
            f"{NOT_THE_MEAN} For a batch of two, a, b = model(images) takes "
            "two images for two heads.",
            batch=2,
            mode="evaluation",
        ),
        *(
            _case(
                f"{name}=0.5 in evaluation",
                DROPOUT_IN_EVALUATION,
                batch=2,
                depth=2,
                mode="evaluation",
                is_apart=True,
                **{name: 0.5},
            )
            for name in ("dropout", "drop_path")
        ),
        *(
            _case(
                f"{name}=0.5 in training",
                DROPOUT_NOT_USED.replace("dropout", name),
                batch=64,
                depth=2,
                mode="random",
                is_apart=True,
                **{name: 0.5},
            )
            for name in ("dropout", "drop_path")
        ),
        _case("an image with more patches", OTHER_SIZE, image=(12, 8)),
        _case(
            "an image of another shape, with as many patches",
            OTHER_SIZE,
            image=(4, 16),
        ),
        _case('pool="mean"', POOL, pool="mean"),
        _case(
            "all axes different",
            batch=3,
            img_size=(12, 6),
            patch_size=(4, 3),
            in_chans=1,
            depth=3,
            num_heads=2,
        ),
    ),
    wrong_forms=_distilled_forms,
    hints={
        "missing: dist_token": (
            "The distillation token is a parameter of its own, dist_token."
        ),
        "missing: dist_token, head_dist": "It has a head of its own, too.",
        "missing: head_dist": (
            "The distillation token has a head of its own, head_dist."
        ),
    },
    errors=dict.fromkeys(
        (
            "tensor a (5) must match the size of tensor b (6)",
            "tensor a (6) must match the size of tensor b (5)",
        ),
        NO_DIST_POSITION,
    ),
)

# ask_teacher.


class Notes:
    """What a teacher was called with; copies of the teacher share it."""

    def __init__(self) -> None:
        self.modes: set[str] = set()
        self.images: list[Tensor] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Notes:
        return self


class Teacher(nn.Module):
    """A linear classifier of 4 pixels after a batch norm; it takes notes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.norm.running_mean = normal(4, seed=13)
        self.head = nn.Linear(4, 3)
        self.head.weight.data = normal(3, 4, seed=11)
        self.head.bias.data = normal(3, seed=12)
        self.notes = Notes()

    def forward(self, images: Tensor) -> Tensor:
        mode = "training" if self.training else "evaluation"
        self.notes.modes.add(mode)
        self.notes.images.append(images.detach().clone())
        return self.head(self.norm(images.flatten(1)))


class Blend:
    """A mix that blends neighbors, each time with another share."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor, labels: Tensor) -> Pair:
        self.calls += 1
        share, labels = 0.5**self.calls, F.one_hot(labels, 3).float()
        return (
            torch.lerp(images, images.roll(1, 0), share),
            torch.lerp(labels, labels.roll(1, 0), share),
        )


BATCHES = tuple(
    (normal(4, 1, 2, 2, seed=seed), torch.tensor(labels))
    for seed, labels in ((14, [0, 2, 1, 2]), (15, [1, 1, 0, 2]))
)
NO_FUNCTION = (
    "Your code must return a function: define ask(images, labels) inside, and "
    "return ask, without brackets."
)
TEACHER_MODE = (
    "The teacher is in training mode, so that its dropout and batch norm act: "
    "call teacher.eval() before it is asked."
)
GRAPH = (
    "The teacher's logits carry a graph back through the teacher, which does "
    "not learn: ask it under with torch.no_grad()."
)
LABELS_LOST = (
    "The labels are lost: return the images, and the pair (labels, logits of "
    "the teacher)."
)
LOGITS_LOST = (
    "The teacher's logits are lost: return the images, and the pair (labels, "
    "logits of the teacher)."
)
FLAT = (
    "Labels and teacher's logits are one pair, because train_one_epoch passes "
    "them to loss_fn as one: return images, (labels, teacher_logits)."
)


def _answer(result: Any, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and logits of a result; else Refusal says what it is."""
    if isinstance(result, tuple | list):
        if len(result) == 3 and all(isinstance(x, Tensor) for x in result):
            raise Refusal(FLAT)
        if _is_pair(result):
            is_labels = result[1].shape == labels.shape and bool(
                (result[1] == labels).all()
            )
            raise Refusal(LOGITS_LOST if is_labels else LABELS_LOST)
        if len(result) == 2 and _is_pair(result[1]):
            images, (labels, logits) = result
            if isinstance(images, Tensor):
                return images, labels, logits
    raise Refusal(
        "The function that you return must return images, (labels, logits of "
        f"the teacher), not {kind(result)}."
    )


def _observe_teacher(
    function: Callable[..., Any],
    make_teacher: Callable[[], Teacher],
    make_mix: Callable[[], Blend] | None = None,
) -> Facts | None:
    teacher, mix = make_teacher().train(), make_mix() if make_mix else None
    saw, answers = [], []
    with torch.enable_grad():
        ask = function(teacher, mix) if mix else function(teacher)
        if ask is None:
            return None
        if not callable(ask):
            raise Refusal(NO_FUNCTION)
        for i, (images, labels) in enumerate(BATCHES):
            expected, classes = images, labels
            if mix:
                again = Blend()
                again.calls = i
                expected, classes = again(images, labels)
            result = ask(images.clone(), labels.clone())
            if result is None:
                return None
            answers.append(_answer(result, classes))
            seen, teacher.notes.images = teacher.notes.images, []
            saw.append(_what_it_saw(seen, images, expected))
    images, labels, logits = (
        [x.detach() for x in parts] for parts in zip(*answers, strict=True)
    )
    return {
        "calls of mix": mix.calls if mix else 0,
        "what the teacher saw": ", then ".join(dict.fromkeys(saw)),
        "mode of the teacher": (
            " and ".join(sorted(teacher.notes.modes)) or "none"
        ),
        "images": torch.cat(images),
        "labels": torch.cat(labels),
        "logits of the teacher": torch.cat(logits),
        "graph of the logits": (
            "kept" if any(x[2].requires_grad for x in answers) else "none"
        ),
    }


def _what_it_saw(seen: list[Tensor], before: Tensor, after: Tensor) -> str:
    if not seen:
        return "nothing"
    images = torch.cat([x.view(-1, *x.shape[-3:]) for x in seen])
    for what, x in (("after mix", after), ("before mix", before)):
        if images.shape == x.shape and images.allclose(x, atol=1e-5):
            return f"the images {what}"
    return "other images"


def _ask(
    prepare: Callable[[nn.Module], Any] = lambda teacher: teacher.eval(),
    context: Callable[[], Any] = torch.no_grad,
    see: Callable[..., Pair] = lambda mix, before, after: after[0],
    say: Callable[[Tensor], Tensor] = lambda logits: logits,
    give: Callable[..., Pair] = lambda mix, before, after: after,
    pair: Callable[..., Any] = lambda labels, logits: (labels, logits),
    end: Callable[..., Any] = lambda images, pair: (images, pair),
    is_used: bool = True,
    is_asked_once: bool = False,
) -> Callable[..., Any]:
    """ask_teacher, with some steps exchanged."""

    def form(teacher: nn.Module, mix: Callable[..., Pair] | None = None) -> Any:
        answers: list[Tensor] = []

        def ask(images: Tensor, labels: Tensor) -> Any:
            before = after = (images, labels)
            if mix is not None and is_used:
                after = mix(images, labels)
            prepare(teacher)
            if not (is_asked_once and answers):
                with context():
                    answers.append(say(teacher(see(mix, before, after))))
            images, labels = give(mix, before, after)
            return end(images, pair(labels, answers[-1]))

        return ask

    return form


def _mixed_again(mix: Any, before: Pair, after: Pair) -> Pair:
    return mix(*before) if mix else after


ASK_MISTAKES = (
    Mistake(TEACHER_MODE, {"prepare": lambda teacher: None}),
    Mistake(GRAPH, {"context": torch.enable_grad}),
    Mistake(
        "The teacher sees the images before mix, and the student after it: "
        "mix first, so that both see the same.",
        {"see": lambda mix, before, after: before[0]},
    ),
    Mistake(
        "mix draws twice, so that teacher and student see different images: "
        "call it once, and use its result for both.",
        {"see": lambda mix, before, after: _mixed_again(mix, before, after)[0]},
        {"give": _mixed_again},
    ),
    Mistake(
        "mix is not used: images and labels go through it first.",
        {"is_used": False},
    ),
    Mistake(
        "The images come back as they were before mix: return the mixed ones.",
        {"give": lambda mix, before, after: (before[0], after[1])},
    ),
    Mistake(
        "The labels come back as they were before mix: return the mixed ones.",
        {"give": lambda mix, before, after: (after[0], before[1])},
    ),
    Mistake(
        "Images and labels come back as they were before mix: return the mixed "
        "ones.",
        {"give": lambda mix, before, after: before},
    ),
    Mistake(
        "The teacher's classes come back, not its logits: leave out argmax, "
        "the loss does that.",
        {"say": lambda logits: logits.argmax(1)},
        {"say": lambda logits: F.one_hot(logits.argmax(1), 3)},
    ),
    Mistake(
        "The teacher's probabilities come back, not its logits: leave out "
        "softmax, the loss does that.",
        {"say": lambda logits: logits.softmax(1)},
        {"say": lambda logits: logits.log_softmax(1)},
    ),
    Mistake(
        "The teacher is asked once for all batches: ask it again for each.",
        {"is_asked_once": True},
    ),
    Mistake(
        "The pair is turned round: the labels come first, then the teacher's "
        "logits.",
        {"pair": lambda labels, logits: (logits, labels)},
    ),
    Mistake(LABELS_LOST, {"pair": lambda labels, logits: logits}),
    Mistake(LOGITS_LOST, {"pair": lambda labels, logits: labels}),
    Mistake(FLAT, {"end": lambda images, pair: (images, *pair)}),
)


def _ask_forms() -> Iterator[WrongForm]:
    return combine(_ask, *ASK_MISTAKES)


ASK_TEACHER = ObservedExercise(
    ask_teacher,
    cases=(
        Case("two batches, no mix", (Teacher,)),
        Case(
            "two batches that are mixed",
            (Teacher, Blend),
            "Right without mix, wrong with it: both models see the images "
            "after mix, and the labels are those that mix returns.",
        ),
    ),
    wrong_forms=_ask_forms,
    observe=_observe_teacher,
    causes={"mode of the teacher": TEACHER_MODE, "graph of the logits": GRAPH},
)

EXERCISES = (DISTILLED, HARD, SOFT, ASK_TEACHER)
