import os
import pickle
import re
import resource
import shutil
import signal
import time
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image

from vifast import use_progress
from vifast.data import cache as module
from vifast.data import open_cache
from vifast.data.images import read_image
from vifast.data.records import make_samples

SIZE, COUNT = (12, 6), 20


@pytest.fixture
def samples(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (9 + i, 7, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return make_samples([(path, 0, 1, 0) for path in sorted(folder.iterdir())])


@pytest.fixture
def decoded(monkeypatch):
    """The paths that are decoded."""
    paths = []

    def noted(path, *options):
        paths.append(os.fspath(path))
        return read_image(path, *options)

    monkeypatch.setattr(module, "read_image", noted)
    return paths


def expected(samples):
    return np.stack([read_image(path, SIZE) for path in samples.paths])


def everything(cache):
    return cache.read(range(len(cache)))


def change(path, shift=1):
    """Another image of the same name, `shift` seconds later."""
    before = path.stat().st_mtime_ns
    Image.fromarray(np.full((9, 7, 3), 77, np.uint8)).save(path)
    os.utime(path, ns=(before + shift * 10**9,) * 2)


@pytest.mark.parametrize("resample", ["bilinear", "lanczos"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_rows_are_what_the_decoder_gives(samples, tmp_path, on_disk, resample):
    cache = open_cache(samples, size=SIZE, resample=resample, folder=tmp_path / "kept" if on_disk else None)
    wanted = np.stack([read_image(path, SIZE, resample) for path in samples.paths])
    assert len(cache) == COUNT
    assert cache.size == SIZE
    assert (everything(cache) == wanted).all()
    rows = [3, 19, 3, 0]
    assert (cache.read(rows) == wanted[rows]).all()
    assert cache.read([]).shape == (0, *SIZE, 3)
    out = np.zeros((4, *SIZE, 3), np.uint8)
    assert cache.read(np.array(rows), out=out) is out
    assert (out == wanted[rows]).all()
    cache.expect(rows)
    cache.expect([19, 0])
    cache.expect([])
    assert (cache.read([19]) == wanted[19]).all()
    cache.verify()
    again = pickle.loads(pickle.dumps(cache))
    assert (everything(again) == wanted).all()
    assert again.path == cache.path


def test_decodes_once(samples, tmp_path, decoded):
    first = open_cache(samples, size=SIZE, folder=tmp_path)
    assert sorted(decoded) == [str(path) for path in samples.paths]
    decoded.clear()
    second = open_cache(samples, size=SIZE, folder=tmp_path)
    assert decoded == []
    assert (everything(first) == everything(second)).all()
    assert first.path.stat().st_size < COUNT * 12 * 6 * 3 + 3 * module.PAGE


def test_another_list_size_or_filter_is_another_file(samples, tmp_path):
    options = [
        (samples, {"size": SIZE}),
        (samples, {"size": (12, 7)}),
        (samples, {"size": SIZE, "resample": "lanczos"}),
        (samples.select(np.arange(19)), {"size": SIZE}),
        (samples.select(np.arange(20)[::-1]), {"size": SIZE}),
    ]
    assert len({open_cache(which, **given, folder=tmp_path).path for which, given in options}) == 5


@pytest.mark.parametrize("how", ["other bytes", "time alone", "size alone"])
def test_changed_images_alone_are_decoded_again(samples, tmp_path, decoded, how):
    old = open_cache(samples, size=SIZE, folder=tmp_path)
    before = everything(old)
    decoded.clear()
    path = samples.paths[4]
    if how == "other bytes":
        change(path)
    elif how == "time alone":
        os.utime(path, ns=(1, 1))
    else:
        change(path, shift=0)
    new = open_cache(samples, size=SIZE, folder=tmp_path)
    assert decoded == [str(path)]
    assert (everything(new) == expected(samples)).all()
    assert (everything(old) == before).all()  # who has it open keeps what was opened
    assert (before[4] == everything(new)[4]).all() == (how == "time alone")
    with pytest.raises(ValueError, match=re.escape(f"{old.path}: is not there any more as it was opened")):
        pickle.loads(pickle.dumps(old))


def test_another_decoder_decodes_everything_again(samples, tmp_path, decoded, monkeypatch):
    open_cache(samples, size=SIZE, folder=tmp_path)
    decoded.clear()
    monkeypatch.setattr(PIL, "__version__", "0.1")
    open_cache(samples, size=SIZE, folder=tmp_path)
    assert len(decoded) == COUNT


DAMAGE = {
    "empty": lambda data: b"",
    "a few bytes": lambda data: data[:11],
    "half": lambda data: data[: len(data) // 2],
    "a byte short": lambda data: data[:-1],
    "a byte long": lambda data: data + b"0",
    "another file": lambda data: b"\x89PNG" + data[4:],
    "length": lambda data: data[:8] + b"\xff" * 8 + data[16:],
    "header": lambda data: data.replace(b'"bilinear"', b'"bilinaer"'),
    "header shape": lambda data: data.replace(b'"size":[12,6]', b'"size":[6,12]'),
    "no json": lambda data: data.replace(b'{"version"', b'["version"'),
    "sums": lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_rebuilt_on_request(samples, tmp_path, damage):
    path = open_cache(samples, size=SIZE, folder=tmp_path).path
    data = path.read_bytes()
    broken = DAMAGE[damage](data)
    assert broken != data
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=re.escape(f"{path}: damaged or truncated") + ".*delete or rebuild it"):
        open_cache(samples, size=SIZE, folder=tmp_path)
    assert path.read_bytes() == broken
    open_cache(samples, size=SIZE, folder=tmp_path, rebuild=True)
    assert path.read_bytes() == data


def test_no_byte_but_those_of_images_can_change_unnoticed(samples, tmp_path):
    path = open_cache(samples, size=SIZE, folder=tmp_path).path
    data, rng = path.read_bytes(), np.random.default_rng(0)
    images = COUNT * 12 * 6 * 3
    first = len(data) - 32 - 4 * COUNT - images
    assert first % module.PAGE == 0
    for at in np.concatenate([rng.choice(first, 200, replace=False), np.arange(first + images, len(data))]):
        broken = bytearray(data)
        broken[at] = rng.choice([byte for byte in range(256) if byte != data[at]])
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=re.escape(f"{path}: damaged or truncated")):
            open_cache(samples, size=SIZE, folder=tmp_path)


def test_a_damaged_image_is_found_and_not_copied(samples, tmp_path, decoded):
    path = open_cache(samples, size=SIZE, folder=tmp_path).path
    data = bytearray(path.read_bytes())
    data[-(32 + 4 * COUNT) - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(f"{path}: damaged, image 19 ({samples.paths[19]})")):
        open_cache(samples, size=SIZE, folder=tmp_path).verify()
    change(samples.paths[0])
    decoded.clear()
    cache = open_cache(samples, size=SIZE, folder=tmp_path)
    assert sorted(decoded) == [str(samples.paths[i]) for i in (0, 19)]
    assert (everything(cache) == expected(samples)).all()


def test_missing_and_broken_images_are_named_and_nothing_is_left(samples, tmp_path):
    kept = open_cache(samples, size=SIZE, folder=tmp_path / "kept").path
    before = kept.read_bytes()
    path = samples.paths[7]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=re.escape(f"{path}: cannot be decoded")):
        open_cache(samples, size=SIZE)
    for folder in ("kept", "new"):
        with pytest.raises(ValueError, match=re.escape(f"{path}: cannot be decoded")):
            open_cache(samples, size=SIZE, folder=tmp_path / folder)
    assert kept.read_bytes() == before
    assert sorted(p.suffix for p in [*(tmp_path / "kept").iterdir(), *(tmp_path / "new").iterdir()]) == [
        ".images",
        ".lock",
        ".lock",
    ]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"{path}: image not found")):
        open_cache(samples, size=SIZE, folder=tmp_path / "kept")


class FaultyOs:
    """The ``os`` of the module with `pwrite` number `at` failing, or killing the process, half way through."""

    def __init__(self, at, kill=False):
        self.at, self.kill, self.calls = at, kill, 0

    def __getattr__(self, name):
        return getattr(os, name)

    def pwrite(self, file, data, at):
        self.calls += 1
        if self.calls != self.at:
            return os.pwrite(file, data[:50], at)  # a disk may also take less than it is given
        os.pwrite(file, data[: len(data) // 2], at)
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("at", [1, 17, 95])
@pytest.mark.parametrize("kill", [False, True])
def test_a_full_disk_or_a_kill_leaves_what_was_there(samples, tmp_path, monkeypatch, at, kill):
    path = open_cache(samples, size=SIZE, folder=tmp_path).path
    before = path.read_bytes()
    change(samples.paths[2])
    with monkeypatch.context() as patch:
        patch.setattr(module, "os", FaultyOs(at, kill))
        if kill:
            child = os.fork()
            if child == 0:
                try:
                    open_cache(samples, size=SIZE, folder=tmp_path)
                finally:
                    os._exit(0)
            assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        else:
            with pytest.raises(OSError, match=re.escape(f"No space left on device: '{path}'")):
                open_cache(samples, size=SIZE, folder=tmp_path)
    assert path.read_bytes() == before
    assert bool(list(tmp_path.glob(".*.part"))) == kill
    assert (everything(open_cache(samples, size=SIZE, folder=tmp_path)) == expected(samples)).all()
    assert not list(tmp_path.glob(".*.part"))


def test_a_disk_without_space_says_so_before_anything_is_decoded(samples, tmp_path, decoded):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*12x6-bilinear\.images'"):
            open_cache(samples, size=SIZE, folder=tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert decoded == []
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".lock"]


def test_of_many_processes_one_decodes_and_all_read_the_same(samples, tmp_path, monkeypatch):
    log, gate, folder = tmp_path / "decoded", tmp_path / "gate", tmp_path / "kept"

    def slow(path, *options):
        with log.open("a") as file:
            file.write(f"{path}\n")
        time.sleep(0.01)
        return read_image(path, *options)

    monkeypatch.setattr(module, "read_image", slow)
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                while not gate.exists():
                    time.sleep(0.001)
                found = open_cache(samples, size=SIZE, folder=folder)
                found.verify()
                code = int((everything(found) != expected(samples)).any())
            finally:
                os._exit(code)
        children.append(child)
    gate.touch()
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert sorted(log.read_text().split()) == [str(path) for path in samples.paths]


def test_progress_is_told(samples, tmp_path):
    told = []

    def wrap(work, name):
        told.append((name, len(work)))
        return work

    with use_progress(wrap):
        open_cache(samples, size=SIZE, folder=tmp_path).verify()
    assert told == [("decoding", COUNT), ("verifying", COUNT)]


def test_a_moved_dataset_is_another_one(samples, tmp_path, decoded):
    open_cache(samples, size=SIZE, folder=tmp_path)
    decoded.clear()
    moved = shutil.copytree(samples.paths[0].parent, tmp_path / "moved")
    open_cache(make_samples([(moved / path.name, 0, 1, 0) for path in samples.paths]), size=SIZE, folder=tmp_path)
    assert len(decoded) == COUNT


def test_sums_are_crc32_of_the_rows(samples, tmp_path):
    cache = open_cache(samples, size=SIZE, folder=tmp_path)
    sums = np.frombuffer(cache.path.read_bytes()[-(32 + 4 * COUNT) : -32], "<u4")
    assert sums.tolist() == [zlib.crc32(image) for image in everything(cache)]


@pytest.mark.parametrize("rows", [[20], [0, -1]])
def test_no_such_image(samples, rows):
    with pytest.raises(IndexError, match=rf"indices: expected 0 to 19, got {rows[-1]}"):
        open_cache(samples, size=SIZE).read(rows)
    with pytest.raises(IndexError, match=rf"indices: expected 0 to 19, got {rows[-1]}"):
        open_cache(samples, size=SIZE, folder=samples.paths[0].parent).expect(rows)


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((1, *SIZE, 3), np.uint8),
        np.zeros((2, *SIZE, 3), np.int8),
        np.zeros((2, 3, *SIZE), np.uint8).transpose(0, 2, 3, 1),
    ],
)
def test_a_place_that_does_not_fit(samples, out):
    with pytest.raises(ValueError, match=re.escape("out: expected a contiguous uint8 array (2, 12, 6, 3), got")):
        open_cache(samples, size=SIZE).read([0, 1], out=out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 4)}, r"size: expected \(height, width\) in pixels, got \(0, 4\)"),
        ({"size": (4,)}, r"size: expected \(height, width\)"),
        ({"size": (4, 4), "resample": "cubic"}, "resample: expected one of bilinear, lanczos, got 'cubic'"),
    ],
)
def test_bad_arguments(samples, options, message):
    with pytest.raises(ValueError, match=message):
        open_cache(samples, **options)
    with pytest.raises(ValueError, match="samples: expected at least one image, got none"):
        open_cache(samples.select(np.arange(0)), size=SIZE)
