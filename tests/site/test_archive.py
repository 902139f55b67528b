"""The archive for a room without internet: complete, unchanged by a second writing, and it opens from the disk."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import expect

from repro import archive
from reprolib import project
from reprolib.project import ReproError


@pytest.fixture(scope="module")
def packed(html, tmp_path_factory) -> Path:
    return archive.build(project.root(), tmp_path_factory.mktemp("archive") / "book.zip")


@pytest.fixture(scope="module")
def unpacked(packed) -> Path:
    with zipfile.ZipFile(packed) as file:
        file.extractall(packed.parent)
    return packed.parent / archive.FOLDER


def test_it_holds_site_notebooks_records_model_and_how_to_begin(unpacked, html):
    for chapter in project.chapters():
        name = chapter.path.relative_to(project.root())
        assert (unpacked / "source" / name).read_bytes() == chapter.path.read_bytes()
        assert (unpacked / "site" / name.with_suffix(".html")).read_bytes()
        assert (unpacked / "source" / "results" / "quick" / f"{chapter.slug}.json").is_file()
    assert (unpacked / "source" / "models" / "tiny-lm.safetensors").is_file()
    assert f"({len(project.chapters())} of them" in (unpacked / "START.md").read_text("utf-8")
    pins = (unpacked / "wheels.txt").read_text("utf-8").split()
    assert {"torch", "jupyter-book", "jupyterlab", "setuptools"} <= {pin.partition("=")[0].rstrip(">") for pin in pins}
    assert not any(pin.startswith(("pytest==", "kronfluence==")) for pin in pins)


def test_equal_books_make_equal_archives_and_no_file_is_overwritten(packed, tmp_path):
    again = archive.build(project.root(), tmp_path / "again.zip")
    assert again.read_bytes() == packed.read_bytes()
    again.write_bytes(b"mine")
    with pytest.raises(ReproError, match="exists; nothing was written"):
        archive.build(project.root(), again)
    assert again.read_bytes() == b"mine"
    assert [p.name for p in tmp_path.iterdir()] == ["again.zip"]


def test_the_unpacked_source_is_a_book_of_its_own(unpacked):
    command = [sys.executable, "-m", "repro", "list"]
    done = subprocess.run(command, cwd=unpacked / "source", capture_output=True, text=True, check=True)
    assert all(f"{chapter.slug}  ({chapter.part})" in done.stdout for chapter in project.chapters())


def test_a_folder_that_git_does_not_know_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive.site, "build", lambda root: root / "_build" / "html" / "index.html")
    with pytest.raises(ReproError, match="no git checkout"):
        archive.build(tmp_path)


@pytest.fixture
def from_disk(browser, unpacked):
    """Opens a page of the unpacked site; whatever is no file, fails or complains stands in ``page.problems``."""
    page = browser.new_page()
    problems = page.problems = []
    page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: r.url.startswith(("file:", "data:")) or problems.append(r.url))
    page.on("requestfailed", lambda r: problems.append(f"failed: {r.url}"))

    def visit(path: str):
        page.goto(f"{(unpacked / 'site').as_uri()}/{path}", wait_until="load")
        return page

    yield visit
    page.close()


def test_equations_and_sliders_work_from_the_disk(from_disk):
    page = from_disk("chapters/fisher/fisher-merging.html")
    expect(page.locator("article mjx-container").first).to_be_visible()
    slider = page.locator("figure.repro-slider").first
    image, control = slider.locator("img"), slider.locator("input")
    before = image.get_attribute("src")
    control.focus()
    page.keyboard.press("ArrowRight")
    assert image.get_attribute("src") != before
    assert image.evaluate("e => e.decode().then(() => e.naturalWidth)") > 100
    assert page.problems == []


def test_filters_of_the_verdicts_work_from_the_disk(from_disk):
    page = from_disk("book/verdicts.html")
    rows = page.locator("tr[data-part]:visible")
    before = rows.count()
    page.locator("select[name=part], select").first.select_option(index=1)
    assert 0 < rows.count() < before
    assert page.problems == []


def test_search_finds_methods_and_symbols_from_the_disk(from_disk):
    for query, chapter in {"K-FAC": "ekfac-influence", "inverted hinge": "loku", "Σ": "double-white-dwarfs"}.items():
        page = from_disk(f"search.html?q={query}")
        found = page.locator("ul.search li > a")
        expect(found.filter(has=page.locator(f"xpath=self::a[contains(@href, '{chapter}')]")).first).to_be_visible()
        assert page.problems == []
