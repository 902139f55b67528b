"""Start a chapter: a notebook and a test file with every required part in place, and TODO where the thinking goes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from repro import colab, lesson, lint
from reprolib import project, records
from reprolib.project import ReproError


def new_chapter(root: Path, slug: str) -> Path:
    """Write the scaffold of a chapter from its entry in book/papers.yml, and print what remains.

    The notebook runs as it is and breaks `repro lint` only by its TODOs and by not having been run.

    Returns:
        The notebook, chapters/<part>/<slug>.ipynb.

    Raises:
        ReproError: The slug has no entry (names the nearest), the entry lacks fields, or a file exists already.
    """
    content = project.papers(root)
    entries = {entry["slug"]: entry for entry in content["papers"]}
    if slug not in entries:
        near = project.nearest(slug, list(entries))
        raise ReproError(f"No paper {slug!r} in book/papers.yml; add its entry first. {near}")
    entry = entries[slug]
    if missing := lint.missing_fields(entry):
        raise ReproError(f"The entry of {slug!r} in book/papers.yml lacks {', '.join(missing)}; add it.")
    if entry["part"] not in (parts := [part["id"] for part in content["parts"]]):
        raise ReproError(f"The part of {slug!r} must be one of {', '.join(parts)}; got {entry['part']!r}.")
    path = root / "chapters" / entry["part"] / f"{slug}.ipynb"
    test = root / "tests" / "chapters" / f"test_{slug.replace('-', '_')}.py"
    for file in (path, test):
        if file.exists():
            raise ReproError(f"{file.relative_to(root)} exists already; nothing was written.")
    for file, text in ((path, notebook(entry, root)), (test, TEST.replace("SLUG", slug))):
        file.parent.mkdir(parents=True, exist_ok=True)
        records.write_atomic(file, text)
    print(f"Wrote {path.relative_to(root)} and {test.relative_to(root)}. What remains:")
    for step in _remaining(root, entry):
        print(f"  - {step}")
    return path


def _remaining(root: Path, entry: dict[str, Any]) -> list[str]:
    slug, toc = entry["slug"], root / "_toc.yml"
    steps = []
    if not toc.exists() or f"chapters/{entry['part']}/{slug}" not in toc.read_text("utf-8"):
        steps.append(f"_toc.yml: under the part {entry['part']!r} add '- file: chapters/{entry['part']}/{slug}'")
    if slug not in lint.bib_keys(root / "book" / "references.bib"):
        steps.append(f"book/references.bib: add an entry with the key {slug}")
    steps += [
        "replace every TODO in the notebook and in its test",
        "fill in the lesson plan, in the notebook's metadata under 'lesson'",
        f"repro run {slug}, then repro lint",
    ]
    return steps


def notebook(entry: dict[str, Any], root: Path) -> str:
    """The scaffold as the text of an .ipynb file (nbformat 4.5), from templates/chapter.py.txt."""
    text = (Path(__file__).parent / "templates" / "chapter.py.txt").read_text("utf-8")
    for name, value in {"SLUG": entry["slug"], "TITLE": entry["title"], "LINKS": _links(entry)}.items():
        text = text.replace(name, value)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "lesson": lesson.blank()}
    content = {"cells": _cells(text), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    if (root / "_config.yml").is_file():
        content = colab.renewed(content, colab.cell(root))
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _cells(text: str) -> list[dict[str, Any]]:
    """The cells of a text in which lines `# %%`, `# %% [markdown]` and `# %% tags=["method"]` start a cell."""
    cells = []
    for number, block in enumerate(re.split(r"^# %%", text, flags=re.M)[1:]):
        header, _, source = block.partition("\n")
        tags = re.findall(r'"([^"]+)"', header)
        cell: dict[str, Any] = {"cell_type": "markdown" if "[markdown]" in header else "code"}
        cell |= {"id": f"cell-{number:02d}", "metadata": {"tags": tags} if tags else {}}
        if cell["cell_type"] == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append({**cell, "source": source.strip("\n").splitlines(keepends=True)})
    return cells


def _links(entry: dict[str, Any]) -> str:
    links = [f"{', '.join(entry['authors'])} · {entry['venue']} {entry['year']}"]
    links += [f"[arXiv {entry['arxiv']}](https://arxiv.org/abs/{entry['arxiv']})"] if entry["arxiv"] else []
    links += [f"[the authors' code]({entry['code']})"] if entry["code"] else []
    return " · ".join(links)


TEST = '''"""The method cells of SLUG against an independent answer."""

import torch
from torch.testing import assert_close


def test_method_agrees_with_its_oracle(chapter):
    result, expected = chapter.method(torch.arange(5.0)), None
    assert expected is not None, "TODO: write the oracle of SLUG"
    assert_close(result, expected)
'''
