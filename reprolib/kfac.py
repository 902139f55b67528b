r"""K-FAC and EK-FAC: a layer's block of the Fisher information as a Kronecker product, or diagonal in its eigenbasis.

A layer has the parameter matrix (W, b), (O, I + 1). At its R positions (tokens, pixels, repeated calls) example n has
inputs :math:`\bar a_{nr}`, ending in 1, and for each v of :mod:`reprolib.fisher` gradients :math:`g_{nkr}` at its
outputs: the gradient of the matrix is :math:`G_{nk} = \sum_r g_{nkr} \bar a_{nr}^\top`. With row-major vec

.. math:: F = \tfrac1N \sum_{nk} \mathrm{vec}(G_{nk}) \mathrm{vec}(G_{nk})^\top \approx S \otimes A
          \approx (Q_S \otimes Q_A) \, \mathrm{diag}(\Lambda) \, (Q_S \otimes Q_A)^\top.

- Sharing "expand": A is the mean of :math:`\bar a \bar a^\top` over all positions of all examples, S the mean over
  examples of the sum of :math:`g g^\top`; "reduce": the same of each example's mean input and summed gradient, as if R
  were 1 (Eschenhagen et al. 2023). Positions outside the batch's mask count in neither.
- K-FAC: :math:`\Lambda = \lambda_S \lambda_A^\top`, of the eigenvalues of S and A (Martens and Grosse 2015).
- EK-FAC: :math:`\Lambda = \tfrac1N \sum_{nk} (Q_S^\top G_{nk} Q_A)^2`, of whole gradients: the diagonal of F in that
  basis, so the best one in Frobenius norm (George et al. 2018; Grosse et al. 2023). Two sweeps over the data.

Sums run in double precision from batch to batch, as do eigendecompositions. Vectors are dictionaries by parameter name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from reprolib.fisher import Batch, Data, Labels, Params, checked, cotangents, mean_over, refuse_noise

Layers = Iterable[str] | type[nn.Module] | None
Damping = float | Mapping[str, float]


class Block(NamedTuple):
    """One layer's block of the Fisher information; eigenvectors are columns, the eigenvalues of A and S ascend."""

    a: Tensor  # A, (I + 1, I + 1); (I, I) without bias; for a convolution I = channels times kernel size
    s: Tensor  # S, (O, O)
    q_a: Tensor
    q_s: Tensor
    eigenvalues: Tensor  # Λ, (O, I + 1)
    shapes: dict[str, torch.Size]  # of weight and bias, by parameter name


Blocks = dict[str, Block]


def _fault(model: nn.Module, module: nn.Module) -> str:
    """Why the parameters' gradient is not known to be the sum of g aᵀ over positions; empty if it is."""
    if type(module).forward not in (nn.Linear.forward, nn.Conv2d.forward) or "weight" not in module._parameters:
        return "must be an nn.Linear or nn.Conv2d with a plain weight"
    plain = ("groups", 1), ("padding_mode", "zeros")
    if isinstance(module.__dict__.get("padding"), str) or any(getattr(module, k, good) != good for k, good in plain):
        return "must have groups=1, padding_mode='zeros' and its padding in numbers"
    for p in module.parameters():
        named = ((f"{path}.{name}", q) for path, m in model.named_modules() for name, q in m._parameters.items())
        if len(names := [name for name, q in named if q is p]) > 1:
            return f"must share no parameter; {' and '.join(names)} are one"
    return ""


def _select(model: nn.Module, layers: Layers) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    if layers is None or isinstance(layers, type):
        chosen = [path for path, m in modules.items() if isinstance(m, layers or (nn.Linear, nn.Conv2d))]
    else:
        chosen = [layers] if isinstance(layers, str) else list(layers)
    if not chosen or not modules.keys() >= set(chosen):
        raise ValueError(f"layers must name modules of the model, at least one; got {chosen} of {[*modules]}.")
    for path in chosen:
        if fault := _fault(model, modules[path]):
            raise ValueError(f"layer {path!r} ({type(modules[path]).__name__}) {fault}.")
    return {path: modules[path] for path in chosen}


def _positions(module: nn.Module, t: Tensor, inputs: bool) -> Tensor:
    """Inputs or output gradients of one call as (N, R, I + 1) or (N, R, O)."""
    biased = inputs and module.bias is not None
    if isinstance(module, nn.Conv2d):
        kernel = module.kernel_size, module.dilation, module.padding, module.stride
        t = F.unfold(t, *kernel) if inputs else t.flatten(2)  # type: ignore[arg-type]  # padding is no str here
        return (F.pad(t, (0, 0, 0, 1), value=1.0) if biased else t).mT
    t = t.reshape(len(t), -1, t.shape[-1])
    return F.pad(t, (0, 1), value=1.0) if biased else t


def _join(calls: list[Tensor]) -> Tensor:
    return calls[0] if len(calls) == 1 else torch.cat(calls, 1)


def layerwise(
    model: nn.Module, batch: Batch, labels: Labels, layers: Mapping[str, nn.Module]
) -> tuple[Params, Iterator[Params]]:
    """Inputs (N, R, I + 1) of each layer that is called, and for each v the gradients (N, R, O) at its outputs.

    One forward pass, and a backward pass for each v as it is asked for. Memory: what the layers take and give.
    """
    refuse_noise(model)
    calls: dict[str, list[tuple[Tensor, int, Tensor]]] = {path: [] for path in layers}

    def hook(path: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        tap = output if output.requires_grad else output.detach().requires_grad_()
        calls[path].append((inputs[0].detach(), inputs[0]._version, tap))
        return tap.clone()  # what follows may change it in place

    handles = [module.register_forward_hook(partial(hook, path)) for path, module in layers.items()]
    try:
        with torch.enable_grad():
            f = model(batch.x)
    finally:
        for handle in handles:
            handle.remove()
    vs = cotangents(checked(f, batch, labels), batch, labels)
    calls = {path: found for path, found in calls.items() if found}
    for path, found in calls.items():
        for a, version, _ in found:
            if a._version != version:
                raise ValueError(f"layer {path!r} takes an input that is changed in place later; write x = x + ....")
            if len(a) != len(batch.x):
                n = len(batch.x)
                raise ValueError(f"layer {path!r} must take inputs ({n}, ...), examples first; got {tuple(a.shape)}.")

    def gradients() -> Iterator[Params]:
        taps = [tap for found in calls.values() for *_, tap in found]
        for v in vs if taps else ():
            g = iter(torch.autograd.grad(f, taps, v, retain_graph=True, materialize_grads=True))
            yield {p: _join([_positions(layers[p], next(g), False) for _ in found]) for p, found in calls.items()}

    return {p: _join([_positions(layers[p], a, True) for a, *_ in c]) for p, c in calls.items()}, gradients()


def _squares(a: Params, gradients: Iterator[Params]) -> Params:
    """Σ_nk (Σ_r g_nkr a_nrᵀ)², (O, I + 1) a layer; with one position the sum over k comes first."""
    total: dict[str, Any] = defaultdict(float)
    for g in gradients:
        for path, g_k in g.items():
            one = g_k.shape[1] == 1
            total[path] += g_k[:, 0].square() if one else torch.bmm(g_k.mT, a[path]).square_().sum(0)
    return {path: t.T @ a[path][:, 0].square() if a[path].shape[1] == 1 else t for path, t in total.items()}


def _split(shapes: dict[str, torch.Size], matrix: Tensor) -> Params:
    """Weight and bias from the matrix (..., O, I + 1)."""
    (weight, shape), *bias = shapes.items()
    columns = shape[1:].numel()
    found = {weight: matrix[..., :columns].reshape(*matrix.shape[:-2], *shape)}
    return found | {name: matrix[..., columns] for name, _ in bias}


def layer_squares(model: nn.Module, batch: Batch, labels: Labels) -> Params:
    """Σ_nk G_nk² by parameter name, for every layer that is called and known: what a diagonal Fisher sums."""
    layers = {path: m for path, m in model.named_modules() if not _fault(model, m)}
    if not layers:
        return {}
    found: Params = {}
    for path, square in _squares(*layerwise(model, batch, labels, layers)).items():
        found |= _split({name: p.shape for name, p in layers[path].named_parameters(path)}, square)
    return found


def _keep(path: str, mask: Tensor | None, positions: int) -> Tensor | None:
    """Positions that count, (N, R, 1): the mask (N, T), once for each call; None if all, as the only one does."""
    if mask is None or (positions == 1 and mask.shape[1] > 1):
        return None
    if positions % mask.shape[1]:
        got = f"{positions} positions, the mask {mask.shape[1]}"
        raise ValueError(f"layer {path!r} must have one position, or those of the mask; it has {got}.")
    return mask.repeat(1, positions // mask.shape[1])[..., None]


def _moments(model: nn.Module, batch: Batch, labels: Labels, layers: dict[str, nn.Module], reduce: bool) -> Params:
    """Sums over a batch that A and S are made of, and the count for A."""
    a, gradients = layerwise(model, batch, labels, layers)
    if idle := layers.keys() - a.keys():
        raise ValueError(f"layer {min(idle)!r} is never called: the model leaves it out or takes its weight.")
    keep = {path: _keep(path, batch.mask, rows.shape[1]) for path, rows in a.items()}
    sums: dict[str, Any] = defaultdict(float)

    def add(name: str, path: str, rows: Tensor) -> None:
        rows = rows if (kept := keep[path]) is None else rows * kept
        rows = rows.sum(1) if reduce else rows.flatten(0, 1)
        sums[name + path] += (rows.T @ rows).double()

    for path, rows in a.items():
        mask = keep[path]
        kept = (torch.ones_like(rows[..., :1]) if mask is None else mask).sum(1, keepdim=True).double()  # (N, 1, 1)
        add("A ", path, rows / kept.clamp_min(1).to(rows.dtype) if reduce else rows)
        sums["count " + path] += kept.clamp_max(1).sum() if reduce else kept.sum()
    for g in gradients:
        for path, rows in g.items():
            add("S ", path, rows)
    return sums


def _kfac(model: nn.Module, data: Data, labels: Labels, layers: Layers = None, sharing: str = "expand") -> Blocks:
    if sharing not in ("expand", "reduce"):
        raise ValueError(f"sharing must be 'expand' or 'reduce'; got {sharing!r}.")
    chosen, blocks = _select(model, layers), {}
    means = mean_over(data, lambda batch: _moments(model, batch, labels, chosen, sharing == "reduce"))
    for path, layer in chosen.items():
        if not means["count " + path]:
            raise ValueError("mask must keep at least one position; got none.")
        factors = means["A " + path] / means["count " + path], means["S " + path]
        (l_a, q_a), (l_s, q_s) = (torch.linalg.eigh((m + m.T) / 2) for m in factors)
        values = torch.outer(l_s.clamp_min(0), l_a.clamp_min(0))
        a, s, q_a, q_s, values = (t.to(layer.get_parameter("weight").dtype) for t in (*factors, q_a, q_s, values))
        blocks[path] = Block(a, s, q_a, q_s, values, {name: p.shape for name, p in layer.named_parameters(path)})
    return blocks


def _ekfac(model: nn.Module, data: Data, labels: Labels, layers: Layers = None, sharing: str = "expand") -> Blocks:
    if isinstance(data, Iterator):
        raise ValueError("data must allow two sweeps (a tensor, a list of batches, a loader); got an iterator.")
    state = labels.generator.get_state() if labels.generator else None
    blocks = _kfac(model, data, labels, layers, sharing)
    if labels.generator and state is not None:
        labels.generator.set_state(state)  # Λ takes the labels that S took
    chosen = _select(model, blocks)

    def squares(batch: Batch) -> Params:
        a, gradients = layerwise(model, batch, labels, chosen)
        a = {path: rows @ blocks[path].q_a for path, rows in a.items()}
        turned = ({path: rows @ blocks[path].q_s for path, rows in g.items()} for g in gradients)
        return {path: square.double() for path, square in _squares(a, turned).items()}

    found = mean_over(data, squares)
    return {path: b._replace(eigenvalues=found[path].to(b.a.dtype)) for path, b in blocks.items()}


def kfac(model: nn.Module, data: Data, likelihood: str = "categorical", **options: Any) -> Blocks:
    """K-FAC of the exact Fisher information: a block for each layer, by its path.

    Args:
        model: Maps inputs (N, ...) to outputs (N, C) or (N, T, C), in evaluation mode.
        data: As :mod:`reprolib.fisher` says; swept once, by EK-FAC twice.
        likelihood: "categorical" (logits) or "gaussian" (means, variance 1).
        options: ``layers``, paths or a class, by default every nn.Linear and nn.Conv2d, each used by calling it and
            sharing no parameter with another; ``sharing``, "expand" (the default) or "reduce".

    Raises:
        ValueError: A layer that is unknown, unsupported, never called or shares a parameter; other bad arguments.
    """
    return _kfac(model, data, Labels("exact", likelihood), **options)


def sampled_kfac(
    model: nn.Module, data: Data, samples: int, generator: Generator, likelihood: str = "categorical", **options: Any
) -> Blocks:
    """:func:`kfac` with S from ``samples`` labels an output, drawn from the model."""
    return _kfac(model, data, Labels("sampled", likelihood, samples, generator), **options)


def empirical_kfac(model: nn.Module, data: Data, likelihood: str = "categorical", **options: Any) -> Blocks:
    """:func:`kfac` with S from the true labels in ``data``."""
    return _kfac(model, data, Labels("empirical", likelihood), **options)


def ekfac(model: nn.Module, data: Data, likelihood: str = "categorical", **options: Any) -> Blocks:
    """EK-FAC of the exact Fisher information, arguments as for :func:`kfac`."""
    return _ekfac(model, data, Labels("exact", likelihood), **options)


def sampled_ekfac(
    model: nn.Module, data: Data, samples: int, generator: Generator, likelihood: str = "categorical", **options: Any
) -> Blocks:
    """:func:`ekfac` from ``samples`` labels an output, drawn from the model, the same for S and Λ."""
    return _ekfac(model, data, Labels("sampled", likelihood, samples, generator), **options)


def empirical_ekfac(model: nn.Module, data: Data, likelihood: str = "categorical", **options: Any) -> Blocks:
    """:func:`ekfac` from the true labels in ``data``."""
    return _ekfac(model, data, Labels("empirical", likelihood), **options)


def _rotated(blocks: Blocks, v: Params, weigh: Callable[[str, Block], Tensor]) -> Params:
    """Q_S ((Q_Sᵀ V Q_A) ∘ weights) Q_Aᵀ for each layer's matrix V."""
    shapes = {name: shape for b in blocks.values() for name, shape in b.shapes.items()}
    if v.keys() != shapes.keys() or any(v[name].shape[-len(s) :] != s for name, s in shapes.items()):
        need, got = ({name: tuple(s) for name, s in d.items()} for d in (shapes, {k: t.shape for k, t in v.items()}))
        raise ValueError(f"v must hold {need}, after any leading dimensions; got {got}.")
    found: Params = {}
    for path, b in blocks.items():
        weight, *bias = (v[name] for name in b.shapes)
        lead = weight.shape[: weight.ndim - len(next(iter(b.shapes.values())))]
        matrix = torch.cat([weight.reshape(*lead, len(b.s), -1), *(t[..., None] for t in bias)], -1)
        found |= _split(b.shapes, b.q_s @ ((b.q_s.T @ matrix @ b.q_a) * weigh(path, b)) @ b.q_a.T)
    return found


def multiply(blocks: Blocks, v: Params) -> Params:
    """F v for the blocks' F; v by parameter name, each of its shape after any leading dimensions, as is the result."""
    return _rotated(blocks, v, lambda _, b: b.eigenvalues)


def mean_damping(blocks: Blocks, factor: float = 0.1) -> dict[str, float]:
    """``factor`` times the mean of Λ, layer by layer: the heuristic of Grosse et al. (2023)."""
    return {path: factor * b.eigenvalues.mean().item() for path, b in blocks.items()}


def _lambda(damping: Damping, path: str) -> float:
    if path not in (value := damping if isinstance(damping, Mapping) else {path: damping}) or not value[path] > 0:
        raise ValueError(f"damping must be above 0 for layer {path!r}; got {damping}.")
    return value[path]


def solve(blocks: Blocks, v: Params, damping: Damping) -> Params:
    """(F + λI)⁻¹ v, exact for the blocks' F; damping λ above 0, one number or one a layer; v as :func:`multiply`."""
    return _rotated(blocks, v, lambda path, b: 1 / (b.eigenvalues + _lambda(damping, path)))


def factored_solve(blocks: Blocks, v: Params, damping: Damping) -> Params:
    """((S + √λ/π I) ⊗ (A + π√λ I))⁻¹ v, π² = mean eigenvalue of A over that of S (Martens and Grosse 2015, 6.3)."""

    def weights(path: str, b: Block) -> Tensor:
        l_a, l_s = ((q * (m @ q)).sum(0) for m, q in ((b.a, b.q_a), (b.s, b.q_s)))
        root, pi = _lambda(damping, path) ** 0.5, (l_a.mean() / l_s.mean()).sqrt()
        if not 0 < pi < float("inf"):
            raise ValueError(f"layer {path!r} must have A and S above zero; got π = {pi:g}.")
        return 1 / torch.outer(l_s + root / pi, l_a + root * pi)

    return _rotated(blocks, v, weights)


def dense(block: Block) -> Tensor:
    """The block as a matrix over the row-major (W, b), (O (I + 1), O (I + 1)); for small layers."""
    q = torch.kron(block.q_s, block.q_a)
    return (q * block.eigenvalues.flatten()) @ q.T
