"""Data sets: what comes with a library, and public files checked against their SHA-256 wherever they come from."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import struct
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reprolib.project import ReproError

CHUNK = 1 << 16


class RemoteFile(NamedTuple):
    """A public file: where it lies in a data folder, its address, its size and checksum."""

    path: str
    url: str
    bytes: int
    sha256: str


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST = {
    name: RemoteFile(f"mnist/{name}.gz", f"{_MNIST}{name}.gz", size, sha256)
    for name, size, sha256 in (
        ("train-images-idx3-ubyte", 9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        ("train-labels-idx1-ubyte", 28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        ("t10k-images-idx3-ubyte", 1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        ("t10k-labels-idx1-ubyte", 4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    )
}


def digits() -> tuple[Tensor, Tensor]:
    """Handwritten digits of 8x8 pixels, in scikit-learn (UCI, Alpaydin and Kaynak 1998, CC BY 4.0).

    Returns:
        Images (1797, 64) float32 in [0, 1], and labels (1797,) int64 in 0..9.

    Raises:
        ReproError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ReproError("The digits come with scikit-learn; install it (pip install scikit-learn).") from None
    bunch = load_digits()
    return torch.tensor(bunch.data / 16.0, dtype=torch.float32), torch.tensor(bunch.target, dtype=torch.int64)


def mnist() -> tuple[Tensor, Tensor]:
    """MNIST, training images before test images (LeCun, Cortes and Burges; CC BY-SA 3.0 as commonly stated).

    Returns:
        Images (70000, 784) float32 in [0, 1], and labels (70000,) int64 in 0..9.

    Raises:
        ReproError: A file cannot be had or is not the published one.
    """
    images = [idx(fetch(MNIST[f"{split}-images-idx3-ubyte"])) for split in ("train", "t10k")]
    labels = [idx(fetch(MNIST[f"{split}-labels-idx1-ubyte"])) for split in ("train", "t10k")]
    x = torch.from_numpy(np.concatenate(images)).flatten(1).float() / 255
    return x, torch.from_numpy(np.concatenate(labels)).long()


def idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped, as an array of the shape its header gives.

    Raises:
        ReproError: It is not such a file.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
        magic, dimensions = raw[:3], raw[3]
        shape = struct.unpack(f">{dimensions}I", raw[4 : 4 + 4 * dimensions])
    except (gzip.BadGzipFile, EOFError, zlib.error, IndexError, struct.error) as error:
        raise ReproError(f"{path} is not an IDX file of unsigned bytes ({error}).") from None
    if magic != b"\x00\x00\x08" or len(raw) != 4 + 4 * dimensions + int(np.prod(shape)):
        raise ReproError(f"{path} is not an IDX file of unsigned bytes.")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()


def fetch(file: RemoteFile, timeout: float = 30.0) -> Path:
    """A file from ``REPRO_DATA``, else from the user's cache, else from its address; verified each time.

    Raises:
        ReproError: It is nowhere to be had, or what is there is not the published file; says what to do.
    """
    folder = os.environ.get("REPRO_DATA")
    if folder and (Path(folder) / file.path).is_file():
        return _verified(Path(folder) / file.path, file, "Put the published file in its place.")
    cached = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "reprolib" / file.path
    if cached.is_file():
        return _verified(cached, file, "Delete it, so that it is downloaded anew.")
    cached.parent.mkdir(parents=True, exist_ok=True)
    part = cached.with_name(f".{cached.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(file.url, timeout=timeout) as answer, part.open("wb") as out:
            while chunk := answer.read(CHUNK):
                out.write(chunk)
                if out.tell() > file.bytes:
                    break
        _verified(part, file, "Nothing was kept; try again later.")
        os.replace(part, cached)
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise ReproError(
            f"{file.path} could not be downloaded from {file.url} ({error}). "
            "Go online, or set REPRO_DATA to a folder that holds it."
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return cached


def _verified(path: Path, file: RemoteFile, advice: str) -> Path:
    size = path.stat().st_size
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if size != file.bytes or found != file.sha256:
        raise ReproError(
            f"{path} is not the published file: {file.bytes} bytes with SHA-256 {file.sha256[:12]}… were expected, "
            f"{size} bytes with {found[:12]}… are there. {advice}"
        )
    return path
