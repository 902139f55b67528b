"""Building and serving the site: what it shows of records, and what it says when something is wrong."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest

from repro import board, chapterpage, site
from reprolib import notebook, project, records


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the chapters, records and pages in a folder of its own."""
    root = project.root()
    for name in ("chapters", "results", "book", "benchmarks"):
        shutil.copytree(
            root / name, tmp_path / name, ignore=shutil.ignore_patterns("node_modules", ".ipynb_checkpoints")
        )
    for name in ("_config.yml", "_toc.yml", "CONTRIBUTING.md"):
        shutil.copy(root / name, tmp_path)
    return tmp_path


@pytest.fixture
def chapter(copy: Path) -> project.ChapterFile:
    """The first chapter of the copy, with a quick record that fits it and no full one."""
    found = project.chapters(copy)[0]
    found.record("full").unlink(missing_ok=True)
    record, fits = records.read(found.record("quick")), notebook.code_hash(notebook.read(found.path))
    records.write(found.record("quick"), {**record, "beside": None, "code_hash": fits})
    return found


def _edit_code(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    cell = next(c for c in content["cells"] if c["cell_type"] == "code" and "colab" not in notebook.tags(c))
    cell["source"] = (
        [*cell["source"], "\nchanged = True"] if isinstance(cell["source"], list) else cell["source"] + "\n1"
    )
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_second_build_with_nothing_changed_does_nothing(html, capsys):
    stamp = (html / "index.html").stat().st_mtime_ns
    assert site.build(project.root()) == html / "index.html"
    assert "up to date" in capsys.readouterr().out
    assert (html / "index.html").stat().st_mtime_ns == stamp


def test_pages_notebooks_and_records_decide_the_content_and_settings_the_frame(copy, chapter):
    before = site._fingerprint(copy)
    assert site._fingerprint(copy) == before
    changes = {copy / "book" / "welcome.md": "content", chapter.path: "content", chapter.record("quick"): "content"}
    changes |= {copy / "_config.yml": "frame", copy / "book" / "_static" / "custom.css": "frame"}
    for path, part in changes.items():
        path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        after = site._fingerprint(copy)
        assert {key for key in after if after[key] != before[key]} == {part}, path
        before = after
    (copy / "book" / "new.md").write_text("# New\n", encoding="utf-8")
    assert site._fingerprint(copy)["frame"] != before["frame"]


def test_without_a_full_record_the_card_says_so(chapter):
    html = chapterpage.card(chapter, "chapters/part/page")
    assert "not yet run on a GPU" in html
    assert "stale" not in html


def test_a_record_that_no_longer_fits_its_notebook_is_shown_as_stale(copy, chapter):
    _edit_code(chapter.path)
    assert 'verdict-stale"' in chapterpage.card(chapter, "chapters/part/page")
    assert 'verdict-stale"' in board.board([chapter], "book/verdicts", copy)


def test_a_record_that_was_edited_by_hand_is_refused(chapter):
    path = chapter.record("quick")
    path.write_text(path.read_text(encoding="utf-8").replace('"text": "', '"text": "Surely, ', 1), encoding="utf-8")
    with pytest.raises(records.RecordError, match="edited by hand"):
        chapterpage.card(chapter, "chapters/part/page")


def test_text_of_a_record_cannot_become_markup(copy, chapter):
    record = records.read(chapter.record("quick"))
    record["claims"][0]["text"] = "<script>alert(1)</script> `<b>` $a<b$"
    records.write(chapter.record("quick"), record)
    html = board.board([chapter], "book/verdicts", copy)
    assert "<script" not in html
    assert "<code>&lt;b&gt;</code>" in html
    assert r"\(a&lt;b\)" in html


def test_every_claim_has_its_row_with_its_verdict(copy, chapter):
    record = records.read(chapter.record("quick"))
    html = board.board([chapter], "book/verdicts", copy)
    assert html.count("<tr data-part=") == len(record["claims"])
    for claim in record["claims"]:
        assert f'data-quick="{claim["verdict"]}"' in html


def test_a_warning_fails_the_build_is_named_and_is_not_forgotten(copy):
    (copy / "_toc.yml").write_text("format: jb-book\nroot: book/page\n")
    (copy / "book" / "page.md").write_text("# Page\n\nA [link](nowhere.md) to nothing.\n")
    static = project.root() / "_build" / "static"
    if static.is_dir():  # spares this test the network
        shutil.copytree(static, copy / "_build" / "static")
    with pytest.raises(site.SiteError, match=r"book/page\.md:3: WARNING.*nowhere"):
        site.build(copy)
    assert not (copy / "_build" / ".doctrees").exists()  # else the next build would not read the page again
    assert not (copy / "_build" / "site.json").exists()


def test_serving_without_a_site_says_what_to_do(tmp_path):
    with pytest.raises(site.SiteError, match="make book"):
        site.server(tmp_path, 0)


def test_a_taken_port_is_named(html):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(site.SiteError, match=f"Port {port}"):
            site.server(html.parents[1], port)


def test_the_lock_file_pins_mathjax_by_hash_and_names_no_host():
    text = (project.root() / "book" / "package-lock.json").read_text(encoding="utf-8")
    assert "http" not in text
    assert json.loads(text)["packages"]["node_modules/mathjax"]["integrity"].startswith("sha512-")
