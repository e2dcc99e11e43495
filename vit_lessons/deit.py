"""DeiT: a Vision Transformer that also learns from another model.

Chapter: notebooks/14_deit.ipynb
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Sampler

from vit_lessons.class_token import prepend_token
from vit_lessons.training import mixed_precision
from vit_lessons.vision_transformer import VIT_PRESETS, VisionTransformer

__all__ = [
    "DEIT_PRESETS",
    "DistilledVisionTransformer",
    "RepeatedAugmentation",
    "ask_teacher",
    "deit_augmentation",
    "deit_mix",
    "hard_distillation_loss",
    "refuse_unequal_shapes",
    "soft_distillation_loss",
]


class DistilledVisionTransformer(VisionTransformer):
    """A Vision Transformer with a second token and head, for a teacher.

    The class token's head learns the labels, the distillation token's head
    what the teacher says.

    Args:
        img_size: Side of the image, or (height, width), in pixels.
        patch_size: Patch side P, or (height, width), in pixels.
        num_classes: Classes K. 0 leaves out both heads.
        embed_dim: Token width D, in features.
        arguments: The other arguments of VisionTransformer, without pool: the
            heads read the tokens.

    Shape:
        images: (B, C, H, W) of img_size -> in training the logits of both
        heads, a pair of (B, K): class, then distillation; in evaluation their
        mean (B, K)

    Raises:
        ValueError: As VisionTransformer, or pool is not "cls".

    Source: Touvron et al. 2021, section 4, https://arxiv.org/abs/2012.12877.
    Parameter names are timm's.
    """

    num_prefix_tokens = 2  # the class token and the distillation token

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        *,
        num_classes: int = 1000,
        embed_dim: int = 768,
        **arguments: Any,
    ) -> None:
        super().__init__(
            img_size,
            patch_size,
            num_classes=num_classes,
            embed_dim=embed_dim,
            **arguments,
        )
        if self.pool != "cls":
            raise ValueError(f'pool must be "cls", got {self.pool!r}')
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        nn.init.trunc_normal_(self.dist_token, std=0.02)
        self.head_dist = (
            nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        )
        for parameter in self.head_dist.parameters():
            nn.init.zeros_(parameter)

    def add_positions(self, x: Tensor) -> Tensor:
        """Put both tokens in front and add positions: (B, 2 + N, D)."""
        return super().add_positions(prepend_token(x, self.dist_token))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.forward_features(images, num_queries=2)  # (B, 2, D)
        logits, dist_logits = self.head(x[:, 0]), self.head_dist(x[:, 1])
        if self.training:
            return logits, dist_logits
        return (logits + dist_logits) / 2


def refuse_unequal_shapes(
    logits: Tensor, dist_logits: Tensor, labels: Tensor, teacher_logits: Tensor
) -> None:
    """Refuse shapes that would be broadcast, or unpacked by mistake.

    Args:
        logits, dist_logits, labels, teacher_logits: As those of
            hard_distillation_loss.

    Raises:
        ValueError: The logits are not all (B, K), or labels are not (B,) or
            (B, K).
    """
    shape = tuple(logits.shape)
    others = (tuple(dist_logits.shape), tuple(teacher_logits.shape))
    if len(shape) != 2 or others != (shape, shape):
        raise ValueError(
            "logits, dist_logits and teacher_logits must all be (B, K), got "
            f"{shape}, {others[0]} and {others[1]}"
        )
    if tuple(labels.shape) not in (shape, shape[:1]):
        raise ValueError(
            f"labels must be {shape[:1]} or {shape}, got {tuple(labels.shape)}"
        )


def hard_distillation_loss(
    logits: Tensor,
    dist_logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Half the cross-entropy with the labels, half with the teacher's class.

    Args:
        logits: Of the head that learns the labels.
        dist_logits: Of the head that learns from the teacher. A model with
            one head gives its logits twice.
        labels: Classes, or the probability of each class.
        teacher_logits: Their largest is the teacher's class.
        label_smoothing: Share of a label that is spread over all classes. The
            teacher's class is not smoothed.

    Shape:
        logits, dist_logits, teacher_logits: (B, K), labels: (B,) or (B, K)
        -> (), the mean over the batch

    Raises:
        ValueError: The shapes do not fit together.

    Source: Touvron et al. 2021, equation 3, https://arxiv.org/abs/2012.12877
    """
    refuse_unequal_shapes(logits, dist_logits, labels, teacher_logits)
    loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    teacher_loss = F.cross_entropy(dist_logits, teacher_logits.argmax(dim=1))
    return (loss + teacher_loss) / 2


def soft_distillation_loss(
    logits: Tensor,
    dist_logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 3.0,
    weight: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy with the labels, and the distance to the teacher's answer.

    The distance is temperature^2 * KL(teacher || student), of the softmax of
    logits divided by the temperature.

    Args:
        logits: Of the head that learns the labels.
        dist_logits: Of the head that learns from the teacher. A model with
            one head gives its logits twice.
        labels: Classes, or the probability of each class.
        teacher_logits: Of the teacher.
        temperature: A larger one lets small probabilities count more.
        weight: Of the distance, 0 to 1. The cross-entropy gets the rest.
        label_smoothing: Share of a label that is spread over all classes.

    Shape:
        logits, dist_logits, teacher_logits: (B, K), labels: (B,) or (B, K)
        -> (), the mean over the batch

    Raises:
        ValueError: The shapes do not fit together, temperature is not
            positive, or weight is not in 0 <= weight <= 1.

    Source: Touvron et al. 2021, equation 2, https://arxiv.org/abs/2012.12877,
    after Hinton et al. 2015, https://arxiv.org/abs/1503.02531
    """
    refuse_unequal_shapes(logits, dist_logits, labels, teacher_logits)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be in 0 <= weight <= 1, got {weight}")
    loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    distance = F.kl_div(
        (dist_logits / temperature).log_softmax(dim=1),
        (teacher_logits / temperature).log_softmax(dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - weight) * loss + weight * temperature**2 * distance


def ask_teacher(
    teacher: nn.Module,
    mix: Callable[..., tuple[Tensor, Tensor]] | None = None,
) -> Callable[[Tensor, Tensor], tuple[Tensor, tuple[Tensor, Tensor]]]:
    """Let a teacher see each batch, for the argument mix of fit.

    The teacher sees the images as the student sees them, after mix. loss_fn
    gets labels and teacher's logits as a pair.

    Args:
        teacher: From images to logits. It does not learn.
        mix: From a batch to another one, for example deit_mix.

    Shape:
        the returned function: images (B, C, H, W), labels (B,) or (B, K) ->
        images, (labels, logits of the teacher (B, K))
    """

    def ask(
        images: Tensor, labels: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if mix is not None:
            images, labels = mix(images, labels)
        teacher.eval()  # in training, batch norm would use this batch
        with torch.no_grad(), mixed_precision(images.device):
            teacher_logits = teacher(images)
        return images, (labels, teacher_logits)

    return ask


class RepeatedAugmentation(Sampler[list[int]]):
    """Batches in which each image comes several times.

    The dataset augments each copy anew. An epoch has as many batches as
    without repeats, so it shows a share 1 / repeats of the images. If
    batch_size is a multiple of repeats, copies do not stand side by side:
    MixUp and CutMix of torchvision mix each image with the one before it.

    Args:
        num_images: Images of the dataset.
        batch_size: Images of a batch, copies included.
        repeats: Copies of each image, or fewer if batch_size is no multiple
            of it.

    Raises:
        ValueError: Not 1 <= repeats <= batch_size <= num_images.

    Source: Hoffer et al. 2020, https://arxiv.org/abs/1901.09335, and Berman et
    al. 2019, https://arxiv.org/abs/1902.05509
    """

    def __init__(
        self, num_images: int, batch_size: int, *, repeats: int = 3
    ) -> None:
        if not 1 <= repeats <= batch_size <= num_images:
            raise ValueError(
                "repeats, batch_size and num_images must be 1 <= repeats <= "
                f"batch_size <= num_images, got {repeats}, {batch_size} and "
                f"{num_images}"
            )
        self.num_images = num_images
        self.batch_size = batch_size
        self.repeats = repeats

    def __len__(self) -> int:
        return self.num_images // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        different = -(-self.batch_size // self.repeats)  # rounded up
        order = torch.randperm(self.num_images).tolist()
        for i in range(len(self)):
            images = order[i * different : (i + 1) * different]
            yield (images * self.repeats)[: self.batch_size]


def deit_augmentation(
    img_size: int | tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    flip: float = 0.5,
    magnitude: int = 27,
    erasing: float = 0.25,
) -> nn.Module:
    """Augment one image as DeiT does: crop, flip, RandAugment, erase.

    Args:
        img_size: Side of the result, or (height, width), in pixels.
        mean: Of each channel, subtracted. Pixels lie in [0, 1].
        std: Of each channel. What is left is divided by it.
        crop_scale: Smallest and largest share of the image that a crop shows.
        flip: Probability of a mirror image.
        magnitude: Strength of RandAugment, 0 to 30. DeiT's 9 is one of 10
            steps, so it is 27 here.
        erasing: Probability of putting noise on a rectangle.

    Shape:
        a PIL image or a tensor (C, H, W), C = 1 or 3, uint8 or in [0, 1] ->
        (C, height, width), float32, of about mean 0 and standard deviation 1

    Raises:
        ValueError: magnitude is not in 0..30, mean and std do not have 1 or 3
            numbers, or a probability is none.

    Source: Touvron et al. 2021, table 9, https://arxiv.org/abs/2012.12877
    """
    from torchvision.transforms import v2  # takes as long as importing torch

    if not isinstance(magnitude, int) or magnitude not in range(31):
        raise ValueError(f"magnitude must be an int in 0..30, got {magnitude}")
    if len(mean) != len(std) or len(mean) not in (1, 3):
        raise ValueError(
            "mean and std must both have 1 or 3 numbers, got "
            f"{len(mean)} and {len(std)}"
        )
    for name, probability in (("flip", flip), ("erasing", erasing)):
        if not 0 <= probability <= 1:
            raise ValueError(f"{name} must be in 0..1, got {probability}")
    modes = v2.InterpolationMode
    one_change = v2.RandAugment(
        num_ops=1,
        magnitude=magnitude,
        interpolation=modes.BILINEAR,  # tensors cannot be turned with bicubic
        fill=[255 * m for m in mean],
    )
    return v2.Compose(
        [
            v2.ToImage(),
            # Before the crop: a bicubic one of floats leaves [0, 1].
            v2.ToDtype(torch.uint8, scale=True),
            v2.RandomResizedCrop(
                img_size, scale=crop_scale, interpolation=modes.BICUBIC
            ),
            v2.RandomHorizontalFlip(flip),
            # As in timm, and so in DeiT, each is made half of the time.
            v2.RandomApply([one_change]),
            v2.RandomApply([one_change]),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
            v2.RandomErasing(erasing, value="random"),
            v2.ToPureTensor(),
        ]
    )


def deit_mix(num_classes: int) -> nn.Module:
    """MixUp or CutMix, one of them for each batch, as in DeiT.

    Args:
        num_classes: Classes K.

    Shape:
        images: (B, C, H, W), labels: (B,) -> (B, C, H, W), (B, K)

    Source: Touvron et al. 2021, table 9, https://arxiv.org/abs/2012.12877
    """
    from torchvision.transforms import v2  # takes as long as importing torch

    return v2.RandomChoice(
        [
            v2.MixUp(alpha=0.8, num_classes=num_classes),
            v2.CutMix(alpha=1.0, num_classes=num_classes),
        ]
    )


#: Arguments of DistilledVisionTransformer for the published sizes, by timm's
#: names. They are those of the ViT of the same size.
DEIT_PRESETS: dict[str, dict[str, Any]] = {
    f"deit_{name}_distilled_patch16_224": {
        **VIT_PRESETS[f"vit_{name}_patch16_224"]
    }
    for name in ("tiny", "small", "base")
}
