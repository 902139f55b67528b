"""Twenty copies of small nets trained at once, against one run after the other: ``python -m benchmarks.seeds``.

Both sides see the same images, the same batches and the same number of steps of Adam, and build models outside the
clock. The loops are what one writes with torch.optim; the second takes its fused update.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.bench import compete, save
from reprolib.data import digits
from reprolib.nets import ViT, mlp, resnet
from reprolib.train import minibatches, stack, train_stacked, unstack

COPIES, STEPS = 20, 10
SEEDS = tuple(range(COPIES))


def tiny_conv() -> nn.Module:
    """Two convolutions with max-pooling, 1.4 thousand weights."""
    first = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    second = nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(16, 10))


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "linear softmax 64-10, batch 32": (lambda: nn.Sequential(nn.Flatten(), mlp((64, 10))), 32),
    "MLP 64-32-10, batch 32": (lambda: nn.Sequential(nn.Flatten(), mlp((64, 32, 10))), 32),
    "MLP 64-32-10, batch 64": (lambda: nn.Sequential(nn.Flatten(), mlp((64, 32, 10))), 64),
    "MLP 64-128-64-10, batch 64": (lambda: nn.Sequential(nn.Flatten(), mlp((64, 128, 64, 10))), 64),
    "convolutions 1-8-16 on 8x8, batch 32": (tiny_conv, 32),
    "ResNet 8-16 on 8x8, batch 32": (lambda: resnet(1, 10, (8, 16)), 32),
    "ViT of width 32, 2 blocks, on 8x8, batch 32": (lambda: ViT(8, 2, 1, 10, width=32, depth=2), 32),
}


def one_by_one(models: list[nn.Module], data: tuple[Tensor, Tensor], order: Tensor, fused: bool) -> None:
    """The plain loop, copy after copy."""
    x, y = data
    for model, batches in zip(models, order, strict=True):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
        for rows in batches:
            optimizer.zero_grad()
            cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()


def contest(title: str, make: Callable[[], nn.Module], batch: int, rounds: int) -> dict[str, Any]:
    """One net: stacked against the two loops."""
    x, y = digits()
    data = x.view(-1, 1, 8, 8), y
    stacked, order = stack(make, SEEDS), minibatches(SEEDS, len(x), batch, STEPS)
    models = [unstack(stacked, s).train() for s in range(COPIES)]
    peers = {
        "one by one": partial(one_by_one, models, data, order, False),
        "one by one, fused Adam": partial(one_by_one, models, data, order, True),
    }
    ours = partial(train_stacked, stacked, cross_entropy, data, order)
    return compete(f"{COPIES} copies of {title}, {STEPS} steps", ("train_stacked", ours), peers, rounds)


if __name__ == "__main__":
    torch.set_num_threads(2)
    contests: list[dict[str, Any]] = []
    for title, (make, batch) in NETS.items():
        contests.append(contest(title, make, batch, rounds=5))
        save("seeds", contests)
