r"""Fisher information of classifiers from per-example scores: short, exact, and slow enough to be an oracle.

Throughout, N examples, C classes, and the score of label c at example n is
:math:`s_{nc} = \nabla_\theta \log p_\theta(c \mid x_n)`. The Fisher information integrates labels out under the model;
the *empirical* Fisher takes the true labels and is another quantity (Kunstner, Hennig and Balles 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

Params = dict[str, Tensor]


def scores(model: nn.Module, x: Tensor) -> tuple[Tensor, Params]:
    """Per-example, per-class scores of a softmax classifier.

    Args:
        model: Maps inputs (N, ...) to logits (N, C); in evaluation mode.
        x: Inputs, (N, ...), N at least 1.

    Returns:
        Probabilities (N, C), and for each parameter the scores, (N, C, *shape of the parameter). Memory O(N C P).

    Raises:
        ValueError: No example, or logits that are not (N, C).
    """
    if len(x) == 0:
        raise ValueError(f"x must hold at least one example; got shape {tuple(x.shape)}.")
    params = {name: p.detach() for name, p in model.named_parameters()}
    logits = model(x[:1])
    if logits.ndim != 2:
        raise ValueError(f"model must return logits (N, C); got shape {tuple(logits.shape)} for one example.")

    def log_p(params: Params, x_n: Tensor) -> Tensor:
        return functional_call(model, params, (x_n[None],))[0].log_softmax(-1)

    probabilities: Tensor = vmap(lambda x_n: log_p(params, x_n).exp())(x)
    return probabilities, vmap(lambda x_n: jacrev(log_p)(params, x_n))(x)


def diagonal_fisher(model: nn.Module, x: Tensor) -> Params:
    r"""Diagonal Fisher information, labels integrated out.

    .. math:: F_j = \frac1N \sum_n \sum_c p(c \mid x_n)\, s_{ncj}^2

    Args:
        model: As in :func:`scores`.
        x: Inputs, (N, ...).

    Returns:
        One tensor per parameter, of its shape, in nats² per squared parameter unit, averaged over examples.
    """
    p, s = scores(model, x)
    return {name: torch.einsum("nc,nc...->...", p, g**2) / len(x) for name, g in s.items()}


def full_fisher(model: nn.Module, x: Tensor) -> Tensor:
    r"""Full Fisher information matrix of a small model, labels integrated out.

    .. math:: F = \frac1N \sum_n \sum_c p(c \mid x_n)\, s_{nc} s_{nc}^\top

    Returns:
        (P, P), parameters in the order of ``model.named_parameters()``, averaged over examples.
    """
    p, s = scores(model, x)
    flat = torch.cat([g.flatten(2) for g in s.values()], dim=2)  # (N, C, P)
    return torch.einsum("nc,ncp,ncq->pq", p, flat, flat) / len(x)


def sampled_diagonal_fisher(model: nn.Module, x: Tensor, samples: int, generator: torch.Generator) -> Params:
    """Unbiased estimate of :func:`diagonal_fisher` from ``samples`` labels an example, drawn from the model.

    Raises:
        ValueError: ``samples`` is below 1.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}.")
    p, s = scores(model, x)
    labels = torch.multinomial(p, samples, replacement=True, generator=generator)  # (N, K)
    rows = torch.arange(len(x), device=x.device)[:, None]
    return {name: (g[rows, labels] ** 2).mean((0, 1)) for name, g in s.items()}


def empirical_diagonal_fisher(model: nn.Module, x: Tensor, y: Tensor) -> Params:
    """Mean squared score at the *true* labels y, (N,) in 0..C-1: not the Fisher information, however often so called.

    Raises:
        ValueError: y does not match x, or holds a class that the model does not have.
    """
    p, s = scores(model, x)
    if y.shape != (len(x),):
        raise ValueError(f"y must have shape ({len(x)},), one label an example; got {tuple(y.shape)}.")
    if y.min() < 0 or y.max() >= p.shape[1]:
        raise ValueError(f"y must lie in 0..{p.shape[1] - 1}; got {int(y.min())}..{int(y.max())}.")
    rows = torch.arange(len(x), device=x.device)
    return {name: (g[rows, y] ** 2).mean(0) for name, g in s.items()}
