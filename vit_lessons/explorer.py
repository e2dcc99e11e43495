"""A figure in which a reader chooses a patch and sees where it looks.

It needs no server and no other file: explorer.html takes in explorer.css,
explorer.js and the data.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
import PIL.Image
import torch
from matplotlib import style
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor

from vit_lessons._html_figure import HtmlFigure, check_texts, fill_template
from vit_lessons.patch_embedding import as_pair
from vit_lessons.plotting import show_attention

__all__ = ["AttentionExplorer", "attention_explorer"]

# No character needs an escape in HTML or JSON.
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
FINE = 64**3 - 1  # largest number of three characters
MOST_PATCHES = 64**2  # two characters count them
TOLERANCE = 1e-2  # of a sum in bfloat16


class AttentionExplorer(HtmlFigure):
    """What attention_explorer returns: a notebook shows it as a figure.

    Args:
        html: The figure, one element that needs nothing else.
    """


def attention_explorer(
    images: Tensor,
    weights: Sequence[Tensor],
    grid_size: int | tuple[int, int],
    *,
    num_prefix_tokens: int = 1,
    name: str = "explorer",
    query: int | None = None,
    description: str = "Where the patches of an image look",
) -> AttentionExplorer:
    """Draw attention weights as a figure that answers mouse, finger and keys.

    It starts with the mean of the heads of the last layer. Where scripts do
    not run, a picture of this start is seen.

    The HTML grows by B * h * T * N characters with each layer: one for each
    weight that a patch gets. It has 6 bits, for the root of the weight as a
    share of the largest in its row, which makes the weight right to 1/63 of
    that largest one. The weights in the text, the largest and those of the
    prefix tokens, have 18 bits and are right to 4e-6.

    Args:
        images: Numbers in [0, 1]. With more than one, the reader chooses.
        weights: The weights of each layer, as attention_weights returns them.
        grid_size: Patches down and across, (gh, gw). An int is a square grid.
        num_prefix_tokens: Tokens in front of the patches, the class token
            first.
        name: The id of the element: unique on its page.
        query: Number of the patch that looks at first. None is the class
            token, or a patch in the middle where there is no such token.
        description: What is seen, for readers who do not see it.

    Shape:
        images: (B, C, H, W) with C = 1 or C = 3, weights: each (B, h, T, T)
        with T = num_prefix_tokens + gh * gw

    Raises:
        ValueError: images or weights do not fit the shapes or each other,
            images are not in [0, 1], a row of weights has negative numbers or
            does not sum to 1, there are more than 4096 patches, query is no
            patch number, name is no id, or description is empty.
    """
    gh, gw = as_pair("grid_size", grid_size)
    _check_settings(gh * gw, num_prefix_tokens, query)
    check_texts(name, description)
    images = _checked_images(images)
    tokens = num_prefix_tokens + gh * gw
    layers = _checked_weights(weights, len(images), tokens)
    if query is None and num_prefix_tokens == 0:
        query = gh // 2 * gw + gw // 2
    token = 0 if query is None else num_prefix_tokens + query
    start = layers[-1][0].mean(dim=0)[token, num_prefix_tokens:].view(gh, gw)
    who = "The class token" if query is None else "A patch with a frame"
    mean = ", mean of the heads" if layers[-1].shape[1] > 1 else ""
    data = {
        "grid": [gh, gw],
        "prefix": num_prefix_tokens,
        "heads": [layer.shape[1] for layer in layers],
        "query": query,
        "colors": _colors(),
        "images": [_data_uri(_gray(image)) for image in images],
        "levels": [
            [_levels(layer[i, ..., num_prefix_tokens:]) for layer in layers]
            for i in range(len(images))
        ],
        "facts": [
            [_facts(layer[i], num_prefix_tokens) for layer in layers]
            for i in range(len(images))
        ],
    }
    html = _filled(
        data,
        name=name,
        description=escape(description),
        alt=f"{escape(description)}. {who} looks, layer {len(layers)}{mean}.",
        picture=_data_uri(_static_picture(images[0], start, query)),
        height=images.shape[2],
        width=images.shape[3],
    )
    return AttentionExplorer(html)


def _check_settings(patches: int, prefix: int, query: int | None) -> None:
    if patches > MOST_PATCHES:
        raise ValueError(
            f"grid_size must hold at most {MOST_PATCHES} patches, got {patches}"
        )
    if prefix < 0:
        raise ValueError(f"num_prefix_tokens must be at least 0, got {prefix}")
    if query is not None and not 0 <= query < patches:
        raise ValueError(f"query must be in 0..{patches - 1}, got {query}")


def _checked_images(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            "images must be (B, 1, H, W) or (B, 3, H, W), got "
            f"{tuple(images.shape)}"
        )
    images = images.detach().cpu().double()
    if not ((images >= 0) & (images <= 1)).all():  # NaN neither
        raise ValueError(
            f"images must be in [0, 1], got {images.min().item():.4g} to "
            f"{images.max().item():.4g}"
        )
    return images


def _checked_weights(
    weights: Sequence[Tensor], batch: int, tokens: int
) -> list[Tensor]:
    shapes = [tuple(layer.shape) for layer in weights]
    if not shapes or any(
        len(s) != 4 or s != (batch, max(1, s[1]), tokens, tokens)
        for s in shapes
    ):
        raise ValueError(
            f"weights must hold ({batch}, h, {tokens}, {tokens}) for each "
            f"layer, got {shapes}"
        )
    layers = [layer.detach().cpu().double() for layer in weights]
    for number, layer in enumerate(layers):
        if not (layer >= 0).all():  # NaN neither
            raise ValueError(
                f"weights must be at least 0, got {layer.min().item():.4g} in "
                f"weights[{number}]"
            )
        off = (layer.sum(dim=-1) - 1).abs().max().item()
        if not off <= TOLERANCE:
            raise ValueError(
                "weights must sum to 1 in each row, got a sum that is "
                f"{off:.4g} off in weights[{number}]"
            )
    return layers


def _characters(numbers: Tensor, length: int) -> np.ndarray:
    """Write each number with characters, (...) -> (..., length)."""
    places = [64**i for i in reversed(range(length))]
    digits = torch.stack([numbers // place % 64 for place in places], dim=-1)
    return np.frombuffer(ALPHABET.encode(), np.uint8)[digits.long().numpy()]


def _levels(weights: Tensor) -> str:
    """The root of each weight of (h, T, N), relative to its row, 0 to 63."""
    largest = weights.amax(dim=-1, keepdim=True)
    share = weights / torch.where(largest > 0, largest, 1)
    levels = share.sqrt().mul(63).round()
    return _characters(levels, 1).tobytes().decode()


def _facts(weights: Tensor, num_prefix_tokens: int) -> str:
    """For each row of (h, T, T), and of the mean of several heads.

    Three characters for the largest weight that a patch gets, two for the
    number of this patch, three for the weight of each prefix token.
    """
    if len(weights) > 1:
        weights = torch.cat([weights, weights.mean(dim=0, keepdim=True)])
    prefix, patches = weights.split(
        [num_prefix_tokens, weights.shape[-1] - num_prefix_tokens], dim=-1
    )
    largest, place = patches.max(dim=-1, keepdim=True)
    parts = [(largest, 3), (place, 2), (prefix, 3)]
    facts = [
        _characters(part if part is place else _fine(part), length).reshape(
            *part.shape[:-1], -1
        )
        for part, length in parts
    ]
    return np.concatenate(facts, axis=-1).tobytes().decode()


def _fine(weights: Tensor) -> Tensor:
    return weights.clamp(max=1).sqrt().mul(FINE).round()


def _colors() -> list[str]:
    """The color of each level, the same as in show_attention."""
    colors = mpl.colormaps["inferno"](np.linspace(0, 1, 64))
    return [to_hex(color) for color in colors]


def _gray(image: Tensor) -> PIL.Image.Image:
    pixels = image.mean(dim=0).mul(255).round().byte()
    return PIL.Image.fromarray(pixels.numpy())


def _data_uri(picture: PIL.Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _static_picture(
    image: Tensor, weights: Tensor, query: int | None
) -> PIL.Image.Image:
    """Draw the start, in a style that a notebook does not change."""
    file = io.BytesIO()
    with style.context("default"):
        figure = Figure(figsize=(4.2, 3.4), dpi=120, layout="constrained")
        ax = figure.add_subplot()  # pyplot, which would show it, has no part
        show_attention(image, weights, query=query, ax=ax)
        figure.savefig(file, format="png")
    colors = PIL.Image.open(file).convert("RGB")
    # A fourth of the bytes.
    return colors.quantize(256, method=PIL.Image.Quantize.MAXCOVERAGE)


def _filled(data: dict[str, Any], **texts: str | int) -> str:
    """Put the data and the texts, and what follows from them, in the HTML."""
    rows, columns = data["grid"]
    prefix = data["prefix"]
    tokens = ["class token", *(f"token {t + 1}" for t in range(1, prefix))]
    return fill_template(
        __file__,
        data,
        **texts,
        rows=rows,
        columns=columns,
        images=_options(len(data["images"])),
        layers=_options(len(data["heads"])),
        tokens="".join(
            f'<button type="button">{token}</button>'
            for token in [*tokens[:prefix], "a patch"]
        ),
        lines="".join(f"M0 {i}h{columns}" for i in range(rows + 1))
        + "".join(f"M{i} 0v{rows}" for i in range(columns + 1)),
        gradient=",".join(data["colors"]),
        no_choice_of_image="hidden" if len(data["images"]) == 1 else "",
        no_choice_of_token="" if prefix else "hidden",
    )


def _options(count: int) -> str:
    return "".join(
        f'<option value="{i}">{i + 1}</option>' for i in range(count)
    )
