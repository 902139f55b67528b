"""Does the book say the same again? Run it many times under changing conditions, and keep every disagreement.

Each round runs all chapters at quick scale in an order of its own, on one thread or two in turns, with a hash seed of
its own; every tenth round each kernel may hold 2 GB and no more. A run agrees when its verdicts are those of the
stored record and its numbers lie inside their tolerances. ``results/soak.jsonl`` gets a line a run, at its end, so that
a soak can be stopped at any moment and gone on with.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from repro import board, runner
from reprolib import notebook, records
from reprolib.project import ChapterFile, ReproError

MEMORY_MB = 2000  # of a process in a round under memory pressure
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Conditions(NamedTuple):
    """What one round changes: threads, seed of str's hash, whether memory is short, whether Jupyter runs the cells."""

    round: int  # from 1
    threads: int
    hash_seed: int
    memory_mb: int | None
    jupyter: bool

    def env(self) -> dict[str, str]:
        """The environment variables of a run under these conditions."""
        threads = dict.fromkeys(("REPRO_THREADS", *POOLS), str(self.threads))
        limit = {"REPRO_MEMORY_MB": str(self.memory_mb)} if self.memory_mb else {}
        quiet = {"OMP_WAIT_POLICY": "PASSIVE"}  # threads that wait leave the cores to another chapter's
        return {"PYTHONHASHSEED": str(self.hash_seed), **threads, **limit, **quiet}

    def order(self, chapters: Iterable[ChapterFile]) -> list[ChapterFile]:
        """The chapters in this round's order."""
        shuffled = list(chapters)
        random.Random(self.round).shuffle(shuffled)
        return shuffled


def conditions(round: int) -> Conditions:
    """Those of a round: an even one has two threads, every tenth is short of memory; both ways to run take turns."""
    short = round % 10 == 0
    return Conditions(
        round,
        2 - round % 2,
        random.Random(round).randrange(1, 2**32),
        MEMORY_MB if short else None,
        short or round % 4 < 2,
    )


def path(root: Path) -> Path:
    """Where the runs are kept."""
    return root / "results" / "soak.jsonl"


def lines(root: Path) -> list[dict[str, Any]]:
    """All runs kept, the oldest first.

    Raises:
        ReproError: A line is not JSON.
    """
    if not path(root).is_file():
        return []
    try:
        return [json.loads(line) for line in path(root).read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise ReproError(f"{path(root)} holds a line that is not JSON ({error}); remove that line.") from None


def soak(chapters: list[ChapterFile], root: Path, times: int, jobs: int = 1) -> Iterator[dict[str, Any]]:
    """Run all chapters ``times`` times, ``jobs`` at a time; yields each run's line after it is kept.

    A round that was stopped is gone on with: what it ran of the present code is not run again.

    Raises:
        ReproError: A chapter has no record to compare with, or a kept line is not JSON.
    """
    for chapter in chapters:
        records.read(chapter.record("quick"))
    kept = lines(root)
    done = {(line["round"], line["slug"], line["code_hash"]) for line in kept}
    first = max((line["round"] for line in kept), default=1)
    if all((first, c.slug, _code(c)) in done for c in chapters):
        first += 1
    halted = Event()
    pool = ThreadPoolExecutor(jobs)
    try:
        for state in map(conditions, range(first, first + times)):
            due = [c for c in state.order(chapters) if (state.round, c.slug, _code(c)) not in done]
            for ended in as_completed([pool.submit(_one, c, state, jobs, halted) for c in due]):
                yield _keep(root, ended.result())
    finally:
        halted.set()  # the threads stop what runs
        pool.shutdown(cancel_futures=True)


def _code(chapter: ChapterFile) -> str:
    return notebook.code_hash(notebook.read(chapter.path))


def _one(chapter: ChapterFile, state: Conditions, jobs: int, halted: Event) -> dict[str, Any]:
    """One run as a line: its conditions, its cost, and how it differs from the stored record."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    line = {**state._asdict(), "jobs": jobs, "slug": chapter.slug, "code_hash": _code(chapter), "date": date}
    stopped = halted.is_set
    try:
        fresh = runner.run(chapter, "quick", jupyter=state.jupyter, keep=False, env=state.env(), stopped=stopped)
    except runner.Cut:
        raise
    except ReproError as error:
        return {**line, "seconds": None, "peak_mb": None, "problems": [str(error)]}
    problems = records.compare(fresh, records.read(chapter.record("quick")))
    return {**line, "seconds": fresh["wall_seconds"], "peak_mb": fresh["peak_ram_mb"], "problems": problems}


def _keep(root: Path, line: dict[str, Any]) -> dict[str, Any]:
    with path(root).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return line


def table(chapters: Iterable[ChapterFile], root: Path) -> str:
    """The kept runs of the present code as an HTML table: a row a chapter, with each disagreement in words."""
    kept = lines(root)
    rows = "".join(
        _row(c, [ln for ln in kept if (ln["slug"], ln["code_hash"]) == (c.slug, _code(c))]) for c in chapters
    )
    head = board.heads("chapter", "runs", "seconds", "peak MB", "disagreements")
    return board.table("Repeated runs by chapter", head, rows)


def _row(chapter: ChapterFile, runs: list[dict[str, Any]]) -> str:
    head = f'<tr><th scope="row">{escape(chapter.slug)}</th><td>{len(runs)}</td>'
    if not runs:
        return f'{head}<td colspan="3">not yet repeated</td></tr>'
    spans = [_span([run[key] for run in runs if run[key] is not None]) for key in ("seconds", "peak_mb")]
    wrong = [f"<li>{escape(words(run))}: {escape(problem)}</li>" for run in runs for problem in run["problems"]]
    count = sum(bool(run["problems"]) for run in runs)
    folded = f"<details><summary>{count}</summary><ul>{''.join(wrong)}</ul></details>" if wrong else "none"
    return head + "".join(f"<td>{cell}</td>" for cell in (*spans, folded)) + "</tr>"


def _span(values: list[float]) -> str:
    return f"{min(values):.0f} to {max(values):.0f}" if values else "none ended"


def words(line: dict[str, Any]) -> str:
    """A kept line's chapter and conditions in words."""
    threads = f"{line['threads']} thread{'s' if line['threads'] > 1 else ''}"
    memory = f", {line['memory_mb']} MB" if line["memory_mb"] else ""
    beside = f", {line['jobs']} at a time" if line["jobs"] > 1 else ""
    how = "Jupyter" if line["jupyter"] else "plain"
    return f"{line['slug']}, round {line['round']} ({threads}{memory}{beside}, {how})"
