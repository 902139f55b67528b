"""Every chapter of the book: its stored record fits it, is small enough, and is what a fresh run gives."""

import json
import re
from pathlib import Path

import pytest

from repro import cli, lint, mutate
from reprolib import notebook, project, records

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = project.chapters(ROOT)


@pytest.fixture(params=CHAPTERS, ids=[c.slug for c in CHAPTERS])
def chapter(request, monkeypatch):
    monkeypatch.setenv("REPRO_ROOT", str(ROOT))
    return request.param


def outputs_of(nb, call):
    """The text shown by the cells whose last line is ``call``."""
    cells = [c for c in nb["cells"] if c["cell_type"] == "code" and notebook.source(c).strip().endswith(call)]
    data = [o["data"] for c in cells for o in c["outputs"] if "data" in o]
    return ["".join(d.get("text/markdown") or d["text/plain"]) for d in data]


def test_the_book_has_chapters_and_each_slug_once():
    assert CHAPTERS and len({c.slug for c in CHAPTERS}) == len(CHAPTERS)


def test_the_stored_quick_record_exists_and_fits_the_code(chapter):
    assert records.staleness(chapter, "quick") is None
    assert records.staleness(chapter, "full") in (None, "missing")


def test_a_quick_run_is_quick_and_the_notebook_small(chapter):
    record = records.read(chapter.record("quick"))
    assert record["seed"] == 0 and record["scale"] == "quick" and record["device"].startswith("cpu: ")
    assert record["wall_seconds"] <= 60 and record["peak_ram_mb"] <= 2000
    assert chapter.path.stat().st_size <= lint.MAX_BYTES


def test_the_verdicts_on_the_page_are_those_of_the_record(chapter):
    record = records.read(chapter.record("quick"))
    (shown,) = outputs_of(notebook.read(chapter.path), "ch.verdicts()")
    quick = {
        cells[1].strip("* "): cells[4].split(":")[0].strip("* ")
        for cells in (re.split(r"(?<!\\)\|", line) for line in shown.splitlines()[2:])
    }
    assert quick == {c["id"]: c["verdict"] for c in record["claims"]}


def test_the_tests_notice_broken_methods_and_each_survivor_is_judged(chapter):
    found = mutate.tally(chapter)
    assert found, f"measure it: repro mutate {chapter.slug} --keep"
    assert found.share >= mutate.GOAL
    assert [name for name, why in found.survivors if not why] == []


def test_every_number_of_the_record_is_of_this_chapter(chapter):
    record = records.read(chapter.record("quick"))
    assert record["slug"] == chapter.slug and record["claims"]
    assert json.loads(chapter.record("quick").read_text(encoding="utf-8")) == record


def _seconds(chapter):
    return json.loads(chapter.record("quick").read_text(encoding="utf-8"))["wall_seconds"]


@pytest.mark.parametrize("part", sorted({c.part for c in CHAPTERS}))
def test_a_fresh_run_without_jupyter_agrees_with_the_stored_record(part, monkeypatch):
    """The quickest chapter of each part: nbval runs all of them with Jupyter, and compares their records too."""
    monkeypatch.setenv("REPRO_ROOT", str(ROOT))
    assert cli.check(min((c for c in CHAPTERS if c.part == part), key=_seconds), jupyter=False) == []
