"""Exercises of chapter 05, with the mistakes that learners make."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_lessons.checks.catalogue import Mistake, combine
from vit_lessons.checks.exercise import Case
from vit_lessons.checks.part import (
    DROPOUT_IN_EVALUATION,
    DROPOUT_NOT_USED,
    EVALUATION,
    ONE_WIDTH,
    RATIO,
    PartCase,
    PartExercise,
    normal,
)
from vit_lessons.mlp import Mlp


def _mlp(
    widen: Callable = lambda self, x: self.fc1(x),
    bend: Callable = F.gelu,
    narrow: Callable = lambda self, x: self.fc2(x),
    end: Callable = lambda x, out: out,
) -> Callable[[Mlp, Tensor], Tensor]:
    """Mlp.forward, with some steps exchanged."""

    def form(self: Mlp, x: Tensor) -> Tensor:
        return end(x, narrow(self, bend(widen(self, x))))

    return form


def _normalize(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


ACTIVATIONS = (
    ("ReLU", F.relu),
    ("SiLU", F.silu),
    ("tanh", torch.tanh),
    ("the sigmoid", torch.sigmoid),
    ("leaky ReLU", F.leaky_relu),
    ("ELU", F.elu),
    ("softplus", F.softplus),
)

ACTIVATION_MISTAKES = (
    *(
        Mistake(
            f"The activation is {name}: in ViT it is GELU, nn.GELU().",
            {"bend": function},
        )
        for name, function in ACTIVATIONS
    ),
    Mistake(
        "GELU is approximated: published weights want the exact one, "
        "nn.GELU().",
        {"bend": lambda x: F.gelu(x, approximate="tanh")},
        {"bend": lambda x: x * torch.sigmoid(1.702 * x)},
    ),
    Mistake(
        "The activation is missing: GELU comes between the two layers.",
        {"bend": lambda x: x},
    ),
    Mistake(
        "A softmax stands in the place of the activation: use GELU.",
        {"bend": lambda x: x.softmax(-1)},
    ),
    Mistake(
        "The activation is applied twice: once is right.",
        {"bend": lambda x: F.gelu(F.gelu(x))},
    ),
)

MLP_MISTAKES = (
    *ACTIVATION_MISTAKES,
    Mistake(
        "GELU comes after the second layer: it belongs between the two.",
        {"bend": lambda x: x, "end": lambda x, out: F.gelu(out)},
    ),
    Mistake(
        "GELU comes before the first layer: it belongs between the two.",
        {"bend": lambda x: x, "widen": lambda self, x: self.fc1(F.gelu(x))},
    ),
    Mistake(
        "One more function follows the second layer: end with fc2.",
        {"end": lambda x, out: F.gelu(out)},
        {"end": lambda x, out: F.relu(out)},
        {"end": lambda x, out: torch.tanh(out)},
        {"end": lambda x, out: torch.sigmoid(out)},
        {"end": lambda x, out: out.softmax(-1)},
    ),
    Mistake(
        "The input is added to the output: the residual connection belongs to "
        "the encoder block.",
        {"end": lambda x, out: x + out},
    ),
    Mistake(
        "LayerNorm does not belong here: the encoder block has it.",
        {"widen": lambda self, x: self.fc1(_normalize(x))},
        {"end": lambda x, out: _normalize(out)},
        {"narrow": lambda self, x: self.fc2(_normalize(x))},
        {"end": lambda x, out: _normalize(x + out)},
    ),
    Mistake(
        "The bias of a layer is missing: call the layer, or add its bias.",
        {"widen": lambda self, x: x @ self.fc1.weight.T},
        {"narrow": lambda self, x: x @ self.fc2.weight.T},
        {
            "widen": lambda self, x: x @ self.fc1.weight.T,
            "narrow": lambda self, x: x @ self.fc2.weight.T,
        },
    ),
    Mistake(
        "The tokens are averaged: each token is computed alone.",
        {"end": lambda x, out: out.mean(1)},
        {"end": lambda x, out: out.mean(1, keepdim=True)},
    ),
)


def _mlp_case(
    label: str,
    shape: tuple[int, ...],
    cause: str | None = None,
    *,
    mode: str = "training",
    std: float = 1.0,
    **init: float,
) -> Case:
    sizes = {"dim": shape[-1]} | init
    x = normal(*shape, std=std)
    return PartCase(label, (x,), cause, init=sizes, mode=mode)


MLP = PartExercise(
    Mlp,
    cases=(
        _mlp_case("one sequence of 5 tokens", (1, 5, 6)),
        _mlp_case(
            "two sequences",
            (2, 5, 6),
            "Right for one sequence, wrong for several: each token is computed "
            "alone.",
        ),
        _mlp_case(
            "one token",
            (1, 1, 6),
            "Right for several tokens, wrong for one: each token is computed "
            "alone.",
        ),
        _mlp_case("wider tokens", (1, 5, 10), ONE_WIDTH),
        _mlp_case(
            "large numbers",
            (1, 5, 6),
            "Right for small numbers only: the activation is GELU.",
            std=4,
        ),
        _mlp_case("mlp_ratio=2", (1, 5, 6), RATIO, mlp_ratio=2),
        _mlp_case("mlp_ratio=2.5", (1, 5, 6), RATIO, mlp_ratio=2.5),
        _mlp_case("in evaluation", (2, 5, 6), EVALUATION, mode="evaluation"),
        _mlp_case(
            "dropout=0.5 in evaluation",
            (2, 5, 6),
            DROPOUT_IN_EVALUATION,
            mode="evaluation",
            dropout=0.5,
        ),
        _mlp_case(
            "dropout=0.5 in training",
            (8, 5, 6),
            DROPOUT_NOT_USED,
            mode="random",
            dropout=0.5,
        ),
        _mlp_case("all axes different", (3, 7, 10)),
    ),
    wrong_forms=lambda: combine(_mlp, *MLP_MISTAKES),
    hints={
        "fc1.weight must have shape": (
            "The hidden layer is mlp_ratio times as wide as the tokens, 4 "
            "times if nothing is said."
        ),
    },
)

EXERCISES = (MLP,)
