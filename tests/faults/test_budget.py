"""A rented hour is never lost: records are written as runs end, and nothing outlives the end of the time."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
from test_faults import processes, traces, wait_for

from repro import cli, schedule
from reprolib import project, records

QUICK = """from reprolib import Chapter, within
ch = Chapter("{slug}")
ch.claim("c1", "Nothing is nothing.", paper="Equation 1", criterion=within(0))
{does}
ch.measure("c1", 0.0)"""
# Marks that it runs, with the records that were there by then, and never ends.
HOLD = """import os, time
from pathlib import Path
top = Path(os.environ["REPRO_ROOT"])
part = top / "held.part"
part.write_text(" ".join(p.stem for p in top.glob("results/*/*.json")))
part.replace(top / "held")
while True:
    time.sleep(0.05)"""
FLAGS = ["--no-jupyter", "--all", "--stale"]


@pytest.fixture
def rented(checkout):
    """Three chapters without a record: ``a`` is done soon, ``b`` never ends, ``c`` would be done soon."""

    def cells(slug, does=""):
        return [([], QUICK.format(slug=slug, does=does)), ([], "ch.finish()")]

    a = checkout(cells("a"), "a")
    checkout(cells("b", HOLD), "b")
    checkout(cells("c"), "c")
    return a.root


@contextlib.contextmanager
def running(top, *flags):
    """The ``repro run`` of all that is stale, in a process of its own."""
    (top / "tmp").mkdir()
    env = {k: v for k, v in os.environ.items() if k != "REPRO_ROOT"} | {"TMPDIR": str(top / "tmp")}
    command = [sys.executable, "-m", "repro", "run", *FLAGS, *flags]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=top, env=env, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
            for left in processes(project.find("a", top)):
                left.kill()


def nothing_is_left(top):
    """No worker, no half-written file, no temporary folder: now, or very soon."""
    return wait_for(lambda: not processes(project.find("a", top)) and not [*top.rglob("*.part"), *traces(top)], 10)


def stored(top):
    return sorted(str(p.relative_to(top / "results")) for p in top.glob("results/*/*.json"))


def test_records_are_written_as_runs_end_and_the_summary_says_how_to_take_up_the_rest(rented, monkeypatch, capsys):
    held, real = rented / "held", schedule.Budget.left
    monkeypatch.setattr(schedule.Budget, "left", lambda _: 0.0 if held.exists() else 1000.0)  # it ends while b runs
    monkeypatch.setattr(sys, "argv", ["repro"])
    assert cli.main(["run", *FLAGS, "--scale", "full", "--budget", "1000"]) == 0
    assert held.read_text() == "a"  # its record was there while b ran
    assert stored(rented) == ["full/a.json"] and nothing_is_left(rented)
    assert records.read(project.find("a").record("full"))["claims"][0]["verdict"] == "reproduced"
    out = capsys.readouterr().out
    assert "full: 1 done, 0 failed, 1 cut, 1 not started;" in out
    again = out.rstrip().rpartition("Go on with: repro ")[2].split()
    assert again == "run c b --scale full --budget 1000 --no-jupyter".split()
    monkeypatch.setattr(schedule.Budget, "left", real)
    path = rented / "chapters" / "part" / "b.ipynb"
    path.write_text(path.read_text().replace("while True", "while False"))
    assert cli.main(again) == 0
    assert stored(rented) == ["full/a.json", "full/b.json", "full/c.json"]
    assert "full: 2 done, 0 failed, 0 cut, 0 not started;" in capsys.readouterr().out


def test_seconds_that_run_out_end_the_command_in_time(rented):
    (rented / "chapters" / "part" / "a.ipynb").unlink()  # so that b, which never ends, comes first
    project.find("c").path.rename(rented / "chapters" / "part" / "a.ipynb")
    (rented / "chapters" / "part" / "b.ipynb").rename(rented / "chapters" / "part" / "0.ipynb")
    with running(rented, "--budget", "4") as process:
        start = time.monotonic()
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0 and err == ""
        assert time.monotonic() - start < 30
        assert "0  quick  CUT after 4 s\nquick: 0 done, 0 failed, 1 cut, 1 not started; 4 of 4 s used." in out
        assert "Go on with: " in out and " -m repro run a 0 --budget 4 --no-jupyter" in out
        assert nothing_is_left(rented)
    assert stored(rented) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_machine_that_is_taken_back_keeps_what_was_done_and_the_summary_is_printed(rented, number, code):
    with running(rented, "--budget", "500", "--scale", "full") as process:
        assert wait_for((rented / "held").exists)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code and err.strip() == "repro: stopped; what was stored before is unchanged."
        assert "full: 1 done, 0 failed, 1 cut, 1 not started;" in out and " run c b --scale full" in out
        assert nothing_is_left(rented)
    assert stored(rented) == ["full/a.json"] and records.read(project.find("a").record("full"))["slug"] == "a"


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_kill_nine_leaves_no_worker_and_whole_records(rented, jobs):
    with running(rented, "--budget", "500", "--jobs", jobs) as process:
        others = 1 if jobs == "1" else 2  # what ends beside b: a alone, or a and c
        assert wait_for(lambda: (rented / "held").exists() and len(stored(rented)) == others)
        assert wait_for(lambda: len(traces(rented)) == 1)
        assert processes(project.find("a", rented))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert nothing_is_left(rented)
    assert [records.read(rented / "results" / name)["slug"] for name in stored(rented)] == ["a", "c"][:others]


DEATHS = {
    "b-raises": ("raise ValueError('no')", "b-raises, cell 2, line 4: ValueError: no"),
    "c-wants-memory": (
        "import os\nos.kill(os.getpid(), 9)",
        "c-wants-memory: the run ended with status -9, most likely for want of memory.",
    ),
    "d-aborts-as-cuda-does": ("import os\nos.abort()", "d-aborts-as-cuda-does: the run ended with status -6."),
    "e-exits": ("raise SystemExit(3)", "e-exits: the run ended with status 3."),
}


def test_no_chapters_death_stops_the_next(checkout, capsys):
    for slug, does in {"a": "", **{slug: does for slug, (does, _) in DEATHS.items()}, "z": ""}.items():
        chapter = checkout([([], QUICK.format(slug=slug, does=does)), ([], "ch.finish()")], slug)
    assert cli.main(["run", *FLAGS, "--budget", "500"]) == 1
    out = capsys.readouterr().out
    for slug, (_, said) in DEATHS.items():
        assert f"{slug}  quick  FAILED: {said}" in out
    assert "quick: 2 done, 4 failed, 0 cut, 0 not started;" in out and f"  failed: {', '.join(DEATHS)}" in out
    assert stored(chapter.root) == ["quick/a.json", "quick/z.json"]
