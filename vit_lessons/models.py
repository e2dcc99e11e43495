"""All models of the course by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from vit_lessons.deit import DEIT_PRESETS, DistilledVisionTransformer
from vit_lessons.swin_transformer import SWIN_PRESETS, SwinTransformer
from vit_lessons.vision_transformer import VIT_PRESETS, VisionTransformer

__all__ = ["create_model", "list_models"]

_MODELS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    name: (model, preset)
    for model, presets in (
        (VisionTransformer, VIT_PRESETS),
        (DistilledVisionTransformer, DEIT_PRESETS),
        (SwinTransformer, SWIN_PRESETS),
    )
    for name, preset in presets.items()
}


def list_models() -> list[str]:
    """Names of all presets, from the smallest model of a family on."""
    return list(_MODELS)


def create_model(name: str, **overrides: Any) -> nn.Module:
    """Build a preset with fresh weights.

    Args:
        name: Name of the preset; timm calls the same model so.
        overrides: Arguments of the model's class that replace or complete
            those of the preset, for example num_classes=10.

    Raises:
        ValueError: There is no preset of this name.
        TypeError: The model has no argument of this name.
    """
    if name not in _MODELS:
        raise ValueError(
            f"name must be one of {', '.join(list_models())}, got {name!r}"
        )
    model, preset = _MODELS[name]
    return model(**{**preset, **overrides})
