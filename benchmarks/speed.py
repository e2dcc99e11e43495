"""Speed of our models next to their peers, on this machine.

The models take turns, round by round, so that a slow moment of the machine
meets them all. One peer runs twice: the ratio of its two times is the noise.

    pip install -e ".[test]" vit-pytorch
    python benchmarks/speed.py
    python benchmarks/speed.py --models swin_tiny --original SWIN

SWIN is the file models/swin_transformer.py of microsoft/Swin-Transformer.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionViT
from torchvision.models import swin_t
from tqdm import tqdm

from vit_lessons import VIT_PRESETS, create_model

try:
    from vit_pytorch import ViT as LucidrainsViT
except ImportError:
    LucidrainsViT = None

NAMES = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
}


def vits(name: str) -> dict[str, nn.Module]:
    """The same Vision Transformer in each library, with fresh weights."""
    dim, depth, heads = (
        VIT_PRESETS[name][key] for key in ("embed_dim", "depth", "num_heads")
    )
    found = {
        "ours": create_model(name),
        "timm": timm.create_model(name),
        "torchvision": TorchvisionViT(224, 16, depth, heads, dim, 4 * dim),
    }
    if LucidrainsViT:
        found["vit-pytorch"] = LucidrainsViT(
            image_size=224,
            patch_size=16,
            num_classes=1000,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=4 * dim,
            dim_head=dim // heads,
        )
    return found


def swins(name: str, original: Path | None) -> dict[str, nn.Module]:
    """Swin-T in each library, with fresh weights."""
    found = {
        "ours": create_model(name),
        "timm": timm.create_model(name),
        "timm fused": timm.create_model(name),
        "torchvision": swin_t(),
    }
    for module in found["timm fused"].modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True  # timm's default is False here
    if original:
        # The file asks for a part of timm by a name that timm gave up.
        sys.modules.setdefault("timm.models.layers", timm.layers)
        spec = importlib.util.spec_from_file_location("original", original)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found["original"] = module.SwinTransformer()
    return found


def forward(model: nn.Module, images: Tensor) -> None:
    model.eval()
    with torch.inference_mode():
        model(images)


def forward_backward(model: nn.Module, images: Tensor) -> None:
    model.train()
    model.zero_grad()
    labels = torch.arange(len(images))
    F.cross_entropy(model(images), labels).backward()


def seconds(
    step: Callable, found: dict[str, nn.Module], images: Tensor, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each model in each round, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in found}
    for number in tqdm(range(rounds + 1), leave=False):
        order = list(found)
        order = order[number % len(order) :] + order[: number % len(order)]
        for name in order:
            start = time.perf_counter()
            step(found[name], images)
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def report(times: dict[str, list[float]]) -> None:
    """Print each peer's time in units of ours: above 1, ours is faster."""
    fastest = math.inf
    for name, values in times.items():
        ratios = [
            theirs / ours
            for theirs, ours in zip(values, times["ours"], strict=True)
        ]
        low, middle, high = statistics.quantiles(ratios, n=4)
        if name not in ("ours", "timm again"):
            fastest = min(fastest, middle)
        print(f"  {name:12} {middle:.2f}  (quartiles {low:.2f}-{high:.2f})")
    pairs = zip(times["timm again"], times["timm"], strict=True)
    noise = statistics.median(again / once for again, once in pairs)
    print(f"  the fastest peer takes {fastest:.2f} of our time;", end=" ")
    print(f"noise: timm against itself {noise:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", default=["vit_tiny", "vit_base"], choices=NAMES
    )
    parser.add_argument("--original", type=Path, help="a file of the authors")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=13)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    images = torch.randn(arguments.batch, 3, 224, 224)
    for model in arguments.models:
        name = NAMES[model]
        found = (
            swins(name, arguments.original)
            if model.startswith("swin")
            else vits(name)
        )
        found["timm again"] = found["timm"]
        for step in (forward, forward_backward):
            print(f"{model}, {step.__name__}, batch {arguments.batch}:")
            report(seconds(step, found, images, arguments.rounds))


if __name__ == "__main__":
    main()
