"""Build the site with Jupyter Book, with every script and font served by the site itself; and serve it locally."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distributions
from pathlib import Path

from repro import assets, policy
from repro.assets import SiteError, installed
from reprolib import records

INPUTS = ("_config.yml", "_toc.yml", "CONTRIBUTING.md", "book", "chapters", "results", "benchmarks")
CONTENT = {".md", ".ipynb", ".json", ".bib"}
SUFFIXES = CONTENT | {".yml", ".css", ".js", ".svg", ".png"}
OWN = (
    "board",
    "bookmap",
    "chapterpage",
    "policy",
    "report",
    "site",
    "sphinx_ext",
    "trust",
)  # and all of reprolib, whose docstrings are pages


def build(root: Path, strict: bool = True) -> Path:
    """Build the site into ``_build/html``; a second call with nothing changed does nothing.

    Args:
        root: The checkout.
        strict: Whether a warning of Sphinx is an error.

    Returns:
        The first page, ``_build/html/index.html``.

    Raises:
        SiteError: A package is missing, MathJax could not be installed, Sphinx warned or failed, or a page holds
            a script that is not known.
    """
    for package, name in (("jupyter_book", "jupyter-book"), ("sphinxcontrib.bibtex", "sphinxcontrib-bibtex")):
        if not installed(package):
            raise SiteError(f"Building the site needs {name}; install the extra 'book': pip install -e '.[book]'.")
    with _alone(root):
        return _build(root, strict)


def _build(root: Path, strict: bool) -> Path:
    work = root / "_build"
    index, stamp = work / "html" / "index.html", work / "site.json"
    inputs = _fingerprint(root)
    built = json.loads(stamp.read_text()) if stamp.is_file() and index.is_file() else {}
    if built == inputs:
        print(f"The site is up to date: {index}")
        return index
    started = time.monotonic()
    stamp.unlink(missing_ok=True)
    if built.get("frame") != inputs["frame"]:  # Sphinx itself would keep pages made by older code, or no longer listed
        for folder in ("html", ".doctrees", "jupyter_execute"):
            shutil.rmtree(work / folder, ignore_errors=True)
    assets.install(root)
    _sphinx(root, strict)
    _trim_icons(work / "html")
    _name_controls(work / "html")
    policy.escape_titles(work / "html")
    policy.protect_site(work / "html")
    stamp.write_text(json.dumps(inputs))
    print(f"The site was built in {time.monotonic() - started:.0f} s: {index}")
    return index


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Wait until no other process builds this site."""
    import fcntl

    locks = root / "_build" / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / "site").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def serve(root: Path, port: int = 8000) -> None:
    """Show the built site at ``http://127.0.0.1:port`` until interrupted.

    Raises:
        SiteError: The site is not built, or the port is taken.
    """
    with server(root, port) as running:
        print(f"The site is at http://127.0.0.1:{running.server_port}/ until you press Ctrl-C.")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            print()


def server(root: Path, port: int) -> ThreadingHTTPServer:
    """An HTTP server of the built site on this machine alone; port 0 takes a free one.

    Raises:
        SiteError: The site is not built, or the port is taken.
    """
    html = root / "_build" / "html"
    if not (html / "index.html").is_file():
        raise SiteError("There is no site yet; build it with: make book")
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(_Quiet, directory=str(html)))
    except OSError as error:
        raise SiteError(
            f"Port {port} cannot be used ({error.strerror}); choose another: repro serve --port N"
        ) from None


class _Quiet(SimpleHTTPRequestHandler):
    """Serves files without a line for each request."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _fingerprint(root: Path) -> dict[str, str]:
    """SHA-256 of all that decides the pages.

    ``content`` covers pages, notebooks and records: when it changes, Sphinx rebuilds the pages that show them.
    ``frame`` covers what shapes every page: settings, styles, this package, versions, which pages and records exist.
    When it changes, the site is built anew.
    """
    content, frame = hashlib.sha256(), hashlib.sha256()
    for name in INPUTS:
        for path in sorted(p for p in [root / name, *(root / name).rglob("*")] if p.is_file()):
            parts = path.relative_to(root).parts
            if path.suffix not in SUFFIXES or any(part.startswith(".") or part == "node_modules" for part in parts):
                continue
            entry = "/".join(parts).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest()
            if path.suffix in CONTENT:
                frame.update("/".join(parts).encode())
            (content if path.suffix in CONTENT else frame).update(entry)
    own = [Path(__file__).with_name(f"{name}.py") for name in OWN]
    own += sorted(Path(records.__file__).parent.glob("*.py"))
    tools = re.compile("sphinx|myst|docutils|jupyter.book")
    frame.update(b"".join(hashlib.sha256(p.read_bytes()).digest() for p in own))
    frame.update("\n".join(sorted(f"{d.name}=={d.version}" for d in distributions() if tools.search(d.name))).encode())
    return {"content": content.hexdigest(), "frame": frame.hexdigest()}


def _sphinx(root: Path, strict: bool) -> None:
    """Run Jupyter Book over the checkout.

    Raises:
        SiteError: It failed, or warned and ``strict``; the message holds the first warnings.
    """
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(root)]
    command += ["--path-output", str(root), "-q"]
    command += ["-W", "--keep-going"] if strict else []
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    log = root / "_build" / "site.log"
    log.write_text(f"{done.stdout}\n{done.stderr}")
    if done.returncode == 0 and (root / "_build" / "html" / "index.html").is_file():
        return
    # Sphinx reads an unchanged page once: without this, the next build would not see its warnings again.
    shutil.rmtree(root / "_build" / ".doctrees", ignore_errors=True)
    said = re.sub("\x1b\\[[0-9;]*m", "", done.stderr + done.stdout)
    warnings = [line for line in said.splitlines() if re.search("WARNING|ERROR|CRITICAL|Error:", line)]
    shown = [line.replace(f"{root}/", "") for line in warnings[:10]] or said.strip().splitlines()[-10:]
    more = f"\n... and {len(warnings) - 10} more" if len(warnings) > 10 else ""
    raise SiteError("The site has warnings:\n" + "\n".join(shown) + more + f"\nAll of it: {log}")


# What a screen reader would hear must hold what is seen: names that the theme gives beside its visible words go.
# Code in attributes goes as well: controls.js does what it did.
MISNAMED = (
    (r'(<summary) aria-label="Toggle hidden content"', r"\1"),
    (r'(<button class="btn search-button-field[^>]*?) title="Search" aria-label="Search"', r"\1"),
    (r'(<i class="theme-switch [^>]*?)\s+title="[^"]*"', r"\1"),
    (r'<button onclick="window\.print\(\)"', '<button data-does="print"'),
    (r'<button onclick="toggleFullScreen\(\)"', '<button data-does="fullscreen"'),
    (r'<div role="list" class="citation-list">', '<div class="citation-list">'),
    (r'(<div class="citation"[^>]*?) role="doc-biblioentry"', r"\1"),
)


def _name_controls(html: Path) -> None:
    """Take wrong names, wrong roles and code in attributes off the theme's controls in all pages."""
    for path in html.rglob("*.html"):
        before = text = path.read_text(encoding="utf-8")
        for pattern, better in MISNAMED:
            text = re.sub(pattern, better, text)
        if text != before:
            path.write_text(text, encoding="utf-8")


def _trim_icons(html: Path) -> None:
    """Keep only the icons that pages use: the theme ships all of Font Awesome, 1.5 MB for some twenty pictures."""
    script = html / "_static" / "scripts" / "fontawesome.js"
    if not script.is_file():
        return
    users = [
        *html.rglob("*.html"),
        *(p for p in html.glob("_static/**/*.js") if p != script and "mathjax" not in p.parts),
    ]
    used = {name for page in users for name in re.findall(r"\bfa-([a-z0-9-]+)", page.read_text(encoding="utf-8"))}

    def keep(icon: re.Match[str]) -> str:
        names = {icon["name"].strip('"'), *re.findall(r'"([^"]+)"', icon["aliases"])}
        return icon[0] if names & used else ""

    text = r'"[^"]*"'
    icon = rf"(?P<name>{text}|[\w$]+):\[\d+,\d+,\[(?P<aliases>[^\]]*)\],{text},(?:{text}|\[{text}(?:,{text})*\])\],?"
    script.write_text(re.sub(icon, keep, script.read_text(encoding="utf-8")), encoding="utf-8")
