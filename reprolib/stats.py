"""Intervals over seeds: seeded bootstrap, for one sample and for pairs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Interval(NamedTuple):
    """A mean over seeds with its confidence interval; scalars, or arrays of the shape that follows the seed axis."""

    mean: Any
    low: Any
    high: Any


def _samples(values: ArrayLike, name: str) -> NDArray[np.float64]:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    x = np.asarray(values, dtype=np.float64)
    if x.ndim == 0 or x.shape[0] < 2:
        raise ValueError(f"{name} must hold at least two seeds along its first axis; got shape {x.shape}.")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} must be finite; {int((~np.isfinite(x)).sum())} of {x.size} entries are not.")
    return x


def bootstrap_interval(values: ArrayLike, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean over the first axis.

    Args:
        values: Per-seed values, (S, ...), S at least 2.
        level: Coverage, in (0, 1).
        resamples: How many bootstrap samples of S seeds are drawn.
        seed: Seed of the resampling, so that a verdict never depends on the hour.

    Returns:
        Mean and interval ends, each of shape (...) (floats for a vector of values), in the unit of ``values``.

    Raises:
        ValueError: Fewer than two seeds, values that are not finite, or a level outside (0, 1).

    Source: Efron (1979), Bootstrap methods: another look at the jackknife.
    """
    x = _samples(values, "values")
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1; got {level}.")
    s = x.shape[0]
    counts = np.random.default_rng(seed).multinomial(s, np.full(s, 1 / s), size=resamples)  # (R, S)
    means = np.tensordot(counts, x, axes=(1, 0)) / s  # (R, ...)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    mean = x.mean(0)
    if x.ndim == 1:
        return Interval(float(mean), float(low), float(high))
    return Interval(mean, low, high)


def paired_interval(
    a: ArrayLike, b: ArrayLike, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Bootstrap interval of the mean of ``a - b``, seed by seed: both (S, ...), the same seeds in the same order.

    Raises:
        ValueError: The shapes differ, or as :func:`bootstrap_interval`.
    """
    x, y = _samples(a, "a"), _samples(b, "b")
    if x.shape != y.shape:
        raise ValueError(f"a and b must share one shape, seeds first; got {x.shape} and {y.shape}.")
    return bootstrap_interval(x - y, level, resamples, seed)
