"""Notebooks as programs: read them, hash their code, import their method, run them with or without Jupyter."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

from reprolib.project import ReproError

Notebook = dict[str, Any]
COLAB = "colab"  # tag of the cell that fetches the book in Colab


class NotebookError(ReproError):
    """A notebook that is not one, or a cell that failed: names the chapter, the cell and the line."""


def read(path: Path) -> Notebook:
    """A notebook as its JSON.

    Raises:
        NotebookError: The file is missing, cut off, full of merge marks, or not a notebook.
    """
    try:
        text = path.read_text(encoding="utf-8")
        nb = json.loads(text)
    except FileNotFoundError:
        raise NotebookError(f"There is no notebook {path}.") from None
    except UnicodeDecodeError as error:
        raise NotebookError(f"{path} is not a readable notebook: not UTF-8 text ({error}).") from None
    except json.JSONDecodeError as error:
        raise NotebookError(f"{path} is not a readable notebook: {_wrong(text, error)}.") from None
    if not isinstance(nb, dict) or "cells" not in nb:
        raise NotebookError(f"{path} is JSON but not a notebook: it has no cells.")
    return nb


def _wrong(text: str, error: json.JSONDecodeError) -> str:
    """Why a text is no JSON: marks of a merge, which JSON cannot hold at the start of a line, or what was expected."""
    mark = re.search(r"^(<{7}|={7}|>{7})(?=\s|$)", text, re.MULTILINE)
    if mark is None:
        return f"line {error.lineno}: {error.msg}"
    line = text.count("\n", 0, mark.start()) + 1
    return (
        f"it holds merge conflict marks, the first in line {line}: keep one side whole (git checkout --ours FILE, or "
        "--theirs), or edit them out, and run the chapter again"
    )


def source(cell: dict[str, Any]) -> str:
    """The text of a cell, whether stored as a string or as a list of lines."""
    text = cell["source"]
    return text if isinstance(text, str) else "".join(text)


def tags(cell: dict[str, Any]) -> list[str]:
    """The tags of a cell."""
    return list(cell.get("metadata", {}).get("tags", []))


def code_cells(nb: Notebook) -> list[tuple[int, str, list[str]]]:
    """Code cells that hold something: (cell number from 1, source, tags)."""
    numbered = enumerate(nb["cells"], start=1)
    return [(i, source(c), tags(c)) for i, c in numbered if c["cell_type"] == "code" and source(c).strip()]


def code_hash(nb: Notebook) -> str:
    """SHA-256 over the code of a notebook, cell by cell.

    Prose, outputs and metadata do not count, nor does the cell for Colab, which names the repository.
    """
    texts = [text for _, text, found in code_cells(nb) if COLAB not in found]
    lines = ("\n".join(line.rstrip() for line in text.strip().splitlines()) for text in texts)
    return hashlib.sha256("\n\x1e\n".join(lines).encode()).hexdigest()


def load_methods(path: Path) -> types.ModuleType:
    """The cells tagged ``method`` as a module, so that a test imports exactly what the reader reads.

    Raises:
        NotebookError: There is no such cell, or one fails; names cell and line.
    """
    nb = read(path)
    cells = [(i, text) for i, text, found in code_cells(nb) if "method" in found]
    if not cells:
        raise NotebookError(f"{path.name} has no cell tagged 'method'.")
    module = types.ModuleType(path.stem.replace("-", "_"))
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and NamedTuples look their module up
    for number, text in cells:
        execute(text, module.__dict__, path, number)
    return module


def execute(text: str, namespace: dict[str, Any], path: Path, number: int) -> None:
    """Run one cell in a namespace.

    Raises:
        NotebookError: The cell fails; the message names chapter, cell, line and the error. Its cause is the error.
    """
    name = f"{path.stem}, cell {number}"
    try:
        tree = ast.parse(text, name)
        exec(compile(tree, name, "exec"), namespace)
    except Exception as error:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise NotebookError(f"{name}, line {failing_line(error, name)}: {said}") from error


def failing_line(error: BaseException, name: str) -> int:
    """The line within the cell ``name`` on which an error arose (the innermost one of that cell)."""
    if isinstance(error, SyntaxError):
        return error.lineno or 1
    line, trace = 1, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == name:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
