"""What does one image cost a model?

Parameters and multiply-adds of our models and of convolutional networks of
torchvision, for one image of 224 by 224 pixels and 1000 classes. The models
hold no numbers while they are counted, so this takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from runner import record
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vit_lessons import (
    DistilledVisionTransformer,
    VisionTransformer,
    create_model,
    list_models,
)

CNNS = ("resnet50", "convnext_tiny", "efficientnet_b0")


def multiply_adds(function: Callable[[Tensor], Any], image: Tensor) -> int:
    # The counter does not see into a fused kernel: run the plain one.
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter, sdpa_kernel(SDPBackend.MATH):
        function(image)
    return counter.get_total_flops() // 2


def all_tokens(network: nn.Module, image: Tensor) -> None:
    """Run a model as papers count it: the last block computes all tokens."""
    if not isinstance(network, VisionTransformer):
        network(image)
        return
    tokens = network.forward_features(image)
    network.head(tokens[:, 0])
    if isinstance(network, DistilledVisionTransformer):
        network.head_dist(tokens[:, 1])


def run(*, seed: int, model: str) -> dict[str, int]:
    build = torchvision.models.get_model if model in CNNS else create_model
    with torch.device("meta"):
        network = build(model).eval()
        image = torch.empty(1, 3, 224, 224)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "multiply_adds": multiply_adds(lambda x: all_tokens(network, x), image),
        "multiply_adds_as_it_runs": multiply_adds(network, image),
    }


CONFIGURATIONS = [{"model": name} for name in (*list_models(), *CNNS)]

if __name__ == "__main__":
    record(__file__, run, CONFIGURATIONS, quick=(CONFIGURATIONS, {}))
