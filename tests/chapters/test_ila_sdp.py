"""The method of `ila-sdp` against cvxpy, enumeration, closed forms, scikit-learn, derivatives and mistakes."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.testing import assert_close


@pytest.fixture(autouse=True)
def one_thread():
    """Small eigenproblems wait for each other on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def double(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def world(chapter, g, B=2, n=16, K=2, d=2, sep=3.0):
    return chapter.mixture(B, n, chapter.axis_centres(K, d, sep), g)


def naive_cost(X, Sigma):
    """C pair by pair, in NumPy."""
    n, P, log_det = len(X), np.linalg.inv(Sigma), np.linalg.slogdet(Sigma)[1]
    C = np.empty((n, n))
    for i, j in product(range(n), repeat=2):
        C[i, j] = -0.5 * (X[i] - X[j]) @ P @ (X[i] - X[j]) - log_det
    return C


def peer(C, per_cluster=True, K=None):
    """The program by Clarabel through cvxpy: value and matrices of one problem (blocks, n, n)."""
    cp = pytest.importorskip("cvxpy")
    C, n, K = C.numpy(), C.shape[-1], K or len(C)
    Z = [cp.Variable((n, n), PSD=True) for _ in C]
    rules = [z >= 0 for z in Z] + [sum(cp.sum(z, axis=1) for z in Z) == 1]
    rules += [cp.trace(z) == 1 for z in Z] if per_cluster else [sum(cp.trace(z) for z in Z) == K]
    program = cp.Problem(cp.Maximize(sum(cp.sum(cp.multiply(c, z)) for c, z in zip(C, Z, strict=True))), rules)
    program.solve(solver=cp.CLARABEL)
    return program.value, torch.from_numpy(np.stack([z.value for z in Z]))


# Data and errors


def test_the_centres_are_all_the_separation_apart_and_cut_to_the_dimension(chapter):
    centres = chapter.axis_centres(3, 5, 4.0)
    assert_close(torch.pdist(centres), torch.full((3,), 4.0).double())
    assert chapter.axis_centres(3, 2, 4.0).shape == (3, 2) and (chapter.axis_centres(3, 2, 4.0)[2] == 0).all()


def test_the_clusters_have_the_centres_and_covariances_that_were_asked_for(chapter, g):
    centres = double([[0, 0, 0], [5, 1, 0.0]])
    data = chapter.mixture(2, 40_000, centres, g, rho=0.05)
    values = torch.linalg.eigvalsh(data.Sigma)
    assert_close(values, double([0.05, 0.05, 1]).expand(2, 2, 3))
    for b, k in product(range(2), repeat=2):
        own = data.X[b][data.labels[b] == k]
        assert len(own) == 20_000
        assert_close(own.mean(0), centres[k], rtol=0, atol=0.03)
        assert_close(own.T.cov(), data.Sigma[b, k], rtol=0, atol=0.04)


def test_rotations_are_orthogonal_and_evenly_spread(chapter, g):
    Q = chapter.haar(4000, 1, 2, g)[:, 0]
    assert_close(Q @ Q.mT, torch.eye(2).double().expand(4000, 2, 2))
    angle = torch.atan2(Q[:, 1, 0], Q[:, 0, 0])
    assert stats.kstest(angle.numpy(), stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 0.01


def test_given_rotations_are_used(chapter, g):
    Q = torch.eye(2).double().expand(3, 2, 2, 2)
    data = chapter.mixture(3, 8, double([[0, 0], [9, 0.0]]), g, Q=Q)
    assert_close(data.Sigma, torch.diag(double([1, 0.05])).expand(3, 2, 2, 2))


def test_an_error_does_not_see_the_names_of_the_clusters(chapter):
    truth = torch.tensor([[0, 0, 1, 1, 2, 2]])
    assert chapter.errors(torch.tensor([[2, 2, 0, 0, 1, 1]]), truth, 3).item() == 0
    assert chapter.errors(torch.tensor([[2, 2, 0, 0, 1, 0]]), truth, 3).item() == pytest.approx(1 / 6)
    assert chapter.errors(torch.tensor([[0, 0, 0, 0, 0, 0]]), truth, 3).item() == pytest.approx(2 / 3)
    assert chapter.errors(torch.tensor([[0, 1, 2, 0, 1, 2]]), truth, 3).item() == 0.5  # right sizes, wrong members


# Lifting and costs


def test_a_lifted_cluster_has_its_members_as_row_sums_and_trace_one(chapter):
    Z = chapter.lift(torch.tensor([[0, 1, 1, 0, 1]]), 2)[0]
    assert_close(Z.sum(-1), double([[1, 0, 0, 1, 0], [0, 1, 1, 0, 1]]))
    assert_close(Z @ Z, Z)
    assert Z[0, 0, 3] == 0.5 and Z[1, 1, 4] == pytest.approx(1 / 3)


def test_costs_are_the_naive_pairs(chapter, g):
    data = world(chapter, g, n=12, K=3, d=4)
    C = chapter.costs(data.X + 100, data.Sigma * double([1, 2, 3])[:, None, None])
    for b, k in product(range(2), range(3)):
        expected = naive_cost(data.X[b].numpy(), data.Sigma[b, k].numpy() * (k + 1))
        assert_close(C[b, k], torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


def test_costs_keep_their_digits_far_from_the_origin(chapter, g):
    data = world(chapter, g, n=12, K=3, d=4)
    near = chapter.costs(data.X, data.Sigma)
    assert_close(chapter.costs(data.X + 1e6, data.Sigma), near, rtol=0, atol=1e-6)  # ‖x‖² alone would leave no digit


def test_the_objective_of_hard_labels_is_the_profile_likelihood(chapter, g):
    data = world(chapter, g, n=15, K=3, d=3)
    labels = torch.arange(15) % 3
    value = chapter.objective(chapter.costs(data.X, data.Sigma), chapter.lift(labels.expand(2, 15), 3))
    for b in range(2):
        own = [data.X[b][labels == k].numpy() for k in range(3)]
        laws = [stats.multivariate_normal(x.mean(0), s) for x, s in zip(own, data.Sigma[b].numpy(), strict=True)]
        log_likelihood = sum(law.logpdf(x).sum() for law, x in zip(laws, own, strict=True))
        assert value[b].item() == pytest.approx(2 * log_likelihood + 15 * 3 * math.log(2 * math.pi), rel=1e-10)


# The solver


def test_the_adjoint_is_the_transpose_and_the_gram_matrix_their_product(chapter, g):
    for T in (torch.eye(3).double(), torch.ones(1, 3).double(), torch.randn(2, 3, generator=g).double()):
        v = torch.randn(4, 7 + len(T), generator=g).double()
        M = torch.randn(4, 3, 7, 7, generator=g).double()
        M = M + M.mT
        left = (chapter.forward(M, T) * v).sum(1)
        assert_close(left, (M * chapter.adjoint(v, T)).sum((1, 2, 3)))
        assert_close(chapter.forward(chapter.adjoint(v, T), T), v @ chapter.gram(7, T))


def test_the_positive_part_is_the_nearest_semidefinite_matrix(chapter, g):
    M = torch.randn(3, 5, 5, generator=g).double()
    M = M + M.mT
    P = chapter.psd_part(M)
    assert torch.linalg.eigvalsh(P).min() > -1e-12
    assert torch.linalg.eigvalsh(P - M).min() > -1e-12
    assert_close((P * (P - M)).sum((1, 2)), torch.zeros(3).double(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_la_sdp_has_clarabels_optimum(chapter, seed):
    data = world(chapter, torch.Generator().manual_seed(seed), B=1, sep=1.5)
    C = chapter.costs(data.X, data.Sigma)
    value, Z = peer(C[0])
    ours = chapter.la_sdp(C)
    assert ours.value.item() == pytest.approx(value, rel=1e-3, abs=2e-2)
    assert value <= ours.bound.item() + 1e-6 < value + 5e-2
    assert_close(ours.Z[0], Z, rtol=0, atol=5e-3)


def test_a_common_trace_is_another_program_with_a_higher_optimum(chapter):
    data = world(chapter, torch.Generator().manual_seed(2), B=1, n=15, K=3, sep=1.0)
    C = chapter.costs(data.X, data.Sigma)
    value, Z = peer(C[0], per_cluster=False)
    ours = chapter.solve(C, torch.ones(1, 3).double(), double([3.0]))
    assert ours.value.item() == pytest.approx(value, rel=1e-3, abs=2e-2)
    assert_close(ours.Z[0], Z, rtol=0, atol=5e-3)
    assert ours.value > chapter.la_sdp(C).value - 1e-2


def test_the_kmeans_program_is_clarabels_too_and_does_not_see_a_shift(chapter, g):
    data = world(chapter, g, B=1, n=16, sep=2.0)
    X = data.X - data.X.mean(1, keepdim=True)
    value, Z = peer(X @ X.mT, per_cluster=False, K=2)
    for moved in (X, X + 7):
        ours = chapter.kmeans_sdp(moved, 2)
        assert ours.value.item() == pytest.approx(value, rel=1e-3)
        assert_close(ours.Z[0], Z, rtol=0, atol=2e-3)


def test_a_solution_is_feasible_symmetric_and_certified(chapter, g):
    data = world(chapter, g, B=3, n=24, K=3)
    C = chapter.costs(data.X, data.Sigma)
    Z, value, bound, sweeps = chapter.la_sdp(C)
    assert (Z >= 0).all()
    assert_close(Z, Z.mT, rtol=0, atol=1e-10)
    assert torch.linalg.eigvalsh(Z).min() > -1e-4
    assert_close(Z.sum(1).sum(-1), torch.ones(3, 24).double(), rtol=0, atol=1e-4)
    assert_close(Z.diagonal(dim1=-2, dim2=-1).sum(-1), torch.ones(3, 3).double(), rtol=0, atol=1e-4)
    assert ((bound - value).abs() < 2e-3 * value.abs()).all() and (sweeps < 2000).all() and (sweeps % 20 == 0).all()


def test_a_tighter_tolerance_and_a_higher_cap_reach_the_solver(chapter, g):
    C = chapter.costs(*world(chapter, g, B=1, n=18, K=3)[::2])
    loose, usual, tight = chapter.la_sdp(C, cap=40), chapter.la_sdp(C), chapter.la_sdp(C, tol=1e-8, cap=20_000)
    assert loose.sweeps == 40 < usual.sweeps < tight.sweeps < 20_000
    assert abs(tight.bound - tight.value) < 1e-4 * tight.value.abs() < 1e-1


def test_the_penalty_follows_the_larger_residual(chapter):
    factor = chapter.balance(double([4.0, 1.0, 1.0, 2.9]), double([1.0, 4.0, 1.0, 1.0]))
    assert_close(factor, double([[1 / 1.5], [1.5], [1.0], [1.0]]))


def test_residuals_see_two_candidates_apart_a_broken_constraint_and_a_moving_z(chapter, g):
    T, b = torch.eye(2).double(), torch.ones(1, 7).double()
    Z = chapter.lift(torch.tensor([[0, 0, 1, 1, 1]]), 2)
    state = chapter.State(Z, Z, Z, double([[0.5]]))
    still = chapter.Move(Z, Z, Z, Z, b)
    primal, dual = chapter.residuals(still, state, T, b)
    assert primal < 1e-12 and dual == 0
    primal, dual = chapter.residuals(still._replace(W=2 * Z), state, T, b)  # norm of Z is √2, of A(Z) − b = b is √7
    assert_close(primal, double([3.0]))
    assert_close(dual, double([2 * math.sqrt(2)]))


@pytest.mark.parametrize("small", [0, 1, 2])
def test_a_problem_leaves_only_when_both_residuals_are_small(chapter, g, monkeypatch, small):
    found = [torch.zeros(1), torch.zeros(1)]
    if small < 2:
        found[small] = torch.ones(1)
    monkeypatch.setitem(chapter.solve.__globals__, "residuals", lambda *_: tuple(found))
    C = chapter.costs(*world(chapter, g, B=1, n=8)[::2])
    assert chapter.la_sdp(C, cap=60).sweeps == (20 if small == 2 else 60)


def test_problems_do_not_disturb_each_other_in_a_batch(chapter, g):
    data = world(chapter, g, B=3, n=18, K=3)
    C = chapter.costs(data.X, data.Sigma) * double([1, 50, 0.1])[:, None, None, None]
    together = chapter.la_sdp(C)
    for b in range(3):
        alone = chapter.la_sdp(C[b : b + 1])
        assert alone.sweeps[0] == together.sweeps[b]
        assert_close(alone.Z[0], together.Z[b], rtol=0, atol=1e-8)
        assert_close(alone.bound[0], together.bound[b], rtol=1e-6, atol=0)


def test_the_bound_holds_for_any_multipliers(chapter, g):
    data = world(chapter, g, B=1, n=9, K=3)
    C = chapter.costs(data.X, data.Sigma)
    optimum = chapter.la_sdp(C).bound
    T, totals = torch.eye(3).double(), torch.ones(3).double()
    for _ in range(20):
        y = 10 * torch.randn(1, 12, generator=g).double()
        N = torch.rand(1, 3, 9, 9, generator=g).double()
        assert chapter.upper_bound(C, T, totals, y, N + N.mT) >= optimum - 1e-3


def test_no_labelling_beats_the_bound(chapter, g):
    data = world(chapter, g, B=2, n=8, sep=1.0)
    C = chapter.costs(data.X, data.Sigma)
    labels = torch.tensor([q for q in product(range(2), repeat=8) if 0 < sum(q) < 8])
    best = torch.stack([chapter.objective(c[None], chapter.lift(labels, 2)).max() for c in C])
    solution = chapter.la_sdp(C)
    assert (best <= solution.bound).all() and (best <= solution.value + 1e-2).all()


def test_equal_covariances_give_the_kmeans_program_from_an_uneven_start(chapter, g):
    X = world(chapter, g, B=2, n=18, K=3, sep=2.0).X
    X = X - X.mean(1, keepdim=True)
    start = torch.randn(2, 3, 18, 18, generator=g).double() / 18
    adjusted = chapter.la_sdp(chapter.costs(X, torch.eye(2).double().expand(2, 3, 2, 2)), start + start.mT)
    plain = chapter.kmeans_sdp(X, 3)
    assert_close(adjusted.value + X.square().sum((1, 2)), plain.value, rtol=1e-4, atol=0)
    assert_close(adjusted.Z.sum(1), plain.Z[:, 0], rtol=0, atol=2e-3)
    assert (adjusted.Z[:, 0] - adjusted.Z[:, 1]).abs().max() > 1e-4


def test_well_separated_clusters_of_different_direction_are_hard_wherever_they_are(chapter, g):
    Q = torch.stack([torch.eye(2), torch.eye(2).flip(0), torch.tensor([[1.0, -1], [1, 1]]) / math.sqrt(2)]).double()
    data = chapter.mixture(3, 30, double([[0, 0], [6, 0], [60, 0]]), g, Q=Q.expand(3, 3, 2, 2))
    Z = chapter.la_sdp(chapter.costs(data.X, data.Sigma)).Z
    assert_close(Z, chapter.lift(data.labels, 3), rtol=0, atol=1e-4)


# Labels, covariances, iteration


def test_labels_are_the_largest_row_sums_and_the_leading_eigenvectors(chapter):
    Z = chapter.lift(torch.tensor([[1, 0, 2, 2, 1, 0, 0]]), 3)
    mixed = 0.6 * Z + 0.4 * Z.roll(1, 1)
    assert chapter.memberships(mixed).tolist() == [[1, 0, 2, 2, 1, 0, 0]]
    labels = chapter.spectral_labels(Z.sum(1, keepdim=True), 3)
    assert chapter.errors(labels, torch.tensor([[1, 0, 2, 2, 1, 0, 0]]), 3).item() == 0


def test_covariances_of_hard_labels_are_the_sample_covariances(chapter, g):
    X = torch.randn(2, 20, 3, generator=g).double() + 50
    labels = torch.arange(20) % 2
    found = chapter.covariances(X, chapter.lift(labels.expand(2, 20), 2), ridge=0.25)
    for b, k in product(range(2), repeat=2):
        expected = np.cov(X[b][labels == k].T, bias=True) + 0.25 * np.eye(3)
        assert_close(found[b, k], torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


def test_covariances_maximise_the_objective_at_fractional_memberships(chapter, g):
    data = world(chapter, g, B=2, n=18, K=3, sep=1.0)
    Z = (chapter.lift(data.labels, 3) + 2 * chapter.lift(data.labels.roll(5, 1), 3)) / 3
    best = chapter.covariances(data.X, Z, ridge=0.0)
    top = chapter.objective(chapter.costs(data.X, best), Z)
    for _ in range(10):
        A = torch.eye(2).double() + 0.1 * torch.randn(2, 3, 2, 2, generator=g).double()
        assert (chapter.objective(chapter.costs(data.X, A @ best @ A.mT), Z) < top).all()


def test_a_round_maximises_one_half_after_the_other(chapter, g):
    data = world(chapter, g, B=1, n=24, K=3, sep=4.0)
    Z = chapter.lift(torch.randint(3, (1, 24), generator=g), 3)
    Sigma, solution, (ends,) = chapter.one_round(data.X, Z)
    C = chapter.costs(data.X, chapter.covariances(data.X, Z))
    assert_close(Sigma, chapter.covariances(data.X, Z, 1e-3))
    assert ends[0] == chapter.objective(C, Z) and ends[1] == chapter.objective(C, solution.Z)
    assert ends[1] > ends[0] and ends[2] == solution.bound[0]


def test_the_iteration_stops_when_labels_repeat_and_keeps_what_it_found(chapter, g):
    data = world(chapter, g, B=2, n=30, K=3, sep=12.0)
    run = chapter.ila_sdp(data.X, data.labels, 3)
    assert run.labels.tolist() == data.labels.tolist()
    assert not run.values[:, 0].isnan().any() and run.values[:, 1:].isnan().all()
    other = data.labels.clone()
    other[0, 0] = 1
    mended = chapter.ila_sdp(data.X, other, 3)
    assert chapter.errors(mended.labels, data.labels, 3).tolist() == [0, 0]
    assert not mended.values[0, 1].isnan().any() and mended.values[1, 1:].isnan().all()
    assert mended.sweeps[0] > mended.sweeps[1] and other[0, 0] == 1
    assert_close(mended.Z, chapter.lift(mended.labels, 3), rtol=0, atol=1e-2)
    path = mended.values[0, :, :2]
    path = path[~path.isnan()]
    assert (path.diff() > -1e-3 * path[:-1].abs().clamp(min=1)).all()
    short = chapter.ila_sdp(data.X, other, 3, rounds=1)
    assert short.values.shape == (2, 1, 3) and short.values[0, 0, 1] == pytest.approx(mended.values[0, 0, 1].item())


# The rival


def test_em_is_scikit_learns(chapter, g):
    X = world(chapter, g, B=1, n=60, K=3, sep=3.0).X[0]
    r = chapter.random_memberships(1, 60, 3, g)
    n_k = r[0].sum(0).numpy()
    mu = (r[0].T @ X).numpy() / n_k[:, None]
    cov = [np.cov(X.T, bias=True, aweights=r[0, :, k]) + 0.01 * np.eye(2) for k in range(3)]
    theirs = GaussianMixture(3, reg_covar=0.01, max_iter=30, tol=0.0, weights_init=n_k / 60, means_init=mu)
    theirs.set_params(precisions_init=np.linalg.inv(cov))
    with pytest.warns(UserWarning, match="did not converge"):
        theirs.fit(X.numpy())
    ours = chapter.em(X[None], r, steps=31, ridge=0.01)
    assert ours.score.item() == pytest.approx(theirs.score(X.numpy()), abs=1e-10)
    assert ours.labels[0].tolist() == theirs.predict(X.numpy()).tolist()


def test_em_runs_on_each_data_set_of_a_batch_by_itself(chapter, g):
    X, r = world(chapter, g, B=3, n=30, K=3, sep=3.0).X, chapter.random_memberships(3, 30, 3, g)
    together = chapter.em(X, r, steps=20)
    for b in range(3):
        alone = chapter.em(X[b : b + 1], r[b : b + 1], steps=20)
        assert together.labels[b].tolist() == alone.labels[0].tolist()
        assert_close(together.score[b], alone.score[0])


def test_a_cluster_without_points_leaves_em_to_the_others(chapter, g):
    X, r = world(chapter, g, B=2, n=30).X, chapter.random_memberships(2, 30, 2, g)
    three, two = chapter.em(X, torch.cat([r, 0 * r[..., :1]], -1), steps=20), chapter.em(X, r, steps=20)
    assert three.labels.tolist() == two.labels.tolist()
    assert_close(three.score, two.score)


def test_random_starts_are_nearest_points_and_even_shares(chapter, g):
    X = world(chapter, g, B=50, n=12, K=3).X
    labels = chapter.random_points(X, 3, g)
    for x, own in zip(X, labels, strict=True):
        assert set(own.tolist()) == {0, 1, 2}
        candidates = [[i for i in range(12) if own[i] == k] for k in range(3)]
        found = any((torch.cdist(x, x[list(three)]).argmin(1) == own).all() for three in product(*candidates))
        assert found
    r = chapter.random_memberships(400, 12, 3, g)
    assert_close(r.sum(-1), torch.ones(400, 12).double())
    assert_close(r.mean((0, 1)), torch.full((3,), 1 / 3).double(), rtol=0, atol=0.01)
    assert 0.1 < r.std() < 0.3


def test_kmeans_finds_far_groups_and_one_random_start_is_one(chapter, g):
    data = world(chapter, g, B=2, n=30, K=3, sep=30.0)
    assert chapter.errors(chapter.kmeans(data.X, 3), data.labels, 3).tolist() == [0, 0]
    single = torch.cat([chapter.kmeans(data.X + s, 3, 1, "random") for s in range(2)])
    assert single.shape == (4, 30)


# What must not pass


@pytest.mark.parametrize(
    ("T", "totals", "cap", "said"),
    [
        (torch.eye(3), torch.ones(3), 2000, r"T must be \(m, 2\), .* got \(3, 3\), \(3,\) and 2000"),
        (torch.eye(2), torch.ones(3), 2000, r"totals \(m,\), .* got \(2, 2\), \(3,\) and 2000"),
        (torch.eye(2), torch.ones(2), 30, "cap a multiple of 20; got .* and 30"),
    ],
)
def test_constraints_that_do_not_fit_are_named(chapter, T, totals, cap, said):
    with pytest.raises(ValueError, match=said):
        chapter.solve(torch.ones(1, 2, 4, 4).double(), T.double(), totals.double(), cap=cap)


def test_uneven_clusters_and_empty_ones_are_named(chapter, g):
    with pytest.raises(ValueError, match="n must be a multiple of the 3 clusters; got 10"):
        chapter.mixture(1, 10, chapter.axis_centres(3, 2, 3), g)
    with pytest.raises(ValueError, match=r"every one of the 3 clusters needs a point; sizes \[2, 0, 1\] came"):
        chapter.lift(torch.tensor([[0, 0, 2]]), 3)


def test_plausible_mistakes_in_the_cost_are_told_apart(chapter, g):
    data = world(chapter, g, n=12, K=3, d=3)
    Z = chapter.lift(data.labels, 3)
    value = chapter.objective(chapter.costs(data.X, data.Sigma), Z)
    P, log_det = torch.linalg.inv(data.Sigma), torch.logdet(data.Sigma)
    D = data.X[:, :, None] - data.X[:, None]
    pairs = torch.einsum("bijd,bkde,bije->bkij", D, P, D)
    turned = torch.einsum("bijd,bkde,bije->bkij", D, data.Sigma, D)
    right = -pairs / 2 - log_det[..., None, None]
    assert_close(chapter.objective(right, Z), value)
    mistakes = {
        "no half": -pairs - log_det[..., None, None],
        "covariance for precision": -turned / 2 - log_det[..., None, None],
        "half of the determinant": -pairs / 2 - log_det[..., None, None] / 2,
        "no determinant": -pairs / 2,
    }
    for wrong in mistakes.values():
        assert (chapter.objective(wrong, Z) - value).abs().min() > 0.1
