"""What does a small ViT gain from augmentation, and what from a teacher?

It learns to name shapes from 300 labeled images, and digits from 100. A CNN
that learned from the same labeled images is the teacher: of the same images,
or of others that have no label. Images are changed a little ("weak"), as in
DeiT, or by the whole recipe of DeiT.
"""

from __future__ import annotations

from functools import cache

import torch
from data_size import deeper_cnn
from digits import TINY
from runner import record
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from torchvision.transforms import v2

from vit_lessons import (
    DistilledVisionTransformer,
    RepeatedAugmentation,
    SmallCNN,
    VisionTransformer,
    ask_teacher,
    deit_augmentation,
    deit_mix,
    evaluate,
    fit,
    hard_distillation_loss,
    soft_distillation_loss,
)
from vit_lessons.data import ImageDataset, split_digits
from vit_lessons.procedural import SHAPES, make_shapes

BATCH = 32
RATE = 2e-3
CLASSES = {"shapes": len(SHAPES), "digits": 10}
STUDENTS = {
    "shapes": TINY | {"img_size": 16, "patch_size": 4, "in_chans": 3},
    "digits": TINY,
}
POSITION_STD = {"shapes": 0.1, "digits": 1.0}
WEAK = {
    "shapes": v2.Compose(
        [
            v2.RandomCrop(16, padding=3, padding_mode="edge"),
            v2.RandomChannelPermutation(),
        ]
    ),
    "digits": v2.RandomAffine(
        degrees=8,
        translate=(0.09, 0.09),
        scale=(0.95, 1.05),
        interpolation=v2.InterpolationMode.BILINEAR,
    ),
}
# Steps of the teachers.
VIT_STEPS = 2800
CNN_STEPS = {"shapes": 700, "digits": 500}


@cache
def images(
    task: str, seed: int
) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """With labels, without (they are not used), and to test with: pixels."""
    if task == "shapes":
        parts = [
            make_shapes(300, seed=1 + seed),
            make_shapes(4000, seed=101 + seed),
            make_shapes(2000, seed=0),
        ]
    else:
        digits = split_digits(seed)
        train, labels = digits.train_images, digits.train_labels
        parts = [
            (train[:100], labels[:100]),
            (train, labels),
            (digits.test_images, digits.test_labels),
        ]
    return tuple(TensorDataset(*part) for part in parts)


@cache
def scale(task: str) -> tuple[float, float]:
    if task == "shapes":
        pixels, _ = make_shapes(1000, seed=1)
    else:
        pixels = split_digits().train_images
    return pixels.mean().item(), pixels.std().item()


def transform(task: str, augmentation: str) -> v2.Compose:
    """From pixels to what a model sees."""
    channels = 3 if task == "shapes" else 1
    mean, std = ([number] * channels for number in scale(task))
    normalize = v2.Normalize(mean, std)
    if augmentation == "none":
        return v2.Compose([normalize])
    if augmentation == "weak":
        return v2.Compose([normalize, WEAK[task]])
    return deit_augmentation(16, mean, std, crop_scale=(0.5, 1.0))


def build(task: str, method: str, drop_path: float = 0.0) -> nn.Module:
    token = method.endswith("token")
    kind = DistilledVisionTransformer if token else VisionTransformer
    settings = {"num_classes": CLASSES[task], "drop_path": drop_path}
    model = kind(**STUDENTS[task] | settings)
    nn.init.normal_(model.pos_embed, std=POSITION_STD[task])
    return model


def loader(
    data: TensorDataset, task: str, augmentation: str, steps: int
) -> DataLoader:
    changed = ImageDataset(*data.tensors, transform(task, augmentation))
    if augmentation == "recipe":
        sampler = RepeatedAugmentation(len(data), BATCH)
        epochs = -(-steps // len(sampler))  # rounded up
        batches = [batch for _ in range(epochs) for batch in sampler]
        return DataLoader(changed, batch_sampler=batches[:steps])
    sampler = RandomSampler(changed, num_samples=BATCH * steps)
    return DataLoader(changed, BATCH, sampler=sampler)


def test_loader(task: str, seed: int) -> DataLoader:
    test = images(task, seed)[2]
    return DataLoader(ImageDataset(*test.tensors, transform(task, "none")), 500)


@cache
def train_teacher(
    task: str, kind: str, augmentation: str, steps: int, seed: int
) -> nn.Module:
    torch.manual_seed(500 + seed)
    if kind == "ViT":
        teacher = build(task, "labels")
    elif task == "shapes":
        teacher = deeper_cnn(CLASSES[task])
    else:
        teacher = SmallCNN(1, CLASSES[task])
    fit(
        teacher,
        loader(images(task, seed)[0], task, augmentation, steps),
        test_loader(task, seed),
        epochs=1,
        learning_rate=RATE,
        seed=500 + seed,
    )
    return teacher


def loss(method: str, labeled: bool, smoothing: float):
    kind, _, token = method.partition(", ")

    def of_batch(outputs: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        labels, answers = targets
        heads = outputs if token else (outputs, outputs)
        options = {"label_smoothing": smoothing}
        if not labeled:
            labels = answers.argmax(dim=1)
        if kind == "hard":
            return hard_distillation_loss(*heads, labels, answers, **options)
        if not labeled:
            options |= {"weight": 1.0}
        return soft_distillation_loss(*heads, labels, answers, **options)

    return of_batch


@torch.no_grad()
def measure(student: nn.Module, test: DataLoader) -> dict[str, float]:
    """Accuracy of each head, and of the sum of their probabilities."""
    if not isinstance(student, DistilledVisionTransformer):
        return {}
    right = torch.zeros(3)
    for pixels, labels in test:
        x = student.forward_features(pixels, num_queries=2)
        logits, dist_logits = student.head(x[:, 0]), student.head_dist(x[:, 1])
        sums = logits.softmax(dim=1) + dist_logits.softmax(dim=1)
        for i, scores in enumerate((logits, dist_logits, sums)):
            right[i] += (scores.argmax(dim=1) == labels).sum()
    shares = (100 * right / len(test.dataset)).tolist()
    names = ("class_accuracy", "dist_accuracy", "softmax_accuracy")
    return {n: round(s, 2) for n, s in zip(names, shares, strict=True)}


@torch.no_grad()
def agreement(first, second, batches) -> float:
    """Share of images, in percent, of which two say the same."""
    same = [first(pixels, y) == second(pixels, y) for pixels, y in batches]
    return round(100 * torch.cat(same).float().mean().item(), 2)


def run(
    *,
    seed: int,
    task: str,
    augmentation: str,
    method: str,
    teacher: str,
    labeled: bool,
    steps: int,
) -> dict[str, float]:
    test = test_loader(task, seed)
    few, many, _ = images(task, seed)
    recipe = augmentation == "recipe"
    mix = deit_mix(CLASSES[task]) if recipe else None
    smoothing = 0.1 if recipe else 0.0
    options = {"mix": mix}
    if teacher != "none":
        model = train_teacher(
            task,
            teacher,
            augmentation if teacher == "CNN, same augmentation" else "weak",
            min(steps, VIT_STEPS if teacher == "ViT" else CNN_STEPS[task]),
            seed,
        )
        options = {
            "mix": ask_teacher(model, mix),
            "loss_fn": loss(method, labeled, smoothing),
        }
    elif smoothing:
        options["loss_fn"] = nn.CrossEntropyLoss(label_smoothing=smoothing)
    torch.manual_seed(1000 + seed)
    student = build(task, method, drop_path=0.1 if recipe else 0.0)
    history = fit(
        student,
        loader(few if labeled else many, task, augmentation, steps),
        test,
        epochs=1,
        learning_rate=RATE,
        seed=seed,
        **options,
    )
    results = {"accuracy": round(history.test_accuracy[-1], 2)}
    results |= measure(student, test)
    if teacher != "none":
        results["teacher_accuracy"] = round(evaluate(model, test)[1], 2)
        student.eval()
        model.eval()

        def says(network):
            return lambda pixels, _: network(pixels).argmax(dim=1)

        results["agreement"] = agreement(says(model), says(student), test)
        torch.manual_seed(seed)
        changed = loader(few, task, augmentation, 50)  # 1600 images
        results["teacher_agrees_with_labels"] = agreement(
            says(model), lambda _, labels: labels, changed
        )
    return results


def settings(
    task: str,
    augmentation: str,
    method: str,
    steps: int,
    *,
    teacher: str = "CNN",
    labeled: bool = True,
) -> dict[str, str | bool | int]:
    return {
        "task": task,
        "augmentation": augmentation,
        "method": method,
        "teacher": "none" if method == "labels" else teacher,
        "labeled": labeled,
        "steps": steps,
    }


def seeds(settings: dict[str, str | bool | int]) -> int:
    """Five for the slow runs, whose differences are larger."""
    return 5 if settings["augmentation"] in ("DeiT", "recipe") else 10


HARD = "hard, token"
CONFIGURATIONS = [
    settings("shapes", "none", "labels", 700),
    *(
        settings("shapes", "weak", method, 700)
        for method in ("labels", "soft", "hard", "soft, token", HARD)
    ),
    settings("shapes", "weak", "soft", 700, labeled=False),
    settings("shapes", "weak", "hard", 700, labeled=False),
    # 300 epochs of 300 images, as DeiT's training has 300 epochs.
    settings("shapes", "weak", "labels", 2800),
    settings("shapes", "weak", HARD, 2800),
    settings("shapes", "weak", "hard", 2800, labeled=False),
    *(
        settings("shapes", "DeiT", method, 2800)
        for method in ("labels", "soft", "hard", HARD)
    ),
    *(
        settings("shapes", "DeiT", HARD, 2800, teacher=teacher)
        for teacher in ("CNN, same augmentation", "ViT")
    ),
    settings("shapes", "recipe", "labels", 2800),
    settings("shapes", "recipe", HARD, 2800),
    settings("digits", "none", "labels", 500),
    *(
        settings("digits", "weak", method, 500)
        for method in ("labels", "soft", "hard", "soft, token", HARD)
    ),
    settings("digits", "weak", "soft", 500, labeled=False),
    settings("digits", "weak", "hard", 500, labeled=False),
    # 640 epochs of 100 images.
    settings("digits", "weak", "labels", 2000),
    settings("digits", "weak", HARD, 2000),
    settings("digits", "weak", "hard", 2000, labeled=False),
]

if __name__ == "__main__":
    record(
        __file__,
        run,
        CONFIGURATIONS,
        quick=(CONFIGURATIONS[4::7], {"steps": 4}),
        seeds=seeds,
    )
