"""Exercises of chapter 06, with the mistakes that learners make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_lessons.checks.attention import (
    BIAS,
    BIAS_INFINITE,
    BIAS_PER_HEAD,
    SELF_ATTENTION,
    SEVERAL_HEADS,
    SEVERAL_SEQUENCES,
)
from vit_lessons.checks.catalogue import Mistake, WrongForm, combine
from vit_lessons.checks.compare import isolate, text
from vit_lessons.checks.exercise import (
    IN_PLACE_GRADIENT,
    NO_GRADIENT,
    Case,
    Outcome,
)
from vit_lessons.checks.mlp import MLP
from vit_lessons.checks.part import (
    DROPOUT_IN_EVALUATION,
    DROPOUT_NOT_USED,
    EVALUATION,
    ONE_WIDTH,
    RATIO,
    PartCase,
    PartExercise,
    normal,
    only_singles,
)
from vit_lessons.encoder_block import DropPath, EncoderBlock

# DropPath. Its result is random, so what is compared is what can be counted.

CALLS = 20
NAMES = (
    "the shape is not that of x",
    "of the numbers are dropped",
    "images of which some features are dropped",
    "tokens of which some features are dropped",
    "the images share one draw",
    "what is kept is multiplied by",
    "what is kept is multiplied by different numbers",
)


def _count(call: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """What can be counted in many calls, in the order of NAMES."""

    def count(x: Tensor) -> Any:
        results = [call(x) for _ in range(CALLS)]
        if not all(isinstance(y, Tensor) for y in results):
            return results[0]
        if any(y.shape != x.shape for y in results):
            return torch.tensor([1.0] + [0.0] * 6)
        if any(y.isnan().any() for y in results):
            return results[0].sum() * torch.nan * torch.ones(7)
        factors = torch.stack([y / x for y in results])  # (calls, B, ...)
        dropped = factors == 0
        images = dropped.flatten(2)
        tokens = dropped.flatten(2, -2) if x.ndim > 2 else images[..., None]
        is_some = images.any(2) & ~images.all(2)
        shared = (dropped == dropped[:, :1]).all() & dropped.any()
        kept = factors[~dropped]
        share = dropped.float().mean()
        low, high = kept.aminmax() if len(kept) else (share * 0, share * 0)
        return torch.stack(
            [
                torch.zeros(()),
                -torch.ones(()) if shared else (share * 10).round() / 10,
                is_some.any().float(),
                (tokens.any(-1) & ~tokens.all(-1)).any().float(),
                shared.float(),
                high,
                (high - low > 1e-3).float(),
            ]
        )

    return count


@dataclass(frozen=True)
class DropPathExercise(PartExercise):
    """DropPath draws at random: its results are counted, then compared."""

    def ready(self, candidate: Any, case: Case) -> Callable[..., Any]:
        return _count(super().ready(candidate, case))

    def run(self, candidate: Any, case: Case) -> Outcome:
        outcome = super().run(candidate, case)
        if (outcome.problem or "").startswith("largest difference"):
            pairs = zip(NAMES, outcome.expected, outcome.got, strict=True)
            words = next(_words(*p) for p in pairs if not p[1].isclose(p[2]))
            return replace(outcome, problem=words)
        return outcome

    def diagnose(self, candidate: Any, outcomes: list[Outcome]) -> str | None:
        return super(PartExercise, self).diagnose(candidate, outcomes)

    def _is_right_without_dropout(self, *_: Any) -> bool:
        return False

    def _recognize(self, outcomes: list[Outcome]) -> str | None:
        def counted(wrong: WrongForm) -> WrongForm:
            def form(self: DropPath, x: Tensor) -> Any:
                torch.default_generator.manual_seed(0)
                return _count(lambda x: wrong.form(self, x))(x)

            return replace(wrong, form=form)

        forms = self.wrong_forms
        exercise = replace(self, wrong_forms=lambda: map(counted, forms()))
        return super(DropPathExercise, exercise)._recognize(outcomes)

    def gradient_problem(self, candidate: Any) -> str | None:
        """The gradient of the sum is the factor of each feature."""

        def is_right() -> bool:
            case = self.cases[-1]
            module = PartExercise.ready(self, candidate, case)
            x = case.args[0].clone().requires_grad_()
            y = module(x)
            [gradient] = torch.autograd.grad(y.sum(), x)
            return torch.allclose(gradient, y / x, atol=1e-5)

        right = isolate(is_right)
        if isinstance(right, BaseException):
            return (
                IN_PLACE_GRADIENT if "inplace" in text(right) else NO_GRADIENT
            )
        return None if right else NO_GRADIENT


def _words(name: str, expected: Tensor, got: Tensor) -> str:
    if name == NAMES[1] and got >= 0 and expected >= 0:
        return f"{got:.0%} {name}, expected about {expected:.0%}"
    if name == NAMES[1]:
        return NAMES[4]
    if name == NAMES[5]:
        return f"{name} {got:.3g}, expected {expected:.3g}"
    return name if got else f"expected {name}"


def _drop(
    acts: Callable = lambda self: self.training,
    keep: Callable = lambda p: 1 - p,
    shape: Callable = lambda x: (len(x), *[1] * (x.ndim - 1)),
    scale: Callable = lambda x, p: x / (1 - p),
    otherwise: Callable = lambda x, p: x,
) -> Callable[[DropPath, Tensor], Tensor]:
    """DropPath.forward, with some steps exchanged."""

    def form(self: DropPath, x: Tensor) -> Tensor:
        p = self.drop_path
        if not acts(self) or p == 0:
            return otherwise(x, p)
        return scale(x * (torch.rand(shape(x)) < keep(p)), p)

    return form


def _drop_path_forms() -> Iterator[WrongForm]:
    return combine(
        _drop,
        Mistake(
            "DropPath is never active: in training it drops the branch of "
            "some images.",
            {"acts": lambda self: False},
        ),
        Mistake(
            "DropPath is active in evaluation too: there it returns x, so ask "
            "self.training.",
            {"acts": lambda self: True},
        ),
        Mistake(
            "DropPath is active in evaluation and not in training: it is the "
            "other way round.",
            {"acts": lambda self: not self.training},
        ),
        Mistake(
            "Images are kept with probability drop_path: it is the probability "
            "of dropping.",
            {"keep": lambda p: p},
            {"keep": lambda p: p, "scale": lambda x, p: x / p},
        ),
        Mistake(
            "Single features are dropped: draw one number for each image, "
            "(B, 1, ..., 1).",
            {"shape": lambda x: x.shape},
        ),
        Mistake(
            "Single tokens are dropped: draw one number for each image, "
            "(B, 1, ..., 1).",
            {"shape": lambda x: (*x.shape[:-1], 1)},
            {"shape": lambda x: (*x.shape[:2], *[1] * (x.ndim - 2))},
            {"shape": lambda x: (1, x.shape[1], *[1] * (x.ndim - 2))},
        ),
        Mistake(
            "The same features are dropped in all images: draw one number for "
            "each image, (B, 1, ..., 1).",
            {"shape": lambda x: (*[1] * (x.ndim - 1), x.shape[-1])},
        ),
        Mistake(
            "All images share one draw: draw one number for each image, "
            "(B, 1, ..., 1).",
            {"shape": lambda x: [1] * x.ndim},
        ),
        Mistake(
            "What is kept is not scaled: divide it by the probability of "
            "keeping it, 1 - drop_path.",
            {"scale": lambda x, p: x},
        ),
        Mistake(
            "What is kept is multiplied by the probability of keeping it: "
            "divide by it.",
            {"scale": lambda x, p: x * (1 - p)},
        ),
        Mistake(
            "What is kept is divided by drop_path: divide it by the "
            "probability of keeping it, 1 - drop_path.",
            {"scale": lambda x, p: x / p},
        ),
        Mistake(
            "What is kept is multiplied by drop_path: divide it by the "
            "probability of keeping it, 1 - drop_path.",
            {"scale": lambda x, p: x * p},
        ),
        Mistake(
            "Evaluation scales: with the scale in training, evaluation "
            "returns x as it is.",
            {"otherwise": lambda x, p: x * (1 - p)},
            {
                "otherwise": lambda x, p: x * (1 - p),
                "scale": lambda x, p: x,
            },
        ),
    )


def _drop_path_case(
    label: str,
    shape: tuple[int, ...],
    drop_path: float,
    cause: str | None = None,
    *,
    mode: str = "training",
) -> Case:
    x = normal(*shape)
    x = x + x.sign()  # no feature is 0
    return PartCase(
        label, (x,), cause, init={"drop_path": drop_path}, mode=mode
    )


DROP_PATH = DropPathExercise(
    DropPath,
    cases=(
        _drop_path_case(
            "in evaluation",
            (8, 3, 4),
            0.2,
            mode="evaluation",
        ),
        _drop_path_case(
            "drop_path=0 in training",
            (8, 3, 4),
            0.0,
            "With drop_path=0 nothing is dropped.",
        ),
        _drop_path_case("drop_path=0.2 in training", (150, 3, 4), 0.2),
        _drop_path_case(
            "drop_path=0.6 in training",
            (150, 3, 4),
            0.6,
            "Right for one probability only: use drop_path.",
        ),
        _drop_path_case(
            "two axes, (B, D)",
            (150, 12),
            0.6,
            "Right for (B, N, D) only: draw a number for each image, with as "
            "many axes as x has.",
        ),
        _drop_path_case(
            "four axes, (B, C, H, W)",
            (150, 3, 2, 2),
            0.6,
            "Right for (B, N, D) only: draw a number for each image, with as "
            "many axes as x has.",
        ),
        _drop_path_case("all axes different", (150, 5, 7), 0.6),
    ),
    wrong_forms=_drop_path_forms,
)

# EncoderBlock.


def _block(
    before: Callable = lambda self, x: self.norm1(x),
    attend: Callable = lambda attn, x, bias, n: attn(x, bias, num_queries=n),
    add: Callable = lambda self, x, normed, branch: x + branch,
    after: Callable = lambda self, z: z,
    between: Callable = lambda self, x, z: self.norm2(z),
    compute: Callable = lambda mlp, x: mlp(x),
    add_again: Callable = lambda self, x, z, normed, branch: z + branch,
    end: Callable = lambda self, z: z,
    swap: bool = False,
    ask: Callable = lambda n: n,
    cut: bool = False,
) -> Callable[..., Tensor]:
    """EncoderBlock.forward, with some steps exchanged."""

    def form(
        self: EncoderBlock,
        x: Tensor,
        bias: Tensor | None = None,
        *,
        num_queries: int | None = None,
    ) -> Tensor:
        n = ask(num_queries)
        if cut:
            x = x[:, :n]
        if swap:
            normed = between(self, x, x)
            branch = self.drop_path(compute(self.mlp, normed))
            z = after(self, add(self, x, normed, branch))
            normed = before(self, z)
            branch = self.dropout(attend(self.attn, normed, bias, n))
        else:
            normed = before(self, x)
            branch = self.dropout(attend(self.attn, normed, bias, n))
            x, normed = x[:, :n], normed[:, :n]
            z = add(self, x, normed, self.drop_path(branch))
            z = after(self, z)
            normed = between(self, x, z)
            branch = compute(self.mlp, normed)
        branch, z, normed = self.drop_path(branch), z[:, :n], normed[:, :n]
        return end(self, add_again(self, x, z, normed, branch))

    return form


EPS = (
    "LayerNorm has another eps: ViT has 1e-6, and nn.LayerNorm takes 1e-5 if "
    "nothing is said, so write nn.LayerNorm(dim, eps=1e-6)."
)
POST_NORM = (
    "The norm comes after the sum: in ViT each branch reads normalized tokens, "
    "and nothing is normalized after the sum."
)

BLOCK_MISTAKES = (
    Mistake(
        POST_NORM,
        {
            "before": lambda self, x: x,
            "after": lambda self, z: self.norm1(z),
            "between": lambda self, x, z: z,
            "end": lambda self, z: self.norm2(z),
        },
        {
            "before": lambda self, x: x,
            "after": lambda self, z: self.norm1(z),
        },
        {
            "between": lambda self, x, z: z,
            "end": lambda self, z: self.norm2(z),
        },
    ),
    Mistake(
        "The norm comes after the branch: each branch reads normalized tokens, "
        "and adds its result as it is.",
        {
            "before": lambda self, x: x,
            "add": lambda self, x, normed, branch: x + self.norm1(branch),
            "between": lambda self, x, z: z,
            "add_again": lambda self, x, z, normed, branch: (
                z + self.norm2(branch)
            ),
        },
        {
            "before": lambda self, x: x,
            "add": lambda self, x, normed, branch: x + self.norm1(branch),
        },
        {
            "between": lambda self, x, z: z,
            "add_again": lambda self, x, z, normed, branch: (
                z + self.norm2(branch)
            ),
        },
    ),
    Mistake(
        "A norm is missing: norm1 comes before the attention, norm2 before "
        "the MLP.",
        {"before": lambda self, x: x, "between": lambda self, x, z: z},
        {"before": lambda self, x: x},
        {"between": lambda self, x, z: z},
    ),
    Mistake(
        "The same norm is used twice: norm1 comes before the attention, norm2 "
        "before the MLP.",
        {"between": lambda self, x, z: self.norm1(z)},
        {"before": lambda self, x: self.norm2(x)},
    ),
    Mistake(
        "The norms are exchanged: norm1 comes before the attention, norm2 "
        "before the MLP.",
        {
            "before": lambda self, x: self.norm2(x),
            "between": lambda self, x, z: self.norm1(z),
        },
    ),
    Mistake(
        "A norm follows the last sum: the block ends with it.",
        {"end": lambda self, z: self.norm1(z)},
        {"end": lambda self, z: self.norm2(z)},
        {"end": lambda self, z: F.layer_norm(z, z.shape[-1:])},
    ),
    Mistake(
        "Both residual connections are missing: each branch is added to what "
        "it started from.",
        {
            "add": lambda self, x, normed, branch: branch,
            "add_again": lambda self, x, z, normed, branch: branch,
        },
    ),
    Mistake(
        "The first residual connection is missing: add the attention to x, "
        "equation 2.",
        {"add": lambda self, x, normed, branch: branch},
    ),
    Mistake(
        "The second residual connection is missing: add the MLP to z', the "
        "result of equation 2.",
        {"add_again": lambda self, x, z, normed, branch: branch},
    ),
    Mistake(
        "The MLP reads x, the input of the block: it reads z', the result of "
        "equation 2.",
        {"between": lambda self, x, z: self.norm2(x)},
        {"between": lambda self, x, z: self.norm1(x)},
    ),
    Mistake(
        "The MLP is added to x, the input of the block: add it to z', the "
        "result of equation 2.",
        {"add_again": lambda self, x, z, normed, branch: x + branch},
    ),
    Mistake(
        "The attention is lost: add it to x, equation 2, and go on from the "
        "result z'.",
        {
            "between": lambda self, x, z: self.norm2(x),
            "add_again": lambda self, x, z, normed, branch: x + branch,
        },
    ),
    Mistake(
        "x is added once more in equation 3: add the MLP to z' alone.",
        {"add_again": lambda self, x, z, normed, branch: x + z + branch},
    ),
    Mistake(
        "A branch is added to the normalized tokens: add it to the tokens as "
        "they were before the norm.",
        {
            "add": lambda self, x, normed, branch: normed + branch,
            "add_again": lambda self, x, z, normed, branch: normed + branch,
        },
        {"add": lambda self, x, normed, branch: normed + branch},
        {"add_again": lambda self, x, z, normed, branch: normed + branch},
    ),
    Mistake(
        "The MLP comes before the attention: it comes after.", {"swap": True}
    ),
    Mistake(
        "The MLP is missing.",
        {"add_again": lambda self, x, z, normed, branch: z},
    ),
    Mistake(
        "bias is not used: give it to the attention.",
        {
            "attend": lambda attn, x, bias, n: attn(x, num_queries=n),
        },
    ),
    Mistake(
        "num_queries is not used: only the first n tokens are returned.",
        {"ask": lambda n: None},
    ),
    Mistake(
        "The tokens that do not ask are cut off before the attention: all "
        "tokens answer, so cut off the others after it.",
        {"cut": True},
    ),
)


def attention_forms() -> Iterator[WrongForm]:
    """Mistakes inside the attention, as forms of (attn, x, bias, n)."""

    def cut(form: Callable) -> Callable:
        return lambda attn, x, bias, n: form(attn, x, bias)[:, :n]

    others = (
        "The weights are averaged over",
        "The scores are",
        "The bias is ig",
    )
    for wrong in only_singles(SELF_ATTENTION.wrong_forms()):
        if wrong.cause.startswith(others):
            continue  # they show elsewhere: in the weights, or with a bias
        yield WrongForm(wrong.cause, cut(wrong.form))


def _block_forms() -> Iterator[WrongForm]:
    yield from combine(_block, *BLOCK_MISTAKES)
    for wrong in only_singles(MLP.wrong_forms()):
        yield WrongForm(
            f"In the MLP: {wrong.cause}", _block(compute=wrong.form)
        )
    for wrong in attention_forms():
        cause = f"In the attention: {wrong.cause}"
        yield WrongForm(cause, _block(attend=wrong.form))


def _bias(*shape: int, hide: bool = False) -> Tensor:
    """A bias that is 0 on the diagonal, and -inf in one place."""
    bias = normal(*shape, seed=4)
    bias.diagonal(dim1=-2, dim2=-1).zero_()
    if hide:
        bias[..., 1, 0] = float("-inf")
    return bias


def _block_case(
    label: str,
    shape: tuple[int, int, int],
    num_heads: int,
    cause: str | None = None,
    *,
    init: dict[str, Any] | None = None,
    std: float = 3.0,
    mode: str = "training",
    factors: dict[str, float] | None = None,
    is_apart: bool = False,
    **kwargs: Any,
) -> Case:
    sizes = {"dim": shape[-1], "num_heads": num_heads} | (init or {})
    x = normal(*shape, std=std)
    return PartCase(
        label, (x,), cause, kwargs, sizes, mode, is_apart, factors or {}
    )


ENCODER_BLOCK = PartExercise(
    EncoderBlock,
    cases=(
        _block_case("one sequence of 5 tokens, one head", (1, 5, 6), 1),
        _block_case("three heads", (1, 5, 6), 3, SEVERAL_HEADS),
        _block_case("two sequences", (2, 5, 6), 1, SEVERAL_SEQUENCES),
        _block_case("wider tokens", (1, 5, 10), 1, ONE_WIDTH),
        _block_case(
            "70 tokens", (1, 70, 12), 2, "Right for short sequences only."
        ),
        _block_case(
            "mlp_ratio=2.5", (2, 5, 6), 3, RATIO, init={"mlp_ratio": 2.5}
        ),
        _block_case(
            "qkv_bias=False",
            (2, 5, 6),
            3,
            "qkv_bias=False must leave out the bias of the qkv layer.",
            init={"qkv_bias": False},
        ),
        _block_case(
            "a bias for each pair", (2, 5, 6), 3, BIAS, bias=_bias(5, 5)
        ),
        _block_case(
            "a bias for each head",
            (2, 5, 6),
            3,
            BIAS_PER_HEAD,
            bias=_bias(3, 5, 5),
        ),
        _block_case(
            "a bias with -inf",
            (2, 5, 6),
            3,
            BIAS_INFINITE,
            bias=_bias(3, 5, 5, hide=True),
        ),
        _block_case(
            "num_queries=2",
            (2, 5, 6),
            3,
            "With num_queries=n the result is the first n tokens of the full "
            "one.",
            num_queries=2,
        ),
        _block_case(
            "tokens with small numbers",
            (2, 5, 6),
            3,
            EPS,
            std=3e-3,
            is_apart=True,
        ),
        _block_case(
            "tokens with small numbers, no attention",
            (2, 5, 6),
            3,
            EPS,
            std=3e-3,
            is_apart=True,
            factors={"attn.proj": 0.0},
        ),
        _block_case(
            "in evaluation", (2, 5, 6), 3, EVALUATION, mode="evaluation"
        ),
        *(
            _block_case(
                f"{name}=0.5 in evaluation",
                (2, 5, 6),
                3,
                DROPOUT_IN_EVALUATION,
                mode="evaluation",
                init={name: 0.5},
            )
            for name in ("dropout", "drop_path")
        ),
        _block_case(
            "dropout=0.5 in training",
            (64, 5, 6),
            3,
            DROPOUT_NOT_USED,
            mode="random",
            init={"dropout": 0.5},
        ),
        _block_case(
            "drop_path=0.5 in training",
            (64, 5, 6),
            3,
            "drop_path must drop each branch for some whole images: wrap both "
            "branches in DropPath.",
            mode="random",
            init={"drop_path": 0.5},
        ),
        _block_case("all axes different", (2, 7, 12), 3),
    ),
    wrong_forms=_block_forms,
    hints={
        "not expected: attn.in_proj_weight": (
            "nn.MultiheadAttention has other names, and reads (N, B, D) unless "
            "it is told batch_first=True: use the attention of chapter 04."
        ),
    },
)

EXERCISES = (DROP_PATH, ENCODER_BLOCK)
