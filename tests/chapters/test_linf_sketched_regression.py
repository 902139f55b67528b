"""The method of `linf-sketched-regression` against dense matrices, NumPy, SciPy, closed forms and mistakes."""

import math
from itertools import product

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy import stats
from torch import Tensor
from torch.testing import assert_close


def normal(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def by_numpy(SX: Tensor) -> Tensor:
    """Least-norm solutions by NumPy's SVD, one system at a time."""
    return torch.from_numpy(np.stack([np.linalg.lstsq(s[:, :-1], s[:, -1], rcond=1e-10)[0] for s in SX.numpy()]))


def dense_srht(D: Tensor, rows: Tensor) -> Tensor:
    """P H D / √m from SciPy's Hadamard matrix (draws, m, n)."""
    H = torch.from_numpy(scipy.linalg.hadamard(D.shape[1]).astype(float))
    return torch.stack([H[r] * s for s, r in zip(D, rows, strict=True)]) / math.sqrt(rows.shape[1])


def dense_columns(rows: Tensor, sign: Tensor, m: int) -> Tensor:
    """The matrix with the given nonzeros of each column over √s, entry by entry."""
    draws, s, n = rows.shape
    S = torch.zeros(draws, m, n, dtype=torch.float64)
    for k, j, column in product(range(draws), range(s), range(n)):
        S[k, rows[k, j, column], column] += sign[k, j, column] / math.sqrt(s)
    return S


def spike_by_hand(n: int, d: int) -> Tensor:
    X = torch.zeros(n, d + 1, dtype=torch.float64)
    for i in range(d):
        X[i, i] = 1
        X[d + i, d] = d**-0.5
    return X


# the exact problem and Θ


def test_a_problem_holds_numpys_solution_and_the_unit_of_theta(chapter, g):
    A, b = normal(40, 5, g=g), normal(40, g=g)
    p = chapter.problem(A, b)
    x, residual, _, sigma = np.linalg.lstsq(A.numpy(), b.numpy(), rcond=None)
    assert_close(p.x_star, torch.from_numpy(x))
    assert_close(p.X, torch.cat([A, b[:, None]], 1))
    assert p.unit == pytest.approx(math.sqrt(residual[0]) / sigma[-1] / math.sqrt(5), rel=1e-12)


def test_theta_is_the_largest_coordinate_in_its_unit(chapter):
    p = chapter.Problem(torch.zeros(4, 3), torch.tensor([1.0, -1.0]), 0.5)
    x = torch.tensor([[1.0, -1.0], [1.5, -2.0], [-1.0, -1.0]])
    assert_close(chapter.theta(x, p), torch.tensor([0.0, 2.0, 4.0]))


def test_theta_does_not_depend_on_the_scale_of_b_or_a(chapter, g):
    A, b = normal(64, 4, g=g), normal(64, g=g)
    thetas = []
    for a, c in ((1, 1), (7, 0.1)):
        p = chapter.problem(a * A, c * b)
        thetas.append(chapter.theta(chapter.solve(chapter.srht(p.X, 20, 6, torch.Generator().manual_seed(1))), p))
    assert_close(*thetas)


@pytest.mark.parametrize(
    ("A", "b", "said"),
    [
        (torch.ones(3, 3), torch.ones(3), r"A must be \(n, d\), n > d, and b \(n,\); got \(3, 3\), \(3,\)"),
        (torch.ones(5, 2), torch.ones(4), r"got \(5, 2\), \(4,\)"),
        (torch.ones(5), torch.ones(5), r"got \(5,\), \(5,\)"),
        (torch.ones(5, 2), torch.ones(5), "A must have full column rank"),
    ],
)
def test_a_problem_without_one_solution_is_refused(chapter, A, b, said):
    with pytest.raises(ValueError, match=said):
        chapter.problem(A.double(), b.double())


# the two solvers


def test_both_solvers_are_numpys_on_full_and_deficient_systems(chapter, g):
    SX = normal(12, 9, 4, g=g)
    SX[3:6, :, 1] = SX[3:6, :, 0]  # rank two
    SX[6, :, :3] = 0
    SX[7:9, :, 0] = 0
    known = by_numpy(SX)
    assert_close(chapter.solve(SX), known, rtol=1e-10, atol=1e-12)
    assert_close(chapter.solve_gram(SX.mT @ SX), known, rtol=1e-8, atol=1e-9)
    grid = SX.unflatten(0, (2, 6))
    for found in (chapter.solve(grid), chapter.solve_gram(grid.mT @ grid)):
        assert_close(found.flatten(0, 1), known, rtol=1e-8, atol=1e-9)


def test_a_nearly_but_not_quite_deficient_system_is_solved_as_it_is(chapter, g):
    SX = normal(2, 9, 4, g=g)
    SX[:, :, 1] = SX[:, :, 0] + 1e-4 * SX[:, :, 1]
    known = torch.from_numpy(np.stack([np.linalg.lstsq(s[:, :-1], s[:, -1], rcond=None)[0] for s in SX.numpy()]))
    assert_close(chapter.solve(SX), known, rtol=1e-8, atol=1e-8)
    assert_close(chapter.solve_gram(SX.mT @ SX), known, rtol=1e-4, atol=1e-4)


def test_the_solver_takes_as_few_rows_as_columns_and_says_when_there_are_fewer(chapter, g):
    SX = normal(2, 3, 4, g=g)
    assert_close(chapter.solve(SX), torch.linalg.solve(SX[..., :3], SX[..., 3]))
    with pytest.raises(ValueError, match="needs m ≥ d = 3 rows; got 2"):
        chapter.solve(SX[:, :2])


def test_nested_errors_are_those_of_separate_solutions(chapter, g):
    p = chapter.problem(normal(64, 3, g=g), normal(64, g=g))
    SX = chapter.srht(p.X, 40, 5, g)
    apart = [torch.stack([(x - p.x_star).abs().max() / p.unit for x in by_numpy(SX[:, :m])]) for m in (8, 9, 25, 40)]
    assert_close(chapter.nested_theta(SX, [8, 9, 25, 40], p), torch.stack(apart, 1), rtol=1e-8, atol=1e-10)
    with pytest.raises(ValueError, match="The sketch has 40 rows; 41 are asked for"):
        chapter.nested_theta(SX, [8, 41], p)


# the sketches, draw by draw


@pytest.mark.parametrize("n", [1, 2, 32])
def test_the_transform_is_scipys_matrix_and_leaves_its_input_alone(chapter, g, n):
    x = normal(2, n, 3, g=g)
    before = x.clone()
    assert_close(chapter.hadamard(x), torch.from_numpy(scipy.linalg.hadamard(n).astype(float)) @ x)
    assert_close(chapter.hadamard(x.mT.contiguous().mT), chapter.hadamard(x))
    assert torch.equal(x, before)


@pytest.mark.parametrize("n", [0, 3, 12])
def test_the_transform_refuses_what_is_no_power_of_two(chapter, n):
    with pytest.raises(ValueError, match=f"needs a power of two of rows; got {n}"):
        chapter.hadamard(torch.ones(n, 2))


def test_srht_is_its_dense_matrix_and_a_wrong_normaliser_is_told_apart(chapter, g):
    X, D = normal(16, 3, g=g), chapter.signs(4, 16, g=g)
    rows = torch.randint(16, (4, 6), generator=g)
    SX, S = chapter.apply_srht(X, D, rows), dense_srht(D, rows)
    assert_close(SX, S @ X)
    for wrong in (S * math.sqrt(6 / 16), S * math.sqrt(6), dense_srht(D.flip(1), rows)):  # 1/√n, 1, wrong signs
        assert not torch.allclose(SX, wrong @ X)


def enumerated(S: Tensor) -> Tensor:
    """E[SᵀS] over all listed matrices."""
    return (S.mT @ S).mean(0)


def test_the_mean_of_sts_over_all_srhts_is_the_identity(chapter):
    eye = torch.eye(4, dtype=torch.float64)
    cases = list(product(*[(-1.0, 1.0)] * 4, range(4), range(4), range(4)))
    D = torch.tensor([c[:4] for c in cases], dtype=torch.float64)
    rows = torch.tensor([c[4:] for c in cases]).long()
    assert_close(enumerated(chapter.apply_srht(eye, D, rows)), eye)
    second = (chapter.apply_srht(eye, D, rows)[..., 0] * chapter.apply_srht(eye, D, rows)[..., 1]).sum(1)
    assert second.square().mean().item() == pytest.approx(1 / 3)  # α = 1: variance 1/m between unit vectors


def test_the_random_srht_has_independent_signs_uniform_rows_and_its_padding(chapter, g):
    X = torch.eye(5, dtype=torch.float64)  # n padded to 8
    SX = chapter.srht(X, 6, 4000, g)
    assert SX.shape == (4000, 6, 5)
    assert_close(SX.abs(), torch.full_like(SX, 6**-0.5))
    assert_close(enumerated(SX), X, rtol=0, atol=0.06)
    pairs = torch.stack([SX[:, 0, i] * SX[:, 0, 0] for i in range(1, 5)])  # D_0 D_i H_ri H_r0
    assert pairs.mean(1).abs().max() * 6 < 0.08
    relative = (SX[:, 0] * SX[:, 1] * 6 + 1) / 2  # rows r, r' agree in column i
    same = (relative == 1).all(1).double().mean()  # 5 columns agree only if the rows are equal
    assert same == pytest.approx(1 / 8, abs=0.025)


def test_without_replacement_no_row_comes_twice_and_all_rows_make_a_rotation(chapter, g):
    p = chapter.problem(normal(32, 3, g=g), normal(32, g=g))
    SX = chapter.srht(torch.eye(32, dtype=torch.float64), 32, 5, g, replace=False)
    assert_close(SX.mT @ SX, torch.eye(32, dtype=torch.float64).expand(5, -1, -1))
    x = chapter.solve(chapter.srht(p.X, 32, 5, g, replace=False))
    assert_close(x, p.x_star.expand(5, -1))
    assert (chapter.theta(chapter.solve(chapter.srht(p.X, 32, 5, g)), p) > 1e-3).all()
    with pytest.raises(ValueError, match="Without replacement m is at most n = 32; got 33"):
        chapter.srht(p.X, 33, 1, g, replace=False)


def test_pieces_of_draws_make_no_difference_to_shapes_or_law(chapter, g, monkeypatch):
    X = normal(64, 3, g=g)
    monkeypatch.setattr(chapter, "AT_ONCE", 400)  # two draws at a time
    for make in (chapter.srht, chapter.osnap):
        SX = make(X, 16, 7, g)
        assert SX.shape == (7, 16, 3)
        assert len({round(s.norm().item(), 9) for s in SX}) == 7  # all different


def test_osnap_is_its_dense_matrix(chapter, g):
    X = normal(10, 3, g=g)
    rows = torch.stack([torch.randint(4, (5, 10), generator=g) + 4 * j for j in range(3)], 1)
    sign = chapter.signs(5, 3, 10, g=g)
    SX, S = chapter.apply_osnap(X, rows, sign, 12), dense_columns(rows, sign, 12)
    assert_close(SX, S @ X)
    assert not torch.allclose(SX, math.sqrt(3) * S @ X)  # the factor 1/√s is lost


@pytest.mark.parametrize("s", [1, 2, 4])
def test_osnap_has_s_nonzeros_a_column_one_in_each_block(chapter, g, s):
    S = chapter.osnap(torch.eye(6, dtype=torch.float64), 8, 3000, g, s=s)
    blocks = S.view(3000, s, 8 // s, 6)
    assert torch.equal((blocks != 0).sum(2), torch.ones(3000, s, 6, dtype=torch.long))
    assert_close(S.abs().amax((1, 2)), torch.full((3000,), s**-0.5, dtype=torch.float64))
    assert_close((S != 0).double().mean((0, 2)), torch.full((8,), s / 8, dtype=torch.float64), rtol=0, atol=0.02)
    assert S.sum((0, 1)).abs().max() / 3000 < 0.1  # signs balance
    assert_close(enumerated(S), torch.eye(6, dtype=torch.float64), rtol=0, atol=0.06)
    with pytest.raises(ValueError, match="m must be a multiple of s = 3; got 8"):
        chapter.osnap(torch.eye(6), 8, 1, g, s=3)


def test_countsketch_is_scipys(chapter, g):
    X = normal(20, 3, g=g)
    S = scipy.linalg._sketches.cwt_matrix(6, 20, rng=np.random.default_rng(3)).tocsc()
    rows, sign = torch.from_numpy(S.indices.astype(np.int64)), torch.from_numpy(S.data.astype(float))
    theirs = scipy.linalg.clarkson_woodruff_transform(X.numpy(), 6, rng=np.random.default_rng(3))
    assert_close(chapter.apply_osnap(X, rows[None, None], sign[None, None], 6)[0], torch.from_numpy(theirs))


def test_the_gaussian_sketch_has_the_law_of_a_dense_one(chapter, g):
    X = normal(30, 3, g=g)
    ours = chapter.gaussian(X, 4, 4000, g)
    dense = normal(4000, 4, 30, g=g) / 2 @ X
    assert_close(enumerated(ours), X.mT @ X, rtol=0, atol=0.1 * X.square().sum().item())
    for f in (lambda s: s[:, 0, 0], lambda s: s[:, 1, 2], lambda s: (s[:, :, 0] * s[:, :, 1]).sum(1)):
        assert stats.ks_2samp(f(ours).numpy(), f(dense).numpy()).pvalue > 0.01
    assert stats.kstest(ours[:, 2, 1].numpy(), stats.norm(0, X[:, 1].norm().item() / 2).cdf).pvalue > 0.01


def test_leverage_scores_are_the_hat_matrixs_diagonal_over_d(chapter, g):
    A = normal(12, 3, g=g)
    hat = A @ torch.linalg.inv(A.T @ A) @ A.T
    assert_close(chapter.leverage(A), hat.diagonal() / 3)


def test_sampled_rows_are_weighted_to_be_unbiased(chapter, g):
    X = normal(5, 2, g=g)
    p = torch.tensor([0.1, 0.4, 0.2, 0.25, 0.05], dtype=torch.float64)
    SX = chapter.sample_rows(X, 3, 20_000, g, p)
    assert SX.shape == (20_000, 3, 2)
    allowed = X / (3 * p[:, None]).sqrt()
    distance = (SX[:, :, None] - allowed).abs().sum(-1)  # (draws, 3, 5)
    assert distance.amin(-1).max() < 1e-12
    counts = distance.argmin(-1).flatten().bincount() / 60_000
    assert_close(counts.double(), p, rtol=0, atol=0.01)
    assert_close(enumerated(SX), X.mT @ X, rtol=0, atol=0.15)


def test_tensor_srht_is_the_kronecker_matrix_and_the_other_order_is_told_apart(chapter, g):
    A1, A2, b = normal(4, 2, g=g), normal(8, 3, g=g), normal(32, g=g)
    D1, D2 = chapter.signs(5, 4, g=g), chapter.signs(5, 8, g=g)
    i, j = torch.randint(4, (5, 7), generator=g), torch.randint(8, (5, 7), generator=g)
    H4, H8 = (torch.from_numpy(scipy.linalg.hadamard(k).astype(float)) for k in (4, 8))
    S = torch.stack([torch.kron(H4 * u, H8 * v)[8 * k + q] for u, v, k, q in zip(D1, D2, i, j, strict=True)])
    SX = chapter.apply_tensor_srht(A1, A2, b, D1, D2, i, j)
    assert_close(SX, S / math.sqrt(7) @ torch.cat([torch.kron(A1, A2), b[:, None]], 1))
    swapped = S / math.sqrt(7) @ torch.cat([torch.kron(A1, A2), b.view(8, 4).T.reshape(-1, 1)], 1)
    assert not torch.allclose(SX, swapped)


def test_random_tensor_srhts_are_unbiased_and_solve_consistent_systems(chapter, g):
    A1, A2 = normal(4, 2, g=g), normal(8, 2, g=g)
    A, x = torch.kron(A1, A2), normal(4, g=g)
    SX = chapter.tensor_srht(A1, A2, A @ x, 12, 3000, g)
    assert SX.shape == (3000, 12, 5)
    full = torch.cat([A, (A @ x)[:, None]], 1)
    assert_close(enumerated(SX), full.mT @ full, rtol=0, atol=0.06 * full.square().sum().item())
    fine = torch.linalg.matrix_rank(SX[..., :-1]) == 4
    assert fine.double().mean() > 0.5
    assert_close(chapter.solve(SX[fine]), x.expand(int(fine.sum()), -1), rtol=0, atol=1e-8)
    pairs = chapter.tensor_srht(torch.eye(4).double(), torch.eye(8).double(), torch.ones(32).double(), 9, 500, g)
    assert len({tuple(row) for row in pairs[:, :, :-1].sign().flatten(0, 1)[:200].int().tolist()}) > 100


@pytest.mark.parametrize("name", ["srht", "osnap", "gaussian", "leverage"])
def test_a_consistent_system_is_solved_exactly(chapter, g, name):
    A, x = normal(64, 3, g=g), normal(3, g=g)
    X = torch.cat([A, (A @ x)[:, None]], 1)
    makers = {"leverage": lambda *a: chapter.sample_rows(*a, p=chapter.leverage(A))}
    SX = makers.get(name, getattr(chapter, name))(X, 24, 5, g)
    assert_close(chapter.solve(SX), x.expand(5, -1), rtol=0, atol=1e-11)


# the spike instance and its closed forms


def test_the_spike_instance_has_the_solution_residual_and_condition_it_claims(chapter):
    assert_close(chapter.spike(40, 8).X, spike_by_hand(40, 8))
    for copies, x_star in ((1, 0.0), (4, 0.0), (2, 1.5)):
        p = chapter.spike(96, 8, copies=copies, x_star=x_star)
        known = chapter.problem(p.X[:, :8], p.X[:, 8])
        assert_close(p.x_star, known.x_star, rtol=0, atol=1e-12)
        assert p.unit == pytest.approx(known.unit, rel=1e-12)
        assert chapter.leverage(p.X[:, :8]).max().item() * 8 == pytest.approx(1 / copies)
        assert (p.X[:, 8] - p.X[:, :8] @ p.x_star).abs().max() == pytest.approx((8 * copies) ** -0.5)
    with pytest.raises(ValueError, match="needs n ≥ 2 d copies = 64; got 63"):
        chapter.spike(63, 8, copies=4)


def test_the_gaussian_instance_has_orthonormal_columns(chapter, g):
    p = chapter.gaussian_instance(50, 4, g)
    assert_close(p.X[:, :4].T @ p.X[:, :4], torch.eye(4, dtype=torch.float64))
    assert 3 < (p.X[:, 4] - p.X[:, :4] @ p.x_star).norm() < 11


@pytest.mark.parametrize("m", [6, 20, 200])
def test_srht_on_the_spike_is_its_closed_form_with_rows_missing_or_not(chapter, g, m):
    d, n = 8, 64
    D, rows = chapter.signs(30, n, g=g), torch.randint(n, (30, m), generator=g)
    N = torch.stack([r.bincount(minlength=2 * d) for r in rows % (2 * d)]).double()
    known = by_numpy(dense_srht(D, rows) @ spike_by_hand(n, d))
    assert_close(chapter.residue_solution(N, D[:, : 2 * d]), known, rtol=0, atol=1e-11)


def test_the_search_on_the_spike_by_residues_has_the_law_of_srht(chapter, g):
    ours = chapter.srht_on_spike(8, [64, 160], 4000, g)
    p = chapter.spike(16, 8)
    dense = chapter.nested_theta(chapter.srht(p.X, 160, 4000, g), [64, 160], p)
    for k in range(2):
        assert stats.ks_2samp(ours[:, k].numpy(), dense[:, k].numpy()).pvalue > 0.01
    assert np.corrcoef(ours.T.numpy())[0, 1] > 0.3  # nested, not drawn anew


@pytest.mark.parametrize("m", [5, 30, 300])
def test_countsketch_on_the_spike_is_its_closed_form_with_shared_buckets_or_not(chapter, g, m):
    d, n = 8, 40
    bucket, sign = torch.randint(m, (30, n), generator=g), chapter.signs(30, n, g=g)
    x, c = chapter.bucket_solution(bucket[:, : 2 * d], sign[:, : 2 * d])
    S = dense_columns(bucket[:, None], sign[:, None], max(m, d))
    assert_close(x, by_numpy(S @ spike_by_hand(n, d)), rtol=0, atol=1e-12)
    counts = [[sum(int(b) == int(own) for b in row[:d]) for own in row[:d]] for row in bucket]
    assert_close(c, torch.tensor(counts, dtype=torch.float64))


def test_the_share_of_draws_that_collide_is_the_birthday_formulas(chapter, g):
    d, ms = 16, [64, 256, 2432]
    thetas, deficient = chapter.countsketch_on_spike(d, ms, 4000, g)
    for k, m in enumerate(ms):
        no_pair = math.exp(sum(math.log1p(-i / m) for i in range(d)))  # no two identity rows meet
        assert deficient[:, k].double().mean().item() == pytest.approx(1 - no_pair, abs=0.03)
    assert (thetas[:, 2] > 0.5).double().mean().item() == pytest.approx(1 - math.exp(-(d**2) / ms[2]), abs=0.02)
    assert thetas[:, 0].median().item() == pytest.approx(1, abs=1e-12)
    assert set((thetas[:, 2] * 12).round().int().tolist()) <= {0, 4, 6, 8, 12, 18, 24, 36}


# the search


def test_the_grid_starts_and_ends_where_it_says(chapter):
    assert chapter.grid(8, 8, 16) == [64, 76, 91, 108, 128]
    ms = chapter.grid(32, 16, 64)
    assert (ms[0], ms[-1], len(ms)) == (512, 2048, 9)


def test_the_smallest_m_is_interpolated_between_the_first_two_stops_around_delta(chapter):
    ms = [10, 20, 40, 80]
    share = torch.tensor(
        [[0.5, 0.3, 0.0, 0.0], [0.05, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5], [0.5, 0.1, 0.4, 0.0], [0.9, 0.8, 0.5, 0.0]],
        dtype=torch.float64,
    )
    known = torch.tensor([20 * 2 ** (2 / 3), 10, math.inf, 20, 40 * 2**0.8], dtype=torch.float64)
    assert_close(chapter.smallest_m(share, ms), known)
    assert chapter.smallest_m(share[0], ms, delta=0.3).item() == pytest.approx(20)


def test_the_slope_is_numpys(chapter, g):
    x, y = normal(6, g=g), normal(3, 6, g=g)
    known = [np.polyfit(x.numpy(), row.numpy(), 1)[0] for row in y]
    assert_close(chapter.slope(x, y), torch.tensor(known, dtype=torch.float64))


def test_bootstrapped_slopes_find_a_known_power_and_its_uncertainty(chapter, g):
    dims = (8, 16, 32, 64)
    grids = [chapter.grid(d, 8, 256) for d in dims]
    thetas = []
    for d, ms in zip(dims, grids, strict=True):  # Θ = 0.5 |Z| (d^1.5 / m)^½ ...
        z = normal(400, g=g).abs()[:, None]
        thetas.append(0.5 * z * (2 * d**1.5 / torch.tensor(ms, dtype=torch.float64)).sqrt())
    best, slopes = chapter.bootstrap_slopes(dims, thetas, grids, g)
    quantile = stats.norm.ppf(0.95) ** 2
    assert slopes.shape == (1000,)
    for m, d in zip(best.tolist(), dims, strict=True):
        assert m == pytest.approx(max(2 * d**1.5 * quantile, 8 * d), rel=0.3)
    log_d = torch.tensor(dims, dtype=torch.float64).log()
    assert slopes.mean().item() == pytest.approx(chapter.slope(log_d, best.log()).item(), abs=0.05)
    assert 0.01 < slopes.std() < 0.15


def test_the_error_of_a_gaussian_sketch_is_the_inverse_wisharts(chapter, g):
    p = chapter.gaussian_instance(40, 4, g)
    e = (chapter.solve(chapter.gaussian(p.X, 20, 4000, g)) - p.x_star) / (p.unit * 2)
    squares = e.square().sum(1)
    error = squares.std().item() / math.sqrt(4000)
    assert abs(squares.mean().item() - 4 / 15) < 3 * error < abs(squares.mean().item() - 4 / 20)
