"""Exercises of chapter 08, with the mistakes that learners make."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, TensorDataset

from vit_lessons.checks.candidate import Refusal, kind
from vit_lessons.checks.catalogue import Mistake, WrongForm, combine
from vit_lessons.checks.exercise import Case
from vit_lessons.checks.observe import Facts, ObservedExercise, number
from vit_lessons.checks.part import normal
from vit_lessons.training import (
    evaluate,
    parameter_groups,
    train_one_epoch,
    warmup_cosine,
)

Loader = Iterable[tuple[Tensor, Tensor]]

EMPTY = (
    "A loader without a batch is accepted: raise a ValueError, a mean over no "
    "image means nothing."
)
NOT_CALLED = "The model is never called: compute model(images) for each batch."


class Classifier(nn.Module):
    """A linear classifier of 4 pixels that notes how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.head.weight.data = normal(3, 4, seed=11)
        self.head.bias.data = normal(3, seed=12)
        self.modes: set[str] = set()
        self.gradients: set[str] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.modes.add("training" if self.training else "evaluation")
        self.gradients.add("yes" if torch.is_grad_enabled() else "no")
        return self.head(images.flatten(1))


def _noted(notes: set[str]) -> str:
    return " and ".join(sorted(notes)) or "none"


def _batches(images: int, batch_size: int = 4, std: float = 1.0) -> DataLoader:
    """Batches of images of 2 x 2 pixels; the last one may be smaller."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (images,), generator=generator)
    data = TensorDataset(normal(images, 1, 2, 2, std=std), labels)
    return DataLoader(data, batch_size)


# parameter_groups

PARTS: dict[str, Callable[[], nn.Module | nn.Parameter]] = {
    "cls_token": lambda: nn.Parameter(torch.ones(1, 1, 2)),
    "pos_embed": lambda: nn.Parameter(torch.ones(1, 5, 2)),
    "proj": lambda: nn.Conv2d(3, 2, 2),
    "norm": lambda: nn.LayerNorm(2),
    "block": lambda: nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2)),
    "head": lambda: nn.Linear(2, 3),
}


def _model(*parts: str, frozen: str | None = None) -> nn.Module:
    model = nn.Module()
    for part in parts:
        setattr(model, part, PARTS[part]())
    if frozen:
        model.get_submodule(frozen).requires_grad_(False)
    return model


def _tensors(group: Any) -> list[Any]:
    """The parameters of a group."""
    if not isinstance(group, dict) or "params" not in group:
        raise Refusal(
            "Your code must return a list of groups, each a dict with params "
            f"and weight_decay, and one of them is {kind(group)}."
        )
    params = group["params"]
    if isinstance(params, Tensor):
        return [params]
    if iter(params) is params:
        raise Refusal(
            "params is a generator, which is empty after one use: make a list "
            "of it."
        )
    return list(params)


def _observe_groups(
    function: Callable[..., Any],
    make: Callable[[], nn.Module],
    weight_decay: float,
) -> Facts | None:
    model = make()
    groups = function(model, weight_decay)
    if groups is None:
        return None
    if not isinstance(groups, tuple | list):
        raise Refusal(
            "Your code must return a list of groups, each a dict with params "
            f"and weight_decay, not {kind(groups)}."
        )
    names = {id(p): name for name, p in model.named_parameters()}
    places: dict[str, list[float | None]] = {n: [] for n in names.values()}
    for group in groups:
        for parameter in _tensors(group):
            if id(parameter) not in names:
                raise Refusal(
                    f"params holds {kind(parameter)} that is no parameter of "
                    "the model: put the parameters themselves into it."
                )
            decay = group.get("weight_decay")
            if "weight_decay" in group:
                decay = number("weight_decay", decay)
            places[names[id(parameter)]].append(decay)
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    return {
        "in no group": _join(n for n in trainable if not places[n]),
        "in a group twice": _join(n for n in places if len(places[n]) > 1),
        "frozen, but in a group": _join(
            n for n in places if places[n] and n not in trainable
        ),
        "in a group without weight_decay": _join(
            n for n in places if None in places[n]
        ),
        **{
            f"weight decay of {n}": next(iter(places[n]), None)
            for n in trainable
        },
    }


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return name.endswith("weight") and parameter.ndim > 1


def _groups(
    is_decayed: Callable[[str, nn.Parameter], bool] = _is_matrix,
    is_taken: Callable[[str, nn.Parameter], bool] = lambda n, p: (
        p.requires_grad
    ),
    low: Callable[[float], dict[str, float]] = lambda d: {"weight_decay": 0.0},
    high: Callable[[float], dict[str, float]] = lambda d: {"weight_decay": d},
) -> Callable[..., list[dict[str, Any]]]:
    """parameter_groups, with some steps exchanged."""

    def form(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
        named = [(n, p) for n, p in model.named_parameters() if is_taken(n, p)]
        decayed = [p for n, p in named if is_decayed(n, p)]
        kept = [p for n, p in named if not is_decayed(n, p)]
        if not named:
            raise ValueError
        return [
            {"params": decayed, **high(weight_decay)},
            {"params": kept, **low(weight_decay)},
        ]

    return form


def _constant(decay: float, weight_decay: float) -> dict[str, float]:
    return {"weight_decay": decay}


NORMS_DECAYED = (
    "The weights of norms are decayed: their names end in weight, but they "
    "have one axis, so ask for two or more."
)
TOKENS_DECAYED = (
    "The class token and the table of positions are decayed: they have two or "
    "more axes, but their names do not end in weight."
)
CONVOLUTIONS_KEPT = (
    "The weights of convolutions are not decayed: they are matrices with four "
    "axes, so ask for more than one axis, not for two."
)
FROZEN = (
    "A frozen parameter is in a group: leave out those whose requires_grad is "
    "False."
)
NO_DECAY_GIVEN = (
    "A group has no weight_decay: AdamW then takes its own default, 0.01. "
    'Give each group its "weight_decay", 0.0 in the second.'
)


def _group_forms() -> Iterator[WrongForm]:
    return combine(
        _groups,
        Mistake(
            "Everything is decayed: biases, norms, the class token and the "
            "table of positions need a group with weight_decay 0.",
            {"is_decayed": lambda n, p: True},
            {"low": lambda d: {"weight_decay": d}},
        ),
        Mistake(
            "The second group is decayed too: its weight_decay is 0.0.",
            *(
                {"low": functools.partial(_constant, decay)}
                for decay in (0.1, 0.05, 0.01, 0.001)
            ),
        ),
        Mistake(
            "Nothing is decayed: matrices need a group with weight_decay.",
            {"is_decayed": lambda n, p: False},
            {"high": lambda d: {"weight_decay": 0.0}},
        ),
        Mistake(
            "The groups are exchanged: matrices are decayed, everything else "
            "is not.",
            {"is_decayed": lambda n, p: not _is_matrix(n, p)},
            {
                "high": lambda d: {"weight_decay": 0.0},
                "low": lambda d: {"weight_decay": d},
            },
            {"is_decayed": lambda n, p: p.ndim == 1},
            {"is_decayed": lambda n, p: n.endswith("bias")},
        ),
        Mistake(
            "All names that do not end in bias are decayed: norms, the class "
            "token and the table of positions must not be.",
            {"is_decayed": lambda n, p: not n.endswith("bias")},
        ),
        Mistake(
            "Parameters of two or more axes are decayed, also the class token "
            "and the table of positions: ask for names that end in weight, "
            "too.",
            {"is_decayed": lambda n, p: p.ndim > 1},
        ),
        Mistake(
            NORMS_DECAYED,
            {"is_decayed": lambda n, p: n.endswith("weight")},
            {
                "is_decayed": lambda n, p: (
                    n.endswith("weight") and "norm" not in n
                )
            },
        ),
        Mistake(
            CONVOLUTIONS_KEPT,
            {"is_decayed": lambda n, p: n.endswith("weight") and p.ndim == 2},
            {"is_decayed": lambda n, p: p.ndim == 2},
        ),
        Mistake(
            "Biases are decayed: they have one axis, and matrices have two or "
            "more.",
            {"is_decayed": lambda n, p: _is_matrix(n, p) or n.endswith("bias")},
        ),
        Mistake(FROZEN, {"is_taken": lambda n, p: True}),
        Mistake(
            "weight_decay is not used: it is the decay of the first group.",
            *(
                {"high": functools.partial(_constant, decay)}
                for decay in (0.1, 0.05, 0.01, 0.001)
            ),
        ),
        Mistake(NO_DECAY_GIVEN, {"low": lambda d: {}}, {"high": lambda d: {}}),
    )


PARAMETER_GROUPS = ObservedExercise(
    parameter_groups,
    cases=(
        Case(
            "a linear layer",
            (functools.partial(_model, "head"), 0.25),
        ),
        Case(
            "linear layers and norms",
            (functools.partial(_model, "norm", "block", "head"), 0.25),
            NORMS_DECAYED,
        ),
        Case(
            "a convolution",
            (functools.partial(_model, "proj", "head"), 0.25),
            CONVOLUTIONS_KEPT,
        ),
        Case(
            "a class token and a table of positions",
            (functools.partial(_model, "cls_token", "pos_embed", "head"), 0.25),
            TOKENS_DECAYED,
        ),
        Case(
            "another weight_decay",
            (functools.partial(_model, "head"), 0.125),
            "weight_decay is not used: it is the decay of the first group.",
        ),
        Case(
            "a frozen layer",
            (functools.partial(_model, "norm", "head", frozen="head"), 0.25),
            FROZEN,
        ),
        Case(
            "a frozen model",
            (functools.partial(_model, "head", frozen="head"), 0.25),
            "A model without a trainable parameter is accepted: raise a "
            "ValueError, nothing can be learned.",
        ),
        Case("all of these", (functools.partial(_model, *PARTS), 0.25)),
    ),
    wrong_forms=_group_forms,
    errors={
        "values to unpack": (
            "model.parameters() gives no names: go through "
            "model.named_parameters()."
        ),
        "'tuple' object has no attribute": (
            "model.named_parameters() gives pairs: for name, parameter in "
            "model.named_parameters()."
        ),
    },
    observe=_observe_groups,
    causes={
        "in no group": (
            "A parameter is in no group: an optimizer never changes it. Go "
            "through model.named_parameters(), and let else catch the rest."
        ),
        "in a group twice": (
            "A parameter is there twice: go through model.named_parameters() "
            "once, and put each parameter into one group."
        ),
        "frozen, but in a group": FROZEN,
        "in a group without weight_decay": NO_DECAY_GIVEN,
    },
)

# warmup_cosine


NO_ROOM = (
    "A warm-up that leaves no step for the cosine is accepted: raise a "
    "ValueError when warmup_steps is not smaller than total_steps."
)


def _observe_rates(
    function: Callable[..., Any],
    make: Callable[[], Optimizer],
    warmup_steps: int,
    total_steps: int,
) -> Facts | None:
    optimizer = make()
    scheduler = function(optimizer, warmup_steps, total_steps)
    if scheduler is None:
        return None
    if not callable(getattr(scheduler, "step", None)):
        raise Refusal(
            "Your code must return a scheduler of torch.optim.lr_scheduler, "
            f"for example a LambdaLR, not {kind(scheduler)}."
        )
    rates = [[float(group["lr"]) for group in optimizer.param_groups]]
    # A schedule that makes no sense must be refused before the first step.
    for _ in range(total_steps if warmup_steps < total_steps else 0):
        optimizer.step()
        scheduler.step()
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
    return {
        f"rate {place} of group {group}": rate[group]
        for group in (0, 1)
        for step, rate in enumerate(rates)
        for place in [
            f"in step {step}" if step < total_steps else "after the last step"
        ]
    }


def _optimizer() -> Optimizer:
    """Two groups with rates of their own."""
    one, two = (nn.Parameter(torch.ones(1)) for _ in range(2))
    return SGD([{"params": [one], "lr": 0.5}, {"params": [two], "lr": 0.1}])


def _line(step: int, warmup: int, total: int) -> float:
    return (step + 1) / warmup


def _cosine(step: int, warmup: int, total: int) -> float:
    return _half_wave((step - warmup) / (total - warmup))


def _half_wave(share: float) -> float:
    """From 1 at share 0 to 0 at share 1."""
    return (1 + math.cos(math.pi * share)) / 2


def _rates(
    line: Callable[[int, int, int], float] = _line,
    cosine: Callable[[int, int, int], float] = _cosine,
    floor: Callable[[float, float], float] = lambda factor, rate: factor,
    end: Callable[[float, float], float] = lambda factor, rate: factor,
) -> Callable[..., LRScheduler]:
    """warmup_cosine, with some steps exchanged."""

    def form(
        optimizer: Optimizer, warmup_steps: int, total_steps: int
    ) -> LRScheduler:
        if not 0 <= warmup_steps < total_steps:
            raise ValueError

        def factor(step: int, rate: float) -> float:
            if step < warmup_steps:
                return end(line(step, warmup_steps, total_steps), rate)
            share = cosine(step, warmup_steps, total_steps)
            return end(floor(share, rate), rate)

        return LambdaLR(
            optimizer,
            [
                functools.partial(factor, rate=group["lr"])
                for group in optimizer.param_groups
            ],
        )

    return form


def _floor(smallest: float) -> Callable[[float, float], float]:
    """The cosine ends at a share of the rate."""
    return lambda factor, rate: smallest + (1 - smallest) * factor


def _eta_min(smallest: float) -> Callable[[float, float], float]:
    """The cosine ends at this rate."""
    return lambda factor, rate: _floor(smallest / rate)(factor, rate)


def _rate_forms() -> Iterator[WrongForm]:
    return combine(
        _rates,
        Mistake(
            "The first step has a rate of 0 and learns nothing: start at 1 / "
            "warmup_steps of the rate, (step + 1) / warmup_steps.",
            {"line": lambda s, w, t: s / w},
            {"line": lambda s, w, t: s / max(1, w - 1)},
        ),
        Mistake(
            "The warm-up is missing: in the first warmup_steps steps the rate "
            "rises along a line.",
            {"line": lambda s, w, t: 1},
            {
                "line": lambda s, w, t: _half_wave(s / t),
                "cosine": lambda s, w, t: _half_wave(s / t),
            },
            {
                "line": lambda s, w, t: _half_wave(s / (t - w)),
                "cosine": lambda s, w, t: _half_wave(min(1, s / (t - w))),
            },
        ),
        Mistake(
            "The warm-up starts at a third of the rate, the default of "
            "LinearLR: start_factor is 1 / warmup_steps.",
            {"line": lambda s, w, t: 1 / 3 + 2 / 3 * s / w},
            {"line": lambda s, w, t: 1 / 3 + 2 / 3 * s / max(1, w - 1)},
            {"line": lambda s, w, t: 1 / 3 + 2 / 3 * min(1, s / 5)},
        ),
        Mistake(
            "The warm-up starts at a fixed share of the rate: start at 1 / "
            "warmup_steps of it.",
            *(
                {"line": functools.partial(_from_share, first, less)}
                for first in (0.5, 0.2, 0.1, 0.05, 0.01, 0.001)
                for less in (0, 1)
            ),
        ),
        Mistake(
            "The warm-up takes one step too many: the last of warmup_steps "
            "steps has the full rate, so total_iters of LinearLR is "
            "warmup_steps - 1.",
            {"line": lambda s, w, t: 1 / w + (1 - 1 / w) * s / w},
            {"line": lambda s, w, t: (s + 1) / (w + 1)},
        ),
        Mistake(
            "The warm-up is no line: the rate rises by the same amount in "
            "each step.",
            {"line": lambda s, w, t: ((s + 1) / w) ** 2},
            {"line": lambda s, w, t: 1 - _half_wave((s + 1) / w)},
            {"line": lambda s, w, t: 1 - _half_wave(s / w)},
        ),
        Mistake(
            "The cosine runs over total_steps, so it does not end at 0: it "
            "has the rest of the steps, total_steps - warmup_steps.",
            {"cosine": lambda s, w, t: _half_wave((s - w) / t)},
        ),
        Mistake(
            "The cosine counts from the first step of all: it starts after "
            "the warm-up, at step - warmup_steps.",
            {"cosine": lambda s, w, t: _half_wave(s / t)},
            {"cosine": lambda s, w, t: _half_wave(s / (t - w))},
            {"cosine": lambda s, w, t: _half_wave(min(1, s / (t - w)))},
        ),
        Mistake(
            "The rate does not end at 0: leave out eta_min, or the smallest "
            "share.",
            *(
                {"floor": kind_of_floor(smallest)}
                for kind_of_floor in (_floor, _eta_min)
                for smallest in (0.05, 0.01, 0.001, 1e-4)
            ),
            {"floor": _floor(0.1)},
            {"floor": _floor(0.2)},
        ),
        Mistake(
            "The rate falls along a line: it falls along a cosine.",
            {"cosine": lambda s, w, t: (t - s) / (t - w)},
            {"cosine": lambda s, w, t: 1 - s / t},
        ),
        Mistake(
            "The rate does not fall: after the warm-up it follows a cosine.",
            {"cosine": lambda s, w, t: 1},
        ),
        Mistake(
            "The period is wrong: from the largest rate to 0 the cosine turns "
            "by pi.",
            {
                "cosine": lambda s, w, t: _half_wave(2 * (s - w) / (t - w)),
            },
            {
                "cosine": lambda s, w, t: _half_wave((s - w) / (t - w) / 2),
            },
            {
                "cosine": lambda s, w, t: math.cos(
                    math.pi / 2 * (s - w) / (t - w)
                ),
            },
            {
                "cosine": lambda s, w, t: (1 + math.cos((s - w) / (t - w))) / 2,
            },
        ),
        Mistake(
            "The cosine goes from 1 to -1: add 1 and halve it, 0.5 * (1 + "
            "cos).",
            {"cosine": lambda s, w, t: 2 * _cosine(s, w, t) - 1},
        ),
        Mistake(
            "The cosine goes from 2 to 0: halve it, 0.5 * (1 + cos).",
            {"cosine": lambda s, w, t: 2 * _cosine(s, w, t)},
        ),
        Mistake(
            "The cosine starts one step late: the first step after the "
            "warm-up is its step 0.",
            {"cosine": lambda s, w, t: _half_wave((s - w - 1) / (t - w))},
            {
                "cosine": lambda s, w, t: _half_wave(
                    max(0, s - w - 1) / (t - w - 1)
                )
            },
            {  # a milestone of SequentialLR, which no warm-up does not need
                "cosine": lambda s, w, t: _half_wave(
                    max(0, s - w - min(1, w)) / (t - w)
                )
            },
        ),
        Mistake(
            "The cosine starts one step early: the first step after the "
            "warm-up is its step 0.",
            {"cosine": lambda s, w, t: _half_wave((s - w + 1) / (t - w))},
            {"cosine": lambda s, w, t: _half_wave((s - w + 1) / (t - w + 1))},
            {
                "cosine": lambda s, w, t: _half_wave(
                    (s - w + min(1, w)) / (t - w)
                )
            },
            {  # a milestone of SequentialLR, which is 1 or more
                "cosine": lambda s, w, t: _half_wave(
                    (s - w + (w > 1)) / (t - w)
                )
            },
        ),
        Mistake(
            "The cosine ends one step early, and the last step learns "
            "nothing: the rate is 0 after total_steps steps.",
            {"cosine": lambda s, w, t: _half_wave((s - w) / (t - w - 1))},
            {
                "cosine": lambda s, w, t: _half_wave(
                    min(1, (s - w) / (t - w - 1))
                )
            },
        ),
        Mistake(
            "The rate is multiplied by itself: the function for LambdaLR "
            "returns a share, and LambdaLR multiplies it by the rate.",
            {"end": lambda factor, rate: factor * rate},
        ),
        Mistake(
            "The schedule is turned round: the rate rises first, then falls.",
            {
                "line": lambda s, w, t: 1 - _line(s, w, t),
                "cosine": lambda s, w, t: 1 - _cosine(s, w, t),
            },
            {"cosine": lambda s, w, t: 1 - _cosine(s, w, t)},
        ),
    )


def _from_share(first: float, less: int, s: int, w: int, t: int) -> float:
    """LinearLR with this start_factor over warmup_steps - less steps."""
    return first + (1 - first) * min(1, s / max(1, w - less))


WARMUP_COSINE = ObservedExercise(
    warmup_cosine,
    cases=(
        Case("warm-up in 4 of 12 steps", (_optimizer, 4, 12)),
        Case(
            "no warm-up",
            (_optimizer, 0, 8),
            "Right with a warm-up, wrong without: warmup_steps may be 0, and "
            "the rate starts at its largest.",
        ),
        Case(
            "warm-up in one step",
            (_optimizer, 1, 6),
            "Right for several steps of warm-up, wrong for one: that step has "
            "the full rate.",
        ),
        Case(
            "warm-up in all steps but one",
            (_optimizer, 5, 6),
            "Wrong if one step alone follows the warm-up: it has the full "
            "rate.",
        ),
        Case("warm-up in all steps", (_optimizer, 6, 6), NO_ROOM),
        Case("warm-up in more than all steps", (_optimizer, 9, 6), NO_ROOM),
        Case("warm-up in 7 of 30 steps", (_optimizer, 7, 30)),
    ),
    wrong_forms=_rate_forms,
    observe=_observe_rates,
    errors={
        "division by zero": (
            "Your code divides by 0: warmup_steps may be 0 or 1, and "
            "total_steps larger by 1."
        ),
    },
)

# train_one_epoch


def _sgd(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=0.5)


def _falling(optimizer: Optimizer) -> LRScheduler:
    return LambdaLR(optimizer, lambda step: 1 / (1 + step))


def _observe_epoch(
    function: Callable[..., Any],
    make: Callable[[], Classifier],
    loader: Loader,
    make_optimizer: Callable[[nn.Module], Optimizer],
    make_scheduler: Callable[[Optimizer], LRScheduler],
    **kwargs: Any,
) -> Facts | None:
    model = make().eval()
    optimizer = make_optimizer(model)
    scheduler = make_scheduler(optimizer)
    with torch.enable_grad():
        result = function(model, loader, optimizer, scheduler, **kwargs)
    if result is None:
        return None
    return {
        "model called": "yes" if model.modes else "no",
        "mode of the model": _noted(model.modes),
        "learning rate after the epoch": float(optimizer.param_groups[0]["lr"]),
        "weights after the epoch": nn.utils.parameters_to_vector(
            model.parameters()
        ).detach(),
        "loss": number("the loss", result),
    }


START, END, NEVER = -1, 9, None  # when an action happens
Numbers = list[float]


def _mean(losses: Numbers, sizes: Numbers) -> float:
    return _sum(losses, sizes) / sum(sizes)


def _sum(losses: Numbers, sizes: Numbers) -> float:
    return sum(a * b for a, b in zip(losses, sizes, strict=True))


def _epoch(
    zero: float | None = 0,
    step: float | None = 3,
    schedule: float | None = 4,
    clip_at: float | None = 2,
    clip: Callable[..., Any] = nn.utils.clip_grad_norm_,
    most: Callable[[float], float] = lambda max_norm: max_norm,
    compute: Callable[..., Tensor] = lambda fn, logits, labels: fn(
        logits, labels
    ),
    mixed: bool = True,
    mean: Callable[[Numbers, Numbers], float] = _mean,
) -> Callable[..., float]:
    """train_one_epoch, with some steps exchanged."""

    def form(
        model: nn.Module,
        loader: Loader,
        optimizer: Optimizer,
        scheduler: LRScheduler,
        *,
        loss_fn: Callable[..., Tensor] = F.cross_entropy,
        mix: Callable[..., tuple[Tensor, Tensor]] | None = None,
        max_norm: float = 1.0,
    ) -> float:
        losses: list[Tensor] = []
        sizes: list[int] = []
        actions = {
            "zero": (zero, optimizer.zero_grad),
            "backward": (1, lambda: losses[-1].backward()),
            "clip": (clip_at, lambda: clip(model.parameters(), most(max_norm))),
            "step": (step, optimizer.step),
            "schedule": (schedule, scheduler.step),
        }

        def act(first: float, last: float) -> None:
            """Do what is planned from first to last, in order of time."""
            planned = [
                (time, name)
                for name, (time, _) in actions.items()
                if time is not NEVER and first <= time <= last
            ]
            for _, name in sorted(planned):
                actions[name][1]()

        model.train()
        act(START, START)
        for images, labels in loader:
            if mix is not None and mixed:
                images, labels = mix(images, labels)
            losses.append(compute(loss_fn, model(images), labels))
            sizes.append(len(images))
            act(-0.5, 8)
        act(END, END)
        return mean([loss.item() for loss in losses], sizes)

    return form


def _clip_each(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    for parameter in parameters:
        nn.utils.clip_grad_norm_(parameter, max_norm)


def _always_scale(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    parameters = list(parameters)
    norm = torch.stack([p.grad.norm() for p in parameters]).norm()
    for parameter in parameters:
        parameter.grad *= max_norm / norm


NOT_CLIPPED = (
    "step() uses gradients that are not clipped: call "
    "nn.utils.clip_grad_norm_ with all parameters and max_norm between "
    "backward() and step()."
)
LONG = (
    "Wrong for long gradients: make the norm of all gradients together at most "
    "max_norm, 1.0 if nothing is said."
)
SCHEDULE = (
    "scheduler.step() belongs inside the loop, once after each "
    "optimizer.step(): the schedule counts batches, not epochs."
)
BATCH_MEANS = (
    "Each batch weighs the same, and the last one may be smaller: add up loss "
    "times number of images, then divide by the number of all images."
)


WRONG_MEANS = (
    Mistake(
        "The losses are added and not divided: return their mean over the "
        "images.",
        {"mean": lambda means, sizes: sum(means)},
        {"mean": _sum},
    ),
    Mistake(
        "The loss of a batch is a mean already: multiply it by the number "
        "of its images before you add it up.",
        {"mean": lambda means, sizes: sum(means) / sum(sizes)},
    ),
)


def _epoch_forms() -> Iterator[WrongForm]:
    return combine(
        _epoch,
        Mistake(
            "The gradients add up from batch to batch: call "
            "optimizer.zero_grad() before each backward().",
            {"zero": NEVER},
            {"zero": START},
        ),
        Mistake(
            "The weights do not change: step() needs the gradients of "
            "backward(), so the order is zero_grad(), backward(), step().",
            {"zero": 1.5},
            {"zero": 2.5},
            {"step": 0.5},
            {"step": NEVER},
        ),
        Mistake(
            "step() comes before backward() and uses the gradients of the "
            "batch before: the order is zero_grad(), backward(), step().",
            {"step": -0.5},
        ),
        Mistake(
            "The optimizer makes one step in the epoch: step() belongs inside "
            "the loop, once for each batch.",
            {"step": END, "zero": START},
            {"step": END},
        ),
        Mistake(SCHEDULE, {"schedule": END}, {"schedule": NEVER}),
        Mistake(
            "scheduler.step() comes before optimizer.step(), so the first "
            "rate is never used: call it after.",
            {"schedule": 0.2},
            {"schedule": 2.5},
        ),
        Mistake(
            NOT_CLIPPED, {"clip_at": NEVER}, {"clip_at": 0.5}, {"clip_at": 3.5}
        ),
        Mistake(
            "Each number of the gradients is clipped on its own, and their "
            "direction changes: use clip_grad_norm_, not clip_grad_value_.",
            {"clip": nn.utils.clip_grad_value_},
        ),
        Mistake(
            "Each parameter is clipped on its own: give clip_grad_norm_ all "
            "parameters at once.",
            {"clip": _clip_each},
        ),
        Mistake(
            "Short gradients are made longer: they are scaled only if their "
            "norm is larger than max_norm.",
            {"clip": _always_scale},
        ),
        Mistake(
            "max_norm is not used: it is the largest norm of all gradients.",
            {"most": lambda max_norm: 1.0},
        ),
        Mistake(
            BATCH_MEANS, {"mean": lambda means, sizes: sum(means) / len(means)}
        ),
        *WRONG_MEANS,
        Mistake(
            "The loss of one batch is returned: return the mean over all "
            "images of the epoch.",
            {"mean": lambda means, sizes: means[-1]},
            {"mean": lambda means, sizes: means[0]},
        ),
        Mistake(
            "The sum over the images is divided by the number of batches: "
            "divide it by the number of images.",
            {"mean": lambda means, sizes: _sum(means, sizes) / len(means)},
        ),
        Mistake(
            "A softmax comes before the loss: cross-entropy takes the logits "
            "as they are.",
            {
                "compute": lambda fn, logits, labels: fn(
                    logits.softmax(-1), labels
                )
            },
        ),
        Mistake(
            "The loss is a sum over the batch, not a mean: the steps then "
            "grow with the batch.",
            {
                "compute": lambda fn, logits, labels: (
                    fn(logits, labels) * len(labels)
                )
            },
        ),
        Mistake(
            "loss_fn is not used: compute loss_fn(model(images), labels).",
            {
                "compute": lambda fn, logits, labels: F.cross_entropy(
                    logits, labels
                )
            },
        ),
        Mistake(
            "mix is not used: images and labels of each batch go through it.",
            {"mixed": False},
        ),
    )


def _blend(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A blend of each image with its neighbor."""
    labels = F.one_hot(labels, 3).float()
    images, labels = images + images.roll(1, 0), labels + labels.roll(1, 0)
    return images / 2, labels / 2


def _smooth(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=0.3)


def _epoch_case(
    label: str,
    cause: str | None = None,
    *,
    images: int = 10,
    std: float = 0.2,
    **kwargs: Any,
) -> Case:
    loader = _batches(images, std=std)
    args = (Classifier, loader, _sgd, _falling)
    return Case(label, args, cause, kwargs)


TRAIN_ONE_EPOCH = ObservedExercise(
    train_one_epoch,
    cases=(
        _epoch_case("one batch", images=4),
        _epoch_case(
            "two batches of one size",
            "Right for one batch only: for each batch zero_grad, backward, "
            "step.",
            images=8,
        ),
        _epoch_case("three batches, the last one smaller", BATCH_MEANS),
        _epoch_case("one batch with long gradients", LONG, std=6),
        _epoch_case("three batches with long gradients", LONG, std=6),
        _epoch_case("no batch", EMPTY, images=0),
        _epoch_case(
            "max_norm=0.1",
            "max_norm is not used: it is the largest norm of all gradients.",
            max_norm=0.1,
        ),
        _epoch_case(
            "another loss_fn",
            "loss_fn is not used: compute loss_fn(model(images), labels).",
            loss_fn=_smooth,
        ),
        _epoch_case(
            "a mix of images",
            "mix is not used: images and labels of each batch go through it.",
            mix=_blend,
        ),
        _epoch_case("six batches", images=21, std=2),
    ),
    wrong_forms=_epoch_forms,
    errors={
        "does not require grad": (
            "The loss has no gradients: leave out torch.no_grad(), .item() "
            "and .detach() before backward()."
        ),
        "'float' object has no attribute 'backward'": (
            "The loss has no gradients: call .item() after backward() only."
        ),
    },
    observe=_observe_epoch,
    causes={
        "model called": NOT_CALLED,
        "mode of the model": (
            "The model is in evaluation mode while it learns: call "
            "model.train() first."
        ),
        "learning rate after the epoch": SCHEDULE,
    },
)

# evaluate


def _observe_evaluation(
    function: Callable[..., Any],
    make: Callable[[], Classifier],
    loader: Loader,
) -> Facts | None:
    model = make().train()
    with torch.enable_grad():
        result = function(model, loader)
    if result is None:
        return None
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Refusal(
            "Your code must return the pair (loss, accuracy), not "
            f"{kind(result)}."
        )
    return {
        "model called": "yes" if model.modes else "no",
        "mode of the model": _noted(model.modes),
        "gradients recorded": _noted(model.gradients),
        "loss": number("the loss", result[0]),
        "accuracy": number("the accuracy", result[1]),
    }


def _evaluate(
    prepare: Callable[[nn.Module], Any] = lambda model: model.eval(),
    context: Callable[[], Any] = torch.no_grad,
    logits: Callable[[Tensor], Tensor] = lambda logits: logits,
    guess: Callable[[Tensor], Tensor] = lambda logits: logits.argmax(1),
    mean: Callable[[Numbers, Numbers], float] = _mean,
    share: Callable[[Numbers, Numbers], float] = lambda rights, sizes: (
        100 * sum(rights) / sum(sizes)
    ),
    end: Callable[[float, float], Any] = lambda loss, share: (loss, share),
) -> Callable[..., Any]:
    """evaluate, with some steps exchanged."""

    def form(model: nn.Module, loader: Loader) -> Any:
        prepare(model)
        means, rights, sizes = [], [], []
        with context():
            for images, labels in loader:
                output = model(images)
                loss = F.cross_entropy(logits(output), labels)
                means.append(loss.item())
                rights.append((guess(output) == labels).sum().item())
                sizes.append(len(images))
        return end(mean(means, sizes), share(rights, sizes))

    return form


def _mean_of_shares(rights: Numbers, sizes: Numbers) -> float:
    shares = [100 * r / n for r, n in zip(rights, sizes, strict=True)]
    return sum(shares) / len(shares)


ONE_BATCH = (
    "Only one batch counts: add up over the whole loader, and return after "
    "the loop."
)
MODE = (
    "The model is in training mode, so dropout and batch norm act: call "
    "model.eval() first."
)
RECORDED = (
    "Gradients are recorded, which costs memory: put the loop under with "
    "torch.inference_mode()."
)
PERCENT = "The accuracy is a share: return it in percent, 100 times as much."


def _evaluate_forms() -> Iterator[WrongForm]:
    return combine(
        _evaluate,
        Mistake(MODE, {"prepare": lambda model: None}),
        Mistake(RECORDED, {"context": torch.enable_grad}),
        Mistake(
            "A softmax comes before the loss: cross-entropy takes the logits "
            "as they are.",
            {"logits": lambda logits: logits.softmax(-1)},
        ),
        Mistake(
            "argmax runs over the wrong axis: the classes are the last one, "
            "logits.argmax(dim=1).",
            {"guess": lambda logits: logits.argmax(0)},
            {"guess": lambda logits: logits.argmax()},
        ),
        Mistake(
            "The class with the smallest logit is guessed: use argmax.",
            {"guess": lambda logits: logits.argmin(1)},
        ),
        Mistake(
            BATCH_MEANS,
            {"mean": lambda means, sizes: sum(means) / len(means)},
            {
                "mean": lambda means, sizes: sum(means) / len(means),
                "share": _mean_of_shares,
            },
        ),
        Mistake(
            "The accuracy is a mean over the batches, and the last one may be "
            "smaller: divide the number of right answers by the number of "
            "images.",
            {"share": _mean_of_shares},
        ),
        *WRONG_MEANS,
        Mistake(
            "The sum over the images is divided by the number of batches: "
            "divide it by the number of images.",
            {"mean": lambda means, sizes: _sum(means, sizes) / len(means)},
        ),
        Mistake(
            ONE_BATCH,
            {"mean": lambda means, sizes: means[-1]},
            {"mean": lambda means, sizes: means[0]},
            {"share": lambda rights, sizes: 100 * rights[-1] / sizes[-1]},
            {"share": lambda rights, sizes: 100 * rights[0] / sizes[0]},
            {
                "mean": lambda means, sizes: means[-1],
                "share": lambda rights, sizes: 100 * rights[-1] / sizes[-1],
            },
            {
                "mean": lambda means, sizes: means[0],
                "share": lambda rights, sizes: 100 * rights[0] / sizes[0],
            },
        ),
        Mistake(
            PERCENT,
            {"share": lambda rights, sizes: sum(rights) / sum(sizes)},
            {
                "share": lambda rights, sizes: (
                    _mean_of_shares(rights, sizes) / 100
                )
            },
        ),
        Mistake(
            "The number of right answers is divided by the number of batches: "
            "divide it by the number of images.",
            {"share": lambda rights, sizes: 100 * sum(rights) / len(sizes)},
            {"share": lambda rights, sizes: sum(rights) / len(sizes)},
        ),
        Mistake(
            "The number of right answers is returned: the accuracy is their "
            "share of the images, in percent.",
            {"share": lambda rights, sizes: sum(rights)},
        ),
        Mistake(
            "The share of wrong answers is returned: the accuracy is that of "
            "the right ones.",
            {
                "share": lambda rights, sizes: (
                    100 - 100 * sum(rights) / sum(sizes)
                )
            },
        ),
        Mistake(
            "The results are exchanged: return the loss first, then the "
            "accuracy.",
            {"end": lambda loss, share: (share, loss)},
        ),
    )


EVALUATE = ObservedExercise(
    evaluate,
    cases=(
        Case("one batch", (Classifier, _batches(4))),
        Case(
            "two batches of one size",
            (Classifier, _batches(8)),
            "Right for one batch only: add up over all batches, then divide "
            "by the number of images.",
        ),
        Case(
            "three batches, the last one smaller",
            (Classifier, _batches(10)),
            BATCH_MEANS,
        ),
        Case(
            "a last batch of one image",
            (Classifier, _batches(7, 3)),
            "Right for several images in a batch, wrong for one: keep the "
            "batch axis, and leave out squeeze().",
        ),
        Case("no batch", (Classifier, _batches(0)), EMPTY),
        Case("five batches", (Classifier, _batches(23, 5))),
    ),
    wrong_forms=_evaluate_forms,
    errors={
        "context manager protocol": (
            "The brackets are missing: write with torch.inference_mode()."
        ),
        "Input dtype must be either a floating point": (
            "True and False have no mean: count them with .sum()."
        ),
        "cannot be converted to Scalar": (
            ".item() needs one number: take the sum first."
        ),
    },
    observe=_observe_evaluation,
    causes={
        "model called": NOT_CALLED,
        "mode of the model": MODE,
        "gradients recorded": RECORDED,
    },
)

EXERCISES = (PARAMETER_GROUPS, WARMUP_COSINE, TRAIN_ONE_EPOCH, EVALUATE)
