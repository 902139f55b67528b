"""The method of `gbwm-batchnorm` against SciPy, pyriemann, geoopt, PyTorch's own layers, limits and mistakes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import expm, logm, solve_continuous_lyapunov, sqrtm
from torch import Tensor
from torch.testing import assert_close

EXACT = {"rtol": 0.0, "atol": 1e-10}
ONE = torch.ones((), dtype=torch.float64)


def spd(n: int, *batch: int, g: torch.Generator) -> Tensor:
    Z = torch.randn(*batch, n, 3 * n, generator=g, dtype=torch.float64)
    return Z @ Z.mT / (3 * n)


def sym(n: int, *batch: int, g: torch.Generator) -> Tensor:
    A = torch.randn(*batch, n, n, generator=g, dtype=torch.float64)
    return (A + A.mT) / 2


def numpy_root(A: np.ndarray) -> np.ndarray:
    return sqrtm(A).real


def tensor(A) -> Tensor:
    return torch.as_tensor(np.asarray(A), dtype=torch.float64)


def naive_mean(X: np.ndarray, steps: int) -> np.ndarray:
    """The fixed point, matrix by matrix, with SciPy's root and a real inverse."""
    B = sum(X) / len(X)
    for _ in range(steps):
        R = numpy_root(B)
        S = sum(numpy_root(R @ x @ R) for x in X) / len(X)
        B = np.linalg.inv(R) @ S @ S @ np.linalg.inv(R)
    return B


def naive_layer(X, S_M, S_G, s, theta, mean=None, variance=None):
    """Equations of the layer read aloud for one batch: one matrix at a time, SciPy only."""

    def power(A, t):
        return expm(t * logm(A).real).real

    def log_exp(A):
        return 2 * numpy_root((eye + A / 2) @ (eye + A / 2)) - 2 * eye

    M, eye = expm(S_M), np.eye(len(S_M))
    half, inverse = numpy_root(M), np.linalg.inv(numpy_root(M))
    T = [inverse @ power(x, theta) @ inverse for x in X]
    B = naive_mean(T, 1) if mean is None else mean
    b, U = np.linalg.eigh(B)
    V = []
    for t in T:
        product = sqrtm(B @ t).real
        log = product + product.T - 2 * B
        V.append(U @ (np.sqrt(2 / np.add.outer(b, b)) * (U.T @ log @ U)) @ U.T)
    if variance is None:
        d2 = [np.trace(t) + np.trace(B) - 2 * np.trace(sqrtm(B @ t).real) for t in T]
        variance = np.mean(d2) / theta**2
    G = inverse @ power(expm(S_G), theta) @ inverse
    a, U = np.linalg.eigh(G)
    out = []
    for v in V:
        Y = log_exp(s / math.sqrt(variance + 1e-5) * log_exp(v))
        W = U @ (np.sqrt(np.add.outer(a, a) / 2) * (U.T @ Y @ U)) @ U.T
        L = solve_continuous_lyapunov(G, W)
        out.append(power(half @ (G + W + L @ G @ L) @ half, 1 / theta))
    return np.stack(out), B, variance


# Functions of matrices


@pytest.mark.parametrize("name", ["root", "inverse_root", "logarithm", "exponential"])
def test_eigen_functions_are_scipys(chapter, g, name):
    X = spd(5, g=g)
    scipy_one = {
        "root": sqrtm,
        "inverse_root": lambda A: np.linalg.inv(sqrtm(A)),
        "logarithm": logm,
        "exponential": expm,
    }[name]
    assert_close(chapter.spectral(X, getattr(chapter, name)), tensor(scipy_one(X.numpy()).real), **EXACT)


@pytest.mark.parametrize("name", ["root", "inverse_root", "logarithm", "exponential", "readout", "folded_eigenvalue"])
@pytest.mark.parametrize("tied", [False, True])
def test_eigen_functions_have_the_gradient_of_finite_differences_even_at_ties(chapter, g, name, tied):
    X = torch.eye(3).double() * 1.7 if tied else spd(3, 2, g=g)
    X.requires_grad_()
    function = getattr(chapter, name)
    assert torch.autograd.gradcheck(lambda A: chapter.spectral((A + A.mT) / 2, function), X)


def test_the_gradient_is_that_of_the_eigensolver_where_eigenvalues_differ(chapter, g):
    X, upstream = spd(4, 3, g=g).requires_grad_(), sym(4, 3, g=g)
    lam, U = torch.linalg.eigh(X)
    (known,) = torch.autograd.grad(((U * lam.log()[..., None, :] @ U.mT) * upstream).sum(), X)
    (ours,) = torch.autograd.grad((chapter.spectral(X, chapter.logarithm) * upstream).sum(), X)
    assert_close(ours, (known + known.mT) / 2, **EXACT)


def test_an_exponential_of_zero_has_a_finite_gradient(chapter, g):
    zero = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    upstream = sym(3, g=g)
    (chapter.spectral(zero, chapter.exponential) * upstream).sum().backward()
    assert_close(zero.grad, upstream)


def test_the_readout_clips_then_takes_the_logarithm_and_passes_no_gradient_below(chapter):
    X = torch.diag(torch.tensor([1e-7, 0.5])).double().requires_grad_()
    L = chapter.spectral(X, chapter.readout)
    assert_close(L.diagonal(), torch.tensor([1e-5, 0.5]).double().log())
    L.diagonal().sum().backward()
    assert_close(X.grad.diagonal(), torch.tensor([0.0, 2.0]).double())


@pytest.mark.parametrize("theta", [0.25, 1.5])
def test_powers_are_exact_take_one_exponent_each_and_clip(chapter, g, theta):
    X = spd(3, 2, 4, g=g)
    thetas = torch.tensor([theta, 1.0]).double()
    ours = chapter.power(X, thetas)
    for x, y in zip(X[0], ours[0], strict=True):
        assert_close(y, tensor(expm(theta * logm(x.numpy()))), **EXACT)
    assert_close(ours[1], X[1], **EXACT)
    assert chapter.power(X, ONE) is X
    tiny = torch.diag(torch.tensor([1e-14, 1.0])).double()[None].requires_grad_()
    clipped = chapter.power(tiny, 0.5 * ONE)
    assert clipped[0, 0, 0].item() == pytest.approx(1e-5)
    clipped.sum().backward()
    assert tiny.grad[0, 0, 0].item() == 0
    assert torch.autograd.gradcheck(lambda A: chapter.power((A + A.mT) / 2, thetas), spd(3, 2, 2, g=g).requires_grad_())


# Geometry


def test_distance_and_mean_agree_with_pyriemann(chapter, g):
    distance = pytest.importorskip("pyriemann.utils.distance")
    means = pytest.importorskip("pyriemann.utils.mean")
    X = spd(4, 12, g=g)
    ours = chapter.distance2(X[0], X[1]).sqrt().item()
    assert ours == pytest.approx(distance.distance_wasserstein(X[0].numpy(), X[1].numpy()), abs=1e-9)
    known = means.mean_wasserstein(X.numpy(), tol=1e-14, maxiter=200)
    assert_close(chapter.bw_mean(X, 50)[0], tensor(known), rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_the_mean_takes_exactly_the_steps_it_is_told(chapter, g, steps):
    X = spd(4, 2, 6, g=g)
    ours = chapter.bw_mean(X, steps)
    assert ours.shape == (2, 1, 4, 4)
    for B, batch in zip(ours, X, strict=True):
        assert_close(B[0], tensor(naive_mean(list(batch.numpy()), steps)), **EXACT)


def test_the_converged_mean_is_where_the_logarithms_cancel(chapter, g):
    X = spd(5, 9, g=g)
    B = chapter.bw_mean(X, 50)
    assert chapter.bw_log(B, X).mean(0).abs().max() < 1e-12
    worse = chapter.distance2(X, chapter.bw_mean(X, 0)).mean()
    assert chapter.distance2(X, B).mean() < worse


def test_the_mean_stops_when_each_of_a_stack_stands_still_by_its_own_size(chapter, g, monkeypatch):
    X, step, steps = spd(4, 1, 2, 6, g=g), chapter.mean_step, []
    X[0, 0] = 1e6 * X[0, 0, 0]  # one matrix six times: its own mean
    monkeypatch.setattr(chapter, "mean_step", lambda X, B: steps.append(B) or step(X, B))
    B = chapter.bw_mean(X, 1000)
    assert len(steps) < 40
    assert_close(B[0, 0, 0], X[0, 0, 0], rtol=1e-12, atol=0)
    assert chapter.bw_log(B[0, 1], X[0, 1]).mean(0).abs().max() < 1e-12


def test_log_exp_and_transports_agree_with_scipy_and_undo_each_other(chapter, g):
    B, X = spd(4, g=g), spd(4, g=g)
    product = sqrtm((B @ X).numpy()).real
    V = chapter.bw_log(B, X)
    assert_close(V, tensor(product + product.T) - 2 * B, **EXACT)
    assert_close(chapter.bw_exp(B, V), X, **EXACT)
    L = tensor(solve_continuous_lyapunov(B.numpy(), V.numpy()))
    length = (L @ V).trace() / 2
    assert_close(length, chapter.distance2(X, B), **EXACT)
    there = chapter.to_identity(B, V)
    assert_close((there**2).sum() / 4, length, **EXACT)
    assert_close(chapter.from_identity(B, there), V, **EXACT)


def test_the_geodesic_is_the_closed_form_and_moves_at_constant_speed(chapter, g):
    A, B, t = spd(4, g=g), spd(4, g=g), 0.3
    cross = tensor(sqrtm((A @ B).numpy()).real)
    ours = chapter.bw_geodesic(A, B, t)
    assert_close(ours, (1 - t) ** 2 * A + t**2 * B + t * (1 - t) * (cross + cross.mT), **EXACT)
    whole = chapter.distance2(B, A).sqrt()
    assert_close(chapter.distance2(ours, A).sqrt(), t * whole, rtol=0, atol=1e-8)


def test_diagonal_matrices_decouple(chapter, g):
    x, y = torch.rand(2, 5, generator=g, dtype=torch.float64) + 0.1
    assert_close(chapter.distance2(x.diag(), y.diag()), ((x.sqrt() - y.sqrt()) ** 2).sum(), **EXACT)
    mean = chapter.bw_mean(torch.stack([x.diag(), y.diag()]), 30)[0]
    assert_close(mean, ((x.sqrt() + y.sqrt()) / 2).square().diag(), **EXACT)


def test_log_exp_folds_only_where_it_must(chapter, g):
    V = torch.cat([0.3 * sym(4, 3, g=g), 9 * sym(4, 3, g=g)])
    keep = torch.linalg.eigvalsh(V).amin(-1) > -2
    assert keep.any()
    assert not keep.all()
    assert (chapter.unfolded(V) == keep).all()
    eye = np.eye(4)
    for v, out in zip(V, chapter.log_exp(V), strict=True):
        square = (eye + v.numpy() / 2) @ (eye + v.numpy() / 2)
        assert_close(out, tensor(2 * numpy_root(square) - 2 * eye), rtol=0, atol=1e-8)
    assert_close(chapter.log_exp(V)[keep], V[keep], rtol=0, atol=0)


# The layer


@pytest.mark.parametrize("theta", [0.5, 1.0, 1.5])
def test_the_layer_is_its_equations_read_aloud(chapter, g, theta):
    X, S_M, S_G, s = spd(4, 8, g=g), 0.4 * sym(4, g=g), 0.4 * sym(4, g=g), 0.7
    ours, run = chapter.gbw_norm(X, S_M, S_G, s * ONE, theta * ONE)
    known, B, nu2 = naive_layer(X.numpy(), S_M.numpy(), S_G.numpy(), s, theta)
    assert_close(ours, tensor(known), rtol=1e-8, atol=1e-8)
    assert_close(run.mean, tensor(B), **EXACT)
    assert run.variance.item() == pytest.approx(nu2, abs=1e-10)
    other = spd(4, 5, g=g)
    evaluated, same = chapter.gbw_norm(other, S_M, S_G, s * ONE, theta * ONE, run)
    known, *_ = naive_layer(other.numpy(), S_M.numpy(), S_G.numpy(), s, theta, B, nu2)
    assert_close(evaluated, tensor(known), rtol=1e-8, atol=1e-8)
    assert_close(same.mean, run.mean)


def test_the_variance_about_the_identity_is_the_official_one(chapter, g):
    X, theta = spd(4, 6, g=g), 0.5
    zero = torch.zeros(4, 4).double()
    _, run = chapter.gbw_norm(X, zero, zero, ONE, theta * ONE, about="identity")
    T = [expm(theta * logm(x)).real for x in X.numpy()]
    d2 = [np.trace(t) + 4 - 2 * np.trace(numpy_root(t)) for t in T]
    assert run.variance.item() == pytest.approx(np.mean(d2) / theta**2, abs=1e-10)
    with pytest.raises(ValueError, match="about must be mean or identity; got 'batch'"):
        chapter.gbw_norm(X, zero, zero, ONE, ONE, about="batch")


def test_scalars_get_ordinary_batch_normalisation_of_their_roots(chapter, g):
    x = 0.5 + torch.rand(40, 1, 1, generator=g, dtype=torch.float64)
    m, bias, s = 2.0, 3.0, 0.2
    S_M, S_G = (torch.full((1, 1), math.log(v)).double() for v in (m, bias))
    ours, _ = chapter.gbw_norm(x, S_M, S_G, s * ONE, ONE)
    normal = F.batch_norm((x / m).sqrt().flatten()[:, None], None, None, training=True, eps=1e-5)[:, 0]
    assert_close(ours.flatten(), (math.sqrt(bias) + s * math.sqrt(m) * normal) ** 2, rtol=1e-6, atol=1e-6)


def test_after_centring_and_scaling_the_mean_is_one_and_so_is_the_variance(chapter, g):
    X = spd(6, 40, g=g)
    V = chapter.centre(X, chapter.bw_mean(X, 50))
    Y = V / chapter.variance(X, V, ONE).sqrt()
    assert chapter.unfolded(V).all()
    assert chapter.unfolded(Y).all()
    Z = chapter.bw_exp(torch.eye(6).double(), Y)
    mean = naive_mean(list(Z.numpy()), 30)
    assert_close(tensor(mean), torch.eye(6).double(), rtol=0, atol=1e-9)
    d2 = [np.trace(z) + 6 - 2 * np.trace(numpy_root(z)) for z in Z.numpy()]
    assert np.mean(d2) == pytest.approx(1, abs=1e-9)


def test_large_units_fold_before_scaling_though_nothing_folds_after(chapter, g):
    X = 100 * spd(6, 40, g=g)
    V = chapter.centre(X, chapter.bw_mean(X, 50))
    Y = chapter.log_exp(V) / chapter.variance(X, V, ONE).sqrt()
    assert not chapter.unfolded(V).all()
    assert chapter.unfolded(Y).all()
    Z = chapter.bw_exp(torch.eye(6).double(), Y)
    assert (tensor(naive_mean(list(Z.numpy()), 30)) - torch.eye(6)).abs().max() > 0.05


def test_the_layers_gradient_is_that_of_finite_differences_with_statistics_held(chapter, g):
    X, S_M, S_G = spd(3, 3, g=g), 0.3 * sym(3, g=g), 0.3 * sym(3, g=g)
    _, run = chapter.gbw_norm(X, S_M, S_G, ONE, 0.6 * ONE)

    def layer(X, S_M, S_G, s):
        X, S_M, S_G = ((A + A.mT) / 2 for A in (X, S_M, S_G))
        return chapter.gbw_norm(X, S_M, S_G, s, 0.6 * ONE, run)[0]

    assert torch.autograd.gradcheck(layer, [t.clone().requires_grad_() for t in (X, S_M, S_G, ONE)])


def test_no_gradient_flows_through_the_mean_and_the_variance_of_the_batch(chapter, g):
    X, zero = spd(3, 4, g=g).requires_grad_(), torch.zeros(3, 3).double()
    out, run = chapter.gbw_norm(X, zero, zero, ONE, ONE)
    assert not run.mean.requires_grad
    assert not run.variance.requires_grad
    again, _ = chapter.gbw_norm(X, zero, zero, ONE, ONE, run)
    weight = sym(3, 4, g=g)
    (a,) = torch.autograd.grad((out * weight).sum(), X)
    (b,) = torch.autograd.grad((again * weight).sum(), X)
    assert_close(a, b, **EXACT)


def test_the_share_of_folded_matrices_is_counted(chapter, g):
    x = torch.cat([torch.full((7,), 1.0), torch.full((1,), 0.04)]).double()[:, None, None]
    zero = torch.zeros(1, 1).double()
    _, run = chapter.gbw_norm(x, zero, zero, ONE, ONE)  # the last root lies 2.6 deviations low
    assert run.folded.item() == pytest.approx(1 / 8)
    _, run = chapter.gbw_norm(x, zero, zero, 0.1 * ONE, ONE)
    assert run.folded.item() == 0


def test_stacked_layers_do_not_mix(chapter, g):
    X, S_M, S_G = spd(3, 2, 3, 5, g=g), 0.3 * sym(3, 2, 3, g=g), 0.3 * sym(3, 2, 3, g=g)
    s, theta = 0.5 + torch.rand(2, 3, generator=g).double(), torch.tensor([[0.5], [1.5]]).double()
    stacked, run = chapter.gbw_norm(X, S_M, S_G, s, theta, steps=2)
    for v in range(2):
        for d in range(3):
            alone, one = chapter.gbw_norm(X[v, d], S_M[v, d], S_G[v, d], s[v, d], theta[v, 0], steps=2)
            assert_close(stacked[v, d], alone, **EXACT)
            for field in run._fields:
                assert_close(getattr(run, field)[v, d], getattr(one, field), **EXACT)


def test_the_gap_is_the_relative_distance_of_the_one_step_mean(chapter, g):
    X, zero = spd(3, 6, g=g), torch.zeros(3, 3).double()
    _, run = chapter.gbw_norm(X, zero, zero, ONE, ONE, steps=50)
    first, goal = (naive_mean(list(X.numpy()), k) for k in (1, 40))
    known = np.linalg.norm(first - goal) / np.linalg.norm(goal)
    assert known > 1e-6
    assert run.gap.item() == pytest.approx(known, rel=1e-5)


def layer_by_numpy(X: np.ndarray, fitted: int) -> np.ndarray:
    """Centred, scaled to variance one and back at the identity, in NumPy's eigenbases, one matrix at a time."""

    def root(A: np.ndarray) -> np.ndarray:
        lam, Q = np.linalg.eigh(A)
        return (Q * np.sqrt(lam.clip(0))) @ Q.T

    B = X[:fitted].mean(0)
    for _ in range(30):
        R = root(B)
        S = np.linalg.solve(R, sum(root(R @ x @ R) for x in X[:fitted]) / fitted)
        B = S @ S.T  # R⁻¹ S̄ S̄ R⁻¹
    b, U = np.linalg.eigh(B)
    R, inverse = (U * np.sqrt(b)) @ U.T, (U / np.sqrt(b)) @ U.T
    tangent = []
    for x in X:
        lam, Q = np.linalg.eigh(R @ x @ R)
        product = R @ (Q * np.sqrt(lam.clip(0))) @ Q.T @ inverse
        V = product + product.T - 2 * B
        tangent.append(U @ (np.sqrt(2 / np.add.outer(b, b)) * (U.T @ V @ U)) @ U.T)
    V = np.stack(tangent)
    nu = math.sqrt((V[:fitted] ** 2).sum((1, 2)).mean() / 4 + 1e-5)
    half = np.eye(len(B)) + V / nu / 2
    return half @ half


@pytest.mark.parametrize(("kappa", "within"), [(1, 1e-11), (3, 1e-9), (6, 1e-5)])
def test_the_layer_is_right_on_ill_conditioned_matrices_too(chapter, g, kappa, within):
    turned = torch.linalg.qr(torch.randn(20, 20, generator=g).double()).Q
    half = turned * 10 ** (-kappa * torch.arange(20).double() / 38)
    Z = half @ torch.randn(40, 20, 60, generator=g).double()
    X = Z @ Z.mT
    X = X / X.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    zero = torch.zeros(20, 20).double()
    _, run = chapter.gbw_norm(X[:30], zero, zero, ONE, ONE, steps=50)
    ours, _ = chapter.gbw_norm(X, zero, zero, ONE, ONE, run)
    assert_close(ours, tensor(layer_by_numpy(X.numpy(), 30)), rtol=0, atol=within)


def test_the_metric_is_two_congruences_around_the_plain_layer(chapter, g):
    X, S_M, S_G, zero = spd(4, 9, g=g), 0.5 * sym(4, g=g), 0.5 * sym(4, g=g), torch.zeros(4, 4).double()
    half, inverse = tensor(expm(S_M.numpy() / 2)), tensor(expm(-S_M.numpy() / 2))
    bias = tensor(logm((inverse @ tensor(expm(S_G.numpy())) @ inverse).numpy()).real)
    plain, _ = chapter.gbw_norm(inverse @ X @ inverse, zero, (bias + bias.mT) / 2, 0.4 * ONE, ONE)
    assert_close(chapter.gbw_norm(X, S_M, S_G, 0.4 * ONE, ONE)[0], half @ plain @ half, rtol=0, atol=1e-9)


# The rivals


def test_aim_bn_is_one_karcher_step_and_two_congruences(chapter, g):
    X, S_G = spd(4, 6, g=g), 0.5 * sym(4, g=g)
    A = X.numpy().mean(0)
    R, inverse = numpy_root(A), np.linalg.inv(numpy_root(A))
    B = R @ expm(np.mean([logm(inverse @ x @ inverse).real for x in X.numpy()], 0)) @ R
    out, run = chapter.aim_norm(X, S_G)
    assert_close(run[0], tensor(B), **EXACT)
    G, W = numpy_root(expm(S_G.numpy())), np.linalg.inv(numpy_root(B))
    assert_close(out, tensor(np.stack([G @ W @ x @ W @ G for x in X.numpy()])), **EXACT)
    assert_close(chapter.aim_norm(X[:2], S_G, run)[0], out[:2], **EXACT)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_the_affine_invariant_geodesic_is_geoopts(chapter, g):
    geoopt = pytest.importorskip("geoopt")
    A, B = spd(4, g=g), spd(4, g=g)
    manifold = geoopt.SymmetricPositiveDefinite()
    known = manifold.expmap(A, 0.3 * manifold.logmap(A, B))
    assert_close(chapter.aim_geodesic(A, B, 0.3), known, rtol=0, atol=1e-9)


def test_lem_bn_normalises_logarithms(chapter, g):
    X, S_G = spd(3, 7, g=g), sym(3, g=g)
    L = np.stack([logm(x).real for x in X.numpy()])
    spread = math.sqrt(np.mean([((one - L.mean(0)) ** 2).sum() for one in L]) + 1e-5)
    out, run = chapter.lem_norm(X, S_G, 0.8 * ONE)
    assert_close(out, tensor(0.8 * (L - L.mean(0)) / spread) + S_G, **EXACT)
    assert_close(chapter.lem_norm(X, S_G, 0.8 * ONE, run)[0], out, **EXACT)


def test_euclidean_bn_is_pytorchs(chapter, g):
    L, gain, shift = sym(3, 9, g=g), sym(3, 1, g=g), sym(3, 1, g=g)
    known = F.batch_norm(L.flatten(1), None, None, gain.flatten(), shift.flatten(), training=True)
    out, run = chapter.euclidean_norm(L.requires_grad_(), gain, shift)
    assert not any(r.requires_grad for r in run)
    assert_close(out.flatten(1), known, **EXACT)
    assert_close(chapter.euclidean_norm(L[:2], gain, shift, run)[0], out[:2], **EXACT)


# The network


def front(chapter, g, D=2, V=2):
    p = chapter.initial(V, D, 12, 5, g, bimap_from=15, filters=4)
    with torch.no_grad():
        for name in ("w", "u", "gamma", "beta", "gamma_out"):
            p[name] += 0.1 * torch.randn(p[name].shape, generator=g)
    return p, torch.randn(D, 6, 8, 125, generator=g)


def two_convolutions(p, x, v, d, run=None) -> Tensor:
    """The front end of model (v, d) by PyTorch's convolutions and BN layers."""
    stored = [None] * 3 if run is None else [r[v, d] for r in run]
    mean_out = None if run is None else torch.zeros(15)
    z = F.conv2d(x[d][:, None], p["w"][v, d][:, None, :, None])
    z = F.batch_norm(z, stored[0], stored[1], p["gamma"][v, d], p["beta"][v, d], training=run is None)
    z = F.conv2d(z, p["u"][v, d][:, :, None], padding=(0, 18))
    z = F.batch_norm(z, mean_out, stored[2], p["gamma_out"][v, d], None, training=run is None)[:, :, 0]
    return torch.stack([torch.cov(one.double()) for one in z]) + 1e-5 * torch.eye(15).double()


def test_the_composed_front_end_is_two_convolutions_with_their_bn_layers(chapter, g):
    p, x = front(chapter, g)
    ours, run = chapter.covariances(p, x, None, stride=1)
    stored, _ = chapter.covariances(p, x[:, :3], run, stride=1)
    for v in range(2):
        for d in range(2):
            assert_close(ours[v, d], two_convolutions(p, x, v, d), rtol=1e-4, atol=1e-5)
            assert_close(stored[v, d], two_convolutions(p, x[:, :3], v, d, run), rtol=1e-4, atol=1e-5)


def test_the_front_ends_gradient_is_that_of_the_two_convolutions(chapter, g):
    p, x = front(chapter, g)
    weight = sym(15, g=g)
    names = ["w", "u", "gamma", "beta", "gamma_out"]
    ours = torch.autograd.grad((chapter.covariances(p, x, None, 1)[0][1, 0] * weight).sum(), [p[k] for k in names])
    known = torch.autograd.grad((two_convolutions(p, x, 1, 0) * weight).sum(), [p[k] for k in names])
    for name, a, b in zip(names, ours, known, strict=True):
        assert (a - b).norm() < 1e-3 * b.norm(), name


def test_a_stride_of_two_keeps_every_second_sample(chapter, g):
    p, x = front(chapter, g)
    one = {k: t[:1, :1] for k, t in p.items()}
    a, stats = chapter.covariances(one, x[:1], None, 2)
    filters, _ = chapter.compose(one, x[:1], None)
    y = F.conv1d(torch.cat([x[0], torch.ones(6, 1, 125)], 1), filters[0, 0], padding=18)[..., ::2]
    scale = one["gamma_out"][0, 0] / (stats[2][0, 0] + 1e-5).sqrt()
    known = torch.stack([torch.cov(t.double()) for t in scale[:, None] * y]) + 1e-5 * torch.eye(15)
    assert_close(a[0, 0], known, rtol=1e-4, atol=1e-5)


def test_arms_start_alike_and_the_bias_has_no_ties(chapter, g):
    p = chapter.initial(3, 2, 4, 5, g, bimap_from=6, filters=2)
    for name, t in p.items():
        assert t.shape[:2] == (3, 2), name
        assert_close(t[0], t[2], rtol=0, atol=0)
    assert (p["w"][0, 0] != p["w"][0, 1]).any()
    G = torch.linalg.matrix_exp(p["S_G"][0, 0])
    assert_close(G, torch.eye(4).double() + 1e-7 * torch.arange(1, 5).double().diag(), rtol=0, atol=1e-14)
    for name, fan_in in (("u", 72), ("w", 8), ("A", 16)):
        bound = 1 / math.sqrt(fan_in)
        assert 0.8 * bound < p[name].max() <= bound, name
        assert -0.8 * bound > p[name].min() >= -bound, name


def test_normalisations_start_without_gain_shift_or_metric(chapter, g):
    p = chapter.initial(2, 3, 4, 5, g, bimap_from=6, filters=2)
    for name in ("gamma", "gamma_out", "gain", "s"):
        assert (p[name] == 1).all(), name
    for name in ("beta", "shift", "S_M", "c"):
        assert (p[name] == 0).all(), name


ARMS = [("none", {}), ("aim", {}), ("lem", {}), ("euclidean", {}), ("gbw", {}), ("gbw", {"theta": 0.5})]
USED = {"none": [], "euclidean": ["gain", "shift"], "aim": ["S_G"], "lem": ["S_G", "s"], "gbw": ["S_M", "S_G", "s"]}


def test_arms_trained_together_are_arms_trained_alone(chapter, g):
    arms = [chapter.Arm(norm, **options) for norm, options in ARMS]
    arms += [chapter.Arm("gbw", learn_M=False), chapter.Arm("gbw", theta=1.5), chapter.Arm("gbw", about="identity")]
    x, y = spd(4, 2, 12, g=g), torch.randint(3, (2, 12), generator=g)
    data, seeded = chapter.Data(x, y), lambda: torch.Generator().manual_seed(7)
    rate = 0.01 * (1 + torch.arange(len(arms)).double())[:, None].expand(-1, 2)
    p = chapter.initial(len(arms), 2, 4, 3, seeded())
    run = chapter.train(arms, rate, p, data, 2, 6, seeded())
    together = chapter.accuracy(arms, p, run, data)
    for k, arm in enumerate(arms):
        q = chapter.initial(1, 2, 4, 3, seeded())
        alone = chapter.train([arm], rate[k : k + 1], q, data, 2, 6, seeded())
        for name in ["A", "c", *USED[arm.norm]]:
            assert_close(p[name][k], q[name][0], rtol=0, atol=1e-9, msg=f"{arm} {name}")
        assert_close(together[k], chapter.accuracy([arm], q, alone, data)[0])
    moved = p["S_M"].detach().abs().amax((-1, -2)).amax(-1) > 1e-6
    assert moved.tolist() == [arm.norm == "gbw" and arm.learn_M for arm in arms]


def test_one_step_of_sgd_is_pytorchs_with_the_gradient_cut_to_norm_two(chapter, g):
    start, grads = (
        torch.randn(1, 1, 3, generator=g).double(),
        [torch.randn(1, 1, 3, generator=g).double() * 5 for _ in "ab"],
    )
    ours, velocity = {"A": start.clone()}, {}
    weight = start.clone().requires_grad_()
    optimiser = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.05)
    for grad in grads:
        assert grad.norm() > 2
        chapter.sgd_step(ours, {"A": grad.clone()}, velocity, torch.tensor([[0.1]]).double())
        weight.grad = grad.clone()
        torch.nn.utils.clip_grad_norm_([weight], 2.0)
        optimiser.step()
    assert_close(ours["A"], weight.detach(), rtol=1e-5, atol=1e-6)


def test_metric_and_bias_do_not_decay_and_stay_symmetric(chapter):
    p = {"S_M": torch.ones(1, 1, 2, 2).double(), "s": torch.ones(1, 1).double()}
    grads = {"S_M": torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]]).double(), "s": torch.zeros(1, 1).double()}
    chapter.sgd_step(p, grads, {}, torch.tensor([[0.1]]).double())
    assert_close(p["S_M"][0, 0], torch.tensor([[1.0, 0.95], [0.95, 1.0]]).double())
    assert p["s"].item() == pytest.approx(1 - 0.1 * 0.05)


def test_the_bimap_is_orthonormal_and_frozen_unless_told(chapter, g):
    arms = [chapter.Arm("none"), chapter.Arm("none", learn_P=True)]
    p = chapter.initial(2, 1, 3, 2, g, bimap_from=5)
    x = spd(5, 1, 6, g=g)
    X = chapter.inputs(arms, p, x, {"k": 1}, True, 1)
    W = torch.linalg.qr(p["P"][0, 0].detach()).Q
    assert_close(X[0, 0].detach(), W.mT @ x[0] @ W, **EXACT)
    X.log().nan_to_num().sum().backward()
    assert p["P"].grad[0].abs().max() == 0
    assert p["P"].grad[1].abs().max() > 0


def test_running_statistics_follow_the_geodesics(chapter, g):
    A, B = spd(3, g=g), spd(3, g=g)
    numbers = [torch.tensor(v, dtype=torch.float64) for v in (1.0, 0.3, 0.0, 2.0, 0.1, 1.0)]
    run = chapter.follow(chapter.Arm("gbw"), [A, *numbers[:3]], [B, *numbers[3:]], 0.1)
    cross = tensor(sqrtm((A @ B).numpy()).real)
    assert_close(run[0], 0.81 * A + 0.01 * B + 0.09 * (cross + cross.mT), **EXACT)
    assert [round(r.item(), 10) for r in run[1:]] == [1.1, 0.3, 0.1]
    (aim,) = chapter.follow(chapter.Arm("aim"), [A], [B], 0.1)
    assert_close(aim, chapter.aim_geodesic(A, B, 0.1))
    (linear,) = chapter.follow(chapter.Arm("lem"), [A], [B], 0.1)
    assert_close(linear, 0.9 * A + 0.1 * B)


def test_the_first_batch_starts_the_average_and_the_tenth_moves_it_by_a_tenth(chapter):
    old, new, arm = [torch.zeros(1)], [torch.ones(1)], chapter.Arm("lem")
    assert chapter.moved(None, new, {"k": 1}, arm)[0].item() == 1
    steps = [chapter.moved(old, new, {"k": k}, arm)[0].item() for k in (2, 5, 10, 40)]
    assert steps == pytest.approx([0.5, 0.2, 0.1, 0.1])


def test_evaluation_reads_statistics_and_does_not_move_them(chapter, g):
    arms = [chapter.Arm("gbw")]
    data = chapter.Data(spd(3, 1, 8, g=g), torch.randint(2, (1, 8), generator=g))
    p = chapter.initial(1, 1, 3, 2, g)
    run = chapter.train(arms, torch.tensor([[0.1]]).double(), p, data, 1, 4, g)
    before = [t.clone() for t in run[arms[0]]]
    one = chapter.forward(arms, p, data.x[:, :1], run, False)
    whole = chapter.forward(arms, p, data.x, run, False)
    assert_close(one[:, :, 0], whole[:, :, 0], **EXACT)
    assert run["k"] == 2
    for a, b in zip(run[arms[0]], before, strict=True):
        assert_close(a, b, rtol=0, atol=0)


# What is refused, and mistakes that the oracles above catch


def test_bad_input_is_refused(chapter):
    for bad in (torch.ones(3, 3), torch.ones(0, 3, 3), torch.ones(4, 3, 2)):
        with pytest.raises(ValueError, match=r"must be a batch \(\.\.\., N, n, n\)"):
            chapter.bw_mean(bad.double())
    with pytest.raises(ValueError, match="norm must be none, aim, lem, euclidean or gbw; got 'layer'"):
        chapter.log_features(chapter.Arm("layer"), {}, torch.eye(2).double()[None], ONE, None)


def test_without_the_limit_at_ties_there_is_no_gradient_and_with_zeros_for_it_a_wrong_one(chapter, g, monkeypatch):
    point, upstream = 2 * torch.eye(3).double(), sym(3, g=g)

    def gradient():
        X = point.clone().requires_grad_()
        (chapter.spectral(X, chapter.root) * upstream).sum().backward()
        return X.grad

    right = gradient()
    assert_close(right, upstream / (2 * math.sqrt(2)), **EXACT)
    monkeypatch.setattr(chapter, "TIE", -1.0)
    assert gradient().isnan().any()
    zeros = upstream.diagonal().diag() / (2 * math.sqrt(2))  # infinite and undefined quotients set to zero
    assert (zeros - right).abs().max() > 0.01


def test_a_transport_without_its_root_changes_lengths(chapter, g):
    B, V = 4 * spd(4, g=g), sym(4, g=g)
    length = chapter.in_eigenbasis(B, V, lambda b: 1 / b)
    length = (length * V).sum() / 2
    wrong = chapter.in_eigenbasis(B, V, lambda b: 2 / b)
    assert abs((wrong**2).sum() / 4 - length) > 0.1 * length
    assert_close((chapter.to_identity(B, V) ** 2).sum() / 4, length, **EXACT)
