"""What can be known of running on a cluster without starting one: the order, the bound, the costs, what is sent."""

import contextlib
import itertools
import random
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from repro import cli, cluster, schedule
from reprolib import project, records
from reprolib.project import ChapterFile, ReproError

# ---------------------------------------------------------------------------------------------------- the schedule


def best(seconds, workers):
    """The shortest schedule there is, by trying all."""
    return min(
        max(sum(s for s, who in zip(seconds, choice, strict=True) if who == k) for k in range(workers))
        for choice in itertools.product(range(workers), repeat=len(seconds))
    )


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_longest_first_lies_between_the_best_schedule_and_the_bound_of_graham(workers):
    draw = random.Random(workers)
    for _ in range(30):
        seconds = [draw.randint(1, 12) for _ in range(draw.randint(1, 6))]
        took, optimal = schedule.makespan(seconds, workers), best(seconds, workers)
        assert schedule.least(seconds, workers) <= optimal <= took <= (4 / 3 - 1 / (3 * workers)) * optimal + 1e-9


def test_the_bound_of_graham_is_attained_by_his_example():
    assert schedule.makespan([3, 3, 2, 2, 2], 2) == 7 and best([3, 3, 2, 2, 2], 2) == 6  # 7/6 = 4/3 - 1/6
    assert schedule.makespan([2, 3, 2, 3, 2], 2) == 7  # the order given does not matter


def test_one_worker_takes_the_sum_and_one_a_chapter_the_longest():
    assert schedule.makespan([1, 5, 2], 1) == schedule.least([1, 5, 2], 1) == 8
    assert schedule.makespan([1, 5, 2], 3) == schedule.makespan([1, 5, 2], 64) == schedule.least([1, 5, 2], 64) == 5
    assert schedule.makespan([], 4) == schedule.least([], 4) == 0
    assert schedule.least([1, 1, 1], 2) == 1.5  # which no schedule of whole chapters attains


@pytest.mark.parametrize("function", [schedule.makespan, schedule.least])
@pytest.mark.parametrize(("seconds", "workers"), [([1.0], 0), ([1.0, -1.0], 2), ([float("nan")], 1)])
def test_a_schedule_needs_a_worker_and_times(function, seconds, workers):
    with pytest.raises(ValueError, match="needs a worker and times of at least 0 s; got"):
        function(seconds, workers)


def test_those_of_unknown_length_come_first_and_then_the_longest():
    dues = [schedule.Due(ChapterFile(s, "part", None), None, "", t) for s, t in {"a": 5, "b": None, "c": 9.5}.items()]
    assert [due.chapter.slug for due in sorted(dues, key=schedule.length)] == ["b", "c", "a"]


# ------------------------------------------------------------------------------------------------------- the costs


def test_the_table_of_costs_is_that_of_the_records(checkout, store):
    for slug, seconds in {"a": 60, "b": 120, "c": 180}.items():
        store(checkout(slug=slug), wall_seconds=seconds)
    html = cluster.cost(project.find("a").root)
    rows = [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(<td>.*?)</tr>", html)]
    assert [row[0] for row in rows] == ["1", "2", "4", "8", "16", "32", "64"]
    assert "3 chapters" in html and "151 chapters" in html
    minutes = 50 * (1 + 2 + 3) + 3  # fifty times each, and the longest once more
    assert rows[0][1:] == ["6.0", "6.0", "1.0", f"{minutes:.1f}", f"{minutes:.1f}", "1.0"]
    assert rows[1][1:4] == ["3.0", "3.0", "2.0"] and rows[6][1:4] == ["3.0", "3.0", "2.0"]
    assert rows[6][5] == f"{minutes / 64:.1f}" and float(rows[6][4]) <= (4 / 3) * minutes / 64


def test_a_book_without_records_has_no_costs_yet(checkout):
    with pytest.raises(ReproError, match="make one: repro run --all"):
        cluster.cost(checkout().root)


# --------------------------------------------------------------------------------------------- what both sides know


def test_the_signature_is_that_of_every_file_of_both_packages(tmp_path, monkeypatch):
    for name, module in (("repro", cluster), ("reprolib", cluster.reprolib)):
        home = Path(module.__file__).parent
        shutil.copytree(home, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        monkeypatch.setattr(module, "__file__", str(tmp_path / name / Path(module.__file__).name))
    first = cluster.signature()
    (tmp_path / "repro" / "__pycache__").mkdir()
    (tmp_path / "repro" / "__pycache__" / "x.pyc").write_text("x")
    assert cluster.signature() == first
    for name in ("repro/runner.py", "reprolib/stats.py", "reprolib/datasets.toml", "reprolib/new.py"):
        path, before = tmp_path / name, cluster.signature()
        path.write_text((path.read_text() if path.exists() else "") + "# another line\n")
        assert cluster.signature() != before


def test_a_chapter_takes_along_what_it_reads_and_nothing_else(checkout, store):
    chapter = checkout()
    assert cluster._kit(chapter).keys() == {"_toc.yml", "chapters/part/toy.ipynb"}
    store(chapter)
    store(chapter, "full")
    (chapter.root / "models").mkdir()
    for name in ("m.json", "m.safetensors", "m.py"):
        (chapter.root / "models" / name).write_bytes(b"\x00" + name.encode())
    kit = cluster._kit(chapter)
    assert kit.keys() == {
        *("_toc.yml", "chapters/part/toy.ipynb", "results/full/toy.json"),
        *("models/m.json", "models/m.safetensors"),
    }
    assert all((chapter.root / name).read_bytes() == content for name, content in kit.items())


@pytest.fixture
def came_back(stored):
    """A chapter, its text as it was sent, and what a worker made of it."""
    sent = stored.path.read_bytes()
    record = records.read(stored.record("quick")) | {"date": "2027-01-01T00:00:00+00:00"}
    return stored, sent, {"record": record, "notebook": sent.decode().replace('"outputs": []', '"outputs": [1]', 1)}


def test_what_comes_back_is_sealed_and_stored_with_the_refreshed_notebook(came_back):
    chapter, sent, outcome = came_back
    sealed = cluster._keep(chapter, "quick", sent, outcome, True)
    assert records.read(chapter.record("quick")) == sealed and sealed["date"].startswith("2027")
    assert chapter.path.read_text() == outcome["notebook"]


def test_what_comes_back_is_not_stored_when_it_is_only_to_be_shown(came_back):
    chapter, sent, outcome = came_back
    before = chapter.record("quick").read_bytes()
    assert cluster._keep(chapter, "quick", sent, outcome, False) == outcome["record"]
    assert chapter.path.read_bytes() == sent and chapter.record("quick").read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "refreshed"), [("return 2 * x", "return 3 * x", False), ("prose", "words", True)]
)
def test_an_edit_made_meanwhile_is_never_overwritten(came_back, old, new, refreshed):
    chapter, sent, outcome = came_back
    outcome["notebook"] = outcome["notebook"] if refreshed else sent.decode()
    before = chapter.record("quick").read_bytes()
    chapter.path.write_text(sent.decode().replace(old, new))
    edited = chapter.path.read_bytes()
    assert edited != sent
    with pytest.raises(ReproError, match="toy was edited while it ran; run it again"):
        cluster._keep(chapter, "quick", sent, outcome, True)
    assert chapter.path.read_bytes() == edited and chapter.record("quick").read_bytes() == before


def test_prose_edited_meanwhile_does_not_matter_to_a_run_that_leaves_the_notebook_alone(came_back):
    chapter, sent, outcome = came_back
    chapter.path.write_text(sent.decode().replace("prose", "words"))
    cluster._keep(chapter, "quick", sent, outcome | {"notebook": sent.decode()}, True)
    assert "words" in chapter.path.read_text()


def packages(**changes):
    return {"packages": {"dask": "1", "distributed": "1", "python": "3.11", **changes}}


@pytest.mark.parametrize(
    ("scheduler", "worker", "said"),
    [
        (packages(distributed="0"), packages(), "distributed is 0 at the scheduler and 1 here; install the same"),
        (packages(), packages(dask="2"), "dask is 2 at worker tcp://w:1 and 1 here; install the same version"),
        (packages(), None, "dask is unknown at worker tcp://w:1 and 1 here"),
    ],
)
def test_another_dask_is_refused(scheduler, worker, said):
    found = {"client": packages(), "scheduler": scheduler, "workers": {"tcp://w:1": worker}}
    with pytest.raises(ReproError, match=said):
        cluster._same_dask(SimpleNamespace(get_versions=lambda: found))


def test_another_python_is_not_refused_as_only_plain_data_travel():
    found = {"client": packages(), "scheduler": packages(), "workers": {"tcp://w:1": packages(python="3.12")}}
    cluster._same_dask(SimpleNamespace(get_versions=lambda: found))


# ----------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--address", "tcp://x:1"], "--address is that of a Dask scheduler; add --engine dask."),
        (["--engine", "dask", "--jobs", "0"], "--jobs must be at least 1; got 0."),
        (["--engine", "dask", "--address", "tcp://x:1", "--device", "tpu"], "--device must be auto, cpu or cuda; got"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_starts(checkout, capsys, monkeypatch, flags, said):
    monkeypatch.setattr(cluster, "connected", lambda *_: pytest.fail("a cluster was asked"))
    checkout()
    assert cli.main(["run", "toy", *flags]) == 1
    assert said in capsys.readouterr().err


def test_without_dask_the_command_says_what_to_install(checkout, capsys, monkeypatch):
    checkout()
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert cli.main(["run", "toy", "--engine", "dask"]) == 1
    assert "--engine dask needs the extra 'cluster': pip install -e '.[cluster]'." in capsys.readouterr().err


@pytest.fixture
def elsewhere(checkout, store, monkeypatch):
    """A cluster of make-believe: what it was asked for, and which chapters in which order."""
    asked = []
    for slug, seconds, date in (("a", 5, "01"), ("b", 50, "03"), ("c", 20, "02")):
        store(checkout(slug=slug), wall_seconds=seconds, date=f"2026-01-{date}T00:00:00+00:00")
    checkout(slug="d")

    def run(chapter, scale, *, keep, stopped, on_progress, **settings):
        asked.append(chapter.slug)
        return records.read(project.find("a").record("quick"))

    @contextlib.contextmanager
    def connected(*settings):
        asked.append(settings)
        yield SimpleNamespace(run=run, jobs=1)

    monkeypatch.setattr(cluster, "connected", connected)
    return asked


def test_a_cluster_gets_the_longest_first_and_with_a_budget_the_most_urgent(elsewhere):
    assert cli.main(["run", "--all", "--engine", "dask"]) == 0
    assert elsewhere == [(None, None, False), *"dbca"]
    del elsewhere[:]
    assert cli.main(["run", "a", "b", "--engine", "dask", "--address", "tcp://x:1", "--jobs", "3"]) == 0
    assert elsewhere == [("tcp://x:1", 3, False), *"ba"]
    del elsewhere[:]
    assert cli.main(["run", "--all", "--engine", "dask", "--budget", "100"]) == 0
    assert elsewhere == [(None, None, False), *"dacb"]


@pytest.mark.parametrize(
    ("flags", "gpu"),
    [
        ([], False),
        (["--scale", "full"], True),
        (["--device", "cuda"], True),
        (["--scale", "full", "--device", "cpu"], False),
    ],
)
def test_a_gpu_of_the_cluster_is_asked_for_though_there_is_none_here(elsewhere, monkeypatch, flags, gpu):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cli.main(["run", "a", "--engine", "dask", "--address", "tcp://x:1", *flags])
    assert elsewhere[0] == ("tcp://x:1", None, gpu)


def test_no_cluster_is_started_when_nothing_is_due(elsewhere):
    assert cli.main(["run", "a", "b", "c", "--stale", "--engine", "dask"]) == 0
    assert elsewhere == []


def test_the_command_to_go_on_names_the_cluster(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["repro"])
    args = cli._parser().parse_args(["run", "x", "--engine", "dask", "--address", "tcp://10.0.0.1:8786", "--jobs", "4"])
    assert cli._again(args, ["y"]) == "repro run y --jobs 4 --engine dask --address tcp://10.0.0.1:8786"
