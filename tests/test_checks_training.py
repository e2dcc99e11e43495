"""The checks of chapters 08 and 09: solutions and mistakes written by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
)
from tqdm.auto import tqdm
from tqdm.notebook import tqdm as notebook_tqdm

from vit_lessons.checks import check
from vit_lessons.patch_embedding import patchify, unpatchify

# Right solutions, as different as readers are.


@torch.no_grad()
def evaluate_with_tensors(model, loader):
    model.eval()
    logits, labels = [], []
    for x, y in loader:
        logits.append(model(x))
        labels.append(y)
    logits, labels = torch.cat(logits), torch.cat(labels)
    accuracy = 100 * (logits.argmax(-1) == labels).float().mean()
    return F.cross_entropy(logits, labels), accuracy


def evaluate_with_dataset(model, loader):
    criterion = nn.CrossEntropyLoss()
    was_training = model.training
    model.train(False)
    n, loss, correct = len(loader.dataset), 0, 0
    with torch.no_grad():
        for batch in loader:
            images, labels = batch
            pred = model(images)
            loss += criterion(pred, labels).item() * labels.size(0)
            correct += (pred.argmax(1) == labels).type(torch.float).sum().item()
    model.train(was_training)
    return [loss / n, correct / n * 100]


def evaluate_image_by_image(model, loader):
    model.eval()
    losses, hits = [], []
    with torch.inference_mode():
        for images, labels in tqdm(loader):
            for image, label in zip(images, labels, strict=True):
                row = model(image[None])[0]
                losses.append(-row.log_softmax(0)[label].numpy())
                hits.append(bool(row.max(0).indices == label))
    if not hits:
        raise ValueError("loader is empty")
    return np.mean(losses), 100 * np.mean(hits)


def groups_with_conditions(model, weight_decay):
    decay, no_decay = [], []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if p.ndim <= 1 or name in ("cls_token", "pos_embed"):
            no_decay.append(p)
        else:
            decay.append(p)
    assert decay or no_decay
    return [
        {"params": no_decay, "weight_decay": 0},
        {"params": decay, "weight_decay": weight_decay},
    ]


def groups_of_modules(model, weight_decay):
    matrices = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("nothing to train")
    return (
        {
            "params": [p for p in parameters if id(p) in matrices],
            "weight_decay": weight_decay,
        },
        {
            "params": [p for p in parameters if id(p) not in matrices],
            "weight_decay": 0.0,
            "name": "kept",
        },
    )


def one_group_for_each_parameter(model, weight_decay):
    groups = []
    for name, p in model.named_parameters():
        is_matrix = p.dim() >= 2 and name.split(".")[-1] == "weight"
        if p.requires_grad:
            decay = weight_decay if is_matrix else 0.0
            groups.append({"params": p, "weight_decay": decay})
    if len(groups) == 0:
        raise ValueError
    return groups


def warmup_by_lambda(optimizer, warmup_steps, total_steps):
    if warmup_steps >= total_steps:
        raise ValueError("the warm-up is too long")

    def factor(step):
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / (total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def warmup_by_sequence(optimizer, warmup_steps, total_steps):
    if warmup_steps >= total_steps:
        raise ValueError("the warm-up is too long")
    rest = CosineAnnealingLR(optimizer, total_steps - warmup_steps)
    if not warmup_steps:
        return rest
    first = LinearLR(optimizer, 1 / warmup_steps, 1, warmup_steps - 1)
    return SequentialLR(optimizer, [first, rest], [warmup_steps])


def warmup_by_class(optimizer, warmup_steps, total_steps):
    class Schedule(LRScheduler):
        def get_lr(self):
            w, t, s = warmup_steps, total_steps, self.last_epoch
            scale = (s + 1) / w if s < w else 0
            if s >= w:
                scale = math.cos((s - w) / (t - w) * math.pi / 2) ** 2
            return [scale * base for base in self.base_lrs]

    if total_steps <= warmup_steps:
        raise ValueError
    return Schedule(optimizer)


def train_simply(model, loader, optimizer, scheduler):
    model.train()
    total = n = 0
    for images, labels in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        total += loss.item() * len(images)
        n += len(images)
    return total / n


def train_with_zero_last(
    model, loader, optimizer, scheduler, *, max_norm=1.0, loss_fn=None
):
    losses = []
    for images, labels in tqdm(loader, leave=False):
        model.train()
        logits = model(images)
        loss = (loss_fn or nn.CrossEntropyLoss())(logits, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(list(model.parameters()), max_norm=max_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=False)
        losses += [loss.detach()] * labels.shape[0]
    model.eval()
    return torch.stack(losses).mean()


def train_in_full(
    model,
    loader,
    optimizer,
    scheduler,
    *,
    loss_fn=F.cross_entropy,
    mix=None,
    max_norm=1.0,
):
    if len(loader) == 0:
        raise ValueError("loader is empty")
    model.train()
    total = torch.tensor(0.0)
    for images, labels in loader:
        x, y = (images, labels) if mix is None else mix(images, labels)
        loss = loss_fn(model(x), y)
        model.zero_grad()
        loss.backward()
        grads = [p.grad for p in model.parameters()]
        norm = torch.cat([g.flatten() for g in grads]).norm()
        if norm > max_norm:
            for g in grads:
                g.mul_(max_norm / norm)
        optimizer.step()
        scheduler.step()
        total = total + loss.detach() * len(x)
    return float(total / len(loader.dataset))


def error_with_linalg(function, x, transform, transform_output):
    moved = function(transform(x))
    still = function(x)
    expected = transform_output(still)
    if moved.shape != expected.shape or not still.any():
        raise ValueError("cannot be compared")
    distance = torch.linalg.vector_norm(moved - expected)
    return distance / torch.linalg.vector_norm(still)


def error_with_sums(f, images, move, move_output):
    a, b = f(move(images)), move_output(f(images))
    assert a.shape == b.shape
    size = (f(images) ** 2).sum().item() ** 0.5
    return ((a - b) ** 2).sum().item() ** 0.5 / size


def error_with_numpy(function, x, transform, transform_output):
    with torch.no_grad():
        one = function(transform(x)).numpy()
        two = transform_output(function(x)).numpy()
        size = np.linalg.norm(function(x).numpy().ravel())
    if one.shape != two.shape or size == 0:
        raise ValueError
    return np.linalg.norm((one - two).ravel()) / size


def pair(size):
    return (size, size) if isinstance(size, int) else size


def must_be_permutation(order, n):
    if sorted(order.tolist()) != list(range(n)):
        raise ValueError("order is no permutation")


def shuffle_with_loops(images, patch_size, order):
    (p1, p2), (_, _, height, width) = pair(patch_size), images.shape
    gh, gw = height // p1, width // p2
    must_be_permutation(order, gh * gw)
    result = torch.zeros_like(images)
    for i, source in enumerate(order.tolist()):
        r, c, y, x = i // gw * p1, i % gw * p2, source // gw, source % gw
        y, x = y * p1, x * p2
        patch = images[:, :, y : y + p1, x : x + p2]
        result[:, :, r : r + p1, c : c + p2] = patch
    return result


def shuffle_with_the_package(images, patch_size, order):
    p1, p2 = pair(patch_size)
    grid = images.shape[2] // p1, images.shape[3] // p2
    must_be_permutation(order, grid[0] * grid[1])
    patches = patchify(images, patch_size)
    index = order[None, :, None].expand_as(patches)
    return unpatchify(patches.gather(1, index), patch_size, grid)


def shuffle_channels_last(images, patch_size, order):
    (p1, p2), gh = pair(patch_size), images.shape[2] // pair(patch_size)[0]
    x = rearrange(
        images, "b c (gh p1) (gw p2) -> (gh gw) b p1 p2 c", p1=p1, p2=p2
    )
    assert order.unique().numel() == len(x)
    return rearrange(
        x[order], "(gh gw) b p1 p2 c -> b c (gh p1) (gw p2)", gh=gh
    )


def shuffle_with_fold(images, patch_size, order):
    patches = F.unfold(images, pair(patch_size), stride=pair(patch_size))
    must_be_permutation(order, patches.shape[2])
    size = images.shape[2:]
    patches = patches.index_select(2, order)
    return F.fold(patches, size, pair(patch_size), stride=pair(patch_size))


RIGHT = [
    ("evaluate", evaluate_with_tensors),
    ("evaluate", evaluate_with_dataset),
    ("evaluate", evaluate_image_by_image),
    ("parameter_groups", groups_with_conditions),
    ("parameter_groups", groups_of_modules),
    ("parameter_groups", one_group_for_each_parameter),
    ("warmup_cosine", warmup_by_lambda),
    ("warmup_cosine", warmup_by_sequence),
    ("warmup_cosine", warmup_by_class),
    ("train_one_epoch", train_simply),
    ("train_one_epoch", train_with_zero_last),
    ("train_one_epoch", train_in_full),
    ("equivariance_error", error_with_linalg),
    ("equivariance_error", error_with_sums),
    ("equivariance_error", error_with_numpy),
    ("shuffle_patches", shuffle_with_loops),
    ("shuffle_patches", shuffle_with_the_package),
    ("shuffle_patches", shuffle_channels_last),
    ("shuffle_patches", shuffle_with_fold),
]
NAMES = list(dict.fromkeys(name for name, _ in RIGHT))


@pytest.mark.parametrize(("name", "candidate"), RIGHT)
def test_a_right_solution_written_differently_passes(name, candidate):
    result = check(name, candidate)
    assert result.passed, result.report
    assert result.cause is None


# Mistakes written by hand: evaluate.


def evaluating(
    *,
    mode=lambda model: model.eval(),
    grad=False,
    axis=1,
    batch_loss=lambda pred, y: F.cross_entropy(pred, y).item() * len(y),
    finish=lambda loss, right, images, batches: (
        loss / images,
        100 * right / images,
    ),
):
    """The loop that most readers write; the tests exchange a line of it."""

    def candidate(model, loader):
        mode(model)
        loss = right = images = batches = 0
        with torch.set_grad_enabled(grad):
            for x, y in loader:
                pred = model(x)
                loss += batch_loss(pred, y)
                right += (pred.argmax(dim=axis) == y).sum().item()
                images += len(y)
                batches += 1
        return finish(loss, right, images, batches)

    return candidate


def mean_of_means(model, loader):
    model.eval()
    losses, accuracies = [], []
    with torch.no_grad():
        for x, y in loader:
            pred = model(x)
            losses.append(F.cross_entropy(pred, y).item())
            hits = pred.argmax(1) == y
            accuracies.append(100 * hits.float().mean().item())
    return np.mean(losses), np.mean(accuracies)


def mean_of_accuracies(model, loader):
    loss, _ = evaluate_with_dataset(model, loader)
    _, accuracy = mean_of_means(model, loader)
    return loss, accuracy


def returns_in_the_loop(model, loader):
    model.eval()
    with torch.no_grad():
        for x, y in loader:
            pred = model(x)
            accuracy = (pred.argmax(1) == y).float().mean() * 100
            return F.cross_entropy(pred, y).item(), accuracy.item()
    raise ValueError("loader is empty")


def last_batch(model, loader):
    model.eval()
    for x, y in loader:
        with torch.no_grad():
            pred = model(x)
        loss = F.cross_entropy(pred, y).item()
        accuracy = 100 * (pred.argmax(1) == y).sum().item() / len(y)
    return loss, accuracy


def nan_for_nothing(model, loader):
    model.eval()
    loss, right, n = torch.zeros(3)
    with torch.no_grad():
        for x, y in loader:
            pred = model(x)
            loss += F.cross_entropy(pred, y, reduction="sum")
            right += (pred.argmax(1) == y).sum()
            n += len(y)
    return loss / n, 100 * right / n


def squeezed(model, loader):
    model.eval()
    loss, right, n = 0, 0, 0
    with torch.no_grad():
        for x, y in loader:
            pred = model(x).squeeze()
            loss += F.cross_entropy(pred, y, reduction="sum").item()
            right += (pred.argmax(1) == y).sum().item()
            n += len(y)
    return loss / n, 100 * right / n


def no_brackets_in_with(model, loader):
    with torch.no_grad:
        return evaluate_with_dataset(model, loader)


def mean_of_booleans(model, loader):
    model.eval()
    hits = []
    with torch.no_grad():
        for x, y in loader:
            hits.append((model(x).argmax(1) == y).mean())
    return 0.0, 100 * sum(hits) / len(hits)


def item_of_many(model, loader):
    model.eval()
    hits = 0
    with torch.no_grad():
        for x, y in loader:
            hits += (model(x).argmax(1) == y).item()
    return 0.0, 100 * hits / len(loader.dataset)


def no_brackets(model):
    model.eval  # noqa: B018


EVALUATE = [
    (evaluating(mode=lambda model: None), "call model.eval() first"),
    (evaluating(mode=no_brackets), "call model.eval() first"),
    (evaluating(grad=True), "Gradients are recorded"),
    (
        evaluating(mode=lambda model: None, grad=True),
        "call model.eval() first",
    ),
    (mean_of_means, "Each batch weighs the same"),
    (mean_of_accuracies, "The accuracy is a mean over the batches"),
    (
        evaluating(finish=lambda s, r, n, b: (s / n, r / n)),
        "return it in percent",
    ),
    (
        evaluating(finish=lambda s, r, n, b: (s / n, 100 * r / b)),
        "right answers is divided by the number of batches",
    ),
    (
        evaluating(finish=lambda s, r, n, b: (s / n, r)),
        "The number of right answers is returned",
    ),
    (evaluating(axis=0), "argmax runs over the wrong axis"),
    (evaluating(axis=None), "argmax runs over the wrong axis"),
    (last_batch, "Only one batch counts"),
    (returns_in_the_loop, "Only one batch counts"),
    (
        evaluating(finish=lambda s, r, n, b: (s, 100 * r / n)),
        "added and not divided",
    ),
    (
        evaluating(
            batch_loss=lambda pred, y: F.cross_entropy(pred, y).item(),
        ),
        "The loss of a batch is a mean already",
    ),
    (
        evaluating(
            batch_loss=lambda pred, y: F.cross_entropy(pred, y).item(),
            finish=lambda s, r, n, b: (s / b, 100 * r / n),
        ),
        "Each batch weighs the same",
    ),
    (
        evaluating(finish=lambda s, r, n, b: (s / b, 100 * r / n)),
        "divided by the number of batches",
    ),
    (
        evaluating(
            batch_loss=lambda pred, y: (
                F.cross_entropy(pred.softmax(1), y).item() * len(y)
            )
        ),
        "A softmax comes before the loss",
    ),
    (
        evaluating(finish=lambda s, r, n, b: (100 * r / n, s / n)),
        "The results are exchanged",
    ),
    (
        evaluating(
            finish=lambda s, r, n, b: (s / n, 100 * r / n) if n else (0, 0)
        ),
        "raise a ValueError",
    ),
    (no_brackets_in_with, "The brackets are missing"),
    (mean_of_booleans, "True and False have no mean"),
    (item_of_many, ".item() needs one number"),
    (nan_for_nothing, "raise a ValueError"),
    (squeezed, "leave out squeeze()"),
    (
        evaluating(finish=lambda s, r, n, b: 100 * r / n),
        "return the pair (loss, accuracy), not a value of type float",
    ),
    (
        evaluating(finish=lambda s, r, n, b: {"loss": s / n, "acc": r / n}),
        "return the pair (loss, accuracy), not a value of type dict",
    ),
    (
        evaluating(finish=lambda s, r, n, b: ([s / n], 100 * r / n)),
        "return the loss as one number",
    ),
    (evaluating(finish=lambda s, r, n, b: None), "The return line is missing"),
    (
        evaluating(finish=lambda s, r, n, b: (s / b, r / n)),
        "return it in percent",
    ),
]

# parameter_groups.


def grouping(rule, *, frozen=False, kept=0.0):
    def candidate(model, weight_decay):
        decayed, others = [], []
        for name, p in model.named_parameters():
            if frozen or p.requires_grad:
                (decayed if rule(name, p) else others).append(p)
        if not decayed + others:
            raise ValueError
        return [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": others, "weight_decay": kept},
        ]

    return candidate


def is_matrix(name, p):
    return p.ndim > 1 and name.endswith(".weight")


def all_in_one(model, weight_decay):
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError
    return [{"params": params, "weight_decay": weight_decay}]


def by_module(model, weight_decay):
    """Parameters of the model itself are in no module below it."""
    decay, no_decay = [], []
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if module is not model and p.requires_grad:
                (decay if is_matrix("." + name, p) else no_decay).append(p)
    if not decay + no_decay:
        raise ValueError
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": no_decay, "weight_decay": 0.0},
    ]


def by_module_and_below(model, weight_decay):
    decay, no_decay = [], []
    for module in model.modules():
        for name, p in module.named_parameters():
            if p.requires_grad:
                (decay if is_matrix("." + name, p) else no_decay).append(p)
    if not decay + no_decay:
        raise ValueError
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": no_decay, "weight_decay": 0.0},
    ]


def two_ifs(model, weight_decay):
    decay, no_decay = [], []
    for name, p in model.named_parameters():
        if p.requires_grad and name.endswith("weight") and p.ndim > 1:
            decay.append(p)
        if p.requires_grad and p.ndim == 1:
            no_decay.append(p)
    if not decay + no_decay:
        raise ValueError
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": no_decay, "weight_decay": 0.0},
    ]


def the_same_decay(model, weight_decay):
    groups = groups_with_conditions(model, weight_decay)
    return [g | {"weight_decay": weight_decay} for g in groups]


def decay_is_none(model, weight_decay):
    first, second = groups_with_conditions(model, weight_decay)
    return [second, first | {"weight_decay": None}]


def no_decay_given(model, weight_decay):
    first, second = groups_with_conditions(model, weight_decay)
    return [second, {"params": first["params"]}]


def by_names(model, weight_decay):
    """A norm in a Sequential has no norm in its name."""
    rest = ("bias", "norm", "cls_token", "pos_embed")
    return grouping(lambda n, p: not any(word in n for word in rest))(
        model, weight_decay
    )


def parameters_without_names(model, weight_decay):
    return [
        {"params": [p], "weight_decay": weight_decay if p.ndim > 1 else 0.0}
        for name, p in model.parameters()
    ]


def pairs_not_unpacked(model, weight_decay):
    params = [p for p in model.named_parameters() if p.requires_grad]
    return [{"params": params, "weight_decay": weight_decay}]


def in_generators(model, weight_decay):
    groups = groups_with_conditions(model, weight_decay)
    return [g | {"params": (p for p in g["params"])} for g in groups]


def names_alone(model, weight_decay):
    names = [n for n, p in model.named_parameters()]
    return [{"params": names, "weight_decay": weight_decay}]


def two_lists(model, weight_decay):
    return tuple(
        g["params"] for g in groups_with_conditions(model, weight_decay)
    )


def no_refusal(model, weight_decay):
    trainable = [p for p in model.parameters() if p.requires_grad]
    if trainable:
        return groups_with_conditions(model, weight_decay)
    return [{"params": [], "weight_decay": weight_decay}]


PARAMETER_GROUPS = [
    (all_in_one, "Everything is decayed"),
    (the_same_decay, "Everything is decayed"),
    (
        grouping(lambda n, p: "bias" not in n),
        "All names that do not end in bias are decayed",
    ),
    (grouping(lambda n, p: p.ndim != 1), "Parameters of two or more axes"),
    (
        grouping(lambda n, p: n.endswith("weight")),
        "The weights of norms are decayed",
    ),
    (
        grouping(lambda n, p: is_matrix(n, p) and p.dim() == 2),
        "The weights of convolutions are not decayed",
    ),
    (
        grouping(lambda n, p: is_matrix(n, p) or "bias" in n),
        "Biases are decayed",
    ),
    (
        grouping(lambda n, p: is_matrix(n, p) or n == "pos_embed"),
        "The class token and the table of positions are decayed",
    ),
    (
        grouping(lambda n, p: not is_matrix(n, p)),
        "The groups are exchanged",
    ),
    (grouping(lambda n, p: False), "Nothing is decayed"),
    (grouping(is_matrix, frozen=True), "A frozen parameter"),
    (by_names, "The weights of norms are decayed"),
    (parameters_without_names, "go through model.named_parameters()"),
    (pairs_not_unpacked, "gives pairs"),
    (by_module, "A parameter is in no group"),
    (two_ifs, "A parameter is in no group"),
    (by_module_and_below, "A parameter is there twice"),
    (no_decay_given, "A group has no weight_decay"),
    (decay_is_none, "return weight_decay as one number"),
    (in_generators, "params is a generator"),
    (names_alone, "that is no parameter of the model"),
    (two_lists, "a list of groups"),
    (no_refusal, "raise a ValueError"),
    (grouping(is_matrix, kept=0.01), "The second group is decayed too"),
]

# warmup_cosine.


def schedule(warm, cool):
    def candidate(optimizer, warmup, total):
        if warmup >= total:
            raise ValueError

        def factor(step):
            if step < warmup:
                return warm(step, warmup)
            return cool(step - warmup, total - warmup, total)

        return LambdaLR(optimizer, factor)

    return candidate


def warm(step, warmup):
    return (step + 1) / warmup


def cool(step, rest, total):
    return 0.5 * (1 + math.cos(math.pi * step / rest))


def sequence(first, cosine, *, milestone=lambda w: w):
    def candidate(optimizer, warmup, total):
        if warmup >= total:
            raise ValueError
        rest = cosine(optimizer, warmup, total)
        if warmup == 0:
            return rest
        parts = [first(optimizer, warmup), rest]
        return SequentialLR(optimizer, parts, [milestone(warmup)])

    return candidate


def line(optimizer, warmup):
    return LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1)


def annealing(optimizer, warmup, total):
    return CosineAnnealingLR(optimizer, total - warmup)


def only_cosine(optimizer, warmup, total):
    if warmup >= total:
        raise ValueError
    return CosineAnnealingLR(optimizer, total)


def rate_times_rate(optimizer, warmup, total):
    if warmup >= total:
        raise ValueError
    rates = [group["lr"] for group in optimizer.param_groups]

    def factor(rate, step):
        if step < warmup:
            return rate * warm(step, warmup)
        return rate * cool(step - warmup, total - warmup, total)

    return LambdaLR(
        optimizer, [lambda step, r=rate: factor(r, step) for rate in rates]
    )


def always_divides(optimizer, warmup, total):
    if warmup >= total:
        raise ValueError
    line = LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1)
    rest = CosineAnnealingLR(optimizer, total - warmup)
    return SequentialLR(optimizer, [line, rest], [warmup])


def no_room(optimizer, warmup, total):
    return LambdaLR(
        optimizer,
        lambda step: (
            warm(step, warmup)
            if step < warmup
            else cool(step - warmup, total - warmup, total)
        ),
    )


def function_of_the_step(optimizer, warmup, total):
    if warmup >= total:
        raise ValueError
    return lambda step: (
        warm(step, warmup)
        if step < warmup
        else cool(step - warmup, total - warmup, total)
    )


WARMUP_COSINE = [
    (schedule(lambda s, w: s / w, cool), "The first step has a rate of 0"),
    (
        sequence(
            lambda o, w: LinearLR(o, 1e-8, total_iters=w),
            annealing,
        ),
        "The first step has a rate of 0",
    ),
    (schedule(lambda s, w: 1.0, cool), "The warm-up is missing"),
    (only_cosine, "The warm-up is missing"),
    (
        sequence(lambda o, w: ConstantLR(o, 1.0), annealing),
        "The warm-up is missing",
    ),
    (
        sequence(lambda o, w: LinearLR(o, total_iters=w), annealing),
        "The warm-up starts at a third",
    ),
    (
        sequence(lambda o, w: LinearLR(o, 0.01, total_iters=w), annealing),
        "starts at a fixed share",
    ),
    (
        sequence(lambda o, w: LinearLR(o, 1 / w, total_iters=w), annealing),
        "The warm-up takes one step too many",
    ),
    (
        schedule(lambda s, w: (s + 1) / (w + 1), cool),
        "The warm-up takes one step too many",
    ),
    (
        schedule(warm, lambda s, r, t: (1 + math.cos(math.pi * s / t)) / 2),
        "The cosine runs over total_steps",
    ),
    (
        sequence(line, lambda o, w, t: CosineAnnealingLR(o, t)),
        "The cosine runs over total_steps",
    ),
    (
        schedule(
            warm,
            lambda s, r, t: (1 + math.cos(math.pi * (s + t - r) / t)) / 2,
        ),
        "The cosine counts from the first step of all",
    ),
    (
        sequence(line, lambda o, w, t: CosineAnnealingLR(o, t - w, 0.01)),
        "The rate does not end at 0",
    ),
    (
        schedule(warm, lambda s, r, t: 0.1 + 0.9 * cool(s, r, t)),
        "The rate does not end at 0",
    ),
    (schedule(warm, lambda s, r, t: 1 - s / r), "falls along a line"),
    (schedule(warm, lambda s, r, t: 1), "The rate does not fall"),
    (
        schedule(warm, lambda s, r, t: (1 + math.cos(2 * math.pi * s / r)) / 2),
        "The period is wrong",
    ),
    (
        schedule(warm, lambda s, r, t: math.cos(math.pi * s / r / 2)),
        "The period is wrong",
    ),
    (
        schedule(warm, lambda s, r, t: math.cos(math.pi * s / r)),
        "The cosine goes from 1 to -1",
    ),
    (
        schedule(warm, lambda s, r, t: 1 + math.cos(math.pi * s / r)),
        "The cosine goes from 2 to 0",
    ),
    (
        schedule(warm, lambda s, r, t: cool(s - 1, r, t)),
        "starts one step late",
    ),
    (
        sequence(line, annealing, milestone=lambda w: w + 1),
        "starts one step late",
    ),
    (
        sequence(line, annealing, milestone=lambda w: max(1, w - 1)),
        "starts one step early",
    ),
    (
        sequence(line, annealing, milestone=lambda w: w - 1),
        "starts one step early",
    ),
    (
        schedule(warm, lambda s, r, t: cool(s + 1, r, t)),
        "starts one step early",
    ),
    (rate_times_rate, "The rate is multiplied by itself"),
    (always_divides, "divides by 0"),
    (no_room, "raise a ValueError"),
    (function_of_the_step, "must return a scheduler"),
    (
        schedule(lambda s, w: s / w, lambda s, r, t: 1 - s / r),
        "There are two mistakes. The first step has a rate of 0",
    ),
]

# train_one_epoch.


def training(
    lines,
    *,
    mode="train",
    max_norm=1.0,
    clip=nn.utils.clip_grad_norm_,
    loss_fn=F.cross_entropy,
    after="",
    result=lambda means, sizes: np.average(means, weights=sizes),
):
    """A loop with these lines in it, one word each."""

    def candidate(model, loader, optimizer, scheduler):
        getattr(model, mode)()
        means, sizes = [], []
        do = {
            "zero": optimizer.zero_grad,
            "clip": lambda: clip(model.parameters(), max_norm),
            "step": optimizer.step,
            "schedule": scheduler.step,
        }
        for images, labels in loader:
            loss = loss_fn(model(images), labels)
            do["backward"] = loss.backward
            for word in lines.split():
                do[word]()
            means.append(loss.item())
            sizes.append(len(images))
        for word in after.split():
            do[word]()
        return result(means, sizes)

    return candidate


LOOP = "zero backward clip step schedule"


def zero_for_no_batch(model, loader, optimizer, scheduler):
    if len(loader) == 0:
        return 0.0
    return train_simply(model, loader, optimizer, scheduler)


@torch.no_grad()
def without_gradients(model, loader, optimizer, scheduler):
    return train_simply(model, loader, optimizer, scheduler)


def item_too_early(model, loader, optimizer, scheduler):
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels).item()
        loss.backward()
    raise ValueError("loader is empty")


def ignores(name):
    def candidate(model, loader, optimizer, scheduler, **kwargs):
        kwargs.pop(name, None)
        return train_in_full(model, loader, optimizer, scheduler, **kwargs)

    def with_loss(model, loader, optimizer, scheduler, *, loss_fn=None):
        return candidate(model, loader, optimizer, scheduler)

    def with_mix(model, loader, optimizer, scheduler, *, mix=None):
        return candidate(model, loader, optimizer, scheduler)

    def with_norm(model, loader, optimizer, scheduler, *, max_norm=1.0):
        return candidate(model, loader, optimizer, scheduler)

    return {"loss_fn": with_loss, "mix": with_mix, "max_norm": with_norm}[name]


def five_is_the_default(model, loader, optimizer, scheduler, *, max_norm=5.0):
    return train_in_full(model, loader, optimizer, scheduler, max_norm=max_norm)


def clip_one_by_one(parameters, max_norm):
    for p in parameters:
        nn.utils.clip_grad_norm_([p], max_norm)


TRAIN_ONE_EPOCH = [
    (training("backward clip step schedule"), "The gradients add up"),
    (
        training("backward zero clip step schedule"),
        "The weights do not change",
    ),
    (
        training("backward clip zero step schedule"),
        "The weights do not change",
    ),
    (
        training("zero step backward clip schedule"),
        "The weights do not change",
    ),
    (training("zero backward clip schedule"), "The weights do not change"),
    (
        training("step zero backward clip schedule"),
        "uses the gradients of the batch before",
    ),
    (
        training("zero backward clip", after="step schedule"),
        "scheduler.step() belongs inside the loop",
    ),
    (training(LOOP, mode="eval"), "call model.train() first"),
    (
        training("zero backward clip step", mode="eval"),
        "call model.train() first",
    ),
    (
        training("zero backward clip step"),
        "scheduler.step() belongs inside the loop",
    ),
    (
        training("zero backward clip step", after="schedule"),
        "scheduler.step() belongs inside the loop",
    ),
    (
        training("zero backward clip schedule step"),
        "scheduler.step() comes before optimizer.step()",
    ),
    (
        training("zero backward step schedule"),
        "gradients that are not clipped",
    ),
    (
        training("zero backward step clip schedule"),
        "gradients that are not clipped",
    ),
    (
        training("zero clip backward step schedule"),
        "gradients that are not clipped",
    ),
    (
        training(LOOP, clip=nn.utils.clip_grad_value_),
        "use clip_grad_norm_, not clip_grad_value_",
    ),
    (training(LOOP, max_norm=5.0), "Wrong for long gradients"),
    (training(LOOP, clip=clip_one_by_one), "Each parameter is clipped"),
    (
        training(LOOP, result=lambda means, sizes: np.mean(means)),
        "Each batch weighs the same",
    ),
    (
        training(LOOP, result=lambda means, sizes: means[-1]),
        "The loss of one batch",
    ),
    (
        training(LOOP, result=lambda means, sizes: sum(means)),
        "added and not divided",
    ),
    (
        training(LOOP, result=lambda means, sizes: sum(means) / sum(sizes)),
        "The loss of a batch is a mean already",
    ),
    (
        training(
            LOOP, loss_fn=lambda x, y: F.cross_entropy(F.softmax(x, 1), y)
        ),
        "A softmax comes before the loss",
    ),
    (
        training(
            LOOP, loss_fn=lambda x, y: F.cross_entropy(x, y, reduction="sum")
        ),
        "The loss is a sum over the batch",
    ),
    (without_gradients, "leave out torch.no_grad()"),
    (item_too_early, "call .item() after backward()"),
    (zero_for_no_batch, "raise a ValueError"),
    (ignores("loss_fn"), "loss_fn is not used"),
    (ignores("mix"), "mix is not used"),
    (ignores("max_norm"), "max_norm is not used"),
    (five_is_the_default, "The default of max_norm must be 1.0"),
    (
        training(LOOP, result=lambda means, sizes: means),
        "return the loss as one number",
    ),
    (
        training(LOOP, result=lambda means, sizes: None),
        "The return line is missing",
    ),
    (
        training(
            "backward step schedule",
            result=lambda means, sizes: np.mean(means),
        ),
        "Right for one batch only: for each batch zero_grad",
    ),
]

# equivariance_error.


def error(got, expected, distance=lambda a, b, y, x: (a - b).norm() / y.norm()):
    def candidate(f, x, t, u):
        one, two, y = got(f, x, t, u), expected(f, x, t, u), f(x)
        if one.shape != two.shape or not y.any():
            raise ValueError
        return distance(one, two, y, x)

    return candidate


def moved(f, x, t, u):
    return f(t(x))


def wanted(f, x, t, u):
    return u(f(x))


def not_refused(f, x, t, u):
    a, b = f(t(x)), u(f(x))
    if a.shape != b.shape:
        raise ValueError
    return ((a - b).norm() / (f(x).norm() + 1e-9)).item()


def in_evaluation(f, x, t, u):
    return error_with_sums(f.eval(), x, t, u)


def repeated(f, x, t, u):
    a, b, y = f(t(x)), u(f(x)), f(x)
    if not y.any():
        raise ValueError
    return ((a - b).norm() / y.norm()).item()


def per_image(f, x, t, u):
    return error(moved, wanted, mean_of_errors)(f, x, t, u)


def mean_of_errors(a, b, y, x):
    lengths = (a - b).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)
    return lengths.mean().item()


EQUIVARIANCE_ERROR = [
    (
        error(moved, lambda f, x, t, u: f(x)),
        "The output is not transformed",
    ),
    (
        error(lambda f, x, t, u: f(x), wanted),
        "The input is not transformed",
    ),
    (
        error(moved, lambda f, x, t, u: t(f(x))),
        "transform moves the output",
    ),
    (
        error(lambda f, x, t, u: u(f(t(x))), lambda f, x, t, u: f(x)),
        "Both transforms act on one side",
    ),
    (
        error(moved, wanted, lambda a, b, y, x: (a - b).norm().item()),
        "The distance is not divided",
    ),
    (
        error(moved, wanted, lambda a, b, y, x: (a - b).abs().mean()),
        "The distance is not divided",
    ),
    (
        error(moved, wanted, lambda a, b, y, x: F.mse_loss(a, b)),
        "The distance is not divided",
    ),
    (
        error(moved, wanted, lambda a, b, y, x: (a - b).norm() / a.norm()),
        "divided by the output for the moved input",
    ),
    (
        error(moved, wanted, lambda a, b, y, x: (a - b).norm() / x.norm()),
        "divided by the size of the input",
    ),
    (
        error(
            moved, wanted, lambda a, b, y, x: (a - b).norm() / (a - b).norm()
        ),
        "divided by itself",
    ),
    (
        error(
            moved,
            wanted,
            lambda a, b, y, x: (a - b).abs().mean() / y.abs().mean(),
        ),
        "The size of a tensor is its norm",
    ),
    (
        error(
            moved,
            wanted,
            lambda a, b, y, x: ((a - b) ** 2).sum() / (y**2).sum(),
        ),
        "The error is squared",
    ),
    (
        error(
            moved,
            wanted,
            lambda a, b, y, x: (a - b).abs().max() / y.abs().max(),
        ),
        "The error is the largest difference",
    ),
    (
        error(
            moved, wanted, lambda a, b, y, x: 100 * (a - b).norm() / y.norm()
        ),
        "The error is in percent",
    ),
    (
        error(
            moved,
            wanted,
            lambda a, b, y, x: (a - b).norm(dim=-1) / y.norm(dim=-1),
        ),
        "return the error as one number, not a tensor of shape",
    ),
    (per_image, "Each image has an error of its own"),
    (not_refused, "raise a ValueError"),
    (repeated, "raise a ValueError"),
    (error(moved, wanted, lambda a, b, y, x: None), "The return line"),
    (in_evaluation, "call it as it is, without eval()"),
]

# shuffle_patches.


def shuffling(
    *,
    place=lambda patches, order: patches[:, order],
    cut="b c (gh p1) (gw p2) -> b (gh gw) (c p1 p2)",
    join="b (gh gw) (c p1 p2) -> b c (gh p1) (gw p2)",
    grid=lambda gh, gw: gh,
):
    def candidate(images, patch_size, order):
        p1, p2 = pair(patch_size)
        gh, gw = images.shape[2] // p1, images.shape[3] // p2
        must_be_permutation(order, gh * gw)
        patches = rearrange(images, cut, p1=p1, p2=p2)
        gh = grid(gh, gw)
        return rearrange(place(patches, order), join, gh=gh, p1=p1, p2=p2)

    return candidate


def write_to_order(patches, order):
    result = torch.empty_like(patches)
    result[:, order] = patches
    return result


def drawn(patches, order):
    return patches[:, torch.randperm(len(order))]


def drawn_for_each(patches, order):
    return torch.stack([p[torch.randperm(len(order))] for p in patches])


def pixels_in_patches(patches, order):
    mixed = torch.arange(patches.shape[2]).flip(0)
    return patches[:, order][:, :, mixed]


def rows_of_pixels(images, patch_size, order):
    return images[:, :, order]


def single_pixels(images, patch_size, order):
    return images.flatten(2)[:, :, order].reshape(images.shape)


def square_only(images, patch_size, order):
    patches = patchify(images, patch_size)
    must_be_permutation(order, patches.shape[1])
    side = int(patches.shape[1] ** 0.5)
    return unpatchify(patches[:, order], patch_size, side)


def int_only(images, patch_size, order):
    grid = images.shape[2] // patch_size, images.shape[3] // patch_size
    patches = patchify(images, patch_size)
    must_be_permutation(order, patches.shape[1])
    return unpatchify(patches[:, order], patch_size, grid)


def pair_only(images, patch_size, order):
    p1, p2 = patch_size
    return shuffle_with_loops(images, (p1, p2), order)


def patch_lost(images, patch_size, order):
    p1, p2 = pair(patch_size)
    grid = images.shape[2] // p1, images.shape[3] // p2
    return unpatchify(patchify(images, patch_size)[:, order], patch_size, grid)


def first_image(images, patch_size, order):
    return shuffle_with_loops(images[:1], patch_size, order)


def gradient_lost(images, patch_size, order):
    return shuffle_with_loops(images.detach(), patch_size, order)


SHUFFLE_PATCHES = [
    (shuffling(place=write_to_order), "The order is turned round"),
    (
        shuffling(place=lambda patches, order: patches[:, order.argsort()]),
        "The order is turned round",
    ),
    (
        shuffling(cut="b c (gh p1) (gw p2) -> b (gh gw) (p1 p2 c)"),
        "cut and put back in two orders",
    ),
    (
        shuffling(join="b (gh gw) (p1 p2 c) -> b c (gh p1) (gw p2)"),
        "cut and put back in two orders",
    ),
    (shuffling(grid=lambda gh, gw: gw), "gh and gw are swapped"),
    (
        shuffling(cut="b c (gh p1) (gw p2) -> b (gw gh) (c p1 p2)"),
        "cut in one numbering",
    ),
    (
        shuffling(
            cut="b c (gh p1) (gw p2) -> b (gw gh) (c p1 p2)",
            join="b (gw gh) (c p1 p2) -> b c (gh p1) (gw p2)",
        ),
        "column by column",
    ),
    (
        shuffling(cut="b c (p1 gh) (p2 gw) -> b (gh gw) (c p1 p2)"),
        "spread over the whole image",
    ),
    (shuffling(place=lambda patches, order: patches), "stay where they are"),
    (
        shuffling(place=lambda patches, order: patches[order]),
        "The images change places",
    ),
    (shuffling(place=pixels_in_patches), "Pixels change places"),
    (rows_of_pixels, "Rows or columns of pixels change places"),
    (single_pixels, "Single pixels change places"),
    (shuffling(place=drawn), "A random order is drawn"),
    (shuffling(place=drawn_for_each), "A random order is drawn"),
    (
        shuffling(
            place=lambda patches, order: torch.stack(
                [p[order.roll(i)] for i, p in enumerate(patches)]
            )
        ),
        "Each image has an order of its own",
    ),
    (
        shuffling(
            join="b (gh gw) (c p1 p2) -> b (gh gw) (c p1 p2)",
        ),
        "The patches come back",
    ),
    (square_only, "square images only"),
    (int_only, "square patches only"),
    (pair_only, "An int is used as a pair"),
    (patch_lost, "raise a ValueError"),
    (first_image, "one image only"),
    (gradient_lost, "gradients do not flow back"),
]

WRONG = {
    "evaluate": EVALUATE,
    "parameter_groups": PARAMETER_GROUPS,
    "warmup_cosine": WARMUP_COSINE,
    "train_one_epoch": TRAIN_ONE_EPOCH,
    "equivariance_error": EQUIVARIANCE_ERROR,
    "shuffle_patches": SHUFFLE_PATCHES,
}


@pytest.mark.parametrize(
    ("name", "candidate", "words"),
    [(name, *case) for name, cases in WRONG.items() for case in cases],
)
def test_a_mistake_written_by_hand_is_named(name, candidate, words):
    result = check(name, candidate)
    assert not result.passed
    assert words in (result.cause or "")
    assert result.report.endswith(f"Likely mistake: {result.cause}")


@pytest.mark.parametrize("name", NAMES)
def test_at_least_twelve_mistakes_are_written_by_hand(name):
    assert len({words for _, words in WRONG[name]}) >= 12


# Nonsense.


def constant_model_call(model, loader):
    model.eval()
    with torch.no_grad():
        for images, _ in loader:
            model(images)


def constant_results(*results):
    def candidate(model, loader):
        constant_model_call(model, loader)
        return results

    return candidate


def constant_rate(optimizer, warmup, total):
    return LambdaLR(optimizer, lambda step: 0.3)


def any_decay(model, weight_decay):
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError
    return [{"params": params, "weight_decay": 0.7}]


def train_with_noise(model, loader, optimizer, scheduler):
    model.train()
    for images, _ in loader:
        model(images)
        for p in model.parameters():
            p.data.normal_()
        scheduler.step()
    return 0.7


NONSENSE = [
    ("evaluate", constant_results(0.0, 0.0)),
    ("evaluate", constant_results(math.nan, math.nan)),
    ("evaluate", constant_results(1e9, torch.tensor(50.0))),
    ("evaluate", constant_results(True, False)),
    ("parameter_groups", any_decay),
    ("warmup_cosine", constant_rate),
    ("train_one_epoch", train_with_noise),
    ("equivariance_error", lambda f, x, t, u: 0.123),
    ("equivariance_error", lambda f, x, t, u: math.nan),
    ("equivariance_error", lambda f, x, t, u: math.inf),
    ("equivariance_error", lambda f, x, t, u: torch.rand(())),
    ("equivariance_error", lambda f, x, t, u: x.mean()),
    ("shuffle_patches", lambda images, size, order: torch.rand_like(images)),
    ("shuffle_patches", lambda images, size, order: images.flip(1, 2)),
    ("shuffle_patches", lambda images, size, order: images.mean()),
]


@pytest.mark.parametrize(("name", "candidate"), NONSENSE)
def test_nonsense_fails_without_a_diagnosis(name, candidate):
    result = check(name, candidate)
    assert not result.passed
    assert result.cause is None


# Stubs, and what cannot be run.


def stub_evaluate(model, loader): ...


def stub_groups(model, weight_decay):
    """Sort the parameters for AdamW."""


def stub_warmup(optimizer, warmup_steps, total_steps):
    raise NotImplementedError


def stub_train(model, loader, optimizer, scheduler):
    """Train on every batch once."""
    raise NotImplementedError


def stub_error(function, x, transform, transform_output):
    pass


def stub_shuffle(images, patch_size, order):
    raise NotImplementedError("your code here")


STUBS = {
    "evaluate": stub_evaluate,
    "parameter_groups": stub_groups,
    "warmup_cosine": stub_warmup,
    "train_one_epoch": stub_train,
    "equivariance_error": stub_error,
    "shuffle_patches": stub_shuffle,
}


@pytest.mark.parametrize("name", NAMES)
def test_an_untouched_stub_is_not_attempted_yet(name):
    result = check(name, STUBS[name])
    assert not result.attempted
    assert result.report.startswith(f"{name}: not attempted yet")


ARGUMENTS = {
    "evaluate": "(model, loader)",
    "parameter_groups": "(model, weight_decay)",
    "warmup_cosine": "(optimizer, warmup_steps, total_steps)",
    "train_one_epoch": "(model, loader, optimizer, scheduler, loss_fn=",
    "equivariance_error": "(function, x, transform, transform_output)",
    "shuffle_patches": "(images, patch_size, order)",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_candidate_with_other_arguments_is_told_the_right_ones(name):
    result = check(name, lambda x: x)
    assert f"Your function must take {ARGUMENTS[name]}" in result.cause


@pytest.mark.parametrize(
    ("name", "candidate"),
    [
        ("evaluate", lambda model, loader: (0.5, 50.0)),
        ("train_one_epoch", lambda model, loader, optimizer, scheduler: 0.5),
    ],
)
def test_a_model_that_is_never_called_is_named(name, candidate):
    assert "The model is never called" in check(name, candidate).cause


def test_training_needs_no_optional_argument():
    result = check("train_one_epoch", train_simply)
    assert result.report.splitlines()[-1] == (
        "  not run 3 cases with max_norm, loss_fn, mix, which your code does "
        "not take"
    )


def test_the_report_says_which_learning_rate_is_wrong():
    candidate = schedule(lambda s, w: s / w, cool)
    assert (
        "  FAILED  warm-up in 4 of 12 steps: rate in step 0 of group 0: "
        "expected 0.125, got 0\n"
    ) in check("warmup_cosine", candidate).report


def test_the_report_says_which_parameter_is_in_no_group():
    assert ("in no group: expected none, got cls_token, pos_embed") in check(
        "parameter_groups", two_ifs
    ).report


# check leaves everything as it was.


def test_a_second_call_with_the_same_arguments_must_give_the_same():
    seen = []

    def candidate(model, loader):
        seen.append(0)
        loss, accuracy = evaluate_with_dataset(model, loader)
        return loss + len(seen) - 1, accuracy

    cause = check("evaluate", candidate).cause
    assert "keeps something from one call to the next" in cause


@pytest.mark.parametrize(("name", "candidate"), RIGHT)
def test_check_leaves_the_random_state_as_it_was(name, candidate):
    before = torch.get_rng_state()
    check(name, candidate)
    assert torch.equal(before, torch.get_rng_state())


def test_no_progress_bar_stands_in_the_report(capsys):
    start = tqdm.__init__
    report = check("train_one_epoch", train_with_zero_last).report
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out == report + "\n"
    assert tqdm.__init__ is start


def test_no_progress_bar_of_a_notebook_stands_in_the_report(capsys):
    pytest.importorskip("ipywidgets")

    def candidate(model, loader):
        batches = notebook_tqdm(list(loader), disable=False)
        return evaluate_with_tensors(model, batches)

    result = check("evaluate", candidate)
    assert capsys.readouterr().out == result.report + "\n"
    assert result.passed


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, torch.enable_grad]
)
def test_check_answers_the_same_under_the_readers_settings(context):
    with context():
        for name, candidate in RIGHT[::3]:
            assert check(name, candidate).passed
