"""The checks of chapter 14: right solutions pass, mistakes are named."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vit_lessons import (
    DistilledVisionTransformer,
    EncoderBlock,
    PatchEmbed,
    VisionTransformer,
    ask_teacher,
    hard_distillation_loss,
    soft_distillation_loss,
)
from vit_lessons.checks import check, deit

HARD, SOFT = "hard_distillation_loss", "soft_distillation_loss"
MODEL, ASK = "DistilledVisionTransformer", "ask_teacher"


def must_fit(logits, dist_logits, labels, teacher_logits):
    if not logits.shape == dist_logits.shape == teacher_logits.shape:
        raise ValueError("logits")
    if labels.shape not in (logits.shape, logits.shape[:1]):
        raise ValueError("labels")


def must_lie_in_range(temperature, weight):
    if temperature <= 0 or weight < 0 or weight > 1:
        raise ValueError("temperature or weight")


# Right losses, as different as readers are.


def hard_by_torch(logits, dist, labels, teacher, label_smoothing=0.0):
    must_fit(logits, dist, labels, teacher)
    criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    to_teacher = nn.CrossEntropyLoss()(dist, teacher.max(dim=-1).indices)
    return 0.5 * criterion(logits, labels) + 0.5 * to_teacher


def hard_with_loops(logits, dist, labels, teacher, *, label_smoothing=0.0):
    must_fit(logits, dist, labels, teacher)
    b, k = logits.shape
    total = 0.0
    for i in range(b):
        target = labels[i]
        if labels.ndim == 1:
            target = torch.zeros(k)
            target[labels[i]] = 1.0
        target = target * (1 - label_smoothing) + label_smoothing / k
        total = total - (target * logits[i].log_softmax(0)).sum() / 2
        total = total - dist[i].log_softmax(0)[teacher[i].argmax()] / 2
    return total / b


def hard_by_arithmetic(logits, dist, labels, teacher):
    must_fit(logits, dist, labels, teacher)
    if labels.ndim == 1:
        labels = F.one_hot(labels, logits.shape[1])
    answers = F.one_hot(teacher.detach().argmax(1), logits.shape[1])
    one = (logits.logsumexp(1) - (labels * logits).sum(1)).mean()
    two = (dist.logsumexp(1) - (answers * dist).sum(1)).mean()
    return torch.lerp(one, two, 0.5)


def soft_by_the_definition(
    logits, dist, labels, teacher, temperature=3.0, weight=0.1, **smoothing
):
    must_fit(logits, dist, labels, teacher)
    must_lie_in_range(temperature, weight)
    p = torch.softmax(teacher.detach() / temperature, -1)
    q = torch.softmax(dist / temperature, -1)
    kl = (p * (p / q).log()).sum(-1).mean()
    loss = F.cross_entropy(logits, labels, **smoothing)
    return loss * (1 - weight) + weight * kl * temperature * temperature


def soft_with_probabilities(
    logits,
    dist,
    labels,
    teacher,
    *,
    temperature=3.0,
    weight=0.1,
    label_smoothing=0.0,
):
    must_fit(logits, dist, labels, teacher)
    must_lie_in_range(temperature, weight)
    divergence = nn.KLDivLoss(reduction="batchmean")(
        F.log_softmax(dist / temperature, dim=1),
        F.softmax(teacher / temperature, dim=1),
    )
    loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return torch.lerp(loss, temperature**2 * divergence, weight)


def soft_without_options(logits, dist, labels, teacher):
    """Cross-entropy less the teacher's entropy, with fixed numbers."""
    must_fit(logits, dist, labels, teacher)
    p = (teacher / 3).softmax(1)
    apart = F.cross_entropy(dist / 3, p) - torch.special.entr(p).sum(1).mean()
    return 0.9 * F.cross_entropy(logits, labels) + 0.9 * apart


# Right models.


class FromVit(VisionTransformer):
    """As the package does, and with each step written out."""

    num_prefix_tokens = 2

    def __init__(self, *args, embed_dim, num_classes, **kwargs):
        super().__init__(
            *args, embed_dim=embed_dim, num_classes=num_classes, **kwargs
        )
        if self.pool != "cls":
            raise ValueError("pool")
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.head_dist = nn.Identity()
        if num_classes > 0:
            self.head_dist = nn.Linear(embed_dim, num_classes)

    def order(self, cls, dist, x):
        return cls, dist, x

    def read(self, x):
        return x[:, 0], x[:, 1]

    def add_positions(self, x):
        cls = self.cls_token.repeat(len(x), 1, 1)
        dist = self.dist_token.repeat(len(x), 1, 1)
        x = torch.cat(self.order(cls, dist, x), dim=1)
        return self.dropout(x + self.pos_embed)

    def both(self, images):
        x, y = self.read(self.forward_features(images))
        return self.head(x), self.head_dist(y)

    def forward(self, images):
        x, y = self.both(images)
        return (x, y) if self.training else (x + y) / 2


class FromParts(nn.Module):
    """Neither a VisionTransformer nor all of its arguments."""

    def __init__(
        self,
        img_size,
        patch_size,
        in_chans,
        num_classes,
        embed_dim,
        depth,
        num_heads,
    ):
        super().__init__()
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.img_size = img_size
        if isinstance(img_size, int):
            self.img_size = (img_size, img_size)
        p1, p2 = self.patch_embed.patch_size
        n = self.img_size[0] // p1 * (self.img_size[1] // p2)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, n + 2, embed_dim))
        self.blocks = nn.Sequential(
            *(EncoderBlock(embed_dim, num_heads) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        make = nn.Linear if num_classes else nn.Identity
        self.head = make(embed_dim, num_classes)
        self.head_dist = make(embed_dim, num_classes)

    def forward(self, images):
        if images.shape[2:] != self.img_size:
            raise ValueError("img_size")
        x = self.patch_embed(images)
        front = torch.cat([self.cls_token, self.dist_token], dim=1)
        x = torch.cat([front.expand(len(x), 2, -1), x], dim=1)
        x = self.norm(self.blocks(x + self.pos_embed))
        pair = [self.head(x[:, 0]), self.head_dist(x[:, 1])]
        if not self.training:
            return torch.stack(pair).mean(0)
        return pair


# Right teachers.


def ask_after_eval(teacher, mix=None):
    teacher.eval()

    @torch.no_grad()
    def ask(images, labels):
        if mix:
            images, labels = mix(images, labels)
        return images, (labels, teacher(images))

    return ask


def ask_detached(teacher, mix=None):
    def ask(images, labels):
        images, labels = mix(images, labels) if mix else (images, labels)
        return [images, [labels, teacher.eval()(images).detach()]]

    return ask


def ask_a_frozen_copy(teacher, mix=None):
    teacher = copy.deepcopy(teacher).eval().requires_grad_(False)

    def ask(*batch):
        images, labels = batch if mix is None else mix(*batch)
        return images, (labels, teacher(images))

    return ask


class Ask:
    """An object that can be called, image by image."""

    def __init__(self, teacher, mix):
        self.teacher, self.mix = teacher.eval(), mix

    def __call__(self, images, labels):
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        with torch.inference_mode():
            logits = [self.teacher(image[None]) for image in images]
        return images, (labels, torch.cat(logits))


def ask_by_object(teacher, mix=None):
    return Ask(teacher, mix)


RIGHT = [
    (HARD, hard_by_torch),
    (HARD, hard_with_loops),
    (HARD, hard_by_arithmetic),
    (SOFT, soft_by_the_definition),
    (SOFT, soft_with_probabilities),
    (SOFT, soft_without_options),
    (MODEL, FromVit),
    (MODEL, FromParts),
    (ASK, ask_after_eval),
    (ASK, ask_detached),
    (ASK, ask_a_frozen_copy),
    (ASK, ask_by_object),
]
PACKAGE = {
    MODEL: DistilledVisionTransformer,
    HARD: hard_distillation_loss,
    SOFT: soft_distillation_loss,
    ASK: ask_teacher,
}


@pytest.mark.parametrize(("name", "candidate"), PACKAGE.items())
def test_the_package_itself_passes(name, candidate):
    result = check(name, candidate)
    assert result.passed, result.report
    assert "not run" not in result.report


@pytest.mark.parametrize(("name", "candidate"), RIGHT)
def test_a_right_solution_written_differently_passes(name, candidate):
    result = check(name, candidate)
    assert result.passed, result.report
    assert result.cause is None


def test_what_a_candidate_does_not_take_is_not_run():
    for name, candidate, words in (
        (HARD, hard_by_arithmetic, "2 cases with label_smoothing"),
        (SOFT, soft_without_options, "temperature, weight, label_smoothing"),
        (MODEL, FromParts, "with mlp_ratio, dropout, drop_path, pool, which"),
    ):
        last = check(name, candidate).report.splitlines()[-1]
        assert last.startswith("  not run")
        assert words in last


# Wrong hard losses.


def hard(form):
    """A loss of five arguments that looks at the shapes first."""

    def candidate(logits, dist, labels, teacher, *, label_smoothing=0.0):
        must_fit(logits, dist, labels, teacher)
        return form(logits, dist, labels, teacher, label_smoothing)

    return candidate


def ce(logits, target, smoothing=0.0, **more):
    return F.cross_entropy(logits, target, label_smoothing=smoothing, **more)


def hard_with_probabilities(x, y, labels, t, s):
    return (ce(x, labels, s) + ce(y, t.softmax(dim=1))) / 2


def hard_with_logits(x, y, labels, t, s):
    return (ce(x, labels, s) + ce(y, t)) / 2


def hard_over_images(x, y, labels, t, s):
    return (ce(x, labels, s) + ce(y, t.argmax(dim=0))) / 2


def hard_over_all(x, y, labels, t, s):
    return (ce(x, labels, s) + ce(y, t.argmax().expand(len(x)))) / 2


def hard_smallest(x, y, labels, t, s):
    return (ce(x, labels, s) + ce(y, t.sort(1).indices[:, 0])) / 2


def hard_not_halved(x, y, labels, t, s):
    return ce(x, labels, s) + ce(y, t.argmax(1))


def hard_with_weights_of_soft(x, y, labels, t, s):
    return 0.9 * ce(x, labels, s) + 0.1 * ce(y, t.argmax(1))


def hard_of_labels(x, y, labels, t, s):
    return ce(x, labels, s)


def hard_of_teacher(x, y, labels, t, s):
    return ce(y, t.argmax(1))


def hard_on_class_head(x, y, labels, t, s):
    return (ce(x, labels, s) + ce(x, t.argmax(1))) / 2


def hard_on_distillation_head(x, y, labels, t, s):
    return (ce(y, labels, s) + ce(y, t.argmax(1))) / 2


def hard_exchanged(x, y, labels, t, s):
    return (ce(y, labels, s) + ce(x, t.argmax(1))) / 2


def hard_on_the_mean(x, y, labels, t, s):
    x = (x + y) / 2
    return (ce(x, labels, s) + ce(x, t.argmax(1))) / 2


def hard_not_smoothed(x, y, labels, t, s):
    return (ce(x, labels) + ce(y, t.argmax(1))) / 2


def hard_both_smoothed(x, y, labels, t, s):
    return (ce(x, labels, s) + ce(y, t.argmax(1), s)) / 2


def hard_without_shares(x, y, labels, t, s):
    classes = labels.argmax(1) if labels.ndim > 1 else labels
    return (ce(x, classes, s) + ce(y, t.argmax(1))) / 2


def hard_summed(x, y, labels, t, s):
    loss = ce(x, labels, s, reduction="sum")
    return (loss + ce(y, t.argmax(1), reduction="sum")) / 2


def hard_for_each_image(x, y, labels, t, s):
    loss = ce(x, labels, s, reduction="none")
    return (loss + ce(y, t.argmax(1), reduction="none")) / 2


def hard_after_softmax(x, y, labels, t, s):
    x, y = x.softmax(1), y.softmax(1)
    return (ce(x, labels, s) + ce(y, t.argmax(1))) / 2


def hard_unchecked(logits, dist, labels, teacher, *, label_smoothing=0.0):
    return hard_both(logits, dist, labels, teacher, label_smoothing)


def hard_both(x, y, labels, t, s):
    return (ce(x, labels, s) + ce(y, t.argmax(1))) / 2


def hard_detached(x, y, labels, t, s):
    return hard_both(x, y.detach(), labels, t, s)


def hard_as_a_number(x, y, labels, t, s):
    return hard_both(x, y, labels, t, s).item()


HALF = "Both parts count half"
CLASS_HEAD = "The teacher's part is computed from logits: the dist"
HARD_WRONG = [
    (hard_with_probabilities, "is used with all its probabilities or logits"),
    (hard_with_logits, "is used with all its probabilities or logits"),
    (hard_over_images, "The argmax of the teacher runs over the wrong axis"),
    (hard_smallest, "The class with the teacher's smallest logit is used"),
    (hard_not_halved, HALF),
    (hard_with_weights_of_soft, HALF),
    (hard_of_labels, "The teacher has no part in the loss"),
    (hard_of_teacher, "The labels have no part in the loss"),
    (hard_on_class_head, CLASS_HEAD),
    (hard_on_distillation_head, "The labels' part is computed from dist_log"),
    (hard_exchanged, "The heads are exchanged"),
    (hard_on_the_mean, "The heads are averaged before the loss"),
    (hard_not_smoothed, "label_smoothing is not used"),
    (hard_both_smoothed, "The teacher's class is smoothed"),
    (hard_without_shares, "Labels that are probabilities lose them"),
    (hard_summed, "The loss is a sum over the images"),
    (hard_for_each_image, "One number for each image comes back"),
    (hard_after_softmax, "A softmax comes before the cross-entropy"),
    (hard_detached, "gradients do not flow back"),
    (hard_as_a_number, "must return a tensor, not a value of type float."),
]


# Wrong soft losses.


def soft(form):
    """A loss of seven arguments that looks at all of them first."""

    def candidate(
        logits,
        dist,
        labels,
        teacher,
        *,
        temperature=3.0,
        weight=0.1,
        label_smoothing=0.0,
    ):
        must_fit(logits, dist, labels, teacher)
        must_lie_in_range(temperature, weight)
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        return form(loss, dist, teacher, temperature, weight)

    return candidate


def soft_by(distance):
    """The right sum, with a distance of one's own."""

    def form(loss, dist, teacher, t, weight):
        return (1 - weight) * loss + weight * distance(dist, teacher, t)

    return soft(form)


def kl(student, teacher, **more):
    more = {"reduction": "batchmean"} | more
    student, teacher = student.log_softmax(1), teacher.softmax(1)
    return F.kl_div(student, teacher, **more)


def soft_sum(combine):
    """The right distance, with a sum of one's own."""

    def form(loss, dist, teacher, t, weight):
        return combine(loss, t**2 * kl(dist / t, teacher / t), weight)

    return soft(form)


def on_other_heads(heads):
    def candidate(logits, dist, labels, teacher, **options):
        must_fit(logits, dist, labels, teacher)
        must_lie_in_range(
            options.get("temperature", 3), options.get("weight", 0.5)
        )
        logits, dist = heads(logits, dist)
        return soft_with_probabilities(logits, dist, labels, teacher, **options)

    return candidate


def soft_with_labels(change):
    """The right distance, with a loss of the labels of one's own."""

    def candidate(
        logits,
        dist,
        labels,
        teacher,
        temperature=3.0,
        weight=0.1,
        label_smoothing=0.0,
    ):
        must_fit(logits, dist, labels, teacher)
        must_lie_in_range(temperature, weight)
        t = temperature
        loss = change(logits, labels, t, label_smoothing)
        return (1 - weight) * loss + weight * t**2 * kl(dist / t, teacher / t)

    return candidate


def other_defaults(
    logits,
    dist,
    labels,
    teacher,
    *,
    temperature=1.0,
    weight=0.5,
    label_smoothing=0.0,
):
    return soft_distillation_loss(
        logits,
        dist,
        labels,
        teacher,
        temperature=temperature,
        weight=weight,
        label_smoothing=label_smoothing,
    )


SQUARE = "The square of the temperature is missing"
NONE_COOLED = "No logits are divided by the temperature"
ARGMAX = "Only the teacher's class is used, its argmax"
SQUARED = "The distance is a squared difference"
SOFT_WRONG = [
    (soft_by(lambda y, z, t: kl(y / t, z / t)), SQUARE),
    (soft_by(lambda y, z, t: t * kl(y / t, z / t)), SQUARE),
    (
        soft_by(lambda y, z, t: kl(y / t, z / t) / t**2),
        "The distance is divided by temperature^2",
    ),
    (soft_by(lambda y, z, t: t * t * kl(y / t, z)), "Only the student's logi"),
    (soft_by(lambda y, z, t: t * t * kl(y, z / t)), "Only the teacher's logi"),
    (soft_by(lambda y, z, t: t * t * kl(y, z)), NONE_COOLED),
    (soft_by(lambda y, z, t: kl(y, z)), NONE_COOLED),
    (
        soft_by(lambda y, z, t: t * t * kl(y * t, z * t)),
        "The logits are multiplied by the temperature",
    ),
    (
        soft_by(lambda y, z, t: t * t * kl(z / t, y / t)),
        "The divergence is the other way round",
    ),
    (
        soft_by(lambda y, z, t: t**2 * kl(y / t, z / t, reduction="mean")),
        'The distance is divided by B * K, as reduction="mean"',
    ),
    (
        soft_by(
            lambda y, z, t: t**2 * kl(y / t, z / t, reduction="sum") / y.numel()
        ),
        "The distance is divided by B * K",
    ),
    (
        soft_by(lambda y, z, t: t**2 * kl(y / t, z / t, reduction="sum")),
        "The loss is a sum over the images",
    ),
    (
        soft_by(
            lambda y, z, t: t**2 * kl(y / t, z / t, reduction="none").sum(1)
        ),
        "One number for each image comes back",
    ),
    (
        soft_by(lambda y, z, t: t**2 * kl(y / t, z / t, reduction="none")),
        "One number for each image and class comes back",
    ),
    (soft_sum(lambda a, b, w: w * a + (1 - w) * b), "The weights are swapped"),
    (soft_sum(lambda a, b, w: a + w * b), "cross-entropy has the whole weig"),
    (soft_sum(lambda a, b, w: (1 - w) * a + b), "The distance has the whole"),
    (soft_sum(lambda a, b, w: a + b), "weight is not used"),
    (soft_sum(lambda a, b, w: (a + b) / 2), "weight is not used"),
    (soft_sum(lambda a, b, w: a), "The teacher has no part in the loss"),
    (soft_sum(lambda a, b, w: b), "The labels have no part in the loss"),
    (soft_sum(lambda a, b, w: (1 - w) * a - w * b), "distance is subtracted"),
    (
        soft(
            lambda loss, y, z, t, w: (
                t**2 * ((1 - w) * loss + w * kl(y / t, z / t))
            )
        ),
        "The cross-entropy is multiplied by temperature^2",
    ),
    (
        soft_by(
            lambda y, z, t: (
                t**2
                * F.kl_div(
                    (y / t).softmax(1),
                    (z / t).softmax(1),
                    reduction="batchmean",
                )
            )
        ),
        "F.kl_div gets the student's probabilities",
    ),
    (
        soft_by(
            lambda y, z, t: (
                t**2
                * F.kl_div(y / t, (z / t).softmax(1), reduction="batchmean")
            )
        ),
        "F.kl_div gets the student's logits as they are",
    ),
    (
        soft_by(lambda y, z, t: t**2 * kl(y / t, z / t, log_target=True)),
        "log_target=True says that the target are log-probabilities",
    ),
    (
        soft_by(
            lambda y, z, t: (
                t**2
                * F.kl_div(
                    (y / t).log_softmax(1),
                    (z / t).log_softmax(1),
                    reduction="batchmean",
                )
            )
        ),
        "The result is NaN: F.kl_div takes the logarithm of its target",
    ),
    (
        soft_by(
            lambda y, z, t: (
                t**2
                * F.kl_div(
                    (y / t).log_softmax(0),
                    (z / t).softmax(0),
                    reduction="batchmean",
                )
            )
        ),
        "The softmax runs over the images",
    ),
    (soft_by(lambda y, z, t: F.cross_entropy(y, z.argmax(1))), ARGMAX),
    (
        soft_by(lambda y, z, t: t**2 * F.cross_entropy(y / t, z.argmax(1))),
        ARGMAX,
    ),
    (
        soft_by(
            lambda y, z, t: t**2 * F.cross_entropy(y / t, (z / t).softmax(1))
        ),
        "Its gradients are right, so a model learns the same",
    ),
    (soft_by(lambda y, z, t: F.mse_loss(y, z)), SQUARED),
    (
        soft_by(
            lambda y, z, t: (
                t**2 * F.mse_loss((y / t).softmax(1), (z / t).softmax(1))
            )
        ),
        SQUARED,
    ),
    (on_other_heads(lambda x, y: (x, x)), CLASS_HEAD),
    (on_other_heads(lambda x, y: (y, y)), "The labels' part is computed from"),
    (on_other_heads(lambda x, y: (y, x)), "The heads are exchanged"),
    (on_other_heads(lambda x, y: ((x + y) / 2,) * 2), "heads are averaged bef"),
    (
        soft_with_labels(lambda x, labels, t, s: ce(x, labels)),
        "label_smoothing is not used",
    ),
    (
        soft_with_labels(lambda x, labels, t, s: ce(x / t, labels, s)),
        "The temperature acts on the cross-entropy with the labels",
    ),
    (
        soft_with_labels(lambda x, labels, t, s: ce(x.softmax(1), labels, s)),
        "A softmax comes before the cross-entropy",
    ),
    (
        soft_with_labels(
            lambda x, labels, t, s: ce(
                x, labels.argmax(1) if labels.ndim > 1 else labels, s
            )
        ),
        "Labels that are probabilities lose them",
    ),
    (
        other_defaults,
        "The default of temperature must be 3.0, and yours is 1.0. The default "
        "of weight must be 0.1, and yours is 0.5.",
    ),
]


# Wrong shapes and numbers that are accepted.


def refusing(**rules):
    """The right losses; each rule is checked unless it is False."""

    def form(
        logits,
        dist,
        labels,
        teacher,
        *,
        temperature=3.0,
        weight=0.1,
        label_smoothing=0.0,
    ):
        if rules.get("teacher", True) and teacher.shape != dist.shape:
            raise ValueError
        if rules.get("heads", True) and logits.shape != dist.shape:
            raise ValueError
        if rules.get("labels", True) and len(labels) != len(logits):
            raise ValueError
        if rules.get("temperature", True) and temperature <= 0:
            raise ValueError
        if rules.get("weight", True) and not 0 <= weight <= 1:
            raise ValueError
        p = labels
        if labels.ndim == 1:
            p = F.one_hot(labels, logits.shape[1])
        p = (1 - label_smoothing) * p + label_smoothing / p.shape[1]
        loss = -(p * logits.log_softmax(1)).sum(1).mean()
        t = temperature
        apart = kl(dist / t, teacher / t) if t else dist.sum()
        return (1 - weight) * loss + weight * t**2 * apart

    return form


SHAPES = "Logits of different shapes are accepted: raise a ValueError"
ACCEPTED = [
    (HARD, hard_unchecked, SHAPES),
    (SOFT, refusing(teacher=False), SHAPES),
    (SOFT, refusing(heads=False), SHAPES),
    (SOFT, refusing(labels=False), "Labels of another shape are accepted"),
    (SOFT, refusing(temperature=False), "A temperature that is not positive"),
    (SOFT, refusing(weight=False), "A weight that is less than 0 or more"),
]

# Wrong models.


def changed(**methods):
    return type("Candidate", (FromVit,), methods)


def returning(training=None, evaluation=None):
    def forward(self, images):
        x, y = self.both(images)
        if self.training:
            return training(x, y) if training else (x, y)
        return evaluation(x, y) if evaluation else (x + y) / 2

    return changed(forward=forward)


def distillation_first(self, cls, dist, x):
    return dist, cls, x


def distillation_last(self, cls, dist, x):
    return cls, x, dist


def both_last(self, cls, dist, x):
    return x, cls, dist


def class_token_twice(self, cls, dist, x):
    return cls, cls, x


def distillation_token_twice(self, cls, dist, x):
    return dist, dist, x


def zeros_in_place_of_it(self, cls, dist, x):
    return cls, torch.zeros_like(dist), x


def positions_without_distillation(self, x):
    cls = self.cls_token + self.pos_embed[:, 0]
    x = x + self.pos_embed[:, 2:]
    dist = self.dist_token.expand(len(x), -1, -1)
    return torch.cat([cls.expand(len(x), -1, -1), dist, x], dim=1)


def positions_before_distillation(self, x):
    x = VisionTransformer.add_positions(self, x)
    return torch.cat([x[:, :1], self.dist_token.expand_as(x[:, :1]), x], 1)


def positions_of_patches_alone(self, x):
    x = x + self.pos_embed[:, 2:]
    cls = self.cls_token.expand(len(x), -1, -1)
    dist = self.dist_token.expand(len(x), -1, -1)
    return torch.cat([cls, dist, x], dim=1)


def positions_without_class(self, x):
    dist = self.dist_token.expand(len(x), -1, -1)
    x = torch.cat([dist, x], dim=1) + self.pos_embed[:, 1:]
    return torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)


def no_positions(self, x):
    cls = self.cls_token.expand(len(x), -1, -1)
    dist = self.dist_token.expand(len(x), -1, -1)
    return torch.cat([cls, dist, x], dim=1)


def positions_shifted(self, x):
    table = torch.cat([self.pos_embed[:, 1:], self.pos_embed[:, :1]], dim=1)
    return no_positions(self, x) + table


def not_normalized(self, images):
    x = self.embed(images)
    for block in self.blocks:
        x = block(x)
    return x


def heads_swapped(self, images):
    x = self.forward_features(images)
    return self.head(x[:, 1]), self.head_dist(x[:, 0])


def heads_crossed(self, images):
    x = self.forward_features(images)
    return self.head_dist(x[:, 0]), self.head(x[:, 1])


def one_head(self, images):
    x = self.forward_features(images)
    return self.head(x[:, 0]), self.head(x[:, 1])


def head_of_the_teacher(self, images):
    x = self.forward_features(images)
    return self.head_dist(x[:, 0]), self.head_dist(x[:, 1])


def probabilities(self, images):
    x, y = FromVit.both(self, images)
    return x.softmax(dim=1), y.softmax(dim=1)


def detached(self, images):
    x, y = FromVit.both(self, images)
    return x, y.detach()


class OneClassHead(FromVit):
    """head_dist stays with num_classes=0."""

    def __init__(self, *args, embed_dim, num_classes, **kwargs):
        super().__init__(
            *args, embed_dim=embed_dim, num_classes=num_classes, **kwargs
        )
        self.head_dist = nn.Linear(embed_dim, num_classes or 10)


class AnyPool(FromVit):
    def __init__(self, *args, pool="cls", **kwargs):
        super().__init__(*args, **kwargs)
        self.pool = pool


class OneRowLess(FromVit):
    num_prefix_tokens = 1


class OtherName(VisionTransformer):
    num_prefix_tokens = 2

    def __init__(self, *args, embed_dim, num_classes, **kwargs):
        super().__init__(
            *args, embed_dim=embed_dim, num_classes=num_classes, **kwargs
        )
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.head_dist = nn.Linear(embed_dim, num_classes)


class NoSecondHead(VisionTransformer):
    num_prefix_tokens = 2

    def __init__(self, *args, embed_dim, **kwargs):
        super().__init__(*args, embed_dim=embed_dim, **kwargs)
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim))


class FixedToken(FromVit):
    def __init__(self, *args, embed_dim, **kwargs):
        super().__init__(*args, embed_dim=embed_dim, **kwargs)
        del self.dist_token
        self.register_buffer("dist_token", torch.zeros(1, 1, embed_dim))


def accepts_any_image(self, images):
    x = self.patch_embed(images)
    n = x.shape[1] + 2
    x = no_positions(self, x) + self.pos_embed[:, :n].repeat(1, 2, 1)[:, :n]
    x = self.norm(nn.Sequential(*self.blocks)(x))
    x, y = self.head(x[:, 0]), self.head_dist(x[:, 1])
    return (x, y) if self.training else (x + y) / 2


def dropped_in_evaluation(self, x):
    x = no_positions(self, x) + self.pos_embed
    return F.dropout(x, self.dropout.p)


BEFORE = "The distillation token comes before the class token"
AT_THE_END = "The distillation token is at the end, behind the patches"
NO_POSITION = "The distillation token has no position"
PATCH = "head_dist reads a patch"
MEAN = "head_dist reads the mean of the tokens"
TENSOR = "The pair is one tensor in training"
PROBABILITIES = "The mean of probabilities comes back in evaluation"
ADDED = "The logits are added in evaluation"
MODEL_WRONG = [
    (changed(order=distillation_first), BEFORE),
    (
        changed(order=distillation_first, read=lambda s, x: (x[:, 1], x[:, 0])),
        BEFORE,
    ),
    (changed(order=distillation_last), AT_THE_END),
    (
        changed(order=distillation_last, read=lambda s, x: (x[:, 0], x[:, -1])),
        AT_THE_END,
    ),
    (
        changed(order=both_last, read=lambda s, x: (x[:, -2], x[:, -1])),
        "Both tokens are at the end",
    ),
    (changed(order=class_token_twice), "The class token stands in the place"),
    (
        changed(order=distillation_token_twice),
        "The distillation token stands in the place of the class token",
    ),
    (changed(order=zeros_in_place_of_it), "dist_token is not used"),
    (changed(add_positions=positions_without_distillation), NO_POSITION),
    (changed(add_positions=positions_before_distillation), NO_POSITION),
    (
        changed(add_positions=positions_of_patches_alone),
        "Both tokens have no position",
    ),
    (
        changed(add_positions=positions_without_class),
        "The class token has no position",
    ),
    (changed(add_positions=no_positions), "The positions are missing"),
    (changed(add_positions=positions_shifted), "The positions are shifted"),
    (
        changed(forward_features=not_normalized),
        "The last norm is missing",
    ),
    (
        changed(read=lambda s, x: (x[:, 0], x[:, 0])),
        "Both heads read the class token",
    ),
    (
        changed(read=lambda s, x: (x[:, 1], x[:, 1])),
        "Both heads read the distillation token",
    ),
    (changed(read=lambda s, x: (x[:, 0], x[:, 2])), PATCH),
    (changed(read=lambda s, x: (x[:, 0], x[:, -1])), PATCH),
    (changed(read=lambda s, x: (x[:, 0], x[:, 2:].mean(1))), MEAN),
    (changed(read=lambda s, x: (x[:, 0], x[:, 1:].mean(1))), MEAN),
    (changed(read=lambda s, x: (x[:, [0]], x[:, [1]])), "Axis 1 stays"),
    (changed(read=lambda s, x: (x, x)), "Every token goes to the heads"),
    (changed(both=heads_swapped), "The heads are swapped"),
    (changed(both=heads_crossed), "The heads are swapped"),
    (changed(both=one_head), "head is used for both tokens"),
    (changed(both=head_of_the_teacher), "head_dist is used for both tokens"),
    (changed(both=probabilities), "no softmax follows them"),
    (changed(both=detached), "gradients do not flow back"),
    (returning(lambda x, y: (y, x)), "The pair is turned round in training"),
    (returning(lambda x, y: (x + y) / 2), "The mean comes back in training."),
    (returning(lambda x, y: x + y), "The logits are added in training."),
    (returning(lambda x, y: x), "Only one head comes back in training."),
    (returning(lambda x, y: torch.stack([x, y])), TENSOR),
    (returning(lambda x, y: torch.cat([x, y], dim=1)), TENSOR),
    (
        returning(lambda x, y: {"class": x, "dist": y}),
        "Your code returns a value of type dict.",
    ),
    (
        returning(lambda x, y: None),
        "The return line is missing: your code returns None.",
    ),
    (
        returning(None, lambda x, y: (x.softmax(1) + y.softmax(1)) / 2),
        PROBABILITIES,
    ),
    (
        returning(None, lambda x, y: x.softmax(1) + y.softmax(1)),
        PROBABILITIES,
    ),
    (
        returning(None, lambda x, y: ((x + y) / 2).softmax(1)),
        PROBABILITIES,
    ),
    (returning(None, lambda x, y: x), "Only the class head comes back in eva"),
    (returning(None, lambda x, y: y), "Only the distillation head comes back"),
    (returning(None, lambda x, y: x + y), ADDED),
    (returning(None, lambda x, y: x + y / 2), ADDED),
    (returning(None, torch.maximum), "The larger logit of each class comes"),
    (returning(None, lambda x, y: (x, y)), "A pair comes back in evaluation"),
    (
        returning(None, lambda x, y: {"logits": x}),
        "Right in training, wrong in evaluation",
    ),
    (
        returning(lambda x, y: (x + y) / 2, lambda x, y: (x, y)),
        "The modes are exchanged",
    ),
    (OneClassHead, "With num_classes=0 both heads are left out"),
    (AnyPool, 'Another pool than "cls" is accepted'),
    (OneRowLess, "The table pos_embed must be (1, 2 + N, D)"),
    (OtherName, "is a parameter of its own, dist_token."),
    (NoSecondHead, "The distillation token has a head of its own, head_dist."),
    (FixedToken, "dist_token cannot learn"),
    (VisionTransformer, "is a parameter of its own, dist_token."),
    (VisionTransformer, "It has a head of its own, too."),
    (changed(forward=accepts_any_image), "An image of another size is acc"),
    (
        changed(add_positions=dropped_in_evaluation),
        "Dropout acts in evaluation",
    ),
]


# Wrong teachers.


def asking(answer, evaluation=True, graph=False):
    """ask_teacher whose function returns what answer makes of a batch."""

    def candidate(teacher, mix=None):
        def ask(images, labels):
            if evaluation:
                teacher.eval()
            with torch.set_grad_enabled(graph):
                return answer(teacher, mix or (lambda *b: b), images, labels)

        return ask

    return candidate


def right_answer(teacher, mix, images, labels):
    images, labels = mix(images, labels)
    return images, (labels, teacher(images))


def answer_before_mix(teacher, mix, images, labels):
    logits = teacher(images)
    images, labels = mix(images, labels)
    return images, (labels, logits)


def answer_mixed_twice(teacher, mix, images, labels):
    logits = teacher(mix(images, labels)[0])
    images, labels = mix(images, labels)
    return images, (labels, logits)


def answer_not_mixed(teacher, mix, images, labels):
    return images, (labels, teacher(images))


def answer_with_old_images(teacher, mix, images, labels):
    mixed, labels = mix(images, labels)
    return images, (labels, teacher(mixed))


def answer_with_old_labels(teacher, mix, images, labels):
    images, _ = mix(images, labels)
    return images, (labels, teacher(images))


def answer_with_old_batch(teacher, mix, images, labels):
    return images, (labels, teacher(mix(images, labels)[0]))


def answer_by_class(teacher, mix, images, labels):
    images, (labels, logits) = right_answer(teacher, mix, images, labels)
    return images, (labels, logits.argmax(dim=-1))


def answer_by_probability(teacher, mix, images, labels):
    images, (labels, logits) = right_answer(teacher, mix, images, labels)
    return images, (labels, logits.softmax(dim=-1))


def answer_turned_round(teacher, mix, images, labels):
    images, (labels, logits) = right_answer(teacher, mix, images, labels)
    return images, (logits, labels)


def answer_without_labels(teacher, mix, images, labels):
    images, labels = mix(images, labels)
    return images, teacher(images)


def answer_without_logits(teacher, mix, images, labels):
    images, labels = mix(images, labels)
    teacher(images)
    return images, labels


def answer_flat(teacher, mix, images, labels):
    images, labels = mix(images, labels)
    return images, labels, teacher(images)


def answer_without_images(teacher, mix, images, labels):
    return teacher(mix(images, labels)[0])


def answer_nothing(teacher, mix, images, labels):
    right_answer(teacher, mix, images, labels)


def asked_once(teacher, mix=None):
    known = []

    def ask(images, labels):
        if mix is not None:
            images, labels = mix(images, labels)
        if not known:
            with torch.no_grad():
                known.append(teacher.eval()(images))
        return images, (labels, known[0])

    return ask


def answer_at_once(teacher, mix=None):
    return torch.zeros(2, 3)


def without_return(teacher, mix=None):
    def ask(images, labels):
        return images, labels


ASK_WRONG = [
    (asking(right_answer, evaluation=False), "teacher is in training mode"),
    (asking(right_answer, graph=True), "logits carry a graph back"),
    (asking(answer_before_mix), "The teacher sees the images before mix"),
    (asking(answer_mixed_twice), "mix draws twice"),
    (asking(answer_not_mixed), "mix is not used"),
    (asking(answer_with_old_images), "The images come back as they were bef"),
    (asking(answer_with_old_labels), "The labels come back as they were bef"),
    (asking(answer_with_old_batch), "Images and labels come back as they we"),
    (asking(answer_by_class), "The teacher's classes come back"),
    (asking(answer_by_probability), "The teacher's probabilities come back"),
    (asking(answer_turned_round), "The pair is turned round"),
    (asking(answer_without_labels), "The labels are lost"),
    (asking(answer_without_logits), "The teacher's logits are lost"),
    (asking(answer_flat), "Labels and teacher's logits are one pair"),
    (asking(answer_without_images), "must return images, (labels, logits of"),
    (asking(answer_nothing), "The return line is missing"),
    (asked_once, "The teacher is asked once for all batches"),
    (answer_at_once, "Your code must return a function"),
    (without_return, "The return line is missing"),
]

WRONG = [
    *((HARD, hard(form), words) for form, words in HARD_WRONG),
    *((SOFT, form, words) for form, words in SOFT_WRONG),
    *ACCEPTED,
    *((MODEL, candidate, words) for candidate, words in MODEL_WRONG),
    *((ASK, candidate, words) for candidate, words in ASK_WRONG),
]


@pytest.mark.parametrize(("name", "candidate", "words"), WRONG)
def test_a_mistake_written_by_hand_is_named(name, candidate, words):
    result = check(name, candidate)
    assert not result.passed
    assert words in (result.cause or ""), result.report
    assert "two mistakes" not in result.cause
    assert result.report.endswith(f"Likely mistake: {result.cause}")


MISTAKES = {
    HARD: deit.HARD_MISTAKES,
    SOFT: deit.SOFT_MISTAKES,
    MODEL: deit.DISTILLED_MISTAKES,
    ASK: deit.ASK_MISTAKES,
}


@pytest.mark.parametrize("name", MISTAKES)
def test_every_mistake_of_the_catalogue_is_written_by_hand(name):
    words = [words for other, _, words in WRONG if other == name]
    for mistake in MISTAKES[name]:
        assert any(some in mistake.cause for some in words), mistake.cause


@pytest.mark.parametrize(
    ("name", "candidate", "words"),
    [
        (
            HARD,
            hard(lambda x, y, labels, t, s: ce(x, labels, s) + ce(x, t)),
            (HALF, CLASS_HEAD),
        ),
        (
            SOFT,
            soft(
                lambda loss, y, z, t, w: w * loss + (1 - w) * kl(z / t, y / t)
            ),
            ("weights are swapped", SQUARE),
        ),
        (
            SOFT,
            soft_by(lambda y, z, t: kl(y / t, z / t, reduction="mean")),
            ("B * K", SQUARE),
        ),
        (
            MODEL,
            returning(lambda x, y: (y, x), lambda x, y: x + y),
            ("turned round", ADDED),
        ),
        (
            ASK,
            asking(answer_without_labels, evaluation=False),
            ("The labels are lost",),
        ),
    ],
)
def test_of_two_mistakes_at_once_none_is_named_wrongly(name, candidate, words):
    cause = check(name, candidate).cause
    if cause is not None:
        assert all(some in cause for some in words), cause


# Refusals.


@pytest.mark.parametrize(
    ("exercise", "refused"),
    [
        (deit.HARD, 4),
        (deit.SOFT, 8),
        (deit.DISTILLED, 3),
        (deit.ASK_TEACHER, 0),
    ],
)
def test_every_refusal_of_the_package_is_asked_for(exercise, refused):
    labels = [case.label for case in exercise.cases]
    errors = [
        case
        for case in exercise.cases
        if isinstance(
            exercise.run(exercise.reference, case).expected, ValueError
        )
    ]
    assert len(labels) == len(set(labels))
    assert len(errors) == refused
    assert all("raise a ValueError" in case.cause for case in errors)


@pytest.mark.parametrize("name", [HARD, SOFT, ASK])
def test_a_function_with_other_arguments_is_told_the_right_ones(name):
    first = next(iter(inspect.signature(PACKAGE[name]).parameters))
    cause = check(name, lambda one: one).cause
    assert cause.startswith(f"Your function must take ({first}, ")


def test_a_function_in_the_place_of_the_model_is_refused():
    assert "check needs your class" in check(MODEL, ask_teacher).cause


# Stubs and nonsense.


class Stub(VisionTransformer):
    """Your code here."""

    num_prefix_tokens = 2

    def __init__(self, *args, **kwargs):
        raise NotImplementedError

    def forward(self, images): ...


class EmptyStub(nn.Module):
    def __init__(self):
        super().__init__()

    def forward(self, images):
        pass


def stub_hard(logits, dist_logits, labels, teacher_logits): ...


def stub_soft(logits, dist_logits, labels, teacher_logits, *, temperature=3.0):
    """Your code here."""


def stub_ask(teacher, mix=None):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("name", "stub"),
    [
        (MODEL, Stub),
        (MODEL, EmptyStub),
        (HARD, stub_hard),
        (SOFT, stub_soft),
        (ASK, stub_ask),
    ],
)
def test_an_untouched_stub_is_not_attempted_yet(name, stub):
    result = check(name, stub)
    assert not result.attempted
    assert not result.passed
    assert result.cause is None
    assert f"{name}: not attempted yet" in result.report


NONSENSE = {
    "zeros": torch.zeros_like,
    "more": lambda x: x + 1,
    "nan": lambda x: x * torch.nan,
    "vector": lambda x: x.expand(2, *x.shape),
}


@pytest.mark.parametrize("nonsense", NONSENSE)
@pytest.mark.parametrize("name", [HARD, SOFT])
def test_a_loss_that_is_nonsense_fails_without_a_diagnosis(name, nonsense):
    def form(*args, **kwargs):
        return NONSENSE[nonsense](PACKAGE[name](*args, **kwargs))

    result = check(name, form)
    assert not result.passed
    assert result.cause is None


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_a_model_that_is_nonsense_fails_without_a_diagnosis(nonsense):
    change = NONSENSE[nonsense]
    candidate = returning(
        lambda x, y: (change(x), change(y)), lambda x, y: change(x + y)
    )
    result = check(MODEL, candidate)
    assert not result.passed
    assert result.cause is None


def test_a_teacher_that_is_nonsense_fails_without_a_diagnosis():
    def answer(teacher, mix, images, labels):
        images, (labels, logits) = right_answer(teacher, mix, images, labels)
        return images, (labels, logits.flip(0))

    result = check(ASK, asking(answer))
    assert not result.passed
    assert result.cause is None


# The report.


def test_the_report_of_the_model_names_the_heads():
    report = check(MODEL, returning(lambda x, y: (x, y + 1))).report
    assert "distillation head: largest difference 1" in report
    report = check(MODEL, returning(lambda x, y: x)).report
    assert "expected the pair of logits, got a tensor" in report
    assert "weights" not in report


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_check_answers_the_same_under_the_readers_settings(context):
    with context():
        for name, candidate in PACKAGE.items():
            assert check(name, candidate).passed
        candidate = asking(right_answer, graph=True)
        assert "graph" in check(ASK, candidate).cause
