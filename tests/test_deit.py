"""Chapter 14."""

import copy
import math
import random as python_random
import re

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import has_all_gradients, random, randomize
from PIL import Image
from timm.data.auto_augment import LEVEL_TO_ARG, NAME_TO_OP
from timm.models.deit import VisionTransformerDistilled
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from vit_lessons import (
    DEIT_PRESETS,
    DistilledVisionTransformer,
    MaskedAutoencoder,
    RepeatedAugmentation,
    VisionTransformer,
    ask_teacher,
    attention_rollout,
    attention_weights,
    class_attention,
    create_model,
    deit_augmentation,
    deit_mix,
    fit,
    hard_distillation_loss,
    list_models,
    load_pretrained,
    patch_attention,
    resize_pos_embed,
    soft_distillation_loss,
)
from vit_lessons.data import ImageDataset

NO_GAP = {"rtol": 0, "atol": 1e-10}
SMALL = {
    "img_size": (12, 20),
    "patch_size": (3, 4),
    "in_chans": 3,
    "num_classes": 7,
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 3,
}
CONFIGURATIONS = {
    "all sizes different": {},
    "square": {"img_size": 8, "patch_size": 4},
    "one channel": {"in_chans": 1},
    "two channels": {"in_chans": 2},
    "four channels": {"in_chans": 4},
    "one block": {"depth": 1},
    "four blocks": {"depth": 4},
    "one head": {"num_heads": 1},
    "one patch": {"img_size": (3, 4)},
    "no qkv bias": {"qkv_bias": False},
    "mlp_ratio 2.5": {"mlp_ratio": 2.5},
    "no heads": {"num_classes": 0},
}
each_configuration = pytest.mark.parametrize(
    "options", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys()
)


def model_of(**options):
    return randomize(DistilledVisionTransformer(**{**SMALL, **options}))


def timm_of(**options):
    theirs = VisionTransformerDistilled(**{**SMALL, **options})
    theirs.set_distilled_training(True)
    return randomize(theirs, seed=5)


def images_for(model, batch=2):
    return random(batch, model.in_chans, *model.img_size)


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


# The model.


def layer_norm(x, weight, bias):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias


def logits_by_hand(model, images):
    """Both logits, each step written out; nothing of the package is used."""
    w, (p1, p2) = model.state_dict(), model.patch_embed.patch_size
    heads = model.blocks[0].attn.num_heads
    tokens = [w["cls_token"][0, 0], w["dist_token"][0, 0]]
    tokens = [token.expand(len(images), -1) for token in tokens]
    for row in range(0, images.shape[2], p1):
        for column in range(0, images.shape[3], p2):
            patch = images[:, :, row : row + p1, column : column + p2]
            tokens.append(
                torch.einsum(
                    "bchw,dchw->bd", patch, w["patch_embed.proj.weight"]
                )
                + w["patch_embed.proj.bias"]
            )
    x = torch.stack(tokens, 1) + w["pos_embed"]
    for i in range(len(model.blocks)):
        b = {
            name.removeprefix(f"blocks.{i}."): value
            for name, value in w.items()
            if name.startswith(f"blocks.{i}.")
        }
        y = layer_norm(x, b["norm1.weight"], b["norm1.bias"])
        y = y @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]
        q, k, v = y.unflatten(2, (3, heads, -1)).unbind(2)  # (B, T, h, d)
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1])
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        y = torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2)
        x = x + y @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        y = layer_norm(x, b["norm2.weight"], b["norm2.bias"])
        y = y @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]
        y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
        x = x + y @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
    x = layer_norm(x, w["norm.weight"], w["norm.bias"])
    return (
        x[:, 0] @ w["head.weight"].T + w["head.bias"],
        x[:, 1] @ w["head_dist.weight"].T + w["head_dist.bias"],
    )


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
)
@settings(deadline=None, max_examples=20)
def test_the_logits_equal_the_forward_pass_written_out(
    grid, patch_size, in_chans, depth, num_heads
):
    model = model_of(
        img_size=(grid[0] * patch_size[0], grid[1] * patch_size[1]),
        patch_size=patch_size,
        in_chans=in_chans,
        depth=depth,
        num_heads=num_heads,
    )
    images = images_for(model)
    expected = logits_by_hand(model, images)
    for ours, by_hand in zip(model(images), expected, strict=True):
        torch.testing.assert_close(ours, by_hand, **NO_GAP)
    mean = (expected[0] + expected[1]) / 2
    torch.testing.assert_close(model.eval()(images), mean, **NO_GAP)


@each_configuration
def test_logits_and_gradients_equal_timm_with_its_weights(options):
    theirs, ours = timm_of(**options), model_of(**options)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = images_for(ours)
    pairs = ours(images), theirs(images)
    for mine, other in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, other, **NO_GAP)
    for logits, dist_logits in pairs:
        loss = logits * random(*logits.shape, seed=3)
        loss = loss + dist_logits * random(*logits.shape, seed=4)
        loss.sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name].grad, rtol=1e-10, atol=1e-10
        )
    torch.testing.assert_close(
        ours.eval()(images), theirs.eval()(images), **NO_GAP
    )


@pytest.mark.parametrize(
    ("size", "count"),
    [("tiny", 5_910_800), ("small", 22_436_432), ("base", 87_338_192)],
)
def test_a_preset_has_the_names_and_shapes_of_timm(size, count):
    name = f"deit_{size}_distilled_patch16_224"
    with torch.device("meta"):
        ours, theirs = create_model(name), timm.create_model(name)
    assert type(ours) is DistilledVisionTransformer
    assert sum(p.numel() for p in ours.parameters()) == count
    shapes, expected = (
        {name: value.shape for name, value in model.state_dict().items()}
        for model in (ours, theirs)
    )
    assert shapes == expected
    assert ours.blocks[0].attn.num_heads == theirs.blocks[0].attn.num_heads
    assert name in DEIT_PRESETS
    assert name in list_models()


def test_there_are_three_presets_and_they_can_be_changed():
    assert len(DEIT_PRESETS) == 3
    with torch.device("meta"):
        model = create_model(
            "deit_tiny_distilled_patch16_224", num_classes=3, img_size=32
        )
    assert model.head_dist.weight.shape == (3, 192)
    assert model.pos_embed.shape == (1, 2 + 4, 192)


@pytest.mark.parametrize("changed", [0, 1])
def test_a_head_changes_its_own_logits_only(changed):
    model = model_of()
    images = images_for(model)
    before = model(images)
    head = (model.head, model.head_dist)[changed]
    with torch.no_grad():
        head.weight += random(7, 12)
    after = model(images)
    assert after[1 - changed].equal(before[1 - changed])
    assert not torch.isclose(after[changed], before[changed]).any()


def exchange(model, *names):
    """A copy in which the parts of class and distillation change places."""
    other, old = copy.deepcopy(model), model.state_dict()
    new = state_of(model)
    if "tokens" in names:
        new["cls_token"], new["dist_token"] = (
            old["dist_token"],
            old["cls_token"],
        )
    if "positions" in names:
        new["pos_embed"][:, :2] = old["pos_embed"][:, [1, 0]]
    if "heads" in names:
        for part in "weight", "bias":
            new[f"head.{part}"] = old[f"head_dist.{part}"]
            new[f"head_dist.{part}"] = old[f"head.{part}"]
    other.load_state_dict(new)
    return other


@pytest.mark.parametrize("part", ["tokens", "positions", "heads"])
def test_exchanging_one_part_changes_the_answer(part):
    model = model_of().eval()
    images = images_for(model)
    gap = (exchange(model, part)(images) - model(images)).abs()
    assert gap.min() > 1e-4


def test_exchanging_all_parts_exchanges_the_logits():
    model = model_of()
    images = images_for(model)
    pair = exchange(model, "tokens", "positions", "heads")(images)
    for mine, other in zip(pair, model(images)[::-1], strict=True):
        torch.testing.assert_close(mine, other, **NO_GAP)


def test_both_heads_together_teach_every_parameter():
    model = model_of()
    assert has_all_gradients(model, torch.stack(model(images_for(model))))


@pytest.mark.parametrize("left_out", ["head", "head_dist"])
def test_a_head_that_the_loss_leaves_out_learns_nothing(left_out):
    model = model_of()
    kept = model(images_for(model))[left_out == "head"]
    (kept * random(2, 7, seed=3)).sum().backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert without == {f"{left_out}.weight", f"{left_out}.bias"}


def test_fresh_weights_are_small_and_say_nothing():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DistilledVisionTransformer(
            32, 8, num_classes=5, embed_dim=1200, depth=1
        )
        other = DistilledVisionTransformer(
            32, 8, num_classes=5, embed_dim=1200, depth=1
        )
    assert not model.dist_token.equal(other.dist_token)
    assert model.dist_token.std().item() == pytest.approx(0.02, rel=0.1)
    assert abs(model.dist_token.mean().item()) < 0.003
    assert not model.cls_token.any()
    assert model.pos_embed[0, :2].std().item() == pytest.approx(0.02, rel=0.1)
    for logits in model(torch.randn(2, 3, 32, 32)):
        assert logits.equal(torch.zeros(2, 5))


def test_the_mean_of_the_patches_is_refused():
    message = re.escape("pool must be \"cls\", got 'mean'")
    with pytest.raises(ValueError, match=message):
        DistilledVisionTransformer(**SMALL, pool="mean")
    with pytest.raises(ValueError, match=message):
        create_model("deit_tiny_distilled_patch16_224", pool="mean", depth=1)


@pytest.mark.parametrize("option", ["drop_path", "dropout"])
def test_what_is_random_in_training_is_still_in_evaluation(option):
    model = model_of(**{option: 0.5})
    plain = model_of()
    images = images_for(model, batch=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = (torch.stack(model(images)) for _ in range(2))
    assert not torch.isclose(first, second).all()
    assert model.eval()(images).equal(plain.eval()(images))


# The model among the other tools of the course.


def test_weights_of_a_distilled_timm_model_are_loaded():
    theirs, model = timm_of(), model_of()
    report = load_pretrained(model, theirs.state_dict(), grid_size=(4, 5))
    assert len(report.loaded) == len(theirs.state_dict())
    images = images_for(model)
    for ours, other in zip(model(images), theirs(images), strict=True):
        torch.testing.assert_close(ours, other, **NO_GAP)


def test_both_prefix_rows_stay_when_the_positions_are_resized():
    state = timm_of().state_dict()
    model = model_of(img_size=(18, 12))  # a grid of 6 x 3
    report = load_pretrained(model, state, grid_size=(4, 5))
    assert report.resized == ("pos_embed",)
    assert model.pos_embed[:, :2].equal(state["pos_embed"][:, :2])
    expected = resize_pos_embed(
        state["pos_embed"], (4, 5), (6, 3), num_prefix_tokens=2
    )
    torch.testing.assert_close(model.pos_embed.data, expected, **NO_GAP)
    assert model.dist_token.equal(state["dist_token"])


def refused_unchanged(model, state, *words):
    before = state_of(model)
    with pytest.raises(ValueError) as caught:
        load_pretrained(model, state)
    for word in words:
        assert word in str(caught.value)
    for name, value in model.state_dict().items():
        assert value.equal(before[name]), name


def test_one_token_is_not_taken_for_two():
    theirs = timm.create_model(
        "deit_base_patch16_224",
        img_size=16,
        depth=1,
        embed_dim=12,
        num_heads=3,
    )
    options = {"img_size": 16, "patch_size": 16, "depth": 1}
    model = model_of(**options, num_classes=1000)
    for state in (
        theirs.state_dict(),
        randomize(
            VisionTransformer(**{**SMALL, **options, "num_classes": 1000})
        ).state_dict(),
    ):
        refused_unchanged(
            model,
            state,
            *("no dist_token", "no head_dist.weight", "no head_dist.bias"),
            "pos_embed must have 2 + N rows",
        )


def test_two_tokens_are_not_taken_for_one():
    model = randomize(VisionTransformer(**SMALL))
    refused_unchanged(
        model,
        timm_of().state_dict(),
        *("dist_token, which", "head_dist.weight, which"),
        "pos_embed must have 1 + N rows",
    )


def test_the_attention_of_both_tokens_can_be_looked_at():
    model = model_of()
    images = images_for(model)
    weights = attention_weights(model, images)
    assert model.training
    assert [w.shape for w in weights] == [(2, 3, 22, 22)] * 2
    among = patch_attention(weights[0], num_prefix_tokens=2)
    assert among.shape == (2, 3, 20, 20)
    rollout = attention_rollout(weights)
    maps = [
        class_attention(rollout, (4, 5), num_prefix_tokens=2, token=token)
        for token in (0, 1)
    ]
    for token, attention in enumerate(maps):
        row = rollout[:, token, 2:]
        expected = (row / row.sum(1, keepdim=True)).view(2, 4, 5)
        torch.testing.assert_close(attention, expected, **NO_GAP)
    assert not torch.isclose(*maps).all()


def test_an_autoencoder_can_train_the_encoder():
    model = MaskedAutoencoder(
        model_of(), decoder_dim=8, decoder_depth=1, decoder_num_heads=2
    )
    randomize(model)
    images = images_for(model.encoder)
    mask = torch.arange(20).remainder(4).gt(0).expand(2, -1)
    prediction, _ = model(images, mask)
    assert prediction.shape == (2, 20, 36)
    model.loss((prediction, mask), images).backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    heads = ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
    assert without == {f"encoder.{name}" for name in heads}


# The losses.


def log_softmax_by_hand(row):
    largest = max(row)
    total = sum(math.exp(z - largest) for z in row)
    return [z - largest - math.log(total) for z in row]


def cross_entropy_by_hand(logits, labels, smoothing):
    """The mean over the images of -sum(q * log p)."""
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        k = len(row)
        if not isinstance(label, list):
            label = [float(c == label) for c in range(k)]
        for q, log_p in zip(label, log_softmax_by_hand(row), strict=True):
            total -= (q * (1 - smoothing) + smoothing / k) * log_p
    return total / len(logits)


def distance_by_hand(dist_logits, teacher_logits, temperature):
    """The mean over the images of T^2 * sum(q * log(q / p))."""
    total = 0.0
    pairs = zip(dist_logits.tolist(), teacher_logits.tolist(), strict=True)
    for student, teacher in pairs:
        log_p = log_softmax_by_hand([z / temperature for z in student])
        log_q = log_softmax_by_hand([z / temperature for z in teacher])
        for p, q in zip(log_p, log_q, strict=True):
            total += temperature**2 * math.exp(q) * (q - p)
    return total / len(dist_logits)


@st.composite
def batches(draw):
    """logits, dist_logits, labels, teacher_logits and a smoothing."""
    b, k = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    logits, dist_logits, teacher_logits, noise = 3 * torch.randn(
        4, b, k, generator=generator, dtype=torch.float64
    )
    labels = torch.randint(k, (b,), generator=generator)
    if draw(st.booleans()):
        labels = noise.softmax(dim=1)
    smoothing = draw(st.floats(0, 0.5))
    return (logits, dist_logits, labels, teacher_logits), smoothing


@given(batches())
@settings(deadline=None)
def test_hard_distillation_equals_sums_over_images_and_classes(batch):
    (logits, dist_logits, labels, teacher_logits), smoothing = batch
    rows = teacher_logits.tolist()
    classes = torch.tensor([row.index(max(row)) for row in rows])
    expected = 0.5 * cross_entropy_by_hand(logits, labels, smoothing)
    expected += 0.5 * cross_entropy_by_hand(dist_logits, classes, 0)
    loss = hard_distillation_loss(*batch[0], label_smoothing=smoothing)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, abs=1e-12, rel=1e-12)


@given(batches(), st.floats(0.3, 20), st.floats(0, 1))
@settings(deadline=None)
def test_soft_distillation_equals_sums_over_images_and_classes(
    batch, temperature, weight
):
    (logits, dist_logits, labels, teacher_logits), smoothing = batch
    expected = (1 - weight) * cross_entropy_by_hand(logits, labels, smoothing)
    expected += weight * distance_by_hand(
        dist_logits, teacher_logits, temperature
    )
    loss = soft_distillation_loss(
        *batch[0],
        temperature=temperature,
        weight=weight,
        label_smoothing=smoothing,
    )
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, abs=1e-11, rel=1e-11)


LABELS = torch.tensor([4, 0, 1])
B, K = 3, 5


def three_logits():
    return tuple(3 * random(B, K, seed=seed) for seed in (1, 2, 3))


def test_the_papers_temperature_and_weight_are_the_defaults():
    logits, dist_logits, teacher_logits = three_logits()
    loss = soft_distillation_loss(logits, dist_logits, LABELS, teacher_logits)
    expected = 0.9 * cross_entropy_by_hand(logits, LABELS, 0)
    expected += 0.1 * distance_by_hand(dist_logits, teacher_logits, 3)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    loss = hard_distillation_loss(logits, dist_logits, LABELS, teacher_logits)
    chosen = teacher_logits.argmax(1)
    expected = cross_entropy_by_hand(logits, LABELS, 0) / 2
    expected += cross_entropy_by_hand(dist_logits, chosen, 0) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def soft_gradient(temperature, weight=0.3):
    logits, dist_logits, teacher_logits = three_logits()
    dist_logits.requires_grad_()
    soft_distillation_loss(
        *(logits, dist_logits, LABELS, teacher_logits),
        temperature=temperature,
        weight=weight,
    ).backward()
    return dist_logits, teacher_logits


@pytest.mark.parametrize("temperature", [0.5, 1, 3, 10])
def test_the_gradient_is_the_difference_of_the_probabilities(temperature):
    dist_logits, teacher_logits = soft_gradient(temperature)
    p, q = (
        (z.detach() / temperature).softmax(1)
        for z in (dist_logits, teacher_logits)
    )
    expected = 0.3 * temperature * (p - q) / B
    torch.testing.assert_close(dist_logits.grad, expected, **NO_GAP)


def test_at_a_high_temperature_centered_logits_are_matched():
    dist_logits, teacher_logits = soft_gradient(1e6)
    p, q = (
        z.detach() - z.detach().mean(1, keepdim=True)
        for z in (dist_logits, teacher_logits)
    )
    expected = 0.3 * (p - q) / K / B
    torch.testing.assert_close(dist_logits.grad, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 3])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(temperature):
    z = three_logits()[0].requires_grad_()
    shifted = z.detach() + random(B, 1)  # the same probabilities
    loss = soft_distillation_loss(
        z, z, LABELS, shifted, temperature=temperature, weight=1
    )
    loss.backward()
    assert abs(loss.item()) < 1e-12
    assert z.grad.abs().max() < 1e-12


def test_the_teacher_stands_first_in_the_divergence():
    """By number: the teacher says 90 % and 10 %, the student half and half."""
    teacher = torch.tensor([[0.9, 0.1]], dtype=torch.float64).log()
    student = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    label = torch.tensor([0])
    soft = {"temperature": 1, "weight": 1}
    loss = soft_distillation_loss(student, student, label, teacher, **soft)
    assert loss.item() == pytest.approx(0.36806, abs=1e-5)
    other = soft_distillation_loss(teacher, teacher, label, student, **soft)
    assert other.item() == pytest.approx(0.51083, abs=1e-5)


def test_more_images_or_impossible_classes_do_not_dilute_the_distance():
    logits, dist_logits, teacher_logits = three_logits()
    given = (logits, dist_logits, LABELS, teacher_logits)
    expected = soft_distillation_loss(*given, weight=1)
    twice = soft_distillation_loss(*(torch.cat([x, x]) for x in given))
    assert twice.item() == pytest.approx(
        soft_distillation_loss(*given).item(), abs=1e-12
    )
    padded = [F.pad(z, (0, 95), value=-1e4) for z in three_logits()]
    loss = soft_distillation_loss(
        padded[0], padded[1], LABELS, padded[2], weight=1
    )
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)


def test_a_weight_of_0_leaves_out_the_teacher_and_1_the_labels():
    logits, dist_logits, teacher_logits = three_logits()
    none = soft_distillation_loss(
        *(logits, dist_logits, LABELS, teacher_logits),
        weight=0,
        label_smoothing=0.1,
    )
    expected = F.cross_entropy(logits, LABELS, label_smoothing=0.1)
    assert none.equal(expected)
    one, other = (
        soft_distillation_loss(
            logits, dist_logits, labels, teacher_logits, weight=1
        )
        for labels in (LABELS, (LABELS + 1) % K)
    )
    assert one.equal(other)


def test_only_the_teachers_class_counts_in_hard_distillation():
    logits, dist_logits, teacher_logits = three_logits()
    first, scaled, other = (
        hard_distillation_loss(logits, dist_logits, LABELS, teacher)
        for teacher in (
            teacher_logits,
            0.01 * teacher_logits + random(B, 1),
            -teacher_logits,
        )
    )
    assert first.equal(scaled)
    assert not first.isclose(other)


def test_one_head_given_twice_is_equation_3():
    z, _, teacher_logits = three_logits()
    loss = hard_distillation_loss(z, z, LABELS, teacher_logits)
    log_p = z.log_softmax(1)
    chosen = teacher_logits.argmax(1)
    expected = -sum(
        log_p[i, LABELS[i]] / 2 + log_p[i, chosen[i]] / 2 for i in range(B)
    )
    torch.testing.assert_close(loss, expected / B, **NO_GAP)


@pytest.mark.parametrize(
    "loss_fn", [hard_distillation_loss, soft_distillation_loss]
)
def test_large_logits_stay_finite_in_float32(loss_fn):
    z = torch.tensor([[1e4, -1e4, 0.0], [0.0, 1e4, -1e4]], requires_grad=True)
    loss = loss_fn(z, z, torch.tensor([1, 1]), z.detach().flip(1))
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()


def shapes_message(*shapes):
    got = f"{shapes[0]}, {shapes[1]} and {shapes[2]}"
    return (
        f"logits, dist_logits and teacher_logits must all be (B, K), got {got}"
    )


WRONG_SHAPES = {
    "no batch": ((5,), (5,), (), (5,)),
    "one head more": ((2, 5), (2, 6), (2,), (2, 5)),
    "another teacher": ((2, 5), (2, 5), (2,), (2, 6)),
    "another batch": ((2, 5), (2, 5), (2,), (3, 5)),
    "the head of another batch": ((2, 5), (1, 5), (2,), (2, 5)),
    "the teacher's class": ((2, 5), (2, 5), (2,), (2,)),
    "maps": ((2, 5, 1), (2, 5, 1), (2, 1), (2, 5, 1)),
}
each_loss = pytest.mark.parametrize(
    "loss_fn", [hard_distillation_loss, soft_distillation_loss]
)


@each_loss
@pytest.mark.parametrize(
    "shapes", WRONG_SHAPES.values(), ids=WRONG_SHAPES.keys()
)
def test_logits_of_other_shapes_are_refused(loss_fn, shapes):
    logits, dist_logits, labels, teacher_logits = map(torch.zeros, shapes)
    message = shapes_message(shapes[0], shapes[1], shapes[3])
    with pytest.raises(ValueError, match=re.escape(message)):
        loss_fn(logits, dist_logits, labels.long(), teacher_logits)


@each_loss
@pytest.mark.parametrize("shape", [(), (3,), (5,), (2, 1), (2, 6), (5, 2)])
def test_labels_of_other_shapes_are_refused(loss_fn, shape):
    z = torch.zeros(2, 5)
    message = f"labels must be (2,) or (2, 5), got {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        loss_fn(z, z, torch.zeros(shape).long(), z)


@each_loss
def test_the_answer_of_an_evaluation_is_not_taken_for_two_heads(loss_fn):
    model = model_of().eval()
    answer = model(images_for(model, batch=2))
    logits, dist_logits = answer  # the two images
    labels, teacher_logits = torch.tensor([0, 1]), random(2, 7)
    message = re.escape(shapes_message((7,), (7,), (2, 7)))
    with pytest.raises(ValueError, match=message):
        loss_fn(logits, dist_logits, labels, teacher_logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature must be positive, got 0"),
        ({"temperature": -1.5}, "temperature must be positive, got -1.5"),
        ({"temperature": math.nan}, "temperature must be positive, got nan"),
        ({"weight": -0.1}, "weight must be in 0 <= weight <= 1, got -0.1"),
        ({"weight": 1.1}, "weight must be in 0 <= weight <= 1, got 1.1"),
        ({"weight": math.nan}, "weight must be in 0 <= weight <= 1, got nan"),
    ],
)
def test_a_temperature_or_weight_out_of_range_is_refused(options, message):
    logits, dist_logits, teacher_logits = three_logits()
    with pytest.raises(ValueError, match=re.escape(message)):
        soft_distillation_loss(
            logits, dist_logits, LABELS, teacher_logits, **options
        )


# The teacher.


class Teacher(nn.Module):
    """A small CNN that keeps what it is shown."""

    def __init__(self, num_classes=7):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, num_classes)
        self.seen = []

    def forward(self, images):
        self.seen.append((images, self.training))
        x = self.norm(self.conv(images)).relu()
        return self.head(F.dropout(x.mean((2, 3)), 0.5, self.training))


def test_the_teacher_does_not_learn_and_does_not_change():
    teacher, images = randomize(Teacher()), random(4, 3, 12, 20)
    teacher(images)  # in training, so that the statistics are not the first
    before = state_of(teacher)
    expected = copy.deepcopy(teacher).eval()(images)
    ask, labels = ask_teacher(teacher), torch.arange(4)
    for _ in range(3):
        teacher.train()
        same, (same_labels, logits) = ask(images, labels)
        assert same is images
        assert same_labels is labels
        assert teacher.seen[-1][1] is False
        assert logits.equal(expected.detach())
        assert not logits.requires_grad
        assert logits.grad_fn is None
    assert torch.is_grad_enabled()
    for name, value in teacher.state_dict().items():
        assert value.equal(before[name]), name


def test_the_teacher_sees_the_images_after_mix():
    teacher = randomize(Teacher())
    mix = ask_teacher(teacher, lambda x, y: (x.flip(0) / 2, y + 1))
    images = random(2, 3, 12, 20)
    student_sees, (labels, _) = mix(images, torch.tensor([0, 4]))
    assert teacher.seen[0][0] is student_sees
    assert student_sees.equal(images.flip(0) / 2)
    assert labels.tolist() == [1, 5]


class Stop(Exception):
    pass


def run_deit(loss_fn, checkpoint=None, batches=None):
    """Three epochs of three batches with all that is random in the recipe."""
    pixels = torch.randint(
        256, (18, 3, 12, 12), generator=torch.Generator().manual_seed(0)
    ).to(torch.uint8)
    augmentation = deit_augmentation((12, 20), [0.5] * 3, [0.3] * 3)
    data = ImageDataset(pixels, torch.arange(18) % 7, augmentation)
    loader = DataLoader(data, batch_sampler=RepeatedAugmentation(18, 6))
    mix, left = deit_mix(7), batches

    def mix_or_stop(images, labels):
        nonlocal left
        if left == 0:
            raise Stop
        left = None if left is None else left - 1
        return mix(images, labels)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = DistilledVisionTransformer(
            **SMALL, drop_path=0.2, dropout=0.1
        )
        teacher = Teacher()
        history = fit(
            *(student, loader, DataLoader(data, 6)),
            epochs=3,
            loss_fn=lambda heads, targets: loss_fn(
                *heads, *targets, label_smoothing=0.1
            ),
            mix=ask_teacher(teacher, mix_or_stop),
            checkpoint=checkpoint,
        )
    return history, student.state_dict(), teacher


@each_loss
def test_an_interrupted_run_ends_with_the_same_bits(loss_fn, tmp_path):
    history, expected, teacher = run_deit(loss_fn)
    assert len(teacher.seen) == 9
    assert expected["head_dist.weight"].any()
    path = tmp_path / "run.pt"
    with pytest.raises(Stop):
        run_deit(loss_fn, path, batches=4)  # one in the second epoch
    again, weights, teacher = run_deit(loss_fn, path)
    assert len(teacher.seen) == 6
    assert again == history
    for name, value in weights.items():
        assert value.equal(expected[name]), name


# Repeated augmentation.


@given(st.integers(1, 5), st.integers(0, 12), st.integers(0, 40), st.data())
@settings(deadline=None)
def test_batches_hold_copies_of_a_few_images(repeats, more, rest, data):
    batch_size = repeats + more
    num_images = batch_size + rest
    sampler = RepeatedAugmentation(num_images, batch_size, repeats=repeats)
    torch.manual_seed(data.draw(st.integers(0, 99)))
    batches = list(sampler)
    assert len(batches) == len(sampler) == num_images // batch_size
    shown = []
    for batch in batches:
        counts = {i: batch.count(i) for i in batch}
        assert len(batch) == batch_size
        assert len(counts) == math.ceil(batch_size / repeats)
        assert max(counts.values()) <= repeats
        assert max(counts.values()) - min(counts.values()) <= 1
        if batch_size % repeats == 0:
            assert set(counts.values()) == {repeats}
            if batch_size > repeats:
                before = batch[-1:] + batch[:-1]
                assert all(a != b for a, b in zip(batch, before, strict=True))
        shown += counts
    assert len(set(shown)) == len(shown)  # an image is in one batch at most
    assert set(shown) <= set(range(num_images))


def test_the_order_follows_torchs_seed():
    sampler = RepeatedAugmentation(60, 12)
    torch.manual_seed(0)
    first, second = list(sampler), list(sampler)
    torch.manual_seed(0)
    assert list(sampler) == first
    assert second != first


def test_each_image_is_shown_equally_often():
    torch.manual_seed(0)
    sampler, epochs = RepeatedAugmentation(13, 6), 2000  # 4 of 13 images
    counts = torch.zeros(13)
    firsts = torch.zeros(13)
    for _ in range(epochs):
        for batch in sampler:
            counts[batch] += 1
        firsts[batch[0]] += 1
    for found, share in ((counts, 4 / 13), (firsts, 1 / 13)):
        std = math.sqrt(epochs * share * (1 - share))
        assert (found - epochs * share).abs().max() < 4.5 * std


def test_the_copies_of_an_image_are_augmented_differently():
    augmentation = deit_augmentation(8, [0.5], [0.5])
    pixels = random(12, 1, 16, 16).mul(255).to(torch.uint8)
    data = ImageDataset(pixels, torch.arange(12), augmentation)
    loader = DataLoader(data, batch_sampler=RepeatedAugmentation(12, 12))
    torch.manual_seed(0)
    ((images, labels),) = loader
    assert images.shape == (12, 1, 8, 8)
    for label in labels.unique():
        copies = images[labels == label]
        assert len(copies.unique(dim=0)) == len(copies) == 3


def test_mixup_mixes_no_image_with_its_own_copy():
    """Of the order a, a, a, b, b, b two thirds are mixed with themselves."""
    torch.manual_seed(0)
    batch = torch.tensor(next(iter(RepeatedAugmentation(30, 30))))
    mix = v2.MixUp(num_classes=30)
    own = {}
    for name, order in (("ours", batch), ("sorted", batch.sort()[0])):
        _, labels = mix(torch.zeros(30, 1, 1, 1), order)
        own[name] = ((labels > 0).sum(1) == 1).sum().item()
    assert own == {"ours": 0, "sorted": 20}


@pytest.mark.parametrize(
    ("num_images", "batch_size", "repeats"),
    [(5, 6, 3), (9, 2, 3), (9, 3, 0), (9, 3, -1), (9, 0, 0)],
)
def test_impossible_batches_are_refused(num_images, batch_size, repeats):
    message = (
        "repeats, batch_size and num_images must be 1 <= repeats <= batch_size "
        f"<= num_images, got {repeats}, {batch_size} and {num_images}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        RepeatedAugmentation(num_images, batch_size, repeats=repeats)


# The augmentation.

SIDE = 40
RAW = {"mean": [0.0] * 3, "std": [1.0] * 3}  # pixels stay as they are
STILL = {"crop_scale": (1.0, 1.0), "flip": 0.0, "erasing": 0.0}


def picture():
    """Waves and a little noise, from 13 to 243."""
    y, x = torch.meshgrid(*[torch.arange(SIDE)] * 2, indexing="ij")
    waves = torch.stack([(x / 5).sin(), (y / 4).cos(), ((x + y) / 7).sin()])
    noise = torch.rand(
        3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)
    )
    return (118 + 105 * waves + 20 * noise).to(torch.uint8)


def draw(augmentation, image, count, seed=0):
    torch.manual_seed(seed)
    return torch.stack([augmentation(image) for _ in range(count)])


@pytest.fixture(scope="module")
def draws():
    """What the two changes make of the picture, as bytes in float."""
    made = draw(deit_augmentation(SIDE, **RAW, **STILL), picture(), 2000)
    return (made * 255).round()


def near(count, total, share):
    return abs(count - total * share) < 4 * math.sqrt(
        total * share * (1 - share)
    )


def test_each_change_is_made_half_of_the_time(draws):
    """One of 14 changes is none: (1 - 1/2 * 13/14)^2 stay untouched."""
    same = (draws == picture()).flatten(1).all(1).sum().item()
    assert near(same, len(draws), (15 / 28) ** 2)


CHANGES = {
    "Rotate": 3,
    "ShearX": 3,
    "ShearY": 3,
    "TranslateXRel": 3,
    "TranslateYRel": 3,
    "ColorIncreasing": 1,
    "ContrastIncreasing": 1,
    "BrightnessIncreasing": 1,
    "SharpnessIncreasing": 1,
    "SolarizeIncreasing": 0,
    "AutoContrast": 1,
    "Equalize": 1,
}


def timms(name, level):
    """timm's results at this level, one for each sign, as 'rand-m9' has."""
    to_arguments = LEVEL_TO_ARG[name] or (lambda *_: ())
    python_random.seed(0)
    found = sorted({to_arguments(level, {}) for _ in range(50)})
    image = Image.fromarray(picture().permute(1, 2, 0).numpy())
    options = {"resample": Image.Resampling.BILINEAR, "fillcolor": (0, 0, 0)}
    results = [NAME_TO_OP[name](image, *args, **options) for args in found]
    return [torch.tensor(np.array(r)).permute(2, 0, 1) for r in results]


@pytest.mark.parametrize(("name", "bytes_off"), CHANGES.items())
def test_a_change_is_as_strong_as_timms_at_level_9(draws, name, bytes_off):
    weaker, same, stronger = (timms(name, level) for level in (8, 9, 10))
    has_level = LEVEL_TO_ARG[name] is not None
    for i, expected in enumerate(same):
        gaps = (draws - expected).abs().mean((1, 2, 3))
        assert gaps.min() <= bytes_off
        nearest = draws[gaps.argmin()]
        for other in (weaker[i], stronger[i]) if has_level else ():
            assert (nearest - other).abs().mean() > 2 * gaps.min()


def test_what_leaves_the_image_is_filled_with_the_mean():
    mean = [0.2, 0.5, 0.8]
    image = torch.full((3, 16, 16), 128, dtype=torch.uint8)
    augmentation = deit_augmentation(16, mean, [1.0] * 3, **STILL)
    made = draw(augmentation, image, 300)
    filled = (made.abs() < 1 / 255).all(1).flatten(1).any(1)  # of mean 0
    assert filled.sum() > 60


def test_the_crop_comes_first_and_is_bicubic():
    """The same seed crops the same way; some images are left at that."""
    image = torch.randint(256, (3, 30, 34), dtype=torch.uint8)
    for crop_scale in ((0.08, 1.0), (0.3, 0.5)):
        options = {} if crop_scale[0] == 0.08 else {"crop_scale": crop_scale}
        augmentation = deit_augmentation(
            (12, 20), **RAW, **options, flip=0, erasing=0
        )
        crop = v2.RandomResizedCrop(
            (12, 20), crop_scale, interpolation=v2.InterpolationMode.BICUBIC
        )
        same = 0
        for seed in range(150):
            made = draw(augmentation, image, 1, seed)[0] * 255
            expected = draw(crop, image, 1, seed)[0]
            same += made.round().equal(expected.float())
        assert near(same, 150, (15 / 28) ** 2)


@pytest.mark.parametrize(
    ("options", "share"), [({}, 0.5), ({"flip": 0.2}, 0.2), ({"flip": 1}, 1.0)]
)
def test_a_share_of_the_images_is_mirrored(options, share):
    image = picture()[:, :12, :12]
    augmentation = deit_augmentation(
        12, **RAW, **{**STILL, "flip": 0} | options
    )
    if not options:
        augmentation = deit_augmentation(
            12, **RAW, crop_scale=(1, 1), erasing=0
        )
    made = (draw(augmentation, image, 1000) * 255).round()
    kept, mirrored = (
        (made == other).flatten(1).all(1).sum().item()
        for other in (image, image.flip(2))
    )
    assert kept + mirrored > 200
    if share == 1:
        assert kept == 0
    else:
        assert near(mirrored, kept + mirrored, share)


def test_noise_is_put_on_last_with_mean_0_and_std_1():
    image, scale = picture(), {"mean": [0.2] * 3, "std": [0.05] * 3}
    clean, noisy, default = (
        deit_augmentation(SIDE, **scale, **options)
        for options in ({"erasing": 0}, {"erasing": 1}, {})
    )
    noise, erased = [], 0
    for seed in range(600):
        before, after = (
            draw(clean, image, 1, seed),
            draw(default, image, 1, seed),
        )
        erased += not before.equal(after)
        if seed < 60:
            after = draw(noisy, image, 1, seed)
            changed = (before != after).all(1)[0]
            assert 0.015 < changed.float().mean() < 0.35
            noise.append(after[0][:, changed].flatten())
    noise = torch.cat(noise)
    assert abs(noise.mean()) < 4.5 / math.sqrt(len(noise))
    assert abs(noise.std() - 1) < 4.5 / math.sqrt(2 * len(noise))
    assert near(erased, 600, 0.25)


KINDS = {
    "color": lambda x: x,
    "gray": lambda x: x[:1],
    "floats": lambda x: x / 255,
    "doubles": lambda x: x.double() / 255,
    "PIL": lambda x: Image.fromarray(x.permute(1, 2, 0).numpy()),
    "gray PIL": lambda x: Image.fromarray(x[0].numpy()),
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


@each_kind
def test_images_of_any_kind_and_size_are_taken(kind):
    channels = len(v2.functional.to_image(kind(picture())))
    augmentation = deit_augmentation((9, 7), [0.5] * channels, [0.5] * channels)
    torch.manual_seed(0)
    for _ in range(330):
        height, width = torch.randint(1, SIDE, (2,)).tolist()
        made = augmentation(kind(picture()[:, :height, :width].clone()))
        assert type(made) is torch.Tensor
        assert made.dtype == torch.float32
        assert made.shape == (channels, 9, 7)
        assert made.isfinite().all()


@pytest.mark.parametrize("name", ["floats", "doubles", "PIL"])
def test_the_same_image_in_other_numbers_gives_the_same_result(name):
    augmentation = deit_augmentation(16, **RAW, **STILL, magnitude=0)
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[:, :, 4:] = 255  # an edge, beyond which bicubic goes too far
    for seed in range(20):
        expected = draw(augmentation, image, 1, seed)
        made = draw(augmentation, KINDS[name](image), 1, seed)
        torch.testing.assert_close(made, expected, rtol=0, atol=3 / 255)


def test_the_same_seed_gives_the_same_image():
    augmentation = deit_augmentation(8, **RAW)
    first, again, other = (
        draw(augmentation, picture(), 4, s) for s in (0, 0, 1)
    )
    assert first.equal(again)
    assert not first.equal(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"magnitude": 31}, "magnitude must be an int in 0..30, got 31"),
        ({"magnitude": -1}, "magnitude must be an int in 0..30, got -1"),
        ({"magnitude": 9.5}, "magnitude must be an int in 0..30, got 9.5"),
        ({"magnitude": 27.0}, "magnitude must be"),
        (
            {"std": [1.0]},
            "mean and std must both have 1 or 3 numbers, got 3 and 1",
        ),
        ({"mean": [0.5] * 4, "std": [1.0] * 4}, "got 4 and 4"),
        ({"flip": 1.5}, "flip must be in 0..1, got 1.5"),
        ({"erasing": -0.1}, "erasing must be in 0..1, got -0.1"),
        ({"erasing": math.nan}, "erasing must be in 0..1, got nan"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        deit_augmentation(8, **RAW | options)


@pytest.mark.parametrize("magnitude", [0, 30])
def test_the_ends_of_the_range_of_strengths_are_taken(magnitude):
    augmentation = deit_augmentation(8, **RAW, magnitude=magnitude)
    assert draw(augmentation, picture(), 60).isfinite().all()


# MixUp and CutMix.


def test_a_batch_gets_mixup_or_cutmix_of_the_papers_strength():
    """Image i is i everywhere and has class i, so that labels tell all."""
    torch.manual_seed(0)
    mix, shares, cut = deit_mix(4), [], 0
    images = torch.arange(3.0)[:, None, None, None].expand(-1, 1, 8, 8)
    labels = torch.arange(3)
    for _ in range(3000):
        mixed, target = mix(images, labels)
        assert target.shape == (3, 4)
        assert (target >= 0).all()
        torch.testing.assert_close(target.sum(1), torch.ones(3))
        share = target[0, 0]  # one for the whole batch
        expected = F.one_hot(labels, 4)
        expected = share * expected + (1 - share) * expected.roll(1, 0)
        torch.testing.assert_close(target, expected)
        means = target[:, :3] @ torch.arange(3.0)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), means)
        if torch.isin(mixed, images).all():
            cut += 1
        else:
            shares.append(share)
    assert near(cut, 3000, 0.5)
    shares = torch.stack(shares)
    # The variance of Beta(a, a) is 1 / (4 * (2 * a + 1)).
    squares = (shares - 0.5).square()
    gap = squares.mean() - 1 / (4 * (2 * 0.8 + 1))
    assert abs(gap) < 4.5 * squares.std() / math.sqrt(len(shares))
    assert [t.alpha for t in mix.transforms] == [0.8, 1.0]
