"""Second exercise of chapter 16, with the mistakes that learners make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vit_lessons.attention import MultiHeadSelfAttention
from vit_lessons.checks.catalogue import Mistake, WrongForm, combine
from vit_lessons.checks.exercise import Case
from vit_lessons.checks.part import (
    DROPOUT_IN_EVALUATION,
    RATIO,
    PartCase,
    normal,
    only_singles,
)
from vit_lessons.checks.patch_merging import (
    EPS,
    SEVERAL_MAPS,
    SwinExercise,
    firsts,
)
from vit_lessons.swin_transformer import SwinBlock
from vit_lessons.swin_windows import (
    WindowAttention,
    pad_to_windows,
    shift_mask,
    window_partition,
    window_reverse,
)

Pair = tuple[int, int]

DROP = (
    "drop_path must drop each branch for some whole images, with a draw of its "
    "own, and multiply what is kept by 1 / (1 - drop_path)."
)
PERSISTENT = (
    "A fixed table is no weight: register the buffer with persistent=False, so "
    "that published weights load."
)
HEADS = "Right for one head only: use num_heads."
QKV_BIAS = "qkv_bias=False must leave out the bias of the qkv layers."


def _amount(shift: Pair, window: Pair, grid: Pair) -> Pair:
    sizes = zip(shift, window, grid, strict=True)
    return tuple(s if m < g else 0 for s, m, g in sizes)


def _all_or_nothing(shift: Pair, window: Pair, grid: Pair) -> Pair:
    return shift if _amount((1, 1), window, grid) == (1, 1) else (0, 0)


def _roll(x: Tensor, shift: Pair, window: Pair) -> Tensor:
    return x.roll(shift, (1, 2))


def _roll_inside(x: Tensor, shift: Pair, window: Pair) -> Tensor:
    """Roll the tokens of each window: none leaves it."""
    m1, m2 = window
    x = x.unflatten(2, (-1, m2)).unflatten(1, (-1, m1))
    return x.roll(shift, (2, 4)).flatten(3, 4).flatten(1, 2)


def attend_by(
    amount: Callable = _amount,
    roll: Callable = _roll,
    roll_back: Callable = _roll,
    mask: Callable = lambda *place: shift_mask(*place)[:, None],
    repeat: Callable = lambda bias, batch: bias.repeat(batch, 1, 1, 1),
    late_padding: bool = False,
    hides_padding: bool = False,
) -> Callable[[WindowAttention, Tensor], Tensor]:
    """WindowAttention.forward, with some steps exchanged."""

    def attend(attn: WindowAttention, x: Tensor) -> Tensor:
        batch, gh, gw, _ = x.shape
        window = attn.window_size
        grid = tuple(pad_to_windows(x, window).shape[1:3])
        shift = amount(attn.shift_size, window, grid)
        bias, minus = attn.position_bias(), [-s for s in shift]
        if late_padding:
            x = pad_to_windows(roll(x, minus, window), window)
        else:
            x = roll(pad_to_windows(x, window), minus, window)
        if any(shift):
            bias = bias + mask(grid, window, shift)
        if hides_padding:
            seen = pad_to_windows(torch.ones(1, gh, gw, 1), window)
            seen = window_partition(_roll(seen, minus, window), window)
            bias = bias + seen.log()[:, None].mT  # -inf where it is padding
        if bias.ndim == 4:
            bias = repeat(bias, batch)
        windows = window_partition(x, window)
        windows = MultiHeadSelfAttention.forward(attn, windows, bias)
        x = window_reverse(windows, window, grid)
        if late_padding:
            return roll_back(x[:, :gh, :gw], shift, window)
        return roll_back(x, shift, window)[:, :gh, :gw]

    return attend


def _inverted(*place: Any) -> Tensor:
    return -shift_mask(*place)[:, None].clamp(min=-100)


def _others(*place: Any) -> Tensor:
    return torch.where(shift_mask(*place)[:, None] == 0, -100.0, 0.0)


def _by(**steps: Any) -> dict[str, Any]:
    return {"attend": attend_by(**steps)}


NO_SHIFT = (
    "The windows do not shift: use shift_size, and roll the map up and to the "
    "left by it."
)
ATTENTION_MISTAKES = (
    Mistake(NO_SHIFT, _by(amount=lambda *sizes: (0, 0))),
    Mistake(
        "The mask is missing: after the roll, tokens of opposite borders stand "
        "in one window and must not see each other.",
        _by(mask=lambda *place: torch.zeros(())),
    ),
    Mistake(
        "The mask is added for each head: there is one for each window, "
        "(nW, 1, M * M, M * M), and all heads share it.",
        _by(mask=lambda *place: shift_mask(*place)),
    ),
    Mistake(
        "The mask has the wrong sign: tokens of different regions must not see "
        "each other, and those of one region must.",
        _by(mask=_inverted),
        _by(mask=_others),
    ),
    Mistake(
        "The masks go to the wrong windows: those of one image follow each "
        "other, so repeat all masks for each image.",
        _by(repeat=lambda bias, batch: bias.repeat_interleave(batch, 0)),
    ),
    Mistake(
        "The shift comes after the partition: roll the whole map first, then "
        "cut it into windows.",
        _by(roll=_roll_inside, roll_back=_roll_inside),
    ),
    Mistake(
        "The map is not rolled back after the attention.",
        _by(roll_back=lambda x, *_: x),
    ),
    Mistake(
        "The map is rolled down and to the right: roll it by -shift_size, and "
        "back by shift_size.",
        _by(
            roll=lambda x, shift, window: x.roll([-s for s in shift], (1, 2)),
            roll_back=lambda x, shift, _: x.roll([-s for s in shift], (1, 2)),
        ),
    ),
    Mistake(
        "The map is padded after the roll: pad first, or the mask does not fit "
        "and tokens of opposite borders see each other.",
        _by(late_padding=True),
    ),
    Mistake(
        "The padding is hidden from the attention: its zeros take part, as in "
        "the paper's code.",
        _by(hides_padding=True),
    ),
    Mistake(
        "The windows shift along an axis that one window covers: there is no "
        "shift along such an axis.",
        _by(amount=lambda shift, window, grid: shift),
    ),
    Mistake(
        "There is no shift at all if one window covers one axis: the shift "
        "along the other axis stays.",
        _by(amount=_all_or_nothing),
    ),
)


def _as_it_is(self: SwinBlock, branch: Tensor) -> Tensor:
    return branch


def _dropped(self: SwinBlock, branch: Tensor) -> Tensor:
    return self.drop_path(branch)


def block_by(
    before: Callable = lambda self, x: self.norm1(x),
    attend: Callable = lambda attn, x: attn(x),
    drop: Callable = _dropped,
    add: Callable = lambda self, x, branch: x + branch,
    between: Callable = lambda self, x, z: self.norm2(z),
    drop_again: Callable = _dropped,
    add_again: Callable = lambda self, x, z, branch: z + branch,
    end: Callable = lambda self, x, z: z,
    swap: bool = False,
) -> Callable[[SwinBlock, Tensor], Tensor]:
    """SwinBlock.forward, with some steps exchanged."""

    def form(self: SwinBlock, x: Tensor) -> Tensor:
        start = x
        if swap:
            x = x + drop_again(self, self.mlp(between(self, x, x)))
        branch = attend(self.attn, before(self, x))
        z = add(self, x, drop(self, branch))
        if swap:
            return z
        branch = drop_again(self, self.mlp(between(self, x, z)))
        return end(self, start, add_again(self, x, z, branch))

    return form


BLOCK_MISTAKES = (
    Mistake(
        "The norm comes after the sum: each branch reads normalized tokens, "
        "and nothing is normalized after the sum.",
        {
            "before": lambda self, x: x,
            "add": lambda self, x, branch: self.norm1(x + branch),
            "between": lambda self, x, z: z,
            "end": lambda self, x, z: self.norm2(z),
        },
    ),
    Mistake(
        "The norm comes after the branch, as in Swin V2: here each branch "
        "reads normalized tokens, and adds its result as it is.",
        {
            "before": lambda self, x: x,
            "add": lambda self, x, branch: x + self.norm1(branch),
            "between": lambda self, x, z: z,
            "add_again": lambda self, x, z, branch: z + self.norm2(branch),
        },
    ),
    Mistake(
        "A norm is missing: norm1 comes before the attention, norm2 before "
        "the MLP.",
        {"before": lambda self, x: x},
        {"between": lambda self, x, z: z},
        {"before": lambda self, x: x, "between": lambda self, x, z: z},
    ),
    Mistake(
        "The same norm is used twice: norm1 comes before the attention, norm2 "
        "before the MLP.",
        {"between": lambda self, x, z: self.norm1(z)},
        {"before": lambda self, x: self.norm2(x)},
    ),
    Mistake(
        "The first residual connection is missing: add the attention to x.",
        {"add": lambda self, x, branch: branch},
    ),
    Mistake(
        "The second residual connection is missing: add the MLP to what it "
        "started from.",
        {"add_again": lambda self, x, z, branch: branch},
    ),
    Mistake(
        "The MLP starts from the input of the block: it reads the sum of x and "
        "the attention.",
        {"between": lambda self, x, z: self.norm2(x)},
    ),
    Mistake(
        "The MLP is added to the input of the block: add it to the sum of x "
        "and the attention.",
        {"add_again": lambda self, x, z, branch: x + branch},
    ),
    Mistake(
        "A branch is added to the normalized tokens: add it to the tokens as "
        "they were before the norm.",
        {"add": lambda self, x, branch: self.norm1(x) + branch},
    ),
    Mistake(
        "The MLP comes before the attention: it comes after.", {"swap": True}
    ),
    Mistake(
        "drop_path is not used: wrap both branches in DropPath.",
        {"drop": _as_it_is, "drop_again": _as_it_is},
    ),
    Mistake(
        "drop_path acts on one branch only: wrap both in DropPath.",
        {"drop": _as_it_is},
        {"drop_again": _as_it_is},
    ),
    Mistake(
        "drop_path acts on the whole block: each branch has its own draw.",
        {
            "drop": _as_it_is,
            "drop_again": _as_it_is,
            "end": lambda self, x, z: x + self.drop_path(z - x),
        },
    ),
    Mistake(
        "drop_path acts on the sum, and drops the tokens too: it acts on the "
        "branch alone.",
        {
            "drop": _as_it_is,
            "drop_again": _as_it_is,
            "end": lambda self, x, z: self.drop_path(z),
        },
        {
            "drop": _as_it_is,
            "add": lambda self, x, branch: self.drop_path(x + branch),
            "drop_again": _as_it_is,
            "add_again": lambda self, x, z, branch: self.drop_path(z + branch),
        },
    ),
)


def _block_forms() -> Iterator[WrongForm]:
    yield from only_singles(combine(block_by, *BLOCK_MISTAKES))
    yield from only_singles(combine(block_by, *ATTENTION_MISTAKES))
    often = (*BLOCK_MISTAKES[2:6], *ATTENTION_MISTAKES[:2])
    pairs = combine(block_by, *firsts(often))
    yield from (w for w in pairs if w.cause.startswith("There are two"))


def _block_case(
    label: str,
    cause: str | None = None,
    *,
    shape: tuple[int, ...] = (1, 4, 4, 6),
    num_heads: int = 1,
    window_size: int | Pair = 2,
    shift_size: int | Pair = 0,
    mode: str = "training",
    std: float = 2.0,
    is_apart: bool = False,
    factors: dict[str, float] | None = None,
    copies: int = 1,
    **optional: Any,
) -> Case:
    init = {
        "dim": shape[-1],
        "num_heads": num_heads,
        "window_size": window_size,
        "shift_size": shift_size,
        **optional,
    }
    x = normal(*shape, std=std).repeat(copies, 1, 1, 1)
    return PartCase(label, (x,), cause, {}, init, mode, is_apart, factors or {})


SHIFTED = (
    "Right without a shift only: roll the map, hide tokens of different "
    "regions from each other, and roll the map back. A mask with the wrong "
    "sign gives NaN."
)
PADDED = (
    "A map that windows do not tile is padded with zeros below and on the "
    "right, after the norm and before the roll, and cropped at the end."
)

ATTENTION_MEANINGS = {
    r"not expected: .*(relative_position_index|attn_mask)": PERSISTENT,
    r"missing: [^;]*relative_position_bias_table": (
        "The position is missing: each attention learns a bias for each head "
        "and each offset between two tokens of a window."
    ),
    r"bias_table .*\((\d+), \d+\), and yours has \(\1, 1\)": (
        "All heads share one bias: each head has its own."
    ),
}

BLOCK = SwinExercise(
    SwinBlock,
    cases=(
        _block_case("one map of 4 x 4 tokens, no shift"),
        *(
            _block_case(
                f"tokens with small numbers{where}",
                EPS,
                std=3e-3,
                is_apart=True,
                factors=factors,
            )
            for where, factors in (
                ("", {}),
                (", no attention", {"attn.proj": 0.0}),
            )
        ),
        _block_case("three heads", HEADS, num_heads=3),
        _block_case("two maps", SEVERAL_MAPS, shape=(2, 4, 4, 6)),
        _block_case("shift_size=1", SHIFTED, shift_size=1),
        _block_case(
            "shift_size=1, two maps",
            SEVERAL_MAPS,
            shift_size=1,
            shape=(2, 4, 4, 6),
        ),
        _block_case(
            "shift_size=1, as many heads as windows",
            HEADS,
            shape=(1, 4, 4, 8),
            num_heads=4,
            shift_size=1,
        ),
        _block_case(
            "a map of 4 x 6",
            "Right for square maps only: take height and width from x.",
            shape=(1, 4, 6, 6),
            shift_size=1,
        ),
        _block_case(
            "a window of (3, 2), shift_size=(2, 1)",
            "Right for square windows only: window_size and shift_size are "
            "an int, or rows and columns.",
            shape=(1, 6, 4, 6),
            window_size=(3, 2),
            shift_size=(2, 1),
        ),
        _block_case(
            "a map that windows do not tile", PADDED, shape=(1, 5, 4, 6)
        ),
        _block_case(
            "such a map, and a shift", PADDED, shape=(1, 5, 7, 6), shift_size=1
        ),
        _block_case(
            "one window covers the map along one axis",
            "Along an axis that one window covers there is no shift; along "
            "the other one it stays.",
            shape=(1, 4, 6, 6),
            window_size=(4, 3),
            shift_size=(2, 1),
        ),
        _block_case("mlp_ratio=2.5", RATIO, mlp_ratio=2.5),
        _block_case("qkv_bias=False", QKV_BIAS, qkv_bias=False),
        _block_case(
            "drop_path=0.5 in evaluation",
            DROPOUT_IN_EVALUATION,
            mode="evaluation",
            drop_path=0.5,
        ),
        _block_case(
            "drop_path=0.5 in training", DROP, drop_path=0.5, copies=100
        ),
        _block_case(
            "all axes different",
            shape=(2, 5, 7, 12),
            num_heads=3,
            window_size=(2, 3),
            shift_size=1,
        ),
    ),
    wrong_forms=_block_forms,
    meanings=ATTENTION_MEANINGS
    | {
        r"missing: [^;]*norm2\.weight": (
            "Each branch has a norm of its own: norm1 and norm2."
        ),
    },
)

EXERCISES = (BLOCK,)
