"""Time our method and its peers on the same work, turn by turn, and keep what was measured.

`python -m benchmarks.fisher` and its like run from the checkout; each leaves ``benchmarks/<name>.json``, which the
benchmark page of the book shows. Turns alternate, so that a slow moment of the machine falls on all alike.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.testing import assert_close

from reprolib import project
from reprolib.notebook import load_methods
from reprolib.records import write_atomic

HERE = Path(__file__).parent
Work = Callable[[], Any]


@cache
def chapter(slug: str) -> ModuleType:
    """What the reader reads: the cells of a chapter tagged ``method``, as a module."""
    return load_methods(project.find(slug).path)


def agree(ours: Any, theirs: Any, tolerance: float = 1e-8) -> None:
    """Equal up to ``tolerance`` times the largest entry; tensors, arrays and numbers.

    Raises:
        AssertionError: They are not, or have other shapes; says how far apart they are.
    """
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (ours, theirs))
    assert_close(a, b, rtol=0, atol=tolerance * b.abs().max().item())


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch, BLAS and OpenMP on so many threads, and as they were afterwards."""
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


def compete(title: str, ours: tuple[str, Work], peers: dict[str, Work], rounds: int = 9) -> dict[str, Any]:
    """Median seconds of each contestant over ``rounds`` turns after one to warm up.

    Returns:
        ``title``; ``ours`` (its name); ``seconds`` by name, a list of ``rounds`` each; and ``ratio``: median over the
        turns of the fastest peer's time over ours, above 1 when ours is faster. The fastest has the smallest median.

    Raises:
        ValueError: No peer, or fewer than three rounds.
    """
    if not peers or rounds < 3:
        raise ValueError(f"compete needs a peer and at least 3 rounds; got {len(peers)} peers, {rounds} rounds.")
    name, mine = ours
    contestants = {name: mine, **peers}
    for work in contestants.values():
        work()
    seconds: dict[str, list[float]] = {key: [] for key in contestants}
    for turn in range(rounds):
        order = list(contestants) if turn % 2 else list(contestants)[::-1]
        for key in order:
            start = time.perf_counter()
            contestants[key]()
            seconds[key].append(time.perf_counter() - start)
    fastest = min(peers, key=lambda key: statistics.median(seconds[key]))
    ratio = statistics.median(p / o for p, o in zip(seconds[fastest], seconds[name], strict=True))
    medians = {key: round(statistics.median(values), 5) for key, values in seconds.items()}
    print(f"{title}: {medians}, fastest peer / ours = {ratio:.2f}", flush=True)
    rounded = {key: [round(value, 5) for value in values] for key, values in seconds.items()}
    return {"title": title, "ours": name, "fastest_peer": fastest, "ratio": round(ratio, 3), "seconds": rounded}


def machine() -> str:
    """This machine in words."""
    used = torch.get_num_threads()
    return f"{platform.machine()}, {os.cpu_count()} CPU cores, {used} thread{'s' * (used > 1)}"


def save(name: str, contests: list[dict[str, Any]], packages: tuple[str, ...] = ()) -> None:
    """Keep the contests of one benchmark in ``benchmarks/<name>.json`` with date, machine and versions."""
    record = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {package: version(package) for package in ("torch", "numpy", *packages)},
        "contests": contests,
    }
    write_atomic(HERE / f"{name}.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def measure(name: str, contests: Sequence[Callable[[], dict[str, Any]]], packages: tuple[str, ...]) -> None:
    """Hold contests on one thread, one after the other, and keep what was measured after each.

    Chapters compute on one thread, for most of their matrices are small; so do their peers here.
    """
    with threads(1):
        held: list[dict[str, Any]] = []
        for contest in contests:
            held.append(contest())
            save(name, held, packages)
