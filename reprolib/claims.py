"""Criteria and claims: a criterion is one object that is both the text a reader sees and the test that decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

REPRODUCED = "reproduced"
INCONCLUSIVE = "inconclusive"
NOT_REPRODUCED = "not reproduced"
VERDICTS = (REPRODUCED, INCONCLUSIVE, NOT_REPRODUCED)


class Criterion(Protocol):
    """What every criterion offers: a name, a text, and a verdict on per-seed values with their interval."""

    @property
    def kind(self) -> str: ...

    @property
    def threshold(self) -> float: ...

    def verdict(self, values: Sequence[float], low: float, high: float) -> str: ...


class above(NamedTuple):
    """The 95 % interval over seeds lies above a threshold fixed beforehand.

    Inconclusive when the interval contains the threshold, not reproduced when it lies below.
    """

    threshold: float
    kind: str = "above"

    def __str__(self) -> str:
        return f"95 % interval above {self.threshold:g}"

    def verdict(self, values: Sequence[float], low: float, high: float) -> str:  # noqa: ARG002
        """Judge the interval [low, high] of the mean of the per-seed values."""
        if low > self.threshold:
            return REPRODUCED
        return NOT_REPRODUCED if high < self.threshold else INCONCLUSIVE


class below(NamedTuple):
    """The 95 % interval over seeds lies below a threshold fixed beforehand."""

    threshold: float
    kind: str = "below"

    def __str__(self) -> str:
        return f"95 % interval below {self.threshold:g}"

    def verdict(self, values: Sequence[float], low: float, high: float) -> str:  # noqa: ARG002
        """Judge the interval [low, high] of the mean of the per-seed values."""
        if high < self.threshold:
            return REPRODUCED
        return NOT_REPRODUCED if low > self.threshold else INCONCLUSIVE


class within(NamedTuple):
    """Every value is at most a tolerance away from zero: an identity, with no chance and so no interval."""

    threshold: float
    kind: str = "within"

    def __str__(self) -> str:
        return f"every error at most {self.threshold:g}"

    def verdict(self, values: Sequence[float], low: float, high: float) -> str:  # noqa: ARG002
        """Judge the largest absolute value; the interval is not used."""
        return REPRODUCED if max(abs(v) for v in values) <= self.threshold else NOT_REPRODUCED


class at_least(NamedTuple):
    """Every value reaches a threshold: a count or a cost, with no chance and so no interval."""

    threshold: float
    kind: str = "at_least"

    def __str__(self) -> str:
        return f"at least {self.threshold:g}"

    def verdict(self, values: Sequence[float], low: float, high: float) -> str:  # noqa: ARG002
        """Judge the smallest value; the interval is not used."""
        return REPRODUCED if min(values) >= self.threshold else NOT_REPRODUCED


CRITERIA: dict[str, Any] = {"above": above, "below": below, "within": within, "at_least": at_least}
EXACT = ("within", "at_least")  # kinds judged value by value


class Claim(NamedTuple):
    """One falsifiable sentence of a paper, with the criterion that decides it."""

    id: str
    text: str
    paper: str
    criterion: Criterion
    unit: str = ""
    headline: bool = False

    @property
    def exact(self) -> bool:
        """Whether the criterion leaves nothing to chance (an identity or a count)."""
        return self.criterion.kind in EXACT


class Result(NamedTuple):
    """What a run says of a claim: per-seed values, their mean, its interval and the verdict."""

    claim: Claim
    values: list[float]
    mean: float
    low: float
    high: float
    verdict: str

    def __str__(self) -> str:
        return f"{self.claim.id}: {self.verdict}"

    def as_json(self) -> dict[str, Any]:
        """The claim and its result as a record stores them."""
        c = self.claim
        criterion = {"kind": c.criterion.kind, "threshold": c.criterion.threshold, "text": str(c.criterion)}
        return {
            **{"id": c.id, "text": c.text, "paper": c.paper, "criterion": criterion, "unit": c.unit},
            **{"headline": c.headline, "exact": c.exact, "values": self.values},
            **{"mean": self.mean, "low": self.low, "high": self.high, "verdict": self.verdict},
        }


def verdict_of(stored: dict[str, Any]) -> str:
    """Judge a stored claim anew from its values and criterion.

    Raises:
        ValueError: The criterion's kind is not one of ``CRITERIA``.
    """
    kind = stored["criterion"]["kind"]
    if kind not in CRITERIA:
        raise ValueError(f"Claim {stored['id']}: unknown criterion {kind!r}; known are {', '.join(CRITERIA)}.")
    criterion = CRITERIA[kind](stored["criterion"]["threshold"])
    return str(criterion.verdict(stored["values"], stored["low"], stored["high"]))


def require_finite(claim_id: str, values: Sequence[float]) -> None:
    """Refuse to judge a claim on nothing or on NaN.

    Raises:
        ValueError: No value, or one that is not finite.
    """
    if len(values) == 0:
        raise ValueError(f"Claim {claim_id}: at least one value is needed; got none.")
    bad = [i for i, v in enumerate(values) if not math.isfinite(v)]
    if bad:
        raise ValueError(f"Claim {claim_id}: values must be finite; entries {bad[:5]} are not. Did a run diverge?")
