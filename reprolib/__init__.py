"""What the chapters of the book share. Imports with numpy, scipy, torch and matplotlib alone.

The names below are imported when first asked for: the command, which only reads records, need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOME = {"Chapter": "chapter", "ReproError": "project", "slider": "explore", "figure": "plot"}
_HOME |= dict.fromkeys(("above", "at_least", "below", "within"), "claims")
_HOME |= dict.fromkeys(("check", "require", "self_check"), "exercises")
_HOME |= dict.fromkeys(("approx", "approx_interval", "say", "table"), "show")
_HOME |= dict.fromkeys(("bootstrap_interval", "paired_interval"), "stats")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'reprolib' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"reprolib.{_HOME[name]}"), name)
    return value
