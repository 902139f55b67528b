"""Chapters on real Dask workers: the same records as here, and whatever breaks, what was done is kept."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from test_faults import wait_for

import repro
from repro import cli, cluster, runner
from reprolib import project, records

pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")

REPORT = {"seed": 0, "run_seconds": 0.1, "peak_ram_mb": 1, "precision": "float32", "threads": 1, "sizes": {}}
# A chapter that needs no torch; its record says on which worker and device it ran.
LIGHT = """import json, os, time
from pathlib import Path
top, worker = Path({top!r}), str(os.getppid())
{does}
report = {report!r} | {{"slug": {slug!r}, "scale": os.environ["REPRO_SCALE"], "device": os.environ["REPRO_DEVICE"]}}
report |= {{"versions": {{"worker": worker}}, "claims": [], "numbers": {{}}}}
Path(os.environ["REPRO_RECORD"]).write_text(json.dumps(report))"""
# Says on which worker it runs, and goes on when it may.
HOLD = """part = top / "held.part"
part.write_text(worker)
part.replace(top / "held")
while not (top / "go").exists():
    time.sleep(0.05)"""
# Ends only when another chapter runs at the same time.
MEET = """(top / "{mine}.here").touch()
while not (top / "{other}.here").exists():
    time.sleep(0.05)"""
COUNT = """with (top / "tries").open("a") as tries:
    tries.write(".")
"""
SETTINGS = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_", "PYTHONHASHSEED"]
PACKAGES = Path(repro.__file__).parents[1]


@pytest.fixture
def light(checkout, tmp_path):
    """Makes chapters of one cell by name, with what each does besides."""

    def make(**does):
        for slug, text in does.items():
            cell = LIGHT.format(top=str(tmp_path), does=text, report=REPORT, slug=slug)
            checkout([([], cell)], slug)
        return tmp_path

    return make


@contextlib.contextmanager
def process(command, log, **env):
    """A process with its output in a file, killed at the end with all it started."""
    where = {"env": os.environ | {"PYTHONPATH": str(PACKAGES), **env}, "cwd": Path(log).parent}
    with Path(log).open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, **where) as started:
        try:
            yield started
        finally:
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(started.pid).children(recursive=True):
                    child.kill()
            started.kill()


class Grid:
    """A Dask scheduler in a process of its own, and workers that come and go."""

    def __init__(self, folder, stack):
        self.folder, self._stack, self._file = folder, stack, folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--port", "0", "--scheduler-file", str(self._file))
        assert wait_for(lambda: self._file.exists() and self._file.stat().st_size), self.logs()
        self.address = json.loads(self._file.read_text())["address"]

    def _start(self, kind, *flags, name=None, **env):
        command = [sys.executable, "-m", "dask", kind, "--host", "127.0.0.1", "--no-dashboard", *flags]
        return self._stack.enter_context(process(command, self.folder / f"{name or kind}.log", **env))

    def worker(self, name, *flags, **env):
        """Start one that takes one chapter at a time, and wait until it is known."""
        flags = ["--nthreads", "1", "--no-nanny", "--name", name, "--local-directory", str(self.folder / name), *flags]
        worker = self._start("worker", "--scheduler-file", str(self._file), *flags, name=name, **env)
        log = self.folder / f"{name}.log"
        assert wait_for(lambda: "Registered to:" in log.read_text()), self.logs()
        return worker

    def runs(self):
        """The processes that run chapters for workers of this grid."""
        return running(self.folder)

    def logs(self):
        return "\n".join(path.read_text() for path in self.folder.glob("*.log"))


def running(folder):
    """The processes that run a chapter somewhere below a folder."""
    found = []
    for candidate in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            below = candidate.environ().get("REPRO_ROOT", "").startswith(str(folder))
            if below and "repro.runner" in candidate.cmdline() and candidate.status() != psutil.STATUS_ZOMBIE:
                found.append(candidate)
    return found


@pytest.fixture
def grid(tmp_path_factory):
    """A scheduler without workers."""
    with contextlib.ExitStack() as stack:
        yield Grid(tmp_path_factory.mktemp("grid"), stack)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A scheduler with two workers, one of which declares a GPU, for the tests that leave them as they are."""
    with contextlib.ExitStack() as stack:
        made = Grid(tmp_path_factory.mktemp("pair"), stack)
        made.gpu = made.worker("gpu", "--resources", "GPU=1").pid
        made.workers = {made.gpu, made.worker("plain").pid}
        yield made


@contextlib.contextmanager
def command(top, *flags, jupyter=False):
    """``repro run --engine dask`` in a process group of its own, as a terminal starts it."""
    words = [sys.executable, "-m", "repro", "run", "--engine", "dask", *flags]
    words += [] if jupyter else ["--no-jupyter"]
    environment = os.environ | {"PYTHONPATH": str(PACKAGES), "DASK_TEMPORARY_DIRECTORY": str(top / "tmp")}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, cwd=top, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as started:
        try:
            yield started
        finally:
            (top / "go").touch()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)


def stored(top):
    return sorted(path.stem for path in top.glob("results/*/*.json"))


def by(slug, scale="quick"):
    """The worker that ran a chapter, by the record."""
    return int(records.read(project.find(slug).record(scale))["versions"]["worker"])


def dask(address, *flags):
    return cli.main(["run", "--engine", "dask", "--address", address, "--no-jupyter", *flags])


# ------------------------------------------------------------------------------------------------- when all is well


def test_record_notebook_and_environment_are_those_of_a_local_run(light, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # which Dask would set
    keep = "report['sizes'] = {k: os.environ.get(k) for k in " + repr(SETTINGS) + "}"
    top = light(a="from IPython.display import HTML\ndisplay(HTML('<b>bold</b>'))")
    chapter = project.find("a")
    text = chapter.path.read_text().replace('    "Path(os.environ', f'    "{keep}\\n",\n    "Path(os.environ')
    chapter.path.write_text(text)
    assert cli.main(["run", "a"]) == 0
    local, refreshed = records.read(chapter.record("quick")), chapter.path.read_bytes()
    assert b"<b>bold</b>" in refreshed
    chapter.path.write_text(text)
    chapter.record("quick").unlink()
    with command(top, "a", jupyter=True) as run:
        out, err = run.communicate(timeout=200)
    assert (run.returncode, err) == (0, "") and "a  quick  " in out
    far = records.read(chapter.record("quick"))
    measured = {"date", "digest", "wall_seconds", "versions"}
    assert {k: v for k, v in far.items() if k not in measured} == {k: v for k, v in local.items() if k not in measured}
    assert chapter.path.read_bytes() == refreshed
    assert not running(top) and not list((top / "tmp").rglob("repro-*"))


def test_chapters_go_to_both_workers_each_with_the_models_of_the_checkout_and_nothing_stays_there(light, pair, capsys):
    model = 'assert Path(os.environ["REPRO_ROOT"], "models", "m.json").read_text() == "{}"'
    top = light(a=f"{model}\n{MEET.format(mine='a', other='b')}", b=MEET.format(mine="b", other="a"), c="")
    (top / "models").mkdir()
    (top / "models" / "m.json").write_text("{}")
    assert dask(pair.address, "--all") == 0
    assert stored(top) == ["a", "b", "c"] and {by("a"), by("b")} == pair.workers
    assert wait_for(lambda: not list(pair.folder.rglob("repro-*")) and not pair.runs())
    assert capsys.readouterr().err == ""


def test_a_run_that_is_only_to_be_shown_stores_nothing(light, pair, capsys):
    top = light(a="")
    assert dask(pair.address, "a", "--seed", "3") == 0
    assert stored(top) == [] and "(not stored)" in capsys.readouterr().out


def test_full_runs_go_to_the_worker_that_declares_a_gpu_and_are_told_to_use_it(light, pair):
    light(a="", b="", c="")
    assert dask(pair.address, "--all", "--scale", "full") == 0
    assert {by(slug, "full") for slug in "abc"} == {pair.gpu}
    assert records.read(project.find("a").record("full"))["device"] == "cuda"
    assert dask(pair.address, "a", "--scale", "full", "--device", "cpu") == 0
    assert records.read(project.find("a").record("full"))["device"] == "cpu"


# ------------------------------------------------------------------------------------------- chapters that go wrong


def test_a_failing_chapter_is_not_run_again_and_stops_no_other(light, pair, capsys):
    top = light(a=f"{COUNT}raise ValueError('no')", b="", c="")
    with runner.alone(project.find("c")):
        assert dask(pair.address, "--all") == 1
    out = capsys.readouterr().out
    assert "a  quick  FAILED: a, cell 2, line 6: ValueError: no" in out
    assert "c  quick  FAILED: c is being run by another process" in out
    assert stored(top) == ["b"] and (top / "tries").read_text() == "."


def test_a_chapter_that_kills_every_worker_is_given_up_and_the_others_are_done(light):
    top = light(a=f"{COUNT}os.kill(int(worker), 9)\ntime.sleep(60)", b="", c="")
    with command(top, "--all") as run:  # on a worker of its own, which is started anew each time
        out, err = run.communicate(timeout=200)
    assert "a  quick  FAILED: a: 3 workers died while they ran it, most likely for want of memory;" in out, out + err
    assert run.returncode == 1 and err == ""
    assert stored(top) == ["b", "c"] and (top / "tries").read_text() == "..."


def test_the_budget_cuts_a_chapter_there_and_its_worker_is_free_again(light, pair, capsys):
    top = light(a=HOLD)
    assert dask(pair.address, "a", "--budget", "3") == 0
    assert "a  quick  CUT after 3 s" in capsys.readouterr().out and stored(top) == []
    assert wait_for(lambda: not pair.runs())


# ------------------------------------------------------------------------------------------- machines that go wrong


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_lost_workers_chapter_is_done_by_another_and_records_come_as_each_ends(light, grid, how):
    top = light(a="", b=HOLD, c="", d="", e="")
    workers = {worker.pid: worker for worker in (grid.worker("one"), grid.worker("two"))}
    with command(top, "--all", "--address", grid.address) as run:
        assert wait_for(lambda: stored(top) == ["a", "c", "d", "e"]), grid.logs()  # while b runs
        lost = int((top / "held").read_text())
        workers[lost].send_signal(how)
        assert wait_for(lambda: int((top / "held").read_text()) in workers.keys() - {lost}), grid.logs()
        assert wait_for(lambda: len({p.environ()["REPRO_ROOT"] for p in grid.runs()}) == 1)  # the lost one's is gone
        (top / "go").touch()
        out, err = run.communicate(timeout=100)
    assert (run.returncode, err) == (0, ""), out
    assert stored(top) == list("abcde") and by("b") in workers.keys() - {lost}


@pytest.mark.parametrize("how", ["ctrl-c", "kill -9"])
def test_whatever_ends_the_command_the_workers_stop_and_what_is_done_stays(light, pair, how):
    top = light(a="", b=HOLD, c=HOLD)
    with command(top, "a", "b", "c", "--address", pair.address, "--jobs", "1") as run:
        assert wait_for(lambda: stored(top) == ["a"] and (top / "held").exists())
        os.killpg(run.pid, signal.SIGINT if how == "ctrl-c" else signal.SIGKILL)
        out, err = run.communicate(timeout=60)
        assert wait_for(lambda: not pair.runs()), pair.logs()
    if how == "ctrl-c":
        assert run.returncode == 130 and err.strip() == "repro: stopped; what was stored before is unchanged."
        assert "quick: 1 done, 0 failed, 1 cut, 1 not started;" in out
        assert f"run c b --engine dask --address {pair.address} --no-jupyter" in out.replace(" --jobs 1", "")
    assert stored(top) == ["a"] and records.read(project.find("a").record("quick"))["slug"] == "a"
    assert dask(pair.address, "--all", "--stale") == 0  # (go is there now) the workers are as good as before
    assert stored(top) == ["a", "b", "c"]


def test_ctrl_c_in_a_terminal_ends_workers_of_our_own_too(light):
    top = light(a="", b=HOLD)
    with command(top, "a", "b") as run:
        assert wait_for(lambda: stored(top) == ["a"] and (top / "held").exists())
        children = psutil.Process(run.pid).children(recursive=True)
        os.killpg(run.pid, signal.SIGINT)
        out, err = run.communicate(timeout=60)
        assert wait_for(lambda: not running(top) and not any(map(alive, children)))
    assert run.returncode == 130 and err.strip() == "repro: stopped; what was stored before is unchanged."
    assert "quick: 1 done, 0 failed, 1 cut, 0 not started;" in out and stored(top) == ["a"]


def alive(candidate):
    return candidate.is_running() and candidate.status() != psutil.STATUS_ZOMBIE


def test_a_scheduler_that_dies_ends_the_run_with_words_and_what_is_done_stays(light, grid):
    top = light(a="", b=HOLD)
    grid.worker("one")
    with command(top, "a", "b", "--address", grid.address) as run:
        assert wait_for(lambda: stored(top) == ["a"] and (top / "held").exists())
        grid.scheduler.kill()
        out, err = run.communicate(timeout=100)
    assert run.returncode == 1 and "b  quick  FAILED: b: the Dask scheduler is gone; what was stored" in out, out + err
    assert stored(top) == ["a"] and "Traceback" not in err


# ------------------------------------------------------------------------------------- clusters that do not fit us


def test_where_no_one_listens_the_command_says_so_soon(light, capsys, monkeypatch):
    monkeypatch.setattr(cluster, "SECONDS_TO_CONNECT", 1)
    light(a="")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, and nobody listens
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        assert dask(address, "a") == 1
    assert f"No Dask scheduler answers at {address} within 1 s" in capsys.readouterr().err


def test_an_address_that_is_none_is_said_to_be_so(light, capsys, monkeypatch):
    monkeypatch.setattr(cluster, "SECONDS_TO_CONNECT", 1)
    light(a="")
    assert dask("nonsense://x", "a") == 1
    assert "No Dask scheduler answers at nonsense://x" in capsys.readouterr().err


def test_a_cluster_without_workers_or_gpus_says_how_to_start_some_and_jobs_waits_for_them(light, grid, capsys):
    top = light(a=HOLD)
    assert dask(grid.address, "a") == 1
    err = capsys.readouterr().err
    assert f"has no workers. Start some (dask worker {grid.address} --nthreads 1), or say with --jobs" in err
    with command(top, "a", "--address", grid.address, "--jobs", "1") as run:
        worker = grid.worker("late")
        assert wait_for((top / "held").exists), grid.logs()
        (top / "go").touch()
        assert run.wait(60) == 0 and by("a") == worker.pid
    assert dask(grid.address, "a", "--scale", "full") == 1
    said = f'declares a GPU. Start one a GPU: dask worker {grid.address} --nthreads 1 --resources "GPU=1"; or say'
    assert said in capsys.readouterr().err


def test_a_worker_with_another_state_of_the_code_is_refused(light, grid, tmp_path_factory, capsys):
    copy, empty = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("empty")
    for name in ("repro", "reprolib"):
        shutil.copytree(PACKAGES / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    top = light(a="")
    one = grid.worker("one", PYTHONPATH=str(copy))
    assert dask(grid.address, "a") == 0 and stored(top) == ["a"]  # another place, the same code
    (copy / "repro" / "new.py").write_text("x = 1\n")
    assert dask(grid.address, "a") == 1
    assert "was started before the book's code there changed; start it anew." in capsys.readouterr().err
    one.kill()
    one.wait()
    two = grid.worker("two", PYTHONPATH=str(copy))
    assert dask(grid.address, "a") == 1
    assert "runs another state of the book's code; bring both to the same commit" in capsys.readouterr().err
    two.kill()
    two.wait()
    (empty / "repro").mkdir()
    (empty / "repro" / "__init__.py").write_text("raise ModuleNotFoundError('No module named repro')\n")
    grid.worker("three", PYTHONPATH=str(empty))
    assert dask(grid.address, "a") == 1
    assert (
        "cannot import the book's package (ModuleNotFoundError('No module named repro')). Install it"
        in capsys.readouterr().err
    )
