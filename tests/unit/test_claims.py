"""Criteria judge as their text says, and intervals over seeds are what theory says they are."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats as theory

from reprolib import above, at_least, below, bootstrap_interval, paired_interval, within
from reprolib.claims import CRITERIA, EXACT, VERDICTS, Claim, Result, require_finite, verdict_of

REPRODUCED, INCONCLUSIVE, NOT_REPRODUCED = VERDICTS


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.1, 2.0, REPRODUCED),
        (0.5, 1.5, INCONCLUSIVE),
        (0.1, 0.9, NOT_REPRODUCED),
        (1.0, 2.0, INCONCLUSIVE),  # touching the threshold is not above it
        (0.0, 1.0, INCONCLUSIVE),
        (1.0, 1.0, INCONCLUSIVE),
    ],
)
def test_above_and_below_mirror_each_other_at_every_boundary(low, high, verdict):
    assert above(1.0).verdict([], low, high) == verdict
    assert below(-1.0).verdict([], -high, -low) == verdict


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([1e-10], REPRODUCED), ([-1e-10, 0.0], REPRODUCED), ([0.0, -1.1e-10], NOT_REPRODUCED), ([1.0], NOT_REPRODUCED)],
)
def test_within_judges_the_largest_error_of_either_sign_and_includes_its_bound(values, verdict):
    assert within(1e-10).verdict(values, -math.inf, math.inf) == verdict


@pytest.mark.parametrize(("values", "verdict"), [([3, 4], REPRODUCED), ([3], REPRODUCED), ([5, 2.99], NOT_REPRODUCED)])
def test_at_least_judges_the_smallest_value_and_includes_its_bound(values, verdict):
    assert at_least(3).verdict(values, 0.0, 0.0) == verdict


def test_the_text_of_a_criterion_holds_its_threshold():
    assert [str(c(0.25)) for c in CRITERIA.values()] == [
        "95 % interval above 0.25",
        "95 % interval below 0.25",
        "every error at most 0.25",
        "at least 0.25",
    ]


@pytest.mark.parametrize("kind", CRITERIA)
def test_a_stored_claim_is_judged_anew_to_the_same_verdict(kind):
    claim = Claim("c1", "Something.", "Table 1", CRITERIA[kind](1.0))
    assert claim.exact == (kind in EXACT)
    for values in ([0.5, 0.6], [1.5, 1.6], [0.5, 1.5]):
        low, high = min(values), max(values)
        result = Result(claim, values, 1.0, low, high, claim.criterion.verdict(values, low, high))
        assert verdict_of(result.as_json()) == result.verdict
        assert str(result) == f"c1: {result.verdict}"


def test_an_unknown_criterion_is_refused_by_name():
    stored = {"id": "c9", "criterion": {"kind": "near", "threshold": 0}, "values": [1.0], "low": 0, "high": 0}
    with pytest.raises(ValueError, match=r"Claim c9: unknown criterion 'near'; known are above, below"):
        verdict_of(stored)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_claim_is_not_judged_on_values_that_are_not_finite(bad):
    with pytest.raises(ValueError, match=r"Claim c1: values must be finite; entries \[1\] are not"):
        require_finite("c1", [0.0, bad])


def test_a_claim_is_not_judged_on_nothing():
    with pytest.raises(ValueError, match=r"Claim c1: at least one value is needed"):
        require_finite("c1", [])


def test_bootstrap_of_many_seeds_is_the_normal_theory_interval():
    s, resamples, level = 2000, 10_000, 0.95
    x = np.random.default_rng(1).normal(3.0, 2.0, s)
    mean, low, high = bootstrap_interval(x, level, resamples)
    spread, z = x.std() / math.sqrt(s), NormalDist().inv_cdf(0.975)
    # Standard error of an empirical 2.5 % quantile of R normal draws, in units of their spread; five of them.
    room = 5 * math.sqrt(0.025 * 0.975 / resamples) / NormalDist().pdf(z) * spread
    assert_allclose(mean, x.mean(), rtol=1e-14)
    assert_allclose([low, high], [x.mean() - z * spread, x.mean() + z * spread], rtol=0, atol=room)


def test_bootstrap_covers_the_true_mean_as_often_as_theory_says():
    s, trials, resamples = 30, 4000, 10_000
    x = np.random.default_rng(2).normal(size=(s, trials))
    _, low, high = bootstrap_interval(x, resamples=resamples)
    # The interval is mean ± 1.96 * sd / sqrt(S) with sd over S, not S - 1: a t statistic below 1.96 * sqrt((S-1)/S).
    z = NormalDist().inv_cdf(0.975)
    bound = z * math.sqrt((s - 1) / s)
    expected = 2 * theory.t.cdf(bound, s - 1) - 1
    chance = 5 * math.sqrt(expected * (1 - expected) / trials)
    quantile_noise = 5 * math.sqrt(0.025 * 0.975 / resamples) / NormalDist().pdf(z) * 2 * theory.t.pdf(bound, s - 1)
    assert abs(((low < 0) & (high > 0)).mean() - expected) < chance + quantile_noise


def test_a_lower_level_gives_an_interval_inside():
    x = np.random.default_rng(3).normal(size=20)
    wide, narrow = bootstrap_interval(x, 0.95), bootstrap_interval(x, 0.5)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_equal_seeds_give_equal_intervals_and_other_seeds_other_ones():
    x = [0.1, 0.9, 0.4, 0.7]
    assert bootstrap_interval(x) == bootstrap_interval(x)
    assert bootstrap_interval(x, seed=0, resamples=101) != bootstrap_interval(x, seed=1, resamples=101)


def test_the_state_of_global_generators_neither_matters_nor_changes():
    np.random.seed(0)
    first, before = bootstrap_interval([1.0, 2.0, 4.0]), np.random.get_state()[1].copy()
    np.random.seed(1)
    assert bootstrap_interval([1.0, 2.0, 4.0]) == first
    np.random.seed(0)
    assert (np.random.get_state()[1] == before).all()


def test_arrays_get_the_interval_of_each_entry():
    x = np.random.default_rng(4).normal(size=(6, 2, 3))
    mean, low, high = bootstrap_interval(x)
    assert mean.shape == low.shape == high.shape == (2, 3)
    one = bootstrap_interval(x[:, 1, 2])
    assert_allclose([mean[1, 2], low[1, 2], high[1, 2]], one, rtol=1e-12)
    assert all(isinstance(v, float) for v in one)


def test_tensors_are_taken_with_or_without_gradient():
    values = [0.5, 1.5, 3.0]
    assert bootstrap_interval(torch.tensor(values, requires_grad=True)) == bootstrap_interval(values)


def test_equal_values_give_an_interval_of_no_width():
    assert bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_paired_is_the_interval_of_the_differences():
    rng = np.random.default_rng(5)
    level = rng.normal(0, 10, 8)  # seeds differ much, pairs little
    a, b = level + rng.normal(0.5, 0.1, 8), level
    assert paired_interval(a, b) == bootstrap_interval(a - b)
    assert paired_interval(a, b).low > 0 > bootstrap_interval(a).low - bootstrap_interval(b).high


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], r"values must hold at least two seeds along its first axis; got shape \(1,\)"),
        (1.0, r"got shape \(\)"),
        ([], r"got shape \(0,\)"),
        ([1.0, math.nan], r"values must be finite; 1 of 2 entries are not"),
    ],
)
def test_too_few_or_broken_seeds_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values)


@pytest.mark.parametrize("level", [0, 1, -0.5, 95])
def test_a_level_outside_zero_and_one_is_refused(level):
    with pytest.raises(ValueError, match="level must lie strictly between 0 and 1"):
        bootstrap_interval([1.0, 2.0], level)


def test_pairs_of_other_shapes_are_refused_and_not_broadcast():
    with pytest.raises(ValueError, match=r"one shape, seeds first; got \(3,\) and \(3, 1\)"):
        paired_interval(np.zeros(3), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="b must be finite"):
        paired_interval([1.0, 2.0], [1.0, math.nan])
