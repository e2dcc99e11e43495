"""Third exercise of chapter 16, with the mistakes that learners make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_lessons.checks.candidate import Refusal, kind
from vit_lessons.checks.catalogue import Mistake, WrongForm, combine
from vit_lessons.checks.compare import same
from vit_lessons.checks.exercise import Case, Outcome
from vit_lessons.checks.part import (
    DROPOUT_IN_EVALUATION,
    RATIO,
    PartCase,
    normal,
    only_singles,
)
from vit_lessons.checks.patch_merging import (
    EPS,
    MERGING_MISTAKES,
    SEVERAL_MAPS,
    SwinExercise,
    firsts,
    merging,
)
from vit_lessons.checks.swin_block import (
    ATTENTION_MEANINGS,
    ATTENTION_MISTAKES,
    BLOCK_MISTAKES,
    DROP,
    QKV_BIAS,
    attend_by,
    block_by,
)
from vit_lessons.encoder_block import DropPath
from vit_lessons.swin_transformer import (
    SwinBlock,
    SwinTransformer,
)

Model = SwinTransformer
Maps = list[Tensor]


@dataclass(frozen=True)
class ModelCase(PartCase):
    """A call of the model.

    Args:
        maps: Call feature_maps, and not forward.
    """

    maps: bool = False


@dataclass(frozen=True)
class ModelExercise(SwinExercise):
    """A model that may return its maps, too."""

    def missing(self, candidate: Any, case: Case) -> tuple[str, ...]:
        if case.maps and not hasattr(candidate, "feature_maps"):
            return ("feature_maps",)
        return super().missing(candidate, case)

    def ready(self, candidate: Any, case: Case) -> Callable[..., Any]:
        module = super().ready(candidate, case)
        if case.maps:
            return lambda images: _facts(module.feature_maps(images))
        return module

    def run(self, candidate: Any, case: Case) -> Outcome:
        """Recognize other maps."""
        outcome = super().run(candidate, case)
        if case.maps and outcome.problem and isinstance(outcome.got, dict):
            others = _other_maps(self.build(case), *case.args)
            causes = (c for c, m in others if same(_facts(m), outcome.got))
            return replace(outcome, cause=next(causes, outcome.cause))
        if case.maps and isinstance(outcome.got, Refusal):
            return replace(outcome, cause=str(outcome.got))
        return outcome


def _facts(maps: Any) -> dict[str, Any] | None:
    if maps is None:
        return None
    if not isinstance(maps, list | tuple):
        raise Refusal(
            "feature_maps must return a list with the map of each stage, not "
            f"{kind(maps)}."
        )
    facts: dict[str, Any] = {"number of maps": len(maps)}
    for i, one in enumerate(maps):
        if not isinstance(one, Tensor):
            raise Refusal(f"The maps must be tensors, not {kind(one)}.")
        facts[f"map {i}"] = one
    return facts


def _other_maps(model: Model, images: Tensor) -> Iterator[tuple[str, Maps]]:
    """Maps that are not those which detectors read."""
    x = model.patch_embed(images)
    early, maps = [], []
    for stage in model.layers:
        early.append(stage.downsample(x))
        x = stage(x)
        maps.append(x)
    right = [m.movedim(-1, 1) for m in maps]
    last = model.norm(maps[-1])
    yield (
        "The last map is normalized: feature_maps returns each map as its "
        "stage does, before the last norm.",
        [*right[:-1], last.movedim(-1, 1)],
    )
    channels_last = (
        "The features are the last axis: detectors read maps as images, "
        "(B, D, gh, gw)."
    )
    yield channels_last, maps
    yield channels_last, [*maps[:-1], last]
    yield (
        "Rows and columns are exchanged: the maps are (B, D, gh, gw).",
        [m.mT for m in right],
    )
    yield (
        "The maps are sequences: they must be (B, D, gh, gw).",
        [m.flatten(1, 2) for m in maps],
    )
    yield (
        "The maps are those before the blocks: return what each stage returns.",
        [m.movedim(-1, 1) for m in early],
    )
    merged = [m.movedim(-1, 1) for m in early[1:]]
    yield (
        "The maps are those after the merging: return what the blocks of each "
        "stage return, before the next stage merges.",
        [*merged, right[-1]],
    )
    yield (
        "The map of each stage is returned, and not the last alone.",
        right[-1:],
    )


# The model, with some steps exchanged.


def _norm_and_mean(self: Model, x: Tensor) -> Tensor:
    return self.norm(x).mean((1, 2))


def _model(
    embed: Callable = lambda self, images: self.patch_embed(images),
    merge: Callable = lambda self, s, x: self.layers[s].downsample(x),
    order: Callable = lambda blocks: blocks,
    step: Callable = lambda self, s, i, block, x: block(x),
    stage_end: Callable = lambda self, s, x: x,
    read: Callable = _norm_and_mean,
    classify: Callable = lambda self, x: self.head(x),
) -> Callable[[Model, Tensor], Tensor]:
    """SwinTransformer.forward, with some steps exchanged."""

    def form(self: Model, images: Tensor) -> Tensor:
        x = embed(self, images)
        for s, stage in enumerate(self.layers):
            x = merge(self, s, x)
            for i, block in order(list(enumerate(stage.blocks))):
                x = step(self, s, i, block, x)
            x = stage_end(self, s, x)
        return classify(self, read(self, x))

    return form


def _shifts(rule: Callable[[Model, int, int, int], int]) -> dict[str, Any]:
    """All blocks with the shift that a rule gives for a window of side m."""

    def step(
        self: Model, s: int, i: int, block: SwinBlock, x: Tensor
    ) -> Tensor:
        def amount(_: Any, window: Any, grid: Any) -> tuple[int, ...]:
            pairs = zip(window, grid, strict=True)
            return tuple(rule(self, s, i, m) if m < g else 0 for m, g in pairs)

        return block_by(attend=attend_by(amount=amount))(block, x)

    return {"step": step}


def _rates(rule: Callable[..., float]) -> dict[str, Any]:
    """All blocks with the drop-path of a rule of (p, s, i, depths)."""

    def step(
        self: Model, s: int, i: int, block: SwinBlock, x: Tensor
    ) -> Tensor:
        depths = _depths(self)
        p = self.layers[-1].blocks[-1].drop_path.drop_path
        path = DropPath(rule(p, s, i, depths)).train(self.training)

        def drop(_: SwinBlock, branch: Tensor) -> Tensor:
            return path(branch)

        return block_by(drop=drop, drop_again=drop)(block, x)

    return {"step": step}


def _depths(self: Model) -> list[int]:
    return [len(stage.blocks) for stage in self.layers]


def _ahead(s: int, i: int, depths: list[int]) -> int:
    """How many blocks come before block i of stage s."""
    return sum(depths[:s]) + i


def _without_norm(self: Model, images: Tensor) -> Tensor:
    return self.patch_embed.proj(images).movedim(1, -1)


BY_DEPTH = (
    "over all blocks of the model it rises evenly, from 0 in the first one to "
    "drop_path in the last one"
)
POOL = "The head reads the mean of all tokens of the last map, after the norm."

MODEL_MISTAKES = (
    Mistake(
        "The norm of the patch embedding is not used: it follows the "
        "projection.",
        {"embed": _without_norm},
    ),
    Mistake(
        "Rows and columns of the patches are exchanged.",
        {"embed": lambda self, x: self.patch_embed(x).transpose(1, 2)},
    ),
    Mistake(
        "Positions are added to the patches: in Swin they are in the biases of "
        "the windows alone.",
        {
            "embed": lambda self, x: (
                (y := self.patch_embed(x))
                + torch.linspace(-1, 1, y[0].numel()).view_as(y[0])
            )
        },
    ),
    Mistake(
        "No block shifts its windows: in each stage blocks 1, 3, ... do, by "
        "half a window.",
        _shifts(lambda self, s, i, m: 0),
    ),
    Mistake(
        "All blocks shift their windows: in each stage blocks 0, 2, ... do "
        "not.",
        _shifts(lambda self, s, i, m: m // 2),
    ),
    Mistake(
        "The first of two blocks shifts its windows: the second one does.",
        _shifts(lambda self, s, i, m: m // 2 * (i % 2 == 0)),
    ),
    Mistake(
        "The blocks are counted through the whole model: each stage begins "
        "with a block that does not shift.",
        _shifts(
            lambda self, s, i, m: m // 2 * (_ahead(s, i, _depths(self)) % 2)
        ),
    ),
    Mistake(
        "The windows shift by another number of tokens: by half a window, "
        "rounded down.",
        _shifts(lambda self, s, i, m: (m + 1) // 2 % m * (i % 2)),
        _shifts(lambda self, s, i, m: i % 2),
    ),
    Mistake(
        "The blocks of a stage are applied from the last to the first.",
        {"order": lambda blocks: blocks[::-1]},
    ),
    Mistake(
        "Not all blocks of a stage are applied: go through all of them.",
        {"order": lambda blocks: blocks[:1]},
        {"order": lambda blocks: blocks[-1:]},
    ),
    Mistake(
        "A norm follows each stage: the only norms outside the blocks are in "
        "the patch embedding, in the merging, and after the last stage.",
        {"stage_end": lambda self, s, x: F.layer_norm(x, x.shape[-1:])},
    ),
    Mistake(
        "The last norm is missing: normalize the tokens, then average them.",
        {"read": lambda self, x: x.mean((1, 2))},
    ),
    Mistake(
        "The norm comes after the mean: normalize the tokens first, then "
        "average them.",
        {"read": lambda self, x: self.norm(x.mean((1, 2)))},
    ),
    Mistake(
        f"One token is read: there is no class token. {POOL}",
        {"read": lambda self, x: self.norm(x)[:, 0, 0]},
    ),
    Mistake(
        f"The tokens are summed or their largest numbers are read. {POOL}",
        {"read": lambda self, x: self.norm(x).sum((1, 2))},
        {"read": lambda self, x: self.norm(x).amax((1, 2))},
    ),
    Mistake(
        f"Axes are left over. {POOL}",
        {"read": lambda self, x: self.norm(x)},
        {"read": lambda self, x: self.norm(x).mean((1, 2), keepdim=True)},
    ),
    Mistake(
        "The head is not used: the result is (B, K), one logit for each class.",
        {"classify": lambda self, x: x},
    ),
    Mistake(
        "The head returns logits: nothing follows it, and F.cross_entropy "
        "takes the softmax itself.",
        {"classify": lambda self, x: self.head(x).softmax(-1)},
        {"classify": lambda self, x: self.head(x).relu()},
    ),
    Mistake(
        f"drop_path is not used by both branches of all blocks: {BY_DEPTH}.",
        _rates(lambda p, s, i, depths: 0.0),
    ),
    Mistake(
        f"drop_path is the same in all blocks: {BY_DEPTH}.",
        _rates(lambda p, s, i, depths: p),
    ),
    Mistake(
        f"drop_path is the same in all blocks of a stage: {BY_DEPTH}.",
        _rates(lambda p, s, i, depths: p * s / max(len(depths) - 1, 1)),
        _rates(lambda p, s, i, depths: p * (s + 1) / len(depths)),
    ),
    Mistake(
        f"drop_path begins anew in each stage: {BY_DEPTH}.",
        _rates(lambda p, s, i, depths: p * i / max(depths[s] - 1, 1)),
    ),
    Mistake(
        f"drop_path has another first or last value: {BY_DEPTH}.",
        _rates(
            lambda p, s, i, depths: p * (_ahead(s, i, depths) + 1) / sum(depths)
        ),
        _rates(lambda p, s, i, depths: p * _ahead(s, i, depths) / sum(depths)),
    ),
    Mistake(
        f"drop_path falls with depth: {BY_DEPTH}.",
        _rates(
            lambda p, s, i, depths: (
                p * (1 - _ahead(s, i, depths) / (sum(depths) - 1))
            )
        ),
    ),
)

# Mistakes in the parts that readers make again when they write the model.
IN_MERGING = (*MERGING_MISTAKES[:4], MERGING_MISTAKES[5], MERGING_MISTAKES[8])
IN_BLOCKS = (
    *BLOCK_MISTAKES[:6],
    *ATTENTION_MISTAKES[1:4],
    ATTENTION_MISTAKES[8],
)


def _model_forms() -> Iterator[WrongForm]:
    yield from only_singles(combine(_model, *MODEL_MISTAKES))
    for wrong in only_singles(combine(merging, *firsts(IN_MERGING))):

        def merge(
            self: Model, s: int, x: Tensor, form: Callable = wrong.form
        ) -> Tensor:
            return form(self.layers[s].downsample, x) if s else x

        cause = f"In the merging: {wrong.cause}"
        yield WrongForm(cause, _model(merge=merge))
    for wrong in only_singles(combine(block_by, *firsts(IN_BLOCKS))):

        def step(
            self: Model,
            s: int,
            i: int,
            block: SwinBlock,
            x: Tensor,
            form: Callable = wrong.form,
        ) -> Tensor:
            return form(block, x)

        yield WrongForm(f"In the blocks: {wrong.cause}", _model(step=step))


# Tokens so large that eps does not show.
LARGE = {"patch_embed.norm": 10.0, "layers.1.downsample.reduction": 10.0}


def _case(
    label: str,
    cause: str | None = None,
    *,
    batch: int = 1,
    copies: int = 1,
    image: tuple[int, int] | None = None,
    mode: str = "training",
    std: float = 1.0,
    is_apart: bool = False,
    factors: dict[str, float] | None = None,
    maps: bool = False,
    **init: Any,
) -> Case:
    init = {
        "img_size": 8,
        "patch_size": 2,
        "in_chans": 3,
        "num_classes": 5,
        "embed_dim": 4,
        "depths": (2, 1),
        "num_heads": (1, 2),
        "window_size": 2,
    } | init
    if image is None:
        size = init["img_size"]
        image = (size,) * 2 if isinstance(size, int) else size
    images = normal(batch, init["in_chans"], *image, std=std)
    images = images.repeat(copies, 1, 1, 1)
    return ModelCase(
        label,
        (images,),
        cause,
        {},
        init,
        mode,
        is_apart or maps,
        factors or LARGE,
        maps,
    )


NO_ATTENTION = dict.fromkeys(
    (
        f"layers.{block}.attn.proj"
        for block in ("0.blocks.0", "1.blocks.0", "1.blocks.1")
    ),
    0.0,
)
OTHER_SIZE = (
    "Right for images of img_size only: take the map from the images, and pad "
    "it where windows do not tile it."
)
MAPS = "feature_maps returns the map of each stage, (B, D, gh, gw)."
ALL_DIFFERENT = {
    "batch": 2,
    "img_size": (20, 12),
    "patch_size": (2, 1),
    "in_chans": 1,
    "num_classes": 7,
    "depths": (2, 1, 2),
    "num_heads": (2, 1, 4),
    "window_size": (3, 2),
}

MODEL = ModelExercise(
    SwinTransformer,
    cases=(
        _case("one image, stages of 2 and 1 blocks"),
        _case(
            "tokens with small numbers",
            EPS,
            std=3e-3,
            is_apart=True,
            factors={
                "patch_embed.proj.bias": 3e-3,
                "patch_embed.norm": 3e-3,
                "layers.1.downsample.reduction": 3e-3,
            }
            | dict.fromkeys(
                (
                    f"layers.{block}.{end}"
                    for block in ("0.blocks.0", "0.blocks.1", "1.blocks.0")
                    for end in ("attn.proj", "mlp.fc2")
                ),
                3e-3,
            ),
        ),
        _case("two images", SEVERAL_MAPS, batch=2),
        _case(
            "stages of 1 and 2 blocks",
            "Each stage begins with a block that does not shift, and merging "
            "comes between two stages.",
            img_size=16,
            depths=(1, 2),
        ),
        _case(
            "one stage",
            "Right for several stages only.",
            depths=(2,),
            num_heads=(1,),
        ),
        _case(
            "a window of (4, 3)",
            "The windows shift by half a window, rounded down, along each "
            "axis.",
            img_size=16,
            window_size=(4, 3),
        ),
        _case(
            "an image of 8 x 24, a window of 3",
            "Right for square images only: the window is cut to a smaller map "
            "along each axis on its own.",
            img_size=(8, 24),
            window_size=3,
        ),
        _case("an image of another size", OTHER_SIZE, image=(12, 20)),
        _case(
            "an odd map",
            "In a map with odd rows or columns merging adds zeros below and "
            "on the right.",
            img_size=(10, 14),
        ),
        _case("mlp_ratio=2.5", RATIO, mlp_ratio=2.5),
        _case("qkv_bias=False", QKV_BIAS, qkv_bias=False),
        _case(
            "num_classes=0",
            "With num_classes=0 there is no head: return what it would read.",
            num_classes=0,
            is_apart=True,
        ),
        _case("feature_maps", MAPS, batch=2, img_size=(8, 12), maps=True),
        _case(
            "drop_path=0.5 in evaluation",
            DROPOUT_IN_EVALUATION,
            batch=2,
            mode="evaluation",
            drop_path=0.5,
        ),
        _case(
            "drop_path=0.5 in training, no attention",
            f"drop_path drops branches: {BY_DEPTH}.",
            copies=400,  # enough for all kinds of results
            img_size=4,
            depths=(1, 2),
            drop_path=0.5,
            factors=NO_ATTENTION,
        ),
        _case(
            "drop_path=0.5 in training",
            DROP,
            copies=60,
            img_size=4,
            depths=(1, 1),
            drop_path=0.5,
            is_apart=True,
        ),
        _case("all axes different", **ALL_DIFFERENT),
    ),
    wrong_forms=_model_forms,
    meanings={
        r"pos_embed": (
            "Swin has no table of positions: they are in the biases of the "
            "windows."
        ),
        r"cls_token": (
            "Swin has no class token: the head reads the mean of all tokens."
        ),
        r"not expected: .*layers\.0\.downsample": (
            "Merging stands at the beginning of all stages but the first, as "
            "in timm; in the authors' code it stands at the end of all but "
            "the last."
        ),
        r"bias_table .*\((\d+), \d+\), and yours has \(\1, \d+\)": (
            "num_heads has a number for each stage, and each head its own bias."
        ),
        r"bias_table .*\(\d+, (\d+)\), and yours has \(\d+, \1\)": (
            "A window that is larger than the map of its stage is cut to that "
            "map, along each axis, so its table of biases has fewer rows."
        ),
        **ATTENTION_MEANINGS,
        r"missing: [^;]*patch_embed\.norm": (
            "A norm follows the projection of the patch embedding."
        ),
        r"missing: ([^;]*, )?norm\.weight": (
            "A norm comes after the last stage, before the mean."
        ),
        r"not expected: .*head\.(weight|bias)": (
            "The last layer is named head.fc, as in timm, and so in published "
            "weights."
        ),
        r"layers\.1\.(downsample|blocks\.0\.norm1)\.\S+ must": (
            "Merging makes 2 D of the 4 D features: each stage is twice as "
            "wide as the one before it."
        ),
    },
)

EXERCISES = (MODEL,)
