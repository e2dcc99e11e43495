"""What does attention cost, over the whole map and in windows?

One layer, forward, one image, one thread: milliseconds and multiply-adds
against the number of tokens.
"""

from __future__ import annotations

import statistics
import time

import torch
from runner import record
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vit_lessons import MultiHeadSelfAttention, WindowAttention

DIM, HEADS, WINDOW = 96, 3, 7  # the first stage of Swin-T
SECONDS = 3.0  # spent on one measurement


def run(*, seed: int, attention: str, side: int) -> dict[str, float]:
    torch.manual_seed(seed)
    x = torch.randn(1, side, side, DIM)
    if attention.startswith("global"):
        layer = MultiHeadSelfAttention(DIM, HEADS)
        x = x.flatten(1, 2)
    else:
        shift = WINDOW // 2 if attention == "shifted windows" else 0
        layer = WindowAttention(DIM, HEADS, WINDOW, shift)
    options = {"return_weights": True} if "stored" in attention else {}

    times: list[float] = []
    with torch.inference_mode():
        # The counter does not see into a fused kernel: run the plain one.
        counter = FlopCounterMode(display=False)
        with counter, sdpa_kernel(SDPBackend.MATH):
            layer(x, **options)
        while sum(times) < SECONDS or len(times) < 3:
            start = time.perf_counter()
            layer(x, **options)
            times.append(time.perf_counter() - start)
    return {
        "milliseconds": round(statistics.median(times) * 1000, 3),
        "multiply_adds": counter.get_total_flops() // 2,
    }


CONFIGURATIONS = [
    {"attention": attention, "side": side}
    for attention in (
        "global, weights stored",
        "global",
        "windows",
        "shifted windows",
    )
    for side in (14, 28, 56, 112)
]

if __name__ == "__main__":
    record(__file__, run, CONFIGURATIONS, quick=(CONFIGURATIONS[::4], {}))
