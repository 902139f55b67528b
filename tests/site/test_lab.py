"""JupyterLab as Binder starts it: it shows MyST, and leaves a chapter the memory that it needs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from reprolib import project, records

ROOT = project.root()
BINDER = 2000  # megabytes that Binder gives


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, float]]:
    """A JupyterLab server as Binder starts it: its process, its address, and the seconds until it answered."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--IdentityProvider.token=", "--allow-root", f"--notebook-dir={ROOT}"]
    home = {"HOME": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)}
    start = time.monotonic()
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | home, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/status", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() - start < 120
                time.sleep(0.2)
        yield server, address, time.monotonic() - start
    finally:
        server.terminate()
        server.wait(30)


def test_jupyterlab_shows_a_chapter_with_its_myst_marks(lab, browser):
    page = browser.new_page()
    page.goto(f"{lab[1]}/lab/tree/chapters/fisher/fisher-merging.ipynb")
    shown = page.locator(".jp-Notebook .myst")
    expect(shown.first).to_contain_text("Matena and Raffel", timeout=60_000)
    expect(shown.locator("aside, .admonition, h2").first).to_be_visible()
    assert page.locator(".jp-MarkdownCell").get_by_text("{admonition}").count() == 0
    page.close()


def test_a_server_with_the_hungriest_chapter_fits_into_binder(lab):
    psutil = pytest.importorskip("psutil", reason="psutil comes with the extra 'test'")
    server, _, seconds = lab
    family = [process := psutil.Process(server.pid), *process.children(recursive=True)]
    held = sum(p.memory_info().rss for p in family) / 1e6
    hungry = max(records.read(c.record("quick"))["peak_ram_mb"] for c in project.chapters())
    print(f"JupyterLab answers after {seconds:.1f} s and holds {held:.0f} MB; the hungriest chapter takes {hungry} MB")
    assert held + hungry < BINDER
