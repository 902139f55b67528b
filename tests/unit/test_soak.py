"""The soak: the same chapters under changing conditions, each run kept at its end."""

import json
from threading import Barrier

import pytest
from toybook import Make

from repro import cli, runner, soak
from reprolib.project import ReproError


@pytest.fixture
def ran(checkout: Make):
    """The toy with its record."""
    chapter = checkout()
    runner.run(chapter, jupyter=False)
    return chapter


def _again(chapter, times=1):
    return list(soak.soak([chapter], chapter.root, times))


def test_ten_rounds_hold_both_numbers_of_threads_both_ways_to_run_and_one_shortage_of_memory():
    rounds = [soak.conditions(i) for i in range(1, 11)]
    assert {(c.threads, c.jupyter) for c in rounds} == {(1, True), (1, False), (2, True), (2, False)}
    assert [c.round for c in rounds if c.memory_mb] == [10]
    assert len({c.hash_seed for c in rounds}) == 10
    assert rounds == [soak.conditions(i) for i in range(1, 11)]
    letters = list("abcdefgh")
    assert len({"".join(c.order(letters)) for c in rounds}) == 10
    assert all(sorted(c.order(letters)) == letters for c in rounds)


def test_a_run_feels_its_conditions(checkout, toy_cells):
    tell = "import os, resource, torch\nch.record('felt', [torch.get_num_threads(), int(os.environ['PYTHONHASHSEED']),"
    tell += " resource.getrlimit(resource.RLIMIT_DATA)[0] / 1e6])"
    cells = [*toy_cells[:4], ([], tell), *toy_cells[5:]]
    state = soak.Conditions(10, 1, 77, 1900, False)
    record = runner.run(checkout(cells), jupyter=False, keep=False, env=state.env())
    assert record["numbers"]["felt"]["values"] == [1, 77, 1900]


def test_a_run_that_agrees_is_kept_so_and_the_next_soak_goes_on(ran, monkeypatch):
    before = ran.path.read_bytes(), ran.record("quick").read_bytes()
    (line,) = _again(ran)
    assert (line["round"], line["slug"], line["problems"]) == (1, "toy", []) and line["seconds"] > 0
    assert soak.lines(ran.root) == [line]
    monkeypatch.setattr(soak, "_one", lambda _chapter, state, *_: {**line, **state._asdict()})
    assert [ln["round"] for ln in _again(ran, 2)] == [2, 3]
    assert (ran.path.read_bytes(), ran.record("quick").read_bytes()) == before
    assert "<td>3</td>" in soak.table([ran], ran.root) and "none" in soak.table([ran], ran.root)


def test_a_run_that_disagrees_or_fails_is_kept_in_words(ran, monkeypatch, capsys):
    fresh = runner.run

    def other(*args, **settings):
        record = fresh(*args, **settings)
        record["claims"][0]["verdict"] = "not <reproduced>"
        return record

    monkeypatch.setattr(soak.runner, "run", other)
    assert cli.main(["soak", "--times", "1"]) == 1
    said = capsys.readouterr().out
    assert "toy, round 1 (1 thread, Jupyter): claim c1: not <reproduced>, stored reproduced" in said
    assert "1 runs, 1 of which disagree" in said

    def dies(*args, **settings):
        raise ReproError("the kernel died")

    monkeypatch.setattr(soak.runner, "run", dies)
    assert cli.main(["soak", "toy", "--times", "1"]) == 1
    shown = soak.table([ran], ran.root)
    assert "<summary>2</summary>" in shown and "not &lt;reproduced&gt;" in shown and "the kernel died" in shown


def test_two_at_a_time_are_under_way_together_and_a_stop_ends_what_runs(ran, monkeypatch):
    together, stopped = Barrier(2, timeout=20), []

    def one(chapter, state, jobs, halted):
        together.wait()
        if (state.round, chapter.slug) == (2, "b") and halted.wait(20):
            stopped.append("b")
        return {**state._asdict(), "jobs": jobs, "slug": chapter.slug, "code_hash": "", "problems": []}

    monkeypatch.setattr(soak, "_one", one)
    monkeypatch.setattr(soak.records, "read", lambda _: {})
    going = soak.soak([ran._replace(slug="a"), ran._replace(slug="b")], ran.root, 2, jobs=2)
    assert [next(going)["round"], next(going)["round"]] == [1, 1]
    assert next(going)["slug"] == "a"
    going.close()
    assert stopped == ["b"] and len(soak.lines(ran.root)) == 3


def test_what_cannot_be_soaked_is_refused(ran, capsys):
    for setting in ("--times", "--jobs"):
        assert cli.main(["soak", setting, "0"]) == 1
        assert f"{setting} must be at least 1; got 0" in capsys.readouterr().err
    soak.path(ran.root).write_text('{"round": 1\n', encoding="utf-8")
    assert cli.main(["soak"]) == 1
    assert "holds a line that is not JSON" in capsys.readouterr().err
    ran.record("quick").unlink()
    assert cli.main(["soak"]) == 1
    assert "There is no record toy.json at quick scale" in capsys.readouterr().err


def test_runs_of_an_earlier_version_do_not_count(ran):
    line = {"round": 1, "slug": "toy", "code_hash": "another", "problems": ["wrong"]}
    soak.path(ran.root).write_text(json.dumps(line) + "\n", encoding="utf-8")
    assert "not yet repeated" in soak.table([ran], ran.root)
