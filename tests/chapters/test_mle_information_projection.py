"""The method of `mle-information-projection` against enumeration, closed forms, derivatives, peers and mistakes."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats
from torch import Tensor
from torch.func import jacrev
from torch.testing import assert_close

EXACT = {"rtol": 0.0, "atol": 1e-10}


def double(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def law(K: int, g: torch.Generator) -> Tensor:
    """A random law on K states, none of them rare."""
    weights = 0.2 + torch.rand(K, generator=g, dtype=torch.float64)
    return weights / weights.sum()


def ising(d: int) -> Tensor:
    spins = double(list(product((-1.0, 1.0), repeat=d)))
    pairs = [spins[:, i] * spins[:, j] for j in range(d) for i in range(j)]
    return torch.cat([spins, torch.stack(pairs, 1)], 1)


def parabola(K: int) -> Tensor:
    x = torch.arange(float(K), dtype=torch.float64)
    return torch.stack([x, x**2], 1)


def projected(chapter, truth: Tensor, xi: Tensor, base: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """θ* and the model's probabilities there."""
    base = torch.zeros(len(xi), dtype=torch.float64) if base is None else base
    theta, exists = chapter.match_means((truth @ xi)[None], xi, base, torch.zeros(xi.shape[1]).double())
    assert exists.all()
    return theta[0], chapter.log_probabilities(theta[0], xi, base).exp()


def tensors(model: Tensor, truth: Tensor, xi: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """κ₃, κ₄, V and K, whitened through an eigendecomposition, with all their indices."""
    c = xi - model @ xi
    values, vectors = torch.linalg.eigh(torch.einsum("x,xi,xj->ij", model, c, c))
    y = c @ vectors / values.sqrt()
    one = torch.eye(y.shape[1], dtype=torch.float64)
    k3 = torch.einsum("x,xi,xj,xk->ijk", model, y, y, y)
    k4 = torch.einsum("x,xi,xj,xk,xl->ijkl", model, y, y, y, y)
    k4 = k4 - torch.einsum("ij,kl->ijkl", one, one)
    k4 = k4 - torch.einsum("ik,jl->ijkl", one, one) - torch.einsum("il,jk->ijkl", one, one)
    V = torch.einsum("x,xi,xj->ij", truth, y, y)
    return k3, k4, V, torch.einsum("x,xi,xj,xk->ijk", truth, y, y, y)


def second_term(k3: Tensor, k4: Tensor, V: Tensor, K: Tensor) -> float:
    """c₂ as the chapter states it, index by index."""
    fourth = -torch.einsum("ijkl,ij,kl->", k4, V, V) + torch.einsum("ije,kle,ij,kl->", k3, k3, V, V)
    fourth = fourth + 2 * torch.einsum("ike,jle,ij,kl->", k3, k3, V, V)
    return (-(k3 * K).sum() / 3 + 3 * fourth / 8).item()


# The coefficients


@pytest.mark.parametrize("xi", [ising(3)[:, :5], ising(4), parabola(6)], ids=["chain", "ising", "parabola"])
def test_pairs_of_states_contract_the_same_as_all_indices(chapter, g, xi):
    truth = law(len(xi), g)
    model = projected(chapter, truth, xi)[1]
    k3, k4, V, K = tensors(model, truth, xi)
    c1, c2 = chapter.risk_coefficients(model, truth, xi)
    assert c1.item() == pytest.approx(V.trace().item() / 2, abs=1e-10)
    assert c2.item() == pytest.approx(second_term(k3, k4, V, K), rel=1e-10)


def test_the_cumulants_are_the_derivatives_of_the_log_normaliser(chapter, g):
    xi = parabola(5)
    truth = law(5, g)
    theta, model = projected(chapter, truth, xi)
    third = jacrev(jacrev(jacrev(lambda t: (xi @ t).logsumexp(0))))
    c = xi - model @ xi
    L = torch.linalg.cholesky(torch.einsum("x,xi,xj->ij", model, c, c))
    W = torch.linalg.inv(L)
    k3 = torch.einsum("abc,ia,jb,kc->ijk", third(theta), W, W, W)
    k4 = torch.einsum("abcd,ia,jb,kc,ld->ijkl", jacrev(third)(theta), W, W, W, W)
    y = c @ W.T
    V, K = torch.einsum("x,xi,xj->ij", truth, y, y), torch.einsum("x,xi,xj,xk->ijk", truth, y, y, y)
    expected = second_term(k3, k4, V, K)
    assert chapter.risk_coefficients(model, truth, xi)[1].item() == pytest.approx(expected, rel=1e-8)


def test_a_true_model_has_half_p_and_the_short_formula(chapter, g):
    xi = ising(4)
    model = projected(chapter, law(16, g), xi)[1]
    k3, k4, _, _ = tensors(model, model, xi)
    trace = torch.einsum("iie->e", k3)
    short = (10 * (k3 * k3).sum() + 9 * trace @ trace - 9 * torch.einsum("iikk->", k4)) / 24
    c1, c2 = chapter.risk_coefficients(model, model, xi)
    assert c1.item() == pytest.approx(xi.shape[1] / 2, abs=1e-10)
    assert c2.item() == pytest.approx(short.item(), rel=1e-10)


@pytest.mark.parametrize("q", [0.5, 0.3, 0.02])
def test_a_coin_has_the_closed_form(chapter, q):
    v = q * (1 - q)
    faces = double([1 - q, q])
    _, c2 = chapter.risk_coefficients(faces, faces, double([[0.0], [1.0]]))
    assert c2.item() == pytest.approx((10 - 22 * v) / (24 * v), rel=1e-10)


@pytest.mark.parametrize("shape", [1.0, 3.0])
def test_a_gamma_law_has_the_closed_form_and_its_whole_risk_agrees(chapter, shape):
    nodes, weights = special.roots_genlaguerre(12, shape - 1)
    states, chances = double(nodes)[:, None], double(weights / weights.sum())
    c1, c2 = (c.item() for c in chapter.risk_coefficients(chances, chances, states))
    assert c2 == pytest.approx(11 / (12 * shape), abs=1e-10)
    n = 400  # the mean of n is Gamma(n·shape): the exponential law's risk at n·shape, times the shape
    risk = shape * (special.digamma(n * shape) - math.log(n * shape) + n * shape / (n * shape - 1) - 1)
    assert n**3 * (risk - c1 / n - c2 / n**2) == pytest.approx(1 / shape**2, rel=0.01)


def test_a_poisson_law_has_the_closed_form(chapter):
    x = np.arange(60)
    chances = double(stats.poisson(3.0).pmf(x))
    _, c2 = chapter.risk_coefficients(chances, chances, double(x[:, None].astype(float)))
    assert c2.item() == pytest.approx(5 / 36, abs=1e-10)


def test_a_change_of_statistics_changes_nothing(chapter, g):
    xi, truth = ising(3)[:, :5], law(8, g)
    model = projected(chapter, truth, xi)[1]
    A = torch.randn(5, 5, generator=g, dtype=torch.float64) + 3 * torch.eye(5)
    for ours, other in zip(
        chapter.risk_coefficients(model, truth, xi), chapter.risk_coefficients(model, truth, xi @ A + 2), strict=True
    ):
        assert_close(ours, other, rtol=1e-9, atol=1e-9)


def test_the_unit_of_the_statistics_does_not_matter(chapter, g):
    xi, truth = parabola(5), law(5, g)
    model = projected(chapter, truth, xi)[1]
    for unit in (1e-12, 1e12):  # the means agree up to rounding, which grows with the unit
        for ours, other in zip(
            chapter.risk_coefficients(model, truth, unit * xi), chapter.risk_coefficients(model, truth, xi), strict=True
        ):
            assert_close(ours, other, rtol=1e-9, atol=1e-9)


def test_independent_parts_add_up(chapter, g):
    a, b = law(4, g), law(4, g)
    xi = parabola(4)
    both = torch.cat([xi.repeat_interleave(4, 0), xi.repeat(4, 1)], 1)
    models = [projected(chapter, t, xi)[1] for t in (a, b)]
    parts = [chapter.risk_coefficients(m, t, xi) for m, t in zip(models, (a, b), strict=True)]
    whole = chapter.risk_coefficients(torch.kron(*models), torch.kron(a, b), both)
    for k in (0, 1):
        assert_close(whole[k], parts[0][k] + parts[1][k], rtol=1e-10, atol=1e-10)


def test_many_laws_at_once_equal_one_by_one(chapter, g):
    xi, laws = parabola(5), [law(5, g) for _ in range(3)]
    models = [projected(chapter, t, xi)[1] for t in laws]
    together = chapter.risk_coefficients(torch.stack(models), torch.stack(laws), xi)
    for s in range(3):
        for ours, alone in zip(together, chapter.risk_coefficients(models[s], laws[s], xi), strict=True):
            assert_close(ours[s], alone, **EXACT)


# Against all samples: what is left must be of order n⁻³, and plausible mistakes must not be


def enumerated_risk(truth: Tensor, xi: Tensor, start: Tensor, n: int) -> float:
    """R over all counts with an estimate, in numpy, estimates by plain Newton from log frequencies' moments."""
    K = len(truth)
    counts = np.array([c for c in product(range(n + 1), repeat=K - 1) if sum(c) <= n])
    counts = np.c_[counts, n - counts.sum(1)]
    chance = stats.multinomial.pmf(counts, n, truth.numpy())
    keep = (chance > 1e-12) & ((counts > 0).sum(1) >= 3)  # three states of a parabola: inside
    counts, chance, x = counts[keep], chance[keep], xi.numpy()
    means, theta = counts @ x / n, np.tile(start.numpy(), (keep.sum(), 1))

    def probabilities(theta):
        return special.softmax(theta @ x.T, 1)

    for _ in range(40):
        p = probabilities(theta)
        fitted = p @ x
        hessian = np.einsum("nx,xi,xj->nij", p, x, x) - fitted[:, :, None] * fitted[:, None, :]
        step = np.linalg.solve(hessian, (means - fitted)[..., None])[..., 0]
        theta = theta + step / np.maximum(1, np.abs(step @ x.T).max(1))[:, None]
    assert np.abs(probabilities(theta) @ x - means).max() < 1e-9
    first = probabilities(start.numpy()[None])
    risk = special.rel_entr(first, probabilities(theta)).sum(1)
    return float(chance @ risk / chance.sum())


@pytest.fixture(scope="module")
def enumerated(chapter):
    """A wrong model on four states, and c₂ read off the exact risk: n²(R − c₁/n) = c₂ + c₃/n, solved for two n."""
    truth, xi = double([0.2, 0.55, 0.05, 0.2]), parabola(4)
    theta, model = projected(chapter, truth, xi)
    c = xi - model @ xi
    G, V = (torch.einsum("x,xi,xj->ij", p, c, c) for p in (model, truth))
    c1 = torch.linalg.solve(G, V).trace().item() / 2
    a, b = (n**2 * (enumerated_risk(truth, xi, theta, n) - c1 / n) for n in (60, 90))
    return truth, xi, model, (90 * b - 60 * a) / 30


def test_the_second_term_is_that_of_the_enumerated_risk(chapter, enumerated):
    truth, xi, model, known = enumerated
    c2 = chapter.risk_coefficients(model, truth, xi)[1].item()
    assert c2 == pytest.approx(known, rel=0.04)  # the fourth term, unknown, is left


def test_plausible_mistakes_in_the_second_term_are_told_apart_by_enumeration(chapter, enumerated):
    truth, xi, model, known = enumerated
    k3, k4, V, K = tensors(model, truth, xi)
    right, one = second_term(k3, k4, V, K), torch.eye(2, dtype=torch.float64)
    ways = (("ij", "kl"), ("ik", "jl"), ("il", "jk"))
    moment = k4 + sum(torch.einsum(f"{a},{b}->ijkl", one, one) for a, b in ways)
    crossed = torch.einsum("ike,jle,ij,kl->", k3, k3, V, V).item()
    mistakes = {
        "model moments for K": second_term(k3, k4, V, k3),
        "V taken as G": second_term(k3, k4, one, K),
        "moments for cumulants": second_term(k3, moment, V, K),
        "one crossed term, not two": right - 3 / 8 * crossed,
        "half of the third-order term": right + (k3 * K).sum().item() / 6,
        "no second term": 0.0,
    }
    for name, wrong in mistakes.items():
        assert abs(wrong / known - 1) > 0.08, name


# Estimates


def test_the_poisson_estimate_is_that_of_statsmodels(chapter):
    sm = pytest.importorskip("statsmodels.api")
    y = np.random.default_rng(0).poisson(3.0, 80)
    x = torch.arange(60.0, dtype=torch.float64)
    theta, exists = chapter.match_means(double([[y.mean()]]), x[:, None], -torch.lgamma(x + 1), double([0.0]))
    fitted = sm.Poisson(y, np.ones((80, 1))).fit(disp=0).params
    assert exists.item()
    assert theta.item() == pytest.approx(fitted[0], abs=1e-6)


def test_the_ising_estimate_is_the_loglinear_fit_of_statsmodels(chapter):
    sm = pytest.importorskip("statsmodels.api")
    xi = ising(4)
    counts = np.random.default_rng(1).multinomial(300, np.full(16, 1 / 16))
    means = double(counts / 300)[None] @ xi
    theta, exists = chapter.match_means(means, xi, torch.zeros(16).double(), torch.zeros(10).double())
    fit = sm.GLM(counts, np.c_[np.ones(16), xi.numpy()], family=sm.families.Poisson()).fit(tol=1e-12)
    assert exists.item()
    assert_close(theta[0], double(fit.params[1:]), rtol=0, atol=1e-7)


def test_the_bernoulli_estimate_is_the_intercept_of_a_logistic_fit(chapter):
    sm = pytest.importorskip("statsmodels.api")
    y = (np.random.default_rng(2).random(50) < 0.2).astype(float)
    theta, _ = chapter.match_means(double([[y.mean()]]), double([[0.0], [1.0]]), double([0.0, 0.0]), double([0.0]))
    assert theta.item() == pytest.approx(sm.Logit(y, np.ones((50, 1))).fit(disp=0).params[0], abs=1e-6)


def test_an_estimate_exists_exactly_inside_the_polytope_of_means(chapter):
    xi = ising(4)
    counts = np.random.default_rng(3).multinomial(14, np.full(16, 1 / 16), 30)
    means = double(counts / 14) @ xi
    _, exists = chapter.match_means(means, xi, torch.zeros(16).double(), torch.zeros(10).double())
    inside = []
    for mean in means.numpy():  # the largest t with weights >= t that have these means
        equal = np.c_[np.r_[xi.numpy().T, np.ones((1, 16))], np.zeros(11)]
        above = np.c_[-np.eye(16), np.ones(16)]
        found = optimize.linprog(
            np.r_[np.zeros(16), -1.0], above, np.zeros(16), equal, np.r_[mean, 1.0], bounds=[(0, 1)] * 17
        )
        inside.append(-found.fun > 1e-9)
    assert exists.tolist() == inside
    assert 0 < sum(inside) < len(inside)  # both cases occur


def test_the_means_are_met_from_a_distant_start(chapter, g):
    xi = parabola(6)
    truths = torch.stack([law(6, g) for _ in range(50)])
    theta, exists = chapter.match_means(truths @ xi, xi, torch.zeros(6).double(), double([2.0, -0.5]))
    assert exists.all()
    assert_close(chapter.log_probabilities(theta, xi, torch.zeros(6).double()).exp() @ xi, truths @ xi)


def steps_to_coins(q: float, coins: int) -> int:
    """Newton steps from fair coins to as many of chance q: damped while the decrement is above ¼, the last counts."""
    theta, steps = 0.0, 0
    while True:
        p = 1 / (1 + math.exp(-theta))
        v, steps = p * (1 - p), steps + 1
        decrement = math.sqrt(coins / v) * abs(q - p)
        theta += (q - p) / v / (1 + decrement if decrement > 0.25 else 1)
        if decrement < 1e-10:
            return steps


@pytest.mark.parametrize("coins", [1, 3])
def test_rare_events_are_met_if_thirty_steps_of_a_naive_newton_reach_them(chapter, coins):
    xi, zero = double(list(product((0.0, 1.0), repeat=coins))), torch.zeros(2**coins).double()
    chances = [math.exp(-k / 4) for k in range(4, 160)]
    theta, exists = chapter.match_means(double(chances)[:, None].expand(-1, coins), xi, zero, zero[:coins])
    assert exists.tolist() == [steps_to_coins(q, coins) <= 30 for q in chances]
    found = theta[exists]
    assert 60 < len(found) < 156  # some are out of reach
    assert_close(found, double(chances)[exists].logit()[:, None].expand(-1, coins), rtol=1e-9, atol=1e-9)


# Divergence, Bayes error, size


def test_the_divergence_is_a_bregman_divergence_of_the_log_normaliser(chapter, g):
    xi, base = ising(3), torch.randn(8, generator=g, dtype=torch.float64)
    star, hat = (torch.randn(6, generator=g, dtype=torch.float64) / 2 for _ in range(2))
    eta = chapter.log_probabilities(star, xi, base).exp() @ xi
    psi = [(base + xi @ t).logsumexp(0) for t in (star, hat)]
    direct = chapter.divergence(*(chapter.log_probabilities(t, xi, base) for t in (star, hat)))
    assert_close(direct, psi[1] - psi[0] - eta @ (hat - star))
    assert abs(direct - chapter.divergence(*(chapter.log_probabilities(t, xi, base) for t in (hat, star)))) > 1e-3


def test_the_divergence_is_that_of_scipy_and_splits_by_pythagoras(chapter, g):
    xi, truth = ising(4), law(16, g)
    theta, _ = projected(chapter, truth, xi)
    base, other = torch.zeros(16).double(), torch.randn(10, generator=g, dtype=torch.float64) / 3
    star, hat = (chapter.log_probabilities(t, xi, base) for t in (theta, other))
    whole = chapter.divergence(truth.log(), hat)
    assert whole.item() == pytest.approx(special.rel_entr(truth.numpy(), hat.exp().numpy()).sum(), abs=1e-12)
    assert_close(whole, chapter.divergence(truth.log(), star) + chapter.divergence(star, hat))
    not_projected = chapter.log_probabilities(theta + 0.1, xi, base)
    wrong = chapter.divergence(truth.log(), not_projected) + chapter.divergence(not_projected, hat)
    assert abs(whole - wrong) > 1e-3


def test_the_bayes_error_is_that_of_the_best_guess(chapter, g):
    a, b = law(9, g), law(9, g)
    best = sum(min(p, q) / 2 for p, q in zip(a.tolist(), b.tolist(), strict=True))
    assert chapter.bayes_error(a.log(), b.log()).item() == pytest.approx(best, abs=1e-12)
    assert chapter.bayes_error(a.log(), a.log()).item() == 0.5
    disjoint = double([1.0, 0.0]), double([0.0, 1.0])
    assert chapter.bayes_error(*(p.log() for p in disjoint)).item() == 0.0


def test_the_tolerance_keeps_its_promise_and_is_nearly_as_large_as_pinsker_allows(chapter):
    assert chapter.tolerance(0.05) == pytest.approx(0.02)
    for delta in (0.01, 0.05, 0.2):
        C, tightest = chapter.tolerance(delta), math.inf
        for p in np.linspace(0.02, 0.98, 97):  # Pinsker is tight for coins near ½
            q = optimize.brentq(lambda q, p=p, C=C: special.rel_entr([p, 1 - p], [q, 1 - q]).sum() - C, p, 1 - 1e-12)
            pair = double([p, 1 - p]).log(), double([q, 1 - q]).log()
            tightest = min(tightest, chapter.bayes_error(*pair).item())
        assert 0.5 - delta - 1e-9 <= tightest < 0.5 - 0.9 * delta


@pytest.mark.parametrize(("c1", "c2", "C"), [(1.0, 3.0, 0.02), (14.0, 230.0, 0.02), (0.5, 0.0, 0.02), (0.5, 9.0, 0.3)])
def test_the_required_size_is_the_first_that_is_accepted(chapter, c1, c2, C):
    n = chapter.required_size(c1, c2, C)
    assert c1 / n + c2 / n**2 <= C * (1 + 1e-8)
    assert c1 / (n - 1) + c2 / (n - 1) ** 2 > C


def test_the_required_size_does_not_count_rounding_as_an_observation(chapter):
    for noise in (-1e-13, 0.0, 1e-13):
        assert chapter.required_size(1.0 + noise, 0.0, 0.02) == 50
    assert chapter.required_size(1.0001, 0.0, 0.02) == 51


def test_a_negative_second_term_falls_back_to_the_first_order_rule(chapter):
    assert chapter.required_size(1.0, -4.0, 0.03) == 34


def test_the_first_order_rule_is_25_observations_a_parameter(chapter):
    assert chapter.required_size(28 / 2, 0.0, chapter.tolerance(0.05)) == 25 * 28


# The criterion


def test_the_criterion_is_the_expansion_at_the_estimate_with_the_samples_moments(chapter):
    xi, base = parabola(6), torch.zeros(6).double()
    counts = double(np.random.default_rng(4).multinomial(60, np.full(6, 1 / 6), 5).astype(float))
    found = chapter.pn_criterion(counts, xi, base, torch.zeros(2).double(), 0.02)
    assert found.exists.all()
    for s in range(5):
        rows = xi.repeat_interleave(counts[s].long(), 0)  # the data, one row an observation
        theta = found.theta[s]
        model = chapter.log_probabilities(theta, xi, base).exp()
        assert_close(model @ xi, rows.mean(0))
        G, V = torch.cov(xi.T, correction=0, aweights=model), torch.cov(rows.T, correction=0)
        assert found.c1[s].item() == pytest.approx(torch.linalg.solve(G, V).trace().item() / 2, rel=1e-9)
        _, c2 = chapter.risk_coefficients(model, counts[s] / 60, xi)
        assert found.risk[s].item() == pytest.approx((found.c1[s] / 60 + c2 / 3600).item(), rel=1e-9)
        assert found.accept[s] == (found.risk[s] <= 0.02)


def test_the_sample_covariance_with_n_minus_1_is_told_apart(chapter):
    xi, base = parabola(6), torch.zeros(6).double()
    counts = double([[8.0, 5, 9, 3, 10, 5]])
    found = chapter.pn_criterion(counts, xi, base, torch.zeros(2).double(), 0.02)
    rows = xi.repeat_interleave(counts[0].long(), 0)
    G = torch.cov(xi.T, correction=0, aweights=chapter.log_probabilities(found.theta[0], xi, base).exp())
    wrong = torch.linalg.solve(G, torch.cov(rows.T)).trace() / 2
    assert abs(wrong - found.c1[0]) > 0.01


def test_a_sample_without_estimate_is_never_accepted(chapter):
    counts = double([[0.0, 0, 50, 0, 0, 0], [9.0, 9, 9, 9, 9, 9], [0.0, 25, 25, 0, 0, 0]])
    found = chapter.pn_criterion(counts, parabola(6), torch.zeros(6).double(), torch.zeros(2).double(), 10.0)
    assert found.exists.tolist() == found.accept.tolist() == [False, True, False]
    assert found.risk.isnan().tolist() == [True, False, True]


def poisson_counts(*samples: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Counts over {0, ..., 40} of samples of counts, ξ = x and log 1/x!, the mass of the Poisson model."""
    x = torch.arange(41.0, dtype=torch.float64)
    return double(np.stack([np.bincount(s, minlength=41) for s in samples])), x[:, None], -torch.lgamma(x + 1)


def test_counts_are_judged_by_their_own_size_their_mean_and_their_moments(chapter):
    rng = np.random.default_rng(6)
    samples = [rng.poisson(3.0, 40), rng.negative_binomial(3, 0.5, 90), rng.binomial(6, 0.5, 25)]
    counts, xi, base = poisson_counts(*samples)
    found = chapter.pn_criterion(counts, xi, base, double([0.0]), 0.0125)
    for s, sample in enumerate(samples):
        n, m, V = len(sample), sample.mean(), sample.var()  # all model cumulants are m
        c1 = V / (2 * m)
        c2 = -((sample - m) ** 3).mean() / (3 * m**2) + 3 / 8 * (-V * V / m**3 + 3 * V * V / m**3)
        assert found.theta[s].item() == pytest.approx(math.log(m), abs=1e-9)
        assert found.c1[s].item() == pytest.approx(c1, rel=1e-8)
        assert found.c2[s].item() == pytest.approx(c2, rel=1e-6)
        assert found.risk[s].item() == pytest.approx(c1 / n + c2 / n**2, rel=1e-8)
    assert found.accept.tolist() == [True, False, False]


def test_a_negative_second_term_makes_no_sample_look_safer(chapter):
    counts, xi, base = poisson_counts([0, 1, 2] * 33 + [12])  # one large count: a skewness far above the model's
    start = double([0.0])
    found = chapter.pn_criterion(counts, xi, base, start, 1.0)
    first, second = found.c1.item() / 100, found.c2.item() / 100**2
    assert second < -0.01 * first
    assert found.risk.item() == pytest.approx(first, rel=1e-12)
    between = first + second / 2  # two terms would accept
    assert not chapter.pn_criterion(counts, xi, base, start, between).accept.item()
    assert chapter.required_size(found.c1.item(), found.c2.item(), between) > 100


def test_samples_judged_in_pieces_do_not_mix(chapter):
    xi, base = ising(8)[:, :12], torch.zeros(256).double()  # 64 samples of 256 states fit one piece
    counts = double(np.random.default_rng(5).multinomial(2000, np.full(256, 1 / 256), 70).astype(float))
    start = torch.zeros(12).double()
    together = chapter.pn_criterion(counts, xi, base, start, 0.02)
    alone = chapter.pn_criterion(counts[-1:], xi, base, start, 0.02)
    assert_close(together.risk[-1:], alone.risk)


# What is refused


def test_what_makes_no_sense_is_refused(chapter, g):
    xi, truth = parabola(5), law(5, g)
    model = projected(chapter, truth, xi)[1]
    with pytest.raises(ValueError, match="must be the projection"):
        chapter.risk_coefficients(law(5, g), truth, xi)
    doubled = torch.cat([xi, xi[:, :1]], 1)
    with pytest.raises(ValueError, match="linearly dependent"):
        chapter.risk_coefficients(model, truth, doubled)
    with pytest.raises(ValueError, match=r"means \(N, p\) must fit xi"):
        chapter.match_means(torch.zeros(3, 1).double(), xi, torch.zeros(5).double(), torch.zeros(2).double())
    for delta in (0.0, 0.5, -0.1):
        with pytest.raises(ValueError, match="strictly between 0 and ½"):
            chapter.tolerance(delta)
    with pytest.raises(ValueError, match="must be positive"):
        chapter.required_size(0.0, 1.0, 0.02)
    with pytest.raises(ValueError, match="must be positive"):
        chapter.required_size(1.0, 1.0, 0.0)
