"""Train a small image classifier: ``python models/images.py --net vit|resnet --scale quick|full --out FILE``.

Quick takes scikit-learn's digits (8x8), full takes MNIST (28x28). Leaves FILE with the weights (safetensors) and,
beside it, FILE's name with ``.json``: a card with settings, losses and accuracy, and the checksum of the weights. The
card is written last: one that fits its weights says that both are whole.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from reprolib import data, project, records, weights
from reprolib.chapter import pick_device
from reprolib.nets import ViT, resnet
from reprolib.train import train, warmup_cosine

Images = dict[str, tuple[Tensor, Tensor]]


class Settings(NamedTuple):
    """All that differs between the scales."""

    size: int  # pixels a side
    patch: int
    width: int  # of a token
    depth: int  # transformer blocks
    heads: int
    widths: tuple[int, ...]  # channels of the ResNet
    blocks: int  # residual blocks per width
    held: int  # images of the validation set, and of the test set
    steps: int
    batch: int
    learning_rate: float


QUICK = Settings(8, 2, 48, 3, 4, (16, 32), 1, held=300, steps=800, batch=64, learning_rate=2e-3)
FULL = Settings(28, 4, 192, 6, 6, (32, 64, 128), 2, held=10_000, steps=4000, batch=256, learning_rate=1e-3)


def split(scale: str, settings: Settings, seed: int) -> Images:
    """Train, validation and test images (N, 1, size, size) in [0, 1] with labels; MNIST keeps its own test set."""
    x, y = data.digits() if scale == "quick" else data.mnist()
    x, held = x.view(-1, 1, settings.size, settings.size), settings.held
    order = torch.arange(len(x))
    free = len(x) if scale == "quick" else len(x) - held  # MNIST's test images stand last
    order[:free] = torch.randperm(free, generator=torch.Generator().manual_seed(seed))
    parts = {"train": order[: -2 * held], "validation": order[-2 * held : -held], "test": order[-held:]}
    return {name: (x[rows], y[rows]) for name, rows in parts.items()}


def batches(part: tuple[Tensor, Tensor], size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, drawn with replacement."""
    x, y = part
    while True:
        rows = torch.randint(len(x), (size,), generator=generator).to(x.device)
        yield x[rows], y[rows]


@torch.no_grad()
def accuracy(model: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    """Share of right answers, by pieces of a thousand."""
    hits = [(model(x).argmax(1) == y).sum() for x, y in zip(part[0].split(1000), part[1].split(1000), strict=True)]
    return float(torch.stack(hits).sum()) / len(part[1])


def train_images(
    net: str, settings: Settings, images: Images, device: torch.device, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    """Train one net; the weights of the best validation accuracy are kept. Returns it with the results of the card."""
    began = time.perf_counter()
    images = {name: (x.to(device), y.to(device)) for name, (x, y) in images.items()}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if net == "vit":
            model: nn.Module = ViT(settings.size, settings.patch, 1, 10, settings.width, settings.depth, settings.heads)
        else:
            model = resnet(1, 10, settings.widths, settings.blocks)
    optimizer = torch.optim.AdamW(model.to(device).parameters(), lr=settings.learning_rate, weight_decay=0.01)
    run = train(
        model,
        lambda m, batch: cross_entropy(m(batch[0]), batch[1]),
        batches(images["train"], settings.batch, torch.Generator().manual_seed(seed + 1)),
        settings.steps,
        optimizer,
        schedule=warmup_cosine(settings.steps, settings.steps // 20, 0.02),
        clip=1.0,
        mixed=True,
        score=lambda m: accuracy(m, images["validation"]),
        every=max(1, settings.steps // 10),
    )
    losses = [float(part.mean()) for part in run.losses.float().cpu().chunk(40)]
    results = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "losses": [round(loss, 5) for loss in losses],
        "validation_accuracy": [[steps, round(share, 4)] for steps, share in run.scores],
        "test_accuracy": round(accuracy(model, images["test"]), 4),
        "wall_seconds": round(time.perf_counter() - began, 1),
    }
    return model, results


def store(model: nn.Module, card: dict[str, Any], out: Path) -> Path:
    """Write the weights, then the card that names their checksum; returns the card's path."""
    tensors = {name: p.detach().cpu() for name, p in model.state_dict().items()}
    weights.save_weights(out, tensors, {"net": card["net"], "settings": json.dumps(card["settings"])})
    path = out.with_suffix(".json")
    sealed = {**card, "sha256": hashlib.sha256(out.read_bytes()).hexdigest()}
    records.write_atomic(path, json.dumps(sealed, indent=1, allow_nan=False) + "\n")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Train, store, and say the accuracy."""
    parser = argparse.ArgumentParser(description="Train a small image classifier.")
    parser.add_argument("--net", choices=("vit", "resnet"), default="vit")
    parser.add_argument("--scale", choices=project.SCALES, default="quick")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0, ... (default: auto)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the initial weights and the batches")
    parser.add_argument("--steps", type=int, help="optimizer steps, instead of the scale's own number")
    parser.add_argument("--out", type=Path, help="file of the weights (default: models/images-NET-SCALE.safetensors)")
    options = parser.parse_args(arguments)
    settings = QUICK if options.scale == "quick" else FULL
    if options.steps is not None:
        settings = settings._replace(steps=options.steps)
    name = f"images-{options.net}-{options.scale}"
    try:
        out = options.out or project.root() / "models" / f"{name}.safetensors"
        if out.suffix == ".json":
            raise project.ReproError(f"--out names the weights, and its card gets .json; got {out}.")
        device = pick_device(options.device, "full")
        images = split(options.scale, settings, options.seed)
        model, results = train_images(options.net, settings, images, device, options.seed)
        card = {"name": out.stem, "net": options.net, "scale": options.scale, "seed": options.seed}
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        card |= {"settings": settings._asdict(), **results, "device": str(device), "versions": versions}
        path = store(model, card, out)
    except (project.ReproError, ValueError, FloatingPointError, OSError) as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("images: stopped; the old files stay.", file=sys.stderr)
        return 130
    print(f"Test accuracy {results['test_accuracy']:.4f} after {settings.steps} steps; wrote {out} and {path.name}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
