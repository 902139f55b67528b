"""The method of `compositional-partial-correlation` against regressions, pseudoinverses, 50 digits and mistakes."""

import math

import mpmath
import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf, ledoit_wolf_shrinkage
from torch import Tensor
from torch.testing import assert_close

FAR = 1e-3  # a mistake must move a result at least this far


def composition(g: torch.Generator, *shape: int) -> Tensor:
    """Correlated log-normal parts, closed; made without the chapter."""
    D = shape[-1]
    mix = torch.eye(D, dtype=torch.float64) + 0.4 * torch.randn(D, D, generator=g, dtype=torch.float64)
    w = (torch.randn(*shape, generator=g, dtype=torch.float64) @ mix).exp()
    return w / w.sum(-1, keepdim=True)


def clr_by_hand(X: Tensor) -> np.ndarray:
    L = np.log(X.numpy())
    return L - L.mean(-1, keepdims=True)


def ratios(X: Tensor, r: int) -> np.ndarray:
    return np.log(X.numpy() / X.numpy()[:, [r]])


def apart(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > FAR)


def test_the_precision_is_the_pseudoinverse_of_the_clr_covariance(chapter, g):
    X = composition(g, 40, 6)
    known = np.linalg.pinv(np.cov(clr_by_hand(X).T), rcond=1e-12, hermitian=True)
    assert_close(chapter.precision(X), torch.from_numpy(known), rtol=1e-11, atol=1e-11)


def test_the_precision_holds_in_fifty_digits_for_parts_of_very_unequal_variance(chapter, g):
    spread = torch.tensor([0.003, 0.05, 1.0, 2.0], dtype=torch.float64)
    X = (spread * torch.randn(15, 4, generator=g, dtype=torch.float64)).exp()
    with mpmath.workdps(50):
        A = mpmath.matrix([[mpmath.log(row[k]) - mpmath.log(row[0]) for k in (1, 2, 3)] for row in X.tolist()])
        means = [mpmath.fsum(A[:, k]) / 15 for k in range(3)]
        A = mpmath.matrix([[A[i, k] - means[k] for k in range(3)] for i in range(15)])
        known = ((A.T * A) / 14) ** -1
        inner = torch.tensor([[float(known[i, k]) for k in range(3)] for i in range(3)], dtype=torch.float64)
    assert_close(chapter.precision(X)[1:, 1:], inner, rtol=1e-11, atol=0)


def test_every_reference_and_the_contrasts_give_the_same_matrix_whose_rows_sum_to_zero(chapter, g):
    X = composition(g, 3, 30, 7)
    P = chapter.precision(X)
    assert P.sum(-1).abs().max() < 1e-10 * P.abs().max()
    assert_close(P, P.mT, rtol=1e-10, atol=1e-10)
    for route in [*(chapter.alr_precision(X, r) for r in range(7)), chapter.ilr_precision(X)]:
        assert_close(route, P, rtol=1e-9, atol=1e-9)


def test_the_load_is_scale_free(chapter, g):
    X = composition(g, 30, 5)
    tiny = X.log().mul(1e-6).exp()
    assert_close(chapter.precision(tiny) * 1e-12, chapter.precision(X), rtol=1e-6, atol=1e-8)


def test_covariance_is_numpys(chapter, g):
    A = torch.randn(20, 3, generator=g, dtype=torch.float64)
    assert_close(chapter.covariance(A), torch.from_numpy(np.cov(A.numpy().T)))
    assert_close(chapter.correlation(chapter.covariance(A)), torch.from_numpy(np.corrcoef(A.numpy().T)))


def test_residuals_variances_and_r_squared_are_those_of_statsmodels(chapter, g):
    sm = pytest.importorskip("statsmodels.api")
    X, i = composition(g, 40, 6), 2
    v = chapter.partial(chapter.precision(X)).variance
    for r in (0, 1, 5):
        L = ratios(X, r)
        fit = sm.OLS(L[:, i], sm.add_constant(np.delete(L, [i, r], axis=1))).fit()
        assert_close(chapter.residuals(X, [i], r)[:, 0], torch.from_numpy(fit.resid), rtol=0, atol=1e-11)
        assert v[i].item() == pytest.approx(fit.resid.var(ddof=1), rel=1e-10)
        at = [k for k in range(6) if k != r].index(i)
        assert chapter.r_squared(X, v, r)[at].item() == pytest.approx(fit.rsquared, rel=1e-10)
        assert abs(v[i].item() / fit.mse_resid - 1) > FAR  # the unbiased error variance is another number


def test_partial_correlations_and_their_t_are_those_of_statsmodels(chapter, g):
    sm = pytest.importorskip("statsmodels.api")
    X = composition(g, 25, 6)
    r = chapter.partial(chapter.precision(X)).correlation
    for i, j, ref in ((0, 1, 2), (4, 2, 5), (5, 3, 0)):
        L = ratios(X, ref)
        rest = np.delete(L, [i, j, ref], axis=1)
        e = [sm.OLS(L[:, k], sm.add_constant(rest)).fit().resid for k in (i, j)]
        assert r[i, j].item() == pytest.approx(np.corrcoef(e)[0, 1], rel=1e-9)
        pair = chapter.residuals(X, [i, j], ref)
        assert_close(pair, torch.from_numpy(np.stack(e, 1)), rtol=0, atol=1e-11)
        fit = sm.OLS(L[:, i], sm.add_constant(np.column_stack([L[:, j], rest]))).fit()
        t, nu = chapter.t_statistic(r[i, j], 25, 6)
        assert t.item() == pytest.approx(fit.tvalues[1], rel=1e-9)
        assert nu == fit.df_resid


def test_row_sizes_units_of_parts_and_their_order_do_not_matter(chapter, g):
    X = composition(g, 30, 6)
    row = torch.randn(30, 1, generator=g, dtype=torch.float64).mul(3).exp()
    part = torch.randn(6, generator=g, dtype=torch.float64).exp()
    order = torch.randperm(6, generator=g)
    P = chapter.precision(X)
    assert_close(chapter.precision(X * row), P, rtol=1e-8, atol=1e-8)
    assert_close(chapter.precision(X * part), P, rtol=1e-8, atol=1e-8)
    assert_close(chapter.precision(X[:, order]), P[order][:, order], rtol=1e-9, atol=1e-9)


def test_a_batch_is_its_tables(chapter, g):
    X = composition(g, 4, 30, 5)
    whole, single = chapter.partial(chapter.precision(X)), chapter.partial(chapter.precision(X[2]))
    assert_close(whole.variance[2], single.variance)
    assert_close(whole.correlation[2], single.correlation)
    assert_close(chapter.residuals(X, [0, 3], 1)[2], chapter.residuals(X[2], [0, 3], 1), rtol=0, atol=1e-11)
    closed = chapter.closed_precision(torch.stack([chapter.chain(5), torch.eye(5, dtype=torch.float64)]))
    assert_close(closed[0], chapter.closed_precision(chapter.chain(5)))
    assert_close(chapter.precision(X.unflatten(0, (2, 2))).flatten(0, 1), chapter.precision(X))


def test_a_ratio_far_steadier_than_the_others_is_not_taken_for_a_fixed_one(chapter, g):
    X = composition(g, 60, 20)
    spread = 3e-5 * torch.randn(60, generator=g, dtype=torch.float64)
    X[:, 1] = X[:, 0] * spread.exp()
    P = chapter.precision(X)
    assert P.abs().max() > 1e8  # as large as the ratio's variance is small
    assert_close(P, chapter.alr_precision(X, 0), rtol=1e-4, atol=1e-4)


def test_partial_reads_a_matrix_of_three_as_the_textbook_does(chapter):
    S = torch.tensor([[2.0, 0.6, -0.3], [0.6, 1.0, 0.4], [-0.3, 0.4, 1.5]], dtype=torch.float64)
    found = chapter.partial(torch.linalg.inv(S))
    a, b, c = (S[i, j] / (S[i, i] * S[j, j]).sqrt() for i, j in ((0, 1), (0, 2), (1, 2)))
    assert_close(found.correlation[0, 1], (a - b * c) / ((1 - b * b) * (1 - c * c)).sqrt())
    schur = S[0, 0] - S[0, 1:] @ torch.linalg.inv(S[1:, 1:]) @ S[1:, 0]
    assert_close(found.variance[0], schur)
    assert_close(found.correlation.diagonal(), torch.ones(3, dtype=torch.float64))


def test_closure_of_a_basis_is_the_pseudoinverse_of_its_centred_covariance(chapter, g):
    K = chapter.random_graph(7, g)
    G = np.eye(7) - 1 / 7
    known = np.linalg.pinv(G @ np.linalg.inv(K.numpy()) @ G, rcond=1e-12, hermitian=True)
    assert_close(chapter.closed_precision(K), torch.from_numpy(known), rtol=1e-9, atol=1e-11)
    K1 = K.sum(-1)
    assert apart(K - K1[:, None] * K1 / 7, torch.from_numpy(known))  # D in place of 1ᵀK1


@pytest.mark.parametrize("D", [3, 8, 50])
def test_independent_amounts_of_equal_variance_get_one_over_d_minus_one(chapter, D):
    P = chapter.closed_precision(4 * torch.eye(D, dtype=torch.float64))
    r = chapter.partial(P).correlation
    assert_close(r[0, 1:], torch.full((D - 1,), 1 / (D - 1), dtype=torch.float64))


def test_unequal_variances_follow_the_closed_form(chapter):
    k = torch.tensor([4.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    r = chapter.partial(chapter.closed_precision(torch.diag(k))).correlation
    assert r[0, 1].item() == pytest.approx(1 / math.sqrt(7), rel=1e-12)
    assert r[1, 2].item() == pytest.approx(1 / 7, rel=1e-12)


def test_estimates_scatter_by_the_standard_error(chapter, g):
    n, D = 40, 6
    X = chapter.basis(torch.eye(D, dtype=torch.float64).expand(4000, D, D), n, g)
    z = chapter.partial(chapter.precision(X)).correlation[:, 0, 1].atanh()
    se = chapter.standard_error(n, D)
    assert z.std().item() == pytest.approx(se, rel=0.05)  # four of its own standard errors
    assert z.mean().item() == pytest.approx(math.atanh(1 / (D - 1)), abs=5 * se / math.sqrt(4000) + 0.005)
    assert chapter.standard_error(n, D) == pytest.approx(1 / math.sqrt(34))


def test_shrinking_agrees_with_scikit_learn_and_reaches_both_limits(chapter, g):
    X = composition(g, 20, 30)
    L = X.log().numpy()
    G = np.eye(30) - 1 / 30
    known = np.linalg.pinv(G @ ledoit_wolf(L)[0] @ G, rcond=1e-12, hermitian=True)
    found = chapter.shrunk_precision(X, float(ledoit_wolf_shrinkage(L)))
    assert_close(found, torch.from_numpy(known) * 19 / 20, rtol=1e-8, atol=1e-10)
    tall = composition(g, 40, 5)
    assert_close(chapter.shrunk_precision(tall, 0.0), chapter.precision(tall), rtol=1e-8, atol=1e-8)
    ends = chapter.partial(chapter.shrunk_precision(tall, 1.0)).correlation
    assert ends[0, 1].item() == pytest.approx(1 / 4, rel=1e-10)


def test_shrinking_does_not_see_row_sizes_but_would_without_closing(chapter, g):
    X = composition(g, 20, 30)
    size = torch.randn(20, 1, generator=g, dtype=torch.float64).exp()
    ours = chapter.shrunk_precision(X, 0.3)
    assert_close(chapter.shrunk_precision(X * size, 0.3), ours, rtol=1e-8, atol=1e-8)
    C = torch.from_numpy(np.cov((X * size).log().numpy().T))
    G = torch.eye(30, dtype=torch.float64) - 1 / 30
    open_ = chapter.invert(G @ (0.7 * C + 0.3 * C.diagonal().mean() * torch.eye(30, dtype=torch.float64)) @ G)
    assert apart(chapter.partial(open_).correlation, chapter.partial(ours).correlation)


def test_wrong_recipes_are_told_apart(chapter, g):
    X = composition(g, 40, 6)
    P, right = chapter.precision(X), chapter.partial(chapter.precision(X))
    S = torch.from_numpy(np.cov(clr_by_hand(X).T))
    assert apart(chapter.correlation(S), right.correlation)  # pairwise, not partial
    assert apart(-chapter.correlation(P), right.correlation)  # the sign of the diagonal too
    only_loaded = torch.linalg.inv(S + S.diagonal().mean() / 6)  # the load not taken away
    assert apart(chapter.partial(only_loaded).correlation, right.correlation)
    with_pair = torch.linalg.inv(torch.from_numpy(np.cov(ratios(X, 1)[:, [0, 2, 3, 4, 5]].T)))
    assert_close(chapter.partial(with_pair).correlation[1:, 1:], right.correlation[2:, 2:], rtol=1e-9, atol=1e-9)
    z = clr_by_hand(X)
    A = np.column_stack([np.ones(40), z[:, 2:]])
    e = z[:, :2] - A @ np.linalg.lstsq(A, z[:, :2], rcond=None)[0]
    assert np.corrcoef(e.T)[0, 1] == pytest.approx(-1)  # the pair recipe on clr columns


def test_the_chain_and_the_random_graphs_are_as_described(chapter, g):
    K = chapter.chain(4)
    assert_close(K.diagonal(1), torch.full((3,), -0.4, dtype=torch.float64))
    assert_close(K, K.mT)
    assert_close(K.diagonal(), torch.ones(4, dtype=torch.float64))
    assert K[0, 2] == K[0, 3] == 0
    graphs = torch.stack([chapter.random_graph(20, g) for _ in range(200)])
    assert_close(graphs, graphs.mT)
    assert_close(torch.linalg.eigvalsh(graphs)[:, 0], torch.full((200,), 0.3, dtype=torch.float64))
    beside = graphs[:, *torch.triu_indices(20, 20, 1)]
    edges = beside[beside != 0]
    assert_close(edges.abs(), torch.full_like(edges, 0.3))
    assert (beside != 0).double().mean().item() == pytest.approx(2 / 20, abs=0.008)  # 5 standard errors
    assert (edges > 0).double().mean().item() == pytest.approx(0.5, abs=0.045)


def test_amounts_have_the_covariance_and_the_means_asked_for(chapter, g):
    K = chapter.chain(4) + torch.diag(torch.tensor([0.0, 1.0, 0.5, 2.0], dtype=torch.float64))
    L = chapter.basis(K, 400_000, g).log()
    assert_close(torch.linalg.inv(L.T.cov()), K, rtol=0, atol=0.03)
    means = chapter.basis(K.expand(3000, 4, 4), 50, g).log().mean(1)
    assert means.abs().max() < 4 and means.min() < -2.8 and means.max() > 2.8
    assert means.std().item() == pytest.approx(math.sqrt(3 + torch.linalg.inv(K).trace().item() / 4 / 50), rel=0.02)
    closed = chapter.close(L[:10].exp())
    assert_close(closed.sum(-1), torch.ones(10, dtype=torch.float64))
    assert_close(closed[:, 0] / closed[:, 1], L[:10].exp()[:, 0] / L[:10].exp()[:, 1])


def test_melted_glass_follows_the_recipe(chapter, g):
    X = chapter.melt((200_000,), g)
    at = {oxide: k for k, oxide in enumerate(chapter.OXIDES)}
    assert_close(X.sum(-1), torch.full((200_000,), 99.9, dtype=torch.float64))
    for a, b, level, variance in (
        ("Sb", "P", 0.8 / 0.05, 2 * 0.35**2 + 2 * 0.05**2),
        ("Fe", "Ti", 5.5, 2 * 0.05**2),
        ("Ti", "P", 0.06 / 0.05, 0.3**2 + 0.35**2 + 2 * 0.05**2),
    ):
        ratio = (X[:, at[a]] / X[:, at[b]]).log()
        assert ratio.mean().item() == pytest.approx(math.log(level), abs=0.01)
        assert ratio.var().item() == pytest.approx(variance, rel=0.02)
    middle = X.median(0).values
    assert 66 < middle[at["Si"]] < 74 and 16 < middle[at["Na"]] < 19
    silicon = 68 + 9 * 0.65
    assert (X[:, at["Si"]] / X[:, at["Na"]]).log().mean().item() == pytest.approx(
        math.log(silicon / (18 * 0.99 + 9 * 0.05)), abs=0.01
    )
    steady = (X[:, at["Si"]] / X[:, at["Na"]]).log().var().item()
    soda, spar = 18 * 0.99 / 18.27, 5.85 / silicon - 0.45 / 18.27  # shares, to first order
    amounts = (68 * 0.03 / silicon) ** 2 + (spar * 0.15) ** 2 + (soda * 0.06) ** 2
    assert steady == pytest.approx(amounts + 2 * 0.01**2, rel=0.02)


def test_every_oxide_scatters_by_five_percent_but_silicon_and_sodium_by_one(chapter, g, monkeypatch):
    weighed = {name: (level, 0.0, holds) for name, (level, _, holds) in chapter.INGREDIENTS.items()}
    monkeypatch.setattr(chapter, "INGREDIENTS", weighed)
    X = chapter.melt((20_000,), g)
    others = [k for k, oxide in enumerate(chapter.OXIDES) if oxide not in ("Si", "Na")]
    si, na = (X[:, [chapter.OXIDES.index(oxide)]].log() for oxide in ("Si", "Na"))
    found = (X[:, others].log() - si).std(0)
    assert_close(found, torch.full((9,), math.hypot(0.05, 0.01), dtype=torch.float64), rtol=0.03, atol=0)
    assert (si - na).std().item() == pytest.approx(math.hypot(0.01, 0.01), rel=0.03)


def test_a_report_prints_the_last_digit_and_never_zero(chapter):
    X = torch.tensor([[70.26, 1.846, 0.004, 0.5, 6.0, 17.96, 0.4, 0.07, 0.05, 0.014, 0.8]], dtype=torch.float64)
    known = torch.tensor([[70.3, 1.85, 0.01, 0.5, 6.0, 18.0, 0.4, 0.07, 0.05, 0.01, 0.8]], dtype=torch.float64)
    assert_close(chapter.report(X), known)
    traces = torch.full((1, 11), 0.01, dtype=torch.float64)
    traces[:, [0, 5]] = 0.1  # silicon and sodium are printed to a tenth
    assert_close(chapter.report(torch.full_like(X, 1e-6)), traces)


def test_every_ingredient_is_whole_or_loses_oxygen_only(chapter):
    assert sum(level for level, *_ in chapter.INGREDIENTS.values()) == pytest.approx(102.9)
    assert all(sum(holds.values()) == pytest.approx(1) for *_, holds in chapter.INGREDIENTS.values())


@pytest.mark.parametrize(
    ("X", "said"),
    [
        (torch.ones(5, 2).double(), r"shape \(\.\.\., n, D\), D ≥ 3; got \(5, 2\)"),
        (torch.ones(5, 4), "must be float64 .* torch.float32"),
        (torch.ones(4).double(), r"got \(4,\)"),
        (torch.tensor([[1.0, 0.0, 2.0], [1.0, -1.0, 2.0]]).double(), "positive and finite, .* 2 entries are not"),
        (torch.tensor([[1.0, math.inf, 2.0]]).double(), "1 entries are not"),
        (torch.rand(4, 5).double() + 1, "5 parts need at least 5 rows; got 4"),
    ],
)
def test_wrong_tables_are_named(chapter, X, said):
    with pytest.raises(ValueError, match=said):
        chapter.precision(X)


def test_parts_in_fixed_proportion_are_refused(chapter, g):
    X = composition(g, 30, 5)
    with pytest.raises(ValueError, match="log-ratios must vary independently"):
        chapter.precision(torch.cat([X, 2 * X[:, :1]], 1))
    wide = composition(g, 10, 30)
    with pytest.raises(ValueError, match="log-ratios must vary independently"):
        chapter.shrunk_precision(wide, 0.0)


def test_one_table_without_an_answer_fails_its_batch(chapter, g):
    X = composition(g, 3, 30, 5)
    X[1, :, 0] = X[1, :, 1]
    with pytest.raises(ValueError, match="vary independently"):
        chapter.precision(X)


def test_a_reference_inside_the_pair_and_a_bad_intensity_are_refused(chapter, g):
    X = composition(g, 20, 5)
    with pytest.raises(ValueError, match=r"must not be one of the parts \[0, 1\]; got 1"):
        chapter.residuals(X, [0, 1], 1)
    for intensity in (-0.1, 1.1):
        with pytest.raises(ValueError, match="intensity must lie between 0 and 1"):
            chapter.shrunk_precision(X, intensity)


def test_the_invariance_of_residuals_to_the_reference_needs_all_parts(chapter, g):
    X = composition(g, 30, 6)
    full = [chapter.residuals(X, [0], r) for r in (1, 5)]
    assert_close(full[0], full[1], rtol=0, atol=1e-11)
    L = X.log()
    short = [chapter.ols_residuals(L[:, :1] - L[:, [r]], L[:, 2:5] - L[:, [r]]) for r in (1, 5)]
    assert apart(short[0], short[1])  # the two references are no longer among the controls of both
