"""A small checkout of the book for tests: one toy chapter that runs in seconds and shows everything a chapter can."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reprolib import records
from reprolib.chapter import Chapter
from reprolib.claims import above, below, within
from reprolib.project import ChapterFile

# Before any kernel starts: equal hashes, no window, no live progress in outputs that are compared.
os.environ |= {"PYTHONHASHSEED": "0", "MPLBACKEND": "agg", "REPRO_PROGRESS": "off"}
for _name in ("REPRO_SCALE", "REPRO_DEVICE", "REPRO_SEED", "REPRO_RECORD", "REPRO_ROOT"):
    os.environ.pop(_name, None)

METHOD = "import torch\n\n\ndef double(x):\n    return 2 * x"
SETUP = """from typing import NamedTuple
from reprolib import Chapter, above, approx, figure, say, slider, within

class Sizes(NamedTuple):
    n: int

ch = Chapter("toy")
sizes = ch.scale(quick=Sizes(10), full=Sizes(12))"""
CLAIMS = """ch.claim("c1", "Noise is above zero.", paper="Table 1", criterion=above(0), unit="nats", headline=True)
ch.claim("c2", "Doubling is exact.", paper="Equation 2", criterion=within(1e-10))
ch.claims_table()"""
EXPERIMENT = """noise = 1 + torch.randn(sizes.n, generator=ch.generator())
for _ in ch.progress(range(3), "E1: training"):
    pass
r = ch.measure("c1", noise)
ch.measure("c2", double(0.5) - 1.0)
ch.record("e1/noise", noise)
say(f"The mean is {approx(r.mean)}: **{r.verdict}**.")"""
SHOW = """import matplotlib.pyplot as plt
frames = []
for k in range(3):
    fig, ax = plt.subplots(figsize=(2, 1.5))
    ax.plot([0, k])
    frames.append(fig)
slider(frames, [f"slope {k}" for k in range(3)], name="slope", caption="Move it.", alt="Three lines of growing slope.")
fig, ax = plt.subplots(figsize=(2, 1.5))
ax.plot([1, 2])
figure(fig, name="fig-line", caption="A line.", alt="A straight line that rises from one to two.")"""
TOY: list[tuple[list[str], str]] = [
    (["method"], METHOD),
    ([], SETUP),
    (["claims"], CLAIMS),
    ([], EXPERIMENT),
    ([], SHOW),
    ([], "ch.verdicts()"),
    ([], "ch.finish()"),
]


def toy_notebook(cells: list[tuple[list[str], str]]) -> dict[str, Any]:
    """A notebook: a title, then the code cells (tags, source); the first code cell is cell 2."""
    code = [
        {
            "cell_type": "code",
            "id": f"cell-{i}",
            "metadata": {"tags": tags} if tags else {},
            "execution_count": None,
            "outputs": [],
            "source": text.splitlines(keepends=True),
        }
        for i, (tags, text) in enumerate(cells)
    ]
    title = {"cell_type": "markdown", "id": "title", "metadata": {}, "source": ["# A toy\n", "In prose."]}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": [title, *code], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


Make = Callable[..., ChapterFile]


def make_checkout(top: Path, cells: list[tuple[list[str], str]] = TOY, slug: str = "toy") -> ChapterFile:
    """A checkout in ``top`` with one chapter made of ``cells``."""
    path = top / "chapters" / "part" / f"{slug}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    (top / "_toc.yml").write_text("root: book/welcome\n", encoding="utf-8")
    path.write_text(json.dumps(toy_notebook(cells), indent=1) + "\n", encoding="utf-8")
    return ChapterFile(slug, "part", path)


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
    return [sys.executable, "-m", "reprolib"]
