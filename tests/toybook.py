"""A toy chapter that runs in seconds and shows everything a chapter can, and a checkout that holds it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reprolib.project import ChapterFile

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
# Ends a chapter that needs no torch: hands over the report that lies in its checkout (see `lend`) as its own.
HAND_OVER = """import os
from pathlib import Path
Path(os.environ["REPRO_RECORD"]).write_text(Path(os.environ["REPRO_ROOT"], "report.json").read_text())"""
PLAN = {
    "session": 50,
    "prerequisites": ["linear algebra"],
    "goals": ["solve an equation", "check a solution"],
    "minutes": {"The idea": 20, "The method": 30},
    "demonstration": "Change 1 to 2 and see it break.",
    "misconception": "That it cannot break.",
    "correction": "It breaks before their eyes.",
    "questions": ["Why did it break?", "Could it not have?"],
}


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


def lend(chapter: ChapterFile, report: dict[str, Any]) -> None:
    """Put a report, with a thousand numbers more, where a chapter that ends with ``HAND_OVER`` takes it."""
    pad = {"pad": {"shape": [1000], "values": [0] * 1000, "tolerance": 0.0}}
    (chapter.root / "report.json").write_text(json.dumps(report | {"numbers": pad}), encoding="utf-8")
