"""Run a chapter in a process of its own, with Jupyter or without, and keep its record, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from reprolib import notebook, records
from reprolib.notebook import NotebookError
from reprolib.project import ChapterFile, ReproError

Progress = Callable[[str], None]
JUPYTER = ("nbclient", "nbformat", "ipykernel")


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

    Raises:
        Cut: ``stopped`` said so.
        NotebookError: A cell fails: names chapter, cell and line.
        ReproError: The chapter is being run already, Jupyter is missing, or the chapter leaves no record.
    """
    if jupyter and not has_jupyter():
        raise ReproError("Running through Jupyter needs the extra 'book'; or add --no-jupyter.")
    nb = notebook.read(chapter.path)
    with _alone(chapter), tempfile.TemporaryDirectory(prefix="repro-") as folder:
        place = Path(folder)
        start = time.monotonic()
        _work(
            chapter,
            place,
            {"REPRO_SCALE": scale, "REPRO_DEVICE": device, "REPRO_SEED": str(seed)},
            jupyter,
            on_progress,
            stopped,
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
            "beside": records.beside(chapter) if scale == "quick" else None,
        }
        if notebook.code_hash(notebook.read(chapter.path)) != record["code_hash"]:
            raise ReproError(f"{chapter.slug} was edited while it ran; run it again.")
        if not keep:
            return {**record, "schema": records.SCHEMA, "digest": ""}
        refreshed = {chapter.path: place / "out.ipynb"} if jupyter and scale == "quick" else {}
        also = {path: new.read_text(encoding="utf-8") for path, new in refreshed.items()}
        return records.write(chapter.record(scale), record, also)


@contextlib.contextmanager
def _alone(chapter: ChapterFile) -> Iterator[None]:
    """Hold the chapter's lock, which the system frees when the process ends, however it ends."""
    import fcntl

    locks = chapter.root / "_build" / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / chapter.slug).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReproError(f"{chapter.slug} is being run by another process; wait for it or stop it.") from None
        yield


def _work(
    chapter: ChapterFile,
    place: Path,
    settings: dict[str, str],
    jupyter: bool,
    on_progress: Progress | None,
    stopped: Callable[[], bool],
) -> None:
    """Run the worker process to its end; kill it, and all it started, when we are stopped."""
    paths = {"REPRO_RECORD": "record.json", "REPRO_PROGRESS": "progress"}
    env = os.environ | settings | {key: str(place / name) for key, name in paths.items()}
    env |= {"REPRO_ROOT": str(chapter.root), "PYTHONHASHSEED": "0", "MPLBACKEND": "agg", "REPRO_COMPARE": ""}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [env.get("PYTHONPATH")])])
    how = "jupyter" if jupyter else "plain"
    command = [sys.executable, "-m", "repro.runner", how, str(chapter.path), str(place), str(os.getpid())]
    with (place / "log").open("w") as log:
        worker = subprocess.Popen(
            command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            while worker.poll() is None:
                if stopped():
                    raise Cut(f"{chapter.slug} was stopped before its end; what was stored before is unchanged.")
                time.sleep(0.1)
                if on_progress and (place / "progress").is_file():
                    on_progress((place / "progress").read_text(encoding="utf-8"))
        finally:
            _kill(worker)
    if worker.returncode:
        error = place / "error"
        if error.is_file():
            raise NotebookError(error.read_text(encoding="utf-8"))
        tail = (place / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
        raise ReproError(f"{chapter.slug}: the run ended with status {worker.returncode}. " + "\n".join(tail))


def _kill(worker: subprocess.Popen[bytes]) -> None:
    if worker.poll() is None:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def _worker(how: str, path: Path, place: Path, parent: int) -> None:
    """What runs in the process of its own: execute the notebook, leave ``out.ipynb`` or ``error``."""
    threading.Thread(target=_die_with, args=(parent, place), daemon=True).start()
    try:
        _plain(path) if how == "plain" else _jupyter(path, place)
    except NotebookError as error:
        (place / "error").write_text(str(error), encoding="utf-8")
        raise SystemExit(1) from error


def _die_with(parent: int, place: Path) -> None:
    """Wait until the process that started us is gone (before our first line, perhaps), tidy up and go too."""
    while os.getppid() == parent:
        time.sleep(0.5)
    shutil.rmtree(place, ignore_errors=True)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _plain(path: Path) -> None:
    """Execute the code cells in order in one namespace; what they show is printed."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells = notebook.code_cells(notebook.read(path))
    os.chdir(path.parent)  # as Jupyter does
    for number, text, _ in cells:
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
    try:
        client.execute(cwd=str(path.parent))
    except CellExecutionError as error:
        raise NotebookError(_where(nb, path, error)) from None
    except DeadKernelError:
        raise NotebookError(f"{path.stem}: the kernel died, most likely for want of memory.") from None
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
                return f"{path.stem}, cell {number}, line {line}: {output.ename}: {output.evalue}"
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
    _worker(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
