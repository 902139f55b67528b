"""Downloads from a server that lies, stalls and breaks off: one clear error each, and never a wrong file in place."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reprolib import ReproError, download
from reprolib.download import download as bring

CONTENT = bytes(range(256)) * 800  # 200 kB: several chunks
SHA = hashlib.sha256(CONTENT).hexdigest()
ROOT = Path(__file__).resolve().parents[2]
HALF = len(CONTENT) // 2


class Handler(BaseHTTPRequestHandler):
    """Answers as ``behaviour`` says; keeps what it was asked."""

    protocol_version = "HTTP/1.1"
    behaviour: str
    asked: list[tuple[str, str | None, str | None]]

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.close_connection = True
        self.asked.append((self.path, self.headers["Range"], self.headers["If-Range"]))
        kind = self.path.strip("/") or self.behaviour
        getattr(self, kind, self.good)(len(self.asked))

    def send(self, body=CONTENT, status=200, length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def good(self, _):
        start, tag = self.headers["Range"], '"v1"'
        if start and self.headers["If-Range"] == tag:
            at = int(start.removeprefix("bytes=").removesuffix("-"))
            self.send(CONTENT[at:], 206, ETag=tag, Content_Range=f"bytes {at}-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            self.send(ETag=tag)

    def halves(self, n):  # breaks off once, then continues
        return self.good(n) if n > 1 else self.send(CONTENT[:HALF], length=len(CONTENT), ETag='"v1"')

    def norange(self, n):  # breaks off once, then knows no Range
        self.send(CONTENT[:HALF] if n == 1 else CONTENT, length=len(CONTENT), ETag='"v1"')

    def noname(self, n):  # breaks off once, and gives its versions no name
        self.send(CONTENT[:HALF] if n == 1 else CONTENT, length=len(CONTENT))

    def weak(self, n):  # breaks off once, with a name that does not promise equal bytes
        self.send(CONTENT[:HALF] if n == 1 else CONTENT, length=len(CONTENT), ETag='W/"v1"')

    def dated(self, _):  # has a date in place of a tag
        if self.headers["If-Range"] == "Mon, 01 Jan 2024 00:00:00 GMT":
            span = f"bytes {HALF}-{len(CONTENT) - 1}/{len(CONTENT)}"
            return self.send(CONTENT[HALF:], 206, Content_Range=span)
        self.send(CONTENT[:HALF], length=len(CONTENT), Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT")

    def changed(self, n):  # another version after the first part, so the whole is sent
        body = b"?" * HALF if n == 1 else CONTENT
        self.send(body, length=len(CONTENT), ETag=f'"v{n}"')

    def mixed(self, n):  # continues with another version in spite of If-Range
        if n == 1:
            return self.send(b"?" * HALF, length=len(CONTENT), ETag='"v1"')
        self.good(n)

    def shifted(self, n):  # another range than the one asked for
        if n == 2:
            return self.send(CONTENT, 206, ETag='"v1"', Content_Range=f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}")
        return self.halves(n)

    def outside(self, n):  # says that there is no such range
        return self.send(b"", 416) if self.headers["Range"] and n == 2 else self.halves(n)

    def truncated(self, _):
        self.send(CONTENT[:HALF], length=len(CONTENT))

    def stalled(self, _):
        self.send(CONTENT[:HALF], length=len(CONTENT))
        self.wfile.flush()
        time.sleep(0.5)

    def silent(self, _):
        time.sleep(0.5)

    def short(self, _):
        self.send(CONTENT[:-7])

    def long(self, _):
        self.send(CONTENT + b"more")

    def endless(self, _):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        piece = b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n"
        for _ in range(1000):
            try:
                self.wfile.write(piece)
            except OSError:
                return

    def chunked(self, _):  # breaks off in the middle of a chunk
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(f"{len(CONTENT):x}\r\n".encode() + CONTENT[:100])

    def wrong(self, _):
        self.send(CONTENT[::-1])

    def html(self, _):
        self.send(b"<html>please log in" + b" " * (len(CONTENT) - 19), Content_Type="text/html; charset=utf-8")

    def missing(self, _):
        self.send(b"", 404)

    def broken(self, _):
        self.send(b"", 500)

    def mended(self, n):
        self.send(b"", 503) if n == 1 else self.good(n)

    def loop(self, _):
        self.send(b"", 302, Location="/loop")

    def garbage(self, _):
        self.wfile.write(b"220 this is not HTTP\r\n")


@contextmanager
def serving(behaviour: str) -> Iterator[tuple[str, list]]:
    handler = type("H", (Handler,), {"behaviour": behaviour, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.005})
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/", handler.asked
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def quickly(monkeypatch, request):
    stalls = "[stalled" in request.node.name or "[silent" in request.node.name
    monkeypatch.setattr(download, "PAUSE", 0.01)
    monkeypatch.setattr(download, "TIMEOUT", 0.2 if stalls else 10.0)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "set" / "file.bin"


def get(url, target, on_progress=None):
    bring([url] if isinstance(url, str) else url, target, len(CONTENT), SHA, on_progress, ", or set REPRO_DATA")


def around(target: Path) -> list[str]:
    return sorted(f.name for f in target.parent.iterdir())


def test_a_good_file_arrives_whole_with_its_progress_and_without_traces(target):
    seen = []
    with serving("good") as (url, asked):
        get(url, target, lambda have, size: seen.append((have, size)))
    assert target.read_bytes() == CONTENT and around(target) == ["file.bin"] and asked == [("/", None, None)]
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and [h for h, _ in seen] == sorted(h for h, _ in seen)


@pytest.mark.parametrize(
    ("behaviour", "message", "tries"),
    [
        ("truncated", rf"breaks off \(after {HALF} of {len(CONTENT)} bytes\), 3 times", 3),
        ("stalled", r"breaks off \(timed out\), 3 times", 3),
        ("silent", r"breaks off \(timed out\), 3 times", 3),
        ("chunked", r"breaks off \(.*\), 3 times", 3),
        ("garbage", r"breaks off \(.*220 this is not HTTP.*\), 3 times", 3),
        ("short", rf"announces {len(CONTENT) - 7} bytes where {len(CONTENT)} are missing of the published", 1),
        ("long", rf"announces {len(CONTENT) + 4} bytes where", 1),
        ("endless", rf"sends more than the {len(CONTENT)} bytes of the published file", 1),
        ("wrong", r"sends another content than the published one \(SHA-256\)", 1),
        ("html", r"sends a web page \(HTML\), not the file: a login or an error page", 1),
        ("missing", "says 404 Not Found", 1),
        ("broken", "says 500 Internal Server Error, 3 times", 3),
        ("loop", "says 302 The HTTP server returned a redirect error that would lead to an infinite loop", None),
    ],
)
def test_a_bad_answer_is_one_error_leaves_nothing_and_hinders_no_later_one(target, behaviour, message, tries):
    with serving(behaviour) as (url, asked):
        received = [0]
        with pytest.raises(ReproError, match=rf"file\.bin could not be downloaded: {url}.*{message}") as caught:
            get(url, target, lambda have, _: received.append(have))
        assert max(received) <= len(CONTENT)
        assert str(caught.value).endswith("Try again later, or set REPRO_DATA.") and "\n" not in str(caught.value)
        assert around(target) == [] and (tries is None or len(asked) == tries)
        get(url + "good", target)
    assert target.read_bytes() == CONTENT and around(target) == ["file.bin"]


def test_a_name_without_host_and_a_closed_port_are_errors(target):
    with pytest.raises(ReproError, match=r"http://127\.0\.0\.1:9/ breaks off \(.*refused\), 3 times"):
        get("http://127.0.0.1:9/", target)
    assert around(target) == []


def test_a_busy_server_is_asked_again(target):
    with serving("mended") as (url, asked):
        get(url, target)
    assert target.read_bytes() == CONTENT and len(asked) == 2


@pytest.mark.parametrize("behaviour", ["halves", "dated", "norange", "noname", "weak", "changed"])
def test_what_broke_off_is_continued_where_the_server_can_and_else_started_anew(target, behaviour):
    with serving(behaviour) as (url, asked):
        get(url, target)
    version = {"halves": '"v1"', "norange": '"v1"', "changed": '"v1"', "dated": "Mon, 01 Jan 2024 00:00:00 GMT"}
    resumed = (f"bytes={HALF}-", version[behaviour]) if behaviour in version else (None, None)
    assert [a[1:] for a in asked] == [(None, None), resumed]
    assert target.read_bytes() == CONTENT and around(target) == ["file.bin"]


@pytest.mark.parametrize("behaviour", ["mixed", "shifted", "outside"])
def test_a_continuation_that_cannot_be_trusted_is_started_anew(target, behaviour):
    with serving(behaviour) as (url, asked):
        get(url, target)
    assert target.read_bytes() == CONTENT and [bool(a[1]) for a in asked] == [False, True, False]


def test_a_part_is_kept_between_commands_and_continued(target, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    with serving("halves") as (url, asked):
        with pytest.raises(ReproError, match=f"after {HALF} of"):
            get(url, target)
        assert around(target) == [".file.bin.part", ".file.bin.tag"]
        get(url, target)
    assert [a[1] for a in asked] == [None, f"bytes={HALF}-"] and around(target) == ["file.bin"]


def test_a_part_of_another_address_is_not_continued(target, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    with serving("halves") as (url, asked):
        with pytest.warns(UserWarning, match=rf"file\.bin: {url} breaks off .*; {url}good had it\."):
            get([url, url + "good"], target)
    assert [a[1] for a in asked] == [None, None] and target.read_bytes() == CONTENT


def test_a_corrupt_mirror_is_reported_and_the_next_one_serves(target):
    with serving("wrong") as (url, _):
        with pytest.warns(UserWarning) as caught:
            get([url, url + "missing", url + "good"], target)
    said = [str(w.message) for w in caught]
    assert "sends another content" in said[0] and "says 404" in said[1] and len(said) == 2
    assert target.read_bytes() == CONTENT and around(target) == ["file.bin"]


def test_when_all_mirrors_fail_each_is_named(target):
    with serving("wrong") as (url, _):
        with pytest.raises(ReproError, match=f"{url} sends another content.*; {url}missing says 404"):
            get([url, url + "missing"], target)


def test_a_spoiled_file_is_replaced_only_by_a_good_one(target):
    target.parent.mkdir(parents=True)
    target.write_bytes(b"spoiled")
    with serving("wrong") as (url, _):
        with pytest.raises(ReproError):
            get(url, target)
        assert target.read_bytes() == b"spoiled"
        get(url + "good", target)
    assert target.read_bytes() == CONTENT


def test_two_downloads_at_once_make_one_request(target):
    with serving("good") as (url, asked):
        threads = [threading.Thread(target=get, args=(url, target)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(asked) == 1 and target.read_bytes() == CONTENT and around(target) == ["file.bin"]


def test_the_part_file_of_a_successor_is_left_alone(target, monkeypatch):
    """Between a finished download's move and its clearing up, the next one may have opened its own part file."""
    part = target.with_name(f".{target.name}.part")

    def move(source, to, replace=os.replace):
        replace(source, to)
        part.touch()

    monkeypatch.setattr(os, "replace", move)
    with serving("good") as (url, _):
        get(url, target)
    assert around(target) == [part.name, "file.bin"]


def test_who_waited_for_a_part_that_is_gone_takes_the_new_one(tmp_path):
    path, found = tmp_path / ".file.bin.part", []

    def wait():
        with download._alone(path) as part:
            found.append(os.path.samestat(os.fstat(part.fileno()), path.stat()))

    with download._alone(path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.1)
        path.unlink()
        path.write_bytes(b"of a third")
        path.with_suffix(".tag").write_text("url\nversion")
    waiting.join()
    assert found == [True]


def test_after_one_of_two_downloads_fails_the_other_tries_itself(target):
    errors = []

    def try_it(url):
        try:
            get(url, target)
        except ReproError as error:
            errors.append(error)

    with serving("stalled") as (url, _):
        first = threading.Thread(target=try_it, args=(url,))
        first.start()
        time.sleep(0.1)
        get(url + "good", target)
        first.join()
    assert target.read_bytes() == CONTENT and len(errors) <= 1 and around(target) == ["file.bin"]


def test_a_full_disk_is_said_and_takes_nothing(target):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serving("good") as (url, _):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, hard))
            with pytest.raises(ReproError, match=r"could not be written \(File too large\); it takes 0\.2 MB"):
                get(url, target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert around(target) == []
        get(url, target)
    assert target.read_bytes() == CONTENT


def test_a_disk_that_takes_less_than_it_is_given_is_given_the_rest():
    taken = []

    class Slow:
        def write(self, view):
            taken.append(bytes(view[:3]))
            return len(taken[-1])

    download._write(Slow(), b"0123456789")
    assert taken == [b"012", b"345", b"678", b"9"]


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ReproError, match=r"could not be written \(.*\).*set XDG_CACHE_HOME to another folder"):
        get("http://127.0.0.1:9/", tmp_path / "cache" / "x" / "file.bin")


CHILD = """
import sys, types
from pathlib import Path
sys.modules["reprolib"] = package = types.ModuleType("reprolib")  # without torch, which takes seconds to load
package.__path__ = ["reprolib"]
from reprolib.download import download
url, target, size, sha = sys.argv[1:]
download([url], Path(target), int(size), sha)
"""


def test_a_killed_download_leaves_no_file_and_the_next_one_continues(target, monkeypatch):
    with serving("halves") as (url, asked):
        original = Handler.halves

        def slowly(self, n):
            if n > 1:
                return self.good(n)
            self.send(CONTENT[:HALF], length=len(CONTENT), ETag='"v1"')
            self.wfile.flush()
            time.sleep(20)

        monkeypatch.setattr(Handler, "halves", slowly)
        child = subprocess.Popen([sys.executable, "-c", CHILD, url, str(target), str(len(CONTENT)), SHA], cwd=ROOT)
        part, deadline = target.with_name(".file.bin.part"), time.monotonic() + 30
        while not (part.exists() and part.stat().st_size == HALF) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert not target.exists() and part.stat().st_size == HALF
        monkeypatch.setattr(Handler, "halves", original)
        get(url, target)
    assert [a[1] for a in asked] == [None, f"bytes={HALF}-"]
    assert target.read_bytes() == CONTENT and around(target) == ["file.bin"]
