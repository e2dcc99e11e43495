"""Pictures."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch

from vit_lessons import patchify
from vit_lessons.plotting import (
    show_attention,
    show_image,
    show_patch_grid,
    show_patches,
)

mpl.use("agg")  # opens no windows
IMAGE = torch.linspace(0, 1, 3 * 8 * 12).view(3, 8, 12)
DRAW = {
    "image": lambda ax: show_image(IMAGE, ax=ax),
    "grid": lambda ax: show_patch_grid(IMAGE, (2, 3), ax=ax),
    "patches": lambda ax: show_patches(
        patchify(IMAGE[None], (2, 3))[0], (2, 3), columns=4, ax=ax
    ),
    "attention": lambda ax: show_attention(IMAGE, torch.eye(4), query=9, ax=ax),
}


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_a_picture_is_drawn_on_the_given_axes_with_labels(draw, ax):
    assert draw(ax) is ax
    assert ax.images
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    ax.figure.canvas.draw()


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_a_picture_without_axes_gets_its_own_figure(draw):
    before = plt.get_fignums()
    ax = draw(None)
    assert plt.get_fignums() == [*before, ax.figure.number]
    plt.close(ax.figure)


def test_grid_lines_stand_between_patches(ax):
    rows, columns = show_patch_grid(IMAGE, (2, 3), ax=ax).collections
    heights = {segment[0][1] for segment in rows.get_segments()}
    places = {segment[0][0] for segment in columns.get_segments()}
    assert heights == {1.5, 3.5, 5.5}
    assert places == {2.5, 5.5, 8.5}


def test_patches_stand_in_reading_order(ax):
    patches = torch.arange(6.0).repeat_interleave(4).view(6, 4) / 5
    picture = show_patches(patches, 2, columns=3, ax=ax).images[0]
    sheet = picture.get_array()[..., 0]  # patches of 2, gaps of 1
    centers = [sheet[1 + 3 * (n // 3), 1 + 3 * (n % 3)] for n in range(6)]
    assert centers == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_the_frame_is_around_the_query(ax):
    # 4 x 4 patches of (2, 3) pixels: patch 9 is in row 2, column 1.
    show_attention(IMAGE, torch.eye(4), query=9, ax=ax)
    (frame,) = ax.patches
    assert frame.get_xy() == (2.5, 3.5)
    assert (frame.get_width(), frame.get_height()) == (3, 2)


def test_the_weights_cover_the_image(ax):
    show_attention(IMAGE, torch.eye(4), ax=ax)
    assert list(ax.images[1].get_extent()) == [-0.5, 11.5, 7.5, -0.5]


@pytest.mark.parametrize("shape", [(8, 12), (2, 8, 12), (1, 3, 8, 12)])
def test_only_gray_and_color_images_are_drawn(shape):
    with pytest.raises(ValueError, match="image must be"):
        show_image(torch.zeros(shape))


def test_weights_must_be_a_grid():
    with pytest.raises(ValueError, match=r"\(gh, gw\), got \(16,\)"):
        show_attention(IMAGE, torch.ones(16))


@pytest.mark.parametrize("query", [-1, 16])
def test_a_query_must_be_a_patch(query):
    with pytest.raises(ValueError, match=rf"0\.\.15, got {query}"):
        show_attention(IMAGE, torch.eye(4), query=query)
