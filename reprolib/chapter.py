"""A chapter while it runs: its scale, device and seeds, its claims, and the record it leaves."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from reprolib import claims as _claims
from reprolib import plot, project, records, stats
from reprolib.claims import Claim, Criterion, Result
from reprolib.progress import progress
from reprolib.project import ReproError
from reprolib.show import approx, approx_interval, markdown_table, say

T = TypeVar("T")
QUICK_THREADS = 2
PRECISIONS = ("float32", "tf32", "bf16")


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "") or str(default)
    try:
        return int(text)
    except ValueError:
        raise ReproError(f"{name} must be a whole number; got {text!r}.") from None


def pick_device(name: str, scale: str) -> torch.device:
    """The device a run uses: ``name``, or for ``auto`` a GPU at full scale if there is one, else the CPU.

    Raises:
        ReproError: The device is unknown, or a GPU is asked for where there is none.
    """
    cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if scale == "full" and cuda else "cpu")
    try:
        device: torch.device | None = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ReproError(f"The device (REPRO_DEVICE or --device) must be auto, cpu or cuda; got {name!r}.")
    if device.type == "cuda" and not cuda:
        raise ReproError(f"Device {name} was asked for, but torch {torch.__version__} sees no GPU here; use cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ReproError(f"Device {name} was asked for, but torch sees {torch.cuda.device_count()} here, from cuda:0.")
    return device


def device_name(device: torch.device) -> str:
    """What the device is, in words: ``cuda: NVIDIA H200`` or ``cpu: <model>``."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{device.type}: {model}"


def versions() -> dict[str, str]:
    """Versions of what a chapter's numbers depend on."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
    for name in ("scipy", "matplotlib", "sklearn", "reprolib"):
        if name in sys.modules:
            found[name] = str(getattr(sys.modules[name], "__version__", "unknown"))
    return found


class Chapter:
    """One run of one chapter.

    Args:
        slug: The chapter's name, that of its notebook.
        precision: How coarse the chapter's numerics may get, only at full scale on a GPU that can (Ampere or newer).
            ``tf32`` rounds the inputs of float32 matrix products and convolutions to 10 bits; ``bf16`` lets
            `autocast` compute in bfloat16. The record says what was in force. Else every product is float32 whole.

    The environment decides the rest: ``REPRO_SCALE`` (quick or full), ``REPRO_DEVICE`` (auto, cpu, cuda),
    ``REPRO_SEED`` (a whole number, default 0). It seeds the global generators of torch (all devices) and numpy, and
    cuDNN is kept to deterministic algorithms; other GPU sums may still differ in their last digits between runs.

    Raises:
        ReproError: One of the three is not what it must be; says which.
        ValueError: The precision is none.
    """

    def __init__(self, slug: str, precision: str = "float32") -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}.")
        self.slug = slug
        self._scale = project.check_scale(os.environ.get("REPRO_SCALE", "") or "quick")
        self.device = pick_device(os.environ.get("REPRO_DEVICE", "") or "auto", self._scale)
        self.seed = _number("REPRO_SEED", 0)
        self.claims: dict[str, Claim] = {}
        self.results: dict[str, Result] = {}
        self._numbers: dict[str, dict[str, Any]] = {}
        self._sizes: dict[str, Any] = {}
        self._start = time.monotonic()
        self.threads(min(QUICK_THREADS, os.cpu_count() or 1))
        torch.manual_seed(self.seed)
        np.random.seed(self.seed % 2**32)
        self._allowed, self._precision = precision, "float32"
        self._reduce()
        plot.use_style()

    def threads(self, n: int) -> None:
        """Let torch use ``n`` CPU threads (many small matrix products are fastest on one), or ``REPRO_THREADS``."""
        torch.set_num_threads(int(os.environ.get("REPRO_THREADS") or n))

    def _reduce(self) -> None:
        """Fix how float32 products and convolutions are computed, whatever the machine's defaults."""
        if self._allowed == "tf32" and self._may_reduce():
            self._precision = "tf32"
        torch.set_float32_matmul_precision("high" if self._precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = self._precision == "tf32"
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False

    def _may_reduce(self) -> bool:
        cuda = self._scale == "full" and self.device.type == "cuda"
        return cuda and torch.cuda.get_device_capability(self.device) >= (8, 0)

    def autocast(self) -> AbstractContextManager[Any]:
        """A ``with`` in which matrix products are bfloat16, if ``Chapter(slug, precision="bf16")`` and the GPU can.

        Raises:
            ValueError: The chapter's precision is another, at any scale, so that a quick run finds it.
        """
        if self._allowed != "bf16":
            raise ValueError(f'ch.autocast() needs precision "bf16"; this chapter was made with {self._allowed!r}.')
        if not self._may_reduce():
            return nullcontext()
        self._precision = "bf16"
        return torch.autocast("cuda", dtype=torch.bfloat16)

    def scale(self, *, quick: T, full: T) -> T:
        """All that differs between the quick and the full run, as one NamedTuple each; returns the one that counts."""
        sizes = quick if self._scale == "quick" else full
        as_dict = sizes._asdict() if hasattr(sizes, "_asdict") else {"value": sizes}
        self._sizes = json.loads(json.dumps(as_dict, default=str))
        return sizes

    def generator(self, offset: int = 0) -> torch.Generator:
        """A CPU random generator of this run; another ``offset`` gives an independent stream."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + offset) % 2**63)

    def progress(self, items: Iterable[T], label: str) -> Iterator[T]:
        """The items, with a live count that leaves nothing in the stored output."""
        return progress(items, label)

    def claim(
        self, id: str, text: str, *, paper: str, criterion: Criterion, unit: str = "", headline: bool = False
    ) -> None:
        """Declare a claim before any experiment.

        Args:
            id: Short name, unique in the chapter.
            text: One falsifiable sentence.
            paper: Where the paper says so, with its number if it has one.
            criterion: What decides, fixed here.
            unit: Unit of the values.
            headline: Whether it is the paper's main claim.

        Raises:
            ReproError: The id is taken, or something was measured already.
        """
        if id in self.claims:
            raise ReproError(f"Claim {id} is declared twice.")
        if self.results:
            raise ReproError(f"Claim {id} is declared after {', '.join(self.results)} was measured: declare first.")
        self.claims[id] = Claim(id, text, paper, criterion, unit, headline)

    def claims_table(self) -> None:
        """Show the claims with the criteria that will decide them."""
        rows = [(f"**{c.id}**", c.text, c.paper, _criterion(c)) for c in self.claims.values()]
        say(markdown_table(["", "claim", "in the paper", "reproduced if"], rows))

    def measure(self, id: str, values: Any) -> Result:
        """Judge a claim by its criterion.

        Args:
            id: A declared claim.
            values: Per-seed values, (S,); a single number for an identity or a count.

        Raises:
            ReproError: The claim is not declared, or is measured a second time.
            ValueError: No value, a value that is not finite, or fewer than two seeds where an interval decides.
        """
        if id not in self.claims:
            raise ReproError(f"Claim {id!r} is not declared. {project.nearest(id, list(self.claims))}")
        if id in self.results:
            raise ReproError(f"Claim {id} is measured twice: the first verdict stands.")
        claim = self.claims[id]
        flat = [float(v) for v in np.atleast_1d(_array(values)).ravel()]
        _claims.require_finite(id, flat)
        if claim.exact:
            mean, low, high = float(np.mean(flat)), min(flat), max(flat)
        else:
            mean, low, high = stats.bootstrap_interval(flat)
        result = Result(claim, flat, mean, low, high, claim.criterion.verdict(flat, low, high))
        self.results[id] = result
        return result

    def record(self, name: str, values: Any, tolerance: float = 0.05) -> None:
        """Keep the numbers under a figure or sentence in the record.

        Args:
            name: What they are, for example ``e1/gain``.
            values: At most 2,000 finite numbers, of any shape.
            tolerance: How far a fresh run may differ, as a share of the largest magnitude.

        Raises:
            ValueError: Too many numbers, or one that is not finite.
        """
        array = np.asarray(_array(values), dtype=np.float64)
        if array.size > 2000 or not np.isfinite(array).all():
            raise ValueError(f"record({name!r}) takes at most 2,000 finite numbers; got shape {array.shape}.")
        rounded = [float(f"{v:.8g}") for v in array.ravel()]
        self._numbers[name] = {"shape": list(array.shape), "values": rounded, "tolerance": tolerance}

    def verdicts(self) -> None:
        """Show every claim with the paper's evidence and the verdicts of the quick and the full run."""
        missing = [id for id in self.claims if id not in self.results]
        if missing:
            raise ReproError(f"Claims without a measurement: {', '.join(missing)}.")
        here = {id: r.as_json() for id, r in self.results.items()}
        columns = {scale: here if scale == self._scale else self._stored(scale) for scale in project.SCALES}
        rows = [
            (f"**{c.id}**", c.text, c.paper, *(verdict_cell(columns[s].get(c.id), s) for s in project.SCALES))
            for c in self.claims.values()
        ]
        say(markdown_table(["", "claim", "paper", *project.SCALES], rows))

    def _stored(self, scale: str) -> dict[str, Any]:
        try:
            record = records.read(project.find(self.slug).record(scale))
        except ReproError:
            return {}
        return {c["id"]: c for c in record["claims"]}

    def finish(self) -> None:
        """End the run: hand the record to the runner, or say that an interactive run keeps none.

        Raises:
            ReproError: A declared claim was never measured; or ``REPRO_COMPARE`` is set and the run differs from the
                stored record, in what the message says.
        """
        missing = [id for id in self.claims if id not in self.results]
        if missing:
            raise ReproError(f"Claims without a measurement: {', '.join(missing)}.")
        where = os.environ.get("REPRO_RECORD")
        if where:
            records.write_atomic(Path(where), json.dumps(self._report(), allow_nan=False))
        if os.environ.get("REPRO_COMPARE"):
            self._compare()
        counts = [f"{sum(r.verdict == v for r in self.results.values())} {v}" for v in _claims.VERDICTS]
        print(f"{len(self.claims)} claims: {', '.join(counts)}." if self.claims else "Done.")

    def _compare(self) -> None:
        stored = records.read(project.find(self.slug).record(self._scale))
        fresh = self._report() | {"code_hash": stored["code_hash"]}  # a running notebook cannot see its own file
        if found := records.compare(fresh, stored):
            raise ReproError(f"The run differs from its stored record: {'; '.join(found)}.")

    def _report(self) -> dict[str, Any]:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        gpu = torch.cuda.max_memory_allocated(self.device) / 2**20 if self.device.type == "cuda" else None
        return {
            "slug": self.slug,
            "scale": self._scale,
            "seed": self.seed,
            "run_seconds": round(time.monotonic() - self._start, 2),
            "peak_ram_mb": round(peak / (2**20 if sys.platform == "darwin" else 2**10)),
            "peak_gpu_mb": gpu if gpu is None else round(gpu),
            "device": device_name(self.device),
            "precision": self._precision,
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "sizes": self._sizes,
            "claims": [self.results[id].as_json() for id in self.claims],
            "numbers": self._numbers,
        }


def _array(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _criterion(claim: Claim) -> str:
    return f"{claim.criterion}{f' ({claim.unit})' if claim.unit else ''}"


def verdict_cell(stored: dict[str, Any] | None, scale: str) -> str:
    """One cell of a verdict table: the verdict, and the numbers that decided it."""
    if stored is None:
        return "not yet run on a GPU" if scale == "full" else "not run"
    if stored["criterion"]["kind"] == "within":
        numbers = f"largest error {approx(max(abs(v) for v in stored['values']), 2)}"
    elif stored["criterion"]["kind"] == "at_least":
        numbers = f"{approx(stored['low'])}"
    else:
        numbers = approx_interval(stats.Interval(stored["mean"], stored["low"], stored["high"]))
    return f"**{stored['verdict']}**: {numbers}{' ' + stored['unit'] if stored['unit'] else ''}"
