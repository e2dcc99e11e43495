"""Weights that others trained: read them, and what they expect of an image."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vit_lessons.download import patience

# torchvision takes about as long to import as torch. So it is imported by the
# functions that use it, and not with the package.
if TYPE_CHECKING:
    from torchvision.transforms.v2 import Compose

__all__ = [
    "LoadReport",
    "Preprocessing",
    "Weights",
    "WeightsError",
    "read_weights",
]

HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # the safe one first
ENTRIES = ("model", "state_dict")  # of a training run's file


class WeightsError(RuntimeError):
    """Weights cannot be downloaded. The message says why, and what helps."""


@dataclass(frozen=True)
class Preprocessing:
    """How images were prepared when the weights were tested.

    Args:
        img_size: Side of the image that the model sees, in pixels.
        resize: Pixels of the image's shorter side before its middle of
            img_size is cut out.
        mean: Of each channel, subtracted. Pixels lie in [0, 1].
        std: Of each channel. What is left is divided by it.
        interpolation: "bilinear", "bicubic", or another InterpolationMode of
            torchvision.
    """

    img_size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str

    def transform(self, img_size: int | None = None) -> Compose:
        """Prepare an image: a PIL image or a tensor (C, H, W).

        Args:
            img_size: Another side in pixels. The same share of the image is
                cut out.
        """
        from torchvision.transforms import v2

        size = self.img_size if img_size is None else img_size
        interpolation = v2.InterpolationMode(self.interpolation)
        return v2.Compose(
            [
                v2.ToImage(),
                v2.Resize(
                    round(self.resize * size / self.img_size),
                    interpolation=interpolation,
                ),
                v2.CenterCrop(size),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(self.mean, self.std),
            ]
        )


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and the images that they expect.

    Args:
        state_dict: Tensors by name.
        preprocessing: None where the source does not tell it.
    """

    state_dict: dict[str, Tensor]
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True)
class LoadReport:
    """What load_pretrained did with each weight.

    Args:
        loaded: Taken as they were.
        resized: Taken after resizing.
        replaced: Weights of the head, which the model has anew.
        missing: Weights of the model that the source does not have.
        unexpected: Weights of the source that the model does not have.
        preprocessing: What the weights expect of an image, or None if the
            source does not tell.
    """

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    replaced: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    preprocessing: Preprocessing | None = None

    def __str__(self) -> str:
        lines = [f"loaded: {len(self.loaded)}"]
        for what in ("resized", "replaced", "missing", "unexpected"):
            names = getattr(self, what)
            lines.append(f"{what}: {', '.join(names) or 'none'}")
        return "\n".join(lines)


def read_weights(source: str | Path | Mapping[str, Tensor]) -> Weights:
    """Read weights from memory, from the disk or from the network.

    A file is read as tensors and plain values alone, so that it cannot run
    code; see load_checkpoint for what that is worth.

    Args:
        source: One of these:
            a state dict, alone or under "model" or "state_dict";
            a file with one: safetensors if its name ends so, else one of
            torch.save;
            a folder as timm.models.save_for_hf writes it;
            "torchvision/NAME", for example "torchvision/vit_b_16", or
            "torchvision/NAME.WEIGHTS" if there are several;
            "timm/NAME", for example "timm/vit_tiny_patch16_224".

    Raises:
        ValueError: source is none of these, or does not hold a state dict.
        WeightsError: A download failed.
    """
    if isinstance(source, Mapping):
        return Weights(_tensors("source", source))
    path = Path(source)
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        return Weights(_read_file(path))
    library, _, name = str(source).partition("/")
    if library == "torchvision" and name:
        return _from_torchvision(name)
    if library == "timm" and name:
        return _from_timm(name)
    raise ValueError(
        'source must be a state dict, a file, a folder, "torchvision/NAME" or '
        f'"timm/NAME", got {str(source)!r}, and there is no such file'
    )


def _tensors(name: str, state: Any) -> dict[str, Tensor]:
    """The state dict in what was read, which may be more than that."""
    if isinstance(state, Mapping):
        entries = [state[n] for n in ENTRIES if n in state]
        state = next((e for e in entries if isinstance(e, Mapping)), state)
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor)
        for key, value in state.items()
    ):
        found = (
            f"a dict with {', '.join(map(str, [*state][:5]))}"
            if isinstance(state, Mapping)
            else f"{type(state).__name__}"
        )
        raise ValueError(
            f"{name} must hold tensors by name, alone or under "
            f"{' or '.join(map(repr, ENTRIES))}, got {found}"
        )
    return dict(state)


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"source must be a file of tensors, got {path}, which cannot be "
            f"read safely ({type(error).__name__})"
        ) from error
    return _tensors(str(path), state)


def _read_folder(folder: Path) -> Weights:
    for name in HUB_FILES:
        if (folder / name).is_file():
            config = folder / "config.json"
            return Weights(
                _read_file(folder / name),
                _read_config(config) if config.is_file() else None,
            )
    raise ValueError(
        f"source must be a folder with {' or '.join(HUB_FILES)}, got {folder}"
    )


def _read_config(path: Path) -> Preprocessing | None:
    try:
        config = json.loads(path.read_text("utf-8")).get("pretrained_cfg")
        return None if config is None else _timm_preprocessing(config)
    except Exception as error:
        raise ValueError(
            f"source must be a folder with timm's config.json, got {path}, "
            f"which cannot be read ({type(error).__name__}: {error})"
        ) from error


def _timm_preprocessing(config: Mapping[str, Any]) -> Preprocessing | None:
    """Read timm's metadata; None unless they are complete."""
    from torchvision.transforms.v2 import InterpolationMode

    needed = ("input_size", "crop_pct", "mean", "std", "interpolation")
    if not all(config.get(key) for key in needed):
        return None
    _, height, width = config["input_size"]
    if height != width or config.get("crop_mode", "center") != "center":
        return None
    return Preprocessing(
        img_size=height,
        resize=math.floor(height / config["crop_pct"]),
        mean=tuple(map(float, config["mean"])),
        std=tuple(map(float, config["std"])),
        interpolation=InterpolationMode(config["interpolation"]).value,
    )


def _from_torchvision(name: str) -> Weights:
    from torchvision import models

    model, _, which = name.partition(".")
    if model not in models.list_models(models):
        raise ValueError(
            "source must name a classifier that torchvision has, for example "
            f'"torchvision/vit_b_16", got {name!r}'
        )
    kinds = models.get_model_weights(model)
    known = [kind.name for kind in kinds]
    if which and which not in known:
        raise ValueError(
            f"source must name weights of {model}: {', '.join(known)}, got "
            f"{which!r}"
        )
    weights = kinds[which] if which else kinds.DEFAULT
    preset = weights.transforms()
    with _downloading(name):
        state = weights.get_state_dict(check_hash=True, weights_only=True)
    return Weights(
        _tensors(name, state),
        Preprocessing(
            img_size=preset.crop_size[0],
            resize=preset.resize_size[0],
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            interpolation=preset.interpolation.value,
        ),
    )


def _from_timm(name: str) -> Weights:
    try:
        import timm
    except ImportError as error:
        raise WeightsError(
            f"timm/{name} needs timm, which is not installed: pip install timm"
        ) from error
    if not timm.is_model(name) or not timm.is_model_pretrained(name):
        raise ValueError(
            "source must name a model that timm has weights of, for example "
            f'"timm/vit_tiny_patch16_224", got {name!r}'
        )
    with _downloading(name):
        model = timm.create_model(name, pretrained=True)
    return Weights(
        model.state_dict(),
        _timm_preprocessing(timm.data.resolve_model_data_config(model)),
    )


@contextmanager
def _downloading(name: str) -> Iterator[None]:
    try:
        with patience():
            yield
    except Exception as error:
        raise WeightsError(
            f"{name} could not be downloaded ({type(error).__name__}: "
            f"{error}). Connect and try again; delete the file if it is there "
            "and damaged; or download it elsewhere and give its path as source"
        ) from error
