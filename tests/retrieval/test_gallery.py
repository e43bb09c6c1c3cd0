import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vifast import _files
from vifast.retrieval import Gallery, evaluate, gallery_file, search

HERE = Path(__file__).parent  # not the root, whose bare package would hide an installed one


def same(gallery, features, ids=None, cams=None):
    assert torch.equal(gallery.features, features)
    for got, expected in ((gallery.ids, ids), (gallery.cams, cams)):
        assert (got is None) == (expected is None)
        assert got is None or torch.equal(got, expected)


@pytest.fixture
def rows():
    return torch.randn(11, 3), torch.arange(11) * 5 - 7, torch.arange(11) % 4


@pytest.fixture
def file(tmp_path, rows):
    Gallery(*rows).save(tmp_path / "g.safetensors")
    return tmp_path / "g.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_saved_and_opened(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(gallery_file, "CHUNK", 64)
    features, ids = torch.randn(70, 5).to(dtype), torch.arange(70, dtype=torch.int32)
    for extra in ({}, {"ids": ids}, {"cams": ids}, {"ids": ids, "cams": ids}):
        file = tmp_path / "a.safetensors"
        saved = Gallery(features.T.contiguous().T, **extra).save(file)
        for gallery in (saved, Gallery.open(str(file), verify=True)):
            same(gallery, features, **{name: value.long() for name, value in extra.items()})
            assert gallery.features.dtype == dtype
            assert gallery.features.data_ptr() % 64 == 0
            assert gallery.path == file
    assert repr(saved) == f"Gallery(70 x 5 {str(dtype)[6:]}, ids, cams, path={str(file)!r})"


def test_the_file_is_an_ordinary_safetensors_file(file, rows):
    library = pytest.importorskip("safetensors.torch")
    tensors = library.load_file(file)
    same(SimpleNamespace(**tensors), *rows)
    library.save_file({"features": rows[0].half(), "cams": rows[1].short(), "more": torch.ones(2) > 0}, file)
    same(Gallery.open(file, verify=True), rows[0].half(), None, rows[1])
    library.save_file({"a": torch.ones(3, dtype=torch.int8), "features": rows[0]}, file)  # begins at an odd address
    same(Gallery.open(file), rows[0])


def test_npy_files_and_folders(tmp_path, rows):
    np.save(tmp_path / "features.npy", rows[0].numpy())
    same(Gallery.open(tmp_path / "features.npy", verify=True), rows[0])
    same(Gallery.open(tmp_path), rows[0])
    np.save(tmp_path / "ids.npy", rows[1].numpy().astype(np.int32))
    np.save(tmp_path / "cams.npy", rows[2].numpy())
    same(Gallery.open(tmp_path), *rows)
    np.save(tmp_path / "features.npy", np.asfortranarray(rows[0].numpy()))
    same(Gallery.open(tmp_path).save(tmp_path / "g.safetensors"), *rows)


def test_searched_and_evaluated_from_the_file(file, rows):
    query, ids, cams = torch.randn(4, 3), torch.arange(4) * 5 - 7, torch.arange(4) + 1
    gallery = Gallery.open(file)
    for metric in ("cosine", "euclidean"):
        for got, expected in zip(
            gallery.search(query, 3, metric=metric), search(query, rows[0], 3, metric=metric), strict=True
        ):
            assert torch.equal(got, expected)
        options = {"metric": metric, "exclude": "same_camera"}
        expected = evaluate(query, rows[0], ids, rows[1], cams, rows[2], **options)
        assert torch.equal(gallery.evaluate(query, ids, cams, **options).ap.nan_to_num(), expected.ap.nan_to_num())
    with pytest.raises(ValueError, match="ids: expected a gallery with identities"):
        Gallery(rows[0]).evaluate(query, ids)


def test_add_and_remove(file, rows):
    gallery, reader = Gallery.open(file), Gallery.open(file)
    more = torch.randn(2, 3), torch.tensor([90, 91]), torch.tensor([1, 2])
    both = [torch.cat(pair) for pair in zip(rows, more, strict=True)]
    gallery.add(*(value.numpy() for value in more))
    same(gallery, *both)
    keep = torch.arange(13) % 3 != 1
    gallery.remove(~keep)
    same(gallery, *(value[keep] for value in both))
    gallery.remove(np.array([0, 2, 0]))
    expected = [value[keep][torch.tensor([1, *range(3, int(keep.sum()))])] for value in both]
    same(gallery, *expected)
    same(Gallery.open(file, verify=True), *expected)
    same(reader, *rows)  # what was opened before stays
    reader.verify()


def test_a_change_on_top_of_another_process_is_refused(file, rows):
    first, second = Gallery.open(file), Gallery.open(file)
    first.remove(torch.tensor([0]))
    with pytest.raises(ValueError, match=r"g\.safetensors: replaced by another process"):
        second.remove(torch.tensor([1]))
    same(Gallery.open(file), *(value[1:] for value in rows))


def test_writers_wait_for_each_other(file, rows):
    program = (
        "import sys, torch; from vifast.retrieval import Gallery; print('ready', flush=True)\n"
        "Gallery(torch.ones(1, 3)).save(sys.argv[1]); print('saved')"
    )
    with _files.writing(file):
        other = subprocess.Popen([sys.executable, "-c", program, file], cwd=HERE, stdout=subprocess.PIPE)
        assert other.stdout.readline() == b"ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1)
        same(Gallery.open(file), *rows)
    assert other.communicate(timeout=60)[0] == b"saved\n"
    same(Gallery.open(file), torch.ones(1, 3))


def test_every_damaged_byte_is_found(file):
    """Of the header at opening, of the rest by verify()."""
    data = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for at in range(len(data)):
        for flip in (1, 0x20):
            file.write_bytes(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
            with pytest.raises(ValueError, match=r"g\.safetensors: .*(damaged|truncated)"):
                Gallery.open(file, verify=at >= header)


@pytest.mark.parametrize("name", ["g.safetensors", "f.npy"])
def test_every_truncation_is_found_at_opening(file, rows, name):
    np.save(file.with_name("f.npy"), rows[0].numpy())
    file = file.with_name(name)
    data = file.read_bytes()
    for size in range(len(data)):
        file.write_bytes(data[:size])
        with pytest.raises(ValueError, match=rf"{name}: (damaged|truncated)"):
            Gallery.open(file)
    file.write_bytes(data + b"\0")
    with pytest.raises(ValueError, match=rf"{name}: damaged, its header tells {len(data)} bytes"):
        Gallery.open(file)


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(1, 1), offsets=(0, 4)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "truncated"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "truncated or damaged"),
        (safetensors(b"{"), "damaged safetensors header"),
        (safetensors(b"[]"), "damaged safetensors header"),
        (safetensors(b"[" * 100000), "damaged safetensors header"),
        (safetensors({"features": [1]}), "damaged safetensors header"),
        (safetensors({"features": entry() | {"more": 1}}, b"1234"), "damaged safetensors header"),
        (safetensors({"features": entry(shape=(2, 1))}, b"1234"), "4 bytes do not hold F32"),
        (safetensors({"features": entry(shape=(-1, -1))}, b"1234"), "expected whole numbers"),
        (safetensors({"features": entry(offsets=(4, 8))}, b"12345678"), "begins at byte 4"),
        (safetensors({"features": entry(), "ids": entry()}, b"1234"), "begins at byte 0"),
        (safetensors({"features": entry()}, b"123"), "truncated"),
        (safetensors({"features": entry(), "__metadata__": {"sha256.content": "0"}}, b"1234"), "damaged"),
        (safetensors({"features": entry(), "__metadata__": {"sha256.header": "0"}}, b"1234"), "checksum"),
        (safetensors({"features": entry(), "__metadata__": {"sha256.header": 5}}, b"1234"), "damaged"),
        (safetensors({"feat": entry()}, b"1234"), "expected a tensor named features, got feat"),
        (safetensors({}), "expected a tensor named features, got none"),
        (safetensors({"features": entry("I32")}, b"1234"), "features: expected a floating"),
        (safetensors({"features": entry(shape=(1,))}, b"1234"), r"features: expected shape \[N, D\]"),
        (safetensors({"features": entry(shape=(0, 3), offsets=(0, 0))}), "features: expected at least one row"),
        (safetensors({"features": entry(), "ids": entry("F32", (1,), (4, 8))}, b"12345678"), "ids: expected an int"),
    ],
)
def test_other_broken_files(tmp_path, content, words):
    file = tmp_path / "g.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"g\.safetensors: .*{words}"):
        Gallery.open(file)


def test_broken_arrays(tmp_path):
    file = tmp_path / "f.npy"
    for array, words in (
        (np.array([[None]]), "expected numbers, got Python objects"),
        (np.ones((2, 2), ">f4"), "byte order"),
        (np.ones((2, 2), "datetime64[s]"), "expected a numeric array"),
        (np.ones((2, 2), np.int64), "features: expected a floating"),
    ):
        np.save(file, array, allow_pickle=True)
        with pytest.raises(ValueError, match=rf"f\.npy: .*{words}"):
            Gallery.open(file)
    with pytest.raises(FileNotFoundError, match=r"none\.npy: no such file"):
        Gallery.open(tmp_path / "none.npy")
    with pytest.raises(FileNotFoundError, match=r"features\.npy: no such file"):
        Gallery.open(tmp_path)
    with pytest.raises(ValueError, match=r"f\.txt: expected a \.npy or \.safetensors file"):
        Gallery.open(tmp_path / "f.txt")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([[1.0]],), TypeError, "features: expected a tensor"),
        ((torch.ones(2, 2, dtype=torch.int64),), TypeError, "features: expected a floating"),
        ((torch.ones(0, 2),), ValueError, "features: expected at least one row"),
        ((torch.ones(2, 2, device="meta"),), ValueError, "features: expected device cpu"),
        ((torch.ones(2, 2), torch.ones(2)), TypeError, "ids: expected an integer"),
        ((torch.ones(2, 2), None, torch.arange(3)), ValueError, r"cams: expected shape \[2\]"),
    ],
)
def test_bad_galleries(arguments, error, words):
    with pytest.raises(error, match=words):
        Gallery(*arguments)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda g: g.add(torch.ones(1, 4), torch.tensor([1]), torch.tensor([1])), ValueError, "features: expected 3"),
        (lambda g: g.add(torch.ones(1, 3).half(), torch.tensor([1]), torch.tensor([1])), TypeError, "features: exp"),
        (lambda g: g.add(torch.ones(1, 3), torch.tensor([1])), ValueError, "cams: expected one per row"),
        (lambda g: g.add(torch.ones(1, 3) * torch.nan, *[torch.tensor([1])] * 2), ValueError, "row 0 is not finite"),
        (lambda g: g.remove(torch.ones(11) > 0), ValueError, "rows: expected to leave at least one of the 11 rows"),
        (lambda g: g.remove(torch.ones(10) > 0), ValueError, r"rows: expected a mask of shape \[11\], got \[10\]"),
        (lambda g: g.remove(torch.tensor([1, 11])), IndexError, r"rows: expected 0\.\.10, got 11"),
        (lambda g: g.remove(torch.tensor([-1])), IndexError, r"rows: expected 0\.\.10, got -1"),
        (lambda g: g.remove(torch.tensor([1.0])), TypeError, "rows: expected bools or a list of whole numbers"),
        (lambda g: g.save(g.path.with_suffix(".npy")), ValueError, "path: expected a .safetensors file"),
    ],
)
def test_bad_changes_leave_the_file(file, rows, call, error, words):
    before = file.read_bytes()
    with pytest.raises(error, match=words):
        call(Gallery.open(file))
    assert file.read_bytes() == before
    assert not list(file.parent.glob("*.part"))


def test_what_cannot_be_changed_in_place(tmp_path, rows):
    with pytest.raises(ValueError, match=r"gallery: expected a \.safetensors gallery, save\(\) it as one first"):
        Gallery(rows[0]).remove(torch.tensor([0]))
    np.save(tmp_path / "features.npy", rows[0].numpy())
    for path in (tmp_path, tmp_path / "features.npy"):
        with pytest.raises(ValueError, match=r"expected a \.safetensors gallery"):
            Gallery.open(path).remove(torch.tensor([0]))
    gallery = Gallery(rows[0])
    with pytest.raises(ValueError, match="ids: expected none"):
        gallery.add(rows[0], rows[1])


def test_damage_gets_no_new_checksum(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    gallery = Gallery.open(file)
    for change in (
        lambda: gallery.add(torch.ones(1, 3), torch.tensor([1]), torch.tensor([1])),
        lambda: gallery.remove(torch.tensor([1])),
        lambda: gallery.save(file),
        lambda: gallery.save(file.with_name("other.safetensors")),
    ):
        with pytest.raises(ValueError, match=r"g\.safetensors: damaged, its bytes do not match"):
            change()
    assert file.read_bytes() == data
    assert not file.with_name("other.safetensors").exists()


CALLS = ("open", "write", "lseek", "fsync", "close", "replace", "unlink")


class FaultyOs:
    """The ``os`` of a module with call number ``at`` failing, or killing the process, half way through."""

    def __init__(self, at, kill, short=False):
        self.at, self.kill, self.short, self.calls = at, kill, short, []

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*arguments):
            self.calls.append(name)
            if name == "write" and self.short:
                return real(arguments[0], arguments[1][:7])
            if len(self.calls) - 1 != self.at:
                return real(*arguments)
            if name == "write":
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "close":
                real(*arguments)
            raise OSError(28, "No space left on device")

        return call


def change(file, operation, rows):
    gallery = Gallery.open(file)
    if operation == "save":
        Gallery(-rows[0][:9], rows[1][:9]).save(file)
    elif operation == "add":
        gallery.add(-rows[0][:2], rows[1][:2], rows[2][:2])
    else:
        gallery.remove(torch.tensor([3, 4]))


def in_a_child(function):
    """Runs a function in a fork that is expected to die or to end; the result tells which."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize("operation", ["save", "add", "remove"])
def test_a_fault_at_any_call_leaves_the_old_gallery_or_the_new(tmp_path, rows, monkeypatch, operation, kill):
    monkeypatch.setattr(gallery_file, "CHUNK", 40)  # several writes a tensor
    file = tmp_path / "g.safetensors"
    Gallery(*rows).save(file)
    old = file.read_bytes()
    counted = FaultyOs(None, False)
    with monkeypatch.context() as patch:
        for module in (gallery_file, _files):
            patch.setattr(module, "os", counted)
        change(file, operation, rows)
    new = file.read_bytes()
    assert new != old
    renamed = counted.calls.index("replace")
    assert counted.calls.count("write") > 6
    assert counted.calls[:renamed].count("fsync") == 1
    for at, name in enumerate(counted.calls):
        file.write_bytes(old)
        with monkeypatch.context() as patch:
            faulty = FaultyOs(at, kill)
            for module in (gallery_file, _files):
                patch.setattr(module, "os", faulty)
            if kill:
                assert in_a_child(lambda: change(file, operation, rows))
            else:
                with pytest.raises(OSError, match="No space left"):
                    change(file, operation, rows)
                assert not list(tmp_path.glob(".*.part"))
        assert file.read_bytes() == (old if at <= renamed else new), (at, name)
        Gallery.open(file, verify=True)
        change(file, operation, rows)  # nothing that was left behind is in the way of the next
        if at <= renamed:
            assert file.read_bytes() == new
        assert not list(tmp_path.glob(".*.part"))


def test_writes_that_stop_early_are_continued(tmp_path, rows, monkeypatch):
    for module in (gallery_file, _files):
        monkeypatch.setattr(module, "os", FaultyOs(None, False, short=True))
    same(Gallery(*rows).save(tmp_path / "g.safetensors"), *rows)
    Gallery.open(tmp_path / "g.safetensors", verify=True)
