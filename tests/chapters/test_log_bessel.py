"""The method of `log-bessel` against mpmath, SciPy, closed forms, derivatives and mistakes."""

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor
from torch.testing import assert_close


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def truth(f, v: Tensor, x: Tensor) -> Tensor:
    """The logarithm of one of mpmath's Bessel functions, to 30 digits, rounded once."""
    with mpmath.workdps(30):
        return double(*(float(mpmath.log(f(a, b))) for a, b in zip(v.tolist(), x.tolist(), strict=True)))


def units(values: Tensor, known: Tensor, v: Tensor, x: Tensor) -> float:
    """The largest absolute error in units of ε max(1, |log|, v, x)."""
    size = torch.stack([torch.ones_like(x), known.abs(), v, x]).amax(0)
    return ((values - known).abs() / (torch.finfo(torch.float64).eps * size)).max().item()


HANKEL = double(0, 0.5, 2, 3), double(1500, 2000, 5000, 1600)  # (v, x)
SHORT = double(1, 8, 15), double(40, 200, 300)
DEBYE = {
    4: (double(200, 170, 400), double(5, 500, 90)),
    6: (double(60, 100, 158), double(3, 90, 200)),
    9: (double(21, 40, 55), double(2, 37, 80)),
    13: (double(13, 16, 20), double(1, 21, 35)),
}
NEAR = double(0, 0.4, 3, 12, 7.5), double(0.01, 5, 18, 15, 0.3)


@pytest.mark.parametrize(("sign", "f"), [(1, mpmath.besseli), (-1, mpmath.besselk)])
def test_each_expansion_is_exact_to_rounding_in_its_region(chapter, sign, f):
    for (v, x), K in ((HANKEL, 3), (SHORT, 20)):
        assert units(chapter.large_argument(v, x, sign, K), truth(f, v, x), v, x) < 16
    for K, (v, x) in DEBYE.items():
        assert units(chapter.large_order(v, x, sign, K), truth(f, v, x), v, x) < 16


def test_the_series_is_exact_near_the_origin_and_the_integral_to_nine_digits(chapter):
    v, x = NEAR
    assert units(chapter.series(v, x), truth(mpmath.besseli, v, x), v, x) < 16
    assert_close(chapter.integral(v, x), truth(mpmath.besselk, v, x), rtol=0, atol=1e-8)


def test_the_integral_converges_like_simpsons_rule(chapter):
    v, x = double(3.0, 8.0), double(2.0, 20.0)
    known = truth(mpmath.besselk, v, x)
    coarse, fine = ((chapter.integral(v, x, n) - known).abs() for n in (80, 160))
    assert (fine < coarse / 10).all() and (coarse < 1e-3).all()


def test_an_expansion_with_one_term_less_is_told_apart(chapter):
    v, x = DEBYE[13]
    known = truth(mpmath.besseli, v, x)
    errors = [(chapter.large_order(v, x, 1, K) - known).abs().max() for K in (1, 3, 6, 9)]
    assert all(b < a / 5 for a, b in pairwise(errors))
    v, x = SHORT
    known = truth(mpmath.besselk, v, x)
    errors = [(chapter.large_argument(v, x, -1, K) - known).abs().max() for K in (2, 4, 8, 12)]
    assert all(b < a / 2 for a, b in pairwise(errors))


def test_a_sum_that_turns_negative_is_taken_by_its_size(chapter):
    ten, small = double(10), double(0.005)
    by_hand = 10 - 0.5 * math.log(20 * math.pi) + math.log(399 / 80 - 1)
    assert chapter.large_argument(ten, ten, 1, 1).item() == pytest.approx(by_hand, rel=1e-14)
    t = math.sqrt(0.5)
    eta = math.sqrt(2) - math.log(1 + math.sqrt(2))
    by_hand = 0.5 * math.log(100 * math.pi) - 0.005 * eta - 0.25 * math.log(2)
    by_hand += math.log((3 * t - 5 * t**3) / 24 / 0.005 - 1)
    assert chapter.large_order(small, small, -1, 1).item() == pytest.approx(by_hand, rel=1e-13)


def test_the_lengths_are_the_papers(chapter):
    assert (chapter.LENGTHS, chapter.TERMS, chapter.PANELS) == ((3, 20, 4, 6, 9, 13), 41, 600)
    assert chapter.REGIONS == ("μ₃", "μ₂₀", "U₄", "U₆", "U₉", "U₁₃", "near the origin")


def test_the_first_polynomials_are_the_published_ones(chapter):
    rows = chapter.debye_polynomials(3)
    known = [[1], [3 / 24, -5 / 24], [81 / 1152, -462 / 1152, 385 / 1152]]
    known += [[30375 / 414720, -369603 / 414720, 765765 / 414720, -425425 / 414720]]
    assert rows == known
    assert len(chapter.Debye.ROWS) == 14


@pytest.mark.parametrize(
    ("v", "x", "row"),
    [
        (3, 1401, 0), (3.06, 1401, 1), (3.2, 1399, 0), (3.2, 1100, 1), (3.1, 1300, 1), (100, 300_000, 0),
        (110, 300_000, 1),
        (15, 31, 1), (15.4, 31, 5), (15, 29, 5), (17, 60, 1), (18, 59, 4), (18.1, 60, 4), (17, 59, 4),
        (164, 1, 2), (163, 1, 3), (163, 275, 2), (163, 274, 3), (100, 275, 2),
        (57, 1, 3), (56.9, 1, 4), (56.9, 85, 3), (56.9, 84, 4),
        (20.2, 1, 4), (20.1, 1, 5), (20.1, 36, 4), (20.1, 35, 5),
        (12.7, 1, 5), (12.6, 1, 6), (12.6, 20, 5), (12.6, 19, 6), (0.6, 25, 6), (0.8, 25, 5), (0, 25, 6), (0, 31, 1),
        (0.69, 29.9, 6), (0.71, 19.6, 6),
    ],
)  # fmt: skip
def test_the_table_sends_points_beside_its_edges_to_the_right_row(chapter, v, x, row):
    assert chapter.region(double(v), double(x)).item() == row


@pytest.mark.parametrize(
    ("v", "x", "row"),
    [
        (1.67, 1401, 0), (1.68, 1401, 1), (44.7, 1e6, 0), (44.8, 1e6, 1), (44.7, 1001, 1), (44.7, 999, 2),
        (7.9, 31.3, 1), (7.9, 31.1, 5), (10, 40, 4), (0.5, 31, 1), (12, 70, 4), (14, 90, 3),
        (0, 25, 6), (20, 300, 1), (25, 300, 2),
    ],
)  # fmt: skip
def test_the_guards_send_on_what_hankels_terms_do_not_serve(chapter, v, x, row):
    assert chapter.region(double(v), double(x), guarded=True).item() == row


def test_the_guards_mend_the_points_where_the_printed_table_loses_digits(chapter):
    v, x = double(93.8, 25.8, 15.3), double(1528, 33181, 31)
    known, rows = truth(mpmath.besseli, v, x), chapter.region(v, x, guarded=True)
    assert units(chapter.log_i(v, x, rows), known, v, x) < 16 < units(chapter.log_i(v, x), known, v, x)


def test_scipy_agrees_where_it_does_not_fail(chapter, g):
    v, x = (
        30 * torch.rand(300, generator=g, dtype=torch.float64),
        600 * torch.rand(300, generator=g, dtype=torch.float64),
    )
    i, k = (torch.from_numpy(np.log(f(v.numpy(), x.numpy()))) for f in (special.ive, special.kve))
    assert_close(chapter.log_i(v, x), i + x, rtol=1e-11, atol=1e-11)
    assert_close(chapter.log_k(v, x), k - x, rtol=1e-11, atol=5e-9)


def test_the_wronskian_holds_at_orders_and_arguments_where_scipy_has_no_number(chapter):
    v, x = double(300, 2000, 5e4, 1e5), double(7, 1e3, 10, 3e5)
    rows = chapter.region(v, x)
    i, k = chapter.log_i(v, x, rows), chapter.log_k(v, x, rows)
    i_next, k_next = chapter.log_i(v + 1, x, rows), chapter.log_k(v + 1, x, rows)
    assert_close(torch.logaddexp(i + k_next, i_next + k), -x.log(), rtol=0, atol=1e-9)


def test_special_values_and_arguments_outside(chapter):
    v, x = double(0, 1, 0, 2), double(0, 0, -1, -1)
    i, k = chapter.log_i(v, x), chapter.log_k(v, x)
    assert i[0] == 0 and i[1] == -math.inf and i[2:].isnan().all()
    assert (k[:2] == math.inf).all() and k[2:].isnan().all()


def test_shapes_are_broadcast(chapter):
    v, x = double(1, 30)[:, None], double(0.5, 20, 400)
    both = chapter.log_i(v, x)
    assert both.shape == (2, 3)
    assert both[1, 2] == chapter.log_i(double(30), double(400))[0]
    assert chapter.log_k(torch.tensor(2.0).double(), torch.tensor(3.0).double()).shape == ()


@pytest.mark.parametrize(
    ("v", "x", "said"),
    [
        (torch.ones(1), torch.ones(1), "v and x must be float64; got torch.float32"),
        (double(-1, 2), double(1, 1), "The order v must not be negative; the smallest is -1"),
        (double(1).requires_grad_(), double(1), "no gradient in the order v"),
    ],
)
def test_wrong_input_is_named(chapter, v, x, said):
    for f in (chapter.log_i, chapter.log_k):
        with pytest.raises(ValueError, match=said):
            f(v, x)


@pytest.mark.parametrize("name", ["log_i", "log_k"])
def test_gradients_agree_with_differences_twice(chapter, name):
    f = getattr(chapter, name)
    v, x = double(0, 0.3, 1, 4, 30, 300, 20), double(0.7, 45, 3, 25, 10, 80, 4000).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: f(v, x), x, eps=1e-4, atol=1e-5, rtol=1e-4)
    assert torch.autograd.gradgradcheck(lambda x: f(v, x), x, eps=1e-3, atol=1e-4, rtol=1e-2)


def test_the_gradient_beside_an_edge_takes_both_orders_from_one_row(chapter):
    x = double(40, 40, 200).requires_grad_()
    v = double(15.39, 20.15, 56.99)
    (slope,) = torch.autograd.grad(chapter.log_i(v, x).sum(), x)
    known = [
        float(mpmath.besseli(a, b, derivative=1) / mpmath.besseli(a, b))
        for a, b in zip(v.tolist(), x.tolist(), strict=True)
    ]
    assert_close(slope, double(*known), rtol=1e-12, atol=0)


def test_the_gradient_of_log_k_does_not_mix_the_integral_with_an_expansion(chapter):
    v, x = double(1.2, 0.75, 12.8), double(25, 25, 0.5).requires_grad_()
    (slope,) = torch.autograd.grad(chapter.log_k(v, x).sum(), x)
    known = [
        -a / b - float(mpmath.besselk(a - 1, b) / mpmath.besselk(a, b))
        for a, b in zip(v.tolist(), x.tolist(), strict=True)
    ]
    assert_close(slope, double(*known), rtol=1e-13, atol=0)


def test_the_mean_length_takes_both_orders_from_the_row_of_the_smaller(chapter):
    v, kappa = double(93.8), double(1528)
    one, other = (torch.tensor([row]) for row in (1, 2))
    lengths = {row: (chapter.log_i(v + 1, kappa, row) - chapter.log_i(v, kappa, one)).exp() for row in (one, other)}
    assert (lengths[one] - lengths[other]).abs() > 1e-9
    assert_close(chapter.mean_length(2 * (v + 1), kappa), lengths[one], rtol=1e-12, atol=0)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_branch_free_version_is_the_readable_one(chapter, g, sign):
    u = torch.rand(2, 3000, generator=g, dtype=torch.float64)
    v, x = 10 ** (-2 + 6 * u)
    readable = (chapter.log_i if sign == 1 else chapter.log_k)(v, x)
    assert units(chapter.fused(v, x, sign), readable, v, x) < 8
    values, rows = chapter.branch_free(v, x, sign)
    assert set(rows.tolist()) == set(range(7))
    assert units(values[rows < 6], readable[rows < 6], v[rows < 6], x[rows < 6]) < 8


def test_the_mean_length_in_three_dimensions_is_the_langevin_function(chapter):
    kappa = double(0.5, 3, 25, 100, 2000)
    three = torch.full_like(kappa, 3)
    assert_close(chapter.mean_length(three, kappa), 1 / kappa.tanh() - 1 / kappa, rtol=1e-10, atol=0)


def test_the_fit_solves_the_likelihood_equation_and_newton_improves_on_the_start(chapter):
    p, R = double(3, 50, 2048, 32768), double(0.6, 0.4, 0.7, 0.95)
    kappas = chapter.fit_kappa(p, R)
    gaps = [(chapter.mean_length(p, k) - R).abs() for k in kappas]
    assert len(kappas) == 3 and (gaps[1] < gaps[0]).all() and (gaps[2] < 1e-7).all()
    more = chapter.fit_kappa(p, R, steps=6)[-1]
    for factor in (0.99, 1.01):
        assert (chapter.log_likelihood(p, more, R) > chapter.log_likelihood(p, factor * more, R)).all()


def test_the_start_is_banerjees(chapter):
    assert chapter.fit_kappa(double(10), double(0.5), steps=0)[0].item() == pytest.approx(0.5 * (10 - 0.25) / 0.75)


def test_the_likelihood_is_scipys_where_scipy_has_one(chapter):
    mean = np.zeros(10)
    mean[0] = 1.0
    law = stats.vonmises_fisher(mean, 20.0)
    points = law.rvs(50, random_state=np.random.default_rng(0))
    R = torch.tensor(points.mean(0) @ mean)[None]
    assert chapter.log_likelihood(double(10), double(20), R).item() == pytest.approx(
        law.logpdf(points).mean(), rel=1e-10
    )


def test_a_mean_length_of_one_is_refused(chapter):
    with pytest.raises(ValueError, match="must lie strictly between 0 and 1"):
        chapter.fit_kappa(double(10), double(1.0))


def test_one_wrong_sign_in_a_polynomial_and_swapped_lengths_are_told_apart(chapter, monkeypatch):
    v, x = DEBYE[6]
    known = truth(mpmath.besselk, v, x)
    wrong = [list(row) for row in chapter.Debye.ROWS]
    wrong[1][1] = -wrong[1][1]  # u_1 = (3t + 5t³)/24
    monkeypatch.setattr(chapter.Debye, "ROWS", wrong)
    assert units(chapter.log_k(v, x), known, v, x) > 1e9
    monkeypatch.undo()
    assert units(chapter.log_k(v, x), known, v, x) < 16
    monkeypatch.setattr(chapter, "LENGTHS", (3, 20, 13, 9, 6, 4))  # the shortest sums nearest to the origin
    v, x = DEBYE[13]
    assert units(chapter.log_k(v, x), truth(mpmath.besselk, v, x), v, x) > 1e4
