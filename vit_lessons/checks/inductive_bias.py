"""Exercises of chapter 09, with the mistakes that learners make."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vit_lessons.checks.catalogue import Mistake, WrongForm, combine
from vit_lessons.checks.compare import settings
from vit_lessons.checks.exercise import Case, Exercise
from vit_lessons.checks.observe import Facts, ObservedExercise, number
from vit_lessons.checks.part import normal
from vit_lessons.checks.patch_embedding import (
    INT,
    SQUARE_IMAGES,
    SQUARE_PATCHES,
)
from vit_lessons.inductive_bias import equivariance_error, shuffle_patches
from vit_lessons.patch_embedding import as_pair

Size = int | tuple[int, int]
Function = Callable[[Tensor], Tensor]

NOT_DIVIDED = (
    "The distance is not divided: divide it by the size of the output, "
    "function(x).norm()."
)


def _observe_error(
    function: Callable[..., object],
    layer: Function,
    x: Tensor,
    transform: Function,
    transform_output: Function,
) -> Facts | None:
    result = function(layer, x, transform, transform_output)
    if result is None:
        return None
    return {"error": number("the error", result)}


def _error(
    got: Callable = lambda f, x, t, u: f(t(x)),
    expected: Callable = lambda f, x, t, u: u(f(x)),
    size: Callable = lambda x, output, got, difference: output.norm(),
    length: Callable = lambda difference: difference.norm(),
    end: Callable = lambda error: error,
) -> Callable[..., Tensor]:
    """equivariance_error, with some steps exchanged."""

    def form(f: Function, x: Tensor, t: Function, u: Function) -> Tensor:
        one, two = got(f, x, t, u), expected(f, x, t, u)
        difference = one - two
        return end(length(difference) / size(x, f(x), one, difference))

    return form


def _error_forms() -> Iterator[WrongForm]:
    return combine(
        _error,
        Mistake(
            "The output is not transformed: compare function(transform(x)) "
            "with transform_output(function(x)).",
            {"expected": lambda f, x, t, u: f(x)},
        ),
        Mistake(
            "The input is not transformed: compare function(transform(x)) "
            "with transform_output(function(x)).",
            {"got": lambda f, x, t, u: f(x)},
        ),
        Mistake(
            "transform moves the output: transform_output does that, "
            "transform moves the input.",
            {"expected": lambda f, x, t, u: t(f(x))},
        ),
        Mistake(
            "transform_output moves the input: transform does that, "
            "transform_output moves the output.",
            {"got": lambda f, x, t, u: f(u(x))},
        ),
        Mistake(
            "Both transforms act on one side: compare function(transform(x)) "
            "with transform_output(function(x)).",
            {
                "got": lambda f, x, t, u: u(f(t(x))),
                "expected": lambda f, x, t, u: f(x),
            },
        ),
        Mistake(
            "function is left out on one side: compare "
            "function(transform(x)) with transform_output(function(x)).",
            {"got": lambda f, x, t, u: t(x)},
            {"expected": lambda f, x, t, u: u(x)},
        ),
        Mistake(
            NOT_DIVIDED,
            {"size": lambda x, output, got, difference: 1},
            {
                "size": lambda x, output, got, difference: 1,
                "length": lambda difference: difference.abs().mean(),
            },
            {
                "size": lambda x, output, got, difference: 1,
                "length": lambda difference: difference.abs().sum(),
            },
            {
                "size": lambda x, output, got, difference: 1,
                "length": lambda difference: difference.abs().max(),
            },
            {
                "size": lambda x, output, got, difference: 1,
                "length": lambda difference: difference.square().mean(),
            },
            {
                "size": lambda x, output, got, difference: 1,
                "length": lambda difference: difference.square().mean().sqrt(),
            },
        ),
        Mistake(
            "The distance is divided by the number of elements: divide it by "
            "the size of the output, function(x).norm().",
            {"size": lambda x, output, got, difference: output.numel()},
        ),
        Mistake(
            "The distance is divided by the size of the input: divide it by "
            "the size of the output, function(x).norm().",
            {"size": lambda x, output, got, difference: x.norm()},
        ),
        Mistake(
            "The distance is divided by the output for the moved input: "
            "divide it by the size of function(x).",
            {"size": lambda x, output, got, difference: got.norm()},
        ),
        Mistake(
            "The distance is divided by itself: divide it by the size of the "
            "output, function(x).norm().",
            {"size": lambda x, output, got, difference: difference.norm()},
        ),
        Mistake(
            "The size of a tensor is its norm, the root of the sum of "
            "squares, not the mean or the sum of absolute values.",
            {
                "length": lambda difference: difference.abs().sum(),
                "size": lambda x, output, got, difference: output.abs().sum(),
            },
            {
                "length": lambda difference: difference.abs().mean(),
                "size": lambda x, output, got, difference: output.norm(),
            },
            {
                "length": lambda difference: difference.sum().abs(),
                "size": lambda x, output, got, difference: output.sum().abs(),
            },
        ),
        Mistake(
            "The error is the largest difference: take the norm of all "
            "differences, the root of the sum of squares.",
            {
                "length": lambda difference: difference.abs().max(),
                "size": lambda x, output, got, difference: output.abs().max(),
            },
            {
                "length": lambda difference: difference.abs().max(),
                "size": lambda x, output, got, difference: output.norm(),
            },
        ),
        Mistake(
            "The error is squared: take the root of the sums of squares, or "
            "norm().",
            {"end": lambda error: error.square()},
        ),
        Mistake(
            "The square of the distance is divided by a size that is not "
            "squared: use norm() for both.",
            {"length": lambda difference: difference.square().sum()},
        ),
        Mistake(
            "The error is in percent: return it as a share, 1 for 100 %.",
            {"end": lambda error: 100 * error},
        ),
        Mistake(
            "The error is turned over: 0 must say that the two outputs are "
            "the same.",
            {"end": lambda error: 1 - error},
        ),
        Mistake(
            "Each image has an error of its own, and the mean is taken: take "
            "one norm over all images.",
            {
                "length": lambda difference: difference.flatten(1).norm(dim=1),
                "size": lambda x, output, got, difference: output.flatten(
                    1
                ).norm(dim=1),
                "end": lambda error: error.mean(),
            },
        ),
    )


def _right(x: Tensor) -> Tensor:
    return x.roll(1, -1)


def _down(x: Tensor) -> Tensor:
    return x.roll(2, -2)


def _convolve(x: Tensor) -> Tensor:
    """A convolution that closes the image to a ring: it is equivariant."""
    x = F.pad(x, (1, 1, 1, 1), mode="circular")
    return F.conv2d(x, normal(3, x.shape[1], 3, 3, seed=7))


def _convolve_with_border(x: Tensor) -> Tensor:
    return F.conv2d(x, normal(3, x.shape[1], 3, 3, seed=7), padding=1)


def _weigh(x: Tensor) -> Tensor:
    """Each place has its own weight."""
    return x * normal(*x.shape[1:], seed=8).exp() * 5


EQUIVARIANCE_ERROR = ObservedExercise(
    equivariance_error,
    cases=(
        Case(
            "a weight for each place",
            (_weigh, normal(1, 2, 4, 6), _right, _right),
        ),
        Case(
            "a convolution on a ring, which is equivariant",
            (_convolve, normal(1, 2, 4, 6), _right, _right),
            "The error must be 0 for a function that is equivariant.",
        ),
        Case(
            "a convolution, whose border is not equivariant",
            (_convolve_with_border, normal(1, 2, 4, 6), _right, _right),
        ),
        Case(
            "an output that must stay as it is",
            (_convolve, normal(1, 2, 4, 6), _right, lambda y: y),
            "Right for equal transforms only: transform moves the input, "
            "transform_output moves the output.",
        ),
        Case(
            "several images",
            (_weigh, normal(3, 2, 4, 6), _right, _down),
            "Right for one image only: take one norm over all images.",
        ),
        Case(
            "vectors",
            (_weigh, normal(3, 5), _right, _right),
            "Right for images only: x may have any number of axes.",
        ),
        Case(
            "an output of zeros",
            (torch.zeros_like, normal(1, 2, 4, 6), _right, _right),
            "An output of zeros is accepted, and the error is a share of its "
            "size: raise a ValueError.",
        ),
        Case(
            "outputs of two shapes",
            (_weigh, normal(1, 2, 4, 6), _right, lambda y: y[..., :1]),
            "Outputs of two shapes are compared, because the smaller one is "
            "repeated: raise a ValueError.",
        ),
        Case(
            "all axes different",
            (_convolve_with_border, normal(2, 4, 5, 7), _down, _right),
        ),
    ),
    wrong_forms=_error_forms,
    errors={
        "has no attribute 'eval'": (
            "function may be any function, not only a module: call it as it "
            "is, without eval()."
        ),
    },
    observe=_observe_error,
)

INVERSE = (
    "The order is turned round: place i gets patch order[i], patches[:, "
    "order], and not place order[i] patch i."
)
ONE_ORDER = (
    "Each image has an order of its own: order holds for all images, "
    "patches[:, order]."
)
PIXELS = "Pixels change places inside the patches: move whole patches only."


def _shuffle(
    cut: str = "b c (gh p1) (gw p2) -> b (gh gw) (c p1 p2)",
    place: Callable[..., Tensor] = lambda patches, order: patches[:, order],
    join: str = "b (gh gw) (c p1 p2) -> b c (gh p1) (gw p2)",
    across: Callable[..., int] = lambda gh, gw: gw,
    end: Callable[[Tensor], Tensor] = lambda images: images,
) -> Callable[..., Tensor]:
    """shuffle_patches, with some steps exchanged."""

    def form(images: Tensor, patch_size: Size, order: Tensor) -> Tensor:
        p1, p2 = as_pair("patch_size", patch_size)
        gh, gw = images.shape[2] // p1, images.shape[3] // p2
        patches = place(rearrange(images, cut, p1=p1, p2=p2), order)
        gw = across(gh, gw)
        return end(rearrange(patches, join, gw=gw, p1=p1, p2=p2))

    return form


def _rolled(patches: Tensor, order: Tensor) -> Tensor:
    """The order moves on by one from image to image."""
    orders = [order.roll(i) for i in range(len(patches))]
    return torch.stack([p[o] for p, o in zip(patches, orders, strict=True)])


def _drawn_once(patches: Tensor, order: Tensor) -> Tensor:
    with settings():  # the seed that the candidate was called with
        return patches[:, torch.randperm(patches.shape[1])]


def _drawn_for_each(patches: Tensor, order: Tensor) -> Tensor:
    with settings():
        orders = [torch.randperm(len(order)) for _ in patches]
    return torch.stack([p[o] for p, o in zip(patches, orders, strict=True)])


def _rows(images: Tensor, patch_size: Size, order: Tensor) -> Tensor:
    return images[:, :, order]


def _columns(images: Tensor, patch_size: Size, order: Tensor) -> Tensor:
    return images[..., order]


def _single_pixels(images: Tensor, patch_size: Size, order: Tensor) -> Tensor:
    return images.flatten(2)[..., order].view_as(images)


def _shuffle_forms() -> Iterator[WrongForm]:
    for form in (_rows, _columns):
        yield WrongForm(
            "Rows or columns of pixels change places: cut the image into "
            "patches first.",
            form,
        )
    yield WrongForm(
        "Single pixels change places: cut the image into patches first.",
        _single_pixels,
    )
    yield from combine(
        _shuffle,
        Mistake(
            INVERSE,
            {"place": lambda patches, order: patches[:, order.argsort()]},
        ),
        Mistake(
            "The patches stay where they are: place i gets patch order[i], "
            "patches[:, order].",
            {"place": lambda patches, order: patches},
        ),
        Mistake(
            "The images change places: the patches are the second axis, "
            "patches[:, order].",
            {"place": lambda patches, order: patches[order]},
        ),
        Mistake(
            PIXELS,
            {"place": lambda patches, order: patches[..., order]},
            {"place": lambda patches, order: patches[:, order].flip(-1)},
        ),
        Mistake(
            "The order is used backwards: place i gets patch order[i].",
            {"place": lambda patches, order: patches[:, order.flip(0)]},
        ),
        Mistake(
            "A random order is drawn: use order.",
            {"place": _drawn_once},
            {"place": _drawn_for_each},
        ),
        Mistake(ONE_ORDER, {"place": _rolled}),
        Mistake(
            "The pixels of a patch are cut and put back in two orders: use "
            "the same one in both, (c p1 p2).",
            {"cut": "b c (gh p1) (gw p2) -> b (gh gw) (p1 p2 c)"},
            {"cut": "b c (gh p1) (gw p2) -> b (gh gw) (c p2 p1)"},
            {"cut": "b c (gh p1) (gw p2) -> b (gh gw) (p2 p1 c)"},
            {"join": "b (gh gw) (p1 p2 c) -> b c (gh p1) (gw p2)"},
            {"join": "b (gh gw) (c p2 p1) -> b c (gh p1) (gw p2)"},
            {"join": "b (gh gw) (p2 p1 c) -> b c (gh p1) (gw p2)"},
        ),
        Mistake(
            "The patches are numbered column by column: number them row by "
            "row, (gh gw).",
            {
                "cut": "b c (gh p1) (gw p2) -> b (gw gh) (c p1 p2)",
                "join": "b (gw gh) (c p1 p2) -> b c (gh p1) (gw p2)",
            },
        ),
        Mistake(
            "The patches are cut in one numbering and put back in another: "
            "use (gh gw) in both.",
            {"cut": "b c (gh p1) (gw p2) -> b (gw gh) (c p1 p2)"},
            {"join": "b (gw gh) (c p1 p2) -> b c (gh p1) (gw p2)"},
        ),
        Mistake(
            "The pixels of a patch are spread over the whole image: H is (gh "
            "p1), grid outside and patch inside, not (p1 gh).",
            {"cut": "b c (p1 gh) (p2 gw) -> b (gh gw) (c p1 p2)"},
            {"join": "b (gh gw) (c p1 p2) -> b c (p1 gh) (p2 gw)"},
            {
                "cut": "b c (p1 gh) (p2 gw) -> b (gh gw) (c p1 p2)",
                "join": "b (gh gw) (c p1 p2) -> b c (p1 gh) (p2 gw)",
            },
        ),
        Mistake(
            "gh and gw are swapped where the patches are put back: H is gh "
            "patches, W is gw.",
            {"across": lambda gh, gw: gh},
        ),
        Mistake(
            "The patches come back, not images: put them together again with "
            "unpatchify.",
            {"join": "b (gh gw) (c p1 p2) -> b (gh gw) (c p1 p2)"},
        ),
        Mistake(
            "Rows and columns of the images are swapped.",
            {"end": lambda images: images.mT},
        ),
    )


def _order(*places: int) -> Tensor:
    return torch.tensor(places)


SHUFFLE_PATCHES = Exercise(
    shuffle_patches,
    cases=(
        Case(
            "one square image, P = 2",
            (normal(1, 3, 6, 6), 2, _order(4, 0, 7, 1, 8, 2, 5, 3, 6)),
        ),
        Case(
            "the order that changes nothing",
            (normal(1, 3, 6, 6), 2, torch.arange(9)),
            "order holds 0, 1, 2, and so on, and the image still changes: cut "
            "it and put it back in the same order of pixels.",
        ),
        Case(
            "two images",
            (normal(2, 3, 6, 6), 2, _order(4, 0, 7, 1, 8, 2, 5, 3, 6)),
            "Right for one image only: the same order holds for all images, "
            "patches[:, order].",
        ),
        Case(
            "an image of 4 x 6",
            (normal(1, 3, 4, 6), 2, _order(3, 0, 5, 1, 2, 4)),
            SQUARE_IMAGES,
        ),
        Case(
            "patches of (2, 3)",
            (normal(1, 3, 6, 6), (2, 3), _order(3, 0, 5, 1, 2, 4)),
            SQUARE_PATCHES,
        ),
        Case(
            "one patch twice, another one never",
            (normal(1, 3, 4, 4), 2, _order(3, 0, 0, 1)),
            "An order that loses a patch is accepted: raise a ValueError when "
            "order does not hold each number from 0 to N - 1 once.",
        ),
        Case(
            "all axes different",
            (
                normal(2, 3, 20, 42),
                (5, 7),
                torch.arange(24).view(4, 6).T.flatten().roll(5),
            ),
        ),
    ),
    wrong_forms=_shuffle_forms,
    errors={
        "cannot unpack non-iterable int": INT,
        "'int' object is not subscriptable": INT,
    },
)

EXERCISES = (EQUIVARIANCE_ERROR, SHUFFLE_PATCHES)
