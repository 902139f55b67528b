"""Read files of many formats from bytes into arrays, tables, texts and lists; no pickle, nothing extracted to disk."""

from __future__ import annotations

import csv
import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from reprolib.project import ReproError

PICKLES = ("pkl", "pickle", "pt", "pth", "joblib")
MISSING = ("", "NA", "?")  # entries of a table that are not there
UNREADABLE = (ValueError, LookupError, OSError, EOFError, zlib.error, struct.error, csv.Error)
NO_ARCHIVE = (zipfile.BadZipFile, tarfile.TarError)
Options = Mapping[str, Any]


def parse(path: str, raw: bytes, options: Options) -> Any:
    """Content by its format (the option ``format``, else the suffix of ``path``), checked against the option ``shape``.

    In a table a column of numbers is float64 with NaN where an entry is empty, ``NA`` or ``?``; others are strings.
    Images are uint8 (height, width) or (height, width, 3).

    Raises:
        ReproError: Not of that format, of another shape, of no known format, or a pickle.
    """
    name = options.get("member", PurePosixPath(path).name)
    plain = name.removesuffix(".gz")
    format = options.get("format") or ("idx" if plain.endswith("-ubyte") else plain.rpartition(".")[2])
    if format in PICKLES:
        raise ReproError(f"{path} is a pickle, which can run code when it is opened; none is opened here.")
    if format not in READERS:
        raise ReproError(f"{path}: no reader for {format!r}; there are {', '.join(READERS)}.")
    try:
        if "member" in options:
            raw = _zip(raw, {})[name]
        value = READERS[format](gzip.decompress(raw) if plain != name else raw, options)
    except (*UNREADABLE, *NO_ARCHIVE) as e:
        raise ReproError(f"{path} could not be read as {format} ({e}).") from None
    if "shape" in options and shape_of(value) != tuple(options["shape"]):
        raise ReproError(f"{path} must have shape {tuple(options['shape'])}; it has {shape_of(value)}.")
    return value


def shape_of(value: Any) -> tuple[int, ...]:
    """Of an array; (rows, columns) of a table; the length of anything else."""
    if isinstance(value, np.ndarray):
        return value.shape
    sizes = {len(v) for v in value.values() if isinstance(v, np.ndarray)} if isinstance(value, dict) else set()
    return (*sizes, len(value)) if len(sizes) == 1 else (len(value),)


def _idx(raw: bytes, _: Options) -> np.ndarray:
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError("not unsigned bytes")
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape).copy()


def _npz(raw: bytes, _: Options) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
        return dict(arrays)


def _mat(raw: bytes, options: Options) -> dict[str, np.ndarray]:
    from scipy.io.matlab import MatReadError, loadmat

    names = options.get("rename", {})
    try:
        arrays = loadmat(io.BytesIO(raw))
    except MatReadError as error:
        raise ValueError(error) from None
    return {names.get(k, k): np.squeeze(v) for k, v in arrays.items() if k[0] != "_"}


def _columns(raw: bytes, options: Options) -> dict[str, tuple[str, ...]]:
    lines = io.StringIO(raw.decode("utf-8-sig"), newline="").readlines()[options.get("skip", 0) :]
    rows = [row for row in csv.reader(lines, delimiter=options.get("delimiter", ","), skipinitialspace=True) if row]
    heads = options.get("columns") or (rows.pop(0) if options.get("header", True) else range(len(rows[0])))
    names: list[str] = []
    for head in map(str, heads):
        names.append(head if head not in names else f"{head}.1")
    columns = zip(names, zip(*rows, strict=True), strict=True)
    return {name: column for name, column in columns if name not in options.get("drop", ())}


def _strings(raw: bytes, options: Options) -> dict[str, np.ndarray]:
    return {name: np.array(column, np.dtypes.StringDType()) for name, column in _columns(raw, options).items()}


def _table(raw: bytes, options: Options) -> dict[str, np.ndarray]:
    return {name: _numbers_if_all(column) for name, column in _columns(raw, options).items()}


def _numbers_if_all(column: tuple[str, ...]) -> np.ndarray:
    try:
        return np.array([np.nan if entry in MISSING else float(entry) for entry in column])
    except ValueError:
        return np.array(column, np.dtypes.StringDType())


def image(raw: bytes, _: Options) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError:
        raise ReproError("Reading images needs Pillow; install it (pip install pillow).") from None
    return np.array(Image.open(io.BytesIO(raw)))


def _safe(names: Sequence[str]) -> None:
    for name in names:
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"member {name!r} leaves the archive")


def _zip(raw: bytes, _: Options) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = [m for m in archive.infolist() if not m.is_dir()]
        _safe([m.filename for m in members])
        return {m.filename: archive.read(m) for m in members}


def _tar(raw: bytes, _: Options) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        members = [(m.name, archive.extractfile(m)) for m in archive if m.isfile()]
        _safe([name for name, _ in members])
        return {name: stream.read() for name, stream in members if stream}


READERS: dict[str, Callable[[bytes, Options], Any]] = {
    "idx": _idx,
    "npy": lambda raw, _: np.load(io.BytesIO(raw), allow_pickle=False),
    "npz": _npz,
    "mat": _mat,
    "csv": _table,
    "strings": _strings,
    "numbers": lambda raw, _: np.loadtxt(io.BytesIO(raw), ndmin=2),
    "integers": lambda raw, _: np.loadtxt(io.BytesIO(raw), ndmin=1).astype(np.int64),
    "txt": lambda raw, _: raw.decode("utf-8"),
    "json": lambda raw, _: json.loads(raw),
    "jsonl": lambda raw, _: [json.loads(line) for line in raw.split(b"\n") if line.strip()],
    **dict.fromkeys(("png", "jpg", "pgm"), image),
    "zip": _zip,
    "tar": _tar,
}
