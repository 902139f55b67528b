"""Which chapter comes first, what still fits into a budget, and what became of each; no chapter is run here."""

import math

import pytest

from repro import schedule
from repro.schedule import Budget, Due, Tally, survey, urgency
from reprolib import project
from reprolib.project import ChapterFile


@pytest.fixture
def clock(monkeypatch):
    """Lets a test say how much time goes by."""
    now = [1000.0]
    monkeypatch.setattr(schedule.time, "monotonic", lambda: now[0])

    def go(seconds):
        now[0] += seconds

    return go


def due(slug, seconds=None, why="missing"):
    return Due(ChapterFile(slug, "part", None), why, "", seconds)


# ------------------------------------------------------------------------------------------------------- the order


def test_the_most_overdue_come_first_missing_unreadable_stale_and_fresh_oldest_first(checkout, store):
    kinds = {"fresh": {}, "stale": {"code_hash": "0" * 64}, "torn": {}}
    for slug, month in {"a-fresh": 4, "b-fresh": 1, "c-stale": 5, "d-stale": 2, "e-torn": 3, "f-torn": 1}.items():
        store(checkout(slug=slug), "full", date=f"2026-0{month}-02T03:04:05+00:00", **kinds[slug[2:]])
    for slug in ("e-torn", "f-torn"):
        project.find(slug).record("full").write_text("{")
    for slug in ("g-gone", "h-gone"):
        checkout(slug=slug)
    found = survey(project.chapters(), "full")
    assert [d.chapter.slug[0] for d in found] == list("abcdefgh")
    assert "".join(d.chapter.slug[0] for d in sorted(found, key=urgency)) == "ghefdcba"


def test_a_survey_knows_how_long_a_record_took_at_its_scale_and_nothing_of_others(checkout, store):
    chapter = checkout()
    store(chapter, "full", wall_seconds=300.5)
    (full,), (quick,) = survey([chapter], "full"), survey([chapter], "quick")
    assert full == (chapter, None, "2026-01-02T03:04:05+00:00", 300.5)
    assert quick == (chapter, "missing", "", None)
    chapter.record("full").write_text("{")
    (torn,) = survey([chapter], "full")
    assert torn.why.startswith("unreadable: The record ") and (torn.date, torn.seconds) == ("", None)


def test_a_notebook_that_cannot_be_read_does_not_stop_the_survey(stored):
    stored.path.write_text("{\n<<<<<<< HEAD\n")
    (found,) = survey([stored], "quick")
    assert found.why.startswith("unreadable: ") and "merge conflict marks" in found.why
    assert urgency(found)[0] == 1


# ------------------------------------------------------------------------------------------------------ the budget


def test_a_chapter_fits_while_its_last_run_took_no_longer_than_what_is_left(clock):
    budget = Budget(100)
    assert budget.fits(due("a", 100)) and not budget.fits(due("a", 100.1)) and budget.fits(due("a"))
    clock(60)
    assert (budget.used(), budget.left()) == (60, 40)
    assert budget.fits(due("a", 40)) and not budget.fits(due("a", 41))
    clock(39.9)
    assert budget.fits(due("a")) and not budget.over()
    clock(0.1)
    assert budget.over() and budget.left() == 0 and not budget.fits(due("a")) and not budget.fits(due("a", 0.0))
    clock(50)
    assert budget.left() == 0


def test_a_budget_without_end_is_ended_by_stopping_it(clock):
    budget = Budget()
    clock(1e9)
    assert budget.left() == math.inf and budget.fits(due("a", 1e12)) and not budget.over()
    budget.stop()
    assert budget.left() == 0 and budget.over() and not budget.fits(due("a", 1.0))


# ------------------------------------------------------------------------------------------------------- the tally


def test_the_summary_names_what_is_not_done_with_what_it_needs(clock):
    budget = Budget(540)
    tally = Tally([due("a", 9), due("b"), due("c", 20), due("d"), due("e", 700), due("f")], "full", budget)
    assert tally.unfinished() == list("abcdef")
    for slug, state, ran in (("a", "done", 0), ("b", "cut", 212.3), ("c", "failed", 0)):
        tally.note(slug, state, ran)
    clock(540.2)
    assert tally.unfinished() == ["d", "e", "f", "b"]
    assert tally.summary() == (
        "full: 1 done, 1 failed, 1 cut, 3 not started; 540 of 540 s used.\n"
        "  failed: c\n"
        "  cut: b (after 212 s)\n"
        "  not started: d, e (took 700 s last time), f"
    )


def test_a_budget_too_small_for_all_that_is_left_is_called_so(clock):
    budget = Budget(100)
    tally = Tally([due("a", 300), due("b", 95)], "quick", budget)
    clock(3)
    tally.note("b", "cut", 97)
    assert tally.summary().endswith("\n  None of these fits into 100 s: give a larger budget.")
    tally.note("b", "cut", 20)  # its time had begun late; last time it took 95 s
    assert "None of these" not in tally.summary()


def test_nothing_left_and_no_budget_make_one_line(clock):
    tally = Tally([due("a")], "quick", Budget())
    clock(3)
    tally.note("a", "done")
    assert tally.summary() == "quick: 1 done, 0 failed, 0 cut, 0 not started; 3 s used." and tally.unfinished() == []
