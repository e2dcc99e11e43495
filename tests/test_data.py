"""Images without a download."""

import pytest
import torch

from vit_lessons.data import load_digits, load_photograph


@pytest.mark.parametrize("name", ["china", "flower"])
def test_a_photograph_has_427_x_640_pixels_in_0_to_1(name):
    image = load_photograph(name)
    assert image.shape == (3, 427, 640)
    assert image.dtype == torch.float32
    assert (image.min(), image.max()) == (0, 1)


def test_the_two_photographs_differ():
    assert not load_photograph("china").equal(load_photograph("flower"))


@pytest.mark.parametrize("size", [(224, 224), (60, 200), (200, 60), (1, 1)])
def test_a_size_is_height_then_width(size):
    image = load_photograph(size=size)
    assert image.shape == (3, *size)
    assert 0 <= image.min() <= image.max() <= 1


def test_an_int_is_a_square_of_the_middle():
    small = load_photograph(size=61)
    middle = load_photograph()[:, :, 106:533]  # 427 x 427
    means = middle.unflatten(1, (61, 7)).unflatten(3, (61, 7)).mean((2, 4))
    assert (small - means).abs().mean() < 0.02


def test_an_unknown_photograph_is_refused():
    with pytest.raises(ValueError, match=r'"china" or "flower", got \'cat\''):
        load_photograph("cat")


def test_the_digits_are_1797_images_with_labels():
    images, labels = load_digits()
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
    assert labels.shape == (1797,)
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(10))
