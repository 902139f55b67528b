"""Clusters, regressions, rankings, factorisations: chapters against peers, ``python -m benchmarks.estimates``."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench import agree, chapter, compete, measure
from benchmarks.matrices import OURS, noise


def blobs(n: int, d: int) -> Tensor:
    """Two overlapping Gaussian clouds, (n, d), standardised."""
    S = noise(n, d)
    S[: n // 2, 0] += 2.5
    return (S - S.mean(0)) / S.std(0, correction=0)


def two_means(n: int = 2000, d: int = 2, starts: int = 30, rounds: int = 5) -> dict[str, Any]:
    """2-means from given starts, to their ends."""
    from sklearn.cluster import KMeans

    method, S = chapter("probabilistic-partitive-partitioning"), blobs(n, d)
    C = method.random_starts(S, starts, torch.Generator().manual_seed(0))

    def ours() -> Tensor:
        return method.two_means(S, C).inertia

    def peer() -> list[float]:
        options = {"n_init": 1, "max_iter": 300, "tol": 0}
        return [KMeans(2, init=c, **options).fit(S.numpy()).inertia_ for c in C.numpy()]

    agree(ours(), peer())
    title = f"2-means of {n:,} points in the plane from {starts} starts"
    return compete(title, (OURS, ours), {"scikit-learn, start by start": peer}, rounds)


def mixtures(n: int = 2000, d: int = 2, rounds: int = 31) -> dict[str, Any]:
    """EM of two Gaussians from a given split."""
    from sklearn.mixture import GaussianMixture

    method, S = chapter("probabilistic-partitive-partitioning"), blobs(n, d)
    split = S[:, 0] > 0
    r = method.two_columns(split)
    weights, means, covariances = method.moments(S, r, False)
    start = {"weights_init": weights.numpy(), "means_init": means.numpy()}
    start["precisions_init"] = torch.linalg.inv(covariances).numpy()
    model = GaussianMixture(2, reg_covar=1e-3, max_iter=200, **start)

    def ours() -> float:
        return method.em(S, r).log_likelihood / n

    def peer() -> float:
        return model.fit(S.numpy()).score(S.numpy())

    agree(ours(), peer())
    title = f"EM of two Gaussians, {n:,} points in the plane"
    return compete(title, (OURS, ours), {"scikit-learn": peer}, rounds)


def silhouettes(n: int = 1500, rounds: int = 31) -> dict[str, Any]:
    """The mean silhouette of six clusters."""
    from sklearn.metrics import silhouette_score

    method, X, labels = chapter("probabilistic-partitive-partitioning"), blobs(n, 2), torch.arange(n) % 6

    def ours() -> float:
        return method.silhouette(X, labels)

    def peer() -> float:
        return silhouette_score(X.numpy(), labels.numpy())

    agree(ours(), peer(), 1e-6)
    return compete(f"Mean silhouette of {n:,} points", (OURS, ours), {"scikit-learn": peer}, rounds)


def rankings(queries: int = 200, documents: int = 500, rounds: int = 31) -> dict[str, Any]:
    """nDCG@10 of all queries."""
    from sklearn.metrics import ndcg_score

    method, similarity = chapter("gaprune"), noise(queries, documents)
    relevant = noise(queries, documents, seed=1) > 2
    relevant[:, 0] = True

    def ours() -> float:
        return method.ndcg(similarity, relevant).mean().item()

    def peer() -> float:
        return ndcg_score(relevant.numpy(), similarity.numpy(), k=10, ignore_ties=True)

    agree(ours(), peer(), 1e-6)
    title = f"nDCG@10 of {queries} queries, {documents} documents"
    return compete(title, (OURS, ours), {"scikit-learn": peer}, rounds)


def scales(observers: int = 100, trials: int = 400, rounds: int = 5) -> dict[str, Any]:
    """Perceptual scales by probit regression, where no increment is at its bound."""
    import statsmodels.api as sm
    from statsmodels.genmod.families.links import Probit

    method = chapter("perceptual-scales")
    psi = torch.linspace(0, 1, 13, dtype=torch.float64) ** 0.8
    sigma = torch.full((observers,), 0.15, dtype=torch.float64)
    k = method.respond(psi.expand(observers, 13), sigma, trials, torch.Generator().manual_seed(0))
    k = k[method.fit_scale(k, trials).psi.diff(dim=1).amin(1) > 5e-3]
    X, family = -method.contrasts()[:, 1:].numpy(), sm.families.Binomial(Probit())

    def ours() -> Tensor:
        return method.fit_scale(k, trials).sigma

    def peer() -> list[float]:
        pairs = [np.stack([row, trials - row], 1) for row in k.numpy()]
        return [1 / sm.GLM(pair, X, family=family).fit().params[-1] for pair in pairs]

    agree(ours(), peer(), 1e-5)
    title = f"Perceptual scales of {len(k)} observers by probit regression"
    return compete(title, (OURS, ours), {"statsmodels, one by one": peer}, rounds)


def families(samples: int = 200, rounds: int = 5) -> dict[str, Any]:
    """Most likely Ising models of four spins from their mean statistics."""
    import statsmodels.api as sm

    method = chapter("mle-information-projection")
    spins = torch.tensor(list(product((-1.0, 1.0), repeat=4)), dtype=torch.float64)
    pairs = [spins[:, i] * spins[:, j] for j in range(4) for i in range(j)]
    xi = torch.cat([spins, torch.stack(pairs, 1)], 1)
    counts = np.random.default_rng(1).multinomial(300, np.full(16, 1 / 16), samples)
    base, start, design = torch.zeros(16).double(), torch.zeros(10).double(), np.c_[np.ones(16), xi.numpy()]
    means = torch.from_numpy(counts / 300) @ xi

    def ours() -> Tensor:
        return method.match_means(means, xi, base, start)[0]

    def peer() -> np.ndarray:
        poisson = sm.families.Poisson()
        return np.stack([sm.GLM(row, design, family=poisson).fit(tol=1e-12).params[1:] for row in counts])

    agree(ours(), peer(), 1e-6)
    title = f"{samples} most likely Ising models of four spins"
    return compete(title, (OURS, ours), {"statsmodels, one by one": peer}, rounds)


def factorisations(maps: int = 8, n: int = 64, m: int = 256, k: int = 16, rounds: int = 31) -> dict[str, Any]:
    """Fisher-weighted factors of rank k of several linear maps."""
    from scipy.sparse.linalg import svds

    method, W, rows = chapter("fwsvd"), noise(maps, n, m), noise(maps, n, seed=1).exp()
    scale = rows.sqrt()[..., None].numpy()

    def ours() -> Tensor:
        A, B = method.truncated(method.fwsvd(W, rows), k)
        return A @ B

    def numpy() -> np.ndarray:
        U, S, Vt = np.linalg.svd(scale * W.numpy(), full_matrices=False)
        return (U[..., :k] * S[:, None, :k] / scale) @ Vt[:, :k]

    def scipy() -> np.ndarray:
        found = []
        for s, w in zip(scale, W.numpy(), strict=True):
            U, S, Vt = svds(s * w, k, rng=0)
            found.append((U * S / s) @ Vt)
        return np.stack(found)

    agree(ours(), numpy())
    agree(ours(), scipy())
    title = f"Weighted rank-{k} factors of {maps} maps {n} × {m}"
    return compete(title, (OURS, ours), {"NumPy, svd": numpy, "SciPy, svds": scipy}, rounds)


CONTESTS = (two_means, mixtures, silhouettes, rankings, scales, families, factorisations)


if __name__ == "__main__":
    measure("estimates", CONTESTS, ("scipy", "scikit-learn", "statsmodels"))
