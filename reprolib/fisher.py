r"""Fisher information, exact, sampled or *empirical*: per-example gradients, matrices, blocks, diagonals, products.

Example n of N has outputs :math:`f_n`, logits of a categorical or means of a unit-variance Gaussian: (C,), or (T, C)
for sequences, whose labels are independent given the input. With :math:`J_n = \partial f_n / \partial \theta`

.. math:: F = \frac1N \sum_n \sum_k (J_n^\top v_{nk}) (J_n^\top v_{nk})^\top

- exact: :math:`\sum_k v_{nk} v_{nk}^\top` is the Hessian of :math:`-\log p(y \mid f_n)` in :math:`f_n`: labels are
  integrated out, and F is the generalised Gauss-Newton matrix too;
- ``sampled_``: scores of labels drawn from the model: unbiased. Drawn example by example: a generator on the CPU gives
  the same labels however the data are batched;
- ``empirical_``: scores of the *true* labels, not the Fisher information (Kunstner, Hennig and Balles 2019).

Sums over positions, means over examples; all parameters, frozen or not, tied ones once. ``data`` is a tensor of inputs
(N, ...) or an iterable of :class:`Batch`, tuples or tensors (:func:`batches`). ValueError meets data, labels, masks or
outputs that do not fit or are not finite, and active dropout or batch norm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, cg
from torch import Generator, Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

Params = dict[str, Tensor]
Data = Tensor | Iterable[Any]
Product = Callable[[Tensor], Tensor]


class Batch(NamedTuple):
    """Inputs and what goes with them; a plain tuple in this order will do."""

    x: Tensor  # (N, ...)
    y: Tensor | None = None  # categorical: (N,) or (N, T); Gaussian: as the outputs
    mask: Tensor | None = None  # (N, T), bool: positions that count


class Labels(NamedTuple):
    """Where labels come from ("exact", "sampled", "empirical") and the likelihood ("categorical", "gaussian")."""

    source: str
    likelihood: str = "categorical"
    samples: int = 1
    generator: Generator | None = None


def batches(x: Tensor, y: Tensor | None = None, mask: Tensor | None = None, batch_size: int = 0) -> list[Batch]:
    """Views of the data, ``batch_size`` examples each, or all in one batch if it is 0."""
    if any(t is not None and len(t) != len(x) for t in (y, mask)) or batch_size < 0:
        lengths = [t if t is None else len(t) for t in (x, y, mask)]
        raise ValueError(f"x, y, mask must share a length, batch_size be 0 or more; got {lengths}, {batch_size}.")
    size = batch_size or max(len(x), 1)
    cuts = [slice(i, i + size) for i in range(0, len(x), size)]
    return [Batch(x[cut], y if y is None else y[cut], mask if mask is None else mask[cut]) for cut in cuts]


def stream(data: Data) -> Iterator[Batch]:
    """The batches of ``data``, at least one and none of them empty."""
    batch = None
    for item in [data] if isinstance(data, Tensor | Batch) else data:
        batch = Batch(item) if isinstance(item, Tensor) else Batch(*item)
        if len(batch.x) == 0:
            raise ValueError(f"x must hold at least one example; got shape {tuple(batch.x.shape)}.")
        yield batch
    if batch is None:
        raise ValueError("data must hold at least one example; got no batch (a generator that is spent?).")


def refuse_noise(model: nn.Module) -> None:
    """Raise ValueError where examples mix or noise is drawn: then no per-example gradient exists."""
    for path, m in model.named_modules():
        rate = m.p if isinstance(m, _DropoutNd) else getattr(m, "dropout", 0)
        if m.training and (isinstance(m, _BatchNorm) or (isinstance(rate, int | float) and rate > 0)):
            raise ValueError(f"model must be in evaluation mode; {path or 'it'} ({type(m).__name__}) is training.")


def checked(f: Tensor, batch: Batch, labels: Labels) -> Tensor:
    """The outputs (N, C) or (N, T, C) of a batch, detached, if they, its labels and its mask fit each other."""
    x, y, mask = batch
    source, likelihood, samples, generator = labels
    if source not in ("exact", "sampled", "empirical"):
        raise ValueError(f"source of labels must be 'exact', 'sampled' or 'empirical'; got {source!r}.")
    if likelihood not in ("categorical", "gaussian"):
        raise ValueError(f"likelihood must be 'categorical' or 'gaussian'; got {likelihood!r}.")
    if f.ndim not in (2, 3) or len(f) != len(x):
        raise ValueError(f"model must return (N, C) or (N, T, C) with N = {len(x)}; got shape {tuple(f.shape)}.")
    if likelihood == "categorical" and f.shape[-1] < 2:
        raise ValueError(f"a categorical likelihood must have at least two classes; got outputs {tuple(f.shape)}.")
    if not f.isfinite().all():
        raise ValueError("the model's outputs must be finite; got NaN or infinity: see its inputs and parameters.")
    if mask is not None and (f.ndim == 2 or mask.shape != f.shape[:2] or mask.dtype != torch.bool):
        need = f"bool, (N, T) for outputs (N, T, C), here {tuple(f.shape)}"
        raise ValueError(f"mask must be {need}; got {mask.dtype}, {tuple(mask.shape)}.")
    if source == "sampled" and (samples < 1 or generator is None):
        raise ValueError(f"samples must be at least 1; got {samples}; and generator be given; got {generator}.")
    if source == "empirical":
        shape = tuple(f.shape if likelihood == "gaussian" else f.shape[:-1])
        if y is None or y.shape != shape:
            raise ValueError(f"y must have shape {shape}; got {y if y is None else tuple(y.shape)}.")
        y, c = y if mask is None else y[mask], f.shape[-1]
        if likelihood == "categorical" and (y.is_floating_point() or (y < 0).any() or (y >= c).any()):
            raise ValueError(f"y must lie in 0..{c - 1}, integer; got {y.dtype}, {y.min()}..{y.max()}.")
        if not y.isfinite().all():
            raise ValueError("y must be finite; got NaN or infinity.")
    return f.detach()


def cotangents(f: Tensor, batch: Batch, labels: Labels) -> Iterator[Tensor]:
    """The v of the module's formula, each of the shape of f: K of them.

    K is ``samples``, or 1 if empirical; exact it is C for a Gaussian, C − 1 for a categorical, T times that for
    sequences, whose positions are independent.
    """
    categorical, c, exact = labels.likelihood == "categorical", f.shape[-1], labels.source == "exact"
    drop = torch.zeros_like(f[..., :1], dtype=torch.bool) if batch.mask is None else ~batch.mask[..., None]
    p = f.softmax(-1)
    for v in () if not exact else _roots(p) if categorical else torch.eye(c, dtype=f.dtype, device=f.device):
        heres = torch.eye(f.shape[1], dtype=f.dtype, device=f.device) if f.ndim == 3 else f.new_ones(1, 1)
        yield from (v.expand_as(f).masked_fill(drop, 0) * here[:, None] for here in heres)
    for y in () if exact else batch.y[None] if labels.source == "empirical" else _draw(f, labels):  # type: ignore[index]
        v = F.one_hot(y.masked_fill(drop[..., 0], 0), c).to(f.dtype) - p if categorical else y - f
        yield v.masked_fill(drop, 0) / labels.samples**0.5


def _roots(p: Tensor) -> Iterator[Tensor]:
    """The C − 1 columns of the Cholesky factor of diag p − p pᵀ, each of the shape of p (Tanabe and Sagae 1992)."""
    tails = p.flip(-1).cumsum(-1).flip(-1).clamp_min(torch.finfo(p.dtype).tiny)  # Σ_{i ≥ j} p_i
    for j in range(p.shape[-1] - 1):
        v = -p * (torch.arange(p.shape[-1], device=p.device) > j)
        v[..., j] = tails[..., j + 1]
        yield v * (p[..., j] / tails[..., j] / tails[..., j + 1]).sqrt()[..., None]


def _draw(f: Tensor, labels: Labels) -> Tensor:
    """K labels an output drawn from the model, ``(K, *shape of y)``, by inverse distribution functions."""
    categorical, generator = labels.likelihood == "categorical", labels.generator
    device = generator.device if generator else f.device
    shape = len(f), labels.samples, *(f.shape[1:-1] if categorical else f.shape[1:])
    u = torch.rand(shape, generator=generator, device=device, dtype=torch.float64).to(f.device)
    if not categorical:
        return f + torch.special.ndtri(u.clamp_min(2**-54)).movedim(1, 0).to(f.dtype)
    cdf = f.double().softmax(-1).cumsum(-1)  # (N, C) or (N, T, C)
    y = torch.searchsorted(cdf, u.movedim(1, -1).contiguous() * cdf[..., -1:], right=True)  # (N, K) or (N, T, K)
    return y.clamp_max(f.shape[-1] - 1).movedim(-1, 0)


def pull_back(model: nn.Module, x: Tensor, v: Tensor, names: Container[str] | None = None) -> Params:
    """J_nᵀ v_nk for v ``(N, K, *outputs)``, by torch.func: ``(N, K, *shape)`` for the parameters named, or all."""
    fixed = {name: p.detach() for name, p in model.named_parameters()}
    params = {name: p for name, p in fixed.items() if names is None or name in names}

    def one(x_n: Tensor, v_n: Tensor) -> Params:
        back = vjp(lambda params: functional_call(model, fixed | params, (x_n[None],))[0], params)[1]
        return vmap(lambda v_nk: back(v_nk)[0])(v_n)

    with sdpa_kernel(SDPBackend.MATH):
        return vmap(one)(x, v)


def scores_at(model: nn.Module, batch: Batch, labels: Labels, names: Container[str] | None = None) -> Params:
    """J_nᵀ v_nk of a batch, as :func:`pull_back`: memory O(N K P)."""
    refuse_noise(model)
    with torch.no_grad():
        f = checked(model(batch.x), batch, labels)
    return pull_back(model, batch.x, torch.stack([*cotangents(f, batch, labels)], 1), names)


def scores(model: nn.Module, x: Tensor) -> tuple[Tensor, Params]:
    """Probabilities (N, C) of a classifier, and the score of each class, ``(N, C, *shape of the parameter)``."""
    refuse_noise(model)
    with torch.no_grad():
        (batch,) = stream(x)
        p = checked(model(x), batch, Labels("exact", "categorical")).softmax(-1)
    if p.ndim != 2:
        raise ValueError(f"model must return logits (N, C); got shape {tuple(p.shape)}.")
    return p, pull_back(model, x, torch.eye(p.shape[1], dtype=p.dtype, device=p.device) - p[:, None])


def per_example_gradients(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Params:
    """Gradients of the scalar ``loss(outputs (1, ...), y (1, ...))`` of each of N examples: ``(N, *shape)``, O(N P)."""
    refuse_noise(model)
    (batch,) = stream(batches(x, y))
    params = {name: p.detach() for name, p in model.named_parameters()}

    def one(params: Params, x_n: Tensor, y_n: Tensor) -> Tensor:
        return loss(functional_call(model, params, (x_n[None],)), y_n[None])

    with sdpa_kernel(SDPBackend.MATH):
        return vmap(grad(one), (None, 0, 0))(params, batch.x, y)


def mean_over(data: Data, part: Callable[[Batch], Params]) -> Params:
    """Sums of a batch's examples, added over the batches and divided by the number of all examples."""
    total: dict[str, Any] = defaultdict(float)
    n = 0
    for batch in stream(data):
        n += len(batch.x)
        for name, value in part(batch).items():
            total[name] += value
    return {name: value / n for name, value in total.items()}


def _outer(model: nn.Module, data: Data, labels: Labels, whole: bool = False) -> Params:
    def part(batch: Batch) -> Params:
        flat = {name: s.flatten(2).flatten(0, 1) for name, s in scores_at(model, batch, labels).items()}  # (N K, p)
        flat = {"": torch.cat([*flat.values()], 1)} if whole else flat
        return {name: s.T @ s for name, s in flat.items()}

    return mean_over(data, part)


def _diagonal(model: nn.Module, data: Data, labels: Labels) -> Params:
    from reprolib.kfac import layer_squares  # which builds on this module

    names, generator = [name for name, _ in model.named_parameters()], labels.generator

    def part(batch: Batch) -> Params:
        state = None if generator is None else generator.get_state()
        found = layer_squares(model, batch, labels)
        if rest := {*names} - found.keys():
            if found and generator is not None and state is not None:
                generator.set_state(state)  # the same labels once more
            found |= {name: s.square().sum((0, 1)) for name, s in scores_at(model, batch, labels, rest).items()}
        return {name: found[name] for name in names}

    return mean_over(data, part)


def full_fisher(model: nn.Module, data: Data, likelihood: str = "categorical") -> Tensor:
    """Exact Fisher information of a small model, (P, P), in the order of ``model.named_parameters()``.

    Args:
        model: Maps inputs (N, ...) to outputs (N, C) or (N, T, C), each example on its own.
        data: As the module says.
        likelihood: "categorical" (logits) or "gaussian" (means, variance 1).

    Returns:
        In nats² per product of two parameters' units. Memory O(N K P + P²), N of a batch, K = C or T C.
    """
    return _outer(model, data, Labels("exact", likelihood), whole=True)[""]


def sampled_full_fisher(
    model: nn.Module, data: Data, samples: int, generator: Generator, likelihood: str = "categorical"
) -> Tensor:
    """Unbiased estimate of :func:`full_fisher` from ``samples`` labels an output."""
    return _outer(model, data, Labels("sampled", likelihood, samples, generator), whole=True)[""]


def empirical_full_fisher(model: nn.Module, data: Data, likelihood: str = "categorical") -> Tensor:
    """Mean outer product of scores at the true labels in ``data``, (P, P)."""
    return _outer(model, data, Labels("empirical", likelihood), whole=True)[""]


def block_fisher(model: nn.Module, data: Data, likelihood: str = "categorical") -> Params:
    """Diagonal blocks of :func:`full_fisher`, one for each parameter tensor: p elements give (p, p)."""
    return _outer(model, data, Labels("exact", likelihood))


def sampled_block_fisher(
    model: nn.Module, data: Data, samples: int, generator: Generator, likelihood: str = "categorical"
) -> Params:
    """Unbiased estimate of :func:`block_fisher` from ``samples`` labels an output."""
    return _outer(model, data, Labels("sampled", likelihood, samples, generator))


def empirical_block_fisher(model: nn.Module, data: Data, likelihood: str = "categorical") -> Params:
    """Diagonal blocks of :func:`empirical_full_fisher`, one for each parameter tensor."""
    return _outer(model, data, Labels("empirical", likelihood))


def diagonal_fisher(model: nn.Module, data: Data, likelihood: str = "categorical") -> Params:
    """The diagonal of :func:`full_fisher`, one tensor for each parameter, of its shape.

    One forward and K backward passes a batch for linear and convolutional layers that are used by calling them, by
    their formulas; per-example gradients, memory O(N K p), for the p parameters that other modules hold.
    """
    return _diagonal(model, data, Labels("exact", likelihood))


def sampled_diagonal_fisher(
    model: nn.Module, data: Data, samples: int, generator: Generator, likelihood: str = "categorical"
) -> Params:
    """Unbiased estimate of :func:`diagonal_fisher` from ``samples`` labels an output."""
    return _diagonal(model, data, Labels("sampled", likelihood, samples, generator))


def empirical_diagonal_fisher(
    model: nn.Module, data: Data, y: Tensor | None = None, likelihood: str = "categorical"
) -> Params:
    """Mean squared score at the true labels, given as y or in ``data``: not the Fisher information."""
    data = batches(data, y) if isinstance(data, Tensor) else data
    return _diagonal(model, data, Labels("empirical", likelihood))


def _product(model: nn.Module, batch: Batch, likelihood: str) -> Product:
    """v ↦ Σ_n J_nᵀ H_n J_n v over one graph: Jᵀu is linear in u, and its own transpose gives J v."""
    params = {name: p.detach() for name, p in model.named_parameters()}
    theta = torch.cat([p.flatten() for p in params.values()]).requires_grad_()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # other attention kernels have no second derivative
        parts = theta.split([p.numel() for p in params.values()])
        f = functional_call(model, {k: t.view_as(params[k]) for k, t in zip(params, parts, strict=True)}, batch.x)
        u = torch.zeros_like(f, requires_grad=True)
        (back,) = torch.autograd.grad(f, theta, u, create_graph=True)
    p = checked(f, batch, Labels("exact", likelihood)).softmax(-1)
    drop = torch.zeros_like(p[..., :1], dtype=torch.bool) if batch.mask is None else ~batch.mask[..., None]

    def product(v: Tensor) -> Tensor:
        (jv,) = torch.autograd.grad(back, u, v, retain_graph=True)
        h = p * (jv - (p * jv).sum(-1, keepdim=True)) if likelihood == "categorical" else jv
        return torch.autograd.grad(f, theta, h.masked_fill(drop, 0), retain_graph=True)[0]

    return product


def fisher_product(model: nn.Module, data: Data, likelihood: str = "categorical") -> Product:
    """The map v ↦ F v of the exact F of :func:`full_fisher`, v (P,) or (K, P), flat in the order of its rows.

    Holds the graph of all data; each vector costs about two backward passes, with no forward pass.
    """
    refuse_noise(model)
    work = [(len(batch.x), _product(model, batch, likelihood)) for batch in stream(data)]
    n, size = sum(length for length, _ in work), sum(p.numel() for p in model.parameters())

    def product(v: Tensor) -> Tensor:
        if v.ndim not in (1, 2) or v.shape[-1] != size:
            raise ValueError(f"v must be ({size},) or (K, {size}); got {tuple(v.shape)}.")
        if v.ndim == 2:
            return torch.stack([product(row) for row in v])
        return sum((part(v) for _, part in work), torch.zeros_like(v)) / n

    return product


def fisher_solve(
    product: Product, v: Tensor, damping: float, tolerance: float = 1e-6, max_iterations: int = 1000
) -> Tensor:
    """(F + λI)⁻¹ v by conjugate gradients, for v (P,) or (K, P), ``product`` v ↦ F v and damping λ above 0.

    Raises:
        ValueError: λ not above 0, or a residual above ``tolerance`` times the norm of v after ``max_iterations``.
    """
    if not damping > 0:
        raise ValueError(f"damping must be above 0; got {damping}.")
    if v.ndim == 2:
        return torch.stack([fisher_solve(product, row, damping, tolerance, max_iterations) for row in v])

    def damped(u: Any) -> Any:
        row = torch.as_tensor(u, dtype=v.dtype, device=v.device)
        return (product(row) + damping * row).cpu().numpy()

    b = v.detach().cpu().numpy()
    system = LinearOperator((len(b), len(b)), matvec=damped, dtype=b.dtype)
    found, _ = cg(system, b, rtol=tolerance, maxiter=max_iterations)
    if not (left := np.linalg.norm(damped(found) - b)) <= 2 * tolerance * np.linalg.norm(b):
        goal = f"a residual of {tolerance:g} |v| = {tolerance * np.linalg.norm(b):.1e} in {max_iterations} iterations"
        raise ValueError(f"fisher_solve must reach {goal}; got {left:.1e}: raise damping, or either limit.")
    return torch.as_tensor(found, dtype=v.dtype, device=v.device)
