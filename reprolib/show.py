"""What a cell shows: sentences, tables and numbers, in Jupyter as Markdown and elsewhere as plain text."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

APPROX = "≈"  # marks a number whose last digits another machine may change; tests compare it through the record


def ipython() -> Any:
    """The running IPython shell if this process is a Jupyter kernel, else None; never imports IPython."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module else None
    return shell if shell is not None and getattr(shell, "kernel", None) is not None else None


def display(bundle: dict[str, Any], metadata: dict[str, Any] | None = None) -> None:
    """Show a MIME bundle in Jupyter; elsewhere print its ``text/plain``."""
    if ipython() is None:
        print(bundle["text/plain"])
        return
    sys.modules["IPython"].display.display(bundle, metadata=metadata or {}, raw=True)


def say(markdown: str) -> None:
    """Show a sentence whose numbers come from the run."""
    display({"text/markdown": markdown, "text/plain": markdown})


def approx(x: float, digits: int = 3, *, signed: bool = False, percent: bool = False) -> str:
    """A number that may differ between machines, as ``≈0.873``.

    Args:
        x: The number; anything ``float`` takes.
        digits: Significant digits.
        signed: Write the plus sign too.
        percent: Multiply by 100 and write ``%`` behind.
    """
    value = float(x) * (100 if percent else 1)
    if not math.isfinite(value):
        return f"{APPROX}{value}"
    sign = "+" if signed else ""
    whole = 10**digits - 0.5 <= abs(value) < 10**9  # else 999.7 would read 1e+03
    text = f"{value:{sign},.0f}" if whole else f"{value:{sign}.{digits}g}"
    return f"{APPROX}{text}{' %' if percent else ''}"


def approx_interval(result: Any, digits: int = 2, *, signed: bool = True, percent: bool = False) -> str:
    """``mean [low, high]`` of an :class:`~reprolib.stats.Interval` or a claim's result, each marked ``≈``."""
    mean, low, high = (
        approx(v, digits, signed=signed, percent=percent) for v in (result.mean, result.low, result.high)
    )
    return f"{mean} [{low}, {high}]"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], align: str = "") -> None:
    """Show a Markdown table.

    Args:
        header: Column titles, with units.
        rows: One sequence a row, as long as the header; numbers that may differ go through :func:`approx` first.
        align: One letter a column, ``l``, ``r`` or ``c``; left when empty.

    Raises:
        ValueError: A row or ``align`` has another length than the header.
    """
    say(markdown_table(header, rows, align))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]], align: str = "") -> str:
    """The text of :func:`table`."""
    align = align or "l" * len(header)
    if len(align) != len(header):
        raise ValueError(f"align must hold one letter a column ({len(header)}); got {align!r}.")
    marks = {"l": ":--", "r": "--:", "c": ":-:"}
    lines = [list(header), [marks[a] for a in align]]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"each row must hold {len(header)} cells ({', '.join(header)}); got {list(row)}.")
        lines.append([str(cell).replace("|", "\\|").replace("\n", " ") for cell in row])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
