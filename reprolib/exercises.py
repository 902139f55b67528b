"""Self-checks: they say what is wrong with an answer without giving the answer away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reprolib.project import ReproError, nearest

_CHECKS: dict[str, Callable[[Any], None]] = {}


class Wrong(Exception):
    """An answer that is not right yet; the message says in what."""


def require(condition: Any, message: str) -> None:
    """Inside a self-check: go on when the condition holds, else tell the reader ``message``."""
    if not bool(condition):
        raise Wrong(message)


def self_check(exercise: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a function as the self-check of an exercise, for example ``"fisher-merging/1"``."""

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        _CHECKS[exercise] = function
        return function

    return register


def feedback(exercise: str, answer: Any) -> str:
    """What :func:`check` prints.

    Raises:
        ReproError: No self-check of that name is registered.
    """
    if exercise not in _CHECKS:
        raise ReproError(f"No self-check {exercise!r}; run its cell first. {nearest(exercise, list(_CHECKS))}")
    title = f"Exercise {exercise.rsplit('/', 1)[-1]}"
    if answer is None:
        return f"{title}: not answered yet. Put your answer in place of None and run the cell again."
    try:
        _CHECKS[exercise](answer)
    except Wrong as wrong:
        return f"{title}: not yet. {wrong}"
    except NotImplementedError:
        return f"{title}: not answered yet. Write the body of your function and run the cell again."
    except Exception as error:
        return f"{title}: your answer stopped with {type(error).__name__}: {error}"
    return f"{title}: correct."


def check(exercise: str, answer: Any) -> None:
    """Print whether an answer is right, and if not, what is wrong with it."""
    print(feedback(exercise, answer))
