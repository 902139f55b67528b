"""Whatever stops a run, what was stored before stays whole, and no process or temporary file stays behind."""

import contextlib
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import psutil
import pytest
from toybook import HAND_OVER, lend

from repro import cli, runner
from reprolib import data, project, records

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


def test_a_results_folder_that_is_a_file_leaves_the_notebook_as_it_was(checkout, capsys):
    chapter = checkout([([], "from reprolib import Chapter\nch = Chapter('toy')"), ([], "ch.finish()")])
    (chapter.root / "results").mkdir()
    (chapter.root / "results" / "quick").write_text("a file where the folder should be")
    before = chapter.path.read_bytes()
    assert cli.main(["run", "toy"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("repro: ") and "results/quick" in err and "What was stored before is unchanged." in err
    assert chapter.path.read_bytes() == before
    assert not list(chapter.root.rglob("*.part"))


def test_the_record_is_replaced_last_so_that_it_is_never_newer_than_what_the_notebook_shows(stored, monkeypatch):
    path, real, order = stored.record("quick"), os.replace, []
    monkeypatch.setattr(os, "replace", lambda part, target: (order.append(target), real(part, target)))
    records.write(path, records.read(path), {stored.path: stored.path.read_text()})
    assert order == [stored.path, path]


@pytest.fixture
def light(checkout, store):
    """Makes a chapter with a stored record whose run needs no torch: a cell, then the end."""

    def make(does="", slug="toy"):
        chapter = checkout([([], does or "print('light')"), ([], HAND_OVER)], slug)
        lend(chapter, store(chapter))
        return chapter

    return make


@pytest.mark.parametrize(("size", "where"), [(1_000, "toy, cell 3, line 3: OSError:"), (6_000, "OSError:")])
def test_a_system_that_refuses_long_files_fails_the_run_and_the_stored_files_stay(light, repro_command, size, where):
    chapter = light()
    before = contents(chapter)
    done = subprocess.run(
        [*repro_command, "run", "toy", "--no-jupyter"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},  # Python may keep half of one
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and f"toy  quick  FAILED: {where} [Errno 27] File too large" in done.stdout
    if size == 6_000:  # enough for the run, too little for its record
        end = f"too large: '{chapter.record('quick')}'. What was stored before is unchanged.\n"
        assert done.stderr.endswith(end) and done.stderr.startswith("repro: ")
    assert contents(chapter) == before and left(chapter) == []


# Runs a command in a copy of a checkout on a disk of 3 MB that exists for it alone, and keeps what the copy became.
ON_A_SMALL_DISK = """
cp -r "$1" "$1.copy" && mount -t tmpfs -o size=3m none "$1" && cp -r "$1.copy/." "$1" && cd "$1"
{prepare}
code=0; "$2" -m repro run toy --no-jupyter || code=$?
cp -r "$1" "$1.after"; exit $code
"""
FILL = """with open(Path(os.environ["REPRO_ROOT"], "ballast"), "wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass"""


def on_a_small_disk(chapter, prepare=""):
    """Run the chapter there; returns the process, and the chapter as it was left."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this system lets us mount no disk of our own (unshare -rm)")
    command = ["unshare", "-rm", "sh", "-c", ON_A_SMALL_DISK.format(prepare=prepare), "sh"]
    done = subprocess.run([*command, chapter.root, sys.executable], capture_output=True, text=True, check=False)
    return done, project.find("toy", chapter.root.with_name(f"{chapter.root.name}.after"))


@pytest.mark.parametrize("when", ["before the report", "after the report"])
def test_a_disk_that_is_full_fails_the_run_by_one_sentence_and_the_stored_files_stay(light, when):
    fill = f"import os\nfrom pathlib import Path\n{FILL}"
    chapter = light(fill if when == "before the report" else f"{HAND_OVER}\n{FILL}\nraise SystemExit")
    before = contents(chapter)
    done, after = on_a_small_disk(chapter)
    assert done.returncode == 1
    if when == "before the report":
        assert "toy  quick  FAILED: toy: the run ended for want of room on the disk of " in done.stdout
    else:
        wrote = f"No space left on device: '{chapter.record('quick')}'. What was stored before is unchanged."
        assert done.stderr.startswith("repro: ") and wrote in done.stderr
    assert list(contents(after).values()) == list(before.values()) and left(after) == []


@pytest.mark.parametrize("folder", ["results", "."])
def test_a_folder_that_is_mounted_read_only_fails_the_run_and_stays_as_it_was(light, folder):
    chapter = light()
    before = contents(chapter)
    prepare = f'mount --bind "$1/{folder}" "$1/{folder}" && mount -o remount,bind,ro "$1/{folder}" && cd "$1"'
    done, after = on_a_small_disk(chapter, prepare)
    assert done.returncode == 1 and "Read-only file system: '" in done.stderr, done.stderr
    assert done.stderr.endswith(". What was stored before is unchanged.\n")
    assert list(contents(after).values()) == list(before.values()) and left(after) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; the mounts above stand for this")
def test_a_results_folder_without_permission_fails_the_run_and_stays_as_it_was(light, capsys):
    chapter = light()
    before = contents(chapter)
    chapter.record("quick").parent.chmod(0o555)
    try:
        assert cli.main(["run", "toy", "--no-jupyter"]) == 1
    finally:
        chapter.record("quick").parent.chmod(0o755)
    err = capsys.readouterr().err
    assert "Permission denied: '" in err and err.endswith(". What was stored before is unchanged.\n")
    assert contents(chapter) == before and left(chapter) == []


# ------------------------------------------------------------------------------------------- stopping a whole run

# Never ends, and lets no other thread of its process run.
HOLD = """import os, re
from pathlib import Path
Path(os.environ["REPRO_ROOT"], "held").write_text(str(os.getpid()))
re.match("(a+)+$", "a" * 64 + "b")"""


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


def traces(top):
    """What runs left in their folders."""
    return [*top.glob("_build/runs/*/*"), *top.glob("tmp/*")]


def left(chapter):
    """What runs left behind beside their results, once the last process is gone."""
    return [*traces(chapter.root), *chapter.root.rglob("*.part")]


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
    assert contents(held) == before and left(held) == []
    with runner.alone(held):  # the lock went with the process
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
    assert contents(held) == before and left(held) == []


@pytest.mark.parametrize("flag", ["--no-jupyter", ""])
def test_a_cell_that_never_ends_is_named_after_ten_minutes(held, monkeypatch, capsys, flag):
    real, mark, before = time.monotonic, held.root / "held", contents(held)
    monkeypatch.setattr(time, "monotonic", lambda: real() + 601 * mark.exists())  # once it runs, they have gone by
    assert cli.main(["run", "toy", *filter(None, [flag])]) == 1
    out = capsys.readouterr().out
    assert (
        "toy  quick  FAILED: toy: cell 4 was still running after 600 s, so the run was killed; what was stored" in out
    )
    assert out.endswith("before is unchanged. Should it need longer: repro run toy --limit 1200\n")
    assert wait_for(lambda: not processes(held)), [p.cmdline() for p in processes(held)]
    assert contents(held) == before and left(held) == []


def test_a_limit_of_ones_own_ends_a_run_at_full_scale_which_has_none(light, capsys):
    chapter = light("import time\nwhile True:\n    time.sleep(0.05)")
    assert runner.LIMITS == {"quick": 600, "full": float("inf")}
    assert cli.main(["run", "toy", "--no-jupyter", "--scale", "full", "--limit", "0.5"]) == 1
    out = capsys.readouterr().out
    assert "still running after 0 s" in out and not chapter.record("full").exists() and left(chapter) == []
    given = cli._parser().parse_args(["run", "toy", "--limit", "30"])
    assert cli._again(given, ["toy"]).endswith("repro run toy --limit 30")


@pytest.mark.parametrize("limit", ["0", "-1", "nan"])
def test_a_limit_that_is_none_is_refused_before_anything_runs(light, capsys, limit):
    light()
    assert cli.main(["run", "toy", "--limit", limit]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err == f"repro: --limit must be a positive number of seconds; got {limit}.\n"


def test_of_two_runs_at_once_the_second_is_refused_and_the_first_is_whole(light, repro_command, monkeypatch, capsys):
    wait = """import os, time
from pathlib import Path
Path(os.environ["REPRO_ROOT"], "held").touch()
while not Path(os.environ["REPRO_ROOT"], "go").exists():
    time.sleep(0.05)"""
    chapter = light(wait)
    before = contents(chapter)
    with running(chapter, repro_command, "--no-jupyter") as process:
        assert wait_for(lambda: (chapter.root / "held").exists())
        for again in (["--no-jupyter"], ["--scale", "full", "--no-jupyter"]):
            assert cli.main(["run", "toy", *again]) == 1
            said = "FAILED: toy is being run by another process; wait for it or stop it.\n"
            assert capsys.readouterr().out.endswith(said)
        assert contents(chapter) == before and not chapter.record("full").exists()
        (chapter.root / "go").touch()
        assert process.wait(60) == 0
    fresh = records.read(chapter.record("quick"))
    assert fresh["date"] > "2026-01-03" and records.staleness(chapter, "quick") is None and left(chapter) == []


def test_a_worker_that_dies_is_an_error_and_leaves_the_stored_files(checkout, toy_cells, store, capsys):
    die = "import os, signal\nprint('last words', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    chapter = checkout([*toy_cells[:2], ([], die)])
    store(chapter)
    before = contents(chapter)
    assert cli.main(["run", "toy", "--no-jupyter"]) == 1
    out = capsys.readouterr().out
    said = "toy  quick  FAILED: toy: the run ended with status -9, most likely for want of memory.\n"
    assert said in out and "last words" in out
    assert contents(chapter) == before


def test_a_kernel_that_dies_is_an_error_and_leaves_the_stored_files(checkout, toy_cells, store, capsys):
    chapter = checkout([([], "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")])
    store(chapter)
    before = contents(chapter)
    assert cli.main(["run", "toy"]) == 1
    assert "toy  quick  FAILED: toy: the kernel died, most likely for want of memory." in capsys.readouterr().out
    assert contents(chapter) == before


@pytest.mark.parametrize("flag", ["--no-jupyter", ""])
def test_memory_that_is_refused_is_an_error_by_cell_and_line(light, capsys, flag):
    greedy = "import resource\nresource.setrlimit(resource.RLIMIT_DATA, (10**9, 10**9))\nx = bytearray(10**10)"
    chapter = light(greedy)
    before = contents(chapter)
    assert cli.main(["run", "toy", *filter(None, [flag])]) == 1
    assert "toy  quick  FAILED: toy, cell 2, line 3: MemoryError\n" in capsys.readouterr().out
    assert contents(chapter) == before and left(chapter) == []


# ------------------------------------------------------------------------------------------------ clocks that jump


@pytest.mark.parametrize("days", [-1, 1])
def test_a_wall_clock_that_jumps_changes_no_duration_and_no_list(checkout, toy_cells, monkeypatch, capsys, days):
    class Jumped(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days)

    jump = f"""import os, time
from pathlib import Path
Path(os.environ["REPRO_ROOT"], "jumped").touch()
then = time.time()
time.time = lambda: then + {days} * 86400"""
    chapter = checkout([*toy_cells[:2], ([], jump), *toy_cells[2:4], toy_cells[-1]])
    real, mark, start = time.time, chapter.root / "jumped", time.monotonic()
    monkeypatch.setattr(time, "time", lambda: real() + days * 86_400 * mark.exists())
    monkeypatch.setattr(runner, "datetime", Jumped)
    assert cli.main(["run", "toy", "--no-jupyter"]) == 0
    record = records.read(chapter.record("quick"))
    assert 0 < record["run_seconds"] <= record["wall_seconds"] <= time.monotonic() - start + 0.1
    off = (datetime.fromisoformat(record["date"]) - datetime.now(UTC)).total_seconds() / 86_400
    assert abs(off - days) < 0.5 and records.staleness(chapter, "quick") is None
    capsys.readouterr()
    assert cli.main(["list"]) == 0
    assert f"  quick  2 reproduced ({'24 hours' if days < 0 else 'now'})\n" in capsys.readouterr().out
    assert cli.main(["run", "--stale"]) == 0 and capsys.readouterr().out == ""


# ------------------------------------------------------------------------------------ files that are not what they were


@pytest.mark.parametrize(("above", "line"), [(0, 1), (1, 2), (20, 21)])
@pytest.mark.parametrize("mark", ["<<<<<<< HEAD\n", "=======\n", ">>>>>>> 3f2a (other)\r\n"])
def test_a_notebook_with_merge_conflict_marks_is_refused_by_line_with_the_remedy(light, capsys, above, line, mark):
    chapter = light()
    lines = chapter.path.read_text().splitlines(keepends=True)
    chapter.path.write_bytes("".join([*lines[:above], mark, *lines[above:]]).encode())
    before = contents(chapter)
    assert cli.main(["run", "toy"]) == 1
    out = capsys.readouterr().out
    assert f"toy.ipynb is not a readable notebook: it holds merge conflict marks, the first in line {line}: keep" in out
    assert "(git checkout --ours FILE, or --theirs), or edit them out, and run the chapter again.\n" in out
    assert cli.main(["list"]) == 1
    assert "merge conflict marks" in capsys.readouterr().err and contents(chapter) == before


def test_a_line_of_code_that_looks_like_a_mark_is_none(light, capsys):
    chapter = light('print("""\n<<<<<<< HEAD\n=======\n""")')
    assert cli.main(["run", "toy", "--no-jupyter"]) == 0
    chapter.path.write_text(chapter.path.read_text()[:-5])
    assert cli.main(["run", "toy", "--no-jupyter"]) == 1
    assert "merge" not in capsys.readouterr().out


def test_a_notebook_of_bytes_that_are_no_text_is_refused(light, capsys):
    chapter = light()
    chapter.path.write_bytes(b"\xff\xfe" + chapter.path.read_bytes())
    assert cli.main(["run", "toy"]) == 1
    assert (
        "toy.ipynb is not a readable notebook: not UTF-8 text ('utf-8' codec can't decode byte 0xff"
        in capsys.readouterr().out
    )


def test_a_full_record_edited_by_hand_is_found_before_a_cell_runs(light, store, capsys):
    chapter = light("Path = __import__('pathlib').Path\nPath('ran').touch()")
    store(chapter, "full")
    path, before = chapter.record("full"), contents(chapter)
    path.write_text(path.read_text().replace("not reproduced", "reproduced"))
    edited = path.read_bytes()
    assert cli.main(["run", "toy", "--no-jupyter"]) == 1
    said = f"The record {path} does not fit its digest: it was edited by hand. Make it anew: repro run toy --scale full"
    assert f"toy  quick  FAILED: {said}.\n" in capsys.readouterr().out
    assert contents(chapter) == before and path.read_bytes() == edited and not chapter.path.with_name("ran").exists()


def test_a_quick_record_edited_by_hand_is_found_by_check_and_made_anew_by_run(light, capsys):
    chapter = light()
    path = chapter.record("quick")
    path.write_text(path.read_text().replace('"mean": 2.0', '"mean": 2.5'))
    assert cli.main(["check", "toy", "--no-jupyter"]) == 1
    err = capsys.readouterr().err
    assert (
        "toy.json does not fit its digest: it was edited by hand. Make it anew: repro run toy --scale quick.\n" in err
    )
    assert cli.main(["list"]) == 0 and "does not fit its digest" in capsys.readouterr().out
    assert cli.main(["run", "--stale", "--no-jupyter"]) == 0 and records.read(path)["claims"][0]["mean"] == 2.0


CLASSES = b"World\nSports\nBusiness\nSci/Tech\n"  # of AG News
CACHED = {  # the first file of a set that a chapter loads: what lies there in its place, and what is said of it
    "kinship": (bytes(208_822), "208822 bytes with "),  # the right size
    "umls": (CLASSES, "31 bytes with "),  # a good file, of another set
}


def test_a_cache_that_holds_another_file_under_a_data_sets_name_is_refused_by_checksum(
    light, capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("REPRO_DATA", raising=False)
    (known,) = (f for f in data.data_set("ag_news").forms[0].files if f.path.endswith("classes.txt"))
    assert known.sha256 == hashlib.sha256(CLASSES).hexdigest()
    before = {}
    for name, (content, _) in CACHED.items():
        before |= contents(light(f'from reprolib import data\ndata.load("{name}")', name))
        first = data.data_set(name).forms[0].files[0]
        path = tmp_path / "cache" / "reprolib" / first.path
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        before[path] = content
    assert cli.main(["run", *CACHED, "--no-jupyter"]) == 1
    lines = capsys.readouterr().out.splitlines()
    for line, (name, (_, there)) in zip(lines, CACHED.items(), strict=False):
        first = data.data_set(name).forms[0].files[0]
        assert line.startswith(f"{name}  quick  FAILED: {name}, cell 2, line 2: ReproError: {tmp_path}/cache/reprolib/")
        assert f"{first.path} is not the published file: {first.bytes} bytes with SHA-256 {first.sha256[:12]}" in line
        assert f"{there}" in line and line.endswith(f"are there. `repro data fetch {name}` replaces it.")
    assert {file: file.read_bytes() for file in before} == before


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
