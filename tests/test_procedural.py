"""Images that a rule draws."""

import pytest
import torch
from scipy import ndimage

from vit_lessons.procedural import (
    NOISE,
    SHAPES,
    TILE,
    make_match,
    make_shapes,
)

both = pytest.mark.parametrize(
    ("make", "classes"), [(make_shapes, len(SHAPES)), (make_match, 2)]
)


def keys(images):
    return {image.numpy().tobytes() for image in images}


@both
@pytest.mark.parametrize("n", [1, 7, 1001])
def test_images_and_labels_have_their_types_and_ranges(make, classes, n):
    images, labels = make(n)
    assert images.shape == (n, 3, 16, 16)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    assert labels.shape == (n,)
    assert labels.dtype == torch.int64
    assert 0 <= labels.min() <= labels.max() < classes


@both
def test_the_first_images_are_the_same_however_many_there_are(make, classes):
    images, labels = make(2001, seed=4)
    for n in (1, 999, 1000, 1001, 2000):
        fewer_images, fewer_labels = make(n, seed=4)
        assert torch.equal(fewer_images, images[:n])
        assert torch.equal(fewer_labels, labels[:n])


@both
def test_no_image_comes_twice(make, classes):
    several = [keys(make(1500, seed=seed)[0]) for seed in (0, 1, 2)]
    assert len(set.union(*several)) == 4500


@both
def test_no_seed_is_seed_0(make, classes):
    assert torch.equal(make(5)[0], make(5, seed=0)[0])


@both
def test_the_classes_are_equally_frequent(make, classes):
    n = 4000
    counts = make(n)[1].bincount(minlength=classes)
    spread = (n / classes * (1 - 1 / classes)) ** 0.5
    assert (counts - n / classes).abs().max() < 4 * spread


@both
def test_the_random_numbers_of_others_stay(make, classes):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = make(10)[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(make(10)[0], first)


@both
@pytest.mark.parametrize(("n", "seed"), [(0, 0), (-3, 0), (5, -1)])
def test_numbers_that_make_no_sense_are_refused(make, classes, n, seed):
    with pytest.raises(ValueError, match=f"at least 0, got {n} and {seed}"):
        make(n, seed=seed)


# Two tiles: equal or not?


def colors_of_cells(images):
    """The 2 x 2 colors of each of the 4 x 4 cells: (N, 16, 12)."""
    half = TILE // 2
    blocks = images.unflatten(2, (8, half)).unflatten(4, (8, half)).mean((3, 5))
    cells = blocks.unflatten(2, (4, 2)).unflatten(4, (4, 2))
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)


def tiles_of(images):
    """The two cells that are least gray, and the colors of all cells."""
    colors = colors_of_cells(images)
    contrast = (colors - 0.5).abs().amax(2)
    return contrast, contrast.topk(2).indices, colors


def test_two_cells_hold_a_tile_and_the_others_are_gray():
    contrast, _, _ = tiles_of(make_match(1500)[0])
    contrast = contrast.sort(descending=True).values
    noise = NOISE / 2  # the mean of 4 pixels
    assert (contrast[:, 2:] < 6 * noise).all()
    assert (contrast[:, 1] > 8 * noise).float().mean() > 0.99


def test_a_tile_has_2_x_2_colors_in_its_cell():
    images, _ = make_match(1500)
    half = TILE // 2
    blocks = images.unflatten(2, (8, half)).unflatten(4, (8, half))
    gaps = blocks - blocks.mean((3, 5), keepdim=True)
    assert gaps.abs().max() < 6 * NOISE


def test_the_label_says_whether_the_tiles_are_equal():
    images, labels = make_match(2000, seed=3)
    _, where, colors = tiles_of(images)
    one, other = (colors[torch.arange(2000), where[:, i]] for i in (0, 1))
    equal = (one - other).abs().amax(1) < 6 * NOISE / 2**0.5
    assert (equal.long() == labels).float().mean() > 0.998


def test_a_tile_is_in_each_cell_equally_often():
    _, where, _ = tiles_of(make_match(4000)[0])
    counts = where.flatten().bincount(minlength=16)
    assert (counts - 500).abs().max() < 5 * 500**0.5


def test_the_tiles_are_in_each_two_cells():
    _, where, _ = tiles_of(make_match(4000)[0])
    assert len(where.sort(dim=1).values.unique(dim=0)) == 16 * 15 / 2


def test_the_place_of_the_tiles_does_not_tell_the_label():
    images, labels = make_match(4000)
    _, where, _ = tiles_of(images)
    rows, columns = where // 4, where % 4
    distance = (rows.diff().abs() + columns.diff().abs()).squeeze(1).float()
    gap = distance[labels == 1].mean() - distance[labels == 0].mean()
    assert gap.abs() < 0.2


# Shapes.


def mask_of(image):
    """The largest bright spot: the shape, perhaps with the blob."""
    ground = image.flatten(1).median(dim=1).values.view(3, 1, 1)
    bright = (image - ground).sum(0) > 0.3
    spots, _ = ndimage.label(bright.numpy())
    spots = torch.from_numpy(spots)
    return spots == spots.flatten().bincount()[1:].argmax() + 1


@pytest.fixture(scope="module")
def shapes():
    images, labels = make_shapes(1200)
    return torch.stack([mask_of(image) for image in images]), labels


def mean_area(masks, labels, name):
    return masks[labels == SHAPES.index(name)].sum((1, 2)).float().mean()


def test_the_areas_of_the_shapes_are_those_of_geometry(shapes):
    square_of_radius = 4.5**2 + 2**2 / 12  # from 3.5 to 5.5 pixels
    areas = {"disc": 3.14, "square": 2.56, "cross": 2.07, "triangle": 1.57}
    extra = torch.stack(
        [
            mean_area(*shapes, name) - area * square_of_radius
            for name, area in areas.items()
        ]
    )
    assert 0 < extra.min() < extra.max() < 15  # edges and the blob
    assert extra.max() - extra.min() < 5  # the areas are 10 apart


def spread_of(mask):
    """Area by the square of the largest distance from the middle."""
    places = mask.nonzero().float()
    distance = (places - places.mean(0)).norm(dim=1).quantile(0.97) + 0.5
    return len(places) / distance.item() ** 2


def test_a_disc_is_round_and_a_triangle_is_not(shapes):
    masks, labels = shapes
    of = {
        name: [
            spread_of(mask)
            for mask, label in zip(masks, labels.tolist(), strict=True)
            if SHAPES[label] == name
        ]
        for name in ("disc", "triangle")
    }
    round_discs = sum(s > 2.2 for s in of["disc"]) / len(of["disc"])
    round_others = sum(s > 2.2 for s in of["triangle"]) / len(of["triangle"])
    assert round_discs > 0.75
    assert round_others < 0.15


def test_a_square_is_full_where_a_cross_is_empty(shapes):
    """Between the arms, halfway to the corners of the square."""
    masks, labels = shapes
    full = {"square": [], "cross": []}
    for mask, label in zip(masks, labels.tolist(), strict=True):
        if SHAPES[label] in full:
            rows, columns = mask.nonzero().T
            area = (rows.max() - rows.min() + 1) * (
                columns.max() - columns.min() + 1
            )
            full[SHAPES[label]].append((len(rows) / area).item())
    square, cross = (torch.tensor(f).median() for f in full.values())
    assert square > cross + 0.1


def test_a_shape_stands_anywhere(shapes):
    masks, _ = shapes
    assert masks.any(0).all()
    often = masks.float().mean(0)
    assert (often[4:12, 4:12] > 0.2).all()
