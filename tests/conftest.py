"""What all tests share: a quiet environment, checkouts with a toy chapter, records without a run."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toybook import TOY, Make, make_checkout

from reprolib import records
from reprolib.chapter import Chapter
from reprolib.claims import above, below, within
from reprolib.project import ChapterFile

# Before any kernel starts: equal hashes, no window, no live progress in outputs that are compared. A notebook that
# nbval runs compares its record as well.
os.environ |= {"PYTHONHASHSEED": "0", "MPLBACKEND": "agg", "REPRO_PROGRESS": "off", "REPRO_COMPARE": "on"}
for _name in ("REPRO_SCALE", "REPRO_DEVICE", "REPRO_SEED", "REPRO_RECORD", "REPRO_ROOT"):
    os.environ.pop(_name, None)


@pytest.fixture(autouse=True)
def no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests than nbval's own decide themselves what a run is compared with."""
    monkeypatch.delenv("REPRO_COMPARE")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a checkout from cells (the toy's by default) and lets ``repro`` find it."""
    monkeypatch.setenv("REPRO_ROOT", str(tmp_path))

    def make(cells: list[tuple[list[str], str]] = TOY, slug: str = "toy") -> ChapterFile:
        return make_checkout(tmp_path, cells, slug)

    return make


@pytest.fixture
def toy_cells() -> list[tuple[list[str], str]]:
    """The toy's code cells, (tags, source), to be changed at will."""
    return list(TOY)


@pytest.fixture
def stored(checkout: Make) -> ChapterFile:
    """A toy chapter with a fresh quick record of three claims, one a verdict, made without running the notebook."""
    chapter = checkout()
    store(chapter)
    return chapter


def store(chapter: ChapterFile, scale: str = "quick", **changes: Any) -> records.Record:
    """Write a record of three claims, one a verdict, as a run of ``chapter`` would."""
    from reprolib import notebook

    ch = Chapter(chapter.slug)
    ch.claim("c1", "A is large.", paper="Table 1: 3", criterion=above(0), unit="nats", headline=True)
    ch.claim("c2", "B is zero.", paper="Equation 2", criterion=within(1e-6))
    ch.claim("c3", "C is small.", paper="Figure 3", criterion=below(0))
    ch.measure("c1", [1.0, 2.0, 3.0])
    ch.measure("c2", 1.0)
    ch.measure("c3", [-1.0, 1.0, 0.5])
    ch.record("e1/a", [[1.0, 2.0], [3.0, 4.0]], tolerance=0.1)
    record = ch._report() | {
        "scale": scale,
        "code_hash": notebook.code_hash(notebook.read(chapter.path)),
        "date": "2026-01-02T03:04:05+00:00",
        "wall_seconds": 1.5,
        "runner": "plain",
        "beside": records.beside(chapter) if scale == "quick" else None,
    }
    return records.write(chapter.record(scale), record | changes)


@pytest.fixture(name="store")
def store_fixture() -> Callable[..., records.Record]:
    """The function that writes such a record for any chapter and scale, with fields changed by keyword."""
    return store


@pytest.fixture
def repro_command() -> list[str]:
    """How a test starts the ``repro`` command in a process of its own."""
    return [sys.executable, "-m", "repro"]
