"""First exercise of chapter 16, and what its exercises share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vit_lessons.checks.candidate import Refusal
from vit_lessons.checks.catalogue import Mistake, WrongForm, combine
from vit_lessons.checks.exercise import Case, Outcome
from vit_lessons.checks.part import (
    ONE_WIDTH,
    PartCase,
    PartExercise,
    normal,
    only_singles,
)
from vit_lessons.encoder_block import DropPath
from vit_lessons.swin_transformer import PatchMerging

EPS = (
    "LayerNorm has another eps: Swin has 1e-5, as nn.LayerNorm does if nothing "
    "is said, and not the 1e-6 of ViT."
)
SEVERAL_MAPS = (
    "Right for one map, wrong for several: the images of a batch do not see "
    "each other."
)
_EXPECTED: dict[tuple[str, str, int], list[Any]] = {}
NO_LAYER = r", and store it as nn\.(Swin|Window)\w+ does"


@dataclass(frozen=True)
class SwinExercise(PartExercise):
    """A part of Swin; with drop-path it is called with many equal images.

    Args:
        meanings: Patterns in the text of a refusal, and what they mean.
    """

    meanings: dict[str, str] = field(default_factory=dict)

    def ready(self, candidate: Any, case: Case) -> Callable[..., Any]:
        try:
            module = super().ready(candidate, case)
        except Refusal as refusal:
            text = self._with_meaning(str(refusal))
            raise type(refusal)(text) from None
        return all_kinds(module) if drops(case) else module

    def call(self, candidate: Any, *cases: Case) -> list[Any]:
        """Keep what the package returns in a case of this exercise."""
        is_mine = any(case is cases[0] for case in self.cases)
        if candidate is not self.reference or not is_mine:
            return super().call(candidate, *cases)
        key = (self.name, cases[0].label, len(cases))
        if key not in _EXPECTED:
            _EXPECTED[key] = super().call(self.reference, *cases)
        return _EXPECTED[key]

    def _with_meaning(self, text: str) -> str:
        text = re.sub(NO_LAYER, "", text)
        return " ".join([text, *self.meaning(text)])

    def meaning(self, text: str) -> list[str]:
        """What a refusal means, if that is known."""
        found = [m for p, m in self.meanings.items() if re.search(p, text)]
        return found[:1]

    def finish(self, form: Callable[..., Any]) -> Callable[..., Any]:
        def finished(module: nn.Module, x: Tensor) -> Any:
            parts = module.modules() if module.training else ()
            rates = [p.drop_path for p in parts if isinstance(p, DropPath)]
            if any(rates):
                return all_kinds(lambda x: form(module, x))(x)
            return form(module, x)

        return finished

    def run(self, candidate: Any, case: Case) -> Outcome:
        """Say what a refusal means, and count the results with drop-path."""
        outcome = super().run(candidate, case)
        got = outcome.got
        if isinstance(got, Refusal) and not outcome.cause:
            cause = next(iter(self.meaning(str(got))), None)
            return replace(outcome, cause=cause)
        if not (drops(case) and outcome.problem and isinstance(got, Tensor)):
            return outcome
        if got.ndim != outcome.expected.ndim:
            return outcome
        words = "what is dropped in training is not right"
        if (n := len(got)) != (want := len(outcome.expected)):
            words = f"{n} results for one image in training, expected {want}"
        return replace(outcome, problem=words)

    def diagnose(self, candidate: Any, outcomes: list[Outcome]) -> str | None:
        """Drop-path shows its own mistakes, and hides all others."""
        ran = [outcome for outcome in outcomes if not outcome.skipped]
        failed = next(outcome for outcome in ran if outcome.problem)
        if not drops(failed.case):
            ran = [outcome for outcome in ran if not drops(outcome.case)]
        return super().diagnose(candidate, ran)

    def _is_right_without_dropout(
        self, candidate: Any, outcomes: list[Outcome]
    ) -> bool:
        """The failed cases first: one that stays wrong is enough."""
        outcomes = sorted(outcomes, key=lambda outcome: not outcome.problem)
        return super()._is_right_without_dropout(candidate, outcomes)


def drops(case: Case) -> bool:
    """Does this case show what is dropped in training?"""
    return case.mode == "training" and bool(case.init.get("drop_path"))


def all_kinds(call: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """The different results for equal images, in the order of one number."""

    def kinds(x: Tensor) -> Any:
        y = call(x)
        if not isinstance(y, Tensor) or y.ndim < 2 or len(y) != len(x):
            return y
        flat = y.detach().float().flatten(1)
        is_near = (flat[:, None] - flat).abs().amax(2) < 1e-3
        chosen = y[is_near.int().argmax(1).unique()]
        return chosen[chosen.flatten(1)[:, 0].argsort()]

    return kinds


def firsts(mistakes: tuple[Mistake, ...]) -> list[Mistake]:
    """Of each mistake the first form alone."""
    return [Mistake(m.cause, m.variants[0]) for m in mistakes]


# PatchMerging.


def _join(order: str) -> Callable[[Tensor], Tensor]:
    def join(x: Tensor) -> Tensor:
        pattern = f"b (h down) (w right) d -> b h w ({order})"
        return rearrange(x, pattern, down=2, right=2)

    return join


def _quarters(x: Tensor) -> Tensor:
    """The four quarters of the map, one upon the other."""
    pattern = "b (down h) (right w) d -> b h w (right down d)"
    return rearrange(x, pattern, down=2, right=2)


def _pad(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))


def _normed_apart(self: PatchMerging, x: Tensor) -> Tensor:
    """Each of the four tokens gets a mean and a variance of its own."""
    four = x.unflatten(-1, (4, -1))
    apart = F.layer_norm(four, four.shape[-1:], eps=self.norm.eps).flatten(-2)
    return apart * self.norm.weight + self.norm.bias


IN_ORDER = _join("right down d")


def merging(
    pad: Callable = _pad,
    join: Callable = IN_ORDER,
    normalize: Callable = lambda self, x: self.norm(x),
    reduce: Callable = lambda self, x: self.reduction(x),
    end: Callable = lambda x: x,
) -> Callable[[PatchMerging, Tensor], Tensor]:
    """PatchMerging.forward, with some steps exchanged."""

    def form(self: PatchMerging, x: Tensor) -> Tensor:
        return end(reduce(self, normalize(self, join(pad(x)))))

    return form


ORDER = (
    "the order is top left, bottom left, top right, bottom right, and each "
    "token is complete before the next one begins"
)
ODD = (
    "A map with odd rows or columns is padded with zeros below and on the "
    "right, each axis on its own."
)

MERGING_MISTAKES = (
    Mistake(
        f"The four tokens stand row by row: {ORDER}.",
        {"join": _join("down right d")},
    ),
    Mistake(
        "The features of the four tokens are interleaved, as F.unfold, "
        "pixel_unshuffle and a convolution of 2 x 2 order them: " + ORDER + ".",
        {"join": _join("d down right")},
        {"join": _join("d right down")},
    ),
    Mistake(
        f"The four tokens stand in another order: {ORDER}.",
        {"join": lambda x: IN_ORDER(x.flip(1))},
        {"join": lambda x: IN_ORDER(x.flip(1, 2))},
        {
            "join": lambda x: torch.cat(
                [x[:, i::2, j::2] for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))],
                dim=-1,
            )
        },
    ),
    Mistake(
        "Tokens are joined that are not neighbors in a square of 2 x 2: view "
        "alone takes them as they follow each other in memory.",
        {
            "join": lambda x: x.reshape(
                len(x), x.shape[1] // 2, -1, 4 * x.shape[3]
            )
        },
        {"join": _quarters},
    ),
    Mistake(
        "Height and width are exchanged in the result.",
        {"end": lambda x: x.transpose(1, 2)},
    ),
    Mistake(
        "The last row or column of an odd map is cut off: pad it with zeros.",
        {"pad": lambda x: x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]},
    ),
    Mistake(
        "The padding is at the top and on the left: it must be below and on "
        "the right.",
        {
            "pad": lambda x: F.pad(
                x, (0, 0, x.shape[2] % 2, 0, x.shape[1] % 2, 0)
            )
        },
    ),
    Mistake(
        "The padding holds tokens of the border: it must hold zeros.",
        {
            "pad": lambda x: F.pad(
                x.movedim(-1, 1),
                (0, x.shape[2] % 2, 0, x.shape[1] % 2),
                mode="replicate",
            ).movedim(1, -1)
        },
    ),
    Mistake(
        "The norm is missing: it reads the 4 D features, before the reduction.",
        {"normalize": lambda self, x: x},
    ),
    Mistake(
        "Each of the four tokens is normalized by itself: one norm reads all "
        "4 D features together.",
        {"normalize": _normed_apart},
    ),
    Mistake(
        "The reduction is missing: a linear layer makes 2 D of the 4 D "
        "features.",
        {"reduce": lambda self, x: x},
    ),
    Mistake(
        "The result is a sequence: it must stay a map, (B, gh / 2, gw / 2, "
        "2 D).",
        {"end": lambda x: x.flatten(1, 2)},
    ),
    Mistake(
        "The features come first in the result: they are the last axis of a "
        "map of tokens.",
        {"end": lambda x: x.movedim(-1, 1)},
    ),
    Mistake(
        "An activation follows the reduction: nothing follows it.",
        {"end": F.gelu},
        {"end": F.relu},
    ),
)


OFTEN = (MERGING_MISTAKES[0], *MERGING_MISTAKES[5:9])


def _merging_forms() -> Iterator[WrongForm]:
    yield from only_singles(combine(merging, *MERGING_MISTAKES))
    pairs = combine(merging, *firsts(OFTEN))
    yield from (w for w in pairs if w.cause.startswith("There are two"))


def _merging_case(
    label: str,
    shape: tuple[int, ...],
    cause: str | None = None,
    *,
    std: float = 1.0,
    is_apart: bool = False,
) -> Case:
    x = normal(*shape, std=std) + std  # a mean that a norm removes
    init = {"dim": shape[-1]}
    return PartCase(label, (x,), cause, init=init, is_apart=is_apart)


MERGING = SwinExercise(
    PatchMerging,
    cases=(
        _merging_case("one map of 4 x 4 tokens", (1, 4, 4, 6)),
        _merging_case("two maps", (2, 4, 4, 6), SEVERAL_MAPS),
        _merging_case("wider tokens", (1, 4, 4, 10), ONE_WIDTH),
        _merging_case(
            "a map of 4 x 6",
            (1, 4, 6, 6),
            "Right for square maps only: take height and width from x.",
        ),
        _merging_case("an odd number of rows", (1, 5, 4, 6), ODD),
        _merging_case("an odd number of columns", (1, 4, 7, 6), ODD),
        _merging_case("one token", (2, 1, 1, 6), ODD),
        _merging_case(
            "tokens with small numbers",
            (1, 4, 4, 6),
            EPS,
            std=3e-3,
            is_apart=True,
        ),
        _merging_case("all axes different", (2, 5, 8, 10)),
    ),
    wrong_forms=_merging_forms,
    meanings={
        r"not expected: .*reduction.bias": (
            "The reduction has no bias: use bias=False."
        ),
        r"reduction.weight .*yours has \(\d+, \d+, \d+, \d+\)": (
            "The reduction is a linear layer; the weights of a convolution of "
            "2 x 2 stand in another order."
        ),
        r"reduction.weight .*and yours has \(12, 6\)": (
            "The reduction reads 4 D features, the four tokens one after the "
            "other: do not average them."
        ),
        r"reduction.weight .*and yours has \((6|24), 24\)": (
            "The reduction makes 2 D of the 4 D features."
        ),
        r"norm.weight .*yours has \(12,\)": (
            "The norm comes after the reduction, as in Swin V2: here it comes "
            "before, and reads 4 D features."
        ),
        r"norm.weight .*yours has \(6,\)": (
            "The norm reads D features: join the four tokens first, then "
            "normalize all 4 D together."
        ),
        r"missing: [^;]*norm.weight": (
            "The norm is missing: it reads the 4 D features, before the "
            "reduction."
        ),
    },
)

EXERCISES = (MERGING,)
