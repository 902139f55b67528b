"""The built site, served on a free loopback port, and a real browser to look at it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from repro import site
from reprolib import project

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
NO_CHROMIUM = (
    "These tests look at the site in Chromium, and there is none. Install it (Debian and Ubuntu: apt-get install "
    "chromium) or set CHROMIUM to the path of a Chromium or Chrome."
)


@pytest.fixture(scope="session")
def html() -> Path:
    """The folder of the built site; builds it when it is missing or out of date."""
    return site.build(project.root()).parent


@pytest.fixture(scope="session")
def pages(html: Path) -> list[str]:
    """The address of every page, relative to the site; the first is only a redirection to the welcome page."""
    found = (p.relative_to(html).as_posix() for p in html.rglob("*.html") if "_static" not in p.parts)
    return sorted(path for path in found if path != "index.html")


@pytest.fixture(scope="session")
def address(html: Path) -> Iterator[str]:
    """Where the site is served."""
    with site.server(html.parents[1], 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium; the tests that need it fail, and say how to get it, where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if program is None or shutil.which(program) is None:
        pytest.fail(NO_CHROMIUM, pytrace=False)
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield running
        running.close()
