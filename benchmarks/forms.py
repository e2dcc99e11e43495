"""Two forms of one layer: which is faster?

python benchmarks/forms.py

Attention, plain against fused, and the patch embedding, matrix product
against convolution. A ratio above 1 says that the second form is faster.
The rounds of the two forms alternate, so that a busy machine disturbs both
alike; a ratio between 0.95 and 1.05 is a tie.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vit_lessons import MultiHeadSelfAttention, PatchEmbed, patchify

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = 25
SECONDS = 0.02  # at least, for one measurement
ATTENTION = [  # B, N, D, h
    (64, 17, 48, 4),
    (16, 17, 192, 3),
    (64, 65, 192, 3),
    (16, 128, 192, 3),
    (8, 197, 192, 3),
    (2, 197, 768, 12),
    (1, 577, 768, 12),
]
PATCHES = [(1, 768), (8, 192), (8, 768), (32, 768)]  # B, D

Form = Callable[[], Tensor]


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Seconds of one call, as the mean of some calls in a row."""
    wait = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - start) / repeats


def medians(*calls: Callable[[], object]) -> list[float]:
    """Median milliseconds of each call, over rounds that alternate."""
    warm = [seconds(call, 2) for call in calls]
    repeats = [max(1, int(SECONDS / once)) for once in warm]
    rounds = [
        [seconds(c, n) for c, n in zip(calls, repeats, strict=True)]
        for _ in range(ROUNDS)
    ]
    columns = zip(*rounds, strict=True)
    return [statistics.median(times) * 1000 for times in columns]


def report(name: str, first: Form, second: Form, leaves: list[Tensor]) -> None:
    """Print one line: forward, then forward and backward."""

    def forward(form: Form) -> Callable[[], None]:
        def call() -> None:
            with torch.no_grad():
                form()

        return call

    def both_ways(form: Form) -> Callable[[], None]:
        return lambda: torch.autograd.grad(form().sum(), leaves)

    line = name
    for kind in (forward, both_ways):
        one, two = medians(kind(first), kind(second))
        line += f"  {one:8.2f} {two:8.2f} {one / two:5.2f}"
    print(line, flush=True)


def fused(layer: MultiHeadSelfAttention, x: Tensor) -> Tensor:
    """The layer with the fused kernel, at any number of tokens."""
    q, k, v = rearrange(
        layer.qkv(x),
        "b n (three h d) -> three b h n d",
        three=3,
        h=layer.num_heads,
    )
    out = F.scaled_dot_product_attention(q, k, v)
    return layer.proj(rearrange(out, "b h n d -> b n (h d)"))


def main() -> None:
    print(f"{DEVICE}, {torch.get_num_threads()} threads, torch", end=" ")
    print(torch.__version__, "- milliseconds of two forms and their ratio")
    print("B, N, D, h           forward, plain / fused      and backward")
    for batch, tokens, width, heads in ATTENTION:
        layer = MultiHeadSelfAttention(width, heads).to(DEVICE)
        x = torch.randn(batch, tokens, width, device=DEVICE)
        report(
            f"{(batch, tokens, width, heads)!s:18}",
            lambda layer=layer, x=x: layer(x, return_weights=True)[0],
            lambda layer=layer, x=x: fused(layer, x),
            list(layer.parameters()),
        )
    print("B, D                 forward, matrix / convolution  and backward")
    for batch, width in PATCHES:
        embed = PatchEmbed(16, 3, width).to(DEVICE)
        images = torch.randn(batch, 3, 224, 224, device=DEVICE)
        weight, bias = embed.parameters()
        report(
            f"{(batch, width)!s:18}",
            lambda x=images, w=weight, b=bias: F.linear(
                patchify(x, 16), w.flatten(1), b
            ),
            lambda x=images, embed=embed: embed(x),
            [weight, bias],
        )


if __name__ == "__main__":
    main()
