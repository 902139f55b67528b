"""Six chapters on one and on two Dask workers of this machine, against a local run: ``python -m benchmarks.cluster``.

Each way is timed once, from the start of the command to its end: workers are started, chapters are sent, records come
back. All of it happens in a copy of the checkout, so that no record of the book changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.bench import HERE, save

ROOT = HERE.parent
CHAPTERS = (  # short ones that compute on one thread, so that two of them fit on two cores
    *("compositional-partial-correlation", "dpp-least-squares", "mle-information-projection"),
    *("double-white-dwarfs", "overparameterized-matrix-sensing", "mbat-json"),
)
WAYS = {
    "no Dask, one at a time": [],
    "one Dask worker": ["--engine", "dask", "--jobs", "1"],
    "two Dask workers": ["--engine", "dask", "--jobs", "2"],
}


def seconds(flags: list[str], checkout: Path) -> float:
    """Run the chapters in a copy of the checkout and time the command."""
    command = [sys.executable, "-m", "repro", "run", *CHAPTERS, "--no-jupyter", *flags]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    start = time.perf_counter()
    subprocess.run(command, env=os.environ | {"REPRO_ROOT": str(checkout), "PYTHONPATH": paths}, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    torch.set_num_threads(2)
    took = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("chapters", "results", "models"):
            shutil.copytree(ROOT / name, Path(folder) / name)
        shutil.copy(ROOT / "_toc.yml", folder)
        for way, flags in WAYS.items():
            took[way] = [round(seconds(flags, Path(folder)), 1)]
    contest = {
        "title": f"{len(CHAPTERS)} quick chapters, cells run in order",
        "ours": "two Dask workers",
        "fastest_peer": "one Dask worker",
        "ratio": round(took["one Dask worker"][0] / took["two Dask workers"][0], 3),
        "seconds": took,
    }
    save("cluster", [contest], ("dask", "distributed"))
    print(took)
