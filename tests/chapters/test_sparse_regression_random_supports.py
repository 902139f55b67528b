"""The method of `sparse-regression-random-supports` against SciPy, scikit-learn, naive loops and known designs."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.linear_model import ElasticNet, lars_path, lasso_path, orthogonal_mp
from torch import Tensor
from torch.testing import assert_close

N, D, K = 40, 60, 3
ALL = ("iid", "common factor", "multi-scale", "random walk", "twins", "graded factor")


def randn(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def problem(chapter, name: str, g: torch.Generator, B: int = 2, noise: float = 0.3) -> tuple[Tensor, ...]:
    X, T = chapter.design(name, B, N, D, g), chapter.supports(B, D, K, g)
    f = chapter.signal(X, T, g)
    return X, f, f + noise * randn(B, N, g=g), T


def fan(sine: float, n: int, rows: int) -> Tensor:
    """n unit-free columns of norm √rows; any two have smallest singular value `sine` times √rows."""
    X = torch.zeros(rows, n, dtype=torch.float64)
    X[0] = math.sqrt(1 - sine**2)
    X[1 : n + 1] = sine * torch.eye(n, dtype=torch.float64)
    return math.sqrt(rows) * X


def residual(x: Tensor, A: Tensor) -> np.ndarray:
    """x minus its least squares fit on the columns of A, by SciPy's SVD."""
    x, A = x.numpy(), A.numpy()
    return x - A @ scipy.linalg.lstsq(A, x, lapack_driver="gelsd")[0] if A.shape[1] else x


# designs and signals


@pytest.mark.parametrize("name", ALL)
def test_columns_of_a_design_have_norm_root_n_and_draws_differ(chapter, name, g):
    X = chapter.design(name, 3, N, D, g)
    assert X.dtype == torch.float64
    assert_close(X.norm(dim=1), torch.full((3, D), math.sqrt(N), dtype=torch.float64))
    assert (X[0] - X[1]).norm() > 1


def test_what_is_dependent_is_what_the_table_says(chapter, g):
    values = {name: torch.linalg.svdvals(chapter.design(name, 1, N, D, g)[0]) for name in ALL}
    ratio = {name: (s[0] / s[1:]).tolist() for name, s in values.items()}
    assert ratio["iid"][0] < 2
    assert 2500 < ratio["common factor"][0] < 4500  # √(dN) over 10⁻³(√d + √N)
    assert 3 < ratio["graded factor"][0] < 30  # √d / the root mean square of 10^(−3t), 0.27, √N
    falls = (values["multi-scale"][:-1] / values["multi-scale"][1:]).tolist()
    assert 4 < falls[7] < 10**2.5 and max(falls[8:]) < 3  # eight factors, then the floor
    X = chapter.design("twins", 1, N, D, g)[0]
    assert (X[:, ::2] - X[:, 1::2]).norm(dim=0).max() < 3e-3 * math.sqrt(N)
    assert (X[:, 2] - X[:, 1]).norm() > 1
    X = chapter.design("random walk", 1, N, 2000, g)[0]
    neighbours = (X[:, 1000:-1] * X[:, 1001:]).sum(0) / N
    assert neighbours.min() > 0.995  # by step 1000 one more step is small


def test_s_and_the_floor_set_the_scales(chapter, g):
    X = chapter.design("multi-scale", 1, 200, 400, g, s=1.0, floor=1e-9)[0]
    steps = torch.linalg.svdvals(X).log10()[:9].diff()
    assert (steps[:7] < -0.4).all() and (steps[:7] > -1.5).all()
    assert torch.linalg.svdvals(chapter.design("multi-scale", 1, N, D, g, floor=0.0)[0])[8] < 1e-12


def test_an_unknown_design_is_named(chapter, g):
    with pytest.raises(ValueError, match=r"name must be a design .* got .wlak."):
        chapter.design("wlak", 1, N, D, g)


def test_a_signal_lies_in_the_span_of_its_support_with_norm_root_n(chapter, g):
    X, f, _, T = problem(chapter, "common factor", g, B=4)
    assert_close(f.square().sum(1), torch.full((4,), float(N), dtype=torch.float64))
    for x, v, t in zip(X, f, T, strict=False):
        assert np.abs(residual(v, x[:, t])).max() < 1e-10


def test_signals_are_uniform_on_the_sphere_of_the_span(chapter, g):
    X = chapter.design("common factor", 1, N, D, g).expand(4000, -1, -1)
    T = torch.tensor([[3, 5, 8]]).expand(4000, -1)
    f = chapter.signal(X, T, g)
    Q = torch.linalg.qr(X[0][:, [3, 5, 8]])[0]
    moments = (f @ Q).T @ (f @ Q) / 4000 / N
    assert_close(moments, torch.eye(3, dtype=torch.float64) / 3, atol=0.03, rtol=0)


def test_supports_do_not_repeat_and_reach_every_column_equally(chapter, g):
    T = chapter.supports(6000, 12, 4, g)
    assert (T.sort(1).values.diff(dim=1) > 0).all()
    assert (T.flatten().bincount(minlength=12) / 6000 - 1 / 3).abs().max() < 0.03


# Phase 1


def test_the_pivoted_basis_is_that_of_scipy_and_starts_with_the_largest(chapter, g):
    A = randn(N, 7, g=g) * torch.tensor([1, 5, 0.1, 3, 9, 1e-3, 2.0])
    Q, known = chapter.pivoted_basis(A), scipy.linalg.qr(A.numpy(), mode="economic", pivoting=True)[0]
    assert_close((Q.T @ torch.from_numpy(known)).abs(), torch.eye(7, dtype=torch.float64), atol=1e-10, rtol=0)


def test_directions_below_the_tolerance_are_dropped(chapter, g):
    A = randn(N, 4, g=g)
    twice = torch.cat([A, A @ randn(4, 3, g=g), A[:, :1] + 1e-14 * randn(N, 1, g=g)], 1)
    assert chapter.pivoted_basis(twice).shape == (N, 4)
    kept = torch.cat([A, A[:, :1] + 1e-9 * randn(N, 1, g=g)], 1)
    assert chapter.pivoted_basis(kept).shape == (N, 5)
    assert chapter.pivoted_basis(A[:, :0]).shape == (N, 0)
    assert chapter.pivoted_basis(kept, tolerance=1e-6).shape == (N, 4)


def test_the_basis_stays_orthonormal_on_nearly_dependent_columns(chapter, g):
    A = randn(N, 1, g=g) + 1e-9 * randn(N, 10, g=g)
    Q = chapter.pivoted_basis(A)
    assert_close(Q.T @ Q, torch.eye(10, dtype=torch.float64), atol=1e-14, rtol=0)


def test_projecting_once_is_told_apart(chapter, g):
    v = randn(N, 1, g=g)
    Q, A = v / v.norm(), v + 1e-11 * randn(N, 5, g=g)
    once = A - Q @ (Q.T @ A)
    slope = {"once": once, "twice": chapter.project_out(A, Q)}
    cosine = {name: (Q.T @ r / r.norm(dim=0)).abs().max() for name, r in slope.items()}
    assert cosine["twice"] < 1e-15 < 1e-7 < cosine["once"]


@pytest.mark.parametrize("name", ALL)
def test_the_dictionary_is_that_of_naive_least_squares(chapter, name, g):
    X, order = chapter.design(name, 1, N, D, g)[0], torch.randperm(D, generator=g)
    found = chapter.dictionary(X, order, 9)
    assert torch.equal(torch.cat([found.J, found.rest]), order) and len(found.J) == 9
    assert_close(found.D[:, :9], math.sqrt(N) * found.Q)
    for i, rho, z in zip(found.rest[:6].tolist(), found.rho, found.D[:, 9:].T, strict=False):
        known = residual(X[:, i], X[:, found.J])
        assert rho.item() == pytest.approx(np.linalg.norm(known) / math.sqrt(N), rel=1e-6)
        assert_close(z, torch.from_numpy(known / rho.item()), atol=1e-5, rtol=0)
    assert_close(found.D.norm(dim=0), torch.full((D,), math.sqrt(N), dtype=torch.float64))
    assert (found.Q.T @ found.D[:, 9:]).abs().max() < 1e-12 * N


def test_lost_directions_and_residuals_hold_their_place_by_zeros(chapter, g):
    A = randn(N, 6, g=g)
    X = chapter.normalise(torch.cat([A, A[:, :3] + A[:, 1:4], 3 * A[:, :2]], 1))  # eleven columns, rank 6
    found = chapter.dictionary(X, torch.tensor([0, 1, 6, 9, 2, 3, 4, 5, 7, 8, 10]), 4)
    assert found.Q.shape == (N, 2) and found.D.shape == X.shape
    assert (found.D[:, 2:4] == 0).all() and (found.D[:, -1] == 0).all()
    assert_close(found.D @ chapter.coordinates(X, found), X, atol=1e-12, rtol=0)
    w = chapter.map_back(X, found, randn(11, g=g) * (found.D.norm(dim=0) > 0))
    assert w[10] == 0 and w.isfinite().all()


def test_a_wrong_ordering_is_named(chapter, g):
    X = randn(N, D, g=g)
    for order, m in ((torch.arange(D - 1), 3), (torch.arange(D), D), (torch.arange(D), -1)):
        with pytest.raises(ValueError, match=f"order must list all {D} columns and m < d; got {len(order)}"):
            chapter.dictionary(X, order, m)


def test_singular_values_are_those_of_the_columns_not_of_their_gram(chapter, g):
    Z = fan(1e-9, 8, 20)
    s = chapter.smallest_singular_values(Z, 2, 50, g)
    assert_close(s, torch.full((50,), 1e-9, dtype=torch.float64), rtol=1e-5, atol=0)
    gram = torch.linalg.eigvalsh(Z[:, :2].T @ Z[:, :2] / 20)[0].clamp(min=0).sqrt()
    assert abs(gram / 1e-9 - 1) > 0.5


@pytest.mark.parametrize(("sine", "m"), [(0.127, 0), (0.123, 2)])
def test_the_threshold_is_one_over_four_k(chapter, sine, m, g):
    assert len(chapter.phase_1(fan(sine, 30, 41), 2, g).J) == m


def test_another_threshold_is_obeyed(chapter, g):
    assert len(chapter.phase_1(fan(0.3, 30, 41), 2, g, bar=0.29).J) == 0
    assert len(chapter.phase_1(fan(0.3, 30, 41), 2, g, bar=0.31).J) == 2


@pytest.mark.parametrize(("size", "stops"), [(9, True), (14, False)])
def test_the_share_of_good_subsets_is_counted_against_95_percent(chapter, size, stops, g):
    X = math.sqrt(80) * torch.eye(80, 60, dtype=torch.float64)
    X[:, :size] = chapter.normalise(X[:, :1] + 1e-6 * X[:, :size])  # pairs inside are bad
    bad = size * (size - 1) / (60 * 59)
    found = chapter.phase_1(X, 2, g, subsets=4000)
    assert (len(found.J) == 0) == stops == (bad < 0.05)
    if stops:
        assert found.good == pytest.approx(1 - bad, abs=0.008)
    assert len(chapter.phase_1(X, 2, g, share=0.9, subsets=4000).J) == 0


def test_phase_1_removes_the_common_factor_and_leaves_iid_columns_alone(chapter, g):
    for name, m in (("iid", 0), ("common factor", 4), ("twins", 0)):
        X = chapter.design(name, 3, 120, 300, g)
        assert [len(chapter.phase_1(x, 4, g).J) for x in X] == [m] * 3
    X = chapter.design("multi-scale", 3, 120, 300, g)
    assert all(8 <= len(chapter.phase_1(x, 4, g).J) <= 12 for x in X)


def test_phase_1_gives_up_at_half_the_rows_and_says_how_many_passed(chapter, g):
    X = randn(20, 60, g=g)
    found = chapter.phase_1(chapter.normalise(X), 4, g, bar=2.0)
    assert len(found.J) == 8 and found.good == 0
    few = chapter.phase_1(chapter.normalise(X[:, :9]), 4, g, bar=2.0)
    assert len(few.J) == 4  # four columns must be left


def test_phase_1_stops_where_only_rounding_is_left(chapter, g):
    X = chapter.normalise(randn(40, 3, g=g) @ randn(3, 60, g=g))
    found = chapter.phase_1(X, 3, g)
    assert len(found.J) == 3 and found.good == 1 and (found.D[:, 3:] == 0).all()


@pytest.mark.parametrize("k", [0, 41])
def test_a_wrong_sparsity_is_named(chapter, k, g):
    with pytest.raises(ValueError, match=f"1 ≤ k ≤ min.N, d.; got .40, 60. and k = {k}"):
        chapter.phase_1(randn(N, D, g=g), k, g)


def test_the_drop_curve_is_the_mean_log_distance_to_the_span(chapter, g):
    X, order = chapter.design("graded factor", 1, 12, 18, g)[0], torch.randperm(18, generator=g)
    known = [
        np.mean([np.log(np.linalg.norm(residual(X[:, i], X[:, order[:m]])) / math.sqrt(12)) for i in order[m:]])
        for m in (0, 2, 5)
    ]
    orders = torch.stack([order, order.flip(0)])
    curve = chapter.drop_curve(X, (0, 2, 5), orders)
    assert_close(curve[0], torch.tensor(known, dtype=torch.float64), atol=1e-9, rtol=0)
    assert curve.shape == (2, 3) and (curve[0] - curve[1]).abs().max() > 1e-3


def test_the_curve_falls_over_random_orders_and_may_rise_over_chosen_ones(chapter, g):
    X = math.sqrt(20) * torch.eye(20, 16, dtype=torch.float64)
    X[:, :8] = chapter.normalise(X[:, :1] + 1e-3 * X[:, :8])
    orders = torch.stack([torch.randperm(16, generator=g) for _ in range(300)])
    assert (chapter.drop_curve(X, range(0, 9, 2), orders).mean(0).diff() < 0.05).all()
    assert chapter.drop_curve(X, (2, 7), torch.arange(16)[None])[0].diff() > 1


# Phase 2


@pytest.mark.parametrize("name", ALL)
def test_paths_are_those_of_scikit_learns_homotopy(chapter, name, g):
    X, _, y, _ = problem(chapter, name, g)
    path = chapter.lasso_path(X, y, 15)
    for x, v, lambdas, coefs in zip(X, y, *path, strict=False):
        known, _, theirs = lars_path(x.numpy(), v.numpy(), method="lasso", max_iter=15)
        assert_close(lambdas[: len(known)], torch.from_numpy(known), rtol=1e-6, atol=1e-12)
        theirs = torch.from_numpy(theirs.T.copy())
        assert_close(x @ coefs[: len(known)].T, x @ theirs.T, rtol=0, atol=1e-5)


def test_a_path_agrees_with_coordinate_descent_between_breakpoints(chapter, g):
    X, _, y, _ = problem(chapter, "iid", g, B=1)
    path = chapter.lasso_path(X, y, 30)
    middle = (path.lambdas[0, :-1] + path.lambdas[0, 1:]) / 2
    ours = (path.coefs[0, :-1] + path.coefs[0, 1:]) / 2
    theirs = lasso_path(X[0].numpy(), y[0].numpy(), alphas=middle.numpy(), tol=1e-13, max_iter=100_000)[1]
    assert_close(ours, torch.from_numpy(theirs.T.copy()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_every_breakpoint_is_optimal_by_its_duality_gap(chapter, name, g):
    X, _, y, _ = problem(chapter, name, g, B=12)
    path = chapter.lasso_path(X, y, 60)
    assert chapter.duality_gap(X, y, *path).abs().max() < 1e-6
    assert (path.lambdas.diff(dim=1) <= 0).all()


def test_a_column_may_leave_and_come_back_with_the_other_sign(chapter):
    for seed in (4, 5):  # long straight lines on which a dropped column crosses from +λ to −λ
        g = torch.Generator().manual_seed(seed)
        X = chapter.design("multi-scale", 20, 120, 300, g)
        f = chapter.signal(X, chapter.supports(20, 300, 4, g), g)
        y = f + 0.3 * randn(20, 120, g=g)
        assert chapter.duality_gap(X, y, *chapter.lasso_path(X, y, 70)).max() < 1e-5


def test_dropped_columns_are_zero_and_some_are_dropped(chapter, g):
    X, _, y, _ = problem(chapter, "random walk", g, B=6)
    coefs = chapter.lasso_path(X, y, 60).coefs
    count = (coefs != 0).sum(-1)
    assert (count.diff(dim=1) < 0).any() and (count.diff(dim=1).abs() <= 1).all()


def test_a_problem_does_not_feel_its_neighbours(chapter, g):
    X, _, y, _ = problem(chapter, "graded factor", g, B=3)
    both, alone = chapter.lasso_path(X, y, 25), chapter.lasso_path(X[1:2], y[1:2], 25)
    assert_close(both.lambdas[1:2], alone.lambdas, rtol=1e-9, atol=0)
    assert_close(both.coefs[1:2], alone.coefs, rtol=1e-6, atol=1e-9)


def test_a_path_ends_at_the_floor_or_after_so_many_steps(chapter, g):
    X, f, y, _ = problem(chapter, "iid", g)
    assert chapter.lasso_path(X, y, 7).coefs.shape == (2, 8, D)
    path = chapter.lasso_path(X, f, 400, floor=1e-3)
    assert path.coefs.shape[1] < 400
    assert_close(path.lambdas[:, -1] / path.lambdas[:, 0], torch.full((2,), 1e-3, dtype=torch.float64))
    assert chapter.duality_gap(X, f, *path).max() < 1e-12


def test_with_as_many_columns_as_rows_active_the_fit_is_exact(chapter, g):
    X, _, y, _ = problem(chapter, "iid", g)
    path = chapter.lasso_path(X, y, 400)
    assert_close((X @ path.coefs[:, -1:].mT)[..., 0], y, atol=1e-8, rtol=0)
    assert (path.coefs != 0).sum(-1).max() <= N


def test_a_ridge_term_makes_it_the_elastic_net(chapter, g):
    X, _, y, _ = problem(chapter, "iid", g, B=1)
    path = chapter.lasso_path(X, y, 20, ridge=0.3)
    lam = path.lambdas[0, -1].item()
    model = ElasticNet(alpha=lam + 0.3, l1_ratio=lam / (lam + 0.3), fit_intercept=False, tol=1e-13, max_iter=100_000)
    known = model.fit(X[0].numpy(), y[0].numpy()).coef_
    assert_close(path.coefs[0, -1], torch.from_numpy(known), atol=1e-6, rtol=0)


def test_more_columns_than_rows_may_be_active_with_a_ridge(chapter, g):
    X = chapter.normalise(randn(1, 6, 20, g=g))
    path = chapter.lasso_path(X, randn(1, 6, g=g), 60, ridge=0.5)
    assert (path.coefs[:, -1] != 0).sum() > 6


def test_shapes_that_do_not_fit_are_named(chapter, g):
    X, _, y, _ = problem(chapter, "iid", g)
    for a, b in ((X[0], y[0]), (X, y[:, :-1])):
        with pytest.raises(ValueError, match=r"D must be \(B, N, d\) and y \(B, N\); got"):
            chapter.lasso_path(a, b, 5)


def test_the_gap_is_primal_minus_dual_and_bounds_the_distance_to_the_optimum(chapter, g):
    X, _, y, _ = problem(chapter, "iid", g, B=1)
    best = chapter.lasso_path(X, y, 12)
    u = best.coefs + 0.02 * randn(*best.coefs.shape, g=g)
    gap = chapter.duality_gap(X, y, best.lambdas, u)[0]
    for lam, v, known, w in zip(best.lambdas[0], u[0], gap, best.coefs[0], strict=False):
        r = (y[0] - X[0] @ v).numpy()
        theta = r * min(1, lam.item() * N / np.abs(X[0].numpy().T @ r).max())
        primal = r @ r / (2 * N) + lam.item() * v.abs().sum().item()
        dual = (y[0] @ y[0]).item() / (2 * N) - ((y[0].numpy() - theta) ** 2).sum() / (2 * N)
        assert known.item() == pytest.approx(primal - dual, abs=1e-12)
        assert known >= ((X[0] @ (v - w)) ** 2).sum() / (2 * N)
    unscaled = chapter.duality_gap(X, y, best.lambdas * 0 + 1e6, u)  # already feasible: no scaling
    r2 = (y[:, None] - u @ X.mT).square().sum(-1) / (2 * N)
    assert_close(unscaled, r2 + 1e6 * u.abs().sum(-1) - (y @ y.T - (u @ X.mT).square().sum(-1)) / (2 * N))


@pytest.mark.parametrize("name", ALL)
def test_coordinates_and_coefficients_map_back(chapter, name, g):
    X = chapter.design(name, 1, N, D, g)[0]
    found, u = chapter.dictionary(X, torch.randperm(D, generator=g), 6), randn(D, g=g)
    assert_close(found.D @ chapter.coordinates(X, found), X, atol=1e-11, rtol=0)
    w = chapter.map_back(X, found, u)
    assert (X @ w - found.D @ u).norm() < 1e-8 * w.norm()
    assert_close(w[found.rest], u[6:] / found.rho)
    wrong = w.clone()
    wrong[found.J] = torch.linalg.pinv(found.Q.T @ X[:, found.J]) @ (math.sqrt(N) * u[:6])  # forgets X_-J w_-J
    assert (X @ wrong - found.D @ u).norm() > 1e-3 * (found.D @ u).norm()


def test_the_slow_rate_holds_on_either_dictionary(chapter, g):
    X, f, y, T = problem(chapter, "common factor", g, B=6)
    for x, v, t, signal in zip(X, y, T, f, strict=False):
        found = chapter.phase_1(x, K, g)
        w = torch.zeros(D, dtype=torch.float64)
        w[t] = torch.linalg.lstsq(x[:, t], signal[:, None]).solution[:, 0]
        for M, truth in ((x, w), (found.D, chapter.coordinates(x, found) @ w)):
            assert_close(M @ truth, signal, atol=1e-8, rtol=0)
            path = chapter.lasso_path(M[None], v[None], 60)
            enough = path.lambdas[0] >= (M.T @ (v - signal)).abs().max() / N
            errors = (path.coefs[0] @ M.T - signal).square().mean(1)
            assert (errors <= 4 * path.lambdas[0] * truth.abs().sum())[enough].all()


def test_on_iid_columns_the_variant_is_the_lasso(chapter, g):
    X, _, y, _ = problem(chapter, "iid", g, B=1)
    found = chapter.phase_1(X[0], K, g)
    assert len(found.J) == 0
    ours, plain = chapter.lasso_path(found.D[None], y, 20), chapter.lasso_path(X, y, 20)
    back = chapter.map_back(X[0], found, ours.coefs[0, -1])
    assert_close(back, plain.coefs[0, -1], atol=1e-9, rtol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_on_the_nearly_singular_design_of_e1_an_interior_point_solver_predicts_the_same(chapter, g):
    cp = pytest.importorskip("cvxpy")
    X = chapter.design("common factor", 1, 120, 300, g)
    f = chapter.signal(X, chapter.supports(1, 300, 4, g), g)
    y = f + 0.3 * randn(1, 120, g=g)
    path = chapter.lasso_path(X, y, 80)
    errors = (path.coefs[0] @ X[0].T - f).square().mean(1)
    best = int(errors.argmin())
    lam, A, v = path.lambdas[0, best].item(), X[0].numpy(), y[0].numpy()
    assert best < 80 and lam < 1e-3 * path.lambdas[0, 0] and errors[best] < 0.05  # a small λ, and a good Lasso
    u = cp.Variable(300)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(v - A @ u) / 240 + lam * cp.norm1(u)))
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)

    def objective(u: np.ndarray) -> float:
        return ((v - A @ u) ** 2).sum() / 240 + lam * np.abs(u).sum()

    assert -1e-10 < objective(u.value) - objective(path.coefs[0, best].numpy()) < 1e-5
    assert ((A @ u.value - f[0].numpy()) ** 2).mean() == pytest.approx(errors[best].item(), rel=0.02)


@pytest.mark.parametrize("name", ["common factor", "multi-scale", "random walk"])
def test_optimality_conditions_hold_on_the_designs_as_large_as_in_the_experiments(chapter, name, g):
    X = chapter.design(name, 3, 120, 300, g)
    f = chapter.signal(X, chapter.supports(3, 300, 4, g), g)
    y = f + 0.3 * randn(3, 120, g=g)
    path = chapter.lasso_path(X, y, 80)
    slopes = (y[:, None] - path.coefs @ X.mT) @ X / 120 / path.lambdas[..., None]
    active = path.coefs != 0
    assert slopes.abs().max() < 1 + 1e-4
    assert (slopes - path.coefs.sign())[active].abs().max() < 1e-4


# rivals


def test_omp_is_that_of_scikit_learn(chapter, g):
    X, _, y, _ = problem(chapter, "random walk", g, B=3)
    fits = chapter.omp_fits(X, y, most=7)
    assert fits.shape == (3, 6, N)
    for x, v, own in zip(X, y, fits, strict=True):
        for n, fit in zip(range(2, 8), own, strict=True):
            known = x @ torch.from_numpy(orthogonal_mp(x.numpy(), v.numpy(), n_nonzero_coefs=n))
            assert_close(fit, known, atol=1e-8, rtol=0)


def test_ridge_is_that_of_the_normal_equations_from_the_largest_penalty_to_the_smallest(chapter, g):
    X, _, y, _ = problem(chapter, "iid", g, B=2)
    fits = chapter.ridge_fits(torch.linalg.svd(X, full_matrices=False), y)
    assert fits.shape == (2, 241, N)
    for x, v, own in zip(X.numpy(), y.numpy(), fits, strict=True):
        for i in (0, 10, 30):
            penalty = np.linalg.norm(x, 2) ** 2 * 10 ** (-i / 10)
            known = x @ np.linalg.solve(x.T @ x + penalty * np.eye(D), x.T @ v)
            assert_close(own[i], torch.from_numpy(known), atol=1e-10, rtol=0)
        assert_close(own[-1], torch.from_numpy(v), atol=1e-10, rtol=0)  # D > N: in the end y is copied


def test_puffer_makes_the_singular_values_one_and_keeps_the_solutions(chapter, g):
    X, f, _, T = problem(chapter, "random walk", g, B=2)
    FX, Ff = chapter.puffer(torch.linalg.svd(X, full_matrices=False), f)
    assert_close(torch.linalg.svdvals(FX), torch.ones(2, N, dtype=torch.float64))
    for x, v, t, fx, fv in zip(X, f, T, FX, Ff, strict=True):
        F = torch.from_numpy(scipy.linalg.inv(scipy.linalg.sqrtm((x @ x.T).numpy()).real))  # U Σ⁻¹ Uᵀ
        assert_close(fx, F @ x, atol=1e-8, rtol=0)
        w = torch.zeros(D, dtype=torch.float64)
        w[t] = torch.linalg.lstsq(x[:, t], v[:, None]).solution[:, 0]
        assert_close(fx @ w, fv, atol=1e-6 * fv.norm().item(), rtol=0)


def test_omp_keeps_its_residual_orthogonal_on_nearly_dependent_columns(chapter, g):
    X = chapter.normalise(randn(2, N, 1, g=g) + 1e-10 * randn(2, N, D, g=g))
    y = randn(2, N, g=g)
    fits = chapter.omp_fits(X, y, most=6)
    products = fits @ (y[:, None] - fits).mT  # an earlier fit lies in the span that the later residual has left
    assert products.tril().abs().max() > 1e-3 > 1e-9 > products.triu().abs().max()
