"""Data sets are the published ones or an error: the registry, where files are looked for, how they are read."""

import csv
import gzip
import hashlib
import importlib
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from repro import cli, datacli
from reprolib import ReproError, data, download
from reprolib.data import DataSet, File, Form
from reprolib.formats import parse, shape_of

REAL_DATA = os.environ.get("REPRO_DATA")
ROOT = Path(__file__).resolve().parents[2]
PUBLIC = [entry for entry in data.registry().values() if entry.origin == "public"]
FILES = [file for entry in PUBLIC for form in entry.forms for file in form.files]


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No data folder, an empty cache, and no network whatever happens."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("REPRO_DATA", raising=False)
    monkeypatch.delenv("REPRO_SCALE", raising=False)
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *_, **__: pytest.fail("the network was used"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("REPRO_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def as_idx(array: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes."""
    head = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def file(path: str, content: bytes, urls: tuple[str, ...] = ("http://x/",), **options) -> File:
    key = Path(path).stem
    return File("toy", f"toy/{path}", len(content), hashlib.sha256(content).hexdigest(), urls, key, options)


def put(folder: Path, path: str, content: bytes) -> Path:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(content)
    return folder / path


TABLE = b"a,b\n1,x\n2,y\n"


@pytest.fixture
def toy(monkeypatch) -> DataSet:
    """A registered set with two forms: the canonical one, and one for data folders only."""
    forms = (
        Form("canonical", (file("one.csv", TABLE), file("two.txt", b"text"))),
        Form("data folder", (file("all.npy", _npy(np.arange(3)), urls=()),)),
    )
    entry = DataSet("toy", "public", {"title": "Toy", "licence": "CC0", "page": "http://page/toy"}, forms)
    monkeypatch.setattr(data, "registry", lambda: {"toy": entry})
    return entry


def _npy(array: np.ndarray, pickled: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=pickled)
    return stream.getvalue()


# the registry


def test_each_set_says_what_it_is_and_what_it_replaces_is_there_at_quick_scale():
    known = data.registry()
    assert len(PUBLIC) >= 45 and len(known) > 70
    for name, entry in known.items():
        needed = {"title", "kind", "licence", "source", "holds"}
        needed |= {"complete", "page", "replaces"} if entry.origin == "public" else {"loader"}
        assert needed <= set(entry.facts) and all(entry.facts[field] for field in needed - {"replaces"}), name
        assert bool(entry.forms) == (entry.origin == "public")
        assert not entry.facts.get("replaces") or known[entry.facts["replaces"]].origin != "public", name


def test_each_file_has_a_checksum_a_size_safe_paths_and_a_name_of_its_own():
    for entry in PUBLIC:
        assert len({form.name for form in entry.forms}) == len(entry.forms)
        for form in entry.forms:
            assert form.name == ("canonical" if form.files[0].urls else "data folder")
            assert len({f.key for f in form.files}) == len(form.files), (entry.name, form.name)
            assert len({bool(f.urls) for f in form.files}) == 1
    for f in FILES:
        assert len(f.sha256) == 64 and int(f.sha256, 16) and f.bytes > 0 and f.owner.startswith(f.path.split("/")[0])
        assert not f.path.startswith("/") and ".." not in f.path and all(u.startswith("http") for u in f.urls)
        assert " " not in "".join(f.urls) and "//" not in "".join(u.partition("://")[2] for u in f.urls), f.urls
        assert Path(f.path).suffix not in (".pkl", ".pickle", ".pt"), f.path
    by_path = {f.path: (f.bytes, f.sha256) for f in FILES}
    assert all(by_path[f.path] == (f.bytes, f.sha256) for f in FILES)  # one path, one content


def test_an_unknown_name_meets_the_nearest():
    with pytest.raises(ReproError, match=r"No data set 'mnits'\. Did you mean mnist"):
        data.load("mnits")


# where a file is looked for


def test_the_data_folder_comes_before_the_cache(toy, folder):
    cached = data.folders()[1]
    put(cached, "toy/one.csv", b"spoiled, never looked at")
    put(folder, "toy/one.csv", TABLE)
    assert data.read(toy.forms[0].files[0]) == TABLE
    (folder / "toy/one.csv").unlink()
    with pytest.raises(ReproError, match=f"{cached}/toy/one.csv is not the published file"):
        data.read(toy.forms[0].files[0])
    put(cached, "toy/one.csv", TABLE)
    assert data.read(toy.forms[0].files[0]) == TABLE


def test_a_gzipped_copy_in_the_data_folder_is_checked_by_its_content(toy, folder):
    put(folder, "toy/one.csv.gz", gzip.compress(TABLE))
    assert data.read(toy.forms[0].files[0]) == TABLE
    for bad in (gzip.compress(TABLE)[:-9], b"plain", b""):
        put(folder, "toy/one.csv.gz", bad)
        with pytest.raises(ReproError, match=r"one\.csv\.gz (could not be read|is not the published).*Put the publ"):
            data.read(toy.forms[0].files[0])


def test_a_bomb_is_not_unpacked(toy, folder):
    put(folder, "toy/one.csv.gz", gzip.compress(bytes(10**7)))
    tracemalloc.start()
    with pytest.raises(ReproError, match=f"more than {len(TABLE)} bytes"):
        data.read(toy.forms[0].files[0])
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


@pytest.mark.parametrize("bad", [TABLE + b"!", TABLE[:-1], TABLE.replace(b"x", b"z"), b""])
def test_a_wrong_file_is_refused_and_left_alone(toy, folder, bad):
    path = put(folder, "toy/one.csv", bad)
    with pytest.raises(ReproError, match=r"is not the published file: 12 bytes .*Put the published file in its place"):
        data.read(toy.forms[0].files[0])
    assert path.read_bytes() == bad
    path = put(data.folders()[1], "toy/two.txt", bad)
    with pytest.raises(ReproError, match=r"is not the published file.*`repro data fetch toy` replaces it"):
        data.read(toy.forms[0].files[1])
    assert path.read_bytes() == bad


def test_quick_scale_uses_no_network_and_says_how_to_get_the_file(toy, monkeypatch):
    for scale in (None, "quick"):
        if scale:
            monkeypatch.setenv("REPRO_SCALE", scale)
        message = r"toy/one\.csv is not here, and quick scale does not use the network\. `repro data fetch toy` gets it"
        with pytest.raises(ReproError, match=message + r".*REPRO_DATA.*full scale \(REPRO_SCALE=full\)"):
            data.load("toy")


def test_full_scale_downloads_into_the_cache_and_verifies(toy, monkeypatch):
    contents = {"toy/one.csv": TABLE, "toy/two.txt": b"text"}
    asked = []

    def bring(urls, target, size, sha256, on_progress, instead):
        asked.append((urls, size, sha256, instead))
        put(data.folders()[-1], str(target.relative_to(data.folders()[-1])), contents["/".join(target.parts[-2:])])

    monkeypatch.setenv("REPRO_SCALE", "full")
    monkeypatch.setattr(data, "download", bring)
    assert data.load("toy").content["two"] == "text" and len(asked) == 2
    assert data.load("toy").form == "canonical" and len(asked) == 2
    assert asked[0][1:3] == (len(TABLE), hashlib.sha256(TABLE).hexdigest()) and "REPRO_DATA" in asked[0][3]


def test_a_file_without_address_says_where_to_look(toy):
    with pytest.raises(ReproError, match=r"toy/all\.npy.*no automatic download of it: see http://page/toy.*REPRO_DATA"):
        data.read(toy.forms[1].files[0])


def test_a_data_folder_that_is_none_is_said(toy, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", "/no/such/folder")
    with pytest.raises(ReproError, match="REPRO_DATA must name a folder; /no/such/folder is none"):
        data.load("toy")


def test_the_form_that_is_here_whole_is_loaded(toy, folder):
    put(folder, "toy/all.npy", _npy(np.arange(3)))
    put(folder, "toy/one.csv", TABLE)  # a part of the canonical form
    assert data.load("toy").form == "data folder"
    put(folder, "toy/two.txt", b"text")
    assert data.load("toy").form == "canonical"
    for path, content in (("toy/one.csv", TABLE), ("toy/two.txt", b"text")):
        (folder / path).rename(put(data.folders()[1], path, content))
    assert data.load("toy").form == "data folder"  # the data folder comes first
    (folder / "toy/all.npy").unlink()
    found = data.load("toy")
    assert (found.name, found.form, list(found.content)) == ("toy", "canonical", ["one", "two"])
    assert_array_equal(found.content["one"]["a"], [1.0, 2.0])
    assert found.content["one"]["b"].tolist() == ["x", "y"]


# formats


def test_slashes_in_keys_make_nested_entries(monkeypatch, folder):
    files = tuple(file(f"{k}.txt", b"t")._replace(key=k, path=f"toy/{k}.txt") for k in ("a/b/c", "a/d", "e"))
    entry = DataSet("toy", "public", {"page": ""}, (Form("canonical", files),))
    monkeypatch.setattr(data, "registry", lambda: {"toy": entry})
    for f in files:
        put(folder, f.path, b"t")
    assert data.load("toy").content == {"a": {"b": {"c": "t"}, "d": "t"}, "e": "t"}


IMAGES = np.arange(2 * 5 * 4).reshape(2, 5, 4)


def _zip(members: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(stream := io.BytesIO(), "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _tar(members: dict[str, bytes]) -> bytes:
    with tarfile.open(fileobj=(stream := io.BytesIO()), mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def _npz(**arrays: np.ndarray) -> bytes:
    np.savez(stream := io.BytesIO(), allow_pickle=True, **arrays)
    return stream.getvalue()


def _png(array: np.ndarray) -> bytes:
    from PIL import Image

    Image.fromarray(array.astype(np.uint8)).save(stream := io.BytesIO(), "png")
    return stream.getvalue()


def _mat(**arrays: np.ndarray) -> bytes:
    from scipy.io import savemat

    savemat(stream := io.BytesIO(), arrays)
    return stream.getvalue()


def test_idx_plain_and_gzipped():
    assert_array_equal(parse("x-ubyte", as_idx(IMAGES), {"shape": [2, 5, 4]}), IMAGES)
    assert_array_equal(parse("x-ubyte.gz", gzip.compress(as_idx(IMAGES)), {}), IMAGES)


def test_a_table_has_a_column_of_numbers_where_all_are_numbers_or_missing():
    text = b'\xef\xbb\xbfid, "name, first",x,x,drop\r\n1,"a, b",?,,9\r\n2,NA,3e1,-inf,9\r\n\r\n'
    found = parse("t.csv", text, {"drop": ["drop"], "shape": [2, 4]})
    assert list(found) == ["id", "name, first", "x", "x.1"]
    assert found["name, first"].tolist() == ["a, b", "NA"]  # strings stay as they are
    assert_array_equal(found["x"], [np.nan, 30])
    assert_array_equal(found["x.1"], [np.nan, -np.inf])


def test_a_table_without_head_takes_given_names_or_numbers():
    assert list(parse("t.csv", b"1,2\n", {"header": False})) == ["0", "1"]
    triples = {"format": "strings", "columns": ["h", "r", "t"], "delimiter": "\t", "skip": 1}
    found = parse("t.txt", b"# comment\n007\tis\tBond\n", triples)
    assert {k: v.tolist() for k, v in found.items()} == {"h": ["007"], "r": ["is"], "t": ["Bond"]}


def test_other_formats():
    arrays = {"a": np.eye(2), "b": np.array([1], np.int16)}
    found = parse("x.npz", _npz(**arrays), {})
    assert_array_equal(found["a"], np.eye(2))
    assert_array_equal(parse("x.npy", _npy(IMAGES), {"shape": [2, 5, 4]}), IMAGES)
    assert parse("x.json", b'{"a": [1]}', {}) == {"a": [1]}
    assert parse("x.jsonl", '{"a": 1}\n{"a": "\u2028"}\n\n'.encode(), {"shape": [2]}) == [{"a": 1}, {"a": "\u2028"}]
    assert parse("x.txt", "é\n".encode(), {"shape": [2]}) == "é\n"
    assert_array_equal(parse("x.txt", b"1 2\n3 4\n", {"format": "numbers"}), [[1, 2], [3, 4]])
    integers = parse("x.txt", b"7\n", {"format": "integers"})
    assert integers.tolist() == [7] and integers.dtype == np.int64
    found = parse("x.mat", _mat(X=np.eye(2), Y=np.ones((2, 1))), {"rename": {"Y": "y"}, "shape": [2, 2]})
    assert found["y"].shape == (2,) and found["X"].shape == (2, 2)


def test_images_are_bytes_grey_or_in_colour():
    for shape in ((3, 4), (3, 4, 3)):
        array = np.arange(np.prod(shape)).reshape(shape)
        assert_array_equal(parse("x.png", _png(array), {"shape": list(shape)}), array)


def test_archives_are_read_without_extracting_and_one_member_can_be_the_file():
    members = {"d/a.csv": TABLE, "b": b"\x00"}
    assert parse("x.zip", _zip(members), {"shape": [2]}) == members
    assert parse("x.tar.gz", _tar(members), {"shape": [2]}) == members
    assert_array_equal(parse("x.csv.zip", _zip(members), {"member": "d/a.csv"})["a"], [1, 2])


@pytest.mark.parametrize("pack", [_zip, _tar])
@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil"])
def test_a_member_that_leaves_the_archive_is_refused(pack, name):
    with pytest.raises(ReproError, match=r"could not be read as (zip|tar) \(member '.*evil' leaves the archive\)"):
        parse("x.zip" if pack is _zip else "x.tar.gz", pack({name: b""}), {})


@pytest.mark.parametrize(
    ("path", "raw", "message"),
    [
        ("x.gz", b"plain", r"no reader for 'x'; there are idx, npy"),
        ("x.exe", b"", "x.exe: no reader for 'exe'"),
        ("x.csv.gz", b"plain", "x.csv.gz could not be read as csv"),
        ("x.csv.gz", gzip.compress(TABLE)[:-9], "could not be read as csv"),
        ("x.csv", b"a,b\n1\n", "could not be read as csv"),
        ("x.csv", b"\xff\n", "could not be read as csv .*utf-8"),
        ("x.csv", b"", "could not be read as csv"),
        ("x-ubyte", b"", "could not be read as idx"),
        ("x-ubyte", b"\x00\x00\x08", "could not be read as idx"),
        ("x-ubyte", b"\x00\x00\x08\x02\x00", "could not be read as idx"),
        ("x-ubyte", b"\x00\x00\x0d\x01\x00\x00\x00\x01\x07", r"could not be read as idx \(not unsigned bytes\)"),
        ("x-ubyte", as_idx(IMAGES)[:-1], "could not be read as idx"),
        ("x-ubyte", as_idx(IMAGES) + b"!", "could not be read as idx"),
        ("x.npy", _npy(np.array([{}]), pickled=True), "could not be read as npy .*allow_pickle"),
        ("x.npz", _npz(a=np.array([{}])), "could not be read as npz .*allow_pickle"),
        ("x.npy", pickle.dumps(1), "could not be read as npy"),
        ("x.npz", b"PK", "could not be read as npz"),
        ("x.json", b"{", "could not be read as json"),
        ("x.jsonl", b"{}\n{", "could not be read as jsonl"),
        ("x.png", b"\x89PNG", "could not be read as png"),
        ("x.zip", b"PK", "could not be read as zip"),
        ("x.tar.gz", gzip.compress(b"?" * 999), "could not be read as tar"),
        ("x.mat", b"MATLAB", "could not be read as mat"),
        ("x.pkl", pickle.dumps(1), "x.pkl is a pickle, which can run code when it is opened; none is opened here"),
        ("x.pkl.gz", b"", "x.pkl.gz is a pickle"),
        ("x.pt", b"", "x.pt is a pickle"),
    ],
    ids=lambda value: "bytes" if isinstance(value, bytes) else value,  # packed bytes hold the time of day
)
def test_a_file_of_another_format_is_refused(path, raw, message):
    with pytest.raises(ReproError, match=message):
        parse(path, raw, {})


def test_a_file_of_another_shape_or_without_its_member_is_refused():
    with pytest.raises(ReproError, match=r"x\.csv must have shape \(3, 2\); it has \(2, 2\)"):
        parse("x.csv", TABLE, {"shape": [3, 2]})
    with pytest.raises(ReproError, match=r"x\.zip could not be read as csv .*no\.csv"):
        parse("x.zip", _zip({"a.csv": TABLE}), {"member": "no.csv"})


def test_the_shape_of_anything():
    assert shape_of(np.zeros((2, 3))) == (2, 3) and shape_of("abc") == (3,) and shape_of([1]) == (1,)
    assert shape_of({"a": np.zeros(4), "b": np.zeros((4, 2))}) == (4, 2)
    assert shape_of({"a": np.zeros(4), "b": np.zeros(3), "c": np.zeros(1)}) == (3,) and shape_of({}) == (0,)


# embedded, generated, and the sets with a loader of their own


def test_digits_are_images_in_zero_to_one_with_ten_classes():
    x, y = data.digits()
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((1797, 64), torch.float32, (1797,), torch.int64)
    assert (x.min(), x.max(), y.min(), y.max(), len(y.unique())) == (0, 1, 0, 9, 10)


@pytest.mark.parametrize("name", [n for n, e in data.registry().items() if e.origin == "embedded"])
def test_an_embedded_set_gives_plain_arrays_of_the_size_it_says(name):
    pytest.importorskip(data.registry()[name].facts["loader"].partition(".")[0])
    found = data.load(name)
    assert found.form == "embedded" and all(isinstance(v, np.ndarray) for v in found.content.values())
    rows = int(data.registry()[name].facts["holds"].split()[0].replace(",", "").replace("two", "2"))
    assert rows in {len(v) for v in found.content.values()}


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib, "import_module", lambda _: (_ for _ in ()).throw(ImportError()))
    with pytest.raises(ReproError, match=r"comes with scikit-learn; install it \(pip install scikit-learn\)"):
        data.digits()


def test_a_generated_set_says_who_makes_it_and_the_maker_exists():
    for name, entry in data.registry().items():
        if entry.origin == "generated":
            module, _, function = entry.facts["loader"].partition(":")
            assert callable(getattr(importlib.import_module(module), function))
            with pytest.raises(ReproError, match=rf"{name} is made, not loaded: use {module}\.{function}\."):
                data.load(name)


def register(monkeypatch, folder: Path, name: str, form: str, contents: dict[str, bytes]) -> None:
    """Make ``contents`` (key and suffix to bytes) the registered and present files of a set."""
    files = []
    for path, content in contents.items():
        put(folder, f"toy/{path}", content)
        files.append(file(path, content)._replace(key=path.removesuffix(".gz").rpartition(".")[0] or path[:-3]))
    monkeypatch.setattr(data, "registry", lambda: {name: DataSet(name, "public", {}, (Form(form, tuple(files)),))})


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_a_tiny_mnist_is_read_training_before_test(monkeypatch, folder, name):
    contents = {}
    for split, n, label in (("train", 2, 5), ("t10k", 1, 7)):
        contents[f"{split}-images-idx3-ubyte.gz"] = gzip.compress(as_idx(IMAGES[:n] * 6))
        contents[f"{split}-labels-idx1-ubyte.gz"] = gzip.compress(as_idx(np.full(n, label)))
    register(monkeypatch, folder, name, "canonical", contents)
    x, y = data.mnist(name)
    assert (x.shape, x.dtype, y.dtype, y.tolist()) == ((3, 20), torch.float32, torch.int64, [5, 5, 7])
    assert_array_equal((x[1] * 255).round().numpy(), 6 * IMAGES[1].ravel())


def test_a_tiny_cifar10_is_read_in_both_forms(monkeypatch, folder):
    rows = np.random.default_rng(0).integers(0, 256, (6, 3073)).astype(np.uint8)
    rows[:, 0] = np.arange(6)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    batches = {f"cifar-10-batches-bin/{name}.bin": row.tobytes() for name, row in zip(names, rows, strict=True)}
    register(monkeypatch, folder, "cifar10", "canonical", {"cifar-10-binary.tar.gz": _tar(batches)})
    x, y, form = data.cifar10()
    assert (x.shape, x.dtype, y.tolist(), form) == ((6, 3, 32, 32), torch.uint8, list(range(6)), "canonical")
    assert x[2, 1, 3, 4] == rows[2, 1 + 1024 + 3 * 32 + 4]  # a row is a label, then red, green, blue, each by rows

    def packed(images: torch.Tensor, labels: torch.Tensor) -> bytes:  # PNG in place of JPEG: nothing is lost
        blobs = [_png(image.permute(1, 2, 0).numpy()) for image in images]
        offsets = np.cumsum([0, *map(len, blobs)])
        return _npz(blob=np.frombuffer(b"".join(blobs), np.uint8), offsets=offsets, labels=labels.numpy())

    parts = {"cifar10_train_jpeg.npz": packed(x[:5], y[:5]), "cifar10_test_jpeg.npz": packed(x[5:], y[5:])}
    register(monkeypatch, folder, "cifar10", "data folder", parts)
    again, labels, form = data.cifar10()
    assert torch.equal(again, x) and torch.equal(labels, y) and form == "data folder" and again.is_contiguous()


# the command


def test_list_shows_each_set_with_size_place_and_stand_in(capsys):
    assert cli.main(["data", "list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(lines) == set(data.registry())
    assert "11.6 MB" in lines["mnist"] and "absent" in lines["mnist"] and "for digits" in lines["mnist"]
    assert "absent, no download" in lines["tofu"] and "for world" in lines["tofu"] and "MIT" in lines["tofu"]
    assert "scikit-learn" in lines["digits"] and "made here" in lines["glyphs"]


def test_list_says_where_a_set_is(toy, folder, capsys):
    def place():
        cli.main(["data", "list"])
        return capsys.readouterr().out

    assert "absent" in place()
    put(data.folders()[1], "toy/one.csv", TABLE)
    assert "in part" in place()
    put(data.folders()[1], "toy/two.txt", b"text")
    assert "cache" in place()
    put(folder, "toy/one.csv.gz", gzip.compress(TABLE))
    put(folder, "toy/two.txt", b"text")
    assert "data folder" in place()


def test_fetch_fills_a_folder_for_a_room_without_internet(toy, folder, tmp_path, monkeypatch, capsys):
    put(folder, "toy/one.csv.gz", gzip.compress(TABLE))
    put(folder, "toy/two.txt", b"text")
    room = tmp_path / "room"
    for _ in range(2):
        assert cli.main(["data", "fetch", "toy", "--to", str(room)]) == 0
        assert "toy: canonical form, 2 files, 0.0 MB, verified." in capsys.readouterr().out
    assert sorted(str(f.relative_to(room)) for f in room.rglob("*") if f.is_file()) == ["toy/one.csv", "toy/two.txt"]
    (room / "toy/one.csv").unlink()
    put(room, "toy/one.csv.gz", gzip.compress(TABLE))  # is as good
    assert cli.main(["data", "fetch", "toy", "--to", str(room)]) == 0 and not (room / "toy/one.csv").exists()
    monkeypatch.setenv("REPRO_DATA", str(room))
    assert data.load("toy").content["two"] == "text"


def test_fetch_downloads_what_is_missing_or_spoiled_in_the_cache(toy, monkeypatch, capsys):
    fetched = []

    def bring(f, target, on_progress):
        fetched.append(target.name)
        on_progress(1_000_000, 2_000_000)
        put(data.folders()[-1], f.path, {"one.csv": TABLE, "two.txt": b"text"}[target.name])

    monkeypatch.setattr(data, "bring", bring)
    monkeypatch.setattr(datacli, "CLEAR", "\r")  # as on a terminal
    put(data.folders()[-1], "toy/one.csv", b"spoiled")
    assert cli.main(["data", "fetch", "--all"]) == 0 and fetched == ["one.csv", "two.txt"]
    assert cli.main(["data", "fetch", "toy", "toy"]) == 0 and len(fetched) == 2
    out = capsys.readouterr().out
    assert out.count("verified") == 2 and "\rtoy/one.csv  50% of 2.0 MB\rtoy/two.txt  50%" in out


def test_fetch_never_touches_the_data_folder_of_the_user(toy, folder, capsys):
    path = put(folder, "toy/one.csv", b"spoiled")
    assert cli.main(["data", "fetch", "toy"]) == 1
    assert "Put the published file in its place" in capsys.readouterr().out and path.read_bytes() == b"spoiled"


def test_fetch_says_what_it_cannot_do(capsys):
    assert cli.main(["data", "fetch"]) == 1 and "Name data sets, or say --all" in capsys.readouterr().err
    assert cli.main(["data", "fetch", "--all", "mnist"]) == 1
    assert cli.main(["data", "fetch", "mnits"]) == 1 and "Did you mean mnist" in capsys.readouterr().err
    assert cli.main(["data", "fetch", "digits", "glyphs"]) == 0
    assert (
        "digits: needs no download (scikit-learn).\nglyphs: needs no download (made here)." in capsys.readouterr().out
    )
    assert cli.main(["data", "fetch", "tofu"]) == 1
    assert "no automatic download of it: see https://huggingface.co/datasets/locuslab/TOFU" in capsys.readouterr().out


def test_fetch_all_leaves_out_what_has_no_address(toy, monkeypatch, capsys):
    lonely = toy._replace(name="lonely", forms=toy.forms[1:])
    monkeypatch.setattr(data, "registry", lambda: {"lonely": lonely})
    assert cli.main(["data", "fetch", "--all"]) == 0
    assert "lonely: left out, no automatic download: see http://page/toy" in capsys.readouterr().out


def test_verify_names_each_bad_file(toy, folder, capsys):
    put(folder, "toy/one.csv", TABLE)
    put(data.folders()[1], "toy/two.txt", b"text")
    assert cli.main(["data", "verify"]) == 0
    assert capsys.readouterr().out == "2 files here, none of them not the published one.\n"
    bad = put(folder, "toy/two.txt", b"tex?")
    assert cli.main(["data", "verify", "toy"]) == 1
    out = capsys.readouterr().out
    assert f"{bad} is not the published file" in out and "3 files here, 1 of them" in out
    assert cli.main(["data", "verify", "tou"]) == 1


# the real data, where they are

needs_data = pytest.mark.skipif(not REAL_DATA, reason="REPRO_DATA names no folder with the published files")


@needs_data
@pytest.mark.parametrize("name", [entry.name for entry in PUBLIC])
def test_a_published_set_is_verified_and_read_in_its_registered_shape(name, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", REAL_DATA)
    entry = data.data_set(name)
    here = [form for form in entry.forms if all(data.where(f, [Path(REAL_DATA)]) for f in form.files)]
    if not here:
        pytest.skip(f"{REAL_DATA} does not hold {name}")
    found = data.load(name)
    assert found.form == here[0].name
    for f in here[0].files:
        value = found.content
        for part in f.key.split("/"):
            value = value[part]
        if "shape" in f.options:
            assert shape_of(value) == tuple(f.options["shape"])


@needs_data
def test_the_published_mnist_has_its_first_labels_and_mean(monkeypatch):
    monkeypatch.setenv("REPRO_DATA", REAL_DATA)
    x, y = data.mnist()
    assert (x.shape, x.dtype, y.shape) == ((70_000, 784), torch.float32, (70_000,))
    assert y[:5].tolist() == [5, 0, 4, 1, 9] and y[60_000:60_005].tolist() == [7, 2, 1, 0, 4]
    assert 0.13 < x.mean() < 0.1325 and y.bincount().tolist()[1] == 7877


@needs_data
def test_published_tables_hold_what_their_papers_say(monkeypatch):
    monkeypatch.setenv("REPRO_DATA", REAL_DATA)
    adult = data.load("adult").content["train"]
    assert (adult["income"] == ">50K").sum() == 7841 and adult["age"].mean() == pytest.approx(38.58, abs=0.01)
    train = data.load("wn18rr").content["train"]
    assert len(set(train["relation"].tolist())) == 11 and train["head"][0] == "00260881"
    cora = data.load("cora").content["cora"]
    assert cora["edges"].shape == (5278, 2) and set(cora["labels"].tolist()) == set(range(7))
    table = data.load("esol").content["delaney-processed"]
    with gzip.open(Path(REAL_DATA) / "esol/delaney-processed.csv.gz", "rt") as stream:
        rows = list(csv.DictReader(stream))
    assert table["smiles"].tolist() == [r["smiles"] for r in rows]
