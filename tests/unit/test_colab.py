"""The cell that fetches the book in Colab: silent elsewhere, no part of the code's hash, the same in every notebook."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from repro import colab, lint, scaffold
from reprolib import notebook, project
from reprolib.project import ReproError

CONFIG = "repository: {{url: '{}', branch: main}}\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "_config.yml").write_text(CONFIG.format("https://example.org/book"))
    return tmp_path


def code(source: str, *tags: str) -> dict:
    held = {"cell_type": "code", "execution_count": None, "id": "x", "metadata": {"tags": list(tags)}, "outputs": []}
    return {**held, "source": source}


def book(*cells: dict) -> dict:
    title = {"cell_type": "markdown", "id": "t", "metadata": {}, "source": "# T"}
    return {"cells": [title, *cells], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def test_it_stands_before_all_other_code_once_and_replaces_an_older_one(root):
    wanted = colab.cell(root)
    plain = book(code("x = 1"), code("y = 2"))
    assert not colab.fits(plain, wanted)
    made = colab.renewed(plain, wanted)
    assert [notebook.source(c)[:6] for c in made["cells"]] == ["# T", "import", "x = 1", "y = 2"]
    assert colab.fits(made, wanted)
    older = book(code("x = 1"), code("import old", "colab"))
    assert not colab.fits(older, wanted)
    older["cells"][2]["execution_count"] = 1
    assert colab.renewed(older, wanted)["cells"][1]["execution_count"] == 1
    older["cells"][2]["execution_count"] = None
    assert colab.renewed(older, wanted)["cells"] == colab.renewed(book(code("x = 1")), wanted)["cells"]
    late = book(code("x = 1"), wanted)
    assert not colab.fits(late, wanted)


def test_it_is_no_part_of_the_hash_and_other_code_is(root):
    plain = book(code("x = 1"))
    made = colab.renewed(plain, colab.cell(root))
    assert notebook.code_hash(made) == notebook.code_hash(plain)
    assert notebook.code_hash(book(code("x = 2"))) != notebook.code_hash(plain)


def test_elsewhere_it_does_nothing(root, monkeypatch):
    monkeypatch.setattr(os, "system", lambda command: pytest.fail(f"ran {command}"))
    monkeypatch.chdir(root)
    exec(notebook.source(colab.cell(root)), {})
    assert Path.cwd() == root


def test_in_colab_it_clones_the_book_installs_it_and_goes_there_once(tmp_path, monkeypatch):
    """With a repository on this disk, and a pip that notes what it was asked."""
    origin, place, programs = tmp_path / "origin", tmp_path / "content", tmp_path / "bin"
    for folder in (origin, place, programs):
        folder.mkdir()
    (origin / "_config.yml").write_text(CONFIG.format(f"file://{origin}"))
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@b.c"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "The book"]):
        subprocess.run([*git, *words], cwd=origin, check=True)
    (programs / "pip").write_text('#!/bin/sh\necho "$@" >> asked\n')
    (programs / "pip").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    for _ in range(2):  # the kernel is started again in /content, and the cell run again
        monkeypatch.chdir(place)
        exec(notebook.source(colab.cell(origin)), {})
        assert Path.cwd() == place / "book"
    assert (place / "book" / "_config.yml").is_file()
    assert (place / "asked").read_text() == "install -q ./book\n"


def test_every_notebook_of_the_book_has_it():
    wanted = colab.cell(project.root())
    assert [n.slug for n in project.notebooks() if not colab.fits(notebook.read(n.path), wanted)] == []


def test_lint_names_a_notebook_without_it(root):
    path = root / "chapters" / "a" / "b.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(book(code("x = 1"))))
    (root / "chapters" / "a" / "c.ipynb").write_text("{")  # a problem of another rule
    (problem,) = lint._without_colab(root, [path, path.with_name("c.ipynb")])
    assert (problem.path, problem.rule) == (path, "colab")
    assert "repro colab" in problem.message


def test_a_new_chapter_has_it(root):
    entry = {"slug": "s", "title": "T", "authors": ["A"], "venue": "V", "year": 2020, "arxiv": None, "code": None}
    assert "google.colab" in scaffold.notebook(entry, root)


@pytest.mark.parametrize("text", ["title: T\n", "repository: {url: x}\n", "- 1\n"])
def test_a_config_without_repository_is_named(tmp_path, text):
    (tmp_path / "_config.yml").write_text(text)
    with pytest.raises(ReproError, match="must name the repository"):
        colab.cell(tmp_path)
