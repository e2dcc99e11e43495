"""Exercise of chapter 10, with the mistakes that learners make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_lessons.checks.candidate import Refusal
from vit_lessons.checks.catalogue import Mistake, WrongForm, combine
from vit_lessons.checks.compare import clone, isolate
from vit_lessons.checks.exercise import Case, Outcome
from vit_lessons.checks.part import PartCase, PartExercise, normal
from vit_lessons.checks.patch_embedding import (
    BATCH_SECOND,
    CHANNELS,
    COLUMNS_FIRST,
    MERGED,
    RESHAPED,
    SEVERAL_IMAGES,
    SQUARE_IMAGES,
    TOKENS_LAST,
)
from vit_lessons.hybrid import ConvStem

BIAS = (
    "The convolutions have a bias that does nothing, because batch norm "
    "subtracts the mean: use bias=False."
)
NO_PROJECTION = (
    "The last projection is missing: a convolution of 1 x 1, or nn.Linear, "
    "makes a token of each place of the map."
)
BATCH_NORM = (
    "Leave nn.BatchNorm2d as it is: it learns a weight and a bias, keeps "
    "running statistics, and has eps=1e-5 and momentum=0.1."
)
EVALUATION = (
    "Right in training, wrong in evaluation: there batch norm uses its running "
    "mean and variance, and not those of the batch."
)
SIZES = (
    "Right for patch_size 4 only: each convolution halves the map, so that "
    "log2(P) of them are needed."
)
BORDER = (
    "An image that P does not divide is accepted, and the last tokens stand "
    "for fewer pixels: raise a ValueError when P does not divide the height "
    "and the width of the image."
)
POWER = (
    "A patch size that is no power of 2 is accepted, and halving does not "
    "reach it: raise a ValueError."
)
LENGTH = (
    "widths of any length are accepted: raise a ValueError when there is not "
    "one for each of the log2(P) convolutions."
)


@dataclass
class Layers:
    """The layers of a stem by kind, in the order in which they were made."""

    convolutions: list[nn.Conv2d]
    norms: list[nn.BatchNorm2d]
    projections: list[nn.Module]

    @classmethod
    def of(cls, module: nn.Module) -> Layers:
        """A convolution of 1 x 1 is a projection, as nn.Linear is."""
        layers = cls([], [], [])
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layers.norms.append(layer)
            elif isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
                layers.convolutions.append(layer)
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                layers.projections.append(layer)
        return layers

    def parameters(self) -> list[Tensor]:
        norms = [t for norm in self.norms for t in (norm.weight, norm.bias)]
        (projection,) = self.projections
        return [
            *(convolution.weight for convolution in self.convolutions),
            *norms,
            projection.weight,
            projection.bias,
        ]

    def statistics(self) -> list[Tensor]:
        return [
            t
            for norm in self.norms
            for t in (norm.running_mean, norm.running_var)
        ]

    @torch.no_grad()
    def copy(self, other: Layers) -> None:
        """Take the weights and statistics of a stem with the same layers."""
        for target, source in zip(
            [*self.parameters(), *self.statistics()],
            [*other.parameters(), *other.statistics()],
            strict=True,
        ):
            target.copy_(source.view_as(target))


def _refuse_other_layers(module: nn.Module, stem: ConvStem, case: Case) -> None:
    """Raise Refusal for a module without the layers of this stem."""
    layers, ours = Layers.of(module), Layers.of(stem)
    n, got = len(ours.convolutions), len(layers.convolutions)
    if got >= n and not layers.projections:
        raise Refusal(NO_PROJECTION)
    if got != n:
        raise Refusal(
            "One convolution of 3 x 3 is needed for each of the log2(P) times "
            f"that the map is halved: {n} for patch_size {stem.patch_size[0]}, "
            f"and yours has {got} (check finds layers of nn.Conv2d)."
        )
    if len(layers.norms) != n:
        raise Refusal(
            "Batch norm follows each convolution of 3 x 3 and nothing else: "
            f"{n} nn.BatchNorm2d for {n} of them, and yours has "
            f"{len(layers.norms)}."
        )
    if len(layers.projections) > 1:
        raise Refusal(
            "One projection is enough, and yours has "
            f"{len(layers.projections)} layers of 1 x 1."
        )
    for convolution in layers.convolutions:
        if convolution.kernel_size != (3, 3):
            height, width = convolution.kernel_size
            raise Refusal(
                "The kernels are 3 x 3, with stride 2 and padding 1, and yours "
                f"are {height} x {width}."
            )
    _refuse_other_widths(layers, ours, case)
    if any(c.bias is not None for c in layers.convolutions):
        raise Refusal(BIAS)
    if layers.projections[0].bias is None:
        raise Refusal("The projection has a bias, and yours has none.")
    for norm in layers.norms:
        if not norm.affine or (norm.eps, norm.momentum) != (1e-5, 0.1):
            raise Refusal(BATCH_NORM)
        if norm.running_mean is None:
            raise Refusal(BATCH_NORM)
    known = set(map(id, layers.parameters()))
    extra = [n for n, p in module.named_parameters() if id(p) not in known]
    if extra:
        raise Refusal(f"Nothing else is learned: leave out {', '.join(extra)}.")


def _refuse_other_widths(layers: Layers, ours: Layers, case: Case) -> None:
    widths, theirs = (
        [c.out_channels for c in kind.convolutions] for kind in (ours, layers)
    )
    if theirs != widths:
        why = "use the argument widths"
        if "widths" not in case.init:
            why = "they double from 2 * embed_dim / P to embed_dim"
        raise Refusal(
            f"The convolutions must have {widths} output channels, and yours "
            f"have {theirs}: {why}."
        )
    for i, (want, have) in enumerate(
        zip(ours.convolutions, layers.convolutions, strict=True)
    ):
        if want.weight.shape != have.weight.shape:
            where = f"Convolution {i + 1} must read all the"
            if i == 0:
                where = "The first convolution must read in_chans ="
            raise Refusal(
                f"{where} {want.in_channels} channels"
                f"{' of the one before it' if i else ''}, and each of its "
                f"kernels reads {have.weight.shape[1]}."
            )
    if [norm.num_features for norm in layers.norms] != widths:
        raise Refusal(
            "Each batch norm must have as many features as its convolution has "
            f"output channels, {widths}."
        )
    want, have = (
        tuple(kind.projections[0].weight.flatten(1).shape)[::-1]
        for kind in (ours, layers)
    )
    if want != have:
        raise Refusal(
            f"The projection must turn {want[0]} features into embed_dim = "
            f"{want[1]}, and yours turns {have[0]} into {have[1]}."
        )


@dataclass(frozen=True)
class StemExercise(PartExercise):
    """A class whose layers may have any name; each kind has its order."""

    def build(self, case: Case) -> nn.Module:
        """The package's stem with statistics unlike those of any batch."""
        generator = torch.Generator().manual_seed(0)
        stem = self.reference(**case.init)
        for parameter in stem.parameters():
            nn.init.normal_(parameter, std=self.std, generator=generator)
        for norm in Layers.of(stem).norms:
            nn.init.normal_(norm.running_mean, generator=generator)
            nn.init.uniform_(norm.running_var, 0.5, 2, generator=generator)
        return stem.train(case.mode != "evaluation")

    def ready(self, candidate: Any, case: Case) -> Callable[..., Any]:
        """The candidate's module with the same weights and statistics."""
        module = candidate(**case.init)
        stem = isolate(self.build, case)
        if isinstance(stem, Exception):
            return module  # the candidate should have refused this, too
        _refuse_other_layers(module, stem, case)
        Layers.of(module).copy(Layers.of(stem))
        return module.train(stem.training)

    def run(self, candidate: Any, case: Case) -> Outcome:
        """What the layers lack is the cause of a failure."""
        outcome = super().run(candidate, case)
        if isinstance(outcome.got, Refusal):
            return replace(outcome, cause=str(outcome.got))
        return outcome

    def gradients(self, candidate: Any, case: Case) -> list[Tensor]:
        """As for other classes, but in the order of the layers."""
        stem, (images,) = self.ready(candidate, case), map(clone, case.args)
        leaves = [images.requires_grad_(), *Layers.of(stem).parameters()]
        tokens = stem(images)
        weights = torch.arange(tokens.numel()).view_as(tokens).sin()
        gradients = torch.autograd.grad((tokens * weights).sum(), leaves)
        return [gradient.flatten() for gradient in gradients]


def _normalize(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """As norm does, but its running statistics stay as they are."""
    if norm.training:
        return F.batch_norm(x, None, None, norm.weight, norm.bias, True)
    return norm(x)


def _stem(
    first: Callable = lambda self, images: images,
    convolve: Callable = lambda self, i, x: self.backbone[i][0](x),
    normalize: Callable = _normalize,
    activate: Callable = lambda x, is_last: F.relu(x),
    order: str = "norm relu",
    after: Callable = lambda x: x,
    project: Callable = lambda self, x: self.proj(x),
    layout: Callable = lambda x: x.flatten(2).mT,
) -> Callable[[ConvStem, Tensor], Tensor]:
    """ConvStem.forward, with some steps exchanged."""

    def form(self: ConvStem, images: Tensor) -> Tensor:
        x = first(self, images)
        for i, (_, norm, _) in enumerate(self.backbone):
            x = convolve(self, i, x)
            is_last = i == len(self.backbone) - 1
            for step in order.split():
                if step == "norm":
                    x = normalize(norm, x)
                else:
                    x = activate(x, is_last)
            x = after(x)
        return layout(project(self, x))

    return form


def _convolve(
    stride: Callable[[ConvStem, int], int] = lambda self, i: 2,
    padding: tuple[int, int, int, int] = (1, 1, 1, 1),
    mode: str = "constant",
) -> Callable[[ConvStem, int, Tensor], Tensor]:
    """Convolution i of a stem, with another stride or padding."""

    def convolve(self: ConvStem, i: int, x: Tensor) -> Tensor:
        x = F.pad(x, padding, mode=mode)
        return F.conv2d(x, self.backbone[i][0].weight, stride=stride(self, i))

    return convolve


NOT_STRIDED = {"convolve": _convolve(lambda self, i: 1)}


def _pooled(pool: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    """Convolution i with stride 1, then a pooling."""

    def convolve(self: ConvStem, i: int, x: Tensor) -> Tensor:
        return pool(NOT_STRIDED["convolve"](self, i, x), 2)

    return convolve


def _last(self: ConvStem) -> int:
    return len(self.backbone) - 1


def _running(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    mean, var = norm.running_mean, norm.running_var
    return F.batch_norm(x, mean, var, norm.weight, norm.bias, eps=norm.eps)


STEM_MISTAKES = (
    Mistake(
        "The padding must be 1, so that a convolution makes the map exactly "
        "half as high and half as wide.",
        {"convolve": _convolve(padding=(0, 0, 0, 0))},
        {"convolve": _convolve(padding=(2, 2, 2, 2))},
    ),
    Mistake(
        "The zeros of the padding are at the bottom and on the right: "
        "padding=1 puts them at the top and on the left, too.",
        {"convolve": _convolve(padding=(0, 1, 0, 1))},
    ),
    Mistake(
        "The padding holds pixels of the image: it must hold zeros, as it does "
        "with the default padding_mode of nn.Conv2d.",
        {"convolve": _convolve(mode="reflect")},
        {"convolve": _convolve(mode="replicate")},
        {"convolve": _convolve(mode="circular")},
    ),
    Mistake(
        "A convolution leaves the map as large as it was: each has stride=2.",
        NOT_STRIDED,
        {"convolve": _convolve(lambda self, i: 1 + (i == 0))},
        {"convolve": _convolve(lambda self, i: 1 + (i == _last(self)))},
    ),
    Mistake(
        "One convolution has the whole stride P: each of them has stride=2.",
        {
            "convolve": _convolve(
                lambda self, i: self.patch_size[0] if i == 0 else 1
            )
        },
        {
            "convolve": _convolve(
                lambda self, i: self.patch_size[0] if i == _last(self) else 1
            )
        },
    ),
    Mistake(
        "Pooling halves the map: here each convolution does, with stride=2.",
        NOT_STRIDED | {"after": lambda x: F.max_pool2d(x, 2)},
        NOT_STRIDED | {"after": lambda x: F.avg_pool2d(x, 2)},
        NOT_STRIDED | {"after": lambda x: F.max_pool2d(x, 3, 2, padding=1)},
        {"convolve": _pooled(F.max_pool2d)},
        {"convolve": _pooled(F.avg_pool2d)},
    ),
    Mistake(
        "The map is halved twice, by the stride and by a pooling: leave out "
        "the pooling.",
        {"after": lambda x: F.max_pool2d(x, 2)},
        {"after": lambda x: F.avg_pool2d(x, 2)},
        {"after": lambda x: F.max_pool2d(x, 3, 2, padding=1)},
    ),
    Mistake(
        "Batch norm comes after ReLU: the order is convolution, batch norm, "
        "ReLU.",
        {"order": "relu norm"},
    ),
    Mistake(
        "Batch norm is not used in forward: it follows each convolution.",
        {"normalize": lambda norm, x: x},
    ),
    Mistake(
        "Batch norm uses its running statistics in training: there it uses "
        "the mean and the variance of the batch.",
        {"normalize": _running},
    ),
    Mistake(
        "ReLU is missing: it follows each batch norm.",
        {"activate": lambda x, is_last: x},
    ),
    Mistake(
        "ReLU is missing before the projection: it follows each batch norm, "
        "the last one too.",
        {"activate": lambda x, is_last: x if is_last else F.relu(x)},
    ),
    Mistake(
        "The activation is not ReLU.",
        {"activate": lambda x, is_last: F.gelu(x)},
        {"activate": lambda x, is_last: F.silu(x)},
        {"activate": lambda x, is_last: F.leaky_relu(x)},
        {"activate": lambda x, is_last: F.relu6(x)},
        {"activate": lambda x, is_last: torch.tanh(x)},
        {"activate": lambda x, is_last: torch.sigmoid(x)},
    ),
    Mistake(
        "The projection comes first: it reads what the last convolution "
        "returns.",
        {
            "first": lambda self, images: self.proj(images),
            "project": lambda self, x: x,
        },
    ),
    Mistake(
        "The projection is not used in forward: it makes a token of each place "
        "of the map.",
        {"project": lambda self, x: x},
    ),
    Mistake(
        "Something follows the projection: its result is the tokens.",
        {"project": lambda self, x: F.relu(self.proj(x))},
        {"project": lambda self, x: F.gelu(self.proj(x))},
        {
            "project": lambda self, x: F.layer_norm(
                self.proj(x).movedim(1, -1), (self.proj.out_channels,)
            ).movedim(-1, 1)
        },
    ),
    Mistake(COLUMNS_FIRST, {"layout": lambda x: x.mT.flatten(2).mT}),
    Mistake(RESHAPED, {"layout": lambda x: x.reshape(len(x), -1, x.shape[1])}),
    Mistake(TOKENS_LAST, {"layout": lambda x: x.flatten(2)}),
    Mistake(BATCH_SECOND, {"layout": lambda x: x.flatten(2).permute(2, 0, 1)}),
    Mistake(MERGED, {"layout": lambda x: x.permute(0, 2, 3, 1).flatten(0, 2)}),
    Mistake(
        "The map is not flat: the result is (B, N, D), one axis for all "
        "tokens, then the features.",
        {"layout": lambda x: x},
        {"layout": lambda x: x.permute(0, 2, 3, 1)},
    ),
    Mistake(
        "Tokens and features share one axis: keep them apart, (B, N, D).",
        {"layout": lambda x: x.flatten(1)},
        {"layout": lambda x: x.permute(0, 2, 3, 1).flatten(1)},
    ),
    Mistake(
        "The tokens are averaged: keep one token for each place of the map.",
        {"layout": lambda x: x.mean((2, 3))},
    ),
    Mistake(
        "There is one token too many: the model adds the class token itself.",
        {"layout": lambda x: F.pad(x.flatten(2).mT, (0, 0, 1, 0))},
    ),
)


def _stem_forms() -> Iterator[WrongForm]:
    yield from combine(_stem, *STEM_MISTAKES)


def _stem_case(
    label: str,
    cause: str | None = None,
    *,
    batch: int = 2,
    image: tuple[int, int] = (16, 16),
    patch_size: int = 4,
    in_chans: int = 3,
    embed_dim: int = 8,
    mode: str = "training",
    **optional: Any,
) -> Case:
    init = {
        "patch_size": patch_size,
        "in_chans": in_chans,
        "embed_dim": embed_dim,
        **optional,
    }
    images = normal(batch, in_chans, *image)
    return PartCase(label, (images,), cause, {}, init, mode)


CONV_STEM = StemExercise(
    ConvStem,
    cases=(
        _stem_case("one image, P = 4", batch=1),
        _stem_case("two images", SEVERAL_IMAGES),
        _stem_case("one channel", CHANNELS, in_chans=1),
        _stem_case("an image of 8 x 16", SQUARE_IMAGES, image=(8, 16)),
        _stem_case("P = 2", SIZES, patch_size=2, image=(8, 8)),
        _stem_case("P = 8", SIZES, patch_size=8, image=(24, 24)),
        _stem_case(
            "P = 16", SIZES, patch_size=16, image=(48, 48), embed_dim=16
        ),
        _stem_case(
            "widths=(6, 5)",
            "widths are the output channels of the convolutions.",
            widths=(6, 5),
        ),
        _stem_case("in evaluation", EVALUATION, mode="evaluation"),
        _stem_case("a height that P does not divide", BORDER, image=(18, 16)),
        _stem_case("a width that P does not divide", BORDER, image=(16, 18)),
        _stem_case("patch_size=12", POWER, patch_size=12, image=(24, 24)),
        _stem_case("widths for another patch size", LENGTH, widths=(4, 6, 8)),
        _stem_case(
            "all axes different",
            batch=3,
            image=(24, 40),
            patch_size=8,
            in_chans=4,
            embed_dim=12,
        ),
    ),
    wrong_forms=_stem_forms,
    std=1.0,  # so that ReLU and ReLU6 differ
)

EXERCISES = (CONV_STEM,)
