"""The check of chapter 10: stems written by hand, right and wrong."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torchvision.ops import Conv2dNormActivation

from vit_lessons import ConvStem, HybridVisionTransformer, PatchEmbed
from vit_lessons.checks import check, hybrid


def variant(base, **methods):
    """The class with some methods written differently."""
    return type("Candidate", (base,), methods)


def must_divide(images, p):
    if images.shape[2] % p or images.shape[3] % p:
        raise ValueError("the patch size must divide the image")


def halvings_of(patch_size):
    halvings = math.log2(patch_size)
    if halvings != int(halvings):
        raise ValueError("the patch size must be a power of 2")
    return int(halvings)


# Right stems, as different as readers are.


class OwnStem(nn.Module):
    """A list of convolutions and a list of norms."""

    kernel, stride, padding, mode = 3, 2, 1, "zeros"
    norm, bias, last = nn.BatchNorm2d, False, nn.Conv2d

    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__()
        self.p = patch_size
        widths = [in_chans, *self.widths(patch_size, embed_dim)]
        self.convs = nn.ModuleList(
            nn.Conv2d(
                *(before, width, self.kernel, self.stride, self.padding),
                bias=self.bias,
                padding_mode=self.mode,
            )
            for before, width in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(self.norm(width) for width in widths[1:])
        self.proj = self.last(widths[-1], embed_dim, 1)

    def widths(self, patch_size, embed_dim):
        n = halvings_of(patch_size)
        return [2 * embed_dim // patch_size * 2**i for i in range(n)]

    def layer(self, i, x):
        return F.relu(self.norms[i](self.convs[i](x)))

    def features(self, x):
        for i in range(len(self.convs)):
            x = self.layer(i, x)
        return x

    def tokens(self, x):
        return x.flatten(2).transpose(1, 2)

    def forward(self, images):
        must_divide(images, self.p)
        return self.tokens(self.proj(self.features(images)))


class FlatStem(nn.Sequential):
    """All layers in one row, with no name at all."""

    def __init__(self, patch_size=16, in_chans=3, embed_dim=768):
        super().__init__()
        self.halvings = halvings_of(patch_size)
        channels, width = in_chans, embed_dim // 2 ** (self.halvings - 1)
        for _ in range(self.halvings):
            self.append(nn.Conv2d(channels, width, 3, 2, 1, bias=False))
            self.append(nn.BatchNorm2d(width))
            self.append(nn.ReLU(inplace=True))
            channels, width = width, width * 2
        self.append(nn.Conv2d(channels, embed_dim, 1))

    def forward(self, x):
        must_divide(x, 2**self.halvings)
        return rearrange(super().forward(x), "b d gh gw -> b (gh gw) d")


class TorchvisionStem(nn.Module):
    """All arguments, and the layers of torchvision."""

    def __init__(
        self, patch_size=16, in_chans=3, embed_dim=768, *, widths=None
    ):
        super().__init__()
        self.p = patch_size
        n = patch_size.bit_length() - 1
        if 2**n != patch_size:
            raise ValueError("patch_size")
        if widths is None:
            widths = [embed_dim * 2**i // 2 ** (n - 1) for i in range(n)]
        assert len(widths) == n
        self.conv_proj = nn.Sequential()
        for i, width in enumerate(widths):
            layer = Conv2dNormActivation(in_chans, width, 3, 2)
            self.conv_proj.add_module(f"conv_bn_relu_{i}", layer)
            in_chans = width
        last = nn.Conv2d(in_chans, embed_dim, kernel_size=1)
        self.conv_proj.add_module("conv_last", last)

    def forward(self, x):
        assert x.shape[2] % self.p == x.shape[3] % self.p == 0
        x = self.conv_proj(x)
        return x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)


class LinearStem(nn.Module):
    """nn.Linear makes a token of each place; it is the first layer made."""

    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__()
        self.to_token = nn.Linear(embed_dim, embed_dim)
        self.stem = OwnStem(patch_size, in_chans, embed_dim)
        self.stem.proj = nn.Identity()

    def forward(self, images):
        return self.to_token(self.stem(images))


def layer_with_half_of_the_padding(self, i, x):
    """The stride never reaches what padding adds below and on the right."""
    x = F.conv2d(F.pad(x, (1, 0, 1, 0)), self.convs[i].weight, stride=2)
    return self.norms[i](x).clamp(min=0)


def layer_of_every_second_pixel(self, i, x):
    x = F.conv2d(x, self.convs[i].weight, padding=1)[:, :, ::2, ::2]
    return torch.relu(self.norms[i](x))


def layer_by_the_definition(self, i, x):
    norm, kernel = self.norms[i], self.convs[i].weight
    columns = F.unfold(x, 3, stride=2, padding=1)
    side = x.shape[2] // 2, x.shape[3] // 2
    x = torch.einsum("dk,bkn->bdn", kernel.flatten(1), columns)
    x = x.unflatten(2, side)
    mean, var = norm.running_mean, norm.running_var
    if self.training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    x = (x - mean.view(-1, 1, 1)) / torch.sqrt(var.view(-1, 1, 1) + norm.eps)
    x = x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    return torch.where(x > 0, x, 0)


def tokens_in_a_loop(self, x):
    tokens = []
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            tokens.append(x[:, :, row, column])
    return torch.stack(tokens, dim=1)


RIGHT = [
    OwnStem,
    FlatStem,
    TorchvisionStem,
    LinearStem,
    variant(OwnStem, layer=layer_with_half_of_the_padding),
    variant(OwnStem, layer=layer_of_every_second_pixel),
    variant(OwnStem, layer=layer_by_the_definition),
    variant(OwnStem, tokens=tokens_in_a_loop),
]


def test_the_package_itself_passes():
    result = check("ConvStem", ConvStem)
    assert result.passed, result.report
    assert "not run" not in result.report


@pytest.mark.parametrize("candidate", RIGHT)
def test_a_right_stem_written_differently_passes(candidate):
    result = check("ConvStem", candidate)
    assert result.passed, result.report
    assert result.cause is None


def test_a_stem_need_not_take_widths():
    report = check("ConvStem", OwnStem).report
    assert report.splitlines()[-1] == (
        "  not run 2 cases with widths, which your code does not take"
    )


# Wrong layers in forward.


def layer_padded_below(self, i, x):
    x = F.conv2d(F.pad(x, (0, 1, 0, 1)), self.convs[i].weight, stride=2)
    return F.relu(self.norms[i](x))


def layer_strided_at_first(self, i, x):
    x = F.conv2d(x, self.convs[i].weight, stride=1 if i else 2, padding=1)
    return F.relu(self.norms[i](x))


def layer_with_the_whole_stride(self, i, x):
    x = F.conv2d(x, self.convs[i].weight, stride=1 if i else self.p, padding=1)
    return F.relu(self.norms[i](x))


def layer_with_max_pooling(self, i, x):
    return F.max_pool2d(OwnStem.layer(self, i, x), 2)


def layer_with_avg_pooling(self, i, x):
    return F.avg_pool2d(OwnStem.layer(self, i, x), kernel_size=2)


def layer_with_pooling_of_resnet(self, i, x):
    return F.max_pool2d(OwnStem.layer(self, i, x), 3, stride=2, padding=1)


def layer_with_pooling_inside(self, i, x):
    x = F.max_pool2d(self.convs[i](x), 2)
    return F.relu(self.norms[i](x))


def layer_with_relu_first(self, i, x):
    return self.norms[i](F.relu(self.convs[i](x)))


def layer_without_norm(self, i, x):
    return F.relu(self.convs[i](x))


def layer_with_functional_norm(self, i, x):
    x, norm = self.convs[i](x), self.norms[i]
    x = F.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias
    )
    return F.relu(x)


def layer_with_norm_of_the_batch(self, i, x):
    x, norm = self.convs[i](x), self.norms[i]
    x = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)
    return F.relu(x)


def layer_without_relu(self, i, x):
    return self.norms[i](self.convs[i](x))


def layer_without_last_relu(self, i, x):
    x = self.norms[i](self.convs[i](x))
    return F.relu(x) if i + 1 < len(self.convs) else x


def with_activation(activate):
    def layer(self, i, x):
        return activate(self.norms[i](self.convs[i](x)))

    return layer


PADDING = "The padding must be 1"
ZEROS = "it must hold zeros"
STRIDE = "each has stride=2."
WHOLE = "One convolution has the whole stride"
POOLING = "Pooling halves the map"
TWICE = "The map is halved twice"
RELU = "The activation is not ReLU"

LAYERS_WRONG = [
    ({"padding": 0}, PADDING),
    ({"padding": 2}, PADDING),
    ({"layer": layer_padded_below}, "at the bottom and on the right"),
    ({"mode": "reflect"}, ZEROS),
    ({"mode": "replicate"}, ZEROS),
    ({"mode": "circular"}, ZEROS),
    ({"stride": 1}, STRIDE),
    ({"layer": layer_strided_at_first}, STRIDE),
    ({"layer": layer_with_the_whole_stride}, WHOLE),
    ({"stride": 1, "layer": layer_with_max_pooling}, POOLING),
    ({"stride": 1, "layer": layer_with_avg_pooling}, POOLING),
    ({"stride": 1, "layer": layer_with_pooling_of_resnet}, POOLING),
    ({"stride": 1, "layer": layer_with_pooling_inside}, POOLING),
    ({"layer": layer_with_max_pooling}, TWICE),
    ({"layer": layer_with_avg_pooling}, TWICE),
    ({"layer": layer_with_pooling_of_resnet}, TWICE),
    ({"layer": layer_with_relu_first}, "Batch norm comes after ReLU"),
    ({"layer": layer_without_norm}, "Batch norm is not used in forward"),
    ({"layer": layer_with_functional_norm}, "running statistics in training"),
    ({"layer": layer_with_norm_of_the_batch}, "wrong in evaluation: there"),
    ({"layer": layer_without_relu}, "ReLU is missing: it follows each"),
    ({"layer": layer_without_last_relu}, "ReLU is missing before the proj"),
    *(
        ({"layer": with_activation(activate)}, RELU)
        for activate in (
            F.gelu,
            F.silu,
            F.leaky_relu,
            F.relu6,
            torch.tanh,
            torch.sigmoid,
        )
    ),
]

# Wrong ways from the map to the tokens.


def forward_projects_first(self, images):
    must_divide(images, self.p)
    return self.tokens(self.features(self.proj(images)))


def forward_without_projection(self, images):
    must_divide(images, self.p)
    return self.tokens(self.features(images))


def forward_with_relu_at_the_end(self, images):
    return F.relu(OwnStem.forward(self, images))


def forward_with_gelu_at_the_end(self, images):
    return F.gelu(OwnStem.forward(self, images))


def forward_with_layer_norm(self, images):
    tokens = OwnStem.forward(self, images)
    mean, var = tokens.mean(-1, True), tokens.var(-1, False, keepdim=True)
    return (tokens - mean) / (var + 1e-5).sqrt()


def forward_with_class_token(self, images):
    tokens = OwnStem.forward(self, images)
    return torch.cat([torch.zeros(len(tokens), 1, tokens.shape[2]), tokens], 1)


def forward_unchecked(self, images):
    return self.tokens(self.proj(self.features(images)))


def forward_checks_the_height(self, images):
    assert images.shape[2] % self.p == 0
    return forward_unchecked(self, images)


def forward_checks_the_width(self, images):
    assert images.shape[3] % self.p == 0
    return forward_unchecked(self, images)


def forward_detached(self, images):
    return OwnStem.forward(self, images.detach())


def forward_in_place(self, images):
    images -= 0.5
    return OwnStem.forward(self, images)


def tokens_in_columns(self, x):
    return rearrange(x, "b d gh gw -> b (gw gh) d")


def tokens_reshaped(self, x):
    b, d, gh, gw = x.shape
    return x.reshape(b, gh * gw, d)


def tokens_viewed(self, x):
    return x.contiguous().view(len(x), -1, x.shape[1])


def tokens_last(self, x):
    return x.flatten(start_dim=2)


def tokens_before_the_batch(self, x):
    return rearrange(x, "b d gh gw -> (gh gw) b d")


def tokens_of_all_images(self, x):
    return rearrange(x, "b d gh gw -> (b gh gw) d")


def tokens_as_a_map(self, x):
    return x


def tokens_as_a_grid(self, x):
    return x.movedim(1, -1)


def tokens_in_one_vector(self, x):
    return torch.flatten(x, 1)


def tokens_in_one_vector_by_place(self, x):
    return x.permute(0, 2, 3, 1).reshape(len(x), -1)


def tokens_averaged(self, x):
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def tokens_of_one_image(self, x):
    return rearrange(x, "b d gh gw -> 1 (b gh gw) d")


def tokens_of_a_square(self, x):
    b, d, side, _ = x.shape
    return x.reshape(b, d, side * side).transpose(1, 2)


def features_of_two_layers(self, x):
    return self.layer(1, self.layer(0, x))


TOKENS_WRONG = [
    ({"forward": forward_projects_first}, "The projection comes first"),
    ({"forward": forward_without_projection}, "projection is not used in for"),
    ({"forward": forward_with_relu_at_the_end}, "Something follows the proj"),
    ({"forward": forward_with_gelu_at_the_end}, "Something follows the proj"),
    ({"forward": forward_with_layer_norm}, "Something follows the projection"),
    ({"forward": forward_with_class_token}, "There is one token too many"),
    ({"forward": forward_unchecked}, "An image that P does not divide is acc"),
    ({"forward": forward_checks_the_height}, "An image that P does not div"),
    ({"forward": forward_checks_the_width}, "An image that P does not divide"),
    ({"forward": forward_detached}, "gradients do not flow back"),
    ({"forward": forward_in_place}, "changes its input in place"),
    ({"tokens": tokens_in_columns}, "The patches go column by column"),
    ({"tokens": tokens_reshaped}, "without moving the numbers"),
    ({"tokens": tokens_viewed}, "without moving the numbers"),
    ({"tokens": tokens_last}, "tokens come before features"),
    ({"tokens": tokens_before_the_batch}, "the batch comes first"),
    ({"tokens": tokens_of_all_images}, "Batch and patches share one axis"),
    ({"tokens": tokens_as_a_map}, "The map is not flat"),
    ({"tokens": tokens_as_a_grid}, "The map is not flat"),
    ({"tokens": tokens_in_one_vector}, "Tokens and features share one axis"),
    (
        {"tokens": tokens_in_one_vector_by_place},
        "Tokens and features share one axis",
    ),
    ({"tokens": tokens_averaged}, "The tokens are averaged"),
    ({"tokens": tokens_of_one_image}, "Right for one image only"),
    ({"tokens": tokens_of_a_square}, "Right for square images only"),
    ({"features": features_of_two_layers}, "Right for patch_size 4 only"),
]

# Wrong layers in the constructor.


class OneChannelNumber(OwnStem):
    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__(patch_size, 3, embed_dim)


class WidthsOfAnyLength(TorchvisionStem):
    def __init__(self, patch_size, in_chans, embed_dim, widths=None):
        n = halvings_of(patch_size)
        if widths is not None:
            widths = widths[:n]
        super().__init__(patch_size, in_chans, embed_dim, widths=widths)


class WidthsNotUsed(TorchvisionStem):
    def __init__(self, patch_size, in_chans, embed_dim, widths=None):
        super().__init__(patch_size, in_chans, embed_dim)


class Depthwise(OwnStem):
    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__(patch_size, in_chans, embed_dim)
        for i in range(1, len(self.convs)):
            width = self.convs[i].in_channels
            self.convs[i] = nn.Conv2d(
                width, 2 * width, 3, 2, 1, groups=width, bias=False
            )


class ReadsTheImageAgain(OwnStem):
    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__(patch_size, in_chans, embed_dim)
        for i, conv in enumerate(self.convs):
            self.convs[i] = nn.Conv2d(
                in_chans, conv.out_channels, 3, 2, 1, bias=False
            )


class NormOfTokens(OwnStem):
    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__(patch_size, in_chans, embed_dim)
        self.norms.append(nn.BatchNorm2d(embed_dim))


class OtherNorms(OwnStem):
    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__(patch_size, in_chans, embed_dim)
        self.norms = self.norms[:0]
        self.norms.extend(
            nn.BatchNorm2d(conv.in_channels) for conv in self.convs
        )


class TwoProjections(OwnStem):
    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__(patch_size, in_chans, embed_dim)
        self.proj = nn.Sequential(
            self.proj, nn.GELU(), nn.Conv2d(embed_dim, embed_dim, 1)
        )


class WideProjection(OwnStem):
    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__(patch_size, in_chans, embed_dim)
        self.proj = nn.Conv2d(embed_dim, 2 * embed_dim, 1)


class OneMoreConvolution(OwnStem):
    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__(patch_size, in_chans, embed_dim)
        self.proj = nn.Sequential(
            nn.Conv2d(embed_dim, embed_dim, 3, padding=1, bias=False),
            nn.Conv2d(embed_dim, embed_dim, 1),
        )


class OneLayerTwice(OwnStem):
    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__(patch_size, in_chans, embed_dim)
        self.convs = nn.ModuleList([self.convs[0]] * len(self.convs))


class WithPositions(OwnStem):
    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__(patch_size, in_chans, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, 16, embed_dim))


def widths_all_equal(self, patch_size, embed_dim):
    return [embed_dim] * halvings_of(patch_size)


def widths_from_wide_to_narrow(self, patch_size, embed_dim):
    return OwnStem.widths(self, patch_size, embed_dim)[::-1]


def widths_for_half_of_p(self, patch_size, embed_dim):
    return [embed_dim >> i for i in reversed(range(patch_size // 2))]


def widths_of_any_patch(self, patch_size, embed_dim):
    n = int(math.log2(patch_size))
    return [embed_dim >> i for i in reversed(range(n))]


def norm_with(**options):
    return staticmethod(lambda width: nn.BatchNorm2d(width, **options))


def projection_without_bias(before, width, kernel_size):
    return nn.Conv2d(before, width, kernel_size, bias=False)


def no_projection(before, width, kernel_size):
    return nn.Identity()


def projection_of_3_x_3(before, width, kernel_size):
    return nn.Conv2d(before, width, 3, padding=1)


LEAVE = "Leave nn.BatchNorm2d as it is"
CONSTRUCTORS_WRONG = [
    (variant(OwnStem, kernel=2, padding=0), "and yours are 2 x 2."),
    (variant(OwnStem, kernel=4), "and yours are 4 x 4."),
    (variant(OwnStem, kernel=(3, 5)), "and yours are 3 x 5."),
    (variant(OwnStem, bias=True), "a bias that does nothing"),
    (variant(OwnStem, norm=nn.Identity), "of them, and yours has 0."),
    (
        variant(OwnStem, norm=staticmethod(lambda d: nn.GroupNorm(1, d))),
        "of them, and yours has 0.",
    ),
    (variant(OwnStem, norm=norm_with(affine=False)), LEAVE),
    (variant(OwnStem, norm=norm_with(eps=1e-3)), LEAVE),
    (variant(OwnStem, norm=norm_with(momentum=0.9)), LEAVE),
    (variant(OwnStem, norm=norm_with(track_running_stats=False)), LEAVE),
    (
        variant(OwnStem, last=staticmethod(projection_without_bias)),
        "The projection has a bias, and yours has none.",
    ),
    (
        variant(OwnStem, last=staticmethod(no_projection)),
        "The last projection is missing",
    ),
    (
        variant(OwnStem, last=staticmethod(projection_of_3_x_3)),
        "The last projection is missing",
    ),
    (
        variant(OwnStem, widths=widths_all_equal),
        "[4, 8] output channels, and yours have [8, 8]: they double from",
    ),
    (
        variant(OwnStem, widths=widths_from_wide_to_narrow),
        "[4, 8] output channels, and yours have [8, 4]: they double from",
    ),
    (
        variant(OwnStem, widths=widths_for_half_of_p),
        "3 for patch_size 8, and yours has 4",
    ),
    (
        variant(OwnStem, widths=widths_of_any_patch),
        "A patch size that is no power of 2 is accepted",
    ),
    (
        OneChannelNumber,
        "must read in_chans = 1 channels, and each of its kernels reads 3.",
    ),
    (
        ReadsTheImageAgain,
        "Convolution 2 must read all the 4 channels of the one before it, and "
        "each of its kernels reads 3.",
    ),
    (Depthwise, "all the 4 channels of the one before it, and each of its k"),
    (WidthsOfAnyLength, "widths of any length are accepted"),
    (WidthsNotUsed, "[6, 5] output channels, and yours have [4, 8]: use the"),
    (NormOfTokens, "2 nn.BatchNorm2d for 2 of them, and yours has 3."),
    (OtherNorms, "as its convolution has output channels, [4, 8]."),
    (TwoProjections, "yours has 2 layers of 1 x 1."),
    (WideProjection, "embed_dim = 8, and yours turns 8 into 16."),
    (OneMoreConvolution, "2 for patch_size 4, and yours has 3"),
    (OneLayerTwice, "2 for patch_size 4, and yours has 1"),
    (WithPositions, "Nothing else is learned: leave out pos_embed."),
    (PatchEmbed, "2 for patch_size 4, and yours has 1"),
    (HybridVisionTransformer, "Your class cannot be built"),
    (ConvStem(4, 3, 8), "check needs your class itself"),
    (nn.ReLU, "must take patch_size, in_chans, embed_dim by keyword"),
]
WRONG = [
    *(
        (variant(OwnStem, **methods), words)
        for methods, words in (*LAYERS_WRONG, *TOKENS_WRONG)
    ),
    *CONSTRUCTORS_WRONG,
]


@pytest.mark.parametrize(("candidate", "words"), WRONG)
def test_a_mistake_written_by_hand_is_named(candidate, words):
    result = check("ConvStem", candidate)
    assert not result.passed
    assert words in (result.cause or ""), result.report
    assert result.report.endswith(f"Likely mistake: {result.cause}")


def test_every_mistake_of_the_catalogue_is_written_by_hand():
    words = [words for _, words in WRONG]
    for mistake in hybrid.STEM_MISTAKES:
        assert any(some in mistake.cause for some in words), mistake.cause


def test_two_mistakes_at_once_are_both_named():
    candidate = variant(
        OwnStem, layer=layer_without_relu, tokens=tokens_in_columns
    )
    cause = check("ConvStem", candidate).cause
    assert cause.startswith("There are two mistakes. ReLU is missing:")
    assert cause.endswith("they must go row by row, (gh gw).")


def test_a_case_for_each_argument_and_each_refusal_is_there():
    labels = [case.label for case in hybrid.CONV_STEM.cases]
    refused = [
        case.label
        for case in hybrid.CONV_STEM.cases
        if isinstance(hybrid.CONV_STEM.call(ConvStem, case)[0], ValueError)
    ]
    assert len(labels) == len(set(labels))
    assert refused == [
        "a height that P does not divide",
        "a width that P does not divide",
        "patch_size=12",
        "widths for another patch size",
    ]


# Stubs and nonsense.


class Stub(nn.Module):
    """Your code here."""

    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__()
        raise NotImplementedError

    def forward(self, images): ...


def test_an_untouched_stub_is_not_attempted_yet():
    result = check("ConvStem", Stub)
    assert not result.attempted
    assert not result.passed
    assert result.cause is None
    assert "ConvStem: not attempted yet" in result.report


NONSENSE = {
    "zeros": torch.zeros_like,
    "turned": lambda x: x.flip(tuple(range(x.ndim))),
    "nan": lambda x: x * torch.nan,
    "scalar": lambda x: x.sum(),
}


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_fails_without_a_diagnosis(nonsense):
    def forward(self, images):
        return NONSENSE[nonsense](ConvStem.forward(self, images))

    result = check("ConvStem", variant(ConvStem, forward=forward))
    assert not result.passed
    assert result.cause is None


@pytest.mark.parametrize(
    "candidate", [OwnStem, variant(OwnStem, layer=layer_without_norm)]
)
def test_the_same_stem_gets_the_same_report(candidate):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = check("ConvStem", candidate)
        torch.manual_seed(2)
        assert check("ConvStem", candidate) == first
