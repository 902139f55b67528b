"""Run a chapter in a process of its own, with Jupyter or without, and keep its record, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from reprolib import notebook, records
from reprolib.notebook import NotebookError
from reprolib.project import ChapterFile, ReproError

Progress = Callable[[str], None]
JUPYTER = ("nbclient", "nbformat", "ipykernel")
LIMITS = {"quick": 600.0, "full": math.inf}  # seconds; ten times what a quick run may take


class Cut(ReproError):
    """A run that was stopped from outside before its end, and stored nothing."""


def has_jupyter() -> bool:
    """Whether notebooks can be run through Jupyter here."""
    return all(find_spec(name) for name in JUPYTER)


def run(
    chapter: ChapterFile,
    scale: str = "quick",
    *,
    device: str = "auto",
    seed: int = 0,
    jupyter: bool = True,
    keep: bool = True,
    on_progress: Progress | None = None,
    stopped: Callable[[], bool] = lambda: False,
    env: Mapping[str, str] | None = None,
    limit: float | None = None,
) -> records.Record:
    """Run a chapter from a clean process and return its sealed record.

    Args:
        chapter: Which.
        scale: ``quick`` or ``full``.
        device: ``auto``, ``cpu`` or ``cuda``.
        seed: Seed of the run; the stored records are those of seed 0.
        jupyter: Through Jupyter, which also refreshes the notebook's outputs at quick scale; else cell by cell.
        keep: Write the record (and the outputs) to the checkout, whole or not at all.
        on_progress: Called with what the run reports while it lasts.
        stopped: Asked ten times a second; once it says so, the run is killed with all it started.
        env: Further environment variables of the run; ``REPRO_MEMORY_MB`` limits what each of its processes may hold.
        limit: Seconds after which a run counts as one without end and is killed; None for that of ``LIMITS``.

    Raises:
        Cut: ``stopped`` said so.
        NotebookError: A cell fails or does not end: names chapter, cell and line.
        ReproError: The chapter is being run already, Jupyter is missing, the full record to be shown beside cannot be
            read, or the chapter leaves no record.
    """
    if jupyter and not has_jupyter():
        raise ReproError("Running through Jupyter needs the extra 'book'; or add --no-jupyter.")
    nb = notebook.read(chapter.path)
    with alone(chapter) as place:
        beside = records.beside(chapter) if scale == "quick" else None
        start = time.monotonic()
        _work(
            chapter,
            place,
            {"REPRO_SCALE": scale, "REPRO_DEVICE": device, "REPRO_SEED": str(seed), **(env or {})},
            jupyter,
            on_progress,
            stopped,
            LIMITS[scale] if limit is None else limit,
        )
        report = place / "record.json"
        if not report.is_file():
            raise ReproError(f"{chapter.slug} left no record: its last code cell must be ch.finish().")
        record: records.Record = json.loads(report.read_text(encoding="utf-8"))
        record |= {
            "code_hash": notebook.code_hash(nb),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_seconds": round(time.monotonic() - start, 1),
            "runner": "jupyter" if jupyter else "plain",
            "beside": beside,
        }
        if notebook.code_hash(notebook.read(chapter.path)) != record["code_hash"]:
            raise ReproError(f"{chapter.slug} was edited while it ran; run it again.")
        if not keep:
            return {**record, "schema": records.SCHEMA, "digest": ""}
        refreshed = {chapter.path: place / "out.ipynb"} if jupyter and scale == "quick" else {}
        also = {path: new.read_text(encoding="utf-8") for path, new in refreshed.items()}
        return records.write(chapter.record(scale), record, also)


@contextlib.contextmanager
def alone(chapter: ChapterFile) -> Iterator[Path]:
    """Hold the chapter's lock, which the system frees when the process ends, however it ends.

    Gives an empty folder for what the run writes, gone at the end; what a killed run left there goes at the start.
    """
    import fcntl

    locks, runs = (chapter.root / "_build" / name for name in ("locks", f"runs/{chapter.slug}"))
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / chapter.slug).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReproError(f"{chapter.slug} is being run by another process; wait for it or stop it.") from None
        shutil.rmtree(runs, ignore_errors=True)
        runs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=runs, ignore_cleanup_errors=True) as folder:
            yield Path(folder)


def _work(
    chapter: ChapterFile,
    place: Path,
    settings: dict[str, str],
    jupyter: bool,
    on_progress: Progress | None,
    stopped: Callable[[], bool],
    limit: float,
) -> None:
    """Run the worker process to its end; kill it, and all it started, when we are stopped or it takes too long."""
    paths = {"REPRO_RECORD": "record.json", "REPRO_PROGRESS": "progress"}
    env = os.environ | {"PYTHONHASHSEED": "0"} | settings | {key: str(place / name) for key, name in paths.items()}
    env |= {"REPRO_ROOT": str(chapter.root), "MPLBACKEND": "agg", "REPRO_COMPARE": ""}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [env.get("PYTHONPATH")])])
    how = "jupyter" if jupyter else "plain"
    command = [sys.executable, "-m", "repro.runner", how, str(chapter.path), str(place)]
    with (place / "log").open("w") as log:
        pipe = subprocess.PIPE  # closed by our end, however that comes
        worker = subprocess.Popen(command, env=env, stdout=log, stderr=log, stdin=pipe, start_new_session=True)
        end = time.monotonic() + limit
        try:
            while worker.poll() is None:
                if stopped():
                    raise Cut(f"{chapter.slug} was stopped before its end; what was stored before is unchanged.")
                if time.monotonic() > end:
                    raise NotebookError(_endless(chapter, place, limit))
                time.sleep(0.1)
                if on_progress and (place / "progress").is_file():
                    on_progress((place / "progress").read_text(encoding="utf-8"))
        finally:
            _kill(*_kernel(place), worker.pid)
            worker.communicate()
    if worker.returncode:
        raise _death(chapter, place, worker.returncode)


def _endless(chapter: ChapterFile, place: Path, limit: float) -> str:
    """That a run was too long, and in which cell."""
    where = f"cell {(place / 'cell').read_text()}" if (place / "cell").is_file() else "its start"
    return (
        f"{chapter.slug}: {where} was still running after {limit:.0f} s, so the run was killed; what was stored before "
        f"is unchanged. Should it need longer: repro run {chapter.slug} --limit {2 * limit:.0f}"
    )


def _death(chapter: ChapterFile, place: Path, status: int) -> ReproError:
    """What a worker died of, as far as can be known."""
    error = place / "error"
    if error.is_file() and (said := error.read_text(encoding="utf-8")):
        return NotebookError(said)
    if shutil.disk_usage(place).free < 2**16:
        return ReproError(f"{chapter.slug}: the run ended for want of room on the disk of {place.parents[1]}.")
    why = ", most likely for want of memory" if status == -signal.SIGKILL else ""
    tail = (place / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
    return ReproError("\n".join([f"{chapter.slug}: the run ended with status {status}{why}.", *tail]))


def _kernel(place: Path) -> list[int]:
    """The process group of a worker's kernel, if one is running: Jupyter gives it one of its own."""
    file = place / "kernel"
    return [int(number) for number in file.read_text().split()] if file.is_file() else []


def _kill(*groups: int) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it is gone; macOS says the latter
            os.killpg(group, signal.SIGKILL)


def _worker(how: str, path: Path, place: Path) -> None:
    """What runs in the process of its own: execute the notebook, leave ``out.ipynb`` or ``error``."""
    _follow(place)
    if limit := os.environ.get("REPRO_MEMORY_MB"):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (int(limit) * 10**6,) * 2)  # the kernel inherits it
    try:
        _plain(path, place) if how == "plain" else _jupyter(path, place)
    except NotebookError as error:
        (place / "error").write_text(str(error), encoding="utf-8")
        raise SystemExit(1) from error


def _follow(place: Path) -> None:
    """Make sure that we end, and tidy up, when the process that started us is gone: our standard input closes then.

    Who waits for that is a process: a thread could not run while a cell holds the interpreter.
    """
    if os.fork() == 0:
        try:
            os.read(0, 1)
            _kill(*_kernel(place))
            shutil.rmtree(place, ignore_errors=True)
        finally:
            _kill(os.getpgrp())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def _plain(path: Path, place: Path) -> None:
    """Execute the code cells in order in one namespace; what they show is printed."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells = notebook.code_cells(notebook.read(path))
    os.chdir(path.parent)  # as Jupyter does
    for number, text, _ in cells:
        (place / "cell").write_text(str(number))
        notebook.execute(text, namespace, path, number)


def _jupyter(path: Path, place: Path) -> None:
    """Execute through a clean kernel and write the notebook with its outputs and slider states."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    nb = nbformat.read(path, as_version=4)
    nb.metadata.pop("widgets", None)
    client = NotebookClient(nb, timeout=None, kernel_name="python3", store_widget_state=True, record_timing=False)
    client.shutdown_kernel = "immediate"  # by then the record and all outputs are here
    client.on_cell_execute = lambda cell_index, **_: (place / "cell").write_text(str(cell_index + 1))
    manager = client.create_kernel_manager()
    manager.connection_file = str(place / "kernel.json")
    try:
        client.start_new_kernel(cwd=str(path.parent))
        process: Any = manager.provisioner
        (place / "kernel").write_text(str(process.pid))
        client.execute()
    except CellExecutionError as error:
        raise NotebookError(_where(nb, path, error)) from None
    except DeadKernelError:
        raise NotebookError(f"{path.stem}: the kernel died, most likely for want of memory.") from None
    except RuntimeError as error:  # of a kernel that does not start
        raise NotebookError(f"{path.stem}: Jupyter failed: {error}.") from None
    finally:
        (place / "kernel").unlink(missing_ok=True)
    (place / "out.ipynb").write_text(_steady(nb) + "\n", encoding="utf-8")


def _where(nb: Any, path: Path, error: Any) -> str:
    """The failing cell and line, from the notebook's own error output."""
    for number, cell in enumerate(nb.cells, start=1):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback))
                lines = re.findall(rf"Cell In\[{cell.execution_count}\], line (\d+)", plain) or ["1"]
                empty = cell.source[: len(cell.source) - len(cell.source.lstrip())]
                line = int(lines[-1]) + empty.count("\n")  # IPython drops the empty lines above
                said = f": {output.evalue}" if output.evalue else ""
                return f"{path.stem}, cell {number}, line {line}: {output.ename}{said}"
    return f"{path.stem}: {error}"


def _steady(nb: Any) -> str:
    """The notebook's text, with widgets named in the order of their making, so that equal runs give equal files."""
    import nbformat

    nb.metadata.get("language_info", {}).pop("version", None)
    widgets = nb.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    text = json.dumps(nb)
    for i, model in enumerate(widgets):
        text = text.replace(model, f"{i:032x}")
    return str(nbformat.writes(nbformat.reads(text, as_version=4)))


if __name__ == "__main__":
    _worker(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
