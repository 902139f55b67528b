"""The built site, served on a free loopback port, and a real browser to look at it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urljoin

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from repro import site
from reprolib import project

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
DESK = {"width": 1280, "height": 900}
Open = Callable[..., Page]
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


@contextmanager
def _served(root: Path) -> Iterator[str]:
    with site.server(root, 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def served() -> Callable[[Path], AbstractContextManager[str]]:
    """Serves the built site of a checkout for as long as a ``with`` lasts; gives its address."""
    return _served


@pytest.fixture(scope="session")
def address(html: Path) -> Iterator[str]:
    """Where the site is served."""
    with _served(html.parents[1]) as address:
        yield address


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


def _own(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


@contextmanager
def _visits(browser: Browser, address: str) -> Iterator[Open]:
    contexts, stopped = [], []

    def note(message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            stopped.append(f"{message.page.url}: {message.text}")

    def visit(
        path: str = "", theme: str | None = "light", viewport: dict[str, int] = DESK, scripts: bool = True
    ) -> Page:
        context = browser.new_context(viewport=viewport, java_script_enabled=scripts)
        contexts.append(context)
        if theme:
            context.add_init_script(f"for (const key of ['mode', 'theme']) localStorage.setItem(key, '{theme}')")
        page = context.new_page()
        problems = page.problems = []
        page.on("console", lambda m: problems.append(f"console: {m.text}") if m.type in ("error", "warning") else None)
        page.on("console", note)
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("request", lambda r: _own(r.url, address) or problems.append(f"request to another host: {r.url}"))
        page.on("response", lambda r: problems.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        page.goto(urljoin(address, path), wait_until="load")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert stopped == []


@pytest.fixture(scope="session")
def visits(browser: Browser, address: str) -> Callable[[], AbstractContextManager[Open]]:
    """Makes what `visit` is, for as long as a ``with`` lasts."""
    return lambda: _visits(browser, address)


@pytest.fixture
def visit(visits: Callable[[], AbstractContextManager[Open]]) -> Iterator[Open]:
    """Opens a page of the site in a browser of its own; problems it meets are listed in ``page.problems``.

    Without a theme the browser is that of a reader who comes for the first time. Whatever the page's
    Content-Security-Policy stops fails the test, whether it looks at the problems or not.
    """
    with visits() as visit:
        yield visit
