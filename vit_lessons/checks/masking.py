"""The two exercises of chapter 12 whose results are random.

What they return is not compared with ours: it is drawn often, and counted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_lessons.checks.candidate import Refusal, kind
from vit_lessons.checks.catalogue import WrongForm
from vit_lessons.checks.compare import attempt
from vit_lessons.checks.exercise import NO_GRADIENT, Case, Outcome
from vit_lessons.checks.observe import Facts, ObservedExercise
from vit_lessons.checks.part import normal
from vit_lessons.checks.patch_embedding import SEVERAL_IMAGES
from vit_lessons.self_supervision import corrupt_patches, draw_mask

LIMIT = 7.5  # standard deviations: chance hardly ever goes beyond


@contextmanager
def _seeded() -> Iterator[None]:
    """What settings does for torch, for code that draws with other means."""
    states = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _found(problem: str = "none", cause: str | None = None) -> Facts:
    return {"problem": problem, "cause": cause}


@dataclass(frozen=True, kw_only=True)
class RandomExercise(ObservedExercise):
    """A function that draws: observe calls it often, and returns _found."""

    def run(self, candidate: Any, case: Case) -> Outcome:
        """What was found is the problem, and its cause."""
        outcome = super().run(candidate, case)
        if outcome.problem and not outcome.cause and type(outcome.got) is dict:
            return replace(outcome, **outcome.got)
        return outcome

    def diagnose(self, candidate: Any, outcomes: list[Outcome]) -> str | None:
        """What the first failed case shows; the others would only guess."""
        failed = next(outcome for outcome in outcomes if outcome.problem)
        if type(failed.got) is not dict:
            return super().diagnose(candidate, outcomes)
        only_for = None
        if failed is outcomes[0]:
            only_for = self._is_right_only_for(candidate)
        return failed.cause or only_for or failed.case.cause

    def _is_right_only_for(self, candidate: Any) -> str | None:
        for case in self.simpler:
            if not self.run(candidate, case).problem:
                return case.cause
        return None


def _tensor(result: Any) -> Tensor:
    if not isinstance(result, Tensor):
        raise Refusal(f"Your code must return a tensor, not {kind(result)}.")
    return result.cpu()


def _far(counts: Tensor, draws: Tensor | int, share: float) -> int:
    """How many counts are too far from draws * share to be chance."""
    expected = torch.as_tensor(draws * share)
    limit = LIMIT * (expected * (1 - share)).sqrt()
    return int(((counts - expected).abs() > limit).sum())


# draw_mask.

MASKS = 8  # calls
ONE_MASK = "One mask comes back: each image has a mask of its own, (B, N)."
NUMBERS = (
    "The numbers of patches come back: a mask says True or False of each "
    "patch, (B, N)."
)
VARIES = (
    "The number of chosen patches varies, as with rand < ratio: choose exactly "
    "round(ratio * N) in each image."
)
TURNED = (
    "The mask is the wrong way round: True stands for a patch that is chosen."
)
ROUNDED = (
    "The number of chosen patches is cut off or rounded up: it is round(ratio "
    "* N)."
)
OFF_BY_ONE = (
    "One patch too many or too few is chosen: ranks begin with 0, so that rank "
    "< k chooses k patches."
)
RANKS = (
    "One patch is chosen in each image: ranks are whole numbers, so compare "
    "them with round(ratio * N), not with ratio."
)
ANY_RATIO = "Right for one ratio only: choose round(ratio * N) patches."
NOT_DRAWN = (
    "Each call chooses the same patches: draw new random numbers in each call, "
    "without a seed."
)
SAME_MASK = "All images get the same mask: draw one for each image."
BLOCK = (
    "The chosen patches lie side by side: all sets of patches must be equally "
    "likely, not only blocks."
)
UNEVEN = (
    "Some patches are chosen more often than others: all must be equally "
    "likely."
)
PAIRS = (
    "Some patches are chosen together too often or too seldom: all sets of "
    "patches must be equally likely."
)
NOT_BOOL = "The mask must be bool: True for a patch that is chosen."


def _observe_mask(
    function: Callable[..., Any], b: int, n: int, ratio: float
) -> Facts | None:
    with _seeded():
        masks = [function(b, n, ratio) for _ in range(MASKS)]
    if any(mask is None for mask in masks):
        return None
    masks, want = [*map(_tensor, masks)], round(ratio * n)
    is_whole = not masks[0].is_floating_point()
    for mask in masks:
        if mask.shape != (b, n):
            got = f"expected shape {(b, n)}, got {tuple(mask.shape)}"
            is_list = is_whole and mask.shape == (b, want)
            is_one = mask.shape in ((n,), (1, n))
            causes = [ONE_MASK] * is_one + [NUMBERS] * is_list
            return _found(got, next(iter(causes), None))
    calls = torch.stack(masks).float()
    if not ((calls == 0) | (calls == 1)).all():
        is_list = is_whole and (calls.sort().values == torch.arange(n)).all()
        got = "some elements are neither True nor False"
        return _found(got, NUMBERS if is_list else None)
    counts = calls.flatten(0, 1).sum(dim=1).int()
    low, chosen, high = counts.min(), counts.mode().values, counts.max()
    if ((counts == 0) | (counts == n)).float().mean() > 0.5:
        return _found("all or no patches are chosen in most images")
    if (counts != chosen).float().mean() > 0.01:  # not two equal numbers
        return _found(f"{low} to {high} chosen patches in an image", VARIES)
    if chosen != want:
        got = f"expected {want} chosen patches in each image, got {chosen}"
        step = OFF_BY_ONE if ratio * n == want else ROUNDED
        causes = {1: RANKS, n - want: TURNED, want - 1: step, want + 1: step}
        return _found(got, causes.get(int(chosen)))
    if found := _mask_odds(calls, want):
        return found
    if masks[0].dtype != torch.bool:
        return _found(f"expected torch.bool, got {masks[0].dtype}", NOT_BOOL)
    return _found()


def _mask_odds(calls: Tensor, chosen: int) -> Facts | None:
    """What is not random in (calls, B, N) with the right number of patches."""
    if (calls == calls[0]).all():
        return _found("all calls give the same masks", NOT_DRAWN)
    if calls.shape[1] > 1 and (calls == calls[:, :1]).all():
        return _found("all images of a call have the same mask", SAME_MASK)
    rows = calls.flatten(0, 1)
    n = rows.shape[1]
    starts = (rows > rows.roll(1, dims=1)).sum(dim=1)
    if 1 < chosen < n - 1 and (starts == 1).all():
        return _found("the chosen patches are always neighbors", BLOCK)
    together = rows.T @ rows  # (N, N), images in which both are chosen
    share = chosen / n
    if far := _far(together.diagonal(), len(rows), share):
        return _found(f"{far} patches too often or too seldom", UNEVEN)
    apart = together[~torch.eye(n, dtype=torch.bool)]
    share *= (chosen - 1) / (n - 1)
    if far := _far(apart, len(rows), share):
        return _found(f"{far // 2} pairs too often or too seldom", PAIRS)
    return None


def _mask(
    noise: Callable[[int, int], Tensor] = torch.rand,
    choose: Callable[..., Tensor] = lambda ranks, k: ranks < k,
    count: Callable[[float], int] = round,
    end: Callable[[Tensor], Tensor] = lambda mask: mask,
) -> Callable[[int, int, float], Tensor]:
    """draw_mask, with some steps exchanged."""

    def form(b: int, n: int, ratio: float) -> Tensor:
        return end(choose(noise(b, n).argsort(dim=-1), count(ratio * n)))

    return form


def _from_a_seed(b: int, n: int) -> Tensor:
    return torch.rand(b, n, generator=torch.Generator().manual_seed(0))


def _by_parity(b: int, n: int) -> Tensor:
    """The even places first in some images, in others the odd ones."""
    is_odd = torch.arange(n) % 2
    order = torch.rand(b, n) + (is_odd ^ torch.randint(2, (b, 1)))
    return order.argsort(dim=1)


def _mask_forms() -> Iterator[WrongForm]:
    forms = {
        ONE_MASK: _mask(lambda b, n: torch.rand(n)),
        NUMBERS: _mask(choose=lambda ranks, k: ranks[:, :k]),
        VARIES: lambda b, n, ratio: torch.rand(b, n) < ratio,
        TURNED: _mask(choose=lambda ranks, k: ranks >= k),
        ROUNDED: _mask(count=math.floor),
        OFF_BY_ONE: _mask(choose=lambda ranks, k: ranks <= k),
        RANKS: lambda b, n, ratio: torch.rand(b, n).argsort(dim=1) < ratio,
        NOT_DRAWN: _mask(_from_a_seed),
        SAME_MASK: _mask(lambda b, n: torch.rand(1, n).expand(b, n)),
        BLOCK: _mask(
            choose=lambda ranks, k: (
                (torch.arange(ranks.shape[1]) - ranks[:, :1]) % ranks.shape[1]
                < k
            )
        ),
        UNEVEN: _mask(lambda b, n: torch.rand(b, n) + torch.arange(n) / n),
        PAIRS: _mask(_by_parity),
        NOT_BOOL: _mask(end=Tensor.float),
    }
    return (WrongForm(cause, form) for cause, form in forms.items())


DRAW_MASK = RandomExercise(
    draw_mask,
    cases=(
        Case("100 images, 9 of 12 patches", (100, 12, 0.75)),
        Case("100 images, 3 of 10 patches", (100, 10, 0.28), ANY_RATIO),
        Case("100 images, 5 of 9 patches", (100, 9, 0.6), ANY_RATIO),
        Case("one image, 8 of 16 patches", (1, 16, 0.5)),
    ),
    wrong_forms=_mask_forms,
    simpler=(Case("one image", (1, 12, 0.75), SEVERAL_IMAGES),),
    observe=_observe_mask,
)

# corrupt_patches.

CORRUPTED = 40  # calls
ADDED = "The mask token is added to the token: it takes its place."
ZEROS = "Tokens of kind 1 become 0: they become the mask token."
ONE_FEATURE = (
    "The other token is one feature, repeated: gather needs an index of shape "
    "(B, N, D)."
)
FROM_ZERO = (
    "The kinds are counted from 0: kind 0 stays as it is, 1 gets the mask "
    "token, 2 gets another token, 3 stays."
)
UNTOUCHED = "Tokens of kind 0 change: they were not chosen, and stay."
ALL_MASKED = (
    "All chosen tokens get the mask token: kind 2 gets another token of the "
    "image, and kind 3 stays."
)
KEPT_MASKED = "Tokens of kind 3 get the mask token: they stay as they are."
KEPT_REPLACED = "Tokens of kind 3 get another token: they stay as they are."
NOT_MASKED = "Tokens of kind 1 do not all get the mask token."
NOT_REPLACED = "Tokens of kind 2 stay: each gets another token of its image."
REPLACED_MASKED = (
    "Tokens of kind 2 get the mask token: each gets another token of its image."
)
OTHER_IMAGE = (
    "Tokens of kind 2 get tokens of other images: the other token is of the "
    "same image."
)
AFTER = (
    "The other token is taken after the mask tokens are in place: take it from "
    "x as it came."
)
NO_DRAW = (
    "Each call takes the same other tokens: draw new random numbers in each "
    "call, without a seed."
)
SHARED = (
    "One draw serves several tokens: draw another token for each token on its "
    "own."
)
ITSELF = "The other token may be the token itself: draw among the N - 1 others."
UNEVEN_OTHERS = (
    "Some of the other tokens are taken more often than the rest: all of the "
    "image must be equally likely."
)
LOST_DTYPE = "The dtype must stay that of x."


def _swapped(one: int, two: int) -> str:
    return (
        f"Kinds {one} and {two} are swapped: 1 gets the mask token, 2 gets "
        "another token of its image, 3 stays as it is."
    )


def _observe_corruption(
    function: Callable[..., Any], x: Tensor, kinds: Tensor, mask_token: Tensor
) -> Facts | None:
    given = [x.clone(), kinds.clone(), mask_token.clone()]
    with _seeded():
        results = [function(x, kinds, mask_token)]
        for _ in range(CORRUPTED):
            results.append(function(*[value.clone() for value in given]))
        flows = attempt(_gradients_flow, function, *given)
    if any(result is None for result in results):
        return None
    results, (x, kinds, mask_token) = [*map(_tensor, results)], given
    for result in results:
        if result.shape != x.shape:
            shapes = f"{tuple(x.shape)}, got {tuple(result.shape)}"
            return _found(f"expected shape {shapes}")
    out = torch.stack(results).detach().to(x.dtype)  # (calls, B, N, D)
    if found := _what_became(out, x, kinds, mask_token):
        return found
    if results[0].dtype != x.dtype:
        got = f"expected {x.dtype}, got {results[0].dtype}"
        return _found(got, LOST_DTYPE)
    if flows is not True:
        return _found("gradients do not reach x and mask_token", NO_GRADIENT)
    return _found()


def _gradients_flow(
    function: Callable[..., Any], x: Tensor, kinds: Tensor, mask_token: Tensor
) -> bool:
    """Does each number of the result send 1 back to where it came from?"""
    leaves = [leaf.clone().requires_grad_() for leaf in (x, mask_token)]
    with torch.enable_grad():
        result = function(leaves[0] * 1, kinds, leaves[1] * 1)
        to_x, to_token = torch.autograd.grad(result.sum(), leaves)
    masked = (kinds == 1).sum()
    left = (kinds.numel() - masked) * x.shape[2]
    return bool((to_token == masked).all() and to_x.sum() == left)


def _what_became(
    out: Tensor, x: Tensor, kinds: Tensor, mask_token: Tensor
) -> Facts | None:
    """Say of each token of all calls where it comes from, kind by kind."""
    b, n, d = x.shape
    known = torch.cat([x.flatten(0, 1), mask_token.view(1, d)])
    distance, source = torch.cdist(
        out.view(-1, d), known, compute_mode="donot_use_mm_for_euclid_dist"
    ).min(dim=1)
    is_known = (distance < 1e-3).view(out.shape[:3])
    if not is_known.all():
        strange = _strange(out, x, kinds, mask_token, ~is_known)
        return _found("some tokens are neither of x nor mask_token", strange)
    source = source.view(out.shape[:3])
    first = (n * torch.arange(b)).unsqueeze(1)  # (B, 1)
    became = {
        "the mask token": source == b * n,
        "themselves": source == first + torch.arange(n),
        "of other images": (source // n != first // n) & (source < b * n),
    }
    shares = [
        {
            name: is_so[:, kinds == i].float().mean().item()
            for name, is_so in became.items()
        }
        for i in range(4)
    ]
    return _wrong_kind(shares) or _other_odds(source - first, kinds == 2)


def _strange(
    out: Tensor, x: Tensor, kinds: Tensor, mask_token: Tensor, where: Tensor
) -> str | None:
    """The likely mistake when a token comes from nowhere."""
    tokens, of_kind = out[where], kinds.expand(where.shape)[where]
    if (of_kind == 1).all():
        if tokens.allclose((x + mask_token).expand_as(out)[where]):
            return ADDED
        if (tokens == 0).all():
            return ZEROS
    if (of_kind == 2).all() and (tokens == tokens[:, :1]).all():
        return ONE_FEATURE
    return None


def _wrong_kind(shares: list[dict[str, float]]) -> Facts | None:
    """The first kind that is not treated as it should be.

    Args:
        shares: Of the tokens of each kind, which share became what.
    """
    masked, itself, foreign = (
        [share[name] for share in shares] for name in shares[0]
    )
    other = [1 - m - i for m, i in zip(masked, itself, strict=True)]
    if itself[0] < 1:
        from_zero = masked[0] == 1 and other[1] > 0.5
        cause = FROM_ZERO if from_zero else UNTOUCHED
        return _found("tokens of kind 0 change", cause)
    roles = {1: masked, 2: other, 3: itself}
    for one, two in ((2, 3), (1, 2), (1, 3)):
        if min(roles[one][two], roles[two][one]) > 0.5:
            got = f"kind {one} is treated as kind {two}"
            return _found(got, _swapped(one, two))
    if itself[3] < 1:
        cause = KEPT_MASKED if masked[3] else KEPT_REPLACED
        cause = ALL_MASKED if masked[2] == masked[3] == 1 else cause
        return _found("tokens of kind 3 change", cause)
    if masked[1] < 1:
        return _found("tokens of kind 1 are not the mask token", NOT_MASKED)
    if itself[2] == 1:
        return _found("tokens of kind 2 stay as they are", NOT_REPLACED)
    if foreign[2]:
        got = f"{foreign[2]:.0%} of kind 2 are of other images"
        return _found(got, OTHER_IMAGE)
    if masked[2]:
        cause = REPLACED_MASKED if masked[2] == 1 else AFTER
        return _found(f"{masked[2]:.0%} of kind 2 are the mask token", cause)
    return None


def _other_odds(other: Tensor, drawn: Tensor) -> Facts | None:
    """What is not random in the places that tokens come from.

    Args:
        other: Place of the token that was taken, (calls, B, N).
        drawn: Where one was taken, (B, N).
    """
    n = other.shape[2]
    share = 1 / (n - 1)
    steps = (other - torch.arange(n)) % n
    if (other == other[0])[:, drawn].all():
        return _found("all calls take the same tokens", NO_DRAW)
    if (
        _is_shared(other, drawn, 2)
        or _is_shared(steps, drawn, 2)
        or _is_shared(other, drawn, 1)
    ):
        return _found("several tokens share one draw", SHARED)
    taken = steps[:, drawn]
    if stay := (taken == 0).float().mean():
        return _found(f"{stay:.0%} of kind 2 stay as they are", ITSELF)
    each_step = taken.flatten().bincount(minlength=n)[1:]
    each_place = other[:, drawn].flatten().bincount(minlength=n)
    possible = (drawn.sum() - drawn.sum(dim=0)) * len(other)  # by place
    far = _far(each_step, taken.numel(), share)
    far += _far(each_place, possible, share)
    if far:
        return _found("not all others are equally likely", UNEVEN_OTHERS)
    return None


def _is_shared(places: Tensor, drawn: Tensor, dim: int) -> bool:
    """Is one number drawn for all tokens along an axis, in each call?"""
    n = places.shape[2]
    low = places.masked_fill(~drawn, n).amin(dim)
    high = places.masked_fill(~drawn, -1).amax(dim)
    several = drawn.sum(dim - 1) > 1
    return bool(several.any() and (low == high)[:, several].all())


def _steps(x: Tensor, low: int = 1) -> Tensor:
    return torch.randint(low, x.shape[1], x.shape[:2])


def _corrupt(
    kind: Callable[[Tensor], Tensor] = lambda kinds: kinds,
    step: Callable[[Tensor], Tensor] = _steps,
    start: Callable[..., Tensor] = lambda x, masked: x,
    mask: Callable[[Tensor, Tensor], Tensor] = lambda x, token: token,
    pick: Callable[[Tensor], Tensor] = lambda other: other,
    end: Callable[[Tensor], Tensor] = lambda x: x,
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """corrupt_patches, with some steps exchanged."""

    def form(x: Tensor, kinds: Tensor, mask_token: Tensor) -> Tensor:
        n, kinds = x.shape[1], kind(kinds).unsqueeze(2)
        others = (torch.arange(n) + step(x)) % n
        masked = torch.where(kinds == 1, mask(x, mask_token), x)
        other = start(x, masked).gather(1, others.unsqueeze(2).expand_as(x))
        return end(torch.where(kinds == 2, pick(other), masked))

    return form


def _kinds(*new: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Kind 0 is treated as the first of these, kind 1 as the second, ..."""
    return {"kind": lambda kinds: torch.tensor(new)[kinds]}


def _corruption_forms() -> Iterator[WrongForm]:
    forms = (
        (ADDED, {"mask": lambda x, token: x + token}),
        (ZEROS, {"mask": lambda x, token: 0 * x}),
        (ONE_FEATURE, {"pick": lambda other: other[..., :1]}),
        (FROM_ZERO, _kinds(1, 2, 3, 3)),
        (UNTOUCHED, _kinds(1, 0, 0, 0)),
        (ALL_MASKED, _kinds(0, 1, 1, 1)),
        (KEPT_MASKED, _kinds(0, 1, 2, 1)),
        (KEPT_REPLACED, _kinds(0, 1, 2, 2)),
        (NOT_MASKED, _kinds(0, 3, 2, 3)),
        (NOT_REPLACED, _kinds(0, 1, 3, 3)),
        (REPLACED_MASKED, _kinds(0, 1, 1, 3)),
        (_swapped(2, 3), _kinds(0, 1, 3, 2)),
        (_swapped(1, 2), _kinds(0, 2, 1, 3)),
        (_swapped(1, 3), _kinds(0, 3, 2, 1)),
        (OTHER_IMAGE, {"start": lambda x, masked: x.roll(1, dims=0)}),
        (AFTER, {"start": lambda x, masked: masked}),
        (NO_DRAW, {"step": lambda x: torch.ones_like(_steps(x))}),
        (SHARED, {"step": lambda x: _steps(x)[:, :1]}),
        (ITSELF, {"step": lambda x: _steps(x, 0)}),
        (UNEVEN_OTHERS, {"step": lambda x: 1 + _steps(x, 0) % 2}),
        (LOST_DTYPE, {"end": Tensor.double}),
        (NO_GRADIENT, {"end": Tensor.detach}),
    )
    return (WrongForm(cause, _corrupt(**steps)) for cause, steps in forms)


def _corruption_case(
    label: str, b: int, n: int, d: int, cause: str | None = None
) -> Case:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(4, (b, n), generator=generator)
    return Case(label, (normal(b, n, d), kinds, normal(1, 1, d, seed=6)), cause)


CORRUPT_PATCHES = RandomExercise(
    corrupt_patches,
    cases=(
        _corruption_case("8 images of 9 patches", 8, 9, 5),
        _corruption_case("one image of 16 patches", 1, 16, 6),
    ),
    wrong_forms=_corruption_forms,
    simpler=(_corruption_case("one image", 1, 16, 5, SEVERAL_IMAGES),),
    observe=_observe_corruption,
)
