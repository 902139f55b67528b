"""The method of `probabilistic-partitive-partitioning` against enumeration, scikit-learn, SciPy and mistakes."""

import math
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.datasets import load_iris
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.testing import assert_close


def normal(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def inertia_of(S: Tensor, split: Tensor) -> float:
    """Sum of squares around the mean of each side, by NumPy."""
    x, side = S.numpy(), split.numpy()
    return float(sum(((x[k] - x[k].mean(0)) ** 2).sum() for k in (side, ~side)))


def every_split(n: int) -> list[Tensor]:
    """All bipartitions in which row 0 is False, both sides occupied."""
    codes = range(1, 2 ** (n - 1))
    return [torch.tensor([False, *(bool(code >> i & 1) for i in range(n - 1))]) for code in codes]


def two_blobs(gap: float, n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    side = torch.arange(n) % 2 == 1
    S = normal(n, 2, g=g)
    S[:, 0] += gap * side
    return S, side


# k-means


def test_standardised_columns_have_mean_zero_and_population_variance_one(chapter, g):
    X = chapter.standardise(3 + 5 * normal(40, 3, g=g))
    assert_close(torch.from_numpy(X.numpy().mean(0)), torch.zeros(3, dtype=X.dtype), rtol=0, atol=1e-12)
    assert_close(torch.from_numpy(X.numpy().var(0)), torch.ones(3, dtype=X.dtype))


@pytest.mark.parametrize("bad", [torch.ones(5, 2), torch.tensor([[1.0, math.nan], [2.0, 3.0]]), torch.arange(4.0)])
def test_standardise_refuses_constant_columns_nan_and_vectors(chapter, bad):
    with pytest.raises(ValueError, match=r"X must be \(n, d\), finite, no column constant; got shape"):
        chapter.standardise(bad)


def test_starts_are_pairs_of_different_rows_even_among_duplicates(chapter, g):
    S = torch.tensor([[0.0, 0.0]] * 9 + [[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    starts = chapter.random_starts(S, 3000, g)
    assert starts.shape == (3000, 2, 2)
    assert (starts[:, 0] != starts[:, 1]).any(1).all()
    zero = (starts == 0).all(-1).any(1).double().mean()  # the ninefold row counts once: 2 of 3 pairs
    assert zero == pytest.approx(2 / 3, abs=0.03)
    with pytest.raises(ValueError, match="needs two different rows; got 1"):
        chapter.random_starts(S[:9], 4, g)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_two_means_ends_where_scikit_learn_ends_from_the_same_starts(chapter, g, d):
    S = 4 + normal(120, d, g=g)
    starts = chapter.random_starts(S, 15, g)
    runs = chapter.two_means(S, starts)
    for labels, inertia, start in zip(runs.labels, runs.inertia, starts, strict=True):
        peer = KMeans(2, init=start.numpy(), n_init=1, max_iter=300, tol=0).fit(S.numpy())
        assert inertia.item() == pytest.approx(peer.inertia_, rel=1e-10)
        assert torch.equal(labels, torch.from_numpy(peer.labels_ != peer.labels_[0]))
        assert inertia.item() == pytest.approx(inertia_of(S, labels), rel=1e-10)
    assert not runs.labels[:, 0].any()


def test_an_end_of_two_means_is_a_fixed_point_and_wrong_half_planes_are_not(chapter, g):
    S = normal(80, 3, g=g)
    split = chapter.two_means(S, chapter.random_starts(S, 1, g)).labels[0]
    a, b = S[~split].mean(0), S[split].mean(0)
    assert torch.equal((S - b).norm(dim=1) < (S - a).norm(dim=1), split)
    assert not torch.equal(S @ (b - a) > (b.square().sum() - a.square().sum()), split)  # the factor 1/2 is lost


def test_one_step_is_one_assignment(chapter, g):
    S, starts = normal(50, 2, g=g), normal(1, 2, 2, g=g)
    near = (S - starts[0, 1]).norm(dim=1) < (S - starts[0, 0]).norm(dim=1)
    assert torch.equal(chapter.two_means(S, starts, steps=1).labels[0], near ^ near[0])


@pytest.mark.parametrize("d", [1, 2])
def test_the_proposal_is_the_best_of_all_bipartitions(chapter, g, d):
    for _ in range(3):
        S = normal(9, d, g=g)
        best = min(every_split(9), key=lambda split: inertia_of(S, split))
        assert torch.equal(chapter.propose(S, 60, g).split, best)


def test_the_choice_is_by_inertia_then_frequency_then_order(chapter):
    a, b, c = (torch.tensor(bits, dtype=torch.bool) for bits in ([0, 0, 1], [0, 1, 0], [0, 1, 1]))

    def chosen(labels: list[Tensor], inertia: list[float]) -> tuple[Tensor, float]:
        return chapter.choose(chapter.Runs(torch.stack(labels), torch.tensor(inertia, dtype=torch.float64)))

    split, share = chosen([a, a, b], [2.0, 2.0, 1.0])  # inertia beats frequency
    assert torch.equal(split, b) and share == pytest.approx(1 / 3)
    split, share = chosen([a, c, c, b], [1.0, 1.0 + 1e-10, 1.0 + 1e-10, 2.0])  # a tie: the more frequent
    assert torch.equal(split, c) and share == pytest.approx(1 / 2)
    assert torch.equal(chosen([a, c, c, b], [1.0 + 1e-10, 1.0, 1.0, 2.0])[0], c)
    assert torch.equal(chosen([c, b, a], [1.0, 1.0, 1.0])[0], a)  # a tie of both: the first
    assert torch.equal(chosen([c, c, a], [1.0 + 1e-6, 1.0 + 1e-6, 1.0])[0], a)  # no tie


def test_the_exact_cut_is_the_best_of_all_cuts_and_of_all_bipartitions(chapter, g):
    x = normal(9, g=g)
    best = min(every_split(9), key=lambda split: inertia_of(x[:, None], split))
    cut = chapter.exact_split(x)
    assert torch.equal(cut ^ cut[0], best)
    assert x[cut].min() > x[~cut].max()


def test_two_means_of_a_gaussian_has_the_known_centres_and_share(chapter, g):
    x = normal(200_000, 1, g=g)
    cut = chapter.exact_split(x[:, 0])
    assert x[cut].mean().item() == pytest.approx(math.sqrt(2 / math.pi), abs=0.01)
    assert 1 - inertia_of(x, cut) / x.var(correction=0).item() / 200_000 == pytest.approx(2 / math.pi, abs=0.005)


# mixtures


def peer_mixture(chapter, S: Tensor, split: Tensor, kind: str, **options) -> GaussianMixture:
    """scikit-learn's EM from NumPy moments of the split."""
    x, sides = S.numpy(), (~split.numpy(), split.numpy())
    ridge = 1e-3 * np.eye(x.shape[1])
    covariances = [np.cov(x[k].T, bias=True).reshape(ridge.shape) + ridge for k in sides]
    precisions = np.stack([np.linalg.inv(c) for c in covariances])
    if kind == "diag":
        precisions = np.stack([1 / np.diag(c) for c in covariances])
    start = {
        "weights_init": np.array([k.mean() for k in sides]),
        "means_init": np.stack([x[k].mean(0) for k in sides]),
        "precisions_init": precisions,
    }
    return GaussianMixture(2, covariance_type=kind, reg_covar=1e-3, **({"max_iter": 200} | options), **start).fit(x)


@pytest.mark.parametrize(("kind", "d"), [("full", 1), ("full", 3), ("diag", 3)])
def test_em_bic_and_labels_are_scikit_learns(chapter, g, kind, d):
    S = torch.cat([normal(150, d, g=g), 1.7 * normal(100, d, g=g) + 1.2])
    split, diagonal = chapter.propose(S, 10, g).split, kind == "diag"
    ours, peer = chapter.em(S, chapter.two_columns(split), diagonal), peer_mixture(chapter, S, split, kind)
    assert 3 < peer.n_iter_ < 200
    assert ours.log_likelihood / 250 == pytest.approx(peer.score(S.numpy()), rel=1e-10)
    assert chapter.bic(ours, 250, diagonal) == pytest.approx(peer.bic(S.numpy()), rel=1e-10)
    assert_close(ours.weights, torch.from_numpy(peer.weights_), rtol=1e-8, atol=1e-10)
    assert_close(ours.means, torch.from_numpy(peer.means_), rtol=1e-8, atol=1e-10)
    assert torch.equal(ours.labels, torch.from_numpy(peer.predict(S.numpy())).long())


def test_em_stops_after_its_steps(chapter, g):
    S = torch.cat([normal(150, 2, g=g), 1.7 * normal(100, 2, g=g) + 1.2])
    split = chapter.propose(S, 10, g).split
    with pytest.warns(match="did not converge"):
        peer = peer_mixture(chapter, S, split, "full", max_iter=3)
    ours = chapter.em(S, chapter.two_columns(split), steps=3)
    assert ours.log_likelihood / 250 == pytest.approx(peer.score(S.numpy()), rel=1e-10)


def test_validate_reports_the_gain_and_the_agreement_of_the_mixture(chapter, g):
    S = torch.cat([normal(150, 2, g=g), 0.4 * normal(100, 2, g=g) + 1.5])
    split = chapter.propose(S, 20, g).split
    for kind in ("full", "diag"):
        two = peer_mixture(chapter, S, split, kind)
        one = GaussianMixture(1, covariance_type=kind, reg_covar=1e-3).fit(S.numpy())
        verdict = chapter.validate(S, split, diagonal=kind == "diag")
        assert verdict.gain == pytest.approx(one.bic(S.numpy()) - two.bic(S.numpy()), rel=1e-8)
        assert verdict.agreement == pytest.approx((two.predict(S.numpy()) == split.numpy()).mean())
        assert 0.5 < verdict.agreement < 1


def test_em_that_is_run_on_ends_at_scikit_learns_optimum_and_agrees_less(chapter, g):
    S = torch.cat([normal(150, 2, g=g), 0.4 * normal(100, 2, g=g) + 1.5])
    split = chapter.propose(S, 20, g).split
    usual, patient = chapter.validate(S, split), chapter.validate(S, split, tol=1e-9)
    peer = peer_mixture(chapter, S, split, "full", tol=1e-9)
    one = GaussianMixture(1, reg_covar=1e-3).fit(S.numpy())
    assert patient.gain == pytest.approx(one.bic(S.numpy()) - peer.bic(S.numpy()), rel=1e-8)
    assert patient.agreement == pytest.approx((peer.predict(S.numpy()) == split.numpy()).mean())
    assert patient.gain > usual.gain and patient.agreement < usual.agreement


def test_two_gaussians_on_one_lose_at_most_the_price_of_their_parameters_when_em_is_run_on(chapter):
    x = torch.special.ndtri((torch.arange(5000, dtype=torch.float64) + 0.5) / 5000)[:, None]
    split = x[:, 0] > 0
    assert -chapter.validate(x, split).gain > 3 * math.log(5000) + 10  # EM stopped early
    assert -chapter.validate(x, split, tol=1e-9).gain < 3 * math.log(5000) + 1


def test_the_wrong_number_of_parameters_is_told_apart(chapter, g):
    S = normal(60, 3, g=g)
    one = chapter.em(S, torch.ones(60, 1, dtype=S.dtype), steps=0)
    log_l = stats.multivariate_normal(S.numpy().mean(0), np.cov(S.numpy().T, bias=True) + 1e-3 * np.eye(3))
    log_l = log_l.logpdf(S.numpy()).sum()
    assert one.log_likelihood == pytest.approx(log_l, rel=1e-10)
    assert chapter.bic(one, 60) == pytest.approx(-2 * log_l + 9 * math.log(60))
    assert chapter.bic(one, 60, True) == pytest.approx(-2 * log_l + 6 * math.log(60))
    assert chapter.bic(one, 60) != pytest.approx(-2 * log_l + 12 * math.log(60))  # d² in place of d(d+1)/2


def test_each_test_of_the_validation_refuses_by_its_name(chapter, g):
    apart, side = two_blobs(8.0, 300, g)
    assert chapter.validate(apart, side).refusal == ""
    assert chapter.validate(apart, ~side).agreement == 1.0
    cloud = normal(300, 2, g=g)
    assert "BIC" in chapter.validate(cloud, chapter.propose(cloud, 20, g).split).refusal
    stirred = side ^ (torch.arange(300) % 7 == 0)  # EM puts every seventh row back where it belongs
    found = chapter.validate(apart, stirred)
    assert found.gain > 0 and found.refusal == "agreement"
    assert found.agreement == pytest.approx(1 - 43 / 300)
    assert chapter.validate(apart, stirred, tau=found.agreement).refusal == ""


def test_agreement_does_not_mind_swapped_labels(chapter, g, monkeypatch):
    S, side = two_blobs(3.0, 200, g)
    before, fit = chapter.validate(S, side), chapter.em

    def swapped(*args, **options):
        mixture = fit(*args, **options)
        return mixture._replace(labels=1 - mixture.labels)

    monkeypatch.setattr(chapter, "em", swapped)
    assert 0.8 < before.agreement < 1
    assert chapter.validate(S, side).agreement == pytest.approx(before.agreement)


# the tree


def blobs(chapter, centres: list[tuple[float, float]], each: int, g: torch.Generator):
    return chapter.around(torch.tensor(centres, dtype=torch.float64), each, g)


def test_separated_blobs_are_the_leaves_numbered_by_their_smallest_row(chapter, g):
    cloud = blobs(chapter, [(0, 0), (30, 0), (0, 40), (33, 44)], 50, g)
    order = torch.randperm(200, generator=g)
    tree = chapter.ppp(cloud.X[order], g)
    assert tree.K == 4
    assert adjusted_rand_score(cloud.truth[order], tree.labels) == 1.0
    firsts = [int((tree.labels == k).nonzero()[0]) for k in range(4)]
    assert firsts == sorted(firsts)


def test_the_nodes_of_a_tree_partition_their_parents(chapter, g):
    cloud = blobs(chapter, [(0, 0), (20, 0), (0, 25)], 60, g)
    tree = chapter.ppp(cloud.X, g)
    assert torch.equal(tree.nodes[0].rows, torch.arange(180))
    for number, node in enumerate(tree.nodes):
        children = [child.rows for child in tree.nodes if child.parent == number]
        assert len(children) == (0 if node.verdict.refusal else 2)
        if children:
            assert torch.equal(torch.cat(children).sort().values, node.rows)
            assert torch.equal(children[0], node.rows[~node.split])


def test_small_nodes_and_small_children_are_leaves_unseen_by_the_test(chapter, g):
    def forbidden(S: Tensor, split: Tensor):
        raise AssertionError("a small node was tested")

    assert chapter.ppp(normal(19, 2, g=g), g, test=forbidden).K == 1
    assert chapter.ppp(normal(31, 8, g=g), g, test=forbidden).K == 1  # 2d = 16 rows in a child
    far = torch.cat([normal(50, 2, g=g), normal(9, 2, g=g) + 30])  # one child of nine
    assert chapter.ppp(far, g, test=forbidden).nodes[0].verdict.refusal == "few rows"
    with pytest.raises(AssertionError):
        chapter.ppp(torch.cat([normal(50, 2, g=g), normal(10, 2, g=g) + 30]), g, test=forbidden)
    with pytest.raises(AssertionError):
        chapter.ppp(torch.cat([normal(16, 8, g=g), normal(16, 8, g=g) + 30]), g, test=forbidden)


def test_look_ahead_splits_a_refused_root_only_if_a_child_is_accepted(chapter, g):
    cloud = blobs(chapter, [(0, 0), (15, 0), (40, 45), (55, 45)], 40, g)

    def never_at_the_root(S: Tensor, split: Tensor):
        verdict = chapter.validate(S, split)
        return verdict._replace(refusal="agreement") if len(S) == 160 else verdict

    assert chapter.ppp(cloud.X, g, test=never_at_the_root).K == 1
    assert chapter.ppp(cloud.X, g, test=never_at_the_root, look_ahead=True).K == 4
    refuse = partial(chapter.validate, tau=1.1)
    assert chapter.ppp(cloud.X, g, test=refuse, look_ahead=True).K == 1


def test_look_ahead_needs_one_acceptable_half_and_keeps_the_halves_it_saw(chapter, g):
    cloud = blobs(chapter, [(0, 0), (40, 60), (55, 75)], 40, g)
    seen = []

    def never_at_the_root(S: Tensor, split: Tensor):
        seen.append(len(S))
        verdict = chapter.validate(S, split)
        return verdict._replace(refusal="agreement") if len(S) == 120 else verdict

    tree = chapter.ppp(cloud.X, g, test=never_at_the_root, look_ahead=True)
    assert tree.K == 3 and len(tree.nodes) == 5
    assert sorted(seen) == [40, 40, 40, 80, 120]  # each node once


def test_look_ahead_does_not_pass_the_guard(chapter, g):
    far = blobs(chapter, [(0, 0), (30, 0)], 30, g).X
    X = torch.cat([far, normal(9, 2, g=g) + 200])  # nine rows are no cluster
    tree = chapter.ppp(X, g, look_ahead=True)
    assert tree.nodes[0].verdict.refusal == "few rows" and tree.K == 1


def test_a_node_too_small_to_split_is_not_even_proposed(chapter, g):
    assert chapter.ppp(torch.zeros(19, 2, dtype=torch.float64), g).K == 1  # equal rows have no starts


def test_by_default_twenty_starts_on_at_most_2000_rows(chapter, g, monkeypatch):
    seen, two_means = [], chapter.two_means

    def spy(S: Tensor, starts: Tensor):
        seen.append((len(S), len(starts)))
        return two_means(S, starts)

    monkeypatch.setattr(chapter, "two_means", spy)
    for n in (2000, 2001, 5000):
        chapter.ppp(normal(n, 1, g=g), g)
    assert seen == [(2000, 20)] * 3


def test_a_large_node_takes_the_labels_of_scikit_learns_mixture_of_the_subset(chapter, monkeypatch):
    g = torch.Generator().manual_seed(3)
    S = torch.cat([normal(300, 2, g=g), 0.4 * normal(200, 2, g=g) + 1.5])
    parts, propose = [], chapter.propose

    def spy(part: Tensor, R: int, g: torch.Generator):
        parts.append((part, propose(part, R, g)))
        return parts[-1][1]

    monkeypatch.setattr(chapter, "propose", spy)
    first = set()
    for seed in range(6):
        found = chapter.proposal(S, 20, torch.Generator().manual_seed(seed), 250)
        part, inner = parts[-1]
        assert len(part) == 250
        expected = torch.from_numpy(peer_mixture(chapter, part, inner.split, "full").predict(S.numpy())).bool()
        assert torch.equal(found.split, expected ^ expected[0])
        assert found.share == inner.share
        first.add(bool(expected[0]))
    assert first == {False, True}  # the labels had to be turned at times
    one, two = (f(S, 20, torch.Generator().manual_seed(9), *n) for f, n in ((propose, ()), (chapter.proposal, (500,))))
    assert torch.equal(one.split, two.split)  # 500 of 500 rows need no mixture


def test_large_nodes_are_split_by_a_mixture_fitted_to_a_subset_and_validated_whole(chapter, g):
    cloud = blobs(chapter, [(0, 0), (30, 0), (0, 40)], 300, g)
    seen = []

    def spy(S: Tensor, split: Tensor):
        seen.append(len(S))
        return chapter.validate(S, split)

    tree = chapter.ppp(cloud.X, g, test=spy, subset=100)
    assert tree.K == 3 and adjusted_rand_score(cloud.truth, tree.labels) == 1.0
    assert seen[0] == 900
    assert not tree.nodes[0].split[0]
    small = chapter.proposal(cloud.X, 20, torch.Generator().manual_seed(5), 900)
    assert torch.equal(small.split, chapter.propose(cloud.X, 20, torch.Generator().manual_seed(5)).split)


def test_different_streams_give_different_starts(chapter, g):
    S = normal(40, 2, g=g)
    a, b = (chapter.random_starts(S, 5, torch.Generator().manual_seed(k)) for k in (1, 2))
    assert not torch.equal(a, b)
    X = chapter.standardise(torch.from_numpy(load_iris().data))
    one = [chapter.ppp(X, torch.Generator().manual_seed(k), R=20) for k in range(4)]
    assert all(adjusted_rand_score(s.labels, t.labels) == 1 for s, t in combinations(one, 2))
    assert one[0].K == 2


# columns, pairs, relatives, scores


def test_columns_are_scored_by_bic_per_row_and_ashmans_d(chapter, g):
    X = normal(400, 3, g=g)
    X[100:, 1] = 0.5 * X[100:, 1] + 3  # the best cut is not at the mean
    columns = chapter.separable_columns(X)
    assert columns.keep.tolist() == [False, True, False]
    x = X[:, 1:2]
    two = peer_mixture(chapter, x, chapter.exact_split(x[:, 0]), "full")
    one = GaussianMixture(1, reg_covar=1e-3).fit(x.numpy())
    assert columns.score[1].item() == pytest.approx((one.bic(x.numpy()) - two.bic(x.numpy())) / 400, rel=1e-8)
    d = math.sqrt(2) * abs(two.means_[0, 0] - two.means_[1, 0]) / math.sqrt(two.covariances_.sum())
    assert columns.ashman[1].item() == pytest.approx(d, rel=1e-8)


def test_when_no_column_is_bimodal_the_best_one_is_kept(chapter, g):
    columns = chapter.separable_columns(normal(300, 4, g=g))
    assert (columns.score < 0).all()
    assert columns.keep.sum() == 1 and columns.keep[columns.score.argmax()]


def test_the_column_kept_in_want_of_any_has_the_largest_score_not_the_largest_d(chapter, g):
    widths = torch.cat([0.2 * normal(300, 1, g=g), 3 * normal(300, 1, g=g)])  # two widths, one centre
    columns = chapter.separable_columns(torch.cat([normal(600, 1, g=g), widths], 1))
    assert columns.ashman.argmax() != columns.score.argmax()
    assert columns.keep.tolist() == [False, True]


def test_a_column_needs_both_a_bic_gain_and_ashmans_d(chapter, g):
    x = torch.cat([0.2 * normal(300, 1, g=g), 3 * normal(300, 1, g=g)])  # two widths, one centre
    columns = chapter.separable_columns(torch.cat([x, torch.cat([x[:300], x[300:] + 20])], 1))
    assert columns.score[0] > 0 and columns.ashman[0] < 2
    assert columns.keep.tolist() == [False, True]


def test_a_column_is_bimodal_from_an_ashmans_d_of_two(chapter, g):
    far = torch.cat([normal(300, 1, g=g), normal(300, 1, g=g) + 20])
    near = torch.cat([normal(300, 1, g=g), normal(300, 1, g=g) + 2.8])
    columns = chapter.separable_columns(torch.cat([far, near], 1))
    assert columns.score[1] > 0 and 2 < columns.ashman[1] < 3
    assert columns.keep.tolist() == [True, True]


def test_bhattacharyya_is_the_integral_in_one_dimension(chapter, g):
    X = torch.cat([normal(300, 1, g=g), 0.5 * normal(200, 1, g=g) + 2])
    labels = torch.arange(500).ge(300).long()
    distance = chapter.bhattacharyya(X, labels)
    law = [stats.norm(X[labels == k].mean(), math.sqrt(X[labels == k].var(correction=0) + 1e-3)) for k in (0, 1)]
    t = np.linspace(-12, 14, 200_001)
    overlap = np.trapezoid(np.sqrt(law[0].pdf(t) * law[1].pdf(t)), t)
    assert distance[0, 1].item() == pytest.approx(-math.log(overlap), rel=1e-6)
    assert_close(distance, distance.T)
    assert_close(distance.diagonal(), torch.zeros(2, dtype=X.dtype), rtol=0, atol=1e-12)


def test_bhattacharyya_in_two_dimensions_does_not_change_with_coordinates(chapter, g):
    X, side = two_blobs(3.0, 400, g)
    A = 30 * normal(2, 2, g=g)
    before, after = (chapter.bhattacharyya(50 * Y, side.long())[0, 1].item() for Y in (X, X @ A))
    assert before == pytest.approx(after, rel=1e-3)
    assert before == pytest.approx(9 / 8, rel=0.2)


def test_the_anderson_darling_statistic_is_scipys(chapter, g):
    S, side = two_blobs(2.0, 150, g)
    projected = (S @ (S[side].mean(0) - S[~side].mean(0))).numpy()
    z = np.sort((projected - projected.mean()) / projected.std(ddof=1))
    i = np.arange(1, 151)
    A2 = -150 - np.mean((2 * i - 1) * (stats.norm.logcdf(z) + stats.norm.logsf(z[::-1])))
    assert chapter.g_means(S, side).gain == pytest.approx(A2 * (1 + 4 / 150 - 25 / 150**2) - 1.8692, rel=1e-9)


def test_g_means_parts_two_blobs_and_leaves_one_at_its_level(chapter, g):
    apart, side = two_blobs(6.0, 200, g)
    assert chapter.g_means(apart, side).refusal == ""
    cloud = [normal(200, 2, g=g) for _ in range(30)]
    assert all(chapter.g_means(S, chapter.propose(S, 20, g).split).refusal == "normal" for S in cloud)


def test_x_means_bic_is_that_of_round_gaussians_summed_row_by_row(chapter, g):
    S, side = two_blobs(3.0, 80, g)

    def criterion(labels: np.ndarray, K: int) -> float:
        x = S.numpy()
        means = np.stack([x[labels == k].mean(0) for k in range(K)])
        variance = ((x - means[labels]) ** 2).sum() / (2 * (80 - K))
        share = np.array([(labels == k).mean() for k in range(K)])
        rows = stats.norm(means[labels], math.sqrt(variance)).logpdf(x).sum(1) + np.log(share[labels])
        return -2 * rows.sum() + K * 3 * math.log(80)

    gain = criterion(np.zeros(80, dtype=int), 1) - criterion(side.numpy().astype(int), 2)
    assert chapter.x_means(S, side).gain == pytest.approx(gain, rel=1e-9)
    assert chapter.x_means(S, side).refusal == ("" if gain > 0 else "BIC")
    assert chapter.x_means(S, S[:, 1] > 0).refusal == "BIC"
    assert chapter.x_means(S, side).agreement == 1  # this test asks for none


def test_the_silhouette_is_scikit_learns(chapter, g):
    X, labels = normal(60, 3, g=g), torch.randint(4, (60,), generator=g)
    labels[labels == 3] = 2
    labels[7] = 3  # alone
    assert chapter.silhouette(X, labels) == pytest.approx(silhouette_score(X.numpy(), labels.numpy()), rel=1e-8)


def test_hopkins_is_half_for_uniform_rows_and_near_one_for_clusters(chapter, g):
    flat = [chapter.hopkins(torch.rand(1000, 2, generator=g, dtype=torch.float64), g) for _ in range(40)]
    assert np.mean(flat) == pytest.approx(0.5, abs=0.04)
    assert chapter.hopkins(blobs(chapter, [(0, 0), (50, 50)], 300, g).X, g) > 0.95


@pytest.mark.parametrize(("n", "m"), [(10, 1), (19, 1), (129, 12)])
def test_hopkins_compares_nearest_neighbours_of_a_tenth_of_the_rows(chapter, g, n, m):
    X = normal(n, 3, g=g) * torch.tensor([1.0, 5.0, 0.2])
    draws = torch.Generator().manual_seed(7)
    low, high = X.min(0).values, X.max(0).values
    places = low + (high - low) * torch.rand(m, 3, generator=draws, dtype=X.dtype)
    rows = torch.randperm(n, generator=draws)[:m].tolist()
    u = sum(min((place - x).norm() for x in X) ** 3 for place in places)
    w = sum(min((X[i] - x).norm() for k, x in enumerate(X) if k != i) ** 3 for i in rows)
    found = chapter.hopkins(X, torch.Generator().manual_seed(7))
    assert found == pytest.approx((u / (u + w)).item(), rel=1e-6)


def test_hopkins_draws_its_rows_from_all_rows(chapter, g):
    dense = 0.5 + 1e-3 * torch.rand(100, 2, generator=g, dtype=torch.float64)
    X = torch.cat([dense, torch.rand(900, 2, generator=g, dtype=torch.float64)])
    assert np.mean([chapter.hopkins(X, g) for _ in range(10)]) < 0.7  # the first tenth alone would give 1


def test_centres_are_in_their_box_and_apart_and_too_many_are_refused(chapter, g):
    for apart in (3.0, 6.0):
        centres = chapter.place(8, 20, apart, g)
        assert centres.shape == (8, 2) and (centres >= 0).all() and (centres <= 20).all()
        assert torch.pdist(centres).min() >= apart
    assert torch.pdist(chapter.place(3, 9, 6, g)).min() >= 6  # 108 > 81, and still room
    with pytest.raises(ValueError, match="30 centres 6 apart do not fit into a box of side 20"):
        chapter.place(30, 20, 6, g)


@pytest.mark.parametrize("K", [3, 5])
def test_blobs_on_a_ring_have_unit_variance_and_neighbours_six_apart(chapter, g, K, monkeypatch):
    monkeypatch.setattr(chapter, "standardise", lambda X: X)
    cloud = chapter.ring(K, g)
    means = torch.stack([cloud.X[cloud.truth == k].mean(0) for k in range(K)])
    assert cloud.X.shape == (100 * K, 2)
    assert (means - means.roll(1, 0)).norm(dim=1).tolist() == pytest.approx([6.0] * K, abs=0.6)
    assert (cloud.X - means[cloud.truth]).std().item() == pytest.approx(1, abs=0.08)
