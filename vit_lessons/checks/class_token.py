"""Exercises of chapter 02, with the mistakes that learners make."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vit_lessons.checks.catalogue import Mistake, WrongForm, combine
from vit_lessons.checks.exercise import Case, Exercise
from vit_lessons.class_token import pool, prepend_token

SEVERAL_SEQUENCES = (
    "Right for one sequence only: the same token goes in front of each "
    "sequence, so expand it to (B, 1, D) first."
)
SEVERAL_IMAGES = (
    "Right for one image only: keep the batch axis, the tokens are the second "
    "one."
)
ERRORS = {
    "must be tuple of Tensors, not Tensor": (
        "torch.cat takes the tensors in one list: torch.cat([first, second], "
        "dim=1)."
    ),
    "Tensors must have same number of dimensions": (
        "torch.cat needs tensors with as many axes as each other: keep the "
        "token (B, 1, D)."
    ),
    "expected to be in range of [-1, 0], but got 1": (
        "The token has lost its axes: keep it (B, 1, D)."
    ),
    "repeat dims can not be smaller": (
        "repeat needs a number for each of the three axes: token.repeat(B, 1, "
        "1)."
    ),
    "the number of sizes provided": (
        "expand needs a size for each of the three axes, and -1 keeps one as "
        "it is: token.expand(B, -1, -1)."
    ),
}


def _normal(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)  # not the seed of check
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def _prepend(
    token: Callable = lambda x, token: token.expand(len(x), -1, -1),
    join: Callable = lambda token, x: torch.cat([token, x], 1),
    layout: Callable = lambda tokens: tokens,
) -> Callable[[Tensor, Tensor], Tensor]:
    """prepend_token, with some steps exchanged."""
    expand = token

    def form(x: Tensor, token: Tensor) -> Tensor:
        return layout(join(expand(x, token), x))

    return form


def _in_place_of(index: int) -> Callable[[Tensor, Tensor], Tensor]:
    def join(token: Tensor, x: Tensor) -> Tensor:
        tokens = x.clone()
        tokens[:, index] = token[:, 0]
        return tokens

    return join


OTHER_TOKENS = (
    lambda x, token: torch.zeros_like(x[:, :1]),
    lambda x, token: torch.ones_like(x[:, :1]),
    lambda x, token: x[:, :1],
    lambda x, token: x.mean(1, keepdim=True),
)


def _prepend_forms() -> Iterator[WrongForm]:
    for other in OTHER_TOKENS:
        yield WrongForm(
            "The token is not the one that was given: use the argument.",
            _prepend(other),
        )
    yield from combine(
        _prepend,
        Mistake(
            SEVERAL_SEQUENCES,
            {"token": lambda x, token: token},
            {"token": lambda x, token: token.repeat(1, len(x), 1)},
            {"token": lambda x, token: token.repeat(1, 1, len(x))},
        ),
        Mistake(
            "The token is repeated along the wrong axis: each sequence gets it "
            "once, (B, 1, D).",
            {"token": lambda x, token: token.expand_as(x)},
            {"token": lambda x, token: token.repeat(1, x.shape[1], 1)},
            {"token": lambda x, token: token.expand(x.shape[1], -1, -1)},
        ),
        Mistake(
            "The token stands at the end: it goes in front of the others.",
            {"join": lambda token, x: torch.cat([x, token], 1)},
        ),
        Mistake(
            "The token is joined along the batch axis: the tokens are the "
            "second axis, dim=1.",
            {"join": lambda token, x: torch.cat([token, x])},
            {"join": lambda token, x: torch.cat([x, token])},
        ),
        Mistake(
            "The token is joined along the features: the tokens are the second "
            "axis, dim=1.",
            {"join": lambda token, x: torch.cat([token, x], -1)},
            {"join": lambda token, x: torch.cat([x, token], -1)},
            {
                "token": lambda x, token: token.expand_as(x),
                "join": lambda token, x: torch.cat([token, x], -1),
            },
            {
                "token": lambda x, token: token.expand_as(x),
                "join": lambda token, x: torch.cat([x, token], -1),
            },
        ),
        Mistake(
            "torch.stack makes a new axis: use torch.cat, which joins along "
            "one that is there.",
            {"join": lambda token, x: torch.stack([token, x])},
            {"join": lambda token, x: torch.stack([token, x], 1)},
            {"join": lambda token, x: torch.stack([token.expand_as(x), x])},
            {"join": lambda token, x: torch.stack([token.expand_as(x), x], 1)},
        ),
        Mistake(
            "The token is added to the others: it is one more token, so put it "
            "in front with torch.cat.",
            {"join": lambda token, x: token + x},
        ),
        Mistake(
            "The token takes the place of a patch: it is one more token, so "
            "put it in front with torch.cat.",
            {"join": _in_place_of(0)},
            {"join": _in_place_of(-1)},
            {"join": lambda token, x: torch.cat([token, x[:, :-1]], 1)},
            {"join": lambda token, x: torch.cat([x[:, 1:], token], 1)},
        ),
        Mistake(
            "The token is there twice: in front is enough.",
            {"join": lambda token, x: torch.cat([token, x, token], 1)},
            {"join": lambda token, x: torch.cat([token, token, x], 1)},
        ),
        Mistake(
            "The tokens come back without the new one: return what torch.cat "
            "returns.",
            {"join": lambda token, x: x},
        ),
        Mistake(
            "The token comes back without the others: put it in front of them "
            "with torch.cat.",
            {"join": lambda token, x: token},
        ),
        Mistake(
            "The first two axes are swapped: the batch comes first.",
            {"layout": lambda tokens: tokens.transpose(0, 1)},
        ),
        Mistake(
            "The last two axes are swapped: tokens come before features.",
            {"layout": lambda tokens: tokens.mT},
        ),
        Mistake(
            "Batch and tokens share one axis: keep them apart, (B, 1 + N, D).",
            {"layout": lambda tokens: tokens.flatten(0, 1)},
        ),
    )


PREPEND_TOKEN = Exercise(
    prepend_token,
    cases=(
        Case(
            "one sequence of 4 tokens",
            (_normal(1, 4, 6), _normal(1, 1, 6, seed=2)),
        ),
        Case(
            "three sequences",
            (_normal(3, 4, 6), _normal(1, 1, 6, seed=2)),
            SEVERAL_SEQUENCES,
        ),
        Case(
            "as many sequences as tokens",
            (_normal(4, 4, 6), _normal(1, 1, 6, seed=2)),
            "Wrong where sequences and tokens are as many: the batch is the "
            "first axis, the tokens are the second.",
        ),
        Case(
            "sequences of one token",
            (_normal(3, 1, 6), _normal(1, 1, 6, seed=2)),
            "Right for several tokens only: N may be 1.",
        ),
        Case(
            "all axes different", (_normal(2, 5, 7), _normal(1, 1, 7, seed=2))
        ),
    ),
    wrong_forms=_prepend_forms,
    errors=ERRORS,
)


def _first(x: Tensor, prefix: int) -> Tensor:
    return x[:, 0]


def _mean(x: Tensor, prefix: int) -> Tensor:
    return x[:, prefix:].mean(1)


def _pool(
    cls: Callable = _first,
    mean: Callable = _mean,
    prefix: Callable = lambda n: n,
    layout: Callable = lambda x: x,
) -> Callable[..., Tensor]:
    """pool, with some steps exchanged."""

    def form(
        x: Tensor, mode: str = "cls", *, num_prefix_tokens: int = 1
    ) -> Tensor:
        read = cls if mode == "cls" else mean
        return layout(read(x, prefix(num_prefix_tokens)))

    return form


def _on_batch_axis(x: Tensor, prefix: int) -> Tensor:
    return x[prefix:].mean(0)


POOL_MISTAKES = (
    Mistake(
        "The class token is read along the batch: the tokens are the second "
        "axis, x[:, 0].",
        {"cls": lambda x, prefix: x[0]},
    ),
    Mistake(
        "The first image alone is read: keep the batch axis, x[:, 0].",
        {"cls": lambda x, prefix: x[0, 0]},
        {
            "cls": lambda x, prefix: x[0, 0],
            "mean": lambda x, prefix: x[0, prefix:].mean(0),
        },
    ),
    Mistake(
        "squeeze takes the batch axis away if there is one image: leave it "
        "out, or name the axis of the tokens.",
        {"layout": lambda x: x.squeeze()},
        {"cls": lambda x, prefix: x[:, 0].squeeze()},
        {"cls": lambda x, prefix: x[:, :1].squeeze()},
        {"mean": lambda x, prefix: _mean(x, prefix).squeeze()},
    ),
    Mistake(
        "The class token is read from the end: it is the first token, x[:, 0].",
        {"cls": lambda x, prefix: x[:, -1]},
    ),
    Mistake(
        "The first feature of each token is read, not the first token: the "
        "tokens are the second axis, x[:, 0].",
        {"cls": lambda x, prefix: x[..., 0]},
    ),
    Mistake(
        "The first patch is read: the class token is x[:, 0].",
        {"cls": lambda x, prefix: x[:, 1]},
    ),
    Mistake(
        "The axis of the tokens is still there: the result is (B, D), so read "
        "x[:, 0], not x[:, :1].",
        {"cls": lambda x, prefix: x[:, :1]},
        {"cls": lambda x, prefix: x[:, :prefix]},
    ),
    Mistake(
        "The axis of the tokens is still there: the result is (B, D), so leave "
        "out keepdim=True.",
        {"mean": lambda x, prefix: x[:, prefix:].mean(1, keepdim=True)},
    ),
    Mistake(
        'The prefix tokens are averaged for mode="cls": it reads the first '
        "token alone, x[:, 0].",
        {"cls": lambda x, prefix: x[:, :prefix].mean(1)},
    ),
    Mistake(
        'The last prefix token is read for mode="cls": it reads the first '
        "token, x[:, 0].",
        {"cls": lambda x, prefix: x[:, prefix - 1]},
    ),
    Mistake(
        'The first patch is averaged for mode="cls": it reads the class token, '
        "x[:, 0].",
        {"cls": lambda x, prefix: x[:, prefix]},
    ),
    Mistake(
        'mode="mean" reads the class token: it averages the patch tokens.',
        {"mean": _first},
    ),
    Mistake(
        'mode="cls" averages the tokens: it reads the class token, x[:, 0].',
        {"cls": _mean},
        {"cls": lambda x, prefix: x.mean(1)},
    ),
    Mistake(
        "The modes are exchanged: "
        '"cls" reads the first token, "mean" averages the patch tokens.',
        {"cls": _mean, "mean": _first},
    ),
    Mistake(
        "The class token is in the mean: average the patch tokens alone, "
        "x[:, num_prefix_tokens:].",
        {"mean": lambda x, prefix: x.mean(1)},
        {"mean": lambda x, prefix: x.sum(1) / (x.shape[1] - prefix)},
    ),
    Mistake(
        "The mean runs over the features: it must run over the tokens, the "
        "second axis, dim=1.",
        {"mean": lambda x, prefix: x[:, prefix:].mean(-1)},
        {"mean": lambda x, prefix: x.mean(-1)},
        {"mean": lambda x, prefix: x[..., prefix:].mean(-1)},
    ),
    Mistake(
        "The mean runs over the batch: it must run over the tokens, the second "
        "axis, dim=1.",
        {"mean": lambda x, prefix: x[:, prefix:].mean(0)},
        {"mean": lambda x, prefix: x.mean(0)},
        {"mean": _on_batch_axis},
    ),
    Mistake(
        "The mean mixes the images: it must run over the tokens alone, dim=1.",
        {"mean": lambda x, prefix: x[:, prefix:].mean((0, 1))},
        {"mean": lambda x, prefix: x[:, prefix:].mean((0, 1), keepdim=True)[0]},
        {
            "mean": lambda x, prefix: (
                x[:, prefix:].mean((0, 1)).expand_as(x[:, 0])
            )
        },
    ),
    Mistake(
        "The mean runs over everything: it must run over the tokens alone, "
        "dim=1.",
        {"mean": lambda x, prefix: x[:, prefix:].mean()},
        {"mean": lambda x, prefix: x.mean()},
        {"mean": lambda x, prefix: x[:, prefix:].mean((1, 2))},
    ),
    Mistake(
        "The first images or features are left out of the mean, not the first "
        "tokens: the tokens are the second axis, x[:, num_prefix_tokens:].",
        {"mean": lambda x, prefix: x[prefix:].mean(1)},
        {"mean": lambda x, prefix: x[..., prefix:].mean(1)},
    ),
    Mistake(
        "The sum is taken, not the mean: divide by the number of patches.",
        {"mean": lambda x, prefix: x[:, prefix:].sum(1)},
    ),
    Mistake(
        "The largest numbers are taken, not the mean.",
        {"mean": lambda x, prefix: x[:, prefix:].amax(1)},
    ),
    Mistake(
        "The sum is divided by the wrong number: divide it by the number of "
        "patch tokens, without the prefix tokens.",
        {"mean": lambda x, prefix: x[:, prefix:].sum(1) / x.shape[1]},
        {"mean": lambda x, prefix: x[:, prefix:].sum(1) / (x.shape[1] - 1)},
        {"mean": lambda x, prefix: x[:, prefix:].sum(1) / x.shape[2]},
    ),
    Mistake(
        "The last tokens are left out of the mean: the prefix tokens are the "
        "first ones, x[:, num_prefix_tokens:].",
        {"mean": lambda x, prefix: x[:, : x.shape[1] - prefix].mean(1)},
    ),
    Mistake(
        "The prefix tokens are averaged, not the patch tokens: those are x[:, "
        "num_prefix_tokens:].",
        {"mean": lambda x, prefix: x[:, :prefix].mean(1)},
    ),
    Mistake(
        "num_prefix_tokens is not used: leave out as many tokens of the mean.",
        {"prefix": lambda n: 1},
    ),
    Mistake(
        "One token too many is left out of the mean: the patches start at "
        "num_prefix_tokens.",
        {"prefix": lambda n: n + 1},
    ),
    Mistake(
        "The last two axes are swapped: the tokens are the second axis, the "
        "features the third.",
        {
            "cls": lambda x, prefix: x.mT[:, 0],
            "mean": lambda x, prefix: x.mT[:, prefix:].mean(1),
        },
    ),
    Mistake(
        "The tokens are not pooled: the result is (B, D), one vector for each "
        "image.",
        {"mean": lambda x, prefix: x[:, prefix:]},
        {"cls": lambda x, prefix: x, "mean": lambda x, prefix: x},
        {
            "cls": lambda x, prefix: x.flatten(1),
            "mean": lambda x, prefix: x.flatten(1),
        },
    ),
    Mistake(
        "The result is normalized: the LayerNorm and the softmax are not part "
        "of pool.",
        {"layout": lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:])},
        {"layout": lambda x: torch.nn.functional.normalize(x, dim=-1)},
        {"layout": lambda x: x.softmax(-1)},
    ),
)


def _pool_forms() -> Iterator[WrongForm]:
    return combine(_pool, *POOL_MISTAKES)


POOL = Exercise(
    pool,
    cases=(
        Case('one image, mode="cls"', (_normal(1, 5, 6), "cls")),
        Case(
            'three images, mode="cls"',
            (_normal(3, 5, 6), "cls"),
            SEVERAL_IMAGES,
        ),
        Case(
            'one image, mode="mean"',
            (_normal(1, 5, 6), "mean"),
            'Right for mode="cls", wrong for "mean": average the patch tokens, '
            "without the class token.",
        ),
        Case(
            'three images, mode="mean"',
            (_normal(3, 5, 6), "mean"),
            SEVERAL_IMAGES,
        ),
        Case(
            "no mode",
            (_normal(3, 5, 6),),
            'The default of mode is "cls".',
        ),
        Case("all axes different", (_normal(2, 7, 4), "mean")),
        Case(
            'num_prefix_tokens=2, mode="mean"',
            (_normal(3, 7, 6), "mean"),
            "Right for one prefix token, wrong for two: leave the first "
            "num_prefix_tokens tokens out of the mean.",
            {"num_prefix_tokens": 2},
        ),
        Case(
            'num_prefix_tokens=2, mode="cls"',
            (_normal(3, 7, 6), "cls"),
            'mode="cls" reads the first token, however many prefix tokens '
            "there are.",
            {"num_prefix_tokens": 2},
        ),
        Case(
            'num_prefix_tokens=0, mode="mean"',
            (_normal(3, 5, 6), "mean"),
            "Right with prefix tokens, wrong without: average all tokens if "
            "num_prefix_tokens is 0.",
            {"num_prefix_tokens": 0},
        ),
        Case(
            'num_prefix_tokens=3, mode="mean"',
            (_normal(2, 8, 5), "mean"),
            kwargs={"num_prefix_tokens": 3},
        ),
    ),
    wrong_forms=_pool_forms,
)

EXERCISES = (PREPEND_TOKEN, POOL)
