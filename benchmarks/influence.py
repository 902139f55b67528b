"""Influence scores and inverse Fisher products: chapters against peers, ``python -m benchmarks.influence``.

kronfluence takes the true labels and keeps nothing in files, so that both sides have the same target and the same
work. The dense solve builds the matrix that M-FAC avoids; conjugate gradients avoid it as well.
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.bench import agree, chapter, compete, measure
from benchmarks.matrices import OURS, noise

LAYERS = ["up", "down"]


class Tokens(nn.Module):
    """A feed-forward layer between embedding and logits; each token sees the mean of what stands before it."""

    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embed, self.up = nn.Embedding(vocabulary, width), nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        return self.down(torch.tanh(self.up(self.embed(x).cumsum(1) / steps)))


def setting(n: int, length: int, vocabulary: int = 64, width: int = 64, hidden: int = 128) -> tuple[Any, ...]:
    """A model, its examples (x, y, mask), and kronfluence's view of both."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kronfluence imports what torch deprecates
        from kronfluence.analyzer import prepare_model
        from kronfluence.task import Task

    class LogLikelihood(Task):
        """Sums of log-likelihoods; each token counts."""

        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:  # noqa: ARG002
            return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return -self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return LAYERS

    torch.manual_seed(0)
    model, task = Tokens(vocabulary, width, hidden), LogLikelihood()
    x, y = torch.randint(0, vocabulary, (2, n, length))
    return model, x, y, torch.ones(n, length, dtype=torch.bool), task, prepare_model(deepcopy(model), task)


def ekfac(n: int = 512, length: int = 16, size: int = 64, rounds: int = 5) -> dict[str, Any]:
    """EK-FAC of a feed-forward layer, from the batches to the corrected eigenvalues."""
    model, x, y, mask, task, tracked = setting(n, length)
    method, fit = chapter("ekfac-influence"), kronfluence_factors(x, y, task, tracked, size)
    batches = list(zip(x.split(size), mask.split(size), strict=True))

    def ours() -> dict[str, Any]:
        labels = iter(2 * y.split(size))  # two passes
        return method.ekfac(model, LAYERS, batches, lambda outputs: [method.label_scores(outputs, next(labels))])

    mine, (bases, squares) = ours(), fit()
    for name in LAYERS:
        V = torch.randn_like(mine[name].Lambda).float()
        f, Q_A, Q_S = mine[name], bases["activation_eigenvectors"][name], bases["gradient_eigenvectors"][name]
        Lambda = squares["lambda_matrix"][name] / n
        agree(method.inverse(V, *f[:3], f.damping), method.inverse(V, Q_A, Q_S, Lambda, f.damping), 1e-3)
    title = f"EK-FAC of a feed-forward layer 64-128-64, {n} sequences of {length} tokens"
    return compete(title, (OURS, ours), {"kronfluence": fit}, rounds)


def kronfluence_factors(x: Tensor, y: Tensor, task: Any, tracked: nn.Module, size: int) -> Any:
    """A function that fits kronfluence's EK-FAC and returns eigenvectors and corrected eigenvalues."""
    from kronfluence.arguments import FactorArguments
    from kronfluence.factor import covariance, eigen
    from kronfluence.utils.state import State

    arguments, state = FactorArguments(use_empirical_fisher=True), State(cpu=True)
    common = {"task": task, "loader": DataLoader(TensorDataset(x, y), size), "factor_args": arguments}

    def fit() -> tuple[dict[str, Any], dict[str, Any]]:
        _, factors = covariance.fit_covariance_matrices_with_loader(tracked, state, disable_tqdm=True, **common)
        bases = eigen.perform_eigendecomposition(factors, tracked, state, arguments, disable_tqdm=True)
        options = {"eigen_factors": bases, "disable_tqdm": True}
        return bases, eigen.fit_lambda_matrices_with_loader(tracked, state, **options, **common)[1]

    return fit


def scores(queries: int = 20, n: int = 512, length: int = 16, size: int = 64, rounds: int = 5) -> dict[str, Any]:
    """Influence of each sequence on each query, by factors fitted before."""
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.score.pairwise import compute_pairwise_scores_with_loaders
    from kronfluence.utils.state import State

    model, x, y, mask, task, tracked = setting(n, length)
    method, damping = chapter("ekfac-influence"), 1e-4
    bases, squares = kronfluence_factors(x, y, task, tracked, size)()
    sides = ("activation_eigenvectors", "gradient_eigenvectors")
    factors = {k: (*(bases[side][k] for side in sides), squares["lambda_matrix"][k] / n) for k in LAYERS}
    batches = list(zip(x.split(size), y.split(size), mask.split(size), strict=True))

    def ours() -> Tensor:
        V = method.gradients(model, LAYERS, x[:queries], y[:queries], mask[:queries])
        R = {name: method.inverse(V[name], *factors[name], damping) for name in LAYERS}
        return torch.cat([method.influence(R, method.gradients(model, LAYERS, *batch)) for batch in batches], 1)

    def peer() -> Tensor:
        found = compute_pairwise_scores_with_loaders(
            bases | squares, tracked, State(cpu=True), task,
            DataLoader(TensorDataset(x[:queries], y[:queries]), queries), queries,
            DataLoader(TensorDataset(x, y), size), ScoreArguments(damping_factor=damping),
            FactorArguments(use_empirical_fisher=True), None, disable_tqdm=True,
        )  # fmt: skip
        return -found["all_modules"]  # of losses, not of log-likelihoods

    agree(ours(), peer(), 1e-3)
    title = f"EK-FAC influence of {n} sequences of {length} tokens on {queries} queries, factors given"
    return compete(title, (OURS, ours), {"kronfluence": peer}, rounds)


def inverse_products(m: int = 32, d: int = 2000, products: int = 1, rounds: int = 31) -> dict[str, Any]:
    """Products with the inverse of a damped empirical Fisher matrix, from the gradients on."""
    from scipy.sparse.linalg import LinearOperator, cg

    method, damping = chapter("m-fac"), 0.01
    G, x = noise(m, d) * torch.logspace(0, -2, m)[:, None].double(), noise(products, d, seed=1)
    g = G.numpy()

    def ours() -> Tensor:
        window = method.Window(G, damping)
        return torch.stack([window.product(row) for row in x])

    def dense() -> Tensor:
        matrix = G.T @ G / m
        matrix.diagonal().add_(damping)
        return torch.cholesky_solve(x.T, torch.linalg.cholesky(matrix)).T

    def iterated() -> np.ndarray:
        fisher = LinearOperator((d, d), lambda v: g.T @ (g @ v) / m + damping * v, dtype=np.float64)
        return np.stack([cg(fisher, row, rtol=1e-10)[0] for row in x.numpy()])

    agree(ours(), dense())
    agree(ours(), iterated(), 1e-6)
    work = f"{products} inverse Fisher product{'s' * (products > 1)}"
    title = f"{work}, {m} gradients of length {d:,}, sizes over two decades"
    peers = {"dense Cholesky solve, PyTorch": dense, "conjugate gradients, SciPy": iterated}
    return compete(title, (OURS, ours), peers, rounds)


def many_products(m: int = 32, d: int = 2000, products: int = 100, rounds: int = 31) -> dict[str, Any]:
    """The same matrix for many vectors."""
    return inverse_products(m, d, products, rounds)


CONTESTS = (ekfac, scores, inverse_products, many_products)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning, module="kronfluence")
    measure("influence", CONTESTS, ("kronfluence", "scipy"))
