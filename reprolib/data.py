"""Data sets: one registry of public, embedded and generated ones; a public file is checked by SHA-256 at every reading.

It is looked for in the folder ``REPRO_DATA``, then in the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``), then at
its addresses. The network is used by ``repro data fetch NAME`` and at full scale (``REPRO_SCALE=full``) only: at quick
scale a file that is not here is an error that says how to get it. No data stand in for others, no pickle is opened.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import os
import tomllib
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reprolib.download import download
from reprolib.formats import image, parse
from reprolib.project import ReproError, nearest


class File(NamedTuple):
    """A public file: its set, its place in a data folder, its content, its addresses, how it is read."""

    owner: str
    path: str
    bytes: int
    sha256: str
    urls: tuple[str, ...] = ()
    key: str = ""  # its name in what `load` returns
    options: Mapping[str, Any] = MappingProxyType({})  # as in datasets.toml


class Form(NamedTuple):
    """One way a set is kept: ``canonical`` (as published, or byte for byte so) or ``data folder`` (no download)."""

    name: str
    files: tuple[File, ...]


class DataSet(NamedTuple):
    """A set: public, embedded or generated; title, kind, licence, source and more as in ``datasets.toml``."""

    name: str
    origin: str
    facts: dict[str, str]
    forms: tuple[Form, ...]


class Data(NamedTuple):
    """A loaded set: its form, and by key arrays, tables (dicts of columns), texts, lists, archives (dicts of bytes)."""

    name: str
    form: str
    content: dict[str, Any]


@cache
def registry() -> dict[str, DataSet]:
    """All sets by name, as written in ``datasets.toml``."""
    raw = tomllib.loads((Path(__file__).parent / "datasets.toml").read_text(encoding="utf-8"))
    return {
        name: DataSet(name, origin, facts, tuple(_form(name, form) for form in facts.pop("forms", ())))
        for origin, sets in raw.items()
        for name, facts in sets.items()
    }


def _form(owner: str, form: dict[str, Any]) -> Form:
    name, folder, urls, files = form.pop("name"), form.pop("folder"), form.pop("urls", ()), []
    for entry in form.pop("files"):
        path, size, sha256 = (entry.pop(field) for field in ("path", "bytes", "sha256"))
        source, plain = entry.pop("from", path), path.removesuffix(".gz")
        key = entry.pop("key", plain.rpartition(".")[0] or plain)
        addresses = tuple(url + source for url in urls)
        files.append(File(owner, f"{folder}/{path}", size, sha256, addresses, key, form | entry))
    return Form(name, tuple(files))


def data_set(name: str) -> DataSet:
    """The entry called ``name``; a ReproError that names the nearest when there is none."""
    if name not in registry():
        raise ReproError(f"No data set {name!r}. {nearest(name, list(registry()))}")
    return registry()[name]


def folders() -> list[Path]:
    """Where files are looked for: ``REPRO_DATA`` when set, then the cache; a ReproError when the first is no folder."""
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reprolib"
    if not (own := os.environ.get("REPRO_DATA")):
        return [cached]
    if not Path(own).is_dir():
        raise ReproError(f"REPRO_DATA must name a folder; {own} is none. Correct it or unset it.")
    return [Path(own), cached]


def where(file: File, places: Sequence[Path] = ()) -> Path | None:
    """The file in the first of the places (default: :func:`folders`) that has it, plain or as ``.gz``, or None."""
    paths = (place / (file.path + end) for place in places or folders() for end in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def form_here(entry: DataSet, places: Sequence[Path] = ()) -> Form:
    """The form of a public set that one of the places holds whole, in their order; else the first form."""
    here = (f for place in places or folders() for f in entry.forms if all(where(x, [place]) for x in f.files))
    return next(here, entry.forms[0])


def verified(path: Path, file: File) -> bytes:
    """The content at ``path``, unzipped where only ``path`` ends in ``.gz``; a ReproError when it is not the file's."""
    advice = f"`repro data fetch {file.owner}` replaces it"
    if not path.is_relative_to(folders()[-1]):
        advice = "Put the published file in its place"
    try:
        with gzip.open(path) if path.name != PurePosixPath(file.path).name else path.open("rb") as stream:
            content = stream.read(file.bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ReproError(f"{path} could not be read ({error}). {advice}.") from None
    found, size = hashlib.sha256(content).hexdigest(), len(content)
    if found != file.sha256 or size != file.bytes:
        raise ReproError(
            f"{path} is not the published file: {file.bytes} bytes with SHA-256 {file.sha256[:12]}… were expected, "
            f"{size if size <= file.bytes else f'more than {file.bytes}'} bytes with {found[:12]}… are there. {advice}."
        )
    return content


def read(file: File) -> bytes:
    """The verified content of a file from ``REPRO_DATA``, the cache, or (at full scale) its addresses.

    Raises:
        ReproError: It is nowhere to be had, or not the published one; says what to do.
    """
    if not (path := where(file)):
        path = folders()[-1] / file.path
        if file.urls and os.environ.get("REPRO_SCALE") != "full":
            raise ReproError(
                f"{file.path} is not here, and quick scale does not use the network. `repro data fetch {file.owner}` "
                "gets it; or set REPRO_DATA to a folder that holds it, or run at full scale (REPRO_SCALE=full)."
            )
        bring(file, path)
    return verified(path, file)


def bring(file: File, target: Path, on_progress: Callable[[int, int], None] | None = None) -> None:
    """Download a file to ``target``, at any scale; a ReproError when that fails or the file has no address."""
    if not file.urls:
        raise ReproError(
            f"{file.path} is not here, and there is no automatic download of it: see "
            f"{data_set(file.owner).facts['page']}, and set REPRO_DATA to a folder that holds the file."
        )
    instead = ", or set REPRO_DATA to a folder that holds it"
    download(file.urls, target, file.bytes, file.sha256, on_progress, instead)


def load(name: str) -> Data:
    """A set as arrays, tables, texts and lists; the keys of a public one are its paths, nested at each ``/``.

    In a table, a column of numbers is float64 with NaN where an entry is empty, ``NA`` or ``?``; others are strings.
    Images are uint8 (height, width) or (height, width, 3).

    Raises:
        ReproError: No such set, a file that cannot be had, a package that is missing, or a generated set.
    """
    entry = data_set(name)
    if entry.origin == "generated":
        raise ReproError(f"{name} is made, not loaded: use {entry.facts['loader'].replace(':', '.')}.")
    if entry.origin == "embedded":
        return Data(name, "embedded", _embedded(entry.facts["package"], entry.facts["loader"]))
    form, content = form_here(entry), dict[str, Any]()
    for file in form.files:
        *groups, last = file.key.split("/")
        place = content
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = parse(file.path, read(file), file.options)
    return Data(name, form.name, content)


def _embedded(package: str, loader: str) -> dict[str, Any]:
    module, _, function = loader.partition(":")
    try:
        loaded = getattr(importlib.import_module(module), function)()
    except ImportError:
        raise ReproError(f"The set comes with {package}; install it (pip install {package}).") from None
    if "DESCR" in loaded:  # a scikit-learn bunch
        return {key: np.asarray(value) for key, value in loaded.items() if isinstance(value, (list, np.ndarray))}
    frame = getattr(loaded, "data", loaded)  # pandas; an index of dates becomes a column
    frame = frame if frame.index.dtype.kind == "i" else frame.reset_index()
    return {str(name): column.to_numpy() for name, column in frame.items()}


def digits() -> tuple[Tensor, Tensor]:
    """Handwritten digits of 8x8 pixels, in scikit-learn (UCI, Alpaydin and Kaynak 1998, CC BY 4.0).

    Returns:
        Images (1797, 64) float32 in [0, 1], and labels (1797,) int64 in 0..9.

    Raises:
        ReproError: scikit-learn is missing.
    """
    content = load("digits").content
    return torch.from_numpy(content["data"] / 16).float(), torch.from_numpy(content["target"]).long()


def mnist(name: str = "mnist") -> tuple[Tensor, Tensor]:
    """MNIST or (``fashion_mnist``) Fashion-MNIST, training images before test images.

    Returns:
        Images (70000, 784) float32 in [0, 1], and labels (70000,) int64 in 0..9.

    Raises:
        ReproError: A file cannot be had or is not the published one.
    """
    content = load(name).content
    x, y = (
        np.concatenate([content[f"{split}-{kind}-ubyte"] for split in ("train", "t10k")])
        for kind in ("images-idx3", "labels-idx1")
    )
    return torch.from_numpy(x).flatten(1).float() / 255, torch.from_numpy(y).long()


def cifar10() -> tuple[Tensor, Tensor, str]:
    """CIFAR-10, training images before test images.

    Returns:
        Images (60000, 3, 32, 32) uint8, labels (60000,) int64 in 0..9, and the form they come from. ``canonical`` are
        the published pixels in their order; ``data folder`` are JPEG copies in an order of which every first 10 k are
        balanced: a result from those must say so.

    Raises:
        ReproError: As :func:`load`.
    """
    _, form, content = load("cifar10")
    if form == "canonical":
        batches = [f"cifar-10-batches-bin/{b}.bin" for b in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")]
        rows = np.frombuffer(b"".join(content["cifar-10-binary"][b] for b in batches), np.uint8).reshape(-1, 3073)
        return (
            torch.from_numpy(rows[:, 1:].reshape(-1, 3, 32, 32).copy()),
            torch.from_numpy(rows[:, 0].copy()).long(),
            form,
        )
    images, labels = [], []
    for part in (content["cifar10_train_jpeg"], content["cifar10_test_jpeg"]):
        bounds = zip(part["offsets"], part["offsets"][1:], strict=False)
        images += [image(part["blob"][start:end].tobytes(), {}) for start, end in bounds]
        labels.append(part["labels"])
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return x, torch.from_numpy(np.concatenate(labels)).long(), form
