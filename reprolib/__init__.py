"""What the chapters of the book share. Imports with numpy, scipy, torch and matplotlib alone."""

from reprolib.chapter import Chapter
from reprolib.claims import above, at_least, below, within
from reprolib.exercises import check, require, self_check
from reprolib.explore import slider
from reprolib.plot import figure
from reprolib.project import ReproError
from reprolib.show import approx, approx_interval, say, table
from reprolib.stats import bootstrap_interval, paired_interval

__version__ = "0.1.0"
__all__ = [
    "Chapter",
    "ReproError",
    "above",
    "approx",
    "approx_interval",
    "at_least",
    "below",
    "bootstrap_interval",
    "check",
    "figure",
    "paired_interval",
    "require",
    "say",
    "self_check",
    "slider",
    "table",
    "within",
]
