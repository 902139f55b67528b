"""What this machine can run: versions against the pinned ones, GPU, memory, threads, data, browser."""

from __future__ import annotations

import os
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from reprolib.chapter import device_name

NEEDED = ("numpy", "scipy", "torch", "matplotlib")
SHOWN = (*NEEDED, "scikit-learn", "ipywidgets", "nbclient", "jupyter-book", "nbval", "playwright")


def pinned(constraints: Path) -> dict[str, str]:
    """Name (lower case) to version, from a constraints file; empty when there is none."""
    if not constraints.is_file():
        return {}
    pins = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;#]+)", constraints.read_text(encoding="utf-8"), re.MULTILINE)
    return {name.lower().replace("_", "-"): number for name, number in pins}


def installed(name: str) -> str | None:
    """The installed version of a package without its local part (``+cpu``), or None."""
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return None


def main(top: Path) -> int:
    """Print the findings; 1 when something that every chapter needs is missing."""
    print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    pins, missing = pinned(top / "constraints.txt"), []
    for name in SHOWN:
        have, want = installed(name), pins.get(name)
        if have is None:
            missing += [name] if name in NEEDED else []
            note = "missing: every chapter needs it" if name in NEEDED else "missing (optional)"
        else:
            note = have if want in (None, have) else f"{have}, pinned is {want}: digits behind ≈ may differ"
        print(f"  {name:14} {note}")
    gpu = torch.cuda.is_available()
    memory = f", {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB" if gpu else ""
    print(f"GPU: {device_name(torch.device('cuda')) + memory if gpu else 'none: full scale would be slow here'}")
    print(f"CPU: {device_name(torch.device('cpu'))}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()}")
    pages, size = (os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_PAGE_SIZE"))
    memory_gb = pages * size / 2**30
    enough = "enough" if memory_gb >= 2 else "a chapter may need 2 GiB"
    print(f"Memory: {memory_gb:.1f} GiB ({enough}); disk free: {shutil.disk_usage(top).free / 2**30:.0f} GiB")
    data = os.environ.get("REPRO_DATA")
    print(f"Data: {'REPRO_DATA is set' if data else 'REPRO_DATA is not set'}; quick scale needs none from outside")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    print(f"Browser for the site tests: {'found' if browser else 'none: install chromium'}")
    if missing:
        print(f"Missing for every chapter: {', '.join(missing)}.")
    return min(len(missing), 1)
