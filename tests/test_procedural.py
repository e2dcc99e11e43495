"""Images that a rule draws."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from vit_lessons.procedural import (
    NEW_SHAPES,
    NOISE,
    SHAPES,
    TILE,
    make_match,
    make_shapes,
    shape_masks,
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


# Shapes of other kinds, and at another size.


def written_out(n, seed=0):
    """The shapes of 16 x 16 pixels as they were first written."""
    generator = torch.Generator().manual_seed(seed * 1_000_003)

    def uniform(low, high, axes=1):
        shape = (1000, axes, 1, 1)
        return low + (high - low) * torch.rand(shape, generator=generator)

    def coordinates(row, column):
        centers = torch.arange(16) + 0.5
        y = (centers[:, None] - row).expand(-1, -1, -1, 16)
        x = (centers - column).expand(-1, -1, 16, -1)
        return y, x

    labels = torch.randint(4, (1000,), generator=generator)
    r = uniform(3.5, 5.5)
    turn = uniform(-math.pi / 9, math.pi / 9)
    row, column = (r + (16 - 2 * r) * uniform(0, 1) for _ in range(2))
    y, x = coordinates(row, column)
    x, y = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    slope = math.sqrt(3) / 2
    bars = [
        torch.minimum(0.95 * r - along.abs(), 0.33 * r - across.abs())
        for along, across in ((x, y), (y, x))
    ]
    edges = [
        r - (x**2 + y**2).sqrt(),
        0.8 * r - torch.maximum(x.abs(), y.abs()),
        0.55 * r - torch.maximum(y, slope * x.abs() - 0.5 * y),
        torch.maximum(*bars),
    ]
    edge = torch.stack(edges, dim=1)[torch.arange(1000), labels]
    y, x = coordinates(uniform(0, 16), uniform(0, 16))
    blob = uniform(1, 2) - (x**2 + y**2).sqrt()
    images = uniform(0, 0.4, axes=3)
    for what in (blob, edge):
        color = uniform(0.5, 1, axes=3)
        images = images + (what + 0.5).clamp(0, 1) * (color - images)
    noise = torch.randn(images.shape, generator=generator)
    return (images + 0.05 * noise).clamp(0, 1)[:n], labels[:n]


@pytest.mark.parametrize("seed", [0, 5])
def test_the_shapes_of_16_pixels_are_what_they_were(seed):
    images, labels = make_shapes(300, seed=seed)
    expected_images, expected_labels = written_out(300, seed)
    assert torch.equal(labels, expected_labels)
    assert torch.equal(images, expected_images)
    assert torch.equal(make_shapes(300, seed=seed, size=16)[0], images)
    again = make_shapes(300, seed=seed, kinds=SHAPES)
    assert torch.equal(again[0], images)


@pytest.mark.parametrize("size", [1, 7, 16, 24, 33])
@pytest.mark.parametrize("kinds", [SHAPES, NEW_SHAPES, ("ring",)])
def test_a_size_is_the_side_of_the_images(size, kinds):
    images, labels = make_shapes(20, size=size, kinds=kinds)
    assert images.shape == (20, 3, size, size)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    assert 0 <= labels.min() <= labels.max() < len(kinds)


def correlations(one, other):
    """Of each image with the same one of the other."""
    one, other = (
        x.flatten(1) - x.flatten(1).mean(1, True) for x in (one, other)
    )
    return torch.cosine_similarity(one, other)


@pytest.mark.parametrize("kinds", [SHAPES, NEW_SHAPES])
@pytest.mark.parametrize("size", [32, 48, 64])
def test_another_size_shows_the_same_scenes(size, kinds):
    small, labels = make_shapes(300, seed=2, kinds=kinds)
    large, large_labels = make_shapes(300, seed=2, size=size, kinds=kinds)
    assert torch.equal(labels, large_labels)
    shrunk = F.avg_pool2d(large, size // 16)
    gap = (shrunk - small).abs().mean()
    assert gap < 0.8 * NOISE * (1 + (16 / size) ** 2) ** 0.5 + 0.02
    assert correlations(shrunk, small).min() > 0.8
    for wrong in (large.flip(2), large.flip(3), large.transpose(2, 3)):
        others = correlations(F.avg_pool2d(wrong, size // 16), small)
        assert others.median() < 0.7


def test_more_pixels_are_sharper():
    """The edge stays one pixel wide, so half as wide in the scene."""
    shares = []
    for size in (16, 64):
        images, _ = make_shapes(200, size=size, kinds=("square",))
        mean = images.mean(1).flatten(1)
        low, high = mean.median(1, True).values, mean.amax(1, True)
        share = (mean - low) / (high - low)
        shares.append(((share > 0.35) & (share < 0.65)).float().mean())
    assert shares[1] < 0.6 * shares[0]


def test_the_kinds_are_the_classes_in_their_order():
    images, labels = make_shapes(300)
    turned, turned_labels = make_shapes(300, kinds=SHAPES[::-1])
    assert torch.equal(labels, turned_labels)  # the same random numbers
    alone, _ = make_shapes(300, kinds=("cross",) * 4)
    same = (images == alone).flatten(1).all(1)
    assert torch.equal(same, labels == SHAPES.index("cross"))
    same = (turned == alone).flatten(1).all(1)
    assert torch.equal(same, labels == 3 - SHAPES.index("cross"))


def bright_area(kind):
    """Mean area of a shape, in pixels of 16 x 16, where edges are sharp."""
    images, _ = make_shapes(500, size=64, kinds=(kind,))
    ground = images.flatten(2).median(2).values[..., None, None]
    bright = (images - ground).sum(1) > 0.3
    return bright.sum((1, 2)).float().mean().item() / 16


def test_the_areas_of_the_new_shapes_are_those_of_geometry():
    square_of_radius = 4.5**2 + 2**2 / 12  # from 3.5 to 5.5 pixels
    areas = {
        "ring": math.pi * (1 - 0.45**2),
        "half disc": math.pi / 2,
        "diamond": 2.0,
        "corner": 1.6**2 - 0.95**2,  # a square without one at its corner
    }
    extra = [
        bright_area(kind) - area * square_of_radius
        for kind, area in areas.items()
    ]
    # The same for all: the blob, of 1 to 2 pixels, and the edges.
    assert 5 < min(extra) < max(extra) < min(extra) + 1


@pytest.mark.parametrize("kinds", [NEW_SHAPES, SHAPES])
def test_the_classes_can_be_told_apart(kinds):
    """By the nearest of 4000 images, better than by chance, 25 percent."""
    train, labels = make_shapes(4000, seed=1, kinds=kinds)
    test, expected = make_shapes(300, seed=2, kinds=kinds)
    nearest = torch.cdist(test.flatten(1), train.flatten(1)).argmin(1)
    accuracy = (labels[nearest] == expected).float().mean()
    assert accuracy > 0.4


def test_old_and_new_shapes_have_other_names():
    assert len({*SHAPES, *NEW_SHAPES}) == 8


@pytest.mark.parametrize("size", [0, -3])
def test_a_size_that_makes_no_sense_is_refused(size):
    with pytest.raises(ValueError, match=f"size must be positive, got {size}"):
        make_shapes(5, size=size)


@pytest.mark.parametrize(
    "kinds", [(), [], ("disc", "star"), ("Disc",), "disc", ("disc", "")]
)
def test_unknown_kinds_are_refused(kinds):
    with pytest.raises(
        ValueError, match=r"some of disc, .*, ring, .*, corner, got "
    ):
        make_shapes(5, kinds=kinds)


@pytest.mark.parametrize("kinds", [SHAPES, NEW_SHAPES])
@pytest.mark.parametrize("size", [16, 48])
def test_a_mask_covers_the_pixels_that_have_the_color_of_the_shape(size, kinds):
    count = 200
    images, _ = make_shapes(count, seed=5, size=size, kinds=kinds)
    masks = shape_masks(count, seed=5, size=size, kinds=kinds)
    assert masks.shape == (count, 1, size, size)
    assert masks.dtype == torch.float32
    assert masks.min() == 0
    assert masks.max() == 1
    inside, outside = (masks == 1).float(), (masks == 0).float()
    color = (images * inside).sum((2, 3)) / inside.sum((2, 3))  # (B, 3)
    distance = (images - color[..., None, None]).abs().amax(1, keepdim=True)
    # Inside there is one color and noise; the largest of three numbers of a
    # normal distribution is beyond 4 deviations once in 5000 times.
    alike = distance < 4.5 * NOISE
    assert (alike * inside).sum() / inside.sum() > 0.99
    # Outside there is the ground, which is darker, and a blob.
    assert (alike * outside).sum() / outside.sum() < 0.1


def test_a_mask_has_a_size_and_kinds_that_make_sense():
    with pytest.raises(ValueError, match="size must be positive, got 0"):
        shape_masks(1, size=0)
    with pytest.raises(ValueError, match="kinds must be some of"):
        shape_masks(1, kinds=("star",))
