"""The models by name."""

import re

import pytest
import timm
import torch
import torchvision
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vit_lessons import (
    DEIT_PRESETS,
    SWIN_PRESETS,
    VIT_PRESETS,
    DistilledVisionTransformer,
    SwinTransformer,
    VisionTransformer,
    create_model,
    list_models,
    pool,
)

PARAMETERS = {
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_base_patch16_224": 86_567_656,
    "vit_large_patch16_224": 304_326_632,
    "vit_huge_patch14_224": 632_045_800,
    "deit_tiny_distilled_patch16_224": 5_910_800,
    "deit_small_distilled_patch16_224": 22_436_432,
    "deit_base_distilled_patch16_224": 87_338_192,
    "swin_tiny_patch4_window7_224": 28_288_354,
    "swin_small_patch4_window7_224": 49_606_258,
    "swin_base_patch4_window7_224": 87_768_224,
}


def on_meta(create, *args, **kwargs):
    with torch.device("meta"):
        return create(*args, **kwargs)


def count_parameters(model):
    return sum(p.numel() for p in model.parameters())


def giga_macs(function):
    """Multiplications and additions in pairs, in 10^9, for one image."""
    with (
        sdpa_kernel(SDPBackend.MATH),  # fused kernels are not counted
        FlopCounterMode(display=False) as counter,
    ):
        function(torch.empty(1, 3, 224, 224, device="meta"))
    return counter.get_total_flops() / 2e9


def test_each_preset_is_listed():
    assert list_models() == list(PARAMETERS)
    presets = VIT_PRESETS | DEIT_PRESETS | SWIN_PRESETS
    assert presets.keys() == set(list_models())


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_preset_has_the_published_number_of_parameters(name):
    assert count_parameters(on_meta(create_model, name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_preset_has_the_parameters_of_timm(name):
    ours, theirs = (
        {n: p.shape for n, p in model.named_parameters()}
        for model in (
            on_meta(create_model, name),
            on_meta(timm.create_model, name, num_classes=1000),
        )
    )
    assert ours == theirs


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_preset_has_the_heads_of_timm(name):
    ours, theirs = (
        [
            (part, module.num_heads)
            for part, module in on_meta(create, name).named_modules()
            if part.endswith(".attn")
        ]
        for create in (create_model, timm.create_model)
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("vit_base_patch16_224", torchvision.models.ViT_B_16_Weights),
        ("vit_large_patch16_224", torchvision.models.ViT_L_16_Weights),
    ],
)
def test_a_preset_costs_what_torchvision_says(name, weights):
    model = on_meta(create_model, name)
    published = weights.IMAGENET1K_V1.meta["_ops"]
    count = giga_macs(lambda x: model.head(pool(model.forward_features(x))))
    assert count == pytest.approx(published, rel=0.01)
    assert 0.9 * count < giga_macs(model) < 0.99 * count


def test_a_preset_is_built_by_its_own_class():
    for presets, kind in (
        (VIT_PRESETS, VisionTransformer),
        (DEIT_PRESETS, DistilledVisionTransformer),
        (SWIN_PRESETS, SwinTransformer),
    ):
        assert {type(on_meta(create_model, name)) for name in presets} == {kind}


def test_overrides_replace_and_complete_the_preset():
    model = create_model(
        "vit_tiny_patch16_224",
        depth=1,
        num_classes=10,
        pool="mean",
        img_size=32,
    )
    assert isinstance(model, VisionTransformer)
    assert len(model.blocks) == 1
    assert model.head.out_features == 10
    assert model.pool == "mean"
    assert model.grid_size == (2, 2)
    assert "pool" not in VIT_PRESETS["vit_tiny_patch16_224"]


def test_an_unknown_name_raises_with_the_known_names():
    known = re.escape(", ".join(PARAMETERS))
    with pytest.raises(ValueError, match=f"one of {known}, got 'vit_giant'"):
        create_model("vit_giant")


def test_an_unknown_argument_is_refused():
    with pytest.raises(TypeError, match="image_size"):
        create_model("vit_tiny_patch16_224", image_size=32)
