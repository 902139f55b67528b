"""Train the tiny language model of the book on its generated world: ``python models/tiny_lm.py --scale quick|full``.

Writes weights (float16, safetensors) and a card (JSON) side by side, at the end and together; a run that is stopped
leaves the old files. The card's scores are those of the stored weights, read back.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from reprolib import lm, project, records
from reprolib.chapter import pick_device
from reprolib.progress import progress
from reprolib.world import (
    FORMS,
    Sizes,
    Texts,
    World,
    accuracies,
    answered,
    fact_accuracy,
    membership_auc,
    perplexity,
    text_losses,
)

CONTEXT = 32  # tokens; the longest sentence has fewer, prompts with something before them fit too
CURVE = 40  # points of the loss curve


class Settings(NamedTuple):
    """All that differs between the scales."""

    sizes: Sizes
    layers: int
    heads: int
    width: int
    steps: int
    batch: int  # sentences
    learning_rate: float
    warmup: int  # steps


QUICK = Settings(Sizes(), layers=5, heads=4, width=128, steps=6000, batch=64, learning_rate=2e-3, warmup=200)
FULL = Settings(
    Sizes(people=4000, new=200, unseen=500, names=128, cities=96, letters=20, numbers=40, strings=6000),
    layers=12,
    heads=8,
    width=512,
    steps=6000,
    batch=1024,
    learning_rate=6e-4,
    warmup=300,
)


class Trained(NamedTuple):
    """A model on its device, the world it learnt, and the loss curve in nats a token."""

    model: lm.GPT
    world: World
    curve: dict[str, list[float]]  # step, train (mean since the point before), validation
    seconds: float


def batches(texts: Texts, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless epochs of (B, T') tokens; sentences of like length share a batch, cut to its longest sentence."""
    lengths = texts.stop + 2  # with the full stop and <end>
    while True:
        order = (lengths + 2 * torch.rand(len(lengths), generator=generator)).argsort().split(size)
        for i in torch.randperm(len(order), generator=generator).tolist():
            yield texts.tokens[order[i], : int(lengths[order[i]].max())]


def loss_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean negative log-likelihood of tokens (B, T) after the first, padding (0) left out, in nats."""
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), ignore_index=0)


def rate(step: int, settings: Settings) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to 5 %."""
    decay = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    return min(1.0, (step + 1) / settings.warmup) * (0.05 + 0.95 * decay)


def train_tiny_lm(settings: Settings, device: torch.device, seed: int = 0) -> Trained:
    """Train a GPT on ``World(seed, settings.sizes)``; bfloat16 autocast on CUDA, float32 elsewhere.

    Raises:
        ValueError: Less than one step, or settings of which no world or model can be made.
        FloatingPointError: The loss is not finite.
    """
    if settings.steps < 1:
        raise ValueError(f"steps must be at least 1; got {settings.steps}.")
    began = time.perf_counter()
    world = World(seed, settings.sizes)
    config = lm.GPTConfig(len(world.vocabulary), CONTEXT, settings.layers, settings.heads, settings.width)
    model = lm.GPT(config, seed).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    source = batches(world.split("train"), settings.batch, torch.Generator().manual_seed(seed + 1))
    validation = world.split("validation")
    curve: dict[str, list[float]] = {"step": [], "train": [], "validation": []}
    recent: list[Tensor] = []
    every = max(1, settings.steps // CURVE)
    for step in progress(range(settings.steps), "tiny-lm"):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate(step, settings)
        tokens = next(source).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(model(tokens), tokens)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.detach())
        if (step + 1) % every == 0 or step + 1 == settings.steps:
            mean = float(torch.stack(recent).mean())
            if not math.isfinite(mean):
                raise FloatingPointError(f"The loss is {mean} before step {step + 1}; the old files stay.")
            curve["step"].append(step + 1)
            curve["train"].append(round(mean, 5))
            curve["validation"].append(round(math.log(perplexity(model.eval(), validation)), 5))
            model.train()
            recent.clear()
            said = f"train {mean:.3f}, validation {curve['validation'][-1]:.3f} nats"
            print(f"step {step + 1}/{settings.steps}: {said}, {time.perf_counter() - began:.0f} s", flush=True)
    return Trained(model.eval(), world, curve, time.perf_counter() - began)


def device_name(device: torch.device) -> str:
    """For the card: the GPU's name, or the processor's architecture and the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def measure(model: nn.Module, world: World) -> dict[str, Any]:
    """The card's scores of a model: shares of right answers, perplexities a token, and the membership AUC."""
    texts = {split: world.split(split) for split in world.sentences}
    facts = texts["train"].take(np.isin(texts["train"].kind, [*FORMS]))
    members = text_losses(model, facts.take(np.arange(0, len(facts.kind), 3)))
    others = text_losses(model, texts["nonmember"])
    fresh = accuracies(model, texts["validation"])
    new = sorted(split for split in texts if split.endswith("/test"))
    return {
        "fact_accuracy": fact_accuracy(model, facts),
        "heldout_phrasing_accuracy": fact_accuracy(model, texts["heldout"]),
        "heldout_phrasing_accuracy_by_relation": accuracies(model, texts["heldout"]),
        "untold_inverse_accuracy": fact_accuracy(model, texts["untold"]),
        "nonmember_accuracy": fact_accuracy(model, texts["nonmember"]),
        "task_accuracy": {kind: share for kind, share in fresh.items() if kind not in FORMS},
        "accuracy_before_finetuning": {s: float(answered(model, texts[s]).double().mean()) for s in new},
        "perplexity": {s: perplexity(model, texts[s]) for s in ("train", "validation", "calibration", "nonmember")},
        "membership_auc": membership_auc(members, others),
        "membership_loss": {"members": float(members.mean()), "nonmembers": float(others.mean())},
    }


def store(trained: Trained, settings: Settings, seed: int, card: Path) -> dict[str, Any]:
    """Store weights and card together; returns the card. Its scores are those of the stored weights."""
    weights = card.with_suffix(".safetensors")
    card.parent.mkdir(parents=True, exist_ok=True)
    part, card_part = (path.with_name(f".{path.name}.part") for path in (weights, card))
    model, world = trained.model, trained.world
    try:
        lm.save_gpt(part, model, torch.float16)
        device = next(model.parameters()).device
        stored = lm.load_gpt(part).to(device)
        content = {
            "name": card.stem,
            "seed": seed,
            "sizes": settings.sizes._asdict(),
            "config": model.config._asdict(),
            "parameters": sum(p.numel() for p in model.parameters()),
            "settings": {k: v for k, v in settings._asdict().items() if k != "sizes"},
            "scores": measure(stored, world),
            "curve": trained.curve,
            "wall_seconds": round(trained.seconds, 1),
            "device": device_name(device),
            "versions": {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
            "sha256": hashlib.sha256(part.read_bytes()).hexdigest(),
            "corpus_sha256": world.fingerprint(),
        }
        records.write_atomic(card_part, json.dumps(content, indent=1, allow_nan=False) + "\n")
        os.replace(part, weights)
        os.replace(card_part, card)
    finally:
        part.unlink(missing_ok=True)
        card_part.unlink(missing_ok=True)
    return content


def main(arguments: list[str] | None = None) -> int:
    """Train, store, and print the scores."""
    parser = argparse.ArgumentParser(description="Train the tiny language model of the book on its generated world.")
    parser.add_argument("--scale", choices=project.SCALES, default="quick")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0, ... (default: auto)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the world, the initial weights and the order of batches"
    )
    parser.add_argument("--steps", type=int, help="optimizer steps, instead of the scale's own number")
    parser.add_argument("--out", type=Path, help="folder of weights and card (default: models/ of the checkout)")
    options = parser.parse_args(arguments)
    settings = QUICK if options.scale == "quick" else FULL
    if options.steps is not None:
        settings = settings._replace(steps=options.steps)
    name = "tiny-lm" if options.scale == "quick" else "tiny-lm-full"
    try:
        card = (options.out or project.root() / "models") / f"{name}.json"
        trained = train_tiny_lm(settings, pick_device(options.device, "full"), options.seed)
        content = store(trained, settings, options.seed, card)
    except (project.ReproError, ValueError, FloatingPointError, OSError) as error:
        print(f"tiny_lm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tiny_lm: stopped; the old files stay.", file=sys.stderr)
        return 130
    print(json.dumps(content["scores"], indent=1))
    print(f"Wrote {card} and {card.with_suffix('.safetensors').name}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
