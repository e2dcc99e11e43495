"""Exercises of chapter 07, with the mistakes that learners make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_lessons.checks.catalogue import Mistake, WrongForm, combine
from vit_lessons.checks.encoder_block import ENCODER_BLOCK, EPS
from vit_lessons.checks.exercise import Case
from vit_lessons.checks.part import (
    DROPOUT_IN_EVALUATION,
    DROPOUT_NOT_USED,
    EVALUATION,
    RATIO,
    PartCase,
    PartExercise,
    normal,
    only_singles,
)
from vit_lessons.checks.patch_embedding import PATCH_EMBED
from vit_lessons.vision_transformer import VisionTransformer

Model = VisionTransformer
Blocks = list[Callable[[Tensor], Tensor]]


def _place(self: Model, tokens: Tensor) -> Tensor:
    return _with_token(self, tokens) + self.pos_embed


def _with_token(self: Model, tokens: Tensor) -> Tensor:
    return torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1)


def _with_token_last(self: Model, tokens: Tensor) -> Tensor:
    return torch.cat([tokens, self.cls_token.expand(len(tokens), -1, -1)], 1)


def _one_by_one(self: Model, blocks: Blocks, x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def _read(self: Model, x: Tensor) -> Tensor:
    return x[:, 0] if self.pool == "cls" else x[:, 1:].mean(1)


def _always(read: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda self, x: read(x)


def _for_mean(read: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda self, x: x[:, 0] if self.pool == "cls" else read(x)


def _model(
    cut: Callable = lambda self, images: self.patch_embed(images),
    place: Callable = _place,
    block: Callable = lambda block, x: block(x),
    stack: Callable = _one_by_one,
    normalize: Callable = lambda self, x: self.norm(x),
    read: Callable = _read,
    classify: Callable = lambda self, x: self.head(x),
    end: Callable = lambda logits: logits,
) -> Callable[[Model, Tensor], Tensor]:
    """VisionTransformer.forward, with some steps exchanged."""

    def form(self: Model, images: Tensor) -> Tensor:
        blocks = [lambda x, b=b: block(b, x) for b in self.blocks]
        x = self.dropout(place(self, cut(self, images)))
        x = normalize(self, stack(self, blocks, x))
        return end(classify(self, read(self, x)))

    return form


def _norm_after_pooling(self: Model, x: Tensor) -> Tensor:
    return self.norm(_read(self, x))


def _columns_first(self: Model, images: Tensor) -> Tensor:
    return self.patch_embed.proj(images).mT.flatten(2).mT


def _over_the_batch(self: Model, blocks: Blocks, x: Tensor) -> Tensor:
    return _one_by_one(self, blocks, x.transpose(0, 1)).transpose(0, 1)


def _positions_after(self: Model, blocks: Blocks, x: Tensor) -> Tensor:
    return _one_by_one(self, blocks, x) + self.pos_embed


def _positions_in_each(self: Model, blocks: Blocks, x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x + self.pos_embed)
    return x


def _norm_in_each(self: Model, blocks: Blocks, x: Tensor) -> Tensor:
    for block in blocks:
        x = self.norm(block(x))
    return x


def _residual_around(self: Model, blocks: Blocks, x: Tensor) -> Tensor:
    for block in blocks:
        x = x + block(x)
    return x


def _norm_first(self: Model, blocks: Blocks, x: Tensor) -> Tensor:
    return _one_by_one(self, blocks, self.norm(x))


def _no_token(self: Model, tokens: Tensor) -> Tensor:
    return tokens + self.pos_embed[:, 1:]


TOKEN_LAST = (
    "The class token is at the end: it is the first token, in front of the "
    "patches."
)
NO_TOKEN = (
    "The class token is missing: put it in front of the patches, and read it "
    "after the blocks."
)
TOKEN_WITHOUT_POSITION = (
    "The class token has no position: put it in front of the patches first, "
    "then add the whole position table."
)
MEAN_OF_ALL = "The class token is in the mean: average the patch tokens alone."
LOGITS = "The head returns logits: nothing follows the head."

MODEL_MISTAKES = (
    Mistake(
        "The patches are flattened column by column: they must go row by row.",
        {"cut": _columns_first},
    ),
    Mistake(
        "The positions are missing: add pos_embed before the first block.",
        {"place": _with_token},
    ),
    Mistake(
        TOKEN_WITHOUT_POSITION,
        {"place": lambda s, x: _with_token(s, x + s.pos_embed[:, 1:])},
    ),
    Mistake(
        f"{TOKEN_WITHOUT_POSITION} Row 0 of the table is the class token's.",
        {"place": lambda s, x: _with_token(s, x + s.pos_embed[:, :-1])},
    ),
    Mistake(
        TOKEN_LAST,
        {
            "place": lambda s, x: _with_token_last(s, x) + s.pos_embed,
            "read": lambda self, x: (
                x[:, -1] if self.pool == "cls" else x[:, :-1].mean(1)
            ),
        },
        {"place": lambda s, x: _with_token_last(s, x) + s.pos_embed},
        {
            "place": lambda s, x: (
                _with_token_last(s, x) + s.pos_embed.roll(-1, 1)
            ),
        },
    ),
    Mistake(
        "The positions are shifted: row 0 of the table belongs to the class "
        "token, row 1 to the first patch.",
        {"place": lambda s, x: _with_token(s, x) + s.pos_embed.roll(-1, 1)},
    ),
    Mistake(
        NO_TOKEN,
        {"place": _no_token},
        {"place": lambda s, x: x + s.pos_embed[:, :-1]},
        {"place": lambda s, x: x},
        {"place": _no_token, "read": _always(lambda x: x.mean(1))},
        {
            "place": lambda s, x: x + s.pos_embed[:, :-1],
            "read": _always(lambda x: x.mean(1)),
        },
        {
            "place": lambda s, x: x,
            "read": _always(lambda x: x.mean(1)),
        },
    ),
    Mistake(
        "The class token is not used: a new token of zeros or ones stands in "
        "its place.",
        {"place": lambda s, x: F.pad(x, (0, 0, 1, 0)) + s.pos_embed},
        {"place": lambda s, x: F.pad(x, (0, 0, 1, 0), value=1) + s.pos_embed},
    ),
    Mistake(
        "The class token is added to the patches: it is a token of its own.",
        {"place": lambda s, x: _place(s, x + s.cls_token)},
        {"place": lambda s, x: _no_token(s, x + s.cls_token)},
    ),
    Mistake(
        "The positions are multiplied: add them.",
        {"place": lambda s, x: _with_token(s, x) * s.pos_embed},
    ),
    Mistake(
        "The positions are subtracted: add them.",
        {"place": lambda s, x: _with_token(s, x) - s.pos_embed},
    ),
    Mistake(
        "The tokens are multiplied before the positions are added: ViT does "
        "not scale them.",
        {
            "place": lambda s, x: (
                _with_token(s, x) * x.shape[-1] ** 0.5 + s.pos_embed
            )
        },
        {
            "place": lambda s, x: (
                _with_token(s, x * x.shape[-1] ** 0.5) + s.pos_embed
            )
        },
    ),
    Mistake(
        "All tokens get the position of the first one: add row i of the table "
        "to token i.",
        {"place": lambda s, x: _with_token(s, x) + s.pos_embed[:, :1]},
    ),
    Mistake(
        "The positions are added after the blocks: add them before the first "
        "one.",
        {"place": _with_token, "stack": _positions_after},
    ),
    Mistake(
        "The positions are added more than once: add them once, before the "
        "first block.",
        {"place": _with_token, "stack": _positions_in_each},
        {"stack": _positions_in_each},
        {"stack": _positions_after},
    ),
    Mistake(
        "A norm comes before the first block: the only norm outside the blocks "
        "comes after the last one.",
        {"stack": _norm_first},
        {"stack": _norm_first, "normalize": lambda self, x: x},
        {"place": lambda s, x: F.layer_norm(_place(s, x), x.shape[-1:])},
    ),
    Mistake(
        "The last norm is applied after every block: it comes once, after the "
        "last one.",
        {"stack": _norm_in_each},
        {"stack": _norm_in_each, "normalize": lambda self, x: x},
    ),
    Mistake(
        "Each block is added to its own input: a block has its residual "
        "connections inside.",
        {"stack": _residual_around},
    ),
    Mistake(
        "No block is applied.",
        {"stack": lambda self, blocks, x: x},
    ),
    Mistake(
        "Only the first block is applied: go through all of them.",
        {"stack": lambda self, blocks, x: blocks[0](x)},
    ),
    Mistake(
        "Only the last block is applied: each block reads what the one before "
        "it returned.",
        {"stack": lambda self, blocks, x: blocks[-1](x)},
    ),
    Mistake(
        "One block is left out: go through all of them.",
        {"stack": lambda s, blocks, x: _one_by_one(s, blocks[:-1], x)},
        {"stack": lambda s, blocks, x: _one_by_one(s, blocks[1:], x)},
    ),
    Mistake(
        "The same block is applied again and again: each block has its own "
        "weights.",
        {
            "stack": lambda s, blocks, x: _one_by_one(
                s, blocks[:1] * len(blocks), x
            )
        },
        {
            "stack": lambda s, blocks, x: _one_by_one(
                s, blocks[-1:] * len(blocks), x
            )
        },
    ),
    Mistake(
        "The blocks are applied from the last to the first: begin with block "
        "0.",
        {"stack": lambda s, blocks, x: _one_by_one(s, blocks[::-1], x)},
    ),
    Mistake(
        "The results of the blocks are added up: each block reads what the one "
        "before it returned.",
        {"stack": lambda s, blocks, x: sum(block(x) for block in blocks)},
        {"stack": lambda s, blocks, x: x + sum(block(x) for block in blocks)},
    ),
    Mistake(
        "The class token hears from no patch: the blocks run over the batch, "
        "which is the first axis, or a causal mask hides the patches.",
        {"stack": _over_the_batch},
    ),
    Mistake(
        "The last norm is missing: norm comes after the last block.",
        {"normalize": lambda self, x: x},
    ),
    Mistake(
        "The last norm is applied twice: once is right.",
        {"normalize": lambda self, x: self.norm(self.norm(x))},
    ),
    Mistake(
        'The norm comes after the mean: with pool="mean" normalize the tokens '
        "first, then average them.",
        {"normalize": lambda self, x: x, "read": _norm_after_pooling},
    ),
    Mistake(
        "The last token is read: the class token is the first one.",
        {"read": lambda self, x: x[:, -1]},
        {
            "read": lambda self, x: (
                x[:, -1] if self.pool == "cls" else x[:, 1:].mean(1)
            )
        },
    ),
    Mistake(
        "The first patch is read: the class token is token 0.",
        {"read": lambda self, x: x[:, 1]},
    ),
    Mistake(
        "The tokens of the first image are read: the batch is the first axis, "
        "x[:, 0].",
        {"read": lambda self, x: x[0]},
    ),
    Mistake(
        'The mean of the tokens is read: with pool="cls" read the class token.',
        {"read": _always(lambda x: x[:, 1:].mean(1))},
        {"read": _always(lambda x: x.mean(1))},
        {"read": _always(lambda x: x[:, :-1].mean(1))},
    ),
    Mistake(
        "The tokens are summed or their largest numbers are read: with "
        'pool="cls" read the class token.',
        {"read": _always(lambda x: x.sum(1))},
        {"read": _always(lambda x: x.amax(1))},
        {"read": _always(lambda x: x[:, 1:].sum(1))},
        {"read": _always(lambda x: x[:, 1:].amax(1))},
    ),
    Mistake(MEAN_OF_ALL, {"read": _for_mean(lambda x: x.mean(1))}),
    Mistake(
        'pool is not used: with pool="mean" read the mean of the patch tokens.',
        {"read": _always(lambda x: x[:, 0])},
    ),
    Mistake(
        "The tokens are summed: average the patch tokens.",
        {"read": _for_mean(lambda x: x[:, 1:].sum(1))},
        {"read": _for_mean(lambda x: x.sum(1))},
    ),
    Mistake(
        "Every token goes to the head: read one vector for each image first, "
        "so that the result is (B, K).",
        {"read": _always(lambda x: x)},
        {"read": _always(lambda x: x[:, 1:])},
    ),
    Mistake(
        "Axis 1 stays: read the class token as x[:, 0], so that the result is "
        "(B, K).",
        {"read": _always(lambda x: x[:, :1])},
    ),
    Mistake(
        "The head is missing: the result is (B, K), one logit for each class.",
        {"classify": lambda self, x: x},
    ),
    Mistake(
        "The bias of the head is missing.",
        {"classify": lambda self, x: x @ self.head.weight.T},
    ),
    Mistake(
        "An activation comes before the head: the head reads the normalized "
        "token as it is.",
        {"classify": lambda self, x: self.head(F.relu(x))},
        {"classify": lambda self, x: self.head(F.gelu(x))},
        {"classify": lambda self, x: self.head(torch.tanh(x))},
    ),
    Mistake(
        f"{LOGITS} F.cross_entropy takes the softmax itself.",
        {"end": lambda logits: logits.softmax(-1)},
        {"end": lambda logits: logits.log_softmax(-1)},
        {"end": lambda logits: logits.softmax(0)},
        {"end": lambda logits: logits.sigmoid()},
    ),
    Mistake(
        LOGITS,
        {"end": F.relu},
        {"end": F.gelu},
        {"end": torch.tanh},
        {"end": F.silu},
    ),
    Mistake(
        "The classes are returned: return the logits, (B, K).",
        {"end": lambda logits: logits.argmax(-1)},
    ),
)


def _patch_forms() -> Iterator[WrongForm]:
    """Mistakes inside the patch embedding that leave all patches there."""
    for wrong in only_singles(PATCH_EMBED.wrong_forms()):
        if any(words in wrong.cause for words in NOT_IN_A_MODEL):
            continue

        def cut(
            self: Model, images: Tensor, form: Callable = wrong.form
        ) -> Tensor:
            return form(self.patch_embed, images)

        yield WrongForm(wrong.cause, cut)


def _model_forms() -> Iterator[WrongForm]:
    yield from only_singles(combine(_model, *MODEL_MISTAKES))
    for wrong in only_singles(ENCODER_BLOCK.wrong_forms()):
        if not any(words in wrong.cause for words in NOT_IN_A_MODEL):
            yield WrongForm(_where("blocks", wrong), _model(block=wrong.form))
    for wrong in _patch_forms():
        cause = _where("patch embedding", wrong)
        yield WrongForm(cause, _model(cut=wrong.form))
    # Of each mistake the first form alone, or there would be too many pairs.
    firsts = [Mistake(m.cause, m.variants[0]) for m in MODEL_MISTAKES]
    pairs = combine(_model, *firsts)
    yield from (wrong for wrong in pairs if wrong.cause.startswith(TWO))


TWO = "There are two mistakes."
NOT_IN_A_MODEL = (
    "class token comes in chapter 02",
    "column by column",  # the model has this mistake too
    "The last two axes are swapped",  # these stop where the token is added
    "The tokens are averaged",
    "bias is not used",
    "The bias is",  # a block of this model gets no bias
    "The bias has",
    "The bias comes",
    "num_queries is not used",
    "that do not ask",
    "x is added once more",  # each block is added to its own input
    "Attention runs over the batch",  # the blocks do
    "Queries and keys are multiplied number",  # stops as k untransposed does
)


def _where(part: str, wrong: WrongForm) -> str:
    if wrong.cause.startswith("In the "):
        return wrong.cause
    return f"In the {part}: {wrong.cause}"


SEVERAL_IMAGES = (
    "Right for one image, wrong for several: the images of a batch do not see "
    "each other."
)
OTHER_SIZE = (
    "An image of another size is accepted, and its patches get positions of "
    "other places: raise a ValueError when an image is not of img_size."
)

ERRORS = {
    "Sizes of tensors must match except in dimension 1": (
        "The class token is one for all images, (1, 1, D): expand it to the "
        "batch, cls_token.expand(B, -1, -1), before torch.cat."
    ),
    "must be Tensor, not tuple": (
        "A tuple is used as one tensor: unpack it first."
    ),
}


def _model_case(
    label: str,
    cause: str | None = None,
    *,
    batch: int = 1,
    img_size: int | tuple[int, int] = 8,
    image: tuple[int, int] | None = None,
    patch_size: int | tuple[int, int] = 4,
    in_chans: int = 3,
    num_classes: int = 5,
    embed_dim: int = 8,
    depth: int = 1,
    num_heads: int = 1,
    mode: str = "training",
    std: float = 1.0,
    is_apart: bool = False,
    factors: dict[str, float] | None = None,
    **optional: Any,
) -> Case:
    init = {
        "img_size": img_size,
        "patch_size": patch_size,
        "in_chans": in_chans,
        "num_classes": num_classes,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        **optional,
    }
    if image is None:
        image = (img_size,) * 2 if isinstance(img_size, int) else img_size
    images = normal(batch, in_chans, *image, std=std)
    return PartCase(
        label, (images,), cause, {}, init, mode, is_apart, factors or {}
    )


QUIET = {
    "patch_embed": 0.01,
    "cls_token": 0.01,
    "pos_embed": 0.01,
    "blocks.0.attn.proj": 0.0,
    "blocks.0.mlp.fc2": 0.0,
}
ALL_DIFFERENT = {
    "batch": 2,
    "img_size": (12, 6),
    "patch_size": (4, 3),
    "in_chans": 1,
    "num_classes": 7,
    "embed_dim": 12,
    "depth": 3,
    "num_heads": 2,
}

VISION_TRANSFORMER = PartExercise(
    VisionTransformer,
    cases=(
        _model_case("one image, one block, one head"),
        _model_case("two images", SEVERAL_IMAGES, batch=2),
        _model_case(
            "two heads", "Right for one head only: use num_heads.", num_heads=2
        ),
        _model_case(
            "three blocks",
            "Right for one block only: make depth blocks and apply them one "
            "after the other, each to what the one before it returned.",
            depth=3,
        ),
        _model_case(
            "one channel",
            "Right for one number of channels only: use in_chans.",
            in_chans=1,
        ),
        _model_case(
            "an image of 12 x 8",
            "Right for square images only: img_size is an int, or the height "
            "and the width.",
            img_size=(12, 8),
        ),
        _model_case(
            "patches of (2, 4)",
            "Right for square patches only: patch_size is an int, or the "
            "height and the width.",
            patch_size=(2, 4),
        ),
        _model_case(
            "72 patches",
            "Right for few patches only.",
            img_size=(16, 18),
            patch_size=2,
        ),
        _model_case("mlp_ratio=2.5", RATIO, mlp_ratio=2.5),
        _model_case(
            "qkv_bias=False",
            "qkv_bias=False must leave out the bias of the qkv layers.",
            qkv_bias=False,
        ),
        _model_case(
            'pool="mean"',
            'With pool="mean" the head reads the mean of the patch tokens, '
            "after the last norm and without the class token.",
            pool="mean",
            batch=2,
        ),
        *(
            _model_case(
                f"tokens with small numbers{where}",
                EPS,
                batch=2,
                std=0.1,
                is_apart=True,
                factors=QUIET | factors,
            )
            for where, factors in (
                ("", {}),
                (" in the attention", {"blocks.0.attn.proj": 1.0}),
                (" in the MLP", {"blocks.0.mlp.fc2": 1.0}),
            )
        ),
        _model_case("in evaluation", EVALUATION, batch=2, mode="evaluation"),
        *(
            _model_case(
                f"{name}=0.5 in evaluation",
                DROPOUT_IN_EVALUATION,
                batch=2,
                depth=2,
                mode="evaluation",
                **{name: 0.5},
            )
            for name in ("dropout", "drop_path")
        ),
        *(
            _model_case(
                f"{name}=0.5 in training",
                DROPOUT_NOT_USED.replace("dropout", name),
                batch=64,
                depth=2,
                mode="random",
                **{name: 0.5},
            )
            for name in ("dropout", "drop_path")
        ),
        _model_case("an image with fewer patches", OTHER_SIZE, image=(8, 4)),
        _model_case("an image with more patches", OTHER_SIZE, image=(12, 8)),
        _model_case(
            "an image of another shape, with as many patches",
            OTHER_SIZE,
            image=(4, 16),
        ),
        _model_case(
            "an image that is one pixel too high",
            "Border pixels are dropped without a word: raise a ValueError when "
            "an image is not of img_size.",
            image=(9, 8),
        ),
        _model_case(
            'all axes different, pool="mean"', **ALL_DIFFERENT, pool="mean"
        ),
        _model_case("all axes different", **ALL_DIFFERENT),
    ),
    wrong_forms=_model_forms,
    hints={
        "missing: cls_token": "There is no class token.",
        "missing: cls_token, pos_embed": "There are no positions.",
        "missing: pos_embed": "There are no positions.",
        "self_attn.in_proj_weight": (
            "nn.TransformerEncoderLayer is another block: unless it is told "
            "otherwise, it has ReLU, normalizes after each sum, and reads "
            "(N, B, D), so that the images of a batch see each other. Use the "
            "encoder block of chapter 06."
        ),
    },
    errors=ERRORS,
)

EXERCISES = (VISION_TRANSFORMER,)
