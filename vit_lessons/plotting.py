"""Pictures: an image in patches, a patch sequence, an attention map."""

from __future__ import annotations

import matplotlib.pyplot as plt
from cycler import cycler
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from torch import Tensor
from torchvision.utils import make_grid

from vit_lessons.patch_embedding import as_pair

__all__ = [
    "set_style",
    "show_attention",
    "show_image",
    "show_patch_grid",
    "show_patches",
]

# The palette of Okabe and Ito: color-blind readers can tell these apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def set_style(image_format: str = "png") -> None:
    """Set fonts, colors and the format of pictures for a notebook.

    Args:
        image_format: "png" for drawings, "jpeg" for photographs, which are
            then five times smaller.
    """
    plt.rcParams["figure.constrained_layout.use"] = True
    plt.rcParams["axes.prop_cycle"] = cycler(color=PALETTE)
    # Only notebooks have this package, so it is not imported above.
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    jpeg = {"pil_kwargs": {"quality": 80}}
    options = jpeg if image_format == "jpeg" else {}
    set_matplotlib_formats(image_format, **options)


def show_image(image: Tensor, *, ax: Axes | None = None) -> Axes:
    """Draw an image with its pixel axes.

    Args:
        image: Numbers in [0, 1].
        ax: Axes to draw on. None makes a new figure.

    Shape:
        image: (C, H, W) with C = 1 (gray) or C = 3 (color)

    Raises:
        ValueError: image is not (1, H, W) or (3, H, W).
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(
            f"image must be (1, H, W) or (3, H, W), got {tuple(image.shape)}"
        )
    ax = ax or plt.figure().add_subplot()
    pixels = image.permute(1, 2, 0).numpy(force=True)  # (H, W, C)
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=1)
    ax.set(xlabel="column (pixels)", ylabel="row (pixels)")
    return ax


def show_patch_grid(
    image: Tensor,
    patch_size: int | tuple[int, int],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw an image with lines between its patches.

    Args:
        image: Numbers in [0, 1].
        patch_size: Patch side P, or (height, width), in pixels.
        ax: Axes to draw on. None makes a new figure.

    Shape:
        image: (C, H, W) with C = 1 or C = 3
    """
    p1, p2 = as_pair("patch_size", patch_size)
    ax = show_image(image, ax=ax)
    height, width = image.shape[1:]
    # Pixel 0 reaches from -0.5 to 0.5.
    ax.hlines([y - 0.5 for y in range(p1, height, p1)], -0.5, width - 0.5)
    ax.vlines([x - 0.5 for x in range(p2, width, p2)], -0.5, height - 0.5)
    thin = min(1.0, 14 * p2 / width)  # many lines must not hide the image
    shadow = [Stroke(linewidth=2 * thin, foreground="black"), Normal()]
    for lines in ax.collections:
        lines.set(color="white", linewidth=thin, path_effects=shadow)
    return ax


def show_patches(
    patches: Tensor,
    patch_size: int | tuple[int, int],
    *,
    columns: int = 14,
    ax: Axes | None = None,
) -> Axes:
    """Draw a sequence of patches with gaps, in reading order.

    Args:
        patches: The patches of one image, numbers in [0, 1].
        patch_size: Patch side P, or (height, width), in pixels.
        columns: Patches in a row.
        ax: Axes to draw on. None makes a new figure.

    Shape:
        patches: (N, C * P * P) with C = 1 or C = 3
    """
    p1, p2 = as_pair("patch_size", patch_size)
    small = rearrange(patches, "n (c p1 p2) -> n c p1 p2", p1=p1, p2=p2)
    gap = max(1, p1 // 4)
    ax = ax or plt.figure().add_subplot()
    sheet = make_grid(small, nrow=columns, padding=gap, pad_value=1)
    ax.imshow(sheet.permute(1, 2, 0).numpy(force=True))
    firsts = range(0, len(patches), columns)
    ax.set_yticks([gap + p1 / 2 + i * (p1 + gap) for i in range(len(firsts))])
    ax.set_yticklabels(firsts)
    ax.set_xticks([gap + p2 / 2 + i * (p2 + gap) for i in range(columns)])
    ax.set_xticklabels([f"+{i}" for i in range(columns)])
    ax.set(
        xlabel="patches to the right of the first one",
        ylabel="number of the first patch in the row",
    )
    return ax


def show_attention(
    image: Tensor,
    weights: Tensor,
    *,
    query: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw attention weights over the image that they look at.

    Args:
        image: Numbers in [0, 1].
        weights: One weight for each patch, laid out as the grid.
        query: Number of the patch that asks; it gets a frame.
        ax: Axes to draw on. None makes a new figure.

    Shape:
        image: (C, H, W), weights: (gh, gw)

    Raises:
        ValueError: weights is not (gh, gw), or query is no patch number.
    """
    if weights.ndim != 2:
        raise ValueError(
            f"weights must be (gh, gw), got {tuple(weights.shape)}"
        )
    gh, gw = weights.shape
    if query is not None and not 0 <= query < gh * gw:
        raise ValueError(f"query must be in 0..{gh * gw - 1}, got {query}")
    height, width = image.shape[1:]
    ax = show_image(image.mean(0, keepdim=True), ax=ax)
    heat = ax.imshow(
        weights.numpy(force=True),
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        cmap="inferno",
        norm=PowerNorm(0.5, vmin=0),  # small weights show too
        alpha=0.6,
    )
    ax.figure.colorbar(heat, ax=ax, label="attention weight", shrink=0.8)
    if query is not None:
        p1, p2 = height / gh, width / gw
        corner = (query % gw * p2 - 0.5, query // gw * p1 - 0.5)
        frame = Rectangle(corner, p2, p1, fill=False, edgecolor="cyan", lw=2)
        ax.add_patch(frame)
    return ax
