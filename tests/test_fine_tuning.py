"""Chapter 11."""

import copy
import functools
import math
import re

import pytest
import timm
import timm.optim
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import random, randomize
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn
from torchvision.models.vision_transformer import ConvStemConfig

from vit_lessons import (
    HybridVisionTransformer,
    SmallCNN,
    VisionTransformer,
    create_model,
    find_faults,
    fit,
    fit_pos_embed,
    from_torchvision,
    is_part_of,
    layerwise_learning_rates,
    learning_rate_groups,
    load_pretrained,
    parameter_groups,
    resize_pos_embed,
)
from vit_lessons.weights import LoadReport

SIZES = {
    "img_size": (16, 24),
    "patch_size": 8,
    "num_classes": 5,
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 3,
}
FIELDS = ("loaded", "resized", "replaced", "missing", "unexpected")


def redraw(model, seed=0):
    """Random parameters, and random statistics of batch norms."""
    randomize(model, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_buffers():
        if name.endswith("running_mean"):
            value.normal_(generator=generator)
        if name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
    return model


@functools.cache
def made(create, *args, seed, **options):
    """A model that is made once. Change copies of it only."""
    return redraw(create(*args, **{**SIZES, **options}), seed)


def ours(seed=0, cls=VisionTransformer, **options):
    return copy.deepcopy(made(cls, seed=seed, **options))


def of_timm(seed=1, name="vit_tiny_patch16_224", **options):
    theirs = made(timm.create_model, name, seed=seed, **options)
    return copy.deepcopy(theirs)


def bits(model):
    return {n: t.clone() for n, t in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n])
        for n in one
    )


def equal_logits(one, other):
    images = random(2, one.in_chans, *one.img_size)
    with torch.no_grad():
        a, b = one(images), other(images)
    assert a.std() > 0.05
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def refused(model, source, said, **options):
    """The error says it, and the model stays as it was, bit for bit."""
    before = bits(model)
    with pytest.raises(ValueError, match=said):
        load_pretrained(model, source, **options)
    assert same(bits(model), before)


@functools.cache
def on_meta(create, *args, **kwargs):
    """A model without numbers, made once. No test changes it."""
    with torch.device("meta"):
        return create(*args, **kwargs)


# The names of torchvision.

STEM = (2, 5, 9)


def of_torchvision(patch_size=8, stem=False, seed=2, **options):
    size = {
        "image_size": 16,
        "num_layers": 2,
        "num_heads": 3,
        "hidden_dim": 12,
        "mlp_dim": 48,
        "num_classes": 5,
    } | options
    configs = [ConvStemConfig(width, 3, 2) for width in STEM] if stem else None
    model = torchvision.models.VisionTransformer(
        patch_size=patch_size, conv_stem_configs=configs, **size
    )
    return redraw(model, seed)


VARIANTS = {
    "small": {},
    "one block": {"num_layers": 1},
    "eleven blocks": {"num_layers": 11},
    "wide": {"hidden_dim": 16, "mlp_dim": 24, "num_heads": 4},
    "small patches": {"patch_size": 4, "image_size": 12, "num_classes": 2},
    "convolutional stem": {"stem": True},
}


def like(variant):
    """The model of this course of the same size."""
    options = {"patch_size": 8, "image_size": 16, **variant}
    dim = options.get("hidden_dim", 12)
    stem = options.pop("stem", False)
    return ours(
        cls=HybridVisionTransformer if stem else VisionTransformer,
        img_size=options["image_size"],
        patch_size=options["patch_size"],
        num_classes=options.get("num_classes", 5),
        embed_dim=dim,
        depth=options.get("num_layers", 2),
        num_heads=options.get("num_heads", 3),
        mlp_ratio=options.get("mlp_dim", 48) / dim,
        **({"stem_widths": STEM} if stem else {}),
    )


def with_old_names(state):
    """linear_1 and linear_2, as in the weights that torchvision publishes."""
    old = {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."}
    return {
        re.sub(r"mlp\.[03]\.", lambda m: old[m[0]], n): t
        for n, t in state.items()
    }


@pytest.mark.parametrize("names", [dict, with_old_names])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_renamed_weights_of_torchvision_give_the_same_logits(variant, names):
    theirs, model = of_torchvision(**variant), like(variant)
    state = names(theirs.state_dict())
    renamed = from_torchvision(state)
    assert list(renamed) != list(state)
    for (_, tensor), new in zip(state.items(), renamed.values(), strict=True):
        assert tensor is new
    model.load_state_dict(renamed, strict=True)
    equal_logits(model, theirs)


@pytest.mark.parametrize("names", [dict, with_old_names])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_weights_of_torchvision_are_renamed_when_loaded(variant, names):
    theirs, model = of_torchvision(**variant), like(variant)
    report = load_pretrained(model, names(theirs.state_dict()))
    assert sorted(report.loaded) == sorted(model.state_dict())
    assert not any(getattr(report, field) for field in FIELDS[1:])
    equal_logits(model, theirs)


def test_the_old_names_are_those_that_torchvision_takes():
    theirs, other = of_torchvision(), of_torchvision(seed=9)
    other.load_state_dict(with_old_names(theirs.state_dict()))
    assert same(bits(other), bits(theirs))


def test_every_name_of_the_published_sizes_is_renamed():
    for name in ("b_16", "b_32", "l_16", "l_32", "h_14"):
        theirs = on_meta(getattr(torchvision.models, f"vit_{name}"))
        size, patch = {"b": "base", "l": "large", "h": "huge"}, name[2:]
        model = on_meta(
            create_model,
            f"vit_{size[name[0]]}_patch{patch.replace('32', '16')}_224",
            patch_size=int(patch),
        )
        renamed = from_torchvision(theirs.state_dict())
        shapes = {n: t.shape for n, t in model.state_dict().items()}
        assert {n: t.shape for n, t in renamed.items()} == shapes


@pytest.mark.parametrize(
    "name",
    [
        "heads.pre_logits.weight",
        "cls_token",
        "blocks.0.norm1.weight",
        "encoder.layers.encoder_layer_x.ln_1.weight",
        "encoder.layers.encoder_layer_0.ln_3.weight",
        "encoder.layers.encoder_layer_0.mlp.1.weight",
        "module.class_token",
        "class_token.more",
        "class_token\n",
        "xclass_token",
        "encoderXpos_embedding",
        "",
    ],
)
def test_a_name_that_torchvision_does_not_have_is_refused(name):
    state = of_torchvision().state_dict() | {name: torch.ones(2)}
    with pytest.raises(
        ValueError, match=f"got 1 others: {re.escape(name)}$"
    ) as error:
        from_torchvision(state)
    assert "torchvision's names" in str(error.value)


@pytest.mark.parametrize(
    "model",
    [
        torchvision.models.swin_t,
        torchvision.models.resnet18,
        functools.partial(timm.create_model, "vit_tiny_patch16_224"),
    ],
)
def test_the_weights_of_another_model_are_no_vision_transformer(model):
    state = on_meta(model).state_dict()
    with pytest.raises(ValueError, match=f"got {len(state)} others: .*, .*, "):
        from_torchvision(state)


def test_two_names_for_one_weight_are_refused():
    state = of_torchvision().state_dict()
    old = "encoder.layers.encoder_layer_1.mlp.linear_1.bias"
    state[old] = state["encoder.layers.encoder_layer_1.mlp.0.bias"]
    with pytest.raises(
        ValueError, match=rf"two of blocks\.1\.mlp\.fc1\.bias.*as {old}"
    ):
        from_torchvision(state)


# Where a name belongs.


@pytest.mark.parametrize(
    ("name", "parts", "expected"),
    [
        ("blocks.1.norm1.weight", ["blocks.1"], True),
        ("blocks.10.norm1.weight", ["blocks.1"], False),
        ("blocks.1", ["blocks.1"], True),
        ("blocks.10", ["blocks.1"], False),
        ("blocks.1.norm1.weight", ["blocks.1.norm"], False),
        ("head.weight", ["head"], True),
        ("head_dist.weight", ["head"], False),
        ("overhead.weight", ["head"], False),
        ("head.weight", ["head.weight"], True),
        ("head.weight", ["head."], False),
        ("head.weight", ["weight"], False),
        ("head.weight", [], False),
        ("head.weight", [""], True),
        ("head.weight", ["norm", "head"], True),
    ],
)
def test_a_part_holds_what_begins_with_its_name_and_a_dot(
    name, parts, expected
):
    assert is_part_of(name, parts) == expected


@pytest.mark.parametrize("parts", ["head", "h", ""])
def test_one_string_is_not_taken_for_a_list_of_parts(parts):
    said = f"got the string '{parts}'; write \\['{parts}'\\]$"
    with pytest.raises(ValueError, match=f"parts must be .*{said}"):
        is_part_of("head.weight", parts)


# Loading: everything, or nothing.


def write(how, theirs, folder):
    """Where the weights are: in memory, in a file or in a folder."""
    state = theirs.state_dict()
    if how == "state dict":
        return state
    if how.endswith("folder"):
        save_for_hf(theirs, folder, safe_serialization=how == "safe folder")
        return folder
    if how == "safetensors":
        save_file(state, folder / "a.safetensors")
        return str(folder / "a.safetensors")
    entries = {"torch.save": state, "model": {"model": state, "epoch": 3}}
    entries["state_dict"] = {"state_dict": state, "epoch": 3}
    torch.save(entries[how], folder / "a.pt")
    return folder / "a.pt"


WAYS = [
    "state dict",
    "torch.save",
    "model",
    "state_dict",
    "safetensors",
    "safe folder",
    "folder",
]


@pytest.mark.parametrize("how", WAYS)
def test_weights_of_timm_give_the_same_logits(how, tmp_path):
    theirs, model = of_timm(), ours()
    report = load_pretrained(model, write(how, theirs, tmp_path))
    assert sorted(report.loaded) == sorted(theirs.state_dict())
    assert not any(getattr(report, field) for field in FIELDS[1:])
    equal_logits(model, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 1},
        {"depth": 11, "embed_dim": 6},
        {"mlp_ratio": 1.5},
        {"qkv_bias": False},
        {"patch_size": (4, 8)},
        {"in_chans": 1},
        {"num_classes": 0},
    ],
    ids=str,
)
def test_other_sizes_of_timm_give_the_same_logits(options):
    theirs, model = of_timm(**options), ours(**options)
    load_pretrained(model, theirs.state_dict())
    equal_logits(model, theirs)


def test_the_mean_of_the_tokens_is_that_of_timm_without_fc_norm():
    theirs = of_timm(global_pool="avg", fc_norm=False)
    model = ours(pool="mean")
    load_pretrained(model, theirs.state_dict())
    equal_logits(model, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"global_pool": "avg"},
        {"init_values": 0.1},
        {"qk_norm": True},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"reg_tokens": 2},
        {"pre_norm": True},
        {"qkv_bias": False},
    ],
    ids=str,
)
def test_another_kind_of_vision_transformer_is_refused(options):
    refused(ours(), of_timm(**options).state_dict(), "must fit the model")


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 3},
        {"depth": 1},
        {"embed_dim": 6},
        {"mlp_ratio": 2.0},
        {"patch_size": 4},
        {"in_chans": 1},
        {"num_classes": 4},
        {"num_classes": 0},
    ],
    ids=str,
)
def test_another_size_is_refused(options):
    refused(ours(), of_timm(**options).state_dict(), "must fit the model")
    refused(ours(**options), of_timm().state_dict(), "must fit the model")


def test_the_checkpoint_of_a_run_is_loaded(tmp_path):
    model = VisionTransformer(**SIZES)
    batches = [(torch.rand(4, 3, 16, 24), torch.arange(4) % 5)]
    fit(model, batches, batches, epochs=1, checkpoint=tmp_path / "a.pt")
    other = VisionTransformer(**SIZES)
    load_pretrained(other, tmp_path / "a.pt")
    assert same(bits(other), bits(model))


def test_any_model_can_be_loaded_if_the_names_agree():
    for create in (torchvision.models.shufflenet_v2_x0_5, SmallCNN):
        one, other = redraw(create()), redraw(create(), seed=3)
        report = load_pretrained(one, other.state_dict())
        assert same(bits(one), bits(other))
        assert report.loaded == tuple(other.state_dict())


def test_the_folder_of_timm_tells_the_preprocessing(tmp_path):
    theirs = of_timm(img_size=32)
    source = write("safe folder", theirs, tmp_path)
    preprocessing = load_pretrained(ours(img_size=32), source).preprocessing
    assert preprocessing.img_size == 32
    assert preprocessing.mean == (0.5, 0.5, 0.5)
    state = theirs.state_dict()
    assert load_pretrained(ours(img_size=32), state).preprocessing is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_the_type_of_the_model(dtype, tmp_path):
    theirs, model = of_timm().to(dtype), VisionTransformer(**SIZES)
    load_pretrained(model, write("safetensors", theirs, tmp_path))
    expected = {n: t.float() for n, t in theirs.state_dict().items()}
    assert same(bits(model), expected)


def test_views_and_shared_memory_are_loaded(tmp_path):
    state = of_timm().state_dict()
    expected = {n: t.clone() for n, t in state.items()}
    for name in state:
        if state[name].ndim == 2:
            state[name] = state[name].T.contiguous().T
            assert not state[name].is_contiguous()
    state["blocks.0.norm1.weight"] = state["norm.weight"]
    expected["blocks.0.norm1.weight"] = expected["norm.weight"]
    torch.save(state, tmp_path / "a.pt")
    for source in (state, tmp_path / "a.pt"):
        model = ours()
        load_pretrained(model, source)
        assert same(bits(model), expected)


def test_the_source_and_the_model_share_no_memory_afterwards():
    state = of_timm().state_dict()
    expected = {n: t.clone() for n, t in state.items()}
    model = ours()
    load_pretrained(model, state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert same(state, expected)


def test_loading_draws_no_random_numbers_and_keeps_what_is_frozen():
    model, state = ours(), of_timm().state_dict()
    model.blocks.requires_grad_(False)
    before = [(n, id(p), p.requires_grad) for n, p in model.named_parameters()]
    generator = torch.get_rng_state()
    load_pretrained(model, state)
    assert torch.equal(torch.get_rng_state(), generator)
    assert before == [
        (n, id(p), p.requires_grad) for n, p in model.named_parameters()
    ]
    assert not model.training


NAMES = list(VisionTransformer(**SIZES).state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_weight_is_named(name):
    state = of_timm().state_dict()
    del state[name]
    refused(ours(), state, rf"got no {re.escape(name)}$")


@pytest.mark.parametrize(
    "name", ["extra", "blocks.2.norm1.weight", "head_dist.bias", "fc.weight"]
)
def test_an_extra_weight_is_named(name):
    state = of_timm().state_dict() | {name: torch.ones(3)}
    refused(ours(), state, f"got {name}, which the model does not have$")


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_shape_is_named_with_both_shapes(name):
    state = of_timm().state_dict()
    wanted = tuple(state[name].shape)
    state[name] = torch.cat([state[name], state[name]], dim=-1)
    wrong = re.escape(f"{tuple(state[name].shape)} for {wanted}")
    hint = "; see new_head" if name.startswith("head.") else ""
    refused(ours(), state, rf"got {name} of shape {wrong}{hint}$")


@pytest.mark.parametrize(
    "change",
    [torch.Tensor.flatten, torch.Tensor.squeeze, lambda t: t.transpose(0, 1)],
)
def test_as_many_numbers_in_another_shape_are_refused(change):
    state = of_timm(img_size=16).state_dict()
    for name in (
        "cls_token",
        "patch_embed.proj.weight",
        "blocks.0.mlp.fc1.weight",
    ):
        changed = change(state[name])
        if changed.shape != state[name].shape:
            refused(
                ours(img_size=16), state | {name: changed}, f"got {name} of"
            )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_named(name, number):
    state = of_timm().state_dict()
    state[name] = state[name].clone()
    state[name].flatten()[-1:].fill_(number)
    refused(ours(), state, f"got {name} with numbers that are not finite$")


def test_nan_in_the_position_table_is_found_after_resizing():
    state = of_timm(img_size=16).state_dict()
    state["pos_embed"][0, 3, 1] = math.nan
    refused(ours(img_size=32), state, "got pos_embed with numbers that are n")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_another_kind_of_number_is_named(dtype):
    for name in ("norm.weight", "pos_embed"):
        state = of_timm().state_dict()
        state[name] = state[name].to(dtype)
        said = f"got {name} of {dtype} for torch.float64$"
        refused(ours(), state, said)


def test_a_counter_that_is_no_integer_is_named():
    model, other = redraw(SmallCNN()), redraw(SmallCNN(), seed=3).state_dict()
    (name, *_) = [n for n in other if n.endswith("num_batches_tracked")]
    other[name] = torch.tensor(1.5)
    refused(model, other, f"got {name} of torch.float32 for torch.int64$")


def test_weights_without_numbers_are_named():
    state = of_timm().state_dict()
    state["norm.bias"] = state["norm.bias"].to("meta")
    refused(ours(), state, "got norm.bias on the meta device, without numbers$")
    empty = copy.deepcopy(on_meta(VisionTransformer, **SIZES)).double()
    with pytest.raises(ValueError, match="cls_token on the meta device"):
        load_pretrained(empty, of_timm().state_dict())


def test_no_weight_at_all_is_refused():
    refused(ours(), {}, "got no cls_token; no pos_embed; no patch_embed")


def test_the_message_names_eight_faults_and_counts_the_rest():
    state = of_timm().state_dict()
    names = list(state)
    for name in names[:11]:
        del state[name]
    said = "; ".join(f"no {re.escape(n)}" for n in names[:8])
    refused(ours(), state, f"got {said}; 3 more$")


def test_faults_of_every_kind_are_in_one_message():
    state = of_timm().state_dict()
    del state["norm.bias"]
    state["norm.weight"] = torch.ones(3)
    state["more"] = torch.ones(3)
    state["pos_embed"] = torch.ones(1, 4, 12)
    refused(
        ours(),
        state,
        r"got no norm.bias; more, which .*; pos_embed must have .*got 4;"
        r".*; norm.weight of shape \(3,\) for \(12,\)$",
    )


def test_find_faults_is_silent_about_good_weights():
    own = ours().state_dict()
    assert find_faults(own, of_timm().state_dict()) == []
    assert find_faults(own, {}) == []
    assert find_faults(own, {"norm.bias": torch.ones(12).half()}) == []
    assert find_faults(own, {"head.bias": torch.ones(3)}) == [
        "head.bias of shape (3,) for (5,); see new_head"
    ]


def test_find_faults_is_asked_about_weights_of_the_model_only():
    with pytest.raises(KeyError, match=r"^'more'$"):
        find_faults(ours().state_dict(), {"more": torch.ones(2)})


# The head, and parts that may differ.


def once(report, model, source):
    """Each name of model and source is in one field, once."""
    names = [n for field in FIELDS for n in getattr(report, field)]
    assert sorted(names) == sorted({*model.state_dict(), *source})


@pytest.mark.parametrize("num_classes", [5, 9, 0])
@pytest.mark.parametrize("theirs", [5, 3, 0])
def test_a_new_head_leaves_the_head_of_the_model(num_classes, theirs):
    model, state = ours(num_classes=num_classes), of_timm(num_classes=theirs)
    state, before = state.state_dict(), bits(model)
    report = load_pretrained(model, state, new_head=True)
    once(report, model, state)
    for name, tensor in model.state_dict().items():
        is_head = name.startswith("head.")
        expected = before[name] if is_head else state[name]
        assert torch.equal(tensor, expected)
    heads = {"head.weight", "head.bias"} if num_classes or theirs else set()
    assert {*report.replaced} == heads
    assert len(report.loaded) == len(NAMES) - 2


def test_a_head_is_not_left_out_unless_asked():
    model, state = ours(), of_timm().state_dict()
    report = load_pretrained(model, state)
    assert report.replaced == ()
    assert torch.equal(model.head.weight, state["head.weight"])


def test_a_head_that_cannot_be_read_does_no_harm_if_it_is_replaced():
    state = of_timm(num_classes=3).state_dict()
    state["head.weight"].fill_(math.nan)
    load_pretrained(ours(), state, new_head=True)
    refused(ours(num_classes=3), state, "head.weight with numbers that are not")


def test_a_new_head_does_not_hide_other_faults():
    state = of_timm(num_classes=3).state_dict()
    state["head2.weight"] = torch.ones(2)
    refused(ours(), state, "got head2.weight, which", new_head=True)


def test_both_heads_of_a_distilled_model_are_replaced():
    theirs = of_timm(name="deit_tiny_distilled_patch16_224", num_classes=3)
    other = of_timm(name="deit_tiny_distilled_patch16_224", seed=2)
    report = load_pretrained(other, theirs.state_dict(), new_head=True)
    assert sorted(report.replaced) == [
        "head.bias",
        "head.weight",
        "head_dist.bias",
        "head_dist.weight",
    ]
    once(report, other, theirs.state_dict())


def test_the_head_of_swin_is_replaced():
    small = {"embed_dim": 12, "depths": (1, 1), "num_heads": (2, 3)}
    name = "swin_tiny_patch4_window7_224"
    theirs, other = (
        redraw(timm.create_model(name, img_size=56, num_classes=n, **small))
        for n in (3, 4)
    )
    refused(other, theirs.state_dict(), r"head\.fc\.weight.*see new_head")
    report = load_pretrained(other, theirs.state_dict(), new_head=True)
    assert sorted(report.replaced) == ["head.fc.bias", "head.fc.weight"]


def test_a_distilled_model_is_refused_by_a_plain_one():
    theirs = of_timm(name="deit_tiny_distilled_patch16_224").state_dict()
    refused(ours(), theirs, r"dist_token, which.*pos_embed must have")
    parts = {"allow_unexpected": ("dist_token", "head_dist")}
    refused(ours(), theirs, r"got pos_embed must have 1 \+ N rows.*", **parts)


def test_a_plain_model_is_refused_by_a_distilled_one():
    model = of_timm(name="deit_tiny_distilled_patch16_224")
    state = of_timm().state_dict()
    refused(model, state, r"no dist_token; no head_dist\.weight")
    parts = ("dist_token", "head_dist")
    refused(model, state, "got pos_embed of shape", allow_missing=parts)


def test_allowed_parts_may_be_missing_and_keep_their_values():
    model, state = ours(), of_timm().state_dict()
    before = bits(model)
    gone = [n for n in state if is_part_of(n, ["blocks.1", "cls_token"])]
    for name in gone:
        del state[name]
    refused(model, state, "got no cls_token", allow_missing=["blocks.1"])
    report = load_pretrained(
        model, state, allow_missing=["blocks.1", "cls_token"]
    )
    assert [*report.missing] == gone
    once(report, model, state)
    after = bits(model)
    assert all(torch.equal(after[n], before[n]) for n in gone)
    assert all(torch.equal(after[n], state[n]) for n in state)


def test_block_1_is_not_block_10():
    sizes = {"depth": 11, "embed_dim": 6}
    model, state = ours(**sizes), of_timm(**sizes).state_dict()
    less = {n: t for n, t in state.items() if not n.startswith("blocks.10.")}
    said = r"got no blocks\.10\.norm1"
    refused(model, less, said, allow_missing=["blocks.1"])
    report = load_pretrained(model, less, allow_missing=["blocks.10"])
    assert len(report.missing) == 12
    small = ours(depth=10, embed_dim=6)
    said = r"got blocks\.10\.norm1\.weight, which"
    refused(small, state, said, allow_unexpected=["blocks.1"])
    report = load_pretrained(small, state, allow_unexpected=["blocks.10"])
    assert len(report.unexpected) == 12
    once(report, small, state)


def test_one_string_of_allowed_parts_is_refused():
    state = of_timm().state_dict()
    more = state | {"n": torch.ones(2)}
    less = {n: t for n, t in state.items() if n != "norm.bias"}
    refused(ours(), more, r"write \['norm'\]", allow_unexpected="norm")
    refused(ours(), less, r"write \['norm'\]", allow_missing="norm")


def test_an_allowed_part_that_is_there_must_fit():
    state = of_timm().state_dict()
    state["norm.bias"] = torch.ones(3)
    options = {"allow_missing": ["norm"], "allow_unexpected": ["norm"]}
    refused(ours(), state, "norm.bias of shape", **options)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_what_is_missing_and_unexpected_is_reported_exactly(data):
    model, state = ours(), of_timm().state_dict()
    gone = data.draw(st.sets(st.sampled_from(NAMES)))
    words = st.sampled_from(["blocks", "0", "2", "head", "norm", "x"])
    new = data.draw(st.sets(st.lists(words, min_size=1).map(".".join)))
    new -= {*NAMES}
    source = {n: t for n, t in state.items() if n not in gone}
    source |= {n: torch.full((2,), math.nan) for n in new}
    items = data.draw(st.permutations([*source.items()]))
    before = bits(model)
    if gone or new:
        with pytest.raises(ValueError, match="must fit the model") as error:
            load_pretrained(model, dict(items))
        text = str(error.value).partition("got ")[2]
        shown = text.split("; ")
        if len(gone) + len(new) > 8:
            assert shown.pop() == f"{len(gone) + len(new) - 8} more"
        words = {f"no {n}" for n in gone}
        words |= {f"{n}, which the model does not have" for n in new}
        assert {*shown} <= words
        assert len({*shown}) == min(8, len(words))
        assert same(bits(model), before)
    report = load_pretrained(
        model, dict(items), allow_missing=[*gone], allow_unexpected=[*new]
    )
    assert {*report.missing} == gone
    assert {*report.unexpected} == new
    once(report, model, source)
    after = bits(model)
    for name in NAMES:
        source_of = before if name in gone else state
        assert torch.equal(after[name], source_of[name])


def test_the_report_can_be_read():
    report = LoadReport(("a", "b"), ("p",), (), ("m.x", "m.y"), ())
    assert str(report).splitlines() == [
        "loaded: 2",
        "resized: p",
        "replaced: none",
        "missing: m.x, m.y",
        "unexpected: none",
    ]


# The position table.


class Grid(nn.Module):
    """As much of a model as fit_pos_embed asks for."""

    def __init__(self, grid_size, num_prefix_tokens=1):
        super().__init__()
        self.grid_size = grid_size
        self.num_prefix_tokens = num_prefix_tokens


@pytest.mark.parametrize(
    ("rows", "grid_size", "new", "old"),
    [
        (16, None, (4, 4), (4, 4)),
        (16, None, (6, 6), (4, 4)),
        (16, None, (3, 5), (4, 4)),
        (16, None, (1, 1), (4, 4)),
        (1, None, (2, 3), (1, 1)),
        (6, (2, 3), (4, 4), (2, 3)),
        (6, (3, 2), (2, 3), (3, 2)),
        (6, None, (2, 3), (2, 3)),
        (16, (2, 8), (4, 4), (2, 8)),
        (16, (2, 8), (2, 8), (2, 8)),
        (16, (4, 4), (2, 8), (4, 4)),
        (16, 4, (2, 8), (4, 4)),
    ],
)
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_a_table_is_resized_to_the_grid_of_the_model(
    rows, grid_size, new, old, prefix
):
    table = random(1, prefix + rows, 5)
    got = fit_pos_embed(table, Grid(new, prefix), grid_size)
    expected = resize_pos_embed(table, old, new, num_prefix_tokens=prefix)
    assert got.shape == (1, prefix + new[0] * new[1], 5)
    assert torch.equal(got, expected)
    assert torch.equal(got[:, :prefix], table[:, :prefix])


def test_a_table_that_fits_is_taken_as_it_is():
    table = random(1, 17, 5)
    assert fit_pos_embed(table, Grid((4, 4))) is table


@pytest.mark.parametrize(
    ("shape", "grid_size", "new", "said"),
    [
        (
            (1, 17, 5),
            None,
            (2, 8),
            r"given, got none, and 16 .* \(4, 4\) or of",
        ),
        ((1, 7, 5), None, (4, 4), r"1 \+ N rows with a square N, got 7; give"),
        ((1, 1, 5), None, (4, 4), "with a square N, got 1"),
        ((1, 0, 5), None, (4, 4), "with a square N, got 0"),
        ((1, 18, 5), None, (4, 4), "with a square N, got 18"),
        ((1, 17, 5), (4, 5), (4, 4), r"1 \+ 4 \* 5, D\), got \(1, 17, 5\)"),
        ((1, 18, 5), (4, 4), (4, 4), r"1 \+ 4 \* 4, D\), got \(1, 18, 5\)"),
        ((2, 17, 5), None, (4, 4), r"got \(2, 17, 5\)"),
        ((17, 5), None, (4, 4), r"\(1, 1 \+ N, D\), got \(17, 5\)"),
        ((1, 1, 17, 5), None, (4, 4), r"got \(1, 1, 17, 5\)"),
        ((), None, (4, 4), r"got \(\)"),
    ],
)
def test_a_table_of_an_unknown_grid_is_refused(shape, grid_size, new, said):
    with pytest.raises(ValueError, match=said):
        fit_pos_embed(random(*shape), Grid(new), grid_size)


@settings(deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(0, 3)
)
def test_a_square_table_fits_every_grid_but_one_of_as_many_places(
    side, gh, gw, prefix
):
    table, model = random(1, prefix + side * side, 3), Grid((gh, gw), prefix)
    if gh * gw == side * side and gh != gw:
        with pytest.raises(ValueError, match="grid_size must be given"):
            fit_pos_embed(table, model)
    else:
        got = fit_pos_embed(table, model)
        assert torch.equal(got, fit_pos_embed(table, model, side))
        assert got.shape[1] == prefix + gh * gw


@pytest.mark.parametrize(
    ("before", "after", "grid_size"),
    [
        (16, 32, None),
        (32, 16, None),
        (32, (16, 24), None),
        ((16, 24), (24, 16), (2, 3)),
        ((16, 24), 32, (2, 3)),
        ((16, 64), 32, (2, 8)),
    ],
)
def test_weights_are_loaded_for_another_size_of_image(before, after, grid_size):
    theirs, model = of_timm(img_size=before), ours(img_size=after)
    state = theirs.state_dict()
    report = load_pretrained(model, state, grid_size=grid_size)
    assert report.resized == ("pos_embed",)
    once(report, model, state)
    expected = resize_pos_embed(
        state["pos_embed"],
        theirs.patch_embed.grid_size,
        model.grid_size,
    )
    assert torch.equal(model.pos_embed, expected)
    assert torch.equal(model.norm.weight, state["norm.weight"])
    plain = of_timm(img_size=after)
    plain.load_state_dict(state | {"pos_embed": expected})
    equal_logits(model, plain)


def test_the_table_of_torchvision_is_resized_too():
    state = of_torchvision(image_size=32).state_dict()
    report = load_pretrained(ours(img_size=16), state)
    assert report.resized == ("pos_embed",)


def test_a_table_of_the_same_grid_is_not_resized():
    report = load_pretrained(ours(), of_timm().state_dict(), grid_size=(2, 3))
    assert report.resized == ()


def test_an_ambiguous_table_is_refused_by_load_pretrained():
    state = of_timm(img_size=32).state_dict()
    refused(ours(img_size=(16, 64)), state, "grid_size must be given, got none")
    load_pretrained(ours(img_size=(16, 64)), state, grid_size=4)


def test_a_table_of_another_width_is_refused():
    state = of_timm(img_size=16).state_dict()
    for size, shape in ((16, (1, 5, 13)), (32, (1, 17, 13))):
        state["pos_embed"] = random(1, 5, 13)
        said = re.escape(f"got pos_embed of shape {shape} for (1, ")
        refused(ours(img_size=size), state, said)


# Learning rates by part.


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.body = nn.LSTM(4, 4, num_layers=2)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight


MODELS = {
    "ViT": (create_model, "vit_tiny_patch16_224"),
    "hybrid": (HybridVisionTransformer,),
    "SmallCNN": (SmallCNN,),
    "resnet18": (torchvision.models.resnet18,),
    "vit_b_16": (torchvision.models.vit_b_16,),
    "swin_t": (torchvision.models.swin_t,),
    "convnext_tiny": (torchvision.models.convnext_tiny,),
    "timm Swin": (timm.create_model, "swin_tiny_patch4_window7_224"),
    "timm DeiT": (timm.create_model, "deit_tiny_distilled_patch16_224"),
    "timm BEiT": (timm.create_model, "beit_base_patch16_224"),
    "timm MaxViT": (timm.create_model, "maxvit_tiny_tf_224"),
    "LSTM": (nn.LSTM, 3, 4, 2),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 11
        ),
    ),
    "tied": (Tied,),
    "a parameter alone": (lambda: nn.ParameterList([torch.ones(2, 3)]),),
}
each_model = pytest.mark.parametrize("create", MODELS.values(), ids=MODELS)


def rate_of(name, rates):
    """The rate of the longest part around a name, found from the inside."""
    words = name.split(".")
    for i in range(len(words), -1, -1):
        part = ".".join(words[:i])
        if part in rates:
            return part, rates[part]
    return None, None


def checked(model, rates, weight_decay=0.3):
    """Each trainable parameter is in one group, with its rate and decay."""
    groups = learning_rate_groups(model, rates, weight_decay)
    held = [id(p) for group in groups for p in group["params"]]
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    assert sorted(held) == sorted(id(p) for _, p in trainable)
    decayed = {
        id(p)
        for group in parameter_groups(model, weight_decay)
        if group["weight_decay"]
        for p in group["params"]
    }
    found = {id(p): group for group in groups for p in group["params"]}
    for name, parameter in trainable:
        group = found[id(parameter)]
        assert group["lr"] == rate_of(name, rates)[1]
        expected = weight_decay if id(parameter) in decayed else 0.0
        assert group["weight_decay"] == expected
    assert all(group["params"] for group in groups)
    assert all(
        group.keys() == {"params", "lr", "weight_decay"} for group in groups
    )
    return groups


@each_model
def test_one_rate_for_all(create):
    groups = checked(on_meta(*create), {"": 0.1})
    assert len(groups) <= 2


@each_model
def test_a_rate_for_each_part(create):
    model = on_meta(*create)
    tops = {n.partition(".")[0] for n, _ in model.named_parameters()}
    rates = {top: 0.1 * (i + 1) for i, top in enumerate(sorted(tops))}
    checked(model, rates)


@each_model
def test_the_last_part_learns_faster(create):
    model = on_meta(*create)
    names = [n for n, _ in model.named_parameters()]
    part = names[-1].partition(".")[0]
    is_alone = all(is_part_of(n, [part]) for n in names)
    checked(model, {part: 0.2} if is_alone else {"": 0.1, part: 0.2})


@each_model
def test_each_parameter_can_have_its_own_rate(create):
    model = on_meta(*create)
    rates = {n: 1 + i for i, (n, _) in enumerate(model.named_parameters())}
    groups = checked(model, rates)
    assert len(groups) == len(rates)


def test_adamw_takes_the_groups():
    model = ours()
    groups = learning_rate_groups(model, {"": 0.1, "head": 0.5}, 0.3)
    assert len(groups) == 4
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    rates = [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert sorted(rates) == [(0.1, 0.0), (0.1, 0.3), (0.5, 0.0), (0.5, 0.3)]


@pytest.mark.parametrize("frozen", ["blocks", "blocks.1", "cls_token", "norm"])
def test_frozen_parameters_are_in_no_group(frozen):
    model = ours(depth=11, embed_dim=6)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_part_of(name, [frozen]))
    checked(model, {"": 0.1, "head": 0.2})
    checked(model, {"": 0.1, frozen: 0.2})


def test_the_rate_of_block_1_is_not_that_of_block_10():
    model = ours(depth=11, embed_dim=6)
    groups = checked(model, {"": 1.0, "blocks.1": 0.5})
    assert sum(len(g["params"]) for g in groups if g["lr"] == 0.5) == 12


def test_a_shared_parameter_is_in_one_group_once():
    model = Tied()
    groups = checked(model, {"": 0.1, "embed": 0.2, "head": 0.4})
    (shared,) = [g for g in groups if model.head.weight in {*g["params"]}]
    assert shared["lr"] == 0.2  # the name under which it is found first


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_the_groups_of_no_weight_decay_hold_all_too(weight_decay):
    checked(ours(), {"": 0.1, "blocks.0": 0.2}, weight_decay)


def test_the_order_of_the_rates_does_not_matter():
    rates = {"": 0.1, "blocks": 0.2, "blocks.1": 0.3, "blocks.1.attn.qkv": 0.4}
    model = ours()
    checked(model, rates)
    checked(model, dict(reversed(rates.items())))


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        (
            {"head": 0.1},
            "hold every trainable parameter, got head, without cls_token",
        ),
        ({}, "got , without cls_token"),
        ({"": 0.1, "haed": 0.2}, "got 0.2 for 'haed'"),
        ({"": 0.1, "head.": 0.2}, "got 0.2 for 'head.'"),
        ({"": 0.1, "block": 0.2}, "got 0.2 for 'block'"),
        ({"": 0.1, "blocks.2": 0.2}, "got 0.2 for 'blocks.2'"),
        ({"": 0.1, "head": 0.0}, "got 0.0 for 'head'"),
        ({"": 0.1, "head": -1.0}, "got -1.0 for 'head'"),
        ({"": math.inf}, "got inf for ''"),
        ({"": 0.1, "head": math.nan}, "got nan for 'head'"),
    ],
)
def test_rates_that_do_not_fit_are_refused(rates, said):
    with pytest.raises(ValueError, match=said):
        learning_rate_groups(ours(), rates, 0.1)


def test_a_rate_that_no_parameter_gets_is_refused():
    rates = {"": 0.1, "head": 0.2, "head.weight": 0.3, "head.bias": 0.4}
    with pytest.raises(ValueError, match=r"got 0.2 for 'head'"):
        learning_rate_groups(ours(), rates, 0.1)


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="trainable parameter, got none"):
        learning_rate_groups(ours().requires_grad_(False), {"": 0.1}, 0.1)


PARTS = sorted(
    {
        ".".join(name.split(".")[:i])
        for name in NAMES
        for i in range(name.count(".") + 2)
    }
)


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.sampled_from(PARTS), st.floats(1e-6, 1), min_size=1),
    st.booleans(),
)
def test_the_longest_part_counts(rates, whole):
    rates = {"": 0.5, **rates} if whole else rates
    model = ours()
    parts = [rate_of(name, rates)[0] for name in NAMES]
    if None in parts or {*parts} != {*rates}:
        with pytest.raises(ValueError, match="learning_rates must"):
            learning_rate_groups(model, rates, 0.1)
    else:
        checked(model, rates)


# Learning rates by depth.


def rates_of(model, rates):
    """The rate of each parameter in the groups that fit gets."""
    names = {id(p): n for n, p in model.named_parameters()}
    return {
        names[id(p)]: group["lr"]
        for group in learning_rate_groups(model, rates, 0.1)
        for p in group["params"]
    }


def test_the_rates_of_a_small_model_written_out():
    assert layerwise_learning_rates(ours(), 8.0, 0.5) == {
        "cls_token": 1.0,
        "pos_embed": 1.0,
        "patch_embed": 1.0,
        "blocks.0": 2.0,
        "blocks.1": 4.0,
        "norm": 8.0,
        "head": 8.0,
    }


def test_the_stem_of_a_hybrid_has_the_smallest_rate():
    rates = layerwise_learning_rates(ours(cls=HybridVisionTransformer), 8, 0.5)
    assert rates["patch_embed"] == 1.0


@pytest.mark.parametrize("depth", [1, 2, 11])
def test_the_rates_are_those_of_mae(depth):
    """get_layer_id_for_vit in util/lr_decay.py."""
    model = ours(depth=depth, embed_dim=6)
    got = rates_of(model, layerwise_learning_rates(model, 0.3, 0.75))
    num_layers = depth + 1
    for name, rate in got.items():
        if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
            layer = 0
        elif name.startswith("blocks"):
            layer = int(name.split(".")[1]) + 1
        else:
            layer = num_layers
        assert rate == pytest.approx(0.3 * 0.75 ** (num_layers - layer))


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "swin_tiny_patch4_window7_224",
        "swin_small_patch4_window7_224",
        "beit_base_patch16_224",
    ],
)
def test_the_rates_are_those_of_timm_but_for_the_last_norm(name):
    """timm lets the last norm go with the last block, as its patterns say."""
    model = on_meta(timm.create_model, name)
    got = rates_of(model, layerwise_learning_rates(model, 1.0, 0.75))
    names = {id(p): n for n, p in model.named_parameters()}
    for group in timm.optim.param_groups_layer_decay(model, layer_decay=0.75):
        for parameter in group["params"]:
            name = names[id(parameter)]
            is_norm = is_part_of(name, ["norm"])
            expected = 1.0 if is_norm else group["lr_scale"]
            assert got[name] == pytest.approx(expected), name
            if is_norm:
                assert group["lr_scale"] == pytest.approx(0.75)


def test_what_lies_between_two_blocks_goes_with_the_second():
    model = on_meta(timm.create_model, "swin_tiny_patch4_window7_224")
    rates = layerwise_learning_rates(model, 1.0, 0.5)
    assert rates["layers.1.downsample"] == rates["layers.1.blocks.0"]
    assert rates["layers.1.downsample"] == 2 * rates["layers.0.blocks.1"]


def test_the_blocks_of_resnet18_can_be_named():
    blocks = [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
    model = torchvision.models.resnet18()
    rates = layerwise_learning_rates(model, 512.0, 0.5, blocks=blocks)
    expected = {"conv1": 1.0, "bn1": 1.0, "fc": 512.0}
    expected |= {block: 2.0 ** (i + 1) for i, block in enumerate(blocks)}
    assert rates == expected
    checked(model, rates)
    stages = ["layer1", "layer2", "layer3", "layer4"]
    rates = layerwise_learning_rates(model, 32.0, 0.5, blocks=stages)
    assert rates == {
        "conv1": 1.0,
        "bn1": 1.0,
        "layer1": 2.0,
        "layer2": 4.0,
        "layer3": 8.0,
        "layer4": 16.0,
        "fc": 32.0,
    }


def test_the_blocks_of_the_vit_of_torchvision_can_be_named():
    model = of_torchvision(num_layers=11)
    blocks = [f"encoder.layers.encoder_layer_{i}" for i in range(11)]
    rates = layerwise_learning_rates(model, 4096.0, 0.5, blocks=blocks)
    expected = {"class_token": 1.0, "conv_proj": 1.0}
    expected |= {"encoder.pos_embedding": 1.0}
    expected |= {block: 2.0 ** (i + 1) for i, block in enumerate(blocks)}
    expected |= {"encoder.ln": 4096.0, "heads": 4096.0}
    assert rates == expected
    checked(model, rates)


def test_a_decay_of_1_gives_all_the_same_rate():
    rates = layerwise_learning_rates(ours(), 0.3, 1)
    assert {*rates.values()} == {0.3}


@pytest.mark.parametrize("decay", [0, -0.5, 1.01, math.inf, math.nan])
def test_a_decay_out_of_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"0 < decay <= 1, got {decay}"):
        layerwise_learning_rates(ours(), 0.1, decay)


@pytest.mark.parametrize(
    "blocks", [[], ["blocks.0", "blocks.2"], ["block"], "blocks.0", ["blocks."]]
)
def test_blocks_that_the_model_does_not_have_are_refused(blocks):
    with pytest.raises(ValueError, match="must be names of parts of the model"):
        layerwise_learning_rates(ours(), 0.1, 0.5, blocks=blocks)


def test_a_model_without_blocks_is_refused():
    for model in (torchvision.models.resnet18(), SmallCNN(), nn.Linear(2, 2)):
        with pytest.raises(
            ValueError, match=r"parts of the model .*, got \[\]"
        ):
            layerwise_learning_rates(model, 0.1, 0.5)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.floats(0.1, 1), st.sets(st.integers(0, 3)))
def test_each_parameter_has_a_rate_whatever_is_frozen(depth, decay, frozen):
    model = ours(depth=depth)
    assume(not frozen or max(frozen) < depth)
    for i in frozen:
        model.blocks[i].requires_grad_(False)
    rates = layerwise_learning_rates(model, 0.1, decay)
    checked(model, rates)
    by_block = [rates[f"blocks.{i}"] for i in range(depth)]
    assert by_block == sorted(by_block)


def test_the_model_is_not_changed():
    model = ours()
    before = copy.deepcopy(model)
    rates = layerwise_learning_rates(model, 0.1, 0.5)
    learning_rate_groups(model, rates, 0.1)
    assert same(bits(model), bits(before))
    assert all(p.requires_grad for p in model.parameters())


# Harder cases.


def test_a_distilled_table_is_not_taken_for_a_plain_one():
    """2 + 3 * 5 rows are as many as 1 + 4 * 4."""
    theirs = of_timm(
        name="deit_tiny_distilled_patch16_224", img_size=(24, 40)
    ).state_dict()
    parts = {"allow_unexpected": ("dist_token", "head_dist")}
    refused(ours(img_size=32), theirs, "pos_embed", **parts)


@pytest.mark.parametrize(
    ("dtype", "number"), [(torch.float16, 1e6), (torch.float32, 1e300)]
)
def test_a_number_too_large_for_the_model_is_named(dtype, number):
    state = of_timm().state_dict()
    state["norm.weight"] = torch.full((12,), number, dtype=torch.float64)
    refused(ours().to(dtype), state, "got norm.weight")


def test_a_sparse_tensor_is_named():
    state = of_timm().state_dict()
    state["norm.weight"] = state["norm.weight"].to_sparse()
    refused(ours(), state, "got norm.weight of torch.sparse")


def test_a_tensor_of_eight_bits_is_loaded():
    model, state = ours(), of_timm().state_dict()
    state["norm.weight"] = state["norm.weight"].to(torch.float8_e4m3fn)
    load_pretrained(model, state)
    assert torch.equal(model.norm.weight, state["norm.weight"].double())


def test_a_frozen_parameter_needs_no_rate():
    model = ours().requires_grad_(False)
    model.head.requires_grad_(True)
    checked(model, {"head": 0.1})


@pytest.mark.parametrize(
    "blocks",
    [
        ["blocks.0", "blocks.0", "blocks.1"],
        ["blocks", "blocks.0"],
        ["blocks.0", "blocks.0.mlp", "blocks.1"],
        ["blocks.1", "blocks.0"],
    ],
)
def test_blocks_that_come_twice_or_in_the_wrong_order_are_refused(blocks):
    with pytest.raises(ValueError, match="blocks must"):
        layerwise_learning_rates(ours(), 0.1, 0.5, blocks=blocks)


def test_blocks_within_blocks_take_one_step_together():
    model = on_meta(timm.create_model, "crossvit_tiny_240")
    rates = layerwise_learning_rates(model, 16.0, 0.5)
    assert [rates[f"blocks.{i}"] for i in range(3)] == [2.0, 4.0, 8.0]
    assert rates["head"] == 16.0
