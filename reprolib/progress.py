"""Progress that is seen while it matters and leaves nothing behind."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import TypeVar

from reprolib.show import ipython

T = TypeVar("T")
EVERY = 0.25  # seconds between updates


def progress(items: Iterable[T], label: str) -> Iterator[T]:
    """Yield the items and report how far we are.

    Where to: the file named by ``REPRO_PROGRESS`` (the runner reads it; ``off`` silences), else the notebook, whose
    output is cleared at the end, else a terminal's standard error. Call it before a cell prints anything.
    """
    total = len(items) if isinstance(items, Sized) else None
    last = 0.0
    try:
        for done, item in enumerate(items):
            if time.monotonic() - last > EVERY:
                last = time.monotonic()
                _report(f"{label} {done}/{total}" if total is not None else f"{label} {done}")
            yield item
    finally:  # also when the loop is left early
        _clear()


def _report(text: str) -> None:
    where = os.environ.get("REPRO_PROGRESS", "")
    if where == "off":
        return
    if where:
        Path(where).write_text(text, encoding="utf-8")
    elif ipython() is not None:
        sys.modules["IPython"].display.clear_output(wait=True)
        print(text)
    elif sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _clear() -> None:
    if os.environ.get("REPRO_PROGRESS"):
        return
    if ipython() is not None:
        sys.modules["IPython"].display.clear_output()
    elif sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
