"""``repro run --engine dask``: chapters run on the workers of a Dask cluster, and their records come back here.

What a chapter reads from a checkout (its notebook, its full record, the shipped models) is sent along, and it runs in
a folder of its own there; so a worker needs the book's package but no checkout, and this machine alone writes records.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import reprolib
from repro import board, runner, schedule
from reprolib import notebook, project, records
from reprolib.project import ChapterFile, ReproError

Kit = dict[str, bytes]  # path in the checkout -> content
Outcome = dict[str, Any]  # {"record": ..., "notebook": text} or {"failed": message}
SECONDS_TO_CONNECT = 20
LOGGERS = ("distributed", "distributed.client", "tornado.application")
DEATHS = 3  # of the workers that ran a chapter, after which it is not tried again (in a cluster of our own)
WORKERS = (1, 2, 4, 8, 16, 32, 64)  # of the table of costs
BOOK = 151  # chapters of the whole book
# Ctrl-C in a terminal reaches every process started from it; the one that asked decides what the workers do.
UNMOVED = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"


def signature() -> str:
    """SHA-256 over the code that runs chapters, `repro` and `reprolib`, as it lies on this machine."""
    total = hashlib.sha256()
    for package in (Path(__file__).parent, Path(reprolib.__file__).parent):
        for path in sorted(p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
            total.update(f"{package.name}/{path.relative_to(package).as_posix()}\0".encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


AT_START = signature()  # of the code that this process runs, whatever becomes of the files


# ---------------------------------------------------------------------------------------------------- on a worker


def describe() -> str:
    """The code this worker runs, or what is wrong with it."""
    return AT_START if AT_START == signature() else "changed"


def job(slug: str, path: str, kit: Kit, scale: str, settings: dict[str, Any], code: str) -> Outcome:
    """Run a chapter on a Dask worker, in a folder of its own, until its end or until no one waits for it.

    Args:
        slug: Of the chapter.
        path: Of its notebook in the checkout.
        kit: What it reads from the checkout.
        scale: ``quick`` or ``full``.
        settings: Of `runner.run`.
        code: The `signature` of the code that asks.

    Returns:
        ``record`` and ``notebook`` (its text after the run), or ``failed``, why.
    """
    from distributed import get_worker

    worker = get_worker()
    if problem := _misfit(describe(), code):
        return {"failed": f"{slug}: worker {worker.address} {problem}"}
    task = worker.get_current_task()
    with tempfile.TemporaryDirectory(prefix="repro-", dir=worker.local_directory) as folder:
        for name, content in kit.items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(content)
        chapter = ChapterFile(slug, Path(path).parent.name, Path(folder).resolve() / path)
        try:
            record = runner.run(chapter, scale, stopped=lambda: _unwanted(worker, task), **settings)
        except ReproError as error:
            return {"failed": str(error)}
        except Exception as error:
            return {"failed": f"{slug}: worker {worker.address}: {type(error).__name__}: {error}"}
        return {"record": record, "notebook": chapter.path.read_text(encoding="utf-8")}


def _unwanted(worker: Any, task: Any) -> bool:
    """Whether the one who asked has cancelled a running task, or is gone."""
    state = worker.state.tasks.get(task)
    return state is None or state.state == "cancelled"


def _misfit(found: str, code: str) -> str:
    """What to say of a worker that runs other code than ours; nothing when it is the same."""
    if found == "changed":
        return "was started before the book's code there changed; start it anew."
    if found != code:
        return "runs another state of the book's code; bring both to the same commit and start it anew."
    return ""


# ---------------------------------------------------------------------------------------------------- on our side


class Engine:
    """A cluster, connected: `run` does what `runner.run` does, elsewhere.

    Args:
        client: A ``distributed.Client``.
        gpu: Whether chapters run on a GPU.
        jobs: Chapters at a time; None for as many as the cluster has places now.

    Raises:
        ReproError: The cluster cannot run the book: it has no workers, other versions, other code or no GPU.
    """

    def __init__(self, client: Any, gpu: bool, jobs: int | None) -> None:
        self._client, self._gpu = client, gpu
        _same_dask(client)
        _same_code(client)
        places = self.places()
        if not places and jobs is None:
            raise ReproError(self._no_place())
        if gpu and not places and self._workers():
            raise ReproError(self._no_place())
        self.jobs = jobs or places

    def _workers(self) -> dict[str, Any]:
        workers: dict[str, Any] = self._client.scheduler_info(n_workers=-1)["workers"]
        return workers

    def places(self) -> int:
        """How many chapters the workers that are there now can run at a time."""
        workers = self._workers().values()
        if self._gpu:
            return sum(min(int(w["resources"].get("GPU", 0)), w["nthreads"]) for w in workers)
        return sum(w["nthreads"] for w in workers)

    def _no_place(self) -> str:
        address = self._client.scheduler.address
        if not self._workers():
            return (
                f"The Dask cluster at {address} has no workers. Start some (dask worker {address} --nthreads 1), "
                "or say with --jobs for how many to wait."
            )
        return (
            f"No worker at {address} declares a GPU. Start one a GPU: dask worker {address} --nthreads 1 "
            '--resources "GPU=1"; or say --device cpu.'
        )

    def run(
        self,
        chapter: ChapterFile,
        scale: str,
        *,
        keep: bool,
        stopped: Callable[[], bool],
        on_progress: runner.Progress | None = None,  # noqa: ARG002 (what goes on elsewhere is not followed)
        **settings: Any,
    ) -> records.Record:
        """Run a chapter on a worker, on another one if that is lost, and return its sealed record.

        Args and errors are those of `runner.run`; and ReproError when one worker after the other is lost with it.
        """
        if self._gpu and settings["device"] == "auto":
            settings["device"] = "cuda"
        with runner.alone(chapter):
            kit = _kit(chapter)
            path = chapter.path.relative_to(chapter.root).as_posix()
            future = self._client.submit(
                job,
                *(chapter.slug, path, kit, scale, settings, AT_START),
                key=f"{chapter.slug}-{scale}-{uuid.uuid4().hex[:8]}",
                pure=False,
                resources={"GPU": 1} if self._gpu else None,
            )
            try:
                outcome = self._outcome(chapter, future, stopped)
            finally:
                _drop(future)
            if "failed" in outcome:
                raise ReproError(outcome["failed"])
            return _keep(chapter, scale, kit[path], outcome, keep)

    def _outcome(self, chapter: ChapterFile, future: Any, stopped: Callable[[], bool]) -> Outcome:
        """What a job comes to, awaited."""
        from distributed import KilledWorker

        while not future.done():
            if stopped():
                raise runner.Cut(f"{chapter.slug} was stopped before its end; what was stored before is unchanged.")
            time.sleep(0.1)
        if future.status in ("cancelled", "lost"):
            raise ReproError(f"{chapter.slug}: the Dask scheduler is gone; what was stored before is unchanged.")
        try:
            outcome: Outcome = future.result()
        except KilledWorker as error:
            tries = error.allowed_failures + 1
            raise ReproError(
                f"{chapter.slug}: {tries} workers died while they ran it, most likely for want of memory; "
                "it was not tried again."
            ) from None
        except Exception as error:  # the job itself could not be started there
            raise ReproError(f"{chapter.slug}: the worker cannot run it: {type(error).__name__}: {error}") from error
        return outcome


def _drop(future: Any) -> None:
    """Have a worker stop what is not awaited any more; where the scheduler is gone there is no one to tell."""
    with contextlib.suppress(Exception):
        future.cancel()


def _kit(chapter: ChapterFile) -> Kit:
    """What a chapter may read from its checkout."""
    models = [p for p in (chapter.root / "models").glob("*") if p.is_file() and p.suffix != ".py"]
    files = [chapter.path, chapter.root / "_toc.yml", chapter.record("full"), *sorted(models)]
    return {p.relative_to(chapter.root).as_posix(): p.read_bytes() for p in files if p.is_file()}


def _keep(chapter: ChapterFile, scale: str, sent: bytes, outcome: Outcome, keep: bool) -> records.Record:
    """Write what came back, whole or not at all, if it is still about the chapter that lies here."""
    record: records.Record = outcome["record"]
    refreshed = outcome["notebook"].encode() != sent
    now = chapter.path.read_bytes()
    if notebook.code_hash(notebook.read(chapter.path)) != record["code_hash"] or (refreshed and now != sent):
        raise ReproError(f"{chapter.slug} was edited while it ran; run it again.")
    if not keep:
        return record
    return records.write(chapter.record(scale), record, {chapter.path: outcome["notebook"]} if refreshed else {})


def _same_dask(client: Any) -> None:
    """Refuse a cluster of another Dask."""
    found = client.get_versions()
    ours = found["client"]["packages"]
    others = {"the scheduler": found["scheduler"], **{f"worker {w}": v for w, v in found["workers"].items()}}
    for who, theirs in others.items():
        for package in ("dask", "distributed"):
            version = theirs["packages"][package] if theirs else "unknown"
            if version != ours[package]:
                raise ReproError(f"{package} is {version} at {who} and {ours[package]} here; install the same version.")


def _same_code(client: Any) -> None:
    """Refuse a cluster with a worker that runs other code; one that comes later is refused when it gets a chapter."""
    for worker, found in sorted(client.run(describe, on_error="return").items()):
        if isinstance(found, BaseException):
            raise ReproError(
                f"Worker {worker} cannot import the book's package ({found}). "
                "Install it there: pip install -e . in a checkout of the book."
            )
        if problem := _misfit(found, AT_START):
            raise ReproError(f"Worker {worker} {problem}")


@contextlib.contextmanager
def connected(address: str | None, jobs: int | None, gpu: bool) -> Iterator[Engine]:
    """A cluster, while it is needed.

    Args:
        address: Of a Dask scheduler, for example ``tcp://10.0.0.1:8786``; None for workers of our own on this machine.
        jobs: Chapters at a time; for workers of our own their number, one by default.
        gpu: Whether chapters run on a GPU; workers of our own share that of this machine.

    Raises:
        ReproError: Dask is not installed, no one answers, or the cluster cannot run the book.
    """
    try:
        import distributed
    except ImportError:
        raise ReproError("--engine dask needs the extra 'cluster': pip install -e '.[cluster]'.") from None
    with contextlib.ExitStack() as stack:
        if address is None:
            where = stack.enter_context(_own_cluster(jobs or 1, gpu))
        else:
            where = address
        for name in LOGGERS:  # what goes wrong is told in our own words
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            client = stack.enter_context(distributed.Client(where, timeout=SECONDS_TO_CONNECT, set_as_default=False))
        except (OSError, ValueError) as error:
            raise ReproError(
                f"No Dask scheduler answers at {address} within {SECONDS_TO_CONNECT} s ({error or 'timeout'}). "
                "Start one (dask scheduler) and give the address that it prints."
            ) from None
        yield Engine(client, gpu, jobs)


@contextlib.contextmanager
def _own_cluster(workers: int, gpu: bool) -> Iterator[Any]:
    """Worker processes on this machine, reachable from this machine only, with the environment a local run has."""
    import dask
    from distributed import LocalCluster

    usual = dask.config.get("distributed.nanny.pre-spawn-environ")
    settings = {
        "distributed.nanny.pre-spawn-environ": dict.fromkeys(usual),  # None: as it is
        "distributed.scheduler.allowed-failures": DEATHS - 1,
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=None,
            silence_logs=logging.CRITICAL,
            preload=[UNMOVED],
            resources={"GPU": 1} if gpu else None,
        ) as cluster,
    ):
        yield cluster


# ------------------------------------------------------------------------------------------------- what it costs


def cost(root: Path) -> str:
    """How long the book takes with more workers, as HTML: by its records now, and grown to its whole size.

    Args:
        root: The checkout, whose quick records say how long each chapter took.

    Raises:
        ReproError: There is no record yet.
    """
    dues = schedule.survey(project.chapters(root), "quick")
    seconds = sorted((due.seconds for due in dues if due.seconds is not None), reverse=True)
    if not seconds:
        raise ReproError("There is no quick record that says how long a chapter takes; make one: repro run --all.")
    whole = [seconds[k % len(seconds)] for k in range(BOOK)]
    rows = "".join(_cost_row(m, seconds, whole) for m in WORKERS)
    groups = "".join(f'<th scope="colgroup" colspan="3">{n} chapters</th>' for n in (len(seconds), BOOK))
    names = '<th scope="col">Minutes</th><th scope="col">No schedule below</th><th scope="col">Speed-up</th>' * 2
    head = f'<tr><th scope="col" rowspan="2">Workers</th>{groups}</tr><tr>{names}</tr>'
    return board.table("Time of the book by number of workers", head, rows)


def _cost_row(workers: int, *books: list[float]) -> str:
    cells = [str(workers)]
    for seconds in books:
        took = schedule.makespan(seconds, workers)
        least = schedule.least(seconds, workers)
        cells += [f"{took / 60:.1f}", f"{least / 60:.1f}", f"{sum(seconds) / took:.1f}"]
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
