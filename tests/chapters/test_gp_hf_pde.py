"""The method of `gp-hf-pde` against SciPy's Bessel functions, dense algebra, differences and plausible mistakes."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize, special
from torch import Tensor
from torch.testing import assert_close

F64 = {"dtype": torch.float64}


def double(*values: float) -> Tensor:
    return torch.tensor(values, **F64)


def mixture(g: torch.Generator, runs: int, Q: int, rate: float) -> tuple[Tensor, Tensor, Tensor]:
    """log w, ℓ and μ of well-conditioned mixtures."""
    draw = torch.randn(3, runs, Q, generator=g, **F64)
    return 0.3 * draw[0], rate + 0.3 * draw[1], 3 * draw[2]


def plain_kernel(kind: str, w, ell, mu, d: float) -> float:
    """k(d) by SciPy: the Matérn part from the modified Bessel function of order 5/2."""
    total = 0.0
    for w_q, l_q, m_q in zip(w, ell, mu, strict=True):
        if kind == "GM":
            s = math.exp(-d * d * math.exp(l_q))
        elif d == 0:
            s = 1.0
        else:
            r = math.sqrt(5) * math.exp(l_q) * d
            s = 2 ** (1 - 2.5) / special.gamma(2.5) * r**2.5 * special.kv(2.5, r)
        total += w_q * s * math.cos(2 * math.pi * m_q * d)
    return total


def pairs(k: Tensor) -> Tensor:
    """The matrix k_|i−j| entry by entry."""
    n = len(k)
    return torch.stack([torch.stack([k[abs(i - j)] for j in range(n)]) for i in range(n)])


def dense_objective(chapter, problem, kind, raw, ell, mu, log_tau, log_v, u) -> Tensor:
    """J of one run from full matrices, with λ = 200 and the jitter typed in."""
    k, k2 = chapter.kernel(kind, raw.exp()[None], ell[None], mu[None], problem.x - problem.x[0])
    K = pairs(k[0]) + 1e-6 * torch.eye(len(u), **F64)
    inverse = torch.linalg.inv(K)
    r = pairs(k2[0]) @ inverse @ u + problem.cubic * (u**3 - u) - problem.f
    gap = (u[0] - problem.g[0]) ** 2 + (u[-1] - problem.g[1]) ** 2
    prior = 0.5 * torch.logdet(K) + 0.5 * u @ inverse @ u
    return prior - 200 * (log_tau - 0.5 * log_tau.exp() * gap) - 0.5 * len(u) * log_v + 0.5 * log_v.exp() * r @ r


@pytest.fixture
def small(chapter):
    """Allen-Cahn and Poisson with solution sin 9x on 16 points."""
    x = torch.linspace(0.2, 1.2, 16, **F64)
    return {c: chapter.manufacture(lambda x: torch.sin(9 * x), x, c) for c in (0.0, 1.0)}


@pytest.mark.parametrize("kind", ["GM", "StM"])
def test_the_kernel_is_scipys(chapter, kind):
    w, ell, mu = (0.3, 1.2), (0.4, -1.0), (2.0, 0.7)
    d = double(0, 0.05, 0.3, 1.1)
    k, _ = chapter.kernel(kind, *(double(*t)[None] for t in (w, ell, mu)), d)
    assert_close(k[0], double(*(plain_kernel(kind, w, ell, mu, t) for t in d.tolist())), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["GM", "StM"])
def test_the_second_derivative_is_that_of_the_kernel(chapter, kind):
    of = double(0.3, 1.2)[None], double(0.4, -1.0)[None], double(2.0, 0.7)[None]
    d = double(0.02, 0.3, 1.1).requires_grad_()
    (slope,) = torch.autograd.grad(chapter.kernel(kind, *of, d)[0].sum(), d, create_graph=True)
    (curve,) = torch.autograd.grad(slope.sum(), d)
    assert_close(chapter.kernel(kind, *of, d.detach())[1][0], curve, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("kind", "factor"), [("GM", 2.0), ("StM", 5 / 3)])
def test_the_diagonal_is_the_closed_form_and_not_zero(chapter, kind, factor):
    w, ell, mu = double(0.3, 1.2), double(0.4, -1.0), double(2.0, 0.7)
    rate = ell.exp() if kind == "GM" else (2 * ell).exp()
    known = -(w * (factor * rate + 4 * math.pi**2 * mu**2)).sum()
    at_zero = chapter.kernel(kind, w[None], ell[None], mu[None], double(0, 1))[1][0, 0]
    assert_close(at_zero, known)
    d = torch.tensor(0.0, **F64, requires_grad=True)  # the literal port: a decay of |z|, differentiated twice
    (slope,) = torch.autograd.grad(torch.exp(-d.abs() * 3) * (1 + 3 * d.abs()), d, create_graph=True)
    assert torch.autograd.grad(slope, d)[0] == 0 != -9  # PyTorch's answer, and the truth


def test_decay_returns_its_own_derivatives(chapter):
    d = double(0.1, 0.5, 2).requires_grad_()
    for kind in ("GM", "StM"):
        s, s1, s2 = chapter.decay(kind, double(0.7), d)
        (first,) = torch.autograd.grad(s.sum(), d, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), d)
        assert_close(s1, first)
        assert_close(s2, second)


def test_a_centre_at_zero_stays_there(chapter, small):
    start = chapter.paper_start(5.0, Q=4, **F64)
    run = chapter.Run(small[0.0], "GM", start._replace(mu=torch.zeros_like(start.mu)))
    for _ in range(5):
        run.step()
    assert (run.mu == 0).all() and (run.ell != 0).all()


def test_toeplitz_and_diagonal_sums_are_the_entrywise_ones(chapter, g):
    k = torch.randn(2, 7, generator=g, **F64)
    assert_close(chapter.toeplitz(k), torch.stack([pairs(row) for row in k]))
    G = torch.randn(2, 7, 7, generator=g, **F64)  # not symmetric
    known = torch.zeros(2, 7, **F64)
    for i in range(7):
        for j in range(7):
            known[:, abs(i - j)] += G[:, i, j]
    assert_close(chapter.diagonal_sums(G), known)
    assert_close(chapter.diagonal_sums(torch.stack([G, 2 * G])), torch.stack([known, 2 * known]))


def test_covariances_put_the_jitter_on_k_alone(chapter):
    k, k2 = chapter.kernel("StM", double(1.0)[None], double(2.0)[None], double(1.0)[None], torch.arange(6, **F64) / 6)
    L, Kxx = chapter.covariances(k, k2)
    assert_close((L @ L.mT)[0], pairs(k[0]) + 1e-6 * torch.eye(6, **F64))
    assert torch.equal(Kxx[0], pairs(k2[0]))


def test_the_source_is_the_one_by_hand(small):
    x = small[1.0].x
    u = torch.sin(9 * x)
    assert_close(small[0.0].f, -81 * u)
    assert_close(small[1.0].f, -81 * u + u * (u * u - 1))
    assert_close(small[1.0].g, torch.stack([u[0], u[-1]]))


@pytest.mark.parametrize("cubic", [0.0, 1.0])
@pytest.mark.parametrize(("kind", "rate"), [("GM", 6.0), ("StM", 3.0)])
def test_objective_and_all_gradients_are_those_of_the_dense_form(chapter, small, g, kind, rate, cubic):
    start = chapter.Start(*mixture(g, 2, 3, rate))
    run = chapter.Run(small[cubic], kind, start)
    u, precisions = torch.randn(2, 16, generator=g, **F64), torch.randn(2, 2, generator=g, **F64)
    k, k2 = run.lags()
    L, Kxx = (t.detach() for t in chapter.covariances(k, k2))
    by = chapter.gradients(small[cubic], L, Kxx, u, *precisions)
    ((by.k * k).sum() + (by.k2 * k2).sum()).backward()
    J = chapter.objective(small[cubic], L, Kxx, u, *precisions)
    for row in range(2):
        of = [t[row].clone().requires_grad_() for t in (*start, *precisions, u)]
        known = dense_objective(chapter, small[cubic], kind, *of)
        assert_close(J[row], known.detach(), rtol=1e-9, atol=0)
        found = (run.raw.grad, run.ell.grad, run.mu.grad, by.log_tau, by.log_v, by.u)
        for ours, truth in zip(found, torch.autograd.grad(known, of), strict=True):
            assert_close(ours[row], truth, rtol=1e-7, atol=1e-7 * truth.abs().max().item())


def test_the_precisions_stand_still_at_the_reciprocal_mean_squares_of_their_residuals(chapter, small, g):
    run = chapter.Run(small[1.0], "StM", chapter.Start(*mixture(g, 2, 3, 3.0)))
    u = torch.randn(2, 16, generator=g, **F64)
    L, Kxx = (t.detach() for t in chapter.covariances(*run.lags()))
    _, r, e = chapter.residuals(small[1.0], L, Kxx, u)
    best = -e.square().mean(-1).log(), -r.square().mean(-1).log()
    by = chapter.gradients(small[1.0], L, Kxx, u, *best)
    assert_close(torch.stack([by.log_tau, by.log_v]), torch.zeros(2, 2, **F64), rtol=0, atol=1e-10)


def test_the_best_u_of_poisson_minimises_the_dense_objective(chapter, small, g):
    raw, ell, mu = mixture(g, 1, 3, 3.0)
    run = chapter.Run(small[0.0], "StM", chapter.Start(raw, ell, mu))
    run.log_tau, run.log_v = double(0.4), double(-1.0)
    L, Kxx = (t.detach() for t in chapter.covariances(*run.lags()))
    u = run.solve(L, Kxx)[0].requires_grad_()
    J = dense_objective(chapter, small[0.0], "StM", raw[0], ell[0], mu[0], *run.log_tau, *run.log_v, u)
    (slope,) = torch.autograd.grad(J, u)
    alpha = torch.cholesky_solve(u.detach()[:, None], L[0])
    assert slope.abs().max() < 1e-8 * alpha.abs().max()


@pytest.mark.parametrize("cubic", [0.0, 1.0])
def test_the_best_u_is_one_or_two_gauss_newton_steps_of_the_normal_equations(chapter, small, g, cubic):
    run = chapter.Run(small[cubic], "StM", chapter.Start(*mixture(g, 1, 3, 3.0)))
    L, Kxx = (t.detach() for t in chapter.covariances(*run.lags()))
    inverse = torch.linalg.inv((L @ L.mT)[0])
    D, B = Kxx[0] @ inverse, torch.eye(16, **F64)[[0, -1]]
    tau, v, f = math.exp(0.4), math.exp(-1.0), small[cubic].f
    start = u = torch.randn(16, generator=g, **F64)
    for _ in range(2 if cubic else 1):
        J, goal = D + cubic * torch.diag(3 * u**2 - 1), f + 2 * cubic * u**3
        normal = inverse + 200 * tau * B.T @ B + v * J.T @ J
        u = torch.linalg.solve(normal, 200 * tau * B.T @ small[cubic].g + v * J.T @ goal)
    found = chapter.best_u(small[cubic], L, Kxx, double(0.4), double(-1.0), start[None])
    assert_close(found[0], u, rtol=1e-7, atol=1e-7)


def test_gauss_newton_converges_to_the_minimum_of_allen_cahn(chapter, small):
    start = chapter.paper_start(3.0, Q=5, **F64)
    run = chapter.Run(small[1.0], "StM", start)
    for _ in range(100):
        run.step()
    L, Kxx = (t.detach() for t in chapter.covariances(*run.lags()))
    u = run.u
    for _ in range(6):
        u = chapter.best_u(small[1.0], L, Kxx, run.log_tau, run.log_v, u)
    again = chapter.best_u(small[1.0], L, Kxx, run.log_tau, run.log_v, u)
    assert_close(again, u, rtol=0, atol=1e-7)

    def J(v: np.ndarray) -> float:
        return chapter.objective(small[1.0], L, Kxx, torch.from_numpy(v)[None], run.log_tau, run.log_v).item()

    rng = np.random.default_rng(0)
    lowest, point = J(u[0].numpy()), u[0].numpy()
    for _ in range(20):
        direction = L[0].numpy() @ rng.normal(size=16)
        along = optimize.minimize_scalar(lambda t, d=direction: J(point + t * d), bracket=(-1e-3, 1e-3))
        assert along.fun > lowest - 1e-5 * abs(lowest) and abs(along.x) < 1e-3


def test_the_wrong_weight_of_the_boundary_and_a_dropped_term_are_told_apart(chapter, small, g, monkeypatch):
    raw, ell, mu = mixture(g, 1, 3, 3.0)
    run = chapter.Run(small[0.0], "StM", chapter.Start(raw, ell, mu))
    L, Kxx = (t.detach() for t in chapter.covariances(*run.lags()))
    u = torch.randn(1, 16, generator=g, **F64)
    zero = torch.zeros(1, **F64)
    known = dense_objective(chapter, small[0.0], "StM", raw[0], ell[0], mu[0], *zero, *zero, u[0])
    right = chapter.objective(small[0.0], L, Kxx, u, zero, zero)[0]
    monkeypatch.setattr(chapter, "BOUNDARY", 100.0)  # the factor ½ taken twice
    wrong = chapter.objective(small[0.0], L, Kxx, u, zero, zero)[0]
    assert_close(right, known, rtol=1e-9, atol=0)
    assert (wrong - known).abs() > 1


def test_the_first_step_of_the_official_optimiser_gives_the_stored_error(chapter):
    truth = lambda x: torch.sin(100 * x)  # noqa: E731
    x = torch.linspace(0, 2 * math.pi, 400, **F64)
    problem = chapter.manufacture(truth, x)
    run = chapter.Run(problem, "StM", chapter.paper_start(20.0, **F64), profile=False)
    run.step()
    assert chapter.error(problem, run.fit(), truth).item() == pytest.approx(0.9871961860471954, rel=1e-9)


def test_the_start_is_the_papers(chapter):
    start = chapter.paper_start(20.0, **F64)
    assert start.mu.shape == (1, 30) and start.mu[0, -1] == 20 and start.mu[0, 0] == 0
    assert_close(start.raw.exp(), torch.full((1, 30), 1 / 30, **F64))
    assert (start.ell == 0).all()


def test_profiled_training_solves_and_each_run_of_a_batch_is_the_run_alone(chapter):
    truth = lambda x: torch.sin(40 * x)  # noqa: E731
    problem = chapter.manufacture(truth, torch.linspace(0, 1, 40, **F64))
    start = chapter.paper_start(12.0, Q=12, **F64)
    two = chapter.Start(start.raw.repeat(2, 1), start.ell.repeat(2, 1), torch.cat([start.mu, 0 * start.mu]))
    fit, alone = chapter.train(problem, "StM", two, 150), chapter.train(problem, "StM", start, 150)
    errors = chapter.error(problem, fit, truth)
    assert errors[0] < 5e-3 < errors[1]
    assert chapter.error(problem, alone, truth)[0] < 5e-3
    assert_close(fit.mu[0], alone.mu[0], rtol=0, atol=0.05)
    active = fit.w[0] > 0.05 * fit.w[0].max()
    assert (fit.mu[0][active] - 40 / (2 * math.pi)).abs().min() < 0.05


def test_caps_floors_rates_and_penalties_act_on_what_they_name(chapter, small):
    start = chapter.paper_start(4.0, Q=5, **F64)
    weights = chapter.Weights(floor=-1.7, jeffreys=1e6)
    run = chapter.Run(small[0.0], "GM", start, weights=weights)
    run.log_v, run.log_tau = run.log_v + 7.999, run.log_tau + 12.5
    run.adam.param_groups[1]["params"][-2:] = [run.log_tau, run.log_v]
    for _ in range(8):
        run.step()
    assert_close(run.raw.detach(), torch.full((1, 5), -1.7, **F64))  # from −1.61 by 0.02 a step, then the floor
    assert run.log_tau <= 12 and run.log_v <= 8
    linear = chapter.Run(small[0.0], "GM", start._replace(raw=start.raw.exp()),
                         weights=chapter.Weights(log=False, floor=0.0, rate=0.5))  # fmt: skip
    linear.step()
    assert (linear.raw >= 0).all() and ((linear.raw - 0.2).abs().max() > 0.1)
    assert torch.equal(linear.weights(linear.raw), linear.raw)
    assert ((linear.ell - 0).abs() < 0.021).all()
    assert chapter.Run(small[0.0], "GM", start, profile=False).adam.param_groups[1]["lr"] == 0.01


def test_prediction_on_the_grid_is_u_up_to_the_jitter(chapter, small):
    fit = chapter.train(small[0.0], "StM", chapter.paper_start(3.0, Q=5, **F64), 60)
    assert_close(chapter.predict(small[0.0], fit, small[0.0].x), fit.u, rtol=0, atol=2e-3)
    truth = lambda x: torch.sin(9 * x)  # noqa: E731
    gap = chapter.error(small[0.0], fit, lambda x: 2 * truth(x))
    assert_close(gap, torch.full_like(gap, 0.5), rtol=0.1, atol=0)


def test_rows_with_grids_of_their_own_train_as_they_do_alone(chapter):
    waves = [lambda x: torch.sin(9 * x), lambda x: 2 + torch.cos(7 * x)]
    grids = [torch.linspace(0.2, 1.2, 16, **F64), torch.linspace(-1, 0.5, 16, **F64)]
    start = chapter.paper_start(3.0, Q=5, **F64)
    for cubic in (0.0, 1.0):
        alone = [chapter.manufacture(u, x, cubic) for u, x in zip(waves, grids, strict=True)]
        both = chapter.Problem(*(torch.stack(part) for part in list(zip(*alone, strict=True))[:3]), cubic)
        fit = chapter.train(both, "GM", chapter.Start(*(t.repeat(2, 1) for t in start)), 8)
        for row, problem in enumerate(alone):
            single = chapter.train(problem, "GM", start, 8)
            assert_close(fit.u[row], single.u[0], rtol=1e-6, atol=1e-6)
            assert_close(fit.mu[row], single.mu[0], rtol=0, atol=1e-6)
            assert_close(fit.loss[row], single.loss[0], rtol=1e-6, atol=0)


@pytest.fixture
def axes(chapter):
    """Lags of two different kernels on 6 and 5 points."""
    of = double(1.0, 0.4)[None], double(2.5, 3.0)[None]
    return [
        tuple(t[0] for t in chapter.kernel("StM", *of, double(*mu)[None], torch.arange(n, **F64) / n))
        for n, mu in ((6, (0.0, 2.0)), (5, (1.0, 3.0)))
    ]


def test_the_kronecker_algebra_is_the_dense_one(chapter, axes, g):
    (k1, x1), (k2, x2) = axes
    K1, K2 = (pairs(k) + 1e-6 * torch.eye(len(k), **F64) for k in (k1, k2))
    U = torch.randn(6, 5, generator=g, **F64)
    K, vec = torch.kron(K1, K2), U.flatten()
    alpha = torch.linalg.solve(K, vec)
    found = chapter.plane(*axes, U)
    assert_close(found.logdet, torch.logdet(K), rtol=1e-10, atol=0)
    assert_close(found.quadratic, vec @ alpha, rtol=1e-10, atol=0)
    laplacian = ((torch.kron(pairs(x1), K2) + torch.kron(K1, pairs(x2))) @ alpha).view(6, 5)
    assert_close(found.laplacian, laplacian, rtol=1e-8, atol=1e-8)
    swapped = 5 * torch.logdet(K2) + 6 * torch.logdet(K1)  # N₁ and N₂ at the wrong matrix
    assert (found.logdet - swapped).abs() > 1e-3


def test_the_objective_in_two_dimensions_counts_each_corner_twice(chapter, axes, g):
    U, f = torch.randn(2, 6, 5, generator=g, **F64)
    known = chapter.plane(*axes, U)
    edge = torch.cat([f[0], f[5], f[:, 0], f[:, 4]])
    log_tau, log_v = double(0.3)[0], double(-0.2)[0]
    gap = ((U - f)[[0, 5]] ** 2).sum() + ((U - f)[:, [0, 4]] ** 2).sum()
    by_hand = 0.5 * known.logdet + 0.5 * known.quadratic
    by_hand = by_hand - 200 * (11 * log_tau - 0.5 * log_tau.exp() * gap)
    by_hand = by_hand - 15 * log_v + 0.5 * log_v.exp() * ((known.laplacian - f) ** 2).sum()
    assert_close(chapter.objective_2d(known, U, f, edge, log_tau, log_v), by_hand)


def test_the_official_optimiser_in_two_dimensions_gives_the_stored_error(chapter):
    wave = lambda x: torch.sin(100 * x)  # noqa: E731
    x, at = torch.linspace(0, 2 * math.pi, 400, **F64), torch.linspace(0, 2 * math.pi, 300, **F64)
    truth, known = wave(x)[:, None] * wave(x), wave(at)[:, None] * wave(at)
    both = chapter.Start(*(t.repeat(2, 1) for t in chapter.paper_start(20.0, **F64)))
    run = chapter.Run2d("StM", x, -2e4 * truth, chapter.edges(truth), both)
    run.step()
    gap = (run.predict(x, at) - known).norm() / known.norm()
    assert gap.item() == pytest.approx(0.9834063743781941, rel=1e-8)


def test_training_in_two_dimensions_keeps_its_axes_apart(chapter):
    x = torch.linspace(0, 1, 8, **F64)
    f = torch.sin(3 * x)[:, None] * torch.cos(2 * x)
    both = chapter.Start(*(t.repeat(2, 1) for t in chapter.paper_start(2.0, Q=3, **F64)))
    run = chapter.Run2d("StM", x, f, chapter.edges(f), both)
    for _ in range(3):
        run.step()
    assert run.log_tau != 0 and run.log_v != 0 and not torch.equal(run.raw[0], run.raw[1])
    assert_close(run.predict(x, x), run.U.detach(), rtol=0, atol=1e-3)
    assert (run.predict(x, x) - run.U.detach().mT).abs().max() > 5e-3
    assert run.predict(x, x[:3]).shape == (3, 3)


def test_between_the_points_each_axis_of_the_plane_has_its_own_kernel(chapter, g):
    x, at = torch.linspace(0, 1, 6, **F64), double(0.13, 0.77)
    both = mixture(g, 2, 3, 3.0)
    run = chapter.Run2d("StM", x, torch.zeros(6, 6, **F64), torch.zeros(24, **F64), chapter.Start(*both))
    run.U = torch.randn(6, 6, generator=g, **F64)
    maps = []
    for raw, ell, mu in zip(*both, strict=True):
        of = [t.tolist() for t in (raw.exp(), ell, mu)]
        K, near = (
            double(*(plain_kernel("StM", *of, abs(a - b)) for a in p.tolist() for b in x.tolist())) for p in (x, at)
        )
        maps.append(near.view(2, 6) @ torch.linalg.inv(K.view(6, 6) + 1e-6 * torch.eye(6, **F64)))
    assert_close(run.predict(x, at), maps[0] @ run.U @ maps[1].mT, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("features", [False, True])
def test_the_jets_of_a_network_are_its_derivatives(chapter, g, features):
    frequencies = torch.randn(2, 3, generator=g, **F64) if features else None
    x = torch.linspace(0.5, 2, 6, **F64).requires_grad_()
    width = 6 if features else 1
    layers = [
        (torch.randn(2, a, b, generator=g, **F64), torch.randn(2, 1, b, generator=g, **F64))
        for a, b in ((width, 4), (4, 4), (4, 1))
    ]
    ends = torch.tensor([0.5, 2.0], **F64)

    def plain(x: Tensor, s: int) -> Tensor:
        if features:
            angle = 2 * math.pi * x[:, None] * frequencies[s]
            a = torch.cat([angle.cos(), angle.sin()], 1)
        else:
            a = (2 * (x - ends[0]) / (ends[1] - ends[0]) - 1)[:, None]
        for W, b in layers[:-1]:
            a = (a @ W[s] + b[s]).tanh()
        return (a @ layers[-1][0][s] + layers[-1][1][s])[:, 0]

    found = chapter.network(layers, chapter.inputs(x.detach(), 2, frequencies))
    for s in range(2):
        u = plain(x, s)
        (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        for ours, known in zip(found[:, s], (u, first, second), strict=True):
            assert_close(ours, known.detach(), rtol=1e-9, atol=1e-9)


def test_wrong_input_is_named(chapter):
    one = double(1.0)[None]
    with pytest.raises(ValueError, match="kind must be GM or StM; got 'SE'"):
        chapter.kernel("SE", one, one, one, double(0.0))
    with pytest.raises(ValueError, match=r"x must be float64.*got torch.float32"):
        chapter.manufacture(torch.sin, torch.linspace(0, 1, 5))
    with pytest.raises(ValueError, match="at least one layer; got none"):
        chapter.network([], torch.zeros(1, 3, 2, 1))
