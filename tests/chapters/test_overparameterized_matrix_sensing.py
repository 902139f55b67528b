"""The method of `overparameterized-matrix-sensing` against autograd, loops, closed forms, cvxpy and mistakes."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.testing import assert_close


def gaussian(g, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=g, dtype=torch.float64)


def orthonormal(g, n: int, r: int) -> Tensor:
    return torch.linalg.qr(gaussian(g, n, r))[0]


def measurements(n: int, m: int, seed: int, symmetric: bool = False) -> Tensor:
    """The A_i (m, n, n) that `gaussian_normal` draws from the same seed."""
    A = gaussian(torch.Generator().manual_seed(seed), m, n, n) / math.sqrt(m)
    return (A + A.transpose(1, 2)) / 2 if symmetric else A


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_normal_matrix_is_the_sum_over_measurements(chapter, g, symmetric):
    n, m, Z = 5, 12, gaussian(g, 5, 5)
    normal = chapter.gaussian_normal(n, m, torch.Generator().manual_seed(3), symmetric)
    expected = sum((A_i * Z).sum() * A_i for A_i in measurements(n, m, 3, symmetric))
    E, D = chapter.residual(Z, torch.eye(n, dtype=torch.float64), chapter.Problem(torch.zeros_like(Z), normal))
    assert_close(E, Z)
    assert_close(D, expected)


def test_the_normal_matrix_is_near_the_identity_for_many_measurements(chapter):
    normal = chapter.gaussian_normal(3, 40_000, torch.Generator().manual_seed(0))
    assert_close(normal, torch.eye(9, dtype=torch.float64), rtol=0, atol=0.05)  # ten standard deviations, √(2/m)


def test_both_steps_go_down_the_gradient_that_autograd_finds(chapter, g):
    n, k, eta, low = 6, 4, 0.07, gaussian(g, 6, 2)
    Sigma, F, G = low @ low.T, gaussian(g, n, k).requires_grad_(), gaussian(g, n, k).requires_grad_()
    for symmetric in (False, True):
        A = measurements(n, 20, 5, symmetric)
        problem = chapter.Problem(Sigma, chapter.gaussian_normal(n, 20, torch.Generator().manual_seed(5), symmetric))
        if symmetric:
            loss = sum((A_i * (F @ F.T - Sigma)).sum() ** 2 for A_i in A) / 4
            (slope,) = torch.autograd.grad(loss, F)
            D = chapter.residual(F, F, problem)[1]
            assert_close(chapter.one_factor_step(F, D, eta), F - eta * slope)
        else:
            loss = sum((A_i * (F @ G.T - Sigma)).sum() ** 2 for A_i in A) / 2
            slopes = torch.autograd.grad(loss, (F, G))
            new = chapter.two_factor_step(F, G, chapter.residual(F, G, problem)[1], eta)
            assert_close(new[0], F - eta * slopes[0])
            assert_close(new[1], G - eta * slopes[1])


def test_one_factor_symmetrises_measurements_that_are_not(chapter, g):
    X, D = gaussian(g, 5, 3), gaussian(g, 5, 5)
    assert_close(chapter.one_factor_step(X, D, 0.1), X - 0.05 * (D @ X + D.T @ X))


def test_rectangular_factors_are_served(chapter, g):
    F, G, Sigma = gaussian(g, 6, 2, scale=0.3), gaussian(g, 4, 2, scale=0.1), gaussian(g, 6, 1) @ gaussian(g, 1, 4) / 5
    run = chapter.descend(F[None], G[None], chapter.Problem(Sigma), 0.1, 3000)
    assert run.errors[-1] < 1e-25
    assert_close((run.F @ run.G.mT)[0], Sigma)


def test_the_drift_of_the_imbalance_is_of_second_order(chapter, g):
    F, G, D = gaussian(g, 6, 4), gaussian(g, 6, 4), gaussian(g, 6, 6)
    for eta in (0.1, 0.01):
        new = chapter.two_factor_step(F, G, D, eta)
        drift = chapter.imbalance(*new) - chapter.imbalance(F, G)
        assert_close(drift, eta**2 * (G.T @ D.T @ D @ G - F.T @ D @ D.T @ F), rtol=1e-9, atol=1e-13)


def test_alternating_updates_are_told_apart(chapter, g):
    F, G, D = gaussian(g, 6, 4), gaussian(g, 6, 4), gaussian(g, 6, 6)
    Sigma = F @ G.T - D
    new_F = F - 0.01 * D @ G
    wrong_G = G - 0.01 * (new_F @ G.T - Sigma).T @ new_F  # uses the new F
    drift = chapter.imbalance(new_F, wrong_G) - chapter.imbalance(F, G)
    expected = 0.01**2 * (G.T @ D.T @ D @ G - F.T @ D @ D.T @ F)
    assert (drift - expected).norm() > 0.5 * expected.norm()
    assert (chapter.two_factor_step(F, G, D, 0.01)[1] - wrong_G).norm() > 1e-3


def test_without_a_second_factor_at_the_start_the_imbalance_is_that_of_the_first(chapter, g):
    F = gaussian(g, 5, 3)
    assert_close(chapter.imbalance(F, torch.zeros_like(F)), F.T @ F)


def test_the_modified_step_keeps_the_product_and_levels_the_singular_values(chapter, g):
    F, G = gaussian(g, 3, 9, 4) * torch.tensor([1.0, 1e-2, 1e-4, 3.0]).double(), gaussian(g, 3, 7, 4)
    new_F, new_G = chapter.modified_step(F, G, 0.7)
    assert_close(new_F @ new_G.mT, F @ G.mT, rtol=0, atol=1e-11)
    assert_close(new_F.mT @ new_F, 0.49 * torch.eye(4).double().expand(3, 4, 4), rtol=0, atol=1e-9)
    projector = [M @ torch.linalg.pinv(M) for M in (F, new_F)]
    assert_close(projector[0], projector[1], rtol=0, atol=1e-9)


def test_the_modified_step_with_the_wrong_singular_vectors_is_told_apart(chapter, g):
    F, G = gaussian(g, 9, 4), gaussian(g, 9, 4)
    s, Bt = torch.linalg.svd(F, full_matrices=False)[1:]
    wrong = F @ Bt * (0.7 / s)  # B transposed
    assert (torch.linalg.svdvals(wrong) - 0.7).abs().max() > 0.05
    assert_close(torch.linalg.svdvals(chapter.modified_step(F, G, 0.7)[0]), torch.full((4,), 0.7).double())


def test_the_switch_happens_once_at_the_first_record_below_its_share(chapter, g):
    U = orthonormal(g, 8, 2)
    F, G = gaussian(g, 3, 8, 3, scale=0.1), gaussian(g, 3, 8, 3, scale=0.03)
    problem, share = chapter.Problem(U @ U.T), torch.tensor([0.5, 1e-3, 0.0]).double()
    plain = chapter.descend(F, G, problem, 0.05, 600, every=1)
    switch = chapter.Switch(0.7, share)
    run = chapter.descend(F, G, problem, 0.05, 600, every=1, switch=switch)
    ratio = plain.errors / plain.errors[0]
    expected = [int((ratio[:, j] < share[j]).nonzero()[0]) for j in (0, 1)]
    assert switch.at.tolist() == [*expected, -1]
    assert (switch.change[:2] > 0).all() and (switch.change < 1e-14).all() and switch.change[2] == 0
    assert_close(run.errors[: expected[0] + 1, 0], plain.errors[: expected[0] + 1, 0])
    assert_close(run.errors[:, 2], plain.errors[:, 2])
    assert (run.errors[-1, :2] < plain.errors[-1, :2] / 2).all()


def test_the_switch_waits_and_uses_the_training_loss_of_the_measurements(chapter, g):
    F, G = gaussian(g, 1, 4, 2), gaussian(g, 1, 4, 2)
    switch = chapter.Switch(0.7, torch.tensor([math.inf]).double(), wait=20)
    E = gaussian(g, 1, 4, 4)
    D = 3 * E
    assert switch(10, E, D, F, G)[0] is F and switch.at.tolist() == [-1]
    assert_close(switch.first, 1.5 * (E**2).sum((1, 2)))
    assert switch(20, E, D, F, G)[0] is not F and switch.at.tolist() == [20]


def test_the_share_is_one_of_the_first_loss(chapter, g):
    F, G, E = gaussian(g, 1, 4, 2), gaussian(g, 1, 4, 2), gaussian(g, 1, 4, 4, scale=100)
    switch = chapter.Switch(0.7, torch.tensor([0.5]).double())
    for t, size in ((0, 1.0), (10, 0.8), (20, 0.6), (30, 0.6)):
        switch(t, size * E, size * E, F, G)
    assert switch.at.tolist() == [20]


def test_the_switch_is_asked_at_records_only(chapter, g):
    U, F, G = orthonormal(g, 8, 2), gaussian(g, 1, 8, 3, scale=0.1), gaussian(g, 1, 8, 3, scale=0.03)
    plain = chapter.descend(F, G, chapter.Problem(U @ U.T), 0.05, 600, every=1)
    first = int((plain.errors[:, 0] < 0.5 * plain.errors[0, 0]).nonzero()[0])
    every = next(n for n in range(7, 12) if first % n)
    switch = chapter.Switch(0.7, torch.tensor([0.5]).double())
    chapter.descend(F, G, chapter.Problem(U @ U.T), 0.05, 600, every=every, switch=switch)
    assert switch.at.tolist() == [first + -first % every]


def test_the_change_that_is_kept_is_the_largest_in_size(chapter, g, monkeypatch):
    F, G = torch.eye(3).double()[None], gaussian(g, 1, 3, 3)
    by = torch.tensor([[0.1, 0, 0], [0, -0.5, 0], [0, 0, 0.2]]).double()
    monkeypatch.setattr(chapter, "modified_step", lambda F, G, _: (F, G + by.T))
    switch, E = chapter.Switch(0.7, torch.tensor([math.inf]).double()), gaussian(g, 1, 3, 3)
    switch(0, E, E, F, G)
    assert switch.change.item() == pytest.approx(0.5)


@pytest.mark.parametrize("every", [1, 5, 26])
def test_the_loop_is_gradient_descent_read_aloud(chapter, g, every):
    U, F, G = orthonormal(g, 7, 2), gaussian(g, 7, 3, scale=0.3), gaussian(g, 7, 3, scale=0.1)
    Sigma, normal = U @ U.T, chapter.gaussian_normal(7, 60, g)
    run = chapter.descend(F[None], G[None], chapter.Problem(Sigma, normal), 0.05, 25, every=every)
    errors = []
    for t in range(26):
        E = F @ G.T - Sigma
        D = (normal @ E.reshape(-1)).reshape(7, 7)
        errors += [float((E**2).sum())] if t % every == 0 else []
        last, (F, G) = (F, G), (F - 0.05 * D @ G, G - 0.05 * D.T @ F)
    assert run.times.tolist() == list(range(0, 26, every))
    assert_close(run.errors[:, 0], torch.tensor(errors).double())
    assert_close(run.F[0], last[0])
    assert_close(run.G[0], last[1])


def test_equal_factors_stay_equal_and_are_one_factor(chapter, g):
    U, X = orthonormal(g, 8, 2), gaussian(g, 1, 8, 4, scale=0.2)
    for normal in (None, chapter.gaussian_normal(8, 100, g, symmetric=True)):
        problem = chapter.Problem(U @ U.T, normal)
        pair, single = (chapter.descend(X, G, problem, 0.05, 500) for G in (X, None))
        assert_close(pair.F, pair.G, rtol=0, atol=1e-12)
        assert_close(pair.F, single.F, rtol=0, atol=1e-12)
        assert_close(single.F, single.G)


def test_the_shortened_problem_has_the_same_errors_and_singular_values(chapter, g):
    n, r, k = 15, 2, 4
    U, F, G = orthonormal(g, n, r), gaussian(g, 2, n, k, scale=0.2), gaussian(g, 2, n, k, scale=0.1)
    whole = chapter.descend(F, G, chapter.Problem(U @ U.T), 0.05, 300)
    parts = chapter.shorten(F, U), chapter.shorten(G, U)
    assert parts[0].shape == (2, r + k, k)
    short = chapter.descend(*parts, chapter.shortened_problem(r, k), 0.05, 300)
    assert_close(short.errors, whole.errors, rtol=1e-9, atol=1e-24)
    for a, b in ((short.F, whole.F), (short.G, whole.G)):
        assert_close(torch.linalg.svdvals(a), torch.linalg.svdvals(b), rtol=0, atol=1e-12)
    single = [chapter.descend(x, None, p, 0.05, 300) for x, p in (
        (F, chapter.Problem(U @ U.T)), (parts[0], chapter.shortened_problem(r, k)))]  # fmt: skip
    assert_close(single[0].errors, single[1].errors, rtol=1e-9, atol=1e-24)


def test_one_spare_direction_follows_the_differential_equation(chapter):
    one, zero = torch.ones(1, 1, 1).double(), torch.zeros(1, 1).double()
    end = chapter.descend(one, one / 2, chapter.Problem(zero), 1e-3, 5000)
    ode = solve_ivp(lambda _, y: [-y[0] * y[1] ** 2, -y[1] * y[0] ** 2], (0, 5), [1, 0.5], rtol=1e-10, atol=1e-12)
    assert end.F.item() == pytest.approx(ode.y[0, -1], abs=1e-3)
    assert end.G.item() == pytest.approx(ode.y[1, -1], abs=1e-3)
    assert end.F.item() ** 2 - end.G.item() ** 2 == pytest.approx(0.75, abs=2e-3)
    end = chapter.descend(one, None, chapter.Problem(zero), 1e-3, 5000)
    assert end.F.item() ** 2 == pytest.approx(1 / 11, rel=2e-3)


def test_the_preconditioned_step_is_the_formula_with_an_explicit_inverse(chapter, g):
    X, D = gaussian(g, 2, 6, 3), gaussian(g, 2, 6, 6)
    for j, new in enumerate(chapter.preconditioned_step(X, D, 0.3)):
        lam = float(np.sqrt((D[j].numpy() ** 2).sum()))
        P = np.linalg.inv((X[j].T @ X[j]).numpy() + lam * np.eye(3))
        assert_close(new, X[j] - 0.3 * D[j] @ X[j] @ torch.from_numpy(P))
    X, D = X[0] * 1e-4, D[0] * 1e-9  # a damping far below one, beside a small Gram matrix
    P = np.linalg.inv((X.T @ X).numpy() + np.sqrt((D.numpy() ** 2).sum()) * np.eye(3))
    assert_close(chapter.preconditioned_step(X, D, 0.3) - X, -0.3 * D @ X @ torch.from_numpy(P), rtol=1e-6, atol=0)
    still = chapter.preconditioned_step(X * 0, D * 0, 0.3)
    assert (still == 0).all()


TIMES = torch.arange(0, 20_001, 10).double()


def test_exponents_and_late_slopes_are_read_off_known_curves(chapter):
    power = torch.where(TIMES > 0, 3 * TIMES.clamp(min=1) ** -2.5, 1e9)
    power[TIMES < 2000] *= 50  # the transient does not count
    kink = torch.where(TIMES < 8000, power, power * 3)
    last = TIMES >= 2000
    by_numpy = np.polyfit(TIMES[last].log(), kink[last].log(), 1)[0]
    assert chapter.exponent(TIMES, kink) == pytest.approx(by_numpy, abs=1e-9)
    assert chapter.exponent(TIMES, power) == pytest.approx(-2.5, abs=1e-9)
    fast = torch.exp(-0.01 * TIMES).clamp(min=1e-25)
    assert chapter.late_slope(TIMES, fast) == pytest.approx(-0.01, rel=1e-9)
    assert chapter.late_slope(TIMES, torch.exp(-1e-4 * TIMES)) == pytest.approx(-1e-4, rel=1e-9)
    bend = torch.exp(-torch.where(TIMES < 8000, 0.001 * TIMES, 8 + 0.002 * (TIMES - 8000)))
    assert chapter.late_slope(TIMES, bend) == pytest.approx(-0.002, rel=1e-9)
    assert chapter.late_slope(TIMES, bend, floor=math.exp(-7)) == pytest.approx(-0.001, rel=1e-9)
    late = chapter.late_slope(TIMES, bend, since=4000, floor=math.exp(-15))
    assert late < chapter.late_slope(TIMES, bend, floor=math.exp(-15)) < -0.001


def test_reach_gives_the_first_record_below_the_target(chapter):
    error = torch.tensor([4.0, 2.0, 1.0, 3.0, 0.5]).double()
    times = torch.arange(5).double() * 10
    assert chapter.reach(times, error, 1.5) == 20
    assert chapter.reach(times, error, 1.0) == 40
    assert chapter.reach(times, error, 0.1) == math.inf


def test_straightness_tells_a_line_from_a_power_and_from_a_run_that_never_arrives(chapter):
    assert chapter.straightness(TIMES, torch.exp(-0.01 * TIMES)) == pytest.approx(1)
    assert chapter.straightness(TIMES, 1e-8 * (1 + TIMES) ** -2) == 0  # never arrives
    assert chapter.straightness(TIMES, 1e-8 * (1 + TIMES) ** -4.5) < 0.8
    early = torch.exp(-0.01 * TIMES)
    early[TIMES < 2000] = 1.0  # the plateau before 1e-10 does not count
    assert chapter.straightness(TIMES, early) == pytest.approx(1)
    bent = torch.exp(-torch.where(TIMES < 1500, 0.02 * TIMES, 30 + 0.002 * (TIMES - 1500)))
    assert chapter.straightness(TIMES, bent) == pytest.approx(
        np.corrcoef(*(v[(bent <= 1e-10 * 1.2215) & (bent >= 9.9e-21 * 0.98)] for v in (TIMES, bent.log())))[0, 1] ** 2,
        abs=2e-3,
    )


def test_a_line_is_numpys(chapter, g):
    x, y = gaussian(g, 50), gaussian(g, 50)
    slope, r2 = chapter.line(x, 2 * x + y)
    assert slope == pytest.approx(np.polyfit(x, 2 * x + y, 1)[0])
    assert r2 == pytest.approx(np.corrcoef(x, 2 * x + y)[0, 1] ** 2)


@pytest.fixture(scope="module")
def small(chapter):
    """Size 12, rank 2, k = 4: one factor, two factors and the modified step, from α = 0.2."""
    g = torch.Generator().manual_seed(1)
    U, F, G = orthonormal(g, 12, 2), gaussian(g, 3, 12, 4, scale=0.2), gaussian(g, 3, 12, 4, scale=0.2 / 3)
    start = chapter.shorten(F, U), chapter.shorten(G, U)
    problem, switch = chapter.shortened_problem(2, 4), chapter.Switch(0.7, torch.full((3,), 1e-3).double())
    return {
        "one": chapter.descend(start[0], None, problem, 0.05, 8000),
        "two": chapter.descend(*start, problem, 0.05, 8000),
        "modified": chapter.descend(*start, problem, 0.05, 2000, switch=switch),
        "at": switch.at,
    }


def test_one_factor_ends_at_the_sum_over_its_spare_columns(chapter, small):
    for error in small["one"].errors.T:
        assert chapter.exponent(small["one"].times, error) == pytest.approx(-2, abs=0.05)
        assert error[-1].item() == pytest.approx(2 / (2 * 0.05 * 8000) ** 2, rel=0.05)


def test_late_slopes_are_the_closed_forms(chapter, small):
    for error, F, G in zip(small["two"].errors.T, small["two"].F, small["two"].G, strict=True):
        pull = min(torch.linalg.svdvals(F)[-1], torch.linalg.svdvals(G)[1]).item() ** 2
        slope = chapter.late_slope(small["two"].times, error)
        assert slope == pytest.approx(2 * math.log(1 - 0.05 * pull), rel=0.03)
        assert error[-1] < 1e-24
    for error, at in zip(small["modified"].errors.T, small["at"].tolist(), strict=True):
        slope = chapter.late_slope(small["modified"].times, error, since=at)
        assert slope == pytest.approx(2 * math.log(1 - 0.05 * 0.49), rel=0.05)


def test_the_descent_finds_what_the_nuclear_norm_finds(chapter, g):
    cp = pytest.importorskip("cvxpy")
    n, m = 6, 33
    u = gaussian(g, n, 1)
    Sigma = u @ u.T / (u.T @ u)
    problem = chapter.Problem(Sigma, chapter.gaussian_normal(n, m, torch.Generator().manual_seed(4)))
    run = chapter.descend(gaussian(g, 1, n, 2, scale=0.3), gaussian(g, 1, n, 2, scale=0.1), problem, 0.05, 20_000)
    A, Z = measurements(n, m, 4).flatten(1).numpy(), cp.Variable((n, n))
    known = A @ Sigma.flatten().numpy()
    cp.Problem(cp.Minimize(cp.normNuc(Z)), [A @ cp.vec(Z, order="C") == known]).solve(
        solver=cp.SCS, eps=1e-9, max_iters=50_000
    )
    assert_close((run.F @ run.G.mT)[0], torch.from_numpy(Z.value), rtol=0, atol=1e-6)


def test_wrong_input_is_named(chapter, g):
    F, G = gaussian(g, 1, 5, 3), gaussian(g, 1, 5, 2)
    with pytest.raises(ValueError, match="F and G must have equally many columns; got 3 and 2"):
        chapter.descend(F, G, chapter.Problem(torch.eye(5).double()), 0.1, 1)
    with pytest.raises(ValueError, match="F must have full column rank; its smallest singular value is"):
        chapter.modified_step(F * torch.tensor([1.0, 1.0, 0.0]).double(), F, 0.7)
    whole = gaussian(g, 1, 5, 3)
    with pytest.raises(ValueError, match="F must have full column rank"):
        chapter.modified_step(torch.cat([whole, F * torch.tensor([1.0, 1.0, 0.0]).double()]), torch.cat([F, F]), 0.7)
    for beta in (0, -1):
        with pytest.raises(ValueError, match=f"beta must be positive; got {beta}"):
            chapter.modified_step(F, F, beta)


def test_small_factors_and_bad_conditions_are_no_missing_rank(chapter, g):
    Q = orthonormal(g, 6, 3)
    for s in ([1.0, 0.5, 0.2], [1.0, 1e-4, 1e-9]):
        for scale in (1, 1e-13):
            F = Q * torch.tensor(s).double() * scale
            assert_close(torch.linalg.svdvals(chapter.modified_step(F, F, 0.7)[0]), torch.full((3,), 0.7).double())
