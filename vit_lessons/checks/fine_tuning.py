"""Exercises of chapter 11, with the mistakes that learners make."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionTransformer

from vit_lessons.checks.candidate import Refusal, kind
from vit_lessons.checks.catalogue import Mistake, WrongForm, combine
from vit_lessons.checks.exercise import Case
from vit_lessons.checks.observe import Facts, ObservedExercise, number
from vit_lessons.checks.part import normal
from vit_lessons.checks.training import FROZEN, PARAMETER_GROUPS
from vit_lessons.fine_tuning import (
    from_torchvision,
    is_part_of,
    layerwise_learning_rates,
    learning_rate_groups,
)
from vit_lessons.inductive_bias import SmallCNN
from vit_lessons.vision_transformer import VisionTransformer


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


# from_torchvision


@functools.cache
def _shapes(depth: int) -> dict[str, torch.Size]:
    """Of torchvision's weights; with an MLP as wide as the tokens."""
    with torch.device("meta"):  # nothing is drawn
        model = TorchvisionTransformer(2, 1, depth, 1, 2, 2, num_classes=2)
    return {name: x.shape for name, x in model.state_dict().items()}


def _weights(
    depth: int, rename: Callable[[str], str] = str, also: str | None = None
) -> dict[str, Tensor]:
    """Random weights, no two of them the same."""
    shapes = {rename(n): shape for n, shape in _shapes(depth).items()}
    if also:
        shapes[also] = torch.Size([2])
    return {n: normal(*shapes[n], seed=i) for i, n in enumerate(shapes)}


def _old(name: str) -> str:
    """Before torchvision 0.14."""
    return name.replace("mlp.0", "mlp.linear_1").replace(
        "mlp.3", "mlp.linear_2"
    )


def _numbers(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """By name, what makes a tensor equal to another one."""
    return {
        name: (x.dtype, x.shape, *x.flatten().tolist())
        for name, x in state_dict.items()
    }


def _observe_names(
    function: Callable[..., Any], make: Callable[[], dict[str, Tensor]]
) -> Facts | None:
    given = make()
    renamed = function(given)
    if renamed is None:
        return None
    if not isinstance(renamed, Mapping):
        raise Refusal(
            "Your code must return a dict from names to tensors, not "
            f"{kind(renamed)}."
        )
    for name, tensor in renamed.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise Refusal(
                "Your code must return a dict from names to tensors, and it "
                f"holds {kind(tensor)} for {name!r}."
            )
    before = _numbers(make())
    names: dict[str, list[str]] = {name: [] for name in before}
    changed = []
    source_of = {numbers: name for name, numbers in before.items()}
    for name, numbers in _numbers(renamed).items():
        source = source_of.get(numbers)
        (names[source] if source else changed).append(name)
    # Where most of the weights of a block are; the last block first.
    starts: dict[str, Counter[str]] = {}
    for source in reversed(before):
        if block := re.search(r"encoder_layer_\d+", source):
            counter = starts.setdefault(block[0], Counter())
            counter.update(".".join(n.split(".")[:2]) for n in names[source])
    return {
        "the input": "the same" if _numbers(given) == before else "changed",
        "with other numbers": _join(changed),
        "twice": _join(n for n in names if len(names[n]) > 1),
        **{b: _join(n for n, _ in starts[b].most_common(1)) for b in starts},
        **{source: _join(names[source]) for source in names},
    }


INPUT_CHANGED = (
    "The state dict that is given changes: put the tensors, as they are, into "
    "a new dict."
)
OTHER_NUMBERS = (
    "A tensor changes: only names do, both libraries store a tensor in the "
    "same way."
)
KEPT_TOO = (
    "A tensor is there twice, with its old name too: put only the new name "
    "into the new dict."
)
BLOCKS = (
    "The blocks have another name: encoder.layers.encoder_layer_0 becomes "
    "blocks.0."
)
NUMBER_LOST = (
    "The number of a block gets lost: encoder_layer_1 becomes blocks.1."
)
ONE_DIGIT = (
    "The number of a block may have two digits: encoder_layer_1 is the start "
    "of encoder_layer_11, too, so read \\d+ up to the dot."
)
OLD_NAMES = (
    "The names of older weights are not known: mlp.linear_1 is what mlp.0 is "
    "now, and mlp.linear_2 what mlp.3 is."
)
UNKNOWN_NAME = (
    "A name that is not one of torchvision's is accepted: raise a ValueError, "
    "or a weight gets lost and nobody sees it."
)
#: Words in torchvision's name of a weight, and the mistake if it is renamed
#: wrongly; then a wrong form that does so, by what it makes of timm's names.
RENAMED: dict[str, tuple[str, tuple[str, str]]] = {
    "class_token": (
        "The class token gets lost or has another name: class_token becomes "
        "cls_token.",
        ("cls_token", "class_token"),
    ),
    "pos_embedding": (
        "The table of positions gets lost or has another name: "
        "encoder.pos_embedding becomes pos_embed.",
        ("pos_embed", "pos_embedding"),
    ),
    "conv_proj": (
        "The patch embedding gets lost or has another name: conv_proj becomes "
        "patch_embed.proj.",
        ("patch_embed", "conv_proj"),
    ),
    "ln_": (
        "The norms of a block are exchanged or have other names: ln_1 becomes "
        "norm1, and ln_2 norm2.",
        ("norm(?=[12])", "ln_"),
    ),
    "in_proj": (
        "The weights of q, k and v get lost or have another name: "
        "self_attention.in_proj_weight becomes attn.qkv.weight, with a dot, "
        "and so does the bias.",
        ("qkv.", "in_proj_"),
    ),
    "out_proj": (
        "The output projection gets lost or has another name: "
        "self_attention.out_proj becomes attn.proj.",
        ("attn.proj", "attn.out_proj"),
    ),
    "mlp": (
        "The layers of an MLP are exchanged or have other names: mlp.0 becomes "
        "mlp.fc1, and mlp.3 mlp.fc2.",
        (r"fc(\d)", r"\1"),
    ),
    "encoder.ln": (
        "The norm after the last block gets lost or has another name: "
        "encoder.ln becomes norm.",
        (r"^norm\.", "ln."),
    ),
    "heads": (
        "The head gets lost or has another name: heads.head becomes head.",
        ("^head", "heads.head"),
    ),
}


def _cause_of(source: str) -> str:
    """The mistake if a weight of a first block is renamed wrongly."""
    return next(RENAMED[words][0] for words in RENAMED if words in source)


def _renaming(pattern: str, new: str) -> Callable[..., dict[str, Tensor]]:
    """from_torchvision, then another name."""

    def form(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        renamed = from_torchvision(state_dict)
        return {re.sub(pattern, new, n): x for n, x in renamed.items()}

    return form


def _name_forms() -> Iterator[WrongForm]:
    for cause, change in (
        *RENAMED.values(),
        (BLOCKS, ("blocks", "encoder.layers")),
        (NUMBER_LOST, (r"blocks\.\d+", "blocks.0")),
        (ONE_DIGIT, (r"(blocks\.\d)\d", r"\1")),
    ):
        yield WrongForm(cause, _renaming(*change))


FROM_TORCHVISION = ObservedExercise(
    from_torchvision,
    cases=(
        Case("one block", (functools.partial(_weights, 1),)),
        Case("two blocks", (functools.partial(_weights, 2),), NUMBER_LOST),
        Case("twelve blocks", (functools.partial(_weights, 12),), ONE_DIGIT),
        Case(
            "the names of older weights",
            (functools.partial(_weights, 1, _old),),
            OLD_NAMES,
        ),
        Case(
            "a name that is not torchvision's",
            (functools.partial(_weights, 1, also="temperature"),),
            UNKNOWN_NAME,
        ),
        Case(
            "such a name in a block",
            (
                functools.partial(
                    _weights, 1, also="encoder.layers.encoder_layer_0.scale"
                ),
            ),
            UNKNOWN_NAME,
        ),
    ),
    wrong_forms=_name_forms,
    errors={"during iteration": INPUT_CHANGED},
    observe=_observe_names,
    causes={
        "the input": INPUT_CHANGED,
        "with other numbers": OTHER_NUMBERS,
        "twice": KEPT_TOO,
        "encoder_layer_0": BLOCKS,
        **{source: _cause_of(source) for source in _shapes(1)},
    },
)

# learning_rate_groups


def _vit(depth: int = 1, frozen: str | None = None) -> nn.Module:
    size = {"num_classes": 2, "embed_dim": 2, "num_heads": 1, "mlp_ratio": 1}
    model = VisionTransformer(4, 2, depth=depth, **size)
    if frozen:
        model.get_submodule(frozen).requires_grad_(False)
    return model


def _eleven_blocks() -> nn.Module:
    """Each is one linear layer: the names of the blocks are what counts."""
    model = _vit()
    model.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(11))
    return model


def _layers() -> nn.Module:
    """A model that has no parameter of its own, as cls_token is one."""
    model = nn.Module()
    model.patch_embed = nn.Conv2d(1, 3, 2)
    model.blocks = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.norm = nn.LayerNorm(2)
    model.head = nn.Linear(2, 2)
    return model


def _cnn() -> nn.Module:
    return SmallCNN(1, 2, widths=(2, 2))


def _observe_groups(
    function: Callable[..., Any],
    make: Callable[[], nn.Module],
    learning_rates: dict[str, float],
    weight_decay: float,
) -> Facts | None:
    model, given = make(), dict(learning_rates)
    groups = function(model, given, weight_decay)
    facts = PARAMETER_GROUPS.observe(
        lambda *args: groups, lambda: model, weight_decay
    )
    if facts is None:
        return None
    names = {p: name for name, p in model.named_parameters()}
    rates: dict[str, float | None] = dict.fromkeys(names.values())
    for group in groups:
        params, rate = group["params"], group.get("lr")
        if "lr" in group:
            rate = number("lr", rate)
        for parameter in [params] if isinstance(params, Tensor) else params:
            rates[names[parameter]] = rate
    trainable = [n for p, n in names.items() if p.requires_grad]
    return facts | {
        "learning_rates": "the same" if given == learning_rates else "changed",
        "in a group without lr": _join(
            n for n in trainable if rates[n] is None
        ),
        **{f"rate of {n}": rates[n] for n in trainable},
    }


def _groups(
    holds: Callable[[str, str], bool] = lambda part, name: is_part_of(
        name, [part]
    ),
    choose: Callable[[list[str]], str] = lambda parts: max(parts, key=len),
    is_decayed: Callable[[str, nn.Parameter], bool] = lambda n, p: (
        n.endswith("weight") and p.ndim > 1
    ),
    decay: Callable[[float], float] = lambda weight_decay: weight_decay,
) -> Callable[..., list[dict[str, Any]]]:
    """learning_rate_groups, with some steps exchanged."""

    def form(
        model: nn.Module, learning_rates: dict[str, float], weight_decay: float
    ) -> list[dict[str, Any]]:
        groups = []
        for name, parameter in model.named_parameters():
            parts = [part for part in learning_rates if holds(part, name)]
            if parameter.requires_grad:
                is_matrix = is_decayed(name, parameter)
                groups.append(
                    {
                        "params": [parameter],
                        "lr": learning_rates[choose(parts)],
                        "weight_decay": decay(weight_decay) * is_matrix,
                    }
                )
        return groups

    return form


EVERYTHING = (
    'The part "" does not hold every parameter: no name begins with "" and a '
    "dot, so ask for it, too."
)
FIRST = (
    "Of the parts that hold a parameter the first in learning_rates counts: "
    "the longest name does, max(parts, key=len)."
)
LAST = (
    "Of the parts that hold a parameter the last in learning_rates counts: "
    "the longest name does, max(parts, key=len)."
)
OWN_NAME = (
    "A part that is a parameter itself, as cls_token is, holds nothing: "
    "compare the whole name, too."
)
ANYWHERE = (
    "A part is looked for anywhere in a name: the name must begin with it."
)
DOT = (
    "blocks.1 holds blocks.10, too: compare up to a dot, "
    'name.startswith(part + ".").'
)
DECAY_UNUSED = "weight_decay is not used: it is the decay of the matrices."
ANY_MODEL = (
    "Right for one model only: go through model.named_parameters(), not "
    "through parts that a model may not have."
)


def _group_forms() -> Iterator[WrongForm]:
    return combine(
        _groups,
        Mistake(FIRST, {"choose": lambda parts: parts[0]}),
        Mistake(LAST, {"choose": lambda parts: parts[-1]}),
        Mistake(
            "Of the parts that hold a parameter the shortest counts: the "
            "longest does, max(parts, key=len).",
            {"choose": lambda parts: min(parts, key=len)},
        ),
        Mistake(
            OWN_NAME,
            {"holds": lambda p, n: not p or n.startswith(f"{p}.")},
        ),
        Mistake(ANYWHERE, {"holds": lambda p, n: p in n}),
        Mistake(DOT, {"holds": lambda p, n: n.startswith(p)}),
        Mistake(
            "Only the first word of a name is compared: a part may have more, "
            "as blocks.1 does.",
            {"holds": lambda p, n: p.split(".")[0] in ("", n.split(".")[0])},
        ),
        Mistake(
            "Everything is decayed: biases, norms, the class token and the "
            "table of positions have weight_decay 0.",
            {"is_decayed": lambda n, p: True},
        ),
        Mistake(
            "Nothing is decayed: matrices have weight_decay.",
            {"is_decayed": lambda n, p: False},
        ),
        Mistake(
            "All names that do not end in bias are decayed: norms, the class "
            "token and the table of positions must not be.",
            {"is_decayed": lambda n, p: not n.endswith("bias")},
        ),
        Mistake(
            "The weights of norms are decayed: they have one axis, and "
            "matrices have two or more.",
            {"is_decayed": lambda n, p: n.endswith("weight")},
        ),
        Mistake(
            "The class token and the table of positions are decayed: they "
            "have two or more axes, but their names do not end in weight.",
            {"is_decayed": lambda n, p: p.ndim > 1},
        ),
        Mistake(
            "The weights of convolutions are not decayed: they have four "
            "axes, so ask for more than one.",
            {"is_decayed": lambda n, p: n.endswith("weight") and p.ndim == 2},
        ),
        Mistake(
            "Biases are decayed: they have one axis, and matrices have two or "
            "more.",
            {
                "is_decayed": lambda n, p: (
                    n.endswith("bias") or (n.endswith("weight") and p.ndim > 1)
                )
            },
        ),
        Mistake(
            DECAY_UNUSED,
            *(
                {"decay": functools.partial(_constant, constant)}
                for constant in (0.1, 0.05, 0.01)
            ),
        ),
    )


def _constant(constant: float, weight_decay: float) -> float:
    return constant


def _group_case(
    label: str,
    learning_rates: dict[str, float],
    cause: str | None = None,
    *,
    model: Callable[[], nn.Module] = _vit,
    weight_decay: float = 0.25,
) -> Case:
    return Case(label, (model, learning_rates, weight_decay), cause)


NO_RATE = (
    "A parameter without a rate is accepted: raise a ValueError, it would "
    "never be trained."
)
TYPO = (
    "A part that holds no parameter is accepted: raise a ValueError, its name "
    "is misspelt."
)

LEARNING_RATE_GROUPS = ObservedExercise(
    learning_rate_groups,
    cases=(
        _group_case(
            "a rate for each part",
            {"patch_embed": 0.25, "blocks": 0.5, "norm": 0.75, "head": 1.0},
            model=_layers,
        ),
        _group_case("one rate for all", {"": 1.0}, EVERYTHING),
        _group_case("a rate for the head", {"": 0.5, "head": 1.0}, FIRST),
        _group_case("the head first", {"head": 1.0, "": 0.5}, LAST),
        _group_case("a parameter", {"": 0.5, "cls_token": 1.0}, OWN_NAME),
        _group_case("the last norm", {"": 0.5, "norm": 1.0}, ANYWHERE),
        _group_case(
            "blocks.1 of eleven",
            {"": 0.5, "blocks.1": 1.0},
            DOT,
            model=_eleven_blocks,
        ),
        _group_case(
            "a part in a part of a part",
            {"blocks": 0.5, "blocks.0.attn": 1.0, "blocks.0": 0.75, "": 0.25},
            "The longest of three names that hold a parameter counts: "
            "max(parts, key=len).",
            model=functools.partial(_vit, 2),
        ),
        _group_case(
            "a convolutional network",
            {"features": 0.5, "head": 1.0},
            ANY_MODEL,
            model=_cnn,
        ),
        _group_case(
            "another weight_decay",
            {"": 1.0},
            DECAY_UNUSED,
            weight_decay=0.125,
        ),
        _group_case(
            "a frozen patch embedding",
            {"": 0.5, "head": 1.0},
            FROZEN,
            model=functools.partial(_vit, frozen="patch_embed"),
        ),
        _group_case("parameters without a rate", {"blocks": 1.0}, NO_RATE),
        _group_case("a misspelt part", {"": 0.5, "haed": 1.0}, TYPO),
    ),
    wrong_forms=_group_forms,
    errors={
        **PARAMETER_GROUPS.errors,
        "'Module' object has no attribute": ANY_MODEL,
    },
    observe=_observe_groups,
    causes={
        "in no group": (
            "A parameter is in no group, so that it is never trained: blocks "
            "and head are not the whole model. Go through "
            "model.named_parameters()."
        ),
        "in a group twice": (
            "A parameter is there twice: only the longest of the parts that "
            "hold it counts."
        ),
        "frozen, but in a group": FROZEN,
        "in a group without weight_decay": (
            "A group has no weight_decay: AdamW then takes its own default, "
            '0.01. Give each group its "weight_decay".'
        ),
        "learning_rates": (
            "The learning_rates that are given change: leave the dict as it is."
        ),
        "in a group without lr": (
            "A group has no learning rate: AdamW then takes its own default, "
            '0.001. Give each group its "lr".'
        ),
    },
)

# layerwise_learning_rates, whose keyword blocks a reader may leave out: no
# case has it.


def _observe_rates(
    function: Callable[..., Any],
    make: Callable[[], nn.Module],
    learning_rate: float,
    decay: float,
) -> Facts | None:
    model = make()
    rates = function(model, learning_rate, decay)
    if rates is None:
        return None
    if not isinstance(rates, Mapping):
        raise Refusal(
            "Your code must return a dict from parts of the model to learning "
            f"rates, not {kind(rates)}."
        )
    rates = {p: number(f"the rate of {p!r}", rates[p]) for p in rates}
    names = [name for name, _ in model.named_parameters()]
    part_of = {
        name: max(parts, key=len)
        for name in names
        if (parts := [part for part in rates if is_part_of(name, [part])])
    }
    return {
        "without a rate": _join(n for n in names if n not in part_of),
        "of no parameter": _join(
            repr(part) for part in rates if part not in part_of.values()
        ),
        **{
            f"rate of {n}": rates[part_of[n]] if n in part_of else None
            for n in names
        },
    }


def _first(depth: int) -> int:
    """Blocks and one more: the steps from the head to the input."""
    return depth + 1


def _none(depth: int) -> int:
    return 0


def _layerwise(
    tokens: Callable[[int], int] = _first,
    positions: Callable[[int], int] = _first,
    patches: Callable[[int], int] = _first,
    block: Callable[[int, int], int] = lambda i, depth: depth - i,
    norm: Callable[[int], int] = _none,
    head: Callable[[int], int] = _none,
    factor: Callable[[float], float] = lambda decay: decay,
) -> Callable[..., dict[str, float]]:
    """layerwise_learning_rates: how often each part is decayed."""

    def form(
        model: nn.Module, learning_rate: float, decay: float
    ) -> dict[str, float]:
        depth = len(model.blocks)
        steps = {
            "cls_token": tokens(depth),
            "pos_embed": positions(depth),
            "patch_embed": patches(depth),
            **{f"blocks.{i}": block(i, depth) for i in range(depth)},
            "norm": norm(depth),
            "head": head(depth),
        }
        return {p: learning_rate * factor(decay) ** n for p, n in steps.items()}

    return form


def _input(steps: Callable[[int], int]) -> dict[str, Callable[[int], int]]:
    """The parts before the first block, all decayed as often."""
    return dict.fromkeys(("tokens", "positions", "patches"), steps)


def _output(steps: Callable[[int], int]) -> dict[str, Callable[[int], int]]:
    return dict.fromkeys(("norm", "head"), steps)


AS_WORDS = (
    "The numbers of blocks are read as words or as single digits: blocks.10 "
    "comes after blocks.9."
)
ONE_IS_REFUSED = "decay=1 is refused: all parts then have the full rate."
DECAY_RANGE = (
    "A decay that is not in 0 < decay <= 1 is accepted: raise a ValueError."
)
NO_BLOCKS = "A model without blocks is accepted: raise a ValueError."


def _rate_forms() -> Iterator[WrongForm]:
    one_more = {"block": lambda i, depth: depth - i + 1}
    return combine(
        _layerwise,
        Mistake(
            "The rates fall towards the output: the head has the full rate, "
            "and the input the smallest one.",
            {
                **_input(_none),
                "block": lambda i, depth: i + 1,
                **_output(_first),
            },
            {
                **_input(_none),
                "block": lambda i, depth: i,
                **_output(lambda depth: depth),
            },
            {"factor": lambda decay: 1 / decay},
        ),
        Mistake(
            "The number of a block is the exponent: it is the distance from "
            "the output, 1 for the last block.",
            {"block": lambda i, depth: i},
            {"block": lambda i, depth: i + 1},
            {"block": lambda i, depth: i, **_input(_none)},
            {"block": lambda i, depth: i + 1, **_input(_none)},
        ),
        Mistake(
            "The last block has the full rate: it has decay times that, and "
            "each one before it decay times as much again.",
            {"block": lambda i, depth: depth - 1 - i},
            {
                "block": lambda i, depth: depth - 1 - i,
                **_input(lambda depth: depth),
            },
        ),
        Mistake(
            "What comes before the first block has the rate of that block: it "
            "has decay times as much.",
            _input(lambda depth: depth),
            {"tokens": lambda depth: depth, "positions": lambda depth: depth},
            {"patches": lambda depth: depth},
        ),
        Mistake(
            "What comes after the last block is decayed, too: the last norm "
            "and the head have the full rate.",
            {"norm": lambda depth: 1},
            {"head": lambda depth: 1},
            _output(lambda depth: 1),
            *(
                one_more | _input(lambda depth: depth + 2) | last
                for last in (
                    {"norm": lambda depth: 1},
                    _output(lambda depth: 1),
                )
            ),
        ),
        Mistake(
            "The class token or the table of positions has the full rate: "
            "they come before the first block, as the patch embedding does.",
            {"tokens": _none},
            {"positions": _none},
            {"tokens": _none, "positions": _none},
        ),
        Mistake(
            "The patch embedding has the full rate: it comes before the first "
            "block and has the smallest rate.",
            {"patches": _none},
            _input(_none),
        ),
        Mistake(
            "The factor is 1 - decay: from a block to the one before it the "
            "rate is multiplied by decay itself.",
            {"factor": lambda decay: 1 - decay},
        ),
        Mistake(
            "All blocks have the same rate: each block has decay times that of "
            "the next one.",
            {"block": lambda i, depth: 1},
            {"block": lambda i, depth: 1, **_input(lambda depth: 2)},
        ),
        Mistake(
            "All parts have the full rate: decay is not used.",
            {"factor": lambda decay: 1.0},
        ),
    )


def _rate_case(
    label: str,
    cause: str | None = None,
    *,
    depth: int = 3,
    decay: float = 0.75,
    learning_rate: float = 1.0,
    model: Callable[[], nn.Module] | None = None,
) -> Case:
    model = model or functools.partial(_vit, depth)
    return Case(label, (model, learning_rate, decay), cause)


LAYERWISE_LEARNING_RATES = ObservedExercise(
    layerwise_learning_rates,
    cases=(
        _rate_case("three blocks"),
        _rate_case(
            "another learning rate",
            "learning_rate is not used: it is the full rate, that of the head.",
            depth=1,
            learning_rate=0.5,
        ),
        _rate_case(
            "another decay",
            "decay is not used: it is the factor from a block to the one "
            "before it.",
            depth=1,
            decay=0.875,
        ),
        _rate_case(
            "eleven blocks", AS_WORDS, model=_eleven_blocks, decay=0.875
        ),
        _rate_case("decay=1", ONE_IS_REFUSED, depth=1, decay=1.0),
        _rate_case("decay=0", DECAY_RANGE, depth=1, decay=0.0),
        _rate_case("decay=1.25", DECAY_RANGE, depth=1, decay=1.25),
        _rate_case("a model without blocks", NO_BLOCKS, model=_cnn),
    ),
    wrong_forms=_rate_forms,
    observe=_observe_rates,
    causes={
        "without a rate": (
            "A parameter has no rate: the class token, the table of positions "
            "and the patch embedding need one, and the last norm and the head."
        ),
        "of no parameter": (
            "A part has a rate that no parameter takes: learning_rate_groups "
            "refuses it. Name parts as the model does, and none in vain."
        ),
    },
)

EXERCISES = (FROM_TORCHVISION, LEARNING_RATE_GROUPS, LAYERWISE_LEARNING_RATES)
