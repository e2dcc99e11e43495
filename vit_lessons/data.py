"""Images: photographs and digits without a download, and CIFAR-10.

The photographs and digits come with scikit-learn. The photographs are
"china.jpg" by danielbuechele and "flower.jpg" by vultilion, both under
CC BY 2.0.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError

import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from vit_lessons.download import patience
from vit_lessons.patch_embedding import as_pair

__all__ = [
    "DatasetError",
    "ImageData",
    "ImageDataset",
    "crop_photographs",
    "load_cifar10",
    "load_data",
    "load_digits",
    "load_photograph",
    "split_digits",
]


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


def crop_photographs(
    num_images: int,
    size: int | tuple[int, int] = 32,
    *,
    seed: int = 0,
    test: bool = False,
) -> Tensor:
    """Cut small images out of the two photographs, at random places.

    The photographs are first made half as large, 213 x 320 pixels.

    Args:
        num_images: Number N of images.
        size: Side of the images, or (height, width), in pixels.
        seed: Another seed gives other places.
        test: Cut from the left 120 columns of the photographs, which the
            other images do not show.

    Shape:
        (N, 3, H, W), float32 in [0, 1]

    Raises:
        ValueError: num_images is not positive, or size is larger than the part
            of the photographs.
    """
    if num_images < 1:
        raise ValueError(f"num_images must be positive, got {num_images}")
    height, width = as_pair("size", size)
    both = [load_photograph(name, (213, 320)) for name in ("china", "flower")]
    columns = slice(120) if test else slice(120, 320)
    part = torch.stack(both)[..., columns]
    if height > part.shape[2] or width > part.shape[3]:
        raise ValueError(
            f"size must be at most {tuple(part.shape[2:])}, got {size}"
        )
    # Every place of a window: a view, not a copy. (2, 3, rows, columns, H, W)
    windows = part.unfold(2, height, 1).unfold(3, width, 1)
    generator = torch.Generator().manual_seed(seed)
    name, row, column = (
        torch.randint(n, (num_images,), generator=generator)
        for n in (2, *windows.shape[2:4])
    )
    return windows[name, :, row, column]


def load_digits() -> tuple[Tensor, Tensor]:
    """Load 1797 handwritten digits, 8 x 8 pixels each.

    Shape:
        images (1797, 1, 8, 8), float32 in [0, 1], 0 is paper and 1 is ink;
        labels (1797,), int64 in 0..9
    """
    digits = datasets.load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    return images, torch.from_numpy(digits.target).long()


@dataclass(frozen=True)
class ImageData:
    """Images to learn from and to test with.

    Args:
        name: Name of the data.
        classes: Names of the K classes.
        train_images, test_images: (N, C, H, W), uint8, or float32 in [0, 1].
        train_labels, test_labels: (N,), int64 in 0..K-1.
    """

    name: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


class ImageDataset(Dataset):
    """Images with labels, each image transformed when it is asked for.

    Args:
        images: The images.
        labels: One label for each.
        transform: From an image to an image. None changes nothing.

    Shape:
        images: (N, C, H, W), labels: (N,) -> items ((C, H, W), ())

    Raises:
        ValueError: images and labels differ in number.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if len(images) != len(labels):
            raise ValueError(
                "labels must be as many as images, got "
                f"{len(labels)} and {len(images)}"
            )
        self.images, self.labels = images, labels
        self.transform = transform or nn.Identity()  # can be pickled

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[index]), self.labels[index]


def split_digits(seed: int = 0) -> ImageData:
    """Load the handwritten digits: 1347 to learn from, 450 to test with.

    Args:
        seed: Of the choice of the 450. Each digit is as frequent among them
            as among all.
    """
    images, labels = load_digits()
    train, test = train_test_split(
        torch.arange(len(labels)),
        test_size=450,
        stratify=labels,
        random_state=seed,
    )
    return ImageData(
        "digits",
        tuple("0123456789"),
        images[train],
        labels[train],
        images[test],
        labels[test],
    )


class DatasetError(RuntimeError):
    """A data set cannot be had. The message says why, and what helps."""


def load_cifar10(folder: str | Path = "data") -> ImageData:
    """Load CIFAR-10: 60 000 photographs of 32 x 32 pixels in 10 classes.

    Args:
        folder: Where the data is, or where torchvision downloads it to:
            170 MB, which become 350 MB.

    Shape:
        train_images (50000, 3, 32, 32), test_images (10000, 3, 32, 32), uint8

    Raises:
        DatasetError: There is no network, no room, or the files are damaged.

    Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny
    Images, https://www.cs.toronto.edu/~kriz/cifar.html
    """
    folder = Path(folder).resolve()
    try:
        with patience():
            train = CIFAR10(folder, train=True, download=True)
            test = CIFAR10(folder, train=False)
    except Exception as error:
        raise DatasetError(
            f"CIFAR-10 could not be loaded: {_advice(error, folder)} "
            f"({type(error).__name__}: {error})"
        ) from error
    parts = []
    for part in (train, test):
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2)
        parts += [images, torch.tensor(part.targets)]
    return ImageData("CIFAR-10", tuple(train.classes), *parts)


def load_data(
    device: str | torch.device, folder: str | Path = "data"
) -> ImageData:
    """Load what a device can learn in minutes.

    That is CIFAR-10 on a GPU and the digits on a CPU. If CIFAR-10 cannot be
    had, a warning says why, and the result is the digits.

    Args:
        device: The device of the model.
        folder: See load_cifar10.
    """
    if torch.device(device).type == "cpu":
        return split_digits()
    try:
        return load_cifar10(folder)
    except DatasetError as error:
        warnings.warn(
            f"{error}\nGoing on with the digits, which need no download.",
            stacklevel=2,
        )
        return split_digits()


def _advice(error: Exception, folder: Path) -> str:
    """What happened, and what to do, in a sentence each."""
    archive = folder / CIFAR10.filename
    files = f"{folder / CIFAR10.base_folder} and {archive}"
    if isinstance(error, HTTPError):
        return (
            "the server does not send it. Try again later, or get "
            f"{CIFAR10.filename} elsewhere and put it at {archive}"
        )
    if isinstance(error, URLError | TimeoutError | ConnectionError):
        return (
            "there is no connection. Connect and try again, or download "
            f"{CIFAR10.url} elsewhere and put it at {archive}"
        )
    if isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
    ):
        return (
            f"the disk is full. Make room for 520 MB in {folder} and try "
            "again, or name another folder"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return f"{folder} cannot be used. Name a folder that can be written to"
    if isinstance(error, HTTPException | RuntimeError | OSError | EOFError):
        return (
            f"the files are damaged or not complete. Delete {files} and try "
            "again"
        )
    return f"delete {files} and try again"
