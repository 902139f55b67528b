"""Tensors in a file of the safetensors format, in and out, without its library, which GPU machines often lack."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reprolib.project import ReproError

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
_DTYPES["BOOL"] = torch.bool
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def save_weights(path: Path | str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors in the safetensors format, atomically: the old file stands until the new one is whole.

    Layout: length of the header (8 bytes, little-endian); header (JSON: type, shape and byte range of each tensor, and
    ``__metadata__``); the tensors' bytes.

    Raises:
        ValueError: A type that the format lacks, a tensor called ``__metadata__``, metadata other than text.
    """
    path, metadata, end = Path(path), metadata or {}, 0
    if not all(isinstance(text, str) for item in metadata.items() for text in item):
        raise ValueError(f"metadata must map text to text; got {metadata}.")
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))  # every tensor is then aligned
    for name, t in tensors.items():
        if name == "__metadata__" or t.dtype not in _NAMES:
            raise ValueError(f"tensors must be of {list(_DTYPES)}, none called __metadata__; got {name}, {t.dtype}.")
        start, end = end, end + t.numel() * t.element_size()
        header[name] = {"dtype": _NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for t in tensors.values():
                file.write(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def load_weights(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: tensors, on the CPU, and metadata. Nothing in the file is executed.

    Raises:
        ReproError: The file is missing or cut short, or its header contradicts itself or the file.
    """
    path = Path(path)
    if not path.is_file():
        raise ReproError(f"{path} is missing.")
    with path.open("rb") as file:
        room, length = path.stat().st_size - 8, int.from_bytes(file.read(8), "little")
        if room < length or room < 2 or length > 100_000_000:  # the format's own limit
            raise ReproError(f"{path} is cut short or no safetensors file: header of {length} bytes, {room} follow.")
        room -= length
        try:
            header = json.loads(file.read(length), object_pairs_hook=_without_repeats)
            metadata: dict[str, str] = header.pop("__metadata__", {})
            if not all(isinstance(text, str) for text in metadata.values()):
                raise ValueError("__metadata__ must map text to text")
            entries = sorted(_entry(name, **fields) for name, fields in header.items())
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ReproError(f"{path} has no valid safetensors header: {error}.") from None
        tensors, end = {}, 0
        for start, stop, name, kind, shape in entries:
            if start != end or stop > room or stop - start != math.prod(shape) * _DTYPES[kind].itemsize:
                found = f"{name}, {kind} {shape}, at bytes {start}..{stop} of {room}, the last one ended at {end}"
                raise ReproError(f"{path}: tensors must lie in the file one after the other; got {found}.")
            data, end = bytearray(stop - start), stop
            file.readinto(data)
            flat = torch.frombuffer(data, dtype=_DTYPES[kind]) if data else torch.empty(0, dtype=_DTYPES[kind])
            tensors[name] = flat.view(shape)
    if end != room:
        raise ReproError(f"{path}: tensors must fill the file; {room - end} bytes at its end belong to none.")
    return tensors, metadata


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands twice")
    return table


def _entry(name: str, dtype: str, shape: list[int], data_offsets: list[int]) -> tuple[int, int, str, str, list[int]]:
    start, stop = data_offsets
    if dtype not in _DTYPES:
        raise ValueError(f"type {dtype!r} of {name} is none of {list(_DTYPES)}")
    if not all(type(n) is int and 0 <= n < 2**63 for n in [*shape, start, stop]):
        raise ValueError(f"shape and data_offsets of {name} must be natural numbers")
    return start, stop, name, dtype, shape
