"""Exercises of chapter 04, with the mistakes that learners make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vit_lessons.attention import (
    MultiHeadSelfAttention,
    scaled_dot_product_attention,
)
from vit_lessons.checks.catalogue import Mistake, WrongForm, combine
from vit_lessons.checks.exercise import Case, Exercise, ModuleExercise

Form = Callable[..., Tensor | tuple[Tensor, Tensor]]

SEVERAL_SEQUENCES = (
    "Right for one sequence, wrong for several: the sequences of a batch do "
    "not see each other."
)
SEVERAL_HEADS = (
    "Right for one head, wrong for several: each head has its own queries, "
    "keys and values, and heads do not see each other."
)
BIAS = (
    "Right without a bias, wrong with one: add it to the scores after the "
    "scaling and before the softmax."
)
BIAS_PER_HEAD = (
    "Right for one bias for all heads, wrong for a bias for each head: add it "
    "as it is, so that it broadcasts to the scores."
)
BIAS_INFINITE = (
    "Right for a finite bias, wrong for -inf: such a bias hides a pair, so "
    "that its weight is 0."
)

ERRORS = {
    "Boolean value of Tensor": (
        "A tensor with several numbers is neither true nor false: write "
        "`if bias is not None`."
    ),
    "sqrt(): argument 'input'": (
        "torch.sqrt needs a tensor, and q.shape[-1] is an int: write "
        "q.shape[-1] ** 0.5."
    ),
}
TUPLE = (
    "A tuple is used as one tensor: unpack it first, as in output, weights = "
    "attention(q, k, v)."
)
SELF_ERRORS = ERRORS | {
    "not enough values to unpack (expected 3": (
        "Unpacking takes a tensor apart along its first axis: bring the axis "
        "of queries, keys and values to the front, (three, B, h, N, d)."
    ),
    "too many values to unpack": (
        "Your code unpacks fewer axes than there are: x is (B, N, D), and q, k "
        "and v are (B, h, N, d)."
    ),
    "must be Tensor, not tuple": TUPLE,
    "'tuple' object has no attribute": TUPLE,
    "<class 'tuple'>": TUPLE,
}


def _attend(
    scale: Callable = lambda q, k, v: q.shape[-1] ** -0.5,
    score: Callable = lambda q, k, scale: q @ k.mT * scale,
    before: Callable = lambda scores, bias, scale: scores + bias,
    mask: Callable = lambda scores: scores,
    normalize: Callable = lambda scores: scores.softmax(-1),
    after: Callable = lambda weights, bias: weights,
    average: Callable = lambda weights, q, k, v: weights @ v,
    result: Callable = lambda output, weights, scores: (output, weights),
) -> Form:
    """scaled_dot_product_attention, with some steps exchanged."""

    def form(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        factor = scale(q, k, v)
        scores = score(q, k, factor)
        if bias is not None:
            scores = before(scores, bias, factor)
        weights = normalize(mask(scores))
        if bias is not None:
            weights = after(weights, bias)
        return result(average(weights, q, k, v), weights, scores)

    return form


def _cosine(q: Tensor, k: Tensor) -> Tensor:
    return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT


def _hide(
    scores: Tensor, hidden: Tensor, value: float = float("-inf")
) -> Tensor:
    return scores.masked_fill(hidden.bool(), value)


def _reshaped(k: Tensor) -> Tensor:
    return k.reshape(*k.shape[:-2], k.shape[-1], k.shape[-2])


SCORES_RETURNED = Mistake(
    "The scores are returned in place of the weights: the weights are what "
    "comes out of the softmax.",
    {"result": lambda output, weights, scores: (output, scores)},
)


ATTENTION_MISTAKES = (
    Mistake(
        "The scale is missing: divide the scores by the square root of d.",
        {"scale": lambda q, k, v: 1.0},
    ),
    Mistake(
        "The scores are divided by d, or by its square root twice: divide them "
        "by the square root of d once.",
        {"scale": lambda q, k, v: 1 / q.shape[-1]},
    ),
    Mistake(
        "The scale is a fixed number: it is the square root of d, the width of "
        "a query.",
        {"scale": lambda q, k, v: 64**-0.5},
        {"scale": lambda q, k, v: 768**-0.5},
    ),
    Mistake(
        "The scores are multiplied instead of divided: divide them by the "
        "square root of d.",
        {"scale": lambda q, k, v: q.shape[-1] ** 0.5},
        {"scale": lambda q, k, v: q.shape[-1]},
    ),
    Mistake(
        "The scale uses the number of tokens: it is the square root of d, the "
        "width of a query.",
        {"scale": lambda q, k, v: q.shape[-2] ** -0.5},
        {"scale": lambda q, k, v: k.shape[-2] ** -0.5},
    ),
    Mistake(
        "The scale uses the width of all heads together: it is the square "
        "root of d, the width of one head.",
        {"scale": lambda q, k, v: (q.shape[-3] * q.shape[-1]) ** -0.5},
    ),
    Mistake(
        "The scale uses the number of heads: it is the square root of d, the "
        "width of a query.",
        {"scale": lambda q, k, v: q.shape[-3] ** -0.5},
    ),
    Mistake(
        "The keys are reshaped to (d, M), which mixes their numbers: transpose "
        "them, k.transpose(-2, -1).",
        {"score": lambda q, k, scale: q @ _reshaped(k) * scale},
    ),
    Mistake(
        "The wrong axes of the keys are swapped: swap the last two, "
        "k.transpose(-2, -1).",
        {"score": lambda q, k, scale: q @ k.T * scale},
        {"score": lambda q, k, scale: q @ k.transpose(1, 2) * scale},
    ),
    Mistake(
        "The keys are not transposed: compute q @ k.transpose(-2, -1).",
        {"score": lambda q, k, scale: q @ k * scale},
    ),
    Mistake(
        "Queries and keys are multiplied number by number: each query needs "
        "its dot product with each key, q @ k.transpose(-2, -1).",
        {"score": lambda q, k, scale: q * k * scale},
        {"score": lambda q, k, scale: q * k.mT * scale},
        {"score": lambda q, k, scale: (q * k).sum(-1) * scale},
    ),
    Mistake(
        "Queries and keys are normalized to length 1: use the plain dot "
        "product.",
        {"score": lambda q, k, scale: _cosine(q, k)},
        {"score": lambda q, k, scale: _cosine(q, k) * scale},
    ),
    Mistake(
        "Queries are compared with queries: compare them with the keys, q @ "
        "k.transpose(-2, -1).",
        {"score": lambda q, k, scale: q @ q.mT * scale},
    ),
    Mistake(
        "Keys are compared with keys: compare the queries with them, q @ "
        "k.transpose(-2, -1).",
        {"score": lambda q, k, scale: k @ k.mT * scale},
    ),
    Mistake(
        "The bias is ignored: add it to the scores before the softmax.",
        {"before": lambda scores, bias, scale: scores},
    ),
    Mistake(
        "The bias is scaled together with the scores: scale first, then add "
        "the bias.",
        {"before": lambda scores, bias, scale: scores + bias * scale},
    ),
    Mistake(
        "The bias has the wrong sign: add it to the scores.",
        {"before": lambda scores, bias, scale: scores - bias},
    ),
    Mistake(
        "The bias is multiplied: add it to the scores.",
        {"before": lambda scores, bias, scale: scores * bias},
    ),
    Mistake(
        "The bias comes after the softmax: add it to the scores, before.",
        {
            "before": lambda scores, bias, scale: scores,
            "after": lambda weights, bias: weights + bias,
        },
        {
            "before": lambda scores, bias, scale: scores,
            "after": lambda weights, bias: weights * bias,
        },
    ),
    Mistake(
        "The bias is read as a mask that hides some pairs: it is a number that "
        "is added to the score.",
        {"before": lambda scores, bias, scale: _hide(scores, bias == 0)},
        {"before": lambda scores, bias, scale: _hide(scores, bias == 0, -1e9)},
        {"before": lambda scores, bias, scale: _hide(scores, bias)},
        {"before": lambda scores, bias, scale: _hide(scores, bias, -1e9)},
        {"before": lambda scores, bias, scale: _hide(scores, bias.isinf())},
    ),
    Mistake(
        "The bias is transposed: row i belongs to query i, as in the scores.",
        {"before": lambda scores, bias, scale: scores + bias.mT},
    ),
    Mistake(
        "A causal mask hides later or earlier tokens: in ViT every token sees "
        "every token.",
        {"mask": lambda s: _hide(s, torch.ones_like(s).triu(1))},
        {"mask": lambda s: _hide(s, torch.ones_like(s).tril(-1))},
    ),
    Mistake(
        "A token cannot see itself: in ViT every token sees every token.",
        {"mask": lambda s: _hide(s, torch.eye(*s.shape[-2:]).expand_as(s))},
    ),
    Mistake(
        "The softmax runs over the queries: it must run over the keys, "
        "dim=-1, so that each row sums to 1.",
        {"normalize": lambda scores: scores.softmax(-2)},
    ),
    Mistake(
        "The softmax runs over the heads: it must run over the keys, dim=-1.",
        {"normalize": lambda scores: scores.softmax(-3)},
    ),
    Mistake(
        "The softmax runs over the batch: it must run over the keys, dim=-1.",
        {"normalize": lambda scores: scores.softmax(0)},
    ),
    Mistake(
        "The softmax runs over all pairs at once: it must run over the keys "
        "of each query, dim=-1.",
        {"normalize": lambda s: s.flatten(-2).softmax(-1).view_as(s)},
        {"normalize": lambda s: s.flatten().softmax(0).view_as(s)},
    ),
    Mistake(
        "The weights do not come from a softmax: those of a query must be "
        "positive and sum to 1.",
        {"normalize": lambda scores: scores},
        {"normalize": lambda scores: scores.sigmoid()},
        {"normalize": lambda scores: scores.relu()},
        {"normalize": lambda scores: scores.tanh()},
        {"normalize": lambda scores: scores.exp()},
        {"normalize": lambda s: s / s.sum(-1, keepdim=True)},
        {"normalize": lambda s: F.normalize(s, dim=-1)},
    ),
    Mistake(
        "The softmax is taken twice: once is right.",
        {"normalize": lambda scores: scores.softmax(-1).softmax(-1)},
    ),
    Mistake(
        "log_softmax gives logarithms of weights: use softmax.",
        {"normalize": lambda scores: scores.log_softmax(-1)},
    ),
    Mistake(
        "The scale comes after the softmax: scale the scores before it.",
        {
            "scale": lambda q, k, v: 1.0,
            "average": lambda w, q, k, v: w @ v * q.shape[-1] ** -0.5,
        },
        {
            "scale": lambda q, k, v: 1.0,
            "normalize": lambda scores: scores.softmax(-1),
            "average": lambda w, q, k, v: w * q.shape[-1] ** -0.5 @ v,
        },
    ),
    Mistake(
        "The weights average the keys: they must average the values.",
        {"average": lambda weights, q, k, v: weights @ k},
    ),
    Mistake(
        "The weights average the queries: they must average the values.",
        {"average": lambda weights, q, k, v: weights @ q},
    ),
    Mistake(
        "Weights and values are multiplied number by number: compute the "
        "matrix product weights @ v.",
        {"average": lambda weights, q, k, v: weights * v},
    ),
    Mistake(
        "The weights are transposed: row i holds the weights of query i.",
        {"average": lambda weights, q, k, v: weights.mT @ v},
    ),
    Mistake(
        "The input is added to the output: the residual connection belongs to "
        "the encoder block.",
        {"average": lambda weights, q, k, v: weights @ v + q},
        {"average": lambda weights, q, k, v: weights @ v + v},
    ),
)


def _attention_forms() -> Iterator[WrongForm]:
    def exchanged(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return scaled_dot_product_attention(q, v, k, bias)

    yield WrongForm(
        "Keys and values are exchanged: the arguments are (q, k, v, bias).",
        exchanged,
    )
    yield from combine(
        _attend,
        *ATTENTION_MISTAKES,
        Mistake(
            "The scale uses the width of the values: it is the square root of "
            "d, the width of a query.",
            {"scale": lambda q, k, v: v.shape[-1] ** -0.5},
        ),
        Mistake(
            "Queries and keys are exchanged: row i of the scores belongs to "
            "query i, so compute q @ k.transpose(-2, -1).",
            {"score": lambda q, k, scale: k @ q.mT * scale},
        ),
        Mistake(
            "The pair is returned as (weights, output): the output is first.",
            {"result": lambda output, weights, scores: (weights, output)},
        ),
        SCORES_RETURNED,
    )


def _normal(*shape: int, seed: int = 0, std: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32) * std


def _qkv(
    *batch: int, n: int = 4, m: int = 4, d: int = 3, dv: int = 3, std: float = 1
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        _normal(*batch, n, d, seed=1, std=std),
        _normal(*batch, m, d, seed=2, std=std),
        _normal(*batch, m, dv, seed=3),
    )


def _bias(*shape: int, hide: bool = True) -> Tensor:
    """A bias with all kinds of numbers: 0 on the diagonal, -inf below it."""
    bias = _normal(*shape, seed=4)
    bias.diagonal(dim1=-2, dim2=-1).zero_()
    if hide:
        bias[..., 1, 0] = float("-inf")
    return bias


ATTENTION = Exercise(
    scaled_dot_product_attention,
    cases=(
        Case("one sequence of 4 tokens, one head", _qkv(1, 1)),
        Case("two heads", _qkv(1, 2), SEVERAL_HEADS),
        Case("two sequences", _qkv(2, 1), SEVERAL_SEQUENCES),
        Case(
            "5 keys for 4 queries",
            _qkv(1, 1, m=5),
            "Right for as many keys as queries only: N and M may differ.",
        ),
        Case(
            "wider queries, keys and values",
            _qkv(1, 1, d=6, dv=6),
            "Right for one width only: d is the last axis of q, and the scale "
            "is its square root.",
        ),
        Case(
            "values wider than queries",
            _qkv(1, 1, dv=6),
            "Right for values as wide as queries only: use the width of q "
            "for the scale, and of v for the output.",
        ),
        Case(
            "a bias for each pair",
            (*_qkv(2, 3), _bias(4, 4, hide=False)),
            BIAS,
        ),
        Case(
            "a bias for each head",
            (*_qkv(2, 3), _bias(3, 4, 4, hide=False)),
            BIAS_PER_HEAD,
        ),
        Case("a bias with -inf", (*_qkv(2, 3), _bias(3, 4, 4)), BIAS_INFINITE),
        Case(
            "large scores",
            _qkv(1, 1, std=15),
            "Right for small scores only: use softmax, which subtracts the "
            "largest score of each row before the exponential.",
        ),
        Case(
            "all axes different",
            (*_qkv(2, 3, n=4, m=5, d=6, dv=7), _bias(2, 3, 4, 5)),
        ),
    ),
    wrong_forms=_attention_forms,
    errors=ERRORS,
    simpler=(
        Case(
            "one table",
            _qkv(m=5),
            "Right for tables of two axes only: here batch and heads come "
            "first, (B, h, N, d), so count the axes from the end: N is "
            "q.shape[-2].",
        ),
        Case(
            "no axis of heads",
            _qkv(2, m=5),
            "Right for three axes only: the heads are one more, (B, h, N, d), "
            "so count the axes from the end, k.transpose(-2, -1).",
        ),
    ),
)


def _split(pattern: str, order: str = "qkv") -> Callable:
    """Cut the result of the qkv layer in three, in a given way."""

    def split(self: MultiHeadSelfAttention, x: Tensor) -> list[Tensor]:
        parts = rearrange(self.qkv(x), pattern, three=3, h=self.num_heads)
        return [parts[order.index(letter)] for letter in "qkv"]

    return split


def _split_by_reshape(self: MultiHeadSelfAttention, x: Tensor) -> list[Tensor]:
    b, n, _ = x.shape
    parts = self.qkv(x).chunk(3, dim=-1)
    return [part.reshape(b, self.num_heads, n, -1) for part in parts]


def _split_all_by_reshape(
    self: MultiHeadSelfAttention, x: Tensor
) -> tuple[Tensor, ...]:
    b, n, _ = x.shape
    return self.qkv(x).reshape(3, b, self.num_heads, n, -1).unbind(0)


def _split_without_bias(
    self: MultiHeadSelfAttention, x: Tensor
) -> tuple[Tensor, ...]:
    parts = F.linear(x, self.qkv.weight)
    pattern = "b n (three h d) -> three b h n d"
    return rearrange(parts, pattern, three=3, h=self.num_heads).unbind(0)


def _merge(pattern: str) -> Callable[[Tensor], Tensor]:
    return lambda heads: rearrange(heads, pattern)


SPLIT = _split("b n (three h d) -> three b h n d")
MERGE = _merge("b h n d -> b n (h d)")


def _self_attention(
    split: Callable = SPLIT,
    merge: Callable = MERGE,
    project: Callable = lambda self, x, out: self.proj(out),
    show: Callable = lambda weights: weights,
    **steps: Callable,
) -> Form:
    """MultiHeadSelfAttention.forward, with some steps exchanged."""
    attend = _attend(**steps)

    def form(
        self: MultiHeadSelfAttention,
        x: Tensor,
        bias: Tensor | None = None,
        *,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        out, weights = attend(*split(self, x), bias)
        out = project(self, x, merge(out))
        return (out, show(weights)) if return_weights else out

    return form


def _self_attention_forms() -> Iterator[WrongForm]:
    orders = ["".join(p) for p in permutations("qkv")][1:]
    right = "b n (three h d) -> three b h n d"
    return combine(
        _self_attention,
        Mistake(
            "The result of the qkv layer is split in the wrong order: its "
            "features are (three h d), first all queries, then all keys, then "
            "all values.",
            {"split": _split("b n (h three d) -> three b h n d")},
            {"split": _split("b n (h d three) -> three b h n d")},
            {"split": _split("b n (d three h) -> three b h n d")},
            {"split": _split("b n (d h three) -> three b h n d")},
        ),
        Mistake(
            "Each head takes features that are not next to each other: split D "
            "into (h d), the head outside, not into (d h).",
            {"split": _split("b n (three d h) -> three b h n d")},
        ),
        Mistake(
            "Queries, keys and values are exchanged: the qkv layer gives first "
            "the queries, then the keys, then the values.",
            *({"split": _split(right, order)} for order in orders),
        ),
        Mistake(
            "A reshape to (B, h, N, d) mixes tokens and heads: split D into "
            "(h d) first, then swap the axes of tokens and heads.",
            {"split": _split_by_reshape},
            {"split": _split_all_by_reshape},
        ),
        Mistake(
            "Attention runs over the heads of one token: swap the axes to "
            "(B, h, N, d) first, so that it runs over the tokens.",
            {
                "split": _split("b n (three h d) -> three b n h d"),
                "merge": _merge("b n h d -> b n (h d)"),
            },
        ),
        Mistake(
            "Attention runs over the batch, so that images see each other: "
            "the batch is the first axis, the tokens are the second.",
            {
                "split": _split("b n (three h d) -> three n h b d"),
                "merge": _merge("n h b d -> b n (h d)"),
            },
        ),
        Mistake(
            "There is one head only: use num_heads.",
            {
                "split": _split("b n (three h d) -> three b 1 n (h d)"),
                "merge": _merge("b 1 n d -> b n d"),
            },
        ),
        Mistake(
            "LayerNorm does not belong here: the encoder block has it.",
            {
                "split": lambda self, x: SPLIT(
                    self, F.layer_norm(x, x.shape[-1:])
                )
            },
            {
                "project": lambda self, x, out: F.layer_norm(
                    self.proj(out), x.shape[-1:]
                )
            },
        ),
        Mistake(
            "The bias of the qkv layer is not used.",
            {"split": _split_without_bias},
        ),
        Mistake(
            "The heads are merged in the wrong order: the result is (h d), "
            "head 0 first.",
            {"merge": _merge("b h n d -> b n (d h)")},
        ),
        Mistake(
            "The heads are merged by a reshape that mixes tokens and heads: "
            "swap the axes to (B, N, h, d) first.",
            {"merge": lambda x: x.reshape(len(x), x.shape[2], -1)},
        ),
        Mistake(
            "The heads are averaged or summed: put them side by side.",
            {"merge": lambda x: x.mean(1).repeat(1, 1, x.shape[1])},
            {"merge": lambda x: x.sum(1).repeat(1, 1, x.shape[1])},
        ),
        Mistake(
            "The output projection proj is missing.",
            {"project": lambda self, x, out: out},
        ),
        Mistake(
            "The weight of proj is transposed: call the layer, or compute "
            "x @ weight.T + bias.",
            {
                "project": lambda self, x, out: (
                    out @ self.proj.weight + self.proj.bias
                )
            },
        ),
        Mistake(
            "The bias of proj is missing.",
            {"project": lambda self, x, out: out @ self.proj.weight.T},
        ),
        Mistake(
            "The input is added to the output: the residual connection belongs "
            "to the encoder block.",
            {"project": lambda self, x, out: x + self.proj(out)},
            {"project": lambda self, x, out: self.proj(x + out)},
        ),
        Mistake(
            "The output goes through one more function: end with proj.",
            {"project": lambda self, x, out: F.relu(self.proj(out))},
            {"project": lambda self, x, out: F.gelu(self.proj(out))},
        ),
        Mistake(
            "The weights are averaged over the heads: return one map for each "
            "head, (B, h, N, N).",
            {"show": lambda weights: weights.mean(1)},
        ),
        SCORES_RETURNED,
        *ATTENTION_MISTAKES,
    )


def _self_attention_case(
    label: str,
    shape: tuple[int, int, int],
    num_heads: int,
    cause: str | None = None,
    *,
    init: dict | None = None,
    **kwargs: object,
) -> Case:
    sizes = {"dim": shape[-1], "num_heads": num_heads} | (init or {})
    return Case(label, (_normal(*shape, seed=5),), cause, kwargs, sizes)


SELF_ATTENTION = ModuleExercise(
    MultiHeadSelfAttention,
    cases=(
        _self_attention_case(
            "one sequence of 5 tokens, one head", (1, 5, 6), 1
        ),
        _self_attention_case("three heads", (1, 5, 6), 3, SEVERAL_HEADS),
        _self_attention_case("two sequences", (2, 5, 6), 1, SEVERAL_SEQUENCES),
        _self_attention_case(
            "qkv_bias=False",
            (1, 5, 6),
            2,
            "qkv_bias=False must leave out the bias of the qkv layer.",
            init={"qkv_bias": False},
        ),
        _self_attention_case(
            "a bias for each pair",
            (2, 5, 6),
            3,
            BIAS,
            bias=_bias(5, 5, hide=False),
        ),
        _self_attention_case(
            "a bias for each head",
            (2, 5, 6),
            3,
            BIAS_PER_HEAD,
            bias=_bias(3, 5, 5, hide=False),
        ),
        _self_attention_case(
            "a bias with -inf",
            (2, 5, 6),
            3,
            BIAS_INFINITE,
            bias=_bias(3, 5, 5),
        ),
        _self_attention_case(
            "return_weights=True",
            (2, 5, 6),
            3,
            "With return_weights=True the result is the pair of the output and "
            "the weights of each head, (B, h, N, N).",
            return_weights=True,
        ),
        _self_attention_case("all axes different", (2, 5, 12), 3),
        _self_attention_case(
            "all axes different, and a bias",
            (2, 5, 12),
            3,
            bias=_bias(2, 3, 5, 5),
        ),
    ),
    wrong_forms=_self_attention_forms,
    errors=SELF_ERRORS,
)

EXERCISES = (ATTENTION, SELF_ATTENTION)
