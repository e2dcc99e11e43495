"""Images without a download: two photographs and 1797 digits.

They come with scikit-learn. The photographs are "china.jpg" by
danielbuechele and "flower.jpg" by vultilion, both under CC BY 2.0.
"""

from __future__ import annotations

import torch
from sklearn import datasets
from torch import Tensor
from torchvision.transforms import v2

from vit_lessons.patch_embedding import as_pair

__all__ = ["load_digits", "load_photograph"]


def load_photograph(
    name: str = "china", size: int | tuple[int, int] | None = None
) -> Tensor:
    """Load one of two color photographs.

    Args:
        name: "china" (a palace and trees) or "flower" (a dahlia).
        size: Height and width of the result, in pixels. The middle of the
            photograph is cut out and resized. None keeps all 427 x 640.

    Shape:
        (3, H, W), red, green, blue, float32 in [0, 1]

    Raises:
        ValueError: name is unknown, or size is no size.
    """
    if name not in ("china", "flower"):
        raise ValueError(f'name must be "china" or "flower", got {name!r}')
    array = datasets.load_sample_image(f"{name}.jpg").copy()  # read-only
    image = torch.from_numpy(array).permute(2, 0, 1) / 255  # (3, 427, 640)
    if size is None:
        return image
    height, width = as_pair("size", size)
    scale = min(image.shape[1] / height, image.shape[2] / width)
    middle = v2.CenterCrop((round(height * scale), round(width * scale)))
    resize = v2.Resize((height, width), antialias=True)
    return resize(middle(image)).clamp(0, 1)


def load_digits() -> tuple[Tensor, Tensor]:
    """Load 1797 handwritten digits, 8 x 8 pixels each.

    Shape:
        images (1797, 1, 8, 8), float32 in [0, 1], 0 is paper and 1 is ink;
        labels (1797,), int64 in 0..9
    """
    digits = datasets.load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    return images, torch.from_numpy(digits.target).long()
