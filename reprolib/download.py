"""Bring a file of known size and SHA-256 from the first address that has it: whole and verified, or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.error import HTTPError

from reprolib.project import ReproError

TIMEOUT = 30.0  # seconds without a byte before a connection counts as broken
TRIES = 3  # at one address, when it breaks off or is busy
PAUSE = 1.0  # seconds before the second try, doubled before each further one
CHUNK = 1 << 16
BUSY = (408, 416, 429, 500, 502, 503, 504)  # status codes after which another try is worth it
Progress = Callable[[int, int], None]  # bytes so far, bytes in all

P = ParamSpec("P")
R = TypeVar("R")


class _Wrong(Exception):
    """An answer that would be the same at another try."""


class _Broken(Exception):
    """A connection that another try may mend."""


def download(
    urls: Sequence[str], target: Path, size: int, sha256: str, on_progress: Progress | None = None, again: str = ""
) -> None:
    """Write ``target`` from the first address that has it, atomically; a spoiled file that is there is replaced.

    What a broken connection left lies beside the target as ``.NAME.part`` and is continued by the next download, where
    the server says by ETag or date that the file is still the same. A second download of the file, in this process or
    another, waits for the first. A wrong answer is a warning when a later address has the file.

    Args:
        urls: Addresses in the order of trial, each tried ``TRIES`` times when it breaks off.
        size: In bytes; an answer that announces or sends another size is wrong.
        on_progress: Called with the bytes so far and in all, after each chunk.
        again: What else can be done, for the error.

    Raises:
        ReproError: No address has it (with what each said), or it cannot be written; ``target`` is as it was.
    """
    problems: list[str] = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.with_name(f".{target.name}.part")) as part:
            if is_file(target, size, sha256):
                return  # another download brought it while this one waited
            for url in urls:
                if problem := _bring(url, part, size, sha256, on_progress):
                    problems.append(f"{url} {problem}")
                    continue
                os.replace(str(part.name), target)
                _tag(part).unlink(missing_ok=True)
                for problem in problems:
                    warnings.warn(f"{target.name}: {problem}; {url} had it.", stacklevel=2)
                return
    except OSError as error:
        raise ReproError(
            f"{target} could not be written ({error.strerror or error}); it takes {size / 1e6:.1f} MB. Make room, or "
            "set XDG_CACHE_HOME to another folder. Nothing was changed."
        ) from None
    raise ReproError(f"{target.name} could not be downloaded: {'; '.join(problems)}. Try again later{again}.")


def is_file(path: Path, size: int, sha256: str) -> bool:
    """Whether there is a file of this size and checksum."""
    if not path.is_file() or path.stat().st_size != size:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == sha256


@contextmanager
def _alone(path: Path) -> Iterator[FileIO]:
    """The part file, locked; it stays only when it can be continued: when its tag says of which version it is."""
    try:
        import fcntl
    except ImportError:
        raise ReproError("Downloads need Linux or macOS; elsewhere set REPRO_DATA to a folder of the files.") from None
    while True:
        with path.open("a+b", buffering=0) as part:
            fcntl.flock(part, fcntl.LOCK_EX)
            if not _lies_at(path, part):
                continue  # whoever had the lock has moved the file away or removed it
            try:
                yield part
            finally:
                tag = _tag(part)
                if _lies_at(path, part) and (path.stat().st_size == 0 or not tag.exists()):
                    path.unlink()
                    tag.unlink(missing_ok=True)
            return


def _lies_at(path: Path, part: FileIO) -> bool:
    """Whether the open file is still the one at its path: a moved one may already have a successor there."""
    try:
        return os.path.samestat(os.fstat(part.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _tag(part: FileIO) -> Path:
    """Beside the part file: its address and the server's name for that version, one a line."""
    return Path(str(part.name)).with_suffix(".tag")


def _bring(url: str, part: FileIO, size: int, sha256: str, on_progress: Progress | None) -> str:
    """Fill the part file from one address; returns "" when it holds the content asked for, else what is wrong."""
    problem = ""
    for attempt in range(TRIES):
        time.sleep(PAUSE * 2 ** (attempt - 1) if attempt else 0)
        try:
            resumed = _receive(url, part, size, on_progress)
            if is_file(Path(str(part.name)), size, sha256):
                return ""
            part.truncate(0)
            problem = "sends another content than the published one (SHA-256)"
            if not resumed:
                return problem
        except _Wrong as error:
            part.truncate(0)
            return str(error)
        except HTTPError as error:
            error.close()
            problem = f"says {error.code} {error.reason}".partition("\n")[0]
            if error.code not in BUSY:
                return problem
            if error.code == 416:  # nothing there to continue with
                part.truncate(0)
        except _Broken as error:
            problem = f"breaks off ({error})"
        except OSError:  # the disk: leave it the room
            part.truncate(0)
            raise
    return f"{problem}, {TRIES} times"


def _receive(url: str, part: FileIO, size: int, on_progress: Progress | None) -> bool:
    """One request; appends to the part file what is missing, or starts it anew; returns whether it was continued."""
    have, tag = part.seek(0, os.SEEK_END), _tag(part)
    known, _, version = tag.read_text(encoding="utf-8").partition("\n") if tag.exists() else ("", "", "")
    headers = {"User-Agent": "reprolib", "Accept-Encoding": "identity"}
    if 0 < have < size and known == url and version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    with _connected(urllib.request.urlopen, urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if not resumed:
            have = 0
            part.truncate(0)
            tag.unlink(missing_ok=True)
        if answer.status == 206 and not resumed:
            raise _Broken("another range than the one asked for")
        _check(answer, size - have, size)
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        if version and not version.startswith("W/"):
            tag.write_text(f"{url}\n{version}", encoding="utf-8")
        while chunk := _connected(answer.read1, CHUNK):
            have += len(chunk)
            if have > size:
                raise _Wrong(f"sends more than the {size} bytes of the published file")
            _write(part, chunk)
            if on_progress:
                on_progress(have, size)
    if have < size:
        raise _Broken(f"after {have} of {size} bytes")
    return resumed


def _check(answer: http.client.HTTPResponse, missing: int, size: int) -> None:
    """Refuse by its headers an answer that cannot be the file."""
    if answer.headers.get_content_type() == "text/html":
        raise _Wrong("sends a web page (HTML), not the file: a login or an error page")
    if answer.length is not None and answer.length != missing:
        raise _Wrong(f"announces {answer.length} bytes where {missing} are missing of the published {size}")


def _connected(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function of the network; its failures, but for an answer with a status, are ``_Broken``."""
    try:
        return function(*args, **kwargs)
    except HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:
        said = str(getattr(error, "reason", error)) or type(error).__name__
        raise _Broken(" ".join(said.split())) from None


def _write(part: FileIO, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:  # an unbuffered file may take less than it is given, as on a full disk
        view = view[part.write(view) :]
