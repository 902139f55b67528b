"""``repro run`` killed with signal 9 at random moments: what is stored is old or new, whole, and of one run.

A few kills in each suite; a hundred and more by ``REPRO_KILLS=100 pytest -s tests/faults/test_killed.py``.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest
from test_faults import contents, left, processes, traces, wait_for
from toybook import HAND_OVER, lend

from reprolib import records

KILLS = int(os.environ.get("REPRO_KILLS", "12"))
# Runs the command as often as it is asked to, each time in a process of its own that need not import torch again: says
# its number, then how it ended. The disk is slow, so that many a moment falls into the writing.
SERVER = """
import os, sys, time
from repro import cli

for name in ("fsync", "replace"):
    def slow(*args, real=getattr(os, name)):
        time.sleep(0.1)
        real(*args)
        time.sleep(0.1)
    setattr(os, name, slow)
said = os.open("said", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
for line in sys.stdin:
    if (child := os.fork()) == 0:
        os.dup2(said, 1), os.dup2(said, 2)
        os._exit(cli.main(line.split()))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Runs:
    """Starts ``repro run toy`` by the server, and ends it."""

    def __init__(self, server, command):
        self._server, self._command = server, command

    def start(self):
        """Start a run; returns its process number."""
        self._server.stdin.write(f"{self._command}\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def status(self):
        """How the run ended, once it has: its exit code, or the signal, negative."""
        return int(self._server.stdout.readline())

    def whole(self):
        """A run that is left alone; returns how long it took."""
        start = time.monotonic()
        self.start()
        assert self.status() == 0
        return time.monotonic() - start


@contextlib.contextmanager
def serving(chapter, *flags):
    """A server for runs of a chapter."""
    (chapter.root / "tmp").mkdir()
    env = {k: v for k, v in os.environ.items() if k != "REPRO_ROOT"} | {"TMPDIR": str(chapter.root / "tmp")}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=chapter.root, env=env, stdin=pipe, stdout=pipe, text=True
    ) as server:
        try:
            yield Runs(server, " ".join(["run", "toy", *flags]))
        finally:
            server.kill()
            for lost in processes(chapter):
                lost.kill()


def wait_until_it_writes(chapter, process):
    """Wait until a run has begun to write, or has ended."""
    places = [path.parent for path in contents(chapter)]
    assert wait_for(lambda: any(list(p.glob(".*.part")) for p in places) or not psutil.pid_exists(process))


def found(chapter, old, new):
    """Which of the stored files are new, after checking that each is old or new and whole; a record's time may vary."""
    notebook, record = contents(chapter).values()
    assert notebook in (old[chapter.path], new[chapter.path])
    if record == old[chapter.record("quick")]:
        assert records.staleness(chapter, "quick") == "stale: the chapter's code changed since this run"
    else:
        assert notebook == new[chapter.path]  # a record is never newer than what is shown beside it
        assert records.read(chapter.record("quick"))["claims"] and records.staleness(chapter, "quick") is None
    return (notebook != old[chapter.path]) + 2 * (record != old[chapter.record("quick")])


@pytest.mark.timeout(300 + 30 * KILLS)
@pytest.mark.parametrize(("flags", "n"), [(["--no-jupyter"], KILLS), ([], KILLS // 6)], ids=["plain", "jupyter"])
def test_a_run_killed_at_any_moment_leaves_whole_files_and_the_next_run_succeeds(checkout, store, flags, n):
    chapter = checkout([([], "print('light')"), ([], HAND_OVER)])
    lend(chapter, store(chapter, code_hash="0" * 64))
    old, seen = contents(chapter), Counter()
    with serving(chapter, *flags) as runs:
        length = min(runs.whole(), runs.whole())
        new, writing, drawn = contents(chapter), 0.5 if flags else 1.0, random.Random(n)  # seconds, by the slow disk
        for k in range(5 * n):  # those that end before the kill do not count
            if seen["killed"] == n:
                break
            for path, content in old.items():
                path.write_bytes(content)
            process = runs.start()
            if k % 2:  # half of the kills meet the writing, the others any moment
                wait_until_it_writes(chapter, process)
            time.sleep(drawn.uniform(0, writing if k % 2 else length))
            with contextlib.suppress(ProcessLookupError):  # it was quicker
                os.kill(process, signal.SIGKILL)
            status = runs.status()
            assert status in (0, -signal.SIGKILL)
            assert wait_for(lambda: not processes(chapter)), [p.cmdline() for p in processes(chapter)]
            parts, state = len(list(chapter.root.rglob("*.part"))), found(chapter, old, new)
            assert parts + len(traces(chapter.root)) <= 3  # the files being written, the folder of the run
            seen["killed" if status else "ended first"] += 1
            seen[f"{'killed' if status else 'ended first'}, state {state}, {parts} parts"] += 1
            length = runs.whole()
            assert left(chapter) == [] and found(chapter, old, new) >= 2
    print(f"\n{n} kills over {length:.2f} s: {dict(sorted(seen.items()))}")
    assert seen["killed"] == n
