"""The method of `dpp-least-squares` against closed forms, enumeration, quadrature, DPPy and plausible mistakes."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor
from torch.testing import assert_close

CHANCE = 1e-4  # some forty p-values are judged: one below this is a mistake


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def small() -> Tensor:
    """Features (5, 2) of five points, orthonormal for the uniform measure: phiᵀ phi = 5 I."""
    entries = np.random.default_rng(3).normal(size=(5, 2))
    return torch.from_numpy(np.linalg.qr(entries)[0] * math.sqrt(5))


def p_value(counts: np.ndarray, law: np.ndarray) -> float:
    """Pearson's test of counts against a law on the same cells; cells of probability zero must be empty."""
    possible = law > 1e-12
    assert counts[~possible].sum() == 0
    return float(stats.chisquare(counts[possible], counts.sum() * law[possible] / law.sum()).pvalue)


def z(x: Tensor, expected: float | Tensor) -> Tensor:
    return (x.mean(0) - expected) / (x.std(0) / math.sqrt(len(x)))


# features and spaces


def test_the_features_are_scipys_polynomials_normalised(chapter):
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)
    for j, column in enumerate(chapter.legendre(x, 6).unbind(-1)):
        assert_close(column, torch.from_numpy(special.eval_legendre(j, x.numpy())) * math.sqrt(2 * j + 1))
    for j, column in enumerate(chapter.hermite(3 * x, 6).unbind(-1)):
        known = special.eval_hermitenorm(j, 3 * x.numpy()) / math.sqrt(math.factorial(j))
        assert_close(column, torch.from_numpy(known))
    assert chapter.legendre(x, 1).shape == chapter.hermite(x, 1).shape == (7, 1)


@pytest.mark.parametrize(("name", "m"), [("interval", 1), ("interval", 40), ("line", 1), ("line", 40), ("square", 15)])
def test_the_features_are_orthonormal_by_quadrature(chapter, name, m):
    nodes, weights = np.polynomial.legendre.leggauss(60) if name != "line" else special.roots_hermitenorm(60)
    x, w = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    if name == "square":
        x, w = torch.cartesian_prod(x, x), torch.cartesian_prod(w, w).prod(-1)
    phi = getattr(chapter, name)(m).features(x)
    assert phi.shape == (len(x), m)
    assert_close((phi.mT * w) @ phi, torch.eye(m, dtype=torch.float64), rtol=0, atol=1e-11)


def test_total_degree_takes_every_product_up_to_the_degree_once(chapter):
    x = torch.rand(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    a, b = (chapter.legendre(c, 4) for c in x.unbind(-1))
    known = torch.stack([a[:, i] * b[:, j] for i in range(4) for j in range(4) if i + j <= 3], -1)
    assert_close(chapter.total_degree(x, 3), known)
    with pytest.raises(ValueError, match=r"m must be \(p \+ 1\)\(p \+ 2\)/2 for a degree p; got 11"):
        chapter.square(11)


def test_the_ratio_is_that_of_the_densities(chapter):
    x = torch.linspace(-0.99, 0.99, 11, dtype=torch.float64)
    arcsine = torch.from_numpy(stats.arcsine(loc=-1, scale=2).pdf(x.numpy()))
    assert_close(chapter.interval(4).ratio(x), 0.5 / arcsine)
    pairs = torch.stack([x, x.flip(0) / 2], -1)
    assert_close(chapter.square(3).ratio(pairs), chapter.interval(1).ratio(pairs).prod(-1))
    wide = stats.norm(scale=math.sqrt(1.5 * 7))
    known = stats.norm.pdf(5 * x.numpy()) / wide.pdf(5 * x.numpy())
    assert_close(chapter.line(7).ratio(5 * x), torch.from_numpy(known))


@pytest.mark.parametrize("name", ["interval", "line"])
def test_the_bound_holds_for_every_m_up_to_a_hundred(chapter, name):
    for m in (1, 2, 3, 5, 10, 30, 100):
        space = getattr(chapter, name)(m)
        half_width = 1 if name == "interval" else 2 * math.sqrt(m) + 8
        x = torch.linspace(-half_width, half_width, 4001, dtype=torch.float64)
        share = space.features(x).square().sum(-1) / m * space.ratio(x)
        assert 1 < share.max() < space.bound == 2 and share.isfinite().all()


def test_the_bound_of_the_square_holds(chapter):
    side = torch.linspace(-1, 1, 301, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    for m in (1, 3, 10, 36):
        space = chapter.square(m)
        assert 1 < (space.features(x).square().sum(-1) / m * space.ratio(x)).max() < space.bound


def test_priors_and_proposals_have_their_laws(chapter, g):
    for space, prior, proposal in (
        (chapter.interval(3), stats.uniform(-1, 2), stats.arcsine(-1, 2)),
        (chapter.line(4), stats.norm(), stats.norm(scale=math.sqrt(6))),
    ):
        assert stats.kstest(space.prior(4000, g).numpy(), prior.cdf).pvalue > CHANCE
        assert stats.kstest(space.propose(4000, g).numpy(), proposal.cdf).pvalue > CHANCE
    flat = chapter.square(3).prior(2000, g)
    assert flat.shape == (2000, 2) and abs(flat.prod(1).mean()) < 0.03
    assert stats.kstest(flat.flatten().numpy(), stats.uniform(-1, 2).cdf).pvalue > CHANCE


def test_proposals_have_the_variance_that_their_ratio_divides_by(chapter, g):
    """A proposal 8 % too wide passes a test of the whole law; its variance gives it away."""
    x = chapter.line(4).propose(6000, g)
    assert abs(z(x**2, 6.0)) < 4 and abs(z((1.08 * x) ** 2, 6.0)) > 4
    assert abs(z(chapter.interval(4).propose(6000, g) ** 2, 1 / 2)) < 4
    assert abs(z(chapter.square(3).propose(3000, g) ** 2, 1 / 2)).max() < 4


# independent points


@pytest.mark.parametrize(("name", "m", "half_width"), [("interval", 6, 1), ("line", 6, 12)])
def test_christoffel_points_have_density_k_over_m(chapter, g, name, m, half_width):
    space = getattr(chapter, name)(m)
    grid = np.linspace(-half_width, half_width, 20_001)
    density = (space.features(torch.from_numpy(grid)) ** 2).sum(-1).numpy() / m
    density = density * (0.5 if name == "interval" else stats.norm.pdf(grid))
    steps = (density[1:] + density[:-1]) / 2 * np.diff(grid)
    assert steps.sum() == pytest.approx(1, abs=1e-5)
    cdf = np.concatenate([[0], steps.cumsum()])
    points = chapter.christoffel(space, 5000, g)
    assert points.shape == (5000,)
    assert stats.kstest(points.numpy(), lambda x: np.interp(x, grid, cdf)).pvalue > CHANCE
    assert stats.kstest(space.prior(5000, g).numpy(), lambda x: np.interp(x, grid, cdf)).pvalue < 1e-6


def test_points_of_a_finite_set_and_of_the_mixed_measure_follow_their_laws(chapter, g, small):
    space = chapter.finite(small)
    nu = (small**2).sum(1).numpy() / 10
    one = np.bincount(chapter.christoffel(space, 20_000, g), minlength=5)
    half = np.bincount(chapter.mixed(space, 20_000, g), minlength=5)
    assert p_value(one, nu) > CHANCE
    assert p_value(half, 0.1 + nu / 2) > CHANCE
    assert p_value(half, nu) < 1e-6


def test_a_bound_that_is_too_small_is_refused(chapter, g):
    with pytest.raises(ValueError, match=r"bound must reach k/m dμ/dq everywhere; 1 is 1\.\d+ times less"):
        chapter.christoffel(chapter.interval(5)._replace(bound=1.0), 2000, g)


def test_the_weights_undo_their_measures(chapter, small):
    nu = (small**2).sum(1) / 10
    assert_close(chapter.optimal_weight(small) * nu, torch.full_like(nu, 0.2))
    assert_close(chapter.mixed_weight(small) * (0.1 + nu / 2), torch.full_like(nu, 0.2))
    many = chapter.line(60).features(torch.linspace(-3, 3, 50, dtype=torch.float64))
    assert chapter.mixed_weight(many).max() < 2 < chapter.optimal_weight(many).max()


# the DPP


def ordered_law(phi: Tensor, m: int) -> np.ndarray:
    """Probability of every ordered m-tuple of a finite set of N points with uniform μ, (N,) * m."""
    N = len(phi)
    law = np.zeros((N,) * m)
    for tuple_ in itertools.product(range(N), repeat=m):
        rows = phi[list(tuple_)].numpy()
        law[tuple_] = np.linalg.det(rows @ rows.T) / math.factorial(m) / N**m
    return law


def test_the_chain_rule_draws_the_law_of_the_determinant(chapter, g, small):
    law = ordered_law(small, 2)
    assert law.sum() == pytest.approx(1)
    draws = chapter.chain_rule(chapter.finite(small), 20_000, g).numpy()
    counts = np.histogramdd(draws, bins=[np.arange(6) - 0.5] * 2)[0]
    counts[np.abs(law) < 1e-12] = 0
    assert (draws[:, 0] != draws[:, 1]).all()
    assert p_value(counts.ravel(), law.ravel().clip(1e-13)) > CHANCE
    forgotten = np.outer(*[(small**2).sum(1).numpy() / 10] * 2)  # the span of the first point left out
    assert p_value(counts.ravel(), forgotten.ravel()) < 1e-6
    linear = np.sqrt(law.clip(0))  # the determinant of the features in place of its square
    assert p_value(counts.ravel(), np.where(law < 1e-12, 0, linear).ravel()) < 1e-6


def test_three_points_of_the_chain_rule_follow_the_determinant(chapter, g):
    phi = torch.from_numpy(np.linalg.qr(np.random.default_rng(5).normal(size=(6, 3)))[0] * math.sqrt(6))
    law = ordered_law(phi, 3)
    draws = chapter.chain_rule(chapter.finite(phi), 30_000, g).numpy()
    triples = list(itertools.combinations(range(6), 3))
    expected = np.array([6 * law[t] for t in triples])
    assert expected.sum() == pytest.approx(1)
    found = [tuple(t) for t in np.sort(draws, 1).tolist()]
    assert p_value(np.array([found.count(t) for t in triples]), expected) > CHANCE


def test_the_chain_rule_keeps_its_basis_orthonormal_where_one_pass_loses_it(chapter, g, monkeypatch):
    """Points close together, handed to the chain rule in place of its draws: the residuals are tiny."""
    points, bases = iter(0.3 + 1e-4 * torch.arange(6, dtype=torch.float64)), []

    def next_point(space, Q, g):
        bases.append(Q)
        return next(points).expand(2)

    monkeypatch.setitem(chapter.chain_rule.__globals__, "next_point", next_point)
    chapter.chain_rule(chapter.interval(6), 2, g)
    Q, eye = bases[3], torch.eye(3, dtype=torch.float64).expand(2, 3, 3)  # residuals of 1e-4 and 1e-8
    assert_close(Q @ Q.mT, eye, rtol=0, atol=1e-13)
    rows = [bases[1][0, 0]]
    for row in chapter.legendre(0.3 + 1e-4 * torch.arange(1, 3, dtype=torch.float64), 6):
        basis = torch.stack(rows)
        row = row - basis.T @ (basis @ row)
        rows.append(row / row.norm())
    once = torch.stack(rows)
    assert (once @ once.T - eye[0]).abs().max() > 1e-10  # one pass: orthogonality is lost


def test_every_point_of_the_chain_rule_has_the_same_marginal(chapter, g):
    x = chapter.chain_rule(chapter.interval(4), 4000, g)
    assert x.shape == (4000, 4)
    for column in x[:, 1:].unbind(1):
        assert stats.ks_2samp(x[:, 0].numpy(), column.numpy()).pvalue > CHANCE


def test_two_points_of_the_interval_have_the_closed_form(chapter, g):
    """Density (3/2)(x − y)²: one sign with probability 1/8, and E |x − y|² = (3/2) E_μμ (x − y)⁴ = 8/5."""
    for x in (chapter.interval_dpp(2, 8000, g), chapter.chain_rule(chapter.interval(2), 8000, g)):
        assert abs(z((x.prod(1) > 0).double(), 1 / 8)) < 4
        assert abs(z((x[:, 0] - x[:, 1]) ** 2, 8 / 5)) < 4


@pytest.mark.parametrize("name", ["interval", "line"])
def test_random_matrices_and_the_chain_rule_draw_the_same_points(chapter, g, name):
    m = 6
    a = getattr(chapter, f"{name}_dpp")(m, 3000, g)
    b = chapter.chain_rule(getattr(chapter, name)(m), 3000, g).sort(1).values
    assert a.shape == (3000, m) and (a.diff(dim=1) >= 0).all()
    for k in range(m):  # order statistics
        assert stats.ks_2samp(a[:, k].numpy(), b[:, k].numpy()).pvalue > CHANCE


@pytest.mark.parametrize(("name", "squared"), [("interval", lambda j: j * j / (4 * j * j - 1)), ("line", float)])
def test_the_sum_of_the_points_has_the_variance_of_christoffel_and_darboux(chapter, g, name, squared):
    m = 15
    x = getattr(chapter, f"{name}_dpp")(m, 6000, g)
    assert abs(z(x.sum(1), 0.0)) < 4
    assert abs(z(x.sum(1) ** 2, squared(m))) < 4
    assert abs(z((x**2).sum(1), sum(squared(j) + squared(j + 1) for j in range(m)))) < 4


def test_the_square_draws_its_features_evenly(chapter, g):
    m = 10
    x = chapter.square_dpp(m, 1500, g)
    assert x.shape == (1500, m, 2)
    phi = chapter.square(m).features(x)
    G = chapter.gram(phi, chapter.optimal_weight(phi))
    assert z(G.flatten(1), torch.eye(m, dtype=torch.float64).flatten()).abs().max() < 4.5
    free = chapter.christoffel(chapter.square(m), 1500 * m, g).unflatten(0, (1500, m))
    assert x.sum((1, 2)).var() < 0.3 * free.sum((1, 2)).var()


def test_dppy_draws_the_same_points_of_the_interval(chapter, g):
    ope = pytest.importorskip("dppy.multivariate_jacobi_ope")
    m = 4
    peer = ope.MultivariateJacobiOPE(m, np.array([[0.0, 0.0]]))
    state = np.random.RandomState(0)
    theirs = np.sort(np.stack([peer.sample(random_state=state)[:, 0] for _ in range(400)]), 1)
    ours = chapter.interval_dpp(m, 4000, g).numpy()
    for k in range(m):
        assert stats.ks_2samp(theirs[:, k], ours[:, k]).pvalue > CHANCE


def test_dppys_matrix_models_agree_and_scale_alike(chapter, g):
    ensembles = pytest.importorskip("dppy.beta_ensembles")
    m, state = 5, np.random.RandomState(0)
    jacobi, hermite = ensembles.JacobiEnsemble(2), ensembles.HermiteEnsemble(2)
    theirs = {"interval": [], "line": []}
    for _ in range(600):
        jacobi.sample_full_model(size_N=m, size_M1=m, size_M2=m, random_state=state)
        hermite.sample_full_model(size_N=m, random_state=state)
        theirs["interval"].append(np.sort(2 * np.asarray(jacobi.list_of_samples[-1]) - 1))
        theirs["line"].append(np.sort(hermite.list_of_samples[-1]))
    for name, samples in theirs.items():
        ours = getattr(chapter, f"{name}_dpp")(m, 3000, g).numpy()
        if name == "line":  # their variance convention differs by a constant factor
            samples = np.stack(samples) * math.sqrt(m / np.var(np.sum(samples, 1)))
        for k in range(m):
            assert stats.ks_2samp(np.stack(samples)[:, k], ours[:, k]).pvalue > CHANCE


def test_dppys_finite_projection_dpp_agrees(chapter, g, small):
    finite = pytest.importorskip("dppy.finite_dpps")
    q = small.numpy() / math.sqrt(5)
    peer, state = finite.FiniteDPP("correlation", projection=True, K=q @ q.T), np.random.RandomState(0)
    pairs = list(itertools.combinations(range(5), 2))
    theirs = [tuple(sorted(int(i) for i in peer.sample_exact(random_state=state))) for _ in range(1500)]
    draws = chapter.chain_rule(chapter.finite(small), 6000, g)
    ours = [tuple(row) for row in draws.sort(1).values.tolist()]
    table = np.array([[sample.count(pair) for pair in pairs] for sample in (theirs, ours)])
    assert stats.chi2_contingency(table[:, table.sum(0) > 10]).pvalue > CHANCE


# schemes


def test_the_first_k_blocks_come_from_the_dpp(chapter):
    repelled, free = torch.ones(2, 3, 4), torch.zeros(2, 3, 4)
    for k in range(4):
        assert chapter.assemble(repelled, free, k)[:, :, 0].tolist() == [[1.0] * k + [0.0] * (3 - k)] * 2
    for k in (-1, 4):
        with pytest.raises(ValueError, match=f"k must lie between 0 and the number of blocks; got {k} of 3 and 3"):
            chapter.assemble(repelled, free, k)
    with pytest.raises(ValueError, match="got 3 of 3 and 2"):
        chapter.assemble(repelled, free[:, :2], 3)


def test_one_dpp_block_beside_independent_points_is_volume_sampling(chapter, g, small):
    """Unordered samples of n = 4 points from five against det G over ν⁴, listed; two DPP blocks are told apart."""
    space, draws = chapter.finite(small), 15_000
    repelled = chapter.chain_rule(space, 2 * draws, g).view(draws, 2, 2)
    free = chapter.christoffel(space, 4 * draws, g).view(draws, 2, 2)
    nu = (small**2).sum(1).numpy() / 10
    law: dict[tuple[int, ...], float] = {}
    for t in itertools.product(range(5), repeat=4):
        rows = small[list(t)].numpy()
        G = (rows.T * (2 / (rows**2).sum(1))) @ rows / 4
        key = tuple(sorted(t))
        law[key] = law.get(key, 0.0) + np.linalg.det(G) * nu[list(t)].prod() * 16 / 12
    assert sum(law.values()) == pytest.approx(1)
    fits = {}
    for k in (0, 1, 2):
        found = chapter.assemble(repelled, free, k).flatten(1).sort(1).values.tolist()
        counts: dict[tuple[int, ...], int] = {}
        for row in found:
            counts[tuple(row)] = counts.get(tuple(row), 0) + 1
        common = [key for key, p in law.items() if p * draws > 8]
        rest = draws - sum(counts.get(key, 0) for key in common)
        expected = np.array([law[key] for key in common] + [1 - sum(law[key] for key in common)])
        fits[k] = p_value(np.array([counts.get(key, 0) for key in common] + [rest]), expected.clip(1e-11))
    assert fits[1] > CHANCE and fits[0] < 1e-6 and fits[2] < 1e-6


def test_with_one_block_volume_sampling_and_repeated_dpp_interpolate(chapter, g):
    space = chapter.interval(6)
    repelled = chapter.interval_dpp(6, 3, g)[:, None]
    free = chapter.christoffel(space, 18, g).view(3, 1, 6)
    x = chapter.assemble(repelled, free, 1)[:, 0]
    phi = space.features(x)
    for weight in (chapter.optimal_weight, chapter.mixed_weight):
        a = chapter.least_squares(phi, weight(phi), x.exp()[..., None])
        assert_close((phi @ a)[..., 0], x.exp(), rtol=1e-8, atol=1e-8)


# least squares


def test_gram_moments_and_fit_are_the_loops(chapter, g):
    phi, w, u = (torch.rand(s, generator=g, dtype=torch.float64) for s in ((2, 7, 3), (2, 7), (2, 7, 4)))
    G, b = torch.zeros(2, 3, 3, dtype=torch.float64), torch.zeros(2, 3, 4, dtype=torch.float64)
    for s, i in itertools.product(range(2), range(7)):
        G[s] += w[s, i] * torch.outer(phi[s, i], phi[s, i]) / 7
        b[s] += w[s, i] * torch.outer(phi[s, i], u[s, i]) / 7
    assert_close(chapter.gram(phi, w), G)
    assert_close(chapter.moments(phi, w, u), b)
    assert_close(chapter.smallest(G), torch.stack([torch.linalg.svdvals(one)[-1] for one in G]))
    for s in range(2):
        root = w[s].sqrt()[:, None]
        peer = np.linalg.lstsq((root * phi[s]).numpy(), (root * u[s]).numpy())[0]
        assert_close(chapter.least_squares(phi, w, u)[s], torch.from_numpy(peer))


def test_forgetting_the_root_or_the_weight_is_told_apart(chapter, g):
    """Weights on the rows themselves (their square in the loss), or none: another fit."""
    phi, w = torch.rand(9, 3, generator=g, dtype=torch.float64), 0.2 + 3 * torch.rand(9, generator=g).double()
    u = torch.rand(9, 1, generator=g, dtype=torch.float64)
    right = chapter.least_squares(phi, w, u)
    for wrong in (w[:, None], torch.ones(9, 1, dtype=torch.float64)):
        peer = np.linalg.lstsq((wrong * phi).numpy(), (wrong * u).numpy())[0]
        assert (right - torch.from_numpy(peer)).abs().max() > 1e-3


def test_running_means_are_grams_of_more_points(chapter, g):
    phi, w = (torch.rand(s, generator=g, dtype=torch.float64) for s in ((2, 4, 5, 3), (2, 4, 5)))
    means = chapter.running(chapter.gram(phi, w))
    for r in range(1, 5):
        joined = chapter.gram(phi[:, :r].flatten(1, 2), w[:, :r].flatten(1, 2))
        assert_close(means[:, r - 1], joined)


def test_the_sure_bound_by_hand(chapter):
    l2, sup, lam = double(1, 2), double(3, 5).expand(1, 2), double(0.25)
    w = double(1, 2, 3, 10)[None]  # mean 4: the factor is sqrt(4 / 0.25) = 4
    assert_close(chapter.sure_bound(l2, sup, lam, w), double(13, 22)[None])
    assert chapter.DELTA == 0.5


def test_the_sure_bound_is_sharp_in_its_last_term(chapter):
    """u vanishes but at the sample, v = 0, and u is the worst vector: the error reaches the bound's second term."""
    rng = np.random.default_rng(0)
    phi, w = torch.from_numpy(rng.normal(size=(1, 6, 2))), torch.from_numpy(rng.uniform(0.5, 2, (1, 6)))
    lam, vectors = torch.linalg.eigh(chapter.gram(phi, w)[0])
    u = phi @ vectors[:, :1]  # a function of the space: fitted exactly, by the eigenvector of λ_min
    error = chapter.least_squares(phi, w, u)[0].norm()
    in_sample = ((w[0] * u[0, :, 0] ** 2).mean() / lam[0]).sqrt()
    assert_close(error, in_sample)  # so λ_min^(-1/2) cannot be replaced by anything smaller
    bound = chapter.sure_bound(double(0), u[0].abs().max()[None, None], lam[:1], w)
    assert error <= bound.squeeze()


# the identities


@pytest.mark.parametrize("k", [0, 1, 4])
def test_the_gram_matrix_has_the_identity_as_mean_and_m_as_trace(chapter, g, k):
    m, B = 5, 4000
    space = chapter.interval(m)
    repelled = chapter.interval_dpp(m, 4 * B, g).view(B, 4, m)
    free = chapter.christoffel(space, 4 * B * m, g).view(B, 4, m)
    phi = space.features(chapter.assemble(repelled, free, k).flatten(1))
    G = chapter.gram(phi, chapter.optimal_weight(phi))
    assert_close(torch.einsum("bii->b", G), torch.full((B,), float(m), dtype=torch.float64))
    assert z(G.flatten(1), torch.eye(m, dtype=torch.float64).flatten()).abs().max() < 4.5
    trace = torch.einsum("bii->b", G.inverse()) / m
    if k == 1:
        assert abs(z(trace, 20 / 16)) < 4 and abs(z(trace, 20 / 15)) > 8  # n/(n − m) is told apart
    if k == 4:  # that of independent points has a heavy tail
        assert z(trace, 20 / 16) < -50


def test_the_mean_inverse_of_volume_sampling_holds_for_the_mixed_weight_too(chapter, g):
    m, n, B = 4, 16, 6000
    space = chapter.interval(m)
    free = chapter.mixed(space, B * (n - m), g).view(B, -1)
    x = torch.cat([chapter.interval_dpp(m, B, g), free], 1)
    phi = space.features(x)
    inverse = chapter.gram(phi, chapter.mixed_weight(phi)).inverse().flatten(1)
    assert z(inverse, n / (n - m + 1) * torch.eye(m, dtype=torch.float64).flatten()).abs().max() < 4.5
    wrong = chapter.gram(phi, chapter.optimal_weight(phi)).inverse()[:, 0, 0]  # the weight of another measure
    assert abs(z(wrong, n / (n - m + 1))) > 8


def test_features_that_are_not_orthonormal_are_told_apart(chapter, g):
    """Monomials span the same space, but give another k and so another mean of G."""
    x = chapter.christoffel(chapter.interval(4), 4 * 4000, g).view(4000, 4)
    phi = torch.stack([x**j for j in range(4)], -1)
    G = chapter.gram(phi, chapter.optimal_weight(phi))
    assert z(G.flatten(1), torch.eye(4, dtype=torch.float64).flatten()).abs().max() > 20
