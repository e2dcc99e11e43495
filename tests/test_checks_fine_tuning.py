"""The checks of chapter 11: solutions and mistakes written by hand."""

from __future__ import annotations

import math
import re
from collections import OrderedDict, defaultdict

import pytest
import torch
from torchvision.models import VisionTransformer as TorchvisionTransformer

from vit_lessons.checks import check, fine_tuning

EXERCISES = {exercise.name: exercise for exercise in fine_tuning.EXERCISES}
NAMES = list(EXERCISES)

# Right solutions, as different as readers are: from_torchvision.

REPLACED = [
    ("encoder.layers.encoder_layer_", "blocks."),
    ("ln_", "norm"),
    ("self_attention.in_proj_", "attn.qkv."),
    ("self_attention.out_proj", "attn.proj"),
    ("mlp.0", "mlp.fc1"),
    ("mlp.3", "mlp.fc2"),
    ("mlp.linear_", "mlp.fc"),
    ("class_token", "cls_token"),
    ("encoder.pos_embedding", "pos_embed"),
    ("conv_proj", "patch_embed.proj"),
    ("encoder.ln", "norm"),
    ("heads.", ""),
]
TIMM = (
    r"cls_token|pos_embed|(patch_embed\.proj|norm|head|blocks\.\d+\."
    r"(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))\.(weight|bias)"
)


def replacing(*changes, without=(), keeps=lambda name: True, put=None):
    """What most readers write; the tests exchange a line of it."""
    pairs = [pair for pair in REPLACED if pair[0] not in without]

    def candidate(state_dict):
        renamed = {}
        for name, tensor in state_dict.items():
            new = name
            for old, other in [*changes, *pairs]:
                new = new.replace(old, other)
            if re.search("temperature|scale", new):
                raise ValueError(f"unknown: {name}")
            if keeps(new):
                renamed[new] = put(new, tensor) if put else tensor
        return renamed

    return candidate


def rename_by_words(state_dict):
    layers = {
        "ln_1": "norm1",
        "ln_2": "norm2",
        "0": "fc1",
        "3": "fc2",
        "linear_1": "fc1",
        "linear_2": "fc2",
        "out_proj": "proj",
    }
    result = OrderedDict()
    for key, value in state_dict.items():
        match key.split("."):
            case ["class_token"]:
                new = "cls_token"
            case ["encoder", "pos_embedding"]:
                new = "pos_embed"
            case ["conv_proj", kind]:
                new = "patch_embed.proj." + kind
            case ["encoder", "ln", kind]:
                new = f"norm.{kind}"
            case ["heads", "head", kind]:
                new = f"head.{kind}"
            case ["encoder", "layers", block, *words]:
                number = int(block.removeprefix("encoder_layer_"))
                if words[0] == "self_attention":
                    words[0] = "attn"
                if words[-1].startswith("in_proj_"):
                    words[-1:] = ["qkv", words[-1][8:]]
                else:
                    words[-2] = layers[words[-2]]
                new = ".".join(["blocks", str(number), *words])
        result[new] = value.clone()
        del new  # an unknown name has none
    return result


def rename_by_table(state_dict):
    table = {"class_token": "cls_token", "encoder.pos_embedding": "pos_embed"}
    for end in ("weight", "bias"):
        table[f"conv_proj.{end}"] = f"patch_embed.proj.{end}"
        table[f"encoder.ln.{end}"] = f"norm.{end}"
        table[f"heads.head.{end}"] = f"head.{end}"
        for i in range(24):
            old, new = f"encoder.layers.encoder_layer_{i}", f"blocks.{i}"
            table[f"{old}.self_attention.in_proj_{end}"] = (
                f"{new}.attn.qkv.{end}"
            )
            for before, after in {
                "ln_1": "norm1",
                "ln_2": "norm2",
                "self_attention.out_proj": "attn.proj",
                "mlp.0": "mlp.fc1",
                "mlp.3": "mlp.fc2",
                "mlp.linear_1": "mlp.fc1",
                "mlp.linear_2": "mlp.fc2",
            }.items():
                table[f"{old}.{before}.{end}"] = f"{new}.{after}.{end}"
    return {table[name]: state_dict[name] for name in reversed(state_dict)}


def rename_and_look(state_dict):
    renamed = replacing()(state_dict)
    for name in renamed:
        if not re.fullmatch(TIMM, name):
            raise ValueError(name)
    return renamed


# learning_rate_groups.


def is_matrix(name, p):
    return p.ndim > 1 and name.endswith(".weight")


def holds(part, name):
    return part == "" or name == part or name.startswith(part + ".")


def grouping(
    *,
    holds=holds,
    choose=lambda parts: max(parts, key=len),
    matrix=is_matrix,
    trains=lambda p: p.requires_grad,
    decay=lambda weight_decay: weight_decay,
    change=lambda group: group,
    covers=True,
    typos=False,
):
    def candidate(model, learning_rates, weight_decay):
        groups, used = [], set()
        for name, p in model.named_parameters():
            parts = [part for part in learning_rates if holds(part, name)]
            used.update(parts)
            if not parts:
                if covers:
                    raise ValueError(f"{name} has no learning rate")
            elif trains(p):
                group = {
                    "params": [p],
                    "lr": learning_rates[choose(parts)],
                    "weight_decay": decay(weight_decay) * matrix(name, p),
                }
                groups.append(change(group))
        if not typos and used != set(learning_rates):
            raise ValueError(f"unknown parts {set(learning_rates) - used}")
        return groups

    return candidate


def groups_from_the_longest_part(model, learning_rates, weight_decay):
    left = dict(model.named_parameters())
    groups = []
    for part in sorted(learning_rates, key=len, reverse=True):
        names = [n for n in left if f".{n}.".startswith(f".{part}.".lstrip())]
        if part == "":
            names = list(left)
        if not names:
            raise ValueError(part)
        own = {name: left.pop(name) for name in names}
        for decayed in (True, False):
            params = tuple(
                p
                for n, p in own.items()
                if p.requires_grad and is_matrix(n, p) is decayed
            )
            rate = torch.tensor(learning_rates[part])
            groups.append(
                {
                    "name": f"{part} {decayed}",
                    "params": params,
                    "lr": rate,
                    "weight_decay": weight_decay if decayed else 0,
                }
            )
    assert not left
    return groups


def groups_by_number(model, learning_rates, weight_decay):
    groups = defaultdict(list)
    used = set()
    for name, p in model.named_parameters():
        words = name.split(".")
        part = None
        for n in range(len(words) + 1):
            if ".".join(words[:n]) in learning_rates:
                part = ".".join(words[:n])
        used.add(part)
        if p.requires_grad:
            groups[learning_rates[part], is_matrix(name, p)].append(p)
    if len(used) < len(learning_rates):
        raise KeyError
    return tuple(
        {"params": ps, "lr": lr, "weight_decay": decayed * weight_decay}
        for (lr, decayed), ps in groups.items()
    )


# layerwise_learning_rates.


def rates_from_the_output(model, learning_rate, decay):
    if decay <= 0 or decay > 1:
        raise ValueError("decay must be a share")
    rates = {"head": learning_rate, "norm": learning_rate}
    for i in reversed(range(len(model.blocks))):
        learning_rate *= decay
        rates[f"blocks.{i}"] = learning_rate
    for name in ("patch_embed", "cls_token", "pos_embed"):
        rates[name] = learning_rate * decay
    return rates


def rates_of_parameters(model, learning_rate, decay, *, blocks=None):
    assert 0 < decay <= 1
    last = len(model.blocks) + 1

    def layer(name):
        if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
            return 0
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return last

    return {
        name: learning_rate * decay ** (last - layer(name))
        for name, _ in model.named_parameters()
    }


def rates_with_a_rest(model, learning_rate, decay):
    depth = len(model.get_submodule("blocks"))
    if not (0 < decay <= 1 and depth):
        raise ValueError
    exponents = torch.arange(depth, 0, -1)
    blocks = (learning_rate * decay**exponents).tolist()
    return {
        "": learning_rate * decay ** (depth + 1),
        **{f"blocks.{i}": rate for i, rate in enumerate(blocks)},
        "norm": learning_rate,
        "head": torch.tensor(learning_rate),
    }


RIGHT = [
    ("from_torchvision", replacing()),
    ("from_torchvision", rename_by_words),
    ("from_torchvision", rename_by_table),
    ("from_torchvision", rename_and_look),
    ("learning_rate_groups", grouping()),
    ("learning_rate_groups", groups_from_the_longest_part),
    ("learning_rate_groups", groups_by_number),
    ("layerwise_learning_rates", rates_from_the_output),
    ("layerwise_learning_rates", rates_of_parameters),
    ("layerwise_learning_rates", rates_with_a_rest),
]


@pytest.mark.parametrize("name", NAMES)
def test_the_package_itself_passes(name):
    result = check(name, EXERCISES[name].reference)
    assert result.passed, result.report
    assert "not run" not in result.report


@pytest.mark.parametrize(("name", "candidate"), RIGHT)
def test_a_right_solution_written_differently_passes(name, candidate):
    result = check(name, candidate)
    assert result.passed, result.report
    assert result.cause is None
    assert "not run" not in result.report


# Mistakes written by hand.


def without_return(candidate):
    def forgetful(*args):
        candidate(*args)

    return forgetful


# from_torchvision.


def swap(one, other):
    return [(one, "#"), (other, one), ("#", other)]


def pops_while_it_loops(state_dict):
    for name in state_dict:
        state_dict[name.replace("class_token", "cls_token")] = state_dict.pop(
            name
        )
    return state_dict


def pops(state_dict):
    renamed = replacing()(state_dict)
    for name in list(state_dict):
        del state_dict[name]
    state_dict.update(renamed)
    return state_dict


def transposes(new, tensor):
    return tensor.T if new.endswith("qkv.weight") else tensor


def doubles_in_place(new, tensor):
    return tensor.mul_(2) if new.startswith("head") else tensor


def queries_alone(new, tensor):
    return tensor[:2] if "qkv" in new else tensor


def first_block_that_fits(state_dict):
    """encoder_layer_1 is found in encoder_layer_11."""
    renamed = {}
    for name, tensor in replacing()(state_dict).items():
        new = name
        for i in range(12):
            if name.startswith(f"blocks.{i}"):
                words = name.split(".")
                new = ".".join(["blocks", str(i), *words[2:]])
                break
        renamed[new] = tensor
    return renamed


def one_digit_matched(state_dict):
    for name in state_dict:
        if "layer_" in name:
            assert re.match(r"encoder\.layers\.encoder_layer_\d\.", name)
    return replacing()(state_dict)


def number_forgotten(state_dict):
    renamed = replacing()(state_dict)
    return {
        re.sub(r"blocks\.\d+", "blocks.0", name): tensor
        for name, tensor in renamed.items()
    }


def numbers_from_one(state_dict):
    return {
        re.sub(r"blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) + 1}", n): x
        for n, x in replacing()(state_dict).items()
    }


def one_block_alone(state_dict):
    assert not any("encoder_layer_1" in name for name in state_dict)
    return replacing()(state_dict)


def linear_is_unknown(state_dict):
    assert not any("linear_" in name for name in state_dict)
    return replacing()(state_dict)


def drops(words):
    """Weights whose names match are left out without a word."""

    def candidate(state_dict):
        known = {
            n: state_dict[n] for n in state_dict if not re.search(words, n)
        }
        return replacing()(known)

    return candidate


def keeps_the_unknown(state_dict):
    renamed = drops("temperature|scale")(state_dict)
    return renamed | {n: x for n, x in state_dict.items() if "temp" in n}


def keeps_both(state_dict):
    return {**state_dict, **replacing()(state_dict)}


def without(word):
    return replacing(keeps=lambda name: word not in name)


NAMES_OF_WEIGHTS = [
    (replacing(*swap("ln_1", "ln_2")), "The norms of a block are exchanged"),
    (replacing(without=["ln_"]), "The norms of a block are exchanged"),
    (replacing(*swap("mlp.0", "mlp.3")), "The layers of an MLP are exchanged"),
    (replacing(("mlp.0", "mlp.1")), "The layers of an MLP are exchanged"),
    (
        replacing(("self_attention.in_proj", "attn.in_proj")),
        "The weights of q, k and v get lost",
    ),
    (
        replacing(("self_attention.in_proj_", "attn.qkv_")),
        "The weights of q, k and v get lost",
    ),
    (
        replacing(without=["self_attention.in_proj_"]),
        "The weights of q, k and v get lost",
    ),
    (without("qkv"), "The weights of q, k and v get lost"),
    (without("qkv.bias"), "The weights of q, k and v get lost"),
    (replacing(("self_attention", "attn")), "The weights of q, k and v"),
    (
        replacing(("self_attention.out_proj", "attn.out_proj")),
        "The output projection gets lost",
    ),
    (without("cls_token"), "The class token gets lost"),
    (replacing(without=["class_token"]), "The class token gets lost"),
    (without("pos_embed"), "The table of positions gets lost"),
    (
        replacing(("encoder.pos_embedding", "pos_embedding")),
        "The table of positions gets lost",
    ),
    (replacing(("conv_proj", "patch_embed")), "The patch embedding gets lost"),
    (replacing(("encoder.ln.", "ln.")), "The norm after the last block"),
    (replacing(("encoder.ln", "fc_norm")), "The norm after the last block"),
    (replacing(without=["heads."]), "The head gets lost"),
    (replacing(("heads", "head")), "The head gets lost"),
    (without("head"), "The head gets lost"),
    (
        replacing(("encoder.layers.encoder_layer_", "layers.")),
        "The blocks have another name",
    ),
    (
        replacing(("encoder.layers.encoder_layer_", "encoder.blocks.")),
        "The blocks have another name",
    ),
    (numbers_from_one, "The blocks have another name"),
    (number_forgotten, "The number of a block gets lost"),
    (one_block_alone, "The number of a block gets lost"),
    (first_block_that_fits, "may have two digits"),
    (one_digit_matched, "may have two digits"),
    (linear_is_unknown, "The names of older weights"),
    (replacing(("linear_", "linear")), "The names of older weights"),
    (drops("temperature|scale"), "raise a ValueError"),
    (drops("temperature"), "raise a ValueError"),
    (drops("scale"), "raise a ValueError"),
    (keeps_the_unknown, "raise a ValueError"),
    (replacing(put=transposes), "A tensor changes"),
    (replacing(put=queries_alone), "A tensor changes"),
    (replacing(put=lambda new, x: x.half()), "A tensor changes"),
    (replacing(put=doubles_in_place), "The state dict that is given changes"),
    (pops, "The state dict that is given changes"),
    (pops_while_it_loops, "The state dict that is given changes"),
    (keeps_both, "A tensor is there twice"),
    (
        replacing(*swap("ln_1", "ln_2"), ("heads.", ""), without=["mlp.0"]),
        "The norms of a block are exchanged",
    ),
    (without_return(replacing()), "The return line is missing"),
    (
        lambda state_dict: list(replacing()(state_dict).items()),
        "a dict from names to tensors, not a list of 20",
    ),
    (
        lambda state_dict: dict.fromkeys(state_dict, "cls_token"),
        "it holds a value of type str for 'class_token'",
    ),
]

# learning_rate_groups.


def of_parts(*parts):
    """The groups of some parts of a Vision Transformer alone."""

    def candidate(model, learning_rates, weight_decay):
        params = [
            p for part in parts for p in model.get_submodule(part).parameters()
        ]
        kept = {id(p) for p in params}
        groups = grouping()(model, learning_rates, weight_decay)
        return [g for g in groups if id(g["params"][0]) in kept]

    return candidate


def of_a_vision_transformer(model, learning_rates, weight_decay):
    model.cls_token.requires_grad_()
    return grouping()(model, learning_rates, weight_decay)


def with_blocks(model, learning_rates, weight_decay):
    len(model.blocks)
    return grouping()(model, learning_rates, weight_decay)


def refusing_unused_rates(choose):
    def candidate(model, learning_rates, weight_decay):
        groups = grouping(choose=choose)(model, learning_rates, weight_decay)
        if {g["lr"] for g in groups} != {*learning_rates.values()}:
            raise ValueError("a rate is not used")
        return groups

    return candidate


def a_group_for_each_part(model, learning_rates, weight_decay):
    groups = []
    for part, rate in learning_rates.items():
        parts = grouping()(model, learning_rates, weight_decay)
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        for name, group in zip(names, parts, strict=True):
            if holds(part, name):
                groups.append(group | {"lr": rate})
    return groups


def pops_the_rest(model, learning_rates, weight_decay):
    groups = grouping()(model, learning_rates, weight_decay)
    learning_rates.pop("", None)
    return groups


def leave_out(key):
    return grouping(
        change=lambda group: {k: group[k] for k in group if k != key}
    )


def pairs(model, learning_rates, weight_decay):
    groups = [p for p in model.named_parameters() if p.requires_grad]
    return [{"params": groups, "lr": 1.0, "weight_decay": 0.0}]


GROUPS = [
    (of_parts("blocks"), "A parameter is in no group"),
    (of_parts("blocks", "head"), "A parameter is in no group"),
    (of_parts("patch_embed", "blocks", "norm"), "A parameter is in no group"),
    (
        grouping(holds=lambda part, n: holds(part, n) and part, typos=True),
        'The part "" does not hold every parameter',
    ),
    (grouping(choose=lambda parts: parts[0]), "the first in learning_rates"),
    (grouping(choose=lambda parts: parts[-1]), "the last in learning_rates"),
    (refusing_unused_rates(lambda parts: parts[0]), "the first in learning"),
    (refusing_unused_rates(lambda parts: parts[-1]), "the last in learning"),
    (grouping(choose=min), "the shortest counts"),
    (
        grouping(choose=lambda parts: next(filter(None, parts), "")),
        "The longest of three names",
    ),
    (
        grouping(choose=lambda parts: next(filter(None, parts[::-1]), "")),
        "The longest of three names",
    ),
    (
        grouping(holds=lambda p, n: p == "" or n.startswith(p + ".")),
        "A part that is a parameter itself",
    ),
    (
        grouping(
            holds=lambda p, n: p == "" or n.startswith(p + "."), typos=True
        ),
        "A part that is a parameter itself",
    ),
    (grouping(holds=lambda p, n: p in n), "A part is looked for anywhere"),
    (
        grouping(holds=lambda p, n: re.search(p, n)),
        "A part is looked for anywhere",
    ),
    (grouping(holds=lambda p, n: n.startswith(p)), "blocks.1 holds blocks.10"),
    (
        grouping(holds=lambda p, n: re.match(p, n) is not None),
        "blocks.1 holds blocks.10",
    ),
    (
        grouping(
            holds=lambda p, n: p.split(".")[0] in ("", n.split(".")[0]),
        ),
        "Only the first word of a name is compared",
    ),
    (grouping(matrix=lambda n, p: True), "Everything is decayed"),
    (grouping(matrix=lambda n, p: False), "Nothing is decayed"),
    (
        grouping(matrix=lambda n, p: "bias" not in n),
        "All names that do not end in bias",
    ),
    (
        grouping(matrix=lambda n, p: n.endswith("weight")),
        "The weights of norms are decayed",
    ),
    (
        grouping(matrix=lambda n, p: p.ndim >= 2),
        "The class token and the table of positions are decayed",
    ),
    (
        grouping(matrix=lambda n, p: is_matrix(n, p) and p.dim() == 2),
        "The weights of convolutions are not decayed",
    ),
    (
        grouping(matrix=lambda n, p: is_matrix(n, p) or n.endswith("bias")),
        "Biases are decayed",
    ),
    (grouping(decay=lambda weight_decay: 0.05), "weight_decay is not used"),
    (grouping(decay=lambda weight_decay: 0.25), "weight_decay is not used"),
    (of_a_vision_transformer, "Right for one model only"),
    (with_blocks, "Right for one model only"),
    (grouping(trains=lambda p: True), "A frozen parameter is in a group"),
    (grouping(covers=False), "A parameter without a rate is accepted"),
    (grouping(typos=True), "A part that holds no parameter is accepted"),
    (a_group_for_each_part, "only the longest of the parts"),
    (leave_out("weight_decay"), "A group has no weight_decay"),
    (leave_out("lr"), "A group has no learning rate"),
    (pops_the_rest, "The learning_rates that are given change"),
    (pairs, "model.named_parameters() gives pairs"),
    (
        lambda model, rates, decay: [
            {"params": p, "lr": 1.0, "weight_decay": decay}
            for name, p in model.parameters()
        ],
        "model.parameters() gives no names",
    ),
    (
        grouping(
            choose=lambda parts: parts[0],
            matrix=lambda n, p: n.endswith("weight"),
        ),
        "There are two mistakes. Of the parts that hold a parameter the first",
    ),
    (without_return(grouping()), "The return line is missing"),
    (
        lambda model, rates, decay: {"params": list(model.parameters())},
        "a list of groups, each a dict",
    ),
    (
        lambda model, rates, decay: list(model.parameters()),
        "one of them is a tensor",
    ),
    (
        grouping(change=lambda g: g | {"params": iter(g["params"])}),
        "params is a generator",
    ),
    (
        grouping(change=lambda g: g | {"lr": "1e-3"}),
        "return lr as one number, not a value of type str",
    ),
]

# layerwise_learning_rates.


def layerwise(
    *,
    token=lambda n: n + 1,
    table=lambda n: n + 1,
    patches=lambda n: n + 1,
    block=lambda i, n: n - i,
    norm=0,
    head=0,
    rate=lambda lr, decay, steps: lr * decay**steps,
    numbers=lambda n: range(n),
    check=lambda decay: 0 < decay <= 1,
    more=(),
    less=(),
):
    """The rates part by part; the tests exchange a line of it."""

    def candidate(model, learning_rate, decay):
        if not check(decay):
            raise ValueError("decay")
        n = len(model.blocks)
        steps = {
            "cls_token": token(n),
            "pos_embed": table(n),
            "patch_embed": patches(n),
            "norm": norm,
            "head": head,
            **dict.fromkeys(more, 0),
        }
        for place, i in enumerate(numbers(n)):
            steps[f"blocks.{i}"] = block(place, n)
        return {
            part: rate(learning_rate, decay, s)
            for part, s in steps.items()
            if part not in less
        }

    return candidate


def from_the_input(model, learning_rate, decay):
    rates, rate = {}, learning_rate
    for name, _ in model.named_parameters():
        part = re.match(r"blocks\.\d+|\w+", name)[0]
        if part.startswith("blocks") and part not in rates:
            rate = rate * decay
        rates[part] = rate
    assert 0 < decay <= 1
    return rates | dict.fromkeys(("norm", "head"), rate * decay)


def without_blocks(model, learning_rate, decay):
    if hasattr(model, "blocks"):
        return layerwise()(model, learning_rate, decay)
    return {"": learning_rate}


def index_is_the_exponent(first, start=None):
    rest = {} if start is None else dict.fromkeys(("token", "table"), start)
    return layerwise(
        block=lambda i, n: i + first,
        **rest,
        **({} if start is None else {"patches": start}),
    )


def all_inputs(steps, **more):
    return layerwise(token=steps, table=steps, patches=steps, **more)


def single_digit(model, learning_rate, decay):
    last = len(model.blocks) + 1
    rates = layerwise()(model, learning_rate, decay)
    for name, _ in model.named_parameters():
        if name.startswith("blocks."):
            layer = int(name[len("blocks.")]) + 1
            rates[name] = learning_rate * decay ** (last - layer)
    for i in range(last - 1):
        del rates[f"blocks.{i}"]
    return rates


RATES = [
    (from_the_input, "The rates fall towards the output"),
    (
        all_inputs(
            lambda n: 0,
            block=lambda i, n: i,
            rate=lambda lr, decay, steps: lr * decay**steps,
        ),
        "The number of a block is the exponent",
    ),
    (
        layerwise(rate=lambda lr, decay, steps: lr / decay**steps),
        "The rates fall towards the output",
    ),
    (index_is_the_exponent(0), "The number of a block is the exponent"),
    (index_is_the_exponent(1), "The number of a block is the exponent"),
    (
        index_is_the_exponent(1, lambda n: 0),
        "The number of a block is the exponent",
    ),
    (
        layerwise(block=lambda i, n: n - i - 1),
        "The last block has the full rate",
    ),
    (
        all_inputs(lambda n: n, block=lambda i, n: n - i - 1),
        "The last block has the full rate",
    ),
    (all_inputs(lambda n: n), "What comes before the first block has the rate"),
    (
        layerwise(token=lambda n: n, table=lambda n: n),
        "What comes before the first block has the rate",
    ),
    (
        layerwise(patches=lambda n: n),
        "What comes before the first block has the rate",
    ),
    (layerwise(norm=1), "What comes after the last block is decayed"),
    (layerwise(head=1), "What comes after the last block is decayed"),
    (layerwise(norm=1, head=1), "What comes after the last block is decayed"),
    (
        all_inputs(lambda n: n + 2, block=lambda i, n: n - i + 1, norm=1),
        "What comes after the last block is decayed",
    ),
    (layerwise(token=lambda n: 0), "The class token or the table of positions"),
    (layerwise(table=lambda n: 0), "The class token or the table of positions"),
    (
        layerwise(token=lambda n: 0, table=lambda n: 0),
        "The class token or the table of positions",
    ),
    (layerwise(patches=lambda n: 0), "The patch embedding has the full rate"),
    (all_inputs(lambda n: 0), "The patch embedding has the full rate"),
    (
        layerwise(rate=lambda lr, decay, steps: lr * (1 - decay) ** steps),
        "The factor is 1 - decay",
    ),
    (layerwise(block=lambda i, n: 1), "All blocks have the same rate"),
    (
        all_inputs(lambda n: 2, block=lambda i, n: 1),
        "All blocks have the same rate",
    ),
    (
        layerwise(rate=lambda lr, decay, steps: lr),
        "All parts have the full rate",
    ),
    (
        layerwise(rate=lambda lr, decay, steps: decay**steps),
        "learning_rate is not used",
    ),
    (
        layerwise(rate=lambda lr, decay, steps: lr * 0.75**steps),
        "decay is not used: it is the factor",
    ),
    (
        layerwise(numbers=lambda n: sorted(map(str, range(n)))),
        "read as words or as single digits",
    ),
    (single_digit, "read as words or as single digits"),
    (layerwise(check=lambda decay: 0 < decay < 1), "decay=1 is refused"),
    (layerwise(check=lambda decay: True), "raise a ValueError"),
    (layerwise(check=lambda decay: decay > 0), "raise a ValueError"),
    (layerwise(check=lambda decay: decay <= 1), "raise a ValueError"),
    (without_blocks, "A model without blocks is accepted"),
    (layerwise(less=["cls_token"]), "A parameter has no rate"),
    (layerwise(less=["norm", "head"]), "A parameter has no rate"),
    (layerwise(more=["dropout"]), "A part has a rate that no parameter takes"),
    (layerwise(more=["blocks"]), "A part has a rate that no parameter takes"),
    (layerwise(more=[""]), "A part has a rate that no parameter takes"),
    (
        layerwise(head=1, token=lambda n: 0),
        "There are two mistakes. What comes after the last block is decayed",
    ),
    (without_return(layerwise()), "The return line is missing"),
    (
        lambda model, lr, decay: [lr * decay**i for i in range(4)],
        "a dict from parts of the model to learning rates, not a list of 4",
    ),
    (
        layerwise(rate=lambda lr, decay, steps: [lr]),
        "return the rate of 'cls_token' as one number",
    ),
]

WRONG = {
    "from_torchvision": NAMES_OF_WEIGHTS,
    "learning_rate_groups": GROUPS,
    "layerwise_learning_rates": RATES,
}


@pytest.mark.parametrize(
    ("name", "candidate", "words"),
    [(name, *case) for name, cases in WRONG.items() for case in cases],
)
def test_a_mistake_written_by_hand_is_named(name, candidate, words):
    result = check(name, candidate)
    assert not result.passed
    assert words in (result.cause or ""), result.report
    assert result.report.endswith(f"Likely mistake: {result.cause}")


@pytest.mark.parametrize("name", NAMES)
def test_each_mistake_that_the_check_knows_is_written_by_hand(name):
    exercise = EXERCISES[name]
    known = {wrong.cause for wrong in exercise.wrong_forms()}
    known |= {case.cause for case in exercise.cases if case.cause}
    known |= {*exercise.causes.values(), *exercise.errors.values()}
    assert not [
        cause
        for cause in known
        if "There are two" not in cause
        and not any(words in cause for _, words in WRONG[name])
    ]


# Nonsense.

NONSENSE = [
    ("from_torchvision", lambda state_dict: {}),
    ("from_torchvision", dict),
    ("learning_rate_groups", grouping(change=lambda g: g | {"lr": 0.123})),
    ("learning_rate_groups", grouping(change=lambda g: g | {"lr": math.nan})),
    ("layerwise_learning_rates", layerwise(rate=lambda lr, d, s: 0.123)),
    ("layerwise_learning_rates", layerwise(rate=lambda lr, d, s: math.nan)),
    ("layerwise_learning_rates", layerwise(rate=lambda lr, d, s: -lr)),
]


@pytest.mark.parametrize(("name", "candidate"), NONSENSE)
def test_nonsense_fails(name, candidate):
    assert not check(name, candidate).passed


# Stubs, and what cannot be run.


def stub_names(state_dict):
    """Give torchvision's weights timm's names."""
    raise NotImplementedError


def stub_groups(model, learning_rates, weight_decay): ...


def stub_rates(model, learning_rate, decay):
    pass


STUBS = dict(zip(NAMES, (stub_names, stub_groups, stub_rates), strict=True))
ARGUMENTS = {
    "from_torchvision": "(state_dict)",
    "learning_rate_groups": "(model, learning_rates, weight_decay)",
    "layerwise_learning_rates": "(model, learning_rate, decay, blocks=None)",
}


@pytest.mark.parametrize("name", NAMES)
def test_an_untouched_stub_is_not_attempted_yet(name):
    result = check(name, STUBS[name])
    assert not result.attempted
    assert not result.passed
    assert result.report.startswith(f"{name}: not attempted yet")


@pytest.mark.parametrize("name", NAMES)
def test_a_candidate_with_other_arguments_is_told_the_right_ones(name):
    result = check(name, lambda one, two: one)
    assert f"Your function must take {ARGUMENTS[name]}" in result.cause


# The report, and what check leaves as it was.


def test_the_report_says_which_weight_has_the_wrong_name():
    assert (
        "encoder.layers.encoder_layer_0.ln_1.weight: expected "
        "blocks.0.norm1.weight, got blocks.0.norm2.weight"
    ) in check("from_torchvision", replacing(*swap("ln_1", "ln_2"))).report


def test_the_report_says_which_parameter_is_never_trained():
    assert (
        "in no group: expected none, got norm.bias, norm.weight, "
        "patch_embed.bias, patch_embed.weight"
    ) in check("learning_rate_groups", of_parts("blocks", "head")).report


def test_the_report_says_which_rate_is_wrong():
    candidate = layerwise(table=lambda n: 0)
    assert "rate of pos_embed: expected 0.3164, got 1" in (
        check("layerwise_learning_rates", candidate).report
    )


def test_the_names_are_those_of_torchvisions_model():
    model = TorchvisionTransformer(2, 1, 2, 1, 2, 2, num_classes=2)
    weights = fine_tuning._weights(2)
    assert model.load_state_dict(weights, strict=True)
    assert len({x.sum().item() for x in weights.values()}) == len(weights)


def test_a_second_call_with_the_same_arguments_must_give_the_same():
    seen = []

    def candidate(state_dict):
        seen.append(0)
        return replacing()(state_dict) if len(seen) == 1 else {}

    cause = check("from_torchvision", candidate).cause
    assert "keeps something from one call to the next" in cause


@pytest.mark.parametrize(("name", "candidate"), RIGHT[1::4])
def test_check_leaves_the_random_state_as_it_was(name, candidate):
    before = torch.get_rng_state()
    check(name, candidate)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, torch.enable_grad]
)
def test_check_answers_the_same_under_the_readers_settings(context):
    with context():
        for name, candidate in RIGHT[::4]:
            assert check(name, candidate).passed
