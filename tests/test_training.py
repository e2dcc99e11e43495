"""Chapter 08."""

import copy
import functools
import math

import matplotlib.pyplot as plt
import pytest
import timm
import timm.optim
import torch
import torch.nn.functional as F
import torchvision
from oracles import random
from torch import nn
from torch.optim import SGD, AdamW
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    TensorDataset,
)
from torchvision.transforms import v2

from vit_lessons import (
    History,
    SmallCNN,
    VisionTransformer,
    create_model,
    evaluate,
    fit,
    list_models,
    mixed_precision,
    parameter_groups,
    train_one_epoch,
    warmup_cosine,
)
from vit_lessons.data import ImageDataset, split_digits


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@functools.cache
def on_meta(create, *args, **kwargs):
    """A model without numbers, made once. No test changes it."""
    with torch.device("meta"):
        return create(*args, **kwargs)


# Which parameters are decayed?


def names_of_groups(model, weight_decay=0.1):
    """Names of the decayed parameters, and of the others, each sorted."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, weight_decay)
    assert [group["weight_decay"] for group in groups] == [weight_decay, 0.0]
    return [sorted(names[p] for p in group["params"]) for group in groups]


MODELS = {
    **{name: (create_model, name) for name in list_models()},
    "SmallCNN": (SmallCNN,),
    "resnet18": (torchvision.models.resnet18,),
    "torchvision ViT": (torchvision.models.vit_b_16,),
    "torchvision Swin": (torchvision.models.swin_t,),
    "timm Swin": (timm.create_model, "swin_tiny_patch4_window7_224"),
    "timm DeiT": (timm.create_model, "deit_tiny_distilled_patch16_224"),
    "nn.Transformer": (
        functools.partial(nn.Transformer, batch_first=True),
        32,
        4,
    ),
}


@pytest.mark.parametrize("create", MODELS.values(), ids=MODELS.keys())
def test_each_parameter_is_in_one_group(create):
    model = on_meta(*create)
    decayed, kept = names_of_groups(model)
    assert sorted(decayed + kept) == sorted(
        n for n, _ in model.named_parameters()
    )


@pytest.mark.parametrize("create", MODELS.values(), ids=MODELS.keys())
def test_the_matrices_of_linear_layers_and_convolutions_are_decayed(create):
    model = on_meta(*create)
    matrices = []
    for name, module in model.named_modules():
        prefix = name + "." if name else ""
        if isinstance(module, nn.Linear | nn.Conv2d):
            matrices.append(f"{prefix}weight")
        if isinstance(module, nn.MultiheadAttention):
            matrices.append(f"{prefix}in_proj_weight")
    assert names_of_groups(model)[0] == sorted(matrices)


def test_tokens_positions_norms_and_biases_are_not_decayed():
    small = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "num_heads": 2}
    model = VisionTransformer(depth=1, **small)
    assert names_of_groups(model)[1] == [
        "blocks.0.attn.proj.bias",
        "blocks.0.attn.qkv.bias",
        "blocks.0.mlp.fc1.bias",
        "blocks.0.mlp.fc2.bias",
        "blocks.0.norm1.bias",
        "blocks.0.norm1.weight",
        "blocks.0.norm2.bias",
        "blocks.0.norm2.weight",
        "cls_token",
        "head.bias",
        "norm.bias",
        "norm.weight",
        "patch_embed.proj.bias",
        "pos_embed",
    ]


def test_the_tables_of_relative_positions_are_not_decayed():
    for create in (MODELS["timm Swin"], MODELS["torchvision Swin"]):
        kept = names_of_groups(on_meta(*create))[1]
        tables = [n for n in kept if n.endswith("relative_position_bias_table")]
        assert len(tables) == 12


@pytest.mark.parametrize("name", ["timm Swin", "timm DeiT"])
def test_the_groups_are_those_of_timm(name):
    model = on_meta(*MODELS[name])
    theirs = timm.optim.param_groups_weight_decay(
        model, 0.1, no_weight_decay_list=model.no_weight_decay()
    )
    ours = parameter_groups(model, 0.1)
    for one, other in zip(ours, reversed(theirs), strict=True):
        assert one["weight_decay"] == other["weight_decay"]
        assert list(map(id, one["params"])) == list(map(id, other["params"]))


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    model[0].requires_grad_(False)
    assert names_of_groups(model) == [["1.weight"], ["1.bias"]]


def test_a_shared_parameter_is_in_one_group_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert names_of_groups(model) == [["0.weight"], ["0.bias", "1.bias"]]


@pytest.mark.parametrize("model", [nn.Identity(), nn.Linear(2, 2)], ids=str)
def test_a_model_with_nothing_to_train_is_refused(model):
    with pytest.raises(ValueError, match="trainable parameter, got none"):
        parameter_groups(model.requires_grad_(False), 0.1)


def test_a_step_shrinks_the_decayed_parameters_only():
    model = nn.Linear(2, 2)
    before = copy.deepcopy(model)
    optimizer = AdamW(parameter_groups(model, 0.5), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.weight, before.weight * (1 - 0.1 * 0.5))
    assert torch.equal(model.bias, before.bias)


# The learning rate.


def schedule(warmup_steps, total_steps, rates=(0.3,), restart_at=None):
    """The learning rates of each step, and those after the last one."""
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": r} for r in rates]
    optimizer = SGD(groups, lr=1.0)
    scheduler = warmup_cosine(optimizer, warmup_steps, total_steps)
    table = []
    for step in range(total_steps + 1):
        if step == restart_at:
            states = optimizer.state_dict(), scheduler.state_dict()
            optimizer = SGD(copy.deepcopy(groups), lr=1.0)
            scheduler = warmup_cosine(optimizer, warmup_steps, total_steps)
            optimizer.load_state_dict(states[0])
            scheduler.load_state_dict(states[1])
        table.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return table


def formula(step, warmup_steps, total_steps):
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / (total_steps - warmup_steps)
    return (1 + math.cos(math.pi * done)) / 2


SCHEDULES = [
    (warmup, total)
    for total in (1, 2, 3, 7, 50, 400)
    for warmup in sorted({0, 1, 2, total // 10, total // 2, total - 1})
    if warmup < total
]


@pytest.mark.parametrize(("warmup", "total"), SCHEDULES)
def test_the_learning_rate_is_a_line_and_then_a_cosine(warmup, total):
    rates = [rate for (rate,) in schedule(warmup, total)]
    expected = [0.3 * formula(s, warmup, total) for s in range(total + 1)]
    assert rates == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("warmup", [0, 3])
def test_two_learning_rates_keep_their_ratio(warmup):
    for small, large in schedule(warmup, 20, rates=(0.1, 0.4)):
        assert large == pytest.approx(4 * small, abs=1e-12)


@pytest.mark.parametrize("warmup", [0, 1, 5])
@pytest.mark.parametrize("restart_at", [0, 1, 4, 5, 6, 19])
def test_a_schedule_goes_on_from_its_state(warmup, restart_at):
    assert schedule(warmup, 20, restart_at=restart_at) == schedule(warmup, 20)


@pytest.mark.parametrize(("warmup", "total"), [(-1, 5), (5, 5), (6, 5), (0, 0)])
def test_a_warm_up_that_does_not_fit_is_refused(warmup, total):
    with pytest.raises(
        ValueError, match=f"got {warmup} and total_steps {total}"
    ):
        schedule(warmup, total)


# One epoch.


def batches_of(*sizes, classes=3):
    """Batches of 4 numbers with labels, in float64."""
    return [
        (random(n, 4, seed=i), torch.arange(i, i + n) % classes)
        for i, n in enumerate(sizes)
    ]


def linear():
    model = nn.Linear(4, 3).double()
    with torch.no_grad():
        model.weight.copy_(random(3, 4))
        model.bias.copy_(random(3))
    return model


def still(model, rate=0.0):
    """An optimizer that learns nothing unless it gets a rate, and a schedule
    that changes nothing."""
    optimizer = SGD(model.parameters(), lr=rate)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)


def test_the_training_loss_is_the_mean_over_the_images():
    model, batches = linear(), batches_of(5, 5, 2)
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    expected = F.cross_entropy(model(images), labels).item()
    got = train_one_epoch(model, batches, *still(model))
    assert got == pytest.approx(expected, rel=1e-6)
    means = [F.cross_entropy(model(x), y).item() for x, y in batches]
    assert got != pytest.approx(sum(means) / 3, rel=1e-3)


def test_an_epoch_is_plain_gradient_descent():
    model, batches = linear(), batches_of(5, 3)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    train_one_epoch(model, batches, *still(model, rate=0.1), max_norm=math.inf)
    for images, labels in batches:
        wrong = (images @ weight.T + bias).softmax(dim=1)
        wrong = (wrong - F.one_hot(labels, 3)) / len(images)
        weight -= 0.1 * wrong.T @ images
        bias -= 0.1 * wrong.sum(0)
    torch.testing.assert_close(
        model.weight.detach(), weight, rtol=0, atol=1e-12
    )
    torch.testing.assert_close(model.bias.detach(), bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_norm", [1e-3, 0.1, 1e3])
def test_the_step_is_no_longer_than_max_norm(max_norm):
    model, batches = linear(), batches_of(5)
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    F.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert 0.1 < gradient.norm() < 1e3
    train_one_epoch(model, batches, *still(model, rate=1.0), max_norm=max_norm)
    after = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    expected = gradient * min(1, max_norm / gradient.norm().item())
    torch.testing.assert_close(before - after, expected, rtol=1e-4, atol=0)


def test_each_batch_is_a_step_of_optimizer_and_schedule():
    model = linear()
    optimizer = AdamW(model.parameters(), lr=0.1)
    scheduler = warmup_cosine(optimizer, 2, 9)
    train_one_epoch(model, batches_of(2, 2, 2, 1), optimizer, scheduler)
    assert optimizer.state[model.weight]["step"] == 4
    assert scheduler.last_epoch == 4


class Watch(nn.Module):
    """Remembers in which mode it was called."""

    def __init__(self):
        super().__init__()
        self.layer, self.modes = nn.Linear(4, 3).double(), []

    def forward(self, x):
        self.modes.append((self.training, torch.is_grad_enabled()))
        return self.layer(x)


def test_training_and_evaluation_set_the_mode():
    model = Watch().eval()
    train_one_epoch(model, batches_of(2, 2), *still(model))
    assert model.training
    evaluate(model, batches_of(2))
    assert not model.training
    assert model.modes == [(True, True), (True, True), (False, False)]


def test_the_labels_can_be_smoothed():
    model, batches = linear(), batches_of(5, 3)
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    log = model(images).log_softmax(dim=1)
    soft = 0.8 * F.one_hot(labels, 3) + 0.2 / 3
    got = train_one_epoch(
        model,
        batches,
        *still(model),
        loss_fn=nn.CrossEntropyLoss(label_smoothing=0.2),
    )
    assert got == pytest.approx(-(soft * log).sum(1).mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    "mix",
    [
        v2.MixUp(num_classes=3),
        v2.CutMix(num_classes=3),
        v2.RandomChoice([v2.MixUp(num_classes=3), v2.CutMix(num_classes=3)]),
    ],
    ids=["MixUp", "CutMix", "RandomChoice"],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_model_learns_from_mixed_images(mix, smoothing):
    seen = []

    def watch(images, labels):
        seen.append(mix(images, labels))
        return seen[-1]

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    batches = [(torch.rand(5, 3, 4, 4), torch.arange(5) % 3)]
    loss_fn = nn.CrossEntropyLoss(label_smoothing=smoothing)
    before = copy.deepcopy(model)
    loss = train_one_epoch(
        model, batches, *still(model, 0.1), loss_fn=loss_fn, mix=watch
    )
    ((images, labels),) = seen
    assert images.shape == (5, 3, 4, 4)
    assert labels.shape == (5, 3)
    assert not images.equal(batches[0][0])
    expected = loss_fn(before(images), labels).item()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert not before[1].weight.equal(model[1].weight)


def test_a_loader_without_a_batch_is_refused():
    model = linear()
    with pytest.raises(ValueError, match="at least one batch, got none"):
        train_one_epoch(model, [], *still(model))
    with pytest.raises(ValueError, match="at least one batch, got none"):
        evaluate(model, [])


def test_a_generator_can_give_the_batches():
    model, batches = linear(), batches_of(5, 3)
    expected = train_one_epoch(model, batches, *still(model))
    assert train_one_epoch(model, iter(batches), *still(model)) == expected
    assert evaluate(model, iter(batches)) == evaluate(model, batches)


# Evaluation.


def test_the_test_loss_is_the_mean_over_the_images():
    model, batches = linear(), batches_of(5, 5, 2)
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    loss, accuracy = evaluate(model, batches)
    expected = F.cross_entropy(model(images), labels).item()
    assert loss == pytest.approx(expected, rel=1e-12)
    right = (model(images).argmax(1) == labels).sum().item()
    assert accuracy == pytest.approx(100 * right / 12, rel=1e-12)


def test_the_accuracy_is_a_percentage_of_the_images():
    identity = nn.Linear(3, 3, bias=False)
    nn.init.eye_(identity.weight)
    logits = torch.eye(3)[[0, 1, 2, 0, 1]]
    batches = [
        (logits[:4], torch.tensor([0, 1, 0, 0])),
        (logits[4:], torch.tensor([0])),
    ]
    loss, accuracy = evaluate(identity, batches)
    assert accuracy == 60.0
    right = math.log(math.e + 2) - 1
    assert loss == pytest.approx((3 * right + 2 * (right + 1)) / 5, rel=1e-6)


def test_evaluation_changes_nothing_in_the_model():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    model.double()
    train_one_epoch(model, batches_of(5), *still(model))
    model.zero_grad()
    before = copy.deepcopy(model.state_dict())
    assert evaluate(model, batches_of(5, 3)) == evaluate(
        model, batches_of(5, 3)
    )
    for name, value in model.state_dict().items():
        assert value.equal(before[name])
    assert all(p.grad is None for p in model.parameters())


def test_a_step_after_an_evaluation_is_possible():
    model = linear()
    evaluate(model, batches_of(5))
    before = model.weight.detach().clone()
    train_one_epoch(model, batches_of(5), *still(model, rate=0.1))
    assert not before.equal(model.weight)


# Mixed precision.


def tiny_vit(**options):
    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 4}
    return VisionTransformer(8, 4, in_chans=1, **{**sizes, **options})


def tiny_batches(*sizes):
    torch.manual_seed(1)
    return [(torch.rand(n, 1, 8, 8), torch.arange(n) % 4) for n in sizes]


def test_on_a_cpu_everything_stays_in_float32():
    layer, x = nn.Linear(4, 3), torch.rand(2, 4)
    for device in ("cpu", torch.device("cpu")):
        with mixed_precision(device):
            assert torch.equal(layer(x), x @ layer.weight.T + layer.bias)
            assert layer(x).dtype == torch.float32


def test_an_unknown_device_is_an_error():
    with pytest.raises(RuntimeError, match="xpux"):
        mixed_precision("xpux")


def test_a_model_learns_in_bfloat16():
    dtypes = set()

    def loss_fn(logits, labels):
        dtypes.add(logits.dtype)
        return F.cross_entropy(logits, labels)

    model, batches = tiny_vit(), tiny_batches(8, 8)
    optimizer = AdamW(model.parameters(), lr=0.01)
    scheduler = warmup_cosine(optimizer, 1, 20)
    # The cache would keep the weights of the first step.
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        losses = [
            train_one_epoch(
                model, batches, optimizer, scheduler, loss_fn=loss_fn
            )
            for _ in range(10)
        ]
    assert dtypes == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert losses[-1] < losses[0]
    assert losses[0] == pytest.approx(math.log(4), rel=0.1)


needs_bfloat16 = pytest.mark.skipif(
    not torch.cuda.is_available()
    or torch.cuda.get_device_capability() < (8, 0),
    reason="needs a GPU with units for bfloat16",
)


@needs_bfloat16
def test_on_a_gpu_the_test_loss_is_summed_in_float32():
    model, batches = tiny_vit().cuda(), tiny_batches(7, 2)
    nn.init.normal_(model.head.weight)
    with mixed_precision("cuda"), torch.no_grad():
        logits = [model.eval()(images.cuda()) for images, _ in batches]
    assert logits[0].dtype == torch.bfloat16
    labels = torch.cat([labels for _, labels in batches]).cuda()
    expected = F.cross_entropy(torch.cat(logits).float(), labels).item()
    assert evaluate(model, batches)[0] == pytest.approx(expected, rel=1e-5)


# The whole run.


def loaders(n=20, batch_size=8, **options):
    torch.manual_seed(1)
    data = ImageDataset(torch.rand(n, 1, 8, 8), torch.arange(n) % 4)
    train = DataLoader(data, batch_size, shuffle=True, **options)
    return train, DataLoader(data, batch_size=n)


def run(*, model=None, data=None, **options):
    """The history of a short run, and the weights after it."""
    model = model or tiny_vit(dropout=0.1, drop_path=0.1)
    settings = {"epochs": 2, **options}
    history = fit(model, *(data or loaders()), **settings)
    weights = torch.nn.utils.parameters_to_vector(model.parameters())
    return history, weights.detach()


def test_one_seed_gives_the_same_bits():
    first = run(seed=3)
    torch.rand(5)
    second = run(seed=3)
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 1},
        {"learning_rate": 2e-3},
        {"weight_decay": 0.5},
        {"warmup": 0.5},
        {"max_norm": 1e-3},
        {"loss_fn": nn.CrossEntropyLoss(label_smoothing=0.1)},
        {"mix": v2.MixUp(num_classes=4)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_each_argument_changes_the_weights(options):
    assert not torch.equal(run()[1], run(**options)[1])


def test_fit_is_the_loop_of_its_parts():
    history, weights = run(epochs=3, seed=5, warmup=0.5)
    model = tiny_vit(dropout=0.1, drop_path=0.1)
    train, test = loaders()
    optimizer = AdamW(parameter_groups(model, 0.05), lr=1e-3)
    scheduler = warmup_cosine(optimizer, 4, 9)  # half of 9 steps
    for epoch in range(3):
        torch.manual_seed(5 * 1_000_003 + epoch)
        loss = train_one_epoch(model, train, optimizer, scheduler)
        assert history.train_loss[epoch] == loss
        measured = history.test_loss[epoch], history.test_accuracy[epoch]
        assert measured == evaluate(model, test)
    expected = torch.nn.utils.parameters_to_vector(model.parameters())
    assert torch.equal(weights, expected)


def test_a_finished_run_returns_its_history_at_once(tmp_path):
    first = run(checkpoint=tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()

    def never(images, labels):
        raise AssertionError("it trains")

    second = run(checkpoint=tmp_path / "a.pt", mix=never)
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])
    assert (tmp_path / "a.pt").read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 3},
        {"learning_rate": 1e-2},
        {"weight_decay": 0.1},
        {"warmup": 0.2},
        {"max_norm": 2.0},
        {"seed": 1},
        {"data": loaders(batch_size=4)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, options):
    run(checkpoint=tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()
    with pytest.raises(ValueError, match="same settings or another file"):
        run(checkpoint=tmp_path / "a.pt", **options)
    assert (tmp_path / "a.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"embed_dim": 12}, r"model must fit .*a\.pt, .*or another file"),
        ({"num_classes": 5}, r"model must fit .*a\.pt, .*or another file"),
        ({"depth": 1}, r"a run with {'groups': .*same settings or another"),
    ],
    ids=["embed_dim", "num_classes", "depth"],
)
def test_a_checkpoint_of_another_model_leaves_the_model_as_it_is(
    tmp_path, other, said
):
    run(checkpoint=tmp_path / "a.pt")
    model = tiny_vit(**other)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=said):
        run(model=model, checkpoint=tmp_path / "a.pt")
    for name, value in model.state_dict().items():
        assert value.equal(before[name])


@pytest.mark.parametrize("epochs", [0, -1])
def test_no_epoch_is_refused(epochs):
    with pytest.raises(ValueError, match=f"at least 1 .* got {epochs} and 0.1"):
        run(epochs=epochs)


@pytest.mark.parametrize("warmup", [-0.1, 1, 2.0, math.nan])
def test_a_warm_up_that_never_ends_is_refused(warmup):
    with pytest.raises(ValueError, match=f"< 1, got 2 and {warmup}"):
        run(warmup=warmup)


def with_generator(where):
    data, generator = loaders()[0].dataset, torch.Generator()
    sampler = RandomSampler(data, generator=generator)
    options = {
        "loader": {"shuffle": True, "generator": generator},
        "sampler": {"sampler": sampler},
        "batch sampler": {"batch_sampler": BatchSampler(sampler, 8, False)},
    }
    return DataLoader(data, **options[where]), loaders()[1]


@pytest.mark.parametrize("where", ["loader", "sampler", "batch sampler"])
def test_a_loader_with_a_generator_is_refused(where):
    with pytest.raises(ValueError, match=r"no generator.*got .*; use seed"):
        run(data=with_generator(where))


def test_a_loader_with_persistent_workers_is_refused():
    data = loaders(num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match="got persistent_workers=True"):
        run(data=data)


class NotRandom(v2.Transform):
    def transform(self, inpt, params):
        return inpt + torch.rand(1)


def test_workers_draw_anew_in_each_epoch():
    """Why persistent workers are refused: here each epoch has its own seed."""
    data = TensorDataset(torch.zeros(4, 1, 8, 8), torch.arange(4))
    seen = []

    def watch(images, labels):
        seen.append(images[:, 0, 0, 0].sort().values)
        return images, labels

    dataset = ImageDataset(*data.tensors, NotRandom())
    loader = DataLoader(dataset, batch_size=4, num_workers=2)
    run(data=(loader, loaders()[1]), mix=watch, epochs=2)
    run(data=(loader, loaders()[1]), mix=watch, epochs=2)
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])


def test_a_loader_that_drops_all_images_is_refused():
    with pytest.raises(ValueError, match=r"train_loader must .* got none"):
        run(data=loaders(n=4, batch_size=8, drop_last=True))


def explode_after(steps):
    """Losses that are right, until they are no number."""
    left = steps

    def loss_fn(logits, labels):
        nonlocal left
        left -= 1
        factor = math.inf if left < 0 else 1.0
        return F.cross_entropy(logits, labels) * factor

    return loss_fn


def test_a_run_that_diverges_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"finite, got 0.001.*epoch 3"):
        run(
            epochs=5,
            loss_fn=explode_after(7),  # 3 steps are an epoch
            checkpoint=tmp_path / "a.pt",
        )
    history = torch.load(tmp_path / "a.pt")["history"]
    expected, _ = run(epochs=5)
    assert history["train_loss"] == expected.train_loss[:2]


def test_weights_that_break_in_the_last_step_are_not_kept(tmp_path):
    """The training loss is that of the weights before the step."""
    with pytest.raises(ValueError, match=r"got 1e\+36.* nan in the test"):
        run(
            data=loaders(batch_size=20),
            learning_rate=1e36,
            warmup=0,
            checkpoint=tmp_path / "a.pt",
        )
    assert not list(tmp_path.iterdir())


def test_a_small_vit_learns_to_read_digits():
    digits = split_digits()
    mean, std = digits.train_images.mean(), digits.train_images.std()
    train = (digits.train_images - mean) / std
    test = (digits.test_images - mean) / std
    torch.manual_seed(0)
    model = VisionTransformer(
        8,
        2,
        in_chans=1,
        num_classes=10,
        embed_dim=48,
        depth=3,
        num_heads=4,
        mlp_ratio=2.0,
    )
    nn.init.normal_(model.pos_embed, std=1.0)
    history = fit(
        model,
        DataLoader(ImageDataset(train, digits.train_labels), 32, shuffle=True),
        DataLoader(ImageDataset(test, digits.test_labels), 450),
        epochs=9,  # 387 steps
        learning_rate=2e-3,
    )
    assert history.test_accuracy[-1] > 93
    assert history.train_loss[-1] < 0.2 < 1 < history.train_loss[0]


# What was measured.


def history_of(n):
    history = History()
    for i in range(n):
        history.append(1 / (i + 1), 2 / (i + 1), 10.0 * i)
    return history


def test_a_history_holds_each_epoch():
    history = history_of(3)
    assert len(history) == 3
    assert history.train_loss == [1, 1 / 2, 1 / 3]
    assert history.test_loss == [2, 1, 2 / 3]
    assert history.test_accuracy == [0, 10, 20]
    assert len(History()) == 0


def test_a_history_comes_back_from_its_state():
    other = history_of(1)
    other.load_state_dict(history_of(3).state_dict())
    assert other == history_of(3)


def test_two_histories_of_one_state_do_not_share_it():
    history, other = history_of(2), History()
    other.load_state_dict(history.state_dict())
    other.append(1.0, 2.0, 3.0)
    assert history == history_of(2)


@pytest.mark.parametrize("n", [1, 3])
def test_the_plot_shows_losses_and_accuracy_of_each_epoch(n):
    history = history_of(n)
    top, bottom = history.plot()
    epochs = list(range(1, n + 1))
    lines = {line.get_label(): line for line in top.get_lines()}
    assert lines.keys() == {"training", "test"}
    assert list(lines["training"].get_xdata()) == epochs
    assert list(lines["training"].get_ydata()) == history.train_loss
    assert list(lines["test"].get_ydata()) == history.test_loss
    (line,) = bottom.get_lines()
    assert list(line.get_xdata()) == epochs
    assert list(line.get_ydata()) == history.test_accuracy
    assert top.get_ylabel() == "loss"
    assert top.get_ylim()[0] == 0
    assert bottom.get_ylabel() == "test accuracy (%)"
    assert bottom.get_xlabel() == "epoch"
    legend = {text.get_text() for text in top.get_legend().get_texts()}
    assert legend == {"training", "test"}


def test_an_empty_history_cannot_be_drawn():
    with pytest.raises(ValueError, match="at least one epoch, got none"):
        History().plot()
    assert not plt.get_fignums()


# Parameter groups with rates of their own.


def groups_of(model, rate=1e-3, head=1e-2, weight_decay=0.05):
    """Matrices and others, and the head with a rate of its own."""
    heads = {*model.head.parameters()}
    groups = []
    for group in parameter_groups(model, weight_decay):
        rest = [p for p in group["params"] if p not in heads]
        own = [p for p in group["params"] if p in heads]
        groups.append({**group, "params": rest, "lr": rate})
        groups.append({**group, "params": own, "lr": head})
    return groups


def run_with(group_options, **options):
    model = tiny_vit(dropout=0.1, drop_path=0.1)
    groups = groups_of(model, **group_options)
    return run(model=model, groups=groups, **options)


def test_the_default_groups_are_those_of_parameter_groups():
    model = tiny_vit(dropout=0.1, drop_path=0.1)
    history, weights = run(model=model, groups=parameter_groups(model, 0.05))
    expected_history, expected = run()
    assert history == expected_history
    assert torch.equal(weights, expected)


def test_a_part_with_a_tiny_rate_hardly_moves():
    moved = {}
    for head in (1e-9, 1e-2):
        model = tiny_vit()
        before = copy.deepcopy(model)
        run(model=model, groups=groups_of(model, head=head))
        pairs = zip(model.named_parameters(), before.parameters(), strict=True)
        gaps = {n: (p - q).abs().max().item() for (n, p), q in pairs}
        moved[head] = gaps["head.weight"], gaps["blocks.0.mlp.fc1.weight"]
    assert moved[1e-9][0] < 1e-7 < 1e-2 < moved[1e-2][0]
    assert min(body for _, body in moved.values()) > 1e-5


def test_fit_with_groups_is_the_loop_of_its_parts():
    history, weights = run_with({"head": 0.02}, seed=5, warmup=0.5)
    model = tiny_vit(dropout=0.1, drop_path=0.1)
    train, test = loaders()
    optimizer = AdamW(groups_of(model, head=0.02))
    scheduler = warmup_cosine(optimizer, 3, 6)  # half of 6 steps
    for epoch in range(2):
        torch.manual_seed(5 * 1_000_003 + epoch)
        loss = train_one_epoch(model, train, optimizer, scheduler)
        assert history.train_loss[epoch] == loss
        evaluate(model, test)
    expected = torch.nn.utils.parameters_to_vector(model.parameters())
    assert torch.equal(weights, expected)


def test_a_group_without_rate_or_decay_has_those_of_the_run():
    for options in ({"learning_rate": 3e-3}, {"weight_decay": 0.5}):
        weights = []
        for own in ({}, {"lr": 1e-3, "weight_decay": 0.05}):
            model = tiny_vit()
            groups = [{"params": [*model.parameters()], **own}]
            weights.append(run(model=model, groups=groups, **options)[1])
        assert not torch.equal(*weights)
        model = tiny_vit()
        own = {"lr": 1e-3, "weight_decay": 0.05}
        own["lr"] = options.get("learning_rate", 1e-3)
        own["weight_decay"] = options.get("weight_decay", 0.05)
        groups = [{"params": [*model.parameters()], **own}]
        assert torch.equal(run(model=model, groups=groups)[1], weights[0])


@pytest.mark.parametrize("forgotten", ["cls_token", "head.bias"])
def test_a_forgotten_parameter_is_refused_before_the_first_step(forgotten):
    model = tiny_vit()
    before = copy.deepcopy(model.state_dict())
    some = [p for n, p in model.named_parameters() if n != forgotten]
    with pytest.raises(ValueError, match=f"parameter, got no {forgotten}$"):
        run(model=model, groups=[{"params": some}])
    for name, value in model.state_dict().items():
        assert value.equal(before[name])


@pytest.mark.parametrize("groups", [[], [{"params": []}]], ids=str)
def test_no_group_is_refused(groups):
    with pytest.raises(
        ValueError, match=r"trainable parameter, got no cls_token$"
    ):
        run(groups=groups)


def test_frozen_parameters_need_no_group():
    model = tiny_vit()
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    run(model=model, groups=[{"params": [*model.head.parameters()]}])
    changed = {
        n for n, t in model.state_dict().items() if not t.equal(before[n])
    }
    assert changed == {"head.weight", "head.bias"}


class Stop(Exception):
    pass


def stop_after(batches):
    left = batches

    def mix(images, labels):
        nonlocal left
        left -= 1
        if left < 0:
            raise Stop
        return images, labels

    return mix


@pytest.mark.parametrize("batches", [3, 4, 7])
def test_a_run_with_groups_goes_on_bit_for_bit(tmp_path, batches):
    options = {"epochs": 4, "checkpoint": tmp_path / "a.pt"}
    expected = run_with({"head": 0.02}, epochs=4)
    with pytest.raises(Stop):
        run_with({"head": 0.02}, mix=stop_after(batches), **options)
    history, weights = run_with({"head": 0.02}, **options)
    assert history == expected[0]
    assert torch.equal(weights, expected[1])


@pytest.mark.parametrize(
    "other", [{"head": 0.03}, {"rate": 2e-3}, {"rate": 1e-2, "head": 1e-3}]
)
def test_a_checkpoint_of_other_rates_is_refused(tmp_path, other):
    run_with({}, checkpoint=tmp_path / "a.pt")
    with pytest.raises(ValueError, match="same settings or another file"):
        run_with(other, checkpoint=tmp_path / "a.pt")
    with pytest.raises(ValueError, match="same settings or another file"):
        run(checkpoint=tmp_path / "a.pt")


def test_fit_leaves_the_groups_of_the_caller_as_they_are():
    model = tiny_vit()
    groups = groups_of(model)
    before = [{**group, "params": [*group["params"]]} for group in groups]
    run(model=model, groups=groups)
    assert [group.keys() for group in groups] == [g.keys() for g in before]
    assert [group["lr"] for group in groups] == [g["lr"] for g in before]


def test_a_second_run_with_the_same_groups_learns_too():
    model = tiny_vit()
    groups = groups_of(model)
    _, first = run(model=model, groups=groups)
    _, second = run(model=model, groups=groups)
    assert not torch.equal(first, second)


def test_an_interrupted_run_goes_on_with_the_same_groups(tmp_path):
    """Nobody builds them anew before the cell is run again."""
    expected = run_with({}, epochs=3)
    model = tiny_vit(dropout=0.1, drop_path=0.1)
    options = {"epochs": 3, "checkpoint": tmp_path / "a.pt"}
    options |= {"model": model, "groups": groups_of(model)}
    with pytest.raises(Stop):
        run(mix=stop_after(4), **options)
    history, weights = run(**options)
    assert history == expected[0]
    assert torch.equal(weights, expected[1])


def test_the_parameters_of_a_group_may_come_from_a_generator():
    weights = []
    for kind in (iter, list):
        model = tiny_vit()
        groups = [{"params": kind([*model.parameters()])}]
        weights.append(run(model=model, groups=groups)[1])
    assert torch.equal(*weights)


def test_the_parameters_of_a_group_may_come_with_their_names():
    weights = []
    for method in ("parameters", "named_parameters"):
        model = tiny_vit()
        groups = [{"params": [*getattr(model, method)()]}]
        weights.append(run(model=model, groups=groups)[1])
    assert torch.equal(*weights)


@pytest.mark.parametrize("rate", ["learning_rate", "weight_decay"])
def test_a_negative_rate_is_refused(rate):
    with pytest.raises(ValueError, match=r"Invalid .*: -0.1$"):
        run(**{rate: -0.1})


def test_a_checkpoint_of_groups_with_another_decay_is_refused(tmp_path):
    run_with({}, checkpoint=tmp_path / "a.pt")
    with pytest.raises(ValueError, match="same settings or another file"):
        run_with({"weight_decay": 0.5}, checkpoint=tmp_path / "a.pt")


def test_a_checkpoint_of_groups_of_other_parameters_is_refused(tmp_path):
    """As many groups with as many parameters and the same rates."""

    def groups_with(model, block):
        own = [*model.blocks[block].parameters()]
        rest = [p for p in model.parameters() if p not in {*own}]
        return [{"params": rest, "lr": 1e-3}, {"params": own, "lr": 1e-2}]

    model = tiny_vit(depth=2)
    groups = groups_with(model, 0)
    run(model=model, groups=groups, checkpoint=tmp_path / "a.pt")
    model = tiny_vit(depth=2)
    groups = groups_with(model, 1)
    with pytest.raises(ValueError, match="or another file"):
        run(model=model, groups=groups, checkpoint=tmp_path / "a.pt")
