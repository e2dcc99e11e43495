"""What do the pictures of a small model's inside show, and is it there?

Attention on shapes, where the place of the shape is known, beside a model
that has not learned; the similarity of positions after masked training on two
photographs, beside classifiers of digits; attention between two tiles that
are equal or not. One run measures all of one task.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from digits import TINY, split
from runner import record
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from vit_lessons import (
    MaskedAutoencoder,
    MaskedPatchPrediction,
    VisionTransformer,
    attention_distance,
    attention_rollout,
    attention_weights,
    class_attention,
    distance_correlation,
    evaluate_pretext,
    fit,
    mean_color_classes,
    patch_attention,
    patchify,
    position_similarity,
    unpatchify,
)
from vit_lessons.data import crop_photographs
from vit_lessons.procedural import make_match, make_shapes, shape_masks

BATCH = 32
SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0}


def build(img_size: int, num_classes: int, std: float) -> VisionTransformer:
    """A model with patches of 4 x 4 pixels and positions of size std."""
    model = VisionTransformer(img_size, 4, num_classes=num_classes, **SMALL)
    nn.init.normal_(model.pos_embed, std=std)
    return model


def train(
    model: nn.Module,
    images: TensorDataset,
    test: TensorDataset,
    *,
    seed: int,
    steps: int,
    **options: object,
) -> float:
    """Train; return the test accuracy, or the score of a pretext task."""
    sampler = RandomSampler(images, num_samples=BATCH * steps)
    history = fit(
        model,
        DataLoader(images, BATCH, sampler=sampler),
        DataLoader(test, 250),
        epochs=1,
        learning_rate=2e-3,
        seed=seed,
        **options,
    )
    return round(history.test_accuracy[-1], 2)


def percent(share: Tensor) -> float:
    return round(100 * share.mean().item(), 2)


def hide(images: Tensor, importance: Tensor, count: int) -> Tensor:
    """Paint the most important patches of each image in the mean color."""
    patches = patchify(images, 4)
    most = importance.flatten(1).topk(count, dim=1).indices
    patches = patches.scatter(1, most.unsqueeze(2).expand(-1, -1, 48), 0.0)
    return unpatchify(patches, 4, tuple(importance.shape[1:]))


def shapes(seed: int, steps: int) -> dict[str, float]:
    """Where does attention look: on the shape?"""
    pixels, labels = make_shapes(20_000, seed=1 + seed, size=32)
    mean, std = pixels.mean(), pixels.std()
    test_pixels, test_labels = make_shapes(1000, seed=0, size=32)
    test = (test_pixels - mean) / std
    on_shape = avg_pool2d(shape_masks(1000, seed=0, size=32), 4).squeeze(1)
    torch.manual_seed(seed)
    model = build(32, 4, 0.1)
    control = deepcopy(model)
    accuracy = train(
        model,
        TensorDataset((pixels - mean) / std, labels),
        TensorDataset(test, test_labels),
        seed=seed,
        steps=steps,
    )
    results = {"accuracy": accuracy, "area": percent(on_shape)}
    uniform = torch.full((65, 65), 1 / 65)
    results["distance, even"] = attention_distance(uniform, 8, 4).item()
    importance = {
        "the shape": on_shape,
        "chance": torch.rand(on_shape.shape),
    }
    for name, network in (("trained", model), ("untrained", control)):
        weights = attention_weights(network, test)
        rollout = class_attention(attention_rollout(weights), 8)
        importance[f"rollout, {name}"] = rollout
        mass = (rollout * on_shape).sum(dim=(1, 2))
        results[f"rollout, {name}"] = percent(mass)
        for i, layer in enumerate(weights, start=1):
            heads = class_attention(layer, 8)  # (B, h, 8, 8)
            heads = (heads * on_shape.unsqueeze(1)).sum(dim=(2, 3)).mean(dim=0)
            distance = attention_distance(layer, 8, 4).mean(dim=0)
            results |= {
                f"layer {i}, {name}": percent(heads),
                f"layer {i}, best head, {name}": percent(heads.max()),
                f"distance {i}, {name}": distance.mean().item(),
                f"least distance {i}, {name}": distance.min().item(),
                f"most distance {i}, {name}": distance.max().item(),
            }
        if name == "trained":
            with torch.no_grad():
                right = network(test).argmax(dim=1) == test_labels
            results["rollout where right"] = percent(mass[right])
            results["rollout where wrong"] = percent(mass[~right])
    for name, what in importance.items():
        with torch.no_grad():
            guess = model(hide(test, what, 12)).argmax(dim=1)
        right = (guess == test_labels).float()
        results[f"accuracy without {name}"] = percent(right)
    return results


def photographs(seed: int, steps: int, method: str) -> dict[str, float]:
    """Does the position table show the grid after masked training?"""
    pixels = crop_photographs(6000, seed=seed)
    test_pixels = crop_photographs(500, seed=seed, test=True)
    mean, std = pixels.mean(), pixels.std()
    images, test = (pixels - mean) / std, (test_pixels - mean) / std
    torch.manual_seed(seed)
    encoder = build(32, 0, 0.02)
    before = distance_correlation(position_similarity(encoder.pos_embed, 8))
    if method == "masked patches":
        model = MaskedPatchPrediction(encoder)
        data = [
            TensorDataset(images, mean_color_classes(pixels, 4)),
            TensorDataset(test, mean_color_classes(test_pixels, 4)),
        ]
    else:
        model = MaskedAutoencoder(
            encoder,
            decoder_dim=48,
            decoder_depth=1,
            decoder_num_heads=4,
            mlp_ratio=2.0,
        )
        data = [TensorDataset(images, images), TensorDataset(test, test)]
    score = train(
        model,
        *data,
        seed=seed,
        steps=steps,
        loss_fn=model.loss,
        evaluate_fn=evaluate_pretext,
    )
    after = distance_correlation(position_similarity(encoder.pos_embed, 8))
    return {"score": score, "correlation": after, "before": before}


def digits(seed: int, steps: int, std: float) -> dict[str, float]:
    """Does the position table of a classifier show the grid?"""
    torch.manual_seed(seed)
    model = VisionTransformer(**TINY)
    nn.init.normal_(model.pos_embed, std=std)
    before = distance_correlation(position_similarity(model.pos_embed, 4))
    accuracy = train(model, *split(), seed=seed, steps=steps)
    after = distance_correlation(position_similarity(model.pos_embed, 4))
    return {"accuracy": accuracy, "correlation": after, "before": before}


def match(seed: int, steps: int) -> dict[str, float]:
    """Does a tile look at the other one, and more if the two are equal?"""
    pixels, labels = make_match(20_000, seed=1 + seed)
    mean, std = pixels.mean(), pixels.std()
    test_pixels, test_labels = make_match(1000, seed=0)
    test = (test_pixels - mean) / std
    torch.manual_seed(seed)
    model = build(16, 2, 0.1)
    control = deepcopy(model)
    accuracy = train(
        model,
        TensorDataset((pixels - mean) / std, labels),
        TensorDataset(test, test_labels),
        seed=seed,
        steps=steps,
    )
    # A tile has more contrast than the ground: the two places that vary most.
    patches = patchify(test_pixels, 4)
    first, second = patches.var(dim=2).topk(2, dim=1).indices.T
    results = {"accuracy": accuracy}
    images = torch.arange(len(test))
    for name, network in (("trained", model), ("untrained", control)):
        best = []
        for layer in attention_weights(network, test):
            among = patch_attention(layer)  # (B, h, N, N)
            there = among[images, :, first, second]  # (B, h)
            back = among[images, :, second, first]
            best.append((there + back) / 2)
        heads = torch.cat(best, dim=1)  # (B, layers * heads)
        head = heads.mean(dim=0).argmax()
        for label, what in ((1, "equal"), (0, "different")):
            some = heads[test_labels == label, head]
            results[f"to the other tile, {what}, {name}"] = percent(some)
    return results


TASKS = {
    "shapes": shapes,
    "photographs": photographs,
    "digits": digits,
    "match": match,
}


def run(*, seed: int, task: str, **settings: object) -> dict[str, float]:
    results = TASKS[task](seed, **settings)
    return {name: round(value, 4) for name, value in results.items()}


CONFIGURATIONS = [
    {"task": "shapes", "steps": 800},
    *(
        {"task": "photographs", "method": method, "steps": 500}
        for method in ("masked patches", "autoencoder")
    ),
    *({"task": "digits", "std": std, "steps": 400} for std in (0.02, 1.0)),
    {"task": "match", "steps": 1000},
]

if __name__ == "__main__":
    record(__file__, run, CONFIGURATIONS, quick=(CONFIGURATIONS, {"steps": 3}))
