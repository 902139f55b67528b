"""What the book costs: its chapters, their start, the site: ``python -m benchmarks.book`` (about five minutes).

Seconds and memory of the chapters are those of their stored quick runs. Starts and builds are measured anew: an empty
notebook, the imports, a fork of a process that has imported all; the site in a copy of the checkout, cold, after one
edit, and unchanged. Leaves ``benchmarks/book.json``, and the same as Markdown in ``benchmarks/book.md``.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.bench import HERE, machine
from repro import schedule, site
from reprolib import project, records

Kept = dict[str, Any]
IMPORTS = "import matplotlib.pyplot, torch; from reprolib import Chapter, figure, slider, table"
FORK = f"""
import os, time
{IMPORTS}
for _ in range({{rounds}}):
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    print(time.perf_counter() - start)
"""


def costs(top: Path) -> list[Kept]:
    """Cost of each notebook as its quick record says: seconds in all, and those outside of the chapter's own clock."""
    found = []
    for chapter in project.notebooks(top):
        kept = records.read(chapter.record("quick"))
        outside = round(kept["wall_seconds"] - kept["run_seconds"], 1)
        found.append({"slug": chapter.slug, "part": chapter.part, "seconds": kept["wall_seconds"], "start": outside})
        found[-1] |= {"mb": kept["peak_ram_mb"], "threads": kept["threads"]}
    return found


def whole_book(chapters: list[Kept], cores: int = 2) -> float:
    """Seconds on so many cores: notebooks with several threads run alone, of the others as many as there are cores."""
    alone = sum(c["seconds"] for c in chapters if c["threads"] > 1)
    return alone + schedule.makespan([c["seconds"] for c in chapters if c["threads"] == 1], cores)


def times(work: Callable[[], Any], rounds: int) -> list[float]:
    """Seconds of each of some repetitions, after one that warms the file system up."""
    work()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        taken.append(round(time.perf_counter() - start, 4))
    return taken


def empty_notebook() -> None:
    """Start a kernel as the runner does, execute nothing, end it."""
    from nbclient import NotebookClient
    from nbformat.v4 import new_notebook

    client = NotebookClient(new_notebook(), kernel_name="python3", extra_arguments=["--log-level=ERROR"])
    client.shutdown_kernel = "immediate"
    client.execute()


def python(code: str) -> str:
    """What a Python process of its own prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def starts(rounds: int = 7) -> dict[str, list[float]]:
    """Seconds of the parts of a start, alone."""
    return {
        "a bare Python process": times(lambda: python("pass"), rounds),
        "a process with the imports of a chapter": times(lambda: python(IMPORTS), rounds),
        "a process with what runs notebooks": times(lambda: python("import nbclient, nbformat"), rounds),
        "an empty notebook in such a process": times(empty_notebook, rounds),
        "a fork of a process that has imported all": [
            round(float(line), 4) for line in python(FORK.format(rounds=rounds)).split()
        ],
    }


def copy(top: Path, folder: Path) -> Path:
    """What the site is made of, in another folder, with the scripts of the last build and none of its pages."""
    for name in site.INPUTS:
        (shutil.copytree if (top / name).is_dir() else shutil.copy)(top / name, folder / name)
    shutil.copytree(top / "tests" / "chapters", folder / "tests" / "chapters")  # the trust page asks how old they are
    if (top / "_build" / "static").is_dir():
        shutil.copytree(top / "_build" / "static", folder / "_build" / "static")
    return folder


def edit(notebook: Path) -> None:
    """Add a sentence to the end of the first text cell of a notebook."""
    nb = json.loads(notebook.read_text(encoding="utf-8"))
    cell = next(c for c in nb["cells"] if c["cell_type"] == "markdown")
    cell["source"] = [*cell["source"], "\n\nThis sentence was added."]
    notebook.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def builds(top: Path) -> dict[str, float]:
    """Seconds of building the site cold, after an edit of one chapter, and with nothing changed."""
    taken = {}
    with tempfile.TemporaryDirectory() as name:
        folder = copy(top, Path(name))
        for kind in ("cold", "after an edit of one chapter", "with nothing changed"):
            if kind.startswith("after"):
                edit(project.chapters(folder)[0].path)
            start = time.perf_counter()
            site.build(folder, strict=False)
            taken[kind] = round(time.perf_counter() - start, 1)
    return taken


def page(kept: Kept) -> str:
    """What was measured, as Markdown."""
    chapters, alone = kept["chapters"], {k: statistics.median(v) for k, v in kept["starts"].items()}
    total, started = (sum(c[key] for c in chapters) for key in ("seconds", "start"))
    bare, imports, _, empty, fork = alone.values()
    saved = len(chapters) * (imports - bare - fork)
    day = datetime.fromisoformat(kept["date"])
    lines = [
        f"One after another, the quick runs of the {len(chapters)} notebooks take {total / 60:.1f} minutes; on two "
        f"cores, the longest first and those that compute on two threads alone, {whole_book(chapters) / 60:.1f}.",
        "",
        f"Of all seconds, {100 * started / total:.0f} % pass outside of the chapters' own clocks, "
        f"{statistics.median(c['start'] for c in chapters):.1f} s each in the middle: the process that runs the "
        "notebook, its kernel, imports, and the writing of outputs and record. The parts alone, on "
        f"{day.day} {day:%B %Y} ({kept['machine']}; medians of {len(kept['starts']['a bare Python process'])}):",
        "",
        *table(("Start", "Seconds"), [(name, f"{value:.3f}") for name, value in alone.items()]),
        "",
        f"Forking from a process that has imported all would save at most {saved:.0f} s of the book, "
        f"{100 * saved / total:.0f} %; a kernel kept warm at most {len(chapters) * empty:.0f} s, "
        f"{100 * len(chapters) * empty / total:.0f} %.",
        "",
        *table(("The site", "Seconds"), [(name, f"{value:.1f}") for name, value in kept["site"].items()]),
        "",
        *table(("Notebook", "Seconds", "of which start", "Memory (MB)", "Threads"), [row(c) for c in chapters]),
    ]
    return "\n".join(lines) + "\n"


def row(c: Kept) -> tuple[str, ...]:
    """A notebook's line of the table."""
    link = f"[{c['slug']}](/{'book' if c['part'] == 'tools' else 'chapters'}/{c['part']}/{c['slug']}.ipynb)"
    return link, f"{c['seconds']:.1f}", f"{c['start']:.1f}", f"{c['mb']:,.0f}", str(c["threads"])


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A Markdown table, numbers to the right."""
    rule = ("---", *["---:"] * (len(head) - 1))
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def main() -> None:
    """Measure all, keep it as JSON and as Markdown."""
    top = project.root()
    kept = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
    kept |= {"versions": {name: version(name) for name in ("torch", "nbclient", "jupyter-book", "sphinx")}}
    kept |= {"chapters": costs(top), "starts": starts(), "site": builds(top)}
    text = json.dumps(kept, indent=1, ensure_ascii=False) + "\n"
    records.write_together({HERE / "book.json": text, HERE / "book.md": page(kept)})
    print(page(kept))


if __name__ == "__main__":
    main()
