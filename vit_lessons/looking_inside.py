"""Looking inside: what a trained model looks at, and what that tells.

Chapter: notebooks/13_looking_inside.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from vit_lessons.attention import MultiHeadSelfAttention
from vit_lessons.patch_embedding import as_pair

__all__ = [
    "attention_distance",
    "attention_rollout",
    "attention_weights",
    "class_attention",
    "distance_correlation",
    "patch_attention",
    "patch_distances",
    "patch_filters",
    "position_similarity",
]


def patch_filters(model: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    """Find the main patterns among the filters that read the pixels.

    These are the principal components of the weights of the first
    convolution: the filters with their mean taken away are sums of them.

    Args:
        model: Any model that holds a convolution.
        count: Number of components.

    Shape:
        components (count, C, P, P), each of length 1, the largest weight
        positive, and the share of the variance that each explains (count,)

    Raises:
        ValueError: The model has no convolution, or count is not in 1..D or
            more than a filter has weights.

    Source: Dosovitskiy et al. 2021, figure 7 left,
    https://arxiv.org/abs/2010.11929
    """
    convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    first = next(convolutions, None)
    if first is None:
        raise ValueError("model must hold a convolution, got none")
    weight = first.weight.detach()  # (D, C, P, P)
    filters = weight.flatten(1).to(
        torch.promote_types(weight.dtype, torch.float)
    )
    if not 1 <= count <= min(filters.shape):
        raise ValueError(
            f"count must be in 1..{min(filters.shape)}, got {count}"
        )
    _, sizes, rows = torch.linalg.svd(
        filters - filters.mean(dim=0), full_matrices=False
    )
    shares = sizes.square() / sizes.square().sum()
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    rows = rows * largest.sign()  # a component has no sign of its own
    return rows[:count].unflatten(1, weight.shape[1:]), shares[:count]


def position_similarity(
    pos_embed: Tensor,
    grid_size: int | tuple[int, int],
    *,
    num_prefix_tokens: int = 1,
) -> Tensor:
    """Compare the position of each patch with that of each other one.

    Args:
        pos_embed: The position table.
        grid_size: Patches down and across, (gh, gw). An int is a square grid.
        num_prefix_tokens: Rows of the table that belong to no patch.

    Shape:
        pos_embed: (1, num_prefix_tokens + N, D) -> (gh, gw, gh, gw), cosine
        similarity in [-1, 1]. The first two axes say which map

    Raises:
        ValueError: pos_embed does not fit grid_size and num_prefix_tokens.

    Source: Dosovitskiy et al. 2021, figure 7 center,
    https://arxiv.org/abs/2010.11929
    """
    gh, gw = as_pair("grid_size", grid_size)
    tokens = num_prefix_tokens + gh * gw
    if (
        num_prefix_tokens < 0
        or pos_embed.ndim != 3
        or pos_embed.shape[:2] != (1, tokens)
    ):
        raise ValueError(
            f"pos_embed must be (1, {num_prefix_tokens} + {gh} * {gw}, D), got "
            f"{tuple(pos_embed.shape)}"
        )
    rows = pos_embed.detach()[0, num_prefix_tokens:]  # (N, D)
    rows = nn.functional.normalize(rows, dim=1)
    return (rows @ rows.T).view(gh, gw, gh, gw)


def patch_distances(
    grid_size: int | tuple[int, int], patch_size: int | tuple[int, int] = 1
) -> Tensor:
    """Measure from the middle of each patch to the middle of each other.

    Args:
        grid_size: Patches down and across, (gh, gw). An int is a square grid.
        patch_size: Patch side P, or (height, width), in pixels. 1 gives
            distances in patches.

    Shape:
        (N, N), float32, in pixels

    Raises:
        ValueError: grid_size or patch_size is no size.
    """
    gh, gw = as_pair("grid_size", grid_size)
    size = torch.tensor(as_pair("patch_size", patch_size))
    places = torch.cartesian_prod(torch.arange(gh), torch.arange(gw)) * size
    places = places.float()  # (N, 2)
    return (places[:, None] - places[None, :]).norm(dim=2)


def distance_correlation(similarity: Tensor) -> float:
    """Correlate similarity with nearness, over all pairs of patches.

    Args:
        similarity: As position_similarity returns it.

    Shape:
        similarity: (gh, gw, gh, gw)

    Returns:
        Pearson's correlation of similarity and minus the distance. 1 if
        positions that are nearer are always more alike, along a line; about 0
        if the table knows nothing of the grid. A patch and itself is no pair.

    Raises:
        ValueError: similarity is not (gh, gw, gh, gw), there are fewer than
            three patches, or all pairs are equally similar.
    """
    grid_size = similarity.shape[:2]
    if similarity.shape != (*grid_size, *grid_size) or grid_size.numel() < 3:
        raise ValueError(
            "similarity must be (gh, gw, gh, gw) with at least 3 patches, got "
            f"{tuple(similarity.shape)}"
        )
    n = grid_size.numel()
    pairs = ~torch.eye(n, dtype=torch.bool)
    alike = similarity.cpu().double().reshape(n, n)[pairs]
    near = -patch_distances(tuple(grid_size))[pairs].to(alike)
    if alike.min() == alike.max():
        raise ValueError(
            "similarity must not be the same for all pairs, got only "
            f"{alike[0].item()}"
        )
    return torch.corrcoef(torch.stack([alike, near]))[0, 1].item()


def attention_weights(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Run a model and keep the weights of all its attentions.

    Args:
        model: Holds MultiHeadSelfAttention. It is used in evaluation mode,
            and left in the mode in which it was.
        images: Images for the model.

    Shape:
        images: (B, C, H, W) -> for each attention, in the order in which they
        ran, (B, h, T, T): row i says where token i looks. T counts all tokens

    Raises:
        ValueError: No MultiHeadSelfAttention ran.
    """
    weights = []

    def keep(
        module: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]
    ) -> None:
        # All tokens ask, also where the model needs only a few of them.
        options = {**options, "num_queries": None, "return_weights": True}
        weights.append(module.forward(*inputs, **options)[1])

    modes = {m: m.training for m in model.modules()}
    hooks = [
        module.register_forward_pre_hook(keep, with_kwargs=True)
        for module in modes
        if isinstance(module, MultiHeadSelfAttention)
    ]
    try:
        with torch.no_grad():
            model.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    if not weights:
        raise ValueError("model must run MultiHeadSelfAttention, got none")
    return weights


def patch_attention(weights: Tensor, *, num_prefix_tokens: int = 1) -> Tensor:
    """Leave out the tokens that have no place in the image.

    Their columns are removed and each row is divided by what is left, so that
    it sums to 1 again.

    Args:
        weights: Attention weights, or a rollout.
        num_prefix_tokens: Tokens in front of the patches.

    Shape:
        weights: (..., T, T) with T = num_prefix_tokens + N -> (..., N, N)

    Raises:
        ValueError: weights is not square, holds no patch, or a row gives the
            patches no weight at all.
    """
    p = num_prefix_tokens
    if (
        weights.ndim < 2
        or weights.shape[-1] != weights.shape[-2]
        or not 0 <= p < weights.shape[-1]
    ):
        raise ValueError(
            f"weights must be (..., T, T) with T more than {p}, got "
            f"{tuple(weights.shape)}"
        )
    among = weights[..., p:, p:]
    total = among.sum(dim=-1, keepdim=True)
    if not (total > 0).all():
        raise ValueError(
            "weights must give the patches some weight in each row, got a sum "
            f"of {total.min().item()}"
        )
    return among / total


def attention_distance(
    weights: Tensor,
    grid_size: int | tuple[int, int],
    patch_size: int | tuple[int, int] = 1,
    *,
    num_prefix_tokens: int = 1,
) -> Tensor:
    """Measure how far the patches look: the mean distance, weighted.

    Args:
        weights: Attention weights of one attention.
        grid_size: Patches down and across, (gh, gw). An int is a square grid.
        patch_size: Patch side P, or (height, width), in pixels. 1 gives
            distances in patches.
        num_prefix_tokens: Tokens in front of the patches. They have no place
            and are left out: see patch_attention.

    Shape:
        weights: (..., T, T) with T = num_prefix_tokens + gh * gw -> (...), in
        pixels, the mean over the patches that look

    Raises:
        ValueError: weights does not fit grid_size and num_prefix_tokens.

    Source: Dosovitskiy et al. 2021, figure 7 right and appendix D.7,
    https://arxiv.org/abs/2010.11929
    """
    distances = patch_distances(grid_size, patch_size).to(weights.device)
    tokens = num_prefix_tokens + len(distances)
    if weights.shape[-2:] != (tokens, tokens):
        raise ValueError(
            f"weights must be (..., {tokens}, {tokens}), got "
            f"{tuple(weights.shape)}"
        )
    weights = weights.to(torch.promote_types(weights.dtype, torch.float))
    among = patch_attention(weights, num_prefix_tokens=num_prefix_tokens)
    return (among * distances).sum(dim=-1).mean(dim=-1)


def attention_rollout(weights: Sequence[Tensor]) -> Tensor:
    """Follow attention through all layers: which inputs reach which output?

    The heads of a layer are averaged, and half of each token stays where it
    is, for the residual connection. Then the layers are multiplied.

    Args:
        weights: The weights of each layer, as attention_weights returns them,
            the first layer first.

    Shape:
        weights: each (B, h, T, T), T the same -> (B, T, T). Row i says from
        which tokens of the input token i of the output comes; it sums to 1

    Raises:
        ValueError: weights is empty, or the shapes do not fit together.

    Source: Abnar and Zuidema 2020, section 3,
    https://arxiv.org/abs/2005.00928
    """
    shapes = [tuple(layer.shape) for layer in weights]
    if not shapes or any(
        len(s) != 4 or (s[0], *s[2:]) != (shapes[0][0], s[3], shapes[0][3])
        for s in shapes
    ):
        raise ValueError(
            f"weights must hold (B, h, T, T) for each layer, got {shapes}"
        )
    identity = torch.eye(shapes[0][-1]).to(weights[0])
    rollout = identity
    for layer in weights:
        mixing = 0.5 * layer.mean(dim=1) + 0.5 * identity  # (B, T, T)
        rollout = mixing @ rollout  # later layers stand on the left
    return rollout


def class_attention(
    weights: Tensor,
    grid_size: int | tuple[int, int],
    *,
    num_prefix_tokens: int = 1,
    token: int = 0,
) -> Tensor:
    """Show where a prefix token looks, as a map over the patches.

    What it gives to the prefix tokens is left out, and the rest is divided so
    that the map sums to 1.

    Args:
        weights: Attention weights, or a rollout.
        grid_size: Patches down and across, (gh, gw). An int is a square grid.
        num_prefix_tokens: Tokens in front of the patches.
        token: Which of them looks: 0 is the class token.

    Shape:
        weights: (..., T, T) with T = num_prefix_tokens + gh * gw ->
        (..., gh, gw)

    Raises:
        ValueError: weights does not fit grid_size and num_prefix_tokens, token
            is no prefix token, or gives the patches no weight at all.
    """
    gh, gw = as_pair("grid_size", grid_size)
    tokens = num_prefix_tokens + gh * gw
    if weights.shape[-2:] != (tokens, tokens):
        raise ValueError(
            f"weights must be (..., {tokens}, {tokens}), got "
            f"{tuple(weights.shape)}"
        )
    if not 0 <= token < num_prefix_tokens:
        raise ValueError(
            "token must be the place of a prefix token, of which there are "
            f"{num_prefix_tokens}, got {token}"
        )
    row = weights[..., token, num_prefix_tokens:]  # (..., N)
    total = row.sum(dim=-1, keepdim=True)
    if not (total > 0).all():
        raise ValueError(
            "weights must give the patches some weight, got a sum of "
            f"{total.min().item()}"
        )
    return rearrange(row / total, "... (gh gw) -> ... gh gw", gh=gh)
