"""``repro archive``: the whole book in one zip file, for a room without internet."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from repro import environment, site
from reprolib import project
from reprolib.project import ReproError

FOLDER = "the-book-that-checks-its-papers"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the date of every file: equal books make equal archives
STORED = {".png", ".webp", ".woff", ".woff2", ".gz", ".safetensors"}  # already compressed, or nearly random
START = """# The Book That Checks Its Papers, without internet

**Read.** Open `site/book/welcome.html` in a browser: equations, sliders, search and the verdict table work from the
disk. Only the buttons to Binder, Colab and the repository need a network.

**Run.** `source/` holds the notebooks ({notebooks} of them, under `source/chapters/`), their records and the code.
Quick runs load no data but what the packages bring with them: artificial data made from seeds, the small sets inside
scikit-learn, and the tiny language model in `source/models/`. What must be brought along are Python 3.11 or newer and
the packages of `wheels.txt`. Where there is a network, on a machine of the same kind:

    python -m pip download -r wheels.txt -d wheels

and in the room, in this folder:

    python -m venv venv
    venv/bin/pip install --no-index --find-links wheels -r wheels.txt
    venv/bin/pip install --no-index --find-links wheels --no-build-isolation -e source
    cd source && ../venv/bin/jupyter lab chapters

**Teach.** Here, `repro course build --only student teacher nbgrader` makes the copies of notebooks. Slides and handouts
need browser code that is fetched once: build them where there is a network, bring them along (`site/book/teach.html`).

**Larger data.** Full runs need public data sets: `repro data fetch --all --to FOLDER` fills a folder where there is a
network, and `REPRO_DATA=FOLDER` names it in the room.
"""


def build(root: Path, out: Path | None = None) -> Path:
    """Write the archive: the built site, the source as git has it, the list of packages, and how to begin.

    Args:
        root: The checkout.
        out: A file that does not exist yet; None for ``_build/the-book-that-checks-its-papers.zip``, which is replaced.

    Returns:
        The file.

    Raises:
        ReproError: ``out`` exists, the site cannot be built, or git does not know the checkout.
    """
    if out is not None and out.exists():
        raise ReproError(f"{out} exists; nothing was written. Choose another name with --out, or move it away.")
    target = out or root / "_build" / f"{FOLDER}.zip"
    html = site.build(root).parent
    entries = {**dict(_source(root)), **dict(_site(html))}
    notebooks = sum(name.startswith("source/chapters/") and name.endswith(".ipynb") for name in entries)
    entries["START.md"] = START.format(notebooks=notebooks).encode()
    entries["wheels.txt"] = wheels((root / "constraints.txt").read_text(encoding="utf-8")).encode()
    _write(target, entries)
    return target


def wheels(constraints: str) -> str:
    """The packages that reading, running and building the book need, as pip reads them."""
    groups = environment.sections(constraints)
    return "\n".join(sorted({pin for group in ("core", "book") for pin in groups[group]} | {"setuptools>=77"})) + "\n"


def _source(root: Path) -> Iterator[tuple[str, bytes]]:
    """(name in the archive, content) of every file that git tracks, as it is now."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise ReproError(f"{root} is no git checkout, so its files are not known; clone the book with git.") from None
    for name in filter(None, done.stdout.decode().split("\0")):
        if (root / name).is_file():
            yield f"source/{name}", (root / name).read_bytes()


def _site(html: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the site's files; a page on a disk cannot fetch others, so the search shows titles alone."""
    for path in html.rglob("*"):
        if path.is_file() and path.name != ".buildinfo":
            name, content = f"site/{path.relative_to(html).as_posix()}", path.read_bytes()
            if name == "site/_static/documentation_options.js":
                content = re.sub(rb"SHOW_SEARCH_SUMMARY: true", b"SHOW_SEARCH_SUMMARY: false", content)
            yield name, content


def _write(target: Path, entries: dict[str, bytes]) -> None:
    """Write a zip file so that at every moment the old or the new one is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    os.close(handle)
    try:
        with zipfile.ZipFile(part, "w") as archive:
            for name in sorted(entries):
                info = zipfile.ZipInfo(f"{FOLDER}/{name}", EPOCH)
                info.external_attr = 0o644 << 16
                info.compress_type = zipfile.ZIP_STORED if Path(name).suffix in STORED else zipfile.ZIP_DEFLATED
                archive.writestr(info, entries[name])
        os.chmod(part, 0o644)
        os.replace(part, target)
    finally:
        Path(part).unlink(missing_ok=True)


def main(out: Path | None) -> int:
    """Build the archive and say where it is."""
    made = build(project.root(), out)
    print(f"The archive is {made} ({made.stat().st_size / 1e6:.1f} MB); its START.md says how to begin.")
    return 0
