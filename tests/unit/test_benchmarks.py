"""Benchmarks: contests at small sizes agree, and notice one who does not; what the page shows is kept and whole."""

import json
import re
import statistics
from datetime import datetime
from importlib import import_module

import numpy as np
import pytest
import torch

from benchmarks import bench, book
from repro import board
from reprolib import notebook, project

PAGE = project.root() / "book" / "tools" / "benchmarks.md"
SHOWN = re.findall(r"```{benchmark} (\w+)", PAGE.read_text(encoding="utf-8"))
CONTESTS = {
    "matrices": {
        "karcher": {"folds": 2, "n": 5, "d": 3},
        "tangents": {"n": 4, "d": 3},
        "embedded": {"trials": 2, "channels": 2, "samples": 60},
        "shrunk": {"trials": 2, "rows": 3, "samples": 40},
        "bures": {"n": 4, "d": 3},
        "geodesics": {"n": 3, "d": 3},
        "partials": {"sets": 2, "n": 20, "parts": 4},
        "programs": {"problems": 1, "n": 8},
        "sensing": {"n": 4, "m": 20},
    },
    "sampling": {
        "interval_points": {"m": 3, "draws": 40},
        "finite_points": {"n": 12, "m": 3, "draws": 30},
        "sketches": {"n": 64, "d": 3, "m": 16, "draws": 2},
        "exact_fits": {"n": 60, "d": 4},
        "lasso_paths": {"B": 2, "n": 20, "d": 30, "steps": 8},
        "pursuits": {"B": 2, "n": 20, "d": 30, "most": 4},
        "streams": {"n": 2000, "d": 16},
        "processes": {"kernels": 3, "n": 20},
    },
    "estimates": {
        "two_means": {"n": 100, "starts": 3},
        "mixtures": {"n": 100},
        "silhouettes": {"n": 60},
        "rankings": {"queries": 5, "documents": 30},
        "scales": {"observers": 2},
        "families": {"samples": 4},
        "factorisations": {"maps": 2, "n": 12, "m": 15, "k": 3},
    },
    "influence": {
        "ekfac": {"n": 12, "length": 4, "size": 6},
        "scores": {"queries": 2, "n": 12, "length": 4, "size": 6},
        "inverse_products": {"m": 4, "d": 30},
        "many_products": {"m": 4, "d": 30, "products": 3},
    },
}


def module(name):
    """A script of benchmarks/ whose peers are installed."""
    peers = {"matrices": "cvxpy", "sampling": "dppy", "estimates": "statsmodels", "influence": "kronfluence"}
    pytest.importorskip(peers[name])
    return import_module(f"benchmarks.{name}")


@pytest.fixture
def clock(monkeypatch):
    """Lets the works of a contest say how long they take."""
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def taking(*seconds):
        left = iter([0.0, *seconds])  # the first turn warms up

        def work():
            now[0] += next(left)

        return work

    return taking


# --------------------------------------------------------------------------------------------------- the measurement


def test_the_ratio_is_the_median_over_turns_of_the_fastest_peer_over_ours(clock, capsys):
    peers = {"slow": clock(9, 9, 9), "fast": clock(2, 8, 3)}
    found = bench.compete("work", ("ours", clock(1, 2, 3)), peers, rounds=3)
    assert found["seconds"] == {"ours": [1, 2, 3], "slow": [9, 9, 9], "fast": [2, 8, 3]}
    assert (found["fastest_peer"], found["ratio"]) == ("fast", 2.0)  # of 2, 4 and 1
    assert "fastest peer / ours = 2.00" in capsys.readouterr().out


def test_turns_alternate(monkeypatch):
    order = []
    works = {name: lambda name=name: order.append(name) for name in "abc"}
    bench.compete("work", ("a", works["a"]), {"b": works["b"], "c": works["c"]}, rounds=3)
    assert "".join(order) == "abc" + "cba" + "abc" + "cba"


@pytest.mark.parametrize(("peers", "rounds"), [({}, 9), ({"peer": print}, 2)])
def test_a_contest_without_a_peer_or_with_too_few_turns_is_refused(peers, rounds):
    with pytest.raises(ValueError, match=f"needs a peer and at least 3 rounds; got {len(peers)} peers, {rounds}"):
        bench.compete("work", ("ours", print), peers, rounds)


def test_contestants_agree_up_to_a_share_of_the_largest_entry():
    bench.agree(torch.tensor([1e-3, 100.0]), np.array([1.5e-3, 100.0]), 1e-5)
    with pytest.raises(AssertionError, match="not close"):
        bench.agree([1e-3, 100.0], [1.2e-2, 100.0], 1e-5)
    with pytest.raises(AssertionError, match="shape"):
        bench.agree(torch.ones(3), torch.ones(1, 3))
    with pytest.raises(AssertionError):
        bench.agree([float("nan")], [1.0])


def test_threads_are_as_before_after_a_contest_even_a_failed_one():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), bench.threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_what_is_measured_is_kept_after_each_contest_with_date_machine_and_versions(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "HERE", tmp_path)
    contest = {"title": "work", "ours": "we", "fastest_peer": "they", "ratio": 2.0, "seconds": {"we": [1], "they": [2]}}

    def second():
        assert len(json.loads((tmp_path / "few.json").read_text())["contests"]) == 1
        return {**contest, "title": "more"}

    bench.measure("few", [lambda: contest, second], ("scipy",))
    kept = json.loads((tmp_path / "few.json").read_text())
    assert [c["title"] for c in kept["contests"]] == ["work", "more"]
    assert "1 thread" in kept["machine"] and "scipy" in kept["versions"]
    assert datetime.fromisoformat(kept["date"]).tzinfo


# -------------------------------------------------------------------------------------------------------- the contests


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*pin_memory:UserWarning")
@pytest.mark.parametrize(("script", "contest"), [(s, c) for s, found in CONTESTS.items() for c in found])
def test_all_contestants_agree_at_a_small_size(script, contest):
    with bench.threads(1):
        found = getattr(module(script), contest)(**CONTESTS[script][contest], rounds=3)
    assert found["fastest_peer"] in found["seconds"] and found["ours"] in found["seconds"]
    assert all(len(turns) == 3 and min(turns) >= 0 for turns in found["seconds"].values())


@pytest.mark.parametrize("script", CONTESTS)
def test_every_contest_of_a_script_is_tried_here(script):
    assert [work.__name__ for work in module(script).CONTESTS] == list(CONTESTS[script])


def test_a_contestant_with_another_result_is_noticed(monkeypatch):
    matrices = module("matrices")
    shrunk = bench.chapter("augmented-covariance").shrunk_covariance
    monkeypatch.setattr(bench.chapter("augmented-covariance"), "shrunk_covariance", lambda Z: 1.001 * shrunk(Z))
    with pytest.raises(AssertionError, match="not close"):
        matrices.shrunk(2, 3, 40, rounds=3)


def test_points_of_another_law_are_noticed(monkeypatch):
    sampling, method = module("sampling"), bench.chapter("dpp-least-squares")
    monkeypatch.setattr(method, "interval_dpp", lambda m, draws, _: torch.rand(draws, m).sort(1).values)
    with pytest.raises(ValueError, match="draw from different laws"):
        sampling.interval_points(3, 60, rounds=3)
    monkeypatch.setattr(method, "chain_rule", lambda _space, draws, _g: torch.arange(3).expand(draws, 3))
    with pytest.raises(ValueError, match="some point too often or too rarely"):
        sampling.finite_points(12, 3, 30, rounds=3)


# ------------------------------------------------------------------------------------------------ what the book costs


def test_the_cost_of_every_notebook_is_that_of_its_record():
    found = {c["slug"]: c for c in book.costs(project.root())}
    assert set(found) == {n.slug for n in project.notebooks()}
    assert all(0 < c["start"] < c["seconds"] and c["mb"] > 100 and c["threads"] >= 1 for c in found.values())
    kept = json.loads(project.find("m-fac").record("quick").read_text(encoding="utf-8"))
    assert found["m-fac"]["start"] == pytest.approx(kept["wall_seconds"] - kept["run_seconds"], abs=0.051)


def test_on_two_cores_notebooks_with_two_threads_run_alone():
    chapters = [{"seconds": s, "threads": t} for s, t in ((10, 2), (5, 2), (6, 1), (5, 1), (4, 1))]
    assert book.whole_book(chapters) == 10 + 5 + 9  # 6 beside 5 and 4
    assert book.whole_book(chapters, cores=3) == 10 + 5 + 6


def test_times_leave_the_first_turn_out(monkeypatch):
    now = iter([5.0, 7.0, 10.0, 11.5])
    monkeypatch.setattr(book.time, "perf_counter", lambda: next(now))
    turns = []
    assert book.times(lambda: turns.append(1), 2) == [2.0, 1.5]
    assert len(turns) == 3


def test_the_parts_of_a_start_are_measured(monkeypatch):
    pytest.importorskip("nbclient")
    slow = "import time; time.sleep(0.5)"
    monkeypatch.setattr(book, "FORK", book.FORK.replace(book.IMPORTS, slow))
    monkeypatch.setattr(book, "IMPORTS", slow)
    found = book.starts(rounds=1)
    bare, imports, jupyter, empty, fork = (turns[0] for turns in found.values())
    assert all(len(turns) == 1 for turns in found.values())
    assert imports > 0.5 and min(bare, empty, fork) > 0
    assert bare < jupyter and fork < imports  # it has slept before


def test_the_site_is_copied_without_its_pages_and_an_edit_changes_text_alone(tmp_path):
    folder = book.copy(project.root(), tmp_path)
    chapter = project.chapters(folder)[0]
    assert not (folder / "_build" / "html").exists() and len(project.chapters(folder)) == len(project.chapters())
    before = notebook.read(chapter.path)
    book.edit(chapter.path)
    after = notebook.read(chapter.path)
    assert notebook.code_hash(before) == notebook.code_hash(after)
    texts = [["".join(c["source"]) for c in nb["cells"]] for nb in (before, after)]
    changed = [(a, b) for a, b in zip(*texts, strict=True) if a != b]
    assert len(changed) == 1 and changed[0][1] == f"{changed[0][0]}\n\nThis sentence was added."


def test_builds_are_timed_cold_after_an_edit_and_unchanged(monkeypatch):
    seen = []

    def build(folder, strict):
        assert not strict
        seen.append("This sentence was added." in project.chapters(folder)[0].path.read_text(encoding="utf-8"))

    monkeypatch.setattr(book.site, "build", build)
    assert list(book.builds(project.root())) == ["cold", "after an edit of one chapter", "with nothing changed"]
    assert seen == [False, True, True]


def test_the_costs_shown_are_the_costs_kept():
    kept = json.loads((bench.HERE / "book.json").read_text(encoding="utf-8"))
    text = (bench.HERE / "book.md").read_text(encoding="utf-8")
    assert book.page(kept) == text and "```{include} ../../benchmarks/book.md\n```" in PAGE.read_text(encoding="utf-8")
    assert datetime.fromisoformat(kept["date"]).tzinfo and "CPU cores" in kept["machine"]
    assert all(len(turns) >= 5 for turns in kept["starts"].values()) and len(kept["site"]) == 3
    assert all(f"[{chapter.slug}](/" in text for chapter in project.notebooks())


# ------------------------------------------------------------------------------------------------------------ the page


def test_the_page_shows_every_script_of_contests():
    assert len(SHOWN) == len(set(SHOWN)) and set(CONTESTS) | {"fisher", "seeds", "log_bessel"} <= set(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_what_the_page_shows_is_kept_dated_and_whole(name):
    path = bench.HERE / f"{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert datetime.fromisoformat(kept["date"]).tzinfo and "CPU cores" in kept["machine"] and kept["versions"]["torch"]
    for contest in kept["contests"]:
        seconds = contest["seconds"]
        assert set(contest) == {"title", "ours", "fastest_peer", "ratio", "seconds"}
        assert all(len(turns) >= 5 and min(turns) > 0 for turns in seconds.values())
        medians = {who: statistics.median(turns) for who, turns in seconds.items() if who != contest["ours"]}
        assert contest["fastest_peer"] in seconds and medians[contest["fastest_peer"]] == min(medians.values())
    if name in CONTESTS:
        assert len(kept["contests"]) == len(CONTESTS[name])
    assert board.benchmark(path).count("<tr>") == 1 + sum(len(c["seconds"]) for c in kept["contests"])
