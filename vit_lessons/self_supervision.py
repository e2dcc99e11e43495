"""Self-supervision: learn from images that nobody has labeled.

Chapter: notebooks/12_self_supervision.ipynb
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from vit_lessons.encoder_block import EncoderBlock
from vit_lessons.patch_embedding import (
    PatchEmbed,
    as_pair,
    patchify,
    unpatchify,
)
from vit_lessons.position_embedding import sincos_pos_embed
from vit_lessons.training import mixed_precision
from vit_lessons.vision_transformer import VisionTransformer

__all__ = [
    "CORRUPTIONS",
    "MaskedAutoencoder",
    "MaskedPatchPrediction",
    "class_colors",
    "corrupt_patches",
    "draw_corruption",
    "draw_mask",
    "evaluate_pretext",
    "mean_color_classes",
    "normalize_patches",
    "paint_prediction",
    "refuse_overlap",
    "rotate_images",
]


def draw_mask(
    num_images: int,
    num_patches: int,
    ratio: float,
    *,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Choose patches at random: in each image others, but as many.

    Args:
        num_images: Images B.
        num_patches: Patches N of each image.
        ratio: Share of the patches to choose. Their number is rounded.
        device: Where the result lies.

    Shape:
        (B, N), bool, True for a patch that is chosen

    Raises:
        ValueError: None or all of the patches would be chosen.
    """
    chosen = round(ratio * num_patches)
    if not 0 < chosen < num_patches:
        raise ValueError(
            "ratio must choose at least one patch and leave one, got "
            f"{ratio} of {num_patches} patches"
        )
    noise = torch.rand(num_images, num_patches, device=device)
    return noise.argsort(dim=1) < chosen  # a random order of 0..N-1


#: What happens to the chosen patches, with its probability.
CORRUPTIONS = {"mask token": 0.8, "other patch": 0.1, "kept": 0.1}


def draw_corruption(mask: Tensor) -> Tensor:
    """Draw for each chosen patch what happens to it.

    Args:
        mask: True for a chosen patch.

    Shape:
        mask: (B, N), bool -> (B, N), int64: 0 for a patch that was not chosen,
        else 1, 2 or 3, the place of one of CORRUPTIONS counted from 1

    Raises:
        ValueError: mask is not (B, N) of bool.

    Source: Dosovitskiy et al. 2021, appendix B.1.2,
    https://arxiv.org/abs/2010.11929
    """
    if mask.ndim != 2 or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be (B, N) of bool, got {tuple(mask.shape)} of "
            f"{mask.dtype}"
        )
    shares = torch.tensor([*CORRUPTIONS.values()], device=mask.device)
    kinds = shares.multinomial(mask.numel(), replacement=True) + 1
    return kinds.view_as(mask) * mask


def corrupt_patches(x: Tensor, kinds: Tensor, mask_token: Tensor) -> Tensor:
    """Replace tokens by the mask token or by another token of the image.

    Args:
        x: Tokens of the patches, before positions are added.
        kinds: What happens to each, as draw_corruption returns it.
        mask_token: Stands for "nothing known".

    Shape:
        x: (B, N, D), kinds: (B, N), mask_token: (1, 1, D) -> (B, N, D)

    Raises:
        ValueError: The shapes do not fit together, or an image has only one
            patch.

    Source: Dosovitskiy et al. 2021, appendix B.1.2,
    https://arxiv.org/abs/2010.11929
    """
    if (
        x.ndim != 3
        or kinds.shape != x.shape[:2]
        or mask_token.shape != (1, 1, x.shape[2])
        or x.shape[1] < 2
    ):
        raise ValueError(
            "x must be (B, N, D) with N at least 2, kinds (B, N), mask_token "
            f"(1, 1, D), got {tuple(x.shape)}, {tuple(kinds.shape)} and "
            f"{tuple(mask_token.shape)}"
        )
    n = x.shape[1]
    steps = torch.randint(1, n, kinds.shape, device=x.device)  # never 0
    others = (torch.arange(n, device=x.device) + steps) % n  # (B, N)
    other = x.gather(1, others.unsqueeze(2).expand_as(x))  # (B, N, D)
    kinds = kinds.unsqueeze(2)  # (B, N, 1)
    corrupted = torch.where(kinds == 1, mask_token.to(x.dtype), x)
    return torch.where(kinds == 2, other, corrupted)


def mean_color_classes(
    images: Tensor, patch_size: int | tuple[int, int], *, bits: int = 3
) -> Tensor:
    """Give each patch the number of its mean color.

    Each channel of the mean is rounded down to one of 2^bits levels. Three
    channels of 3 bits make 512 colors.

    Args:
        images: Numbers in [0, 1]; not normalized.
        patch_size: Patch side P, or (height, width), in pixels.
        bits: Bits of each channel.

    Shape:
        images: (B, C, H, W) -> (B, N), int64 in 0..2^(C * bits) - 1. The
        first channel is the highest digit

    Raises:
        ValueError: A number is outside of [0, 1], bits is not positive, or
            patch_size does not fit.

    Source: Dosovitskiy et al. 2021, appendix B.1.2,
    https://arxiv.org/abs/2010.11929
    """
    if bits < 1:
        raise ValueError(f"bits must be positive, got {bits}")
    if (
        not images.is_floating_point()
        or not ((images >= 0) & (images <= 1)).all()
    ):
        raise ValueError(
            "images must be floats in [0, 1], got "
            f"{images.min():.3g} to {images.max():.3g} of {images.dtype}"
        )
    levels, channels = 2**bits, images.shape[1]
    patches = patchify(images, patch_size)
    mean = reduce(patches, "b n (c p) -> b n c", "mean", c=channels)
    digits = (mean * levels).long().clamp(max=levels - 1)  # (B, N, C)
    classes = torch.zeros_like(digits[..., 0])
    for digit in digits.unbind(dim=2):
        classes = classes * levels + digit
    return classes


def class_colors(
    classes: Tensor, in_chans: int = 3, *, bits: int = 3
) -> Tensor:
    """Give the color in the middle of each class of mean_color_classes.

    Args:
        classes: Numbers of colors.
        in_chans: Channels C of the image.
        bits: Bits of each channel.

    Shape:
        classes: (...), int64 -> (..., C), float32 in [0, 1]

    Raises:
        ValueError: A number is not in 0..2^(C * bits) - 1.
    """
    levels = 2**bits
    if classes.min() < 0 or classes.max() >= levels**in_chans:
        raise ValueError(
            f"classes must be in 0..{levels**in_chans - 1}, got "
            f"{classes.min()} to {classes.max()}"
        )
    places = levels ** torch.arange(in_chans - 1, -1, -1, device=classes.device)
    digits = classes.unsqueeze(-1) // places % levels  # (..., C)
    return (digits + 0.5) / levels


def refuse_overlap(encoder: VisionTransformer) -> None:
    """Refuse an encoder whose tokens see the pixels of their neighbors.

    The visible tokens would then give away what is hidden.

    Args:
        encoder: Its patch_embed must be a PatchEmbed.

    Raises:
        ValueError: It is something else, for example a ConvStem.
    """
    if not isinstance(encoder.patch_embed, PatchEmbed):
        raise ValueError(
            "encoder.patch_embed must be a PatchEmbed, whose tokens see one "
            f"patch each, got {type(encoder.patch_embed).__name__}"
        )


class MaskedPatchPrediction(nn.Module):
    """Corrupt half of the patches; predict the mean color of each of them.

    Args:
        encoder: Learns. Its head is not used.
        ratio: Share of the patches to corrupt.
        bits: Bits of each channel of the color: see mean_color_classes.

    Shape:
        images: (B, C, H, W) -> logits (B, N, 2^(C * bits)) and the mask,
        (B, N), bool, True for a patch that was chosen to be corrupted

    Raises:
        ValueError: The tokens of the encoder see more than one patch each, or
            ratio chooses none or all of the patches.

    Source: Dosovitskiy et al. 2021, appendix B.1.2,
    https://arxiv.org/abs/2010.11929
    """

    def __init__(
        self, encoder: VisionTransformer, *, ratio: float = 0.5, bits: int = 3
    ) -> None:
        super().__init__()
        refuse_overlap(encoder)
        dim, colors = encoder.norm.normalized_shape[0], 2**bits
        self.encoder = encoder
        self.ratio = ratio
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = nn.Linear(dim, colors**encoder.in_chans)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.encoder.embed_patches(images)  # (B, N, D)
        mask = draw_mask(*x.shape[:2], self.ratio, device=x.device)
        x = corrupt_patches(x, draw_corruption(mask), self.mask_token)
        x = self.encoder.encode(self.encoder.add_positions(x))
        return self.head(x[:, self.encoder.num_prefix_tokens :]), mask

    def loss(self, outputs: tuple[Tensor, Tensor], classes: Tensor) -> Tensor:
        """Mean cross-entropy over the chosen patches. classes: (B, N)."""
        logits, mask = outputs
        return F.cross_entropy(logits[mask], classes[mask])

    def score(self, outputs: tuple[Tensor, Tensor], classes: Tensor) -> Tensor:
        """Chosen patches whose color is found, in percent."""
        logits, mask = outputs
        return 100 * (logits[mask].argmax(1) == classes[mask]).float().mean()


def normalize_patches(
    patches: Tensor, *, eps: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """Give each patch mean 0 and variance 1.

    Args:
        patches: As patchify returns them.
        eps: Added to the variance, so that a patch of one color stays finite.

    Shape:
        patches: (B, N, F) -> the same, and mean and standard deviation
        (B, N, 1) of all numbers of a patch, channels together

    Raises:
        ValueError: A patch has only one number.

    Source: He et al. 2022, section 3, https://arxiv.org/abs/2111.06377. Their
    code divides by F - 1 in the variance, and so does this.
    """
    if patches.shape[-1] < 2:
        raise ValueError(
            "patches must hold at least 2 numbers each, got "
            f"{tuple(patches.shape)}"
        )
    mean = patches.mean(dim=-1, keepdim=True)
    std = (patches.var(dim=-1, keepdim=True) + eps).sqrt()
    return (patches - mean) / std, mean, std


class MaskedAutoencoder(nn.Module):
    """Hide most patches; predict their pixels from the others.

    The encoder computes the visible patches only. A light decoder puts a mask
    token at each hidden place and predicts pixels. After pretraining the
    decoder is thrown away.

    Args:
        encoder: Learns. Its head is not used.
        ratio: Share of the patches to hide.
        decoder_dim: Token width of the decoder, in features, a multiple of 4.
        decoder_depth: Blocks of the decoder.
        decoder_num_heads: Heads of its attention.
        mlp_ratio: Width of its MLP's hidden layer, in multiples of
            decoder_dim.
        normalize: Predict normalized patches: see normalize_patches.

    Shape:
        images: (B, C, H, W), mask: (B, N), bool, with as many True in each
        row, not none or all -> prediction (B, N, C * P * P) and the mask.
        None draws one

    Raises:
        ValueError: The tokens of the encoder see more than one patch each,
            ratio hides none or all of the patches, or mask does not fit.

    Source: He et al. 2022, https://arxiv.org/abs/2111.06377. Names of
    parameters are theirs; those of the encoder begin with "encoder". Their
    decoder_pred has the numbers of a patch in the order row, column, channel,
    ours in that of patchify.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        ratio: float = 0.75,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mlp_ratio: float = 4.0,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        refuse_overlap(encoder)
        self.encoder = encoder
        self.patch_size = (p1, p2) = encoder.patch_embed.patch_size
        self.ratio = ratio
        self.normalize = normalize
        dim = encoder.norm.normalized_shape[0]
        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        positions = sincos_pos_embed(encoder.grid_size, decoder_dim)
        positions = F.pad(positions, (0, 0, encoder.num_prefix_tokens, 0))
        self.register_buffer("decoder_pos_embed", positions, persistent=False)
        self.decoder_blocks = nn.ModuleList(
            EncoderBlock(decoder_dim, decoder_num_heads, mlp_ratio=mlp_ratio)
            for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_dim, encoder.in_chans * p1 * p2)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the first weights of the decoder, as those of the encoder."""
        nn.init.normal_(self.mask_token, std=0.02)
        for part in (
            self.decoder_embed,
            self.decoder_blocks,
            self.decoder_pred,
        ):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)

    def forward(
        self, images: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        x = self.encoder.embed(images)  # (B, prefix + N, D)
        prefix = self.encoder.num_prefix_tokens
        b, n = x.shape[0], x.shape[1] - prefix
        if mask is None:
            mask = draw_mask(b, n, self.ratio, device=x.device)
        hidden = mask.sum(dim=-1).unique()
        if (
            mask.shape != (b, n)
            or mask.dtype != torch.bool
            or len(hidden) != 1
            or hidden.item() in (0, n)
        ):
            raise ValueError(
                f"mask must be {(b, n)} of bool and hide as many patches in "
                f"each row, not none or all, got {tuple(mask.shape)} of "
                f"{mask.dtype} with {mask.sum(dim=-1).tolist()}"
            )
        visible = F.pad(~mask, (prefix, 0), value=True)  # (B, prefix + N)
        x = rearrange(x[visible], "(b n) d -> b n d", b=b)  # the visible only
        x = self.decoder_embed(self.encoder.encode(x))
        everywhere = self.mask_token.to(x.dtype).expand(b, prefix + n, -1)
        x = everywhere.masked_scatter(visible.unsqueeze(2), x)  # each in place
        x = x + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, prefix:], mask

    def target(self, images: Tensor) -> Tensor:
        """What to predict: the patches, normalized or not, (B, N, CPP)."""
        patches = patchify(images, self.patch_size)
        return normalize_patches(patches)[0] if self.normalize else patches

    def loss(self, outputs: tuple[Tensor, Tensor], images: Tensor) -> Tensor:
        """Mean squared error over the numbers of the hidden patches."""
        prediction, mask = outputs
        return F.mse_loss(prediction[mask], self.target(images)[mask])

    def score(self, outputs: tuple[Tensor, Tensor], images: Tensor) -> Tensor:
        """How much less error than the mean hidden patch has, in percent."""
        prediction, mask = outputs
        target = self.target(images)[mask]
        error = F.mse_loss(prediction[mask], target)
        return 100 * (1 - error / target.var(dim=0, correction=0).mean())


def paint_prediction(
    prediction: Tensor,
    images: Tensor,
    mask: Tensor,
    patch_size: int | tuple[int, int],
    *,
    normalized: bool,
) -> Tensor:
    """Put predicted patches into the holes of the images.

    Where the prediction is normalized, its mean and standard deviation must
    be put back. Those of the hidden patch are part of the answer, so they are
    estimated: averages over the visible patches of the image, each with one
    over the squared distance as its weight. No hidden pixel is read.

    Args:
        prediction: What the model says of each patch.
        images: The images, in the units of the prediction.
        mask: True for a hidden patch.
        patch_size: Patch side P, or (height, width), in pixels.
        normalized: The model predicts normalized patches.

    Shape:
        prediction: (B, N, C * P * P), images: (B, C, H, W), mask: (B, N), bool
        -> (B, C, H, W)

    Raises:
        ValueError: The shapes do not fit together, or an image has no visible
            patch.
    """
    patches = patchify(images, patch_size)
    if prediction.shape != patches.shape or mask.shape != patches.shape[:2]:
        raise ValueError(
            f"prediction must be {tuple(patches.shape)} and mask "
            f"{tuple(patches.shape[:2])}, got {tuple(prediction.shape)} and "
            f"{tuple(mask.shape)}"
        )
    if mask.all(dim=1).any():
        raise ValueError(
            "mask must leave a visible patch, got an image without"
        )
    p1, p2 = as_pair("patch_size", patch_size)
    grid_size = images.shape[2] // p1, images.shape[3] // p2
    if normalized:
        hidden = mask.unsqueeze(2)  # (B, N, 1)
        places = torch.cartesian_prod(*map(torch.arange, grid_size))  # (N, 2)
        squares = (places.unsqueeze(1) - places).square().sum(2).clamp(min=1)
        weights = ~mask.unsqueeze(1) / squares.to(images)  # (B, N, N)
        weights = weights / weights.sum(dim=2, keepdim=True)
        _, mean, std = normalize_patches(patches)
        mean = weights @ mean.masked_fill(hidden, 0)  # (B, N, 1)
        std = weights @ std.masked_fill(hidden, 0)
        prediction = prediction * std + mean
    painted = torch.where(mask.unsqueeze(2), prediction, patches)
    return unpatchify(painted, patch_size, grid_size)


def rotate_images(images: Tensor) -> tuple[Tensor, Tensor]:
    """Turn each image by 0, 90, 180 and 270 degrees; the label is the turn.

    Args:
        images: Square images.

    Shape:
        images: (B, C, H, H) -> images (4 * B, C, H, H), all of one turn after
        the other; labels (4 * B,), int64, quarter turns to the left

    Raises:
        ValueError: images is not (B, C, H, H).

    Source: Gidaris et al. 2018, https://arxiv.org/abs/1803.07728
    """
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(
            f"images must be (B, C, H, H), got {tuple(images.shape)}"
        )
    turned = [images.rot90(turns, dims=(2, 3)) for turns in range(4)]
    labels = torch.arange(4, device=images.device)
    return torch.cat(turned), labels.repeat_interleave(len(images))


def evaluate_pretext(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the mean loss and the mean score over the images.

    Args:
        model: A MaskedPatchPrediction or MaskedAutoencoder. It is set to
            evaluation mode.
        loader: Gives batches of images and what model.loss compares with.
        seed: Of the masks, so that each call hides the same patches. Other
            random numbers are not changed.

    Raises:
        ValueError: loader gives no batch.
    """
    device = next(model.parameters()).device
    model.eval()
    loss, score, count = 0.0, 0.0, 0
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        for images, targets in loader:
            images = images.to(device, non_blocking=True)
            targets = targets.to(device, non_blocking=True)
            with mixed_precision(device):
                outputs = model(images)
                loss += model.loss(outputs, targets).item() * len(images)
                score += model.score(outputs, targets).item() * len(images)
            count += len(images)
    if count == 0:
        raise ValueError("loader must give at least one batch, got none")
    return loss / count, score / count
