"""Plain and fused attention: time per call against the number of tokens.

python benchmarks/attention.py

One table for the forward pass and one for forward and backward. The ratio
is plain / fused: above 1 the fused kernel is faster. The rounds of the two
forms alternate, so that a busy machine disturbs both alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from vit_lessons import scaled_dot_product_attention

TOKENS = (17, 65, 128, 196, 256, 400, 577, 1024)
HEADS, WIDTH = 3, 64
ROUNDS = 15


def seconds(call: Callable[[], object], repeats: int) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def compare(tokens: int, *, backward: bool) -> tuple[float, float]:
    """Median milliseconds of the plain and of the fused form."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = max(1, 2000 // tokens)
    q, k, v = (
        torch.randn(batch, HEADS, tokens, WIDTH, device=device)
        for _ in range(3)
    )

    def run(form: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def call() -> None:
            with torch.set_grad_enabled(backward):
                output = form()
            if backward:
                torch.autograd.grad(output.sum(), (q, k, v))

        return call

    if backward:
        for tensor in (q, k, v):
            tensor.requires_grad_()
    plain = run(lambda: scaled_dot_product_attention(q, k, v)[0])
    fused = run(lambda: F.scaled_dot_product_attention(q, k, v))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for call, results in zip((plain, fused), times, strict=True):
            results.append(seconds(call, repeats=20) * 1000)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    for backward in (False, True):
        print("forward and backward" if backward else "forward")
        print("tokens  plain ms  fused ms  ratio")
        for tokens in TOKENS:
            plain, fused = compare(tokens, backward=backward)
            print(
                f"{tokens:6}  {plain:8.2f}  {fused:8.2f}  {plain / fused:5.2f}"
            )


if __name__ == "__main__":
    main()
