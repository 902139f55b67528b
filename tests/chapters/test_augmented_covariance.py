"""The method of `augmented-covariance` against pyRiemann, SciPy, statsmodels, closed forms and mistakes."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy import signal
from sklearn.covariance import ledoit_wolf
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC
from torch import Tensor
from torch.testing import assert_close

F64 = torch.float64


def definite(n: int, d: int, g: torch.Generator, spread: float = 1.0) -> Tensor:
    """n random positive definite matrices of side d."""
    A = torch.randn(n, d, d, generator=g, dtype=F64)
    return torch.matrix_exp(spread * (A + A.mT) / 4)


def noise(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=F64)


def two_groups(g: torch.Generator, n: int = 20, D: int = 6, gap: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(V (n, D), y): two Gaussian groups in random order."""
    y = np.random.default_rng(0).permutation(np.repeat([0, 1], n // 2))
    V = noise(n, D, g=g).numpy()
    V[:, 0] += gap * y
    return V, y


def test_the_embedding_is_the_one_read_off_an_example(chapter):
    X = torch.arange(20, dtype=F64).view(1, 20)
    stack = chapter.embed(X, 3, 2)
    assert stack.shape == (3, 14)  # p τ = 6 samples are dropped, not (p − 1) τ = 4
    assert stack[:, 0].tolist() == [0, 2, 4] and stack[:, -1].tolist() == [13, 15, 17]


def test_blocks_keep_their_channels_together_oldest_first(chapter, g):
    X = noise(5, 2, 60, g=g)
    stack = chapter.embed(X, 2, 7)
    assert torch.equal(stack[:, :2], X[..., :46]) and torch.equal(stack[:, 2:], X[..., 7:53])


def test_order_one_is_the_plain_pipeline_bit_for_bit(chapter, g):
    X = noise(4, 3, 50, g=g)
    for tau in (1, 9):
        assert torch.equal(chapter.embed(X, 1, tau), X)
    numpy = torch.stack([torch.from_numpy(np.cov(x.numpy())) for x in X])
    assert_close(chapter.augmented_covariance(X, 1, 5), numpy, rtol=1e-14, atol=1e-15)


def test_covariances_are_pyriemanns_after_a_stack_made_by_slicing(chapter, g):
    estimation = pytest.importorskip("pyriemann.estimation")
    X, p, tau = noise(6, 3, 200, g=g), 4, 5
    x, n = X.numpy(), 200 - p * tau
    stack = np.concatenate([x[:, :, q * tau : q * tau + n] for q in range(p)], 1)
    peer = estimation.Covariances(estimator="cov").transform(stack)
    assert_close(chapter.augmented_covariance(X, p, tau), torch.from_numpy(peer), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("p", "tau", "said"),
    [
        (0, 1, "The order p and the lag tau must be 1 or more; got 0 and 1"),
        (2, 0, "must be 1 or more; got 2 and 0"),
        (4, 5, "Order 4 and lag 5 leave 20 of 40 samples for a matrix of side 12; at least twice the side"),
    ],
)
def test_an_impossible_cell_is_refused(chapter, g, p, tau, said):
    with pytest.raises(ValueError, match=said):
        chapter.embed(noise(3, 40, g=g), p, tau)


def test_exactly_twice_the_side_is_allowed_and_order_one_is_held_to_it_too(chapter, g):
    assert chapter.embed(noise(3, 32, g=g), 4, 2).shape == (12, 24)
    with pytest.raises(ValueError, match="leave 31 of 39"):
        chapter.embed(noise(4, 39, g=g), 4, 2)
    with pytest.raises(ValueError, match="leave 7 of 7 samples for a matrix of side 4"):
        chapter.embed(noise(4, 7, g=g), 1, 1)


def test_shrinkage_is_scikit_learns(chapter, g):
    Z = noise(3, 8, 40, g=g) * torch.linspace(0.3, 3, 8, dtype=F64)[:, None] + 2
    peer = torch.stack([torch.from_numpy(ledoit_wolf(z.numpy().T)[0]) for z in Z])
    assert_close(chapter.shrunk_covariance(Z), peer, rtol=1e-11, atol=1e-12)
    flat = noise(1, 30, 12, g=g)  # nothing but noise: shrunk all the way, never beyond
    peer = torch.from_numpy(ledoit_wolf(flat[0].numpy().T)[0])
    assert_close(chapter.shrunk_covariance(flat)[0], peer, rtol=1e-11, atol=1e-12)


def var2(g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(A (2, 2, 2), Σ_e, population matrix of order 3 with the oldest block first) of a VAR(2)."""
    A = torch.tensor([[[0.5, 0.2], [-0.3, 0.4]], [[-0.2, 0.1], [0.15, 0.1]]], dtype=F64)
    cov_e = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=F64)
    F = np.zeros((6, 6))
    F[:2, :4], F[2:, :4] = np.concatenate(list(A.numpy()), 1), np.eye(4)
    Q = np.zeros((6, 6))
    Q[:2, :2] = cov_e
    P = scipy.linalg.solve_discrete_lyapunov(F, Q)  # newest first
    order = [4, 5, 2, 3, 0, 1]
    return A, cov_e, torch.from_numpy(P[np.ix_(order, order)])


def test_yule_walker_recovers_a_population_model_and_the_order_of_blocks_matters(chapter, g):
    A, cov_e, G = var2(g)
    found, innovation = chapter.yule_walker(G, 2)
    assert_close(found, A, rtol=0, atol=1e-13)
    assert_close(innovation, cov_e, rtol=0, atol=1e-13)
    order = [4, 5, 2, 3, 0, 1]
    assert (chapter.yule_walker(G[order][:, order], 2)[0] - A).abs().max() > 0.1
    assert_close(chapter.yule_walker(torch.stack([G, 2 * G]), 2)[0], torch.stack([A, A]), rtol=0, atol=1e-13)


def test_yule_walker_from_a_sample_is_statsmodels_up_to_edge_terms(chapter, g):
    api = pytest.importorskip("statsmodels.tsa.api")
    A, cov_e, _ = var2(g)
    e = noise(6000, 2, g=g) @ torch.linalg.cholesky(cov_e).T
    x = torch.zeros(6000, 2, dtype=F64)
    for t in range(2, 6000):
        x[t] = A[0] @ x[t - 1] + A[1] @ x[t - 2] + e[t]
    found, innovation = chapter.yule_walker(chapter.augmented_covariance(x[200:].T, 3, 1), 2)
    peer = api.VAR(x[200:].numpy()).fit(2, trend="c")
    assert_close(found, torch.from_numpy(peer.coefs), rtol=0, atol=2e-3)  # sampling error is 1.3e-2
    assert_close(innovation, torch.from_numpy(peer.sigma_u), rtol=0, atol=3e-3)


def test_distances_means_and_tangent_vectors_are_pyriemanns(chapter, g):
    pytest.importorskip("pyriemann")
    from pyriemann.geometry.distance import distance_riemann
    from pyriemann.geometry.mean import mean_riemann
    from pyriemann.tangentspace import TangentSpace

    P = definite(12, 5, g, 1.5)
    M = chapter.karcher_mean(P)
    assert_close(M, torch.from_numpy(mean_riemann(P.numpy(), tol=1e-11)), rtol=0, atol=1e-8)
    peers = torch.tensor([distance_riemann(P[0].numpy(), q.numpy()) for q in P])
    assert_close(chapter.distance(P[0], P), peers, rtol=1e-9, atol=1e-9)
    space = TangentSpace(metric="riemann", tsupdate=False)
    space.fit(P.numpy())
    space.reference_ = M.numpy()
    peer = torch.from_numpy(space.transform(P.numpy()))
    assert_close(chapter.tangent(P, M), peer, rtol=1e-9, atol=1e-9)


def test_the_logarithm_is_scipys_and_undone_by_the_exponential(chapter, g):
    M, P = definite(1, 4, g)[0], definite(3, 4, g)
    root = scipy.linalg.sqrtm(M.numpy())
    inverse = np.linalg.inv(root)
    naive = np.stack([scipy.linalg.logm(inverse @ p.numpy() @ inverse) for p in P])
    assert_close(chapter.logs_at(M, P), torch.from_numpy(naive), rtol=0, atol=1e-11)


def test_the_mean_of_two_and_of_commuting_matrices_are_closed_forms(chapter, g):
    two = definite(2, 4, g, 2.0)
    A, B = two.numpy()
    between = A @ scipy.linalg.sqrtm(np.linalg.solve(A, B))
    assert_close(chapter.karcher_mean(two), torch.from_numpy(between), rtol=0, atol=1e-9)
    d = torch.rand(9, 3, generator=g, dtype=F64) + 0.2
    assert_close(chapter.karcher_mean(torch.diag_embed(d)), torch.diag(d.log().mean(0).exp()), rtol=0, atol=1e-10)
    arithmetic = two.mean(0)
    assert (arithmetic - torch.from_numpy(between)).abs().max() > 1e-2  # told apart


def test_mean_and_distance_move_with_any_change_of_coordinates(chapter, g):
    P, W = definite(6, 4, g), noise(4, 4, g=g)
    moved = W @ P @ W.T
    assert_close(chapter.karcher_mean(moved), W @ chapter.karcher_mean(P) @ W.T, rtol=1e-7, atol=1e-7)
    assert_close(chapter.distance(moved[0], moved), chapter.distance(P[0], P), rtol=1e-8, atol=1e-7)
    order = torch.tensor([2, 3, 0, 1])  # block order only permutes rows and columns
    again = P[:, order][:, :, order]
    assert_close(chapter.distance(again[0], again), chapter.distance(P[0], P), rtol=1e-9, atol=1e-9)


def test_batched_means_are_the_single_ones_and_the_gradient_vanishes_there(chapter, g):
    P = definite(15, 3, g, 2.0).view(3, 5, 3, 3)
    M = chapter.karcher_mean(P)
    for k in range(3):
        assert_close(M[k], chapter.karcher_mean(P[k]), rtol=0, atol=1e-8)
    assert chapter.logs_at(M, P).mean(1).abs().max() < 1e-8
    assert torch.equal(M, M.mT)


def test_a_mean_stops_at_its_tolerance_or_says_so(chapter, g):
    P = definite(4, 4, g, 1.5)
    with pytest.raises(ValueError, match="did not reach 1e-08 in 2 steps"):
        chapter.karcher_mean(P, steps=2)
    rough, fine = chapter.karcher_mean(P, tol=1e-1), chapter.karcher_mean(P)
    assert chapter.logs_at(fine, P).mean(0).norm() < 1e-8 < chapter.logs_at(rough, P).mean(0).norm()


def test_the_plain_iteration_gives_up_on_matrices_spread_over_many_decades(chapter, g):
    with pytest.raises(ValueError, match="did not reach 1e-08 in 60 steps"):
        chapter.karcher_mean(definite(4, 4, g, 3.0))


def test_an_indefinite_matrix_is_refused(chapter):
    P = torch.diag_embed(torch.tensor([[1.0, 2.0], [1.0, -0.5], [1.0, 3.0]], dtype=F64))
    with pytest.raises(ValueError, match=r"must be positive definite; the smallest eigenvalue is -0\.333\."):
        chapter.karcher_mean(P)


def test_tangent_vectors_have_the_length_of_the_distance(chapter, g):
    P, M = definite(5, 4, g), definite(1, 4, g)[0]
    V = chapter.tangent(P, M)
    assert V.shape == (5, 10)
    assert_close(V.norm(dim=-1), chapter.distance(M, P), rtol=1e-10, atol=0)
    unweighted = torch.cat([chapter.logs_at(M, P)[:, i, i:] for i in range(4)], 1)
    assert (unweighted.norm(dim=-1) - chapter.distance(M, P)).abs().min() > 1e-3  # without √2: told apart


def test_nearest_means_are_pyriemanns_mdm(chapter, g):
    classification = pytest.importorskip("pyriemann.classification")
    P = definite(40, 3, g, 1.5)
    y = np.repeat([0, 1], 20)
    P[20:] = P[20:] @ torch.diag(torch.tensor([1.6, 1, 1], dtype=F64)) @ P[20:].mT
    P = (P + P.mT) / 2
    fit, at = np.arange(0, 40, 2), np.arange(1, 40, 2)
    peer = classification.MDM(metric="riemann").fit(P[fit].numpy(), y[fit]).predict(P[at].numpy())
    found = chapter.nearest_mean(P, y, fit, at)
    assert found.tolist() == peer.tolist() and 0 < found.mean() < 1


def test_gram_svm_is_scikit_learns_svm_on_the_vectors(chapter, g):
    V, y = two_groups(g)
    V = V + 3  # off centre, so that the variance is not the mean square
    fit, at = np.arange(13), np.arange(13, 20)
    for C, kernel in ((0.5, "rbf"), (1.5, "rbf"), (0.5, "linear")):
        peer = SVC(C=C, kernel=kernel).fit(V[fit], y[fit]).decision_function(V[at])
        gram = chapter.grams(V, V @ V.T, fit)[kernel]
        np.testing.assert_allclose(chapter.svm(gram, y, fit, at, C), peer, rtol=0, atol=2e-3)
    assert [*chapter.SETTINGS] == [(C, k) for C in (0.5, 1.0, 1.5) for k in ("rbf", "linear")]


def test_inner_scores_are_those_of_a_grid_search_over_the_same_folds(chapter, g):
    V, y = two_groups(g, 60, 8, 1.2)
    fit = np.arange(5, 55)
    grid = {"C": [0.5, 1.0, 1.5], "kernel": ["rbf", "linear"]}
    folds = chapter.folds_of(y[fit], 3, 4)
    peer = GridSearchCV(SVC(), grid, cv=folds, scoring="accuracy").fit(V[fit], y[fit])
    scores = chapter.inner_scores(V, V @ V.T, y, fit, 4, chapter.SETTINGS)
    np.testing.assert_allclose(scores, peer.cv_results_["mean_test_score"], rtol=0, atol=1e-12)


def test_an_inner_kernel_takes_its_width_from_the_inner_training_trials(chapter, monkeypatch, g):
    V, y = two_groups(g, 30, 4)
    fit, seen, grams = np.arange(3, 27), [], chapter.grams
    monkeypatch.setattr(chapter, "grams", lambda V, products, at: seen.append(at) or grams(V, products, at))
    chapter.inner_scores(V, V @ V.T, y, fit, 2, chapter.SETTINGS)
    assert [s.tolist() for s in seen] == [fit[a].tolist() for a, _ in chapter.folds_of(y[fit], 3, 2)]


def test_the_nested_search_is_grid_search_in_every_fold(chapter, g):
    V, y = two_groups(g, 50, 8, 1.0)
    W = noise(50, 8, g=g).numpy()
    folds = chapter.folds_of(y, 5, 1)
    features = {(1, 1): np.stack([W] * 5), (2, 1): np.stack([V] * 5)}
    result = chapter.nested(features, y, folds, seed=3)
    for f, (fit, at) in enumerate(folds):
        best = {}
        for cell, X in (((1, 1), W), ((2, 1), V)):
            inner = chapter.folds_of(y[fit], 3, 3)
            grid = {"C": [0.5, 1.0, 1.5], "kernel": ["rbf", "linear"]}
            best[cell] = GridSearchCV(SVC(), grid, cv=inner, scoring="accuracy").fit(X[fit], y[fit])
            values = best[cell].decision_function(X[at])
            np.testing.assert_allclose(result.by_cell[cell][at], values, rtol=0, atol=5e-3)
        winner = max(best, key=lambda cell: best[cell].best_score_)  # the first at a tie
        assert result.cells[f] == winner
        assert np.array_equal(result.chosen[at], result.by_cell[winner][at])


def test_ties_go_to_the_plain_covariance(chapter, g):
    V, y = two_groups(g, 40, 5, 2.0)
    same = np.stack([V] * 5)
    folds = chapter.folds_of(y, 5, 0)
    result = chapter.nested({(1, 1): same, (2, 1): same, (4, 4): same}, y, folds)
    assert result.cells == [(1, 1)] * 5


def test_nothing_of_a_test_trial_reaches_the_choice_or_the_map(chapter, g):
    X = noise(30, 2, 120, g=g)
    y = np.repeat([0, 1], 15)
    X[15:, 0] = X[15:, 0].cumsum(-1) / 5
    folds = chapter.folds_of(y, 5, 0)
    fit, at = folds[0]

    def run(X: Tensor, y: np.ndarray):
        features = {c: chapter.fold_features(chapter.augmented_covariance(X, *c), folds) for c in ((1, 1), (2, 1))}
        return features, chapter.nested(features, y, folds)

    features, result = run(X, y)
    spoiled, labels = X.clone(), y.copy()
    spoiled[torch.from_numpy(at)] = 50 * noise(len(at), 2, 120, g=g)
    labels[at] = 1 - labels[at]
    again, other = run(spoiled, labels)
    for cell in features:
        np.testing.assert_allclose(features[cell][0, fit], again[cell][0, fit], rtol=0, atol=1e-5)
        assert np.abs(features[cell][1, fit] - again[cell][1, fit]).max() > 1e-3  # other folds fit on them
    assert result.cells[0] == other.cells[0]


def test_fold_features_are_pyriemanns_tangent_space_fitted_on_the_training_trials(chapter, g):
    tangentspace = pytest.importorskip("pyriemann.tangentspace")
    P = definite(20, 3, g)
    folds = chapter.folds_of(np.repeat([0, 1], 10), 5, 0)
    V = chapter.fold_features(P, folds)
    assert V.shape == (5, 20, 6)
    for k, (fit, _) in enumerate(folds):
        space = tangentspace.TangentSpace(metric="riemann").fit(P[fit].numpy())
        np.testing.assert_allclose(V[k], space.transform(P.numpy()), rtol=0, atol=1e-5)


def test_folds_of_unequal_size_are_refused_and_folds_are_stratified(chapter, g):
    y = np.repeat([0, 1], 12)
    with pytest.raises(ValueError, match=r"equally many trials; got \[19, 20\]"):
        chapter.fold_features(definite(24, 2, g), chapter.folds_of(y, 5, 0))
    for fit, at in chapter.folds_of(y, 4, 2):
        assert y[at].sum() == 3 and len(np.intersect1d(fit, at)) == 0
    first, second = (chapter.folds_of(y, 4, seed)[0][1].tolist() for seed in (2, 3))
    assert first != second


@pytest.mark.parametrize("f", [5.0, 8.0, 15.0])
def test_the_lag_of_a_sine_is_a_quarter_of_its_period(chapter, f):
    t = torch.arange(3000, dtype=F64) / 250
    phases = torch.linspace(0, 6, 10, dtype=F64)
    X = torch.sin(2 * math.pi * f * t + phases[:, None, None]) + 4
    assert chapter.first_zero(X, 40) == math.ceil(250 / f / 4)


def test_the_lag_is_the_median_over_channels_and_never_beyond_the_longest(chapter, g):
    t = torch.arange(3000, dtype=F64) / 250
    X = torch.stack([torch.sin(2 * math.pi * f * t) for f in (5.0, 8.0, 30.0)])[None]
    assert chapter.first_zero(X) == 8
    drift = torch.linspace(0, 1, 200, dtype=F64).expand(2, 1, 200)
    assert chapter.first_zero(drift, 9) == 9


def test_the_lag_of_drifting_trials_does_not_join_their_end_to_their_start(chapter, g):
    X = noise(4, 5, 30, g=g).cumsum(-1)
    Z = (X - X.mean(-1, keepdim=True)).numpy()

    def first(c, circular):
        for lag in range(1, 30):
            ends = [sum(z[t] * z[(t + lag) % 30] for t in range(30 if circular else 30 - lag)) for z in Z[:, c]]
            if sum(ends) <= 0:
                return lag

    lags = {circular: [first(c, circular) for c in range(5)] for circular in (False, True)}
    for c in range(5):
        assert chapter.first_zero(X[:, c : c + 1]) == lags[False][c]
    assert lags[False] != lags[True]  # told apart


def naive_shares(x: np.ndarray, tau: int, most: int, queries: int, window: int | None = None) -> list[float]:
    """False nearest neighbours of one series, counted one by one; none within the window in time."""
    window = tau if window is None else window
    x = (x - x.mean()) / x.std(ddof=1)
    n, shares = len(x) - most * tau, []
    at = [int(a) for a in np.linspace(0, n - 1, queries)]
    for m in range(1, most + 1):
        false = 0
        for i in at:

            def length(j, m=m, i=i):
                return math.sqrt(sum((x[i + k * tau] - x[j + k * tau]) ** 2 for k in range(m)))

            j = min((j for j in range(n) if abs(i - j) > window), key=length)
            extra, R = abs(x[i + m * tau] - x[j + m * tau]), length(j)
            false += extra > 15 * R or math.hypot(R, extra) > 2
        shares.append(false / len(at))
    return shares


def test_false_neighbours_are_those_counted_one_by_one(chapter, g):
    x = torch.stack([noise(150, g=g), torch.sin(torch.arange(150, dtype=F64) / 3) + 0.1 * noise(150, g=g)])
    found = chapter.false_neighbours(5 * x + 2, 3, 3, queries=20)
    expected = [naive_shares(row.numpy(), 3, 3, 20) for row in x]
    assert_close(found, torch.tensor(expected, dtype=F64).T, rtol=0, atol=1e-12)
    assert found[0, 0] > 0.1  # one noisy coordinate has false neighbours


def test_neighbours_in_time_are_no_neighbours_up_to_the_lag_itself(chapter, g):
    x = noise(3, 70, g=g).cumsum(-1)
    found = chapter.false_neighbours(x, 2, 2, queries=25)
    shares = {w: torch.tensor([naive_shares(row.numpy(), 2, 2, 25, w) for row in x], dtype=F64).T for w in (1, 2, 3)}
    assert_close(found, shares[2], rtol=0, atol=1e-12)
    assert not torch.equal(shares[2], shares[1]) and not torch.equal(shares[2], shares[3])


def test_a_circle_unfolds_in_two_copies_and_the_rule_says_so(chapter, g):
    t = torch.arange(2000, dtype=F64) / 250
    X = torch.sin(2 * math.pi * 7.3 * t + 6 * torch.rand(12, 2, 1, generator=g, dtype=F64))
    p, tau = chapter.delay_rule(X, 4)
    assert (p, tau) == (2, chapter.first_zero(X)) and tau == 9


def test_where_nothing_unfolds_the_rule_takes_the_fewest_false_neighbours(chapter, monkeypatch, g):
    shares = torch.tensor([[0.5, 0.9], [0.2, 0.04], [0.3, 0.01]], dtype=F64)  # (most, channels)
    monkeypatch.setattr(chapter, "false_neighbours", lambda x, *_: shares.repeat(1, len(x) // 2))
    assert chapter.delay_rule(noise(6, 2, 100, g=g), 3)[0] == 2  # fewest at 2; first below 5 % at 2


def test_shares_are_averaged_over_trials_and_not_over_channels(chapter, monkeypatch, g):
    shares = torch.tensor([[0.0, 0.0, 0.9], [0, 0, 0.9], [0, 0, 0]], dtype=F64)  # orders 1, 1, 3: median 1
    monkeypatch.setattr(chapter, "false_neighbours", lambda x, *_: shares.repeat(1, len(x) // 3))
    assert chapter.delay_rule(noise(6, 3, 100, g=g), 3)[0] == 1  # a mean over channels would say 3


def test_the_rule_looks_at_trials_from_first_to_last(chapter, monkeypatch, g):
    seen = []

    def spy(x, tau, most):
        seen.extend((x[:, 0].round().int() // 100).tolist())
        return torch.zeros(most, len(x), dtype=F64)

    monkeypatch.setattr(chapter, "false_neighbours", spy)
    chapter.delay_rule(noise(60, 1, 100, g=g) + 100 * torch.arange(60, dtype=F64)[:, None, None] + 50, 3)
    assert seen == [0, 10, 20, 30, 40, 50]  # trials come sorted by class: the first six are of one


def test_the_population_of_the_pair_is_what_samples_approach(chapter, g):
    W = noise(4, 4, g=g)
    X = chapter.rotating_pair(0.6, 200, 600, W, g)
    assert X.shape == (400, 4, 600)
    for sign, trials in ((1, X[:200]), (-1, X[200:])):
        sample = chapter.augmented_covariance(trials, 3, 2).mean(0)
        known = chapter.population(0.6, 3, 2, sign, W)
        assert (sample - known).abs().max() < 0.03 * known.abs().max()
    plain = [chapter.population(0.6, 1, 1, sign, W) for sign in (1, -1)]
    assert torch.equal(*plain)


def test_the_pair_is_stationary_from_its_first_sample(chapter, g):
    X = chapter.rotating_pair(0.9, 3000, 2, torch.eye(4, dtype=F64), g)
    assert_close(X[..., 0].var(), torch.tensor(1.25, dtype=F64), rtol=0, atol=0.05)  # from rest: 0.44


def test_the_population_is_the_solution_of_the_lyapunov_equation(chapter):
    rho, p = 0.7, 4
    R = chapter.turn(-chapter.THETA).numpy()
    F, Q = np.zeros((16, 16)), np.zeros((16, 16))
    F[:4, :4], F[4:, :12], Q[:4, :4] = rho * R, np.eye(12), (1 - rho**2) * np.eye(4)
    newest = scipy.linalg.solve_discrete_lyapunov(F, Q)
    order = np.arange(16).reshape(4, 4)[::-1].ravel()
    known = torch.from_numpy(newest[np.ix_(order, order)])
    assert_close(chapter.population(rho, p, 1, -1), known, rtol=0, atol=1e-13)
    assert (chapter.population(rho, p, 1, 1) - known).abs().max() > 0.1  # the other turn, the other transpose
    every_second = torch.cat([torch.arange(4), torch.arange(8, 12)])
    assert_close(chapter.population(rho, 2, 2, -1), known[every_second][:, every_second], rtol=0, atol=1e-13)
    assert chapter.turn(0.3)[0, 1] == -math.sin(0.3) and chapter.turn(0.3)[3, 2] == math.sin(0.3)


def test_sources_ring_at_their_frequency_with_unit_variance(chapter, g):
    for f in (10.0, 12.0):
        x = chapter.ringing(f, (40, 5000), g)
        assert x.shape == (40, 5000)
        assert x.var().item() == pytest.approx(1, abs=0.03)
        frequency, power = signal.welch(x.numpy(), 250, nperseg=1000)
        assert frequency[power.mean(0).argmax()] == pytest.approx(f, abs=0.3)
        r1 = 2 * 0.97 * math.cos(2 * math.pi * f / 250) / (1 + 0.97**2)  # lag-1 correlation of an AR(2)
        assert (x[:, 1:] * x[:, :-1]).mean().item() == pytest.approx(r1, abs=0.03)


def test_sources_have_settled_before_a_trial_begins(chapter, g):
    x = chapter.ringing(10.0, (4000, 3), g)
    assert_close(x.var(0), torch.ones(3, dtype=F64), rtol=0, atol=0.1)  # from rest it would be near 0.01


def test_pink_signals_fall_as_one_over_f(chapter, g):
    x = chapter.pink((300, 4000), g)
    assert_close(x.std(-1), torch.ones(300, dtype=F64))
    assert x.mean(-1).abs().max() < 1e-12
    power = torch.fft.rfft(x).abs().square().mean(0)
    k = torch.arange(2, 1800)
    slope = np.polyfit(k.log().numpy(), power[k].log().numpy(), 1)[0]
    assert slope == pytest.approx(-1, abs=0.03)


def test_simulated_eeg_is_its_recipe(chapter, g):
    n, C, T = 60, 8, 750
    a, f2 = 0.5, 14.0
    X = chapter.simulated_eeg((a, f2), n, C, T, torch.Generator().manual_seed(5))
    assert X.shape == (2 * n, C, T)
    g = torch.Generator().manual_seed(5)
    L, B = noise(C, 2, g=g), noise(C, 8, g=g) / math.sqrt(8)
    frequency = np.fft.rfftfreq(100_000, 1 / 250)
    band = (
        np.abs(signal.sosfreqz(signal.butter(4, (8, 32), "bandpass", fs=250, output="sos"), frequency, fs=250)[1]) ** 4
    )
    band[-1] = 0

    def ar2(f):  # power spectrum of a unit-variance source, relative
        z = np.exp(-2j * math.pi * frequency / 250)
        power = 1 / np.abs(1 - 2 * 0.97 * math.cos(2 * math.pi * f / 250) * z + 0.97**2 * z**2) ** 2
        return (power * band).sum() / power.sum()

    k = np.arange(1, 501)  # pink: 1/k over the bins of a trial with its padding
    at = np.interp(k * 0.25, frequency, band)
    pink = (at / k).sum() / (1 / k).sum()
    for label, s1, s2 in ((0, a**2 * ar2(10), ar2(10)), (1, ar2(10), a**2 * ar2(f2))):
        source = L @ torch.diag(torch.tensor([s1, s2], dtype=F64)) @ L.T
        known = 0.49 * source + 9 * pink * B @ B.T + 0.25 * band.mean() * torch.eye(C, dtype=F64)
        found = chapter.covariance(X[label * n : (label + 1) * n]).mean(0)
        assert (found - known).norm() < 0.06 * known.norm()
        assert (found - known).norm() < 0.5 * (chapter.covariance(X[(1 - label) * n :][:n]).mean(0) - known).norm()


def test_the_regimes_and_constants_are_the_cards(chapter):
    assert (chapter.RHYTHM, chapter.AMPLITUDE) == ((0.9, 12.0), (0.75, 10.0))
    assert (chapter.THETA, chapter.NOISE, chapter.RADIUS, chapter.RATE) == (math.pi / 6, 0.25, 0.97, 250)
    assert (chapter.OUTER, chapter.INNER, chapter.FALSE, chapter.LOOK) == (5, 3, 0.05, 6)


def test_one_delayed_copy_separates_the_pair_and_none_does_not(chapter, g):
    W = noise(4, 4, g=g)
    X, y = chapter.rotating_pair(0.3, 50, 256, W, g), np.repeat([0, 1], 50)
    folds = chapter.folds_of(y, 5, 0)
    right = {}
    for p in (1, 2):
        features = {(p, 1): chapter.fold_features(chapter.augmented_covariance(X, p, 1), folds)}
        right[p] = ((chapter.nested(features, y, folds).chosen > 0) == y).mean()
    assert right[2] > 0.9 and abs(right[1] - 0.5) < 0.2
