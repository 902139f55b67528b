"""What must not stand in anything that is published: places on one machine, secrets, addresses of people."""

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

PLACE = r"(?<![\w.~:/%+=-])/(?:home|root|Users|work|tmp|private|mnt|var|opt|scratch)/[\w.-]+|\b[A-Z]:\\{1,2}Users\b"
SECRETS = (
    r"\bAKIA[0-9A-Z]{16}\b",
    r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}",
    r"-----BEGIN [A-Z ]+-----",
    r"\bsk-[A-Za-z0-9-]{20,}",
    r"\bhf_[A-Za-z0-9]{20,}",
    r"\bxox[baprs]-[A-Za-z0-9-]{10,}",
    r"\bAIza[\w-]{35}",
    r"\beyJ[\w-]{15,}\.[\w-]{15,}\.",
    r"(?i)\b(?:api[_-]?key|secret|password|passwd|token)[\"']?\s*[:=]\s*[\"'][^\"'\s]{8,}[\"']",
)
PEOPLE = r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b"
HOSTS = rf"\b{re.escape(socket.gethostname())}\b|\b(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{{1,3}}){{2,3}}:\d+"
LEAKS = re.compile("|".join(f"(?:{p})" for p in (PLACE, PEOPLE, HOSTS)) + "|" + "|".join(SECRETS[:-1]))
GIVEN = re.compile(SECRETS[-1])
BINARY = {"image/png", "buffers"}  # pictures: letters without words


def leaks(text: str) -> list[str]:
    """What a text tells that it should not, each with its surroundings."""
    found = [*LEAKS.finditer(text), *GIVEN.finditer(text)]
    return [text[max(0, m.start() - 30) : m.end() + 30].strip() for m in found]


def words(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(place, text) of every text below a JSON value, keys included, without pictures."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, below in value.items():
            yield where, key
            if key not in BINARY:
                yield from words(below, f"{where}/{key}")
    elif isinstance(value, list):
        if value and all(isinstance(line, str) for line in value):
            yield where, "".join(value)
        else:
            for number, below in enumerate(value):
                yield from words(below, f"{where}/{number}")


def told(name: str, text: str) -> list[str]:
    """A sentence on each leak of a file; JSON and notebooks are looked through value by value."""
    parts = words(json.loads(text)) if name.endswith((".json", ".ipynb")) else [("", text)]
    return [f"{name}{place}: {leak!r}" for place, part in parts for leak in leaks(part)]
