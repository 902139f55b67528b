"""Many chapters in a given time: which come first, which still fit, and what became of each."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from reprolib import records
from reprolib.project import ChapterFile, ReproError

STATES = ("done", "failed", "cut", "not started")


class Due(NamedTuple):
    """A chapter, and what its record at a scale says of running it."""

    chapter: ChapterFile
    why: str | None  # as `records.staleness`: why it has to be run; None when it need not
    date: str  # of its record (ISO 8601, UTC), "" when none can be read
    seconds: float | None  # how long its last run took; None when no one knows


def survey(chapters: Iterable[ChapterFile], scale: str) -> list[Due]:
    """What is to be known before chapters are run; one that cannot be read is due, and fails when its turn comes."""
    found = []
    for chapter in chapters:
        date, seconds = "", None
        try:
            if (why := records.staleness(chapter, scale)) != "missing":
                record = records.read(chapter.record(scale))
                date, seconds = record["date"], record["wall_seconds"]
        except ReproError as error:
            why = f"unreadable: {error}"
        found.append(Due(chapter, why, date, seconds))
    return found


def urgency(due: Due) -> tuple[int, str]:
    """Sorts the most overdue first: no record, then an unreadable one, then stale and last fresh ones, oldest first."""
    if due.why is None:
        return 3, due.date
    return ("missing", "unreadable", "stale").index(due.why.partition(":")[0]), due.date


def length(due: Due) -> float:
    """Sorts the longest first, and before them those of unknown length: many hands then end at nearly the same time."""
    return -math.inf if due.seconds is None else -due.seconds


def makespan(seconds: Sequence[float], workers: int) -> float:
    r"""How long equal workers take when each takes up the longest chapter that is left.

    Args:
        seconds: How long each chapter takes; it cannot be divided.
        workers: How many.

    Returns:
        Seconds; at most :math:`\frac43 - \frac1{3m}` times what the best schedule of m workers takes.

    Raises:
        ValueError: No worker, or a negative time.

    Source: Graham (1969), Bounds on multiprocessing timing anomalies.
    """
    _check(seconds, workers)
    ends = [0.0] * workers
    for chapter in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + chapter)  # the one that is free first
    return max(ends)


def least(seconds: Sequence[float], workers: int) -> float:
    """What no schedule can be quicker than: the longest chapter, and an even share of all."""
    _check(seconds, workers)
    return max(sum(seconds) / workers, max(seconds, default=0.0))


def _check(seconds: Sequence[float], workers: int) -> None:
    if workers < 1 or any(not s >= 0 for s in seconds):
        raise ValueError(f"A schedule needs a worker and times of at least 0 s; got {workers}, {list(seconds)}.")


class Budget:
    """The time of a run, from now on.

    Args:
        seconds: How long it lasts; infinite when nothing but `stop` ends it.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.seconds, self._start, self._stopped = seconds, time.monotonic(), False

    def used(self) -> float:
        """Seconds gone since the start."""
        return time.monotonic() - self._start

    def left(self) -> float:
        """Seconds that remain, 0 when it is over."""
        return 0.0 if self._stopped else max(0.0, self.seconds - self.used())

    def over(self) -> bool:
        """Whether no time is left."""
        return self.left() <= 0

    def fits(self, due: Due) -> bool:
        """Whether a chapter may be started: it took no longer than what is left; one of unknown length always may."""
        return not self.over() and (due.seconds is None or due.seconds <= self.left())

    def stop(self) -> None:
        """Let no time be left."""
        self._stopped = True


class Tally:
    """What became of each chapter of a run: done, failed, cut, or not started, as all are at first."""

    def __init__(self, dues: Iterable[Due], scale: str, budget: Budget) -> None:
        self._dues = {due.chapter.slug: due for due in dues}
        self._states = dict.fromkeys(self._dues, "not started")
        self._ran: dict[str, float] = {}  # seconds until a chapter was cut
        self._scale, self._budget = scale, budget

    def note(self, slug: str, state: str, ran: float = 0.0) -> None:
        """Keep what became of a chapter, and after how many seconds."""
        self._states[slug], self._ran[slug] = state, ran

    def of(self, state: str) -> list[str]:
        """The slugs in a state, in the order of the run."""
        return [slug for slug, found in self._states.items() if found == state]

    def unfinished(self) -> list[str]:
        """What a next run should take up: the ones not started, then the ones cut, which may be too long."""
        return self.of("not started") + self.of("cut")

    def summary(self) -> str:
        """How many chapters ended how, and the names of those that are not done."""
        counts = ", ".join(f"{len(self.of(state))} {state}" for state in STATES)
        budget = f" of {self._budget.seconds:.0f}" if math.isfinite(self._budget.seconds) else ""
        lines = [f"{self._scale}: {counts}; {self._budget.used():.0f}{budget} s used."]
        for state in STATES[1:]:
            lines += [f"  {state}: {', '.join(map(self._named, self.of(state)))}"] if self.of(state) else []
        left = self.unfinished()
        if left and all(self._needs(slug) > 0.95 * self._budget.seconds for slug in left):
            lines.append(f"  None of these fits into {self._budget.seconds:.0f} s: give a larger budget.")
        return "\n".join(lines)

    def _needs(self, slug: str) -> float:
        return max(self._ran.get(slug, 0.0), self._dues[slug].seconds or 0.0)

    def _named(self, slug: str) -> str:
        cut = self._states[slug] == "cut"
        took = f"after {self._ran[slug]:.0f} s" if cut else f"took {self._needs(slug):.0f} s last time"
        return f"{slug} ({took})" if self._needs(slug) and self._states[slug] != "failed" else slug
