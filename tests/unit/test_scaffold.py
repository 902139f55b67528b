"""`repro new`: the scaffold of a chapter is a valid notebook that runs, and only its TODOs break the contract."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from repro import lint, scaffold
from reprolib import notebook
from reprolib.project import ReproError

ENTRY = {"slug": "new-paper", "title": "A New Paper", "authors": ["Ada Bell", "Carl Dee"], "venue": "ICML"}
ENTRY |= {"year": 2021, "arxiv": "2101.00001", "code": None, "part": "fisher", "family": "tests", "data": ["generated"]}


def checkout(root: Path, **changes: object) -> Path:
    """A folder that holds the lists of a book and nothing else."""
    (root / "book").mkdir()
    (root / "chapters").mkdir()
    (root / "_toc.yml").write_text("root: book/welcome\n")
    (root / "book" / "references.bib").write_text("@article{new-paper,\n  title = {A New Paper},\n}\n")
    papers = {"parts": [{"id": "fisher", "title": "Fisher information"}], "papers": [{**ENTRY, **changes}]}
    (root / "book" / "papers.yml").write_text(json.dumps(papers))
    return root


def test_a_scaffold_breaks_the_contract_only_by_what_is_left_to_write_and_by_not_having_been_run(tmp_path):
    path = scaffold.new_chapter(checkout(tmp_path), "new-paper")
    assert path == tmp_path / "chapters" / "fisher" / "new-paper.ipynb"
    found = lint.lint_all(tmp_path)
    assert {p.rule for p in found} == {"todo", "executed", "lesson"}, [str(p) for p in found if p.rule != "todo"]


def test_a_scaffold_is_a_valid_notebook(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="nbformat comes with the extra 'book'")
    path = scaffold.new_chapter(checkout(tmp_path), "new-paper")
    nbformat.validate(nbformat.read(path, as_version=4))
    first = json.loads(path.read_text("utf-8"))["cells"][0]["source"]
    assert "# A New Paper\n" in first and "arxiv.org/abs/2101.00001" in "".join(first)
    assert "the authors' code" not in "".join(first)  # the entry has none


def test_a_scaffold_runs_from_top_to_bottom(tmp_path):
    """In a process of its own, as the book runs chapters: `Chapter` sets threads, seeds and style."""
    path = scaffold.new_chapter(checkout(tmp_path), "new-paper")
    script = "\n\n".join(source for _, source, _ in notebook.code_cells(notebook.read(path)))
    environment = {**os.environ, "REPRO_ROOT": str(tmp_path), "MPLBACKEND": "agg", "REPRO_SCALE": "quick"}
    environment.pop("REPRO_RECORD", None)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    for k in (1, 2, 3):
        assert f"Exercise {k}: not answered yet" in done.stdout and f"Exercise {k}: correct." in done.stdout


def test_the_starter_test_fails_until_it_is_written(tmp_path):
    scaffold.new_chapter(checkout(tmp_path), "new-paper")
    test = tmp_path / "tests" / "chapters" / "test_new_paper.py"
    assert "new-paper" in test.read_text("utf-8") and "TODO" in test.read_text("utf-8")
    shutil.copy(Path(__file__).parents[1] / "chapters" / "conftest.py", test.parent)  # the fixture it asks for
    environment = {**os.environ, "REPRO_ROOT": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test), f"--rootdir={tmp_path}"]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1 and "TODO: write the oracle of new-paper" in done.stdout, done.stdout


def test_what_remains_is_printed(tmp_path, capsys):
    root = checkout(tmp_path)
    (root / "book" / "references.bib").write_text("")
    scaffold.new_chapter(root, "new-paper")
    printed = capsys.readouterr().out
    assert "chapters/fisher/new-paper" in printed and "_toc.yml" in printed
    assert "references.bib: add an entry with the key new-paper" in printed


def test_what_is_done_is_not_asked_for_again(tmp_path, capsys):
    root = checkout(tmp_path)
    (root / "_toc.yml").write_text("- file: chapters/fisher/new-paper\n")
    scaffold.new_chapter(root, "new-paper")
    printed = capsys.readouterr().out
    assert "_toc.yml" not in printed and "references.bib" not in printed


@pytest.mark.parametrize("existing", ["chapters/fisher/new-paper.ipynb", "tests/chapters/test_new_paper.py"])
def test_nothing_is_overwritten(tmp_path, existing):
    file = checkout(tmp_path) / existing
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(ReproError, match="exists already"):
        scaffold.new_chapter(tmp_path, "new-paper")
    assert file.read_text() == "mine"
    assert len([f for f in tmp_path.rglob("*new*paper*") if f.is_file()]) == 1


def test_an_unknown_slug_names_the_nearest(tmp_path):
    with pytest.raises(ReproError, match="Did you mean new-paper"):
        scaffold.new_chapter(checkout(tmp_path), "new-papr")


@pytest.mark.parametrize(("change", "words"), [({"part": "poetry"}, "got 'poetry'"), ({"venue": None}, "lacks venue")])
def test_an_entry_that_lacks_fields_or_a_known_part_is_refused(tmp_path, change, words):
    with pytest.raises(ReproError, match=words):
        scaffold.new_chapter(checkout(tmp_path, **change), "new-paper")
    assert not list((tmp_path / "chapters").iterdir())
