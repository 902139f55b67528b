"""Logarithms of Bessel functions, readable and compiled, against SciPy: ``python -m benchmarks.log_bessel``.

All compute the same 100,000 uniform points. SciPy's scaled functions are compiled C and use one thread; torch uses what
the machine gives. Compiling takes about a minute and a C++ compiler; it is not counted.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import special
from torch.testing import assert_close

from benchmarks.bench import compete, save
from reprolib import project
from reprolib.notebook import load_methods

POINTS = 100_000


def contest(low: float, high: float, sign: int, method: Any, kernel: Any, rounds: int) -> dict[str, Any]:
    """One function on one square."""
    g = torch.Generator().manual_seed(0)
    v, x = low + (high - low) * torch.rand(2, POINTS, generator=g, dtype=torch.float64)
    v_np, x_np = v.numpy(), x.numpy()
    scaled, readable = (special.ive, method.log_i) if sign == 1 else (special.kve, method.log_k)

    def scipy() -> Any:
        with np.errstate(all="ignore"):
            return np.log(scaled(v_np, x_np)) + sign * x_np

    finite = torch.from_numpy(scipy()).isfinite()
    assert_close(method.fused(v, x, sign, kernel)[finite], torch.from_numpy(scipy())[finite], rtol=1e-9, atol=1e-8)
    name = f"log {'I' if sign == 1 else 'K'} at {POINTS:,} points of [{low:g}, {high:g}]²"
    ours = "this book, compiled", partial(method.fused, v, x, sign, kernel)
    return compete(name, ours, {"SciPy, scaled": scipy, "this book, readable": partial(readable, v, x)}, rounds)


def main(rounds: int = 9) -> None:
    """All contests; keeps ``benchmarks/log_bessel.json``."""
    method = load_methods(project.find("log-bessel").path)
    kernel = torch.compile(method.branch_free, dynamic=True)
    squares = ((0.0, 150.0), (150.0, 1e4))
    contests = [contest(*square, sign, method, kernel, rounds) for square in squares for sign in (1, -1)]
    save("log_bessel", contests, ("scipy",))


if __name__ == "__main__":
    main()
