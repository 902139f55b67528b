"""Training: S copies of a small model at once (seeds times settings), or one model with what a longer run wants.

Copies are one set of tensors with a leading axis S. A step is one vectorised forward pass and one backward pass through
the sum of S losses: copies share no weight, so its gradient is each copy's own. At small sizes a step costs calls, not
arithmetic, and S copies cost little more than one; from some ten thousand weights a copy, arithmetic takes over. A
convolution becomes a grouped one: cheaper than S apart for small images, dearer on a CPU for 28x28 and 32 channels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from reprolib.progress import progress

Params = dict[str, Tensor]
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Adam's, as in torch.optim
CHECK = 64  # steps between looks at the losses: a look waits for the device


class Stacked(NamedTuple):
    """S models of one architecture; every tensor is ``(S, *shape)``."""

    template: nn.Module
    params: Params
    buffers: Params
    seeds: tuple[int, ...]


class Run(NamedTuple):
    """The trained copies or model, losses before each step ((S, steps) or (steps,)), (steps done, score) pairs."""

    model: Any
    losses: Tensor
    scores: list[tuple[int, float]]


def stack(make_model: Callable[[], nn.Module], seeds: Sequence[int], device: str | torch.device = "cpu") -> Stacked:
    """Build one model per seed and stack their tensors on ``device``.

    ``make_model`` builds on the CPU, whose global generator is seeded for the call and put back after it, so a seed
    gives the same weights on every machine. Parameters without ``requires_grad`` are never trained.

    Raises:
        ValueError: No seed, models that differ in a tensor's name, shape or dtype, nothing to train, several dtypes to
            train, a layer that keeps running statistics (vmap cannot update them) or drops units (a copy would not
            equal its separate run).
    """
    if len(seeds) == 0:
        raise ValueError("seeds must hold at least one seed; got none.")
    models = []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            models.append(make_model())
    for path, m in models[0].named_modules():
        what = f"{path or 'The model'} ({type(m).__name__})"
        if getattr(m, "running_mean", None) is not None:
            raise ValueError(f"{what} keeps running statistics; use GroupNorm, LayerNorm or track_running_stats=False.")
        if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0:
            raise ValueError(f"{what} drops units with p = {m.p}; stacked copies need p = 0.")
    states = [(dict(m.named_parameters()), dict(m.named_buffers())) for m in models]
    kinds = [{k: (*t.shape, t.dtype) for k, t in (p | b).items()} for p, b in states]
    for seed, kind in zip(seeds, kinds, strict=True):
        if differ := sorted(k for k, _ in kind.items() ^ kinds[0].items()):
            was, now = (k.get(differ[0], "absent") for k in (kinds[0], kind))
            raise ValueError(f"make_model must keep to one architecture; {differ[0]}: {was}, with seed {seed} {now}.")
    if len(dtypes := {p.dtype for p in models[0].parameters() if p.requires_grad}) != 1:
        raise ValueError(f"make_model must give parameters to train, of one dtype; got {dtypes or 'none'}.")
    params, buffers = (
        {k: torch.stack([s[i][k].detach() for s in states]).to(device) for k in states[0][i]} for i in (0, 1)
    )
    return Stacked(copy.deepcopy(models[0]).to(device), params, buffers, tuple(seeds))


def unstack(stacked: Stacked, s: int) -> nn.Module:
    """Copy s, 0 to S - 1, as a model of its own in evaluation mode; ValueError when there is none."""
    if not 0 <= s < len(stacked.seeds):
        raise ValueError(f"s must lie in 0..{len(stacked.seeds) - 1}; got {s}.")
    model = copy.deepcopy(stacked.template).eval()
    model.load_state_dict({k: t[s] for k, t in (stacked.params | stacked.buffers).items()}, strict=False)
    return model


@torch.no_grad()
def predict(stacked: Stacked, x: Tensor, own_data: bool = False) -> Tensor:
    """Outputs of all copies in evaluation mode, (S, N, ...), for x (N, ...) or with ``own_data`` (S, N, ...).

    All at once: memory O(S N) activations, so call it by pieces of x where that is too much.
    """
    model = stacked.template.eval()
    call = vmap(lambda p, b, x: functional_call(model, (p, b), (x,)), in_dims=(0, 0, 0 if own_data else None))
    outputs: Tensor = call(stacked.params, stacked.buffers, x)
    return outputs


def minibatches(seeds: Sequence[int], n: int, batch_size: int, steps: int) -> Tensor:
    """Which examples each copy sees at each step, (S, steps, B) int64 on the CPU: 8 S steps B bytes.

    A copy has its own generator and a new permutation of the n examples every n // B steps. The n mod B at its end are
    left out of that epoch: all batches weigh the same. ValueError for no seed, steps below 1 or B outside 1..n.
    """
    if len(seeds) == 0 or steps < 1 or not 1 <= batch_size <= n:
        got = f"{len(seeds)} seeds, {steps} steps, batch_size {batch_size}"
        raise ValueError(f"minibatches needs a seed, a step and a batch_size in 1..{n}, the examples; got {got}.")
    each, rows = n // batch_size, []
    for g in (torch.Generator().manual_seed(seed) for seed in seeds):
        epochs = [torch.randperm(n, generator=g)[: each * batch_size] for _ in range(math.ceil(steps / each))]
        rows.append(torch.cat(epochs).view(-1, batch_size)[:steps])
    return torch.stack(rows)


def train_stacked(
    stacked: Stacked,
    loss: Callable[[Tensor, Tensor], Tensor],
    data: tuple[Tensor, Tensor],
    order: Tensor,
    *,
    optimizer: str = "adam",
    lr: float | Tensor = 1e-3,
    momentum: float | Tensor = 0.0,
    weight_decay: float | Tensor = 0.0,
    schedule: Callable[[int], float] | None = None,
    own_data: bool = False,
    keep_going: bool = False,
) -> Run:
    """Train S copies at once; each equals its separate run with torch.optim up to rounding.

    Args:
        stacked: The copies at their start; not changed.
        loss: Maps one copy's outputs and targets, (B, ...) each, to a scalar.
        data: Inputs and targets, (N, ...) each, shared by all copies; with ``own_data`` (S, N, ...) each.
        order: Rows of the data, (S, steps, B), from :func:`minibatches` or your own.
        optimizer: "sgd" (with ``momentum``), "adam" (decay joins the gradient) or "adamw" (decay apart from it).
        lr, momentum, weight_decay: A number, or one per copy, (S,).
        schedule: Maps the step, from 0, to a factor on lr.
        keep_going: Let copies whose loss is not finite run on beside the others instead of raising.

    Raises:
        ValueError: Shapes or values that do not fit.
        FloatingPointError: A loss is not finite; names the step and the seeds.
    """
    s = len(stacked.seeds)
    x, y = data if own_data else (t.expand(s, *t.shape) for t in data)  # (S, N, ...), a view
    if x.ndim < 2 or x.numel() == 0 or len(x) != s or x.shape[:2] != y.shape[:2]:
        want, got = "(S, N, ...)" if own_data else "(N, ...)", " and ".join(str(tuple(t.shape)) for t in data)
        raise ValueError(f"data must be inputs and targets {want}, with S = {s} copies, not empty; got {got}.")
    if order.ndim != 3 or len(order) != s or order.numel() == 0 or order.min() < 0 or order.max() >= x.shape[1]:
        want = f"({s}, steps, B) with rows in 0..{x.shape[1] - 1}"
        raise ValueError(f"order must be {want}; got shape {tuple(order.shape)}, or other rows.")
    names = [k for k, p in stacked.template.named_parameters() if p.requires_grad]
    theta = torch.cat([stacked.params[k].flatten(1) for k in names], 1)  # (S, P); the parameters are its views
    parts = theta.split([stacked.params[k][0].numel() for k in names], 1)
    free = {k: p.view_as(stacked.params[k]).detach().requires_grad_() for k, p in zip(names, parts, strict=True)}
    fixed = stacked.buffers | {k: p for k, p in stacked.params.items() if k not in free}
    update = _optimizer(optimizer, theta, lr=lr, momentum=momentum, weight_decay=weight_decay)
    model, losses = stacked.template.train(), theta.new_empty(order.shape[:2])
    losses_of = vmap(lambda free, fixed, x, y: loss(functional_call(model, (free, fixed), (x,)), y))
    each, order, total = torch.arange(s, device=x.device)[:, None], order.to(x.device), order.shape[1]
    for step in progress(range(total), "training"):
        rows = order[:, step]  # (S, B)
        values = losses_of(free, fixed, x[each, rows], y[each, rows])
        if values.ndim != 1:
            raise ValueError(f"loss must give a scalar per copy; got shape {tuple(values.shape[1:])}.")
        grads = torch.autograd.grad(values.sum(), list(free.values()))
        losses[:, step] = values.detach()
        update(torch.cat([g.flatten(1) for g in grads], 1), step + 1, schedule(step) if schedule else 1.0)
        if not keep_going and (step % CHECK == CHECK - 1 or step + 1 == total):
            _check_finite(losses[:, : step + 1], [f"copy {i} (seed {seed})" for i, seed in enumerate(stacked.seeds)])
    return Run(stacked._replace(params=stacked.params | {k: p.detach() for k, p in free.items()}), losses, [])


def _check_finite(losses: Tensor, names: list[str]) -> None:
    bad = ~losses.isfinite()  # (S, steps)
    if bad.any():
        step = int(bad.any(0).nonzero()[0])
        who = ", ".join(names[s] for s in bad[:, step].nonzero()[:, 0].tolist())
        raise FloatingPointError(f"The loss is not finite at step {step} in {who}.")


def _optimizer(name: str, theta: Tensor, **options: float | Tensor) -> Callable[[Tensor, int, float], None]:
    """The update of theta (S, P) in place, from gradients (S, P), the step from 1 and the factor on lr."""
    columns = {}
    for option, value in options.items():
        value = torch.as_tensor(value, dtype=theta.dtype, device=theta.device)
        if value.shape not in ((), theta.shape[:1]) or not (value.isfinite() & (value >= 0)).all():
            got = f"{value.tolist()} of shape {tuple(value.shape)}"
            raise ValueError(f"{option} must be a number or ({len(theta)},), finite and not negative; got {got}.")
        columns[option] = value.expand(len(theta))[:, None]
    lr, momentum, decay = columns["lr"], columns["momentum"], columns["weight_decay"]
    if name not in ("sgd", "adam", "adamw") or (name != "sgd" and momentum.any()):
        raise ValueError(f"optimizer must be sgd, adam or adamw, and momentum goes with sgd; got {name!r}.")
    decays = bool(decay.any())
    m, v, u = (torch.zeros_like(theta) for _ in range(3))

    def update(g: Tensor, t: int, factor: float) -> None:  # in place: at these sizes a new tensor costs more than a sum
        if name == "adamw":
            theta.mul_(1 - factor * lr * decay)
        elif decays:
            g.addcmul_(theta, decay)
        if name == "sgd":
            theta.addcmul_(m.mul_(momentum).add_(g), lr, value=-factor)
            return
        m.lerp_(g, 1 - BETA1)
        v.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
        torch.sqrt(v, out=u).div_(math.sqrt(1 - BETA2**t)).add_(EPSILON)
        theta.addcmul_(torch.div(m, u, out=u), lr, value=-factor / (1 - BETA1**t))

    return update


def warmup_cosine(steps: int, warmup: int = 0, floor: float = 0.0) -> Callable[[int], float]:
    """Factor on lr: rises linearly to 1 at step ``warmup``, then falls along half a cosine to ``floor`` at ``steps``.

    Raises ValueError unless 0 <= warmup < steps. Source: Loshchilov and Hutter (2017), SGDR.
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup must lie in 0..{steps - 1}, below steps; got {warmup}.")

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (steps - warmup)))) / 2

    return factor


def train(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    steps: int,
    optimizer: torch.optim.Optimizer,
    *,
    schedule: Callable[[int], float] | None = None,
    clip: float = math.inf,
    mixed: bool = False,
    score: Callable[[nn.Module], float] | None = None,
    every: int = CHECK,
    patience: int | None = None,
) -> Run:
    """Train one model in place, on any batches.

    Args:
        loss: Maps the model and a batch to a scalar.
        batches: At least ``steps`` of them, on the model's device.
        schedule: Maps the step, from 0, to a factor on each group's lr (its rates are put back at the end).
        clip: Largest Euclidean norm of the gradient.
        mixed: Losses in bfloat16 autocast on a GPU; no effect on a CPU.
        score: Validates the model in evaluation mode after ``every`` steps and the last; higher is better, and the
            model ends with the weights of the best.
        patience: Stop after so many scores in a row that do not beat the best.

    Raises:
        ValueError: steps, every or patience below 1, or too few batches.
        FloatingPointError: A loss is not finite; the weights are then of no use.
    """
    if min(steps, every, 1 if patience is None else patience) < 1:
        raise ValueError(f"steps, every and patience must be at least 1; got {steps}, {every} and {patience}.")
    rates, p = [group["lr"] for group in optimizer.param_groups], next(model.parameters())
    supply, losses, best, since = iter(batches), p.new_empty(steps), -math.inf, 0
    scores: list[tuple[int, float]] = []
    weights = None
    for step in progress(range(steps), "training"):
        batch = next(supply, supply)
        if batch is supply:
            raise ValueError(f"batches must hold {steps} batches; they ended after {step}.")
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (schedule(step) if schedule else 1.0)
        with torch.autocast(p.device.type, torch.bfloat16, enabled=mixed and p.device.type == "cuda"):
            value = loss(model.train(), batch)
        optimizer.zero_grad()
        value.backward()
        if clip < math.inf:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses[step] = value.detach()
        done = step + 1
        if done % CHECK == 0 or done == steps:
            _check_finite(losses[None, :done], ["the model"])
        if score is not None and (done % every == 0 or done == steps):
            with torch.no_grad():
                scores.append((done, float(score(model.eval()))))
            since += 1
            if scores[-1][1] > best:
                best, since, weights = scores[-1][1], 0, copy.deepcopy(model.state_dict())
            if since == patience:
                break
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    if weights is not None:
        model.load_state_dict(weights)
    return Run(model.eval(), losses[:done], scores)
