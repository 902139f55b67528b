"""Whatever stops a run, what was stored before stays whole, and no process or temporary file stays behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from repro import cli, runner
from reprolib import records

SCRIPT = """
import os, resource, signal, sys
from pathlib import Path
from reprolib import records
path, how = Path(sys.argv[1]), sys.argv[2]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if how == "limit":                                   # the system refuses to write more than 10 kB
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
elif how == "while writing":
    os.fdopen = lambda handle, *a, **k: (os.write(handle, b"half"), die())
else:
    setattr(os, how, die)
records.write_together({path: "new" * 10_000, path.with_name("b.json"): "new" * 10_000})
"""


# ------------------------------------------------------------------------------------------- writing, step by step


@pytest.mark.parametrize("how", ["while writing", "fsync", "replace"])
def test_a_writer_killed_at_any_step_leaves_the_old_file_and_the_next_one_tidies_up(tmp_path, how):
    path = tmp_path / "a.json"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", SCRIPT, path, how], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) > 1  # a part is left, as kill -9 lets no one tidy up
    records.write_together({path: "new", tmp_path / "b.json": "new"})
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {"a.json": "new", "b.json": "new"}


def test_a_disk_that_takes_no_more_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", SCRIPT, path, "limit"], check=False, capture_output=True, text=True)
    assert done.returncode == 1 and "OSError" in done.stderr
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {"a.json": "old"}


def test_a_results_folder_that_cannot_be_written_leaves_the_notebook_as_it_was(checkout, capsys):
    chapter = checkout([([], "from reprolib import Chapter\nch = Chapter('toy')"), ([], "ch.finish()")])
    (chapter.root / "results").mkdir()
    (chapter.root / "results" / "quick").write_text("a file where the folder should be")
    before = chapter.path.read_bytes()
    assert cli.main(["run", "toy"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("repro: ") and "results/quick" in err and "What was stored before is unchanged." in err
    assert chapter.path.read_bytes() == before
    assert not list(chapter.root.rglob("*.part"))


# ------------------------------------------------------------------------------------------- stopping a whole run

HOLD = """import os, time
from pathlib import Path
Path(os.environ["REPRO_ROOT"], "held").write_text(str(os.getpid()))
while True:
    time.sleep(0.05)"""


@contextlib.contextmanager
def running(chapter, command, *flags):
    """The ``repro run`` of a chapter, in a process of its own, with its temporary files in a folder we can look at."""
    temporary = chapter.root / "tmp"
    temporary.mkdir()
    env = {k: v for k, v in os.environ.items() if k != "REPRO_ROOT"} | {"TMPDIR": str(temporary)}
    with subprocess.Popen(
        [*command, "run", "toy", *flags], cwd=chapter.root, env=env, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            for left in processes(chapter):
                left.kill()


def processes(chapter):
    """The worker and kernel processes that belong to a checkout."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("REPRO_ROOT") == str(chapter.root) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return [p for p in found if p.pid != os.getpid()]


def wait_for(condition, seconds=60):
    """Wait until a condition holds; returns whether it came to hold."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def held(checkout, toy_cells, store):
    """A chapter with a stored record that, once in its third code cell, never ends."""
    chapter = checkout([*toy_cells[:2], ([], HOLD), *toy_cells[2:]])
    store(chapter)
    return chapter


def contents(chapter):
    return {f: f.read_bytes() for f in (chapter.path, chapter.record("quick"))}


MOMENTS = {"the worker has just begun": lambda c: processes(c), "a cell runs": lambda c: (c.root / "held").exists()}


@pytest.mark.parametrize("flag", ["--no-jupyter", ""])
@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_nine_leaves_the_stored_files_and_no_process(held, repro_command, monkeypatch, moment, flag):
    before = contents(held)
    monkeypatch.delenv("REPRO_ROOT")
    with running(held, repro_command, *filter(None, [flag])) as process:
        assert wait_for(lambda: MOMENTS[moment](held))
        assert len(processes(held)) >= (2 if moment == "a cell runs" and not flag else 1)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert wait_for(lambda: not processes(held)), [p.cmdline() for p in processes(held)]
    assert contents(held) == before
    assert not list(held.root.rglob("*.part")) and wait_for(lambda: not list((held.root / "tmp").glob("repro-*")))
    with runner._alone(held):  # the lock went with the process
        pass


@pytest.mark.parametrize("flag", ["--no-jupyter", ""])
def test_ctrl_c_ends_with_130_and_leaves_the_stored_files_and_no_process(held, repro_command, monkeypatch, flag):
    before = contents(held)
    monkeypatch.delenv("REPRO_ROOT")
    with running(held, repro_command, *filter(None, [flag])) as process:
        assert wait_for(lambda: (held.root / "held").exists())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert err.strip() == "repro: stopped; what was stored before is unchanged."
        assert wait_for(lambda: not processes(held)), [p.cmdline() for p in processes(held)]
    assert contents(held) == before
    assert not list((held.root / "tmp").glob("repro-*")) and not list(held.root.rglob("*.part"))


def test_a_worker_that_dies_is_an_error_and_leaves_the_stored_files(checkout, toy_cells, store, capsys):
    die = "import os, signal\nprint('last words', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    chapter = checkout([*toy_cells[:2], ([], die)])
    store(chapter)
    before = contents(chapter)
    assert cli.main(["run", "toy", "--no-jupyter"]) == 1
    out = capsys.readouterr().out
    assert "toy  quick  FAILED: toy: the run ended with status -9." in out and "last words" in out
    assert contents(chapter) == before


def test_a_kernel_that_dies_is_an_error_and_leaves_the_stored_files(checkout, toy_cells, store, capsys):
    chapter = checkout([([], "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")])
    store(chapter)
    before = contents(chapter)
    assert cli.main(["run", "toy"]) == 1
    assert "toy  quick  FAILED: toy: the kernel died, most likely for want of memory." in capsys.readouterr().out
    assert contents(chapter) == before


# ----------------------------------------------------------------------------------------------- settings, asked for


def test_a_gpu_asked_for_where_there_is_none_is_a_clear_error(checkout, toy_cells, store, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    chapter = checkout(toy_cells)
    store(chapter)
    before = contents(chapter)
    assert cli.main(["run", "toy", "--device", "cuda", "--no-jupyter"]) == 1
    err = capsys.readouterr().err
    assert "repro: Device cuda was asked for, but torch" in err and "sees no GPU here; use cpu." in err
    assert contents(chapter) == before


def test_a_scale_that_is_none_in_the_environment_is_a_clear_error(repro_command, monkeypatch):
    code = "from reprolib import Chapter\nChapter('toy')"
    env = os.environ | {"REPRO_SCALE": "medium"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "The scale (REPRO_SCALE or --scale) must be quick or full; got 'medium'." in done.stderr


def test_a_truncated_record_does_not_stop_a_new_run(checkout, toy_cells, store, capsys):
    chapter = checkout(toy_cells)
    store(chapter)
    path = chapter.record("quick")
    path.write_bytes(path.read_bytes()[:200])
    assert cli.main(["check", "toy"]) == 1
    assert "is cut off or not JSON" in capsys.readouterr().err
    assert cli.main(["run", "--stale", "--no-jupyter"]) == 0
    assert "toy  quick" in capsys.readouterr().out and records.read(path)["runner"] == "plain"
