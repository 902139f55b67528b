"""Definite matrices, precisions, semidefinite programs: chapters and peers, ``python -m benchmarks.matrices``.

The code of the chapters as it is read; pyRiemann, geoopt, scikit-learn and cvxpy as their manuals use them. Sizes are
those of the quick runs, unless a title says otherwise.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench import agree, chapter, compete, measure

F64 = torch.float64
OURS = "this book"


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in double precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def definite(*shape: int) -> Tensor:
    """Positive definite matrices (..., d, d) with conditions around 100."""
    A = noise(*shape, shape[-1])
    return torch.matrix_exp(0.3 * (A + A.mT) / math.sqrt(shape[-1]) * 2)


def karcher(folds: int = 5, n: int = 48, d: int = 16, rounds: int = 31) -> dict[str, Any]:
    """Affine-invariant means of the folds of a cross-validation."""
    from pyriemann.geometry.mean import mean_riemann

    P, tolerance, method = definite(folds, n, d), 1e-8, chapter("augmented-covariance")

    def ours() -> Tensor:
        return method.karcher_mean(P, tolerance)

    def peer() -> np.ndarray:
        return np.stack([mean_riemann(p, tol=tolerance) for p in P.numpy()])

    agree(ours(), peer(), 1e-7)
    title = f"Affine-invariant means of {folds} × {n} matrices of side {d}, step below {tolerance:g}"
    return compete(title, (OURS, ours), {"pyRiemann": peer}, rounds)


def tangents(n: int = 60, d: int = 16, rounds: int = 31) -> dict[str, Any]:
    """Tangent vectors at a given mean."""
    from pyriemann.tangentspace import TangentSpace

    P, method = definite(n, d), chapter("augmented-covariance")
    M, space = P.mean(0), TangentSpace(metric="riemann")
    space.fit(P.numpy())
    space.reference_ = M.numpy()

    def ours() -> Tensor:
        return method.tangent(P, M)

    def peer() -> np.ndarray:
        return space.transform(P.numpy())

    agree(ours(), peer())
    return compete(f"Tangent vectors of {n} matrices of side {d}", (OURS, ours), {"pyRiemann": peer}, rounds)


def embedded(trials: int = 60, channels: int = 8, samples: int = 750, rounds: int = 31) -> dict[str, Any]:
    """Covariances of signals beside their delayed copies."""
    from pyriemann.estimation import Covariances

    X, p, tau, method = noise(trials, channels, samples), 4, 4, chapter("augmented-covariance")
    x, length, estimator = X.numpy(), samples - p * tau, Covariances(estimator="cov")

    def ours() -> Tensor:
        return method.augmented_covariance(X, p, tau)

    def peer() -> np.ndarray:
        stack = np.concatenate([x[:, :, q * tau : q * tau + length] for q in range(p)], 1)
        return estimator.transform(stack)

    agree(ours(), peer())
    title = f"Augmented covariances of {trials} trials, {channels} channels, order {p}"
    return compete(title, (OURS, ours), {"pyRiemann, after a stack": peer}, rounds)


def shrunk(trials: int = 60, rows: int = 32, samples: int = 734, rounds: int = 31) -> dict[str, Any]:
    """Ledoit and Wolf's covariances, trial by trial."""
    from sklearn.covariance import ledoit_wolf

    Z, method = noise(trials, rows, samples), chapter("augmented-covariance")

    def ours() -> Tensor:
        return method.shrunk_covariance(Z)

    def peer() -> np.ndarray:
        return np.stack([ledoit_wolf(z.T)[0] for z in Z.numpy()])

    agree(ours(), peer())
    title = f"Ledoit-Wolf covariances of {trials} trials of {rows} × {samples}"
    return compete(title, (OURS, ours), {"scikit-learn": peer}, rounds)


def bures(n: int = 40, d: int = 20, rounds: int = 31) -> dict[str, Any]:
    """Bures-Wasserstein mean; ours takes as many steps as reach the peer's accuracy."""
    from pyriemann.geometry.mean import mean_wasserstein

    X, method = definite(n, d), chapter("gbwm-batchnorm")
    limit = method.bw_mean(X, 200)[0]

    def peer() -> np.ndarray:
        return mean_wasserstein(X.numpy(), tol=1e-9, maxiter=200)

    def off(B: Tensor) -> float:
        return (B - limit).abs().max().item()

    goal = max(off(torch.from_numpy(peer())), 1e-12)
    steps = next(s for s in range(201) if off(method.bw_mean(X, s)[0]) <= goal)

    def ours() -> Tensor:
        return method.bw_mean(X, steps)

    agree(ours()[0], peer(), 1e-6)
    title = f"Bures-Wasserstein mean of {n} matrices of side {d}, to {goal:.0e}"
    return compete(title, (OURS, ours), {"pyRiemann": peer}, rounds)


def geodesics(n: int = 40, d: int = 20, rounds: int = 31) -> dict[str, Any]:
    """Points on affine-invariant geodesics."""
    with warnings.catch_warnings():  # geoopt compiles with torch.jit.script
        warnings.simplefilter("ignore", DeprecationWarning)
        import geoopt
    A, B, t, method = definite(n, d), definite(n + 1, d)[1:], 0.3, chapter("gbwm-batchnorm")
    manifold = geoopt.SymmetricPositiveDefinite()

    def ours() -> Tensor:
        return method.aim_geodesic(A, B, t)

    def peer() -> Tensor:
        return manifold.expmap(A, t * manifold.logmap(A, B))

    agree(ours(), peer())
    return compete(f"Points on {n} geodesics, side {d}", (OURS, ours), {"geoopt": peer}, rounds)


def partials(sets: int = 100, n: int = 200, parts: int = 20, rounds: int = 31) -> dict[str, Any]:
    """Partial correlations of compositions, from their centred log-ratios."""
    from sklearn.covariance import EmpiricalCovariance

    X, method = noise(sets, n, parts).exp(), chapter("compositional-partial-correlation")
    X = X / X.sum(-1, keepdim=True)
    off = ~np.eye(parts, dtype=bool)

    def ours() -> Tensor:
        return method.partial(method.precision(X)).correlation

    def read_off(P: np.ndarray) -> np.ndarray:
        s = np.sqrt(np.diagonal(P))
        return -P / np.outer(s, s)

    def peer() -> np.ndarray:
        logs = np.log(X.numpy())
        centred = logs - logs.mean(-1, keepdims=True)
        return np.stack([read_off(EmpiricalCovariance().fit(z).precision_) for z in centred])

    def pseudoinverse() -> np.ndarray:
        logs = np.log(X.numpy())
        centred = logs - logs.mean(-1, keepdims=True)
        return np.stack([read_off(np.linalg.pinv(np.cov(z.T), rcond=1e-12, hermitian=True)) for z in centred])

    found = ours()[:, off]
    agree(found, peer()[:, off])
    agree(found, pseudoinverse()[:, off])
    title = f"Partial correlations of {sets} compositions, {n} rows of {parts} parts"
    return compete(title, (OURS, ours), {"scikit-learn": peer, "NumPy, pinv": pseudoinverse}, rounds)


def programs(problems: int = 2, n: int = 24, rounds: int = 5) -> dict[str, Any]:
    """The likelihood adjusted SDP of two clusters."""
    import cvxpy as cp

    method = chapter("ila-sdp")
    data = method.mixture(problems, n, method.axis_centres(2, 4, 3.0), torch.Generator().manual_seed(0))
    C = method.costs(data.X, data.Sigma)

    def ours() -> Tensor:
        return method.la_sdp(C).value

    def value(c: np.ndarray, solver: str) -> float:
        Z = [cp.Variable((n, n), PSD=True) for _ in c]
        rules = [z >= 0 for z in Z] + [sum(cp.sum(z, axis=1) for z in Z) == 1] + [cp.trace(z) == 1 for z in Z]
        aim = cp.Maximize(sum(cp.sum(cp.multiply(one, z)) for one, z in zip(c, Z, strict=True)))
        return cp.Problem(aim, rules).solve(solver=solver)

    def clarabel() -> list[float]:
        return [value(c, cp.CLARABEL) for c in C.numpy()]

    def scs() -> list[float]:
        return [value(c, cp.SCS) for c in C.numpy()]

    agree(ours(), clarabel(), 1e-3)
    agree(ours(), scs(), 1e-3)
    title = f"{problems} likelihood adjusted SDPs, {n} points (the chapter: 42), 2 clusters, value to 1e-3"
    return compete(title, (OURS, ours), {"cvxpy, Clarabel": clarabel, "cvxpy, SCS": scs}, rounds)


def sensing(n: int = 6, m: int = 33, steps: int = 5000, rounds: int = 5) -> dict[str, Any]:
    """A matrix of rank one from random measurements."""
    import cvxpy as cp

    method, u = chapter("overparameterized-matrix-sensing"), noise(n, 1, seed=3)
    Sigma = u @ u.T / (u.T @ u)
    problem = method.Problem(Sigma, method.gaussian_normal(n, m, torch.Generator().manual_seed(4)))
    F, G = 0.3 * noise(1, n, 2, seed=5), 0.1 * noise(1, n, 2, seed=6)
    A = (noise(m, n, n, seed=4) / math.sqrt(m)).flatten(1).numpy()  # the measurements behind `normal`
    known = A @ Sigma.flatten().numpy()

    def ours() -> Tensor:
        run = method.descend(F, G, problem, 0.05, steps, every=steps)
        return (run.F @ run.G.mT)[0]

    def peer() -> np.ndarray:
        Z = cp.Variable((n, n))
        program = cp.Problem(cp.Minimize(cp.normNuc(Z)), [A @ cp.vec(Z, order="C") == known])
        program.solve(solver=cp.SCS, eps=1e-7, max_iters=50_000)
        return Z.value

    agree(ours(), peer(), 1e-4)
    title = f"A rank-one matrix of side {n} from {m} measurements: {steps:,} steps of descent, or the nuclear norm"
    return compete(title, (OURS, ours), {"cvxpy, SCS": peer}, rounds)


CONTESTS = (karcher, tangents, embedded, shrunk, bures, geodesics, partials, programs, sensing)


if __name__ == "__main__":
    measure("matrices", CONTESTS, ("pyriemann", "geoopt", "scikit-learn", "cvxpy"))
