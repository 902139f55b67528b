"""Determinantal points, sketches, sparse regression, streams: chapters and peers, ``python -m benchmarks.sampling``.

What is random is compared in law: both sides are drawn from their own generators, and tests of fit must not refuse.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy import linalg, stats
from torch import Tensor

from benchmarks.bench import agree, chapter, compete, measure
from benchmarks.matrices import OURS, noise

CHANCE = 1e-5  # a p-value below this is a mistake


def same_law(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Column by column, two samples of one distribution (Kolmogorov and Smirnov).

    Raises:
        ValueError: They are not; says how unlikely that would be.
    """
    p = min(stats.ks_2samp(a, b).pvalue for a, b in zip(ours.T, theirs.T, strict=True))
    if p < CHANCE:
        raise ValueError(f"The contestants draw from different laws (p = {p:.1e}).")


def interval_points(m: int = 10, draws: int = 100, rounds: int = 31) -> dict[str, Any]:
    """The projection DPP of polynomials on an interval, by matrix models."""
    from dppy.beta_ensembles import JacobiEnsemble

    method, peer = chapter("dpp-least-squares"), JacobiEnsemble(2)
    g, state = torch.Generator().manual_seed(0), np.random.RandomState(0)
    size = {"size_N": m, "size_M1": m, "size_M2": m, "random_state": state}

    def ours() -> Tensor:
        return method.interval_dpp(m, draws, g)

    def sorted_points(sample: Any) -> np.ndarray:
        peer.flush_samples()
        for _ in range(draws):
            sample(**size)
        return np.sort(2 * np.stack(peer.list_of_samples) - 1, 1)

    def full() -> np.ndarray:
        return sorted_points(peer.sample_full_model)

    def banded() -> np.ndarray:
        return sorted_points(peer.sample_banded_model)

    found = ours().numpy()
    same_law(found, full())
    same_law(found, banded())
    title = f"{draws} draws of {m} determinantal points of an interval"
    return compete(title, (OURS, ours), {"dppy, full matrices": full, "dppy, tridiagonal": banded}, rounds)


def finite_points(n: int = 200, m: int = 10, draws: int = 100, rounds: int = 31) -> dict[str, Any]:
    """A projection DPP of finitely many points, by the chain rule."""
    from dppy.finite_dpps import FiniteDPP

    method, q = chapter("dpp-least-squares"), np.linalg.qr(noise(n, m).numpy())[0]
    space = method.finite(torch.from_numpy(q * math.sqrt(n)))
    g, state = torch.Generator().manual_seed(0), np.random.RandomState(0)
    peer = FiniteDPP("correlation", projection=True, K=q @ q.T)

    def ours() -> np.ndarray:
        return method.chain_rule(space, draws, g).numpy()

    def theirs() -> np.ndarray:
        peer.flush_samples()
        return np.array([peer.sample_exact(random_state=state) for _ in range(draws)])

    chance = (q**2).sum(1)  # of each point to be drawn
    for drawn in (ours(), theirs()):
        count = np.bincount(drawn.astype(int).ravel(), minlength=n)
        p = stats.binomtest
        if min(p(int(k), draws, float(c)).pvalue for k, c in zip(count, chance, strict=True)) < CHANCE / n:
            raise ValueError("A contestant draws some point too often or too rarely.")
    title = f"{draws} draws of {m} determinantal points out of {n}"
    return compete(title, (OURS, ours), {"dppy": theirs}, rounds)


def sketches(n: int = 8192, d: int = 32, m: int = 1024, draws: int = 8, rounds: int = 31) -> dict[str, Any]:
    """CountSketches of a tall matrix."""
    method, X = chapter("linf-sketched-regression"), noise(n, d)
    g, random = torch.Generator().manual_seed(0), np.random.default_rng(0)

    def ours() -> Tensor:
        return method.osnap(X, m, draws, g)

    def peer() -> np.ndarray:
        return np.stack([linalg.clarkson_woodruff_transform(X.numpy(), m, seed=random) for _ in range(draws)])

    one = torch.eye(64, dtype=torch.float64)  # then the sketch is S itself: one entry ±1 a column
    for S in (method.osnap(one, 16, 1, g)[0].numpy(), linalg.clarkson_woodruff_transform(one.numpy(), 16, seed=random)):
        agree(np.sort(np.abs(S), 0), np.eye(16)[:, -1:].repeat(64, 1))
    title = f"{draws} CountSketches of {n:,} × {d} to {m:,} rows"
    return compete(title, (OURS, ours), {"SciPy": peer}, rounds)


def exact_fits(n: int = 8192, d: int = 64, rounds: int = 31) -> dict[str, Any]:
    """Dense least squares, the answer that sketches are measured against."""
    method, A, b = chapter("linf-sketched-regression"), noise(n, d), noise(n, seed=1)

    def ours() -> Tensor:
        return method.problem(A, b).x_star

    def divided() -> np.ndarray:
        return np.linalg.lstsq(A.numpy(), b.numpy())[0]

    def pivoted() -> np.ndarray:
        return linalg.lstsq(A.numpy(), b.numpy(), lapack_driver="gelsy")[0]

    agree(ours(), divided())
    agree(ours(), pivoted())
    peers = {"NumPy, lstsq (gelsd)": divided, "SciPy, lstsq (gelsy)": pivoted}
    return compete(f"Least squares, {n:,} × {d}, with condition and residual", (OURS, ours), peers, rounds)


def lasso_paths(B: int = 20, n: int = 120, d: int = 300, steps: int = 80, rounds: int = 5) -> dict[str, Any]:
    """Exact Lasso paths by homotopy."""
    from sklearn.linear_model import lars_path

    X, y, method = noise(B, n, d), noise(B, n, seed=1), chapter("sparse-regression-random-supports")
    X = X / X.norm(dim=1, keepdim=True) * math.sqrt(n)

    def ours() -> Tensor:
        return method.lasso_path(X, y, steps).lambdas

    def peer() -> np.ndarray:
        pairs = zip(X.numpy(), y.numpy(), strict=True)
        return np.stack([lars_path(x, v, method="lasso", max_iter=steps)[0] for x, v in pairs])

    agree(ours(), peer(), 1e-6)
    title = f"{B} Lasso paths of {steps} events, {n} rows, {d} columns"
    return compete(title, (OURS, ours), {"scikit-learn, lars_path": peer}, rounds)


def pursuits(B: int = 20, n: int = 120, d: int = 300, most: int = 16, rounds: int = 31) -> dict[str, Any]:
    """Orthogonal matching pursuit, all fits on the way."""
    from sklearn.linear_model import orthogonal_mp

    X, y, method = noise(B, n, d), noise(B, n, seed=1), chapter("sparse-regression-random-supports")
    X = X / X.norm(dim=1, keepdim=True) * math.sqrt(n)

    def ours() -> Tensor:
        return method.omp_fits(X, y, most)[:, -1]

    def peer() -> np.ndarray:
        options = {"n_nonzero_coefs": most, "return_path": True}
        pairs = zip(X.numpy(), y.numpy(), strict=True)
        return np.stack([x @ orthogonal_mp(x, v, **options)[:, -1] for x, v in pairs])

    agree(ours(), peer())
    title = f"{B} orthogonal matching pursuits to {most} of {d} columns, {n} rows"
    return compete(title, (OURS, ours), {"scikit-learn": peer}, rounds)


def streams(n: int = 12_800, d: int = 128, rounds: int = 31) -> dict[str, Any]:
    """The top eigenvector in one pass over rows."""
    from scipy.sparse.linalg import svds
    from sklearn.decomposition import IncrementalPCA

    method, A, start = chapter("streaming-top-eigenvector"), noise(n // 2, d), noise(d, 1, seed=1)
    A[:, 0] *= 4
    A = torch.cat([A, -A])[torch.randperm(n, generator=torch.Generator().manual_seed(2))]  # IncrementalPCA centres

    def ours() -> Tensor:
        run = method.OnePass(n, start)
        run.feed(A)
        return method.finish(run).v

    def incremental() -> np.ndarray:
        return IncrementalPCA(1, batch_size=4 * d).fit(A.numpy()).components_[0]

    def held() -> np.ndarray:
        return svds(A.numpy(), 1, rng=0)[2][0].copy()

    exact = torch.from_numpy(held())
    for v in (ours(), torch.from_numpy(incremental())):
        agree(abs(v @ exact).item(), 1.0, 0.02)
    title = f"Top eigenvector of {n:,} rows of length {d}, sine² below 0.04"
    peers = {"scikit-learn, IncrementalPCA": incremental, "SciPy, svds, all rows in memory": held}
    return compete(title, (OURS, ours), peers, rounds)


def processes(kernels: int = 30, n: int = 80, rounds: int = 31) -> dict[str, Any]:
    """Log-densities of one vector under Gaussian processes with Matérn kernels of different lengths."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Matern

    method, x = chapter("gp-hf-pde"), torch.linspace(0, 1, n, dtype=torch.float64)
    u, ell = noise(1, n), torch.linspace(1, 4, kernels, dtype=torch.float64)[:, None]
    one = torch.ones_like(ell)
    model = GaussianProcessRegressor(Matern(1.0, nu=2.5), alpha=method.JITTER, optimizer=None)
    model.fit(x[:, None].numpy(), u[0].numpy())

    def ours() -> Tensor:
        L, _ = method.covariances(*method.kernel("StM", one, ell, 0 * one, x))
        white = torch.linalg.solve_triangular(L, u.mT, upper=False)
        half_log_det = L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * white.square().sum((-2, -1)) - half_log_det - n / 2 * math.log(2 * math.pi)

    def peer() -> list[float]:
        lengths = (-ell[:, :1]).numpy()  # their parameter is the logarithm of the length
        return [model.log_marginal_likelihood(theta) for theta in lengths]

    agree(ours(), peer(), 1e-6)
    title = f"Log-density of {n} values under {kernels} Matérn kernels"
    return compete(title, (OURS, ours), {"scikit-learn": peer}, rounds)


CONTESTS = (interval_points, finite_points, sketches, exact_fits, lasso_paths, pursuits, streams, processes)


if __name__ == "__main__":
    measure("sampling", CONTESTS, ("dppy", "scipy", "scikit-learn"))
