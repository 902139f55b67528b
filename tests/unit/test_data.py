"""Data sets are the published ones or an error: nothing half, nothing wrong, nothing kept by accident."""

import gzip
import hashlib
import os
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from reprolib import ReproError, data
from reprolib.data import RemoteFile

REAL_DATA = os.environ.get("REPRO_DATA")


def as_idx(array: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes, gzipped."""
    head = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes(), mtime=0)


IMAGES = np.arange(2 * 28 * 28).reshape(2, 28, 28) % 256
CONTENT = as_idx(IMAGES)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("REPRO_DATA", raising=False)
    return tmp_path / "cache"


def kept(cache):
    return [f.name for f in cache.rglob("*") if f.is_file()]


class _Server(BaseHTTPRequestHandler):
    requests = 0

    def do_GET(self):
        type(self).requests += 1
        kind = self.path.strip("/")
        if kind == "gone":
            self.send_error(404)
            return
        self.protocol_version = "HTTP/1.1"
        self.close_connection = True
        self.send_response(200)
        if kind == "chunked":  # the connection ends in the middle of a chunk
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(f"{len(CONTENT):x}\r\n".encode() + CONTENT[:100])
            return
        body = {"wrong": CONTENT[::-1], "endless": CONTENT * 50, "empty": b""}.get(kind, CONTENT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if kind == "truncated" else body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def remote(server: str, kind: str) -> RemoteFile:
    return RemoteFile("tiny/images.gz", f"{server}/{kind}", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def test_digits_are_images_in_zero_to_one_with_ten_classes():
    x, y = data.digits()
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((1797, 64), torch.float32, (1797,), torch.int64)
    assert (x.min(), x.max(), y.min(), y.max(), len(y.unique())) == (0, 1, 0, 9, 10)


@pytest.mark.skipif(not REAL_DATA, reason="REPRO_DATA names no folder with the real MNIST; a tiny one is tested below")
def test_the_published_mnist_is_read_from_the_data_folder():
    x, y = data.mnist()
    assert (x.shape, x.dtype, y.shape) == ((70_000, 784), torch.float32, (70_000,))
    assert y[:5].tolist() == [5, 0, 4, 1, 9] and y[60_000:60_005].tolist() == [7, 2, 1, 0, 4]
    assert 0.13 < x.mean() < 0.1325 and y.bincount().tolist()[1] == 7877


def test_a_tiny_mnist_of_the_same_format_is_read_training_before_test(tmp_path, monkeypatch):
    files = {}
    for split, n, label in (("train", 2, 5), ("t10k", 1, 7)):
        for kind, array in (("images-idx3", IMAGES[:n]), ("labels-idx1", np.full(n, label))):
            name, content = f"{split}-{kind}-ubyte", as_idx(array)
            files[name] = RemoteFile(f"mnist/{name}.gz", "", len(content), hashlib.sha256(content).hexdigest())
            (tmp_path / "mnist").mkdir(exist_ok=True)
            (tmp_path / files[name].path).write_bytes(content)
    monkeypatch.setattr(data, "MNIST", files)
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    x, y = data.mnist()
    assert x.shape == (3, 784) and x.max() == 1 and y.tolist() == [5, 5, 7]
    assert_array_equal(x[1].numpy() * 255, IMAGES[1].ravel())


def test_a_download_is_verified_kept_and_not_repeated(server, empty_cache):
    before = _Server.requests
    first, second = (data.fetch(remote(server, "right")) for _ in range(2))
    assert first == second and first.read_bytes() == CONTENT
    assert kept(empty_cache) == ["images.gz"] and _Server.requests == before + 1
    assert_array_equal(data.idx(first), IMAGES)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "is not the published file: .* Nothing was kept; try again later"),
        ("wrong", "is not the published file"),
        ("endless", "is not the published file"),
        ("empty", f"{len(CONTENT)} bytes with SHA-256 .* 0 bytes with"),
        ("chunked", "could not be downloaded from .*/chunked"),
        ("gone", r"could not be downloaded from .*/gone .*404.*Go online, or set REPRO_DATA"),
    ],
)
def test_a_bad_download_is_an_error_and_leaves_nothing(server, empty_cache, kind, message):
    with pytest.raises(ReproError, match=message):
        data.fetch(remote(server, kind))
    assert kept(empty_cache) == []


def test_no_network_says_what_to_do(empty_cache):
    with pytest.raises(ReproError, match=r"tiny/images\.gz could not be downloaded.*set REPRO_DATA"):
        data.fetch(remote("http://127.0.0.1:9", "right"), timeout=2)
    assert kept(empty_cache) == []


def test_a_wrong_file_in_the_data_folder_is_refused_and_left_alone(server, empty_cache, tmp_path, monkeypatch):
    wrong = tmp_path / "data" / "tiny" / "images.gz"
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(CONTENT + b"!")
    monkeypatch.setenv("REPRO_DATA", str(tmp_path / "data"))
    with pytest.raises(ReproError, match=r"is not the published file.*Put the published file in its place"):
        data.fetch(remote(server, "right"))
    assert wrong.read_bytes() == CONTENT + b"!" and kept(empty_cache) == []


def test_a_spoiled_cache_says_to_delete_it(server, empty_cache):
    path = data.fetch(remote(server, "right"))
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ReproError, match=r"is not the published file.*Delete it, so that it is downloaded anew"):
        data.fetch(remote(server, "right"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"plain",
        gzip.compress(b""),
        gzip.compress(b"\x00\x00\x08"),
        gzip.compress(b"\x00\x00\x08\x02\x00"),
        gzip.compress(b"\x00\x00\x0d\x01\x00\x00\x00\x01\x07"),  # floats
        gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x02\x07"),  # one byte short
        CONTENT[:-20],
    ],
)
def test_a_file_that_is_not_idx_is_refused(tmp_path, content):
    path = tmp_path / "x.gz"
    path.write_bytes(content)
    with pytest.raises(ReproError, match=r"x\.gz is not an IDX file of unsigned bytes"):
        data.idx(path)
