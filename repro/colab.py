"""The first code cell of each notebook, which fetches the book when the notebook was opened alone in Colab."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reprolib import project, records
from reprolib.notebook import COLAB, Notebook, read, source, tags
from reprolib.project import ReproError

CELL = """\
import sys

if "google.colab" in sys.modules:  # Colab opens the notebook alone: fetch the book that belongs to it
    import os

    if not os.path.isdir("book"):
        os.system("git clone -q --depth 1 --branch {branch} {url} book")
        os.system("pip install -q ./book")
    os.chdir("book")"""


def cell(root: Path) -> dict[str, Any]:
    """The cell, with the repository that _config.yml names.

    Raises:
        ReproError: PyYAML is missing, or _config.yml names no repository.
    """
    try:
        import yaml
    except ImportError:
        raise ReproError("Reading _config.yml needs PyYAML; install the extra 'book'.") from None
    try:
        about = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["repository"]
        text = CELL.format(url=about["url"], branch=about["branch"])
    except (OSError, KeyError, TypeError):
        raise ReproError("_config.yml must name the repository, with url and branch, for notebooks in Colab.") from None
    metadata = {"jupyter": {"source_hidden": True}, "tags": [COLAB, "remove-cell"]}
    made: dict[str, Any] = {
        "cell_type": "code",
        "execution_count": None,
        "id": COLAB,
        "metadata": metadata,
        "outputs": [],
    }
    return {**made, "source": text.splitlines(keepends=True)}


def fits(nb: Notebook, wanted: dict[str, Any]) -> bool:
    """Whether a notebook holds the cell once, before its other code."""
    held = [source(c) for c in nb["cells"] if COLAB in tags(c)]
    first = next((source(c) for c in nb["cells"] if c["cell_type"] == "code"), None)
    return held == [source(wanted)] == [first]


def renewed(nb: Notebook, wanted: dict[str, Any]) -> Notebook:
    """A copy of a notebook with the cell before its other code, in place of an older one, whose number it keeps."""
    others = [c for c in nb["cells"] if COLAB not in tags(c)]
    older = next((c for c in nb["cells"] if COLAB in tags(c)), wanted)
    first = next((k for k, c in enumerate(others) if c["cell_type"] == "code"), len(others))
    new = wanted | {"execution_count": older["execution_count"]}
    return {**nb, "cells": [*others[:first], new, *others[first:]]}


def main(root: Path) -> int:
    """Renew the cell in every notebook that lacks it or holds another; the records stay valid."""
    wanted, changed = cell(root), 0
    for file in project.notebooks(root):
        nb = read(file.path)
        if not fits(nb, wanted):
            records.write_atomic(file.path, json.dumps(renewed(nb, wanted), indent=1, ensure_ascii=False) + "\n")
            changed += 1
    print(f"{changed} notebooks changed. Where the cell is new, the others need new numbers: repro run SLUG ...")
    return 0
